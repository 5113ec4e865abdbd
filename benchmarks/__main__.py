"""``python -m benchmarks [--quick] [--device cpu|cuda]``; ``make bench`` installs the peer first."""

import os

# Read when torch is loaded. Threads that spin while they wait take the processor from whoever works.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}

from benchmarks.command import main

if __name__ == "__main__":
    main()

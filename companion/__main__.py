"""``python -m companion``, which is also the console script ``discrete-codes``."""

import sys

from companion.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())

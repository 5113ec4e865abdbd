"""What finding the nearest codes costs: how its time grows with the positions h·w, the codes K and their dimensions D.

What is measured is the exponent g of time ∝ x^g between the smallest and the largest x, while the other two sizes stay
in the middle: with 1 the time grows in proportion, with 0 not at all. The time is processor time, the shortest of
several runs. It does not depend on the vectors, so they are random, and ``--data`` only names the file of results.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch

from companion.quantizers.search import nearest_code
from experiments.common import Cell, Setup, run

IMAGES = 32
SIZES = {
    "quick": {"train_images": 100, "test_images": 100, "repeats": 30},
    "full": {"train_images": 100, "test_images": 100, "repeats": 100},
    "smoke": {"train_images": 32, "test_images": 32, "repeats": 1},
}
# The report's own values, and few dimensions beside: there the comparison, not the product, takes the time.
MIDDLE = {"positions": 144, "codes": 256, "dims": 256}
RANGE = {"positions": (36, 576), "codes": (64, 512), "dims": (64, 512), "few dims": (4, 16)}


def cells(seeds: int) -> Sequence[Cell]:
    return [{"grows": grows, "seed": seed} for seed in range(seeds) for grows in RANGE]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    grows, clock = cell["grows"], processor_time(setup.device)
    values = [low * 2**i for low, high in [RANGE[grows]] for i in range(round(math.log2(high / low)) + 1)]
    g = torch.Generator(setup.device).manual_seed(cell["seed"])
    times = []
    for value in values:
        size = MIDDLE | {grows.removeprefix("few "): value}
        z = torch.randn(IMAGES * size["positions"], size["dims"], generator=g, device=setup.device)
        codebook = torch.randn(size["codes"], size["dims"], generator=g, device=setup.device)
        nearest_code(z, codebook)  # not counted: the first call prepares
        times.append(min(seconds(z, codebook, clock) for _ in range(setup.sizes["repeats"])))
    exponent = math.log(times[-1] / times[0]) / math.log(values[-1] / values[0])
    return {
        "values": [float(value) for value in values],
        "milliseconds": [1e3 * t for t in times],
        "exponent": exponent,
    }


def seconds(z: torch.Tensor, codebook: torch.Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    nearest_code(z, codebook)
    return clock() - started


def processor_time(device: torch.device) -> Callable[[], float]:
    """Time that a busy machine does not lengthen; on a GPU, wall time after all work is done."""

    def finished() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return finished if device.type == "cuda" else time.process_time


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

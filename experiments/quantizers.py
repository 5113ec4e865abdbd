"""One tokenizer, several quantizers with K = 64 codes: who uses them, and what comes back?

Finite scalar quantisation has no codebook to learn: 64 = 4·4·4 points of a fixed grid in three dimensions.
"""

from collections.abc import Callable, Sequence

import torch

from companion.quantizers import FiniteScalarQuantizer, GumbelQuantizer, Quantizer, VectorQuantizer
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, tokenizer, trained

KINDS: dict[str, Callable[[int], Quantizer]] = {
    "vector, D = 8": lambda steps: VectorQuantizer(64, 8),
    "vector, D = 3": lambda steps: VectorQuantizer(64, 3),
    "rotation, D = 8": lambda steps: VectorQuantizer(64, 8, estimator="rotation"),
    "gumbel, D = 8": lambda steps: GumbelQuantizer(64, 8, anneal_steps=steps),
    "finite scalar, D = 3": lambda steps: FiniteScalarQuantizer([4, 4, 4]),
}


def cells(seeds: int) -> Sequence[Cell]:
    return [{"quantizer": kind, "seed": seed} for kind in KINDS for seed in range(seeds)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    sizes = setup.sizes
    steps = sizes["epochs"] * (sizes["train_images"] // sizes["batch_size"])
    model = tokenizer(setup, KINDS[cell["quantizer"]](steps))
    return measured(model, trained(model, setup, seed=cell["seed"]), setup)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""How many codes, of how many dimensions? Held-out distortion and use of the codes over a grid of K and D.

Claims tested: more codes help little from some K on; codes of many dimensions are used less; few dimensions blur.
"""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, tokenizer, trained

NUM_CODES, DIMS = (16, 64, 256), (2, 8, 32)


def cells(seeds: int) -> Sequence[Cell]:
    return [{"num_codes": k, "dim": d, "seed": seed} for k in NUM_CODES for d in DIMS for seed in range(seeds)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, companion.VectorQuantizer(cell["num_codes"], cell["dim"]))
    return measured(model, trained(model, setup, seed=cell["seed"]), setup)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

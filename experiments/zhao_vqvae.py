"""The VQ-VAE of Zhao's report: f = 4, K = 128, D = 8, α = 2, β = 0.1. How the codes start and how fast they learn.

The report trains for 12 epochs with a learning rate of 0.003 and does not say how its codes start. Both are varied
here: codes from U(−√(3/D), √(3/D)) or from k-means of the first batch's latents, and a rate of 0.003 or 0.001.
"""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES as TOKENIZER
from experiments.tokenizer import by_epoch, measured, pictures, sharpness, start_from_k_means, tokenizer, trained

# The rate is a cell's own. Quick has half of the report's epochs, and a sixth of MNIST.
SIZES = {profile: {key: sizes[key] for key in sizes if key != "lr"} for profile, sizes in TOKENIZER.items()}


def cells(seeds: int) -> Sequence[Cell]:
    return [
        {"start": start, "lr": lr, "seed": seed}
        for seed in range(seeds)
        for start in ("uniform", "k-means")
        for lr in (3e-3, 1e-3)
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float] | str]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, companion.VectorQuantizer(128, 8, commitment_weight=0.1), quantizer_weight=2.0)
    if cell["start"] == "k-means":
        start_from_k_means(model, setup, cell["seed"])
    history = trained(model, setup, seed=cell["seed"], lr=cell["lr"])
    numbers = measured(model, history, setup)
    shown = pictures(model, setup) if cell["seed"] == 0 and cell["lr"] == 3e-3 else {}
    return {**numbers, "sharpness": sharpness(model, setup), "by_epoch": by_epoch(history, setup), **shown}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""Codes × dimensions on 32×32 colour images: {64, 128, 256, 512}² with latents of 8×8 (f = 4) and 16×16 (f = 2).

The report on the gradient flow of a VQ-VAE compares them on latents of 12×12, which no whole factor of 32 gives. It
asks what longer training with few codes would do: the cells with "longer" train four times as long.
"""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES as TOKENIZER
from experiments.tokenizer import by_epoch, measured, pictures, tokenizer, trained

# Two cores: a third of the images that the other experiments take, in batches of 32, which makes 564 steps of them. A
# first run in batches of 128 was thrown away: after its 144 steps the networks still lost twice as much.
SIZES = {**TOKENIZER, "quick": {**TOKENIZER["quick"], "train_images": 3_000, "test_images": 1_000, "batch_size": 32}}
VALUES = (64, 128, 256, 512)


def cells(seeds: int) -> Sequence[Cell]:
    grid = [(factor, k, d, 1) for factor in (4, 2) for k in VALUES for d in VALUES]
    longer = [(4, k, 256, 4) for k in (64, 256)]
    return [
        {"factor": factor, "num_codes": k, "dim": d, "longer": times, "seed": seed}
        for seed in range(seeds)
        for factor, k, d, times in grid + longer
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float] | str]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, companion.VectorQuantizer(cell["num_codes"], cell["dim"]), factor=cell["factor"])
    history = trained(model, setup, seed=cell["seed"], epochs=cell["longer"] * setup.sizes["epochs"])
    errors = by_epoch(history, setup)
    shown = pictures(model, setup, 6) if (cell["num_codes"], cell["dim"], cell["seed"]) == (256, 256, 0) else {}
    return {**measured(model, history, setup), "by_epoch": errors, "first_epoch": errors[0], **shown}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

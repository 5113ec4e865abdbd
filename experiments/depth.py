"""Does a deeper encoder or a deeper decoder help? (Asked in a source report, not answered.) K = 64, D = 8."""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, tokenizer, trained


def cells(seeds: int) -> Sequence[Cell]:
    return [
        {"encoder_blocks": e, "decoder_blocks": d, "seed": seed}
        for e, d in ((0, 0), (3, 0), (0, 3), (3, 3))
        for seed in range(seeds)
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(
        setup,
        companion.VectorQuantizer(64, 8),
        encoder_blocks=cell["encoder_blocks"],
        decoder_blocks=cell["decoder_blocks"],
    )
    return measured(model, trained(model, setup, seed=cell["seed"]), setup)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

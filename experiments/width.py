"""Does a wider encoder or a wider decoder help? (Asked in a source report, not answered.) K = 64, D = 8.

Wide is the profile's ``hidden``, narrow a quarter of it.
"""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, trained

WIDTHS = {"narrow": 4, "wide": 1}


def cells(seeds: int) -> Sequence[Cell]:
    return [{"encoder": e, "decoder": d, "seed": seed} for seed in range(seeds) for e in WIDTHS for d in WIDTHS]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    channels, hidden = setup.train.shape[0], setup.sizes["hidden"]
    encoder = companion.ResNetEncoder(channels, 8, hidden=hidden // WIDTHS[cell["encoder"]])
    decoder = companion.ResNetDecoder(channels, 8, hidden=hidden // WIDTHS[cell["decoder"]])
    model = companion.VQVAE(encoder, companion.VectorQuantizer(64, 8), decoder)
    return measured(model, trained(model, setup, seed=cell["seed"]), setup)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""Few codes, trained longer: does a small codebook catch up with a large one? (Asked in a source report, not
answered.)"""

from collections.abc import Sequence

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES as TOKENIZER
from experiments.tokenizer import measured, tokenizer, trained

SIZES = {profile: {**sizes, "epochs": 4 * sizes["epochs"]} for profile, sizes in TOKENIZER.items()}


def cells(seeds: int) -> Sequence[Cell]:
    return [{"num_codes": k, "seed": seed} for k in (16, 256) for seed in range(seeds)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, companion.VectorQuantizer(cell["num_codes"], 8))
    history = trained(model, setup, seed=cell["seed"])
    curve = [row["validation_reconstruction"] / setup.variance for row in history.rows]
    return {**measured(model, history, setup), "by_epoch": curve}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""What do α and β weigh? L = reconstruction + α·codebook + αβ·commitment, with Adam and with SGD.

The codebook gets gradient from its own term only. So α at fixed αβ is nothing but the codebook's step size: SGD doubles
its steps when α doubles, and Adam, which divides every gradient by its own size, should not notice.
"""

from collections.abc import Sequence
from functools import partial

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, tokenizer, trained

SGD_LR, MOMENTUM = 0.1, 0.9


def cells(seeds: int) -> Sequence[Cell]:
    adam = [("adam", alpha, product) for product in (0.05, 0.25, 1.0) for alpha in (1.0, 2.0)]
    sgd = [("sgd", alpha, 0.25) for alpha in (1.0, 2.0)]
    return [
        {"optimizer": optimizer, "alpha": alpha, "alpha_beta": product, "seed": seed}
        for optimizer, alpha, product in adam + sgd
        for seed in range(seeds)
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    alpha, beta = cell["alpha"], cell["alpha_beta"] / cell["alpha"]
    model = tokenizer(setup, companion.VectorQuantizer(64, 8, commitment_weight=beta), quantizer_weight=alpha)
    sgd = partial(torch.optim.SGD, lr=SGD_LR, momentum=MOMENTUM) if cell["optimizer"] == "sgd" else None
    history = trained(model, setup, seed=cell["seed"], optimizer=sgd)
    return measured(model, history, setup) | {"commitment": history.last["validation_commitment"]}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

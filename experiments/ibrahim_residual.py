"""Ibrahim's report: residual against plain quantisation, EMA against learned codebooks, latents of 7×7×4.

Each kind is trained with codes that follow gradients ("learned"), with those that follow moving averages and start from
k-means ("EMA", the companion's), and plain quantisation also with averages and nothing around them ("EMA alone", which
is nearer to the report). Equal numbers of codes are VQ 256 and RQ 2×128; equal rates VQ 256 and RQ 2×16, 8 bits each.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch

from companion.quantizers import EMAVectorQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from experiments.common import Cell, Setup, run
from experiments.residual import measured
from experiments.tokenizer import SIZES, by_epoch, tokenizer, trained

DIM = 4
CODEBOOKS: dict[str, Callable[[int, int], Quantizer]] = {
    "learned": VectorQuantizer,
    "EMA": partial(EMAVectorQuantizer, decay=0.99),
    "EMA alone": partial(EMAVectorQuantizer, decay=0.99, init="uniform", restart_below=0.0),
}
KINDS = (  # R, K, codebook
    (1, 256, "learned"),
    (1, 256, "EMA"),
    (1, 256, "EMA alone"),
    (2, 128, "learned"),
    (2, 128, "EMA"),
    (2, 16, "learned"),
    (2, 16, "EMA"),
    (3, 256, "EMA"),
)


def cells(seeds: int) -> Sequence[Cell]:
    return [
        {"depth": r, "num_codes": k, "codebook": codebook, "seed": seed}
        for seed in range(seeds)
        for r, k, codebook in KINDS
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    torch.manual_seed(cell["seed"])
    make = CODEBOOKS[cell["codebook"]]
    members: list[Quantizer] = [make(cell["num_codes"], DIM) for _ in range(cell["depth"])]
    model = tokenizer(setup, members[0] if cell["depth"] == 1 else ResidualQuantizer(members))
    history = trained(model, setup, seed=cell["seed"])
    losses = [row["validation_loss"] for row in history.rows]
    return {
        **measured(model.eval(), setup),
        "by_epoch": by_epoch(history, setup),
        "loss_by_epoch": losses,
        "largest_rise": max((after / before - 1 for before, after in pairwise(losses)), default=0.0),
    }


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""EMA against gradient codebook, and EMA with one ingredient taken out at a time.

Claims tested: a codebook that follows moving averages loses less than one that follows gradients, and trains more
steadily. Each ingredient around the average (k-means at the start, restarts, decay, smoothing) is left out; two are put
in: codes of length 1, and codes of few dimensions. Without decay a code is the mean of what the last batch sent to it.
The last settings are those of the source report: 256 codes of 4 dimensions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from companion.quantizers import EMAVectorQuantizer, ProjectedQuantizer, Quantizer, VectorQuantizer
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, measured, start_from_k_means, tokenizer, trained

Make = Callable[[int, int], Quantizer]
# The moving average without what is usually put around it.
ALONE: dict[str, Any] = {"init": "uniform", "restart_below": 0.0}

EMA = partial(EMAVectorQuantizer, decay=0.99)  # the customary one
KINDS: dict[str, Make] = {
    "gradient": VectorQuantizer,
    "gradient, k-means": VectorQuantizer,  # see `run_cell`
    "EMA": EMA,
    "EMA, no k-means": partial(EMA, init="uniform"),
    "EMA, no restarts": partial(EMA, restart_below=0.0),
    "EMA, neither": partial(EMA, **ALONE),
    "EMA, γ = 0.95": partial(EMA, decay=0.95),
    "EMA, no decay": partial(EMA, decay=0.0),
    "EMA, no decay, no restarts": partial(EMA, decay=0.0, restart_below=0.0),
    "EMA, no smoothing": partial(EMA, smoothing=0.0),
    "EMA, cosine": partial(EMA, cosine=True),
    "EMA, low-dimensional": lambda k, d: ProjectedQuantizer(EMA(k, d // 2), d),
    "EMA, low-dimensional cosine": lambda k, d: ProjectedQuantizer(EMA(k, d // 2, cosine=True), d),
}
REPORT = "gradient", "EMA", "EMA, neither", "EMA, γ = 0.95"


def cells(seeds: int) -> Sequence[Cell]:
    grid = [(kind, 64, 8) for kind in KINDS] + [(kind, 256, 4) for kind in REPORT]
    return [{"kind": kind, "num_codes": k, "dim": d, "seed": seed} for kind, k, d in grid for seed in range(seeds)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, KINDS[cell["kind"]](cell["num_codes"], cell["dim"]))
    if cell["kind"] == "gradient, k-means":
        start_from_k_means(model, setup, cell["seed"])
    history = trained(model, setup, seed=cell["seed"])
    error = [row["validation_reconstruction"] / setup.variance for row in history.rows]
    return {
        **measured(model, history, setup),
        "by_epoch": error,
        "training_by_epoch": [row["reconstruction"] / setup.variance for row in history.rows],
        "loss_by_epoch": [row["validation_loss"] for row in history.rows],
        "perplexity_by_epoch": [row["validation_perplexity"] for row in history.rows],
        "largest_rise": max((after / before - 1 for before, after in pairwise(error)), default=0.0),
    }


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

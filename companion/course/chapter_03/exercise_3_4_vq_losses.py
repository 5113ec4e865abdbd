"""Exercise 3.4, the two losses of vector quantisation, each with the gradient for its own side."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_03._gradients import PAIR, losses_after_straight_through, pair_cases, sg
from companion.course.checks.comparison import Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import arguments_after, leaf_arguments, routes
from companion.quantizers import vq_losses


def run(implementation: Any, case: Case) -> Observed:
    """Of each loss: where its gradient goes, and its value."""
    z, z_q = leaf_arguments(case)
    result = implementation(z, z_q)
    if not isinstance(result, tuple | list) or len(result) != 2:
        number = f"{len(result)} things" if isinstance(result, tuple | list | dict) else "one thing"
        return {"what is returned": f"{number}, {kind(result)}", "the result": result}
    seen: Observed = {"what is returned": "two losses"}
    for name, loss in zip(("the codebook loss", "the commitment loss"), result, strict=True):
        seen |= routes(name, loss, dict(zip(PAIR, (z, z_q), strict=True)))
    return seen | arguments_after((z, z_q))


def _variant(
    codebook: Callable[[Tensor, Tensor], Any] = lambda z, z_q: (sg(z) - z_q).square().mean(),
    commitment: Callable[[Tensor, Tensor], Any] = lambda z, z_q: (z - sg(z_q)).square().mean(),
) -> Callable[[Tensor, Tensor], tuple[Any, Any]]:
    """Both losses, of which one or both can be replaced."""
    return lambda z, z_q: (codebook(z, z_q), commitment(z, z_q))


def _both(loss: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], tuple[Any, Any]]:
    """The same slip in both losses."""
    return _variant(lambda z, z_q: loss(sg(z) - z_q), lambda z, z_q: loss(z - sg(z_q)))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, -1).mean()


MISTAKES = (
    Mistake(
        "codebook loss reaches the encoder",
        _variant(codebook=lambda z, z_q: (z - z_q).square().mean()),
        "your codebook loss reaches the encoder: detach z there.",
    ),
    Mistake(
        "commitment loss reaches the codebook",
        _variant(commitment=lambda z, z_q: (z - z_q).square().mean()),
        "your commitment loss reaches the codebook: detach z_q there.",
    ),
    Mistake(
        "nothing detached",
        lambda z, z_q: ((z - z_q).square().mean(), (z - z_q).square().mean()),
        "nothing is detached, so both losses move both sides. Codebook loss: detach z. Commitment loss: detach z_q.",
    ),
    Mistake(
        "swapped",
        _variant(lambda z, z_q: (z - sg(z_q)).square().mean(), lambda z, z_q: (sg(z) - z_q).square().mean()),
        "the two stop-gradients are the other way round (or the two losses are returned in the other order): the "
        "codebook loss comes first, and moves what is not detached, the codes.",
    ),
    Mistake(
        "z detached in both",
        _variant(commitment=lambda z, z_q: (sg(z) - z_q).square().mean()),
        "z is detached in both, so both move the codes and nothing holds the encoder. Commitment loss: detach z_q "
        "instead.",
    ),
    Mistake(
        "z_q detached in both",
        _variant(codebook=lambda z, z_q: (z - sg(z_q)).square().mean()),
        "z_q is detached in both, so both move the encoder and the codes never move. Codebook loss: detach z instead.",
    ),
    Mistake(
        "all detached",
        lambda z, z_q: ((sg(z) - sg(z_q)).square().mean(), (sg(z) - sg(z_q)).square().mean()),
        "both sides are detached in both: nobody gets a gradient. One side each.",
    ),
    Mistake(
        "all detached in the codebook loss",
        _variant(codebook=lambda z, z_q: (sg(z) - sg(z_q)).square().mean()),
        "in your codebook loss both sides are detached, so the codes never move: detach z only.",
    ),
    Mistake(
        "all detached in the commitment loss",
        _variant(commitment=lambda z, z_q: (sg(z) - sg(z_q)).square().mean()),
        "in your commitment loss both sides are detached, so nothing holds the encoder: detach z_q only.",
    ),
    Mistake(
        "after straight-through",
        losses_after_straight_through,
        "your codebook loss is taken from the straight-through version of z_q, which is detached from the codebook: "
        "the codes get no gradient. Use z_q as it was looked up.",
    ),
    Mistake(
        "the sum",
        _both(lambda d: d.square().sum()),
        "these are sums. A mean over positions and dimensions does not grow with the batch or the grid: .mean().",
    ),
    Mistake(
        "summed over dimensions",
        _both(lambda d: d.square().sum(1).mean()),
        "you sum over an axis and average over the rest, as the squared length in the paper does. In this course it is "
        "a mean over positions and dimensions: .mean().",
    ),
    Mistake(
        "averaged over the batch only",
        _both(lambda d: d.square().sum() / len(d)),
        "you average over the batch only. In this course it is a mean over every position and every dimension: "
        ".mean().",
    ),
    Mistake(
        "β on the commitment loss",
        _variant(commitment=lambda z, z_q: 0.25 * (z - sg(z_q)).square().mean()),
        "the commitment loss already has a weight on it. Both are wanted unweighted; β comes in the quantizer.",
    ),
    Mistake(
        "β on the codebook loss",
        _variant(codebook=lambda z, z_q: 0.25 * (sg(z) - z_q).square().mean()),
        "there is a weight on the codebook loss. Both are wanted unweighted (and β, later, weighs the commitment "
        "only).",
    ),
    Mistake(
        "β on both",
        _both(lambda d: 0.25 * d.square().mean()),
        "there is a weight on both losses. Both are wanted unweighted.",
    ),
    Mistake("half", _both(lambda d: d.square().mean() / 2), "there is a factor ½ too many in both losses."),
    Mistake(
        "no square",
        _both(lambda d: d.abs().mean()),
        "these are mean absolute differences: square them instead.",
    ),
    Mistake(
        "norm",
        _both(lambda d: d.norm()),
        "norm() is the square root of the sum of squares. Wanted is the mean of the squares.",
    ),
    Mistake(
        "norm of each latent",
        _both(lambda d: d.norm(dim=1).mean()),
        "norm is a length, not its square, and sums over an axis. Wanted is the mean of all squares: .square().mean().",
    ),
    Mistake(
        "no mean",
        _both(lambda d: d.square()),
        "these are the squared differences, one for each number. A loss is one number: .mean().",
    ),
    Mistake(
        "a single loss",
        lambda z, z_q: sum(vq_losses(z, z_q)),
        "this is the two losses added up. Return both, apart: codebook loss, commitment loss.",
    ),
    Mistake(
        "a dict",
        lambda z, z_q: dict(zip(("codebook", "commitment"), vq_losses(z, z_q), strict=True)),
        "this is a dict. Return a pair: return codebook_loss, commitment_loss.",
    ),
    Mistake(
        "Python numbers",
        lambda z, z_q: tuple(loss.item() for loss in vq_losses(z, z_q)),
        ".item() gives Python numbers, through which no gradient can flow. Return the tensors.",
    ),
    Mistake(
        "root", _both(lambda d: d.square().mean().sqrt()), "these are roots of the mean squares: leave the root out."
    ),
    Mistake(
        "square of the mean",
        _both(lambda d: d.mean().square()),
        "you average first and square afterwards, so that errors up and down cancel.",
    ),
    Mistake(
        "smooth L1",
        _both(lambda d: torch.nn.functional.smooth_l1_loss(d, torch.zeros_like(d))),
        "smooth_l1_loss is square for small differences only, and halved there. Square them all.",
    ),
    Mistake(
        "cosine",
        lambda z, z_q: (1 - _cosine(sg(z), z_q), 1 - _cosine(z, sg(z_q))),
        "these compare directions (cosine). Wanted are squared differences.",
    ),
    Mistake(
        "difference of squares",
        lambda z, z_q: ((sg(z).square() - z_q.square()).mean(), (z.square() - sg(z_q).square()).mean()),
        "this is the difference of the squares. Subtract first, and square the difference.",
    ),
    Mistake(
        "three",
        lambda z, z_q: (*vq_losses(z, z_q), 1.25 * vq_losses(z, z_q)[0]),
        "you return three. Two are wanted: codebook loss, commitment loss.",
    ),
    Mistake(
        "N − 1",
        _both(lambda d: d.square().sum() / (d.numel() - 1)),
        "you divide by N − 1. A mean divides by the number of all numbers.",
        also=(_both(lambda d: d.var()),),
    ),
    Mistake(
        "one vector", lambda z, z_q: vq_losses(z[0], z_q[0]), "only the first vector counts. The mean is over all."
    ),
)

EXERCISE = Exercise(
    name="vq_losses",
    chapter="03_vector_quantisation",
    reference=vq_losses,
    cases=pair_cases,
    mistakes=MISTAKES,
    run=run,
)

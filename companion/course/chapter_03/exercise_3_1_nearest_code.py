"""Exercise 3.1, nearest code: the index of the code at the smallest distance, without an (N, K, D) array."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import LargestTensor, call
from companion.quantizers import nearest_code


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(30)

    def case(label: str, n: int, k: int, d: int, offset: float | Tensor = 0.0, gap: float = 0.05) -> Case:
        codebook = torch.randn(k, d, generator=g) * torch.linspace(0.3, 1.7, k)[:, None] + offset
        z = torch.randn(8 * n, d, generator=g) + offset + 0.3
        exact = torch.cdist(z.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        if k > 1:  # no near ties, so that every right way of computing gives the same
            best = exact.topk(2, largest=False).values
            z = z[best[:, 1] - best[:, 0] > gap]
        return Case(label, (z[:n].contiguous(), codebook))

    turned, codes = case("", 12, 6, 5).arguments
    return [
        case("20 latents, 5 codes of 3 numbers", 20, 5, 3),
        case("one latent, 40 codes", 1, 40, 4),
        case("latents and codes at offset 100", 60, 9, 4, 100),
        case("latents and codes at offset 3000, 40 codes", 60, 40, 4, 3000),
        case("latents and codes at (3000, −3000, 3000, −3000)", 60, 40, 4, torch.tensor([3000.0, -3000, 3000, -3000])),
        case("one code", 3, 1, 2),
        case("300 latents, some nearly as near to another of 60 codes", 300, 60, 4, gap=1e-3),
        replace(
            case("as weights and latents come: both want a gradient", 9, 5, 3), gradient_of={0: "z", 1: "codebook"}
        ),
        Case("latents that are not contiguous in memory", (turned.T.contiguous().T, codes)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As for every function; and did it take a table of N × K × D numbers?"""
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        seen = call(implementation, case)
    (n, d), k = case.arguments[0].shape, len(case.arguments[1])
    if n * k * d > 2 * max(n * k, n * d, k * d):  # else what is needed anyway is as large
        table = largest.numbers >= n * k * d
        seen["the largest tensor on the way"] = "N × K × D numbers or more" if table else "fewer than N × K × D numbers"
    return seen


def _scores(z: Tensor, codebook: Tensor) -> Tensor:
    """‖z − e‖² for all pairs, exactly enough everywhere."""
    return torch.cdist(z, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()


def _expanded(
    z: Tensor,
    codebook: Tensor,
    norm: Callable[[Tensor], Tensor] = lambda e: e.square().sum(1),
    centre: Callable[[Tensor], Tensor] = lambda e: e.mean(0),
) -> Tensor:
    """‖z − e‖² − ‖z‖² for all pairs, around the centre, with the codes' squared lengths taken otherwise."""
    z, codebook = z - centre(codebook), codebook - centre(codebook)
    return norm(codebook) - 2 * z @ codebook.T


def _cosine(z: Tensor, codebook: Tensor) -> Tensor:
    return (torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(codebook, dim=1).T).argmax(1)


def _standardised(z: Tensor, codebook: Tensor) -> Tensor:
    scale = codebook.std(0, correction=0).clamp(min=1e-6)
    return nearest_code((z - codebook.mean(0)) / scale, (codebook - codebook.mean(0)) / scale)


def _in_place(z: Tensor, codebook: Tensor) -> Tensor:
    centre = codebook.mean(0)
    z -= centre
    codebook -= centre
    return nearest_code(z, codebook)


def _in_place_and_back(z: Tensor, codebook: Tensor) -> Tensor:
    centre = codebook.mean(0)
    z -= centre
    codebook -= centre
    nearest = nearest_code(z, codebook)
    z += centre
    codebook += centre
    return nearest


def _half_precision(z: Tensor, codebook: Tensor, dtype: torch.dtype) -> Tensor:
    centre = codebook.mean(0)
    z, codebook = (z - centre).to(dtype), (codebook - centre).to(dtype)
    return (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


MISTAKES = (
    Mistake(
        "not centred",
        lambda z, e: (e.square().sum(1) - 2 * z @ e.T).argmin(1),
        "right near the origin, wrong far from it: ‖e‖² and 2 z·e are large there and nearly cancel. Subtract "
        "codebook.mean(0) from both first.",
        also=(
            lambda z, e: (z.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * z @ e.T).argmin(1),
            lambda z, e: (z.square().sum(1, keepdim=True) - 2 * z @ e.T + e.square().sum(1)).argmin(1),
            lambda z, e: (e.square().sum(1) - 2 * (z @ e.T)).argmin(1),
        ),
    ),
    Mistake(
        "torch.cdist",
        lambda z, e: torch.cdist(z, e).argmin(1),
        "torch.cdist takes the same expansion once there are more than 25 rows, and errs with it far from the origin: "
        "centre first, or give it compute_mode='donot_use_mm_for_euclid_dist'.",
    ),
    Mistake(
        "each centred by its own mean",
        lambda z, e: nearest_code(z - z.mean(0), e - e.mean(0)),
        "z and the codebook are moved by different amounts, which changes the distances. Subtract the same centre from "
        "both.",
    ),
    Mistake(
        "only z centred",
        lambda z, e: nearest_code(z - e.mean(0), e),
        "only z is moved to the centre; the codebook has to move with it.",
    ),
    Mistake(
        "only the codebook centred",
        lambda z, e: nearest_code(z, e - e.mean(0)),
        "only the codebook is moved to the centre; z has to move with it.",
    ),
    Mistake(
        "inputs overwritten",
        _in_place,
        "z -= centre writes into the caller's tensor. z = z - centre makes a new one.",
    ),
    Mistake(
        "the farthest",
        lambda z, e: _scores(z, e).argmax(1),
        "this is the code that is farthest away: argmin of the distance, or argmax of its negative.",
    ),
    Mistake(
        "dot product",
        lambda z, e: ((z - e.mean(0)) @ (e - e.mean(0)).T).argmax(1),
        "the largest dot product prefers long codes. The distance has ‖e‖² in it too.",
    ),
    Mistake(
        "dot product, not centred",
        lambda z, e: (z @ e.T).argmax(1),
        "the largest z·e is not the smallest distance: ‖e‖² is missing, and far from the origin centring too.",
    ),
    Mistake(
        "cosine",
        lambda z, e: torch.nn.functional.cosine_similarity(z[:, None], e[None], dim=2).argmax(1),
        "this is the code with the most similar direction (cosine); lengths count in a distance.",
        also=(lambda z, e: _cosine(z - e.mean(0), e - e.mean(0)),),
    ),
    Mistake(
        "2 forgotten",
        lambda z, e: ((e - e.mean(0)).square().sum(1) - (z - e.mean(0)) @ (e - e.mean(0)).T).argmin(1),
        "the middle term of ‖z − e‖² is −2 z·e: the 2 is missing.",
    ),
    Mistake(
        "plus",
        lambda z, e: ((e - e.mean(0)).square().sum(1) + 2 * (z - e.mean(0)) @ (e - e.mean(0)).T).argmin(1),
        "the middle term of ‖z − e‖² has a minus: −2 z·e.",
    ),
    Mistake(
        "sum of absolute differences",
        lambda z, e: torch.cdist(z, e, p=1).argmin(1),
        "these are sums of absolute differences. Square the differences.",
    ),
    Mistake(
        "nearest latent of each code",
        lambda z, e: _scores(z, e).argmin(0),
        "argmin(0) gives for each code its nearest latent, (K,). You want for each latent its nearest code: argmin(1).",
        also=(lambda z, e: _expanded(z, e).argmin(0),),
    ),
    Mistake(
        "argmin of the whole table",
        lambda z, e: _scores(z, e).argmin(),
        "argmin() without an axis gives one number for the whole table: argmin(1).",
        also=(lambda z, e: _expanded(z, e).argmin(),),
    ),
    Mistake(
        "distances",
        lambda z, e: _scores(z, e).amin(1),
        "these are the smallest distances; wanted is where they are: argmin.",
        also=(lambda z, e: _expanded(z, e).amin(1),),
    ),
    Mistake(
        "min not unpacked",
        lambda z, e: _scores(z, e).min(1),
        "min(1) gives two things, values and indices: use argmin(1), or .indices.",
        also=(lambda z, e: _expanded(z, e).min(1),),
    ),
    Mistake(
        "codes",
        lambda z, e: e[_scores(z, e).argmin(1)],
        "these are the codes themselves, (N, D). Return their indices, (N,).",
    ),
    Mistake(
        "one-hot",
        lambda z, e: torch.nn.functional.one_hot(_scores(z, e).argmin(1), len(e)),
        "this is a one-hot matrix, (N, K). Return the indices, (N,).",
    ),
    Mistake(
        "an axis too many",
        lambda z, e: _scores(z, e).argmin(1, keepdim=True),
        "keepdim leaves an axis of length 1: (N, 1) instead of (N,).",
    ),
    Mistake(
        "squeezed",
        lambda z, e: _scores(z, e).argmin(1).squeeze(),
        "squeeze() also drops the axis of the latents when there is only one: leave it out.",
    ),
    Mistake(
        "a list",
        lambda z, e: _scores(z, e).argmin(1).tolist(),
        "this is a Python list. Return the tensor of indices.",
    ),
    Mistake(
        "one number as the centre",
        lambda z, e: ((e - e.mean()).square().sum(1) - 2 * (z - e.mean()) @ (e - e.mean()).T).argmin(1),
        "codebook.mean() is one number for all dimensions, and the codes need not lie equally far out in each: "
        "codebook.mean(0) has one for each.",
    ),
    Mistake(
        "in place and back",
        _in_place_and_back,
        "you write into z and the codebook and move them back at the end. Back is only nearly where they were, and a "
        "tensor that wants a gradient refuses to be written into: z = z - centre makes a new one.",
    ),
    *(
        Mistake(
            name,
            partial(_half_precision, dtype=dtype),
            f"the products are computed in {name}, which has too few digits to tell codes apart that are nearly "
            "equally near. Stay in the dtype that came in.",
        )
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    ),
    Mistake(
        "a table of N × K × D",
        lambda z, e: (z[:, None] - e[None]).square().sum(2).argmin(1),
        "right, but on the way there is an (N, K, D) array: with 16,384 latents, 8,192 codes and D = 64 it would take "
        "34 gigabytes. Centre, then expand ‖z − e‖².",
    ),
    Mistake(
        "length for its square",
        lambda z, e: _expanded(z, e, lambda e: e.norm(dim=1)).argmin(1),
        "‖e‖² is the square of the length; yours is the length (norm): .square().sum(1).",
    ),
    Mistake(
        "mean for the sum",
        lambda z, e: _expanded(z, e, lambda e: e.square().mean(1)).argmin(1),
        "‖e‖² is the sum of the squares over the dimensions; yours is their mean.",
    ),
    Mistake(
        "divided by the spread",
        _standardised,
        "dividing by the codes' standard deviations changes which code is nearest. Only the centre is subtracted.",
    ),
    Mistake(
        "the second nearest",
        lambda z, e: _scores(z, e).topk(min(2, len(e)), largest=False).indices[:, -1],
        "this is the second nearest code.",
    ),
    Mistake(
        "counted from one", lambda z, e: _scores(z, e).argmin(1) + 1, "indices count from 0, as argmin gives them."
    ),
    Mistake(
        "a mean for each row",
        lambda z, e: nearest_code(z - z.mean(1, keepdim=True), e - e.mean(1, keepdim=True)),
        "each row is moved by a mean of its own: mean(1) is over the dimensions. One centre for all rows: "
        "codebook.mean(0).",
    ),
)

EXERCISE = Exercise(
    name="nearest_code",
    chapter="03_vector_quantisation",
    reference=nearest_code,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

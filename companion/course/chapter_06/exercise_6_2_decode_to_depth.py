"""Exercise 6.2, decoding to a depth: the sum of a stack's first codes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_06._stacks import codes_by_depth, shrinking_quantizers, sum_of_codes, weighted_sum
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_at
from companion.quantizers import Quantizer
from companion.quantizers.residual import decode_to_depth


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(61)
    four, shared = shrinking_quantizers(4, 5, 4, 5), shrinking_quantizers(1, 6, 2, 6)

    def indices(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    return [
        Case("two of four depths, a grid of 3 × 2", (indices(2, 3, 2, 4, k=5), four, 2)),
        Case("the first depth only", (indices(2, 3, 2, 3, k=5), four[:3], 1)),
        Case("all three depths", (indices(4, 3, 3, k=5), four[:3], 3)),
        Case("a shared codebook, three of four depths", (indices(5, 2, 4, k=6), 4 * shared, 3)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The sum, and which codebooks are behind it."""
    indices, quantizers, depth = case.arguments
    given_indices, given_quantizers = indices.clone(), list(quantizers)
    result = implementation(given_indices, given_quantizers, depth)
    seen: Observed = {"the result": result.detach() if isinstance(result, Tensor) else result}
    seen["the indices after the call"] = given_indices
    seen["the number of quantizers after the call"] = len(given_quantizers)
    codebooks = {id(quantizer): quantizer.codebook for quantizer in quantizers}.values()  # a shared one once
    named = {f"codebook {r + 1}": codebook for r, codebook in enumerate(codebooks)}
    total = weighted_sum(result) if isinstance(result, Tensor) else None
    return seen | {f"the gradient of {name}": gradient for name, gradient in gradients_at(total, named).items()}


def _empties_the_list(indices: Tensor, quantizers: list[Quantizer], depth: int) -> Tensor:
    return sum_of_codes([quantizers.pop(0).decode(indices[..., r]) for r in range(depth)])


def _sums_of_sums(indices: Tensor, quantizers: Sequence[Quantizer], depth: int) -> Tensor:
    codes = codes_by_depth(indices, quantizers)
    return sum_of_codes([sum_of_codes(codes[: r + 1]) for r in range(depth)])


MISTAKES = (
    Mistake(
        "always all depths",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)),
        "every depth is in the sum, whatever `depth` says: stop after the first `depth` of them.",
    ),
    Mistake(
        "one depth less",
        lambda i, q, d: sum_of_codes([*codes_by_depth(i, q)[: d - 1], torch.zeros_like(q[0].decode(i[..., 0]))]),
        "the last depth is missing: `depth` counts from 1, so depth = 1 is the first code, not none.",
    ),
    Mistake(
        "one depth more",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[: d + 1]),
        "there is one depth too many in the sum: depth = 1 is the first code alone.",
    ),
    Mistake(
        "that depth alone",
        lambda i, q, d: codes_by_depth(i, q)[d - 1],
        "this is the code of that one depth; it is to be the sum of all depths up to it.",
    ),
    Mistake(
        "mean",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[:d]) / d,
        "this is the mean of the codes. Each was chosen for what the others left: they add up to z_q.",
    ),
    Mistake(
        "first codebook for all",
        lambda i, q, d: sum_of_codes([q[0].decode(i[..., r]) for r in range(d)]),
        "all indices are decoded with the first codebook; depth r has its own, quantizers[r].",
    ),
    Mistake(
        "first column for all",
        lambda i, q, d: sum_of_codes([q[r].decode(i[..., 0]) for r in range(d)]),
        "every depth decodes the first index; depth r has its own, indices[..., r].",
    ),
    Mistake(
        "the last depths",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[-d:]),
        "these are the *last* depths. Coarse to fine begins at the first one.",
    ),
    Mistake(
        "residuals of residuals",
        _sums_of_sums,
        "a partial sum is added once more at every depth: the first code is in yours `depth` times, and belongs in "
        "once.",
    ),
    Mistake(
        "depth as the second axis",
        lambda i, q, d: sum_of_codes([q[r].decode(i[:, min(r, i.shape[1] - 1)]) for r in range(d)]),
        "indices[:, r] takes a row of the grid; the depth is the last axis: indices[..., r].",
    ),
    Mistake(
        "without the sum",
        lambda i, q, d: torch.stack(codes_by_depth(i, q)[:d]),
        "the codes are stacked, not added: one (B, D, *spatial) is wanted, their sum.",
    ),
    Mistake(
        "detached",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[:d]).detach(),
        "the value is right, but cut off from the codebooks. A loss on a decoded table could not move them then: leave "
        "the graph, and let the caller detach.",
    ),
    Mistake(
        "the list is emptied",
        _empties_the_list,
        "the result is right, but the caller's list of quantizers has become shorter (pop, remove, del): "
        "quantizers[:depth] takes a part of it and leaves it.",
    ),
    Mistake(
        "from the second on",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[1:d]) if d > 1 else torch.zeros_like(q[0].decode(i[..., 0])),
        "the first code is missing: range(1, depth) begins at the second. Depths are counted from 0 in Python: "
        "range(depth).",
    ),
    Mistake(
        "two depths written in",
        lambda i, q, d: sum_of_codes(codes_by_depth(i, q)[:2]),
        "two depths are in the sum, whatever `depth` says.",
    ),
    Mistake(
        "first depth only",
        lambda i, q, d: codes_by_depth(i, q)[0],
        "only the first code is there, whatever `depth` says. Does the function return inside its loop?",
    ),
    Mistake(
        "indices from the end",
        lambda i, q, d: sum_of_codes([q[r].decode(i[..., -1 - r]) for r in range(d)]),
        "the indices are read from the last depth to the first; depth r + 1 has indices[..., r].",
    ),
    Mistake(
        "quantizers from the end",
        lambda i, q, d: sum_of_codes([q[-1 - r].decode(i[..., r]) for r in range(d)]),
        "the quantizers are taken from the last to the first; depth r + 1 has quantizers[r].",
    ),
    Mistake(
        "the index of that depth for all",
        lambda i, q, d: sum_of_codes([q[r].decode(i[..., d - 1]) for r in range(d)]),
        "every quantizer decodes the index of depth `depth`; each depth has its own, indices[..., r].",
    ),
    Mistake(
        "all but",
        lambda i, q, d: sum(codes_by_depth(i, q)[: d - len(q)]),
        "a slice [:depth − R] counts from the end, and at depth = R it is empty: [:0]. [:depth] counts from the start.",
        also=(lambda i, q, d: sum(codes_by_depth(i, q)[: -(len(q) - d)]),),
    ),
    Mistake(
        "subtracted",
        lambda i, q, d: -sum_of_codes(codes_by_depth(i, q)[:d]),
        "the sum has the wrong sign: the codes are added. (Subtracting them is for the residual.)",
    ),
    Mistake(
        "multiplied",
        lambda i, q, d: torch.stack(codes_by_depth(i, q)[:d]).prod(0),
        "the codes are multiplied; z_q is their sum.",
    ),
)

EXERCISE = Exercise(
    name="decode_to_depth",
    chapter="06_residual_quantisation",
    reference=decode_to_depth,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

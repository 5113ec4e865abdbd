"""Exercise 6.1, the residual loop: each quantizer encodes what the codes before it left."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_06._stacks import shrinking_quantizers
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.quantizers import EMAVectorQuantizer, Quantizer
from companion.quantizers.residual import residual_encode


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(60)
    shared = shrinking_quantizers(1, 6, 4, 3)
    return [
        Case(
            "three quantizers of 5 codes, a grid of 3 × 2",
            (torch.randn(2, 4, 3, 2, generator=g), shrinking_quantizers(3, 5, 4, 1)),
        ),
        Case("one quantizer", (torch.randn(3, 2, 4, generator=g), shrinking_quantizers(1, 7, 2, 2))),
        Case("one quantizer three times: a shared codebook", (torch.randn(5, 4, 3, generator=g), 3 * shared)),
        Case(
            "latents that are not contiguous in memory, four quantizers",
            (torch.randn(2, 5, 3, 6, generator=g).transpose(2, 3), shrinking_quantizers(4, 8, 5, 4)),
        ),
        Case(
            "a batch of one, two quantizers", (torch.randn(1, 3, 2, 2, generator=g), shrinking_quantizers(2, 4, 3, 7))
        ),
        Case("two EMA quantizers, in training mode", (torch.randn(4, 3, 5, generator=g), _ema_quantizers(2, 4, 3))),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The indices; and are z, the list and the codebooks as they were?"""
    z, quantizers = case.arguments[0].clone(), copy.deepcopy(case.arguments[1])
    given = list(quantizers)
    seen: Observed = {"the result": implementation(z, given), "z after the call": z}
    seen["the number of quantizers after the call"] = len(given)
    return seen | {f"codebook {r + 1} after the call": q.codebook.detach() for r, q in enumerate(quantizers)}


def _ema_quantizers(depth: int, num_codes: int, dim: int) -> list[EMAVectorQuantizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return [EMAVectorQuantizer(num_codes, dim, init="uniform") for _ in range(depth)]


def _variant(
    *,
    look_up: Callable[[Tensor, Tensor, Sequence[Quantizer], int], Tensor] = lambda z, left, q, r: q[r].encode(left),
    code: Callable[[Sequence[Quantizer], Tensor, int], Tensor] = lambda q, k, r: q[r].decode(k),
    rest: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda z, left, e: left - e,
    finish: Callable[[list[Tensor]], Any] = lambda found: torch.stack(found, -1),
) -> Callable[[Tensor, Sequence[Quantizer]], Any]:
    """The loop with one of its parts replaced."""

    def encode(z: Tensor, quantizers: Sequence[Quantizer]) -> Any:
        left, found = z, []
        for r in range(len(quantizers)):
            found.append(look_up(z, left, quantizers, r))
            left = rest(z, left, code(quantizers, found[-1], r).detach())
        return finish(found)

    return encode


def _writes_into_z(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    residual, found = z, []
    for quantizer in quantizers:
        found.append(quantizer.encode(residual))
        residual -= quantizer.decode(found[-1]).detach()
    return torch.stack(found, -1)


def _calls_the_quantizers(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    residual, found = z, []
    for quantizer in quantizers:
        out = quantizer(residual)
        found.append(out.indices)
        residual = residual - out.z_q.detach()
    return torch.stack(found, -1)


def _empties_the_list(z: Tensor, quantizers: list[Quantizer]) -> Tensor:
    indices = residual_encode(z, quantizers)
    quantizers.pop(0)
    return indices


def _empties_it_whole(z: Tensor, quantizers: list[Quantizer]) -> Tensor:
    indices = residual_encode(z, quantizers)
    quantizers.clear()
    return indices


def _looks_up_once_more(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    residual, found = z, []
    for quantizer in quantizers:
        residual = residual - quantizer.decode(quantizer.encode(residual)).detach()
        found.append(quantizer.encode(residual))
    return torch.stack(found, -1)


def _best_stack_of_all(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    vectors = z.movedim(1, -1)  # (B, *spatial, D)
    stacks = list(itertools.product(*(range(q.num_codes) for q in quantizers)))
    sums = torch.stack(
        [
            torch.stack([q.decode(torch.tensor([k]))[0] for q, k in zip(quantizers, stack, strict=True)]).sum(0)
            for stack in stacks
        ]
    ).detach()  # (K^R, D)
    best = torch.cdist(vectors.reshape(-1, vectors.shape[-1]), sums).argmin(1)
    return torch.tensor(stacks)[best].reshape(*vectors.shape[:-1], len(quantizers))


def _from_the_last_to_the_first(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    return residual_encode(z, list(quantizers)[::-1]).flip(-1)


MISTAKES = (
    Mistake(
        "every depth gets z",
        _variant(look_up=lambda z, left, q, r: q[r].encode(z)),
        "every quantizer is given z. From the second on it is to get what the codes before it left: the residual.",
    ),
    Mistake(
        "subtracted from z",
        _variant(rest=lambda z, left, e: z - e),
        "the residual is z minus the *last* code only. Each depth takes away its code from the residual before it.",
    ),
    Mistake(
        "added",
        _variant(rest=lambda z, left, e: left + e),
        "the code is added to the residual; what is left after it is residual − code.",
    ),
    Mistake(
        "other sign",
        _variant(rest=lambda z, left, e: e - left),
        "the residual has the wrong sign: it is residual − code, not code − residual.",
    ),
    Mistake(
        "goes on with the code",
        _variant(rest=lambda z, left, e: e),
        "the next quantizer is given the code itself. It is to get what the code left: residual − code.",
    ),
    Mistake(
        "first quantizer at every depth",
        _variant(look_up=lambda z, left, q, r: q[0].encode(left), code=lambda q, k, r: q[0].decode(k)),
        "the first quantizer is used at every depth; depth r has one of its own, quantizers[r].",
    ),
    Mistake(
        "decoded by the first quantizer",
        _variant(code=lambda q, k, r: q[0].decode(k)),
        "the index is looked up at its own depth, but decoded with the first quantizer's codebook.",
    ),
    Mistake(
        "depth first",
        _variant(finish=lambda found: torch.stack(found)),
        "the depth is the first axis of your result; it is to be the last: torch.stack(indices, dim=-1).",
    ),
    Mistake(
        "depth as a channel",
        _variant(finish=lambda found: torch.stack(found, 1)),
        "the depth is the second axis of your result, as channels are; here it is to be the last: dim=-1.",
    ),
    Mistake(
        "side by side",
        _variant(finish=lambda found: torch.cat(found, -1)),
        "torch.cat puts the depths behind each other in an axis that was there; torch.stack makes one for them.",
    ),
    Mistake(
        "a list",
        _variant(finish=lambda found: found),
        "this is a list of R tensors; torch.stack(indices, dim=-1) makes one tensor of them.",
    ),
    Mistake(
        "last depth only",
        _variant(finish=lambda found: found[-1][..., None]),
        "only the last depth's index is there; keep that of every depth.",
    ),
    Mistake(
        "from the last quantizer to the first",
        _from_the_last_to_the_first,
        "the quantizers are gone through from the last to the first. The first is the coarse one: begin there.",
        also=(lambda z, q: residual_encode(z, list(q)[::-1]),),
    ),
    Mistake(
        "z is written over",
        _writes_into_z,
        "the result is right, but z has changed: `residual = z` makes no copy, and `residual -= …` writes into z. "
        "Write residual = residual − …",
    ),
    Mistake(
        "best stack of all",
        _best_stack_of_all,
        "you look for the best of all K^R sums. Its error is smaller, but that is another quantizer: a residual one is "
        "greedy, each depth takes the nearest code to its residual.",
    ),
    Mistake(
        "squeezed",
        lambda z, q: residual_encode(z, q).squeeze(0),
        "squeeze drops axes of length 1: the batch of one image, or the depth of one quantizer. Leave it out.",
        also=(lambda z, q: residual_encode(z, q).squeeze(), lambda z, q: residual_encode(z, q).squeeze(-1)),
    ),
    Mistake(
        "the quantizers are called",
        _calls_the_quantizers,
        "you call the quantizers, quantizer(residual): in training mode an EMA codebook learns in that call, and "
        "encoding would move it. `encode` and `decode` only look up.",
    ),
    Mistake(
        "the list is emptied",
        _empties_the_list,
        "the result is right, but the caller's list of quantizers has become shorter (pop, remove, del). Go through it "
        "with for.",
        also=(_empties_it_whole,),
    ),
    Mistake(
        "depths in reverse",
        _variant(finish=lambda found: torch.stack(found[::-1], -1)),
        "the indices are in reverse, the last depth first. Stack them in the order in which they were found.",
    ),
    Mistake(
        "looked up after the subtraction",
        _variant(look_up=lambda z, left, q, r: q[r].encode(left - q[r].decode(q[r].encode(left)))),
        "the index that you keep is looked up after the code was subtracted, in what it left. Keep the index "
        "that the code came from.",
        also=(_looks_up_once_more,),
    ),
)

EXERCISE = Exercise(
    name="residual_encode",
    chapter="06_residual_quantisation",
    reference=residual_encode,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

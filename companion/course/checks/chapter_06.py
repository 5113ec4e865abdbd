"""Exercises of chapter 06: the residual loop, decoding to a depth, losses by depth, the quantizer, the rate."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.core import Case, Exercise, Mistake, Observed, call, register
from companion.metrics import perplexity
from companion.quantizers import (
    EMAVectorQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    straight_through,
    vq_losses,
)
from companion.quantizers.residual import decode_to_depth, rate_bits, residual_encode

CHAPTER = "06_residual_quantisation"


def residual_losses(z: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Codebook and commitment loss of each depth, whose residual is that of the codes before it, held fixed.

    (Lee et al. 2022, section 3.1: its commitment term ‖Z − sg[Ẑ^(d)]‖² is this one, and so is its gradient.)

    Shapes:
        z: any shape; codes: R of that shape, with a graph to their codebooks → two of shape (R,).
    """
    residual, terms = z, []
    for code in codes:
        terms.append(torch.stack(vq_losses(residual, code)))
        residual = residual - code.detach()
    codebook, commitment = torch.stack(terms, 1)
    return codebook, commitment


def _members(depth: int, num_codes: int, dim: int, seed: int, beta: float = 0.25) -> list[VectorQuantizer]:
    """Quantizers whose codes get smaller with the depth, and are nowhere near the origin only."""
    g = torch.Generator().manual_seed(seed)
    members = []
    for r in range(depth):
        with torch.random.fork_rng(devices=[]):  # its first codes are drawn, only to be overwritten
            member = VectorQuantizer(num_codes, dim, commitment_weight=beta)
        with torch.no_grad():
            member.codebook.copy_(0.8**r * torch.randn(num_codes, dim, generator=g) + 0.2)
        members.append(member)
    return members


# Exercise 6.1 -------------------------------------------------------------------------------------------------------


def _encode_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(60)
    shared = _members(1, 6, 4, 3)
    return [
        Case(
            "three quantizers of 5 codes, a grid of 3 × 2", (torch.randn(2, 4, 3, 2, generator=g), _members(3, 5, 4, 1))
        ),
        Case("one quantizer", (torch.randn(3, 2, 4, generator=g), _members(1, 7, 2, 2))),
        Case("one quantizer three times: a shared codebook", (torch.randn(5, 4, 3, generator=g), 3 * shared)),
        Case(
            "latents that are not contiguous in memory, four quantizers",
            (torch.randn(2, 5, 3, 6, generator=g).transpose(2, 3), _members(4, 8, 5, 4)),
        ),
        Case("a batch of one, two quantizers", (torch.randn(1, 3, 2, 2, generator=g), _members(2, 4, 3, 7))),
        Case("two EMA quantizers, in training mode", (torch.randn(4, 3, 5, generator=g), _ema_members(2, 4, 3))),
    ]


def _ema_members(depth: int, num_codes: int, dim: int) -> list[EMAVectorQuantizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return [EMAVectorQuantizer(num_codes, dim, init="uniform") for _ in range(depth)]


def _encode_run(implementation: Any, case: Case) -> Observed:
    """The indices; and are z, the list and the codebooks as they were?"""
    z, members = case.arguments[0].clone(), copy.deepcopy(case.arguments[1])
    kept = list(members)
    seen: Observed = {"the result": implementation(z, members), "z after the call": z}
    seen["the number of quantizers after the call"] = len(members)
    return seen | {f"codebook {r + 1} after the call": q.codebook.detach() for r, q in enumerate(kept)}


Loop = Callable[[Tensor, Sequence[Quantizer]], Any]


def _loop(
    *,
    look_up: Callable[[Tensor, Tensor, Sequence[Quantizer], int], Tensor] = lambda z, left, q, r: q[r].encode(left),
    code: Callable[[Sequence[Quantizer], Tensor, int], Tensor] = lambda q, k, r: q[r].decode(k),
    rest: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda z, left, e: left - e,
    finish: Callable[[list[Tensor]], Any] = lambda found: torch.stack(found, -1),
) -> Loop:
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


def _calls(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
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


def _best_of_all(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
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


def _one_by_one_from_the_back(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    return residual_encode(z, list(quantizers)[::-1]).flip(-1)


_ENCODE_MISTAKES = (
    Mistake(
        "every depth gets z",
        _loop(look_up=lambda z, left, q, r: q[r].encode(z)),
        "every quantizer is given z. From the second on it is to get what the codes before it left: the residual.",
    ),
    Mistake(
        "subtracted from z",
        _loop(rest=lambda z, left, e: z - e),
        "the residual is z minus the *last* code only. Each depth takes away its code from the residual before it.",
    ),
    Mistake(
        "added",
        _loop(rest=lambda z, left, e: left + e),
        "the code is added to the residual; what is left after it is residual − code.",
    ),
    Mistake(
        "other sign",
        _loop(rest=lambda z, left, e: e - left),
        "the residual has the wrong sign: it is residual − code, not code − residual.",
    ),
    Mistake(
        "goes on with the code",
        _loop(rest=lambda z, left, e: e),
        "the next quantizer is given the code itself. It is to get what the code left: residual − code.",
    ),
    Mistake(
        "first quantizer at every depth",
        _loop(look_up=lambda z, left, q, r: q[0].encode(left), code=lambda q, k, r: q[0].decode(k)),
        "the first quantizer is used at every depth; depth r has one of its own, quantizers[r].",
    ),
    Mistake(
        "decoded by the first quantizer",
        _loop(code=lambda q, k, r: q[0].decode(k)),
        "the index is looked up at its own depth, but decoded with the first quantizer's codebook.",
    ),
    Mistake(
        "depth first",
        _loop(finish=lambda found: torch.stack(found)),
        "the depth is the first axis of your result; it is to be the last: torch.stack(indices, dim=-1).",
    ),
    Mistake(
        "depth as a channel",
        _loop(finish=lambda found: torch.stack(found, 1)),
        "the depth is the second axis of your result, as channels are; here it is to be the last: dim=-1.",
    ),
    Mistake(
        "side by side",
        _loop(finish=lambda found: torch.cat(found, -1)),
        "torch.cat puts the depths behind each other in an axis that was there; torch.stack makes one for them.",
    ),
    Mistake(
        "a list",
        _loop(finish=lambda found: found),
        "this is a list of R tensors; torch.stack(indices, dim=-1) makes one tensor of them.",
    ),
    Mistake(
        "last depth only",
        _loop(finish=lambda found: found[-1][..., None]),
        "only the last depth's index is there; keep that of every depth.",
    ),
    Mistake(
        "from the last quantizer to the first",
        _one_by_one_from_the_back,
        "the quantizers are gone through from the last to the first. The first is the coarse one: begin there.",
    ),
    Mistake(
        "z is written over",
        _writes_into_z,
        "the result is right, but z has changed: `residual = z` makes no copy, and `residual -= …` writes into z. "
        "Write residual = residual − …",
    ),
    Mistake(
        "best stack of all",
        _best_of_all,
        "you look for the best of all K^R sums. Its error is smaller, but that is another quantizer: a residual one is "
        "greedy, each depth takes the nearest code to its residual.",
    ),
    Mistake(
        "squeezed",
        lambda z, q: residual_encode(z, q).squeeze(0),
        "squeeze(0) drops the batch axis when there is one image: leave it out.",
    ),
    Mistake(
        "the quantizers are called",
        _calls,
        "you call the quantizers, quantizer(residual): in training mode an EMA codebook learns in that call, and "
        "encoding would move it. `encode` and `decode` only look up.",
    ),
    Mistake(
        "the list is emptied",
        _empties_the_list,
        "the result is right, but the caller's list of quantizers has become shorter (pop, remove, del). Go through it "
        "with for.",
    ),
)


# Exercise 6.2 -------------------------------------------------------------------------------------------------------


def _decode_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(61)
    three, shared = _members(3, 5, 4, 5), _members(1, 6, 2, 6)

    def indices(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    return [
        Case("two of three depths, a grid of 3 × 2", (indices(2, 3, 2, 3, k=5), three, 2)),
        Case("the first depth only", (indices(2, 3, 2, 3, k=5), three, 1)),
        Case("all three depths", (indices(4, 3, 3, k=5), three, 3)),
        Case("a shared codebook, three of four depths", (indices(5, 2, 4, k=6), 4 * shared, 3)),
    ]


def _decode_run(implementation: Any, case: Case) -> Observed:
    """The sum, and which codebooks are behind it."""
    indices, members, depth = case.arguments
    given, handed = indices.clone(), list(members)
    result = implementation(given, handed, depth)
    seen: Observed = {"the result": result.detach() if isinstance(result, Tensor) else result}
    seen["the indices after the call"] = given
    seen["the number of quantizers after the call"] = len(handed)
    books = list({id(member): member.codebook for member in members}.values())
    found: Sequence[Tensor | None] = [None] * len(books)
    if isinstance(result, Tensor) and result.requires_grad:
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(7))
        found = torch.autograd.grad((result * weights).sum(), books, allow_unused=True)
    for r, grad in enumerate(found):
        seen[f"the gradient of codebook {r + 1}"] = grad
    return seen


def _codes(indices: Tensor, quantizers: Sequence[Quantizer]) -> list[Tensor]:
    return [quantizer.decode(indices[..., r]) for r, quantizer in enumerate(quantizers)]


def _total(codes: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(codes)).sum(0)


def _takes_from_the_list(indices: Tensor, quantizers: list[Quantizer], depth: int) -> Tensor:
    return _total([quantizers.pop(0).decode(indices[..., r]) for r in range(depth)])


def _adds_up_wrongly(indices: Tensor, quantizers: Sequence[Quantizer], depth: int) -> Tensor:
    codes = _codes(indices, quantizers)
    return _total([_total(codes[: r + 1]) for r in range(depth)])


_DECODE_MISTAKES = (
    Mistake(
        "always all depths",
        lambda i, q, d: _total(_codes(i, q)),
        "every depth is in the sum, whatever `depth` says: stop after the first `depth` of them.",
    ),
    Mistake(
        "one depth less",
        lambda i, q, d: _total([*_codes(i, q)[: d - 1], torch.zeros_like(q[0].decode(i[..., 0]))]),
        "the last depth is missing: `depth` counts from 1, so depth = 1 is the first code, not none.",
    ),
    Mistake(
        "one depth more",
        lambda i, q, d: _total(_codes(i, q)[: d + 1]),
        "there is one depth too many in the sum: depth = 1 is the first code alone.",
    ),
    Mistake(
        "that depth alone",
        lambda i, q, d: _codes(i, q)[d - 1],
        "this is the code of that one depth; it is to be the sum of all depths up to it.",
    ),
    Mistake(
        "mean",
        lambda i, q, d: _total(_codes(i, q)[:d]) / d,
        "this is the mean of the codes. Each was chosen for what the others left: they add up to z_q.",
    ),
    Mistake(
        "first codebook for all",
        lambda i, q, d: _total([q[0].decode(i[..., r]) for r in range(d)]),
        "all indices are decoded with the first codebook; depth r has its own, quantizers[r].",
    ),
    Mistake(
        "first column for all",
        lambda i, q, d: _total([q[r].decode(i[..., 0]) for r in range(d)]),
        "every depth decodes the first index; depth r has its own, indices[..., r].",
    ),
    Mistake(
        "the last depths",
        lambda i, q, d: _total(_codes(i, q)[-d:]),
        "these are the *last* depths. Coarse to fine begins at the first one.",
    ),
    Mistake(
        "residuals of residuals",
        _adds_up_wrongly,
        "a partial sum is added once more at every depth: the first code is in yours `depth` times, and belongs in "
        "once.",
    ),
    Mistake(
        "depth as the second axis",
        lambda i, q, d: _total([q[r].decode(i[:, min(r, i.shape[1] - 1)]) for r in range(d)]),
        "indices[:, r] takes a row of the grid; the depth is the last axis: indices[..., r].",
    ),
    Mistake(
        "without the sum",
        lambda i, q, d: torch.stack(_codes(i, q)[:d]),
        "the codes are stacked, not added: one (B, D, *spatial) is wanted, their sum.",
    ),
    Mistake(
        "detached",
        lambda i, q, d: _total(_codes(i, q)[:d]).detach(),
        "the value is right, but cut off from the codebooks. A loss on a decoded table could not move them then: leave "
        "the graph, and let the caller detach.",
    ),
    Mistake(
        "the list is emptied",
        _takes_from_the_list,
        "the result is right, but the caller's list of quantizers has become shorter (pop, remove, del): "
        "quantizers[:depth] takes a part of it and leaves it.",
    ),
    Mistake(
        "from the second on",
        lambda i, q, d: _total(_codes(i, q)[1:d]) if d > 1 else torch.zeros_like(q[0].decode(i[..., 0])),
        "the first code is missing: range(1, depth) begins at the second. Depths are counted from 0 in Python: "
        "range(depth).",
    ),
)


# Exercise 6.3 -------------------------------------------------------------------------------------------------------


def _loss_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(62)

    def case(label: str, shape: tuple[int, ...], depth: int) -> Case:
        codes = [0.7**r * torch.randn(shape, generator=g) for r in range(depth)]
        return Case(label, (torch.randn(shape, generator=g), codes))

    return [
        case("three depths, latents (2, 4, 3, 2)", (2, 4, 3, 2), 3),
        case("one depth, 12 vectors of 3 numbers", (12, 3), 1),
        case("two depths, one vector of 5 numbers", (1, 5), 2),
    ]


def _loss_run(implementation: Any, case: Case) -> Observed:
    """Every term, and its gradient at the latents and at the codes of every depth; nothing flowing counts as 0."""
    z = case.arguments[0].clone().requires_grad_()
    codes = [code.clone().requires_grad_() for code in case.arguments[1]]
    handed = list(codes)
    result = implementation(z, handed)
    seen: Observed = {"the type of the result": type(result).__name__}
    seen["the number of codes after the call"] = len(handed)
    if not isinstance(result, tuple) or len(result) != 2:
        return seen
    for name, terms in zip(("codebook", "commitment"), result, strict=True):
        seen[f"the {name} losses"] = terms
        if not isinstance(terms, Tensor) or terms.shape != (len(codes),):
            continue
        for r, term in enumerate(terms.unbind()):
            found: Sequence[Tensor | None] = [None] * (len(codes) + 1)
            if term.requires_grad:
                found = torch.autograd.grad(term, [z, *codes], retain_graph=True, allow_unused=True)
            places = ["the latents", *(f"the codes of depth {s + 1}" for s in range(len(codes)))]
            for place, grad in zip(places, found, strict=True):
                value = torch.zeros_like(z) if grad is None else grad
                seen[f"the gradient of the {name} loss of depth {r + 1} at {place}"] = value
    return seen


def _by_depth(
    *,
    looked_at: Callable[[Tensor, Tensor], Tensor] = lambda z, residual: residual,
    term: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = vq_losses,
    rest: Callable[[Tensor, Tensor], Tensor] = lambda residual, code: residual - code.detach(),
    finish: Callable[[Tensor, Tensor], Any] = lambda codebook, commitment: (codebook, commitment),
) -> Callable[[Tensor, Sequence[Tensor]], Any]:
    def losses(z: Tensor, codes: Sequence[Tensor]) -> Any:
        residual, terms = z, []
        for code in codes:
            terms.append(torch.stack(term(looked_at(z, residual), code)))
            residual = rest(residual, code)
        return finish(*torch.stack(terms, 1))

    return losses


def _of_the_sums(z: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    terms = [torch.stack(vq_losses(z, _total(codes[: r + 1]))) for r in range(len(codes))]
    codebook, commitment = torch.stack(terms, 1)
    return codebook, commitment


def _residual_first(z: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    residual, terms = z, []
    for code in codes:
        residual = residual - code.detach()
        terms.append(torch.stack(vq_losses(residual, code)))
    codebook, commitment = torch.stack(terms, 1)
    return codebook, commitment


def _from_z_each_time(z: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    residual, terms = z, []
    for code in codes:
        terms.append(torch.stack(vq_losses(residual, code)))
        residual = z - code.detach()
    codebook, commitment = torch.stack(terms, 1)
    return codebook, commitment


def _takes_the_codes(z: Tensor, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
    losses = residual_losses(z, codes)
    codes.pop(0)
    return losses


def _sums(z: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    return (z.detach() - code).square().sum(), (z - code.detach()).square().sum()


_LOSS_MISTAKES = (
    Mistake(
        "residual not detached",
        _by_depth(rest=lambda residual, code: residual - code),
        "the values agree, but the residual carries a graph to the codes before it: a deeper commitment loss then "
        "moves an *earlier* codebook. Take away code.detach().",
    ),
    Mistake(
        "residual cut off from z",
        _by_depth(rest=lambda residual, code: (residual - code).detach()),
        "the values agree, but from the second depth on no gradient reaches z: the whole residual is detached. Only "
        "the code is to be held fixed: residual − code.detach().",
    ),
    Mistake(
        "z detached before the loop",
        lambda z, codes: residual_losses(z.detach(), codes),
        "the values agree, but no commitment loss reaches z, not even the first: z is detached before the loop. Each "
        "commitment loss is to move the encoder.",
    ),
    Mistake(
        "z at every depth",
        _by_depth(looked_at=lambda z, residual: z),
        "every depth's losses are taken from z. Depth r is to be near the residual that it was given.",
    ),
    Mistake(
        "losses of the sums",
        _of_the_sums,
        "the values agree: the residual minus its code is z minus the sum so far. But the sum carries the graphs of "
        "all its codes, so a deeper codebook loss moves the earlier codes as well. Hold those before it fixed.",
    ),
    Mistake(
        "residual taken too early",
        _residual_first,
        "the code is subtracted before its own losses are taken: the losses of depth r compare the code with the "
        "residual *before* it.",
    ),
    Mistake(
        "swapped stop-gradients",
        _by_depth(term=lambda z, code: vq_losses(z, code)[::-1]),
        "the two results are exchanged, or the stop-gradients are on the wrong sides: first the codebook losses (z "
        "held fixed), then the commitment losses (the codes held fixed).",
    ),
    Mistake(
        "no stop-gradient",
        _by_depth(term=lambda z, code: 2 * ((z - code).square().mean(),)),
        "both terms move both sides: the codebook loss needs the residual detached, the commitment loss the code.",
    ),
    Mistake(
        "summed over the depths",
        _by_depth(finish=lambda a, b: (a.sum(), b.sum())),
        "these are the sums over the depths; here one number a depth is wanted, (R,). Adding up comes later.",
    ),
    Mistake(
        "averaged over the depths",
        _by_depth(finish=lambda a, b: (a.mean(), b.mean())),
        "these are means over the depths; one number a depth is wanted, (R,). (And added up later, not averaged.)",
    ),
    Mistake(
        "divided by the number of depths",
        _by_depth(finish=lambda a, b: (a / len(a), b / len(b))),
        "each term is divided by the number of depths. Every depth counts in full: its codebook learns as it would "
        "alone.",
    ),
    Mistake(
        "sum over vectors and dimensions",
        _by_depth(term=_sums),
        "each term is a sum over positions and dimensions; it is to be their mean.",
    ),
    Mistake(
        "weighted",
        _by_depth(finish=lambda a, b: (a, 0.25 * b)),
        "the commitment losses are multiplied by β already; here they are wanted before their weight.",
    ),
    Mistake(
        "one tensor",
        _by_depth(finish=lambda a, b: torch.stack([a, b])),
        "this is one tensor; two are wanted, (codebook losses, commitment losses).",
    ),
    Mistake(
        "two lists",
        _by_depth(finish=lambda a, b: (list(a.unbind()), list(b.unbind()))),
        "these are two lists; torch.stack makes a tensor (R,) of each.",
    ),
    Mistake(
        "values without graph",
        _by_depth(finish=lambda a, b: (a.detach(), b.detach())),
        "the values agree, but nothing can be learnt from them: they are detached, or were turned into numbers "
        "(.item()) on the way.",
    ),
    Mistake(
        "first depth only",
        lambda z, codes: residual_losses(z, codes[:1]),
        "there is one number, that of the first depth; every depth has its own.",
    ),
    Mistake(
        "residual from z each time",
        _from_z_each_time,
        "you take each code from z itself. What depth r is given is what *all* codes before it have left: residual − "
        "code.detach().",
    ),
    Mistake(
        "after straight-through",
        _by_depth(term=lambda z, code: vq_losses(z, straight_through(z, code))),
        "you put the codes through straight_through before the losses, and that cuts them off from their codebook: no "
        "code would ever move. Losses are taken from the codes as they were looked up.",
    ),
    Mistake(
        "the list is emptied",
        _takes_the_codes,
        "the result is right, but the caller's list of codes has become shorter (pop, remove, del). Go through it with "
        "for.",
    ),
)


# Exercise 6.4 -------------------------------------------------------------------------------------------------------


def _quantizer_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(63)
    rows = [
        ("three quantizers of 5 codes, β = 0.25", (3, 4, 3, 2), {"depth": 3, "num_codes": 5, "beta": 0.25}),
        ("two quantizers of 8 codes, β = 0.6", (5, 3, 4), {"depth": 2, "num_codes": 8, "beta": 0.6}),
        ("one quantizer: plain vector quantisation", (7, 2, 3), {"depth": 1, "num_codes": 6, "beta": 0.25}),
        (
            "two EMA quantizers, in training, after a first batch",
            (6, 3, 4),
            {"depth": 2, "num_codes": 5, "beta": 0.5, "ema": True},
        ),
    ]
    return [
        Case(label, (torch.randn(shape, generator=g), 0.5 + torch.randn(shape, generator=g)), build, seed=seed)
        for seed, (label, shape, build) in enumerate(rows)
    ]


def _quantizer_run(implementation: Any, case: Case) -> Observed:
    """The fields, and for z_q and each term the gradient at z and at every codebook; nothing flowing counts as 0.

    EMA codebooks see another batch first: at the first one k-means has just converged, and a step moves nothing.
    """
    z, b = case.arguments[0].clone().requires_grad_(), case.build
    members: Sequence[Quantizer]
    if "ema" in b:
        kept = {"commitment_weight": b["beta"], "restart_below": 0.0, "decay": 0.5}
        members = [EMAVectorQuantizer(b["num_codes"], z.shape[1], seed=r, **kept) for r in range(b["depth"])]
    else:
        members = _members(b["depth"], b["num_codes"], z.shape[1], 10 + case.seed, b["beta"])
    quantizer = implementation(members)
    if "ema" in b:
        quantizer(case.arguments[1].clone())
    out = quantizer(z)
    seen: Observed = {"is the result a Quantized?": isinstance(out, Quantized)}
    if not isinstance(out, Quantized):
        return seen | {"the type of the result": type(out).__name__}
    seen |= {"z_q": out.z_q, "indices": out.indices}
    seen["the terms' names"] = list(out.losses) if isinstance(out.losses, dict) else out.losses
    terms = dict(out.losses) if isinstance(out.losses, dict) else {}
    seen |= {f'losses["{name}"]': value for name, value in terms.items()}
    seen["loss"] = out.loss
    places = {"z": z}
    for r, member in enumerate(members):
        if isinstance(member, VectorQuantizer):
            places[f"codebook {r + 1}"] = member.codebook
        else:
            seen[f"codebook {r + 1} after a forward in training"] = member.codebook
    sources = {"z_q": out.z_q} | {f'losses["{name}"]': value for name, value in terms.items()} | {"loss": out.loss}
    for name, value in sources.items():
        found: Sequence[Tensor | None] = [None] * len(places)
        if isinstance(value, Tensor) and value.requires_grad:
            weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
            found = torch.autograd.grad(
                (value * weights).sum(), list(places.values()), retain_graph=True, allow_unused=True
            )
        for (place, at), grad in zip(places.items(), found, strict=True):
            seen[f"the gradient of {name} at {place}"] = torch.zeros_like(at) if grad is None else grad
    return seen


def _straight(z: Tensor, parts: Sequence[Quantized], codes: Sequence[Tensor]) -> Tensor:
    return straight_through(z, _total(codes).detach())


def _added(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _variant(
    *,
    given: Callable[[Tensor, Tensor], Tensor] = lambda z, residual: residual,
    rest: Callable[[Tensor, Quantized, Tensor], Tensor] = lambda residual, part, code: residual - code.detach(),
    z_q: Callable[[Tensor, Sequence[Quantized], Sequence[Tensor]], Tensor] = _straight,
    indices: Callable[[Sequence[Tensor]], Tensor] = lambda found: torch.stack(list(found), -1),
    over_depths: Callable[[Sequence[Tensor]], Tensor] = _added,
    loss: Callable[[Tensor, dict[str, Tensor]], Tensor] = lambda loss, terms: loss,
    terms: Callable[[dict[str, Tensor]], Any] = lambda terms: terms,
) -> type[ResidualQuantizer]:
    """The quantizer with one of its parts replaced; ``code`` has a graph to its codebook."""

    class Variant(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:
            residual, parts, codes = z, [], []
            for member in self._by_depth():
                part = member(given(z, residual))
                # With a graph where the codebook has one; an EMA codebook has moved since, so what z_q says.
                code = member.decode(part.indices) if isinstance(member, VectorQuantizer) else part.z_q.detach()
                residual = rest(residual, part, code)
                parts.append(part)
                codes.append(code)
            named = {name: over_depths([part.losses[name] for part in parts]) for name in parts[0].losses}
            total = loss(over_depths([part.loss for part in parts]), named)
            return Quantized(z_q(z, parts, codes), indices([part.indices for part in parts]), total, terms(named))

    return Variant


class _OneLossForTheSum(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:
        indices = self.encode(z)
        total = self.decode(indices)
        codebook, commitment = vq_losses(z, total)
        beta = float(self._by_depth()[0].commitment_weight)  # type: ignore[arg-type]
        terms = {"codebook": codebook, "commitment": commitment}
        return Quantized(straight_through(z, total.detach()), indices, codebook + beta * commitment, terms)


class _LooksUpOnly(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:
        training, self.training = self.training, False
        out = super().forward(z)
        self.training = training
        return out


def _changed(change: Callable[[Any, Quantized], tuple[Any, Any]]) -> type[ResidualQuantizer]:
    """The right result with another loss and other terms."""

    class Changed(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:
            out = super().forward(z)
            return Quantized(out.z_q, out.indices, *change(self, out))

    return Changed


class _OwnLosses(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:
        indices = self.encode(z)
        codes = _codes(indices, self._by_depth())
        codebook, commitment = (terms.sum() for terms in residual_losses(z, codes))
        beta = float(self._by_depth()[0].commitment_weight)  # type: ignore[arg-type]
        terms = {"codebook": codebook, "commitment": commitment}
        return Quantized(straight_through(z, _total(codes).detach()), indices, codebook + beta * commitment, terms)


def _learns_first(what: str) -> type[ResidualQuantizer]:
    """A member learns in its call; ``what`` is looked up again afterwards, among the codes that have moved."""

    class Late(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:
            residual, z_q, found, parts = z, torch.zeros_like(z), [], []
            for member in self._by_depth():
                part = member(residual)
                moved = member.decode(part.indices).detach()
                if what == "the call":
                    part = member(residual)
                found.append(member.encode(residual) if what == "indices" else part.indices)
                z_q = z_q + (moved if what == "z_q" else part.z_q.detach())
                residual = residual - (moved if what == "residual" else part.z_q.detach())
                parts.append(part)
            terms = {name: _added([part.losses[name] for part in parts]) for name in parts[0].losses}
            loss = _added([part.loss for part in parts])
            return Quantized(straight_through(z, z_q), torch.stack(found, -1), loss, terms)

    return Late


class _ATuple(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:
        out = super().forward(z)
        return out.z_q, out.indices, out.loss, out.losses


_QUANTIZER_MISTAKES = (
    Mistake(
        "residual not detached",
        _variant(rest=lambda residual, part, code: residual - code),
        "the values agree, but the commitment loss of a deeper depth reaches an earlier codebook: what is subtracted "
        "from the residual has to be detached.",
    ),
    Mistake(
        "no gradient beyond the first depth",
        _variant(rest=lambda residual, part, code: residual - part.z_q),
        "the values agree, but only the first depth's commitment loss reaches z. part.z_q has the gradient of the "
        "residual (straight-through), so residual − part.z_q has none: 1 − 1 = 0. Subtract part.z_q.detach(), and do "
        "not detach the residual as a whole.",
    ),
    Mistake(
        "each depth its own straight-through",
        _variant(z_q=lambda z, parts, codes: _total([part.z_q for part in parts])),
        "the value agrees, but the gradient of z_q at z is R times too large: each part.z_q brings a straight-through "
        "gradient of its own, and they add up. Detach them, add, and apply straight_through once to the sum.",
    ),
    Mistake(
        "no straight-through",
        _variant(z_q=lambda z, parts, codes: _total(codes).detach()),
        "z_q is right, but no gradient gets from it to z: straight_through(z, z_q) gives it one.",
    ),
    Mistake(
        "gradient into the codebooks",
        _variant(z_q=lambda z, parts, codes: _total(codes)),
        "z_q is right, but its gradient goes into the codebooks and not to z. Use straight_through(z, z_q).",
    ),
    Mistake(
        "z_q is the last code",
        _variant(z_q=lambda z, parts, codes: straight_through(z, codes[-1].detach())),
        "z_q is the last depth's code alone; it is the sum of all of them.",
    ),
    Mistake(
        "z_q is the last residual",
        _variant(z_q=lambda z, parts, codes: straight_through(z, (z - _total(codes)).detach())),
        "z_q is what is *left* after all depths; it is to be the sum of the codes.",
    ),
    Mistake(
        "z at every depth",
        _variant(given=lambda z, residual: z),
        "every quantizer is given z; from the second on it is to get the residual.",
    ),
    Mistake(
        "losses averaged over the depths",
        _variant(over_depths=lambda values: torch.stack(list(values)).mean()),
        "the losses are averaged over the depths: every codebook would learn R times more slowly. Add them up.",
    ),
    Mistake(
        "losses of the last depth",
        _variant(over_depths=lambda values: values[-1]),
        "only the last depth's losses are there: the other codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "losses of the first depth",
        _variant(over_depths=lambda values: values[0]),
        "only the first depth's losses are there: the deeper codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "one loss for the sum",
        _OneLossForTheSum,
        "you compare z with the sum of all codes, once. Then no code is pulled to the residual it was chosen for: "
        "every codebook gets the same gradient. Add up the losses that each depth gave.",
    ),
    Mistake(
        "beta forgotten",
        _variant(loss=lambda loss, terms: _added(list(terms.values()))),
        "`loss` is the sum of the unweighted terms, so that β is lost. Each part.loss is weighted already: add those.",
    ),
    Mistake(
        "weighted terms",
        _variant(terms=lambda terms: {**terms, "commitment": 0.25 * terms["commitment"]}),
        'the terms in `losses` are those before their weights: part.losses["commitment"], added up.',
    ),
    Mistake(
        "no terms",
        _variant(terms=lambda terms: {}),
        "`losses` is empty; it has each term by name, summed over the depths.",
    ),
    Mistake(
        "depth first",
        _variant(indices=lambda found: torch.stack(list(found))),
        "the indices have the depth as their first axis; it is to be the last, (B, *spatial, R).",
    ),
    Mistake(
        "indices of the first depth",
        _variant(indices=lambda found: found[0]),
        "the indices are those of the first depth only; stack those of all depths.",
    ),
    Mistake(
        "looked up, not called",
        _LooksUpOnly,
        "the EMA codebooks have learnt nothing: `quantize`, `encode` and `decode` only look up. Call the quantizer "
        "itself, quantizer(residual).",
    ),
    Mistake(
        "a tuple",
        _ATuple,
        "the result is a tuple; put the four into Quantized(z_q, indices, loss, losses).",
    ),
    Mistake(
        "loss averaged, terms summed",
        _changed(lambda quantizer, out: (out.loss / quantizer.depth, out.losses)),
        "`loss` is averaged over the depths, so that every codebook would learn R times more slowly. Add it up, as the "
        "terms are.",
    ),
    Mistake(
        "terms averaged, loss summed",
        _changed(lambda quantizer, out: (out.loss, {n: v / quantizer.depth for n, v in out.losses.items()})),
        "the terms in `losses` are averaged over the depths. Add them up, as `loss` is.",
    ),
    Mistake(
        "depth as a channel",
        _variant(indices=lambda found: torch.stack(list(found), 1)),
        "the indices have the depth as their second axis; it is to be the last, (B, *spatial, R): dim=-1.",
    ),
    Mistake(
        "losses of one's own",
        _OwnLosses,
        "you look up with encode and decode and take the losses yourself. That fits VectorQuantizer only: an EMA "
        "codebook has no codebook loss, and learns only when it is called, quantizer(residual).",
    ),
    Mistake(
        "called twice",
        _learns_first("the call"),
        "each quantizer is called twice, and an EMA codebook learns in each call. Call it once and keep the result: "
        "part = quantizer(residual).",
    ),
    *(
        Mistake(
            f"{what} after learning",
            _learns_first(what),
            f"{what} {does} looked up again after the call, in which an EMA codebook has moved. {instead}",
        )
        for what, does, instead in (
            ("indices", "are", "Take part.indices."),
            ("z_q", "is", "The code that was chosen is part.z_q.detach()."),
            ("residual", "is", "What is subtracted is the code that was chosen: part.z_q.detach()."),
        )
    ),
)


# Exercise 6.5 -------------------------------------------------------------------------------------------------------


def _rate_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(64)
    first = torch.randint(0, 5, (40, 3, 2), generator=g) * torch.randint(0, 2, (40, 3, 2), generator=g)
    second = (first + torch.randint(0, 2, first.shape, generator=g)) % 6
    third = torch.randint(0, 3, first.shape, generator=g)
    many = torch.randint(0, 16, (60, 5, 3), generator=g)
    return [
        Case("three depths that know of each other, K = 6", (torch.stack([first, second, third], -1), 6)),
        Case("two depths, K = 8", (torch.stack([first, (5 * first) % 7], -1), 8)),
        Case("one depth, K = 5", (first[..., None], 5)),
        Case("one image, one position, four depths", (torch.tensor([[[[3, 0, 3, 3]]]]), 4)),
        Case("sequences in place of grids, three depths, K = 16", (many, 16)),
    ]


def _rate_run(implementation: Any, case: Case) -> Observed:
    """As ``call``, but each number is compared under its own name, and what kind of number it is, apart from that."""
    seen = call(implementation, case)
    result = seen.pop("the result")
    if not isinstance(result, dict):
        return {"the result": result} | seen
    tensors = any(isinstance(value, Tensor) for value in result.values())
    told: Observed = {"the result": f"a dict: {', '.join(sorted(map(str, result)))}"}
    told["the kind of its numbers"] = "tensors" if tensors else "Python's own"
    for name, value in result.items():
        single = isinstance(value, Tensor) and value.numel() == 1
        told[f'result["{name}"]'] = float(value) if single else value
    return told | seen


def _entropy(rows: Tensor) -> float:
    """Bits of the shares of whole rows (n, m)."""
    return math.log2(perplexity(torch.unique(rows, dim=0, return_counts=True)[1]))


def _rates(**others: Callable[[Tensor, int], float]) -> Callable[[Tensor, int], dict[str, float]]:
    """The right answer with some of the numbers replaced; they get the stacks (n, R) and K."""

    def rates(indices: Tensor, num_codes: int) -> dict[str, float]:
        stacks = indices.reshape(-1, indices.shape[-1])
        right = rate_bits(indices, num_codes)
        return right | {name: other(stacks, num_codes) for name, other in others.items()}

    return rates


def _grids_only(indices: Tensor, num_codes: int) -> dict[str, float]:
    n, h, w, r = indices.shape
    return rate_bits(indices.reshape(n * h * w, r), num_codes)


def _of_counts(indices: Tensor, num_codes: int) -> dict[str, float]:
    def entropy(codes: Tensor, k: int) -> float:
        p = torch.bincount(codes, minlength=k).double() / len(codes)
        return -(p * p.log2()).sum().item()

    stacks = indices.reshape(-1, indices.shape[-1])
    return rate_bits(indices, num_codes) | {"entropy": sum(entropy(one, num_codes) for one in stacks.unbind(1))}


def _nats(indices: Tensor, num_codes: int) -> dict[str, float]:
    return {name: value * math.log(2) for name, value in rate_bits(indices, num_codes).items()}


def _per_image(indices: Tensor, num_codes: int) -> dict[str, float]:
    positions = math.prod(indices.shape[1:-1])
    return {name: positions * value for name, value in rate_bits(indices, num_codes).items()}


_RATE_MISTAKES = (
    Mistake(
        "codes counted, not stacks",
        _rates(nominal=lambda stacks, k: math.log2(stacks.shape[1] * k)),
        "log₂(R·K) is for one choice out of R·K codes. A stack is R choices out of K each: K^R stacks, R·log₂K bits.",
    ),
    Mistake(
        "depth forgotten",
        _rates(nominal=lambda stacks, k: math.log2(k)),
        "`nominal` is what one code costs; a stack has R of them.",
    ),
    Mistake(
        "nats",
        _nats,
        "these are nats; divide by log 2, or take log2, to get bits.",
    ),
    Mistake(
        "perplexities",
        _rates(
            entropy=lambda stacks, k: sum(2 ** _entropy(one[:, None]) for one in stacks.unbind(1)),
            joint=lambda stacks, k: 2 ** _entropy(stacks),
        ),
        "these are perplexities, exp of an entropy: `entropy` and `joint` are the entropies themselves. "
        "math.log2(perplexity) is an entropy in bits.",
    ),
    Mistake(
        "tensors",
        lambda indices, k: {name: torch.tensor(value) for name, value in rate_bits(indices, k).items()},
        "the numbers agree, but they are tensors, and Python's own are wanted: .item() makes a number of a tensor.",
    ),
    Mistake(
        "an image's bits",
        _per_image,
        "these are the bits of a whole image; here they are wanted for one position.",
    ),
    Mistake(
        "depths thrown together",
        _rates(entropy=lambda stacks, k: stacks.shape[1] * _entropy(stacks.reshape(-1, 1))),
        "`entropy` uses one table of shares for all depths together. Each depth has a codebook of its own, and so "
        "shares of its own: add up R entropies.",
    ),
    Mistake(
        "entropies averaged",
        _rates(entropy=lambda stacks, k: rate_bits(stacks, k)["entropy"] / stacks.shape[1]),
        "`entropy` is the mean over the depths; all R codes have to be written down, so it is their sum.",
    ),
    Mistake(
        "first depth only",
        _rates(entropy=lambda stacks, k: _entropy(stacks[:, :1])),
        "`entropy` is that of the first depth; add those of the others.",
    ),
    Mistake(
        "joint of sums",
        _rates(joint=lambda stacks, k: _entropy(stacks.sum(1, keepdim=True))),
        "different stacks have the same sum of indices (1 + 2 = 2 + 1), and you count them as one. Number the stacks "
        "as k₁ + K·k₂ + …, or use torch.unique with dim=0.",
    ),
    Mistake(
        "joint as a sum",
        _rates(joint=lambda stacks, k: rate_bits(stacks, k)["entropy"]),
        "`joint` is the sum of the depths' entropies once more. Count how often each whole stack occurs.",
    ),
    Mistake(
        "joint of used stacks",
        _rates(joint=lambda stacks, k: math.log2(len(torch.unique(stacks, dim=0)))),
        "`joint` counts the different stacks as if all were equally frequent; take the entropy of their shares.",
    ),
    Mistake(
        "joint divided by depth",
        _rates(joint=lambda stacks, k: _entropy(stacks) / stacks.shape[1]),
        "`joint` is what a code costs on average; what the whole stack costs is wanted.",
    ),
    Mistake(
        "usage in place of K",
        _rates(nominal=lambda stacks, k: math.fsum(math.log2(len(torch.unique(one))) for one in stacks.unbind(1))),
        "`nominal` is to know nothing of how often codes occur, not even which never do: R·log₂K.",
    ),
    Mistake(
        "stacks numbered with 10",
        _rates(joint=lambda stacks, k: _entropy(sum(10**r * one for r, one in enumerate(stacks.unbind(1)))[:, None])),
        "you number the stacks as k₁ + 10·k₂ + …: with more than 10 codes different stacks get the same number. "
        "k₁ + K·k₂ + …, or torch.unique with dim=0.",
    ),
    Mistake(
        "grids only",
        _grids_only,
        "you unpack the shape into four, N, h, w, R, and there may be any number of spatial axes: "
        "indices.reshape(-1, indices.shape[-1]).",
    ),
    Mistake(
        "0 times the logarithm of 0",
        _of_counts,
        "p·log p is NaN where a code never occurs: 0 · −∞. torch.xlogy, or the shares of the codes that occur.",
    ),
    Mistake(
        "stacks cut across",
        lambda indices, k: rate_bits(indices.reshape(indices.shape[-1], -1).T, k),
        "your rows are no stacks: reshape(R, -1) cuts the numbers in other places. The depth is the last axis already: "
        "reshape(-1, R).",
    ),
)


def register_all() -> None:
    register(Exercise("residual_encode", CHAPTER, residual_encode, _encode_cases, _ENCODE_MISTAKES, _encode_run))
    register(Exercise("decode_to_depth", CHAPTER, decode_to_depth, _decode_cases, _DECODE_MISTAKES, _decode_run))
    register(Exercise("residual_losses", CHAPTER, residual_losses, _loss_cases, _LOSS_MISTAKES, _loss_run))
    register(
        Exercise("ResidualQuantizer", CHAPTER, ResidualQuantizer, _quantizer_cases, _QUANTIZER_MISTAKES, _quantizer_run)
    )
    register(Exercise("rate_bits", CHAPTER, rate_bits, _rate_cases, _RATE_MISTAKES, _rate_run))

"""Exercises of chapter 03: the nearest code, a stop-gradient puzzle, straight-through, the losses, the quantizer.

What matters here is where gradients go. So the runners say for each result whom it sends a gradient to, by name, before
they compare numbers: a wrong route is named even when no listed mistake explains it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.core import DIAGNOSTIC, Case, Exercise, LargestTensor, Mistake, Observed, call, register
from companion.quantizers import Quantized, VectorQuantizer, nearest_code, straight_through, vq_losses

CHAPTER = "03_vector_quantisation"


def stop_gradient_puzzle(a: Tensor, b: Tensor) -> Tensor:
    """The value a·b with the gradient of a·b at a and minus that at b: a descends where b ascends.

    (A gradient reversal for one factor: Ganin and Lempitsky 2015.)

    Shapes:
        a, b: the same shape → the same.
    """
    return a * b.detach() - a.detach() * b + (a * b).detach()


# Exercise 3.1 -------------------------------------------------------------------------------------------------------


def _searches() -> Sequence[Case]:
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


def _search_run(implementation: Any, case: Case) -> Observed:
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


_SEARCH_MISTAKES = (
    Mistake(
        "not centred",
        lambda z, e: (e.square().sum(1) - 2 * z @ e.T).argmin(1),
        "right near the origin, wrong far from it: ‖e‖² and 2 z·e are large there and nearly cancel. Subtract "
        "codebook.mean(0) from both first.",
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
    ),
    Mistake(
        "argmin of the whole table",
        lambda z, e: _scores(z, e).argmin(),
        "argmin() without an axis gives one number for the whole table: argmin(1).",
    ),
    Mistake(
        "distances",
        lambda z, e: _scores(z, e).amin(1),
        "these are the smallest distances; wanted is where they are: argmin.",
    ),
    Mistake(
        "min not unpacked",
        lambda z, e: _scores(z, e).min(1),
        "min(1) gives two things, values and indices: use argmin(1), or .indices.",
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
)


# Exercise 3.2 -------------------------------------------------------------------------------------------------------


def _factors() -> Sequence[Case]:
    g = torch.Generator().manual_seed(31)
    both = {0: "a", 1: "b"}

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    return [
        Case("six numbers each", pair(6), gradient_of=both),
        Case("two matrices", pair(3, 4), gradient_of=both),
        Case("one number each", pair(), gradient_of=both),
        Case("zeros among them", (torch.tensor([0.0, 2, 0]), torch.tensor([3.0, 0, 0])), gradient_of=both),
    ]


def _sg(value: Tensor) -> Tensor:
    return value.detach()


_PUZZLE_MISTAKES = (
    Mistake(
        "the product",
        lambda a, b: a * b,
        "the plain product: its gradient at b is +a. b is to get −a, which needs a term of its own.",
    ),
    Mistake(
        "minus the product",
        lambda a, b: -a * b,
        "minus the product turns the sign of everything: value, and both gradients.",
    ),
    Mistake(
        "b cut off",
        lambda a, b: a * _sg(b),
        "value and a's gradient are right, but b gets no gradient at all. It is to get −a: subtract sg[a]·b, then "
        "repair the value.",
    ),
    Mistake(
        "a cut off",
        lambda a, b: _sg(a) * b,
        "this teaches b only, and in the wrong direction: a·sg[b] is the term that teaches a.",
    ),
    Mistake(
        "value zero",
        lambda a, b: a * _sg(b) - _sg(a) * b,
        "both gradients are right, but the two terms cancel and the value is 0. Add the value back without a gradient: "
        "sg[a·b].",
    ),
    Mistake(
        "both turned",
        lambda a, b: -a * b + 2 * _sg(a * b),
        "the value is right, but both gradients are turned, and only b's is to be: the term for a is a·sg[b], with a "
        "plus.",
    ),
    Mistake(
        "value repaired with a gradient",
        lambda a, b: a * _sg(b) - _sg(a) * b + a * b,
        "the value is right, but the term that repairs it brings gradients of its own: put it into sg[…].",
    ),
    Mistake(
        "value twice",
        lambda a, b: a * _sg(b) - _sg(a) * b + 2 * _sg(a * b),
        "both gradients are right and the value is 2·a·b: the two terms already cancel to 0, so add sg[a·b] once.",
    ),
    Mistake(
        "sum of both",
        lambda a, b: a * _sg(b) + _sg(a) * b,
        "a·sg[b] + sg[a]·b has twice the value and the product's own gradients: b's term needs a minus.",
    ),
    Mistake(
        "the players swapped",
        lambda a, b: -a * _sg(b) + _sg(a) * b + _sg(a * b),
        "the roles are swapped: a is to get the gradient of a·b, and b minus that.",
    ),
    Mistake(
        "all cut off",
        lambda a, b: _sg(a * b),
        "the value is right, but nobody gets a gradient.",
    ),
    Mistake(
        "minus inside",
        lambda a, b: a * (_sg(b) - b) + _sg(a * b),
        "in a·(sg[b] − b) the bracket is 0, so a gets no gradient: detach a in the term for b, and keep a·sg[b] apart.",
    ),
    Mistake(
        "a Python number",
        lambda a, b: (a * b).sum().item(),
        ".item() gives a Python number, through which no gradient can flow. Return the tensor.",
    ),
    Mistake(
        "summed",
        lambda a, b: stop_gradient_puzzle(a, b).sum(),
        "this is the sum. Value and gradients are wanted elementwise, in the shape of a and b.",
    ),
    Mistake(
        "weights for gradients",
        lambda a, b: a * _sg(b) - b * _sg(b) + _sg(b * b),
        "the factor that is held fixed decides the gradient: b's gradient is to be −a, so its term is −sg[a]·b.",
    ),
    Mistake(
        "divided by b",
        lambda a, b: a * _sg(b).square() / b,
        "value and gradients are right, but where b is 0 you divide by it, and get NaN. Sums of products do without.",
    ),
)


# Exercise 3.3 -------------------------------------------------------------------------------------------------------

_PAIR = ("z (the encoder)", "z_q (the codebook)")


def _pairs() -> Sequence[Case]:
    g = torch.Generator().manual_seed(32)
    both = dict(enumerate(_PAIR))

    def pair(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return scale * torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    a, b = pair(2, 3, 4, 5)
    return [
        Case("12 latents of 3 numbers", pair(12, 3), gradient_of=both),
        Case("a grid of latents, 2×3×4×5", pair(2, 3, 4, 5), gradient_of=both),
        Case("latents 10,000 times as large as their codes", pair(6, 2, scale=1e4), gradient_of=both),
        Case("not contiguous in memory", (a.transpose(1, 3), b.transpose(1, 3)), gradient_of=both),
    ]


def _reached(value: Any, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Which of the tensors a fixed weighted sum of ``value`` sends a gradient to, and the gradients (0 where none)."""
    nothing = {name: torch.zeros_like(t) for name, t in tensors.items()}
    if not isinstance(value, Tensor) or not value.requires_grad:
        return "nothing", nothing
    weights = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    grads = torch.autograd.grad((value * weights).sum(), list(tensors.values()), retain_graph=True, allow_unused=True)
    found = {n: z if g is None else g for (n, z), g in zip(nothing.items(), grads, strict=True)}
    names = [name for name, gradient in found.items() if bool((gradient != 0).any())]
    return " and ".join(names) or "nothing", found


def _routes(what: str, value: Any, tensors: Mapping[str, Tensor]) -> Observed:
    """Whom a result sends a gradient to, its value, and the gradients."""
    names, gradients = _reached(value, tensors)
    return (
        {f"{what} sends a gradient to": names}
        | {what: value}
        | {f"the gradient that {what} sends to {name}": gradient for name, gradient in gradients.items()}
    )


def _leaves(case: Case) -> list[Tensor]:
    return [argument.detach().clone().requires_grad_() for argument in case.arguments]


def _estimate(implementation: Any, case: Case) -> Observed:
    z, z_q = _leaves(case)
    result = implementation(z, z_q)
    seen = _routes("the result", result, dict(zip(_PAIR, (z, z_q), strict=True)))
    seen["the result equals z_q to the bit"] = isinstance(result, Tensor) and torch.equal(result, z_q)
    seen |= _after((z, z_q))
    if isinstance(result, Tensor) and result.shape == z_q.shape:
        seen[f"{DIAGNOSTIC}what is off"] = (result - z_q).detach()
    return seen


def _after(leaves: Sequence[Tensor]) -> Observed:
    return {f"argument {number} after the call": leaf.detach() for number, leaf in enumerate(leaves, 1)}


def _written_into_z(z: Tensor, z_q: Tensor) -> Tensor:
    with torch.no_grad():
        z.copy_(z_q)
    return z


def _added_into_z(z: Tensor, z_q: Tensor) -> Tensor:
    result = z_q.detach() + (z - z.detach())
    z.data += z_q - z
    return result


def _backwards_through_both(z: Tensor, z_q: Tensor) -> Tensor:
    return z_q + (z - z.detach())


_ESTIMATE_MISTAKES = (
    Mistake(
        "only up to rounding",
        lambda z, z_q: z + (z_q - z).detach(),
        "the gradient is right, and the value nearly: z + (z_q − z) is rounded twice. Put z_q there whole, and add "
        "something that is exactly 0: z − sg[z].",
    ),
    Mistake(
        "brackets forgotten",
        lambda z, z_q: z_q.detach() + z - z.detach(),
        "without brackets z_q + z is computed first, and rounded: z_q + (z − sg[z]) adds what is exactly 0.",
    ),
    Mistake(
        "z_q not detached",
        _backwards_through_both,
        "the reconstruction's gradient reaches z (right) and the codebook too (wrong): detach z_q.",
    ),
    Mistake(
        "z_q itself",
        lambda z, z_q: z_q,
        "this is z_q, with its own gradient: it goes to the codebook, and z gets none. The other way round is wanted.",
    ),
    Mistake(
        "z_q detached, no more",
        lambda z, z_q: z_q.detach(),
        "the value is right, but nobody gets a gradient. Add z − sg[z]: 0 in value, 1 in gradient.",
    ),
    Mistake("z itself", lambda z, z_q: z, "this is z: the gradient is right, but the value is to be that of z_q."),
    Mistake(
        "nothing detached",
        lambda z, z_q: z + (z_q - z),
        "without a stop-gradient z cancels: its gradient is 1 − 1 = 0, and everything goes to the codebook.",
    ),
    Mistake(
        "only z_q detached",
        lambda z, z_q: z + (z_q.detach() - z),
        "z cancels: its gradient is 1 − 1 = 0. The z that is subtracted has to be detached too.",
    ),
    Mistake(
        "only z detached",
        lambda z, z_q: z + (z_q - z.detach()),
        "z_q is not detached (and the value is rounded): the reconstruction would move the codebook.",
    ),
    Mistake(
        "the roles swapped",
        lambda z, z_q: z.detach() + (z_q - z_q.detach()),
        "the roles are swapped: this has the value of z and sends the gradient to z_q.",
    ),
    Mistake(
        "the sign of the difference",
        lambda z, z_q: z + (z - z_q).detach(),
        "the difference has the wrong sign: z + (z − z_q) is 2z − z_q.",
    ),
    Mistake(
        "added up",
        lambda z, z_q: z + z_q.detach(),
        "the gradient is right, but the value is z + z_q: add z − sg[z], which is 0, instead of z.",
    ),
    Mistake(
        "by a factor",
        lambda z, z_q: z * (z_q / z).detach(),
        "the value is right up to rounding, but the gradient is multiplied by z_q/z. Straight-through copies it as it "
        "is: add instead of multiplying.",
    ),
    Mistake(
        "half and half",
        lambda z, z_q: z_q.detach() + 0.5 * (z - z.detach()) + 0.5 * (z_q - z_q.detach()),
        "z gets half of the gradient and the codebook the other half. z is to get all of it.",
    ),
    Mistake(
        "the gradient with a minus",
        lambda z, z_q: z_q.detach() - (z - z.detach()),
        "the gradient arrives at z with the wrong sign: add z − sg[z] instead of subtracting it.",
    ),
    Mistake(
        "z_q written into z",
        _written_into_z,
        "value and gradient are right, but the caller's z was overwritten with z_q: the losses, which need z as it "
        "was, would all be 0. Make a new tensor.",
    ),
    Mistake(
        "z changed afterwards",
        _added_into_z,
        "the result is right, but z itself was changed on the way (.data, copy_ or +=): leave it as it came.",
    ),
)


# Exercise 3.4 -------------------------------------------------------------------------------------------------------


def _two_losses(implementation: Any, case: Case) -> Observed:
    z, z_q = _leaves(case)
    result = implementation(z, z_q)
    if not isinstance(result, tuple | list) or len(result) != 2:
        number = f"{len(result)} things" if isinstance(result, tuple | list | dict) else "one thing"
        return {"what is returned": f"{number}, {_kind(result)}", "the result": result}
    seen: Observed = {"what is returned": "two losses"}
    for name, loss in zip(("the codebook loss", "the commitment loss"), result, strict=True):
        seen |= _routes(name, loss, dict(zip(_PAIR, (z, z_q), strict=True)))
    return seen | _after((z, z_q))


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _losses(
    codebook: Callable[[Tensor, Tensor], Any] = lambda z, z_q: (_sg(z) - z_q).square().mean(),
    commitment: Callable[[Tensor, Tensor], Any] = lambda z, z_q: (z - _sg(z_q)).square().mean(),
) -> Callable[[Tensor, Tensor], tuple[Any, Any]]:
    """Both losses, with a place for each slip that the mistakes below make."""
    return lambda z, z_q: (codebook(z, z_q), commitment(z, z_q))


def _both(loss: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], tuple[Any, Any]]:
    """The same slip in both losses."""
    return _losses(lambda z, z_q: loss(_sg(z) - z_q), lambda z, z_q: loss(z - _sg(z_q)))


def _late(z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    return vq_losses(z, straight_through(z, z_q))


_LOSS_MISTAKES = (
    Mistake(
        "codebook loss reaches the encoder",
        _losses(codebook=lambda z, z_q: (z - z_q).square().mean()),
        "your codebook loss reaches the encoder: detach z_e there.",
    ),
    Mistake(
        "commitment loss reaches the codebook",
        _losses(commitment=lambda z, z_q: (z - z_q).square().mean()),
        "your commitment loss reaches the codebook: detach z_q there.",
    ),
    Mistake(
        "nothing detached",
        lambda z, z_q: ((z - z_q).square().mean(), (z - z_q).square().mean()),
        "nothing is detached, so both losses move both sides. Codebook loss: detach z. Commitment loss: detach z_q.",
    ),
    Mistake(
        "swapped",
        _losses(lambda z, z_q: (z - _sg(z_q)).square().mean(), lambda z, z_q: (_sg(z) - z_q).square().mean()),
        "the two stop-gradients are the other way round (or the two losses are returned in the other order): the "
        "codebook loss comes first, and moves what is not detached, the codes.",
    ),
    Mistake(
        "z detached in both",
        _losses(commitment=lambda z, z_q: (_sg(z) - z_q).square().mean()),
        "z is detached in both, so both move the codes and nothing holds the encoder. Commitment loss: detach z_q "
        "instead.",
    ),
    Mistake(
        "z_q detached in both",
        _losses(codebook=lambda z, z_q: (z - _sg(z_q)).square().mean()),
        "z_q is detached in both, so both move the encoder and the codes never move. Codebook loss: detach z instead.",
    ),
    Mistake(
        "all detached",
        lambda z, z_q: ((_sg(z) - _sg(z_q)).square().mean(), (_sg(z) - _sg(z_q)).square().mean()),
        "both sides are detached in both: nobody gets a gradient. One side each.",
    ),
    Mistake(
        "all detached in the codebook loss",
        _losses(codebook=lambda z, z_q: (_sg(z) - _sg(z_q)).square().mean()),
        "in your codebook loss both sides are detached, so the codes never move: detach z only.",
    ),
    Mistake(
        "all detached in the commitment loss",
        _losses(commitment=lambda z, z_q: (_sg(z) - _sg(z_q)).square().mean()),
        "in your commitment loss both sides are detached, so nothing holds the encoder: detach z_q only.",
    ),
    Mistake(
        "after straight-through",
        _late,
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
        _losses(commitment=lambda z, z_q: 0.25 * (z - _sg(z_q)).square().mean()),
        "the commitment loss already has a weight on it. Both are wanted unweighted; β comes in the quantizer.",
    ),
    Mistake(
        "β on the codebook loss",
        _losses(codebook=lambda z, z_q: 0.25 * (_sg(z) - z_q).square().mean()),
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
)


# Exercise 3.5 -------------------------------------------------------------------------------------------------------


def _quantizers() -> Sequence[Case]:
    g = torch.Generator().manual_seed(33)
    turned = torch.randn(2, 5, 4, 3, generator=g).transpose(1, 3)
    z = {0: "z"}
    return [
        Case("a grid of latents, 2×3×4×5", (torch.randn(2, 3, 4, 5, generator=g),), {"num_codes": 7, "dim": 3}, z),
        Case(
            "sequences, β = 2",
            (torch.randn(3, 4, 6, generator=g),),
            {"num_codes": 5, "dim": 4, "commitment_weight": 2.0},
            z,
            seed=1,
        ),
        Case(
            "vectors without a grid",
            (torch.randn(6, 2, generator=g),),
            {"num_codes": 4, "dim": 2, "commitment_weight": 0.5},
            z,
            seed=2,
        ),
        Case("one image, not contiguous in memory", (turned[:1],), {"num_codes": 6, "dim": 3}, z, seed=3),
    ]


def _quantize(implementation: Any, case: Case) -> Observed:
    torch.manual_seed(case.seed)
    weights = VectorQuantizer(**case.build).state_dict()
    quantizer = implementation(**case.build)
    own = quantizer.state_dict()
    seen: Observed = {"the names of the weights (given by __init__)": sorted(own)}
    if set(own) == set(weights):
        quantizer.load_state_dict(weights)
    z = case.arguments[0].detach().clone().requires_grad_()
    result = quantizer(z)
    if not isinstance(result, Quantized):
        return seen | {"what is returned": _kind(result)}
    ends = {"z (the encoder)": z} | dict(quantizer.named_parameters())
    seen |= {"what is returned": "a Quantized", "indices": result.indices, "the value of z_q": result.z_q}
    seen |= _routes("a loss on z_q", result.z_q, ends)
    losses = result.losses
    seen["the names in losses"] = sorted(losses) if isinstance(losses, dict) else _kind(losses)
    if seen["the names in losses"] == ["codebook", "commitment"]:
        for name in ("codebook", "commitment"):
            seen |= _routes(f'losses["{name}"]', losses[name], ends)
    seen |= _routes("loss", result.loss, ends)
    seen["z after the call"] = z.detach()
    seen |= {f"{name} after the call": weight.detach() for name, weight in quantizer.named_parameters()}
    result = quantizer.eval()(z)
    return seen | {"the value of z_q in eval()": result.z_q} | _routes("a loss on z_q in eval()", result.z_q, ends)


def _rows(z: Tensor) -> Tensor:
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def _grid(rows: Tensor, z: Tensor) -> Tensor:
    return rows.reshape(*z.shape[:1], *z.shape[2:], -1).movedim(-1, 1)


def _positions(indices: Tensor, z: Tensor) -> Tensor:
    return indices.reshape(z.shape[:1] + z.shape[2:])


def _named(codebook: Any, commitment: Any) -> dict[str, Any]:
    return {"codebook": codebook, "commitment": commitment}


def _variant(
    *,
    rows: Callable[[Tensor], Tensor] = _rows,
    search: Callable[[Tensor, Tensor], Tensor] = nearest_code,
    losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = vq_losses,
    estimate: Callable[[Tensor, Tensor], Tensor] = straight_through,
    grid: Callable[[Tensor, Tensor], Tensor] = _grid,
    positions: Callable[[Tensor, Tensor], Tensor] = _positions,
    weigh: Callable[[Tensor, Tensor, float], Any] = lambda codebook, commitment, beta: codebook + beta * commitment,
    name: Callable[..., Any] = lambda codebook, commitment, beta: _named(codebook, commitment),
    give: Callable[[Quantized], Any] = lambda quantized: quantized,
) -> type[VectorQuantizer]:
    """A quantizer with a place for each slip that the mistakes below make."""

    class Variant(VectorQuantizer):
        def forward(self, z: Tensor) -> Any:
            vectors = rows(z)
            indices = search(vectors, self.codebook)
            codes = self.codebook[indices]
            codebook, commitment = losses(vectors, codes)
            beta = self.commitment_weight
            quantized = Quantized(
                grid(estimate(vectors, codes), z),
                positions(indices, z),
                weigh(codebook, commitment, beta),
                name(codebook, commitment, beta),
            )
            return give(quantized)

    return Variant


class _OnlyInTraining(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:
        right = super().forward(z)
        return right if self.training else replace(right, z_q=self.decode(right.indices))


class _WritesIntoTheCodebook(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:
        right = super().forward(z)
        with torch.no_grad():
            self.codebook[right.indices.flatten()] = _rows(z)
        return right


class _WritesIntoZ(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:
        right = super().forward(z)
        z.data.copy_(right.z_q)
        return replace(right, z_q=z)


def _cut_across(z: Tensor) -> Tensor:
    return z.reshape(-1, z.shape[1])


_QUANTIZER_MISTAKES = (
    Mistake(
        "losses after straight-through",
        _variant(losses=_late),
        "your losses are taken after straight-through, whose result is detached from the codebook: the codes get no "
        "gradient and never move. Take the losses from the codes as they were looked up.",
    ),
    Mistake(
        "z_q without straight-through",
        _variant(estimate=lambda z, codes: codes),
        "z_q is returned as it was looked up: the reconstruction moves the codebook, and the encoder learns nothing "
        "from it. Return straight_through(rows, codes).",
    ),
    Mistake(
        "reconstruction reaches both",
        _variant(estimate=_backwards_through_both),
        "the reconstruction reaches the encoder (right) and the codebook too (wrong): z_q is not detached in your "
        "straight-through.",
    ),
    Mistake(
        "z_q detached",
        _variant(estimate=lambda z, codes: codes.detach()),
        "z_q is detached and carries no gradient: the encoder learns nothing from the reconstruction. Return "
        "straight_through(rows, codes).",
    ),
    Mistake(
        "z returned",
        _variant(estimate=lambda z, codes: z),
        "z_q is z itself, so nothing is quantised: return straight_through(rows, codes).",
    ),
    Mistake(
        "straight-through swapped",
        _variant(estimate=lambda z, codes: straight_through(codes, z)),
        "the arguments of straight_through are swapped: first the latents, then the codes.",
    ),
    Mistake(
        "codebook loss reaches the encoder",
        _variant(losses=lambda z, codes: ((z - codes).square().mean(), (z - codes.detach()).square().mean())),
        "your codebook loss reaches the encoder: detach the latents there, as vq_losses does.",
    ),
    Mistake(
        "commitment loss reaches the codebook",
        _variant(losses=lambda z, codes: ((z.detach() - codes).square().mean(), (z - codes).square().mean())),
        "your commitment loss reaches the codebook: detach the codes there, as vq_losses does.",
    ),
    Mistake(
        "losses swapped",
        _variant(losses=lambda z, codes: vq_losses(codes, z)),
        "the two losses are swapped: vq_losses(latents, codes) gives the codebook loss first.",
    ),
    Mistake(
        "codes detached before the losses",
        _variant(losses=lambda z, codes: vq_losses(z, codes.detach())),
        "the codes were cut from the codebook before the losses (detach, .data, no_grad around the look-up): the "
        "codebook gets no gradient. Only the search needs none.",
    ),
    Mistake(
        "β on the codebook loss",
        _variant(weigh=lambda codebook, commitment, beta: beta * codebook + commitment),
        "β weighs the codebook loss. It belongs to the commitment loss.",
    ),
    Mistake(
        "β on both",
        _variant(weigh=lambda codebook, commitment, beta: beta * (codebook + commitment)),
        "β weighs both losses. It belongs to the commitment loss only.",
    ),
    Mistake(
        "β forgotten",
        _variant(weigh=lambda codebook, commitment, beta: codebook + commitment),
        "β is missing: codebook loss + self.commitment_weight · commitment loss.",
    ),
    Mistake(
        "β written in",
        _variant(weigh=lambda codebook, commitment, beta: codebook + 0.25 * commitment),
        "0.25 is the usual β, but here it is self.commitment_weight.",
    ),
    Mistake(
        "commitment only",
        _variant(weigh=lambda codebook, commitment, beta: beta * commitment),
        "loss lacks the codebook loss, so the codes never move.",
    ),
    Mistake(
        "codebook loss only",
        _variant(weigh=lambda codebook, commitment, beta: codebook),
        "loss lacks the commitment loss, so nothing holds the latents near their codes.",
    ),
    Mistake(
        "weighted in losses",
        _variant(name=lambda codebook, commitment, beta: _named(codebook, beta * commitment)),
        'losses["commitment"] is to be the loss before its weight; β comes in only in loss.',
    ),
    Mistake(
        "names swapped",
        _variant(name=lambda codebook, commitment, beta: _named(commitment, codebook)),
        "the two names in losses are swapped.",
    ),
    Mistake(
        "losses detached",
        _variant(name=lambda codebook, commitment, beta: _named(codebook.detach(), commitment.detach())),
        "the losses in the dict are detached. Keep them on the graph: the routing table takes their gradients.",
    ),
    Mistake(
        "losses as numbers",
        _variant(name=lambda codebook, commitment, beta: _named(codebook.item(), commitment.item())),
        "the losses in the dict are Python numbers (.item(), float). Keep the tensors: the routing table takes their "
        "gradients.",
    ),
    Mistake(
        "other names",
        _variant(name=lambda codebook, commitment, beta: {"codebook_loss": codebook, "commitment_loss": commitment}),
        'the names in losses are to be "codebook" and "commitment".',
    ),
    Mistake(
        "summed losses",
        _variant(
            losses=lambda z, codes: (
                (z.detach() - codes).square().sum(),
                (z - codes.detach()).square().sum(),
            )
        ),
        "the losses are sums. They are means over positions and dimensions, as vq_losses gives them.",
    ),
    Mistake(
        "cut across positions",
        _variant(
            rows=_cut_across,
            grid=lambda rows, z: rows.reshape(z.shape),
        ),
        "reshape(-1, D) on (B, D, …) cuts across positions: its rows mix numbers of different vectors. Move the "
        "channels last first: z.movedim(1, -1).",
    ),
    Mistake(
        "cut across positions on the way in",
        _variant(rows=_cut_across),
        "your rows cut across positions: the channels have to come last before reshape(-1, D).",
    ),
    Mistake(
        "cut across positions on the way back",
        _variant(grid=lambda rows, z: rows.reshape(z.shape)),
        "on the way back, reshape to (B, *spatial, D) and move the last axis to place 1; reshape(z.shape) alone mixes "
        "the vectors.",
    ),
    Mistake(
        "channels left last",
        _variant(grid=lambda rows, z: rows.reshape(*z.shape[:1], *z.shape[2:], -1)),
        "z_q has its channels last. It is to have the shape of z: .movedim(-1, 1).",
    ),
    Mistake(
        "rows returned",
        _variant(grid=lambda rows, z: rows),
        "z_q is still a matrix of rows, (N, D). It is to have the shape of z.",
    ),
    Mistake(
        "flat indices",
        _variant(positions=lambda indices, z: indices),
        "indices is flat, (N,). It is to have the latents' places: (B, *spatial).",
    ),
    Mistake(
        "the largest dot product",
        _variant(search=lambda z, codebook: (z @ codebook.T).argmax(1)),
        "the largest dot product is not the nearest code: use nearest_code.",
    ),
    Mistake(
        "images only",
        _variant(rows=lambda z: z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])),
        "permute(0, 2, 3, 1) works for images only. movedim(1, -1) works for any number of axes.",
    ),
    Mistake(
        "a tuple",
        _variant(give=lambda q: (q.z_q, q.indices, q.loss)),
        "return a Quantized, whose fields have names: Quantized(z_q, indices, loss, losses).",
    ),
    Mistake(
        "only z_q", _variant(give=lambda q: q.z_q), "this is z_q alone. Return Quantized(z_q, indices, loss, losses)."
    ),
    Mistake(
        "fields in another order",
        _variant(give=lambda q: Quantized(q.indices, q.z_q, q.loss, q.losses)),
        "the fields of Quantized come in the order z_q, indices, loss, losses; or name them: Quantized(z_q=…, "
        "indices=…).",
    ),
    Mistake(
        "straight-through in training only",
        _OnlyInTraining,
        "in eval() z_q has no straight-through gradient. A quantizer's forward is the same in both modes: whoever "
        "wants no gradient says no_grad.",
    ),
    Mistake(
        "codebook overwritten",
        _WritesIntoTheCodebook,
        "your forward writes into self.codebook. It only looks up: the optimizer moves the codes, with the codebook "
        "loss.",
    ),
    Mistake(
        "z overwritten",
        _WritesIntoZ,
        "your forward writes into z, the caller's tensor. Make a new one for z_q.",
    ),
    Mistake(
        "the grid transposed",
        _variant(grid=lambda rows, z: _grid(rows, z).transpose(-1, -2) if z.ndim == 4 else _grid(rows, z)),
        "height and width of z_q are exchanged. What movedim(1, -1) did is undone by movedim(-1, 1).",
    ),
)


def register_all() -> None:
    register(Exercise("nearest_code", CHAPTER, nearest_code, _searches, _SEARCH_MISTAKES, _search_run))
    register(Exercise("stop_gradient_puzzle", CHAPTER, stop_gradient_puzzle, _factors, _PUZZLE_MISTAKES, call))
    register(Exercise("straight_through", CHAPTER, straight_through, _pairs, _ESTIMATE_MISTAKES, _estimate))
    register(Exercise("vq_losses", CHAPTER, vq_losses, _pairs, _LOSS_MISTAKES, _two_losses))
    register(Exercise("VectorQuantizer", CHAPTER, VectorQuantizer, _quantizers, _QUANTIZER_MISTAKES, _quantize))

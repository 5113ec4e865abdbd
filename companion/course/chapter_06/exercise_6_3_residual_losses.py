"""Exercise 6.3, losses by depth: codebook and commitment loss of each residual."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_06._stacks import sum_of_codes
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_at, zeros_for_none
from companion.quantizers import straight_through, vq_losses


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


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(62)

    def case(label: str, shape: tuple[int, ...], depth: int) -> Case:
        codes = [0.7**r * torch.randn(shape, generator=g) for r in range(depth)]
        return Case(label, (torch.randn(shape, generator=g), codes))

    return [
        case("three depths, latents (2, 4, 3, 2)", (2, 4, 3, 2), 3),
        case("one depth, 12 vectors of 3 numbers", (12, 3), 1),
        case("two depths, one vector of 5 numbers", (1, 5), 2),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Every term, and its gradient at the latents and at the codes of every depth; nothing flowing counts as 0."""
    z = case.arguments[0].clone().requires_grad_()
    codes = [code.clone().requires_grad_() for code in case.arguments[1]]
    given = list(codes)
    result = implementation(z, given)
    seen: Observed = {"the type of the result": type(result).__name__}
    seen["the number of codes after the call"] = len(given)
    if not isinstance(result, tuple) or len(result) != 2:
        return seen
    tensors = {"the latents": z} | {f"the codes of depth {r + 1}": code for r, code in enumerate(codes)}
    for name, terms in zip(("codebook", "commitment"), result, strict=True):
        seen[f"the {name} losses"] = terms
        if not isinstance(terms, Tensor) or terms.shape != (len(codes),):
            continue
        for r, term in enumerate(terms.unbind()):
            for at, gradient in zeros_for_none(gradients_at(term, tensors), tensors).items():
                seen[f"the gradient of the {name} loss of depth {r + 1} at {at}"] = gradient
    return seen


def _variant(
    *,
    looked_at: Callable[[Tensor, Tensor], Tensor] = lambda z, residual: residual,
    term: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = vq_losses,
    rest: Callable[[Tensor, Tensor], Tensor] = lambda residual, code: residual - code.detach(),
    finish: Callable[[Tensor, Tensor], Any] = lambda codebook, commitment: (codebook, commitment),
) -> Callable[[Tensor, Sequence[Tensor]], Any]:
    """The right answer with one of its parts replaced."""

    def losses(z: Tensor, codes: Sequence[Tensor]) -> Any:
        residual, terms = z, []
        for code in codes:
            terms.append(torch.stack(term(looked_at(z, residual), code)))
            residual = rest(residual, code)
        return finish(*torch.stack(terms, 1))

    return losses


def _of_the_sums(z: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    terms = [torch.stack(vq_losses(z, sum_of_codes(codes[: r + 1]))) for r in range(len(codes))]
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


MISTAKES = (
    Mistake(
        "residual not detached",
        _variant(rest=lambda residual, code: residual - code),
        "the values agree, but the residual carries a graph to the codes before it: a deeper commitment loss then "
        "moves an *earlier* codebook. Take away code.detach().",
    ),
    Mistake(
        "residual cut off from z",
        _variant(rest=lambda residual, code: (residual - code).detach()),
        "the values agree, but from the second depth on no gradient reaches z: the whole residual is detached, or "
        "computed without gradients, or a straight-through code was subtracted (1 − 1 = 0). Only the code is to be "
        "held fixed: residual − code.detach().",
    ),
    Mistake(
        "z detached before the loop",
        lambda z, codes: residual_losses(z.detach(), codes),
        "the values agree, but no commitment loss reaches z, not even the first: z is detached before the loop. Each "
        "commitment loss is to move the encoder.",
    ),
    Mistake(
        "z at every depth",
        _variant(looked_at=lambda z, residual: z),
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
        _variant(term=lambda z, code: vq_losses(z, code)[::-1]),
        "the two results are exchanged, or the stop-gradients are on the wrong sides: first the codebook losses (z "
        "held fixed), then the commitment losses (the codes held fixed).",
    ),
    Mistake(
        "no stop-gradient",
        _variant(term=lambda z, code: 2 * ((z - code).square().mean(),)),
        "both terms move both sides: the codebook loss needs the residual detached, the commitment loss the code.",
    ),
    Mistake(
        "summed over the depths",
        _variant(finish=lambda a, b: (a.sum(), b.sum())),
        "these are the sums over the depths; here one number a depth is wanted, (R,). Adding up comes later.",
    ),
    Mistake(
        "averaged over the depths",
        _variant(finish=lambda a, b: (a.mean(), b.mean())),
        "these are means over the depths; one number a depth is wanted, (R,). (And added up later, not averaged.)",
    ),
    Mistake(
        "divided by the number of depths",
        _variant(finish=lambda a, b: (a / len(a), b / len(b))),
        "each term is divided by the number of depths. Every depth counts in full: its codebook gets the gradient that "
        "it would get alone.",
    ),
    Mistake(
        "sum over vectors and dimensions",
        _variant(term=_sums),
        "each term is a sum over positions and dimensions; it is to be their mean.",
    ),
    Mistake(
        "weighted",
        _variant(finish=lambda a, b: (a, 0.25 * b)),
        "the commitment losses are multiplied by β already; here they are wanted before their weight.",
    ),
    Mistake(
        "one tensor",
        _variant(finish=lambda a, b: torch.stack([a, b])),
        "this is one tensor; two are wanted, (codebook losses, commitment losses).",
    ),
    Mistake(
        "two lists",
        _variant(finish=lambda a, b: (list(a.unbind()), list(b.unbind()))),
        "these are two lists; torch.stack makes a tensor (R,) of each.",
    ),
    Mistake(
        "values without graph",
        _variant(finish=lambda a, b: (a.detach(), b.detach())),
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
        _variant(term=lambda z, code: vq_losses(z, straight_through(z, code))),
        "you put the codes through straight_through before the losses, and that cuts them off from their codebook: no "
        "code would ever move. Losses are taken from the codes as they were looked up.",
    ),
    Mistake(
        "the list is emptied",
        _takes_the_codes,
        "the result is right, but the caller's list of codes has become shorter (pop, remove, del). Go through it with "
        "for.",
    ),
    Mistake(
        "other side detached",
        _variant(rest=lambda residual, code: residual.detach() - code),
        "the values agree, but the wrong one of the two is detached: hold the code fixed, and leave the "
        "residual its way to z.",
    ),
    Mistake(
        "codebook loss moves z",
        _variant(term=lambda z, code: ((z - code).square().mean(), vq_losses(z, code)[1])),
        "the values agree, but the codebook loss moves z as well. In it the residual is held fixed.",
    ),
    Mistake(
        "commitment moves codes",
        _variant(term=lambda z, code: (vq_losses(z, code)[0], (z - code).square().mean())),
        "the values agree, but the commitment loss moves its codes as well. In it the code is held fixed.",
    ),
    Mistake(
        "codebook loss twice",
        _variant(term=lambda z, code: 2 * vq_losses(z, code)[:1]),
        "the values agree, but both results are codebook losses: the second of vq_losses is the commitment "
        "loss, which moves z.",
    ),
    Mistake(
        "commitment loss twice",
        _variant(term=lambda z, code: 2 * vq_losses(z, code)[1:]),
        "the values agree, but both results are commitment losses: the first of vq_losses is the codebook "
        "loss, which moves codes.",
    ),
    Mistake(
        "codes detached",
        lambda z, codes: residual_losses(z, [code.detach() for code in codes]),
        "the values agree, but no codebook loss reaches its codes: they are detached before their losses are "
        "taken. Detach only what is subtracted from the residual.",
    ),
    Mistake(
        "sum over dimensions",
        _variant(
            term=lambda z, code: (
                (z.detach() - code).square().sum(1).mean(),
                (z - code.detach()).square().sum(1).mean(),
            )
        ),
        "each term is D times too large: a sum over the dimensions, and a mean over positions only. It is the"
        " mean over both.",
    ),
    Mistake(
        "not squared",
        _variant(term=lambda z, code: ((z.detach() - code).abs().mean(), (z - code.detach()).abs().mean())),
        "these are means of absolute values; the losses are squared.",
    ),
    Mistake(
        "root",
        _variant(term=lambda z, code: (vq_losses(z, code)[0].sqrt(), vq_losses(z, code)[1].sqrt())),
        "a root is taken of each term: leave the mean of squares as it is.",
    ),
    Mistake(
        "added",
        _variant(rest=lambda residual, code: residual + code.detach()),
        "the code is added to the residual; what is left after it is residual − code.detach().",
    ),
    Mistake(
        "reversed",
        _variant(finish=lambda a, b: (a.flip(0), b.flip(0))),
        "the numbers are in reverse, the last depth first.",
    ),
    Mistake(
        "running totals",
        _variant(finish=lambda a, b: (a.cumsum(0), b.cumsum(0))),
        "each number holds those of the depths before it as well: one depth's loss each is wanted.",
    ),
)

EXERCISE = Exercise(
    name="residual_losses",
    chapter="06_residual_quantisation",
    reference=residual_losses,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

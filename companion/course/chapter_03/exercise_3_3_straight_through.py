"""Exercise 3.3, straight-through: the value of z_q to the bit, with the gradient of z."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_03._gradients import PAIR, pair_cases, straight_through_to_both
from companion.course.checks.comparison import DIAGNOSTIC, Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import arguments_after, leaf_arguments, routes
from companion.quantizers import straight_through


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(34)
    z, z_q = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    return [*pair_cases(), Case("latents of about 10¹⁴", (1e14 * z, z_q))]


def run(implementation: Any, case: Case) -> Observed:
    """Where the gradient goes, the value, and whether it is z_q to the bit."""
    z, z_q = leaf_arguments(case)
    result = implementation(z, z_q)
    seen = routes("the result", result, dict(zip(PAIR, (z, z_q), strict=True)))
    seen["the result equals z_q to the bit"] = isinstance(result, Tensor) and torch.equal(result, z_q)
    seen |= arguments_after((z, z_q))
    if isinstance(result, Tensor) and result.shape == z_q.shape:
        seen[f"{DIAGNOSTIC}what is off"] = (result - z_q).detach()
    return seen


def _written_into_z(z: Tensor, z_q: Tensor) -> Tensor:
    with torch.no_grad():
        z.copy_(z_q)
    return z


def _added_into_z(z: Tensor, z_q: Tensor) -> Tensor:
    result = z_q.detach() + (z - z.detach())
    z.data += z_q - z
    return result


MISTAKES = (
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
        straight_through_to_both,
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
        also=(lambda z, z_q: z_q.detach() * (z / z.detach()),),
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
    Mistake(
        "by way of float64",
        lambda z, z_q: (z.double() + (z_q.double() - z.double()).detach()).to(z.dtype),
        "float64 makes the rounding smaller, and it comes back where z is large. z − sg[z] is exactly 0 in any dtype.",
    ),
    Mistake(
        "a pair",
        lambda z, z_q: (straight_through(z, z_q), z_q),
        "you give two things back. Wanted is one tensor, with the value of z_q.",
    ),
    Mistake(
        "the gradient clipped",
        lambda z, z_q: z_q.detach() + (z.clamp(-1, 1) - z.clamp(-1, 1).detach()),
        "no gradient passes where z lies outside [−1, 1] (clamp). Straight-through hands all of it on.",
    ),
    Mistake(
        "through another function",
        lambda z, z_q: z_q.detach() + (z.square() - z.square().detach()),
        "the gradient at z is multiplied by the slope of a function (a square, sigmoid, tanh). z itself has the slope "
        "1: z − sg[z].",
        also=(
            lambda z, z_q: z_q.detach() + (z.sigmoid() - z.sigmoid().detach()),
            lambda z, z_q: z_q.detach() + (z.tanh() - z.tanh().detach()),
        ),
    ),
    Mistake(
        "in the middle",
        lambda z, z_q: (z + z_q) / 2,
        "this is the mean of z and z_q. The value is z_q itself, and nothing flows to it.",
    ),
)

EXERCISE = Exercise(
    name="straight_through",
    chapter="03_vector_quantisation",
    reference=straight_through,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

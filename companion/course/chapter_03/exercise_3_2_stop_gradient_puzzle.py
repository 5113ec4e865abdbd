"""Exercise 3.2, a stop-gradient puzzle: the value of a·b, with the gradient for b turned round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.chapter_03._gradients import sg
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def stop_gradient_puzzle(a: Tensor, b: Tensor) -> Tensor:
    """The value a·b with the gradient of a·b at a and minus that at b: a descends where b ascends.

    (A gradient reversal for one factor: Ganin and Lempitsky 2015.)

    Shapes:
        a, b: the same shape → the same.
    """
    return a * b.detach() - a.detach() * b + (a * b).detach()


def cases() -> Sequence[Case]:
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


MISTAKES = (
    Mistake(
        "the product",
        lambda a, b: a * b,
        "the plain product: its gradient at b is +a. b is to get −a, which needs a term of its own. (clone() does not "
        "stop a gradient, detach() does.)",
    ),
    Mistake(
        "minus the product",
        lambda a, b: -a * b,
        "minus the product turns the sign of everything: value, and both gradients.",
    ),
    Mistake(
        "b cut off",
        lambda a, b: a * sg(b),
        "value and a's gradient are right, but b gets no gradient at all. It is to get −a: subtract sg[a]·b, then "
        "repair the value.",
    ),
    Mistake(
        "a cut off",
        lambda a, b: sg(a) * b,
        "this teaches b only, and in the wrong direction: a·sg[b] is the term that teaches a.",
    ),
    Mistake(
        "value zero",
        lambda a, b: a * sg(b) - sg(a) * b,
        "both gradients are right, but the two terms cancel and the value is 0. Add the value back without a gradient: "
        "sg[a·b].",
    ),
    Mistake(
        "both turned",
        lambda a, b: -a * b + 2 * sg(a * b),
        "the value is right, but both gradients are turned, and only b's is to be: the term for a is a·sg[b], with a "
        "plus.",
    ),
    Mistake(
        "value repaired with a gradient",
        lambda a, b: a * sg(b) - sg(a) * b + a * b,
        "the value is right, but the term that repairs it brings gradients of its own: put it into sg[…].",
    ),
    Mistake(
        "value twice",
        lambda a, b: a * sg(b) - sg(a) * b + 2 * sg(a * b),
        "both gradients are right and the value is 2·a·b: the two terms already cancel to 0, so add sg[a·b] once.",
    ),
    Mistake(
        "sum of both",
        lambda a, b: a * sg(b) + sg(a) * b,
        "a·sg[b] + sg[a]·b has twice the value and the product's own gradients: b's term needs a minus.",
    ),
    Mistake(
        "the players swapped",
        lambda a, b: -a * sg(b) + sg(a) * b + sg(a * b),
        "the roles are swapped: a is to get the gradient of a·b, and b minus that.",
    ),
    Mistake(
        "all cut off",
        lambda a, b: sg(a * b),
        "the value is right, but nobody gets a gradient.",
    ),
    Mistake(
        "minus inside",
        lambda a, b: a * (sg(b) - b) + sg(a * b),
        "the value and b's gradient are right, but a gets none (in a·(sg[b] − b) the bracket is 0): its term is "
        "a·sg[b].",
    ),
    Mistake(
        "a Python number",
        lambda a, b: (a * b).sum().item(),
        ".item() gives a Python number, through which no gradient can flow. Return the tensor.",
    ),
    Mistake(
        "summed",
        lambda a, b: stop_gradient_puzzle(a, b).sum(),
        "this is one number, a sum or a mean. Value and gradients are wanted elementwise, in the shape of a and b.",
        also=(lambda a, b: stop_gradient_puzzle(a, b).mean(),),
    ),
    Mistake(
        "weights for gradients",
        lambda a, b: a * sg(b) - b * sg(b) + sg(b * b),
        "the factor that is held fixed decides the gradient: b's gradient is to be −a, so its term is −sg[a]·b.",
    ),
    Mistake(
        "divided by b",
        lambda a, b: a * sg(b).square() / b,
        "value and gradients are right, but where b is 0 you divide by it, and get NaN. Sums of products do without.",
    ),
    Mistake(
        "gradients of one",
        lambda a, b: sg(a * b) + (a - sg(a)) - (b - sg(b)),
        "the gradients are 1 and −1. A gradient is the factor that stands beside: a·sg[b] gives a the gradient b.",
    ),
    Mistake(
        "each its own gradient",
        lambda a, b: (a.square() - b.square()) / 2 + sg(a * b - (a.square() - b.square()) / 2),
        "each gets itself as its gradient. It is the other one that stands beside it: a·sg[b], sg[a]·b.",
    ),
    Mistake(
        "b's gradient of one",
        lambda a, b: a * sg(b) - (b - sg(b)),
        "the gradient at b is −1. It is to be −a: multiply b by sg[a].",
    ),
    Mistake(
        "b's gradient by the square",
        lambda a, b: a * sg(b) - sg(a * a) * b + sg(a * a * b),
        "the gradient at b is −a². The factor beside b is sg[a].",
    ),
)

EXERCISE = Exercise(
    name="stop_gradient_puzzle",
    chapter="03_vector_quantisation",
    reference=stop_gradient_puzzle,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

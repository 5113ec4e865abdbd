"""What a hint says of a wrong result that no listed mistake explains: facts that its numbers show."""

import math

import pytest
import torch

from companion.course.checks import Case, Exercise, Mistake, examine
from companion.course.checks.runners import call

X = torch.linspace(-2, 3, 12).reshape(3, 4)


NONE_LIKE_IT = (Mistake("m", lambda *a: None, "the listed hint"),)


def hint(reference, other, *inputs, mistakes=NONE_LIKE_IT):
    cases = [Case(f"input {i}", (x,)) for i, x in enumerate(inputs)]
    return examine(Exercise("f", "00", reference, lambda: cases, mistakes, call), other).hint


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda x: -2 * x, "the wrong sign"),
        (lambda x: 4 * x, "twice"),
        (lambda x: x, "half"),
        (lambda x: 2 * x / math.log(2), "bits"),
        (lambda x: 6.5 * x, "everywhere 3.25 times"),
        (lambda x: 2 * x + 0.25, "off by the same number everywhere: +0.25"),
        (lambda x: 2 * x.abs(), "but for its sign"),
        (lambda x: 2 * x.clamp(min=-0.5), "cut off at -1"),
        (lambda x: 2 * x.flip(0), "right numbers in other places"),
        (lambda x: torch.cat([2 * x[:1], x[1:] ** 2]), "at the first place of the first axis only"),
        (lambda x: 2 * x.log(), "NaN"),
        (lambda x: 2 / (0 * x.abs()) * 1.0, "∞"),
        (lambda x: (2 * x).double(), "float64 goes out"),
        (lambda x: (2 * x).long(), "dtype not: int64 in place of float32"),
        (lambda x: (2 * x)[None], "an axis of length 1 is too many"),
        (lambda x: 2 * x.T, "the axes come in another order"),
        (lambda x: 2 * x.flatten(), "melted into one"),
        (lambda x: 2 * x.sum(), "too much was summed"),
        (lambda x: 2 * x.sum().item(), "a Python number"),
        (lambda x: list(2 * x), "a list"),
        (lambda x: (2 * x).reshape(28, 28), "another number of elements"),
        (lambda x: x @ x, "(n, k) @ (k, m)"),
        (lambda x: x + torch.ones(5), "whose shapes do not fit"),
        (lambda x: x.sum(3), "no such axis"),
    ],
)
def test_the_hint_says_what_the_numbers_show(other, says):
    assert says in hint(lambda x: 2 * x, other, X)


def test_a_result_that_differs_in_no_such_way_gets_no_hint():
    assert hint(lambda x: 2 * x, lambda x: x.sin() + x.roll(1), X) == ""


def test_a_factor_between_single_numbers_has_to_be_the_same_on_several_inputs():
    assert "the wrong sign" in hint(lambda x: x.sum(), lambda x: -x.sum(), X, 3 * X, X + 1)
    assert hint(lambda x: x.sum(), lambda x: x.square().sum(), X, 3 * X, X + 1) == ""
    assert hint(lambda x: x.sum(), lambda x: -x.sum(), X) == ""  # on one input any two numbers have a factor


def test_a_mistake_that_agrees_by_chance_on_one_number_does_not_give_its_hint():
    """Rounding up and halving agree on 4, the first input, and on no other."""
    rounds_up = Mistake("rounded up", lambda n: -(-n // 3), "you round up")
    inputs = 4, 10, 13, 16

    def halves(n):
        return n // 2

    assert -(-4 // 3) == halves(4) != 4 // 3
    assert hint(lambda n: n // 3, halves, *inputs, mistakes=(rounds_up,)) == ""
    assert hint(lambda n: n // 3, lambda n: -(-n // 3), *inputs, mistakes=(rounds_up,)) == "you round up"

"""How results are compared, what the message says of a difference, and which hint it gets."""

import pytest
import torch

import companion
from companion.course.checks import EXERCISES, Case, Exercise, Mistake, examine
from companion.course.checks.runners import call


def compare(reference, other, *arguments, **options):
    case = Case("a case", arguments, **options)
    exercise = Exercise("f", "00", reference, lambda: [case], (Mistake("m", lambda *a: None, "hint"),), call)
    return examine(exercise, other)


def mean_square(x_hat, x):
    return (x_hat - x).pow(2).mean()


X = torch.linspace(1, 2, 6).reshape(2, 3)


def test_gradients_are_spoken_of_only_where_some_were_compared():
    assert "matches: values and gradients, on" in examine(EXERCISES["mse"], mean_square).text
    assert "matches: values, on" in examine(EXERCISES["conv_output_size"], companion.backbones.conv_output_size).text
    nobody = compare(torch.sign, torch.sign, X.round(), gradient_of={})
    assert "matches: values, on" in nobody.text
    none = compare(lambda x: x.detach(), lambda x: x.detach(), X, gradient_of={0: "x"})
    assert "matches: values, on" in none.text


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda x: x.double() * 2, "float64"),
        (lambda x: x[:1] * 2, "(1, 3)"),
        (lambda x: x * 2.01, "numbers differ"),
        (lambda x: x * float("nan"), "nan"),
        (lambda x: x.mul_(2), "x after the call"),
        (lambda x: "a string", "'a string'"),
    ],
)
def test_what_differs_is_named(other, says):
    report = compare(lambda x: x * 2, other, X)
    assert report.status == "differs"
    assert says in report.text


def test_equal_values_with_another_gradient_are_caught():
    """The comparison of values alone would let this pass: the proof that gradients are looked at."""

    def wrong(x):
        return x.detach() * 2 + 0 * x

    assert compare(lambda x: x * 2, wrong, X).status == "matches"
    report = compare(lambda x: x * 2, wrong, X, gradient_of={0: "x"})
    assert report.status == "differs"
    assert "the gradient of x" in report.text


def test_an_input_that_does_not_count_may_be_left_out_but_no_other():
    both = {0: "x", 1: "y"}
    assert compare(lambda x, y: 2 * x + 0 * y, lambda x, y: 2 * x, X, X, gradient_of=both).status == "matches"
    report = compare(lambda x, y: 2 * x + y, lambda x, y: 2 * x + y.detach(), X, X, gradient_of=both)
    assert report.status == "differs"
    assert "nothing flows back" in report.text


def test_writing_into_an_input_that_wants_a_gradient_is_explained():
    def doubled(x):
        x *= 2
        return x

    report = compare(lambda x: x * 2, doubled, X, gradient_of={0: "x"})
    assert "writes into its input" in report.hint


def test_a_mistake_that_raises_on_another_input_is_still_known_by_the_first_that_differs():
    """But a mistake that is the same on all inputs goes before it."""

    def negative(x):
        return -x

    def raises_in_float64(x):
        if x.dtype == torch.float64:
            raise TypeError("float64")
        return -x

    def hint(*mistakes):
        listed = tuple(Mistake(f"mistake {i}", f, f"hint {i}") for i, f in enumerate(mistakes))
        cases = [Case("zeros", (0 * X,)), Case("float32", (X,)), Case("float64", (X.double(),))]
        return examine(Exercise("twice", "", lambda x: 2 * x, lambda: cases, listed, call), raises_in_float64).hint

    assert hint(lambda x: 3 * x, negative) == "hint 1"
    assert hint(negative, raises_in_float64) == "hint 1"
    assert not hint(lambda x: 3 * x).startswith("hint")  # on the zeros it is the same


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda x: x.detach() * 2 + 0 * x, "detach, .data, .item() or no_grad"),
        (lambda x: torch.where(x > 0, 2 * x, (x - x).sqrt()), "the gradient is NaN"),
        (lambda x: (2 * x).detach(), "no gradient arrives"),
    ],
)
def test_a_gradient_that_is_another_says_where_to_look(cut, says):
    assert says in compare(lambda x: x * 2, cut, X, gradient_of={0: "x"}).hint


def test_a_tensor_that_the_gradient_needs_and_that_was_written_over_is_explained():
    def in_place(x):
        squared = x.square().exp()  # whose gradient is made of its own value
        squared += 1
        return squared

    report = compare(lambda x: x.square().exp() + 1, in_place, X, gradient_of={0: "x"})
    assert "autograd still needs" in report.hint
    assert compare(lambda x: x.square().exp() + 1, in_place, X).status == "matches"


def test_an_input_that_was_written_into_is_named_with_what_writes():
    def written(first, second):
        second[0] = 0
        return first

    report = compare(lambda first, second: first, written, X, X)
    assert "second after the call: expected" in report.text
    assert "x[…] = …" in report.hint


def test_zero_has_no_sign():
    assert "expected 0\n  got 1" in compare(lambda x: -0.0 * x, lambda x: 0 * x + 1, X).text


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("shift", lambda codes, k: (codes.flatten(1), codes.flatten(1)), "the inputs: expected"),
        (
            "multiplications",
            lambda *sizes: (EXERCISES["multiplications"].reference(*sizes)[0], 1),
            "flattened transformer",
        ),
    ],
)
def test_of_two_results_it_says_which_differs(name, wrong, says):
    assert says in examine(EXERCISES[name], wrong).text


def test_integers_are_compared_exactly():
    big = torch.tensor([10_000_000])
    assert compare(lambda x: x, lambda x: x + 1, big).status == "differs"


@pytest.mark.parametrize("wrap", [tuple, list, lambda parts: dict(enumerate(parts))])
def test_mistakes_that_give_several_tensors_at_once_are_compared_part_by_part(wrap):
    """Python's own != on them raises."""
    wrong = [lambda x, by=by: wrap([x + by, x]) for by in (0, 1)]
    exercise = Exercise(
        "several",
        "",
        lambda x: x,
        lambda: [Case("one input", (torch.arange(3.0),))],
        tuple(Mistake(str(by), f, f"hint {by}") for by, f in enumerate(wrong)),
        call,
    )
    assert [examine(exercise, f).hint for f in wrong] == ["hint 0", "hint 1"]


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        (lambda x: (x.float() / 3).double(), "only the first digits"),
        (lambda x: x / (3 + 1e-6), "only the first digits"),
        (lambda x: (x / 3).float(), "float64 comes in and float32 goes out"),
        (lambda x: x @ torch.ones(3, 3), "float64 meets float32"),
        (lambda x: (x / 3, x), "several things"),
        (lambda x: x.reshape(2, 6 / 2) / 3, "divide by //"),
    ],
)
def test_what_is_lost_of_float64_shows_and_is_explained(other, hint):
    report = compare(lambda x: x / 3, other, X.double())
    assert report.status == "differs"
    assert hint in report.hint, report.text


def test_float64_is_compared_closely_and_float32_is_not():
    def off(x):
        return x * (1 + 1e-6)

    assert compare(torch.clone, off, X).status == "matches"
    report = compare(torch.clone, off, X.double())
    assert report.status == "differs"
    assert "expected 2\n" in report.text
    assert "got 2.000002 at" in report.text
    assert compare(torch.clone, lambda x: x * (1 + 1e-12), X.double()).status == "matches"


def test_a_mistake_in_another_form_gives_its_hint():
    case = Case("a case", (X,))
    mistake = Mistake("m", lambda x: x + 1, "not a sum", (lambda x: 1 - x,))
    exercise = Exercise("f", "00", torch.clone, lambda: [case], (mistake,), call)
    assert [examine(exercise, form).hint for form in mistake.forms] == ["not a sum"] * 2
    assert examine(exercise, lambda x: 2 * x).hint != "not a sum"

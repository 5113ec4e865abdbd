"""What `check` says and gives back in a notebook, whatever the answer does and whatever the notebook has set."""

import _thread
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from exercise_solutions import solution_of
from torch import Tensor

import companion
from companion.course import session
from companion.course.checks import EXERCISES, check, examine

ROOT = Path(__file__).resolve().parents[1]


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).pow(2).mean()


RIGHT = mse


def test_a_right_answer_is_what_the_notebook_goes_on_with(capsys):
    assert check(RIGHT) is RIGHT
    assert capsys.readouterr().out.startswith("✅ mse matches")


def test_a_blank_goes_on_with_the_companion(capsys):
    def mse(x_hat, x):
        raise NotImplementedError

    assert check(mse) is companion.metrics.mse
    assert capsys.readouterr().out.startswith("⬜ mse: not attempted yet")


def test_a_wrong_answer_says_on_which_input_what_was_expected_and_why(capsys):
    def mse(x_hat, x):
        return (x_hat - x).square().sum()

    assert check(mse) is companion.metrics.mse
    out = capsys.readouterr().out
    for part in (
        "❌ mse differs on input 1 of 4",
        "expected",
        "got",
        "Hint: this is the sum",
        "goes on with the companion",
    ):
        assert part in out


def test_an_exception_becomes_a_cross_with_its_line(capsys):
    def mse(x_hat, x):
        difference = x_hat - x
        return difference.sqare().mean()

    assert check(mse) is companion.metrics.mse
    out = capsys.readouterr().out
    assert "AttributeError" in out
    assert "return difference.sqare().mean()" in out
    assert str(ROOT) not in out  # no path of anybody's machine


class Unusual(BaseException):
    """As CancelledError is: no Exception."""


@pytest.mark.parametrize("error", [SystemExit, RecursionError, ZeroDivisionError, KeyboardInterrupt, Unusual])
def test_no_exception_of_the_readers_code_stops_the_notebook(error, capsys):
    def mse(x_hat, x):
        raise error("boom")

    assert check(mse) is companion.metrics.mse
    assert "boom" in capsys.readouterr().out


def test_a_real_interrupt_stops_the_check():
    def mse(x_hat, x):
        _thread.interrupt_main()  # what Ctrl-C does
        return (x_hat - x).square().mean()

    with pytest.raises(KeyboardInterrupt):
        check(mse)


def test_beside_the_main_thread_where_no_interrupt_comes_a_check_works_too(capsys):
    def mse(x_hat, x):
        raise KeyboardInterrupt

    given = []
    thread = threading.Thread(target=lambda: given.extend([check(mse), check(RIGHT)]))
    thread.start()
    thread.join()
    assert given == [companion.metrics.mse, RIGHT]


def test_torchs_own_not_implemented_is_no_blank(capsys):
    def mse(x_hat, x):
        return ((x_hat - x) ^ 2).mean()

    assert check(mse) is companion.metrics.mse
    out = capsys.readouterr().out
    assert "❌" in out
    assert "bitwise exclusive or" in out


def test_a_class_without_forward_is_no_blank():
    class Encoder(companion.Encoder):
        forward = torch.nn.Module.forward

    report = examine(EXERCISES["Encoder"], Encoder)
    assert report.status == "differs"
    assert "forward" in report.text


def test_method_without_brackets():
    report = examine(EXERCISES["mse"], lambda x_hat, x: (x_hat - x).square().mean)
    assert "brackets" in report.hint


def test_only_the_first_line_of_a_long_message_is_shown():
    message = "first\n" + "second"

    def wordy(x_hat, x):
        raise RuntimeError(message)

    text = examine(EXERCISES["mse"], wordy).text
    assert "first" in text
    assert "second" not in text


def test_wrong_signature_is_a_cross_too(capsys):
    def mse(x):
        return x

    assert check(mse) is companion.metrics.mse
    assert "TypeError" in capsys.readouterr().out


def test_nothing_returned(capsys):
    def mse(x_hat, x):
        (x_hat - x).square().mean()

    check(mse)
    assert "return" in capsys.readouterr().out.partition("Hint:")[2]


@pytest.fixture
def strict(monkeypatch):
    monkeypatch.setattr(session, "_STRICT", True)


def blank(x_hat, x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (blank, "not attempted"),
        (lambda x_hat, x: x, "differs"),
        (lambda x_hat, x: sys.exit(), "SystemExit"),
        (companion.metrics.mse, "companion's own"),
    ],
)
def test_strict_raises_for_all_that_is_no_right_answer_of_the_readers(answer, said, strict):
    mse = answer
    with pytest.raises(AssertionError, match=said):
        check(mse)
    assert check(RIGHT) is RIGHT


def test_a_notebook_cannot_turn_strict_off():
    program = """
import os
import companion
from companion.course.checks import check
os.environ["COMPANION_STRICT"] = "0"
mse = companion.metrics.mse
check(mse)
"""
    env = os.environ | {"COMPANION_STRICT": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: mse is the companion's own here" in done.stderr


def test_the_companion_is_not_mistaken_for_the_readers_answer(capsys):
    """After a cross the name holds the companion's; checking that again must not say that the reader got it right."""
    assert check(companion.metrics.mse) is companion.metrics.mse
    out = capsys.readouterr().out
    assert "✅" not in out
    assert "companion's own" in out


@pytest.mark.parametrize("right", [lambda x_hat, x: ((x_hat - x) ** 2).mean(), torch.nn.functional.mse_loss])
def test_what_was_assigned_instead_of_defined_is_known_by_its_variable(right):
    mse = right
    assert check(mse) is right


def test_a_module_in_place_of_a_function_is_checked_too():
    mse = torch.nn.MSELoss()
    assert check(mse) is mse


@pytest.mark.parametrize("nonsense", [None, 3, "mse", torch.zeros(2)])
def test_something_else_under_the_name_is_a_cross(nonsense, capsys):
    mse = nonsense
    assert check(mse) is companion.metrics.mse
    assert capsys.readouterr().out.startswith("❌ mse")


def test_unknown_exercise_is_named():
    def mean_squared_error(x_hat, x):
        return x

    with pytest.raises(ValueError, match="mean_squared_error"):
        check(mean_squared_error)


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for exercise in EXERCISES.values():
        examine(exercise, exercise.reference)
    assert torch.equal(torch.get_rng_state(), before)


DEFAULTS = {
    "no gradients": (torch.is_grad_enabled, torch.set_grad_enabled, False),
    "float64": (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
        True,
    ),
    "the meta device": (torch.get_default_device, torch.set_default_device, torch.device("meta")),
    "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
}


PLACED = pytest.param("the meta device", marks=pytest.mark.cpu_only("sets the device itself"))


@pytest.fixture(params=[PLACED if name in PLACED.values else name for name in DEFAULTS])
def default(request):
    """A default that somebody may have set: how to see it, how to set it, and to what."""
    get, put, value = DEFAULTS[request.param]
    before = get()
    yield get, put, value
    put(before)
    torch.set_default_device(None)  # "cpu" put there would stay a mode that every later call passes through


def test_a_check_means_the_same_whatever_the_notebook_has_set_and_leaves_that_as_it_was(default, capsys):
    get, put, value = default
    put(value)
    for name in ("mse", "Encoder", "interpolate", "RQTransformer", "restart"):
        assert examine(EXERCISES[name], solution_of(EXERCISES[name])).status == "matches"
    assert "values and gradients" in examine(EXERCISES["mse"], RIGHT).text
    assert examine(EXERCISES["mse"], lambda x_hat, x: RIGHT(x_hat.detach(), x)).status == "differs"
    assert get() == value


def test_an_answer_that_sets_something_spoils_neither_the_next_input_nor_the_notebook(default):
    get, put, value = default
    before = get()

    def detached_from_the_second_input_on(x_hat, x):
        put(value)
        return RIGHT(x_hat.detach() if len(x_hat) == 1 else x_hat, x)

    assert examine(EXERCISES["mse"], detached_from_the_second_input_on).status == "differs"
    assert get() == before


def test_in_inference_mode_a_detached_answer_is_seen_too():
    with torch.inference_mode():
        assert examine(EXERCISES["mse"], RIGHT).status == "matches"
        assert examine(EXERCISES["mse"], lambda x_hat, x: RIGHT(x_hat.detach(), x)).status == "differs"
        assert torch.is_inference_mode_enabled()


def test_an_object_in_place_of_its_class_is_said_to_be_one(capsys):
    assert check(companion.Encoder(2)) is companion.Encoder
    assert "❌ Encoder: got an object, want the class: check(Encoder)" in capsys.readouterr().out

"""The checks are themselves checked: right answers pass, each written mistake is caught with its own hint."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

import companion
from companion.course.checks import EXERCISES, check, examine
from companion.course.checks.core import Case, Exercise, Mistake, call

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "solutions").glob("*.py"))
MISTAKES = [(e, m) for e in EXERCISES.values() for m in e.mistakes]


def solution_of(exercise: Exercise) -> object:
    """The answer as it stands in the chapter's source, in a module of its own with the chapter's other answers."""
    tree = ast.parse((ROOT / "solutions" / f"{exercise.chapter}.py").read_text(encoding="utf-8"))
    wanted = (ast.Import, ast.ImportFrom)
    body = [node for node in tree.body if isinstance(node, wanted)]
    answers = {e.name for e in EXERCISES.values() if e.chapter == exercise.chapter}
    body += [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in answers]
    scope: dict[str, object] = {"__name__": "solution"}
    exec(compile(ast.Module(body, []), "<solution>", "exec"), scope)
    return scope[exercise.name]


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_check_accepts_the_companion(exercise):
    assert examine(exercise, exercise.reference).status == "matches"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_check_accepts_the_solution(exercise):
    report = examine(exercise, solution_of(exercise))
    assert report.status == "matches", report.text


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=[f"{e.name}: {m.name}" for e, m in MISTAKES])
def test_check_rejects_the_mistake_with_its_own_hint(exercise, mistake):
    report = examine(exercise, mistake.implementation)
    assert report.status == "differs"
    assert report.hint == mistake.hint
    assert mistake.hint in report.text


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_every_exercise_lists_at_least_six_mistakes_each_with_a_hint_of_its_own(exercise):
    assert len(exercise.mistakes) >= 6
    assert len({m.hint for m in exercise.mistakes}) == len(exercise.mistakes)
    assert all(m.hint.strip() for m in exercise.mistakes)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_every_blank_in_a_chapter_is_an_exercise_and_every_exercise_of_it_is_checked_there(source):
    text = source.read_text(encoding="utf-8")
    checked = {
        node.args[0].id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
    }
    assert checked == {e.name for e in EXERCISES.values() if e.chapter == source.stem}
    code_blanks = sum(line.strip() == "### BEGIN SOLUTION" for line in text.splitlines())
    assert code_blanks == len(checked)


# What the reader sees ----------------------------------------------------------------------------------------------


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
        "❌ mse differs on input 1 of 3",
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


@pytest.mark.parametrize("error", [SystemExit, RecursionError, ZeroDivisionError])
def test_no_exception_of_the_readers_code_stops_the_notebook(error, capsys):
    def mse(x_hat, x):
        raise error("boom")

    assert check(mse) is companion.metrics.mse
    assert "boom" in capsys.readouterr().out


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


def test_strict_raises_for_what_is_wrong_or_missing(monkeypatch):
    monkeypatch.setenv("COMPANION_STRICT", "1")

    def mse(x_hat, x):
        raise NotImplementedError

    with pytest.raises(AssertionError, match="not attempted"):
        check(mse)
    assert check(RIGHT) is RIGHT


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


def test_a_right_encoder_written_otherwise_passes_and_weights_load_both_ways():
    class Encoder(torch.nn.Module):
        def __init__(self, latent_dim, in_channels=1, hidden=32, image_size=28):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
            self.conv2 = torch.nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1)
            self.to_latent = torch.nn.Linear(2 * hidden * (image_size // 4) ** 2, latent_dim)

        def forward(self, x):
            h = torch.nn.functional.relu(self.conv2(torch.clamp(self.conv1(x), min=0)))
            return self.to_latent(h.reshape(len(x), -1))

    assert check(Encoder) is Encoder
    mine, theirs = Encoder(3), companion.Encoder(3)
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())


def test_other_layers_than_given_are_named():
    class Encoder(torch.nn.Module):
        def __init__(self, latent_dim, in_channels=1, hidden=32, image_size=28):
            super().__init__()
            self.net = torch.nn.LazyLinear(latent_dim)

        def forward(self, x):
            return self.net(x.flatten(1))

    report = examine(EXERCISES["Encoder"], Encoder)
    assert report.status == "differs"
    assert "names of the weights" in report.text


def test_zero_grad_at_the_end_of_the_step_is_right_too():
    def train_step(model, optimizer, x):
        loss = model(x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    assert examine(EXERCISES["train_step"], train_step).status == "matches"


# The comparison itself -----------------------------------------------------------------------------------------------


def compare(reference, other, *arguments, **options):
    case = Case("a case", arguments, **options)
    exercise = Exercise("f", "00", reference, lambda: [case], (Mistake("m", lambda *a: None, "hint"),), call)
    return examine(exercise, other)


X = torch.linspace(1, 2, 6).reshape(2, 3)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda x: x.double() * 2, "float64"),
        (lambda x: x[:1] * 2, "(1, 3)"),
        (lambda x: x * 2.01, "numbers differ"),
        (lambda x: x * float("nan"), "nan"),
        (lambda x: x.mul_(2), "argument 1 after the call"),
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


def test_a_loss_that_takes_a_wrong_way_is_named_also_where_no_listed_mistake_explains_it():
    def vq_losses(z, z_q):
        return 3 * (z - z_q).square().mean(), (z - z_q.detach()).square().mean()

    report = examine(EXERCISES["vq_losses"], vq_losses)
    assert report.hint == ""
    assert "the codebook loss sends a gradient to" in report.text
    assert "got 'z (the encoder) and z_q (the codebook)'" in report.text


def test_a_right_quantizer_written_otherwise_passes():
    class VectorQuantizer(torch.nn.Module):
        def __init__(self, num_codes, dim, *, commitment_weight=0.25):
            super().__init__()
            self.commitment_weight = commitment_weight
            self.codebook = torch.nn.Parameter(torch.zeros(num_codes, dim))

        def forward(self, z):
            flat = z.flatten(2).transpose(1, 2) if z.ndim > 2 else z[:, None]  # (B, T, D)
            k = (flat[:, :, None] - self.codebook).square().sum(-1).argmin(-1)
            codes = torch.nn.functional.one_hot(k, len(self.codebook)).to(z.dtype) @ self.codebook
            losses = {
                "codebook": torch.nn.functional.mse_loss(codes, flat.detach()),
                "commitment": torch.nn.functional.mse_loss(flat, codes.detach()),
            }
            codes = flat + (codes - flat).detach()
            z_q = codes.transpose(1, 2).reshape(z.shape)
            loss = losses["codebook"] + self.commitment_weight * losses["commitment"]
            return companion.quantizers.Quantized(z_q, k.reshape(z.shape[:1] + z.shape[2:]), loss, losses)

    assert check(VectorQuantizer) is VectorQuantizer

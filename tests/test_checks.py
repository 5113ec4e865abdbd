"""The checks are themselves checked: right answers pass, each written mistake is caught with its own hint."""

import _thread
import ast
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import companion
from companion.course import session
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


@pytest.fixture(params=DEFAULTS)
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


def test_gradients_are_spoken_of_only_where_some_were_compared():
    assert "matches: values and gradients, on" in examine(EXERCISES["mse"], RIGHT).text
    assert "matches: values, on" in examine(EXERCISES["conv_output_size"], companion.backbones.conv_output_size).text
    nobody = compare(torch.sign, torch.sign, X.round(), gradient_of={})
    assert "matches: values, on" in nobody.text
    none = compare(lambda x: x.detach(), lambda x: x.detach(), X, gradient_of={0: "x"})
    assert "matches: values, on" in none.text


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


@pytest.mark.cpu_only("one of its layers, a lazy one, exists only as a plain tensor")
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


def test_the_loss_of_logits_whose_codes_are_on_the_last_axis_is_explained():
    class RQTransformer(companion.RQTransformer):
        def forward(self, codes, labels=None):
            logits = super().forward(codes, labels).logits
            return companion.priors.PriorOutput(logits, torch.nn.functional.cross_entropy(logits, codes))

    report = examine(EXERCISES["RQTransformer"], RQTransformer)
    assert report.status == "differs"
    assert "axis 1" in report.hint


def test_a_model_whose_weights_got_gradients_is_told_so():
    report = examine(EXERCISES["RQTransformer"], solution_of(EXERCISES["RQTransformer"]))
    assert report.text.startswith("✅ RQTransformer matches: values and gradients")


def test_a_loop_over_positions_reads_what_the_spatial_transformer_reads():
    """With one position it touches no table, where the companion's tables get a gradient of zeros."""

    def spatial_inputs(stacks, tables, start, positions):
        t, r = stacks.shape[1:]
        u = [sum(tables[s][stacks[:, i, s]] for s in range(r)) for i in range(t - 1)]
        return torch.stack([start, *u], 1) + positions

    assert check(spatial_inputs) is spatial_inputs


def test_a_loop_down_the_stack_reads_what_the_depth_transformer_reads():
    """With one code a position it touches no table."""

    def depth_inputs(h, stacks, tables, depths):
        sums, inputs = 0, [h + depths[0]]
        for r in range(stacks.shape[2] - 1):
            sums = sums + tables[r][stacks[..., r]]
            inputs.append(sums + depths[r + 1])
        return torch.stack(inputs, 2)

    assert check(depth_inputs) is depth_inputs


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
    assert hint(lambda x: 3 * x) == ""  # on the zeros it is the same


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
        ("multiply_adds", lambda *sizes: (EXERCISES["multiply_adds"].reference(*sizes)[0], 1), "flattened transformer"),
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


# Chapters 02 and 03 ------------------------------------------------------------------------------------------------


def bin_by_cases(x, mean, log_scale):
    """One formula for each kind of bin."""
    tail = torch.nn.functional.logsigmoid
    scale = log_scale.exp()
    below, above = (x - 1 / 510 - mean) / scale, (x + 1 / 510 - mean) / scale
    inside = tail(above) + tail(-below) + torch.log1p(-torch.exp(below - above))
    return torch.where(x == 0, tail(above), torch.where(x == 1, tail(-below), inside))


def bin_by_difference(x, mean, log_scale, added):
    below, above = ((x + half - mean) / log_scale.exp() for half in (-1 / 510, 1 / 510))
    tail = torch.nn.functional.logsigmoid
    inside = (torch.sigmoid(above) - torch.sigmoid(below) + added).log()
    return torch.where(x == 0, tail(above), torch.where(x == 1, tail(-below), inside))


def losses_by_torch(z, z_q):
    mean_square = torch.nn.functional.mse_loss
    return [mean_square(z_q, z.detach()), mean_square(z, z_q.detach())]


def quantizer_with(losses):
    """A right quantizer, but for what ``losses`` makes of the losses in the dict."""

    class VectorQuantizer(companion.quantizers.VectorQuantizer):
        def forward(self, z):
            right = super().forward(z)
            named = {name: losses(loss) for name, loss in right.losses.items()}
            return companion.quantizers.Quantized(right.z_q, right.indices, right.loss, named)

    return VectorQuantizer


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("reparameterize", lambda m, s, e: torch.addcmul(m, s.exp().sqrt(), e)),
        ("discretized_logistic", bin_by_cases),
        ("stop_gradient_puzzle", lambda a, b: 2 * a * b.detach() - a * b),
        ("vq_losses", losses_by_torch),
        ("VectorQuantizer", quantizer_with(torch.clone)),
    ],
)
def test_right_answers_of_chapters_02_and_03_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


@pytest.mark.parametrize(
    ("exercise", "wrong", "hint"),
    [
        ("reparameterize", lambda m, s, e: torch.distributions.Normal(m, (s / 2).exp()).rsample(), "noise of your own"),
        ("reparameterize", lambda m, s, e: m + (s / 2).exp() * torch.randn(m.shape), "noise of your own"),
        ("discretized_logistic", lambda *a: bin_by_difference(*a, added=1e-8), "log 1e-8"),
        ("discretized_logistic", lambda *a: bin_by_difference(*a, added=1e-10), "log 1e-10"),
        ("stop_gradient_puzzle", lambda a, b: 2 * (a * b).detach() - a * b, "both gradients are turned"),
        ("vq_losses", lambda z, q: [(a - b).norm(dim=-1).mean() for a, b in ((z.detach(), q), (z, q.detach()))],
         "norm is a length"),
        ("vq_losses", lambda z, q: [(a - b).square().sum(-1).mean() for a, b in ((z.detach(), q), (z, q.detach()))],
         "you sum over an axis"),
        ("VectorQuantizer", quantizer_with(torch.Tensor.item), "are Python numbers"),
    ],
)  # fmt: skip
def test_wrong_answers_of_chapters_02_and_03_written_otherwise_get_a_hint(exercise, wrong, hint):
    report = examine(EXERCISES[exercise], wrong)
    assert report.status == "differs"
    assert hint in report.hint


# Chapters 04 and 05 ------------------------------------------------------------------------------------------------


class BlockOfFunctions(torch.nn.Module):
    """A right residual block, its layers called one by one and the sum taken in place, on a tensor of its own."""

    def __init__(self, channels):
        super().__init__()
        conv = torch.nn.Conv2d
        self.branch = torch.nn.ModuleDict(
            {"1": conv(channels, channels, 3, padding=1), "3": conv(channels, channels, 1)}
        )

    def forward(self, x):
        h = self.branch["1"](torch.clamp(x, min=0))
        h = self.branch["3"](torch.nn.functional.relu(h, inplace=True))
        h += x
        return h


def bits_with_a_loop(indices, num_codes):
    def entropy(codes):
        p = torch.unique(codes, return_counts=True)[1].double() / codes.numel()
        return -(p * p.log2()).sum().item()

    table = indices.reshape(len(indices), -1)
    return {
        "per_position": float(sum(entropy(column) for column in table.T)),
        "entropy": table.shape[1] * entropy(table),
        "nominal": table.shape[1] * torch.tensor(num_codes).double().log2().item(),
    }


def statistics_with_a_loop(vectors, indices, num_codes):
    groups = [vectors[indices == k] for k in range(num_codes)]
    return vectors.new_tensor([len(group) for group in groups]), torch.stack([group.sum(0) for group in groups])


def statistics_in_one_sum(vectors, indices, num_codes):
    rows = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)
    sums = rows.new_zeros(num_codes, rows.shape[1]).index_put_((indices,), rows, accumulate=True)
    return sums[:, -1], sums[:, :-1]


def step_of_the_chosen(codebook, counts, n, s, decay, smoothing=1e-5):
    counts = decay * counts + (1 - decay) * n
    smoothed = (counts + smoothing) / (counts.sum() + len(n) * smoothing) * counts.sum()
    codebook, chosen = codebook.clone(), n > 0
    rate = torch.minimum((1 - decay) / smoothed[chosen], 1 / n[chosen])
    codebook[chosen] += rate[:, None] * (s - n[:, None] * codebook)[chosen]
    return codebook, counts


def restart_one_by_one(codebook, counts, candidates, restart_below):
    threshold, candidates = restart_below * counts.mean(), iter(candidates)
    dead = [bool(count < threshold) for count in counts]
    codes = [next(candidates) if gone else code for gone, code in zip(dead, codebook, strict=True)]
    return torch.stack(codes), torch.where(counts < threshold, threshold, counts)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("ResidualBlock", BlockOfFunctions),
        ("bits_per_image", bits_with_a_loop),
        ("code_statistics", statistics_with_a_loop),
        ("code_statistics", statistics_in_one_sum),
        ("ema_step", step_of_the_chosen),
        ("restart", restart_one_by_one),
    ],
)
def test_right_answers_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


def test_whatever_writes_into_the_blocks_input_gets_the_same_hint():
    class Sum(companion.backbones.ResidualBlock):
        def forward(self, x):
            x += self.branch(x)
            return x

    class InPlace(companion.backbones.ResidualBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.branch[0] = torch.nn.ReLU(inplace=True)

    for wrong in (Sum, InPlace):
        assert "writes into its input" in examine(EXERCISES["ResidualBlock"], wrong).hint


def test_of_several_results_the_one_that_differs_is_named():
    def code_statistics(vectors, indices, num_codes):
        return torch.bincount(indices, minlength=num_codes).to(vectors.dtype), vectors.new_ones(num_codes, 3)

    def ema_step(codebook, counts, n, s, decay, smoothing):
        return companion.quantizers.ema_step(codebook, counts, n, s, decay, smoothing)[0], 2 * counts

    for wrong, name in ((code_statistics, "the sums: expected"), (ema_step, "the counts: expected")):
        assert name in examine(EXERCISES[wrong.__name__], wrong).text


@pytest.mark.parametrize("name", ["code_statistics", "ema_step", "restart"])
@pytest.mark.parametrize(
    "wrong", [lambda *a: None, lambda *a: [a[0], a[0]], lambda *a: a[0], lambda *a: {"codes": a[0]}]
)
def test_something_else_than_the_two_results_says_what_is_wanted(name, wrong):
    assert "expected 'a tuple: " in examine(EXERCISES[name], wrong).text


def test_a_one_hot_matrix_is_seen_in_whatever_way_it_is_made():
    def by_comparison(vectors, indices, num_codes):
        chosen = (indices[:, None] == torch.arange(num_codes)).to(vectors.dtype)  # (N, K)
        return torch.bincount(indices, minlength=num_codes).to(vectors.dtype), torch.einsum(
            "nk,nd->kd", chosen, vectors
        )

    assert "a matrix of N × K numbers" in examine(EXERCISES["code_statistics"], by_comparison).hint


def test_rates_are_told_by_name_and_tensors_from_numbers():
    def counted(indices, num_codes):
        stacks = indices.reshape(-1, indices.shape[-1])

        def entropy(counts):
            shares = counts[counts > 0] / counts.sum()
            return -(shares * shares.log2()).sum()

        return {
            "nominal": stacks.shape[1] * math.log2(num_codes),
            "entropy": sum(entropy(torch.bincount(column, minlength=num_codes)) for column in stacks.T),
            "joint": entropy(torch.unique(stacks, dim=0, return_counts=True)[1]),
        }

    def right(indices, num_codes):
        return {name: float(value) for name, value in counted(indices, num_codes).items()}

    def from_one_table(indices, num_codes):
        return right(indices, num_codes) | {"entropy": right(indices.reshape(-1, 1), num_codes)["entropy"]}

    exercise = EXERCISES["rate_bits"]
    assert examine(exercise, right).status == "matches"
    assert ".item()" in examine(exercise, counted).hint
    assert 'result["entropy"]: expected' in examine(exercise, from_one_table).text
    assert "expected 'a dict: entropy, joint, nominal'" in examine(exercise, lambda indices, k: [1.0]).text


def test_losses_of_the_sum_so_far_are_those_of_the_residual():
    def residual_losses(z, codes):
        so_far, codebook, commitment = torch.zeros_like(z), [], []
        for code in codes:
            codebook.append((code - (z - so_far).detach()).pow(2).mean())
            so_far = so_far + code.detach()
            commitment.append((z - so_far).pow(2).mean())
        return torch.stack(codebook), torch.stack(commitment)

    assert check(residual_losses) is residual_losses


class AttentionWeights(torch.nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)

    def scores(self, x):
        """Queries against keys, (B, heads, T, T), and the values, (B, T, heads, d)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.to_qkv(x).chunk(3, -1))
        return torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]), v

    def gathered(self, weights, v):
        return self.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def test_attention_by_einsum_and_with_a_large_negative_number_is_right():
    class CausalSelfAttention(AttentionWeights):
        def forward(self, x):
            scores, v = self.scores(x)
            return self.gathered((scores - 1e9 * torch.ones_like(scores).triu(1)).softmax(-1), v)

    assert check(CausalSelfAttention) is CausalSelfAttention


def test_zero_times_infinity_in_a_mask_and_attention_over_the_heads_have_hints():
    class Infinite(AttentionWeights):
        def forward(self, x):
            scores, v = self.scores(x)
            return self.gathered((scores + torch.ones_like(scores).triu(1) * -torch.inf).softmax(-1), v)

    class OverTheHeads(AttentionWeights):
        def forward(self, x):
            q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.to_qkv(x).chunk(3, -1))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.to_out(out.flatten(2))

    assert "NaN" in examine(EXERCISES["CausalSelfAttention"], Infinite).hint
    assert "over the heads" in examine(EXERCISES["CausalSelfAttention"], OverTheHeads).hint


def nucleus_sampling(*, divide=True, keep=lambda ranked, p: ranked.cumsum(-1) - ranked < p):
    """What is drawn from, written with logits for top-k, and counting codes for top-p."""

    def filtered_probabilities(logits, *, temperature=1.0, top_k=None, top_p=None):
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        p = (logits / temperature).softmax(-1)
        if top_k is not None:
            p = p * (p >= p.sort(-1, descending=True).values[..., top_k - 1 : top_k])
            p = p / p.sum(-1, keepdim=True) if divide else p
        if top_p is not None:
            ranked = p.sort(-1, descending=True).values
            inside = keep(ranked, top_p)
            inside[..., 0] = True
            p = p * (p >= ranked.gather(-1, inside.sum(-1, keepdim=True) - 1))
        return p / p.sum(-1, keepdim=True)

    return filtered_probabilities


def test_sampling_that_counts_the_codes_it_keeps_is_right():
    filtered_probabilities = nucleus_sampling()
    assert check(filtered_probabilities) is filtered_probabilities


def test_sampling_that_divides_only_at_the_end_or_stops_before_the_sum_is_reached_has_hints():
    exercise = EXERCISES["filtered_probabilities"]
    assert "divide by the sum after top-k" in examine(exercise, nucleus_sampling(divide=False)).hint
    stops = nucleus_sampling(keep=lambda ranked, p: ranked.cumsum(-1) <= p)
    assert "stays *below* top_p" in examine(exercise, stops).hint


# Right answers written otherwise, all chapters ----------------------------------------------------------------------


def nearest_from_the_first_code(z, codebook):
    z, codebook = z - codebook[0], codebook - codebook[0]
    return (z @ codebook.T - codebook.square().sum(1) / 2).max(1).indices


def statistics_by_scatter(vectors, indices, num_codes):
    counts = torch.zeros(num_codes, dtype=vectors.dtype).scatter_add(0, indices, torch.ones_like(vectors[:, 0]))
    sums = torch.zeros(num_codes, vectors.shape[1], dtype=vectors.dtype)
    return counts, sums.scatter_add(0, indices[:, None].expand_as(vectors), vectors)


def ema_code_by_code(codebook, counts, n, s, decay, smoothing=1e-5):
    counts, moved = decay * counts + (1 - decay) * n, codebook.clone()
    smoothed = (counts + smoothing) / (counts.sum() + len(n) * smoothing) * counts.sum()
    for k in n.nonzero()[:, 0]:
        rate = min(1.0, float((1 - decay) * n[k] / smoothed[k]))
        moved[k] += rate * (s[k] / n[k] - codebook[k])
    return moved, counts


def perplexity_of_the_chosen(counts):
    p = counts[counts > 0].double() / counts.sum()
    return math.exp(-(p * p.log()).sum())


def bound_by_hand(log_weights):
    largest = log_weights.amax(0)
    return largest + (log_weights - largest).exp().mean(0).log()


def step_with_zeros(model, optimizer, x):
    model.train()
    out = model(x)
    optimizer.zero_grad(set_to_none=False)
    out.loss.backward()
    optimizer.step()
    return out.loss.detach().clone()


def pca_by_svd(x_train, x, d):
    mean = x_train.flatten(1).mean(0)
    basis = torch.linalg.svd(x_train.flatten(1) - mean, full_matrices=False).Vh[:d]
    return ((x.flatten(1) - mean) @ basis.T @ basis + mean).reshape(x.shape)


def kl_by_torch(mean, log_variance):
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))


@torch.no_grad()
def encode_into_a_copy(z, quantizers):
    left, indices = z.clone(), []
    for quantizer in quantizers:
        indices.append(quantizer.encode(left))
        left -= quantizer.decode(indices[-1])
    return torch.stack(indices, -1)


class QuantizerByAddition(companion.quantizers.ResidualQuantizer):
    def forward(self, z):
        left, total, indices, loss, terms = z, 0, [], 0, {}
        for quantizer in self.quantizers:
            part = quantizer(left)
            total, left = total + part.z_q.detach(), left - part.z_q.detach()
            indices.append(part.indices)
            loss = loss + part.loss
            terms = {name: terms.get(name, 0) + term for name, term in part.losses.items()}
        z_q = z + (total - z).detach()
        return companion.quantizers.Quantized(z_q, torch.stack(indices, -1), loss, terms)


def rates_by_number(indices, num_codes):
    stacks = indices.reshape(-1, indices.shape[-1])

    def bits(codes):
        p = torch.bincount(codes).double() / len(codes)
        return -torch.xlogy(p, p).sum().item() / math.log(2)

    depth = stacks.shape[1]
    return {
        "nominal": depth * math.log2(num_codes),
        "entropy": sum(bits(one) for one in stacks.T),
        "joint": bits((stacks * num_codes ** torch.arange(depth)).sum(1)),
    }


def classes_by_label(codes, labels, num_codes, num_classes, dropped=None):
    labels = torch.full((len(codes),), num_classes) if labels is None else labels
    labels = labels if dropped is None else torch.where(dropped, num_classes, labels)
    return torch.cat([(num_codes + labels)[:, None], codes.flatten(1)[:, :-1]], 1)


class AttentionWithAMask(AttentionWeights):
    """Kept as a buffer that is not saved, so that weights load both ways."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x):
        scores, v = self.scores(x)
        return self.gathered(scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]], -torch.inf).softmax(-1), v)


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("train_step", step_with_zeros),
        ("pca_reconstruct", pca_by_svd),
        ("interpolate", lambda a, b, n: torch.stack([torch.lerp(a, b, i / (n - 1)) for i in range(n)])),
        ("kl_divergence", lambda m, s: -0.5 * (1 + s - m**2 - s.exp())),
        ("kl_divergence", kl_by_torch),
        ("elbo", lambda a, b: a.sum() / len(a) - b.sum() / len(b)),
        ("importance_weighted_bound", bound_by_hand),
        ("nearest_code", lambda z, e: torch.cdist(z, e, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)),
        ("nearest_code", lambda z, e: torch.stack([(z - code).square().sum(1) for code in e], 1).argmin(1)),
        ("nearest_code", nearest_from_the_first_code),
        ("perplexity", perplexity_of_the_chosen),
        ("perplexity", lambda c: torch.distributions.Categorical(c.double()).entropy().exp().item()),
        ("code_statistics", statistics_by_scatter),
        ("ema_step", ema_code_by_code),
        ("cosine_lookup", lambda z, e: torch.nn.functional.cosine_similarity(z[:, None], e[None], dim=2).argmax(1)),
        ("cosine_lookup", lambda z, e: (z @ unit(e).T).argmax(1)),
        ("cosine_lookup", lambda z, e: torch.cdist(unit(z), unit(e)).argmin(1)),
        ("cosine_lookup", lambda z, e: (unit(z) @ unit(e).T).clamp(-1, 1).acos().argmin(1)),
        ("residual_encode", encode_into_a_copy),
        ("ResidualQuantizer", QuantizerByAddition),
        ("rate_bits", rates_by_number),
        ("CausalSelfAttention", AttentionWithAMask),
        ("conditional_inputs", classes_by_label),
    ],
)
def test_other_right_answers_pass_the_inputs_that_tell_wrong_ones(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text

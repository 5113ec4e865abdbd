"""How an exercise is checked.

An exercise holds the companion's implementation, inputs that cannot mask a bug, and a list of plausible mistakes, each
a wrong implementation with the hint for whoever made it. The reader's code and the companion's run on the same inputs;
values, dtypes, shapes and gradients are compared. Where they differ, the reader's results are compared with those of
each listed mistake: the one that behaves the same on every input gives the hint, or else one that does so on the input
in the message. So the list that helps the reader is also the list that proves the check: a test makes sure that each
mistake is rejected, with its own hint.
"""

import inspect
import linecache
import math
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from companion.course import session

Observed = dict[str, Any]  # name of what was looked at → tensor, number, None, ... in the order of comparison
DIAGNOSTIC = "~ "  # what starts so is no part of the verdict; it only tells one mistake from another
Runner = Callable[[Any, "Case"], Observed]

_LIBRARY = Path(__file__).resolve().parents[2]
_PACKAGES = Path(torch.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """One input: what the message calls it, the arguments, and which of them want a gradient."""

    label: str
    arguments: tuple[Any, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)  # for classes: the arguments of __init__
    gradient_of: Mapping[int, str] = field(default_factory=dict)  # position → the name to use in messages
    seed: int = 0  # what the global generator is set to before the run


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation somebody is likely to write, and what to tell them."""

    name: str
    implementation: Any
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise: ``name`` is the function or class the reader defines."""

    name: str
    chapter: str
    reference: Any
    cases: Callable[[], Sequence[Case]]
    mistakes: tuple[Mistake, ...]
    run: Runner
    tolerance: float = 1e-4  # relative to the largest expected number; float32 sums in another order stay far below


@dataclass(frozen=True)
class Report:
    """The outcome of one check; ``hint`` is that of a listed mistake which behaves like the reader's code."""

    status: Literal["matches", "not attempted", "differs"]
    text: str
    hint: str = ""


@dataclass(frozen=True)
class _Failure:
    """An exception in the code under check, told without the path of anybody's machine."""

    kind: str  # the exception's class and the first line of its message
    text: str
    not_attempted: bool  # the bare NotImplementedError of a blank; torch raises it too, with a message


EXERCISES: dict[str, Exercise] = {}


def register(exercise: Exercise) -> None:
    """Make an exercise known to ``check``; its name is unique in the course."""
    if exercise.name in EXERCISES:
        raise ValueError(f"exercise: {exercise.name!r} is already one of chapter {EXERCISES[exercise.name].chapter}")
    EXERCISES[exercise.name] = exercise


def check(implementation: Any) -> Any:
    """Compare the reader's function or class with the companion's, print the verdict, give back what to go on with.

    ✅ gives back the reader's own; ⬜ (not attempted) and ❌ give back the companion's, so that the notebook goes on.
    An exception in the reader's code is a ❌ with its line; only ``COMPANION_STRICT=1`` makes what is not ✅ raise,
    also where the name holds the companion's own object, since then nobody answered the exercise.

    Raises:
        ValueError: there is no exercise of that name.
        AssertionError: the verdict is not ✅ and ``COMPANION_STRICT=1``.
        KeyboardInterrupt: by Ctrl-C; one that the reader's code raises itself is a ❌.
    """
    name = _name_of(implementation, sys._getframe(1))
    if name not in EXERCISES:
        raise ValueError(f"check: got {name!r}, want one of the exercises: {', '.join(sorted(EXERCISES))}")
    exercise = EXERCISES[name]
    if implementation is exercise.reference:
        text = f"{name} is the companion's own here. To check yours, run the cell that defines it again."
        report = Report("not attempted", text)
    else:
        report = examine(exercise, implementation)
    print(report.text)
    if report.status != "matches" and session.strict():
        raise AssertionError(report.text)
    return implementation if report.status == "matches" else exercise.reference


def _name_of(implementation: Any, caller: FrameType) -> str:
    """Its own name; for what was assigned (a lambda, a library's function) the name it was assigned to."""
    name = str(getattr(implementation, "__name__", type(implementation).__name__))
    if name in EXERCISES:
        return name
    variables = caller.f_globals | caller.f_locals
    return next((n for n in EXERCISES if n in variables and variables[n] is implementation), name)


@contextmanager
def _settled() -> Iterator[None]:
    """Torch as it starts, whatever a notebook has set: gradients, float32, the CPU, no autocast. Then as it was."""
    dtype, device, exact = torch.get_default_dtype(), torch.get_default_device(), _deterministic()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        try:
            _set_defaults(torch.float32, torch.device("cpu"), (False, False))
            yield
        finally:
            _set_defaults(dtype, device, exact)


def _set_defaults(dtype: torch.dtype, device: torch.device, exact: tuple[bool, bool]) -> None:
    torch.set_default_dtype(dtype)
    if device != torch.get_default_device():  # only where needed: a default device slows every call of torch down
        torch.set_default_device(None if device.type == "cpu" else device)
    if exact != _deterministic():
        torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@_settled()
def examine(exercise: Exercise, implementation: Any) -> Report:
    """The verdict on an implementation, without printing it."""
    name, cases = exercise.name, exercise.cases()
    gradients = False
    for number, case in enumerate(cases):
        expected = _observe(exercise, exercise.reference, case)
        if isinstance(expected, _Failure):
            raise RuntimeError(f"the companion's {name} fails its own check: {expected.text}")
        got = _observe(exercise, implementation, case)
        if isinstance(got, _Failure) and got.not_attempted:
            return Report("not attempted", f"⬜ {name}: not attempted yet. The notebook goes on with the companion's.")
        difference = _difference(expected, got, exercise.tolerance)
        if difference:
            hint = _hint(exercise, implementation, cases, number) or _general_hint(difference)
            told = _with_names(difference, exercise.reference)
            lines = [f"❌ {name} differs on input {number + 1} of {len(cases)}: {case.label}", told]
            if hint:
                lines.append(f"Hint: {hint}")
            lines.append("The notebook goes on with the companion's; change your code and run the cell again.")
            return Report("differs", "\n".join(lines), hint)
        gradients |= any(n.startswith("the gradient") and isinstance(v, Tensor) for n, v in expected.items())
    inputs = f"{len(cases)} inputs" if len(cases) > 1 else "1 input"
    looked_at = "values and gradients" if gradients else "values"
    return Report("matches", f"✅ {name} matches: {looked_at}, on {inputs}. The notebook goes on with yours.")


def call(implementation: Any, case: Case) -> Observed:
    """Runner for functions: the result, the gradients it sends back, and whether an input was overwritten."""
    arguments = [_copy(argument) for argument in case.arguments]
    for position in case.gradient_of:
        arguments[position].requires_grad_(True)
    result = implementation(*arguments)
    seen: Observed = {"the result": result}
    seen |= _gradients(result, {name: arguments[p] for p, name in case.gradient_of.items()})
    for position, (before, after) in enumerate(zip(case.arguments, arguments, strict=True)):
        if isinstance(before, Tensor):
            seen[f"argument {position + 1} after the call"] = after.detach()
    return seen


def call_for(*names: str) -> Runner:
    """As ``call`` for a function that gives several results back: each is compared under its own name."""
    expected = f"a tuple: {', '.join(names)}"

    def run(implementation: Any, case: Case) -> Observed:
        seen = call(implementation, case)
        result = seen.pop("the result")
        if not isinstance(result, tuple) or len(result) != len(names):
            return {"the result": _told(result)} | seen
        return {"the result": expected} | {f"the {n}": part for n, part in zip(names, result, strict=True)} | seen

    return run


def _told(result: Any) -> Any:
    """What came in place of a tuple, in words; None and single tensors are told by the comparison itself."""
    return f"a {type(result).__name__} of {len(result)}" if isinstance(result, tuple | list | dict) else result


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on: how many numbers the largest tensor has that any operation makes (a view makes none)."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.layout == torch.strided:
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return made


def module_call(reference: type[nn.Module]) -> Runner:
    """Runner for classes: built as the case says, given the reference's weights, then called like a function."""

    def run(implementation: Any, case: Case) -> Observed:
        torch.manual_seed(case.seed)
        weights = reference(**case.build).state_dict()
        module = implementation(**case.build)
        own = module.state_dict()
        seen: Observed = {"the names of the weights (given by __init__)": sorted(own)}
        if set(own) == set(weights):
            module.load_state_dict(_no_zeros(weights))
        arguments = [_copy(argument) for argument in case.arguments]
        for position in case.gradient_of:
            arguments[position].requires_grad_(True)
        result = module(*arguments)
        seen["the result"] = result
        wanted = {name: arguments[p] for p, name in case.gradient_of.items()}
        if case.gradient_of:
            wanted |= dict(module.named_parameters())
        seen |= _gradients(result, wanted)
        seen["the weights after the call"] = {name: weight.detach() for name, weight in module.named_parameters()}
        with torch.no_grad():
            seen["the result in eval()"] = module.eval()(*[_copy(argument) for argument in case.arguments])
        return seen

    return run


def _no_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of either sign, away from zero and each other, so that forgetting or exchanging one shows."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: weight + torch.randn(weight.shape, generator=generator) if weight.ndim == 1 else weight
        for name, weight in sorted(weights.items())
    }


def _copy(argument: Any) -> Any:
    """A tensor of its own with the same layout in memory (a clone of a transposed view stays transposed)."""
    return argument.detach().clone() if isinstance(argument, Tensor) else argument


def _gradients(result: Any, wanted: Mapping[str, Tensor]) -> Observed:
    """Gradient at each wanted tensor of a fixed weighted sum of the result; None where none arrives."""
    if not wanted:
        return {}
    if not isinstance(result, Tensor) or not result.requires_grad:
        return {f"the gradient of {name}": None for name in wanted}
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
    grads = torch.autograd.grad((result * weights).sum(), list(wanted.values()), allow_unused=True)
    return {f"the gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}


@_settled()  # once more: the answer may set what it likes, and the next input finds nothing of it
def _observe(exercise: Exercise, implementation: Any, case: Case) -> Observed | _Failure:
    with torch.random.fork_rng(devices=[]), _ctrl_c() as pressed:
        torch.manual_seed(case.seed)
        try:
            return exercise.run(implementation, case)
        except BaseException as error:  # the reader's; also what is no Exception, such as SystemExit
            if pressed:
                raise
            return _describe(error)


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """The interrupts (SIGINT) that come meanwhile: they stop the check, a KeyboardInterrupt of the answer does not."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed  # no interrupt can come: Python gives signals to the main thread
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, handler)


def _describe(error: BaseException) -> _Failure:
    name, message = type(error).__name__, str(error)
    first_line = message.partition("\n")[0]
    kind = f"{name}: {first_line}"
    frame = _readers_frame(error.__traceback__)
    where = ""
    if frame is not None:
        source = linecache.getline(frame.filename, frame.lineno or 0).strip()
        where = f"\n  in {frame.name}, line {frame.lineno}: {source}"
    return _Failure(kind, f"  {name}: {first_line}{where}", isinstance(error, NotImplementedError) and not message)


def _readers_frame(trace: TracebackType | None) -> traceback.FrameSummary | None:
    """The innermost frame that is neither the companion's nor a library's: the reader's own line."""
    own = [f for f in traceback.extract_tb(trace) if not _is_library(f.filename)]
    return own[-1] if own else None


def _is_library(filename: str) -> bool:
    path = Path(filename)
    return _PACKAGES in path.parents or _LIBRARY in path.parents or filename.startswith("<frozen")


def _difference(expected: Observed, got: Observed | _Failure, tolerance: float, *, diagnostics: bool = False) -> str:
    """What differs first, with expected and got; empty where nothing does."""
    if isinstance(got, _Failure):
        return got.text
    for name, want in expected.items():
        if name.startswith(DIAGNOSTIC) and not diagnostics:
            continue
        if name not in got:
            return f"  {name} is missing"
        if name.startswith("the gradient of") and got[name] is None and isinstance(want, Tensor):
            # What does not count on this input may be left out as well as multiplied by zero.
            problem = "expected a gradient\n  got none: nothing flows back to it" if want.any() else ""
        else:
            problem = _compare(want, got[name], tolerance)
        if problem:
            return f"  {name}: {problem}"
    return ""


def _with_names(difference: str, reference: Any) -> str:
    """ "argument 2 after the call" with the name that the argument has."""

    def name(found: re.Match[str]) -> str:
        return list(inspect.signature(reference).parameters)[int(found[1]) - 1]

    return re.sub(r"argument (\d+)(?= after the call)", name, difference)


def _compare(want: Any, have: Any, tolerance: float) -> str:
    if isinstance(want, Tensor):
        return _compare_tensors(want, have, tolerance)
    if isinstance(have, Tensor):
        return f"expected {want!r}\n  got a tensor of shape {tuple(have.shape)}"
    if type(want) is type(have) and isinstance(want, list | tuple) and len(want) == len(have):
        return next((p for w, h in zip(want, have, strict=True) if (p := _compare(w, h, tolerance))), "")
    if type(want) is type(have) and isinstance(want, dict) and want.keys() == have.keys():
        return next((p for name in want if (p := _compare(want[name], have[name], tolerance))), "")
    if isinstance(want, float) and isinstance(have, int | float):
        close = abs(want - have) <= tolerance * max(abs(want), 1e-12)
        alike = want == have or (math.isnan(want) and math.isnan(have))  # two mistakes may agree in being none
        return "" if close or alike else f"expected {want:.6g}\n  got {have:.6g}"
    if type(want) is not type(have):
        return f"expected {want!r}, {_article(want)}\n  got {_brief(have)}, {_article(have)}"
    if want != have:
        return f"expected {want!r}\n  got {_brief(have)}"
    return ""


def _compare_tensors(want: Tensor, have: Any, tolerance: float) -> str:
    if not isinstance(have, Tensor):
        return f"expected {_kind(want)}\n  got {_brief(have)}"
    if (want.shape, want.dtype, want.device) != (have.shape, have.dtype, have.device):
        return f"expected {_kind(want)}\n  got {_kind(have)}"
    if want.numel() == 0 or want.is_meta:
        return ""
    exact = not want.is_floating_point()
    a, b = want.detach().double(), have.detach().double()
    largest = float(a.abs().nan_to_num(nan=0.0, posinf=0.0).max())
    bound = 0.0 if exact else tolerance * max(largest, 1e-12)
    # Two NaN agree: no reference gives one, and of two mistakes that do, one may be the other.
    wrong = ~(((a - b).abs() <= bound) | (a == b) | (a.isnan() & b.isnan()))
    if not bool(wrong.any()):
        return ""
    worst = int((a - b).abs().nan_to_num(nan=torch.inf).where(wrong, -1).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape)]
    where = f" at {place} ({int(wrong.sum())} of {want.numel()} numbers differ)" if want.ndim else ""
    return f"expected {a.flatten()[worst] + 0.0:.6g}\n  got {b.flatten()[worst] + 0.0:.6g}{where}"  # + 0.0: no "-0"


def _kind(value: Tensor) -> str:
    return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, on {value.device}"


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _brief(value: Any) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{text[:77]}…" if len(text) > 78 else text


def _hint(exercise: Exercise, implementation: Any, cases: Sequence[Case], differs: int) -> str:
    """The hint of the listed mistake that behaves like this implementation on every input.

    If none does, that of the first one that does so on input ``differs``: elsewhere the same mistake may take another
    form, or raise.
    """
    seen = [_observe(exercise, implementation, case) for case in cases]

    def alike(mistake: Mistake, number: int) -> bool:
        return _alike(_observe(exercise, mistake.implementation, cases[number]), seen[number], exercise)

    candidates = [mistake for mistake in exercise.mistakes if alike(mistake, differs)]
    for mistake in candidates:
        if all(alike(mistake, number) for number in range(len(cases))):
            return mistake.hint
    return candidates[0].hint if candidates else ""


def _general_hint(difference: str) -> str:
    """For what no listed mistake explains: where to look first."""
    if "nothing flows back" in difference:
        return "the values agree, but no gradient arrives: something on the way is detached, or turned into a number."
    if "the gradient of" in difference:
        if "got nan" in difference:
            return (
                "the values agree, but the gradient is NaN: 0 · ∞ on the way back. torch.where sends zeros back "
                "through the side that it does not take, and they meet an infinite slope there, as of log at 0."
            )
        return (
            "the values agree, the gradient does not. Look for detach, .data, .item() or no_grad where the gradient "
            "should pass, and for a missing one where it should not."
        )
    if "leaf Variable" in difference:  # torch's words for x += …, where x is an input or a weight
        return "your code writes into its input: x += … and x[…] = … change x itself; write x = x + … instead."
    if "Expected target size" in difference:  # torch's words in cross_entropy
        return "cross_entropy wants the K logits of a code on axis 1: flatten all other axes, in the codes as well."
    if "after the call" in difference:
        return (
            "your code writes into its input: x[…] = …, x += … and operations ending in _ do that. Make a new tensor."
        )
    if "got None" in difference:
        return "is there a return at the end?"
    if "got" in difference and "method" in difference:
        return "a method without brackets is not called: write .mean(), not .mean."
    return ""


def _alike(a: Observed | _Failure, b: Observed | _Failure, exercise: Exercise) -> bool:
    if isinstance(a, _Failure) or isinstance(b, _Failure):
        return isinstance(a, _Failure) and isinstance(b, _Failure) and a.kind == b.kind
    return a.keys() == b.keys() and not _difference(a, b, exercise.tolerance, diagnostics=True)

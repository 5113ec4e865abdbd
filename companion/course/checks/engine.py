"""How an exercise is checked.

An exercise holds the companion's implementation, inputs that cannot mask a bug, and a list of plausible mistakes, each
a wrong implementation with the hint for whoever made it. The reader's code and the companion's run on the same inputs;
values, dtypes, shapes and gradients are compared. Where they differ, the reader's results are compared with those of
each listed mistake: the one that behaves the same on every input gives the hint, or else one that does so on the input
in the message. So the list that helps the reader is also the list that proves the check: a test makes sure that each
mistake is rejected, with its own hint.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed, describe_difference
from companion.course.checks.facts import of_an_error, what_is_seen
from companion.course.checks.isolation import Failure, initial_settings, interrupts

Runner = Callable[[Any, "Case"], Observed]
_ELSEWHERE = (
    "the values agree, the gradient does not. Look for detach, .data, .item() or no_grad where the gradient should "
    "pass, "
    "and for a missing one where it should not."
)


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
    also: tuple[Any, ...] = ()  # the same mistake in other forms, which behave differently

    @property
    def forms(self) -> tuple[Any, ...]:
        return self.implementation, *self.also


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
    # (where a float64 tensor is expected, it is at most ``comparison.IN_FLOAT64``)


@dataclass(frozen=True)
class Report:
    """The outcome of one check; ``hint`` is that of a listed mistake which behaves like the reader's code."""

    status: Literal["matches", "not attempted", "differs"]
    text: str
    hint: str = ""


@initial_settings()
def examine(exercise: Exercise, implementation: Any) -> Report:
    """The verdict on an implementation, without printing it."""
    name, cases = exercise.name, exercise.cases()
    gradients = False
    for number, case in enumerate(cases):
        expected = _observe(exercise, exercise.reference, case)
        if isinstance(expected, Failure):
            raise RuntimeError(f"the companion's {name} fails its own check: {expected.text}")
        got = _observe(exercise, implementation, case)
        if isinstance(got, Failure) and got.not_attempted:
            return Report("not attempted", f"⬜ {name}: not attempted yet. The notebook goes on with the companion's.")
        difference = _difference(expected, got, exercise)
        if difference:
            hint = _hint(exercise, implementation, cases, number)
            if not hint and not isinstance(got, Failure):
                hint = _hint_of_few_digits(expected, got, exercise)
            hint = hint or _general_hint(difference)
            if not hint or hint == _ELSEWHERE:
                hint = _facts(exercise, implementation, cases, number) or of_an_error(difference) or hint
            lines = [f"❌ {name} differs on input {number + 1} of {len(cases)}: {case.label}"]
            lines.append(_with_names(difference, exercise.reference))
            if hint:
                lines.append(f"Hint: {hint}")
            lines.append("The notebook goes on with the companion's; change your code and run the cell again.")
            return Report("differs", "\n".join(lines), hint)
        gradients |= any(n.startswith("the gradient") and isinstance(v, Tensor) for n, v in expected.items())
    inputs = f"{len(cases)} inputs" if len(cases) > 1 else "1 input"
    looked_at = "values and gradients" if gradients else "values"
    return Report("matches", f"✅ {name} matches: {looked_at}, on {inputs}. The notebook goes on with yours.")


@initial_settings()  # once more: the answer may set what it likes, and the next input finds nothing of it
def _observe(exercise: Exercise, implementation: Any, case: Case) -> Observed | Failure:
    with torch.random.fork_rng(devices=[]), interrupts() as pressed:
        torch.manual_seed(case.seed)
        try:
            return exercise.run(implementation, case)
        except BaseException as error:  # the reader's; also what is no Exception, such as SystemExit
            if pressed:
                raise
            return Failure.of(error)


def _difference(expected: Observed, got: Observed | Failure, exercise: Exercise) -> str:
    return got.text if isinstance(got, Failure) else describe_difference(expected, got, exercise.tolerance)


def _with_names(difference: str, reference: Any) -> str:
    """ "argument 2 after the call" with the name that the argument has."""

    def name(found: re.Match[str]) -> str:
        return list(inspect.signature(reference).parameters)[int(found[1]) - 1]

    return re.sub(r"argument (\d+)(?= after the call)", name, difference)


def _hint(exercise: Exercise, implementation: Any, cases: Sequence[Case], differs: int) -> str:
    """The hint of the listed mistake that behaves like this implementation on every input.

    If none does, that of the first one that does so on input ``differs``: elsewhere the same mistake may take another
    form, or raise. Where that input gives few numbers, which may agree by chance, it has to do so on half of the inputs
    that differ.
    """
    seen = [_observe(exercise, implementation, case) for case in cases]

    def alike(form: Any, number: int) -> bool:
        return _alike(_observe(exercise, form, cases[number]), seen[number], exercise)

    forms = [(mistake.hint, form) for mistake in exercise.mistakes for form in mistake.forms]
    candidates = [(hint, form) for hint, form in forms if alike(form, differs)]
    for hint, form in candidates:
        if all(alike(form, number) for number in range(len(cases))):
            return hint
    if not candidates or _tells(seen[differs]):
        return candidates[0][0] if candidates else ""
    right = (_observe(exercise, exercise.reference, case) for case in cases)
    wrong = [n for n, e in enumerate(right) if not isinstance(e, Failure) and _difference(e, seen[n], exercise)]
    agreement = [sum(alike(form, n) for n in wrong) for _, form in candidates]
    best = agreement.index(max(agreement))
    return candidates[best][0] if 2 * agreement[best] >= len(wrong) else ""


def _tells(seen: Observed | Failure) -> bool:
    """Whether so much was seen that two different mistakes hardly agree in it by chance."""
    if isinstance(seen, Failure):
        return False
    tensors = [v for name, v in seen.items() if isinstance(v, Tensor) and not name.endswith("after the call")]
    return sum(v.numel() for v in tensors) > 3


def _facts(exercise: Exercise, implementation: Any, cases: Sequence[Case], differs: int) -> str:
    """What can be seen in the numbers, on input ``differs`` and then on the others."""
    order = [cases[differs], *(case for number, case in enumerate(cases) if number != differs)]
    pairs = [(_observe(exercise, exercise.reference, case), _observe(exercise, implementation, case)) for case in order]
    if isinstance(pairs[0][1], Failure):
        return ""
    return what_is_seen(
        [(e, g) for e, g in pairs if not isinstance(e, Failure) and not isinstance(g, Failure)], exercise.tolerance
    )


def _alike(a: Observed | Failure, b: Observed | Failure, exercise: Exercise) -> bool:
    if isinstance(a, Failure) or isinstance(b, Failure):
        return isinstance(a, Failure) and isinstance(b, Failure) and a.kind == b.kind
    return a.keys() == b.keys() and not describe_difference(a, b, exercise.tolerance, diagnostics=True)


def _hint_of_few_digits(expected: Observed, got: Observed, exercise: Exercise) -> str:
    """For what would pass if float64 were compared like float32."""
    if describe_difference(expected, got, max(exercise.tolerance, 1e-4), in_float64=1e-4):
        return ""
    return (
        "only the first digits are right: something is computed in float32 where float64 is wanted (.float(), "
        "torch.zeros or torch.tensor without a dtype), an ε is added, or something is rounded."
    )


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
        return _ELSEWHERE
    if "leaf Variable" in difference:  # torch's words for x += …, where x is an input or a weight
        return "your code writes into its input: x += … and x[…] = … change x itself; write x = x + … instead."
    if "modified by an inplace operation" in difference:  # torch's words where a gradient needs what was written over
        return (
            "your code changes a tensor in place (x += …, x[…] = …, mul_) whose values autograd still needs for the "
            "gradient. Make a new tensor: x = x + …."
        )
    if "Expected target size" in difference:  # torch's words in cross_entropy
        return "cross_entropy wants the K logits of a code on axis 1: flatten all other axes, in the codes as well."
    if any(words in difference for words in ('but got float"', "'float' object cannot be interpreted as an integer")):
        return "/ gives a float, and a size or a range wants a whole number: divide by //."
    if any(words in difference for words in ("expected scalar type", "have the same dtype", "dtypes do not match")):
        return (
            "float64 meets float32: .float(), or torch.zeros and the like without a dtype, make float32. "
            "x.new_zeros(…) and torch.zeros(…, dtype=x.dtype) have the dtype of x."
        )
    if re.search(r"expected a tensor of shape (\(.*\)), float64, .*\n  got a tensor of shape \1, float32,", difference):
        return "float64 comes in and float32 goes out: .float(), or torch.zeros and the like without a dtype."
    if "expected a tensor" in difference and "got (" in difference:
        return "your code gives several things back, separated by commas; wanted is one tensor."
    if "after the call" in difference:
        return (
            "your code writes into its input: x[…] = …, x += … and operations ending in _ do that. Make a new tensor."
        )
    if "got None" in difference:
        return "is there a return at the end?"
    if "got" in difference and "method" in difference:
        return "a method without brackets is not called: write .mean(), not .mean."
    return ""

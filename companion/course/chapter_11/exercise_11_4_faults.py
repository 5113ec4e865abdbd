"""Exercise 11.4, reading three broken runs."""

from collections.abc import Sequence
from typing import Any

from companion.course.checks.comparison import Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake

FAULTS = (
    "dead codes",
    "a codebook far from its latents",
    "latents running away",
    "a prior that ignores its class",
    "nothing",
)
RIGHT = {"A": "latents running away", "B": "dead codes", "C": "a prior that ignores its class"}


def faults() -> dict[str, str]:
    """The fault of each of the three runs, as the companion's ``diagnose`` names it."""
    return dict(RIGHT)


def cases() -> Sequence[Case]:
    return [Case("the three runs above")]


def run(implementation: Any, case: Case) -> Observed:
    """The answer for each run, under the run's name."""
    answers = implementation()
    if not isinstance(answers, dict):
        return {"the result": kind(answers)}
    if any(name not in answers for name in RIGHT):
        return {"the result": "a dict without A, B or C"}
    if unknown := [name for name in RIGHT if answers[name] not in FAULTS]:
        seen = {"the result": "a dict with words that are none of the five"}
        return seen | {"~ which": unknown[0], "~ what": repr(answers[unknown[0]])}
    return {"the result": "a dict"} | {f"your answer for run {name}": answers[name] for name in RIGHT}


def _with(**changes: str) -> Any:
    return lambda: RIGHT | changes


_NOT_A = "Look at run A again: one of its numbers grows by orders of magnitude, and did not at the start."
_NOT_B = (
    "Look at run B again: how many of the 64 codes were chosen at all? And the length of its latents does not change."
)
_NOT_C = "Look at run C again: its tokenizer is the healthy one. What changes if the prior is told a wrong class?"

MISTAKES = (
    Mistake("A: a prior that ignores its class", _with(A=FAULTS[3]), _NOT_A, also=(_with(A="nothing"),)),
    Mistake(
        "A: dead codes",
        _with(A="dead codes"),
        "Nearly all codes of run A are dead, but that follows from something else: look how long its latents get.",
    ),
    Mistake(
        "A: a codebook far from its latents",
        _with(A="a codebook far from its latents"),
        "In run A the codebook is far from its latents in the end. But which of the two moved? The latents got longer "
        "by orders of magnitude: that came first.",
    ),
    Mistake("B: latents running away", _with(B=FAULTS[2]), _NOT_B, also=(_with(B=FAULTS[3]), _with(B="nothing"))),
    Mistake(
        "B: a codebook far from its latents",
        _with(B="a codebook far from its latents"),
        "Some codes of run B lie among the latents and are chosen. It is the others that nobody chooses.",
    ),
    Mistake("C: nothing", _with(C="nothing"), _NOT_C, also=tuple(_with(C=name) for name in FAULTS[:3])),
    Mistake(
        "A and B exchanged",
        _with(A="dead codes", B="latents running away"),
        "A and B are exchanged. In one the latents get longer without end; in the other their length settles.",
    ),
    Mistake(
        "A and C exchanged",
        _with(A="a prior that ignores its class", C="latents running away"),
        "A and C are exchanged: C is a prior, A a tokenizer.",
    ),
    Mistake(
        "B and C exchanged",
        _with(B="a prior that ignores its class", C="dead codes"),
        "B and C are exchanged: C is a prior, B a tokenizer.",
    ),
    Mistake(
        "other keys",
        lambda: {f"run {name}": fault for name, fault in RIGHT.items()},
        'the keys are the names of the runs, "A", "B" and "C".',
    ),
    Mistake(
        "other words",
        lambda: dict.fromkeys(RIGHT, "broken"),
        "choose among the five words as they stand in the exercise: " + "; ".join(FAULTS) + ".",
    ),
    Mistake(
        "three lines",
        lambda: list(RIGHT.values()),
        'your answer is a list. Wanted is a dict with the names of the runs: {"A": …, "B": …, "C": …}.',
    ),
)

EXERCISE = Exercise(
    name="faults",
    chapter="11_your_own_images",
    reference=faults,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

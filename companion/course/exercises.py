"""All exercises by name, and the check that a notebook calls."""

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import nn

from companion.course import (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
    chapter_09,
    chapter_10,
    chapter_11,
    session,
)
from companion.course.checks.engine import Exercise, Report, examine

CHAPTERS = (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
    chapter_09,
    chapter_10,
    chapter_11,
)


def by_name(exercises: Iterable[Exercise]) -> dict[str, Exercise]:
    """The exercises under their names, in their order.

    Raises:
        ValueError: two have the same name.
    """
    named: dict[str, Exercise] = {}
    for exercise in exercises:
        if exercise.name in named:
            raise ValueError(f"exercise: {exercise.name!r} is already one of chapter {named[exercise.name].chapter}")
        named[exercise.name] = exercise
    return named


EXERCISES = by_name(exercise for chapter in CHAPTERS for exercise in chapter.EXERCISES)


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
    elif isinstance(exercise.reference, type) and isinstance(implementation, nn.Module):
        text = f"❌ {name}: got an object, want the class: check({name}). The notebook goes on with the companion's."
        report = Report("differs", text)
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

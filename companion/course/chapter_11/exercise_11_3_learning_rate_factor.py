"""Exercise 11.3, a schedule: warm-up and cosine, as a function of the step alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def learning_rate_factor(step: int, total: int, warmup: int, floor: float) -> float:
    """What the learning rate is multiplied with in step 0, 1, …, ``total`` − 1.

    A straight line up to 1 (Goyal et al. 2017, section 2.2), then half a cosine down to ``floor`` (Loshchilov and
    Hutter 2017, equation 5): (step + 1) / warmup for step < warmup, then
    floor + (1 − floor)·(1 + cos(π·u)) / 2 with u = (step − warmup) / (total − warmup).
    """
    if step < warmup:
        return (step + 1) / warmup
    u = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * u)) / 2


def cases() -> Sequence[Case]:
    return [
        Case("step 0 of 100, warm-up of 10", (0, 100, 10, 0.0)),
        Case("the last step of the warm-up: 9 of 100", (9, 100, 10, 0.0)),
        Case("the first step after it: 10 of 100", (10, 100, 10, 0.1)),
        Case("in the warm-up, with a floor: step 3 of 50, warm-up of 8", (3, 50, 8, 0.2)),
        Case("early in the warm-up, with a floor above it: step 1 of 50, warm-up of 10", (1, 50, 10, 0.5)),
        Case("step 37 of 100, warm-up of 10, floor 0.1", (37, 100, 10, 0.1)),
        Case("half of the way down: step 30 of 50, warm-up of 10", (30, 50, 10, 0.0)),
        Case("step 80 of 100, warm-up of 20, floor 0.25", (80, 100, 20, 0.25)),
        Case("the last step, 59 of 60, floor 0.05", (59, 60, 7, 0.05)),
        Case("no warm-up: step 0 of 5", (0, 5, 0, 0.5)),
        Case("no warm-up: step 3 of 5", (3, 5, 0, 0.5)),
        Case("a warm-up that fills all steps: step 4 of 5", (4, 5, 5, 0.0)),
    ]


def _variant(
    *,
    up: Callable[[int, int, int, float], Any] = lambda step, total, warmup, floor: (step + 1) / warmup,
    u: Callable[[int, int, int], float] = lambda step, total, warmup: (step - warmup) / (total - warmup),
    down: Callable[[float, float], Any] = lambda u, floor: floor + (1 - floor) * (1 + math.cos(math.pi * u)) / 2,
    warm: Callable[[int, int], bool] = lambda step, warmup: step < warmup,
) -> Callable[[int, int, int, float], Any]:
    """The right answer with one of its parts replaced."""

    def factor(step: int, total: int, warmup: int, floor: float) -> Any:
        return up(step, total, warmup, floor) if warm(step, warmup) else down(u(step, total, warmup), floor)

    return factor


MISTAKES = (
    Mistake(
        "from zero",
        _variant(up=lambda step, total, warmup, floor: step / warmup),
        "the first step has the factor 0, so nothing is learned in it. Steps count from 0: the line is "
        "(step + 1) / warmup.",
    ),
    Mistake(
        "one too long",
        _variant(warm=lambda step, warmup: step <= warmup, up=lambda s, t, w, f: (s + 1) / (w + 1)),
        "the warm-up is one step too long: it has `warmup` steps, 0 to warmup − 1, and the last of them has the factor "
        "1.",
        also=(_variant(warm=lambda step, warmup: step <= warmup),),
    ),
    Mistake(
        "one too short",
        _variant(warm=lambda step, warmup: step + 1 < warmup),
        "the warm-up is one step too short: its last step is warmup − 1, with the factor 1.",
    ),
    Mistake(
        "never below the floor",
        _variant(up=lambda step, total, warmup, floor: max(floor, (step + 1) / warmup)),
        "the floor holds for the cosine only. The warm-up is (step + 1) / warmup, also where that is less.",
    ),
    Mistake(
        "from the floor",
        _variant(up=lambda s, t, w, floor: floor + (1 - floor) * (s + 1) / w),
        "the warm-up begins at the floor. The floor is where the cosine ends; the line goes from nearly 0 to 1.",
    ),
    Mistake(
        "warm-up of the total",
        _variant(up=lambda step, total, warmup, floor: (step + 1) / total),
        "the line is divided by `total`. It is to reach 1 after `warmup` steps.",
    ),
    Mistake(
        "no warm-up",
        _variant(warm=lambda step, warmup: False),
        "there is no warm-up: for step < warmup the factor is (step + 1) / warmup.",
        also=(_variant(up=lambda step, total, warmup, floor: 1.0),),
    ),
    Mistake(
        "cosine over all steps",
        _variant(u=lambda step, total, warmup: step / total),
        "the cosine begins at step 0, so that it is not 1 where the warm-up ends. Count from there: "
        "(step − warmup) / (total − warmup).",
    ),
    Mistake(
        "not the remaining steps",
        _variant(u=lambda step, total, warmup: (step - warmup) / total),
        "the cosine does not arrive at the floor: only total − warmup steps are left for it.",
    ),
    Mistake(
        "divided by one less",
        _variant(u=lambda step, total, warmup: (step - warmup) / max(total - warmup - 1, 1)),
        "your cosine arrives at the floor in the last step; by the formula it would arrive in the step after it. "
        "Divide by total − warmup.",
    ),
    Mistake(
        "one step ahead",
        _variant(u=lambda step, total, warmup: (step + 1 - warmup) / max(total - warmup, 1)),
        "the cosine is one step ahead: in step `warmup` u is 0, and the factor 1.",
    ),
    Mistake(
        "whole cosine",
        _variant(down=lambda u, floor: floor + (1 - floor) * math.cos(math.pi * u)),
        "the cosine itself goes from 1 to −1, and a negative learning rate climbs. (1 + cos) / 2 goes from 1 to 0.",
    ),
    Mistake(
        "a quarter of a cosine",
        _variant(down=lambda u, floor: floor + (1 - floor) * math.cos(math.pi / 2 * u)),
        "this is a quarter of a cosine wave, which falls steeply at the end. Half a wave, (1 + cos(π·u)) / 2, ends "
        "flat.",
    ),
    Mistake(
        "half missing",
        _variant(down=lambda u, floor: floor + (1 - floor) * (1 + math.cos(math.pi * u))),
        "½ is missing: 1 + cos goes from 2 to 0.",
    ),
    Mistake(
        "rising",
        _variant(down=lambda u, floor: floor + (1 - floor) * (1 - math.cos(math.pi * u)) / 2),
        "your cosine rises; 1 + cos(π·u) falls, 1 − cos(π·u) rises.",
    ),
    Mistake(
        "degrees",
        _variant(down=lambda u, floor: floor + (1 - floor) * (1 + math.cos(180 * u)) / 2),
        "math.cos wants radians: π·u, not 180·u.",
        also=(_variant(down=lambda u, floor: floor + (1 - floor) * (1 + math.cos(u)) / 2),),
    ),
    Mistake(
        "two waves",
        _variant(down=lambda u, floor: floor + (1 - floor) * (1 + math.cos(2 * math.pi * u)) / 2),
        "2π is a whole wave: it comes back to 1 at the end. Half a wave is π.",
    ),
    Mistake(
        "no floor",
        _variant(down=lambda u, floor: (1 + math.cos(math.pi * u)) / 2),
        "the floor is missing: the cosine is to go from 1 to `floor`.",
    ),
    Mistake(
        "floor added",
        _variant(down=lambda u, floor: floor + (1 + math.cos(math.pi * u)) / 2),
        "the floor is added to a cosine that starts at 1, so the factor starts above 1. Scale the cosine by 1 − floor.",
    ),
    Mistake(
        "floor as a maximum",
        _variant(down=lambda u, floor: max(floor, (1 + math.cos(math.pi * u)) / 2)),
        "max(floor, …) cuts the cosine off, and stays flat from there. It is to arrive at the floor at the end: "
        "floor + (1 − floor)·(1 + cos) / 2.",
    ),
    Mistake(
        "floor scales",
        _variant(down=lambda u, floor: (1 - floor) * (1 + math.cos(math.pi * u)) / 2),
        "the cosine is scaled by 1 − floor, and the floor is not added.",
    ),
    Mistake(
        "a line",
        _variant(down=lambda u, floor: floor + (1 - floor) * (1 - u)),
        "this falls in a straight line; wanted is half a cosine, flat at both ends.",
    ),
    Mistake(
        "both multiplied",
        lambda step, total, warmup, floor: (
            (min(1.0, (step + 1) / warmup) if warmup else 1.0)
            * (floor + (1 - floor) * (1 + math.cos(math.pi * step / total)) / 2)
        ),
        "line and cosine are multiplied. First the one, then the other: while step < warmup only the line counts.",
    ),
    Mistake(
        "whole numbers",
        _variant(up=lambda step, total, warmup, floor: (step + 1) // warmup),
        "// rounds down to a whole number; / gives the fraction.",
        also=(_variant(u=lambda step, total, warmup: (step - warmup) // max(1, total - warmup)),),
    ),
)

EXERCISE = Exercise(
    name="learning_rate_factor",
    chapter="11_your_own_images",
    reference=learning_rate_factor,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

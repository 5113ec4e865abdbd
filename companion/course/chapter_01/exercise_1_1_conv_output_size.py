"""Exercise 1.1, how many windows: the output size of a convolution along one axis."""

from collections.abc import Sequence

from companion.backbones import conv_output_size
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def cases() -> Sequence[Case]:
    rows = [
        (28, 3, 2, 1),
        (7, 3, 2, 1),
        (28, 4, 2, 1),
        (9, 2, 3, 0),
        (32, 5, 4, 2),
        (5, 5, 1, 0),
        (11, 3, 1, 1),
        (11, 3, 3, 0),
    ]
    cases = [Case(f"size {s}, kernel {k}, stride {t}, padding {p}", (s, k, t, p)) for s, k, t, p in rows]
    return [*cases, Case("size 28, kernel 3, stride 2, no padding given", (28, 3, 2)), Case("size 9, kernel 4", (9, 4))]


MISTAKES = (
    Mistake(
        "no + 1",
        lambda s, k, t=1, p=0: (s + 2 * p - k) // t,
        "you count the steps between windows. There is one window more than there are steps: add 1.",
    ),
    Mistake(
        "padding on one side",
        lambda s, k, t=1, p=0: (s + p - k) // t + 1,
        "padding is added on both sides of the axis, so it counts twice.",
    ),
    Mistake(
        "rounded up",
        lambda s, k, t=1, p=0: -(-(s + 2 * p - k) // t) + 1,
        "you round up. A last window that does not fit whole is left out, so the division rounds down.",
    ),
    Mistake(
        "true division",
        lambda s, k, t=1, p=0: (s + 2 * p - k) / t + 1,
        "/ gives a float, and half windows. Use // to round down to a whole number.",
    ),
    Mistake(
        "kernel forgotten",
        lambda s, k, t=1, p=0: (s + 2 * p) // t + 1,
        "the first window already covers `kernel` positions; only the rest of the axis is left to step over.",
    ),
    Mistake(
        "+ 1 inside",
        lambda s, k, t=1, p=0: (s + 2 * p - k + 1) // t,
        "the + 1 stands outside the division: it counts the first window, which needs no step.",
    ),
    Mistake(
        "size over stride",
        lambda s, k, t=1, p=0: s // t,
        "size // stride is right only where kernel and padding happen to fit. Count where the window can stand.",
    ),
    Mistake(
        "padding forgotten",
        lambda s, k, t=1, p=0: (s - k) // t + 1,
        "padding is not used: the axis is `size + 2 * padding` long when the window slides over it.",
    ),
    Mistake(
        "stride forgotten",
        lambda s, k, t=1, p=0: s + 2 * p - k + 1,
        "the stride is not used: this is the number of windows one step apart.",
    ),
    Mistake(
        "brackets forgotten",
        lambda s, k, t=1, p=0: s + 2 * p - k // t + 1,
        "// binds tighter than + and −, so only the kernel is divided: put brackets around what is left to step over.",
    ),
    Mistake(
        "rounded to the nearest",
        lambda s, k, t=1, p=0: round((s + 2 * p - k) / t) + 1,
        "round() goes to the nearest whole number, sometimes up. Half a window is none: use //.",
    ),
    Mistake(
        "a whole number as a float",
        lambda s, k, t=1, p=0: float((s + 2 * p - k) // t + 1),
        "the number is right, but it is a float. A size is a Python int: use // on ints, or int(…).",
    ),
    Mistake(
        "padding taken away",
        lambda s, k, t=1, p=0: (s - 2 * p - k) // t + 1,
        "padding makes the axis longer, not shorter.",
    ),
    Mistake(
        "kernel written in",
        lambda s, k, t=1, p=0: (s + 2 * p - 3) // t + 1,
        "you take 3 for the kernel, whatever it is: use `kernel`.",
    ),
    Mistake(
        "the parts rounded",
        lambda s, k, t=1, p=0: (s + 2 * p) // t - k // t + 1,
        "you round each part by itself. Take the kernel from the length first, then divide once.",
    ),
    Mistake(
        "other defaults",
        lambda s, k, t=2, p=1: (s + 2 * p - k) // t + 1,
        "right where all four are given, but the defaults were changed: without them stride is 1 and padding 0.",
    ),
)

EXERCISE = Exercise(
    name="conv_output_size",
    chapter="01_autoencoder",
    reference=conv_output_size,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

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
        (10, 3, 3, 1),
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
        also=(
            lambda s, k, t=1, p=0: -(-(s + 2 * p) // t),
            lambda s, k, t=1, p=0: int((s + 2 * p - k) / t + 1.5),
        ),
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
        also=(lambda s, k, t=1, p=0: (s + 2 * p) // t,),
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
    Mistake(
        "stride written in",
        lambda s, k, t=1, p=0: (s + 2 * p - k) // 2 + 1,
        "you take 2 for the stride, whatever it is: use `stride`.",
    ),
    Mistake(
        "padding written in",
        lambda s, k, t=1, p=0: (s + 2 - k) // t + 1,
        "you take 1 for the padding, whatever it is: use `padding`.",
    ),
    Mistake(
        "padding added after the division",
        lambda s, k, t=1, p=0: (s - k) // t + 1 + 2 * p,
        "the padding is added after the division. It makes the axis longer on which the window steps: put it inside.",
        also=(
            lambda s, k, t=1, p=0: (s - k) // t + 1 + 2 * p // t,
            lambda s, k, t=1, p=0: (s - k) // t + 1 + p,
        ),
    ),
    Mistake(
        "a transposed convolution",
        lambda s, k, t=1, p=0: (s - 1) * t - 2 * p + k,
        "this is the way back, the length after a transposed convolution.",
    ),
    Mistake(
        "halved",
        lambda s, k, t=1, p=0: (s + 1) // 2,
        "this halves the length whatever kernel, stride and padding are. Count the windows.",
    ),
    Mistake(
        "one pixel too few",
        lambda s, k, t=1, p=0: (s - 1 + 2 * p - k) // t + 1,
        "you stop one pixel early (range leaves its end out): after the first window size + 2 · padding − kernel "
        "pixels are "
        "left to step over.",
    ),
    Mistake(
        "half of the kernel",
        lambda s, k, t=1, p=0: (s + 2 * p - k // 2) // t + 1,
        "the first window takes the kernel off the length once, neither a half of it nor twice.",
        also=(lambda s, k, t=1, p=0: (s + 2 * p - 2 * k) // t + 1,),
    ),
    Mistake(
        "stride and padding exchanged",
        lambda s, k, t=1, p=0: (s + 2 * t - k) // max(p, 1) + 1,
        "stride and padding are exchanged: the padding makes the axis longer, the stride divides.",
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

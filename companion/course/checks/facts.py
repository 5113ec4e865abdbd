"""What a wrong result looks like, for what no listed mistake explains: only what can be seen in its numbers.

Each function states a fact about one difference ("everywhere −1 times what is wanted"), so that no hint guesses at code
that it has not seen. The first fact that holds is the hint.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import DIAGNOSTIC, Observed, describe_difference

_FACTORS = {
    -1.0: "has the wrong sign",
    2.0: "is twice what is wanted: a factor 2 too many, or a ½ forgotten",
    0.5: "is half of what is wanted: a ½ too many, or a factor 2 forgotten",
    1 / math.log(2): "is 1/ln 2 times what is wanted: bits (log₂) where nats (the natural logarithm) are wanted",
    math.log(2): "is ln 2 times what is wanted: nats (the natural logarithm) where bits (log₂) are wanted",
}
_ERRORS = {  # torch's and Python's words → what they mean in an exercise
    "is invalid for input of size": "the reshape in that line wants another number of elements than there are. Take "
    "the sizes from the tensor itself (x.shape), not from another tensor and not from the text's example.",
    "cannot be multiplied": "the matrix product needs (n, k) @ (k, m): print both shapes before that line. An axis is "
    "missing, one too many, or transposed.",
    "must match the size of tensor b": "two tensors meet whose shapes do not fit each other: print both shapes before "
    "that line. Were axes to be summed, moved or added first?",
    "values to unpack": "that line takes something apart into a fixed number of parts, and on this input there is "
    "another number (such as of axes).",
    "is out of bounds for dimension": "an index goes past the end: was a size written in that this input does not "
    "have?",
    "Dimension out of range": "there is no such axis on this input: inputs may have fewer axes than in the text.",
    "does not require grad": "a tensor no longer wants a gradient: detach_() and requires_grad_(False) change the "
    "caller's tensor itself. detach() gives another one.",
    "channels, but got": "a convolution gets another number of channels than it was built for: were channels picked or "
    "moved?",
    "floor_divide": "// rounds down and has no gradient: divide by /.",
    "shape of the mask": "x[mask] = … needs a mask of x's own shape, without broadcasting: use torch.where.",
}


def of_an_error(text: str) -> str:
    """What an exception's words mean, as far as they say it."""
    return next((hint for words, hint in _ERRORS.items() if words in text), "")


def what_is_seen(pairs: Sequence[tuple[Observed, Observed]], tolerance: float) -> str:
    """A fact about the first thing that differs, or nothing.

    Args:
        pairs: what was expected and what came, first for the input that differs, then for others (a factor between two
            single numbers says nothing unless it is the same on several inputs).
        tolerance: as ``describe_difference`` takes it.
    """
    expected, got = pairs[0]
    names = [n for n in expected if not n.startswith(DIAGNOSTIC) and n in got]
    name = next((n for n in names if describe_difference({n: expected[n]}, {n: got[n]}, tolerance)), "")
    want, have = expected.get(name), got.get(name)
    if not name or name.endswith("after the call") or have is None:
        return ""
    if isinstance(have, tuple) and not isinstance(want, tuple):
        return "your code gives several things back; one is wanted."
    if isinstance(want, Tensor) != isinstance(have, Tensor):
        return _tensor_or_number(want, have)
    if isinstance(want, Tensor) and (want.shape, want.dtype) != (have.shape, have.dtype):
        return _shape(want, have) or _dtype(want, have)
    in_eval = "the result in eval()"
    if (
        name == "the result"
        and in_eval in got
        and not describe_difference({in_eval: expected[in_eval]}, got, tolerance)
    ):
        return "right in eval(), but not in training mode: something in it acts in training only, such as dropout."
    all_of_it = [(_numbers(e.get(name)), _numbers(g.get(name))) for e, g in pairs]
    numbers = [(w, h) for w, h in all_of_it if w is not None and h is not None and w.shape == h.shape]
    first = all_of_it[0]
    return _values(name, numbers, tolerance) if numbers and numbers[0][0] is first[0] else ""


def _numbers(value: Any) -> Tensor | None:
    """Floating-point numbers as a float64 tensor; None for all else."""
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() and not value.is_meta and value.numel() else None
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else None


def _tensor_or_number(want: Any, have: Any) -> str:
    if isinstance(want, Tensor) and isinstance(have, int | float):
        return "this is a Python number; a tensor is wanted: leave out .item(), float(…) or math.…"
    if isinstance(want, int | float) and isinstance(have, Tensor) and have.numel() == 1:
        return f"this is a tensor; a Python {type(want).__name__} is wanted: .item(), or int(…) and float(…)."
    if isinstance(want, Tensor) and isinstance(have, list):
        return "this is a list; one tensor is wanted: torch.stack, or torch.tensor."
    return ""


def _shape(want: Tensor, have: Tensor) -> str:
    w, h = tuple(want.shape), tuple(have.shape)
    if w == h:
        return ""
    if [n for n in w if n != 1] == [n for n in h if n != 1]:
        more = "too many" if len(h) > len(w) else "missing"
        return f"only an axis of length 1 is {more}: {h} in place of {w}. Look for keepdim, unsqueeze, squeeze or None."
    if not w:
        return f"one number is wanted, and this is {h}: some axes are left. Reduce over all of them."
    if not h:
        return f"this is one number, and {w} is wanted: too much was summed, averaged or searched through at once."
    if sorted(w) == sorted(h):
        return f"the axes come in another order: {h} in place of {w}."
    if len(h) < len(w) and math.prod(w) == math.prod(h):
        return f"axes were melted into one: {h} in place of {w}. A reshape to the shape wanted is missing."
    return ""


def _dtype(want: Tensor, have: Tensor) -> str:
    w, h = (str(v.dtype).removeprefix("torch.") for v in (want, have))
    if w == h or want.shape != have.shape:
        return ""
    if want.is_floating_point() == have.is_floating_point() and want.dtype == torch.float32 and h == "float64":
        return "float32 came in and float64 goes out: .double() or numpy on the way. Give the dtype back that came."
    if w == "float64" and h == "float32":
        return ""  # the engine's own words
    return f"shape right, dtype not: {h} in place of {w}."


def _values(name: str, numbers: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> str:
    """Facts about numbers of the same shape; the first pair is the one that differs."""
    want, have = numbers[0]

    def alike(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).abs() <= tolerance * max(float(a.abs().max()), 1e-12)).all())

    if bool(want.isfinite().all()) and not bool(have.isfinite().all()):
        if bool(have.isnan().any()):
            return f"there is NaN in {name}: the logarithm or root of a negative number, 0/0, 0·∞ or ∞ − ∞ on the way."
        return f"there is ∞ in {name}: a logarithm of 0, a division by 0, or an exp that overflows on the way."
    if not bool(have.isfinite().all()) or not bool(want.isfinite().all()):
        return ""
    if fact := _factor(name, numbers, alike):
        return fact
    if want.numel() < 4:
        return ""
    if alike(want.abs(), have) and bool((want < 0).any()):
        return f"{name} is right but for its sign, which is lost: something takes absolute values (or squares)."
    low, high = float(have.min()), float(have.max())
    if low < high and alike(want.clamp(low, high), have) and not alike(want, have):
        return f"{name} is cut off at {low if want.min() < low else high:.4g} and right elsewhere: a clamp (or relu)."
    if alike(want + (have - want).mean(), have):
        return f"{name} is off by the same number everywhere: {float((have - want).mean()):+.4g}."
    if alike(want.flatten().sort().values, have.flatten().sort().values):
        return f"{name} has the right numbers in other places: axes, or the images of the batch, are exchanged."
    if (
        name == "the result"
        and want.ndim > 1
        and len(want) > 2
        and alike(want[0], have[0])
        and not alike(want[1:], have[1:])
    ):
        return f"{name} is right at the first place of the first axis only (the first image, or the first step)."
    return ""


def _factor(name: str, numbers: Sequence[tuple[Tensor, Tensor]], alike: Any) -> str:
    """One factor for all numbers; of single numbers only if it is the same on two inputs or more."""
    want, have = numbers[0]
    square = float(want.square().sum())
    if square == 0:
        return ""
    factor = float((want * have).sum()) / square
    if not alike(factor * want, have) or abs(factor) < 1e-9 or abs(factor - 1) < 1e-2:
        return ""
    if want.unique().numel() < 3:
        same = [alike(factor * w, h) for w, h in numbers if bool(w.any())]
        if len(same) < 2 or not all(same):
            return ""
    known = next((words for value, words in _FACTORS.items() if abs(factor / value - 1) < 1e-5), "")
    return f"{name} {known or f'is everywhere {factor:.4g} times what is wanted'}."

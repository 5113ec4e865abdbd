"""How the results of two implementations are compared, and how a difference is put into words."""

import math
from typing import Any

import torch
from torch import Tensor

Observed = dict[str, Any]  # name of what was looked at → tensor, number, None, ... in the order of comparison
DIAGNOSTIC = "~ "  # what starts so is no part of the verdict; it only tells one mistake from another
IN_FLOAT64 = 1e-8  # the largest tolerance of float64 tensors: what passed through float32 is off by more


def describe_difference(
    expected: Observed, got: Observed, tolerance: float, *, diagnostics: bool = False, in_float64: float = IN_FLOAT64
) -> str:
    """What differs first, with expected and got; empty where nothing does.

    Args:
        tolerance: relative to the largest expected number.
        diagnostics: whether to compare also what is no part of the verdict.
        in_float64: the largest tolerance where a float64 tensor is expected.
    """
    for name, want in expected.items():
        if name.startswith(DIAGNOSTIC) and not diagnostics:
            continue
        if name not in got:
            return f"  {name} is missing"
        if name.startswith("the gradient of") and got[name] is None and isinstance(want, Tensor):
            # What does not count on this input may be left out as well as multiplied by zero.
            problem = "expected a gradient\n  got none: nothing flows back to it" if want.any() else ""
        elif diagnostics and name.startswith("the gradient of") and want is None and isinstance(got[name], Tensor):
            problem = (
                "expected none" if got[name].any() else ""
            )  # of two mistakes one may leave out, the other multiply
        else:
            problem = _compare(want, got[name], tolerance, in_float64)
        if problem:
            return f"  {name}: {problem}"
    return ""


def kind(value: Any) -> str:
    """The class of a value, with its article: "a list", "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _compare(want: Any, have: Any, tolerance: float, in_float64: float) -> str:
    if isinstance(want, Tensor):
        fine = want.dtype == torch.float64
        return _compare_tensors(want, have, min(tolerance, in_float64) if fine else tolerance)
    if isinstance(have, Tensor):
        return f"expected {want!r}\n  got a tensor of shape {tuple(have.shape)}"
    if type(want) is type(have) and isinstance(want, list | tuple) and len(want) == len(have):
        return next((p for w, h in zip(want, have, strict=True) if (p := _compare(w, h, tolerance, in_float64))), "")
    if type(want) is type(have) and isinstance(want, dict) and want.keys() == have.keys():
        return next((p for name in want if (p := _compare(want[name], have[name], tolerance, in_float64))), "")
    if isinstance(want, float) and isinstance(have, int | float):
        close = abs(want - have) <= tolerance * max(abs(want), 1e-12)
        alike = want == have or (math.isnan(want) and math.isnan(have))  # two mistakes may agree in being none
        return "" if close or alike else f"expected {want:.6g}\n  got {have:.6g}"
    if type(want) is not type(have):
        return f"expected {want!r}, {kind(want)}\n  got {_shortened(have)}, {kind(have)}"
    if want != have:
        return f"expected {want!r}\n  got {_shortened(have)}"
    return ""


def _compare_tensors(want: Tensor, have: Any, tolerance: float) -> str:
    if not isinstance(have, Tensor):
        return f"expected {_tensor_kind(want)}\n  got {_shortened(have)}"
    if (want.shape, want.dtype, want.device) != (have.shape, have.dtype, have.device):
        return f"expected {_tensor_kind(want)}\n  got {_tensor_kind(have)}"
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
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape)]
    where = f" at {index} ({int(wrong.sum())} of {want.numel()} numbers differ)" if want.ndim else ""
    one, other = (float(v.flatten()[worst]) + 0.0 for v in (a, b))  # + 0.0: no "-0"
    digits = next((d for d in (6, 9) if f"{one:.{d}g}" != f"{other:.{d}g}"), 17)
    return f"expected {one:.{digits}g}\n  got {other:.{digits}g}{where}"


def _tensor_kind(value: Tensor) -> str:
    return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, on {value.device}"


def _shortened(value: Any) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{text[:77]}…" if len(text) > 78 else text

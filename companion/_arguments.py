"""Checks of the arguments of public functions. All errors have one form: ``argument: got …, want …``.

Each check returns nothing and raises ``ValueError``, also for a wrong type, so that callers have one kind of error to
catch. Shapes and types are always checked. Checking *values* (finite, in a range) waits for the device and cannot be
traced: it is left out inside :func:`unchecked_values`, and while torch compiles or exports.
"""

import numbers
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# More channels, codes or images in one call are a mistake, and the allocator's message would not say so.
LARGEST = 2**24
DEEPEST = 1000  # layers

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CPU = torch.device("cpu")
_LARGEST_FLOAT = sys.float_info.max
_checking = ContextVar("checking", default=True)
_ROUNDING = 1e-3  # how far outside [0, 1] an image may be: as far as resizing rounds, less than a grey value


class NotFiniteError(ValueError):
    """NaN or infinity where finite numbers are wanted."""


@contextmanager
def unchecked_values() -> Iterator[None]:
    """No tensor is checked for NaN, infinity or range in this block; types and shapes still are.

    For code that must not wait for the device, and for tracing with tensors that have no values.
    """
    if torch.compiler.is_compiling():  # nothing is read there anyway, and a context variable cannot be traced
        yield
        return
    token = _checking.set(False)
    try:
        yield
    finally:
        _checking.reset(token)


def checks_values(value: Tensor) -> bool:
    """Whether the numbers in ``value`` can and should be checked here."""
    return not torch.compiler.is_compiling() and _checking.get() and not value.is_meta and value.numel() > 0


def check_whole(name: str, value: Any, *, least: int | None = 1, most: int | None = None) -> None:
    """A whole number (Python's or numpy's, no bool, no float) from ``least`` to ``most``.

    Raises:
        ValueError: it is none, or outside.
    """
    want = f"a whole number{_range(least, most)}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name}: got {brief(value)}, want {want}")
    if (least is not None and int(value) < least) or (most is not None and int(value) > most):
        raise ValueError(f"{name}: got {brief(value)}, want {want}")


def check_size(name: str, value: Any, *, least: int = 1, most: int = LARGEST) -> None:
    """A whole number that decides how much memory or time is used: channels, codes, layers, images in a call.

    Raises:
        ValueError: it is none, or outside.
    """
    check_whole(name, value, least=least, most=most)


def check_sizes(
    name: str, value: Any, *, length: int | None = None, least: int = 1, most: int = LARGEST, empty: bool = False
) -> None:
    """A sequence of whole numbers: a grid, a factor for each axis. It has ``length`` numbers, if given.

    Args:
        empty: also allow a sequence of none.

    Raises:
        ValueError: it is none, has another length, or a number is outside.
    """
    one = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    whole = one and all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in value)
    right = len(value) == length if whole and length is not None else whole and (empty or len(value) > 0)
    if not right or not all(least <= int(n) <= most for n in value):
        many = "" if length is None else f"{length} "
        raise ValueError(f"{name}: got {brief(value)}, want a sequence of {many}whole numbers{_range(least, most)}")


def check_flag(name: str, value: Any) -> None:
    """True or False, and nothing else that Python would convert to them.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {brief(value)}, want True or False")


def check_instance(name: str, value: Any, kind: type | tuple[type, ...], want: str) -> None:
    """An instance of ``kind``, in words ``want``.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name}: got {brief(value)}, want {want}")


def check_device(name: str, value: Any) -> None:
    """A device, or its name.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        known = isinstance(value, torch.device) or (isinstance(value, str) and bool(torch.device(value).type))
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"{name}: got {brief(value)}, want a torch.device or its name, such as 'cpu' or 'cuda'")


def check_float_type(name: str, value: Any) -> None:
    """A floating-point type of torch.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, torch.dtype) or value not in _FLOATS:
        raise ValueError(f"{name}: got {brief(value)}, want one of {', '.join(map(str, _FLOATS))}")


def check_available(name: str, value: torch.device | str) -> None:
    """A device to which tensors can be brought on this machine.

    Raises:
        ValueError: it is none, or this machine lacks it.
    """
    check_device(name, value)
    device = torch.device(value)
    if device.type in ("cpu", "meta"):
        return
    try:
        module = torch.get_device_module(device.type)
        there = bool(module.is_available()) and (device.index or 0) < int(module.device_count())
    except (RuntimeError, AttributeError):  # torch has no module for devices of this type
        there = False
    if not there:
        raise ValueError(f"{name}: got {str(device)!r}, want one that this machine has")


def expanded(name: str, value: Any) -> Path:
    """A path, as a string or a ``Path``, with the folder of the user in place of ``~``.

    Raises:
        ValueError: it is none, or that folder is not known.
    """
    check_instance(name, value, (str, os.PathLike), "a string or a path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: got {brief(value)}, want a path that there is ({error})") from error


def check_module(name: str, value: Any) -> None:
    """A torch module.

    Raises:
        ValueError: it is none.
    """
    check_instance(name, value, nn.Module, "a torch.nn.Module")


def check_generator(name: str, value: Any) -> None:
    """None, or a random generator, of any device.

    Raises:
        ValueError: it is none.
    """
    if value is not None:
        check_instance(name, value, torch.Generator, "a torch.Generator or None")


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """A finite number (no bool), from ``least`` to ``most`` or strictly between ``above`` and ``below``.

    Raises:
        ValueError: it is none, NaN, infinite or outside.
    """
    limits = [
        text
        for limit, text in (
            (least, f"at least {least}"),
            (above, f"more than {above}"),
            (most, f"at most {most}"),
            (below, f"less than {below}"),
        )
        if limit is not None
    ]
    want = "a finite number" + (f", {' and '.join(limits)}" if limits else "")
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name}: got {brief(value)}, want {want}")
    # Python's floats do not overflow in comparisons, as numpy's may.
    real: Any = value if isinstance(value, numbers.Rational) else float(value)
    inside = (
        -_LARGEST_FLOAT <= real <= _LARGEST_FLOAT  # false for NaN and infinity, and for whole numbers beyond floats
        and (least is None or real >= least)
        and (above is None or real > above)
        and (most is None or real <= most)
        and (below is None or real < below)
    )
    if not inside:
        raise ValueError(f"{name}: got {brief(value)}, want {want}")


def check_choice(name: str, value: Any, options: Collection[str]) -> None:
    """One of the strings in ``options``.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: got {brief(value)}, want one of {', '.join(map(repr, options))}")


def check_tensor(
    name: str,
    value: Any,
    *,
    shape: tuple[int | str, ...] | None = None,
    dtype: torch.dtype | None = None,
    finite: bool = False,
) -> None:
    """A tensor of ``dtype`` (default: any floating point) and of ``shape``.

    In ``shape``, a number is the length of an axis; a name, such as "B", stands for any length of at least 1; a name
    that begins with ``*`` stands for any number of axes, as in ``("B", 8, "*spatial")``.

    Args:
        finite: refuse NaN and infinity.

    Raises:
        ValueError: it is none, or another.
    """
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    fits = dense and (value.dtype in _FLOATS if dtype is None else value.dtype == dtype)
    if not fits or (shape is not None and not _has_shape(value, shape)):
        raise ValueError(_not_that_tensor(name, value, shape, dtype))  # apart: sizes that are traced cannot be shown
    if finite:
        check_finite(name, value)


def _not_that_tensor(name: str, value: Any, shape: tuple[int | str, ...] | None, dtype: torch.dtype | None) -> str:
    """What :func:`check_tensor` says."""
    kind = "floating point" if dtype is None else _short(dtype)
    want = kind if shape is None else f"{kind} of shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if not isinstance(value, Tensor):
        return f"{name}: got {brief(value)}, want a tensor, {want}"
    if value.layout != torch.strided or value.is_nested:
        return f"{name}: got a sparse or nested tensor, want a dense one, {want}"
    fits = value.dtype in _FLOATS if dtype is None else value.dtype == dtype
    least = _too_short(value, shape) if fits and shape is not None else ""
    return f"{name}: got {described(value)}, want {want}{least}"


def check_same_shape(name: str, value: Any, of: str, other: Tensor) -> None:
    """Floating point, of the shape of another argument, since broadcasting would hide a mistake.

    Raises:
        ValueError: no tensor, or another shape.
    """
    check_tensor(name, value)
    check_same_device(name, value, of, other)
    if value.shape != other.shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want that of {of}, {tuple(other.shape)}")


def check_same_device(name: str, value: Tensor, of: str, other: Tensor) -> None:
    """On the device of another argument.

    Raises:
        ValueError: it is on another.
    """
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, want it where {of} is, on {other.device}")


def check_place(name: str, value: Tensor, device: torch.device = _CPU, *, movable: bool = False) -> None:
    """On ``device``; with ``movable``, on any device from which it can be copied there: not on "meta", without numbers.

    Raises:
        ValueError: it is on another.
    """
    if value.device != device and (not movable or "meta" in (value.device.type, device.type)):
        raise ValueError(f"{name}: got a tensor on {value.device}, want one on {device}")


def check_fits(name: str, value: Tensor, weight: Tensor | None, *, of: str = "the model") -> None:
    """Of the type and on the device of a module's ``weight``; under autocast, which converts, of any type.

    Raises:
        ValueError: it has another; the message says how to convert it.
    """
    if weight is None:
        return
    if value.device != weight.device:
        where = str(weight.device)
        raise ValueError(f"{name}: got a tensor on {value.device}, want it where {of} is: {name}.to({where!r})")
    if value.dtype != weight.dtype and not torch.is_autocast_enabled(value.device.type):
        way = f"{name}.to({weight.dtype})"
        raise ValueError(f"{name}: got {_short(value.dtype)}, want {_short(weight.dtype)} as {of} is: {way}")


def check_finite(name: str, value: Tensor) -> None:
    """Neither NaN nor infinity.

    Raises:
        ValueError: there are some; the message says how many of each.
    """
    if not checks_values(value) or not value.is_floating_point():
        return
    low, high = value.detach().aminmax()
    if not bool((low - low + high - high) == 0):  # ∞ − ∞ is NaN, and NaN equals nothing
        nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
        raise NotFiniteError(
            f"{name}: got {nan} NaN and {infinite} infinite of {value.numel()} numbers, want finite ones"
        )


def check_between(name: str, value: Tensor, low: float, high: float) -> None:
    """Every number is from ``low`` to ``high``; an empty tensor passes.

    Raises:
        ValueError: one is outside, or NaN; the message gives the smallest and the largest.
    """
    if not checks_values(value):
        return
    least, most = (one.item() for one in value.detach().aminmax())
    if not (least >= low and most <= high):  # false for NaN too
        shown = f"{least} to {most}" if isinstance(least, int) else f"{least:.4g} to {most:.4g}"
        raise ValueError(f"{name}: got {shown}, want {low} to {high}")


def check_codes(name: str, value: Any, num_codes: int) -> None:
    """int64 of any shape, each one of 0 … ``num_codes`` − 1.

    Raises:
        ValueError: another type, or one is outside.
    """
    check_tensor(name, value, dtype=torch.int64)
    check_between(name, value, 0, num_codes - 1)


def check_images(
    name: str, value: Any, *, shape: tuple[int | str, ...] = ("B", "C", "H", "W"), slack: float = _ROUNDING
) -> None:
    """Images (B, C, H, W), or of another ``shape``, floating point, in [0, 1] up to ``slack``.

    Raises:
        ValueError: bytes, another shape, NaN, or numbers outside, such as those of images in 0 … 255 or −1 … 1.
    """
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        raise ValueError(f"{name}: got uint8, want floating point in [0, 1]: {name}.float() / 255")
    check_tensor(name, value, shape=shape)
    check_unit_range(name, value, slack=slack)


def check_channels_first(name: str, value: Tensor) -> None:
    """(B, C, H, W), and not (B, H, W, C), as numpy and pillow have it: no image is 3 or 4 pixels wide in many channels.

    Raises:
        ValueError: the channels come last.
    """
    if value.shape[-1] in (3, 4) and value.shape[1] > 4:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, want (B, C, H, W), the channels first: {name}.permute(0, 3, 1, 2)"
        )


def check_rebuilt(reconstruction: Tensor, z: Tensor, x: Tensor) -> None:
    """The reconstruction has the shape of ``x``.

    Raises:
        ValueError: it has another; the message gives the shapes that encoder and decoder made.
    """
    check_given("decoder", reconstruction, "images")
    if reconstruction.shape != x.shape:
        start, middle, end = (tuple(value.shape) for value in (x, z, reconstruction))
        raise ValueError(
            f"decoder: got {end} from it, want the shape of x, {start}: the encoder makes {start} into {middle}, "
            f"and the decoder {middle} into {end}"
        )


def check_given(name: str, value: Any, what: str) -> None:
    """What the module called ``name`` gave is a tensor.

    Raises:
        ValueError: it is something else, such as the whole result of a model.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: gave {brief_kind(value)}, want one that gives {what} as a tensor")


def encoded(encode: Callable[..., Any], x: Tensor) -> Any:
    """``encode(x)``, latents (B, …) of images.

    Raises:
        ValueError: the encoder does not take the images, gives something else, or takes latents, as a decoder does.
    """
    try:
        z = encode(x)
    except (ValueError, RuntimeError) as error:
        if is_about_shapes(error):
            raise ValueError(f"encoder: does not take images of shape {tuple(x.shape)} ({error})") from error
        if not str(error).startswith("z: "):
            raise
        raise ValueError(
            f"encoder: got one that takes latents, want one that takes images; are encoder and decoder swapped? "
            f"({error})"
        ) from error
    check_given("encoder", z, "latents (B, D, …)")
    if z.ndim < 2 or z.shape[0] != x.shape[0]:
        raise ValueError(f"encoder: gave shape {tuple(z.shape)}, want latents (B, D, …) with B = {len(x)}")
    return z


def judged(discriminate: Callable[..., Any], x: Tensor) -> Tensor:
    """``discriminate(x)``, logits (B, …) of images.

    Raises:
        ValueError: the discriminator does not take the images, or gives something else. The message names the
            discriminator, since its x may have another name where the caller passed it.
    """
    try:
        logits = discriminate(x)
    except (ValueError, RuntimeError) as error:
        if not is_about_shapes(error) and not str(error).startswith("x: "):
            raise
        raise ValueError(f"discriminator: does not take images of shape {tuple(x.shape)} ({error})") from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"discriminator: gave {brief_kind(logits)}, want logits (B, …), a tensor")
    if logits.ndim < 1 or logits.shape[0] != x.shape[0]:
        raise ValueError(f"discriminator: gave shape {tuple(logits.shape)}, want logits (B, …) with B = {len(x)}")
    return logits


def check_decoded(z: Tensor, images: Tensor) -> None:
    """Images that leave the library, and are not of a training step, are finite.

    Raises:
        ValueError: there is NaN or infinity in them, or else in the latents that the encoder made.
    """
    try:
        check_finite("decoder", images)
    except NotFiniteError:
        check_finite("encoder", z)
        raise


def check_weights(model: nn.Module) -> None:
    """No parameter is NaN or infinite; the message names the first that is.

    Raises:
        ValueError: one is.
    """
    for name, weight in model.named_parameters():
        check_finite(name, weight)


def decoded(decode: Callable[..., Any], z: Tensor, *more: Any) -> Any:
    """``decode(z, *more)``, for latents z that an encoder made.

    Raises:
        ValueError: the decoder does not take them. The message names the decoder, since the caller passed no z.
    """
    try:
        return decode(z, *more)
    except (ValueError, RuntimeError) as error:
        if is_about_shapes(error):
            raise ValueError(
                f"decoder: does not take the encoder's latents of shape {tuple(z.shape)} ({error})"
            ) from error
        if not str(error).startswith("z: "):
            raise
        if isinstance(error, NotFiniteError):
            raise NotFiniteError(f"encoder: gave latents that are not finite, want finite ones ({error})") from error
        raise ValueError(f"decoder: got latents of the encoder that it does not take, want others ({error})") from error


def is_about_shapes(error: Exception) -> bool:
    """Whether it is torch's own, of a layer that was given a tensor of a shape that it does not take."""
    own = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    return own and any(word in str(error) for word in ("shape", "size", "channels", "dimension"))


def check_unit_range(name: str, value: Tensor, *, slack: float = _ROUNDING) -> None:
    """In [0, 1] up to ``slack``, by default what rounding leaves.

    Raises:
        ValueError: NaN or outside.
    """
    if not checks_values(value):
        return
    least, most = (float(one) for one in value.detach().aminmax())
    if not (least >= -slack and most <= 1 + slack):
        bytes_, centred = least >= 0 and most > 2, -1.1 <= least < 0 and most <= 1.1
        way = f": {name} / 255" if bytes_ else f": ({name} + 1) / 2" if centred else ""
        raise ValueError(f"{name}: got numbers from {least:.4g} to {most:.4g}, want images in [0, 1]{way}")


def check_about_unit(name: str, value: Tensor) -> None:
    """From −1 to 2: what a decoder gives may leave [0, 1], but not as images in 0 … 255 do.

    Raises:
        ValueError: NaN or outside.
    """
    if not checks_values(value):
        return
    least, most = (float(one) for one in value.detach().aminmax())
    if not (least >= -1 and most <= 2):
        way = f": {name} / 255" if least >= 0 else ""
        raise ValueError(f"{name}: got numbers from {least:.4g} to {most:.4g}, want images in about [0, 1]{way}")


def _has_shape(value: Tensor, shape: tuple[int | str, ...]) -> bool:
    axes = list(value.shape)
    starred = [i for i, one in enumerate(shape) if isinstance(one, str) and one.startswith("*")]
    if starred:
        rest = len(shape) - 1 - starred[0]  # of the axes after it
        if len(axes) < len(shape) - 1:
            return False
        if 0 in axes[starred[0] : len(axes) - rest]:
            return False
        axes = axes[: starred[0]] + axes[len(axes) - rest :]
        shape = shape[: starred[0]] + shape[starred[0] + 1 :]
    return len(axes) == len(shape) and all(
        have >= 1 if isinstance(want, str) else have == want for have, want in zip(axes, shape, strict=True)
    )


def _too_short(value: Tensor, shape: tuple[int | str, ...]) -> str:
    """What the message adds if the shape is right except for axes of length 0."""
    if 0 not in value.shape or not _has_shape(value.new_empty([max(n, 1) for n in value.shape], device="meta"), shape):
        return ""
    if any(isinstance(axis, str) and axis.startswith("*") for axis in shape):
        return " and no axis of length 0"
    return f" with {' and '.join(str(axis) for axis, n in zip(shape, value.shape, strict=True) if n == 0)} at least 1"


def _range(least: float | None, most: float | None) -> str:
    if most is not None:
        return f" from {least} to {most}" if least is not None else f" of at most {most}"
    return f" of at least {least}" if least is not None else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def described(value: Tensor) -> str:
    """Type and shape, as error messages give them: "float32 of shape (2, 3)"."""
    return f"{_short(value.dtype)} of shape {tuple(value.shape)}"


def brief(value: Any) -> str:
    """The value, or its type where it is long or would be shown as an address: an error is a line and no dump."""
    if isinstance(value, Tensor):
        return f"{_article(_short(value.dtype))} tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 100:  # Python refuses to write very long ones
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text and " at 0x" not in text else _article(type(value).__name__)


def brief_kind(value: Any) -> str:
    """The type of the value, with its article."""
    return _article(type(value).__name__)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeioAEIO' else 'a'} {noun}"  # a uint8

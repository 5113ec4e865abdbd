"""The downsampling factor f of encoders and decoders: its checks, and the strided convolutions that reach it."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from companion._arguments import DEEPEST, check_size, check_sizes, check_tensor, check_whole

LARGEST_FACTOR = 256
AXES = {1: ("length",), 2: ("height", "width"), 3: ("time", "height", "width")}  # of sounds, images and video
LETTERS = {1: ("T",), 2: ("H", "W"), 3: ("T", "H", "W")}


def check_channels(num_blocks: int, **sizes: int) -> None:
    for name, size in sizes.items():
        check_size(name, size)
    check_size("num_blocks", num_blocks, least=0, most=DEEPEST)


def pair(value: int | tuple[int, int], *, argument: str = "factor", most: int = LARGEST_FACTOR) -> tuple[int, int]:
    """One number for both axes, or (height, width)."""
    rows, columns = each_axis(value, 2, argument=argument, most=most)
    return rows, columns


def each_axis(
    value: int | Sequence[int], dims: int, *, argument: str = "factor", most: int = LARGEST_FACTOR
) -> tuple[int, ...]:
    """One number for all axes, or one for each of ``dims``."""
    if not isinstance(value, Sequence):
        check_whole(argument, value, most=most)
        return (int(value),) * dims
    check_sizes(argument, value, length=dims, most=most)
    return tuple(int(one) for one in value)


def stages(factor: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The strides of one convolution each: (4, 4) → [(2, 2), (2, 2)], (2, 4) → [(2, 2), (1, 2)], (7,) → [(7,)]."""
    primes = [_primes(f) for f in factor]
    length = max(map(len, primes))
    strides = [axis + [1] * (length - len(axis)) for axis in primes]
    assert tuple(map(prod, strides)) == factor
    return list(zip(*strides, strict=True))


def _primes(n: int) -> list[int]:
    return next(([p, *_primes(n // p)] for p in range(2, n + 1) if n % p == 0), [])


def window(stride: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and padding for which size / stride comes out whole, and every pixel of a transposed convolution
    is covered equally often (the kernel is a multiple of the stride: no checkerboard)."""
    options = [{1: (3, 1)}.get(s, (s, 0) if s % 2 else (2 * s, s // 2)) for s in stride]
    return tuple(kernel for kernel, _ in options), tuple(padding for _, padding in options)


def check_image(x: Tensor, channels: int, factor: tuple[int, ...]) -> None:
    check_tensor("x", x, shape=("B", channels, *LETTERS[len(factor)]))
    check_divides("x", x.shape[2:], "factor", factor)


def check_divides(argument: str, size: Sequence[int], by: str, factor: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: a height or width is no multiple of the factor; the message gives the nearest that are.
    """
    for axis, length, f in zip(AXES[len(factor)], size, factor, strict=True):
        if length % f:
            nearest = " or ".join(str(s) for s in (length // f * f, (length // f + 1) * f) if s > 0)
            raise ValueError(
                f"{argument}: got {axis} {length}, want a multiple of the {by} {f}; the nearest: {nearest}"
            )

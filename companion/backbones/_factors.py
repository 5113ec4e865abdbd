"""The downsampling factor f of encoders and decoders: its checks, and the strided convolutions that reach it."""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from companion._arguments import DEEPEST, check_size, check_sizes, check_tensor, check_whole

LARGEST_FACTOR = 256


def check_channels(num_blocks: int, **sizes: int) -> None:
    for name, size in sizes.items():
        check_size(name, size)
    check_size("num_blocks", num_blocks, least=0, most=DEEPEST)


def pair(value: int | tuple[int, int], *, argument: str = "factor", most: int = LARGEST_FACTOR) -> tuple[int, int]:
    """One number for both axes, or (height, width)."""
    if not isinstance(value, Sequence):
        check_whole(argument, value, most=most)
        return int(value), int(value)
    check_sizes(argument, value, length=2, most=most)
    return int(value[0]), int(value[1])


def stages(factor: tuple[int, int]) -> list[tuple[int, int]]:
    """One stride pair per convolution: (4, 4) → [(2, 2), (2, 2)], (2, 4) → [(2, 2), (1, 2)], 7 → [(7, 7)]."""
    rows, columns = (_primes(f) for f in factor)
    length = max(len(rows), len(columns))
    rows, columns = (axis + [1] * (length - len(axis)) for axis in (rows, columns))
    assert prod(rows) == factor[0]
    assert prod(columns) == factor[1]
    return list(zip(rows, columns, strict=True))


def _primes(n: int) -> list[int]:
    return next(([p, *_primes(n // p)] for p in range(2, n + 1) if n % p == 0), [])


def window(stride: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and padding for which size / stride comes out whole, and every pixel of a transposed convolution
    is covered equally often (the kernel is a multiple of the stride: no checkerboard)."""
    options = [{1: (3, 1)}.get(s, (s, 0) if s % 2 else (2 * s, s // 2)) for s in stride]
    return (options[0][0], options[1][0]), (options[0][1], options[1][1])


def check_image(x: Tensor, channels: int, factor: tuple[int, int]) -> None:
    check_tensor("x", x, shape=("B", channels, "H", "W"))
    check_divides("x", x.shape[2:], "factor", factor)


def check_divides(argument: str, size: Sequence[int], by: str, factor: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: a height or width is no multiple of the factor; the message gives the nearest that are.
    """
    for axis, length, f in zip(("height", "width"), size, factor, strict=True):
        if length % f:
            nearest = " or ".join(str(s) for s in (length // f * f, (length // f + 1) * f) if s > 0)
            raise ValueError(
                f"{argument}: got {axis} {length}, want a multiple of the {by} {f}; the nearest: {nearest}"
            )

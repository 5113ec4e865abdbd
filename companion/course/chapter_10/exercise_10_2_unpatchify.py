"""Exercise 10.2, second half: patches put together again to a picture."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.backbones import unpatchify
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call

Grid = tuple[int, int]
Answer = Callable[[Tensor, int, Grid], Any]
RIGHT_ORDER = (0, 3, 1, 4, 2, 5)  # from (B, h, w, C, p, p) to (B, C, h, p, w, p)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(103)
    x = {0: "tokens"}

    def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=dtype)

    return [
        Case("patches of 2 × 2 in a grid of 2 × 2, two channels", (tokens(2, 4, 8), 2, (2, 2)), {}, x),
        Case("a grid of 2 × 3, three channels", (tokens(2, 6, 12), 2, (2, 3)), {}, x),
        Case("a grid of 3 × 1, one channel, patches of 3 × 3", (tokens(5, 3, 9), 3, (3, 1)), {}, x),
        Case("a grid of 1 × 4, four channels, patches of 4 × 4", (tokens(3, 4, 64), 4, (1, 4)), {}, x),
        Case("a grid of 2 × 8, which has as many patches as one of 4 × 4", (tokens(1, 16, 20), 2, (2, 8)), {}, x),
        Case("patches of a single pixel", (tokens(2, 10, 3), 1, (2, 5)), {}, x),
        Case("one picture, which is one patch", (tokens(1, 1, 32), 4, (1, 1)), {}, x),
        Case(
            "float64, tokens that are not contiguous in memory",
            (tokens(2, 12, 6, dtype=torch.float64).mT, 2, (3, 2)),
            {},
            x,
        ),
    ]


def _split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    """(B, h·w, C·p²) → (B, h, w, C, p, p)."""
    h, w = grid
    return tokens.reshape(len(tokens), h, w, -1, patch, patch)


def _transposed_split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    """As if patches stood column by column."""
    return _split(tokens, patch, grid[::-1]).transpose(1, 2)


def _channels_last_split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    h, w = grid
    return tokens.reshape(len(tokens), h, w, patch, patch, -1).movedim(-1, 3)


def _channels_between_split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    h, w = grid
    return tokens.reshape(len(tokens), h, w, patch, -1, patch).transpose(3, 4)


def _channels_in_front_split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    h, w = grid
    return tokens.reshape(len(tokens), -1, h, w, patch, patch).movedim(1, 3)


def _pixels_in_front_split(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    return tokens.reshape(len(tokens), -1, patch, patch, *grid).permute(0, 4, 5, 1, 2, 3)


def _variant(
    *,
    given: Callable[[Tensor], Tensor] = lambda tokens: tokens,
    split: Callable[[Tensor, int, Grid], Tensor] = _split,
    order: tuple[int, ...] = RIGHT_ORDER,
    finish: Callable[[Tensor], Any] = lambda x: x,
    patch_is: int | None = None,
    grid_is: Callable[[Tensor, Grid], Grid] = lambda tokens, grid: grid,
) -> Answer:
    """The right answer with one of its parts replaced."""

    def answer(tokens: Tensor, patch: int, grid: Grid) -> Any:
        p, (h, w) = patch_is or patch, grid_is(tokens, grid)
        cut = split(given(tokens), p, (h, w))
        return finish(cut.permute(order).reshape(len(tokens), cut.shape[3], h * p, w * p))

    return answer


def _side(tokens: Tensor, grid: Grid) -> Grid:
    side = math.isqrt(tokens.shape[1])
    return side, side


def _split_with_c(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    """As ``_split``, with the number of channels written out: torch's message is another one."""
    return tokens.reshape(len(tokens), *grid, tokens.shape[2] // patch**2, patch, patch)


def _by_loops(index: Callable[[int, Grid], tuple[int, int]], less: int = 0) -> Answer:
    """Patch by patch: ``index`` says where patch k is laid."""

    def answer(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
        b, c = len(tokens), tokens.shape[2] // patch**2
        x = tokens.new_zeros(b, c, grid[0] * patch, grid[1] * patch)
        for k in range(tokens.shape[1] - less):
            i, j = index(k, grid)
            if i < grid[0] and j < grid[1]:
                x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = tokens[:, k].reshape(
                    b, c, patch, patch
                )
        return x

    return answer


def _only_reshaped(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    return tokens.reshape(len(tokens), -1, grid[0] * patch, grid[1] * patch)


def _for_three_channels(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    (h, w), p = grid, patch
    return tokens.reshape(-1, h, w, 3, p, p).permute(RIGHT_ORDER).reshape(len(tokens), 3, h * p, w * p)


def _divided_once(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    (b, _, n), (h, w), p = tokens.shape, grid, patch
    return tokens.reshape(b, h, w, n // p, p, p).permute(RIGHT_ORDER).reshape(b, n // p, h * p, w * p)


def _viewed_at_the_end(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    cut = _split(tokens, patch, grid).permute(RIGHT_ORDER)
    return cut.view(len(tokens), cut.shape[1], grid[0] * patch, grid[1] * patch)


MISTAKES = (
    Mistake(
        "only reshaped",
        _only_reshaped,
        "reshape moves no numbers. Split into (B, h, w, C, p, p), permute so that each p stands right after its h or "
        "w, and only then put axes together.",
    ),
    Mistake(
        "the permute of patchify",
        _variant(order=(0, 2, 4, 1, 3, 5)),
        "this is the permute of patchify once more. From (B, h, w, C, p, p) to (B, C, h, p, w, p) it is another one.",
    ),
    Mistake(
        "permuted half",
        _variant(order=(0, 3, 1, 2, 4, 5)),
        "C is in front, but h, w, p, p come after it in this order. Each p belongs right after its h or w.",
    ),
    Mistake(
        "pixels of one place side by side",
        _variant(order=(0, 3, 4, 1, 5, 2)),
        "the p stand before their h and w, so that the patches are shuffled into each other. Where the patch is comes "
        "first: h, p, w, p.",
    ),
    Mistake(
        "columns before rows in a patch",
        _variant(order=(0, 3, 1, 5, 2, 4)),
        "each patch lies on its side. Of the two p the first is the row and goes after h.",
        (_variant(split=lambda tokens, patch, grid: _channels_last_split(tokens, patch, grid).mT),),
    ),
    Mistake(
        "patches column by column",
        _variant(split=_transposed_split),
        "the patches are laid column by column. Reading order goes along a row first: tokens split into (h, w), and "
        "token k belongs to row k // w and column k % w.",
        (_by_loops(lambda k, grid: (k // grid[0], k % grid[0])),),
    ),
    Mistake(
        "all transposed",
        _variant(finish=lambda x: x.mT),
        "the picture lies on its side: h and its p make the rows, and come before w and its p.",
    ),
    Mistake(
        "grid the wrong way round",
        _variant(grid_is=lambda tokens, grid: grid[::-1]),
        "the grid is read as (w, h); it is (h, w), the number of rows first.",
    ),
    Mistake(
        "a square grid",
        _variant(grid_is=_side),
        "one size is used for both axes, or the grid is taken for a square. Use both numbers of the argument grid.",
        tuple(
            _variant(split=split, grid_is=grid_is)
            for split in (_split, _split_with_c)
            for grid_is in (lambda tokens, grid: (grid[0],) * 2, lambda tokens, grid: (grid[1],) * 2, _side)
        ),
    ),
    Mistake(
        "channels last",
        _variant(split=_channels_last_split),
        "the numbers of a token are taken as (p, p, C). The channel changes slowest: (C, p, p).",
    ),
    Mistake(
        "channels between",
        _variant(split=_channels_between_split),
        "the numbers of a token are taken as (p, C, p). The channel changes slowest: (C, p, p).",
    ),
    Mistake(
        "channels before patches",
        _variant(split=_channels_in_front_split),
        "the tokens are split with the channels before h and w. A token has all its channels: (B, h, w, C, p, p).",
    ),
    Mistake(
        "pixels before patches",
        _variant(split=_pixels_in_front_split),
        "the tokens are split as (B, C, p, p, h, w). In (B, h·w, C·p²) the patches come first: (B, h, w, C, p, p).",
    ),
    Mistake(
        "tokens transposed",
        _variant(given=lambda tokens: tokens.mT.contiguous().reshape(tokens.shape)),
        "the tokens are transposed first. They come as rows, (B, h·w, C·p²), which is the order that reshape needs.",
        (lambda tokens, patch, grid: _only_reshaped(tokens.mT, patch, grid),),
    ),
    Mistake(
        "three channels",
        _for_three_channels,
        "the number of channels is fixed at 3. It is the length of a token divided by patch².",
        (lambda tokens, patch, grid: tokens.reshape(len(tokens), *grid, 3, patch, patch),),
    ),
    Mistake(
        "divided once",
        _divided_once,
        "the length of a token is divided by patch. A square has patch² pixels.",
    ),
    Mistake(
        "patch fixed",
        _variant(patch_is=4),
        "the patch is fixed at 4 pixels, or another number; use the argument patch.",
        tuple(_variant(split=split, patch_is=p) for split in (_split, _split_with_c) for p in (2, 3, 4, 8)),
    ),
    Mistake(
        "channels at the end",
        _variant(finish=lambda x: x.movedim(1, -1)),
        "this is (B, H, W, C), as for imshow. Wanted is (B, C, H, W).",
    ),
    Mistake(
        "six axes",
        lambda tokens, patch, grid: _split(tokens, patch, grid).permute(RIGHT_ORDER),
        "six axes are left: put h and p together, and w and p.",
    ),
    Mistake(
        "h and w exchanged at the end",
        _variant(finish=lambda x: x.reshape(*x.shape[:2], x.shape[3], x.shape[2])),
        "the last reshape has (w·p, h·p). The rows come first: (h·p, w·p).",
    ),
    Mistake(
        "w before h at the end",
        _variant(order=(0, 3, 2, 5, 1, 4)),
        "rows and columns are exchanged: h with its p comes before w with its p.",
        (
            _variant(order=(0, 3, 2, 4, 1, 5)),
            lambda tokens, patch, grid: unpatchify(tokens, patch, grid).mT.reshape(
                len(tokens), -1, grid[0] * patch, grid[1] * patch
            ),
        ),
    ),
    Mistake(
        "last patch left out",
        _by_loops(lambda k, grid: divmod(k, grid[1]), less=1),
        "the last patch is missing: the loop ends one too early.",
    ),
    Mistake(
        "h and w after p",
        _variant(order=(0, 3, 4, 1, 2, 5)),
        "in your permute the first p stands before h. Each p belongs right after its h or w: h, p, w, p.",
    ),
    Mistake(
        "pixels in one axis",
        _variant(finish=lambda x: x.flatten(2)),
        "the pixels are in one axis. Wanted is (B, C, H, W).",
    ),
    Mistake(
        "a grid of patches",
        lambda tokens, patch, grid: tokens.mT.unflatten(2, grid),
        "this is a grid (B, C·p², h, w). Each token still has to be laid out as a square of pixels.",
    ),
    Mistake(
        "batch in one",
        _variant(finish=lambda x: x.flatten(0, 1)),
        "the pictures of the batch are put together, or only one comes back. Wanted is (B, C, H, W).",
        (_variant(finish=lambda x: x[:1]), _variant(finish=lambda x: x[:1].expand_as(x))),
    ),
    Mistake(
        "squeezed",
        _variant(finish=lambda x: x.squeeze()),
        "squeeze() takes axes of length 1 away, and a picture may have one channel, a batch one picture.",
    ),
    Mistake(
        "view after permute",
        _viewed_at_the_end,
        "after permute the numbers do not lie in memory in the order of the axes, and view refuses. reshape copies "
        "where it must.",
    ),
    Mistake(
        "always float32",
        _variant(finish=lambda x: x.float()),
        "float64 comes in and float32 goes out (.float(), or torch.zeros without a dtype): keep the dtype of tokens.",
    ),
    Mistake(
        "detached",
        _variant(finish=lambda x: x.detach()),
        "the values agree, but the result is cut off from the tokens (detach, .data, no_grad, NumPy), so a decoder "
        "that ends with it could not learn.",
    ),
)

EXERCISE = Exercise(
    name="unpatchify",
    chapter="10_backbones",
    reference=unpatchify,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
    tolerance=0.0,  # the numbers are the tokens' own
)

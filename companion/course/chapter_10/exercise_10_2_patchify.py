"""Exercise 10.2, first half: a picture cut into patches, each a row of numbers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.backbones import patchify
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call

Answer = Callable[[Tensor, int], Any]
RIGHT_ORDER = (0, 2, 4, 1, 3, 5)  # from (B, C, h, p, w, p) to (B, h, w, C, p, p)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(102)
    x = {0: "x"}

    def pictures(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=dtype)

    return [
        Case("two pictures of 2 channels, 4 × 4 pixels, patches of 2 × 2", (pictures(2, 2, 4, 4), 2), {}, x),
        Case("three channels, 4 × 6 pixels, patches of 2 × 2", (pictures(2, 3, 4, 6), 2), {}, x),
        Case("five pictures of one channel, 9 × 3 pixels, patches of 3 × 3", (pictures(5, 1, 9, 3), 3), {}, x),
        Case("patches of 4 × 4, four channels, 8 × 12 pixels", (pictures(3, 4, 8, 12), 4), {}, x),
        Case("patches of a single pixel", (pictures(2, 3, 2, 5), 1), {}, x),
        Case("one picture, which is one patch", (pictures(1, 2, 4, 4), 4), {}, x),
        Case(
            "float64, pictures that are not contiguous in memory",
            (pictures(2, 6, 4, 3, dtype=torch.float64).transpose(1, 3), 2),
            {},
            x,
        ),
    ]


def _split(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) → (B, C, h, p, w, p)."""
    b, c, height, width = x.shape
    return x.reshape(b, c, height // patch, patch, width // patch, patch)


def _variant(
    *,
    split: Callable[[Tensor, int], Tensor] = _split,
    order: tuple[int, ...] = RIGHT_ORDER,
    finish: Callable[[Tensor, int], Any] = lambda tokens, c: tokens,
    given: Callable[[Tensor], Tensor] = lambda x: x,
    patch_is: int | None = None,
) -> Answer:
    """The right answer with one of its parts replaced; ``finish`` gets the tokens and the number of channels."""

    def answer(x: Tensor, patch: int) -> Any:
        p = patch_is or patch
        b, c, height, width = x.shape
        tokens = split(given(x), p).permute(order).reshape(b, (height // p) * (width // p), c * p**2)
        return finish(tokens, c)

    return answer


def _axes_mixed_up(x: Tensor, patch: int) -> Tensor:
    b, c, width, height = x.shape
    return x.reshape(b, c, height // patch, patch, width // patch, patch)


def _apart(x: Tensor, patch: int) -> Tensor:
    """Every h-th row and every w-th column in a patch: (B, C, p, h, p, w) read as if it were (B, C, h, p, w, p)."""
    b, c, height, width = x.shape
    apart = x.reshape(b, c, patch, height // patch, patch, width // patch)
    return apart.transpose(2, 3).transpose(4, 5)


def _squares_by_reshape(x: Tensor, patch: int) -> Tensor:
    b, c, height, width = x.shape
    return x.reshape(b, c, height // patch, width // patch, patch, patch)


def _for_squares(x: Tensor, patch: int) -> Tensor:
    b, c = x.shape[:2]
    side = math.isqrt(x.shape[2] * x.shape[3]) // patch
    return x.reshape(b, c, side, patch, side, patch).permute(RIGHT_ORDER).reshape(b, side**2, c * patch**2)


def _for_three_channels(x: Tensor, patch: int) -> Tensor:
    b, _, height, width = x.shape
    h, w = height // patch, width // patch
    return x.reshape(b, 3, h, patch, w, patch).permute(RIGHT_ORDER).reshape(b, h * w, 3 * patch**2)


def _height_twice(x: Tensor, patch: int) -> Tensor:
    b, c, height, _ = x.shape
    h = height // patch
    return x.reshape(b, c, h, patch, h, patch).permute(RIGHT_ORDER).reshape(b, h * h, c * patch**2)


def _by_loops(
    x: Tensor,
    patch: int,
    *,
    at: Callable[[int, int, int, int], int] = lambda i, j, h, w: i * w + j,
    pace: int | None = None,
    less: int = 0,
) -> Tensor:
    """Square by square; ``at`` gets row, column and the size of the grid, ``pace`` is from one square to the next."""
    b, c, height, width = x.shape
    h, w, pace = height // patch, width // patch, pace or patch
    tokens = x.new_zeros(b, h * w, c * patch**2)
    for i in range(h - less):
        for j in range(w - less):
            square = x[:, :, i * pace : i * pace + patch, j * pace : j * pace + patch]
            tokens[:, at(i, j, h, w)] = square.reshape(b, -1)
    return tokens


def _width_twice(x: Tensor, patch: int) -> Tensor:
    b, c, _, width = x.shape
    w = width // patch
    return x.reshape(b, c, w, patch, w, patch).permute(RIGHT_ORDER).reshape(b, w * w, c * patch**2)


def _viewed_at_the_end(x: Tensor, patch: int) -> Tensor:
    cut = _split(x, patch).permute(RIGHT_ORDER)
    return cut.view(len(x), cut.shape[1] * cut.shape[2], -1)


def _unfolded(x: Tensor, patch: int) -> Tensor:
    """By Tensor.unfold, which leaves the channels in front."""
    return x.unfold(2, patch, patch).unfold(3, patch, patch).reshape(len(x), -1, x.shape[1] * patch**2)


MISTAKES = (
    Mistake(
        "only reshaped",
        lambda x, patch: x.reshape(len(x), -1, x.shape[1] * patch**2),
        "reshape moves no numbers: these tokens are strips of pixel rows. Split both axes of pixels first, then "
        "permute so that h and w come right after B, and only then put axes together.",
    ),
    Mistake(
        "channels left in front",
        _unfolded,
        "the channels are still in front of the patches, as Tensor.unfold leaves them, so a token holds pieces of one "
        "channel. permute has to bring h and w right after B.",
    ),
    Mistake(
        "channels last",
        _variant(order=(0, 2, 4, 3, 5, 1)),
        "within a patch the channel changes fastest. It is to change slowest: C comes before the two p.",
        (_variant(order=(0, 2, 4, 5, 3, 1)),),
    ),
    Mistake(
        "channels in the middle",
        _variant(order=(0, 2, 4, 3, 1, 5)),
        "within a patch the channel stands between row and column. C comes before the two p.",
        (_variant(order=(0, 2, 4, 5, 1, 3)),),
    ),
    Mistake(
        "columns before rows in a patch",
        _variant(order=(0, 2, 4, 1, 5, 3)),
        "within a patch the pixels stand column by column. The row changes before the column: the p that came from H, "
        "then the p that came from W.",
    ),
    Mistake(
        "patches column by column",
        _variant(order=(0, 4, 2, 1, 3, 5)),
        "the patches stand column by column. Reading order goes along a row first: h, then w.",
    ),
    Mistake(
        "all transposed",
        _variant(order=(0, 4, 2, 1, 5, 3)),
        "rows and columns are mixed up, of the patches and of the pixels in them: h before w, and the p of H before "
        "the p of W.",
    ),
    Mistake(
        "rows of patches not put together",
        _variant(order=(0, 2, 1, 4, 3, 5)),
        "in your permute the channels stand between h and w. h and w come right after B, then C, p, p.",
    ),
    Mistake(
        "rows of pixels in place of patches",
        _variant(order=(0, 2, 3, 4, 1, 5)),
        "a token runs along a row of pixels. In your permute the p of H stands before w; h and w come first, then "
        "C, p, p.",
        (_variant(order=(0, 2, 3, 4, 5, 1)),),
    ),
    Mistake(
        "pixels from all over",
        _variant(split=_apart),
        "a patch holds every h-th row and every w-th column. H splits into (h, p), the patch first, not into (p, h).",
        (_variant(split=_apart, order=(0, 3, 5, 1, 2, 4)),),
    ),
    Mistake(
        "h and w first",
        _variant(split=_squares_by_reshape, order=(0, 2, 3, 1, 4, 5)),
        "reshape cannot make squares: (B, C, h, w, p, p) takes pixels that follow each other in a row. Split each axis "
        "for itself, (B, C, h, p, w, p), and bring h and w together by permute.",
        (_variant(order=(0, 4, 3, 1, 2, 5)), _variant(order=(0, 1, 4, 3, 2, 5))),
    ),
    Mistake(
        "H and W mixed up",
        _variant(split=_axes_mixed_up),
        "height and width are mixed up: x is (B, C, H, W), and H is the number of rows, the last axis but one.",
    ),
    Mistake(
        "square pictures",
        _for_squares,
        "this takes the picture for a square. h = H / patch and w = W / patch may differ.",
    ),
    Mistake(
        "height used twice",
        _height_twice,
        "one size is used for both axes. h is H / patch, and w is W / patch.",
        (_width_twice,),
    ),
    Mistake(
        "three channels",
        _for_three_channels,
        "the number of channels is fixed at 3. Take it from x.shape.",
    ),
    Mistake(
        "patch fixed",
        _variant(patch_is=4),
        "the patch is fixed at 4 pixels, or another number; use the argument patch.",
        (_variant(patch_is=2), _variant(patch_is=3), _variant(patch_is=8)),
    ),
    Mistake(
        "patch as the number of patches",
        lambda x, patch: patchify(x, (x.shape[2] // patch, x.shape[3] // patch)),
        "patch is taken for the number of patches along an axis. It is how many pixels a patch has along an axis; "
        "h = H / patch of them fit.",
    ),
    Mistake(
        "channels of a grid",
        _variant(finish=lambda tokens, c: tokens.mT),
        "the last two axes are exchanged, as functional.unfold gives them: a token is a *row*, (B, h·w, C·p²). .mT "
        "exchanges them, and reshape does not.",
        (
            _variant(finish=lambda tokens, c: tokens.mT.reshape(tokens.shape)),
            _variant(finish=lambda tokens, c: tokens.reshape(tokens.mT.shape)),
            _variant(finish=lambda tokens, c: tokens.reshape(tokens.mT.shape).mT),
        ),
    ),
    Mistake(
        "a grid",
        lambda x, patch: functional.pixel_unshuffle(x, patch),
        "this is a grid (B, C·p², h, w). Wanted is a row of tokens, (B, h·w, C·p²): flatten the grid, and move the "
        "channels to the end.",
    ),
    Mistake(
        "h and w apart",
        lambda x, patch: _split(x, patch).permute(RIGHT_ORDER).flatten(3),
        "h and w are still two axes: put them together, (B, h·w, C·p²).",
    ),
    Mistake(
        "pixels not put together",
        _variant(finish=lambda tokens, c: tokens.unflatten(2, (c, -1))),
        "the numbers of a patch still have several axes: put C, p and p together, (B, h·w, C·p²).",
        (lambda x, patch: _split(x, patch).permute(RIGHT_ORDER).flatten(1, 2),),
    ),
    Mistake(
        "six axes",
        lambda x, patch: _split(x, patch).permute(RIGHT_ORDER),
        "six axes are left. Put h and w together, and C, p and p: (B, h·w, C·p²).",
    ),
    Mistake(
        "all pictures in one row",
        _variant(finish=lambda tokens, c: tokens.flatten(0, 1)),
        "the pictures of the batch are mixed or in one row. Each has a row of its own: B stays in front.",
        (
            _variant(order=(2, 4, 0, 1, 3, 5)),
            lambda x, patch: patchify(x, patch)[:1].expand(len(x), -1, -1),
            lambda x, patch: patchify(x, patch)[:1],
        ),
    ),
    Mistake(
        "a token for each channel",
        lambda x, patch: _split(x, patch).permute(0, 1, 2, 4, 3, 5).reshape(len(x), -1, patch**2),
        "each channel has tokens of its own. A token holds all channels of its square, C·p² numbers.",
        (_variant(finish=lambda tokens, c: tokens.reshape(len(tokens), tokens.shape[1] * c, -1)),),
    ),
    Mistake(
        "h times i",
        lambda x, patch: _by_loops(x, patch, at=lambda i, j, h, w: i * h + j),
        "in a row of the grid there are w patches: patch (i, j) is token i·w + j, not i·h + j.",
        (lambda x, patch: _by_loops(x, patch, at=lambda i, j, h, w: min(i * h + j, h * w - 1)),),
    ),
    Mistake(
        "a loop that goes on by one pixel",
        lambda x, patch: _by_loops(x, patch, pace=1),
        "each square begins one pixel after the one before it. Square (i, j) begins at row i·p and column j·p.",
    ),
    Mistake(
        "last patches left out",
        lambda x, patch: _by_loops(x, patch, less=1),
        "the last row and column of patches are left out: range(0, H, patch) has H − patch too.",
        (lambda x, patch: functional.unfold(x[:, :, :-patch, :-patch], patch, stride=patch).mT,),
    ),
    Mistake(
        "tokens in front",
        _variant(finish=lambda tokens, c: tokens.transpose(0, 1)),
        "the tokens are axis 0. Wanted is (B, h·w, C·p²): torch.stack(…, 1).",
    ),
    Mistake(
        "tokens put together",
        _variant(finish=lambda tokens, c: tokens.flatten(1)),
        "the tokens of a picture are put one after the other, (B, h·w·C·p²). torch.stack(…, 1) keeps an axis for them.",
    ),
    Mistake(
        "patches that overlap",
        lambda x, patch: functional.unfold(x, patch).mT,
        "the patches overlap: each begins patch pixels after the one before it, not one pixel (stride).",
    ),
    Mistake(
        "squeezed",
        _variant(finish=lambda tokens, c: tokens.squeeze()),
        "squeeze() takes axes of length 1 away, and a batch may have one picture, and a picture one patch.",
    ),
    Mistake(
        "view after permute",
        _viewed_at_the_end,
        "after permute the numbers do not lie in memory in the order of the axes, and view refuses. reshape copies "
        "where it must.",
    ),
    Mistake(
        "always float32",
        _variant(finish=lambda tokens, c: tokens.float()),
        "float64 comes in and float32 goes out (.float(), or torch.zeros without a dtype): keep the dtype of x.",
    ),
    Mistake(
        "detached",
        _variant(finish=lambda tokens, c: tokens.detach()),
        "the values agree, but the result is cut off from x (detach, .data, no_grad, NumPy), so an encoder in front of "
        "it could not learn.",
    ),
)

EXERCISE = Exercise(
    name="patchify",
    chapter="10_backbones",
    reference=patchify,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
    tolerance=0.0,  # the numbers are the picture's own
)

"""Exercise 9.3, what a patch discriminator thinks of each pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.losses import patch_map

Answer = Callable[[Tensor, tuple[int, int], int, int, int], Any]


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(95)

    def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=dtype) + 0.5

    return [
        Case("patches side by side: 2 × 2 of them, 4 pixels wide", (logits(1, 1, 2, 2), (8, 8), 4, 4, 0)),
        Case("patches side by side on an image of 2 × 6 pixels", (logits(1, 1, 1, 3), (2, 6), 2, 2, 0)),
        Case("patches that overlap", (logits(1, 1, 3, 2), (6, 5), 4, 1, 0)),
        Case("stride 2", (logits(1, 1, 3, 4), (8, 10), 4, 2, 0)),
        Case(
            "the first patch begins 2 pixels before the image, the last ends with it",
            (logits(1, 1, 3, 4), (6, 8), 4, 2, -2),
        ),
        Case("patches that end outside, on every side", (logits(1, 1, 5, 4), (9, 7), 5, 2, -3)),
        Case("gaps between the patches, which no logit sees", (logits(1, 1, 2, 3), (7, 12), 2, 4, 0)),
        Case("rows and columns at the end that no logit sees", (logits(1, 1, 2, 2), (9, 8), 3, 2, -1)),
        Case("three images, of which one has logits of exactly 0", (_with_zeros(logits(3, 1, 3, 2)), (6, 4), 4, 2, -1)),
        Case(
            "a PatchGAN on 28 × 21 pixels, in float64, logits not contiguous in memory",
            (logits(2, 1, 8, 12, dtype=torch.float64).mT, (28, 21), 16, 2, -5),
        ),
    ]


def _with_zeros(logits: Tensor) -> Tensor:
    logits[1] = 0
    logits[0, 0, 0] = 0
    return logits


def _parts(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> tuple[Tensor, Tensor]:
    """Sums and counts, (B, 1, H, W) and (1, 1, H, W)."""
    ones = logits.new_ones(1, 1, patch, patch)
    sums, counts = (
        _cropped(functional.conv_transpose2d(one, ones, stride=stride), size, offset)
        for one in (logits, torch.ones_like(logits[:1]))
    )
    return sums, counts


def _cropped(canvas: Tensor, size: tuple[int, int], offset: int) -> Tensor:
    rows, columns = canvas.shape[2:]
    return functional.pad(canvas, (offset, size[1] - columns - offset, offset, size[0] - rows - offset))


def _divided(divide: Callable[[Tensor, Tensor, int, int], Any]) -> Answer:
    """The right answer with another division, of sums, counts, patch and stride."""
    return lambda logits, size, patch, stride, offset: divide(
        *_parts(logits, size, patch, stride, offset), patch, stride
    )


def _with(
    logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    size: Callable[[tuple[int, int]], tuple[int, int]] = lambda size: size,
    numbers: Callable[[int, int, int], tuple[int, int, int]] = lambda patch, stride, offset: (patch, stride, offset),
    finish: Callable[[Tensor], Any] = lambda result: result,
) -> Answer:
    """The right answer to another question, or with something done to it."""

    def answer(given: Tensor, wanted: tuple[int, int], patch: int, stride: int, offset: int) -> Any:
        sums, counts = _parts(logits(given), size(wanted), *numbers(patch, stride, offset))
        return finish(sums / counts.clamp(min=1))

    return answer


def _moved(by: int) -> Answer:
    return _with(numbers=lambda patch, stride, offset: (patch, stride, offset + by))


def _interpolated(mode: str) -> Answer:
    return lambda logits, size, patch, stride, offset: functional.interpolate(logits, size, mode=mode)


def _cells(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    """Each logit on the square of its stride alone."""
    return _with(numbers=lambda patch, stride, offset: (stride, stride, 0))(logits, size, patch, stride, offset)


def _centres(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    """Each logit at the middle of its patch alone."""
    middle = _with(numbers=lambda patch, stride, offset: (1, stride, offset + patch // 2))
    return middle(logits, size, patch, stride, offset)


def _extreme(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    result = logits.new_full((len(logits), 1, *size), -torch.inf)
    for i in range(logits.shape[2]):
        for j in range(logits.shape[3]):
            rows, columns = (slice(max(0, k * stride + offset), max(0, k * stride + offset + patch)) for k in (i, j))
            seen = result[..., rows, columns]
            result[..., rows, columns] = torch.maximum(seen, logits[:, :, i, j, None, None].expand_as(seen))
    return result.where(result > -torch.inf, 0.0)


def _last_one(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    result = logits.new_zeros(len(logits), 1, *size)
    for i in range(logits.shape[2]):
        for j in range(logits.shape[3]):
            rows, columns = (slice(max(0, k * stride + offset), max(0, k * stride + offset + patch)) for k in (i, j))
            result[..., rows, columns] = logits[:, :, i, j, None, None]
    return result


def _cut(cut: Callable[[Tensor, tuple[int, int], int], Tensor]) -> Answer:
    """The right answer with something else cut off the canvas, of sums and of counts."""

    def answer(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
        ones = logits.new_ones(1, 1, patch, patch)
        sums, counts = (
            cut(functional.conv_transpose2d(one, ones, stride=stride), size, offset)
            for one in (logits, torch.ones_like(logits))
        )
        return sums / counts.clamp(min=1)

    return answer


def _equally(canvas: Tensor, size: tuple[int, int], offset: int) -> Tensor:
    """As much at the end as at the beginning."""
    return functional.pad(canvas, (offset, offset, offset, offset))


def _columns_moved(canvas: Tensor, size: tuple[int, int], offset: int) -> Tensor:
    """The offset at the columns only."""
    rows, columns = canvas.shape[2:]
    return functional.pad(canvas, (offset, size[1] - columns - offset, 0, size[0] - rows))


def _rows_moved(canvas: Tensor, size: tuple[int, int], offset: int) -> Tensor:
    """The offset at the rows only."""
    return _columns_moved(canvas.mT, (size[1], size[0]), offset).mT


def _counts_not_shifted(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    """Sums cropped as they should be, counts from the upper left corner of the canvas."""
    sums, _ = _parts(logits, size, patch, stride, offset)
    _, counts = _parts(logits, size, patch, stride, 0)
    return sums / counts.clamp(min=1)


MISTAKES = (
    Mistake(
        "sum",
        _divided(lambda sums, counts, patch, stride: sums),
        "this is the sum of the logits that see a pixel. Divide by how many these are: the same operation, of ones, "
        "counts them.",
    ),
    Mistake(
        "divided by the pixels of a patch",
        _divided(lambda sums, counts, patch, stride: sums / patch**2),
        "you divide by the number of pixels in a patch. Divide by how many *logits* see the pixel.",
    ),
    Mistake(
        "divided by the number of logits",
        lambda logits, *rest: _parts(logits, *rest)[0] / logits[0].numel(),
        "you divide by the number of all logits. Only those that see the pixel count.",
    ),
    Mistake(
        "divided by the most",
        _divided(lambda sums, counts, patch, stride: sums / counts.max()),
        "you divide by the same number everywhere. Near the edge fewer logits see a pixel: count them for each.",
    ),
    Mistake(
        "divided by how often patches overlap",
        _divided(lambda sums, counts, patch, stride: sums / (patch / stride) ** 2),
        "you divide by (patch / stride)² everywhere, which is right in the middle at best. Near the edge fewer logits "
        "see a pixel: count them for each.",
    ),
    Mistake(
        "0 / 0",
        _divided(lambda sums, counts, patch, stride: sums / counts),
        "where no logit sees a pixel this is 0 / 0, NaN. The map is to be 0 there.",
    ),
    Mistake(
        "count plus one",
        _divided(lambda sums, counts, patch, stride: sums / (counts + 1)),
        "you divide by the count plus one, against 0 / 0. Then the mean is too small everywhere: keep the count at "
        "least 1 instead.",
    ),
    Mistake(
        "count plus a little",
        _divided(lambda sums, counts, patch, stride: sums / (counts + 1e-3)),
        "something is added to the count, against 0 / 0, and every mean is a little too small. Keep the count at least "
        "1 instead.",
    ),
    Mistake(
        "counts not 0",
        lambda logits, size, patch, stride, offset: (
            _parts(logits, size, patch, stride, offset)[0]
            / _parts((logits != 0).to(logits.dtype), size, patch, stride, offset)[0].clamp(min=1)
        ),
        "logits that are exactly 0 are not counted. Count with ones, whatever the logits are.",
    ),
    Mistake(
        "the counts",
        _divided(lambda sums, counts, patch, stride: counts),
        "this is how many logits see each pixel. Wanted is their mean: sums divided by counts.",
    ),
    Mistake(
        "nearest upsampling",
        _interpolated("nearest"),
        "the logits are blown up to the size of the image (nearest). But a patch is larger than that: patches overlap, "
        "and a pixel is seen by several logits.",
    ),
    *(
        Mistake(
            f"{mode} upsampling",
            _interpolated(mode),
            f"the logits are blown up to the size of the image ({mode}). That does not know which pixels a logit sees: "
            "use patch, stride and offset.",
        )
        for mode in ("bilinear", "bicubic", "area")
    ),
    Mistake(
        "a square of the stride's size",
        _cells,
        "each logit fills a square as large as the stride. Its patch is larger, and patches overlap.",
    ),
    Mistake(
        "the middle of the patch alone",
        _centres,
        "each logit stands at the middle of its patch alone. It belongs to every pixel that it sees.",
    ),
    Mistake(
        "the largest",
        _extreme,
        "this is the largest of the logits that see a pixel. Wanted is their mean.",
    ),
    Mistake(
        "the last one",
        _last_one,
        "where patches overlap, the last one overwrites the others. Add them up, and divide by how many there are.",
    ),
    Mistake(
        "offset ignored",
        _with(numbers=lambda patch, stride, offset: (patch, stride, 0)),
        "the offset is ignored: the first patch begins in the padding, before the image. Cut the first −offset rows "
        "and columns off what the transposed convolution gives.",
    ),
    Mistake(
        "offset with the other sign",
        _with(numbers=lambda patch, stride, offset: (patch, stride, -offset)),
        "the map is moved the wrong way: offset is negative, and the image begins −offset pixels *after* the first "
        "patch does.",
    ),
    Mistake(
        "offset at the columns only",
        _cut(_columns_moved),
        "the offset moves the columns only; the rows begin in the padding too.",
    ),
    Mistake(
        "offset at the rows only",
        _cut(_rows_moved),
        "the offset moves the rows only; the columns begin in the padding too.",
    ),
    *(
        Mistake(
            f"one pixel too {when}",
            _moved(by),
            f"every patch begins a pixel too {when}: logit (0, 0) sees the rows from offset on.",
        )
        for when, by in (("early", -1), ("late", 1))
    ),
    Mistake(
        "half a patch as the offset",
        _with(numbers=lambda patch, stride, offset: (patch, stride, -(patch // 2))),
        "patches are moved by half of their size. Where the first one begins is given: offset.",
    ),
    Mistake(
        "cut off equally",
        _cut(_equally),
        "the result does not end where the image does. Cut off −offset at the beginning alone (padding=−offset cuts at "
        "either end); then cut, or fill up with 0, to the size (H, W).",
    ),
    Mistake(
        "not cut off",
        _cut(lambda canvas, size, offset: canvas),
        "what lies outside the image is still there: rows and columns before it, and after it. The result has the size "
        "(H, W), filled up with 0 where no patch reaches.",
    ),
    Mistake(
        "cut off at the beginning alone",
        _cut(lambda canvas, size, offset: canvas[..., -size[0] :, -size[1] :]),
        "the last H rows and W columns are kept. The image begins −offset pixels into what the transposed convolution "
        "gives; count from there.",
    ),
    Mistake(
        "counts not moved",
        _counts_not_shifted,
        "the sums are moved by the offset, the counts are not: cut the same off both.",
    ),
    Mistake(
        "stride ignored",
        _with(numbers=lambda patch, stride, offset: (patch, 1, offset)),
        "the stride is ignored: from one logit to the next the patch moves by stride pixels.",
    ),
    Mistake(
        "stride as wide as a patch",
        _with(numbers=lambda patch, stride, offset: (patch, patch, offset)),
        "patches are laid side by side (stride = patch). They overlap: each begins stride pixels after the one before.",
    ),
    Mistake(
        "one pixel too wide",
        _with(numbers=lambda patch, stride, offset: (patch + 1, stride, offset)),
        "the patches are a pixel too wide: the last row of one is offset + patch − 1.",
    ),
    Mistake(
        "one pixel too narrow",
        _with(numbers=lambda patch, stride, offset: (patch - 1, stride, offset)),
        "the patches are a pixel too narrow: a patch has as many rows as patch says.",
    ),
    Mistake(
        "rows and columns of the size swapped",
        _with(size=lambda size: size[::-1]),
        "height and width are mixed up: size is (H, W), and H is the number of rows, the last axis but one.",
    ),
    Mistake(
        "logits transposed",
        _with(logits=lambda logits: logits.mT),
        "rows and columns of the logits are mixed up: logit (i, j) is that of row i and column j.",
    ),
    Mistake(
        "result transposed",
        _with(logits=lambda logits: logits.mT, size=lambda size: size[::-1], finish=lambda result: result),
        "the map lies on its side: rows and columns are mixed up in logits and size alike.",
    ),
    Mistake(
        "logits flipped",
        _with(logits=lambda logits: logits.flip(2, 3)),
        "the map is turned round: logit (0, 0) sees the upper left corner.",
    ),
    Mistake(
        "averaged over the batch",
        _with(logits=lambda logits: logits.mean(0, keepdim=True).expand_as(logits)),
        "the images of the batch are mixed; each has a map of its own.",
    ),
    Mistake(
        "probabilities",
        _with(logits=torch.sigmoid),
        "the logits go through a sigmoid. Wanted is the mean of the logits as they are.",
    ),
    Mistake(
        "sigmoid of the mean",
        _with(finish=torch.sigmoid),
        "there is a sigmoid around the mean. Wanted is the mean itself.",
    ),
    Mistake(
        "no channel",
        _with(finish=lambda result: result[:, 0]),
        "the axis of the channel is missing: (B, 1, H, W) is wanted.",
    ),
    Mistake(
        "squeezed",
        _with(finish=torch.squeeze),
        "squeeze() takes axes of length 1 away: (B, 1, H, W) is wanted.",
    ),
    Mistake(
        "always float32",
        _with(finish=torch.Tensor.float),
        "float64 comes in and float32 goes out (.float(), or ones made without a dtype): keep the logits' dtype.",
    ),
    Mistake(
        "logits written over",
        lambda logits, *rest: patch_map(logits.mul_(1), *rest) + 0 * logits.zero_().sum(),
        "the caller's logits are written over (an operation that ends in _, or x[…] = …). Make a new tensor.",
    ),
)

EXERCISE = Exercise(
    name="patch_map",
    chapter="09_sharper_pictures",
    reference=patch_map,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

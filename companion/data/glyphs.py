"""Digits 0–9 of many fonts, turned, sheared, scaled and shifted at random, 28×28.

All arithmetic is in whole numbers, so that a seed gives the same bytes on every machine. The digits of 21 fonts that
come with matplotlib (DejaVu, STIX, Computer Modern) were drawn once, and these *masters* are in ``glyphs.npz``: images
are made without a font library, and no version of one changes them. To draw the masters again (with pillow, from
matplotlib's font files)::

    python -m companion.data.glyphs
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion.data._progress import progress
from companion.data.images import ImageSet

SIZE = 28  # pixels along the side of an image

# Whole families are held out: an italic is little more than its upright under shear, which images get anyway.
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("cmr10", "cmb10", "cmti10", "cmtt10"),
)
TEST_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmss10")

_ATLAS = Path(__file__).with_name("glyphs.npz")
_FRAME, _HEIGHT = 64, 48  # a master is 64×64, its digit 48 high
_ONE = 1 << 16  # 1.0 in fixed-point numbers
_PIXEL = 1 << 8  # one pixel of the image, in the unit of shifts and sampling points
_CHUNK = 64  # images at a time: what is being worked on stays in the processor's cache


def glyphs(split: str, *, size: int = 10_000, seed: int = 0) -> ImageSet:
    """``size`` images of digits in random fonts, sizes, positions and slants; the label is the digit.

    Test images use fonts that no training image uses. Image i depends on ``split``, ``seed`` and i only, so a larger
    set begins with the smaller one.

    Shapes:
        → ``ImageSet`` with images (size, 1, 28, 28) uint8 and labels (size,) int64.
    """
    masters = _atlas()[split]
    draws = np.random.PCG64(np.random.SeedSequence((("train", "test").index(split), seed)))
    images = np.empty((size, 1, SIZE, SIZE), np.uint8)
    labels = np.empty(size, np.int64)
    for start in progress(range(0, size, _CHUNK), "drawing glyphs"):
        chunk = slice(start, min(start + _CHUNK, size))
        # Raw bits: numpy promises the same ones in every version; what a Generator makes of them may change.
        words = draws.random_raw(8 * (chunk.stop - start)).reshape(-1, 8) >> np.uint64(32)
        images[chunk, 0], labels[chunk] = _draw(masters, words)
    return ImageSet("glyphs", split, torch.from_numpy(images), torch.from_numpy(labels), tuple("0123456789"))


def _draw(masters: np.ndarray[Any, Any], words: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """One image from every eight random numbers of 32 bits.

    Shapes:
        masters: (fonts, 10, 64, 64) uint8, words: (n, 8) → images (n, 28, 28), labels (n,).
    """

    def between(column: int, low: Any, high: Any) -> Any:
        spread = np.asarray(high - low + 1, np.uint64)
        return (words[:, column] * spread >> np.uint64(32)).astype(np.int64) + low

    digit = between(0, 0, 9)
    glyph = between(1, 0, len(masters) - 1) * 10 + digit
    flat = masters.reshape(-1, _FRAME, _FRAME)

    # Rotation by up to 10°: where t = tan(angle / 2) = p / q, cos = (1 - t²) / (1 + t²), sin = 2t / (1 + t²).
    p, q = between(2, -90, 90), 1024
    cos, sin = _ONE * (q * q - p * p) // (q * q + p * p), _ONE * 2 * p * q // (q * q + p * p)
    shear = between(3, -_ONE // 8, _ONE // 8)
    # Rotation after shear, [[a, b], [c, d]]; its determinant is 1.
    a, b, c, d = cos, (cos * shear >> 16) - sin, sin, (sin * shear >> 16) + cos
    # Master pixels per image pixel, across and down: 18 to 21 pixels high, 0.85 to 1.1 as wide as drawn.
    down = _ONE * _HEIGHT * 256 // between(4, 18 * 256, 21 * 256)
    across = down * 256 // between(5, 218, 282)

    # From the middle of the turned digit's box to its sides; a digit that would reach the border is made smaller.
    width, height = _ink(flat)[:, glyph]
    reach_x = (abs(a) * width * _PIXEL // across + abs(b) * height * _PIXEL // down) // 2
    reach_y = (abs(c) * width * _PIXEL // across + abs(d) * height * _PIXEL // down) // 2
    most = 25 * _PIXEL // 2
    across, down = (step * np.maximum(most, np.maximum(reach_x, reach_y)) // most for step in (across, down))
    # Shift by up to half a pixel (like MNIST's, the digits are centred), as far as the border allows.
    room_x, room_y = (np.clip(most - reach, 0, _PIXEL // 2) for reach in (reach_x, reach_y))
    shift_x, shift_y = between(6, -room_x, room_x), between(7, -room_y, room_y)

    # Four sampling points a pixel, carried back to the master by the inverse of the matrix, read bilinearly.
    points = (2 * np.arange(2 * SIZE) + 1 - 2 * SIZE) * _PIXEL // 4
    u, v = points - shift_x[:, None], points - shift_y[:, None]  # (n, 56)
    x = _plane(d * across >> 16, u, -b * across >> 16, v)
    y = _plane(-c * down >> 16, u, a * down >> 16, v)
    image = _bilinear(flat, glyph, x, y)  # (n, 56, 56)
    image = image[:, ::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, ::2] + image[:, 1::2, 1::2]
    brightest = image.max(axis=(1, 2), keepdims=True)
    return image * 255 // brightest, digit


def _plane(a: Any, u: Any, b: Any, v: Any) -> Any:
    """a·u + b·v from the middle of the master, in 1/65536 of its pixels: (n, 56 for v, 56 for u)."""
    middle = (_FRAME - 1) * _ONE // 2
    along, down = a[:, None] * u // _PIXEL + middle, b[:, None] * v // _PIXEL
    plane = along.astype(np.int32)[:, None, :] + down.astype(np.int32)[:, :, None]
    return np.clip(plane, 0, (_FRAME - 1) * _ONE - 1, out=plane)  # a master's border is black


def _bilinear(flat: Any, glyph: Any, x: Any, y: Any) -> Any:
    """The masters' values at x, y (n, 56, 56), interpolated between four pixels."""
    corner = (y >> 16) * _FRAME + (x >> 16) + (glyph * _FRAME * _FRAME).astype(np.int32)[:, None, None]
    x, y, pixels = x >> 8 & 255, y >> 8 & 255, flat.reshape(-1).astype(np.int32)
    upper = pixels[corner] * (256 - x) + pixels[corner + 1] * x
    lower = pixels[corner + _FRAME] * (256 - x) + pixels[corner + _FRAME + 1] * x
    return (upper * (256 - y) + lower * y) >> 16


def _ink(flat: Any) -> Any:
    """Width and height of each master's digit, (2, number of masters); the digit is in the middle of its frame."""
    return np.stack([(flat > 0).any(axis).sum(-1) for axis in (1, 2)])


@cache
def _atlas() -> dict[str, Any]:
    with np.load(_ATLAS) as file:
        return {split: file[split] for split in ("train", "test")}  # (fonts, 10, 64, 64) uint8


def make_atlas(path: Path = _ATLAS) -> None:
    """Draw the masters with pillow: each digit large, then averaged down to a height of 48 pixels."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    def master(font: str, digit: int) -> Any:
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
        canvas = Image.new("L", (1000, 1000))
        ImageDraw.Draw(canvas).text((200, 200), str(digit), fill=255, font=ImageFont.truetype(file, 500))
        drawn = canvas.crop(canvas.getbbox())
        width = round(drawn.width * _HEIGHT / drawn.height)
        frame = Image.new("L", (_FRAME, _FRAME))
        small = drawn.resize((width, _HEIGHT), Image.Resampling.BOX)
        frame.paste(small, ((_FRAME - width) // 2, (_FRAME - _HEIGHT) // 2))
        return np.asarray(frame)

    def masters(fonts: tuple[str, ...]) -> Any:
        return np.stack([[master(font, digit) for digit in range(10)] for font in fonts])

    np.savez_compressed(
        path,
        train=masters(TRAIN_FONTS),
        test=masters(TEST_FONTS),
        train_fonts=np.array(TRAIN_FONTS),
        test_fonts=np.array(TEST_FONTS),
    )


if __name__ == "__main__":
    make_atlas()

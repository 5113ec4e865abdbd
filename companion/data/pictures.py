"""Image files of many kinds, read as bytes of one shape.

What a file gives, by its kind:

* more than 8 bits a channel: of 16 bits the upper 8 are taken; other depths are refused, as no file says their range.
* transparent: laid on a background, white unless another is asked for.
* several frames or pages (animated GIF, WebP and PNG; TIFF): the first.
* a palette, CMYK, YCbCr or HSV: converted to RGB, by pillow's formulas; colour profiles are not applied.
* an EXIF orientation, as photographs have: turned upright.
* another size: brought to one side by ``fit``, see :class:`Reading`.

What was done to how many files is counted and said in one line. A file that cannot be read is an error with its path,
or left out and named in that line, as asked for.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion._arguments import brief, check_choice, check_instance, check_size
from companion._extras import require
from companion.data._progress import progress

LARGEST_SIDE = 2**13  # of an image, in pixels: more is a mistake
FITS = ("crop", "resize", "pad")
_COLOUR = "a colour without transparency, as pillow names it, such as 'white' or '#808080'"
_AHEAD = 8  # pictures that a thread may be ahead of whoever takes them
_NAMED = 5  # files that a message names
_WHAT = "reading image files"


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Args:
        image_size: the side of the images, in pixels; None: as they are, and all the same.
        fit: "crop" takes the largest square in the middle, "resize" changes the proportions, "pad" shrinks or enlarges
            to the longer side and fills up with ``background``. All of them resize with bicubic interpolation.
        background: under what is transparent, and around a padded image; in a grey image its luminance.
        unreadable: "raise" an error with the path, or "skip" the file and say so.

    Raises:
        ValueError: an argument is wrong.
    """

    image_size: int | None = None
    fit: str = "crop"
    background: str = "white"
    unreadable: str = "raise"

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_size("image_size", self.image_size, most=LARGEST_SIDE)
        check_choice("fit", self.fit, FITS)
        if self.fit != "crop" and self.image_size is None:
            raise ValueError(f"image_size: got None, want the side to which images come by fit={self.fit!r}")
        check_instance("background", self.background, str, _COLOUR)
        if self.background not in ("white", "black"):  # which are known without pillow
            colours = require("PIL.ImageColor", extra="data", what="background")
            try:
                opaque = len(colours.getrgb(self.background)) == 3
            except ValueError:
                opaque = False
            if not opaque:
                raise ValueError(f"background: got {brief(self.background)}, want {_COLOUR}")
        check_choice("unreadable", self.unreadable, ("raise", "skip"))


class Picture(NamedTuple):
    """What a file gave: (C, H, W) bytes and what was done to it, or why it cannot be read."""

    pixels: NDArray[np.uint8] | None
    treated: tuple[str, ...] = ()
    problem: str = ""


@dataclass
class Report:
    """How many files were treated how, and which could not be read."""

    treated: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def add(self, picture: Picture) -> None:
        self.treated.update(picture.treated)
        if picture.pixels is None:
            self.unreadable.append(picture.problem)

    def update(self, other: "Report", treated: Mapping[str, int] | None = None) -> None:
        self.treated.update(other.treated if treated is None else treated)
        self.unreadable += other.unreadable

    def line(self, reading: Reading) -> str:
        """What was done, in words; empty if no file needed anything."""
        done = {
            "deep": "with 16 bits a channel (the upper 8 are taken)",
            "frames": "with several frames or pages (the first is taken)",
            "transparent": f"transparent (laid on {reading.background})",
            "converted": "in CMYK or another space of colours (converted to RGB)",
            "turned": "turned upright by their EXIF orientation",
            "enlarged": f"smaller than {reading.image_size}×{reading.image_size} (enlarged)",
        }
        parts = [f"{self.treated[key]:,} {words}" for key, words in done.items() if self.treated[key]]
        if self.unreadable:
            names = "; ".join(self.unreadable[:_NAMED]) + "; …" * (len(self.unreadable) > _NAMED)
            parts.append(f"{len(self.unreadable):,} left out, as they cannot be read ({names})")
        return ", ".join(parts)


def read_images(files: Sequence[Path], reading: Reading) -> tuple[Tensor, list[int], Report]:
    """Read image files into one tensor.

    Returns:
        The images, the numbers of the files that they are of, and what was done to them.

    Shapes:
        N files → images (n, C, H, W) uint8, with C = 1 if all files are grey, else 3; n < N if some were skipped.

    Raises:
        ValueError: a file cannot be read, and ``reading`` does not skip it; it differs in size from the first one while
            there is no ``image_size``; or none of them can be read.
    """
    images, kept, report = np.empty((0, 3, 0, 0), np.uint8), list[int](), Report()
    for i, picture in enumerate(pictures(files, reading, channels_of(files))):
        report.add(picture)
        if picture.pixels is not None:
            if not kept:
                images = np.empty((len(files), *picture.pixels.shape), np.uint8)
            images[len(kept)] = picture.pixels
            kept.append(i)
    if not kept:
        raise none_readable(report)
    return torch.from_numpy(images[: len(kept)]), kept, report


def none_readable(report: Report) -> ValueError:
    return ValueError(f"unreadable: got 'skip', but none of the images can be read ({report.unreadable[0]})")


def pictures(
    files: Sequence[Path], reading: Reading, channels: int, like: tuple[int, ...] | None = None
) -> Iterator[Picture]:
    """The files in their order, read by several threads, a few of them ahead.

    Args:
        like: the shape that all of them have to have; default: that of the first.

    Raises:
        ValueError: as :func:`read_images`.
    """
    workers, shape = min(available_cpus(), 16), like
    with _strict(), ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Path, Future[Picture]]] = deque()
        coming = iter(progress(files, "reading images"))
        try:
            while True:
                while len(waiting) < workers * _AHEAD and (file := next(coming, None)) is not None:
                    waiting.append((file, pool.submit(read, file, reading, channels)))
                if not waiting:
                    return
                file, future = waiting.popleft()
                picture = future.result()
                if picture.pixels is not None:
                    shape = shape or picture.pixels.shape
                    _check_same_size(file, picture.pixels.shape, shape)
                yield picture
        finally:
            for _, future in waiting:  # after an error the others need not be read
                future.cancel()


def _check_same_size(file: Path, got: tuple[int, ...], want: tuple[int, ...]) -> None:
    if got != want:
        raise ValueError(
            f"{file} is {got[2]}×{got[1]}, the images before it {want[2]}×{want[1]}: "
            f"bring them all to one size, for example with image_size={min(want[1:])}"
        )


def channels_of(files: Sequence[Path]) -> int:
    """1 if all files are grey, else 3. Only their headers are read, up to the first in colour."""
    pil = require("PIL.Image", extra="data", what=_WHAT)
    for file in files:
        try:
            with pil.open(_regular(file)) as opened:
                if not _is_grey(opened):
                    return 3
        except Exception:  # it is looked at again when it is read
            continue
    return 1


def _regular(file: Path) -> Path:
    """
    Raises:
        ValueError: it is not there, or a pipe, which to open would wait for ever, or a link to nothing.
    """
    if not file.exists() and not file.is_symlink():
        raise ValueError(f"{file} is missing: put it back")
    if not file.is_file():
        raise ValueError(f"{file} is no file that can be read, though its name is an image's: remove it")
    return file


def read(file: Path, reading: Reading, channels: int) -> Picture:
    """One file, brought to its side and to 1 or 3 channels.

    Raises:
        ValueError: it cannot be read, and ``reading`` does not skip it.
    """
    try:
        image, treated = _upright_in_8_bits(_regular(file), reading.background)
    except ValueError:
        if reading.unreadable == "skip":
            return Picture(None, problem=f"{file.parent.name}/{file.name}")
        raise
    if reading.image_size is not None:
        if max(image.size) < reading.image_size:
            treated = (*treated, "enlarged")
        image = fitted(image, reading.image_size, reading.fit, reading.background)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return Picture(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), treated)


def fitted(image: Any, side: int, fit: str = "crop", background: str = "white") -> Any:
    """A pillow image of mode L or RGB, brought to ``side`` × ``side`` pixels as :class:`Reading` says."""
    if fit == "resize":
        return image.resize((side, side))  # bicubic, pillow's default
    if fit == "crop":
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        return image.crop((left, top, left + short, top + short)).resize((side, side))
    pil = require("PIL.Image", extra="data", what=_WHAT)
    width, height = (max(1, round(side * length / max(image.size))) for length in image.size)
    under = pil.new(image.mode, (side, side), background)
    under.paste(image.resize((width, height)), ((side - width) // 2, (side - height) // 2))
    return under


def _upright_in_8_bits(file: Path, background: str) -> tuple[Any, tuple[str, ...]]:
    """An image of mode L or RGB, and what was done to make it so."""
    pil = require("PIL.Image", extra="data", what=_WHAT)
    ops = require("PIL.ImageOps", extra="data", what=_WHAT)
    try:
        # From a stream: pillow maps an uncompressed file that it opens by name, and then mixes up the rows of a TIFF
        # that has to be turned (seen with its version 13.0).
        with file.open("rb") as stream, pil.open(stream) as opened:
            deep, grey = _is_deep(opened), _is_grey(opened)  # asked before decoding, which loses it
            several = opened.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(opened, "is_animated", False)
            turned = opened.getexif().get(0x0112, 1) in range(2, 9)
            opened.load()  # which turns a TIFF, and forgets that it was to be turned
            image = _in_8_bits(ops.exif_transpose(opened), opened.format) if deep else ops.exif_transpose(opened)
        if image is not None:
            image, transparent = _opaque(image, background)
            converted = image.mode not in ("1", "L", "P", "RGB", "RGBX")
            image = image.convert("L" if grey else "RGB")
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise ValueError(f"{file} does not decode ({error}): replace it by a whole copy, or delete it") from error
    if image is None:
        raise ValueError(f"{file} has numbers of 32 bits, whose range it does not say: convert it to 8 bits first")
    done = {"deep": deep, "frames": several, "transparent": transparent, "converted": converted, "turned": turned}
    return image, tuple(name for name, was in done.items() if was)


def _is_grey(opened: Any) -> bool:
    two_of_16_bits = "LA;16B" in _raw_modes(opened)  # grey and transparency, which pillow makes colours
    return opened.mode in ("1", "L", "LA", "La", "I", "F") or opened.mode.startswith("I;16") or two_of_16_bits


def _is_deep(opened: Any) -> bool:
    """Whether an image has more than 8 bits a channel. Pillow drops the lower byte of colours without a warning."""
    if opened.format == "PPM" and any(isinstance(mode, int) and mode > 255 for mode in _raw_modes(opened)):
        return True
    return opened.mode.startswith(("I", "F")) or any(re.search(";16[BLNRS]", str(mode)) for mode in _raw_modes(opened))


def _raw_modes(opened: Any) -> list[Any]:
    """How the numbers stand in the file: what pillow's decoders are told, before an image is decoded."""
    return [argument for tile in opened.tile for argument in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]


def _in_8_bits(image: Any, format: str) -> Any:
    """Of 16 bits the upper 8, as pillow has done it already where there are colours; None if there are 32."""
    pil = require("PIL.Image", extra="data", what=_WHAT)
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode == "F" or (image.mode == "I" and format not in ("PNG", "PPM")):
        return None
    values = np.asarray(image).astype(np.int64)
    grey = pil.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if isinstance(see_through := image.info.get("transparency"), int):  # this one value of 16 bits
        grey.putalpha(pil.fromarray((values != see_through).astype(np.uint8) * 255))
    return grey


def _opaque(image: Any, background: str) -> tuple[Any, bool]:
    """The image laid on ``background``, and whether anything of that shows."""
    if not image.has_transparency_data:
        return image, False
    pil = require("PIL.Image", extra="data", what=_WHAT)
    over = image.convert("RGBA")
    shows = over.getchannel("A").getextrema()[0] < 255
    if shows:
        over = pil.alpha_composite(pil.new("RGBA", over.size, background), over)
    return over.convert("RGB"), shows


@contextmanager
def _strict() -> Iterator[None]:
    """Half an image is an error, whatever another library has set, and all plugins are loaded before threads begin."""
    image_file = require("PIL.ImageFile", extra="data", what=_WHAT)
    require("PIL.Image", extra="data", what=_WHAT).init()
    lenient = image_file.LOAD_TRUNCATED_IMAGES
    image_file.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        image_file.LOAD_TRUNCATED_IMAGES = lenient


def available_cpus() -> int:
    """The processors that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

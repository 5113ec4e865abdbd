"""A folder of images as an image set.

Each sub-folder is a class, with images in it or in folders below it; a folder without sub-folders is one class of its
own name. The folder may be divided into ``train/`` and ``test/``; the classes of both are then those of ``train/``.
Images are read in the order of their names. Files are left out if their name begins with a dot or has no suffix of an
image; if it has that of an image format that is not read, with a warning.

The images are grey, (1, H, W), if all of them are, and RGB, (3, H, W), otherwise. Transparency is dropped, and
photographs are turned upright by their EXIF orientation.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion._extras import require
from companion.data._progress import progress
from companion.data.images import ImageSet, chosen

LARGEST_SIDE = 2**13  # of an image, in pixels: more is a mistake
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
_OTHER_PICTURES = (
    *(".apng", ".avif", ".cr2", ".dng", ".exr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".nef", ".pbm"),
    *(".psd", ".qoi", ".svg", ".tga"),
)

_SPLITS = {"train", "val", "valid", "validation", "test"}
_OTHER_SPELLINGS = {"training": "train", "testing": "test"}


def folder(path: Path, split: str, *, size: int | None, seed: int, image_size: int | None) -> ImageSet:
    """The images under ``path``; the arguments are those of ``companion.data.load``.

    Raises:
        ValueError: there is no such split, images stand beside sub-folders, a class of the split is not in train or has
            no images, ``size`` is more than there are, or an image cannot be read.
    """
    top = _split_folder(path, split)
    classes = _folders(top) or [top]
    names = [path.resolve().name if class_folder == top else class_folder.name for class_folder in classes]
    if classes != [top] and (loose := [file for file in _images(top, "*")]):
        raise ValueError(f"{top} has images ({loose[0].name}) beside sub-folders: move each into a class's sub-folder")
    _warn_of_one_level_too_high(classes, top)
    known = _names_in_train(path, top) or names
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"split: got {split!r} with the class {strange[0]!r}, want those of train: {', '.join(known)}")
    files, labels = [], []
    for name, class_folder in zip(names, classes, strict=True):
        found = _images(class_folder, "**/*")
        if not found:
            raise ValueError(f"{class_folder} has no images ({', '.join(SUFFIXES)}): add some, or remove the folder")
        files += found
        labels += [known.index(name)] * len(found)
    if others := _named(top, "**/*", _OTHER_PICTURES):
        warnings.warn(
            f"{top}: {len(others)} pictures are left out, as their kind is not read (the first: {others[0].name}); "
            f"convert them to one of {', '.join(SUFFIXES)}",
            stacklevel=3,
        )
    kept = chosen(len(files), size, seed, str(top))
    return ImageSet(
        path.resolve().name,
        split,
        read_images([files[i] for i in kept], image_size),
        torch.tensor(labels, device="cpu")[list(kept)],
        tuple(known),
    )


def _warn_of_one_level_too_high(classes: list[Path], top: Path) -> None:
    """A single class without images of its own, but with sub-folders of them, is more likely the folder of a set."""
    if len(classes) > 1 or classes == [top] or _images(classes[0], "*"):
        return
    inner = [sub.name for sub in _folders(classes[0]) if _images(sub, "**/*")]
    if len(inner) > 1:
        warnings.warn(
            f"name: got {top} with the single class {classes[0].name}, which has the sub-folders {', '.join(inner[:3])}"
            f"{', …' * (len(inner) > 3)}: want {classes[0]} if those are the classes",
            stacklevel=4,
        )


def read_images(files: Sequence[Path], image_size: int | None) -> Tensor:
    """Decode image files, each cropped and resized to ``image_size`` if that is given.

    Shapes:
        N files → (N, C, H, W) uint8.

    Raises:
        ValueError: a file is damaged or cut short, has more than 8 bits a channel or several frames, or differs in size
            from the first one while ``image_size`` is None.
    """
    image_file = require("PIL.ImageFile", extra="data", what="reading image files")
    images, colour = np.empty((0, 3, 0, 0), np.uint8), False
    lenient = image_file.LOAD_TRUNCATED_IMAGES
    image_file.LOAD_TRUNCATED_IMAGES = False  # half an image is an error
    try:
        for i, file in enumerate(progress(files, "reading images")):
            image = _decode(file)
            if image_size is not None:
                image = middle_square(image, image_size)
            colour = colour or image.mode not in ("1", "L", "LA")
            if i == 0:
                images = np.empty((len(files), 3, image.height, image.width), np.uint8)
            height, width = images.shape[2:]
            if (image.height, image.width) != (height, width):
                raise ValueError(
                    f"{file} is {image.width}×{image.height}, the images before it {width}×{height}: "
                    f"crop and resize them all, for example with image_size={min(width, height)}"
                )
            images[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    finally:
        image_file.LOAD_TRUNCATED_IMAGES = lenient
    return torch.from_numpy(images if colour else images[:, :1].copy())


def middle_square(image: Any, side: int) -> Any:
    """The largest square in the middle of a pillow image, resized to ``side`` × ``side`` pixels."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return image.crop((left, top, left + short, top + short)).resize((side, side))  # bicubic, pillow's default


def _decode(file: Path) -> Any:
    pil = require("PIL.Image", extra="data", what="reading image files")
    ops = require("PIL.ImageOps", extra="data", what="reading image files")
    try:
        with pil.open(file) as opened:
            frames = getattr(opened, "n_frames", 1) if opened.format in ("GIF", "PNG", "WEBP") else 1
            deep = _is_deep(opened)  # asked before decoding, which loses it
            image = ops.exif_transpose(opened)
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise ValueError(f"{file} does not decode ({error}): replace it by a whole copy, or delete it") from error
    if frames > 1:
        raise ValueError(f"{file} has {frames} frames, want one picture a file: save the frames as files of their own")
    if deep:
        raise ValueError(f"{file} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits first")
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "PA"):
        image = image.convert("RGB")  # before resizing: palette numbers cannot be averaged
    return image


def _is_deep(opened: Any) -> bool:
    """Whether an image has more than 8 bits a channel. Pillow drops the lower byte of colours without a warning."""
    raw = [argument for tile in opened.tile for argument in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    names = [argument for argument in raw if isinstance(argument, str)]
    if opened.format == "PPM" and any(isinstance(argument, int) and argument > 255 for argument in raw):
        return True
    return opened.mode.startswith(("I", "F")) or any(re.search(";16[BLNRS]", name) for name in names)


def _split_folder(path: Path, split: str) -> Path:
    names = {sub.name for sub in _folders(path)}
    splits = _are_splits(names)
    like_splits = {name for name in names if _is_like_split(name)}
    respelt = {_OTHER_SPELLINGS.get(name.lower(), name.lower()) for name in names}
    if not splits and (_are_splits(respelt) or (like_splits == names and len(names) > 1)):
        raise ValueError(
            f"name: got {path} with the sub-folders {', '.join(sorted(names))}, which look like splits and not like "
            "classes, want splits to be named train and test"
        )
    if like_splits and like_splits < names:
        some, others = ", ".join(sorted(like_splits)), ", ".join(sorted(names - like_splits))
        taken = f"{others} is left out" if splits else "each is taken for a class"
        warnings.warn(
            f"name: got {path} with {some}, named like splits, beside {others}, want splits or classes alone: {taken}",
            stacklevel=4,
        )
    if splits and split in names:
        return path / split
    if splits or split != "train":
        there = f"one of {sorted(names)}" if splits else "'train', as there are no folders train and test"
        raise ValueError(f"split: got {split!r}, want {there} in {path}")
    return path


def _is_like_split(name: str) -> bool:
    """Whether it is the name of a split, or begins or ends with one: "test", "train_images", "my-val"."""
    words = re.split(r"[\W_]+", name.lower())
    return not {words[0], words[-1]}.isdisjoint(_SPLITS | _OTHER_SPELLINGS.keys())


def _are_splits(names: set[str]) -> bool:
    return {"train", "test"} <= names or (len(names) > 0 and names <= _SPLITS)


def _names_in_train(path: Path, top: Path) -> list[str]:
    """The classes of ``train/``, which number the labels of every split; empty if ``top`` is no split."""
    train = path / "train"
    if top == path or not train.is_dir():
        return []
    return [class_folder.name for class_folder in _folders(train)] or [path.resolve().name]


def _folders(path: Path) -> list[Path]:
    return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _images(path: Path, pattern: str) -> list[Path]:
    """
    Raises:
        ValueError: a name with the suffix of an image belongs to no file that can be read: a pipe, a broken link.
    """
    found = _named(path, pattern, SUFFIXES)
    if odd := [file for file in found if not file.is_file()]:  # opening a pipe would wait for ever
        raise ValueError(f"{odd[0]} is no file that can be read, though its name is an image's: remove it")
    return found


def _named(path: Path, pattern: str, suffixes: Sequence[str]) -> list[Path]:
    """Files under ``path`` with one of the ``suffixes``, without hidden files and folders."""
    return sorted(
        file
        for file in path.glob(pattern)
        if file.suffix.lower() in suffixes
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )

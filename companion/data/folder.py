"""A folder of images as an image set.

Each sub-folder is a class, with images in it or in folders below it; a folder without sub-folders is one class of its
own name. The folder may be divided into ``train/`` and ``test/``; the classes of both are then those of ``train/``.
Images are read in the order of their names. Files are left out if their name begins with a dot or has no suffix of an
image; if it has that of an image format that is not read, with a warning.

The images are grey, (1, H, W), if all of them are, and RGB, (3, H, W), otherwise. ``companion.data.pictures`` says how
each kind of file is read. A set that takes more than ``IN_MEMORY`` bytes is held in a file, see
``companion.data.cache``.
"""

import hashlib
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from companion.data.cache import CachedImageSet, cached, row_shape
from companion.data.images import ImageSet, chosen
from companion.data.pictures import Reading, channels_of, read_images
from companion.data.real import data_folder

IN_MEMORY = 2**30  # bytes: a larger set is held in a file, if nothing else is asked for
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
_OTHER_PICTURES = (
    *(".apng", ".avif", ".cr2", ".dng", ".exr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".nef", ".pbm"),
    *(".psd", ".qoi", ".svg", ".tga"),
)

_SPLITS = {"train", "val", "valid", "validation", "test"}
_OTHER_SPELLINGS = {"training": "train", "testing": "test"}


def folder(
    path: Path,
    split: str,
    *,
    size: int | None,
    seed: int,
    test_share: float | None,
    reading: Reading,
    cache: bool | Path | None,
    root: str | Path | None,
) -> ImageSet:
    """The images under ``path``; the arguments are those of ``companion.data.load``.

    Raises:
        ValueError: there is no such split, images stand beside sub-folders, a class of the split is not in train or has
            no images, ``size`` is more than there are, or an image cannot be read.
        OSError: a cache cannot be written.
    """
    divide = test_share is not None and split in ("train", "test") and _is_undivided(path)
    top = path if divide else _split_folder(path, split)
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
        if divide and test_share is not None:
            test = _test_part(found, class_folder, test_share)
            found = [file for file in found if (file in test) == (split == "test")]
        files += found
        labels += [known.index(name)] * len(found)
    if not files:
        raise ValueError(f"test_share: got {test_share}, want a share that leaves images of {path} to {split!r}")
    if others := _named(top, "**/*", _OTHER_PICTURES):
        warnings.warn(
            f"{top}: {len(others)} pictures are left out, as their kind is not read (the first: {others[0].name}); "
            f"convert them to one of {', '.join(SUFFIXES)}",
            stacklevel=3,
        )
    kept = chosen(len(files), size, seed, str(top))
    files, of_files = [files[i] for i in kept], torch.tensor(labels, device="cpu")[list(kept)]
    name, caches = path.resolve().name, _cache_folder(cache, files, reading, data_folder(root) / "folders", top)
    read: ImageSet
    if caches is None:
        images, rows, report = read_images(files, reading)
        read = ImageSet(name, split, images, of_files[rows], tuple(known))
    else:
        held = cached(files, top, reading, caches, f"{name}-{split}")
        read, report = CachedImageSet(name, split, held.images, of_files[held.files], tuple(known), held), held.report
    if line := report.line(reading):
        warnings.warn(f"{top}: of {len(files):,} images {line}", stacklevel=3)
    return read


def _cache_folder(
    cache: bool | Path | None, files: Sequence[Path], reading: Reading, usual: Path, top: Path
) -> Path | None:
    """Where the cache of a set is or shall be; None if it is held in memory.

    Raises:
        ValueError: the folder is inside that of the images, where it would be taken for a class.
    """
    if cache is None:
        cache = len(files) * math.prod(row_shape(files, reading, channels_of(files))) > IN_MEMORY
    if cache is False:
        return None
    place = (usual if cache is True else cache).resolve()
    if top.resolve() in (place, *place.parents):
        raise ValueError(f"cache: got {place}, inside the folder of images {top}, want one elsewhere")
    return place


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


def _is_undivided(path: Path) -> bool:
    return _split_folder(path, "train") == path


def _test_part(files: Sequence[Path], class_folder: Path, share: float) -> set[Path]:
    """The files of a class whose names have the smallest hashes: most stay on their side when others are added."""
    order = sorted(files, key=lambda file: hashlib.sha256(file.relative_to(class_folder).as_posix().encode()).digest())
    return set(order[: round(share * len(files))])


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
    return _named(path, pattern, SUFFIXES)


def _named(path: Path, pattern: str, suffixes: Sequence[str]) -> list[Path]:
    """Files under ``path`` with one of the ``suffixes``, without hidden files and folders."""
    return sorted(
        file
        for file in path.glob(pattern)
        if file.suffix.lower() in suffixes
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )

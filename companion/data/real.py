"""Published image sets, through torchvision: read if they are on the disk, downloaded if not."""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion._extras import require
from companion.data._progress import progress
from companion.data.images import ImageSet, chosen
from companion.data.pictures import Reading, fitted, read_images

NAMES = ("mnist", "fashion-mnist", "cifar10", "celeba")

# MD5 of the files in the published archives; torchvision has those of the archives only, and an extracted file may be
# damaged as well.
_EXTRACTED = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def real(
    name: str, split: str, *, size: int | None, seed: int, image_size: int | None, root: str | Path | None
) -> ImageSet:
    """A published set; the arguments are those of ``companion.data.load``. Labels of celeba: the attribute "Smiling".

    Raises:
        ValueError: a file is damaged, or ``size`` is more than there are images.
        FileNotFoundError: a file is missing and cannot be downloaded.
        PermissionError: a file has to be extracted into a folder that cannot be written to.
    """
    top = data_folder(root)
    tv = require("torchvision.datasets", extra="data", what=f"load({name!r})")
    with _alone(top):
        if name == "celeba":
            files, labels = _celeba(tv.CelebA, top, split)
            kept = list(chosen(len(files), size, seed, f"{name}/{split}"))
            images, _, _ = read_images([files[i] for i in kept], Reading(image_size or 64))
            return ImageSet(name, split, images, labels[kept], ("not smiling", "smiling"))
        if name == "cifar10":
            pixels, labels, classes = _cifar10(tv.CIFAR10, top, split)
        else:
            kind = tv.MNIST if name == "mnist" else tv.FashionMNIST
            pixels, labels, classes = _mnist(kind, name, top, split)
    kept = list(chosen(len(pixels), size, seed, f"{name}/{split}"))
    if len(kept) < len(pixels):
        pixels, labels = pixels[kept], labels[kept]
    return ImageSet(name, split, _channels_first(pixels, image_size), labels, classes)


def data_folder(root: str | Path | None = None) -> Path:
    """``root``, or else ``$COMPANION_DATA``, or else ``companion`` in the user's cache folder."""
    chosen_root = root or os.environ.get("COMPANION_DATA")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(chosen_root) if chosen_root else Path(cache, "companion")).expanduser()


def _mnist(kind: Any, name: str, top: Path, split: str) -> tuple[Any, Tensor, tuple[str, ...]]:
    raw = top / kind.__name__ / "raw"
    archives = {raw / file: md5 for file, md5 in kind.resources}
    missing = [
        file.with_suffix("") if file.is_file() else file  # to be extracted, or to be downloaded first
        for file in archives
        if not file.with_suffix("").is_file()
    ]
    if missing:
        _refuse_damaged(archives)
        _fetch(lambda: kind(top, download=True), name, missing)
    reader = require("torchvision.datasets.mnist", extra="data", what=name)
    prefix = "train" if split == "train" else "t10k"
    parts = {raw / file: md5 for file, md5 in _EXTRACTED[kind.__name__].items() if file.startswith(prefix)}
    _refuse_damaged(parts)

    def read(read_file: Callable[[str], Tensor], file: Path) -> Tensor:
        try:
            return read_file(str(file))
        except Exception as error:  # whatever the bytes made it stumble over
            raise _damaged(file, error) from error

    pixels = read(reader.read_image_file, raw / f"{prefix}-images-idx3-ubyte").numpy()
    labels = read(reader.read_label_file, raw / f"{prefix}-labels-idx1-ubyte")
    return pixels, labels, tuple(label.split(" - ")[0] for label in kind.classes)  # "0 - zero"


def _cifar10(kind: Any, top: Path, split: str) -> tuple[Any, Tensor, tuple[str, ...]]:
    base = top / kind.base_folder
    parts = {base / file: md5 for file, md5 in [*kind.train_list, *kind.test_list]}
    parts[base / kind.meta["filename"]] = kind.meta["md5"]
    missing = [file for file in parts if not file.is_file()]
    _refuse_damaged({top / kind.filename: kind.tgz_md5} if missing else parts)
    data = _fetch(lambda: kind(top, train=split == "train", download=True), "cifar10", missing)
    return data.data, torch.tensor(data.targets, device="cpu"), tuple(data.classes)


def _celeba(kind: Any, top: Path, split: str) -> tuple[list[Path], Tensor]:
    base = top / kind.base_folder
    pictures = base / "img_align_celeba"
    published = {base / file: md5 for _, md5, file in kind.file_list}
    archive = pictures.with_suffix(".zip")
    if pictures.is_dir():
        del published[archive]
    _refuse_damaged(published)
    if archive.is_file() and not pictures.is_dir():  # torchvision would ask for the downloading package first
        utils = require("torchvision.datasets.utils", extra="data", what="celeba")
        _fetch(lambda: utils.extract_archive(archive, base / "partial"), "celeba", [pictures])
        (base / "partial" / pictures.name).rename(pictures)  # in one step: half a folder would pass for a whole one
        (base / "partial").rmdir()
    missing = [file for file in [pictures, *published] if not file.exists()]
    data = _fetch(lambda: kind(top, split=split, download=True), "celeba", missing)
    return [pictures / file for file in data.filename], data.attr[:, data.attr_names.index("Smiling")].long().cpu()


def _channels_first(pixels: Any, image_size: int | None) -> Tensor:
    """(N, H, W) or (N, H, W, 3) → (N, C, H, W), each image cropped and resized if a size is given."""
    if image_size is not None and pixels.shape[1:3] != (image_size, image_size):
        pil = require("PIL.Image", extra="data", what="image_size")
        resize = progress(pixels, "resizing images")
        pixels = np.stack([np.asarray(fitted(pil.fromarray(image), image_size)) for image in resize])
    images = torch.from_numpy(pixels)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _refuse_damaged(published: Mapping[Path, str]) -> None:
    """
    Raises:
        ValueError: a file exists and has another checksum than the published one. It is not overwritten.
    """
    utils = require("torchvision.datasets.utils", extra="data", what="reading published sets")
    for file, md5 in published.items():
        if file.is_file() and not utils.check_integrity(file, md5):
            raise _damaged(file, f"its checksum is not the published {md5}")


def _damaged(file: Path, reason: object) -> ValueError:
    return ValueError(
        f"{file} is damaged or cut short ({reason}): replace it by a whole copy, or delete it and load again"
    )


def _fetch(get: Callable[[], Any], name: str, missing: list[Path]) -> Any:
    """Let torchvision extract or download the missing files.

    Raises:
        FileNotFoundError: it cannot; the message says what can be done.
        PermissionError: it cannot write there.
    """
    waiting = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds without an answer; torchvision sets no limit
    try:
        return get()
    except Exception as error:
        first = missing[0] if missing else "a file"
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(
                f"{name}: {first} is missing and {error.filename} cannot be written: copy the folder to a "
                "writable place and set COMPANION_DATA (or root) to that"
            ) from error
        raise FileNotFoundError(
            f"{name}: {first} is missing and could not be had ({' '.join(str(error).split())}). Set "
            "COMPANION_DATA (or root) to a folder that has it, or load it with a network, or use 'glyphs' "
            "or 'emoji', which need neither."
        ) from error
    finally:
        socket.setdefaulttimeout(waiting)


@contextmanager
def _alone(top: Path) -> Iterator[None]:
    """One process at a time, so that none reads a file that another has half extracted."""
    filelock = require("filelock", extra="data", what="loading published sets")
    lock = filelock.FileLock(top / ".companion.lock")
    try:
        top.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # no writing there, so nothing is extracted there either
        yield
        return
    try:
        yield
    finally:
        lock.release()

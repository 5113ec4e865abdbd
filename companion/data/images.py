"""A set of images, held as one tensor."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion._arguments import (
    brief,
    check_available,
    check_between,
    check_channels_first,
    check_codes,
    check_instance,
    check_same_device,
    check_tensor,
    check_whole,
    checks_values,
    described,
)

_DARK = 16  # the largest byte of a set that is hardly one of images: of classes, or of few grey values, not stretched


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and their labels, each held as one tensor.

    Args:
        name: of the set, such as "mnist".
        split: which part of the set it is: "train", "test", or any other word. Only a label.
        images: bytes, 0 … 255.
        labels: for each image, an index into ``classes``.
        classes: the names of the classes, all different.

    Shapes:
        images: (N, C, H, W) uint8; labels: (N,) int64.

    Raises:
        ValueError: a tensor has another type, shape or device, the channels come last, a label is no index into
            ``classes``, or a class name is no string or occurs twice.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("split", self.split)):
            check_instance(name, text, str, "a string")
        check_tensor("images", self.images, shape=("N", "C", "H", "W"), dtype=torch.uint8)
        check_channels_first("images", self.images)
        check_tensor("labels", self.labels, shape=(len(self),), dtype=torch.int64)
        check_same_device("labels", self.labels, "images", self.images)
        if not isinstance(self.classes, tuple | list) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes: got {brief(self.classes)}, want a tuple of names")
        if twice := [name for i, name in enumerate(self.classes) if name in self.classes[:i]]:
            raise ValueError(f"classes: got {twice[0]!r} more than once, want another name for each class")
        check_codes("labels", self.labels, len(self.classes))
        if len(self) >= 8 and checks_values(self.images) and (most := int(self._looked_at().max())) <= _DARK:
            got = ("that are all 0", "of 0 and 1 only")[most] if most <= 1 else f"of at most {most}"
            warnings.warn(
                f"images: got bytes {got}, want 0 … 255: (255 * x).round().to(torch.uint8) of x in [0, 1]",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its label, so that torch's ``DataLoader`` takes the set; ``batch`` is quicker.

        Shapes:
            → (C, H, W) float32 in [0, 1].

        Raises:
            IndexError: it is outside −N … N − 1.
            TypeError: it is no whole number.
        """
        if isinstance(index, bool) or not isinstance(index, Integral):
            raise TypeError(f"index: got {brief(index)}, want a whole number; several at once: batch([0, 1])")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: got {index}, want {-len(self)} to {len(self) - 1}")
        return self.images[int(index)].float().div(255), int(self.labels[int(index)])

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.shape))
        counts = f"{len(self):,} images {shape}, {len(self.classes)} classes"
        return f"<{self.name}/{self.split}: {counts}, {self.device}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device | str) -> "ImageSet":
        """The set on ``device``; one that needs over half of a GPU's free memory stays where it is, with a warning.

        Raises:
            ValueError: ``device`` is no device, or none of this machine.
        """
        check_available("device", device)
        device = torch.device(device)
        if device.type == "cuda" and self.device.type != "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            needed = self.images.nbytes
            if needed > free // 2:
                warnings.warn(
                    f"{self.name}/{self.split} stays on {self.device}: {needed / 2**20:,.0f} MiB is over "
                    f"half of the {free / 2**20:,.0f} MiB free on {device}; batches are copied",
                    stacklevel=2,
                )
                return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, n: int) -> "ImageSet":
        """The first ``n`` images, without a copy.

        Raises:
            ValueError: ``n`` is not from 1 to N.
        """
        check_whole("n", n, most=len(self))
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def batch(self, indices: Tensor | Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The images at ``indices``, as numbers in [0, 1], and their labels.

        Indices on the CPU are better than on a GPU, which has to be waited for when they are checked.

        Args:
            device: of the result; default: that of the set.

        Shapes:
            indices: (B,) int64 → x (B, C, H, W) float32 in [0, 1], y (B,) int64.

        Raises:
            ValueError: the indices are not one row of whole numbers from 0 to N − 1, or this machine has no such
                ``device``.
        """
        if device is not None:
            check_available("device", device)
        rows = as_indices(indices, len(self)).to(self.device)
        target = self.device if device is None else torch.device(device)
        x = self.images.index_select(0, rows).to(target)  # copied as bytes, a quarter of the size
        return x.float().div_(255), self.labels[rows].to(target)

    def digests(self) -> NDArray[np.uint64]:
        """Of each image a hash of its bytes, the same for the same bytes everywhere.

        Shapes:
            → (N,) uint64.
        """
        return np.array([digest(row) for row in self.images.cpu().numpy()], np.uint64)

    def _looked_at(self) -> Tensor:
        """The images whose range is checked."""
        return self.images


def as_indices(indices: Any, n: int) -> Tensor:
    """``indices`` as a tensor.

    Shapes:
        indices: (B,), a tensor or a sequence of whole numbers → (B,) int64 or int32.

    Raises:
        ValueError: they are not one row of whole numbers from 0 to ``n`` − 1.
    """
    try:
        rows = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"indices: got {brief(indices)}, want a row of whole numbers") from error
    if rows.ndim != 1 or rows.numel() == 0 or rows.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"indices: got {described(rows)}, want int64 of shape (B,), with B at least 1")
    check_between("indices", rows, 0, n - 1)
    return rows


def digest(pixels: NDArray[np.uint8]) -> int:
    """64 bits of a hash of an image's bytes."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")


def share_of_images(some: ImageSet, others: ImageSet) -> float:
    """Which share of the images of one set are in the other, byte by byte, 0 … 1. Hashes are compared."""
    if some.shape != others.shape:
        return 0.0
    return float(np.isin(some.digests(), others.digests()).mean())


def pixel_variance(images: Tensor) -> float:
    """The variance of all pixels, as numbers in [0, 1]. It is exact, and takes the memory of one piece of the images.

    Shapes:
        images: (N, C, H, W) uint8.
    """
    step = max(1, 2**24 // max(1, images[:1].numel()))
    counts = sum(
        torch.bincount(images[start : start + step].flatten(), minlength=256).cpu().double()
        for start in range(0, len(images), step)
    )
    values = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    share = counts / images.numel()
    return float((share * (values - (share * values).sum()).square()).sum())


def share_within(some: Tensor, others: Tensor) -> float:
    """Which share of the rows of one tensor, images or codes, are rows of the other, byte by byte, 0 … 1.

    Hashes of 64 bits are compared, so that no set is held twice.
    """
    if some.shape[1:] != others.shape[1:] or some.dtype != others.dtype:
        return 0.0
    there = {hash(row.tobytes()) for row in others.cpu().numpy()}
    return sum(hash(row.tobytes()) in there for row in some.cpu().numpy()) / len(some)


def chosen(available: int, size: int | None, seed: int, name: str) -> Sequence[int]:
    """The indices of the images to keep: all of them, or ``size`` drawn with ``seed``, in ascending order.

    The images of a folder are ordered by class, so the first ``size`` would all be of the first classes.

    Raises:
        ValueError: ``size`` is more than there are images.
    """
    if size is None:
        return range(available)
    if size > available:
        raise ValueError(f"size: got {size:,}, want 1 to {available:,}, the images of {name}")
    draws = np.random.PCG64(seed).random_raw(available)  # raw bits: the same in every version of numpy
    kept: list[int] = np.sort(np.argsort(draws, kind="stable")[:size]).tolist()
    return kept

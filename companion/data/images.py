"""A set of images as one tensor."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion._arguments import (
    brief,
    check_between,
    check_codes,
    check_device,
    check_instance,
    check_same_device,
    check_tensor,
    check_whole,
    described,
)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and their classes, held as one tensor each.

    Shapes:
        images: uint8 [N, C, H, W]; labels: int64 [N], each an index into ``classes``.

    Raises:
        ValueError: a tensor has another type, shape or device, a label has no class, or a name is no string or stands
            for two classes.
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
        check_tensor("labels", self.labels, shape=(len(self),), dtype=torch.int64)
        check_same_device("labels", self.labels, "images", self.images)
        if not isinstance(self.classes, tuple | list) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes: got {brief(self.classes)}, want a tuple of names")
        if twice := [name for i, name in enumerate(self.classes) if name in self.classes[:i]]:
            raise ValueError(f"classes: got {twice[0]!r} more than once, want another name for each class")
        check_codes("labels", self.labels, len(self.classes))

    def __len__(self) -> int:
        return self.images.shape[0]

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
        """The set on ``device``; if it needs over half of a GPU's free memory, it stays, with a warning."""
        check_device("device", device)
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
        """The first ``n`` images (a view: nothing is copied)."""
        check_whole("n", n, most=len(self))
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def batch(self, indices: Tensor | Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The images and labels at ``indices`` [B], on ``device``, or where the set lives.

        Returns:
            x: float32 [B, C, H, W] in [0, 1]; y: int64 [B].

        Raises:
            ValueError: the indices are not one row of whole numbers from 0 to N - 1. (Checking indices that
                lie on a GPU waits for it; those on the CPU cost nothing.)
        """
        if device is not None:
            check_device("device", device)
        rows = check_rows(indices, len(self)).to(self.device)
        target = self.device if device is None else torch.device(device)
        x = self.images[rows].to(target)  # as bytes: a quarter of the traffic
        return x.float().div_(255), self.labels[rows].to(target)


def check_rows(indices: Any, n: int) -> Tensor:
    """The indices as a tensor.

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


def chosen(available: int, size: int | None, seed: int, name: str) -> Sequence[int]:
    """Which images to keep: all of them, or ``size`` drawn with ``seed``, in the order of the set.

    A folder's images stand class by class, so the first few would be of one class.
    """
    if size is None:
        return range(available)
    if size > available:
        raise ValueError(f"size: got {size:,}, want 1 to {available:,}, the images of {name}")
    draws = np.random.PCG64(seed).random_raw(available)  # raw bits: the same in every version of numpy
    kept: list[int] = np.sort(np.argsort(draws, kind="stable")[:size]).tolist()
    return kept

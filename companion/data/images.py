"""A set of images as one tensor."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images and their classes, held as one tensor each.

    Shapes:
        images: uint8 [N, C, H, W]; labels: int64 [N], each an index into ``classes``.

    Raises:
        ValueError: a tensor has another type, shape or device, or a label has no class.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.numel() == 0:
            raise ValueError(f"images: wanted uint8 [N, C, H, W] with N ≥ 1, got {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self),):
            raise ValueError(f"labels: wanted int64 [{len(self)}], got {_describe(self.labels)}")
        if self.labels.device != self.images.device:
            raise ValueError(f"labels: wanted on {self.images.device} like images, got on {self.labels.device}")
        low, high = (int(value) for value in self.labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(f"labels: wanted 0 to {len(self.classes) - 1} (classes), got {low} to {high}")

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
        if whole_number("n", n) > len(self):
            raise ValueError(f"n: wanted 1 to {len(self)} (the images of {self.name}/{self.split}), got {n}")
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def batch(self, indices: Tensor | Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The images and labels at ``indices`` [B], on ``device``, or where the set lives.

        Returns:
            x: float32 [B, C, H, W] in [0, 1]; y: int64 [B].

        Raises:
            ValueError: the indices are not one row of whole numbers from 0 to N - 1. (Checking indices that
                lie on a GPU waits for it; those on the CPU cost nothing.)
        """
        rows = torch.as_tensor(indices)
        if rows.ndim != 1 or rows.numel() == 0 or rows.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"indices: wanted int64 [B] with B ≥ 1, got {_describe(rows)}")
        low, high = (int(value) for value in rows.aminmax())
        if low < 0 or high >= len(self):
            raise ValueError(f"indices: wanted 0 to {len(self) - 1}, got {low} to {high}")
        rows = rows.to(self.device)
        target = self.device if device is None else torch.device(device)
        x = self.images[rows].to(target)  # as bytes: a quarter of the traffic
        return x.float().div_(255), self.labels[rows].to(target)


def whole_number(argument: str, value: int, least: int = 1) -> int:
    """``value``, or a ValueError that names the argument."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument}: wanted a whole number from {least} up, got {value!r}")
    return value


def chosen(available: int, size: int | None, seed: int, name: str) -> Sequence[int]:
    """Which images to keep: all of them, or ``size`` drawn with ``seed``, in the order of the set.

    A folder's images stand class by class, so the first few would be of one class.
    """
    if size is None:
        return range(available)
    if size > available:
        raise ValueError(f"size: wanted 1 to {available:,} (the images of {name}), got {size:,}")
    draws = np.random.PCG64(seed).random_raw(available)  # raw bits: the same in every version of numpy
    kept: list[int] = np.sort(np.argsort(draws, kind="stable")[:size]).tolist()
    return kept


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

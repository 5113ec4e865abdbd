"""Batches of images, whatever holds them: a tensor, an ``ImageSet`` or one like it, or a data set for a DataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from companion._arguments import brief, brief_kind, check_place, check_tensor
from companion.data.images import chosen


class Batches:
    """Up to ``most`` of the images in ``data``, drawn with a fixed seed, in batches with their labels.

    The batches are made while they are asked for, so that a set of any size takes the memory of one of them. ``data``
    may be a tensor; a set that gives batches, as an ``ImageSet`` does: ``len(data)`` and ``data.batch(indices,
    device)``; or a data set for a ``DataLoader``, whose ``data[i]`` is an image or begins with an image and its label.

    Args:
        name: of the argument, for messages.

    Shapes:
        → pairs of x (B, *image) floating point, and labels (B,) int64, or None where there are none.

    Raises:
        ValueError: ``data`` is none of these, is empty, or gives something else.
    """

    def __init__(self, name: str, data: Any, *, most: int | None, batch_size: int, device: torch.device) -> None:
        self.name, self.data, self.batch_size, self.device = name, data, batch_size, device
        kinds = "a tensor of images, an ImageSet, or a data set with a length whose items are images"
        if isinstance(data, Tensor):
            check_tensor(name, data, shape=("N", "*image"))
            check_place(name, data, movable=True)
        elif isinstance(data, torch.utils.data.DataLoader):
            raise ValueError(f"{name}: got a DataLoader, want {kinds}: loader.dataset")
        elif isinstance(data, str | list | tuple | dict) or not hasattr(data, "__len__"):
            raise ValueError(f"{name}: got {brief(data)}, want {kinds}")
        elif not (hasattr(data, "batch") or hasattr(data, "__getitem__")):
            raise ValueError(f"{name}: got {brief_kind(data)}, want {kinds}")
        available = len(data)
        if available == 0:
            raise ValueError(f"{name}: got an empty one, want at least one image")
        self.rows = list(chosen(available, None if most is None or most >= available else most, 0, name))

    def __len__(self) -> int:
        """How many images there are in all batches together."""
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, len(self.rows), self.batch_size):
            x, labels = self._batch(self.rows[start : start + self.batch_size])
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
                raise ValueError(f"{self.name}: gave {brief(x)} as a batch, want images, floating point (B, C, H, W)")
            yield x.to(self.device), None if labels is None else labels.to(self.device)

    def _batch(self, rows: list[int]) -> tuple[Any, Tensor | None]:
        if isinstance(self.data, Tensor):
            return self.data[torch.tensor(rows, device=self.data.device)], None
        if hasattr(self.data, "batch"):
            given = self.data.batch(torch.tensor(rows, device="cpu"), self.device)
            x, *more = given if isinstance(given, tuple | list) else (given,)
            return x, next((one for one in more if _is_labels(one, len(rows))), None)
        items = [self.data[row] for row in rows]
        if not isinstance(items[0], tuple | list):
            return _stacked(self.name, items), None
        x = _stacked(self.name, [item[0] for item in items])
        labels = [item[1] for item in items if len(item) > 1]
        whole = len(labels) == len(rows) and all(_is_whole(label) for label in labels)
        return x, torch.tensor([int(label) for label in labels], device="cpu") if whole else None


def _stacked(name: str, images: list[Any]) -> Tensor:
    """
    Raises:
        ValueError: one is no tensor, or their shapes differ.
    """
    if other := [image for image in images if not isinstance(image, Tensor)]:
        raise ValueError(f"{name}: gave {brief(other[0])} as an image, want a tensor (C, H, W) in [0, 1]")
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{name}: gave images of different shapes, want one: {sorted({(*i.shape,) for i in images})}")
    return torch.stack(images)


def _is_labels(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape == (n,)


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, int) and not isinstance(value, bool)

"""Checks of what a prior is called with."""

import math
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from companion._arguments import (
    brief,
    check_between,
    check_codes,
    check_flag,
    check_generator,
    check_number,
    check_place,
    check_size,
    check_tensor,
    check_weights,
    checks_values,
    described,
)
from companion._warnings import warn

if TYPE_CHECKING:
    from companion.priors.base import Prior


def check_batch(prior: "Prior", codes: Tensor, labels: Tensor | None) -> None:
    """The arguments of ``Prior.forward`` and ``prior_bits``."""
    check_tensor("codes", codes, shape=("B", *prior.grid), dtype=torch.int64)
    check_place("codes", codes, device_of(prior, codes), movable=True)
    check_between("codes", codes, 0, prior.num_codes - 1)
    if labels is not None:
        _check_labels(prior, "labels", labels, codes.shape[0])


def without_padding(prior: "Prior", codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, *grid) with 0 where they do not count, and the ``mask`` of ``Prior.forward`` as (B, *grid)."""
    check_tensor("codes", codes, shape=("B", *prior.grid), dtype=torch.int64)
    wide = isinstance(mask, Tensor) and mask.ndim == codes.ndim > 2 and mask.shape[-1] == 1  # (B, *positions, 1)
    shape = (*codes.shape[:-1], 1) if wide else tuple(codes.shape)
    check_tensor("mask", mask, shape=shape, dtype=torch.bool)
    check_place("mask", mask, codes.device)
    if checks_values(mask) and not bool(mask.any()):
        raise ValueError("mask: got False everywhere, want True for at least one code")
    mask = mask.expand_as(codes)
    return codes.masked_fill(~mask, 0), mask


def check_inputs(prior: "Prior", codes: Tensor, classes: Tensor) -> None:
    """The arguments of ``all_logits``."""
    check_tensor("codes", codes, shape=("B", *prior.grid), dtype=torch.int64)
    check_codes("codes", codes, prior.num_codes)
    check_tensor("classes", classes, shape=(codes.shape[0],), dtype=torch.int64)
    check_classes(prior, classes)


def check_classes(prior: "Prior", classes: Tensor) -> None:
    """The argument of ``steps``; num_classes itself is "no class"."""
    check_codes("classes", classes, prior.num_classes + 1)


def check_sample(
    prior: "Prior",
    n: int,
    guidance: float,
    generator: torch.Generator | None,
    cache: bool,
    batch_size: int,
) -> None:
    """The arguments of ``sample`` but for its filters and its label."""
    check_size("n", n)
    check_size("batch_size", batch_size)
    check_flag("cache", cache)
    check_number("guidance", guidance, least=0)
    check_generator("generator", generator)
    check_weights(prior)  # with NaN in the weights, no code can be drawn


def labels_of(prior: "Prior", label: int | Tensor | None, n: int, guidance: float) -> Tensor | None:
    """The ``label`` of ``sample`` as one class for each of n tables, (n,); None without one."""
    labels = _each(label, n)
    if labels is not None:
        _check_labels(prior, "label", labels, n)
    if guidance != 1 and (labels is None or not prior.label_dropout):
        raise ValueError(
            f"guidance: got {guidance} without a label, or of a prior trained with label_dropout=0, want 1, which "
            "is no guidance"
        )
    warn_of_no_class("label", labels, prior)
    return labels


def prefix_of(prior: "Prior", prefix: Tensor | None, n: int) -> Tensor:
    """The ``prefix`` of ``sample`` in raster order, (n, first); (n, 0) without one."""
    if prefix is None:
        return torch.zeros(n, 0, dtype=torch.int64)
    check_tensor("prefix", prefix, dtype=torch.int64)
    axes = len(prior.grid)
    whole = prefix.ndim - 2  # axes of the grid, at its end, that are given whole
    if prior._axes_in_position <= whole < axes:
        before, after = prior.grid[: axes - whole], prior.grid[axes - whole :]
        fits = len(prefix) == n and tuple(prefix.shape[2:]) == after and 1 <= prefix.shape[1] <= math.prod(before)
    else:
        fits = False
    if not fits:
        ends = [prior.grid[axes - k :] for k in range(prior._axes_in_position, axes)]
        shapes = " or ".join(f"({', '.join(map(str, (n, 'P', *end)))})" for end in ends)
        raise ValueError(
            f"prefix: got {described(prefix)}, want int64 of shape {shapes}, the first codes of tables "
            f"{(n, *prior.grid)}"
        )
    check_place("prefix", prefix, device_of(prior, prefix), movable=True)
    check_codes("prefix", prefix, prior.num_codes)
    return prefix.flatten(1)


def _each(label: int | Tensor | None, n: int) -> Tensor | None:
    if label is None or isinstance(label, Tensor):
        return label
    if isinstance(label, Integral) and not isinstance(label, bool) and abs(label) < 2**63:
        return torch.full((n,), int(label))
    raise ValueError(
        f"label: got {brief(label)}, want a class (a whole number), an int64 tensor ({n},) of classes, or None"
    )


def _check_labels(prior: "Prior", name: str, labels: Tensor, n: int) -> None:
    if prior.num_classes == 0:
        raise ValueError(f"{name}: got one, but this prior was made without classes (num_classes=0)")
    check_tensor(name, labels, shape=(n,), dtype=torch.int64)
    check_place(name, labels, device_of(prior, labels), movable=True)
    check_codes(name, labels, prior.num_classes)


def warn_of_no_class(name: str, labels: Tensor | None, prior: "Prior") -> None:
    if labels is None and prior.num_classes and not prior.label_dropout:
        warn(
            f"{name}: got None for a prior of {prior.num_classes} classes with label_dropout=0, want classes, unless "
            'it was trained without: training with labels does not train the start vector of "no class"'
        )


def device_of(prior: "Prior", otherwise: Tensor) -> torch.device:
    """Where the prior is; that of ``otherwise`` for replicas of DataParallel, which have no ``parameters()``."""
    return next(prior.parameters(), otherwise).device

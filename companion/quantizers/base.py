"""The contract of all quantizers, and the two ways to send a gradient past a choice that has none."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion.checkpoint import Configured


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Shapes:
        z_q: (B, D, *spatial), the codes in place of the latents, in the latents' dtype. Its gradient goes to the
        latents. indices: (B, *spatial), int64: which code stands where.
        loss: 0-dim, what the quantizer adds to the training loss: the weighted sum of ``losses``.
        losses: the terms by name, each 0-dim and *before* its weight.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]


class Quantizer(Configured, nn.Module):
    """What every quantizer has: ``num_codes`` (K), ``dim`` (D), ``depth`` (R, codes a position), and the calls below.

    Calling one is ``prepare``, ``quantize`` and, in training mode, ``learn``, in this order: a lookup always sees the
    codebook as it was before the batch. A codebook changes in training mode only, by an optimizer's step or by
    ``prepare`` and ``learn``; ``encode`` and ``decode`` never change anything.
    """

    num_codes: int
    dim: int
    depth: int = 1

    def forward(self, z: Tensor) -> Quantized:
        """Latents (B, D, *spatial) → :class:`Quantized`.

        Raises:
            ValueError: ``z`` has another shape, or holds NaN or infinity; nothing was learnt then.
        """
        check_latents(z, self.dim)
        if self.training:
            self.prepare(z.detach())
        quantized = self.quantize(z)
        if self.training:
            self.learn(z.detach(), quantized.indices)
        return quantized

    def prepare(self, z: Tensor) -> None:
        """Before the first lookup in training mode: what has to be taken from data."""

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """Codes and losses, of latents that were checked; nothing changes."""

    def learn(self, z: Tensor, indices: Tensor) -> None:
        """After the lookup in training mode: statistics of the latents and of the codes that they chose."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Latents (B, D, *spatial) → the indices of their codes, (B, *spatial) int64. Nothing is learnt from them."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """Indices (B, *spatial) → their codes, (B, D, *spatial).

        Raises:
            ValueError: the indices are not int64, or one lies outside 0…K − 1.
        """


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of ``z_q``, to the bit, with the gradient of ``z``: dL/dz is the dL/dz_q that arrives here.

    (Bengio et al. 2013, section 4; van den Oord et al. 2017, section 3.2.) Often written z + sg[z_q − z], which is
    z_q only up to rounding; sg[z_q] + (z − sg[z]) is the same with a difference that is exactly 0. Nothing flows to
    ``z_q``.

    Shapes:
        z, z_q: the same shape → the same, in z's dtype.

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(z, z_q)
    out: Tensor = _StraightThrough.apply(z, z_q.detach().to(z.dtype))
    return out


class _StraightThrough(torch.autograd.Function):
    """sg[z_q] + (z − sg[z]) without adding anything: the value goes forward as it is, the gradient back as it is."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of ``z_q``, with a gradient that is turned and scaled as z is turned and scaled onto z_q.

    z_q = λRz, where R is the rotation in the plane of z and z_q that takes one direction to the other and λ =
    ‖z_q‖/‖z‖; both count as constants, so that dL/dz = λRᵀ dL/dz_q (Fifty et al. 2024, equations 3 to 5). Where there
    is no such rotation (z or z_q is 0, or they point in opposite directions), or z is shorter than a millionth of z_q,
    the gradient is that of :func:`straight_through`.

    Shapes:
        z, z_q: (N, D) → (N, D), in z's dtype.

    Raises:
        ValueError: the shapes differ, or are not (N, D).
    """
    _check_pair(z, z_q)
    if z.ndim != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (N, D)")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        fixed, target = working(z.detach()), working(z_q.detach())
        length, wanted = (v.norm(dim=1, keepdim=True) for v in (fixed, target))  # (N, 1)
        turns = (length > 1e-6 * wanted) & (wanted > 0)
        one = torch.ones_like(length)
        u = fixed / length.where(turns, one)
        v = target / wanted.where(turns, one)
        middle = u + v  # what R leaves in place; 0 where the two are opposite
        span = middle.norm(dim=1, keepdim=True)
        turns &= span > 1e-6
        r = middle / span.where(turns, one)
        scale = wanted / length.where(turns, one)
    with torch.autocast(z.device.type, enabled=False):
        moving = working(z)
        along_r, along_u = ((moving * w).sum(1, keepdim=True) for w in (r, u))  # (N, 1)
        turned = scale * (moving - 2 * along_r * r + 2 * along_u * v)  # λRz, equation 4
        path = torch.where(turns, turned, moving)
        return (target + (path - path.detach())).to(z.dtype)


ESTIMATORS = {"straight-through": straight_through, "rotation": rotation_trick}


def first_codes(num_codes: int, dim: int, estimator: str) -> Tensor:
    """(K, D) codes drawn from U(−√(3/D), √(3/D)): variance 1/D in each dimension, so that the mean of ‖e‖² is 1.

    Raises:
        ValueError: a size is not positive, or there is no such estimator.
    """
    for name, value in (("num_codes", num_codes), ("dim", dim)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, want at least 1")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: got {estimator!r}, want one of {', '.join(ESTIMATORS)}")
    bound = (3 / dim) ** 0.5
    return torch.empty(num_codes, dim).uniform_(-bound, bound)


def working(z: Tensor) -> Tensor:
    """In float32 where it is of less precision: distances and losses are never taken in half precision."""
    return z if z.dtype in (torch.float32, torch.float64) else z.float()


def check_latents(z: Tensor, dim: int) -> None:
    """
    Raises:
        ValueError: ``z`` is not floating point (B, dim, *spatial), is empty, or holds NaN or infinity.
    """
    if not z.is_floating_point():
        raise ValueError(f"z: got dtype {z.dtype}, want floating point")
    if z.ndim < 2 or z.shape[1] != dim or z.numel() == 0:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (B, {dim}, *spatial) with at least one vector")
    check_finite("z", z)


def check_finite(name: str, value: Tensor) -> None:
    """
    Raises:
        ValueError: NaN or infinity is in it; the message says how many of each.
    """
    low, high = value.detach().aminmax()
    if not bool((low - low + high - high) == 0):  # ∞ − ∞ is NaN, and NaN equals nothing
        nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
        raise ValueError(f"{name}: got {nan} NaN and {infinite} infinite of {value.numel()} numbers, want finite ones")


def check_indices(indices: Tensor, num_codes: int) -> None:
    """
    Raises:
        ValueError: not int64, or one lies outside 0…num_codes − 1.
    """
    if indices.dtype != torch.int64:
        raise ValueError(f"indices: got dtype {indices.dtype}, want int64")
    if indices.numel():
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"indices: got {low} to {high}, want 0 to {num_codes - 1}")


def rows(z: Tensor) -> Tensor:
    """(B, D, *spatial) → (B·T, D), the vectors one below the other."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def grid(vectors: Tensor, shape: torch.Size) -> Tensor:
    """(B·T, D) → (B, D, *spatial), where ``shape`` is (B, *spatial): the inverse of :func:`rows`."""
    return vectors.reshape(*shape, -1).movedim(-1, 1)


def _check_pair(z: Tensor, z_q: Tensor) -> None:
    if z.shape != z_q.shape:
        raise ValueError(f"z_q: got shape {tuple(z_q.shape)}, want that of z, {tuple(z.shape)}")

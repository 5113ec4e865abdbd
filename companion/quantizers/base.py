"""The contract of all quantizers, and the two ways to send a gradient past a choice that has none."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import (
    check_choice,
    check_codes,
    check_place,
    check_same_shape,
    check_size,
    check_tensor,
    check_whole,
)
from companion.checkpoint import Configured


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Shapes:
        z_q: (B, D, *spatial), the codes in place of the latents, in the latents' dtype. Its gradient goes to the
        latents. indices: (B, *spatial), int64: which code stands where; with R codes a position (B, *spatial, R).
        loss: 0-dim, what the quantizer adds to the training loss: the weighted sum of ``losses``.
        losses: the terms by name, each 0-dim and *before* its weight.
        code_counts: (K,) int64, how often each code was chosen in this batch, or (R, K). ``forward`` fills it in.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    code_counts: Tensor | None = None


class Quantizer(Configured, nn.Module, ABC):
    """What every quantizer has: ``num_codes`` (K), ``dim`` (D), ``depth`` (R, codes a position), and the calls below.

    Calling one is ``prepare`` (until it is ``prepared``), ``quantize`` and ``learn``, in this order, the first and the
    last in training mode only: a lookup always sees the codebook as it was before the batch. A codebook changes in
    training mode only, by an optimizer's step or by ``prepare`` and ``learn``; ``encode`` and ``decode`` never change
    anything. A quantizer that holds others calls *their* ``prepare``, ``quantize`` and ``learn`` in its own; nobody
    overrides ``forward``.
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
        self._check_device("z", z)
        if self.training and not self.prepared:
            self.prepare(z.detach())
        quantized = self.quantize(z)
        if self.training:
            self.learn(z.detach(), quantized)
        return replace(quantized, code_counts=count_codes(quantized.indices, self.num_codes, stacked_as=z))

    @property
    def prepared(self) -> bool:
        """Whether ``prepare`` has nothing left to do."""
        return type(self).prepare is Quantizer.prepare

    def prepare(self, z: Tensor) -> None:
        """Before the first lookup in training mode: what has to be taken from data."""

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """Codes and losses, of latents that were checked; no codebook changes."""

    def learn(self, z: Tensor, quantized: Quantized) -> None:
        """After the lookup in training mode: what the latents and what ``quantize`` made of them teach."""

    def summand(self, z: Tensor, quantized: Quantized) -> Tensor:
        """z_q as a residual quantizer adds it up: without a gradient to ``z``, whose estimator is that of the whole
        sum; only maps of this quantizer that learn from the reconstruction keep theirs."""
        return quantized.z_q.detach()

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Latents (B, D, *spatial) → the indices of their codes, (B, *spatial) int64. Nothing is learnt from them."""

    @abstractmethod
    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        """Indices (B, *spatial) → their codes, (B, D, *spatial).

        Args:
            depth: of R codes a position, add up the first ``depth`` only.

        Raises:
            ValueError: the indices are not int64, one lies outside 0…K − 1, or ``depth`` is not from 1 to R.
        """

    def _check_device(self, name: str, value: Tensor) -> None:
        own = next((tensor for tensor in (*self.parameters(), *self.buffers())), None)
        if own is not None:
            check_place(name, value, own.device)


class VectorwiseQuantizer(Quantizer):
    """A quantizer that looks at each vector by itself: latents become rows, and what is found goes back onto the grid.

    For example latents (16, 64, 8, 8) become 1,024 rows of 64 numbers, (1024, 64); their codes, again (1024, 64),
    become z_q (16, 64, 8, 8), and their indices, (1024,), become (16, 8, 8). All is computed in float32 (float64 where
    the latents are), also under autocast. A subclass says what happens to the rows.
    """

    @abstractmethod
    def quantize_rows(self, vectors: Tensor) -> Quantized:
        """(N, D) → :class:`Quantized` with z_q (N, D) and indices (N,)."""

    @abstractmethod
    def encode_rows(self, vectors: Tensor) -> Tensor:
        """(N, D) → (N,) int64, as ``quantize_rows`` in eval mode chooses them."""

    @abstractmethod
    def codes(self, indices: Tensor) -> Tensor:
        """Indices of any shape → (*shape, D)."""

    def quantize(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            out = self.quantize_rows(rows(working(z)))
        shape = z.shape[:1] + z.shape[2:]
        return replace(out, z_q=grid(out.z_q, shape).to(z.dtype), indices=out.indices.reshape(shape))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        self._check_device("z", z)
        with torch.autocast(z.device.type, enabled=False):
            return self.encode_rows(rows(working(z))).reshape(z.shape[:1] + z.shape[2:])

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        check_codes("indices", indices, self.num_codes)
        self._check_device("indices", indices)
        if depth is not None:
            check_whole("depth", depth, most=1)
        return self.codes(indices).movedim(-1, 1)


def count_codes(indices: Tensor, num_codes: int, *, stacked_as: Tensor) -> Tensor:
    """How often each code was chosen: (K,), or (R, K) where each position has R codes.

    There are R codes a position, on a last axis of the indices, where these have as many axes as the latents: (B, h, w)
    are the indices of latents (B, D, h, w), and (B, h, w, R) are stacks, also with R = 1.

    Shapes:
        indices: (B, *spatial) or (B, *spatial, R), int64; stacked_as: the latents, (B, D, *spatial).
    """
    stacked = indices.ndim == stacked_as.ndim
    depths = indices.reshape(-1, indices.shape[-1]) if stacked else indices.reshape(-1, 1)  # (N, R)
    cells = depths + num_codes * torch.arange(depths.shape[1], device=indices.device)  # which of the R·K counters
    counts = indices.new_zeros(depths.shape[1] * num_codes)
    counts.scatter_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
    return counts.reshape(-1, num_codes) if stacked else counts


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
    check_size("num_codes", num_codes)
    check_size("dim", dim)
    check_choice("estimator", estimator, ESTIMATORS)
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
    check_tensor("z", z, shape=("B", dim, "*spatial"), finite=True)


def rows(z: Tensor) -> Tensor:
    """(B, D, *spatial) → (B·T, D), the vectors one below the other."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def grid(vectors: Tensor, shape: torch.Size) -> Tensor:
    """(B·T, D) → (B, D, *spatial), where ``shape`` is (B, *spatial): the inverse of :func:`rows`."""
    return vectors.reshape(*shape, -1).movedim(-1, 1)


def _check_pair(z: Tensor, z_q: Tensor) -> None:
    check_tensor("z", z)
    check_tensor("z_q", z_q)
    check_same_shape("z_q", z_q, "z", z)

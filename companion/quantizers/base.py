"""The contract of all quantizers: what goes in, what comes out, and in which order a training step does things."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    check_codes,
    check_finite,
    check_place,
    check_size,
    check_tensor,
    check_whole,
    checks_values,
)
from companion._devices import at_least_float32
from companion._pytrees import pytree
from companion.configured import Configured


@pytree
@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Shapes:
        z_q: (B, D, *spatial), the codes in place of the latents, in the latents' dtype. Its gradient goes to the
            latents. It is stored channels last: ``z_q.reshape`` works, and ``z_q.view`` may not.
        indices: (B, *spatial), int64, the index of the code at each position; (B, *spatial, R) with R codes per
            position.
        loss: 0-dim, what the quantizer adds to the training loss: the weighted sum of ``losses``.
        losses: the terms by name, each 0-dim and *before* its weight.
        code_counts: (K,) int64, how often each code was used in this batch; (R, K) with R codes per position. Where
            ``quantize`` leaves it None, ``forward`` counts the indices.

    With a mask, z_q and indices are 0 at the positions that do not count.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    code_counts: Tensor | None = None


class Quantizer(Configured, nn.Module, ABC):
    """A quantizer has ``num_codes`` (K), ``dim`` (D) and ``depth`` (R, codes per position). ``quantizer(z)`` calls

    1. ``initialise``, at the first call in training mode: what is taken from data, such as codes by k-means;
    2. ``quantize``: search, lookup, losses and gradient estimator; the codebook does not change;
    3. ``update``, in training mode: what is learnt without a gradient, such as moving averages.

    So a lookup sees the codebook as it was before this batch's update. ``encode`` and ``decode`` never change anything.
    With a ``mask``, these see the vectors of the positions that count, as if each were an image of its own, (n, D).
    A quantizer that contains others calls *their* methods in its own, and skips 1 and 3 for one that is in eval mode.
    Subclasses do not override ``forward``.
    """

    num_codes: int
    dim: int
    depth: int = 1
    _hold: Callable[[Tensor, Quantized], None] | None = (
        None  # called instead of ``update`` in a block of ``one_update``
    )

    def forward(self, z: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """Latents (B, D, *spatial) → :class:`Quantized`.

        Args:
            mask: which positions count, (B, *spatial) bool; for sounds of several lengths, ``torch.arange(T) <
                lengths[:, None]``. The others, padding, are left out of losses, counts, averages and k-means. Their
                z_q is 0, without a gradient to z, and so are their indices. What a result has beyond the fields of
                ``Quantized`` is then of n images without spatial axes, one for each position that counts.

        Raises:
            ValueError: ``z`` has another shape, or holds NaN or infinity; ``mask`` has another shape, or is False
                everywhere. The codebook is then unchanged.
        """
        check_latents(z, self.dim)
        self._check_device("z", z)
        if mask is None:
            return self._forward(z)
        self._check_mask(mask, z)
        out = self._forward(z.movedim(1, -1)[mask])  # of n positions, (n, D)
        z_q = z.new_zeros(*mask.shape, self.dim).index_put((mask,), out.z_q).movedim(-1, 1)  # (B, D, *spatial)
        indices = out.indices.new_zeros(*mask.shape, *out.indices.shape[1:])  # (B, *spatial), or (B, *spatial, R)
        indices[mask] = out.indices
        return replace(out, z_q=z_q, indices=indices)

    def _forward(self, z: Tensor) -> Quantized:
        if self.training and not self.initialised:
            self.initialise(z.detach())
        quantized = self.quantize(z)
        if self.training:
            learn = self.update if self._hold is None else self._hold
            learn(z.detach(), quantized)
        if quantized.code_counts is None:
            stacked = quantized.indices.ndim == z.ndim  # (B, h, w, R) beside (B, D, h, w): R codes per position
            counts = count_codes(quantized.indices, self.num_codes, stacked=stacked)
            quantized = replace(quantized, code_counts=counts)
        return quantized

    @property
    def initialised(self) -> bool:
        """Whether ``initialise`` has nothing to do. By default: whether a subclass has left ``initialise`` as it is.

        A subclass that overrides ``initialise`` overrides this too; else ``initialise`` runs at every training step.
        """
        return type(self).initialise is Quantizer.initialise

    def initialise(self, z: Tensor) -> None:
        """Take from data what the first lookup needs."""

    @abstractmethod
    def quantize(self, z: Tensor) -> Quantized:
        """Codes and losses of latents (B, D, *spatial) that were checked. The codebook does not change."""

    def update(self, z: Tensor, quantized: Quantized) -> None:
        """Learn without a gradient, from latents and what ``quantize`` made of them."""

    def contribution(self, z: Tensor, quantized: Quantized) -> Tensor:
        """What this quantizer adds to a residual quantizer's sum, (B, D, *spatial): z_q without a gradient to ``z``.

        ``_result`` in ``residual.py`` says what gets a gradient from the sum.
        """
        return quantized.z_q.detach()

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Latents (B, D, *spatial) → the indices of their codes, (B, *spatial) int64. Nothing is learnt."""

    @abstractmethod
    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        """Indices (B, *spatial) → their codes, (B, D, *spatial).

        Args:
            depth: of R codes per position, add up the first ``depth`` only.

        Raises:
            ValueError: the indices are not int64, one lies outside 0…K − 1, or ``depth`` is not from 1 to R.
        """

    def _check_mask(self, mask: Tensor, z: Tensor) -> None:
        check_tensor("mask", mask, shape=_positions(z), dtype=torch.bool)
        check_place("mask", mask, z.device)
        if checks_values(mask) and not bool(mask.any()):
            raise ValueError("mask: got False everywhere, want True for at least one position")
        if self.training and any(getattr(part, "depth_dropout", 0) for part in self.modules()):
            raise ValueError(
                "mask: got one in training with depth_dropout, which draws for whole images, want one of both"
            )

    def _check_device(self, name: str, value: Tensor) -> None:
        own = next(chain(self.parameters(), self.buffers()), None)
        if own is not None:
            check_place(name, value, own.device)


class VectorwiseQuantizer(Quantizer):
    """A quantizer of single vectors: it quantises each position independently of the others.

    Subclasses write :meth:`encode_vectors` and :meth:`lookup`; ``encode`` and ``decode`` follow from them.
    """

    @abstractmethod
    def encode_vectors(self, z: Tensor) -> Tensor:
        """The search alone: (N, D) → (N,) int64, the indices that ``quantize`` gives in eval mode."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices of any shape → their codes, (*shape, D).

        Raises:
            ValueError: the indices are not int64, one lies outside 0…K − 1, or a code is NaN or infinite.
        """

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        self._check_device("z", z)
        return to_positions(self.encode_vectors(to_vectors(z)), like=z)

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        check_tensor("indices", indices, dtype=torch.int64)
        if indices.ndim == 0:
            raise ValueError("indices: got shape (), want (B, *spatial)")
        if depth is not None:
            check_whole("depth", depth, most=1)
        return self.lookup(indices).movedim(-1, 1)


def looked_up(indices: Tensor, codebook: Tensor) -> Tensor:
    """The codes of indices, which are checked first: (*shape) → (*shape, D).

    Raises:
        ValueError: the indices are not int64 where the codebook is, one lies outside 0…K − 1, or a code is not finite.
    """
    check_codes("indices", indices, len(codebook))
    check_place("indices", indices, codebook.device)
    codes = functional.embedding(indices, codebook)
    check_finite("codebook", codes)
    return codes


# Shapes. Latents (16, 64, 8, 8) are 1,024 vectors of 64 numbers: (1024, 64). ----------------------------------------


def to_vectors(z: Tensor) -> Tensor:
    """(B, D, *spatial) → (N, D): the vectors of all positions of all images, N of them, in float32 at least."""
    return at_least_float32(z.movedim(1, -1).reshape(-1, z.shape[1]))


def to_latents(vectors: Tensor, *, like: Tensor) -> Tensor:
    """(N, D) → (B, D, *spatial), the inverse of :func:`to_vectors`, in the dtype of the latents ``like``."""
    return vectors.reshape(*_positions(like), vectors.shape[1]).movedim(-1, 1).to(like.dtype)


def to_positions(indices: Tensor, *, like: Tensor) -> Tensor:
    """One index per vector, (N,) → (B, *spatial), with the positions of the latents ``like``."""
    return indices.reshape(_positions(like))


def _positions(z: Tensor) -> tuple[int, ...]:
    return (z.shape[0], *z.shape[2:])


_MOST_COUNTED = 2**28  # codes: their counts take 2 GB. A finite scalar quantizer with more of them can still encode


def count_codes(indices: Tensor, num_codes: int, *, stacked: bool) -> Tensor:
    """How often each code was chosen.

    Shapes:
        indices: (B, *spatial) int64 → (K,); with ``stacked``, (B, *spatial, R) → (R, K).
    """
    check_size("num_codes", num_codes, most=_MOST_COUNTED)
    depths = indices.reshape(-1, indices.shape[-1]) if stacked else indices.reshape(-1, 1)  # (N, R)
    counter = depths + num_codes * torch.arange(depths.shape[1], device=indices.device)  # code 3 of depth 2: K + 3
    counts = indices.new_zeros(depths.shape[1] * num_codes)
    counts.scatter_add_(0, counter.flatten(), torch.ones_like(counter).flatten())
    return counts.reshape(-1, num_codes) if stacked else counts


def check_latents(z: Tensor, dim: int) -> None:
    """
    Raises:
        ValueError: ``z`` is not floating point (B, dim, *spatial), is empty, or holds NaN or infinity.
    """
    check_tensor("z", z, shape=("B", dim, "*spatial"), finite=True)

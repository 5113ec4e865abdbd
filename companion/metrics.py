"""Numbers that say how good a reconstruction is, and what its codes cost."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over every pixel of every image.

    Shapes:
        x_hat, x: the same shape, floating point → a scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or the numbers are integers (uint8 wraps around).
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat: got shape {tuple(x_hat.shape)}, want that of x, {tuple(x.shape)}")
    for name, value in (("x_hat", x_hat), ("x", x)):
        if not value.is_floating_point():
            raise ValueError(f"{name}: got dtype {value.dtype}, want floating point")
    return (x_hat - x).square().mean()


def distortion(error: float, variance: float) -> float:
    """Test MSE in units of the variance of all training pixels (one global number): 0 is perfect; 1 is what the
    best single grey value would reach.

    Raises:
        ValueError: the variance is not positive.
    """
    if not variance > 0:
        raise ValueError(f"variance: got {variance}, want a positive number")
    return error / variance


def nominal_bits(num_codes: int, grid: Sequence[int]) -> float:
    """What the codes of one image cost without a model of them: T·R·log₂K, ``grid`` being (h, w) or (h, w, R).

    Raises:
        ValueError: an argument is not positive.
    """
    if num_codes < 1 or min(grid, default=1) < 1:
        raise ValueError(f"num_codes, grid: got {num_codes} and {tuple(grid)}, want positive numbers")
    return math.prod(grid) * math.log2(num_codes)


class CodeUsage:
    """How often each code was chosen, added up over as many batches as there are.

    The perplexity of a data set is that of the *summed* counts. The mean over batches of each batch's perplexity is
    smaller and depends on the batch size: a batch of N indices cannot use more than N codes.

    Args:
        num_codes: K.
        per_position: keep the counts of each position apart, (*grid, K) of them, for ``entropy_bits_per_position``.
    """

    def __init__(self, num_codes: int, *, per_position: bool = False) -> None:
        if num_codes < 1:
            raise ValueError(f"num_codes: got {num_codes}, want at least 1")
        self.num_codes = num_codes
        self.per_position = per_position
        self._table: Tensor | None = None  # (T, K), or (1, K)

    def update(self, indices: Tensor) -> "CodeUsage":
        """Count a batch: (B, *grid) int64. With ``per_position``, the grid of every batch must be the same.

        Raises:
            ValueError: not int64, an index outside 0…K − 1, or another grid than before.
        """
        if indices.dtype != torch.int64:
            raise ValueError(f"indices: got dtype {indices.dtype}, want int64")
        columns = indices.reshape(-1, math.prod(indices.shape[1:]) if self.per_position else 1)  # (n, T or 1)
        positions = columns.shape[1]
        if self._table is not None and len(self._table) != positions:
            raise ValueError(f"indices: got {positions} positions an image, want {len(self._table)} as before")
        if indices.numel():
            low, high = (int(value) for value in indices.aminmax())
            if low < 0 or high >= self.num_codes:
                raise ValueError(f"indices: got {low} to {high}, want 0 to {self.num_codes - 1}")
        cells = columns + self.num_codes * torch.arange(positions, device=indices.device)  # which of the T·K counters
        counts = torch.bincount(cells.flatten(), minlength=positions * self.num_codes).reshape(positions, -1)
        self._table = counts if self._table is None else self._table + counts.to(self._table.device)
        return self

    @property
    def counts(self) -> Tensor:
        """(K,) int64: how often each code was chosen, over all positions.

        Raises:
            ValueError: nothing was counted yet.
        """
        return self._counted().sum(0)

    @property
    def perplexity(self) -> float:
        """exp H of the codes' shares: as many codes, equally often used, would be as hard to guess. 1 to K."""
        return perplexity(self.counts)

    @property
    def usage(self) -> float:
        """The share of the K codes that were chosen at least once."""
        return (self.counts > 0).double().mean().item()

    @property
    def entropy_bits(self) -> float:
        """H of the codes' shares over all positions together, bits a position: at most log₂K."""
        return math.log2(self.perplexity)

    @property
    def entropy_bits_per_position(self) -> Tensor:
        """H of the codes' shares at each position, bits: (T,). Their sum is what a code without context would cost.

        Raises:
            ValueError: made without ``per_position``.
        """
        if not self.per_position:
            raise ValueError("per_position: got False, want CodeUsage(…, per_position=True)")
        share = self._counted().double()
        share = share / share.sum(1, keepdim=True)
        return -torch.xlogy(share, share).sum(1) / math.log(2)

    def _counted(self) -> Tensor:
        if self._table is None or not bool(self._table.any()):
            raise ValueError("CodeUsage: nothing was counted yet, want at least one update")
        return self._table


def bits_per_image(indices: Tensor, num_codes: int) -> dict[str, float]:
    """What the codes of an image cost by three ways of writing them down, in bits.

    "nominal": T·log₂K, every code the same length. "entropy": T·H, H the entropy of the codes' shares over all
    positions. "per_position": Σₜ Hₜ, each position with its own shares. Each is at most the one before, if the shares
    are those of the images written; no context between positions is used, which is what a prior adds (chapter 07).

    Shapes:
        indices: (N, *grid) int64, the codes of N images.

    Raises:
        ValueError: not int64, no images, or an index outside 0…K − 1.
    """
    usage = CodeUsage(num_codes, per_position=True).update(indices)
    positions = usage.entropy_bits_per_position
    return {
        "nominal": nominal_bits(num_codes, indices.shape[1:]),
        "entropy": len(positions) * usage.entropy_bits,
        "per_position": positions.sum().item(),
    }


def perplexity(counts: Tensor) -> float:
    """exp H of the shares that ``counts`` (K,) give.

    Raises:
        ValueError: the counts are not one row of numbers with a positive sum.
    """
    if counts.ndim != 1 or not int(counts.sum()) > 0:
        raise ValueError(f"counts: got shape {tuple(counts.shape)}, want (K,) with a positive sum")
    share = counts.double() / counts.sum()
    return float((-torch.xlogy(share, share).sum()).exp())

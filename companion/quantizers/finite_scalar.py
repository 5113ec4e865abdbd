"""Finite scalar quantisation: a grid instead of a codebook (chapter 04's baseline)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from companion._arguments import check_whole
from companion.quantizers.base import Quantized, VectorwiseQuantizer, straight_through


class FiniteScalarQuantizer(VectorwiseQuantizer):
    """Each dimension is squashed into a range and rounded; the codes are the points of the grid (Mentzer et al. 2024).

    Nothing is learnt here and there is no loss: ``losses`` is empty. Dimension i has ``levels[i]`` values, equally
    spaced from −1 to 1, and tanh(z) is rounded to the nearest of them (section 3.1; the paper shifts even numbers of
    levels by half a step so that 0 is a level, here they lie symmetrically). The rounding has the straight-through
    gradient, tanh its own.

    Args:
        levels: values per dimension, each at least 2. D is their number, K their product.

    Shapes:
        z: (B, D, *spatial) → ``Quantized``; index = Σᵢ digitᵢ · levels₀⋯levelsᵢ₋₁.

    Raises:
        ValueError: fewer than 2 levels somewhere, or more points than int64 counts; ``z`` has another shape, or holds
            NaN or infinity.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(levels, Sequence) or len(levels) == 0:
            raise ValueError(f"levels: got {levels!r}, want at least one whole number of at least 2")
        for i, number in enumerate(levels):
            check_whole(f"levels[{i}]", number, least=2)
        if prod(levels) >= 2**63:
            raise ValueError(f"levels: got a grid of {prod(levels):.1e} points, want fewer than 2**63, as int64 counts")
        self.levels = tuple(int(number) for number in levels)
        self.num_codes, self.dim = prod(levels), len(levels)

    def quantize_rows(self, vectors: Tensor) -> Quantized:  # (N, D)
        squashed = vectors.tanh()
        indices = self._nearest(squashed)  # (N,)
        z_q = straight_through(squashed, self.codes(indices))
        return Quantized(z_q, indices, z_q.new_zeros(()), {})

    def encode_rows(self, vectors: Tensor) -> Tensor:
        return self._nearest(vectors.tanh())

    def codes(self, indices: Tensor) -> Tensor:
        levels, places = self._scale(indices.device)
        digits = indices[..., None] // places % levels  # (*shape, D)
        return 2 * digits / (levels - 1) - 1

    def _nearest(self, squashed: Tensor) -> Tensor:
        """Numbers in [−1, 1] (N, D) → the index of the nearest point of the grid, (N,)."""
        levels, places = self._scale(squashed.device)
        digits = ((squashed.detach() + 1) / 2 * (levels - 1)).round()  # 0 … L − 1
        return (digits.long() * places).sum(1)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels, and what a step in each dimension adds to the index; both (D,)."""
        places = [prod(self.levels[:i]) for i in range(self.dim)]
        return torch.tensor(self.levels, device=device), torch.tensor(places, device=device)

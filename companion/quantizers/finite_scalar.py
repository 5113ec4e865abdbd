"""Finite scalar quantisation: a grid instead of a codebook (chapter 04's baseline)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from companion.quantizers.base import Quantized, Quantizer, check_indices, check_latents, straight_through, working


class FiniteScalarQuantizer(Quantizer):
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
        ValueError: fewer than 2 levels somewhere; ``z`` has another shape, or holds NaN or infinity.
    """

    levels: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: got {list(levels)}, want at least one number, each at least 2")
        self.num_codes, self.dim = prod(levels), len(levels)
        places = [prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def quantize(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            squashed = working(z).tanh()
            indices = self._nearest(squashed)
            z_q = straight_through(squashed, self.decode(indices))
        return Quantized(z_q.to(z.dtype), indices, z_q.new_zeros(()), {})

    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        with torch.autocast(z.device.type, enabled=False):
            return self._nearest(working(z).tanh())

    def decode(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_codes)
        digits = indices[..., None] // self.places % self.levels  # (B, *spatial, D)
        return (2 * digits / (self.levels - 1) - 1).movedim(-1, 1)

    def _nearest(self, squashed: Tensor) -> Tensor:
        """Numbers in [−1, 1] (B, D, *spatial) → the index of the nearest point of the grid, (B, *spatial)."""
        levels, places = (v.reshape(1, -1, *[1] * (squashed.ndim - 2)) for v in (self.levels, self.places))
        digits = ((squashed.detach() + 1) / 2 * (levels - 1)).round()  # 0 … L − 1
        return (digits.long() * places).sum(1)

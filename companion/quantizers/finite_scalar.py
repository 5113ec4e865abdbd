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

    def forward(self, z: Tensor) -> Quantized:
        digits, squashed = self._digits(z)
        levels = self._along_dim(self.levels, z)
        z_q = 2 * straight_through(squashed, digits) / (levels - 1) - 1  # 0…L − 1 → −1…1
        none = z_q.new_zeros(())
        return Quantized(z_q.to(z.dtype), self._index(digits), none, {})

    def encode(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self._index(self._digits(z)[0])

    def decode(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_codes)
        digits = indices[..., None] // self.places % self.levels  # (B, *spatial, D)
        return (2 * digits / (self.levels - 1) - 1).movedim(-1, 1)

    def _digits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The level of each number, 0…L − 1, as floating point, and the squashed number that was rounded to it."""
        check_latents(z, self.dim)
        with torch.autocast(z.device.type, enabled=False):
            z = working(z)
            squashed = (z.tanh() + 1) / 2 * (self._along_dim(self.levels, z) - 1)  # 0 … L − 1
            return squashed.detach().round(), squashed

    def _index(self, digits: Tensor) -> Tensor:
        return (digits.long() * self._along_dim(self.places, digits)).sum(1)

    @staticmethod
    def _along_dim(values: Tensor, z: Tensor) -> Tensor:
        """(D,) → (1, D, 1, …), to go with z."""
        return values.reshape(1, -1, *[1] * (z.ndim - 2))

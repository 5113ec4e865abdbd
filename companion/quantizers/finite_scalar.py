"""Finite scalar quantisation: a grid instead of a codebook (a baseline of study 04b)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from companion._arguments import check_codes, check_sizes
from companion._devices import at_least_float32
from companion.quantizers.base import Quantized, VectorwiseQuantizer, to_latents, to_positions, to_vectors
from companion.quantizers.estimators import straight_through


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

    _like: Tensor
    _as_built = ("levels",)  # their order says which point of the grid an index is

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        check_sizes("levels", levels, least=2)
        if prod(levels) >= 2**63:
            raise ValueError(f"levels: got a grid of {prod(levels):.1e} points, want fewer than 2**63, as int64 counts")
        self.levels = tuple(int(number) for number in levels)
        self.num_codes, self.dim = prod(levels), len(levels)
        # Of no numbers: it goes where the model goes, and says in which type ``decode`` gives its codes.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def quantize(self, z: Tensor) -> Quantized:
        """Shapes beside the lines are those of levels (8, 6, 5) and z (16, 3, 8, 8)."""
        squashed = to_vectors(z).tanh()  # (1024, 3)
        indices = self._nearest(squashed)  # (1024,)
        z_q = straight_through(squashed, self._points(indices))  # (1024, 3)
        return Quantized(to_latents(z_q, like=z), to_positions(indices, like=z), z_q.new_zeros(()), {})

    def encode_vectors(self, z: Tensor) -> Tensor:
        return self._nearest(z.tanh())

    def lookup(self, indices: Tensor) -> Tensor:
        check_codes("indices", indices, self.num_codes)
        return self._points(indices).to(self._like.dtype)

    def _points(self, indices: Tensor) -> Tensor:
        levels, strides = self._levels_and_strides(indices.device)
        digits = indices[..., None] // strides % levels  # (*shape, D)
        return 2 * digits.to(at_least_float32(self._like).dtype) / (levels - 1) - 1

    def _nearest(self, squashed: Tensor) -> Tensor:
        """Numbers in [−1, 1] (N, D) → the index of the nearest point of the grid, (N,)."""
        levels, strides = self._levels_and_strides(squashed.device)
        digits = ((squashed.detach() + 1) / 2 * (levels - 1)).round()  # 0 … L − 1
        return (digits.long() * strides).sum(1)

    def _levels_and_strides(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels, and what a step in each dimension adds to the index; both (D,)."""
        strides = [prod(self.levels[:i]) for i in range(self.dim)]
        return torch.tensor(self.levels, device=device), torch.tensor(strides, device=device)

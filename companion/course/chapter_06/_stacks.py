"""What exercises 6.1 to 6.4 share: quantizers of every depth, the codes of stacks, and a sum to differentiate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.quantizers import Quantizer, VectorQuantizer


def shrinking_quantizers(depth: int, num_codes: int, dim: int, seed: int, beta: float = 0.25) -> list[VectorQuantizer]:
    """Quantizers whose codes get smaller with the depth, and are nowhere near the origin only."""
    g = torch.Generator().manual_seed(seed)
    quantizers = []
    for r in range(depth):
        with torch.random.fork_rng(devices=[]):  # its first codes are drawn, only to be overwritten
            quantizer = VectorQuantizer(num_codes, dim, commitment_weight=beta)
        with torch.no_grad():
            quantizer.codebook.copy_(0.8**r * torch.randn(num_codes, dim, generator=g) + 0.2)
        quantizers.append(quantizer)
    return quantizers


def codes_by_depth(indices: Tensor, quantizers: Sequence[Quantizer]) -> list[Tensor]:
    """Indices (B, *spatial, R) → R tensors (B, D, *spatial)."""
    return [quantizer.decode(indices[..., r]) for r, quantizer in enumerate(quantizers)]


def sum_of_codes(codes: Sequence[Tensor]) -> Tensor:
    """R tensors → one of their shape."""
    return torch.stack(list(codes)).sum(0)


def weighted_sum(values: Tensor) -> Tensor:
    """A number in which each of the values has a weight of its own, the same at every call."""
    return (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(7))).sum()

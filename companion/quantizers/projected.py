"""Codes of few dimensions for latents of many (chapter 05)."""

import torch
from torch import Tensor, nn

from companion.quantizers.base import Quantized, Quantizer


class ProjectedQuantizer(Quantizer):
    """A linear map to few dimensions, a quantizer there, and a linear map back (Yu et al. 2022, section 3.2).

    Codes are looked up where there are few dimensions, which leaves fewer of them unused; encoder and decoder keep
    their width. With ``EMAVectorQuantizer(…, cosine=True)`` inside these are the factorized, l2-normalised codes of the
    paper. Both maps are learnt: the one back from the reconstruction, the one before the codes by the gradient that the
    quantizer passes on and by its own losses, which are those of the projected latents.

    Args:
        quantizer: any quantizer of the contract; its ``dim`` is the number of dimensions of the codes.
        dim: D, the channels of the latents.

    Shapes:
        z: (B, D, *spatial) → ``Quantized`` with z_q (B, D, *spatial); indices as the quantizer inside gives them.

    Raises:
        ValueError: ``dim`` is not positive; ``z`` has another shape, or holds NaN or infinity (nothing is learnt then).
    """

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim: got {dim}, want at least 1")
        self.quantizer = quantizer
        self.num_codes, self.dim, self.depth = quantizer.num_codes, dim, quantizer.depth
        self.down = nn.Linear(dim, quantizer.dim)
        self.up = nn.Linear(quantizer.dim, dim)

    @torch.no_grad()
    def prepare(self, z: Tensor) -> None:
        self.quantizer.prepare(_on_channels(self.down, z))

    def quantize(self, z: Tensor) -> Quantized:
        low = self.quantizer.quantize(_on_channels(self.down, z))
        return Quantized(_on_channels(self.up, low.z_q).to(z.dtype), low.indices, low.loss, low.losses)

    @torch.no_grad()
    def learn(self, z: Tensor, indices: Tensor) -> None:
        self.quantizer.learn(_on_channels(self.down, z), indices)

    def encode(self, z: Tensor) -> Tensor:
        return self.quantizer.encode(_on_channels(self.down, z))

    def decode(self, indices: Tensor) -> Tensor:
        return _on_channels(self.up, self.quantizer.decode(indices))


def _on_channels(linear: nn.Linear, z: Tensor) -> Tensor:
    """A linear map of the vectors at all positions: (B, in, *spatial) → (B, out, *spatial)."""
    out: Tensor = linear(z.movedim(1, -1)).movedim(-1, 1)
    return out

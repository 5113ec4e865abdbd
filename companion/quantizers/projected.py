"""Codes of few dimensions for latents of many (study 05b)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion._arguments import check_finite, check_fits, check_size
from companion._pytrees import pytree
from companion.quantizers.base import Quantized, Quantizer, check_latents
from companion.quantizers.estimators import straight_through


@pytree
@dataclass(frozen=True, kw_only=True)
class ProjectedQuantized(Quantized):
    """What a projected quantizer returns; ``inner`` is what the quantizer inside made of the projected latents (with
    the mask and depths of a residual one)."""

    inner: Quantized


class ProjectedQuantizer(Quantizer):
    """A linear map to few dimensions, a quantizer there, and a linear map back (Yu et al. 2022, section 3.2).

    Codes are looked up where there are few dimensions, which leaves fewer of them unused; encoder and decoder keep
    their width. With ``EMAVectorQuantizer(…, cosine=True)`` inside these are the factorized, l2-normalised codes of the
    paper. Both maps are learnt: ``up`` from the reconstruction, and ``down`` from the reconstruction by way of the
    quantizer's estimator, and from the quantizer's losses.

    Args:
        quantizer: any quantizer of the contract; its ``dim`` is the number of dimensions of the codes.
        dim: D, the channels of the latents.

    Shapes:
        z: (B, D, *spatial) → ``ProjectedQuantized`` with z_q (B, D, *spatial); indices and losses are those of the
        quantizer inside, whose whole result is ``inner``.

    Raises:
        ValueError: ``dim`` is not positive; ``z`` has another shape, or holds NaN or infinity (nothing is learnt then).
    """

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"quantizer: got a {type(quantizer).__name__}, want a companion quantizer")
        check_size("dim", dim)
        self.quantizer = quantizer
        self.num_codes, self.dim, self.depth = quantizer.num_codes, dim, quantizer.depth
        self.down = nn.Linear(dim, quantizer.dim)
        self.up = nn.Linear(quantizer.dim, dim)

    @property
    def initialised(self) -> bool:
        return self.quantizer.initialised or not self.quantizer.training

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        self.quantizer.initialise(_on_channels(self.down, z))

    def quantize(self, z: Tensor) -> ProjectedQuantized:
        inner = self.quantizer.quantize(_on_channels(self.down, z))
        z_q = _on_channels(self.up, inner.z_q).to(z.dtype)
        return ProjectedQuantized(z_q, inner.indices, inner.loss, inner.losses, inner.code_counts, inner=inner)

    @torch.no_grad()
    def update(self, z: Tensor, quantized: Quantized) -> None:
        assert isinstance(quantized, ProjectedQuantized)
        if self.quantizer.training:
            self.quantizer.update(_on_channels(self.down, z), quantized.inner)

    def contribution(self, z: Tensor, quantized: Quantized) -> Tensor:
        """The values of z_q, with a gradient to ``down`` and ``up`` and none to z."""
        assert isinstance(quantized, ProjectedQuantized)
        # ``quantize`` projected z with a gradient to z. So z is projected again, detached.
        low = _on_channels(self.down, z.detach())  # (B, d, *spatial)
        codes = straight_through(low, quantized.inner.z_q.to(low.dtype))  # (B, d, *spatial)
        return _on_channels(self.up, codes)  # (B, D, *spatial)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        low = _on_channels(self.down, z)
        check_finite("down", low)
        return self.quantizer.encode(low)

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        codes = self.quantizer.decode(indices, depth=depth)
        z_q = _on_channels(self.up, codes.to(self.up.weight.dtype))
        check_finite("up", z_q)
        return z_q


def _on_channels(linear: nn.Linear, z: Tensor) -> Tensor:
    """A linear map of the vectors at all positions: (B, in, *spatial) → (B, out, *spatial).

    In a model of half precision, z may be float32: a residual quantizer computes its residuals in it.
    """
    if linear.weight.dtype in (torch.float16, torch.bfloat16) and z.dtype == torch.float32:
        z = z.to(linear.weight.dtype)
    check_fits("z", z, linear.weight, of="the quantizer")
    return linear(z.movedim(1, -1)).movedim(-1, 1)

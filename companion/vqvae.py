"""VQ-VAE (chapter 04): an autoencoder whose latents are codes. With a residual quantizer it is an RQ-VAE."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from companion._arguments import check_images, check_module, check_number, check_rebuilt, check_tensor
from companion.checkpoint import Configured
from companion.quantizers import Quantized, Quantizer
from companion.quantizers.base import count_codes

_IMAGES = ("B", "C", "*spatial")


@dataclass(frozen=True)
class VQVAEOutput:
    """What a VQ-VAE returns.

    Shapes:
        reconstruction: (B, C, H, W); z_e, z_q: (B, D, h, w); indices: (B, h, w) int64.
        code_counts: (K,) int64, how often each code was chosen in this batch: add them up before taking a perplexity.
            (R, K) where the quantizer gives R codes a position; indices are then (B, h, w, R).
        loss: what to minimise.
        losses: its terms by name, each 0-dim and unweighted: "reconstruction" (MSE over pixels) and the quantizer's
        own.
    """

    reconstruction: Tensor
    z_e: Tensor
    z_q: Tensor
    indices: Tensor
    code_counts: Tensor
    loss: Tensor
    losses: dict[str, Tensor]


class VQVAE(Configured, nn.Module):
    """Encoder, quantizer, decoder, trained together (van den Oord et al. 2017, equation 3).

    L = MSE(x̂, x) + α · (what the quantizer adds), for a ``VectorQuantizer`` codebook + β·commitment. All terms are
    means: over pixels, and over positions and dimensions. The paper writes log p(x|z_q) where it minimises; the sign
    there is a slip. The encoder learns by the gradient that the quantizer passes on, the decoder by its own.

    Args:
        encoder: images (B, C, H, W) → latents (B, D, h, w).
        quantizer: any of ``companion.quantizers``, with ``dim`` D.
        decoder: codes (B, D, h, w) → images (B, C, H, W).
        quantizer_weight: α.

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``VQVAEOutput``. With an encoder and a decoder for it, (B, C, *spatial).

    Raises:
        ValueError: ``x`` is something else, such as bytes or numbers up to 255; or encoder and decoder do not fit.
    """

    def __init__(
        self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, *, quantizer_weight: float = 1.0
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("quantizer", quantizer), ("decoder", decoder)):
            check_module(name, module)
        if lacks := [name for name in ("num_codes", "encode", "decode") if not hasattr(quantizer, name)]:
            raise ValueError(
                f"quantizer: got a {type(quantizer).__name__} without {', '.join(lacks)}, want a quantizer"
            )
        check_number("quantizer_weight", quantizer_weight, least=0)
        self.encoder = encoder
        self.quantizer = cast(Quantizer, quantizer)
        self.decoder = decoder
        self.quantizer_weight = quantizer_weight

    def forward(self, x: Tensor) -> VQVAEOutput:
        check_images("x", x, shape=_IMAGES)
        z_e = self._latents(x)
        quantized: Quantized = self.quantizer(z_e)
        reconstruction = self._decoded(quantized.z_q, "decoder")
        check_rebuilt(reconstruction, z_e, x)
        error = (reconstruction - x).square().mean()
        counts = quantized.code_counts
        if counts is None:  # a quantizer that is not of the companion's family
            counts = count_codes(quantized.indices, self.quantizer.num_codes, stacked_as=z_e)
        return VQVAEOutput(
            reconstruction,
            z_e,
            quantized.z_q,
            quantized.indices,
            counts,
            error + self.quantizer_weight * quantized.loss,
            {"reconstruction": error, **quantized.losses},
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → code indices (B, h, w), int64; for stacks (B, h, w, R).

        Raises:
            ValueError: they are no images in [0, 1].
        """
        check_images("x", x, shape=_IMAGES)
        return self.quantizer.encode(self._latents(x))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Code indices (B, h, w) → images (B, C, H, W), cut to [0, 1].

        Raises:
            ValueError: the indices are not int64, or one is no code.
        """
        check_tensor("indices", indices, dtype=torch.int64)
        if indices.numel() == 0:
            raise ValueError(f"indices: got shape {tuple(indices.shape)}, want those of at least one image")
        return self._decoded(self.quantizer.decode(indices), "indices", tuple(indices.shape)).clamp(0, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The images after the bottleneck, cut to [0, 1] so that they can be shown."""
        return self.decode(self.encode(x))

    def _latents(self, x: Tensor) -> Tensor:
        z_e: Tensor = self.encoder(x)
        dim = getattr(self.quantizer, "dim", None)
        if dim is not None and z_e.ndim > 1 and z_e.shape[1] != dim:
            raise ValueError(f"encoder: it made latents of {z_e.shape[1]} channels, want {dim} as the quantizer's dim")
        return z_e

    def _decoded(self, z_q: Tensor, argument: str, given: tuple[int, ...] | None = None) -> Tensor:
        try:
            return self.decoder(z_q)  # type: ignore[no-any-return]
        except ValueError as error:  # it speaks of its own argument, which is not the caller's
            what = f"got shape {given}, which is" if given else "it does not take"
            raise ValueError(f"{argument}: {what} latents {tuple(z_q.shape)}; the decoder: {error}") from error

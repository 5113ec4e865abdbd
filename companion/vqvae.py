"""VQ-VAE (chapter 04): an autoencoder whose latents are codes. With a ``ResidualQuantizer`` it is an RQ-VAE."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief_kind,
    check_finite,
    check_given,
    check_images,
    check_module,
    check_number,
    check_rebuilt,
    check_tensor,
    encoded,
    is_about_shapes,
)
from companion._pytrees import pytree
from companion.backbones.masked import AutoregressiveDecoder
from companion.configured import Configured
from companion.quantizers import Quantizer
from companion.quantizers.base import count_codes

_IMAGES = ("B", "C", "*spatial")


@pytree
@dataclass(frozen=True)
class VQVAEOutput:
    """What a VQ-VAE returns.

    Attributes:
        reconstruction: x̂, the images after the bottleneck.
        z_e: the output of the encoder.
        z_q: the codes that the decoder was given.
        indices: which code stands at each position.
        code_counts: how often each code was chosen in this batch. For the perplexity of a data set, sum them first.
        loss: the training loss, to be minimised.
        losses: its terms by name, before their weights: "reconstruction" (MSE over pixels) and those of the quantizer.

    Shapes:
        reconstruction: (B, C, H, W); z_e, z_q: (B, D, h, w); indices: (B, h, w) int64; code_counts: (K,) int64; loss
        and each of ``losses``: 0-dim. With R codes a position, indices are (B, h, w, R) and code_counts (R, K).
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

    L = MSE(x̂, x) + α · L_q, where L_q is the loss of the quantizer; for a ``VectorQuantizer`` it is codebook loss +
    β · commitment loss. All terms are means: over pixels, or over positions and dimensions. (The paper minimises an
    expression with +log p(x|z_q); the sign there is a slip.) The gradient of the reconstruction reaches the encoder
    through the quantizer's estimator.

    Args:
        encoder: images (B, C, H, W) → latents (B, D, h, w).
        quantizer: any of ``companion.quantizers``, with ``dim`` D.
        decoder: codes (B, D, h, w) → images (B, C, H, W).
        quantizer_weight: α.

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``VQVAEOutput``. With other encoders and decoders also (B, C, *spatial).

    Raises:
        ValueError: ``x`` has another shape, type or range; or the encoder, quantizer and decoder do not fit together.
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
        if isinstance(decoder, AutoregressiveDecoder):
            raise ValueError("decoder: got an AutoregressiveDecoder, which also reads images, want one of codes alone")
        check_number("quantizer_weight", quantizer_weight, least=0)
        self.encoder = encoder
        self.quantizer = cast(Quantizer, quantizer)
        self.decoder = decoder
        self.quantizer_weight = quantizer_weight

    def forward(self, x: Tensor) -> VQVAEOutput:
        check_images("x", x, shape=_IMAGES)
        z_e = self._latents(x)
        quantized = self.quantizer(z_e)
        if not all(hasattr(quantized, name) for name in ("z_q", "indices", "loss", "losses")):
            raise ValueError(f"quantizer: gave {brief_kind(quantized)}, want a companion.quantizers.Quantized")
        reconstruction = self._decoded(quantized.z_q, "decoder")
        check_rebuilt(reconstruction, z_e, x)
        error = (reconstruction - x).square().mean()
        counts = getattr(quantized, "code_counts", None)
        if counts is None:  # a quantizer from elsewhere
            counts = count_codes(
                quantized.indices, self.quantizer.num_codes, stacked=quantized.indices.ndim == z_e.ndim
            )
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
        """The code indices of images.

        Shapes:
            x: (B, C, H, W) in [0, 1] → (B, h, w) int64; with R codes a position (B, h, w, R).

        Raises:
            ValueError: ``x`` has another shape, type or range.
        """
        check_images("x", x, shape=_IMAGES)
        z_e = self._latents(x)
        check_finite("encoder", z_e)
        return self.quantizer.encode(z_e)

    @torch.no_grad()
    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        """The images of code indices, clamped to [0, 1].

        Args:
            depth: of R codes a position, use the first ``depth`` only, from coarse (1) to fine (R). The indices may
                then be cut to these: ``decode(indices[..., :2], depth=2)``.

        Shapes:
            indices: (B, h, w) or (B, h, w, R) int64 → (B, C, H, W).

        Raises:
            ValueError: the indices have another type or shape, or one is outside 0…K − 1; ``depth`` is not between 1
                and R; or codebook or decoder are no longer finite.
        """
        check_tensor("indices", indices, dtype=torch.int64)
        if indices.numel() == 0:
            raise ValueError(f"indices: got shape {tuple(indices.shape)}, want those of at least one image")
        z_q = self.quantizer.decode(indices) if depth is None else self.quantizer.decode(indices, depth=depth)
        images = self._decoded(z_q, "indices", tuple(indices.shape))
        check_finite("decoder", images)
        return images.clamp(0, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The images after the bottleneck, (B, C, H, W), clamped to [0, 1]."""
        indices = self.encode(x)
        images = self.decode(indices)
        check_rebuilt(images, indices, x)
        return images

    def _latents(self, x: Tensor) -> Tensor:
        z_e: Tensor = encoded(self.encoder, x)
        dim = getattr(self.quantizer, "dim", None)
        if dim is not None and z_e.shape[1] != dim:
            raise ValueError(f"encoder: it made latents of {z_e.shape[1]} channels, want {dim} as the quantizer's dim")
        return z_e

    def _decoded(self, z_q: Tensor, argument: str, given: tuple[int, ...] | None = None) -> Tensor:
        try:
            images: Tensor = self.decoder(z_q)
        except (ValueError, RuntimeError) as error:  # ours names its own argument z, which the caller did not pass
            if isinstance(error, RuntimeError) and not is_about_shapes(error):
                raise
            what = f"got shape {given}, which is" if given else "it does not take"
            raise ValueError(f"{argument}: {what} latents {tuple(z_q.shape)}; the decoder: {error}") from error
        check_given("decoder", images, "images")
        return images

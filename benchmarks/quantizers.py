"""Quantizers of the companion and of vector-quantize-pytorch, set to the same work."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.comparison import Setup, Work, mixed_precision
from companion.quantizers import EMAVectorQuantizer, ResidualQuantizer, VectorQuantizer

N, D = 16384, 64  # vectors of a forward, their length
DEPTH = 4  # quantizers in a row

Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # z (N, D) → z_q (N, D), indices (N,), loss
# K → a quantizer's forward and its codebook; None where no gradient reaches the codes
Quantizer = Callable[[int, torch.device], tuple[Forward, nn.Parameter | None]]


def companion_quantizer(num_codes: int, device: torch.device) -> tuple[Forward, nn.Parameter]:
    quantizer = VectorQuantizer(num_codes, D, commitment_weight=1.0).to(device)
    return forward_of(quantizer), quantizer.codebook


def peer_quantizer(num_codes: int, device: torch.device) -> tuple[Forward, nn.Parameter]:
    """The peer set to the same work: straight-through, a codebook that is learnt by gradient, weight 1.

    Its one loss mean‖z − e‖² sends a gradient to both sides, as both terms of the companion together do, so that 1 is
    the only weight at which the two give the same gradients.
    """
    from vector_quantize_pytorch import VectorQuantize  # of the extra `bench`: the tests use the rest without it

    quantizer = VectorQuantize(
        D, num_codes, learnable_codebook=True, ema_update=False, rotation_trick=False, commitment_weight=1.0
    ).to(device)

    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = quantizer(z[None])  # (1, N, D)
        return z_q[0], indices[0], loss

    (codebook,) = quantizer.parameters()  # (1, K, D)
    return forward, codebook


def companion_ema(num_codes: int, device: torch.device) -> tuple[Forward, None]:
    """As the peer does it: a moving average from random codes, without restarts."""
    quantizer = EMAVectorQuantizer(
        num_codes, D, decay=0.99, commitment_weight=1.0, init="uniform", restart_below=0.0
    ).to(device)
    return forward_of(quantizer), None


def peer_ema(num_codes: int, device: torch.device) -> tuple[Forward, None]:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        D, num_codes, decay=0.99, rotation_trick=False, commitment_weight=1.0, threshold_ema_dead_code=0
    ).to(device)

    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = quantizer(z[None])  # (1, N, D)
        return z_q[0], indices[0], loss.sum()

    return forward, None


def companion_residual(num_codes: int, device: torch.device) -> tuple[Forward, None]:
    """Four moving averages in a row."""
    depths = [
        EMAVectorQuantizer(num_codes, D, decay=0.99, commitment_weight=1.0, init="uniform", restart_below=0.0)
        for _ in range(DEPTH)
    ]
    return forward_of(ResidualQuantizer(depths).to(device)), None


def peer_residual(num_codes: int, device: torch.device) -> tuple[Forward, None]:
    from vector_quantize_pytorch import ResidualVQ

    quantizer = ResidualVQ(
        dim=D, num_quantizers=DEPTH, codebook_size=num_codes, decay=0.99, rotation_trick=False, commitment_weight=1.0,
        threshold_ema_dead_code=0,
    ).to(device)  # fmt: skip

    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, losses = quantizer(z[None])  # (1, N, D), (1, N, R), (1, R)
        return z_q[0], indices[0], losses.sum()

    return forward, None


def forward_of(quantizer: nn.Module) -> Forward:
    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized = quantizer(z)
        return quantized.z_q, quantized.indices, quantized.loss

    return forward


def training_step(quantizer: Quantizer) -> Setup:
    """Forward and backward of N latents, without the optimizer. The step returns the gradient of the latents."""

    def setup(num_codes: int, device: torch.device, dtype: torch.dtype) -> Work:
        forward, codebook = quantizer(num_codes, device)
        z = torch.randn(N, D, device=device, dtype=dtype)
        later = torch.randn_like(z) / (N * D)  # the gradient that a decoder would send
        return Work(lambda: forward_backward(forward, z, later), [] if codebook is None else [codebook])

    return setup


def forward_backward(forward: Forward, z: Tensor, later: Tensor) -> Tensor | None:
    latents = z.clone().requires_grad_()
    with mixed_precision(z.device, z.dtype):
        z_q, _, loss = forward(latents)
    torch.autograd.backward((z_q, loss), (later, torch.ones_like(loss)))
    return latents.grad


def bare_product(num_codes: int, device: torch.device, dtype: torch.dtype) -> Work:
    """z (N, D) times codes (D, K), into memory that is there: no search for the nearest of K codes does without."""
    z = torch.randn(N, D, device=device, dtype=dtype)
    codes = torch.randn(num_codes, D, device=device, dtype=dtype)
    table = torch.empty(N, num_codes, device=device, dtype=dtype)
    return Work(lambda: torch.mm(z, codes.T, out=table))

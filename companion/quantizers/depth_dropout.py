"""Depth dropout of a residual quantizer: some images of a training batch use only their first codes (chapter 06).

(Zeghidour et al. 2021, section III-C; per image as in Kumar et al. 2023.)
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from companion.quantizers.base import Quantized, Quantizer, at_least_float32


def draw_mask(images: int, depth: int, probability: float, device: torch.device) -> Tensor:
    """Which depths each image uses, (B, R) bool: all R, or with ``probability`` the first r, r uniform in 1…R."""
    fewer = torch.randint(1, depth + 1, (images,), device=device)
    dropped = torch.rand(images, device=device) < probability
    number = torch.where(dropped, fewer, depth)  # of depths that each image uses
    return torch.arange(depth, device=device) < number[:, None]


def quantize_with_dropout(
    z: Tensor, quantizers: Sequence[Quantizer], mask: Tensor
) -> tuple[Tensor, Tensor, list[Quantized], list[Tensor]]:
    """The loop of ``ResidualQuantizer.quantize``, where each depth learns from the images that use it alone.

    The images that do not use a depth add nothing to the sum there, and get their indices all the same.

    Shapes:
        z: (B, D, *spatial); mask: (B, R) bool → z_q (B, D, *spatial), indices (B, *spatial, R), and of each depth its
        result and its residuals, both for the images that use it.
    """
    residual = at_least_float32(z)  # (16, 64, 8, 8)
    z_q, results, residuals, indices = torch.zeros_like(residual), [], [], []
    for quantizer, use in zip(quantizers, mask.unbind(1), strict=True):
        used = residual[use]  # (n, 64, 8, 8): the n images that use this depth
        out = quantizer.quantize(used)
        if len(used) == 0:  # its losses, means over nothing, are 0
            zero = residual.new_zeros(())
            out = replace(out, loss=zero, losses=dict.fromkeys(out.losses, zero))
        contribution = quantizer.contribution(used, out)  # (n, 64, 8, 8)
        codes = torch.zeros_like(residual, dtype=contribution.dtype).index_put((use,), contribution)  # (16, 64, 8, 8)
        indices.append(_indices_of_all(quantizer, residual, use, out.indices))  # (16, 8, 8)
        results.append(out)
        residuals.append(used.detach())
        z_q = z_q + codes
        residual = residual - codes.detach()
    return z_q, torch.stack(indices, dim=-1), results, residuals


def _indices_of_all(quantizer: Quantizer, residual: Tensor, use: Tensor, indices: Tensor) -> Tensor:
    """``indices`` of the images that use this depth, and those that the others would have: (B, *spatial)."""
    of_all = indices.new_empty(len(residual), *indices.shape[1:])
    of_all[use] = indices
    if not bool(use.all()):
        of_all[~use] = quantizer.encode(residual[~use])
    return of_all

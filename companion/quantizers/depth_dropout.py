"""Depth dropout of a residual quantizer: some images of a training batch use only their first codes (chapter 06).

(Zeghidour et al. 2021, section III-C: per example; Kumar et al. 2023: with probability 0.5.)
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from companion._devices import at_least_float32
from companion.quantizers.base import Quantized, Quantizer


def draw_mask(images: int, depth: int, probability: float, device: torch.device) -> Tensor:
    """Draw which depths each image uses, (B, R) bool.

    With ``probability``, an image uses only its first r depths, with r uniform in 1…R; otherwise it uses all R.
    """
    fewer = torch.randint(1, depth + 1, (images,), device=device)
    dropped = torch.rand(images, device=device) < probability
    number = torch.where(dropped, fewer, depth)  # (B,): of depths that each image uses
    return torch.arange(depth, device=device) < number[:, None]


def quantize_with_dropout(
    z: Tensor, quantizers: Sequence[Quantizer], mask: Tensor
) -> tuple[Tensor, Tensor, list[Quantized], list[Tensor]]:
    """The loop of ``ResidualQuantizer.quantize``, in which each image uses only the depths that ``mask`` gives it.

    At a depth that an image does not use, its codes are not added to the sum, and the quantizer does not learn from it.
    The image still gets indices there, the same as from ``encode``, and its residual is reduced by their codes.

    Shapes:
        z: (B, D, *spatial); mask: (B, R) bool → z_q (B, D, *spatial); indices (B, *spatial, R); and two lists with an
        entry per depth, for the images that use it: the result of the quantizer, and its input, the residuals.
    """
    residual = at_least_float32(z)  # (16, 64, 8, 8)
    z_q, results, residuals, indices = torch.zeros_like(residual), [], [], []
    for quantizer, use in zip(quantizers, mask.unbind(1), strict=True):
        # The n images that use this depth:
        used = residual[use]  # (n, 64, 8, 8)
        out = quantizer.quantize(used)
        if len(used) == 0:
            out = _without_losses(out)
        codes = quantizer.contribution(used, out)  # (n, 64, 8, 8)
        z_q = z_q.index_add(0, use.nonzero()[:, 0], codes.to(z_q.dtype))
        results.append(out)
        residuals.append(used.detach())
        # All images, the others too, get indices, and subtract the codes of these:
        indices_of_all = out.indices.new_empty(len(z), *out.indices.shape[1:])  # (16, 8, 8)
        subtracted = torch.zeros_like(residual)  # (16, 64, 8, 8)
        indices_of_all[use], subtracted[use] = out.indices, codes.detach().to(residual.dtype)
        if len(used) < len(z):
            indices_of_all[~use] = quantizer.encode(residual[~use])
            subtracted[~use] = quantizer.decode(indices_of_all[~use]).detach().to(residual.dtype)
        indices.append(indices_of_all)
        residual = residual - subtracted
    return z_q, torch.stack(indices, dim=-1), results, residuals


def _without_losses(out: Quantized) -> Quantized:
    """Losses of no images are means over nothing, NaN: make them 0.

    They stay in the graph, so that all parameters get a gradient, of 0: ``DistributedDataParallel`` waits for each.
    """
    losses = {name: loss.nan_to_num() for name, loss in out.losses.items()}
    return replace(out, loss=out.loss.nan_to_num(), losses=losses)

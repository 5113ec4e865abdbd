"""What exercises 3.2 to 3.5 share: inputs and slips that two of them use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case
from companion.quantizers import straight_through, vq_losses

PAIR = ("z (the encoder)", "z_q (the codebook)")


def pair_cases() -> Sequence[Case]:
    """Latents and codes, for exercises 3.3 and 3.4."""
    g = torch.Generator().manual_seed(32)
    both = dict(enumerate(PAIR))

    def pair(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return scale * torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    a, b = pair(2, 3, 4, 5)
    return [
        Case("12 latents of 3 numbers", pair(12, 3), gradient_of=both),
        Case("a grid of latents, 2×3×4×5", pair(2, 3, 4, 5), gradient_of=both),
        Case("latents 10,000 times as large as their codes", pair(6, 2, scale=1e4), gradient_of=both),
        Case("not contiguous in memory", (a.transpose(1, 3), b.transpose(1, 3)), gradient_of=both),
    ]


def sg(value: Tensor) -> Tensor:
    """The stop-gradient, as the chapter writes it."""
    return value.detach()


def straight_through_to_both(z: Tensor, z_q: Tensor) -> Tensor:
    """A slip: the decoder's gradient reaches the codebook as well."""
    return z_q + (z - z.detach())


def losses_after_straight_through(z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    """A slip: what comes out of straight-through is detached from the codebook."""
    return vq_losses(z, straight_through(z, z_q))

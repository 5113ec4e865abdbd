"""Are the codes right? The gate of the benchmark: without right codes no time counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.comparison import Wrong, mixed_precision
from benchmarks.quantizers import D, N, Quantizer, companion_quantizer, forward_backward, peer_quantizer

OFFSETS = (0, 100, 1000)
Encode = Callable[[Tensor, Tensor], Tensor]  # z (N, D), codebook (K, D) → (N,) int64


@dataclass(frozen=True)
class Verdict:
    """Of ``vectors`` codes, how many are not the nearest: as near as float32 can tell (``ties``), or ``wrong``."""

    vectors: int
    wrong: int
    ties: int


def inputs(num_codes: int, offset: float, device: torch.device, vectors: int = N) -> tuple[Tensor, Tensor]:
    """Latents (N, D) and codes (K, D) in float32, normal, all of them moved by ``offset`` in every dimension."""
    generator = torch.Generator().manual_seed(num_codes)
    z, codebook = (torch.randn(count, D, generator=generator) + offset for count in (vectors, num_codes))
    return z.to(device), codebook.to(device)


def compare(indices: Tensor, z: Tensor, codebook: Tensor) -> Verdict:
    """Compare with the codes that are nearest in float64, to the numbers as they were given.

    A tie, exactly: with c the mean of the codes, e the code that was chosen and e* the nearest,
    ‖z − e‖² − ‖z − e*‖² ≤ 2⁻²³ (‖z − c‖ + ‖e − c‖)². 2⁻²³ is the distance from 1 to the next number in float32, and
    the square is the most that ‖z − e‖² can be at those two lengths: the difference is then at most what one rounding
    of such a number leaves open. Moving everything by an offset changes neither side, so it excuses nothing.
    """
    wrong = ties = 0
    codes = codebook.double()
    centre = codes.mean(0)
    codes = codes - centre
    for chosen, part in zip(indices.split(512), z.split(512), strict=True):
        latents = part.double() - centre
        table = codes.square().sum(1) - 2 * latents @ codes.T  # (512, K): ‖z − e‖² without ‖z‖²
        excess = table.gather(1, chosen[:, None]).squeeze(1) - table.amin(1)
        reach = latents.norm(dim=1) + codes[chosen].norm(dim=1)
        tied = excess <= 2.0**-23 * reach.square()
        wrong += int((~tied).sum())
        ties += int((tied & (table.argmin(1) != chosen)).sum())
    return Verdict(len(z), wrong, ties)


def encoded_by(quantizer: Quantizer) -> Encode:
    """The codes that a quantizer picks in its forward, in training mode."""

    def encode(z: Tensor, codebook: Tensor) -> Tensor:
        forward, parameter = quantizer(len(codebook), z.device)
        assert parameter is not None
        with torch.no_grad():
            parameter.copy_(codebook.view_as(parameter))
            return forward(z)[1]

    return encode


def check_codes(encode: Encode, num_codes: int, offset: float, device: torch.device, dtype: torch.dtype) -> Verdict:
    """The verdict on ``encode``, under autocast where ``dtype`` is bfloat16. The latents are float32 in any case."""
    z, codebook = inputs(num_codes, offset, device)
    with mixed_precision(device, dtype):
        indices = encode(z, codebook)
    return compare(indices, z, codebook)


def demand_right(verdict: Verdict, where: str) -> None:
    """
    Raises:
        Wrong: a code is not the nearest, ties aside.
    """
    if verdict.wrong:
        raise Wrong(
            f"The companion picks {verdict.wrong:,} of {verdict.vectors:,} codes that are not the nearest ({where}; "
            "nearest in float64, ties aside). Nothing was written."
        )


def check_same_work(device: torch.device, num_codes: int = 512) -> None:
    """
    Raises:
        Wrong: companion and peer give different gradients for one forward and backward in float32.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(num_codes, D, generator=generator)
    z = codes[torch.randint(num_codes, (N,), generator=generator)] + 0.1 * torch.randn(N, D, generator=generator)
    later = torch.randn(N, D, generator=generator) / (N * D)
    gradients = []
    for quantizer in (companion_quantizer, peer_quantizer):
        forward, codebook = quantizer(num_codes, device)
        with torch.no_grad():
            codebook.copy_(codes.view_as(codebook))
        latents = forward_backward(forward, z.to(device), later.to(device))
        assert latents is not None
        assert codebook.grad is not None
        gradients.append((latents, codebook.grad.view_as(codes)))
    for name, ours, theirs in zip(("latents", "codebook"), *gradients, strict=True):
        difference = float((ours - theirs).norm() / theirs.norm())
        if not difference < 1e-4:
            raise Wrong(
                f"Companion and peer do not do the same work: gradients of the {name} differ by {difference:.1g}"
            )

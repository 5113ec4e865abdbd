"""Codes drawn from a categorical distribution, with the Gumbel-softmax as its gradient (study 03b)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import check_finite, check_number, check_size
from companion._devices import at_least_float32
from companion.quantizers.base import (
    Quantized,
    VectorwiseQuantizer,
    looked_up,
    to_latents,
    to_positions,
    to_vectors,
)


class GumbelQuantizer(VectorwiseQuantizer):
    """The code is drawn with probabilities that the latent gives; in training it is a soft mixture of codes.

    Logits are a linear map of the latent. In training z_q = Σₖ yₖ eₖ with y = softmax((logits + g) / τ), g Gumbel noise
    (Jang et al. 2017, equation 2; Maddison et al. 2017): a gradient reaches logits and codes alike, and there is no
    codebook loss. The smaller τ, the nearer is y to one code and the noisier the gradient. In eval mode z_q is the
    likeliest code. ``indices`` are the codes that the same noise draws (Gumbel-max), in eval mode the likeliest.

    The term "kl" is log K − H(softmax(logits)), nats a position, mean: the distance of the choice from a uniform one.

    The noise is drawn from torch's global generator. τ falls from ``temperature`` to ``final_temperature`` by equal
    factors over the first ``anneal_steps`` training forwards, which the buffer ``step`` counts.

    Args:
        num_codes: K.
        dim: D, of the latents and of the codes.
        kl_weight: of the term "kl" in ``loss``.

    Shapes:
        z: (B, D, *spatial) → ``Quantized``. Memory grows with N × K: every vector has a probability for every code.

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or holds NaN or infinity.
    """

    step: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        kl_weight: float = 5e-4,
        temperature: float = 1.0,
        final_temperature: float = 1 / 16,
        anneal_steps: int = 1000,
    ) -> None:
        super().__init__()
        for name, size in (("num_codes", num_codes), ("dim", dim), ("anneal_steps", anneal_steps)):
            check_size(name, size)
        check_number("kl_weight", kl_weight, least=0)
        check_number("temperature", temperature, above=0)
        check_number("final_temperature", final_temperature, above=0, most=temperature)
        self.num_codes, self.dim, self.kl_weight = num_codes, dim, kl_weight
        self.temperatures, self.anneal_steps = (temperature, final_temperature), anneal_steps
        self.to_logits = nn.Linear(dim, num_codes)
        self.codebook = nn.Parameter(torch.randn(num_codes, dim) / dim**0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> float:
        """τ of the next training forward."""
        first, last = self.temperatures
        return float(first * (last / first) ** min(1.0, self.step.item() / self.anneal_steps))

    def quantize(self, z: Tensor) -> Quantized:
        """Shapes beside the lines are those of K = 512 codes and z (16, 64, 8, 8)."""
        logits = self._logits(to_vectors(z))  # (1024, 512)
        log_q = functional.log_softmax(logits, dim=1)
        kl = (log_q.exp() * log_q).sum(1).mean() + math.log(self.num_codes)
        if self.training:
            gumbel = -torch.empty_like(logits).exponential_().log()
            indices = (logits + gumbel).argmax(1)  # (1024,), Gumbel-max: a draw from softmax(logits)
            soft = functional.softmax((logits + gumbel) / self.temperature, dim=1)  # (1024, 512)
            with torch.autocast(z.device.type, enabled=False):
                z_q = soft @ self.codebook.to(soft.dtype)  # (1024, 64)
        else:
            indices = self._likeliest(logits)
            z_q = self.lookup(indices)
        return Quantized(to_latents(z_q, like=z), to_positions(indices, like=z), self.kl_weight * kl, {"kl": kl})

    def encode_vectors(self, z: Tensor) -> Tensor:
        return self._likeliest(self._logits(z))

    def lookup(self, indices: Tensor) -> Tensor:
        return looked_up(indices, self.codebook)

    def update(self, z: Tensor, quantized: Quantized) -> None:
        self.step.add_(1)

    def _likeliest(self, logits: Tensor) -> Tensor:
        check_finite("to_logits", logits)  # of NaN the first would be the likeliest
        return logits.argmax(1)

    def _logits(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            logits: Tensor = self.to_logits(vectors.to(self.to_logits.weight.dtype))
        return at_least_float32(logits)

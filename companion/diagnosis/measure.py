"""What is measured of a tokenizer: one pass over the images, in which only sums are kept, and the codes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._devices import as_float64
from companion.quantizers import (
    EMAVectorQuantizer,
    ProjectedQuantized,
    ProjectedQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantized,
    ResidualQuantizer,
    VectorQuantizer,
)
from companion.quantizers.base import to_vectors
from companion.vae import VAE, kl_divergence


@dataclass
class Search:
    """Sums over all searches for a nearest code at one place: of the vectors z that were looked up, and their codes e.

    From them follow, with means over the N vectors:

    * ``error``: the mean of ‖z − e‖²;
    * ``spread``: the mean of ‖z − z̄‖², what the best single code would leave;
    * ``shift``: ‖z̄ − ē‖², how far the codes lie beside the vectors as a whole;
    * ``scale``: Σ (z − z̄)·(e − ē) / Σ ‖e − ē‖², by how much the codes would have to be stretched around their mean to
      fit best. If each code is the mean of its vectors, this is 1 and the shift is 0.
    """

    n: int = 0
    z: Tensor | float = 0.0  # Σ z, (D,)
    e: Tensor | float = 0.0
    zz: float = 0.0  # Σ ‖z‖²
    ee: float = 0.0
    ze: float = 0.0

    def add(self, vectors: Tensor, codes: Tensor) -> None:
        """Vectors and their codes, both (N, D)."""
        z, e = as_float64(vectors), as_float64(codes)
        self.n += len(z)
        self.z, self.e = self.z + z.sum(0).cpu(), self.e + e.sum(0).cpu()
        for name, product in (("zz", z * z), ("ee", e * e), ("ze", z * e)):
            setattr(self, name, getattr(self, name) + float(product.sum()))

    @property
    def error(self) -> float:
        return max(0.0, self.zz - 2 * self.ze + self.ee) / self.n

    @property
    def spread(self) -> float:
        return max(0.0, self.zz / self.n - _square(self.z, self.n))

    @property
    def shift(self) -> float:
        return _square(self.z - self.e, self.n)

    @property
    def code_spread(self) -> float:
        return max(0.0, self.ee / self.n - _square(self.e, self.n))

    @property
    def scale(self) -> float:
        """NaN where all vectors have the same code, up to rounding."""
        if self.code_spread <= 1e-9 * max(self.ee / self.n, 1e-30):
            return math.nan
        together = float((torch.as_tensor(self.z) * torch.as_tensor(self.e)).sum()) / self.n**2
        return (self.ze / self.n - together) / self.code_spread

    @property
    def code_norm(self) -> float:
        """The root of the mean of ‖e‖²."""
        return math.sqrt(self.ee / self.n)

    @property
    def norm(self) -> float:
        """The root of the mean of ‖z‖²."""
        return math.sqrt(self.zz / self.n)


def _square(total: Tensor | float, n: int) -> float:
    return float((torch.as_tensor(total) / n).square().sum())


@dataclass
class Pictures:
    """Sums over images, their reconstructions, and the reconstructions of codes that were exchanged."""

    n: int = 0
    least: float = math.inf
    most: float = -math.inf
    x: Tensor | float = 0.0  # Σ x, (C, H, W)
    xx: float = 0.0  # Σ x², over pixels
    lost: float = 0.0  # Σ (x̂ − x)²
    moved: float = 0.0  # Σ (x̂ of other codes − x̂)²
    apart: float = 0.0  # Σ (other x − x)², of the same pairs
    codes_changed: int = 0  # how many codes the exchange changed, and of how many
    codes_exchanged: int = 0

    def add(self, x: Tensor) -> None:
        wide = as_float64(x)
        least, most = x.aminmax()
        self.n += len(x)
        self.least, self.most = min(self.least, float(least)), max(self.most, float(most))
        self.x = self.x + wide.sum(0).cpu()
        self.xx += float(wide.square().sum())

    def add_rebuilt(self, x: Tensor, rebuilt: Tensor) -> None:
        self.lost += float(as_float64(rebuilt - x).square().sum())

    def add_exchanged(self, x: Tensor, rebuilt: Tensor, of_others: Tensor) -> None:
        self.moved += float(as_float64(of_others - rebuilt).square().sum())
        self.apart += float(as_float64(x.roll(1, 0) - x).square().sum())

    @property
    def pixels(self) -> int:
        """Numbers in all images together."""
        return self.n * torch.as_tensor(self.x).numel()

    @property
    def mse(self) -> float:
        return self.lost / self.pixels

    @property
    def mean(self) -> float:
        return float(torch.as_tensor(self.x).sum()) / self.pixels

    @property
    def variance(self) -> float:
        """Of all pixels around their mean: the unit of distortion."""
        return max(0.0, self.xx / self.pixels - self.mean**2)

    @property
    def around_mean_picture(self) -> float:
        """The MSE of a reconstruction that is always the mean picture."""
        mean = torch.as_tensor(self.x) / self.n
        return max(0.0, self.xx / self.pixels - float(mean.square().mean()))


@dataclass
class Seen:
    """What was measured."""

    num_codes: int = 0
    depth: int = 1
    stacked: bool = False  # whether the codes have an axis of depths
    searches: dict[str, Search] = field(default_factory=dict)  # by place
    left: dict[str, float] = field(default_factory=dict)  # Σ ‖·‖² of what a depth leaves over, by place
    pictures: Pictures = field(default_factory=Pictures)
    codes: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    kl: Tensor | float = 0.0  # Σ KL of each dimension, of a VAE; over images

    def depths(self) -> Iterator[tuple[str, Tensor]]:
        """The codes of each depth, (N, T), with the name of the place."""
        codes = torch.cat(self.codes)
        for r in range(self.depth):
            where = f"quantizer, depth {r + 1}" if self.depth > 1 else "quantizer"
            yield where, (codes[..., r] if self.stacked else codes).flatten(1)


def look_at_latents(seen: Seen, quantizer: Quantizer, z: Tensor) -> Quantized:
    """Quantize latents (B, D, *spatial) as they are in eval mode, and add up what there is to see."""
    quantized = quantizer(z)
    seen.num_codes, seen.depth = quantizer.num_codes, quantizer.depth
    seen.stacked = quantized.indices.ndim == z.ndim
    seen.codes.append(quantized.indices.cpu())
    inner = quantized.inner if isinstance(quantized, ProjectedQuantized) else quantized
    if isinstance(inner, ResidualQuantized):
        for r, out in enumerate(inner.depths):
            left = as_float64(inner.residuals[r] - out.z_q)
            place = f"quantizer, depth {r + 1}"
            seen.left[place] = seen.left.get(place, 0.0) + float(left.square().sum())
    for where, vectors, codes in _searches("quantizer", quantizer, z, quantized):
        seen.searches.setdefault(where, Search()).add(vectors, codes)
    return quantized


def look_at_images(seen: Seen, model: Any, x: Tensor) -> None:
    """Encode, quantize and decode images (B, C, H, W), and decode the codes of each image's neighbour."""
    quantized = look_at_latents(seen, model.quantizer, model.encoder(x))
    rebuilt = model.decoder(quantized.z_q).clamp(0, 1)
    pictures = seen.pictures
    pictures.add_rebuilt(x, rebuilt)
    if len(x) > 1:
        others = quantized.indices.roll(1, 0)
        pictures.add_exchanged(x, rebuilt, model.decode(others))
        pictures.codes_changed += int((others != quantized.indices).sum())
        pictures.codes_exchanged += others.numel()


def look_at_posterior(seen: Seen, model: VAE, x: Tensor) -> None:
    """Encode images with a VAE, and decode the means of q(z|x): of each image, and of its neighbour."""
    mean, log_variance = model.encode(x)
    seen.kl = seen.kl + as_float64(kl_divergence(mean, log_variance)).sum(0).cpu()
    rebuilt = model.likelihood.mean(model.decode(mean, x)).clamp(0, 1)
    seen.pictures.add_rebuilt(x, rebuilt)
    if len(x) > 1:
        other = model.likelihood.mean(model.decode(mean.roll(1, 0), x)).clamp(0, 1)
        seen.pictures.add_exchanged(x, rebuilt, other)
        seen.pictures.codes_changed += 1
        seen.pictures.codes_exchanged += 1


def _searches(
    where: str, quantizer: nn.Module, z: Tensor, quantized: Quantized
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Where a nearest code is looked for: the name of the place, the vectors (N, D) and their codes (N, D).

    In quantizers that look for no nearest code (finite scalar, Gumbel) there are none.
    """
    if isinstance(quantizer, ResidualQuantizer) and isinstance(quantized, ResidualQuantized):
        members = list(quantizer.quantizers) * (quantizer.depth if quantizer.shared else 1)
        for r, (member, residual, out) in enumerate(zip(members, quantized.residuals, quantized.depths, strict=True)):
            yield from _searches(f"{where}, depth {r + 1}", member, residual, out)
    elif isinstance(quantizer, ProjectedQuantizer) and isinstance(quantized, ProjectedQuantized):
        low = quantizer.down(z.movedim(1, -1).to(quantizer.down.weight.dtype)).movedim(-1, 1)
        yield from _searches(where, quantizer.quantizer, low, quantized.inner)
    elif isinstance(quantizer, VectorQuantizer | EMAVectorQuantizer):
        vectors = to_vectors(z)
        if getattr(quantizer, "cosine", False):
            vectors = functional.normalize(vectors, dim=1)
        yield where, vectors, to_vectors(quantized.z_q)

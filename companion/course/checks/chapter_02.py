"""Exercises of chapter 02: drawing a latent, the KL, the ELBO, a logistic in bins, the importance-weighted bound."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.core import Case, Exercise, Mistake, call, register
from companion.likelihoods import discretized_gaussian, discretized_logistic
from companion.vae import elbo, importance_weighted_bound, kl_divergence, reparameterize

CHAPTER = "02_vae"


# Exercise 2.1 -------------------------------------------------------------------------------------------------------


def _draws() -> Sequence[Case]:
    g = torch.Generator().manual_seed(1)
    wanted = {0: "mean", 1: "log_variance"}

    def three(*shape: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape, generator=g) for _ in range(3))

    grids = tuple(part.transpose(0, 3) for part in three(3, 2, 5, 4))
    return [
        Case("a batch of five, three latent numbers each", three(5, 3), gradient_of=wanted),
        Case("a batch of one", three(1, 4), gradient_of=wanted),
        Case("latent grids, not contiguous in memory", grids, gradient_of=wanted),
        Case(
            "log-variances of −14", (torch.zeros(2, 3), torch.full((2, 3), -14.0), three(2, 3)[2]), gradient_of=wanted
        ),
        Case("log-variances of 12", (torch.zeros(2, 3), torch.full((2, 3), 12.0), three(2, 3)[2]), gradient_of=wanted),
    ]


def _normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    return torch.normal(mean, (0.5 * log_variance).exp()).detach()


_DRAW_MISTAKES = (
    Mistake(
        "log-variance read as a standard deviation",
        lambda m, s, e: m + s * e,
        "log_variance is multiplied with the noise as if it were a standard deviation. The standard deviation is "
        "exp(log_variance / 2), and always positive.",
    ),
    Mistake(
        "the variance as the standard deviation",
        lambda m, s, e: m + s.exp() * e,
        "exp(log_variance) is the variance. The standard deviation is its square root: exp(log_variance / 2).",
    ),
    Mistake(
        "exponent doubled",
        lambda m, s, e: m + (2 * s).exp() * e,
        "the factor in the exponent is upside down: the root of exp(s) is exp(s / 2), not exp(2 s).",
    ),
    Mistake(
        "half of the variance",
        lambda m, s, e: m + s.exp() / 2 * e,
        "the half belongs into the exponent: exp(log_variance / 2) is the root of exp(log_variance), exp(log_variance) "
        "/ 2 is half of it.",
    ),
    Mistake(
        "root of the log-variance",
        lambda m, s, e: m + s.sqrt() * e,
        "you take the root of the logarithm, which may be negative: first exp, then the root.",
    ),
    Mistake(
        "one noise for the whole batch",
        lambda m, s, e: m + (0.5 * s).exp() * e[:1],
        "every image of the batch gets the noise of the first one, so they all move together. Use all of noise.",
    ),
    Mistake(
        "own noise",
        lambda m, s, e: m + (0.5 * s).exp() * torch.randn_like(m),
        "you draw noise of your own (rsample does so too). It is passed in, so that there is one right answer: use the "
        "argument.",
    ),
    Mistake(
        "sampled, not reparameterised",
        lambda m, s, e: _normal(m, s),
        "this draws from the right distribution, but a sample has no gradient to the mean and the variance, and it "
        "does not use the noise that is passed in.",
    ),
    Mistake(
        "noise not scaled",
        lambda m, s, e: m + e,
        "the noise keeps a standard deviation of 1, whatever log_variance says.",
    ),
    Mistake(
        "mean scaled too",
        lambda m, s, e: (m + e) * (0.5 * s).exp(),
        "the mean is multiplied as well. Scale the noise first, then add the mean.",
    ),
    Mistake(
        "noise subtracted",
        lambda m, s, e: m - (0.5 * s).exp() * e,
        "the noise is subtracted. That is a draw from the same distribution, but another one: mean + ….",
    ),
    Mistake(
        "no mean",
        lambda m, s, e: (0.5 * s).exp() * e,
        "the mean is missing, so every image's latents lie around 0.",
    ),
    Mistake(
        "precision",
        lambda m, s, e: m + (-0.5 * s).exp() * e,
        "the sign in the exponent is wrong: this divides by the standard deviation.",
    ),
    Mistake(
        "softplus",
        lambda m, s, e: m + functional.softplus(s) * e,
        "softplus makes a positive number too, but of another parameter: here it is the logarithm of the variance.",
    ),
    Mistake(
        "standard deviation detached",
        lambda m, s, e: m + (0.5 * s).exp().detach() * e,
        "no gradient reaches log_variance: the encoder could never learn how certain to be. Remove the detach.",
    ),
    Mistake(
        "all detached",
        lambda m, s, e: reparameterize(m.detach(), s.detach(), e),
        "the values are right, but no gradient reaches the encoder's outputs; to let it through is the whole point.",
    ),
    Mistake(
        "log-variance clamped",
        lambda m, s, e: reparameterize(m, s.clamp(-4, 4), e),
        "log_variance is clamped: a latent could never be more certain (or less) than that, and where it is cut no "
        "gradient passes. Leave it as it comes.",
    ),
)


# Exercise 2.2 -------------------------------------------------------------------------------------------------------


def _posteriors() -> Sequence[Case]:
    g = torch.Generator().manual_seed(2)
    wanted = {0: "mean", 1: "log_variance"}

    def two(*shape: int) -> tuple[Tensor, ...]:
        return tuple(1.5 * torch.randn(shape, generator=g) for _ in range(2))

    grids = tuple(part.transpose(1, 3) for part in two(2, 5, 4, 3))
    return [
        Case("a batch of four, three latent numbers each", two(4, 3), gradient_of=wanted),
        Case("a batch of one, one latent number", two(1, 1), gradient_of=wanted),
        Case("latent grids, not contiguous in memory", grids, gradient_of=wanted),
        Case("the prior itself, mean 0 and variance 1", (torch.zeros(2, 2), torch.zeros(2, 2)), gradient_of=wanted),
        Case("a standard deviation of e⁻¹⁰", (torch.zeros(1, 2), torch.full((1, 2), -20.0)), gradient_of=wanted),
        Case("a standard deviation of e⁶", (torch.zeros(1, 2), torch.full((1, 2), 12.0)), gradient_of=wanted),
    ]


_KL_MISTAKES = (
    Mistake(
        "sign",
        lambda m, s: -kl_divergence(m, s),
        "this is −KL. A KL divergence is never negative.",
    ),
    Mistake("no half", lambda m, s: 2 * kl_divergence(m, s), "this is twice the KL: the factor ½ is missing."),
    Mistake(
        "log-variance read as a standard deviation",
        lambda m, s: 0.5 * (m.square() + s.square() - 1 - s.square().log()),
        "log_variance is used as if it were a standard deviation. The variance is exp(log_variance), and its "
        "logarithm is log_variance itself.",
    ),
    Mistake(
        "standard deviation for variance",
        lambda m, s: 0.5 * (m.square() + (0.5 * s).exp() - 1 - s),
        "exp(log_variance / 2) is the standard deviation; in the formula stands the variance, exp(log_variance).",
    ),
    Mistake(
        "logarithm of the standard deviation",
        lambda m, s: 0.5 * (m.square() + s.exp() - 1 - 0.5 * s),
        "the last term is the logarithm of the variance, log_variance; you have half of it.",
    ),
    Mistake(
        "logarithm not halved",
        lambda m, s: 0.5 * (m.square() + s.exp() - 1) - s,
        "the ½ stands before all four terms: the last one, log_variance, is not halved.",
    ),
    Mistake(
        "logarithm twice",
        lambda m, s: 0.5 * (m.square() + s.exp() - 1 - s.log()),
        "log_variance is a logarithm already: no log around it.",
    ),
    Mistake("mean not squared", lambda m, s: 0.5 * (m + s.exp() - 1 - s), "the mean has to be squared."),
    Mistake(
        "mean's square of the whole batch",
        lambda m, s: 0.5 * (m.square().mean() + s.exp() - 1 - s),
        "mean is the name of the tensor, not an operation: each latent number keeps its own.",
    ),
    Mistake(
        "the other way round",
        lambda m, s: 0.5 * ((1 + m.square()) / s.exp() - 1 + s),
        "this is KL(N(0, 1) ‖ q), the other way round. The ELBO has KL(q ‖ N(0, 1)).",
    ),
    Mistake(
        "summed over the latents",
        lambda m, s: kl_divergence(m, s).flatten(1).sum(1),
        "this is the sum over the latent numbers, one number an image. Asked for is each latent's own, in the shape of "
        "mean: the sum is taken in the ELBO.",
    ),
    Mistake(
        "summed over everything",
        lambda m, s: kl_divergence(m, s).sum(),
        "this is one number for the whole batch. Asked for is each latent's own, in the shape of mean.",
    ),
    Mistake(
        "averaged",
        lambda m, s: kl_divergence(m, s).mean(),
        "this is an average. Asked for is each latent's own KL; over the latents of an image a KL is summed.",
    ),
    Mistake(
        "no − 1",
        lambda m, s: 0.5 * (m.square() + s.exp() - s),
        "the − 1 is missing: for q = N(0, 1) the KL has to be 0.",
    ),
    Mistake(
        "log-variance detached",
        lambda m, s: kl_divergence(m, s.detach()),
        "the values are right, but no gradient reaches log_variance.",
    ),
    Mistake(
        "detached",
        lambda m, s: kl_divergence(m.detach(), s.detach()),
        "the values are right, but no gradient reaches mean and log_variance: nothing would keep q near the prior.",
    ),
    Mistake(
        "summed, then averaged",
        lambda m, s: kl_divergence(m, s).flatten(1).sum(1).mean(),
        "this is the KL of an image, averaged over the batch. Asked for is each latent's own, in the shape of mean.",
    ),
    Mistake(
        "log-variance read as log σ",
        lambda m, s: kl_divergence(m, 2 * s),
        "log_variance is used as if it were log σ. It is log σ²: the variance is exp(log_variance), without a 2.",
    ),
    Mistake(
        "+ 1",
        lambda m, s: 0.5 * (m.square() + s.exp() + 1 - s),
        "the 1 is added. It is subtracted, so that q = N(0, 1) has a KL of 0.",
    ),
    Mistake(
        "½ on the first term only",
        lambda m, s: 0.5 * m.square() + s.exp() - 1 - s,
        "the ½ stands before the bracket with all four terms, not before the first alone.",
    ),
    Mistake(
        "log-variance clamped",
        lambda m, s: kl_divergence(m, s.clamp(-10, 10)),
        "log_variance is clamped, and beyond that the KL no longer grows. Leave it as it comes.",
    ),
)


# Exercise 2.3 -------------------------------------------------------------------------------------------------------


def _terms() -> Sequence[Case]:
    g = torch.Generator().manual_seed(3)
    wanted = {0: "log_likelihood", 1: "kl"}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g) + 0.1

    return [
        Case(
            "four images of 3 × 5 pixels, three latent numbers",
            (normal(4, 1, 3, 5), positive(4, 3)),
            gradient_of=wanted,
        ),
        Case("one image with three channels", (normal(1, 3, 2, 2), positive(1, 3)), gradient_of=wanted),
        Case(
            "pixels that are not contiguous in memory, and grids of latents",
            (normal(4, 1, 3, 6).transpose(0, 3), positive(6, 2, 3, 3)),
            gradient_of=wanted,
        ),
        Case("pixels summed already, one number an image", (normal(3), positive(3, 2)), gradient_of=wanted),
        Case("latents summed already", (normal(3, 1, 2, 2), positive(3)), gradient_of=wanted),
        Case("both summed already", (normal(4), positive(4)), gradient_of=wanted),
    ]


def _sum(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)


_ELBO_MISTAKES = (
    Mistake(
        "KL added",
        lambda a, b: (_sum(a) + _sum(b)).mean(),
        "the KL is added. In the bound it is taken away: being far from the prior costs.",
    ),
    Mistake(
        "the loss",
        lambda a, b: -elbo(a, b),
        "this is −ELBO, the loss to minimise. Asked for is the bound itself, which is to be maximised.",
    ),
    Mistake(
        "mean over pixels",
        lambda a, b: a.mean() - _sum(b).mean(),
        "log_likelihood is averaged over the pixels, the KL is summed: with 784 pixels the reconstruction weighs 784 "
        "times too little, and the latents collapse. Sum over the pixels; average over the batch only.",
    ),
    Mistake(
        "mean over latents",
        lambda a, b: _sum(a).mean() - b.mean(),
        "the KL is averaged over the latent numbers. Sum over them; average over the batch only.",
    ),
    Mistake(
        "mean over both",
        lambda a, b: a.mean() - b.mean(),
        "both terms are averaged over everything. They have different numbers of entries, so their weights change "
        "against each other: sum within an image, average over the batch.",
    ),
    Mistake(
        "sum over the batch",
        lambda a, b: a.sum() - b.sum(),
        "this is the sum over the batch, so it grows with the batch size: average over the images. (Or you took (B,) "
        "from (B, 1), and that makes (B, B): print the shapes.)",
    ),
    Mistake(
        "no mean over the batch",
        lambda a, b: _sum(a) - _sum(b),
        "this is one number for each image. Asked for is their mean.",
    ),
    Mistake(
        "likelihood summed over the batch",
        lambda a, b: a.sum() - _sum(b).mean(),
        "log_likelihood is summed over the batch and the KL is averaged over it: average both.",
    ),
    Mistake(
        "KL summed over the batch",
        lambda a, b: _sum(a).mean() - b.sum(),
        "the KL is summed over the batch and log_likelihood is averaged over it: average both.",
    ),
    Mistake(
        "one axis only",
        lambda a, b: (a.sum(1) - b.sum(1)).mean(),
        "sum(1) adds up one axis. Images have three after the batch, latents one or three: flatten(1).sum(1), where "
        "there is anything to flatten.",
    ),
    Mistake(
        "always flattened",
        lambda a, b: (a.flatten(1).sum(1) - b.flatten(1).sum(1)).mean(),
        "this is right for pixels, but where log_likelihood is one number an image already, (B,), there is no axis 1 "
        "to flatten: reshape(len(a), -1) works for both.",
    ),
    Mistake(
        "KL left out",
        lambda a, b: _sum(a).mean(),
        "the KL is not used: this is the reconstruction alone, an autoencoder with noise.",
    ),
    Mistake(
        "KL detached",
        lambda a, b: elbo(a, b.detach()),
        "the values are right, but no gradient reaches the KL, so nothing pulls q towards the prior.",
    ),
    Mistake(
        "a number",
        lambda a, b: elbo(a, b).item(),
        "this is a Python number, which has no gradient: return the tensor, without .item().",
    ),
    Mistake(
        "KL averaged over images, likelihood over nothing",
        lambda a, b: _sum(a) - _sum(b).mean(),
        "the KL is averaged over the batch, log_likelihood is not: this is one number for each image.",
    ),
    Mistake(
        "KL always flattened",
        lambda a, b: (_sum(a) - b.flatten(1).sum(1)).mean(),
        "where kl is one number an image already, (B,), there is no axis 1 to flatten: reshape(len(kl), -1) works for "
        "both.",
    ),
    Mistake(
        "half of the KL",
        lambda a, b: (_sum(a) - 0.5 * _sum(b)).mean(),
        "the KL is halved. Its ½ is inside it already, from exercise 2.2.",
    ),
)


# Exercise 2.4 -------------------------------------------------------------------------------------------------------


def _bins() -> Sequence[Case]:
    g = torch.Generator().manual_seed(4)
    wanted = {1: "mean", 2: "log_scale"}
    inside = torch.randint(1, 255, (3, 4, 2), generator=g).transpose(0, 2) / 255
    mean = torch.rand(2, 4, 3, generator=g) * 2 - 0.5
    log_scale = torch.randn(2, 4, 3, generator=g) - 2
    grey = torch.arange(256) / 255
    one = torch.tensor([1.0])
    far = torch.tensor([30.0, 100.0, 250.0]) / 255
    return [
        Case("values inside, not contiguous in memory", (inside, mean, log_scale), gradient_of=wanted),
        Case("all 256 values, one mean and scale", (grey, 0.3 * one, -1.5 * one), gradient_of=wanted),
        Case(
            "black and white, which have open bins",
            (torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.1, 0.8, 1.2, -0.4]), torch.tensor([-3.0, -2, -1, 0])),
            gradient_of=wanted,
        ),
        Case("far below the mean, with a small scale", (far, 1.5 * one, -5.0 * one), gradient_of=wanted),
        Case("far above the mean, with a small scale", (far, -0.5 * one, -5.0 * one), gradient_of=wanted),
        # The gradient at the mean nearly cancels here, and rounding is as large.
        Case("a scale of e²", (far, 0.5 * one, 2.0 * one), gradient_of={2: "log_scale"}),
        Case("a scale of e⁻⁹, one step above the mean", (far, far - 1 / 255, -9.0 * one), gradient_of=wanted),
        Case(
            "x smaller than the shape that the three broadcast to",
            (inside[:1, :1], mean[:, :1], log_scale[:1]),
            gradient_of=wanted,
        ),
    ]


def _bin(
    x: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    below: float = 0.5,
    above: float = 0.5,
    first: bool = True,
    last: bool = True,
    white: float = 1 - 1 / 510,
    inverse: Callable[[Tensor], Tensor] = lambda log_scale: torch.exp(-log_scale),
) -> Tensor:
    """The right answer with other edges (in steps of 1/255), another scale, or with ends that are not open."""
    inverse_scale = inverse(log_scale)
    upper = (x + above / 255 - mean) * inverse_scale
    lower = (x - below / 255 - mean) * inverse_scale
    is_first, is_last = (x < 1 / 510) & first, (x > white) & last
    width = torch.log(-torch.expm1(-(above + below) / 255 * inverse_scale)).expand_as(upper)
    return (
        torch.where(is_last, 0.0, functional.logsigmoid(upper))
        + torch.where(is_first, 0.0, functional.logsigmoid(-lower))
        + torch.where(is_first | is_last, 0.0, width)
    )


def _difference(x: Tensor, mean: Tensor, log_scale: Tensor, *, smallest: float = 0.0, added: float = 0.0) -> Tensor:
    scale = log_scale.exp()
    upper = torch.where(x > 1 - 1 / 510, 1.0, torch.sigmoid((x + 1 / 510 - mean) / scale))
    lower = torch.where(x < 1 / 510, 0.0, torch.sigmoid((x - 1 / 510 - mean) / scale))
    mass = upper - lower + added
    return torch.log(mass.clamp_min(smallest) if smallest else mass)


def _product(
    x: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    lower: Callable[[Tensor], Tensor] = lambda a: functional.logsigmoid(-a),
    width: Callable[[Tensor], Tensor] = lambda t: -torch.expm1(t),
) -> Tensor:
    """The right answer with another second factor, from A, or third, from A − B."""
    inverse = torch.exp(-log_scale)
    above, below = (x + 1 / 510 - mean) * inverse, (x - 1 / 510 - mean) * inverse
    first, last = x < 1 / 510, x > 1 - 1 / 510
    third = torch.where(first | last, 0.0, torch.log(width(-inverse / 255)))
    return torch.where(last, 0.0, functional.logsigmoid(above)) + torch.where(first, 0.0, lower(below)) + third


def _of_logarithms(x: Tensor, mean: Tensor, log_scale: Tensor, *, rest: Callable[[Tensor], Tensor]) -> Tensor:
    """log σ(B) + log(1 − σ(A)/σ(B)): the difference again, in other clothes."""
    inverse = torch.exp(-log_scale)
    above, below = (x + 1 / 510 - mean) * inverse, (x - 1 / 510 - mean) * inverse
    upper = functional.logsigmoid(above)
    inside = upper + torch.log(rest(functional.logsigmoid(below) - upper))
    return torch.where(x < 1 / 510, upper, torch.where(x > 1 - 1 / 510, functional.logsigmoid(-below), inside))


def _swapped_ends(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    inverse = torch.exp(-log_scale)
    upper, lower = (x + 1 / 510 - mean) * inverse, (x - 1 / 510 - mean) * inverse
    ends = torch.where(x < 1 / 510, functional.logsigmoid(-lower), functional.logsigmoid(upper))
    is_end = (x < 1 / 510) | (x > 1 - 1 / 510)
    return torch.where(is_end, ends, discretized_logistic(x, mean, log_scale))


def _log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    z = (x - mean) * torch.exp(-log_scale)
    return -z - 2 * functional.softplus(-z) - log_scale


_HIDDEN = "that both sigmoids round to the same number far from the mean: the log-mass stays at log"
_BIN_MISTAKES = (
    Mistake(
        "difference of two sigmoids",
        _difference,
        "this is right near the mean, and −∞ far from it: in float32 both sigmoids round to the same number there. Use "
        "the product, log σ(B) + log σ(−A) + log(1 − e^(A−B)).",
    ),
    *(
        Mistake(
            f"difference, kept above {least}",
            partial(_difference, smallest=float(least)),
            f"keeping the mass above {least} hides {_HIDDEN} {least}, and no gradient says which way to go. Use the "
            "product of the exercise.",
        )
        for least in ("1e-12", "1e-10", "1e-9", "1e-8", "1e-7", "1e-6")
    ),
    *(
        Mistake(
            f"difference, plus {least}",
            partial(_difference, added=float(least)),
            f"adding {least} to the mass hides {_HIDDEN} {least}, and no gradient says which way to go. Use the "
            "product of the exercise.",
        )
        for least in ("1e-10", "1e-9", "1e-8", "1e-7", "1e-6")
    ),
    Mistake(
        "log σ(A)",
        lambda x, m, s: _product(x, m, s, lower=functional.logsigmoid),
        "the second factor is σ(−A), what lies above the lower edge: functional.logsigmoid(-A). Yours is σ(A).",
    ),
    Mistake(
        "e^(B−A)",
        lambda x, m, s: _product(x, m, s, width=lambda t: -torch.expm1(-t)),
        "the exponent has the wrong sign: e^(B−A) is larger than 1, and the logarithm of a negative number is NaN. "
        "Wanted is 1 − e^(A−B).",
    ),
    Mistake(
        "expm1 without its minus",
        lambda x, m, s: _product(x, m, s, width=torch.expm1),
        "the logarithm is of a negative number, and so NaN: expm1(A − B) is e^(A−B) − 1. Put a minus before it.",
    ),
    Mistake(
        "ends not open",
        lambda x, m, s: _bin(x, m, s, first=False, last=False),
        "the bins of 0 and 1 end at half a step. They reach to −∞ and +∞; else the 256 masses sum to less than one.",
    ),
    Mistake(
        "black not open",
        lambda x, m, s: _bin(x, m, s, first=False),
        "the bin of 0 ends half a step below 0. It reaches to −∞.",
    ),
    Mistake(
        "white not open",
        lambda x, m, s: _bin(x, m, s, last=False),
        "the bin of 1 ends half a step above 1. It reaches to +∞.",
    ),
    Mistake(
        "ends swapped",
        _swapped_ends,
        "the two ends are swapped: the bin of 0 has the mass below its upper edge, σ(B); that of 1 the mass above its "
        "lower edge, σ(−A).",
    ),
    Mistake(
        "bin above the value",
        lambda x, m, s: _bin(x, m, s, below=0.0, above=1.0),
        "your bin reaches from x to x + 1/255. The value is its middle: half a step to each side.",
    ),
    Mistake(
        "bins twice as wide",
        lambda x, m, s: _bin(x, m, s, below=1.0, above=1.0),
        "your bins are twice as wide and overlap: half a step is 1/510 here (1/255 belongs to images in [−1, 1]).",
    ),
    Mistake(
        "width in grey levels",
        lambda x, m, s: _bin(x, m, s, below=127.5, above=127.5),
        "half a step of 0.5 belongs to values 0 … 255. Here they lie in [0, 1], and half a step is 1/510.",
    ),
    Mistake(
        "256 steps",
        lambda x, m, s: _bin(x, m, s, below=127.5 / 256, above=127.5 / 256),
        "256 values between 0 and 1 have 255 steps between them, so a bin is 1/255 wide, not 1/256.",
    ),
    Mistake(
        "log-scale as the scale",
        lambda x, m, s: discretized_logistic(x, m, s.log()),
        "log_scale is used as the scale. The scale is exp(log_scale).",
    ),
    Mistake(
        "times the scale",
        lambda x, m, s: discretized_logistic(x, m, -s),
        "you multiply with the scale in place of dividing by it: exp(−log_scale).",
    ),
    Mistake(
        "the density",
        _log_density,
        "this is the logarithm of the density at x. Asked for is the mass of the bin around it.",
    ),
    Mistake(
        "density times width",
        lambda x, m, s: _log_density(x, m, s) - math.log(255),
        "the density times the width is near the mass for wide scales only, and wrong in the two open bins.",
    ),
    Mistake(
        "not a logarithm",
        lambda x, m, s: discretized_logistic(x, m, s).exp(),
        "this is the mass. Asked for is its logarithm.",
    ),
    Mistake(
        "a normal distribution",
        discretized_gaussian,
        "this is the mass under a normal distribution; the logistic distribution has the sigmoid as its CDF.",
    ),
    Mistake(
        "summed",
        lambda x, m, s: discretized_logistic(x, m, s).sum(),
        "this is summed. Asked for is the log-mass of each value, in their common shape.",
    ),
    Mistake(
        "width missing",
        lambda x, m, s: (
            functional.logsigmoid((x + 1 / 510 - m) * torch.exp(-s)) * (x < 1 - 1 / 510)
            + functional.logsigmoid((m - x + 1 / 510) * torch.exp(-s)) * (x > 1 / 510)
        ),
        "the third factor is missing: 1 − e^(A−B), the only one that knows how wide a bin is.",
    ),
    Mistake(
        "width everywhere",
        lambda x, m, s: (
            discretized_logistic(x, m, s)
            + ((x < 1 / 510) | (x > 1 - 1 / 510)) * torch.log(-torch.expm1(-torch.exp(-s) / 255))
        ),
        "the factor 1 − e^(A−B) belongs to closed bins. For 0 and 1 one edge is at infinity, and it is 1.",
    ),
    Mistake(
        "divided by log_scale",
        lambda x, m, s: _bin(x, m, s, inverse=lambda log_scale: 1 / log_scale),
        "you divide by log_scale, which is negative for every scale below 1. The scale is exp(log_scale).",
    ),
    Mistake(
        "white from 254 on",
        lambda x, m, s: _bin(x, m, s, white=1 - 1.5 / 255),
        "254/255 is treated as white. Only 1 has an open bin: x > 1 − 1/510.",
    ),
    Mistake(
        "log-scale clamped",
        lambda x, m, s: discretized_logistic(x, m, s.clamp(min=-7)),
        "log_scale is clamped from below. Some codes do so against the difference of sigmoids; the product needs no "
        "such guard.",
    ),
    Mistake(
        "in the shape of x",
        lambda x, m, s: discretized_logistic(x, m, s).reshape(x.shape),
        "the result is forced into the shape of x. All three broadcast, and mean or log_scale may be larger (several "
        "components): leave the shape as the formula gives it.",
    ),
    Mistake(
        "difference in float64",
        lambda x, m, s: _difference(x.double(), m.double(), s.double()).to(x.dtype),
        "float64 only moves the point further out at which both sigmoids round to the same number; beyond it you get "
        "−∞ again. Use the product, log σ(B) + log σ(−A) + log(1 − e^(A−B)).",
    ),
    Mistake(
        "log-scale clamped from above",
        lambda x, m, s: discretized_logistic(x, m, s.clamp(max=1)),
        "log_scale is clamped from above, and where it is cut no gradient passes. Leave it as it comes.",
    ),
    *(
        Mistake(
            f"difference of logarithms, {form}",
            partial(_of_logarithms, rest=rest),
            f"log σ(B) + log(1 − σ(A)/σ(B)), here with {form}, is the difference again: above the mean σ(A)/σ(B) is "
            "nearly 1, and few digits or none are left of 1 − it. In 1 − e^(A−B) the exponent does not depend on x.",
        )
        for form, rest in (
            ("expm1", lambda t: -torch.expm1(t)),
            ("exp", lambda t: 1 - torch.exp(t)),
        )
    ),
)


# Exercise 2.5 -------------------------------------------------------------------------------------------------------


def _weights() -> Sequence[Case]:
    g = torch.Generator().manual_seed(5)
    wanted = {0: "log_weights"}

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(shape, generator=g)

    return [
        Case("five samples of three images", (normal(5, 3),), gradient_of=wanted),
        Case("one sample, which gives its own weight back", (normal(1, 4),), gradient_of=wanted),
        Case("seven samples of one image", (normal(7, 1) - 3,), gradient_of=wanted),
        Case("not contiguous in memory", (normal(3, 6).T,), gradient_of=wanted),
        Case("log-weights around −2,000, as images have them", (normal(6, 2) - 2000,), gradient_of=wanted),
        Case("log-weights around +900, as densities may have them", (normal(4, 3) + 900,), gradient_of=wanted),
        Case(
            "images that are hundreds of nats apart",
            (normal(5, 3) + torch.tensor([-900.0, 0.0, 400.0]),),
            gradient_of=wanted,
        ),
        Case(
            "samples of one image a thousand nats apart",
            (normal(3, 2) + torch.tensor([[-1000.0], [0.0], [-2500.0]]),),
            gradient_of=wanted,
        ),
    ]


_BOUND_MISTAKES = (
    Mistake(
        "mean of the logarithms",
        lambda w: w.mean(0),
        "this averages the logarithms of the weights: the ELBO, however many samples. Average the weights, then take "
        "the logarithm.",
    ),
    Mistake(
        "no division by the number of samples",
        lambda w: w.logsumexp(0),
        "this is the logarithm of the sum. The mean needs − log(samples); with one sample nothing shows.",
    ),
    Mistake(
        "exp overflows",
        lambda w: w.exp().mean(0).log(),
        "right on paper; but exp(−2000) is 0 and exp(900) is infinite in float32. torch.logsumexp takes the largest "
        "out first.",
    ),
    Mistake(
        "over the images",
        lambda w: w.logsumexp(1) - math.log(w.shape[1]),
        "this averages over the images. The samples are on axis 0.",
    ),
    Mistake(
        "over everything",
        lambda w: w.flatten().logsumexp(0) - math.log(w.numel()),
        "this averages over samples and images alike. Each image has its own bound: axis 0 only.",
    ),
    Mistake(
        "averaged over the images",
        lambda w: importance_weighted_bound(w).mean(),
        "this is the mean over the images. Asked for is one number for each, (B,).",
    ),
    Mistake(
        "the largest",
        lambda w: w.amax(0),
        "this is the largest weight alone, a bound too, and a looser one for log p(x) + log(samples).",
    ),
    Mistake(
        "divided by the number of images",
        lambda w: w.logsumexp(0) - math.log(w.shape[1]),
        "log(images) is taken away; it is log(samples), the length of axis 0.",
    ),
    Mistake(
        "divided outside the logarithm",
        lambda w: w.logsumexp(0) / len(w),
        "the division stands outside the logarithm: log(a / S) is log a − log S.",
    ),
    Mistake(
        "log added",
        lambda w: w.logsumexp(0) + math.log(len(w)),
        "log(samples) is added. A mean divides by their number: take it away.",
    ),
    Mistake(
        "self-normalised",
        lambda w: (w.softmax(0) * w).sum(0),
        "these are the log-weights averaged with the weights themselves, which is no bound.",
    ),
    Mistake(
        "detached",
        lambda w: importance_weighted_bound(w.detach()),
        "the values are right, but no gradient reaches the weights: nothing could be trained on this bound.",
    ),
    Mistake(
        "not a logarithm",
        lambda w: importance_weighted_bound(w).exp(),
        "this is the mean weight. Asked for is its logarithm, in nats.",
    ),
    Mistake("sign", lambda w: -importance_weighted_bound(w), "the sign is turned: this is a loss, not the bound."),
    Mistake(
        "axis kept",
        lambda w: importance_weighted_bound(w)[None],
        "there is an axis of length 1 left (keepdim): want (B,).",
    ),
    Mistake(
        "one maximum for all images",
        lambda w: w.max() + (w - w.max()).exp().mean(0).log(),
        "you take the largest weight of all images out. Images are hundreds of nats apart, and exp of such a "
        "difference is 0: each image needs its own maximum, amax(0).",
    ),
    Mistake(
        "the mean taken out",
        lambda w: w.mean(0) + (w - w.mean(0)).exp().mean(0).log(),
        "you take the mean out; what lies far above it overflows in exp. Take the largest out, so that nothing is "
        "above 0.",
    ),
    Mistake(
        "maximum not added back",
        lambda w: (w - w.amax(0)).exp().mean(0).log(),
        "the largest was taken out before exp and not added back after the logarithm.",
    ),
    Mistake(
        "number of samples written in",
        lambda w: w.logsumexp(0) - math.log(100),
        "you divide by 100. The number of samples is len(log_weights).",
    ),
    Mistake(
        "squeezed",
        lambda w: importance_weighted_bound(w).squeeze(),
        "squeeze() also drops the axis of the images when there is only one: leave it out.",
    ),
)


def register_all() -> None:
    register(Exercise("reparameterize", CHAPTER, reparameterize, _draws, _DRAW_MISTAKES, call))
    register(Exercise("kl_divergence", CHAPTER, kl_divergence, _posteriors, _KL_MISTAKES, call))
    register(Exercise("elbo", CHAPTER, elbo, _terms, _ELBO_MISTAKES, call))
    register(Exercise("discretized_logistic", CHAPTER, discretized_logistic, _bins, _BIN_MISTAKES, call))
    register(Exercise("importance_weighted_bound", CHAPTER, importance_weighted_bound, _weights, _BOUND_MISTAKES, call))

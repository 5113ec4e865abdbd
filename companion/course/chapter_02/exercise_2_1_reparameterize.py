"""Exercise 2.1, reparameterisation: a latent drawn from mean, log-variance and noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.vae import reparameterize


def cases() -> Sequence[Case]:
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


MISTAKES = (
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
    Mistake(
        "no exponential",
        lambda m, s, e: m + s / 2 * e,
        "half of the log-variance is the logarithm of the standard deviation. The exponential is missing: "
        "exp(log_variance / 2).",
    ),
    Mistake(
        "noise left out",
        lambda m, s, e: m + (0.5 * s).exp(),
        "the noise is not used: every draw would be the same, one standard deviation above the mean.",
    ),
    Mistake("the mean alone", lambda m, s, e: m, "this is the mean, and no draw: the noise, scaled, is missing."),
    Mistake(
        "mean scaled in place of the noise",
        lambda m, s, e: m * (0.5 * s).exp() + e,
        "the standard deviation multiplies the mean. It belongs to the noise.",
    ),
    Mistake(
        "all multiplied",
        lambda m, s, e: m * (0.5 * s).exp() * e,
        "the mean is a factor here. It is added: mean + standard deviation · noise.",
    ),
    Mistake(
        "one noise for all latents",
        lambda m, s, e: m + (0.5 * s).exp() * e[..., :1],
        "all latents of an image get the same noise. Each has its own: use all of noise.",
    ),
    Mistake(
        "a number added to the standard deviation",
        lambda m, s, e: m + ((0.5 * s).exp() + 1e-6) * e,
        "a number is added to the standard deviation. The exponential is never 0, so nothing has to be added.",
        also=(
            lambda m, s, e: m + ((0.5 * s).exp() + 1e-3) * e,
            lambda m, s, e: m + ((0.5 * s).exp() + 1e-2) * e,
        ),
    ),
    Mistake(
        "another base",
        lambda m, s, e: m + 10 ** (0.5 * s) * e,
        "the logarithm is the natural one, so the power has the base e: exp(log_variance / 2).",
        also=(lambda m, s, e: m + 2 ** (0.5 * s) * e,),
    ),
    Mistake(
        "root of the size of the log-variance",
        lambda m, s, e: m + s.abs().sqrt() * e,
        "you take the root of the logarithm's size. First exp, then the root: exp(log_variance / 2).",
    ),
    Mistake(
        "noise standardised",
        lambda m, s, e: m + (0.5 * s).exp() * (e - e.mean()) / e.std(),
        "the noise is standardised first. Use it as it comes: it is a draw from N(0, 1), and draws have other means.",
    ),
    Mistake(
        "noise squared", lambda m, s, e: m + (0.5 * s).exp() * e.square(), "the noise is squared; it enters as it is."
    ),
    Mistake(
        "factor outside the exponential",
        lambda m, s, e: m + 0.5 * math.e * s * e,
        "log_variance has to stand inside the exponential: exp(log_variance / 2).",
        also=(lambda m, s, e: m + math.exp(0.5) * s * e,),
    ),
    Mistake(
        "expm1",
        lambda m, s, e: m + torch.expm1(0.5 * s) * e,
        "expm1 is exp − 1. The standard deviation is exp(log_variance / 2).",
    ),
)

EXERCISE = Exercise(
    name="reparameterize",
    chapter="02_vae",
    reference=reparameterize,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercise 2.2, KL divergence of each latent number to the standard normal distribution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.vae import kl_divergence


def cases() -> Sequence[Case]:
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


MISTAKES = (
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
        also=(lambda m, s: kl_divergence(m, s).sum(-1, keepdim=True),),
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
        also=(
            lambda m, s: kl_divergence(m, s).mean(0),
            lambda m, s: kl_divergence(m, s).mean(-1),
        ),
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
    Mistake("mean left out", lambda m, s: kl_divergence(0 * m, s), "mean does not enter: μ² is missing."),
    Mistake(
        "size of the mean",
        lambda m, s: 0.5 * (m.abs() + s.exp() - 1 - s),
        "the mean enters by its absolute value. Square it.",
    ),
    Mistake(
        "+ log-variance", lambda m, s: 0.5 * (m.square() + s.exp() - 1 + s), "log_variance is added; it is subtracted."
    ),
    Mistake("no log-variance", lambda m, s: 0.5 * (m.square() + s.exp() - 1), "the last term, − log σ², is missing."),
    Mistake("no variance", lambda m, s: 0.5 * (m.square() - 1 - s), "σ² is missing: exp(log_variance)."),
    Mistake(
        "log-variance read as the variance",
        lambda m, s: 0.5 * (m.square() + s - 1 - s.log()),
        "log_variance is used as if it were the variance, and its logarithm is NaN where it is negative. σ² is "
        "exp(log_variance), and log σ² is log_variance.",
        also=(lambda m, s: 0.5 * (m.square() + s - 1 - s),),
    ),
    Mistake(
        "variance squared",
        lambda m, s: 0.5 * (m.square() + s.exp().square() - 1 - s),
        "exp(log_variance) is σ² already: no square around it.",
    ),
    Mistake(
        "size of the log-variance",
        lambda m, s: 0.5 * (m.square() + s.exp() - 1 - s.abs()),
        "log_variance enters by its absolute value. It may be negative, and is subtracted as it is.",
    ),
    Mistake(
        "mean minus 1",
        lambda m, s: 0.5 * ((m - 1).square() + s.exp() - 1 - s),
        "the 1 is inside the square: it stands alone in the sum, and the prior's mean is 0.",
    ),
    Mistake(
        "free bits",
        lambda m, s: kl_divergence(m, s).clamp(min=0.5),
        "the KL is kept above a number (free bits). Asked for is the KL itself.",
        also=(
            lambda m, s: kl_divergence(m, s).clamp(min=0.1),
            lambda m, s: kl_divergence(m, s).clamp(min=1.0),
        ),
    ),
)

EXERCISE = Exercise(
    name="kl_divergence",
    chapter="02_vae",
    reference=kl_divergence,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

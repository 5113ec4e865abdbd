"""Exercise 2.5, the importance-weighted bound, from the logarithms of the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.vae import importance_weighted_bound


def cases() -> Sequence[Case]:
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


MISTAKES = (
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
        "what you take out before exp is not the largest; what lies far above it overflows in exp. Take the largest "
        "out, so that nothing is "
        "above 0.",
        also=(lambda w: w[0] + (w - w[0]).exp().mean(0).log(),),
    ),
    Mistake(
        "maximum not added back",
        lambda w: (w - w.amax(0)).exp().mean(0).log(),
        "the largest was taken out before exp and not added back after the logarithm.",
    ),
    Mistake(
        "number of samples written in",
        lambda w: w.logsumexp(0) - math.log(100),
        "you divide by a number that is written in. The number of samples is len(log_weights).",
        also=(
            lambda w: w.logsumexp(0) - math.log(50),
            lambda w: w.logsumexp(0) - math.log(10),
            lambda w: w.logsumexp(0) - math.log(1000),
        ),
    ),
    Mistake(
        "squeezed",
        lambda w: importance_weighted_bound(w).squeeze(),
        "squeeze() also drops the axis of the images when there is only one: leave it out.",
    ),
    Mistake(
        "divided by all numbers",
        lambda w: w.logsumexp(0) - math.log(w.numel()),
        "log(samples · images) is taken away. The mean is over the samples alone: len(log_weights).",
    ),
    Mistake(
        "a small number added",
        lambda w: (w.exp().mean(0) + 1e-30).log(),
        "adding a small number hides that exp(−2000) is 0: the result stays at its logarithm, and no gradient passes. "
        "torch.logsumexp.",
        also=(
            lambda w: (w.exp().mean(0) + 1e-8).log(),
            lambda w: (w.exp().mean(0) + 1e-12).log(),
            lambda w: w.clamp(min=-80).logsumexp(0) - math.log(len(w)),
        ),
    ),
    Mistake(
        "logarithm to the base 2",
        lambda w: w.logsumexp(0) - math.log2(len(w)),
        "log-weights are natural logarithms, so log(samples) is one too: math.log.",
    ),
    Mistake(
        "minus the number of samples",
        lambda w: w.logsumexp(0) - len(w),
        "the number of samples is taken away; it is its logarithm.",
    ),
    Mistake(
        "product of the weights",
        lambda w: w.sum(0),
        "a sum of logarithms is the logarithm of the product. Wanted is the logarithm of the mean weight.",
    ),
    Mistake(
        "weights upside down",
        lambda w: (-w).logsumexp(0) - math.log(len(w)),
        "the log-weights are negated inside, so that these are the mean of 1/weight.",
    ),
    Mistake(
        "largest over the number of samples",
        lambda w: w.amax(0) - math.log(len(w)),
        "this is log(largest / samples): the other weights count as well.",
    ),
    Mistake(
        "log_softmax",
        lambda w: w.log_softmax(0).mean(0),
        "log_softmax makes the weights add up to one, and then they say nothing of p(x): logsumexp.",
    ),
    Mistake(
        "the middle one",
        lambda w: w.median(0).values,
        "this is the median of the log-weights. Average the weights, then take the logarithm.",
    ),
    Mistake(
        "S − 1",
        lambda w: w.logsumexp(0) - math.log(max(len(w) - 1, 1)),
        "you divide by samples − 1 (or + 1). A mean divides by their number.",
        also=(lambda w: w.logsumexp(0) - math.log(len(w) + 1),),
    ),
)

EXERCISE = Exercise(
    name="importance_weighted_bound",
    chapter="02b_likelihoods_and_collapse",
    reference=importance_weighted_bound,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercise 2.3, the ELBO, in nats per image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.vae import elbo


def cases() -> Sequence[Case]:
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


MISTAKES = (
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
        also=(lambda a, b: (a.sum(-1) if a.ndim > 1 else a).mean() - (b.sum(-1) if b.ndim > 1 else b).mean(),),
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
    Mistake(
        "both negative",
        lambda a, b: (-_sum(a) - _sum(b)).mean(),
        "log_likelihood is a logarithm already, and comes with its own sign: it is added as it is.",
    ),
    Mistake(
        "minus the size of the likelihood",
        lambda a, b: (-_sum(a).abs() - _sum(b)).mean(),
        "the size of log_likelihood is subtracted. A density's logarithm may be positive: take it as it comes.",
    ),
    Mistake(
        "per pixel",
        lambda a, b: elbo(a, b) / a[0].numel(),
        "this is divided by the number of pixels. Asked for are nats per image.",
    ),
    Mistake("KL alone", lambda a, b: -_sum(b).mean(), "log_likelihood is not used: this is the KL alone."),
    Mistake(
        "summed over the batch axis",
        lambda a, b: a.sum(0).mean() - b.sum(0).mean(),
        "sum(0) runs over the images. It is the other way round: sum over the axes of an image, mean over the images.",
    ),
    Mistake(
        "likelihood not a logarithm",
        lambda a, b: (_sum(a).exp() - _sum(b)).mean(),
        "log_likelihood is a logarithm, and the bound is one of logarithms: no exp around it.",
    ),
    Mistake(
        "logarithm of the KL",
        lambda a, b: (_sum(a) - _sum(b).log()).mean(),
        "the KL is in nats already: no logarithm around it.",
    ),
    Mistake(
        "free bits",
        lambda a, b: (_sum(a) - _sum(b).clamp(min=2.0)).mean(),
        "the KL is kept above a number (free bits). The bound has the KL as it is.",
        also=(
            lambda a, b: (_sum(a) - _sum(b).clamp(min=1.0)).mean(),
            lambda a, b: _sum(a).mean() - _sum(b.clamp(min=0.5)).mean(),
        ),
    ),
    Mistake(
        "log of the mean",
        lambda a, b: (_sum(a) - _sum(b)).logsumexp(0) - math.log(len(a)),
        "images are averaged as logarithms: .mean(), not logsumexp.",
    ),
    Mistake(
        "B − 1",
        lambda a, b: (_sum(a) - _sum(b)).sum() / max(len(a) - 1, 1),
        "you divide by B − 1. A mean divides by B.",
    ),
    Mistake("one image's KL", lambda a, b: _sum(a).mean() - _sum(b)[0], "the KL is that of the first image only."),
    Mistake(
        "batch size written in", lambda a, b: (a.sum() - b.sum()) / 4, "the number of images is written in: len(kl)."
    ),
)

EXERCISE = Exercise(
    name="elbo",
    chapter="02_vae",
    reference=elbo,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

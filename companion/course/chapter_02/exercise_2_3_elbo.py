"""Exercise 2.3, the ELBO, in nats per image."""

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

EXERCISE = Exercise(
    name="elbo",
    chapter="02_vae",
    reference=elbo,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercise 0.1, mean squared error: the mean over all pixels of two batches of images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.metrics import mse


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(0)
    both = {0: "x_hat", 1: "x"}

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(shape, generator=g), 0.5 + torch.rand(shape, generator=g)

    turned = tuple(t.transpose(2, 3) for t in pair(3, 2, 5, 4))
    return [
        Case("a batch of four grey images, 5×7", pair(4, 1, 5, 7), gradient_of=both),
        Case("a batch of one", pair(1, 3, 3, 5), gradient_of=both),
        Case("images that are not contiguous in memory", turned, gradient_of=both),
    ]


MISTAKES = (
    Mistake(
        "sum",
        lambda x_hat, x: (x_hat - x).square().sum(),
        "this is the sum over all pixels. A mean does not grow with the number of images: use .mean().",
    ),
    Mistake(
        "sum over pixels, mean over images",
        lambda x_hat, x: (x_hat - x).square().flatten(1).sum(1).mean(),
        "you sum over the pixels and average over the images only. The mean runs over every pixel of every image.",
    ),
    Mistake(
        "one number per image",
        lambda x_hat, x: (x_hat - x).square().flatten(1).mean(1),
        "you give one number per image. A loss is one number for the whole batch: average over the batch too.",
    ),
    Mistake(
        "no mean",
        lambda x_hat, x: (x_hat - x).square(),
        "these are the squared differences, one for each pixel. A loss is one number: take their mean.",
    ),
    Mistake(
        "mean over the batch only",
        lambda x_hat, x: (x_hat - x).square().mean(0),
        ".mean(0) averages over the images only and leaves one number for each pixel. Use .mean() for all of them.",
    ),
    Mistake(
        "power written ^",
        lambda x_hat, x: ((x_hat - x) ^ 2).mean(),
        "in Python ^ is the bitwise exclusive or. A square is ** 2, or .square().",
    ),
    Mistake(
        "x detached",
        lambda x_hat, x: (x_hat - x.detach()).square().mean(),
        "no gradient reaches x, because it is detached. The function treats its two arguments alike.",
    ),
    Mistake(
        "absolute error",
        lambda x_hat, x: (x_hat - x).abs().mean(),
        "this is the mean absolute error: square the differences instead of taking their size.",
    ),
    Mistake(
        "square of the mean",
        lambda x_hat, x: (x_hat - x).mean().square(),
        "you average first and square afterwards, so that errors up and down cancel. Square each difference first.",
    ),
    Mistake(
        "root",
        lambda x_hat, x: (x_hat - x).square().mean().sqrt(),
        "this is the root mean squared error: leave the square root out.",
    ),
    Mistake(
        "no square",
        lambda x_hat, x: (x_hat - x).mean(),
        "the differences are not squared, so errors up and down cancel.",
    ),
    Mistake(
        "half",
        lambda x_hat, x: 0.5 * (x_hat - x).square().mean(),
        "there is a factor ½ too many. It appears in the Gaussian log-likelihood, not in the mean squared error.",
    ),
    Mistake(
        "a Python number",
        lambda x_hat, x: (x_hat - x).square().mean().item(),
        ".item() gives a Python number, through which no gradient can flow. Return the tensor.",
    ),
    Mistake(
        "detached",
        lambda x_hat, x: (x_hat.detach() - x).square().mean(),
        "x_hat is detached (or used under no_grad): the value is right, but no gradient would reach the model.",
    ),
)

EXERCISE = Exercise(
    name="mse",
    chapter="00_start_here",
    reference=mse,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

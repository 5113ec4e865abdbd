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
        Case("two images of 2×2 without a batch, as in the text", pair(2, 2), gradient_of=both),
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
    Mistake(
        "mean over pixels, sum over images",
        lambda x_hat, x: (x_hat - x).square().mean() * len(x),
        "you average over the pixels and add up over the images. The mean runs over every pixel of every image.",
    ),
    Mistake(
        "divided by height and width only",
        lambda x_hat, x: (x_hat - x).square().sum() / (x.shape[-1] * x.shape[-2]),
        "you divide by height × width only. N counts every pixel of every image, with all channels: .mean().",
    ),
    Mistake(
        "divided by N − 1",
        lambda x_hat, x: (x_hat - x).square().sum() / (x.numel() - 1),
        "you divide by N − 1, as the variance of a sample does. A mean divides by N.",
    ),
    Mistake(
        "variance of the differences",
        lambda x_hat, x: (x_hat - x).var(correction=0),
        "this is the variance of the differences, which takes their mean away first: a constant error would count as "
        "none.",
        also=(lambda x_hat, x: (x_hat - x).var(),),
    ),
    Mistake(
        "784 written in",
        lambda x_hat, x: (x_hat - x).square().sum() / 784,
        "you divide by 784, the pixels of one image of 28 × 28. Divide by the number of pixels that there are: "
        ".mean().",
        also=(lambda x_hat, x: (x_hat - x).square().sum() / (784 * len(x)),),
    ),
    Mistake(
        "norm",
        lambda x_hat, x: (x_hat - x).norm(),
        "a norm is the root of the sum of the squares. Wanted is their mean: .square().mean().",
        also=(lambda x_hat, x: (x_hat - x).norm() / x.numel(),),
    ),
    Mistake(
        "difference of squares",
        lambda x_hat, x: (x_hat.square() - x.square()).mean(),
        "this is the difference of the squares. Subtract first, and square the difference.",
    ),
    Mistake(
        "sum of the images", lambda x_hat, x: (x_hat + x).square().mean(), "the two images are added. Subtract them."
    ),
    Mistake(
        "divided by the variance",
        lambda x_hat, x: (x_hat - x).square().mean() / x.var(correction=0),
        "this is divided by the variance, as the distortion further down is. Here the mean alone is wanted.",
    ),
    Mistake(
        "smooth L1",
        lambda x_hat, x: torch.nn.functional.smooth_l1_loss(x_hat, x),
        "smooth_l1_loss is square for small differences only, and halved there. Square them all.",
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

"""Exercise 1.4, PCA: images rebuilt from the principal components of other images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion.autoencoder import pca_reconstruct
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(4)

    def images(n: int, *shape: int) -> Tensor:
        spread = torch.linspace(0.2, 2, shape[-1])  # unequal variances, so that the order of the directions matters
        return 1 + torch.randn(n, *shape, generator=g) * spread

    turned = images(30, 2, 3, 4).transpose(2, 3)
    return [
        Case("images of 1×3×5, three directions", (images(40, 1, 3, 5), images(6, 1, 3, 5) + 0.5, 3)),
        Case("one image, one direction", (images(40, 1, 3, 5), images(1, 1, 3, 5), 1)),
        Case("images that are not contiguous in memory", (turned, turned[:4] - 0.5, 5)),
    ]


def _variant(
    x_train: Tensor,
    x: Tensor,
    d: int,
    *,
    mean_of: Tensor | None = None,
    centre_training: bool = True,
    subtract: bool = True,
    add: bool = True,
    pick: Callable[[Tensor, int], Tensor] = lambda directions, d: directions[:, -d:],
    moved_by: Callable[[Tensor, Tensor], Tensor] = lambda x, mean: mean,
) -> Tensor:
    """PCA with one of its parts replaced."""
    mean = (x_train if mean_of is None else mean_of).flatten(1).mean(0)
    centred = x_train.flatten(1) - mean * centre_training
    _, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = pick(directions, d)
    z = (x.flatten(1) - moved_by(x, mean) * subtract) @ basis
    return (z @ basis.T + mean * add).reshape(x.shape)


def _by_chance(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean = x_train.flatten(1).mean(0)
    basis = torch.pca_lowrank(x_train.flatten(1), q=d)[2]
    return ((x.flatten(1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


def _directions(x_train: Tensor) -> Tensor:
    centred = x_train.flatten(1) - x_train.flatten(1).mean(0)
    return torch.linalg.eigh(centred.T @ centred / len(centred))[1]


def _rows_of_svd(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean = x_train.flatten(1).mean(0)
    basis = torch.linalg.svd(x_train.flatten(1) - mean)[2][:, :d]
    return ((x.flatten(1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


def _mean_of_x(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    """The directions of x_train, and the mean of x on the way in and out."""
    basis, mean = _directions(x_train)[:, -d:], x.flatten(1).mean(0)
    return ((x.flatten(1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


def _directions_of_x(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean = x_train.flatten(1).mean(0)
    centred = x.flatten(1) - mean
    basis = torch.linalg.eigh(centred.T @ centred)[1][:, -d:]
    return (centred @ basis @ basis.T + mean).reshape(x.shape)


def _over_the_images(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean = x_train.flatten(1).mean(0)
    centred = x_train.flatten(1) - mean
    return (x.flatten(1) - mean) @ torch.linalg.eigh(centred @ centred.T)[1][:, -d:]


def _standardised(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean, scale = x_train.flatten(1).mean(0), x_train.flatten(1).std(0)
    z = (x_train.flatten(1) - mean) / scale
    basis = torch.linalg.eigh(z.T @ z)[1][:, -d:]
    return ((x.flatten(1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


def _weighted(x_train: Tensor, x: Tensor, d: int, power: float) -> Tensor:
    """The directions times a power of their eigenvalues; whitening for −½."""
    mean = x_train.flatten(1).mean(0)
    centred = x_train.flatten(1) - mean
    values, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    weight = values[-d:] ** power
    out = directions[:, -d:] * (weight if power > 0 else 1)
    return ((x.flatten(1) - mean) @ (directions[:, -d:] * weight) @ out.T + mean).reshape(x.shape)


MISTAKES = (
    Mistake(
        "least variance",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[:, :d]),
        "these are the directions of *least* variance: eigh sorts from small to large, so take the last d.",
    ),
    Mistake(
        "rows for columns",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[-d:].T),
        "eigh gives the directions as columns; you took rows: directions[:, -d:].",
    ),
    Mistake(
        "mean not subtracted",
        lambda t, x, d: _variant(t, x, d, subtract=False),
        "the directions were found around the mean, so subtract the mean from x before you project.",
    ),
    Mistake(
        "mean not added",
        lambda t, x, d: _variant(t, x, d, add=False),
        "what comes back is the difference from the mean: add the mean at the end.",
    ),
    Mistake(
        "mean of x",
        lambda t, x, d: _variant(t, x, d, mean_of=x),
        "the mean is that of x. Everything is fitted on x_train; x is only rebuilt.",
        also=(_mean_of_x,),
    ),
    Mistake(
        "covariance around zero",
        lambda t, x, d: _variant(t, x, d, centre_training=False),
        "the covariance is taken around zero, so its first direction is the mean itself. Centre x_train first.",
    ),
    Mistake(
        "no mean anywhere",
        lambda t, x, d: _variant(t, x, d, centre_training=False, subtract=False, add=False),
        "nothing is centred: take the mean of x_train away first, and add it back at the end.",
    ),
    Mistake(
        "mean neither subtracted nor added",
        lambda t, x, d: _variant(t, x, d, subtract=False, add=False),
        "the directions are those around the mean, but x is projected without it: subtract the mean, and add it after.",
    ),
    Mistake(
        "first rows",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[:d].T),
        "V[:d] is right for the rows that svd gives. eigh gives columns, least variance first: directions[:, -d:].",
    ),
    Mistake(
        "fitted on x",
        lambda t, x, d: _variant(x, x, d),
        "everything is fitted on x, the images to rebuild. Mean and directions come from x_train.",
    ),
    Mistake(
        "one mean for all pixels",
        lambda t, x, d: _variant(t, x, d, mean_of=t.mean().expand(1, *t.shape[1:])),
        "x_train.mean() is one number. The mean image has one for each pixel: .mean(0).",
    ),
    Mistake(
        "the bottleneck itself",
        lambda t, x, d: (x.flatten(1) - t.flatten(1).mean(0)) @ _directions(t)[:, -d:],
        "these are the d numbers of the bottleneck. Go back to pixels: z @ basis.T, plus the mean.",
    ),
    Mistake(
        "eigh not unpacked",
        lambda t, x, d: torch.linalg.eigh(torch.cov(t.flatten(1).T))[:, -d:],
        "eigh gives two things, the eigenvalues and the eigenvectors: _, directions = torch.linalg.eigh(…).",
    ),
    Mistake(
        "one direction too many",
        lambda t, x, d: _variant(t, x, d + 1),
        "you keep d + 1 directions.",
    ),
    Mistake(
        "flattened result",
        lambda t, x, d: _variant(t, x, d).flatten(1),
        "the images come back as rows of numbers: reshape them to the shape of x.",
    ),
    Mistake(
        "x centred by its own mean",
        lambda t, x, d: _variant(t, x, d, moved_by=lambda x, mean: x.flatten(1).mean(0)),
        "x is centred by its own mean, and then gets that of x_train back. Subtract the mean of x_train in both.",
    ),
    Mistake(
        "pca_lowrank",
        _by_chance,
        "torch.pca_lowrank finds the directions only nearly, from random vectors: with another seed you get others. "
        "torch.linalg.eigh of the covariance finds them exactly.",
    ),
    Mistake(
        "directions of x",
        _directions_of_x,
        "the directions are fitted on x, the images to rebuild. They come from x_train, as the mean does.",
    ),
    Mistake(
        "one direction too few",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[:, -d + 1 :]),
        "you keep d − 1 directions (for d = 1 all), or a number of them that is written in: directions[:, -d:].",
    ),
    Mistake(
        "all directions but d",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[:, :-d]),
        "you keep all directions but the last d. The last d are those to keep: directions[:, -d:].",
    ),
    Mistake(
        "all directions",
        lambda t, x, d: x.clone(),
        "x comes back as it was: with all directions nothing is left out. Keep d of them.",
    ),
    Mistake(
        "one direction alone",
        lambda t, x, d: _variant(t, x, d, pick=lambda v, d: v[:, -d].unsqueeze(1)),
        "you take one direction only. All of the last d are wanted: directions[:, -d:].",
    ),
    Mistake("columns of svd", _rows_of_svd, "svd gives the directions as the rows of its third result: Vh[:d].T."),
    Mistake(
        "covariance of the images",
        _over_the_images,
        "X Xᵀ compares images, (N, N). The covariance of the pixels is Xᵀ X / N, (F, F).",
    ),
    Mistake(
        "pixels divided by their spread",
        _standardised,
        "the pixels were divided by their standard deviations. PCA wants the directions of largest variance, so leave "
        "them.",
    ),
    Mistake(
        "weighted directions",
        lambda t, x, d: _weighted(t, x, d, 1.0),
        "the directions are multiplied or divided by something (eigenvalues, their roots). They have length 1 as eigh "
        "gives them, and z Bᵀ undoes x B only then.",
        also=(
            lambda t, x, d: _weighted(t, x, d, -0.5),
            lambda t, x, d: _weighted(t, x, d, 0.5),
        ),
    ),
    Mistake(
        "mean image only",
        lambda t, x, d: t.mean(0).expand_as(x).clone(),
        "this is the mean image for every x. What z holds, z @ basis.T, is to be added to it.",
    ),
)

EXERCISE = Exercise(
    name="pca_reconstruct",
    chapter="01_autoencoder",
    reference=pca_reconstruct,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercise 9.1, the distance of two images in the features of a network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_of
from companion.losses import feature_distance

Taps = list[Tensor]


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(90)

    def taps(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Taps:
        """Features of both signs whose lengths differ from position to position."""
        return [
            torch.randn(b, c, h, w, generator=g, dtype=dtype) * torch.randn(b, 1, h, w, generator=g, dtype=dtype).exp()
            for b, c, h, w in shapes
        ]

    def pair(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Taps, Taps]:
        return taps(*shapes, dtype=dtype), taps(*shapes, dtype=dtype)

    def turned(both: tuple[Taps, Taps]) -> tuple[Taps, Taps]:
        return [f.transpose(1, 3) for f in both[0]], [f.transpose(1, 3) for f in both[1]]

    short = pair((2, 3, 2, 3))
    black = pair((2, 3, 2, 3))
    for f, at in zip((*black[0], *black[1]), ((slice(None), slice(None), 0), (1, slice(None), 1, 2)), strict=True):
        f[at] = 0
    black[1][0][0, :, 0, 1] = 0  # in both
    return [
        Case("one image, one tap, two positions of 5 features", pair((1, 5, 1, 2))),
        Case("one image, one tap of 3 × 4 positions", pair((1, 3, 3, 4))),
        Case("one image, taps of 12 and of 10 positions", pair((1, 3, 3, 4), (1, 6, 5, 2))),
        Case("three images, two taps", pair((3, 4, 2, 3), (3, 6, 2, 2))),
        Case("features about as short as ε, which is 0.5", ([0.5 * f for f in short[0]], short[1]), {"epsilon": 0.5}),
        Case("positions at which all features are 0, as black pixels have them", black),
        Case(
            "three taps in float64, not contiguous in memory",
            turned(pair((2, 3, 2, 4), (2, 2, 3, 5), (2, 1, 2, 3), dtype=torch.float64)),
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The distances, the gradients at the features of x̂, and whether anything was written over."""
    features_hat, features = ([f.detach().clone() for f in taps] for taps in case.arguments)
    for f in features_hat:
        f.requires_grad_()
    result = implementation(list(features_hat), list(features), **case.build)
    seen: Observed = {"the result": result}
    seen |= gradients_of(result, {f"features_hat[{i}]": f for i, f in enumerate(features_hat)})
    return seen | {f"features[{i}] after the call": f for i, f in enumerate(features)}


def _length(f: Tensor, epsilon: float) -> Tensor:
    return (f.square().sum(1, keepdim=True) + epsilon**2).sqrt()


def _over(axes: tuple[int, ...]) -> Callable[[Tensor, float], Tensor]:
    """Features divided by a length over other axes than the channels."""
    return lambda f, epsilon: f / (f.square().sum(axes, keepdim=True) + epsilon**2).sqrt()


def _variant(
    *,
    unit: Callable[[Tensor, float], Tensor] = lambda f, epsilon: f / _length(f, epsilon),
    differ: Callable[[Tensor, Tensor], Tensor] = lambda u, v: (u - v).square(),
    channels: Callable[[Tensor], Tensor] = lambda d: d.sum(1),
    positions: Callable[[Tensor], Tensor] = lambda d: d.mean((1, 2)),
    taps: Callable[[list[Tensor]], Any] = lambda distances: torch.stack(distances).sum(0),
    epsilon_is: float | None = None,
) -> Callable[..., Any]:
    """The right answer with one of its parts replaced."""

    def distance(features_hat: Taps, features: Taps, epsilon: float = 1e-4) -> Any:
        found = []
        for f_hat, f in zip(features_hat, features, strict=True):
            u, v = (unit(one, epsilon_is or epsilon) for one in (f_hat, f))
            found.append(positions(channels(differ(u, v))))
        return taps(found)

    return distance


def _together(features_hat: Taps, features: Taps, epsilon: float = 1e-4) -> Tensor:
    """The positions of all taps averaged as one."""
    maps = [
        (f_hat / _length(f_hat, epsilon) - f / _length(f, epsilon)).square().sum(1).flatten(1)
        for f_hat, f in zip(features_hat, features, strict=True)
    ]
    return torch.cat(maps, 1).mean(1)


def _divided_by(other: Callable[[Tensor, Tensor, float], tuple[Any, Any]]) -> Callable[..., Tensor]:
    """Of each pair, divided by lengths that ``other`` gives."""

    def distance(features_hat: Taps, features: Taps, epsilon: float = 1e-4) -> Tensor:
        found = []
        for f_hat, f in zip(features_hat, features, strict=True):
            a, b = other(f_hat, f, epsilon)
            found.append((f_hat / a - f / b).square().sum(1).mean((1, 2)))
        return torch.stack(found).sum(0)

    return distance


def _cosine(features_hat: Taps, features: Taps, epsilon: float = 1e-4, *, factor: float) -> Tensor:
    pairs = zip(features_hat, features, strict=True)
    found = [factor * (1 - functional.cosine_similarity(f_hat, f, dim=1)) for f_hat, f in pairs]
    return torch.stack([one.mean((1, 2)) for one in found]).sum(0)


def _written_over(features_hat: Taps, features: Taps, epsilon: float = 1e-4) -> Tensor:
    for f in features:
        f /= _length(f, epsilon)
    pairs = zip(features_hat, features, strict=True)
    return torch.stack([(g / _length(g, epsilon) - f).square().sum(1).mean((1, 2)) for g, f in pairs]).sum(0)


def _some_taps(chosen: slice) -> Callable[..., Tensor]:
    return lambda features_hat, features, epsilon=1e-4: feature_distance(
        features_hat[chosen], features[chosen], epsilon=epsilon
    )


def _python_numbers(features_hat: Taps, features: Taps, epsilon: float = 1e-4) -> list[float]:
    return [float(one) for one in feature_distance(features_hat, features, epsilon=epsilon).detach()]


MISTAKES = (
    Mistake(
        "not normalised",
        _variant(unit=lambda f, epsilon: f),
        "the features are compared as they are, so that the tap with the largest numbers decides. Divide each by its "
        "length over the channels first.",
    ),
    Mistake(
        "normalised over positions",
        _variant(unit=_over((2, 3))),
        "the length is taken over the positions of a channel. Wanted is one length for each position, over its "
        "channels: axis 1.",
    ),
    Mistake(
        "normalised over everything",
        _variant(unit=_over((1, 2, 3))),
        "there is one length for a whole image. Wanted is one for each position, over its channels: axis 1 alone.",
    ),
    Mistake(
        "normalised over the batch",
        _variant(unit=_over((0,))),
        "the length is taken over the batch, which mixes images. Wanted is one for each position, over the channels.",
    ),
    Mistake(
        "difference normalised",
        _variant(unit=lambda f, epsilon: f, differ=lambda u, v: ((u - v) / _length(u - v, 1e-4)).square()),
        "the difference is divided by its own length. Divide both features by theirs, and subtract then.",
    ),
    Mistake(
        "divided by the sum",
        _variant(unit=lambda f, epsilon: f / (f.abs().sum(1, keepdim=True) + epsilon)),
        "the features are divided by the sum of their sizes. A length is the root of the sum of squares.",
    ),
    Mistake(
        "divided by the largest",
        _variant(unit=lambda f, epsilon: f / (f.abs().amax(1, keepdim=True) + epsilon)),
        "the features are divided by the largest of them. A length is the root of the sum of squares.",
    ),
    Mistake(
        "divided by the squared length",
        _variant(unit=lambda f, epsilon: f / (f.square().sum(1, keepdim=True) + epsilon**2)),
        "the features are divided by the *squared* length: the root is missing.",
    ),
    Mistake(
        "divided by the root of the mean",
        _variant(unit=lambda f, epsilon: f / (f.square().mean(1, keepdim=True) + epsilon**2).sqrt()),
        "inside the root stands the mean over the channels. A length has the sum there; as it is, a tap with many "
        "channels counts for more.",
    ),
    Mistake(
        "standardised",
        _variant(unit=lambda f, epsilon: functional.layer_norm(f.movedim(1, -1), f.shape[1:2]).movedim(-1, 1)),
        "the mean of the channels is subtracted as well, as a normalisation layer does. Only divide by the length.",
    ),
    Mistake(
        "softmax over the channels",
        _variant(unit=lambda f, epsilon: f.softmax(1)),
        "softmax makes shares of the features. Wanted are the features themselves, divided by their length.",
    ),
    Mistake(
        "only the reconstruction's normalised",
        _divided_by(lambda f_hat, f, epsilon: (_length(f_hat, epsilon), 1)),
        "only the features of x̂ are divided by their length; those of x have to be as well.",
    ),
    Mistake(
        "only the original's normalised",
        _divided_by(lambda f_hat, f, epsilon: (1, _length(f, epsilon))),
        "only the features of x are divided by their length; those of x̂ have to be as well.",
    ),
    Mistake(
        "one length for both",
        _divided_by(lambda f_hat, f, epsilon: (_length(f, epsilon), _length(f, epsilon))),
        "both are divided by the length of x's features. Each has a length of its own.",
    ),
    Mistake(
        "the difference normalised",
        _divided_by(lambda f_hat, f, epsilon: (_length(f_hat - f, epsilon), _length(f_hat - f, epsilon))),
        "the difference is divided by its own length, and so nearly always of length 1. Normalise, then subtract.",
    ),
    Mistake(
        "length detached",
        _variant(unit=lambda f, epsilon: f / _length(f, epsilon).detach()),
        "the values agree, but the length is detached: the gradient has to pass through it too.",
    ),
    Mistake(
        "length without ε",
        _variant(unit=lambda f, epsilon: f / f.square().sum(1, keepdim=True).sqrt()),
        "where all features at a position are 0, this is 0 / 0. ε belongs under the root of the length, squared.",
    ),
    Mistake(
        "ε added to the length",
        _variant(unit=lambda f, epsilon: f / (f.square().sum(1, keepdim=True).sqrt() + epsilon)),
        "ε is added after the root. Then 0 / 0 is avoided in the value, but the slope of the root at 0 is infinite, "
        "and the gradient NaN. ε² belongs under the root.",
    ),
    Mistake(
        "ε added to the norm",
        _variant(unit=lambda f, epsilon: f / (f.norm(dim=1, keepdim=True) + epsilon)),
        "ε is added to the norm. The length that is wanted has ε² under the root, so that it stays smooth where all "
        "features are 0.",
    ),
    Mistake(
        "ε not squared",
        _variant(unit=lambda f, epsilon: f / (f.square().sum(1, keepdim=True) + epsilon).sqrt()),
        "under the root stands ε; it is to be ε², so that ε is a length itself.",
    ),
    Mistake(
        "length kept above ε",
        _variant(unit=lambda f, epsilon: functional.normalize(f, dim=1, eps=epsilon)),
        "the length is cut off at ε, as functional.normalize and clamp do. It is to be √(‖f‖² + ε²), which is smooth.",
    ),
    Mistake(
        "ε fixed",
        _variant(epsilon_is=1e-4),
        "a fixed number stands where the argument epsilon is to be used.",
    ),
    Mistake(
        "ε too small",
        _variant(epsilon_is=1e-10),
        "a fixed, tiny number stands where the argument epsilon is to be used.",
    ),
    Mistake(
        "absolute differences",
        _variant(differ=lambda u, v: (u - v).abs()),
        "these are absolute differences; square them instead.",
    ),
    Mistake(
        "products",
        _variant(differ=lambda u, v: u * v),
        "the features are multiplied with each other, which is large where they agree. Square their difference.",
    ),
    Mistake(
        "difference of squares",
        _variant(differ=lambda u, v: u.square() - v.square()),
        "this is the difference of the squares. Subtract first, then square.",
    ),
    Mistake(
        "differences not squared",
        _variant(differ=lambda u, v: u - v),
        "the differences are not squared, so that those above and below cancel.",
    ),
    Mistake(
        "squared after the sum",
        _variant(differ=lambda u, v: u - v, channels=lambda d: d.sum(1).square()),
        "you sum over the channels and then square: differences of both signs cancel. Square first.",
    ),
    Mistake(
        "a root",
        _variant(channels=lambda d: (d.sum(1) + 1e-20).sqrt()),
        "there is a root over the sum of the squares (norm has one). Wanted are the squares.",
    ),
    Mistake(
        "mean over channels",
        _variant(channels=lambda d: d.mean(1)),
        "the squared differences are averaged over the channels; sum them. Vectors of length 1 are as far apart with "
        "many channels as with few.",
    ),
    Mistake(
        "the largest channel",
        _variant(channels=lambda d: d.amax(1)),
        "only the channel with the largest difference counts; sum over all of them.",
    ),
    Mistake(
        "half",
        _variant(differ=lambda u, v: (u - v).square() / 2),
        "there is a factor ½ too many.",
    ),
    Mistake(
        "one minus the cosine",
        partial(_cosine, factor=1.0),
        "one minus the cosine is half of the squared distance of two vectors of length 1, and does not know ε. Write "
        "the distance as it stands: normalise, subtract, square.",
    ),
    Mistake(
        "two minus twice the cosine",
        partial(_cosine, factor=2.0),
        "by way of the cosine this agrees for long features. It does not where they are as short as ε, or 0: normalise "
        "with √(‖f‖² + ε²), subtract, square.",
    ),
    Mistake(
        "sum over positions",
        _variant(positions=lambda d: d.sum((1, 2))),
        "the positions are summed, so that taps with a fine grid count most. Average over them.",
    ),
    Mistake(
        "a map",
        _variant(positions=lambda d: d, taps=lambda maps: sum(functional.interpolate(m[None], (2, 2)) for m in maps)),
        "this is a map over positions: average over them, so that one number is left for each image.",
    ),
    Mistake(
        "mean over taps",
        _variant(taps=lambda distances: torch.stack(distances).mean(0)),
        "the taps are averaged; sum over them.",
    ),
    Mistake(
        "positions of all taps together",
        _together,
        "the positions of all taps are averaged together, so that a fine grid outvotes a coarse one. Average over the "
        "positions of each tap, then sum over the taps.",
    ),
    Mistake(
        "first tap only",
        _some_taps(slice(1)),
        "only the first tap counts: a return stands inside the loop, perhaps. Sum over all of them.",
    ),
    Mistake(
        "last tap only",
        _some_taps(slice(-1, None)),
        "only the last tap counts: each overwrites the one before it. Sum over all of them.",
    ),
    Mistake(
        "one number for each tap",
        _variant(taps=lambda distances: torch.stack(distances)),
        "there is a row for each tap: sum over them, so that one number is left for each image.",
    ),
    Mistake(
        "a list",
        _variant(taps=lambda distances: distances),
        "this is a list with an entry for each tap: sum over them.",
    ),
    Mistake(
        "averaged over the batch",
        _variant(taps=lambda distances: torch.stack(distances).sum(0).mean()),
        "the images are averaged as well. Wanted is a distance for each image: leave axis 0.",
    ),
    Mistake(
        "summed over the batch",
        _variant(taps=lambda distances: torch.stack(distances).sum()),
        "the images are summed as well. Wanted is a distance for each image: leave axis 0.",
    ),
    Mistake(
        "a number for each image and tap",
        _variant(taps=lambda distances: torch.stack(distances, 1)),
        "there is a column for each tap: sum over them, so that one number is left for each image.",
    ),
    Mistake(
        "always float32",
        lambda a, b, epsilon=1e-4: feature_distance(a, b, epsilon=epsilon).float(),
        "float64 comes in and float32 goes out (.float(), or a tensor made with torch.zeros): keep the dtype.",
    ),
    Mistake(
        "features written over",
        _written_over,
        "the caller's features are written over (f /= …, or an operation that ends in _). Make new tensors.",
    ),
    Mistake(
        "Python numbers",
        _python_numbers,
        "these are Python numbers (.item(), float, tolist), through which no gradient can flow. Return a tensor.",
    ),
)

EXERCISE = Exercise(
    name="feature_distance",
    chapter="09_sharper_pictures",
    reference=feature_distance,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 2.4, the log-mass of a bin under a logistic distribution, without a difference of probabilities."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.likelihoods import discretized_gaussian, discretized_logistic


def cases() -> Sequence[Case]:
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


def _variant(
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
    upper: Callable[[Tensor], Tensor] = functional.logsigmoid,
    lower: Callable[[Tensor], Tensor] = lambda a: functional.logsigmoid(-a),
    width: Callable[[Tensor], Tensor] = lambda t: -torch.expm1(t),
    log: Callable[[Tensor], Tensor] = torch.log,
) -> Tensor:
    """The right answer with another first factor, from B, second, from A, or third, from A − B."""
    inverse = torch.exp(-log_scale)
    above, below = (x + 1 / 510 - mean) * inverse, (x - 1 / 510 - mean) * inverse
    first, last = x < 1 / 510, x > 1 - 1 / 510
    third = torch.where(first | last, 0.0, log(width(-inverse / 255)))
    return torch.where(last, 0.0, upper(above)) + torch.where(first, 0.0, lower(below)) + third


def _of_logarithms(x: Tensor, mean: Tensor, log_scale: Tensor, *, rest: Callable[[Tensor], Tensor]) -> Tensor:
    """log sigmoid(B) + log(1 − sigmoid(A)/sigmoid(B)): the difference again, in other clothes."""
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


def _edges(x: Tensor, mean: Tensor, log_scale: Tensor, half: float) -> Tensor:
    """The product with other edges, but the right third factor."""
    inverse = torch.exp(-log_scale)
    above, below = (x + half - mean) * inverse, (x - half - mean) * inverse
    first, last = x < 1 / 510, x > 1 - 1 / 510
    third = torch.where(first | last, 0.0, torch.log(-torch.expm1(-inverse / 255)))
    above, below = functional.logsigmoid(above), functional.logsigmoid(-below)
    return torch.where(last, 0.0, above) + torch.where(first, 0.0, below) + third


_HIDDEN = "that both sigmoids round to the same number far from the mean: the log-mass stays at log"


MISTAKES = (
    Mistake(
        "difference of two sigmoids",
        _difference,
        "this is right near the mean, and −∞ far from it: in float32 both sigmoids round to the same number there. Use "
        "the product, log sigmoid(B) + log sigmoid(−A) + log(1 − e^(A−B)).",
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
        "log sigmoid(A)",
        lambda x, m, s: _product(x, m, s, lower=functional.logsigmoid),
        "the second factor is sigmoid(−A), what lies above the lower edge: functional.logsigmoid(-A). Yours is "
        "sigmoid(A).",
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
        lambda x, m, s: _variant(x, m, s, first=False, last=False),
        "the bins of 0 and 1 end at half a step. They reach to −∞ and +∞; else the 256 masses sum to less than one.",
    ),
    Mistake(
        "black not open",
        lambda x, m, s: _variant(x, m, s, first=False),
        "the bin of 0 ends half a step below 0. It reaches to −∞.",
    ),
    Mistake(
        "white not open",
        lambda x, m, s: _variant(x, m, s, last=False),
        "the bin of 1 ends half a step above 1. It reaches to +∞.",
    ),
    Mistake(
        "ends swapped",
        _swapped_ends,
        "the two ends are swapped: the bin of 0 has the mass below its upper edge, sigmoid(B); that of 1 the mass "
        "above its lower edge, sigmoid(−A).",
    ),
    Mistake(
        "bin above the value",
        lambda x, m, s: _variant(x, m, s, below=0.0, above=1.0),
        "your bin reaches from x to x + 1/255. The value is its middle: half a step to each side.",
    ),
    Mistake(
        "bins twice as wide",
        lambda x, m, s: _variant(x, m, s, below=1.0, above=1.0),
        "your bins are twice as wide and overlap: half a step is 1/510 here (1/255 belongs to images in [−1, 1]).",
        also=(lambda x, m, s: _edges(x, m, s, 1 / 255),),
    ),
    Mistake(
        "width in grey levels",
        lambda x, m, s: _variant(x, m, s, below=127.5, above=127.5),
        "half a step of 0.5 belongs to values 0 … 255. Here they lie in [0, 1], and half a step is 1/510.",
    ),
    Mistake(
        "256 steps",
        lambda x, m, s: _variant(x, m, s, below=127.5 / 256, above=127.5 / 256),
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
        lambda x, m, s: _variant(x, m, s, inverse=lambda log_scale: 1 / log_scale),
        "you divide by log_scale, which is negative for every scale below 1. The scale is exp(log_scale).",
    ),
    Mistake(
        "white from 254 on",
        lambda x, m, s: _variant(x, m, s, white=1 - 1.5 / 255),
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
        "−∞ again. Use the product, log sigmoid(B) + log sigmoid(−A) + log(1 − e^(A−B)).",
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
            f"log sigmoid(B) + log(1 − sigmoid(A)/sigmoid(B)), here with {form}, is the difference again: above the "
            "mean sigmoid(A)/sigmoid(B) is nearly 1, and few digits or none are left of 1 − it. In 1 − e^(A−B) the "
            "exponent does not depend on x.",
        )
        for form, rest in (
            ("expm1", lambda t: -torch.expm1(t)),
            ("exp", lambda t: 1 - torch.exp(t)),
        )
    ),
    Mistake(
        "sigmoid(−B)",
        lambda x, m, s: _product(x, m, s, upper=lambda b: functional.logsigmoid(-b)),
        "the first factor is sigmoid(B), what lies below the upper edge. Yours is sigmoid(−B).",
    ),
    Mistake(
        "e^(B−A) − 1",
        lambda x, m, s: _product(x, m, s, width=lambda t: torch.expm1(-t)),
        "the third factor is 1 − e^(A−B), below 1. Yours is e^(B−A) − 1.",
    ),
    Mistake(
        "third factor without its logarithm",
        lambda x, m, s: _product(x, m, s, log=lambda t: t),
        "the third term is the logarithm of 1 − e^(A−B); yours is 1 − e^(A−B) itself.",
    ),
    Mistake(
        "width without the scale",
        lambda x, m, s: _product(x, m, s, width=lambda t: -torch.expm1(0 * t - 1 / 255)),
        "A and B are divided by the scale, so B − A is 1/(255 · scale), not 1/255.",
    ),
    Mistake(
        "log-scale read as a log-variance",
        lambda x, m, s: discretized_logistic(x, m, s / 2),
        "the scale is exp(log_scale), without a ½: log_scale is no log-variance.",
    ),
    Mistake(
        "softplus",
        lambda x, m, s: discretized_logistic(x, m, functional.softplus(s).log()),
        "softplus makes a positive number too, but of another parameter: here it is the logarithm of the scale.",
    ),
    Mistake(
        "mean added",
        lambda x, m, s: discretized_logistic(x, -m, s),
        "the mean is added. A and B are distances from it: x ± 1/510 − mean.",
    ),
    Mistake(
        "mean left out", lambda x, m, s: discretized_logistic(x, 0 * m, s), "the mean does not enter: x ± 1/510 − mean."
    ),
)

EXERCISE = Exercise(
    name="discretized_logistic",
    chapter="02b_likelihoods_and_collapse",
    reference=discretized_logistic,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Likelihoods p(x|z) (chapter 02, study 02b): a distribution over images, whose parameters are the output of a decoder.

Every likelihood takes the decoder's output ``params``. It gives the log-probability of an image (``log_prob``, in nats
per image), draws an image (``sample``), and gives the expected image (``mean``). It has ``num_params`` parameters for
each pixel and channel: those of image channel c are the decoder's channels c·num_params … (c + 1)·num_params − 1.
Given z, pixels and channels are independent.

Images hold the 256 grey values 0, 1/255, …, 1. A *discrete* likelihood gives each of them a probability, and these sum
to one. A *density* (``Gaussian(binned=False)``) does not: its logarithm can only be compared with those of densities.
"""

import math
from abc import ABC, abstractmethod
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    check_between,
    check_finite,
    check_flag,
    check_generator,
    check_number,
    check_place,
    check_size,
    check_tensor,
    check_unit_range,
    checks_values,
)
from companion._devices import as_float64, place_of
from companion.configured import Configured

LEVELS = 256  # the grey values of an image with 8 bits a channel
_GAP = 1 / (LEVELS - 1)  # between two neighbouring values, and the width of a bin
_SMALLEST_LOG_SCALE = -8.0  # a scale of a twelfth of a bin; a smaller one gains nothing
_LOG_SCALES = 20.0  # from −20 to 20: outside, the mass of a bin rounds to 0, or its bounds overflow


class Likelihood(nn.Module, ABC):
    """What all likelihoods have in common.

    Shapes:
        params: (B, C·num_params, *spatial); x, samples and means: (B, C, *spatial); log_prob: (B,).

    Raises:
        ValueError: ``params`` and ``x`` do not fit, or ``x`` holds values of probability 0. NaN in ``params`` gives NaN
            as log_prob, which ``fit`` reports with its step; ``sample`` and ``mean`` refuse it.
    """

    num_params: int

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) of each image, the sum over its pixels and channels, in nats: (B,)."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One image drawn from p(x|z) for each image of the batch; ``generator`` may be on any device."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The expected image under p(x|z)."""

    def _split(self, params: Tensor) -> Tensor:
        """(B, C·P, *spatial) → (B, C, P, *spatial) with P = ``num_params``, in float32 or float64."""
        check_tensor("params", params)
        if params.ndim < 2 or params.numel() == 0 or params.shape[1] % self.num_params:
            raise ValueError(
                f"params: got shape {tuple(params.shape)}, want (B, C·{self.num_params}, *spatial): "
                f"{type(self).__name__} reads {self.num_params} decoder channels for each image channel"
            )
        if params.dtype in (torch.float16, torch.bfloat16):
            params = params.float()  # sums of hundreds of logarithms need the digits
        return params.unflatten(1, (-1, self.num_params))

    def _split_beside(self, params: Tensor, x: Tensor) -> Tensor:
        """As :meth:`_split`, and ``x`` has to have the shape (B, C, *spatial)."""
        split = self._split(params)
        check_tensor("x", x)
        check_place("x", x, params.device)
        want = (*split.shape[:2], *split.shape[3:])
        if x.shape != want:
            raise ValueError(f"x: got shape {tuple(x.shape)}, want {want}, which fits params")
        return split

    def _drawn_from(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As :meth:`_split`, and all numbers have to be finite."""
        split = self._split(params)
        check_finite("params", params)
        check_generator("generator", generator)
        return split


class Gaussian(Configured, Likelihood):
    """x ~ N(params, scale²), one scale for all pixels.

    The log-density is −‖x − params‖² / (2σ²) plus a constant, so σ decides how much a squared error weighs against the
    KL term of the ELBO.

    Args:
        scale: σ, or its first value.
        binned: give the mass of the bin around each of the 256 grey values instead of a density. That is a discrete
            likelihood, and samples are rounded to those values.
        learn_scale: train σ (Rybkin et al. 2021, section 3); the best σ² is then the mean squared error.

    Raises:
        ValueError: ``scale`` is not between a millionth and a million.
    """

    num_params = 1
    log_scale: Tensor

    def __init__(self, scale: float = 0.1, *, binned: bool = False, learn_scale: bool = False) -> None:
        super().__init__()
        check_number("scale", scale, least=1e-6, most=1e6)  # beyond, squares overflow or bins differ by rounding only
        check_flag("binned", binned)
        check_flag("learn_scale", learn_scale)
        self.binned = binned
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """σ, 0-dim."""
        return self.log_scale.exp()

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean = self._split_beside(params, x).squeeze(2)  # (B, C, *spatial)
        if self.binned:
            _check_grey_values(x)
            return _per_image(_discretized_gaussian(x, mean, self.log_scale))
        check_finite("x", x)
        check_unit_range("x", x)
        z = (x - mean) / self.scale
        return _per_image(-0.5 * z.square() - self.log_scale - 0.5 * math.log(2 * math.pi))

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self._drawn_from(params, generator).squeeze(2)
        check_finite("log_scale", self.log_scale)
        place = place_of(generator, mean.device)
        noise = torch.randn(mean.shape, generator=generator, device=place, dtype=mean.dtype)
        x = mean + self.scale * noise.to(mean.device)
        return _to_grey_value(x) if self.binned else x

    def mean(self, params: Tensor) -> Tensor:
        """The decoder's output; with ``binned``, the mean of the Gaussian clipped to [0, 1], without the rounding."""
        mean = self._drawn_from(params).squeeze(2)
        if not self.binned:
            return mean
        check_finite("log_scale", self.log_scale)

        def antiderivative(t: Tensor) -> Tensor:  # of the normal CDF
            return t * torch.special.ndtr(t) + torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)

        # E[clip(X, 0, 1)] is the integral of P(X > e) over e from 0 to 1.
        value = self.scale * (antiderivative(mean / self.scale) - antiderivative((mean - 1) / self.scale))
        return value.clamp(0, 1)


class Bernoulli(Configured, Likelihood):
    """Each pixel is 1 with probability sigmoid(params), else 0: for images of two values.

    ``Bernoulli()`` refuses every other value. ``Bernoulli(relaxed=True)`` computes x·log p + (1 − x)·log(1 − p) for
    grey values too, as is often done. **That is the cross-entropy, and no log-probability**: its exponentials over the
    256 grey values do not sum to one (study 02b measures it). So it gives no ELBO of grey images, and can only be
    compared with itself. Loaiza-Ganem & Cunningham (2019) give the missing normaliser for values in [0, 1].

    Args:
        relaxed: also take grey values.
    """

    num_params = 1

    def __init__(self, *, relaxed: bool = False) -> None:
        super().__init__()
        check_flag("relaxed", relaxed)
        self.relaxed = relaxed

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits = self._split_beside(params, x).squeeze(2)
        if self.relaxed:
            check_between("x", x, 0, 1)
        elif checks_values(x) and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(
                "x: got values other than 0 and 1, to which a Bernoulli gives no probability: binarise the images, "
                "choose another likelihood, or say relaxed=True and get the cross-entropy, which is none"
            )
        x = x.to(logits.dtype)
        return _per_image(-functional.binary_cross_entropy_with_logits(logits, x, reduction="none"))

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones."""
        mean = self._drawn_from(params, generator).squeeze(2).sigmoid()
        return torch.bernoulli(mean.to(place_of(generator, mean.device)), generator=generator).to(mean.device)

    def mean(self, params: Tensor) -> Tensor:
        return self._drawn_from(params).squeeze(2).sigmoid()


class Categorical(Configured, Likelihood):
    """Each pixel is one of ``levels`` values 0, 1/(levels − 1), …, 1, with probabilities softmax(params).

    It can represent any distribution, and it does not know that the values are ordered (van den Oord et al. 2016, Pixel
    RNN, section 2.2).

    Raises:
        ValueError: fewer than two levels.
    """

    def __init__(self, levels: int = LEVELS) -> None:
        super().__init__()
        check_size("levels", levels, least=2)
        self.levels = self.num_params = levels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits = self._split_beside(params, x)  # (B, C, levels, *spatial)
        _check_grey_values(x, self.levels)
        k = (x * (self.levels - 1)).round().long().unsqueeze(2)
        return _per_image(logits.log_softmax(2).gather(2, k).squeeze(2))

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probabilities = self._drawn_from(params, generator).softmax(2).movedim(2, -1)  # (B, C, *spatial, levels)
        k = _drawn(probabilities, generator)
        return k.to(probabilities.dtype) / (self.levels - 1)

    def mean(self, params: Tensor) -> Tensor:
        probabilities = self._drawn_from(params).softmax(2).movedim(2, -1)
        values = torch.linspace(0, 1, self.levels, dtype=probabilities.dtype, device=probabilities.device)
        return probabilities @ values


class DiscretizedLogisticMixture(Configured, Likelihood):
    """Each pixel and channel is drawn from a mixture of logistic distributions, in bins around the 256 grey values.

    As in PixelCNN++ (Salimans et al. 2017, eq. 2), but colour channels are independent (its section 2.2 couples them).
    The parameters of one image channel are ``components`` logits of the mixture weights, then as many means (0 is
    black, 1 is white), then as many log-scales. Log-scales below −8 are taken as −8.

    Raises:
        ValueError: ``components`` is less than 1.
    """

    def __init__(self, components: int = 5) -> None:
        super().__init__()
        check_size("components", components)
        self.components = components
        self.num_params = 3 * components

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits, mean, log_scale = self._parts(self._split_beside(params, x))  # each (B, C, K, *spatial)
        _check_grey_values(x)
        log_mass = _discretized_logistic(x.unsqueeze(2), mean, log_scale)
        return _per_image(torch.logsumexp(logits.log_softmax(2) + log_mass, 2))  # eq. 2

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, mean, log_scale = self._parts(self._drawn_from(params, generator))
        weights = logits.softmax(2).movedim(2, -1)  # (B, C, *spatial, K)
        k = _drawn(weights, generator).unsqueeze(2)  # (B, C, 1, *spatial)
        mean, log_scale = (part.gather(2, k).squeeze(2) for part in (mean, log_scale))
        place = place_of(generator, mean.device)
        u = torch.rand(mean.shape, generator=generator, device=place, dtype=mean.dtype).to(mean.device)
        tiny = torch.finfo(u.dtype).eps
        return _to_grey_value(mean + log_scale.exp() * u.clamp(tiny, 1 - tiny).logit())

    def mean(self, params: Tensor) -> Tensor:
        """The mean of the mixture clipped to [0, 1], without the rounding to grey values (at most half a bin)."""
        logits, mean, log_scale = self._parts(self._drawn_from(params))
        scale = log_scale.exp()
        # E[clip(X, 0, 1)] is the integral of P(X > e) over e from 0 to 1; softplus is the sigmoid's antiderivative.
        value = scale * (functional.softplus(mean / scale) - functional.softplus((mean - 1) / scale))
        return (logits.softmax(2) * value.clamp(0, 1)).sum(2)

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, 3·K, *spatial) → logits, means and log-scales, each (B, C, K, *spatial)."""
        logits, mean, log_scale = params.chunk(3, 2)
        return logits, mean, log_scale.clamp_min(_SMALLEST_LOG_SCALE)


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The log-mass of the bin around each grey value under a logistic distribution (a term of PixelCNN++, eq. 2).

    The bin of x reaches from a = x − 1/510 to b = x + 1/510. That of 0 reaches to −∞ and that of 1 to +∞, so that the
    masses of the 256 values sum to one. With A = (a − mean)/scale and B = (b − mean)/scale, the mass is
    σ(B) − σ(A) = σ(B)·σ(−A)·(1 − e^(A−B)). The logarithm of this product is computed without a difference of nearly
    equal numbers, and it and its gradients stay finite however far the mean is from x.

    Shapes:
        x: multiples of 1/255 in [0, 1], log_scale: −20 to 20; x, mean, log_scale broadcast together → log-mass of their
        common shape.

    Raises:
        ValueError: the shapes do not broadcast, x or log_scale has other values, or a number is NaN or infinite.
    """
    _check_bins(x, mean, log_scale)
    return _discretized_logistic(x, mean, log_scale)


def _discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    inverse_scale = torch.exp(-log_scale)
    above = (x + _GAP / 2 - mean) * inverse_scale  # B
    below = (x - _GAP / 2 - mean) * inverse_scale  # A
    first, last = x < _GAP / 2, x > 1 - _GAP / 2
    lower = torch.where(last, 0.0, functional.logsigmoid(above))  # log σ(B): nothing lies above the last bin
    upper = torch.where(first, 0.0, functional.logsigmoid(-below))  # log σ(−A): nothing lies below the first
    width = torch.log(-torch.expm1(-_GAP * inverse_scale))
    return lower + upper + torch.where(first | last, 0.0, width)


def discretized_gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The log-mass of the bin around each grey value under a normal distribution.

    The bins are those of :func:`discretized_logistic`. Φ(B) − Φ(A) is computed in float64, on the side of the mean
    where both are small, from the difference of their logarithms. So it is accurate for narrow bins, and finite and
    differentiable far from the mean.

    Shapes:
        x: multiples of 1/255 in [0, 1], log_scale: −20 to 20; x, mean, log_scale broadcast together → log-mass of their
        common shape.

    Raises:
        ValueError: the shapes do not broadcast, x or log_scale has other values, or a number is NaN or infinite.
    """
    _check_bins(x, mean, log_scale)
    return _discretized_gaussian(x, mean, log_scale)


def _discretized_gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    k = as_float64((x * (LEVELS - 1)).round())
    inverse_scale = torch.exp(-as_float64(log_scale))
    above = ((k + 0.5) * _GAP - as_float64(mean)) * inverse_scale  # B
    below = ((k - 0.5) * _GAP - as_float64(mean)) * inverse_scale  # A
    first, last = k == 0, k == LEVELS - 1
    mirrored = below + above > 0  # then use Φ(B) − Φ(A) = Φ(−A) − Φ(−B)
    near, far = torch.where(mirrored, -below, above), torch.where(mirrored, -above, below)
    log_near, log_far = _log_ndtr(near), _log_ndtr(far)
    inside = log_near + torch.log(-torch.expm1(log_far - log_near))
    ends = _log_ndtr(torch.where(first, above, -below))
    return torch.where(first | last, ends, inside).to(mean.device, torch.promote_types(mean.dtype, log_scale.dtype))


def _log_ndtr(z: Tensor) -> Tensor:
    """log Φ(z). The gradient of torch's own is wrong far below 0 (by 1 % at −10⁷, infinite at −10¹²)."""
    tail = z.clamp_max(-1)
    log_tail = torch.log(torch.special.erfcx(-tail / math.sqrt(2)) / 2) - 0.5 * tail.square()
    return torch.where(z < -1, log_tail, torch.special.log_ndtr(z.clamp_min(-1)))


def _drawn(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """(*positions, K) → (*positions,) int64: one of the K at each position, drawn with its probability."""
    rows = probabilities.flatten(0, -2).to(place_of(generator, probabilities.device))
    k = torch.multinomial(rows, 1, generator=generator).to(probabilities.device)
    return k.reshape(probabilities.shape[:-1])


def _per_image(values: Tensor) -> Tensor:
    """(B, *pixels) → (B,), the sum over all pixels of each image."""
    return values.flatten(1).sum(1)


def _to_grey_value(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)


def _check_bins(x: Tensor, mean: Tensor, log_scale: Tensor) -> None:
    for name, value in (("x", x), ("mean", mean), ("log_scale", log_scale)):
        check_tensor(name, value, shape=("*axes",), finite=True)
    check_between("log_scale", log_scale, -_LOG_SCALES, _LOG_SCALES)
    shapes = [tuple(value.shape) for value in (x, mean, log_scale)]
    for axes in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1):
        if len({*axes} - {1}) > 1:
            raise ValueError(
                f"x: got shape {shapes[0]} beside mean {shapes[1]} and log_scale {shapes[2]}, want ones that broadcast"
            )
    _check_grey_values(x)


def _check_grey_values(x: Tensor, levels: int = LEVELS) -> None:
    if not checks_values(x):
        return
    steps = x.detach() * (levels - 1)
    off = (steps - steps.round()).abs()
    if not bool(((off < 1e-3) & (steps > -0.5) & (steps < levels - 0.5)).all()):
        raise ValueError(
            f"x: got values that are no multiples of 1/{levels - 1} in [0, 1], want the {levels} values this "
            "likelihood gives probabilities to"
        )

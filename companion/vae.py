"""Variational autoencoders (chapter 02): latents with a known distribution, from which new ones can be drawn."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion._arguments import (
    check_between,
    check_decoded,
    check_finite,
    check_fits,
    check_flag,
    check_generator,
    check_given,
    check_images,
    check_instance,
    check_module,
    check_number,
    check_same_shape,
    check_size,
    check_sizes,
    check_tensor,
    check_weights,
    checks_values,
    decoded,
    encoded,
    unchecked_values,
)
from companion._devices import as_float64, place_of
from companion._pytrees import pytree
from companion.backbones.masked import AutoregressiveDecoder
from companion.configured import Configured
from companion.likelihoods import Likelihood

_LARGEST_ROUNDING = 0.01  # below 0, of a KL in half precision


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z = mean + standard deviation · noise (Kingma & Welling 2014, eq. 10).

    With noise from N(0, I), z is a draw from N(mean, exp(log_variance)), and differentiable in both.

    Shapes:
        mean, log_variance, noise: the same shape, (B, *latent) → z of that shape.

    Raises:
        ValueError: the shapes differ (broadcasting would give several images the same noise), or a number is NaN or
            infinite.
    """
    check_tensor("mean", mean, shape=("*axes",), finite=True)
    for name, value in (("log_variance", log_variance), ("noise", noise)):
        check_same_shape(name, value, "mean", mean)
        check_finite(name, value)
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) of every latent dimension, in nats (Kingma & Welling 2014, appendix B).

    It is ½ (mean² + variance − 1 − log variance). The KL of an image is the sum over its latent dimensions.

    Shapes:
        mean, log_variance: the same shape, (B, *latent) → that shape.

    Raises:
        ValueError: the shapes differ, or a number is NaN or infinite.
    """
    check_tensor("mean", mean, shape=("*axes",), finite=True)
    check_same_shape("log_variance", log_variance, "mean", mean)
    check_finite("log_variance", log_variance)
    # expm1: near variance 1 the difference variance − 1 would lose its digits
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """The evidence lower bound, log p(x|z) − KL, in nats per image (Kingma & Welling 2014, eq. 3).

    Both terms are summed within an image, and the difference is averaged over the batch.

    Shapes:
        log_likelihood: (B,) or (B, *pixels), kl: (B,) or (B, *latent) → 0-dim.

    Raises:
        ValueError: the two have different batch sizes, a number is NaN or infinite, or a KL is negative.
    """
    check_tensor("log_likelihood", log_likelihood, shape=("B", "*pixels"), finite=True)
    check_tensor("kl", kl, shape=("B", "*latent"), finite=True)
    if len(log_likelihood) != len(kl):
        raise ValueError(
            f"kl: got shape {tuple(kl.shape)} beside log_likelihood of shape {tuple(log_likelihood.shape)}, "
            "want both to begin with the same batch axis"
        )
    if checks_values(kl) and (least := float(kl.detach().min())) < -_LARGEST_ROUNDING:
        raise ValueError(
            f"kl: got {least:.4g}, want numbers of at least 0, as each KL divergence is: swapped with log_likelihood?"
        )
    return (_per_image(log_likelihood) - _per_image(kl)).mean()


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """The logarithm of the mean importance weight (Burda et al. 2016, eq. 8).

    In expectation it is a lower bound of log p(x), and the more samples, the tighter.

    Args:
        log_weights: log p(x, z) − log q(z|x) for each sample z of each image, as ``VAE.log_weights`` gives them.

    Shapes:
        log_weights: (samples, B) → (B,), nats per image.

    Raises:
        ValueError: the shape is another, there are no samples, or a number is NaN.
    """
    check_tensor("log_weights", log_weights, shape=("samples", "B"))
    check_between("log_weights", log_weights, -math.inf, math.inf)  # a weight may be 0
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def active_units(mean: Tensor, *, threshold: float = 0.01) -> int:
    """How many latent dimensions the encoder uses (Burda et al. 2016, section 5.2).

    Those whose posterior mean has a variance over the images of more than ``threshold``.

    Shapes:
        mean: (N, *latent), the posterior means of N images.

    Raises:
        ValueError: there are fewer than two images, a number is NaN or infinite, or ``threshold`` is negative.
    """
    check_tensor("mean", mean, finite=True)
    check_number("threshold", threshold, least=0)
    if mean.ndim < 2 or len(mean) < 2 or mean.numel() == 0:
        raise ValueError(f"mean: got shape {tuple(mean.shape)}, want (N, *latent) with at least two images")
    return int((as_float64(mean.detach().flatten(1)).var(0) > threshold).sum())


def bits_per_dimension(log_prob: Tensor, dimensions: int) -> Tensor:
    """Bits per pixel and channel, from nats per image: −log p / (dimensions · log 2).

    These are bits only if ``log_prob`` is that of a discrete likelihood, or a bound of it.

    Args:
        log_prob: log p(x) in nats per image, of any shape.
        dimensions: the number of pixels times the number of channels.

    Raises:
        ValueError: ``dimensions`` is no whole number of at least 1, or ``log_prob`` is NaN.
    """
    check_tensor("log_prob", log_prob, shape=("*axes",))
    check_between("log_prob", log_prob, -math.inf, math.inf)  # an image of probability 0 has infinite bits
    check_size("dimensions", dimensions)
    return -log_prob / (dimensions * math.log(2))


@pytree
@dataclass(frozen=True)
class VAEOutput:
    """What a VAE returns. The 0-dim terms are nats per image, averaged over the batch."""

    reconstruction: Tensor  # the mean of p(x|z), (B, C, H, W)
    mean: Tensor  # of q(z|x), (B, *latent)
    log_variance: Tensor  # of q(z|x), (B, *latent)
    z: Tensor  # drawn from q(z|x), (B, *latent)
    kl_per_dimension: Tensor  # averaged over the batch, detached, (*latent)
    loss: Tensor  # −log_likelihood + beta · kl, to be minimised
    elbo: Tensor  # log_likelihood − kl, whatever beta is
    log_likelihood: Tensor
    kl: Tensor


class VAE(Configured, nn.Module):
    """An autoencoder whose encoder gives a distribution q(z|x) = N(mean, variance) (Kingma & Welling 2014).

    The KL term of the loss keeps q(z|x) near the prior N(0, I). New images are decoded from draws from that prior.

    Args:
        encoder: x → means and log-variances, concatenated along axis 1: ``Encoder(2 * d)``, or a ``ResNetEncoder`` with
            2·D channels for a map of latents.
        decoder: z → the likelihood's parameters: ``Decoder(d, out_channels=C * likelihood.num_params)``, a
            ``ResNetDecoder``, or an ``AutoregressiveDecoder``, which also reads x.
        likelihood: the distribution that has those parameters, from ``companion.likelihoods``.
        beta: β_KL, the weight of the KL term in the loss (Higgins et al. 2017, eq. 4); 1 trains the ELBO.

    Shapes:
        x: (B, C, H, W) → ``VAEOutput``.

    Raises:
        ValueError: an argument has the wrong type, ``beta`` is negative, the encoder gives an odd number of channels,
            the decoder does not take the latents, or ``x`` has another shape, type or range.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, *, beta: float = 1.0) -> None:
        super().__init__()
        check_module("encoder", encoder)
        check_module("decoder", decoder)
        check_instance("likelihood", likelihood, Likelihood, "one of companion.likelihoods")
        check_number("beta", beta, least=0)
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.beta = beta

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x).

        Shapes:
            x: (B, C, H, W) in [0, 1] → two of (B, *latent).
        """
        check_images("x", x)
        both: Tensor = encoded(self.encoder, x)
        if both.shape[1] % 2:
            raise ValueError(
                f"encoder: it gave shape {tuple(both.shape)}, want (B, 2·d, …): as many means as log-variances"
            )
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The parameters of p(x|z).

        Args:
            x: the images whose earlier pixels an autoregressive decoder reads; no other decoder needs them.

        Shapes:
            z: (B, *latent), x: (B, C, H, W) → (B, C·num_params, H, W).
        """
        check_tensor("z", z, shape=("B", "*latent"), finite=True)
        if not isinstance(self.decoder, AutoregressiveDecoder):
            if x is not None:
                check_tensor("x", x)
            params: Tensor = self.decoder(z)
        elif x is None:
            raise ValueError("x: got None, want the images whose earlier pixels the autoregressive decoder reads")
        else:
            check_images("x", x)
            params = self.decoder(z, x)
        check_given("decoder", params, "parameters of the likelihood")
        return params

    def forward(self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode, draw z, decode, and compute the terms of the loss.

        Args:
            noise: ε with the shape of the mean; default: drawn from N(0, I).
            generator: of that draw, on any device; default: torch's global generator.
        """
        mean, log_variance = self.encode(x)
        check_generator("generator", generator)
        if noise is not None:
            check_tensor("noise", noise, finite=True)
            check_fits("noise", noise, mean, of="the mean")
        else:
            noise = _standard_normal(mean.shape, mean, generator)
        with unchecked_values():  # NaN is passed on to the loss, and fit reports it with the step
            z = reparameterize(mean, log_variance, noise)
            params = decoded(self.decode, z, x)
            kl = kl_divergence(mean, log_variance)  # (B, *latent)
        self._check_params(params, x)
        log_likelihood = self.likelihood.log_prob(params, x)  # (B,)
        with unchecked_values():
            reconstruction, bound = self.likelihood.mean(params), elbo(log_likelihood, kl)
        reconstruction_term, kl_term = log_likelihood.mean(), _per_image(kl).mean()
        return VAEOutput(
            reconstruction=reconstruction,
            mean=mean,
            log_variance=log_variance,
            z=z,
            kl_per_dimension=kl.detach().mean(0),
            loss=-reconstruction_term + self.beta * kl_term,
            elbo=bound,
            log_likelihood=reconstruction_term,
            kl=kl_term,
        )

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z), with z the mean of q(z|x): (B, C, H, W), clamped to [0, 1]."""
        mean = self.encode(x)[0]
        params = decoded(self.decode, mean, x)
        self._check_params(params, x)
        check_decoded(mean, params)
        return self.likelihood.mean(params).clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        latent_shape: tuple[int, ...] | None = None,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``n`` new images (n, C, H, W): z is drawn from N(0, I), then x from p(x|z).

        Args:
            n: at least 1.
            latent_shape: the shape of the latents of one image; default: (d,), with the decoder's ``latent_dim`` for d.
            mean: give the mean of p(x|z) instead of a draw from it, as most papers show; not with an autoregressive
                decoder, which has to draw each pixel.
            generator: on any device; default: torch's global generator of the model's device.

        Raises:
            ValueError: ``latent_shape`` is missing or does not fit the decoder, ``mean`` is True for an autoregressive
                decoder, or an argument is out of range.
        """
        check_size("n", n)
        check_flag("mean", mean)
        if latent_shape is not None:
            check_sizes("latent_shape", latent_shape)
        autoregressive = isinstance(self.decoder, AutoregressiveDecoder)
        if autoregressive and mean:
            raise ValueError("mean: got True, but an autoregressive decoder has to draw each pixel to know the next")
        if autoregressive:  # its pixels are looked at one by one, without a check
            check_weights(self.decoder)
        like = next(self.decoder.parameters())
        z = _standard_normal((n, *(latent_shape or self._latent_shape())), like, generator)
        try:
            if autoregressive:
                with unchecked_values():  # otherwise values would be read from the device for every pixel
                    images = self._sample_by_pixel(z, generator)
                check_finite("likelihood", images)
                return images
            params = self.decode(z)
        except RuntimeError as error:
            if "allocate memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"n: got {n}, want fewer images at once: they do not fit into memory ({error})") from error
        except ValueError as error:
            if latent_shape is None or not str(error).startswith("z: "):
                raise
            raise ValueError(f"latent_shape: got {latent_shape}, want one that the decoder takes ({error})") from error
        check_finite("decoder", params)
        return self.likelihood.mean(params) if mean else self.likelihood.sample(params, generator)

    @torch.no_grad()
    def log_weights(
        self, x: Tensor, samples: int, *, generator: torch.Generator | None = None, batch_size: int = 1024
    ) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) for ``samples`` draws z from q(z|x) of each image, in nats.

        Args:
            samples: how many draws for each image.
            generator: on any device; default: torch's global generator of the model's device.
            batch_size: how many images are decoded at once, but at least one for each of x; no effect on the draws.

        Shapes:
            x: (B, C, H, W) in [0, 1] → (samples, B).

        Raises:
            ValueError: ``x`` has another shape, type or range, or another argument is out of range.
        """
        check_size("samples", samples)
        check_size("batch_size", batch_size)
        mean, log_variance = self.encode(x)
        noise = _standard_normal((samples, *mean.shape), mean, generator)
        parts = []
        for some in noise.split(max(1, batch_size // len(x))):
            z = mean + torch.exp(0.5 * log_variance) * some  # (s, B, *latent)
            # log p(z) − log q(z|x): the constants ½ log 2π of the two normals cancel
            log_ratio = (0.5 * (some.square() - z.square() + log_variance)).flatten(2).sum(2)
            images = x.expand(len(some), *x.shape).flatten(0, 1)
            params = decoded(self.decode, z.flatten(0, 1), images)
            self._check_params(params, images)
            check_decoded(z, params)
            parts.append(self.likelihood.log_prob(params, images).reshape(len(some), len(x)) + log_ratio)
        return torch.cat(parts)

    def _check_params(self, params: Tensor, x: Tensor) -> None:
        """The decoder gives the likelihood what it reads for images like x."""
        want = (len(x), x.shape[1] * self.likelihood.num_params, *x.shape[2:])
        if params.shape != want:
            raise ValueError(
                f"decoder: gave shape {tuple(params.shape)}, want {want}: {type(self.likelihood).__name__} reads "
                f"{self.likelihood.num_params} channels for each channel of x, {tuple(x.shape)}"
            )

    def _sample_by_pixel(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        decoder = self.decoder
        assert isinstance(decoder, AutoregressiveDecoder)
        size = decoder.context(z[:1]).shape[2:]
        x = torch.zeros(len(z), decoder.in_channels, *size, dtype=z.dtype, device=z.device)
        for row in range(size[0]):
            for column in range(size[1]):
                params = decoder(z, x)[:, :, row, column]
                x[:, :, row, column] = self.likelihood.sample(params, generator)
        return x

    def _latent_shape(self) -> tuple[int, ...]:
        holder = self.decoder.context if isinstance(self.decoder, AutoregressiveDecoder) else self.decoder
        dim = getattr(holder, "latent_dim", None)
        if not isinstance(dim, int):
            raise ValueError(
                f"latent_shape: got None, want the shape of one latent: {type(holder).__name__} has no latent_dim"
            )
        return (dim,)


def _per_image(values: Tensor) -> Tensor:
    """(B, *rest) → (B,), the sum over each image."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def _standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    check_generator("generator", generator)
    place = place_of(generator, like.device)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=place).to(like.device)

"""Variational autoencoders (chapter 02): latents that follow a distribution one can draw from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion._arguments import (
    check_between,
    check_finite,
    check_flag,
    check_generator,
    check_images,
    check_instance,
    check_module,
    check_number,
    check_same_shape,
    check_size,
    check_sizes,
    check_tensor,
    decoded,
    unchecked_values,
)
from companion._devices import as_float64, place_of
from companion.backbones.masked import AutoregressiveDecoder
from companion.checkpoint import Configured
from companion.likelihoods import Likelihood


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z = mean + standard deviation · noise: a draw from N(mean, exp(log_variance)) when the noise is one from N(0, I),
    and differentiable in both (Kingma & Welling 2014, eq. 10).

    Shapes:
        all three the same; the noise differs for every image and every latent number.

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
    """KL(N(mean, variance) ‖ N(0, 1)) of every latent number, in nats: ½(mean² + variance − 1 − log variance)
    (Kingma & Welling 2014, appendix B).

    Shapes:
        mean, log_variance: the same → the same; sum over the latents for the KL of an image.

    Raises:
        ValueError: the shapes differ, or a number is NaN or infinite.
    """
    check_tensor("mean", mean, shape=("*axes",), finite=True)
    check_same_shape("log_variance", log_variance, "mean", mean)
    check_finite("log_variance", log_variance)
    # expm1: near variance 1 the difference variance − 1 would lose its digits
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """The evidence lower bound in nats per image: log p(x|z) − KL, summed within an image, averaged over the batch
    (Kingma & Welling 2014, eq. 3).

    Shapes:
        log_likelihood: (B,) or (B, *pixels), kl: (B,) or (B, *latent) → 0-dim.

    Raises:
        ValueError: the two are of different batches, or a number is NaN or infinite.
    """
    check_tensor("log_likelihood", log_likelihood, shape=("B", "*pixels"), finite=True)
    check_tensor("kl", kl, shape=("B", "*latent"), finite=True)
    if len(log_likelihood) != len(kl):
        raise ValueError(
            f"kl: got shape {tuple(kl.shape)} beside log_likelihood of shape {tuple(log_likelihood.shape)}, "
            "want both to begin with the same batch axis"
        )
    return (_per_image(log_likelihood) - _per_image(kl)).mean()


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log of the mean importance weight: a lower bound of log p(x) in expectation, the tighter the more samples
    (Burda et al. 2016, eq. 8).

    Args:
        log_weights: log p(x, z) − log q(z|x) for each sample z of each image, as ``VAE.log_weights`` gives them.

    Shapes:
        log_weights: (samples, B) → (B,), nats per image.

    Raises:
        ValueError: another number of axes, no samples, or NaN.
    """
    check_tensor("log_weights", log_weights, shape=("samples", "B"))
    check_between("log_weights", log_weights, -math.inf, math.inf)  # a sample may weigh nothing
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def active_units(mean: Tensor, *, threshold: float = 0.01) -> int:
    """How many latent numbers the encoder uses: those whose posterior mean has a variance over the data above
    ``threshold`` (Burda et al. 2016, section 5.2).

    Shapes:
        mean: (N, *latent), the posterior means of N images.

    Raises:
        ValueError: fewer than two images, which have no variance; NaN or infinity; or ``threshold`` is negative.
    """
    check_tensor("mean", mean, finite=True)
    check_number("threshold", threshold, least=0)
    if mean.ndim < 2 or len(mean) < 2 or mean.numel() == 0:
        raise ValueError(f"mean: got shape {tuple(mean.shape)}, want (N, *latent) with at least two images")
    return int((as_float64(mean.detach().flatten(1)).var(0) > threshold).sum())


def bits_per_dimension(log_prob: Tensor, dimensions: int) -> Tensor:
    """Nats per image → bits per pixel and channel: −log p / (dimensions · log 2).

    It means bits only where ``log_prob`` is that of a discrete likelihood (or a bound of it).

    Raises:
        ValueError: ``dimensions`` (pixels times channels of an image) is no whole number of at least 1, or ``log_prob``
            is NaN.
    """
    check_tensor("log_prob", log_prob, shape=("*axes",))
    check_between("log_prob", log_prob, -math.inf, math.inf)  # of an impossible image the bits are infinite
    check_size("dimensions", dimensions)
    return -log_prob / (dimensions * math.log(2))


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
    """An autoencoder whose encoder gives a distribution q(z|x) = N(mean, variance) instead of a point, kept near the
    prior N(0, I), so that new images are decoded draws from the prior (Kingma & Welling 2014).

    Args:
        encoder: x → means and log-variances, one after the other along axis 1: ``Encoder(2 * d)``, or a
            ``ResNetEncoder`` with 2·D channels for a grid of latents.
        decoder: z → the likelihood's parameters: ``Decoder(d, out_channels=C * likelihood.num_params)``, a
            ``ResNetDecoder``, or an ``AutoregressiveDecoder``, which is given x as well.
        likelihood: what those parameters mean, from ``companion.likelihoods``.
        beta: β_KL, the weight of the KL term in the loss (Higgins et al. 2017, eq. 4); 1 trains the ELBO.

    Shapes:
        x: (B, C, H, W) → ``VAEOutput``.

    Raises:
        ValueError: an argument is of another kind, ``beta`` is negative, the encoder's channels cannot be halved, the
            decoder does not take the latents, or ``x`` is no batch of images in [0, 1].
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
        """Mean and log-variance of q(z|x), each (B, *latent)."""
        check_images("x", x)
        both: Tensor = self.encoder(x)
        if both.ndim < 2 or both.shape[1] % 2:
            raise ValueError(
                f"encoder: it gave shape {tuple(both.shape)}, want (B, 2·d, …): as many means as log-variances"
            )
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The parameters of p(x|z), (B, C·num_params, H, W); an autoregressive decoder reads earlier pixels of x."""
        check_tensor("z", z, shape=("B", "*latent"), finite=True)
        if not isinstance(self.decoder, AutoregressiveDecoder):
            params: Tensor = self.decoder(z)
        elif x is None:
            raise ValueError("x: got None, want the images whose earlier pixels the autoregressive decoder reads")
        else:
            check_images("x", x)
            params = self.decoder(z, x)
        return params

    def forward(self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> VAEOutput:
        """``noise``, shaped like the mean, decides z; without it, it is drawn from ``generator`` or torch's own."""
        mean, log_variance = self.encode(x)
        check_generator("generator", generator)
        if noise is not None:
            check_tensor("noise", noise, finite=True)
        else:
            noise = _standard_normal(mean.shape, mean, generator)
        with unchecked_values():  # NaN goes on to the loss, which fit reports with its step
            z = reparameterize(mean, log_variance, noise)
            params = decoded(self.decode, z, x)
            kl = kl_divergence(mean, log_variance)  # (B, *latent)
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
        """The mean of p(x|z) at the mean of q(z|x), cut to [0, 1]."""
        params = decoded(self.decode, self.encode(x)[0], x)
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
        """``n`` new images (n, C, H, W): z from N(0, I), then x from p(x|z).

        Args:
            n: at least 1.
            latent_shape: shape of one latent; default: (d,) as the decoder's ``latent_dim`` says.
            mean: give the mean of p(x|z) in place of a draw, as most papers print; no autoregressive decoder has one.
            generator: of any device; default: torch's own on the model's device.

        Raises:
            ValueError: ``latent_shape`` is needed or does not fit the decoder, ``mean`` is asked of an autoregressive
                decoder, or an argument is out of range.
        """
        check_size("n", n)
        check_flag("mean", mean)
        if latent_shape is not None:
            check_sizes("latent_shape", latent_shape)
        autoregressive = isinstance(self.decoder, AutoregressiveDecoder)
        if autoregressive and mean:
            raise ValueError("mean: got True, but an autoregressive decoder has to draw each pixel to know the next")
        like = next(self.decoder.parameters())
        z = _standard_normal((n, *(latent_shape or self._latent_shape())), like, generator)
        try:
            if autoregressive:
                with unchecked_values():  # once a pixel
                    return self._sample_by_pixel(z, generator)
            params = self.decode(z)
        except ValueError as error:
            if latent_shape is None or not str(error).startswith("z: "):
                raise
            raise ValueError(f"latent_shape: got {latent_shape}, want one that the decoder takes ({error})") from error
        return self.likelihood.mean(params) if mean else self.likelihood.sample(params, generator)

    @torch.no_grad()
    def log_weights(
        self, x: Tensor, samples: int, *, generator: torch.Generator | None = None, batch_size: int = 1024
    ) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) for ``samples`` draws z from q(z|x) of each image. (samples, B), nats.

        About ``batch_size`` images are decoded at once (at least one for each of x); the draws do not depend on it.

        Raises:
            ValueError: ``x`` is no batch of images in [0, 1], no samples, or another argument is out of range.
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
            parts.append(self.likelihood.log_prob(params, images).reshape(len(some), len(x)) + log_ratio)
        return torch.cat(parts)

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
    """(B, *rest) → (B,), summed."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def _standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    check_generator("generator", generator)
    place = place_of(generator, like.device)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=place).to(like.device)

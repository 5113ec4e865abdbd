"""Autoencoders (chapter 01): an encoder and a decoder with a bottleneck between them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion._arguments import (
    check_decoded,
    check_finite,
    check_fits,
    check_images,
    check_module,
    check_rebuilt,
    check_same_shape,
    check_size,
    check_tensor,
    check_whole,
    decoded,
    encoded,
)
from companion._devices import widest_float
from companion._pytrees import pytree
from companion.configured import Configured


class Encoder(Configured, nn.Module):
    """Two strided convolutions and a linear layer: image → a vector of ``latent_dim`` numbers.

    Shapes:
        x: (B, in_channels, S, S) → z (B, latent_dim), where S is ``image_size``.

    Raises:
        ValueError: a size is no whole number of at least 1, ``image_size`` is no multiple of 4, or ``x`` has another
            shape or type.
    """

    def __init__(self, latent_dim: int, *, in_channels: int = 1, hidden: int = 32, image_size: int = 28) -> None:
        super().__init__()
        _check_sizes(image_size, latent_dim=latent_dim, in_channels=in_channels, hidden=hidden)
        self.image_shape = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1)
        self.to_latent = nn.Linear(2 * hidden * (image_size // 4) ** 2, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", *self.image_shape))
        check_fits("x", x, self.conv1.weight)
        h = self.conv1(x).relu()  # (B, hidden, S/2, S/2)
        h = self.conv2(h).relu()  # (B, 2 hidden, S/4, S/4)
        return self.to_latent(h.flatten(1))  # (B, latent_dim)


class Decoder(Configured, nn.Module):
    """The encoder's mirror: a vector → an image, by a linear layer and two transposed convolutions.

    The kernel size (4) is a multiple of the stride (2), so that every pixel is covered equally often and no
    checkerboard pattern appears.

    Shapes:
        z: (B, latent_dim) → (B, out_channels, S, S), not limited to [0, 1].

    Raises:
        ValueError: a size is no whole number of at least 1, ``image_size`` is no multiple of 4, or ``z`` has another
            shape or type.
    """

    def __init__(self, latent_dim: int, *, out_channels: int = 1, hidden: int = 32, image_size: int = 28) -> None:
        super().__init__()
        _check_sizes(image_size, latent_dim=latent_dim, out_channels=out_channels, hidden=hidden)
        self.latent_dim = latent_dim
        self.grid_shape = (2 * hidden, image_size // 4, image_size // 4)
        self.from_latent = nn.Linear(latent_dim, 2 * hidden * (image_size // 4) ** 2)
        self.conv1 = nn.ConvTranspose2d(2 * hidden, hidden, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(hidden, out_channels, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.latent_dim))
        check_fits("z", z, self.from_latent.weight)
        h = self.from_latent(z).relu().unflatten(1, self.grid_shape)  # (B, 2 hidden, S/4, S/4)
        h = self.conv1(h).relu()  # (B, hidden, S/2, S/2)
        return self.conv2(h)  # (B, out_channels, S, S)


@pytree
@dataclass(frozen=True)
class AutoencoderOutput:
    """What an autoencoder returns.

    Shapes:
        reconstruction: (B, C, H, W); z: the latents, (B, *latent); loss: 0-dim, the MSE over pixels, to be minimised.
    """

    reconstruction: Tensor
    z: Tensor
    loss: Tensor


class Autoencoder(Configured, nn.Module):
    """An encoder and a decoder that are trained together to reconstruct the image (Hinton & Salakhutdinov 2006).

    Args:
        encoder: images (B, C, H, W) → latents of any shape.
        decoder: those latents → images (B, C, H, W).

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``AutoencoderOutput``.

    Raises:
        ValueError: ``x`` has another shape, type or range; or the decoder does not take the latents, or gives images of
            another size; ``reconstruct`` got NaN from them.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        check_module("encoder", encoder)
        check_module("decoder", decoder)
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> AutoencoderOutput:
        check_images("x", x)
        z = encoded(self.encoder, x)
        reconstruction = decoded(self.decoder, z)
        check_rebuilt(reconstruction, z, x)
        return AutoencoderOutput(reconstruction, z, (reconstruction - x).square().mean())

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The images after the bottleneck, (B, C, H, W), clamped to [0, 1]."""
        check_images("x", x)
        z = encoded(self.encoder, x)
        out: Tensor = decoded(self.decoder, z)
        check_rebuilt(out, z, x)
        check_decoded(z, out)
        return out.clamp(0, 1)


@torch.no_grad()
def pca_reconstruct(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    """The best linear autoencoder: ``x`` rebuilt from its ``d`` principal components (Eckart & Young 1936).

    Mean and directions come from ``x_train`` alone.

    Shapes:
        x_train: (N, *image), x: (B, *image), floating point → (B, *image).

    Raises:
        ValueError: the images differ in shape or type, a number is NaN or infinite, or there are fewer than ``d``
            components: an image has one for each of its numbers, and N training images have N − 1.
    """
    check_tensor("x_train", x_train, shape=("N", "*image"), finite=True)
    check_tensor("x", x, shape=("B", "*image"), finite=True)
    if x.shape[1:] != x_train.shape[1:]:
        raise ValueError(f"x: got images of {tuple(x.shape[1:])}, want {tuple(x_train.shape[1:])} as in x_train")
    check_fits("x", x, x_train, of="x_train")
    check_whole("d", d, most=x_train[0].numel())
    if d >= len(x_train):
        raise ValueError(
            f"d: got {d}, want at most {len(x_train) - 1}: around their mean, {len(x_train)} images of x_train span "
            "no more directions"
        )
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):  # eigenvectors are computed in float32 at the least
        x_train, x = x_train.float(), x.float()
    mean = x_train.flatten(1).mean(0)
    centred = x_train.flatten(1) - mean  # (N, F)
    basis = _directions(centred, d).to(centred.dtype)
    z = (x.flatten(1) - mean) @ basis  # (B, d)
    return (z @ basis.T + mean).reshape(x.shape).to(dtype)


def _directions(centred: Tensor, d: int) -> Tensor:
    """(N, F) → (F, d), orthonormal columns: the directions in which the vectors vary most.

    They are the eigenvectors of the covariance (F, F). Of fewer vectors than numbers, those of the small matrix (N, N)
    of their products say how to combine the vectors into the same directions. Both have eigenvalues of 0, with which
    float32 need not converge.
    """
    widest = widest_float(centred.device)
    if len(centred) > centred.shape[1]:
        _, directions = torch.linalg.eigh((centred.T @ centred / len(centred)).to(widest))  # least variance first
        return directions[:, -d:]
    vectors = centred.to(widest)
    _, combinations = torch.linalg.eigh(vectors @ vectors.T)  # (N, N)
    return torch.linalg.qr(vectors.T @ combinations[:, -d:]).Q


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """``steps`` points at equal distances on the straight line from ``start`` to ``end``, both included.

    Shapes:
        start, end: the same shape (*latent) → (steps, *latent).

    Raises:
        ValueError: the shapes differ, a number is NaN or infinite, or ``steps`` is less than 2.
    """
    check_tensor("start", start, shape=("*latent",), finite=True)
    check_same_shape("end", end, "start", start)
    check_fits("end", end, start, of="start")
    check_finite("end", end)
    check_size("steps", steps, least=2)  # the two ends
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    t = t.reshape(-1, *[1] * start.ndim)  # (steps, 1, …, 1)
    return (1 - t) * start + t * end


def _check_sizes(image_size: int, **sizes: int) -> None:
    for name, size in sizes.items():
        check_size(name, size)
    check_size("image_size", image_size, most=4096)
    if image_size % 4:
        nearest = " or ".join(str(s) for s in (image_size // 4 * 4, image_size // 4 * 4 + 4) if s > 0)
        raise ValueError(f"image_size: got {image_size}, want a multiple of 4; the nearest: {nearest}")

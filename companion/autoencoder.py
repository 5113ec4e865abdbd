"""Autoencoders (chapter 01): squeeze an image through a bottleneck and rebuild it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.checkpoint import Configured
from companion.metrics import mse


class Encoder(Configured, nn.Module):
    """Two strided convolutions and a linear layer: image → a vector of ``latent_dim`` numbers.

    Shapes:
        x: (B, in_channels, S, S) → z (B, latent_dim), where S is ``image_size``.

    Raises:
        ValueError: ``image_size`` is no multiple of 4, or ``x`` has another shape.
    """

    def __init__(self, latent_dim: int, *, in_channels: int = 1, hidden: int = 32, image_size: int = 28) -> None:
        super().__init__()
        _check_size(image_size)
        self.image_shape = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1)
        self.to_latent = nn.Linear(2 * hidden * (image_size // 4) ** 2, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}, want (B, {', '.join(map(str, self.image_shape))})")
        h = self.conv1(x).relu()  # (B, hidden, S/2, S/2)
        h = self.conv2(h).relu()  # (B, 2 hidden, S/4, S/4)
        z: Tensor = self.to_latent(h.flatten(1))  # (B, latent_dim)
        return z


class Decoder(Configured, nn.Module):
    """The encoder's mirror: a vector → an image, by a linear layer and two transposed convolutions.

    The kernel (4) is a multiple of the stride (2), so every pixel is covered equally often: no checkerboard.

    Shapes:
        z: (B, latent_dim) → (B, out_channels, S, S). The output is not squashed into [0, 1].

    Raises:
        ValueError: ``image_size`` is no multiple of 4, or ``z`` has another shape.
    """

    def __init__(self, latent_dim: int, *, out_channels: int = 1, hidden: int = 32, image_size: int = 28) -> None:
        super().__init__()
        _check_size(image_size)
        self.latent_dim = latent_dim
        self.grid_shape = (2 * hidden, image_size // 4, image_size // 4)
        self.from_latent = nn.Linear(latent_dim, 2 * hidden * (image_size // 4) ** 2)
        self.conv1 = nn.ConvTranspose2d(2 * hidden, hidden, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(hidden, out_channels, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z: got shape {tuple(z.shape)}, want (B, {self.latent_dim})")
        h = self.from_latent(z).relu().unflatten(1, self.grid_shape)  # (B, 2 hidden, S/4, S/4)
        h = self.conv1(h).relu()  # (B, hidden, S/2, S/2)
        x_hat: Tensor = self.conv2(h)  # (B, out_channels, S, S)
        return x_hat


@dataclass(frozen=True)
class AutoencoderOutput:
    """What an autoencoder returns: the rebuilt images, the latents, and the loss to minimise (MSE over pixels)."""

    reconstruction: Tensor
    z: Tensor
    loss: Tensor


class Autoencoder(Configured, nn.Module):
    """An encoder and a decoder trained together to give the image back (Hinton & Salakhutdinov 2006).

    Args:
        encoder: images (B, C, H, W) → latents of any shape.
        decoder: those latents → images (B, C, H, W).

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``AutoencoderOutput``.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> AutoencoderOutput:
        z = self.encoder(x)
        reconstruction = self.decoder(z)
        return AutoencoderOutput(reconstruction, z, mse(reconstruction, x))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The images after the bottleneck, cut to [0, 1] so that they can be shown."""
        out: Tensor = self.decoder(self.encoder(x))
        return out.clamp(0, 1)


@torch.no_grad()
def pca_reconstruct(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    """The best linear autoencoder: ``x`` rebuilt from its ``d`` principal components (Eckart & Young 1936).

    Mean and directions come from ``x_train`` alone.

    Shapes:
        x_train: (N, *image), x: (B, *image), floating point → (B, *image).

    Raises:
        ValueError: the images differ in shape, or ``d`` is not between 1 and the numbers in an image.
    """
    if x.shape[1:] != x_train.shape[1:]:
        raise ValueError(f"x: got images of {tuple(x.shape[1:])}, want {tuple(x_train.shape[1:])} as in x_train")
    if not 1 <= d <= x_train[0].numel():
        raise ValueError(f"d: got {d}, want 1 to {x_train[0].numel()}, the numbers in an image")
    mean = x_train.flatten(1).mean(0)
    centred = x_train.flatten(1) - mean  # (N, F)
    covariance = centred.T @ centred / len(centred)  # (F, F)
    _, directions = torch.linalg.eigh(covariance)  # columns, least variance first
    basis = directions[:, -d:]  # (F, d)
    z = (x.flatten(1) - mean) @ basis  # (B, d)
    out: Tensor = (z @ basis.T + mean).reshape(x.shape)
    return out


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points on the straight line from ``start`` to ``end``, both included.

    Shapes:
        start, end: the same shape (*latent) → (steps, *latent).

    Raises:
        ValueError: the shapes differ, or fewer than two steps.
    """
    if start.shape != end.shape:
        raise ValueError(f"end: got shape {tuple(end.shape)}, want that of start, {tuple(start.shape)}")
    if steps < 2:
        raise ValueError(f"steps: got {steps}, want at least 2 (the two ends)")
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    t = t.reshape(-1, *[1] * start.ndim)  # (steps, 1, …, 1)
    return (1 - t) * start + t * end


def _check_size(image_size: int) -> None:
    if image_size < 4 or image_size % 4:
        nearest = " or ".join(str(s) for s in (image_size // 4 * 4, image_size // 4 * 4 + 4) if s > 0)
        raise ValueError(f"image_size: got {image_size}, want a multiple of 4; the nearest: {nearest}")

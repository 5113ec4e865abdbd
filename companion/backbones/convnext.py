"""ConvNeXt encoders and decoders: 7×7 convolutions of single channels, and gated MLPs between them (chapter 10)."""

from math import prod
from typing import Any

from torch import Tensor, nn

from companion._arguments import check_fits, check_flag, check_size, check_tensor
from companion.backbones._factors import check_channels, check_image, pair, stages, window
from companion.backbones.blocks import RMSNorm, SwiGLU
from companion.backbones.vit import TransformerBlock
from companion.configured import Configured


class ConvNeXtBlock(nn.Module):
    """x + depthwise7×7(norm(x)), then x + SwiGLU(norm(x)), as a transformer block with a convolution for attention.

    The depthwise convolution looks around within each channel; the MLP mixes the channels at each position.

    Adapted from Liu et al. (2022, section 2 and figure 4). There one residual branch has it all, depthwise convolution,
    LayerNorm, MLP with GELU, and a learned layer scale that starts near 0. Here are two branches with an RMSNorm each,
    a SwiGLU, and no layer scale.

    Shapes:
        x: (B, channels, H, W) → the same.

    Raises:
        ValueError: ``channels`` is out of range; ``x`` has another shape or type.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_size("channels", channels, most=2**14)  # the MLP has the square of that
        self.channels = channels
        self.norm1, self.norm2 = RMSNorm(channels, axis=1), RMSNorm(channels, axis=1)
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)  # 49 weights a channel
        self.mlp = SwiGLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.channels, "H", "W"))
        check_fits("x", x, self.depthwise.weight)
        x = x + self.depthwise(self.norm1(x))  # (64, 128, 8, 8)
        at_each = self.norm2(x).movedim(1, -1)  # (64, 8, 8, 128): the MLP works on the last axis
        return x + self.mlp(at_each).movedim(-1, 1)


class ConvNeXtEncoder(Configured, nn.Module):
    """Image → latent grid, ``factor`` times smaller along each axis.

    One strided convolution per prime factor of f as in ``ResNetEncoder``, and blocks after each, so that they work at
    every resolution below the image's own. All weights start as torch makes them.

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: channels in between.
        factor: f, or (f_height, f_width).
        num_blocks: ConvNeXt blocks at each resolution.
        attention: whether a transformer block follows at the smallest one, so that every latent sees the whole image.
        heads: of that attention; they divide ``hidden``.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, H / f, W / f).

    Raises:
        ValueError: an argument is out of range; ``x`` has another type or number of channels, or a size that ``factor``
            does not divide (with the nearest that work).
    """

    def __init__(
        self,
        in_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        attention: bool = False,
        heads: int = 4,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, in_channels=in_channels, dim=dim, hidden=hidden)
        self.in_channels, self.factor = in_channels, pair(factor)
        layers: list[nn.Module] = []
        for i, stride in enumerate(stages(self.factor) or [(1, 1)]):
            layers += [RMSNorm(hidden, axis=1)] if i else []
            layers += [nn.Conv2d(hidden if i else in_channels, hidden, *_shape(stride))]
            layers += [ConvNeXtBlock(hidden) for _ in range(num_blocks)]
        layers += _attention(hidden, heads, attention)
        layers += [RMSNorm(hidden, axis=1), nn.Conv2d(hidden, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.in_channels, self.factor)
        check_fits("x", x, next(self.parameters()))
        return self.layers(x)  # (64, 3, 32, 32) → (64, 128, 16, 16) → (64, 128, 8, 8) → (64, 64, 8, 8)


class ConvNeXtDecoder(Configured, nn.Module):
    """Latent grid → image: the encoder's mirror, with transposed convolutions.

    Weights start as torch makes them, except for the last convolution's. Torch draws those of a transposed convolution
    from ±1/√(output channels · kernel area); with one or three output channels, images start with a standard deviation
    of more than 1. Here they come from ±1/√n, with n the numbers that a pixel is computed from.

    Args:
        out_channels: channels of the image.
        dim, hidden, factor, num_blocks, attention, heads: see :class:`ConvNeXtEncoder`.

    Shapes:
        z: (B, dim, h, w) → (B, out_channels, f·h, f·w). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range; ``z`` is not (B, dim, h, w), or of another type than the model.
    """

    def __init__(
        self,
        out_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        attention: bool = False,
        heads: int = 4,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, out_channels=out_channels, dim=dim, hidden=hidden)
        self.dim = dim
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden, 1), *_attention(hidden, heads, attention)]
        *strides, last = (stages(pair(factor)) or [(1, 1)])[::-1]
        for stride in strides:
            layers += [ConvNeXtBlock(hidden) for _ in range(num_blocks)]
            layers += [RMSNorm(hidden, axis=1), nn.ConvTranspose2d(hidden, hidden, *_shape(stride))]
        layers += [ConvNeXtBlock(hidden) for _ in range(num_blocks)]
        layers += [RMSNorm(hidden, axis=1), _image_layer(hidden, out_channels, last)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.dim, "h", "w"))
        check_fits("z", z, next(self.parameters()))
        return self.layers(z)  # (64, 64, 8, 8) → (64, 128, 8, 8) → (64, 128, 16, 16) → (64, 3, 32, 32)


class _OverGrid(nn.Module):
    """A transformer block over the positions of a grid: (B, C, h, w) → the same."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.block = TransformerBlock(hidden, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (64, 128, 8, 8) → (64, 64, 128)
        return self.block(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


def _attention(hidden: int, heads: int, wanted: bool) -> list[nn.Module]:
    check_flag("attention", wanted)
    check_size("heads", heads)
    return [_OverGrid(hidden, heads)] if wanted else []


def _image_layer(hidden: int, out_channels: int, stride: tuple[int, ...]) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(hidden, out_channels, *_shape(stride))
    bound = (prod(stride) / (hidden * prod(layer.kernel_size))) ** 0.5  # a pixel gets kernel / stride of each channel
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


def _shape(stride: tuple[int, ...]) -> Any:
    """Kernel, stride and padding, in the order in which torch's convolutions take them."""
    kernel, padding = window(stride)
    return kernel, stride, padding

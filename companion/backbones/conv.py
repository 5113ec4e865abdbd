"""Convolutional encoders and decoders: the strided ResNet of the VQ-VAE papers, for images; or, with the convolutions
of one or three dimensions in place of those of two, for sounds and video."""

from typing import Any

from torch import Tensor, nn

from companion._arguments import check_fits, check_size, check_tensor, check_whole
from companion.backbones._factors import LETTERS, check_channels, check_image, each_axis, stages, window
from companion.configured import Configured

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POSITIONS = {1: ("t",), 2: ("h", "w"), 3: ("t", "h", "w")}


def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Length of one spatial axis after a convolution: ⌊(size + 2·padding − kernel) / stride⌋ + 1.

    Raises:
        ValueError: an argument is no whole number of at least 1 (``padding``: 0), or the kernel is longer than the
            padded axis, so there is no output at all.
    """
    check_whole("size", size)
    check_whole("kernel", kernel)
    check_whole("stride", stride)
    check_whole("padding", padding, least=0)
    if kernel > size + 2 * padding:
        raise ValueError(f"kernel: got {kernel}, want at most size + 2·padding = {size + 2 * padding}")
    return (size + 2 * padding - kernel) // stride + 1


class ResidualBlock(nn.Module):
    """x + conv1×1(relu(conv3×3(relu(x)))) (van den Oord et al. 2017, section 4.1).

    The ReLUs are not in place: an in-place one would change ``x`` before the sum, and the skip path with it.

    Shapes:
        x: (B, channels, H, W) → the same; with ``dims`` 1 (B, channels, T), with 3 (B, channels, T, H, W).
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        check_size("channels", channels, most=2**13)  # a convolution has the square of that
        check_whole("dims", dims, most=3)
        self.channels, self.dims = channels, dims
        self.branch = nn.Sequential(
            nn.ReLU(),
            _CONV[dims](channels, channels, 3, padding=1),
            nn.ReLU(),
            _CONV[dims](channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.channels, *LETTERS[self.dims]))
        check_fits("x", x, next(self.parameters()))
        return x + self.branch(x)


class ResNetEncoder(Configured, nn.Module):
    """Image → latent grid, ``factor`` times smaller along each axis.

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: channels in between.
        factor: f, or one for each axis, (f_height, f_width); each is reached by one strided convolution per prime
            factor.
        num_blocks: residual blocks at the smallest size.
        dims: 2 for images; 1 for sounds and other rows of numbers, 3 for video.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, H / f, W / f); with ``dims`` 1 (B, in_channels, T) → (B, dim, T / f), with
        3 (B, in_channels, T, H, W) → (B, dim, T / f, H / f, W / f).

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
        factor: int | tuple[int, ...] = 4,
        num_blocks: int = 2,
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, in_channels=in_channels, dim=dim, hidden=hidden)
        check_whole("dims", dims, most=3)
        conv = _CONV[dims]
        self.factor = each_axis(factor, dims)
        self.in_channels, self.dims = in_channels, dims
        layers: list[nn.Module] = []
        channels = in_channels
        for stride in stages(self.factor):
            kernel, padding = window(stride)
            layers += [conv(channels, hidden, kernel, stride, padding), nn.ReLU()]
            channels = hidden
        layers += [conv(channels, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden, dims=dims) for _ in range(num_blocks)]
        layers += [nn.ReLU(), conv(hidden, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.in_channels, self.factor)
        check_fits("x", x, next(self.parameters()))
        return self.layers(x)


class ResNetDecoder(Configured, nn.Module):
    """Latent grid → image: the encoder's mirror, with transposed convolutions.

    Shapes:
        z: (B, dim, h, w) → (B, out_channels, f·h, f·w); with ``dims`` 1 (B, dim, t) → (B, out_channels, f·t), with 3
        (B, dim, t, h, w) → (B, out_channels, f·t, f·h, f·w). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or is of another type than the model.
    """

    def __init__(
        self,
        out_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, ...] = 4,
        num_blocks: int = 2,
        dims: int = 2,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, out_channels=out_channels, dim=dim, hidden=hidden)
        check_whole("dims", dims, most=3)
        self.dim, self.dims = dim, dims
        layers: list[nn.Module] = [_CONV[dims](dim, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden, dims=dims) for _ in range(num_blocks)]
        strides = stages(each_axis(factor, dims))[::-1]
        for i, stride in enumerate(strides):
            kernel, padding = window(stride)
            channels = out_channels if i == len(strides) - 1 else hidden
            layers += [nn.ReLU(), _TRANSPOSED[dims](hidden, channels, kernel, stride, padding)]
        if not strides:
            layers += [nn.ReLU(), _CONV[dims](hidden, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.dim, *_POSITIONS[self.dims]))
        check_fits("z", z, next(self.parameters()))
        return self.layers(z)

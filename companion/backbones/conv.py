"""Convolutional encoders and decoders: the strided ResNet of the VQ-VAE papers."""

from torch import Tensor, nn

from companion._arguments import check_fits, check_size, check_tensor, check_whole
from companion.backbones._factors import check_channels, check_image, pair, stages, window
from companion.configured import Configured


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
        x: (B, channels, H, W) → the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_size("channels", channels, most=2**13)  # a convolution has the square of that
        self.channels = channels
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.channels, "H", "W"))
        check_fits("x", x, next(self.parameters()))
        return x + self.branch(x)


class ResNetEncoder(Configured, nn.Module):
    """Image → latent grid, ``factor`` times smaller along each axis.

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: channels in between.
        factor: f, or (f_height, f_width); each is reached by one strided convolution per prime factor.
        num_blocks: residual blocks at the smallest size.

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
    ) -> None:
        super().__init__()
        check_channels(num_blocks, in_channels=in_channels, dim=dim, hidden=hidden)
        self.factor = pair(factor)
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        channels = in_channels
        for stride in stages(self.factor):
            kernel, padding = window(stride)
            layers += [nn.Conv2d(channels, hidden, kernel, stride, padding), nn.ReLU()]
            channels = hidden
        layers += [nn.Conv2d(channels, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden) for _ in range(num_blocks)]
        layers += [nn.ReLU(), nn.Conv2d(hidden, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.in_channels, self.factor)
        check_fits("x", x, next(self.parameters()))
        return self.layers(x)


class ResNetDecoder(Configured, nn.Module):
    """Latent grid → image: the encoder's mirror, with transposed convolutions.

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
    ) -> None:
        super().__init__()
        check_channels(num_blocks, out_channels=out_channels, dim=dim, hidden=hidden)
        self.dim = dim
        layers: list[nn.Module] = [nn.Conv2d(dim, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden) for _ in range(num_blocks)]
        strides = stages(pair(factor))[::-1]
        for i, stride in enumerate(strides):
            kernel, padding = window(stride)
            channels = out_channels if i == len(strides) - 1 else hidden
            layers += [nn.ReLU(), nn.ConvTranspose2d(hidden, channels, kernel, stride, padding)]
        if not strides:
            layers += [nn.ReLU(), nn.Conv2d(hidden, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.dim, "h", "w"))
        check_fits("z", z, next(self.parameters()))
        return self.layers(z)

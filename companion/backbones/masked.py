"""Masked convolutions, and the decoder that writes an image pixel by pixel (studies 02b and 07b)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    DEEPEST,
    check_fits,
    check_flag,
    check_module,
    check_size,
    check_sizes,
    check_tensor,
    check_whole,
)
from companion.configured import Configured

_WIDEST = 1023  # of a window


def raster_mask(kernel: int | tuple[int, int], *, centre: bool) -> Tensor:
    """Ones where a window may look: at positions before its own in raster order (row by row, left to right).

    Args:
        kernel: size of the window, odd, as one number or (height, width).
        centre: whether the window may look at its own position too.

    Returns:
        (height, width), float32.

    Raises:
        ValueError: a size is even or not positive.
    """
    if isinstance(kernel, Sequence):
        check_sizes("kernel", kernel, length=2, most=_WIDEST)
        height, width = kernel
    else:
        check_whole("kernel", kernel, most=_WIDEST)
        height = width = kernel
    check_flag("centre", centre)
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"kernel: got {kernel}, want odd sizes, so that a window has a centre")
    before = torch.arange(height * width) < height * width // 2 + int(centre)
    return before.float().reshape(height, width)


class MaskedConv2d(Configured, nn.Conv2d):
    """A convolution whose windows see no position after their own in raster order (van den Oord et al. 2016,
    Pixel RNN, section 3.4).

    Padding keeps the size. A first layer (``centre=False``, mask A) must not see the position it predicts; later ones
    may (``centre=True``, mask B), because what stands there by then comes from earlier positions only. Stacked layers
    leave a blind spot to the upper right (van den Oord et al. 2016, Gated PixelCNN, figure 1): they never see too much,
    and not quite all they might.

    Shapes:
        x: (B, in_channels, H, W) → (B, out_channels, H, W).

    Raises:
        ValueError: an argument is out of range, or ``x`` has another shape or type.
    """

    mask: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], *, centre: bool, bias: bool = True
    ) -> None:
        check_size("in_channels", in_channels)
        check_size("out_channels", out_channels)
        check_flag("bias", bias)
        mask = raster_mask(kernel, centre=centre)
        height, width = mask.shape
        super().__init__(in_channels, out_channels, (height, width), padding=(height // 2, width // 2), bias=bias)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        check_fits("x", x, self.weight)
        return functional.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class AutoregressiveDecoder(Configured, nn.Module):
    """A decoder that also reads the earlier pixels: p(x|z) = ∏ᵢ p(xᵢ | x₁ … xᵢ₋₁, z), in raster order.

    z becomes features of the image's size, which are added to those of a masked convolution over x; masked residual
    layers follow. All channels of one pixel are predicted at once, from earlier pixels only.

    Args:
        context: z → features (B, hidden, H, W), for example ``Decoder(d, out_channels=hidden)`` or a ``ResNetDecoder``.
        out_channels: image channels × the likelihood's ``num_params``.
        in_channels: image channels.
        hidden: channels of the features.
        kernel: window of the first layer; the later ones have 3 × 3.
        layers: masked residual layers after the first.

    Shapes:
        z: latents as ``context`` takes them, x: (B, in_channels, H, W) → (B, out_channels, H, W). The output at a pixel
        depends on z and on the pixels before it only.

    Raises:
        ValueError: an argument is out of range, ``context`` gives features of another shape, or ``x`` has another shape
            than those features.
    """

    def __init__(
        self,
        context: nn.Module,
        out_channels: int = 1,
        *,
        in_channels: int = 1,
        hidden: int = 32,
        kernel: int = 7,
        layers: int = 2,
    ) -> None:
        super().__init__()
        check_module("context", context)
        for name, size in (("out_channels", out_channels), ("in_channels", in_channels), ("hidden", hidden)):
            check_size(name, size)
        check_size("layers", layers, least=0, most=DEEPEST)
        self.context = context
        self.in_channels, self.hidden = in_channels, hidden
        self.first = MaskedConv2d(in_channels, hidden, kernel, centre=False)
        self.layers = nn.ModuleList([MaskedConv2d(hidden, hidden, 3, centre=True) for _ in range(layers)])
        self.to_params = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", "*latent"))
        check_tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        features = self.context(z)  # (B, hidden, H, W)
        if features.ndim != 4 or features.shape[1] != self.hidden:
            raise ValueError(
                f"context: got features of shape {tuple(features.shape)} from it, want (B, {self.hidden}, H, W), as "
                f"hidden is {self.hidden}"
            )
        want = (len(features), self.in_channels, *features.shape[2:])
        if x.shape != want:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, want {want}, as context gives features of {tuple(features.shape)}"
            )
        h = features + self.first(x)
        for layer in self.layers:
            h = h + layer(h.relu())
        return self.to_params(h.relu())

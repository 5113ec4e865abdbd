"""A network that tells real images from reconstructions, patch by patch (chapter 09)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import DEEPEST, check_choice, check_fits, check_size, check_sizes, check_tensor, check_whole
from companion._devices import at_least_float32
from companion.configured import Configured

KERNEL, PADDING = 4, 1  # pixels, of every convolution


class PatchDiscriminator(Configured, nn.Module):
    """One logit for each patch of an image: is it real? (PatchGAN, Isola et al. 2017, appendix 6.1.2)

    Whether an image is sharp can be seen in every part of it, so each logit sees a patch only. The network stays small,
    and an image gives many answers instead of one.

    Convolutions of 4×4: ``layers`` with stride 2, then two with stride 1, LeakyReLU (0.2) between them. Channels double
    from layer to layer, up to 8·width. Nothing normalises after the first convolution, nor after the last.

    The normalisation is GroupNorm where the paper has BatchNorm. BatchNorm mixes the images of a batch, so that real
    and generated images, which come in batches of their own, are told apart by their batch; it has nothing to average
    in a batch of one; and with several processes each has statistics of its own. GroupNorm looks at one image. Its mean
    and variance are taken over the whole image, so a little passes from outside a patch; with "none", nothing does.

    Args:
        in_channels: C, 1 for grey images and 3 for colour.
        width: channels of the first convolution.
        layers: convolutions with stride 2. A logit sees a patch of 16, 34 or 70 pixels for 1, 2 or 3 of them
            (``receptive_field``). The default of 1 is for images of about 32×32.
        norm: "group" or "none".

    Shapes:
        x: (B, C, H, W) → logits (B, 1, h, w), h = H / 2^layers − 2 (rounded down), and so w. x may leave [0, 1].

    Raises:
        ValueError: an argument is out of range; ``x`` has another shape or type, or is too small for a single patch.
    """

    def __init__(
        self, in_channels: int = 1, *, width: int = 64, layers: int = 1, norm: Literal["group", "none"] = "group"
    ) -> None:
        super().__init__()
        check_size("in_channels", in_channels)
        check_size("width", width)
        check_size("layers", layers, most=DEEPEST)
        check_choice("norm", norm, ("group", "none"))
        self.in_channels = in_channels
        self.strides = (*[2] * layers, 1, 1)
        channels = [in_channels, *(width * 2 ** min(i, 3) for i in range(layers + 1)), 1]
        blocks: list[nn.Module] = []
        for i, stride in enumerate(self.strides):
            blocks += [nn.Conv2d(channels[i], channels[i + 1], KERNEL, stride, PADDING)]
            if i < len(self.strides) - 1:
                if norm == "group" and i > 0:
                    blocks += [nn.GroupNorm(_groups(channels[i + 1]), channels[i + 1])]
                blocks += [nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks)

    @property
    def receptive_field(self) -> int:
        """How many pixels a logit sees along each axis.

        From the last convolution back: r outputs of a convolution with stride s see (r − 1)·s + 4 of its inputs.
        """
        pixels = 1
        for stride in reversed(self.strides):
            pixels = (pixels - 1) * stride + KERNEL
        return pixels

    @property
    def stride(self) -> int:
        """How many pixels further a logit sees than the one before it."""
        return math.prod(self.strides)

    @property
    def offset(self) -> int:
        """The row, and the column, at which the patch of the first logit begins: before the image, in its padding."""
        first = 0
        for stride in reversed(self.strides):
            first = first * stride - PADDING
        return first

    def map(self, x: Tensor) -> Tensor:
        """How real each pixel's surroundings look: the mean of the logits that see it (:func:`patch_map`).

        Shapes:
            x: (B, C, H, W) → (B, 1, H, W).

        Raises:
            ValueError: ``x`` has another shape or type, or is too small for a single patch.
        """
        return patch_map(self(x), x.shape[2:], self.receptive_field, self.stride, self.offset)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        check_fits("x", x, next(self.parameters()))
        least = 3 * 2 ** (len(self.strides) - 2)
        if min(x.shape[2:]) < least:
            raise ValueError(
                f"x: got {x.shape[2]}×{x.shape[3]} pixels, want at least {least} on each side for one patch; fewer "
                "layers take smaller images"
            )
        return self.blocks(x)


def patch_map(logits: Tensor, size: Sequence[int], patch: int, stride: int, offset: int) -> Tensor:
    """For each pixel the mean of the logits whose patches see it, 0 where none does.

    Logit (i, j) sees ``patch`` rows from row i·stride + offset on, and so the columns; what lies outside the image is
    cut off. A transposed convolution with ones adds each logit to the pixels of its patch; of ones instead of logits,
    it counts.

    Args:
        size: (H, W), of the image.
        patch: how many pixels a logit sees along each axis.
        stride: from one patch to the next.
        offset: where the first patch begins. It is 0 or, with padding, negative, and leaves a pixel of it inside.

    Shapes:
        logits: (B, 1, h, w) → (B, 1, H, W), in float32 at least.

    Raises:
        ValueError: an argument is out of range, ``logits`` has another shape or type, or a patch lies outside the
            image.
    """
    check_tensor("logits", logits, shape=("B", 1, "h", "w"))
    check_sizes("size", size, length=2)
    check_size("patch", patch)
    check_size("stride", stride)
    check_whole("offset", offset, least=1 - patch, most=0)
    for along, pixels in zip(logits.shape[2:], size, strict=True):
        last = (along - 1) * stride + offset
        if last >= pixels:
            raise ValueError(
                f"logits: got shape {tuple(logits.shape)}, want no patch outside the image: with stride {stride} the "
                f"last begins at pixel {last} of {pixels}"
            )
    logits = at_least_float32(logits)
    ones = logits.new_ones(1, 1, patch, patch)
    with torch.autocast(logits.device.type, enabled=False):  # bfloat16 cannot count to 300
        sums = functional.conv_transpose2d(logits, ones, stride=stride)
        counts = functional.conv_transpose2d(torch.ones_like(logits[:1]), ones, stride=stride)
    means = sums / counts.clamp(min=1)  # (B, 1, rows, columns), of which row -offset is the image's first
    rows, columns = means.shape[2:]
    # A negative padding cuts off.
    return functional.pad(means, (offset, size[1] - columns - offset, offset, size[0] - rows - offset))


def _groups(channels: int) -> int:
    """The largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)

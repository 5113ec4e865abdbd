"""Encoders and decoders, one module a family."""

from companion.backbones.blocks import SwiGLU
from companion.backbones.conv import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size
from companion.backbones.masked import AutoregressiveDecoder, MaskedConv2d, raster_mask
from companion.backbones.patches import patchify, unpatchify

__all__ = [
    "AutoregressiveDecoder",
    "MaskedConv2d",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualBlock",
    "SwiGLU",
    "conv_output_size",
    "patchify",
    "raster_mask",
    "unpatchify",
]

"""Encoders and decoders, one module a family."""

from companion.backbones.conv import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size
from companion.backbones.masked import AutoregressiveDecoder, MaskedConv2d, raster_mask

__all__ = [
    "AutoregressiveDecoder",
    "MaskedConv2d",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualBlock",
    "conv_output_size",
    "raster_mask",
]

"""Encoders and decoders, one module a family."""

from companion.backbones.blocks import SwiGLU
from companion.backbones.conv import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size
from companion.backbones.mamba import (
    BidirectionalMamba2Block,
    BidirectionalMamba2Decoder,
    BidirectionalMamba2Encoder,
    Mamba2Block,
    Mamba2Decoder,
    Mamba2Encoder,
    Mamba2Mixer,
    MambaState,
)
from companion.backbones.masked import AutoregressiveDecoder, MaskedConv2d, raster_mask
from companion.backbones.patches import patchify, unpatchify
from companion.backbones.ssd import ssd_chunked, ssd_matrix, ssd_recurrence, ssd_step

__all__ = [
    "AutoregressiveDecoder",
    "BidirectionalMamba2Block",
    "BidirectionalMamba2Decoder",
    "BidirectionalMamba2Encoder",
    "Mamba2Block",
    "Mamba2Decoder",
    "Mamba2Encoder",
    "Mamba2Mixer",
    "MambaState",
    "MaskedConv2d",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualBlock",
    "SwiGLU",
    "conv_output_size",
    "patchify",
    "raster_mask",
    "ssd_chunked",
    "ssd_matrix",
    "ssd_recurrence",
    "ssd_step",
    "unpatchify",
]

"""Encoders and decoders, one module a family."""

from companion.backbones.blocks import RMSNorm, SwiGLU
from companion.backbones.conv import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size
from companion.backbones.convnext import ConvNeXtBlock, ConvNeXtDecoder, ConvNeXtEncoder
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
from companion.backbones.titok import LatentTokenDecoder, LatentTokenEncoder
from companion.backbones.vit import (
    SelfAttention,
    TransformerBlock,
    ViTDecoder,
    ViTEncoder,
    attention,
    axial_rotary,
)

__all__ = [
    "AutoregressiveDecoder",
    "BidirectionalMamba2Block",
    "BidirectionalMamba2Decoder",
    "BidirectionalMamba2Encoder",
    "ConvNeXtBlock",
    "ConvNeXtDecoder",
    "ConvNeXtEncoder",
    "LatentTokenDecoder",
    "LatentTokenEncoder",
    "Mamba2Block",
    "Mamba2Decoder",
    "Mamba2Encoder",
    "Mamba2Mixer",
    "MambaState",
    "MaskedConv2d",
    "RMSNorm",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualBlock",
    "SelfAttention",
    "SwiGLU",
    "TransformerBlock",
    "ViTDecoder",
    "ViTEncoder",
    "attention",
    "axial_rotary",
    "conv_output_size",
    "patchify",
    "raster_mask",
    "ssd_chunked",
    "ssd_matrix",
    "ssd_recurrence",
    "ssd_step",
    "unpatchify",
]

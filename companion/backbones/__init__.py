"""Encoders and decoders, one module a family."""

from companion.backbones.conv import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size

__all__ = ["ResNetDecoder", "ResNetEncoder", "ResidualBlock", "conv_output_size"]

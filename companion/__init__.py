"""Autoencoders, vector quantisers and priors over discrete codes: what the course builds, finished."""

from companion import backbones, data, metrics, plots
from companion.autoencoder import Autoencoder, AutoencoderOutput, Decoder, Encoder
from companion.backbones import ResNetDecoder, ResNetEncoder
from companion.checkpoint import load, save
from companion.training import History, fit

__all__ = [
    "Autoencoder",
    "AutoencoderOutput",
    "Decoder",
    "Encoder",
    "History",
    "ResNetDecoder",
    "ResNetEncoder",
    "backbones",
    "data",
    "fit",
    "load",
    "metrics",
    "plots",
    "save",
]

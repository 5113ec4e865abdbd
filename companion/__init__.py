"""Autoencoders, vector quantisers and priors over discrete codes: what the course builds, finished."""

from companion import augment, backbones, classifier, data, likelihoods, losses, metrics, plots, priors, quantizers
from companion._version import __version__
from companion.autoencoder import Autoencoder, AutoencoderOutput, Decoder, Encoder
from companion.backbones import (
    AutoregressiveDecoder,
    BidirectionalMamba2Decoder,
    BidirectionalMamba2Encoder,
    ConvNeXtDecoder,
    ConvNeXtEncoder,
    LatentTokenDecoder,
    LatentTokenEncoder,
    Mamba2Decoder,
    Mamba2Encoder,
    ResNetDecoder,
    ResNetEncoder,
    ViTDecoder,
    ViTEncoder,
)
from companion.checkpoint import load, save
from companion.classifier import Classifier
from companion.codes import CodeSet, check_identity, identity, tokenize
from companion.configured import Configured, register
from companion.diagnosis import Diagnosis, Finding, diagnose
from companion.evaluation import RatePoint, Scores, classical_codecs, evaluate_tokenizer
from companion.hub import from_pretrained, save_pretrained
from companion.pretrained import pretrained
from companion.priors import MambaPrior, PixelCNN, RQTransformer, TransformerPrior
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from companion.training import History, fit
from companion.vae import VAE, VAEOutput
from companion.vqvae import VQVAE, VQVAEOutput

__all__ = [
    "VAE",
    "VQVAE",
    "Autoencoder",
    "AutoencoderOutput",
    "AutoregressiveDecoder",
    "BidirectionalMamba2Decoder",
    "BidirectionalMamba2Encoder",
    "Classifier",
    "CodeSet",
    "Configured",
    "ConvNeXtDecoder",
    "ConvNeXtEncoder",
    "Decoder",
    "Diagnosis",
    "EMAVectorQuantizer",
    "Encoder",
    "Finding",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "History",
    "LatentTokenDecoder",
    "LatentTokenEncoder",
    "Mamba2Decoder",
    "Mamba2Encoder",
    "MambaPrior",
    "PixelCNN",
    "ProjectedQuantizer",
    "RQTransformer",
    "RatePoint",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualQuantizer",
    "Scores",
    "TransformerPrior",
    "VAEOutput",
    "VQVAEOutput",
    "VectorQuantizer",
    "ViTDecoder",
    "ViTEncoder",
    "__version__",
    "augment",
    "backbones",
    "check_identity",
    "classical_codecs",
    "classifier",
    "data",
    "diagnose",
    "evaluate_tokenizer",
    "fit",
    "from_pretrained",
    "identity",
    "likelihoods",
    "load",
    "losses",
    "metrics",
    "plots",
    "pretrained",
    "priors",
    "quantizers",
    "register",
    "save",
    "save_pretrained",
    "tokenize",
]

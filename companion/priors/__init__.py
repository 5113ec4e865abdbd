"""Priors over codes: what the codes of images are like, and new ones drawn from that (chapters 07, 08 and 10)."""

from companion.priors.base import Prior, PriorOutput, prior_bits
from companion.priors.mamba import MambaPrior
from companion.priors.pixelcnn import PixelCNN
from companion.priors.rq_transformer import RQTransformer
from companion.priors.sampling import filtered_probabilities
from companion.priors.transformer import TransformerPrior

__all__ = [
    "MambaPrior",
    "PixelCNN",
    "Prior",
    "PriorOutput",
    "RQTransformer",
    "TransformerPrior",
    "filtered_probabilities",
    "prior_bits",
]

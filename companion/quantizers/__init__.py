"""Quantizers: latents of real numbers in, codes out. One contract for all, so that one can be put in another's place.

A quantizer takes ``z`` (B, D, *spatial) and gives :class:`Quantized`; ``encode(z)`` gives the indices alone,
``decode(indices)`` the codes of such indices. ``num_codes`` is K, ``dim`` is D.
"""

from companion.quantizers.accumulation import one_update
from companion.quantizers.base import Quantized, Quantizer, VectorwiseQuantizer
from companion.quantizers.ema import EMAVectorQuantizer, ema_step
from companion.quantizers.estimators import rotation_trick, straight_through
from companion.quantizers.finite_scalar import FiniteScalarQuantizer
from companion.quantizers.gumbel import GumbelQuantizer
from companion.quantizers.k_means import code_statistics, k_means
from companion.quantizers.projected import ProjectedQuantized, ProjectedQuantizer
from companion.quantizers.rates import rate_bits
from companion.quantizers.residual import (
    ResidualQuantized,
    ResidualQuantizer,
    decode_to_depth,
    residual_encode,
)
from companion.quantizers.restarts import restart
from companion.quantizers.search import cosine_lookup, nearest_code
from companion.quantizers.vector import VectorQuantizer, vq_losses

__all__ = [
    "EMAVectorQuantizer",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "ProjectedQuantized",
    "ProjectedQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantized",
    "ResidualQuantizer",
    "VectorQuantizer",
    "VectorwiseQuantizer",
    "code_statistics",
    "cosine_lookup",
    "decode_to_depth",
    "ema_step",
    "k_means",
    "nearest_code",
    "one_update",
    "rate_bits",
    "residual_encode",
    "restart",
    "rotation_trick",
    "straight_through",
    "vq_losses",
]

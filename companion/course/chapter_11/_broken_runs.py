"""Two quantizers that spoil a training, each in its own way, for exercise 11.4 (this file is its answer)."""

from companion import EMAVectorQuantizer, VectorQuantizer
from companion.quantizers import Quantizer


def quantizer_of_run(name: str) -> Quantizer:
    """The quantizer of run "A" or "B", for latents of 32 numbers."""
    if name == "A":
        return VectorQuantizer(64, 32, commitment_weight=0.0)
    return EMAVectorQuantizer(64, 32, init="uniform", restart_below=0.0)

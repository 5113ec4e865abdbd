"""Losses for sharper reconstructions (chapter 09).

* ``feature_distance.py``: how far apart two images are for a network; ``lpips.py``: for one that knows photographs.
* ``discriminator.py``: a network that tells real images from reconstructions, patch by patch, with a map of what it
  thinks; ``adversarial.py``: what it and the generator minimise; ``penalties.py``: what keeps it from growing too sure.
* ``adversarial_training.py``: all of these around a tokenizer, as one model for ``fit``.
"""

from companion.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logits_with_constants,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
)
from companion.losses.adversarial_training import AdversarialOutput, AdversarialTraining
from companion.losses.discriminator import PatchDiscriminator, patch_map
from companion.losses.feature_distance import FeatureDistance, classifier_distance, feature_distance
from companion.losses.lpips import lpips_vgg
from companion.losses.penalties import LeCamPenalty, lecam_penalty, r1_penalty

__all__ = [
    "AdversarialOutput",
    "AdversarialTraining",
    "FeatureDistance",
    "LeCamPenalty",
    "PatchDiscriminator",
    "adaptive_weight",
    "classifier_distance",
    "feature_distance",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "lecam_penalty",
    "logits_with_constants",
    "lpips_vgg",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "patch_map",
    "r1_penalty",
]

"""Chapter 09, sharper pictures: losses that see blur, and a network that tells real images from reconstructions.

The reader does these exercises, in this order, and plays with the explorer:

* 9.1 feature distance: how far apart two images are in the features of a network.
* 9.2 hinge losses: what the discriminator and the generator minimise.
* 9.3 patch map: what a patch discriminator thinks of each pixel.
* 9.4 who learns from what: two losses, each with a gradient for its own network alone.
* 9.5 adaptive weight: how strongly the generator listens to the discriminator.
* ``explorer.py``: reconstructions by tokenizers that were trained with more or less of each loss.
"""

from companion.course.chapter_09 import (
    exercise_9_1_feature_distance,
    exercise_9_2_hinge_losses,
    exercise_9_3_patch_map,
    exercise_9_4_routed_losses,
    exercise_9_5_adaptive_weight,
)

EXERCISES = (
    exercise_9_1_feature_distance.EXERCISE,
    exercise_9_2_hinge_losses.EXERCISE,
    exercise_9_3_patch_map.EXERCISE,
    exercise_9_4_routed_losses.EXERCISE,
    exercise_9_5_adaptive_weight.EXERCISE,
)

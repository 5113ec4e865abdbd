"""Chapter 04, the VQ-VAE: an autoencoder with a codebook, and what its codes cost.

The reader does these exercises, in this order, and plays with the explorer:

* 4.1 the residual block: the input plus what the branch makes of it.
* 4.2 the forward pass of a VQ-VAE, from images to its output, losses and code counts.
* 4.3 perplexity of a table of counts, in float64.
* 4.4 bits per image: nominal, by entropy, and by position.
* ``explorer.py``: change the codes of an image and see it change.
"""

from companion.course.chapter_04 import (
    exercise_4_1_residual_block,
    exercise_4_2_vqvae,
    exercise_4_3_perplexity,
    exercise_4_4_bits_per_image,
)

EXERCISES = (
    exercise_4_1_residual_block.EXERCISE,
    exercise_4_2_vqvae.EXERCISE,
    exercise_4_3_perplexity.EXERCISE,
    exercise_4_4_bits_per_image.EXERCISE,
)

"""Chapter 01, the autoencoder: images through two numbers and back.

The reader does these exercises, in this order, and plays with the explorer:

* 1.1 how many windows: the output size of a convolution along one axis.
* 1.2 the encoder: two convolutions with ReLU and a linear layer, from images to latents.
* 1.3 one training step: gradients, a step of the optimizer, and the loss without its graph.
* 1.4 PCA: images rebuilt from the principal components of other images.
* 1.5 interpolation: points on the line between two latents of any shape.
* ``explorer.py``: move a point over the latent plane and see it decoded.
"""

from companion.course.chapter_01 import (
    exercise_1_1_conv_output_size,
    exercise_1_2_encoder,
    exercise_1_3_train_step,
    exercise_1_4_pca_reconstruct,
    exercise_1_5_interpolate,
)

EXERCISES = (
    exercise_1_1_conv_output_size.EXERCISE,
    exercise_1_2_encoder.EXERCISE,
    exercise_1_3_train_step.EXERCISE,
    exercise_1_4_pca_reconstruct.EXERCISE,
    exercise_1_5_interpolate.EXERCISE,
)

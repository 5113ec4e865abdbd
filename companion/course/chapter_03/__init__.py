"""Chapter 03, vector quantisation: vectors that become the index of a code.

The reader does these exercises, in this order, and plays with the explorer:

* 3.1 nearest code: the index of the code at the smallest distance, without an (N, K, D) array.
* 3.2 a stop-gradient puzzle: the value of a·b, with the gradient for b turned round.
* 3.3 straight-through: the value of z_q to the bit, with the gradient of z.
* 3.4 the two losses of vector quantisation, each with the gradient for its own side.
* 3.5 ``VectorQuantizer``: lookup, losses and straight-through in one forward pass.
* ``explorer.py``: latents and codes in the plane, step by step.
"""

from companion.course.chapter_03 import (
    exercise_3_1_nearest_code,
    exercise_3_2_stop_gradient_puzzle,
    exercise_3_3_straight_through,
    exercise_3_4_vq_losses,
    exercise_3_5_vector_quantizer,
)

EXERCISES = (
    exercise_3_1_nearest_code.EXERCISE,
    exercise_3_2_stop_gradient_puzzle.EXERCISE,
    exercise_3_3_straight_through.EXERCISE,
    exercise_3_4_vq_losses.EXERCISE,
    exercise_3_5_vector_quantizer.EXERCISE,
)

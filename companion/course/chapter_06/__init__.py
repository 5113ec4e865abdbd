"""Chapter 06, residual quantisation: a stack of codes for each position, from coarse to fine.

The reader does these exercises, in this order, and plays with the explorer:

* 6.1 the residual loop: each quantizer encodes what the codes before it left.
* 6.2 decoding to a depth: the sum of a stack's first codes.
* 6.3 losses by depth: codebook and commitment loss of each residual.
* 6.4 the residual quantizer: the loop with one straight-through gradient and summed losses.
* 6.5 the rate of a stack: nominal, by entropy of each depth, and joint.
* ``explorer.py``: decode only the first codes of every stack.
"""

from companion.course.chapter_06 import (
    exercise_6_1_residual_encode,
    exercise_6_2_decode_to_depth,
    exercise_6_3_residual_losses,
    exercise_6_4_residual_quantizer,
    exercise_6_5_rate_bits,
)

EXERCISES = (
    exercise_6_1_residual_encode.EXERCISE,
    exercise_6_2_decode_to_depth.EXERCISE,
    exercise_6_3_residual_losses.EXERCISE,
    exercise_6_4_residual_quantizer.EXERCISE,
    exercise_6_5_rate_bits.EXERCISE,
)

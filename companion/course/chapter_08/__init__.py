"""Chapter 08, the RQ-Transformer: stacks drawn position by position and code by code.

The reader does these exercises, in this order, and plays with the explorer:

* 8.1 count: multiplications of the RQ-Transformer and of a flattened transformer.
* 8.2 what the spatial transformer reads: the summed embeddings of the stacks before.
* 8.3 what the depth transformer reads: the spatial output, then running sums of embeddings.
* 8.4 the RQ-Transformer: logits of every code, and their cross-entropy.
* 8.5 depth-wise sampling: stacks drawn code by code from given uniform numbers.
* ``explorer.py``: draw stacks and decode them from coarse to fine.
"""

from companion.course.chapter_08 import (
    exercise_8_1_multiplications,
    exercise_8_2_spatial_inputs,
    exercise_8_3_depth_inputs,
    exercise_8_4_rq_transformer,
    exercise_8_5_sample_stacks,
)

EXERCISES = (
    exercise_8_1_multiplications.EXERCISE,
    exercise_8_2_spatial_inputs.EXERCISE,
    exercise_8_3_depth_inputs.EXERCISE,
    exercise_8_4_rq_transformer.EXERCISE,
    exercise_8_5_sample_stacks.EXERCISE,
)

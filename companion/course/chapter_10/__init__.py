"""Chapter 10, backbones: a block of convolutions, patches as tokens, and a state-space layer in three forms.

The reader does these exercises, in this order, and plays with the explorer:

* 10.1 ConvNeXt block: a depthwise convolution and a gated MLP, each with a norm and a skip.
* 10.2 patchify and its inverse: a picture as a row of patches, and back.
* 10.3 recurrence: a memory that fades, is written to and read from, step by step.
* 10.4 chunked form: the same with a matrix inside each chunk and a memory between them.
* 10.5 both ways: what a forward mixer and a backward mixer say of each token.
* ``explorer.py``: what a token sees, and what three backbones draw while they learn.
"""

from companion.course.chapter_10 import (
    exercise_10_1_convnext_block,
    exercise_10_2_patchify,
    exercise_10_2_unpatchify,
    exercise_10_3_recurrence,
    exercise_10_4_chunked,
    exercise_10_5_both_ways,
)

EXERCISES = (
    exercise_10_1_convnext_block.EXERCISE,
    exercise_10_2_patchify.EXERCISE,
    exercise_10_2_unpatchify.EXERCISE,
    exercise_10_3_recurrence.EXERCISE,
    exercise_10_4_chunked.EXERCISE,
    exercise_10_5_both_ways.EXERCISE,
)

"""Chapter 07, the transformer prior: images drawn code by code.

The reader does these exercises, in this order, and plays with the explorer:

* 7.1 inputs and targets: codes in raster order, the inputs shifted by one behind ``<sos>``.
* 7.2 causal self-attention with several heads.
* 7.3 the transformer block: attention and MLP, each with a norm before it and a skip connection.
* 7.4 inputs with a class: the start token of a class, or of none, in front of the codes.
* 7.5 what is drawn from: probabilities after temperature, top-k and top-p.
* 7.6 attention with a cache: one step for the newest position, with the keys and values of the earlier ones kept.
* ``explorer.py``: draw images of a class, at a temperature, from the k likeliest codes.
"""

from companion.course.chapter_07 import (
    exercise_7_1_shift,
    exercise_7_2_causal_self_attention,
    exercise_7_3_block,
    exercise_7_4_conditional_inputs,
    exercise_7_5_filtered_probabilities,
    exercise_7_6_cached_attention,
)

EXERCISES = (
    exercise_7_1_shift.EXERCISE,
    exercise_7_2_causal_self_attention.EXERCISE,
    exercise_7_3_block.EXERCISE,
    exercise_7_4_conditional_inputs.EXERCISE,
    exercise_7_5_filtered_probabilities.EXERCISE,
    exercise_7_6_cached_attention.EXERCISE,
)

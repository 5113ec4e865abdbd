"""Chapter 11, your own images: a rate, a checkpoint, a schedule, and what is wrong with a run.

The reader does these exercises, in this order, and plays with the explorer:

* 11.1 code length: what new images cost with a histogram of other images' codes.
* 11.2 save and load a checkpoint: whole at every moment, and damaged files refused.
* 11.3 learning-rate factor: warm-up and cosine as a function of the step.
* 11.4 faults: reading three broken runs.
* ``explorer.py``: a picture through JPEG and through the tokenizer, with what each costs.
"""

from companion.course.chapter_11 import (
    exercise_11_1_code_length,
    exercise_11_2_load_checkpoint,
    exercise_11_2_save_checkpoint,
    exercise_11_3_learning_rate_factor,
    exercise_11_4_faults,
)
from companion.course.chapter_11._broken_runs import quantizer_of_run
from companion.course.chapter_11._disk import PowerCutError, write, write_half

__all__ = ["EXERCISES", "PowerCutError", "quantizer_of_run", "write", "write_half"]

EXERCISES = (
    exercise_11_1_code_length.EXERCISE,
    exercise_11_2_save_checkpoint.EXERCISE,
    exercise_11_2_load_checkpoint.EXERCISE,
    exercise_11_3_learning_rate_factor.EXERCISE,
    exercise_11_4_faults.EXERCISE,
)

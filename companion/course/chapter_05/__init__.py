"""Chapter 05, EMA codebooks: codes that follow the mean of what chose them.

The reader does these exercises, in this order, and plays with the explorer:

* 5.1 counts and sums of the vectors that chose each code, without a one-hot matrix.
* 5.2 the EMA step: codes and counts after one batch.
* 5.3 restart: codes that are hardly chosen move to the candidates.
* 5.4 lookup by angle: the code with the largest cosine (in the study beside the chapter).
* ``explorer.py``: codes follow clouds of points that turn.
"""

from companion.course.chapter_05 import (
    exercise_5_1_code_statistics,
    exercise_5_2_ema_step,
    exercise_5_3_restart,
    exercise_5_4_cosine_lookup,
)

EXERCISES = (
    exercise_5_1_code_statistics.EXERCISE,
    exercise_5_2_ema_step.EXERCISE,
    exercise_5_3_restart.EXERCISE,
    exercise_5_4_cosine_lookup.EXERCISE,
)

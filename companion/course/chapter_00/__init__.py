"""Chapter 00, start here: how far a digit is from itself, moved or blurred.

The reader does these exercises, in this order, and plays with the explorer:

* 0.1 mean squared error: the mean over all pixels of two batches of images.
* ``explorer.py``: move or blur an image and see its distortion.
"""

from companion.course.chapter_00 import exercise_0_1_mse

EXERCISES = (exercise_0_1_mse.EXERCISE,)

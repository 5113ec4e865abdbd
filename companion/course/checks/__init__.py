"""The checks of the exercises.

``comparison`` compares two results, ``isolation`` runs the reader's code apart from the notebook, ``engine`` puts both
together into a verdict with a hint, and ``runners`` says how functions and classes are called. The exercises themselves
are in the folders of the chapters (``companion.course.chapter_00`` …); ``companion.course.exercises`` gathers them.

The file of an exercise reads from the top: the reference, where only the course has one; ``cases``, the inputs;
``run``, where no shared runner fits; the parts of wrong answers; ``MISTAKES``, each with its hint; ``EXERCISE``.
"""

from companion.course.checks.engine import Case, Exercise, Mistake, Report, examine
from companion.course.exercises import EXERCISES, check

__all__ = ["EXERCISES", "Case", "Exercise", "Mistake", "Report", "check", "examine"]

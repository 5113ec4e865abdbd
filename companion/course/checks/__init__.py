"""The checks of all exercises, one module a chapter."""

from companion.course.checks import (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
)
from companion.course.checks.core import EXERCISES, Case, Exercise, Mistake, Report, check, examine

__all__ = ["EXERCISES", "Case", "Exercise", "Mistake", "Report", "check", "examine"]

for _chapter in (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
):
    _chapter.register_all()

"""What only the course needs: sessions, checks and explorers, and the tools that make and run notebooks."""

from companion.course.checks import check
from companion.course.session import begin

__all__ = ["begin", "check"]

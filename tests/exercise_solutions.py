"""The answers to the exercises as they stand in the sources of the chapters."""

import ast
from pathlib import Path

from companion.course.checks import EXERCISES, Exercise

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions"


def solution_of(exercise: Exercise) -> object:
    """The answer as it stands in the chapter's source, in a module of its own with the chapter's other answers."""
    tree = ast.parse((SOLUTIONS / f"{exercise.chapter}.py").read_text(encoding="utf-8"))
    wanted = (ast.Import, ast.ImportFrom)
    body = [node for node in tree.body if isinstance(node, wanted)]
    answers = {e.name for e in EXERCISES.values() if e.chapter == exercise.chapter}
    body += [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in answers]
    scope: dict[str, object] = {"__name__": "solution"}
    exec(compile(ast.Module(body, []), "<solution>", "exec"), scope)
    return scope[exercise.name]

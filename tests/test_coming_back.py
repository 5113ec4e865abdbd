"""A reader who comes back to an exercise runs from there down, in a notebook that has run to its end."""

import dis
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import CodeType

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from companion.course.authoring import solution_notebook
from companion.course.execution import CellError, execute
from companion.course.manifest import Chapter, read_book

BOOK = read_book(Path(__file__).parents[1])
CHAPTERS = BOOK.select(None)


def exercises(notebook: NotebookNode) -> list[int]:
    return [index for index, cell in enumerate(notebook.cells) if "### BEGIN SOLUTION" in cell.source]


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell takes from other cells, and those that it gives."""
    taken: set[str] = set()
    given: set[str] = set()
    inside: set[str] = set()
    for step in dis.get_instructions(compile(source, "<cell>", "exec")):
        if step.opname == "LOAD_NAME" and step.argval not in given:
            taken.add(step.argval)
        elif step.opname == "STORE_NAME":
            given.add(step.argval)
        elif isinstance(step.argval, CodeType):
            inside |= globals_of(step.argval)
    return taken | (inside - given), given  # a function is called after the cell has given what it uses


def globals_of(code: CodeType) -> set[str]:
    """The names that a function or a class takes from outside."""
    steps = list(dis.get_instructions(code))
    found = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    found -= {step.argval for step in steps if step.opname == "STORE_NAME"}  # of a class's body
    return found.union(*(globals_of(step.argval) for step in steps if isinstance(step.argval, CodeType)))


def overwritten(cells: Sequence[str], start: int) -> list[str]:
    """What a cell from ``start`` on takes from above ``start``, and finds as a later cell has left it."""
    taken_given = [names(cell) for cell in cells]
    before = set().union(*(given for _, given in taken_given[:start]))
    faults = []
    for index in range(start, len(cells)):
        for name in sorted(taken_given[index][0] & before):
            if later := [i for i in range(index, len(cells)) if name in taken_given[i][1]]:
                faults.append(f"cell {index} takes {name!r} from above cell {start}; cell {later[-1]} overwrites it")
        before -= taken_given[index][1]
    return faults


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_nothing_that_an_exercise_goes_on_from_is_overwritten_below(chapter: Chapter) -> None:
    notebook = solution_notebook(BOOK, chapter)
    cells = [cell.source if cell.cell_type == "code" else "" for cell in notebook.cells]
    faults = [fault for start in exercises(notebook) for fault in overwritten(cells, start)]
    assert not faults, "\n".join(faults)


def test_what_is_overwritten_below_is_found() -> None:
    codes, exercise = "codes = [0, 1]", "def first(c):\n    return c[0]"
    assert overwritten([codes, exercise, "print(first(codes))", "codes = None"], 1) == [
        "cell 2 takes 'codes' from above cell 1; cell 3 overwrites it"
    ]
    assert overwritten([codes, exercise, "def g():\n    return codes", "for codes in []: pass"], 1)
    assert overwritten(["n = 0", exercise, "n += 1"], 1)
    assert not overwritten([codes, exercise, "print(first(codes))", "other = None"], 1)
    assert not overwritten([codes, exercise, "codes = [2]", "print(codes)", "codes = None"], 1)
    assert not overwritten([codes, exercise, "def g():\n    return codes", "print([codes for codes in g()])"], 1)


def run_and_come_back(notebook: NotebookNode, name: str) -> None:
    """All cells, and then again from each exercise down, in one kernel; raises CellError for one that fails."""
    cells = list(notebook.cells)
    for start in exercises(notebook):
        notebook.cells += deepcopy(cells[start:])
    env = {"COMPANION_PROFILE": "smoke", "COMPANION_STRICT": "1"}
    execute(notebook, name=name, folder=BOOK.root / "solutions", env=env)


@pytest.mark.parametrize(
    "chapter",
    [pytest.param(c, marks=[] if i == 0 else [pytest.mark.long], id=c.name) for i, c in enumerate(CHAPTERS)],
)
def test_after_a_full_run_every_exercise_can_be_run_again_from_there_down(chapter: Chapter) -> None:
    notebook = solution_notebook(BOOK, chapter)
    run_and_come_back(notebook, chapter.name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_a_cell_that_fails_only_at_the_second_time_is_found() -> None:
    """Here something is emptied, not overwritten, which the names alone do not show."""
    exercise = "def first(c):\n    ### BEGIN SOLUTION\n    return c[0]\n    ### END SOLUTION"
    cells = [new_code_cell(source) for source in ("codes = [0]", exercise, "print(first(codes))", "codes.clear()")]
    with pytest.raises(CellError, match=r"cell 6 \(print\(first\(codes\)\)\): IndexError"):
        run_and_come_back(new_notebook(cells=cells), "twice")

"""The committed notebooks: what the sources give, fully executed, and every picture described."""

from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from companion.course.authoring import cover, learner_notebook, machine_fault, picture_fault, solution_notebook
from companion.course.execution import glued
from companion.course.manifest import Chapter, read_book

BOOK = read_book(Path(__file__).parents[1])


@pytest.fixture(scope="module", params=BOOK.chapters.values(), ids=lambda chapter: chapter.name)
def chapter(request: pytest.FixtureRequest) -> Chapter:
    return request.param


@pytest.fixture(scope="module", params=["solution", "learner"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def notebook(chapter: Chapter, kind: str) -> NotebookNode:
    path = BOOK.solution(chapter) if kind == "solution" else BOOK.notebook(chapter)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_notebook_is_what_its_source_gives(chapter: Chapter, kind: str, notebook: NotebookNode) -> None:
    """Cells, ids and metadata; after a change to a source, `make notebooks` writes both again."""
    expected = solution_notebook(BOOK, chapter)
    if kind == "learner":
        expected = learner_notebook(expected)
    stored = deepcopy(notebook)
    for cell in stored.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert stored.cells == expected.cells
    assert stored == expected


def test_answers_are_in_the_solution_only(kind: str, notebook: NotebookNode) -> None:
    """And there are some where there are exercises: a marker with a slip in it would leave the answer in."""
    with_answer = [cell.id for cell in notebook.cells if "END SOLUTION" in cell.source]
    exercises = any("= check(" in cell.source for cell in notebook.cells)  # a study may have none
    if kind == "learner":
        assert not with_answer
    else:
        assert with_answer or not exercises
    assert not [cell.id for cell in notebook.cells if "SOLUTION" in cell.source and cell.id not in with_answer]


def test_every_cell_was_executed_in_order(notebook: NotebookNode) -> None:
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_every_compared_cell_has_an_output(notebook: NotebookNode) -> None:
    """nbval passes a compared cell that has none, and one that was not executed."""
    compared = [cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert compared
    assert not [cell.source for cell in compared if not cell.outputs or cell.execution_count is None]


def test_outputs_are_fit_for_a_repository(notebook: NotebookNode) -> None:
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        assert not [output for output in outputs if output.output_type == "error"], cell.source
        kinds = {kind for output in outputs for kind in output.get("data", {})}
        assert "application/vnd.jupyter.widget-view+json" not in kinds, cell.source
        assert picture_fault(outputs) is None, cell.source
        assert machine_fault(outputs, BOOK.root) is None, cell.source


def test_glued_values_are_plain(notebook: NotebookNode) -> None:
    """``glued`` refuses what is not; the same names are glued with and without the answers."""
    assert all(isinstance(value, int | float | list | dict) for value in glued(notebook).values())


def test_both_notebooks_glue_the_same_names(chapter: Chapter) -> None:
    solution, learner = (nbformat.read(path, as_version=4) for path in (BOOK.solution(chapter), BOOK.notebook(chapter)))
    assert list(glued(solution)) == list(glued(learner))


def test_the_cover_is_the_picture_that_the_reader_makes(chapter: Chapter) -> None:
    learner = nbformat.read(BOOK.notebook(chapter), as_version=4)
    assert BOOK.cover(chapter).read_bytes() == cover(learner)
    assert f"(../chapters/pictures/{chapter.name}.png)" in learner.cells[0].source


def test_every_notebook_belongs_to_a_chapter() -> None:
    names = set(BOOK.chapters)
    assert {path.stem for path in (BOOK.root / "solutions").glob("*.py")} == names
    for folder in ("solutions", BOOK.src):
        assert {path.stem for path in (BOOK.root / folder).glob("*.ipynb")} == names

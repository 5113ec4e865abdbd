"""From one source to two notebooks: the same each time, and nothing in them belongs to one machine."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from companion.course.authoring import (
    image_alts,
    keep_outputs,
    learner_notebook,
    make_notebooks,
    solution_notebook,
    write,
)
from companion.course.execution import CellError, glued
from companion.course.manifest import Book, Chapter

SOURCE = '''\
# %% [markdown]
# # Tiny
# <!-- BEGIN SOLUTION -->
# Because of the secret.
# <!-- END SOLUTION -->

# %%
import os
import sys
from tqdm import tqdm
from tqdm.notebook import tqdm as widget

for _ in widget(tqdm(range(3))):
    print("a line")
print("kept", file=sys.stderr)
print(os.environ["COMPANION_PROFILE"], os.environ.get("COMPANION_STRICT"), os.path.basename(os.getcwd()))

# %% tags=["nbval-check-output"]
def twice(x):
    """Double x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


print("the same in both")

# %%
from myst_nb import glue

glue("proof", [1.0, 2.5], display=False)

# %% tags=["cover"]
from IPython.display import HTML, display

display(HTML('<img alt="a dot" src="data:image/png;base64,iVBORw0KGgo=">'))

# %%
1

# %%
1
'''


@pytest.fixture
def chapter(book: Book) -> Chapter:
    chapter = book.chapter("00_tiny")
    book.solution(chapter, ".py").write_text(SOURCE, encoding="utf-8")
    return chapter


def test_two_runs_give_the_same_bytes_and_nothing_of_the_run(
    book: Book, chapter: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (book.solution(chapter), book.notebook(chapter))
    make_notebooks(book, chapter)
    first = [path.read_bytes() for path in paths]
    monkeypatch.setenv("COMPANION_PROFILE", "smoke")  # of the caller; the outputs are always those of quick
    monkeypatch.setenv("COMPANION_SEED", "7")
    make_notebooks(book, chapter)
    assert [path.read_bytes() for path in paths] == first
    assert not [path for path in book.root.rglob(".*") if path.suffix != ".ipynb_checkpoints"]

    solution, learner = (nbformat.read(path, as_version=4) for path in paths)
    assert [cell.id for cell in solution.cells] == [cell.id for cell in learner.cells]
    assert "return 2 * x" in solution.cells[2].source
    assert "return 2 * x" not in first[1].decode()
    assert "secret" not in first[1].decode()
    assert learner.cells[2].source.splitlines()[:3] == [
        "def twice(x):",
        '    """Double x."""',
        "    raise NotImplementedError",
    ]
    streams = [[(o.name, o.text) for o in nb.cells[1].outputs] for nb in (solution, learner)]
    assert streams == [
        [("stdout", "a line\na line\na line\nquick 1 solutions\n"), ("stderr", "kept\n")],
        [("stdout", "a line\na line\na line\nquick None chapters\n"), ("stderr", "kept\n")],
    ]
    assert [cell.execution_count for cell in learner.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5, 6]
    assert set(solution.metadata) == {"kernelspec", "language_info"}
    assert "version" not in solution.metadata.language_info
    assert glued(solution) == {"proof": [1.0, 2.5]}


def test_the_code_of_a_cell_that_only_plots_is_folded_in_both_notebooks(book: Book, chapter: Chapter) -> None:
    source = book.solution(chapter, ".py")
    source.write_text(SOURCE + '\n# %% tags=["hide-input"]\nprint("a table")\n', encoding="utf-8")
    solution = solution_notebook(book, chapter)
    for notebook in (solution, learner_notebook(solution)):
        folded = [cell.source for cell in notebook.cells if cell.metadata.get("jupyter") == {"source_hidden": True}]
        assert folded == ['print("a table")']


def test_an_exercise_that_nobody_would_see_is_refused(book: Book, chapter: Chapter) -> None:
    source = book.solution(chapter, ".py")
    hidden = '\n# %% tags=["hide-input"]\ndef f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n'
    source.write_text(SOURCE + hidden, encoding="utf-8")
    with pytest.raises(ValueError, match=r"00_tiny\.py: an exercise has the tag hide-input"):
        solution_notebook(book, chapter)


def test_a_change_leaves_the_other_cells_their_ids(book: Book, chapter: Chapter) -> None:
    before = [cell.id for cell in solution_notebook(book, chapter).cells]
    assert len(set(before)) == len(before)  # the two equal cells too
    source = book.solution(chapter, ".py")
    source.write_text("# %%\nnew = 1\n\n" + SOURCE, encoding="utf-8")
    assert [cell.id for cell in solution_notebook(book, chapter).cells][1:] == before


def test_a_failing_cell_is_named_and_leaves_the_old_notebook(book: Book, chapter: Chapter) -> None:
    book.solution(chapter).write_text("old", encoding="utf-8")
    source = "# %%\nbefore = 1\n\n# %%\nbefore / 0\n"
    book.solution(chapter, ".py").write_text(source, encoding="utf-8")
    with pytest.raises(CellError, match=r"00_tiny\.ipynb, cell 2 \(before / 0\): ZeroDivisionError"):
        make_notebooks(book, chapter)
    assert book.solution(chapter).read_text(encoding="utf-8") == "old"


def test_the_cover_is_written_beside_the_notebook(book: Book, chapter: Chapter) -> None:
    make_notebooks(book, chapter)
    assert book.cover(chapter).read_bytes() == b"\x89PNG\r\n\x1a\n"


def test_a_chapter_without_a_cover_is_refused(book: Book, chapter: Chapter) -> None:
    source = book.solution(chapter, ".py")
    source.write_text(source.read_text(encoding="utf-8").replace(' tags=["cover"]', ""), encoding="utf-8")
    with pytest.raises(ValueError, match="cover: got 0 cells"):
        make_notebooks(book, chapter)


def test_a_missing_source_is_named(book: Book) -> None:
    with pytest.raises(ValueError, match=r"solutions/00_tiny\.py is missing"):
        solution_notebook(book, book.chapter("00_tiny"))


def test_an_answer_without_an_end_is_refused(book: Book, chapter: Chapter) -> None:
    source = SOURCE.replace("    ### END SOLUTION\n", "")
    book.solution(chapter, ".py").write_text(source, encoding="utf-8")
    with pytest.raises(RuntimeError, match="no end solution"):
        learner_notebook(solution_notebook(book, chapter))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text/plain": f"in {sys.prefix}/lib"}, "a path of this machine"),
        ({"text/plain": f"in {Path.home()}/x"}, "a path of this machine"),
        ({"text/plain": "/tmp/ipykernel_123/456.py:1: UserWarning"}, r"ipykernel_123"),
        ({"text/plain": "<Thing at 0x7f0011223344>"}, r"at 0x7f0011223344"),
        ({"image/png": "iVBOR", "text/plain": "<Figure>"}, r"plots\.show"),
        ({"text/html": "<div><img src='data:image/png;base64,a'></div>"}, "without alt text"),
        ({"text/html": "<img alt='a loss curve' src='a'><IMG SRC='b' ALT='  '>"}, "without alt text"),
    ],
)
def test_outputs_that_do_not_belong_into_a_repository(tmp_path: Path, data: dict[str, str], said: str) -> None:
    ran = new_notebook(cells=[new_code_cell("show()", outputs=[new_output("display_data", data)])])
    notebook = new_notebook(cells=[new_code_cell("show()")])
    with pytest.raises(CellError, match=rf"tiny, cell 1 \(show\(\)\): its output holds .*{said}"):
        keep_outputs(notebook, ran, name="tiny", root=tmp_path)


def test_a_picture_with_alt_text_is_kept(tmp_path: Path) -> None:
    html = '<p>x &lt; y</p><img alt="x is below y" src="data:,">'
    ran = new_notebook(cells=[new_code_cell(outputs=[new_output("display_data", {"text/html": html})])])
    notebook = new_notebook(cells=[new_code_cell()])
    keep_outputs(notebook, ran, name="tiny", root=tmp_path)
    assert notebook.cells[0].outputs == ran.cells[0].outputs
    assert image_alts(html) == ["x is below y"]


@pytest.mark.parametrize("stored", ["tensor([1., 2.])", "[1.0, 2.0, ...]", "nan", "np.float64(1.0)"])
def test_a_glued_value_that_is_not_plain_is_refused(stored: str) -> None:
    data = {"application/papermill.record/text/plain": stored}
    output = new_output("display_data", data, metadata={"scrapbook": {"name": "proof"}})
    with pytest.raises(CellError, match=r"proof = .* is not a plain float, list or dict"):
        glued(new_notebook(cells=[new_code_cell("glue()", outputs=[output])]))


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ipynb"
    write(new_notebook(), path)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(new_notebook(cells=[new_code_cell("1")]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

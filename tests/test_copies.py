"""The learner's copies in ``my/``: brought up to date where nobody wrote in them, and never written over."""

import json
import os
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pytest

from companion.course import copies
from companion.course.copies import lay
from companion.course.manifest import Book, find_root, read_book

ROOT = Path(__file__).parents[1]
THEIRS, NEW, NEWER = "00_tiny.ipynb", "00_tiny (new version).ipynb", "00_tiny (new version 2).ipynb"


def notebook(*code: str) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": text.splitlines(True), "outputs": []}
        | {"execution_count": None}
        for i, text in enumerate(code)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def publish(book: Book, content: dict[str, Any]) -> None:
    """The course gets a version of its chapter."""
    path = book.notebook(book.chapter("00_tiny"))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def held(book: Book, name: str = THEIRS) -> Any:
    return json.loads((book.root / "my" / name).read_text(encoding="utf-8"))


def write(book: Book, content: dict[str, Any], name: str = THEIRS) -> None:
    (book.root / "my" / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def names(book: Book) -> list[str]:
    return sorted(path.name for path in (book.root / "my").glob("*") if path.name != copies.RECORD)


def ran_and_saved(content: dict[str, Any]) -> dict[str, Any]:
    """What JupyterLab leaves of a notebook that was stepped through with Shift+Enter."""
    saved = deepcopy(content)
    saved["metadata"] = {"language_info": {"name": "python", "version": "3.12.1"}}
    for i, cell in enumerate(saved["cells"], 1):
        cell["source"] = "".join(cell["source"])
        cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "1\n"}], "execution_count": i}
        cell["metadata"] = {"trusted": True}
    saved["cells"] += notebook("")["cells"]
    return saved


V1, V2, V3 = notebook("a = 1\nb = 2"), notebook("a = 2\nb = 2"), notebook("a = 3\nb = 2")
ANSWER = notebook("a = 1\nb = my_answer()")


@pytest.fixture
def course(book: Book) -> Book:
    """A tiny course in its first version, laid once."""
    publish(book, V1)
    assert lay(book) == book.root / "my"
    assert held(book) == V1
    return book


def test_what_nobody_touched_is_replaced_by_a_new_version(course: Book, capsys: pytest.CaptureFixture[str]) -> None:
    publish(course, V2)
    lay(course)
    assert names(course) == [THEIRS]
    assert held(course) == V2
    assert capsys.readouterr().out == ""


def test_running_and_saving_is_not_writing(course: Book) -> None:
    write(course, ran_and_saved(V1))
    lay(course)
    assert held(course) == ran_and_saved(V1)  # the same version: their outputs stay
    publish(course, V2)
    lay(course)
    assert names(course) == [THEIRS]
    assert held(course) == V2


def test_new_pictures_of_the_same_text_reach_a_copy_that_was_never_opened(course: Book) -> None:
    pictured = ran_and_saved(V1)
    publish(course, pictured)
    lay(course)
    assert held(course) == pictured


def test_beside_what_they_wrote_the_new_version_is_put_once(course: Book, capsys: pytest.CaptureFixture[str]) -> None:
    write(course, ANSWER)
    lay(course)
    assert names(course) == [THEIRS]
    assert capsys.readouterr().out == ""
    publish(course, V2)
    lay(course)
    assert (held(course), held(course, NEW)) == (ANSWER, V2)
    assert capsys.readouterr().out == f"00_tiny has a new version. Yours is as you left it; the new one is my/{NEW}\n"
    lay(course)
    write(course, ran_and_saved(V2), NEW)
    lay(course)
    assert names(course) == sorted([THEIRS, NEW])
    assert capsys.readouterr().out == ""


def test_a_new_version_beside_is_itself_replaced_or_kept(course: Book) -> None:
    write(course, ANSWER)
    publish(course, V2)
    lay(course)
    publish(course, V3)
    lay(course)
    assert (held(course), held(course, NEW)) == (ANSWER, V3)
    mine = notebook("a = 3\nb = my_other_answer()")
    write(course, mine, NEW)
    lay(course)
    assert names(course) == sorted([THEIRS, NEW])
    publish(course, V2)
    lay(course)
    assert (held(course), held(course, NEW), held(course, NEWER)) == (ANSWER, mine, V2)


def test_deleting_a_copy_starts_it_over_and_deleting_a_new_version_declines_it(course: Book) -> None:
    write(course, ANSWER)
    publish(course, V2)
    lay(course)
    (course.root / "my" / NEW).unlink()
    lay(course)
    assert names(course) == [THEIRS]
    (course.root / "my" / THEIRS).unlink()
    lay(course)
    assert names(course) == [THEIRS]
    assert held(course) == V2


@pytest.mark.parametrize("record", [None, b"", b"{", b"[1]", b"\xff", b'{"00_tiny.ipynb": 3}'])
def test_without_a_record_everything_that_differs_is_taken_for_theirs(course: Book, record: bytes | None) -> None:
    path = course.root / "my" / copies.RECORD
    path.unlink() if record is None else path.write_bytes(record)
    lay(course)
    assert names(course) == [THEIRS]  # it is what the course has
    path.unlink()
    publish(course, V2)
    lay(course)
    assert (held(course), held(course, NEW)) == (V1, V2)


@pytest.mark.parametrize("content", [b"", b"not a notebook", b"[]", b'{"cells": 3}', b'{"cells": [{"source": 3}]}'])
def test_a_file_that_is_no_notebook_is_left_alone(course: Book, content: bytes) -> None:
    path = course.root / "my" / THEIRS
    path.write_bytes(content)
    publish(course, V2)
    lay(course)
    assert path.read_bytes() == content
    assert held(course, NEW) == V2


@pytest.mark.parametrize("cut_off_before", [THEIRS, copies.RECORD])
def test_cut_off_anywhere_nothing_of_theirs_is_lost_and_the_next_call_finishes(
    course: Book, monkeypatch: pytest.MonkeyPatch, cut_off_before: str
) -> None:
    publish(course, V2)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == cut_off_before:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            lay(course)
    write(course, ANSWER)  # and they go on to work, before the next call
    publish(course, V3)
    lay(course)
    assert held(course) == ANSWER
    assert held(course, NEW) == V3


def test_other_files_of_theirs_stay(course: Book) -> None:
    (course.root / "my" / "notes.txt").write_text("mine", encoding="utf-8")
    publish(course, V2)
    lay(course)
    assert names(course) == [THEIRS, "notes.txt"]


def test_the_pages_beside_the_chapters_are_laid_and_kept_as_the_chapters_are(
    course: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    page, copy = course.root / "chapters" / "glossary.md", course.root / "my" / "glossary.md"
    for text in ("first", "second"):  # nobody wrote in the first
        page.write_text(text, encoding="utf-8")
        lay(course)
        assert copy.read_text(encoding="utf-8") == text
    copy.write_text("second, with a note", encoding="utf-8")
    lay(course)
    assert names(course) == [THEIRS, "glossary.md"]
    assert capsys.readouterr().out == ""
    page.write_text("third", encoding="utf-8")
    lay(course)
    assert copy.read_text(encoding="utf-8") == "second, with a note"
    assert (course.root / "my" / "glossary (new version).md").read_text(encoding="utf-8") == "third"
    new = "my/glossary (new version).md"
    assert capsys.readouterr().out == f"glossary has a new version. Yours is as you left it; the new one is {new}\n"


def test_a_folder_that_cannot_be_written_is_named(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(book, V1)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)  # root may write anywhere, so the refusal is played
        with pytest.raises(ValueError, match=r"my, the folder for your copies of the chapters: Permission denied"):
            lay(book)
    (book.root / "my").write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match="the folder for your copies of the chapters: "):
        lay(book)


# In the course itself


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """What git has of this course's chapters, as a repository of its own, laid."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "chapters", folder / "chapters")
    for name in ("book.toml", "measured.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "all")
    book = read_book(folder)
    lay(book)
    return book


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_saving_a_copy_leaves_git_status_clean_and_saving_a_chapter_would_not(clone: Book) -> None:
    for folder, status in (("my", ""), ("chapters", " M chapters/00_start_here.ipynb\n")):
        path = clone.root / folder / "00_start_here.ipynb"
        opened = nbformat.read(path, as_version=4)
        opened.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
        nbformat.write(opened, path)
        assert git(clone.root, "status", "--porcelain") == status


def test_a_copy_finds_the_course_and_its_data(clone: Book) -> None:
    assert find_root(clone.root / "my") == clone.root.resolve()


def test_pictures_and_links_of_every_copy_resolve(clone: Book) -> None:
    found = 0
    for chapter in clone.chapters.values():
        cells = nbformat.read(clone.root / "my" / f"{chapter.name}.ipynb", as_version=4).cells
        for target in re.findall(r"\]\(([^)#\s]+)", "\n".join(c.source for c in cells if c.cell_type == "markdown")):
            if "://" not in target:
                there = (clone.root / "my" / unquote(target)).resolve()
                assert (ROOT / there.relative_to(clone.root.resolve())).exists() or there.exists(), target
                found += 1
    assert found > 2 * len(clone.chapters)

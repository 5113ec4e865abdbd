"""The learner's copies of the chapters and the glossary, in ``my/``: laid, brought up to date, never written over."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from companion.checkpoint import written_whole
from companion.course.manifest import Book

FOLDER = "my"
RECORD = ".laid.json"  # what was laid: for each file a hash of its bytes, and one of what its cells say


def lay(book: Book) -> Path:
    """Copy each chapter, and each page in Markdown beside them, into ``my/``, or bring its copy up to date.

    It prints a line for each new version that is put beside what the learner wrote.

    A copy in which the learner wrote nothing is replaced by a new version of the chapter. Where they wrote, theirs
    stays, and the new version is put beside it. A copy that they deleted comes back, a new version that they deleted
    does not. Running or saving a notebook is not writing: what counts is the text of its cells.

    Returns:
        The folder.

    Raises:
        ValueError: the folder cannot be written.
    """
    folder = book.root / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        record = _read(folder / RECORD)
        for chapter in book.chapters.values():
            _lay_one(book.notebook(chapter), folder, record)
        for page in sorted((book.root / book.src).glob("*.md")):
            _lay_one(page, folder, record)
        # Last: where this is cut off, a file that the record does not know is one that the learner may have written.
        with written_whole(folder / RECORD) as file:
            file.write(json.dumps(record, indent=1).encode())
    except OSError as error:
        raise ValueError(f"{folder}, the folder for your copies of the chapters: {error.strerror or error}") from error
    return folder


def _lay_one(source: Path, folder: Path, record: dict[str, dict[str, str]]) -> None:
    new = source.read_bytes()
    version = {"file": hashlib.sha256(new).hexdigest(), "cells": _written(new)}
    for name in _names(source):
        path, laid = folder / name, record.get(name, {})
        if path.exists():
            held = path.read_bytes()
            untouched = hashlib.sha256(held).hexdigest() == laid.get("file")
            if held == new or (_written(held) == version["cells"] and not untouched):
                record[name] = version  # up to date, perhaps with outputs of their own
                return
            if not untouched and _written(held) != laid.get("cells"):  # they wrote in it
                if laid.get("cells") == version["cells"]:
                    return  # into this very version
                continue
        elif laid.get("cells") == version["cells"] and name != source.name:
            return  # they did not want it
        with written_whole(path) as file:
            file.write(new)
        record[name] = version
        if name != source.name:
            print(f"{source.stem} has a new version. Yours is as you left it; the new one is {folder.name}/{name}")
        return


def _names(source: Path) -> Iterator[str]:
    yield source.name
    yield f"{source.stem} (new version){source.suffix}"
    number = 2
    while True:
        yield f"{source.stem} (new version {number}){source.suffix}"
        number += 1


def _written(notebook: bytes) -> str:
    """A hash of what a notebook says: kind and text of its cells, but for the empty one that JupyterLab adds below.

    Of any other file, a hash of its bytes.
    """
    try:
        cells = json.loads(notebook)["cells"]
        said = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, KeyError, TypeError):
        return f"no notebook: {hashlib.sha256(notebook).hexdigest()}"
    text = json.dumps([(kind, text) for kind, text in said if text.strip()])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """The record; an empty one where it is absent or damaged, so that everything counts as the learner's."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    entries = record.items() if isinstance(record, dict) else ()
    return {name: laid for name, laid in entries if isinstance(laid, dict)}

"""A tiny course in a folder of its own, for the tests of the tools."""

from pathlib import Path

import pytest

from companion.course.manifest import Book, read_book
from companion.course.measure import END, START

BOOK = """\
# A comment that stays.
[book]
title = "A tiny course"
authors = ["someone"]
description = "For tests"
language = "en"
src = "chapters"

[chapters.00_tiny]
title = "Tiny"
builds = "nothing"
status = "ready"
quick = { data = "glyphs", train_images = 60, test_images = 40, epochs = 2 }
full = { data = "mnist", train_images = 60000, test_images = 10000, epochs = 3 }
smoke = { data = "glyphs", train_images = 20, test_images = 10, epochs = 1 }

[measured.00_tiny.quick.cpu]
minutes = 2.2
memory_mb = 700
runs = 5
machine = "2 CPU cores"
versions = { torch = "2.15.0" }

[measured.00_tiny.quick.bands]
test_mse = [0.9, 1.1]
"""


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """The manifest of a course with one chapter, ``00_tiny``, which has no source yet."""
    (tmp_path / "book.toml").write_text(BOOK, encoding="utf-8")
    (tmp_path / "README.md").write_text(f"before\n{START}\n{END}\nafter\n", encoding="utf-8")
    (tmp_path / "solutions").mkdir()
    return read_book(tmp_path)

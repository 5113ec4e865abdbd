"""The glossary: sorted, without doubles, and its chapters and names exist."""

import importlib
import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from companion.course.manifest import read_book

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "chapters" / "glossary.md"
COLUMNS = ["term", "symbol", "shape", "meaning", "chapter", "in `companion`"]


@dataclass(frozen=True)
class Entry:
    """A row of the table of terms."""

    term: str
    symbol: str
    shape: str
    meaning: str
    chapter: str
    name: str


def entries(text: str) -> list[Entry]:
    _, _, table = text.partition(f"| {' | '.join(COLUMNS)} |\n")
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert all(len(row) == len(COLUMNS) for row in rows)
    return [Entry(*row) for row in rows[1:]]


ENTRIES = entries(PAGE.read_text(encoding="utf-8"))


def test_it_has_all_terms_in_one_sorted_table_without_doubles() -> None:
    terms = [entry.term.casefold() for entry in ENTRIES]
    assert 60 <= len(terms) <= 140
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.term)
def test_a_term_has_one_sentence_and_stands_in_its_chapter(entry: Entry) -> None:
    assert entry.meaning.endswith(".")
    assert ". " not in entry.meaning
    book = read_book(ROOT)
    (chapter,) = book.select(entry.chapter)
    assert chapter.name.startswith(f"{entry.chapter}_")
    assert entry.term.casefold() in prose(book.solution(chapter, ".py").read_text(encoding="utf-8"))


def prose(source: str) -> str:
    """The text of a source, with its lines joined."""
    return " ".join(re.sub(r"\n# ?", "\n", source).casefold().split())


@pytest.mark.parametrize("name", sorted({entry.name for entry in ENTRIES if entry.name}))
def test_a_name_exists(name: str) -> None:
    assert re.fullmatch(r"`[\w.]+(\(\w+\))?`", name)
    assert exists(name.strip("`"))


def exists(name: str) -> bool:
    """Whether companion has ``module.Class.method``, or one that takes the argument in ``Class(argument)``."""
    path, _, argument = name.removesuffix(")").partition("(")
    found: Any = importlib.import_module("companion")
    for part in path.split("."):
        if inspect.ismodule(found) and not hasattr(found, part):
            try:
                found = importlib.import_module(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                return False
        elif hasattr(found, part):
            found = getattr(found, part)
        else:  # of a result, a field without a default is no attribute of the class
            return is_dataclass(found) and part in {field.name for field in fields(found)}
    return not argument or argument in inspect.signature(found).parameters


@pytest.mark.parametrize(
    "name", ["Judge", "metrics.no", "VQVAE.no", "VQVAE(no)", "VQVAEOutput.no", "no.mse", "fit.seed", "priors.Prior(no)"]
)
def test_a_name_that_does_not_exist_would_be_seen(name: str) -> None:
    assert not exists(name)


def test_the_pages_that_point_to_it_do() -> None:
    for page in ("CONTRIBUTING.md", "README.md"):
        assert "(chapters/glossary.md)" in (ROOT / page).read_text(encoding="utf-8")
    assert "](../chapters/glossary.md)" in (ROOT / "solutions" / "00_start_here.py").read_text(encoding="utf-8")

"""The manifest: ``book.toml`` (chapters in order, what each builds, its settings), written by hand, and beside it
``measured.toml`` (minutes, memory and bands of each), written by ``make measure`` only."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILES = ("quick", "full", "smoke")
MANIFEST = "book.toml"
MEASURED = "measured.toml"


@dataclass(frozen=True)
class Measured:
    """What one profile of one chapter took on one kind of device, written by ``make measure``."""

    minutes: float
    memory_mb: int
    machine: str
    runs: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Chapter:
    """One chapter: ``settings[profile]``, ``measured[profile][device kind]``, ``bands[profile][value]``."""

    name: str
    title: str
    builds: str
    status: str
    settings: Mapping[str, Mapping[str, Any]]
    measured: Mapping[str, Mapping[str, Measured]]
    bands: Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Book:
    """The whole manifest, and the folder that it is in."""

    root: Path
    title: str
    authors: tuple[str, ...]
    description: str
    language: str
    src: str
    chapters: Mapping[str, Chapter]

    def chapter(self, name: str) -> Chapter:
        """The chapter called ``name``.

        Raises:
            ValueError: there is none; the message lists those there are.
        """
        if name not in self.chapters:
            raise ValueError(f"name: got {name!r}, want one of {', '.join(self.chapters)}")
        return self.chapters[name]

    def select(self, name: str | None) -> list[Chapter]:
        """The chapter that ``name`` begins, or has as its number (``7``, ``07``); with ``None`` all, in order.

        Raises:
            ValueError: there is none, or more than one; the message lists those there are.
        """
        if name is None:
            return list(self.chapters.values())
        number = re.fullmatch(r"(\d+)([a-z]?)", name)
        start = f"{int(number[1]):02}{number[2]}_" if number else name
        found = [chapter for chapter in self.chapters.values() if chapter.name.startswith(start)]
        found = [chapter for chapter in found if chapter.name == name] or found
        if len(found) != 1:
            there_are = ", ".join(chapter.name for chapter in found) or ", ".join(self.chapters)
            raise ValueError(f"chapter: got {name!r}, want one of {there_are}")
        return found

    def solution(self, chapter: Chapter, suffix: str = ".ipynb") -> Path:
        """What authors edit (``.py``), or what it gave when executed (``.ipynb``)."""
        return self.root / "solutions" / f"{chapter.name}{suffix}"

    def notebook(self, chapter: Chapter) -> Path:
        """What learners open."""
        return self.root / self.src / f"{chapter.name}.ipynb"

    def cover(self, chapter: Chapter) -> Path:
        """The picture at the top of the chapter."""
        return self.root / self.src / "pictures" / f"{chapter.name}.png"


def find_root(start: Path | None = None) -> Path:
    """The nearest folder at or above ``start`` (default: the working folder) with a manifest.

    Where there is none, the folder that an editable install of this package lies in.

    Raises:
        ValueError: neither has a manifest.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[2]):
        if (folder / MANIFEST).is_file():
            return folder
    raise ValueError(f"no {MANIFEST} at or above {start}: run this inside a copy of the course")


def read_book(root: Path | None = None) -> Book:
    """Read the manifest of ``root`` (default: the course that the working folder lies in), with what was measured.

    Raises:
        ValueError: it is not TOML, or an entry is missing or of the wrong kind; the message names it.
    """
    root = find_root() if root is None else root
    table, measured = _parsed(root / MANIFEST), read_measured(root)
    book = _entry(table, "book", dict)
    return Book(
        root=root,
        title=_entry(book, "title", str, "book."),
        authors=tuple(_entry(book, "authors", list, "book.")),
        description=_entry(book, "description", str, "book."),
        language=_entry(book, "language", str, "book."),
        src=_entry(book, "src", str, "book."),
        chapters={
            name: _chapter(name, entry, measured.get(name, {}))
            for name, entry in _entry(table, "chapters", dict).items()
        },
    )


def read_measured(root: Path) -> dict[str, Any]:
    """What ``measured.toml`` in ``root`` holds: ``[chapter][profile][device kind or "bands"]``; empty without the file.

    Raises:
        ValueError: it is not TOML.
    """
    path = root / MEASURED
    return _parsed(path) if path.is_file() else {}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def _chapter(name: str, table: dict[str, Any], measured: dict[str, Any]) -> Chapter:
    where = f"chapters.{name}."
    return Chapter(
        name=name,
        title=_entry(table, "title", str, where),
        builds=_entry(table, "builds", str, where),
        status=_entry(table, "status", str, where),
        settings={profile: _entry(table, profile, dict, where) for profile in PROFILES},
        measured={
            profile: {
                kind: _measured(entry, f"{name}.{profile}.{kind}.")
                for kind, entry in kinds.items()
                if kind not in ("bands", "bands_from")
            }
            for profile, kinds in measured.items()
        },
        bands={
            profile: {value: (float(low), float(high)) for value, (low, high) in kinds.get("bands", {}).items()}
            for profile, kinds in measured.items()
        },
    )


def _measured(table: dict[str, Any], where: str) -> Measured:
    return Measured(
        minutes=_entry(table, "minutes", float, where, MEASURED),
        memory_mb=_entry(table, "memory_mb", int, where, MEASURED),
        machine=_entry(table, "machine", str, where, MEASURED),
        runs=_entry(table, "runs", int, where, MEASURED),
        versions=_entry(table, "versions", dict, where, MEASURED),
    )


def _entry(table: dict[str, Any], key: str, kind: type, where: str = "", file: str = MANIFEST) -> Any:
    if key not in table:
        raise ValueError(f"{file}: {where}{key} is missing; it is to be a {kind.__name__}")
    if not isinstance(table[key], kind):
        raise ValueError(f"{file}: {where}{key} is {table[key]!r}; it is to be a {kind.__name__}")
    return table[key]

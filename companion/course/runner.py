"""For instructors: run every solution on this machine, and say how it went."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import nbformat

from companion.course.authoring import write
from companion.course.execution import CellError, Cost, execute
from companion.course.manifest import Book, Chapter
from companion.course.session import current_profile, default_device


@dataclass
class Outcome:
    """How one chapter went."""

    chapter: str
    result: str  # "passed", "failed" or "interrupted"
    minutes: float
    expected_minutes: float | None
    memory_mb: int
    error: str


SHORTEST_TIMEOUT = 600  # seconds; other machines are slower than the one that was measured, but not endlessly


def run_solutions(
    book: Book, chapters: list[Chapter], profile: str | None = None, *, timeout: int | None = None
) -> int:
    """Run the committed ``solutions/*.ipynb`` of ``chapters``, going on after a failure.

    The executed notebooks and the table of results are kept in ``runs/<date>_<profile>/``; what is committed
    stays as it is. Returns the exit status: 0 when every chapter passed.

    A cell may take ``timeout`` seconds; without it ten times what its whole chapter was measured to take, and ten
    minutes at least.

    Raises:
        ValueError: ``timeout`` is not positive.
    """
    if timeout is not None and timeout < 1:
        raise ValueError(f"timeout: got {timeout}, want at least 1 second")
    profile = profile or current_profile()
    folder = book.root / "runs" / f"{datetime.now():%Y-%m-%d_%H%M%S}_{profile}"
    folder.mkdir(parents=True)
    outcomes: list[Outcome] = []
    for chapter in chapters:
        outcomes.append(_run(book, chapter, profile, folder, timeout))
        (folder / "results.md").write_text(table(outcomes), encoding="utf-8")
        results = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
        (folder / "results.json").write_text(results + "\n", encoding="utf-8")
        if outcomes[-1].result == "interrupted":
            break
    print(f"\n{table(outcomes)}\nThe notebooks and this table: {folder.relative_to(book.root)}")
    return int(any(outcome.result != "passed" for outcome in outcomes))


def _run(book: Book, chapter: Chapter, profile: str, folder: Path, timeout: int | None) -> Outcome:
    measured = chapter.measured.get(profile, {}).get(default_device().type)
    outcome = Outcome(chapter.name, "passed", 0.0, measured.minutes if measured else None, 0, "")
    path, cost = book.solution(chapter), Cost()
    if not path.is_file():
        outcome.result, outcome.error = "failed", f"{path.relative_to(book.root)} is missing"
        return outcome
    notebook = nbformat.read(path, as_version=4)
    if timeout is None:
        timeout = max(SHORTEST_TIMEOUT, round(10 * 60 * (outcome.expected_minutes or 0)))
    try:
        env = {"COMPANION_PROFILE": profile, "COMPANION_STRICT": "1"}
        execute(notebook, name=chapter.name, folder=path.parent, env=env, cost=cost, timeout=timeout)
    except CellError as error:
        outcome.result, outcome.error = "failed", str(error)
    except KeyboardInterrupt:
        outcome.result = "interrupted"
    write(notebook, folder / path.name)
    outcome.minutes, outcome.memory_mb = round(cost.minutes, 2), cost.memory_mb
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as an aligned Markdown table."""
    rows = [["chapter", "result", "minutes", "expected", "memory (MB)", "first error"]]
    for outcome in outcomes:
        expected = "not measured" if outcome.expected_minutes is None else f"{outcome.expected_minutes:.1f}"
        error = " ".join(outcome.error.replace("|", "\\|").split())
        memory = str(outcome.memory_mb)
        rows.append([outcome.chapter, outcome.result, f"{outcome.minutes:.1f}", expected, memory, error])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)

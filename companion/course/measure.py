"""For authors: run a solution once per seed; write its minutes, memory and bands into ``book.toml``."""

import statistics
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import tomlkit
import torch
from scipy.special import stdtrit

from companion.checkpoint import written_whole
from companion.course.authoring import solution_notebook
from companion.course.execution import AS_IT_IS, PROCESSORS, Cost, execute, glued
from companion.course.manifest import MANIFEST, Book, Chapter, read_book
from companion.course.session import EXPECTED, current_profile, default_device, machine

FEWEST = 5
START, END = "<!-- chapters: written by `make measure` from book.toml -->", "<!-- /chapters -->"


def measure(book: Book, chapters: list[Chapter], profile: str | None = None, *, seeds: int = FEWEST) -> None:
    """Run each chapter's source with seeds 0 … ``seeds`` - 1 and write what was measured, chapter by chapter.

    Fewer than five seeds say too little about the spread: they measure minutes and memory, and leave the bands.

    On a CPU the runs take turns at the entries of ``PROCESSORS``, written down as ``settings``. A band has to hold
    on the reader's processor, where the last digits differ from the first step on and training carries them far: that
    spread belongs into it as the seeds' does. The minutes are those of the machine as it is.

    Raises:
        ValueError: ``seeds`` is not positive.
        CellError: a run failed; what was measured of earlier chapters is kept.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, want at least 1, and {FEWEST} for bands")
    profile = profile or current_profile()
    device = default_device()
    processors = PROCESSORS if device.type == "cpu" else {AS_IT_IS: {}}
    settings = list(processors)[:seeds]
    for chapter in chapters:
        costs = [Cost() for _ in range(seeds)]
        values: dict[str, list[float]] = {}
        for seed, cost in enumerate(costs):
            setting = settings[seed % len(settings)]
            notebook = solution_notebook(book, chapter)
            execute(
                notebook,
                name=f"{chapter.name}, {profile}, seed {seed}, {setting}",
                folder=book.solution(chapter).parent,
                env={"COMPANION_PROFILE": profile, "COMPANION_SEED": str(seed)} | processors[setting],
                cost=cost,
            )
            for name, value in glued(notebook).items():
                if name.startswith(EXPECTED):
                    values.setdefault(name.removeprefix(EXPECTED), []).append(value)
        entry = {
            "minutes": round(statistics.median(cost.minutes for cost in costs[:: len(settings)]), 2),  # as it is
            "memory_mb": max(cost.memory_mb for cost in costs),
            "runs": seeds,
            "machine": machine(device),
            "settings": settings,
            "versions": {"torch": torch.__version__},
        }
        bands = {name: band(runs) for name, runs in values.items()} if profile != "smoke" and seeds >= FEWEST else {}
        _record(book, chapter, profile, device.type, entry, bands)
        write_readme(read_book(book.root))


def chapter_table(book: Book) -> str:
    """The chapters as the README shows them: what each builds, the computer's minutes in profile quick, status."""
    lines = ["| chapter | builds | minutes | status |", "| --- | --- | --- | --- |"]
    for chapter in book.chapters.values():
        here = chapter.measured.get("quick", {}).get("cpu")
        link = f"[{chapter.name[:2]} · {chapter.title}]({book.src}/{chapter.name}.ipynb)"
        minutes = f"{here.minutes:.1f}" if here else "not measured"
        lines.append(f"| {link} | {chapter.builds} | {minutes} | {chapter.status} |")
    return "\n".join(lines)


def write_readme(book: Book) -> None:
    """Put the table between its two markers in README.md.

    Raises:
        ValueError: the markers are not there.
    """
    path = book.root / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md: wanted a line {START} and below it a line {END}")
    with written_whole(path) as file:
        file.write(f"{before}{start}\n{chapter_table(book)}\n{end}{after}".encode())


def band(values: list[float]) -> list[float]:
    """Where 99 of 100 further runs fall, mean ± t₀.₉₉₅(n-1) · s · √(1 + 1/n), rounded outward."""
    n = len(values)
    reach = float(stdtrit(n - 1, 0.995)) * statistics.stdev(values) * (1 + 1 / n) ** 0.5
    mean = statistics.fmean(values)
    return [_rounded(mean - reach, ROUND_FLOOR), _rounded(mean + reach, ROUND_CEILING)]


def _rounded(value: float, direction: str) -> float:
    exact = Decimal(value)
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), direction))


def _record(
    book: Book,
    chapter: Chapter,
    profile: str,
    kind: str,
    entry: dict[str, Any],
    bands: dict[str, list[float]],
) -> None:
    path = book.root / MANIFEST
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    table: Any = document
    for key in ("measured", chapter.name, profile):
        if key not in table:
            table.add(key, tomlkit.table(is_super_table=True))
        table = table[key]
    table[kind] = entry
    if bands:
        table["bands"] = bands
    with written_whole(path) as file:
        file.write(tomlkit.dumps(document).encode())
    print(f"{MANIFEST}: measured.{chapter.name}.{profile}: {entry['minutes']} minutes, {len(bands)} bands")

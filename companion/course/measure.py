"""For authors: run a solution once per seed; write its minutes, memory and bands into ``measured.toml``."""

import hashlib
import json
import statistics
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import tomlkit
import torch
from nbformat.v4 import new_code_cell
from scipy.special import stdtrit

from companion.checkpoint import written_whole
from companion.course.authoring import solution_notebook
from companion.course.execution import AS_IT_IS, PROCESSORS, Cost, execute, glued
from companion.course.manifest import MEASURED, PROFILES, Book, Chapter, read_book, read_measured
from companion.course.session import EXPECTED, current_profile, default_device, machine

FEWEST = 5
_GPU_MEMORY = """
import torch
from myst_nb import glue

glue("gpu_memory_mb", torch.cuda.max_memory_reserved() // 2**20, display=False)
"""  # a last cell, only when measured on a GPU: torch counts it in the process that took it
HEADER = "Written by `make measure`, never by hand: minutes and memory of each chapter, and the bands of its numbers."
START, END = "<!-- chapters: written by `make measure` from book.toml and measured.toml -->", "<!-- /chapters -->"


def measure(
    book: Book,
    chapters: list[Chapter],
    profile: str | None = None,
    *,
    seeds: int = FEWEST,
    keep: Path | None = None,
) -> None:
    """Run the source of each chapter with the seeds 0 … ``seeds`` − 1, and write what was measured after each chapter.

    Fewer than five seeds say too little about the spread. They measure minutes and memory, and leave the bands.

    On a CPU, the runs alternate between the entries of ``PROCESSORS``, which are written as ``settings``. A band has to
    hold on any processor: rounding differs between them, and training makes the difference large. So a band contains
    this spread as well as that of the seeds. The minutes are those without special settings.

    Args:
        keep: a folder in which the result of each run is kept. A run of the same source on the same machine is not
            repeated, so that a measurement can be stopped and continued.

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
        runs = [_run(book, chapter, profile, seed, settings[seed % len(settings)], keep) for seed in range(seeds)]
        values: dict[str, list[float]] = {}
        for run in runs:
            for name, value in run["values"].items():
                values.setdefault(name, []).append(value)
        entry = {
            "minutes": round(statistics.median(run["minutes"] for run in runs[:: len(settings)]), 2),  # as it is
            "memory_mb": max(run["memory_mb"] for run in runs),
            "runs": seeds,
            "machine": machine(device),
            "versions": {"torch": torch.__version__},
        }
        if device.type == "cuda":
            entry["gpu_memory_mb"] = max(run["gpu_memory_mb"] for run in runs)
        bands = {name: band(runs) for name, runs in values.items()} if profile != "smoke" and seeds >= FEWEST else {}
        bands_from = {"runs": seeds, "machine": entry["machine"], "settings": settings, "versions": entry["versions"]}
        _record(book, chapter, profile, device.type, entry, bands, bands_from)
        write_readme(read_book(book.root))


def _run(book: Book, chapter: Chapter, profile: str, seed: int, setting: str, keep: Path | None) -> dict[str, Any]:
    """Time, memory and values of one run under an entry of ``PROCESSORS``; read from ``keep`` if they are there."""
    notebook, device, cost = solution_notebook(book, chapter), default_device(), Cost()
    cells = "\n".join(cell.source for cell in notebook.cells)
    about = {
        "source": hashlib.sha256(repr((cells, dict(chapter.settings[profile]))).encode()).hexdigest(),
        "machine": machine(device),
        "setting": setting,
        "torch": torch.__version__,
    }
    path = keep / f"{chapter.name}.{profile}.{device.type}.{seed}.json" if keep else None
    if path and path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.items() >= about.items():
            return kept
    if device.type == "cuda":
        notebook.cells.append(new_code_cell(_GPU_MEMORY))
    execute(
        notebook,
        name=f"{chapter.name}, {profile}, seed {seed}, {setting}",
        folder=book.solution(chapter).parent,
        env={"COMPANION_PROFILE": profile, "COMPANION_SEED": str(seed)} | PROCESSORS[setting],
        cost=cost,
    )
    found = glued(notebook)
    values = {name.removeprefix(EXPECTED): value for name, value in found.items() if name.startswith(EXPECTED)}
    took = {"minutes": cost.minutes, "memory_mb": cost.memory_mb, "gpu_memory_mb": found.get("gpu_memory_mb")}
    run = about | took | {"values": values}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps(run, indent=1).encode())
    return run


def chapter_table(book: Book) -> str:
    """The table of chapters for the README: what each builds, its minutes of computing in profile quick, its status."""
    lines = ["| chapter | builds | minutes | status |", "| --- | --- | --- | --- |"]
    for chapter in book.chapters.values():
        here = chapter.measured.get("quick", {}).get("cpu")
        number, _, _ = chapter.name.partition("_")
        link = f"[{number} · {chapter.title}]({book.src}/{chapter.name}.ipynb)"
        minutes = f"{here.minutes:.1f}" if here else "not measured"
        lines.append(f"| {link} | {chapter.builds} | {minutes} | {chapter.status} |")
    return "\n".join(lines)


def write_readme(book: Book) -> None:
    """Write the table between its two markers in README.md.

    Raises:
        ValueError: the markers are missing.
    """
    path = book.root / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md: wanted a line {START} and below it a line {END}")
    with written_whole(path) as file:
        file.write(f"{before}{start}\n{chapter_table(book)}\n{end}{after}".encode())


def band(values: list[float]) -> list[float]:
    """The interval in which 99 of 100 further runs fall: mean ± t₀.₉₉₅(n − 1) · s · √(1 + 1/n), rounded outward."""
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
    bands_from: dict[str, Any],
) -> None:
    measured = read_measured(book.root)
    entries = measured.setdefault(chapter.name, {}).setdefault(profile, {})
    entries[kind] = entry
    if bands:
        entries |= {"bands": bands, "bands_from": bands_from}
    with written_whole(book.root / MEASURED) as file:
        file.write(as_toml(measured).encode())
    print(f"{MEASURED}: {chapter.name}.{profile}: {entry['minutes']} minutes, {len(bands)} bands")


def as_toml(measured: dict[str, Any]) -> str:
    """What ``read_measured`` reads: a table for each chapter, profile and kind of device, and two for the
    bands and the runs that they come from."""
    document = tomlkit.document()
    document.add(tomlkit.comment(HEADER))
    for name, profiles in sorted(measured.items()):
        chapter = tomlkit.table(is_super_table=True)
        for profile in sorted(profiles, key=PROFILES.index):
            kinds = tomlkit.table(is_super_table=True)
            for kind in sorted(profiles[profile], key=lambda kind: (kind.startswith("bands"), kind)):
                kinds.add(kind, _table(profiles[profile][kind]))
            chapter.add(profile, kinds)
        document.add(name, chapter)
    return tomlkit.dumps(document).rstrip() + "\n"


def _table(entries: dict[str, Any]) -> Any:
    table = tomlkit.table()
    for name, value in entries.items():
        if isinstance(value, dict):  # the versions, on one line
            inline = tomlkit.inline_table()
            inline.update(value)
            value = inline
        table.add(name, value)
    table.add(tomlkit.nl())
    return table

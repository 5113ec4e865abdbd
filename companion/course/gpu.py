"""For authors with a GPU: tests on it, the tables of ``make bench``, profile full of every chapter (``make gpu``).

The work is divided into pieces, each a command of less than ten minutes. The outcome of each is kept in ``runs/gpu/``,
so that the same command continues where it was stopped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch

from companion._devices import default_device
from companion.checkpoint import written_whole
from companion.course.manifest import Book
from companion.course.measure import FEWEST
from companion.course.session import machine

MINUTES = 10.0  # the most that a piece may take


@dataclass(frozen=True)
class Piece:
    """One command, run in the root of the course."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a piece: "passed", "failed" or "too long"; ``ending`` is the last line that it printed."""

    result: str
    minutes: float
    ending: str
    machine: str
    torch: str
    date: str


def run_on_gpu(book: Book, *, only: str = "", limit_minutes: float, again: bool = False, show: bool = False) -> int:
    """Run the pieces with ``only`` in their name, print how each went, and return the exit status: 0 if none failed."""
    folder = book.root / "runs" / "gpu"
    if not torch.cuda.is_available() and not show:
        print("make gpu: torch finds no GPU on this machine; nothing was run", file=sys.stderr)
        return 1
    chosen = [piece for piece in pieces(book, folder) if only in piece.name]
    if not chosen:
        raise ValueError(f"only: got {only!r}, which is in no piece's name; --list names them")
    if again and not show:
        shutil.rmtree(folder, ignore_errors=True)
    if not show:
        run_pieces(chosen, folder, cwd=book.root, limit_minutes=limit_minutes, where=machine(default_device()))
    found = {piece.name: outcome(folder, piece) for piece in chosen}
    for name, came in found.items():
        print(f"{name:<40} {f'{came.result}, {came.minutes:.1f} minutes' if came else 'not run yet'}")
    left = sum(came is None for came in found.values())
    failed = sum(came is not None and came.result != "passed" for came in found.values())
    print(f"{len(chosen) - left - failed} passed, {failed} failed, {left} left; the same command goes on. See {folder}")
    return int(failed > 0)


def pieces(book: Book, folder: Path) -> list[Piece]:
    """All pieces, each after those that it depends on."""
    from benchmarks.command import parts  # here: only a checkout of the course has them

    python = (sys.executable, "-m")
    pytest = (*python, "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda")
    found = [Piece(f"test {path.stem}", (*pytest, f"tests/{path.name}")) for path in _test_files(book)]
    for name in book.chapters:
        notebooks = (f"solutions/{name}.ipynb", f"{book.src}/{name}.ipynb")
        found.append(Piece(f"notebooks {name}", (*pytest, "--nbval-lax", *notebooks)))
    bench = (*python, "benchmarks", "--device", "cuda", "--keep", str(folder / "bench"))
    found += [Piece(f"bench {part}", (*bench, "--part", part)) for part in parts(torch.device("cuda"), quick=False)]
    found.append(Piece("bench tables", bench))  # of what the parts kept
    measure = (*python, "companion.course", "measure", "--profile", "full", "--keep", str(folder / "chapters"))
    for name in book.chapters:
        for seeds in range(1, FEWEST + 1):  # each adds one seed to those that are kept; the last writes the bands
            command = (*measure, "--chapter", name, "--seeds", str(seeds))
            found.append(Piece(f"chapter {name} seed {seeds - 1}", command))
    return found


def run_pieces(
    todo: Sequence[Piece], folder: Path, *, cwd: Path, limit_minutes: float, where: str, minutes: float = MINUTES
) -> None:
    """Run the pieces that were not run yet, then those that failed, and keep the outcome of each in ``folder``.

    After a failure the others are still run. Ctrl-C ends the piece that is running, which then counts as not run.

    Args:
        limit_minutes: begin no piece after so many minutes.
        where: the machine, in words.
        minutes: stop a piece that takes longer.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    before = {piece.name: outcome(folder, piece) for piece in todo}
    left = [piece for piece in todo if before[piece.name] is None]
    left += [piece for piece in todo if (came := before[piece.name]) is not None and came.result != "passed"]
    for number, piece in enumerate(left, start=1):
        if time.monotonic() - began > limit_minutes * 60:
            print(f"{limit_minutes:g} minutes are over: {len(left) - number + 1} pieces are left")
            return
        print(f"[{number}/{len(left)}] {piece.name}", flush=True)
        start = time.monotonic()
        log = _path(folder, piece, ".log")
        result = _run(piece, log, cwd, minutes)
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        came = Outcome(
            result=result,
            minutes=round((time.monotonic() - start) / 60, 2),
            ending=lines[-1].strip()[:300] if lines else "",
            machine=where,
            torch=torch.__version__,
            date=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
        with written_whole(_path(folder, piece, ".json")) as file:
            file.write(json.dumps({"piece": piece.name} | asdict(came), indent=1).encode())
        print(f"    {came.result}, {came.minutes:.1f} minutes: {came.ending}", flush=True)


def outcome(folder: Path, piece: Piece) -> Outcome | None:
    """The outcome of a piece, or None if it was not run."""
    path = _path(folder, piece, ".json")
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**{name: kept[name] for name in Outcome.__dataclass_fields__})


def _run(piece: Piece, log: Path, cwd: Path, minutes: float) -> str:
    """Run a piece with its output in ``log``; after Ctrl-C or too long a time, all of its processes are ended."""
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}  # the log has output and errors in the order of their writing
    with log.open("wb") as out:
        process = subprocess.Popen(
            piece.command,
            cwd=cwd,
            env=unbuffered,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )
        try:
            return "passed" if process.wait(minutes * 60) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "too long"
        finally:
            if process.poll() is None:
                if os.name == "posix":
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()


def _path(folder: Path, piece: Piece, suffix: str) -> Path:
    return folder / f"{piece.name.replace(' ', '-')}{suffix}"


def _test_files(book: Book) -> list[Path]:
    return sorted((book.root / "tests").glob("test_*.py"))

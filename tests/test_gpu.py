"""``make gpu``, with pieces that pretend."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from companion.course import gpu, measure
from companion.course.__main__ import main
from companion.course.gpu import Outcome, Piece, outcome, run_pieces
from companion.course.manifest import Book, read_book

ROOT = Path(__file__).parents[1]


def piece(name: str, code: str) -> Piece:
    return Piece(name, (sys.executable, "-c", code))


def counting(name: str, ending: str = "") -> Piece:
    """It adds a line to a file of its name each time it runs."""
    return piece(name, f"open({name!r}, 'a').write('x\\n'); {ending}")


def times(folder: Path, name: str) -> int:
    path = folder / name
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def run(pieces: list[Piece], folder: Path, **options: float) -> None:
    run_pieces(pieces, folder / "kept", cwd=folder, where="a pretended GPU", **({"limit_minutes": 60} | options))


def results(pieces: list[Piece], folder: Path) -> list[str | None]:
    came = [outcome(folder / "kept", one) for one in pieces]
    return [one and one.result for one in came]


def test_a_piece_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [piece("one bad", "print('on the way'); 1 / 0"), counting("good", "print('well')")]
    run(pieces, tmp_path)
    assert results(pieces, tmp_path) == ["failed", "passed"]
    bad = outcome(tmp_path / "kept", pieces[0])
    assert isinstance(bad, Outcome)
    assert (bad.ending, bad.machine, bad.torch) == (
        "ZeroDivisionError: division by zero",
        "a pretended GPU",
        torch.__version__,
    )
    assert "on the way" in (tmp_path / "kept" / "one-bad.log").read_text(encoding="utf-8")
    assert "failed" in capsys.readouterr().out


def test_the_same_command_goes_on_with_what_was_not_run_and_then_with_what_failed(tmp_path: Path) -> None:
    flaky = counting("flaky", "import os, sys; sys.exit(0 if os.path.exists('mended') else 1)")
    first, last = counting("first"), counting("last")
    run([first, flaky], tmp_path)
    (tmp_path / "mended").touch()
    run([first, flaky, last], tmp_path)
    assert [times(tmp_path, name) for name in ("first", "flaky", "last")] == [1, 2, 1]
    assert results([first, flaky, last], tmp_path) == ["passed"] * 3
    last_began = (tmp_path / "last").stat().st_mtime_ns
    assert (
        last_began < (tmp_path / "flaky").stat().st_mtime_ns
    )  # new ones first: one that always fails holds up nothing


def test_no_piece_begins_after_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [counting("first"), counting("second")]
    run(pieces, tmp_path, limit_minutes=1e-9)
    assert "2 pieces are left" in capsys.readouterr().out
    assert results(pieces, tmp_path) == [None, None]
    run(pieces, tmp_path)
    assert results(pieces, tmp_path) == ["passed", "passed"]


def test_a_piece_that_takes_too_long_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    pieces = [piece("slow", "import time; time.sleep(600)"), counting("next")]
    run(pieces, tmp_path, minutes=1 / 60)
    assert results(pieces, tmp_path) == ["too long", "passed"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process there")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_killed_in_a_piece_it_goes_on_with_that_piece(how: str, tmp_path: Path) -> None:
    """The piece in hand counts as not run; those before it are not run again."""
    waiting = "import os, time; open('pid', 'w').write(str(os.getpid())); os.path.exists('go') or time.sleep(600)"
    pieces = [counting("first"), counting("slow", waiting), counting("last")]
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\nfrom pathlib import Path\nfrom companion.course.gpu import Piece, run_pieces\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever started the tests may ignore it
        f"pieces = [Piece(name, tuple(command)) for name, command in {[(p.name, list(p.command)) for p in pieces]!r}]\n"
        "run_pieces(pieces, Path('kept'), cwd=Path('.'), limit_minutes=60, where='a pretended GPU')\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text(encoding="utf-8"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.Signals[how])
    working = int((tmp_path / "pid").read_text(encoding="utf-8"))
    if how == "SIGKILL":  # nobody was left to end it
        os.kill(working, signal.SIGKILL)
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(working, 0)
    assert results(pieces, tmp_path) == ["passed", None, None]
    (tmp_path / "go").touch()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert results(pieces, tmp_path) == ["passed"] * 3
    assert [times(tmp_path, name) for name in ("first", "slow", "last")] == [1, 2, 1]


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "make gpu: torch finds no GPU on this machine; nothing was run\n")


def test_with_a_gpu_it_runs_the_chosen_pieces_and_counts_them(
    book: Book, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended GPU")
    some = [counting("test a"), counting("bench b", "import sys; sys.exit(1)")]
    monkeypatch.setattr(gpu, "pieces", lambda book, folder: some)
    assert gpu.run_on_gpu(book, only="test", limit_minutes=60) == 0
    assert gpu.run_on_gpu(book, limit_minutes=60, show=True) == 0
    assert "1 passed, 0 failed, 1 left" in capsys.readouterr().out
    assert gpu.run_on_gpu(book, limit_minutes=60) == 1
    assert "1 passed, 1 failed, 0 left" in capsys.readouterr().out
    kept = json.loads((book.root / "runs" / "gpu" / "test-a.json").read_text(encoding="utf-8"))
    assert (kept["piece"], kept["result"], kept["machine"]) == ("test a", "passed", "Pretended GPU")
    assert gpu.run_on_gpu(book, only="test", limit_minutes=60, again=True) == 0
    assert times(book.root, "test a") == 2
    with pytest.raises(ValueError, match="only: got 'nothing', which is in no piece's name"):
        gpu.run_on_gpu(book, only="nothing", limit_minutes=60)


def test_the_pieces_are_all_tests_all_benchmarks_and_every_chapter_in_profile_full(tmp_path: Path) -> None:
    book = read_book(ROOT)
    commands = {piece.name: " ".join(piece.command) for piece in gpu.pieces(book, tmp_path)}
    for path in ROOT.glob("tests/test_*.py"):
        assert f"--device cuda tests/{path.name}" in commands[f"test {path.stem}"]
    for name in book.chapters:
        assert f"solutions/{name}.ipynb chapters/{name}.ipynb" in commands[f"notebooks {name}"]
        seeds = [command for piece, command in commands.items() if piece.startswith(f"chapter {name} ")]
        assert len(seeds) == measure.FEWEST  # so that bands come out
        assert all("--profile full" in command for command in seeds)
    assert "benchmarks --device cuda" in commands["bench tables"]
    assert len({gpu._path(tmp_path, one, "") for one in gpu.pieces(book, tmp_path)}) == len(commands)


def test_a_chapter_measured_seed_by_seed_runs_each_seed_once(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = book.chapter("00_tiny")
    source = """\
# %%
import os
from myst_nb import glue

open("runs", "a").write(os.environ["COMPANION_SEED"])
glue("expect.accuracy", 0.9 + int(os.environ["COMPANION_SEED"]) / 100, display=False)
"""
    book.solution(chapter, ".py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(measure, "FEWEST", 2)
    for seeds in (1, 2):
        measure.measure(book, [chapter], "quick", seeds=seeds, keep=tmp_path / "kept")
    assert (book.root / "solutions" / "runs").read_text(encoding="utf-8") == "01"
    assert read_book(book.root).chapter("00_tiny").bands["quick"].keys() == {"accuracy"}
    book.solution(chapter, ".py").write_text(source + "\n# %%\n1 + 1\n", encoding="utf-8")  # another source: anew
    measure.measure(book, [chapter], "quick", seeds=1, keep=tmp_path / "kept")
    assert (book.root / "solutions" / "runs").read_text(encoding="utf-8") == "010"


def test_the_memory_of_a_gpu_is_asked_in_the_kernel_that_took_it(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended GPU")
    chapter = book.chapter("00_tiny")
    book.solution(chapter, ".py").write_text("# %%\n1 + 1\n", encoding="utf-8")
    measure.measure(book, [chapter], "full", seeds=1)
    entry = tomllib.loads((book.root / "measured.toml").read_text(encoding="utf-8"))["00_tiny"]["full"]["cuda"]
    assert (entry["machine"], entry["gpu_memory_mb"]) == ("Pretended GPU", 0)  # torch took nothing: there is no GPU
    assert read_book(book.root).chapter("00_tiny").measured["full"]["cuda"].machine == "Pretended GPU"

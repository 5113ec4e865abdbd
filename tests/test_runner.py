"""Running every solution, going on after a failure; and measuring one."""

import json
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from companion.course import measure as measuring
from companion.course import runner
from companion.course.authoring import write
from companion.course.execution import MOST_OUTPUT, PROCESSORS, Cost, execute
from companion.course.manifest import Book, read_book
from companion.course.measure import as_toml, band, measure
from companion.course.runner import run_solutions

VARIABLES = {name for variables in PROCESSORS.values() for name in variables}


def test_a_failure_is_reported_and_the_rest_is_run(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    text = (book.root / "book.toml").read_text(encoding="utf-8")
    chapters = text[text.index("[chapters.") :].replace("00_tiny", "01_more")
    (book.root / "book.toml").write_text(text + chapters, encoding="utf-8")
    book = read_book(book.root)
    tiny, more = book.select(None)
    write(new_notebook(cells=[new_code_cell("a = 1"), new_code_cell("a / 0")]), book.solution(tiny))
    write(new_notebook(cells=[new_code_cell("print(1 + 1)")]), book.solution(more))
    committed = book.solution(more).read_bytes()

    assert run_solutions(book, [tiny, more], "quick") == 1
    (folder,) = (book.root / "runs").iterdir()
    failed, passed = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (failed["result"], passed["result"]) == ("failed", "passed")
    assert failed["error"] == "00_tiny, cell 2 (a / 0): ZeroDivisionError: division by zero"
    assert failed["expected_minutes"] in (2.2, None)  # None: this machine has a GPU, which was not measured
    assert passed["memory_mb"] > 20
    assert (folder / "results.md").read_text(encoding="utf-8") in capsys.readouterr().out
    assert '"2\\n"' in (folder / "01_more.ipynb").read_text(encoding="utf-8")
    assert book.solution(more).read_bytes() == committed
    assert run_solutions(book, [more], "full") == 0


ENDLESS = {
    "a loop": "while True: pass",
    "one that swallows the interrupt": "while True:\n    try:\n        while True: pass\n    except: pass",
    "one in C, which no interrupt reaches": "import collections, itertools\n"
    "collections.deque(itertools.count(), maxlen=0)",
}


@pytest.mark.parametrize("endless", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_cell_that_never_ends_is_stopped_and_named(endless: str, book: Book) -> None:
    (tiny,) = book.select(None)
    write(new_notebook(cells=[new_code_cell("print('before')"), new_code_cell(endless)]), book.solution(tiny))
    assert run_solutions(book, [tiny], "quick", timeout=1) == 1
    (folder,) = (book.root / "runs").iterdir()
    (failed,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert failed["result"] == "failed"
    assert failed["error"].startswith("00_tiny, cell 2 (")
    assert failed["error"].endswith("): stopped after 1 seconds, the most that a cell may take")
    assert "before" in (folder / "00_tiny.ipynb").read_text(encoding="utf-8")


def test_the_time_a_cell_may_take_is_generous_by_default(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(runner, "execute", lambda notebook, timeout, **_: given.append(timeout))
    monkeypatch.setattr(runner, "default_device", lambda: torch.device("cpu"))
    (tiny,) = book.select(None)
    write(new_notebook(cells=[]), book.solution(tiny))
    run_solutions(book, [tiny], "quick")  # measured to take 2.2 minutes
    run_solutions(book, [tiny], "full")  # not measured
    run_solutions(book, [tiny], "smoke", timeout=7)
    assert given == [1320, 600, 7]
    with pytest.raises(ValueError, match="timeout: got 0, want at least 1 second"):
        run_solutions(book, [tiny], timeout=0)


def test_endless_output_does_not_fill_the_disk(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny,) = book.select(None)
    loud = "for i in range(100_000):\n    print(f'{i:0250d}')\n1 / 0"
    write(new_notebook(cells=[new_code_cell(loud), new_code_cell("print('next')")]), book.solution(tiny))
    assert run_solutions(book, [tiny], "quick") == 1
    (folder,) = (book.root / "runs").iterdir()
    text = (folder / "00_tiny.ipynb").read_text(encoding="utf-8")
    assert len(text) < 1.1 * MOST_OUTPUT
    assert f"{0:0250d}" in text
    assert text.count("the rest is left out: a cell may leave 4,000,000 characters of output") == 1
    (failed,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert failed["error"].endswith("ZeroDivisionError: division by zero")
    # The next cell begins to count anew.
    write(
        new_notebook(cells=[new_code_cell(loud.removesuffix("1 / 0")), new_code_cell("print('next')")]),
        book.solution(tiny),
    )
    notebook = nbformat.read(book.solution(tiny), as_version=4)
    execute(notebook, name="loud", folder=book.root, env={})
    assert notebook.cells[1].outputs[0].text == "next\n"


def test_an_endless_message_is_cut_short(book: Book) -> None:
    (tiny,) = book.select(None)
    write(new_notebook(cells=[new_code_cell("raise ValueError('why ' * 10**6)")]), book.solution(tiny))
    assert run_solutions(book, [tiny], "quick") == 1
    (folder,) = (book.root / "runs").iterdir()
    assert all(path.stat().st_size < 50_000 for path in folder.iterdir())
    assert "ValueError: why why" in (folder / "results.md").read_text(encoding="utf-8")


def test_measuring_writes_bands_and_leaves_what_is_written_by_hand(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = book.chapter("00_tiny")
    source = """\
# %%
import os
from myst_nb import glue

glue("expect.accuracy", 0.9 + int(os.environ["COMPANION_SEED"]) / 100, display=False)
glue("proof", 1.0, display=False)
"""
    book.solution(chapter, ".py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("COMPANION_STRICT", "1")  # of the caller; bands are measured without
    by_hand = (book.root / "book.toml").read_bytes()
    measure(book, [chapter], "quick", seeds=5)
    text = (book.root / "measured.toml").read_text(encoding="utf-8")
    assert (book.root / "book.toml").read_bytes() == by_hand
    assert text.startswith("# Written by `make measure`, never by hand: ")
    measured = tomllib.loads(text)["00_tiny"]["quick"]
    assert measured["bands"] == {"accuracy": [0.84, 1.0]}
    entry = measured[measuring.default_device().type]
    assert entry["runs"] == 5
    taken_in_turn = list(PROCESSORS) if measuring.default_device().type == "cpu" else ["as it is"]
    assert (measured["bands_from"]["runs"], measured["bands_from"]["settings"]) == (5, taken_in_turn)
    assert 0 < entry["minutes"] < 5
    assert read_book(book.root).chapter("00_tiny").bands["quick"] == {"accuracy": (0.84, 1.0)}
    readme = (book.root / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("before\n")
    assert "[00 · Tiny](chapters/00_tiny.ipynb) | nothing |" in readme
    assert readme.endswith("\nafter\n")


def test_bands_are_measured_over_processors_as_well_as_over_seeds(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = book.chapter("00_tiny")
    book.solution(chapter, ".py").write_text("# %%\n1 + 1\n", encoding="utf-8")
    given: list[dict[str, str]] = []

    def execute(*_: Any, env: dict[str, str], cost: Cost, **__: Any) -> None:
        given.append(env)
        cost.minutes = 1.0 if env.keys() <= {"COMPANION_PROFILE", "COMPANION_SEED"} else 9.0  # only the first counts

    monkeypatch.setattr(measuring, "execute", execute)
    monkeypatch.setattr(measuring, "default_device", lambda: torch.device("cpu"))
    measure(book, [chapter], "quick", seeds=7)
    assert [int(env["COMPANION_SEED"]) for env in given] == list(range(7))
    for env, wanted in zip(given, [*PROCESSORS.values()] * 2 + [PROCESSORS["as it is"]], strict=True):
        assert {name: env.get(name) for name in VARIABLES} == {name: wanted.get(name) for name in VARIABLES}
    entry = tomllib.loads((book.root / "measured.toml").read_text(encoding="utf-8"))["00_tiny"]["quick"]["cpu"]
    assert entry["minutes"] == 1.0


def test_measuring_a_chapter_leaves_the_numbers_of_all_others(book: Book) -> None:
    chapter = book.chapter("00_tiny")
    book.solution(chapter, ".py").write_text("# %%\n1 + 1\n", encoding="utf-8")
    other = {
        "full": {"cpu": {"minutes": 7.92, "versions": {"torch": "2.15.0+cu132"}}, "bands": {"mse": [0.0534, 59.0]}}
    }
    (book.root / "measured.toml").write_text(as_toml({"01_more": other}), encoding="utf-8")
    measure(book, [chapter], "smoke", seeds=1)
    measured = tomllib.loads((book.root / "measured.toml").read_text(encoding="utf-8"))
    assert measured["01_more"] == other
    assert measured["00_tiny"]["smoke"].keys() == {measuring.default_device().type}
    (book.root / "measured.toml").unlink()  # a new course has none
    assert read_book(book.root).chapter("00_tiny").measured == {}
    measure(book, [chapter], "smoke", seeds=1)
    assert read_book(book.root).chapter("00_tiny").measured.keys() == {"smoke"}


def test_the_numbers_of_this_course_are_as_the_command_writes_them() -> None:
    text = (Path(__file__).parents[1] / "measured.toml").read_text(encoding="utf-8")
    measured = tomllib.loads(text)
    assert as_toml(measured) == text
    assert measured.keys() <= read_book(Path(__file__).parents[1]).chapters.keys()


def test_a_band_is_a_prediction_interval_rounded_outward() -> None:
    # mean 0.92, s = 0.0158114, t of 4 degrees of freedom 4.60409, reach = 4.60409 s sqrt(1.2) = 0.079745
    assert band([0.90, 0.91, 0.92, 0.93, 0.94]) == [0.84, 1.0]
    low, high = band([100.0, 101.0, 102.0, 103.0, 104.0, 105.0])  # 102.5 ± 4.03214 · 1.870829 · 1.080123
    assert (low, high) == (94.3, 111.0)
    assert band([2.0] * 5) == [2.0, 2.0]


def test_a_few_seeds_measure_the_time_and_leave_the_bands(book: Book) -> None:
    chapter = book.chapter("00_tiny")
    source = '# %%\nfrom myst_nb import glue\n\nglue("expect.test_mse", 5.0, display=False)\n'
    book.solution(chapter, ".py").write_text(source, encoding="utf-8")
    measure(book, [chapter], "quick", seeds=1)
    measured = tomllib.loads((book.root / "measured.toml").read_text(encoding="utf-8"))["00_tiny"]["quick"]
    assert measured[measuring.default_device().type]["runs"] == 1
    assert measured["bands"] == {"test_mse": [0.9, 1.1]}


def test_no_seeds_are_refused(book: Book) -> None:
    with pytest.raises(ValueError, match="seeds: got 0, want at least 1, and 5 for bands"):
        measure(book, [book.chapter("00_tiny")], "quick", seeds=0)

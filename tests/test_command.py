"""The commands of the course and of make: chapters by number, and no traceback for a wrong word."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import command as benchmarks
from companion.course.__main__ import main
from companion.course.manifest import Book, read_book
from experiments.page import __main__ as experiments_page

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture
def study(book: Book) -> Book:
    """Chapters 00_tiny, 07_prior, 07b_study and 17_prior."""
    tiny = book.chapter("00_tiny")
    names = ("00_tiny", "07_prior", "07b_study", "17_prior")
    return replace(book, chapters={name: replace(tiny, name=name) for name in names})


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("07_prior", "07_prior"),
        ("07", "07_prior"),
        ("7", "07_prior"),
        ("07b", "07b_study"),
        ("7b", "07b_study"),
        ("07_", "07_prior"),
        ("0", "00_tiny"),
        ("17", "17_prior"),
        ("00_t", "00_tiny"),
    ],
)
def test_a_chapter_is_found_by_its_number_or_how_it_begins(study: Book, asked: str, name: str) -> None:
    assert [chapter.name for chapter in study.select(asked)] == [name]


@pytest.mark.parametrize("asked", ["08", "prior", "07_priors", "7_prior", ""])
def test_a_chapter_that_is_not_there_is_answered_by_those_that_are(study: Book, asked: str) -> None:
    with pytest.raises(
        ValueError, match=f"^chapter: got '{asked}', want one of 00_tiny, 07_prior, 07b_study, 17_prior$"
    ):
        study.select(asked)


def test_the_beginning_of_two_chapters_is_answered_by_those_two(study: Book) -> None:
    plan = replace(study.chapter("00_tiny"), name="07_plan")
    with pytest.raises(ValueError, match=r"^chapter: got '07_p', want one of 07_prior, 07_plan$"):
        replace(study, chapters={**study.chapters, "07_plan": plan}).select("07_p")


def test_without_a_name_all_chapters_are_meant(study: Book) -> None:
    assert [chapter.name for chapter in study.select(None)] == list(study.chapters)


def words(said: str) -> str:
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("command", ["notebooks", "solutions", "measure"])
def test_a_wrong_chapter_is_one_line_that_lists_those_there_are(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([command, "--chapter", "99"]) == 1
    said = capsys.readouterr().err
    assert said == f"error: chapter: got '99', want one of {', '.join(read_book(ROOT).chapters)}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["labb"], "invalid choice: 'labb'"),
        ([], "the following arguments are required: command"),
        (["solutions", "--profile", "quik"], "invalid choice: 'quik'"),
        (["measure", "--seeds", "x"], "invalid int value: 'x'"),
        (["notebooks", "--chapters", "07"], "unrecognized arguments: --chapters 07"),
    ],
)
def test_a_wrong_word_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in words(capsys.readouterr().err)


def test_what_only_instructors_have_is_named_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert main(["solutions", "--chapter", "00"]) == 1
    assert re.match(r'error: solutions needs jupytext: .+ -m pip install .*\[instructor\]"', capsys.readouterr().err)


def test_a_wrong_profile_in_the_environment_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COMPANION_PROFILE", "quik")
    assert main(["solutions", "--chapter", "00"]) == 1
    assert words(capsys.readouterr().err) == "error: COMPANION_PROFILE: got 'quik', want one of quick, full, smoke"


def test_a_device_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmarks.main(["--device", "cuda"])
    assert "--device: got cuda, and PyTorch finds no such GPU here" in words(capsys.readouterr().err)


def test_the_page_of_the_experiments_takes_no_word_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "--data", "mnist"])
    with pytest.raises(SystemExit):
        experiments_page.main()


# make


def test_every_way_in_calls_the_one_launcher() -> None:
    for name in ("Makefile", "README.md", ".github/workflows/test.yml", "tests/browser/conftest.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.search(r'companion\.course",? "?lab', text) or "-m companion.course lab" in text, name
        assert not re.search(r"jupyter[- ]?lab (--|chapters)|-m jupyterlab|-m jupyter ", text), name


def test_workflows_run_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    (learner, tests) = re.findall(r"```sh\n(python -m pip.*?)```", readme, re.DOTALL)
    for line in (learner + tests).splitlines():
        assert f"- run: {line}" in workflow


def make(*arguments: str) -> str:
    """What make prints, as if nobody had called it from another make (as `make test` has called these tests)."""
    theirs = re.compile("MAKE|PYTHON$|PROFILE$|CHAPTER$|LAB_FLAGS$")
    own = {name: value for name, value in os.environ.items() if not theirs.match(name)}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, encoding="utf-8", check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine")
def test_make_help_has_every_target_and_every_option() -> None:
    said = make("help")
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+) +\S", said, re.MULTILINE)) == targets
    assert {"help", "lab", "test", "solutions"} <= targets
    options = set(re.findall(r"\$[({]([A-Z_]+)[,)}]", MAKEFILE)) - {"PY", "MAKEFILE_LIST"}
    assert {"PYTHON", "CHAPTER", "PROFILE", "SEEDS", "LAB_FLAGS", "BENCH_FLAGS"} <= options
    assert set(re.findall(r"^  ([A-Z_]+)=", said, re.MULTILINE)) == options


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine")
def test_make_alone_is_make_lab_and_hands_its_options_on() -> None:
    assert make("-n") == make("-n", "lab")
    assert make("-n", "lab", "LAB_FLAGS=--port=9000").rstrip().endswith("-m companion.course lab --port=9000")
    assert "COMPANION_PROFILE=full .venv/bin/python -m companion.course lab" in make("-n", "lab", "PROFILE=full")
    assert make("-n", "solutions", "CHAPTER=07").rstrip().endswith("solutions --chapter 07")

"""The checks are themselves checked: right answers pass, each written mistake is caught with its own hint."""

import ast
import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from exercise_solutions import solution_of

from companion.course.checks import EXERCISES, examine
from companion.course.exercises import CHAPTERS, by_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "solutions").glob("*.py"))
NUMBERS = sorted({source.stem[:2] for source in SOURCES})
MISTAKES = [(e, m) for e in EXERCISES.values() for m in e.mistakes]


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_check_accepts_the_companion(exercise):
    assert examine(exercise, exercise.reference).status == "matches"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_check_accepts_the_solution(exercise):
    report = examine(exercise, solution_of(exercise))
    assert report.status == "matches", report.text


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=[f"{e.name}: {m.name}" for e, m in MISTAKES])
def test_check_rejects_the_mistake_with_its_own_hint(exercise, mistake):
    report = examine(exercise, mistake.implementation)
    assert report.status == "differs"
    assert report.hint == mistake.hint
    assert mistake.hint in report.text


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_every_exercise_lists_at_least_six_mistakes_each_with_a_hint_of_its_own(exercise):
    assert len(exercise.mistakes) >= 6
    assert len({m.hint for m in exercise.mistakes}) == len(exercise.mistakes)
    assert all(m.hint.strip() for m in exercise.mistakes)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_every_blank_in_a_chapter_is_an_exercise_and_every_exercise_of_it_is_checked_there(source):
    text = source.read_text(encoding="utf-8")
    checked = {
        node.args[0].id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
    }
    assert checked == {e.name for e in EXERCISES.values() if e.chapter == source.stem}
    code_blanks = sum(line.strip() == "### BEGIN SOLUTION" for line in text.splitlines())
    assert code_blanks == len(checked)


# One folder a chapter, one file an exercise ---------------------------------------------------------------------------


def folder_of(source: Path) -> Path:
    return ROOT / "companion" / "course" / f"chapter_{source.stem[:2]}"


def in_words(name: str) -> str:
    """``RQTransformer`` → ``rq_transformer``, ``ConvNeXtBlock`` → ``convnext_block``, ``mse`` → ``mse``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.replace("NeXt", "next")).lower()


def exercises_in(text: str) -> list[tuple[str, str]]:
    """Of each cell that checks an answer: the number in the heading above it, and the name that it checks."""
    found, number = [], ""
    for heading, name in re.findall(r"^(?:# ### Exercise (\d+\.\d) ·.*|(\w+) = check\(\2\))$", text, re.MULTILINE):
        number = heading or number
        found += [(number, name)] if name else []
    return found


def test_a_heading_may_have_several_answers_below_it():
    text = (
        "# ### Exercise 10.1 · one\na = check(a)\n# ### Exercise 10.2 · two\nb = check(b)\nc = check(c)\nd = check(e)"
    )
    assert exercises_in(text) == [("10.1", "a"), ("10.2", "b"), ("10.2", "c")]


@pytest.mark.parametrize("number", NUMBERS)
def test_files_headings_and_exercises_of_a_chapter_agree(number):
    """Of each exercise: the number in the heading, the names that the cells below it check, and their files.

    A study beside a chapter (07b beside 07) goes on with its numbers and has its files in the same folder.
    """
    sources = [source for source in SOURCES if source.stem[:2] == number]
    texts = [source.read_text(encoding="utf-8") for source in sources]
    in_each = [exercises_in(text) for text in texts]
    found = [exercise for exercises in in_each for exercise in exercises]
    numbers = list(dict.fromkeys(number for number, _ in found))
    headings = sum(text.count("\n# ### Exercise ") for text in texts)
    assert numbers == [f"{int(number)}.{i}" for i in range(1, headings + 1)]
    files = {f"exercise_{number.replace('.', '_')}_{in_words(name)}": (number, name) for number, name in found}
    folder = folder_of(sources[0])
    assert sorted(path.stem for path in folder.glob("exercise_*.py")) == sorted(files)
    assert (folder / "explorer.py").is_file()

    package = importlib.import_module(f"companion.course.{folder.name}")
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in files]
    assert tuple(module.EXERCISE for module in modules) == package.EXERCISES
    assert [(exercise.chapter, exercise.name) for exercise in package.EXERCISES] == [
        (source.stem, name) for source, exercises in zip(sources, in_each, strict=True) for _, name in exercises
    ]
    for module, (number, _) in zip(modules, files.values(), strict=True):
        assert module.__doc__.startswith(f"Exercise {number}, ")
        assert f"* {number} " in package.__doc__


def test_the_course_has_the_exercises_of_all_its_chapters():
    assert [chapter.__name__.rpartition("_")[2] for chapter in CHAPTERS] == NUMBERS
    assert list(EXERCISES.values()) == [exercise for chapter in CHAPTERS for exercise in chapter.EXERCISES]


def test_a_name_that_two_exercises_have_is_refused():
    with pytest.raises(ValueError, match="exercise: 'mse' is already one of chapter 00_start_here"):
        by_name([*EXERCISES.values(), replace(EXERCISES["mse"], chapter="01_autoencoder")])


LAYERS = [r"checks\.comparison", r"checks\.facts", r"checks\.isolation", r"checks\.engine", r"checks\.runners"]
LAYERS += [r"chapter_(\d\d)\._\w+"]
LAYERS += [
    rf"chapter_(\d\d)\.exercise_\d+_{number}_\w+" for number in range(1, 10)
]  # of an earlier exercise a later one may take
LAYERS += [r"chapter_(\d\d)", "exercises", "checks"]


def layer(name: str) -> tuple[int, str]:
    """The layer of a module of ``companion.course``, and its chapter, if it is of one."""
    return next((i, (found.groups() or ("",))[0]) for i, p in enumerate(LAYERS) if (found := re.fullmatch(p, name)))


def imports_upwards(name: str, text: str) -> list[str]:
    """What a module takes from its own layer or a higher one, or from another chapter."""
    taken = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("companion.course"):
            package = node.module.removeprefix("companion.course").removeprefix(".")
            inside = [f"{package}.{alias.name}".removeprefix(".") for alias in node.names]
            taken += [found if is_module(found) else package for found in inside]
    height, chapter = layer(name)
    known = [module for module in taken if module != "session"]
    return [m for m in known if layer(m)[0] >= height or (chapter and layer(m)[1] not in ("", chapter))]


def is_module(name: str) -> bool:
    path = ROOT.joinpath("companion", "course", *name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_each_layer_takes_from_those_below_it_only():
    course = ROOT / "companion" / "course"
    files = [course / "exercises.py", *course.glob("checks/*.py"), *course.glob("chapter_*/*.py")]
    for path in files:
        if path.name != "explorer.py":
            name = ".".join(path.relative_to(course).with_suffix("").parts).removesuffix(".__init__")
            assert not imports_upwards(name, path.read_text(encoding="utf-8")), name
    for wrong in ("from companion.course.exercises import EXERCISES", "from companion.course.checks import Case"):
        assert imports_upwards("chapter_06.exercise_6_1_residual_encode", wrong)
    of_a_later_exercise = "from companion.course.chapter_06.exercise_6_3_residual_losses import residual_losses"
    assert imports_upwards("chapter_06.exercise_6_2_decode_to_depth", of_a_later_exercise)
    assert not imports_upwards("chapter_06.exercise_6_4_residual_quantizer", of_a_later_exercise)
    assert imports_upwards("chapter_08.exercise_8_4_rq_transformer", of_a_later_exercise)


def test_no_file_of_a_chapter_is_too_long_to_read():
    files = sorted((ROOT / "companion" / "course").glob("chapter_*/*.py"))
    assert len(files) > len(EXERCISES)
    too_long = {path.name: lines for path in files if (lines := len(path.read_text("utf-8").splitlines())) > 400}
    assert not too_long

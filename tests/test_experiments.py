"""The experiments' common part: cells run once, results whole, and the committed ones readable."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from companion.course import claims
from companion.course import results as reader
from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.sources import OUR_QUESTION
from experiments import common

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("backbones_over_training", "sharper_pictures_grid", "weights")  # that make files for the package
SHARED = ("__init__", "__main__", "common", "reconstructions", "tokenizer", *COMMANDS)  # what is no experiment
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem not in SHARED)
SIZES = {"smoke": {"train_images": 40, "test_images": 20}}


class Counter:
    """An experiment of two settings, which counts its runs and stops at a given one."""

    def __init__(self, stop_at: int = 99) -> None:
        self.ran: list[dict] = []
        self.stop_at = stop_at

    def cells(self, seeds: int) -> list[dict]:
        return [{"size": size, "seed": seed} for size in (1, 2) for seed in range(seeds)]

    def run_cell(self, cell: dict, setup: common.Setup) -> dict:
        if len(self.ran) == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append(cell)
        return {"number": cell["size"] / 3 + cell["seed"], "many": [1.0, 2.0], "variance": setup.variance}


def run(counter: Counter, folder: Path, seeds: int = 2, sizes: dict = SIZES) -> dict:
    arguments = ["--profile", "smoke", "--seeds", str(seeds)]
    path = common.run("x/made_up.py", sizes, counter.cells, counter.run_cell, arguments, folder)
    return json.loads(path.read_text())


def test_the_companion_reads_results_and_runs_no_experiment():
    """Experiments import the companion, never the other way round, and not by a file's path either."""
    upwards = re.compile(r"^\s*(from|import) experiments\b|\brunpy\b|import_module\(f?.experiments", re.MULTILINE)
    assert upwards.search('claims = runpy.run_path(str(root / "experiments" / "claims.py"))'), "as it once was"
    assert upwards.search("    from experiments.common import run")
    found = [path for path in (ROOT / "companion").rglob("*.py") if upwards.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_finished_cells_are_not_run_again(tmp_path):
    stopped = Counter(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path)
    assert len(json.loads((tmp_path / "made_up.glyphs.smoke.json").read_text())["cells"]) == 3
    rest = Counter()
    document = run(rest, tmp_path)
    assert rest.ran == [{"size": 2, "seed": 1}]
    assert len(document["cells"]) == 4
    more = Counter()
    run(more, tmp_path, seeds=3)
    assert more.ran == [{"size": 1, "seed": 2}, {"size": 2, "seed": 2}]


def test_results_say_what_was_run_and_on_what(tmp_path):
    document = run(Counter(), tmp_path)
    assert document["command"] == "python -m experiments.made_up --profile smoke --data glyphs --seeds 2"
    assert document["sizes"] == SIZES["smoke"]
    assert document["cells"][0]["number"] == 0.33333
    assert document["cells"][0]["many"] == [1, 2]
    assert {"seconds", "machine", "torch", "python", "companion", "seed"} <= document["cells"][0].keys()


def test_cells_of_other_sizes_are_not_mixed_in(tmp_path):
    run(Counter(), tmp_path)
    with pytest.raises(SystemExit, match="holds cells of other sizes"):
        run(Counter(), tmp_path, sizes={"smoke": {"train_images": 41, "test_images": 20}})


def test_reader_gives_means_and_spreads_over_seeds(tmp_path):
    document = run(Counter(), tmp_path, seeds=3)
    table = reader.Results(document["command"], document["cells"])
    assert table.values("number", size=1) == pytest.approx([1 / 3, 4 / 3, 7 / 3], abs=1e-4)
    assert table.mean("number", size=2) == pytest.approx(5 / 3, abs=1e-4)
    assert table.spread("number", size=2) == pytest.approx(1, abs=1e-4)
    assert table.settings("size") == [1, 2]
    with pytest.raises(ValueError, match="which no cell"):
        table.values("number", size=7)


def test_reader_names_the_command_of_what_was_not_run():
    with pytest.raises(FileNotFoundError, match=r"run python -m experiments\.nothing --data mnist --profile full"):
        reader.results("nothing", data="mnist", profile="full")


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_a_cell_in_profile_smoke(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    first = module.cells(1)[:1]
    path = common.run(
        module.__file__, module.SIZES, lambda seeds: first, module.run_cell, ["--profile", "smoke"], tmp_path
    )
    (cell,) = json.loads(path.read_text())["cells"]
    assert cell.items() >= first[0].items()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_committed_results_are_complete_and_of_the_present_settings(path):
    """Every cell that the command in the file stands for is there, with the sizes that the experiment has now."""
    document = json.loads(path.read_text(encoding="utf-8"))
    module = importlib.import_module(f"experiments.{path.name.partition('.')[0]}")
    wanted = common.commanded(document["command"], module.cells)
    assert document["sizes"] == common.sizes_of(module.SIZES[document["profile"]], document["data"])
    assert len(document["cells"]) == len(wanted)
    for cell in wanted:
        assert any(cell.items() <= row.items() for row in document["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_profile_full_asks_for_no_more_images_than_a_set_has(name):
    full = importlib.import_module(f"experiments.{name}").SIZES["full"]
    for data, (train, test) in {
        "mnist": (60_000, 10_000),
        "fashion-mnist": (60_000, 10_000),
        "cifar10": (50_000, 10_000),
        "somewhere/CIFAR10-jpeg": (50_000, 10_000),
        "celeba": (162_770, 19_962),
        "emoji": (2_413, 339),
    }.items():
        sizes = common.sizes_of(full, data)
        assert sizes["train_images"] <= train
        assert sizes["test_images"] <= test
        some = dict.fromkeys(("train_images", "test_images"), 0)
        assert {**sizes, **some} == {**full, **some}


def test_only_some_cells_are_run_and_the_command_says_which(tmp_path):
    counter = Counter()
    arguments = ["--profile", "smoke", "--seeds", "2", "--only", "size=2"]
    path = common.run("x/made_up.py", SIZES, counter.cells, counter.run_cell, arguments, tmp_path)
    assert counter.ran == [{"size": 2, "seed": 0}, {"size": 2, "seed": 1}]
    command = json.loads(path.read_text())["command"]
    assert command.endswith("--seeds 2 --only size=2")
    assert common.commanded(command, counter.cells) == counter.ran
    assert len(common.commanded(command.removesuffix(" --only size=2"), counter.cells)) == 4


def test_values_of_one_setting_are_alternatives_and_settings_narrow():
    cells = [{"kind": kind, "k": k} for kind in ("EMA", "EMA, no restarts") for k in (16, 64)]
    assert common.selected(cells, []) == cells
    assert common.selected(cells, ["kind=EMA, no restarts", "k=16", "k=64"]) == cells[2:]
    assert common.selected(cells, ["kind=EMA", "k=64"]) == [cells[1]]


def test_only_what_no_cell_has_is_refused(tmp_path, capsys):
    counter = Counter()
    for only, said in (
        (["size=3"], "no cell has size=3"),
        (["size=1", "size=3"], "no cell has size=3"),  # one of two: not left out in silence
        (["sizes=1"], "no cell has sizes=1"),
        (["size"], "no cell has size"),
    ):
        with pytest.raises(SystemExit):
            common.run("x/made_up.py", SIZES, counter.cells, counter.run_cell, ["--only", *only], tmp_path)
        assert said in capsys.readouterr().err
    assert not counter.ran


def test_a_folder_of_images_is_found_by_its_name(tmp_path, monkeypatch):
    """Which of its images are drawn does not depend on where it lies."""
    from PIL import Image

    drawn = []
    for place in (tmp_path / "here", tmp_path / "there" / "deeper"):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                folder = place / "pets" / split / name
                folder.mkdir(parents=True)
                for i in range(10):
                    Image.new("L", (4, 4), 10 * i).save(folder / f"{i}.png")
        monkeypatch.setenv("COMPANION_DATA", str(place))
        drawn.append(common.images("pets", "train", 5).images)
    assert drawn[0].shape == (5, 1, 4, 4)
    assert drawn[0].equal(drawn[1])


def run_and_read(cells: list[dict], run_cell, profile: str, folder: Path, capsys) -> tuple[Path, str]:
    sizes, arguments = {profile: SIZES["smoke"]}, ["--profile", profile, "--results", str(folder / "deep" / "again")]
    path = common.run("x/made_up.py", sizes, lambda seeds: cells, run_cell, arguments, folder / "committed")
    return path, capsys.readouterr().out


def made_up_claim(**options) -> claims.Claim:
    compare = Comparison(
        what="a against b",
        candidate=Measurement(number="error", settings={"kind": "a"}),
        baseline=Measurement(number="error", settings={"kind": "b"}),
        expected="lower",
        by_more_than=0.1,
    )
    return claims.Claim(sentence="A sentence", source=OUR_QUESTION, compare=compare, **options)


def test_a_command_ends_with_its_verdicts_and_writes_where_the_options_say(tmp_path, capsys, monkeypatch):
    pair = (made_up_claim(), made_up_claim(only_on=("mnist",)))
    section = claims.Section(title="Made up", experiment="made_up", claims=pair, note="", shown={})
    monkeypatch.setattr(claims, "SECTIONS", (*claims.SECTIONS, section))
    errors = dict(zip(("a", "b"), ((0.50, 1.04, 1.44, 2.0), (1.0, 2.0, 3.0, 4.0)), strict=True))
    cells = [{"kind": kind, "seed": seed} for kind in errors for seed in range(4)]

    def run_cell(cell: dict, setup: common.Setup) -> dict:
        return {"error": errors[cell["kind"]][cell["seed"]]}

    assert not run_and_read(cells, run_cell, "smoke", tmp_path, capsys)[1].count("seeds"), "its numbers mean nothing"
    for _ in range(2):  # the second time nothing is run
        path, said = run_and_read(cells, run_cell, "quick", tmp_path, capsys)
        assert said.count("A sentence") == 1, "the other claim is on other images"
        assert "Over 4 seeds −50.0 [−52.6, −47.4] %: holds" in said
    assert path.parent == tmp_path / "deep" / "again"
    assert not (tmp_path / "committed").exists()
    assert "--results" not in json.loads(path.read_text())["command"]


# A wrong word on the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--data", "nowhere"],
            "--data: name: got 'nowhere', want one of glyphs, emoji, mnist, fashion-mnist, cifar10, celeba",
        ),
        (["--data", __file__], "--data: "),
        (["--profile", "quik"], "invalid choice: 'quik'"),
        (["--seeds", "0"], "--seeds: got 0, want at least 1"),
        (["--only", "size=7"], "--only: no cell has size=7; there are size=1, size=2"),
        (["--only", "sise=1"], "--only: no cell has sise=1; there are size=…, seed=…"),
        (["--only", "size=1", "seed=0", "--seeds", "1", "--results", __file__], "--results: "),
        (["--resluts", "x"], "unrecognized arguments: --resluts x"),
    ],
)
def test_a_wrong_word_is_one_line_and_no_traceback(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_PROFILE", "smoke")
    counter = Counter()
    with pytest.raises(SystemExit) as stopped:
        common.run("x/made_up.py", SIZES, counter.cells, counter.run_cell, arguments, tmp_path)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert counter.ran == []


def test_a_wrong_profile_in_the_environment_is_one_line_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_PROFILE", "quik")
    counter = Counter()
    with pytest.raises(SystemExit):
        common.run("x/made_up.py", SIZES, counter.cells, counter.run_cell, [], tmp_path)
    assert "COMPANION_PROFILE: got 'quik', want one of quick, full, smoke" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sizes": {}, "cells": 3}'])
def test_a_file_that_holds_no_results_is_named_and_left(content, tmp_path):
    path = tmp_path / "made_up.glyphs.smoke.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"made_up\.glyphs\.smoke\.json holds no results of this command"):
        run(Counter(), tmp_path)
    assert path.read_text(encoding="utf-8") == content


def test_all_experiments_are_listed_with_a_sentence_each():
    listing = [sys.executable, "-X", "utf8", "-m", "experiments"]
    said = subprocess.run(listing, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    listed = dict(re.findall(r"^(\w+)  +(\S.*)$", said, re.MULTILINE))
    assert set(listed) == {*NAMES, *COMMANDS}
    assert all(sentence[-1] in ".?…" and len(sentence) < 120 for sentence in listed.values())
    assert "python -m experiments.NAME" in said

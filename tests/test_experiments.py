"""The experiments' common part: cells run once, results whole, and the committed ones readable."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion.course import results as reader
from experiments import claims, common, report

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("__init__", "__main__", "claims", "common", "report", "tokenizer", "weights")  # what is no experiment
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
    }.items():
        sizes = common.sizes_of(full, data)
        assert sizes["train_images"] <= train
        assert sizes["test_images"] <= test
        assert {**sizes, "train_images": 0} == {**full, "train_images": 0}


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


def made_up(asks: str = "lower", effect: float = 0.1, **options) -> claims.Claim:
    this, than = claims.Side("error", {"kind": "a"}), claims.Side("error", {"kind": "b"})
    return claims.Claim("row", "A sentence", "us", "a against b", "made_up", this, than, asks, effect, **options)


def pairs(*errors: tuple[float, float]) -> list[dict]:
    """Cells of kinds a and b by seed; those of b the other way round, since pairs go by seed and not by place."""
    rows = [{"kind": "a", "seed": seed, "error": a} for seed, (a, _) in enumerate(errors)]
    return rows + [{"kind": "b", "seed": seed, "error": b} for seed, (_, b) in reversed(list(enumerate(errors)))]


MUCH_LOWER = pairs((0.50, 1.0), (1.04, 2.0), (1.44, 3.0), (2.0, 4.0))  # by half; unpaired, the spread would hide it
LITTLE_LOWER = pairs((0.98, 1.0), (1.94, 2.0), (2.94, 3.0), (3.88, 4.0))
UNCLEAR = pairs((0.5, 1.0), (2.4, 2.0), (1.5, 3.0), (4.4, 4.0))


def test_interval_is_that_of_student():
    """By hand: differences 1, 2, 3, 4 have mean 2.5, s/√n = √(5/3)/2, and t₀.₉₇₅ of 3 degrees of freedom is 3.18245."""
    low, high = claims.interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)


@pytest.mark.parametrize(
    ("cells", "options", "word"),
    [
        (MUCH_LOWER, {}, "holds"),
        (LITTLE_LOWER, {}, "does not hold"),  # clearly lower, by less than matters
        (UNCLEAR, {}, "not decided by this data"),
        (MUCH_LOWER[:2] + MUCH_LOWER[-2:], {}, "not decided by this data"),  # two seeds
        (MUCH_LOWER, {"asks": "higher"}, "does not hold"),
        (MUCH_LOWER, {"effect": 0.5}, "not decided by this data"),  # the interval covers the effect size
        (LITTLE_LOWER, {"little": True}, "holds"),
        (MUCH_LOWER, {"little": True}, "does not hold"),
        (UNCLEAR, {"little": True}, "not decided by this data"),
        (MUCH_LOWER, {"asks": "higher", "little": True}, "holds"),  # lower is not higher at all
        (LITTLE_LOWER, {"asks": "same"}, "holds"),
        (MUCH_LOWER, {"asks": "same"}, "does not hold"),  # "the same" has two sides
        (UNCLEAR, {"asks": "same"}, "not decided by this data"),
        (pairs((0.9, 1.0), (1.8, 2.0), (2.7, 3.0)), {}, "not decided by this data"),  # exactly the effect size
    ],
)
def test_verdicts(cells, options, word):
    if cells == MUCH_LOWER and options == {"effect": 0.5}:
        assert made_up(effect=0.4).verdict(cells).word == "holds"
    assert made_up(**options).verdict(cells).word == word


@pytest.mark.parametrize(
    ("cells", "options", "told"),
    [
        (MUCH_LOWER, {"asks": "higher"}, "does not hold (the opposite does)"),
        (LITTLE_LOWER, {}, "does not hold (true, but smaller)"),
        (MUCH_LOWER, {"asks": "same"}, "does not hold (lower)"),
        ([{**row, "error": 1 / row["error"]} for row in MUCH_LOWER], {"asks": "same"}, "does not hold (higher)"),
        (MUCH_LOWER, {"little": True}, "does not hold"),
        (MUCH_LOWER, {}, "holds"),
        (UNCLEAR, {}, "not decided by this data"),
    ],
)
def test_a_verdict_says_in_which_way_a_claim_does_not_hold(cells, options, told):
    assert made_up(**options).verdict(cells).told == told


def test_numbers_of_a_cell():
    cell = {"bits": 6.0, "entropy": 4.0, "by_epoch": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
    assert claims.value(cell, "bits") == 6
    assert claims.value(cell, "bits/entropy") == 1.5
    assert claims.value({"bits": 6.0, "entropy": 0.0}, "bits/entropy") == math.inf
    assert claims.interval([0.1, math.inf, 0.1]) == (-math.inf, math.inf)
    assert claims.value(cell, "by_epoch[2]") == 6
    assert claims.value(cell, "by_epoch[-1]") == 1
    assert claims.value(cell, "by_epoch[25%]") == 7
    assert claims.value(cell, "by_epoch[100%]") == 1
    assert claims.value({"by_epoch": [9.0, 8.0, 7.0, 6.0]}, "by_epoch[25%]") == 9


def test_whose_sentence_it_is():
    by = {claim.by for claim in claims.CLAIMS}
    assert by == {"Zhao", "Ibrahim", "Yesiltepe", "gradient flow", ""}
    for claim in claims.CLAIMS:
        assert claim.quoted.startswith("“") == bool(claim.by)
        assert bool(claim.by) != claim.source.startswith(claims.OURS)


def test_differences_are_paired_by_seed_and_positive_as_claimed():
    assert made_up().differences(MUCH_LOWER) == pytest.approx([0.5, 0.48, 0.52, 0.5])
    assert made_up("higher", relative=False).differences(MUCH_LOWER) == pytest.approx([-0.5, -0.96, -1.56, -2.0])
    assert made_up().differences(MUCH_LOWER[1:]) == pytest.approx([0.48, 0.52, 0.5])  # seed 0 has no pair
    verdict = made_up().verdict(MUCH_LOWER)
    assert (verdict.seeds, verdict.mean) == (4, pytest.approx(0.5))
    assert verdict.low < 0.5 < verdict.high


def test_the_rival_that_is_best_in_the_other_seeds_counts():
    """Not the luckiest of the seed itself, which would win against its equals."""
    x = {1: (0.0, 5.0, 1.0), 2: (4.0, 2.0, 3.0), 3: (9.0, -9.0, 9.0)}  # by k, of seeds 0, 1, 2; k = 3 is no rival
    cells = [{"k": k, "seed": seed, "x": [0.0, one]} for k, ones in x.items() for seed, one in enumerate(ones)]
    side = claims.Side("x[1]", {}, [{"k": 1}, {"k": 2}])
    assert side.of(cells) == {0: 4.0, 1: 5.0, 2: 1.0}  # means elsewhere: 3 and 2.5, 0.5 and 3.5, 2.5 and 3
    assert side.of(cells, max) == {0: 0.0, 1: 2.0, 2: 3.0}
    assert side.of([cell for cell in cells if cell["seed"] == 0]) == {}, "nothing to choose by"
    assert claims.Side("x[-1]", {}).of(cells) == {0: pytest.approx(13 / 3), 1: pytest.approx(-2 / 3), 2: 13 / 3}


def test_the_luckiest_of_equals_does_not_decide():
    """Fifteen rivals as good as the cell itself: the best of each seed is far better, the best of the others is not."""
    g = torch.Generator().manual_seed(0)
    cells = [
        {"k": k, "seed": seed, "error": 1 + 0.2 * torch.rand((), generator=g).item()}
        for seed in range(5)
        for k in range(16)
    ]
    this, rivals = claims.Side("error", {"k": 0}), claims.Side("error", {}, [{"k": k} for k in range(1, 16)])
    claim = claims.Claim("row", "A sentence", "us", "0 against the best", "made_up", this, rivals, "lower", 0.05)
    luckiest = {seed: min(c["error"] for c in cells if c["seed"] == seed and c["k"]) for seed in range(5)}
    assert all(this.of(cells)[seed] > luckiest[seed] for seed in range(5))
    assert claim.verdict(cells).low < 0 < claim.verdict(cells).high


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: f"{claim.experiment}: {claim.measure[:50]}")
def test_every_claim_names_cells_and_numbers_that_exist(claim):
    cells = importlib.import_module(f"experiments.{claim.experiment}").cells(3)
    sides = [side for side in (claim.this, claim.than) if isinstance(side, claims.Side)]
    runs = [run for run in report.read() if run.experiment == claim.experiment]
    for side in sides:
        for where in [{**side.where, **rival} for rival in side.rivals or [{}]]:
            assert {cell["seed"] for cell in cells if where.items() <= cell.items()} == {0, 1, 2}, where
            for cell in (cell for run in runs for cell in run.cells if where.items() <= cell.items()):
                assert math.isfinite(claims.value(cell, side.number))
    assert claim.row in {section.title for section in report.SECTIONS if section.experiment == claim.experiment}
    assert claim.effect > 0


def test_the_committed_page_is_what_the_committed_results_give():
    """Verdicts among it: each is computed from the JSON here and now."""
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert page == report.report(), "run `make experiments-report`"
    words = [verdict.told for _, _, verdict in report.judged(report.read())]
    assert words
    for word in set(words):
        assert page.count(f"**{word}**") == words.count(word)


JUDGED = list(report.judged(report.read()))


@pytest.mark.parametrize(("claim", "run", "verdict"), JUDGED, ids=lambda one: getattr(one, "measure", "")[:50])
def test_the_command_beside_a_row_runs_what_its_verdict_needs(claim, run, verdict):
    """And no more settings than that: from those cells alone the verdict is the same."""
    command = report.command(claim, run)
    assert f"`{command}`" in (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert command.endswith(" --results runs/again")
    module = importlib.import_module(f"experiments.{run.experiment}")
    wanted = common.commanded(command, module.cells)
    rows = [row for row in run.cells if any(cell.items() <= row.items() for cell in wanted)]
    assert claim.verdict(rows) == verdict
    needed = [cell for cell in common.commanded(run.document["command"], module.cells) if claim.needs(cell)]
    for name in run.settings:
        assert {cell[name] for cell in wanted} == {cell[name] for cell in needed}


def run_and_said(cells: list[dict], run_cell, profile: str, folder: Path, capsys) -> tuple[Path, str]:
    sizes, arguments = {profile: SIZES["smoke"]}, ["--profile", profile, "--results", str(folder / "deep" / "again")]
    path = common.run("x/made_up.py", sizes, lambda seeds: cells, run_cell, arguments, folder / "committed")
    return path, capsys.readouterr().out


def test_a_command_ends_with_its_verdicts_and_writes_where_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common, "CLAIMS", [made_up(), made_up(data=("mnist",))])
    cells = [{"kind": row["kind"], "seed": row["seed"]} for row in MUCH_LOWER]
    errors = {(row["kind"], row["seed"]): row["error"] for row in MUCH_LOWER}

    def run_cell(cell: dict, setup: common.Setup) -> dict:
        return {"error": errors[cell["kind"], cell["seed"]]}

    assert not run_and_said(cells, run_cell, "smoke", tmp_path, capsys)[1].count("seeds"), "its numbers mean nothing"
    for _ in range(2):  # the second time nothing is run
        path, said = run_and_said(cells, run_cell, "quick", tmp_path, capsys)
        assert said.count("A sentence") == 1, "the other claim is on other images"
        assert "Over 4 seeds +50.0 [+47.4, +52.6] %: holds" in said
    assert path.parent == tmp_path / "deep" / "again"
    assert not (tmp_path / "committed").exists()
    assert "--results" not in json.loads(path.read_text())["command"]


@pytest.mark.parametrize("section", [section.title for section in report.SECTIONS])
def test_a_chapter_shows_the_verdicts_of_every_section(section):
    """The table in the notebook is computed again when it is opened; the stored one has the verdicts of today."""
    table = reader.claims_table(section)
    verdicts = [str(verdict) for claim, run, verdict in JUDGED if claim.row == section]
    assert [line.split(" | ")[-2].partition(": ")[2] for line in table.splitlines()[2:]] == verdicts
    stored = [
        "".join(output.get("data", {}).get("text/markdown", ""))
        for path in (ROOT / "solutions").glob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    assert table in stored, f'show measured_claims("{section}") in a chapter and run `make notebooks`'


def test_a_section_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="section: got 'Depth', want one of The VQ-VAE as reported, "):
        reader.claims_table("Depth")


def test_every_figure_is_there_and_has_an_alt_text():
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", page)
    folder = ROOT / "experiments" / "figures"
    assert {file for _, file in figures} == {f"figures/{path.name}" for path in folder.iterdir()}
    for alt, file in figures:
        assert len(alt) > 40, file
        assert (ROOT / "experiments" / file).stat().st_size < 150_000


# A wrong word on the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--data", "nowhere"],
            "--data: name: got 'nowhere', want one of glyphs, mnist, fashion-mnist, cifar10, celeba",
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
    assert set(listed) == {*NAMES, "report", "weights"}
    assert all(sentence[-1] in ".?…" and len(sentence) < 120 for sentence in listed.values())
    assert "python -m experiments.NAME" in said

"""The experiments' common part: cells run once, results whole, and the committed ones readable."""

import importlib
import json
from pathlib import Path

import pytest

from companion.course import results as reader
from experiments import common

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("__init__", "claims", "common", "report", "tokenizer", "weights")  # what is no experiment
NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem not in SHARED)
SIZES = {"smoke": {"train_images": 40, "test_images": 20}}


class Counter:
    """An experiment of two settings, which counts its runs and stops at a given one."""

    def __init__(self, stop_at: int = 99) -> None:
        self.ran: list[dict] = []
        self.stop_at = stop_at

    def cells(self, seeds: int) -> list[dict]:
        return [{"size": size, "seed": seed} for size in (1, 2) for seed in range(seeds)]

    def one(self, cell: dict, setting: common.Setting) -> dict:
        if len(self.ran) == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append(cell)
        return {"number": cell["size"] / 3 + cell["seed"], "many": [1.0, 2.0], "variance": setting.variance}


def run(counter: Counter, folder: Path, seeds: int = 2, sizes: dict = SIZES) -> dict:
    arguments = ["--profile", "smoke", "--seeds", str(seeds)]
    path = common.run("x/made_up.py", sizes, counter.cells, counter.one, arguments, folder)
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
    assert {"seconds", "machine", "torch", "seed"} <= document["cells"][0].keys()


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
    path = common.run(module.__file__, module.SIZES, lambda seeds: first, module.one, ["--profile", "smoke"], tmp_path)
    (cell,) = json.loads(path.read_text())["cells"]
    assert cell.items() >= first[0].items()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_committed_results_are_complete_and_of_the_present_settings(path):
    """Every cell that the command in the file stands for is there, with the sizes that the experiment has now."""
    document = json.loads(path.read_text(encoding="utf-8"))
    module = importlib.import_module(f"experiments.{path.name.partition('.')[0]}")
    wanted = common.commanded(document["command"], module.cells)
    assert document["sizes"] == module.SIZES[document["profile"]]
    assert len(document["cells"]) == len(wanted)
    for cell in wanted:
        assert any(cell.items() <= row.items() for row in document["cells"])

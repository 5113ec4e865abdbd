"""``python -m companion``: every example in its help is run, results are whole, and what is wrong is one line."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import companion
from companion.commands import COMMANDS
from companion.commands.command_line import main, words_of
from companion.commands.inputs import held_out, open_pictures, pictures_at
from companion.data.cache import CachedImageSet
from companion.training.states import States

pytestmark = pytest.mark.cpu_only("fit chooses the device, and the numbers compared are those of one")
SMALL = {
    "train-tokenizer": ["--steps", "6", "--batch-size", "4", "--width", "8", "--dim", "4", "--num-codes", "8"],
    "train-prior": ["--steps", "6", "--batch-size", "4", "--width", "16", "--layers", "1", "--heads", "2"],
    "sample": ["--n", "6", "--columns", "3"],
}
PICTURES = 20


def draw(folder: Path, classes: tuple[str, ...] = ("dark", "light"), n: int = PICTURES) -> None:
    """Pictures of 40×36 pixels, alternately in the one class and in the other."""
    numbers = np.random.default_rng(0)
    for i in range(n):
        name = classes[i % len(classes)]
        pixels = numbers.integers(0, 100, (36, 40, 3)) + 150 * (i % len(classes))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def example(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words of the example in the help of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    (line,) = re.findall(r"^ +python -m companion (.*)$", capsys.readouterr().out, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example of each command was run, on ``pictures``; tests look, and change nothing."""
    folder = tmp_path_factory.mktemp("finished")
    draw(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, kind in COMMANDS.items():
            (line,) = re.findall(r"^ +python -m companion (.*)$", kind.__doc__ or "", re.MULTILINE)
            assert main([*shlex.split(line), *SMALL.get(name, [])]) == 0, line
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``finished`` to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures, and nothing made of them."""
    draw(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers_in(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return companion.load(path).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_the_example_that_is_run_here(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert example(command, capsys)[0] == command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "-h"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in fields(COMMANDS[command]):  # type: ignore[arg-type]
        flag = option.name.upper() if option.name == "folder" else f"--(no-)?{option.name.replace('_', '-')}"
        assert re.search(rf" {flag}( [A-Z]+| {{[^}}]+}})? [A-Z\"].{{5,}}", said), option.name


def test_the_help_of_all_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    joined = " ".join(said.replace("│", " ").split())
    for name, kind in COMMANDS.items():
        first = (kind.__doc__ or "").splitlines()[0]
        assert f"• {name} " in said
        assert first in joined
    assert "For example" not in said


# Results


@pytest.mark.parametrize(
    ("folder", "file", "kind"),
    [
        ("tokenizer", "tokenizer.safetensors", companion.VQVAE),
        ("prior", "prior.safetensors", companion.TransformerPrior),
    ],
)
def test_a_training_leaves_a_model(finished: Path, folder: str, file: str, kind: type) -> None:
    assert isinstance(companion.load(finished / "runs" / folder / file), kind)
    history = table(finished / "runs" / folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]  # 18 to learn from, 4 in a batch: 4 steps an epoch
    assert float(history[-1]["validation_loss"]) == numbers_in(finished / "runs" / folder)["validation_loss"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tokenizer/reconstructions.png", (2 * 66 + 2, 2 * 66 + 2)),
        ("samples/samples.png", (3 * 66 + 2, 2 * 66 + 2)),
        ("reconstructions/reconstructions.png", (8 * 66 + 2, 4 * 66 + 2)),
        ("tokenizer/loss.png", None),
        ("prior/loss.png", None),
    ],
)
def test_sheets_are_pictures(finished: Path, name: str, size: tuple[int, int] | None) -> None:
    with Image.open(finished / "runs" / name) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert size is None or picture.size == size


def test_the_pixels_of_a_sheet_are_those_of_the_images(place: Path) -> None:
    """32×32 images are shown twice as large, with a gap of two pixels."""
    tokenizer, prior = (companion.load(place / f"runs/{one}/{one}.safetensors") for one in ("tokenizer", "prior"))
    codes = prior.sample(6, torch.tensor([0, 0, 0, 1, 1, 1]), generator=torch.Generator().manual_seed(0))
    images = (tokenizer.decode(codes) * 255).round().byte()
    sheet = np.asarray(Image.open(place / "runs/samples/samples.png"))
    fifth = torch.from_numpy(sheet[68 : 68 + 64 : 2, 68 : 68 + 64 : 2].copy()).permute(2, 0, 1)
    assert (fifth.int() - images[4].int()).abs().max() <= 1  # in batches of other sizes, sums are rounded otherwise
    assert (sheet[66:68] == 255).all()


def test_classes_are_known_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert numbers_in(place / "runs/prior")["classes"] == ["dark", "light"]
    by_name, by_number = ["sample", "--n", "4", "--label", "light"], ["sample", "--n", "4", "--label", "1"]
    assert main([*by_name, "--out", "a"]) == main([*by_number, "--out", "b"]) == 0
    assert (place / "a/samples.png").read_bytes() == (place / "b/samples.png").read_bytes()
    assert "a/samples.png: 4 new pictures: 4 of light\n" in capsys.readouterr().out
    assert main(["sample", "--label", "red", "--out", "c"]) == 2
    assert capsys.readouterr().err == "error: label: got 'red', want one of dark, light\n"


def test_each_picture_into_a_file_of_its_own(place: Path) -> None:
    assert main(["sample", "--n", "3", "--files", "--out", "each"]) == 0
    files = sorted((place / "each/pictures").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert [Image.open(file).size for file in files] == [(32, 32)] * 3


def test_evaluation_measures_what_the_library_measures(place: Path) -> None:
    found = numbers_in(place / "runs/evaluation")
    model = companion.load(place / "runs/tokenizer/tokenizer.safetensors")
    pictures = companion.data.load(place / "pictures", image_size=32)
    x, labels = pictures.batch(range(PICTURES))
    assert found["mse"] == pytest.approx(companion.metrics.mse(model.reconstruct(x), x).item(), rel=1e-4)
    prior = companion.load(place / "runs/prior/prior.safetensors")
    bits = companion.priors.base.prior_bits(prior, model.encode(x), labels)
    assert found["prior_bits"] == pytest.approx(bits, rel=1e-4)
    assert found["nominal_bits"] == 64 * 3


def test_an_evaluation_is_drawn_beside_jpeg(place: Path) -> None:
    assert main(["evaluate", "pictures", "--codecs", "--out", "beside"]) == 0
    with Image.open(place / "beside/rate_distortion.png") as picture:
        picture.load()
    assert picture.format == "PNG"


def test_a_diagnosis_tells_a_collapsed_codebook_from_one_in_use(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = companion.load(place / "runs/tokenizer/tokenizer.safetensors")
    generator = torch.Generator().manual_seed(0)
    x, _ = companion.data.load(place / "pictures", image_size=32).batch(range(PICTURES))
    latents = model.encoder(x).detach().movedim(1, -1).flatten(0, -2)
    model.quantizer.codebook.copy_(latents[torch.randperm(len(latents), generator=generator)[:8]])
    companion.save(model, "used.safetensors")
    model.quantizer.codebook[1:] = 100
    companion.save(model, "collapsed.safetensors")
    for name in ("used", "collapsed"):
        words = ["diagnose", "pictures", "--tokenizer", f"{name}.safetensors", "--out", name]
        assert main([*words, "--image-size", "32"]) == 0
    assert "one code for all" not in str(numbers_in(place / "used")["wrong"])
    assert "one code for all" in str(numbers_in(place / "collapsed")["wrong"])
    report = (place / "collapsed/report.txt").read_text(encoding="utf-8")
    assert "one code for all" in report
    assert report in capsys.readouterr().out


def test_a_stack_of_codes_goes_all_the_way(empty: Path) -> None:
    assert main(["train-tokenizer", "pictures", "--depth", "2", *SMALL["train-tokenizer"]]) == 0
    assert main(["tokenize", "pictures"]) == 0
    assert main(["train-prior", *SMALL["train-prior"]]) == 0
    assert isinstance(companion.load(empty / "runs/prior/prior.safetensors"), companion.RQTransformer)
    assert main(["sample", "--n", "3"]) == 0
    assert main(["reconstruct", "pictures", "--n", "2"]) == 0
    with Image.open(empty / "runs/reconstructions/reconstructions.png") as picture:
        assert picture.size == (2 * 66 + 2, 3 * 66 + 2)  # the pictures, one code, two codes


def test_a_set_by_name_needs_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train-tokenizer", "glyphs", "--limit", "20", *SMALL["train-tokenizer"]]) == 0
    assert numbers_in(tmp_path / "runs/tokenizer")["image_size"] == 28


# Once more


def test_a_folder_that_is_in_a_file_trains_the_same_weights_and_is_not_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(place / "data"))
    monkeypatch.setattr("companion.data.folder.IN_MEMORY", 0)
    pictures = open_pictures("pictures")
    assert isinstance(pictures, CachedImageSet)

    copied: list[int] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            ours = isinstance(out, torch.Tensor) and out.dtype == torch.uint8
            if ours and out.untyped_storage().data_ptr() != pictures.images.untyped_storage().data_ptr():
                copied.append(len(out))
            return out

    rows, _ = held_out(len(pictures))
    with Copies():
        some = pictures_at(pictures, rows)
        assert not copied
        x, y = some.batch([3, 0, 17])
    assert copied == [3]
    assert len(some) == len(rows) == 18
    assert torch.equal(x, pictures.images[rows[[3, 0, 17]]].float() / 255)
    assert torch.equal(y, pictures.labels[rows[[3, 0, 17]]])
    with pytest.raises(ValueError, match="want 0 to 17"):
        some.batch([18])

    assert main(["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--out", "filed"]) == 0
    assert same(*(weights(place / one / "tokenizer.safetensors") for one in ("runs/tokenizer", "filed")))
    assert (place / "filed/reconstructions.png").read_bytes() == (
        place / "runs/tokenizer/reconstructions.png"
    ).read_bytes()


def test_the_configuration_run_again_gives_the_same_weights(place: Path) -> None:
    for name in ("tokenizer", "prior"):
        assert main(["run", f"runs/{name}/config.json", "--out", f"second/{name}"]) == 0
        first, second = (weights(place / one / name / f"{name}.safetensors") for one in ("runs", "second"))
        assert same(first, second)
    assert main(["run", "runs/tokenizer/config.json", "--out", "third", "--seed", "1"]) == 0
    assert not same(
        weights(place / "third/tokenizer.safetensors"), weights(place / "runs/tokenizer/tokenizer.safetensors")
    )


@pytest.mark.parametrize(
    "words",
    [
        ["train-tokenizer", "my pictures", "--augment", "--depth", "2", "--lr", "0.002"],
        ["train-prior", "--no-classes", "--dropout", "0.0", "--seed", "0"],
        ["sample", "--temperature", "0.0", "--top-k", "3", "--label", "a b", "--files"],
        ["evaluate", "x", "--prior", "p"],
    ],
)
def test_a_configuration_stands_for_the_words_it_came_from(words: list[str], tmp_path: Path) -> None:
    from companion.commands.command_line import parsed
    from companion.commands.results import Result

    _, command = parsed([*words, "--out", str(tmp_path / "x")])
    assert Result(words[0], command).begin()
    again = words_of(tmp_path / "x")
    assert parsed([*again, "--out", str(tmp_path / "x")])[1] == command


def test_what_is_done_is_not_done_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = place / "runs/tokenizer/tokenizer.safetensors"
    before = model.stat().st_mtime_ns
    words = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"]]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == ["runs/tokenizer: done already; --again begins anew"]
    assert model.stat().st_mtime_ns == before
    (place / "runs/tokenizer/mine.txt").touch()
    assert main([*words, "--again"]) == 0
    assert model.stat().st_mtime_ns != before
    assert (place / "runs/tokenizer/mine.txt").exists()


def test_what_was_made_from_an_older_result_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", *SMALL["sample"]]
    assert main(words) == 0
    assert capsys.readouterr().out == "runs/samples: done already; --again begins anew\n"
    later = (place / "runs/samples/result.json").stat().st_mtime + 1
    os.utime(place / "runs/prior/result.json", (later, later))
    assert main(words) == 0
    assert capsys.readouterr().out == "runs/samples: done already, though runs/prior is newer; --again begins anew\n"
    os.utime(place / "runs/tokenizer/result.json", (later, later))
    assert main(words) == 0
    assert "though runs/prior and runs/tokenizer are newer; --again" in capsys.readouterr().out
    assert main([*words, "--again"]) == 0


def test_other_options_in_the_same_folder_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--width", "16", "--augment"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: out: runs/tokenizer holds a result of other options:"
    assert said[1:3] == ["  --width: 8 there, 16 here", "  --augment: False there, True here"]
    assert main(["tokenize", "pictures", "--out", "runs/tokenizer"]) == 2
    assert "holds a result of train-tokenizer, want another folder" in capsys.readouterr().err


def test_a_call_that_failed_at_once_does_not_hold_the_folder(empty: Path) -> None:
    assert main(["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--batch-size", "100"]) == 2
    assert main(["train-tokenizer", "pictures", *SMALL["train-tokenizer"]]) == 0
    assert main(["sample"]) == 2  # there is no prior
    assert main(["tokenize", "pictures"]) == main(["train-prior", *SMALL["train-prior"]]) == 0
    assert main(["sample", "--top-k", "9"]) == 2
    assert main(["sample", "--top-k", "8", "--n", "2"]) == 0
    assert (empty / "runs/samples/samples.png").is_file()


def test_more_steps_train_on(place: Path) -> None:
    words = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"]]
    assert main([*words, "--steps", "12"]) == 0
    assert main([*words, "--steps", "12", "--out", "at-once"]) == 0
    longer = table(place / "runs/tokenizer/history.csv")
    assert [row["epoch"] for row in longer] == ["1", "2", "3"]
    name = "tokenizer.safetensors"
    assert same(weights(place / "runs/tokenizer" / name), weights(place / "at-once" / name))


def test_killed_it_goes_on_where_it_was(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--steps", "12"]
    assert main([*words, "--out", "whole"]) == 0

    class Killed(BaseException):
        """After which nothing is written, as after a signal that cannot be caught."""

    save = States.save

    def save_once(self: States, *parts: object) -> None:
        save(self, *parts)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(States, "save", save_once)
        with pytest.raises(Killed):
            main(words)
    assert sorted(file.name for file in (empty / "runs/tokenizer").iterdir()) == ["config.json", "states"]
    assert not (empty / "runs/train-tokenizer.csv").exists()
    assert main(["tokenize", "pictures"]) == 2
    assert "runs/tokenizer is not finished: type its train-tokenizer again" in capsys.readouterr().err
    assert main(words) == 0
    name = "tokenizer.safetensors"
    assert same(weights(empty / "runs/tokenizer" / name), weights(empty / "whole" / name))
    assert len(table(empty / "runs/tokenizer/history.csv")) == 3


def test_ctrl_c_ends_with_what_to_do_next(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"]]
    save = States.save

    def pressed(self: States, *parts: object) -> None:
        save(self, *parts)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(States, "save", pressed)
        assert main(words) == 130
    assert capsys.readouterr().out.splitlines()[-1] == "stopped: the same command goes on"
    assert not (empty / "runs/tokenizer/result.json").exists()
    assert main(words) == 0
    assert numbers_in(empty / "runs/tokenizer")["epoch"] == 2


def test_the_best_prior_is_kept_and_more_patience_trains_on(place: Path) -> None:
    words = ["train-prior", *SMALL["train-prior"], "--steps", "400", "--lr", "0.03", "--out", "hasty"]
    assert main([*words, "--patience", "2"]) == 0
    losses = [float(row["validation_loss"]) for row in table(place / "hasty/history.csv")]
    assert len(losses) < 100
    assert min(losses) < min(losses[-2:])  # the last two were no better
    assert numbers_in(place / "hasty")["best_validation_loss"] == min(losses)
    prior, codes = (
        companion.load(place / "hasty/prior.safetensors"),
        companion.CodeSet.load("runs/codes/codes.safetensors"),
    )
    rows = held_out(len(codes))[1]
    assert prior.loss(*codes.batch(rows)).item() == pytest.approx(min(losses), rel=1e-3)
    assert main([*words, "--patience", "6"]) == 0
    assert len(table(place / "hasty/history.csv")) > len(losses)


def test_epochs_go_to_a_tracker(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, float]] = []

    class Tracker:
        def __init__(self, name: str, logging_dir: str) -> None:
            assert (name, logging_dir) == ("tensorboard", "tracked")

        def start(self) -> None: ...
        def store_init_configuration(self, values: dict[str, object]) -> None:
            assert values["width"] == 8

        def log(self, values: dict[str, float], step: int) -> None:
            heard.append((step, values["validation_loss"]))

    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    words = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--out", "tracked"]
    assert main([*words, "--log", "tensorboard"]) == 0
    rows = table(place / "tracked/history.csv")
    assert heard == [(int(row["step"]), float(row["validation_loss"])) for row in rows]
    assert main(words) == 0  # the same result, whoever looked on


def test_a_tracker_that_is_absent_is_named_before_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train-prior", "--log", "wandb", "--out", "tracked"]) == 2
    assert capsys.readouterr().err == "error: --log wandb needs wandb: pip install wandb\n"


def test_a_table_has_a_line_for_each_run(place: Path) -> None:
    assert [row["n"] for row in table(place / "runs/sample.csv")] == ["6"]
    assert main(["sample", "--n", "2", "--out", "runs/more"]) == 0
    assert main(["sample", "--n", "2", "--out", "runs/more"]) == 0  # done already
    lines = table(place / "runs/sample.csv")
    assert [(row["out"], row["n"], row["temperature"]) for row in lines] == [
        ("runs/samples", "6", "1.0"),
        ("runs/more", "2", "1.0"),
    ]
    (trained,) = table(place / "runs/train-tokenizer.csv")
    assert float(trained["validation_reconstruction"]) > 0
    assert trained["width"] == "8"


# What is wrong is one line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train-tokenizer", "nothing"], "name: got 'nothing', want one of glyphs, emoji"),
        (["train-tokenizer", "hollow"], "hollow has no images"),
        (["train-tokenizer", "words"], "words has no images"),
        (["train-tokenizer", "pictures", "--limit", "1"], "got a single picture, want at least 2"),
        (["train-tokenizer", "pictures", "--batch-size", "32"], "batch_size: got 32, want at most the 18 examples"),
        (
            ["train-tokenizer", "pictures", "--image-size", "30"],
            "image_size: got pictures of 30×30, want a multiple of",
        ),
        (["train-tokenizer", "pictures", "--steps", "0"], "steps: got 0, want at least 1"),
        (["train-tokenizer", "pictures", "--batch-size", "0"], "batch_size: got 0, want at least 1"),
        (["sample", "--columns", "0"], "columns: got 0, want at least 1"),
        (["reconstruct", "pictures", "--n", "2", "--columns", "-1"], "columns: got -1, want at least 1"),
        (["train-prior", "--steps", "-5"], "steps: got -5, want at least 1"),
        (["tokenize", "pictures", "--tokenizer", "runs/none"], "runs/none is not there, want the folder that"),
        (["tokenize", "pictures", "--tokenizer", "words/a.txt"], "words/a.txt"),
        (["tokenize", "pictures", "--tokenizer", "runs/prior"], "runs/prior has no tokenizer.safetensors"),
        (
            ["tokenize", "pictures", "--tokenizer", "runs/prior/prior.safetensors"],
            "holds a TransformerPrior, want a to",
        ),
        (["sample", "--prior", "runs/tokenizer/tokenizer.safetensors"], "holds a VQVAE, want a prior"),
        (["diagnose", "pictures", "--prior", "runs/tokenizer"], "has no prior.safetensors"),
        (["sample", "--top-k", "99", "--out", "x"], "top_k: got 99, want"),
        (["train-prior", "--codes", "runs/tokenizer", "--out", "x"], "has no codes.safetensors"),
        (["train-tokenizer", "pictures", "--out", "words/a.txt"], "words/a.txt is a file, want the name of a folder"),
        (["run", "nowhere.json"], "nowhere.json is not there, want a config.json"),
        (["run", "words/a.txt"], "words/a.txt is no JSON"),
        (["run", "runs/samples/samples.png"], "samples.png is no JSON"),
        (["run", "runs/tokenizer/result.json"], "is no configuration that a command wrote"),
    ],
)
def test_a_wrong_input_is_one_line(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "hollow").mkdir()
    (place / "words").mkdir()
    (place / "words/a.txt").write_text("no picture", encoding="utf-8")
    assert main([*words, *(["--out", "new"] if words[0] != "run" and "--out" not in words else [])]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]]
    assert said in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train-tokenizer", "pictures", "--widht", "3"], "--width"),  # what was perhaps meant
        (["train-tokenizer", "pictures", "--width", "wide"], "Error parsing --width"),
        (["train-tokenizer"], "FOLDER"),
        (["train-tokenizer", "pictures", "--precision", "fp8"], "invalid choice 'fp8'"),
        (["tokenise"], "Available subcommands: train-tokenizer, tokenize"),
        ([], "Expected one of {train-tokenizer"),
    ],
)
def test_a_wrong_word_is_answered_by_the_right_ones(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    heard = capsys.readouterr().err
    assert said in heard
    assert "Traceback" not in heard


def test_without_the_parser_the_command_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["sample"]) == 2
    assert re.match(r'error: python -m companion needs tyro: .* -m pip install .*\[cli\]"', capsys.readouterr().err)


def test_a_prior_of_another_tokenizer_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["train-tokenizer", "pictures", *SMALL["train-tokenizer"], "--seed", "1", "--out", "runs/other"]
    assert main(other) == 0
    assert main(["sample", "--tokenizer", "runs/other", "--out", "x"]) == 2
    assert "but the prior goes with" in capsys.readouterr().err
    assert not (place / "x/samples.png").exists()


# As a program


def program(*words: str, folder: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "companion", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_is_a_program(place: Path) -> None:
    done = program("sample", "--n", "2", "--out", "two", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "two/samples.png: 2 new pictures: 1 of dark, 1 of light"
    wrong = program("sample", "--prior", "none", "--out", "three", folder=place)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: none is not there, want the folder that train-prior wrote\n"


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
        ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "PORT", "-m"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_train_one_model(empty: Path, launcher: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launcher = tuple(port if word == "PORT" else word for word in launcher)
    words = ("train-tokenizer", "pictures", *SMALL["train-tokenizer"])
    done = program(*words, folder=empty, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reconstructions.png: held-out pictures") == 1
    assert len(table(empty / "runs/train-tokenizer.csv")) == 1
    assert main([*words, "--out", "alone"]) == 0
    name = "tokenizer.safetensors"
    together, alone = weights(empty / "runs/tokenizer" / name), weights(empty / "alone" / name)
    for key, value in together.items():
        torch.testing.assert_close(value, alone[key], rtol=1e-2, atol=1e-3)
    assert program(*words, folder=empty, launcher=launcher).returncode == 0  # done already

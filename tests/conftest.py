"""On which device all tests run, and a tiny course in a folder of its own, for the tests of the tools.

``pytest --device cuda`` runs everything on the GPU: tensors that a test makes without a device are made there, and
``fit`` and notebooks choose it themselves. ``--device pretended`` does without a GPU (see ``pretended.py``).
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from placement import Placed
from pretended import PretendedDevice, register

import companion.training
from companion.course.manifest import Book, read_book
from companion.course.measure import END, START

_placed = ExitStack()  # from before the test modules are imported, whose constants lie on the device too


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only(reason): is about the CPU, and skipped with another --device")
    kind = config.getoption("--device")
    if kind == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU on this machine")
    if kind != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the kernels of notebooks, and all other processes, too
    if kind == "pretended":
        register()
        _placed.enter_context(PretendedDevice())
    if kind != "cpu":
        _placed.enter_context(Placed(torch.device(kind, 0)))


def pytest_unconfigure() -> None:
    _placed.close()


@pytest.fixture(autouse=True)
def _no_training_on_a_pretended_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.config.getoption("--device") == "pretended":
        monkeypatch.setattr(
            companion.training, "own_accelerator", lambda *_: pytest.skip("Accelerate does not know it")
        )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The one of ``--device``, for tests that have to name it."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def autocast(device: torch.device) -> Callable[[], torch.autocast]:
    """A block in bfloat16 on the device of ``--device``."""
    if device.type == "pretended":
        pytest.skip("autocast does not know it")
    return lambda: torch.autocast(device.type, torch.bfloat16)


def pytest_runtest_setup(item: pytest.Item) -> None:
    only = item.get_closest_marker("cpu_only")
    if only and item.config.getoption("--device") != "cpu":
        pytest.skip(f"CPU only: {only.args[0]}")


BOOK = """\
# A comment of the author.
[book]
title = "A tiny course"
authors = ["someone"]
description = "For tests"
language = "en"
src = "chapters"

[chapters.00_tiny]
title = "Tiny"
builds = "nothing"
status = "ready"
quick = { data = "glyphs", train_images = 60, test_images = 40, epochs = 2 }
full = { data = "mnist", train_images = 60000, test_images = 10000, epochs = 3 }
smoke = { data = "glyphs", train_images = 20, test_images = 10, epochs = 1 }
"""

MEASURED = """\
[00_tiny.quick.cpu]
minutes = 2.2
memory_mb = 700
runs = 5
machine = "2 CPU cores"
versions = { torch = "2.15.0" }

[00_tiny.quick.bands]
test_mse = [0.9, 1.1]
"""


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """The manifest of a course with one chapter, ``00_tiny``, which has no source yet."""
    (tmp_path / "book.toml").write_text(BOOK, encoding="utf-8")
    (tmp_path / "measured.toml").write_text(MEASURED, encoding="utf-8")
    (tmp_path / "README.md").write_text(f"before\n{START}\n{END}\nafter\n", encoding="utf-8")
    (tmp_path / "solutions").mkdir()
    return read_book(tmp_path)

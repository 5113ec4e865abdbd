"""What every experiment shares: its command line, cells that are run once, results as JSON.

An experiment is a list of *cells* (settings and a seed) and a function that runs one. After each cell the results are
written; the same command goes on where it was stopped, and runs no finished cell again.
"""

import argparse
import contextlib
import inspect
import json
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import companion
from companion.checkpoint import written_whole
from companion.course.claims import sections_of
from companion.course.session import current_profile, default_device, machine
from companion.data import ImageSet, load
from companion.data.real import NAMES, data_folder

RESULTS = Path(__file__).with_name("results")
MOST = {  # training and test images of sets that have fewer than profile full takes
    "cifar10": (50_000, 10_000),
    "CIFAR10-jpeg": (50_000, 10_000),
    "emoji": (2_413, 339),
}
Cell = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the cells of one run have in common."""

    profile: str
    device: torch.device
    sizes: Mapping[str, Any]  # of this profile
    train: ImageSet
    test: ImageSet
    variance: float  # of all pixels of the training images: the unit of distortion


def run(
    file: str,
    sizes: Mapping[str, Mapping[str, Any]],
    cells: Callable[[int], Sequence[Cell]],
    run_cell: Callable[[Cell, Setup], Mapping[str, float | str | list[float]]],
    arguments: Sequence[str] | None = None,
    results: Path = RESULTS,
) -> Path:
    """The command of one experiment: ``python -m experiments.NAME --profile quick --data glyphs --seeds 5``.

    At the end it says what follows from its cells for the reports' claims.

    Args:
        file: the experiment's ``__file__``; its stem is the name.
        sizes: for each profile ``train_images``, ``test_images`` and what the experiment needs besides.
        cells: number of seeds → the cells, each a flat dict of plain values, ``seed`` among them.
        run_cell: runs one cell, in the ``Setup`` that all cells share, and gives its numbers by name.
        arguments: of the command line; None: those of the process.
        results: folder that holds the results where ``--results`` names no other.

    Returns:
        The file of the results.
    """
    name = Path(file).stem
    module = inspect.getmodule(run_cell)
    parser = _parser(name, tuple(sizes), module.__doc__ if module else None)
    options = parser.parse_args(arguments)
    try:
        profile = options.profile or current_profile()
    except ValueError as error:
        parser.error(str(error))
    wanted = _wanted(parser, options, cells)
    own_sizes = sizes_of(sizes[profile], options.data)
    device = default_device()
    path = (options.results or results) / f"{name}.{Path(options.data).name}.{profile}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _read(path, own_sizes)
    except OSError as error:
        parser.error(f"--results: {error}")
    todo = [cell for cell in wanted if not any(cell.items() <= finished.items() for finished in done)]
    print(f"{name}: {len(done)} cells are done, {len(todo)} to do on {machine(device)}; results in {path}")
    if not todo:
        print_verdicts(name, options.data, profile, done)
        return path
    try:
        train = images(options.data, "train", own_sizes["train_images"]).to(device)
        test = images(options.data, "test", own_sizes["test_images"]).to(device)
    except (ValueError, OSError, ImportError) as error:
        parser.error(f"--data: {error}")
    variance = train.images.double().div(255).var(correction=0).item()
    setup = Setup(profile, device, own_sizes, train, test, variance)
    command = command_of(name, profile, options.data, options.seeds, options.only)
    for cell in (bar := tqdm(todo, unit="cell")):
        bar.set_postfix_str(" ".join(f"{key} {value}" for key, value in cell.items()))
        started = time.perf_counter()
        numbers = run_cell(cell, setup)
        ran = {
            "seconds": round(time.perf_counter() - started, 1),
            "machine": machine(device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "companion": companion.__version__,
        }
        done.append({**cell, **{key: plain(value) for key, value in numbers.items()}, **ran})
        document = {"command": command, "data": options.data, "profile": profile, "sizes": own_sizes, "cells": done}
        _write(path, document)
    print_verdicts(name, options.data, profile, done)
    return path


def print_verdicts(name: str, data: str, profile: str, cells: Sequence[Cell]) -> None:
    """What follows from these cells for the claims on this experiment."""
    if profile == "smoke":
        print("profile smoke: its numbers mean nothing, no claim is decided by them")
        return
    for claim in (claim for section in sections_of(name) for claim in section.claims):
        verdict = claim.verdict(data=data, cells=cells)
        if verdict:
            print(f"\n{claim.quoted} ({claim.source})")
            print(f"  {claim.compare.sentence} Holds if {claim.compare.condition}.")
            print(f"  Over {verdict.seeds} seeds {verdict}: {verdict.outcome}")


def sizes_of(sizes: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The sizes of a profile, with no more images than there are."""
    splits = ("train_images", "test_images")
    most = MOST.get(Path(data).name, tuple(sizes[split] for split in splits))
    return {**sizes, **{split: min(sizes[split], there) for split, there in zip(splits, most, strict=True)}}


def images(data: str, split: str, size: int) -> ImageSet:
    """Images by name, or a folder of them by its path or its name under ``$COMPANION_DATA``.

    Which of a folder's images are drawn depends on its path as given; here on its name alone, the same everywhere.
    """
    if data in ("glyphs", "emoji", *NAMES):
        return load(data, split, size=size)
    folder = Path(data) if Path(data).is_dir() else data_folder() / data
    if not folder.is_dir():
        return load(data, split, size=size)  # says what it wants
    with contextlib.chdir(folder.parent):
        return load(folder.name, split, size=size)


def command_of(name: str, profile: str, data: str, seeds: int, only: Sequence[str]) -> str:
    """The command that runs these cells."""
    words = ["python", "-m", f"experiments.{name}", "--profile", profile, "--data", data, "--seeds", str(seeds)]
    return shlex.join([*words, *(["--only", *only] if only else [])])


def commanded(command: str, cells: Callable[[int], Sequence[Cell]]) -> list[Cell]:
    """The cells that the command in a file of results stands for."""
    _, _, module, *arguments = shlex.split(command)
    options = _parser(module.removeprefix("experiments."), None, None).parse_args(arguments)
    return selected(cells(options.seeds), options.only)


def selected(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that have, of every setting named in ``only`` as NAME=VALUE, one of the values given for it."""
    wanted: dict[str, list[str]] = {}
    for name, _, value in (text.partition("=") for text in only):
        wanted.setdefault(name, []).append(value)
    return [cell for cell in cells if all(str(cell.get(name)) in values for name, values in wanted.items())]


def _wanted(
    parser: argparse.ArgumentParser, options: argparse.Namespace, cells: Callable[[int], Sequence[Cell]]
) -> list[Cell]:
    """The cells that ``--seeds`` and ``--only`` select; the parser refuses a value that no cell has."""
    if options.seeds < 1:
        parser.error(f"--seeds: got {options.seeds}, want at least 1")
    all_cells = cells(options.seeds)
    wanted = selected(all_cells, options.only)
    for value in options.only:
        if not selected(all_cells, [value]):
            parser.error(f"--only: no cell has {value}; there are {', '.join(_choices(all_cells, value))}")
    if not wanted:
        parser.error(f"--only: no cell has all of {options.only}")
    return wanted


def _choices(cells: Sequence[Cell], only: str) -> list[str]:
    """What could stand in place of NAME=VALUE: the values of that setting or, if there is none, all names."""
    setting, _, _ = only.partition("=")
    values = dict.fromkeys(f"{setting}={cell[setting]}" for cell in cells if setting in cell)
    return list(values or dict.fromkeys(f"{name}=…" for cell in cells for name in cell))


def _parser(name: str, profiles: Sequence[str] | None, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m experiments.{name}", description=description)
    parser.add_argument("--profile", choices=profiles, help="default: full on CUDA, else quick")
    parser.add_argument(
        "--data", default="glyphs", help="glyphs, emoji, mnist, fashion-mnist, cifar10, celeba, or a folder"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 … SEEDS - 1")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="only cells with these settings")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: the committed results")
    return parser


def _read(path: Path, sizes: Mapping[str, Any]) -> list[Cell]:
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        held, cells = document["sizes"], list(document["cells"])
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"{path} holds no results of this command: move it away") from None
    if held != sizes:
        raise SystemExit(f"{path.name} holds cells of other sizes, {held}, want {dict(sizes)}: move it away")
    return cells


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """One line a cell, so that a diff shows what changed."""
    head = json.dumps({key: value for key, value in document.items() if key != "cells"}, ensure_ascii=False, indent=1)
    cells = ",\n".join(json.dumps(cell, ensure_ascii=False) for cell in document["cells"])
    with written_whole(path) as file:
        file.write(f'{head[:-2]},\n "cells": [\n{cells}\n]}}\n'.encode())


def plain(value: Any) -> Any:
    """Five digits: more would only say on which machine it ran."""
    if isinstance(value, list | tuple):
        return [plain(number) for number in value]
    return value if isinstance(value, int | str) else float(f"{float(value):.5g}")

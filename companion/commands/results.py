"""The folder of a result: begun by a command, gone on with where it was killed, and complete when ``result.json`` is
there.

    config.json      the command, its options and the versions, written first; ``run config.json`` makes it again
    …                what the command makes
    result.json      its numbers, written last

Beside the folder, ``<command>.csv`` has a line for each result: options and numbers.
"""

import csv
import io
import json
import os
import platform
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from companion._extras import require
from companion._version import __version__
from companion.checkpoint import save, written_whole

CONFIG, NUMBERS = "config.json", "result.json"
Numbers = dict[str, Any]


class Command(ABC):
    """Options, and what they make: a base class of dataclasses.

    Attributes:
        out: the folder of the result.
        again: begin anew, in place of what is in that folder.
        makes: the names of the files and folders that the command writes, which ``again`` deletes.
        may_grow: options that may be larger when the command is typed again: training then goes on.
        joins: whether several processes work together; otherwise the first works alone.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    out: Path
    again: bool
    makes: ClassVar[tuple[str, ...]] = ()
    may_grow: ClassVar[tuple[str, ...]] = ()
    joins: ClassVar[bool] = False

    @abstractmethod
    def run(self, result: "Result") -> Numbers | None:
        """Make the result, and give its numbers; None where it was stopped on the way."""


@dataclass
class Result:
    """The folder of a result, while a command works in it. Of several processes only the first writes."""

    name: str
    command: Command

    def __post_init__(self) -> None:
        self.folder = Path(self.command.out)
        self.began = time.monotonic()

    def begin(self) -> bool:
        """Write the configuration. False where the result is complete already.

        Raises:
            ValueError: the folder holds a result of other options, or of another command.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is a file, want the name of a folder")
        options, before = options_of(self.command), None
        if self.command.again and is_main():
            self._clear()
        elif not self.command.again and (config := read_config(self.folder)) and self._has_begun(config):
            before = config
        if before is not None:
            self._check_same(before, options)
            if (self.folder / NUMBERS).exists() and before["options"] == options:
                newer = " and ".join(map(str, self._newer_inputs()))
                though = f", though {newer} {'are' if ' and ' in newer else 'is'} newer" if newer else ""
                say(f"{self.folder}: done already{though}; --again begins anew")
                return False
        versions = {"companion": __version__, "torch": torch.__version__, "python": platform.python_version()}
        self.write_json(CONFIG, {"command": self.name, "options": options, "versions": versions})
        if is_main():
            (self.folder / NUMBERS).unlink(missing_ok=True)  # of fewer steps
        return True

    def finish(self, numbers: Numbers) -> None:
        """Write the numbers, which makes the result complete, and a line into the table beside the folder."""
        if not is_main():
            return
        line: dict[str, Any] = {
            "out": str(self.folder),
            "finished": datetime.now().isoformat(sep=" ", timespec="seconds"),
        }
        line |= options_of(self.command) | {"seconds": round(time.monotonic() - self.began)}
        line |= {name: value for name, value in numbers.items() if isinstance(value, int | float | str)}
        add_line(self.folder.parent / f"{self.name}.csv", line)
        self.write_json(NUMBERS, numbers)

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears when it is complete."""
        if is_main():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(content)

    def save(self, model: nn.Module, name: str) -> None:
        """Write a model, with the configuration that rebuilds it."""
        if is_main():
            save(model, self.folder / name)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def _has_begun(self, config: dict[str, Any]) -> bool:
        """Whether anything was made: a call that failed at once, by a wrong option, does not hold the folder."""
        made = [self.folder / name for name in (NUMBERS, *self.command.makes)]
        files = [file for path in made for file in ([path] if path.is_file() else path.glob("*"))]
        return config["command"] != self.name or any(file.is_file() and file.name != "lock" for file in files)

    def _newer_inputs(self) -> list[Path]:
        """Which results that this one was made from were finished after it, as by more training."""
        own = (self.folder / NUMBERS).stat().st_mtime_ns
        options = [getattr(self.command, one.name) for one in fields(self.command) if one.name != "out"]
        inputs = [path for path in options if isinstance(path, Path)]
        files = [path / NUMBERS if path.is_dir() else path for path in inputs]
        return [
            path for path, file in zip(inputs, files, strict=True) if file.exists() and file.stat().st_mtime_ns > own
        ]

    def _clear(self) -> None:
        """Delete what this command made here before, and nothing else."""
        for name in (NUMBERS, *self.command.makes, CONFIG):
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _check_same(self, before: dict[str, Any], options: dict[str, Any]) -> None:
        if before["command"] != self.name:
            raise ValueError(
                f"out: {self.folder} holds a result of {before['command']}, want another folder for {self.name}"
            )
        there = {one.name: one.default for one in fields(self.command) if one.default is not MISSING}
        there = {**jsonable(there), **before["options"]}  # what an earlier version did not have, by its default
        differences = [
            f"  --{name.replace('_', '-')}: {there.get(name)} there, {value} here"
            for name, value in options.items()
            if there.get(name) != value and not (name in self.command.may_grow and value > there[name])
        ]
        if differences:
            raise ValueError(
                "\n".join([f"out: {self.folder} holds a result of other options:", *differences])
                + "\nUse those, another folder (--out), or --again to begin anew"
            )


def options_of(command: Command) -> dict[str, Any]:
    """The options that decide what is made, which is not where it goes, who looks on, or whether it is made anew."""
    values = jsonable(asdict(command))
    return {name: value for name, value in values.items() if name not in ("out", "again", "log")}


def jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration in a file, or in the folder of a result; None where there is none.

    Raises:
        ValueError: it is another file.
    """
    path = path / CONFIG if path.is_dir() else path
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"config: {path} is no JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("command"), str):
        raise ValueError(f"config: {path} is no configuration that a command wrote, want one, or another folder")
    if not isinstance(config.get("options"), dict):
        raise ValueError(f"config: {path} has no options, want what a command wrote")
    return config


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a table, with new columns where it has others."""
    with require("filelock", extra="cli", what="a table of runs").FileLock(path.with_name(f".{path.name}.lock")):
        rows: list[dict[str, Any]] = []
        if path.exists():
            rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
        names = list(dict.fromkeys(name for row in [*rows, line] for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, line])
        with written_whole(path) as file:
            file.write(text.getvalue().encode())


def say(text: str) -> None:
    """Print a line, of several processes once."""
    if is_main():
        print(text, flush=True)


def is_main() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"

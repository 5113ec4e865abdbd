"""The files of results that the page shows, and what follows from them for each claim."""

import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from companion.course.claims import IMAGES, SECTIONS, Claim, Section, Verdict, images_of, sections_of
from experiments.common import RESULTS, command_of, commanded

HERE = RESULTS.parent
AGAIN = "--results runs/again"  # a folder that git ignores


@dataclass(frozen=True)
class Run:
    """One file of results: what an experiment gave on one set of images."""

    experiment: str
    document: dict[str, Any]

    @property
    def data(self) -> str:
        return Path(self.document["data"]).name

    @property
    def title(self) -> str:
        profile = self.document["profile"]
        return images_of(self.experiment, self.data) + ("" if profile == "quick" else f", {profile}")

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"experiments.{self.experiment}")

    @property
    def cells(self) -> list[dict[str, Any]]:
        return list(self.document["cells"])

    @property
    def finished(self) -> bool:
        return len(self.cells) == len(commanded(self.document["command"], self.module.cells))

    @property
    def settings(self) -> list[str]:
        """The names of what differs between its cells, without the seed."""
        return [name for name in self.module.cells(1)[0] if name != "seed"]


@dataclass(frozen=True)
class Decision:
    """A claim of a section, the run that it was measured on, and the verdict."""

    section: Section
    claim: Claim
    run: Run
    verdict: Verdict


def read(results: Path = RESULTS) -> list[Run]:
    """The finished runs of the experiments that the sections show, in the order of the images."""
    order = list(IMAGES)
    runs = [run for run in _finished(results) if sections_of(run.experiment)]
    return sorted(runs, key=lambda run: (order.index(run.data) if run.data in order else 99, run.document["profile"]))


def read_others(results: Path = RESULTS) -> list[Run]:
    """The finished runs of the experiments that only a chapter shows."""
    return [run for run in _finished(results) if not sections_of(run.experiment)]


def decisions(runs: Sequence[Run], sections: Iterable[Section] = SECTIONS) -> list[Decision]:
    """Every claim of these sections, on all the images it was measured on."""
    found = []
    for section in sections:
        for claim in section.claims:
            for run in runs:
                if run.experiment == section.experiment:
                    verdict = claim.verdict(data=run.data, cells=run.cells)
                    if verdict:
                        found.append(Decision(section, claim, run, verdict))
    return found


def command(claim: Claim, run: Run) -> str:
    """The command that runs again the cells that this claim's comparison uses, into a folder of its own."""
    all_cells = commanded(run.document["command"], run.module.cells)
    needed = [cell for cell in all_cells if claim.compare.uses(cell)]
    only = []
    for name in run.settings:
        values = list(dict.fromkeys(str(cell[name]) for cell in needed))
        if len(values) < len({str(cell[name]) for cell in run.module.cells(1)}):
            only += [f"{name}={value}" for value in values]
    seeds = 1 + max(cell["seed"] for cell in needed)
    return f"{command_of(run.experiment, run.document['profile'], run.data, seeds, only)} {AGAIN}"


def machines(runs: Sequence[Run]) -> str:
    return " and ".join(dict.fromkeys(cell["machine"] for run in runs for cell in run.cells))


def _finished(results: Path) -> list[Run]:
    paths = sorted(results.glob("*.json"))
    runs = [Run(path.name.split(".")[0], json.loads(path.read_text("utf-8"))) for path in paths]
    return [run for run in runs if run.document["profile"] != "smoke" and run.finished]

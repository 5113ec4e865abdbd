"""The committed results of the experiments, for the chapters that show them."""

import functools
import json
import runpy
import statistics
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from companion._extras import require
from companion.course.manifest import read_book


@dataclass(frozen=True)
class Results:
    """What ``python -m experiments.NAME`` measured: ``rows``, one a cell, and the ``command`` that makes them again."""

    command: str
    rows: list[dict[str, Any]]

    def values(self, name: str, **where: Any) -> list[Any]:
        """The number called ``name`` of every cell whose settings are as ``where`` says, in the order of seeds.

        Raises:
            ValueError: there is no such cell.
        """
        rows = [row for row in self.rows if where.items() <= row.items()]
        if not rows:
            raise ValueError(f"where: got {where}, which no cell of `{self.command}` has")
        return [row[name] for row in sorted(rows, key=lambda row: row["seed"])]

    def mean(self, name: str, **where: Any) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values(name, **where))

    def spread(self, name: str, **where: Any) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        values = self.values(name, **where)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def settings(self, name: str) -> list[Any]:
        """The different values of one setting, in the order of the cells."""
        return list(dict.fromkeys(row[name] for row in self.rows))


def results(name: str, *, data: str = "glyphs", profile: str = "quick") -> Results:
    """The results of one experiment on one set of images.

    Raises:
        FileNotFoundError: it was not run; the message is the command that runs it.
    """
    path = read_book().root / "experiments" / "results" / f"{name}.{data}.{profile}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path.name}: run python -m experiments.{name} --data {data} --profile {profile}")
    document = json.loads(path.read_text(encoding="utf-8"))
    return Results(document["command"], document["cells"])


def measured_claims(section: str, *, profile: str = "quick") -> None:
    """Show what one section of ``experiments/README.md`` came to: its claims, and the verdict on each set of images.

    Args:
        section: title of the section, the ``row`` of its claims.
        profile: of the results.

    Raises:
        ValueError: no claim belongs to such a section.
    """
    ipython = require("IPython.display", extra="course", what="measured_claims")
    ipython.display(ipython.Markdown(claims_table(section, profile=profile)))


def claims_table(section: str, *, profile: str = "quick") -> str:
    """The table of ``measured_claims`` as Markdown. Every verdict is computed here, from the committed results."""
    claims = _claims()
    of_section = [claim for claim in claims.CLAIMS if claim.row == section]
    if not of_section:
        sections = ", ".join(dict.fromkeys(claim.row for claim in claims.CLAIMS))
        raise ValueError(f"section: got {section!r}, want one of {sections}")
    lines = ["| claim | compared | difference, 95 % interval | verdict |", "| --- | --- | --- | --- |"]
    for claim in of_section:
        sentence, compared = f"{claim.quoted} ({claim.source})", f"{claim.compared} Holds if {claim.matters}."
        for data in claims.DATA:
            try:
                rows = results(claim.experiment, data=data, profile=profile).rows
            except FileNotFoundError:
                continue
            for _, verdict in claims.judged([claim], claim.experiment, data, rows):
                images = claims.images_of(claim.experiment, data)
                lines.append(f"| {sentence} | {compared} | {images}: {verdict} | **{verdict.told}** |")
                sentence = compared = ""
    return "\n".join(lines)


@functools.cache
def _claims() -> SimpleNamespace:
    """``experiments/claims.py``, by its path: a notebook's folder is not the project's root, so it cannot import it."""
    return SimpleNamespace(**runpy.run_path(str(read_book().root / "experiments" / "claims.py")))

"""The committed results of the experiments, for the chapters that show them."""

import json
import statistics
from dataclasses import dataclass
from typing import Any

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

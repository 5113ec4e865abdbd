"""What ``fit`` logged, as rows, a table and curves."""

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from companion._arguments import brief, check_instance
from companion._extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]


class _Named(Row):
    """A row that says which terms it has where it is asked for another."""

    def __missing__(self, name: str) -> float:
        without = isinstance(name, str) and name.startswith("validation_") and not any(map(_of_validation, self))
        why = ": fit had no validation=…" if without else ""
        raise KeyError(f"{name!r} was not logged{why}; there are {', '.join(self)}")


def _of_validation(name: str) -> bool:
    return name.startswith("validation_")


@dataclass
class History:
    """What ``fit`` logged: a row an epoch.

    A row has ``epoch``, ``step``, the mean of each term over the training batches of that epoch (while
    the weights moved) and, as ``validation_…``, over the validation set after it; with ``clip`` also the mean of
    ``gradient_norm``, and with ``schedule`` the ``lr`` of the last step. Plain numbers, and no times: equal runs have
    equal histories.

    ``interrupted`` says that training was stopped (not by ``after_epoch``); the last row is then of the part of an
    epoch that was done.
    """

    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def last(self) -> Row:
        """The newest row.

        Raises:
            ValueError: there is none.
            KeyError: ``last[name]``, where nothing of that name was logged; the message has the names that were.
        """
        if not self.rows:
            raise ValueError("History: it is empty; training was stopped before its first step was done")
        return _Named(self.rows[-1])

    def table(self) -> str:
        """The rows as aligned text, a line an epoch."""
        lines = self._cells()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def plot(self, term: str = "loss", *, width: float = 7, height: float = 3) -> "Figure":
        """Training and validation curve of one term, over epochs.

        Raises:
            ValueError: nothing of that name was logged.
        """
        plots = require("companion.plots", extra="plots", what="History.plot")
        figure, axes = plots.figure(width, height)
        if not self.rows:
            axes.set(xlabel="epoch", ylabel=term, title="Stopped before the first step was done")
            return figure
        logged = [name for name in self.rows[0] if all(name in row for row in self.rows)]
        terms = [name for name in logged if name not in ("epoch", "step")]
        if not isinstance(term, str) or term not in terms:
            raise ValueError(f"term: got {term!r}, want one of {', '.join(terms) or 'none, as the rows have no term'}")
        epochs = [row.get("epoch", i) for i, row in enumerate(self.rows, 1)]
        ends = []
        for label, name, colour, style in (
            ("training", term, "train", "-o"),
            ("validation", f"validation_{term}", "validation", "--s"),
        ):
            if name in logged:
                values = [row[name] for row in self.rows]
                axes.plot(epochs, values, style, markersize=4, color=plots.COLOURS[colour], label=label)
                ends.append(f"{label} {values[0]:.3g} → {values[-1]:.3g}")
        axes.set(xlabel="epoch", ylabel=term, title=f"{term} by epoch: {', '.join(ends)}")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.legend()
        return figure

    def __repr__(self) -> str:
        return self.table()

    def _repr_markdown_(self) -> str:
        head, *body = [f"| {' | '.join(line)} |" for line in self._cells()]
        return "\n".join([head, "|" + " ---: |" * (head.count("|") - 1), *body])

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        rows = [("th", head), *(("td", line) for line in body)]
        lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for tag, line in rows]
        return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"

    def _check_rows(self) -> None:
        check_instance("rows", self.rows, list, "a list of dicts")
        for i, row in enumerate(self.rows):
            if not isinstance(row, dict):
                raise ValueError(f"rows[{i}]: got {brief(row)}, want a dict of numbers by name")
            for name, value in row.items():
                check_instance(f"rows[{i}][{name!r}]", value, (int, float), "a number")
            if row.keys() != self.rows[0].keys():
                raise ValueError(
                    f"rows[{i}]: got the terms {', '.join(map(str, row))}, want those of the first row, "
                    f"{', '.join(map(str, self.rows[0]))}"
                )

    def _cells(self) -> list[list[str]]:
        self._check_rows()
        names = list(self.rows[0]) if self.rows else ["epoch", "step"]
        values = [[row[name] for name in names] for row in self.rows]
        return [names, *([str(v) if isinstance(v, int) else f"{v:.5g}" for v in line] for line in values)]

"""Tables of the page: numbers as text, the name of a setting, means over the seeds."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from companion.course.claims import Section
from experiments.page.runs import Run

SHORT_NAMES = {
    "num_codes": "K",
    "dim": "D",
    "lr": "rate",
    "encoder_blocks": "encoder",
    "decoder_blocks": "decoder",
    "f_height": "f down",
    "f_width": "f across",
    "depth": "R",
    "factor": "f",
    "beta": "β_KL",
    "longer": "epochs ×",
}


def cells_table(section: Section, run: Run) -> str:
    """Mean ± standard deviation over the seeds, a line for each setting."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in run.cells:
        groups.setdefault(label(run, cell), []).append(cell)
    shown = {name: title for name, title in section.shown.items() if any(name in cell for cell in run.cells)}
    lines = []
    for kind, cells in groups.items():
        lines.append([kind, *(spread([cell[name] for cell in cells if name in cell]) for name in shown), len(cells)])
    table = markdown([f"{run.title}: setting", *shown.values(), "seeds"], lines)
    return (
        f"<details><summary>{run.title}: means ± standard deviations over the seeds</summary>\n\n{table}\n\n</details>"
    )


def label(run: Run, cell: dict[str, Any]) -> str:
    """A cell's settings in a few words; a number has its name before it."""
    return ", ".join(
        setting if isinstance(setting, str) else f"{SHORT_NAMES.get(name, name)} {setting:g}"
        for name in run.settings
        if (setting := cell[name]) != ""
    )


def grouped(run: Run, name: str) -> dict[str, list[float]]:
    """The values of one number by the setting of the cell."""
    groups: dict[str, list[float]] = {}
    for cell in run.cells:
        if name in cell:
            groups.setdefault(label(run, cell), []).append(cell[name])
    return groups


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return number(statistics.fmean(values)) + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def number(x: Any) -> str:
    if isinstance(x, float) and (abs(x) < 1000 and x != int(x)):
        return f"{x:.3g}"
    return f"{x:,.0f}" if isinstance(x, int | float) else str(x)


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(entry).replace("|", "\\|") for entry in row) + " |" for row in rows)

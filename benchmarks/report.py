"""The tables of ``README.md``, from what was measured."""

import math
from statistics import median
from typing import Any

from benchmarks.cases import COMPARISONS
from benchmarks.comparison import Comparison

PEERS = ("vector-quantize-pytorch", "rq-transformer")
Row = dict[str, Any]


def tables(results: Row) -> str:
    """Machine, codes, logits and each comparison as Markdown."""
    about = results["machine"]
    parts = [
        f"{about['device']}, {about['threads']} threads, {about['memory_gib']} GiB of memory, {about['system']}, "
        f"Python {about['python']}, torch {about['torch']}, "
        f"{', '.join(f'{peer} {about[peer]}' for peer in PEERS)}, {about['date']}.",
        codes_table(results["codes"]),
        logits_table(results["logits"]),
    ]
    for comparison in COMPARISONS:
        for dtype in dict.fromkeys(row["dtype"] for row in results["rows"]):
            mine = [row for row in results["rows"] if (row["comparison"], row["dtype"]) == (comparison.title, dtype)]
            if mine:
                parts += [f"**{comparison.title}, {dtype}**", times_table(comparison, mine), wanted(comparison, mine)]
    return "\n\n".join(part for part in parts if part)


def codes_table(codes: list[Row]) -> str:
    lines = []
    for row in codes:
        ours, peers = row["companion"], row["peer"]
        kind = "bfloat16 autocast" if row["dtype"] == "bfloat16" else row["dtype"]
        cells = [row["K"], kind, row["offset"], ours["wrong"], ours["ties"], f"{peers['wrong'] / peers['vectors']:.1%}"]
        lines.append(cells)
    head = ["K", "precision", "offset", "companion, wrong", "companion, ties", "peer, wrong"]
    return "**Codes that are not the nearest**\n\n" + markdown(head, lines)


def logits_table(logits: list[Row]) -> str:
    lines = [[row["prior"], f"{row['largest']:.2f}", f"{row['difference']:.1e}"] for row in logits]
    head = ["prior", "largest logit", "largest difference"]
    return "**Logits with a cache against those without, float32**\n\n" + markdown(head, lines)


def times_table(comparison: Comparison, rows: list[Row]) -> str:
    """A line for each value. Of times the minimum and (median), of ratios that of the minima and (least–most)."""
    names = [contestant.name for contestant in comparison.contestants]
    unit = f"ms per {comparison.part}" if comparison.part else "ms"
    head = [comparison.axis, *(f"{name}, {unit}" for name in names), *(f"{names[0]} / {name}" for name in names[1:])]
    # what else is shown, of the first ``shown``
    more = [("parameters", "parameters")] * comparison.parameters + [("MiB", "extra_mib")] * comparison.memory
    head += [f"{name}, {word}" for word, _ in more for name in names[: comparison.shown]]
    lines = []
    for value in dict.fromkeys(row[comparison.axis] for row in rows):
        by_name = {row["who"]: row for row in rows if row[comparison.axis] == value}
        ours = by_name[names[0]]
        cells = [f"{value:,}", *(milliseconds(by_name[name]) for name in names)]
        cells += [ratio(ours, by_name[name]) for name in names[1:]]
        for _, field in more:
            cells += [
                f"{by_name[name][field]:,.0f}" if field in by_name[name] else "–" for name in names[: comparison.shown]
            ]
        lines.append(cells)
    left_out = [
        f"Left out at {comparison.axis} = {row[comparison.axis]:,}: {row['who']} ({row['left_out']})."
        for row in rows
        if "left_out" in row
    ]
    powers = growth(comparison, rows) if comparison.growth else ""
    return "\n\n".join(part for part in (markdown(head, lines), *left_out, powers, comparison.note) if part)


def growth(comparison: Comparison, rows: list[Row]) -> str:
    """The slope of log time over log value, of each contestant over the last three values at which it was measured."""
    parts = []
    for contestant in comparison.contestants:
        mine = [row for row in rows if row["who"] == contestant.name and "seconds" in row][-3:]
        if len(mine) < 2:  # --quick measures fewer
            continue
        (first, start), (last, end) = ((row[comparison.axis], min(row["seconds"])) for row in (mine[0], mine[-1]))
        power = math.log(end / start) / math.log(last / first)
        parts.append(f"{contestant.name} {power:.2f} ({first:,} to {last:,})")
    what = f"Time per {comparison.part}" if comparison.part else "Time"
    return f"{what} grows as this power of {comparison.axis}: {', '.join(parts)}." if parts else ""


def wanted(comparison: Comparison, rows: list[Row]) -> str:
    """What was wanted, and what came."""
    names = [contestant.name for contestant in comparison.contestants]
    measured = {(row["who"], row[comparison.axis]): row for row in rows if "seconds" in row}
    lines = []
    for value, limit in comparison.at_most.items():
        ours = measured.get((names[0], value))
        for other, most, word in ((1, limit, "at most"), (2, comparison.aim, "aimed at")):
            if ours and most is not None and other < len(names) and (theirs := measured.get((names[other], value))):
                got = min(ours["seconds"]) / min(theirs["seconds"])
                lines.append(
                    f"- Time at {comparison.axis} = {value:,}: {word} {most:.2g} of {names[other]}; "
                    f"it is {got:.{decimals(got)}f}, {verdict(got <= most)}."
                )
    if comparison.bounded is not None and any(who == names[0] for who, _ in measured):
        memory = {value: row["extra_mib"] for (who, value), row in measured.items() if who == names[0]}
        worst = max(memory, key=lambda value: memory[value])
        lines.append(
            f"- Extra memory of the companion at any {comparison.axis}: under {comparison.bounded} MiB; it is at most "
            f"{memory[worst]:.0f} ({comparison.axis} = {worst:,}), {verdict(memory[worst] < comparison.bounded)}."
        )
    return "\n".join(lines)


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def milliseconds(row: Row) -> str:
    if "seconds" not in row:
        return "–"
    least, middle = (1000 * seconds for seconds in (min(row["seconds"]), median(row["seconds"])))
    digits = max(0, 3 - len(str(int(least))))  # three in all
    return f"{least:,.{digits}f} ({middle:,.{digits}f})"


def ratio(ours: Row, theirs: Row) -> str:
    """Of the minima; in brackets the least and the most of the rounds, in each of which both were measured."""
    if "seconds" not in theirs:
        return "–"
    rounds = [a / b for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
    of_minima = min(ours["seconds"]) / min(theirs["seconds"])
    digits = decimals(of_minima)
    return f"{of_minima:.{digits}f} ({min(rounds):.{digits}f}–{max(rounds):.{digits}f})"


def decimals(number: float) -> int:
    """Of a ratio: two, and three below 0.06."""
    return 2 if number >= 0.06 else 3


def markdown(head: list[str], lines: list[list[Any]]) -> str:
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, ["---"] * len(head), *lines])


def with_tables(readme: str, device: str, new: str) -> str:
    """``readme`` with ``new`` between the two comments of ``device``."""
    begin, end = f"<!-- {device}: written by make bench -->\n", f"<!-- /{device} -->"
    before, found, rest = readme.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"readme: want the comments {begin.strip()} and {end} in it")
    return before + begin + new + "\n" + end + after

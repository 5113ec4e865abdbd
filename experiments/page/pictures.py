"""The pictures of the page, each with its alt text."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from companion import plots
from companion.course.claims import IMAGES, Section
from companion.course.claims.rule import Outcome
from companion.course.claims.section import Picture
from experiments.page.runs import Decision, Run
from experiments.page.tables import grouped, label, number, spread

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#009E73", "#CC79A7", "#E69F00", "#999999")
COLOURS = dict(zip(IMAGES, _COLOURS, strict=True))
OUTCOME_COLOURS: dict[Outcome, str] = {
    "holds": "#0072B2",
    "smaller than claimed": "#E69F00",
    "the opposite": "#D55E00",
    "undecided": "#7F7F7F",
}
_REACH = 5  # of the axis of intervals; what lies beyond is drawn at its end


def intervals(rows: Sequence[tuple[str, Decision]], name: str, folder: Path | None, title: str) -> str:
    """Markdown of a picture: a line with its interval for each comparison, in units of the difference that matters.

    So ±1 is the effect size of every row, whatever its unit. The side that is better, where one is, is marked.
    """
    rows = [(label, decision) for label, decision in rows if decision.verdict.seeds]
    height = 1.1 + sum(0.26 + 0.09 * label.count("\n") for label, _ in rows)
    fig, ax = plots.figure(7.2, height)
    ax.axvspan(-1, 1, color="0.93", zorder=0)
    ax.axvline(0, color="0.3", lw=1)
    for i, (_, decision) in enumerate(rows):
        verdict, effect = decision.verdict, decision.claim.compare.effect_size
        colour = OUTCOME_COLOURS[verdict.outcome]
        points = [max(-_REACH, min(_REACH, difference / effect)) for difference in verdict.differences]
        ax.plot(points, [i] * len(points), "|", ms=6, color=colour, alpha=0.5)
        if verdict.seeds >= 3:
            low, high = (max(-_REACH, min(_REACH, limit / effect)) for limit in (verdict.low, verdict.high))
            ax.plot([low, high], [i, i], "-", lw=2, color=colour, alpha=0.6)
        mean = verdict.mean / effect
        marker = "o" if abs(mean) <= _REACH else ">" if mean > 0 else "<"
        ax.plot(max(-_REACH, min(_REACH, mean)), i, marker, ms=6, color=colour)
        if better := decision.claim.compare.better:
            side = -1 if better == "lower" else 1
            ax.text(side * (_REACH + 0.4), i, "better", ha="left" if side > 0 else "right", va="center", fontsize=7)
    ax.set_xlim(-_REACH - 0.3, _REACH + 0.3)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    ax.tick_params(axis="y", pad=34, length=0)
    ax.set_xticks([-4, -2, -1, 0, 1, 2, 4])
    ax.set_xlabel("← lower   ·   in differences that would matter (grey: less)   ·   higher →", fontsize=9)
    ax.set_title(title)
    found = list(dict.fromkeys(decision.verdict.outcome for _, decision in rows))
    for outcome in found:
        ax.plot([], [], "o-", color=OUTCOME_COLOURS[outcome], label=outcome)
    fig.legend(loc="outside lower center", ncols=len(found), fontsize=8)
    if folder:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(plots.to_png(fig, dpi=80))
    said = "; ".join(f"{' '.join(label.split())}: {decision.verdict}" for label, decision in rows)
    return f"![{title}: the mean difference of each comparison with its 95 % interval and each seed. {said}.]" + (
        f"(figures/{name}.png)"
    )


def pictures(names: Sequence[Picture], section: Section, runs: Sequence[Run], folder: Path | None) -> str:
    """Markdown of these pictures of a section; each is written into ``folder`` where one is given."""
    lines = []
    for picture in names:
        if picture == "dots":
            name, (fig, alt) = section.experiment, dots(section, runs)
        else:
            name, (fig, alt) = picture, DRAW[picture](runs)
        if folder:
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(plots.to_png(fig, dpi=80))
        lines.append(f"![{alt}](figures/{name}.png)")
    return "\n\n".join(lines)


def dots(section: Section, runs: Sequence[Run], most: int = 3) -> tuple[Figure, str]:
    """A dot for each seed: one line a setting, one panel for each of the first numbers that the section shows."""
    numbers = list(section.shown.items())[:most]
    kinds = list(dict.fromkeys(label(run, cell) for run in runs for cell in run.cells))
    fig, axes = plots.figure(
        2.2 + 2.6 * len(numbers), 0.9 + 0.27 * len(kinds), columns=len(numbers), sharey=True, squeeze=False
    )
    for ax, (name, title) in zip(axes[0], numbers, strict=True):
        for i, run in enumerate(runs):
            points = [(cell[name], kinds.index(label(run, cell))) for cell in run.cells if name in cell]
            if points:
                x, y = zip(*points, strict=True)
                shift = 0.16 * (i - (len(runs) - 1) / 2)
                colour = COLOURS.get(run.data, "black")
                ax.plot(x, [at + shift for at in y], "o", ms=4, alpha=0.7, color=colour, label=run.title)
        logarithmic = _logarithmic_where_wide(ax, name, runs)
        ax.set_xlabel(f"{title}, logarithmic" if logarithmic else title)
    axes[0][0].set_yticks(range(len(kinds)), kinds)
    axes[0][0].set_ylim(len(kinds) - 0.5, -0.5)
    if len(runs) > 1:
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), fontsize=8)
    name, title = numbers[0]
    found = "; ".join(f"on {run.title} {_extremes(run, name)}" for run in runs)
    panels = " and ".join(title for _, title in numbers)
    return fig, f"A dot for each seed and setting: {panels}. Of {title}, {found}."


def images_and_reconstructions(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Test images above what comes back."""
    rows: dict[str, torch.Tensor] = {}
    for run in runs:
        for cell in run.cells:
            if "images" in cell and "reconstructions" in cell and cell.get("start", "uniform") == "uniform":
                rows[f"{run.title}"] = _from_digits(cell["images"])
                rows["rebuilt" + "\u200b" * len(rows)] = _from_digits(cell["reconstructions"])  # names must differ
    names = ", ".join(name for name in rows if not name.startswith("rebuilt"))
    return plots.image_rows(rows, size=0.6), f"The first test images of {names}, and below each row what comes back."


def distortion_by_codes_and_dimensions(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Mean distortion by K and D, one panel for each factor."""
    run = runs[0]
    equally_long = [cell for cell in run.cells if cell["longer"] == 1]
    factors = sorted({cell["factor"] for cell in equally_long}, reverse=True)
    fig, axes = plots.figure(3.6 * len(factors) + 0.6, 3.4, columns=len(factors), squeeze=False)
    best = []
    for ax, factor in zip(axes[0], factors, strict=True):
        cells = [cell for cell in equally_long if cell["factor"] == factor]
        ks, ds = (sorted({cell[name] for cell in cells}) for name in ("num_codes", "dim"))
        table = torch.full((len(ks), len(ds)), float("nan"))
        for i, k in enumerate(ks):
            for j, d in enumerate(ds):
                found = [cell["distortion"] for cell in cells if (cell["num_codes"], cell["dim"]) == (k, d)]
                if found:
                    table[i, j] = statistics.fmean(found)
                    ax.text(j, i, f"{table[i, j]:.3f}", ha="center", va="center", fontsize=9)
        ax.imshow(table.numpy(), cmap="cividis_r", alpha=0.55)
        ax.grid(False)
        ax.set_xticks(range(len(ds)), ds)
        ax.set_yticks(range(len(ks)), ks)
        ax.set_xlabel("dimensions D")
        ax.set_ylabel("codes K")
        ax.set_title(f"distortion, latents {32 // factor}×{32 // factor}")
        i, j = divmod(int(table.nan_to_num(9).argmin()), len(ds))
        best.append(f"for latents {32 // factor}×{32 // factor} lowest at K = {ks[i]}, D = {ds[j]} ({table[i, j]:.3f})")
    return fig, f"Mean distortion on {run.title} by number of codes and of dimensions: {' and '.join(best)}."


def distortion_by_epoch(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Held-out distortion by epoch, a line for each seed."""
    fig, axes = plots.figure(3.6 * len(runs) + 0.4, 3, columns=len(runs), squeeze=False)
    ends = []
    for ax, run in zip(axes[0], runs, strict=True):
        kinds = list(dict.fromkeys(label(run, cell) for cell in run.cells))
        for kind, colour in zip(kinds, plots.CLASS_COLOURS, strict=False):
            lines = [cell["by_epoch"] for cell in run.cells if label(run, cell) == kind]
            for i, line in enumerate(lines):
                ax.plot(range(1, len(line) + 1), line, color=colour, lw=1, label=None if i else kind)
            ends.append(f"{kind} on {run.title} {statistics.fmean(line[-1] for line in lines):.3g}")
        ax.set_yscale("log")
        ax.set_title(run.title)
        ax.set_xlabel("epoch")
        ax.set_ylabel("distortion")
        ax.legend(fontsize=8)
    return fig, f"Test distortion after each epoch, a line for each seed. Means at the end: {'; '.join(ends)}."


def residual_by_depth(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Mean squared residual after each quantiser, of the kind that has three."""
    fig, ax = plots.figure(4.5, 2.8)
    found = []
    for run in runs:
        lines = [cell["residual_by_depth"] for cell in run.cells if cell["depth"] == 3]
        for i, line in enumerate(lines):
            ax.plot(range(len(line)), line, "o-", color=COLOURS.get(run.data), lw=1, label=None if i else run.title)
        means = [f"{statistics.fmean(values):.3g}" for values in zip(*lines, strict=True)]
        found.append(f"on {run.title} {', '.join(means)}")
    ax.set_yscale("log")
    ax.set_xticks(range(4))
    ax.set_xlabel("quantisers")
    ax.set_ylabel("squared residual\n(variance of the latents = 1)")
    ax.legend(fontsize=8)
    return fig, (
        "Mean squared residual after 0, 1, 2 and 3 quantisers, in units of the variance of the latents, a line for "
        f"each seed; means {'; '.join(found)}. Before the first the mean of the latents counts as well."
    )


def search_times(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Time of the search against each size, logarithmic, a line for each seed."""
    run = runs[0]
    kinds = list(dict.fromkeys(cell["grows"] for cell in run.cells))
    names = {"positions": "positions h·w", "codes": "codes K", "dims": "dimensions D", "few dims": "few dimensions D"}
    fig, axes = plots.figure(2.3 * len(kinds) + 0.4, 2.6, columns=len(kinds), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for cell in run.cells:
            if cell["grows"] == kind:
                ax.plot(cell["values"], cell["milliseconds"], "o-", ms=3, lw=1, color=plots.COLOURS["train"])
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel(names.get(kind, kind))
    axes[0][0].set_ylabel("milliseconds")
    means = ", ".join(f"{names.get(kind, kind)} {spread(values)}" for kind, values in grouped(run, "exponent").items())
    return fig, f"Processor time of the search for 32 images, both axes logarithmic. Mean exponents: {means}."


DRAW: dict[Picture, Callable[[Sequence[Run]], tuple[Figure, str]]] = {
    "images": images_and_reconstructions,
    "grid": distortion_by_codes_and_dimensions,
    "longer_training": distortion_by_epoch,
    "residuals": residual_by_depth,
    "search_cost": search_times,
}


def _logarithmic_where_wide(ax: Axes, name: str, runs: Sequence[Run]) -> bool:
    """Give the panel a logarithmic axis where its values differ by much, and say whether it has one."""
    values = [cell[name] for run in runs for cell in run.cells if name in cell]
    if not values or min(values) <= 0 or not 5 < max(values) / min(values) < 500:
        return False
    if max(values) <= 1 and name not in ("distortion", "bits"):
        return False  # a share, from 0 to 1
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    return True


def _extremes(run: Run, name: str) -> str:
    means = {kind: statistics.fmean(values) for kind, values in grouped(run, name).items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return f"the lowest mean is {number(means[low])} ({low}) and the highest {number(means[high])} ({high})"


def _from_digits(text: str) -> torch.Tensor:
    """What ``tokenizer.digits`` wrote: grey images of 28×28, or colour ones of 32×32."""
    levels = torch.tensor([int(digit, 16) for digit in text]) / 15
    shape = (1, 28, 28) if len(text) % 784 == 0 else (3, 32, 32)
    return levels.reshape(-1, *shape)

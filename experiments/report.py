"""Committed results → ``experiments/README.md``: ``make experiments-report``.

No number in its tables and figures and no verdict is typed: sentences and effect sizes come from ``claims.py``, numbers
and verdicts from ``results/*.json``, settings from the experiments. A test makes the text again and compares.
"""

import argparse
import importlib
import itertools
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from companion import plots
from experiments import claims
from experiments.claims import CLAIMS, DATA, NO_IMAGES, Claim, Verdict, images_of
from experiments.common import RESULTS, command_of, commanded, sizes_of

HERE = Path(__file__).parent
COLOURS = dict(zip(DATA, ("#0072B2", "#D55E00", "#009E73", "#009E73", "#CC79A7", "#999999"), strict=True))
AGAIN = "--results runs/again"  # a folder that git ignores

INTRODUCTION = """# What the source reports claim, measured

The course grew from five student reports and blog posts: Songlin Zhao, *VQ-VAE and Transformer* (2023); Muhammad
Ibrahim, *Residual Vector Quantization based VAE*; Hidir Yesiltepe, *Neural Discrete Representation Learning* (2022);
and two without a name, on the gradient flow of a VQ-VAE and on backbones (of which nothing is measured here). What
they claim is tested with networks and trainings smaller than theirs, so that a verdict says what holds *here*.
{counts}

`make experiments-report` writes this page from `results/*.json`; no number in its tables and no verdict is typed. The
comparisons stand in [`claims.py`](claims.py), with the effect size that would matter, since before the experiments
ran on real images; where one was added or asked otherwise later, it says so. A sentence is in quotation marks where a
report states it (its formulas in plain letters); the others are our own questions.

**How a verdict comes about.** For each seed both sides of a comparison are trained from it (or one, where the other
is a fixed number), and their difference is taken. Of "lower" and "higher" a positive difference goes the way that is
asked; of "the same" it means that the first side is higher; per cent are of the second side. The tables show its mean
and 95 % interval over the seeds (Student's t), and each seed. The claim *holds* if the whole interval lies above the
effect size, *does not hold* if it lies wholly below, and is *not decided by this data* otherwise, or with fewer than
three seeds. A claim of "little" or of "the same" holds if the interval lies within the effect size, and does not hold
if it lies wholly outside. Where runs fail, seeds fall into two groups and an interval says little; it may even pass
what is possible. It covers what the seed changes (weights, order of images), not what other networks, sizes or images
would. There are {claims} comparisons on this page: of that many, a few intervals miss by chance. The first results on
real images had three seeds, and were seen; a second round brought experiment after experiment to five, decided or
not, as far as the time went. The best of several rivals is, for each seed, the one that is best in the others (the
luckiest of the seed itself until the glyphs and a first grid had been seen).

**Words.** *Distortion*: mean squared error on test images over the variance of all training pixels. *Perplexity*: exp
of the entropy of the codes that test images use. *Codes in use*: their share. *Sharpness* or edge energy: summed
squared differences of neighbouring pixels, over that of the images. *Recognised*: share of samples that a classifier
takes for the class asked for; *sure*: for any class with at least 0.9. *Fréchet distance*: on that classifier's
features, to as many test images. *Bits per image*: cross-entropy of the codes; *per pixel*: a bound on −log₂ p(x).

**What was reduced.** The reports trained on all images. These results are of profile `quick`, made on {machine}:
fewer images and epochs and smaller networks, as each section says. `--profile full` has the reports' numbers of
images and epochs, and their widths where they give them; a command without `--profile` takes it where there is a CUDA
device. Glyphs are the course's own images, shown beside the real ones where a chapter uses them; most of these were
run before the claims were written.

**To run a row again.** Its command stands beside it, and that of the whole experiment above; both write into
`runs/again`, since the cells in `results/` are finished and would not be run again, and end by printing the verdict.
`COMPANION_DATA` says where the images lie (`CIFAR10-jpeg` is a folder there, with `train/<class>/` and
`test/<class>/`; the other sets are downloaded where they are missing). A run that was stopped goes on where it was.
"""


@dataclass(frozen=True)
class Run:
    """One file of results."""

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
    def cells(self) -> list[dict[str, Any]]:
        return list(self.document["cells"])

    @property
    def finished(self) -> bool:
        cells = importlib.import_module(f"experiments.{self.experiment}").cells
        return len(self.cells) == len(commanded(self.document["command"], cells))

    @property
    def settings(self) -> list[str]:
        """What its cells are told apart by, but for the seed."""
        names = importlib.import_module(f"experiments.{self.experiment}").cells(1)[0]
        return [name for name in names if name != "seed"]


Draw = Callable[[Sequence[Run]], tuple[Figure, str]]


@dataclass(frozen=True)
class Section:
    """A part of the report: the claims with this title, and what one experiment measured."""

    title: str
    experiment: str
    shown: dict[str, str]  # number → its name in the table
    note: str
    draw: Sequence[str] = ()  # names of pictures; where none is given, one of the numbers shown
    data: str = "mnist"


def report(results: Path = RESULTS, figures: Path | None = None) -> str:
    """The page as Markdown. With ``figures`` the pictures are written there too."""
    runs = read(results)
    number_of_claims = sum(1 for _ in judged(runs))
    parts = [INTRODUCTION.format(claims=number_of_claims, machine=machines(runs), counts=counts(runs)), summary(runs)]
    told = set()  # experiments of an earlier section
    for section in SECTIONS:
        mine = [run for run in runs if run.experiment == section.experiment]
        parts += [f"## {section.title}", section.note]
        if all(run.data == "glyphs" for run in mine):
            command = f"python -m experiments.{section.experiment} --profile quick --data {section.data}"
            parts.append(f"Not run on real images yet: `{command}`.")
        if mine:
            first = section.experiment not in told
            parts += [settings(run) for run in mine if first]
            parts += [claims_told([claim for claim in CLAIMS if claim.row == section.title], mine)]
            parts += [pictures(section, mine, figures)]
            parts += [cells_table(section, run) for run in mine if first]
        told.add(section.experiment)
    parts.append(others(results))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def read(results: Path = RESULTS) -> list[Run]:
    """The files of the experiments in the report, of all images; what is not finished is left out."""
    order = list(DATA)
    names = {section.experiment for section in SECTIONS}
    runs = [
        Run(path.name.split(".")[0], json.loads(path.read_text("utf-8"))) for path in sorted(results.glob("*.json"))
    ]
    runs = [run for run in runs if run.experiment in names and run.document["profile"] != "smoke" and run.finished]
    return sorted(runs, key=lambda run: (order.index(run.data) if run.data in order else 99, run.document["profile"]))


def others(results: Path) -> str:
    """The experiments that only a chapter shows."""
    names = {section.experiment for section in SECTIONS}
    lines = []
    for path in sorted(results.glob("*.json")):
        run = Run(path.name.split(".")[0], json.loads(path.read_text("utf-8")))
        if run.experiment not in names and run.document["profile"] != "smoke" and run.finished:
            about = (importlib.import_module(f"experiments.{run.experiment}").__doc__ or "").split("\n\n")[0]
            again = f"`{run.document['command']} {AGAIN}`"
            lines.append([" ".join(about.split()), run.title, again])
    head = "## Other experiments\n\nTheir results are shown in the chapters.\n\n"
    return head + markdown(["experiment", "images", "command"], lines)


def judged(runs: Sequence[Run]) -> Iterable[tuple[Claim, Run, Verdict]]:
    """Every claim on all the images it was measured on."""
    for claim, run in itertools.product(CLAIMS, runs):
        for _, verdict in claims.judged([claim], run.experiment, run.data, run.cells):
            yield claim, run, verdict


def machines(runs: Sequence[Run]) -> str:
    return " and ".join(dict.fromkeys(cell["machine"] for run in runs for cell in run.cells))


def counts(runs: Sequence[Run]) -> str:
    """How many comparisons on real images came out how: of what the reports state, and of our own questions."""
    told = []
    for whose, theirs in (("what the reports state", True), ("our own questions", False)):
        words = [
            verdict.word
            for claim, run, verdict in judged(runs)
            if run.title not in ("glyphs", NO_IMAGES) and bool(claim.by) == theirs
        ]
        held, not_held, undecided = (
            words.count(word) for word in ("holds", "does not hold", "not decided by this data")
        )
        told.append(
            f"Of {whose}, on real images {held} comparisons hold, {not_held} do not, {undecided} are undecided."
        )
    return "\n".join(textwrap.wrap(f"{' '.join(told)} With so few seeds only large differences can be decided.", 120))


def summary(runs: Sequence[Run]) -> str:
    """Every comparison in one line, with its verdict on each set of images."""
    sets = sorted(dict.fromkeys(run.title for run in runs), key=lambda title: title == NO_IMAGES)
    lines = []
    for claim, found in itertools.groupby(judged(runs), key=lambda one: one[0]):
        words = {run.title: verdict.told for _, run, verdict in found}
        lines.append([link(claim.row), claim.by, claim.quoted, claim.measure, *(words.get(name, "") for name in sets)])
    return "## Verdicts\n\n" + markdown(["section", "report", "sentence", "compared", *sets], lines)


def link(title: str) -> str:
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title}](#{anchor})"


def settings(run: Run) -> str:
    """How much of what was trained, beside the profile full, and the command."""
    sizes = run.document["sizes"]
    full = sizes_of(importlib.import_module(f"experiments.{run.experiment}").SIZES["full"], run.data)

    def said(name: str) -> str:
        beside = f" (full: {number(full[name])})" if sizes[name] != full.get(name) and name in full else ""
        return f"{name.replace('_', ' ')} {number(sizes[name])}{beside}"

    seeds = sorted({cell["seed"] for cell in run.cells})
    minutes = sum(cell["seconds"] for cell in run.cells) / 60
    torches = ", ".join(dict.fromkeys(cell["torch"] for cell in run.cells))
    return (
        f"**{run.title}**: {', '.join(said(name) for name in sizes)}; {len(run.cells)} cells, {len(seeds)} seeds, "
        f"{minutes:.0f} min by the clock of a shared machine of {machines([run])}, torch {torches}.\n\n"
        f"```\n{run.document['command']} {AGAIN}\n```"
    )


def claims_told(claims: Sequence[Claim], runs: Sequence[Run]) -> str:
    """A paragraph for each claim: what is compared, and a row for each set of images with its own command."""
    head = ["images", "difference, 95 % interval", "each seed", "verdict", "this row again"]
    parts = []
    for claim in claims:
        lines = [
            [run.title, verdict, each(verdict), f"**{verdict.told}**", f"`{command(claim, run)}`"]
            for _, run, verdict in (one for one in judged(runs) if one[0] is claim)
        ]
        if lines:
            parts += [f"**{claim.quoted}** ({claim.source})<br>\n{claim.compared} Holds if {claim.matters}."]
            parts += [markdown(head, lines)]
    return "\n\n".join(parts)


def each(verdict: Verdict) -> str:
    return ", ".join(verdict.number(one) for one in verdict.each)


def command(claim: Claim, run: Run) -> str:
    """What runs again the cells that this comparison looks at, into a folder of its own."""
    cells = importlib.import_module(f"experiments.{run.experiment}").cells
    all_cells = commanded(run.document["command"], cells)
    needed = [cell for cell in all_cells if claim.needs(cell)]
    only = []
    for name in run.settings:
        values = list(dict.fromkeys(str(cell[name]) for cell in needed))
        if len(values) < len({str(cell[name]) for cell in cells(1)}):
            only += [f"{name}={value}" for value in values]
    seeds = 1 + max(cell["seed"] for cell in needed)
    return f"{command_of(run.experiment, run.document['profile'], run.data, seeds, only)} {AGAIN}"


def pictures(section: Section, runs: Sequence[Run], folder: Path | None) -> str:
    """Markdown of the section's figures, alt text included; each is written into ``folder`` where one is given."""
    lines = []
    for name in section.draw or [section.experiment]:
        fig, alt = PICTURES.get(name, strips(section))(runs)
        if folder:
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(plots.to_png(fig, dpi=80))
        lines.append(f"![{alt}](figures/{name}.png)")
    return "\n\n".join(lines)


def strips(section: Section, most: int = 3) -> Draw:
    """A dot for each seed: one line a setting, one panel a number."""

    def draw(runs: Sequence[Run]) -> tuple[Figure, str]:
        numbers = list(section.shown.items())[:most]
        kinds = list(dict.fromkeys(label(run, cell) for run in runs for cell in run.cells))
        fig, axes = plots.figure(
            2.2 + 2.6 * len(numbers), 0.9 + 0.27 * len(kinds), columns=len(numbers), sharey=True, squeeze=False
        )
        for ax, (name, title) in zip(axes[0], numbers, strict=True):
            for i, run in enumerate(runs):
                dots = [(cell[name], kinds.index(label(run, cell))) for cell in run.cells if name in cell]
                if dots:
                    x, y = zip(*dots, strict=True)
                    shift = 0.16 * (i - (len(runs) - 1) / 2)
                    colour = COLOURS.get(run.data, "black")
                    ax.plot(x, [at + shift for at in y], "o", ms=4, alpha=0.7, color=colour, label=run.title)
            seen = [cell[name] for run in runs for cell in run.cells if name in cell]
            share = seen and max(seen) <= 1 and name not in ("distortion", "bits")
            if seen and min(seen) > 0 and not share and 5 < max(seen) / min(seen) < 500:
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                ax.xaxis.set_minor_locator(NullLocator())
                title = f"{title}, logarithmic"
            ax.set_xlabel(title)
        axes[0][0].set_yticks(range(len(kinds)), kinds)
        axes[0][0].set_ylim(len(kinds) - 0.5, -0.5)
        if len(runs) > 1:
            fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), fontsize=8)
        name, title = numbers[0]
        found = "; ".join(f"on {run.title} {extremes(run, name)}" for run in runs)
        panels = " and ".join(title for _, title in numbers)
        return fig, f"A dot for each seed and setting: {panels}. Of {title}, {found}."

    return draw


def extremes(run: Run, name: str) -> str:
    means = {kind: statistics.fmean(values) for kind, values in grouped(run, name).items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return f"the lowest mean is {number(means[low])} ({low}) and the highest {number(means[high])} ({high})"


def grouped(run: Run, name: str) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for cell in run.cells:
        if name in cell:
            groups.setdefault(label(run, cell), []).append(cell[name])
    return groups


WORDS = {"num_codes": "K", "dim": "D", "lr": "rate", "encoder_blocks": "encoder", "decoder_blocks": "decoder"}
WORDS |= {"f_height": "f down", "f_width": "f across", "depth": "R", "factor": "f", "beta": "β_KL"}
WORDS |= {"longer": "epochs ×"}


def label(run: Run, cell: dict[str, Any]) -> str:
    """A setting in a few words: of a number its name too."""
    said = [
        setting if isinstance(setting, str) else f"{WORDS.get(name, name)} {setting:g}"
        for name in run.settings
        if (setting := cell[name]) != ""
    ]
    return ", ".join(said)


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


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return number(statistics.fmean(values)) + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def number(x: Any) -> str:
    if isinstance(x, float) and (abs(x) < 1000 and x != int(x)):
        return f"{x:.3g}"
    return f"{x:,.0f}" if isinstance(x, int | float) else str(x)


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def rebuilt(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Test images above what comes back."""
    rows: dict[str, torch.Tensor] = {}
    for run in runs:
        for cell in run.cells:
            if "images" in cell and "reconstructions" in cell and cell.get("start", "uniform") == "uniform":
                rows[f"{run.title}"] = from_digits(cell["images"])
                rows["rebuilt" + "\u200b" * len(rows)] = from_digits(cell["reconstructions"])  # names must differ
    names = ", ".join(name for name in rows if not name.startswith("rebuilt"))
    return plots.image_rows(rows, size=0.6), f"The first test images of {names}, and below each row what comes back."


def from_digits(text: str) -> torch.Tensor:
    """What ``tokenizer.digits`` wrote: grey images of 28×28, or colour ones of 32×32."""
    levels = torch.tensor([int(digit, 16) for digit in text]) / 15
    shape = (1, 28, 28) if len(text) % 784 == 0 else (3, 32, 32)
    return levels.reshape(-1, *shape)


def heat_maps(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Mean distortion by K and D, one panel for each factor."""
    run = runs[0]
    once = [cell for cell in run.cells if cell["longer"] == 1]
    factors = sorted({cell["factor"] for cell in once}, reverse=True)
    fig, axes = plots.figure(3.6 * len(factors) + 0.6, 3.4, columns=len(factors), squeeze=False)
    said = []
    for ax, factor in zip(axes[0], factors, strict=True):
        here = [cell for cell in once if cell["factor"] == factor]
        ks, ds = (sorted({cell[name] for cell in here}) for name in ("num_codes", "dim"))
        table = torch.full((len(ks), len(ds)), float("nan"))
        for i, k in enumerate(ks):
            for j, d in enumerate(ds):
                found = [cell["distortion"] for cell in here if (cell["num_codes"], cell["dim"]) == (k, d)]
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
        said.append(f"for latents {32 // factor}×{32 // factor} lowest at K = {ks[i]}, D = {ds[j]} ({table[i, j]:.3f})")
    return fig, f"Mean distortion on {run.title} by number of codes and of dimensions: {' and '.join(said)}."


def curves(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Held-out distortion by epoch, a line for each seed."""
    fig, axes = plots.figure(3.6 * len(runs) + 0.4, 3, columns=len(runs), squeeze=False)
    said = []
    for ax, run in zip(axes[0], runs, strict=True):
        kinds = list(dict.fromkeys(label(run, cell) for cell in run.cells))
        for kind, colour in zip(kinds, plots.CLASS_COLOURS, strict=False):
            lines = [cell["by_epoch"] for cell in run.cells if label(run, cell) == kind]
            for i, line in enumerate(lines):
                ax.plot(range(1, len(line) + 1), line, color=colour, lw=1, label=None if i else kind)
            said.append(f"{kind} on {run.title} {statistics.fmean(line[-1] for line in lines):.3g}")
        ax.set_yscale("log")
        ax.set_title(run.title)
        ax.set_xlabel("epoch")
        ax.set_ylabel("distortion")
        ax.legend(fontsize=8)
    return fig, f"Test distortion after each epoch, a line for each seed. Means at the end: {'; '.join(said)}."


def residuals(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Mean squared residual after each quantiser, of the kind that has three."""
    fig, ax = plots.figure(4.5, 2.8)
    said = []
    for run in runs:
        lines = [cell["residual_by_depth"] for cell in run.cells if cell["depth"] == 3]
        for i, line in enumerate(lines):
            ax.plot(range(len(line)), line, "o-", color=COLOURS.get(run.data), lw=1, label=None if i else run.title)
        means = [f"{statistics.fmean(values):.3g}" for values in zip(*lines, strict=True)]
        said.append(f"on {run.title} {', '.join(means)}")
    ax.set_yscale("log")
    ax.set_xticks(range(4))
    ax.set_xlabel("quantisers")
    ax.set_ylabel("squared residual\n(variance of the latents = 1)")
    ax.legend(fontsize=8)
    return fig, (
        "Mean squared residual after 0, 1, 2 and 3 quantisers, in units of the variance of the latents, a line for "
        f"each seed; means {'; '.join(said)}. Before the first the mean of the latents counts as well."
    )


def times(runs: Sequence[Run]) -> tuple[Figure, str]:
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
    said = ", ".join(f"{names.get(kind, kind)} {spread(values)}" for kind, values in grouped(run, "exponent").items())
    return fig, f"Processor time of the search for 32 images, both axes logarithmic. Mean exponents: {said}."


TOKENIZER = {"distortion": "distortion", "perplexity": "perplexity", "usage": "codes in use"}
RESIDUAL = {
    "distortion": "distortion",
    "largest_rise": "largest rise of the loss",
    "joint_bits": "entropy of the codes, bits a position",
    "nominal_bits": "bits a position",
}
SECTIONS = (
    Section(
        "The VQ-VAE as reported",
        "zhao_vqvae",
        {**TOKENIZER, "sharpness": "sharpness"},
        "f = 4, K = 128, D = 8, α = 2, β = 0.1. For context only: the Keras example prints 0.0444 on MNIST (K = "
        "128, D = 16), a mean over training batches while the model learns. Runs from k-means at a rate of 0.003 "
        "may get stuck with few codes in use: see each seed.",
        draw=("images", "zhao_vqvae"),
    ),
    Section(
        "K and D",
        "zhao_codes_and_dims",
        {
            "distortion": "distortion",
            "perplexity": "perplexity",
            "sharpness": "sharpness",
            "usage": "codes in use",
            "prior_bits": "bits of the prior",
            "recognised": "samples recognised",
            "frechet": "Fréchet distance of samples",
        },
        "α = 1 and β = 0.25, where the report has 2 and 0.1. The prior (D = 8 only) has 4 heads where the report "
        "says 5, which do not divide its width of 64; in profile quick it trains for three epochs only. Samples "
        "are at temperature 1, class by class, means of p(x|z) without noise.",
    ),
    Section(
        "K × D on colour images",
        "gradient_flow_grid",
        {**TOKENIZER, "first_epoch": "after one epoch"},
        "The report's example has latents of 12×12, which no whole factor of 32 gives: 8×8 (f = 4) and 16×16 (f = "
        "2) are on either side of it. It names no data set; CIFAR-10 has the size of its images. A share of the "
        "codes falls by arithmetic where their number stays the same: see the perplexity. A first run with batches "
        "of 128, 144 steps, was thrown away when it had been seen: its networks still lost twice as much. The best "
        "other cell of a seed is the one that is best in the other seeds.",
        draw=("grid",),
        data="CIFAR10-jpeg",
    ),
    Section(
        "Longer training",
        "longer_training",
        TOKENIZER,
        "The question of the same report, on grey images. D = 8.",
        draw=("longer_training",),
    ),
    Section(
        "Prior and sampling",
        "prior",
        {
            "t1_classes": "classes, temperature 1",
            "t2_k8_classes": "classes, temperature 2, k = 8",
            "bits": "bits per test image",
            "t1_frechet": "Fréchet, temperature 1",
            "t2_k8_frechet": "Fréchet, temperature 2, k = 8",
            "t1_accuracy": "recognised, temperature 1",
            "t2_k8_accuracy": "recognised, temperature 2, k = 8",
        },
        "Four heads, since the report's 5 do not divide its width of 64; codes of the shipped tokenizer, K = 64, "
        "of which k = 8 keeps an eighth (the report's 128: a sixteenth). The effective number of classes is "
        "exp(entropy) of what the shipped classifier takes the samples for.",
    ),
    Section(
        "Sequence length",
        "sequence_length",
        {
            "accuracy": "samples recognised",
            "bits_per_dimension": "bits per pixel",
            "distortion": "distortion",
            "length": "codes",
            "bits_per_code": "bits per code",
            "ceiling": "reconstructions recognised",
            "frechet": "Fréchet distance of samples",
        },
        "The report writes h, w for the grid of codes; here hw/8 is read as an eighth of the pixels: of 28×28 "
        "that is 98, a grid of 14×7, a stride of 2 down and 4 across. Tokenizers with 64 EMA codes of 8 "
        "dimensions; each prior trains for as many steps. What is tested of “too much” is that more is lost, of "
        "“the true distribution” what the classifier recognises.",
    ),
    Section(
        "EMA against a learned codebook",
        "ibrahim_residual",
        RESIDUAL,
        "Latents of 7×7×4. “EMA” starts from k-means and restarts dead codes, “EMA alone” does neither. Encoder "
        "and decoder are those of the other sections; the report's are two or three plain convolutions. What EMA "
        "does about an instability is not tested: there is hardly any, as the row on rises shows seed by seed "
        "(the report says “sometimes”). In the first section learned codebooks that start from k-means at a rate "
        "of 0.003 do get stuck.",
    ),
    Section(
        "Residual against plain quantisation",
        "ibrahim_residual",
        RESIDUAL,
        "The same run as in the section before. The report's “while keeping the complexity the same” (summary) is "
        "the same number of codes: 14 bits a position against 8. Its figure 8 shows total losses; here it is "
        "distortion. Nominal bits are log₂ of the number of codes; what the codes in use come to is in the table.",
        draw=("residuals",),
    ),
    Section(
        "RQ-Transformer",
        "rq_transformer",
        {
            "accuracy": "samples recognised",
            "confident": "classifier is sure",
            "bits": "bits per test image",
            "training_bits": "bits per training image",
            "frechet": "Fréchet distance of samples",
            "steps": "steps",
        },
        "All of the same codes, those of the shipped tokenizer: K = 16 for each of two depths, where the report "
        "has 128. The published package knows no classes, so its samples are not asked for one. The report saw "
        "400,000 tables with a model 200 times as large, these runs 16,000 and fewer: that too few steps spoil "
        "samples here does not show that they did there. Its 2,000 images are seen 200 times there and 8 times "
        "here: learning by heart is not tested.",
    ),
    Section("Encoder and decoder", "depth", TOKENIZER, "Residual blocks, beside the layers that halve the image."),
    Section("Encoder and decoder, width", "width", TOKENIZER, "Encoder first, decoder second; narrow is a quarter."),
    Section(
        "Likelihood",
        "yesiltepe_likelihood",
        {"bits": "bits per pixel", "distortion": "distortion of the mean"},
        "Bits per pixel are the bound on −log₂ p(x); a Bernoulli has none on grey images. “Natural” is taken to "
        "mean better than a Gaussian in bins of the same scale for all pixels. Distortion (here over the variance "
        "of the test images) is what a Gaussian is trained for, so that the first row leans its way; the point "
        "against a Bernoulli is that it gives grey images no probability (chapter 02). On black-and-white images "
        "the mixture spreads over 256 values, so that the second row leans the Bernoulli's way.",
    ),
    Section(
        "Collapse and blur",
        "vae_beta",
        {
            "kl": "nats in the latents",
            "sharpness": "sharpness of reconstructions",
            "sharpness_samples": "sharpness of samples",
            "active_units": "latents in use",
            "elbo": "bound, nats",
        },
        "Sixteen latents. Chapter 02 shows the whole sweep over β_KL on glyphs.",
    ),
    Section(
        "Cost of the search",
        "search_cost",
        {"exponent": "exponent"},
        "The vectors of 32 images, random, so that no image is read; what does not grow is h·w = 144, K = 256, D = "
        "256.",
        draw=("search_cost",),
    ),
)
# What is drawn otherwise than as a dot for each seed.
PICTURES: dict[str, Draw] = {
    "images": rebuilt,
    "grid": heat_maps,
    "longer_training": curves,
    "residuals": residuals,
    "search_cost": times,
}


def main() -> None:
    """Write the page and its pictures."""
    argparse.ArgumentParser("python -m experiments.report", description=__doc__).parse_args()
    for picture in (HERE / "figures").glob("*.png"):
        picture.unlink()
    text = report(figures=HERE / "figures")
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {sum(1 for _ in judged(read()))} comparisons of {len(read())} files")


if __name__ == "__main__":
    main()

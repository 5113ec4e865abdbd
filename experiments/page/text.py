"""The text of the page: introduction, table of verdicts, one part for each section, other experiments."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from companion.course.claims import NO_IMAGES, SECTIONS, Section
from experiments.common import RESULTS, sizes_of
from experiments.page.pictures import pictures
from experiments.page.runs import AGAIN, Decision, Run, command, decisions, machines, read, read_others
from experiments.page.tables import cells_table, markdown, number

INTRODUCTION = """# What the source reports claim, measured

The course grew from five student reports and blog posts: Songlin Zhao, *VQ-VAE and Transformer* (2023); Muhammad
Ibrahim, *Residual Vector Quantization based VAE*; Hidir Yesiltepe, *Neural Discrete Representation Learning* (2022);
and two without a name, on the gradient flow of a VQ-VAE and on backbones. What they claim is tested with networks and
trainings smaller than theirs, so that a verdict says what holds *here*.
{counts}

`make experiments-report` writes this page from `results/*.json`; no number in its tables and no verdict is typed. The
comparisons stand in [`companion/course/claims`](../companion/course/claims), a file for each section, with the effect
size that would matter, since before the experiments ran on real images; where one was added or asked otherwise later,
it says so. A sentence is in quotation marks where a report states it (its formulas in plain letters); the others are
our own questions.

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


def page(results: Path = RESULTS, figures: Path | None = None) -> str:
    """The page as Markdown. With ``figures`` the pictures are written there too."""
    runs = read(results)
    found = decisions(runs)
    parts = [INTRODUCTION.format(claims=len(found), machine=machines(runs), counts=counts(found))]
    parts.append(verdicts_table(found, runs))
    shown_before: set[str] = set()  # experiments of an earlier section
    for section in SECTIONS:
        its_runs = [run for run in runs if run.experiment == section.experiment]
        parts += section_parts(section, its_runs, figures, first=section.experiment not in shown_before)
        shown_before.add(section.experiment)
    parts.append(other_experiments(read_others(results)))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def counts(found: Sequence[Decision]) -> str:
    """How many comparisons on real images and emoji hold: of what the reports state, and of our own questions."""
    sentences = []
    for whose, from_report in (("what the reports state", True), ("our own questions", False)):
        outcomes = [
            decision.verdict.outcome
            for decision in found
            if decision.run.title not in ("glyphs", NO_IMAGES) and bool(decision.claim.source.report) == from_report
        ]
        held, not_held, undecided = (
            outcomes.count(outcome) for outcome in ("holds", "does not hold", "not decided by this data")
        )
        sentences.append(
            f"Of {whose}, on real images and emoji {held} comparisons hold, {not_held} do not, {undecided} are "
            "undecided."
        )
    text = f"{' '.join(sentences)} With so few seeds only large differences can be decided."
    return "\n".join(textwrap.wrap(text, 120))


def verdicts_table(found: Sequence[Decision], runs: Sequence[Run]) -> str:
    """Every comparison in one line, with its verdict on each set of images."""
    sets = sorted(dict.fromkeys(run.title for run in runs), key=lambda title: title == NO_IMAGES)
    lines = []
    for claim, of_claim in itertools.groupby(found, key=lambda decision: decision.claim):
        verdicts = {decision.run.title: decision for decision in of_claim}
        section = next(iter(verdicts.values())).section
        cells = (verdicts[title].verdict.summary if title in verdicts else "" for title in sets)
        lines.append([link(section.title), claim.source.name, claim.quoted, claim.compare.what, *cells])
    return "## Verdicts\n\n" + markdown(["section", "report", "sentence", "compared", *sets], lines)


def link(title: str) -> str:
    """A link to the section with this heading, as GitHub names it."""
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title}](#{anchor})"


def section_parts(section: Section, runs: Sequence[Run], figures: Path | None, *, first: bool) -> list[str]:
    """One section. What its experiment was run with, and all its numbers, stand in the ``first`` that shows it."""
    parts = [f"## {section.title}", section.note]
    if all(run.data == "glyphs" for run in runs):
        again = f"python -m experiments.{section.experiment} --profile quick --data {section.data}"
        parts.append(f"Not run on real images yet: `{again}`.")
    if runs:
        parts += [settings(run) for run in runs if first]
        parts += [claims(section, runs), pictures(section, runs, figures)]
        parts += [cells_table(section, run) for run in runs if first]
    return parts


def settings(run: Run) -> str:
    """How much of what was trained, beside the profile full, and the command."""
    sizes = run.document["sizes"]
    full = sizes_of(run.module.SIZES["full"], run.data)

    def size(name: str) -> str:
        beside = f" (full: {number(full[name])})" if sizes[name] != full.get(name) and name in full else ""
        return f"{name.replace('_', ' ')} {number(sizes[name])}{beside}"

    seeds = sorted({cell["seed"] for cell in run.cells})
    minutes = sum(cell["seconds"] for cell in run.cells) / 60
    torches = ", ".join(dict.fromkeys(cell["torch"] for cell in run.cells))
    return (
        f"**{run.title}**: {', '.join(size(name) for name in sizes)}; {len(run.cells)} cells, {len(seeds)} seeds, "
        f"{minutes:.0f} min by the clock of a shared machine of {machines([run])}, torch {torches}.\n\n"
        f"```\n{run.document['command']} {AGAIN}\n```"
    )


def claims(section: Section, runs: Sequence[Run]) -> str:
    """A paragraph for each claim: what is compared, and a line for each set of images with its own command."""
    head = ["images", "difference, 95 % interval", "each seed", "verdict", "this row again"]
    parts = []
    for claim, of_claim in itertools.groupby(decisions(runs, [section]), key=lambda decision: decision.claim):
        condition = f"{claim.compare.sentence} Holds if {claim.compare.condition}."
        parts.append(f"**{claim.quoted}** ({claim.source})<br>\n{condition}")
        parts.append(markdown(head, map(line, of_claim)))
    return "\n\n".join(parts)


def line(decision: Decision) -> list[str]:
    """A line of a claim's table: its verdict on one set of images."""
    verdict = decision.verdict
    each_seed = ", ".join(verdict.format(difference) for difference in verdict.differences)
    again = f"`{command(decision.claim, decision.run)}`"
    return [decision.run.title, str(verdict), each_seed, f"**{verdict.summary}**", again]


def other_experiments(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        about = (run.module.__doc__ or "").split("\n\n")[0]
        lines.append([" ".join(about.split()), run.title, f"`{run.document['command']} {AGAIN}`"])
    head = "## Other experiments\n\nTheir results are shown in the chapters.\n\n"
    return head + markdown(["experiment", "images", "command"], lines)

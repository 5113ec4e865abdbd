"""The text of the page: introduction, ten findings, one part for each section, the protocol, other experiments."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from companion.course.claims import NO_IMAGES, SECTIONS, Section
from companion.course.claims.rule import OUTCOMES
from experiments.common import RESULTS, sizes_of
from experiments.page.findings import FINDINGS, found, told
from experiments.page.pictures import intervals, pictures
from experiments.page.runs import AGAIN, Decision, Run, command, decisions, machines, read, read_others
from experiments.page.tables import cells_table, markdown, number

INTRODUCTION = """# What the source reports claim, measured

This course grew from five student reports and blog posts about VQ-VAEs, their codebooks and the transformers behind
them: Songlin Zhao, *VQ-VAE and Transformer* (2023); Muhammad Ibrahim, *Residual Vector Quantization based VAE*; Hidir
Yesiltepe, *Neural Discrete Representation Learning* (2022); and two without a name, on the gradient flow of a VQ-VAE
and on backbones. They say many things that are often repeated. Which of them hold?

We trained small versions of their models, three to five times each from different seeds, and asked of every sentence
whether the difference is there and whether it is large enough to matter. A verdict is one of four:

* **holds**: all of the 95 % interval lies beyond the difference that would matter;
* **smaller than claimed**: all of it lies below that;
* **the opposite**: all of it lies on the other side;
* **undecided**: the seeds leave it open.

{counts}
"""

FINDINGS_HEAD = """## Ten findings

Each dot is a mean over the seeds, each line its 95 % interval, each tick a seed. The axis counts in differences that
would matter: inside the grey band it is too small to care. *Lower* is to the left; where one side is better, the
picture says so.
"""

APPENDIX = """## Appendix: how this was done

`make experiments-report` writes this page from `results/*.json`; no number in it and no verdict is typed, and a
finding whose verdict changes stops the command. The comparisons stand in
[`companion/course/claims`](../companion/course/claims), a file for each section, with the effect size that would
matter, since before the experiments ran on real images; where one was added or asked otherwise later, it says so. A
sentence is in quotation marks where a report states it (its formulas in plain letters); the others are our own
questions.

**The rule.** For each seed both sides of a comparison are trained from it (or one, where the other is a fixed number),
and their difference is taken: the first side minus the second, so that *negative is lower* everywhere; per cent are of
the second side. The tables show its mean and 95 % interval over the seeds (Student's t). With fewer than three seeds a
comparison is undecided. A claim of "little" or of "the same" holds if the interval lies within the effect size; if it
lies wholly outside, the opposite is true. A seed in which a tokenizer collapsed (its test images use codes of
perplexity below 2) is counted apart. The interval covers what the seed changes (weights, order of images), not what
other networks, sizes or images would.

**Its history.** There are {claims} comparisons on this page: of that many, a few intervals miss by chance. The first
results on real images had three seeds, and were seen; a second round brought experiment after experiment to five,
decided or not, as far as the time went. The best of several rivals is, for each seed, the one that is best in the
others (the luckiest of the seed itself until the glyphs and a first grid had been seen). Until all these results had
been seen, a positive difference was one that went the way of the claim, "the opposite" was said only where it was as
large as would matter, and collapsed seeds were inside the intervals. Counted apart, one comparison that held is left
with two seeds, and undecided (codes in use at K = 512 against 64, on colour images); no other verdict changed by that.

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

**To run a row again.** Its command is folded below each section, and that of the whole experiment; both write into
`runs/again`, since the cells in `results/` are finished and would not be run again, and end by printing the verdict.
`COMPANION_DATA` says where the images lie (`CIFAR10-jpeg` is a folder there, with `train/<class>/` and
`test/<class>/`; the other sets are downloaded where they are missing). A run that was stopped goes on where it was.
"""


def page(results: Path = RESULTS, figures: Path | None = None) -> str:
    """The page as Markdown. With ``figures`` the pictures are written there too."""
    runs = read(results)
    decided = decisions(runs)
    parts = [INTRODUCTION.format(counts=counts(decided)), *ten_findings(decided, figures), contents()]
    shown_before: set[str] = set()  # experiments of an earlier section
    for section in SECTIONS:
        its_runs = [run for run in runs if run.experiment == section.experiment]
        parts += section_parts(section, its_runs, figures, first=section.experiment not in shown_before)
        shown_before.add(section.experiment)
    parts.append(APPENDIX.format(claims=len(decided), machine=machines(runs)))
    parts.append(other_experiments(read_others(results)))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def counts(decided: Sequence[Decision]) -> str:
    """How many comparisons on real images and emoji came to what: of the reports' sentences, and of our questions."""
    lines = []
    for whose, from_report in (("what the reports state", True), ("our own questions", False)):
        outcomes = [
            decision.verdict.outcome
            for decision in decided
            if decision.run.title not in ("glyphs", NO_IMAGES) and bool(decision.claim.source.report) == from_report
        ]
        lines.append([whose, *(outcomes.count(outcome) for outcome in OUTCOMES)])
    return "On photographs, digits and emoji:\n\n" + markdown(["comparisons of", *OUTCOMES], lines)


def ten_findings(decided: Sequence[Decision], figures: Path | None) -> list[str]:
    """A picture and a list: each finding with its interval, and a link to its section."""
    told_of = [(finding, found(finding, decided)) for finding in FINDINGS]
    rows = [(finding.name.replace("`", ""), decision) for finding, decision in told_of]
    lines = [
        f"{i}. {told(finding, decision)} ({decision.run.title}: {decision.verdict}; {link(decision.section.title)})"
        for i, (finding, decision) in enumerate(told_of, 1)
    ]
    return [FINDINGS_HEAD, intervals(rows, "findings", figures, "Ten findings"), "\n".join(lines)]


def contents() -> str:
    """The sections, each in a link."""
    return "## Sections\n\n" + " · ".join(link(section.title) for section in SECTIONS)


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
        decided = decisions(runs, [section])
        rows = [(row_label(decision, runs), decision) for decision in decided]
        slug = re.sub(r"\W+", "_", section.title.lower()).strip("_")
        parts += [intervals(rows, f"claims_{slug}", figures, section.title), verdicts(decided)]
        parts.append(pictures([name for name in section.draw if name != "dots"], section, runs, figures))
        dots = pictures(["dots"], section, runs, figures) if first and "dots" in section.draw else ""
        folded = [dots, *(settings(run) for run in runs if first), commands(decided)]
        parts.append(fold("Each seed, the commands, and the settings", folded))
        parts += [cells_table(section, run) for run in runs if first]
    return parts


def row_label(decision: Decision, runs: Sequence[Run]) -> str:
    """What is compared, short, in lines that fit beside a picture."""
    what = decision.claim.compare.what
    if "?" in what:  # "…: a fifth lower?"
        what = re.split(r"[:?]", what)[0]
    lines = textwrap.wrap(what, 50, max_lines=2, placeholder=" …")
    return "\n".join(lines) + (f" ({decision.run.title})" if len(runs) > 1 else "")


def verdicts(decided: Sequence[Decision]) -> str:
    """A table with a row for each claim and set of images: what was compared, the difference, the verdict."""
    lines = []
    for claim, of_claim in itertools.groupby(decided, key=lambda decision: decision.claim):
        sentence = f"{claim.quoted}" + (f" ({claim.source.name})" if claim.source.name else "")
        compared = claim.compare.asked
        for decision in of_claim:
            verdict = decision.verdict
            lines.append([sentence, compared, decision.run.title, str(verdict), f"**{verdict.outcome}**"])
            sentence = compared = ""  # written once, beside the first images
    return markdown(["claim", "compared", "images", "difference, 95 % interval", "verdict"], lines)


def commands(decided: Sequence[Decision]) -> str:
    """A table with each seed's difference and the command of the row, and where each claim stands."""
    lines = []
    for i, (claim, of_claim) in enumerate(itertools.groupby(decided, key=lambda decision: decision.claim), 1):
        for decision in of_claim:
            each_seed = ", ".join(map(decision.verdict.format, decision.verdict.differences))
            again = f"`{command(decision.claim, decision.run)}`"
            lines.append([i, str(claim.source), decision.run.title, each_seed, again])
    return markdown(["claim", "source", "images", "each seed", "this row again"], lines)


def fold(title: str, parts: Sequence[str]) -> str:
    """A box that opens on a click."""
    inside = "\n\n".join(part for part in parts if part)
    return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>"


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


def other_experiments(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        about = (run.module.__doc__ or "").split("\n\n")[0]
        lines.append([" ".join(about.split()), run.title, f"`{run.document['command']} {AGAIN}`"])
    head = "## Other experiments\n\nTheir results are shown in the chapters.\n\n"
    return head + markdown(["experiment", "images", "command"], lines)

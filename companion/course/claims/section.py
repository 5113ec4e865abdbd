"""A section of ``experiments/README.md``: its claims, and what it shows of the experiment that decides them.

The comparisons and their effect sizes were written, and committed, before the experiments ran on real images; where one
was added or changed later, its source says when.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from companion.course.claims.rule import Cell, Comparison, Verdict
from companion.course.claims.sources import Source

# What would matter to someone who chooses a model: a twentieth of the distortion to call one better, a fifth to call it
# much better, and less than a tenth for "slightly".
BETTER, SLIGHTLY, MUCH = 0.05, 0.10, 0.20
# Of a tokenizer's numbers, those that most sections show.
TOKENIZER_NUMBERS = {"distortion": "distortion", "perplexity": "perplexity", "usage": "codes in use"}

Picture = Literal["dots", "images", "grid", "longer_training", "residuals", "search_cost"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, where it comes from, and the comparison that decides it.

    The sentence is a report's own words where its source names the report; otherwise it is our question.
    """

    sentence: str
    source: Source
    compare: Comparison
    only_on: Sequence[str] = ()  # the images on which it can be decided; empty: on all

    @property
    def quoted(self) -> str:
        """The sentence, in quotation marks where a report states it."""
        return f"“{self.sentence}”" if self.source.report else self.sentence

    def verdict(self, *, data: str, cells: Sequence[Cell]) -> Verdict | None:
        """What cells on these images say of the claim; None where it is about others, or no seed has both sides."""
        if self.only_on and data not in self.only_on:
            return None
        verdict = self.compare.verdict(cells)
        return verdict if verdict.seeds or verdict.collapsed else None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        title: its heading; ``measured_claims(title)`` shows its claims in a notebook.
        experiment: whose cells decide the claims: ``python -m experiments.EXPERIMENT``.
        claims: in the order shown.
        note: what a reader needs to know of the experiment, in Markdown.
        shown: numbers of its cells → their names in the table.
        draw: the pictures; "dots" has a dot for each seed, of the first three numbers shown.
        data: the images that the experiment is to be run on first.
        random_vectors: the experiment looks at no images.
    """

    title: str
    experiment: str
    claims: tuple[Claim, ...]
    note: str
    shown: Mapping[str, str]
    draw: tuple[Picture, ...] = ("dots",)
    data: str = "mnist"
    random_vectors: bool = False

"""The rule that decides a claim: cells are paired by their seed, and the 95 % interval of the difference decides.

Example: does a candidate lose less than a baseline, by more than 5 %? Five seeds give five differences, each in per
cent of the baseline; negative is lower. If the 95 % interval of their mean is [−12, −7], all of it lies beyond −5, and
the claim holds. If it is [−4, −1], the difference is smaller than claimed; if it is [1, 4], the opposite is true; if it
is [−8, −3], these five seeds leave it undecided.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from scipy.special import stdtrit

Cell = Mapping[str, Any]  # one run of an experiment: its settings, its seed, and the numbers that it gave
Outcome = Literal["holds", "smaller than claimed", "the opposite", "undecided"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# Of some numbers a low one is better, of others a high one; of the rest (codes in use, sharpness, …) it depends.
LOWER_IS_BETTER = {"distortion", "mse", "bits", "bits_per_dimension", "prior_bits", "frechet", "t2_k8_frechet"}
LOWER_IS_BETTER |= {"by_epoch", "first_epoch", "residual_by_depth"}
HIGHER_IS_BETTER = {"accuracy", "recognised", "confident", "ssim", "t1_classes", "t2_k8_classes"}
COLLAPSED_BELOW = 2  # a tokenizer whose codes have a lower perplexity than this has failed


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number of all cells that have certain settings: its mean for each seed.

    With ``rivals``, each of which adds to the settings, it is the best of several: for each seed, the rival that is
    best on average over the *other* seeds. The best in the seed itself would only be the luckiest of equals.
    """

    number: str  # a key of the cell, an entry of its list ("residual_by_depth[2]"), or a ratio; see `value`
    settings: Mapping[str, Any] = field(default_factory=dict)
    rivals: Sequence[Mapping[str, Any]] = ()

    @property
    def all_settings(self) -> list[dict[str, Any]]:
        """The settings of each rival; without rivals, the settings alone."""
        return [{**self.settings, **rival} for rival in self.rivals or [{}]]

    def includes(self, cell: Cell) -> bool:
        return any(settings.items() <= cell.items() for settings in self.all_settings)

    def by_seed(self, cells: Sequence[Cell], best: Callable[..., dict[int, float]] = min) -> dict[int, float]:
        """The number of each seed that has all the cells; ``best``, ``min`` or ``max``, says which rival wins."""
        rivals = [_mean_by_seed(cells, self.number, settings) for settings in self.all_settings]
        if len(rivals) == 1:
            return rivals[0]
        seeds = [seed for seed in rivals[0] if all(seed in rival for rival in rivals)]
        if len(seeds) < 2:
            return {}

        def value_of_best_elsewhere(seed: int) -> float:
            others = [other for other in seeds if other != seed]
            return best(rivals, key=lambda rival: statistics.fmean(rival[other] for other in others))[seed]

        return {seed: value_of_best_elsewhere(seed) for seed in seeds}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate against a baseline, what is expected of the difference, and by how much it matters.

    The difference of a seed is candidate − baseline: negative where the candidate is lower. A seed in which a tokenizer
    of either side collapsed is counted apart.

    Args:
        what: what is compared, in words, the candidate first.
        candidate: what the claim is about.
        baseline: what it is compared with; of several rivals the best counts. Or a fixed number.
        expected: what the candidate is, beside the baseline.
        by_more_than: the claim is that the difference is larger than this.
        by_less_than: the claim is that the difference stays below this ("only slightly better").
        within: of "same", the claim is that the difference stays below this in both directions.
        relative: the difference is divided by the baseline, so that 0.05 is 5 %; otherwise it is in the number's unit.

    Raises:
        ValueError: there is not exactly one limit, "same" has another than ``within``, the candidate has rivals, or the
            difference would be divided by 0.
    """

    what: str
    candidate: Measurement
    baseline: Measurement | float
    expected: Literal["lower", "higher", "same"]
    by_more_than: float | None = None
    by_less_than: float | None = None
    within: float | None = None
    relative: bool = True

    def __post_init__(self) -> None:
        limits = {"by_more_than": self.by_more_than, "by_less_than": self.by_less_than, "within": self.within}
        given = [name for name, limit in limits.items() if limit is not None]
        if len(given) != 1:
            raise ValueError(f"limits: got {given or 'none'}, want one of {', '.join(limits)}")
        if (self.expected == "same") != (given == ["within"]):
            raise ValueError(f"expected: got {self.expected!r} with {given[0]}, want within for 'same' only")
        if self.candidate.rivals:
            raise ValueError(f"candidate: got {len(self.candidate.rivals)} rivals, want none; a baseline may have some")
        if self.relative and self.baseline == 0:
            raise ValueError("baseline: got 0, want another number for a relative difference, or relative=False")

    @property
    def effect_size(self) -> float:
        """The difference that would matter, whichever of the three limits names it."""
        return next(limit for limit in (self.by_more_than, self.by_less_than, self.within) if limit is not None)

    @property
    def measurements(self) -> list[Measurement]:
        return [side for side in (self.candidate, self.baseline) if isinstance(side, Measurement)]

    @property
    def sentence(self) -> str:
        """What is compared, as a sentence."""
        return self.what[0].upper() + self.what[1:] + ("" if self.what.endswith("?") else ".")

    @property
    def condition(self) -> str:
        """What the candidate has to be for the claim to hold, in words."""
        size = f"{100 * self.effect_size:g} %" if self.relative else f"{self.effect_size:g}"
        if self.within is not None:
            return f"within ±{size}"
        more = self.by_more_than is not None
        return f"{self.expected} by more than {size}" if more else f"not {self.expected} by {size} or more"

    @property
    def better(self) -> Literal["lower", "higher", ""]:
        """Which side of zero is the better one; empty where that depends."""
        numbers = {side.number if "/" in side.number else re.split(r"\W", side.number)[0] for side in self.measurements}
        if numbers <= LOWER_IS_BETTER:
            return "lower"
        return "higher" if numbers <= HIGHER_IS_BETTER else ""

    @property
    def asked(self) -> str:
        """What is compared, when the claim holds, and which side is better, in sentences."""
        better = f" {self.better.capitalize()} is better." if self.better else ""
        return f"{self.sentence} Holds if {self.condition}.{better}"

    def uses(self, cell: Cell) -> bool:
        """Whether the comparison looks at this cell."""
        return any(side.includes(cell) for side in self.measurements)

    def differences(self, cells: Sequence[Cell]) -> list[float]:
        """One for each seed that has candidate and baseline, in the order of seeds; negative where it is lower."""
        candidate = self.candidate.by_seed(cells)
        if isinstance(self.baseline, Measurement):
            baseline = self.baseline.by_seed(cells, max if self.expected == "higher" else min)
        else:
            baseline = dict.fromkeys(candidate, self.baseline)
        return [
            (candidate[seed] - baseline[seed]) / (abs(baseline[seed]) if self.relative else 1)
            for seed in sorted(candidate)
            if seed in baseline
        ]

    def verdict(self, cells: Sequence[Cell]) -> "Verdict":
        """The 95 % interval of the mean difference, and what follows from it."""
        collapsed = {cell["seed"] for cell in cells if self.uses(cell) and has_collapsed(cell)}
        differences = self.differences([cell for cell in cells if cell["seed"] not in collapsed])
        low, high = interval(differences)
        return Verdict(
            outcome=self._outcome(low, high),
            differences=tuple(differences),
            low=low,
            high=high,
            relative=self.relative,
            collapsed=len(collapsed),
        )

    def _outcome(self, low: float, high: float) -> Outcome:
        if self.expected == "lower":
            low, high = -high, -low  # how much lower it is
        if self.by_more_than is not None:
            if low > self.by_more_than:
                return "holds"
            return "the opposite" if high < 0 else "smaller than claimed" if high < self.by_more_than else "undecided"
        lowest = -self.effect_size if self.expected == "same" else -math.inf
        if lowest < low and high < self.effect_size:
            return "holds"
        return "the opposite" if low >= self.effect_size or high <= lowest else "undecided"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison came to. As text: the mean difference and its interval."""

    outcome: Outcome
    differences: tuple[float, ...]  # one a seed
    low: float
    high: float
    relative: bool = True
    collapsed: int = 0  # seeds that are not among the differences

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences) if self.differences else math.nan

    def __str__(self) -> str:
        limits = "" if self.seeds < 3 else f" [{self.format(self.low)}, {self.format(self.high)}]"
        mean = self.format(self.mean) if self.differences else "–"
        apart = f"; collapsed: {self.collapsed} of {self.seeds + self.collapsed} seeds" if self.collapsed else ""
        return f"{mean}{limits}{' %' if self.relative else ''}{apart}"

    def format(self, difference: float) -> str:
        """A difference with its sign; in per cent where it is relative."""
        return (f"{100 * difference:+.1f}" if self.relative else f"{difference:+.3g}").replace("-", "−")


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean.

    Of fewer than three differences, or where one is infinite, it reaches from −∞ to ∞, and so decides nothing.
    """
    n = len(differences)
    if n < 3 or not all(map(math.isfinite, differences)):
        return -math.inf, math.inf
    mean, half = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n)
    half *= float(stdtrit(n - 1, 0.975))
    return mean - half, mean + half


def has_collapsed(cell: Cell) -> bool:
    """Whether a tokenizer failed: its test images use fewer than two codes, as their perplexity counts them."""
    perplexity = cell.get("perplexity")
    return isinstance(perplexity, float | int) and perplexity < COLLAPSED_BELOW


def value(cell: Cell, number: str) -> float:
    """The number of a cell that a short text names.

    "distortion" is an entry of the cell; "by_depth[2]" is the third entry of a list, "by_epoch[25%]" the last entry of
    its first quarter; "bits/entropy" divides one by the other (infinite where the divisor is 0).
    """
    if "/" in number:
        dividend, divisor = (value(cell, part) for part in number.split("/"))
        return dividend / divisor if divisor else math.inf  # a codebook of which one code is left has an entropy of 0
    found = re.fullmatch(r"(\w+)(?:\[(-?\d+)(%?)\])?", number)
    if not found:
        raise ValueError(
            f"number: got {number!r}, want NAME, NAME[INDEX], NAME[SHARE%] or two of them with a / between"
        )
    name, index, percent = found.groups()
    if index is None:
        return float(cell[name])
    return float(cell[name][len(cell[name]) * int(index) // 100 - 1 if percent else int(index)])


def _mean_by_seed(cells: Sequence[Cell], number: str, settings: Mapping[str, Any]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        if settings.items() <= cell.items():
            by_seed.setdefault(cell["seed"], []).append(value(cell, number))
    return {seed: statistics.fmean(values) for seed, values in by_seed.items()}

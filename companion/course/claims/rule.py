"""The rule that decides a claim: cells are paired by their seed, and the 95 % interval of the difference decides.

Example: does a candidate lose less than a baseline, by more than 5 %? Five seeds give five differences, each in per
cent of the baseline. If the 95 % interval of their mean is [7, 12], all of it lies above 5, and the claim holds. If it
is [1, 4], all of it lies below, and the claim does not hold. If it is [3, 8], these five seeds do not decide.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.special import stdtrit

Cell = Mapping[str, Any]  # one run of an experiment: its settings, its seed, and the numbers that it gave
Outcome = Literal["holds", "does not hold", "not decided by this data"]


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

    The difference of a seed is ``baseline − candidate`` where "lower" is expected of the candidate, and
    ``candidate − baseline`` where "higher" or "same" is; so a positive difference is as expected.

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
        """What the difference has to be for the claim to hold, in words."""
        more, less = self.by_more_than is not None, self.by_less_than is not None
        words = "more than " if more else "less than " if less else "within ±"
        return words + (f"{100 * self.effect_size:g} %" if self.relative else f"{self.effect_size:g}")

    def uses(self, cell: Cell) -> bool:
        """Whether the comparison looks at this cell."""
        return any(side.includes(cell) for side in self.measurements)

    def differences(self, cells: Sequence[Cell]) -> list[float]:
        """One for each seed that has candidate and baseline, in the order of seeds; positive as expected."""
        candidate = self.candidate.by_seed(cells)
        if isinstance(self.baseline, Measurement):
            baseline = self.baseline.by_seed(cells, max if self.expected == "higher" else min)
        else:
            baseline = dict.fromkeys(candidate, self.baseline)
        sign = -1 if self.expected == "lower" else 1
        return [
            sign * (candidate[seed] - baseline[seed]) / (abs(baseline[seed]) if self.relative else 1)
            for seed in sorted(candidate)
            if seed in baseline
        ]

    def verdict(self, cells: Sequence[Cell]) -> "Verdict":
        """The 95 % interval of the mean difference, and what follows from it."""
        differences = self.differences(cells)
        low, high = interval(differences)
        if self.by_more_than is not None:
            holds, fails = low > self.effect_size, high < self.effect_size
        else:
            lowest = -self.effect_size if self.expected == "same" else -math.inf
            holds = lowest < low and high < self.effect_size
            fails = low >= self.effect_size or high <= lowest
        detail = ""
        if fails and self.expected == "same":
            detail = "higher" if low > 0 else "lower"
        elif fails and self.by_more_than is not None:
            detail = "the opposite does" if high < -self.effect_size else "true, but smaller" if low > 0 else ""
        return Verdict(
            outcome="holds" if holds else "does not hold" if fails else "not decided by this data",
            differences=tuple(differences),
            low=low,
            high=high,
            relative=self.relative,
            detail=detail,
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison came to. As text: the mean difference and its interval."""

    outcome: Outcome
    differences: tuple[float, ...]  # one a seed
    low: float
    high: float
    relative: bool = True
    detail: str = ""  # in which way a claim does not hold

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences) if self.differences else math.nan

    @property
    def summary(self) -> str:
        """The outcome, and in which way a claim does not hold."""
        return f"{self.outcome} ({self.detail})" if self.detail else self.outcome

    def __str__(self) -> str:
        limits = "" if self.seeds < 3 else f" [{self.format(self.low)}, {self.format(self.high)}]"
        return f"{self.format(self.mean)}{limits}{' %' if self.relative else ''}"

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

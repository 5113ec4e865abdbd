"""Learning rates that change from step to step: a factor for each step, which depends on its number alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from companion._arguments import check_number, check_whole

Schedule = Callable[[int, int], float]  # (step, total_steps) → the factor of the learning rate


@dataclass(frozen=True)
class WarmupCosine:
    """A rise in a straight line, then half a cosine down (Loshchilov and Hutter 2017, equation 5, without restarts).

    For ``fit(…, schedule=WarmupCosine(warmup=100))``. With w = ``warmup`` and T steps in all, step t = 0 … T − 1 has

        (t + 1) / w                                               for t < w: from 1/w to 1
        floor + (1 − floor) (1 + cos(π (t − w) / (T − w))) / 2    after that: from 1 down to the floor

    times the learning rate of the optimizer.

    Args:
        warmup: w, the number of steps that rise.
        floor: the part of the learning rate that is left at the end.

    Raises:
        ValueError: an argument is out of range, or training has no more than ``warmup`` steps.
    """

    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_whole("warmup", self.warmup, least=0)
        check_number("floor", self.floor, least=0, most=1)

    def __call__(self, step: int, total_steps: int) -> float:
        check_whole("total_steps", total_steps)
        check_whole("step", step, least=0, most=total_steps - 1)
        if self.warmup >= total_steps:
            raise ValueError(f"warmup: got {self.warmup}, want less than the {total_steps} steps of this training")
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / (total_steps - self.warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


def factor_of(schedule: Schedule, step: int, total_steps: int) -> float:
    """The factor of a step, counted from 0.

    Raises:
        ValueError: ``schedule`` gives something else than a finite number of at least 0.
    """
    factor = schedule(step, total_steps)
    check_number(f"schedule: its factor for step {step} of {total_steps}", factor, least=0)
    return float(factor)


def same_so_far(schedule: Schedule, steps: int, total_steps: int, other_total: int) -> bool:
    """Whether its first ``steps`` factors are the same in a training of another length (up to 512 are looked at)."""
    looked_at = range(0, steps, max(1, steps // 512))
    return all(factor_of(schedule, i, total_steps) == factor_of(schedule, i, other_total) for i in looked_at)

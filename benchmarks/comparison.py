"""What a comparison is made of: a step of work, those who do it, and what is wanted of their times."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class Work:
    """A step, ready to be repeated, and the parameters that it leaves a gradient in.

    The step is made of so many ``parts`` of which the time of one is wanted.
    """

    step: Callable[[], object]
    parameters: Sequence[nn.Parameter] = ()
    parts: int = 1

    def __call__(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.step()


Setup = Callable[[int, torch.device, torch.dtype], Work]


@dataclass(frozen=True)
class Contestant:
    """One who does the work: ``setup(value, device, dtype)`` makes the inputs and gives the step.

    ``needs(value)`` is roughly how many bytes it takes; where there are fewer it is left out.
    """

    name: str
    setup: Setup
    needs: Callable[[int], int] = field(default=lambda value: 0)


@dataclass(frozen=True)
class Comparison:
    """One table: contestants that do the same work, for each value of one size.

    The first contestant is the companion, the second what it is measured beside, the third, if any, a yardstick.
    """

    title: str
    axis: str  # what ``values`` are values of
    values: Sequence[int]
    contestants: Sequence[Contestant]
    at_most: Mapping[int, float]  # value → the wanted ratio of times, first / second contestant
    aim: float | None = None  # the ratio of times to aim at, first / yardstick, at the same values
    bounded: int | None = None  # MiB: the wanted bound of the companion's extra peak memory, at any value
    part: str = ""  # what the times are of, where a step has ``parts``
    parameters: bool = False  # show how many numbers each learns
    memory: bool = True  # measure the extra peak memory
    shown: int = 2  # of so many of the contestants memory and parameters are shown
    growth: bool = False  # show with which power of the value each one's time grows
    seconds: float = 45  # after these no new round begins
    quick: bool = True  # --quick shows it
    note: str = ""  # a line under the table


class Wrong(Exception):
    """The companion does not do what the benchmark is to measure."""


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Latents in bfloat16 come from a network under autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

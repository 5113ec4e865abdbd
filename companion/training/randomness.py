"""Seeds and the states of torch's generators, so that a run draws the same numbers each time it is made."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_from(*numbers: int) -> int:
    """One seed from several numbers, unrelated to the seeds of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of ``n`` examples in an epoch, counted from 0: a permutation (n,), int64, on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_from(seed, 0, epoch)), device="cpu")


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that a model on ``device`` draws from: the CPU's and its own."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    index = () if device.type == "mps" else (device,)  # there is one MPS device, and its functions take none
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*index)]


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Put those generators into the states that :func:`random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        index = () if device.type == "mps" else (device,)
        torch.get_device_module(device).set_rng_state(states[1], *index)


def fresh_random_state(device: torch.device, seed: int, *stream: int) -> list[Tensor]:
    """What :func:`random_state` gives right after seeding with ``seed``; each ``stream`` has draws of its own."""
    kinds = sorted({"cpu", device.type})
    return [torch.Generator(kind).manual_seed(seed_from(seed, 1, *stream)).get_state() for kind in kinds]


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """After this block the generators are as they were before it."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, before)

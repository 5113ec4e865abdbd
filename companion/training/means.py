"""The means of an epoch: of each term over the examples, and how often each code was chosen."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from companion._devices import as_float64
from companion._extras import require
from companion.metrics import perplexity
from companion.training.history import Row

CODE_COUNTS = "code_counts"  # the field of a result that is added up over an epoch, not averaged


class Means:
    """Weighted means of terms. What a step adds waits on the device, so that no step waits for the device."""

    def __init__(self, sums: Row | None = None, weight: int = 0, code_counts: list[Any] | None = None) -> None:
        self.sums: Row = sums or {}
        self.weight = weight
        self.code_counts = code_counts
        self._waiting: list[tuple[list[str], Tensor, Tensor | None, int, str]] = []
        self._last_loss = math.nan
        self._read_at = time.monotonic()

    def add(self, terms: dict[str, Tensor], weight: int, moment: str) -> None:
        """Add the terms of ``weight`` examples; ``moment`` is for the error, should one not be finite: "step 3"."""
        counts = terms.get(CODE_COUNTS)
        scalars = {name: value for name, value in terms.items() if name != CODE_COUNTS}
        values = torch.stack([value.detach().float() for value in scalars.values()])
        self._waiting.append((list(scalars), values, counts, weight, moment))

    @property
    def due(self) -> bool:
        """Whether it is time to read what waits: some five times a second."""
        return time.monotonic() > self._read_at + 0.2

    def read(self) -> float:
        """Add up what waits, and give the newest loss.

        Raises:
            FloatingPointError: a term is not finite; the message names it, and its step.
        """
        for names, values, counts, weight, moment in self._waiting:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} at {moment}: training cannot go on from there")
                self.sums[name] = self.sums.get(name, 0.0) + weight * value
                if name == "loss":
                    self._last_loss = value
            if counts is not None:
                so_far = 0 if self.code_counts is None else torch.tensor(self.code_counts, device="cpu")
                self.code_counts = (counts.cpu() + so_far).tolist()
            self.weight += weight
        self._waiting.clear()
        self._read_at = time.monotonic()
        return self._last_loss

    def over_processes(self) -> Row:
        """The mean of each term over what all processes added."""
        self.read()
        gather = require("accelerate.utils", extra="train", what="fit").gather_object
        shares = [share for share in gather([self.state()]) if share["weight"]]
        weight = sum(share["weight"] for share in shares)
        row: Row = {name: sum(share["sums"][name] for share in shares) / weight for name in shares[0]["sums"]}
        if shares[0]["code_counts"] is not None:
            row |= _code_use(torch.tensor([share["code_counts"] for share in shares], device="cpu").sum(0))
        return row

    def state(self) -> dict[str, Any]:
        """What has been read, as the arguments of another ``Means`` that goes on from there."""
        return {"sums": self.sums, "weight": self.weight, "code_counts": self.code_counts}


def _code_use(counts: Tensor) -> Row:
    """Perplexity and usage of (K,) counts; of (R, K), those of each depth, numbered from 1.

    Both are 0 for a depth that depth dropout left out throughout the epoch.
    """
    depths = {"": counts} if counts.ndim == 1 else {f"_{r}": of_depth for r, of_depth in enumerate(counts, 1)}
    perplexities = {f"perplexity{r}": perplexity(one) if one.any() else 0.0 for r, one in depths.items()}
    return perplexities | {f"usage{r}": as_float64(of_depth > 0).mean().item() for r, of_depth in depths.items()}

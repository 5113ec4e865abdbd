"""Averaged weights: the running mean of the parameters over the steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from companion._devices import at_least_float32


class AveragedWeights:
    """The exponential moving average of a model's parameters (Polyak and Juditsky 1992 average all steps alike).

    After step t, counted from 0, the average goes (1 − γ_t) of the way to the parameters, with

        γ_t = min(γ, (1 + t) / (10 + t))

    so that the weights from before training are soon forgotten. Frozen parameters have no average, since they do not
    move. Buffers have none either: those of an EMA codebook are averages already, and others count.

    Args:
        decay: γ; the average looks back over about 1 / (1 − γ) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: at_least_float32(p.detach()).clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the step number ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in self.parameters.items():
            self.averages[name].lerp_(p.to(self.averages[name].dtype), 1 - decay)

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """In this block the model has the averaged weights, and afterwards its own again."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.put_into_the_model()
        try:
            yield
        finally:
            self._put(own)

    def put_into_the_model(self) -> None:
        """For good."""
        self._put(self.averages)

    def restore(self, averages: dict[str, Tensor]) -> None:
        """Those that were saved."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

"""Eval mode, or any other modes, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` is in eval mode in this block; afterwards each of its submodules is in the mode that it was in.

    ``model.train(model.training)`` would not restore that: it sets all submodules to one mode, also those that were
    frozen in eval mode inside a model that trains.
    """
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After this block each of the model's submodules is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

"""Eval mode for the length of a block."""

import pytest
from torch import nn

from companion._modes import evaluating


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def mixed() -> nn.Sequential:
    """A model that trains, with a part that is frozen in eval mode."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    return model


def test_every_submodule_is_in_eval_mode_inside_and_as_before_after() -> None:
    model = mixed()
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before == [True, True, False, False, False]


def test_the_modes_come_back_after_an_error() -> None:
    model = mixed()
    before = modes(model)
    with pytest.raises(RuntimeError, match="in the block"), evaluating(model):
        raise RuntimeError("in the block")
    assert modes(model) == before


def test_train_with_the_models_own_mode_would_wake_what_was_frozen() -> None:
    """The usual way, ``training = model.training … model.train(training)``, as the proof."""
    model = mixed()
    before = modes(model)
    model.eval()
    model.train(before[0])
    assert modes(model) != before

"""Trained models that come with the package: classifiers, tokenizers and priors, under 1 MB each.

``python -m experiments.weights NAME`` trains and measures one of them again; its settings and results are in
``scores(name)``.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from companion._arguments import brief
from companion.checkpoint import load

WEIGHTS = Path(__file__).with_name("weights")


def names() -> list[str]:
    """The names of all trained models, such as "mnist-prior": the data, and what the model is."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str) -> nn.Module:
    """A trained model, on the CPU, in eval mode.

    Raises:
        ValueError: no model has that name; the message lists the names.
    """
    _check(name)
    return load(WEIGHTS / f"{name}.safetensors")


def scores(name: str) -> dict[str, Any]:
    """What was measured of a trained model ("scores"), and the "settings" and the "command" of its training.

    Raises:
        ValueError: no model has that name; the message lists the names.
    """
    _check(name)
    document: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def _check(name: str) -> None:
    if name not in names():
        raise ValueError(f"name: got {brief(name)}, want one of {', '.join(names())}")

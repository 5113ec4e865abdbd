"""Trained weights that come with the package: classifiers, tokenizers and priors, under 1 MB each.

``python -m experiments.weights NAME`` makes each of them again, and measures it; what it measured, with which settings,
is in ``scores(name)``.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from companion.checkpoint import load

WEIGHTS = Path(__file__).with_name("weights")


def names() -> list[str]:
    """What there is, as "mnist-prior": the data that it was trained on, and what it is."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str) -> nn.Module:
    """A trained model, on the CPU, in eval mode.

    Raises:
        ValueError: there is none of that name; the message lists the names.
    """
    _check(name)
    return load(WEIGHTS / f"{name}.safetensors")


def scores(name: str) -> dict[str, Any]:
    """What was measured of a trained model: "scores", beside the "settings" and the "command" that made it.

    Raises:
        ValueError: there is none of that name; the message lists the names.
    """
    _check(name)
    document: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def _check(name: str) -> None:
    if name not in names():
        raise ValueError(f"name: got {name!r}, want one of {', '.join(names())}")

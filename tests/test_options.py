"""Options that no test ever runs are where libraries crash: every option of a public class is run."""

import inspect
import re
from pathlib import Path

import pytest
from torch import nn

import companion
from companion.configured import CLASSES, Configured

TESTS = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
CLASSES = sorted(
    (c for c in CLASSES.values() if c.__module__.startswith("companion.") and not inspect.isabstract(c)),
    key=lambda c: c.__name__,
)


def untested(kind: type) -> list[str]:
    """The options of a class (arguments with a default) that no test gives by name."""
    options = [p.name for p in inspect.signature(kind).parameters.values() if p.default is not p.empty]
    return [name for name in options if not re.search(rf'\b{name}=|"{name}":', TESTS)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_option_of_a_public_class_is_run_by_some_test(kind):
    assert untested(kind) == []


def test_an_option_that_no_test_runs_would_be_noticed():
    class Forgetful(Configured, nn.Module):
        def __init__(self, **_: float) -> None:
            super().__init__()

    option = "accept_" + "image_fmap"
    Forgetful.__signature__ = inspect.Signature(
        [inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=False)]
    )
    assert untested(Forgetful) == [option]


def test_the_publicCLASSES_are_among_them():
    assert {companion.VQVAE, companion.VAE, companion.VectorQuantizer, companion.Encoder} <= set(CLASSES)

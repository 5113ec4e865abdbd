"""A progress bar for reading and drawing images."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from companion._extras import require

Item = TypeVar("Item")


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """``items``, with a progress bar that appears after two seconds, if tqdm is installed."""
    try:
        tqdm = require("tqdm.auto", extra="data", what="a progress bar").tqdm
    except ImportError:
        return items
    bar: Iterable[Item] = tqdm(items, desc=what, delay=2, leave=False)
    return bar

from collections.abc import Iterable, Sequence
from typing import TypeVar

from companion._extras import require

Item = TypeVar("Item")


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """A progress bar once the work has taken two seconds, where tqdm is installed."""
    try:
        tqdm = require("tqdm.auto", extra="data", what="a progress bar").tqdm
    except ImportError:
        return items
    bar: Iterable[Item] = tqdm(items, desc=what, delay=2, leave=False)
    return bar

"""What ``fit`` tells its caller after each epoch, and an answer to it: stop early."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from companion._arguments import brief, check_flag, check_instance, check_number, check_whole
from companion.training.history import History, Row


@dataclass(frozen=True, eq=False)
class Epoch:
    """An epoch that is over, as ``after_epoch`` gets it.

    Attributes:
        epoch: its number, from 1.
        step: the number of steps so far.
        row: what was logged of it, the last of ``history.rows``.
        history: all rows so far, copied.
        model: on its device and in eval mode, with the weights that validation saw: look, and change nothing.
    """

    epoch: int
    step: int
    row: Row
    history: History
    model: nn.Module


AfterEpoch = Callable[[Epoch], bool | None]  # False ends training


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training once a column of the history has not improved for some epochs (Prechelt 1998).

    For ``fit(…, after_epoch=EarlyStopping(patience=3))``. It remembers nothing: each time it goes through the rows, so
    that a run that goes on stops where it would have stopped. The weights stay those of the last epoch. A function
    around it keeps those of the best::

        def keep_best(epoch):
            losses = [row["validation_loss"] for row in epoch.history.rows]
            if losses[-1] == min(losses):
                companion.save(epoch.model, "best.safetensors")
            return EarlyStopping(patience=3)(epoch)

    Args:
        column: of the history, such as "validation_loss".
        patience: how many epochs in a row may be no better than the best before them.
        smallest_change: what counts as better: by more than this.
        maximize: whether more is better.

    Raises:
        ValueError: an argument is out of range, or nothing of the name ``column`` was logged.
    """

    column: str = "validation_loss"
    patience: int = 3
    smallest_change: float = 0.0
    maximize: bool = False

    def __post_init__(self) -> None:
        check_instance("column", self.column, str, "the name of a column of the history")
        check_whole("patience", self.patience)
        check_number("smallest_change", self.smallest_change, least=0)
        check_flag("maximize", self.maximize)

    def __call__(self, epoch: Epoch) -> bool:
        """Whether to go on."""
        check_instance("epoch", epoch, Epoch, "an Epoch, which fit gives")
        if self.column not in epoch.row:
            raise ValueError(f"column: got {self.column!r}, want one that was logged: {', '.join(epoch.row)}")
        best, waited = math.inf, 0
        for row in epoch.history.rows:
            value = -row[self.column] if self.maximize else row[self.column]
            waited = 0 if value < best - self.smallest_change else waited + 1
            best = min(best, value) if waited == 0 else best
        return waited < self.patience


def checked_verdict(verdict: object) -> bool:
    """Whether ``after_epoch`` lets training go on: anything but False and None is refused, if it is not True.

    Raises:
        ValueError: it is none of the three.
    """
    if verdict is not None and not isinstance(verdict, bool):
        raise ValueError(f"after_epoch: gave {brief(verdict)}, want False to end training, or True or None to go on")
    return verdict is not False

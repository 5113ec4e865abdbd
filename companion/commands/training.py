"""What both trainings share: steps in epochs, what is written of the history, and what other programs draw of it."""

import csv
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from companion import plots
from companion._extras import require
from companion.commands.results import Command, Numbers, Result, options_of
from companion.training import EarlyStopping, Epoch, History

Log = Literal["no", "tensorboard", "wandb"]


def in_epochs(steps: int, batch_size: int, examples: int) -> int:
    """The fewest whole epochs that have so many steps.

    Raises:
        ValueError: there is no step among them, or a batch has no examples.
    """
    for option, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{option}: got {value}, want at least 1")
    return -(-steps // max(1, examples // batch_size))


def write_history(result: Result, history: History, term: str) -> Numbers:
    """``history.csv``, a line an epoch, and ``loss.png``, the curve of one term. Gives the last row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.rows)
    result.write("history.csv", text.getvalue().encode())
    result.write("loss.png", plots.to_png(history.plot(term)))
    return dict(history.last)


@dataclass(frozen=True)
class KeepBest:
    """Saves the model of the best epoch so far, and ends training where it got no better for some epochs."""

    patience: int
    save: Callable[[nn.Module], None] = field(repr=False)
    tracker: "Tracker" = field(repr=False)

    def __call__(self, epoch: Epoch) -> bool:
        self.tracker(epoch)
        losses = [row["validation_loss"] for row in epoch.history.rows]
        if losses[-1] == min(losses):
            self.save(epoch.model)
        return EarlyStopping(patience=self.patience)(epoch)


class Tracker:
    """Gives each epoch to TensorBoard or Weights & Biases, by Accelerate: an ``after_epoch`` for ``fit``.

    Raises:
        ImportError: what is to log is not installed.
    """

    def __init__(self, kind: Log, result: Result, command: Command) -> None:
        if kind != "no" and importlib.util.find_spec(kind) is None:
            raise ImportError(f"--log {kind} needs {kind}: pip install {kind}")
        self.kind, self.result = kind, result
        self.options = {name: value for name, value in options_of(command).items() if value is not None}
        self.tracker: Any = None

    def __call__(self, epoch: Epoch) -> None:
        if self.kind == "no":
            return
        if self.tracker is None:  # here, where Accelerate knows which process this is
            kinds = require("accelerate.tracking", extra="cli", what=f"--log {self.kind}").LOGGER_TYPE_TO_CLASS
            place = {"logging_dir": str(self.result.folder)} if self.kind == "tensorboard" else {}
            self.tracker = kinds[self.kind](self.kind if place else "companion", **place)
            self.tracker.start()
            self.tracker.store_init_configuration(self.options)
        self.tracker.log({name: value for name, value in epoch.row.items() if name != "step"}, step=epoch.step)

"""What both trainings share: steps in epochs, and what is written of the history."""

import csv
import io

from companion import plots
from companion.commands.results import Numbers, Result
from companion.training import History


def in_epochs(steps: int, batch_size: int, examples: int) -> int:
    """The fewest whole epochs that have so many steps."""
    return -(-steps // max(1, examples // batch_size))


def history_files(result: Result, history: History, term: str) -> None:
    """``history.csv``, a line an epoch, and ``loss.png``, the curve of one term."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.rows)
    result.write("history.csv", text.getvalue().encode())
    result.write("loss.png", plots.to_png(history.plot(term)))


def scores(history: History) -> Numbers:
    """The last row."""
    return dict(history.last)

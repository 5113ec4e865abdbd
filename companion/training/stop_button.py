"""The stop button of a notebook, which is Ctrl-C of a terminal."""

import signal
import threading
from typing import Self


class StopButton:
    """Ctrl-C sets ``pressed``, so that the step in hand is finished; a second one stops at once."""

    def __init__(self, *, enabled: bool) -> None:
        self.pressed = False
        self.enabled = enabled and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        self.before = signal.getsignal(signal.SIGINT) if self.enabled else None
        if callable(self.before):  # not where the signal is ignored
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if callable(self.before):
            signal.signal(signal.SIGINT, self.before)

    def _press(self, number: int, frame: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.before)

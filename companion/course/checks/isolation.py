"""The reader's code runs apart from the notebook: torch's settings, Ctrl-C and exceptions of either stay its own."""

import linecache
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch

_LIBRARY = Path(__file__).resolve().parents[2]
_PACKAGES = Path(torch.__file__).resolve().parents[1]


@contextmanager
def initial_settings() -> Iterator[None]:
    """Torch as it starts, whatever a notebook has set: gradients, float32, the CPU, no autocast. Then as it was."""
    dtype, device, exact = torch.get_default_dtype(), torch.get_default_device(), _deterministic()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        try:
            _set_defaults(torch.float32, torch.device("cpu"), (False, False))
            yield
        finally:
            _set_defaults(dtype, device, exact)


def _set_defaults(dtype: torch.dtype, device: torch.device, exact: tuple[bool, bool]) -> None:
    torch.set_default_dtype(dtype)
    if device != torch.get_default_device():  # only where needed: a default device slows every call of torch down
        torch.set_default_device(None if device.type == "cpu" else device)
    if exact != _deterministic():
        torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """The interrupts (SIGINT) that come meanwhile: they stop the check, a KeyboardInterrupt of the answer does not."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed  # no interrupt can come: Python gives signals to the main thread
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True)
class Failure:
    """An exception in the code under check, described without the path of anybody's machine."""

    kind: str  # the exception's class and the first line of its message
    text: str
    not_attempted: bool  # the bare NotImplementedError of a blank; torch raises it too, with a message

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        name, message = type(error).__name__, str(error)
        kind = f"{name}: {message.partition(chr(10))[0]}"
        frame = _readers_frame(error.__traceback__)
        where = ""
        if frame is not None:
            source = linecache.getline(frame.filename, frame.lineno or 0).strip()
            where = f"\n  in {frame.name}, line {frame.lineno}: {source}"
        return cls(kind, f"  {kind}{where}", isinstance(error, NotImplementedError) and not message)


def _readers_frame(trace: TracebackType | None) -> traceback.FrameSummary | None:
    """The innermost frame that is neither the companion's nor a library's: the reader's own line."""
    own = [f for f in traceback.extract_tb(trace) if not _is_library(f.filename)]
    return own[-1] if own else None


def _is_library(filename: str) -> bool:
    path = Path(filename)
    return _PACKAGES in path.parents or _LIBRARY in path.parents or filename.startswith("<frozen")

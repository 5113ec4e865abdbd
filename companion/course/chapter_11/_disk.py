"""A disk for exercise 11.2: it writes in pieces, and the power can fail in the middle of a file."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

DIGITS = 64  # of a SHA-256 checksum, in hexadecimal
Write = Callable[[Path, bytes], None]


class PowerCutError(Exception):
    """The machine went off. What was written so far is on the disk, and no more."""


def write(path: Path, content: bytes) -> None:
    """Write ``content`` into the file ``path`` and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_half(path: Path, content: bytes) -> None:
    """As :func:`write`, but the power fails after half of it.

    Raises:
        PowerCutError: always.
    """
    write(path, content[: len(content) // 2])
    raise PowerCutError("the power failed")


def with_checksum(content: bytes) -> bytes:
    """The SHA-256 checksum of ``content`` as 64 hexadecimal digits, and ``content``."""
    return hashlib.sha256(content).hexdigest().encode() + content


def load_checkpoint(path: Path) -> bytes:
    """What ``save_checkpoint`` was given.

    Raises:
        ValueError: the file is damaged: the checksum at its beginning is not that of the rest.
    """
    whole = path.read_bytes()
    checksum, content = whole[:DIGITS], whole[DIGITS:]
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise ValueError(f"path: {path} is damaged, want a file whose checksum is that of its contents")
    return content

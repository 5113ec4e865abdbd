"""Exercise 11.2, second half: a checkpoint that is damaged is not taken for a good one."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from companion.course.chapter_11._disk import DIGITS, load_checkpoint, with_checksum
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake

CONTENT = b" \n" + bytes(range(256)) * 2 + b"weights\0"
GOOD = with_checksum(CONTENT)


def _flipped(position: int, bit: int = 1) -> bytes:
    damaged = bytearray(GOOD)
    damaged[position] ^= bit
    return bytes(damaged)


def _exchanged() -> bytes:
    """The first two neighbours that differ."""
    i = next(i for i in range(DIGITS) if GOOD[i] != GOOD[i + 1])
    return GOOD[:i] + GOOD[i + 1 : i + 2] + GOOD[i : i + 1] + GOOD[i + 2 :]


def cases() -> Sequence[Case]:
    return [
        Case("a good file", (GOOD,)),
        Case("a good file with nothing after the checksum", (with_checksum(b""),)),
        Case("one bit of the contents turned over", (_flipped(DIGITS + 100),)),
        Case("the last bit turned over", (_flipped(-1),)),
        Case("one digit of the checksum changed", (_flipped(5),)),
        Case("one digit in the middle of the checksum changed", (_flipped(31),)),
        Case("the last digit of the checksum changed", (_flipped(63),)),
        Case("two digits of the checksum exchanged", (_exchanged(),)),
        Case("a letter of the checksum in upper case", (GOOD[:DIGITS].upper() + CONTENT,)),
        Case("the file ends within its checksum", (GOOD[:20],)),
        Case("the second half is missing", (GOOD[: len(GOOD) // 2],)),
        Case("the last byte is missing", (GOOD[:-1],)),
        Case("an empty file", (b"",)),
        Case("no checksum, only the contents", (CONTENT,)),
        Case("another checksum as long, of other contents", (with_checksum(b"other")[:DIGITS] + CONTENT,)),
        Case("a byte too many at the end", (GOOD + b"\0",)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """What comes back from a file with these bytes, or that a ValueError was raised; and the file afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        path.write_bytes(case.arguments[0])
        try:
            result = implementation(path)
        except ValueError:
            result = "ValueError"
        after = path.read_bytes() if path.exists() else b""
    return {
        "the result": _in_words(result),
        "the file after the call": "as it was" if after == case.arguments[0] else "changed",
    }


def _in_words(result: Any) -> Any:
    if isinstance(result, Exception):
        return f"a {type(result).__name__}, given back and not raised"
    if isinstance(result, bytes | bytearray):
        name = "the contents" if bytes(result) == CONTENT else "no bytes" if not result else "other bytes"
        return name if isinstance(result, bytes) else f"a {type(result).__name__}: {name}"
    return result


def _variant(
    wrong: Callable[[bytes, bytes], bool] = lambda checksum, content: (
        hashlib.sha256(content).hexdigest().encode() != checksum
    ),
    what: Callable[[bytes, bytes], Any] = lambda checksum, content: content,
    error: Callable[[], Any] = lambda: _raise(ValueError("damaged")),
) -> Callable[[Path], Any]:
    """The right answer with one of its parts replaced."""

    def load(path: Path) -> Any:
        whole = path.read_bytes()
        checksum, content = whole[:DIGITS], whole[DIGITS:]
        return error() if wrong(checksum, content) else what(checksum, content)

    return load


def _raise(error: Exception) -> Any:
    raise error


def _empty_is_damaged(path: Path) -> bytes:
    content = load_checkpoint(path)
    return content or _raise(ValueError("empty"))


def _removes(path: Path) -> bytes:
    try:
        return load_checkpoint(path)
    except ValueError:
        path.unlink()
        raise


MISTAKES = (
    Mistake(
        "not compared",
        _variant(wrong=lambda checksum, content: False),
        "the checksum is not compared with that of the contents, so that a damaged file is taken for a good one.",
    ),
    Mistake(
        "the whole file",
        lambda path: path.read_bytes(),
        "this is the whole file. Its first 64 bytes are the checksum; the contents begin after them.",
    ),
    Mistake(
        "every file is damaged",
        _variant(wrong=lambda checksum, content: hashlib.sha256(checksum + content).hexdigest().encode() != checksum),
        "good files are called damaged too. Look at three things: the checksum is that of what stands *after* the "
        "first 64 bytes; it is written as hexadecimal digits (hexdigest, not digest); and text is never equal to bytes "
        "(.encode()).",
        also=(
            _variant(wrong=lambda checksum, content: str(hashlib.sha256(content).hexdigest()) != str(checksum)),
            _variant(wrong=lambda checksum, content: hashlib.sha256(content).digest() != checksum),
        ),
    ),
    Mistake(
        "checksum given back too",
        _variant(what=lambda checksum, content: checksum + content),
        "the checksum is given back with the contents. Leave the first 64 bytes away.",
    ),
    Mistake(
        "both",
        _variant(what=lambda checksum, content: (checksum, content)),
        "you give back checksum and contents. Wanted are the contents alone.",
    ),
    Mistake(
        "None",
        _variant(error=lambda: None),
        "a damaged file gives None, which whoever calls you may overlook. Raise a ValueError.",
    ),
    Mistake(
        "empty bytes",
        _variant(error=lambda: b""),
        "a damaged file gives empty bytes, as a file without contents does. Raise a ValueError.",
    ),
    Mistake(
        "printed",
        _variant(error=lambda: "damaged"),
        "a damaged file gives a text. Raise a ValueError: an error cannot be overlooked.",
    ),
    Mistake(
        "another error",
        _variant(error=lambda: _raise(RuntimeError("damaged"))),
        "a damaged file raises another error than a ValueError.",
        also=(_variant(error=lambda: _raise(OSError("damaged"))), _variant(error=lambda: _raise(AssertionError()))),
    ),
    Mistake(
        "the other way round",
        _variant(wrong=lambda checksum, content: hashlib.sha256(content).hexdigest().encode() == checksum),
        "good and damaged are exchanged: raise where the two checksums are *not* equal.",
    ),
    Mistake(
        "length only",
        _variant(wrong=lambda checksum, content: len(checksum) < DIGITS or not content),
        "you look at the length alone. A turned bit leaves it as it is: compare the checksums.",
    ),
    Mistake(
        "starts alike",
        _variant(wrong=lambda checksum, content: hashlib.sha256(content).hexdigest().encode()[:4] != checksum[:4]),
        "you compare a part of the checksum only.",
    ),
    Mistake(
        "only the digits that are there",
        _variant(wrong=lambda checksum, content: not hashlib.sha256(content).hexdigest().encode().startswith(checksum)),
        "a file that ends within its checksum passes: compare all 64 digits.",
    ),
    Mistake(
        "spaces taken off",
        _variant(what=lambda checksum, content: content.strip()),
        "spaces or line ends are gone from the contents. Give the bytes back as they are.",
    ),
    Mistake(
        "the error given back",
        _variant(error=lambda: ValueError("damaged")),
        "the error is given back as a result. Raise it: raise ValueError(…).",
    ),
    Mistake(
        "empty is damaged",
        _empty_is_damaged,
        'a file with nothing after its checksum is called damaged. Its checksum is right: give back b"".',
    ),
    Mistake(
        "removed",
        _removes,
        "the damaged file is gone after the call. Its owner may still want it: leave it where it is.",
    ),
    Mistake(
        "as text",
        _variant(what=lambda checksum, content: content.decode("latin-1")),
        "you give back text. The contents are bytes.",
    ),
)

EXERCISE = Exercise(
    name="load_checkpoint",
    chapter="11_your_own_images",
    reference=load_checkpoint,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 11.2, first half: a checkpoint that a power cut cannot spoil."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from companion.course.chapter_11._disk import (
    DIGITS,
    PowerCutError,
    Write,
    load_checkpoint,
    with_checksum,
    write,
    write_half,
)
from companion.course.checks.comparison import DIAGNOSTIC, Observed
from companion.course.checks.engine import Case, Exercise, Mistake

OLD, NEW = b"the old weights", b"the new weights, which are longer"


def save_checkpoint(content: bytes, path: Path, write: Write) -> None:
    """Put ``content``, after its checksum, into the file ``path``, so that there is always a whole file of that name.

    Args:
        write: ``write(path, bytes)`` writes a file; the power may fail in the middle of it.
    """
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, with_checksum(content))
    os.replace(temporary, path)  # at once: before it the old file has this name, after it the new one


def cases() -> Sequence[Case]:
    return [
        Case("there was no file", (None, NEW, 0)),
        Case("there was an older file", (OLD, NEW, 0)),
        Case("nothing to save but the checksum", (OLD, b"", 0)),
        Case("the power fails while the file is written", (OLD, NEW, 1)),
        Case("the power fails, and there was no file", (None, NEW, 1)),
        Case("the power fails in the second call of write, if there is one", (OLD, NEW, 2)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """What stands on the disk after a call, which the power may cut short, and after a second one."""
    old, new, fails_in = case.arguments
    with tempfile.TemporaryDirectory() as name:
        folder, asked = Path(name).resolve(), list[Path]()
        path = folder / "model.ckpt"
        if old is not None:
            path.write_bytes(with_checksum(old))

        def recorded(to: Path, content: bytes) -> None:
            asked.append(Path(to).resolve())
            (write_half if len(asked) == fails_in else write)(Path(to), content)

        told = "no error"
        try:
            implementation(new, path, recorded)
        except PowerCutError:
            told = "PowerCutError"
        elsewhere = [to for to in asked if to.parent != folder]
        seen: Observed = {
            "write was called": len(asked) > 0,
            "the file under its name": _read(path),
            "what the caller gets": told,
            "the temporary file was in the folder of the file": not elsewhere,
            f"{DIAGNOSTIC}given to write": [to == path for to in asked],
            f"{DIAGNOSTIC}before the contents": _before_contents(path, new),
        }
        if not fails_in:
            seen["the names in the folder"] = sorted(one.name for one in folder.iterdir())
        implementation(new, path, write)
        seen["the file after another save, without a power cut"] = _read(path)
        for to in elsewhere:
            to.unlink(missing_ok=True)
    return seen


def _before_contents(path: Path, content: bytes) -> str:
    whole = path.read_bytes() if path.exists() else b""
    head = whole.removesuffix(content) if content else whole
    return f"{len(head)} bytes, {'digits' if head.isalnum() else 'others'}"


def _read(path: Path) -> str:
    """The file in words, as ``load_checkpoint`` sees it."""
    if not path.exists():
        return "not there"
    try:
        return f"whole, with {load_checkpoint(path)!r}"
    except ValueError:
        whole = path.read_bytes()
        if whole in (OLD, NEW):
            return "without a checksum"
        if whole.endswith(NEW) and len(whole) != len(NEW) + DIGITS:
            return "with a checksum of another length"
        return "damaged: its checksum is not that of the contents"


def _variant(
    *,
    temporary: Callable[[Path], Path] = lambda path: path.with_name(path.name + ".tmp"),
    whole: Callable[[bytes], bytes] = with_checksum,
    put: Callable[[Path, Path], Any] = os.replace,
) -> Callable[[bytes, Path, Write], Any]:
    """The right answer with one of its parts replaced."""

    def save(content: bytes, path: Path, write: Write) -> None:
        write(temporary(path), whole(content))
        put(temporary(path), path)

    return save


def _straight(content: bytes, path: Path, write: Write) -> None:
    write(path, with_checksum(content))


def _removed_first(content: bytes, path: Path, write: Write) -> None:
    path.unlink(missing_ok=True)
    save_checkpoint(content, path, write)


def _copied_aside(content: bytes, path: Path, write: Write) -> None:
    """The old one is kept under another name, and the new one written in its place."""
    if path.exists():
        os.replace(path, path.with_name("old.ckpt"))
    write(path, with_checksum(content))


def _twice(content: bytes, path: Path, write: Write) -> None:
    """Written beside, and then once more under the right name."""
    write(path.with_name(path.name + ".tmp"), with_checksum(content))
    write(path, with_checksum(content))
    path.with_name(path.name + ".tmp").unlink()


def _not_replaced(content: bytes, path: Path, write: Write) -> None:
    write(path.with_name(path.name + ".tmp"), with_checksum(content))


def _replaced_in_any_case(content: bytes, path: Path, write: Write) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary, with_checksum(content))
    finally:
        os.replace(temporary, path)


def _swallowed(content: bytes, path: Path, write: Write) -> None:
    try:
        write(path, with_checksum(content))
    except Exception:
        path.unlink()


def _kept_quiet(content: bytes, path: Path, write: Write) -> None:
    try:
        save_checkpoint(content, path, write)
    except Exception:
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)


def _copied(temporary: Path, path: Path) -> None:
    path.write_bytes(temporary.read_bytes())


def _in_two_writes(content: bytes, path: Path, write: Write) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, with_checksum(content)[:DIGITS])
    write(temporary, content)
    os.replace(temporary, path)


def _own_writing(content: bytes, path: Path, write: Write) -> None:
    path.write_bytes(with_checksum(content))


MISTAKES = (
    Mistake(
        "straight into the file",
        _straight,
        "you write into the file itself: when the power fails, the old contents are gone and the new ones are not "
        "whole. Write into another name in the same folder, then os.replace.",
    ),
    Mistake(
        "removed first",
        _removed_first,
        "the old file is removed before the new one is whole. Between the two, there is none: os.replace needs no "
        "unlink before it.",
    ),
    Mistake(
        "the old one moved aside",
        _copied_aside,
        "you move the old file aside and write the new one under its name: when the power fails, that name holds half "
        "a file. Move the *new* one, when it is whole.",
    ),
    Mistake(
        "written twice",
        _twice,
        "you write beside the file and then once more into it, where the power can fail as well. The finished file is "
        "renamed: os.replace(temporary, path).",
    ),
    Mistake(
        "not replaced",
        _not_replaced,
        "the new file keeps its temporary name. At the end, os.replace(temporary, path).",
    ),
    Mistake(
        "replaced in any case",
        _replaced_in_any_case,
        "the file is renamed even if it is not whole (finally, or except). Rename it only after write has returned.",
    ),
    Mistake(
        "the error swallowed",
        _swallowed,
        "after a power cut no file of that name is left. Write into another name, and leave the old file alone until "
        "the new one is whole.",
    ),
    Mistake(
        "the error kept quiet",
        _kept_quiet,
        "the old file is safe, but whoever calls you does not learn that the new one was not saved. Let the error "
        "pass.",
    ),
    Mistake(
        "copied",
        _variant(put=_copied),
        "the finished file is copied, and the temporary one stays in the folder. A copy can be cut short as well: "
        "rename it by os.replace.",
    ),
    Mistake(
        "another folder",
        _variant(temporary=lambda path: path.parent.parent / f"{path.parent.name}-{path.name}.tmp"),
        "the temporary file is in another folder. That can be another disk, to which a file cannot be renamed: put it "
        "beside the file, path.with_name(…).",
    ),
    Mistake(
        "no checksum",
        _variant(whole=lambda content: content),
        "the contents are written without their checksum. The file begins with its 64 hexadecimal digits.",
    ),
    Mistake(
        "checksum at the end",
        _variant(whole=lambda content: content + with_checksum(content)[:DIGITS]),
        "the checksum stands behind the contents. It comes first, so that the file can be read without its length.",
    ),
    Mistake(
        "digest",
        _variant(whole=lambda content: hashlib.sha256(content).digest() + content),
        "the checksum has 32 bytes, not 64 digits: use hexdigest() and .encode(), not digest().",
    ),
    Mistake(
        "another hash",
        _variant(whole=lambda content: hashlib.md5(content).hexdigest().encode() + content),
        "the checksum is of another kind or length; wanted is hashlib.sha256.",
        also=(_variant(whole=lambda content: hashlib.sha512(content).hexdigest().encode() + content),),
    ),
    Mistake(
        "checksum of the checksum",
        _variant(whole=lambda content: with_checksum(with_checksum(content))),
        "the checksum is there twice.",
    ),
    Mistake(
        "in two writes",
        _in_two_writes,
        "each call of `write` begins the file anew, so that the contents replace the checksum. Join the two and write "
        "them once.",
    ),
    Mistake(
        "own writing",
        _own_writing,
        "you write the file yourself; here the disk is `write(path, bytes)`, whose power can fail.",
    ),
)

EXERCISE = Exercise(
    name="save_checkpoint",
    chapter="11_your_own_images",
    reference=save_checkpoint,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

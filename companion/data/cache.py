"""Images of a folder in one file, mapped into memory, so that a set may be larger than the memory is.

The file is made once: all images are read, brought to one size, and written one after the other. Later only the rows
of a batch are read from it, by the system, which keeps in memory what has room there. A cache is a folder with::

    images.npy    (N, C, H, W) bytes, which np.load(…, mmap_mode="r") opens too
    rows.npz      of each image the number of its file, and a hash of its bytes
    index.json    how the files were read, and what was done to them

Its name ends in a fingerprint: a hash of the version of this format, of how the files are read, and of each file's
name below the folder, size in bytes and time of last change. Another file, or a changed one, makes another cache; one
that was changed in place and kept both size and time is not noticed. A cache that is no longer needed can be deleted.

While it is made, the folder ends in ``.building``, and ``journal.jsonl`` has a line for each piece that is on the disk.
A process that is killed leaves both, and the next one goes on after the last whole line. Of several processes one makes
the cache, and the others wait for it.
"""

import hashlib
import io
import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion._extras import require
from companion.data.images import ImageSet, digest
from companion.data.pictures import Reading, Report, channels_of, none_readable, pictures, read

VERSION = 1
PIECE = 2**25  # bytes of images between two lines of the journal
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # named from Python 3.13 on


@dataclass(frozen=True, eq=False)
class Cache:
    """An open cache.

    Shapes:
        images: (N, C, H, W) uint8; files: (N,) int64, ascending; digests: (N,) uint64.
    """

    folder: Path
    images: Tensor
    files: Tensor
    digests: NDArray[np.uint64]
    report: Report

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """
        Raises:
            ValueError: a file of it is missing, damaged or cut short.
        """
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            with np.load(folder / "rows.npz", allow_pickle=False) as rows:
                files, digests = rows["files"], rows["digests"]
            images = _mapped(folder / "images.npy", tuple(index["shape"]))
            report = Report(unreadable=index["unreadable"])
            report.treated.update(index["treated"])
            if not len(images) == len(files) == len(digests):
                raise ValueError("its parts differ in length")
            for i in np.linspace(0, len(images) - 1, 8).astype(int).tolist():
                if digest(images[i].numpy()) != digests[i]:
                    raise ValueError(f"image {i} has changed")
        except Exception as error:  # whatever the bytes made it stumble over
            raise ValueError(f"{folder} is damaged ({error}): delete it, and load again") from error
        return cls(folder, images, torch.from_numpy(files), digests, report)


@dataclass(frozen=True, eq=False, repr=False)
class CachedImageSet(ImageSet):
    """An image set in a cache: ``images`` is a tensor like any other, of which the rows that are used are read.

    Writing into it changes the tensor and not the file. A copy for another process is a path, and opens the file again.
    """

    cache: Cache

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, in {self.cache.folder}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._of_cache() is None:
            return ImageSet, (self.name, self.split, self.images, self.labels, self.classes)
        return _reopened, (self.cache.folder, self.name, self.split, len(self), self.labels, self.classes)

    def digests(self) -> NDArray[np.uint64]:
        kept = self._of_cache()
        return super().digests() if kept is None else self.cache.digests[kept]

    def to(self, device: torch.device | str) -> ImageSet:
        moved = super().to(device)
        if moved.device == self.device:
            return moved
        return ImageSet(moved.name, moved.split, moved.images, moved.labels, moved.classes)

    def _looked_at(self) -> Tensor:
        return self.images[:: max(1, len(self) // 64)]

    def _of_cache(self) -> slice | None:
        """Which rows of the cache these are; None if ``images`` was replaced by others."""
        whole = self.cache.images
        first = self.images.data_ptr() == whole.data_ptr() and self.images.stride() == whole.stride()
        return slice(len(self)) if first and self.shape == tuple(whole.shape[1:]) else None


def _reopened(folder: Path, name: str, split: str, n: int, labels: Tensor, classes: tuple[str, ...]) -> CachedImageSet:
    cache = Cache.open(folder)
    return CachedImageSet(name, split, cache.images[:n], labels, classes, cache)


def cached(files: Sequence[Path], top: Path, reading: Reading, folder: Path, name: str) -> Cache:
    """The cache of ``files`` in ``folder``, made if there is none.

    Raises:
        ValueError: a file cannot be read, and ``reading`` does not skip it; images differ in size while there is no
            ``image_size``; or a cache is damaged.
        OSError: the cache cannot be written; the message says where, and what can be done.
    """
    finished = folder / f"{name}-{fingerprint(files, top, reading)}"
    if not finished.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(finished):
                if not finished.is_dir():  # another process may have made it meanwhile
                    _Building(finished, files, reading).build()
        except OSError as error:
            raise type(error)(
                f"cache: {finished} cannot be written ({error}): name another folder with cache=…, or with "
                "COMPANION_DATA; or hold the images in memory with cache=False"
            ) from error
    return Cache.open(finished)


def fingerprint(files: Sequence[Path], top: Path, reading: Reading) -> str:
    """Twelve digits for the files' names below ``top``, their sizes and times, and how they are read."""
    told = hashlib.sha256(json.dumps([VERSION, asdict(reading)]).encode())
    for file in files:
        about = file.stat() if file.is_file() else None
        told.update(f"{file.relative_to(top).as_posix()}\0".encode("utf-8", "surrogateescape"))
        told.update(f"{about and (about.st_size, about.st_mtime_ns)}\n".encode())
    return told.hexdigest()[:12]


class _Building:
    """A cache in the making. ``build`` goes on where an earlier process was stopped."""

    def __init__(self, finished: Path, files: Sequence[Path], reading: Reading) -> None:
        self.finished, self.files, self.reading = finished, files, reading
        self.folder = finished.with_name(f"{finished.name}.building")
        self.journal = self.folder / "journal.jsonl"
        self.images = self.folder / "images.npy"
        self.begun, self.report = 0, Report()  # files that were dealt with, and how
        self.rows, self.digests = list[int](), list[int]()

    def build(self) -> None:
        self.folder.mkdir(exist_ok=True)
        row = self._shape_of_a_row()
        row_bytes = int(np.prod(row))
        header = len(_npy_header((len(self.files), *row)))
        self._go_on(header, row_bytes)
        self._check_room(header + row_bytes * len(self.files))
        with self.images.open("r+b") as images, self.journal.open("ab") as journal:
            images.seek(header + row_bytes * len(self.rows))
            self._write(images, journal, row, max(1, PIECE // row_bytes))
            if not self.rows:
                raise none_readable(self.report)
            shape = (len(self.rows), *row)
            images.seek(0)
            images.write(_npy_header(shape))
            _on_disk(images)
        with (self.folder / "rows.npz").open("wb") as file:
            np.savez(file, files=np.array(self.rows, np.int64), digests=np.array(self.digests, np.uint64))
            _on_disk(file)
        with (self.folder / "index.json").open("wb") as file:
            index = {"version": VERSION, "shape": shape, "reading": asdict(self.reading)}
            index |= {"treated": dict(self.report.treated), "unreadable": self.report.unreadable}
            file.write(json.dumps(index).encode())
            _on_disk(file)
        os.replace(self.folder, self.finished)
        (self.finished / self.journal.name).unlink()

    def _write(self, images: BinaryIO, journal: BinaryIO, row: tuple[int, ...], piece: int) -> None:
        """The files that are left: their rows, and after each piece a line of the journal."""
        files, last = self.files[self.begun :], len(self.files)
        new = Report()
        first = len(self.rows)  # of the piece
        for number, picture in enumerate(pictures(files, self.reading, row[0], like=row), self.begun + 1):
            new.add(picture)
            if picture.pixels is not None:
                images.write(np.ascontiguousarray(picture.pixels).data)
                self.rows.append(number - 1)
                self.digests.append(digest(picture.pixels))
            if number == last or number % piece == 0:
                _on_disk(images)  # before the line that says so
                line = {"files": number, "rows": self.rows[first:], "digests": self.digests[first:]}
                line |= {"treated": dict(new.treated), "unreadable": new.unreadable}
                journal.write(json.dumps(line).encode() + b"\n")
                _on_disk(journal)
                self.report.update(new)
                new, first = Report(), len(self.rows)

    def _go_on(self, header: int, row_bytes: int) -> None:
        """Take up what the journal says is written, and cut off what came after it."""
        lines = self.journal.read_bytes().splitlines(keepends=True) if self.journal.is_file() else []
        there = self.images.stat().st_size if self.images.is_file() else 0
        good = 0
        for line in lines:
            try:
                piece = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or there < header + row_bytes * (len(self.rows) + len(piece["rows"])):
                break
            self.begun, good = piece["files"], good + len(line)
            self.rows += piece["rows"]
            self.digests += piece["digests"]
            self.report.update(Report(unreadable=piece["unreadable"]), piece["treated"])
        for path, size in ((self.journal, good), (self.images, header + row_bytes * len(self.rows))):
            with path.open("ab") as file:
                file.truncate(size)

    def _shape_of_a_row(self) -> tuple[int, int, int]:
        """(C, H, W): grey only if all files are; the size of the first that can be read."""
        plan = self.folder / "shape.json"
        if plan.is_file():  # noted by the process that began
            channels, height, width = json.loads(plan.read_text(encoding="utf-8"))
            return channels, height, width
        channels = channels_of(self.files)
        shape = row_shape(self.files, self.reading, channels)
        plan.with_suffix(".tmp").write_text(json.dumps(shape), encoding="utf-8")
        os.replace(plan.with_suffix(".tmp"), plan)
        return shape

    def _check_room(self, needed: int) -> None:
        """
        Raises:
            OSError: the disk has less room than the cache will take.
        """
        left = needed - self.images.stat().st_size
        free = shutil.disk_usage(self.folder).free
        if left > free:
            raise OSError(f"it takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free there")


def row_shape(files: Sequence[Path], reading: Reading, channels: int) -> tuple[int, int, int]:
    """(C, H, W) of the images that ``files`` give.

    Raises:
        ValueError: the first file, or with "skip" every file, cannot be read.
    """
    if (side := reading.image_size) is not None:
        return channels, side, side
    report = Report()
    for file in files:
        picture = read(file, reading, channels)
        if picture.pixels is not None:
            _, height, width = picture.pixels.shape
            return channels, height, width
        report.add(picture)
    raise none_readable(report)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The numbers in a .npy file, as a tensor whose pages are read when they are used.

    Raises:
        ValueError: the file has another length: beyond its end, reading would end the process.
    """
    header = len(_npy_header(shape))
    size = header + int(np.prod(shape))
    if path.stat().st_size != size:
        raise ValueError(f"images.npy has {path.stat().st_size:,} bytes, not {size:,}")
    with path.open("rb") as file:
        if os.name == "posix":
            # Private: what is written into the tensor stays in memory. Without NORESERVE the system would want room for
            # a copy of all of it, and refuse a file that is larger than the memory.
            flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapping = mmap.mmap(file.fileno(), size, flags=flags, prot=protection)
        else:
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    return torch.from_numpy(np.frombuffer(mapping, np.uint8, offset=header).reshape(shape))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file; numpy gives it one length for any number of rows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _on_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _alone(finished: Path) -> Iterator[None]:
    """One process at a time; the others wait, and say so."""
    filelock = require("filelock", extra="data", what="a cache of images")
    lock = filelock.FileLock(finished.with_name(f"{finished.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"Waiting for another process, which makes {finished}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

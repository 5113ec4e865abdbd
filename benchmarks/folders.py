"""``python -m benchmarks.folders [--images N] [--side S] [--write]``: folders that are larger than the memory (Linux).

Makes N pictures on the disk, and measures how long their cache takes and how much memory; then how many images a second
come from it in random batches, beside torchvision's ImageFolder and torch's DataLoader with the same transforms. Each
measurement is a process of its own; the contestants take turns, and the quickest round of each counts.
"""

import argparse
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.command import about
from benchmarks.measure import MIB
from benchmarks.report import markdown, with_tables
from companion.checkpoint import written_whole
from companion.data import load

BATCH = 128
Row = dict[str, Any]
CONTESTANTS = {"cache": "companion, cache", "folder": "ImageFolder, no worker", "folder-2": "ImageFolder, 2 workers"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.folders", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else is to be said of the machine, as that it was busy")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        text = table(compared(Path(scratch), options.images, options.side, options.rounds), options.note)
    print(text)
    if options.write:
        readme = Path(__file__).with_name("README.md")
        new = with_tables(readme.read_text(encoding="utf-8"), "folders", text)
        with written_whole(readme) as file:
            file.write(new.encode())


def make(top: Path, images: int, side: int) -> None:
    """Coloured clouds as JPEG files, in ten classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(images):
        file = top / str(i % 10) / f"{i:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        clouds = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        clouds.save(file, quality=90)


def compared(scratch: Path, images: int, side: int, rounds: int) -> Row:
    """All numbers of one run."""
    pictures, caches = scratch / "pictures", scratch / "caches"
    make(pictures, images, side)
    found: Row = {"images": images, "side": side, "build": alone("build", pictures, caches, side)}
    found |= {name: [] for name in CONTESTANTS}
    for turn in range(rounds):
        names = list(CONTESTANTS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(alone(name, pictures, caches, side))
    return found


def alone(what: str, pictures: Path, caches: Path, side: int) -> Row:
    """:func:`measured` in a process that begins as a copy of this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(measured, what, pictures, caches, side).result()


def measured(what: str, pictures: Path, caches: Path, side: int) -> Row:
    """Seconds, images, and the memory that came on top of what the process had before."""
    torch.set_num_threads(1)
    before, began = memory(), time.perf_counter()
    if what == "build":
        n = len(load(pictures, image_size=side, cache=caches))
        return {"images": n, "seconds": time.perf_counter() - began, "peak": memory()["peak"] - before["peak"]}
    batches = (
        from_cache(pictures, caches, side) if what == "cache" else from_folder(pictures, side, 2 * (what == "folder-2"))
    )
    n, largest = 0, before
    opened = began
    for x, _ in batches:
        if n == 0:
            opened = time.perf_counter()
        n += len(x)
        largest = {name: max(value, largest[name]) for name, value in memory().items()}
    seconds = time.perf_counter() - opened  # from the first batch on: start-up is another number
    return {
        "images": n,
        "rate": (n - BATCH) / seconds,
        "start": opened - began,
        "own": largest["own"] - before["own"],
        "mapped": largest["mapped"] - before["mapped"],
    }


def from_cache(pictures: Path, caches: Path, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = load(pictures, image_size=side, cache=caches)
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(BATCH):
        yield images.batch(rows)


def from_folder(pictures: Path, side: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    tv: Any = importlib.import_module("torchvision")
    bicubic = tv.transforms.InterpolationMode.BICUBIC  # as the cache is made
    steps = [tv.transforms.Resize(side, bicubic), tv.transforms.CenterCrop(side), tv.transforms.ToTensor()]
    images = tv.datasets.ImageFolder(str(pictures), tv.transforms.Compose(steps))
    yield from torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=workers)


def memory() -> dict[str, int]:
    """Of this process, in bytes: the peak, what it holds itself, and pages of files, which the system may drop."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Vm", "Rss"))}
    return {"peak": kib["VmHWM"] * 1024, "own": kib["RssAnon"] * 1024, "mapped": kib["RssFile"] * 1024}


def table(found: Row, note: str = "") -> str:
    machine, side, build = about(torch.device("cpu"), ("pillow", "torchvision")), found["side"], found["build"]
    whole = 3 * side**2 * found["images"]
    rates = {name: [row["rate"] for row in found[name]] for name in CONTESTANTS}
    lines = []
    for name, words in CONTESTANTS.items():
        ratios = [ours / other for ours, other in zip(rates["cache"], rates[name], strict=True)]
        beside = f"{max(rates['cache']) / max(rates[name]):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
        own, mapped = (max(row[kind] for row in found[name]) / MIB for kind in ("own", "mapped"))
        start = min(row["start"] for row in found[name])
        lines.append([words, f"{max(rates[name]):,.0f}", beside, f"{start:.1f}", f"{own:,.0f}", f"{mapped:,.0f}"])
    head = ["", "images a second", "cache / this", "s to the first batch", "MiB of its own", "MiB of mapped files"]
    n = found["images"]
    return "\n\n".join(
        [
            f"{machine['device']}, {machine['memory_gib']} GiB of memory, {machine['system']}, Python "
            f"{machine['python']}, torch {machine['torch']}, torchvision {machine['torchvision']}, pillow "
            f"{machine['pillow']}, {machine['date']}. {note}".strip(),
            f"{n:,} JPEG pictures of {side}×{side}, batches of {BATCH} in random order. The cache has "
            f"{whole / MIB:,.0f} MiB ({3 * 256**2 * n / 2**30:.1f} GiB at 256×256). Making it took "
            f"{build['seconds']:.0f} s, {n / build['seconds']:,.0f} images a second, and at the peak "
            f"{build['peak'] / MIB:,.0f} MiB on top of what the process had before.",
            markdown(head, lines),
        ]
    )


if __name__ == "__main__":
    main()

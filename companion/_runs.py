"""What a long training run needs around its loop: states on disk, a stop button, an Accelerator of its own, seeds."""

import hashlib
import os
import re
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from companion._devices import default_device
from companion._extras import require
from companion.checkpoint import add_to_digest, written_whole

_STATE = re.compile(r"state-\d{10,}-\d{6,}\.pt")
_HALF_WRITTEN = re.compile(rf"\.{_STATE.pattern}\.\d+\.tmp")
_PARTS = {"step": int, "rows": list, "model": dict, "optimizer": dict, "processes": list, "settings": dict}


class States:
    """The two newest states of one run, each whole or absent, in a folder that this call holds alone.

    ``settings`` and ``origin`` have to be the same when the run goes on. States of the first version have no origin.
    """

    def __init__(self, folder: Path, accelerator: Any, settings: dict[str, Any], origin: dict[str, Any]) -> None:
        self.folder, self.accelerator, self.settings, self.origin = folder, accelerator, settings, origin

    def __enter__(self) -> Self:
        if self.accelerator.is_main_process:
            filelock = require("filelock", extra="train", what="fit")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / "lock")  # the system frees it when the process dies
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise ValueError(f"run: {self.folder} is in use; every run has a folder of its own") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self.accelerator.is_main_process:
            self._lock.release()

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read, if there is any; it must come from the same settings."""
        damaged: list[str] = []
        for path in reversed(self._paths()):
            try:
                if part := zipfile.ZipFile(path).testzip():  # torch.load does not compare the checksums
                    raise OSError(f"{part} in it is damaged")
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # zip, pickle and system errors alike: it cannot be read
                damaged.append(f"{path.name} ({str(error).partition('. ')[0]})")
                continue
            if not _is_state(state):
                raise ValueError(f"run: {path} is no state that fit wrote; move it away, or use another folder")
            if damaged and self.accelerator.is_main_process:
                print(f"run: cannot read {', '.join(damaged)}; going on from {path.name}")
            self._compare(state)
            return state
        if damaged:
            raise ValueError(f"run: cannot read any state in {self.folder}: {', '.join(damaged)}")
        return None

    def save(self, everything: dict[str, Any], mine: dict[str, Any]) -> None:
        """Write what is the same in all processes, and ``mine`` of each; then drop all but two."""
        processes = require("accelerate.utils", extra="train", what="fit").gather_object([mine])
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        path = self.folder / f"state-{everything['step']:010}-{len(everything['rows']):06}.pt"
        with written_whole(path) as file:
            torch.save(everything | {"processes": processes, "settings": self.settings, "origin": self.origin}, file)
            self.accelerator.wait_for_everyone()
        kept = [other for other in self._paths() if other <= path][-2:]
        for other in {*self._paths(), *self._matching(_HALF_WRITTEN)} - {*kept}:
            other.unlink()

    def _paths(self) -> list[Path]:
        return self._matching(_STATE)

    def _matching(self, pattern: re.Pattern[str]) -> list[Path]:
        """Only what has exactly such a name is a state: other files are not ours to read or to delete."""
        return sorted(path for path in self.folder.glob("*") if pattern.fullmatch(path.name))

    def _compare(self, state: dict[str, Any]) -> None:
        there, here = dict(state["settings"]), dict(self.settings)
        if "origin" in state:
            there |= state["origin"]  # where the optimizer's settings stand one by one, and not in one line
            here |= self.origin
        elif self.accelerator.is_main_process:
            print("run: an earlier version began it and noted no configuration and no sample of the data to compare")
        differ = [
            f"  {name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in here | there
            if here.get(name) != there.get(name)
        ]
        if differ:
            more = [f"  and {len(differ) - 12} more"] if len(differ) > 12 else []
            lines = "\n".join([*differ[:12], *more])
            raise ValueError(
                f"run: {self.folder} holds a run with other settings:\n{lines}\nUse those, or another folder"
            )


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in _PARTS.items())


def fingerprint(examples: Any) -> str:
    """Twelve digits that tell one set of examples from another: of a hash of their number and of up to 512 of them.

    They are taken evenly from first to last. Examples that differ from call to call, as with augmentation that draws
    from elsewhere than torch, count by their shapes.
    """
    cpu, n = torch.device("cpu"), len(examples)
    digest, steady = hashlib.sha256(str(n).encode()), None

    def batch(rows: Tensor) -> dict[str, Tensor]:
        set_random_state(cpu, seeded(cpu, 0))  # augmentation draws the same each time
        return {str(i): value for i, value in enumerate(examples.batch(rows, cpu)) if isinstance(value, Tensor)}

    with random_state_kept(cpu):
        for rows in torch.linspace(0, n - 1, min(n, 512), dtype=torch.float64).round().long().split(64):
            tensors = batch(rows)
            if steady is None:
                steady = all(torch.equal(value, tensors[i]) for i, value in batch(rows).items())
            add_to_digest(digest, tensors if steady else {i: torch.tensor(value.shape) for i, value in tensors.items()})
    return digest.hexdigest()[:12]


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


@contextmanager
def own_accelerator(precision: str, device: str | torch.device | None) -> Iterator[Any]:
    """An Accelerator of this call alone.

    Accelerate keeps its settings in three shared dictionaries and refuses another precision once they are
    set: they are emptied for this call, and what the caller had in them is put back afterwards.
    """
    accelerate = require("accelerate", extra="train", what="fit")
    state = require("accelerate.state", extra="train", what="fit")
    utils = require("accelerate.utils", extra="train", what="fit")
    kind = torch.device(device or default_device()).type
    if kind != "cpu" and not torch.get_device_module(kind).is_available():
        raise ValueError(f"device: got {device}, want one that this machine has")
    if precision == "fp16" and kind == "cpu":
        raise ValueError("precision: got fp16 on the CPU, want bf16 or no (fp16 needs a GPU)")
    alone = "LOCAL_RANK" not in os.environ  # with several, Accelerate gives each process its own GPU
    wanted = {"ACCELERATE_TORCH_DEVICE": str(device)} if device and alone else {}
    shared = [s._shared_state for s in (state.PartialState, state.AcceleratorState, state.GradientState)]
    before = [dict(s) for s in shared]
    for s in shared:
        s.clear()
    try:
        with mock.patch.dict(os.environ, wanted):
            accelerator = accelerate.Accelerator(
                cpu=kind == "cpu",
                mixed_precision=precision,
                gradient_accumulation_plugin=utils.GradientAccumulationPlugin(num_steps=1),
                # an objective may leave a parameter out of a step, as it may with one process
                kwargs_handlers=[utils.DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        started = int(os.environ.get("WORLD_SIZE", 1))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            started = torch.distributed.get_world_size()
        found, joined = accelerator.device.type, accelerator.num_processes
        if (found, joined) != (kind, started):
            raise ValueError(
                f"device: got {device} and {started} processes, but Accelerate uses {found} and joins "
                f"{joined}; start several processes with torchrun or accelerate launch, on the CPU or CUDA"
            )
        yield accelerator
    finally:
        for s, old in zip(shared, before, strict=True):
            s.clear()
            s.update(old)


def mixed(*numbers: int) -> int:
    """One seed from several numbers, unrelated to the seeds of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seeded(device: torch.device, seed: int, *key: int) -> list[Tensor]:
    """What ``random_state`` would give if the generators had just been seeded with these numbers."""
    places = {"cpu", device.type}
    return [torch.Generator(place).manual_seed(mixed(seed, 1, *key)).get_state() for place in sorted(places)]


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that a model on ``device`` draws from: the CPU's and its own."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    where = () if device.type == "mps" else (device,)
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*where)]


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        where = () if device.type == "mps" else (device,)
        torch.get_device_module(device).set_rng_state(states[1], *where)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, before)

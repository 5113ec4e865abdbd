"""``fit``: the training loop of chapter 01, with what a long run needs around it."""

import html
import math
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from companion._extras import require
from companion.checkpoint import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of gradient descent on a batch, as chapter 01 writes it out; :func:`fit` is this, repeated.

    Args:
        model: ``model(x)`` gives a result whose ``loss`` is to be minimised.

    Returns:
        The loss that the step was made from, detached.
    """
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


class Examples(Protocol):
    """What ``fit`` trains on: ``companion.data.ImageSet`` is one."""

    def __len__(self) -> int: ...
    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, ...]: ...


def fit(
    model: nn.Module,
    train: Examples,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    validation: Examples | None = None,
    objective: Callable[..., Any] | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
    precision: str = "no",
    run: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> "History":
    """Train ``model`` in place; it ends on the device, in eval mode, and otherwise as it came.

    An epoch is ``len(train) // batch_size`` steps over a fresh permutation; what does not fill a batch
    is left out of that epoch. After it, each term is averaged over the whole of ``validation``, in eval
    mode.

    The stop button (Ctrl-C) ends training after the step in hand, and what was trained so far is returned; a
    second press stops at once. With several processes a signal ends the run, which ``run`` can then continue.

    Randomness: ``seed`` decides the order of the examples and starts torch's generators, which models draw
    from (each process its own stream, validation always the same one). Afterwards the caller's generators are
    as they were. Initial weights are the caller's.

    Resume: with ``run``, the same call goes on from where the run ended, whatever ended it. History and
    weights are then those of a run that never stopped, to the bit on a CPU with the same number of
    threads and with one or two processes. A model must hold what it changes in training in parameters
    and buffers.

    Several processes (``torchrun`` or ``accelerate launch``): each takes an equal share of every batch,
    and the gradient is that of one process on the whole batch. Buffers follow the main process's: a
    layer that gathers statistics has to share them itself. Every process must see the folder ``run``.
    The process group stays open for the next call.

    Args:
        lr: Adam's learning rate; with ``optimizer`` it goes unused.
        objective: ``objective(model, *batch)`` gives a dataclass whose ``loss`` is minimised and whose other
            0-dim tensors are logged by name, each a mean over the batch. Default: ``model(batch[0])``.
        optimizer: makes one from the parameters, as ``functools.partial(torch.optim.AdamW, lr=3e-4)`` does.
        precision: "no", "bf16" or "fp16" (autocast; the weights keep their dtype). "fp16" needs a GPU.
        run: the folder of this run alone, made if absent. It keeps the two newest states.
        save_every: steps between states, besides the one after each epoch.
        device: default: the GPU where there is one.

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``run`` is in use, damaged, or
            holds a run with other settings (``epochs`` may grow); ``objective`` gives something else.
        FloatingPointError: a term is no longer finite; the message says which, and at which step.
    """
    _check(train, validation, epochs, batch_size, lr, seed, precision, run, save_every)
    tqdm = require("tqdm.auto", extra="train", what="fit").tqdm
    with ExitStack() as stack:
        accelerator = stack.enter_context(_accelerator(precision, device))
        stack.enter_context(_random_state_kept(accelerator.device))
        world = accelerator.num_processes
        if batch_size % world:
            raise ValueError(f"batch_size: got {batch_size}, want a multiple of the {world} processes")
        stop = stack.enter_context(_StopButton(enabled=world == 1))

        model.to(accelerator.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        chosen = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=lr)
        stack.callback(model.eval)  # however it ends
        stack.callback(chosen.zero_grad)
        states = None
        if run is not None:
            settings = _settings(accelerator, model, chosen, train, validation, batch_size, seed)
            states = stack.enter_context(_States(Path(run), accelerator, settings))
        loop = _Loop(accelerator, model, objective, chosen, train, validation, batch_size, seed, states)
        total = loop.steps * epochs
        if loop.step > total:
            raise ValueError(f"epochs: got {epochs}, but the run in {run} has trained for more")

        quiet = not (progress and accelerator.is_main_process)
        bar = stack.enter_context(tqdm(total=total, initial=loop.step, unit="step", disable=quiet))
        try:
            while len(loop.rows) < epochs and not stop.pressed:
                loop.epoch(stop, save_every, bar)
                if loop.step == (len(loop.rows) + 1) * loop.steps:
                    loop.close_epoch()
        except KeyboardInterrupt:  # where no handler could be set; what is under way is not saved
            if stop.pressed or world > 1:
                raise
            stop.pressed = True
        history = History(list(loop.rows), interrupted=loop.step < total)
        loop.means.read()
        if loop.means.weight:
            history.rows.append(loop.row())  # of a part of an epoch: the caller's, and not the run's
    if history.interrupted:
        print(f"Stopped after step {loop.step} of {total}: going on with what was trained so far.")
    return history


@dataclass
class History:
    """What ``fit`` logged: a row an epoch.

    A row has ``epoch``, ``step``, the mean of each term over the training batches of that epoch (while
    the weights moved) and, as ``validation_…``, over the validation set after it. Plain numbers, and no
    times: equal runs have equal histories.

    ``interrupted`` says that training was stopped; the last row is then of the part of an epoch that
    was done.
    """

    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def last(self) -> Row:
        """The newest row."""
        if not self.rows:
            raise ValueError("History: it is empty; training was stopped before its first step was done")
        return self.rows[-1]

    def table(self) -> str:
        """The rows as aligned text, a line an epoch."""
        lines = self._cells()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def plot(self, term: str = "loss", *, width: float = 7, height: float = 3) -> "Figure":
        """Training and validation curve of one term, over epochs.

        Raises:
            ValueError: nothing of that name was logged.
        """
        first = self.rows[0] if self.rows else self.last
        if term not in first:
            raise ValueError(f"term: got {term!r}, want one of {', '.join(list(first)[2:])}")
        plots = require("companion.plots", extra="plots", what="History.plot")
        figure, axes = plots.figure(width, height)
        epochs = [row["epoch"] for row in self.rows]
        ends = []
        for label, name, colour, style in (
            ("training", term, "train", "-o"),
            ("validation", f"validation_{term}", "validation", "--s"),
        ):
            if name in first:
                values = [row[name] for row in self.rows]
                axes.plot(epochs, values, style, markersize=4, color=plots.COLOURS[colour], label=label)
                ends.append(f"{label} {values[0]:.3g} → {values[-1]:.3g}")
        axes.set(xlabel="epoch", ylabel=term, title=f"{term} by epoch: {', '.join(ends)}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        return figure  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self.table()

    def _repr_markdown_(self) -> str:
        head, *body = [f"| {' | '.join(line)} |" for line in self._cells()]
        return "\n".join([head, "|" + " ---: |" * (head.count("|") - 1), *body])

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        rows = [("th", head), *(("td", line) for line in body)]
        lines = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for tag, line in rows]
        return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"

    def _cells(self) -> list[list[str]]:
        names = list(self.rows[0]) if self.rows else ["epoch", "step"]
        values = [[row[name] for name in names] for row in self.rows]
        return [names, *([str(v) if isinstance(v, int) else f"{v:.5g}" for v in line] for line in values)]


class _Loop:
    """Training as it stands: ``step`` steps, ``rows`` of whole epochs, ``means`` of the one under way."""

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        objective: Callable[..., Any] | None,
        optimizer: torch.optim.Optimizer,
        train: Examples,
        validation: Examples | None,
        batch_size: int,
        seed: int,
        states: "_States | None",
    ) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.model, self.train, self.validation = model, train, validation
        self.batch_size, self.seed, self.states = batch_size, seed, states
        self.terms = _Terms(model, objective)  # Accelerate wraps and patches this, and so never the model
        self.training_terms, self.optimizer = accelerator.prepare(self.terms, optimizer)
        self.steps = len(train) // batch_size  # in an epoch
        self.step, self.means, self.rows = 0, _Means(), list[Row]()
        _set_random_state(self.device, _seeded(self.device, seed, self.rank))
        if states and (saved := states.newest()):
            self._restore(saved)

    def epoch(self, stop: "_StopButton", save_every: int | None, bar: Any) -> None:
        """The steps that this epoch still has: the loop of chapter 01."""
        epoch = len(self.rows)
        order = _permutation(len(self.train), self.seed, epoch)
        self.model.train()
        for i in range(self.step - epoch * self.steps, self.steps):
            indices = order[i * self.batch_size : (i + 1) * self.batch_size][self.rank :: self.world]
            self.optimizer.zero_grad()
            terms = self.training_terms(*self.train.batch(indices, self.device))
            self.accelerator.backward(terms["loss"])
            self.optimizer.step()
            self.step += 1
            self.means.add(terms, len(indices), f"step {self.step} (epoch {epoch + 1})")
            bar.update()
            if self.means.due:
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {self.means.read():.4g}")
            if stop.pressed or (save_every and self.step % save_every == 0):
                self.save()
            if stop.pressed:
                break
        self.means.read()

    def close_epoch(self) -> None:
        row = self.row()
        self.rows.append(row)
        self.means = _Means()
        self.save()

    def row(self) -> Row:
        """The row of the epoch under way: its means, and validation with the weights as they are."""
        row: Row = {"epoch": len(self.rows) + 1, "step": self.step, **self.means.over_processes()}
        if self.world > 1:  # the next training step would do this to the buffers; validation comes before it
            broadcast = require("accelerate.utils", extra="train", what="fit").broadcast
            for buffer in self.model.buffers():
                broadcast(buffer)
        if self.validation is not None:
            row |= {f"validation_{name}": value for name, value in self._validate(self.validation).items()}
        return row

    def save(self) -> None:
        self.means.read()  # raises where something is not finite: such a state is not worth keeping
        if self.states is None:
            return
        scaler = self.accelerator.scaler
        everything = {
            "step": self.step,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler and scaler.state_dict(),
        }
        mine = {"means": self.means.state(), "random": _random_state(self.device)}
        self.states.save(everything, mine)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.step, self.rows = saved["step"], saved["rows"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        mine = saved["processes"][self.rank]
        self.means = _Means(**mine["means"])
        _set_random_state(self.device, mine["random"])

    def _validate(self, examples: Examples) -> Row:
        """The mean of each term over all examples, shared out among the processes."""
        self.model.eval()
        means = _Means()
        with _random_state_kept(self.device), torch.no_grad(), self.accelerator.autocast():
            _set_random_state(self.device, _seeded(self.device, self.seed, self.rank, 1))  # every time the same
            for start in range(0, len(examples), self.batch_size):
                indices = torch.arange(start, min(start + self.batch_size, len(examples)))
                indices = indices[self.rank :: self.world]
                if len(indices):
                    terms = self.terms(*examples.batch(indices, self.device))
                    means.add(terms, len(indices), f"validation after step {self.step}")
        return means.over_processes()


class _Terms(nn.Module):
    """The objective as a module: a batch → its 0-dim terms by name, ``loss`` first, the others detached."""

    def __init__(self, model: nn.Module, objective: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or (lambda model, x, *rest: model(x))

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        result = self.objective(self.model, *batch)
        loss = getattr(result, "loss", None)
        if not is_dataclass(result) or not isinstance(loss, Tensor) or loss.ndim:
            kind = type(result).__name__
            raise ValueError(f"objective: got a {kind}, want a dataclass with a field loss, a 0-dim tensor")
        values = {f.name: getattr(result, f.name) for f in fields(result)}
        scalars = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor) and v.ndim == 0}
        return {"loss": loss} | scalars | {"loss": loss}


class _Means:
    """Weighted means of terms. What a step adds waits on the device, so that no step waits for the device."""

    def __init__(self, sums: Row | None = None, weight: int = 0) -> None:
        self.sums: Row = sums or {}
        self.weight = weight
        self._waiting: list[tuple[list[str], Tensor, int, str]] = []
        self._last = math.nan
        self._read_at = time.monotonic()

    def add(self, terms: dict[str, Tensor], weight: int, where: str) -> None:
        values = torch.stack([value.detach().float() for value in terms.values()])
        self._waiting.append((list(terms), values, weight, where))

    @property
    def due(self) -> bool:
        """Whether it is time to read what waits: some five times a second."""
        return time.monotonic() > self._read_at + 0.2

    def read(self) -> float:
        """Add up what waits, make sure that it is finite, and give the newest loss."""
        for names, values, weight, where in self._waiting:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} at {where}: training cannot go on from there")
                self.sums[name] = self.sums.get(name, 0.0) + weight * value
                if name == "loss":
                    self._last = value
            self.weight += weight
        self._waiting.clear()
        self._read_at = time.monotonic()
        return self._last

    def over_processes(self) -> Row:
        """The mean of each term over what all processes added."""
        self.read()
        gather = require("accelerate.utils", extra="train", what="fit").gather_object
        shares = [share for share in gather([self.state()]) if share["weight"]]
        weight = sum(share["weight"] for share in shares)
        return {name: sum(share["sums"][name] for share in shares) / weight for name in shares[0]["sums"]}

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "weight": self.weight}


class _States:
    """The two newest states of one run, each whole or absent, in a folder that this call holds alone."""

    def __init__(self, folder: Path, accelerator: Any, settings: dict[str, Any]) -> None:
        self.folder, self.accelerator, self.settings = folder, accelerator, settings

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
            if damaged and self.accelerator.is_main_process:
                print(f"run: cannot read {', '.join(damaged)}; going on from {path.name}")
            self._compare(state["settings"])
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
            torch.save(everything | {"processes": processes, "settings": self.settings}, file)
            self.accelerator.wait_for_everyone()
        kept = [other for other in self._paths() if other <= path][-2:]
        for other in {*self._paths(), *self.folder.glob(".state-*.tmp")} - {*kept}:
            other.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pt"))

    def _compare(self, there: dict[str, Any]) -> None:
        here = self.settings
        differ = [
            f"{name} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in here | there
            if here.get(name) != there.get(name)
        ]
        if differ:
            more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise ValueError(
                f"run: {self.folder} holds a run with other settings: {'; '.join(differ[:5])}{more}. "
                "Use those, or another folder"
            )


class _StopButton:
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
def _accelerator(precision: str, device: str | torch.device | None) -> Iterator[Any]:
    """An Accelerator of this call alone.

    Accelerate keeps its settings in three shared dictionaries and refuses another precision once they are
    set: they are emptied for this call, and what the caller had in them is put back afterwards.
    """
    accelerate = require("accelerate", extra="train", what="fit")
    state = require("accelerate.state", extra="train", what="fit")
    utils = require("accelerate.utils", extra="train", what="fit")
    kind = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu").type
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


def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_mixed(seed, 0, epoch)))


def _mixed(*numbers: int) -> int:
    """One seed from several numbers, unrelated to the seeds of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _seeded(device: torch.device, seed: int, *key: int) -> list[Tensor]:
    """What ``_random_state`` would give if the generators had just been seeded with these numbers."""
    places = {"cpu", device.type}
    return [torch.Generator(place).manual_seed(_mixed(seed, 1, *key)).get_state() for place in sorted(places)]


def _random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that a model on ``device`` draws from: the CPU's and its own."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    where = () if device.type == "mps" else (device,)
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*where)]


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        where = () if device.type == "mps" else (device,)
        torch.get_device_module(device).set_rng_state(states[1], *where)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    before = _random_state(device)
    try:
        yield
    finally:
        _set_random_state(device, before)


def _settings(
    accelerator: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    validation: Examples | None,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What must be the same for a run to be continued as if it had never stopped."""
    return {
        "seed": seed,
        "batch_size": batch_size,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "len(train)": len(train),
        "len(validation)": None if validation is None else len(validation),
        "optimizer": " ".join(repr(optimizer).split()),
        **{f"tensor {name}": f"{value.dtype} {tuple(value.shape)}" for name, value in model.state_dict().items()},
    }


def _check(
    train: Examples,
    validation: Examples | None,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    precision: str,
    run: str | os.PathLike[str] | None,
    save_every: int | None,
) -> None:
    least = {
        "epochs": (epochs, 1),
        "batch_size": (batch_size, 1),
        "seed": (seed, 0),
        "save_every": (save_every, 1),
    }
    for name, (value, minimum) in least.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name}: got {value}, want at least {minimum}")
    if lr <= 0:
        raise ValueError(f"lr: got {lr}, want more than 0")
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"precision: got {precision!r}, want no, bf16 or fp16")
    if save_every is not None and run is None:
        raise ValueError("save_every: got it without run, the folder to save into")
    if len(train) < batch_size:
        raise ValueError(f"batch_size: got {batch_size}, want at most the {len(train)} examples of train")
    if validation is not None and len(validation) == 0:
        raise ValueError("validation: got no examples, want at least one, or None")

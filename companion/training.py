"""``fit``: the training loop of chapter 01, with what a long run needs around it."""

import functools
import html
import inspect
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from companion._arguments import (
    NotFiniteError,
    brief,
    check_between,
    check_choice,
    check_flag,
    check_instance,
    check_module,
    check_number,
    check_size,
    check_whole,
)
from companion._devices import as_float64
from companion._extras import require
from companion._runs import (
    States,
    StopButton,
    fingerprint,
    mixed,
    own_accelerator,
    random_state,
    random_state_kept,
    seeded,
    set_random_state,
)
from companion.checkpoint import Configured, unwrapped
from companion.codes import CodeSet
from companion.data.images import ImageSet
from companion.metrics import perplexity
from companion.priors.base import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]
CODE_COUNTS = "code_counts"  # the field of a result that is added up over an epoch, not averaged


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of gradient descent on a batch, as chapter 01 writes it out; :func:`fit` is this, repeated.

    Args:
        model: ``model(x)`` gives a result whose ``loss`` is to be minimised.

    Returns:
        The loss that the step was made from, detached.

    Raises:
        ValueError: ``optimizer`` has none of the model's parameters or needs a closure, or the loss has no gradient.
    """
    check_module("model", model)
    check_instance("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    _check_optimizer(optimizer, model)
    loss: Tensor = model(x).loss
    _check_gradient("model", loss)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class Examples(Protocol):
    """What ``fit`` trains on: ``companion.data.ImageSet`` and ``companion.CodeSet`` are two."""

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

    What is logged: each 0-dim tensor among the fields of the model's result (also those in a field that is a dict, by
    their keys) as its mean over the examples; and from a field ``code_counts`` (K,), how often each code was chosen,
    added up over the epoch, ``perplexity`` and ``usage`` of all its codes together (for (R, K) those of each depth,
    ``perplexity_1`` and so on).

    Randomness: ``seed`` decides the order of the examples and starts torch's generators, which models draw
    from (each process its own stream, validation always the same one). Afterwards the caller's generators are
    as they were. Initial weights are the caller's. Gradients are on, also where the caller has them off.

    Resume: with ``run``, the same call goes on from where the run ended, whatever ended it. History and
    weights are then those of a run that never stopped, to the bit on a CPU with the same number of
    threads and with one or two processes. A model must hold what it changes in training in parameters
    and buffers, and the optimizer in its state: what changes its settings between steps, as a learning-rate
    schedule does, would begin anew. The call counts as the same if the settings of model and optimizer, the
    name of the objective, the shapes of all tensors and a sample of the examples are the same.

    Priors: a conditional one learns from codes and labels, an unconditional one from the codes alone. The codes must
    come from the tokenizer that the prior names; one that names none takes the name from ``train``.

    Several processes (``torchrun`` or ``accelerate launch``): each takes an equal share of every batch,
    and the gradient is that of one process on the whole batch. Buffers follow the main process's: a
    layer that gathers statistics has to share them itself. Every process must see the folder ``run``.
    The process group stays open for the next call.

    Args:
        lr: Adam's learning rate; with ``optimizer`` it goes unused.
        objective: ``objective(model, *batch)`` gives a dataclass whose ``loss`` is minimised and whose other
            0-dim tensors are logged by name, each a mean over the batch. Default: ``model(batch[0])``, and for a
            conditional prior ``model(codes, labels)``.
        optimizer: makes one from the parameters, as ``functools.partial(torch.optim.AdamW, lr=3e-4)`` does.
        precision: "no", "bf16" or "fp16" (autocast; the weights keep their dtype). "fp16" needs a GPU.
        run: the folder of this run alone, made if absent. It keeps the two newest states; other files are left alone.
        save_every: steps between states, besides the one after each epoch.
        device: default: CUDA where there is a GPU, else the CPU, as the course's ``begin`` chooses. Another
            accelerator is used where it is named: "mps".

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``run`` is in use, damaged, or
            holds a run with other settings (``epochs`` may grow); ``objective`` gives something else; the codes are of
            another tokenizer than the prior's; it is called under ``torch.inference_mode()``.
        FloatingPointError: a term, or what the model makes on the way to it, is no longer finite; the message says
            which, and at which step.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("fit: got a call under torch.inference_mode(), want one outside, as nothing is learnt there")
    _check(model, train, validation, objective, optimizer, run, device)
    check_size("epochs", epochs)
    check_size("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    check_number("lr", lr, above=0)
    check_flag("progress", progress)
    check_choice("precision", precision, ("no", "bf16", "fp16"))
    if save_every is not None:
        check_size("save_every", save_every)
        if run is None:
            raise ValueError("save_every: got it without run, the folder to save into")
    if batch_size > len(train):
        raise ValueError(f"batch_size: got {batch_size}, want at most the {len(train)} examples of train")
    _check_examples(model, objective, train, validation)
    _check_tokenizer(model, train, validation)
    epochs, batch_size, seed = int(epochs), int(batch_size), int(seed)  # of numpy's, plain ones
    tqdm = require("tqdm.auto", extra="train", what="fit").tqdm
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        accelerator = stack.enter_context(own_accelerator(precision, device))
        stack.enter_context(random_state_kept(accelerator.device))
        world = accelerator.num_processes
        if batch_size % world:
            raise ValueError(f"batch_size: got {batch_size}, want a multiple of the {world} processes")
        stop = stack.enter_context(StopButton(enabled=world == 1))

        model.to(accelerator.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        try:
            chosen = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=lr)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer: called with the list of the model's parameters: {error}") from error
        if not isinstance(chosen, torch.optim.Optimizer):
            raise ValueError(f"optimizer: it made a {type(chosen).__name__}, want a torch.optim.Optimizer")
        _check_optimizer(chosen, model)
        _check_schedule(chosen, run)
        stack.callback(model.eval)  # however it ends
        stack.callback(chosen.zero_grad)
        states = None
        if run is not None:
            settings = _settings(accelerator, model, chosen, train, validation, batch_size, seed)
            origin = _origin(model, objective, chosen, train, validation)
            states = stack.enter_context(States(Path(run), accelerator, settings, origin))
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
        plots = require("companion.plots", extra="plots", what="History.plot")
        figure, axes = plots.figure(width, height)
        if not self.rows:
            axes.set(xlabel="epoch", ylabel=term, title="Stopped before the first step was done")
            return figure  # type: ignore[no-any-return]
        logged = [name for name in self.rows[0] if all(name in row for row in self.rows)]
        terms = [name for name in logged if name not in ("epoch", "step")]
        if not isinstance(term, str) or term not in terms:
            raise ValueError(f"term: got {term!r}, want one of {', '.join(terms) or 'none, as the rows have no term'}")
        epochs = [row.get("epoch", i) for i, row in enumerate(self.rows, 1)]
        ends = []
        for label, name, colour, style in (
            ("training", term, "train", "-o"),
            ("validation", f"validation_{term}", "validation", "--s"),
        ):
            if name in logged:
                values = [row[name] for row in self.rows]
                axes.plot(epochs, values, style, markersize=4, color=plots.COLOURS[colour], label=label)
                ends.append(f"{label} {values[0]:.3g} → {values[-1]:.3g}")
        axes.set(xlabel="epoch", ylabel=term, title=f"{term} by epoch: {', '.join(ends)}")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
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
        states: "States | None",
    ) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.model, self.train, self.validation = model, train, validation
        self.batch_size, self.seed, self.states = batch_size, seed, states
        self.terms = _Terms(model, objective)  # Accelerate wraps and patches this, and so never the model
        self.training_terms, self.optimizer = accelerator.prepare(self.terms, optimizer)
        self.steps = len(train) // batch_size  # in an epoch
        self.step, self.means, self.rows = 0, _Means(), list[Row]()
        self.learns = False  # whether a gradient has reached the model
        set_random_state(self.device, seeded(self.device, seed, self.rank))
        if states and (saved := states.newest()):
            self._restore(saved)

    def epoch(self, stop: "StopButton", save_every: int | None, bar: Any) -> None:
        """The steps that this epoch still has: the loop of chapter 01."""
        epoch = len(self.rows)
        order = _permutation(len(self.train), self.seed, epoch)
        self.model.train()
        for i in range(self.step - epoch * self.steps, self.steps):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            indices = batch.chunk(self.world)[self.rank]  # joined in the order of ranks they are the batch again
            where = f"step {self.step + 1} (epoch {epoch + 1})"
            self.optimizer.zero_grad()
            terms = self._terms(self.training_terms, "train", indices, where)
            self.accelerator.backward(terms["loss"])
            self.learns = self.learns or any(p.grad is not None for p in self.model.parameters())
            if not self.learns:
                raise ValueError("objective: got a loss of another model, want one of the model that it is called with")
            self.optimizer.step()
            self.step += 1
            self.means.add(terms, len(indices), where)
            if self.means.due:  # for when the bar moves next: how often it does is tqdm's to say (TQDM_MININTERVAL)
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {self.means.read():.4g}", refresh=False)
            bar.update()
            if stop.pressed or (save_every and self.step % save_every == 0):
                self.save()
            if stop.pressed:
                break
        bar.set_postfix_str(f"epoch {epoch + 1}, loss {self.means.read():.4g}")

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
            row |= {f"validation_{name}": value for name, value in self._validate(len(self.validation)).items()}
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
        mine = {"means": self.means.state(), "random": random_state(self.device)}
        self.states.save(everything, mine)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.step, self.rows = saved["step"], saved["rows"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        mine = saved["processes"][self.rank]
        self.means = _Means(**mine["means"])
        set_random_state(self.device, mine["random"])

    def _validate(self, n: int) -> Row:
        """The mean of each term over all ``n`` examples, shared out among the processes."""
        self.model.eval()
        means = _Means()
        with random_state_kept(self.device), torch.no_grad(), self.accelerator.autocast():
            set_random_state(self.device, seeded(self.device, self.seed, self.rank, 1))  # every time the same
            for start in range(0, n, self.batch_size):
                indices = torch.arange(start, min(start + self.batch_size, n), device="cpu")
                indices = indices[self.rank :: self.world]
                if len(indices):
                    where = f"validation after step {self.step}"
                    means.add(self._terms(self.terms, "validation", indices, where), len(indices), where)
        return means.over_processes()

    def _terms(self, terms: nn.Module, name: str, indices: Tensor, where: str) -> dict[str, Tensor]:
        """The terms of a batch of the examples called ``name``; where the model refuses it, the cause if it is known.

        Raises:
            FloatingPointError: the weights, or what comes from them, are not finite, which the model may see first.
            ValueError: weights and examples are of different types.
        """
        batch = _batch(name, getattr(self, name), indices, self.device)
        try:
            return terms(*batch)  # type: ignore[no-any-return]
        except (ValueError, RuntimeError) as error:
            self.means.read()  # where a step before this one was not finite, that comes first
            broken = not _all_finite(self.model.parameters()) or any(b.isnan().any() for b in self.model.buffers())
            seen = isinstance(error, NotFiniteError) or (broken and isinstance(error, ValueError))
            if seen and _all_finite(batch):
                raise FloatingPointError(
                    f"the model's weights or latents are no longer finite at {where}: training cannot go on from there "
                    f"({error})"
                ) from error
            have = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
            given = [value.dtype for value in batch[:1] if isinstance(value, Tensor) and value.is_floating_point()]
            if type(error) in (ValueError, RuntimeError) and have and given and given[0] not in have:
                way = "model.float()" if given[0] == torch.float32 else f"model.to({given[0]})"
                raise ValueError(
                    f"model: got weights of {have[0]}, want {given[0]} as the examples of {name} are: {way} ({error})"
                ) from error
            raise


class _Terms(nn.Module):
    """The objective as a module: a batch → its 0-dim terms by name, ``loss`` first, the others detached."""

    def __init__(self, model: nn.Module, objective: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or _the_models_own
        self.origin = "objective" if objective else "model"  # of the result

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        result = self.objective(self.model, *batch)
        loss = getattr(result, "loss", None)
        if not is_dataclass(result) or not isinstance(loss, Tensor) or loss.ndim:
            kind = type(result).__name__
            what = f"{kind} whose loss is {brief(loss)}" if hasattr(result, "loss") else kind
            raise ValueError(f"{self.origin}: got a {what}, want a dataclass with a field loss, a 0-dim tensor")
        if torch.is_grad_enabled():
            _check_gradient(self.origin, loss)
        values: dict[str, Any] = {}
        for f in fields(result):
            value = getattr(result, f.name)
            values |= value if isinstance(value, dict) else {f.name: value}
        logged = {
            name: v.detach()
            for name, v in values.items()
            if isinstance(v, Tensor) and (v.ndim == 0 or name == CODE_COUNTS)
        }
        return {"loss": loss} | logged | {"loss": loss}


def _the_models_own(model: nn.Module, *batch: Tensor) -> Any:
    """The objective where none is given."""
    prior = unwrapped(model, "model")
    if not isinstance(prior, Prior) or prior.num_classes == 0:
        return model(batch[0])
    if len(batch) < 2:
        raise ValueError(
            "train: got batches of codes alone, want codes and labels, as the prior has "
            f"num_classes={prior.num_classes}; objective=lambda prior, codes: prior(codes) trains it without"
        )
    return model(batch[0], batch[1])


class _Means:
    """Weighted means of terms. What a step adds waits on the device, so that no step waits for the device."""

    def __init__(self, sums: Row | None = None, weight: int = 0, code_counts: list[Any] | None = None) -> None:
        self.sums: Row = sums or {}
        self.weight = weight
        self.code_counts = code_counts
        self._waiting: list[tuple[list[str], Tensor, Tensor | None, int, str]] = []
        self._last = math.nan
        self._read_at = time.monotonic()

    def add(self, terms: dict[str, Tensor], weight: int, where: str) -> None:
        counts = terms.get(CODE_COUNTS)
        scalars = {name: value for name, value in terms.items() if name != CODE_COUNTS}
        values = torch.stack([value.detach().float() for value in scalars.values()])
        self._waiting.append((list(scalars), values, counts, weight, where))

    @property
    def due(self) -> bool:
        """Whether it is time to read what waits: some five times a second."""
        return time.monotonic() > self._read_at + 0.2

    def read(self) -> float:
        """Add up what waits, make sure that it is finite, and give the newest loss."""
        for names, values, counts, weight, where in self._waiting:
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} at {where}: training cannot go on from there")
                self.sums[name] = self.sums.get(name, 0.0) + weight * value
                if name == "loss":
                    self._last = value
            if counts is not None:
                so_far = 0 if self.code_counts is None else torch.tensor(self.code_counts, device="cpu")
                self.code_counts = (counts.cpu() + so_far).tolist()
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
        row: Row = {name: sum(share["sums"][name] for share in shares) / weight for name in shares[0]["sums"]}
        if shares[0]["code_counts"] is not None:
            row |= _use_of_codes(torch.tensor([share["code_counts"] for share in shares], device="cpu").sum(0))
        return row

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "weight": self.weight, "code_counts": self.code_counts}


def _use_of_codes(counts: Tensor) -> Row:
    """Perplexity and usage of (K,) counts; of (R, K), those of each depth, numbered from 1."""
    depths = {"": counts} if counts.ndim == 1 else {f"_{r + 1}": one for r, one in enumerate(counts)}
    perplexities = {f"perplexity{r}": perplexity(one) for r, one in depths.items()}
    return perplexities | {f"usage{r}": as_float64(one > 0).mean().item() for r, one in depths.items()}


def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed(seed, 0, epoch)), device="cpu")


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


def _origin(
    model: nn.Module,
    objective: Callable[..., Any] | None,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    validation: Examples | None,
) -> dict[str, Any]:
    """What decides where a run goes besides its settings; runs of the first version did not keep it."""
    here: dict[str, Any] = {"model": type(unwrapped(model, "model")).__qualname__}
    for path, module in model.named_modules():
        if isinstance(module, Configured):
            prefix = ".".join(["model", *filter(None, [path])])
            here |= {f"{prefix}.{argument}": _class_names(value) for argument, value in module.config.items()}
    while isinstance(objective, functools.partial):
        objective = objective.func
    named = objective or _the_models_own
    here["objective"] = getattr(named, "__qualname__", type(named).__qualname__)
    here["optimizer"] = type(optimizer).__qualname__
    for i, group in enumerate(optimizer.param_groups):
        here |= {f"optimizer.{i}.{key}": repr(value) for key, value in group.items() if key != "params"}
    here["train"] = fingerprint(train)
    here["validation"] = None if validation is None else fingerprint(validation)
    return here


def _class_names(described: Any) -> Any:
    """The config of an argument, but of modules the class alone: they have entries of their own."""
    if isinstance(described, dict):
        return described["class"]
    return [_class_names(one) for one in described] if isinstance(described, list) else described


def _check(
    model: nn.Module,
    train: Examples,
    validation: Examples | None,
    objective: Callable[..., Any] | None,
    optimizer: Callable[..., Any] | None,
    run: str | os.PathLike[str] | None,
    device: str | torch.device | None,
) -> None:
    """Of everything but numbers."""
    if not any(p.requires_grad for p in unwrapped(model, "model").parameters()):
        raise ValueError(f"model: got a {type(model).__name__} without a parameter to train")
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("model: got one made under torch.inference_mode(), want one made outside, as it cannot learn")
    for name, examples in (("train", train), ("validation", validation)):
        fits = hasattr(examples, "__len__") and callable(getattr(examples, "batch", None))
        if not fits and not (name == "validation" and examples is None):
            raise ValueError(
                f"{name}: got a {type(examples).__name__}, want examples with len() and batch(indices, device), as an "
                "ImageSet or a CodeSet has"
            )
    if validation is not None and len(validation) == 0:
        raise ValueError("validation: got no examples, want at least one, or None")
    for name, function in (("objective", objective), ("optimizer", optimizer)):
        if function is not None and not callable(function):
            raise ValueError(f"{name}: got a {type(function).__name__}, want a function, or None")
    if run is not None and not isinstance(run, str | os.PathLike):
        raise ValueError(f"run: got a {type(run).__name__}, want the path of a folder")
    if run == "" or (run is not None and "\0" in str(run)):  # Path("") is the working directory
        raise ValueError(f"run: got {str(run)!r}, want the path of a folder")
    if run is not None and Path(run).exists() and not Path(run).is_dir():
        raise ValueError(f"run: got {run}, which is a file, want a folder")
    try:
        torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: got {device!r}, want a device, such as 'cpu' or 'cuda'") from error


def _check_examples(
    model: nn.Module, objective: Callable[..., Any] | None, train: Examples, validation: Examples | None
) -> None:
    """That examples fit model, objective and each other: a few of each are looked at before the first step."""
    prior, cpu = unwrapped(model, "model"), torch.device("cpu")
    batches = {}
    for name, examples in (("train", train), ("validation", validation)):
        if examples is None:
            continue
        # a given objective may make other codes and labels of them
        if objective is None and isinstance(prior, Prior) and isinstance(examples, CodeSet):
            if examples.num_codes != prior.num_codes:
                raise ValueError(
                    f"{name}: got codes with num_codes={examples.num_codes}, want the {prior.num_codes} of the prior"
                )
            if prior.num_classes:
                check_between(f"{name}.labels", examples.labels, 0, prior.num_classes - 1)
        with random_state_kept(cpu):
            batches[name] = _batch(name, examples, torch.arange(min(2, len(examples)), device="cpu"), cpu)
        if objective is not None:
            _check_takes(objective, model, name, batches[name])
    if validation is None:
        return
    if isinstance(train, CodeSet) and isinstance(validation, CodeSet) and train.num_codes != validation.num_codes:
        raise ValueError(
            f"validation: got codes with num_codes={validation.num_codes}, want {train.num_codes} as train has"
        )
    if isinstance(train, ImageSet) and isinstance(validation, ImageSet):
        there, here = list(train.classes), list(validation.classes)
        if there != here:
            raise ValueError(f"validation: got the classes {', '.join(here)}, want those of train, {', '.join(there)}")
    used = 1 if objective is None and not (isinstance(prior, Prior) and prior.num_classes) else None
    for i, (want, got) in enumerate(zip(batches["train"][:used], batches["validation"][:used], strict=False)):
        if isinstance(want, Tensor) and isinstance(got, Tensor) and want.shape[1:] != got.shape[1:]:
            raise ValueError(
                f"validation: got examples of shape {tuple(got.shape[1:])}, want {tuple(want.shape[1:])} as those of "
                f"train have (tensor {i} of a batch)"
            )


def _check_takes(objective: Callable[..., Any], model: nn.Module, name: str, batch: tuple[Tensor, ...]) -> None:
    try:
        signature = inspect.signature(objective)
    except (TypeError, ValueError):  # of a function in C it is not known
        return
    try:
        signature.bind(model, *batch)
    except TypeError as error:
        tensors = "1 tensor" if len(batch) == 1 else f"{len(batch)} tensors"
        raise ValueError(
            f"objective: got one that cannot be called with what it is given, the model and the {tensors} of a batch "
            f"of {name}: {error}"
        ) from error


def _batch(name: str, examples: Examples, indices: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    batch = examples.batch(indices, device)
    if not isinstance(batch, tuple | list):
        raise ValueError(f"{name}: its batch() gave a {type(batch).__name__}, want a tuple of tensors")
    return tuple(batch)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors if isinstance(value, Tensor))


def _check_gradient(name: str, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: got a loss without a gradient, want one that depends on the model's parameters: it was detached, "
            "made under torch.no_grad() or torch.inference_mode(), or comes from elsewhere"
        )


def _check_tokenizer(model: nn.Module, train: Examples, validation: Examples | None) -> None:
    """A code means something in its own tokenizer only. A prior that names none takes the name from its codes."""
    prior = unwrapped(model, "model")
    if not isinstance(prior, Prior):
        return
    named = prior.tokenizer or (train.tokenizer if isinstance(train, CodeSet) else "")
    for name, codes in (("train", train), ("validation", validation)):
        if isinstance(codes, CodeSet) and codes.tokenizer != named:
            raise ValueError(
                f"{name}: got codes of the tokenizer {codes.tokenizer!r}, want those of {named!r}, which "
                f"{'the prior' if prior.tokenizer else 'train'} names: tokenize the images with that one, or make a "
                "prior with tokenizer=codes.tokenizer"
            )
    prior.tokenizer = named


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: got LBFGS, which needs a closure, want one whose step() needs none, such as Adam")
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: got one without any of the model's parameters, want one made from them")


def _check_schedule(optimizer: torch.optim.Optimizer, run: str | os.PathLike[str] | None) -> None:
    scheduled = any("initial_lr" in group for group in optimizer.param_groups)  # torch's schedulers leave that
    if run is not None and scheduled:
        raise ValueError(
            "optimizer: got one with a learning-rate schedule, want one without, as the folder run cannot keep the "
            "schedule's state: continued, it would begin anew. Leave out run, or the schedule"
        )

"""The loop of ``fit``, which is the loop of chapter 01: epochs of batches, and a step on each."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from companion._extras import require
from companion.training.batches import BatchTerms
from companion.training.details import parts_kept_in_eval
from companion.training.epochs import Epoch, checked_verdict
from companion.training.history import History, Row
from companion.training.means import Means
from companion.training.plan import Plan
from companion.training.randomness import (
    epoch_order,
    fresh_random_state,
    random_state,
    random_state_kept,
    set_random_state,
)
from companion.training.resume import shown
from companion.training.schedules import same_so_far
from companion.training.states import States
from companion.training.step import Step
from companion.training.stop_button import StopButton


class Loop:
    """Training as it stands: ``step`` steps, ``rows`` of whole epochs, ``means`` of the epoch under way.

    With ``states``, it begins where the newest of them ended.
    """

    def __init__(
        self, plan: Plan, optimizer: torch.optim.Optimizer, accelerator: Any, states: States | None = None
    ) -> None:
        self.plan, self.model, self.accelerator, self.states = plan, plan.model, accelerator, states
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.batches = BatchTerms(plan, self.device)
        self.train_step = Step(plan, self.batches, optimizer, accelerator)
        self.optimizer, self.averages = self.train_step.optimizer, self.train_step.averages
        self.step, self.means, self.rows = 0, Means(), list[Row]()
        self.ended_by = ""  # what of the caller's ended training after an epoch
        self.kept_in_eval = parts_kept_in_eval(plan.model)
        set_random_state(self.device, fresh_random_state(self.device, plan.seed, self.rank))
        if states and (saved := states.newest()):
            self._restore(saved)

    def run(self, stop: StopButton, bar: Any) -> None:
        """The loop of chapter 01: in each epoch a new order of the examples, cut into batches, and a step on each."""
        self._begin()
        while len(self.rows) < self.plan.epochs and not self.ended_by and not stop.pressed:
            self._set_modes()
            for indices in self._expected(list(self._batches_left())):
                self.train_step.make(indices, self.step, self._moment(), self.means)
                self.step += 1
                if self.means.due:  # for when the bar moves next, which is tqdm's to say (TQDM_MININTERVAL)
                    bar.set_postfix_str(self._progress(), refresh=False)
                bar.update()
                if stop.pressed or (self.plan.save_every and self.step % self.plan.save_every == 0):
                    self._save()
                if stop.pressed:
                    break
            bar.set_postfix_str(self._progress())
            if self.step == (len(self.rows) + 1) * self.plan.steps_per_epoch:
                self._close_epoch()

    def _begin(self) -> None:
        """What comes before the first step, or was left to do where a run goes on."""
        if self.step == 0:
            self._set_modes()
            (indices,) = self._expected([next(self._batches_left())])
            self.train_step.give_first_codes(indices, self._moment())
        elif self.step == len(self.rows) * self.plan.steps_per_epoch:  # it may have been killed before it told of it
            self._tell_of_epoch()

    def _set_modes(self) -> None:
        self.model.train()
        for part in self.kept_in_eval.values():
            part.training = False

    def _batches_left(self) -> Iterator[Tensor]:
        """The indices of this process in the batches that the epoch under way still has."""
        plan, epoch = self.plan, len(self.rows)
        order = epoch_order(len(plan.train), plan.seed, epoch)
        for i in range(self.step - epoch * plan.steps_per_epoch, plan.steps_per_epoch):
            batch = order[i * plan.batch_size : (i + 1) * plan.batch_size]
            yield batch.chunk(self.world)[self.rank]  # joined in the order of ranks they are the batch again

    def _expected(self, batches: list[Tensor]) -> list[Tensor]:
        """The batches of the next steps. A data set with worker processes begins to read them."""
        parts = [part for indices in batches for part in self.train_step.parts_of(indices)]
        self.batches.expect("train", parts, self.rank, first=self.step * self.plan.accumulate)
        return batches

    def _moment(self) -> str:
        return f"step {self.step + 1} (epoch {len(self.rows) + 1})"

    def _progress(self) -> str:
        return f"epoch {len(self.rows) + 1}, loss {self.means.read():.4g}"

    def _close_epoch(self) -> None:
        without = self.train_step.without_gradient
        if not self.rows and without:
            some = ", ".join(sorted(without)[:3])
            warnings.warn(
                f"model: no gradient reached {len(without)} of its parameters in the first epoch ({some}"
                "): detached, or not used?",
                stacklevel=4,
            )
        self.rows.append(self._row())
        self.means = Means()
        self._save()
        self._tell_of_epoch()

    def _tell_of_epoch(self) -> None:
        """Call the caller's ``after_epoch`` in the main process; all processes do what it answers."""
        if self.plan.after_epoch is None or self.ended_by:
            return
        goes_on = True
        if self.accelerator.is_main_process:
            rows = [dict(row) for row in self.rows]
            epoch = Epoch(len(rows), self.step, dict(rows[-1]), History(rows), self.model)
            with random_state_kept(self.device), torch.no_grad(), self._as_validated():
                set_random_state(self.device, fresh_random_state(self.device, self.plan.seed, self.rank, 2))
                goes_on = checked_verdict(self.plan.after_epoch(epoch))
        goes_on = require("accelerate.utils", extra="train", what="fit").broadcast_object_list([goes_on])[0]
        if not goes_on:
            self.ended_by = shown(self.plan.after_epoch)
            self._save()

    @contextmanager
    def _as_validated(self) -> Iterator[None]:
        """The model in eval mode, with the averaged weights if there are any."""
        self.model.eval()
        with nullcontext() if self.averages is None else self.averages.in_the_model():
            yield

    def history(self) -> History:
        """The rows of whole epochs, and one of the part of an epoch that was done where training was stopped."""
        history = History(list(self.rows), interrupted=self.step < self.plan.total_steps and not self.ended_by)
        self.means.read()
        if self.means.weight:
            history.rows.append(self._row())  # the caller's alone: the run goes on with this epoch
        return history

    def _row(self) -> Row:
        """The row of the epoch under way: its means, and validation with the weights as they are."""
        row: Row = {"epoch": len(self.rows) + 1, "step": self.step, **self.means.over_processes()}
        if self.plan.schedule is not None:
            row["lr"] = float(self.optimizer.param_groups[0]["lr"])  # of the last step
        if self.world > 1:  # the next training step would do this to the buffers; validation comes before it
            broadcast = require("accelerate.utils", extra="train", what="fit").broadcast
            for buffer in self.model.buffers():
                broadcast(buffer)
        if self.plan.validation is not None:
            row |= {f"validation_{name}": value for name, value in self._validate(len(self.plan.validation)).items()}
        return row

    def _validate(self, n: int) -> Row:
        """The mean of each term over all ``n`` examples, shared out among the processes."""
        plan, means = self.plan, Means()
        with random_state_kept(self.device), torch.no_grad(), self._as_validated(), self.accelerator.autocast():
            set_random_state(self.device, fresh_random_state(self.device, plan.seed, self.rank, 1))  # always the same
            shares = [batch[self.rank :: self.world] for batch in torch.arange(n, device="cpu").split(plan.batch_size)]
            shares = [indices for indices in shares if len(indices)]
            self.batches.expect("validation", shares, self.rank)
            moment = f"validation after step {self.step}"
            for indices in shares:
                terms = self.batches.terms_of("validation", indices, moment, self.means)
                means.add(terms, len(indices), moment)
        return means.over_processes()

    def _save(self) -> None:
        self.means.read()  # raises where something is not finite: such a state is not worth keeping
        if self.states is None:
            return
        scaler = self.accelerator.scaler
        common = {
            "step": self.step,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler and scaler.state_dict(),
        }
        if self.plan.schedule is not None:
            common["total_steps"] = self.plan.total_steps
        if self.averages is not None:
            common["averages"] = self.averages.averages
        if self.ended_by:
            common["ended_by"] = self.ended_by
        self.states.save(common, {"means": self.means.state(), "random": random_state(self.device)})

    def _restore(self, saved: dict[str, Any]) -> None:
        """All parts of a state; the model last, so that it stays as it is where another part does not fit."""
        of_process = saved["processes"][self.rank]
        means = Means(**of_process["means"])
        self._check_rates_so_far(saved)
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise ValueError(
                f"run: the state is of an optimizer that does not fit: were other parameters frozen there? ({error})"
            ) from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        if self.averages is not None:
            self.averages.restore(saved["averages"])
        self.model.load_state_dict(saved["model"])
        self.step, self.rows, self.means = saved["step"], saved["rows"], means
        set_random_state(self.device, of_process["random"])
        if self.plan.after_epoch is not None and saved.get("ended_by") == shown(self.plan.after_epoch):
            self.ended_by = saved["ended_by"]  # by another one it is not ended

    def _check_rates_so_far(self, saved: dict[str, Any]) -> None:
        """A schedule that ends with the training has other rates from the first step on where that gets longer."""
        schedule, before, now = self.plan.schedule, saved.get("total_steps"), self.plan.total_steps
        if schedule is not None and before and not same_so_far(schedule, saved["step"], before, now):
            raise ValueError(
                f"epochs: got {self.plan.epochs}, want {before // self.plan.steps_per_epoch} as the run has: with this "
                "schedule the steps that are done would have had other learning rates in a training of another length"
            )

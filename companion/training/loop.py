"""A step of training as chapter 01 writes it out, and the loop of ``fit``, which is this step, repeated."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import described
from companion._extras import require
from companion.configured import parts_of
from companion.data.images import ImageSet
from companion.training.checks import batch_of, check_augmented, check_gradient, check_step, loss_of
from companion.training.details import parts_kept_in_eval
from companion.training.history import History, Row
from companion.training.means import Means
from companion.training.objective import Terms, backward_error_with_cause, error_with_cause, own_backward
from companion.training.plan import Plan
from companion.training.randomness import (
    epoch_order,
    fresh_random_state,
    random_state,
    random_state_kept,
    set_random_state,
)
from companion.training.states import States
from companion.training.stop_button import StopButton


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step of gradient descent on a batch, as chapter 01 writes it out; :func:`fit` is this, repeated.

    Args:
        model: ``model(x)`` gives a result whose ``loss`` is to be minimised.

    Returns:
        The loss that the step was made from, detached.

    Raises:
        ValueError: ``optimizer`` has none of the model's parameters or needs a closure, or the loss has no gradient.
    """
    check_step(model, optimizer)
    if not model.training:
        raise ValueError("model: got it in eval mode, in which a codebook learns nothing, want model.train() first")
    loss = loss_of(model(x))
    check_gradient("model", loss)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class Loop:
    """Training as it stands: ``step`` steps, ``rows`` of whole epochs, ``means`` of the epoch under way.

    With ``states``, it begins where the newest of them ended.
    """

    def __init__(
        self, plan: Plan, optimizer: torch.optim.Optimizer, accelerator: Any, states: States | None = None
    ) -> None:
        self.plan, self.model, self.accelerator, self.states = plan, plan.model, accelerator, states
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.terms = Terms(plan.model, plan.objective)
        self.training_terms, self.optimizer = accelerator.prepare(self.terms, optimizer)
        self.step, self.means, self.rows = 0, Means(), list[Row]()
        self.trainable = {name for name, p in plan.model.named_parameters() if p.requires_grad}
        self.without_gradient = set(self.trainable)  # so far
        self.kept_in_eval = parts_kept_in_eval(plan.model)
        self.told_of_modes = False
        set_random_state(self.device, fresh_random_state(self.device, plan.seed, self.rank))
        if states and (saved := states.newest()):
            self._restore(saved)
        self.began_at = self.step

    def run(self, stop: StopButton, bar: Any) -> None:
        """The loop of chapter 01: in each epoch a new order of the examples, cut into batches, and a step on each."""
        while len(self.rows) < self.plan.epochs and not stop.pressed:
            self.model.train()
            for part in self.kept_in_eval.values():
                part.training = False
            for indices in self._batches_left():
                self._train_step(indices)
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

    def _train_step(self, indices: Tensor) -> None:
        """``train_step`` from above, on the terms of the objective and by way of Accelerate."""
        moment = f"step {self.step + 1} (epoch {len(self.rows) + 1})"
        self.optimizer.zero_grad()  # first, so that the memory of the gradients is free in the forward pass
        weights, gradients = self._versions()
        terms = self._terms(self.training_terms, "train", indices, moment)
        weights_now, gradients_now = self._versions()
        if gradients_now != gradients:
            raise own_backward(self.terms.argument)
        try:
            self.accelerator.backward(terms["loss"])
        except RuntimeError as error:
            first, stepped = self.step == self.began_at, weights_now != weights
            if known := backward_error_with_cause(error, argument=self.terms.argument, stepped=stepped, first=first):
                raise known from error
            raise
        self._check_learns()
        self.optimizer.step()
        self.step += 1
        self.means.add(terms, len(indices), moment)

    def _batches_left(self) -> Iterator[Tensor]:
        """The indices of this process in the batches that the epoch under way still has."""
        plan, epoch = self.plan, len(self.rows)
        order = epoch_order(len(plan.train), plan.seed, epoch)
        for i in range(self.step - epoch * plan.steps_per_epoch, plan.steps_per_epoch):
            batch = order[i * plan.batch_size : (i + 1) * plan.batch_size]
            yield batch.chunk(self.world)[self.rank]  # joined in the order of ranks they are the batch again

    def _terms(self, terms: nn.Module, name: str, indices: Tensor, moment: str) -> dict[str, Tensor]:
        """The terms of a batch of the examples called ``name``, or an error that names the cause if it is known."""
        batch = batch_of(name, self.plan.examples[name], indices, self.device)
        if name == "train" and self.plan.augment is not None:
            batch = (self._augmented(self.plan.augment, batch[0]), *batch[1:])
        called, modes = self.terms.argument, {part: part.training for part in self.model.modules()}
        try:
            made = terms(*batch)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            self.means.read()  # where a step before this one was not finite, that comes first
            if known := error_with_cause(error, self.model, name, batch, moment, argument=called):
                raise known from error
            if name == "train" and self.plan.augment is not None and "no multiples of" in str(error):
                raise ValueError(f"augment: the model does not take the images after it ({error})") from error
            raise
        if self.plan.objective is not None:
            self._warn_of_modes(name, modes)
        return made

    def _warn_of_modes(self, name: str, before: dict[nn.Module, bool]) -> None:
        """An objective that calls ``model.eval()`` trains another model than the caller has in mind."""
        changed = [
            path or "the model" for path, part in parts_of(self.model) if before.get(part) == (not part.training)
        ]
        if changed and not self.told_of_modes:
            self.told_of_modes = True
            warnings.warn(
                f"objective: changed the mode of {', '.join(changed[:3])}{', …' * (len(changed) > 3)} on a batch of "
                f"{name}, want the modes left as they are: fit trains in training mode and validates in eval mode",
                stacklevel=5,
            )

    def _versions(self) -> tuple[list[int], list[tuple[int, int] | None]]:
        """What tells whether somebody changes the parameters or their gradients."""
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters]
        return [p._version for p in parameters], [None if g is None else (id(g), g._version) for g in gradients]

    def _augmented(self, augment: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
        """What ``augment`` makes of the first tensor of a batch."""
        with torch.no_grad():  # it is no part of the model
            try:
                augmented = augment(first)
            except (TypeError, AttributeError, IndexError) as error:  # as of transforms of one image, or of pillow's
                raise ValueError(
                    f"augment: called with a batch, here {described(first)}, it fails; want one that takes "
                    f"images (B, C, H, W) as a tensor ({type(error).__name__}: {error})"
                ) from error
        check_augmented(augmented, first, images=isinstance(self.plan.train, ImageSet))
        return augmented

    def _check_learns(self) -> None:
        if not self.without_gradient:
            return
        self.without_gradient -= {name for name, p in self.model.named_parameters() if p.grad is not None}
        if self.without_gradient == self.trainable:
            raise ValueError("objective: got a loss of another model, want one of the model that it is called with")

    def _progress(self) -> str:
        return f"epoch {len(self.rows) + 1}, loss {self.means.read():.4g}"

    def _close_epoch(self) -> None:
        if not self.rows and self.without_gradient:
            some = ", ".join(sorted(self.without_gradient)[:3])
            warnings.warn(
                f"model: no gradient reached {len(self.without_gradient)} of its parameters in the first epoch ({some}"
                "): detached, or not used?",
                stacklevel=4,
            )
        self.rows.append(self._row())
        self.means = Means()
        self._save()

    def history(self) -> History:
        """The rows of whole epochs, and one of the part of an epoch that was done where training was stopped."""
        history = History(list(self.rows), interrupted=self.step < self.plan.total_steps)
        self.means.read()
        if self.means.weight:
            history.rows.append(self._row())  # the caller's alone: the run goes on with this epoch
        return history

    def _row(self) -> Row:
        """The row of the epoch under way: its means, and validation with the weights as they are."""
        row: Row = {"epoch": len(self.rows) + 1, "step": self.step, **self.means.over_processes()}
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
        self.model.eval()
        with random_state_kept(self.device), torch.no_grad(), self.accelerator.autocast():
            set_random_state(self.device, fresh_random_state(self.device, plan.seed, self.rank, 1))  # always the same
            for start in range(0, n, plan.batch_size):
                indices = torch.arange(start, min(start + plan.batch_size, n), device="cpu")[self.rank :: self.world]
                if len(indices):
                    moment = f"validation after step {self.step}"
                    means.add(self._terms(self.terms, "validation", indices, moment), len(indices), moment)
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
        self.states.save(common, {"means": self.means.state(), "random": random_state(self.device)})

    def _restore(self, saved: dict[str, Any]) -> None:
        """All parts of a state; the model last, so that it stays as it is where another part does not fit."""
        of_process = saved["processes"][self.rank]
        means = Means(**of_process["means"])
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise ValueError(
                f"run: the state is of an optimizer that does not fit: were other parameters frozen there? ({error})"
            ) from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.model.load_state_dict(saved["model"])
        self.step, self.rows, self.means = saved["step"], saved["rows"], means
        set_random_state(self.device, of_process["random"])

"""A step of training as chapter 01 writes it out, and the step of ``fit``, which is this one with more around it."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from companion.quantizers.accumulation import initialise_from, one_update
from companion.training.averages import AveragedWeights
from companion.training.batches import BatchTerms
from companion.training.checks import check_gradient, check_step, loss_of
from companion.training.means import Means
from companion.training.objective import backward_error_with_cause, own_backward
from companion.training.plan import Plan
from companion.training.randomness import random_state_kept
from companion.training.schedules import factor_of


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


class Step:
    """``train_step`` from above for ``fit``: by way of Accelerate, on a batch that may be cut into parts."""

    def __init__(self, plan: Plan, batches: BatchTerms, optimizer: torch.optim.Optimizer, accelerator: Any) -> None:
        self.plan, self.model, self.batches, self.accelerator = plan, plan.model, batches, accelerator
        self.rates = [group.get("lr", 0.0) for group in optimizer.param_groups]  # which the schedule multiplies
        self.rates = [rate.clone() if isinstance(rate, Tensor) else rate for rate in self.rates]
        self.training_terms, self.optimizer = accelerator.prepare(batches.terms, optimizer)
        self.averages = None if plan.average is None else AveragedWeights(plan.model, plan.average)
        self.trainable = {name for name, p in plan.model.named_parameters() if p.requires_grad}
        self.without_gradient = set(self.trainable)  # so far
        self.first = True

    def make(self, indices: Tensor, number: int, moment: str, means: Means) -> None:
        """The step of this ``number``, counted from 0, on the examples at ``indices``; ``means`` gets its terms."""
        self.optimizer.zero_grad()  # first, so that the memory of the gradients is free in the forward pass
        parts = self.parts_of(indices)
        terms_of_parts = []
        with one_update(self.model) if len(parts) > 1 else nullcontext():
            for part in parts:
                with self.accelerator.no_sync(self.training_terms) if part is not parts[-1] else nullcontext():
                    terms = self._forward_and_backward(part, len(part) / len(indices), moment, means)
                terms_of_parts.append({name: value.detach() for name, value in terms.items()})
        self._check_learns()
        of_the_step = self._clip()
        self._set_rates(number)
        self.optimizer.step()
        if self.averages is not None:
            self.averages.update(number)
        for part, terms in zip(parts, terms_of_parts, strict=True):
            means.add(terms | of_the_step, len(part), moment)

    def parts_of(self, indices: Tensor) -> tuple[Tensor, ...]:
        """One, unless gradients are accumulated."""
        return indices.tensor_split(self.plan.accumulate)

    def give_first_codes(self, indices: Tensor, moment: str) -> None:
        """Before the first step on a batch in parts: k-means takes the codes from all of them together."""
        parts = self.parts_of(indices)
        if len(parts) == 1:
            return

        forwards = [partial(self.batches.terms_of, "train", part, moment, Means()) for part in parts]
        with random_state_kept(self.batches.device), self.accelerator.autocast():
            initialise_from(self.model, forwards)

    def _forward_and_backward(self, part: Tensor, share: float, moment: str, means: Means) -> dict[str, Tensor]:
        """The terms of a part of the batch. The loss is a mean over examples, so each part counts by its ``share``."""
        weights, gradients = self._versions()
        terms = self.batches.terms_of("train", part, moment, means, self.training_terms)
        weights_now, gradients_now = self._versions()
        argument, stepped = self.batches.terms.argument, weights_now != weights
        if gradients_now != gradients:
            raise own_backward(argument)
        try:
            self.accelerator.backward(share * terms["loss"])
        except RuntimeError as error:
            if known := backward_error_with_cause(error, argument=argument, stepped=stepped, first=self.first):
                raise known from error
            raise
        self.first = False
        return terms

    def _clip(self) -> dict[str, Tensor]:
        """Make a gradient whose norm is over ``clip`` as long as that; its norm before, for the history."""
        if self.plan.clip is None:
            return {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.plan.clip)
        if self.accelerator.scaler is not None:  # whose first factors are too large: it leaves out these steps
            norm = norm.where(norm.isfinite(), 0)
        return {"gradient_norm": norm}

    def _set_rates(self, number: int) -> None:
        if self.plan.schedule is None:
            return
        factor = factor_of(self.plan.schedule, number, self.plan.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(factor * rate)
            else:
                group["lr"] = factor * rate

    def _versions(self) -> tuple[list[int], list[tuple[int, int] | None]]:
        """What tells whether somebody changes the parameters or their gradients."""
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters]
        return [p._version for p in parameters], [None if g is None else (id(g), g._version) for g in gradients]

    def _check_learns(self) -> None:
        if not self.without_gradient:
            return
        self.without_gradient -= {name for name, p in self.model.named_parameters() if p.grad is not None}
        if self.without_gradient == self.trainable:
            raise ValueError("objective: got a loss of another model, want one of the model that it is called with")

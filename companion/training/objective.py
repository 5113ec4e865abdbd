"""From a batch to the terms of its loss, with an error that names the cause where there are none."""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import NotFiniteError, brief, is_about_shapes
from companion.configured import unwrapped
from companion.priors.base import Prior
from companion.training.checks import check_gradient
from companion.training.means import CODE_COUNTS


class Terms(nn.Module):
    """The objective as a module: a batch → its 0-dim terms by name, ``loss`` first, the others detached.

    Accelerate wraps and changes this module, and so never the model inside it.
    """

    def __init__(self, model: nn.Module, objective: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or default_objective
        self.argument = "objective" if objective else "model"  # which one an error is about

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        result = self.objective(self.model, *batch)
        loss = getattr(result, "loss", None)
        if not is_dataclass(result) or not isinstance(loss, Tensor) or loss.ndim:
            kind = type(result).__name__
            got = f"{kind} whose loss is {brief(loss)}" if hasattr(result, "loss") else kind
            raise ValueError(f"{self.argument}: it gave a {got}, want a dataclass with a field loss, a 0-dim tensor")
        if torch.is_grad_enabled():
            check_gradient(self.argument, loss)
        values: dict[str, Any] = {}
        for field in fields(result):
            value = getattr(result, field.name)
            values |= value if isinstance(value, dict) else {field.name: value}
        logged = {
            name: value.detach()
            for name, value in values.items()
            if isinstance(value, Tensor) and (value.ndim == 0 or name == CODE_COUNTS)
        }
        if CODE_COUNTS in logged and logged[CODE_COUNTS].ndim not in (1, 2):
            raise ValueError(
                f"{self.argument}: gave code_counts of shape {tuple(logged[CODE_COUNTS].shape)}, want (K,) or (R, K)"
            )
        return {"loss": loss} | logged | {"loss": loss}


def default_objective(model: nn.Module, *batch: Tensor) -> Any:
    """``model(batch[0])``, and for a conditional prior ``model(codes, labels)``."""
    prior = unwrapped(model, "model")
    if not isinstance(prior, Prior) or prior.num_classes == 0:
        return model(batch[0])
    if len(batch) < 2:
        raise ValueError(
            "train: got batches of codes alone, want codes and labels, as the prior has "
            f"num_classes={prior.num_classes}; objective=lambda prior, codes: prior(codes) trains it without"
        )
    return model(batch[0], batch[1])


def error_with_cause(
    error: Exception,
    model: nn.Module,
    name: str,
    batch: tuple[Tensor, ...],
    moment: str,
    *,
    argument: str = "model",
) -> Exception | None:
    """What to raise instead of the ``error`` that a batch of ``name`` led to, if its cause is known.

    Args:
        name: of the examples, "train" or "validation".
        argument: what was called with the batch, "model" or "objective".

    Returns:
        ``FloatingPointError``: the weights, or what comes from them, are not finite, which the model may see first.
        ``ValueError``: weights and examples are of different types, a layer does not take the shape, or it is an
        ``IndexError`` or ``TypeError``, of which the message says with which batch. None: none of these.
    """
    broken = not _all_finite(model.parameters()) or any(buffer.isnan().any() for buffer in model.buffers())
    if (isinstance(error, NotFiniteError) or (broken and isinstance(error, ValueError))) and _all_finite(batch):
        return FloatingPointError(
            f"the model's weights or latents are no longer finite at {moment}: training cannot go on from there "
            f"({error})"
        )
    weights = [p.dtype for p in model.parameters() if p.is_floating_point()]
    given = [value.dtype for value in batch[:1] if isinstance(value, Tensor) and value.is_floating_point()]
    if type(error) in (ValueError, RuntimeError) and weights and given and given[0] not in weights:
        remedy = "model.float()" if given[0] == torch.float32 else f"model.to({given[0]})"
        return ValueError(
            f"model: got weights of {weights[0]}, want {given[0]} as the examples of {name} are: {remedy} ({error})"
        )
    shown = batch if argument == "objective" else batch[:1]
    shapes = ", ".join(str(tuple(value.shape)) for value in shown if isinstance(value, Tensor))
    if isinstance(error, IndexError | TypeError):
        return ValueError(f"{argument}: a batch of {name} of shape {shapes} led to a {type(error).__name__} ({error})")
    if is_about_shapes(error):
        return ValueError(f"{argument}: does not take a batch of {name} of shape {shapes} ({error})")
    return None


def backward_error_with_cause(error: RuntimeError, *, argument: str, stepped: bool, first: bool) -> ValueError | None:
    """What to raise instead of the ``error`` of a step's backward, if its cause is known.

    Args:
        argument: what made the loss, "model" or "objective".
        stepped: whether the weights were changed while the loss was made.
        first: whether it is the first step, before which there was no other batch.
    """
    twice, in_place = "a second time" in str(error), "modified by an inplace operation" in str(error)
    if (stepped and (twice or in_place)) or (first and twice):
        return own_backward(argument)
    if twice or (in_place and not first):  # what the model does in place would have been seen in the first step
        return ValueError(
            f"{argument}: got a loss that depends on an earlier batch, want one of this batch alone: add up "
            "loss.detach() where a sum over batches is wanted"
        )
    return None


def own_backward(argument: str) -> ValueError:
    """For an ``argument`` that makes the gradients itself."""
    return ValueError(
        f"{argument}: called backward() itself, or made a step of an optimizer, want one that only gives the loss: fit "
        "does both"
    )


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors if isinstance(value, Tensor))

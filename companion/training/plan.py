"""What ``fit`` was asked for, in one object that its parts hand to each other."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from companion.training.epochs import AfterEpoch
from companion.training.schedules import Schedule


class Examples(Protocol):
    """What ``fit`` trains on: ``companion.data.ImageSet`` and ``companion.CodeSet`` are two."""

    def __len__(self) -> int: ...
    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, eq=False)
class Plan:
    """The arguments of :func:`companion.fit`, whose docstring says what each of them means."""

    model: nn.Module
    train: Examples
    validation: Examples | None
    objective: Callable[..., Any] | None
    augment: Callable[[Tensor], Tensor] | None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None
    lr: float | None
    schedule: Schedule | None
    clip: float | None
    accumulate: int
    average: float | None
    after_epoch: AfterEpoch | None
    epochs: int
    batch_size: int
    seed: int
    precision: str
    run: str | os.PathLike[str] | None
    save_every: int | None
    device: str | torch.device | None
    progress: bool

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in ``train``."""
        return len(self.train) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps in all epochs together."""
        return self.steps_per_epoch * self.epochs

    @property
    def examples(self) -> dict[str, Examples]:
        """The sets of examples that there are, by the name of their argument."""
        return {"train": self.train} | ({} if self.validation is None else {"validation": self.validation})

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters that are not frozen.

        Raises:
            ValueError: ``optimizer`` cannot be called with them, or makes something else.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        try:
            made = self.optimizer(parameters) if self.optimizer else torch.optim.Adam(parameters, lr=self.lr or 1e-3)
        except (TypeError, ValueError, AttributeError) as error:
            keywords = getattr(self.optimizer, "keywords", {})  # of a partial
            texts = [f"{key}={value!r}" for key, value in keywords.items() if isinstance(value, str)]
            named = f" (got {', '.join(texts)}, a string)" if texts else ""
            raise ValueError(f"optimizer: called with the list of the model's parameters: {error}{named}") from error
        if not isinstance(made, torch.optim.Optimizer):
            raise ValueError(f"optimizer: it made a {type(made).__name__}, want a torch.optim.Optimizer")
        return made

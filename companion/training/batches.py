"""From the indices of a batch to the terms of its loss."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from companion._arguments import described
from companion.configured import parts_of
from companion.data.images import ImageSet
from companion.training.checks import batch_of, check_augmented
from companion.training.datasets import FromDataset
from companion.training.means import Means
from companion.training.objective import Terms, error_with_cause
from companion.training.plan import Plan


class BatchTerms:
    """The batches of training and of validation, and what the objective makes of them on ``device``."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.model, self.device = plan, plan.model, device
        self.terms = Terms(plan.model, plan.objective)
        self.told_of_modes = False

    def expect(self, name: str, coming: Iterable[Tensor], rank: int, first: int = 0) -> None:
        """Say which batches will be asked for next, from number ``first`` on: a data set may read them beforehand."""
        examples = self.plan.examples[name]
        if isinstance(examples, FromDataset):
            examples.expect(coming, self.plan.seed, 2, int(name == "validation"), rank, first=first)

    def terms_of(
        self, name: str, indices: Tensor, moment: str, before: Means, terms: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """The terms of a batch of the examples called ``name``, or an error that names the cause if it is known.

        Args:
            moment: for the error: "step 3".
            before: the terms of earlier steps: one of them that is not finite is an error that comes first.
            terms: ``self.terms``, or what Accelerate made of it.
        """
        batch = batch_of(name, self.plan.examples[name], indices, self.device)
        if name == "train" and self.plan.augment is not None:
            batch = (self._augmented(self.plan.augment, batch[0]), *batch[1:])
        called, modes = self.terms.argument, {part: part.training for part in self.model.modules()}
        try:
            made: dict[str, Tensor] = (terms or self.terms)(*batch)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            before.read()
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

"""A tokenizer and a discriminator that are trained together, by ``companion.fit`` (chapter 09).

Usually this takes two optimizers and two backwards a step: one for the tokenizer, with the discriminator held still,
and one for the discriminator, on the reconstructions as they were. Here it takes one of each, with the same result:
both losses are made from the same weights, and each is cut off from the other network's parameters. So the sum of the
two has, for each parameter, exactly the gradient of the loss that this parameter is there for.
"""

import difflib
import warnings
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    brief_kind,
    check_choice,
    check_flag,
    check_instance,
    check_module,
    check_number,
    check_whole,
    judged,
)
from companion._pytrees import pytree
from companion.autoencoder import Autoencoder
from companion.classifier import Classifier
from companion.configured import Configured, unwrapped
from companion.losses.adversarial import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    adaptive_weight,
    logits_with_constants,
)
from companion.losses.discriminator import PatchDiscriminator
from companion.losses.feature_distance import FeatureDistance
from companion.losses.penalties import BATCH_NORMS, LeCamPenalty, r1_penalty
from companion.priors.base import Prior
from companion.vae import VAE
from companion.vqvae import VQVAE


@pytree
@dataclass(frozen=True)
class AdversarialOutput:
    """What :class:`AdversarialTraining` returns.

    Attributes:
        reconstruction: x̂.
        loss: everything that is minimised, with its weights.
        losses: its terms by name, before their weights. "tokenizer" is the tokenizer's own loss, beside the terms of
            which that is made; then "perceptual", "generator", "discriminator" and "penalty". Also, in training,
            "adaptive_weight", and the means of the logits, "logits_real" and "logits_fake". Before ``start`` the terms
            of the discriminator are 0.
        tokenized: what the tokenizer returned.
        code_counts: the tokenizer's, or None.

    Shapes:
        reconstruction: (B, C, H, W); loss and each of ``losses``: 0-dim; code_counts: (K,) or (R, K).
    """

    reconstruction: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    tokenized: Any
    code_counts: Tensor | None


class AdversarialTraining(Configured, nn.Module):
    """A tokenizer that also has to look real to a discriminator, and to a network's features (Esser et al. 2021).

    L = L_tokenizer + w_p · L_perceptual + w_a · λ · L_generator  +  L_discriminator + w_r · penalty

    The tokenizer learns from the first three terms, with the discriminator's parameters as constants; the discriminator
    from the last two, with x̂ as a constant. λ is :func:`adaptive_weight`. One backward and one step are the usual two
    steps by turns with one reconstruction: generator first, then the discriminator on x̂ from before that step.

    ``fit(AdversarialTraining(…), images, …)`` trains both, and afterwards ``model.tokenizer`` is the trained tokenizer.
    For a learning rate of their own, give the two networks groups of their own::

        def two_rates(parameters):
            theirs = {id(p) for p in model.discriminator.parameters()}
            groups = [
                {"params": [p for p in parameters if id(p) not in theirs], "lr": 1e-4},
                {"params": [p for p in parameters if id(p) in theirs], "lr": 4e-4},
            ]
            return torch.optim.Adam(groups, betas=(0.5, 0.9))

        companion.fit(model, images, epochs=10, optimizer=two_rates)

    Start: reconstructions of a new tokenizer are blots, which are easy to tell and say little about sharpness. So for
    the first ``start`` steps the discriminator is not evaluated, and its parameters have no gradient, so that Adam's
    averages begin with its first real step. (If that is more than an epoch, ``fit`` warns that some parameters got no
    gradient.) Steps are counted in a buffer, in training mode with gradients on, so that a run goes on where it was.

    In eval mode λ is 1, since there is no gradient to make it from: compare the terms, not the loss, with those of
    training.

    Args:
        tokenizer: a model whose result has ``reconstruction`` and ``loss``: Autoencoder, VAE, VQVAE.
        discriminator: images → logits, such as a ``PatchDiscriminator``.
        feature_distance: the perceptual term, or None.
        adversarial_loss: "hinge" or "non-saturating".
        perceptual_weight: w_p.
        adversarial_weight: w_a.
        adaptive: λ by :func:`adaptive_weight`; 1 otherwise.
        last_layer: the name of the weight for λ in ``tokenizer.named_parameters()``. None: the last weight of its
            ``decoder``.
        start: steps before the discriminator takes part.
        penalty: of the discriminator: "none", "r1" or "lecam".
        penalty_weight: w_r.

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``AdversarialOutput``.

    Raises:
        ValueError: an argument is out of range; tokenizer or discriminator is a model of another kind; the decoder has
            no such ``last_layer``; the tokenizer returns something else, or refuses ``x``; the discriminator does not
            take the images, or gives no logits (B, …).
    """

    steps: Tensor

    def __init__(
        self,
        tokenizer: nn.Module,
        discriminator: nn.Module,
        feature_distance: nn.Module | None = None,
        *,
        adversarial_loss: Literal["hinge", "non-saturating"] = "hinge",
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.8,
        adaptive: bool = True,
        last_layer: str | None = None,
        start: int = 0,
        penalty: Literal["none", "r1", "lecam"] = "none",
        penalty_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_module("tokenizer", tokenizer)
        check_module("discriminator", discriminator)
        if feature_distance is not None:
            check_instance("feature_distance", feature_distance, FeatureDistance, "a FeatureDistance or None")
        check_choice("adversarial_loss", adversarial_loss, GENERATOR_LOSSES)
        check_number("perceptual_weight", perceptual_weight, least=0)
        check_number("adversarial_weight", adversarial_weight, least=0)
        check_flag("adaptive", adaptive)
        check_whole("start", start, least=0)
        check_choice("penalty", penalty, ("none", "r1", "lecam"))
        check_number("penalty_weight", penalty_weight, least=0)
        _check_roles(tokenizer, discriminator)
        _warn_of_no_logits(discriminator)
        _warn_of_what_goes_unused(
            perceptual_weight=(perceptual_weight, feature_distance is not None, "feature_distance"),
            penalty_weight=(penalty_weight, penalty != "none", "a penalty"),
            last_layer=(last_layer or 0, adaptive, "adaptive=True"),
        )
        self.tokenizer, self.discriminator, self.feature_distance = tokenizer, discriminator, feature_distance
        self.adversarial_loss = adversarial_loss
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.adaptive, self.last_layer, self.start = adaptive, last_layer, start
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.lecam = LeCamPenalty() if penalty == "lecam" else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if adaptive or last_layer is not None:
            self.decoders_last_layer()
        self.train()  # as every new module is; a tokenizer from a file, or from ``fit``, comes in eval mode

    def forward(self, x: Tensor) -> AdversarialOutput:
        tokenized = self.tokenizer(x)
        reconstruction = _field(tokenized, "reconstruction")
        losses = _terms(tokenized)

        loss = losses["tokenizer"]
        if self.feature_distance is not None:
            losses["perceptual"] = self.feature_distance(reconstruction, x)
            loss = loss + self.perceptual_weight * losses["perceptual"]

        if self.start == 0 or int(self.steps) >= self.start:  # without a start, nothing waits for the device
            of_generator, generator_loss = self._generator_terms(loss, reconstruction)
            of_discriminator, discriminator_loss = self._discriminator_terms(x, reconstruction.detach())
            losses |= of_generator | of_discriminator
            loss = loss + generator_loss + discriminator_loss
        else:
            losses |= {name: loss.new_zeros(()) for name in self._names_of_terms()}
        if self._learning():
            self.steps.add_(1)
        return AdversarialOutput(reconstruction, loss, losses, tokenized, getattr(tokenized, "code_counts", None))

    def decoders_last_layer(self) -> nn.Parameter:
        """The weight whose gradients make λ.

        Raises:
            ValueError: ``last_layer`` names none, or one outside the decoder; or there is no decoder with a weight.
        """
        parameters = dict(self.tokenizer.named_parameters())
        of_decoder = {name: p for name, p in parameters.items() if name.split(".")[0] == "decoder"}
        if self.last_layer is not None:
            allowed = of_decoder or parameters  # a model of the reader's may call its decoder otherwise
            if not isinstance(self.last_layer, str) or self.last_layer not in allowed:
                near = difflib.get_close_matches(str(self.last_layer), allowed, n=3, cutoff=0.4)
                some = ", ".join(map(repr, near or [*allowed][-3:]))
                part = "decoder" if of_decoder else "tokenizer"
                raise ValueError(
                    f"last_layer: got {brief(self.last_layer)}, want the name of a parameter of the {part}, such as "
                    f"{some}"
                )
            return parameters[self.last_layer]
        weights = [p for p in of_decoder.values() if p.ndim >= 2]
        if not weights:
            raise ValueError(
                f"last_layer: got None for a {type(self.tokenizer).__name__} without weights in a part named decoder, "
                "want the name of the weight, or adaptive=False"
            )
        return weights[-1]

    def _generator_terms(self, loss: Tensor, x_hat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the tokenizer learns from the discriminator, whose parameters are constants here."""
        adversarial = GENERATOR_LOSSES[self.adversarial_loss](logits_with_constants(self.discriminator, x_hat))
        terms = {"generator": adversarial}
        weighted = self.adversarial_weight * adversarial
        if self.adaptive and self._learning():
            # The tokenizer's other terms, such as those of its codebook, do not depend on this layer.
            terms["adaptive_weight"] = adaptive_weight(loss, adversarial, self.decoders_last_layer())
            weighted = terms["adaptive_weight"] * weighted
        return terms, weighted

    def _discriminator_terms(self, x: Tensor, x_hat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the discriminator learns; ``x_hat`` is detached."""
        real, fake = judged(self.discriminator, x), judged(self.discriminator, x_hat)
        loss = DISCRIMINATOR_LOSSES[self.adversarial_loss](real, fake)
        terms = {"discriminator": loss}
        if self.penalty != "none":
            terms["penalty"] = r1_penalty(self.discriminator, x) if self.lecam is None else self.lecam(real, fake)
            loss = loss + self.penalty_weight * terms["penalty"]
        terms |= {"logits_real": real.detach().float().mean(), "logits_fake": fake.detach().float().mean()}
        return terms, loss

    def _names_of_terms(self) -> list[str]:
        """The same before ``start`` as after it, so that the means of an epoch are over all of its steps."""
        adaptive = ["adaptive_weight"] if self.adaptive and self._learning() else []
        penalty = [] if self.penalty == "none" else ["penalty"]
        return ["generator", *adaptive, "discriminator", *penalty, "logits_real", "logits_fake"]

    def _learning(self) -> bool:
        return self.training and torch.is_grad_enabled()


def _check_roles(tokenizer: nn.Module, discriminator: nn.Module) -> None:
    """What is known to be no tokenizer, or no discriminator; others are looked at when they are called.

    Raises:
        ValueError: one of them is known so.
    """
    tokenizer, discriminator = unwrapped(tokenizer, "tokenizer"), unwrapped(discriminator, "discriminator")
    makers, judges = (Autoencoder, VAE, VQVAE), (PatchDiscriminator, FeatureDistance)
    if isinstance(tokenizer, (Prior, Classifier, *judges)):
        swapped = "; are the two swapped?" if isinstance(tokenizer, judges) else ""
        raise ValueError(
            f"tokenizer: got {brief_kind(tokenizer)}, want a model that rebuilds images, such as a VQVAE{swapped}"
        )
    if isinstance(discriminator, (Prior, Classifier, FeatureDistance, *makers)):
        swapped = "; are the two swapped?" if isinstance(discriminator, makers) else ""
        raise ValueError(
            f"discriminator: got {brief_kind(discriminator)}, want images → logits, such as a "
            f"PatchDiscriminator{swapped}"
        )


def _warn_of_no_logits(discriminator: nn.Module) -> None:
    """Layers that a discriminator of these losses should not have."""
    parts = list(discriminator.modules())
    if isinstance(parts[-1], nn.Sigmoid):
        warnings.warn(
            "discriminator: got one that ends in a Sigmoid, want logits of any size: the losses make probabilities of "
            "them where they need any",
            stacklevel=4,
        )
    if any(isinstance(part, BATCH_NORMS) for part in parts):
        warnings.warn(
            "discriminator: got one with BatchNorm, want another norm, such as GroupNorm: real and generated images "
            "come in batches of their own, which BatchNorm tells apart by their statistics",
            stacklevel=4,
        )


def _warn_of_what_goes_unused(**settings: tuple[Any, bool, str]) -> None:
    """By name: the value, whether there is what it is for, and what that is. 0 and a weight's default 1 are silent."""
    for name, (value, used, by) in settings.items():
        if value not in (0, 1) and not used:
            warnings.warn(f"{name}: got {brief(value)} without {by}: it goes unused", stacklevel=4)


def _field(tokenized: Any, name: str) -> Tensor:
    value = getattr(tokenized, name, None)
    if not isinstance(value, Tensor):
        got = f"{brief_kind(tokenized)} whose {name} is {brief(value)}"
        raise ValueError(f"tokenizer: gave {got}, want a result with the tensors reconstruction and loss")
    return value


def _terms(tokenized: Any) -> dict[str, Tensor]:
    """The loss of the tokenizer as "tokenizer", and the other 0-dim tensors of its result by their names."""
    loss = _field(tokenized, "loss")
    values = (
        {field.name: getattr(tokenized, field.name) for field in fields(tokenized)} if is_dataclass(tokenized) else {}
    )
    single = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 0}
    single.pop("loss", None)
    return {"tokenizer": loss} | single | getattr(tokenized, "losses", {})

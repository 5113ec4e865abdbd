"""What a discriminator and a generator minimise, and how strongly the generator listens (chapter 09).

The discriminator gives one logit for each image or patch: large for "real", small for "generated". All losses are means
over logits, and never computed in half precision.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import check_module, check_number, check_same_device, check_tensor, judged
from companion._devices import at_least_float32
from companion.quantizers._processes import several, total


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 − D(x))] + E[max(0, 1 + D(x̂))] (Lim & Ye 2017; Zhang et al. 2019, eq. 4).

    A logit that is right by more than 1 has gradient 0: the discriminator spends nothing on what it knows already.

    Shapes:
        real, fake: logits of any shape, also of two shapes → 0-dim.

    Raises:
        ValueError: they are not floating point, empty, or on two devices.
    """
    real, fake = _logits(real=real, fake=fake)
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """−E[D(x̂)] (Lim & Ye 2017; Zhang et al. 2019, eq. 4).

    Shapes:
        fake: logits of any shape → 0-dim.

    Raises:
        ValueError: they are not floating point, or empty.
    """
    (fake,) = _logits(fake=fake)
    return -fake.mean()


def non_saturating_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−E[log σ(D(x))] − E[log(1 − σ(D(x̂)))], the cross-entropy of "real or generated" (Goodfellow et al. 2014, eq. 1).

    Computed as softplus(−D(x)) and softplus(D(x̂)), which are the same and stay finite for large logits.

    Shapes:
        real, fake: logits of any shape, also of two shapes → 0-dim.

    Raises:
        ValueError: they are not floating point, empty, or on two devices.
    """
    real, fake = _logits(real=real, fake=fake)
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """−E[log σ(D(x̂))] (Goodfellow et al. 2014, section 3), computed as softplus(−D(x̂)).

    The generator could as well minimise E[log(1 − σ(D(x̂)))]. But that has next to no gradient where the discriminator
    is sure, which is at the beginning, where the generator has most to learn.

    Shapes:
        fake: logits of any shape → 0-dim.

    Raises:
        ValueError: they are not floating point, or empty.
    """
    (fake,) = _logits(fake=fake)
    return functional.softplus(-fake).mean()


def logits_with_constants(discriminator: nn.Module, x_hat: Tensor) -> Tensor:
    """D(x̂) with D's parameters as constants, for the loss of the generator.

    The gradient goes back to x̂, and the parameters get none. The discriminator itself is left as it is: for this one
    call its parameters are replaced by themselves, detached.

    Args:
        discriminator: images → logits, such as a ``PatchDiscriminator``.

    Shapes:
        x_hat: (B, C, H, W) → logits (B, …).

    Raises:
        ValueError: ``discriminator`` is no module, does not take the images or gives no logits (B, …), or ``x_hat`` is
            not floating point.
    """
    check_module("discriminator", discriminator)
    check_tensor("x_hat", x_hat, shape=("B", "*image"))
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return judged(lambda x: torch.func.functional_call(discriminator, constants, (x,)), x_hat)


DISCRIMINATOR_LOSSES = {"hinge": hinge_discriminator_loss, "non-saturating": non_saturating_discriminator_loss}
GENERATOR_LOSSES = {"hinge": hinge_generator_loss, "non-saturating": non_saturating_generator_loss}


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    *,
    most: float = 1e4,
    epsilon: float = 1e-4,
) -> Tensor:
    """λ = ‖∇_L L_rec‖ / (‖∇_L L_adv‖ + ε), at most ``most``, without a gradient (Esser et al. 2021, eq. 7).

    L is the weight of the decoder's last layer, through which everything passes that the two losses ask for. With λ
    before the adversarial loss, both pull at it equally hard, however small a reconstruction's error has become.

    Where a gradient is not finite, as half precision can overflow, λ is 0: that step goes without the adversarial loss.
    With several processes the gradients are averaged over them first, so that λ is that of the whole batch; then every
    process has to make this call.

    Args:
        reconstruction_loss: L_rec, with the perceptual term if there is one.
        adversarial_loss: L_adv, of the generator.
        last_layer: L.
        most: the largest λ.
        epsilon: ε.

    Shapes:
        reconstruction_loss, adversarial_loss: 0-dim; last_layer: any shape → 0-dim.

    Raises:
        ValueError: an argument is out of range, or a loss does not depend on ``last_layer`` or
            has had its backward.
    """
    check_number("most", most, above=0)
    check_number("epsilon", epsilon, above=0)
    check_tensor("last_layer", last_layer)
    if not last_layer.requires_grad:
        raise ValueError("last_layer: got a tensor that needs no gradient, want a weight of the decoder that learns")
    norms = []
    for name, loss in (("reconstruction_loss", reconstruction_loss), ("adversarial_loss", adversarial_loss)):
        check_tensor(name, loss, shape=())
        norms.append(_gradient_norm(name, loss, last_layer))
    ratio = norms[0] / (norms[1] + epsilon)
    return ratio.nan_to_num(nan=0.0, posinf=0.0).clamp(0, most).detach()


def _gradient_norm(name: str, loss: Tensor, last_layer: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise ValueError(f"{name}: got a loss without a gradient, want one that depends on last_layer")
    kind = loss.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    scale = 2.0**12 if half else 1.0  # float16 has no numbers below 6e-8, and a mean has small gradients
    try:
        (gradient,) = torch.autograd.grad(
            loss, last_layer, torch.full_like(loss, scale), retain_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        if "a second time" not in str(error):
            raise
        raise ValueError(f"{name}: got a loss after its backward(), want it before: λ first, then backward") from error
    if gradient is None:
        raise ValueError(f"last_layer: got a tensor on which {name} does not depend, want a weight that made it")
    gradient = at_least_float32(gradient.detach()) / scale
    if several():
        gradient = total(gradient.clone()) / torch.distributed.get_world_size()
    return torch.linalg.vector_norm(gradient)


def _logits(**logits: Tensor) -> list[Tensor]:
    """In float32 at least."""
    for name, value in logits.items():
        check_tensor(name, value, shape=("*axes",))
        first, other = next(iter(logits.items()))
        check_same_device(name, value, first, other)
    return [at_least_float32(value) for value in logits.values()]

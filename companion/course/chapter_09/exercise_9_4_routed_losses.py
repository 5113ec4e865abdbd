"""Exercise 9.4, who learns from what: two losses, each with a gradient for its own network alone."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.course.chapter_09._critic import critic
from companion.course.checks.comparison import Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_at, zeros_for_none
from companion.losses import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logits_with_constants,
)

GENERATOR, DISCRIMINATOR = "the generator's loss", "the discriminator's loss"
Part = Callable[[Tensor, Tensor, nn.Module], Any]


def routed_losses(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    """The generator's hinge loss and the discriminator's: the backward of their sum gives each network its own.

    The first sends its gradient to x̂ alone, the second to the discriminator's parameters alone.

    Shapes:
        x, x_hat: (B, C, H, W) → 0-dim, 0-dim.
    """
    of_generator = hinge_generator_loss(logits_with_constants(discriminator, x_hat))
    of_discriminator = hinge_discriminator_loss(discriminator(x), discriminator(x_hat.detach()))
    return of_generator, of_discriminator


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(94)

    def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return torch.rand(shape, generator=g, dtype=dtype), torch.rand(shape, generator=g, dtype=dtype)

    frozen, partly = critic(3), critic(4)
    frozen.layers[0].requires_grad_(False)
    partly.layers[0].eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        patches = PatchDiscriminator(3, width=4).double()
    return [
        Case("two images, a discriminator in training mode", (*pair(2, 1, 6, 5), critic(1))),
        Case("one image, a discriminator in eval mode", (*pair(1, 1, 5, 7), critic(2).eval())),
        Case("a discriminator whose first layer is frozen", (*pair(2, 1, 6, 6), frozen)),
        Case("a discriminator whose first layer alone is in eval mode", (*pair(3, 1, 6, 6), partly)),
        Case("a discriminator with gradients in .grad already", (*pair(2, 1, 7, 6), critic(5)), {"filled": True}),
        Case("a PatchDiscriminator, in float64", (*pair(2, 3, 13, 12, dtype=torch.float64), patches)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Of each loss where its gradient goes, and its value; then what has become of the discriminator and the images."""
    x, leaf = (images.detach().clone() for images in case.arguments[:2])
    discriminator: nn.Module = copy.deepcopy(case.arguments[2])
    if case.build.get("filled"):  # a copy has none
        for parameter in discriminator.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
    before = _state(discriminator)
    leaf.requires_grad_()
    x_hat = 1 * leaf  # as a tokenizer makes it: not a leaf
    result = implementation(x, x_hat, discriminator)
    if not isinstance(result, tuple | list) or len(result) != 2:
        number = f"{len(result)} things" if isinstance(result, tuple | list | dict) else "one thing"
        return {"what is returned": None if result is None else f"{number}, {kind(result)}"}

    after = _state(discriminator)
    tensors: dict[str, Tensor] = {"x_hat": leaf}
    for name, parameter in discriminator.named_parameters():
        if name not in before["parameters without requires_grad"]:
            tensors[f"the discriminator's {name}"] = parameter.requires_grad_()  # the answer may have left it off
    seen: Observed = {"what is returned": "two losses"}
    for what, loss in zip((GENERATOR, DISCRIMINATOR), result, strict=True):
        gradients = zeros_for_none(gradients_at(loss, tensors), tensors)
        reached = {"the discriminator" if "'s" in name else name for name, g in gradients.items() if bool(g.any())}
        seen[f"{what} sends a gradient to"] = " and ".join(sorted(reached, reverse=True)) or "nothing"
        seen[what] = loss
        seen |= {f"the gradient that {what} sends to {name}": gradient for name, gradient in gradients.items()}
    seen |= {f"the discriminator's {name} after the call": value for name, value in after.items()}
    seen["x wants a gradient after the call"] = x.requires_grad
    seen["x_hat hangs on the graph after the call"] = x_hat.requires_grad
    return seen | {"x after the call": x.detach(), "x_hat after the call": x_hat.detach()}


def _state(discriminator: nn.Module) -> dict[str, Any]:
    parameters = dict(discriminator.named_parameters())
    return {
        "parameters without requires_grad": [name for name, p in parameters.items() if not p.requires_grad],
        "parts in training mode": [name or "the whole" for name, m in discriminator.named_modules() if m.training],
        "parameters": {name: p.detach().clone() for name, p in parameters.items()},
        "gradients (.grad)": {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
    }


def _variant(
    generator: Part = lambda x, x_hat, d: hinge_generator_loss(logits_with_constants(d, x_hat)),
    discriminator: Part = lambda x, x_hat, d: hinge_discriminator_loss(d(x), d(x_hat.detach())),
) -> Callable[[Tensor, Tensor, nn.Module], tuple[Any, Any]]:
    """Both losses, of which one or both can be replaced."""
    return lambda x, x_hat, d: (generator(x, x_hat, d), discriminator(x, x_hat, d))


def _frozen_copy(discriminator: nn.Module) -> nn.Module:
    return copy.deepcopy(discriminator).requires_grad_(False)


def _frozen_and(after: Callable[[nn.Module], Any]) -> Callable[[Tensor, Tensor, nn.Module], tuple[Tensor, Tensor]]:
    """The parameters switched off for the generator's loss, and ``after`` it."""

    def losses(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
        of_discriminator = hinge_discriminator_loss(discriminator(x), discriminator(x_hat.detach()))
        discriminator.requires_grad_(False)
        of_generator = hinge_generator_loss(discriminator(x_hat))
        after(discriminator)
        return of_generator, of_discriminator

    return losses


def _frozen_before_both(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    discriminator.requires_grad_(False)
    of_generator = hinge_generator_loss(discriminator(x_hat))
    return of_generator, hinge_discriminator_loss(discriminator(x), discriminator(x_hat.detach()))


def _one_pass(fake_of_generator: Callable[[Tensor], Tensor], fake_of_discriminator: Callable[[Tensor], Tensor]) -> Any:
    """The logits of x̂ from one pass, with a detach, or none, at each of the two places where they are used."""

    def losses(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
        fake = discriminator(x_hat)
        of_discriminator = hinge_discriminator_loss(discriminator(x), fake_of_discriminator(fake))
        return hinge_generator_loss(fake_of_generator(fake)), of_discriminator

    return losses


def _without_gradients(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> Tensor:
    with torch.no_grad():
        return hinge_generator_loss(discriminator(x_hat))


def _under_no_grad(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> Tensor:
    with torch.no_grad():
        fake = discriminator(x_hat)
    return hinge_discriminator_loss(discriminator(x), fake)


def _in_place(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    of_generator = hinge_generator_loss(logits_with_constants(discriminator, x_hat))
    return of_generator, hinge_discriminator_loss(discriminator(x), discriminator(x_hat.detach_()))


def _with_a_mode(mode: bool, back: bool) -> Callable[[Tensor, Tensor, nn.Module], tuple[Tensor, Tensor]]:
    def losses(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
        discriminator.train(mode)
        result = routed_losses(x, x_hat, discriminator)
        if back:
            discriminator.train(not mode)
        return result

    return losses


def _backward_inside(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    of_generator, of_discriminator = routed_losses(x, x_hat, discriminator)
    of_discriminator.backward(retain_graph=True)
    return of_generator, of_discriminator


def _zero_grad_inside(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    discriminator.zero_grad()
    return routed_losses(x, x_hat, discriminator)


def _x_wants_a_gradient(x: Tensor, x_hat: Tensor, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
    return routed_losses(x.requires_grad_(), x_hat, discriminator)


MISTAKES = (
    Mistake(
        "x_hat attached in the discriminator's loss",
        _variant(discriminator=lambda x, x_hat, d: hinge_discriminator_loss(d(x), d(x_hat))),
        "the discriminator's loss reaches x_hat: the generator would learn to be told apart. Detach x_hat there.",
    ),
    Mistake(
        "parameters in the generator's loss",
        _variant(generator=lambda x, x_hat, d: hinge_generator_loss(d(x_hat))),
        "the generator's loss reaches the discriminator's parameters: it would learn to be fooled. They have to be "
        "constants there.",
    ),
    Mistake(
        "nothing held back",
        _variant(
            lambda x, x_hat, d: hinge_generator_loss(d(x_hat)),
            lambda x, x_hat, d: hinge_discriminator_loss(d(x), d(x_hat)),
        ),
        "both losses reach both networks. In the generator's the discriminator's parameters are constants; in the "
        "discriminator's x_hat is.",
    ),
    Mistake(
        "x_hat detached in both",
        _variant(generator=lambda x, x_hat, d: hinge_generator_loss(d(x_hat.detach()))),
        "x_hat is detached in both, so that the generator learns nothing. In its loss x_hat stays, and the "
        "discriminator's parameters are constants.",
    ),
    Mistake(
        "the roles swapped",
        _variant(
            lambda x, x_hat, d: hinge_generator_loss(d(x_hat.detach())),
            lambda x, x_hat, d: hinge_discriminator_loss(*(logits_with_constants(d, one) for one in (x, x_hat))),
        ),
        "each loss moves the other network: the generator's has x_hat detached, and the discriminator's has its "
        "parameters as constants. It is to be the other way round.",
    ),
    Mistake(
        "parameters constant in both",
        _frozen_before_both,
        "the discriminator's parameters want no gradient in its own loss either (they were switched off before both). "
        "They are constants in the generator's loss alone.",
    ),
    Mistake(
        "constants in both, switched on again",
        _variant(discriminator=lambda x, x_hat, d: hinge_discriminator_loss(*(_frozen_copy(d)(i) for i in (x, x_hat)))),
        "the discriminator's loss sends a gradient to x_hat and not to the parameters: there x_hat is the constant.",
    ),
    Mistake(
        "a copy in the discriminator's loss",
        _variant(
            discriminator=lambda x, x_hat, d: hinge_discriminator_loss(
                *(copy.deepcopy(d)(i) for i in (x, x_hat.detach()))
            )
        ),
        "the discriminator gets no gradient from its own loss: that is made with a copy, without gradients (no_grad), "
        "or while its parameters are switched off. They are constants in the generator's loss alone.",
    ),
    Mistake(
        "requires_grad left off",
        _frozen_and(lambda discriminator: None),
        "the losses are right, but the discriminator's parameters no longer want a gradient (requires_grad): the next "
        "step could not train them. Leave each as it was.",
    ),
    Mistake(
        "all switched on",
        _frozen_and(lambda discriminator: discriminator.requires_grad_(True)),
        "afterwards all parameters want a gradient, also the one that was frozen before. Leave each as it was, or "
        "do not touch requires_grad at all: torch.func.functional_call takes other parameters for one call.",
    ),
    Mistake(
        "the generator's loss under no_grad",
        _variant(generator=_without_gradients),
        "the generator's loss is computed without gradients (no_grad, or its logits are detached), so that nothing "
        "reaches x_hat either. Only the parameters are to be constants.",
    ),
    Mistake(
        "the fake logits under no_grad",
        _variant(discriminator=_under_no_grad),
        "the discriminator learns from the real images alone: the logits of x_hat are computed without gradients, or "
        "detached. Detach x_hat, before it goes in.",
    ),
    Mistake(
        "the real logits detached",
        _variant(discriminator=lambda x, x_hat, d: hinge_discriminator_loss(d(x).detach(), d(x_hat.detach()))),
        "the discriminator learns from x_hat alone: the logits of x are detached, or computed without gradients.",
    ),
    Mistake(
        "real alone",
        _variant(discriminator=lambda x, x_hat, d: (1 - d(x)).relu().mean()),
        "the discriminator's loss has its term of the real images alone; that of x_hat is missing.",
    ),
    Mistake(
        "fake alone",
        _variant(discriminator=lambda x, x_hat, d: (1 + d(x_hat.detach())).relu().mean()),
        "the discriminator's loss has its term of x_hat alone; that of the real images is missing.",
    ),
    Mistake(
        "no hinge",
        _variant(discriminator=lambda x, x_hat, d: (1 - d(x)).mean() + (1 + d(x_hat.detach())).mean()),
        "max(0, ·) is missing in the discriminator's loss.",
    ),
    Mistake(
        "the discriminator's sign",
        _variant(discriminator=lambda x, x_hat, d: -hinge_discriminator_loss(d(x), d(x_hat.detach()))),
        "the discriminator's loss has the wrong sign.",
    ),
    Mistake(
        "one pass, its logits detached for the discriminator",
        _one_pass(lambda fake: fake, lambda fake: fake.detach()),
        "the logits of one pass serve both losses, detached in the discriminator's: it learns nothing from x_hat then, "
        "and the generator's loss still reaches the parameters. Two passes are needed, or parameters as constants.",
    ),
    Mistake(
        "one pass, its logits detached for the generator",
        _one_pass(lambda fake: fake.detach(), lambda fake: fake),
        "the logits of one pass serve both losses, detached in the generator's: it gets no gradient, and the "
        "discriminator's loss reaches x_hat. Two passes are needed.",
    ),
    Mistake(
        "real and fake swapped",
        _variant(discriminator=lambda x, x_hat, d: hinge_discriminator_loss(d(x_hat.detach()), d(x))),
        "x_hat is given as real and x as generated in the discriminator's loss: swap them.",
    ),
    Mistake(
        "the generator's loss of x",
        _variant(generator=lambda x, x_hat, d: hinge_generator_loss(logits_with_constants(d, x)) + 0 * x_hat.sum()),
        "the generator's loss is that of the real images; it is to be that of x_hat.",
    ),
    Mistake(
        "the generator's sign",
        _variant(generator=lambda x, x_hat, d: -hinge_generator_loss(logits_with_constants(d, x_hat))),
        "the generator's loss has the wrong sign: it wants D(x̂) to be large, and a loss is minimised.",
    ),
    Mistake(
        "hinge for the generator",
        _variant(generator=lambda x, x_hat, d: (1 - logits_with_constants(d, x_hat)).relu().mean()),
        "the generator has no hinge: its loss is −E[D(x̂)].",
    ),
    Mistake(
        "returned the other way round",
        lambda x, x_hat, d: routed_losses(x, x_hat, d)[::-1],
        "the two losses are returned the other way round: the generator's comes first here.",
    ),
    Mistake(
        "x_hat detached in place",
        _in_place,
        "detach_() cuts the caller's x_hat off from its tokenizer for good, so that the reconstruction loss would not "
        "reach it either. detach() gives a new tensor.",
    ),
    Mistake(
        "left in eval mode",
        _with_a_mode(False, back=False),
        "the discriminator is switched to eval mode. Constant parameters need no other mode: leave it as it is.",
    ),
    Mistake(
        "in eval mode, then in training mode",
        _with_a_mode(False, back=True),
        "the discriminator is switched to eval mode and then to training mode. Constant parameters need no other mode: "
        "leave it, and all of its parts, as they are.",
    ),
    Mistake(
        "put into training mode",
        _with_a_mode(True, back=False),
        "the discriminator is switched to training mode; it is the caller who decides that.",
    ),
    Mistake(
        "backward inside",
        _backward_inside,
        "a backward() inside leaves gradients in .grad; the caller makes the only one, of the sum of both losses.",
    ),
    Mistake(
        "zero_grad inside",
        _zero_grad_inside,
        "zero_grad() throws away gradients that the caller may still need (as with several batches a step). Nothing in "
        ".grad is to change here.",
    ),
    Mistake(
        "x wants a gradient",
        _x_wants_a_gradient,
        "x is made to want a gradient (requires_grad). Nobody learns from that; it only costs time and memory.",
    ),
    Mistake(
        "one loss",
        lambda x, x_hat, d: sum(routed_losses(x, x_hat, d)),
        "this is one loss, or both added up. Return two, apart: the generator's, then the discriminator's.",
    ),
    Mistake(
        "three losses",
        lambda x, x_hat, d: (*routed_losses(x, x_hat, d), 0),
        "these are three losses. The discriminator's two terms are one loss: add them up, and return two.",
    ),
    Mistake(
        "a dict",
        lambda x, x_hat, d: dict(zip(("generator", "discriminator"), routed_losses(x, x_hat, d), strict=True)),
        "this is a dict. Return a pair: the generator's loss, then the discriminator's.",
    ),
    Mistake(
        "Python numbers",
        lambda x, x_hat, d: tuple(loss.item() for loss in routed_losses(x, x_hat, d)),
        ".item() gives Python numbers, through which no gradient can flow. Return the tensors.",
    ),
)

EXERCISE = Exercise(
    name="routed_losses",
    chapter="09_sharper_pictures",
    reference=routed_losses,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 9.2, the hinge losses of a discriminator and a generator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.comparison import Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import arguments_after, leaf_arguments, routes
from companion.losses import hinge_discriminator_loss, hinge_generator_loss

DISCRIMINATOR, GENERATOR = "the discriminator's loss", "the generator's loss"
Losses = tuple[Any, Any]


def hinge_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """What the discriminator minimises, and what the generator minimises (Lim & Ye 2017; Zhang et al. 2019, eq. 4).

    Shapes:
        real, fake: logits of any shape, also of two shapes → 0-dim, 0-dim.
    """
    return hinge_discriminator_loss(real, fake), hinge_generator_loss(fake)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(92)

    def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return 2 * torch.randn(shape, generator=g, dtype=dtype)

    return [
        Case("one logit each, both undecided", (torch.tensor([0.3]), torch.tensor([-0.4]))),
        Case(
            "one logit each, both wrong by much: the real one looks generated, the generated one real",
            (torch.tensor([-2.5]), torch.tensor([3.0])),
        ),
        Case(
            "one logit each, both right by more than 1: no loss for the discriminator",
            (torch.tensor([2.5]), torch.tensor([-3.0])),
        ),
        Case("one logit an image, 5 real and 3 generated", (logits(5), logits(3))),
        Case("as many logits of generated images as of real ones", (logits(4, 1), logits(4, 1))),
        Case("a logit a patch, real 4×1×3×2 and generated 2×1×5×3", (logits(4, 1, 3, 2), logits(2, 1, 5, 3))),
        Case(
            "in float64, not contiguous in memory",
            (logits(2, 4, 3, dtype=torch.float64).mT, logits(3, 2, 5, dtype=torch.float64).mT),
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Of each loss: where its gradient goes, and its value."""
    real, fake = leaf_arguments(case)
    result = implementation(real, fake)
    if not isinstance(result, tuple | list) or len(result) != 2:
        number = f"{len(result)} things" if isinstance(result, tuple | list | dict) else "one thing"
        return {"what is returned": None if result is None else f"{number}, {kind(result)}"}
    seen: Observed = {"what is returned": "two losses"}
    for name, loss in zip((DISCRIMINATOR, GENERATOR), result, strict=True):
        by_name = routes(name, loss, {"the real logits": real, "the generated ones": fake})
        by_name.pop(f"{name} sends a gradient to")  # beyond the hinge there is none: the gradients say it
        seen |= by_name
    return seen | arguments_after((real, fake))


def _variant(
    *,
    of_real: Callable[[Tensor], Any] = lambda real: (1 - real).relu().mean(),
    of_fake: Callable[[Tensor], Any] = lambda fake: (1 + fake).relu().mean(),
    generator: Callable[[Tensor], Any] = lambda fake: -fake.mean(),
) -> Callable[[Tensor, Tensor], Losses]:
    """The right answer with one of its parts replaced."""
    return lambda real, fake: (of_real(real) + of_fake(fake), generator(fake))


def _reduced(mean: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Losses]:
    """The right answer with something else than a mean."""
    return _variant(
        of_real=lambda real: mean((1 - real).relu()),
        of_fake=lambda fake: mean((1 + fake).relu()),
        generator=lambda fake: -mean(fake),
    )


def _hinged(hinge: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Losses]:
    """The right answer with something else than max(0, ·) in the discriminator's loss."""
    return _variant(of_real=lambda real: hinge(1 - real).mean(), of_fake=lambda fake: hinge(1 + fake).mean())


def _as_one(real: Tensor, fake: Tensor) -> Losses:
    both = torch.cat([(1 - real).relu().flatten(), (1 + fake).relu().flatten()])
    return both.mean(), -fake.mean()


def _as_one_doubled(real: Tensor, fake: Tensor) -> Losses:
    return 2 * _as_one(real, fake)[0], -fake.mean()


def _cross_entropy(real: Tensor, fake: Tensor) -> Losses:
    return functional.softplus(-real).mean() + functional.softplus(fake).mean(), functional.softplus(-fake).mean()


def _of_probabilities(real: Tensor, fake: Tensor) -> Losses:
    return hinge_losses(real.sigmoid(), fake.sigmoid())


def _squared(real: Tensor, fake: Tensor) -> Losses:
    return (real - 1).square().mean() + fake.square().mean(), (fake - 1).square().mean()


MISTAKES = (
    Mistake(
        "signs swapped in the discriminator's loss",
        lambda real, fake: ((1 + real).relu().mean() + (1 - fake).relu().mean(), -fake.mean()),
        "the discriminator is rewarded the wrong way round (signs, or real and fake, are swapped): its logits are to "
        "be large for real images and small for generated ones.",
    ),
    Mistake(
        "sign of real",
        _variant(of_real=lambda real: (1 + real).relu().mean()),
        "the sign of D(x) is wrong: a real image costs nothing once its logit is *above* 1.",
    ),
    Mistake(
        "sign of fake",
        _variant(of_fake=lambda fake: (1 - fake).relu().mean()),
        "the sign of D(x̂) is wrong in the discriminator's loss: a generated image costs nothing once its logit is "
        "*below* −1.",
    ),
    Mistake(
        "the generator's sign",
        _variant(generator=lambda fake: fake.mean()),
        "the generator's loss has the wrong sign: it wants D(x̂) to be large, and a loss is minimised.",
    ),
    Mistake(
        "all signs",
        lambda real, fake: ((1 + real).relu().mean() + (1 - fake).relu().mean(), fake.mean()),
        "the signs are wrong in both losses. Large logits mean real: the discriminator wants them for x, and the "
        "generator for x̂.",
    ),
    Mistake(
        "the discriminator's loss with a minus",
        lambda real, fake: (-hinge_discriminator_loss(real, fake), -fake.mean()),
        "the discriminator's loss is negative: the minus before the min of the paper is missing, or there is one too "
        "many before the max.",
    ),
    Mistake(
        "no relu",
        _hinged(lambda margin: margin),
        "max(0, ·) is missing: without it the discriminator gains for ever from what it knows already.",
    ),
    Mistake(
        "no relu on real",
        _variant(of_real=lambda real: (1 - real).mean()),
        "max(0, ·) is missing at the real logits.",
    ),
    Mistake(
        "no relu on fake",
        _variant(of_fake=lambda fake: (1 + fake).mean()),
        "max(0, ·) is missing at the generated images' logits.",
    ),
    Mistake(
        "relu after the mean",
        _variant(of_real=lambda real: (1 - real).mean().relu(), of_fake=lambda fake: (1 + fake).mean().relu()),
        "you average first and cut off at 0 then. Each logit has a hinge of its own: max(0, ·) comes before the mean.",
    ),
    Mistake(
        "relu of the logits",
        _variant(of_real=lambda real: 1 - real.relu().mean(), of_fake=lambda fake: 1 + fake.relu().mean()),
        "the logits are cut off at 0, before the margin. max(0, ·) goes around the whole of 1 − D(x), and of 1 + D(x̂).",
    ),
    Mistake(
        "absolute value",
        _hinged(torch.abs),
        "the absolute value stands where max(0, ·) is wanted: being right by more than 1 costs something then.",
    ),
    Mistake(
        "min instead of max",
        _hinged(lambda margin: margin.clamp(max=0)),
        "this is min(0, ·) of 1 − D(x), which keeps what is right and drops what is wrong. Wanted is max(0, ·).",
    ),
    Mistake(
        "squared hinge",
        _hinged(lambda margin: margin.relu().square()),
        "the hinge is squared; wanted is max(0, ·) itself.",
    ),
    Mistake(
        "smooth hinge",
        _hinged(functional.softplus),
        "softplus is a smooth neighbour of max(0, ·), and never 0. Wanted is max(0, ·).",
    ),
    Mistake(
        "leaky hinge",
        _hinged(lambda margin: functional.leaky_relu(margin, 0.2)),
        "leaky_relu lets something through below 0. Wanted is max(0, ·).",
    ),
    Mistake(
        "margin 0",
        _variant(of_real=lambda real: (-real).relu().mean(), of_fake=lambda fake: fake.relu().mean()),
        "the margin of 1 is missing: a logit that is right by a hair would cost nothing already.",
    ),
    Mistake(
        "half",
        lambda real, fake: (hinge_discriminator_loss(real, fake) / 2, -fake.mean()),
        "there is a factor ½ too many in the discriminator's loss (some codes have it): the two means are added.",
    ),
    Mistake(
        "half in both",
        lambda real, fake: tuple(loss / 2 for loss in hinge_losses(real, fake)),
        "there is a factor ½ too many in both losses.",
    ),
    Mistake(
        "one mean over all logits",
        _as_one,
        "real and generated logits are put together before the mean. Each kind has a mean of its own, and the two are "
        "added.",
    ),
    Mistake(
        "one mean over all logits, doubled",
        _as_one_doubled,
        "real and generated logits share one mean, so that the larger batch counts for more. Each kind has its own.",
    ),
    Mistake(
        "hinge for the generator",
        _variant(generator=lambda fake: (1 - fake).relu().mean()),
        "the generator has no hinge: −E[D(x̂)] always pulls, also where the discriminator is fooled by more than 1.",
    ),
    Mistake(
        "the discriminator's hinge for the generator",
        _variant(generator=lambda fake: -(1 + fake).relu().mean()),
        "the generator's loss is the discriminator's term with a minus. It has no max(0, ·) and no margin: −E[D(x̂)].",
    ),
    Mistake(
        "softplus for the generator",
        _variant(generator=lambda fake: functional.softplus(-fake).mean()),
        "the generator's loss is that of the cross-entropy, −E[log σ(D(x̂))]. Beside hinges it is −E[D(x̂)].",
    ),
    Mistake(
        "relu for the generator",
        _variant(generator=lambda fake: (-fake).relu().mean()),
        "the generator's loss is cut off at 0. It has no max(0, ·).",
    ),
    Mistake(
        "margin for the generator",
        _variant(generator=lambda fake: 1 - fake.mean()),
        "there is a margin of 1 in the generator's loss; it is −E[D(x̂)] alone.",
    ),
    Mistake(
        "the generator's loss of real images",
        lambda real, fake: (hinge_discriminator_loss(real, fake), -real.mean()),
        "the generator's loss is taken from the real logits. It can only change the generated ones.",
    ),
    Mistake(
        "the generator against both",
        lambda real, fake: (hinge_discriminator_loss(real, fake), real.mean() - fake.mean()),
        "the real logits are in the generator's loss too. It is −E[D(x̂)] alone.",
    ),
    Mistake(
        "the generator's loss is the discriminator's with a minus",
        lambda real, fake: (hinge_discriminator_loss(real, fake), -hinge_discriminator_loss(real, fake)),
        "the generator's loss is the discriminator's with a minus, as in a zero-sum game. With hinges it is −E[D(x̂)].",
    ),
    Mistake(
        "returned the other way round",
        lambda real, fake: hinge_losses(real, fake)[::-1],
        "the two losses are returned the other way round: the discriminator's comes first.",
    ),
    Mistake(
        "real alone",
        lambda real, fake: ((1 - real).relu().mean(), -fake.mean()),
        "the discriminator's loss has its term of the real images alone; that of the generated ones is missing.",
    ),
    Mistake(
        "fake alone",
        lambda real, fake: ((1 + fake).relu().mean(), -fake.mean()),
        "the discriminator's loss has its term of the generated images alone; that of the real ones is missing.",
    ),
    Mistake(
        "difference of the terms",
        lambda real, fake: ((1 - real).relu().mean() - (1 + fake).relu().mean(), -fake.mean()),
        "the two terms of the discriminator's loss are subtracted; add them.",
    ),
    Mistake(
        "fake detached",
        lambda real, fake: (hinge_discriminator_loss(real, fake.detach()), -fake.mean()),
        "the generated logits are detached, so that the discriminator learns nothing from them. What has to be "
        "detached is x̂, before it enters the discriminator, not the logits that come out.",
    ),
    Mistake(
        "real detached",
        lambda real, fake: (hinge_discriminator_loss(real.detach(), fake), -fake.mean()),
        "the real logits are detached, so that the discriminator learns nothing from them.",
    ),
    Mistake(
        "the generator's logits detached",
        _variant(generator=lambda fake: -fake.mean().detach()),
        "the generator's loss is detached from its logits, so that the generator learns nothing.",
    ),
    Mistake(
        "sum",
        _reduced(torch.sum),
        "these are sums. A mean does not grow with the number of images and patches: .mean().",
    ),
    Mistake(
        "sum in the discriminator's loss",
        lambda real, fake: ((1 - real).relu().sum() + (1 + fake).relu().sum(), -fake.mean()),
        "the discriminator's loss is made of sums. A mean does not grow with the number of logits: .mean().",
    ),
    Mistake(
        "sum in the generator's loss",
        _variant(generator=lambda fake: -fake.sum()),
        "the generator's loss is a sum. A mean does not grow with the number of images and patches: .mean().",
    ),
    Mistake(
        "summed over patches",
        _reduced(lambda value: value.flatten(1).sum(1).mean() if value.ndim > 1 else value.mean()),
        "the patches of an image are summed, and the images averaged. Average over all logits.",
    ),
    Mistake(
        "no mean",
        _variant(
            of_real=lambda real: (1 - real).relu().mean(),
            of_fake=lambda fake: (1 + fake).relu(),
            generator=lambda fake: -fake,
        ),
        "a loss is one number: the mean over the logits is missing.",
    ),
    Mistake(
        "no mean for the generator",
        _variant(generator=lambda fake: -fake),
        "the generator's loss is one number: the mean over the logits is missing.",
    ),
    Mistake(
        "cross-entropy",
        _cross_entropy,
        "this is the cross-entropy of “real or generated” (softplus, or a sigmoid and its logarithm). The hinge losses "
        "have max(0, ·) instead, and the generator's is linear.",
    ),
    Mistake(
        "cross-entropy for the discriminator",
        lambda real, fake: (_cross_entropy(real, fake)[0], -fake.mean()),
        "the discriminator's loss is the cross-entropy of “real or generated”. Wanted are hinges: max(0, 1 − D(x)) and "
        "max(0, 1 + D(x̂)).",
    ),
    Mistake(
        "of probabilities",
        _of_probabilities,
        "the logits go through a sigmoid first. The hinge takes the logits as they are.",
    ),
    Mistake(
        "least squares",
        _squared,
        "these are the losses of another GAN, which pulls logits to 1 and 0 by squares. Wanted are hinges.",
    ),
    Mistake(
        "Wasserstein",
        lambda real, fake: (fake.mean() - real.mean(), -fake.mean()),
        "the discriminator's loss has neither margin nor max(0, ·): this is that of the Wasserstein GAN.",
    ),
    Mistake(
        "one loss",
        lambda real, fake: sum(hinge_losses(real, fake)),
        "this is one loss, or both added up. Return two, apart: the discriminator's, then the generator's.",
    ),
    Mistake(
        "three losses",
        lambda real, fake: ((1 - real).relu().mean(), (1 + fake).relu().mean(), -fake.mean()),
        "these are three losses: the discriminator's two terms are to be added up, so that two are returned.",
    ),
    Mistake(
        "the two terms",
        lambda real, fake: ((1 - real).relu().mean(), (1 + fake).relu().mean()),
        "these are the two terms of the discriminator's loss. Add them up, and return the generator's loss too.",
    ),
    Mistake(
        "a dict",
        lambda real, fake: dict(zip(("discriminator", "generator"), hinge_losses(real, fake), strict=True)),
        "this is a dict. Return a pair: the discriminator's loss, then the generator's.",
    ),
    Mistake(
        "Python numbers",
        lambda real, fake: tuple(loss.item() for loss in hinge_losses(real, fake)),
        ".item() gives Python numbers, through which no gradient can flow. Return the tensors.",
    ),
)

EXERCISE = Exercise(
    name="hinge_losses",
    chapter="09_sharper_pictures",
    reference=hinge_losses,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

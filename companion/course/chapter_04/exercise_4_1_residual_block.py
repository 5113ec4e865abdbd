"""Exercise 4.1, the residual block: the input plus what the branch makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from companion.backbones import ResidualBlock
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import module_call


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(1)
    x = {0: "x"}
    return [
        Case("two images, three channels", (torch.randn(2, 3, 5, 5, generator=g),), {"channels": 3}, x),
        Case("one channel, 1 × 4 pixels", (torch.randn(1, 1, 1, 4, generator=g),), {"channels": 1}, x, seed=1),
        Case(
            "images that are not contiguous in memory",
            (torch.randn(2, 4, 6, 3, generator=g).transpose(2, 3),),
            {"channels": 4},
            x,
            seed=2,
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As for every class, and then: is the input as it was?"""
    seen = module_call(ResidualBlock)(implementation, replace(case, gradient_of={}))
    torch.manual_seed(case.seed)
    module = implementation(**case.build)
    given = case.arguments[0].clone()
    with torch.no_grad():
        module(given)
    seen["the input after the call"] = given
    return seen | module_call(ResidualBlock)(implementation, case)


def _variant(forward: Callable[[nn.Sequential, Tensor], Tensor]) -> type[nn.Module]:
    """A block with another forward pass; ``forward`` gets the branch and the input."""

    class Block(ResidualBlock):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self.branch, x)

    return Block


MISTAKES = (
    Mistake(
        "no skip",
        _variant(lambda branch, x: branch(x)),
        "the input itself is not in the result: the block is x plus what the branch makes of it.",
    ),
    Mistake(
        "relu(x) on the skip path",
        _variant(lambda branch, x: x.relu() + branch(x)),
        "relu(x) takes the place of x in the sum. The skip path needs x as it came: keep x, and let the branch make "
        "its own relu(x).",
    ),
    Mistake(
        "written into the input",  # torch refuses it for an x that wants a gradient, and with these words only
        _variant(lambda branch, x: torch.relu_(x) + branch(x)),
        "your code writes into its input: x += …, or a ReLU with inplace=True, changes the caller's x itself. Give a "
        "new tensor back: x + ….",
    ),
    Mistake(
        "skip after ReLU",
        _variant(lambda branch, x: x.relu() + branch[1:](x)),
        "the ReLU belongs to the branch only: x + …, not relu(x) + …, and the branch begins with its own ReLU.",
    ),
    Mistake(
        "ReLU of the sum",
        _variant(lambda branch, x: (x + branch(x)).relu()),
        "there is a ReLU after the sum. Then no block can hand on a negative number; the sum is the result.",
    ),
    Mistake(
        "minus",
        _variant(lambda branch, x: x - branch(x)),
        "the branch is subtracted; it is to be added.",
    ),
    Mistake(
        "first ReLU left out",
        _variant(lambda branch, x: x + branch[1:](x)),
        "the first ReLU of the branch is missing: the 3 × 3 convolution gets relu(x).",
    ),
    Mistake(
        "second ReLU left out",
        _variant(lambda branch, x: x + branch[3](branch[1](x.relu()))),
        "the ReLU between the two convolutions is missing.",
    ),
    Mistake(
        "only one convolution",
        _variant(lambda branch, x: x + branch[:2](x)),
        "the branch stops before its 1 × 1 convolution: all four of its layers are to run, self.branch(x).",
        also=(_variant(lambda branch, x: x + branch[:3](x)),),
    ),
    Mistake(
        "branch twice",
        _variant(lambda branch, x: x + branch(branch(x))),
        "the branch is applied twice.",
    ),
    Mistake(
        "skip detached",
        _variant(lambda branch, x: x.detach() + branch(x)),
        "the value is right, but the skip path is cut off from the gradient: it is there to carry it. Remove the "
        "detach.",
    ),
    Mistake(
        "branch detached",
        _variant(lambda branch, x: x + branch(x.detach())),
        "the value is right, but no gradient passes through the branch to x. Remove the detach.",
    ),
    Mistake(
        "averaged",
        _variant(lambda branch, x: (x + branch(x)) / 2),
        "the sum is divided (by 2, or √2). It is to be the sum as it is.",
        also=(_variant(lambda branch, x: (x + branch(x)) / 2**0.5),),
    ),
    Mistake(
        "a tenth of the branch",
        _variant(lambda branch, x: x + 0.1 * branch(x)),
        "the branch is multiplied by a factor such as 0.1 before it is added. The block adds it as it is.",
        also=(_variant(lambda branch, x: x + 0.5 * branch(x)),),
    ),
    Mistake("sign of x", _variant(lambda branch, x: branch(x) - x), "x is subtracted; it is to be added."),
    Mistake(
        "two blocks",
        _variant(lambda branch, x: x + branch(x) + branch(x + branch(x))),
        "the branch runs a second time, on the sum: these are two blocks in a row.",
    ),
    Mistake("x twice", _variant(lambda branch, x: 2 * x + branch(x)), "x is in the sum twice."),
    Mistake(
        "branch cut off",
        _variant(lambda branch, x: x + branch(x).detach()),
        "the value is right, but the branch's weights get no gradient (detach or no_grad around it).",
    ),
    Mistake(
        "no ReLU",
        _variant(lambda branch, x: x + branch[3](branch[1](x))),
        "both ReLUs of the branch are missing: self.branch(x) runs all four layers.",
    ),
    Mistake(
        "3 × 3 left out",
        _variant(lambda branch, x: x + branch[3](x.relu())),
        "the 3 × 3 convolution is missing: self.branch(x) runs all four layers.",
    ),
    Mistake("product", _variant(lambda branch, x: x * branch(x)), "the two are multiplied; they are to be added."),
    Mistake(
        "side by side",
        _variant(lambda branch, x: torch.cat([x, branch(x)], 1)),
        "torch.cat puts the channels side by side. Add them, so that the number of channels stays.",
    ),
    Mistake(
        "ReLU after the branch",
        _variant(lambda branch, x: x + branch(x).relu()),
        "there is a ReLU after the branch, which could then only ever raise x. The 1 × 1 convolution is the last.",
    ),
    Mistake(
        "size of x",
        _variant(lambda branch, x: x.abs() + branch(x)),
        "x enters by its absolute value. The skip path hands it on as it came.",
    ),
    Mistake(
        "height and width exchanged",
        _variant(lambda branch, x: x + branch(x.mT).mT),
        "height and width are exchanged on one of the two ways.",
        also=(_variant(lambda branch, x: x.mT + branch(x)),),
    ),
    Mistake(
        "normalised",
        _variant(lambda branch, x: nn.functional.layer_norm(x + branch(x), x.shape[1:])),
        "the sum is normalised. This block has no normalisation: the sum is the result.",
    ),
    Mistake(
        "gated",
        _variant(lambda branch, x: x + x.sigmoid() * branch(x)),
        "the branch is multiplied by something that depends on x. It is added as it is.",
    ),
    Mistake(
        "layers in another order",
        _variant(lambda branch, x: x + nn.Sequential(*reversed(branch))(x)),
        "the layers of the branch run in another order: self.branch(x) keeps theirs.",
    ),
)

EXERCISE = Exercise(
    name="ResidualBlock",
    chapter="04_vq_vae",
    reference=ResidualBlock,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

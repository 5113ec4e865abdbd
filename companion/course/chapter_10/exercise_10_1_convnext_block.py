"""Exercise 10.1, the ConvNeXt block: a depthwise convolution and a gated MLP, each with a norm and a skip."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.backbones import ConvNeXtBlock, SwiGLU
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import module_call


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(101)
    x = {0: "x"}
    return [
        Case("two pictures of 5 channels, 5 × 5 pixels", (torch.randn(2, 5, 5, 5, generator=g),), {"channels": 5}, x),
        Case("three channels, 4 × 9 pixels", (torch.randn(2, 3, 4, 9, generator=g),), {"channels": 3}, x, seed=1),
        Case("one channel, 8 × 1 pixels", (torch.randn(3, 1, 8, 1, generator=g),), {"channels": 1}, x, seed=2),
        Case(
            "pictures that are not contiguous in memory",
            (torch.randn(2, 4, 6, 3, generator=g).transpose(2, 3),),
            {"channels": 4},
            x,
            seed=3,
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As for every class, and then: is the input as it was?"""
    seen = module_call(ConvNeXtBlock)(implementation, replace(case, gradient_of={}))
    torch.manual_seed(case.seed)
    module = implementation(**case.build)
    given = case.arguments[0].clone()
    with torch.no_grad():
        module(given)
    seen["the input after the call"] = given
    return seen | module_call(ConvNeXtBlock)(implementation, case)


def _variant(forward: Callable[[Any, Tensor], Any]) -> type[nn.Module]:
    """The chapter's block with a forward pass; ``forward`` gets the block and the input."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(channels), nn.RMSNorm(channels)
            self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.mlp = SwiGLU(channels)

        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    return Block


def _over_channels(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of the last axis, on axis 1."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


def _around(block: Any, x: Tensor) -> Tensor:
    """What the first branch gives."""
    return block.depthwise(_over_channels(block.norm1, x))


def _at_each(block: Any, x: Tensor) -> Tensor:
    """What the second branch gives."""
    return _over_channels(lambda moved: block.mlp(block.norm2(moved)), x)


def _first(block: Any, x: Tensor) -> Tensor:
    return x + _around(block, x)


def _second(block: Any, x: Tensor) -> Tensor:
    return x + _at_each(block, x)


def _norms_exchanged(block: Any, x: Tensor) -> Tensor:
    x = x + block.depthwise(_over_channels(block.norm2, x))
    return x + _over_channels(lambda moved: block.mlp(block.norm1(moved)), x)


def _norms_after_sums(block: Any, x: Tensor) -> Tensor:
    x = _over_channels(block.norm1, x + block.depthwise(x))
    return _over_channels(block.norm2, x + _over_channels(block.mlp, x))


def _norms_after_branches(block: Any, x: Tensor) -> Tensor:
    x = x + _over_channels(block.norm1, block.depthwise(x))
    return x + _over_channels(lambda moved: block.norm2(block.mlp(moved)), x)


def _skips_from_norms(block: Any, x: Tensor) -> Tensor:
    x = _over_channels(block.norm1, x)
    x = _over_channels(block.norm2, x + block.depthwise(x))
    return x + _over_channels(block.mlp, x)


def _as_in_the_paper(block: Any, x: Tensor) -> Tensor:
    """One branch: depthwise convolution, norm, MLP."""
    return x + _over_channels(lambda moved: block.mlp(block.norm2(moved)), block.depthwise(x))


def _mlp_nested(block: Any, x: Tensor) -> Tensor:
    """The sum of the MLP begins with the first branch alone."""
    branch = _around(block, x)
    return x + branch + _at_each(block, branch)


def _written_over(block: Any, x: Tensor) -> Tensor:
    x += _around(block, x)
    return _second(block, x)


MISTAKES = (
    Mistake(
        "no skip around the convolution",
        _variant(lambda b, x: _second(b, _around(b, x))),
        "the convolution's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skip around the SwiGLU",
        _variant(lambda b, x: _at_each(b, _first(b, x))),
        "the SwiGLU's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skips",
        _variant(lambda b, x: _at_each(b, _around(b, x))),
        "both skips are missing: x is in neither sum.",
    ),
    Mistake(
        "first norm forgotten",
        _variant(lambda b, x: _second(b, x + b.depthwise(x))),
        "the convolution reads x as it is; it is to read norm1(x).",
    ),
    Mistake(
        "second norm forgotten",
        _variant(lambda b, x: _first(b, x) + _over_channels(b.mlp, _first(b, x))),
        "the SwiGLU reads x as it is; it is to read norm2(x).",
    ),
    Mistake(
        "norms exchanged",
        _variant(_norms_exchanged),
        "the two norms are exchanged: norm1 goes before the convolution, norm2 before the SwiGLU.",
    ),
    Mistake(
        "one norm for both",
        _variant(lambda b, x: _first(b, x) + _over_channels(lambda m: b.mlp(b.norm1(m)), _first(b, x))),
        "norm1 is used twice; the SwiGLU has a norm of its own, norm2.",
    ),
    Mistake(
        "side by side",
        _variant(lambda b, x: x + _around(b, x) + _at_each(b, x)),
        "both branches read the block's input. The second reads the sum of x and the first.",
    ),
    Mistake(
        "first sum forgotten at the end",
        _variant(lambda b, x: x + _at_each(b, _first(b, x))),
        "the second sum begins again with the block's input, so that the convolution only reaches the SwiGLU. Add to "
        "the *first sum*.",
    ),
    Mistake(
        "SwiGLU of the branch",
        _variant(_mlp_nested),
        "the second norm reads the convolution's result alone. It reads the first sum, x included.",
    ),
    Mistake(
        "SwiGLU first",
        _variant(lambda b, x: _first(b, _second(b, x))),
        "the SwiGLU comes first. Look around, then think: the convolution, then the SwiGLU.",
    ),
    Mistake(
        "convolution only",
        _variant(_first),
        "the second line is missing: x + SwiGLU(norm2(x)).",
    ),
    Mistake(
        "SwiGLU only",
        _variant(_second),
        "the first line is missing: x + depthwise(norm1(x)).",
    ),
    Mistake(
        "norms after the sums",
        _variant(_norms_after_sums),
        "the norms stand after the sums. They come first in their branch, so that the sums have a way through all "
        "blocks that nothing touches.",
    ),
    Mistake(
        "norms after the layers",
        _variant(_norms_after_branches),
        "each norm stands after its layer. It comes before it: depthwise(norm1(x)), SwiGLU(norm2(x)).",
    ),
    Mistake(
        "skips from the norms",
        _variant(_skips_from_norms),
        "the normalised x is what you add to. Add to x itself: only the branch reads the norm.",
    ),
    Mistake(
        "one branch",
        _variant(_as_in_the_paper),
        "this is one branch, with the norm between convolution and MLP, as in the paper. The block here has two, each "
        "with a norm and a skip of its own.",
    ),
    Mistake(
        "nothing moved",
        _variant(lambda b, x: (y := x + b.depthwise(b.norm1(x))) + b.mlp(b.norm2(y))),
        "norms and SwiGLU work on the last axis, and that is the width of the picture. Move axis 1, the channels, to "
        "the end and back.",
    ),
    Mistake(
        "first norm over the width",
        _variant(lambda b, x: _second(b, x + b.depthwise(b.norm1(x)))),
        "norm1 works on the last axis, and that is the width of the picture. Move axis 1, the channels, to the end and "
        "back.",
    ),
    Mistake(
        "SwiGLU over the width",
        _variant(lambda b, x: _first(b, x) + b.mlp(b.norm2(_first(b, x)))),
        "in the second line norm and SwiGLU work on the last axis, and that is the width of the picture. Move axis 1, "
        "the channels, to the end and back.",
    ),
    Mistake(
        "convolution of moved channels",
        _variant(lambda b, x: _second(b, x + b.depthwise(b.norm1(x.movedim(1, -1))).movedim(-1, 1))),
        "the convolution gets the channels last. It wants them in axis 1: move them back *before* it.",
    ),
    Mistake(
        "first moved on",
        _variant(lambda b, x: _second(b, x + b.depthwise(b.norm1(x.movedim(1, -1)).movedim(1, -1)))),
        "before the convolution the axes are moved on, not back: movedim(-1, 1) undoes movedim(1, -1).",
    ),
    Mistake(
        "second moved on",
        _variant(lambda b, x: (y := _first(b, x)) + b.mlp(b.norm2(y.movedim(1, -1))).movedim(1, -1)),
        "after the SwiGLU the axes are moved on, not back: movedim(-1, 1) undoes movedim(1, -1).",
    ),
    Mistake(
        "second not moved back",
        _variant(lambda b, x: (y := _first(b, x)) + b.mlp(b.norm2(y.movedim(1, -1)))),
        "after the SwiGLU the channels are still last, and added to a picture that has them in axis 1. Move them back.",
    ),
    Mistake(
        "rows and columns exchanged",
        _variant(lambda b, x: (y := _first(b, x)) + b.mlp(b.norm2(y.transpose(1, 3))).movedim(-1, 1)),
        "transpose(1, 3) exchanges channels and columns, and movedim(-1, 1) does not undo that. Use one of the two for "
        "both ways.",
    ),
    Mistake(
        "subtracted",
        _variant(lambda b, x: (y := x - _around(b, x)) - _at_each(b, y)),
        "the branches are subtracted; they are to be added.",
    ),
    Mistake(
        "GELU after the convolution",
        _variant(lambda b, x: _second(b, x + functional.gelu(_around(b, x)))),
        "there is an activation after the convolution. The only one in this block is inside SwiGLU.",
    ),
    Mistake(
        "convolution twice",
        _variant(lambda b, x: _second(b, _first(b, _first(b, x)))),
        "the first line stands twice.",
    ),
    Mistake(
        "scaled",
        _variant(lambda b, x: (y := x + 0.1 * _around(b, x)) + 0.1 * _at_each(b, y)),
        "the branches are multiplied by a small number, as in chapter 04's demonstration. Add them as they are.",
    ),
    Mistake(
        "first skip detached",
        _variant(lambda b, x: _second(b, x.detach() + _around(b, x))),
        "the value is right, but the skip is cut off from the gradient: it is there to carry it. Remove the detach.",
    ),
    Mistake(
        "written over",
        _variant(_written_over),
        "your code writes into its input: x += … changes the caller's x itself. Write x = x + ….",
    ),
)

EXERCISE = Exercise(
    name="ConvNeXtBlock",
    chapter="10_backbones",
    reference=ConvNeXtBlock,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 10.1, the ConvNeXt block: a depthwise convolution and a gated MLP, each with a norm and a skip."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from companion.backbones import ConvNeXtBlock
from companion.course.chapter_10._blocks import (
    around,
    as_in_the_paper,
    at_each,
    by_axes,
    channels_last,
    first_sum,
    lines_with,
    mlp_nested,
    norms_after_branches,
    norms_after_sums,
    norms_exchanged,
    over_channels,
    reshaped,
    rms,
    second_sum,
    skips_from_norms,
    variant,
    with_norms,
    written_over,
)
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
        Case(
            "two pictures in float64", (torch.randn(2, 4, 3, 5, generator=g, dtype=torch.float64),), {"channels": 4}, x
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As for every class, with weights of the input's dtype, and then: is the input as it was?"""
    given = case.arguments[0].clone()

    def built(**build: int) -> Any:
        return implementation(**build).to(given.dtype)

    seen = module_call(ConvNeXtBlock)(built, replace(case, gradient_of={}))
    torch.manual_seed(case.seed)
    module = built(**case.build)
    with torch.no_grad():
        module(given)
    seen["the input after the call"] = given
    return seen | module_call(ConvNeXtBlock)(built, case)


MISTAKES = (
    Mistake(
        "no skip around the convolution",
        variant(lambda b, x: second_sum(b, around(b, x))),
        "the convolution's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skip around the SwiGLU",
        variant(lambda b, x: at_each(b, first_sum(b, x))),
        "the SwiGLU's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skips",
        variant(lambda b, x: at_each(b, around(b, x))),
        "both skips are missing: x is in neither sum.",
    ),
    Mistake(
        "first norm forgotten",
        variant(lambda b, x: second_sum(b, x + b.depthwise(x))),
        "the convolution reads x as it is; it is to read norm1(x).",
    ),
    Mistake(
        "second norm forgotten",
        variant(lambda b, x: first_sum(b, x) + over_channels(b.mlp, first_sum(b, x))),
        "the SwiGLU reads x as it is; it is to read norm2(x).",
    ),
    Mistake(
        "no norms",
        lines_with(lambda b, x: b.depthwise(x), lambda b, x: over_channels(b.mlp, x)),
        "both norms are missing: norm1 before the convolution, norm2 before the SwiGLU.",
    ),
    Mistake(
        "norms exchanged",
        variant(norms_exchanged),
        "the two norms are exchanged: norm1 goes before the convolution, norm2 before the SwiGLU.",
    ),
    Mistake(
        "one norm for both",
        variant(lambda b, x: first_sum(b, x) + over_channels(lambda m: b.mlp(b.norm1(m)), first_sum(b, x))),
        "one norm is used twice: norm1 belongs before the convolution, norm2 before the SwiGLU.",
        (lines_with(lambda b, x: b.depthwise(over_channels(b.norm2, x))),),
    ),
    Mistake(
        "both norms before the SwiGLU",
        lines_with(second=lambda b, x: over_channels(lambda moved: b.mlp(b.norm2(b.norm1(moved))), x)),
        "norm1 stands before norm2 once more. The SwiGLU reads norm2(x).",
    ),
    Mistake(
        "norms by hand, with an ε",
        with_norms(lambda x, weight: x / rms(x, 1e-5) * weight),
        "the norm is written by hand, with another ε than that of nn.RMSNorm. Use self.norm1 and self.norm2.",
        (
            with_norms(lambda x, weight: x / rms(x, 1e-6) * weight),
            with_norms(lambda x, weight: x / rms(x, 1e-8) * weight),
            with_norms(lambda x, weight: x / (rms(x) + 1e-6) * weight),
        ),
    ),
    Mistake(
        "another norm",
        with_norms(lambda x, weight: x / rms(x)),
        "this is another norm: the weights of norm1 and norm2 are missing, or it is normalize or layer_norm. Call "
        "self.norm1 and self.norm2.",
        (
            lines_with(lambda b, x: b.depthwise(functional.normalize(x, dim=1) * b.norm1.weight[:, None, None])),
            with_norms(lambda x, weight: functional.normalize(x, dim=1) * weight),
            with_norms(lambda x, weight: over_channels(lambda v: functional.layer_norm(v, v.shape[-1:]), x) * weight),
        ),
    ),
    Mistake(
        "side by side",
        variant(lambda b, x: x + around(b, x) + at_each(b, x)),
        "both branches read the block's input. The second reads the sum of x and the first.",
    ),
    Mistake(
        "first sum forgotten at the end",
        variant(lambda b, x: x + at_each(b, first_sum(b, x))),
        "the second sum begins again with the block's input, or with the convolution's result alone. Add to the *first "
        "sum*, which has both.",
        (variant(lambda b, x: around(b, x) + at_each(b, first_sum(b, x))),),
    ),
    Mistake(
        "SwiGLU of the branch",
        variant(mlp_nested),
        "the second norm reads the convolution's result alone. It reads the first sum, x included.",
        (variant(lambda b, x: x + at_each(b, around(b, x))),),
    ),
    Mistake(
        "SwiGLU first",
        variant(lambda b, x: first_sum(b, second_sum(b, x))),
        "the SwiGLU comes first. Look around, then think: the convolution, then the SwiGLU.",
    ),
    Mistake(
        "convolution only",
        variant(first_sum),
        "the second line is missing: x + SwiGLU(norm2(x)).",
    ),
    Mistake(
        "nothing done",
        variant(lambda b, x: x),
        "the block gives its input back as it is.",
    ),
    Mistake(
        "SwiGLU only",
        variant(second_sum),
        "the first line is missing: x + depthwise(norm1(x)).",
    ),
    Mistake(
        "norms after the sums",
        variant(norms_after_sums),
        "the norms stand after the sums. They come first in their branch, so that the sums have a way through all "
        "blocks that nothing touches.",
    ),
    Mistake(
        "norms after the layers",
        variant(norms_after_branches),
        "each norm stands after its layer. It comes before it: depthwise(norm1(x)), SwiGLU(norm2(x)).",
    ),
    Mistake(
        "skips from the norms",
        variant(skips_from_norms),
        "the normalised x is what you add to. Add to x itself: only the branch reads the norm.",
        (
            variant(lambda b, x: (m := over_channels(b.norm2, first_sum(b, x))) + over_channels(b.mlp, m)),
            variant(lambda b, x: second_sum(b, (n := over_channels(b.norm1, x)) + b.depthwise(n))),
            variant(
                lambda b, x: (
                    (m := over_channels(b.norm2, (n := over_channels(b.norm1, x)) + b.depthwise(n)))
                    + over_channels(b.mlp, m)
                )
            ),
        ),
    ),
    Mistake(
        "one branch",
        variant(as_in_the_paper),
        "this is one branch, with the norm between convolution and MLP, as in the paper. The block here has two, each "
        "with a norm and a skip of its own.",
    ),
    Mistake(
        "nothing moved",
        variant(lambda b, x: (y := x + b.depthwise(b.norm1(x))) + b.mlp(b.norm2(y))),
        "norms and SwiGLU work on the last axis, and that is the width of the picture. Move axis 1, the channels, to "
        "the end and back.",
    ),
    Mistake(
        "first norm over the width",
        variant(lambda b, x: second_sum(b, x + b.depthwise(b.norm1(x)))),
        "norm1 works on the last axis, and that is the width of the picture. Move axis 1, the channels, to the end and "
        "back.",
    ),
    Mistake(
        "SwiGLU over the width",
        variant(lambda b, x: first_sum(b, x) + b.mlp(b.norm2(first_sum(b, x)))),
        "in the second line norm and SwiGLU work on the last axis, and that is the width of the picture. Move axis 1, "
        "the channels, to the end and back.",
    ),
    Mistake(
        "convolution of moved channels",
        variant(lambda b, x: second_sum(b, x + b.depthwise(b.norm1(x.movedim(1, -1))).movedim(-1, 1))),
        "the convolution gets the channels last. It wants them in axis 1: move them back *before* it.",
    ),
    Mistake(
        "first moved on",
        variant(lambda b, x: second_sum(b, x + b.depthwise(b.norm1(x.movedim(1, -1)).movedim(1, -1)))),
        "before the convolution the axes are moved on, not back: movedim(-1, 1) undoes movedim(1, -1).",
    ),
    Mistake(
        "both moved on",
        by_axes(channels_last, lambda v: v.movedim(1, -1))[0],
        "in both lines the axes are moved on, not back: movedim(-1, 1) undoes movedim(1, -1).",
    ),
    Mistake(
        "first not moved back",
        by_axes(channels_last, lambda v: v)[1],
        "the convolution gets the channels last. Move them back to axis 1 before it.",
        by_axes(channels_last, lambda v: v)[:1],
    ),
    Mistake(
        "second moved on",
        variant(lambda b, x: (y := first_sum(b, x)) + b.mlp(b.norm2(y.movedim(1, -1))).movedim(1, -1)),
        "after the SwiGLU the axes are moved on, not back: movedim(-1, 1) undoes movedim(1, -1).",
    ),
    Mistake(
        "second not moved back",
        variant(lambda b, x: (y := first_sum(b, x)) + b.mlp(b.norm2(y.movedim(1, -1)))),
        "after the SwiGLU the channels are still last, and added to a picture that has them in axis 1. Move them back.",
    ),
    Mistake(
        "given back with the channels last",
        variant(lambda b, x: second_sum(b, first_sum(b, x)).movedim(1, -1)),
        "the result has its channels last. They belong in axis 1: movedim(-1, 1) at the end.",
    ),
    Mistake(
        "SwiGLU over the width, norm over the channels",
        lines_with(second=lambda b, x: b.mlp(over_channels(b.norm2, x))),
        "norm2 gets the channels last, but the SwiGLU does not: move them back after it, not between the two.",
    ),
    Mistake(
        "rows and columns exchanged",
        by_axes(lambda x: x.transpose(1, 3), lambda v: v.movedim(-1, 1))[2],
        "rows and columns are exchanged on the way back: movedim(-1, 1), or permute(0, 3, 1, 2), undoes movedim(1, "
        "-1), and transpose(1, 3) undoes transpose(1, 3). Do not mix them.",
        (
            *by_axes(lambda x: x.transpose(1, 3), lambda v: v.movedim(-1, 1))[:2],
            *by_axes(channels_last, lambda v: v.transpose(1, 3)),
        ),
    ),
    Mistake(
        "reshaped",
        by_axes(reshaped)[0],
        "reshape moves no numbers: it cuts the same row of numbers into other pieces. Move the axis: movedim(1, -1), "
        "and back with movedim(-1, 1).",
        (*by_axes(reshaped)[1:], *by_axes(channels_last)),
    ),
    Mistake(
        "subtracted",
        variant(lambda b, x: (y := x - around(b, x)) - at_each(b, y)),
        "a branch is subtracted; both are to be added.",
        (variant(lambda b, x: second_sum(b, x - around(b, x))),),
    ),
    Mistake(
        "GELU after the convolution",
        variant(lambda b, x: second_sum(b, x + functional.gelu(around(b, x)))),
        "there is an activation after a branch. The only one in this block is inside SwiGLU.",
        (
            lines_with(lambda b, x: functional.silu(around(b, x))),
            lines_with(lambda b, x: functional.relu(around(b, x))),
            lines_with(second=lambda b, x: functional.gelu(at_each(b, x))),
        ),
    ),
    Mistake(
        "convolution twice",
        variant(lambda b, x: second_sum(b, first_sum(b, first_sum(b, x)))),
        "the first line stands twice.",
    ),
    Mistake(
        "scaled",
        variant(lambda b, x: (y := x + 0.1 * around(b, x)) + 0.1 * at_each(b, y)),
        "something is multiplied by a number: the branches by a small one, or a sum by 2 or 1/2. Add them as they are.",
        (
            variant(lambda b, x: second_sum(b, first_sum(b, x)) / 2),
            variant(lambda b, x: second_sum(b, (y := first_sum(b, x))) + y),
        ),
    ),
    Mistake(
        "first skip detached",
        variant(lambda b, x: second_sum(b, x.detach() + around(b, x))),
        "the value is right, but the skip is cut off from the gradient: it is there to carry it. Remove the detach.",
    ),
    Mistake(
        "written over",
        variant(written_over),
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

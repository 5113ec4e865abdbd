"""Exercise 7.3, the transformer block: attention and MLP, each with a norm before it and a skip connection."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import module_call
from companion.priors.transformer import Block


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(72)
    shapes = (((2, 5, 8), 2), ((1, 7, 6), 3), ((3, 1, 4), 1))
    return [
        Case(
            f"x of shape {shape}, heads = {heads}",
            (torch.randn(shape, generator=g),),
            {"dim": shape[-1], "heads": heads},
            {0: "x"},
            seed=heads,
        )
        for shape, heads in shapes
    ]


def _variant(forward: Callable[[Any, Tensor], Any]) -> type[Block]:
    """A block with another forward pass; ``forward`` gets the block and the input."""

    class Variant(Block):
        def forward(self, x: Tensor, *rest: Any) -> Any:
            return forward(self, x)

    return Variant


def _after(block: Any, x: Tensor) -> Tensor:
    x = block.norm1(x + block.attention(x))
    return block.norm2(x + block.mlp(x))


def _skips_from_norms(block: Any, x: Tensor) -> Tensor:
    h = block.norm1(x)
    x = h + block.attention(h)
    h = block.norm2(x)
    return h + block.mlp(h)


def _attended(block: Any, x: Tensor) -> Tensor:
    return x + block.attention(block.norm1(x))


def _norms_exchanged(block: Any, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm2(x))
    return x + block.mlp(block.norm1(x))


def _mlp_first(block: Any, x: Tensor) -> Tensor:
    x = x + block.mlp(block.norm2(x))
    return _attended(block, x)


def _then_mlp(block: Any, x: Tensor) -> Tensor:
    return x + block.mlp(block.norm2(x))


MISTAKES = (
    Mistake(
        "norm after the sum",
        _variant(_after),
        "the norm stands after each sum, as in the paper of 2017. Here it comes first, inside the branch, so that the "
        "sum has a way through all blocks that nothing touches.",
    ),
    Mistake(
        "skips from the norm",
        _variant(_skips_from_norms),
        "the normalised x is what you add to. Add to x itself: only the branch reads the norm.",
    ),
    Mistake(
        "no skip around attention",
        _variant(lambda b, x: _then_mlp(b, b.attention(b.norm1(x)))),
        "the attention's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skip around the MLP",
        _variant(lambda b, x: b.mlp(b.norm2(_attended(b, x)))),
        "the MLP's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "first norm forgotten",
        _variant(lambda b, x: _then_mlp(b, x + b.attention(x))),
        "the attention reads x as it is; it is to read norm1(x).",
    ),
    Mistake(
        "second norm forgotten",
        _variant(lambda b, x: _attended(b, x) + b.mlp(_attended(b, x))),
        "the MLP reads x as it is; it is to read norm2(x).",
    ),
    Mistake(
        "one norm for both",
        _variant(lambda b, x: _attended(b, x) + b.mlp(b.norm1(_attended(b, x)))),
        "norm1 is used twice; the MLP has a norm of its own, norm2.",
    ),
    Mistake(
        "side by side",
        _variant(lambda b, x: x + b.attention(b.norm1(x)) + b.mlp(b.norm2(x))),
        "attention and MLP both read the block's input. The MLP comes second: it reads the sum of x and the attention.",
    ),
    Mistake(
        "MLP first",
        _variant(_mlp_first),
        "the MLP comes first. Gather, then think: attention, then MLP.",
    ),
    Mistake(
        "attention only",
        _variant(_attended),
        "the MLP is missing from what you return.",
    ),
    Mistake(
        "MLP only",
        _variant(_then_mlp),
        "the attention is missing: no position would know of another.",
    ),
    Mistake(
        "first sum forgotten at the end",
        _variant(lambda b, x: x + b.mlp(b.norm2(_attended(b, x)))),
        "the second sum begins again with the block's input, so that the attention only reaches the MLP. Add the MLP "
        "to the *first sum*.",
    ),
    Mistake(
        "norms exchanged",
        _variant(_norms_exchanged),
        "the two norms are exchanged: norm1 goes before the attention, norm2 before the MLP.",
    ),
    Mistake(
        "norm of each result",
        _variant(lambda b, x: (y := x + b.norm1(b.attention(x))) + b.norm2(b.mlp(y))),
        "the norms read the results of attention and MLP. They come before: attention(norm1(x)), mlp(norm2(x)).",
    ),
    Mistake(
        "norm2 of the result",
        _variant(lambda b, x: (y := _attended(b, x)) + b.norm2(b.mlp(y))),
        "norm2 reads the MLP's result; it comes before the MLP: mlp(norm2(x)).",
    ),
    Mistake(
        "no norm",
        _variant(lambda b, x: (y := x + b.attention(x)) + b.mlp(y)),
        "neither norm is used: attention(norm1(x)), mlp(norm2(x)).",
    ),
    Mistake(
        "no skip",
        _variant(lambda b, x: b.mlp(b.norm2(b.attention(b.norm1(x))))),
        "both results replace x; each is to be added to it.",
    ),
    Mistake(
        "side by side, one norm",
        _variant(lambda b, x: x + b.attention(b.norm1(x)) + b.mlp(b.norm1(x))),
        "attention and MLP both read norm1 of the block's input. The MLP comes second: it reads norm2 of the "
        "sum of x and the attention.",
    ),
    Mistake(
        "first skip from the norm",
        _variant(lambda b, x: _then_mlp(b, (h := b.norm1(x)) + b.attention(h))),
        "the attention is added to norm1(x). Add it to x itself: only the branch reads the norm.",
    ),
    Mistake(
        "second skip from the norm",
        _variant(lambda b, x: (h := b.norm2(_attended(b, x))) + b.mlp(h)),
        "the MLP is added to norm2(x). Add it to x itself: only the branch reads the norm.",
    ),
    Mistake(
        "second norm for both",
        _variant(lambda b, x: _then_mlp(b, x + b.attention(b.norm2(x)))),
        "norm2 is used twice; the attention has a norm of its own, norm1.",
    ),
    Mistake(
        "attention twice",
        _variant(lambda b, x: _then_mlp(b, _attended(b, _attended(b, x)))),
        "the attention comes twice.",
    ),
    Mistake(
        "attention alone to the MLP",
        _variant(lambda b, x: x + b.mlp(b.norm2(b.attention(b.norm1(x))))),
        "the MLP reads the attention's result alone, and that is not in the sum: first x = x + "
        "attention(norm1(x)), then the MLP on that.",
    ),
    Mistake(
        "attention alone to the MLP, both added",
        _variant(lambda b, x: x + (y := b.attention(b.norm1(x))) + b.mlp(b.norm2(y))),
        "the MLP reads the attention's result alone; it is to read norm2 of the sum, x + attention(norm1(x)).",
    ),
    Mistake(
        "subtracted",
        _variant(lambda b, x: _then_mlp(b, x - b.attention(b.norm1(x)))),
        "the attention is subtracted from x; it is added to it.",
    ),
    Mistake(
        "halved",
        _variant(lambda b, x: ((y := _attended(b, x) / 2) + b.mlp(b.norm2(y))) / 2),
        "the sums are scaled down (/ 2 or / √2); they are sums.",
        also=(_variant(lambda b, x: ((y := _attended(b, x) * 0.5**0.5) + b.mlp(b.norm2(y))) * 0.5**0.5),),
    ),
    Mistake(
        "x twice",
        _variant(lambda b, x: x + _then_mlp(b, _attended(b, x))),
        "the block's input is added once too often: the first sum has it already.",
    ),
    Mistake(
        "a norm at the end",
        _variant(lambda b, x: b.norm1(_then_mlp(b, _attended(b, x)))),
        "a norm stands after the last sum as well: return the sum itself.",
        also=(_variant(lambda b, x: b.norm2(_then_mlp(b, _attended(b, x)))),),
    ),
    Mistake(
        "MLP beside the attention's norm",
        _variant(lambda b, x: _attended(b, x) + b.mlp(b.norm2(b.norm1(x)))),
        "the MLP reads norm2 of norm1(x): it is to read norm2 of the first sum.",
    ),
)

EXERCISE = Exercise(
    name="Block",
    chapter="07_transformer_prior",
    reference=Block,
    cases=cases,
    mistakes=MISTAKES,
    run=module_call(Block),
)

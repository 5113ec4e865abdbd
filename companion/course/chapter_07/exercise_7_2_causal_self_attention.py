"""Exercise 7.2, causal self-attention with several heads."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import module_call
from companion.priors.transformer import CausalSelfAttention


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(71)

    def case(label: str, b: int, t: int, dim: int, heads: int) -> Case:
        return Case(label, (torch.randn(b, t, dim, generator=g),), {"dim": dim, "heads": heads}, {0: "x"}, seed=t)

    turned = torch.randn(2, 6, 5, generator=g).transpose(1, 2)  # (2, 5, 6)
    return [
        case("two sequences of 5, two heads of 4", 2, 5, 8, 2),
        case("one sequence of 7, three heads of 2", 1, 7, 6, 3),
        case("a single position", 3, 1, 4, 2),
        Case("one head, and x not contiguous in memory", (turned,), {"dim": 6, "heads": 1}, {0: "x"}, seed=9),
    ]


def _variant(
    *,
    mask: Callable[[Tensor], Tensor] = lambda scores: scores.masked_fill(_later(scores), -torch.inf),
    weigh: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
    scale: Callable[[int, int], float] = lambda head_dim, dim: head_dim**-0.5,
    order: tuple[int, int, int] = (0, 1, 2),
    split: Callable[[Tensor, int], Tensor] = lambda x, heads: x.reshape(*x.shape[:2], heads, -1).transpose(1, 2),
    join: Callable[[Tensor], Tensor] = lambda x: x.transpose(1, 2).flatten(2),
    one_head: bool = False,
    projected: bool = True,
) -> type[CausalSelfAttention]:
    """The layer with one of its parts replaced."""

    class Variant(CausalSelfAttention):
        def forward(self, x: Tensor, *rest: Any) -> Any:
            dim, heads = x.shape[-1], 1 if one_head else self.heads
            parts = self.to_qkv(x).chunk(3, -1)
            queries, keys, values = (split(parts[i], heads) for i in order)
            scores = queries @ keys.transpose(-2, -1) * scale(dim // heads, dim)
            out = join(weigh(mask(scores)) @ values)
            return self.to_out(out) if projected else out

    return Variant


def _later(scores: Tensor, diagonal: int = 1) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def _after_the_first(scores: Tensor) -> Tensor:
    """All pairs but that of the first position with itself."""
    return torch.arange(scores.shape[-1] ** 2).reshape(scores.shape[-2:]) > 0


def _weights_masked(scores: Tensor) -> Tensor:
    return scores.softmax(-1).masked_fill(_later(scores), 0.0)


class _KeepsItsMask(CausalSelfAttention):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool).triu(1))


class _SkipInside(CausalSelfAttention):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return x + super().forward(x)


class _ThreeFirst(CausalSelfAttention):
    """(B, T, 3·dim) read as (3, B, T, dim): the shape fits, the numbers do not."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        b, t, dim = x.shape
        queries, keys, values = self.to_qkv(x).reshape(3, b, t, self.heads, dim // self.heads).transpose(2, 3)
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.to_out(out.transpose(1, 2).reshape(b, t, dim))


class _TrueForbids(CausalSelfAttention):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        b, t, dim = x.shape
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, -1)
        )
        later = torch.ones(t, t, dtype=torch.bool).triu(1)
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=later)
        return self.to_out(out.transpose(1, 2).reshape(b, t, dim))


class _EveryThird(CausalSelfAttention):
    """Every third number a query, a key, a value."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        parts = self.to_qkv(x).unflatten(-1, (-1, 3)).unbind(-1)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.to_out(out.transpose(1, 2).reshape(x.shape))


class _HeadsInterleaved(CausalSelfAttention):
    """Queries, keys and values of each head beside each other: another order of the same rows."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        b, t, dim = x.shape
        qkv = self.to_qkv(x).reshape(b, t, self.heads, 3, dim // self.heads).permute(3, 0, 2, 1, 4)
        queries, keys, values = qkv
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.to_out(out.transpose(1, 2).reshape(b, t, dim))


MISTAKES = (
    Mistake(
        "no mask",
        _variant(mask=lambda scores: scores),
        "nothing is masked: each position gathers from those after it, among them the code that it is to predict.",
    ),
    Mistake(
        "mask one off",
        _variant(mask=lambda scores: scores.masked_fill(_later(scores, 2), -torch.inf)),
        "the mask is off by one: each position sees the one after it, whose input is exactly the code to be predicted. "
        "The training loss would fall to nothing, and the samples would be garbage. Mask from the first diagonal above "
        "the main one on: triu(1).",
    ),
    Mistake(
        "itself masked",
        _variant(mask=lambda scores: scores.masked_fill(_later(scores, 0), -torch.inf)),
        "each position is forbidden to see itself; the first, unless excepted, has nothing left (0/0 = NaN). Its own "
        "input is the code *before* the one to be predicted: it may see it.",
        also=(
            _variant(
                mask=lambda scores: scores.masked_fill(_later(scores, 0), -torch.inf),
                weigh=lambda scores: scores.softmax(-1).nan_to_num(0.0),
            ),
            _variant(mask=lambda scores: scores.masked_fill(_later(scores, 0) & _after_the_first(scores), -torch.inf)),
        ),
    ),
    Mistake(
        "other side masked",
        _variant(mask=lambda scores: scores.masked_fill(_later(scores.transpose(-2, -1)).mT, -torch.inf)),
        "the mask covers the past and leaves the future open. Rows are queries, columns keys: key j is allowed for "
        "query i where j ≤ i.",
    ),
    Mistake(
        "masked with 0",
        _variant(mask=lambda scores: scores.masked_fill(_later(scores), 0.0)),
        "the forbidden scores are set to 0, and e⁰ = 1: they still get a weight. Set them to −∞ before the softmax.",
    ),
    Mistake(
        "0 times infinity",
        _variant(mask=lambda scores: scores + _later(scores).to(scores.dtype) * -torch.inf),
        "everything is NaN: 0 · −∞ is not 0. Use masked_fill with a mask of True and False, or "
        "torch.full((T, T), -torch.inf).triu(1).",
    ),
    Mistake(
        "masked after the softmax",
        _variant(mask=lambda scores: scores, weigh=_weights_masked),
        "the weights are masked after the softmax: those that are left do not sum to 1, and their size still tells of "
        "the future. Mask the scores, before the softmax.",
    ),
    Mistake(
        "softmax over the queries",
        _variant(weigh=lambda scores: scores.softmax(-2).nan_to_num(0.0)),
        "the softmax runs over the queries. Each *query* shares one unit of weight among the keys: the last axis.",
    ),
    Mistake(
        "not scaled",
        _variant(scale=lambda head_dim, dim: 1.0),
        "the scores are not divided by √d: the sum of d products grows with d, and the softmax hardens.",
    ),
    Mistake(
        "divided by d",
        _variant(scale=lambda head_dim, dim: 1 / head_dim),
        "the scores are divided by d; the standard deviation of a sum of d products is √d. "
        "(scaled_dot_product_attention divides by √d already.)",
    ),
    Mistake(
        "scaled by the whole width",
        _variant(scale=lambda head_dim, dim: dim**-0.5, one_head=False),
        "the scores are divided by the root of the whole width; a head's queries and keys have d = dim / heads "
        "numbers.",
    ),
    Mistake(
        "one head",
        _variant(one_head=True),
        "`heads` is not used: all the numbers make one head. Each head has a softmax of its own.",
    ),
    Mistake(
        "heads not moved",
        _variant(split=lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1)),
        "(B, T, dim) is reshaped to (B, heads, T, d) at once: that cuts the row of numbers in other places and mixes "
        "the positions. First unflatten the last axis to (heads, d), then transpose.",
        also=(
            _variant(
                split=lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
                join=lambda x: x.reshape(len(x), x.shape[2], -1),
            ),
        ),
    ),
    Mistake(
        "over the heads",
        _variant(split=lambda x, heads: x.reshape(*x.shape[:2], heads, -1), join=lambda x: x.flatten(2)),
        "attention runs over the heads, not over the positions: with (B, T, heads, d) the last two axes are heads and "
        "numbers. Transpose to (B, heads, T, d) first.",
    ),
    Mistake(
        "heads not moved back",
        _variant(join=lambda x: x.reshape(len(x), x.shape[2], -1)),
        "(B, heads, T, d) is reshaped to (B, T, dim) at once: that mixes positions and heads. Transpose first.",
    ),
    Mistake(
        "keys and queries changed",
        _variant(order=(1, 0, 2)),
        "queries and keys have changed places. to_qkv gives queries, keys, values, in this order.",
    ),
    Mistake(
        "values first",
        _variant(order=(1, 2, 0)),
        "to_qkv gives queries, keys, values, in this order; you take them as values, queries, keys.",
    ),
    Mistake(
        "a head's three together",
        _HeadsInterleaved,
        "you read to_qkv's output as (heads, 3, d); it is (3, heads, d): all queries, then all keys, then all values.",
    ),
    Mistake(
        "to_out forgotten",
        _variant(projected=False),
        "the heads' results stand side by side; to_out, which mixes them, is not used.",
    ),
    Mistake(
        "keys and values exchanged",
        _variant(order=(0, 2, 1)),
        "keys and values have changed places. to_qkv gives queries, keys, values, in this order.",
    ),
    Mistake(
        "true forbids",
        _TrueForbids,
        "everything that you allow is forbidden: in scaled_dot_product_attention a mask of True *allows*. Give it "
        "~later, or is_causal=True.",
    ),
    Mistake(
        "masked with a small number",
        _variant(mask=lambda scores: scores.masked_fill(_later(scores), -10.0)),
        "the forbidden scores are set to a number such as −10, and e⁻¹⁰ is not 0: a little of the future gets through, "
        "and large scores let more of it. Set them to −∞.",
        also=(_variant(mask=lambda scores: scores.masked_fill(_later(scores), -1.0)),),
    ),
    Mistake(
        "a skip inside",
        _SkipInside,
        "you add x to the result. The sum around the attention is the block's, in the next exercise.",
    ),
    Mistake(
        "the three as the first axis",
        _ThreeFirst,
        "reshape(3, …) cuts (B, T, 3·dim) in the wrong places. The three lie beside each other in the *last* axis: "
        "chunk(3, -1).",
    ),
    Mistake(
        "a mask among the weights",
        _KeepsItsMask,
        "your mask is saved with the weights, so that weights without one no longer load. Say "
        "register_buffer(…, persistent=False), or make the mask in forward.",
    ),
    Mistake(
        "multiplied by the root",
        _variant(scale=lambda head_dim, dim: head_dim**0.5),
        "the scores are multiplied by √d: they are to be divided by it.",
    ),
    Mistake(
        "root of the heads",
        _variant(scale=lambda head_dim, dim: (dim // head_dim) ** -0.5),
        "the scores are divided by the root of the number of heads. d is the width of a head, dim / heads.",
    ),
    Mistake(
        "root of the length",
        _variant(
            mask=lambda scores: (scores / scores.shape[-1] ** 0.5).masked_fill(_later(scores), -torch.inf),
            scale=lambda head_dim, dim: 1.0,
        ),
        "the scores are divided by the root of the length T. d is the width of a head, queries.shape[-1].",
    ),
    Mistake(
        "softmax over the heads",
        _variant(weigh=lambda scores: scores.softmax(1)),
        "the softmax runs over the heads. Each *query* shares one unit of weight among the keys: the last axis.",
    ),
    Mistake(
        "numbers dealt to the heads in turn",
        _variant(
            split=lambda x, heads: x.unflatten(-1, (-1, heads)).movedim(-1, 1),
            join=lambda x: x.movedim(1, -1).flatten(2),
        ),
        "head i gets every heads-th number. It gets d numbers that lie together: unflatten(-1, (heads, -1)), "
        "not (-1, heads).",
    ),
    Mistake(
        "the mask added as ones",
        _variant(mask=lambda scores: scores - _later(scores).to(scores.dtype)),
        "the mask is added to the scores as ones, which only makes the future a little less likely. Its "
        "scores are to be −∞.",
        also=(_variant(mask=lambda scores: scores + _later(scores).to(scores.dtype)),),
    ),
    Mistake(
        "two heads written in",
        _variant(
            split=lambda x, heads: x.reshape(*x.shape[:2], 2, -1).transpose(1, 2),
            scale=lambda head_dim, dim: (dim // 2) ** -0.5,
        ),
        "there are two heads here, whatever is given: use self.heads.",
    ),
    Mistake(
        "every third number",
        _EveryThird,
        "every third number is taken for a query. The three lie behind each other, dim numbers each: chunk(3, -1).",
    ),
    Mistake(
        "logarithms",
        _variant(weigh=lambda scores: scores.log_softmax(-1)),
        "the weights are logarithms, negative and without a sum of 1: softmax, not log_softmax.",
    ),
    Mistake(
        "sigmoid",
        _variant(weigh=lambda scores: scores.sigmoid()),
        "each weight is a sigmoid of its own score, so that a row does not sum to 1: softmax over the last axis.",
    ),
    Mistake(
        "keys gathered",
        _variant(order=(0, 1, 1)),
        "keys are gathered; what a position hands over are its values, the last third of to_qkv.",
    ),
    Mistake(
        "half precision",
        _variant(weigh=lambda scores: scores.bfloat16().softmax(-1).to(scores.dtype)),
        "the weights are computed in half precision: stay in the dtype of x.",
    ),
)

EXERCISE = Exercise(
    name="CausalSelfAttention",
    chapter="07_transformer_prior",
    reference=CausalSelfAttention,
    cases=cases,
    mistakes=MISTAKES,
    run=module_call(CausalSelfAttention),
)

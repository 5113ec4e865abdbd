"""Exercises of chapter 07: inputs and targets, causal self-attention, the block, what is sampled from, the class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.course.checks.core import Case, Exercise, Mistake, Observed, call, call_for, module_call, register
from companion.priors import filtered_probabilities
from companion.priors.transformer import Block, CausalSelfAttention

CHAPTER = "07_transformer_prior"


def shift(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Codes as a row in raster order: what the prior reads at each place, and what it is to predict there.

    ``<sos>`` has the number K, the first that is no code.

    Shapes:
        codes: (B, h, w) int64 → inputs and targets, each (B, T).
    """
    targets = codes.flatten(1)
    sos = torch.full_like(targets[:, :1], num_codes)
    return torch.cat([sos, targets[:, :-1]], 1), targets


def conditional_inputs(
    codes: Tensor, labels: Tensor | None, num_codes: int, num_classes: int, dropped: Tensor | None = None
) -> Tensor:
    """The inputs with a ``<sos>`` for each class: K + label, and K + C for "no class".

    Shapes:
        codes: (B, h, w) int64; labels: (B,) int64, or None for "no class"; dropped: (B,) bool, whose labels are to be
        replaced by "no class" → (B, T).
    """
    row = codes.flatten(1)
    nothing = torch.full_like(row[:, 0], num_codes + num_classes)
    start = nothing if labels is None else num_codes + labels
    if dropped is not None:
        start = torch.where(dropped, nothing, start)
    return torch.cat([start[:, None], row[:, :-1]], 1)


# Exercise 7.1 -------------------------------------------------------------------------------------------------------


def _shift_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(70)

    def codes(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    return [
        Case("two tables of 3 × 4, K = 7", (codes(2, 3, 4, k=7), 7)),
        Case("one table of 2 × 2, K = 20", (codes(1, 2, 2, k=20), 20)),
        Case("tables of a single code", (codes(3, 1, 1, k=5), 5)),
        Case("codes that are not contiguous in memory", (codes(3, 5, 2, k=9).transpose(1, 2), 9)),
    ]


def _shifted(codes: Tensor, start: int) -> Tensor:
    row = codes.flatten(1)
    return torch.cat([torch.full_like(row[:, :1], start), row[:, :-1]], 1)


def _same_memory(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    row = codes.flatten(1)
    row[:, 1:] = row[:, :-1].clone()
    row[:, 0] = num_codes
    return row, row


def _by_columns(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    return shift(codes.transpose(1, 2), num_codes)


def _longer(codes: Tensor, num_codes: int) -> Tensor:
    row = codes.flatten(1)
    return torch.cat([torch.full_like(row[:, :1], num_codes), row], 1)


_SHIFT_MISTAKES = (
    Mistake(
        "sos is code 0",
        lambda codes, k: (_shifted(codes, 0), codes.flatten(1)),
        "<sos> has the number 0, which is a code: after it the prior cannot tell the beginning from a table whose "
        "first code is 0. Codes are 0 to K − 1; the first free number is K.",
    ),
    Mistake(
        "sos is the last code",
        lambda codes, k: (_shifted(codes, k - 1), codes.flatten(1)),
        "<sos> has the number K − 1, and that is the last code. The first number that is no code is K.",
    ),
    Mistake(
        "sos is -1",
        lambda codes, k: (_shifted(codes, -1), codes.flatten(1)),
        "<sos> has the number −1: an embedding has no row of that number. Take K, and give the table one row more.",
    ),
    Mistake(
        "not shifted",
        lambda codes, k: (codes.flatten(1), codes.flatten(1)),
        "inputs and targets are the same: at each place the prior would read the very code that it is to predict.",
    ),
    Mistake(
        "shifted the wrong way",
        lambda codes, k: (
            torch.cat([codes.flatten(1)[:, 1:], torch.full_like(codes.flatten(1)[:, :1], k)], 1),
            codes.flatten(1),
        ),
        "the inputs are shifted to the left: each place reads the code *after* the one that it is to predict.",
    ),
    Mistake(
        "rolled",
        lambda codes, k: (codes.flatten(1).roll(1, 1), codes.flatten(1)),
        "torch.roll puts the last code at the front. The first input is <sos>, number K; the last code is no input.",
    ),
    Mistake(
        "first code overwritten",
        lambda codes, k: (torch.cat([_shifted(codes, k)[:, :1], codes.flatten(1)[:, 1:]], 1), codes.flatten(1)),
        "<sos> stands in the place of the first code, and the others stay where they are: each place but the first "
        "reads its own target. Everything moves one place to the right.",
    ),
    Mistake(
        "one input too many",
        lambda codes, k: (_longer(codes, k), codes.flatten(1)),
        "there are T + 1 inputs for T targets. That gives T + 1 logits, and whoever pairs the last T of them with the "
        "codes lets each one read its own answer. Leave out the last code: nothing follows it.",
    ),
    Mistake(
        "first code never predicted",
        lambda codes, k: (codes.flatten(1)[:, :-1], codes.flatten(1)[:, 1:]),
        "the first code is an input but never a target, so that no sample could begin. <sos> comes before it.",
    ),
    Mistake(
        "an end that is predicted",
        lambda codes, k: (
            _longer(codes, k),
            torch.cat([codes.flatten(1), torch.full_like(codes.flatten(1)[:, :1], k)], 1),
        ),
        "you predict an end after the last code, as texts need it. Every table has T codes: there is nothing to say.",
    ),
    Mistake(
        "by columns",
        _by_columns,
        "the codes are in the order of columns; raster order is row by row: codes.flatten(1).",
    ),
    Mistake(
        "other way round",
        lambda codes, k: shift(codes, k)[::-1],
        "targets and inputs have changed places; the inputs, which begin with <sos>, come first.",
    ),
    Mistake(
        "written into the codes",
        _same_memory,
        "inputs and targets are one tensor: flatten makes no copy where it need not, and writing into it changes the "
        "codes. torch.cat makes a new one.",
    ),
    Mistake(
        "not flattened",
        lambda codes, k: (_shifted(codes, k).reshape(codes.shape), codes),
        "these are still tables; a row of T = h·w is wanted: codes.flatten(1).",
    ),
    Mistake(
        "all images in one row",
        lambda codes, k: tuple(part.flatten() for part in shift(codes, k)),
        "all images stand in one row. Each image is a sequence of its own: (B, T).",
    ),
    Mistake(
        "as for texts",
        lambda codes, k: (
            codes.flatten(1),
            torch.cat([codes.flatten(1)[:, 1:], torch.full_like(codes.flatten(1)[:, :1], k)], 1),
        ),
        "the inputs are the codes and the targets the codes one place on, as a language model has it that is given the "
        "beginning of a text. Here nothing is given: the inputs begin with <sos>, and the targets are all T codes.",
    ),
)


# Exercise 7.2 -------------------------------------------------------------------------------------------------------


def _attention_cases() -> Sequence[Case]:
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


def _attention(
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
        mixed: Tensor = self.to_out(out.transpose(1, 2).reshape(b, t, dim))
        return mixed


class _TrueForbids(CausalSelfAttention):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        b, t, dim = x.shape
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, -1)
        )
        later = torch.ones(t, t, dtype=torch.bool).triu(1)
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=later)
        mixed: Tensor = self.to_out(out.transpose(1, 2).reshape(b, t, dim))
        return mixed


class _HeadsInterleaved(CausalSelfAttention):
    """Queries, keys and values of each head beside each other: another order of the same rows."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        b, t, dim = x.shape
        qkv = self.to_qkv(x).reshape(b, t, self.heads, 3, dim // self.heads).permute(3, 0, 2, 1, 4)
        queries, keys, values = qkv
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        mixed: Tensor = self.to_out(out.transpose(1, 2).reshape(b, t, dim))
        return mixed


_ATTENTION_MISTAKES = (
    Mistake(
        "no mask",
        _attention(mask=lambda scores: scores),
        "there is no mask: each position gathers from those after it, among them the code that it is to predict.",
    ),
    Mistake(
        "mask one off",
        _attention(mask=lambda scores: scores.masked_fill(_later(scores, 2), -torch.inf)),
        "the mask is off by one: each position sees the one after it, whose input is exactly the code to be predicted. "
        "The training loss would fall to nothing, and the samples would be garbage. Mask from the first diagonal above "
        "the main one on: triu(1).",
    ),
    Mistake(
        "itself masked",
        _attention(mask=lambda scores: scores.masked_fill(_later(scores, 0), -torch.inf)),
        "each position is forbidden to see itself, and the first is left with nothing at all (0/0 = NaN). Its own "
        "input is the code *before* the one to be predicted: it may see it.",
    ),
    Mistake(
        "other side masked",
        _attention(mask=lambda scores: scores.masked_fill(_later(scores.transpose(-2, -1)).mT, -torch.inf)),
        "the mask covers the past and leaves the future open. Rows are queries, columns keys: key j is allowed for "
        "query i where j ≤ i.",
    ),
    Mistake(
        "masked with 0",
        _attention(mask=lambda scores: scores.masked_fill(_later(scores), 0.0)),
        "the forbidden scores are set to 0, and e⁰ = 1: they still get a weight. Set them to −∞ before the softmax.",
    ),
    Mistake(
        "0 times infinity",
        _attention(mask=lambda scores: scores + _later(scores).to(scores.dtype) * -torch.inf),
        "everything is NaN: 0 · −∞ is not 0. Use masked_fill with a mask of True and False, or "
        "torch.full((T, T), -torch.inf).triu(1).",
    ),
    Mistake(
        "masked after the softmax",
        _attention(mask=lambda scores: scores, weigh=_weights_masked),
        "the weights are masked after the softmax: those that are left do not sum to 1, and their size still tells of "
        "the future. Mask the scores, before the softmax.",
    ),
    Mistake(
        "softmax over the queries",
        _attention(weigh=lambda scores: scores.softmax(-2).nan_to_num(0.0)),
        "the softmax runs over the queries. Each *query* shares one unit of weight among the keys: the last axis.",
    ),
    Mistake(
        "not scaled",
        _attention(scale=lambda head_dim, dim: 1.0),
        "the scores are not divided by √d: the sum of d products grows with d, and the softmax hardens.",
    ),
    Mistake(
        "divided by d",
        _attention(scale=lambda head_dim, dim: 1 / head_dim),
        "the scores are divided by d; the standard deviation of a sum of d products is √d.",
    ),
    Mistake(
        "scaled by the whole width",
        _attention(scale=lambda head_dim, dim: dim**-0.5, one_head=False),
        "the scores are divided by the root of the whole width; a head's queries and keys have d = dim / heads "
        "numbers.",
    ),
    Mistake(
        "one head",
        _attention(one_head=True),
        "`heads` is not used: all the numbers make one head. Each head has a softmax of its own.",
    ),
    Mistake(
        "heads not moved",
        _attention(split=lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1)),
        "(B, T, dim) is reshaped to (B, heads, T, d) at once: that cuts the row of numbers in other places and mixes "
        "the positions. First unflatten the last axis to (heads, d), then transpose.",
    ),
    Mistake(
        "over the heads",
        _attention(split=lambda x, heads: x.reshape(*x.shape[:2], heads, -1), join=lambda x: x.flatten(2)),
        "attention runs over the heads, not over the places: with (B, T, heads, d) the last two axes are heads and "
        "numbers. Transpose to (B, heads, T, d) first.",
    ),
    Mistake(
        "heads not moved back",
        _attention(join=lambda x: x.reshape(len(x), x.shape[2], -1)),
        "(B, heads, T, d) is reshaped to (B, T, dim) at once: that mixes positions and heads. Transpose first.",
    ),
    Mistake(
        "keys and queries changed",
        _attention(order=(1, 0, 2)),
        "queries and keys have changed places. to_qkv gives queries, keys, values, in this order.",
    ),
    Mistake(
        "values first",
        _attention(order=(1, 2, 0)),
        "to_qkv gives queries, keys, values, in this order; you take them as values, queries, keys.",
    ),
    Mistake(
        "a head's three together",
        _HeadsInterleaved,
        "you read to_qkv's output as (heads, 3, d); it is (3, heads, d): all queries, then all keys, then all values.",
    ),
    Mistake(
        "to_out forgotten",
        _attention(projected=False),
        "the heads' results stand side by side; to_out, which mixes them, is not used.",
    ),
    Mistake(
        "keys and values exchanged",
        _attention(order=(0, 2, 1)),
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
        _attention(mask=lambda scores: scores.masked_fill(_later(scores), -10.0)),
        "the forbidden scores are set to a number such as −10, and e⁻¹⁰ is not 0: a little of the future gets through, "
        "and large scores let more of it. Set them to −∞.",
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
)


# Exercise 7.3 -------------------------------------------------------------------------------------------------------


def _block_cases() -> Sequence[Case]:
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


def _block(forward: Callable[[Any, Tensor], Any]) -> type[Block]:
    class Variant(Block):
        def forward(self, x: Tensor, *rest: Any) -> Any:
            return forward(self, x)

    return Variant


def _after(block: Any, x: Tensor) -> Tensor:
    x = block.norm1(x + block.attention(x))
    out: Tensor = block.norm2(x + block.mlp(x))
    return out


def _skips_from_norms(block: Any, x: Tensor) -> Tensor:
    h = block.norm1(x)
    x = h + block.attention(h)
    h = block.norm2(x)
    out: Tensor = h + block.mlp(h)
    return out


def _attended(block: Any, x: Tensor) -> Tensor:
    out: Tensor = x + block.attention(block.norm1(x))
    return out


def _norms_exchanged(block: Any, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm2(x))
    out: Tensor = x + block.mlp(block.norm1(x))
    return out


def _mlp_first(block: Any, x: Tensor) -> Tensor:
    x = x + block.mlp(block.norm2(x))
    return _attended(block, x)


def _then_mlp(block: Any, x: Tensor) -> Tensor:
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


_BLOCK_MISTAKES = (
    Mistake(
        "norm after the sum",
        _block(_after),
        "the norm stands after each sum, as in the paper of 2017. Here it comes first, inside the branch, so that the "
        "sum has a way through all blocks that nothing touches.",
    ),
    Mistake(
        "skips from the norm",
        _block(_skips_from_norms),
        "the normalised x is what you add to. Add to x itself: only the branch reads the norm.",
    ),
    Mistake(
        "no skip around attention",
        _block(lambda b, x: _then_mlp(b, b.attention(b.norm1(x)))),
        "the attention's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "no skip around the MLP",
        _block(lambda b, x: b.mlp(b.norm2(_attended(b, x)))),
        "the MLP's result replaces x; it is to be added to it.",
    ),
    Mistake(
        "first norm forgotten",
        _block(lambda b, x: _then_mlp(b, x + b.attention(x))),
        "the attention reads x as it is; it is to read norm1(x).",
    ),
    Mistake(
        "second norm forgotten",
        _block(lambda b, x: _attended(b, x) + b.mlp(_attended(b, x))),
        "the MLP reads x as it is; it is to read norm2(x).",
    ),
    Mistake(
        "one norm for both",
        _block(lambda b, x: _attended(b, x) + b.mlp(b.norm1(_attended(b, x)))),
        "norm1 is used twice; the MLP has a norm of its own, norm2.",
    ),
    Mistake(
        "side by side",
        _block(lambda b, x: x + b.attention(b.norm1(x)) + b.mlp(b.norm2(x))),
        "attention and MLP both read the block's input. The MLP comes second: it reads the sum of x and the attention.",
    ),
    Mistake(
        "MLP first",
        _block(_mlp_first),
        "the MLP comes first. Gather, then think: attention, then MLP.",
    ),
    Mistake(
        "attention only",
        _block(_attended),
        "the MLP is missing.",
    ),
    Mistake(
        "MLP only",
        _block(_then_mlp),
        "the attention is missing: no position would know of another.",
    ),
    Mistake(
        "first sum forgotten at the end",
        _block(lambda b, x: x + b.mlp(b.norm2(_attended(b, x)))),
        "the second sum begins again with the block's input, so that the attention only reaches the MLP. Add the MLP "
        "to the *first sum*.",
    ),
    Mistake(
        "norms exchanged",
        _block(_norms_exchanged),
        "the two norms are exchanged: norm1 goes before the attention, norm2 before the MLP.",
    ),
)


# Exercise 7.4 -------------------------------------------------------------------------------------------------------


def _conditional_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(74)

    def codes(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    labels, dropped = torch.tensor([2, 0, 1, 2]), torch.tensor([False, True, False, True])
    return [
        Case("four tables of 2 × 3, K = 7, three classes", (codes(4, 2, 3, k=7), labels, 7, 3)),
        Case("no labels", (codes(2, 2, 3, k=7), None, 7, 3, None)),
        Case("two of four labels dropped", (codes(4, 2, 2, k=9), labels, 9, 3, dropped)),
        Case("a prior without classes", (codes(2, 1, 3, k=5), None, 5, 0, None)),
        Case("no labels, and two of four dropped", (codes(4, 2, 2, k=6), None, 6, 3, dropped)),
        Case("a single code, ten classes", (codes(1, 1, 1, k=4), torch.tensor([9]), 4, 10, torch.tensor([False]))),
    ]


Start = Callable[[Tensor, int, int], Tensor]


def _conditional(
    *,
    of_label: Start = lambda labels, k, c: k + labels,
    nothing: Callable[[int, int], int] = lambda k, c: k + c,
    drop: Callable[[Tensor, Tensor, int], Tensor] = lambda start, dropped, none: start.masked_fill(dropped, none),
    finish: Callable[[Tensor, Tensor], Tensor] = lambda start, row: torch.cat([start[:, None], row[:, :-1]], 1),
) -> Callable[..., Tensor]:
    def inputs(codes: Tensor, labels: Tensor | None, k: int, c: int, dropped: Tensor | None = None) -> Tensor:
        row, none = codes.flatten(1), nothing(k, c)
        start = torch.full_like(row[:, 0], none) if labels is None else of_label(labels, k, c)
        if dropped is not None:
            start = drop(start, dropped, none)
        return finish(start, row)

    return inputs


_CONDITIONAL_MISTAKES = (
    Mistake(
        "labels as tokens",
        _conditional(of_label=lambda labels, k, c: labels),
        "the label itself is the first token: class 3 is then the same number as code 3. Numbers 0 to K − 1 are codes; "
        "class y is K + y.",
    ),
    Mistake(
        "no class is 0",
        _conditional(nothing=lambda k, c: 0),
        '"no class" is number 0, which is a code. It is K + C, after all classes.',
    ),
    Mistake(
        "no class is the first class",
        _conditional(nothing=lambda k, c: k),
        '"no class" is number K, which is class 0. With C classes it is K + C.',
    ),
    Mistake(
        "no class is the last class",
        _conditional(nothing=lambda k, c: k + max(c - 1, 0)),
        '"no class" is number K + C − 1, which is the last class. It is K + C.',
    ),
    Mistake(
        "one sos for all",
        _conditional(of_label=lambda labels, k, c: torch.full_like(labels, k + c)),
        "every table begins with the same token, whatever its label.",
    ),
    Mistake(
        "classes from K + 1 on",
        _conditional(of_label=lambda labels, k, c: k + 1 + labels),
        'class 0 is number K here, not K + 1: with "no class" at K + C, the last class would collide with it.',
    ),
    Mistake(
        "backwards",
        _conditional(of_label=lambda labels, k, c: k + c - 1 - labels),
        "the classes are numbered from the last to the first; class y is K + y.",
    ),
    Mistake(
        "drop ignored",
        _conditional(drop=lambda start, dropped, none: start),
        '`dropped` is not used: where it is True, the label is replaced by "no class".',
    ),
    Mistake(
        "drop the others",
        _conditional(drop=lambda start, dropped, none: start.masked_fill(~dropped, none)),
        "the labels that are *not* dropped are replaced.",
    ),
    Mistake(
        "drop all",
        _conditional(drop=lambda start, dropped, none: start.masked_fill(dropped.any(), none)),
        "as soon as one label is dropped, all of them are. `dropped` says it for each image.",
    ),
    Mistake(
        "one input too many",
        _conditional(finish=lambda start, row: torch.cat([start[:, None], row], 1)),
        "there are T + 1 inputs; the last code is no input, since nothing follows it.",
    ),
    Mistake(
        "first code overwritten",
        _conditional(finish=lambda start, row: torch.cat([start[:, None], row[:, 1:]], 1)),
        "the start stands in the place of the first code, and the others are not shifted: each place reads its own "
        "target.",
    ),
    Mistake(
        "class at the end",
        _conditional(finish=lambda start, row: torch.cat([row[:, :-1], start[:, None]], 1)),
        "the class stands at the end, where only the last place sees it. It comes first.",
    ),
    Mistake(
        "added to the codes",
        _conditional(finish=lambda start, row: torch.cat([start[:, None], row[:, :-1] + 0 * start[:, None]], 1) + 1),
        "all numbers are one too high: codes keep their own numbers, 0 to K − 1.",
    ),
    Mistake(
        "labels needed where some are dropped",
        lambda codes, labels, k, c, dropped=None: (
            conditional_inputs(codes, labels, k, c)
            if dropped is None
            else conditional_inputs(codes, torch.where(dropped, c, labels), k, c)
        ),
        "`labels` may be None also where `dropped` is given (the prior calls you so): then all images have no class. "
        "Make the row of starts first, and drop from that.",
    ),
)


# Exercise 7.5 -------------------------------------------------------------------------------------------------------


def _filter_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(73)

    def logs(*rows: list[float]) -> Tensor:
        return torch.tensor(rows).log()

    uneven = logs([0.05, 0.4, 0.15, 0.3, 0.1], [0.5, 0.08, 0.02, 0.28, 0.12])
    tied = logs([0.2, 0.1, 0.2, 0.1, 0.3, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5])

    def case(label: str, logits: Tensor, t: float = 1.0, k: int | None = None, p: float | None = None) -> Case:
        return Case(label, (logits, t, k, p))

    return [
        case("nothing but a softmax", uneven),
        case("temperature 2", uneven, 2.0),
        case("temperature 0.5, logits of 2 × 3 places", torch.randn(2, 3, 7, generator=g), 0.5),
        case("top-k, k = 2", uneven, k=2),
        case("top-k, k = 2, three codes tied for the places 4 to 6", tied, k=4),
        case("top-p, p = 0.6", uneven, p=0.6),
        case("top-p, p = 0.2: less than the likeliest code has", uneven, p=0.2),
        case("top-p, p = 0.55, with ties", tied, p=0.55),
        case("temperature 3, k = 3, p = 0.7", uneven, 3.0, 3, 0.7),
        case("temperature 2, k = 4, p = 0.75, twelve codes", 2 * torch.randn(4, 12, generator=g), 2.0, 4, 0.75),
        case("temperature 0", torch.tensor([[0.3, 2.0, 2.0, -1.0], [5.0, 1.0, 0.0, 4.0]]), 0.0),
        case("k = K, p = 1: nothing is cut", uneven, 1.0, 5, 1.0),
        case("large logits, p = 0.9", torch.tensor([[300.0, 299.0, 297.5], [-200.0, -201.0, -203.0]]), p=0.9),
        case("in float64, k = 3", uneven.double(), k=3),
    ]


def _filter_run(implementation: Any, case: Case) -> Observed:
    logits, temperature, top_k, top_p = case.arguments
    given = logits.clone()
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    defaults = {"temperature": 1.0, "top_k": None, "top_p": None}
    result = implementation(given, **{name: value for name, value in options.items() if value != defaults[name]})
    return {"the result": result, "the logits after the call": given}


Cut = Callable[[Tensor, Any], Tensor]


def _only(p: Tensor, keep: Tensor) -> Tensor:
    p = p.where(keep, 0)
    return p / p.sum(-1, keepdim=True)


def _best_k(p: Tensor, k: int) -> Tensor:
    return _only(p, p >= p.topk(k, -1).values[..., -1:])


def _nucleus(p: Tensor, top_p: float, *, whole: bool = True) -> Tensor:
    """``whole``: the code that crosses p is kept too."""
    ranked = p.sort(-1, descending=True).values
    sums = ranked.cumsum(-1) - (ranked if whole else 0)
    inside = sums < top_p if whole else sums <= top_p
    inside[..., 0] |= whole
    least = ranked.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
    return _only(p, p >= least)


def _sampling(
    *,
    heat: Callable[[Tensor, float], Tensor] = lambda logits, t: (logits / t).softmax(-1),
    cold: Callable[[Tensor], Tensor] = lambda logits: filtered_probabilities(logits, temperature=0),
    by_k: Cut = _best_k,
    by_p: Cut = _nucleus,
    first: str = "k",
    finish: Callable[[Tensor], Tensor] = lambda p: p,
) -> Callable[..., Tensor]:
    """The function with one of its parts replaced."""

    def probabilities(
        logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        if temperature == 0:
            return cold(logits)
        p = heat(logits, temperature)
        cuts: dict[str, tuple[Cut, float | None]] = {"k": (by_k, top_k), "p": (by_p, top_p)}
        for name in (first, "p" if first == "k" else "k"):
            cut, value = cuts[name]
            p = p if value is None else cut(p, value)
        return finish(p)

    return probabilities


def _k_by_place(p: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(k, -1).indices, True)
    return _only(p, keep)


def _p_by_place(p: Tensor, top_p: float) -> Tensor:
    ranked, places = p.sort(dim=-1, descending=True, stable=True)
    inside = ranked.cumsum(-1) - ranked < top_p
    return _only(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, places, inside))


def _cut_upwards(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(-1).values
    last = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, -torch.inf).amax(-1, keepdim=True)
    return _only(p, p >= last)


def _left_sorted(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(dim=-1, descending=True).values
    return _only(ranked, ranked.cumsum(-1) - ranked < top_p)


def _not_over(p: Tensor, top_p: float) -> Tensor:
    ranked, places = p.sort(dim=-1, descending=True, stable=True)
    inside = ranked.cumsum(-1) <= top_p
    inside[..., 0] = True
    return _only(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, places, inside))


def _heat_after(logits: Tensor, *, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    if temperature == 0:
        return filtered_probabilities(logits, temperature=0)
    p = filtered_probabilities(logits, top_k=top_k, top_p=top_p)
    return (p.log() / temperature).softmax(-1)


def _in_place(logits: Tensor, *, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    if temperature == 0:
        return filtered_probabilities(logits, temperature=0)
    logits /= temperature
    return filtered_probabilities(logits, top_k=top_k, top_p=top_p)


_FILTER_MISTAKES = (
    Mistake(
        "multiplied by the temperature",
        _sampling(heat=lambda logits, t: (logits * t).softmax(-1)),
        "the logits are multiplied by the temperature: then a high one makes the likeliest code surer. Divide.",
    ),
    Mistake(
        "temperature ignored",
        _sampling(heat=lambda logits, t: logits.softmax(-1)),
        "`temperature` is used for 0 only. Divide the logits by it before the softmax.",
    ),
    Mistake(
        "probabilities divided",
        _sampling(heat=lambda logits, t: logits.softmax(-1) / t),
        "the *probabilities* are divided by the temperature: then they do not sum to one, and scaled to do so they are "
        "what they were. Divide the logits.",
    ),
    Mistake(
        "temperature last",
        _heat_after,
        "the cuts come before the temperature. Temperature is first: top-p then has its sum from the heated "
        "probabilities.",
    ),
    Mistake(
        "division by zero",
        _sampling(cold=lambda logits: (logits / 0.0).softmax(-1)),
        "temperature 0 divides by zero. It stands for the limit: all of the probability on the likeliest code.",
    ),
    Mistake(
        "temperature 0 shared among equals",
        _sampling(cold=lambda logits: _only(logits.softmax(-1), logits == logits.amax(-1, keepdim=True))),
        "at temperature 0 equals share the probability; it is to be the arg-max: of equals the first.",
    ),
    Mistake(
        "temperature 0 as a number",
        _sampling(cold=lambda logits: logits.argmax(-1)),
        "at temperature 0 you give the number of the code; wanted are probabilities: 1 at its place, 0 elsewhere.",
    ),
    Mistake(
        "not scaled again",
        _sampling(
            by_k=lambda p, k: p.where(p >= p.topk(k, -1).values[..., -1:], 0),
            by_p=lambda p, q: p.where(_nucleus(p, q) > 0, 0),
        ),
        "what is left after a cut does not sum to one. Divide by its sum.",
    ),
    Mistake(
        "ties of k broken by place",
        _sampling(by_k=_k_by_place),
        "of codes that are equally likely, you keep those that topk names first. Which ones these are says nothing: "
        "keep all that are as likely as the k-th.",
    ),
    Mistake(
        "k the least likely",
        _sampling(by_k=lambda p, k: _only(p, p <= p.topk(k, -1, largest=False).values[..., -1:])),
        "these are the k *least* likely codes.",
    ),
    Mistake(
        "one too few",
        _sampling(by_k=lambda p, k: _best_k(p, max(1, k - 1))),
        "one code too few is kept by top-k: the k-th itself stays (>=, not >).",
    ),
    Mistake(
        "one too many",
        _sampling(by_k=lambda p, k: _best_k(p, min(k + 1, p.shape[-1]))),
        "one code too many is kept by top-k: the k-th largest stands at place k − 1, counted from 0.",
    ),
    Mistake(
        "top-k ignored",
        _sampling(by_k=lambda p, k: p),
        "`top_k` is not used.",
    ),
    Mistake(
        "top-p ignored",
        _sampling(by_p=lambda p, q: p),
        "`top_p` is not used, or cuts nothing: sort() without descending=True begins with the least likely code, and a "
        "threshold taken from there lets all pass.",
    ),
    Mistake(
        "top-p first",
        _sampling(first="p"),
        "top-p's sum runs over all codes, as if top-p came first. The order is temperature, top-k, top-p: divide by "
        "the sum after top-k, so that top-p adds up what top-k left.",
    ),
    Mistake(  # before the next: with ties treated otherwise, both look like it on the first input that differs
        "the crossing code left out, the likeliest kept",
        _sampling(by_p=_not_over),
        "the code with which the sum reaches top_p is left out: the sum of what you keep stays *below* top_p. Keep a "
        "code if the sum of the likelier ones, without itself, is below top_p.",
    ),
    Mistake(
        "top-p as a threshold",
        _sampling(by_p=lambda p, q: _only(p, p >= torch.minimum(p.amax(-1, keepdim=True), torch.tensor(q)))),
        "top_p is compared with single probabilities. It is a *sum*: keep the fewest likeliest codes that together "
        "reach it.",
    ),
    Mistake(
        "the crossing code left out",
        _sampling(by_p=lambda p, q: _nucleus(p, q, whole=False)),
        "the code with which the sum reaches top_p is left out (and if the likeliest alone reaches it, nothing is "
        "left). Keep a code if the sum of the likelier ones is below top_p.",
    ),
    Mistake(
        "ties of p broken by place",
        _sampling(by_p=_p_by_place),
        "of codes that are equally likely, top-p keeps some and cuts others. Keep all that are as likely as the last "
        "one kept.",
    ),
    Mistake(
        "top-p from the bottom",
        _sampling(by_p=lambda p, q: _only(p, p <= _ascending(p, q))),
        "the sum begins with the least likely code; sort from the likeliest down.",
    ),
    Mistake(
        "logarithms",
        _sampling(finish=lambda p: p.log(), cold=lambda logits: filtered_probabilities(logits, temperature=0).log()),
        "these are logarithms; wanted are the probabilities.",
    ),
    Mistake(
        "logits divided in place",
        _in_place,
        "the result is right, but the caller's logits have changed: `/=` writes into them.",
    ),
    Mistake(
        "softmax by hand",
        _sampling(heat=lambda logits, t: (logits / t).exp() / (logits / t).exp().sum(-1, keepdim=True)),
        "right on paper; but exp of a large logit is infinite in float32. .softmax(-1) takes the largest out first.",
    ),
    Mistake(
        "sum over everything",
        _sampling(
            by_k=lambda p, k: (kept := p.where(_best_k(p, k) > 0, 0)) / kept.sum(),
            by_p=lambda p, q: (kept := p.where(_nucleus(p, q) > 0, 0)) / kept.sum(),
        ),
        "you divide by .sum() of the whole tensor. Each row sums to 1 by itself: sum(-1, keepdim=True).",
    ),
    Mistake(
        "left in order",
        _sampling(by_p=_left_sorted),
        "the probabilities come back sorted, so that place 0 is no longer code 0. Cut by a threshold, p >= least, and "
        "leave the codes where they are.",
    ),
    Mistake(
        "sorted upwards",
        _sampling(by_p=_cut_upwards),
        "your sum begins with the least likely code, and ends where it reaches top_p: few codes are left above that. "
        "Sort from the likeliest down, descending=True.",
    ),
)


def _ascending(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(-1).values
    inside = ranked.cumsum(-1) - ranked < top_p
    return ranked.masked_fill(~inside, -torch.inf).amax(-1, keepdim=True)


def register_all() -> None:
    register(Exercise("shift", CHAPTER, shift, _shift_cases, _SHIFT_MISTAKES, call_for("inputs", "targets")))
    register(
        Exercise(
            "CausalSelfAttention",
            CHAPTER,
            CausalSelfAttention,
            _attention_cases,
            _ATTENTION_MISTAKES,
            module_call(CausalSelfAttention),
        )
    )
    register(Exercise("Block", CHAPTER, Block, _block_cases, _BLOCK_MISTAKES, module_call(Block)))
    register(
        Exercise(
            "filtered_probabilities",
            CHAPTER,
            filtered_probabilities,
            _filter_cases,
            _FILTER_MISTAKES,
            _filter_run,
        )
    )
    register(
        Exercise("conditional_inputs", CHAPTER, conditional_inputs, _conditional_cases, _CONDITIONAL_MISTAKES, call)
    )

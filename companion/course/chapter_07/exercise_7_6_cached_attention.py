"""Exercise 7.6, attention of the newest position, with the keys and values of the earlier ones kept."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import built_alike, gradients_of
from companion.priors.transformer import CausalSelfAttention, causal_attention


def cached_attention(x: Tensor, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of causal self-attention: the newest position asks, all positions so far answer.

    ``CausalSelfAttention`` with a ``Cache`` computes the same; a test compares the two.

    Shapes:
        x: (B, 1, dim), the newest position; keys, values: (B, heads, t, d) of the t positions before it, t ≥ 0 →
        output (B, 1, dim), keys and values (B, heads, t + 1, d), the newest last.
    """
    query, key, value = (
        part.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
        for part in layer.to_qkv(x).chunk(3, -1)
    )
    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    out = causal_attention(query, keys, values)  # one query, t + 1 keys: all of them are of the past
    return layer.to_out(out.transpose(1, 2).flatten(2)), keys, values


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(76)

    def case(label: str, b: int, t: int, dim: int, heads: int, dtype: torch.dtype = torch.float32) -> Case:
        kept = (b, heads, t, dim // heads)
        arguments = tuple(
            torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((b, 1, dim), kept, kept)
        )
        names = {0: "x", 1: "keys", 2: "values"}
        return Case(label, arguments, {"dim": dim, "heads": heads}, names, seed=10 * t + heads)

    return [
        case("two sequences, four positions before this one, two heads of 4", 2, 4, 8, 2),
        case("the first position: nothing is kept yet", 3, 0, 6, 2),
        case("one sequence, one position before this one, three heads of 2", 1, 1, 6, 3),
        case("one head of 5, forty-eight positions before this one, in float64", 2, 48, 5, 1, torch.float64),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The arguments after, the three results, and their gradients at x, at what was kept and at the layer's weights.

    Then a second call with the same layer and other inputs: nothing is remembered, and nothing given back is reused.
    """
    layer, _ = built_alike(CausalSelfAttention, CausalSelfAttention, case)
    layer.to(case.arguments[0].dtype)
    with torch.no_grad():  # biases away from zero, so that forgetting one shows
        for bias in (layer.to_qkv.bias, layer.to_out.bias):
            bias.copy_(torch.arange(len(bias)).sin())
    given = [tensor.detach().clone().requires_grad_() for tensor in case.arguments]
    result = implementation(given[0], layer, *given[1:])
    names = ("output", "keys", "values")
    if result is None:
        return {"the result": None}  # which has a hint of its own
    if not isinstance(result, tuple | list) or len(result) != len(names):
        what = f"{len(result)} results" if isinstance(result, tuple | list) else f"one {type(result).__name__}"
        return {"the result": what}
    wanted = dict(zip(case.gradient_of.values(), given, strict=True)) | dict(layer.named_parameters())
    seen: Observed = {"the result": "three results", "layer.training, afterwards": layer.training}
    after = dict(zip(("x", *names[1:]), given, strict=True)) | dict(layer.named_parameters())
    seen |= {f"{name} after the call": tensor.detach().clone() for name, tensor in after.items()}
    seen |= {f"the {name}": _cloned(part) for name, part in zip(names, result, strict=True)}
    for name, part in zip(names, result, strict=True):
        found = gradients_of(part, wanted)  # a gradient of zeros counts as none: keys and values may share a buffer
        seen |= {f"{what} from the {name}": g if g is not None and g.any() else None for what, g in found.items()}
    again = implementation(-given[0].detach(), layer, *(-kept.detach() for kept in given[1:]))
    seen |= {f"the {name} of a second call, with other inputs": p for name, p in zip(names, again, strict=True)}
    return seen | {f"the {name} of the first call, after the second": p for name, p in zip(names, result, strict=True)}


def _cloned(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


Weigh = Callable[[Tensor], Tensor]


def _variant(
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    one_head: bool = False,
    append: Callable[[Tensor, Tensor], Tensor] = lambda kept, new: torch.cat([kept, new], 2),
    mask: Weigh = lambda scores: scores,
    weigh: Weigh = lambda scores: scores.softmax(-1),
    scale: Callable[[int, int], float] = lambda d, dim: d**-0.5,
    looked_at: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda kept, new, both: both,
    given_back: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda kept, new, both: both,
    finish: Callable[[Any, Tensor, Tensor], Tensor] = lambda layer, out, x: layer.to_out(out),
) -> Callable[..., Any]:
    """The right answer with one of its parts replaced."""

    def cached(x: Tensor, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = layer.to_qkv(x).chunk(3, -1)
        query, key, value = (parts[i].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for i in order)
        all_keys, all_values = append(keys, key), append(values, value)
        scores = query @ looked_at(keys, key, all_keys).mT * scale(query.shape[-1], x.shape[-1])
        out = weigh(mask(scores)) @ looked_at(values, value, all_values)
        out = finish(layer, out.transpose(1, 2).flatten(2), x)
        return out, given_back(keys, key, all_keys), given_back(values, value, all_values)

    return cached


def _first_only(scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)


def _x_kept(x: Tensor, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the position reads is kept, in place of the key and the value made from it."""
    query = layer.to_qkv(x).chunk(3, -1)[0].unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    new = x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    keys, values = torch.cat([keys, new], 2), torch.cat([values, new], 2)
    out = causal_attention(query, keys, values)
    return layer.to_out(out.transpose(1, 2).flatten(2)), keys, values


def _one_softmax_for_all_heads(x: Tensor, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = layer.to_qkv(x).chunk(3, -1)  # (B, 1, dim)

    def flat(kept: Tensor) -> Tensor:
        return kept.transpose(1, 2).flatten(2)  # (B, t, dim)

    flat_keys, flat_values = torch.cat([flat(keys), key], 1), torch.cat([flat(values), value], 1)
    weights = (query @ flat_keys.mT / query.shape[-1] ** 0.5).softmax(-1)
    back = tuple(part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (flat_keys, flat_values))
    return layer.to_out(weights @ flat_values), *back


def _output_last(x: Tensor, layer: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, keys, values = cached_attention(x, layer, keys, values)
    return keys, values, out


MISTAKES = (
    Mistake(
        "the newest left out",
        _variant(looked_at=lambda kept, new, both: kept),
        "the newest position does not look at itself: its own key and value are kept for later, and not used now. "
        "Append first, then attend. (At the first position nothing else is there.)",
    ),
    Mistake(
        "only the newest",
        _variant(looked_at=lambda kept, new, both: new),
        "the newest position looks at itself only: what was kept is not used. It answers to all keys, old and new.",
    ),
    Mistake(
        "a causal mask for one query",
        _variant(mask=_first_only),
        "there is a causal mask (is_causal=True, or triu(1) of a table with one row): it takes your only query for the "
        "*first* position and leaves it the first key. The newest may see all that came before: no mask.",
    ),
    Mistake(
        "appended to the heads",
        _variant(append=lambda kept, new: torch.cat([kept, new], 1)),
        "the new key is appended along the heads, axis 1. In (B, heads, t, d) the positions are axis 2.",
    ),
    Mistake(
        "new ones in front",
        _variant(append=lambda kept, new: torch.cat([new, kept], 2)),
        "the new key and value stand in front of the old ones; they are the newest and come last. (The output is the "
        "same, since attention does not see order; but whoever reads row t of the keys expects position t.)",
    ),
    Mistake(
        "only the new ones given back",
        _variant(given_back=lambda kept, new, both: new),
        "you give back the new key and value alone; at the next step everything before would be forgotten. Give back "
        "all of them, the old and the new.",
    ),
    Mistake(
        "the old ones given back",
        _variant(given_back=lambda kept, new, both: kept),
        "you give back the keys and values that came in: the new ones are used once and lost. Give back t + 1 of them.",
    ),
    Mistake(
        "the oldest dropped",
        _variant(append=lambda kept, new: torch.cat([kept, new], 2)[:, :, -max(kept.shape[2], 1) :]),
        "the oldest key and value fall out, so that there are never more than came in. All positions are kept: "
        "t + 1 of them.",
    ),
    Mistake(
        "a new key for the old",
        _variant(append=lambda kept, new: torch.cat([kept[:, :, :-1], new], 2)),
        "the new key and value take the place of the last ones kept. They come *after* them.",
    ),
    Mistake(
        "queries and keys exchanged",
        _variant(order=(1, 0, 2)),
        "query and key have changed places: you ask with the key and keep the query. to_qkv gives queries, keys, "
        "values, in this order.",
    ),
    Mistake(
        "keys and values exchanged",
        _variant(order=(0, 2, 1)),
        "key and value have changed places: to_qkv gives queries, keys, values, and keys are appended to keys, values "
        "to values.",
    ),
    Mistake(
        "values first",
        _variant(order=(1, 2, 0)),
        "to_qkv gives queries, keys, values, in this order; you take them as values, queries, keys.",
    ),
    Mistake(
        "x kept",
        _x_kept,
        "what is kept is x itself, cut into heads. Keep what to_qkv makes of it, the key and the value.",
    ),
    Mistake(
        "not scaled",
        _variant(scale=lambda d, dim: 1.0),
        "the scores are not divided by √d, as they were in training.",
    ),
    Mistake(
        "scaled by the whole width",
        _variant(scale=lambda d, dim: dim**-0.5),
        "the scores are divided by the root of the whole width; a head's query and keys have d = dim / heads numbers.",
    ),
    Mistake(
        "softmax over the queries",
        _variant(weigh=lambda scores: scores.softmax(-2)),
        "the softmax runs over the queries, and there is one: all weights are 1. It runs over the keys, the last axis.",
    ),
    Mistake(
        "no softmax",
        _variant(weigh=lambda scores: scores),
        "the values are weighted by the scores themselves; take the softmax of them first.",
    ),
    Mistake(
        "one softmax for all heads",
        _one_softmax_for_all_heads,
        "the heads are put together before the softmax, so that there is one for all of them. Each head has a softmax "
        "of its own: the product of query and keys is (B, heads, 1, t + 1).",
    ),
    Mistake(
        "to_out forgotten",
        _variant(finish=lambda layer, out, x: out),
        "the heads' results stand side by side; to_out, which mixes them, is not used.",
    ),
    Mistake(
        "a skip inside",
        _variant(finish=lambda layer, out, x: x + layer.to_out(out)),
        "you add x to the output. That sum is the block's: here it would be added twice.",
    ),
    Mistake(
        "the output alone",
        lambda x, layer, keys, values: cached_attention(x, layer, keys, values)[0],
        "one result is given back; wanted are three: the output, all keys and all values.",
    ),
    Mistake(
        "another order of results",
        _output_last,
        "the three results stand in another order; wanted are output, keys, values.",
    ),
    Mistake(
        "what is kept is detached",
        _variant(given_back=lambda kept, new, both: both.detach()),
        "the values are right, but the keys and values given back are cut off from the graph (detach, .data or "
        "no_grad). Leave gradients to the caller: the loop that draws has switched them off anyway.",
    ),
)

EXERCISE = Exercise(
    name="cached_attention",
    chapter="07_transformer_prior",
    reference=cached_attention,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

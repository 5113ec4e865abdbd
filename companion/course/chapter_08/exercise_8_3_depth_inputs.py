"""Exercise 8.3, what the depth transformer reads: the spatial output, then running sums of embeddings."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion.course.chapter_08._embeddings import Embed, embed_stacks, random_tensors
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def depth_inputs(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    """What the depth transformer reads at each position: h_t, then the sums of the first 1, 2, …, R − 1 embeddings.

    (Lee et al. 2022, section 3.2.)

    Shapes:
        h: (B, T, dim), stacks: (B, T, R) int64, tables: (R, K, dim), depths: (R, dim) → (B, T, R, dim).
    """
    partial = embed_stacks(stacks, tables)[:, :, :-1].cumsum(2)  # (B, T, R − 1, dim)
    return torch.cat([h[:, :, None], partial], dim=2) + depths


def cases() -> Sequence[Case]:
    names = {0: "h", 2: "the tables of embeddings", 3: "the depth embeddings"}

    def case(label: str, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Case:
        made = random_tensors(seed, *shape, dtype=dtype)
        return Case(label, tuple(made[n] for n in ("h", "stacks", "tables", "depths")), gradient_of=names)

    return [
        case("2 images of 3 positions, 4 codes each", 2, 3, 4, 6, 5, seed=84),
        case("1 image of 6 positions, 3 codes each", 1, 6, 3, 3, 4, seed=85),
        case("two codes a position", 3, 2, 2, 5, 3, seed=86),
        case("one code a position: only h", 2, 4, 1, 5, 3, seed=87),
        case("in float64", 2, 3, 3, 4, 2, seed=88, dtype=torch.float64),
    ]


def _variant(
    *,
    embed: Embed = embed_stacks,
    parts: Callable[[Tensor], Tensor] = lambda codes: codes[:, :, :-1].cumsum(2),
    put: Callable[[Tensor, Tensor], Tensor] = lambda h, partial: torch.cat([h[:, :, None], partial], 2),
    add_depths: Callable[[Tensor, Tensor], Tensor] = lambda x, depths: x + depths,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The right answer with one of its parts replaced."""

    def inputs(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
        return add_depths(put(h, parts(embed(stacks, tables))), depths)

    return inputs


def _depths_summed_too(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    partial = (embed_stacks(stacks, tables)[:, :, :-1] + depths[1:]).cumsum(2)
    return torch.cat([(h + depths[0])[:, :, None], partial], 2)


def _depths_of_the_codes(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    partial = (embed_stacks(stacks, tables) + depths)[:, :, :-1].cumsum(2)
    return torch.cat([h[:, :, None], partial], 2)


MISTAKES = (
    Mistake(
        "R + 1 inputs",
        _variant(
            parts=lambda codes: codes.cumsum(2),
            add_depths=lambda x, d: x + torch.cat([d, torch.zeros_like(d[:1])]),
        ),
        "there are R + 1 inputs, so there would be R + 1 logits for R codes. Flattened against the T·R labels they "
        "slip by one more with each position, and nothing raises an error. The last code predicts nothing at its "
        "position: leave it out.",
    ),
    Mistake(
        "R + 1 inputs for R depths",
        _variant(parts=lambda codes: codes.cumsum(2)),
        "h and R running sums are R + 1 vectors, and there are R depths to add to them. The last code predicts nothing "
        "at its position: leave it out.",
    ),
    Mistake(
        "first sum left out",
        _variant(parts=lambda codes: codes.cumsum(2)[:, :, 1:]),
        "the first running sum is left out in place of the last: input 2 holds codes 1 and 2, and code 2 is to be "
        "predicted from it.",
    ),
    Mistake(
        "own code included",
        _variant(parts=lambda codes: codes.cumsum(2), put=lambda h, partial: partial + 0 * h[:, :, None]),
        "input r holds code r itself, which is to be predicted from it. First comes h, then the sums shifted by one.",
    ),
    Mistake(
        "each code alone",
        _variant(parts=lambda codes: codes[:, :, :-1]),
        "input r is the embedding of code r − 1 alone; the *sum* of all codes up to it is wanted, as z_q is built up.",
    ),
    Mistake(
        "sums over positions",
        _variant(parts=lambda codes: codes[:, :, :-1].cumsum(1)),
        "the running sum goes over the positions (axis 1); it is to go over the depths (axis 2).",
    ),
    Mistake(
        "the whole stack",
        _variant(parts=lambda codes: codes.sum(2, keepdim=True).expand(-1, -1, codes.shape[2] - 1, -1)),
        "every input after h holds the sum of the whole stack: the code to be predicted is in it.",
    ),
    Mistake(
        "h in every input",
        _variant(put=lambda h, partial: torch.cat([h[:, :, None], h[:, :, None] + partial], 2)),
        "h is in every input (a running sum that begins with h does that, too). It comes once, as the first of the R; "
        "attention carries it to the others.",
    ),
    Mistake(
        "h last",
        _variant(put=lambda h, partial: torch.cat([partial, h[:, :, None]], 2)),
        "h stands last; it is what the *first* code is predicted from.",
    ),
    Mistake(
        "without h",
        _variant(put=lambda h, partial: torch.cat([0 * h[:, :, None], partial], 2)),
        "h is not in the inputs: the depth transformer would know nothing of the other positions.",
    ),
    Mistake(
        "h of the next position",
        _variant(put=lambda h, partial: torch.cat([h.roll(-1, 1)[:, :, None], partial], 2)),
        "the stack of position t is put behind the h of position t + 1. spatial_inputs has shifted already: h[:, t] "
        "goes with stacks[:, t].",
    ),
    Mistake(
        "running sum with h",
        _variant(put=lambda h, partial: torch.cat([h[:, :, None], partial], 2).cumsum(2)),
        "the sums are summed up once more, h with them. Take one running sum, of the embeddings alone.",
    ),
    Mistake(
        "running mean",
        _variant(
            parts=lambda codes: codes[:, :, :-1].cumsum(2) / torch.arange(1, codes.shape[2]).reshape(-1, 1).clamp(min=1)
        ),
        "these are running means; the running sums are wanted.",
    ),
    Mistake(
        "one table for all depths",
        _variant(embed=lambda stacks, tables: tables[0][stacks]),
        "all depths are looked up in the first table; depth r has its own, tables[r].",
    ),
    Mistake(
        "depths forgotten",
        _variant(add_depths=lambda x, d: x + 0 * d),
        "the depth embeddings are missing.",
    ),
    Mistake(
        "h without a depth",
        _variant(add_depths=lambda x, d: x + torch.cat([torch.zeros_like(d[:1]), d[1:]])),
        "the first input, h, gets a depth embedding as well: depths[0].",
    ),
    Mistake(
        "h detached",
        _variant(put=lambda h, partial: torch.cat([h.detach()[:, :, None] + 0 * h[:, :, None], partial], 2)),
        "the values agree, but no gradient gets back to h: the spatial transformer would never learn.",
    ),
    Mistake(
        "depth embeddings summed too",
        _depths_summed_too,
        "the depth embeddings are inside the running sum, so that input r has those of all depths before it as well. "
        "Sum the codes, then add depths[r] once.",
        also=(_depths_of_the_codes,),
    ),
    Mistake(
        "always float32",
        lambda *given: depth_inputs(*given).float(),
        "float64 comes in and float32 goes out (.float(), or a tensor made with torch.zeros): stay in the dtype of h.",
    ),
    Mistake(
        "first code left out",
        _variant(parts=lambda codes: codes[:, :, 1:].cumsum(2)),
        "the first code is left out in place of the last: input 2 holds code 2, which is to be predicted from it.",
    ),
    Mistake(
        "own code and h",
        _variant(parts=lambda codes: codes.cumsum(2), put=lambda h, partial: partial + h[:, :, None]),
        "input r holds code r itself, which is to be predicted from it, and h is in all of them. First comes "
        "h alone, then the sums shifted by one.",
    ),
    Mistake(
        "sums from the end",
        _variant(parts=lambda codes: codes[:, :, :-1].flip(2).cumsum(2).flip(2)),
        "the sums begin with the last codes, so that input 2 knows nearly the whole stack. They begin with the first.",
        also=(_variant(parts=lambda codes: codes[:, :, 1:].flip(2).cumsum(2).flip(2)),),
    ),
    Mistake(
        "depths moved",
        _variant(add_depths=lambda x, d: x + d.roll(1, 0)),
        "the depth embeddings are moved by one: input r gets depths[r].",
        also=(_variant(add_depths=lambda x, d: x + d.roll(-1, 0)),),
    ),
    Mistake(
        "one depth for all",
        _variant(add_depths=lambda x, d: x + d[:1] + 0 * d),
        "every input gets depths[0]; input r gets depths[r].",
    ),
    Mistake(
        "depths twice",
        _variant(add_depths=lambda x, d: x + 2 * d),
        "the depth embeddings are added twice.",
    ),
    Mistake(
        "stack of the position before",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks.roll(1, 1), tables)),
        "h of position t comes with the stack of position t − 1. h has seen all earlier stacks already: stacks[:, t].",
    ),
    Mistake(
        "h of the position before",
        _variant(put=lambda h, partial: torch.cat([h.roll(1, 1)[:, :, None], partial], 2)),
        "the stack of position t is put behind the h of position t − 1: h[:, t] goes with stacks[:, t].",
    ),
    Mistake(
        "h one late",
        _variant(put=lambda h, partial: torch.cat([0 * h[:, :, None], h[:, :, None] + partial], 2)),
        "the first input is 0 and h comes with the sums. h is the first input, alone.",
    ),
    Mistake(
        "h and one code",
        _variant(
            parts=lambda codes: codes[:, :, :-1],
            put=lambda h, partial: torch.cat([0 * h[:, :, None], partial], 2) + h[:, :, None],
        ),
        "input r is h and code r − 1. h comes once, first; then the *sums* of the codes before r.",
    ),
    Mistake(
        "tables moved by one",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables.roll(-1, 0))),
        "each depth is looked up in a neighbour's table; depth r has tables[r].",
        also=(_variant(embed=lambda stacks, tables: embed_stacks(stacks, tables.roll(1, 0))),),
    ),
    Mistake(
        "products",
        _variant(parts=lambda codes: codes[:, :, :-1].cumprod(2)),
        "the embeddings are multiplied; their running *sum* is wanted.",
    ),
    Mistake(
        "running over the row",
        _variant(parts=lambda codes: codes.flatten(1, 2).cumsum(1).reshape(codes.shape)[:, :, :-1]),
        "the running sum goes on from position to position. It begins anew at each: earlier stacks are in h.",
    ),
    Mistake(
        "h of the first image",
        _variant(put=lambda h, partial: torch.cat([h[:1, :, None].expand(len(h), -1, -1, -1), partial], 2)),
        "all images get the h of the first one.",
    ),
)

EXERCISE = Exercise(
    name="depth_inputs",
    chapter="08_rq_transformer",
    reference=depth_inputs,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

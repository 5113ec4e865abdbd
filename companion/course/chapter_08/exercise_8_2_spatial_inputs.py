"""Exercise 8.2, what the spatial transformer reads: the summed embeddings of the stacks before."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion.course.chapter_08._embeddings import Embed, embed_stacks, random_tensors
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def spatial_inputs(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    """What the spatial transformer reads: <sos>, then for each earlier position the sum of its codes' embeddings.

    (Lee et al. 2022, section 3.2.)

    Shapes:
        stacks: (B, T, R) int64, tables: (R, K, dim), start: (B, dim), positions: (T, dim) → (B, T, dim).
    """
    embedded = embed_stacks(stacks, tables).sum(2)  # (B, T, dim)
    return torch.cat([start[:, None], embedded[:, :-1]], dim=1) + positions


def cases() -> Sequence[Case]:
    names = {1: "the tables of embeddings", 2: "the <sos>", 3: "the positions"}

    def case(label: str, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Case:
        made = random_tensors(seed, *shape, dtype=dtype)
        return Case(label, tuple(made[n] for n in ("stacks", "tables", "start", "positions")), gradient_of=names)

    return [
        case("2 images of 5 positions, 3 codes each", 2, 5, 3, 6, 4, seed=80),
        case("4 images of 3 positions, 2 codes each", 4, 3, 2, 3, 5, seed=81),
        case("one code a position", 3, 4, 1, 5, 2, seed=82),
        case("one position: only the <sos>", 2, 1, 3, 4, 3, seed=83),
        case("in float64", 2, 3, 2, 4, 3, seed=84, dtype=torch.float64),
    ]


def _variant(
    *,
    embed: Embed = lambda stacks, tables: embed_stacks(stacks, tables).sum(2),
    put: Callable[[Tensor, Tensor], Tensor] = lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1),
    add_positions: Callable[[Tensor, Tensor], Tensor] = lambda x, positions: x + positions,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The right answer with one of its parts replaced."""

    def inputs(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
        return add_positions(put(start, embed(stacks, tables)), positions)

    return inputs


def _start_everywhere(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    embedded = embed_stacks(stacks, tables).sum(2)
    shifted = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], 1)
    return shifted + start[:, None] + positions


def _one_code_late(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    codes = embed_stacks(stacks, tables)  # (B, T, R, dim)
    b, t, r, dim = codes.shape
    row = torch.cat([start[:, None], codes.reshape(b, t * r, dim)[:, :-1]], 1)
    return row.reshape(b, t, r, dim).sum(2) + positions


MISTAKES = (
    Mistake(
        "not shifted",
        _variant(put=lambda start, e: e + 0 * start[:, None]),
        "the input at position t holds the codes of position t itself, which are to be predicted there. Put the "
        "<sos> in front and leave out the last stack.",
    ),
    Mistake(
        "one input too many",
        _variant(
            put=lambda start, e: torch.cat([start[:, None], e], 1),
            add_positions=lambda x, p: x + torch.cat([p, torch.zeros_like(p[:1])]),
        ),
        "there are T + 1 inputs for T positions: the last stack has nothing to predict after it. Leave it out.",
    ),
    Mistake(
        "one input too many for the positions",
        _variant(put=lambda start, e: torch.cat([start[:, None], e], 1)),
        "with the <sos> in front there are T + 1 vectors, and T positions to add to them. The last stack has nothing "
        "to predict after it: leave it out.",
    ),
    Mistake(
        "first stack left out",
        _variant(put=lambda start, e: torch.cat([start[:, None], e[:, 1:]], 1)),
        "the *first* stack is left out, so that position t reads stack t, which is to be predicted there. Leave out "
        "the last one.",
    ),
    Mistake(
        "shifted the other way",
        _variant(put=lambda start, e: torch.cat([e[:, 1:], start[:, None]], 1)),
        "the sequence is moved the wrong way: position t is given the *next* stack. The <sos> comes first.",
    ),
    Mistake(
        "start at the wrong end",
        _variant(put=lambda start, e: torch.cat([e[:, :-1], start[:, None]], 1)),
        "the <sos> stands last; it is what the *first* position is predicted from.",
    ),
    Mistake(
        "last stack first",
        _variant(put=lambda start, e: e.roll(1, 1) + 0 * start[:, None]),
        "roll brings the *last* stack to the front, so that the first position knows the end of the image. The <sos> "
        "belongs there.",
    ),
    Mistake(
        "shifted by one code",
        _one_code_late,
        "you shift by one *code*; a position reads whole stacks, so that the shift is by one position (R codes): "
        "otherwise position t is told R − 1 of its own codes.",
    ),
    Mistake(
        "mean",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables).mean(2)),
        "this is the mean of a stack's embeddings; the sum is wanted, as z_q is the sum of the codes.",
    ),
    Mistake(
        "first code only",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables)[:, :, 0]),
        "only the first code of each stack is embedded; add the embeddings of all R.",
    ),
    Mistake(
        "last code only",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables)[:, :, -1]),
        "only the last code of each stack is embedded; add the embeddings of all R.",
    ),
    Mistake(
        "one table for all depths",
        _variant(embed=lambda stacks, tables: tables[0][stacks].sum(2)),
        "all depths are looked up in the first table. Code 3 of depth 1 and code 3 of depth 2 are different codes; and "
        "with one table the stacks (1, 2) and (2, 1) have the same sum.",
    ),
    Mistake(
        "sum of the indices",
        _variant(embed=lambda stacks, tables: tables.sum(0)[stacks.sum(2) % tables.shape[1]]),
        "the *indices* are added and then looked up. Look each one up in its own table, and add the vectors.",
    ),
    Mistake(
        "running sum over positions",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables).sum(2).cumsum(1)),
        "each input holds the sum of *all* stacks so far. One stack each: attention gathers the rest.",
    ),
    Mistake(
        "positions forgotten",
        _variant(add_positions=lambda x, p: x + 0 * p),
        "the position embeddings are missing: attention does not know an order of its own.",
    ),
    Mistake(
        "positions of the stacks",
        _variant(
            put=lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1),
            add_positions=lambda x, p: x + torch.cat([torch.zeros_like(p[:1]), p[:-1]]),
        ),
        "the positions are shifted with the stacks, and the <sos> has none. positions[t] names the position to "
        "be predicted: add it after the shift.",
    ),
    Mistake(
        "first position twice",
        _variant(add_positions=lambda x, p: x + torch.cat([p[:1], p[:-1]])),
        "the positions are added before the shift, and positions[0] a second time to the <sos>. positions[t] names the "
        "position that is to be predicted: add them once, after the shift.",
    ),
    Mistake(
        "embeddings detached",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables).sum(2).detach() + 0 * tables.sum()),
        "the values agree, but the tables get no gradient and would never learn: something is detached.",
    ),
    Mistake(
        "start everywhere",
        _start_everywhere,
        "the <sos> is added to every input. It is the first input, and only that; attention carries it to the others.",
        also=(
            _variant(put=lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1) + start[:, None]),
            _variant(put=lambda start, e: e + start[:, None]),
        ),
    ),
    Mistake(
        "start without its position",
        _variant(add_positions=lambda x, p: x + torch.cat([torch.zeros_like(p[:1]), p[1:]])),
        "the <sos> gets no position. It is what position 0 is predicted from: positions[0] belongs to it.",
    ),
    Mistake(
        "always float32",
        lambda *given: spatial_inputs(*given).float(),
        "float64 comes in and float32 goes out (.float(), or a tensor made with torch.zeros): stay in the tables' "
        "dtype.",
    ),
    Mistake(
        "tables reversed",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables.flip(0)).sum(2)),
        "the tables are taken from the last to the first; the code of depth r has table r.",
    ),
    Mistake(
        "tables moved by one",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables.roll(1, 0)).sum(2)),
        "each depth is looked up in a neighbour's table: tables[torch.arange(R), stacks].",
        also=(_variant(embed=lambda stacks, tables: embed_stacks(stacks, tables.roll(-1, 0)).sum(2)),),
    ),
    Mistake(
        "positions moved",
        _variant(add_positions=lambda x, p: x + p.roll(1, 0)),
        "the positions are moved by one: input t gets positions[t].",
        also=(_variant(add_positions=lambda x, p: x + p.roll(-1, 0)),),
    ),
    Mistake(
        "positions reversed",
        _variant(add_positions=lambda x, p: x + p.flip(0)),
        "the positions are added in reverse: input t gets positions[t].",
    ),
    Mistake(
        "positions twice",
        _variant(add_positions=lambda x, p: x + 2 * p),
        "the positions are added twice.",
    ),
    Mistake(
        "one position for all",
        _variant(add_positions=lambda x, p: x + p[:1] + 0 * p),
        "every input gets positions[0]; input t gets positions[t].",
    ),
    Mistake(
        "last code left out",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables)[:, :, : max(1, stacks.shape[2] - 1)].sum(2)),
        "the last code of each stack is not in the sum (are two written in?). It belongs to an earlier position, "
        "which is known: all R codes.",
        also=(
            _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables)[:, :, :2].sum(2)),
            _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables)[:, :, :-1].sum(2)),
        ),
    ),
    Mistake(
        "start of the first image",
        _variant(put=lambda start, e: torch.cat([start[:1, None].expand(len(e), -1, -1), e[:, :-1]], 1)),
        "all images get the <sos> of the first one; each has its own class.",
    ),
    Mistake(
        "no start",
        _variant(put=lambda start, e: torch.cat([0 * start[:, None], e[:, :-1]], 1)),
        "the first input is 0: the <sos> is missing, and with it the class.",
    ),
    Mistake(
        "shifted across images",
        _variant(
            put=lambda start, e: torch.cat([start[:1], e.flatten(0, 1)[:-1]]).reshape(e.shape) + 0 * start[:, None]
        ),
        "the shift runs through all images in one row: the second begins with the last stack of the first. "
        "Each begins with its <sos>.",
    ),
    Mistake(
        "shifted by two",
        _variant(put=lambda start, e: torch.cat([start[:, None], start[:, None], e[:, :-2]], 1)[:, : e.shape[1]]),
        "the stacks are shifted by two positions: input t is to hold the stack just before it.",
    ),
    Mistake(
        "product",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables).prod(2)),
        "the embeddings of a stack are multiplied; their sum is wanted.",
    ),
    Mistake(
        "largest",
        _variant(embed=lambda stacks, tables: embed_stacks(stacks, tables).amax(2)),
        "of each stack the largest numbers are taken; the sum of its embeddings is wanted.",
    ),
    Mistake(
        "scaled by the width",
        _variant(
            add_positions=lambda x, p: x * x.shape[-1] ** 0.5 + p,
        ),
        "the embeddings are multiplied by √dim, as some models do. Here they are added as they are.",
    ),
    Mistake(
        "running sum with the start",
        _variant(put=lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1).cumsum(1)),
        "each input holds the <sos> and all stacks so far. One stack each: attention gathers the rest.",
    ),
)

EXERCISE = Exercise(
    name="spatial_inputs",
    chapter="08_rq_transformer",
    reference=spatial_inputs,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercises of chapter 08: cost, inputs of both transformers, the RQ-Transformer, sampling stack by stack."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.core import DIAGNOSTIC, Case, Exercise, Mistake, Observed, call, call_for, register
from companion.priors import PriorOutput, RQTransformer
from companion.priors.sampling import draw

CHAPTER = "08_rq_transformer"


def multiply_adds(positions: int, depth: int, dim: int, layers: int, depth_layers: int) -> tuple[int, int]:
    """Multiplications of a forward pass over one image, without the last map to logits, as torch counts them.

    A layer on n vectors: 12·n·dim² in its matrices (3 + 1 for attention, 4 + 4 for the MLP), 2·n²·dim in attention.

    Returns:
        that of the RQ-Transformer, and that of a flattened transformer with as many layers in all.
    """

    def layer(n: int) -> int:
        return 12 * n * dim**2 + 2 * n**2 * dim

    rq = layers * layer(positions) + positions * depth_layers * layer(depth)
    return rq, (layers + depth_layers) * layer(positions * depth)


def spatial_inputs(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    """What the spatial transformer reads: <sos>, then for each earlier position the sum of its codes' embeddings.

    (Lee et al. 2022, section 3.2.)

    Shapes:
        stacks: (B, T, R) int64, tables: (R, K, dim), start: (B, dim), positions: (T, dim) → (B, T, dim).
    """
    embedded = _embedded(stacks, tables).sum(2)  # (B, T, dim)
    return torch.cat([start[:, None], embedded[:, :-1]], dim=1) + positions


def depth_inputs(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    """What the depth transformer reads at each position: h_t, then the sums of the first 1, 2, …, R − 1 embeddings.

    (Lee et al. 2022, section 3.2.)

    Shapes:
        h: (B, T, dim), stacks: (B, T, R) int64, tables: (R, K, dim), depths: (R, dim) → (B, T, R, dim).
    """
    partial = _embedded(stacks, tables)[:, :, :-1].cumsum(2)  # (B, T, R − 1, dim)
    return torch.cat([h[:, :, None], partial], dim=2) + depths


@torch.no_grad()
def sample_stacks(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    """Stacks drawn position by position, and within each code by code.

    Shapes:
        start: (n, dim), the <sos> of each; uniform: (n, T, R) in [0, 1), the chance → (n, T, R) int64.
    """
    n, length, depth = uniform.shape
    stacks = torch.zeros(n, length, depth, dtype=torch.int64, device=start.device)
    for t in range(length):
        inputs = spatial_inputs(stacks[:, : t + 1], model.codes, start, model.positions[: t + 1])
        h = model.spatial(inputs)[:, -1:]  # (n, 1, dim)
        for r in range(depth):
            sequence = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)[:, 0, : r + 1]
            logits = model.to_logits(model.depthwise(sequence)[:, -1])
            stacks[:, t, r] = draw(logits.softmax(-1), uniform[:, t, r])
    return stacks


def _embedded(stacks: Tensor, tables: Tensor) -> Tensor:
    """(B, T, R) → (B, T, R, dim), each depth by its own table."""
    return tables[torch.arange(stacks.shape[-1]), stacks]


# Exercise 8.1 -------------------------------------------------------------------------------------------------------


def _cost_cases() -> Sequence[Case]:
    return [
        Case("T = 49, R = 4, dim 64, 3 + 2 layers", (49, 4, 64, 3, 2)),
        Case("T = 5, R = 1, dim 7, 1 + 1 layers", (5, 1, 7, 1, 1)),
        Case("T = 10, R = 3, dim 8, 2 + 5 layers", (10, 3, 8, 2, 5)),
    ]


def _cost(
    *,
    layer: Callable[[int, int], int] = lambda n, dim: 12 * n * dim**2 + 2 * n**2 * dim,
    rq: Callable[[Callable[[int], int], int, int, int, int], int] = lambda one, t, r, layers, deep: (
        layers * one(t) + t * deep * one(r)
    ),
    flat: Callable[[Callable[[int], int], int, int, int, int], int] = lambda one, t, r, layers, deep: (
        (layers + deep) * one(t * r)
    ),
    finish: Callable[[int, int], Any] = lambda rq, flat: (rq, flat),
) -> Callable[..., Any]:
    """The count with one of its parts replaced."""

    def count(positions: int, depth: int, dim: int, layers: int, depth_layers: int) -> Any:
        def one(n: int) -> int:
            return layer(n, dim)

        shape = (positions, depth, layers, depth_layers)
        return finish(rq(one, *shape), flat(one, *shape))

    return count


_COST_MISTAKES = (
    Mistake(
        "depth transformer once",
        _cost(rq=lambda one, t, r, layers, deep: layers * one(t) + deep * one(r)),
        "the depth transformer is counted for one position only; it runs at each of the T positions.",
    ),
    Mistake(
        "depth transformer over all codes",
        _cost(rq=lambda one, t, r, layers, deep: layers * one(t) + deep * one(t * r)),
        "your depth transformer attends over all T·R codes at once. It sees one stack at a time: T sequences of R "
        "vectors, T·(2·R²·dim) and not 2·(T·R)²·dim.",
    ),
    Mistake(
        "spatial transformer over all codes",
        _cost(rq=lambda one, t, r, layers, deep: layers * one(t * r) + t * deep * one(r)),
        "your spatial transformer reads T·R vectors; a stack is one vector to it, so that it reads T.",
    ),
    Mistake(
        "layers exchanged",
        _cost(rq=lambda one, t, r, layers, deep: deep * one(t) + t * layers * one(r)),
        "`layers` are those of the spatial transformer, `depth_layers` those of the depth transformer: yours are "
        "exchanged.",
    ),
    Mistake(
        "flattened with the spatial layers only",
        _cost(flat=lambda one, t, r, layers, deep: layers * one(t * r)),
        "the flattened transformer is to have as many layers as both of the other together, layers + depth_layers.",
    ),
    Mistake(
        "flattened over the positions",
        _cost(flat=lambda one, t, r, layers, deep: (layers + deep) * one(t)),
        "the flattened transformer reads T·R codes in a row, not T.",
    ),
    Mistake(
        "attention not squared",
        _cost(layer=lambda n, dim: 12 * n * dim**2 + 2 * n * dim),
        "every vector of a sequence is compared with all n of it: attention costs 2·n²·dim, not 2·n·dim.",
    ),
    Mistake(
        "attention counted once",
        _cost(layer=lambda n, dim: 12 * n * dim**2 + n**2 * dim),
        "attention has two products of n²·dim: queries with keys, and weights with values. (The mask halves neither: "
        "what it hides is computed all the same.)",
    ),
    Mistake(
        "half of the pairs",
        _cost(layer=lambda n, dim: 12 * n * dim**2 + n * (n + 1) * dim),
        "only the pairs that the causal mask leaves are counted. Plain code computes all n² and then hides half of "
        "them: count all.",
    ),
    Mistake(
        "attention only",
        _cost(layer=lambda n, dim: 2 * n**2 * dim),
        "only attention is counted; the matrices of a layer, 12·n·dim², are missing.",
    ),
    Mistake(
        "no MLP",
        _cost(layer=lambda n, dim: 4 * n * dim**2 + 2 * n**2 * dim),
        "the matrices count 12·dim² for each vector: 3 + 1 in attention, and 4 + 4 in the MLP, which is missing.",
    ),
    Mistake(
        "exchanged",
        _cost(finish=lambda rq, flat: (flat, rq)),
        "the two results are exchanged: first the RQ-Transformer, then the flattened one.",
    ),
    Mistake(
        "ratio",
        _cost(finish=lambda rq, flat: flat / rq),
        "this is how many times dearer the flattened one is; both numbers are wanted, (rq, flattened).",
    ),
    Mistake(
        "operations",
        _cost(finish=lambda rq, flat: (2 * rq, 2 * flat)),
        "both are twice as large: additions are counted, too. Multiplications only.",
    ),
    Mistake(
        "a list",
        _cost(finish=lambda rq, flat: [rq, flat]),
        "the numbers are right; give them as a tuple: return rq, flattened.",
    ),
    Mistake(
        "not whole",
        _cost(finish=lambda rq, flat: (float(rq), float(flat))),
        "the numbers are right, but they are floats; a count is whole. (/ gives a float, // does not.)",
    ),
)


# Exercise 8.2 -------------------------------------------------------------------------------------------------------


def _tensors(seed: int, *shape: int, dtype: torch.dtype) -> dict[str, Tensor]:
    b, t, r, k, dim = shape
    g = torch.Generator().manual_seed(seed)
    made = {
        "stacks": torch.randint(0, k, (b, t, r), generator=g),
        "tables": torch.randn(r, k, dim, generator=g),
        "start": torch.randn(b, dim, generator=g),
        "positions": torch.randn(t, dim, generator=g),
        "h": torch.randn(b, t, dim, generator=g),
        "depths": torch.randn(r, dim, generator=g),
    }
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def _spatial_cases() -> Sequence[Case]:
    names = {1: "the tables of embeddings", 2: "the <sos>", 3: "the positions"}

    def case(label: str, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Case:
        made = _tensors(seed, *shape, dtype=dtype)
        return Case(label, tuple(made[n] for n in ("stacks", "tables", "start", "positions")), gradient_of=names)

    return [
        case("2 images of 5 positions, 3 codes each", 2, 5, 3, 6, 4, seed=80),
        case("4 images of 3 positions, 2 codes each", 4, 3, 2, 3, 5, seed=81),
        case("one code a position", 3, 4, 1, 5, 2, seed=82),
        case("one position: only the <sos>", 2, 1, 3, 4, 3, seed=83),
        case("in float64", 2, 3, 2, 4, 3, seed=84, dtype=torch.float64),
    ]


Embed = Callable[[Tensor, Tensor], Tensor]


def _reading(
    *,
    embed: Embed = lambda stacks, tables: _embedded(stacks, tables).sum(2),
    put: Callable[[Tensor, Tensor], Tensor] = lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1),
    place: Callable[[Tensor, Tensor], Tensor] = lambda x, positions: x + positions,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The right answer with one of its parts replaced."""

    def inputs(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
        return place(put(start, embed(stacks, tables)), positions)

    return inputs


def _start_everywhere(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    embedded = _embedded(stacks, tables).sum(2)
    shifted = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], 1)
    return shifted + start[:, None] + positions


def _one_code_late(stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor) -> Tensor:
    codes = _embedded(stacks, tables)  # (B, T, R, dim)
    b, t, r, dim = codes.shape
    row = torch.cat([start[:, None], codes.reshape(b, t * r, dim)[:, :-1]], 1)
    return row.reshape(b, t, r, dim).sum(2) + positions


_SPATIAL_MISTAKES = (
    Mistake(
        "not shifted",
        _reading(put=lambda start, e: e + 0 * start[:, None]),
        "the input at position t holds the codes of position t itself, which are to be predicted there. Put the "
        "<sos> in front and leave out the last stack.",
    ),
    Mistake(
        "one input too many",
        _reading(
            put=lambda start, e: torch.cat([start[:, None], e], 1),
            place=lambda x, p: x + torch.cat([p, torch.zeros_like(p[:1])]),
        ),
        "there are T + 1 inputs for T positions: the last stack has nothing to predict after it. Leave it out.",
    ),
    Mistake(
        "one input too many for the positions",
        _reading(put=lambda start, e: torch.cat([start[:, None], e], 1)),
        "with the <sos> in front there are T + 1 vectors, and T positions to add to them. The last stack has nothing "
        "to predict after it: leave it out.",
    ),
    Mistake(
        "first stack left out",
        _reading(put=lambda start, e: torch.cat([start[:, None], e[:, 1:]], 1)),
        "the *first* stack is left out, so that position t reads stack t, which is to be predicted there. Leave out "
        "the last one.",
    ),
    Mistake(
        "shifted the other way",
        _reading(put=lambda start, e: torch.cat([e[:, 1:], start[:, None]], 1)),
        "the sequence is moved the wrong way: position t is given the *next* stack. The <sos> comes first.",
    ),
    Mistake(
        "start at the wrong end",
        _reading(put=lambda start, e: torch.cat([e[:, :-1], start[:, None]], 1)),
        "the <sos> stands last; it is what the *first* position is predicted from.",
    ),
    Mistake(
        "last stack first",
        _reading(put=lambda start, e: e.roll(1, 1) + 0 * start[:, None]),
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
        _reading(embed=lambda stacks, tables: _embedded(stacks, tables).mean(2)),
        "this is the mean of a stack's embeddings; the sum is wanted, as z_q is the sum of the codes.",
    ),
    Mistake(
        "first code only",
        _reading(embed=lambda stacks, tables: _embedded(stacks, tables)[:, :, 0]),
        "only the first code of each stack is embedded; add the embeddings of all R.",
    ),
    Mistake(
        "last code only",
        _reading(embed=lambda stacks, tables: _embedded(stacks, tables)[:, :, -1]),
        "only the last code of each stack is embedded; add the embeddings of all R.",
    ),
    Mistake(
        "one table for all depths",
        _reading(embed=lambda stacks, tables: tables[0][stacks].sum(2)),
        "all depths are looked up in the first table. Code 3 of depth 1 and code 3 of depth 2 are different codes; and "
        "with one table the stacks (1, 2) and (2, 1) have the same sum.",
    ),
    Mistake(
        "sum of the indices",
        _reading(embed=lambda stacks, tables: tables.sum(0)[stacks.sum(2) % tables.shape[1]]),
        "the *indices* are added and then looked up. Look each one up in its own table, and add the vectors.",
    ),
    Mistake(
        "running sum over positions",
        _reading(embed=lambda stacks, tables: _embedded(stacks, tables).sum(2).cumsum(1)),
        "each input holds the sum of *all* stacks so far. One stack each: attention gathers the rest.",
    ),
    Mistake(
        "positions forgotten",
        _reading(place=lambda x, p: x + 0 * p),
        "the position embeddings are missing: attention does not know an order of its own.",
    ),
    Mistake(
        "positions of the stacks",
        _reading(
            put=lambda start, e: torch.cat([start[:, None], e[:, :-1]], 1),
            place=lambda x, p: x + torch.cat([torch.zeros_like(p[:1]), p[:-1]]),
        ),
        "the positions are shifted with the stacks, and the <sos> has none. positions[t] names the place that is to "
        "be predicted: add it after the shift.",
    ),
    Mistake(
        "first position twice",
        _reading(place=lambda x, p: x + torch.cat([p[:1], p[:-1]])),
        "the positions are added before the shift, and positions[0] a second time to the <sos>. positions[t] names the "
        "place that is to be predicted: add them once, after the shift.",
    ),
    Mistake(
        "embeddings detached",
        _reading(embed=lambda stacks, tables: _embedded(stacks, tables).sum(2).detach() + 0 * tables.sum()),
        "the values agree, but the tables get no gradient and would never learn: something is detached.",
    ),
    Mistake(
        "start everywhere",
        _start_everywhere,
        "the <sos> is added to every input. It is the first input, and only that; attention carries it to the others.",
    ),
    Mistake(
        "start without its position",
        _reading(place=lambda x, p: x + torch.cat([torch.zeros_like(p[:1]), p[1:]])),
        "the <sos> gets no position. It is what position 0 is predicted from: positions[0] belongs to it.",
    ),
    Mistake(
        "always float32",
        lambda *given: spatial_inputs(*given).float(),
        "float64 comes in and float32 goes out (.float(), or a tensor made with torch.zeros): stay in the tables' "
        "dtype.",
    ),
)


# Exercise 8.3 -------------------------------------------------------------------------------------------------------


def _depth_cases() -> Sequence[Case]:
    names = {0: "h", 2: "the tables of embeddings", 3: "the depth embeddings"}

    def case(label: str, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Case:
        made = _tensors(seed, *shape, dtype=dtype)
        return Case(label, tuple(made[n] for n in ("h", "stacks", "tables", "depths")), gradient_of=names)

    return [
        case("2 images of 3 positions, 4 codes each", 2, 3, 4, 6, 5, seed=84),
        case("1 image of 6 positions, 3 codes each", 1, 6, 3, 3, 4, seed=85),
        case("two codes a position", 3, 2, 2, 5, 3, seed=86),
        case("one code a position: only h", 2, 4, 1, 5, 3, seed=87),
        case("in float64", 2, 3, 3, 4, 2, seed=88, dtype=torch.float64),
    ]


def _deep(
    *,
    embed: Embed = _embedded,
    parts: Callable[[Tensor], Tensor] = lambda codes: codes[:, :, :-1].cumsum(2),
    put: Callable[[Tensor, Tensor], Tensor] = lambda h, partial: torch.cat([h[:, :, None], partial], 2),
    place: Callable[[Tensor, Tensor], Tensor] = lambda x, depths: x + depths,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The right answer with one of its parts replaced."""

    def inputs(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
        return place(put(h, parts(embed(stacks, tables))), depths)

    return inputs


def _depths_summed_too(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    partial = (_embedded(stacks, tables)[:, :, :-1] + depths[1:]).cumsum(2)
    return torch.cat([(h + depths[0])[:, :, None], partial], 2)


_DEPTH_MISTAKES = (
    Mistake(
        "R + 1 inputs",
        _deep(
            parts=lambda codes: codes.cumsum(2),
            place=lambda x, d: x + torch.cat([d, torch.zeros_like(d[:1])]),
        ),
        "there are R + 1 inputs, so there would be R + 1 logits for R codes. Flattened against the T·R labels they "
        "slip by one more with each position, and nothing raises an error. The last code predicts nothing at its "
        "position: leave it out.",
    ),
    Mistake(
        "R + 1 inputs for R depths",
        _deep(parts=lambda codes: codes.cumsum(2)),
        "h and R running sums are R + 1 vectors, and there are R depths to add to them. The last code predicts nothing "
        "at its position: leave it out.",
    ),
    Mistake(
        "first sum left out",
        _deep(parts=lambda codes: codes.cumsum(2)[:, :, 1:]),
        "the first running sum is left out in place of the last: input 2 holds codes 1 and 2, and code 2 is to be "
        "predicted from it.",
    ),
    Mistake(
        "own code included",
        _deep(parts=lambda codes: codes.cumsum(2), put=lambda h, partial: partial + 0 * h[:, :, None]),
        "input r holds code r itself, which is to be predicted from it. First comes h, then the sums shifted by one.",
    ),
    Mistake(
        "each code alone",
        _deep(parts=lambda codes: codes[:, :, :-1]),
        "input r is the embedding of code r − 1 alone; the *sum* of all codes up to it is wanted, as z_q is built up.",
    ),
    Mistake(
        "sums over positions",
        _deep(parts=lambda codes: codes[:, :, :-1].cumsum(1)),
        "the running sum goes over the positions (axis 1); it is to go over the depths (axis 2).",
    ),
    Mistake(
        "the whole stack",
        _deep(parts=lambda codes: codes.sum(2, keepdim=True).expand(-1, -1, codes.shape[2] - 1, -1)),
        "every input after h holds the sum of the whole stack: the code to be predicted is in it.",
    ),
    Mistake(
        "h in every input",
        _deep(put=lambda h, partial: torch.cat([h[:, :, None], h[:, :, None] + partial], 2)),
        "h is added to every input. It comes once, as the first of the R; attention carries it to the others.",
    ),
    Mistake(
        "h last",
        _deep(put=lambda h, partial: torch.cat([partial, h[:, :, None]], 2)),
        "h stands last; it is what the *first* code is predicted from.",
    ),
    Mistake(
        "without h",
        _deep(put=lambda h, partial: torch.cat([0 * h[:, :, None], partial], 2)),
        "h is not in the inputs: the depth transformer would know nothing of the other positions.",
    ),
    Mistake(
        "h of the next position",
        _deep(put=lambda h, partial: torch.cat([h.roll(-1, 1)[:, :, None], partial], 2)),
        "the stack of position t is put behind the h of position t + 1. spatial_inputs has shifted already: h[:, t] "
        "goes with stacks[:, t].",
    ),
    Mistake(
        "running sum with h",
        _deep(put=lambda h, partial: torch.cat([h[:, :, None], partial], 2).cumsum(2)),
        "the sums are summed up once more, h with them. Take one running sum, of the embeddings alone.",
    ),
    Mistake(
        "running mean",
        _deep(
            parts=lambda codes: codes[:, :, :-1].cumsum(2) / torch.arange(1, codes.shape[2]).reshape(-1, 1).clamp(min=1)
        ),
        "these are running means; the running sums are wanted.",
    ),
    Mistake(
        "one table for all depths",
        _deep(embed=lambda stacks, tables: tables[0][stacks]),
        "all depths are looked up in the first table; depth r has its own, tables[r].",
    ),
    Mistake(
        "depths forgotten",
        _deep(place=lambda x, d: x + 0 * d),
        "the depth embeddings are missing.",
    ),
    Mistake(
        "h without a depth",
        _deep(place=lambda x, d: x + torch.cat([torch.zeros_like(d[:1]), d[1:]])),
        "the first input, h, gets a depth embedding as well: depths[0].",
    ),
    Mistake(
        "h detached",
        _deep(put=lambda h, partial: torch.cat([h.detach()[:, :, None] + 0 * h[:, :, None], partial], 2)),
        "the values agree, but no gradient gets back to h: the spatial transformer would never learn.",
    ),
    Mistake(
        "depth embeddings summed too",
        _depths_summed_too,
        "the depth embeddings are inside the running sum, so that input r has those of all depths before it as well. "
        "Sum the codes, then add depths[r] once.",
    ),
    Mistake(
        "always float32",
        lambda *given: depth_inputs(*given).float(),
        "float64 comes in and float32 goes out (.float(), or a tensor made with torch.zeros): stay in the dtype of h.",
    ),
)


# Exercise 8.4 -------------------------------------------------------------------------------------------------------


def _model_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(88)

    def case(label: str, n: int, grid: tuple[int, int, int], k: int, labels: Tensor | None, **build: int) -> Case:
        codes = torch.randint(0, k, (n, *grid), generator=g)
        codes[0, 0, 0, 0] = 0  # so that leaving out code 0 shows
        shape = {"num_codes": k, "grid": grid, "dim": 8, "layers": 1, "depth_layers": 1, "heads": 2, **build}
        return Case(label, (codes, labels), shape)

    return [
        case("a grid of 2 × 3, 2 codes a position, with classes", 2, (2, 3, 2), 5, torch.tensor([1, 0]), num_classes=2),
        case("a grid of 3 × 1, 3 codes a position, no class given", 3, (3, 1, 3), 4, None, num_classes=2),
        case("one position of 4 codes, a prior without classes", 2, (1, 1, 4), 6, None),
        case("2 × 2 positions of one code", 2, (2, 2, 1), 3, torch.tensor([2, 2]), num_classes=3),
        case("all of class 0", 2, (1, 2, 2), 4, torch.tensor([0, 0]), num_classes=2),
    ]


def _model_run(implementation: Any, case: Case) -> Observed:
    """Logits, loss and its gradients, with the companion's weights, of which none is zero."""
    codes, labels = case.arguments
    torch.manual_seed(case.seed)
    weights = RQTransformer(**case.build).state_dict()
    model = implementation(**case.build)
    seen: Observed = {"the names of the weights (given by __init__)": sorted(model.state_dict())}
    if set(model.state_dict()) == set(weights):
        g = torch.Generator().manual_seed(89)
        model.load_state_dict({name: 0.4 * torch.randn(w.shape, generator=g) for name, w in weights.items()})
    given = codes.clone()
    out = model(given, labels)
    seen["is the result a PriorOutput?"] = isinstance(out, PriorOutput)
    if not isinstance(out, PriorOutput):
        return seen | {"the type of the result": type(out).__name__}
    seen |= {"the logits": out.logits, "the loss": out.loss, "the codes after the call": given}
    found: Sequence[Tensor | None] = [None] * len(list(model.parameters()))
    if isinstance(out.loss, Tensor) and out.loss.requires_grad and out.loss.ndim == 0:
        found = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    for (name, weight), grad in zip(model.named_parameters(), found, strict=True):
        seen[f"the gradient of {name}"] = torch.zeros_like(weight) if grad is None else grad
    return seen


Parts = tuple[Tensor, Tensor]  # logits, codes, both in the shape of the grid


def _entropy(logits: Tensor, codes: Tensor) -> Tensor:
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), codes.flatten())


def _assembled(
    *,
    start: Callable[[RQTransformer, Tensor, Tensor | None], Tensor] = lambda m, codes, labels: m.sos(
        torch.full((len(codes),), m.num_classes) if labels is None else labels
    ),
    spatial: Callable[[RQTransformer, Tensor], Tensor] = lambda m, x: m.spatial(x),
    deep: Callable[[RQTransformer, Tensor], Tensor] = lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape),
    shape: Callable[[Tensor, Tensor], Tensor] = lambda logits, codes: logits.reshape(*codes.shape, -1),
    loss: Callable[[Tensor, Tensor], Tensor] = _entropy,
    finish: Callable[[Tensor, Tensor], Any] = PriorOutput,
) -> type[RQTransformer]:
    """The model with one of its parts replaced."""

    class Variant(RQTransformer):
        def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:
            stacks = codes.reshape(len(codes), -1, codes.shape[-1])
            h = spatial(self, spatial_inputs(stacks, self.codes, start(self, codes, labels), self.positions))
            out = deep(self, depth_inputs(h, stacks, self.codes, self.depths))
            logits = self.to_logits(out)  # (B, T, R, K)
            return finish(shape(logits, codes), loss(logits, codes))

    return Variant


class _ShiftedLabels(RQTransformer):
    """As the published package has it: R + 1 logits a position, cut to the length of the labels."""

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:
        stacks = codes.reshape(len(codes), -1, self.depth)
        starts = self._classes(labels, len(codes), codes.device)
        h = self.spatial(spatial_inputs(stacks, self.codes, self.sos(starts), self.positions))
        partial = _embedded(stacks, self.codes).cumsum(2)
        depths = torch.cat([self.depths, torch.zeros_like(self.depths[:1])])
        sequence = torch.cat([h[:, :, None], partial], 2) + depths  # (B, T, R + 1, dim)
        out = self.to_logits(self.depthwise(sequence.flatten(0, 1)))
        logits = out.reshape(len(codes), -1, self.num_codes)[:, : self.length]
        return PriorOutput(logits.reshape(*codes.shape, -1), _entropy(logits, codes))


class _DepthBeforeSpace(RQTransformer):
    """Reads the depth transformer's input as if depth came before position."""

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:
        stacks = codes.reshape(len(codes), self.depth, -1).transpose(1, 2)
        starts = self._classes(labels, len(codes), codes.device)
        h = self.spatial(spatial_inputs(stacks, self.codes, self.sos(starts), self.positions))
        x = depth_inputs(h, stacks, self.codes, self.depths)
        logits = self.to_logits(self.depthwise(x.flatten(0, 1)).reshape(x.shape))
        return PriorOutput(logits.reshape(*codes.shape, -1), _entropy(logits, stacks))


_MODEL_MISTAKES = (
    Mistake(
        "labels shifted by one",
        _ShiftedLabels,
        "your depth transformer gives R + 1 logits a position, and they are cut to T·R before they meet the labels. "
        "From the second position on each label meets a logit that belongs to an earlier code: the loss falls all the "
        "same, and held-out codes cost more bits. R inputs, R logits, R labels a position.",
    ),
    Mistake(
        "code 0 left out",
        _assembled(
            loss=lambda logits, codes: functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), codes.flatten(), ignore_index=0
            )
        ),
        "code 0 is left out of the loss (ignore_index=0), as if it were padding. It is a code like the others.",
    ),
    Mistake(
        "starts with code 0",
        _assembled(start=lambda m, codes, labels: m.codes[:, 0].sum(0).expand(len(codes), -1) + 0 * m.sos.weight.sum()),
        "the sequence starts with the embedding of code 0. The <sos> has vectors of its own, self.sos.",
    ),
    Mistake(
        "class ignored",
        _assembled(start=lambda m, codes, labels: m.sos(torch.full((len(codes),), m.num_classes))),
        "every image starts with the <sos> for 'no class'; where labels are given, use self.sos(labels).",
    ),
    Mistake(
        "no class is class 0",
        _assembled(
            start=lambda m, codes, labels: m.sos(
                torch.zeros(len(codes), dtype=torch.int64) if labels is None else labels
            )
        ),
        "without labels you use the <sos> of class 0. 'No class' has one of its own, the last: self.num_classes.",
    ),
    Mistake(
        "depth transformer over the image",
        _assembled(deep=lambda m, x: m.depthwise(x.flatten(1, 2)).reshape(x.shape)),
        "the depth transformer runs over all T·R codes of an image in a row: that is the flattened transformer. Each "
        "position is a sequence of its own, (B·T, R, dim).",
    ),
    Mistake(
        "depth transformer over the positions",
        _assembled(
            deep=lambda m, x: (
                m.depthwise(x.transpose(1, 2).flatten(0, 1))
                .reshape(x.shape[0], x.shape[2], x.shape[1], -1)
                .transpose(1, 2)
            )
        ),
        "the depth transformer attends along the positions; it is to go down the stack, (B·T, R, dim).",
    ),
    Mistake(
        "depth transformer on four axes",
        _assembled(deep=lambda m, x: m.depthwise(x)),
        "the depth transformer takes (n, R, dim), three axes, and gets four. Each position is a sequence of its own: "
        "reshape to (B·T, R, dim), and back afterwards.",
    ),
    Mistake(
        "no depth transformer",
        _assembled(deep=lambda m, x: x + 0 * m.depthwise(x.flatten(0, 1)).reshape(x.shape)),
        "the depth transformer is left out: its *inputs* go straight to the logits.",
    ),
    Mistake(
        "spatial transformer twice",
        _assembled(deep=lambda m, x: m.spatial(x.flatten(0, 1)).reshape(x.shape)),
        "the stacks go through self.spatial; self.depthwise is the transformer for the depth.",
    ),
    Mistake(
        "no spatial transformer",
        _assembled(spatial=lambda m, x: x + 0 * m.spatial(x)),
        "h is the *output* of the spatial transformer; its inputs go into the depth transformer here.",
    ),
    Mistake(
        "first code from h alone for all",
        _assembled(deep=lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape)[:, :, :1].expand_as(x)),
        "all R codes get the logits of the first place. Each place of the depth transformer predicts its own code.",
    ),
    Mistake(
        "depth first in the codes",
        _DepthBeforeSpace,
        "the codes are (B, h, w, R), the depth last: reshape them to (B, T, R), not to (B, R, T).",
    ),
    Mistake(
        "logits without a grid",
        _assembled(shape=lambda logits, codes: logits.flatten(1, 2)),
        "the logits are to be (B, h, w, R, K), in the shape of the codes.",
    ),
    Mistake(
        "nats per position",
        _assembled(loss=lambda logits, codes: codes.shape[-1] * _entropy(logits, codes)),
        "the loss is summed over the depths: R times what it is per code. It is to be the mean over all codes.",
    ),
    Mistake(
        "nats per image",
        _assembled(loss=lambda logits, codes: codes[0].numel() * _entropy(logits, codes)),
        "the loss is that of a whole image; it is to be the mean over all codes.",
    ),
    Mistake(
        "bits",
        _assembled(loss=lambda logits, codes: _entropy(logits, codes) / math.log(2)),
        "the loss is in bits; it is to be in nats, as cross_entropy gives it.",
    ),
    Mistake(
        "probabilities for logits",
        _assembled(loss=lambda logits, codes: _entropy(logits.softmax(-1), codes)),
        "cross_entropy takes the logits and does the softmax itself; here it gets probabilities.",
    ),
    Mistake(
        "last depth only",
        _assembled(loss=lambda logits, codes: _entropy(logits[:, :, -1], codes[..., -1])),
        "only the last code of each stack is in the loss.",
    ),
    Mistake(
        "first depth only",
        _assembled(loss=lambda logits, codes: _entropy(logits[:, :, 0], codes[..., 0])),
        "only the first code of each stack is in the loss.",
    ),
    Mistake(
        "a tuple",
        _assembled(finish=lambda logits, loss: (logits, loss)),
        "the result is a tuple; put both into PriorOutput(logits, loss).",
    ),
    Mistake(
        "class 0 taken for no class",
        _assembled(
            start=lambda m, codes, labels: m.sos(
                torch.full((len(codes),), m.num_classes) if labels is None or not labels.any() else labels
            )
        ),
        "a batch whose labels are all 0 is taken for one without labels (`if labels.any()`). 0 is a class: ask whether "
        "labels is None.",
    ),
    Mistake(
        "images and positions mixed",
        _assembled(
            deep=lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
        ),
        "images and positions are mixed on the way back: rows b·T + t were made from (B, T), so reshape to (B, T, R, "
        "dim), in this order.",
    ),
)


# Exercise 8.5 -------------------------------------------------------------------------------------------------------


def _sampling_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(90)

    def case(label: str, n: int, t: int, r: int, k: int) -> Case:
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, only to be overwritten
            model = RQTransformer(k, (1, t, r), dim=8, layers=1, depth_layers=1, heads=2)
        model = _randomised(model, g)
        start = torch.randn(n, 8, generator=g, dtype=torch.float64)
        return Case(label, (model, start, torch.rand(n, t, r, generator=g, dtype=torch.float64)))

    return [
        case("5 images of 4 positions, 3 codes each", 5, 4, 3, 6),
        case("7 images of 6 positions, 2 codes each", 7, 6, 2, 4),
        case("one position of 4 codes", 6, 1, 4, 5),
        case("5 positions of one code", 6, 5, 1, 5),
    ]


def _randomised(model: RQTransformer, g: torch.Generator) -> RQTransformer:
    """In float64, so that no rounding decides which code is drawn; its logits far from equal."""
    made = model.double().eval()
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            scale = 1.0 if "to_logits" in name or "codes" in name else 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=g))
    return made


def _sampling_run(implementation: Any, case: Case) -> Observed:
    """The codes, how often each transformer ran, and what it left behind."""
    model, start, uniform = case.arguments
    calls = {"spatial": 0, "depth": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    handles = [
        module.register_forward_hook(counted(name))
        for name, module in (("spatial", model.spatial), ("depth", model.depthwise))
    ]
    given = uniform.clone()
    try:
        result = implementation(model, start.clone(), given)
    finally:
        for handle in handles:
            handle.remove()
    _, t, r = uniform.shape
    seen: Observed = {"the codes": result}
    seen["how often the spatial transformer ran"] = calls["spatial"]
    seen["how often the depth transformer ran"] = calls["depth"]
    seen["has the result a graph?"] = isinstance(result, Tensor) and result.requires_grad
    seen["uniform after the call"] = given
    seen[DIAGNOSTIC + "positions and depths"] = f"{t} {r}"
    return seen


Draw = Callable[[Tensor, Tensor], Tensor]


def _stack_by_stack(t: int, r: int) -> list[tuple[int, int]]:
    return [divmod(step, r) for step in range(t * r)]


def _depth_by_depth(t: int, r: int) -> list[tuple[int, int]]:
    return [(step % t, step // t) for step in range(t * r)]


def _sampler(
    *,
    spatial: Callable[[RQTransformer, Tensor, Tensor, int], Tensor] = lambda m, stacks, start, t: m.spatial(
        spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])
    )[:, -1:],
    every_code: bool = False,
    context: Callable[[Tensor, int, int], Tensor] = lambda stacks, t, r: stacks[:, t : t + 1],
    place: Callable[[int], Any] = lambda r: -1,
    window: Callable[[int], slice] = lambda r: slice(0, r + 1),
    pick: Draw = lambda logits, u: draw(logits.softmax(-1), u),
    chance: Callable[[Tensor, int, int], Tensor] = lambda u, t, r: u[:, t, r],
    keep: bool = True,
    finish: Callable[[Tensor], Any] = lambda stacks: stacks,
    order: Callable[[int, int], list[tuple[int, int]]] = _stack_by_stack,
) -> Callable[[RQTransformer, Tensor, Tensor], Any]:
    """The right answer with one of its parts replaced."""

    @torch.no_grad()
    def sample(model: RQTransformer, start: Tensor, uniform: Tensor) -> Any:
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        drawn = stacks.clone()
        for t, r in order(uniform.shape[1], uniform.shape[2]):
            if r == 0 or every_code:
                h = spatial(model, stacks, start, t)
            inputs = depth_inputs(h, context(stacks, t, r), model.codes, model.depths)[:, 0, window(r)]
            logits = model.to_logits(model.depthwise(inputs)[:, place(r)])
            drawn[:, t, r] = pick(logits, chance(uniform, t, r))
            if keep:
                stacks[:, t, r] = drawn[:, t, r]
        return finish(drawn)

    return sample


def _whole_stacks_at_once(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    """One pass of the depth transformer a position, with no code of the stack known."""
    with torch.no_grad():
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        for t in range(uniform.shape[1]):
            h = model.spatial(spatial_inputs(stacks[:, : t + 1], model.codes, start, model.positions[: t + 1]))[:, -1:]
            inputs = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)[:, 0]
            logits = model.to_logits(model.depthwise(inputs))
            for r in range(uniform.shape[2]):
                stacks[:, t, r] = draw(logits[:, r].softmax(-1), uniform[:, t, r])
        return stacks


def _spatial_once(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    with torch.no_grad():
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        h = model.spatial(spatial_inputs(stacks, model.codes, start, model.positions))
        for t, r in _stack_by_stack(uniform.shape[1], uniform.shape[2]):
            inputs = depth_inputs(h[:, t : t + 1], stacks[:, t : t + 1], model.codes, model.depths)[:, 0, : r + 1]
            logits = model.to_logits(model.depthwise(inputs)[:, -1])
            stacks[:, t, r] = draw(logits.softmax(-1), uniform[:, t, r])
        return stacks


_SAMPLING_MISTAKES = (
    Mistake(
        "spatial transformer for every code",
        _sampler(every_code=True),
        "the codes are right, but the spatial transformer runs for every code. What it reads changes only when a stack "
        "is finished: once a position is enough, and that is what makes this model cheap.",
    ),
    Mistake(
        "all codes of a stack at once",
        _whole_stacks_at_once,
        "all codes of a stack are drawn from one pass, so that none knows of those before it. Run the depth "
        "transformer once a code, with the codes drawn so far.",
    ),
    Mistake(
        "always the likeliest",
        _sampler(pick=lambda logits, u: logits.argmax(-1)),
        "this takes the likeliest code and needs no chance; draw(probabilities, uniform[:, t, r]) is wanted.",
    ),
    Mistake(
        "logits for probabilities",
        _sampler(pick=lambda logits, u: draw(logits, u)),
        "draw wants probabilities: logits.softmax(-1).",
    ),
    Mistake(
        "chance of one's own",
        _sampler(chance=lambda u, t, r: torch.rand(len(u), dtype=u.dtype)),
        "you draw random numbers of your own; the chance is given, in `uniform`.",
    ),
    Mistake(
        "one chance a position",
        _sampler(chance=lambda u, t, r: u[:, t, 0]),
        "all codes of a position get the same random number, so that they are not drawn independently: take "
        "uniform[:, t, r].",
    ),
    Mistake(
        "one chance a depth",
        _sampler(chance=lambda u, t, r: u[:, 0, r]),
        "all positions get the same random numbers: take uniform[:, t, r].",
    ),
    Mistake(
        "logits of the first place",
        _sampler(place=lambda r: 0),
        "every code is drawn from the logits of the first place, which predict the first code. Take the newest: "
        "[:, -1].",
    ),
    Mistake(
        "last place of a whole stack",
        _sampler(window=lambda r: slice(None)),
        "the depth transformer reads the whole stack, and you take its last place, which predicts the last code. Give "
        "it the first r + 1 inputs, or take place r.",
    ),
    Mistake(
        "h of the first position",
        _sampler(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])
            )[:, :1]
        ),
        "you take h of the first position; position t is predicted from the *last* output, [:, -1:].",
    ),
    Mistake(
        "one position ahead",
        _sampler(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(
                    torch.cat([stacks, stacks[:, :1]], 1)[:, : t + 2],
                    m.codes,
                    start,
                    torch.cat([m.positions, m.positions[:1]])[: t + 2],
                )
            )[:, -1:]
        ),
        "the spatial transformer reads one input too many: at position t there are t + 1 of them, <sos> and t stacks.",
    ),
    Mistake(
        "one position late",
        _sampler(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : max(t, 1)], m.codes, start, m.positions[: max(t, 1)])
            )[:, -1:]
        ),
        "from the second position on the newest stack is not read: at position t there are t + 1 inputs, <sos> and t "
        "stacks.",
    ),
    Mistake(
        "nothing is written back",
        _sampler(keep=False),
        "what is drawn is not put into the stacks that are read next: every code is drawn as if all before it were 0.",
    ),
    Mistake(
        "no start",
        _sampler(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, 0 * start, m.positions[: t + 1])
            )[:, -1:]
        ),
        "the <sos> is not used: the class is in `start`.",
    ),
    Mistake(
        "depth by depth",
        _sampler(order=_depth_by_depth, every_code=True),
        "you draw all positions' first codes, then all second ones. The model finishes a stack before it goes on: "
        "positions outside, depths inside.",
    ),
    Mistake(
        "a flat row",
        _sampler(finish=lambda stacks: stacks.flatten(1)),
        "the codes are right, but in one row of T·R; (n, T, R) is wanted.",
    ),
    Mistake(
        "torch.multinomial",
        _sampler(pick=lambda logits, u: torch.multinomial(logits.softmax(-1), 1)[:, 0]),
        "torch.multinomial draws with random numbers of its own. Here they are given: draw(probabilities, "
        "uniform[:, t, r]).",
    ),
    Mistake(
        "softmax over the batch",
        _sampler(pick=lambda logits, u: draw(logits.softmax(0), u)),
        "the softmax runs over the images of the batch. The codes are on the last axis: softmax(-1).",
    ),
    Mistake(
        "spatial transformer once",
        _spatial_once,
        "the spatial transformer runs once, before there is a stack to read: every position is drawn as if nothing "
        "stood before it. It runs at each position, on the stacks drawn so far.",
    ),
    Mistake(
        "newest stack only",
        _sampler(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])[:, -1:]
            )
        ),
        "the spatial transformer is given the newest input only, and there is no cache that remembers the others. Give "
        "it all of them, and take the last output.",
    ),
    Mistake(
        "newest code only",
        _sampler(window=lambda r: slice(r, r + 1)),
        "the depth transformer is given the newest input only, and there is no cache that remembers h and the others. "
        "Give it the first r + 1, and take the last output.",
    ),
)


def register_all() -> None:
    both = call_for("count of the RQ-Transformer", "count of the flattened transformer")
    register(Exercise("multiply_adds", CHAPTER, multiply_adds, _cost_cases, _COST_MISTAKES, both))
    register(Exercise("spatial_inputs", CHAPTER, spatial_inputs, _spatial_cases, _SPATIAL_MISTAKES, call))
    register(Exercise("depth_inputs", CHAPTER, depth_inputs, _depth_cases, _DEPTH_MISTAKES, call))
    register(Exercise("RQTransformer", CHAPTER, RQTransformer, _model_cases, _MODEL_MISTAKES, _model_run))
    register(Exercise("sample_stacks", CHAPTER, sample_stacks, _sampling_cases, _SAMPLING_MISTAKES, _sampling_run))

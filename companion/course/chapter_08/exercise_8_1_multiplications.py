"""Exercise 8.1, count: multiplications of the RQ-Transformer and of a flattened transformer."""

from collections.abc import Callable, Sequence
from typing import Any

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call_for


def multiplications(positions: int, depth: int, dim: int, layers: int, depth_layers: int) -> tuple[int, int]:
    """Multiplications of a forward pass over one image, in matrix products, without the last map to logits.

    A multiplication and the addition that follows it count as one (torch's ``FlopCounterMode`` counts them as two), and
    all pairs of attention count, those that the mask hides as well (as it does).

    A layer on n vectors: 12·n·dim² in its matrices (3 + 1 for attention, 4 + 4 for the MLP), 2·n²·dim in attention.

    Returns:
        that of the RQ-Transformer, and that of a flattened transformer with as many layers in all.
    """

    def layer(n: int) -> int:
        return 12 * n * dim**2 + 2 * n**2 * dim

    rq = layers * layer(positions) + positions * depth_layers * layer(depth)
    return rq, (layers + depth_layers) * layer(positions * depth)


def cases() -> Sequence[Case]:
    return [
        Case("T = 49, R = 4, dim 64, 3 + 2 layers", (49, 4, 64, 3, 2)),
        Case("T = 5, R = 1, dim 7, 1 + 1 layers", (5, 1, 7, 1, 1)),
        Case("T = 10, R = 3, dim 8, 2 + 5 layers", (10, 3, 8, 2, 5)),
    ]


def _variant(
    *,
    layer: Callable[[int, int], int] = lambda n, dim: 12 * n * dim**2 + 2 * n**2 * dim,
    rq: Callable[[Callable[[int], int], int, int, int, int], int] = lambda cost, t, r, layers, deep: (
        layers * cost(t) + t * deep * cost(r)
    ),
    flat: Callable[[Callable[[int], int], int, int, int, int], int] = lambda cost, t, r, layers, deep: (
        (layers + deep) * cost(t * r)
    ),
    finish: Callable[[int, int], Any] = lambda rq, flat: (rq, flat),
) -> Callable[..., Any]:
    """The count with one of its parts replaced."""

    def count(positions: int, depth: int, dim: int, layers: int, depth_layers: int) -> Any:
        def cost(n: int) -> int:
            return layer(n, dim)

        shape = (positions, depth, layers, depth_layers)
        return finish(rq(cost, *shape), flat(cost, *shape))

    return count


MISTAKES = (
    Mistake(
        "depth transformer once",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + deep * cost(r)),
        "the depth transformer is counted for one position only; it runs at each of the T positions.",
    ),
    Mistake(
        "depth transformer over all codes",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + deep * cost(t * r)),
        "your depth transformer attends over all T·R codes at once. It sees one stack at a time: T sequences of R "
        "vectors, T·(2·R²·dim) and not 2·(T·R)²·dim.",
    ),
    Mistake(
        "spatial transformer over all codes",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t * r) + t * deep * cost(r)),
        "your spatial transformer reads T·R vectors; a stack is one vector to it, so that it reads T.",
    ),
    Mistake(
        "layers exchanged",
        _variant(rq=lambda cost, t, r, layers, deep: deep * cost(t) + t * layers * cost(r)),
        "`layers` are those of the spatial transformer, `depth_layers` those of the depth transformer: yours are "
        "exchanged.",
    ),
    Mistake(
        "flattened with the spatial layers only",
        _variant(flat=lambda cost, t, r, layers, deep: layers * cost(t * r)),
        "the flattened transformer is to have as many layers as both of the other together, layers + depth_layers.",
    ),
    Mistake(
        "flattened over the positions",
        _variant(flat=lambda cost, t, r, layers, deep: (layers + deep) * cost(t)),
        "the flattened transformer reads T·R codes in a row, not T.",
    ),
    Mistake(
        "attention not squared",
        _variant(layer=lambda n, dim: 12 * n * dim**2 + 2 * n * dim),
        "every vector of a sequence is compared with all n of it: attention costs 2·n²·dim, not 2·n·dim.",
    ),
    Mistake(
        "attention counted once",
        _variant(layer=lambda n, dim: 12 * n * dim**2 + n**2 * dim),
        "attention has two products of n²·dim: queries with keys, and weights with values. (The mask halves neither: "
        "what it hides is computed all the same.)",
    ),
    Mistake(
        "half of the pairs",
        _variant(layer=lambda n, dim: 12 * n * dim**2 + n * (n + 1) * dim),
        "only the pairs that the causal mask leaves are counted. Plain code computes all n² and then hides half of "
        "them: count all.",
    ),
    Mistake(
        "attention only",
        _variant(layer=lambda n, dim: 2 * n**2 * dim),
        "only attention is counted; the matrices of a layer, 12·n·dim², are missing.",
    ),
    Mistake(
        "no MLP",
        _variant(layer=lambda n, dim: 4 * n * dim**2 + 2 * n**2 * dim),
        "the matrices count 12·dim² for each vector: 3 + 1 in attention, and 4 + 4 in the MLP, which is missing.",
    ),
    Mistake(
        "exchanged",
        _variant(finish=lambda rq, flat: (flat, rq)),
        "the two results are exchanged: first the RQ-Transformer, then the flattened one.",
    ),
    Mistake(
        "ratio",
        _variant(finish=lambda rq, flat: flat / rq),
        "this is how many times as expensive the flattened one is; both numbers are wanted, (rq, flattened).",
    ),
    Mistake(
        "operations",
        _variant(finish=lambda rq, flat: (2 * rq, 2 * flat)),
        "both are twice as large: a multiplication and its addition count as one here.",
    ),
    Mistake(
        "a list",
        _variant(finish=lambda rq, flat: [rq, flat]),
        "the numbers are right; give them as a tuple: return rq, flattened.",
    ),
    Mistake(
        "not whole",
        _variant(finish=lambda rq, flat: (float(rq), float(flat))),
        "the numbers are right, but they are floats; a count is whole. (/ gives a float, // does not.)",
    ),
    Mistake(
        "depth transformer over all codes at each position",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + t * deep * cost(t * r)),
        "your depth transformer runs T times over all T·R codes. Each time it reads one stack, R vectors.",
    ),
    Mistake(
        "R runs over the positions",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + r * deep * cost(t)),
        "your depth transformer reads R sequences of T vectors; it is the other way round, T sequences of R.",
    ),
    Mistake(
        "a run for each code",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + t * r * deep * cost(r)),
        "the depth transformer is counted T·R times. One run predicts all R codes of a position: T runs. (T·R"
        " of them come in drawing.)",
    ),
    Mistake(
        "spatial transformer R times",
        _variant(rq=lambda cost, t, r, layers, deep: layers * r * cost(t) + t * deep * cost(r)),
        "the spatial transformer is counted R times. To it a stack is one vector: it runs once.",
    ),
    Mistake(
        "layers multiplied",
        _variant(flat=lambda cost, t, r, layers, deep: layers * deep * cost(t * r)),
        "the flattened transformer has layers + depth_layers layers; you multiply the two.",
    ),
    Mistake(
        "T + R codes in a row",
        _variant(flat=lambda cost, t, r, layers, deep: (layers + deep) * cost(t + r)),
        "the flattened transformer reads T + R vectors here. T positions of R codes are T·R codes.",
    ),
    Mistake(
        "R rows",
        _variant(flat=lambda cost, t, r, layers, deep: (layers + deep) * r * cost(t)),
        "the flattened transformer reads R rows of T here. It is *one* row of T·R codes, in which all pairs count.",
    ),
    Mistake(
        "8 in place of 12",
        _variant(layer=lambda n, dim: 8 * n * dim**2 + 2 * n**2 * dim),
        "the matrices count 12·dim² for each vector: 3 + 1 in attention, which are missing, and 4 + 4 in the MLP.",
    ),
    Mistake(
        "no pairs",
        _variant(layer=lambda n, dim: 12 * n * dim**2),
        "only the matrices of a layer are counted; the pairs, 2·n²·dim, are missing.",
    ),
    Mistake(
        "squares exchanged",
        _variant(layer=lambda n, dim: 12 * n**2 * dim + 2 * n * dim**2),
        "the squares are exchanged: 12·n·dim² in the matrices, 2·n²·dim for the pairs.",
    ),
    Mistake(
        "width not squared",
        _variant(layer=lambda n, dim: 12 * n * dim + 2 * n**2 * dim),
        "a matrix has dim² numbers: 12·n·dim², not 12·n·dim.",
    ),
    Mistake(
        "pairs with the width squared",
        _variant(layer=lambda n, dim: 12 * n * dim**2 + 2 * n**2 * dim**2),
        "each pair costs dim multiplications in either product, not dim²: 2·n²·dim.",
    ),
    Mistake(
        "2 n squared",
        _variant(layer=lambda n, dim: 12 * n * dim**2 + (2 * n) ** 2 * dim),
        "2·n²·dim is 2 · (n²) · dim: only n is squared, not the 2.",
    ),
    Mistake(
        "exclusive or",
        _variant(layer=lambda n, dim: 12 * n * (dim ^ 2) + 2 * (n ^ 2) * dim),
        "^ is no power in Python, but an exclusive or: n**2.",
        also=(_variant(layer=lambda n, dim: 12 * n * dim**2 + 2 * (n ^ 2) * dim),),
    ),
    Mistake(
        "one vector more a stack",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t) + t * deep * cost(r + 1)),
        "your depth transformer reads R + 1 vectors. h takes the place of a start, and the last code is not read: R.",
    ),
    Mistake(
        "one position more",
        _variant(rq=lambda cost, t, r, layers, deep: layers * cost(t + 1) + t * deep * cost(r)),
        "your spatial transformer reads T + 1 vectors. The start comes in front and the last stack is not read: T.",
    ),
    Mistake(
        "one layer each",
        _variant(rq=lambda cost, t, r, layers, deep: cost(t) + t * cost(r)),
        "one layer of each transformer is counted: there are `layers` and `depth_layers` of them.",
        also=(_variant(flat=lambda cost, t, r, layers, deep: cost(t * r)),),
    ),
    Mistake(
        "49 positions written in",
        lambda t, r, dim, layers, deep: multiplications(49, r, dim, layers, deep),
        "there are 49 positions here, whatever is given: use `positions`.",
    ),
    Mistake(
        "width 64 written in",
        lambda t, r, dim, layers, deep: multiplications(t, r, 64, layers, deep),
        "the width is 64 here, whatever is given: use `dim`.",
    ),
)

EXERCISE = Exercise(
    name="multiplications",
    chapter="08_rq_transformer",
    reference=multiplications,
    cases=cases,
    mistakes=MISTAKES,
    run=call_for("count of the RQ-Transformer", "count of the flattened transformer"),
)

"""Exercise 10.4, the chunked form: a matrix inside each chunk, a memory from one chunk to the next."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.backbones import ssd_chunked
from companion.course.chapter_10.exercise_10_3_recurrence import recurrence
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import LargestTensor, Operations, call

Answer = Callable[[Tensor, Tensor, Tensor, Tensor, int], Any]
GRADIENTS = {0: "x", 1: "a", 2: "b", 3: "c"}
WITHOUT_A = {0: "x", 2: "b", 3: "c"}  # where the gradient of a is 0, or 1 / a times rounding


def chunked(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """The companion's chunked form, with one head.

    Shapes:
        x: (B, T, P); a: (B, T) in (0, 1]; b and c: (B, T, N) → y (B, T, P).
    """
    return ssd_chunked(x[:, :, None], a.log()[:, :, None], b, c, chunk=chunk)[0][:, :, 0]


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(104)

    def sequences(
        b: int, t: int, p: int, n: int, a: tuple[float, float] = (0.3, 1.0), dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        """x, a, b and c; ``a`` says between what a is."""
        x = torch.randn(b, t, p, generator=g, dtype=dtype)
        factors = a[0] + (a[1] - a[0]) * torch.rand(b, t, generator=g, dtype=dtype)
        return x, factors, *(torch.randn(b, t, n, generator=g, dtype=dtype) for _ in range(2))

    cleared = sequences(2, 37, 2, 3, (0.85, 0.95), torch.float64)
    cleared[1][:, torch.arange(37) % 16 < 12] = 1e-30  # a product of 12 is 0 even in float64
    cleared = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in cleared)
    return [
        Case("8 steps in chunks of 4, P = N = 3", (*sequences(2, 8, 3, 3), 4), {}, GRADIENTS),
        Case("11 steps in chunks of 4, P = 3, N = 2", (*sequences(2, 11, 3, 2), 4), {}, GRADIENTS),
        Case("one chunk, longer than the sequence of 5 steps", (*sequences(3, 5, 2, 4), 16), {}, GRADIENTS),
        Case("6 steps in chunks of 1", (*sequences(1, 6, 2, 3), 1), {}, GRADIENTS),
        Case("a single step", (*sequences(2, 1, 3, 2), 4), {}, WITHOUT_A),
        Case("40 steps in one chunk, a near 0.05", (*sequences(2, 40, 2, 3, (0.02, 0.08)), 40), {}, GRADIENTS),
        Case("90 steps in chunks of 40, a near 0.05", (*sequences(1, 90, 3, 2, (0.02, 0.08)), 40), {}, GRADIENTS),
        Case("50 steps in chunks of 24, a near 1e-30", (*sequences(1, 50, 2, 3, (1e-30, 9e-30)), 24), {}, WITHOUT_A),
        Case(
            "float64, not contiguous in memory, 37 steps in chunks of 16, a 1e-30 or near 0.9",
            (*cleared, 16),
            {},
            WITHOUT_A,
        ),
        Case("64 steps in chunks of 32", (*sequences(1, 64, 2, 3), 32), {"longer": sequences(1, 256, 2, 3)}, GRADIENTS),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As for every function; on the last input also: is there a loop inside the chunks, or a table of all steps?"""
    seen = call(implementation, case)
    if "longer" in case.build:
        parts, chunk = case.arguments[:4], case.arguments[4]
        counts = []
        for steps in (len(parts[1][0]) // 4, len(parts[1][0])):  # both times two chunks
            with Operations() as operations, torch.no_grad():  # type: ignore[no-untyped-call]
                implementation(*(part[:, :steps].clone() for part in parts), chunk * steps // len(parts[1][0]))
            counts.append(operations.number)
        grow = counts[1] > 2 * counts[0]
        seen["operations, if both chunks are four times as long"] = "more than twice as many" if grow else "as many"
        for label, chunk in (("chunks of 8", 8), ("one chunk", 256)):
            with LargestTensor() as largest, torch.no_grad():  # type: ignore[no-untyped-call]
                implementation(*(part.clone() for part in case.build["longer"]), chunk)
            table = largest.numbers >= 256**2 / 2
            seen[f"the largest tensor, with 256 steps in {label}"] = "T × T" if table else "smaller than T × T"
    return seen


def _sums(a: Tensor) -> Tensor:
    return a.log().cumsum(1)


def _apart(s: Tensor) -> Tensor:
    """s_i − s_j, (B, Q, Q)."""
    return s[:, :, None] - s[:, None, :]


def _fading(s: Tensor, a: Tensor, *, diagonal: int = 1, instead: float = -torch.inf) -> Tensor:
    """What each input j is multiplied by when it is read at i; from ``diagonal`` on ``instead``, before exp."""
    future = torch.ones_like(_apart(s), dtype=torch.bool).triu(diagonal)
    return _apart(s).masked_fill(future, instead).exp()


def _variant(
    *,
    sums: Callable[[Tensor], Tensor] = _sums,
    fading: Callable[[Tensor, Tensor], Tensor] = _fading,
    inside: Callable[[Tensor, Tensor], Tensor] = lambda table, x: table @ x,
    from_start: Callable[[Tensor, Tensor], Tensor] = lambda s, a: s.exp(),
    to_end: Callable[[Tensor, Tensor], Tensor] = lambda s, a: (s[:, -1:] - s).exp(),
    over_all: Callable[[Tensor, Tensor], Tensor] = lambda s, a: s[:, -1].exp(),
    hand_on: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda h, faded, new: faded * h + new,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    read_after: bool = False,
    chunks: Callable[[int, int], Iterable[int]] = lambda length, chunk: range(0, length, chunk),
    given: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]] = lambda x, a, b, c: (x, a, b, c),
    finish: Callable[[list[Tensor]], Any] = lambda y: torch.cat(y, 1),
    chunk_is: int | None = None,
) -> Answer:
    """The right answer with one of its parts replaced."""

    def answer(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Any:
        x, a, b, c = given(x, a, b, c)
        h, y, q = x.new_zeros(len(x), x.shape[2], b.shape[2]), [], chunk_is or chunk
        for first in chunks(x.shape[1], q):
            x_, a_, b_, c_ = (part[:, first : first + q] for part in (x, a, b, c))
            s = sums(a_)
            new = x_.mT @ (b_ * to_end(s, a_)[..., None])
            before, h = h, hand_on(h, over_all(s, a_)[:, None, None], new)
            read = from_start(s, a_)[..., None] * (c_ @ (h if read_after else before).mT)
            y.append(add(inside(fading(s, a_) * (c_ @ b_.mT), x_), read))
        return finish(y)

    return answer


def _quotients(
    mask: Callable[[Tensor], Tensor] = torch.tril,
    running: Callable[[Tensor], Tensor] = lambda a: a.cumprod(1),
    epsilon: float = 0.0,
    product: Callable[[Tensor], Tensor] = lambda a: a.cumprod(1),
) -> Answer:
    """By running products in place of sums of logarithms."""

    def divided(above: Tensor, below: Tensor, like: Tensor) -> Tensor:
        return (above / (below + epsilon)).to(like)

    return _variant(
        fading=lambda s, a: mask(divided(running(a)[:, :, None], running(a)[:, None, :], a)),
        to_end=lambda s, a: divided(running(a)[:, -1:], running(a), a),
        from_start=lambda s, a: product(a),
        over_all=lambda s, a: product(a)[:, -1],
    )


def _by_a_product(table: Tensor) -> Tensor:
    return table * torch.ones_like(table).tril()


def _sums_of_all(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """One running sum over the whole sequence, so that it is not 0 where a chunk begins."""
    s, h, y = a.log().cumsum(1), x.new_zeros(len(x), x.shape[2], b.shape[2]), []
    for first in range(0, x.shape[1], chunk):
        x_, s_, b_, c_ = (part[:, first : first + chunk] for part in (x, s, b, c))
        y.append((_fading(s_, s_) * (c_ @ b_.mT)) @ x_ + s_.exp()[..., None] * (c_ @ h.mT))
        h = s_[:, -1, None, None].exp() * h + x_.mT @ (b_ * (s_[:, -1:] - s_).exp()[..., None])
    return torch.cat(y, 1)


def _filled_up(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """The last chunk filled up with zeros (and ones), and not cut off again."""
    x, a, b, c = (
        torch.cat([part, part.new_full((len(part), -x.shape[1] % chunk, *part.shape[2:]), float(part is a))], 1)
        for part in (x, a, b, c)
    )
    return chunked(x, a, b, c, chunk)


QUOTIENTS = (
    Mistake(
        "quotients of running products",
        _quotients(),
        "this divides running products (cumprod) by each other. In a long chunk of small factors they are rounded to "
        "0, and 0 / 0 is NaN. Add up logarithms and take differences: (s_i − s_j).exp().",
    ),
    Mistake(
        "quotients, masked by a product",
        _quotients(_by_a_product),
        "this divides running products (cumprod) by each other, which gives 0 / 0 and 1 / 0 in a long chunk of small "
        "factors, and a mask of zeros cannot mend that: 0 · NaN is NaN. Take differences of sums of logarithms.",
    ),
    Mistake(
        "quotients with an ε",
        _quotients(epsilon=1e-8),
        "there is an ε below running products, against 0 / 0. Where these are small it changes the result. Take "
        "differences of sums of logarithms, (s_i − s_j).exp(), which need none.",
    ),
    Mistake(
        "quotients to the end",
        _variant(to_end=lambda s, a: a.cumprod(1)[:, -1:] / a.cumprod(1)),
        "for the new memory this divides running products (cumprod) by each other: 0 / 0 in a long chunk of small "
        "factors. From j to the end it is (s_Q − s_j).exp().",
    ),
    Mistake(
        "quotients in float64",
        _quotients(running=lambda a: a.double().cumprod(1)),
        "in float64 running products last longer, but they are rounded to 0 there as well, and 0 / 0 is NaN. Take "
        "differences of sums of logarithms, (s_i − s_j).exp().",
    ),
    Mistake(
        "exp(s_i) · exp(−s_j)",
        _variant(
            fading=lambda s, a: (s.exp()[:, :, None] * (-s).exp()[:, None, :]).tril(),
            to_end=lambda s, a: s.exp()[:, -1:] * (-s).exp(),
        ),
        "exp(s_i) is rounded to 0 and exp(−s_j) grows to ∞ in a long chunk of small factors. Subtract first, then take "
        "exp: (s_i − s_j).exp().",
    ),
    Mistake(
        "masked after exp",
        _variant(fading=lambda s, a: _apart(s).exp().tril()),
        "the values are right, but the gradient is NaN: above the diagonal s_i − s_j is positive, exp of it ∞, and on "
        "the way back 0 · ∞. Set these differences to −∞ *before* exp (masked_fill).",
    ),
    Mistake(
        "masked after exp, by a product",
        _variant(fading=lambda s, a: _by_a_product(_apart(s).exp())),
        "above the diagonal s_i − s_j is positive, and exp of it ∞ in a long chunk of small factors: multiplied by a "
        "mask of zeros, NaN. Set these differences to −∞ before exp (masked_fill).",
    ),
)

FADING = (
    Mistake(
        "no mask",
        _variant(fading=lambda s, a: _apart(s).exp()),
        "the steps read what comes after them: the matrix needs zeros above its diagonal.",
    ),
    Mistake(
        "masked with 0 before exp",
        _variant(fading=lambda s, a: _fading(s, a, instead=0.0)),
        "differences above the diagonal are set to 0, and exp(0) is 1. Set them to −∞.",
    ),
    Mistake(
        "without the diagonal",
        _variant(fading=lambda s, a: _fading(s, a, diagonal=0)),
        "the diagonal is masked too, but a step reads what it has just written. Mask from the first diagonal above: "
        "triu(1).",
    ),
    Mistake(
        "one factor too many",
        _variant(fading=lambda s, a: _fading(s, a) * a[:, None]),
        "inside the chunk there is a factor too many: what step j writes fades from j + 1 on, s_i − s_j.",
    ),
    Mistake(
        "matrix transposed",
        _variant(inside=lambda table, x: table.mT @ x),
        "the matrix is transposed: row i is what is read at i, column j what was written at j, s[:, :, None] − s[:, "
        "None, :], and c @ b.mT.",
    ),
    Mistake(
        "no logarithm",
        _variant(sums=lambda a: a.cumsum(1)),
        "the factors themselves are added up. Add up their logarithms.",
    ),
    Mistake(
        "sums over the whole sequence",
        _sums_of_all,
        "the sum of logarithms runs on through all chunks. The memory fades from the *start of its chunk* on: take the "
        "cumsum within each chunk.",
    ),
    Mistake(
        "b and c exchanged",
        _variant(given=lambda x, a, b, c: (x, a, c, b)),
        "b and c are exchanged: b says where to write, c what to read.",
    ),
)

MEMORY = (
    Mistake(
        "memory not handed on",
        _variant(hand_on=lambda h, faded, new: torch.zeros_like(new)),
        "each chunk starts with an empty memory. It starts with what the chunk before has left.",
    ),
    Mistake(
        "memory replaced",
        _variant(hand_on=lambda h, faded, new: new),
        "of the memory only what the last chunk wrote is handed on. What was there before is kept too, faded by all "
        "factors of the chunk.",
    ),
    Mistake(
        "memory does not fade",
        _variant(over_all=lambda s, a: torch.ones_like(s[:, -1])),
        "over a chunk the old memory does not fade. Multiply it by all factors of the chunk, s_Q.exp().",
    ),
    Mistake(
        "new not faded",
        _variant(to_end=lambda s, a: torch.ones_like(s)),
        "what a chunk writes is handed on as if it had just been written. Step j's fades from j to the end, "
        "(s_Q − s_j).exp().",
    ),
    Mistake(
        "new faded from the start",
        _variant(to_end=lambda s, a: s.exp()),
        "what step j writes fades from the start to j, s_j.exp(). It is to fade from j to the end: (s_Q − s_j).exp().",
    ),
    Mistake(
        "new faded by one factor too many",
        _variant(to_end=lambda s, a: (s[:, -1:] - s).exp() * a),
        "what step j writes fades by a_j itself on its way to the end. It fades from j + 1 on: s_Q − s_j.",
    ),
    Mistake(
        "read without fading",
        _variant(from_start=lambda s, a: torch.ones_like(s)),
        "every step of a chunk reads the old memory as it was at the start. At step i it has faded: s_i.exp().",
    ),
    Mistake(
        "read with one factor too few",
        _variant(from_start=lambda s, a: (s - a.log()).exp()),
        "at step i the old memory has faded by a_i too: s_i.exp(), with all factors up to i.",
    ),
    Mistake(
        "read from the new memory",
        _variant(read_after=True),
        "the memory is brought to the end of the chunk before the steps read from it. They read what it was at the "
        "*start*: y first, then h.",
    ),
    Mistake(
        "memory detached",
        _variant(hand_on=lambda h, faded, new: (faded * h + new).detach()),
        "the values agree, but the memory is detached between chunks: no gradient reaches an earlier chunk.",
    ),
)

CHUNKS = (
    Mistake(
        "last chunk left out",
        _variant(chunks=lambda length, chunk: range(0, length - chunk + 1, chunk)),
        "the last chunk is left out where it is shorter. range(0, T, chunk) has its start too, and a slice may end "
        "beyond the end.",
    ),
    Mistake(
        "an empty chunk",
        _variant(chunks=lambda length, chunk: range(0, length + 1, chunk)),
        "where the chunks fit exactly, an empty one follows. range(0, T, chunk) ends before T.",
    ),
    Mistake(
        "mask of a whole chunk",
        lambda x, a, b, c, chunk: _variant(
            fading=lambda s, a: _apart(s).masked_fill(torch.ones(chunk, chunk).triu(1) > 0, -torch.inf).exp()
        )(x, a, b, c, chunk),
        "the mask is chunk × chunk, and the last chunk may be shorter (so may the first). Make it as large as the "
        "matrix that it covers.",
    ),
    Mistake(
        "filled up",
        _filled_up,
        "the last chunk is filled up, and the result longer than the sequence. Cut it off at T steps.",
    ),
    Mistake(
        "only the last chunk",
        _variant(finish=lambda y: y[-1]),
        "this is the result of the last chunk. Wanted are all, one after the other: torch.cat(y, 1).",
    ),
    Mistake(
        "chunks stacked",
        _variant(finish=lambda y: torch.stack(y, 1)),
        "the chunks are stacked, which makes a new axis. torch.cat(y, 1) puts them one after the other.",
    ),
    Mistake(
        "always float32",
        _variant(finish=lambda y: torch.cat(y, 1).float()),
        "float64 comes in and float32 goes out (.float(), or torch.zeros without a dtype): keep the dtype of x.",
    ),
    Mistake(
        "step by step",
        lambda x, a, b, c, chunk: recurrence(x, a, b, c),
        "the values are right, but operations grow with the length of a chunk: there is a loop over its steps, a call "
        "of recurrence, or chunks of another length. Inside a chunk all steps are computed at once, with a matrix.",
    ),
    Mistake(
        "one chunk",
        lambda x, a, b, c, chunk: chunked(x, a, b, c, x.shape[1]),
        "the values are right, but the matrix has T × T entries: the argument chunk is not used. Cut the sequence into "
        "chunks.",
    ),
    Mistake(
        "chunk fixed",
        _variant(chunk_is=64),
        "the values are right, but chunks have a fixed length. Use the argument chunk.",
    ),
)

EXERCISE = Exercise(
    name="chunked",
    chapter="10_backbones",
    reference=chunked,
    cases=cases,
    mistakes=QUOTIENTS + FADING + MEMORY + CHUNKS,
    run=run,
)

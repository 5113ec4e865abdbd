"""Exercise 10.4, the chunked form: a matrix inside each chunk, a memory from one chunk to the next."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.backbones import ssd_chunked
from companion.course.chapter_10._chunks import FADING, QUOTIENTS, apart, variant
from companion.course.chapter_10._memory import recurrence
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import LargestTensor, Operations, call

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
        Case("12 steps in chunks of 4, P = N = 3", (*sequences(2, 12, 3, 3), 4), {}, GRADIENTS),
        Case("11 steps in chunks of 4, P = 3, N = 2", (*sequences(2, 11, 3, 2), 4), {}, GRADIENTS),
        Case("one chunk, longer than the sequence of 5 steps", (*sequences(3, 5, 2, 4), 16), {}, GRADIENTS),
        Case("11 steps in chunks of 4, float64", (*sequences(2, 11, 2, 3, (0.7, 1), torch.float64), 4), {}, GRADIENTS),
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


def _filled_up(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """The last chunk filled up with zeros (and ones), and not cut off again."""
    x, a, b, c = (
        torch.cat([part, part.new_full((len(part), -x.shape[1] % chunk, *part.shape[2:]), float(part is a))], 1)
        for part in (x, a, b, c)
    )
    return chunked(x, a, b, c, chunk)


MEMORY = (
    Mistake(
        "new faded over the whole chunk",
        variant(hand_on=lambda h, faded, new: faded * (h + new)),
        "what the chunk writes is multiplied by s_Q.exp() too. Only the memory before it is: step j's fades by "
        "(s_Q − s_j).exp() alone. Look at the brackets.",
        (
            variant(to_end=lambda s, a: torch.ones_like(s), hand_on=lambda h, faded, new: faded * (h + new)),
            variant(hand_on=lambda h, faded, new: h + faded * new),
        ),
    ),
    Mistake(
        "memory faded by another sum",
        variant(over_all=lambda s, a: s.sum(1).exp()),
        "the old memory fades over the chunk by another factor than s_Q.exp(), exp of the *last* entry of s, "
        "s[:, -1], which is the sum of all logarithms.",
        (
            variant(over_all=lambda s, a: a[:, -1]),
            variant(over_all=lambda s, a: s[:, 0].exp()),
            variant(over_all=lambda s, a: s[:, -1]),
        ),
    ),
    Mistake(
        "s at the end of a full chunk",
        lambda x, a, b, c, chunk: variant(over_all=lambda s, a: s[:, chunk - 1].exp())(x, a, b, c, chunk),
        "s[:, chunk − 1] is the end of a full chunk, and the last one may be shorter. Take s[:, -1].",
    ),
    Mistake(
        "read with the fading of the whole chunk",
        variant(from_start=lambda s, a: s[:, -1:].exp().expand_as(s)),
        "the old memory is read with another factor than at step i: it has faded by s_i.exp() there, with s itself, "
        "not s_Q, s_Q − s_i or a_i.",
        (
            variant(from_start=lambda s, a: (s[:, -1:] - s).exp()),
            variant(from_start=lambda s, a: a),
            variant(from_start=lambda s, a: s[:, :1].exp().expand_as(s)),
            variant(from_start=lambda s, a: s),
        ),
    ),
    Mistake(
        "to the end the wrong way round",
        variant(to_end=lambda s, a: (s - s[:, -1:]).exp()),
        "what step j writes is to fade by (s_Q − s_j).exp() to the end; the sign is wrong, or exp is missing.",
        (variant(to_end=lambda s, a: s[:, -1:] - s),),
    ),
    Mistake(
        "old memory read with b",
        variant(roles=lambda b, c: (c, b, b, b)),
        "the old memory is read with b. What to read is c.",
    ),
    Mistake(
        "c written",
        variant(roles=lambda b, c: (c, b, c, c)),
        "the memory is written with c. Where to write is b.",
    ),
    Mistake(
        "memory transposed",
        variant(hand_on=lambda h, faded, new: faded * h + new.mT),
        "the memory is P × N here and N × P there. With h as (B, P, N) it is x.mT @ (b · …) and c @ h.mT.",
    ),
    Mistake(
        "memory starts at 1",
        variant(start=1.0),
        "the memory starts at 1; it is to start at 0.",
    ),
    Mistake(
        "only the old memory",
        variant(inside=lambda table, x: torch.zeros_like(x)),
        "the steps of a chunk do not read what the chunk itself has written: the matrix times x is missing.",
    ),
    Mistake(
        "memory not handed on",
        variant(hand_on=lambda h, faded, new: torch.zeros_like(new)),
        "each chunk starts with an empty memory. It starts with what the chunk before has left.",
    ),
    Mistake(
        "memory replaced",
        variant(hand_on=lambda h, faded, new: new),
        "of the memory only what the last chunk wrote is handed on. What was there before is kept too, faded by all "
        "factors of the chunk.",
    ),
    Mistake(
        "memory does not fade",
        variant(over_all=lambda s, a: torch.ones_like(s[:, -1])),
        "over a chunk the old memory does not fade. Multiply it by all factors of the chunk, s_Q.exp().",
    ),
    Mistake(
        "new not faded",
        variant(to_end=lambda s, a: torch.ones_like(s)),
        "what a chunk writes is handed on as if it had just been written. Step j's fades from j to the end, "
        "(s_Q − s_j).exp().",
    ),
    Mistake(
        "new faded from the start",
        variant(to_end=lambda s, a: s.exp()),
        "what step j writes fades from the start to j, s_j.exp(). It is to fade from j to the end: (s_Q − s_j).exp().",
    ),
    Mistake(
        "new faded by one factor too many",
        variant(to_end=lambda s, a: (s[:, -1:] - s).exp() * a),
        "what step j writes fades by a_j itself on its way to the end. It fades from j + 1 on: s_Q − s_j.",
    ),
    Mistake(
        "read without fading",
        variant(from_start=lambda s, a: torch.ones_like(s)),
        "every step of a chunk reads the old memory as it was at the start. At step i it has faded: s_i.exp().",
    ),
    Mistake(
        "read with one factor too few",
        variant(from_start=lambda s, a: (s - a.log()).exp()),
        "at step i the old memory has faded by a_i too: s_i.exp(), with all factors up to i.",
    ),
    Mistake(
        "read from the new memory",
        variant(read_after=True),
        "the memory is brought to the end of the chunk before the steps read from it. They read what it was at the "
        "*start*: y first, then h.",
    ),
    Mistake(
        "memory detached",
        variant(hand_on=lambda h, faded, new: (faded * h + new).detach()),
        "the values agree, but the memory is detached between chunks: no gradient reaches an earlier chunk.",
    ),
)

CHUNKS = (
    Mistake(
        "slices of another length",
        variant(reach=1),
        "a slice has one step more or less than a chunk: [start : start + chunk].",
        (variant(reach=-1),),
    ),
    Mistake(
        "a step of 1",
        variant(chunks=lambda length, chunk: range(length)),
        "the starts of the chunks are wrong: range(0, T, chunk), with all three numbers.",
        (variant(chunks=lambda length, chunk: range(length // chunk)),),
    ),
    Mistake(
        "only the first chunk",
        variant(finish=lambda y: y[0]),
        "this is the result of the first chunk: a return stands inside the loop.",
    ),
    Mistake(
        "chunks along another axis",
        variant(finish=torch.cat),
        "the chunks are put together along another axis than the steps: torch.cat(y, 1).",
        (variant(finish=lambda y: torch.cat(y, -1)),),
    ),
    Mistake(
        "a loop beside the matrix",
        lambda x, a, b, c, chunk: chunked(x, a, b, c, chunk) + 0 * recurrence(x, a, b, c),
        "the values are right, but beside the matrix there is a loop over the steps of a chunk, for its rows or the "
        "memory. All steps at once: matrix products and exp of a whole table.",
    ),
    Mistake(
        "last chunk left out",
        variant(chunks=lambda length, chunk: range(0, length - chunk + 1, chunk)),
        "the last chunk is left out where it is shorter. range(0, T, chunk) has its start too, and a slice may end "
        "beyond the end.",
    ),
    Mistake(
        "an empty chunk",
        variant(chunks=lambda length, chunk: range(0, length + 1, chunk)),
        "where the chunks fit exactly, an empty one follows. range(0, T, chunk) ends before T.",
    ),
    Mistake(
        "mask of a whole chunk",
        lambda x, a, b, c, chunk: variant(
            fading=lambda s, a: apart(s).masked_fill(torch.ones(chunk, chunk).triu(1) > 0, -torch.inf).exp()
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
        variant(finish=lambda y: y[-1]),
        "this is the result of the last chunk. Wanted are all, one after the other: torch.cat(y, 1).",
    ),
    Mistake(
        "chunks stacked",
        variant(finish=lambda y: torch.stack(y, 1)),
        "the chunks are stacked, which makes a new axis. torch.cat(y, 1) puts them one after the other.",
    ),
    Mistake(
        "always float32",
        variant(finish=lambda y: torch.cat(y, 1).float()),
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
        variant(chunk_is=64),
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

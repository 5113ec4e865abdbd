"""Exercise 10.3, the recurrence: a memory that fades, is written to and read from, step by step."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.backbones import ssd_recurrence
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call

Answer = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
GRADIENTS = {0: "x", 1: "a", 2: "b", 3: "c"}
WITHOUT_A = {0: "x", 2: "b", 3: "c"}


def recurrence(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h_t = a_t h_{t−1} + x_t b_tᵀ and y_t = h_t c_t, from h_0 = 0: the companion's recurrence, with one head.

    Shapes:
        x: (B, T, P); a: (B, T) in [0, 1]; b and c: (B, T, N) → y (B, T, P).
    """
    log_decay = a.clamp(min=torch.finfo(a.dtype).tiny).log()  # the companion's memory never fades to exactly 0
    return ssd_recurrence(x[:, :, None], log_decay[:, :, None], b, c)[0][:, :, 0]


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(103)

    def sequences(b: int, t: int, p: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """x, a in [0.2, 1], b and c."""
        x = torch.randn(b, t, p, generator=g, dtype=dtype)
        a = 0.2 + 0.8 * torch.rand(b, t, generator=g, dtype=dtype)
        return x, a, *(torch.randn(b, t, n, generator=g, dtype=dtype) for _ in range(2))

    cleared = sequences(2, 8, 1, 1)
    cleared[1][:] = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in sequences(4, 9, 3, 2, torch.float64)]
    return [
        Case("three rows of 5 steps, P = N = 3", sequences(3, 5, 3, 3), {}, GRADIENTS),
        Case("two rows of 6 steps, P = 3, N = 4", sequences(2, 6, 3, 4), {}, GRADIENTS),
        Case("one row of 7 steps, P = 5, N = 1", sequences(1, 7, 5, 1), {}, GRADIENTS),
        Case("a single step, P = 2, N = 3", sequences(2, 1, 2, 3), {}, WITHOUT_A),
        Case("a memory that keeps everything (a = 1) or nothing (a = 0)", cleared, {}, WITHOUT_A),
        Case("float64, not contiguous in memory", tuple(turned), {}, GRADIENTS),
    ]


def _forwards(length: int) -> Iterable[int]:
    return range(length)


def _variant(
    *,
    fade: Callable[[Tensor], Tensor] = lambda a: a,
    write: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, b, a: x[:, :, None] * b[:, None],
    step: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda h, a, new: a * h + new,
    read: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda h, before, c: (h * c[:, None]).sum(2),
    start: float = 0.0,
    keep: Callable[[Tensor], Tensor] = lambda h: h,
    steps: Callable[[int], Iterable[int]] = _forwards,
    axes: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]] = lambda x, a, b, c: (x, a, b, c),
    finish: Callable[[list[Tensor]], Any] = lambda y: torch.stack(y, 1),
) -> Answer:
    """The right answer with one of its parts replaced; ``read`` gets the memory after and before the step."""

    def answer(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Any:
        x, a, b, c = axes(x, a, b, c)
        h = x.new_full((len(x), x.shape[2], b.shape[2]), start)
        y = []
        for t in steps(x.shape[1]):
            before, h = h, step(keep(h), fade(a)[:, t, None, None], write(x[:, t], b[:, t], a[:, t, None, None]))
            y.append(read(h, before, c[:, t]))
        return finish(y)

    return answer


def _shifted(part: Tensor, by: int, fill: float) -> Tensor:
    """Step t gets what step t − by had, and ``fill`` where there was none."""
    outside = torch.full_like(part[:, :1], fill)
    return torch.cat([outside, part[:, :-1]] if by > 0 else [part[:, 1:], outside], 1)


def _by_logarithms(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As a matrix, with sums of logarithms, which are −∞ from a = 0 on."""
    s = a.log().cumsum(1)
    return ((s[:, :, None] - s[:, None]).exp().tril() * (c @ b.mT)) @ x


def _in_place(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h = x.new_zeros(len(x), x.shape[2], b.shape[2])
    y = []
    for t in range(x.shape[1]):
        h *= a[:, t, None, None]
        h += x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)


def _broadcast_wrongly(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h = x.new_zeros(len(x), x.shape[2], b.shape[2])
    y = []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)


def _memory_of_one_column(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, y = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t, None] * h + x[:, t] * b[:, t]
        y.append(h * c[:, t])
    return torch.stack(y, 1)


def _steps_of_the_batch(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, y = x.new_zeros(len(x), x.shape[2], b.shape[2]), []
    for t in range(len(x)):
        h = a[:, t, None, None] * h + x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)


MISTAKES = (
    Mistake(
        "read before it is written",
        _variant(read=lambda h, before, c: (before * c[:, None]).sum(2)),
        "y_t is read from the memory as it was *before* step t. Write first, then read.",
    ),
    Mistake(
        "faded after writing",
        _variant(step=lambda h, a, new: a * (h + new)),
        "what is new fades too. At step t only what was there before fades: a_t · h + x_t b_tᵀ, without brackets.",
    ),
    Mistake(
        "a of the step before",
        _variant(axes=lambda x, a, b, c: (x, _shifted(a, 1, 1.0), b, c)),
        "the memory fades by a of the step before. At step t it is a_t.",
    ),
    Mistake(
        "a of the step after",
        _variant(axes=lambda x, a, b, c: (x, _shifted(a, -1, 1.0), b, c)),
        "the memory fades by a of the step after. At step t it is a_t.",
    ),
    Mistake(
        "never fades",
        _variant(fade=torch.ones_like),
        "nothing fades: multiply the memory by a_t before something is added.",
    ),
    Mistake(
        "no memory",
        _variant(step=lambda h, a, new: new),
        "the memory is written anew at each step. What was there is kept, a_t times: a_t · h + ….",
    ),
    Mistake(
        "a running mean",
        _variant(write=lambda x, b, a: (1 - a) * x[:, :, None] * b[:, None]),
        "what is new is multiplied by 1 − a_t, as in a running mean. Here it is added as it is.",
    ),
    Mistake(
        "a as a logarithm",
        _variant(fade=torch.exp),
        "a is taken for a logarithm. It is the factor itself: no exp.",
    ),
    Mistake(
        "a squared",
        _variant(fade=torch.square),
        "the memory fades twice at each step. Multiply by a_t once.",
    ),
    Mistake(
        "1 − a",
        _variant(fade=lambda a: 1 - a),
        "the memory is multiplied by 1 − a_t. a_t is how much is *kept*.",
    ),
    Mistake(
        "b and c exchanged",
        _variant(axes=lambda x, a, b, c: (x, a, c, b)),
        "b and c are exchanged: b_t says where to write, c_t what to read.",
    ),
    Mistake(
        "b twice",
        _variant(axes=lambda x, a, b, c: (x, a, b, b)),
        "you read with b. What to read is c_t.",
    ),
    Mistake(
        "c ignored",
        _variant(read=lambda h, before, c: h.sum(2)),
        "all columns of the memory are summed. How much of each is read is c_t: a sum over N of h · c_t.",
    ),
    Mistake(
        "b ignored",
        _variant(write=lambda x, b, a: x[:, :, None] * torch.ones_like(b[:, None])),
        "x_t is written to every column of the memory. How much of it goes to each is b_t.",
    ),
    Mistake(
        "memory transposed",
        _variant(
            write=lambda x, b, a: b[:, :, None] * x[:, None],
            step=lambda h, a, new: a * (h if h.shape == new.shape else h.mT) + new,
            read=lambda h, before, c: torch.einsum("bpn,bn->bp", h, c),
        ),
        "the memory is written as N × P and read as P × N. x_t b_tᵀ is P × N: x[:, t, :, None] * b[:, t, None, :].",
    ),
    Mistake(
        "number by number",
        _memory_of_one_column,
        "x_t and b_t are multiplied number by number. x_t b_tᵀ is a table of all products, P × N.",
    ),
    Mistake(
        "a along the columns",
        _broadcast_wrongly,
        "a[:, t] has an entry for each row of the batch, but torch lays it along the last axis of h. Give it the axes "
        "that it lacks: a[:, t, None, None].",
    ),
    Mistake(
        "c along the batch",
        _variant(read=lambda h, before, c: (h * c).sum(2)),
        "c[:, t] is (B, N), and torch lays its B along the P of h, (B, P, N). Give it the axis that it lacks, c[:, t, "
        "None], or take einsum.",
    ),
    Mistake(
        "mean over N",
        _variant(read=lambda h, before, c: (h * c[:, None]).mean(2)),
        "reading is a sum over N; this is the mean.",
    ),
    Mistake(
        "divided by √N",
        _variant(read=lambda h, before, c: (h * c[:, None]).sum(2) / c.shape[1] ** 0.5),
        "the result is divided by √N, as in attention. Here it is the sum over N as it is.",
    ),
    Mistake(
        "sums so far",
        _variant(finish=lambda y: torch.stack(y, 1).cumsum(1)),
        "the results are added up over the steps. y_t is what is read at step t alone.",
    ),
    Mistake(
        "memory starts at 1",
        _variant(start=1.0),
        "the memory starts at 1; it is to start at 0.",
    ),
    Mistake(
        "from the end",
        _variant(steps=lambda length: range(length - 1, -1, -1), finish=lambda y: torch.stack(y[::-1], 1)),
        "the sequence is read from its end. Begin with t = 0.",
    ),
    Mistake(
        "first step left out",
        _variant(steps=lambda length: range(1, length)),
        "the first step is left out: in Python the steps are 0 … T − 1, range(T).",
    ),
    Mistake(
        "last step left out",
        _variant(steps=lambda length: range(length - 1)),
        "the last step is left out: range(T) ends at T − 1 by itself.",
    ),
    Mistake(
        "as many steps as rows",
        _steps_of_the_batch,
        "the loop takes as many steps as the batch has rows: len(x) is B. There are x.shape[1] steps.",
    ),
    Mistake(
        "only the last",
        _variant(finish=lambda y: y[-1]),
        "this is the result of the last step (a return stands inside the loop, or y is overwritten). Wanted are all.",
    ),
    Mistake(
        "steps in front",
        _variant(finish=lambda y: torch.stack(y)),
        "the steps are axis 0. Wanted is (B, T, P): stack along axis 1.",
    ),
    Mistake(
        "steps last",
        _variant(finish=lambda y: torch.stack(y, -1)),
        "the steps are the last axis. Wanted is (B, T, P): stack along axis 1.",
    ),
    Mistake(
        "a list",
        _variant(finish=lambda y: y),
        "this is a list with an entry for each step. torch.stack(y, 1) makes a tensor of it, (B, T, P).",
    ),
    Mistake(
        "steps put together",
        _variant(finish=lambda y: torch.cat(y, 1)),
        "the results are put one after the other, (B, T·P). torch.stack(y, 1) keeps an axis for the steps.",
    ),
    Mistake(
        "always float32",
        _variant(finish=lambda y: torch.stack(y, 1).float()),
        "float64 comes in and float32 goes out (.float(), or torch.zeros without a dtype): keep the dtype of x.",
    ),
    Mistake(
        "by logarithms",
        _by_logarithms,
        "this takes logarithms, and a may be 0, where log is −∞ and −∞ − (−∞) NaN. A loop over t needs only products.",
    ),
    Mistake(
        "memory detached",
        _variant(keep=lambda h: h.detach()),
        "the values agree, but the memory is detached from step to step, so no gradient reaches what was written "
        "earlier.",
    ),
    Mistake(
        "memory changed in place",
        _in_place,
        "the memory is changed in place (h *= …, h += …), but autograd still needs what it was. Make a new one at each "
        "step: h = a_t * h + ….",
    ),
    Mistake(
        "detached",
        _variant(finish=lambda y: torch.stack(y, 1).detach()),
        "the values agree, but the result is detached (no_grad, .data, .item()): nothing before it could learn.",
    ),
)

EXERCISE = Exercise(
    name="recurrence",
    chapter="10_backbones",
    reference=recurrence,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

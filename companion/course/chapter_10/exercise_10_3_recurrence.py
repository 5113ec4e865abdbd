"""Exercise 10.3, the recurrence: a memory that fades, is written to and read from, step by step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.chapter_10._memory import (
    by_logarithms,
    by_quotients,
    faded_by,
    in_place,
    memory_of_one_column,
    recurrence,
    shifted,
    steps_of_the_batch,
    table_of_quotients,
    table_of_sums,
    variant,
)
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call

GRADIENTS = {0: "x", 1: "a", 2: "b", 3: "c"}
WITHOUT_A = {0: "x", 2: "b", 3: "c"}


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(103)

    def sequences(b: int, t: int, p: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """x, a in [0.2, 1], b and c."""
        x = torch.randn(b, t, p, generator=g, dtype=dtype)
        a = 0.2 + 0.8 * torch.rand(b, t, generator=g, dtype=dtype)
        return x, a, *(torch.randn(b, t, n, generator=g, dtype=dtype) for _ in range(2))

    cleared = sequences(2, 8, 1, 1)
    cleared[1][:] = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])
    short = sequences(2, 60, 2, 3)
    short[1][:] /= 20  # a product of all is 0 in float32
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in sequences(4, 9, 3, 2, torch.float64)]
    return [
        Case("three rows of 5 steps, P = N = 3", sequences(3, 5, 3, 3), {}, GRADIENTS),
        Case("two rows of 6 steps, P = 3, N = 4", sequences(2, 6, 3, 4), {}, GRADIENTS),
        Case("one row of 7 steps, P = 5, N = 1", sequences(1, 7, 5, 1), {}, GRADIENTS),
        Case("a single step, P = 2, N = 3", sequences(2, 1, 2, 3), {}, WITHOUT_A),
        Case("60 steps, a at most 0.05", short, {}, GRADIENTS),
        Case("a memory that keeps everything (a = 1) or nothing (a = 0)", cleared, {}, GRADIENTS),
        Case("float64, not contiguous in memory", tuple(turned), {}, GRADIENTS),
    ]


MISTAKES = (
    Mistake(
        "read before it is written",
        variant(read=lambda h, before, c: (before * c[:, None]).sum(2)),
        "y_t is read from the memory as it was *before* step t. Write first, then read.",
    ),
    Mistake(
        "faded after writing",
        variant(step=lambda h, a, new: a * (h + new)),
        "what is new fades too. At step t only what was there before fades: a_t · h + x_t b_tᵀ, without brackets.",
    ),
    Mistake(
        "a of the step before",
        variant(axes=lambda x, a, b, c: (x, shifted(a, 1, 1.0), b, c)),
        "the memory fades by a of the step before. At step t it is a_t.",
    ),
    Mistake(
        "a of the step after",
        variant(axes=lambda x, a, b, c: (x, shifted(a, -1, 1.0), b, c)),
        "the memory fades by a of the step after. At step t it is a_t.",
        (faded_by(lambda a, t: a[:, min(t + 1, a.shape[1] - 1), None, None]), faded_by(lambda a, t: a[:, t + 1])),
    ),
    Mistake(
        "never fades",
        variant(fade=torch.ones_like),
        "nothing fades: multiply the memory by a_t before something is added.",
    ),
    Mistake(
        "no memory",
        variant(step=lambda h, a, new: new),
        "the memory is written anew at each step. What was there is kept, a_t times: a_t · h + ….",
    ),
    Mistake(
        "a running mean",
        variant(write=lambda x, b, a: (1 - a) * x[:, :, None] * b[:, None]),
        "what is new is multiplied by 1 − a_t, as in a running mean. Here it is added as it is.",
    ),
    Mistake(
        "a as a logarithm",
        variant(fade=torch.exp),
        "a is taken for a logarithm. It is the factor itself: no exp.",
        (variant(fade=lambda a: (-a).exp()),),
    ),
    Mistake(
        "a squared",
        variant(fade=torch.square),
        "the memory fades twice at each step. Multiply by a_t once.",
    ),
    Mistake(
        "1 − a",
        variant(fade=lambda a: 1 - a),
        "the memory is multiplied by 1 − a_t. a_t is how much is *kept*.",
    ),
    Mistake(
        "b and c exchanged",
        variant(axes=lambda x, a, b, c: (x, a, c, b)),
        "b and c are exchanged: b_t says where to write, c_t what to read.",
    ),
    Mistake(
        "b twice",
        variant(axes=lambda x, a, b, c: (x, a, b, b)),
        "you read with b. What to read is c_t.",
    ),
    Mistake(
        "c ignored",
        variant(read=lambda h, before, c: h.sum(2)),
        "all columns of the memory are summed. How much of each is read is c_t: a sum over N of h · c_t.",
        (variant(read=lambda h, before, c: h.sum(2) * c.sum(1, keepdim=True)),),
    ),
    Mistake(
        "b ignored",
        variant(write=lambda x, b, a: x[:, :, None] * torch.ones_like(b[:, None])),
        "x_t is written to every column of the memory. How much of it goes to each is b_t.",
    ),
    Mistake(
        "memory transposed",
        variant(
            write=lambda x, b, a: b[:, :, None] * x[:, None],
            step=lambda h, a, new: a * (h if h.shape == new.shape else h.mT) + new,
            read=lambda h, before, c: torch.einsum("bpn,bn->bp", h, c),
        ),
        "N and P are exchanged, in the memory's zeros or in what is written: x_t b_tᵀ is P × N, x[:, t, :, None] * "
        "b[:, t, None, :], and so is the memory, (B, P, N).",
        (
            faded_by(lambda a, t: a[:, t, None, None], turned=True),
            variant(
                write=lambda x, b, a: b[:, :, None] * x[:, None], read=lambda h, _, c: torch.einsum("bpn,bn->bp", h, c)
            ),
        ),
    ),
    Mistake(
        "number by number",
        memory_of_one_column,
        "x_t and b_t are multiplied number by number. x_t b_tᵀ is a table of all products, P × N.",
    ),
    Mistake(
        "a along the columns",
        faded_by(lambda a, t: a[:, t]),
        "a[:, t] has an entry for each row of the batch, but torch lays them along another axis of h. Give it the two "
        "axes that it lacks: a[:, t, None, None].",
        (faded_by(lambda a, t: a[:, t, None]),),
    ),
    Mistake(
        "c along the batch",
        variant(read=lambda h, before, c: (h * c).sum(2)),
        "c[:, t] is (B, N), and torch lays its B along the P of h, (B, P, N). Give it the axis that it lacks, c[:, t, "
        "None], or take einsum.",
    ),
    Mistake(
        "mean over N",
        variant(read=lambda h, before, c: (h * c[:, None]).mean(2)),
        "reading is a sum over N; this is the mean.",
    ),
    Mistake(
        "divided by √N",
        variant(read=lambda h, before, c: (h * c[:, None]).sum(2) / c.shape[1] ** 0.5),
        "the result is divided by √N, as in attention. Here it is the sum over N as it is.",
    ),
    Mistake(
        "sums so far",
        variant(finish=lambda y: torch.stack(y, 1).cumsum(1)),
        "the results are added up over the steps. y_t is what is read at step t alone.",
    ),
    Mistake(
        "memory starts at 1",
        variant(start=1.0),
        "the memory starts at 1; it is to start at 0.",
    ),
    Mistake(
        "only the first",
        variant(finish=lambda y: torch.stack(y[:1], 1)),
        "this is the result of the first step: a return stands inside the loop.",
        (variant(finish=lambda y: y[0]),),
    ),
    Mistake(
        "new faded, not the memory",
        variant(step=lambda h, a, new: h + a * new),
        "a_t multiplies what is new. It is what was there before that fades: a_t · h + x_t b_tᵀ.",
    ),
    Mistake(
        "faded again when read",
        lambda x, a, b, c: a[:, :, None] * recurrence(x, a, b, c),
        "what is read is multiplied by a_t once more. y_t is the sum over N of h_t · c_t as it is.",
        (lambda x, a, b, c: a[:, :, None] * recurrence(x, torch.ones_like(a), b, c),),
    ),
    Mistake(
        "written twice",
        variant(write=lambda x, b, a: 2 * x[:, :, None] * b[:, None]),
        "what is new is added twice (or multiplied by 2).",
    ),
    Mistake(
        "sum over P",
        variant(read=lambda h, before, c: (h * c[:, :, None]).sum(1)),
        "reading sums over P, the rows of the memory. It is to sum over N: y_t has P numbers.",
        (variant(read=lambda h, before, c: torch.einsum("bpn,bn->bn", h, c)),),
    ),
    Mistake(
        "with a skip",
        lambda x, a, b, c: x + recurrence(x, a, b, c),
        "x_t itself is added to the result. y_t is only what is read from the memory.",
    ),
    Mistake(
        "memory given back",
        variant(read=lambda h, before, c: h),
        "you collect the memory. What is wanted is what c_t reads from it: a sum over N of h · c_t.",
    ),
    Mistake(
        "an axis too many",
        variant(read=lambda h, before, c: h @ c[:, :, None]),
        "an axis of length 1 is left over from the matrix product: [..., 0] takes it away.",
    ),
    Mistake(
        "first a only",
        faded_by(lambda a, t: a[:, 0, None, None]),
        "the memory fades by a of the first step at all steps: the index is t.",
    ),
    Mistake(
        "first row's a",
        faded_by(lambda a, t: a[0, t]),
        "the memories of all rows of the batch fade by a of the first row: a[:, t, None, None].",
    ),
    Mistake(
        "batch and steps exchanged",
        faded_by(lambda a, t: a[t, None, None]),
        "a[t] is row t of the batch. Steps are axis 1: a[:, t].",
    ),
    Mistake(
        "b or c of one step",
        variant(axes=lambda x, a, b, c: (x, a, b[:, :1].expand_as(b), c)),
        "b or c is that of one step, whatever t is. Take b[:, t] and c[:, t].",
        (
            variant(axes=lambda x, a, b, c: (x, a, b, c[:, :1].expand_as(c))),
            variant(axes=lambda x, a, b, c: (x, a, b, c[:, -1:].expand_as(c))),
        ),
    ),
    Mistake(
        "what is written of another step",
        variant(axes=lambda x, a, b, c: (x.roll(1, 1), a, b, c)),
        "x or b is that of the step before (at step 0 [t − 1] is the last one). At step t they are x_t and b_t.",
        (variant(axes=lambda x, a, b, c: (x, a, b.roll(1, 1), c)),),
    ),
    Mistake(
        "sum in place of a product",
        variant(write=lambda x, b, a: x[:, :, None] + b[:, None]),
        "x_t and b_t are added. What is written is their product, x_t b_tᵀ.",
    ),
    Mistake(
        "factors limited from below",
        variant(fade=lambda a: a.clamp(min=1e-6)),
        "a is limited from below (clamp). A factor of 0 is allowed, and a clamp gives it no gradient: use a as it is.",
        (variant(fade=lambda a: a.clamp(min=1e-3)), variant(fade=lambda a: a + 1e-6)),
    ),
    Mistake(
        "quotients of running products",
        by_quotients,
        "this divides by running products (cumprod): they are 0 from a = 0 on, or after many small factors, and 0 / 0 "
        "is NaN. A loop over t needs no division.",
        (table_of_quotients,),
    ),
    Mistake(
        "from the end",
        variant(steps=lambda length: range(length - 1, -1, -1), finish=lambda y: torch.stack(y[::-1], 1)),
        "the sequence is read from its end. Begin with t = 0.",
        (variant(steps=lambda length: range(length - 1, -1, -1)),),
    ),
    Mistake(
        "first step left out",
        variant(steps=lambda length: range(1, length)),
        "the first step is left out: in Python the steps are 0 … T − 1, range(T).",
    ),
    Mistake(
        "last step left out",
        variant(steps=lambda length: range(length - 1)),
        "the last step is left out: range(T) ends at T − 1 by itself.",
    ),
    Mistake(
        "as many steps as rows",
        steps_of_the_batch,
        "the loop takes as many steps as the batch has rows: len(x) is B. There are x.shape[1] steps.",
    ),
    Mistake(
        "only the last",
        variant(finish=lambda y: y[-1]),
        "this is the result of the last step (y is overwritten, not appended to). Wanted are all.",
        (variant(finish=lambda y: torch.stack(y[-1:], 1)),),
    ),
    Mistake(
        "steps in front",
        variant(finish=lambda y: torch.stack(y)),
        "the steps are axis 0. Wanted is (B, T, P): stack along axis 1.",
    ),
    Mistake(
        "steps last",
        variant(finish=lambda y: torch.stack(y, -1)),
        "the steps are the last axis. Wanted is (B, T, P): stack along axis 1.",
    ),
    Mistake(
        "a list",
        variant(finish=lambda y: y),
        "this is a list with an entry for each step. torch.stack(y, 1) makes a tensor of it, (B, T, P).",
    ),
    Mistake(
        "steps put together",
        variant(finish=lambda y: torch.cat(y, 1)),
        "the results are put one after the other, (B, T·P). torch.stack(y, 1) keeps an axis for the steps.",
    ),
    Mistake(
        "always float32",
        variant(finish=lambda y: torch.stack(y, 1).float()),
        "float64 comes in and float32 goes out (.float(), or torch.zeros without a dtype): keep the dtype of x.",
    ),
    Mistake(
        "by logarithms",
        by_logarithms,
        "this takes logarithms, and a may be 0, where log is −∞ and −∞ − (−∞) NaN. A loop over t needs only products.",
        (table_of_sums,),
    ),
    Mistake(
        "memory detached",
        variant(keep=lambda h: h.detach()),
        "the values agree, but the memory is detached from step to step, so no gradient reaches what was written "
        "earlier.",
    ),
    Mistake(
        "memory changed in place",
        in_place,
        "the memory is changed in place (h *= …, h += …), but autograd still needs what it was. Make a new one at each "
        "step: h = a_t * h + ….",
    ),
    Mistake(
        "detached",
        variant(finish=lambda y: torch.stack(y, 1).detach()),
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

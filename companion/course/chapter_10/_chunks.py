"""Right and wrong ways to cut a fading memory into chunks, for exercise 10.4; the mistakes inside of a chunk."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.engine import Mistake

Answer = Callable[[Tensor, Tensor, Tensor, Tensor, int], Any]


def sums(a: Tensor) -> Tensor:
    return a.log().cumsum(1)


def apart(s: Tensor) -> Tensor:
    """s_i − s_j, (B, Q, Q)."""
    return s[:, :, None] - s[:, None, :]


def fading(s: Tensor, a: Tensor, *, diagonal: int = 1, instead: float = -torch.inf) -> Tensor:
    """What each input j is multiplied by when it is read at i; from ``diagonal`` on ``instead``, before exp."""
    future = torch.ones_like(apart(s), dtype=torch.bool).triu(diagonal)
    return apart(s).masked_fill(future, instead).exp()


def variant(
    *,
    sums: Callable[[Tensor], Tensor] = sums,
    fading: Callable[[Tensor, Tensor], Tensor] = fading,
    inside: Callable[[Tensor, Tensor], Tensor] = lambda table, x: table @ x,
    from_start: Callable[[Tensor, Tensor], Tensor] = lambda s, a: s.exp(),
    to_end: Callable[[Tensor, Tensor], Tensor] = lambda s, a: (s[:, -1:] - s).exp(),
    over_all: Callable[[Tensor, Tensor], Tensor] = lambda s, a: s[:, -1].exp(),
    hand_on: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda h, faded, new: faded * h + new,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    read_after: bool = False,
    roles: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = lambda b, c: (c, b, b, c),
    product: Callable[[Tensor, Tensor], Any] = lambda c, b: c @ b.mT,
    start: float = 0.0,
    reach: int = 0,
    chunks: Callable[[int, int], Iterable[int]] = lambda length, chunk: range(0, length, chunk),
    given: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]] = lambda x, a, b, c: (x, a, b, c),
    finish: Callable[[list[Tensor]], Any] = lambda y: torch.cat(y, 1),
    chunk_is: int | None = None,
) -> Answer:
    """The right answer with one of its parts replaced.

    ``roles`` says with what the table is read and written, what writes to the memory and what reads from it; ``reach``
    is how much longer a slice is than a chunk.
    """

    def answer(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Any:
        x, a, b, c = given(x, a, b, c)
        h, y, q = x.new_full((len(x), x.shape[2], b.shape[2]), start), [], chunk_is or chunk
        for first in chunks(x.shape[1], q):
            x_, a_, b_, c_ = (part[:, first : first + q + reach] for part in (x, a, b, c))
            s, (c_inside, b_inside, b_, c_) = sums(a_), roles(b_, c_)
            new = x_.mT @ (b_ * to_end(s, a_)[..., None])
            before, h = h, hand_on(h, over_all(s, a_)[:, None, None], new)
            read = from_start(s, a_)[..., None] * (c_ @ (h if read_after else before).mT)
            y.append(add(inside(fading(s, a_) * product(c_inside, b_inside), x_), read))
        return finish(y)

    return answer


def quotients(
    mask: Callable[[Tensor], Tensor] = torch.tril,
    running: Callable[[Tensor], Tensor] = lambda a: a.cumprod(1),
    epsilon: float = 0.0,
    product: Callable[[Tensor], Tensor] = lambda a: a.cumprod(1),
) -> Answer:
    """By running products in place of sums of logarithms."""

    def divided(above: Tensor, below: Tensor, like: Tensor) -> Tensor:
        return (above / (below + epsilon)).to(like)

    return variant(
        fading=lambda s, a: mask(divided(running(a)[:, :, None], running(a)[:, None, :], a)),
        to_end=lambda s, a: divided(running(a)[:, -1:], running(a), a),
        from_start=lambda s, a: product(a),
        over_all=lambda s, a: product(a)[:, -1],
    )


def _with_least(a: Tensor, how: Callable[..., Tensor], least: float) -> Tensor:
    """Sums of logarithms of a + least, or of a where it is at least that."""
    return how(a, least).log().cumsum(1)


def by_a_product(table: Tensor) -> Tensor:
    return table * torch.ones_like(table).tril()


def sums_of_all(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """One running sum over the whole sequence, so that it is not 0 where a chunk begins."""
    s, h, y = a.log().cumsum(1), x.new_zeros(len(x), x.shape[2], b.shape[2]), []
    for first in range(0, x.shape[1], chunk):
        x_, s_, b_, c_ = (part[:, first : first + chunk] for part in (x, s, b, c))
        y.append((fading(s_, s_) * (c_ @ b_.mT)) @ x_ + s_.exp()[..., None] * (c_ @ h.mT))
        h = s_[:, -1, None, None].exp() * h + x_.mT @ (b_ * (s_[:, -1:] - s_).exp()[..., None])
    return torch.cat(y, 1)


def below(table: Tensor) -> Tensor:
    """Ones on and below the diagonal."""
    return torch.ones_like(table).tril()


QUOTIENTS = (
    Mistake(
        "quotients of running products",
        quotients(),
        "this divides running products (cumprod) by each other. In a long chunk of small factors they are rounded to "
        "0, and 0 / 0 is NaN. Add up logarithms and take differences: (s_i − s_j).exp().",
    ),
    Mistake(
        "quotients, masked by a product",
        quotients(by_a_product),
        "this divides running products (cumprod) by each other, which gives 0 / 0 and 1 / 0 in a long chunk of small "
        "factors, and a mask of zeros cannot mend that: 0 · NaN is NaN. Take differences of sums of logarithms.",
    ),
    Mistake(
        "quotients with an ε",
        quotients(epsilon=1e-8),
        "there is an ε below running products, against 0 / 0. Where these are small it changes the result. Take "
        "differences of sums of logarithms, (s_i − s_j).exp(), which need none.",
    ),
    Mistake(
        "quotients to the end",
        variant(to_end=lambda s, a: a.cumprod(1)[:, -1:] / a.cumprod(1)),
        "for the new memory this divides running products (cumprod) by each other: 0 / 0 in a long chunk of small "
        "factors. From j to the end it is (s_Q − s_j).exp().",
    ),
    Mistake(
        "quotients in float64",
        quotients(running=lambda a: a.double().cumprod(1)),
        "in float64 running products last longer, but they are rounded to 0 there as well, and 0 / 0 is NaN. Take "
        "differences of sums of logarithms, (s_i − s_j).exp().",
    ),
    Mistake(
        "exp(s_i) · exp(−s_j)",
        variant(
            fading=lambda s, a: (s.exp()[:, :, None] * (-s).exp()[:, None, :]).tril(),
            to_end=lambda s, a: s.exp()[:, -1:] * (-s).exp(),
        ),
        "exp(s_i) is rounded to 0 and exp(−s_j) grows to ∞ in a long chunk of small factors. Subtract first, then take "
        "exp: (s_i − s_j).exp().",
    ),
    Mistake(
        "masked after exp",
        variant(fading=lambda s, a: apart(s).exp().tril()),
        "the values are right, but the gradient is NaN: above the diagonal s_i − s_j is positive, exp of it ∞, and on "
        "the way back 0 · ∞. Set these differences to −∞ *before* exp (masked_fill).",
        (variant(fading=lambda s, a: apart(s).exp(), inside=lambda table, x: table.tril() @ x),),
    ),
    Mistake(
        "masked after exp, by a product",
        variant(fading=lambda s, a: by_a_product(apart(s).exp())),
        "above the diagonal s_i − s_j is positive, and exp of it ∞ in a long chunk of small factors: multiplied by a "
        "mask of zeros, NaN. Set these differences to −∞ before exp (masked_fill).",
    ),
)

FADING = (
    Mistake(
        "masked with −10 before exp",
        variant(fading=lambda s, a: fading(s, a, instead=-10.0)),
        "differences above the diagonal are set to some negative number, and exp of it is not 0. Set them to −∞.",
        tuple(variant(fading=partial(fading, instead=number)) for number in (-1.0, -5.0)),
    ),
    Mistake(
        "masked with −∞ after exp",
        variant(
            fading=lambda s, a: apart(s).exp(),
            inside=lambda table, x: table.masked_fill(below(table) == 0, -torch.inf) @ x,
        ),
        "entries of the matrix are set to −∞, after exp. It is the differences that are to be −∞, before exp.",
    ),
    Mistake(
        "masked below the diagonal",
        variant(fading=lambda s, a: apart(s).masked_fill(below(apart(s)).tril(-1) > 0, -torch.inf).exp()),
        "the mask covers the past, below the diagonal. It is to cover what comes after a step: triu(1).",
    ),
    Mistake(
        "masked from the second diagonal on",
        variant(fading=lambda s, a: fading(s, a, diagonal=2)),
        "each step reads the one after it too: the mask begins at the first diagonal above, triu(1).",
    ),
    Mistake(
        "differences the other way round",
        variant(fading=lambda s, a: fading(-s, a)),
        "the differences are s_j − s_i. From j to i it fades by s_i − s_j: s[:, :, None] − s[:, None, :].",
    ),
    Mistake(
        "no fading inside",
        variant(fading=lambda s, a: below(apart(s))),
        "inside a chunk nothing fades: each product of c_i and b_j is multiplied by (s_i − s_j).exp().",
    ),
    Mistake(
        "no cumsum",
        variant(sums=lambda a: a.log()),
        "s is the logarithms as they are. Add them up along the chunk: cumsum(1).",
    ),
    Mistake(
        "cumsum over the batch",
        variant(sums=lambda a: a.log().cumsum(0)),
        "cumsum(0) adds up over the batch. The steps are axis 1.",
    ),
    Mistake(
        "cumsum from the end",
        variant(sums=lambda a: a.log().flip(1).cumsum(1).flip(1)),
        "the logarithms are added up from the end of the chunk. s_i is the sum up to step i.",
    ),
    Mistake(
        "cumsum without the step itself",
        variant(sums=lambda a: a.log().cumsum(1) - a.log()),
        "s_i lacks the logarithm of a_i itself: it is the sum up to step i, a_i included.",
    ),
    Mistake(
        "another logarithm",
        variant(sums=lambda a: a.log2().cumsum(1)),
        "this is another logarithm (log2, log10, log1p). exp undoes log.",
        (variant(sums=lambda a: a.log10().cumsum(1)), variant(sums=lambda a: a.log1p().cumsum(1))),
    ),
    Mistake(
        "ε in the logarithm",
        variant(sums=lambda a: (a + 1e-6).log().cumsum(1)),
        "an ε is added to a before the logarithm, or a is limited from below, which changes the result. a is above 0 "
        "here: take a.log().",
        (
            *(variant(sums=partial(_with_least, how=torch.add, least=e)) for e in (1e-2, 1e-3, 1e-4, 1e-5, 1e-8)),
            *(variant(sums=partial(_with_least, how=torch.clamp, least=e)) for e in (1e-2, 1e-3, 1e-4)),
        ),
    ),
    Mistake(
        "exp forgotten inside",
        variant(fading=lambda s, a: apart(s).tril()),
        "inside the chunk you multiply by a difference of logarithms. The factor is exp of it.",
    ),
    Mistake(
        "without c and b inside",
        variant(product=lambda c, b: 1.0),
        "the products of c_i and b_j are missing in the matrix: times c @ b.mT.",
    ),
    Mistake(
        "c and b step by step inside",
        variant(product=lambda c, b: (c * b).sum(2, keepdim=True)),
        "c_i is multiplied by b_i of the same step. The matrix has all pairs: c @ b.mT.",
    ),
    Mistake(
        "c and b exchanged inside",
        variant(roles=lambda b, c: (b, c, b, c)),
        "b and c are exchanged in the matrix: row i reads with c_i, column j was written with b_j: c @ b.mT.",
    ),
    Mistake(
        "no mask",
        variant(fading=lambda s, a: apart(s).exp()),
        "the steps read what comes after them: the matrix needs zeros above its diagonal.",
    ),
    Mistake(
        "masked with 0 before exp",
        variant(fading=lambda s, a: fading(s, a, instead=0.0)),
        "differences above the diagonal are set to 0, and exp(0) is 1. Set them to −∞.",
    ),
    Mistake(
        "without the diagonal",
        variant(fading=lambda s, a: fading(s, a, diagonal=0)),
        "the diagonal is masked too, but a step reads what it has just written. Mask from the first diagonal above: "
        "triu(1).",
    ),
    Mistake(
        "one factor too many",
        variant(fading=lambda s, a: fading(s, a) * a[:, None]),
        "inside the chunk there is a factor too many, or too few: what step j writes fades from j + 1 to i, s_i − s_j.",
        (
            variant(fading=lambda s, a: fading(s, a) / a[:, :, None]),
            variant(fading=lambda s, a: fading(s, a) * a[..., None]),
        ),
    ),
    Mistake(
        "matrix transposed",
        variant(inside=lambda table, x: table.mT @ x),
        "the matrix is transposed: row i is what is read at i, column j what was written at j, s[:, :, None] − s[:, "
        "None, :], and c @ b.mT.",
    ),
    Mistake(
        "no logarithm",
        variant(sums=lambda a: a.cumsum(1)),
        "the factors themselves are added up. Add up their logarithms.",
    ),
    Mistake(
        "sums over the whole sequence",
        sums_of_all,
        "the sum of logarithms runs on through all chunks. The memory fades from the *start of its chunk* on: take the "
        "cumsum within each chunk.",
    ),
    Mistake(
        "b and c exchanged",
        variant(given=lambda x, a, b, c: (x, a, c, b)),
        "b and c are exchanged: b says where to write, c what to read.",
    ),
)

"""Right and wrong ways through a memory that fades: what exercise 10.3 compares with."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Answer = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def recurrence(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h_t = a_t h_{t−1} + x_t b_tᵀ and y_t = h_t c_t, from h_0 = 0: the companion's recurrence, with one head.

    Not by the companion's own function: that takes logarithms, and a may be 0, with a gradient.

    Shapes:
        x: (B, T, P); a: (B, T) in [0, 1]; b and c: (B, T, N) → y (B, T, P).
    """
    h, y = x.new_zeros(len(x), x.shape[2], b.shape[2]), []
    for x_t, a_t, b_t, c_t in zip(x.unbind(1), a.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = a_t[:, None, None] * h + x_t[:, :, None] * b_t[:, None]
        y.append((h * c_t[:, None]).sum(2))
    return torch.stack(y, 1)


def _forwards(length: int) -> Iterable[int]:
    return range(length)


def variant(
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


def shifted(part: Tensor, by: int, fill: float) -> Tensor:
    """Step t gets what step t − by had, and ``fill`` where there was none."""
    outside = torch.full_like(part[:, :1], fill)
    return torch.cat([outside, part[:, :-1]] if by > 0 else [part[:, 1:], outside], 1)


def by_logarithms(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As a matrix, with sums of logarithms, which are −∞ from a = 0 on."""
    s = a.log().cumsum(1)
    return ((s[:, :, None] - s[:, None]).exp().tril() * (c @ b.mT)) @ x


def in_place(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h = x.new_zeros(len(x), x.shape[2], b.shape[2])
    y = []
    for t in range(x.shape[1]):
        h *= a[:, t, None, None]
        h += x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)


def faded_by(pick: Callable[[Tensor, int], Tensor], *, turned: bool = False) -> Answer:
    """With another factor: ``pick`` gets a and t. ``turned``: the memory starts as (B, N, P)."""

    def answer(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h, y = x.new_zeros(len(x), *((b.shape[2], x.shape[2]) if turned else (x.shape[2], b.shape[2]))), []
        for t in range(x.shape[1]):
            h = pick(a, t) * h + x[:, t, :, None] * b[:, t, None, :]
            y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
        return torch.stack(y, 1)

    return answer


def by_quotients(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """What was written over the running product, summed up, times the running product."""
    running = a.cumprod(1)[:, :, None, None]
    h = (x[:, :, :, None] * b[:, :, None, :] / running).cumsum(1) * running
    return torch.einsum("btpn,btn->btp", h, c)


def table_of_quotients(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    running = a.cumprod(1)
    return ((running[:, :, None] / running[:, None]).tril() * (c @ b.mT)) @ x


def table_of_sums(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    s = a.log().cumsum(1)
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return ((s[:, :, None] - s[:, None]).masked_fill(future, -torch.inf).exp() * (c @ b.mT)) @ x


def memory_of_one_column(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, y = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t, None] * h + x[:, t] * b[:, t]
        y.append(h * c[:, t])
    return torch.stack(y, 1)


def steps_of_the_batch(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, y = x.new_zeros(len(x), x.shape[2], b.shape[2]), []
    for t in range(len(x)):
        h = a[:, t, None, None] * h + x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)

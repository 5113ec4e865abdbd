"""State-space duality in chunks, beside its recurrence and beside attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.comparison import Setup, Work, mixed_precision
from companion.backbones import ssd_chunked, ssd_recurrence
from companion.priors.transformer import causal_attention

HEADS, WIDTH = 4, 64  # a key of attention has as many numbers as the state has columns
ROW_SIZE = f"{HEADS} heads of {WIDTH} numbers, states of {WIDTH} columns or keys of {WIDTH} numbers, batch 1"

Duality = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # x, log_decay, b, c → y, last state
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values (B, heads, T, d) → the same


def state_space(duality: Duality) -> Setup:
    """Forward and backward of one row of T positions."""

    def setup(length: int, device: torch.device, dtype: torch.dtype) -> Work:
        x, b, c = (learnt(1, length, *rest, device=device) for rest in ((HEADS, WIDTH), (WIDTH,), (WIDTH,)))
        log_decay = nn.Parameter(-0.2 * torch.rand(1, length, HEADS, device=device))
        leaves = [x, log_decay, b, c]
        return forward_backward(lambda: duality(*leaves)[0], leaves, torch.randn_like(x), dtype)

    return setup


def attention(attend: Attention) -> Setup:
    def setup(length: int, device: torch.device, dtype: torch.dtype) -> Work:
        leaves = [learnt(1, HEADS, length, WIDTH, device=device) for _ in range(3)]
        return forward_backward(lambda: attend(*leaves), leaves, torch.randn_like(leaves[0]), dtype)

    return setup


def learnt(*shape: int, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, device=device))


def forward_backward(
    forward: Callable[[], Tensor], leaves: list[nn.Parameter], later: Tensor, dtype: torch.dtype
) -> Work:
    """``later`` is the gradient that later layers would send."""

    def step() -> None:
        with mixed_precision(later.device, dtype):
            y = forward()
        y.backward(later.to(y.dtype))

    return Work(step, leaves)


def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)


chunked, by_recurrence = state_space(ssd_chunked), state_space(ssd_recurrence)
fused_attention, plain_attention = attention(fused), attention(causal_attention)


def bytes_of_tables(length: int) -> int:
    """Of some five tables of T × T numbers a head, which plain attention has at its peak."""
    return 5 * 4 * HEADS * length**2


def bytes_of_states(length: int) -> int:
    """Of what autograd keeps of each step of the recurrence: some five states."""
    return 5 * 4 * HEADS * WIDTH**2 * length

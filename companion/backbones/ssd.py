"""State-space duality (chapter 10): one sum, computed as a recurrence, as a matrix, and in chunks.

Position t of a sequence reads and writes a *state* h. The state decays, x_t is written to it, and y_t is read from it:

    h_t = a_t h_{t−1} + x_t b_tᵀ,    y_t = h_t c_t    (Dao & Gu 2024, "Transformers are SSMs", equation 2)

In the words of attention, c_t is a query, b_s a key and x_s a value: y_t is the sum over s ≤ t of (c_t · b_s) x_s, each
times the decays since then, a_{s+1} … a_t, in place of a softmax. One example goes through this module, with B = 2
sequences, T = 100 positions, H = 4 heads, P = 16 numbers a head, and N = 8 columns of state:

    x (2, 100, 4, 16), log_decay (2, 100, 4), b and c (2, 100, 8), which the heads share → y (2, 100, 4, 16)
    the state h (2, 4, 16, 8): its size does not depend on T

    ssd_recurrence   position by position, 100 steps                 the definition
    ssd_matrix       M (2, 4, 100, 100), with y = M x                to look at
    ssd_chunked      a matrix within chunks, a state between them    to train
    ssd_step         one position                                    to sample

``x`` comes multiplied by its step size Δ_t, and a_t = exp(Δ_t A) as its logarithm, as in the paper's listing 1. So a
product of decays is a sum here, and of no positive number the exponential is taken.
"""

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import check_between, check_fits, check_size, check_tensor


def ssd_recurrence(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Position by position, as equation 2 says: y, and the state after the last position.

    Args:
        x: what is written, times its step size.
        log_decay: log a_t, finite and at most 0. 0 keeps all of the state.
        b: where it is written.
        c: where it is read.
        state: h before the first position, by default zeros.

    Shapes:
        x (B, T, H, P), log_decay (B, T, H), b and c (B, T, N), state (B, H, P, N) → y (B, T, H, P), (B, H, P, N).

    Raises:
        ValueError: other shapes, or a ``log_decay`` that is positive or not finite.
    """
    _check_sequence(x, log_decay, b, c, state)
    h = _zeros(x, b) if state is None else state
    outputs = []
    positions = zip(x.unbind(1), log_decay.unbind(1), b.unbind(1), c.unbind(1), strict=True)
    for x_t, log_decay_t, b_t, c_t in positions:  # of each x[:, t] the gradient would be as long as x
        y, h = _step(x_t, log_decay_t, b_t, c_t, h)
        outputs.append(y)
    return torch.stack(outputs, dim=1), h


def ssd_step(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position: its y, and the state after it.

    Shapes:
        x (B, H, P), log_decay (B, H), b and c (B, N), state (B, H, P, N) → y (B, H, P), (B, H, P, N).

    Raises:
        ValueError: other shapes, or a ``log_decay`` that is positive or not finite.
    """
    check_tensor("x", x, shape=("B", "H", "P"))
    _check_others(x, log_decay, b, c)
    _check_state(state, x, b)
    return _step(x, log_decay, b, c, state)


def _step(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    written = x[..., None] * b[:, None, None]  # x_t b_tᵀ, (2, 4, 16, 1) · (2, 1, 1, 8) → (2, 4, 16, 8)
    state = log_decay.exp()[..., None, None] * state + written  # equation 2a: h_t = a_t h_{t−1} + x_t b_tᵀ
    y = (state @ c[:, None, :, None]).squeeze(
        -1
    )  # equation 2b: y_t = h_t c_t, (2, 4, 16, 8) @ (2, 1, 8, 1) → (2, 4, 16)
    return y, state


def ssd_matrix(log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """M with y = M x for each head: M_ts = (c_t · b_s) a_{s+1} … a_t for s ≤ t, and 0 above the diagonal (equation 3).

    It is what attention calls its weights, and takes T × T numbers: ``y = (M @ x.transpose(1, 2)).transpose(1, 2)``.

    Shapes:
        log_decay (B, T, H), b and c (B, T, N) → (B, H, T, T).

    Raises:
        ValueError: other shapes, or a ``log_decay`` that is positive or not finite.
    """
    check_tensor("log_decay", log_decay, shape=("B", "T", "H"))
    _check_log_decay(log_decay)
    for name, one in (("b", b), ("c", c)):
        check_tensor(name, one, shape=(*log_decay.shape[:2], "N" if one is b else b.shape[2]))
        check_fits(name, one, log_decay, of="log_decay")
    return (c @ b.mT)[:, None] * _products(log_decay.mT)  # (2, 1, 100, 100) · (2, 4, 100, 100)


def ssd_chunked(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None, *, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """:func:`ssd_recurrence` with few steps and large matrix products (section 6): M is cut into blocks of
    chunk × chunk. A block on the diagonal is used as it is; one below it is a product of three: what a chunk adds to
    the state, the decay of the chunks between, and what a later chunk reads.

    Time and memory grow with T · chunk instead of T². Shapes beside the lines are those of the example, with chunks of
    64: two, of which the second is filled up with zeros, so that nothing is written there and nothing decays.

    Args:
        x, log_decay, b, c, state: see :func:`ssd_recurrence`.
        chunk: Q, positions in a chunk. It changes time and memory, and the result by rounding only.

    Shapes:
        as :func:`ssd_recurrence`.

    Raises:
        ValueError: other shapes, a ``log_decay`` that is positive or not finite, or ``chunk`` is no size.
    """
    _check_sequence(x, log_decay, b, c, state)
    check_size("chunk", chunk)
    length = x.shape[1]
    x, log_decay, b, c = (_cut(part, min(chunk, length)) for part in (x, log_decay, b, c))
    x = x.transpose(2, 3)  # (2, 2, 64, 4, 16) → (2, 2, 4, 64, 16): batch, chunk, head, position in the chunk, P
    log_decay = log_decay.mT  # (2, 2, 64, 4) → (2, 2, 4, 64)
    b, c = b[:, :, None], c[:, :, None]  # (2, 2, 1, 64, 8): one for all heads

    # 1. Within each chunk: the blocks on the diagonal (section 6.1), each as in ssd_matrix.
    decays = _products(log_decay)  # (2, 2, 4, 64, 64)
    y = (c @ b.mT * decays) @ x  # (2, 2, 4, 64, 64) @ (2, 2, 4, 64, 16) → (2, 2, 4, 64, 16)

    # 2. What each chunk adds to the state: each position's x bᵀ, decayed to the end of the chunk (the last row).
    added = (decays[..., -1, :, None] * x).mT @ b  # (2, 2, 4, 16, 64) @ (2, 2, 1, 64, 8) → (2, 2, 4, 16, 8)

    # 3. From chunk to chunk: the recurrence of equation 2 once more, T / Q steps of it.
    since_start = log_decay.cumsum(-1).exp()  # (2, 2, 4, 64): what a state before the chunk has decayed to
    h = _zeros(x.transpose(2, 3)[:, 0], b[:, 0]) if state is None else state  # (2, 4, 16, 8)
    before = []  # the state before each chunk
    for decay_of_chunk, added_by_chunk in zip(since_start[..., -1:, None].unbind(1), added.unbind(1), strict=True):
        before.append(h)
        h = decay_of_chunk * h + added_by_chunk

    # 4. What each position reads of the state before its chunk.
    y = y + since_start[..., None] * (c @ torch.stack(before, dim=1).mT)  # (2, 2, 1, 64, 8) @ (2, 2, 4, 8, 16)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], h  # (2, 2, 64, 4, 16) → (2, 128, 4, 16) → (2, 100, 4, 16)


def _products(log_decay: Tensor) -> Tensor:
    """(…, T) → (…, T, T): row t, column s holds a_{s+1} … a_t for s ≤ t (1 on the diagonal), and 0 for s > t.

    Each sum of logarithms is added up along its own segment, from s + 1 to t. The difference of two sums from the start
    is the same, but loses digits where these are large, and is positive above the diagonal, where exp overflows.
    """
    length = log_decay.shape[-1]
    rows = log_decay[..., None, :].expand(*log_decay.shape, length)  # row s: log a_1, log a_2, …
    sums = rows.triu(1).cumsum(-1)  # row s, column t: log a_{s+1} + … + log a_t; 0 for t ≤ s
    return sums.exp().triu().mT


def _cut(part: Tensor, chunk: int) -> Tensor:
    """(B, T, …) → (B, chunks, chunk, …), zeros at the end."""
    missing = -part.shape[1] % chunk
    padded = functional.pad(part, (0, 0) * (part.ndim - 2) + (0, missing))
    return padded.unflatten(1, (-1, chunk))


def _zeros(x: Tensor, b: Tensor) -> Tensor:
    """The empty state, of x (B, T, H, P) and b (B, T, N)."""
    return x.new_zeros(x.shape[0], *x.shape[2:], b.shape[-1])


def _check_sequence(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> None:
    check_tensor("x", x, shape=("B", "T", "H", "P"))
    _check_others(x, log_decay, b, c)
    if state is not None:
        _check_state(state, x, b)


def _check_others(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> None:
    """Those beside x (B, …, H, P)."""
    check_tensor("log_decay", log_decay, shape=tuple(x.shape[:-1]))
    _check_log_decay(log_decay)
    check_tensor("b", b, shape=(*x.shape[:-2], "N"))
    check_tensor("c", c, shape=tuple(b.shape))
    for name, one in (("log_decay", log_decay), ("b", b), ("c", c)):
        check_fits(name, one, x, of="x")


def _check_state(state: Tensor, x: Tensor, b: Tensor) -> None:
    check_tensor("state", state, shape=(x.shape[0], *x.shape[-2:], b.shape[-1]))
    check_fits("state", state, x, of="x")


def _check_log_decay(log_decay: Tensor) -> None:
    check_between("log_decay", log_decay, -torch.finfo(log_decay.dtype).max, 0)

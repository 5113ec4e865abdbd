"""Mamba-2: blocks that mix a row of tokens through a state, and the encoders and decoders made of them (chapter 10).

The mixer takes the place of attention. Tokens (64, 64, 128), with inner channels 2·128 = 256 as 4 heads of 64 and a
state of 64 columns:

    x (64, 64, 128) → z (64, 64, 256), values, B and C (64, 64, 256 + 64 + 64), Δ (64, 64, 4)
    values, B, C → a causal convolution over 4 positions → values (64, 64, 4, 64), B and C (64, 64, 64)
    h_t = exp(Δ_t A) h_{t−1} + Δ_t values_t B_tᵀ,  y_t = h_t C_t + D values_t → y (64, 64, 4, 64)
    norm(y ⊙ silu(z)) → (64, 64, 128)

The recurrence is in ``ssd.py``. A position sees itself and those before it; a bidirectional block sees all.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    DEEPEST,
    check_fits,
    check_instance,
    check_size,
    check_tensor,
    check_whole,
    unchecked_values,
)
from companion._devices import at_least_float32
from companion._pytrees import pytree
from companion.backbones.blocks import RMSNorm, SwiGLU
from companion.backbones.patches import PatchDecoder, PatchEncoder
from companion.backbones.ssd import ssd_chunked, ssd_step
from companion.configured import Configured

_WIDEST = 2**14  # hidden: the matrices have the square of that
_STEP_SIZES = (1e-3, 0.1)  # Δ at the beginning
_DECAY_RATES = (1.0, 16.0)  # −A at the beginning
_HEAD_DIM = 64
_EPSILON = 1e-5  # of the gated norm, as in the authors' code


@pytree
@dataclass(frozen=True)
class MambaState:
    """What a mixer keeps of the positions so far; its size does not depend on their number.

    Shapes:
        window: (B, inner + 2N, conv − 1), the newest inputs of the convolution. state: (B, H, P, N).
    """

    window: Tensor
    state: Tensor


class Mamba2Mixer(nn.Module):
    """The mixer of Mamba-2 (Dao & Gu 2024, section 7.1): state-space duality between a gate and two projections.

    What is written to the state (B), what is read (C) and for how long it is kept (Δ) depend on the input; the rates A
    are learned, one a head.

    **Initialisation.** Δ = softplus(bias) is log-uniform in [0.001, 0.1] at an input of 0 (Gu & Dao 2023, section 3.6),
    and −A uniform in [1, 16] as in the authors' code: at first a head forgets half in between 0.4 and 690 positions.
    D is 1; all other weights are as torch makes them.

    Args:
        hidden: length of a token.
        state: N, columns of the state.
        head_dim: P, numbers a head; a divisor of expand · hidden, by default the largest up to 64. There are
            H = expand · hidden / P heads.
        expand: inner channels for each channel of a token.
        conv: positions that the convolution sees: the own one and those before it.

    Shapes:
        x: (B, T, hidden) → the same.

    Raises:
        ValueError: an argument is out of range, ``head_dim`` does not divide expand · hidden; ``x`` has another number
            of channels, or another type than the weights.
    """

    def __init__(
        self, hidden: int, *, state: int = 64, head_dim: int | None = None, expand: int = 2, conv: int = 4
    ) -> None:
        super().__init__()
        head_dim = checked_head_dim(head_dim, state=state, expand=expand, conv=conv, hidden=hidden)
        self.hidden, self.inner, self.state = hidden, expand * hidden, state
        self.heads, self.head_dim = self.inner // head_dim, head_dim
        self.to_inner = nn.Linear(hidden, 2 * self.inner + 2 * state + self.heads, bias=False)  # z, values, B, C, Δ
        channels = self.inner + 2 * state
        self.convolution = nn.Conv1d(channels, channels, conv, groups=channels)  # each channel by itself
        least, most = _STEP_SIZES
        delta = _between(math.log(least), math.log(most), self.heads).exp()
        self.delta_bias = nn.Parameter(_inverse_softplus(delta))
        self.log_rate = nn.Parameter(_between(*_DECAY_RATES, self.heads).log())  # log(−A)
        self.skip = nn.Parameter(torch.ones(self.heads))  # D
        self.norm = nn.RMSNorm(self.inner, eps=_EPSILON)
        self.to_out = nn.Linear(self.inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", "T", self.hidden))
        check_fits("x", x, self.to_out.weight)
        z, inputs, delta = self._project(x)  # (64, 64, 256), (64, 64, 384), (64, 64, 4)
        past = functional.pad(inputs.mT, (self.convolution.kernel_size[0] - 1, 0))  # (64, 384, 3 + 64)
        values, b, c = self._split(self.convolution(past).mT)  # (64, 64, 4, 64), (64, 64, 64), (64, 64, 64)
        delta, log_decay = self._decay(delta)  # (64, 64, 4) both
        with unchecked_values():
            y, _ = ssd_chunked(delta[..., None] * values, log_decay, b, c)  # (64, 64, 4, 64)
        return self._gated(y, values, z)  # (64, 64, 128)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """The next position alone: what :meth:`forward` gives there, and the state after it.

        Shapes:
            x: (B, hidden) → the same.

        Raises:
            ValueError: x has another shape or type, or ``state`` is of another mixer or batch.
        """
        check_tensor("x", x, shape=("B", self.hidden))
        check_fits("x", x, self.to_out.weight)
        self._check_state(state, x.shape[0])
        z, inputs, delta = self._project(x)  # (64, 256), (64, 384), (64, 4)
        window = torch.cat([state.window, inputs[..., None]], dim=2)  # (64, 384, 4): the last four positions
        values, b, c = self._split(self.convolution(window)[..., 0])  # (64, 4, 64), (64, 64), (64, 64)
        delta, log_decay = self._decay(delta)
        with unchecked_values():
            y, h = ssd_step(delta[..., None] * values, log_decay, b, c, state.state)
        return self._gated(y, values, z), MambaState(window[..., 1:], h)

    def new_state(self, n: int) -> MambaState:
        """The one before the first position, of ``n`` sequences: zeros."""
        check_size("n", n)
        weight = self.to_out.weight
        window = weight.new_zeros(n, self.convolution.in_channels, self.convolution.kernel_size[0] - 1)
        return MambaState(window, at_least_float32(weight.new_zeros(n, self.heads, self.head_dim, self.state)))

    # What forward and step share; … is (B, T) or (B,)

    def _project(self, x: Tensor) -> list[Tensor]:
        """(…, hidden) → z (…, inner), values, B and C (…, inner + 2N), Δ (…, H)."""
        return list(self.to_inner(x).split([self.inner, self.inner + 2 * self.state, self.heads], dim=-1))

    def _split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, inner + 2N) → values (…, H, P), B and C (…, N)."""
        parts = at_least_float32(functional.silu(convolved))  # the state is kept in no less
        values, b, c = parts.split([self.inner, self.state, self.state], dim=-1)
        return values.unflatten(-1, (self.heads, self.head_dim)), b, c

    def _decay(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Δ as projected → Δ > 0 and Δ A < 0, (…, H) both (Gu & Dao 2023, "Mamba", equation 4 and section 3.6)."""
        delta = functional.softplus(at_least_float32(delta) + at_least_float32(self.delta_bias))
        return delta, -delta * at_least_float32(self.log_rate).exp()

    def _gated(self, y: Tensor, values: Tensor, z: Tensor) -> Tensor:
        """+ D values, norm(… ⊙ silu(z)), projection (Dao & Gu 2024, section 7.1, "extra normalization")."""
        y = (y + self.skip[:, None] * values).flatten(-2)  # (…, H, P) → (…, inner)
        return self.to_out(self.norm((y * functional.silu(z)).to(self.norm.weight.dtype)))

    def _check_state(self, state: MambaState, n: int) -> None:
        check_instance("state", state, MambaState, "a MambaState, as new_state gives it")
        fresh = self.convolution.in_channels, self.convolution.kernel_size[0] - 1
        check_tensor("state.window", state.window, shape=(n, *fresh) if fresh[1] else None)
        check_tensor("state.state", state.state, shape=(n, self.heads, self.head_dim, self.state))


class Mamba2Block(nn.Module):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x)): a transformer's block with the mixer in place of attention.

    Args:
        hidden, state, head_dim, expand, conv: see :class:`Mamba2Mixer`.

    Shapes:
        x: (B, T, hidden) → the same. A position sees itself and those before it.

    Raises:
        ValueError: an argument is out of range, or ``x`` has another number of channels or type.
    """

    def __init__(
        self, hidden: int, *, state: int = 64, head_dim: int | None = None, expand: int = 2, conv: int = 4
    ) -> None:
        super().__init__()
        self.mixer = Mamba2Mixer(hidden, state=state, head_dim=head_dim, expand=expand, conv=conv)
        self.norm1, self.norm2 = RMSNorm(hidden), RMSNorm(hidden)
        self.mlp = SwiGLU(hidden)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", "T", self.mixer.hidden))
        check_fits("x", x, self.norm1.weight)
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """The next position alone, (B, hidden); see :meth:`Mamba2Mixer.step`, also for errors."""
        check_tensor("x", x, shape=("B", self.mixer.hidden))
        check_fits("x", x, self.norm1.weight)
        mixed, state = self.mixer.step(self.norm1(x), state)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), state


class BidirectionalMamba2Block(nn.Module):
    """The sum of two :class:`Mamba2Block` with weights of their own, one over the row and one over the reversed row.

    What the second gives is turned round again before the sum: only then are the two that are added of the same
    position. Each of the two has its own skip, so that x is in the sum twice.

    Args:
        hidden, state, head_dim, expand, conv: see :class:`Mamba2Mixer`.

    Shapes:
        x: (B, T, hidden) → the same. A position sees all.

    Raises:
        ValueError: an argument is out of range, or ``x`` has another number of channels or type.
    """

    def __init__(
        self, hidden: int, *, state: int = 64, head_dim: int | None = None, expand: int = 2, conv: int = 4
    ) -> None:
        super().__init__()
        self.forwards, self.backwards = (
            Mamba2Block(hidden, state=state, head_dim=head_dim, expand=expand, conv=conv) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        ahead = self.forwards(x)  # (64, 64, 128): position t of positions 0 … t
        back = self.backwards(x.flip(1))  # position t of positions T − 1 … T − 1 − t
        return ahead + back.flip(1)


# Encoders and decoders ----------------------------------------------------------------------------------------------


class Mamba2Encoder(Configured, PatchEncoder):
    """Images → patches → :class:`Mamba2Block` → latent grid. A latent sees its patch and those before it in raster
    order.

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: length of a token.
        factor, size, kernel: see :class:`PatchEncoder`.
        num_blocks: how many.
        state, head_dim: see :class:`Mamba2Mixer`.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, H / f, W / f).

    Raises:
        ValueError: an argument is out of range or does not fit another; ``x`` has another type, number of channels or
            size.
    """

    _block: ClassVar[type[nn.Module]] = Mamba2Block

    def __init__(
        self,
        in_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        size: int | tuple[int, int] = 32,
        kernel: int | tuple[int, int] | None = None,
        state: int = 64,
        head_dim: int | None = None,
    ) -> None:
        blocks = _new_blocks(self._block, num_blocks, hidden, state, head_dim)
        super().__init__(in_channels, dim, hidden=hidden, factor=factor, size=size, kernel=kernel, blocks=blocks)


class Mamba2Decoder(Configured, PatchDecoder):
    """Latent grid → :class:`Mamba2Block` → patches → images: the mirror of :class:`Mamba2Encoder`. A patch sees its
    latent and those before it in raster order.

    Args:
        out_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: length of a token.
        factor, size, kernel, last_conv: see :class:`PatchDecoder`.
        num_blocks: how many.
        state, head_dim: see :class:`Mamba2Mixer`.

    Shapes:
        z: (B, dim, h, w) → (B, out_channels, f·h, f·w). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range or does not fit another; ``z`` has another shape or type.
    """

    _block: ClassVar[type[nn.Module]] = Mamba2Block

    def __init__(
        self,
        out_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        size: int | tuple[int, int] = 32,
        kernel: int | tuple[int, int] | None = None,
        last_conv: bool = False,
        state: int = 64,
        head_dim: int | None = None,
    ) -> None:
        blocks = _new_blocks(self._block, num_blocks, hidden, state, head_dim)
        frame: dict[str, Any] = {"hidden": hidden, "factor": factor, "size": size, "kernel": kernel}
        super().__init__(out_channels, dim, last_conv=last_conv, blocks=blocks, **frame)


class BidirectionalMamba2Encoder(Mamba2Encoder):
    """:class:`Mamba2Encoder` of :class:`BidirectionalMamba2Block`: a latent sees the whole image."""

    _block = BidirectionalMamba2Block


class BidirectionalMamba2Decoder(Mamba2Decoder):
    """:class:`Mamba2Decoder` of :class:`BidirectionalMamba2Block`: a patch sees all latents."""

    _block = BidirectionalMamba2Block


def _new_blocks(
    kind: type[nn.Module], num_blocks: int, hidden: int, state: int, head_dim: int | None
) -> list[nn.Module]:
    check_size("num_blocks", num_blocks, least=0, most=DEEPEST)
    return [kind(hidden, state=state, head_dim=head_dim) for _ in range(num_blocks)]


# Initialisation and checks ------------------------------------------------------------------------------------------


def _between(low: float, high: float, n: int) -> Tensor:
    """n numbers, uniform in [low, high)."""
    return low + (high - low) * torch.rand(n)


def _inverse_softplus(y: Tensor) -> Tensor:
    """x with log(1 + eˣ) = y: x = y + log(1 − e⁻ʸ)."""
    return y + (-torch.expm1(-y)).log()


def checked_head_dim(head_dim: int | None, *, state: int, expand: int = 2, conv: int = 4, **hidden: int) -> int:
    """The numbers a head; for None the largest divisor of expand · hidden up to 64.

    Args:
        hidden: the length of a token, under the name that the caller's argument has.

    Raises:
        ValueError: an argument is out of range, or ``head_dim`` does not divide expand · hidden.
    """
    ((name, length),) = hidden.items()
    check_size(name, length, most=_WIDEST)
    check_size("state", state, most=_WIDEST)
    check_whole("expand", expand, most=64)
    check_whole("conv", conv, most=1024)
    inner = expand * length
    if head_dim is None:
        return next(divisor for divisor in range(_HEAD_DIM, 0, -1) if inner % divisor == 0)
    check_size("head_dim", head_dim, most=_WIDEST)
    if inner % head_dim:
        raise ValueError(f"head_dim: got {head_dim}, want a divisor of {expand} · {name}, {inner}")
    return head_dim

"""Encoders and decoders whose patches attend to each other: those of ViT-VQGAN (Yu et al. 2022; chapter 10).

Every patch can look at every other from the first block on. Shapes beside the lines are those of B = 64 pictures of
3×32×32, factor 4, hidden 128 and 4 heads: 64 tokens (64, 64, 128), queries, keys and values (64, 4, 64, 32).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    DEEPEST,
    LARGEST,
    check_choice,
    check_fits,
    check_same_device,
    check_size,
    check_sizes,
    check_tensor,
)
from companion.backbones.blocks import RMSNorm, SwiGLU
from companion.backbones.patches import PatchDecoder, PatchEncoder, token_grid
from companion.configured import Configured

_WIDEST = 2**14  # hidden: the matrices have the square of that
_BASE = 100  # of the angles; Su et al. have 10,000, for rows of thousands of tokens

Positions = Literal["learned", "axial-rotary"]


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V (Vaswani et al. 2017, equation 1): each token takes a weighted mean of the values of all.

    For reading only: ``SelfAttention`` calls torch's fused version of these three lines, and a test compares the two.
    It is ``causal_attention`` of the priors without its mask.

    Shapes:
        queries (B, heads, T, d), keys and values (B, heads, S, d) → (B, heads, T, d).

    Raises:
        ValueError: other shapes.
    """
    _check_attention(queries, keys, values)
    scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5  # (64, 4, 64, 64): how well each key fits
    weights = scores.softmax(-1)  # rows sum to 1
    return weights @ values  # (64, 4, 64, 32)


def axial_rotary(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn queries or keys by where their token stands: half of the channels by its row, half by its column.

    Channels are taken in pairs, and each pair is a point in the plane. Pair i of a half turns by the angle
    θᵢ·row (or θᵢ·column) with θᵢ = 100^(−i/n), n pairs in a half (Heo et al. 2024, their RoPE-Axial; along one axis,
    Su et al. 2021, equation 34). The dot product of a turned query and a turned key depends on how many rows and
    columns lie between their tokens, and not on where the two are; lengths stay.

    Args:
        grid: (h, w), the tokens along each axis; they come row by row.

    Shapes:
        x: (B, heads, h·w, d), d a multiple of 4 → the same.

    Raises:
        ValueError: ``x`` has another number of tokens, or d is no multiple of 4.
    """
    check_sizes("grid", grid, length=2)
    h, w = grid
    check_tensor("x", x, shape=("B", "heads", h * w, "d"))
    if x.shape[3] % 4:
        raise ValueError(f"x: got {x.shape[3]} channels a head, want a multiple of 4: two axes, and pairs of channels")
    rows = torch.arange(h, device=x.device).repeat_interleave(w)  # (T,): 0 0 0 … 1 1 1 …
    columns = torch.arange(w, device=x.device).repeat(h)  # (T,): 0 1 2 … 0 1 2 …
    by_row, by_column = x.chunk(2, dim=-1)
    return torch.cat([_turned(by_row, rows), _turned(by_column, columns)], dim=-1)


def _turned(x: Tensor, positions: Tensor) -> Tensor:
    """Pair i, the channels i and n + i, turned by θᵢ·position. x: (B, heads, T, 2n), positions: (T,)."""
    n = x.shape[3] // 2
    steps = torch.arange(n, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)) / n
    theta = _BASE**-steps  # (n,), from 1 to nearly 1/100
    angles = positions[:, None] * theta  # (T, n)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SelfAttention(nn.Module):
    """:func:`attention` of several heads side by side, with learned projections before and after it.

    Args:
        hidden: channels of a token.
        heads: they divide ``hidden``.
        grid: (h, w) of the tokens, to turn queries and keys by :func:`axial_rotary`; None: not, and attention alone
            does not know where a token stands.

    Shapes:
        tokens: (B, T, hidden) → the same.

    Raises:
        ValueError: an argument is out of range, ``heads`` does not divide ``hidden``, or with a grid the channels of
            a head are no multiple of 4; ``tokens`` have another shape or type.
    """

    def __init__(self, hidden: int, heads: int = 4, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        _check_heads(hidden, heads, grid)
        self.hidden, self.heads, self.grid = hidden, heads, grid
        self.to_qkv = nn.Linear(hidden, 3 * hidden)
        self.to_out = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        _check_tokens(tokens, self.hidden, self.grid)
        check_fits("tokens", tokens, self.to_out.weight)
        b, t, hidden = tokens.shape  # (64, 64, 128)
        queries, keys, values = (
            part.reshape(b, t, self.heads, hidden // self.heads).transpose(1, 2)  # each (64, 4, 64, 32)
            for part in self.to_qkv(tokens).chunk(3, dim=-1)
        )
        if self.grid is not None:
            queries, keys = axial_rotary(queries, self.grid), axial_rotary(keys, self.grid)
        # The same numbers as attention(queries, keys, values), without a (T, T) table in memory:
        out = functional.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(out.transpose(1, 2).reshape(b, t, hidden))  # heads joined: (64, 64, 128)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)): pre-norm (Xiong et al. 2020), and not causal.

    Beside the block of the priors: every token sees every other, RMSNorm instead of LayerNorm, SwiGLU instead of GELU.

    Args:
        hidden, heads, grid: see :class:`SelfAttention`.

    Shapes:
        tokens: (B, T, hidden) → the same.

    Raises:
        ValueError: see :class:`SelfAttention`.
    """

    def __init__(self, hidden: int, heads: int = 4, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads, grid)
        self.mlp = SwiGLU(hidden)
        self.norm1, self.norm2 = RMSNorm(hidden), RMSNorm(hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        _check_tokens(tokens, self.attention.hidden, self.attention.grid)
        check_fits("tokens", tokens, self.norm1.weight)
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ViTEncoder(Configured, PatchEncoder):
    """Images → patches → transformer blocks → latents (Yu et al. 2022, section 3.1).

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: channels of a token.
        factor: f, or (f_height, f_width): the size of a patch.
        num_blocks: transformer blocks.
        size: height and width of the images, or one number for both.
        kernel: pixels that a token sees along each axis, f or more, by an even number; None: f.
        heads: of attention; they divide ``hidden``.
        positions: "learned", a vector added to each token; or "axial-rotary", see :func:`axial_rotary`.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, H / f, W / f).

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``x`` is not as the arguments say.
    """

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
        heads: int = 4,
        positions: Positions = "learned",
    ) -> None:
        super().__init__(
            in_channels,
            dim,
            hidden=hidden,
            factor=factor,
            size=size,
            kernel=kernel,
            blocks=_blocks(num_blocks, hidden, heads, positions, token_grid(size, factor)),
            learned_positions=positions == "learned",
        )


class ViTDecoder(Configured, PatchDecoder):
    """Latents → transformer blocks → patches → images: the encoder's mirror.

    Args:
        out_channels: channels of the image.
        dim, hidden, factor, num_blocks, size, kernel, heads, positions: see :class:`ViTEncoder`.
        last_conv: whether a 3×3 convolution follows, which sees across the edges of patches.

    Shapes:
        z: (B, dim, h, w) → (B, out_channels, f·h, f·w). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``z`` is not as the arguments say.
    """

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
        heads: int = 4,
        positions: Positions = "learned",
        last_conv: bool = False,
    ) -> None:
        super().__init__(
            out_channels,
            dim,
            hidden=hidden,
            factor=factor,
            size=size,
            kernel=kernel,
            last_conv=last_conv,
            blocks=_blocks(num_blocks, hidden, heads, positions, token_grid(size, factor)),
            learned_positions=positions == "learned",
        )


def _blocks(num_blocks: int, hidden: int, heads: int, positions: Positions, grid: tuple[int, int]) -> list[nn.Module]:
    check_size("num_blocks", num_blocks, least=0, most=DEEPEST)
    check_choice("positions", positions, ("learned", "axial-rotary"))
    turned = grid if positions == "axial-rotary" else None
    _check_heads(hidden, heads, turned)
    return [TransformerBlock(hidden, heads, turned) for _ in range(num_blocks)]


def _check_heads(hidden: int, heads: int, grid: tuple[int, int] | None) -> None:
    check_size("hidden", hidden, most=_WIDEST)
    check_size("heads", heads)
    if hidden % heads:
        raise ValueError(f"heads: got {heads}, want a divisor of hidden, {hidden}")
    if grid is not None:
        check_sizes("grid", grid, length=2, most=LARGEST)
        if hidden // heads % 4:
            raise ValueError(
                f"heads: got {heads} for {hidden} channels, {hidden // heads} each, want multiples of 4 to turn: "
                "two axes, and pairs of channels"
            )


def _check_tokens(tokens: Tensor, hidden: int, grid: tuple[int, int] | None) -> None:
    check_tensor("tokens", tokens, shape=("B", "T" if grid is None else grid[0] * grid[1], hidden))


def _check_attention(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    check_tensor("queries", queries, shape=("B", "heads", "T", "d"))
    check_tensor("keys", keys, shape=(*queries.shape[:2], "S", queries.shape[3]))
    check_tensor("values", values, shape=(*queries.shape[:2], keys.shape[2], "d"))
    check_same_device("keys", keys, "queries", queries)
    check_same_device("values", values, "keys", keys)

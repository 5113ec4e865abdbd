"""A transformer prior (chapter 07): decoder-only, written out to be read in one sitting."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import DEEPEST, check_number, check_size
from companion.priors.base import Prior, Steps


class Cache:
    """Keys and values of the positions so far, for every layer; room for all positions is taken once."""

    def __init__(self, layers: int, n: int, heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.keys, self.values = (like.new_empty(layers, n, heads, length, head_dim) for _ in range(2))
        self.filled = 0

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in those of the newest positions, (n, heads, new, head_dim), and give all so far."""
        new, room = keys.shape[2], self.keys.shape[3] - self.filled
        if new > room or (new > 1 and self.filled):
            raise ValueError(
                f"x: got {new} positions beside {self.filled} in the cache, want one (an empty cache takes several) "
                f"and at most {room}"
            )
        end = self.filled + new
        self.keys[layer, :, :, self.filled : end] = keys
        self.values[layer, :, :, self.filled : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CausalSelfAttention(nn.Module):
    """Each position gathers from itself and those before it: softmax(QKᵀ/√d + mask) V (Vaswani et al. 2017, eq. 1).

    Shapes:
        x: (B, T, dim) → (B, T, dim). With a ``cache``, x holds the newest position only; an empty one takes several.

    Raises:
        ValueError: an argument is out of range, ``heads`` does not divide ``dim``, or the cache has no room for x.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, 1, heads, dropout)
        self.heads, self.dropout = heads, dropout
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        b, t, dim = x.shape
        queries, keys, values = (
            part.reshape(b, t, self.heads, dim // self.heads).transpose(1, 2)  # (B, heads, T, head_dim)
            for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        if cache is not None:
            keys, values = cache.extended(layer, keys, values)
        out = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=t > 1,  # with a cache there is one query, the last, and it may see everything
        )
        mixed: Tensor = self.to_out(out.transpose(1, 2).reshape(b, t, dim))
        return mixed


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): the norm comes first (Xiong et al. 2020)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, 1, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache, layer))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class Transformer(nn.Module):
    """A stack of blocks and a last norm: (B, T, dim) → (B, T, dim), causal."""

    def __init__(self, dim: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, layers, heads, dropout)
        self.heads, self.head_dim = heads, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        if cache is not None:
            cache.filled += x.shape[1]
        out: Tensor = self.norm(x)
        return out

    def new_cache(self, n: int, length: int, like: Tensor) -> Cache:
        return Cache(len(self.blocks), n, self.heads, length, self.head_dim, like)


def check_transformer(dim: int, layers: int, heads: int, dropout: float) -> None:
    """
    Raises:
        ValueError: an argument is out of range, or ``heads`` does not divide ``dim``.
    """
    check_size("dim", dim)
    check_size("layers", layers, most=DEEPEST)
    check_size("heads", heads)
    check_number("dropout", dropout, least=0, below=1)
    if dim % heads:
        raise ValueError(f"heads: got {heads}, want a divisor of dim, {dim}")


class TransformerPrior(Prior):
    """A decoder-only transformer over codes in raster order, with learned positions.

    The input is shifted by one: ``<sos>``, k₁, …, k_{N−1}; the output at place i predicts k_i. Over (h, w, R) it is the
    *flattened* transformer, over h·w·R codes in a row.

    Args:
        num_codes, grid, num_classes, label_dropout, tokenizer: see :class:`Prior`.
        dim: width.
        layers, heads: depth, and heads of attention; heads divide dim.
        dropout: of the residual branches and of attention.

    Raises:
        ValueError: an argument is out of range, or ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        num_codes: int,
        grid: Sequence[int],
        *,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__(num_codes, grid, num_classes=num_classes, label_dropout=label_dropout, tokenizer=tokenizer)
        check_transformer(dim, layers, heads, dropout)
        self.codes = nn.Embedding(num_codes, dim)
        self.sos = nn.Embedding(num_classes + 1, dim)  # the last is "no class"
        self.positions = nn.Parameter(0.02 * torch.randn(self.length, dim))
        self.transformer = Transformer(dim, layers, heads, dropout)
        self.to_logits = nn.Linear(dim, num_codes)
        for embedding in (self.codes, self.sos):
            nn.init.normal_(embedding.weight, std=0.02)

    def all_logits(self, codes: Tensor, starts: Tensor) -> Tensor:
        logits: Tensor = self.to_logits(self.transformer(self._inputs(codes.flatten(1), starts)))
        return logits.reshape(*codes.shape, self.num_codes)

    def steps(self, starts: Tensor, *, cache: bool) -> Steps:
        return _TransformerSteps(self, starts, cache)

    def _inputs(self, codes: Tensor, starts: Tensor) -> Tensor:
        """Codes (B, N) → <sos>, k₁ … k_{N−1} as vectors, with their positions, (B, N, dim)."""
        shifted = torch.cat([self.sos(starts)[:, None], self.codes(codes[:, :-1])], dim=1)
        return shifted + self.positions


class _TransformerSteps(Steps):
    def __init__(self, prior: TransformerPrior, starts: Tensor, cache: bool) -> None:
        self.prior, self.starts = prior, starts
        like = prior.positions
        self.cache = prior.transformer.new_cache(len(starts), prior.length, like) if cache else None

    def logits(self, codes: Tensor, step: int) -> Tensor:
        prior = self.prior
        if self.cache is None:
            out: Tensor = prior.to_logits(prior.transformer(prior._inputs(codes, self.starts)[:, : step + 1])[:, -1])
            return out
        newest = prior.codes(codes[:, step - 1]) if step else prior.sos(self.starts)  # (n, dim)
        h = prior.transformer((newest + prior.positions[step])[:, None], self.cache)
        out = prior.to_logits(h[:, 0])
        return out

"""A transformer prior (chapter 07): decoder-only, written out to be read in one sitting.

Codes (32, 7, 7) → with ``<sos>`` in front and the last one left out, embeddings (32, 49, 128) → blocks of attention and
MLP, (32, 49, 128) → logits (32, 7, 7, 512). Loss and sampling are those of every prior, in ``base.py``. In short, for
flattened tables of codes (B, N) and their classes (B,):

    logits = prior.all_logits(codes, classes)                      # (B, N, K): of each code, from those before it
    loss = cross_entropy(logits.flatten(0, 1), codes.flatten())    # Prior.forward

    for i in range(N):                                             # Prior.sample: one code after the other
        p = prior.all_logits(codes, classes)[:, i].softmax(-1)     # (B, K): from the codes before position i
        codes[:, i] = p.multinomial(1)[:, 0]

This loop computes the keys and values of earlier positions again for every code. A ``Cache`` keeps them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import DEEPEST, check_number, check_size, check_tensor
from companion._warnings import warn
from companion.priors._checks import check_classes, check_inputs
from companion.priors.base import Prior, Steps

_WIDEST = 2**14  # the largest dim of a transformer: its matrices have dim² numbers
_MANY = 2**16  # more codes than this in a table are warned of; as many as a 256 × 256 table has


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(QKᵀ/√d + mask) V (Vaswani et al. 2017, equation 1): each position takes a weighted mean of the values of
    itself and those before it.

    This is for reading: ``CausalSelfAttention`` calls torch's fused version of these lines; a test compares the two.
    With T queries and S ≥ T keys, the queries are those of the last T positions.

    Shapes:
        queries (B, heads, T, d), keys and values (B, heads, S, d) → (B, heads, T, d).

    Raises:
        ValueError: other shapes, or fewer keys than queries.
    """
    _check_attention(queries, keys, values)
    (t, d), s = queries.shape[2:], keys.shape[2]
    scores = queries @ keys.transpose(2, 3) / d**0.5  # (B, heads, T, S): how well each query fits each key
    visible = torch.ones(t, s, dtype=torch.bool, device=queries.device).tril(s - t)  # (T, S): a position and its past
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)  # (B, heads, T, S): 0 in the future, rows sum to 1
    return weights @ values  # (B, heads, T, d)


class CausalSelfAttention(nn.Module):
    """:func:`causal_attention` of several heads side by side, with learned projections before and after it.

    Shapes:
        x: (B, T, dim) → (B, T, dim). With a ``cache``, x is the newest position only, (B, 1, dim); with an empty cache
        it may be several.

    Raises:
        ValueError: an argument is out of range, ``heads`` does not divide ``dim``, or the cache has no room for x.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, layers=1, heads=heads, dropout=dropout)
        self.heads, self.dropout = heads, dropout
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cache: "Cache | None" = None) -> Tensor:
        check_tensor("x", x, shape=("B", "T", self.to_qkv.in_features))
        b, t, dim = x.shape  # for example (32, 49, 128), with 4 heads
        queries, keys, values = (
            part.reshape(b, t, self.heads, dim // self.heads).transpose(1, 2)  # each (32, 4, 49, 32)
            for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        if cache is not None:
            keys, values = cache.append(keys, values)  # those of all positions so far
        # The same numbers as causal_attention(queries, keys, values), without a (T, S) table in memory:
        out = functional.scaled_dot_product_attention(  # (32, 4, 49, 32)
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,  # of the weights
            is_causal=t > 1,  # one query (a cached step) sees all keys; several need the mask, and then T = S
        )
        return self.to_out(out.transpose(1, 2).reshape(b, t, dim))  # heads joined: (32, 49, 128)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): the norm comes first (Xiong et al. 2020)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, layers=1, heads=heads, dropout=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: "Cache | None" = None) -> Tensor:
        check_tensor("x", x, shape=("B", "T", *self.norm1.normalized_shape))
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """A stack of blocks and a last norm: (B, T, dim) → (B, T, dim), causal."""

    def __init__(self, dim: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_transformer(dim, layers, heads, dropout)
        self.heads, self.head_dim = heads, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, caches: "Sequence[Cache] | None" = None) -> Tensor:
        """x (B, T, dim) → (B, T, dim); with ``caches`` of :meth:`new_caches`, x as for :class:`CausalSelfAttention`."""
        check_tensor("x", x, shape=("B", "T", *self.norm.normalized_shape))
        if caches is not None and len(caches) != len(self.blocks):
            raise ValueError(f"caches: got {len(caches)}, want one for each of the {len(self.blocks)} blocks")
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches is not None else None)
        return self.norm(x)

    def new_caches(self, n: int, length: int, like: Tensor) -> "list[Cache]":
        """An empty cache per block, for ``n`` sequences of up to ``length`` positions, of the dtype and device of
        ``like``."""
        return [Cache(n, self.heads, length, self.head_dim, like) for _ in self.blocks]


class TransformerPrior(Prior):
    """A decoder-only transformer over codes in raster order, with learned positions.

    The input is shifted by one: ``<sos>``, k₁, …, k_{N−1}. So the output at position i predicts k_i. Over a grid
    (h, w, R) it is the *flattened* transformer, over h·w·R codes in a row.

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
        if self.length > _MANY:
            warn(f"grid: got {self.length:,} codes in a row: each attends to all before it, and is a step of sampling")
        self.codes = nn.Embedding(num_codes, dim)
        self.sos = nn.Embedding(num_classes + 1, dim)  # the last is "no class"
        self.positions = nn.Parameter(0.02 * torch.randn(self.length, dim))
        self.transformer = Transformer(dim, layers, heads, dropout)
        self.to_logits = nn.Linear(dim, num_codes)
        for embedding in (self.codes, self.sos):
            nn.init.normal_(embedding.weight, std=0.02)

    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        """Shapes beside the lines are those of codes (32, 7, 7), K = 512 and dim 128."""
        check_inputs(self, codes, classes)
        inputs = self._inputs(codes.flatten(1), classes)  # (32, 49, 128): <sos>, k₁, …, k₄₈
        h = self.transformer(inputs)  # (32, 49, 128)
        logits: Tensor = self.to_logits(h)  # (32, 49, 512): row i predicts k_i, since the inputs are shifted
        return logits.reshape(*codes.shape, self.num_codes)  # (32, 7, 7, 512)

    def steps(self, classes: Tensor, *, cache: bool) -> Steps:
        check_classes(self, classes)
        return _TransformerSteps(self, classes, cache)

    def _inputs(self, codes: Tensor, classes: Tensor) -> Tensor:
        """Codes (B, N) → the embeddings of <sos>, k₁, …, k_{N−1}, plus those of the positions, (B, N, dim)."""
        start = self.sos(classes)[:, None]  # (B, 1, dim)
        embedded = self.codes(codes[:, :-1])  # (B, N − 1, dim): the last code is only predicted
        return torch.cat([start, embedded], dim=1) + self.positions


class _TransformerSteps(Steps):
    """With caches the transformer runs on the newest position only; without, on all positions so far."""

    def __init__(self, prior: TransformerPrior, classes: Tensor, cache: bool) -> None:
        self.prior, self.classes = prior, classes
        like = prior.positions
        self.caches = prior.transformer.new_caches(len(classes), prior.length, like) if cache else None

    def logits(self, codes: Tensor, step: int) -> Tensor:
        prior = self.prior
        if self.caches is None:
            inputs = prior._inputs(codes, self.classes)[:, : step + 1]  # (n, step + 1, dim): <sos>, the codes drawn
            return prior.to_logits(prior.transformer(inputs)[:, -1])  # (n, K): of the next code
        newest = prior.codes(codes[:, step - 1]) if step else prior.sos(self.classes)  # (n, dim)
        h = prior.transformer((newest + prior.positions[step])[:, None], self.caches)
        return prior.to_logits(h[:, 0])

    def start_after(self, codes: Tensor, given: int) -> None:
        """Keys and values of all given positions in one pass."""
        if self.caches is not None:
            self.prior.transformer(self.prior._inputs(codes, self.classes)[:, :given], self.caches)


# The cache, and checks ----------------------------------------------------------------------------------------------


class Cache:
    """Keys and values of one layer at the positions so far, so that a sampling step computes only its own."""

    def __init__(self, n: int, heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.keys, self.values = (like.new_empty(n, heads, length, head_dim) for _ in range(2))
        self.filled = 0  # positions so far

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the newest positions, (n, heads, new, head_dim); return those of all so far."""
        new, length = keys.shape[2], self.keys.shape[2]
        room = length - self.filled
        if new > room or (new > 1 and self.filled):
            raise ValueError(
                f"x: got {new} positions beside {self.filled} in the cache, want one (an empty cache takes several) "
                f"and at most {room}"
            )
        start, self.filled = self.filled, self.filled + new
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


def _check_attention(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    check_tensor("queries", queries, shape=("B", "heads", "T", "d"))
    check_tensor("keys", keys, shape=(*queries.shape[:2], "S", queries.shape[3]))
    check_tensor("values", values, shape=(*queries.shape[:2], keys.shape[2], "d"))
    if queries.shape[2] > keys.shape[2]:
        raise ValueError(
            f"queries: got {queries.shape[2]} positions beside {keys.shape[2]} keys, want at most as many: a position "
            "sees itself"
        )


def check_transformer(dim: int, layers: int, heads: int, dropout: float) -> None:
    """
    Raises:
        ValueError: an argument is out of range, or ``heads`` does not divide ``dim``.
    """
    check_size("dim", dim, most=_WIDEST)
    check_size("layers", layers, most=DEEPEST)
    check_size("heads", heads)
    check_number("dropout", dropout, least=0, below=1)
    if dim % heads:
        raise ValueError(f"heads: got {heads}, want a divisor of dim, {dim}")

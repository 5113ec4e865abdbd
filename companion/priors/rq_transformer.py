"""The RQ-Transformer (chapter 08): one transformer over positions, a small one over the codes of a position."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from companion._arguments import DEEPEST, check_size
from companion.priors._checks import check_classes, check_inputs
from companion.priors.base import Prior, Steps
from companion.priors.transformer import Transformer, check_transformer


class RQTransformer(Prior):
    """p(k) = Π_t Π_r p(k_{t,r} | all codes of earlier positions, k_{t,1} … k_{t,r−1}) (Lee et al. 2022, section 3.2).

    The spatial transformer reads each earlier position as the *sum* of its R code embeddings, and gives h_t. The depth
    transformer reads h_t, then for r > 1 the sum of the embeddings of k_{t,1} … k_{t,r−1} (equations 11 to 13), and
    predicts k_{t,r}: R logits for R codes. So one transformer attends over T positions and the other over the R codes
    of one position, where the flattened transformer attends over T·R codes.

    Args:
        num_codes, grid, num_classes, label_dropout, tokenizer: see :class:`Prior`; grid is (T, R), (h, w, R) or
            (t, h, w, R), as of audio, images and video: the last axis is that of the R codes of a position.
        dim: width of both.
        layers, depth_layers: of the spatial and of the depth transformer.
        heads, dropout: of both.

    Raises:
        ValueError: an argument is out of range.
    """

    _axes_in_position = 1  # the R codes of a position

    def __init__(
        self,
        num_codes: int,
        grid: Sequence[int],
        *,
        dim: int = 128,
        layers: int = 4,
        depth_layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__(num_codes, grid, num_classes=num_classes, label_dropout=label_dropout, tokenizer=tokenizer)
        if len(grid) == 1:
            raise ValueError(f"grid: got {tuple(grid)}, want (T, R), (h, w, R) or (t, h, w, R): R codes per position")
        check_transformer(dim, layers, heads, dropout)
        check_size("depth_layers", depth_layers, most=DEEPEST)
        self.depth, self.positions_count = self.grid[-1], math.prod(self.grid[:-1])
        self.codes = nn.Parameter(0.02 * torch.randn(self.depth, num_codes, dim))  # one table for each depth
        self.sos = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.sos.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(self.positions_count, dim))
        self.depths = nn.Parameter(0.02 * torch.randn(self.depth, dim))
        self.spatial = Transformer(dim, layers, heads, dropout)
        self.depthwise = Transformer(dim, depth_layers, heads, dropout)
        self.to_logits = nn.Linear(dim, num_codes)

    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        check_inputs(self, codes, classes)
        stacks = codes.reshape(codes.shape[0], self.positions_count, self.depth)
        return self._stack_logits(stacks, classes).reshape(*codes.shape, self.num_codes)

    def steps(self, classes: Tensor, *, cache: bool) -> Steps:
        check_classes(self, classes)
        return _CachedSteps(self, classes) if cache else _PlainSteps(self, classes)

    def _stack_logits(self, stacks: Tensor, classes: Tensor) -> Tensor:
        """The stacks of the first T positions, (B, T, R) → (B, T, R, K)."""
        embedded = self._embed(stacks)  # (B, T, R, dim)
        h = self.spatial(self._before(embedded, classes))  # (B, T, dim)
        partial = embedded[:, :, :-1].cumsum(2)  # (B, T, R − 1, dim): k₁, k₁ + k₂, …
        sequence = torch.cat([h[:, :, None], partial], dim=2) + self.depths  # (B, T, R, dim)
        with sdpa_kernel(SDPBackend.MATH):  # B·T sequences of length R; fused kernels are for fewer and longer ones
            out = self.depthwise(sequence.flatten(0, 1))
        logits: Tensor = self.to_logits(out)
        return logits.reshape(*stacks.shape, self.num_codes)

    def _before(self, embedded: Tensor, classes: Tensor) -> Tensor:
        """What the spatial transformer reads for T positions, of which each gets what comes before it: <sos>, then the
        sum of each stack but the last; (B, T, R, dim) → (B, T, dim)."""
        before = torch.cat([self.sos(classes)[:, None], embedded[:, :-1].sum(2)], dim=1)
        return before + self.positions[: embedded.shape[1]]

    def _embed(self, stacks: Tensor) -> Tensor:
        """Codes (…, R) → embeddings (…, R, dim); each depth has a table of its own."""
        first = self.num_codes * torch.arange(self.depth, device=stacks.device)  # where each depth's table starts
        return functional.embedding(first + stacks, self.codes.flatten(0, 1))


class _PlainSteps(Steps):
    """Computes all positions so far again for every code: slow. Tests compare the cached steps with it."""

    def __init__(self, prior: RQTransformer, classes: Tensor) -> None:
        self.prior, self.classes = prior, classes

    def start_after(self, codes: Tensor, given: int) -> None:
        pass  # nothing is kept

    def logits(self, codes: Tensor, step: int) -> Tensor:
        t, r = divmod(step, self.prior.depth)
        stacks = codes.reshape(codes.shape[0], self.prior.positions_count, self.prior.depth)
        return self.prior._stack_logits(stacks[:, : t + 1], self.classes)[:, t, r]


class _CachedSteps(Steps):
    """The spatial transformer runs once per position, and the depth transformer once per code, on its newest input."""

    def __init__(self, prior: RQTransformer, classes: Tensor) -> None:
        self.prior, self.classes = prior, classes
        n, like = len(classes), prior.positions
        self.spatial = prior.spatial.new_caches(n, prior.positions_count, like)
        self.depthwise = prior.depthwise.new_caches(n, prior.depth, like)

    def start_after(self, codes: Tensor, given: int) -> None:
        """Keys and values of all given positions in one pass of the spatial transformer."""
        prior, positions = self.prior, given // self.prior.depth
        stacks = codes[:, :given].reshape(len(codes), positions, prior.depth)
        prior.spatial(prior._before(prior._embed(stacks), self.classes), self.spatial)

    def logits(self, codes: Tensor, step: int) -> Tensor:
        prior = self.prior
        t, r = divmod(step, prior.depth)
        stacks = codes.reshape(codes.shape[0], prior.positions_count, prior.depth)
        if r == 0:
            before = prior._embed(stacks[:, t - 1]).sum(1) if t else prior.sos(self.classes)  # (n, dim)
            newest = prior.spatial((before + prior.positions[t])[:, None], self.spatial)[:, 0]
            for cache in self.depthwise:
                cache.filled = 0  # a new stack
        else:
            newest = prior._embed(stacks[:, t])[:, :r].sum(1)
        return prior.to_logits(prior.depthwise((newest + prior.depths[r])[:, None], self.depthwise)[:, 0])

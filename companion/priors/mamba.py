"""A Mamba-2 prior (chapter 10): a transformer prior with a state in place of attention to all earlier codes.

Codes (32, 7, 7) → with ``<sos>`` in front and the last one left out, embeddings (32, 49, 128) → Mamba-2 blocks,
(32, 49, 128) → logits (32, 7, 7, 512). Training computes all positions at once, in chunks. Sampling goes from code to
code and keeps one ``MambaState`` a block: a code costs as much at the end of a long row as at its beginning.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from companion._arguments import DEEPEST, check_size
from companion.backbones.blocks import RMSNorm
from companion.backbones.mamba import Mamba2Block, checked_head_dim
from companion.priors._checks import check_classes, check_inputs
from companion.priors.base import Prior, Steps


class MambaPrior(Prior):
    """Mamba-2 over codes in raster order, with learned positions.

    The input is shifted by one, as in :class:`TransformerPrior`: ``<sos>``, k₁, …, k_{N−1}. So the output at position i
    predicts k_i. Over a grid (h, w, R) the codes of a position follow each other.

    Args:
        num_codes, grid, num_classes, label_dropout, tokenizer: see :class:`Prior`.
        dim: width.
        layers: blocks.
        state, head_dim: see :class:`Mamba2Mixer`; ``head_dim`` divides 2 · dim.

    Raises:
        ValueError: an argument is out of range, or ``head_dim`` does not divide 2 · dim.
    """

    def __init__(
        self,
        num_codes: int,
        grid: Sequence[int],
        *,
        dim: int = 128,
        layers: int = 4,
        state: int = 64,
        head_dim: int | None = None,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__(num_codes, grid, num_classes=num_classes, label_dropout=label_dropout, tokenizer=tokenizer)
        head_dim = checked_head_dim(head_dim, state=state, dim=dim)
        check_size("layers", layers, most=DEEPEST)
        self.codes = nn.Embedding(num_codes, dim)
        self.sos = nn.Embedding(num_classes + 1, dim)  # the last is "no class"
        self.positions = nn.Parameter(0.02 * torch.randn(self.length, dim))
        self.blocks = nn.ModuleList(Mamba2Block(dim, state=state, head_dim=head_dim) for _ in range(layers))
        self.norm = RMSNorm(dim)
        self.to_logits = nn.Linear(dim, num_codes)
        for embedding in (self.codes, self.sos):
            nn.init.normal_(embedding.weight, std=0.02)

    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        """Shapes beside the lines are those of codes (32, 7, 7), K = 512 and dim 128."""
        check_inputs(self, codes, classes)
        logits = self._logits_of_first(codes.flatten(1), classes, self.length)  # (32, 49, 512)
        return logits.reshape(*codes.shape, self.num_codes)  # (32, 7, 7, 512)

    def steps(self, classes: Tensor, *, cache: bool) -> Steps:
        check_classes(self, classes)
        return _MambaSteps(self, classes, cache)

    def _logits_of_first(self, codes: Tensor, classes: Tensor, n: int) -> Tensor:
        """Codes (B, N), of which the first n − 1 are read → the logits of the first n, (B, n, K)."""
        start, read = self.sos(classes)[:, None], self.codes(codes[:, : n - 1])  # (32, 1, 128), (32, 48, 128)
        h = torch.cat([start, read], dim=1) + self.positions[:n]  # (32, 49, 128): <sos>, k₁, …, k₄₈
        for block in self.blocks:
            h = block(h)  # (32, 49, 128)
        return self.to_logits(self.norm(h))


class _MambaSteps(Steps):
    """With a state for each block only the newest position is computed; without, all positions so far."""

    def __init__(self, prior: MambaPrior, classes: Tensor, cache: bool) -> None:
        self.prior, self.classes = prior, classes
        self.blocks = cast(Sequence[Mamba2Block], prior.blocks)
        self.states = [block.mixer.new_state(len(classes)) for block in self.blocks] if cache else None

    def start_after(self, codes: Tensor, given: int) -> None:
        if self.states is not None:  # the states are those after all given codes, step by step
            super().start_after(codes, given)

    def logits(self, codes: Tensor, step: int) -> Tensor:
        prior = self.prior
        if self.states is None:
            return prior._logits_of_first(codes, self.classes, step + 1)[:, -1]
        newest = prior.codes(codes[:, step - 1]) if step else prior.sos(self.classes)  # (n, dim)
        h = newest + prior.positions[step]
        for i, block in enumerate(self.blocks):
            h, self.states[i] = block.step(h, self.states[i])
        return prior.to_logits(prior.norm(h))

"""What all priors share: the loss, in nats per code, and sampling, one code after the other."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import (
    check_instance,
    check_number,
    check_place,
    check_size,
    check_sizes,
    check_weights,
    unchecked_values,
)
from companion._devices import at_least_float32, place_of, widest_float
from companion._modes import evaluating
from companion._pytrees import pytree
from companion.configured import Configured
from companion.priors._checks import (
    check_batch,
    check_sample,
    device_of,
    labels_of,
    prefix_of,
    warn_of_no_class,
    without_padding,
)
from companion.priors.sampling import check_sampling, draw, filtered_probabilities, guided

_IGNORED = -100  # in place of a code that does not count; no code, so that code 0 stays one like the others


@pytree
@dataclass(frozen=True)
class PriorOutput:
    """What a prior returns.

    Shapes:
        logits: (B, *grid, K). The logits at a position predict the code of that position, from the codes before it.
        loss: 0-dim, the cross-entropy of these logits with the codes, in nats per code.
    """

    logits: Tensor
    loss: Tensor


class Steps(ABC):
    """A batch of sequences while they are sampled. A prior may keep here what later codes need, such as the keys and
    values of earlier ones."""

    @abstractmethod
    def logits(self, codes: Tensor, step: int) -> Tensor:
        """The logits of the next code, (n, K). Called once for each step 0, 1, …, N − 1, in this order.

        Shapes:
            codes: (n, N) int64 in raster order. The first ``step`` of them are drawn; the others must not be used.
        """

    def start_after(self, codes: Tensor, given: int) -> None:
        """The first ``given`` codes are not drawn: keep of them what later steps need. The next step is then ``given``.

        By default their logits are computed, one after the other, and not used.
        """
        for step in range(given):
            self.logits(codes, step)


class Prior(Configured, nn.Module, ABC):
    """A distribution over tables of codes: p(k₁, …, k_N) = Π p(k_i | k₁ … k_{i−1}).

    A code is an integer, an index into the codebook of a tokenizer (``Quantized.indices``). The order is raster order:
    frame by frame, row by row; with R codes per position, all R of one position before those of the next.

    Each sequence starts with ``<sos>``, a learned vector. There is one for each class, and one for "no class".
    ``labels`` are what the user gives: a class 0…num_classes − 1 for each table, or None for "no class". ``classes``
    are the same, with "no class" written as the number num_classes: the last of the start vectors.

    Args:
        num_codes: K.
        grid: (T,) for codes in a row, as of audio or of latents without a grid; (h, w) for images; (t, h, w) for video;
            or one of these with R at the end, for R codes per position.
        num_classes: 0 for a prior without classes.
        label_dropout: in training, the probability that a label is replaced by "no class". Guidance needs it.
        tokenizer: the identity of the tokenizer whose codes the prior learns (``CodeSet.tokenizer``). It is saved with
            the prior, so that samples are not decoded with another codebook.

    Raises:
        ValueError: an argument is out of range.
    """

    _axes_in_position = 0  # of the grid, at its end: those whose codes a prefix can only give together

    def __init__(
        self,
        num_codes: int,
        grid: Sequence[int],
        *,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__()
        check_size("num_codes", num_codes)
        check_sizes("grid", grid)
        check_size("num_classes", num_classes, least=0)
        if len(grid) > 4:
            raise ValueError(
                f"grid: got {tuple(grid)}, want (T,), (h, w) or (t, h, w), or one of these with R codes per position"
            )
        check_number("label_dropout", label_dropout, least=0, below=1)
        if label_dropout and not num_classes:
            raise ValueError(f"label_dropout: got {label_dropout}, want 0 without classes: there is no label to drop")
        check_instance("tokenizer", tokenizer, str, "a text, the identity of a tokenizer")
        self.tokenizer = tokenizer
        self.num_codes, self.grid, self.length = num_codes, tuple(grid), math.prod(grid)
        self.num_classes, self.label_dropout = num_classes, label_dropout

    def forward(self, codes: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None) -> PriorOutput:
        """Codes (B, *grid) int64, labels (B,) int64 or None ("no class") → :class:`PriorOutput`.

        Args:
            mask: which codes count, (B, *grid) bool, or (B, *positions, 1) for all R codes of a position; for rows of
                several lengths, ``torch.arange(T) < lengths[:, None]``. The loss is the mean over those. The others are
                padding: they may be any whole number, since they are read as code 0. (Padding at the end of a table
                plays no part at all; of codes in front of others, code 0 is what these see.)

        Raises:
            ValueError: codes, labels or mask of another shape or type, or out of range; or no code counts.
        """
        if mask is not None:
            codes, mask = without_padding(self, codes, mask)
        check_batch(self, codes, labels)
        check_place("codes", codes, device_of(self, codes))
        if self.training:
            warn_of_no_class("labels", labels, self)
        classes = self._or_no_class(labels, codes.shape[0], codes.device)
        if self.training and self.label_dropout and self.num_classes:
            dropped = torch.rand(codes.shape[0], device=codes.device) < self.label_dropout
            classes = classes.masked_fill(dropped, self.num_classes)
        with unchecked_values():  # they were checked above
            logits = self.all_logits(codes, classes)
        wanted = codes if mask is None else codes.masked_fill(~mask, _IGNORED)
        loss = functional.cross_entropy(
            at_least_float32(logits.reshape(-1, self.num_codes)), wanted.flatten(), ignore_index=_IGNORED
        )
        return PriorOutput(logits, loss)

    def loss(self, codes: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Nats per code, 0-dim; with a ``mask``, per code that counts (:meth:`forward`)."""
        return self(codes, labels).loss if mask is None else self(codes, labels, mask=mask).loss

    @abstractmethod
    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        """The logits of every code, from the *given* codes before it, in one pass (teacher forcing).

        Shapes:
            codes: (B, *grid) int64; classes: (B,) int64 in 0…num_classes, where num_classes is "no class" →
            (B, *grid, K).
        """

    @abstractmethod
    def steps(self, classes: Tensor, *, cache: bool) -> Steps:
        """Start sampling: one sequence for each of ``classes``, (n,) int64 as in :meth:`all_logits`.

        Args:
            cache: keep what later steps need of earlier ones, instead of computing it again.
        """

    @torch.no_grad()
    def sample(
        self,
        n: int,
        label: int | Tensor | None = None,
        *,
        prefix: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        cache: bool = True,
        batch_size: int = 256,
    ) -> Tensor:
        """Draw ``n`` tables of codes, (n, *grid) int64, in eval mode.

        The codes are drawn one after the other, in raster order. For each of them:

            steps(classes).logits(codes, i) → guided → filtered_probabilities → draw

        The random numbers, one per code, are all drawn at the start, on the generator's device (default: the CPU). So
        the same generator gives the same codes on every device, with and without a cache and for any ``batch_size``,
        up to rounding of the logits.

        Args:
            n: how many.
            label: one class for all, a tensor (n,) int64 of classes, or None for "no class". None warns where the prior
                has classes and ``label_dropout`` is 0: training with labels does not train that start vector then.
            prefix: the first codes of each table, which are given and not drawn: (n, P) in raster order; or whole
                rows, frames or positions, such as ``codes[:, :P]`` of tables (n, *grid). An ``RQTransformer`` takes
                whole positions. What is drawn after them is what would be drawn after the same codes without a prefix.
            temperature, top_k, top_p: see :func:`filtered_probabilities`.
            guidance: weight of classifier-free guidance, see :func:`guided`; 1 is no guidance. Other values need a
                label, and a prior that was trained with ``label_dropout``.
            cache: keep what later codes need of earlier ones, such as keys and values, instead of computing it again.
            batch_size: how many are drawn together.

        Raises:
            ValueError: an argument is out of range.
        """
        check_sampling(self.num_codes, temperature, top_k, top_p)
        check_sample(self, n, guidance, generator, cache, batch_size)
        labels = labels_of(self, label, n, guidance)  # (n,), or None
        given = prefix_of(self, prefix, n)  # (n, first)
        device = next(self.parameters()).device
        classes = self._or_no_class(labels, n, device)  # (n,)
        place = place_of(generator, torch.device("cpu"))
        uniform = torch.rand(n, self.length, generator=generator, dtype=torch.float64, device=place)
        uniform = uniform.to(device, widest_float(device))  # (n, N)
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        codes = torch.zeros(n, self.length, dtype=torch.int64, device=device)  # (n, N)
        codes[:, : given.shape[1]] = given.to(device)
        batches = zip(*(part.split(batch_size) for part in (codes, classes, uniform)), strict=True)
        with evaluating(self), unchecked_values():  # checking values would wait for the device at every code
            for part in batches:
                self._sample(*part, first=given.shape[1], filters=filters, guidance=guidance, cache=cache)
        return codes.reshape(n, *self.grid)

    def _sample(
        self,
        codes: Tensor,
        classes: Tensor,
        uniform: Tensor,
        *,
        first: int,
        filters: dict[str, Any],
        guidance: float,
        cache: bool,
    ) -> None:
        """The loop of :meth:`sample` for one batch: fills in codes (n, N) from ``first`` on; classes (n,), uniform
        (n, N)."""
        use_guidance = guidance != 1
        if use_guidance:  # twice the same codes: n rows with their class, then n rows with "no class"
            classes = torch.cat([classes, torch.full_like(classes, self.num_classes)])
        steps = self.steps(classes, cache=cache)
        if 0 < first < self.length:
            steps.start_after(codes.repeat(2, 1) if use_guidance else codes, first)
        for i in range(first, self.length):
            logits = steps.logits(codes.repeat(2, 1) if use_guidance else codes, i)  # (n, K), or (2n, K)
            if use_guidance:
                conditional, unconditional = logits.chunk(2)
                logits = guided(conditional, unconditional, guidance)
            p = filtered_probabilities(logits, **filters)  # (n, K)
            codes[:, i] = draw(p, uniform[:, i])  # (n,)

    def _or_no_class(self, labels: Tensor | None, n: int, device: torch.device) -> Tensor:
        """Labels (n,) → classes (n,); without labels, n times "no class"."""
        return torch.full((n,), self.num_classes, device=device) if labels is None else labels.to(device)


@torch.no_grad()
def prior_bits(prior: Prior, codes: Tensor, labels: Tensor | None = None, *, batch_size: int = 256) -> float:
    """The cross-entropy of a prior on given codes, in bits per *image*: what it costs to code them with this prior.

    Shapes:
        codes: (N, *grid) int64, labels: (N,), or None for "no class" (which may warn, as in :meth:`Prior.sample`). They
        may be on another device than the prior.

    Raises:
        ValueError: codes or labels of another shape or type, or out of range; a weight is NaN or infinite.
    """
    check_instance("prior", prior, Prior, "one of companion.priors")
    check_size("batch_size", batch_size)
    check_batch(prior, codes, labels)
    warn_of_no_class("labels", labels, prior)
    check_weights(prior)
    device, nats = next(prior.parameters()).device, 0.0
    with evaluating(prior):
        for start in range(0, len(codes), batch_size):
            rows = slice(start, start + batch_size)
            part = prior.loss(codes[rows].to(device), None if labels is None else labels[rows])
            nats += part.item() * len(codes[rows])
    return nats / len(codes) * prior.length / math.log(2)

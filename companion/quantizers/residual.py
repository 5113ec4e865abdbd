"""Residual quantisation (chapter 06): each quantizer quantises what those before it left.

The whole method, for latents z (B, D, *spatial) and R quantizers:

    residual, z_q, loss = z, 0, 0
    for quantizer in quantizers:
        out = quantizer.quantize(residual)   # search, lookup and losses of this depth
        codes = out.z_q.detach()             # (B, D, *spatial)
        z_q, loss = z_q + codes, loss + out.loss
        residual = residual - codes          # what is left for the next depth
    z_q = z + (z_q - z).detach()             # straight-through, once for the whole sum

``ResidualQuantizer.quantize`` below is this loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from companion._arguments import check_codes, check_number, check_tensor, check_whole
from companion._devices import at_least_float32
from companion._pytrees import pytree
from companion.quantizers._members import check_member, check_quantizers, checked_members, number_streams
from companion.quantizers.base import Quantized, Quantizer, check_latents, count_codes
from companion.quantizers.depth_dropout import draw_mask, quantize_with_dropout
from companion.quantizers.estimators import straight_through
from companion.quantizers.projected import ProjectedQuantized


@torch.no_grad()
def residual_encode(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    """At each depth: find the code nearest to the residual, subtract it, and go on with what is left.

    (Lee et al. 2022, equations 3 and 4.) The search is greedy: each code is the nearest to its residual. The sum of
    another stack of codes may be nearer to z.

    Shapes:
        z: (B, D, *spatial); quantizers: R of them, one per depth → (B, *spatial, R) int64.

    Raises:
        ValueError: there is no quantizer, or ``z`` does not fit them.
    """
    check_quantizers(quantizers)
    residual, indices = z, []
    for quantizer in quantizers:
        indices.append(quantizer.encode(residual))
        residual = residual - quantizer.decode(indices[-1])
    return torch.stack(indices, dim=-1)


def decode_to_depth(indices: Tensor, quantizers: Sequence[Quantizer], depth: int) -> Tensor:
    """The sum of the first ``depth`` codes of every stack: from coarse (1) to fine (R).

    Shapes:
        indices: (B, *spatial, R) int64, or (B, *spatial, depth), stacks that were cut; quantizers: R of them, one per
        depth → (B, D, *spatial).

    Raises:
        ValueError: the last axis is neither R nor ``depth`` long, an index is no code, or ``depth`` is not between 1
            and R.
    """
    check_quantizers(quantizers)
    check_whole("depth", depth, most=len(quantizers))
    check_tensor("indices", indices, dtype=torch.int64)
    if indices.ndim < 2 or indices.shape[-1] not in (depth, len(quantizers)):
        cut = f", or (B, *spatial, {depth}) for depth={depth}" * (depth < len(quantizers))
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, want (B, *spatial, {len(quantizers)}){cut}")
    for r, quantizer in enumerate(quantizers[: indices.shape[-1]]):
        check_codes("indices", indices[..., r], quantizer.num_codes)
    codes = [quantizer.decode(indices[..., r]) for r, quantizer in enumerate(quantizers[:depth])]
    return torch.stack(codes).sum(0)


@pytree
@dataclass(frozen=True, kw_only=True)
class ResidualQuantized(Quantized):
    """What a residual quantizer returns. Besides the fields of :class:`Quantized`, with ``indices`` (B, *spatial, R):

    Shapes:
        depths: the result of each depth, R of them.
        residuals: the input of each depth, detached, R tensors of (B, D, *spatial).
        mask: (B, R) bool, which depths each image uses. Without depth dropout that is all of them. Under depth dropout,
            ``depths``, ``residuals`` and ``code_counts`` are of the images that use the depth; ``indices`` has the
            codes of all depths, also of those that an image does not use.
    """

    depths: tuple[Quantized, ...]
    residuals: tuple[Tensor, ...]
    mask: Tensor


class ResidualQuantizer(Quantizer):
    """z ≈ e₁ + … + e_R: depth r quantises the residual z − (e₁ + … + e_{r−1}) (Lee et al. 2022, equations 3 to 5).

    What gets a gradient, and from where:

    - the latents z: from z_q, once, by the straight-through estimator after the sum (one at each depth would give R
      times the gradient); and from the commitment loss of each depth;
    - the codes of depth r: from the codebook loss of depth r alone. The residual is detached from the codes before it,
      so no loss moves the codes of another depth.

    Losses are **summed** over the depths: each codebook learns at the pace it would have alone, whatever R (of their
    mean every codebook would get an R-th of the gradient). So ``losses["commitment"]`` is Σ_r ‖z_r − sg[e_r]‖², z_r the
    residual before depth r.

    Args:
        quantizers: R vector quantizers with straight-through gradient, of equal ``num_codes`` and ``dim``, each alone
            or in a ``ProjectedQuantizer`` (as in the Descript audio codec, Kumar et al. 2023); or one of them, shared
            by ``depth`` depths, which then learns once, from the residuals of all depths together.
        depth: R, for a shared quantizer.
        depth_dropout: in training, the probability that an image uses only its first r depths, with r uniform in 1…R
            (Zeghidour et al. 2021, section III-C, where it is 1; Kumar et al. 2023 take 0.5). Where no image of a batch
            uses a depth, its losses are 0 and so are the gradients of its parameters.

    Shapes:
        z: (B, D, *spatial) → ``ResidualQuantized``; indices (B, *spatial, R).

    Raises:
        ValueError: the quantizers do not fit together, an argument is out of range, or ``z`` is not as it should be.
    """

    def __init__(
        self,
        quantizers: Quantizer | Sequence[Quantizer],
        *,
        depth: int | None = None,
        depth_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_number("depth_dropout", depth_dropout, least=0, most=1)
        members = checked_members(quantizers, depth)
        self.quantizers, self.shared = nn.ModuleList(members), isinstance(quantizers, Quantizer)
        self.num_codes, self.dim = members[0].num_codes, members[0].dim
        self.depth = depth or len(members)
        self.depth_dropout = depth_dropout
        number_streams(members)

    def quantize(self, z: Tensor) -> ResidualQuantized:
        """Called by ``forward`` (in ``base.py``). Shapes beside the lines are those of R = 4 and z (16, 64, 8, 8)."""
        if self.training and self.depth_dropout:
            return self._quantize_with_dropout(z)  # the same loop, where some images stop before depth R
        residual = at_least_float32(z)  # (16, 64, 8, 8)
        z_q, results, residuals = torch.zeros_like(residual), [], []
        for quantizer in self._in_order():
            out = quantizer.quantize(residual)
            codes = quantizer.contribution(residual, out)  # (16, 64, 8, 8): out.z_q.detach(), if it is not projected
            results.append(out)
            residuals.append(residual.detach())
            z_q = z_q + codes
            residual = residual - codes.detach()  # constants: no deeper loss moves this depth's codes
        indices = torch.stack([out.indices for out in results], dim=-1)  # (16, 8, 8, 4)
        mask = torch.ones(z.shape[0], self.depth, dtype=torch.bool, device=z.device)  # every image uses every depth
        return self._result(z, z_q, indices, results, residuals, mask)

    @torch.no_grad()
    def update(self, z: Tensor, quantized: Quantized) -> None:
        """Each member from its own depth; a shared one once, from all depths together."""
        assert isinstance(quantized, ResidualQuantized)
        residuals, results = quantized.residuals, quantized.depths
        if self.shared:
            residuals, results = (torch.cat(residuals),), (_joined(results),)
        for member, residual, out in zip(self._members(), residuals, results, strict=True):
            if member.training:
                member.update(residual, out)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        return residual_encode(at_least_float32(z), self._in_order())

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        """Indices (B, *spatial, R) → the sum of their codes, of the first ``depth`` depths only if given.

        Then the stacks may be cut: ``decode(indices[..., :2], depth=2)`` is ``decode(indices, depth=2)``. (Without
        ``depth`` they have to be whole, since indices of plain tables, (B, h, w), could pass for stacks that were cut.)

        Raises:
            ValueError: the last axis is not R long (with ``depth``: nor ``depth`` long), an index is no code, or
                ``depth`` is not between 1 and R.
        """
        return decode_to_depth(indices, self._in_order(), self.depth if depth is None else depth)

    def _result(
        self,
        z: Tensor,
        z_q: Tensor,
        indices: Tensor,
        results: list[Quantized],
        residuals: list[Tensor],
        mask: Tensor,
    ) -> ResidualQuantized:
        """The losses added up, and one straight-through estimator for the whole sum ``z_q``.

        A plain member adds constants to z_q. A ``ProjectedQuantizer`` adds W_up·e, with a gradient to its linear maps.
        ``straight_through`` drops that gradient; z_q − sg[z_q], which is 0 in value, brings it back:

            out = straight_through(z, z_q) + (z_q − sg[z_q])      out = z_q,  dL/dz = dL/dout,  dL/dW_up = dL/dout · eᵀ

        (W_down gets its gradient through the straight-through estimator inside the member's ``contribution``.)
        """
        estimated = straight_through(z, z_q.to(z.dtype))
        if z_q.requires_grad:  # there are projected members
            estimated = estimated + (z_q - z_q.detach()).to(z.dtype)
        names = dict.fromkeys(name for out in results for name in out.losses)  # an EMA codebook has no codebook loss
        losses = {
            name: torch.stack([one.losses[name] for one in results if name in one.losses]).sum() for name in names
        }
        loss = torch.stack([out.loss for out in results]).sum()
        counts = torch.stack([count_codes(out.indices, self.num_codes, stacked=False) for out in results])  # (R, K)
        return ResidualQuantized(
            estimated, indices, loss, losses, counts, depths=tuple(results), residuals=tuple(residuals), mask=mask
        )

    # Depth dropout, the first codes, members -------------------------------------------------------------------------

    def _quantize_with_dropout(self, z: Tensor) -> ResidualQuantized:
        mask = draw_mask(len(z), self.depth, self.depth_dropout, z.device)  # (16, 4) bool
        z_q, indices, results, residuals = quantize_with_dropout(z, self._in_order(), mask)
        return self._result(z, z_q, indices, results, residuals, mask)

    @property
    def initialised(self) -> bool:
        return all(member.initialised or not member.training for member in self._in_order())

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """In order, each member from what the members before it left over; depth dropout plays no part.

        A shared member serves all depths: it is initialised from z, which gives residuals, and then again from z and
        all the residuals.
        """
        residual, residuals = at_least_float32(z), []
        for member in self._in_order():
            residuals.append(residual)
            if member.training and not member.initialised:
                member.initialise(residual)
            residual = residual - member.decode(member.encode(residual))
        if self.shared:
            self._members()[0].initialise(torch.cat(residuals))

    def _in_order(self) -> list[Quantizer]:
        """The quantizers of depths 1 to R: R of them, or the shared one R times."""
        return self._members() * (self.depth if self.shared else 1)

    def _members(self) -> list[Quantizer]:
        """The list can be changed in place, past every check: are its members still those of these depths?"""
        number = 1 if self.shared else self.depth
        if len(self.quantizers) != number:
            raise ValueError(
                f"quantizers: got {len(self.quantizers)}, want {number} as it was built; make a new ResidualQuantizer"
            )
        for i, member in enumerate(self.quantizers):
            check_member(i, member, self, "it was built")
        return cast(list[Quantizer], list(self.quantizers))


def _joined(results: Sequence[Quantized]) -> Quantized:
    """The results of a shared quantizer at all depths, as those of one batch, for its ``update``. That uses the indices
    alone (of a projected one, those of ``inner``); the other fields are still those of the first depth."""
    joined = replace(results[0], indices=torch.cat([out.indices for out in results]))
    if isinstance(joined, ProjectedQuantized):
        return replace(joined, inner=_joined([out.inner for out in results if isinstance(out, ProjectedQuantized)]))
    return joined

"""Residual quantizers with one thing wrong, for the mistakes of exercise 6.4."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.quantizers import Quantized, ResidualQuantizer, VectorQuantizer, straight_through, vq_losses


def straight(z: Tensor, parts: Sequence[Quantized], codes: Sequence[Tensor]) -> Tensor:
    return straight_through(z, torch.stack(list(codes)).sum(0).detach())


def added(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def variant(
    *,
    given: Callable[[Tensor, Tensor], Tensor] = lambda z, residual: residual,
    rest: Callable[[Tensor, Quantized, Tensor], Tensor] = lambda residual, part, code: residual - code.detach(),
    z_q: Callable[[Tensor, Sequence[Quantized], Sequence[Tensor]], Tensor] = straight,
    indices: Callable[[Sequence[Tensor]], Tensor] = lambda found: torch.stack(list(found), -1),
    over_depths: Callable[[Sequence[Tensor]], Tensor] = added,
    only_loss: Callable[[Sequence[Tensor]], Tensor] | None = None,
    from_z: bool = False,
    loss: Callable[[Tensor, dict[str, Tensor]], Tensor] = lambda loss, terms: loss,
    terms: Callable[[dict[str, Tensor]], Any] = lambda terms: terms,
) -> type[ResidualQuantizer]:
    """The quantizer with one of its parts replaced; ``code`` has a graph to its codebook."""

    class Variant(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
            residual, parts, codes = z, [], []
            for quantizer in self._in_order():
                part = quantizer(given(z, residual))
                # With a graph where the codebook has one; an EMA codebook has moved since, so what z_q says.
                code = quantizer.decode(part.indices) if isinstance(quantizer, VectorQuantizer) else part.z_q.detach()
                residual = rest(z if from_z else residual, part, code)
                parts.append(part)
                codes.append(code)
            named = {name: over_depths([part.losses[name] for part in parts]) for name in parts[0].losses}
            total = loss((only_loss or over_depths)([part.loss for part in parts]), named)
            return Quantized(z_q(z, parts, codes), indices([part.indices for part in parts]), total, terms(named))

    return Variant


class OneLossForTheSum(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        indices = self.encode(z)
        total = self.decode(indices)
        codebook, commitment = vq_losses(z, total)
        beta = float(self._in_order()[0].commitment_weight)  # type: ignore[arg-type]
        terms = {"codebook": codebook, "commitment": commitment}
        return Quantized(straight_through(z, total.detach()), indices, codebook + beta * commitment, terms)


def through(order: slice) -> type[ResidualQuantizer]:
    """The right quantizer on others of its quantizers, or in another order."""

    class Through(ResidualQuantizer):
        def _in_order(self) -> Any:
            return super()._in_order()[order]

    return Through


class NoLossInEval(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        out = super().forward(z)
        return Quantized(out.z_q, out.indices, float(self.training) * out.loss, out.losses)


class WritesIntoZ(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        out = super().forward(z)
        z.data -= out.z_q.detach()
        return out


class LooksUpOnly(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        training, self.training = self.training, False
        out = super().forward(z)
        self.training = training
        return out


def changed(change: Callable[[Any, Quantized], tuple[Any, Any]]) -> type[ResidualQuantizer]:
    """The right result with another loss and other terms."""

    class Changed(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
            out = super().forward(z)
            return Quantized(out.z_q, out.indices, *change(self, out))

    return Changed


def learns_first(what: str) -> type[ResidualQuantizer]:
    """A quantizer learns in its call; ``what`` is looked up again afterwards, among the codes that have moved."""

    class Late(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
            residual, z_q, found, parts = z, torch.zeros_like(z), [], []
            for quantizer in self._in_order():
                part = quantizer(residual)
                moved = quantizer.decode(part.indices).detach()
                if what == "the call":
                    part = quantizer(residual)
                found.append(quantizer.encode(residual) if what == "indices" else part.indices)
                z_q = z_q + (moved if what == "z_q" else part.z_q.detach())
                residual = residual - (moved if what == "residual" else part.z_q.detach())
                parts.append(part)
            terms = {name: added([part.losses[name] for part in parts]) for name in parts[0].losses}
            loss = added([part.loss for part in parts])
            return Quantized(straight_through(z, z_q), torch.stack(found, -1), loss, terms)

    return Late


class ATuple(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        out = super().forward(z)
        return out.z_q, out.indices, out.loss, out.losses


class EncodesAfterwards(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        out = super().forward(z)
        return Quantized(out.z_q, self.encode(z), out.loss, out.losses)

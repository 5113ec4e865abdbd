"""Exercise 3.5, `VectorQuantizer`: lookup, losses and straight-through in one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_03._gradients import losses_after_straight_through, straight_through_to_both
from companion.course.checks.comparison import Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import built_alike, routes
from companion.quantizers import Quantized, VectorQuantizer, nearest_code, straight_through, vq_losses


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(33)
    turned = torch.randn(2, 5, 4, 3, generator=g).transpose(1, 3)
    far = 0.5 * torch.randn(2, 3, 4, generator=g) + 3000
    z = {0: "z"}
    return [
        Case("a grid of latents, 2×3×4×5", (torch.randn(2, 3, 4, 5, generator=g),), {"num_codes": 7, "dim": 3}, z),
        Case(
            "sequences, β = 2",
            (torch.randn(3, 4, 6, generator=g),),
            {"num_codes": 5, "dim": 4, "commitment_weight": 2.0},
            z,
            seed=1,
        ),
        Case(
            "vectors without a grid",
            (torch.randn(6, 2, generator=g),),
            {"num_codes": 4, "dim": 2, "commitment_weight": 0.5},
            z,
            seed=2,
        ),
        Case("one image, not contiguous in memory", (turned[:1],), {"num_codes": 6, "dim": 3}, z, seed=3),
        Case("latents and codes far from the origin", (far,), {"num_codes": 5, "dim": 3}, z, seed=4),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The fields of the result; of z_q and each loss also where the gradient goes."""
    place = case.arguments[0].mean().round(decimals=-2)  # the codes lie where the latents lie
    quantizer, seen = built_alike(
        implementation, VectorQuantizer, case, lambda own: {n: w + place for n, w in own.items()}
    )
    z = case.arguments[0].detach().clone().requires_grad_()
    result = quantizer(z)
    if not isinstance(result, Quantized):
        return seen | {"what is returned": kind(result)}
    tensors = {"z (the encoder)": z} | dict(quantizer.named_parameters())
    seen |= {"what is returned": "a Quantized", "indices": result.indices, "the value of z_q": result.z_q}
    seen |= routes("a loss on z_q", result.z_q, tensors)
    losses = result.losses
    seen["the names in losses"] = sorted(losses) if isinstance(losses, dict) else kind(losses)
    if seen["the names in losses"] == ["codebook", "commitment"]:
        for name in ("codebook", "commitment"):
            seen |= routes(f'losses["{name}"]', losses[name], tensors)
    seen |= routes("loss", result.loss, tensors)
    seen["z after the call"] = z.detach()
    seen |= {f"{name} after the call": weight.detach() for name, weight in quantizer.named_parameters()}
    result = quantizer.eval()(z)
    return seen | {"the value of z_q in eval()": result.z_q} | routes("a loss on z_q in eval()", result.z_q, tensors)


def _rows(z: Tensor) -> Tensor:
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def _grid(rows: Tensor, z: Tensor) -> Tensor:
    return rows.reshape(*z.shape[:1], *z.shape[2:], -1).movedim(-1, 1)


def _positions(indices: Tensor, z: Tensor) -> Tensor:
    return indices.reshape(z.shape[:1] + z.shape[2:])


def _named(codebook: Any, commitment: Any) -> dict[str, Any]:
    return {"codebook": codebook, "commitment": commitment}


def _variant(
    *,
    rows: Callable[[Tensor], Tensor] = _rows,
    search: Callable[[Tensor, Tensor], Tensor] = nearest_code,
    losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = vq_losses,
    estimate: Callable[[Tensor, Tensor], Tensor] = straight_through,
    grid: Callable[[Tensor, Tensor], Tensor] = _grid,
    positions: Callable[[Tensor, Tensor], Tensor] = _positions,
    weigh: Callable[[Tensor, Tensor, float], Any] = lambda codebook, commitment, beta: codebook + beta * commitment,
    name: Callable[..., Any] = lambda codebook, commitment, beta: _named(codebook, commitment),
    give: Callable[[Quantized], Any] = lambda quantized: quantized,
) -> type[VectorQuantizer]:
    """The quantizer with some of its parts replaced."""

    class Variant(VectorQuantizer):
        def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
            vectors = rows(z)
            indices = search(vectors, self.codebook)
            codes = self.codebook[indices]
            codebook, commitment = losses(vectors, codes)
            beta = self.commitment_weight
            quantized = Quantized(
                grid(estimate(vectors, codes), z),
                positions(indices, z),
                weigh(codebook, commitment, beta),
                name(codebook, commitment, beta),
            )
            return give(quantized)

    return Variant


class _OnlyInTraining(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        right = super().forward(z)
        return right if self.training else replace(right, z_q=self.decode(right.indices))


class _WritesIntoTheCodebook(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        right = super().forward(z)
        with torch.no_grad():
            self.codebook[right.indices.flatten()] = _rows(z)
        return right


class _WritesIntoZ(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        right = super().forward(z)
        z.data.copy_(right.z_q)
        return replace(right, z_q=z)


class _LatentsDetached(VectorQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        return super().forward(z.detach())


def _cut_across(z: Tensor) -> Tensor:
    return z.reshape(-1, z.shape[1])


MISTAKES = (
    Mistake(
        "losses after straight-through",
        _variant(losses=losses_after_straight_through),
        "your losses are taken after straight-through, whose result is detached from the codebook: the codes get no "
        "gradient and never move. Take the losses from the codes as they were looked up.",
    ),
    Mistake(
        "z_q without straight-through",
        _variant(estimate=lambda z, codes: codes),
        "z_q is returned as it was looked up: the reconstruction moves the codebook, and the encoder learns nothing "
        "from it. Return straight_through(rows, codes).",
    ),
    Mistake(
        "reconstruction reaches both",
        _variant(estimate=straight_through_to_both),
        "the reconstruction reaches the encoder (right) and the codebook too (wrong): z_q is not detached in your "
        "straight-through.",
    ),
    Mistake(
        "z_q detached",
        _variant(estimate=lambda z, codes: codes.detach()),
        "z_q is detached and carries no gradient: the encoder learns nothing from the reconstruction. Return "
        "straight_through(rows, codes).",
    ),
    Mistake(
        "z returned",
        _variant(estimate=lambda z, codes: z),
        "z_q is z itself, so nothing is quantised: return straight_through(rows, codes).",
    ),
    Mistake(
        "straight-through swapped",
        _variant(estimate=lambda z, codes: straight_through(codes, z)),
        "the arguments of straight_through are swapped: first the latents, then the codes.",
    ),
    Mistake(
        "codebook loss reaches the encoder",
        _variant(losses=lambda z, codes: ((z - codes).square().mean(), (z - codes.detach()).square().mean())),
        "your codebook loss reaches the encoder: detach the latents there, as vq_losses does.",
    ),
    Mistake(
        "commitment loss reaches the codebook",
        _variant(losses=lambda z, codes: ((z.detach() - codes).square().mean(), (z - codes).square().mean())),
        "your commitment loss reaches the codebook: detach the codes there, as vq_losses does.",
    ),
    Mistake(
        "losses swapped",
        _variant(losses=lambda z, codes: vq_losses(codes, z)),
        "the two losses are swapped: vq_losses(latents, codes) gives the codebook loss first.",
    ),
    Mistake(
        "codes detached before the losses",
        _variant(losses=lambda z, codes: vq_losses(z, codes.detach())),
        "the codes were cut from the codebook before the losses (detach, .data, no_grad around the look-up): the "
        "codebook gets no gradient. Only the search needs none.",
    ),
    Mistake(
        "β on the codebook loss",
        _variant(weigh=lambda codebook, commitment, beta: beta * codebook + commitment),
        "β weighs the codebook loss. It belongs to the commitment loss.",
    ),
    Mistake(
        "β on both",
        _variant(weigh=lambda codebook, commitment, beta: beta * (codebook + commitment)),
        "β weighs both losses. It belongs to the commitment loss only.",
    ),
    Mistake(
        "β forgotten",
        _variant(weigh=lambda codebook, commitment, beta: codebook + commitment),
        "β is missing: codebook loss + self.commitment_weight · commitment loss.",
    ),
    Mistake(
        "β written in",
        _variant(weigh=lambda codebook, commitment, beta: codebook + 0.25 * commitment),
        "0.25 is the usual β, but here it is self.commitment_weight.",
    ),
    Mistake(
        "commitment only",
        _variant(weigh=lambda codebook, commitment, beta: beta * commitment),
        "loss lacks the codebook loss, so the codes never move.",
    ),
    Mistake(
        "codebook loss only",
        _variant(weigh=lambda codebook, commitment, beta: codebook),
        "loss lacks the commitment loss, so nothing holds the latents near their codes.",
    ),
    Mistake(
        "weighted in losses",
        _variant(name=lambda codebook, commitment, beta: _named(codebook, beta * commitment)),
        'losses["commitment"] is to be the loss before its weight; β comes in only in loss.',
    ),
    Mistake(
        "names swapped",
        _variant(name=lambda codebook, commitment, beta: _named(commitment, codebook)),
        "the two names in losses are swapped.",
    ),
    Mistake(
        "losses detached",
        _variant(name=lambda codebook, commitment, beta: _named(codebook.detach(), commitment.detach())),
        "the losses in the dict are detached. Keep them on the graph: the routing table takes their gradients.",
    ),
    Mistake(
        "losses as numbers",
        _variant(name=lambda codebook, commitment, beta: _named(codebook.item(), commitment.item())),
        "the losses in the dict are Python numbers (.item(), float). Keep the tensors: the routing table takes their "
        "gradients.",
    ),
    Mistake(
        "other names",
        _variant(name=lambda codebook, commitment, beta: {"codebook_loss": codebook, "commitment_loss": commitment}),
        'the names in losses are to be "codebook" and "commitment".',
    ),
    Mistake(
        "summed losses",
        _variant(
            losses=lambda z, codes: (
                (z.detach() - codes).square().sum(),
                (z - codes.detach()).square().sum(),
            )
        ),
        "the losses are sums. They are means over positions and dimensions, as vq_losses gives them.",
    ),
    Mistake(
        "cut across positions",
        _variant(
            rows=_cut_across,
            grid=lambda rows, z: rows.reshape(z.shape),
        ),
        "reshape(-1, D) on (B, D, …) cuts across positions: its rows mix numbers of different vectors. Move the "
        "channels last first: z.movedim(1, -1).",
    ),
    Mistake(
        "cut across positions on the way in",
        _variant(rows=_cut_across),
        "your rows cut across positions: the channels have to come last before reshape(-1, D).",
    ),
    Mistake(
        "cut across positions on the way back",
        _variant(grid=lambda rows, z: rows.reshape(z.shape)),
        "on the way back, reshape to (B, *spatial, D) and move the last axis to place 1; reshape(z.shape) alone mixes "
        "the vectors.",
    ),
    Mistake(
        "channels left last",
        _variant(grid=lambda rows, z: rows.reshape(*z.shape[:1], *z.shape[2:], -1)),
        "z_q has its channels last. It is to have the shape of z: .movedim(-1, 1).",
    ),
    Mistake(
        "rows returned",
        _variant(grid=lambda rows, z: rows),
        "z_q is still a matrix of rows, (N, D). It is to have the shape of z.",
    ),
    Mistake(
        "flat indices",
        _variant(positions=lambda indices, z: indices),
        "indices is flat, (N,). It is to have the latents' places: (B, *spatial).",
    ),
    Mistake(
        "the largest dot product",
        _variant(search=lambda z, codebook: (z @ codebook.T).argmax(1)),
        "the largest dot product is not the nearest code: use nearest_code.",
    ),
    Mistake(
        "images only",
        _variant(rows=lambda z: z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])),
        "permute(0, 2, 3, 1) works for images only. movedim(1, -1) works for any number of axes.",
    ),
    Mistake(
        "a tuple",
        _variant(give=lambda q: (q.z_q, q.indices, q.loss)),
        "return a Quantized, whose fields have names: Quantized(z_q, indices, loss, losses).",
    ),
    Mistake(
        "only z_q", _variant(give=lambda q: q.z_q), "this is z_q alone. Return Quantized(z_q, indices, loss, losses)."
    ),
    Mistake(
        "fields in another order",
        _variant(give=lambda q: Quantized(q.indices, q.z_q, q.loss, q.losses)),
        "the fields of Quantized come in the order z_q, indices, loss, losses; or name them: Quantized(z_q=…, "
        "indices=…).",
    ),
    Mistake(
        "straight-through in training only",
        _OnlyInTraining,
        "in eval() z_q has no straight-through gradient. A quantizer's forward is the same in both modes: whoever "
        "wants no gradient says no_grad.",
    ),
    Mistake(
        "codebook overwritten",
        _WritesIntoTheCodebook,
        "your forward writes into self.codebook. It only looks up: the optimizer moves the codes, with the codebook "
        "loss.",
    ),
    Mistake(
        "z overwritten",
        _WritesIntoZ,
        "your forward writes into z, the caller's tensor. Make a new one for z_q.",
    ),
    Mistake(
        "the grid transposed",
        _variant(grid=lambda rows, z: _grid(rows, z).transpose(-1, -2) if z.ndim == 4 else _grid(rows, z)),
        "height and width of z_q are exchanged. What movedim(1, -1) did is undone by movedim(-1, 1).",
    ),
    Mistake(
        "the indices transposed",
        _variant(positions=lambda indices, z: _positions(indices, z).mT if z.ndim == 4 else _positions(indices, z)),
        "height and width of indices are exchanged. The rows came in the order (B, *spatial): reshape gives that back.",
    ),
    Mistake(
        "search not centred",
        _variant(search=lambda z, codebook: (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)),
        "the search is right near the origin only: use nearest_code, which centres first.",
    ),
    Mistake(
        "loss detached",
        _variant(weigh=lambda codebook, commitment, beta: (codebook + beta * commitment).detach()),
        "loss is detached, and nothing learns from it.",
    ),
    Mistake(
        "no stop-gradients in the losses",
        _variant(losses=lambda z, codes: ((z - codes).square().mean(),) * 2),
        "nothing is detached in your losses, so each moves both sides: vq_losses has the stop-gradients.",
    ),
    Mistake(
        "latents detached",
        _LatentsDetached,
        "z is detached at the start, so the encoder learns nothing. The stop-gradients are inside the losses and "
        "straight_through.",
    ),
)

EXERCISE = Exercise(
    name="VectorQuantizer",
    chapter="03_vector_quantisation",
    reference=VectorQuantizer,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

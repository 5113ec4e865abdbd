"""Exercise 6.4, the residual quantizer: the loop with one straight-through gradient and summed losses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_06._stacks import codes_by_depth, shrinking_quantizers, sum_of_codes, weighted_sum
from companion.course.chapter_06.exercise_6_3_residual_losses import residual_losses
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_at, zeros_for_none
from companion.quantizers import (
    EMAVectorQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    straight_through,
    vq_losses,
)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(63)
    rows = [
        ("three quantizers of 5 codes, β = 0.25", (3, 4, 3, 2), {"depth": 3, "num_codes": 5, "beta": 0.25}),
        ("two quantizers of 8 codes, β = 0.6", (5, 3, 4), {"depth": 2, "num_codes": 8, "beta": 0.6}),
        ("one quantizer: plain vector quantisation", (7, 2, 3), {"depth": 1, "num_codes": 6, "beta": 0.25}),
        (
            "two EMA quantizers, in training, after a first batch",
            (6, 3, 4),
            {"depth": 2, "num_codes": 5, "beta": 0.5, "ema": True},
        ),
    ]
    return [
        Case(label, (torch.randn(shape, generator=g), 0.5 + torch.randn(shape, generator=g)), build, seed=seed)
        for seed, (label, shape, build) in enumerate(rows)
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The fields, and for z_q and each term the gradient at z and at every codebook; nothing flowing counts as 0.

    EMA codebooks see another batch first: at the first one k-means has just converged, and a step moves nothing.
    """
    z, b = case.arguments[0].clone().requires_grad_(), case.build
    quantizers: Sequence[Quantizer]
    if "ema" in b:
        kept = {"commitment_weight": b["beta"], "restart_below": 0.0, "decay": 0.5}
        quantizers = [EMAVectorQuantizer(b["num_codes"], z.shape[1], seed=r, **kept) for r in range(b["depth"])]
    else:
        quantizers = shrinking_quantizers(b["depth"], b["num_codes"], z.shape[1], 10 + case.seed, b["beta"])
    quantizer = implementation(quantizers)
    if "ema" in b:
        quantizer(case.arguments[1].clone())
    out = quantizer(z)
    seen: Observed = {"is the result a Quantized?": isinstance(out, Quantized)}
    if not isinstance(out, Quantized):
        return seen | {"the type of the result": type(out).__name__}
    seen |= {"z_q": out.z_q, "indices": out.indices}
    seen["the terms' names"] = list(out.losses) if isinstance(out.losses, dict) else out.losses
    terms = dict(out.losses) if isinstance(out.losses, dict) else {}
    seen |= {f'losses["{name}"]': value for name, value in terms.items()}
    seen["loss"] = out.loss
    tensors = {"z": z}
    for r, part in enumerate(quantizers):
        if isinstance(part, VectorQuantizer):
            tensors[f"codebook {r + 1}"] = part.codebook
        else:
            seen[f"codebook {r + 1} after a forward in training"] = part.codebook
    sources = {"z_q": out.z_q} | {f'losses["{name}"]': value for name, value in terms.items()} | {"loss": out.loss}
    for name, value in sources.items():
        total = weighted_sum(value) if isinstance(value, Tensor) else None
        for at, gradient in zeros_for_none(gradients_at(total, tensors), tensors).items():
            seen[f"the gradient of {name} at {at}"] = gradient
    return seen


def _straight(z: Tensor, parts: Sequence[Quantized], codes: Sequence[Tensor]) -> Tensor:
    return straight_through(z, sum_of_codes(codes).detach())


def _added(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _variant(
    *,
    given: Callable[[Tensor, Tensor], Tensor] = lambda z, residual: residual,
    rest: Callable[[Tensor, Quantized, Tensor], Tensor] = lambda residual, part, code: residual - code.detach(),
    z_q: Callable[[Tensor, Sequence[Quantized], Sequence[Tensor]], Tensor] = _straight,
    indices: Callable[[Sequence[Tensor]], Tensor] = lambda found: torch.stack(list(found), -1),
    over_depths: Callable[[Sequence[Tensor]], Tensor] = _added,
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
                residual = rest(residual, part, code)
                parts.append(part)
                codes.append(code)
            named = {name: over_depths([part.losses[name] for part in parts]) for name in parts[0].losses}
            total = loss(over_depths([part.loss for part in parts]), named)
            return Quantized(z_q(z, parts, codes), indices([part.indices for part in parts]), total, terms(named))

    return Variant


class _OneLossForTheSum(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        indices = self.encode(z)
        total = self.decode(indices)
        codebook, commitment = vq_losses(z, total)
        beta = float(self._in_order()[0].commitment_weight)  # type: ignore[arg-type]
        terms = {"codebook": codebook, "commitment": commitment}
        return Quantized(straight_through(z, total.detach()), indices, codebook + beta * commitment, terms)


class _LooksUpOnly(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        training, self.training = self.training, False
        out = super().forward(z)
        self.training = training
        return out


def _changed(change: Callable[[Any, Quantized], tuple[Any, Any]]) -> type[ResidualQuantizer]:
    """The right result with another loss and other terms."""

    class Changed(ResidualQuantizer):
        def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
            out = super().forward(z)
            return Quantized(out.z_q, out.indices, *change(self, out))

    return Changed


class _OwnLosses(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        indices = self.encode(z)
        codes = codes_by_depth(indices, self._in_order())
        codebook, commitment = (terms.sum() for terms in residual_losses(z, codes))
        beta = float(self._in_order()[0].commitment_weight)  # type: ignore[arg-type]
        terms = {"codebook": codebook, "commitment": commitment}
        return Quantized(
            straight_through(z, sum_of_codes(codes).detach()), indices, codebook + beta * commitment, terms
        )


def _learns_first(what: str) -> type[ResidualQuantizer]:
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
            terms = {name: _added([part.losses[name] for part in parts]) for name in parts[0].losses}
            loss = _added([part.loss for part in parts])
            return Quantized(straight_through(z, z_q), torch.stack(found, -1), loss, terms)

    return Late


class _ATuple(ResidualQuantizer):
    def forward(self, z: Tensor) -> Any:  # type: ignore[override]  # without mask
        out = super().forward(z)
        return out.z_q, out.indices, out.loss, out.losses


MISTAKES = (
    Mistake(
        "residual not detached",
        _variant(rest=lambda residual, part, code: residual - code),
        "the values agree, but the commitment loss of a deeper depth reaches an earlier codebook: what is subtracted "
        "from the residual has to be detached.",
    ),
    Mistake(
        "no gradient beyond the first depth",
        _variant(rest=lambda residual, part, code: residual - part.z_q),
        "the values agree, but only the first depth's commitment loss reaches z. part.z_q has the gradient of the "
        "residual (straight-through), so residual − part.z_q has none: 1 − 1 = 0. Subtract part.z_q.detach(), and do "
        "not detach the residual as a whole.",
    ),
    Mistake(
        "each depth its own straight-through",
        _variant(z_q=lambda z, parts, codes: sum_of_codes([part.z_q for part in parts])),
        "the value agrees, but the gradient of z_q at z is R times too large: each part.z_q brings a straight-through "
        "gradient of its own, and they add up. Detach them, add, and apply straight_through once to the sum.",
    ),
    Mistake(
        "no straight-through",
        _variant(z_q=lambda z, parts, codes: sum_of_codes(codes).detach()),
        "z_q is right, but no gradient gets from it to z: straight_through(z, z_q) gives it one.",
    ),
    Mistake(
        "gradient into the codebooks",
        _variant(z_q=lambda z, parts, codes: sum_of_codes(codes)),
        "z_q is right, but its gradient goes into the codebooks and not to z. Use straight_through(z, z_q).",
    ),
    Mistake(
        "z_q is the last code",
        _variant(z_q=lambda z, parts, codes: straight_through(z, codes[-1].detach())),
        "z_q is the last depth's code alone; it is the sum of all of them.",
    ),
    Mistake(
        "z_q is the last residual",
        _variant(z_q=lambda z, parts, codes: straight_through(z, (z - sum_of_codes(codes)).detach())),
        "z_q is what is *left* after all depths; it is to be the sum of the codes.",
    ),
    Mistake(
        "z at every depth",
        _variant(given=lambda z, residual: z),
        "every quantizer is given z; from the second on it is to get the residual.",
    ),
    Mistake(
        "losses averaged over the depths",
        _variant(over_depths=lambda values: torch.stack(list(values)).mean()),
        "the losses are averaged over the depths, so that every gradient of theirs is R times too small. Add them up.",
    ),
    Mistake(
        "losses of the last depth",
        _variant(over_depths=lambda values: values[-1]),
        "only the last depth's losses are there: the other codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "losses of the first depth",
        _variant(over_depths=lambda values: values[0]),
        "only the first depth's losses are there: the deeper codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "one loss for the sum",
        _OneLossForTheSum,
        "you compare z with the sum of all codes, once. Then no code is pulled to the residual it was chosen for: "
        "every codebook gets the same gradient. Add up the losses that each depth gave.",
    ),
    Mistake(
        "beta forgotten",
        _variant(loss=lambda loss, terms: _added(list(terms.values()))),
        "`loss` is the sum of the unweighted terms, so that β is lost. Each part.loss is weighted already: add those.",
    ),
    Mistake(
        "weighted terms",
        _variant(terms=lambda terms: {**terms, "commitment": 0.25 * terms["commitment"]}),
        'the terms in `losses` are those before their weights: part.losses["commitment"], added up.',
    ),
    Mistake(
        "no terms",
        _variant(terms=lambda terms: {}),
        "`losses` is empty; it has each term by name, summed over the depths.",
    ),
    Mistake(
        "depth first",
        _variant(indices=lambda found: torch.stack(list(found))),
        "the indices have the depth as their first axis; it is to be the last, (B, *spatial, R).",
    ),
    Mistake(
        "indices of the first depth",
        _variant(indices=lambda found: found[0]),
        "the indices are those of the first depth only; stack those of all depths.",
    ),
    Mistake(
        "looked up, not called",
        _LooksUpOnly,
        "the EMA codebooks have learnt nothing: `quantize`, `encode` and `decode` only look up. Call the quantizer "
        "itself, quantizer(residual).",
    ),
    Mistake(
        "a tuple",
        _ATuple,
        "the result is a tuple; put the four into Quantized(z_q, indices, loss, losses).",
    ),
    Mistake(
        "loss averaged, terms summed",
        _changed(lambda quantizer, out: (out.loss / quantizer.depth, out.losses)),
        "`loss` is averaged over the depths, so that its gradients are R times too small. Add it up, as the terms are.",
    ),
    Mistake(
        "terms averaged, loss summed",
        _changed(lambda quantizer, out: (out.loss, {n: v / quantizer.depth for n, v in out.losses.items()})),
        "the terms in `losses` are averaged over the depths. Add them up, as `loss` is.",
    ),
    Mistake(
        "depth as a channel",
        _variant(indices=lambda found: torch.stack(list(found), 1)),
        "the indices have the depth as their second axis; it is to be the last, (B, *spatial, R): dim=-1.",
    ),
    Mistake(
        "losses of one's own",
        _OwnLosses,
        "you look up with encode and decode and take the losses yourself. That fits VectorQuantizer only: an EMA "
        "codebook has no codebook loss, and learns only when it is called, quantizer(residual).",
    ),
    Mistake(
        "called twice",
        _learns_first("the call"),
        "each quantizer is called twice, and an EMA codebook learns in each call. Call it once and keep the result: "
        "part = quantizer(residual).",
    ),
    *(
        Mistake(
            f"{what} after learning",
            _learns_first(what),
            f"{what} {does} looked up again after the call, in which an EMA codebook has moved. {instead}",
        )
        for what, does, instead in (
            ("indices", "are", "Take part.indices."),
            ("z_q", "is", "The code that was chosen is part.z_q.detach()."),
            ("residual", "is", "What is subtracted is the code that was chosen: part.z_q.detach()."),
        )
    ),
)

EXERCISE = Exercise(
    name="ResidualQuantizer",
    chapter="06_residual_quantisation",
    reference=ResidualQuantizer,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 6.4, the residual quantizer: the loop with one straight-through gradient and summed losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_06._stacks import codes_by_depth, shrinking_quantizers, sum_of_codes, weighted_sum
from companion.course.chapter_06._wrong_quantizers import (
    ATuple,
    EncodesAfterwards,
    LooksUpOnly,
    NoLossInEval,
    OneLossForTheSum,
    WritesIntoZ,
    added,
    changed,
    learns_first,
    through,
    variant,
)
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
        (
            "two EMA quantizers, in eval mode after a first batch",
            (4, 3, 5),
            {"depth": 2, "num_codes": 5, "beta": 0.4, "ema": True, "eval": True},
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
    quantizer.train("eval" not in b)
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
            seen[f"codebook {r + 1} after the forward"] = part.codebook
    sources = {"z_q": out.z_q} | {f'losses["{name}"]': value for name, value in terms.items()} | {"loss": out.loss}
    for name, value in sources.items():
        total = weighted_sum(value) if isinstance(value, Tensor) else None
        for at, gradient in zeros_for_none(gradients_at(total, tensors), tensors).items():
            seen[f"the gradient of {name} at {at}"] = gradient
    return seen | {"z after the call": z.detach()}


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


MISTAKES = (
    Mistake(
        "residual not detached",
        variant(rest=lambda residual, part, code: residual - code),
        "the values agree, but the commitment loss of a deeper depth reaches an earlier codebook: what is subtracted "
        "from the residual has to be detached.",
    ),
    Mistake(
        "no gradient beyond the first depth",
        variant(rest=lambda residual, part, code: residual - part.z_q),
        "the values agree, but only the first depth's commitment loss reaches z. part.z_q has the gradient of the "
        "residual (straight-through), so residual − part.z_q has none: 1 − 1 = 0. Subtract part.z_q.detach(), and do "
        "not detach the residual as a whole.",
    ),
    Mistake(
        "each depth its own straight-through",
        variant(z_q=lambda z, parts, codes: sum_of_codes([part.z_q for part in parts])),
        "the value agrees, but the gradient of z_q at z is R times too large: each part.z_q brings a straight-through "
        "gradient of its own, and they add up. Detach them, add, and apply straight_through once to the sum.",
    ),
    Mistake(
        "no straight-through",
        variant(z_q=lambda z, parts, codes: sum_of_codes(codes).detach()),
        "z_q is right, but no gradient gets from it to z: straight_through(z, z_q) gives it one.",
    ),
    Mistake(
        "gradient into the codebooks",
        variant(z_q=lambda z, parts, codes: sum_of_codes(codes)),
        "z_q is right, but its gradient goes into the codebooks and not to z. Use straight_through(z, z_q).",
    ),
    Mistake(
        "z_q is the last code",
        variant(z_q=lambda z, parts, codes: straight_through(z, codes[-1].detach())),
        "z_q is the last depth's code alone; it is the sum of all of them.",
    ),
    Mistake(
        "z_q is the last residual",
        variant(z_q=lambda z, parts, codes: straight_through(z, (z - sum_of_codes(codes)).detach())),
        "z_q is what is *left* after all depths; it is to be the sum of the codes.",
    ),
    Mistake(
        "z at every depth",
        variant(given=lambda z, residual: z),
        "every quantizer is given z; from the second on it is to get the residual.",
    ),
    Mistake(
        "losses averaged over the depths",
        variant(over_depths=lambda values: torch.stack(list(values)).mean()),
        "the losses are averaged over the depths, so that every gradient of theirs is R times too small. Add them up.",
    ),
    Mistake(
        "losses of the last depth",
        variant(over_depths=lambda values: values[-1]),
        "only the last depth's losses are there: the other codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "losses of the first depth",
        variant(over_depths=lambda values: values[0]),
        "only the first depth's losses are there: the deeper codebooks would never move. Add up those of all depths.",
    ),
    Mistake(
        "one loss for the sum",
        OneLossForTheSum,
        "you compare z with the sum of all codes, once. Then no code is pulled to the residual it was chosen for: "
        "every codebook gets the same gradient. Add up the losses that each depth gave.",
    ),
    Mistake(
        "beta forgotten",
        variant(loss=lambda loss, terms: added(list(terms.values()))),
        "`loss` is the sum of the unweighted terms, so that β is lost. Each part.loss is weighted already: add those.",
    ),
    Mistake(
        "weighted terms",
        variant(terms=lambda terms: {**terms, "commitment": 0.25 * terms["commitment"]}),
        'the terms in `losses` are those before their weights: part.losses["commitment"], added up.',
    ),
    Mistake(
        "no terms",
        variant(terms=lambda terms: {}),
        "`losses` is empty; it has each term by name, summed over the depths.",
    ),
    Mistake(
        "depth first",
        variant(indices=lambda found: torch.stack(list(found))),
        "the indices have the depth as their first axis; it is to be the last, (B, *spatial, R).",
    ),
    Mistake(
        "indices of the first depth",
        variant(indices=lambda found: found[0]),
        "the indices are those of the first depth only; stack those of all depths.",
    ),
    Mistake(
        "looked up, not called",
        LooksUpOnly,
        "the EMA codebooks have learnt nothing: `quantize`, `encode` and `decode` only look up. Call the quantizer "
        "itself, quantizer(residual).",
    ),
    Mistake(
        "a tuple",
        ATuple,
        "the result is a tuple; put the four into Quantized(z_q, indices, loss, losses).",
    ),
    Mistake(
        "loss averaged, terms summed",
        changed(lambda quantizer, out: (out.loss / quantizer.depth, out.losses)),
        "`loss` is averaged over the depths, so that its gradients are R times too small. Add it up, as the terms are.",
    ),
    Mistake(
        "terms averaged, loss summed",
        changed(lambda quantizer, out: (out.loss, {n: v / quantizer.depth for n, v in out.losses.items()})),
        "the terms in `losses` are averaged over the depths. Add them up, as `loss` is.",
    ),
    Mistake(
        "depth as a channel",
        variant(indices=lambda found: torch.stack(list(found), 1)),
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
        learns_first("the call"),
        "each quantizer is called twice, and an EMA codebook learns in each call. Call it once and keep the result: "
        "part = quantizer(residual).",
    ),
    *(
        Mistake(
            f"{what} after learning",
            learns_first(what),
            f"{what} {does} looked up again after the call, in which an EMA codebook has moved. {instead}",
        )
        for what, does, instead in (
            ("indices", "are", "Take part.indices."),
            ("z_q", "is", "The code that was chosen is part.z_q.detach()."),
            ("residual", "is", "What is subtracted is the code that was chosen: part.z_q.detach()."),
        )
    ),
    Mistake(
        "straight-through exchanged",
        variant(z_q=lambda z, parts, codes: straight_through(sum_of_codes(codes).detach(), z)),
        "z_q has the value of z: the arguments of straight_through are exchanged. The gradient is that of the"
        " first, the value that of the second.",
    ),
    Mistake(
        "loss of the last depth, terms of all",
        variant(only_loss=lambda values: values[-1]),
        "`loss` is that of the last depth alone: add up part.loss over all parts.",
    ),
    Mistake(
        "loss of the first depth, terms of all",
        variant(only_loss=lambda values: values[0]),
        "`loss` is that of the first depth alone: add up part.loss over all parts.",
    ),
    Mistake(
        "terms of one depth, loss of all",
        variant(over_depths=lambda values: values[-1], only_loss=added),
        "the terms in `losses` are those of one depth: add each up over all parts, as `loss` is.",
        also=(variant(over_depths=lambda values: values[0], only_loss=added),),
    ),
    Mistake(
        "weighted once more",
        changed(lambda quantizer, out: (0.25 * out.loss, out.losses)),
        "`loss` is weighted once more (0.25). Each part.loss has its β already: add them up.",
    ),
    Mistake(
        "added",
        variant(rest=lambda residual, part, code: residual + code.detach()),
        "the code is added to the residual; what is left after it is residual − code.",
    ),
    Mistake(
        "from z each time",
        variant(from_z=True),
        "the residual is z minus the *last* code only. Each depth takes away its code from the residual before it.",
    ),
    Mistake(
        "mean of the codes",
        variant(z_q=lambda z, parts, codes: straight_through(z, torch.stack(list(codes)).mean(0).detach())),
        "z_q is the mean of the codes; it is their sum.",
    ),
    Mistake(
        "all indices afterwards",
        EncodesAfterwards,
        "self.encode(z) after the calls finds other indices, as EMA codebooks have moved in them. Take part.indices.",
    ),
    Mistake(
        "last quantizer left out",
        through(slice(None, -1)),
        "the last quantizer is left out: go through all of self.quantizers.",
    ),
    Mistake(
        "from the last to the first",
        through(slice(None, None, -1)),
        "the quantizers are gone through from the last to the first. The first is the coarse one: begin there.",
    ),
    Mistake(
        "no loss in eval mode",
        NoLossInEval,
        "in eval mode `loss` is 0; held-out losses are measured there. The quantizers know their mode "
        "themselves: add up what they give.",
    ),
    Mistake(
        "written into z",
        WritesIntoZ,
        "the result is right, but z has changed: `residual = z` makes no copy, and -= (also on .data or under"
        " no_grad) writes into z. Write residual = residual − ….",
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

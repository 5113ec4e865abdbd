"""Exercise 8.4, the RQ-Transformer: logits of every code, and their cross-entropy."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.chapter_08._embeddings import embed_stacks
from companion.course.chapter_08.exercise_8_2_spatial_inputs import spatial_inputs
from companion.course.chapter_08.exercise_8_3_depth_inputs import depth_inputs
from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import built_alike, gradients_at, zeros_for_none
from companion.priors import PriorOutput, RQTransformer


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(88)

    def case(label: str, n: int, grid: tuple[int, int, int], k: int, labels: Tensor | None, **build: int) -> Case:
        codes = torch.randint(0, k, (n, *grid), generator=g)
        codes[0, 0, 0, 0] = 0  # so that leaving out code 0 shows
        shape = {"num_codes": k, "grid": grid, "dim": 8, "layers": 1, "depth_layers": 1, "heads": 2, **build}
        return Case(label, (codes, labels), shape)

    return [
        case("a grid of 2 × 3, 2 codes a position, with classes", 2, (2, 3, 2), 5, torch.tensor([1, 0]), num_classes=2),
        case("a grid of 3 × 1, 3 codes a position, no class given", 3, (3, 1, 3), 4, None, num_classes=2),
        case("one position of 4 codes, a prior without classes", 2, (1, 1, 4), 6, None),
        case("2 × 2 positions of one code", 2, (2, 2, 1), 3, torch.tensor([2, 2]), num_classes=3),
        case("all of class 0", 2, (1, 2, 2), 4, torch.tensor([0, 0]), num_classes=2),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Logits, loss and its gradients, with the companion's weights, of which none is zero."""
    codes, labels = case.arguments
    model, seen = built_alike(implementation, RQTransformer, case, _random_weights)
    given = codes.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no labels for a prior with classes: here both ways are asked for
        out = model(given, labels)
    seen["is the result a PriorOutput?"] = isinstance(out, PriorOutput)
    if not isinstance(out, PriorOutput):
        return seen | {"the type of the result": type(out).__name__}
    seen |= {"the logits": out.logits, "the loss": out.loss, "the codes after the call": given}
    loss = out.loss if isinstance(out.loss, Tensor) and out.loss.ndim == 0 else None
    weights = dict(model.named_parameters())
    gradients = zeros_for_none(gradients_at(loss, weights), weights)
    return seen | {f"the gradient of {name}": gradient for name, gradient in gradients.items()}


def _random_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(89)
    return {name: 0.4 * torch.randn(weight.shape, generator=g) for name, weight in weights.items()}


def _cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), codes.flatten())


def _variant(
    *,
    start: Callable[[RQTransformer, Tensor, Tensor | None], Tensor] = lambda m, codes, labels: m.sos(
        torch.full((len(codes),), m.num_classes) if labels is None else labels
    ),
    stack: Callable[[Tensor], Tensor] = lambda codes: codes.reshape(len(codes), -1, codes.shape[-1]),
    spatial: Callable[[RQTransformer, Tensor], Tensor] = lambda m, x: m.spatial(x),
    deep: Callable[[RQTransformer, Tensor], Tensor] = lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape),
    shape: Callable[[Tensor, Tensor], Tensor] = lambda logits, codes: logits.reshape(*codes.shape, -1),
    loss: Callable[[Tensor, Tensor], Tensor] = _cross_entropy,
    finish: Callable[[Tensor, Tensor], Any] = PriorOutput,
) -> type[RQTransformer]:
    """The model with one of its parts replaced."""

    class Variant(RQTransformer):
        def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]  # without mask
            stacks = stack(codes)
            h = spatial(self, spatial_inputs(stacks, self.codes, start(self, codes, labels), self.positions))
            out = deep(self, depth_inputs(h, stacks, self.codes, self.depths))
            logits = self.to_logits(out)  # (B, T, R, K)
            return finish(shape(logits, codes), loss(logits, codes))

    return Variant


class _ShiftedLabels(RQTransformer):
    """As the published package has it: R + 1 logits a position, cut to the length of the labels."""

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]  # without mask
        stacks = codes.reshape(len(codes), -1, self.depth)
        starts = self._or_no_class(labels, len(codes), codes.device)
        h = self.spatial(spatial_inputs(stacks, self.codes, self.sos(starts), self.positions))
        partial = embed_stacks(stacks, self.codes).cumsum(2)
        depths = torch.cat([self.depths, torch.zeros_like(self.depths[:1])])
        sequence = torch.cat([h[:, :, None], partial], 2) + depths  # (B, T, R + 1, dim)
        out = self.to_logits(self.depthwise(sequence.flatten(0, 1)))
        logits = out.reshape(len(codes), -1, self.num_codes)[:, : self.length]
        return PriorOutput(logits.reshape(*codes.shape, -1), _cross_entropy(logits, codes))


class _DepthBeforeSpace(RQTransformer):
    """Reads the depth transformer's input as if depth came before position."""

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]  # without mask
        stacks = codes.reshape(len(codes), self.depth, -1).transpose(1, 2)
        starts = self._or_no_class(labels, len(codes), codes.device)
        h = self.spatial(spatial_inputs(stacks, self.codes, self.sos(starts), self.positions))
        x = depth_inputs(h, stacks, self.codes, self.depths)
        logits = self.to_logits(self.depthwise(x.flatten(0, 1)).reshape(x.shape))
        return PriorOutput(logits.reshape(*codes.shape, -1), _cross_entropy(logits, stacks))


MISTAKES = (
    Mistake(
        "labels shifted by one",
        _ShiftedLabels,
        "your depth transformer gives R + 1 logits a position, and they are cut to T·R before they meet the labels. "
        "From the second position on each label meets a logit that belongs to an earlier code: the loss falls all the "
        "same, and held-out codes cost more bits. R inputs, R logits, R labels a position.",
    ),
    Mistake(
        "code 0 left out",
        _variant(
            loss=lambda logits, codes: functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), codes.flatten(), ignore_index=0
            )
        ),
        "code 0 is left out of the loss (ignore_index=0), as if it were padding. It is a code like the others.",
    ),
    Mistake(
        "starts with code 0",
        _variant(start=lambda m, codes, labels: m.codes[:, 0].sum(0).expand(len(codes), -1) + 0 * m.sos.weight.sum()),
        "the sequence starts with the embedding of code 0. The <sos> has vectors of its own, self.sos.",
    ),
    Mistake(
        "class ignored",
        _variant(start=lambda m, codes, labels: m.sos(torch.full((len(codes),), m.num_classes))),
        "every image starts with the <sos> for 'no class'; where labels are given, use self.sos(labels).",
    ),
    Mistake(
        "no class is class 0",
        _variant(
            start=lambda m, codes, labels: m.sos(
                torch.zeros(len(codes), dtype=torch.int64) if labels is None else labels
            )
        ),
        "without labels you use the <sos> of class 0. 'No class' has one of its own, the last: self.num_classes.",
    ),
    Mistake(
        "depth transformer over the image",
        _variant(deep=lambda m, x: m.depthwise(x.flatten(1, 2)).reshape(x.shape)),
        "the depth transformer runs over all T·R codes of an image in a row: that is the flattened transformer. Each "
        "position is a sequence of its own, (B·T, R, dim).",
    ),
    Mistake(
        "depth transformer over the positions",
        _variant(
            deep=lambda m, x: (
                m.depthwise(x.transpose(1, 2).flatten(0, 1))
                .reshape(x.shape[0], x.shape[2], x.shape[1], -1)
                .transpose(1, 2)
            )
        ),
        "the depth transformer attends along the positions; it is to go down the stack, (B·T, R, dim).",
        also=(_variant(deep=lambda m, x: m.depthwise(x.transpose(1, 2).flatten(0, 1)).reshape(x.shape)),),
    ),
    Mistake(
        "depth transformer on four axes",
        _variant(deep=lambda m, x: m.depthwise(x)),
        "the depth transformer takes (n, R, dim), three axes, and gets four. Each position is a sequence of its own: "
        "reshape to (B·T, R, dim), and back afterwards.",
    ),
    Mistake(
        "no depth transformer",
        _variant(deep=lambda m, x: x + 0 * m.depthwise(x.flatten(0, 1)).reshape(x.shape)),
        "the depth transformer is left out: its *inputs* go straight to the logits.",
    ),
    Mistake(
        "spatial transformer twice",
        _variant(deep=lambda m, x: m.spatial(x.flatten(0, 1)).reshape(x.shape)),
        "the stacks go through self.spatial; self.depthwise is the transformer for the depth.",
    ),
    Mistake(
        "no spatial transformer",
        _variant(spatial=lambda m, x: x + 0 * m.spatial(x)),
        "h is the *output* of the spatial transformer; its inputs go into the depth transformer here.",
    ),
    Mistake(
        "first code from h alone for all",
        _variant(deep=lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape)[:, :, :1].expand_as(x)),
        "all R codes get the logits of the first place. Each place of the depth transformer predicts its own code.",
    ),
    Mistake(
        "depth first in the codes",
        _DepthBeforeSpace,
        "the codes are (B, h, w, R), the depth last: reshape them to (B, T, R), not to (B, R, T).",
        also=(_variant(stack=lambda codes: codes.reshape(len(codes), codes.shape[-1], -1).mT),),
    ),
    Mistake(
        "logits without a grid",
        _variant(shape=lambda logits, codes: logits.flatten(1, 2)),
        "the logits are to be (B, h, w, R, K), in the shape of the codes.",
    ),
    Mistake(
        "nats per position",
        _variant(loss=lambda logits, codes: codes.shape[-1] * _cross_entropy(logits, codes)),
        "the loss is summed over the depths: R times what it is per code. It is to be the mean over all codes.",
    ),
    Mistake(
        "nats per image",
        _variant(loss=lambda logits, codes: codes[0].numel() * _cross_entropy(logits, codes)),
        "the loss is that of a whole image; it is to be the mean over all codes.",
    ),
    Mistake(
        "bits",
        _variant(loss=lambda logits, codes: _cross_entropy(logits, codes) / math.log(2)),
        "the loss is in bits; it is to be in nats, as cross_entropy gives it.",
    ),
    Mistake(
        "probabilities for logits",
        _variant(loss=lambda logits, codes: _cross_entropy(logits.softmax(-1), codes)),
        "cross_entropy takes the logits and does the softmax itself; here it gets probabilities.",
    ),
    Mistake(
        "last depth only",
        _variant(loss=lambda logits, codes: _cross_entropy(logits[:, :, -1], codes[..., -1])),
        "only the last code of each stack is in the loss.",
    ),
    Mistake(
        "first depth only",
        _variant(loss=lambda logits, codes: _cross_entropy(logits[:, :, 0], codes[..., 0])),
        "only the first code of each stack is in the loss.",
    ),
    Mistake(
        "a tuple",
        _variant(finish=lambda logits, loss: (logits, loss)),
        "the result is a tuple; put both into PriorOutput(logits, loss).",
    ),
    Mistake(
        "class 0 taken for no class",
        _variant(
            start=lambda m, codes, labels: m.sos(
                torch.full((len(codes),), m.num_classes) if labels is None or not labels.any() else labels
            )
        ),
        "a batch whose labels are all 0 is taken for one without labels (`if labels.any()`). 0 is a class: ask whether "
        "labels is None.",
    ),
    Mistake(
        "images and positions mixed",
        _variant(
            deep=lambda m, x: m.depthwise(x.flatten(0, 1)).reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
        ),
        "images and positions are mixed on the way back: rows b·T + t were made from (B, T), so reshape to (B, T, R, "
        "dim), in this order.",
    ),
    Mistake(
        "sum",
        _variant(loss=lambda logits, codes: codes.numel() * _cross_entropy(logits, codes)),
        "the loss is a sum over all codes of the batch; it is to be their mean.",
    ),
    Mistake(
        "no start without labels",
        _variant(
            start=lambda m, codes, labels: (
                0 * m.sos(torch.full((len(codes),), m.num_classes)) if labels is None else m.sos(labels)
            )
        ),
        "without labels the start is 0. 'No class' has a vector of its own, self.sos of index self.num_classes.",
    ),
    Mistake(
        "mean of the classes",
        _variant(
            start=lambda m, codes, labels: (
                m.sos.weight[: max(1, m.num_classes)].mean(0).expand(len(codes), -1)
                if labels is None
                else m.sos(labels)
            )
        ),
        "without labels the start is the mean of the classes. 'No class' has a vector of its own, self.sos of"
        " index self.num_classes.",
    ),
    Mistake(
        "labels moved by one",
        _variant(
            start=lambda m, codes, labels: m.sos(
                torch.full((len(codes),), m.num_classes) if labels is None else (labels + 1) % (m.num_classes + 1)
            )
        ),
        "the labels are moved by one: class y is self.sos of index y.",
        also=(
            _variant(
                start=lambda m, codes, labels: m.sos(
                    ((m.num_classes if labels is None else labels) + torch.ones(len(codes), dtype=torch.int64))
                    % (m.num_classes + 1)
                )
            ),
        ),
    ),
    Mistake(
        "no start",
        _variant(
            start=lambda m, codes, labels: (
                0 * m.sos(torch.full((len(codes),), m.num_classes) if labels is None else labels)
            )
        ),
        "the start is 0 throughout: it is self.sos of the label.",
    ),
    Mistake(
        "spatial transformer twice over",
        _variant(spatial=lambda m, x: m.spatial(m.spatial(x))),
        "self.spatial runs twice over its inputs: once.",
    ),
    Mistake(
        "transformers exchanged",
        _variant(
            spatial=lambda m, x: m.depthwise(x),
            deep=lambda m, x: m.spatial(x.flatten(0, 1)).reshape(x.shape),
        ),
        "the two transformers are exchanged: self.spatial goes over the positions, self.depthwise down the stacks.",
    ),
    Mistake(
        "axes mixed",
        _variant(deep=lambda m, x: m.depthwise(x.permute(2, 0, 1, 3).reshape(-1, *x.shape[2:])).reshape(x.shape)),
        "the depth was moved before the reshape to (B·T, R, dim), so that the rows are no stacks. It is the "
        "third axis already: reshape at once.",
    ),
    Mistake(
        "probabilities given back",
        _variant(
            shape=lambda logits, codes: logits.softmax(-1).reshape(*codes.shape, -1),
            loss=lambda logits, codes: _cross_entropy(logits.softmax(-1), codes),
        ),
        "you give back probabilities; the logits are what self.to_logits gives, and cross_entropy takes them "
        "as they are.",
        also=(_variant(shape=lambda logits, codes: logits.softmax(-1).reshape(*codes.shape, -1)),),
    ),
    Mistake(
        "logarithms given back",
        _variant(shape=lambda logits, codes: logits.log_softmax(-1).reshape(*codes.shape, -1)),
        "you give back log-probabilities. The loss is the same, but the logits are what self.to_logits gives.",
    ),
    Mistake(
        "first codes left out",
        _variant(loss=lambda logits, codes: _cross_entropy(logits[:, :, 1:], codes[..., 1:])),
        "the first code of each stack is not in the loss. h predicts it: all R count.",
    ),
    Mistake(
        "first position left out",
        _variant(loss=lambda logits, codes: _cross_entropy(logits[:, 1:], codes.flatten(1, 2)[:, 1:])),
        "the first position is not in the loss. The <sos> predicts it: all T count.",
    ),
    Mistake(
        "labels of the next code",
        _variant(
            loss=lambda logits, codes: functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1])[:-1], codes.flatten()[1:]
            )
        ),
        "the labels are shifted against the logits once more. The inputs are shifted already: logit i belongs"
        " to code i.",
    ),
    Mistake(
        "by columns",
        _variant(stack=lambda codes: codes.transpose(1, 2).reshape(len(codes), -1, codes.shape[-1])),
        "the positions are in the order of columns; raster order is row by row: codes.reshape(B, T, R).",
    ),
    Mistake(
        "label smoothing",
        _variant(
            loss=lambda logits, codes: functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), codes.flatten(), label_smoothing=0.1
            )
        ),
        "the labels are smoothed, so that the loss is no longer the cost of the codes: plain cross-entropy.",
    ),
)

EXERCISE = Exercise(
    name="RQTransformer",
    chapter="08_rq_transformer",
    reference=RQTransformer,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

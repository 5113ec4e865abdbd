"""Exercise 7.4, inputs with a class: the start token of a class, or of none, in front of the codes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def conditional_inputs(
    codes: Tensor, labels: Tensor | None, num_codes: int, num_classes: int, dropped: Tensor | None = None
) -> Tensor:
    """The inputs with a ``<sos>`` for each class: K + label, and K + C for "no class".

    Shapes:
        codes: (B, h, w) int64; labels: (B,) int64, or None for "no class"; dropped: (B,) bool, whose labels are to be
        replaced by "no class" → (B, T).
    """
    row = codes.flatten(1)
    nothing = torch.full_like(row[:, 0], num_codes + num_classes)
    start = nothing if labels is None else num_codes + labels
    if dropped is not None:
        start = torch.where(dropped, nothing, start)
    return torch.cat([start[:, None], row[:, :-1]], 1)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(74)

    def codes(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    labels, dropped = torch.tensor([2, 0, 1, 2]), torch.tensor([False, True, False, True])
    return [
        Case("four tables of 2 × 3, K = 7, three classes", (codes(4, 2, 3, k=7), labels, 7, 3)),
        Case("no labels", (codes(2, 2, 3, k=7), None, 7, 3, None)),
        Case("two of four labels dropped", (codes(4, 2, 2, k=9), labels, 9, 3, dropped)),
        Case("a prior without classes", (codes(2, 1, 3, k=5), None, 5, 0, None)),
        Case("no labels, and two of four dropped", (codes(4, 2, 2, k=6), None, 6, 3, dropped)),
        Case("two tables of class 0", (codes(2, 2, 2, k=6), torch.tensor([0, 0]), 6, 3)),
        Case("a single code, ten classes", (codes(1, 1, 1, k=4), torch.tensor([9]), 4, 10, torch.tensor([False]))),
    ]


Start = Callable[[Tensor, int, int], Tensor]


def _variant(
    *,
    of_label: Start = lambda labels, k, c: k + labels,
    nothing: Callable[[int, int], int] = lambda k, c: k + c,
    drop: Callable[[Tensor, Tensor, int], Tensor] = lambda start, dropped, none: start.masked_fill(dropped, none),
    finish: Callable[[Tensor, Tensor], Tensor] = lambda start, row: torch.cat([start[:, None], row[:, :-1]], 1),
) -> Callable[..., Tensor]:
    """The right answer with one of its parts replaced."""

    def inputs(codes: Tensor, labels: Tensor | None, k: int, c: int, dropped: Tensor | None = None) -> Tensor:
        row, none = codes.flatten(1), nothing(k, c)
        start = torch.full_like(row[:, 0], none) if labels is None else of_label(labels, k, c)
        if dropped is not None:
            start = drop(start, dropped, none)
        return finish(start, row)

    return inputs


MISTAKES = (
    Mistake(
        "labels as tokens",
        _variant(of_label=lambda labels, k, c: labels),
        "the label itself is the first token: class 3 is then the same number as code 3. Numbers 0 to K − 1 are codes; "
        "class y is K + y.",
    ),
    Mistake(
        "no class is 0",
        _variant(nothing=lambda k, c: 0),
        '"no class" is number 0, which is a code. It is K + C, after all classes.',
    ),
    Mistake(
        "no class is the first class",
        _variant(nothing=lambda k, c: k),
        '"no class" is number K, which is class 0. With C classes it is K + C.',
    ),
    Mistake(
        "no class is the last class",
        _variant(nothing=lambda k, c: k + max(c - 1, 0)),
        '"no class" is number K + C − 1, which is the last class. It is K + C.',
    ),
    Mistake(
        "one sos for all",
        _variant(of_label=lambda labels, k, c: torch.full_like(labels, k + c)),
        "every table begins with the same token, whatever its label.",
    ),
    Mistake(
        "classes from K + 1 on",
        _variant(of_label=lambda labels, k, c: k + 1 + labels),
        'class 0 is number K here, not K + 1: with "no class" at K + C, the last class would collide with it.',
    ),
    Mistake(
        "backwards",
        _variant(of_label=lambda labels, k, c: k + c - 1 - labels),
        "the classes are numbered from the last to the first; class y is K + y.",
    ),
    Mistake(
        "drop ignored",
        _variant(drop=lambda start, dropped, none: start),
        'labels that are dropped are still there: where `dropped` is True, for each image by itself, "no class" takes '
        "the place of its label.",
    ),
    Mistake(
        "drop the others",
        _variant(drop=lambda start, dropped, none: start.masked_fill(~dropped, none)),
        "the labels that are *not* dropped are replaced.",
    ),
    Mistake(
        "drop all",
        _variant(drop=lambda start, dropped, none: start.masked_fill(dropped.any(), none)),
        "as soon as one label is dropped, all of them are. `dropped` says it for each image.",
    ),
    Mistake(
        "one input too many",
        _variant(finish=lambda start, row: torch.cat([start[:, None], row], 1)),
        "there are T + 1 inputs; the last code is no input, since nothing follows it.",
    ),
    Mistake(
        "first code overwritten",
        _variant(finish=lambda start, row: torch.cat([start[:, None], row[:, 1:]], 1)),
        "the start stands in the place of the first code, and the others are not shifted: each position reads its own "
        "target.",
    ),
    Mistake(
        "class at the end",
        _variant(finish=lambda start, row: torch.cat([row[:, :-1], start[:, None]], 1)),
        "the class stands at the end, where only the last position sees it. It comes first.",
        also=(_variant(finish=lambda start, row: torch.cat([row[:, 1:], start[:, None]], 1)),),
    ),
    Mistake(
        "added to the codes",
        _variant(finish=lambda start, row: torch.cat([start[:, None], row[:, :-1] + 0 * start[:, None]], 1) + 1),
        "all numbers are one too high: codes keep their own numbers, 0 to K − 1.",
    ),
    Mistake(
        "labels needed where some are dropped",
        lambda codes, labels, k, c, dropped=None: (
            conditional_inputs(codes, labels, k, c)
            if dropped is None
            else conditional_inputs(codes, torch.where(dropped, c, labels), k, c)
        ),
        "`labels` may be None also where `dropped` is given (the prior calls you so): then all images have no class. "
        "Make the row of starts first, and drop from that.",
    ),
    Mistake(
        "no class is one further",
        _variant(nothing=lambda k, c: k + c + 1),
        '"no class" is number K + C + 1, and K + C belongs to nothing. Classes are K to K + C − 1; the next is K + C.',
    ),
    Mistake(
        "no class is -1",
        _variant(nothing=lambda k, c: -1),
        '"no class" is a negative number: an embedding has no row of it. It is K + C, after all classes.',
        also=(
            _variant(nothing=lambda k, c: -100),
            _variant(drop=lambda start, dropped, none: start.masked_fill(dropped, -100)),
        ),
    ),
    Mistake(
        "no class is C",
        _variant(nothing=lambda k, c: c),
        '"no class" is number C, which is a code. It is K + C: all starts come after the K codes.',
    ),
    Mistake(
        "labels 0 count as none",
        lambda codes, labels, k, c, dropped=None: conditional_inputs(
            codes, labels if labels is not None and bool(labels.any()) else None, k, c, dropped
        ),
        "a batch in which every label is 0 gets no class: 0 is a label like the others. Ask whether labels is None.",
    ),
    Mistake(
        "number of classes for number of codes",
        _variant(of_label=lambda labels, k, c: c + labels),
        "class y is C + y here; it is K + y, as the K codes come first.",
    ),
    Mistake(
        "label times K",
        _variant(of_label=lambda labels, k, c: k * labels),
        "class y is K · y here; it is K + y.",
    ),
    Mistake(
        "C written in",
        lambda codes, labels, k, c, dropped=None: conditional_inputs(codes, labels, k, 10, dropped),
        "there are ten classes here, whatever is given: use num_classes.",
        also=(lambda codes, labels, k, c, dropped=None: conditional_inputs(codes, labels, 64, 10, dropped),),
    ),
    Mistake(
        "by columns",
        lambda codes, labels, k, c, dropped=None: conditional_inputs(codes.mT, labels, k, c, dropped),
        "the codes are in the order of columns; raster order is row by row: codes.flatten(1).",
    ),
    Mistake(
        "label added to the codes",
        lambda codes, labels, k, c, dropped=None: torch.cat(
            [
                (right := conditional_inputs(codes, labels, k, c, dropped))[:, :1],
                right[:, 1:] + (0 if labels is None else labels[:, None]),
            ],
            1,
        ),
        "the label is added to every code. Only the start knows the class; codes keep their own numbers.",
    ),
    Mistake(
        "a start before the start",
        _variant(
            finish=lambda start, row: torch.cat([start[:, None], torch.full_like(row[:, :2], 0), row[:, :-2]], 1)[
                :, : row.shape[1]
            ]
        ),
        "two starts stand before the codes, and the codes are shifted by two. The start of the class takes "
        "the place of <sos>.",
        also=(
            lambda codes, labels, k, c, dropped=None: torch.cat(
                [
                    conditional_inputs(codes, labels, k, c, dropped)[:, :1],
                    torch.full_like(codes.flatten(1)[:, :1], k),
                    codes.flatten(1)[:, :-2],
                ],
                1,
            )[:, : codes[0].numel()],
        ),
    ),
    Mistake(
        "first start for all",
        _variant(finish=lambda start, row: torch.cat([start[:1, None].expand(len(row), 1), row[:, :-1]], 1)),
        "every image has the start of the first one; each has that of its own class.",
    ),
    Mistake(
        "codes dropped too",
        lambda codes, labels, k, c, dropped=None: (
            conditional_inputs(codes, labels, k, c)
            if dropped is None
            else torch.where(dropped[:, None], k + c, conditional_inputs(codes, labels, k, c))
        ),
        "of dropped images the codes are replaced as well. Only the label is dropped: the first number.",
    ),
)

EXERCISE = Exercise(
    name="conditional_inputs",
    chapter="07_transformer_prior",
    reference=conditional_inputs,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""Exercise 7.1, inputs and targets: codes in raster order, the inputs shifted by one behind `<sos>`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call_for


def shift(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Codes as a row in raster order: what the prior reads at each position, and what it is to predict there.

    ``<sos>`` has the number K, the first that is no code.

    Shapes:
        codes: (B, h, w) int64 → inputs and targets, each (B, T).
    """
    targets = codes.flatten(1)
    sos = torch.full_like(targets[:, :1], num_codes)
    return torch.cat([sos, targets[:, :-1]], 1), targets


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(70)

    def codes(*shape: int, k: int) -> Tensor:
        return torch.randint(0, k, shape, generator=g)

    return [
        Case("two tables of 3 × 4, K = 7", (codes(2, 3, 4, k=7), 7)),
        Case("one table of 2 × 2, K = 20", (codes(1, 2, 2, k=20), 20)),
        Case("tables of a single code", (codes(3, 1, 1, k=5), 5)),
        Case("codes that are not contiguous in memory", (codes(3, 5, 2, k=9).transpose(1, 2), 9)),
    ]


def _shifted(codes: Tensor, start: int) -> Tensor:
    row = codes.flatten(1)
    return torch.cat([torch.full_like(row[:, :1], start), row[:, :-1]], 1)


def _same_memory(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    row = codes.flatten(1)
    row[:, 1:] = row[:, :-1].clone()
    row[:, 0] = num_codes
    return row, row


def _by_columns(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    return shift(codes.transpose(1, 2), num_codes)


def _longer(codes: Tensor, num_codes: int) -> Tensor:
    row = codes.flatten(1)
    return torch.cat([torch.full_like(row[:, :1], num_codes), row], 1)


MISTAKES = (
    Mistake(
        "sos is code 0",
        lambda codes, k: (_shifted(codes, 0), codes.flatten(1)),
        "<sos> has the number 0, which is a code: after it the prior cannot tell the beginning from a table whose "
        "first code is 0. Codes are 0 to K − 1; the first free number is K.",
    ),
    Mistake(
        "sos is the last code",
        lambda codes, k: (_shifted(codes, k - 1), codes.flatten(1)),
        "<sos> has the number K − 1, and that is the last code. The first number that is no code is K.",
    ),
    Mistake(
        "sos is -1",
        lambda codes, k: (_shifted(codes, -1), codes.flatten(1)),
        "<sos> has the number −1: an embedding has no row of that number. Take K, and give the table one row more.",
    ),
    Mistake(
        "not shifted",
        lambda codes, k: (codes.flatten(1), codes.flatten(1)),
        "inputs and targets are the same: at each position the prior would read the very code that it is to predict.",
    ),
    Mistake(
        "shifted the wrong way",
        lambda codes, k: (
            torch.cat([codes.flatten(1)[:, 1:], torch.full_like(codes.flatten(1)[:, :1], k)], 1),
            codes.flatten(1),
        ),
        "the inputs are shifted to the left: each position reads the code *after* the one that it is to predict.",
    ),
    Mistake(
        "rolled",
        lambda codes, k: (codes.flatten(1).roll(1, 1), codes.flatten(1)),
        "torch.roll puts the last code at the front. The first input is <sos>, number K; the last code is no input.",
    ),
    Mistake(
        "first code overwritten",
        lambda codes, k: (torch.cat([_shifted(codes, k)[:, :1], codes.flatten(1)[:, 1:]], 1), codes.flatten(1)),
        "<sos> stands in the place of the first code, and the others stay where they are: each position but the first "
        "reads its own target. Everything moves one position to the right.",
    ),
    Mistake(
        "one input too many",
        lambda codes, k: (_longer(codes, k), codes.flatten(1)),
        "there are T + 1 inputs for T targets. That gives T + 1 logits, and whoever pairs the last T of them with the "
        "codes lets each one read its own answer. Leave out the last code: nothing follows it.",
    ),
    Mistake(
        "first code never predicted",
        lambda codes, k: (codes.flatten(1)[:, :-1], codes.flatten(1)[:, 1:]),
        "the first code is an input but never a target, so that no sample could begin. <sos> comes before it.",
    ),
    Mistake(
        "an end that is predicted",
        lambda codes, k: (
            _longer(codes, k),
            torch.cat([codes.flatten(1), torch.full_like(codes.flatten(1)[:, :1], k)], 1),
        ),
        "you predict an end after the last code, as texts need it. Every table has T codes: there is nothing to say.",
    ),
    Mistake(
        "by columns",
        _by_columns,
        "the codes are in the order of columns; raster order is row by row: codes.flatten(1).",
    ),
    Mistake(
        "other way round",
        lambda codes, k: shift(codes, k)[::-1],
        "targets and inputs have changed places; the inputs, which begin with <sos>, come first.",
    ),
    Mistake(
        "written into the codes",
        _same_memory,
        "inputs and targets are one tensor: flatten makes no copy where it need not, and writing into it changes the "
        "codes. torch.cat makes a new one.",
        also=(lambda codes, k: (_shifted(codes, k), _shifted(codes, k)),),
    ),
    Mistake(
        "not flattened",
        lambda codes, k: (_shifted(codes, k).reshape(codes.shape), codes),
        "these are still tables; a row of T = h·w is wanted: codes.flatten(1).",
    ),
    Mistake(
        "all images in one row",
        lambda codes, k: tuple(part.flatten() for part in shift(codes, k)),
        "all images stand in one row. Each image is a sequence of its own: (B, T).",
    ),
    Mistake(
        "as for texts",
        lambda codes, k: (
            codes.flatten(1),
            torch.cat([codes.flatten(1)[:, 1:], torch.full_like(codes.flatten(1)[:, :1], k)], 1),
        ),
        "the inputs are the codes and the targets the codes one position on, as in a language model that is given the "
        "beginning of a text. Here nothing is given: the inputs begin with <sos>, and the targets are all T codes.",
    ),
    Mistake(
        "sos is K + 1",
        lambda codes, k: (_shifted(codes, k + 1), codes.flatten(1)),
        "<sos> has the number K + 1, and K belongs to nothing. Codes are 0 to K − 1; the first free number is K.",
    ),
    Mistake(
        "sos from the codes that occur",
        lambda codes, k: (_shifted(codes, int(codes.max()) + 1), codes.flatten(1)),
        "<sos> is one more than the largest code *of this batch*, and so another number, perhaps a code, in "
        "the next one. It is K, which is given.",
    ),
    Mistake(
        "K written in",
        lambda codes, k: (_shifted(codes, 64), codes.flatten(1)),
        "<sos> is 64 here, whatever K is: use num_codes.",
    ),
    Mistake(
        "sos at the end",
        lambda codes, k: (_shifted(codes, k).roll(-1, 1), codes.flatten(1)),
        "<sos> stands at the end of the inputs; it comes first, and everything else moves one position to the right.",
        also=(
            lambda codes, k: (
                torch.cat([codes.flatten(1)[:, :-1], torch.full_like(codes.flatten(1)[:, :1], k)], 1),
                codes.flatten(1),
            ),
        ),
    ),
    Mistake(
        "a start for each line",
        lambda codes, k: (
            torch.cat([torch.full_like(codes[:, :, :1], k), codes[:, :, :-1]], 2).flatten(1),
            codes.flatten(1),
        ),
        "every line of the table begins with <sos>. A table is one row of h·w codes, and <sos> stands once, "
        "before the first.",
    ),
    Mistake(
        "shifted by two",
        lambda codes, k: (_shifted(_shifted(codes, k)[:, None], k), codes.flatten(1)),
        "the inputs are shifted by two: position t is to read the code just before it.",
    ),
    Mistake(
        "every second line backwards",
        lambda codes, k: shift(torch.where(torch.arange(codes.shape[1])[:, None] % 2 == 1, codes.flip(2), codes), k),
        "every second line is read backwards. Raster order reads each line from left to right: codes.flatten(1).",
    ),
    Mistake(
        "shifted across images",
        lambda codes, k: (
            torch.cat([torch.full_like(codes.flatten()[:1], k), codes.flatten()[:-1]]).reshape(len(codes), -1),
            codes.flatten(1),
        ),
        "the shift runs through all images in one row: the second begins with the last code of the first. "
        "Each begins with <sos>.",
    ),
    Mistake(
        "codes raised by one",
        lambda codes, k: (_shifted(codes + 1, 0), codes.flatten(1)),
        "<sos> is 0 here, and all codes are raised by one to make room. Codes keep their numbers, 0 to K − 1,"
        " and <sos> is K.",
    ),
    Mistake(
        "code 0 ignored",
        lambda codes, k: (_shifted(codes, k), codes.flatten(1).masked_fill(codes.flatten(1) == 0, -100)),
        "code 0 is marked as a target to be ignored (−100), as padding is. It is a code like the others.",
    ),
)

EXERCISE = Exercise(
    name="shift",
    chapter="07_transformer_prior",
    reference=shift,
    cases=cases,
    mistakes=MISTAKES,
    run=call_for("inputs", "targets"),
)

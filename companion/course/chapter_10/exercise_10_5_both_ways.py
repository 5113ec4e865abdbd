"""Exercise 10.5, both ways: what a forward mixer and a backward mixer say of each token."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_of

Mixer = Callable[[Tensor], Tensor]


def both_ways(tokens: Tensor, forwards: Mixer, backwards: Mixer) -> Tensor:
    """The sum of a mixer that reads from the first token on, and of one that reads from the last one on.

    Shapes:
        tokens: (B, T, C), each mixer (B, T, C) → (B, T, C) → (B, T, C).
    """
    return forwards(tokens) + backwards(tokens.flip(1)).flip(1)


class FadingMixer(nn.Module):
    """A causal mixer: of each token a matrix product, plus half of what it made of the tokens before, through tanh.

    It counts the rows that it reads, and in training mode gives twice as much, which tells the modes.
    """

    def __init__(self, channels: int, g: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, generator=g, dtype=dtype))
        self.rows = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.rows += len(tokens)
        memory, said = torch.zeros_like(tokens[:, 0]), []
        for t in range(tokens.shape[1]):
            memory = memory / 2 + (tokens[:, t] @ self.weight).tanh()
            said.append(memory)
        return torch.stack(said, 1) * (1 + self.training)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(105)

    def case(label: str, *shape: int, dtype: torch.dtype = torch.float32, eval_: bool = False) -> Case:
        mixers = (FadingMixer(shape[-1], g, dtype).train(not eval_) for _ in range(2))
        return Case(label, (torch.randn(shape, generator=g, dtype=dtype), *mixers))

    turned = case("two rows of 6 tokens, float64, not contiguous in memory", 2, 6, 3, dtype=torch.float64)
    return [
        case("two rows of 5 tokens with 3 numbers", 2, 5, 3),
        case("one row of 4 tokens with 6 numbers", 1, 4, 6),
        case("three rows of 3 tokens with 3 numbers, in eval()", 3, 3, 3, eval_=True),
        case("rows of a single token", 2, 1, 4),
        Case(turned.label, (turned.arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *turned.arguments[1:])),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The result, the gradients at the tokens and at both mixers' weights, and how much each mixer read."""
    given, *mixers = copy.deepcopy(case.arguments)
    with torch.no_grad():
        implementation(given, *mixers)
    seen: Observed = {"tokens after the call": given}
    tokens, *mixers = copy.deepcopy(case.arguments)
    weights = {"forwards.weight": mixers[0].weight, "backwards.weight": mixers[1].weight}
    result = implementation(tokens.requires_grad_(), *mixers)
    seen = {"the result": result} | seen | gradients_of(result, {"tokens": tokens} | weights)
    seen["how many rows of tokens forwards and backwards read"] = [mixer.rows for mixer in mixers]
    seen["are the mixers in training mode after the call?"] = [mixer.training for mixer in mixers]
    return seen | {f"{name} after the call": weight.detach() for name, weight in weights.items()}


def _variant(
    *,
    before: Callable[[Tensor], Tensor] = lambda tokens: tokens.flip(1),
    after: Callable[[Tensor], Tensor] = lambda said: said.flip(1),
    put: Callable[[Tensor, Tensor], Any] = torch.add,
) -> Callable[[Tensor, Mixer, Mixer], Any]:
    """The right answer with another flip or another sum."""
    return lambda tokens, forwards, backwards: put(forwards(tokens), after(backwards(before(tokens))))


def _flipped(*axes: int) -> Callable[[Tensor], Tensor]:
    return lambda tokens: tokens.flip(axes)


def _negative_step(tokens: Tensor, forwards: Mixer, backwards: Mixer) -> Tensor:
    """As lists are reversed."""
    return forwards(tokens) + backwards(tokens[:, ::-1])[:, ::-1]


def _in_eval(tokens: Tensor, forwards: Any, backwards: Any) -> Tensor:
    return both_ways(tokens, forwards.eval(), backwards.eval())


def _backwards_without_gradient(tokens: Tensor, forwards: Mixer, backwards: Mixer) -> Tensor:
    with torch.no_grad():
        said = backwards(tokens.flip(1)).flip(1)
    return forwards(tokens) + said


def _tokens_written_over(tokens: Tensor, forwards: Mixer, backwards: Mixer) -> Tensor:
    said = forwards(tokens)
    with torch.no_grad():
        tokens.copy_(tokens.flip(1))
    return said + backwards(tokens).flip(1)


def _read_twice(tokens: Tensor, forwards: Mixer, backwards: Mixer) -> Tensor:
    backwards(tokens)
    return both_ways(tokens, forwards, backwards)


MISTAKES = (
    Mistake(
        "not flipped back",
        _variant(after=lambda said: said),
        "what the backward mixer says is not flipped back: it stands at the wrong tokens, the last one's at the first. "
        "Flip its result too.",
    ),
    Mistake(
        "flipped only afterwards",
        _variant(before=lambda tokens: tokens),
        "the backward mixer gets the tokens in their order, and only its result is flipped. Flip the tokens too.",
    ),
    Mistake(
        "no flip",
        _variant(before=lambda tokens: tokens, after=lambda said: said),
        "both mixers read forwards: nothing is flipped, or axis 0, which is the batch. The second mixer gets the "
        "tokens flipped over axis 1, and its result is flipped back.",
    ),
    *(
        Mistake(
            f"flipped over {name}",
            _variant(before=_flipped(*axes), after=_flipped(*axes)),
            hint,
        )
        for name, axes, hint in (
            ("the channels", (2,), "you flip the last axis, the numbers of a token. The sequence is axis 1."),
            (
                "sequence and channels",
                (1, 2),
                "you flip the numbers of each token as well. Only the sequence is reversed: axis 1 alone.",
            ),
        )
    ),
    Mistake(
        "back over the channels",
        _variant(after=lambda said: said.flip(2)),
        "the tokens are flipped over axis 1, but the result is flipped over the last axis. Flip back over axis 1.",
    ),
    Mistake(
        "back over the batch",
        _variant(after=lambda said: said.flip(0)),
        "the tokens are flipped over axis 1, but the result is flipped over axis 0. Flip back over axis 1.",
    ),
    Mistake(
        "flipped over the batch before",
        _variant(before=lambda tokens: tokens.flip(0)),
        "the tokens are flipped over axis 0, which is the batch, and the result over axis 1. Flip both over axis 1.",
        (_variant(before=lambda tokens: tokens.flip(2)),),
    ),
    Mistake(
        "rolled",
        _variant(before=lambda tokens: tokens.roll(-1, 1), after=lambda said: said.roll(1, 1)),
        "roll moves the tokens round; it does not reverse them. Use flip(1).",
    ),
    Mistake(
        "tokens in place of a result",
        lambda tokens, forwards, backwards: forwards(tokens) + tokens.flip(1),
        "the backward mixer is not called: the flipped tokens themselves are added.",
    ),
    Mistake(
        "mixers added",
        lambda tokens, forwards, backwards: forwards + backwards,
        "the mixers themselves are added. Call each with tokens, and add what they give.",
    ),
    Mistake(
        "summed over the sequence",
        _variant(put=lambda one, other: (one + other).sum(1)),
        "the result is summed over the tokens. Each token keeps its own: (B, T, C).",
    ),
    Mistake(
        "the sum flipped",
        lambda tokens, forwards, backwards: (forwards(tokens) + backwards(tokens.flip(1))).flip(1),
        "the sum is flipped, with what the forward mixer says. Only the backward mixer's result is.",
    ),
    Mistake(
        "both flipped",
        lambda tokens, forwards, backwards: forwards(tokens.flip(1)).flip(1) + backwards(tokens.flip(1)).flip(1),
        "both mixers read backwards. The first reads the tokens as they come.",
    ),
    Mistake(
        "mixers exchanged",
        lambda tokens, forwards, backwards: both_ways(tokens, backwards, forwards),
        "the mixers are exchanged: forwards reads the tokens as they come, backwards reads them flipped.",
        (lambda tokens, forwards, backwards: backwards(tokens) + forwards(tokens.flip(1)),),
    ),
    Mistake(
        "forwards twice",
        lambda tokens, forwards, backwards: both_ways(tokens, forwards, forwards),
        "the forward mixer is used in both directions. The other direction has a mixer of its own, backwards.",
        (
            lambda tokens, forwards, backwards: forwards(tokens) + forwards(tokens.flip(1)),
            lambda tokens, forwards, backwards: forwards(tokens) + forwards(tokens),
        ),
    ),
    Mistake(
        "backwards twice",
        lambda tokens, forwards, backwards: both_ways(tokens, backwards, backwards),
        "the backward mixer is used in both directions. The first direction has a mixer of its own, forwards.",
    ),
    Mistake(
        "only forwards",
        lambda tokens, forwards, backwards: forwards(tokens),
        "the backward mixer is missing.",
    ),
    Mistake(
        "only backwards",
        lambda tokens, forwards, backwards: backwards(tokens.flip(1)).flip(1),
        "the forward mixer is missing.",
    ),
    Mistake(
        "one after the other",
        lambda tokens, forwards, backwards: backwards(forwards(tokens).flip(1)).flip(1),
        "one mixer reads what the other said. Both read the tokens, and their results are added.",
        (
            lambda tokens, forwards, backwards: (y := forwards(tokens)) + backwards(y.flip(1)).flip(1),
            lambda tokens, forwards, backwards: forwards(tokens) + backwards(forwards(tokens).flip(1)).flip(1),
            lambda tokens, forwards, backwards: forwards(backwards(tokens.flip(1)).flip(1)),
            lambda tokens, forwards, backwards: backwards(forwards(tokens).flip(1)),
        ),
    ),
    Mistake(
        "averaged",
        _variant(put=lambda one, other: (one + other) / 2),
        "this is the mean of the two; it is to be their sum.",
    ),
    Mistake(
        "subtracted",
        _variant(put=torch.sub),
        "the backward mixer's result is subtracted; it is to be added.",
    ),
    Mistake(
        "multiplied",
        _variant(put=torch.mul),
        "the two results are multiplied; add them.",
    ),
    Mistake(
        "the larger",
        _variant(put=torch.maximum),
        "this is the larger of the two results; add them.",
    ),
    Mistake(
        "side by side",
        _variant(put=lambda one, other: torch.cat([one, other], -1)),
        "the two results stand side by side, 2·C numbers a token. Add them.",
    ),
    Mistake(
        "one row after the other",
        _variant(put=lambda one, other: torch.cat([one, other], 1)),
        "the two results stand one after the other, 2·T tokens. Add them.",
    ),
    Mistake(
        "both apart",
        _variant(put=lambda one, other: (one, other)),
        "the two results come back apart. Add them.",
    ),
    Mistake(
        "stacked",
        _variant(put=lambda one, other: torch.stack([one, other])),
        "the two results are stacked. Add them.",
    ),
    Mistake(
        "with a skip",
        lambda tokens, forwards, backwards: tokens + both_ways(tokens, forwards, backwards),
        "the tokens themselves are added too. The skip connection belongs to the block around this; here only the two "
        "results are added.",
    ),
    Mistake(
        "a negative step",
        _negative_step,
        "tensors know no negative steps, [::-1]: use flip(1).",
    ),
    Mistake(
        "in eval()",
        _in_eval,
        "your code switches the mixers to eval(), and leaves them so. Only call them.",
    ),
    Mistake(
        "a mixer called too often",
        _read_twice,
        "the result is right, but a mixer runs more than once. Call each once.",
        (lambda tokens, forwards, backwards: both_ways(tokens, forwards, backwards) + 0 * forwards(tokens),),
    ),
    Mistake(
        "backwards without gradient",
        _backwards_without_gradient,
        "the values agree, but the backward mixer gets no gradient (detach, or no_grad): it could not learn.",
    ),
    Mistake(
        "detached",
        lambda tokens, forwards, backwards: both_ways(tokens, forwards, backwards).detach(),
        "the values agree, but the result is detached: neither mixer could learn.",
    ),
    Mistake(
        "tokens written over",
        _tokens_written_over,
        "the caller's tokens are written over. tokens.flip(1) makes a new tensor; work with that.",
    ),
)

EXERCISE = Exercise(
    name="both_ways",
    chapter="10_backbones",
    reference=both_ways,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

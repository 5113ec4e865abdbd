"""Exercise 4.3, perplexity of a table of counts, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.metrics import perplexity


def cases() -> Sequence[Case]:
    rows = {
        "counts 3, 1, 4, 1, 5": [3, 1, 4, 1, 5],
        "some codes never chosen": [0, 7, 0, 2, 0, 0, 1],
        "one code takes all": [0, 12, 0],
        "one code in all": [4],
        "large counts": [2**31 + 5, 2**30, 2**20, 0, 3],
    }
    return [Case(label, (torch.tensor(counts),)) for label, counts in rows.items()]


def _p(counts: Tensor) -> Tensor:
    return counts.double() / counts.sum()


def _with_epsilon(counts: Tensor, epsilon: float) -> float:
    p = _p(counts)
    return float((-(p * (p + epsilon).log()).sum()).exp())


def _of_shares(p: Tensor) -> float:
    return float((-torch.xlogy(p, p).sum()).exp())


MISTAKES = (
    Mistake(
        "entropy",
        lambda c: -torch.xlogy(_p(c), _p(c)).sum().item(),
        "this is the entropy; the perplexity is its exponential.",
    ),
    Mistake(
        "base 2 inside, e outside",
        lambda c: (-(_p(c) * _p(c).clamp(min=1e-300).log2()).sum()).exp().item(),
        "the logarithm has base 2 and the exponential base e: use the same in both.",
    ),
    Mistake(
        "sign",
        lambda c: torch.xlogy(_p(c), _p(c)).sum().exp().item(),
        "the entropy has a minus sign: H = −Σ p log p. Without it you get one over the perplexity.",
    ),
    Mistake(
        "NaN for unused codes",
        lambda c: (-(_p(c) * _p(c).log()).sum()).exp().item(),
        "0 · log 0 is NaN for a computer: 0 times minus infinity. torch.xlogy(p, p) is 0 there.",
    ),
    Mistake(
        "a small number added",
        lambda c: (-(_p(c) * (_p(c) + 1e-3).log()).sum()).exp().item(),
        "a number is added to p inside the logarithm, and the result is off by it. torch.xlogy(p, p) needs none.",
        also=(
            lambda c: _with_epsilon(c, 1e-5),
            lambda c: _with_epsilon(c, 1e-6),
            lambda c: _with_epsilon(c, 1e-8),
            lambda c: _with_epsilon(c, 1e-10),
            lambda c: _with_epsilon(c, 1e-12),
        ),
    ),
    Mistake(
        "not divided",
        lambda c: (-torch.xlogy(c.double(), c.double()).sum()).exp().item(),
        "the counts are not shares yet: divide by their sum first.",
    ),
    Mistake(
        "divided by K",
        lambda c: (-torch.xlogy(c.double() / len(c), c.double() / len(c)).sum()).exp().item(),
        "you divide by the number of codes; shares are counts over the *sum of the counts*.",
    ),
    Mistake(
        "mean",
        lambda c: (-torch.xlogy(_p(c), _p(c)).mean()).exp().item(),
        "the entropy is the sum over the codes, not the mean.",
    ),
    Mistake(
        "softmax",
        lambda c: (-torch.xlogy(c.double().softmax(0), c.double().softmax(0)).sum()).exp().item(),
        "the counts went through a softmax. They are not logits: divide by their sum.",
    ),
    Mistake(
        "number of used codes",
        lambda c: float((c > 0).sum()),
        "this counts the codes in use; a code chosen once then weighs as much as any other.",
    ),
    Mistake(
        "inverse Simpson",
        lambda c: (1 / _p(c).square().sum()).item(),
        "1/Σp² is another count of effective codes (the inverse Simpson index). The perplexity is exp(−Σ p log p).",
    ),
    Mistake(
        "a tensor",
        lambda c: (-torch.xlogy(_p(c), _p(c)).sum()).exp(),
        "the number is right, but it is a tensor; a Python float is wanted: .item().",
    ),
    Mistake(
        "powers of two",
        lambda c: (2 ** (-torch.xlogy(_p(c), _p(c)).sum())).item(),
        "the logarithm is the natural one and the power has base 2: use exp.",
    ),
    Mistake(
        "shares in float32",
        lambda c: (-torch.xlogy(c / c.sum(), c / c.sum()).sum()).exp().item(),
        "right to six digits or so: counts / counts.sum() is float32. Divide in float64: counts.double() / "
        "counts.sum().",
    ),
    Mistake(
        "one more for each code",
        lambda c: _of_shares((c + 1).double() / (c + 1).sum()),
        "codes that were never chosen are counted as if they were (+ 1, or a clamp). Their share is 0.",
        also=(lambda c: _of_shares(c.clamp(min=1).double() / c.clamp(min=1).sum()),),
    ),
    Mistake(
        "divided by the largest",
        lambda c: _of_shares(c.double() / c.max()),
        "you divide by the largest count; shares are counts over the *sum* of the counts.",
    ),
    Mistake("number of codes", lambda c: float(len(c)), "this is the number of codes, K, whatever the counts are."),
    Mistake(
        "usage",
        lambda c: (c > 0).double().mean().item(),
        "this is the usage, the share of codes in use. The perplexity is exp(−Σ p log p).",
    ),
    Mistake(
        "mean of the logarithms",
        lambda c: (-_p(c)[c > 0].log().mean()).exp().item(),
        "the logarithms are averaged evenly. Each is weighted by its own share: Σ p log p.",
    ),
    Mistake(
        "sum of the logarithms",
        lambda c: (-_p(c)[c > 0].log().sum()).exp().item(),
        "the factor p before log p is missing: Σ p log p.",
    ),
    Mistake(
        "base 10 inside",
        lambda c: (-(_p(c) * _p(c).clamp(min=1e-300).log10()).sum()).exp().item(),
        "the logarithm has base 10 and the exponential base e: use the natural one, log.",
    ),
    Mistake(
        "divided by K at the end",
        lambda c: _of_shares(_p(c)) / len(c),
        "the result is divided by K. The perplexity itself is wanted, a number of codes.",
    ),
    Mistake(
        "whole shares",
        lambda c: _of_shares((c // c.sum()).double()),
        "// rounds the shares down to 0 or 1: divide by /.",
    ),
    Mistake(
        "rounded to a whole number",
        lambda c: int(_of_shares(_p(c))),
        "the result is rounded to a whole number of codes. It is a float.",
        also=(lambda c: float(round(_of_shares(_p(c)))),),
    ),
    Mistake(
        "1 − p as well",
        lambda c: (-torch.xlogy(_p(c), _p(c)).sum() - torch.xlogy(1 - _p(c), 1 - _p(c)).sum()).exp().item(),
        "the terms (1 − p) log(1 − p) belong to yes-or-no questions. The entropy of K codes is −Σ p log p.",
    ),
    Mistake(
        "first code left out",
        lambda c: _of_shares(c[1:].double() / c[1:].sum().clamp(min=1)),
        "code 0 is left out. It is a code like the others.",
    ),
)

EXERCISE = Exercise(
    name="perplexity",
    chapter="04_vq_vae",
    reference=perplexity,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
    tolerance=1e-10,
)

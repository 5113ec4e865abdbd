"""Exercise 11.1, a rate from a histogram: what new images cost with a table made from the old ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def code_length(codes: Tensor, new_codes: Tensor, num_codes: int) -> Tensor:
    """Bits of each new image, with the probabilities that codes of other images give by Laplace's rule.

    The cross-entropy of a histogram (Shannon 1948, section 9): a code k costs −log₂ p(k), with
    p(k) = (n_k + 1) / (n + K).

    Shapes:
        codes: (N, h, w); new_codes: (M, h, w) → (M,) float32
    """
    counts = torch.bincount(codes.flatten(), minlength=num_codes) + 1
    bits = -(counts / counts.sum()).log2()
    return bits[new_codes].flatten(1).sum(1)


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(111)

    def skewed(n: int, h: int, w: int, k: int) -> Tensor:
        return (torch.rand(n, h, w, generator=g) ** 3 * k).long()

    return [
        Case("30 images of 3×5 codes, 20 new ones, 11 codes", (skewed(30, 3, 5, 11), skewed(20, 3, 5, 11), 11)),
        Case("new images with codes that no old one has, 16 codes", (skewed(9, 2, 4, 8), skewed(6, 2, 4, 8) + 8, 16)),
        Case("20 images of 16×16 codes, 3 new ones, 64 codes", (skewed(20, 16, 16, 64), skewed(3, 16, 16, 64), 64)),
        Case("one old image, one new one, 4 codes", (skewed(1, 2, 3, 4), skewed(1, 2, 3, 4), 4)),
        Case(
            "codes that are not contiguous in memory, the last two of 9 never used",
            (
                torch.randint(0, 7, (4, 6, 12), generator=g).movedim(2, 0),
                torch.randint(0, 7, (6, 4, 5), generator=g).transpose(0, 2).contiguous().mT,
                9,
            ),
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As ``call``; float64 is as good as float32."""
    seen = call(implementation, case)
    result = seen["the result"]
    if isinstance(result, Tensor) and result.dtype == torch.float64:
        seen["the result"] = result.float()
    return seen


def _variant(
    *,
    table: Callable[[Tensor, Tensor], Tensor] = lambda codes, new: codes,
    add: float = 1.0,
    total: Callable[[Tensor, int], Any] = lambda counts, k: counts.sum(),
    cost: Callable[[Tensor], Tensor] = lambda p: -p.log2(),
    sum_: Callable[[Tensor], Any] = lambda bits: bits.flatten(1).sum(1),
) -> Callable[[Tensor, Tensor, int], Any]:
    """The right answer with one of its parts replaced."""

    def bits(codes: Tensor, new_codes: Tensor, num_codes: int) -> Any:
        counts = torch.bincount(table(codes, new_codes).flatten(), minlength=num_codes) + add
        return sum_(cost(counts / total(counts, num_codes))[new_codes])

    return bits


def _entropy_of_new(codes: Tensor, new_codes: Tensor, num_codes: int) -> Tensor:
    """Each new image costs the entropy of the table, whatever its codes are."""
    counts = torch.bincount(codes.flatten(), minlength=num_codes) + 1
    p = counts / counts.sum()
    return -(p * p.log2()).sum() * new_codes[0].numel() * torch.ones(len(new_codes))


def _by_position(codes: Tensor, new_codes: Tensor, num_codes: int) -> Tensor:
    """A table for each position."""
    one_hot = torch.nn.functional.one_hot(codes.flatten(1), num_codes).sum(0) + 1  # (T, K)
    bits = -(one_hot / one_hot.sum(1, keepdim=True)).log2()
    new = new_codes.flatten(1)
    return bits[torch.arange(new.shape[1]), new].sum(1)


def _by_image(codes: Tensor, new_codes: Tensor, num_codes: int) -> Tensor:
    """A table for each new image, from its own codes."""
    return torch.cat([code_length(one[None], one[None], num_codes) for one in new_codes])


MISTAKES = (
    Mistake(
        "nats",
        _variant(cost=lambda p: -p.log()),
        "these are nats. For bits take the logarithm to base 2.",
    ),
    Mistake(
        "no minus",
        _variant(cost=torch.log2),
        "the sign is wrong: a probability is at most 1, its logarithm at most 0, and a cost is positive.",
    ),
    Mistake(
        "no logarithm",
        _variant(cost=lambda p: 1 / p),
        "1 / p is how many equally likely codes there would be; the bits are its logarithm to base 2.",
        also=(_variant(cost=lambda p: p),),
    ),
    Mistake(
        "no Laplace",
        _variant(add=0.0),
        "a code that no old image has gets the probability 0, and a new image with it costs infinitely many bits. Add "
        "1 to each count (Laplace's rule).",
    ),
    Mistake(
        "a small number added",
        _variant(add=1e-6),
        "you add a very small number to the counts, so that a code that was never seen costs far too much. Laplace's "
        "rule adds 1 to each.",
        also=(_variant(add=1e-5), _variant(add=1e-8), _variant(add=1e-4), _variant(add=1e-3)),
    ),
    Mistake(
        "a half added",
        _variant(add=0.5),
        "you add ½ to each count, which is another rule (Krichevsky and Trofimov). Here it is 1.",
    ),
    Mistake(
        "divided by n",
        _variant(total=lambda counts, k: counts.sum() - k),
        "the probabilities do not sum to 1: after adding 1 to each of K counts, divide by n + K.",
    ),
    Mistake(
        "divided by n + 1",
        _variant(total=lambda counts, k: counts.sum() - k + 1),
        "the probabilities do not sum to 1: 1 was added to each of K counts, so divide by n + K, not by n + 1.",
    ),
    Mistake(
        "divided by the images",
        lambda codes, new, k: (
            -((torch.bincount(codes.flatten(), minlength=k) + 1) / len(codes)).log2()[new].flatten(1).sum(1)
        ),
        "you divide the counts by the number of images. A probability is a share of all codes: divide by the sum of "
        "the counts.",
    ),
    Mistake(
        "the table of the new images",
        _variant(table=lambda codes, new: new),
        "the table is made from the new images themselves. Whoever reads the file does not have it: count `codes`, "
        "then look `new_codes` up.",
    ),
    Mistake(
        "the table of both",
        _variant(table=lambda codes, new: torch.cat([codes.flatten(), new.flatten()])),
        "the new images are counted too. They are to be coded by a table that was made without them.",
    ),
    Mistake(
        "the cost of the old images",
        lambda codes, new, k: code_length(codes, codes, k),
        "this is what the old images cost. Look up the bits of `new_codes`.",
    ),
    Mistake(
        "the two exchanged",
        lambda codes, new, k: code_length(new, codes, k),
        "the two arguments are exchanged: the table comes from `codes`, the images to be coded are `new_codes`.",
    ),
    Mistake(
        "a table for each image",
        _by_image,
        "each new image is coded by a histogram of its own. There is one table, of all codes of the old images.",
    ),
    Mistake(
        "a table for each position",
        _by_position,
        "you made a table for each position. That can be a good idea (chapter 04), but here there is one for all.",
    ),
    Mistake(
        "entropy",
        _entropy_of_new,
        "this is the entropy of the table times the number of codes, the same for every image. What an image costs "
        "depends on which codes *it* has: look each of them up.",
    ),
    Mistake(
        "nominal",
        lambda codes, new, k: torch.full((len(new),), new[0].numel() * float(torch.tensor(k).log2())),
        "this is the nominal rate, T·log₂K, which needs no table. Frequent codes are to cost less than rare ones.",
    ),
    Mistake(
        "bits a code",
        _variant(sum_=lambda bits: bits.flatten(1).mean(1)),
        "this is the mean of the codes of an image, bits a code. Bits an image are the sum.",
    ),
    Mistake(
        "one number",
        _variant(sum_=lambda bits: bits.flatten(1).sum(1).mean()),
        "this is the mean over the images. Wanted is a number for each, (M,).",
    ),
    Mistake(
        "sum of all",
        _variant(sum_=lambda bits: bits.sum()),
        "this is the sum over all images. Wanted is a number for each, (M,).",
    ),
    Mistake(
        "not summed",
        _variant(sum_=lambda bits: bits),
        "these are the bits of each code, (M, h, w). Sum over the two axes of positions.",
    ),
    Mistake(
        "summed over rows",
        _variant(sum_=lambda bits: bits.sum(-1)),
        "you sum over one axis of positions only; there are two, h and w.",
        also=(_variant(sum_=lambda bits: bits.sum(1)),),
    ),
    Mistake(
        "softmax of the counts",
        lambda codes, new, k: (
            -torch.bincount(codes.flatten(), minlength=k).float().softmax(0).log2()[new].flatten(1).sum(1)
        ),
        "a softmax makes probabilities of logits. Counts become probabilities when they are divided by their sum.",
    ),
    Mistake(
        "weighted by p",
        _variant(cost=lambda p: -p * p.log2()),
        "each code costs −log₂ p(k). The weights p(k) belong to an average over codes (the entropy); here you add "
        "up the codes that are there.",
    ),
    Mistake(
        "1/K added",
        lambda codes, new, k: _variant(add=1 / k)(codes, new, k),
        "Laplace's rule adds 1 to each count, not 1/K.",
    ),
    Mistake(
        "rounded",
        lambda codes, new, k: code_length(codes, new, k).round(),
        "you round. The bits of a code need not be whole numbers.",
        also=(
            lambda codes, new, k: code_length(codes, new, k).ceil(),
            _variant(cost=lambda p: (-p.log2()).ceil()),
            _variant(cost=lambda p: (-p.log2()).round()),
        ),
    ),
    Mistake(
        "summed over images",
        _variant(sum_=lambda bits: bits.flatten(1).sum(0)),
        "you sum over the images, axis 0. Sum over the positions of each image: axes 1 and 2.",
    ),
    Mistake(
        "a list",
        _variant(sum_=lambda bits: bits.flatten(1).sum(1).tolist()),
        "the numbers are right; leave them in a tensor, (M,).",
    ),
    Mistake(
        "no minlength",
        lambda codes, new, k: -((c := torch.bincount(codes.flatten()) + 1) / c.sum()).log2()[new].flatten(1).sum(1),
        "the histogram ends at the largest code that was seen. With `minlength=num_codes` it has a place for each of "
        "the K codes.",
    ),
)

EXERCISE = Exercise(
    name="code_length",
    chapter="11_your_own_images",
    reference=code_length,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

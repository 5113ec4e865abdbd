"""Exercise 6.5, the rate of a stack: nominal, by entropy of each depth, and joint."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.metrics import perplexity
from companion.quantizers import rate_bits


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(64)
    first = torch.randint(0, 5, (40, 3, 2), generator=g) * torch.randint(0, 2, (40, 3, 2), generator=g)
    second = (first + torch.randint(0, 2, first.shape, generator=g)) % 6
    third = torch.randint(0, 3, first.shape, generator=g)
    many = torch.randint(0, 16, (60, 5, 3), generator=g)
    return [
        Case("three depths that know of each other, K = 6", (torch.stack([first, second, third], -1), 6)),
        Case("two depths, K = 8", (torch.stack([first, (5 * first) % 7], -1), 8)),
        Case("one depth, K = 5", (first[..., None], 5)),
        Case("one image, one position, four depths", (torch.tensor([[[[3, 0, 3, 3]]]]), 4)),
        Case("sequences in place of grids, three depths, K = 16", (many, 16)),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """As ``call``, but each number is compared under its own name, and what kind of number it is, apart from that."""
    seen = call(implementation, case)
    result = seen.pop("the result")
    if not isinstance(result, dict):
        return {"the result": result} | seen
    tensors = any(isinstance(value, Tensor) for value in result.values())
    numbers: Observed = {"the result": f"a dict: {', '.join(sorted(map(str, result)))}"}
    numbers["the kind of its numbers"] = "tensors" if tensors else "Python's own"
    for name, value in result.items():
        single = isinstance(value, Tensor) and value.numel() == 1
        number = float(value) if single else value
        nothing = isinstance(number, float) and abs(number) < 1e-9  # of one stack: 0 but for rounding
        numbers[f'result["{name}"]'] = 0.0 if nothing else number
    return numbers | seen


def _entropy(rows: Tensor) -> float:
    """Bits of the shares of whole rows (n, m)."""
    return math.log2(perplexity(torch.unique(rows, dim=0, return_counts=True)[1]))


def _variant(**others: Callable[[Tensor, int], float]) -> Callable[[Tensor, int], dict[str, float]]:
    """The right answer with some of the numbers replaced; they get the stacks (n, R) and K."""

    def rates(indices: Tensor, num_codes: int) -> dict[str, float]:
        stacks = indices.reshape(-1, indices.shape[-1])
        right = rate_bits(indices, num_codes)
        return right | {name: other(stacks, num_codes) for name, other in others.items()}

    return rates


def _grids_only(indices: Tensor, num_codes: int) -> dict[str, float]:
    n, h, w, r = indices.shape
    return rate_bits(indices.reshape(n * h * w, r), num_codes)


def _of_counts(indices: Tensor, num_codes: int) -> dict[str, float]:
    def entropy(codes: Tensor, k: int) -> float:
        p = torch.bincount(codes, minlength=k).double() / len(codes)
        return -(p * p.log2()).sum().item()

    stacks = indices.reshape(-1, indices.shape[-1])
    return rate_bits(indices, num_codes) | {"entropy": sum(entropy(column, num_codes) for column in stacks.unbind(1))}


def _nats(indices: Tensor, num_codes: int) -> dict[str, float]:
    return {name: value * math.log(2) for name, value in rate_bits(indices, num_codes).items()}


def _logarithms_of(base: int) -> Callable[[Tensor, int], dict[str, float]]:
    def rates(indices: Tensor, num_codes: int) -> dict[str, float]:
        right = rate_bits(indices, num_codes)
        return {name: value if name == "nominal" else value / math.log2(base) for name, value in right.items()}

    return rates


def _positions_apart(indices: Tensor, num_codes: int) -> dict[str, float]:
    rates = [rate_bits(place, num_codes) for place in indices.flatten(1, -2).unbind(1)]
    return {name: math.fsum(one[name] for one in rates) / len(rates) for name in rates[0]}


def _per_image(indices: Tensor, num_codes: int) -> dict[str, float]:
    positions = math.prod(indices.shape[1:-1])
    return {name: positions * value for name, value in rate_bits(indices, num_codes).items()}


MISTAKES = (
    Mistake(
        "codes counted, not stacks",
        _variant(nominal=lambda stacks, k: math.log2(stacks.shape[1] * k)),
        "log₂(R·K) is for one choice out of R·K codes. A stack is R choices out of K each: K^R stacks, R·log₂K bits.",
    ),
    Mistake(
        "depth forgotten",
        _variant(nominal=lambda stacks, k: math.log2(k)),
        "`nominal` is what one code costs; a stack has R of them.",
    ),
    Mistake(
        "nats",
        _nats,
        "some or all of these are nats; divide by log 2, or take log2, to get bits.",
        also=(
            _variant(nominal=lambda stacks, k: stacks.shape[1] * math.log(k)),
            lambda indices, k: _nats(indices, k) | {"nominal": rate_bits(indices, k)["nominal"]},
        ),
    ),
    Mistake(
        "perplexities",
        _variant(
            entropy=lambda stacks, k: sum(2 ** _entropy(column[:, None]) for column in stacks.unbind(1)),
            joint=lambda stacks, k: 2 ** _entropy(stacks),
        ),
        "these are perplexities, exp of an entropy: `entropy` and `joint` are the entropies themselves. "
        "math.log2(perplexity) is an entropy in bits.",
    ),
    Mistake(
        "tensors",
        lambda indices, k: {name: torch.tensor(value) for name, value in rate_bits(indices, k).items()},
        "the numbers agree, but they are tensors, and Python's own are wanted: .item() makes a number of a tensor.",
    ),
    Mistake(
        "an image's bits",
        _per_image,
        "these are the bits of a whole image; here they are wanted for one position.",
    ),
    Mistake(
        "depths thrown together",
        _variant(entropy=lambda stacks, k: stacks.shape[1] * _entropy(stacks.reshape(-1, 1))),
        "`entropy` uses one table of shares for all depths together. Each depth has a codebook of its own, and so "
        "shares of its own: add up R entropies.",
        also=(_variant(entropy=lambda stacks, k: _entropy(stacks.reshape(-1, 1))),),
    ),
    Mistake(
        "entropies averaged",
        _variant(entropy=lambda stacks, k: rate_bits(stacks, k)["entropy"] / stacks.shape[1]),
        "`entropy` is the mean over the depths; all R codes have to be written down, so it is their sum.",
    ),
    Mistake(
        "first depth only",
        _variant(entropy=lambda stacks, k: _entropy(stacks[:, :1])),
        "`entropy` is that of the first depth; add those of the others.",
    ),
    Mistake(
        "joint of sums",
        _variant(joint=lambda stacks, k: _entropy(stacks.sum(1, keepdim=True))),
        "different stacks have the same sum of indices (1 + 2 = 2 + 1), and you count them as one. Number the stacks "
        "as k₁ + K·k₂ + …, or use torch.unique with dim=0.",
    ),
    Mistake(
        "joint as a sum",
        _variant(joint=lambda stacks, k: rate_bits(stacks, k)["entropy"]),
        "`joint` is the sum of the depths' entropies once more. Count how often each whole stack occurs.",
    ),
    Mistake(
        "joint of used stacks",
        _variant(joint=lambda stacks, k: math.log2(len(torch.unique(stacks, dim=0)))),
        "`joint` counts the different stacks as if all were equally frequent; take the entropy of their shares.",
    ),
    Mistake(
        "joint divided by depth",
        _variant(joint=lambda stacks, k: _entropy(stacks) / stacks.shape[1]),
        "`joint` is what a code costs on average; what the whole stack costs is wanted.",
    ),
    Mistake(
        "usage in place of K",
        _variant(
            nominal=lambda stacks, k: math.fsum(math.log2(len(torch.unique(codes))) for codes in stacks.unbind(1))
        ),
        "`nominal` is to know nothing of how often codes occur, not even which never do: R·log₂K.",
        also=(
            _variant(nominal=lambda stacks, k: stacks.shape[1] * math.log2(len(stacks.unique()))),
            _variant(nominal=lambda stacks, k: stacks.shape[1] * math.log2(int(stacks.max()) + 1)),
        ),
    ),
    Mistake(
        "stacks numbered with 10",
        _variant(joint=lambda stacks, k: _entropy(sum(10**r * one for r, one in enumerate(stacks.unbind(1)))[:, None])),
        "you number the stacks as k₁ + 10·k₂ + …: with more than 10 codes different stacks get the same number. "
        "k₁ + K·k₂ + …, or torch.unique with dim=0.",
        also=(
            _variant(
                joint=lambda stacks, k: _entropy(
                    sum(10**r * one for r, one in enumerate(stacks.flip(1).unbind(1)))[:, None]
                )
            ),
        ),
    ),
    Mistake(
        "grids only",
        _grids_only,
        "you unpack the shape into four, N, h, w, R, and there may be any number of spatial axes: "
        "indices.reshape(-1, indices.shape[-1]).",
    ),
    Mistake(
        "0 times the logarithm of 0",
        _of_counts,
        "p·log p is NaN where a code never occurs: 0 · −∞. torch.xlogy, or the shares of the codes that occur.",
    ),
    Mistake(
        "stacks cut across",
        lambda indices, k: rate_bits(indices.reshape(indices.shape[-1], -1).T, k),
        "your rows are no stacks: reshape(R, -1) cuts the numbers in other places. The depth is the last axis already: "
        "reshape(-1, R).",
    ),
    Mistake(
        "base 10",
        _logarithms_of(10),
        "the logarithm of the entropies is to base 10; bits have base 2.",
    ),
    Mistake(
        "number of stacks",
        _variant(nominal=lambda stacks, k: k ** stacks.shape[1]),
        "K^R is the number of stacks; the bits are its logarithm, R·log₂K.",
    ),
    Mistake(
        "rounded up",
        _variant(nominal=lambda stacks, k: stacks.shape[1] * math.ceil(math.log2(k))),
        "`nominal` is rounded up to whole bits for each code. R·log₂K need not be whole.",
    ),
    Mistake(
        "joint of single codes",
        _variant(joint=lambda stacks, k: _entropy(stacks.reshape(-1, 1))),
        "`joint` counts single codes, not stacks: torch.unique(rows, dim=0, …) counts rows.",
    ),
    Mistake(
        "order lost",
        _variant(joint=lambda stacks, k: _entropy(stacks.sort(1).values)),
        "`joint` takes stacks with the same codes in another order for equal. Which depth has which code matters.",
    ),
    Mistake(
        "joint of columns",
        _variant(joint=lambda stacks, k: _entropy(stacks.T)),
        "`joint` counts columns; a stack is a row: dim=0.",
    ),
    Mistake(
        "neighbours",
        _variant(
            joint=lambda stacks, k: math.log2(
                perplexity(torch.unique_consecutive(stacks, dim=0, return_counts=True)[1])
            )
        ),
        "unique_consecutive counts runs of equal neighbours; torch.unique counts all that are equal.",
    ),
    Mistake(
        "joint is nominal",
        _variant(joint=lambda stacks, k: stacks.shape[1] * math.log2(k)),
        "`joint` is the nominal rate once more. Count how often each whole stack occurs, and take the entropy of that.",
    ),
    Mistake(
        "joint of two depths",
        _variant(joint=lambda stacks, k: _entropy(stacks[:, :2])),
        "`joint` looks at the first two depths only; a stack has R codes.",
    ),
    Mistake(
        "first depth R times",
        _variant(entropy=lambda stacks, k: stacks.shape[1] * _entropy(stacks[:, :1])),
        "`entropy` is that of the first depth, R times. Each depth has shares of its own.",
    ),
    Mistake(
        "names exchanged",
        lambda indices, k: (right := rate_bits(indices, k)) | {"entropy": right["joint"], "joint": right["entropy"]},
        "`entropy` and `joint` are exchanged: `joint` is the one of whole stacks.",
    ),
    Mistake(
        "rounded",
        lambda indices, k: {name: round(value, 2) for name, value in rate_bits(indices, k).items()},
        "the numbers are rounded. Give them as they are; rounding is for printing.",
        also=(
            lambda indices, k: (
                {name: round(value, 2) for name, value in rate_bits(indices, k).items()}
                | {"nominal": rate_bits(indices, k)["nominal"]}
            ),
        ),
    ),
    Mistake(
        "counts from one",
        _variant(
            entropy=lambda stacks, k: sum(
                math.log2(perplexity(1 + torch.bincount(codes, minlength=k))) for codes in stacks.unbind(1)
            )
        ),
        "every code is counted once too often. Rates are those of the counts as they are; adding one is for "
        "predicting codes not seen yet.",
    ),
    Mistake(
        "codes in use",
        _variant(entropy=lambda stacks, k: sum(math.log2(len(codes.unique())) for codes in stacks.unbind(1))),
        "`entropy` takes the codes in use as if all were equally frequent; take the entropy of their shares.",
    ),
    Mistake(
        "first image only",
        lambda indices, k: rate_bits(indices[:1], k),
        "only the first image is counted: reshape(-1, R) has the positions of all.",
    ),
    Mistake(
        "positions apart",
        _positions_apart,
        "each position has shares of its own here, and the entropies are averaged. All positions share one "
        "table of shares.",
    ),
    Mistake(
        "numbered with R",
        _variant(
            joint=lambda stacks, k: _entropy(
                (stacks * stacks.shape[1] ** torch.arange(stacks.shape[1])).sum(1, keepdim=True)
            )
        ),
        "you number the stacks in base R, and different ones get the same number: the base is K.",
    ),
)

EXERCISE = Exercise(
    name="rate_bits",
    chapter="06_residual_quantisation",
    reference=rate_bits,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

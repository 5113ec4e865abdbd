"""Exercise 5.1, counts and sums of the vectors that chose each code, without a one-hot matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import LargestTensor, call_for
from companion.quantizers import code_statistics


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(50)
    z = torch.randn(40, 3, generator=g) + 0.5
    k = torch.tensor([0, 2, 3, 5])[torch.randint(0, 4, (40,), generator=g)]  # of 7 codes; 1, 4 and 6 are not chosen
    wide = torch.randn(4, 11, generator=g)
    far = torch.tensor([[3e9 + 0.7, -1e9], [-3e9, 1e9 - 0.3], [2.0, 0.5]], dtype=torch.float64)
    return [
        Case("40 vectors, 7 codes of which three are not chosen", (z, k, 7)),
        Case("one vector, 5 codes", (z[:1], torch.tensor([3]), 5)),
        Case("one code, in float64", (z[:6].double(), torch.zeros(6, dtype=torch.int64), 1)),
        Case("float64 vectors that nearly cancel", (far, torch.tensor([1, 1, 1]), 2)),
        Case(
            "vectors that are not contiguous in memory",
            (wide.T, torch.tensor([8, 0, 8, 1, 1, 0, 8, 5, 1, 0, 0]), 9),
        ),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Counts and sums by name, and for right ones: was there a matrix of N × K numbers on the way?"""
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        seen = call_for("counts", "sums")(implementation, case)
    vectors, indices, num_codes = case.arguments
    n, d = vectors.shape
    telling = n * num_codes > 2 * d * max(n, num_codes)  # else arguments and results are themselves as large
    right = all(
        isinstance(part := seen.get(f"the {name}"), Tensor)
        and (part.shape, part.dtype) == (want.shape, want.dtype)
        and torch.allclose(part, want, rtol=1e-4, atol=1e-4)
        for name, want in zip(("counts", "sums"), code_statistics(vectors, indices, num_codes), strict=True)
    )
    if telling and right:
        matrix = largest.numbers >= n * num_codes
        seen["the largest tensor on the way"] = "N × K numbers or more" if matrix else "fewer than N × K numbers"
    return seen


Statistics = Callable[[Tensor, Tensor, int], Any]


def _one_hot(z: Tensor, k: Tensor, num_codes: int) -> Tensor:
    return functional.one_hot(k, num_codes).to(z.dtype)  # (N, K)


def _last_wins(z: Tensor, k: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    counts, sums = code_statistics(z, k, num_codes)
    sums = torch.zeros_like(sums)
    for i in range(len(k)):  # as sums[k] += z does: of repeated indices the last one stays
        sums[k[i]] = z[i]
    return counts, sums


def _only_chosen(z: Tensor, k: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    counts, sums = code_statistics(z, k, num_codes)
    return counts[counts > 0], sums[counts > 0]


MISTAKES = (
    Mistake(
        "no minlength",
        lambda z, k, num_codes: (torch.bincount(k).to(z.dtype), code_statistics(z, k, num_codes)[1]),
        "torch.bincount stops at the largest index that occurs: with minlength=num_codes there is a number for every "
        "code, also for the last ones that nothing chose.",
    ),
    Mistake(
        "as many codes as occur",
        lambda z, k, num_codes: code_statistics(z, k, int(k.max()) + 1),
        "both results have as many rows as the largest index says; they need num_codes rows.",
    ),
    Mistake(
        "only the chosen",
        _only_chosen,
        "the codes that nothing chose are left out. They have a row too: count 0, sum 0; else row k is not code k.",
    ),
    Mistake(
        "whole numbers",
        lambda z, k, num_codes: (torch.bincount(k, minlength=num_codes), code_statistics(z, k, num_codes)[1]),
        "the counts are whole numbers (int64); give them in the vectors' dtype, as they will be averaged.",
    ),
    Mistake(
        "always float32",
        lambda z, k, num_codes: tuple(part.float() for part in code_statistics(z, k, num_codes)),
        "float64 vectors give float32 results: make the tensors in the vectors' dtype (vectors.new_zeros, "
        ".to(vectors.dtype)).",
    ),
    Mistake(
        "the last one stays",
        _last_wins,
        "sums[indices] += vectors adds nothing up: where an index repeats, only one vector stays. "
        "index_add_ (or index_put_ with accumulate=True) adds them all.",
    ),
    Mistake(
        "one-hot",
        lambda z, k, num_codes: (_one_hot(z, k, num_codes).sum(0), _one_hot(z, k, num_codes).T @ z),
        "the values are right, but on the way there is a matrix of N × K numbers, nearly all of them 0 (one_hot, or a "
        "comparison of every index with every code). bincount and index_add_ do without.",
    ),
    Mistake(
        "means",
        lambda z, k, num_codes: (
            (n := code_statistics(z, k, num_codes))[0],
            n[1] / n[0].clamp(min=1)[:, None],
        ),
        "these are means; wanted are the sums, before any division: sums can be added over processes, means cannot.",
    ),
    Mistake(
        "shares",
        lambda z, k, num_codes: (
            code_statistics(z, k, num_codes)[0] / len(k),
            code_statistics(z, k, num_codes)[1],
        ),
        "the counts add up to 1: you divide by the number of vectors. Wanted is how many vectors chose each code.",
    ),
    Mistake(
        "shares, and sums over N",
        lambda z, k, num_codes: tuple(part / len(k) for part in code_statistics(z, k, num_codes)),
        "both are divided by the number of vectors, N. Leave the counts and sums as they are.",
    ),
    Mistake(
        "transposed",
        lambda z, k, num_codes: (
            code_statistics(z, k, num_codes)[0],
            z.T @ _one_hot(z, k, num_codes),
        ),
        "the sums have shape (D, K); wanted is (K, D), a row a code.",
    ),
    Mistake(
        "sums first",
        lambda z, k, num_codes: code_statistics(z, k, num_codes)[::-1],
        "the two results are in the other order: counts first, then sums.",
    ),
    Mistake(
        "counts start at one",
        lambda z, k, num_codes: (
            code_statistics(z, k, num_codes)[0] + 1,
            code_statistics(z, k, num_codes)[1],
        ),
        "every count is one too high: start from zeros. (Smoothing comes later, and not here.)",
    ),
    Mistake(
        "all vectors in each",
        lambda z, k, num_codes: (
            code_statistics(z, k, num_codes)[0],
            z.sum(0, keepdim=True).expand(num_codes, -1).clone(),
        ),
        "each row of the sums holds all vectors: row k is the sum of those with index k only.",
    ),
    Mistake(
        "added up in float32",
        lambda z, k, num_codes: tuple(part.to(z.dtype) for part in code_statistics(z.float(), k, num_codes)),
        "float64 vectors are added up in float32, and the digits that float64 had are lost. Make the tensor of sums "
        "in the vectors' dtype: vectors.new_zeros(…).",
    ),
    Mistake(
        "at least one",
        lambda z, k, num_codes: ((n := code_statistics(z, k, num_codes))[0].clamp(min=1), n[1]),
        "codes that nothing chose have the count 1 here. It is 0; whoever divides by a count later takes care of that.",
    ),
    Mistake(
        "first column only",
        lambda z, k, num_codes: (
            code_statistics(z, k, num_codes)[0],
            z.new_zeros(num_codes, z.shape[1]).scatter_add(0, k[:, None], z),
        ),
        "only the first column is added up: scatter_add takes as many numbers as the index has. Make it as "
        "wide as the vectors, indices[:, None].expand_as(vectors), or take index_add_.",
    ),
    Mistake(
        "indices sorted, vectors not",
        lambda z, k, num_codes: code_statistics(z, k.sort().values, num_codes),
        "the counts are right, but each vector goes to another one's code: the indices were put in order and "
        "the vectors were not.",
    ),
    Mistake(
        "means times counts",
        lambda z, k, num_codes: (
            (n := code_statistics(z, k, num_codes))[0],
            n[1] / n[0][:, None] * n[0][:, None],
        ),
        "the sums of codes that nothing chose are NaN, a mean of nothing (0/0). Take sums from the start: "
        "then they are 0.",
    ),
    Mistake(
        "sums start at one",
        lambda z, k, num_codes: ((n := code_statistics(z, k, num_codes))[0], n[1] + 1),
        "every sum is one too large: begin with zeros.",
    ),
    Mistake(
        "last code left out",
        lambda z, k, num_codes: tuple(
            torch.cat([part[:-1], torch.zeros_like(part[-1:])]) for part in code_statistics(z, k, num_codes)
        ),
        "the last code is empty, whatever chose it: codes are numbered from 0 to K − 1, range(num_codes).",
    ),
)

EXERCISE = Exercise(
    name="code_statistics",
    chapter="05_ema_codebooks",
    reference=code_statistics,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

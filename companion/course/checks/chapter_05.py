"""Exercises of chapter 05: counts and sums, the EMA step, restarts, the lookup by angle.

All four are functions of tensors. Inputs have codes that nothing chose, counts of zero, codes of very different
length: where these are missing, most mistakes cannot be seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.core import Case, Exercise, LargestTensor, Mistake, Observed, call, call_for, register
from companion.quantizers import code_statistics, cosine_lookup, ema_step, restart

CHAPTER = "05_ema_codebooks"


# Exercise 5.1 -------------------------------------------------------------------------------------------------------


def _assigned() -> Sequence[Case]:
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


Statistics = Callable[[Tensor, Tensor, int], Any]


def _one_hot(z: Tensor, k: Tensor, num_codes: int) -> Tensor:
    return functional.one_hot(k, num_codes).to(z.dtype)  # (N, K)


def _last_wins(z: Tensor, k: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    counts, sums = code_statistics(z, k, num_codes)
    sums = torch.zeros_like(sums)
    for i in range(len(k)):  # as sums[k] += z does: of repeated indices the last one stays
        sums[k[i]] = z[i]
    return counts, sums


def _statistics_run(implementation: Any, case: Case) -> Observed:
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


def _only_chosen(z: Tensor, k: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    counts, sums = code_statistics(z, k, num_codes)
    return counts[counts > 0], sums[counts > 0]


_STATISTICS_MISTAKES = (
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
)


# Exercise 5.2 -------------------------------------------------------------------------------------------------------


def _steps() -> Sequence[Case]:
    g = torch.Generator().manual_seed(51)

    def case(label: str, k: int, d: int, decay: float, *smoothing: float, zeros: bool = False) -> Case:
        codebook = torch.randn(k, d, generator=g) + 0.7
        counts = 30 * torch.rand(k, generator=g)
        n = torch.randint(0, 9, (k,), generator=g).float()
        n[::3] = 0  # a third of the codes was chosen by nothing
        n[1] = 1  # and one by a single vector
        counts[1::4] = 0  # and some never were before
        if zeros:
            counts.zero_()
        s = n[:, None] * (torch.randn(k, d, generator=g) - 0.4)
        return Case(label, (codebook, counts, n, s, decay, *smoothing))

    six = case("", 6, 2, 0.9, 0.5).arguments[:4]
    return [
        case("7 codes, γ = 0.9, ε = 0.5", 7, 3, 0.9, 0.5),
        case("11 codes, γ = 0.99, ε = 1e-5", 11, 2, 0.99, 1e-5),
        case("the first step: all counts are 0, γ = 0.8, ε = 0.1", 5, 4, 0.8, 0.1, zeros=True),
        case("no memory, γ = 0, ε = 2", 6, 3, 0.0, 2.0),
        case("no smoothing, γ = 0.5, ε = 0", 11, 2, 0.5, 0.0),  # code 9: N = n = 0, so Ñ = 0
        case("7 codes, γ = 0.7, ε not given", 7, 3, 0.7),
        Case("in float64", (*(part.double() for part in six), 0.9, 0.5)),
    ]


def _ema(
    *,
    new_counts: Callable[..., Tensor] = lambda N, n, decay: decay * N + (1 - decay) * n,
    smooth: Callable[..., Tensor] = lambda N, eps: (N + eps) / (N.sum() + len(N) * eps) * N.sum(),
    move: Callable[..., Tensor] = lambda e, n, s, rate: e + rate[:, None] * (s / n.clamp(min=1)[:, None] - e),
    weight: Callable[..., Tensor] = lambda n, decay: (1 - decay) * n,
    limit: float | None = 1.0,
    keep: bool = True,
    returned: Callable[..., Tensor] = lambda new, old, smoothed: new,
    divisor: Callable[..., Tensor] = lambda smoothed, old: smoothed,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """An EMA step with one part replaced."""

    def step(
        e: Tensor, N: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
    ) -> tuple[Tensor, Tensor]:
        counts = new_counts(N, n, decay)
        smoothed = smooth(counts, smoothing)
        rate = weight(n, decay) / divisor(smoothed, N)
        if limit is not None:
            rate = rate.clamp(max=limit)
        moved = move(e, n, s, rate)
        return torch.where(n[:, None] > 0, moved, e) if keep else moved, returned(counts, N, smoothed)

    return step


def _usual_form(
    e: Tensor, N: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
) -> tuple[Tensor, Tensor]:
    m = decay * N[:, None] * e + (1 - decay) * s
    counts = decay * N + (1 - decay) * n
    smoothed = (counts + smoothing) / (counts.sum() + len(N) * smoothing) * counts.sum()
    return m / smoothed[:, None], counts


def _average_of_means(
    e: Tensor, N: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
) -> tuple[Tensor, Tensor]:
    mean = s / n.clamp(min=1)[:, None]
    moved = decay * e + (1 - decay) * mean
    return torch.where(n[:, None] > 0, moved, e), decay * N + (1 - decay) * n


def _in_place(
    e: Tensor, N: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
) -> tuple[Tensor, Tensor]:
    codebook, counts = ema_step(e, N, n, s, decay, smoothing)
    return e.copy_(codebook), N.copy_(counts)


_STEP_MISTAKES = (
    Mistake(
        "decay and 1 − decay exchanged",
        lambda e, N, n, s, decay, eps=1e-5: ema_step(e, N, n, s, 1 - decay, eps),
        "γ and 1 − γ are exchanged: γ weighs what was there, 1 − γ what is new.",
    ),
    Mistake(
        "counts forgotten",
        _ema(returned=lambda new, old, smoothed: old),
        "the codes are right, but the counts that you give back are the old ones.",
    ),
    Mistake(
        "counts before the step",
        _ema(new_counts=lambda N, n, decay: N, returned=lambda new, old, smoothed: new),
        "the counts do not change: first N′ = γN + (1 − γ)n, and everything after it uses N′.",
    ),
    Mistake(
        "divided by the old counts",
        lambda e, N, n, s, decay, eps=1e-5: _ema(
            divisor=lambda smoothed, old: (old + eps) / (old.sum() + len(old) * eps) * old.sum()
        )(e, N, n, s, decay, eps),
        "the step divides by the counts from before: it is N′, the counts after this batch, smoothed, that divide.",
    ),
    Mistake(
        "m over Ñ for all",
        _usual_form,
        "this is m/Ñ for every code, chosen or not. Smoothing makes Ñ other than N, and so moves codes that nothing "
        "chose (towards 0, for those that are rare). Where n is 0 the code has to stay.",
    ),
    Mistake(
        "average of means",
        _average_of_means,
        "γe + (1 − γ)·mean gives every batch the same weight, whether one vector chose the code or a thousand. The "
        "rate is "
        "(1 − γ)n/Ñ.",
    ),
    Mistake(
        "sum in place of mean",
        _ema(move=lambda e, n, s, rate: e + rate[:, None] * (s - e)),
        "the code moves towards the sum s of its vectors; the rate (1 − γ)n/Ñ goes with their mean s/n. (Or take "
        "(1 − γ)/Ñ · (s − n·e), which is the same.)",
    ),
    Mistake(
        "n left out",
        _ema(weight=lambda n, decay: torch.full_like(n, 1 - decay)),
        "the rate is (1 − γ)/Ñ; with the mean s/n as the goal it has to be (1 − γ)n/Ñ.",
    ),
    Mistake(
        "unchosen to zero",
        _ema(weight=lambda n, decay: (1 - decay) * n.clamp(min=1), keep=False),
        "codes that nothing chose move towards 0: their mean is not 0, they have none. torch.where(n[:, None] > 0, "
        "…) "
        "leaves them as they are.",
    ),
    Mistake(
        "not a number",
        _ema(move=lambda e, n, s, rate: e + rate[:, None] * (s / n[:, None] - e), keep=False),
        "s/n is 0/0, not a number, where nothing chose the code. Divide by n.clamp(min=1), and keep such codes with "
        "torch.where.",
    ),
    Mistake(
        "0/0 under the rate",
        _ema(keep=False),
        "with ε = 0 a code that was never chosen has Ñ = 0, and its rate is 0/0: keep codes that nothing chose with "
        "torch.where(n[:, None] > 0, …, codebook).",
    ),
    Mistake(
        "smoothing fed back",
        _ema(returned=lambda new, old, smoothed: smoothed),
        "you give back the smoothed counts. They are only for dividing: fed back, they would be smoothed again at "
        "every "
        "step. Return N′.",
    ),
    Mistake(
        "not smoothed",
        _ema(smooth=lambda N, eps: N.where(N > 0, 1.0)),
        "the step divides by N′; it is to divide by Ñ = (N′ + ε)/(ΣN′ + Kε) · ΣN′.",
    ),
    Mistake(
        "only epsilon added",
        _ema(smooth=lambda N, eps: N + eps, limit=None),
        "Ñ is N′ + ε here. The second factor, ΣN′/(ΣN′ + Kε), is missing: it keeps the sum of the counts what it is.",
    ),
    Mistake(
        "K left out",
        _ema(smooth=lambda N, eps: (N + eps) / (N.sum() + eps) * N.sum()),
        "in Ñ the sum grows by ε for each of the K codes: divide by ΣN′ + Kε.",
    ),
    Mistake(
        "shares",
        _ema(smooth=lambda N, eps: (N + eps) / (N.sum() + len(N) * eps)),
        "the smoothed counts add up to 1: multiply them by ΣN′ again, else every code jumps the whole way.",
    ),
    Mistake(
        "beyond the mean",
        _ema(limit=None),
        "a step goes beyond the mean of its vectors: where Ñ < (1 − γ)n the rate passes 1. Cut it off there: "
        ".clamp(max=1).",
    ),
    Mistake(
        "away from the mean",
        _ema(move=lambda e, n, s, rate: e - rate[:, None] * (s / n.clamp(min=1)[:, None] - e)),
        "the codes move away from their vectors: the sign of the step is wrong.",
    ),
    Mistake(
        "in place",
        _in_place,
        "the values are right, but you write into your arguments: give new tensors back (no .mul_, no +=).",
    ),
    Mistake(
        "decay and 1 − decay exchanged in the counts",
        _ema(new_counts=lambda N, n, decay: (1 - decay) * N + decay * n),
        "in N′ γ and 1 − γ are exchanged: γN is what is kept, (1 − γ)n what is new. (In the rate they are right.)",
    ),
    Mistake(
        "γ in the rate",
        _ema(weight=lambda n, decay: decay * n),
        "the rate is γn/Ñ here. It is (1 − γ)n/Ñ: the batch weighs 1 − γ. (In the counts it is right.)",
    ),
    Mistake(
        "ε written in",
        lambda e, N, n, s, decay, eps=1e-5: ema_step(e, N, n, s, decay, 1e-5),
        "ε is 1e-5 here, whatever is given: use `smoothing`.",
    ),
    Mistake(
        "another default of ε",
        lambda e, N, n, s, decay, eps=0.1: ema_step(e, N, n, s, decay, eps),
        "right where ε is given, but its default was changed: without it, it is 1e-5.",
    ),
    Mistake(
        "m over Ñ for the chosen",
        lambda e, N, n, s, decay, eps=1e-5: (
            torch.where(n[:, None] > 0, _usual_form(e, N, n, s, decay, eps)[0], e),
            decay * N + (1 - decay) * n,
        ),
        "this is m′/Ñ for the chosen codes. Smoothing makes Ñ other than N′, and m′/Ñ is then no mean of anything: it "
        "pulls a rare code towards 0. Go from the code towards s/n, (1 − γ)n/Ñ of the way.",
    ),
    Mistake(
        "chosen more than once",
        lambda e, N, n, s, decay, eps=1e-5: (
            torch.where(n[:, None] > 1, ema_step(e, N, n, s, decay, eps)[0], e),
            decay * N + (1 - decay) * n,
        ),
        "a code that exactly one vector chose stays where it is. It is chosen too: n > 0.",
    ),
    Mistake(
        "n at least 2",
        _ema(move=lambda e, n, s, rate: e + rate[:, None] * (s / n.clamp(min=2)[:, None] - e)),
        "where one vector chose the code, s is divided by 2: n.clamp(min=1).",
    ),
    Mistake(
        "always float32",
        lambda e, N, n, s, decay, eps=1e-5: tuple(part.float() for part in ema_step(e, N, n, s, decay, eps)),
        "float64 comes in and float32 goes out (.float()): stay in the dtype that came.",
    ),
)


# Exercise 5.3 -------------------------------------------------------------------------------------------------------


def _dead_ones() -> Sequence[Case]:
    g = torch.Generator().manual_seed(52)

    def case(label: str, counts: list[float], d: int, share: float, more: int = 0) -> Case:
        k = len(counts)
        candidates = torch.randn(k + more, d, generator=g) + 9
        return Case(label, (torch.randn(k, d, generator=g), torch.tensor(counts), candidates, share))

    return [
        case("6 codes, of which the second and the fifth are dead", [20.0, 0.5, 9, 6, 0.0, 24.5], 3, 0.25),
        case("a code whose count is the threshold itself", [8.0, 1.0, 0.0, 7.0, 4.0], 2, 0.25),
        case("more candidates than codes", [2.0, 10.0, 0.5, 11.5], 3, 0.4, 5),
        case("fewer candidates than codes", [2.0, 10.0, 0.5, 11.5, 12.0], 3, 0.3, -3),
        case("no code is dead", [5.0, 6.0, 7.0], 4, 0.5),
        case("all codes but the last are dead", [0.0, 0.0, 0.25, 0.0, 1000.0], 2, 0.1),
        case("restarts are off", [0.0, 3.0], 2, 0.0),
    ]


def _restart(
    *,
    threshold: Callable[[Tensor, float], Any] = lambda counts, share: share * counts.sum() / len(counts),
    is_dead: Callable[[Tensor, Any], Tensor] = lambda counts, t: counts < t,
    pick: Callable[[Tensor, Tensor], Tensor] = lambda candidates, dead: candidates[: int(dead.sum())],
    put: Callable[[Tensor, Tensor], Tensor] = lambda old, new: new,
    count: Callable[[Tensor, Any], Any] = lambda counts, t: t,
) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """A restart with one part replaced."""

    def function(codebook: Tensor, counts: Tensor, candidates: Tensor, share: float) -> tuple[Tensor, Tensor]:
        t = threshold(counts, share)
        dead = is_dead(counts, t)
        codebook, new = codebook.clone(), counts.clone()
        codebook[dead] = put(codebook[dead], pick(candidates, dead))
        new[dead] = count(counts, t)
        return codebook, new

    return function


def _restart_in_place(codebook: Tensor, counts: Tensor, candidates: Tensor, share: float) -> tuple[Tensor, Tensor]:
    new_codes, new_counts = restart(codebook, counts, candidates, share)
    return codebook.copy_(new_codes), counts.copy_(new_counts)


_RESTART_MISTAKES = (
    Mistake(
        "the share itself",
        _restart(threshold=lambda counts, share: share),
        "the threshold is restart_below itself; it is that share of an even count: restart_below · ΣN / K.",
    ),
    Mistake(
        "of the sum",
        _restart(threshold=lambda counts, share: share * counts.sum()),
        "the threshold is a share of the sum of all counts. An even share of it is ΣN / K: divide by the number of "
        "codes.",
    ),
    Mistake(
        "of the largest",
        _restart(threshold=lambda counts, share: share * counts.max()),
        "the threshold is measured from the largest count; it is to be from the mean one, ΣN / K.",
    ),
    Mistake(
        "at the threshold too",
        _restart(is_dead=lambda counts, t: counts <= t),
        "a code whose count equals the threshold is not dead: use < . (A restarted code gets exactly that count, and "
        "would "
        "be restarted again before it was looked up once.)",
    ),
    Mistake(
        "the living",
        _restart(is_dead=lambda counts, t: counts >= t, pick=lambda c, dead: c[: int(dead.sum())]),
        "you put the living codes onto candidates and keep the dead ones.",
    ),
    Mistake(
        "candidates by the number of the code",
        _restart(pick=lambda candidates, dead: candidates[dead]),
        "dead code number k gets candidate number k. Take the candidates in turn: the first dead code the first one.",
    ),
    Mistake(
        "the same candidate",
        _restart(pick=lambda candidates, dead: candidates[0]),
        "all dead codes are put onto one candidate: from then on they tie, one wins, and the others are dead again.",
    ),
    Mistake(
        "the last candidates",
        _restart(pick=lambda candidates, dead: candidates[len(candidates) - int(dead.sum()) :]),
        "the candidates are taken from the end; the first dead code gets the first one.",
    ),
    Mistake(
        "counts left",
        lambda codebook, counts, candidates, share: (restart(codebook, counts, candidates, share)[0], counts.clone()),
        "the counts of the restarted codes stay as they were: below the threshold, so that each would be restarted "
        "again at "
        "the next step. Set them to the threshold.",
    ),
    Mistake(
        "count zero",
        _restart(count=lambda counts, t: 0.0),
        "the counts of the restarted codes are set to 0, which is below the threshold. Set them to the threshold.",
    ),
    Mistake(
        "an even share",
        _restart(count=lambda counts, t: counts.sum() / len(counts)),
        "a restarted code gets an even share as its count, as if it had been chosen like all others: it then hardly "
        "moves. "
        "Give it the threshold.",
    ),
    Mistake(
        "count one",
        _restart(count=lambda counts, t: 1.0),
        "a restarted code gets the count 1, which means something else for every batch size. Give it the threshold.",
    ),
    Mistake(
        "half way",
        _restart(put=lambda old, new: (old + new) / 2),
        "a dead code is moved half way to its candidate, where there may be no vector at all: put it onto the "
        "candidate.",
    ),
    Mistake(
        "in place",
        _restart_in_place,
        "the values are right, but you write into codebook and counts: clone them first.",
    ),
    Mistake(
        "codebook alone",
        lambda codebook, counts, candidates, share: restart(codebook, counts, candidates, share)[0],
        "only the codebook is given back; the counts belong to it: return codebook, counts.",
    ),
    Mistake(
        "divided by the candidates",
        lambda codebook, counts, candidates, share: _restart(
            threshold=lambda counts, share: share * counts.sum() / len(candidates)
        )(codebook, counts, candidates, share),
        "you divide by the number of candidates. An even count is ΣN / K, with K the number of codes.",
    ),
    Mistake(
        "random candidates",
        _restart(pick=lambda candidates, dead: candidates[torch.randperm(len(candidates))[: int(dead.sum())]]),
        "you choose among the candidates at random. They are drawn already, and there is one right answer: the first "
        "dead code gets the first.",
    ),
    Mistake(
        "dead where the count is 0",
        _restart(is_dead=lambda counts, t: counts == 0),
        "only codes with a count of exactly 0 are dead in yours. A moving average hardly ever gets there: dead is what "
        "lies below the threshold.",
    ),
)


# Exercise 5.4 -------------------------------------------------------------------------------------------------------


def _angles() -> Sequence[Case]:
    g = torch.Generator().manual_seed(53)

    def case(label: str, n: int, k: int, d: int, offset: float = 0.0, gap: float = 0.01, longest: float = 1) -> Case:
        codebook = torch.randn(k, d, generator=g) + offset
        codebook = codebook * torch.logspace(longest - 2, longest, k)[torch.randperm(k, generator=g), None]
        z = (torch.randn(20 * n, d, generator=g) + offset) * torch.rand(20 * n, 1, generator=g) * 3
        cosine = functional.normalize(z.double(), dim=1) @ functional.normalize(codebook.double(), dim=1).T
        if k > 1:  # no near ties, so that every right way of computing gives the same
            best = cosine.topk(2).values
            z = z[best[:, 0] - best[:, 1] > gap]
        return Case(label, (z[:n].contiguous(), codebook))

    turned, codes = case("", 9, 4, 3).arguments
    opposite = torch.randn(80, 3, generator=g)
    best = -functional.normalize(opposite.double(), dim=1) @ functional.normalize(opposite.double(), dim=1).T
    clear = (two := best.topk(2).values)[:, 0] - two[:, 1] > 0.01
    return [
        case("30 latents, 8 codes of very different length", 30, 8, 3),
        case("one latent, 25 codes", 1, 25, 4),
        case("40 latents and 6 codes, all on one side of the origin", 40, 6, 3, 1.5),
        case("one code", 5, 1, 2),
        case("codes no longer than 0.01", 30, 8, 3, longest=-2),
        case("300 latents, some at nearly the same angle to two of 60 codes", 300, 60, 3, gap=2e-4),
        Case("latents that point exactly away from a code", (-3 * opposite[clear], opposite)),
        Case("latents that are not contiguous in memory", (turned.T.contiguous().T, codes)),
    ]


def _unit(v: Tensor, dim: int = 1) -> Tensor:
    return functional.normalize(v, dim=dim)


def _cosines(z: Tensor, codebook: Tensor) -> Tensor:
    return _unit(z) @ _unit(codebook).T  # (N, K)


_COSINE_MISTAKES = (
    Mistake(
        "product alone",
        lambda z, e: (z @ e.T).argmax(1),
        "the code with the largest product z·e wins, and a long code has large products. Divide by the lengths of "
        "the codes "
        "first.",
    ),
    Mistake(
        "by distance",
        lambda z, e: torch.cdist(z, e).argmin(1),
        "this is the code at the smallest distance; wanted is the one at the smallest angle: scale both to length 1 "
        "first.",
    ),
    Mistake(
        "latents of length 1 only",
        lambda z, e: torch.cdist(_unit(z), e).argmin(1),
        "only the latents are scaled to length 1; the codes have to be as well.",
    ),
    Mistake(
        "along the wrong axis",
        lambda z, e: (_unit(z, 0) @ _unit(e, 0).T).argmax(1),
        "you divide by the lengths of the columns: normalize over dim=1, so that every row has length 1.",
    ),
    Mistake(
        "the largest angle",
        lambda z, e: _cosines(z, e).argmin(1),
        "argmin of a cosine is the largest angle: the cosine is largest where the angle is smallest.",
    ),
    Mistake(
        "sign lost",
        lambda z, e: _cosines(z, e).abs().argmax(1),
        "the sign of the cosine is lost: a code that points the other way is not near.",
    ),
    Mistake(
        "divided twice",
        lambda z, e: (z @ (e / e.square().sum(1, keepdim=True)).T).argmax(1),
        "the codes are divided by their squared length, so that short ones win. Divide by the length, once.",
    ),
    Mistake(
        "centred",
        lambda z, e: _cosines(z - e.mean(0), e - e.mean(0)).argmax(1),
        "moving latents and codes changes their angles at the origin: centring is for distances.",
    ),
    Mistake(
        "for each code",
        lambda z, e: _cosines(z, e).argmax(0),
        "you look for the best latent of each code, (K,). Wanted is the best code of each latent, (N,): argmax over "
        "the "
        "other axis.",
    ),
    Mistake(
        "the cosines",
        lambda z, e: _cosines(z, e).amax(1),
        "these are the cosines themselves; wanted are the indices of the codes: argmax.",
    ),
    Mistake(
        "the codes",
        lambda z, e: _unit(e)[_cosines(z, e).argmax(1)],
        "these are the codes; wanted are their indices, (N,) int64.",
    ),
    Mistake(
        "one axis too many",
        lambda z, e: _cosines(z, e).argmax(1, keepdim=True),
        "the result has shape (N, 1): leave out keepdim.",
    ),
    Mistake(
        "columns of length 1",
        lambda z, e: (_unit(z) @ functional.normalize(e.T, dim=1)).argmax(1),
        "codebook.T is scaled over dim=1, which are the codes there, not the dimensions. Scale first, then transpose: "
        "normalize(codebook, dim=1).T.",
    ),
    Mistake(
        "short codes left short",
        lambda z, e: (_unit(z) @ functional.normalize(e, dim=1, eps=0.1).T).argmax(1),
        "codes shorter than your eps do not get the length 1, and so never win. Leave eps at its default.",
    ),
    Mistake(
        "angles without a clamp",
        lambda z, e: _cosines(z, e).acos().argmin(1),
        "rounding makes some cosines a little larger than 1 or smaller than −1, and acos of that is NaN. Take the "
        "largest cosine; the angle itself is not needed.",
    ),
    Mistake(
        "half precision",
        lambda z, e: (_unit(z).bfloat16() @ _unit(e).bfloat16().T).argmax(1),
        "the product is computed in bfloat16, which has too few digits for codes at nearly the same angle. Stay in the "
        "dtype that came in.",
    ),
)


def register_all() -> None:
    state = call_for("codebook", "counts")
    register(Exercise("code_statistics", CHAPTER, code_statistics, _assigned, _STATISTICS_MISTAKES, _statistics_run))
    register(Exercise("ema_step", CHAPTER, ema_step, _steps, _STEP_MISTAKES, state))
    register(Exercise("restart", CHAPTER, restart, _dead_ones, _RESTART_MISTAKES, state))
    register(Exercise("cosine_lookup", CHAPTER, cosine_lookup, _angles, _COSINE_MISTAKES, call))

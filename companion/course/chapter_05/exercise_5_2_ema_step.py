"""Exercise 5.2, the EMA step: codes and counts after one batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call_for
from companion.quantizers import ema_step


def cases() -> Sequence[Case]:
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


def _variant(
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


MISTAKES = (
    Mistake(
        "decay and 1 − decay exchanged",
        lambda e, N, n, s, decay, eps=1e-5: ema_step(e, N, n, s, 1 - decay, eps),
        "γ and 1 − γ are exchanged: γ weighs what was there, 1 − γ what is new.",
    ),
    Mistake(
        "counts forgotten",
        _variant(returned=lambda new, old, smoothed: old),
        "the codes are right, but the counts that you give back are the old ones.",
    ),
    Mistake(
        "counts before the step",
        _variant(new_counts=lambda N, n, decay: N, returned=lambda new, old, smoothed: new),
        "the counts do not change: first N′ = γN + (1 − γ)n, and everything after it uses N′.",
    ),
    Mistake(
        "divided by the old counts",
        lambda e, N, n, s, decay, eps=1e-5: _variant(
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
        _variant(move=lambda e, n, s, rate: e + rate[:, None] * (s - e)),
        "the code moves towards the sum s of its vectors; the rate (1 − γ)n/Ñ goes with their mean s/n. (Or take "
        "(1 − γ)/Ñ · (s − n·e), which is the same.)",
    ),
    Mistake(
        "n left out",
        _variant(weight=lambda n, decay: torch.full_like(n, 1 - decay)),
        "the rate is (1 − γ)/Ñ; with the mean s/n as the goal it has to be (1 − γ)n/Ñ.",
    ),
    Mistake(
        "unchosen to zero",
        _variant(weight=lambda n, decay: (1 - decay) * n.clamp(min=1), keep=False),
        "codes that nothing chose move towards 0: their mean is not 0, they have none. torch.where(n[:, None] > 0, "
        "…) "
        "leaves them as they are.",
    ),
    Mistake(
        "not a number",
        _variant(move=lambda e, n, s, rate: e + rate[:, None] * (s / n[:, None] - e), keep=False),
        "s/n is 0/0, not a number, where nothing chose the code. Divide by n.clamp(min=1), and keep such codes with "
        "torch.where.",
    ),
    Mistake(
        "0/0 under the rate",
        _variant(keep=False),
        "with ε = 0 a code that was never chosen has Ñ = 0, and its rate is 0/0: keep codes that nothing chose with "
        "torch.where(n[:, None] > 0, …, codebook).",
    ),
    Mistake(
        "smoothing fed back",
        _variant(returned=lambda new, old, smoothed: smoothed),
        "you give back the smoothed counts. They are only for dividing: fed back, they would be smoothed again at "
        "every "
        "step. Return N′.",
    ),
    Mistake(
        "not smoothed",
        _variant(smooth=lambda N, eps: N.where(N > 0, 1.0)),
        "the step divides by N′; it is to divide by Ñ = (N′ + ε)/(ΣN′ + Kε) · ΣN′.",
    ),
    Mistake(
        "only epsilon added",
        _variant(smooth=lambda N, eps: N + eps, limit=None),
        "Ñ is N′ + ε here. The second factor, ΣN′/(ΣN′ + Kε), is missing: it keeps the sum of the counts what it is.",
    ),
    Mistake(
        "K left out",
        _variant(smooth=lambda N, eps: (N + eps) / (N.sum() + eps) * N.sum()),
        "in Ñ the sum grows by ε for each of the K codes: divide by ΣN′ + Kε, with K = len(counts).",
    ),
    Mistake(
        "the sum of the old counts",
        lambda e, N, n, s, decay, eps=1e-5: _variant(
            smooth=lambda new, eps: (new + eps) / (N.sum() + len(N) * eps) * N.sum()
        )(e, N, n, s, decay, eps),
        "Ñ is scaled by the sum of the counts from before, ΣN; it keeps the sum of the new ones, ΣN′.",
    ),
    Mistake(
        "shares",
        _variant(smooth=lambda N, eps: (N + eps) / (N.sum() + len(N) * eps)),
        "every chosen code jumps the whole way, as the rate is 1 everywhere. Do the smoothed counts add up to 1? "
        "(Multiply them by ΣN′ again.) Or is the rate cut off from below (it is .clamp(max=1))?",
    ),
    Mistake(
        "beyond the mean",
        _variant(limit=None),
        "a step goes beyond the mean of its vectors: where Ñ < (1 − γ)n the rate passes 1. Cut it off there: "
        ".clamp(max=1).",
    ),
    Mistake(
        "away from the mean",
        _variant(move=lambda e, n, s, rate: e - rate[:, None] * (s / n.clamp(min=1)[:, None] - e)),
        "the codes move away from their vectors: the sign of the step is wrong.",
    ),
    Mistake(
        "in place",
        _in_place,
        "the values are right, but you write into your arguments: give new tensors back (no .mul_, no +=).",
    ),
    Mistake(
        "decay and 1 − decay exchanged in the counts",
        _variant(new_counts=lambda N, n, decay: (1 - decay) * N + decay * n),
        "in N′ γ and 1 − γ are exchanged: γN is what is kept, (1 − γ)n what is new. (In the rate they are right.)",
    ),
    Mistake(
        "γ in the rate",
        _variant(weight=lambda n, decay: decay * n),
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
        _variant(move=lambda e, n, s, rate: e + rate[:, None] * (s / n.clamp(min=2)[:, None] - e)),
        "where one vector chose the code, s is divided by 2: n.clamp(min=1).",
    ),
    Mistake(
        "always float32",
        lambda e, N, n, s, decay, eps=1e-5: tuple(part.float() for part in ema_step(e, N, n, s, decay, eps)),
        "float64 comes in and float32 goes out (.float()): stay in the dtype that came.",
    ),
    Mistake(
        "old count counts",
        lambda e, N, n, s, decay, eps=1e-5: (
            torch.where(N[:, None] > 0, ema_step(e, N, n, s, decay, eps)[0], e),
            decay * N + (1 - decay) * n,
        ),
        "codes stay where their *old* count is 0, also those that were chosen now. What decides is this batch: n > 0.",
    ),
    Mistake(
        "the sum of the batch",
        lambda e, N, n, s, decay, eps=1e-5: _variant(
            smooth=lambda new, eps: (new + eps) / (n.sum() + len(n) * eps) * n.sum()
        )(e, N, n, s, decay, eps),
        "Ñ is scaled by Σn, the sum of the batch; it keeps the sum of the new counts, ΣN′.",
    ),
    Mistake(
        "γ written in",
        lambda e, N, n, s, decay, eps=1e-5: ema_step(e, N, n, s, 0.99, eps),
        "γ is 0.99 here, whatever is given: use `decay`.",
    ),
    Mistake(
        "D in place of K",
        lambda e, N, n, s, decay, eps=1e-5: _variant(
            smooth=lambda new, eps: (new + eps) / (new.sum() + e.shape[1] * eps) * new.sum()
        )(e, N, n, s, decay, eps),
        "ε is counted D times in the denominator of Ñ, once for each dimension. It is there once for each "
        "code: K = len(counts).",
    ),
    Mistake(
        "unchosen do not fade",
        _variant(
            new_counts=lambda N, n, decay: torch.where(n > 0, decay * N + (1 - decay) * n, N),
        ),
        "the counts of codes that nothing chose stay as they were. Codes stay, counts fade: N′ = γN + (1 − "
        "γ)n with n = 0.",
        also=(
            lambda e, N, n, s, decay, eps=1e-5: (
                ema_step(e, N, n, s, decay, eps)[0],
                torch.where(n > 0, decay * N + (1 - decay) * n, N),
            ),
        ),
    ),
    Mistake(
        "batch in full",
        _variant(new_counts=lambda N, n, decay: decay * N + n),
        "in N′ the batch counts in full. It is γN + (1 − γ)n, else the counts grow beyond those of any batch.",
    ),
    Mistake(
        "unchosen at the origin",
        lambda e, N, n, s, decay, eps=1e-5: (
            torch.where(n[:, None] > 0, ema_step(e, N, n, s, decay, eps)[0], 0),
            decay * N + (1 - decay) * n,
        ),
        "codes that nothing chose are set to 0. They stay: the third argument of torch.where is the old codebook.",
    ),
    Mistake(
        "ε in the mean",
        _variant(move=lambda e, n, s, rate: e + rate[:, None] * (s / (n + 0.5)[:, None] - e)),
        "s is divided by a number that is larger than n. ε belongs into Ñ alone; the code goes towards s/n.",
        also=(
            lambda e, N, n, s, decay, eps=1e-5: _variant(
                move=lambda e, n, s, rate: e + rate[:, None] * (s / (n + eps)[:, None] - e)
            )(e, N, n, s, decay, eps),
        ),
    ),
    Mistake(
        "cut off at 1 − γ",
        lambda e, N, n, s, decay, eps=1e-5: _variant(limit=1 - decay)(e, N, n, s, decay, eps),
        "the rate is cut off at 1 − γ. It may be larger than that, for codes chosen more often than before; "
        "only beyond 1 is it cut off.",
    ),
    Mistake(
        "counts first",
        lambda e, N, n, s, decay, eps=1e-5: ema_step(e, N, n, s, decay, eps)[::-1],
        "the two results are in the other order: codebook first, then counts.",
    ),
)

EXERCISE = Exercise(
    name="ema_step",
    chapter="05_ema_codebooks",
    reference=ema_step,
    cases=cases,
    mistakes=MISTAKES,
    run=call_for("codebook", "counts"),
)

"""Exercise 5.3, restart: codes that are hardly chosen move to the candidates."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call_for
from companion.quantizers import restart


def cases() -> Sequence[Case]:
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


def _variant(
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


def _one_by_one(codebook: Tensor, counts: Tensor, candidates: Tensor, share: float) -> tuple[Tensor, Tensor]:
    codebook, counts, used = codebook.clone(), counts.clone(), 0
    for k in range(len(counts)):
        threshold = share * counts.sum() / len(counts)  # of counts that were changed
        if counts[k] < threshold:
            codebook[k], counts[k], used = candidates[used], threshold, used + 1
    return codebook, counts


def _restart_in_place(codebook: Tensor, counts: Tensor, candidates: Tensor, share: float) -> tuple[Tensor, Tensor]:
    new_codes, new_counts = restart(codebook, counts, candidates, share)
    return codebook.copy_(new_codes), counts.copy_(new_counts)


MISTAKES = (
    Mistake(
        "the share itself",
        _variant(threshold=lambda counts, share: share),
        "the threshold is restart_below itself; it is that share of an even count: restart_below · ΣN / K.",
    ),
    Mistake(
        "of the sum",
        _variant(threshold=lambda counts, share: share * counts.sum()),
        "the threshold is a share of the sum of all counts. An even share of it is ΣN / K: divide by the number of "
        "codes.",
    ),
    Mistake(
        "of the largest",
        _variant(threshold=lambda counts, share: share * counts.max()),
        "the threshold is measured from the largest count; it is to be from the mean one, ΣN / K.",
    ),
    Mistake(
        "at the threshold too",
        _variant(is_dead=lambda counts, t: counts <= t),
        "a code whose count equals the threshold is not dead: use < . (A restarted code gets exactly that count, and "
        "would "
        "be restarted again before it was looked up once.)",
    ),
    Mistake(
        "the living",
        _variant(is_dead=lambda counts, t: counts >= t, pick=lambda c, dead: c[: int(dead.sum())]),
        "you put the living codes onto candidates and keep the dead ones.",
    ),
    Mistake(
        "candidates by the number of the code",
        _variant(pick=lambda candidates, dead: candidates[dead]),
        "dead code number k gets candidate number k. Take the candidates in turn: the first dead code the first one.",
    ),
    Mistake(
        "the same candidate",
        _variant(pick=lambda candidates, dead: candidates[0]),
        "all dead codes are put onto one candidate: from then on they tie, one wins, and the others are dead again.",
    ),
    Mistake(
        "the last candidates",
        _variant(pick=lambda candidates, dead: candidates[len(candidates) - int(dead.sum()) :]),
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
        _variant(count=lambda counts, t: 0.0),
        "the counts of the restarted codes are set to 0, which is below the threshold. Set them to the threshold.",
    ),
    Mistake(
        "an even share",
        _variant(count=lambda counts, t: counts.sum() / len(counts)),
        "a restarted code gets an even share as its count, as if it had been chosen like all others: it then hardly "
        "moves. "
        "Give it the threshold.",
    ),
    Mistake(
        "count one",
        _variant(count=lambda counts, t: 1.0),
        "a restarted code gets the count 1, which means something else for every batch size. Give it the threshold.",
    ),
    Mistake(
        "half way",
        _variant(put=lambda old, new: (old + new) / 2),
        "a dead code is moved half way to its candidate, where there may be no vector at all: put it onto the "
        "candidate.",
    ),
    Mistake(
        "in place",
        _restart_in_place,
        "the values are right, but you write into codebook and counts: clone them first.",
    ),
    Mistake(
        "the threshold rises",
        _one_by_one,
        "the threshold is computed anew after each restarted code, from counts that the restart has changed. Compute "
        "it once, from the counts that came in.",
    ),
    Mistake(
        "codebook alone",
        lambda codebook, counts, candidates, share: restart(codebook, counts, candidates, share)[0],
        "only the codebook is given back; the counts belong to it: return codebook, counts.",
    ),
    Mistake(
        "divided by the candidates",
        lambda codebook, counts, candidates, share: _variant(
            threshold=lambda counts, share: share * counts.sum() / len(candidates)
        )(codebook, counts, candidates, share),
        "you divide by the number of candidates. An even count is ΣN / K, with K the number of codes.",
    ),
    Mistake(
        "random candidates",
        _variant(pick=lambda candidates, dead: candidates[torch.randperm(len(candidates))[: int(dead.sum())]]),
        "you choose among the candidates at random. They are drawn already, and there is one right answer: the first "
        "dead code gets the first.",
    ),
    Mistake(
        "dead where the count is 0",
        _variant(is_dead=lambda counts, t: counts == 0),
        "only codes with a count of exactly 0 are dead in yours. A moving average hardly ever gets there: dead is what "
        "lies below the threshold.",
    ),
    Mistake(
        "candidates reversed",
        _variant(pick=lambda candidates, dead: candidates[: int(dead.sum())].flip(0)),
        "the candidates are taken in the reverse order: the first dead code gets the first one, the second the second.",
    ),
    Mistake(
        "from the second candidate on",
        _variant(pick=lambda candidates, dead: candidates.roll(-1, 0)[: int(dead.sum())]),
        "the first candidate is left out; the first dead code gets candidates[0].",
        also=(_variant(pick=lambda candidates, dead: candidates[1 : int(dead.sum()) + 1]),),
    ),
    Mistake(
        "of the median",
        _variant(threshold=lambda counts, share: share * counts.median()),
        "the threshold is measured from the median of the counts; it is to be from their mean, ΣN / K.",
    ),
    Mistake(
        "divided by D",
        lambda codebook, counts, candidates, share: _variant(
            threshold=lambda counts, share: share * counts.sum() / codebook.shape[1]
        )(codebook, counts, candidates, share),
        "you divide by the number of dimensions, D. An even count is ΣN / K: K = len(counts).",
    ),
    Mistake(
        "of the living",
        _variant(threshold=lambda counts, share: share * counts.sum() / (counts > 0).sum()),
        "you divide by the number of codes that have a count. An even count is ΣN / K, with all K codes.",
    ),
    Mistake(
        "added",
        _variant(put=lambda old, new: old + new),
        "the candidate is added to the dead code. Put the code onto it: codebook[dead] = ….",
    ),
    Mistake(
        "first dead code only",
        _variant(is_dead=lambda counts, t: (counts < t) & ((counts < t).cumsum(0) == 1)),
        "only the first dead code is restarted; it is to be all of them.",
    ),
    Mistake(
        "share written in",
        lambda codebook, counts, candidates, share: restart(codebook, counts, candidates, 0.02),
        "the share is 0.02 here, whatever is given: use `restart_below`.",
    ),
    Mistake(
        "rounded down",
        _variant(threshold=lambda counts, share: share * counts.sum() // len(counts)),
        "the threshold is rounded to a whole number (// or int). Counts are moving averages; leave it as it is.",
        also=(_variant(threshold=lambda counts, share: int(share * counts.sum() / len(counts))),),
    ),
    Mistake(
        "rarest first",
        lambda codebook, counts, candidates, share: (
            codebook.index_copy(
                0,
                counts.argsort()[: (dead := int((counts < share * counts.sum() / len(counts)).sum()))],
                candidates[:dead],
            ),
            restart(codebook, counts, candidates, share)[1],
        ),
        "the dead code with the smallest count gets the first candidate. Take dead codes by their number.",
    ),
    Mistake(
        "threshold of what is left",
        _variant(count=lambda counts, t: t * counts[counts >= t].sum() / counts.sum()),
        "the count of a restarted code is a share of what is left without the dead. The threshold is computed"
        " once, from the counts that came in.",
    ),
    Mistake(
        "counts alone",
        lambda codebook, counts, candidates, share: (
            codebook.clone(),
            restart(codebook, counts, candidates, share)[1],
        ),
        "the counts are right, but no code has moved: codebook[dead] = … on a copy, and give that back.",
    ),
    Mistake(
        "the candidates' mean",
        _variant(pick=lambda candidates, dead: candidates.mean(0)),
        "all dead codes are put onto the mean of the candidates, where there may be no vector at all. Each "
        "gets a candidate of its own.",
    ),
)

EXERCISE = Exercise(
    name="restart",
    chapter="05_ema_codebooks",
    reference=restart,
    cases=cases,
    mistakes=MISTAKES,
    run=call_for("codebook", "counts"),
)

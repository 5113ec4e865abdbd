"""Exercise 7.5, what is drawn from: probabilities after temperature, top-k and top-p."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.priors import filtered_probabilities


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(73)

    def logs(*rows: list[float]) -> Tensor:
        return torch.tensor(rows).log()

    uneven = logs([0.05, 0.4, 0.15, 0.3, 0.1], [0.5, 0.08, 0.02, 0.28, 0.12])
    tied = logs([0.2, 0.1, 0.2, 0.1, 0.3, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5])

    def case(label: str, logits: Tensor, t: float = 1.0, k: int | None = None, p: float | None = None) -> Case:
        return Case(label, (logits, t, k, p))

    return [
        case("nothing but a softmax", uneven),
        case("temperature 2", uneven, 2.0),
        case("temperature 0.5, logits of 2 × 3 positions", torch.randn(2, 3, 7, generator=g), 0.5),
        case("top-k, k = 2", uneven, k=2),
        case("top-k, k = 2, three codes tied for ranks 4 to 6", tied, k=4),
        case("top-p, p = 0.6", uneven, p=0.6),
        case("top-p, p = 0.2: less than the likeliest code has", uneven, p=0.2),
        case("top-p, p = 0.55, with ties", tied, p=0.55),
        case("temperature 3, k = 3, p = 0.7", uneven, 3.0, 3, 0.7),
        case("temperature 2, k = 4, p = 0.75, twelve codes", 2 * torch.randn(4, 12, generator=g), 2.0, 4, 0.75),
        case("temperature 0", torch.tensor([[0.3, 2.0, 2.0, -1.0], [5.0, 1.0, 0.0, 4.0]]), 0.0),
        case("k = K, p = 1: nothing is cut", uneven, 1.0, 5, 1.0),
        case("large logits, p = 0.9", torch.tensor([[300.0, 299.0, 297.5], [-200.0, -201.0, -203.0]]), p=0.9),
        case("in float64, k = 3", uneven.double(), k=3),
        case("k = 3, p = 0.8, logits of 2 × 3 positions", torch.randn(2, 3, 7, generator=g), k=3, p=0.8),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The probabilities; an option that has its default is not passed."""
    logits, temperature, top_k, top_p = case.arguments
    given = logits.clone()
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    defaults = {"temperature": 1.0, "top_k": None, "top_p": None}
    result = implementation(given, **{name: value for name, value in options.items() if value != defaults[name]})
    return {"the result": result, "the logits after the call": given}


Cut = Callable[[Tensor, Any], Tensor]


def _only(p: Tensor, keep: Tensor) -> Tensor:
    p = p.where(keep, 0)
    return p / p.sum(-1, keepdim=True)


def _best_k(p: Tensor, k: int) -> Tensor:
    return _only(p, p >= p.topk(k, -1).values[..., -1:])


def _nucleus(p: Tensor, top_p: float, *, whole: bool = True) -> Tensor:
    """``whole``: the code that crosses p is kept too."""
    ranked = p.sort(-1, descending=True).values
    sums = ranked.cumsum(-1) - (ranked if whole else 0)
    inside = sums < top_p if whole else sums <= top_p
    inside[..., 0] |= whole
    least = ranked.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
    return _only(p, p >= least)


def _variant(
    *,
    heat: Callable[[Tensor, float], Tensor] = lambda logits, t: (logits / t).softmax(-1),
    cold: Callable[[Tensor], Tensor] = lambda logits: filtered_probabilities(logits, temperature=0),
    by_k: Cut = _best_k,
    by_p: Cut = _nucleus,
    first: str = "k",
    finish: Callable[[Tensor], Tensor] = lambda p: p,
) -> Callable[..., Tensor]:
    """The function with one of its parts replaced."""

    def probabilities(
        logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        if temperature == 0:
            return cold(logits)
        p = heat(logits, temperature)
        cuts: dict[str, tuple[Cut, float | None]] = {"k": (by_k, top_k), "p": (by_p, top_p)}
        for name in (first, "p" if first == "k" else "k"):
            cut, value = cuts[name]
            p = p if value is None else cut(p, value)
        return finish(p)

    return probabilities


def _exactly_k(p: Tensor, k: int) -> Tensor:
    keep = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(k, -1).indices, True)
    return _only(p, keep)


def _ties_by_position(p: Tensor, top_p: float) -> Tensor:
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    inside = ranked.cumsum(-1) - ranked < top_p
    return _only(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, inside))


def _cut_upwards(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(-1).values
    last = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, -torch.inf).amax(-1, keepdim=True)
    return _only(p, p >= last)


def _left_sorted(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(dim=-1, descending=True).values
    return _only(ranked, ranked.cumsum(-1) - ranked < top_p)


def _not_over(p: Tensor, top_p: float) -> Tensor:
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    inside = ranked.cumsum(-1) <= top_p
    inside[..., 0] = True
    return _only(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, inside))


def _heat_after(logits: Tensor, *, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    if temperature == 0:
        return filtered_probabilities(logits, temperature=0)
    p = filtered_probabilities(logits, top_k=top_k, top_p=top_p)
    return (p.log() / temperature).softmax(-1)


def _in_place(logits: Tensor, *, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    if temperature == 0:
        return filtered_probabilities(logits, temperature=0)
    logits /= temperature
    return filtered_probabilities(logits, top_k=top_k, top_p=top_p)


def _zero_logits(logits: Tensor, *, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    if temperature == 0:
        return filtered_probabilities(logits, temperature=0)
    x = logits / temperature
    if top_k is not None:
        x = x.where(_best_k(x.softmax(-1), top_k) > 0, 0)
    return filtered_probabilities(x, top_p=top_p)


def _last_of_ascending(p: Tensor, top_p: float) -> Tensor:
    ranked = p.sort(-1).values
    inside = ranked.cumsum(-1) - ranked < top_p
    return ranked.masked_fill(~inside, -torch.inf).amax(-1, keepdim=True)


MISTAKES = (
    Mistake(
        "multiplied by the temperature",
        _variant(heat=lambda logits, t: (logits * t).softmax(-1)),
        "the logits are multiplied by the temperature: then a high one makes the likeliest code surer. Divide.",
    ),
    Mistake(
        "temperature ignored",
        _variant(heat=lambda logits, t: logits.softmax(-1)),
        "`temperature` is used for 0 only. Divide the logits by it before the softmax.",
    ),
    Mistake(
        "probabilities divided",
        _variant(heat=lambda logits, t: logits.softmax(-1) / t),
        "the *probabilities* are divided by the temperature: then they do not sum to one, and scaled to do so they are "
        "what they were. Divide the logits.",
    ),
    Mistake(
        "temperature last",
        _heat_after,
        "the cuts come before the temperature. Temperature is first: top-p then has its sum from the heated "
        "probabilities.",
    ),
    Mistake(
        "division by zero",
        _variant(cold=lambda logits: (logits / 0.0).softmax(-1)),
        "temperature 0 divides by zero. It stands for the limit: all of the probability on the likeliest code.",
    ),
    Mistake(
        "temperature 0 shared among equals",
        _variant(cold=lambda logits: _only(logits.softmax(-1), logits == logits.amax(-1, keepdim=True))),
        "at temperature 0 equals share the probability; it is to be the arg-max: of equals the first.",
        also=(_variant(cold=lambda logits: (logits == logits.amax(-1, keepdim=True)).to(logits.dtype)),),
    ),
    Mistake(
        "temperature 0 as a number",
        _variant(cold=lambda logits: logits.argmax(-1)),
        "at temperature 0 you give the number of the code; wanted are probabilities: 1 at its index, 0 elsewhere.",
    ),
    Mistake(
        "not scaled again",
        _variant(
            by_k=lambda p, k: p.where(p >= p.topk(k, -1).values[..., -1:], 0),
            by_p=lambda p, q: p.where(_nucleus(p, q) > 0, 0),
        ),
        "what is left after a cut does not sum to one. Divide by its sum.",
    ),
    Mistake(
        "ties of k broken by index",
        _variant(by_k=_exactly_k),
        "of codes that are equally likely, you keep those that topk names first. Which ones these are says nothing: "
        "keep all that are as likely as the k-th.",
    ),
    Mistake(
        "k the least likely",
        _variant(by_k=lambda p, k: _only(p, p <= p.topk(k, -1, largest=False).values[..., -1:])),
        "these are the k *least* likely codes: largest=False, or a sign that got lost?",
    ),
    Mistake(
        "one too few",
        _variant(by_k=lambda p, k: _best_k(p, max(1, k - 1))),
        "one code too few is kept by top-k: the k-th itself stays (>=, not >).",
    ),
    Mistake(
        "one too many",
        _variant(by_k=lambda p, k: _best_k(p, min(k + 1, p.shape[-1]))),
        "one code too many is kept by top-k: the k-th largest has index k − 1, counted from 0.",
    ),
    Mistake(
        "top-k ignored",
        _variant(by_k=lambda p, k: p),
        "`top_k` cuts nothing here. Is it used, also where top_p is given, and along the last axis?",
    ),
    Mistake(
        "top-p ignored",
        _variant(by_p=lambda p, q: p),
        "`top_p` is not used, or cuts nothing. Is it sorted downwards (descending=True), summed along the last axis, "
        "with a threshold for each row?",
    ),
    Mistake(
        "top-p first",
        _variant(first="p"),
        "top-p's sum runs over all codes, as if top-p came first. The order is temperature, top-k, top-p: divide by "
        "the sum after top-k, so that top-p adds up what top-k left.",
    ),
    Mistake(  # before the next: with ties treated otherwise, both look like it on the first input that differs
        "the crossing code left out, the likeliest kept",
        _variant(by_p=_not_over),
        "the code with which the sum reaches top_p is left out: the sum of what you keep stays *below* top_p. Keep a "
        "code if the sum of the likelier ones, without itself, is below top_p.",
    ),
    Mistake(
        "top-p as a threshold",
        _variant(by_p=lambda p, q: _only(p, p >= torch.minimum(p.amax(-1, keepdim=True), torch.tensor(q)))),
        "top_p is compared with single probabilities. It is a *sum*: keep the fewest likeliest codes that together "
        "reach it.",
        also=(
            _variant(by_p=lambda p, q: _only(p, p >= q)),
            _variant(by_p=lambda p, q: _only(p, p >= 1 - q)),
            _variant(by_p=lambda p, q: _only(p, p >= (1 - q) * p.amax(-1, keepdim=True))),
        ),
    ),
    Mistake(
        "the crossing code left out",
        _variant(by_p=lambda p, q: _nucleus(p, q, whole=False)),
        "the code with which the sum reaches top_p is left out (and if the likeliest alone reaches it, nothing is "
        "left). Keep a code if the sum of the likelier ones is below top_p.",
    ),
    Mistake(
        "ties of p broken by index",
        _variant(by_p=_ties_by_position),
        "of codes that are equally likely, top-p keeps some and cuts others. Keep all that are as likely as the last "
        "one kept.",
    ),
    Mistake(
        "top-p from the bottom",
        _variant(by_p=lambda p, q: _only(p, p <= _last_of_ascending(p, q))),
        "the sum begins with the least likely code; sort from the likeliest down.",
    ),
    Mistake(
        "logarithms",
        _variant(finish=lambda p: p.log(), cold=lambda logits: filtered_probabilities(logits, temperature=0).log()),
        "these are logarithms; wanted are the probabilities.",
    ),
    Mistake(
        "logits divided in place",
        _in_place,
        "the result is right, but the caller's logits have changed: `/=` writes into them.",
    ),
    Mistake(
        "softmax by hand",
        _variant(heat=lambda logits, t: (logits / t).exp() / (logits / t).exp().sum(-1, keepdim=True)),
        "right on paper; but exp of a large logit is infinite in float32. .softmax(-1) takes the largest out first.",
    ),
    Mistake(
        "sum over everything",
        _variant(
            by_k=lambda p, k: (kept := p.where(_best_k(p, k) > 0, 0)) / kept.sum(),
            by_p=lambda p, q: (kept := p.where(_nucleus(p, q) > 0, 0)) / kept.sum(),
        ),
        "you divide by .sum() of the whole tensor. Each row sums to 1 by itself: sum(-1, keepdim=True).",
        also=(_variant(by_k=lambda p, k: (kept := p.where(_best_k(p, k) > 0, 0)) / kept.sum()),),
    ),
    Mistake(
        "left in order",
        _variant(by_p=_left_sorted),
        "the probabilities come back sorted, so that index 0 is no longer code 0. Cut by a threshold, p >= least, and "
        "leave the codes where they are.",
    ),
    Mistake(
        "sorted upwards",
        _variant(by_p=_cut_upwards),
        "your sum begins with the least likely code, and ends where it reaches top_p: few codes are left above that. "
        "Sort from the likeliest down, descending=True.",
    ),
    Mistake(
        "the last of equals",
        _variant(cold=lambda logits: filtered_probabilities(logits.flip(-1), temperature=0).flip(-1)),
        "at temperature 0 the *last* of equals is taken; it is the first.",
    ),
    Mistake(
        "temperature 0 is 1",
        _variant(cold=lambda logits: logits.softmax(-1)),
        "at temperature 0 nothing happens to the logits. It stands for the limit: all of the probability on "
        "the likeliest code.",
    ),
    Mistake(
        "one argmax for all",
        _variant(cold=lambda logits: torch.zeros_like(logits).index_fill_(-1, logits.argmax() % logits.shape[-1], 1.0)),
        "at temperature 0 one arg-max is taken over all rows; each has its own: argmax(-1).",
    ),
    Mistake(
        "power not divided",
        _variant(heat=lambda logits, t: logits.softmax(-1) ** (1 / t)),
        "p to the power 1/τ does not sum to one. Divide by the sum, or divide the logits before the softmax.",
    ),
    Mistake(
        "softmax over another axis",
        _variant(heat=lambda logits, t: (logits / t).softmax(0)),
        "the softmax runs over another axis. The codes are on the last one: softmax(-1).",
        also=(_variant(heat=lambda logits, t: (logits / t).softmax(1)),),
    ),
    Mistake(
        "cut logits are 0",
        _variant(by_k=lambda p, k: p.log().where(_best_k(p, k) > 0, 0).softmax(-1)),
        "the logits of what is cut are set to 0, and e⁰ = 1: they still get a probability. Set them to −∞, or"
        " the probabilities to 0.",
        also=(_zero_logits,),
    ),
    Mistake(
        "one threshold for all rows",
        _variant(
            by_k=lambda p, k: _only(p, p >= p.topk(k, -1).values[..., -1:].min()),
            by_p=lambda p, q: _only(p, p >= p.where(_nucleus(p, q) > 0, torch.inf).min()),
        ),
        "one threshold serves all rows; each has its own: values[..., -1:], amin(-1, keepdim=True).",
        also=(
            _variant(by_k=lambda p, k: _only(p, p >= p.topk(k, -1).values[..., -1:].min())),
            _variant(by_p=lambda p, q: _only(p, p >= p.where(_nucleus(p, q) > 0, torch.inf).min())),
        ),
    ),
    Mistake(
        "ranks for codes",
        _variant(by_p=lambda p, q: _only(p, (r := p.sort(-1, descending=True).values).cumsum(-1) - r < q)),
        "the cut is found in sorted order and made in the order of the codes: it hits others. Turn it into a "
        "threshold, or sort back.",
        also=(_variant(by_p=lambda p, q: p.where((r := p.sort(-1, descending=True).values).cumsum(-1) - r < q, 0)),),
    ),
    Mistake(
        "softmax once more",
        _variant(by_k=lambda p, k: p.where(_best_k(p, k) > 0, 0).softmax(-1)),
        "a softmax of probabilities makes them nearly equal, and those that are 0 come back. Divide by the sum.",
    ),
    Mistake(
        "divided by the largest",
        _variant(by_k=lambda p, k: (b := _best_k(p, k)) / b.amax(-1, keepdim=True)),
        "you divide by the largest probability; divide by the sum.",
        also=(
            _variant(
                by_k=lambda p, k: (b := _best_k(p, k)) / b.amax(-1, keepdim=True),
                by_p=lambda p, q: (b := _nucleus(p, q)) / b.amax(-1, keepdim=True),
            ),
        ),
    ),
    Mistake(
        "a share of the codes",
        _variant(by_p=lambda p, q: _best_k(p, max(1, int(q * p.shape[-1])))),
        "top_p is taken as a share of the K codes. It is a sum of probabilities: few codes where the model is sure.",
    ),
)

EXERCISE = Exercise(
    name="filtered_probabilities",
    chapter="07_transformer_prior",
    reference=filtered_probabilities,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

"""Exercise 5.4, lookup by angle: the code with the largest cosine."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call
from companion.quantizers import cosine_lookup


def cases() -> Sequence[Case]:
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
        case("2,000 latents, some at nearly the same angle to two of 60 codes", 2000, 60, 3, gap=5e-5),
        Case("latents that point exactly away from a code", (-3 * opposite[clear], opposite)),
        Case("latents that are not contiguous in memory", (turned.T.contiguous().T, codes)),
        Case("every code points away from every latent", (-3 * opposite[clear].abs(), opposite.abs())),
    ]


def _unit(v: Tensor, dim: int = 1) -> Tensor:
    return functional.normalize(v, dim=dim)


def _cosines(z: Tensor, codebook: Tensor) -> Tensor:
    return _unit(z) @ _unit(codebook).T  # (N, K)


MISTAKES = (
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
        "this is the code at the *largest* angle. The cosine is largest where angle and distance are smallest.",
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
        "the columns of the codebook are scaled to length 1, not the codes. Scale its rows, and only then transpose: "
        "normalize(codebook, dim=1).T.",
    ),
    Mistake(
        "short codes left short",
        lambda z, e: (_unit(z) @ functional.normalize(e, dim=1, eps=0.1).T).argmax(1),
        "codes shorter than your eps do not get the length 1, and so never win. Leave eps at its default.",
        also=(lambda z, e: (_unit(z) @ functional.normalize(e, dim=1, eps=1.0).T).argmax(1),),
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
        "the product is computed in half precision, which has too few digits for codes at nearly the same angle. Stay "
        "in the dtype that came in.",
    ),
    Mistake(
        "negative cosines cut off",
        lambda z, e: _cosines(z, e).clamp(min=0).argmax(1),
        "negative cosines are set to 0: where all codes point away from a latent they tie, and the first one wins.",
    ),
    Mistake(
        "L1",
        lambda z, e: (_unit(z) @ functional.normalize(e, p=1, dim=1).T).argmax(1),
        "the codes are divided by the sum of their absolute values. The length is the root of the sum of "
        "squares (p=2, the default).",
    ),
    Mistake(
        "largest coordinate 1",
        lambda z, e: (_unit(z) @ (e / e.abs().amax(1, keepdim=True)).T).argmax(1),
        "the codes are divided by their largest coordinate, not by their length.",
    ),
    Mistake(
        "added to the length",
        lambda z, e: (_unit(z) @ (e / (e.norm(dim=1, keepdim=True) + 1)).T).argmax(1),
        "something is added to the lengths before you divide by them, so that short codes lose.",
        also=(lambda z, e: (_unit(z) @ (e / (e.norm(dim=1, keepdim=True) + 0.01)).T).argmax(1),),
    ),
    Mistake(
        "correlation",
        lambda z, e: _cosines(z - z.mean(1, keepdim=True), e - e.mean(1, keepdim=True)).argmax(1),
        "the mean of each vector is taken away first: that makes a correlation. The angle is that of the "
        "vectors as they are.",
    ),
    Mistake(
        "rounded",
        lambda z, e: _cosines(z, e).round(decimals=2).argmax(1),
        "the cosines are rounded, so that codes at nearly the same angle tie.",
        also=(lambda z, e: _cosines(z, e).round(decimals=3).argmax(1),),
    ),
)

EXERCISE = Exercise(
    name="cosine_lookup",
    chapter="05b_what_does_the_work",
    reference=cosine_lookup,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

"""What is measured of a prior, on the codes of the images."""

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from companion.codes import identity
from companion.diagnosis import rules
from companion.diagnosis.measure import Seen
from companion.diagnosis.rules import VECTORS_PER_CODE, Look, effective, judged, too_few
from companion.metrics import bits_per_image
from companion.priors import Prior, prior_bits

# Thresholds, as in rules.py.
COUNTING = 0.95  # bits of the prior, over those of the shares of codes. Healthy: 0.42 to 0.54
POSITIONS = 0.98  # over those of the shares at each position. Healthy: 0.58 to 0.70
IMAGES = 500  # looked at, or as many as IMAGES_PER_CODE wants: each takes a pass of the prior, twice with classes
IMAGES_PER_CODE = 4  # with fewer, shares at a position are too good: each takes (K − 1) / 2N nats off
WRONG_LABELS = 0.01  # what wrong labels cost more, over what right ones do. Healthy: 0.15 to 0.63
FEW_CODES = 0.5  # effective number of codes in samples, over that in images. Healthy: 1.00 to 1.10
DISTINCT = 0.5  # the share of samples that differ from all before. Healthy: 1


def of_prior(prior: Prior, model: torch.nn.Module, seen: Seen, samples: int, seed: int) -> Iterator[Look]:
    """Everything about a prior; of so many images, some evenly spaced ones do."""
    grid = tuple(seen.codes[0].shape[1:])
    if (prior.num_codes, prior.grid) != (seen.num_codes, grid):
        raise ValueError(
            f"prior: got one of {prior.num_codes} codes and tables {prior.grid}, want {seen.num_codes} and {grid} as "
            "the model makes them"
        )
    weights = rules.of_weights(prior, "prior")
    yield weights
    if weights.found:
        return
    yield of_identity(prior, model)
    codes, labels = torch.cat(seen.codes), torch.cat(seen.labels) if seen.labels and prior.num_classes else None
    rows = _spaced(len(codes), max(IMAGES, IMAGES_PER_CODE * seen.num_codes))
    yield from of_bits(prior, codes[rows], None if labels is None else labels[rows], seen.stacked)
    rows = _spaced(len(codes), samples)
    yield of_samples(prior, codes[rows], None if labels is None else labels[rows], seen.stacked, samples, seed)


def _spaced(available: int, n: int) -> Tensor:
    """``n`` rows, or all that there are, evenly spaced: sets may be ordered by class."""
    return torch.linspace(0, available - 1, min(n, available), device="cpu").round().long()


def of_identity(prior: Prior, model: torch.nn.Module) -> Look:
    here = identity(model)
    name = "a prior for another tokenizer"
    if not prior.tokenizer:
        return Look(name, "prior", {}, "cannot be told: it names none", None)
    return Look(name, "prior", {"same identity": float(prior.tokenizer == here)}, "0", prior.tokenizer != here)


def of_bits(prior: Prior, codes: Tensor, labels: Tensor | None, stacked: bool) -> Iterator[Look]:
    """Counting codes, the codes before, and the class."""
    bits, wanted = _bits(prior, codes, labels), VECTORS_PER_CODE * prior.num_codes
    depths = _by_depth(codes, stacked)
    counted = sum(one[0].numel() * math.log2(effective(one)) for one in depths)
    by_position = bits_per_image(codes, prior.num_codes)["per_position"]
    poor = judged(
        "a prior no better than counting codes",
        "prior",
        {"bits of an image": bits, "by the shares of codes": counted},
        f"above {COUNTING:g} of these",
        bits > COUNTING * counted,
        (depths[0].numel() < wanted, too_few("codes", wanted)),
    )
    yield poor
    wanted = IMAGES_PER_CODE * prior.num_codes
    yield judged(
        "a prior that ignores the codes before",
        "prior",
        {"bits of an image": bits, "by the shares of codes at each position": by_position},
        f"above {POSITIONS:g} of these",
        bits > POSITIONS * by_position,
        (bool(poor.found), "explained by 'a prior no better than counting codes'"),
        (len(codes) < wanted, too_few("images", wanted)),
    )
    if labels is not None and prior.num_classes > 1:
        turn = 1 + torch.arange(len(labels), device="cpu") % (prior.num_classes - 1)  # every other class equally often
        wrong = _bits(prior, codes, (labels + turn) % prior.num_classes)
        more = wrong / bits - 1 if bits > 0 else math.nan
        measured = {"bits with right labels": bits, "with wrong ones": wrong, "more": more}
        limit, found = f"more: below {WRONG_LABELS:g}", more < WRONG_LABELS
        yield Look("a prior that ignores its class", "prior", measured, limit, found)


def of_samples(prior: Prior, codes: Tensor, labels: Tensor | None, stacked: bool, samples: int, seed: int) -> Look:
    """Does what it draws have the variety of what it learnt from?"""
    n = samples if labels is None else len(labels)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a start vector without a class
        drawn = prior.sample(n, labels, generator=generator).cpu()
    pairs = zip(_by_depth(drawn, stacked), _by_depth(codes, stacked), strict=True)
    variety = min(effective(ours) / effective(theirs) for ours, theirs in pairs)
    distinct, real = _distinct(drawn), _distinct(codes)
    measured = {"effective codes, over those of images": variety, "samples that differ": distinct}
    found = variety < FEW_CODES or distinct < DISTINCT * real
    return Look("samples that repeat few codes", "prior", measured, f"below {FEW_CODES:g}, or {DISTINCT:g}", found)


def _by_depth(codes: Tensor, stacked: bool) -> list[Tensor]:
    return list(codes.unbind(-1)) if stacked else [codes]


def _distinct(codes: Tensor) -> float:
    """The share of tables that differ from all before."""
    return len(codes.flatten(1).unique(dim=0)) / len(codes)


def _bits(prior: Prior, codes: Tensor, labels: Tensor | None) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a start vector without a class: the finding says it better
        return prior_bits(prior, codes, labels)

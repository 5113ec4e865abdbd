"""From measurements to findings: one small function for each thing that goes wrong, and all thresholds in one place."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from companion.diagnosis.measure import Seen
from companion.metrics import CodeUsage, bits_per_image
from companion.quantizers import EMAVectorQuantizer, ProjectedQuantizer, Quantizer, ResidualQuantizer

# Thresholds. "Healthy" is the range over the seven tokenizers and four priors that come with the package, each on 2,000
# test images (emoji: all 339); tests/test_diagnosis.py measures it again. Each threshold lies far from that range, so
# that a young or a small model raises no alarm, and so that what is found is worth a look.

DARK = 0.1  # the largest pixel of a set that was divided by 255 twice is 0.004. Healthy: 1
FLAT = 1e-6  # variance of all pixels, below which there is nothing to encode. Healthy: 0.05 and more
VECTORS_PER_CODE = 20  # with fewer, a rare code is missed by chance. Of MNIST's, the rarest has 1/18 of an even share
ONE_CODE = 1.5  # effective number of codes: at 1.5, one code has at least 85 % of the vectors. Healthy: 9 and more
FEW_IMAGES = 8  # with fewer, a position has few codes by chance
IGNORES_IMAGE = 0.05  # entropy of a code given its position, over that without. Healthy: 0.66 to 0.89
STRETCH = 2.0  # how much longer than the codes the latents are. Healthy: 0.998 to 1.005, a code being a mean of vectors
ALONE = 100  # the same where one code is chosen: it may lie at the mean of all latents, and be short there
SHIFT = 0.5  # ‖z̄ − ē‖² over the spread of the latents. Healthy: below 0.001
FAR = 1.2  # mean ‖z − e‖² over the spread; a single code at the mean of the latents has 1. Healthy: 0.02 to 0.29
USED = 0.9  # the share of codes that are chosen. Healthy: 1
OTHER_SHARES = 0.45  # total variation between the shares of codes here and in training. Healthy: 0.01 to 0.08; after
# two epochs, when the codes of the first batches still count, up to 0.41. Inverted images: 0.57 to 0.77
SAME_CODES = 0.5  # the share of a depth's codes that are also codes of an earlier depth. Healthy: 0
SAME_INDICES = 0.95  # the share of positions where two depths have the same index. Healthy: 0.07 (chance: about 1/K)
DEPTH_GAIN = 0.02  # which part of the squared residual a depth takes away, at least. Healthy: 0.71 and more
SWAP = 0.02  # how much reconstructions move with their codes, over how far images are apart. Healthy: 0.84 to 0.95
ACTIVE = 0.01  # nats: the KL of a dimension that is used (Burda et al. 2016 take 0.01 for the variance of its mean)
ACTIVE_SHARE = 0.1  # of a VAE's dimensions: one that leaves out half of them prunes itself, and is well
CHANGED = 0.05  # of the codes, where they are exchanged: if fewer change, nothing can be said of the decoder
NO_BETTER = 0.95  # MSE over that of the mean picture. Healthy: 0.04 to 0.17


@dataclass(frozen=True)
class Look:
    """One thing that was looked at: what it is called if it is wrong, where, the numbers, and from when on it is wrong.

    ``found`` is None where it could not be told, or where another finding explains it already; ``limit`` then says why.
    """

    name: str
    where: str
    measured: Mapping[str, float]
    limit: str
    found: bool | None


def judged(
    name: str, where: str, measured: Mapping[str, float], limit: str, found: bool, *unless: tuple[bool, str]
) -> Look:
    """A look, unless one of the reasons holds why nothing can be said."""
    for holds, why in unless:
        if holds:
            return Look(name, where, measured, why, None)
    return Look(name, where, measured, limit, found)


def too_few(what: str, wanted: int) -> str:
    return f"too few {what} to tell: {wanted:,} are wanted"


# Weights and images --------------------------------------------------------------------------------------------------


def of_weights(model: nn.Module, where: str = "model") -> Look:
    wrong = {
        name: int((~value.isfinite()).sum())
        for name, value in chain(model.named_parameters(), model.named_buffers())
        if value.is_floating_point() and not bool(value.isfinite().all())
    }
    place = next((f"{where}: {name}" for name in wrong), where)
    measured = {"tensors with NaN or infinity": len(wrong), "numbers that are NaN or infinite": sum(wrong.values())}
    return Look("weights that are not finite", place, measured, "more than 0", bool(wrong))


def of_training(quantizer: Quantizer) -> Iterator[Look]:
    """Codes that wait for their first batch, or for ``from_codebook``."""
    for place, member in members("quantizer", quantizer):
        if isinstance(member, EMAVectorQuantizer) and member.init != "uniform":
            young = int(member.step) == 0 and not bool(member.counts.any())
            given = member.init == "given" and bool(member.codebook.any())
            measured = {"updates so far": int(member.step)}
            yield Look(
                "a codebook that was never trained", place, measured, "0, and no codes given", young and not given
            )


def outside(x: Tensor) -> bool:
    """Whether a pixel is NaN or lies outside [0, 1], by more than rounding."""
    least, most = map(float, x.aminmax())
    return not (least >= -1e-3 and most <= 1 + 1e-3)


def of_range(least: float, most: float, variance: float) -> Look:
    limit = f"outside 0 … 1, most below {DARK:g}, or variance below {FLAT:g}"
    found = not (least >= -1e-3 and most <= 1 + 1e-3) or most < DARK or variance < FLAT
    measured = {"least": least, "most": most, "variance": variance}
    return Look("images out of range", "images", measured, limit, found)


# Codes ---------------------------------------------------------------------------------------------------------------


def of_codes(seen: Seen, quantizer: Quantizer) -> Iterator[Look]:
    """One code for all, codes that ignore the image, dead codes, shares unlike those of training."""
    in_training = dict(_shares_in_training(quantizer))
    for where, codes in seen.depths():
        perplexity = effective(codes)
        one = perplexity < ONE_CODE and seen.num_codes > 1 and codes.numel() > 1
        top = float(codes.flatten().mode().values.eq(codes).double().mean())
        measured = {"effective number of codes": perplexity, "share of the most frequent code": top}
        yield Look("one code for all", where, measured, f"effective number below {ONE_CODE:g}", one)
        yield _ignored(where, codes, seen.num_codes, one)
        if not _is_shared(quantizer):
            yield _dead(where, codes, seen.num_codes, one)
        if where in in_training:
            yield _unlike(where, codes, in_training[where], one)
    if _is_shared(quantizer):  # a code lives where one depth uses it
        codes = torch.cat([one for _, one in seen.depths()])
        yield _dead("quantizer", codes, seen.num_codes, effective(codes) < ONE_CODE)


def effective(codes: Tensor) -> float:
    """exp H of the shares of the codes, their effective number; as ``perplexity``, without a counter for each code."""
    share = codes.unique(return_counts=True)[1].double() / codes.numel()
    return float((-torch.xlogy(share, share).sum()).exp())


def _ignored(where: str, codes: Tensor, num_codes: int, one: bool) -> Look:
    """Does a position have the same code in every image?"""
    bits = bits_per_image(codes, num_codes)
    overall, given_position = bits["entropy"] / codes.shape[1], bits["per_position"] / codes.shape[1]
    return judged(
        "codes that ignore the image",
        where,
        {"bits of a code": overall, "given its position": given_position, "images": len(codes)},
        f"below {IGNORES_IMAGE:g} of the bits of a code",
        given_position < IGNORES_IMAGE * overall,
        (one, "explained by 'one code for all'"),
        (len(codes) < FEW_IMAGES, too_few("images", FEW_IMAGES)),
    )


def _dead(where: str, codes: Tensor, num_codes: int, one: bool) -> Look:
    used = len(codes.unique())
    dead = used < USED * num_codes
    return judged(
        "dead codes",
        where,
        {"codes": num_codes, "used": used, "vectors": codes.numel()},
        f"used: below {USED:g} of the codes",
        dead,
        (one, "explained by 'one code for all'"),
        (dead and codes.numel() < VECTORS_PER_CODE * num_codes, too_few("vectors", VECTORS_PER_CODE * num_codes)),
    )


def _unlike(where: str, codes: Tensor, trained: Tensor, one: bool) -> Look:
    counts = CodeUsage(len(trained)).update(codes).counts.double()
    distance = float((counts / counts.sum() - trained / trained.sum()).abs().sum() / 2)
    found, wanted = distance > OTHER_SHARES, VECTORS_PER_CODE * len(trained)
    return judged(
        "images unlike the training images",
        where,
        {"total variation between the shares of codes here and in training": distance},
        f"above {OTHER_SHARES:g}",
        found,
        (one, "explained by 'one code for all'"),
        (found and codes.numel() < wanted, too_few("vectors", wanted)),
    )


def of_searches(seen: Seen) -> Iterator[Look]:
    """Latents that outgrew their codes, and codes that lie elsewhere."""
    for where, search in seen.searches.items():
        measured = {
            "latents over codes": search.scale,
            "norm of a latent": search.norm,
            "norm of its code": search.code_norm,
        }
        limit, grown = f"latents over codes above {STRETCH:g}", search.scale > STRETCH
        if math.isnan(search.scale):  # one code is all that is chosen: is the cloud of latents wide beside its length?
            measured["latents over codes"] = (
                math.sqrt(search.spread) / search.code_norm if search.code_norm else math.nan
            )
            limit, grown = f"latents over codes above {ALONE:g}", measured["latents over codes"] > ALONE
        yield Look("latents running away", where, measured, limit, grown)
        if search.spread > 0:
            error, shift = search.error / search.spread, search.shift / search.spread
            measured = {"squared distance to the code, over the spread": error, "of it, that of the means": shift}
            limit = f"above {FAR:g}, or that of the means above {SHIFT:g}"
            yield Look("a codebook far from its latents", where, measured, limit, error > FAR or shift > SHIFT)


# Depths --------------------------------------------------------------------------------------------------------------


def of_depths(seen: Seen, quantizer: Quantizer) -> Iterator[Look]:
    """The same draw at every depth, and depths that add nothing."""
    inner = _inside(quantizer)
    if not isinstance(inner, ResidualQuantizer) or inner.depth == 1:
        return
    places, codes = zip(*seen.depths(), strict=True)
    books = [getattr(member, "codebook", None) for _, member in members("", inner)]
    for r in range(1, inner.depth):
        same = 0.0 if inner.shared else max(_shared_codes(books[s], books[r]) for s in range(r))
        equal = max(float((codes[s] == codes[r]).double().mean()) for s in range(r))
        several = effective(codes[r]) >= ONE_CODE  # or else one code is all there is to draw
        found = same > SAME_CODES or (several and equal > SAME_INDICES)
        measured = {"share of codes of an earlier depth": same, "share of positions with its index": equal}
        limit = f"above {SAME_CODES:g}, or {SAME_INDICES:g}"
        yield Look("the same draw at every depth", places[r], measured, limit, found)
        before, after = (seen.left.get(place, 0.0) for place in (places[r - 1], places[r]))
        if before > 0:
            gain = 1 - after / before
            yield judged(
                "depths that add nothing",
                places[r],
                {"part of the squared residual that it takes away": gain},
                f"below {DEPTH_GAIN:g}",
                gain < DEPTH_GAIN,
                (found, "explained by 'the same draw at every depth'"),
            )


def _shared_codes(some: Tensor | None, others: Tensor | None) -> float:
    """Which share of the codes in ``others`` are codes of ``some``, up to a thousandth of their length."""
    if some is None or others is None or some.shape[1] != others.shape[1]:
        return 0.0
    least = torch.cdist(others.float(), some.float()).amin(1)
    return float((least <= 1e-3 * others.float().norm(dim=1).clamp_min(1e-12)).float().mean())


# Reconstructions -----------------------------------------------------------------------------------------------------


def of_posterior(seen: Seen) -> Look:
    """How many dimensions of a VAE's latents tell images apart?"""
    kl = torch.as_tensor(seen.kl) / seen.pictures.n  # (*latent)
    active = int((kl > ACTIVE).sum())
    measured = {"dimensions": kl.numel(), "with KL": active, "KL of an image, nats": float(kl.sum())}
    limit = f"with KL above {ACTIVE:g} nats: fewer than {ACTIVE_SHARE:g} of them"
    return Look("posterior collapse", "encoder", measured, limit, active < ACTIVE_SHARE * kl.numel())


def of_pictures(seen: Seen) -> Iterator[Look]:
    """What the decoder does with the codes."""
    pictures = seen.pictures
    changed = pictures.codes_changed / max(1, pictures.codes_exchanged)
    moved = pictures.moved / pictures.apart if pictures.apart > 0 else math.nan
    yield judged(
        "a decoder that ignores its codes",
        "decoder",
        {"codes changed": changed, "reconstructions moved, over images": moved},
        f"moved: below {SWAP:g}",
        moved < SWAP,
        (math.isnan(moved), "cannot be told of one image, or of equal ones"),
        (changed < CHANGED, "cannot be told: nearly all images have the same codes"),
    )
    least = pictures.around_mean_picture
    if pictures.n > 1 and least > FLAT:
        measured = {"mse": pictures.mse, "mse of the mean picture": least, "ratio": pictures.mse / least}
        limit, found = f"ratio above {NO_BETTER:g}", pictures.mse > NO_BETTER * least
        yield Look("reconstructions no better than the mean picture", "decoder", measured, limit, found)


# Members of a quantizer ----------------------------------------------------------------------------------------------


def members(where: str, quantizer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The quantizers that have a codebook, with the name of their place; one that all depths share has it once."""
    if isinstance(quantizer, ResidualQuantizer):
        for r, member in enumerate(quantizer.quantizers):
            yield from members(where if quantizer.shared else f"{where}, depth {r + 1}", member)
    elif isinstance(quantizer, ProjectedQuantizer):
        yield from members(where, quantizer.quantizer)
    else:
        yield where, quantizer


def _inside(quantizer: nn.Module) -> nn.Module:
    return _inside(quantizer.quantizer) if isinstance(quantizer, ProjectedQuantizer) else quantizer


def _is_shared(quantizer: Quantizer) -> bool:
    inner = _inside(quantizer)
    return isinstance(inner, ResidualQuantizer) and inner.shared


def _shares_in_training(quantizer: Quantizer) -> Iterator[tuple[str, Tensor]]:
    """How often each code was chosen lately in training, where the quantizer keeps count."""
    for where, member in members("quantizer", quantizer):
        if isinstance(member, EMAVectorQuantizer) and bool(member.counts.any()):
            yield where, member.counts.cpu().double()

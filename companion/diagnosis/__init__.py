"""What is wrong with this model? ``diagnose`` looks at its weights, latents, codes, reconstructions and prior.

* ``measure``: one pass over the images; only sums and codes are kept.
* ``rules``, ``priors``: from measurements to findings. All thresholds stand at their top.
* ``remedies``: what each finding means, and what mends it.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from companion._arguments import (
    brief_kind,
    check_finite,
    check_instance,
    check_size,
    check_whole,
)
from companion._modes import evaluating
from companion.autoencoder import Autoencoder
from companion.configured import unwrapped
from companion.data.batches import Batches
from companion.diagnosis import priors as prior_rules
from companion.diagnosis import rules
from companion.diagnosis.measure import Seen, look_at_images, look_at_latents, look_at_posterior
from companion.diagnosis.remedies import MEANING_AND_REPAIR
from companion.diagnosis.rules import Look
from companion.priors import Prior
from companion.quantizers import Quantizer
from companion.training.randomness import random_state_kept
from companion.vae import VAE

__all__ = ["Diagnosis", "Finding", "Look", "diagnose"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        name: of what is wrong, such as "dead codes".
        where: the part of the model, such as "quantizer, depth 2".
        measured: the numbers that show it, each by its name.
        meaning: what that does to the model.
        repair: what mends it, in the names of this library's arguments.
    """

    name: str
    where: str
    measured: Mapping[str, float]
    meaning: str
    repair: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` shows it as a report.

    Attributes:
        findings: what is wrong, causes before what follows from them; empty for a healthy model.
        looks: everything that was looked at, with its numbers and the limit beyond which it is a finding.
        subject: what was looked at, in words.
    """

    findings: tuple[Finding, ...]
    looks: tuple[Look, ...]
    subject: str

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the findings, each once."""
        return tuple(dict.fromkeys(finding.name for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """Everything in it as dicts, lists, strings and numbers, ready for JSON (where NaN is None)."""
        findings = [{**vars(one), "measured": _plain(one.measured)} for one in self.findings]
        looks = [{**vars(one), "measured": _plain(one.measured)} for one in self.looks]
        return {"subject": self.subject, "healthy": self.healthy, "findings": findings, "looks": looks}

    def __str__(self) -> str:
        many = {0: "nothing wrong", 1: "1 finding"}.get(len(self.findings), f"{len(self.findings)} findings")
        lines = [f"{self.subject}: {many}"]
        for i, one in enumerate(self.findings, start=1):
            lines += ["", f"{i}. {one.name} ({one.where})", f"   measured: {_numbers(one.measured)}"]
            lines += [*_wrapped("   meaning: ", one.meaning), *_wrapped("   repair: ", one.repair)]
        lines += ["", "looked at (! found, ? could not be told):"]
        for look in self.looks:
            mark = {True: "!", False: " ", None: "?"}[look.found]
            lines.append(f" {mark} {look.name} ({look.where}): {_numbers(look.measured) or '–'} [{look.limit}]")
        return "\n".join(lines)


@torch.no_grad()
def diagnose(
    model: nn.Module,
    data: Any,
    prior: Prior | None = None,
    *,
    most: int = 2000,
    batch_size: int = 100,
    samples: int = 64,
    seed: int = 0,
) -> Diagnosis:
    """Look for what goes wrong with tokenizers and priors, name it, measure it, and say what mends it.

    Looked for are, by their names: weights that are not finite; images out of range; a codebook that was never trained;
    one code for all; codes that ignore the image; latents running away; a codebook far from its latents; dead codes;
    images unlike the training images (for quantizers that keep count of their codes); the same draw at every depth;
    depths that add nothing; a decoder that ignores its codes; reconstructions no better than the mean picture. Of a
    ``VAE``: posterior collapse (Bowman et al. 2016). With a prior: a prior for another tokenizer; a prior no better
    than counting codes; a prior that ignores the codes before; a prior that ignores its class; samples that repeat few
    codes. The thresholds, and what healthy models measure, stand in ``companion/diagnosis/rules.py`` and ``priors.py``.

    Collapse of a codebook: van den Oord et al. 2017 (appendix A.1), Dhariwal et al. 2020 (section 3); latents that
    outgrow their codes: van den Oord et al. 2017 (section 3.2, the commitment loss).

    All is computed in eval mode, on the model's device, in batches. Nothing is learnt, and modes and random state are
    afterwards as they were.

    Args:
        model: a ``VQVAE`` with any quantizer; a quantizer alone, whose ``data`` are latents; or a ``VAE``.
        data: images in [0, 1] of the kind that the model is for: a tensor, an ``ImageSet`` or one like it, or a data
            set with a length whose items are images, or images with labels. Labels are needed to see whether a prior
            heeds its class.
        prior: learnt on the codes of ``model``.
        most: how many images are looked at; of more, that many are drawn with a fixed seed.
        batch_size: how many at once.
        samples: how many tables are drawn from the prior.
        seed: of these draws.

    Shapes:
        data: (N, C, H, W), or latents (N, D, *spatial) for a quantizer.

    Raises:
        ValueError: an argument has the wrong type or is out of range, ``model`` has no codes (an ``Autoencoder``), or
            ``prior`` is one of other tables.
    """
    check_size("most", most)
    check_size("batch_size", batch_size)
    check_size("samples", samples)
    check_whole("seed", seed, least=0, most=2**63 - 1)
    model = unwrapped(model, "model")
    _check_model(model)
    if prior is not None:
        check_instance("prior", prior, Prior, "one of companion.priors, or None")
        if isinstance(model, Quantizer | VAE):
            raise ValueError(f"prior: got one beside a {type(model).__name__}, want None: it goes with a VQVAE")
    tensor = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    if device.type == "meta":
        raise ValueError("model: got tensors on the device meta, which holds no numbers, want a trained one")
    batches = Batches("data", data, most=most, batch_size=batch_size, device=device)
    dtype = tensor.dtype if tensor is not None and tensor.is_floating_point() else torch.float32
    with random_state_kept(device), evaluating(model):
        looks = tuple(_looks(model, batches, prior, dtype, samples, seed))
    named = f"{type(model).__name__}" + ("" if prior is None else f" and {type(prior).__name__}")
    what = "latents" if isinstance(model, Quantizer) else "images"
    found = [look for look in looks if look.found]
    findings = tuple(Finding(one.name, one.where, one.measured, *MEANING_AND_REPAIR[one.name]) for one in found)
    return Diagnosis(findings, looks, f"{named} on {len(batches):,} {what}")


def _check_model(model: nn.Module) -> None:
    want = "want a VQVAE, a quantizer with latents as data, or a VAE"
    if isinstance(model, Autoencoder):
        raise ValueError(f"model: got an Autoencoder, which has no codes that could collapse, {want}")
    if isinstance(model, Prior):
        raise ValueError(f"model: got a {type(model).__name__}, {want}; a prior goes into prior=")
    if isinstance(getattr(model, "tokenizer", None), nn.Module):
        raise ValueError(f"model: got {brief_kind(model)}, want the tokenizer in it: its .tokenizer")
    parts = all(isinstance(getattr(model, name, None), nn.Module) for name in ("encoder", "decoder"))
    if not isinstance(model, Quantizer | VAE) and not (
        parts and isinstance(getattr(model, "quantizer", None), Quantizer)
    ):
        raise ValueError(f"model: got {brief_kind(model)}, {want}")


def _looks(
    model: nn.Module, batches: Batches, prior: Prior | None, dtype: torch.dtype, samples: int, seed: int
) -> Iterator[Look]:
    """In the order of cause and effect. After what makes everything else meaningless, nothing more is looked at."""
    weights = rules.of_weights(model)
    yield weights
    if weights.found:
        return
    quantizer = model if isinstance(model, Quantizer) else getattr(model, "quantizer", None)
    never = [] if quantizer is None else list(rules.of_training(quantizer))
    yield from never
    if any(one.found for one in never):
        return
    seen = Seen()
    for x, labels in batches:
        if isinstance(model, Quantizer):
            check_finite("data", x)
            look_at_latents(seen, model, x.to(dtype))
            continue
        if rules.outside(x):
            yield rules.of_range(float(x.min()), float(x.max()), float(x.var(correction=0)))
            return
        seen.pictures.add(x)
        if isinstance(model, VAE):
            look_at_posterior(seen, model, x.to(dtype))
        else:
            look_at_images(seen, model, x.to(dtype))
        if labels is not None:
            seen.labels.append(labels.cpu())
    if not isinstance(model, Quantizer):
        yield rules.of_range(seen.pictures.least, seen.pictures.most, seen.pictures.variance)
    if quantizer is not None:
        yield from rules.of_searches(seen)
        yield from rules.of_codes(seen, quantizer)
        yield from rules.of_depths(seen, quantizer)
    if isinstance(model, VAE):
        yield rules.of_posterior(seen)
    if not isinstance(model, Quantizer):
        yield from rules.of_pictures(seen)
    if prior is not None:
        yield from prior_rules.of_prior(prior, model, seen, samples, seed)


def _plain(measured: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in measured.items()}


def _numbers(measured: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:,}" if float(value).is_integer() else f"{name} {value:.3g}" for name, value in measured.items()
    )


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)

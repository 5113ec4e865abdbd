"""``diagnose``: what is wrong with a tokenizer, and with a prior on its codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion.commands.inputs import open_pictures, open_prior, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say
from companion.data import ImageSet
from companion.metrics import CodeUsage, bits_per_image, distortion, mse
from companion.priors.base import Prior, prior_bits

_LEAST_SHARE = 0.1  # of the codes, below which the codebook has collapsed
_MOST_LOST = 0.5  # of the variance of the pixels


@dataclass(frozen=True)
class Diagnose(Command):
    """Say what is wrong with a tokenizer, and with --prior with a prior on its codes, and what mends it.

    The result is a folder with the report (report.txt), and the same as numbers (result.json).

    For example:

        python -m companion diagnose pictures --tokenizer runs/tokenizer --prior runs/prior --out runs/diagnosis
    """

    folder: str
    """Pictures: a folder or the name of a set, as for train-tokenizer."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    prior: Path | None = None
    """The folder that train-prior wrote, or a model in a .safetensors file."""
    out: Path = Path("runs/diagnosis")
    """The folder of the result."""
    split: str = "train"
    """The part of the set: "train" or "test"."""
    image_size: int | None = None
    """The middle square of each picture is resized to this side. None: as the tokenizer was trained."""
    limit: int | None = None
    """Use so many pictures, drawn at random. None: all of them."""
    seed: int = 0
    """Of the pictures that --limit draws."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("report.txt",)

    def run(self, result: Result) -> Numbers:
        opened = open_tokenizer(self.tokenizer)
        model, size = opened.model, self.image_size or opened.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        codes = companion.tokenize(model, pictures, progress=True)
        findings = _of_codes(codes) + _of_reconstructions(model, pictures)
        if self.prior is not None:
            prior = open_prior(self.prior).model
            companion.check_identity(model, prior)
            findings += _of_prior(prior, codes)
        lines = [f"{'fine ' if one.fine else 'WRONG'}  {one.look}" for one in findings]
        lines += [f"       what mends it: {one.repair}" for one in findings if not one.fine]
        say("\n".join(lines))
        result.write("report.txt", ("\n".join(lines) + "\n").encode())
        return {"wrong": "; ".join(one.look for one in findings if not one.fine) or "nothing"}


@dataclass(frozen=True)
class _Finding:
    look: str
    fine: bool
    repair: str


def _of_codes(codes: companion.CodeSet) -> list[_Finding]:
    """Of each depth: how many of the codes are used, by these pictures."""
    stacks = codes.codes if len(codes.grid) == 3 else codes.codes[..., None]
    found = []
    for r in range(stacks.shape[-1]):
        usage = CodeUsage(codes.num_codes).update(stacks[..., r])
        least = max(1.5, _LEAST_SHARE * min(codes.num_codes, stacks[..., r].numel()))
        where = f", depth {r + 1}" if stacks.shape[-1] > 1 else ""
        look = (
            f"codes{where}: {usage.usage:.0%} are used, evenly as {usage.perplexity:.0f} of {codes.num_codes} would be"
        )
        found.append(_Finding(look, usage.perplexity > least, "fewer --num-codes, more --steps, a smaller --lr"))
    return found


def _of_reconstructions(model: companion.VQVAE, pictures: ImageSet) -> list[_Finding]:
    """The error, as a part of that of the best single colour for all pixels."""
    x, _ = pictures.batch(range(min(len(pictures), 256)), next(model.parameters()).device)
    error = distortion(mse(model.reconstruct(x), x).item(), max(x.var().item(), 1e-12))
    look = f"reconstructions: {error:.1%} of the variance of the pixels is lost"
    return [_Finding(look, error < _MOST_LOST, "more --steps, more --width, a smaller --factor, more --depth")]


def _of_prior(prior: Prior, codes: companion.CodeSet) -> list[_Finding]:
    """Whether it costs fewer bits than counting codes at each position."""
    bits = prior_bits(prior, codes.codes, codes.labels if prior.num_classes else None)
    counted = bits_per_image(codes.codes, codes.num_codes)["entropy"]
    look = f"prior: {bits:.0f} bits a picture, where counting codes costs {counted:.0f}"
    return [_Finding(look, bits < counted, "more --steps, other --lr, more pictures")]

"""``evaluate``: how good a tokenizer, and a prior on its codes, are."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

import companion
from companion.commands.inputs import open_pictures, open_prior, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say
from companion.metrics import WINDOW, CodeUsage, bits_per_image, mse, ssim
from companion.priors.base import prior_bits


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure a tokenizer, and with --prior a prior too, on pictures.

    The result is a folder with the numbers (result.json): error and likeness of reconstructions, use of the codes, and
    bits of a picture's codes.

    For example:

        python -m companion evaluate pictures --tokenizer runs/tokenizer --prior runs/prior --out runs/evaluation
    """

    folder: str
    """Pictures: a folder or the name of a set, as for train-tokenizer. Best some that it was not trained on."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    prior: Path | None = None
    """The folder that train-prior wrote, or a model in a .safetensors file."""
    out: Path = Path("runs/evaluation")
    """The folder of the result."""
    split: str = "train"
    """The part of the set: "train" or "test"."""
    image_size: int | None = None
    """The middle square of each picture is resized to this side. None: as the tokenizer was trained."""
    limit: int | None = None
    """Use so many pictures, drawn at random. None: all of them."""
    batch_size: int = 128
    """Pictures in a batch."""
    seed: int = 0
    """Of the pictures that --limit draws."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    def run(self, result: Result) -> Numbers:
        opened = open_tokenizer(self.tokenizer)
        model, size = opened.model, self.image_size or opened.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        codes = companion.tokenize(model, pictures, batch_size=self.batch_size, progress=True)

        error = likeness = 0.0
        device = next(model.parameters()).device
        for rows in torch.arange(len(pictures)).split(self.batch_size):
            x, _ = pictures.batch(rows, device)
            rebuilt = model.decode(codes.codes[rows].to(device))
            share = len(rows) / len(pictures)
            error += share * mse(rebuilt, x).item()
            likeness += share * ssim(rebuilt, x).item() if min(x.shape[2:]) >= WINDOW else math.nan
        usage = CodeUsage(codes.num_codes).update(codes.codes)
        bits = bits_per_image(codes.codes, codes.num_codes)
        numbers: Numbers = {"pictures": len(pictures), "mse": error, "psnr": -10 * math.log10(max(error, 1e-12))}
        numbers |= {"ssim": likeness} if not math.isnan(likeness) else {}
        numbers |= {"perplexity": usage.perplexity, "usage": usage.usage}
        numbers |= {"bits_nominal": bits["nominal"], "bits_entropy": bits["entropy"]}
        if self.prior is not None:
            prior = open_prior(self.prior).model
            companion.check_identity(model, prior)
            numbers["bits_prior"] = prior_bits(prior, codes.codes, codes.labels if prior.num_classes else None)
        for name, value in numbers.items():
            say(f"{name:>14}  {value:.5g}")
        return numbers

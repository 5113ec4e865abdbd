"""``evaluate``: how good a tokenizer, and a prior on its codes, are."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion import plots
from companion.commands.inputs import open_pictures, open_prior, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say


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
    codecs: bool = False
    """Draw what is lost at how many bits, beside JPEG and WebP (rate_distortion.png)."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("rate_distortion.png",)

    def run(self, result: Result) -> Numbers:
        opened = open_tokenizer(self.tokenizer)
        model, size = opened.model, self.image_size or opened.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        prior = None if self.prior is None else open_prior(self.prior).model
        if prior is not None:
            companion.check_identity(model, prior)
        scores = companion.evaluate_tokenizer(model, pictures, prior, batch_size=self.batch_size)
        say(f"{scores}")
        if self.codecs:
            curves: dict[str, list[tuple[float, float]]] = {}
            for point in (*scores.points(), *companion.classical_codecs(pictures)):
                if point.distortion > 0:  # what loses nothing has no place on a logarithmic scale
                    curves.setdefault(f"{point.name}, {point.rate}", []).append(
                        (point.bits_per_pixel, point.distortion)
                    )
            result.write("rate_distortion.png", plots.to_png(plots.rate_distortion(curves)))
            say(f"{result.path('rate_distortion.png')}: what is lost at how many bits, beside JPEG and WebP")
        return {name: value for name, value in scores.as_row().items() if value not in (None, "")}

"""``evaluate``: how good a tokenizer, and a prior on its codes, are."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion import plots
from companion.commands.inputs import OfModels
from companion.commands.results import Numbers, Result, say


@dataclass(frozen=True)
class Evaluate(OfModels):
    """Measure a tokenizer, and with --prior a prior too, on pictures.

    The result is a folder with the numbers (result.json): error and likeness of reconstructions, use of the codes, and
    bits of a picture's codes.

    For example:

        python -m companion evaluate pictures --tokenizer runs/tokenizer --prior runs/prior --out runs/evaluation
    """

    out: Path = Path("runs/evaluation")
    """The folder of the result."""
    batch_size: int = 128
    """Pictures in a batch."""
    codecs: bool = False
    """Draw what is lost at how many bits, beside JPEG and WebP (rate_distortion.png)."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("rate_distortion.png",)

    def run(self, result: Result) -> Numbers:
        model, prior, pictures = self.opened()
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

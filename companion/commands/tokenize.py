"""``tokenize``: turn pictures into codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion.commands.inputs import CODES, open_pictures, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say
from companion.metrics import bits_per_image


@dataclass(frozen=True)
class Tokenize(Command):
    """Turn pictures into codes, by a trained tokenizer.

    The result is a folder with the codes (codes.safetensors), which train-prior learns from.

    For example:

        python -m companion tokenize pictures --tokenizer runs/tokenizer --out runs/codes
    """

    folder: str
    """Pictures: a folder or the name of a set, as for train-tokenizer."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    out: Path = Path("runs/codes")
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

    makes: ClassVar[tuple[str, ...]] = (CODES,)

    def run(self, result: Result) -> Numbers:
        tokenizer = open_tokenizer(self.tokenizer)
        size = self.image_size or tokenizer.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        codes = companion.tokenize(tokenizer.model, pictures, batch_size=self.batch_size, progress=True)
        codes.save(result.path(CODES))
        bits = bits_per_image(codes.codes, codes.num_codes)
        say(
            f"{result.path(CODES)}: {len(codes):,} pictures, for each {'×'.join(map(str, codes.grid))} codes, "
            f"out of {codes.num_codes}"
        )
        say(f"next: python -m companion train-prior --codes {result.folder}")
        return {
            "pictures": len(codes),
            "grid": list(codes.grid),
            "classes": list(pictures.classes),
            "bits": bits["entropy"],
        }

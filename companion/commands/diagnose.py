"""``diagnose``: what is wrong with a tokenizer, and with a prior on its codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion.commands.inputs import open_pictures, open_prior, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say


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
        size = self.image_size or opened.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        prior = None if self.prior is None else open_prior(self.prior).model
        found = companion.diagnose(opened.model, pictures, prior)
        say(f"{found}")
        result.write("report.txt", f"{found}\n".encode())
        return {"wrong": ", ".join(found.names) or "nothing"} | found.as_dict()

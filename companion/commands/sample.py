"""``sample``: draw new pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import companion
from companion.commands.inputs import open_prior, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say
from companion.commands.sheets import png, sheet

_NAMED = 20  # classes at most, in the line that says how many pictures of each were drawn


@dataclass(frozen=True)
class Sample(Command):
    """Draw new pictures: the prior draws codes, and the tokenizer shows them.

    The result is a folder with a sheet of them (samples.png), in which the classes follow each other, row by row, if
    the prior knows classes; with --files also each by itself.

    For example:

        python -m companion sample --prior runs/prior --tokenizer runs/tokenizer --out runs/samples
    """

    prior: Path = Path("runs/prior")
    """The folder that train-prior wrote, or a model in a .safetensors file."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    out: Path = Path("runs/samples")
    """The folder of the result."""
    n: int = 64
    """How many."""
    columns: int = 8
    """Pictures in a row of the sheet."""
    label: str | None = None
    """A class, by its name or number. None: as many of each."""
    temperature: float = 1.0
    """Below 1, likely codes become likelier; 0 takes the likeliest."""
    top_k: int | None = None
    """Draw from so many of the likeliest codes only."""
    top_p: float | None = None
    """Draw from the likeliest codes only, that together have this probability."""
    guidance: float = 1.0
    """More than 1: pictures more like their class."""
    files: bool = False
    """Write each picture into a file of its own too."""
    seed: int = 0
    """Of the draws."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("samples.png", "pictures")

    def run(self, result: Result) -> Numbers:
        opened, tokenizer = open_prior(self.prior), open_tokenizer(self.tokenizer).model
        prior = opened.model
        companion.check_identity(tokenizer, prior)
        labels = self._labels(prior.num_classes, opened.classes)
        codes = prior.sample(
            self.n,
            labels,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            guidance=self.guidance,
            generator=torch.Generator().manual_seed(self.seed),
        )
        images = torch.cat([tokenizer.decode(part) for part in codes.split(128)])
        for i, image in enumerate(images if self.files else []):
            result.write(f"pictures/{i:05}.png", png(image))
        result.write("samples.png", sheet(images, self.columns))
        counts = [] if labels is None else labels.bincount(minlength=len(opened.classes)).tolist()
        of_each = [f"{count} of {name}" for name, count in zip(opened.classes, counts, strict=False) if count]
        told = f": {', '.join(of_each)}" if 0 < len(of_each) <= _NAMED else ""
        say(f"{result.path('samples.png')}: {self.n} new pictures{told}")
        return {}

    def _labels(self, num_classes: int, names: list[str]) -> Tensor | None:
        """(n,) classes, or None for a prior without.

        Raises:
            ValueError: there is no such class.
        """
        if self.label is None:
            return torch.arange(self.n) * num_classes // self.n if num_classes else None
        known = names or [str(i) for i in range(num_classes)]
        if self.label in known:
            return torch.full((self.n,), known.index(self.label))
        if self.label.isdecimal() and int(self.label) < num_classes:
            return torch.full((self.n,), int(self.label))
        want = f"one of {', '.join(known)}" if num_classes else "none: the prior was trained without classes"
        raise ValueError(f"label: got {self.label!r}, want {want}")

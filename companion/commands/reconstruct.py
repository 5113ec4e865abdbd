"""``reconstruct``: what the codes of pictures show."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from companion.commands.inputs import open_pictures, open_tokenizer
from companion.commands.results import Command, Numbers, Result, say
from companion.commands.sheets import rows_sheet
from companion.metrics import mse


@dataclass(frozen=True)
class Reconstruct(Command):
    """Show what the codes of pictures keep of them.

    The result is a folder with a sheet (reconstructions.png) of pictures and, below each, its reconstruction; where a
    patch has several codes, from the first code alone, from the first two, and so on.

    For example:

        python -m companion reconstruct pictures --tokenizer runs/tokenizer --out runs/reconstructions
    """

    folder: str
    """Pictures: a folder or the name of a set, as for train-tokenizer."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    out: Path = Path("runs/reconstructions")
    """The folder of the result."""
    split: str = "train"
    """The part of the set: "train" or "test"."""
    n: int = 16
    """How many pictures, drawn at random."""
    columns: int = 8
    """Pictures in a row of the sheet."""
    image_size: int | None = None
    """The middle square of each picture is resized to this side. None: as the tokenizer was trained."""
    seed: int = 0
    """Of the draws."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("reconstructions.png",)

    def run(self, result: Result) -> Numbers:
        opened = open_tokenizer(self.tokenizer)
        model, size = opened.model, self.image_size or opened.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.n, seed=self.seed)
        x, _ = pictures.batch(range(len(pictures)), next(model.parameters()).device)
        codes = model.encode(x)
        rows = [x]
        for depth in range(1, getattr(model.quantizer, "depth", 1)):
            rows.append(model.decoder(model.quantizer.decode(codes, depth=depth)).detach().clamp(0, 1))
        rows.append(model.decode(codes))
        result.write("reconstructions.png", rows_sheet(rows, self.columns))
        say(f"{result.path('reconstructions.png')}: pictures, and below each what its codes give")
        return {"mse": mse(rows[-1], x).item()}

"""``train-tokenizer``: learn the codes of pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

import companion
from companion.augment import Augment
from companion.commands.inputs import TOKENIZER, held_out, open_pictures, pictures_at
from companion.commands.results import Command, Numbers, Result, say
from companion.commands.sheets import rows_sheet
from companion.commands.training import Log, Tracker, in_epochs, write_history
from companion.quantizers import Quantizer


@dataclass(frozen=True)
class TrainTokenizer(Command):
    """Learn the codes of pictures: a VQ-VAE, or with --depth an RQ-VAE.

    The result is a folder with the model (tokenizer.safetensors), held-out pictures above their reconstructions
    (reconstructions.png), and what was logged (history.csv, loss.png). Killed, the same command goes on where it was;
    with more --steps it trains on.

    For example:

        python -m companion train-tokenizer pictures --out runs/tokenizer
    """

    folder: str
    """Pictures: a folder, its sub-folders being classes if it has any; or "glyphs", "emoji", "mnist", "fashion-mnist",
    "cifar10", "celeba"."""
    out: Path = Path("runs/tokenizer")
    """The folder of the result."""
    image_size: int | None = None
    """The middle square of each picture is resized to this side. None: 32 for a folder; sets by name keep theirs."""
    limit: int | None = None
    """Use so many pictures, drawn at random. None: all of them."""
    factor: int = 4
    """A code stands for a patch of this side, in pixels."""
    num_codes: int = 256
    """How many different codes there are."""
    depth: int = 1
    """Codes for each patch: more than one make finer pictures, and longer work for the prior."""
    dim: int = 16
    """Length of the vector of a code."""
    width: int = 64
    """Channels inside encoder and decoder."""
    steps: int = 2000
    """Batches to learn from, rounded up to whole passes over the pictures."""
    batch_size: int = 32
    """Pictures in a batch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    augment: bool = False
    """Crop, mirror and sharpen the pictures at random while training. (Not where left and right differ, as in text.)"""
    seed: int = 0
    """Of first weights, order of the pictures, and which of them are held out."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    log: Log = "no"
    """Give each epoch to TensorBoard (its files are in the result's folder) or Weights & Biases too."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = (
        TOKENIZER,
        "states",
        "reconstructions.png",
        "loss.png",
        "history.csv",
        "tensorboard",
    )
    may_grow: ClassVar[tuple[str, ...]] = ("steps",)
    joins: ClassVar[bool] = True

    def run(self, result: Result) -> Numbers | None:
        pictures = open_pictures(self.folder, image_size=self.image_size, limit=self.limit, seed=self.seed)
        say(f"{pictures!r}")
        if self.factor > 0 and any(side % self.factor for side in pictures.shape[1:]):
            height, width = pictures.shape[1:]
            raise ValueError(
                f"image_size: got pictures of {height}×{width}, want a multiple of the factor {self.factor}"
            )
        train_rows, held_out_rows = held_out(len(pictures), self.seed)
        train, validation = pictures_at(pictures, train_rows), pictures_at(pictures, held_out_rows)

        torch.manual_seed(self.seed)
        channels, sizes = pictures.shape[0], {"hidden": self.width, "factor": self.factor}
        encoder = companion.ResNetEncoder(channels, self.dim, **sizes)
        decoder = companion.ResNetDecoder(channels, self.dim, **sizes)
        model = companion.VQVAE(encoder, self._quantizer(), decoder)

        history = companion.fit(
            model,
            train,
            validation=validation,
            epochs=in_epochs(self.steps, self.batch_size, len(train)),
            batch_size=self.batch_size,
            lr=self.lr,
            augment=Augment() if self.augment else None,
            seed=self.seed,
            precision=self.precision,
            run=result.path("states"),
            save_every=500,
            after_epoch=Tracker(self.log, result, self),
        )
        if history.interrupted:
            return None

        last = write_history(result, history, "reconstruction")
        result.save(model, TOKENIZER)
        some = torch.linspace(0, len(validation) - 1, min(16, len(validation))).long()  # of all classes
        x, _ = validation.batch(some, next(model.parameters()).device)
        result.write("reconstructions.png", rows_sheet([x, model.reconstruct(x)], columns=8))
        say(f"{result.path('reconstructions.png')}: held-out pictures, and below each what its codes give")
        say(f"next: python -m companion tokenize {self.folder} --tokenizer {result.folder}")
        return {"image_size": pictures.shape[1], "classes": list(pictures.classes)} | last

    def _quantizer(self) -> Quantizer:
        # A short run needs codes that follow quickly, and unused ones soon put to work.
        members = [
            companion.EMAVectorQuantizer(self.num_codes, self.dim, decay=0.9, restart_below=0.2)
            for _ in range(self.depth)
        ]
        return members[0] if self.depth == 1 else companion.ResidualQuantizer(members)

"""``train-prior``: learn which codes follow which."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

import companion
from companion.commands.inputs import PRIOR, codes_at, held_out, open_codes
from companion.commands.results import Command, Numbers, Result, say
from companion.commands.training import KeepBest, Log, Tracker, in_epochs, write_history
from companion.priors.base import Prior


@dataclass(frozen=True)
class TrainPrior(Command):
    """Learn which codes follow which: a transformer, and where a patch has several codes an RQ-Transformer.

    The result is a folder with the model (prior.safetensors) and what was logged (history.csv, loss.png). Killed, the
    same command goes on where it was; with more --steps it trains on.

    For example:

        python -m companion train-prior --codes runs/codes --out runs/prior
    """

    codes: Path = Path("runs/codes")
    """The folder that tokenize wrote, or its codes.safetensors."""
    out: Path = Path("runs/prior")
    """The folder of the result."""
    width: int = 128
    """Of the transformer."""
    layers: int = 4
    """Of the transformer."""
    heads: int = 4
    """Of its attention; they divide the width."""
    dropout: float = 0.2
    """Of its branches. Few pictures want much, many want little."""
    classes: bool = True
    """Whether to learn the classes too, so that sample can be asked for one; --no-classes leaves them out."""
    steps: int = 1500
    """Batches to learn from at most, rounded up to whole passes over the codes."""
    patience: int = 10
    """Stop when so many passes made the prior no better on the tables that are held out; the best is kept."""
    batch_size: int = 32
    """Tables of codes in a batch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    seed: int = 0
    """Of first weights, order of the tables, and which of them are held out."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    log: Log = "no"
    """Give each epoch to TensorBoard (its files are in the result's folder) or Weights & Biases too."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = (PRIOR, "states", "loss.png", "history.csv", "tensorboard")
    may_grow: ClassVar[tuple[str, ...]] = ("steps", "patience")
    joins: ClassVar[bool] = True

    def run(self, result: Result) -> Numbers | None:
        opened = open_codes(self.codes)
        codes = opened.model
        say(f"{len(codes):,} tables of {'×'.join(map(str, codes.grid))} codes")
        train_rows, held_out_rows = held_out(len(codes), self.seed)
        train, validation = codes_at(codes, train_rows), codes_at(codes, held_out_rows)

        torch.manual_seed(self.seed)
        classes = int(codes.labels.max()) + 1 if self.classes else 0
        prior = self._prior(codes, classes if classes > 1 else 0)
        best_so_far = KeepBest(self.patience, lambda model: result.save(model, PRIOR), Tracker(self.log, result, self))
        history = companion.fit(
            prior,
            train,
            validation=validation,
            epochs=in_epochs(self.steps, self.batch_size, len(train)),
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
            precision=self.precision,
            run=result.path("states"),
            save_every=500,
            clip=1.0,
            average=0.99,  # the running mean of the weights is better than the last ones
            after_epoch=best_so_far,  # one that sees few pictures knows them by heart in the end
        )
        if history.interrupted:
            return None

        last = write_history(result, history, "loss")
        best = min(row["validation_loss"] for row in history.rows)
        most = math.log2(codes.num_codes)
        say(f"{result.path(PRIOR)}: {best / math.log(2):.2f} bits for a code that was held out, of {most:g}")
        say(f"next: python -m companion sample --prior {result.folder}")
        return {"classes": opened.classes if prior.num_classes else []} | {"best_validation_loss": best} | last

    def _prior(self, codes: companion.CodeSet, classes: int) -> Prior:
        kind = companion.RQTransformer if len(codes.grid) == 3 else companion.TransformerPrior
        return kind(
            codes.num_codes,
            codes.grid,
            dim=self.width,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            num_classes=classes,
            label_dropout=0.1 if classes else 0.0,  # so that it also draws without a class, and guidance works
            tokenizer=codes.tokenizer,
        )

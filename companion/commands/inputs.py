"""What commands read: pictures, and the results of earlier commands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import companion
from companion._devices import default_device
from companion.checkpoint import load
from companion.codes import CodeSet
from companion.commands.results import NUMBERS, Command, read_config
from companion.data import ImageSet
from companion.data.cache import CachedImageSet
from companion.data.images import as_indices
from companion.priors.base import Prior
from companion.vqvae import VQVAE

TOKENIZER, CODES, PRIOR = "tokenizer.safetensors", "codes.safetensors", "prior.safetensors"
BUILT_IN = ("glyphs", "emoji")  # which keep their own size
_FOLDER_SIDE = 32
_HELD_OUT = 10  # one picture in so many


def open_pictures(
    folder: str, split: str = "train", *, image_size: int | None = None, limit: int | None = None, seed: int = 0
) -> ImageSet:
    """The pictures of a folder, in 32×32 pixels if nothing else is asked for, or a set by name."""
    if image_size is None and Path(folder).expanduser().is_dir():
        image_size = _FOLDER_SIDE
    if folder in BUILT_IN:
        image_size = None
    return companion.data.load(folder, split, size=limit, seed=seed, image_size=image_size)


def held_out(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows to train on, and one in ten that are held out: they show what was learnt by heart.

    Raises:
        ValueError: there are none to train on.
    """
    if n < 2:
        raise ValueError("got a single picture, want at least 2: one to train on, and one that is held out")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    few = max(1, n // _HELD_OUT)
    return order[few:].sort().values, order[:few].sort().values


@dataclass(frozen=True, eq=False)
class SomeOf:
    """Some pictures of a set that is in a file: of them only those of a batch are read, and none is kept.

    Shapes:
        rows: (n,) int64.
    """

    pictures: CachedImageSet
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor | Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`ImageSet.batch`, with indices into ``rows``."""
        return self.pictures.batch(self.rows[as_indices(indices, len(self)).cpu()], device)


def pictures_at(pictures: ImageSet, rows: Tensor) -> ImageSet | SomeOf:
    """Some pictures of a set, which are not copied where it is in a file, as it may be larger than the memory."""
    if isinstance(pictures, CachedImageSet):
        return SomeOf(pictures, rows)
    return replace(pictures, images=pictures.images[rows], labels=pictures.labels[rows])


def codes_at(codes: CodeSet, rows: Tensor) -> CodeSet:
    return replace(codes, codes=codes.codes[rows], labels=codes.labels[rows])


@dataclass
class Opened:
    """A model from a file, and what the command noted that made it."""

    model: Any
    notes: dict[str, Any]

    @property
    def image_size(self) -> int | None:
        return self.notes.get("image_size")

    @property
    def classes(self) -> list[str]:
        return list(self.notes.get("classes", ()))


def open_tokenizer(path: Path) -> Opened:
    """The tokenizer in the folder of a result, or in a file."""
    model = load(_file(path, TOKENIZER, "train-tokenizer"))
    if not isinstance(model, VQVAE):
        raise ValueError(f"tokenizer: {path} holds a {type(model).__name__}, want a tokenizer, of train-tokenizer")
    return Opened(model.to(default_device()), notes_of(path))


def open_prior(path: Path) -> Opened:
    """The prior in the folder of a result, or in a file."""
    model = load(_file(path, PRIOR, "train-prior"))
    if not isinstance(model, Prior):
        raise ValueError(f"prior: {path} holds a {type(model).__name__}, want a prior, of train-prior")
    return Opened(model.to(default_device()), notes_of(path))


def open_codes(path: Path) -> Opened:
    """The codes in the folder of a result, or in a file."""
    return Opened(CodeSet.load(_file(path, CODES, "tokenize")), notes_of(path))


def notes_of(path: Path) -> dict[str, Any]:
    """What stands in ``result.json`` of a folder, or beside a file."""
    file = (path if path.is_dir() else path.parent) / NUMBERS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _file(path: Path, name: str, command: str) -> Path:
    """
    Raises:
        ValueError: it is not there, or not finished.
    """
    if path.is_dir():
        config = read_config(path)
        if config is not None and config["command"] == command and not (path / NUMBERS).exists():
            raise ValueError(f"{path} is not finished: type its {command} again, which goes on")
        if not (path / name).exists():
            raise ValueError(f"{path} has no {name}, want the folder that {command} wrote")
        return path / name
    if not path.exists():
        raise ValueError(f"{path} is not there, want the folder that {command} wrote")
    return path


@dataclass(frozen=True)
class OfModels(Command):
    """The options of a command that looks at a tokenizer, and at a prior if there is one, on pictures."""

    folder: str
    """Pictures: a folder or the name of a set, as for train-tokenizer."""
    tokenizer: Path = Path("runs/tokenizer")
    """The folder that train-tokenizer wrote, or a model in a .safetensors file."""
    prior: Path | None = None
    """The folder that train-prior wrote, or a model in a .safetensors file."""
    split: str = "train"
    """The part of the set: "train" or "test"."""
    image_size: int | None = None
    """The middle square of each picture is resized to this side. None: as the tokenizer was trained."""
    limit: int | None = None
    """Use so many pictures, drawn at random. None: all of them."""
    seed: int = 0
    """Of the pictures that --limit draws."""

    def opened(self) -> tuple[VQVAE, Prior | None, ImageSet]:
        """The tokenizer, the prior, and the pictures in the size that the tokenizer was trained on."""
        tokenizer = open_tokenizer(self.tokenizer)
        size = self.image_size or tokenizer.image_size
        pictures = open_pictures(self.folder, self.split, image_size=size, limit=self.limit, seed=self.seed)
        return tokenizer.model, None if self.prior is None else open_prior(self.prior).model, pictures

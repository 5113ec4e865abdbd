"""The codes of an image set, with the identity of the tokenizer that made them (chapter 07)."""

import hashlib
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    brief_kind,
    check_available,
    check_codes,
    check_flag,
    check_instance,
    check_same_device,
    check_size,
    check_tensor,
    check_whole,
)
from companion._extras import require
from companion._modes import evaluating
from companion.checkpoint import (
    FORMAT_VERSION,
    add_to_digest,
    as_path,
    read_tensors,
    state_of,
    write_tensors,
)
from companion.configured import changes_since_built, unwrapped
from companion.data import ImageSet
from companion.data.images import as_indices
from companion.priors.base import Prior
from companion.quantizers import FiniteScalarQuantizer
from companion.vqvae import VQVAE


def identity(tokenizer: nn.Module) -> str:
    """The identity of a trained tokenizer: the first twelve hexadecimal digits of a hash of its weights and buffers.

    The same weights give the same identity on every machine, in training and in eval mode. The levels of a
    ``FiniteScalarQuantizer``, which has no weights, are part of it, and so are layers that were exchanged or added, and
    their attributes that were changed, after the model was made.

    Raises:
        ValueError: ``tokenizer`` is no module, a prior, or a model around a tokenizer.
    """
    tokenizer = unwrapped(tokenizer, "tokenizer")
    if isinstance(tokenizer, Prior):
        raise ValueError(
            f"tokenizer: got a {type(tokenizer).__name__}, want a tokenizer (prior.tokenizer names that of a prior)"
        )
    if isinstance(getattr(tokenizer, "tokenizer", None), nn.Module):  # such as an AdversarialTraining
        raise ValueError(f"tokenizer: got {brief_kind(tokenizer)}, want the tokenizer in it: its .tokenizer")
    digest = hashlib.sha256()
    add_to_digest(digest, state_of(tokenizer))
    for name, part in tokenizer.named_modules():
        if isinstance(part, FiniteScalarQuantizer):
            digest.update(f"{name} levels {part.config['levels']}\n".encode())
    for line in changes_since_built(tokenizer):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class CodeSet:
    """The codes of an image set, on which :func:`companion.fit` trains a prior.

    Args:
        codes: for each image its code indices.
        labels: for each image its class.
        num_codes: K.
        tokenizer: the :func:`identity` of the model that made the codes.

    Shapes:
        codes: (N, h, w) or (N, h, w, R) int64, each 0 … K − 1; labels: (N,) int64, each at least 0.

    Raises:
        ValueError: an argument has another type, shape, device or range.
    """

    codes: Tensor
    labels: Tensor
    num_codes: int
    tokenizer: str

    def __post_init__(self) -> None:
        check_whole("num_codes", self.num_codes, most=2**63 - 1)
        check_tensor("codes", self.codes, shape=("N", "h", "*grid"), dtype=torch.int64)
        check_codes("codes", self.codes, self.num_codes)
        check_tensor("labels", self.labels, shape=(len(self.codes),), dtype=torch.int64)
        check_same_device("labels", self.labels, "codes", self.codes)
        check_codes("labels", self.labels, 2**63)
        check_instance("tokenizer", self.tokenizer, str, "its identity, a string")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of the codes of one image: (h, w), or (h, w, R)."""
        return tuple(self.codes.shape[1:])

    def batch(self, indices: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The codes and labels at ``indices``.

        Args:
            device: of the result; default: that of the set.

        Shapes:
            indices: (B,) int64 → codes (B, *grid) int64, labels (B,) int64.

        Raises:
            ValueError: the indices are not one row of whole numbers from 0 to N − 1, or this machine has no such
                ``device``.
        """
        if device is not None:
            check_available("device", device)
        target = self.codes.device if device is None else torch.device(device)
        rows = as_indices(indices, len(self)).to(self.codes.device)
        return self.codes[rows].to(target), self.labels[rows.to(self.labels.device)].to(target)

    def to(self, device: torch.device | str) -> "CodeSet":
        """The same codes and labels on ``device``.

        Raises:
            ValueError: ``device`` is no device, or none of this machine.
        """
        check_available("device", device)
        return replace(self, codes=self.codes.to(device), labels=self.labels.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, in which a code takes one, two, four or eight bytes, depending on K.

        The file appears under its name when it is complete.

        Raises:
            ValueError: ``path`` is a folder, or does not end in ``.safetensors``.
        """
        path = as_path(path)
        if path.suffix != ".safetensors" or "\0" in str(path):
            raise ValueError(f"path: got {str(path)!r}, want a name that ends in .safetensors")
        if path.is_dir():
            raise ValueError(f"path: got {path}, which is a folder, want a file")
        small = next(kind for kind in _KINDS if self.num_codes - 1 <= torch.iinfo(kind).max)
        tensors = {"codes": self.codes.cpu().to(small).contiguous(), "labels": self.labels.cpu().contiguous()}
        about = {"format": "companion codes", "version": FORMAT_VERSION}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, about | {"num_codes": int(self.num_codes), "tokenizer": self.tokenizer})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CodeSet":
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: the file holds no set of codes, or is damaged.
        """
        path = as_path(path)
        about, tensors = read_tensors(path, "companion codes", "that holds no set of codes")
        codes, labels = tensors.get("codes"), tensors.get("labels")
        if codes is None or labels is None or tensors.keys() != {"codes", "labels"} or codes.dtype not in _KINDS:
            raise ValueError(f"path: {path} is a safetensors file that holds no set of codes")
        try:
            return cls(codes.long(), labels, about.get("num_codes"), about.get("tokenizer"))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"path: {path} holds no set of codes: {error}") from error


_KINDS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@torch.no_grad()
def tokenize(tokenizer: VQVAE, images: ImageSet, *, batch_size: int = 500, progress: bool = False) -> CodeSet:
    """The codes of all images, computed in eval mode, with the identity of the tokenizer.

    Args:
        batch_size: how many images are encoded at once.
        progress: show a progress bar.

    Shapes:
        images: N of them → ``CodeSet`` with codes (N, h, w) or (N, h, w, R), on the CPU.

    Raises:
        ValueError: an argument has the wrong type or is out of range.
    """
    check_size("batch_size", batch_size)
    check_flag("progress", progress)
    if not hasattr(unwrapped(tokenizer, "tokenizer"), "quantizer"):  # any model built like a VQVAE
        raise ValueError(f"tokenizer: got {brief(tokenizer)}, want a VQVAE")
    check_instance("images", images, ImageSet, "an ImageSet")
    device = next(tokenizer.parameters()).device
    if device.type == "meta":
        raise ValueError("tokenizer: got tensors on the device meta, which holds no numbers, want a trained one")
    channels = getattr(tokenizer.encoder, "in_channels", images.shape[0])
    if images.shape[0] != channels:
        raise ValueError(f"images: got {images.shape[0]} channels, want {channels}, as the tokenizer's encoder")
    batches = [
        torch.arange(start, min(start + batch_size, len(images)), device="cpu")
        for start in range(0, len(images), batch_size)
    ]
    if progress:
        batches = require("tqdm.auto", extra="train", what="tokenize(progress=True)").tqdm(batches, unit="batch")
    with evaluating(tokenizer):
        codes = torch.cat([tokenizer.encode(images.batch(rows, device)[0]).cpu() for rows in batches])
    return CodeSet(codes, images.labels.cpu(), tokenizer.quantizer.num_codes, identity(tokenizer))


def check_identity(tokenizer: VQVAE, codes_or_prior: CodeSet | Prior) -> None:
    """Make sure that codes, or those that a prior was trained on, belong to ``tokenizer``.

    With another tokenizer the same indices stand for other vectors, and decode to other images.

    Raises:
        ValueError: they were made by another tokenizer.
    """
    check_instance("codes_or_prior", codes_or_prior, (CodeSet, Prior), "a CodeSet or a prior")
    here, there = identity(tokenizer), codes_or_prior.tokenizer
    if here != there:
        what = "prior goes" if isinstance(codes_or_prior, Prior) else "codes go"
        raise ValueError(
            f"tokenizer: got the one with identity {here}, but the {what} with {there or 'no tokenizer by name'}"
        )

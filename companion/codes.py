"""The codes of a data set, beside the identity of the tokenizer that wrote them (chapter 07)."""

import hashlib
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    check_codes,
    check_device,
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
    unwrapped,
    write_tensors,
)
from companion.data import ImageSet
from companion.data.images import check_rows
from companion.priors.base import Prior
from companion.quantizers import FiniteScalarQuantizer
from companion.vqvae import VQVAE


def identity(tokenizer: nn.Module) -> str:
    """Twelve hexadecimal digits that tell one trained tokenizer from another: of a hash of all its weights and buffers.

    The same weights give the same identity on every machine, in training and in eval mode. The levels of a
    ``FiniteScalarQuantizer``, which has no weights, count as well.
    """
    tokenizer = unwrapped(tokenizer, "tokenizer")
    digest = hashlib.sha256()
    add_to_digest(digest, state_of(tokenizer))
    for name, part in tokenizer.named_modules():
        if isinstance(part, FiniteScalarQuantizer):
            digest.update(f"{name} levels {part.config['levels']}\n".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class CodeSet:
    """The codes of a set of images, as :func:`companion.fit` takes them.

    Shapes:
        codes: (N, *grid) int64, each 0 … ``num_codes`` − 1; labels: (N,) int64, each at least 0.

    Raises:
        ValueError: one of them has another type, shape, device or range.
    """

    codes: Tensor
    labels: Tensor
    num_codes: int
    tokenizer: str  # the identity of the model that wrote them

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
        """(h, w), or (h, w, R)."""
        return tuple(self.codes.shape[1:])

    def batch(self, indices: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The codes and labels at ``indices`` [B], on ``device``, or where the set lives.

        Raises:
            ValueError: the indices are not one row of whole numbers from 0 to N − 1.
        """
        if device is not None:
            check_device("device", device)
        target = self.codes.device if device is None else torch.device(device)
        rows = check_rows(indices, len(self)).to(self.codes.device)
        return self.codes[rows].to(target), self.labels[rows.to(self.labels.device)].to(target)

    def to(self, device: torch.device | str) -> "CodeSet":
        check_device("device", device)
        return replace(self, codes=self.codes.to(device), labels=self.labels.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; a code takes one, two, four or eight bytes, as K needs.

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
        write_tensors(path, tensors, about | {"num_codes": int(self.num_codes), "tokenizer": self.tokenizer})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CodeSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no set of codes, or is damaged.
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
    """The codes of all images, written in eval mode, with the tokenizer's identity.

    Args:
        progress: show a bar.

    Raises:
        ValueError: an argument is of another kind or out of range.
    """
    check_size("batch_size", batch_size)
    check_flag("progress", progress)
    if not hasattr(unwrapped(tokenizer, "tokenizer"), "quantizer"):  # a VQVAE of one's own will do
        raise ValueError(f"tokenizer: got {brief(tokenizer)}, want a VQVAE")
    check_instance("images", images, ImageSet, "an ImageSet")
    device = next(tokenizer.parameters()).device
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
    """
    Raises:
        ValueError: the codes, or those that the prior learnt from, were written by another tokenizer. Code 7 means
            something else there.
    """
    check_instance("codes_or_prior", codes_or_prior, (CodeSet, Prior), "a CodeSet or a prior")
    here, there = identity(tokenizer), codes_or_prior.tokenizer
    if here != there:
        what = "prior goes" if isinstance(codes_or_prior, Prior) else "codes go"
        raise ValueError(
            f"tokenizer: got the one with identity {here}, but the {what} with {there or 'no tokenizer by name'}"
        )

"""The codes of a data set, beside the identity of the tokenizer that wrote them (chapter 07)."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from companion._extras import require
from companion.checkpoint import written_whole
from companion.data import ImageSet
from companion.priors.base import Prior
from companion.vqvae import VQVAE


def identity(tokenizer: VQVAE) -> str:
    """Twelve hexadecimal digits that tell one trained tokenizer from another: of a hash of all its weights and buffers.

    The same weights give the same identity on every machine, in training and in eval mode.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class CodeSet:
    """The codes of a set of images, as :func:`companion.fit` takes them.

    Shapes:
        codes: (N, *grid) int64; labels: (N,) int64.
    """

    codes: Tensor
    labels: Tensor
    num_codes: int
    tokenizer: str  # the identity of the model that wrote them

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def grid(self) -> tuple[int, ...]:
        """(h, w), or (h, w, R)."""
        return tuple(self.codes.shape[1:])

    def batch(self, indices: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """The codes and labels at ``indices``, on ``device``."""
        target = self.codes.device if device is None else torch.device(device)
        rows = torch.as_tensor(indices, device=self.codes.device)
        return self.codes[rows].to(target), self.labels[rows.to(self.labels.device)].to(target)

    def to(self, device: torch.device | str) -> "CodeSet":
        return replace(self, codes=self.codes.to(device), labels=self.labels.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; codes take two bytes each where K allows."""
        small = torch.int16 if self.num_codes <= 2**15 else torch.int64
        tensors = {"codes": self.codes.cpu().to(small).contiguous(), "labels": self.labels.cpu().contiguous()}
        about = {"format": "companion codes", "num_codes": self.num_codes, "tokenizer": self.tokenizer}
        with written_whole(Path(path)) as file:
            file.write(to_bytes(tensors, metadata={"companion": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CodeSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no set of codes.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("companion", "null"))
                if not isinstance(about, dict) or about.get("format") != "companion codes":
                    raise ValueError(f"path: {path} is a safetensors file that holds no set of codes")
                codes, labels = file.get_tensor("codes").long(), file.get_tensor("labels")
        except SafetensorError as error:
            raise ValueError(f"path: {path} is no whole safetensors file ({error})") from error
        return cls(codes, labels, about["num_codes"], about["tokenizer"])


@torch.no_grad()
def tokenize(tokenizer: VQVAE, images: ImageSet, *, batch_size: int = 500, progress: bool = False) -> CodeSet:
    """The codes of all images, written in eval mode, with the tokenizer's identity.

    Args:
        progress: show a bar.
    """
    device = next(tokenizer.parameters()).device
    batches = [
        torch.arange(start, min(start + batch_size, len(images)), device="cpu")
        for start in range(0, len(images), batch_size)
    ]
    if progress:
        batches = require("tqdm.auto", extra="train", what="tokenize(progress=True)").tqdm(batches, unit="batch")
    training = tokenizer.training
    tokenizer.eval()
    try:
        codes = torch.cat([tokenizer.encode(images.batch(rows, device)[0]).cpu() for rows in batches])
    finally:
        tokenizer.train(training)
    return CodeSet(codes, images.labels.cpu(), tokenizer.quantizer.num_codes, identity(tokenizer))


def check_identity(tokenizer: VQVAE, codes_or_prior: CodeSet | Prior) -> None:
    """
    Raises:
        ValueError: the codes, or those that the prior learnt from, were written by another tokenizer. Code 7 means
        something
            else there.
    """
    here, there = identity(tokenizer), codes_or_prior.tokenizer
    if here != there:
        what = "prior goes" if isinstance(codes_or_prior, Prior) else "codes go"
        raise ValueError(
            f"tokenizer: got the one with identity {here}, but the {what} with {there or 'no tokenizer by name'}"
        )

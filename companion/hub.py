"""Models as the Hugging Face Hub keeps them: a folder with ``config.json`` and ``model.safetensors``.

    companion.save_pretrained(model, "tokenizer")
    model = companion.from_pretrained("tokenizer")            # a folder
    model = companion.from_pretrained("owner/name")           # a repository of the Hub

``model.safetensors`` is a file of ``companion.save``: it holds the config and a checksum itself, and is read by the
rules of ``companion.load``. ``config.json`` says the same to whoever looks at the folder.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion._arguments import brief, check_instance, check_module, expanded
from companion._extras import DISTRIBUTION, require
from companion._version import __version__
from companion.checkpoint import differences, load, parsed, save, written_whole
from companion.configured import describe, unwrapped

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # owner/name


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write ``model`` into a folder, as ``config.json`` and ``model.safetensors``; the folder is made if it is not
    there. To share it: ``huggingface_hub.upload_folder(repo_id="owner/name", folder_path=folder)``.

    Each file appears when it is complete. Every class in the model has to be one of this library, or registered
    (:func:`companion.register`), unless the model is made inside one that is.

    Raises:
        ValueError: ``folder`` is a file; the model has a part that :func:`from_pretrained` could not rebuild; or what
            :func:`companion.save` refuses.
    """
    path = expanded("folder", folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder: got {path}, which is a file, want a folder")
    check_module("model", model)
    about = describe("model", unwrapped(model, "model"))
    if unknown := next(_without_config(about), None):
        raise ValueError(
            f"model: got a {unknown}, which is neither of this library nor registered, want classes that can be "
            "rebuilt: companion.register(…) before the model is saved"
        )
    save(model, path / WEIGHTS)
    text = json.dumps(about | {"library_name": DISTRIBUTION, "companion": __version__}, indent=2)
    with written_whole(path / CONFIG) as file:
        file.write(f"{text}\n".encode())


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Rebuild a model that :func:`save_pretrained` wrote, in eval mode.

    Args:
        source: a folder, or the id of a repository on the Hub, "owner/name". From a repository the two files are
            downloaded into the cache of ``huggingface_hub``, and nothing else (the extra ``hub``). A folder of that
            name comes first.
        revision: of the repository, a branch, tag or commit; default: its main branch. Not for a folder.
        device, dtype: see :func:`companion.load`; default: the CPU, and the precision of the file.

    Raises:
        ValueError: ``source`` is neither; a file is not there, or damaged; ``config.json`` says other than the weights;
            or what :func:`companion.load` refuses.
        ImportError: the Hub is needed and ``huggingface_hub`` is not installed.
    """
    if revision is not None:
        check_instance("revision", revision, str, "a branch, tag or commit of a repository, or None")
    path = _folder(source, revision)
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"source: got {path}, want a folder with {WEIGHTS} in it, as save_pretrained writes it")
    model = load(path / WEIGHTS, device=device, dtype=dtype)
    _check_config(path / CONFIG, model)
    return model


def _folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder of that name, or else one into which the repository was downloaded."""
    path = expanded("source", source)
    if _exists(path):
        if revision is not None:
            raise ValueError(
                f"revision: got {revision!r} with the folder {path}, want None: only repositories have any"
            )
        return path
    if not isinstance(source, str) or not _REPOSITORY.fullmatch(source):
        raise ValueError(
            f"source: got {brief(source)}, want a folder that is there, or the id of a repository, 'owner/name'"
        )
    hub = require("huggingface_hub", extra="hub", what=f"from_pretrained({source!r}), without a folder of that name,")
    return Path(hub.snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_config(path: Path, model: nn.Module) -> None:
    if not path.is_file():
        raise ValueError(f"source: got {path.parent}, want a folder with {CONFIG} in it too")
    there = parsed(path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(there, dict) or not isinstance(there.get("config"), dict):
        raise ValueError(f"source: {path} is not a config as save_pretrained writes it")
    if differ := differences("", there, describe("model", model), ("config.json", WEIGHTS)):
        raise ValueError(f"source: {path} says other than the weights beside it: {'; '.join(differ)}")


def _without_config(about: Any) -> Iterator[str]:
    """The names of the classes in a description that cannot be rebuilt from it."""
    if isinstance(about, dict):
        if about.get("config") is None:
            yield about["class"]
        for value in (about.get("config") or {}).values():
            yield from _without_config(value)
    elif isinstance(about, list):
        for one in about:
            yield from _without_config(one)

"""Models on disk: weights as safetensors, with JSON in the header that says how to rebuild the model."""

import functools
import inspect
import json
import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from companion._version import __version__

FORMAT_VERSION = 1

Model = TypeVar("Model", bound=nn.Module)


class Configured:
    """Remembers the arguments it was made with, so that a file can say how to make it again.

    After ``class Encoder(Configured, nn.Module)``, ``Encoder(16).config`` holds every argument by name,
    defaults included. An argument may be a number, a string, a bool, None, a sequence of these, or a module;
    a module that is Configured is stored with its own config.

    Raises:
        ValueError: at construction, an argument that JSON cannot hold; the message names it.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]
        package = cls.__module__.split(".")
        if package[0] == "companion" and package[1:2] != ["course"]:  # a file can name the library's classes only
            known = _classes.setdefault(cls.__name__, cls)
            if known.__module__ != cls.__module__:
                raise TypeError(f"{cls.__name__} is the name of a class in {known.__module__} already")
            _classes[cls.__name__] = cls  # the same class again: its module was reloaded


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights and buffers of ``model``, and how to rebuild it, into one ``.safetensors`` file.

    The file appears under its name when it is whole; until then an older file of that name stays as it was.
    Any module can be saved. Tensors that are tied are written under each of their names.

    Raises:
        ValueError: ``path`` does not end in ``.safetensors``, or the state of ``model`` holds something that
            is no tensor.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: got {path}, want a name that ends in .safetensors")
    state = model.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"model: {', '.join(strange)} in its state is no tensor and cannot be saved")
    about = {"format": "companion", "version": FORMAT_VERSION, "companion": __version__}
    header = json.dumps(about | _describe("model", model))
    tensors = {  # clone: tied tensors share memory, which safetensors refuses
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(to_bytes(tensors, metadata={"format": "pt", "companion": header}))


@overload
def load(path: str | os.PathLike[str]) -> nn.Module: ...
@overload
def load(path: str | os.PathLike[str], model: Model) -> Model: ...
def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read a file that ``save`` wrote.

    Without ``model``, it is rebuilt on the CPU, in eval mode; that works for the classes of this library.
    With ``model``, any module whose state has the same names, shapes and dtypes, the weights are copied into
    it where it stands. Reading runs no code from the file and leaves the random generators as they were.

    Raises:
        ValueError: ``path`` is truncated, a pickle, foreign, or of a newer format; names a class that the
            library does not have; or does not fit the model (the message lists the tensors, and the model
            stays as it was).
    """
    path = Path(path)
    about, tensors = _read(path)
    if model is None:
        model = _build(path, about, "the file").eval()
    _check_fit(path, tensors, model)
    model.load_state_dict(tensors)
    return model


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears as ``path`` once it is whole and on the disk; until then its name is temporary."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name must outlast a power failure too
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


_classes: dict[str, type[Configured]] = {}


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recorded(self: Configured, *args: Any, **kwargs: Any) -> None:
        if "config" not in self.__dict__:  # only the outermost of several __init__ sees what the caller gave
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            self.__dict__["config"] = _config(signature, dict(list(given.arguments.items())[1:]))
        init(self, *args, **kwargs)

    return recorded


def _config(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            config |= {key: _describe(key, one) for key, one in value.items()}
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            config[name] = _describe(name, value)
        elif value:
            raise ValueError(f"*{name}: got {value}, want every argument to have a name")
    return config


def _describe(name: str, value: object) -> Any:
    """``value`` as JSON can hold it."""
    if isinstance(value, nn.Module):
        ours = isinstance(value, Configured) and _classes.get(type(value).__name__) is type(value)
        return {"class": type(value).__name__, "config": cast(Configured, value).config if ours else None}
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, numbers.Integral):  # numpy's integers too
        return int(value)
    if isinstance(value, tuple | list):
        return [_describe(name, one) for one in value]
    kind = type(value).__name__
    raise ValueError(f"{name}: got a {kind}, want a number, string, bool, None, module or a sequence of these")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("companion", "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(f"path: {path} {_what_instead(path)} ({error})") from error
    try:
        about = json.loads(header)
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict) or about.get("format") != "companion":
        raise ValueError(f"path: {path} is a safetensors file that companion.save did not write")
    version = about.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"path: {path} has format version {version} (written by companion {about.get('companion')}), and "
            f"this companion reads versions up to {FORMAT_VERSION}: install a newer one"
        )
    return about, tensors


def _what_instead(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return "is truncated or damaged: it begins like a safetensors file and is not a whole one"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "is a pickle (as torch.save writes), which can run code when it is read; want a safetensors file"
    return "is no safetensors file"


def _build(path: Path, about: Mapping[str, Any], what: str) -> nn.Module:
    name, config = about.get("class"), about.get("config")
    if config is None:
        raise ValueError(
            f"path: {path} cannot rebuild {what}: {name} is not a class of companion; give the model "
            "to put the weights into: load(path, model)"
        )
    if name not in _classes:
        known = ", ".join(sorted(_classes))
        raise ValueError(f"path: {path} names the class {name} for {what}, which is none of companion's: {known}")
    arguments = {key: _argument(path, value, f"{key} of {name}") for key, value in config.items()}
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be overwritten
            return cast(nn.Module, _classes[name](**arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"path: {path} gives {name} arguments that it does not take: {error}") from error


def _argument(path: Path, value: Any, what: str) -> Any:
    if isinstance(value, dict):
        return _build(path, value, what)
    return tuple(_argument(path, one, what) for one in value) if isinstance(value, list) else value


def _check_fit(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    both = [name for name in wanted if name in tensors]
    shapes = {name: (tuple(tensors[name].shape), tuple(wanted[name].shape)) for name in both}
    dtypes = {name: (tensors[name].dtype, wanted[name].dtype) for name in both}
    differ = [
        f"{name} is {there} in the file and {here} in the model"
        for kind in (shapes, dtypes)
        for name, (there, here) in cast(dict[str, tuple[Any, Any]], kind).items()
        if there != here
    ]
    if missing := wanted.keys() - tensors.keys():
        differ.append(f"missing from the file: {', '.join(sorted(missing))}")
    if unexpected := tensors.keys() - wanted.keys():
        differ.append(f"not in the model: {', '.join(sorted(unexpected))}")
    if differ:
        raise ValueError(f"path: {path} does not fit {type(model).__name__}: {'; '.join(differ)}")

"""Models on disk: weights as safetensors, with JSON in the header that says how to rebuild the model."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, overload

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion._arguments import brief, check_available, check_float_type, check_module, expanded
from companion._version import __version__
from companion._warnings import warn
from companion.configured import (
    CLASSES,
    REGISTERED,
    check_as_built,
    describe,
    parts_of,
    plain_name,
    unwrapped,
    without_memory,
)

FORMAT_VERSION = 1

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights and buffers of ``model``, and how to rebuild it, into one ``.safetensors`` file.

    The file appears under its name when it is complete; until then an older file of that name is unchanged. It holds a
    checksum of its contents. Any module can be saved; a compiled or distributed one is saved like the module inside it
    (shards are gathered, so every process has to call this). Tied tensors are written under each of their names. A
    forward or a hook that was given to a single module is code, and not saved: there is a warning.

    Raises:
        ValueError: ``path`` is a folder or does not end in ``.safetensors``; the state of ``model`` holds NaN,
            something that is no tensor, or tensors on the device meta; or a model of this library is no longer as its
            config would make it.
    """
    path = as_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: got {path}, want a name that ends in .safetensors")
    if path.is_dir():
        raise ValueError(f"path: got {path}, which is a folder, want a file")
    model = unwrapped(model, "model")
    state = state_of(model)
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"model: {', '.join(strange)} in its state is no tensor and cannot be saved")
    _check_has_numbers(state)
    check_as_built(model)
    _warn_of_what_is_not_saved(model)
    if nan := [name for name, value in state.items() if bool(value.isnan().any())]:
        raise ValueError(f"model: got NaN in {', '.join(nan)}, want numbers: a file with NaN would not be loaded")
    about = {"format": "companion", "version": FORMAT_VERSION, "companion": __version__}
    tensors = {  # clone: tied tensors share memory, which safetensors refuses
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, about | describe("model", model))


@overload
def load(
    path: str | os.PathLike[str],
    model: None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module: ...
@overload
def load(path: str | os.PathLike[str], model: Model, *, dtype: torch.dtype | None = None) -> Model: ...
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Read a file that :func:`save` wrote.

    Without ``model``, the model is rebuilt, in eval mode; this works for the classes of this library, and for those
    that you :func:`companion.register`. With ``model``, any module whose state has the same names, shapes and dtypes,
    the weights are copied into it, on its device. If file and model both have a config, the two must be equal. Reading
    runs no code from the file, takes no more memory than its tensors need, and does not change the random generators.

    With ``model`` the file may also be one of another program, with the names and shapes of the model's state. It has
    no checksum and no config: that damage and a model made otherwise would go unnoticed is said in a warning.

    Args:
        device: of the rebuilt model; default: the CPU. With ``model`` None: the weights go to where the model is.
        dtype: what the floating-point weights of the file are converted to; default: the precision of the file.

    Raises:
        ValueError: the file is truncated, damaged, a pickle, not written by :func:`save`, or of a newer format; names a
            class that is not known here, or arguments that do not give its tensors; holds NaN or infinity; or does not
            fit ``model`` (the message says what differs, and the model is unchanged). Or ``device`` is none of this
            machine, ``dtype`` is no floating-point type, or numbers of the file are too large for it.
    """
    path = as_path(path)
    if model is not None:
        check_module("model", model)
    _check_target(model, device, dtype)
    about, tensors = read_tensors(path, "companion", "that companion.save did not write", foreign=model is not None)
    if dtype is not None:
        tensors = _converted(path, tensors, dtype)
    target = _rebuilt(path, about, tensors) if model is None else unwrapped(model, "model")
    _check_has_numbers(target.state_dict())
    _check_fit(path, tensors, target)
    if differ := differences("", about, describe("model", target)):
        raise ValueError(
            f"path: {path} is of a {type(target).__name__} made otherwise: {'; '.join(differ)}. Make the model with "
            "what the file says; its attributes can be changed afterwards"
        )
    _check_finite(path, tensors, target)
    target.load_state_dict({name: tensors[plain_name(name)] for name in target.state_dict()})
    if model is not None:
        return model
    return target if device is None else target.to(device)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name; it is renamed to ``path`` when it is complete and on the disk.

    Raises:
        OSError: it cannot be written; the error names the path, also that of a full disk.
    """
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
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file with ``about`` and a checksum as JSON in its header. It appears when it is complete."""
    header = json.dumps({**about, "sha256": _checksum(tensors, about)})
    content = to_bytes(dict(tensors), metadata={"format": "pt", "companion": header})
    with written_whole(path) as file:
        file.write(content)


def read_tensors(
    path: Path, kind: str, otherwise: str, *, foreign: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that ``write_tensors`` wrote: ``about``, whose "format" has to be ``kind``, and the tensors.

    Args:
        otherwise: how the message describes a safetensors file of another format.
        foreign: also read a file of another program, which says nothing of this library; then ``about`` is empty.

    Raises:
        ValueError: the file has another format, is damaged, or is of a newer version.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"path: {path} is {'a folder' if path.is_dir() else 'no regular file'}, want a file")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("companion")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes made it stumble over
        raise ValueError(f"path: {path} {_what_instead(path)} ({error})") from error
    if header is None and foreign:
        warn(
            f"{path} is of another program: it has no checksum and no config, so that neither damage is noticed nor a "
            "model that was made otherwise; only names, shapes and types are compared"
        )
        return {}, tensors
    about = parsed(header or "null")
    if not isinstance(about, dict) or about.get("format") != kind:
        way = "; load(path, model) reads the weights of another program" * (header is None and kind == "companion")
        raise ValueError(f"path: {path} is a safetensors file {otherwise}{way}")
    version = about.get("version", 1)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"path: {path} has format version {version} (written by companion {about.get('companion')}), and "
            f"this companion reads versions up to {FORMAT_VERSION}: install a newer one"
        )
    expected = about.pop("sha256", None)
    if expected is None:
        warnings.warn(
            f"{path} carries no checksum, as all files of older versions, so that damage in it goes unnoticed; "
            "loaded and saved again it will have one",
            stacklevel=3,
        )
    elif _checksum(tensors, about) != expected:
        raise ValueError(f"path: {path} is damaged: its contents do not have the checksum that it was written with")
    return about, tensors


def add_to_digest(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Update a hash with the names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def state_of(model: nn.Module) -> dict[str, Any]:
    """Weights and buffers of a model, with the names of the module that is not compiled, and shards gathered."""
    state = model.state_dict()
    return {  # only a shard has full_tensor
        plain_name(name): value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in state.items()
    }


def as_path(path: str | os.PathLike[str]) -> Path:
    """``path`` as a ``Path``, with the folder of the user for ``~``.

    Raises:
        ValueError: it is neither a string nor a path.
    """
    return expanded("path", path)


def _check_target(model: nn.Module | None, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        check_float_type("dtype", dtype)
    if device is None:
        return
    check_available("device", device)
    if torch.device(device).type == "meta":
        raise ValueError("device: got 'meta', which holds no numbers, want a device that does")
    if model is not None:
        raise ValueError(f"device: got {brief(str(device))} with a model, want None: the weights go to where it is")


def _converted(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    made = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    lost = [name for name, value in made.items() if bool((value.isinf() & ~tensors[name].isinf()).any())]
    if lost:
        raise ValueError(
            f"dtype: got {dtype}, in which {', '.join(lost)} of {path} would be infinite, want a wider one"
        )
    return made


def _warn_of_what_is_not_saved(model: nn.Module) -> None:
    """Code that was put onto single modules. That of torch, as weight norm and shards have it, belongs to a class."""
    found = []
    for path, part in parts_of(model):
        if "forward" in vars(part) and "_original_forward" not in vars(part):  # where Accelerate puts the module's own
            found.append(f"{path}.forward".lstrip("."))
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        if any(not getattr(hook, "__module__", "").startswith("torch.") for hook in hooks):
            found.append(f"a forward hook of {path or 'the model'}")
    if found:
        warnings.warn(
            f"model: got {', '.join(found[:3])}{', …' * (len(found) > 3)} put there by hand, which a file cannot hold: "
            "loaded from it the model will do something else",
            stacklevel=3,
        )


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    add_to_digest(digest, tensors)
    return digest.hexdigest()


# Limits on what a header may ask for. Anybody can write one, so it must not cost memory or time that the tensors of the
# file do not justify.
_LONGEST_HEADER = 2**20  # characters; that of a stack of 64 quantizers has 20,000
_DEEPEST = 32  # modules in modules
_LONGEST_LIST = 1024
# Also how many numbers a model may have that are not in the file; a file with more numbers may ask for as many.
_LARGEST_NUMBER = 2**24


def parsed(header: str) -> Any:
    """What JSON from somewhere says; None if it is none, or too long or too deep."""
    if len(header) > _LONGEST_HEADER:
        return None
    try:
        return json.loads(header)
    except (ValueError, RecursionError):
        return None


def _what_instead(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return "is truncated or damaged: it begins like a safetensors file and is not a whole one"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "is a pickle (as torch.save writes), which can run code when it is read; want a safetensors file"
    return "is no safetensors file"


def _rebuilt(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model that the header describes, in the precision of the tensors, and not larger than these."""
    numbers_there = sum(value.numel() for value in tensors.values())
    blueprint = _Blueprint(path, max(_LARGEST_NUMBER, numbers_there))
    limit = _Within(10 * (len(tensors) + 10), _LARGEST_NUMBER + 4 * numbers_there)  # ours make one for each
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), limit:  # first weights are drawn, to be overwritten
        model = blueprint.build(about, "the file")
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    return (model.to(kinds.pop()) if len(kinds) == 1 else model).eval()  # of one type alone, as half() makes it


class _Within(TorchFunctionMode):
    """Limits how many tensors are made, and how many numbers they have in all; refuses one before it is made."""

    def __init__(self, tensors: int, numbers: int) -> None:
        super().__init__()
        self.tensors, self.numbers = tensors, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):  # it may make one from nothing
            made = without_memory(func, args, kwargs)
            if not isinstance(made, Tensor) or not made.is_meta:
                return made
            self.tensors -= 1
            self.numbers -= made.numel()
            if self.tensors < 0 or self.numbers < 0:
                raise ValueError(f"they ask for {'larger' if self.numbers < 0 else 'more'} tensors than the file has")
        return func(*args, **kwargs)


class _Blueprint:
    """Builds modules from a header, within limits."""

    def __init__(self, path: Path, largest: int) -> None:
        self.path, self.largest = path, largest

    def build(self, about: Mapping[str, Any], what: str, depth: int = 0) -> nn.Module:
        name, config = about.get("class"), about.get("config")
        if config is None and isinstance(name, str):
            raise ValueError(
                f"path: {self.path} cannot rebuild {what}: {name} is not a class of companion; give the model "
                "to put the weights into: load(path, model). (If its class is registered with companion.register when "
                "it is saved, it can be rebuilt)"
            )
        if not isinstance(name, str) or not isinstance(config, dict) or depth > _DEEPEST:
            raise ValueError(
                f"path: {self.path} does not say how {what} was made: want a class and its config, nested at most "
                f"{_DEEPEST} deep"
            )
        known = CLASSES | REGISTERED
        if name not in known:
            raise ValueError(
                f"path: {self.path} names the class {name} for {what}, which is none of companion's: "
                f"{', '.join(sorted(known))}. If it is yours, import the module that registers it "
                "(companion.register) first"
            )
        arguments = {key: self._argument(value, key, name, depth) for key, value in config.items()}
        try:
            return cast(nn.Module, known[name](**arguments))
        except Exception as error:  # a hostile header can make a constructor stumble over anything
            raise ValueError(f"path: {self.path} gives {name} arguments that it does not take: {error}") from error

    def _argument(self, value: Any, key: str, owner: str, depth: int) -> Any:
        if isinstance(value, dict):
            return self.build(value, f"{key} of {owner}", depth + 1)
        if isinstance(value, list):
            if len(value) > _LONGEST_LIST or depth > _DEEPEST:
                raise ValueError(f"path: {self.path} has a list of {len(value)} for {key} of {owner}, too long or deep")
            return tuple(self._argument(one, key, owner, depth + 1) for one in value)
        largest = 2**64 if key == "seed" else self.largest  # a seed is no size
        if isinstance(value, int) and abs(value) > largest:
            raise ValueError(f"path: {self.path} has {key} = {value} for {owner}, more than it has tensors for")
        return value


def differences(name: str, there: Any, here: Any, where: tuple[str, str] = ("the file", "the model")) -> list[str]:
    """What differs in two descriptions of modules, as lines; a module without a config is not compared."""
    if isinstance(there, dict) and isinstance(here, dict):
        if not isinstance(there.get("config"), dict) or not isinstance(here.get("config"), dict):
            return []
        if there.get("class") != here.get("class"):
            kinds = [f"a {one.get('class')} in {place}" for one, place in zip((there, here), where, strict=True)]
            return [f"{name or 'it'} is {' and '.join(kinds)}"]
        both = [key for key in here["config"] if key in there["config"]]  # an older file knows fewer arguments
        pairs = [(f"{name}.{key}".lstrip("."), there["config"][key], here["config"][key]) for key in both]
    elif isinstance(there, list) and isinstance(here, list) and any(isinstance(one, dict) for one in here):
        pairs = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(there, here, strict=False))]  # of stacks
    else:
        return [] if there == here else [f"{name} is {there!r} in {where[0]} and {here!r} in {where[1]}"]
    return [difference for pair in pairs for difference in differences(*pair, where)]


def _check_has_numbers(state: Mapping[str, Any]) -> None:
    if empty := [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]:
        raise ValueError(
            f"model: got tensors on the device meta ({', '.join(empty[:3])}, …), which holds no numbers, want others: "
            "model.to_empty(device='cpu')"
        )


def _check_fit(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = {name: value for name, value in state_of(model).items() if isinstance(value, Tensor)}
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


def _check_finite(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    own = state_of(model)

    def sound(name: str, value: Tensor) -> bool:
        if bool(value.isfinite().all()):
            return True
        return bool((value.isfinite() | (value == own[name].cpu())).all())  # a mask of −∞ is the model's own

    if strange := [name for name, value in tensors.items() if not sound(name, value)]:
        raise ValueError(f"path: {path} has NaN or infinity in {', '.join(strange)}, want finite weights")

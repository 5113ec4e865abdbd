"""Models on disk: weights as safetensors, with JSON in the header that says how to rebuild the model."""

import functools
import hashlib
import inspect
import json
import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, cast, overload

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion._arguments import brief, check_instance, check_module
from companion._version import __version__

FORMAT_VERSION = 1
LARGEST_MODEL = 2**31  # numbers in one model: 8 GB in float32

Model = TypeVar("Model", bound=nn.Module)


class Configured:
    """A base class that records the arguments of ``__init__``, so that a file can say how to rebuild the object.

    After ``class Encoder(Configured, nn.Module)``, ``Encoder(16).config`` holds every argument by name, defaults
    included. An argument may be a number, a string, a bool, None, a sequence of these, or a module; a module that is
    Configured is described by its own config.

    An argument that the object keeps as an attribute of the same name is read from that attribute: after
    ``model.quantizer_weight = 2`` or ``model.quantizer = another``, the config has the new value. Such an assignment is
    checked as the constructor checks its argument, and refused where the constructor would have made other tensors or
    other attributes from the new value. What a class of this library made from its arguments stays as it was built.

    Raises:
        ValueError: an argument cannot be written as JSON (at construction, at assignment, or by ``config``), or an
            attribute is assigned a value that does not fit what was built; the message names it.
    """

    _as_built: ClassVar[tuple[str, ...]] = ()  # arguments that say what stored numbers mean: they stay
    _changeable: ClassVar[tuple[str, ...]] = ()  # attributes that may change although no argument has their name

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that would make this object as it is now, ready for JSON."""
        arguments: dict[str, tuple[bool, Any]] = self.__dict__.get("_arguments", {})  # of a class without __init__ none
        return {
            name: _describe(name, _attribute(self, name) if kept else value)
            for name, (kept, value) in arguments.items()
        }

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_settings", ()):  # only once it is made
            value = _checked_setting(self, name, value)
        super().__setattr__(name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        package = cls.__module__.split(".")
        ours = package[0] == "companion" and package[1:2] != ["course"]
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__, ours)  # type: ignore[method-assign]
        if ours:  # a file can name the library's classes only
            known = _classes.setdefault(cls.__name__, cls)
            if known.__module__ != cls.__module__:
                raise TypeError(f"{cls.__name__} is the name of a class in {known.__module__} already")
            _classes[cls.__name__] = cls  # the same class again: its module was reloaded


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights and buffers of ``model``, and how to rebuild it, into one ``.safetensors`` file.

    The file appears under its name when it is complete; until then an older file of that name is unchanged. It holds a
    checksum of its contents. Any module can be saved; a compiled or distributed one is saved like the module inside it
    (shards are gathered, so every process has to call this). Tied tensors are written under each of their names.

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
    _check_as_built(model)
    if nan := [name for name, value in state.items() if bool(value.isnan().any())]:
        raise ValueError(f"model: got NaN in {', '.join(nan)}, want numbers: a file with NaN would not be loaded")
    about = {"format": "companion", "version": FORMAT_VERSION, "companion": __version__}
    tensors = {  # clone: tied tensors share memory, which safetensors refuses
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, about | _describe("model", model))


@overload
def load(path: str | os.PathLike[str]) -> nn.Module: ...
@overload
def load(path: str | os.PathLike[str], model: Model) -> Model: ...
def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read a file that :func:`save` wrote.

    Without ``model``, the model is rebuilt on the CPU, in eval mode; this works for the classes of this library. With
    ``model``, any module whose state has the same names, shapes and dtypes, the weights are copied into it, on its
    device. If file and model both have a config, the two must be equal. Reading runs no code from the file, takes no
    more memory than its tensors need, and does not change the random generators.

    Raises:
        ValueError: the file is truncated, damaged, a pickle, not written by :func:`save`, or of a newer format; names a
            class that the library does not have, or arguments that do not give its tensors; holds NaN or infinity; or
            does not fit ``model`` (the message says what differs, and the model is unchanged).
    """
    path = as_path(path)
    about, tensors = read_tensors(path, "companion", "that companion.save did not write")
    target = _rebuilt(path, about, tensors).eval() if model is None else unwrapped(model, "model")
    _check_has_numbers(target.state_dict())
    _check_fit(path, tensors, target)
    if differ := _differences("", about, _describe("model", target)):
        raise ValueError(
            f"path: {path} is of a {type(target).__name__} made otherwise: {'; '.join(differ)}. Make the model with "
            "what the file says; its attributes can be changed afterwards"
        )
    _check_finite(path, tensors, target)
    target.load_state_dict({name: tensors[_plain(name)] for name in target.state_dict()})
    return target if model is None else model


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


def read_tensors(path: Path, kind: str, otherwise: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that ``write_tensors`` wrote: ``about``, whose "format" has to be ``kind``, and the tensors.

    Args:
        otherwise: how the message describes a safetensors file of another format.

    Raises:
        ValueError: the file has another format, is damaged, or is of a newer version.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"path: {path} is {'a folder' if path.is_dir() else 'no regular file'}, want a file")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("companion", "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes made it stumble over
        raise ValueError(f"path: {path} {_what_instead(path)} ({error})") from error
    about = _parsed(header)
    if not isinstance(about, dict) or about.get("format") != kind:
        raise ValueError(f"path: {path} is a safetensors file {otherwise}")
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
        _plain(name): value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()
    }


def unwrapped(model: nn.Module, argument: str) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and of data parallelism.

    Raises:
        ValueError: ``model`` is no module; the message names ``argument``.
    """
    check_instance(argument, model, nn.Module, "a module")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
    return unwrapped(inner, argument) if isinstance(inner, nn.Module) else model


def as_path(path: str | os.PathLike[str]) -> Path:
    """``path`` as a ``Path``.

    Raises:
        ValueError: it is neither a string nor a path.
    """
    check_instance("path", path, (str, os.PathLike), "a string or a path")
    return Path(path)


_classes: dict[str, type[Configured]] = {}


def _recording(init: Callable[..., None], ours: bool) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recorded(self: Configured, *args: Any, **kwargs: Any) -> None:
        if "_arguments" in self.__dict__:  # only the outermost of several __init__ sees what the caller gave
            init(self, *args, **kwargs)
            if ours:  # what a class of a reader adds after this is the reader's to change
                self.__dict__["_built"] = _public_attributes(self)
            return
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:
            given = None
        if given is None:  # Python's own error names the class, and what it takes
            return init(self, *args, **kwargs)
        given.apply_defaults()
        arguments = _by_name(signature, dict(list(given.arguments.items())[1:]))
        before, unfit = {}, None
        for name, value in arguments.items():
            try:
                before[name] = _describe(name, value)
            except ValueError as error:
                unfit = unfit or error
        self.__dict__["_arguments"] = {}
        try:
            if ours:
                with _Bounded(arguments):
                    init(self, *args, **kwargs)
            else:
                init(self, *args, **kwargs)
        except Exception as error:
            if unfit is None or str(error).startswith(str(unfit).partition(":")[0]):
                raise  # the message of the class itself says best what it wants
            raise unfit from error
        if unfit is not None:
            raise unfit
        # If an attribute of the same name now holds the argument, config reads the attribute from here on.
        kept = {name: name in before and _is_described(self, name, before[name]) for name in arguments}
        self.__dict__["_arguments"] = {
            name: (kept[name], None if kept[name] else value) for name, value in arguments.items()
        }
        built = _public_attributes(self) if ours else self.__dict__.get("_built", frozenset())
        self.__dict__.pop("_built", None)
        self.__dict__["_settings"] = frozenset(arguments) | built - {*self._changeable}

    return recorded


def _by_name(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = tuple(value) if isinstance(value, list) else value  # the caller's list may change
        elif value:
            raise ValueError(f"*{name}: got {value}, want every argument to have a name")
    return named


def _attribute(owner: Configured, name: str) -> Any:
    """What the object itself holds under the name: no property, tensor or default of its class."""
    return {**vars(owner), **vars(owner).get("_modules", {})}[name]


def _public_attributes(owner: Configured) -> frozenset[str]:
    """The names of its plain attributes, parts and tensors, without those that every module has."""
    plain = {name for name in vars(owner) if not name.startswith("_")} - _OF_EVERY_MODULE
    kept = (vars(owner).get(kind, {}) for kind in ("_modules", "_parameters", "_buffers"))
    return frozenset(plain.union(*kept))


_OF_EVERY_MODULE = {*vars(nn.Module())}


# Attributes that are assigned after the object was made: a twin is made with the new value, without numbers in its
# tensors, so that the constructor itself says what it takes, and what it makes of it.


def _checked_setting(owner: Configured, name: str, value: Any) -> Any:
    """``value`` as ``owner`` keeps it in the attribute ``name``, which is an argument or was made from the arguments.

    Raises:
        ValueError: it does not fit what was built.
    """
    present = _present(owner)
    if "_is_replica" in vars(owner):  # DataParallel puts the parts of its copies together
        return value
    arguments, kind, now = owner.__dict__["_arguments"], type(owner).__name__, present.get(name)
    if name in arguments:
        replaces = isinstance(now, nn.Module | Tensor) and isinstance(value, nn.Module | Tensor)
        if not replaces or not isinstance(arguments[name][1], int | float):  # such as nn.Dropout(dropout)
            return _checked_argument(owner, name, value)
    if isinstance(now, nn.Module):
        _check_part(kind, name, value, now)
    elif isinstance(now, Tensor):
        _check_tensor_of(name, value, now)
    elif name in present and not _alike(name, value, now):  # what was deleted may come back as anything
        raise _not_as_built(kind, name, value, now)
    return value


def _present(owner: Configured) -> dict[str, Any]:
    """What ``owner`` holds by name: plain attributes, parts and tensors."""
    own = vars(owner)
    return {**own, **own.get("_modules", {}), **own.get("_parameters", {}), **own.get("_buffers", {})}


def _checked_argument(owner: Configured, name: str, value: Any) -> Any:
    """``value`` as the constructor of ``owner`` would keep its argument ``name``.

    Raises:
        ValueError: the constructor does not take it, or would have made something else from it.
    """
    kept, given = owner.__dict__["_arguments"][name]
    kind, now = type(owner).__name__, _present(owner).get(name, given) if kept else given
    if value is now or (isinstance(value, bool | int | float | str) and type(value) is type(now) and value == now):
        return value
    if isinstance(now, nn.ModuleList) and isinstance(value, list | tuple):
        value = nn.ModuleList(value) if all(isinstance(one, nn.Module) for one in value) else value
    before = _twin_or_none(owner)
    try:
        after = _twin(owner, {name: value})
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: got {brief(value)}, want one that fits the other arguments ({error})") from error
    except Exception as error:
        if not _is_ours(owner):  # what a reader's constructor needs is not known
            return value
        raise ValueError(f"{name}: got {brief(value)}, want what a {kind} can be made with ({error})") from error
    same = _alike(name, value, now) and (kept or not isinstance(value, nn.Module))
    if (not kept or name in owner._as_built) and not same:
        raise _not_as_built(kind, name, value, now)
    if before is not None and (what := _what_differs(before, after, name)):
        if isinstance(value, nn.Module):
            raise ValueError(
                f"{name}: got {brief(value)} that changes {what}, want one that fits what was built; make a new {kind}"
            )
        raise _not_as_built(kind, name, value, now)
    return value if isinstance(value, nn.Module) else vars(after).get(name, value)  # a list is kept as a tuple


def _not_as_built(kind: str, name: str, value: Any, now: Any) -> ValueError:
    return ValueError(f"{name}: got {brief(value)}, want {brief(now)} as it was built; make a new {kind}")


def _check_part(kind: str, name: str, value: Any, now: nn.Module) -> None:
    """A module may be put around the one that was built; any other has to have the same tensors."""
    check_module(name, value)
    there, here = _shapes(value), _shapes(now)
    around = any(part is now for part in value.modules())
    for tensor, shape in here.items():
        if there.get(tensor) != shape and not (around and tensor not in there):
            got = f"with {tensor} of shape {there[tensor]}" if tensor in there else f"without {tensor}"
            raise ValueError(
                f"{name}: got {brief(value)} {got}, want one of shape {shape} as it was built; make a new {kind}"
            )


def _check_tensor_of(name: str, value: Any, now: Tensor) -> None:
    learnt = isinstance(now, nn.Parameter)
    if not isinstance(value, nn.Parameter if learnt else Tensor) or value.shape != now.shape:
        kind = "a torch.nn.Parameter" if learnt else "a tensor"
        raise ValueError(f"{name}: got {brief(value)}, want {kind} of shape {tuple(now.shape)} as it was built")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {_plain(name): tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _alike(name: str, one: Any, other: Any) -> bool:
    """Whether two values of an attribute are the same; of two that no config could hold, whether their types are."""
    try:
        there = _describe(name, other)
    except ValueError:
        return type(one) is type(other)
    try:
        return bool(_describe(name, one) == there)
    except ValueError:
        return False


def _what_differs(before: Configured, after: Configured, name: str) -> str:
    """The name of a tensor or plain attribute, beside what ``name`` itself is, in which two twins differ."""
    made = [
        {
            tensor: shape
            for tensor, shape in (_shapes(twin).items() if isinstance(twin, nn.Module) else ())
            if tensor.partition(".")[0] != name
        }
        for twin in (before, after)
    ]
    if made[0] != made[1]:
        return next(tensor for tensor in made[0] | made[1] if made[0].get(tensor) != made[1].get(tensor))
    plain = [other for other in vars(before).get("_settings", ()) if other in vars(before) and other != name]
    return next((one for one in plain if not _alike(one, vars(before)[one], vars(after).get(one))), "")


def _is_ours(value: object) -> bool:
    return isinstance(value, Configured) and _classes.get(_kind(value).__name__) is _kind(value)


def _kind(value: object) -> type:
    kind: type = type(value)
    return kind.__mro__[2] if kind.__module__.startswith("torch.distributed") else kind  # of fully_shard


def _twin_or_none(owner: Configured) -> Configured | None:
    try:
        return _twin(owner)
    except Exception:  # it is not as it could be made, which is for others to say
        return None


def _twin(owner: Configured, changes: Mapping[str, Any] | None = None) -> Configured:
    """Another one with the present arguments of ``owner``, and with the ``changes``; its tensors have no numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _Hollow():
        return _copied(owner, {}, changes or {})


def _copied(owner: Configured, done: dict[int, Any], changes: Mapping[str, Any]) -> Configured:
    """A twin of ``owner``, whose parts of this library are twins too: a constructor may change what it is given."""

    def copied(value: Any) -> Any:
        if isinstance(value, list | tuple | nn.ModuleList):
            return tuple(copied(one) for one in value) if isinstance(value, tuple) else [copied(one) for one in value]
        if isinstance(value, nn.Module) and "_settings" in vars(inner := unwrapped(value, "model")) and _is_ours(inner):
            if id(inner) not in done:
                done[id(inner)] = _copied(cast(Configured, inner), done, {})
            return done[id(inner)]
        return value

    arguments: dict[str, tuple[bool, Any]] = owner.__dict__.get("_arguments", {})
    present = {name: _attribute(owner, name) if kept else value for name, (kept, value) in arguments.items()}
    made: Configured = _kind(owner)(**{name: copied(value) for name, value in (present | dict(changes)).items()})
    return made


class _Hollow(TorchFunctionMode):
    """New tensors have a shape and no numbers. Drawing numbers for them, or scaling them, does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not given:
            return _without_memory(func, args, kwargs)
        idle = getattr(func, "__name__", "") in _IDLE or getattr(func, "__module__", "") == nn.init.__name__
        return given[0] if idle and len(given) == 1 and given[0].is_meta else func(*args, **kwargs)


# Of hollow tensors; on the device meta, the first of these would import half of torch.
_IDLE = {"uniform_", "normal_", "mul", "__mul__", "__rmul__", "div", "__truediv__"}


def _check_as_built(model: nn.Module) -> None:
    """That the config of ``model`` says how to make it as it is now.

    Raises:
        ValueError: its constructor refuses the config, or would make other tensors or attributes from it.
    """
    if not isinstance(model, Configured) or not _is_ours(model):
        return
    try:
        twin = cast(nn.Module, _twin(model))
    except ValueError as error:
        raise ValueError(f"model: got one that cannot be made again, want one that can ({error})") from error
    there, here = _shapes(cast(nn.Module, model)), _shapes(twin)
    for name, shape in here.items():  # a reader may have added others, for models to which the same was added
        if there.get(name) != shape:
            got = f"{name} of shape {there[name]}" if name in there else f"no {name}"
            raise ValueError(
                f"model: got {got}, want shape {shape} as a {_kind(model).__name__} is built with this config; a file "
                "of it could not be loaded"
            )
    parts = {_plain(path): part for path, part in twin.named_modules()}
    for path, part in model.named_modules():
        other = parts.get(_plain(path), part)
        for name in vars(part).get("_settings", ()):
            if name in vars(part) and name in vars(other) and not _alike(name, vars(part)[name], vars(other)[name]):
                where = ".".join(filter(None, (_plain(path), name)))
                raise ValueError(
                    f"model: got {where} = {brief(vars(part)[name])}, want {brief(vars(other)[name])} as it is built "
                    "with this config; a file of it would be loaded otherwise"
                )


def _is_described(owner: Configured, name: str, description: Any) -> bool:
    try:
        return bool(_describe(name, _attribute(owner, name)) == description)
    except (KeyError, ValueError):  # there is no such attribute, or one of another kind
        return False


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")  # torch.compile puts it before the names of a module


def _describe(name: str, value: object) -> Any:
    """``value`` in a form that JSON can hold."""
    if isinstance(value, nn.ModuleList):
        value = list(value)
    if isinstance(value, nn.Module):
        value = unwrapped(value, name)
        config = cast(Configured, value).config if _is_ours(value) else None
        return {"class": _kind(value).__name__, "config": config}
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, numbers.Integral | numbers.Real):  # numpy's numbers too
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, tuple | list):
        return [_describe(name, one) for one in value]
    raise ValueError(f"{name}: got {brief(value)}, want a number, string, bool, None, module or a sequence of these")


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


def _parsed(header: str) -> Any:
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
    """The model that the header describes, as long as it is not larger than the file."""
    numbers_there = sum(value.numel() for value in tensors.values())
    blueprint = _Blueprint(path, max(_LARGEST_NUMBER, numbers_there))
    limit = _Within(10 * (len(tensors) + 10), _LARGEST_NUMBER + 4 * numbers_there)  # ours make one for each
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), limit:  # first weights are drawn, to be overwritten
        return blueprint.build(about, "the file")


class _Within(TorchFunctionMode):
    """Limits how many tensors are made, and how many numbers they have in all; refuses one before it is made."""

    def __init__(self, tensors: int, numbers: int) -> None:
        super().__init__()
        self.tensors, self.numbers = tensors, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):  # it may make one from nothing
            made = _without_memory(func, args, kwargs)
            if not isinstance(made, Tensor) or not made.is_meta:
                return made
            self.tensors -= 1
            self.numbers -= made.numel()
            if self.tensors < 0 or self.numbers < 0:
                raise ValueError(f"they ask for {'larger' if self.numbers < 0 else 'more'} tensors than the file has")
        return func(*args, **kwargs)


class _Bounded(TorchFunctionMode):
    """Sizes that are fine one by one can ask for more memory together than there is: that is refused before.

    Raises:
        ValueError: a tensor, or all together, would have more numbers than ``LARGEST_MODEL``.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.arguments, self.left = arguments, LARGEST_MODEL

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            sizes = args[0] if args and isinstance(args[0], tuple | list) else args or kwargs.get("size", ())
            self.left -= math.prod(size for size in sizes if isinstance(size, int))
            if self.left < 0:
                raise ValueError(self._message())
        return func(*args, **kwargs)

    def _message(self) -> str:
        def largest(value: Any) -> int:
            parts = value if isinstance(value, tuple) else (value,)
            return math.prod(one for one in parts if isinstance(one, int))

        name = max(self.arguments, key=lambda name: largest(self.arguments[name]))
        others = {key: one for key, one in self.arguments.items() if key != name and isinstance(one, int | tuple)}
        beside = ", ".join(f"{key}={brief(one)}" for key, one in others.items() if largest(one) > 1)
        return (
            f"{name}: got {brief(self.arguments[name])}{f' beside {beside}' if beside else ''}, want sizes that make "
            f"at most {LARGEST_MODEL} numbers in all"
        )


_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand}


def _without_memory(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of ``func``; a new tensor is made on the device "meta", where it has a shape and takes no memory."""
    if func in (torch.randn, torch.rand):  # on that device the first of these imports half of torch
        func, kwargs = torch.empty, {name: value for name, value in kwargs.items() if name != "generator"}
    with torch.device("meta"):
        return func(*args, **(kwargs | {"device": "meta"} if kwargs.get("device") is not None else kwargs))


class _Blueprint:
    """Builds modules from a header, within limits."""

    def __init__(self, path: Path, largest: int) -> None:
        self.path, self.largest = path, largest

    def build(self, about: Mapping[str, Any], what: str, depth: int = 0) -> nn.Module:
        name, config = about.get("class"), about.get("config")
        if config is None and isinstance(name, str):
            raise ValueError(
                f"path: {self.path} cannot rebuild {what}: {name} is not a class of companion; give the model "
                "to put the weights into: load(path, model)"
            )
        if not isinstance(name, str) or not isinstance(config, dict) or depth > _DEEPEST:
            raise ValueError(
                f"path: {self.path} does not say how {what} was made: want a class and its config, nested at most "
                f"{_DEEPEST} deep"
            )
        if name not in _classes:
            known = ", ".join(sorted(_classes))
            raise ValueError(
                f"path: {self.path} names the class {name} for {what}, which is none of companion's: {known}"
            )
        arguments = {key: self._argument(value, key, name, depth) for key, value in config.items()}
        try:
            return cast(nn.Module, _classes[name](**arguments))
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


def _differences(name: str, there: Any, here: Any) -> list[str]:
    """Where two descriptions of modules differ; a module without a config is not compared."""
    if isinstance(there, dict) and isinstance(here, dict):
        if not isinstance(there.get("config"), dict) or not isinstance(here.get("config"), dict):
            return []
        if there.get("class") != here.get("class"):
            return [f"{name or 'it'} is a {there.get('class')} in the file and a {here.get('class')} in the model"]
        both = [key for key in here["config"] if key in there["config"]]  # an older file knows fewer arguments
        pairs = [(f"{name}.{key}".lstrip("."), there["config"][key], here["config"][key]) for key in both]
    elif isinstance(there, list) and isinstance(here, list) and any(isinstance(one, dict) for one in here):
        pairs = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(there, here, strict=False))]  # of stacks
    else:
        return [] if there == here else [f"{name} is {there!r} in the file and {here!r} in the model"]
    return [difference for pair in pairs for difference in _differences(*pair)]


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

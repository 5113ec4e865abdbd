"""What else has to be the same when a run goes on: the layers, what is frozen, and what the objective does."""

import dis
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from companion._modes import modes_kept
from companion.configured import Configured, kind_of, parts_of, plain_attributes, unwrapped

_OF_EVERY_MODULE = {*vars(nn.Module())}
_LIBRARIES = ("torch", "companion")  # whose modules keep no counters in attributes, as those of a caller may


def details(
    model: nn.Module,
    objective: Callable[..., Any] | None,
    augment: Callable[..., Any] | None = None,
    schedule: Callable[..., Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """By group: "parts" (the class of each module, and which stay in eval mode), "attributes" of these, "parameters"
    (which are trained), "objective" and "augment", "own modes" (of what a model keeps in eval mode by itself), and
    "schedule", if there is one.
    """
    parts: dict[str, str] = {}
    attributes: dict[str, str] = {}
    for path, part in parts_of(model):
        name = f"model.{path}".rstrip(".")
        parts[name] = kind_of(part).__qualname__
        if not isinstance(part, Configured) and kind_of(part).__module__.partition(".")[0] in _LIBRARIES:
            plain = {key: value for key, value in plain_attributes(part).items() if _is_plain(value)}
            attributes |= {f"{name}.{key}": repr(value) for key, value in plain.items()}
    learns = {True: "trained", False: "frozen"}
    parts |= {f"mode of {name}": "eval" for name in parts_kept_in_eval(model)}
    return {
        "parts": parts,
        "attributes": attributes,
        "parameters": {f"parameter {name}": learns[p.requires_grad] for name, p in model.named_parameters()},
        "objective": dict(_of_function("objective", objective)),
        "augment": dict(_of_function("augment", augment)),
        "own modes": {f"mode of {name}": "eval" for name in parts_always_in_eval(model)},
        **({} if schedule is None else {"schedule": dict(_of_function("schedule", schedule))}),
    }


def parts_kept_in_eval(model: nn.Module) -> dict[str, nn.Module]:
    """The modules, by their path, that stay in eval mode in training: those that are in it inside a model that is not.

    A model that is in eval mode itself, as it is after it was trained or loaded, is trained as a whole.
    """
    if not unwrapped(model, "model").training:
        return {}
    always = parts_always_in_eval(model)
    return {path: part for path, part in parts_of(model) if not part.training and path not in always}


def parts_always_in_eval(model: nn.Module) -> set[str]:
    """The paths of the modules that ``model.train()`` leaves in eval mode, as the network of a ``FeatureDistance``."""
    whole = unwrapped(model, "model")
    with modes_kept(whole):
        whole.train()
        return {path for path, part in parts_of(whole) if not part.training}


def differing_details(saved: dict[str, Any], current: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, what is in the state and what is here, of each difference.

    Attributes, and what is known of functions, are compared where both have them: another version of torch, of Python
    or of this library may know others. Modes that the model itself decides are not compared: earlier versions took some
    of them for the caller's.
    """
    found = []
    for group, now in current.items():
        before = saved.get(group, {})
        common = group in ("attributes", "objective", "augment", "own modes", "schedule")
        for name in [name for name in now if name in before] if common else now | before:
            if now.get(name) != before.get(name) and name not in current.get("own modes", {}):
                found.append((name, before.get(name, "absent"), now.get(name, "absent")))
    return found


def _of_function(name: str, function: Any) -> Iterator[tuple[str, str]]:
    """The plain arguments of a partial, and of a function, or of the object or class that it belongs to, a hash of what
    it is compiled to, its defaults, and the settings that it does not change itself.
    """
    while isinstance(function, functools.partial):
        yield from ((f"{name}[{i}]", repr(value)) for i, value in enumerate(function.args) if _is_plain(value))
        yield from ((f"{name}.{key}", repr(value)) for key, value in function.keywords.items() if _is_plain(value))
        function = function.func
    owner, function = _owner_and_function(function)
    if owner is not None:
        yield from _of_owner(name, owner)
    if isinstance(function, FunctionType):
        yield from _of_defaults(name, function)
        version = importlib.util.MAGIC_NUMBER.hex()  # of the compiler: hashes of two versions are not comparable
        digest = hashlib.sha256()
        for piece in _compiled(function.__code__, function.__doc__):
            digest.update(piece)
        yield f"{name}: the code of {function.__qualname__} (Python's {version})", digest.hexdigest()[:12]


def _owner_and_function(called: Any) -> tuple[Any, Any]:
    """The object that what is called belongs to, or None, and the function, or None where that is a library's."""
    owner: Any
    function: Any
    if isinstance(called, MethodType):
        owner, function = called.__self__, called.__func__
    elif isinstance(called, type | FunctionType) or called is None:
        owner, function = None, called
    else:
        owner, function = (
            called,
            getattr(type(called), "forward" if isinstance(called, nn.Module) else "__call__", None),
        )
        if type(called).__module__.partition(".")[0] in (*_LIBRARIES, "torchvision", "builtins"):
            function = None  # another version may do the same with other code
    return None if isinstance(owner, type) else owner, inspect.unwrap(function) if callable(function) else None


def _of_owner(name: str, owner: Any) -> Iterator[tuple[str, str]]:
    """The fixed attributes of an object that is called, without those that its own methods set, such as counters."""
    if name in ("augment", "schedule") and " at 0x" not in repr(owner):
        return  # it shows its settings, and all of what it shows is compared
    methods = [
        value.__code__ for kind in type(owner).__mro__ for value in vars(kind).values() if hasattr(value, "__code__")
    ]
    made = [code for code in methods if code.co_name not in ("__init__", "__post_init__")]
    changed = {one for code in made for one in _stored(code, "STORE_ATTR")}
    for key, value in getattr(owner, "__dict__", {}).items():
        plain = not key.startswith("_") and key not in _OF_EVERY_MODULE
        if plain and key not in changed and _is_fixed(value):
            yield f"{name}.{key}", repr(value)


def _of_defaults(name: str, function: FunctionType) -> Iterator[tuple[str, str]]:
    """The fixed defaults of a function's arguments, and what it takes from the function around it and does not set."""
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    named |= function.__kwdefaults__ or {}
    yield from ((f"{name}: default of {key}", repr(value)) for key, value in named.items() if _is_fixed(value))
    changed = _stored(code, "STORE_DEREF")
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it has none yet
            continue
        if key not in changed and _is_fixed(value):
            yield f"{name}: {key} around it", repr(value)


def _stored(code: CodeType, operation: str) -> set[str]:
    """The names that ``code``, or a function made in it, sets by ``operation``."""
    inner = [value for value in code.co_consts if isinstance(value, CodeType)]
    own = {one.argval for one in dis.get_instructions(code) if one.opname == operation}
    return own.union(*(_stored(one, operation) for one in inner))


def _compiled(code: CodeType, doc: str | None = None) -> Iterator[bytes]:
    yield code.co_code
    yield " ".join(code.co_names).encode()
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _compiled(value)
        elif isinstance(value, frozenset):  # whose order is another in each process
            yield " ".join(sorted(map(repr, value))).encode()
        elif value is not None and value != doc:  # None stands where there is no text
            yield repr(value).encode()


def _is_plain(value: Any) -> bool:
    """Whether its repr is the same in each process."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(_is_plain(getattr(value, field.name, None)) for field in fields(value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_fixed(value: Any) -> bool:
    """Whether it is plain and cannot be changed in place: a list may be the log of a run."""
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return value is None or isinstance(value, bool | int | float | str)

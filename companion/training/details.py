"""What else has to be the same when a run goes on: the layers, what is frozen, and what the objective does."""

import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from companion._modes import modes_kept
from companion.configured import Configured, kind_of, parts_of, plain_attributes, unwrapped

_LIBRARIES = ("torch", "companion")  # whose modules keep no counters in attributes, as those of a caller may


def details(model: nn.Module, objective: Callable[..., Any] | None) -> dict[str, dict[str, Any]]:
    """By group: "parts" (the class of each module, and which stay in eval mode), "attributes" of these, "parameters"
    (which are trained), "objective", and "own modes" (of the parts that a model keeps in eval mode by itself).
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
        "own modes": {f"mode of {name}": "eval" for name in parts_always_in_eval(model)},
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

    Attributes, and what is known of an objective, are compared where both have them: another version of torch or of
    Python may know others. Modes that the model itself decides are not compared: earlier versions took some of them for
    the caller's.
    """
    found = []
    for group, now in current.items():
        before = saved.get(group, {})
        common = group in ("attributes", "objective", "own modes")
        for name in [name for name in now if name in before] if common else now | before:
            if now.get(name) != before.get(name) and name not in current.get("own modes", {}):
                found.append((name, before.get(name, "absent"), now.get(name, "absent")))
    return found


def _of_function(name: str, function: Any) -> Iterator[tuple[str, str]]:
    """The plain arguments of a partial, and a hash of what a function is compiled to."""
    while isinstance(function, functools.partial):
        yield from ((f"{name}[{i}]", repr(value)) for i, value in enumerate(function.args) if _is_plain(value))
        yield from ((f"{name}.{key}", repr(value)) for key, value in function.keywords.items() if _is_plain(value))
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    if isinstance(function, FunctionType):
        version = importlib.util.MAGIC_NUMBER.hex()  # of the compiler: hashes of two versions are not comparable
        digest = hashlib.sha256()
        for piece in _compiled(function.__code__, function.__doc__):
            digest.update(piece)
        yield f"{name}: the code of {function.__qualname__} (Python's {version})", digest.hexdigest()[:12]


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
    return value is None or isinstance(value, bool | int | float | str)

"""Modules that know how they were made: their constructor's arguments are recorded, and keep being true.

``Configured.config`` is what ``companion.save`` writes beside the weights. An attribute that is assigned later is
checked as the constructor checks its argument, by making a twin of the module without numbers in its tensors.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion._arguments import brief, brief_kind, check_instance, check_module

LARGEST_MODEL = 2**31  # numbers in one model: 8 GB in float32


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
            name: describe(name, _attribute(self, name) if kept else value) for name, (kept, value) in arguments.items()
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
            known = CLASSES.setdefault(cls.__name__, cls)
            if known.__module__ != cls.__module__:
                raise TypeError(f"{cls.__name__} is the name of a class in {known.__module__} already")
            CLASSES[cls.__name__] = cls  # the same class again: its module was reloaded


def unwrapped(model: nn.Module, argument: str) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and of data parallelism.

    Raises:
        ValueError: ``model`` is no module; the message names ``argument``.
    """
    check_instance(argument, model, nn.Module, "a module")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
    return unwrapped(inner, argument) if isinstance(inner, nn.Module) else model


CLASSES: dict[str, type[Configured]] = {}
REGISTERED: dict[str, type[Configured]] = {}  # of readers, by the names that files know them by

Kind = TypeVar("Kind", bound=type[Configured])


def register(kind: Kind) -> Kind:
    """Let ``companion.load`` rebuild a class of your own, alone and as a part of other models. A decorator:

        @companion.register
        class Pooled(companion.Configured, nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                ...

    ``companion.save`` then writes the arguments of its ``__init__`` too, as for the library's own classes. To load such
    a file, import the module that registers the class first: a file has its name, not its code. Loading calls its
    ``__init__`` with what the file says, so register only classes that may be called so.

    Raises:
        ValueError: ``kind`` is no module class that is ``Configured``, or its name is that of a class of this library
            or of another registered one.
    """
    if not (isinstance(kind, type) and issubclass(kind, Configured) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"kind: got {brief(kind)}, want a class that keeps its arguments: "
            "class Pooled(companion.Configured, nn.Module)"
        )
    name = kind.__name__
    if name in CLASSES:
        raise ValueError(f"kind: got a {name}, want another name: this library has a class of that name")
    known = REGISTERED.setdefault(name, kind)
    if _origin(known) != _origin(kind):
        raise ValueError(
            f"kind: got a {name}, want another name: {'.'.join(_origin(known))} is registered with that one"
        )
    REGISTERED[name] = kind  # the same class again: its cell or its module was run again
    return kind


def _origin(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


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
                before[name] = describe(name, value)
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
        kept = {name: name in before and is_described(self, name, before[name]) for name in arguments}
        self.__dict__["_arguments"] = {
            name: (kept[name], None if kept[name] else value) for name, value in arguments.items()
        }
        built = _public_attributes(self) if ours else self.__dict__.get("_built", frozenset())
        self.__dict__.pop("_built", None)
        free = {*self._changeable, *_arguments_of_bases(self)}  # what a reader's class gives to ours stays a setting
        self.__dict__["_settings"] = frozenset(arguments) | built - free

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


def _arguments_of_bases(owner: Configured) -> set[str]:
    """The names of all arguments that the constructors of its base classes take."""
    bases = [base for base in type(owner).__mro__ if issubclass(base, Configured) and "__init__" in vars(base)]
    return {name for base in bases for name in inspect.signature(vars(base)["__init__"]).parameters}


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
        if not is_ours(owner):  # what a reader's constructor needs is not known
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
    there, here = shapes_of(value), shapes_of(now)
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


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {plain_name(name): tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _alike(name: str, one: Any, other: Any) -> bool:
    """Whether two values of an attribute are the same; of two that no config could hold, whether their types are."""
    try:
        there = describe(name, other)
    except ValueError:
        return type(one) is type(other)
    try:
        return bool(describe(name, one) == there)
    except ValueError:
        return False


def _what_differs(before: Configured, after: Configured, name: str) -> str:
    """The name of a tensor or plain attribute, beside what ``name`` itself is, in which two twins differ."""
    made = [
        {
            tensor: shape
            for tensor, shape in (shapes_of(twin).items() if isinstance(twin, nn.Module) else ())
            if tensor.partition(".")[0] != name
        }
        for twin in (before, after)
    ]
    if made[0] != made[1]:
        return next(tensor for tensor in made[0] | made[1] if made[0].get(tensor) != made[1].get(tensor))
    plain = [other for other in vars(before).get("_settings", ()) if other in vars(before) and other != name]
    return next((one for one in plain if not _alike(one, vars(before)[one], vars(after).get(one))), "")


def is_ours(value: object) -> bool:
    return isinstance(value, Configured) and CLASSES.get(kind_of(value).__name__) is kind_of(value)


def is_registered(value: object) -> bool:
    return isinstance(value, Configured) and REGISTERED.get(kind_of(value).__name__) is kind_of(value)


def kind_of(value: object) -> type:
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
        if isinstance(value, nn.Module) and "_settings" in vars(inner := unwrapped(value, "model")) and is_ours(inner):
            if id(inner) not in done:
                done[id(inner)] = _copied(cast(Configured, inner), done, {})
            return done[id(inner)]
        return value

    arguments: dict[str, tuple[bool, Any]] = owner.__dict__.get("_arguments", {})
    present = {name: _attribute(owner, name) if kept else value for name, (kept, value) in arguments.items()}
    made: Configured = kind_of(owner)(**{name: copied(value) for name, value in (present | dict(changes)).items()})
    return made


class _Hollow(TorchFunctionMode):
    """New tensors have a shape and no numbers. Drawing numbers for them, or scaling them, does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not given:
            return without_memory(func, args, kwargs)
        idle = getattr(func, "__name__", "") in _IDLE or getattr(func, "__module__", "") == nn.init.__name__
        return given[0] if idle and len(given) == 1 and given[0].is_meta else func(*args, **kwargs)


# Of hollow tensors; on the device meta, the first of these would import half of torch.
_IDLE = {"uniform_", "normal_", "mul", "__mul__", "__rmul__", "div", "__truediv__"}


def check_as_built(model: nn.Module) -> None:
    """That the config of ``model`` says how to make it as it is now.

    Of a registered class only the tensors are compared, and only if it can be made without numbers in them.

    Raises:
        ValueError: its constructor refuses the config, or would make other tensors, parts or attributes from it.
    """
    if isinstance(model, Configured) and is_registered(model):
        other = _twin_or_none(model)
        if isinstance(other, nn.Module):
            _check_shapes(model, other)
    if not isinstance(model, Configured) or not is_ours(model):
        return
    try:
        twin = cast(nn.Module, _twin(model))
    except ValueError as error:
        raise ValueError(f"model: got one that cannot be made again, want one that can ({error})") from error
    same = _check_shapes(cast(nn.Module, model), twin)
    for where, got, want in _differing_parts(model, twin, whole=same):
        raise ValueError(
            f"model: got {where} = {got}, want {want} as it is built with this config; a file of it would be loaded "
            "otherwise"
        )


def _check_shapes(model: nn.Module, twin: nn.Module) -> bool:
    """Every tensor of the twin is there, in its shape. Whether there are no others: a reader may have added some, for
    models to which the same was added."""
    there, here = shapes_of(model), shapes_of(twin)
    for name, shape in here.items():
        if there.get(name) != shape:
            got = f"{name} of shape {there[name]}" if name in there else f"no {name}"
            raise ValueError(
                f"model: got {got}, want shape {shape} as a {kind_of(model).__name__} is built with this config; a "
                "file of it could not be loaded"
            )
    return there.keys() == here.keys()


def changes_since_built(model: nn.Module) -> list[str]:
    """The parts and plain attributes of ``model`` that are other than its config would make them, each as a line.

    There are none where its class is not of this library, and where it cannot be made again.
    """
    twin = _twin_or_none(model) if isinstance(model, Configured) and is_ours(model) else None
    if not isinstance(twin, nn.Module):
        return []
    return [f"{where} = {got}" for where, got, _ in _differing_parts(model, twin, whole=True)]


def parts_of(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module in ``model`` with its path, as if none of them were compiled or wrapped."""
    model = unwrapped(model, "model")
    yield path, model
    for name, part in model.named_children():
        yield from parts_of(part, _below(path, name))


def plain_attributes(part: nn.Module) -> dict[str, Any]:
    """What its class keeps of its arguments: public attributes that are no tensors and no modules."""
    own = vars(part)
    names = own["_settings"] if "_settings" in own else {name for name in own if not name.startswith("_")}
    return {name: own[name] for name in own if name in names and name not in _OF_EVERY_MODULE}


def _differing_parts(
    model: nn.Module, twin: nn.Module, path: str = "", *, whole: bool
) -> Iterator[tuple[str, str, str]]:
    """Path, what is there and what its twin has, of each part and plain attribute in which the two differ.

    Args:
        whole: also compare what does not know its arguments, such as the layers of an ``nn.Sequential``. A reader who
            added tensors has other ones; a file with those cannot be taken for one without.
    """
    model, twin = unwrapped(model, "model"), unwrapped(twin, "model")
    if model is twin:
        return
    if whole and _full_name(model) != _full_name(twin):
        yield path, brief_kind(model), brief_kind(twin)
        return
    here, there = plain_attributes(model), plain_attributes(twin)
    for name in here if whole or isinstance(model, Configured) else ():
        if name in there and not _alike(name, here[name], there[name]):
            yield _below(path, name), brief(here[name]), brief(there[name])
    parts, others = dict(model.named_children()), dict(twin.named_children())
    for name in parts | others:
        if name in parts and name in others:
            yield from _differing_parts(parts[name], others[name], _below(path, name), whole=whole)
        elif whole and not isinstance(model, Configured):  # which calls the parts that it was written with, and no more
            got, want = (brief_kind(all_[name]) if name in all_ else "nothing" for all_ in (parts, others))
            yield _below(path, name), got, want


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _full_name(part: nn.Module) -> tuple[str, str]:
    return kind_of(part).__module__, kind_of(part).__qualname__


def is_described(owner: Configured, name: str, description: Any) -> bool:
    try:
        return bool(describe(name, _attribute(owner, name)) == description)
    except (KeyError, ValueError):  # there is no such attribute, or one of another kind
        return False


def plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "")  # torch.compile puts it before the names of a module


def describe(name: str, value: object) -> Any:
    """``value`` in a form that JSON can hold."""
    if isinstance(value, nn.ModuleList):
        value = list(value)
    if isinstance(value, nn.Module):
        value = unwrapped(value, name)
        config = cast(Configured, value).config if is_ours(value) or is_registered(value) else None
        return {"class": kind_of(value).__name__, "config": config}
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, numbers.Integral | numbers.Real):  # numpy's numbers too
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, tuple | list):
        return [describe(name, one) for one in value]
    raise ValueError(f"{name}: got {brief(value)}, want a number, string, bool, None, module or a sequence of these")


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


def without_memory(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of ``func``; a new tensor is made on the device "meta", where it has a shape and takes no memory."""
    if func in (torch.randn, torch.rand):  # on that device the first of these imports half of torch
        func, kwargs = torch.empty, {name: value for name, value in kwargs.items() if name != "generator"}
    with torch.device("meta"):
        return func(*args, **(kwargs | {"device": "meta"} if kwargs.get("device") is not None else kwargs))

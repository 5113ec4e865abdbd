"""Whether a run that goes on is the same run: its settings are compared with those in its newest state.

``check_same_run`` makes the comparison, between what ``run_settings`` gives now and what it gave when the state was
saved. ``states.States.newest`` calls it when it reads a state.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion.checkpoint import add_to_digest
from companion.configured import Configured, unwrapped
from companion.training.details import details, differing_details
from companion.training.plan import Plan
from companion.training.randomness import fresh_random_state, random_state_kept, set_random_state

Settings = dict[str, Any]
MOST_LINES = 12  # of differences in one message
DEFAULT_OBJECTIVE = "_the_models_own"  # in state files: what the function was called when the first were written


def run_settings(plan: Plan, optimizer: torch.optim.Optimizer, accelerator: Any) -> dict[str, Settings]:
    """What has to be the same when a run goes on, as a state file holds it.

    ``settings`` is in every state. ``origin``, which tells configurations and data apart, is not in those of the first
    version, and the ``details`` of :mod:`companion.training.details` are not in those of the second.
    """
    return {
        "settings": _settings(plan, optimizer, accelerator),
        "origin": _origin(plan, optimizer),
        "details": details(plan.model, plan.objective, plan.augment, plan.schedule),
    }


def check_same_run(folder: Path, saved: dict[str, Any], current: dict[str, Settings], *, announce: bool) -> None:
    """Compare the settings in the state ``saved`` with the ``current`` ones.

    Args:
        announce: print what the state lacks and could not be compared.

    Raises:
        ValueError: they differ; the message has a line for each difference.
    """
    before, now = dict(saved["settings"]), dict(current["settings"])
    if "origin" in saved:
        before |= saved["origin"]  # in which "optimizer" is the class alone: its settings have entries of their own
        now |= current["origin"]
    else:  # the first version, which had none of these
        later = ("augment", "schedule", "clip", "accumulate", "average")
        now |= {name: value for name, value in current["origin"].items() if name in later}
        if announce:
            print("run: an earlier version began it and noted no configuration and no sample of the data to compare")
    differences = [
        f"  {name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} here"
        for name in now | before
        if now.get(name) != before.get(name)
    ]
    if "details" in saved:
        more_of_them = differing_details(saved["details"], current["details"])
        differences += [f"  {name}: {there} there, {here} here" for name, there, here in more_of_them]
    differences = list(dict.fromkeys(differences))  # the class of a part may be among the arguments of another
    if differences:
        left_out = len(differences) - MOST_LINES
        more = [f"  and {left_out} more"] if left_out > 0 else []
        lines = "\n".join([*differences[:MOST_LINES], *more])
        raise ValueError(f"run: {folder} holds a run with other settings:\n{lines}\nUse those, or another folder")


def shown(function: Callable[..., Any]) -> str:
    """Its name; of an object that shows its settings, as a dataclass or a transform of torchvision does, all of it."""
    function = _called(function)
    text = " ".join(repr(function).split())
    return _name(function) if hasattr(function, "__qualname__") or " at 0x" in text else text


def fingerprint(examples: Any) -> str:
    """Twelve digits that tell one set of examples from another: of a hash of their number and of up to 512 of them.

    They are taken evenly from first to last. Examples that differ from call to call, as with augmentation that draws
    from elsewhere than torch, count by their shapes.
    """
    cpu, n = torch.device("cpu"), len(examples)
    digest, steady = hashlib.sha256(str(n).encode()), None

    def batch(rows: Tensor) -> dict[str, Tensor]:
        set_random_state(cpu, fresh_random_state(cpu, 0))  # augmentation draws the same each time
        return {str(i): value for i, value in enumerate(examples.batch(rows, cpu)) if isinstance(value, Tensor)}

    with random_state_kept(cpu):
        for rows in torch.linspace(0, n - 1, min(n, 512), dtype=torch.float64).round().long().split(64):
            tensors = batch(rows)
            if steady is None:
                steady = all(torch.equal(value, tensors[i]) for i, value in batch(rows).items())
            add_to_digest(digest, tensors if steady else {i: torch.tensor(value.shape) for i, value in tensors.items()})
    return digest.hexdigest()[:12]


def _settings(plan: Plan, optimizer: torch.optim.Optimizer, accelerator: Any) -> Settings:
    """The numbers of the call, the machine's part, and the shapes of all tensors."""
    tensors = plan.model.state_dict()
    return {
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "len(train)": len(plan.train),
        "len(validation)": None if plan.validation is None else len(plan.validation),
        "optimizer": " ".join(repr(optimizer).split()),
        **{f"tensor {name}": f"{value.dtype} {tuple(value.shape)}" for name, value in tensors.items()},
    }


def _origin(plan: Plan, optimizer: torch.optim.Optimizer) -> Settings:
    """The configuration of the model, the names of the functions, how steps are made, and a sample of the data."""
    origin: Settings = {"model": type(unwrapped(plan.model, "model")).__qualname__}
    origin |= _configuration(plan.model)
    origin["objective"] = DEFAULT_OBJECTIVE if plan.objective is None else _name(plan.objective)
    if plan.augment is not None:  # without one there is no entry, as in the states of earlier versions
        origin["augment"] = shown(plan.augment)
    if plan.schedule is not None:  # nor for what came later still
        origin["schedule"] = shown(plan.schedule)
    for name, value, default in (
        ("clip", plan.clip, None),
        ("accumulate", plan.accumulate, 1),
        ("average", plan.average, None),
    ):
        if value != default:
            origin[name] = value
    origin["optimizer"] = type(optimizer).__qualname__
    for i, group in enumerate(optimizer.param_groups):
        origin |= {f"optimizer.{i}.{key}": repr(value) for key, value in group.items() if key != "params"}
    origin["train"] = fingerprint(plan.train)
    origin["validation"] = None if plan.validation is None else fingerprint(plan.validation)
    return origin


def _configuration(model: nn.Module) -> Settings:
    """The arguments of every module in the model that remembers them, by its path and their names."""
    found: Settings = {}
    for path, module in model.named_modules():
        if isinstance(module, Configured):
            prefix = ".".join(["model", *filter(None, [path])])
            found |= {f"{prefix}.{argument}": _class_names(value) for argument, value in module.config.items()}
    return found


def _class_names(described: Any) -> Any:
    """The config of an argument, but of modules the class alone: they have entries of their own."""
    if isinstance(described, dict):
        return described["class"]
    return [_class_names(item) for item in described] if isinstance(described, list) else described


def _name(function: Callable[..., Any]) -> str:
    """Of a function its name, of another object that of its class; a partial has that of what it calls."""
    function = _called(function)
    return getattr(function, "__qualname__", type(function).__qualname__)


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function

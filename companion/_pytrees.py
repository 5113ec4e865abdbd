"""Results that torch sees through: in ``torch.compile``, ``torch.export`` and data parallelism."""

from typing import TypeVar

import torch

Result = TypeVar("Result")


def pytree(cls: type[Result]) -> type[Result]:
    """Decorates a dataclass of tensors: torch takes it apart into them and puts it together again, as it does with
    tuples and dicts. Otherwise ``torch.export`` refuses a model that returns one, and sharded data parallelism finds no
    tensor in it to hang its hooks on."""
    torch.export.register_dataclass(cls, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")
    return cls

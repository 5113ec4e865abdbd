"""Puts on one device all tensors that are made without naming any."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class Placed(TorchFunctionMode):
    """As ``torch.set_default_device``, but made on the CPU and then moved: seeds give the numbers that they give there,
    and generators of the CPU can draw."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_tensor = func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor)
        if func not in _device_constructors() or kwargs.get("device") is not None or is_tensor:
            return func(*args, **kwargs)
        needs_gradient = kwargs.get("requires_grad", False)
        kwargs = {name: value for name, value in kwargs.items() if name != "requires_grad"} | {"device": "cpu"}
        made = func(*args, **kwargs).to(self.device)
        return made.requires_grad_() if needs_gradient else made

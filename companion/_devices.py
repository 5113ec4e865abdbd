"""The default device, and the floating-point types and random generators of devices."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # Apple's GPUs refuse tensors of this type


def default_device() -> torch.device:
    """The device that ``fit`` and the course's ``begin`` use by default: CUDA if there is a GPU, or else the CPU.

    Another accelerator ("mps", "xpu") is used only if it is named: the numbers of the course were not measured on them,
    and some have no float64.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def at_least_float32(value: Tensor) -> Tensor:
    """``value`` in float32 or float64: distances, losses, averages and probabilities are never in half precision."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def as_float64(value: Tensor) -> Tensor:
    """``value`` in float64, on its device, or on the CPU if its device has no float64; differentiable."""
    return value.cpu().double() if value.device.type in WITHOUT_FLOAT64 else value.double()


def place_of(generator: torch.Generator | None, device: torch.device) -> torch.device:
    """The device to draw random numbers on: that of ``generator``, since torch draws on no other, or else ``device``.

    So a generator gives the same numbers to a model on any device.
    """
    return device if generator is None else generator.device

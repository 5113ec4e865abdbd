"""Where to compute: the device where none is named, and float64 for devices that have none."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # Apple's GPUs refuse tensors of this type


def default_device() -> torch.device:
    """What ``fit`` and the course's ``begin`` choose where nobody names a device: CUDA where there is a GPU, else the
    CPU.

    Another accelerator ("mps", "xpu") is used where it is named. The course's numbers were not measured on them, and
    some have no float64.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def as_float64(value: Tensor) -> Tensor:
    """``value`` in float64, on its device, or on the CPU if its device has none. Gradients find the way back."""
    return value.cpu().double() if value.device.type in WITHOUT_FLOAT64 else value.double()


def place_of(generator: torch.Generator | None, device: torch.device) -> torch.device:
    """Where to draw: torch draws on a generator's own device only. The same one gives the same numbers for a model on
    any device."""
    return device if generator is None else generator.device

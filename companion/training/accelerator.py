"""The device, the precision and the processes of one call of ``fit``, by Hugging Face's Accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from companion._devices import default_device
from companion._extras import require


@contextmanager
def own_accelerator(precision: str, device: str | torch.device | None) -> Iterator[Any]:
    """An Accelerator for this block alone. The caller's, if there is one, works as before afterwards.

    Raises:
        ValueError: this machine lacks the device, it has no such precision, or Accelerate cannot join the processes.
    """
    accelerate = require("accelerate", extra="train", what="fit")
    utils = require("accelerate.utils", extra="train", what="fit")
    kind = torch.device(default_device() if device is None else device).type
    if kind != "cpu" and not torch.get_device_module(kind).is_available():
        raise ValueError(f"device: got {device}, want one that this machine has")
    if precision == "fp16" and kind == "cpu":
        raise ValueError("precision: got fp16 on the CPU, want bf16 or no (fp16 needs a GPU)")
    alone = "LOCAL_RANK" not in os.environ  # with several, Accelerate gives each process its own GPU
    named = {"ACCELERATE_TORCH_DEVICE": str(device)} if device is not None and alone else {}
    with _settings_put_aside():
        with utils.patch_environment(**named):  # no argument of Accelerator names a device, this variable does
            accelerator = accelerate.Accelerator(
                cpu=kind == "cpu",
                mixed_precision=precision,
                gradient_accumulation_plugin=utils.GradientAccumulationPlugin(num_steps=1),
                # an objective may leave a parameter out of a step, as it may with one process
                kwargs_handlers=[utils.DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        _check_joined(accelerator, kind, device)
        yield accelerator


@contextmanager
def _settings_put_aside() -> Iterator[None]:
    """In this block Accelerate has no settings yet; afterwards it has those from before again.

    It keeps them in three dictionaries that all Accelerators of a process share, refuses another device or precision
    once they are filled, and has no public function that empties or restores them.
    """
    state = require("accelerate.state", extra="train", what="fit")
    shared = [kind._shared_state for kind in (state.PartialState, state.AcceleratorState, state.GradientState)]
    before = [dict(settings) for settings in shared]
    for settings in shared:
        settings.clear()
    try:
        yield
    finally:
        for settings, old in zip(shared, before, strict=True):
            settings.clear()
            settings.update(old)


def _check_joined(accelerator: Any, kind: str, device: str | torch.device | None) -> None:
    """That it found the kind of device that is wanted, and all the processes that were started."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        started = torch.distributed.get_world_size()
    found, joined = accelerator.device.type, accelerator.num_processes
    if (found, joined) != (kind, started):
        raise ValueError(
            f"device: got {device} and {started} processes, but Accelerate uses {found} and joins "
            f"{joined}; start several processes with torchrun or accelerate launch, on the CPU or CUDA"
        )

"""A GPU that is not there: its tensors say that they lie on it, and keep their numbers on the CPU.

What a GPU refuses is refused: an operation on tensors of two devices, a generator of the CPU, ``.numpy()``, and without
``float64`` that type, as Apple's GPUs do. Everything else runs, with the CPU's numbers: also what looks at values
(``.item()``, ``bincount``, k-means, a check for NaN), also backward and optimizers. Torch's own FakeTensorMode, whose
tensors have no numbers, stops at each of these.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

_KIND = "pretended"
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten.copy.default}  # from one device to another
_BY_INDEX = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class PretendedDevice(TorchDispatchMode):
    """In this block there is a device of the type "pretended", beside the CPU.

    Args:
        float64: whether it has that type.
    """

    active: ClassVar[bool] = False

    def __init__(self, *, float64: bool = True) -> None:
        super().__init__()
        register()
        self.device = torch.device(_KIND, 0)
        self.float64 = float64

    def __enter__(self) -> "PretendedDevice":
        assert not PretendedDevice.active
        PretendedDevice.active = True
        _PretendedTensor.float64 = self.float64
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is a copy of one on the CPU
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        _PretendedTensor.float64 = True
        PretendedDevice.active = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _PretendedTensor(Tensor):
    float64: ClassVar[bool] = True
    held: Tensor  # the numbers

    @staticmethod
    def __new__(cls, held: Tensor) -> "_PretendedTensor":
        if held.dtype in (torch.float64, torch.complex128) and not cls.float64:
            raise TypeError("the pretended device has no float64, as Apple's GPUs have none")
        strided = held.layout == torch.strided
        out: _PretendedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride() if strided else None,
            storage_offset=held.storage_offset() if strided else None,
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(_KIND, 0),
        )
        out.held = held
        return out

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.tolist, Tensor.__repr__, Tensor.__format__):  # which refuse all subclasses
                return func(args[0].held.detach(), *args[1:], **(kwargs or {}))
            if func == Tensor.data.__set__ and isinstance(args[1], _PretendedTensor):  # module.double() does this
                args[0].held = args[1].held
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = any(isinstance(one, _PretendedTensor) for one in tensors)
    if here:
        _refuse_two_devices(func, args, tensors)
    if (device := kwargs.get("device")) is not None:
        here = torch.device(device).type == _KIND
        kwargs = kwargs | ({"device": torch.device("cpu")} if here else {})
    if here and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{_KIND}' device type for generator but found 'cpu'")
    on_cpu = tree_map(lambda leaf: leaf.held if isinstance(leaf, _PretendedTensor) else leaf, (args, kwargs))
    out = func(*on_cpu[0], **on_cpu[1])
    if not here:
        return out
    out = tree_map(lambda leaf: _PretendedTensor(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _refuse_two_devices(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """What CUDA allows: copies, a CPU's index into a GPU's tensor, and the CPU's 0-dim numbers in pointwise work."""
    if func in _COPIES:
        return
    indices = args[1] if func in _BY_INDEX and isinstance(args[0], _PretendedTensor) else ()
    strangers = [one for one in tensors if not isinstance(one, _PretendedTensor) and all(one is not i for i in indices)]
    if torch.Tag.pointwise in func.tags or func in _BY_INDEX:
        strangers = [one for one in strangers if one.ndim]
    if strangers:
        raise RuntimeError(
            f"{func}: Expected all tensors to be on the same device, but found at least two devices, {_KIND} and cpu"
        )


class _Module(backend_registration._DummyBackendModule):
    """``torch.pretended``."""

    def is_available(self) -> bool:
        return PretendedDevice.active

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:  # it draws on the CPU
        return torch.empty(0, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        pass


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return PretendedDevice.active


@functools.cache
def register() -> None:
    """Once a process, under the name that torch keeps free for devices of others."""
    backend_registration._setup_privateuseone_for_python_backend(_KIND, _Module(), _Hook())

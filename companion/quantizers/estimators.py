"""How a gradient passes a choice that has none: straight-through, and the rotation trick (chapters 03 and 05)."""

from typing import Any

import torch
from torch import Tensor

from companion._arguments import check_same_shape, check_tensor
from companion.quantizers.base import at_least_float32


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of ``z_q``, to the bit, with the gradient of ``z``: dL/dz is the dL/dz_q that arrives here.

    (Bengio et al. 2013, section 4; van den Oord et al. 2017, section 3.2.) Usually written z + sg[z_q − z], where sg
    is the stop-gradient. Computed so, the value is z_q only up to rounding; this one returns z_q exactly, and hands
    the gradient to z. Nothing flows to ``z_q``.

    Shapes:
        z, z_q: the same shape → the same, in z's dtype.

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(z, z_q)
    return _StraightThrough.apply(z, z_q.detach().to(z.dtype))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of ``z_q``, with a gradient that is turned and scaled as z is turned and scaled onto z_q.

    z_q = λRz, where R is the rotation in the plane of z and z_q that takes one direction to the other and λ =
    ‖z_q‖/‖z‖; both count as constants, so that dL/dz = λRᵀ dL/dz_q (Fifty et al. 2024, equations 3 to 5). Where there
    is no such rotation (z or z_q is 0, or they point in opposite directions), or z is shorter than a millionth of z_q,
    the gradient is that of :func:`straight_through`.

    Shapes:
        z, z_q: (N, D) → (N, D), in z's dtype.

    Raises:
        ValueError: the shapes differ, or are not (N, D).
    """
    _check_pair(z, z_q)
    if z.ndim != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (N, D)")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        source, target = at_least_float32(z.detach()), at_least_float32(z_q.detach())
        length, wanted = (v.norm(dim=1, keepdim=True) for v in (source, target))  # (N, 1)
        turns = (length > 1e-6 * wanted) & (wanted > 0)
        one = torch.ones_like(length)
        u = source / length.where(turns, one)
        v = target / wanted.where(turns, one)
        middle = u + v  # what R leaves in place; 0 where the two are opposite
        span = middle.norm(dim=1, keepdim=True)
        turns &= span > 1e-6
        r = middle / span.where(turns, one)
        scale = wanted / length.where(turns, one)
    with torch.autocast(z.device.type, enabled=False):
        moving = at_least_float32(z)
        along_r, along_u = ((moving * w).sum(1, keepdim=True) for w in (r, u))  # (N, 1)
        turned = scale * (moving - 2 * along_r * r + 2 * along_u * v)  # λRz, equation 4
        path = torch.where(turns, turned, moving)
        return (target + (path - path.detach())).to(z.dtype)


ESTIMATORS = {"straight-through": straight_through, "rotation": rotation_trick}


def _check_pair(z: Tensor, z_q: Tensor) -> None:
    check_tensor("z", z)
    check_tensor("z_q", z_q)
    check_same_shape("z_q", z_q, "z", z)

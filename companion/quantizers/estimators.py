"""How a gradient passes a choice that has none: straight-through, and the rotation trick (chapter 03 and study 03b)."""

from typing import Any

import torch
from torch import Tensor

from companion._arguments import check_same_shape, check_tensor
from companion._devices import at_least_float32


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
    return _StraightThrough.apply(z, z_q.detach().to(z.dtype))  # z + (z_q − z).detach(), without its rounding


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.clone()  # not z_q itself or a view: the next layer may write in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """The value of ``z_q``, with a gradient that is turned and scaled as z is turned and scaled onto z_q.

    z_q = λRz, where R is the rotation in the plane of z and z_q that takes one direction to the other and λ =
    ‖z_q‖/‖z‖; both count as constants, so that dL/dz = λRᵀ dL/dz_q (Fifty et al. 2024, equations 3 to 5). With the
    directions u = z/‖z‖ and v = z_q/‖z_q‖, and r = (u + v)/‖u + v‖, it is R = I − 2rrᵀ + 2vuᵀ.

    Where there is no such rotation (z or z_q is 0, or they point in opposite directions), or z is shorter than a
    millionth of z_q, the gradient is that of :func:`straight_through`.

    Shapes:
        z, z_q: (N, D) → (N, D), in z's dtype.

    Raises:
        ValueError: the shapes differ, or are not (N, D).
    """
    _check_pair(z, z_q)
    if z.ndim != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (N, D)")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        start, target = at_least_float32(z.detach()), at_least_float32(z_q.detach())  # (N, D)
        z_length, z_q_length = (vectors.norm(dim=1, keepdim=True) for vectors in (start, target))  # (N, 1)
        can_rotate = (z_length > 1e-6 * z_q_length) & (z_q_length > 0)  # (N, 1) bool
        one = torch.ones_like(z_length)  # in place of lengths that nothing can be divided by
        u = start / z_length.where(can_rotate, one)  # (N, D)
        v = target / z_q_length.where(can_rotate, one)  # (N, D)
        sum_length = (u + v).norm(dim=1, keepdim=True)  # (N, 1); 0 where the two are opposite
        can_rotate &= sum_length > 1e-6
        r = (u + v) / sum_length.where(can_rotate, one)  # (N, D)
        scale = z_q_length / z_length.where(can_rotate, one)  # (N, 1): λ
    with torch.autocast(z.device.type, enabled=False):
        z_32 = at_least_float32(z)  # the values of start, with the gradient to z
        z_along_r, z_along_u = ((z_32 * direction).sum(1, keepdim=True) for direction in (r, u))  # (N, 1)
        rotated = scale * (z_32 - 2 * z_along_r * r + 2 * z_along_u * v)  # λRz, equation 4
        gradient_from = torch.where(can_rotate, rotated, z_32)  # elsewhere straight through
        return (target + (gradient_from - gradient_from.detach())).to(z.dtype)


ESTIMATORS = {"straight-through": straight_through, "rotation": rotation_trick}


def _check_pair(z: Tensor, z_q: Tensor) -> None:
    check_tensor("z", z)
    check_tensor("z_q", z_q)
    check_same_shape("z_q", z_q, "z", z)

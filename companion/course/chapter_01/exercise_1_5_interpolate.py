"""Exercise 1.5, interpolation: points on the line between two latents of any shape."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion.autoencoder import interpolate
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import call


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(3)
    ends = {0: "start", 1: "end"}

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    a, b = pair(2, 3, 5)
    return [
        Case("two vectors of three numbers, five steps", (*pair(3), 5), gradient_of=ends),
        Case("two steps", (*pair(4), 2), gradient_of=ends),
        Case("latent grids with an axis of length 1", (*pair(1, 4, 1), 3), gradient_of=ends),
        Case("latent grids, not contiguous in memory", (a.transpose(0, 2), b.transpose(0, 2), 4), gradient_of=ends),
        Case(
            "latents on another device than the CPU", (torch.empty(3, device="meta"), torch.empty(3, device="meta"), 3)
        ),
    ]


def _t(start: Tensor, steps: int) -> Tensor:
    return torch.linspace(0, 1, steps, device=start.device)


def _weights(start: Tensor, t: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * start.ndim)


def _line(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    t = _weights(start, t)
    return (1 - t) * start + t * end


def _vectors_only(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _t(start, steps)[:, None]
    return (1 - t) * start + t * end


def _scaled_sum(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _weights(start, _t(start, steps))
    return start + t * end


def _on_the_sphere(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _weights(start, _t(start, steps))
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = cosine.clamp(-1, 1).arccos()
    return (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()


MISTAKES = (
    Mistake(
        "the end is left out",
        lambda a, b, n: _line(a, b, torch.arange(n, device=a.device) / n),
        "the last point stops short of `end`. With n points there are n − 1 gaps: torch.linspace(0, 1, n).",
    ),
    Mistake(
        "backwards",
        lambda a, b, n: interpolate(b, a, n),
        "the line runs from `end` to `start`: swap the two weights.",
    ),
    Mistake(
        "one point too many",
        lambda a, b, n: interpolate(a, b, n + 1),
        "there is one point too many: `steps` counts the points, both ends included.",
    ),
    Mistake(
        "inner points only",
        lambda a, b, n: interpolate(a, b, n + 2)[1:-1],
        "the two ends are missing: t starts at 0 and ends at 1.",
    ),
    Mistake(
        "vectors only",
        _vectors_only,
        "this works for vectors but not for grids: give t as many axes of length 1 as a latent has, "
        "t.reshape(-1, *[1] * start.ndim).",
    ),
    Mistake(
        "weights on the CPU",
        lambda a, b, n: _line(a, b, torch.linspace(0, 1, n)),
        "t is on the CPU, the latents are not: torch.linspace(0, 1, steps, device=start.device).",
    ),
    Mistake(
        "t not reshaped",
        lambda a, b, n: (1 - _t(a, n)) * a + _t(a, n) * b,
        "t has one axis, of length `steps`, and meets the latent's last axis. Give it an axis of its own in front: "
        "t.reshape(-1, *[1] * start.ndim).",
    ),
    Mistake(
        "a list",
        lambda a, b, n: [(1 - t) * a + t * b for t in torch.linspace(0, 1, n).tolist()],
        "this is a list of points. Put them into one tensor: torch.stack(points).",
    ),
    Mistake(
        "end to end",
        lambda a, b, n: torch.cat([(1 - t) * a + t * b for t in torch.linspace(0, 1, n).tolist()]),
        "torch.cat joins along an axis that is there already. A new axis for the steps: torch.stack.",
    ),
    Mistake(
        "steps on the last axis",
        lambda a, b, n: interpolate(a, b, n).movedim(0, -1),
        "the steps are on the last axis; they belong on the first: (steps, *latent).",
    ),
    Mistake(
        "end added to start",
        _scaled_sum,
        "start keeps its full weight all the way: at t = 1 you stand at start + end. Its weight is 1 − t.",
    ),
    Mistake(
        "along the sphere",
        _on_the_sphere,
        "this is spherical interpolation, along an arc. Asked for is the straight line, (1 − t)·start + t·end.",
    ),
    Mistake(
        "detached",
        lambda a, b, n: interpolate(a.detach(), b.detach(), n),
        "the values are right, but no gradient reaches the ends: remove the detach (or no_grad).",
    ),
    Mistake(
        "squeezed",
        lambda a, b, n: interpolate(a, b, n).squeeze(),
        "squeeze() also drops the latent's own axes of length 1: leave it out.",
    ),
    Mistake(
        "the start is left out",
        lambda a, b, n: _line(a, b, torch.arange(1, n + 1, device=a.device) / n),
        "the first point is not `start`. Both ends are included, so t starts at 0: torch.linspace(0, 1, n).",
    ),
    Mistake(
        "steps on the second axis",
        lambda a, b, n: interpolate(a, b, n).movedim(0, 1),
        "the steps are on the second axis; they belong on the first: torch.stack(points) without a dim.",
    ),
    Mistake(
        "flattened",
        lambda a, b, n: interpolate(a, b, n).flatten(1),
        "each point is flattened to a row. It is to have the shape of the latent: (steps, *latent).",
    ),
    Mistake(
        "the difference turned",
        lambda a, b, n: _line(a, 2 * a - b, _t(a, n)),
        "the line runs away from `end`: the difference is end − start.",
    ),
    Mistake(
        "end subtracted",
        lambda a, b, n: _line(a, -b, _t(a, n)),
        "the second term is subtracted: (1 − t)·start + t·end.",
    ),
    Mistake(
        "number of steps written in",
        lambda a, b, n: interpolate(a, b, 11),
        "the number of steps is written in. It is the argument `steps`.",
        also=(
            lambda a, b, n: interpolate(a, b, 5),
            lambda a, b, n: interpolate(a, b, 10),
        ),
    ),
    Mistake(
        "not a straight pace",
        lambda a, b, n: _line(a, b, _t(a, n).square()),
        "the ends are right, the points between them are not evenly spaced: t itself is the weight, without a square "
        "or a cosine.",
        also=(lambda a, b, n: _line(a, b, (1 - torch.cos(torch.pi * _t(a, n))) / 2),),
    ),
    Mistake(
        "one weight for both",
        lambda a, b, n: _line(a + b, torch.zeros_like(b), _t(a, n)),
        "both have the same weight. It is 1 − t for start and t for end.",
    ),
    Mistake(
        "half the way",
        lambda a, b, n: _line(a, b, _t(a, n) / 2),
        "t does not go from 0 to 1, so the last point is not `end`.",
    ),
)

EXERCISE = Exercise(
    name="interpolate",
    chapter="01_autoencoder",
    reference=interpolate,
    cases=cases,
    mistakes=MISTAKES,
    run=call,
)

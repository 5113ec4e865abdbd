"""Right and wrong blocks of convolutions: what exercise 10.1 compares with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from companion.backbones import SwiGLU


def variant(forward: Callable[[Any, Tensor], Any]) -> type[nn.Module]:
    """The chapter's block with a forward pass; ``forward`` gets the block and the input."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(channels), nn.RMSNorm(channels)
            self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.mlp = SwiGLU(channels)

        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    return Block


def over_channels(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of the last axis, on axis 1."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


def around(block: Any, x: Tensor) -> Tensor:
    """What the first branch gives."""
    return block.depthwise(over_channels(block.norm1, x))


def at_each(block: Any, x: Tensor) -> Tensor:
    """What the second branch gives."""
    return over_channels(lambda moved: block.mlp(block.norm2(moved)), x)


def first_sum(block: Any, x: Tensor) -> Tensor:
    return x + around(block, x)


def second_sum(block: Any, x: Tensor) -> Tensor:
    return x + at_each(block, x)


def norms_exchanged(block: Any, x: Tensor) -> Tensor:
    x = x + block.depthwise(over_channels(block.norm2, x))
    return x + over_channels(lambda moved: block.mlp(block.norm1(moved)), x)


def norms_after_sums(block: Any, x: Tensor) -> Tensor:
    x = over_channels(block.norm1, x + block.depthwise(x))
    return over_channels(block.norm2, x + over_channels(block.mlp, x))


def norms_after_branches(block: Any, x: Tensor) -> Tensor:
    x = x + over_channels(block.norm1, block.depthwise(x))
    return x + over_channels(lambda moved: block.norm2(block.mlp(moved)), x)


def skips_from_norms(block: Any, x: Tensor) -> Tensor:
    x = over_channels(block.norm1, x)
    x = over_channels(block.norm2, x + block.depthwise(x))
    return x + over_channels(block.mlp, x)


def as_in_the_paper(block: Any, x: Tensor) -> Tensor:
    """One branch: depthwise convolution, norm, MLP."""
    return x + over_channels(lambda moved: block.mlp(block.norm2(moved)), block.depthwise(x))


def mlp_nested(block: Any, x: Tensor) -> Tensor:
    """The sum of the MLP begins with the first branch alone."""
    branch = around(block, x)
    return x + branch + at_each(block, branch)


def lines_with(
    first: Callable[[Any, Tensor], Tensor] | None = None, second: Callable[[Any, Tensor], Tensor] | None = None
) -> type[nn.Module]:
    """The right block with another branch in its first line, its second or both."""

    def forward(block: Any, x: Tensor) -> Tensor:
        x = x + (first or around)(block, x)
        return x + (second or at_each)(block, x)

    return variant(forward)


def by_axes(
    there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None = None
) -> tuple[type[nn.Module], ...]:
    """Both lines, the first and the second with other ways to move axes; ``back`` None stands for reshape."""

    def returned(v: Tensor, x: Tensor) -> Tensor:
        return v.reshape(x.shape) if back is None else back(v)

    def first(block: Any, x: Tensor) -> Tensor:
        return block.depthwise(returned(block.norm1(there(x)), x))

    def second(block: Any, x: Tensor) -> Tensor:
        return returned(block.mlp(block.norm2(there(x))), x)

    return lines_with(first, second), lines_with(first), lines_with(second=second)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def reshaped(x: Tensor) -> Tensor:
    return x.reshape(len(x), *x.shape[2:], x.shape[1])


def with_norms(norm: Callable[[Tensor, Tensor], Tensor]) -> type[nn.Module]:
    """Norms over axis 1 by hand; ``norm`` gets the input and the weights."""
    return lines_with(
        lambda b, x: b.depthwise(norm(x, b.norm1.weight[:, None, None])),
        lambda b, x: over_channels(b.mlp, norm(x, b.norm2.weight[:, None, None])),
    )


def rms(x: Tensor, epsilon: float = 0.0) -> Tensor:
    return (x.square().mean(1, keepdim=True) + epsilon).sqrt()


def written_over(block: Any, x: Tensor) -> Tensor:
    x += around(block, x)
    return second_sum(block, x)

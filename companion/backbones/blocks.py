"""What the blocks of chapter 10 have in common: norm and gated MLP."""

from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import check_fits, check_number, check_size, check_tensor, check_whole

_WIDEST = 2**14  # its matrices have the square of that


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + ε) · g over the channels, with a learned gain g for each, from 1 on (Zhang and Sennrich 2019,
    equation 4).

    It computes in the type of g, also under autocast, which gives it numbers in half precision.

    Args:
        channels: how many numbers are normalised together.
        axis: where in x they stand.

    Shapes:
        x: (B, T, channels), or any other with the channels at ``axis`` → the same.

    Raises:
        ValueError: an argument is out of range; ``x`` has no such axis, or is of another type than g.
    """

    def __init__(self, channels: int, axis: int = -1) -> None:
        check_size("channels", channels)
        check_whole("axis", axis, least=-8, most=7)
        super().__init__(channels)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("*positions",))
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != self.weight.numel():
            raise ValueError(f"x: got shape {tuple(x.shape)}, want {self.weight.numel()} channels at axis {self.axis}")
        check_fits("x", x, self.weight)
        x = x.to(self.weight.dtype)
        return super().forward(x.movedim(self.axis, -1)).movedim(-1, self.axis)


class SwiGLU(nn.Module):
    """A gated MLP: W₃(silu(W₁x) ⊙ W₂x) with silu(a) = a·sigmoid(a), without biases (Shazeer 2020, equation 6; silu is
    Swish₁ there).

    One half of the hidden layer says what passes of the other. Three matrices instead of the two of an MLP: with the
    default expansion of 8/3 it has as many weights as an MLP with 4 times as many hidden units as inputs.

    Args:
        hidden: channels of the input and the output.
        expansion: hidden units of the MLP for each channel; their number is rounded.

    Shapes:
        x: (B, T, hidden), or with any other axes before the last → the same. In between (64, 64, 128) → (64, 64, 341).

    Raises:
        ValueError: an argument is out of range; ``x`` has another number of channels, or another type than the weights.
    """

    def __init__(self, hidden: int, expansion: float = 8 / 3) -> None:
        super().__init__()
        check_size("hidden", hidden, most=_WIDEST)
        check_number("expansion", expansion, above=0, most=64)
        self.hidden = hidden
        units = max(1, round(expansion * hidden))
        self.to_gate = nn.Linear(hidden, units, bias=False)  # W₁
        self.to_units = nn.Linear(hidden, units, bias=False)  # W₂
        self.to_out = nn.Linear(units, hidden, bias=False)  # W₃

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("*positions", self.hidden))
        check_fits("x", x, self.to_gate.weight)
        return self.to_out(functional.silu(self.to_gate(x)) * self.to_units(x))

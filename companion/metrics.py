"""Numbers that say how good a reconstruction is."""

from torch import Tensor


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over every pixel of every image.

    Shapes:
        x_hat, x: the same shape, floating point → a scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or the numbers are integers (uint8 wraps around).
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat: got shape {tuple(x_hat.shape)}, want that of x, {tuple(x.shape)}")
    for name, value in (("x_hat", x_hat), ("x", x)):
        if not value.is_floating_point():
            raise ValueError(f"{name}: got dtype {value.dtype}, want floating point")
    return (x_hat - x).square().mean()


def distortion(error: float, variance: float) -> float:
    """Test MSE in units of the variance of all training pixels (one global number): 0 is perfect; 1 is what the
    best single grey value would reach.

    Raises:
        ValueError: the variance is not positive.
    """
    if not variance > 0:
        raise ValueError(f"variance: got {variance}, want a positive number")
    return error / variance

"""Metrics."""

import pytest
import torch

from companion.metrics import distortion, mse


def test_mse_is_the_mean_over_every_number():
    x, x_hat = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    x_hat[0, 0, 0, 0] = 4.0
    assert mse(x_hat, x).item() == 2.0


def test_mse_refuses_shapes_that_would_be_stretched():
    with pytest.raises(ValueError, match=r"x_hat: got shape \(5, 4, 4\), want that of x, \(5, 1, 4, 4\)"):
        mse(torch.ones(5, 4, 4), torch.zeros(5, 1, 4, 4))


def test_mse_refuses_bytes():
    """10 − 11 is 255 in bytes."""
    byte = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"x_hat: got dtype torch\.uint8"):
        mse(byte, byte.float())


def test_distortion_of_the_mean_grey_is_one():
    x = torch.rand(50, 1, 4, 4)
    error = mse(x.mean().expand_as(x), x).item()
    assert distortion(error, x.var(correction=0).item()) == pytest.approx(1)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_distortion_refuses_a_variance_that_is_none(variance):
    with pytest.raises(ValueError, match="variance"):
        distortion(0.1, variance)

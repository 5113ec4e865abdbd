"""Convolutional encoders and decoders."""

import pytest
import torch
from torch import nn

from companion.backbones import ResidualBlock, ResNetDecoder, ResNetEncoder, conv_output_size


@pytest.mark.parametrize("size", range(1, 15))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (4, 2, 1), (5, 3, 2), (2, 3, 1)])
def test_conv_output_size_is_what_torch_gives(size, kernel, stride, padding):
    if kernel > size + 2 * padding:
        with pytest.raises(ValueError, match="kernel"):
            conv_output_size(size, kernel, stride, padding)
    else:
        layer = nn.Conv1d(1, 1, kernel, stride, padding)
        assert conv_output_size(size, kernel, stride, padding) == layer(torch.zeros(1, 1, size)).shape[-1]


@pytest.mark.parametrize(
    ("factor", "grid"),
    [
        (1, (28, 28)),
        (2, (14, 14)),
        (4, (7, 7)),
        (7, (4, 4)),
        ((2, 4), (14, 7)),
        (14, (2, 2)),
        ((4, 1), (7, 28)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_is_smaller_by_the_factor_and_the_decoder_brings_it_back(factor, grid, channels):
    encoder = ResNetEncoder(channels, 5, hidden=6, factor=factor, num_blocks=1)
    decoder = ResNetDecoder(channels, 5, hidden=6, factor=factor, num_blocks=1)
    x = torch.rand(2, channels, 28, 28)
    z = encoder(x)
    assert z.shape == (2, 5, *grid)
    assert decoder(z).shape == x.shape


def test_the_height_may_differ_from_the_width():
    assert ResNetEncoder(1, 4, hidden=6)(torch.rand(1, 1, 8, 20)).shape == (1, 4, 2, 5)


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [
        (30, 28, "height 30.*nearest: 28 or 32"),
        (28, 29, "width 29.*nearest: 28 or 32"),
        (3, 4, "nearest: 4$"),
    ],
)
def test_sizes_that_the_factor_does_not_divide_are_refused_with_the_nearest(height, width, says):
    with pytest.raises(ValueError, match=says):
        ResNetEncoder(1, 4, hidden=6)(torch.rand(1, 1, height, width))


def test_other_shapes_and_factors_are_refused_by_name():
    with pytest.raises(ValueError, match=r"x: got float32 of shape \(1, 2, 8, 8\), want .* \(B, 1, H, W\)"):
        ResNetEncoder(1, 4, hidden=6)(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(1, 3, 2, 2\), want .* \(B, 4, h, w\)"):
        ResNetDecoder(1, 4, hidden=6)(torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="factor: got 0"):
        ResNetEncoder(factor=0)


def test_a_residual_block_leaves_its_input_unchanged():
    """With an in-place ReLU the block changes x, and the skip connection adds the changed one."""

    class InPlace(ResidualBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.branch[0] = nn.ReLU(inplace=True)

    for block, unchanged in ((ResidualBlock(4), True), (InPlace(4), False)):
        x = torch.randn(2, 4, 5, 5)
        before = x.clone()
        with torch.no_grad():
            y = block(x)
        assert torch.equal(x, before) == unchanged
        with torch.no_grad():
            right = before + block.branch(before.clone())
        assert torch.allclose(y, right) == unchanged


def test_no_relu_of_the_backbones_is_in_place():
    for model in (ResNetEncoder(), ResNetDecoder()):
        assert not any(layer.inplace for layer in model.modules() if isinstance(layer, nn.ReLU))


@pytest.mark.parametrize("factor", [2, 4, 7, (2, 4), 6])
def test_every_pixel_is_covered_equally_often(factor):
    decoder = ResNetDecoder(1, 2, hidden=2, factor=factor, num_blocks=0)
    for layer in decoder.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            with torch.no_grad():
                layer.weight.fill_(1.0)
                layer.bias.zero_()
                out = layer(torch.ones(1, layer.in_channels, 9, 9))
            height, width = out.shape[2] // 3, out.shape[3] // 3
            inside = out[0, 0, height:-height, width:-width]
            assert len(inside.unique()) == 1


def test_gradients_reach_every_weight():
    encoder, decoder = ResNetEncoder(1, 4, hidden=8), ResNetDecoder(1, 4, hidden=8)
    decoder(encoder(torch.rand(2, 1, 8, 8))).square().mean().backward()
    for model in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

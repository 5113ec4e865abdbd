"""ConvNeXt blocks and what their encoders see."""

import pytest
import torch
from torch import nn

from companion.backbones import ConvNeXtBlock, ConvNeXtDecoder, ConvNeXtEncoder, RMSNorm


def test_a_block_is_two_residual_branches():
    block, x = ConvNeXtBlock(4).double(), torch.randn(2, 4, 5, 6, dtype=torch.float64)

    def norm(x, gain):
        return x / x.square().mean(1, keepdim=True).sqrt() * gain[:, None, None]

    nn.init.normal_(block.norm1.weight)
    nn.init.normal_(block.norm2.weight)
    y = x + nn.functional.conv2d(
        norm(x, block.norm1.weight), block.depthwise.weight, block.depthwise.bias, padding=3, groups=4
    )
    mixed = torch.einsum("bhwc->bchw", block.mlp(torch.einsum("bchw->bhwc", norm(y, block.norm2.weight))))
    torch.testing.assert_close(block(x), y + mixed)


def test_a_depthwise_convolution_mixes_positions_and_no_channels():
    def reached(layer):
        x = torch.randn(1, 4, 9, 9, requires_grad=True)
        layer(x)[0, 2, 4, 4].backward()
        return x.grad[0].abs().sum((1, 2)) > 0, x.grad[0].abs().sum(0) > 0

    channels, positions = reached(ConvNeXtBlock(4).depthwise)
    assert channels.tolist() == [False, False, True, False]
    assert positions.nonzero().min(0).values.tolist() == [1, 1]  # 7×7 around (4, 4)
    assert positions.nonzero().max(0).values.tolist() == [7, 7]
    channels, _ = reached(nn.Conv2d(4, 4, 7, padding=3))  # one that is not depthwise
    assert channels.all()


def test_the_mlp_of_a_block_mixes_channels_and_no_positions():
    block = ConvNeXtBlock(4)
    nn.init.zeros_(block.depthwise.weight)
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    block(x)[0, 2, 4, 4].backward()
    assert (x.grad[0].abs().sum((1, 2)) > 0).all()
    assert (x.grad[0].abs().sum(0) > 0).nonzero().tolist() == [[4, 4]]


def test_the_norm_looks_at_the_channels_of_one_position():
    norm, x = RMSNorm(4, axis=1), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(norm(x).square().mean(1), torch.ones(2, 3, 3))
    changed = x.clone()
    changed[:, :, 0, 0] *= 5
    torch.testing.assert_close(norm(changed), norm(x))  # the length alone is lost
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 4\), want 4 channels at axis 1"):
        norm(torch.randn(2, 3, 4))


def seen(encoder: nn.Module, size: int) -> int:
    """How many columns of an image the latent in the middle of the grid depends on."""
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    z = encoder.double()(x)
    z[..., z.shape[2] // 2, z.shape[3] // 2].sum().backward()
    columns = (x.grad.abs().sum((0, 1, 2)) > 0).nonzero().flatten().tolist()
    assert columns == list(range(columns[0], columns[-1] + 1))
    return len(columns)


@pytest.mark.parametrize(("num_blocks", "pixels"), [(0, 10), (1, 46), (2, 82)])
def test_the_receptive_field_grows_with_each_block(num_blocks, pixels):
    """Backwards from one latent: a 7×7 convolution sees 6 more, and one of 4×4 with stride 2 sees (r − 1)·2 + 4."""
    r = 1
    for _ in range(2):  # resolutions
        r = (r + 6 * num_blocks - 1) * 2 + 4
    assert r == pixels
    assert seen(ConvNeXtEncoder(1, 2, hidden=4, num_blocks=num_blocks), 96) == pixels


def test_with_attention_a_latent_sees_the_whole_image():
    assert seen(ConvNeXtEncoder(1, 2, hidden=4, num_blocks=1, attention=True), 96) == 96


def test_attention_stands_at_the_smallest_resolution_next_to_the_quantizer():
    encoder = ConvNeXtEncoder(1, 2, hidden=4, num_blocks=1, attention=True)
    decoder = ConvNeXtDecoder(1, 2, hidden=4, num_blocks=1, attention=True)
    kinds = [type(layer).__name__ for layer in encoder.layers]
    assert kinds == ["Conv2d", "ConvNeXtBlock", "RMSNorm", "Conv2d", "ConvNeXtBlock", "_OverGrid", "RMSNorm", "Conv2d"]
    kinds = [type(layer).__name__ for layer in decoder.layers]
    assert kinds == ["Conv2d", "_OverGrid", *["ConvNeXtBlock", "RMSNorm", "ConvTranspose2d"] * 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_start_small_although_torch_would_start_them_large(channels):
    def deviation(decoder):
        with torch.no_grad():
            return decoder(torch.randn(8, 64, 4, 4)).std().item()

    torch.manual_seed(0)
    decoder = ConvNeXtDecoder(channels, 64)
    assert 0.3 < deviation(decoder) < 1
    decoder.layers[-1].reset_parameters()  # torch's own, for as many inputs as there are channels of the image
    assert deviation(decoder) > 1.2


def test_heads_that_do_not_divide_the_channels_are_refused_if_there_is_attention():
    ConvNeXtEncoder(hidden=6, heads=4)
    with pytest.raises(ValueError, match="heads: got 4, want a divisor of hidden, 6"):
        ConvNeXtEncoder(hidden=6, heads=4, attention=True)

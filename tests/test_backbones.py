"""Encoders and decoders: what holds for every pair, and the ResNet pair's own parts."""

import copy
import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import companion
from companion import (
    VQVAE,
    BidirectionalMamba2Decoder,
    BidirectionalMamba2Encoder,
    ConvNeXtDecoder,
    ConvNeXtEncoder,
    LatentTokenDecoder,
    LatentTokenEncoder,
    Mamba2Decoder,
    Mamba2Encoder,
    ResNetDecoder,
    ResNetEncoder,
    VectorQuantizer,
    ViTDecoder,
    ViTEncoder,
)
from companion.backbones import ResidualBlock, conv_output_size


@dataclass(frozen=True)
class Pair:
    """An encoder and its decoder; ``fixed``: made for images of one size; ``tokens``: of a latent that is no grid."""

    encoder: type[nn.Module]
    decoder: type[nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    of_decoder: dict[str, Any] = field(default_factory=dict)
    fixed: bool = False
    tokens: int = 0

    def make(self, channels=1, dim=5, *, size=(8, 12), factor=4, **more):
        torch.manual_seed(0)
        sizes = {"hidden": 8, "num_blocks": 1, "factor": factor} | ({"size": size} if self.fixed else {})
        sizes |= self.options | more
        sizes |= {"tokens": self.tokens} if self.tokens else {}
        if sizes.get("kernel") == "overlapping":
            rows, columns = factor if isinstance(factor, tuple) else (factor, factor)
            sizes["kernel"] = (rows + 2, 3 * columns)
        return self.encoder(channels, dim, **sizes), self.decoder(channels, dim, **sizes, **self.of_decoder)

    def vqvae(self, **more) -> VQVAE:
        encoder, decoder = self.make(3, **more)
        return VQVAE(encoder, VectorQuantizer(7, 5), decoder)


PAIRS = {
    "resnet": Pair(ResNetEncoder, ResNetDecoder),
    "convnext": Pair(ConvNeXtEncoder, ConvNeXtDecoder),
    "convnext, attention": Pair(ConvNeXtEncoder, ConvNeXtDecoder, {"attention": True, "heads": 2}),
    "vit": Pair(ViTEncoder, ViTDecoder, {"heads": 2}, fixed=True),
    "vit, rotary": Pair(ViTEncoder, ViTDecoder, {"heads": 2, "positions": "axial-rotary"}, fixed=True),
    "vit, no edges": Pair(ViTEncoder, ViTDecoder, {"kernel": "overlapping"}, {"last_conv": True}, fixed=True),
    "mamba": Pair(Mamba2Encoder, Mamba2Decoder, {"state": 3, "head_dim": 4}, fixed=True),
    "mamba, both directions": Pair(
        BidirectionalMamba2Encoder, BidirectionalMamba2Decoder, {"state": 3, "head_dim": 4}, fixed=True
    ),
    "latent tokens": Pair(LatentTokenEncoder, LatentTokenDecoder, {"heads": 2}, fixed=True, tokens=6),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@pytest.mark.parametrize(
    ("factor", "grid"),
    [
        (1, (14, 28)),
        (2, (7, 14)),
        (7, (2, 4)),
        ((2, 4), (7, 7)),
        (14, (1, 2)),
        ((14, 1), (1, 28)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@every_pair
def test_the_grid_is_smaller_by_the_factor_and_the_decoder_brings_it_back(pair, factor, grid, channels):
    encoder, decoder = pair.make(channels, factor=factor, size=(14, 28))
    x = torch.rand(2, channels, 14, 28)
    z = encoder(x)
    assert z.shape == ((2, 5, pair.tokens) if pair.tokens else (2, 5, *grid))
    assert decoder(z).shape == x.shape


@every_pair
def test_a_backbone_is_exchanged_by_its_name_alone(pair):
    """The arguments of the ResNet pair mean the same to all others, with the same defaults."""
    for kind, like in ((pair.encoder, ResNetEncoder), (pair.decoder, ResNetDecoder)):
        arguments, first = inspect.signature(kind).parameters, inspect.signature(like).parameters
        first = {name: argument for name, argument in first.items() if name != "dims"}  # the others are for images
        assert list(arguments)[:5] == list(first)
        assert all(arguments[name].default == first[name].default for name in first)
        assert all(arguments[name].default is not inspect.Parameter.empty for name in arguments)
    x = torch.rand(1, 3, 32, 32)
    encoder, decoder = pair.encoder(3, 64), pair.decoder(3, 64)
    assert decoder(encoder(x)).shape == x.shape


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [
        (30, 28, "height 30.*nearest: 28 or 32"),
        (28, 29, "width 29.*nearest: 28 or 32"),
        (3, 4, "nearest: 4$"),
    ],
)
@every_pair
def test_sizes_that_the_factor_does_not_divide_are_refused_with_the_nearest(pair, height, width, says):
    with pytest.raises(ValueError, match=f"^{'size' if pair.fixed else 'x'}: got .*{says}"):
        pair.make(size=(height, width))[0](torch.rand(1, 1, height, width))


@every_pair
def test_other_shapes_types_and_factors_are_refused_by_name(pair):
    encoder, decoder = pair.make()
    x, z = torch.rand(1, 1, 8, 12), torch.rand(1, 5, *((6,) if pair.tokens else (2, 3)))
    with pytest.raises(ValueError, match=r"^x: got float32 of shape \(1, 2, 8, 12\), want .* \(B, 1, H, W\)"):
        encoder(torch.rand(1, 2, 8, 12))
    with pytest.raises(ValueError, match=r"^z: got float32 of shape \(1, 4, .*, want .* \(B, 5, "):
        decoder(z[:, :4])
    for model, name, value in ((encoder, "x", x), (decoder, "z", z)):
        for other, says in (
            (value.double(), "float64, want float32"),
            (value.long(), "int64 of shape .*, want floating point"),
            (value[0], r"float32 of shape .*, want"),
            (value[:0], "float32 of shape .*, want .* with B at least 1"),
        ):
            with pytest.raises(ValueError, match=f"^{name}: got {says}"):
                model(other)
    with pytest.raises(ValueError, match=r"^factor: got 0"):
        pair.encoder(factor=0)
    if pair.fixed:
        with pytest.raises(ValueError, match=r"^x: got images of 12×8, want 8×12"):
            encoder(x.transpose(2, 3))


@every_pair
def test_gradients_reach_every_weight(pair):
    encoder, decoder = pair.make(num_blocks=2)
    decoder(encoder(torch.rand(2, 1, 8, 12))).square().mean().backward()
    for model in (encoder, decoder):
        assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@every_pair
def test_an_image_does_not_see_the_others_of_its_batch(pair):
    encoder, decoder = (model.double() for model in pair.make())
    x = torch.rand(3, 1, 8, 12, dtype=torch.float64)
    z = encoder(x)
    torch.testing.assert_close(encoder(x[1:2]), z[1:2])
    torch.testing.assert_close(decoder(z[1:2]), decoder(z)[1:2])


@every_pair
def test_weights_start_so_that_latents_and_images_have_sane_sizes(pair):
    """Neither vanishing nor large, whatever the width and the colours, so that quantizers and losses start alike."""
    for channels, hidden in ((1, 32), (3, 128)):
        encoder, decoder = pair.make(channels, 64, hidden=hidden, num_blocks=2, size=32)
        with torch.no_grad():
            z = encoder(torch.rand(4, channels, 32, 32))
            images = decoder(torch.randn_like(z))
        assert 0.03 < z.std().item() < 1.5
        assert 0.03 < images.std().item() < 1.5


@every_pair
def test_a_vqvae_of_the_pair_learns(pair):
    model, x = pair.vqvae(), torch.rand(4, 3, 8, 12)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        out = model(x)
        adam.zero_grad()
        out.loss.backward()
        adam.step()
        errors.append(out.losses["reconstruction"].item())
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert errors[-1] < 0.7 * errors[0]
    indices = model.encode(x)
    assert indices.shape == ((4, 6) if pair.tokens else (4, 2, 3))
    assert model.decode(indices).shape == x.shape


@every_pair
def test_a_saved_pair_is_loaded_as_it_was(pair, tmp_path):
    model, x = pair.vqvae(factor=(4, 2)).eval(), torch.rand(2, 3, 8, 12)
    companion.save(model, tmp_path / "m.safetensors")
    loaded = companion.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    assert loaded.encoder.config["factor"] == [4, 2]
    with torch.no_grad():
        z = model.encoder(x)
        assert torch.equal(loaded.encoder(x), z)
        assert torch.equal(loaded.decoder(z), model.decoder(z))
    assert pair.encoder(**model.encoder.config).config == model.encoder.config


@every_pair
def test_half_precision_is_near_and_autocast_gives_no_warning(pair):
    encoder, decoder = pair.make(3)
    x = torch.rand(2, 3, 8, 12)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Mismatch dtype")  # of a norm in half precision
        z = encoder(x)
        images = decoder(z)
        with torch.autocast("cpu", torch.bfloat16):
            z_auto = encoder(x)
            images_auto = decoder(z)
        half, half_decoder = copy.deepcopy(encoder).bfloat16(), copy.deepcopy(decoder).bfloat16()
        z_half, images_half = half(x.bfloat16()), half_decoder(z.bfloat16())
    assert z_half.dtype == images_half.dtype == torch.bfloat16
    for near in (z_auto, z_half):
        torch.testing.assert_close(near.float(), z, rtol=0.05, atol=0.05)
    for near in (images_auto, images_half):
        torch.testing.assert_close(near.float(), images, rtol=0.05, atol=0.05)


@every_pair
def test_the_pair_can_be_exported(pair):
    encoder, decoder = (model.eval() for model in pair.make())
    x = torch.rand(2, 1, 8, 12)
    z = encoder(x)
    torch.testing.assert_close(torch.export.export(encoder, (x,)).module()(x), z)
    torch.testing.assert_close(torch.export.export(decoder, (z.detach(),)).module()(z), decoder(z))


# The ResNet pair --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 15))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (4, 2, 1), (5, 3, 2), (2, 3, 1)])
def test_conv_output_size_is_what_torch_gives(size, kernel, stride, padding):
    if kernel > size + 2 * padding:
        with pytest.raises(ValueError, match="kernel"):
            conv_output_size(size, kernel, stride, padding)
    else:
        layer = nn.Conv1d(1, 1, kernel, stride, padding)
        assert conv_output_size(size, kernel, stride, padding) == layer(torch.zeros(1, 1, size)).shape[-1]


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


@pytest.mark.parametrize(
    ("dims", "factor", "size", "grid"),
    [(1, 4, (24,), (6,)), (1, (6,), (12,), (2,)), (3, 2, (4, 6, 8), (2, 3, 4)), (3, (1, 4, 2), (3, 8, 4), (3, 2, 2))],
)
def test_sounds_and_video_are_coded_and_come_back(dims, factor, size, grid, tmp_path):
    torch.manual_seed(0)
    parts = {"hidden": 8, "factor": factor, "num_blocks": 1, "dims": dims}
    encoder, decoder = ResNetEncoder(2, 4, **parts), ResNetDecoder(2, 4, **parts)
    model, x = VQVAE(encoder, VectorQuantizer(16, 4), decoder), torch.rand(8, 2, *size)
    assert encoder(x).shape == (8, 4, *grid)
    adam, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        out = model(x)
        adam.zero_grad()
        out.loss.backward()
        adam.step()
        losses.append(out.losses["reconstruction"].item())
    assert out.indices.shape == (8, *grid)
    assert losses[-1] < 0.7 * losses[0]
    companion.save(model.eval(), tmp_path / "model.safetensors")
    again = companion.load(tmp_path / "model.safetensors").to(x.device)
    assert torch.equal(again.reconstruct(x), model.decode(model.encode(x)))


def test_the_convolution_over_one_axis_is_that_over_two_with_a_height_of_one():
    """The weights of a sound's encoder, put into an image's: on an image of one row they give the same numbers."""
    torch.manual_seed(0)
    row = ResNetEncoder(1, 4, hidden=8, factor=(4,), dims=1).double()
    flat = ResNetEncoder(1, 4, hidden=8, factor=(1, 4)).double()
    state = {}
    for name, value in flat.state_dict().items():
        value.zero_()
        there = row.state_dict()[name]
        if value.ndim == 4:
            value[:, :, value.shape[2] // 2] = there  # the middle row of each window; the others see zeros
        else:
            value.copy_(there)
        state[name] = value
    flat.load_state_dict(state)
    x = torch.rand(2, 1, 16, dtype=torch.float64)
    torch.testing.assert_close(flat(x[:, :, None])[:, :, 0], row(x))


def test_other_shapes_and_sizes_of_sounds_and_video_are_refused_by_name():
    with pytest.raises(ValueError, match=r"x: got float32 of shape \(2, 1, 8, 8\), want .* \(B, 1, T\)"):
        ResNetEncoder(1, 4, hidden=4, dims=1)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="x: got length 10, want a multiple of the factor 4; the nearest: 8 or 12"):
        ResNetEncoder(1, 4, hidden=4, dims=1)(torch.rand(2, 1, 10))
    with pytest.raises(ValueError, match="x: got time 3, want a multiple of the factor 4; the nearest: 4"):
        ResNetEncoder(1, 4, hidden=4, dims=3)(torch.rand(2, 1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(2, 4, 3, 3\), want .* \(B, 4, t, h, w\)"):
        ResNetDecoder(1, 4, hidden=4, dims=3)(torch.rand(2, 4, 3, 3))
    for dims in (0, 4, True, "2"):
        with pytest.raises(ValueError, match=r"dims: got .*, want a whole number from 1 to 3"):
            ResNetEncoder(1, 4, dims=dims)
    with pytest.raises(ValueError, match=r"factor: got \(2, 2\), want a sequence of 3 whole numbers"):
        ResNetEncoder(1, 4, factor=(2, 2), dims=3)


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

"""Patches as tokens, the gated MLP, and the frame of the models that work on a row of tokens."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from companion.backbones import RMSNorm, SwiGLU, patchify, unpatchify
from companion.backbones.patches import PatchDecoder, PatchEncoder

FRAME = {"hidden": 8, "factor": 4, "size": (8, 12), "kernel": None, "blocks": []}


@pytest.mark.parametrize(("patch", "grid"), [(4, (2, 3)), (1, (8, 12)), (2, (4, 6)), ((8, 3), (1, 4))])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_put_together_again_to_the_bit(patch, grid, channels):
    x = torch.rand(2, channels, 8, 12)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, grid[0] * grid[1], channels * x[0, 0].numel() // (grid[0] * grid[1]))
    assert torch.equal(unpatchify(tokens, patch, grid), x)
    again = torch.rand_like(tokens)
    assert torch.equal(patchify(unpatchify(again, patch, grid), patch), again)


def test_a_token_holds_the_pixels_of_its_patch_by_channel_row_and_column():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    tokens = patchify(x, 2)
    assert torch.equal(tokens[0, 4], x[0, :, 2:4, 2:4].flatten())  # patches row by row: the fifth of 2 × 3
    assert tokens[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]
    wrong = x.reshape(1, 2, 2, 2, 3, 2).permute(0, 1, 2, 4, 3, 5).reshape(1, 6, 8)  # channels left in front
    assert not torch.equal(tokens, wrong)
    assert not torch.equal(tokens, x.reshape(1, 6, 8))  # a mere reshape cuts rows into pieces


def test_a_convolution_with_the_stride_of_its_kernel_is_a_linear_map_of_patches():
    conv, x = nn.Conv2d(3, 8, 4, stride=4), torch.rand(2, 3, 8, 12)
    by_patches = functional.linear(patchify(x, 4), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(conv(x).flatten(2).transpose(1, 2), by_patches)


def test_a_transposed_convolution_with_the_stride_of_its_kernel_paints_patches():
    conv, grid = nn.ConvTranspose2d(8, 3, 4, stride=4), torch.rand(2, 8, 2, 3)
    tokens = grid.flatten(2).transpose(1, 2) @ conv.weight.flatten(1)
    painted = unpatchify(tokens, 4, (2, 3)) + conv.bias[:, None, None]
    torch.testing.assert_close(conv(grid), painted)


def test_sizes_that_the_patch_does_not_divide_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"x: got width 10, want a multiple of the patch 4; the nearest: 8 or 12"):
        patchify(torch.rand(1, 1, 8, 10), 4)
    with pytest.raises(ValueError, match=r"tokens: got 10 numbers each, want a multiple of 4·4, the patch"):
        unpatchify(torch.rand(1, 6, 10), 4, (2, 3))
    with pytest.raises(ValueError, match=r"tokens: got float32 of shape \(1, 5, 16\), want .* \(B, 6, C·p²\)"):
        unpatchify(torch.rand(1, 5, 16), 4, (2, 3))


def test_the_gated_mlp_is_its_formula():
    layer, x = SwiGLU(6, expansion=2.5).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    w1, w2, w3 = (part.weight for part in (layer.to_gate, layer.to_units, layer.to_out))
    assert [tuple(w.shape) for w in layer.parameters()] == [(15, 6), (15, 6), (6, 15)]  # three matrices, no bias
    gate = x @ w1.T
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * (x @ w2.T)) @ w3.T)
    assert not torch.allclose(layer(x), (gate * (x @ w2.T).sigmoid() * (x @ w2.T)) @ w3.T)  # the gates exchanged


def test_by_default_the_gated_mlp_has_the_weights_of_an_mlp_four_times_as_wide():
    weights = sum(p.numel() for p in SwiGLU(128).parameters())
    assert weights == 3 * 128 * 341
    assert weights == pytest.approx(2 * 128 * 512, rel=0.002)


def test_the_norm_divides_by_the_root_of_the_mean_square():
    norm, x = RMSNorm(6).double(), torch.randn(4, 6, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), x / x.square().mean(-1, keepdim=True).sqrt() * norm.weight)
    centred = nn.LayerNorm(6, bias=False).double()
    centred.weight.data.copy_(norm.weight)
    assert not torch.allclose(norm(x), centred(x))  # which takes the mean away first
    torch.testing.assert_close(norm(x - x.mean(-1, keepdim=True)), centred(x), rtol=1e-2, atol=1e-3)


def test_under_autocast_the_norm_computes_in_the_type_of_its_weights():
    norm, x = RMSNorm(6), torch.randn(4, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
        torch.testing.assert_close(norm(x), norm(x.float()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is slow
            assert nn.RMSNorm(6)(x).dtype == torch.bfloat16  # torch's own
    with pytest.raises(ValueError, match="x: got bfloat16, want float32"):
        norm(x)


@pytest.mark.parametrize("kernel", [None, 4, 6, 8, (4, 10)])
def test_overlapping_patches_are_as_many_and_cover_the_image(kernel):
    options = FRAME | {"kernel": kernel}
    encoder, decoder = PatchEncoder(3, 5, **options), PatchDecoder(3, 5, last_conv=False, **options)
    x = torch.rand(2, 3, 8, 12)
    z = encoder(x)
    assert z.shape == (2, 5, 2, 3)
    assert decoder(z).shape == x.shape


def touched(gradient: torch.Tensor) -> list[int]:
    return gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist()


@pytest.mark.parametrize(("kernel", "columns"), [(None, range(4, 8)), (6, range(3, 9)), (8, range(2, 10))])
def test_a_token_sees_and_paints_the_pixels_of_its_kernel(kernel, columns):
    options = FRAME | {"kernel": kernel}
    x = torch.rand(1, 1, 8, 12, requires_grad=True)
    PatchEncoder(1, 5, **options)(x)[..., 1].sum().backward()
    assert touched(x.grad) == list(columns)
    z = torch.zeros(1, 5, 2, 3)
    decoder, other = PatchDecoder(1, 5, last_conv=False, **options), z.clone()
    other[..., 1] = 1
    assert touched((decoder(other) - decoder(z)).detach()) == list(columns)


def test_a_last_convolution_carries_a_token_one_pixel_beyond_its_patch():
    for last_conv, columns in ((False, range(4, 8)), (True, range(3, 9))):
        z = torch.zeros(1, 5, 2, 3)
        decoder, other = PatchDecoder(1, 5, last_conv=last_conv, **FRAME), z.clone()
        other[..., 1] = 1
        assert touched((decoder(other) - decoder(z)).detach()) == list(columns)


@pytest.mark.parametrize(("kernel", "says"), [(3, "nearest: 4"), (5, "nearest: 4 or 6"), ((4, 9), "nearest: 8 or 10")])
def test_kernels_that_do_not_keep_the_grid_are_refused_with_the_nearest(kernel, says):
    with pytest.raises(ValueError, match=rf"^kernel: got \d, want the factor 4 or an even number more; the {says}$"):
        PatchEncoder(1, 5, **FRAME | {"kernel": kernel})


def test_blocks_work_on_the_row_of_tokens_between_positions_and_head():
    class Reverse(nn.Module):
        def forward(self, tokens):
            return tokens.flip(1)

    torch.manual_seed(0)
    plain = PatchEncoder(1, 5, learned_positions=False, **FRAME)
    torch.manual_seed(0)
    reversed_ = PatchEncoder(1, 5, learned_positions=False, **FRAME | {"blocks": [Reverse()]})
    x = torch.rand(2, 1, 8, 12)
    torch.testing.assert_close(reversed_(x), plain(x).flip(2, 3))


def test_each_position_has_its_own_learned_vector():
    model = PatchEncoder(1, 5, **FRAME)
    assert model.embedded_positions.shape == (6, 8)
    z = model(torch.full((1, 1, 8, 12), 0.5))
    assert len(z[0].flatten(1).unique(dim=1).T) == 6  # of an image without content
    z = PatchEncoder(1, 5, learned_positions=False, **FRAME)(torch.full((1, 1, 8, 12), 0.5))
    torch.testing.assert_close(z, z[..., :1, :1].expand_as(z))


def test_images_of_another_size_are_refused():
    encoder, decoder = PatchEncoder(1, 5, **FRAME), PatchDecoder(1, 5, last_conv=False, **FRAME)
    with pytest.raises(ValueError, match="x: got images of 12×8, want 8×12"):
        encoder(torch.rand(1, 1, 12, 8))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(1, 5, 3, 2\), want .* \(B, 5, 2, 3\)"):
        decoder(torch.rand(1, 5, 3, 2))
    with pytest.raises(ValueError, match="size: got height 30, want a multiple of the factor 4; the nearest: 28 or 32"):
        PatchEncoder(1, 5, **FRAME | {"size": 30})


def test_blocks_that_are_no_modules_are_refused():
    for blocks, name in ((nn.Linear(8, 8), "blocks"), ([torch.relu], r"blocks\[0\]")):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            PatchEncoder(1, 5, **FRAME | {"blocks": blocks})

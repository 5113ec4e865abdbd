"""Masked convolutions: which pixel sees which, by gradients."""

import pytest
import torch

from companion import AutoregressiveDecoder, Decoder, ResNetDecoder
from companion.backbones import MaskedConv2d, raster_mask


def seen(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(pixels out, pixels in): whether an output depends on an input. x: (1, C, H, W), output: (1, P, H, W)."""
    rows = []
    for i in range(output[0, 0].numel()):
        (gradient,) = torch.autograd.grad(output.flatten(2)[..., i].sum(), x, retain_graph=True)
        rows.append(gradient.abs().sum(1).flatten() > 0)
    return torch.stack(rows)


def decoder(in_channels: int = 1, **options: int) -> AutoregressiveDecoder:
    torch.manual_seed(0)
    context = Decoder(2, out_channels=6, hidden=4, image_size=8)
    return AutoregressiveDecoder(context, 3, in_channels=in_channels, hidden=6, **options).double()


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"kernel": 3, "layers": 4}, {"kernel": 5, "layers": 0}])
def test_logit_i_never_sees_a_pixel_from_i_on(in_channels, options):
    model = decoder(in_channels, **options)
    for seed in range(3):  # ReLUs close paths: look with several inputs
        torch.manual_seed(seed)
        x = torch.randn(1, in_channels, 8, 8, dtype=torch.float64, requires_grad=True)
        depends = seen(model(torch.randn(1, 2, dtype=torch.float64), x), x)
        assert not bool(depends.triu().any())  # column j of row i, j ≥ i
        assert bool(depends.diagonal(-1).reshape(-1).float().mean() > 0.8)  # and it does see its left neighbour


@pytest.mark.parametrize("wrong", ["centre in the first layer", "a plain convolution later"])
def test_the_test_above_would_notice(wrong):
    model = decoder()
    if wrong == "centre in the first layer":
        model.first.mask.copy_(raster_mask(7, centre=True))
    else:
        model.layers[0].mask.fill_(1.0)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert bool(seen(model(torch.randn(1, 2, dtype=torch.float64), x), x).triu().any())


def test_every_logit_sees_the_latent():
    model, z = decoder(), torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    params = model(z, torch.rand(1, 1, 8, 8, dtype=torch.float64))
    for i in range(64):
        (gradient,) = torch.autograd.grad(params.flatten(2)[..., i].sum(), z, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_masks_are_the_positions_before_the_centre():
    assert raster_mask(3, centre=False).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert raster_mask(3, centre=True).tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert raster_mask((1, 5), centre=False).tolist() == [[1, 1, 0, 0, 0]]
    for bad in (2, 0, (3, 4)):
        with pytest.raises(ValueError, match="kernel: got"):
            raster_mask(bad, centre=True)


def test_a_masked_weight_stays_masked_after_training_and_is_no_part_of_the_state():
    layer = MaskedConv2d(2, 4, 3, centre=False)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    adam = torch.optim.Adam(layer.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.rand(2, 2, 5, 5)
    before = layer(x)
    layer(x).square().sum().backward()
    adam.step()
    assert not torch.allclose(layer(x), before)
    changed = x.clone()
    changed[..., 2, 2] += 5
    difference = (layer(changed) - layer(x)).abs().sum((0, 1))
    assert bool((difference.flatten()[:13] == 0).all())  # nothing up to and with the pixel itself
    assert difference.sum().item() > 0


def test_stacked_masks_have_a_blind_spot_to_the_upper_right():
    """As the docstring says: (0, 4) comes before (2, 2) and is not seen through 3 × 3 windows, however many."""
    layers = torch.nn.Sequential(
        MaskedConv2d(1, 1, 3, centre=False, bias=False),
        *[MaskedConv2d(1, 1, 3, centre=True, bias=False) for _ in range(6)],
    )
    with torch.no_grad():
        for layer in layers:
            layer.weight.fill_(1.0)
    x = torch.zeros(1, 1, 6, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(layers(x)[0, 0, 2, 2], x)
    assert gradient[0, 0, 0, 0] > 0
    assert gradient[0, 0, 1, 3] > 0
    assert gradient[0, 0, 1, 4] == 0


def test_it_takes_a_grid_of_latents_and_refuses_images_of_another_size():
    model = AutoregressiveDecoder(ResNetDecoder(8, 3, hidden=8, factor=2), 2, hidden=8, in_channels=2)
    z = torch.randn(2, 3, 4, 5)
    assert model(z, torch.rand(2, 2, 8, 10)).shape == (2, 2, 8, 10)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 2, 8, 8\), want \(2, 2, 8, 10\)"):
        model(z, torch.rand(2, 2, 8, 8))
    narrow = AutoregressiveDecoder(ResNetDecoder(4, 3, hidden=8, factor=2), 2, hidden=8, in_channels=2)
    with pytest.raises(ValueError, match=r"context: got features of shape \(2, 4, 8, 10\) .* want \(B, 8, H, W\)"):
        narrow(z, torch.rand(2, 2, 8, 10))

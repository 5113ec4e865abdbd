"""Autoencoder, its encoder and decoder, interpolation."""

import pytest
import torch

import companion
from companion import Autoencoder, Decoder, Encoder, ResNetDecoder, ResNetEncoder
from companion.autoencoder import interpolate, pca_reconstruct


@pytest.mark.parametrize(("channels", "size", "d"), [(1, 28, 2), (3, 32, 7), (2, 4, 1)])
def test_an_image_comes_back_in_its_own_shape(channels, size, d):
    model = Autoencoder(
        Encoder(d, in_channels=channels, image_size=size), Decoder(d, out_channels=channels, image_size=size)
    )
    x = torch.rand(3, channels, size, size)
    out = model(x)
    assert out.z.shape == (3, d)
    assert out.reconstruction.shape == x.shape
    torch.testing.assert_close(out.loss, (out.reconstruction - x).square().mean())


def test_the_loss_reaches_every_parameter():
    model = Autoencoder(Encoder(2), Decoder(2))
    model(torch.rand(2, 1, 28, 28)).loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_it_learns():
    torch.manual_seed(0)
    model = Autoencoder(Encoder(4, hidden=8, image_size=8), Decoder(4, hidden=8, image_size=8))
    x = torch.rand(4, 1, 8, 8)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model(x).loss.item()
    for _ in range(100):
        adam.zero_grad()
        model(x).loss.backward()
        adam.step()
    assert model(x).loss.item() < 0.1 * first


def test_reconstruct_is_cut_to_what_can_be_shown_and_leaves_no_graph():
    model = Autoencoder(Encoder(2), Decoder(2))
    with torch.no_grad():
        model.decoder.conv2.bias.fill_(5.0)
    shown = model.reconstruct(torch.rand(2, 1, 28, 28))
    assert not shown.requires_grad
    assert shown.min() >= 0
    assert shown.max() == 1


def test_it_takes_any_encoder_and_decoder_that_fit():
    model = Autoencoder(ResNetEncoder(3, 5, hidden=8), ResNetDecoder(3, 5, hidden=8))
    out = model(torch.rand(2, 3, 12, 20))
    assert out.z.shape == (2, 5, 3, 5)
    assert out.reconstruction.shape == (2, 3, 12, 20)


@pytest.mark.parametrize("size", [2, 27, 30])
def test_image_size_that_four_does_not_divide_is_refused_with_the_nearest(size):
    with pytest.raises(ValueError, match=f"image_size: got {size}.*nearest"):
        Encoder(2, image_size=size)
    with pytest.raises(ValueError, match=f"image_size: got {size}.*nearest"):
        Decoder(2, image_size=size)


def test_other_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"x: got float32 of shape \(2, 3, 28, 28\), want .* \(B, 1, 28, 28\)"):
        Encoder(2)(torch.rand(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(2, 3\), want .* \(B, 2\)"):
        Decoder(2)(torch.rand(2, 3))


def test_the_decoder_covers_every_pixel_equally_often():
    """Kernel 3 with stride 2 does not: the proof that this test can fail."""

    def covers(layer):
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.zero_()
            one = torch.ones(1, layer.in_channels, 7, 7) / layer.in_channels
            return layer(one)[0, 0, 2:-2, 2:-2].unique()

    decoder = Decoder(2)
    assert len(covers(decoder.conv1)) == 1
    assert len(covers(decoder.conv2)) == 1
    assert len(covers(torch.nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1))) > 1


def test_interpolation_starts_and_ends_where_it_should_and_is_even():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    line = interpolate(a, b, 5)
    assert line.shape == (5, 2, 3)
    assert torch.equal(line[0], a)
    assert torch.equal(line[-1], b)
    torch.testing.assert_close(line.diff(dim=0), ((b - a) / 4).expand(4, 2, 3))


def test_interpolation_keeps_the_dtype():
    assert (
        interpolate(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 3).dtype == torch.float64
    )


def test_interpolation_refuses_what_has_no_line():
    with pytest.raises(ValueError, match="end: got shape"):
        interpolate(torch.zeros(2), torch.zeros(3), 4)
    with pytest.raises(ValueError, match="steps: got 1"):
        interpolate(torch.zeros(2), torch.zeros(2), 1)


def test_pca_is_the_best_rank_d_fit_and_with_all_directions_exact():
    """Eckart and Young: no other rank-d map of the centred images has a smaller error than the truncated SVD."""
    x = torch.randn(50, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = x.flatten(1) - x.flatten(1).mean(0)
    s = torch.linalg.svdvals(flat)
    for d in (1, 5, 12):
        error = (pca_reconstruct(x, x, d) - x).square().sum()
        torch.testing.assert_close(error, s[d:].square().sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_and_pca_work_in_half_precision(dtype):
    model = Autoencoder(Encoder(2, hidden=4, image_size=8), Decoder(2, hidden=4, image_size=8)).to(dtype)
    x = torch.rand(5, 1, 8, 8).to(dtype)
    out = model(x)
    out.loss.backward()
    assert out.reconstruction.dtype == out.loss.dtype == dtype
    rebuilt = pca_reconstruct(x, x, 4)
    assert rebuilt.dtype == dtype
    torch.testing.assert_close(rebuilt, x, rtol=0, atol=0.01)  # five images have four directions


def test_a_decoder_that_gives_another_size_is_refused_with_what_each_part_makes():
    model = Autoencoder(ResNetEncoder(1, 5, hidden=8), ResNetDecoder(1, 5, hidden=8, factor=2))
    with pytest.raises(
        ValueError, match=r"decoder: .* makes \(2, 1, 8, 8\) into \(2, 5, 2, 2\), .* into \(2, 1, 4, 4\)"
    ):
        model(torch.rand(2, 1, 8, 8))


def test_pca_refuses_what_does_not_fit():
    x = torch.rand(5, 1, 2, 2)
    with pytest.raises(ValueError, match="d: got 5, want a whole number from 1 to 4"):
        pca_reconstruct(x, x, 5)
    with pytest.raises(ValueError, match="d: got 3, want at most 2: around their mean, 3 images"):
        pca_reconstruct(x[:3], x, 3)
    with pytest.raises(ValueError, match="x: got images of"):
        pca_reconstruct(x, torch.rand(5, 1, 3, 3), 1)


def test_pca_of_fewer_images_than_pixels_is_that_of_the_singular_vectors():
    x_train = companion.data.load("glyphs", size=64).batch(range(64))[0]
    x = companion.data.load("glyphs", "test", size=5).batch(range(5))[0]
    mean = x_train.double().flatten(1).mean(0)
    basis = torch.linalg.svd(x_train.double().flatten(1) - mean, full_matrices=False).Vh[:8].T
    want = (x.double().flatten(1) - mean) @ basis @ basis.T + mean
    torch.testing.assert_close(pca_reconstruct(x_train, x, 8).flatten(1).double(), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(pca_reconstruct(x_train, x_train, 63), x_train, atol=1e-5, rtol=0)


def test_pca_of_large_images_needs_no_matrix_of_all_their_numbers(monkeypatch):
    x_train, sides = torch.rand(32, 3, 64, 64), []

    def watched(matrix, eigh=torch.linalg.eigh):
        sides.append(tuple(matrix.shape))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    assert torch.allclose(pca_reconstruct(x_train, x_train, 31), x_train, atol=1e-5)
    assert sides == [(32, 32)]
    again = x_train[:2].repeat(16, 1, 1, 1)  # on one line: all but one of the directions are any
    assert torch.allclose(pca_reconstruct(again, x_train[:2], 4), x_train[:2], atol=1e-5)

"""Latent tokens: codes in a row, each of the whole image."""

import pytest
import torch
from torch import nn

import companion
from companion import LatentTokenDecoder, LatentTokenEncoder

SIZES = {"hidden": 8, "heads": 2, "num_blocks": 1, "size": (8, 12)}


def pair(tokens: int = 5, **more):
    torch.manual_seed(0)
    sizes = SIZES | more
    return (
        LatentTokenEncoder(1, 3, tokens=tokens, **sizes).double(),
        LatentTokenDecoder(1, 3, tokens=tokens, **sizes).double(),
    )


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_how_many_latents_there_are_does_not_depend_on_the_patches(factor, tokens):
    encoder, decoder = pair(tokens, factor=factor)
    x = torch.rand(2, 1, 8, 12, dtype=torch.float64)
    z = encoder(x)
    assert z.shape == (2, 3, tokens)
    assert decoder(z).shape == x.shape


def test_every_latent_sees_every_pixel_and_paints_every_pixel():
    encoder, decoder = pair()
    x = torch.rand(1, 1, 8, 12, dtype=torch.float64, requires_grad=True)
    z = encoder(x)
    for i in range(5):
        (gradient,) = torch.autograd.grad(z[..., i].sum(), x, retain_graph=True)
        assert (gradient.abs() > 0).all()
        other = z.detach().clone()
        other[..., i] += 1
        assert ((decoder(other) - decoder(z)).abs() > 0).all()


def test_latents_are_the_outputs_of_the_queries_alone():
    encoder, _ = pair()
    for block in encoder.blocks:  # attention is how anything of the image reaches them
        nn.init.zeros_(block.attention.to_out.weight)
    z = encoder(torch.rand(4, 1, 8, 12, dtype=torch.float64))
    torch.testing.assert_close(z, z[:1].expand_as(z))
    assert len(z[0].T.unique(dim=0)) == 5  # the queries differ
    encoder, _ = pair()
    z = encoder(torch.rand(4, 1, 8, 12, dtype=torch.float64))
    assert not torch.allclose(z, z[:1].expand_as(z))


def test_patches_start_as_mask_tokens_and_learn_of_the_latents_by_attention():
    _, decoder = pair()
    z, other = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    assert not torch.allclose(decoder(z), decoder(other))
    for block in decoder.blocks:
        nn.init.zeros_(block.attention.to_out.weight)
    assert torch.equal(decoder(z), decoder(other))


def test_a_latent_is_known_by_its_position_in_the_row():
    _, decoder = pair()
    z = torch.randn(1, 3, 5, dtype=torch.float64)
    assert not torch.allclose(decoder(z.flip(2)), decoder(z))
    before = decoder(z)
    with torch.no_grad():
        decoder.latent_positions.copy_(decoder.latent_positions.flip(0).clone())
    torch.testing.assert_close(decoder(z.flip(2)), before)  # moved with its position it says the same


def test_an_encoder_without_blocks_is_refused_since_queries_would_see_nothing():
    for kind in (LatentTokenEncoder, LatentTokenDecoder):
        with pytest.raises(ValueError, match="num_blocks: got 0, want a whole number from 1"):
            kind(num_blocks=0)


def test_a_prior_learns_its_row_of_tokens_and_the_samples_are_decoded():
    torch.manual_seed(0)
    model = companion.VQVAE(
        LatentTokenEncoder(3, 4, hidden=8, num_blocks=1, heads=2, tokens=6),
        companion.VectorQuantizer(5, 4),
        LatentTokenDecoder(3, 4, hidden=8, num_blocks=1, heads=2, tokens=6),
    ).eval()
    codes = companion.tokenize(model, companion.data.load("emoji", "test", size=8))
    assert codes.grid == (6,)
    for kind in (companion.TransformerPrior, companion.MambaPrior):
        prior = kind(5, codes.grid, dim=16, layers=1)
        assert torch.isfinite(prior.loss(codes.codes))
        samples = prior.sample(2, generator=torch.Generator().manual_seed(0))
        assert samples.shape == (2, 6)
        assert model.decode(samples).shape == (2, 3, 32, 32)

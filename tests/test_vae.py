"""VAE: its terms against exact values, three common mistakes, bounds against probabilistic PCA, training, files."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributions, nn

import companion
from companion import VAE, AutoregressiveDecoder, Decoder, Encoder, ResNetDecoder, ResNetEncoder
from companion.likelihoods import Bernoulli, Categorical, DiscretizedLogisticMixture, Gaussian, Likelihood
from companion.vae import (
    active_units,
    bits_per_dimension,
    elbo,
    importance_weighted_bound,
    kl_divergence,
    reparameterize,
)

LIKELIHOODS = [Gaussian(0.2), Gaussian(0.2, binned=True), Bernoulli(), Categorical(), DiscretizedLogisticMixture(2)]


def small(likelihood: Likelihood | None = None, *, d: int = 3, channels: int = 1, beta: float = 1.0) -> VAE:
    likelihood = likelihood or Gaussian(0.2)
    torch.manual_seed(0)
    encoder = Encoder(2 * d, in_channels=channels, hidden=4, image_size=8)
    decoder = Decoder(d, out_channels=channels * likelihood.num_params, hidden=4, image_size=8)
    return VAE(encoder, decoder, likelihood, beta=beta)


def pictures(likelihood: Likelihood, *shape: int) -> Tensor:
    levels = 2 if isinstance(likelihood, Bernoulli) else 256
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(4)) / (levels - 1)


# The pieces ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_kl_is_that_of_torch_distributions_and_never_negative(seed, shape):
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=g, dtype=torch.float64)
    log_variance = torch.randn(shape, generator=g, dtype=torch.float64)
    q = distributions.Normal(mean, (0.5 * log_variance).exp())
    p = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = kl_divergence(mean, log_variance)
    torch.testing.assert_close(kl, distributions.kl_divergence(q, p))
    assert bool((kl >= 0).all())


def test_kl_keeps_its_digits_near_zero():
    mean, log_variance = torch.zeros(3), torch.tensor([1e-4, -1e-4, 0.0])
    expected = (torch.expm1(log_variance.double()) - log_variance.double()) / 2
    torch.testing.assert_close(kl_divergence(mean, log_variance).double(), expected, rtol=1e-3, atol=0)
    plain = 0.5 * (log_variance.exp() - 1 - log_variance)  # the usual way to write it loses a tenth of the value
    assert float((plain[0] / expected[0] - 1).abs()) > 0.05


def test_reparameterized_draws_have_the_mean_and_the_standard_deviation():
    mean, log_variance = torch.tensor([[2.0, -1.0]]).expand(50_000, 2), torch.tensor([[2.0, -3.0]]).expand(50_000, 2)
    noise = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    z = reparameterize(mean, log_variance, noise)
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), (0.5 * log_variance[0]).exp(), rtol=0.02, atol=0)
    # Two wrong versions: the log-variance read as the logarithm of a standard deviation, or as one.
    for wrong in (mean + log_variance.exp() * noise, mean + log_variance * noise):
        assert not torch.allclose(wrong.std(0), (0.5 * log_variance[0]).exp(), rtol=0.02, atol=0)


def test_one_noise_for_the_whole_batch_is_refused_and_the_model_draws_one_for_each_image():
    """The wrong version: broadcasting one ε makes every image of the batch move together."""
    mean, log_variance = torch.zeros(6, 3), torch.zeros(6, 3)
    one_for_all = mean + torch.exp(0.5 * log_variance) * torch.randn(1, 3)
    assert float(one_for_all.std(0).max()) == 0
    for noise in (torch.randn(1, 3), torch.randn(3), torch.randn(6, 1)):
        with pytest.raises(ValueError, match="noise: got shape"):
            reparameterize(mean, log_variance, noise)
    z = small()(torch.rand(1, 1, 8, 8).expand(6, 1, 8, 8)).z  # six times the same image
    assert z.std(0).min().item() > 0
    assert len({tuple(row) for row in z.tolist()}) == 6
    assert len(set(z[0].tolist())) == 3  # and one for each latent number


def test_elbo_sums_within_an_image_and_averages_over_the_batch():
    log_likelihood = torch.arange(24.0).reshape(2, 1, 3, 4)
    kl = torch.arange(6.0).reshape(2, 3)
    expected = torch.tensor([(66 - 3) + (210 - 12)]) / 2  # Σ 0…11 = 66, Σ 12…23 = 210; Σ 0…2 = 3, Σ 3…5 = 12
    torch.testing.assert_close(elbo(log_likelihood, kl), expected[0])
    torch.testing.assert_close(elbo(log_likelihood.flatten(1).sum(1), kl.sum(1)), expected[0])
    with pytest.raises(ValueError, match="kl: got shape"):
        elbo(log_likelihood, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"kl: got -15, want numbers of at least 0.*swapped with log_likelihood"):
        elbo(kl, -log_likelihood[:, :, 0])
    assert float(elbo(torch.zeros(1, 1), torch.tensor([[-1e-7]]))) == pytest.approx(1e-7)  # as rounding leaves it


def test_bits_per_dimension_of_a_uniform_image_is_eight():
    likelihood = Categorical()
    params, x = torch.zeros(2, 3 * 256, 4, 4), pictures(likelihood, 2, 3, 4, 4)
    bits = bits_per_dimension(likelihood.log_prob(params, x), 3 * 4 * 4)
    torch.testing.assert_close(bits, torch.full((2,), 8.0))
    with pytest.raises(ValueError, match="dimensions: got 0"):
        bits_per_dimension(torch.zeros(1), 0)


def test_active_units_are_those_whose_posterior_mean_moves_with_the_data():
    n = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    mean = n * torch.tensor([2.0, 0.5, 0.2, 0.05, 0.0, 0.0]) + torch.tensor([0.0, 0, 0, 0, 0, 7.0])
    assert active_units(mean) == 3  # variances 4, 0.25, 0.04 | 0.0025, 0, 0 (a constant carries nothing)
    assert active_units(mean, threshold=0.1) == 2
    assert active_units(mean.reshape(500, 2, 3, 1)) == 3
    with pytest.raises(ValueError, match="mean: got shape"):
        active_units(mean[:1])


# The terms in nats per image: a mean over pixels beside a KL that is summed would be another objective ---------------


class Constant(nn.Module):
    """Gives the same for every input."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x), *self.value.shape)


def test_the_terms_are_nats_per_image_as_computed_by_hand():
    mean, log_variance = torch.tensor([0.5, -1.0]), torch.tensor([0.2, -0.7])
    model = VAE(
        Constant(torch.cat([mean, log_variance])), Constant(torch.full((1, 4, 4), 0.25)), Gaussian(0.5), beta=3.0
    )
    x = torch.rand(5, 1, 4, 4)
    out = model(x)
    log_likelihood = sum(
        -((float(v) - 0.25) ** 2) / (2 * 0.25) - math.log(0.5) - 0.5 * math.log(2 * math.pi) for v in x.flatten()
    )
    kl = sum(0.5 * (m**2 + math.exp(s) - 1 - s) for m, s in ((0.5, 0.2), (-1.0, -0.7)))
    assert float(out.log_likelihood.detach()) == pytest.approx(log_likelihood / 5, rel=1e-5)
    assert float(out.kl.detach()) == pytest.approx(kl, rel=1e-5)
    assert float(out.elbo.detach()) == pytest.approx(log_likelihood / 5 - kl, rel=1e-5)
    assert float(out.loss.detach()) == pytest.approx(-log_likelihood / 5 + 3 * kl, rel=1e-5)
    torch.testing.assert_close(out.kl_per_dimension.sum(), out.kl.detach())
    # The wrong version: a mean over pixels makes the reconstruction 16 times too light beside the KL.
    wrong = -model.likelihood.log_prob(model.decode(out.z), x).mean() / x[0].numel() + 3 * out.kl
    assert float(wrong.detach()) != pytest.approx(float(out.loss.detach()), rel=0.1)


def test_the_loss_does_not_depend_on_how_images_are_batched():
    model, x = small(), torch.rand(6, 1, 8, 8)
    noise = torch.randn(6, 3)
    whole = model(x, noise=noise).loss
    parts = torch.stack([model(x[i : i + 2], noise=noise[i : i + 2]).loss for i in (0, 2, 4)])
    torch.testing.assert_close(whole, parts.mean())


# Bounds, on a model whose log p(x) is known --------------------------------------------------------------------------


class Ppca:
    """x = ½ + W z + σ ε: log p(x) and p(z|x) in closed form, as a VAE with linear maps (W has orthogonal columns).

    W and σ are so small that an image lies in [0, 1].
    """

    def __init__(self, d: int, width: float = 1.0) -> None:
        g = torch.Generator().manual_seed(d)
        self.scale = 0.02
        q, _ = torch.linalg.qr(torch.randn(16, d, generator=g, dtype=torch.float64))
        gains = torch.linspace(0.02, 0.08, d, dtype=torch.float64)
        self.w = q * gains
        precision = 1 + gains**2 / self.scale**2
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 2 * d)).double()
        decoder = nn.Sequential(nn.Linear(d, 16), nn.Unflatten(1, (1, 4, 4))).double()
        with torch.no_grad():
            encoder[1].weight.zero_()
            encoder[1].weight[:d] = (self.w / self.scale**2 / precision).T
            encoder[1].bias[:d] = -encoder[1].weight[:d].sum(1) / 2
            encoder[1].bias[d:] = -torch.log(precision) + 2 * math.log(width)
            decoder[0].weight.copy_(self.w)
            decoder[0].bias.fill_(0.5)
        likelihood = Gaussian(self.scale).double()
        likelihood.log_scale.fill_(math.log(self.scale))  # to all digits of float64
        self.vae = VAE(encoder, decoder, likelihood)
        self.d = d

    def draw(self, n: int) -> Tensor:
        g = torch.Generator().manual_seed(1)
        z = torch.randn(n, self.d, generator=g, dtype=torch.float64)
        noise = torch.randn(n, 16, generator=g, dtype=torch.float64)
        return (0.5 + z @ self.w.T + self.scale * noise).reshape(n, 1, 4, 4)

    def log_p(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + self.scale**2 * torch.eye(16, dtype=torch.float64)
        return distributions.MultivariateNormal(torch.full((16,), 0.5).double(), covariance).log_prob(x.flatten(1))


@pytest.mark.parametrize("d", [1, 4, 8])
def test_with_the_exact_posterior_every_importance_weight_is_p_of_x(d):
    model = Ppca(d)
    x = model.draw(5)
    log_weights = model.vae.log_weights(x, 30)
    torch.testing.assert_close(log_weights, model.log_p(x).expand(30, 5), rtol=1e-9, atol=1e-9)
    assert float(log_weights.var(0).max()) < 1e-18


def test_the_bound_tightens_with_samples_and_stays_below_log_p():
    model = Ppca(4, width=1.8)  # a posterior that is too wide
    x = model.draw(40)
    g = torch.Generator().manual_seed(0)
    log_weights = model.vae.log_weights(x, 4000, generator=g)
    by_samples = [
        float(
            importance_weighted_bound(log_weights[: 4000 // k * k].reshape(-1, k, 40).transpose(0, 1).flatten(1)).mean()
        )
        for k in (1, 10, 100)
    ]
    exact = float(model.log_p(x).mean())
    assert by_samples[0] < by_samples[1] < by_samples[2] < exact + 0.01
    kl = float(_kl_to_posterior(model))
    assert by_samples[0] == pytest.approx(exact - kl, abs=0.05)  # the gap of the ELBO is KL(q ‖ p(z|x))
    average = float(log_weights.mean(0).mean())  # averaging logarithms in place of weights: the wrong version
    assert average < by_samples[2] - 0.5


def _kl_to_posterior(model: Ppca) -> Tensor:
    d, ratio = model.d, 1.8**2
    return torch.tensor(d * 0.5 * (ratio - 1 - math.log(ratio)))


def test_log_weights_do_not_depend_on_how_many_are_decoded_at_once():
    model = Ppca(2, width=1.5)
    x = model.draw(3)
    parts = [
        model.vae.log_weights(x, 7, batch_size=size, generator=torch.Generator().manual_seed(0)) for size in (1, 6, 100)
    ]
    torch.testing.assert_close(parts[0], parts[1])
    torch.testing.assert_close(parts[0], parts[2])


def test_their_mean_is_the_elbo():
    model = small()
    x = torch.rand(4, 1, 8, 8)
    g = torch.Generator().manual_seed(0)
    average = model.log_weights(x, 3000, generator=g).mean()
    with torch.no_grad():
        direct = torch.stack([model(x, generator=g).elbo for _ in range(300)]).mean()
    assert float(average) == pytest.approx(float(direct), rel=2e-3)


def test_bound_of_one_sample_is_its_weight_and_shapes_are_checked():
    w = torch.randn(1, 4)
    torch.testing.assert_close(importance_weighted_bound(w), w[0])
    torch.testing.assert_close(importance_weighted_bound(torch.tensor([[-2000.0], [-2000.0]])), torch.tensor([-2000.0]))
    for bad in (torch.zeros(3), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match=r"log_weights: got float32 of shape .* want .* \(samples, B\)"):
            importance_weighted_bound(bad)
    with pytest.raises(ValueError, match="samples: got 0"):
        small().log_weights(torch.rand(1, 1, 8, 8), 0)


# The model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_likelihood_gives_images_and_a_loss_that_reaches_every_parameter(likelihood, channels):
    model = small(likelihood, channels=channels)
    x = pictures(likelihood, 2, channels, 8, 8)
    out = model(x)
    assert out.reconstruction.shape == x.shape
    assert model.sample(4).shape == (4, channels, 8, 8)
    assert model.sample(4, mean=True).shape == (4, channels, 8, 8)
    shown = model.reconstruct(x)
    assert shown.shape == x.shape
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda x: type(x).__name__)
def test_a_file_brings_the_whole_model_back(likelihood, tmp_path, device):
    model = small(likelihood, beta=0.5)
    x, noise = pictures(likelihood, 2, 1, 8, 8), torch.randn(2, 3)
    companion.save(model, tmp_path / "vae.safetensors")
    back = companion.load(tmp_path / "vae.safetensors").to(device)
    assert isinstance(back, VAE)
    assert back.beta == 0.5
    torch.testing.assert_close(back(x, noise=noise).loss, model(x, noise=noise).loss, rtol=0, atol=0)


def test_a_grid_of_latents_works_and_its_shape_is_asked_for():
    model = VAE(ResNetEncoder(1, 6, hidden=8), ResNetDecoder(1, 3, hidden=8), Gaussian(0.2))
    out = model(torch.rand(2, 1, 8, 12))
    assert out.z.shape == (2, 3, 2, 3)
    assert out.kl_per_dimension.shape == (3, 2, 3)
    assert model.log_weights(torch.rand(2, 1, 8, 12), 3).shape == (3, 2)
    assert model.sample(4, latent_shape=(3, 2, 3)).shape == (4, 1, 8, 12)
    with pytest.raises(ValueError, match="latent_shape: got None"):
        model.sample(4)


def test_noise_and_generator_decide_what_is_drawn():
    model, x = small(), torch.rand(3, 1, 8, 8)
    noise = torch.randn(3, 3)
    out = model(x, noise=noise)
    torch.testing.assert_close(out.z, out.mean + (0.5 * out.log_variance).exp() * noise)
    a, b = (model(x, generator=torch.Generator().manual_seed(5)).z for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, model(x, generator=torch.Generator().manual_seed(6)).z)
    s, t = (model.sample(2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(s, t)


def test_the_gradient_goes_through_the_draw_into_the_encoder():
    """With beta 0 only the reconstruction can move the encoder: a detached draw would leave it still."""
    model = small(beta=0.0)
    model(torch.rand(2, 1, 8, 8)).loss.backward()
    assert float(model.encoder.to_latent.weight.grad.abs().sum()) > 0


def test_fit_trains_it_and_logs_its_terms():
    train = companion.data.load("glyphs", "train", size=256)
    torch.manual_seed(0)
    model = VAE(Encoder(8, hidden=8), Decoder(4, hidden=8), Gaussian(0.2))
    history = companion.fit(model, train, validation=train, epochs=3, batch_size=32, lr=3e-3, progress=False)
    assert {"loss", "elbo", "log_likelihood", "kl", "validation_elbo"} <= set(history.last)
    assert history.last["validation_elbo"] > history.rows[0]["validation_elbo"]
    assert history.last["loss"] == pytest.approx(-history.last["elbo"], rel=1e-5)


# With an autoregressive decoder --------------------------------------------------------------------------------------


def autoregressive(likelihood: Likelihood | None = None) -> VAE:
    likelihood = likelihood or Bernoulli()
    torch.manual_seed(0)
    context = Decoder(2, out_channels=6, hidden=4, image_size=4)
    decoder = AutoregressiveDecoder(context, likelihood.num_params, hidden=6, kernel=3, layers=1)
    return VAE(Encoder(4, hidden=4, image_size=4), decoder, likelihood)


def test_its_probabilities_of_all_images_sum_to_one():
    """2¹⁶ images of 4 × 4 bits at one z. A decoder that saw its own pixel would give a sum of far more."""
    model = autoregressive()
    x = (torch.arange(2**16)[:, None] >> torch.arange(16) & 1).float().reshape(-1, 1, 4, 4)
    z = torch.tensor([[0.7, -1.2]]).expand(2**16, 2)
    with torch.no_grad():
        for layer in (model.decoder.first, *model.decoder.layers):
            layer.weight.mul_(4)
        log_p = model.likelihood.log_prob(model.decode(z, x), x)
        assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-4)
        model.decoder.first.mask.fill_(1.0)
        wrong = model.likelihood.log_prob(model.decode(z, x), x)
        assert abs(float(wrong.double().exp().sum()) - 1) > 0.01


def test_it_samples_pixel_by_pixel_from_its_own_conditionals():
    """A decoder that copies the pixel to the left: every row is one value, which the first column draws."""
    model = autoregressive()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
        model.decoder.first.weight[0, 0, 1, 0] = 1.0  # channel 0: the left neighbour
        model.decoder.to_params.weight[0, 0] = 200.0
        model.decoder.to_params.bias[0] = -100.0
        x = model.sample(3, generator=torch.Generator().manual_seed(0))
        assert bool((x == 0).all())  # nothing to copy at the left border
        model.decoder.context.conv2.bias[0] = 0.5  # logit 0 at the border where nothing stands to the left
        drawn = model.sample(40, generator=torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    rising = (drawn[..., 1:] < drawn[..., :-1]).float().mean()
    assert float(rising) == 0  # after a 1 always a 1
    assert 0 < float(drawn.mean()) < 1


def test_it_has_no_mean_image_and_wants_x():
    model = autoregressive()
    assert model.sample(2).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="mean: got True"):
        model.sample(2, mean=True)
    with pytest.raises(ValueError, match="x: got None"):
        model.decode(torch.zeros(1, 2))
    out = model(torch.ones(2, 1, 4, 4))
    out.loss.backward()
    assert out.reconstruction.shape == (2, 1, 4, 4)
    assert model.log_weights(torch.ones(2, 1, 4, 4), 3).shape == (3, 2)


def test_it_comes_back_from_a_file(tmp_path, device):
    model = autoregressive(DiscretizedLogisticMixture(2))
    companion.save(model, tmp_path / "ar.safetensors")
    x, noise = pictures(model.likelihood, 2, 1, 4, 4), torch.randn(2, 2)
    back = companion.load(tmp_path / "ar.safetensors").to(device)
    torch.testing.assert_close(back(x, noise=noise).loss, model(x, noise=noise).loss, rtol=0, atol=0)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name():
    for beta in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta: got"):
            small(beta=beta)
    with pytest.raises(ValueError, match="encoder: it gave shape"):
        VAE(Encoder(3, hidden=4, image_size=8), Decoder(3, hidden=4, image_size=8), Gaussian())(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="log_variance: got shape"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="noise: got shape"):
        small()(torch.rand(2, 1, 8, 8), noise=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="decoder: gave shape"):
        VAE(Encoder(4), Decoder(2), DiscretizedLogisticMixture(2))(torch.zeros(2, 1, 28, 28))


def test_checks_leave_no_trace_in_an_exported_model():
    """Reading a value would end the trace, and so would the context variable that turns the reading off."""

    class Loss(nn.Module):
        def __init__(self, model: VAE) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, noise: Tensor) -> Tensor:
            return self.model(x, noise=noise).loss

    whole, x, noise = Loss(small()), torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    exported = torch.export.export(whole, (x, noise)).module()
    torch.testing.assert_close(exported(x, noise), whole(x, noise))


def test_nan_comes_out_as_a_loss_that_fit_reports_with_its_step():
    model = small()
    with torch.no_grad():
        model.decoder.conv2.bias.fill_(math.nan)
    assert model(torch.rand(2, 1, 8, 8)).loss.isnan()
    with pytest.raises(ValueError, match=r"decoder: got .* NaN"):  # nothing is drawn from it
        model.sample(1)

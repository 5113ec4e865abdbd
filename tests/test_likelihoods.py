"""Likelihoods: exact sums over the 256 grey values, torch.distributions, tails, gradients, samples."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions
from torch.nn import functional

from companion.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    Likelihood,
    discretized_gaussian,
    discretized_logistic,
)

GREY = torch.arange(256) / 255
BINNED = {"logistic": discretized_logistic, "gaussian": discretized_gaussian}
DISCRETE = [
    Gaussian(0.1, binned=True),
    Gaussian(0.003, binned=True),
    Gaussian(3.0, binned=True),
    Categorical(),
    DiscretizedLogisticMixture(1),
    DiscretizedLogisticMixture(components=4),
]
ALL = [*DISCRETE, Gaussian(0.2), Bernoulli(), Bernoulli(relaxed=True), Categorical(levels=5)]


def described(likelihood: Likelihood) -> str:
    return f"{type(likelihood).__name__}{getattr(likelihood, 'config', {})}"


def images(likelihood: Likelihood, *shape: int) -> torch.Tensor:
    """Images that the likelihood can have produced."""
    levels = {Bernoulli: 2, Categorical: likelihood.num_params}.get(type(likelihood), 256)
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, levels, shape, generator=g) / (levels - 1)


def parameters(likelihood: Likelihood, batch: int, channels: int, *spatial: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(batch, channels * likelihood.num_params, *spatial, generator=g)


# Sums over the 256 values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", DISCRETE, ids=described)
def test_the_probabilities_of_the_256_grey_values_sum_to_one(likelihood):
    for seed in range(5):
        one_pixel = torch.randn(1, likelihood.num_params, 1, 1, generator=torch.Generator().manual_seed(seed))
        params = one_pixel.expand(256, -1, -1, -1)
        log_prob = likelihood.log_prob(params, GREY.reshape(256, 1, 1, 1))
        assert float(log_prob.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_a_bernoulli_on_grey_values_does_not_sum_to_one():
    """The proof that the sum above can fail, and why ``relaxed`` is no log-probability."""
    sums = []
    for logit in (-6.0, 0.0, 2.0):
        params = torch.full((256, 1, 1, 1), logit)
        sums.append(float(Bernoulli(relaxed=True).log_prob(params, GREY.reshape(256, 1, 1, 1)).exp().sum()))
    assert sums[1] == pytest.approx(128)  # at p = 1/2 every grey value gets 1/2
    assert all(total > 40 for total in sums)


@pytest.mark.parametrize("name", BINNED)
@pytest.mark.parametrize("log_scale", [-8.0, -5.0, -1.0, 2.0, 10.0])
@pytest.mark.parametrize("mean", [-1e4, -1.0, 0.0, 0.5, 0.7013, 1.0, 1e4])
def test_bins_are_finite_with_finite_gradients_and_sum_to_one_at_extreme_means_and_scales(name, mean, log_scale):
    m = torch.full((256,), mean, requires_grad=True)
    s = torch.full((256,), log_scale, requires_grad=True)
    log_mass = BINNED[name](GREY, m, s)
    log_mass.sum().backward()
    assert bool(log_mass.isfinite().all())
    assert bool(m.grad.isfinite().all())
    assert bool(s.grad.isfinite().all())
    assert log_mass.detach().double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_difference_of_two_cdfs_underflows_where_the_product_does_not():
    """The wrong version as the proof: above the mean, both CDFs round to 1 and log(σ(B) − σ(A)) is −∞."""
    mean, log_scale = torch.tensor(0.1), torch.tensor(-5.0)

    def difference(x):
        scale = log_scale.exp()
        return torch.log(torch.sigmoid((x + 1 / 510 - mean) / scale) - torch.sigmoid((x - 1 / 510 - mean) / scale))

    near, far = torch.tensor(28 / 255), torch.tensor(200 / 255)
    torch.testing.assert_close(difference(near), discretized_logistic(near, mean, log_scale))
    assert difference(far) == -torch.inf
    exact = _logistic_in_float64(far, mean, log_scale)
    torch.testing.assert_close(discretized_logistic(far, mean, log_scale).double(), exact, rtol=1e-5, atol=0)


def _logistic_in_float64(x, mean, log_scale):
    """An independent way: integrate the density over the bin."""
    scale = log_scale.double().exp()
    edges = torch.linspace(-1 / 510, 1 / 510, 20001, dtype=torch.float64) + x.double()
    z = (edges - mean.double()) / scale
    log_density = -z - 2 * functional.softplus(-z) - torch.log(scale)
    weights = torch.full_like(edges, edges[1] - edges[0]).log()
    weights[[0, -1]] -= math.log(2)
    return torch.logsumexp(log_density + weights, 0)


@given(
    k=st.integers(0, 255),
    mean=st.floats(-3, 4, width=32),
    log_scale=st.floats(-7, 5, width=32),
    name=st.sampled_from(sorted(BINNED)),
)
def test_a_bin_is_never_above_one_and_mirrors_with_the_mean(k, mean, log_scale, name):
    # in float32, 1 − k/255 is rounded, which a narrow bin sees
    x, m, s = (torch.tensor(v, dtype=torch.float64) for v in ([k / 255, 1 - k / 255], [mean, 1 - mean], log_scale))
    log_mass = BINNED[name](x, m, s)
    assert bool((log_mass <= 1e-12).all())
    assert float(log_mass[0]) == pytest.approx(float(log_mass[1]), rel=1e-6, abs=1e-9)


def test_first_and_last_bin_are_open():
    for f, cdf in ((discretized_logistic, torch.sigmoid), (discretized_gaussian, torch.special.ndtr)):
        mean, log_scale = torch.tensor(0.3), torch.tensor(-1.0)
        edges = (torch.tensor([0.5, 254.5]) / 255 - mean) / log_scale.exp()
        ends = f(torch.tensor([0.0, 1.0]), mean, log_scale).exp()
        torch.testing.assert_close(ends[0], cdf(edges[0]))
        torch.testing.assert_close(ends[1], cdf(-edges[1]))


def test_gradients_of_the_bins_are_those_of_finite_differences():
    x = torch.tensor([0.0, 3 / 255, 0.4, 1.0], dtype=torch.float64)
    mean = torch.tensor([0.2, -1.5, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([-1.0, -2.5, -4.0, 1.0], dtype=torch.float64, requires_grad=True)
    for f in BINNED.values():
        assert torch.autograd.gradcheck(lambda m, s, f=f: f(x * 255 // 1 / 255, m, s), (mean, log_scale))


# torch.distributions ------------------------------------------------------------------------------------------------


def test_gaussian_is_that_of_torch_distributions():
    params, x = torch.randn(3, 2, 4, 5), torch.rand(3, 2, 4, 5)
    expected = distributions.Normal(params, 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(0.3).log_prob(params, x), expected)


def test_binned_gaussian_is_the_difference_of_torchs_cdf_in_float64():
    params, x = torch.rand(3, 2, 4, 5), images(Gaussian(), 3, 2, 4, 5).clamp(2 / 255, 253 / 255)
    normal = distributions.Normal(params.double(), 0.2)
    k = (x.double() * 255).round()
    mass = normal.cdf((k + 0.5) / 255) - normal.cdf((k - 0.5) / 255)
    got = Gaussian(0.2, binned=True).log_prob(params, x)
    torch.testing.assert_close(got.double(), mass.log().sum((1, 2, 3)), rtol=1e-5, atol=1e-4)


def test_bernoulli_is_that_of_torch_distributions():
    params, x = torch.randn(3, 2, 4, 5), torch.randint(0, 2, (3, 2, 4, 5)).float()
    expected = distributions.Bernoulli(logits=params).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(params, x), expected)
    torch.testing.assert_close(Bernoulli(relaxed=True).log_prob(params, x), expected)


def test_categorical_is_that_of_torch_distributions_channel_by_channel():
    likelihood = Categorical(256)
    params, x = torch.randn(2, 3 * 256, 2, 3), images(likelihood, 2, 3, 2, 3)
    logits = params.reshape(2, 3, 256, 2, 3).movedim(2, -1)
    expected = distributions.Categorical(logits=logits).log_prob((x * 255).round()).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, x), expected)
    mixed = params.reshape(2, 256, 3, 2, 3).movedim(1, -1)  # the wrong order of channels, as the proof
    wrong = distributions.Categorical(logits=mixed).log_prob((x * 255).round()).sum((1, 2, 3))
    assert not torch.allclose(wrong, expected)


def test_logistic_mixture_is_that_of_torch_distributions():
    likelihood = DiscretizedLogisticMixture(3)
    params, x = parameters(likelihood, 2, 2, 3, 3).double(), images(likelihood, 2, 2, 3, 3).double()
    logits, mean, log_scale = params.reshape(2, 2, 3, 3, 3, 3).movedim(3, -1).unbind(2)  # each (2, 2, 3, 3, K)
    base = distributions.TransformedDistribution(
        distributions.Uniform(torch.zeros_like(mean), torch.ones_like(mean)),
        [
            distributions.SigmoidTransform().inv,
            distributions.AffineTransform(mean, log_scale.clamp_min(-8).exp()),
        ],
        validate_args=False,
    )
    k = (x * 255).round().unsqueeze(-1)
    above = torch.where(k == 255, 1.0, base.cdf((k + 0.5) / 255))
    below = torch.where(k == 0, 0.0, base.cdf((k - 0.5) / 255))
    expected = (logits.softmax(-1) * (above - below)).sum(-1).log().sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, x), expected, rtol=1e-6, atol=1e-6)


# Samples and means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ALL, ids=described)
@pytest.mark.parametrize(("batch", "channels", "spatial"), [(3, 1, (4, 5)), (1, 3, (2, 2)), (2, 2, (7,))])
def test_shapes_are_those_of_the_images(likelihood, batch, channels, spatial):
    params = parameters(likelihood, batch, channels, *spatial)
    x = images(likelihood, batch, channels, *spatial)
    assert likelihood.log_prob(params, x).shape == (batch,)
    assert likelihood.sample(params).shape == x.shape
    assert likelihood.mean(params).shape == x.shape


@pytest.mark.parametrize("likelihood", [*DISCRETE, Bernoulli()], ids=described)
def test_what_is_sampled_has_a_log_probability(likelihood):
    params = parameters(likelihood, 2, 1, 5, 5)
    sample = likelihood.sample(params)
    assert bool(likelihood.log_prob(params, sample).isfinite().all())


@pytest.mark.parametrize("likelihood", ALL, ids=described)
def test_samples_are_distributed_as_the_log_probabilities_say(likelihood):
    """Their mean is ``mean`` (rounding: half a bin), and repeats with the generator."""
    params = parameters(likelihood, 1, 1, 1).expand(1, -1, 40_000).contiguous()
    draw = likelihood.sample(params, torch.Generator().manual_seed(3))
    assert torch.equal(draw, likelihood.sample(params, torch.Generator().manual_seed(3)))
    error = float(draw.std()) / math.sqrt(draw.numel())
    assert float(draw.mean()) == pytest.approx(float(likelihood.mean(params).mean()), abs=5 * error + 1 / 510)


@pytest.mark.parametrize("likelihood", [*DISCRETE, Categorical(5)], ids=described)
def test_the_mean_is_that_of_the_256_probabilities(likelihood):
    levels = 5 if isinstance(likelihood, Categorical) and likelihood.levels == 5 else 256
    values = torch.linspace(0, 1, levels)
    for seed in range(4):
        one = 0.5 * torch.randn(1, likelihood.num_params, 1, generator=torch.Generator().manual_seed(seed))
        log_prob = likelihood.log_prob(one.expand(levels, -1, -1), values.reshape(levels, 1, 1))
        expected = float((log_prob.exp() * values).sum())
        assert float(likelihood.mean(one)) == pytest.approx(expected, abs=1 / 510 + 1e-5)


def test_a_mixture_samples_whole_components_and_not_their_average():
    """Two narrow components at 0.2 and 0.8: nothing comes from between, where the mean lies."""
    params = torch.tensor([0.0, 0.0, 0.2, 0.8, -6.0, -6.0]).reshape(1, 6, 1).expand(1, 6, 2000).contiguous()
    likelihood = DiscretizedLogisticMixture(2)
    draw = likelihood.sample(params, torch.Generator().manual_seed(0))
    assert not bool(((draw > 0.3) & (draw < 0.7)).any())
    assert float(likelihood.mean(params)[0, 0, 0]) == pytest.approx(0.5, abs=1e-3)


# Options, precision, gradients, refusals ----------------------------------------------------------------------------


def test_the_best_learnt_scale_is_the_root_of_the_mean_squared_error():
    likelihood = Gaussian(1.0, learn_scale=True)
    params, x = torch.full((4, 1, 5, 5), 0.5), torch.rand(4, 1, 5, 5)
    adam = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(300):
        adam.zero_grad()
        (-likelihood.log_prob(params, x).mean()).backward()
        adam.step()
    assert likelihood.scale.item() == pytest.approx(float((x - 0.5).square().mean().sqrt()), rel=1e-3)
    assert list(Gaussian(1.0).parameters()) == []


def test_a_density_at_a_fine_grid_is_the_mass_over_the_width_of_its_bin():
    params, x = torch.full((1, 1, 9, 9), 0.5), (127 + torch.randint(-40, 40, (1, 1, 9, 9))) / 255
    density = Gaussian(0.2).log_prob(params, x)
    mass = Gaussian(0.2, binned=True).log_prob(params, x)
    torch.testing.assert_close(density - 81 * math.log(255), mass, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", ALL, ids=described)
def test_gradients_reach_every_parameter_of_the_decoder(likelihood):
    params = parameters(likelihood, 2, 1, 3, 3).requires_grad_()
    likelihood.log_prob(params, images(likelihood, 2, 1, 3, 3)).sum().backward()
    assert bool(params.grad.isfinite().all())
    if not isinstance(likelihood, DiscretizedLogisticMixture) or likelihood.components > 1:
        assert bool((params.grad.flatten(2).abs().sum(2) > 0).all())


@pytest.mark.parametrize("likelihood", ALL, ids=described)
def test_half_precision_is_summed_in_float32(likelihood):
    params = parameters(likelihood, 2, 1, 3, 3).bfloat16()
    x = images(likelihood, 2, 1, 3, 3)
    assert likelihood.log_prob(params, x).dtype == torch.float32
    torch.testing.assert_close(likelihood.log_prob(params, x), likelihood.log_prob(params.float(), x))


def test_bernoulli_refuses_grey_values_and_says_what_to_do():
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    with pytest.raises(ValueError, match=r"x: got values other than 0 and 1.*relaxed=True"):
        Bernoulli().log_prob(torch.zeros(1, 1, 3), x)
    with pytest.raises(ValueError, match=r"x: got 0 to 1\.5, want 0 to 1"):
        Bernoulli(relaxed=True).log_prob(torch.zeros(1, 1, 3), 1.5 * x / x.max())


@pytest.mark.parametrize("likelihood", DISCRETE, ids=described)
@pytest.mark.parametrize("value", [0.1234, 1 + 1 / 255, -1 / 255, float("nan")])
def test_values_between_the_grey_values_are_refused(likelihood, value):
    params = parameters(likelihood, 1, 1, 2)
    with pytest.raises(ValueError, match="x: got values that are no multiples of 1/255"):
        likelihood.log_prob(params, torch.tensor([[[0.0, value]]]))


@pytest.mark.parametrize("likelihood", ALL, ids=described)
def test_other_shapes_are_refused_by_name(likelihood):
    params = parameters(likelihood, 2, 2, 3, 3)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 3, 3\), want \(2, 2, 3, 3\)"):
        likelihood.log_prob(params, images(likelihood, 2, 3, 3, 3))
    with pytest.raises(ValueError, match="params: got shape"):
        likelihood.mean(torch.zeros(2, 0, 3))
    if likelihood.num_params > 1:
        with pytest.raises(ValueError, match=f"reads {likelihood.num_params} decoder channels"):
            likelihood.sample(torch.zeros(2, likelihood.num_params + 1, 3))


@pytest.mark.parametrize("name", ["logistic", "gaussian"])
def test_scales_beyond_the_limits_are_refused_and_those_at_the_limits_give_finite_numbers(name):
    f, x = {"logistic": discretized_logistic, "gaussian": discretized_gaussian}[name], torch.arange(256) / 255
    for log_scale in (-1000.0, -20.1, 20.1, 1000.0):
        with pytest.raises(ValueError, match=r"log_scale: got .* want -20\.0 to 20\.0"):
            f(x, torch.tensor(0.5), torch.tensor(log_scale))
    for log_scale in (-20.0, 20.0):
        assert bool(f(x, torch.tensor(0.4), torch.tensor(log_scale)).isfinite().all())


@pytest.mark.parametrize("binned", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_gaussian_of_the_smallest_and_of_the_largest_scale_gives_finite_numbers(scale, binned):
    log_prob = Gaussian(scale, binned=binned).log_prob(torch.full((1, 1, 2, 2), 0.4), torch.ones(1, 1, 2, 2))
    assert bool(log_prob.isfinite().all())


def test_senseless_options_are_refused():
    for scale in (0.0, -1.0, float("inf"), 1e-200, 1e200):
        with pytest.raises(ValueError, match="scale: got"):
            Gaussian(scale)
    with pytest.raises(ValueError, match="levels: got 1"):
        Categorical(1)
    with pytest.raises(ValueError, match="components: got 0"):
        DiscretizedLogisticMixture(0)

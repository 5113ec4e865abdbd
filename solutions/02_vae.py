# %% [markdown]
# # 02 · Variational autoencoders
#
# **The question.** An autoencoder's decoder makes digits only of points that lie where the training images' latents lie. Can we decide *beforehand* how
# the latents are distributed, so that drawing one and decoding it makes a new image? You derive the loss that does it, term by term, and end with
# this map, in which every point of the plane has a known probability:
#
# ![Left: the latent plane of a variational autoencoder with the training images as points inside the circles of a standard normal distribution. Right: the decoder on a grid of equally probable points.](../chapters/pictures/02_vae.png)
#
# **Afterwards you can** derive the evidence lower bound in two ways and say what its gap is, choose a likelihood that fits the data, train a VAE,
# tell when its latents have collapsed, and read a claim about "blurry VAEs" with a measurement at hand.
#
# **Needed:** [chapter 01](01_autoencoder.ipynb); densities, expectations, the logarithm. **Time:** about two hours of yours; the computer's is in the
# table below.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import measured_claims, results
from companion.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    discretized_gaussian,
)
from companion.metrics import distortion, mse
from companion.vae import VAEOutput, active_units, bits_per_dimension

session = begin("02_vae")
settings, device = session.settings, session.device
train, test = session.data()

# %%
x_train, y_train = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels, size, _ = train.shape
pixels = x_train[0].numel()

# %% [markdown]
# ## Predict
# "Samples generated from VAEs tend to be blurry", says one of this course's source reports, because "latent representations are sampled from a
# distribution", and the decoder "produces an averaged reconstruction". Below, an autoencoder and a VAE of the same size (d = 16, the same layers, the
# same number of steps) rebuild test images. A sharp image has strong edges; say the originals' edges have 100 units of energy.
# How many do the two reconstructions keep, and how many have the VAE's *new* images? Write down three numbers.
#
# ## Build: a model that says how probable an image is
# Turn the autoencoder into a story of how an image comes about:
#
# 1. draw a latent z from the **prior** p(z) = N(0, I);
# 2. the decoder turns z into the parameters of a distribution over images, the **likelihood** p(x|z);
# 3. draw the image x from it.
#
# If the story is good, real images are probable under it. How probable? Every z might have made x, each with its own probability, so
#
# $$p(x) = \int p(x \mid z)\, p(z)\, dz = \mathbb{E}_{z \sim p(z)}\big[\, p(x \mid z) \,\big].$$
#
# Training is then clear: choose the decoder that makes log p(x) of the training images as large as possible. (The *logarithm*, because the
# probability of many independent images is a product, and its logarithm a sum.) Only: how does one compute that integral?
#
# An expectation can be estimated by a mean: draw S latents from the prior, and average p(x|z). To see how well that does, we need a model whose
# log p(x) is *known*. There is one, with a decoder that is a matrix: **probabilistic PCA** (Tipping and Bishop 1999),
#
# $$z \sim N(0, I), \qquad x = W z + \mu + \sigma\,\varepsilon, \quad \varepsilon \sim N(0, I)
# \qquad\Longrightarrow\qquad x \sim N(\mu,\; W W^\top + \sigma^2 I).$$
#
# Its best parameters stand in closed form: the columns of W are the d principal directions of chapter 01, each as long as the root of (its variance − σ²),
# and σ² is the mean variance of the directions left out (their equations 7 and 8).

# %%
flat_train, flat_test = x_train.flatten(1).double(), x_test[:100].flatten(1).double()
centre = flat_train.mean(0)
eigenvalues, directions = torch.linalg.eigh(torch.cov(flat_train.T, correction=0))


def fit_ppca(d: int) -> tuple[Tensor, Tensor]:
    """W (pixels, d) and σ² under which the training images are most probable."""
    noise_variance = eigenvalues[:-d].mean()
    lengths = (eigenvalues[-d:] - noise_variance).sqrt()
    return directions[:, -d:] * lengths, noise_variance


def log_normal(squared_distance: Tensor, noise_variance: Tensor) -> Tensor:
    """log N(x; m, σ² I) from ‖x − m‖²: a constant minus the squared error."""
    constant = -0.5 * pixels * torch.log(2 * math.pi * noise_variance)
    return constant - squared_distance / (2 * noise_variance)


# %%
dimensions, draws = [1, 2, 4, 8, 16, 32, 64], [100, 1000, 10_000]
generator = torch.Generator().manual_seed(session.seed)
missing = {}  # (d, S) -> nats by which the estimate falls short, mean over 100 test images
print(
    "  d   exact log p(x)   estimate − exact with S =" + "".join(f"{s:>9,}" for s in draws)
)
for d in dimensions:
    weight, noise_variance = fit_ppca(d)
    covariance = weight @ weight.T + noise_variance * torch.eye(pixels).to(weight)
    exact = torch.distributions.MultivariateNormal(centre, covariance).log_prob(flat_test)
    z = torch.randn(max(draws), d, generator=generator, dtype=torch.float64).to(device)
    squared = torch.cdist(flat_test - centre, z @ weight.T).square()  # (100, S)
    log_likelihood = log_normal(
        squared, noise_variance
    )  # log p(x|z) of each image and draw
    for s in draws:
        estimate = log_likelihood[:, :s].logsumexp(1) - math.log(
            s
        )  # log of the mean of p(x|z)
        missing[d, s] = (exact - estimate).mean().item()
    row = "".join(f"{-missing[d, s]:>9.1f}" for s in draws)
    print(f"{d:>3} {exact.mean().item():>16.1f} {'':>25}{row}")

# %%
fig, ax = plots.figure(6.4, 3)
styles = zip(draws, ("o:", "s--", "D-"), ("reference", "validation", "train"), strict=True)
for s, style, colour in styles:
    shortfall = [max(missing[d, s], 1e-3) for d in dimensions]
    ax.plot(dimensions, shortfall, style, color=plots.COLOURS[colour], label=f"S = {s:,}")
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.set_xticks(dimensions, [str(d) for d in dimensions])
ax.set(
    xlabel="latent dimensions, d",
    ylabel="nats below log p(x)",
    title="Averaging over the prior fails as the latent space grows",
    ylim=(7e-4, None),
)
ax.legend()
plots.show(
    fig,
    alt="How many nats the Monte-Carlo estimate of log p(x) falls short of the exact value,"
    " against the latent dimension, both on logarithmic axes: almost nothing at one "
    "dimension, tens to hundreds at eight and sixteen, thousands at 64. A hundred times"
    " more draws move the curve down by far less than a factor of ten at the right.",
)

# %% [markdown]
# With one or two latent numbers the mean over the prior is fine. (Shortfalls below 0.001 are drawn there.) With sixteen, 100 draws are 590 nats too
# low, and 10,000 still 240: a probability e^240 times too small. At 64 the hundredfold effort buys back a third. The mean of p(x|z) is *unbiased*; but
# nearly all of it comes from the few z that could have made x, and ten thousand draws hold none of those. In d dimensions the share of the prior that
# explains one image shrinks exponentially with d.
#
# ### Where to look: the posterior
# The z that could have made x are described by the **posterior**
#
# $$p(z \mid x) = \frac{p(x, z)}{p(x)} = \frac{p(x \mid z)\, p(z)}{p(x)},$$
#
# whose denominator is the very integral we cannot compute. In probabilistic PCA it is known too, N(m, σ² M⁻¹) with M = WᵀW + σ² I and
# m = M⁻¹Wᵀ(x − μ) (their equation 6). Draw z from it, and correct for having drawn from the wrong place: each z gets the **importance
# weight** w = p(x|z) p(z) / q(z), q being what it was drawn from, because
#
# $$p(x) = \int p(x, z)\, dz = \int q(z)\,\frac{p(x, z)}{q(z)}\, dz = \mathbb{E}_{z \sim q}\left[\frac{p(x, z)}{q(z)}\right].$$

# %%
weight, noise_variance = fit_ppca(16)
covariance = weight @ weight.T + noise_variance * torch.eye(pixels).to(weight)
exact = torch.distributions.MultivariateNormal(centre, covariance).log_prob(flat_test)
precision = weight.T @ weight + noise_variance * torch.eye(16).to(weight)  # M
posterior_mean = (flat_test - centre) @ weight @ torch.linalg.inv(precision)
posterior_scale = torch.linalg.cholesky(noise_variance * torch.linalg.inv(precision))


def log_importance_weights(width: float, samples: int) -> Tensor:
    """log w for q = the exact posterior made ``width`` times as wide. (samples, images)"""
    shape = (samples, len(flat_test), 16)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    z = posterior_mean + width * noise @ posterior_scale.T
    log_joint = log_normal(
        (flat_test - centre - z @ weight.T).square().sum(2), noise_variance
    ) - 0.5 * z.square().sum(2)  # log p(x|z) + log p(z), without 16 · ½ log 2π
    log_q = -0.5 * noise.square().sum(2) - (width * posterior_scale.diagonal()).log().sum()
    return log_joint - log_q


log_w = log_importance_weights(width=1.0, samples=50)
print(f"exact log p(x) of the first image:  {exact[0]:.6f}")
print(f"log-weights of five draws:          {[round(v, 6) for v in log_w[:5, 0].tolist()]}")

# %% tags=["nbval-check-output"]
print("every weight is p(x):", torch.allclose(log_w, exact.expand_as(log_w)))
print("their variance is zero up to rounding:", bool(log_w.var(0).max() < 1e-18))

# %% [markdown]
# With the exact posterior every single draw gives p(x) itself: p(x, z) / p(z|x) = p(x), whatever z is. One draw would do. So the plan is:
# **learn a distribution q(z|x) that is near the posterior**: a second network, which reads x and says where to look. That is the encoder.
#
# ## Build: the evidence lower bound
# Every step, for one image x and any q(z|x) that is positive wherever the posterior is:
#
# $$
# \begin{aligned}
# \log p(x) &= \log \int p(x, z)\, dz && \text{every } z \text{ may have made } x \\
# &= \log \int q(z \mid x)\, \frac{p(x, z)}{q(z \mid x)}\, dz && \text{times } q/q = 1 \\
# &= \log \mathbb{E}_{q(z \mid x)}\left[\frac{p(x, z)}{q(z \mid x)}\right] && \text{an expectation of the importance weight} \\
# &\ge \mathbb{E}_{q(z \mid x)}\left[\log \frac{p(x, z)}{q(z \mid x)}\right] && \text{Jensen: the logarithm is concave} \\
# &= \mathbb{E}_{q(z \mid x)}\big[\log p(x \mid z) + \log p(z) - \log q(z \mid x)\big] && p(x, z) = p(x \mid z)\, p(z) \\
# &= \mathbb{E}_{q(z \mid x)}\big[\log p(x \mid z)\big] - \mathbb{E}_{q(z \mid x)}\left[\log \frac{q(z \mid x)}{p(z)}\right] && \text{sorted} \\
# &= \underbrace{\mathbb{E}_{q(z \mid x)}\big[\log p(x \mid z)\big]}_{\text{reconstruction}}
# - \underbrace{\mathrm{KL}\big(q(z \mid x)\,\|\,p(z)\big)}_{\text{distance from the prior}} && \text{definition of KL}
# \end{aligned}
# $$
#
# *Jensen* says that the logarithm of a mean is at least the mean of the logarithms, because the curve of the logarithm lies above its chords;
# the two are equal exactly when the weight does not vary. The last line is the **evidence lower bound**, ELBO (Kingma and Welling 2014,
# equation 3): draw z near x's own place, ask how well the decoder explains x from there, and pay for having been told where to look.
#
# **The gap, exactly.** The second way to the same bound uses no inequality. How far is q from the posterior?
#
# $$
# \begin{aligned}
# \mathrm{KL}\big(q(z \mid x)\,\|\,p(z \mid x)\big) &= \mathbb{E}_q\big[\log q(z \mid x) - \log p(z \mid x)\big] && \text{definition} \\
# &= \mathbb{E}_q\big[\log q(z \mid x) - \log p(x, z) + \log p(x)\big] && p(z \mid x) = p(x, z) / p(x) \\
# &= \log p(x) - \mathbb{E}_q\left[\log \frac{p(x, z)}{q(z \mid x)}\right] && \log p(x) \text{ does not depend on } z \\
# &= \log p(x) - \mathrm{ELBO}.
# \end{aligned}
# $$
#
# A KL divergence is never negative, so the bound is one; and what it lacks is exactly KL(q‖p(z|x)). Raising the ELBO does two things at once:
# the decoder makes the images more probable, and the encoder comes nearer to the posterior. In probabilistic PCA both sides can be measured. With
# q as wide as the posterior times c, the KL in closed form is d·½(c² − 1 − log c²):

# %%
for width in (1.0, 1.2, 1.5, 2.0):
    log_w = log_importance_weights(width, samples=500)
    gap = (exact - log_w.mean(0)).mean().item()  # log p(x) − ELBO
    formula = 16 * 0.5 * (width**2 - 1 - math.log(width**2))
    print(f"{width:.1f} times as wide: gap {gap:7.3f}, KL(q‖posterior) {formula:7.3f} nats")

# %% [markdown]
# **Often written, not so.** Two slips of one of the source reports:
#
# * It minimises `L = log p(x|z) + …`. The bound is to be *maximised*; the loss is its negative, −log p(x|z) + KL.
# * It writes the last term KL(ln q(z) ‖ ln p(z)). A KL divergence compares two distributions, and the logarithms are inside it already; ln q is no
#   distribution.
#
# ## Build: drawing a latent that a gradient can pass
# The encoder gives two numbers for each latent number: the mean μ and the *logarithm of the variance*, s = log σ². The logarithm may be
# any real number, so the network needs no constraint, and exp(s) is positive. The reconstruction term is an expectation over z ~ N(μ, σ²), and its
# gradient with respect to μ and s is wanted. But a drawn number has none:

# %% tags=["nbval-check-output"]
mean = torch.tensor([0.5], requires_grad=True)
drawn = torch.distributions.Normal(mean, 1.0).sample()
print("a drawn number has a gradient:", drawn.requires_grad)

# %% [markdown]
# The cure (Kingma and Welling 2014, section 2.4): draw ε from N(0, 1), which depends on nothing, and *compute* z = μ + σ·ε. The randomness is now an
# input, and z is an ordinary function of μ and s.
#
# ### Exercise 2.1 · reparameterisation  (easy, 5 minutes)
# The noise is passed in, so that there is one right answer. It has the shape of the mean: each image, and each latent number, gets its own.
#
# <details><summary>Hint</summary>The standard deviation is the root of the variance exp(s): exp(s / 2).</details>


# %%
def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """All three (B, *latent) -> a draw from N(mean, exp(log_variance)), (B, *latent)."""
    ### BEGIN SOLUTION
    standard_deviation = torch.exp(0.5 * log_variance)
    return mean + standard_deviation * noise
    ### END SOLUTION


reparameterize = check(reparameterize)

# %% [markdown]
# Does the gradient through single draws point, on average, where the gradient of the expectation does? For z ~ N(μ, σ²), E[z²] = μ² + σ², with derivatives
# 2μ and (with respect to s) σ²:

# %%
mean = torch.full((100_000,), 0.7, requires_grad=True)
log_variance = torch.full((100_000,), -1.0, requires_grad=True)
noise = torch.randn(100_000, generator=torch.Generator().manual_seed(session.seed))
reparameterize(mean, log_variance, noise).square().sum().backward()
print(f"by μ: {mean.grad.mean():.3f}, exact {2 * 0.7:.3f}")
print(f"by s: {log_variance.grad.mean():.3f}, exact {math.exp(-1):.3f}")

# %% [markdown]
# ## Build: the KL term
# The encoder's q is a normal distribution for each latent number, and so is the prior; their KL divergence is an integral that can be done. For one
# number, with z = μ + σε:
#
# $$
# \begin{aligned}
# \mathrm{KL} &= \mathbb{E}_q\big[\log q(z) - \log p(z)\big] \\
# &= \mathbb{E}_q\left[-\tfrac12\log(2\pi\sigma^2) - \frac{(z - \mu)^2}{2\sigma^2} + \tfrac12\log(2\pi) + \frac{z^2}{2}\right] && \text{the two densities} \\
# &= -\tfrac12\log\sigma^2 - \tfrac12\,\mathbb{E}_q\left[\frac{(z - \mu)^2}{\sigma^2}\right] + \tfrac12\,\mathbb{E}_q\big[z^2\big] && 2\pi \text{ cancels} \\
# &= -\tfrac12\log\sigma^2 - \tfrac12 + \tfrac12\big(\mu^2 + \sigma^2\big) && \mathbb{E}[\varepsilon^2] = 1,\; \mathbb{E}[z^2] = \mu^2 + \sigma^2 \\
# &= \tfrac12\big(\mu^2 + \sigma^2 - 1 - \log\sigma^2\big).
# \end{aligned}
# $$
#
# The latent numbers are independent under both, so the KL of an image is the sum over its latent numbers.
#
# ### Exercise 2.2 · KL divergence  (easy, 5 minutes)
# Give the KL of *each* latent number; the sum is taken later, because we will want to see them one by one.
#
# <details><summary>Hint</summary>log σ² is <code>log_variance</code> as it comes; σ² is its exponential.</details>


# %%
def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Both (B, *latent) -> KL(N(mean, variance) ‖ N(0, 1)) in nats, (B, *latent)."""
    ### BEGIN SOLUTION
    variance = log_variance.exp()
    return 0.5 * (mean.square() + variance - 1 - log_variance)
    ### END SOLUTION


kl_divergence = check(kl_divergence)

# %% tags=["nbval-check-output"]
mean, log_variance = torch.linspace(-2, 2, 9), torch.linspace(1, -3, 9)
posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
by_torch = torch.distributions.kl_divergence(
    posterior, torch.distributions.Normal(0.0, 1.0)
)
print(
    "as torch.distributions has it:",
    torch.allclose(kl_divergence(mean, log_variance), by_torch, atol=1e-6),
)
print("KL of the prior from itself:", kl_divergence(torch.zeros(1), torch.zeros(1)).item())

# %% [markdown]
# ### Exercise 2.3 · the ELBO  (easy, 10 minutes)
# Put the two terms together, in **nats per image**: log p(x|z) is a *sum* over the pixels (a product of probabilities), the KL is a *sum* over the
# latents, and only over the images of the batch is there a mean. `log_likelihood` may come pixel by pixel or summed already.
#
# <details><summary>Hint</summary><code>values.reshape(len(values), -1).sum(1)</code> gives one number an image whatever the shape.</details>


# %%
def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """log_likelihood: (B,) or (B, *pixels), kl: (B,) or (B, *latent) -> scalar, in nats."""
    ### BEGIN SOLUTION
    reconstruction = log_likelihood.reshape(len(log_likelihood), -1).sum(1)  # (B,)
    distance = kl.reshape(len(kl), -1).sum(1)  # (B,)
    return (reconstruction - distance).mean()
    ### END SOLUTION


elbo = check(elbo)

# %% [markdown]
# ## Build: likelihoods, and which data wants which
# What is p(x|z)? The decoder gives numbers; the likelihood says what they mean. An image here is made of grey values 0, 1/255, …, 1, so a likelihood of a
# pixel should be a distribution **over these 256 values**. That can be tested: the 256 probabilities have to sum to one.
#
# **Bernoulli.** The decoder gives p, the probability that the pixel is 1 rather than 0: log p(x|z) = x·log p + (1 − x)·log(1 − p). For x = 0 and x = 1
# that is a distribution. Many a tutorial feeds it grey values as well; `Bernoulli(relaxed=True)` does so here (`Bernoulli()` refuses). What are the sums?

# %% tags=["nbval-check-output"]
grey = torch.arange(256) / 255
as_images = grey.reshape(256, 1, 1, 1)
for p in (0.5, 0.9, 0.999):
    logit = torch.tensor(p).logit().expand(256, 1, 1, 1)
    probabilities = Bernoulli(relaxed=True).log_prob(logit, as_images).exp()
    print(f"p = {p}: 'probabilities' of 256 grey values sum to {probabilities.sum():.0f}")

# %%
p_axis = torch.linspace(0.001, 0.999, 199)
logits = p_axis.logit()[:, None]
sums = (
    grey * functional.logsigmoid(logits) + (1 - grey) * functional.logsigmoid(-logits)
).exp()
fig, (left, right) = plots.figure(9, 2.9, columns=2)
for p, style, colour in (
    (0.5, "-", "reference"),
    (0.9, "--", "train"),
    (0.999, ":", "validation"),
):
    values = torch.tensor(p).log() * grey + torch.tensor(1 - p).log() * (1 - grey)
    left.plot(grey, values.exp(), style, color=plots.COLOURS[colour], label=f"p = {p}")
left.set(
    xlabel="grey value x", ylabel=r"$p^x (1-p)^{1-x}$", title="No peak between 0 and 1"
)
left.legend()
right.plot(p_axis, sums.sum(1), color=plots.COLOURS["train"])
right.axhline(1, color="black", linewidth=0.8)
right.text(0.5, 4, "a distribution would sum to 1", ha="center")
right.set(
    xlabel="p", ylabel="sum over 256 values", title="Not a distribution", ylim=(0, None)
)
plots.show(
    fig,
    alt="Left: the cross-entropy's exponential over the grey values for three p; it rises "
    "or falls steadily and never peaks in between. Right: its sum over the 256 values "
    "against p, 128 at one half and falling to about 37 at the ends, far above the line"
    " at 1.",
)

# %% [markdown]
# **Often written, not so.** One of the source reports calls the Bernoulli "a natural choice" for grey images such as MNIST. On grey values it is no
# distribution over them: for p between 0.001 and 0.999 it hands out 37 to 128 times too much probability, by an amount that depends on p, so training
# is rewarded for the missing normaliser too (Loaiza-Ganem and Cunningham 2019 compute it). As a *loss* it does make pictures, though on MNIST, trained
# briefly, its mean images lie further from the originals than a Gaussian's ([measured](../experiments/README.md#likelihood)); as a term of a bound on
# log p(x) it means nothing.
#
# **Gaussian.** x ~ N(x̂, σ²) with the decoder's x̂ and one σ for all pixels. Its logarithm is the squared error in other clothes:
#
# $$\log p(x \mid z) = -\frac{\lVert x - \hat x \rVert^2}{2\sigma^2} - n\log\sigma - \tfrac n2\log 2\pi \qquad (n \text{ pixels}).$$
#
# Here is the exchange rate between the two terms of the ELBO: **one nat of KL pays for 2σ² of squared error.** Multiply −ELBO by σ² and it reads
# ½‖x − x̂‖² + σ² KL: a weight β_KL on the KL term and a larger σ are the same thing (β-VAE with σ trains as σ·√β_KL does). σ is no detail; with σ =
# 1, one nat pays for 2 units of squared error, and what is to be explained in a whole digit is some 40 (measured below). If σ is learnt along with
# the rest, the best σ² is the mean squared error (set the derivative by σ to zero), and nothing has to be chosen (Rybkin et al. 2021). That is what
# we do.
#
# A density is no probability: with a small σ it exceeds 1. To compare it with discrete likelihoods, take the mass of the **bin** around each
# grey value, from half a step below to half a step above, the first and the last bin open to −∞ and +∞:

# %% tags=["nbval-check-output"]
for mean, scale in ((0.5, 0.1), (0.02, 0.1), (1.3, 0.01)):
    log_mass = discretized_gaussian(grey, torch.tensor(mean), torch.tensor(scale).log())
    density = torch.distributions.Normal(mean, scale).log_prob(torch.tensor(mean)).exp()
    print(
        f"mean {mean}, scale {scale}: densities up to {density:.1f},",
        f"masses sum to {log_mass.double().exp().sum():.4f}",
    )

# %% [markdown]
# **Categorical.** 256 logits a pixel, one for each value. Any shape can be learnt, and nothing is known beforehand: that 7 lies beside 8 has to be
# learnt too.
#
# **Discretised logistic mixture** (Salimans et al. 2017, PixelCNN++, equation 2). K bell curves a pixel, each with weight, mean and scale, and the
# mass of the bin under their mixture. The bell is the *logistic* distribution, whose cumulative distribution is the sigmoid σ((x − mean)/scale), so
# that masses are differences of two sigmoids. (Here every channel stands alone; PixelCNN++ couples the three colours.)
#
# ### Exercise 2.4 · the log-mass of a bin  (medium, 20 minutes)
# One component. With A = (x − 1/510 − mean)/scale and B = (x + 1/510 − mean)/scale the mass is σ(B) − σ(A); the bin of 0 has no lower edge, so its mass
# is σ(B), and the bin of 1 no upper one: 1 − σ(A) = σ(−A). The obvious code takes a difference and then a logarithm. Far from the mean both sigmoids
# round to the same float32, and the logarithm of 0 ends the training. There is a way without the difference:
#
# $$\sigma(B) - \sigma(A) = \sigma(B)\;\sigma(-A)\;\big(1 - e^{A - B}\big).$$
#
# (Show it on paper; it takes three lines.) Its logarithm is a sum of three tame terms, and B − A = 1/(255·scale) does not even depend on x.
#
# <details><summary>Hint 1</summary><code>functional.logsigmoid(B)</code>; <code>torch.expm1(t)</code> is e^t − 1.</details>
# <details><summary>Hint 2</summary>For the ends: <code>first = x &lt; 1 / 510</code>, and
# <code>torch.where(first, 0.0, …)</code> leaves a factor out.</details>


# %%
def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """x: multiples of 1/255; all three broadcast -> log-mass of x's bin, that shape."""
    ### BEGIN SOLUTION
    above = (x + 1 / 510 - mean) * torch.exp(-log_scale)  # B
    below = (x - 1 / 510 - mean) * torch.exp(-log_scale)  # A
    first, last = x < 1 / 510, x > 1 - 1 / 510
    upper_edge = torch.where(last, 0.0, functional.logsigmoid(above))  # log σ(B)
    lower_edge = torch.where(first, 0.0, functional.logsigmoid(-below))  # log σ(−A)
    width = torch.log(-torch.expm1(-torch.exp(-log_scale) / 255))  # log(1 − e^(A−B))
    return upper_edge + lower_edge + torch.where(first | last, 0.0, width)
    ### END SOLUTION


discretized_logistic = check(discretized_logistic)

# %% tags=["nbval-check-output"]
mean, log_scale = torch.tensor(0.1), torch.tensor(-5.0)
a, b = ((0.8 + half - mean) / log_scale.exp() for half in (-1 / 510, 1 / 510))
print("log of the difference:", torch.log(torch.sigmoid(b) - torch.sigmoid(a)).item())
print(
    "log of the product:   ",
    round(discretized_logistic(grey[204], mean, log_scale).item(), 1),
)
total = discretized_logistic(grey, mean, log_scale).double().exp().sum()
print(f"all 256 masses:        {total:.4f}")

# %%
unexplained = (x_test - x_train.mean(0)).square().flatten(1).sum(1).mean()
print(f"squared error of the mean image, for a test image: {unexplained:.1f}")

# %% [markdown]
# ### One pixel, four likelihoods
# Which one suits these images? Take the pixel that is least often plain black or white, and fit each likelihood to the 256 counts of its values (300
# steps of gradient descent), once for all training images and once for 250 of them. Compare by bits: the mean of −log₂ p over the *test* images' values
# of that pixel.

# %%
values_train = (x_train.flatten(1) * 255).round().long().cpu()
values_test = (x_test.flatten(1) * 255).round().long().cpu()
place = int(((values_train == 0) | (values_train == 255)).sum(0).argmin())


def shares(values: Tensor) -> Tensor:
    """How often each of the 256 values occurs."""
    return torch.bincount(values, minlength=256).float() / len(values)


starts = {
    "Gaussian, in bins": (
        lambda: Gaussian(0.3, binned=True, learn_scale=True),
        torch.tensor([0.5]),
    ),
    "logistic, K = 1": (
        lambda: DiscretizedLogisticMixture(1),
        torch.tensor([0.0, 0.5, -2.0]),
    ),
    "logistic, K = 3": (
        lambda: DiscretizedLogisticMixture(3),
        torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 1.0, -4.0, -1.5, -4.0]),
    ),
    "categorical": (Categorical, torch.zeros(256)),
}


def best_fit(name: str, seen: Tensor) -> tuple[Tensor, int]:
    """log p of the 256 values under the best parameters found, and their number."""
    new, start = starts[name]
    likelihood, params = new(), start.clone().requires_grad_()
    adam = torch.optim.Adam([params, *likelihood.parameters()], lr=0.05)
    for _ in range(settings.steps_pixel):
        every_value = params.reshape(1, -1, 1, 1).expand(256, -1, 1, 1)
        log_p = likelihood.log_prob(every_value, as_images)
        adam.zero_grad()
        (-(seen * log_p).sum()).backward()
        adam.step()
    return log_p.detach(), params.numel() + len(list(likelihood.parameters()))


unseen = shares(values_test[:, place])
fitted = {}
print(f"test bits of one pixel  numbers  250 images  {len(train):,} images")
for name in starts:
    bits = []
    for n in (250, len(train)):
        fitted[name], numbers = best_fit(name, shares(values_train[:n, place]))
        bits.append(-(unseen * fitted[name]).sum().item() / math.log(2))
    print(f"{name:<22}  {numbers:>7}  {bits[0]:>10.2f}  {bits[1]:>13.2f}")

# %%
fig, axes = plots.figure(9.5, 2.9, columns=3, sharey=True)
seen = shares(values_train[:, place])
for ax, name in zip(
    axes, ("Gaussian, in bins", "logistic, K = 3", "categorical"), strict=True
):
    ax.bar(
        range(256),
        seen,
        width=1.0,
        color=plots.COLOURS["reference"],
        alpha=0.35,
        label="training images",
    )
    ax.plot(fitted[name].exp(), color=plots.COLOURS["train"], linewidth=1.3, label="fitted")
    ax.set(title=name, xlabel="grey value, 0 … 255", yscale="log", ylim=(1e-4, 1))
axes[0].set_ylabel("probability")
axes[0].legend(loc="upper center", fontsize=8)
plots.show(
    fig,
    alt="The histogram of one pixel's values over the training images, with a tall bar at "
    "0, one at 255 and a floor between them, three times, each with a fitted "
    "distribution. The wide Gaussian collects what lies outside in the two end bins; "
    "the mixture of three logistics also follows the rise towards 255; the categorical "
    "follows every bar.",
)

# %% [markdown]
# The two open bins let even a single wide bell put mass on black and white; three bells follow the rest; the categorical follows every bar, which
# helps with many images and hurts with 250. (Its 8.03 is the value after 300 steps, and grows with every further one. Half of the values do not occur
# among 250 images, the best logits give them probability 0, and three in ten test images have such a value. One added to each count would give 6.8.)
# With 10,000 images the differences are small. What they come to in a whole model is measured further down. Which data wants which:
#
# | data | likelihood |
# | --- | --- |
# | two values (binarised digits, masks) | Bernoulli: exact, and one number a pixel |
# | 256 values | discretised logistic mixture: few numbers, knows that neighbouring values are alike, can put mass on 0 and 255 |
# | 256 values and very many images, or few and unordered values (codes!) | categorical |
# | real numbers, or where squared error is what counts | Gaussian with a learnt or a stated σ; reported as the mass of bins |
#
# For *pictures* the Gaussian does well, and its term is the MSE of chapter 01, so that AE and VAE can be compared: it is what we train with.
#
# ## Build: the model
# The encoder of chapter 01 with twice as many outputs, its decoder as it was, and the three functions from above:


# %%
class VAE(nn.Module):
    """Encoder to q(z|x), a draw, decoder to p(x|z); the result has names."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        if noise is None:
            noise = torch.randn_like(mean)  # (B, d): its own for every image
        z = reparameterize(mean, log_variance, noise)
        params = self.decoder(z)
        log_likelihood = self.likelihood.log_prob(params, x)  # (B,), summed over pixels
        kl = kl_divergence(mean, log_variance)  # (B, d)
        bound = elbo(log_likelihood, kl)
        return VAEOutput(
            reconstruction=self.likelihood.mean(params),
            mean=mean,
            log_variance=log_variance,
            z=z,
            kl_per_dimension=kl.detach().mean(0),
            loss=-bound,
            elbo=bound,
            log_likelihood=log_likelihood.mean(),
            kl=kl.sum(1).mean(),
        )


def new_vae(d: int, likelihood: nn.Module | None = None) -> VAE:
    """An untrained VAE with d latent numbers; same seed, same one."""
    torch.manual_seed(session.seed)
    encoder = companion.Encoder(2 * d, in_channels=channels, image_size=size)
    decoder = companion.Decoder(d, out_channels=channels, image_size=size)
    return VAE(encoder, decoder, likelihood or Gaussian(0.2, learn_scale=True)).to(device)


def train_model(model: nn.Module, epochs: int) -> companion.History:
    return companion.fit(
        model,
        train,
        validation=test,
        epochs=epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=session.seed,
        device=device,
    )


# %% [markdown]
# ## Train and look: the plane
# First with d = 2, so that the latent space can be drawn, and with a stated scale, σ = 0.5: one nat of KL pays for half a unit of squared error, dear
# enough that prior and posteriors come to fit. The loss is −ELBO in nats per image; it is that of a density, so it might well be negative.

# %%
vae_2 = new_vae(2, Gaussian(0.5))
history_2 = train_model(vae_2, settings.epochs_plane)
history_2

# %%
fig, (left, right) = plots.figure(8.5, 2.8, columns=2)
epochs = [row["epoch"] for row in history_2.rows]
for ax, term, title in ((left, "log_likelihood", "log p(x|z)"), (right, "kl", "KL(q ‖ p)")):
    for prefix, colour, style in (
        ("", "train", "-o"),
        ("validation_", "validation", "--s"),
    ):
        values = [row[prefix + term] for row in history_2.rows]
        label = "validation" if prefix else "training"
        ax.plot(
            epochs, values, style, color=plots.COLOURS[colour], markersize=3, label=label
        )
    ax.set(xlabel="epoch", ylabel="nats per image", title=title)
left.legend()
plots.show(
    fig,
    alt="The two terms of the ELBO over the epochs of training: the log-likelihood rises "
    "steeply, then slowly; the KL rises too, to four or five nats.",
)

# %% tags=["cover"]
with torch.no_grad():
    mean_train = torch.cat([vae_2(x).mean for x in x_train.split(1000)])
quantiles = torch.linspace(0.02, 0.98, 14, device=device)
steps = torch.special.ndtri(quantiles)  # equal shares of the prior between neighbours
across, down = torch.meshgrid(steps, steps.flip(0), indexing="xy")  # top row: largest z₂
with torch.no_grad():
    decoded = vae_2.decoder(torch.stack([across.flatten(), down.flatten()], 1))
sheet = decoded.clamp(0, 1).unflatten(0, (14, 14)).permute(2, 0, 3, 1, 4)
sheet = sheet.flatten(3).flatten(1, 2)

fig, (left, right) = plots.figure(9.5, 4.4, columns=2, width_ratios=(1.1, 1))
plots.class_scatter(left, mean_train, y_train, train.classes)
angle = torch.linspace(0, 2 * math.pi, 200)
for radius, share in (
    (1.177, "50 %"),
    (2.448, "95 %"),
):  # of a standard normal in the plane
    left.plot(radius * angle.cos(), radius * angle.sin(), color="black", linewidth=0.9)
    left.text(0, radius, share, ha="center", va="bottom", fontsize=8)
left.set(
    xlabel="$z_1$",
    ylabel="$z_2$",
    title="Posterior means, and the prior's circles",
    xlim=(-3.5, 3.5),
    ylim=(-3.5, 3.5),
    aspect="equal",
)
plots.draw_image(right, sheet)
right.set_title("The decoder on equally probable points")
plots.show(
    fig,
    alt="Left: the latent plane with every training image as a point at its posterior mean,"
    " coloured by class, over two circles that hold 50 and 95 per cent of a standard "
    "normal distribution. Right: the decoder on a 14 by 14 grid of normal quantiles: "
    "soft digits that change gradually into one another.",
)

# %%
inside = (mean_train.square().sum(1) < 2.448**2).float().mean()
session.expect("inside_95_circle", inside)
print("mean of the posterior means:", [round(v, 2) for v in mean_train.mean(0).tolist()])
print("their standard deviations:  ", [round(v, 2) for v in mean_train.std(0).tolist()])

# %% [markdown]
# Compare with the plane of chapter 01: there the points lay where the autoencoder had happened to put them, at any distance from 0 and with any
# spread. Here they gather in the prior's circles, about as far spread as it is: whoever draws from N(0, I) mostly lands among them. That is what the
# KL term pays for. The fit is good and not perfect: 0, 6, 8 and 9 share one region; look also for the places inside the circles that no digit
# took, and for what the decoder makes of them.
#
# ## Train and look: sixteen numbers, beside the autoencoder
# The same for d = 16, and an autoencoder of the same size beside it: the same layers, steps and batches, the MSE as its loss.

# %%
print("autoencoder, d = 16")
torch.manual_seed(session.seed)
autoencoder = companion.Autoencoder(
    companion.Encoder(16, in_channels=channels, image_size=size),
    companion.Decoder(16, out_channels=channels, image_size=size),
).to(device)
train_model(autoencoder, settings.epochs)
print("VAE, d = 16")
vae_16 = new_vae(16)
history_16 = train_model(vae_16, settings.epochs)
history_16

# %% [markdown]
# The stated measure of sharpness is **edge energy**: the summed squared differences between neighbouring pixels, relative to that of the original
# test images. Blur lowers it. The VAE's reconstructions are looked at twice: decoded from the posterior's mean, and from a *draw*, which is what the
# decoder saw in training.


# %%
def edge_energy(images: Tensor) -> float:
    """Squared differences between neighbouring pixels, summed; mean over the images."""
    down, right = images.diff(dim=2).square(), images.diff(dim=3).square()
    return (down.sum() + right.sum()).item() / len(images)


def sharpness(images: Tensor) -> float:
    """Edge energy relative to that of the original test images."""
    return edge_energy(images) / edge_energy(x_test)


n = min(1000, len(test))
generator = torch.Generator().manual_seed(session.seed)
with torch.no_grad():
    from_mean = vae_16.decoder(vae_16(x_test).mean)
    torch.manual_seed(session.seed)
    from_draw = vae_16(x_test).reconstruction
    rebuilt = {
        "AE": autoencoder(x_test).reconstruction.clamp(0, 1),
        "VAE, z the mean": from_mean.clamp(0, 1),
        "VAE, z drawn": from_draw.clamp(0, 1),
    }
    z_16, z_2 = (torch.randn(n, d, generator=generator).to(device) for d in (16, 2))
    generated = {
        "AE, d = 16": autoencoder.decoder(z_16).clamp(0, 1),
        "VAE, d = 16": vae_16.decoder(z_16).clamp(0, 1),
        "VAE, d = 2": vae_2.decoder(z_2).clamp(0, 1),
    }
print(f"{'reconstructions':<18} distortion  edge energy")
for name, images in rebuilt.items():
    d_test = distortion(mse(images, x_test).item(), variance)
    print(f"{name:<18} {d_test:>10.3f}  {sharpness(images):>11.2f}")
print("new images")
for name, images in generated.items():
    print(f"{name:<18} {'':>10}  {sharpness(images):>11.2f}")

# %%
session.expect("distortion_ae", distortion(mse(rebuilt["AE"], x_test).item(), variance))
vae_distortion = distortion(mse(rebuilt["VAE, z the mean"], x_test).item(), variance)
session.expect("distortion_vae", vae_distortion)
session.expect("sharpness_ae", sharpness(rebuilt["AE"]))
session.expect("sharpness_vae", sharpness(rebuilt["VAE, z the mean"]))
session.expect(
    "sharpness_vae_over_ae",
    sharpness(rebuilt["VAE, z the mean"]) / sharpness(rebuilt["AE"]),
)
session.expect("sharpness_drawn", sharpness(rebuilt["VAE, z drawn"]))
session.expect("sharpness_generated", sharpness(generated["VAE, d = 16"]))

# %%
plots.show(
    plots.image_rows(
        {"x": x_test[:12]} | {name: images[:12] for name, images in rebuilt.items()},
        title="Rebuilt from sixteen numbers: which row is the autoencoder's?",
    ),
    alt="Four rows of the same twelve test digits: originals; the autoencoder's "
    "reconstructions, softer; the VAE's from the posterior mean and from a draw, hardly"
    " to be told from the autoencoder's.",
)

# %% [markdown]
# One pair of trainings proves little. Here are five seeds of each, with the same first weights and batches within a seed, and the interval of the
# paired difference:

# %%
sweep = results("vae_beta")
edges = {
    name: torch.tensor(sweep.values("sharpness", images="grey", decoder=decoder, beta=beta))
    for name, decoder, beta in (
        ("autoencoder", "autoencoder", 0.0),
        ("VAE, σ = 0.1", "convolutional", 1.0),
        ("VAE, σ learnt", "convolutional, scale learnt", 1.0),
    )
}
for name, values in edges.items():
    line = f"{name:<14} edge energy {values.mean():.3f}"
    if name != "autoencoder":
        difference = values - edges["autoencoder"]
        margin = 2.776 * difference.std() / len(difference) ** 0.5  # Student's t, 95 %
        line += f", minus the autoencoder's {difference.mean():+.3f} ± {margin:.3f}"
    print(line)

# %% [markdown]
# Compare with your three numbers. Reconstructions keep about 60 of 100 units. Five seeds show no difference between autoencoder and VAE: both intervals
# hold 0, and leave room for 8 units either way. Within one VAE it makes no difference whether z is the mean or a draw. New images keep about a third,
# 36 here. (Edge energy is no measure of digits: the autoencoder's tangles, further down, keep 55.) So the blur of *reconstructions* does not come from
# the drawing: it is there in the autoencoder, which draws nothing. It comes from the squared error with a code too small for the image, which both
# have: what the code does not say, the decoder answers with the mean (chapter 01).
#
# **Often written, not so.** "The averaging effect": that a VAE blurs *because* its latents are drawn. At the scale that training chooses (σ is
# printed below), the draws are so tight that they cost next to nothing. The effect is real where the draws of different images overlap, which is a
# matter of the exchange rate: the sweep further down blurs reconstructions by raising β_KL. And the *new* images are blurrier, by far; for another
# reason.
#
# ### New images, and what is wrong with them
# The distance to the nearest training image, as in chapter 01, beside that of held-out images after the same autoencoder:


# %%
def nearest_training(images: Tensor) -> float:
    """Mean squared distance per pixel to the nearest training image, over the variance."""
    distances = torch.cdist(images.flatten(1), x_train.flatten(1)).amin(1)
    return distances.square().mean().item() / pixels / variance


distance = {name: nearest_training(images) for name, images in generated.items()}
distance["all black"] = nearest_training(torch.zeros_like(x_test[:n]))
distance["held-out, rebuilt"] = nearest_training(rebuilt["VAE, z the mean"][:n])
for name, value in distance.items():
    print(f"{name:<18} {value:.3f} from the nearest training image")
session.expect("distance_vae_16", distance["VAE, d = 16"])
session.expect("distance_vae_2", distance["VAE, d = 2"])
session.expect("distance_rebuilt", distance["held-out, rebuilt"])

# %%
rows = {name: images[:12] for name, images in generated.items()}
with torch.no_grad():
    params = vae_16.decoder(z_16[:12])
    rows["VAE 16, x drawn"] = vae_16.likelihood.sample(params).clamp(0, 1)
plots.show(
    plots.image_rows(rows, title="Drawn from N(0, I)"),
    alt="Four rows of twelve new images from N(0, I): the autoencoder's are tangles; those "
    "of the VAE with 16 numbers are blurred shapes with a digit here and there; those "
    "of the VAE with 2 numbers are soft but mostly readable digits; the last row is the"
    " second one with the grain of the likelihood's noise.",
)

# %% [markdown]
# (The last row is an honest sample: x drawn from p(x|z), with the likelihood's noise. What papers print is nearly always the third step left out, the
# mean of p(x|z), as in the rows above it.)
#
# With two numbers, N(0, I) gives digits, near to training images. With sixteen it gives blurred tangles. Why, when the KL term is there to prevent
# it? Because its price is small beside 784 pixels. Look at what the KL term is, averaged over the N training images (Hoffman and Johnson 2016):
#
# $$\frac1N\sum_i \mathrm{KL}\big(q(z \mid x_i)\,\|\,p(z)\big) = I(i; z) + \mathrm{KL}\big(q(z)\,\|\,p(z)\big), \qquad q(z) = \frac1N\sum_i q(z \mid x_i).$$
#
# The first part is how much z says about *which image* it was, and it cannot exceed log N, the entropy of i. The second is how far all posteriors
# *together* are from the prior: samples suffer from that one. So whatever the KL has above log N is mismatch, for certain:

# %%
with torch.no_grad():
    for d, model in ((2, vae_2), (16, vae_16)):
        outs = [model(x) for x in x_train.split(1000)]
        kl = sum(out.kl.item() * len(out.mean) for out in outs) / len(x_train)
        surplus = kl - math.log(len(x_train))
        print(
            f"d = {d:>2}: KL {kl:5.1f} nats, log N {math.log(len(x_train)):.1f},",
            f"so KL(q(z) ‖ p(z)) is at least {max(surplus, 0):.1f} nats;",
            f"σ = {model.likelihood.scale.item():.3f}",
        )
        session.expect(f"kl_{d}", kl)

# %% [markdown]
# The plane spends fewer nats than log N, so here nothing is proved, and the picture above shows a fair fit. The sixteen numbers spend tens of nats
# more than it takes to tell all training images apart. So tight are their posteriors that the region in which they lie holds, roughly, a share of
# e^(−KL(q(z)‖p(z))) of the prior: a draw from N(0, I) falls *between* them, in places for which the decoder never trained, and there it answers with
# mixtures. That is the blur of the new images. Two cures: a dearer KL (below), or a prior that is learnt afterwards, as the mixture of Gaussians in
# chapter 01 and, from [chapter 07](07_transformer_prior.ipynb) on, a transformer.
#
# ## A tighter bound
# The ELBO is the mean of log w; with several draws z₁ … z_S from q, the logarithm of the mean weight lies higher, and still below log p(x) in
# expectation (Burda et al. 2016, theorem 1):
#
# $$\mathcal{L}_S = \mathbb{E}\left[\log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s \mid x)}\right], \qquad
# \mathrm{ELBO} = \mathcal{L}_1 \le \mathcal{L}_{10} \le \mathcal{L}_{100} \le \dots \le \log p(x).$$
#
# It uses the encoder as a guide only, so it mends what the encoder gets wrong. It is how VAEs are compared.
#
# ### Exercise 2.5 · the importance-weighted bound  (medium, 10 minutes)
# Given the *logarithms* of the weights, the logarithm of their mean, for each image. Weights of images are like e^(−2000): never leave the logarithms.
#
# <details><summary>Hint</summary><code>torch.logsumexp</code>; and log of a mean is log of a sum minus log S.</details>


# %%
def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log_weights: (samples, B) -> log of the mean weight of each image, (B,)."""
    ### BEGIN SOLUTION
    samples = len(log_weights)
    return torch.logsumexp(log_weights, dim=0) - math.log(samples)
    ### END SOLUTION


importance_weighted_bound = check(importance_weighted_bound)

# %% [markdown]
# For 200 test images and the VAE with d = 16, in the companion's `VAE` (which has `log_weights`), and with the Gaussian as the mass of bins, so that
# the result can be read as bits per pixel:

# %%
binned = Gaussian(vae_16.likelihood.scale.item(), binned=True)
vae_binned = companion.VAE(vae_16.encoder, vae_16.decoder, binned).to(device).eval()
generator = torch.Generator(device).manual_seed(session.seed)
log_w = vae_binned.log_weights(x_test[:200], 100, generator=generator)  # (100, images)
bound = {}
for s in (1, 10, 100):
    groups = log_w.reshape(-1, s, log_w.shape[1]).transpose(0, 1).flatten(1)
    bound[s] = importance_weighted_bound(groups).mean()  # of 100 / s groups an image
    bits = bits_per_dimension(bound[s], pixels)
    print(f"S = {s:>3}: {bound[s]:>8.1f} nats, {bits:.3f} bits per pixel")
session.expect("bound_gain_10", bound[10] - bound[1])
session.expect("bound_gain_100", bound[100] - bound[1])
session.expect("bits_per_pixel", bits)

# %% [markdown]
# The bound rises with S, as it must: what is gained is a part of the gap KL(q‖p(z|x)) of this encoder on images it never saw.
#
# Are these bits few? As a yardstick take a model without any latent: every pixel drawn on its own from the histogram of its values over the training
# images (one added to each count, so that none is 0).

# %%
table = torch.stack([torch.bincount(v, minlength=256) for v in values_train.T]) + 1.0
table = table.log() - table.sum(1, keepdim=True).log()  # (pixels, 256): log p of each value
log_p = table.gather(1, values_test.T).sum(0)  # (test images,)
baseline = bits_per_dimension(log_p.mean(), pixels).item()
print(f"no latent, a histogram for each pixel: {baseline:.3f} bits per pixel")
for mean in (0.0, -0.3):
    log_mass = discretized_gaussian(
        torch.zeros(1), torch.tensor(mean), torch.tensor(0.1).log()
    )
    bits = -log_mass.item() / math.log(2)
    print(f"bits for a black pixel, Gaussian around {mean:+.1f} with σ = 0.1: {bits:.3f}")

# %% [markdown]
# The histograms need fewer bits, though they cannot draw a single digit! The reason is the black background, four fifths of all pixels. Around a mean
# of 0 half of a Gaussian lies above the bin of 0, so every black pixel costs a bit; a mean of −0.3 would cost nothing, but the *density* that we
# trained on rewards a mean of exactly 0. **A model is good at what it was trained for**: whoever wants bits has to train with the likelihood by which
# they are counted. The same networks with four likelihoods, five seeds each (the categorical one, slow with 256 decoder channels, for one), ten
# samples in the bound:

# %%
by_likelihood = results("vae_likelihood")
print(by_likelihood.command)
for name in by_likelihood.settings("likelihood"):
    values = by_likelihood.values("bits_10_samples", likelihood=name)
    low, high = min(values), max(values)
    print(f"{name:<24} {sum(values) / len(values):.3f} bits ({low:.3f} to {high:.3f})")

# %% [markdown]
# Trained on the mass of its bins, the same Gaussian needs little more than half of the bits, and less than the histograms: its decoder is free to
# answer black with a mean well below 0, where that costs nothing. The mixture of three logistics is a little better still, with nine decoder channels
# for one. The categorical has the freest shape and 256 channels, and after these few epochs it is behind both: what neighbouring values have in common
# it has yet to learn. So most of what looks like a better likelihood is the right objective.
#
# **On real digits.** Claims of the source reports are measured on real images too, by experiments whose comparisons and effect sizes were written down
# before they ran. A claim holds if the whole 95 % interval over the seeds lies beyond what would matter, does not hold if none of it does, and is not
# decided otherwise; positive differences are as claimed. [experiments/README.md](../experiments/README.md#likelihood) has the command of each row.

# %% tags=["nbval-check-output"]
measured_claims("Likelihood")

# %% [markdown]
# ## Posterior collapse
# The ELBO can be raised in a dull way: encode nothing. If q(z|x) = N(0, I) for every x, the KL is 0, and the decoder does what it can without z. That
# is **posterior collapse**. It shows in two numbers:
#
# * **KL per dimension**: the mean over the data of each latent number's KL. A dimension at 0 says nothing.
# * **Active units** (Burda et al. 2016, section 5.2): how many latent numbers have a posterior mean whose variance over the data exceeds 0.01.
#
# Two ways into it. The first is **a dear KL**: the loss −log p(x|z) + β_KL · KL with a large β_KL. The sweep below trained a VAE with d = 16 and σ =
# 0.1 for each β_KL with five seeds (± in the tables and the bars in the figure: standard deviation over the seeds); it was run by

# %%
print(sweep.command)
grey_cells = {"images": "grey", "decoder": "convolutional"}
betas = sorted({row["beta"] for row in sweep.rows if grey_cells.items() <= row.items()})
names = {
    "kl": "KL",
    "active_units": "active",
    "distortion": "distortion",
    "sharpness": "edges, rebuilt",
    "sharpness_samples": "edges, new",
    "sample_distance": "distance, new",
}
print("β_KL    " + "  ".join(f"{label:>14}" for label in names.values()))
for beta in betas:
    cells = [
        (
            sweep.mean(name, **grey_cells, beta=beta),
            sweep.spread(name, **grey_cells, beta=beta),
        )
        for name in names
    ]
    print(
        f"{beta:<7g} "
        + "  ".join(f"{mean:>7.3g} ±{spread:>5.2g}" for mean, spread in cells)
    )

# %%
fig, (left, right) = plots.figure(9.5, 3.3, columns=2)
markers = ("o", "s", "D", "^", "v", "P", "X")
shades = torch.linspace(0, 0.75, len(betas)).tolist()
for beta, marker, shade in zip(betas, markers, shades, strict=False):
    bars = torch.tensor(sweep.values("kl_per_dimension", **grey_cells, beta=beta)).mean(0)
    style = {"marker": marker, "color": str(shade), "markersize": 4, "linewidth": 0.9}
    left.plot(range(1, 17), bars.clamp_min(1e-3), **style, label=f"{beta:g}")
left.legend(
    title="β_KL", fontsize=8, title_fontsize=8, bbox_to_anchor=(1, 1), loc="upper left"
)
left.set(
    xlabel="latent number, the most used first",
    xticks=(1, 4, 8, 12, 16),
    ylabel="KL (nats)",
    yscale="log",
    title="A dear KL silences latents",
)
for name, style, colour in (
    ("sharpness", "o-", "train"),
    ("sharpness_samples", "s--", "validation"),
):
    means = [sweep.mean(name, **grey_cells, beta=beta) for beta in betas]
    spreads = [sweep.spread(name, **grey_cells, beta=beta) for beta in betas]
    label = {"sharpness": "rebuilt", "sharpness_samples": "new images"}[name]
    right.errorbar(
        betas, means, spreads, fmt=style, color=plots.COLOURS[colour], label=label
    )
right.set(
    xlabel="β_KL",
    ylabel="edge energy",
    xscale="log",
    ylim=(0, None),
    title="Rebuilt images blur, new ones gain",
)
right.legend()
plots.show(
    fig,
    alt="Left: KL of each of the sixteen latent numbers, sorted, for each weight of the KL "
    "term: four to five nats each at the smallest weight, from half a nat down to half a "
    "hundredth at 256, nothing at 1024 (drawn at the floor). Right: edge energy against "
    "the weight: of reconstructions it stays near 0.6 up to 4 and then falls; of new "
    "images it rises up to 16 and falls after 64.",
)

# %% [markdown]
# Read it from the left. With a cheap KL the posteriors are tight, reconstructions good and new images bad. Up to β_KL = 16 (which is σ = 0.4 in place
# of 0.1) reconstructions lose little, and new images gain much: prior and posteriors come to fit, and at 64 new images are as sharp as rebuilt ones.
# It is here, and not at the tight end, that the averaging effect blurs reconstructions. At 256 the latents are dying, at 1024 they are dead: KL 0, no
# active unit, and every reconstruction is nearly the mean image.
#
# Note what *active units* miss: at 256 most of the sixteen still count as active, though most carry a hundredth of a nat or two: their means vary a
# little more than 0.01, and the noise drowns it. KL per dimension says more.
#
# ### The second way: a decoder that does not need z
# Let the decoder see the pixels above and to the left of the one it predicts: p(x|z) = ∏ᵢ p(xᵢ | x₁ … xᵢ₋₁, z). Neighbouring pixels say so much about
# each other that little is left for z to say. What is needed is a convolution that cannot look ahead. Take an ordinary one and set to zero the
# weights of its window that lie after its centre in raster order: a **masked convolution** (van den Oord et al. 2016). A first layer masks its own
# centre too (mask A: the pixel to be predicted); later layers may see it (mask B), because what stands there came from earlier pixels only. You will
# meet it again in [chapter 07](07_transformer_prior.ipynb).

# %% tags=["nbval-check-output"]
for letter, centre in (("A", False), ("B", True)):
    print(
        f"mask {letter}:", companion.backbones.raster_mask(3, centre=centre).int().tolist()
    )

# %%
torch.manual_seed(0)
context = companion.Decoder(2, out_channels=8, hidden=4, image_size=12)
pixelwise = companion.AutoregressiveDecoder(context, 1, hidden=8, kernel=5, layers=2)
x = torch.rand(8, 1, 12, 12, requires_grad=True)
logits = pixelwise(torch.randn(8, 2), x)[:, 0]  # (8, 12, 12)
row, column = 6, 5
(gradient,) = torch.autograd.grad(logits[:, row, column].sum(), x)
seen_by_it = gradient.abs().sum((0, 1)) > 0

# %% tags=["nbval-check-output"]
order = torch.arange(144).reshape(12, 12)
print("sees itself or a later pixel:", bool(seen_by_it[order >= order[row, column]].any()))
print("sees its left neighbour:     ", bool(seen_by_it[row, column - 1]))

# %%
fig, axes = plots.figure(7.5, 2.7, columns=3)
panels = {
    "mask A": companion.backbones.raster_mask(5, centre=False),
    "mask B": companion.backbones.raster_mask(5, centre=True),
    "what one logit sees": seen_by_it.float(),
}
for ax, (name, panel) in zip(axes, panels.items(), strict=True):
    plots.draw_image(ax, panel[None] * 0.8)
    ax.set_title(name)
    ax.plot(
        panel.shape[1] // 2 - (name[0] == "w"),
        panel.shape[0] // 2,
        "x",
        color="#D55E00",
        markersize=9,
    )
plots.show(
    fig,
    alt="Three grids with a cross at the position predicted. Mask A: light above and to the"
    " left of the cross. Mask B: the same with the cross itself. What one logit sees, "
    "measured by gradients: a light region above and to the left, nothing at or after "
    "the cross.",
)

# %% [markdown]
# (The region measured above has a bite missing at the upper right: the *blind spot* of stacked masks. The model sees a little less than it might, and
# never too much.)
#
# The same sweep trained both decoders on images with two values (threshold ½) and a Bernoulli likelihood, which is a true probability there, so the
# ELBOs compare:

# %%
print("decoder          β_KL   ELBO (nats)     log p(x|z)             KL     active")
for decoder, beta in (
    ("convolutional", 1.0),
    ("autoregressive", 4.0),
    ("autoregressive", 1.0),
    ("autoregressive", 0.25),
):
    chosen = {"images": "binary", "decoder": decoder, "beta": beta}
    parts = [
        f"{sweep.mean(name, **chosen):>7.1f} ±{sweep.spread(name, **chosen):>4.1f}"
        for name in ("elbo", "log_likelihood", "kl", "active_units")
    ]
    print(f"{decoder:<16} {beta:<6g}" + "  ".join(parts))

# %%
fig, ax = plots.figure(6.2, 2.8)
for decoder, beta, style, colour in (
    ("convolutional", 1.0, "o-", "train"),
    ("autoregressive", 0.25, "D:", "third"),
    ("autoregressive", 1.0, "s--", "validation"),
    ("autoregressive", 4.0, "^-", "reference"),
):
    values = sweep.values("kl_per_dimension", images="binary", decoder=decoder, beta=beta)
    label = f"{decoder}, β_KL = {beta:g}"
    bars = torch.tensor(values).mean(0)
    ax.plot(
        range(1, 17), bars, style, color=plots.COLOURS[colour], markersize=4, label=label
    )
ax.set(
    xlabel="latent number, the most used first",
    xticks=(1, 4, 8, 12, 16),
    ylabel="KL (nats)",
    ylim=(-0.1, 4.4),
    title="A decoder that sees its neighbours leaves z little to say",
)
ax.legend()
plots.show(
    fig,
    alt="KL of each of the sixteen latent numbers, sorted. With the convolutional decoder "
    "one to two nats each; with the autoregressive decoder a fraction of a nat, and "
    "with a KL weight of four nothing at all; with a KL weight of a quarter one to "
    "three nats again.",
)

# %% [markdown]
# With the plain β_KL = 1 the autoregressive decoder lets three quarters of the latents' nats go, and its ELBO is *better* by 17 nats. With β_KL = 4
# all sixteen are dead, and the ELBO, now of a model without latents, still beats the convolutional decoder that uses them. So this collapse is no
# accident of training: by the measure that is trained for, a nat of KL is worth paying only for what the neighbours do not know already. Whoever
# wants latents to *say* something has to ask for it: with a cheaper KL (last row; the ELBO pays 12 nats), with a weaker decoder, or with a code that
# cannot be ignored because its KL is a constant: a discrete one, [chapter 04](04_vq_vae.ipynb).
#
# Note once more the last column: at β_KL = 1 all sixteen count as active. And on real digits? On MNIST the autoregressive decoder leaves next to nothing of
# the latents' nats: [measured](../experiments/README.md#collapse-and-blur).
#
# And the reports' claims about collapse and blur, as [above](../experiments/README.md#collapse-and-blur):

# %% tags=["nbval-check-output"]
measured_claims("Collapse and blur")

# %% [markdown]
# ## Proof: what you built is what the companion has
# The same weights, images and noise go through both. Terms, latents and every gradient must agree.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
parts = companion.Encoder(6), companion.Decoder(3), Gaussian(0.2)
theirs = companion.VAE(*parts)
torch.manual_seed(0)
ours = VAE(companion.Encoder(6), companion.Decoder(3), Gaussian(0.2))
ours.load_state_dict(theirs.state_dict())
x = (torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2
noise = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.7]])

numbers = {}
for name, model in (("notebook", ours), ("companion", theirs)):
    output = model(x, noise=noise)
    output.loss.backward()
    gradient = torch.stack([p.grad.norm() for p in model.parameters()])
    numbers[name] = {
        "z": output.z.flatten().tolist(),
        "terms": [output.loss.item(), output.log_likelihood.item(), output.kl.item()],
        "gradients": gradient.tolist(),
    }
for part in ("z", "terms", "gradients"):
    a, b = (torch.tensor(numbers[name][part]) for name in ("notebook", "companion"))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    print(f"{part:<10} agree:", True)
glue("proof.vae", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
means, log_scales = torch.tensor([0.2, 0.9, -3.0]), torch.tensor([-2.0, -4.0, -1.0])
masses = discretized_logistic(grey[[0, 100, 255], None], means, log_scales)
theirs = companion.likelihoods.discretized_logistic(
    grey[[0, 100, 255], None], means, log_scales
)
torch.testing.assert_close(masses, theirs, rtol=1e-5, atol=1e-6)
print("discretised logistic agrees:", True)
glue("proof.discretized_logistic", masses.flatten().tolist(), display=False)

log_w = torch.tensor([[-2000.0, 3.0], [-2001.0, 1.0], [-1999.5, 2.0]])
bound = importance_weighted_bound(log_w)
torch.testing.assert_close(bound, companion.vae.importance_weighted_bound(log_w))
print("importance-weighted bound agrees:", True)
glue("proof.importance_weighted_bound", bound.tolist(), display=False)

# %% [markdown]
# ## Play: the plane, and the price of a nat
# Move over the latent plane, and zoom in and out with the width: a width of 4 spans the prior, 0.3 a single neighbourhood.

# %%
explorers.latent_grid(vae_2.decoder)

# %% [markdown]
# The slider moves through the sweep: eight draws from N(0, I), always the same z, decoded by the VAE trained with that β_KL, and what each latent
# number gets. Where do digits appear? Where do they become all the same? (The figures above show the sweep's numbers for readers of the printed
# page.)

# %%
explorers.kl_sweep(sweep.rows)

# %% [markdown]
# ## What breaks, and why
# Three mistakes that train without complaint. Each model gets the same few steps as a right one.


# %%
def short_training(model: nn.Module) -> nn.Module:
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    shuffle = torch.Generator().manual_seed(session.seed)
    torch.manual_seed(session.seed)
    for _ in range(settings.steps_short):
        rows = torch.randint(len(train), (settings.batch_size,), generator=shuffle)
        companion.training.train_step(model, adam, train.batch(rows)[0])
    return model.eval()


class MeanReduced(VAE):
    """The reconstruction term as a mean over pixels, the KL as a sum over latents."""

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        right = super().forward(x, noise)
        wrong = right.log_likelihood / x[0].numel() - right.kl
        return VAEOutput(**{**vars(right), "loss": -wrong, "elbo": wrong})


fixed = new_vae(16, Gaussian(0.1))
right_model = short_training(fixed)
torch.manual_seed(session.seed)
mean_reduced = short_training(
    MeanReduced(
        companion.Encoder(32, in_channels=channels, image_size=size),
        companion.Decoder(16, out_channels=channels, image_size=size),
        Gaussian(0.1),
    ).to(device)
)
for name, model in (("sum over pixels", right_model), ("mean over pixels", mean_reduced)):
    with torch.no_grad():
        out = model(x_test)
        d_test = distortion(mse(out.reconstruction, x_test).item(), variance)
    print(f"{name:<17} KL {out.kl.item():7.3f} nats, distortion {d_test:.2f},", end=" ")
    print(f"{active_units(out.mean)} of 16 units active")

# %%
with torch.no_grad():
    shown = {
        "x": x_test[:12],
        "sum": right_model(x_test[:12]).reconstruction,
        "mean": mean_reduced(x_test[:12]).reconstruction,
    }
plots.show(
    plots.image_rows(shown, title="Averaged over pixels: every image becomes the same"),
    alt="Twelve test digits; below them reconstructions by the right model after a short "
    "training, soft but readable; below them those of the model whose reconstruction "
    "term is averaged over pixels: the same grey blob twelve times.",
)

# %% [markdown]
# **A mean over pixels against a sum over latents** divides the reconstruction by 784: it is β_KL = 784 by accident, near the right end of the sweep,
# where the latents are dead. The code looks harmless: `F.mse_loss` as it comes, which averages, beside a KL with `.sum()`. If a VAE gives the same
# picture for every input, look at the reductions first.
#
# **The log-variance read as a standard deviation** in the draw, z = μ + s·ε, while the KL goes on reading it as log σ²:


# %%
class WrongDraw(VAE):
    """z = mean + log_variance · noise; the KL still means exp(log_variance)."""

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        z = mean + log_variance * noise
        params = self.decoder(z)
        log_likelihood, kl = (
            self.likelihood.log_prob(params, x),
            companion.vae.kl_divergence(mean, log_variance),
        )
        bound = companion.vae.elbo(log_likelihood, kl)
        return VAEOutput(
            reconstruction=self.likelihood.mean(params),
            mean=mean,
            log_variance=log_variance,
            z=z,
            kl_per_dimension=kl.detach().mean(0),
            loss=-bound,
            elbo=bound,
            log_likelihood=log_likelihood.mean(),
            kl=kl.sum(1).mean(),
        )


torch.manual_seed(session.seed)
wrong_draw = short_training(
    WrongDraw(
        companion.Encoder(32, in_channels=channels, image_size=size),
        companion.Decoder(16, out_channels=channels, image_size=size),
        Gaussian(0.1),
    ).to(device)
)
with torch.no_grad():
    claimed = wrong_draw(x_test)
    honest = companion.VAE(wrong_draw.encoder, wrong_draw.decoder, Gaussian(0.1)).to(device)
    actual = honest(x_test)
    reference = right_model(x_test)
used, paid = claimed.log_variance.abs().mean(), (0.5 * claimed.log_variance).exp().mean()
print(f"standard deviation drawn with {used:.3f}, paid for as {paid:.3f}")
print(f"the ELBO it reports:         {claimed.elbo:9.1f} nats")
print(f"with draws as paid for:      {actual.elbo:9.1f} nats")
print(f"a right model, same steps:   {reference.elbo:9.1f} nats")

# %% [markdown]
# It finds the loophole: with s near 0 the draw is exact and the KL believes in a standard deviation near 1, for which it charges next to nothing. The
# number reported as a bound bounds nothing: the same networks with draws as paid for are thousands of nats worse. And nobody would notice from the
# loss alone, for it lies near a right model's, now below and now above it, depending on the seed.
#
# **One noise for the whole batch**, `torch.randn(d)` in place of `torch.randn(B, d)`: broadcasting hides it. Each image still sees the right
# distribution, so the gradient is right on average; but all images of a batch make the same error together, and the average over the batch no longer
# evens it out. How much the gradient of one batch scatters over 40 draws:

# %%
x = x_train[: settings.batch_size]
scatter = {}
for name, rows in (("own noise for each image", len(x)), ("one noise for all", 1)):
    generator = torch.Generator().manual_seed(session.seed)
    gradients = []
    for _ in range(40):
        noise = torch.randn(rows, 16, generator=generator).to(device).expand(len(x), 16)
        fixed.zero_grad()
        fixed(x, noise=noise).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in fixed.parameters()]))
    scatter[name] = torch.stack(gradients).var(0).sum().item()
    print(f"{name:<25} total variance of the gradient {scatter[name]:12.1f}")
ratio = scatter["one noise for all"] / scatter["own noise for each image"]
print(f"one noise for all is {ratio:.0f} times as noisy")

# %% [markdown]
# With noise of its own for each image, the variance falls with the batch size. With one for all it falls only as far as the images react to it in
# different ways: a factor of 128, the batch size, would mean that it does not fall at all.
#
# ## Pen and paper
# 1. Show that σ(B) − σ(A) = σ(B)·σ(−A)·(1 − e^(A−B)).
# 2. The gap of the ELBO is KL(q‖p(z|x)). For a decoder that ignores z, p(x|z) = p(x): what is the posterior, what is the best q, and what is the gap?
#    Why is that not good news?
# 3. A Gaussian likelihood with σ and a KL weight β_KL: for which σ′ does β_KL = 1 have the same minimum? What becomes of the answer if σ is learnt
#    while β_KL = 4?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. σ(t) = 1/(1 + e^(−t)) = e^t/(1 + e^t). So σ(B) − σ(A) = (e^B(1 + e^A) − e^A(1 + e^B))/((1 + e^A)(1 + e^B)) = (e^B − e^A)/((1 + e^A)(1 + e^B)).
#    Taking e^B out of the numerator: e^B/(1 + e^B) · 1/(1 + e^A) · (1 − e^(A−B)) = σ(B)·σ(−A)·(1 − e^(A−B)).
# 2. p(z|x) = p(x|z)p(z)/p(x) = p(z): the posterior is the prior. q = N(0, I) has KL 0 and gap 0: the bound is exact, and says nothing about the use
#    of z. A tight bound is no sign of a good code.
# 3. The loss ‖x − x̂‖²/(2σ²) + β_KL·KL is β_KL times ‖x − x̂‖²/(2β_KLσ²) + KL, so σ′ = σ√β_KL. With σ learnt, its best value is
#    the root of the mean squared error, whatever β_KL is; then β_KL = 4 acts as σ′ = 2·RMSE: a KL four times dearer than the ELBO's, at every stage
#    of training.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * p(x) is a mean of p(x|z) over the prior that cannot be estimated by drawing from the prior: hardly any draw explains x. Draws from the posterior
#   would do it at once.
# * The ELBO replaces the posterior by an encoder: reconstruction minus KL. It lacks exactly KL(q‖p(z|x)); several draws make it tighter.
# * The noise is an input (reparameterisation), the KL has a closed form, and both terms are nats per image: sums within an image, a mean over the batch.
# * A likelihood has to be a distribution over what an image can hold. σ (or β_KL) is the exchange rate between squared error and nats.
# * The blur of reconstructions is that of the squared error and is the autoencoder's too; the blur of new images is the prior's misfit. A dear KL
#   mends the second at the cost of the first, and a dearer one collapses the posterior. So does a decoder that does not need z.
#
# **Further experiments.** Give the VAE the discretised logistic mixture (`companion.Decoder(16, out_channels=15)`) and compare bits per pixel with
# the Gaussian's: where does the gain come from? Raise β_KL from 0 to 1 over the first epochs (write an `objective` for `companion.fit`): do more
# units stay active with the autoregressive decoder? Fit chapter 01's mixture of Gaussians to the posterior means of the VAE with d = 16 and draw from
# that: does the blur go?
#
# **References.** D. Kingma, M. Welling: *Auto-Encoding Variational Bayes*, ICLR 2014 (equations 3 and 10, appendix B). D. Rezende, S. Mohamed, D.
# Wierstra: *Stochastic Backpropagation*, ICML 2014. M. Tipping, C. Bishop: *Probabilistic Principal Component Analysis*, 1999 (equations 6 to 8). Y.
# Burda, R. Grosse, R. Salakhutdinov: *Importance Weighted Autoencoders*, ICLR 2016 (equation 8, theorem 1, section 5.2). M. Hoffman, M. Johnson:
# *ELBO surgery*, 2016. I. Higgins et al.: *β-VAE*, ICLR 2017 (equation 4). S. Bowman et al.: *Generating Sentences from a Continuous Space*, 2016
# (collapse with an autoregressive decoder). T. Salimans et al.: *PixelCNN++*, ICLR 2017 (equation 2). A. van den Oord et al.: *Pixel Recurrent Neural
# Networks*, 2016 (section 3.4, the masks). G. Loaiza-Ganem, J. Cunningham: *The continuous Bernoulli*, NeurIPS 2019. O. Rybkin, K. Daniilidis, S.
# Levine: *Simple and Effective VAE Training with Calibrated Decoders*, ICML 2021. H. Yesiltepe: *VQ-VAE*, 2022, and S. Zhao: *VQ-VAE and
# Transformer*, 2023, section 1.1 (the claims tested above).

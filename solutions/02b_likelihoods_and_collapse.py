# %% [markdown]
# # 02b · Likelihoods, a tighter bound, and collapse
#
# **A study beside [chapter 02](02_vae.ipynb)**, for readers who want to know what the chapter left open. Which distribution should a pixel have? How near is
# the ELBO to $\log p(x)$? Why are reconstructions blurry? And when does a decoder stop listening to its latents? The last question ends with this picture:
#
# ![Left: KL of each of sixteen latent numbers for seven weights of the KL term; with the largest weights they fall to zero. Right: edge energy of rebuilt and of new images against that weight.](../chapters/pictures/02b_likelihoods_and_collapse.png)
#
# **Needed:** chapter 02: the ELBO, that is $\mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \| p(z))$, and the scale $\sigma_x$ of a Gaussian
# likelihood. Nothing later in the course needs this study, except that the masked convolution at its end comes back in
# [study 07b](07b_judging_samples.ipynb). **Time (an estimate):** an hour and a quarter to read, about two hours with the exercises. The sections can be
# read one by one.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor
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
from companion.vae import bits_per_dimension

session = begin("02b_likelihoods_and_collapse")
settings, device = session.settings, session.device
train, test = session.data()
x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
channels, size, _ = train.shape
pixels = x_train[0].numel()

# %% [markdown]
# ## Predict
# 1. Take a model without any latent: each pixel is drawn on its own from the histogram of its values. It cannot draw a single digit. Does a VAE with 16 latent
#    numbers need fewer bits for an image, or more?
# 2. Let the decoder of a VAE see the pixels above and to the left of the one it predicts. What becomes of the latents?
#
# ## Likelihoods, and which data wants which
# The decoder gives numbers; the likelihood says what they mean. A pixel here is one of the grey values 0, 1/255, …, 1. So its likelihood should be a
# distribution **over these 256 values**, and that can be tested: the 256 probabilities have to sum to one.
#
# ### Bernoulli
# The decoder gives $p$, the probability that a pixel is 1 and not 0: $\log p(x \mid z) = x \log p + (1 - x) \log (1 - p)$. For $x = 0$ and $x = 1$ that is a
# distribution. Many a tutorial feeds it grey values as well (`Bernoulli(relaxed=True)` does so; `Bernoulli()` refuses). What do the 256 values sum to?

# %% tags=["nbval-check-output"]
grey = torch.arange(256) / 255
as_images = grey.reshape(256, 1, 1, 1)
for p in (0.5, 0.9, 0.999):
    logit = torch.tensor(p).logit().expand(256, 1, 1, 1)
    probabilities = Bernoulli(relaxed=True).log_prob(logit, as_images).exp()
    print(f"p = {p}: 'probabilities' of 256 grey values sum to {probabilities.sum():.0f}")

# %% tags=["hide-input"]
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
right.plot(p_axis, sums.sum(1), color=plots.COLOURS["train"], label="sum")
right.axhline(1, color="black", linewidth=0.8, label="a distribution sums to 1")
right.legend()
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
# **Often written, not so:** one report calls the Bernoulli "a natural choice" for grey digits. On grey values it is no distribution: it hands out 37 to 128
# times too much probability. How much depends on $p$, so training is rewarded for the missing normaliser too (Loaiza-Ganem and Cunningham 2019 compute it).
# As a *loss* it does make pictures. As a term of a bound on $\log p(x)$ it means nothing.
#
# ### Gaussian: a density, and the mass of a bin
# Chapter 02 trains with a Gaussian. That is a density, and with a small $\sigma_x$ it exceeds 1. To compare it with distributions over grey values, take the
# mass of the **bin** around each value, from half a step below to half a step above. The first and the last bin are open, to −∞ and +∞:

# %% tags=["nbval-check-output"]
for centre_of_bell, scale in ((0.5, 0.1), (0.02, 0.1), (1.3, 0.01)):
    bell = torch.tensor(centre_of_bell)
    log_mass = discretized_gaussian(grey, bell, torch.tensor(scale).log())
    density = torch.distributions.Normal(bell, scale).log_prob(bell).exp()
    print(
        f"mean {centre_of_bell}, scale {scale}: densities up to {density:.1f},",
        f"masses sum to {log_mass.double().exp().sum():.4f}",
    )

# %% [markdown]
# There is a second way from a density to grey values. Add noise $u$, uniform over the bin, to each value, and take the density of $x + u$. This is called
# **dequantisation** (Uria et al. 2013; Theis et al. 2016). By Jensen's inequality its mean logarithm is at most the logarithm of the bin's mass, with
# $\delta = 1/255$ the width of a bin:
#
# $$\mathbb{E}_u\big[\log \delta\, p(x + u)\big] \le \log \mathbb{E}_u\big[\delta\, p(x + u)\big] = \log \int_{\text{bin}} p(t)\, dt.$$
#
# So it is a lower bound, and any density will do, even one whose bins cannot be integrated. How much does it lose? A bell in the middle of a bin:

# %% tags=["nbval-check-output"]
u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5  # evenly, −½ to ½
value = torch.tensor(128 / 255, dtype=torch.float64)
for scale in (0.1, 0.01, 0.001):
    mass = discretized_gaussian(
        value, value, torch.tensor(scale, dtype=torch.float64).log()
    )
    density = torch.distributions.Normal(value, scale).log_prob(value + u / 255)
    print(
        f"scale {scale}: bin {mass.item():7.3f} nats,",
        f"dequantised {density.mean().item() - math.log(255):7.3f}",
    )

# %% [markdown]
# A bell much wider than a bin loses nothing. One that is narrower than a bin cannot be flat over it, and pays.
#
# ### Categorical
# 256 logits for a pixel, one for each value. Any shape can be learned, and nothing is known beforehand: that 7 lies beside 8 has to be learned too.
#
# ### Discretised logistic mixture
# A few bell curves for a pixel, each with weight, mean and scale, and the mass of the bin under their mixture (Salimans et al. 2017, PixelCNN++, equation 2).
# The bell is the *logistic* distribution, because its cumulative distribution is the sigmoid of (x − mean)/scale, so that masses are differences of two
# sigmoids. (Here every channel stands alone; PixelCNN++ couples the three colours.)
#
# ### Exercise 2.4 · the log-mass of a bin  (medium, 20 minutes)
# One component. With $A = (x - 1/510 - \text{mean})/\text{scale}$ and $B = (x + 1/510 - \text{mean})/\text{scale}$, the mass is
# $\mathrm{sigmoid}(B) - \mathrm{sigmoid}(A)$. The bin of 0 has no lower edge, so its mass is $\mathrm{sigmoid}(B)$. The bin of 1 has no upper edge:
# $1 - \mathrm{sigmoid}(A) = \mathrm{sigmoid}(-A)$. Give the *logarithm* of the mass.
#
# The obvious code takes a difference and then a logarithm. Far from the mean both sigmoids round to the same float32, and the logarithm of 0 ends the training.
# There is a way without the difference:
#
# $$\mathrm{sigmoid}(B) - \mathrm{sigmoid}(A) = \mathrm{sigmoid}(B)\;\mathrm{sigmoid}(-A)\;\big(1 - e^{A - B}\big).$$
#
# (Show it on paper; it takes three lines.) Its logarithm is a sum of three tame terms, and $B - A = 1/(255 \cdot \text{scale})$ does not depend on $x$.
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
    upper_edge = torch.where(last, 0.0, functional.logsigmoid(above))  # log sigmoid(B)
    lower_edge = torch.where(first, 0.0, functional.logsigmoid(-below))  # log sigmoid(−A)
    width = torch.log(-torch.expm1(-torch.exp(-log_scale) / 255))  # log(1 − e^(A−B))
    return upper_edge + lower_edge + torch.where(first | last, 0.0, width)
    ### END SOLUTION


discretized_logistic = check(discretized_logistic)

# %% tags=["nbval-check-output"]
bell, log_scale = torch.tensor(0.1), torch.tensor(-5.0)
a, b = ((0.8 + half - bell) / log_scale.exp() for half in (-1 / 510, 1 / 510))
print("log of the difference:", torch.log(torch.sigmoid(b) - torch.sigmoid(a)).item())
log_mass = discretized_logistic(grey[204], bell, log_scale)
print("log of the product:   ", round(log_mass.item(), 1))
total = discretized_logistic(grey, bell, log_scale).double().exp().sum()
print(f"all 256 masses:        {total:.4f}")

# %% [markdown]
# ### One pixel, four likelihoods
# Which one suits these images? Take the pixel that is least often plain black or white, and fit each likelihood to the counts of its 256 values, by 300 steps
# of gradient descent: once to all training images, and once to 250 of them. We compare by bits, the mean of $-\log_2 p$ over the *test* images.

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
    "one logistic": (
        lambda: DiscretizedLogisticMixture(1),
        torch.tensor([0.0, 0.5, -2.0]),
    ),
    "three logistics": (
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
counts = torch.bincount(values_train[:250, place], minlength=256) + 1.0
smoothed = -(unseen * (counts / counts.sum()).log2()).sum().item()
print(f"counts of 250 images, one added to each: {smoothed:.2f} bits")

# %% tags=["hide-input"]
fig, axes = plots.figure(9.5, 2.9, columns=3, sharey=True)
seen = shares(values_train[:, place])
for ax, name in zip(
    axes, ("Gaussian, in bins", "three logistics", "categorical"), strict=True
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
# Even a single wide bell can put much mass on black and white, through its two open bins. Three bells follow the rest. The categorical follows every bar:
# good with many images, bad with 250, where many values never occur and their probability goes towards 0. (Its bits would grow with every further step.
# Counting with one added is the better way.)
#
# | data | likelihood |
# | --- | --- |
# | two values (binarised digits, masks) | Bernoulli: exact, and one number a pixel |
# | 256 values | discretised logistic mixture: few numbers, knows that neighbouring values are alike, can put mass on 0 and 255 |
# | 256 values and very many images, or few and unordered values (codes!) | categorical |
# | real numbers, or where squared error is what counts | Gaussian with a learnt or a stated scale; reported as the mass of bins |
#
# ## How badly does drawing from the prior fail?
# Chapter 02 says that $p(x) = \mathbb{E}_{z \sim p(z)}[p(x \mid z)]$ cannot be estimated by drawing $z$ from the prior. To see it we need a model whose
# $\log p(x)$ is *known*. There is one with a matrix for a decoder, **probabilistic PCA** (Tipping and Bishop 1999):
#
# $$z \sim \mathcal N(0, I), \qquad x = W z + c + \sigma_x\,\varepsilon, \quad \varepsilon \sim \mathcal N(0, I)
# \qquad\Longrightarrow\qquad x \sim \mathcal N(c,\; W W^\top + \sigma_x^2 I).$$
#
# Here $c$ is the mean image. The best parameters stand in closed form: the columns of $W$ are the $d$ principal directions of chapter 01, each as long as the
# root of (its variance − $\sigma_x^2$), and $\sigma_x^2$ is the mean variance of the directions left out (their equations 7 and 8).

# %%
flat_train, flat_test = x_train.flatten(1).double(), x_test[:100].flatten(1).double()
centre = flat_train.mean(0)
eigenvalues, directions = torch.linalg.eigh(torch.cov(flat_train.T, correction=0))


def fit_ppca(d: int) -> tuple[Tensor, Tensor]:
    """W (pixels, d) and σ_x² under which the training images are most probable."""
    noise_variance = eigenvalues[:-d].mean()
    lengths = (eigenvalues[-d:] - noise_variance).sqrt()
    return directions[:, -d:] * lengths, noise_variance


def log_gaussian(squared_distance: Tensor, noise_variance: Tensor) -> Tensor:
    """log p(x|z) from ‖x − W z − c‖²: a constant minus the squared error."""
    constant = -0.5 * pixels * torch.log(2 * math.pi * noise_variance)
    return constant - squared_distance / (2 * noise_variance)


# %%
dimensions, draws = [1, 2, 4, 8, 16, 32, 64], [100, 1000, 10_000]
generator = torch.Generator().manual_seed(session.seed)
missing = {}  # (d, draws) -> nats by which the estimate falls short, mean over test images
print(
    "  d   exact log p(x)   estimate − exact" + "".join(f"{s:>9,}" for s in draws), "draws"
)
for d in dimensions:
    weight, noise_variance = fit_ppca(d)
    covariance = weight @ weight.T + noise_variance * torch.eye(pixels).to(weight)
    exact = torch.distributions.MultivariateNormal(centre, covariance).log_prob(flat_test)
    z = torch.randn(max(draws), d, generator=generator, dtype=torch.float64).to(device)
    squared = torch.cdist(flat_test - centre, z @ weight.T).square()  # (100, draws)
    log_likelihood = log_gaussian(squared, noise_variance)  # log p(x|z), image by draw
    for s in draws:
        estimate = log_likelihood[:, :s].logsumexp(1) - math.log(s)  # log of a mean
        missing[d, s] = (exact - estimate).mean().item()
    row = "".join(f"{-missing[d, s]:>9.1f}" for s in draws)
    print(f"{d:>3} {exact.mean().item():>16.1f} {'':>18}{row}")

# %% tags=["hide-input"]
fig, ax = plots.figure(6.4, 3)
styles = zip(draws, ("o:", "s--", "D-"), ("reference", "validation", "train"), strict=True)
for s, style, colour in styles:
    shortfall = [max(missing[d, s], 1e-3) for d in dimensions]
    ax.plot(dimensions, shortfall, style, color=plots.COLOURS[colour], label=f"{s:,} draws")
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
# With one latent number the mean over the prior is fine. With two, 100 draws are already off by a factor of five. With sixteen, 10,000 draws miss more than
# 200 nats: a probability too small by a factor of $e^{200}$. The mean of $p(x \mid z)$ is *unbiased*; but nearly all of it comes from the few $z$ that could
# have made $x$, and ten thousand draws hold none of those.
#
# Now draw from the **posterior**, which is known here: $\mathcal N(m, \sigma_x^2 M^{-1})$ with $M = W^\top W + \sigma_x^2 I$ and $m = M^{-1}W^\top(x - c)$
# (their equation 6). The importance weight $p(x, z)/q(z)$ makes up for drawing from another place than the prior:

# %%
weight, noise_variance = fit_ppca(16)
covariance = weight @ weight.T + noise_variance * torch.eye(pixels).to(weight)
exact_16 = torch.distributions.MultivariateNormal(centre, covariance).log_prob(flat_test)
precision = weight.T @ weight + noise_variance * torch.eye(16).to(weight)  # M
posterior_mean = (flat_test - centre) @ weight @ torch.linalg.inv(precision)
posterior_scale = torch.linalg.cholesky(noise_variance * torch.linalg.inv(precision))


def log_importance_weights(width: float, samples: int) -> Tensor:
    """log of the weights, q being the posterior made ``width`` times as wide."""
    shape = (samples, len(flat_test), 16)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    z = posterior_mean + width * noise @ posterior_scale.T
    log_joint = log_gaussian(
        (flat_test - centre - z @ weight.T).square().sum(2), noise_variance
    ) - 0.5 * z.square().sum(2)  # log p(x|z) + log p(z), without 16 · ½ log 2π
    log_q = -0.5 * noise.square().sum(2) - (width * posterior_scale.diagonal()).log().sum()
    return log_joint - log_q


at_posterior = log_importance_weights(width=1.0, samples=50)
print(f"exact log p(x) of the first image:  {exact_16[0]:.6f}")
print(f"log-weights of five draws: {[round(v, 6) for v in at_posterior[:5, 0].tolist()]}")

# %% tags=["nbval-check-output"]
print(
    "every weight is p(x):", torch.allclose(at_posterior, exact_16.expand_as(at_posterior))
)
print("their variance is zero up to rounding:", bool(at_posterior.var(0).max() < 1e-18))

# %% [markdown]
# Every single draw gives $p(x)$ itself, since $p(x, z)/p(z \mid x) = p(x)$ whatever $z$ is. One draw would do. And if $q$ is not quite the posterior? Then
# the ELBO, the mean of the log-weights, lacks $\mathrm{KL}(q \| p(z \mid x))$. With $q$ as wide as the posterior times $a$, that KL is
# $\tfrac d2 (a^2 - 1 - \log a^2)$:

# %%
for width in (1.0, 1.2, 1.5, 2.0):
    gap = (exact_16 - log_importance_weights(width, samples=500).mean(0)).mean().item()
    formula = 16 * 0.5 * (width**2 - 1 - math.log(width**2))
    print(f"{width:.1f} times as wide: gap {gap:7.3f}, KL(q‖posterior) {formula:7.3f} nats")

# %% [markdown]
# ## A tighter bound
# The ELBO is the mean of log-weights. Take several draws $z_1, \dots, z_S$ from $q$, and the *logarithm of the mean weight*: it lies higher, and is still
# below $\log p(x)$ in expectation (Burda et al. 2016, theorem 1):
#
# $$\mathcal{L}_S = \mathbb{E}\left[\log \frac1S \sum_{j=1}^S \frac{p(x, z_j)}{q(z_j \mid x)}\right], \qquad
# \mathrm{ELBO} = \mathcal{L}_1 \le \mathcal{L}_{10} \le \mathcal{L}_{100} \le \dots \le \log p(x).$$
#
# This is the **importance-weighted bound**. It uses the encoder as a guide only, so it mends what the encoder gets wrong. VAEs are compared by it.
#
# ### Exercise 2.5 · the importance-weighted bound  (medium, 10 minutes)
# You get the *logarithms* of the weights, one for each draw and image. Give the logarithm of the mean weight of each image. Weights of images are like
# $e^{-2000}$: never leave the logarithms.
#
# <details><summary>Hint</summary><code>torch.logsumexp</code>; and the log of a mean is the log of a sum minus the log of the number of draws.</details>


# %%
def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log_weights: (samples, B) -> log of the mean weight of each image, (B,)."""
    ### BEGIN SOLUTION
    samples = len(log_weights)
    return torch.logsumexp(log_weights, dim=0) - math.log(samples)
    ### END SOLUTION


importance_weighted_bound = check(importance_weighted_bound)

# %% [markdown]
# Now the VAE with $d = 16$ of chapter 02, trained as there, and beside it one that is trained on the mass of its bins and not on a density:


# %%
def new_vae(*, binned: bool) -> companion.VAE:
    torch.manual_seed(session.seed)
    encoder = companion.Encoder(32, in_channels=channels, image_size=size)
    decoder = companion.Decoder(16, out_channels=channels, image_size=size)
    likelihood = Gaussian(0.2, binned=binned, learn_scale=True)
    return companion.VAE(encoder, decoder, likelihood).to(device)


def train_model(model: torch.nn.Module, epochs: int, seed: int) -> None:
    companion.fit(
        model,
        train,
        epochs=epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=seed,
        device=device,
    )
    model.eval()


vae, vae_bins = new_vae(binned=False), new_vae(binned=True)
train_model(vae, settings.stages[0], session.seed)
train_model(vae_bins, settings.stages[0], session.seed)

# %% [markdown]
# We take 200 test images. `log_weights` of the companion's `VAE` draws from the encoder and gives the logarithms. For the count in bits per pixel the
# likelihood is that of bins, also for the model that was trained on a density.

# %%
scale = vae.likelihood.scale.item()
in_bins = companion.VAE(vae.encoder, vae.decoder, Gaussian(scale, binned=True)).to(device)
in_bins.eval()
generator_of_draws = torch.Generator(device).manual_seed(session.seed)
log_w = in_bins.log_weights(
    x_test[:200], 100, generator=generator_of_draws
)  # (100, images)
bound = {}
for s in (1, 10, 100):
    groups = log_w.reshape(-1, s, log_w.shape[1]).transpose(0, 1).flatten(1)
    bound[s] = importance_weighted_bound(groups).mean()  # of 100 / s groups an image
    bits_vae = bits_per_dimension(bound[s], pixels)
    print(f"{s:>3} draws: {bound[s]:>8.1f} nats, {bits_vae:.3f} bits per pixel")
session.expect("bound_gain_10", bound[10] - bound[1])
session.expect("bound_gain_100", bound[100] - bound[1])
session.expect("bits_per_pixel", bits_vae)

# %% [markdown]
# The bound rises with the number of draws, as it must. What is gained is a part of the gap $\mathrm{KL}(q \| p(z \mid x))$ of this encoder, on images that it
# never saw.
#
# ### Histograms beat the VAE
# Are these bits few? The yardstick is your first prediction: a model without a latent, in which every pixel is drawn from its own histogram over the training
# images (one added to each count, so that none is 0).

# %%
table = torch.stack([torch.bincount(v, minlength=256) for v in values_train.T]) + 1.0
table = table.log() - table.sum(1, keepdim=True).log()  # (pixels, 256): log p of each value
log_p = table.gather(1, values_test.T).sum(0)  # (test images,)
baseline = bits_per_dimension(log_p.mean(), pixels).item()
log_w_bins = vae_bins.log_weights(x_test[:200], 100, generator=generator_of_draws)
bits_bins = bits_per_dimension(importance_weighted_bound(log_w_bins).mean(), pixels)
print(f"VAE, trained on the density     {bits_vae:.3f} bits per pixel")
print(f"no latent, histograms           {baseline:.3f}")
print(f"VAE, trained on mass of bins    {bits_bins:.3f}")

# %% [markdown]
# The histograms need fewer bits than the VAE of chapter 02, though they cannot draw a digit! Most pixels are black, so let us look at what a black pixel
# costs. And where do the two decoders put the mean of a black pixel?

# %%
for bell in (0.0, -0.3):
    log_mass = discretized_gaussian(
        torch.zeros(1), torch.tensor(bell), torch.tensor(0.1).log()
    )
    cost = -log_mass.item() / math.log(2)
    print(f"a black pixel, Gaussian around {bell:+.1f} with scale 0.1: {cost:.3f} bits")
black = x_test == 0
print(f"share of black pixels: {black.float().mean():.2f}")
with torch.no_grad():
    for name, model in (("density", vae), ("mass of bins", vae_bins)):
        means = model.decoder(model.encode(x_test)[0])[black]
        cost = -discretized_gaussian(
            torch.zeros_like(means), means, model.likelihood.log_scale
        ).mean() / math.log(2)
        print(
            f"trained on the {name:<13} scale {model.likelihood.scale.item():.3f}, median",
            f"mean {means.median().item():+.3f}, {cost.item():.3f} bits a black pixel",
        )

# %% [markdown]
# A Gaussian around 0 has half of its mass above the bin of 0, so a black pixel costs a whole bit. A mean below 0 would cost less. But the *density* rewards a
# mean of exactly 0, and that is what its decoder learned. The one trained on bins is free to answer with a mean below 0, and does. **A model is good at what
# it was trained for**: if you want few bits, train with the likelihood by which they are counted.
#
# The same networks with four likelihoods, five seeds each (one for the categorical, slow with 256 decoder channels), ten draws in the bound:

# %% tags=["hide-input"]
by_likelihood = results("vae_likelihood")
print(by_likelihood.command)
for name in by_likelihood.settings("likelihood"):
    likelihood_bits = by_likelihood.values("bits_10_samples", likelihood=name)
    low, high = min(likelihood_bits), max(likelihood_bits)
    average = sum(likelihood_bits) / len(likelihood_bits)
    print(f"{name:<24} {average:.3f} bits ({low:.3f} to {high:.3f})")

# %% [markdown]
# The step from density to bins is by far the largest. The mixture of three logistics is a little better still, with nine decoder channels for one. The
# categorical has the freest shape, and after these few epochs it is behind both. (We did not test whether longer training changes that.)

# %% [markdown]
# ## Does a large KL mean bad samples?
# The KL term of the VAE with $d = 16$ is some 50 nats an image, and its samples from $\mathcal N(0, I)$ are bad. Is the one the reason for the other? Average
# the KL term over the $N$ training images, with $q(z) = \frac1N \sum_i q(z \mid x_i)$, and insert $q(z)/q(z) = 1$ (Hoffman and Johnson 2016):
#
# $$
# \begin{aligned}
# \frac1N\sum_i \mathrm{KL}\big(q(z \mid x_i)\,\|\,p(z)\big)
# &= \frac1N\sum_i \mathbb{E}_{q(z \mid x_i)}\left[\log \frac{q(z \mid x_i)}{q(z)} + \log\frac{q(z)}{p(z)}\right] \\
# &= I(i; z) + \mathrm{KL}\big(q(z)\,\|\,p(z)\big).
# \end{aligned}
# $$
#
# The first part says how much $z$ tells about *which image* it was. It cannot exceed $\log N$, the entropy of $i$. So what the KL has above $\log N$ must be
# a difference between $q(z)$ and the prior.
#
# It is tempting to conclude that samples from the prior must then be bad. That does not follow: this $q(z)$ belongs to *these $N$ images*, and tight
# posteriors around finitely many points never look like the prior, however good the model is. Here is the proof. Draw $N$ images from probabilistic PCA with
# $d = 16$ itself. Its samples are right by definition, and its posterior is exact:

# %%
count = len(train)
z_own = torch.randn(count, 16, generator=generator, dtype=torch.float64).to(device)
noise_own = torch.randn(count, pixels, generator=generator, dtype=torch.float64).to(device)
x_own = centre + z_own @ weight.T + noise_variance.sqrt() * noise_own
posterior_covariance = noise_variance * torch.linalg.inv(
    precision
)  # the same for all images
means_own = (x_own - centre) @ weight @ torch.linalg.inv(precision)
constant = posterior_covariance.trace() - 16 - torch.logdet(posterior_covariance)
kl_own = 0.5 * (means_own.square().sum(1).mean() + constant)
print(f"mean KL {kl_own:.1f} nats, log N {math.log(count):.1f}")

# %% [markdown]
# The KL lies far above $\log N$, and nothing is wrong with this model's samples. So a KL above $\log N$ proves nothing about samples. What does tell is the
# table of chapter 02: draw from densities fitted to $q(z)$, and look.
#
# ## Sharper with every epoch
# Chapter 02 found that autoencoder and VAE blur their reconstructions alike. Is it the squared error, the sixteen numbers, or the short training? Let us
# change the last of the three. Both models go on training, and we measure **edge energy** (squared differences between neighbouring pixels, as a share of
# that of the test images) on the way. Each stage goes on from the one before, with a fresh Adam.


# %%
def sharpness(images: Tensor) -> float:
    """Edge energy relative to that of the test images."""
    energies = []
    for some in (images, x_test):
        down, right = some.diff(dim=2).square(), some.diff(dim=3).square()
        energies.append((down.sum() + right.sum()).item() / len(some))
    return energies[0] / energies[1]


torch.manual_seed(session.seed)
autoencoder = companion.Autoencoder(
    companion.Encoder(16, in_channels=channels, image_size=size),
    companion.Decoder(16, out_channels=channels, image_size=size),
).to(device)
z_new = torch.randn(len(x_test), 16, generator=torch.Generator().manual_seed(session.seed))
edges = {"autoencoder": [], "VAE": [], "VAE, new images": []}
trained = 0
for stage in settings.stages:
    train_model(autoencoder, stage - trained, session.seed + trained)
    if trained:  # the first stage of the VAE was trained above
        train_model(vae, stage - trained, session.seed + trained)
    trained = stage
    with torch.no_grad():
        images_new = vae.decoder(z_new.to(device)).clamp(0, 1)
    edges["autoencoder"].append(sharpness(autoencoder.reconstruct(x_test)))
    edges["VAE"].append(sharpness(vae.reconstruct(x_test)))
    edges["VAE, new images"].append(sharpness(images_new))
print(
    f"{'edge energy after':<18}"
    + "".join(f"{stage:>5} epochs" for stage in settings.stages)
)
for name, values in edges.items():
    print(f"{name:<18}" + "".join(f"{value:>12.3f}" for value in values))

# %% tags=["hide-input"]
fig, ax = plots.figure(5.6, 2.8)
for (name, values), style, colour in zip(
    edges.items(), ("o-", "s--", "D:"), ("reference", "train", "validation"), strict=True
):
    ax.plot(settings.stages, values, style, color=plots.COLOURS[colour], label=name)
ax.set(
    xlabel="epochs",
    ylabel="edge energy",
    ylim=(0, 1),
    xticks=settings.stages,
    title="Reconstructions go on getting sharper",
)
ax.legend(loc="lower right")
plots.show(
    fig,
    alt="Edge energy over the epochs of training. Reconstructions of autoencoder and VAE rise "
    "together, and are still rising at the end; new images of the VAE stay far below.",
)

# %% [markdown]
# The curves of reconstructions rise together and have not levelled off: a good part of the blur after the first stage was short training. New images get
# sharper too, and stay far below. (One seed. Squared error and sixteen numbers stay the same here, so this says nothing about how much of the rest is theirs.)
#
# ## Posterior collapse
# The ELBO can be raised in a dull way: encode nothing. If $q(z \mid x) = \mathcal N(0, I)$ for every $x$, the KL is 0, and the decoder does what it can
# without $z$. This is **posterior collapse**. Two numbers show it:
#
# * **KL per dimension**: the mean over the data of each latent number's KL. A dimension at 0 says nothing.
# * An **active unit** (Burda et al. 2016, section 5.2) is a latent number whose posterior mean varies over the data, with a variance above 0.01.
#
# ### The first way: a large weight on the KL
# Train with $-\log p(x \mid z) + \beta_{\mathrm{KL}} \cdot \mathrm{KL}$. Dividing by $\beta_{\mathrm{KL}}$ shows that this is the same as a larger $\sigma_x$
# (chapter 02, pen and paper). An experiment trained a VAE with $d = 16$ and $\sigma_x = 0.1$ for seven weights and five seeds (± is the standard deviation
# over the seeds):

# %% tags=["hide-input"]
sweep = results("vae_beta")
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

# %% tags=["hide-input", "cover"]
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
    title="A large β_KL silences latents",
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
# Read it from the left. With a cheap KL, reconstructions are good and new images bad. Up to $\beta_{\mathrm{KL}} = 16$, which is $\sigma_x = 0.4$ in place of
# 0.1, reconstructions lose little and new images gain much. At 64 the two are equally sharp. At 256 the latents are dying. At 1024 they are dead: no KL, no
# active unit, and every reconstruction is nearly the mean image.
#
# So with a large weight a VAE's reconstructions do blur. The likely reason is that the draws of different images now overlap, and the decoder answers with a
# mean of those images. (We did not test this reason.)
#
# *Active units* miss something. At 256 most of the sixteen still count as active, though most carry only a hundredth of a nat or two. KL per dimension says
# more.
#
# ### The second way: a decoder that does not need z
# Let the decoder see the pixels above and to the left of the one it predicts: $p(x \mid z) = \prod_i p(x_i \mid x_1, \dots, x_{i-1}, z)$. This is an
# **autoregressive decoder**. What does $z$ still have to say?
#
# We need a convolution that cannot look ahead. Take an ordinary one, and set to zero the weights of its window that lie after the centre in reading order: a
# **masked convolution** (van den Oord et al. 2016). The first layer masks its own centre too (mask A), because that is the pixel to be predicted. Later
# layers may see it (mask B), because what stands there came from earlier pixels only. You will meet it again in [study 07b](07b_judging_samples.ipynb).

# %% tags=["nbval-check-output"]
for letter, at_centre in (("A", False), ("B", True)):
    mask = companion.backbones.raster_mask(3, centre=at_centre)
    print(f"mask {letter}:", mask.int().tolist())

# %% [markdown]
# Does it really not see the future? Ask the gradient which pixels can change the logit in row 6, column 5:

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

# %% tags=["hide-input"]
fig, axes = plots.figure(7.5, 2.7, columns=3)
panels = {
    "mask A keeps the light part": companion.backbones.raster_mask(5, centre=False),
    "mask B keeps × too": companion.backbones.raster_mask(5, centre=True),
    "what the logit at × sees": seen_by_it.float(),
}
for ax, (name, panel) in zip(axes, panels.items(), strict=True):
    plots.draw_image(ax, panel[None] * 0.8)
    ax.set_title(name, fontsize=9)
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
# (A bite is missing at the upper right of the last panel: the *blind spot* of stacked masks. The model sees a little less than it might, and never too much.)
#
# The experiment trained both decoders on images with two values (threshold ½) and a Bernoulli likelihood, a true probability there. So the ELBOs compare, and
# higher is better:

# %% tags=["hide-input"]
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

# %% tags=["hide-input"]
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
# With the plain $\beta_{\mathrm{KL}} = 1$ the autoregressive decoder uses a quarter of the nats that the convolutional one uses, and its ELBO is *better* by
# 17 nats. With $\beta_{\mathrm{KL}} = 4$ all sixteen latents are dead. Even so the ELBO, now of a model without latents, beats the convolutional decoder that
# uses them. So the model that ignores its latents is the better one by the measure that is trained for.
#
# If you want latents that *say* something, you have to ask for it. A cheaper KL does (last row; its ELBO is 12 nats lower). A weaker decoder does. A discrete
# code takes another road ([chapter 04](04_vq_vae.ipynb)): its KL to a uniform prior is a constant, so there is nothing to gain by ignoring it. That is no
# guarantee, since a codebook can collapse too.
#
# And on real digits? The same experiment on MNIST, seed by seed:

# %%
on_mnist = results("vae_beta", data="mnist")
for decoder in ("convolutional", "autoregressive"):
    nats = on_mnist.values("kl", images="binary", decoder=decoder, beta=1.0)
    print(f"MNIST, {decoder:<15} KL of each seed: " + "  ".join(f"{v:.3f}" for v in nats))

# %% [markdown]
# In two of three seeds nothing is left of the latents; in the third, more than a nat.
#
# ## What reports say, measured
# The claims about collapse and blur, on MNIST and on glyphs; those about likelihoods are on the [experiments' page](../experiments/README.md#likelihood),
# with the way to read the differences.

# %% tags=["nbval-check-output"]
measured_claims("Collapse and blur")

# %% [markdown]
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
means_proof, scales_proof = torch.tensor([0.2, 0.9, -3.0]), torch.tensor([-2.0, -4.0, -1.0])
arguments = (grey[[0, 100, 255], None], means_proof, scales_proof)
masses = discretized_logistic(*arguments)
theirs = companion.likelihoods.discretized_logistic(*arguments)
assert torch.allclose(masses, theirs, rtol=1e-5, atol=1e-6), "they differ: exercise 2.4"
print("discretised logistic agrees:", True)
glue("proof.discretized_logistic", masses.flatten().tolist(), display=False)

log_w_proof = torch.tensor([[-2000.0, 3.0], [-2001.0, 1.0], [-1999.5, 2.0]])
bound_proof = importance_weighted_bound(log_w_proof)
theirs = companion.vae.importance_weighted_bound(log_w_proof)
assert torch.allclose(bound_proof, theirs), "they differ: exercise 2.5"
print("importance-weighted bound agrees:", True)
glue("proof.importance_weighted_bound", bound_proof.tolist(), display=False)

# %% [markdown]
# ## Play: the price of a nat
# The slider moves through the sweep. You see eight draws from $\mathcal N(0, I)$, always the same $z$, decoded by the VAE trained with that weight, and what
# each latent number gets. Where do digits appear? Where do they all become the same? (The cover figure has the sweep's numbers for readers of the printed
# page.)

# %%
explorers.kl_sweep(sweep.rows)

# %% [markdown]
# ## Pen and paper
# 1. Show that sigmoid(B) − sigmoid(A) = sigmoid(B) · sigmoid(−A) · (1 − e^(A−B)).
# 2. Chapter 02 shows that a weight β_KL acts like a larger scale of the likelihood. What becomes of this if the scale is *learned* while β_KL = 4?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. sigmoid(t) = 1/(1 + e^(−t)) = e^t/(1 + e^t). So the difference is (e^B(1 + e^A) − e^A(1 + e^B))/((1 + e^A)(1 + e^B)) = (e^B − e^A)/((1 + e^A)(1 + e^B)).
#    Taking e^B out of the numerator: e^B/(1 + e^B) · 1/(1 + e^A) · (1 − e^(A−B)), which is the right-hand side.
# 2. With the scale learned, its best value is the root of the mean squared error, whatever β_KL is; then β_KL = 4 acts as twice that root: a KL four times as
#    expensive as the ELBO's, at every stage of training.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A likelihood has to be a distribution over what an image can hold. For grey values: the mass of bins, a mixture of them, or a categorical; dequantisation
#   bounds it from below.
# * Draws from the prior miss $\log p(x)$ by hundreds of nats; draws from the posterior would hit it at once; several draws from the encoder come nearer than
#   one.
# * A VAE trained on a density lost to histograms in bits. Trained on bins it won.
# * A KL above $\log N$ does not prove that samples are bad. Reconstructions get sharper as training goes on.
# * A large weight on the KL collapses the latents. So does a decoder that does not need them, and by the ELBO that model is the better one.
#
# **Further experiments.** Give the VAE the discretised logistic mixture (`companion.Decoder(16, out_channels=9)` for three components) and compare bits per
# pixel with the Gaussian's. Raise β_KL from 0 to 1 over the first epochs (write an `objective` for `companion.fit`): do more units stay active with the
# autoregressive decoder?
#
# **References.** M. Tipping, C. Bishop: *Probabilistic Principal Component Analysis*, 1999 (equations 6 to 8). B. Uria, I. Murray, H. Larochelle: *RNADE*,
# 2013, and L. Theis, A. van den Oord, M. Bethge: *A note on the evaluation of generative models*, ICLR 2016 (dequantisation). Y. Burda, R. Grosse, R.
# Salakhutdinov: *Importance Weighted Autoencoders*, ICLR 2016 (equation 8, theorem 1, section 5.2). M. Hoffman, M. Johnson: *ELBO surgery*, 2016. S. Bowman
# et al.: *Generating Sentences from a Continuous Space*, 2016 (collapse with an autoregressive decoder). T. Salimans et al.: *PixelCNN++*, ICLR 2017
# (equation 2). A. van den Oord et al.: *Pixel Recurrent Neural Networks*, 2016 (section 3.4, the masks). G. Loaiza-Ganem, J. Cunningham: *The continuous
# Bernoulli*, NeurIPS 2019. H. Yesiltepe: *VQ-VAE*, 2022, and S. Zhao: *VQ-VAE and Transformer*, 2023, section 1.1 (claims tested above).

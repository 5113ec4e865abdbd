# %% [markdown]
# # 02 · Variational autoencoders
#
# **The question.** In [chapter 01](01_autoencoder.ipynb) the decoder drew digits where the latents of training images lie, and tangles elsewhere. Can we decide
# *beforehand* where the latents will lie, so that anyone can draw a new one and decode it? You derive the loss that does this, term by term, and end with
# this map:
#
# ![Left: the latent plane of a variational autoencoder with the training images as points inside the circles of a standard normal distribution. Right: the decoder on a grid of points with the same share of the prior between neighbours.](../chapters/pictures/02_vae.png)
#
# **Afterwards you can** derive the evidence lower bound and say what it lacks; write a variational autoencoder; make new images with it, and say with two
# numbers what is wrong with them.
#
# **Needed:** chapter 01; densities, expectations, the logarithm. **Time (an estimate):** an hour and a quarter to read, about two hours with the exercises; the
# computer's is in the table below. [Study 02b](02b_likelihoods_and_collapse.ipynb) goes further: other likelihoods, a tighter bound, latents that nobody uses.

# %%
import math

import torch
from myst_nb import glue
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import results
from companion.likelihoods import Gaussian
from companion.metrics import distortion, mse
from companion.vae import VAEOutput, active_units

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
# An autoencoder and a variational autoencoder (VAE) have the same layers, and each keeps 16 numbers of an image.
#
# 1. Both rebuild test images. Whose are blurrier?
# 2. The VAE also makes new images. Are those blurrier than its reconstructions, or sharper?
#
# Write down two guesses. Two measurements will answer them.
#
# ## Build: how probable is an image?
# Turn the autoencoder into a story of how an image comes about:
#
# 1. draw a latent $z$ from a fixed distribution, the **prior** $p(z) = \mathcal N(0, I)$;
# 2. the decoder turns $z$ into the parameters of a distribution over images, the **likelihood** $p(x \mid z)$;
# 3. draw the image $x$ from it.
#
# If the story is good, real images are probable under it. How probable is $x$? Any $z$ might have made it, so we add up over all of them:
#
# $$p(x) = \int p(x \mid z)\, p(z)\, dz.$$
#
# Training then means: find the decoder under which the training images are most probable. We take the logarithm, because the probabilities of many images
# multiply, and their logarithms add up. The unit of a natural logarithm is the **nat** ([glossary](../chapters/glossary.md)). An image with one nat more is
# $e \approx 2.7$ times as probable.
#
# Let us do it once where everything can be computed. The image has a single pixel, $x = 2$, the latent is a single number, and the likelihood is
# $\mathcal N(e^z, 0.5^2)$, as if the decoder were the function $e^z$. Then the integral is a sum over a fine grid:


# %%
def log_normal(value: Tensor, mean: Tensor | float, scale: float) -> Tensor:
    """The logarithm of a normal distribution's density."""
    squared = ((value - mean) / scale).square()
    return -0.5 * squared - math.log(scale) - 0.5 * math.log(2 * math.pi)


z_axis = torch.linspace(-6, 6, 12_001, dtype=torch.float64)
step = z_axis[1] - z_axis[0]
log_prior = log_normal(z_axis, 0.0, 1.0)  # log p(z)
log_likelihood = log_normal(torch.tensor(2.0), z_axis.exp(), 0.5)  # log p(x|z)
log_joint = log_likelihood + log_prior  # log p(x, z)
log_p_x = (log_joint.exp().sum() * step).log()
print(f"log p(x) = {log_p_x:.4f} nats")

# %% [markdown]
# Which $z$ made this pixel? Bayes' rule answers with the **posterior**, a distribution over $z$ once $x$ is known:
#
# $$p(z \mid x) = \frac{p(x, z)}{p(x)} = \frac{p(x \mid z)\, p(z)}{p(x)}.$$

# %% tags=["hide-input"]
log_posterior = log_joint - log_p_x
fig, ax = plots.figure(6.4, 2.8)
for log_curve, style, colour, label in (
    (log_prior, "--", "reference", "prior p(z)"),
    (log_likelihood, ":", "third", "likelihood p(x = 2 | z)"),
    (log_posterior, "-", "train", "posterior p(z | x = 2)"),
):
    ax.plot(z_axis, log_curve.exp(), style, color=plots.COLOURS[colour], label=label)
ax.set(
    xlabel="latent z",
    ylabel="density",
    xlim=(-3, 3),
    title="Few values of z explain the pixel",
)
ax.legend(loc="upper left")
plots.show(
    fig,
    alt="Three curves over the latent z: the wide bell of the prior around 0; the likelihood "
    "of the pixel, a hump between 0 and 1 around 0.7; and the posterior, a narrow peak "
    "just left of that hump.",
)

# %% [markdown]
# The posterior is narrow: few $z$ explain this pixel. That is the trouble with real images. A grid with only ten points a side has $10^{16}$ points when $z$
# has 16 numbers. Drawing $z$ from the prior fails too, since hardly any draw explains the image:
# [study 02b](02b_likelihoods_and_collapse.ipynb) tries, with 10,000 draws, and misses $\log p(x)$ by more than 200 nats.
#
# So we want to look where the posterior is. But its denominator is $p(x)$, the integral that we cannot compute. Here is the plan: train a second network, the
# **encoder**, which reads $x$ and gives a distribution $q(z \mid x)$ near the posterior. For this we need to say what "near" means.
#
# ## Build: how far apart are two distributions?
# Draw $z$ from $q$. By how many nats is it more probable under $q$ than under $p$? The mean of that is the **KL divergence**:
#
# $$\mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q}\left[\log \frac{q(z)}{p(z)}\right].$$
#
# It is zero if the two are the same. It is never negative, and the proof takes one line. The curve of the logarithm lies below its tangent at 1, so
# $\log u \le u - 1$ for every $u > 0$, and therefore
#
# $$
# -\mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q}\left[\log \frac{p(z)}{q(z)}\right] \le \mathbb{E}_{q}\left[\frac{p(z)}{q(z)} - 1\right]
# = \int p(z)\,dz - \int q(z)\,dz = 1 - 1 = 0.
# $$


# %%
def kl_on_grid(log_q: Tensor, log_p: Tensor) -> float:
    """KL(q ‖ p) in nats, as a sum over the grid."""
    return float((log_q.exp() * (log_q - log_p)).sum() * step)


wide, narrow = log_normal(z_axis, 0.0, 1.0), log_normal(z_axis, 0.5, 0.3)
print(f"KL(narrow ‖ wide)   {kl_on_grid(narrow, wide):.3f} nats")
print(f"KL(wide ‖ narrow)   {kl_on_grid(wide, narrow):.3f} nats")
print(f"KL(wide ‖ wide)     {kl_on_grid(wide, wide):.3f} nats")

# %% [markdown]
# The order matters: most draws from the wide one are very improbable under the narrow one.
#
# ## Build: the evidence lower bound
# Now we bring $q$ into $p(x)$. Take one image $x$, and any $q(z \mid x)$ that is positive wherever the posterior is:
#
# $$
# \begin{aligned}
# \log p(x) &= \log \int p(x, z)\, dz && \text{any } z \text{ may have made } x \\
# &= \log \int q(z \mid x)\, \frac{p(x, z)}{q(z \mid x)}\, dz && \text{times } q/q = 1 \\
# &= \log \mathbb{E}_{q}\left[\frac{p(x, z)}{q(z \mid x)}\right] && \text{a mean over draws from } q \\
# &\ge \mathbb{E}_{q}\left[\log \frac{p(x, z)}{q(z \mid x)}\right] && \text{Jensen's inequality} \\
# &= \mathbb{E}_{q}\big[\log p(x \mid z)\big] + \mathbb{E}_{q}\left[\log \frac{p(z)}{q(z \mid x)}\right] && p(x, z) = p(x \mid z)\, p(z) \\
# &= \underbrace{\mathbb{E}_{q}\big[\log p(x \mid z)\big]}_{\text{reconstruction}}
# - \underbrace{\mathrm{KL}\big(q(z \mid x)\,\|\,p(z)\big)}_{\text{distance from the prior}} && \text{definition of KL}
# \end{aligned}
# $$
#
# The fraction in line three is the **importance weight** of a draw: it makes up for drawing from $q$ in place of the prior. *Jensen's inequality* says that the
# logarithm of a mean is at least the mean of the logarithms, since the curve of the logarithm bends downwards.
#
# The last line is the **ELBO**, the evidence lower bound (Kingma and Welling 2014, equation 3). Read it aloud: look where the encoder says, ask how well the
# decoder explains $x$ from there, and pay for having been told where to look.
#
# What does the bound lack? Ask how far $q$ is from the posterior, and insert Bayes' rule:
#
# $$\mathrm{KL}\big(q(z \mid x)\,\|\,p(z \mid x)\big) = \mathbb{E}_q\left[\log \frac{q(z \mid x)}{p(x, z)}\right] + \log p(x) = \log p(x) - \mathrm{ELBO}.$$
#
# So the gap is a KL divergence. (This is a second proof of the bound, since no KL is negative.) In our example all three numbers can be computed, for three
# different $q$:

# %% tags=["nbval-check-output"]
print("q(z|x): mean  scale     ELBO   KL(q ‖ posterior)   their sum")
for mean, scale in ((0.0, 1.0), (0.0, 0.3), (0.5, 0.3)):
    log_q = log_normal(z_axis, mean, scale)
    bound = float((log_q.exp() * (log_joint - log_q)).sum() * step)
    gap = kl_on_grid(log_q, log_posterior)
    print(f"{mean:>12} {scale:>6} {bound:>8.3f} {gap:>15.3f} {bound + gap:>15.3f}")

# %% [markdown]
# The sum is always $\log p(x)$, which depends on the decoder alone. So when the encoder raises the ELBO, $q$ moves towards the posterior; when the decoder
# does, a lower bound of $\log p(x)$ rises.
#
# <details><summary>Often written, not so: the sign, and logarithms inside a KL</summary>
#
# One report minimises `L = log p(x|z) + …`. The bound is to be *maximised*; the loss is its negative, $-\log p(x \mid z) + \mathrm{KL}$. It also writes the
# last term as KL(ln q(z) ‖ ln p(z)). A KL divergence compares two distributions, and the logarithms are inside it already; ln q is no distribution.
# </details>
#
# ## Build: a draw that lets the gradient pass
# Let $q(z \mid x)$ be normal, with independent latent numbers: for each, the encoder gives a mean $\mu$ and a *log-variance* $\log \sigma^2$, which may be
# any real number. We need the gradient of the reconstruction term, a mean over $z \sim \mathcal N(\mu, \sigma^2)$, with respect to $\mu$ and
# $\log\sigma^2$. But a number that was merely drawn carries no gradient:

# %% tags=["nbval-check-output"]
mean = torch.tensor([0.5], requires_grad=True)
drawn = torch.distributions.Normal(mean, 1.0).sample()
print("a drawn number has a gradient:", drawn.requires_grad)

# %% [markdown]
# The cure is called **reparameterisation**. Draw the noise $\varepsilon$ from $\mathcal N(0, 1)$, which depends on nothing, and *compute*
# $z = \mu + \sigma\varepsilon$ (Kingma and Welling 2014, section 2.4). The randomness is now an input, and $z$ is an ordinary function of $\mu$ and $\sigma$.
#
# ### Exercise 2.1 · reparameterisation  (easy, 5 minutes)
# Compute $z$ from mean, log-variance and noise. The noise is passed in, so that there is one right answer; each latent number of each image has its own.
#
# <details><summary>Hint</summary>The standard deviation is the root of the variance exp(log_variance), so it is exp(log_variance / 2).</details>


# %%
def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """All three (B, *latent) -> a draw from N(mean, exp(log_variance)), (B, *latent)."""
    ### BEGIN SOLUTION
    standard_deviation = torch.exp(0.5 * log_variance)
    return mean + standard_deviation * noise
    ### END SOLUTION


reparameterize = check(reparameterize)

# %% [markdown]
# Does the gradient through single draws point the right way on average? For $z \sim \mathcal N(\mu, \sigma^2)$ we know $\mathbb{E}[z^2] = \mu^2 + \sigma^2$,
# whose derivative by $\mu$ is $2\mu$.
#
# There is an older way, the **score-function estimator** (REINFORCE; Williams 1992):
# $\nabla_\mu \mathbb{E}[f(z)] = \mathbb{E}\big[f(z)\, \nabla_\mu \log q(z)\big]$, since $\nabla q = q\,\nabla \log q$. It needs no gradient of $f$, so it
# works for discrete $z$ too. Both are right on average. Compare the standard deviations of single draws:

# %%
mean = torch.full((100_000,), 0.7, requires_grad=True)
log_variance = torch.full((100_000,), -1.0)
noise = torch.randn(100_000, generator=torch.Generator().manual_seed(session.seed))
z = reparameterize(mean, log_variance, noise)
(through_z,) = torch.autograd.grad(z.square().sum(), mean)
z = z.detach()  # a plain draw
score = z.square() * (z - 0.7) / math.exp(-1)  # z² · ∇_μ log q(z)
print(f"exact gradient      {2 * 0.7:.3f}")
print(
    f"reparameterisation  {through_z.mean():.3f}, single draws scatter by {through_z.std():.2f}"
)
print(f"score function      {score.mean():.3f}, single draws scatter by {score.std():.2f}")

# %% [markdown]
# The score function scatters three times as much, so it needs nine times as many draws for the same precision.
#
# ## Build: the KL term
# $q(z \mid x)$ and the prior are normal, so their KL has a closed form. For one latent number, with $z = \mu + \sigma\varepsilon$:
#
# $$
# \begin{aligned}
# \mathrm{KL} &= \mathbb{E}_q\left[-\tfrac12\log(2\pi\sigma^2) - \frac{(z - \mu)^2}{2\sigma^2} + \tfrac12\log(2\pi) + \frac{z^2}{2}\right]
# && \text{the two densities} \\
# &= -\tfrac12\log\sigma^2 - \tfrac12 + \tfrac12\big(\mu^2 + \sigma^2\big) && \mathbb{E}[\varepsilon^2] = 1,\; \mathbb{E}[z^2] = \mu^2 + \sigma^2 \\
# &= \tfrac12\big(\mu^2 + \sigma^2 - 1 - \log\sigma^2\big).
# \end{aligned}
# $$
#
# The latent numbers are independent, so the KL of an image is the sum over its latent numbers.
#
# ### Exercise 2.2 · KL divergence  (easy, 5 minutes)
# Give the KL of *each* latent number, by the last line above. The sum is taken later.
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
by_formula = kl_divergence(torch.tensor([0.5]), torch.tensor([2 * math.log(0.3)])).item()
print(
    f"by the formula {by_formula:.3f}, by the sum over the grid {kl_on_grid(narrow, wide):.3f}"
)
print("KL of the prior from itself:", kl_divergence(torch.zeros(1), torch.zeros(1)).item())

# %% [markdown]
# ### Exercise 2.3 · the ELBO  (easy, 10 minutes)
# Put the two terms together: ELBO = reconstruction − KL, in nats per image. `log_likelihood` holds $\log p(x \mid z)$, pixel by pixel or summed already, `kl`
# the KL, latent by latent or summed already. Given $z$ the pixels are independent, so log-likelihoods are *summed* over them. The KL is *summed* over the
# latents. Only over the images of the batch take the *mean*.
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
# ## Build: a likelihood to train with
# What is $p(x \mid z)$? We take a **Gaussian** around the decoder's image $\hat x$, with one scale $\sigma_x$ for all pixels. Its logarithm is a squared
# error and constants:
#
# $$\log p(x \mid z) = -\frac{\lVert x - \hat x \rVert^2}{2\sigma_x^2} - n\log\sigma_x - \tfrac n2\log 2\pi \qquad (n \text{ pixels}).$$
#
# Look at the first term: $2\sigma_x^2$ units of squared error are worth one nat. So $\sigma_x$ is the *exchange rate* between the two terms of the ELBO.
# How many nats is the error of the mean image worth?

# %%
unexplained = (x_test - x_train.mean(0)).square().flatten(1).sum(1).mean()
print(f"squared error of the mean image: {unexplained:.1f}")
for scale in (1.0, 0.5, 0.1):
    rate = 2 * scale**2
    print(f"σ_x = {scale}: it is worth {unexplained / rate:7.1f} nats of KL")

# %% [markdown]
# With $\sigma_x = 1$ the whole digit is worth about twenty nats, so few details are worth their KL. With 0.1 it is worth a hundred times as much. We need
# not choose: if $\sigma_x$ is trained with the rest, its best value is the root of the mean squared error (set the derivative to zero; Rybkin et al. 2021).
#
# A density is not a probability, so this log-likelihood may be positive. [Study 02b](02b_likelihoods_and_collapse.ipynb) has likelihoods that are
# distributions over grey values.
#
# ## Build: the model
# All parts are there. The encoder is that of chapter 01 with twice as many outputs, the decoder is as it was:

# %% tags=["hide-input"]
fig, ax = plots.figure(8, 2.9)
ax.set(xlim=(0, 16), ylim=(0, 5.8))
ax.set_axis_off()


def box(x: float, y: float, text: str, colour: str, width: float = 1.9) -> None:
    face = plots.COLOURS[colour]
    ax.add_patch(plots.rectangle((x - width / 2, y - 0.6), width, 1.2, facecolor=face))
    ax.text(x, y, text, ha="center", va="center", color="white", fontsize=10)


def arrow(x_1: float, y_1: float, x_2: float, y_2: float) -> None:
    ax.annotate(
        "", (x_2, y_2), (x_1, y_1), arrowprops={"arrowstyle": "-|>", "color": "black"}
    )


box(0.9, 3.2, "image\nx", "reference", 1.4)
box(3.6, 3.2, "encoder", "train")
box(6.6, 4.2, "mean μ", "third", 2.2)
box(6.6, 2.2, "log σ²", "third", 2.2)
box(6.6, 0.7, "noise ε", "validation", 2.2)
box(9.7, 3.2, "z = μ + σε", "third", 2.2)
box(12.4, 3.2, "decoder", "train")
box(15.1, 3.2, "image\n$\\hat{x}$", "reference", 1.4)
for ends in (
    (1.6, 3.2, 2.6, 3.2),
    (4.6, 3.5, 5.45, 4.1),
    (4.6, 2.9, 5.45, 2.3),
    (7.75, 4.1, 8.55, 3.5),
    (7.75, 2.3, 8.55, 2.9),
    (7.75, 0.8, 9.1, 2.55),
    (10.85, 3.2, 11.4, 3.2),
    (13.4, 3.2, 14.35, 3.2),
):
    arrow(*ends)
ax.text(6.6, 5.25, "KL(q ‖ p), from μ and log σ²", ha="center", fontsize=9)
ax.text(14.2, 1.6, "log p(x|z),\nfrom x and $\\hat{x}$", ha="center", fontsize=9)
ax.text(6.6, -0.3, "drawn from N(0, I)", ha="center", fontsize=9)
ax.set_title("A variational autoencoder, and where the two terms of its ELBO come from")
plots.show(
    fig,
    alt="Boxes from left to right: image x, encoder, then two boxes side by side, mean and "
    "log-variance; a third box, noise from N(0, I), joins them in z = mean + sigma times "
    "noise; then decoder and reconstructed image. The KL term is computed from mean and "
    "log-variance, the log-likelihood from x and its reconstruction.",
)


# %%
class VAE(nn.Module):
    """Encoder to q(z|x), a draw, decoder to p(x|z); the result has names."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)  # (B, 2 d) -> twice (B, d)
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


def new_vae(d: int, likelihood: nn.Module | None = None, kind: type = VAE) -> nn.Module:
    """An untrained VAE with d latent numbers; same seed, same one."""
    torch.manual_seed(session.seed)
    encoder = companion.Encoder(2 * d, in_channels=channels, image_size=size)
    decoder = companion.Decoder(d, out_channels=channels, image_size=size)
    return kind(encoder, decoder, likelihood or Gaussian(0.2, learn_scale=True)).to(device)


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
# First with $d = 2$, so that the latent space can be drawn, and with a stated $\sigma_x = 0.5$, at which the KL is expensive. The loss is −ELBO. (The constants
# of $\log p(x \mid z)$ are −177 nats.)

# %%
vae_2 = new_vae(2, Gaussian(0.5))
history_2 = train_model(vae_2, settings.epochs_plane)

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(8.5, 2.8, columns=2)
epochs = [row["epoch"] for row in history_2.rows]
for ax, term, title in (
    (left, "log_likelihood", "log p(x|z) rises"),
    (right, "kl", "and so does the KL, its price"),
):
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
    ax.legend()
plots.show(
    fig,
    alt="The two terms of the ELBO over the epochs of training: the log-likelihood rises "
    "steeply, then slowly; the KL rises too, to between four and five nats.",
)

# %% [markdown]
# Now the map. On the left each training image is a point, at the mean of its $q(z \mid x)$; the circles hold 50 % and 95 % of the prior. On the right the
# decoder draws 14 × 14 points, with the same share of the prior between any two neighbouring rows or columns.

# %% tags=["hide-input", "cover"]
with torch.no_grad():
    mean_train = torch.cat([vae_2(x).mean for x in x_train.split(1000)])
quantiles = torch.linspace(0.02, 0.98, 14, device=device)
places = torch.special.ndtri(quantiles)  # equal shares of the prior between neighbours
across, down = torch.meshgrid(places, places.flip(0), indexing="xy")  # top: largest z₂
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
    title="Most latents lie in the prior's circles",
    xlim=(-3.5, 3.5),
    ylim=(-3.5, 3.5),
    aspect="equal",
)
plots.draw_image(right, sheet)
right.set_title("The decoder, at even shares of the prior")
plots.show(
    fig,
    alt="Left: the latent plane with every training image as a point at its posterior mean,"
    " coloured by class, over two circles that hold 50 and 95 per cent of a standard "
    "normal distribution. Right: the decoder on a 14 by 14 grid of normal quantiles: "
    "soft digits that change gradually into one another.",
)

# %% tags=["hide-input"]
inside = (mean_train.square().sum(1) < 2.448**2).float().mean()
session.expect("inside_95_circle", inside)
print("mean of the points:      ", [round(v, 2) for v in mean_train.mean(0).tolist()])
print("their standard deviation:", [round(v, 2) for v in mean_train.std(0).tolist()])

# %% [markdown]
# Compare with the plane of chapter 01. There the autoencoder put the points wherever it liked. Here most lie in the 95 % circle, with a spread near one, so
# draws from $\mathcal N(0, I)$ often land among them. This is what the KL term is for.
#
# The fit is not perfect. Look for classes that share a region, and for places inside the circles that no digit took. What does the decoder make of those?
#
# ## Train and look: sixteen numbers, beside the autoencoder
# Now $d = 16$, with a trained $\sigma_x$, and beside it an autoencoder with the same layers, steps and batches.

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
_ = train_model(vae_16, settings.epochs)

# %%
with torch.no_grad():
    torch.manual_seed(session.seed)
    rebuilt = {
        "AE": autoencoder(x_test).reconstruction.clamp(0, 1),
        "VAE, z the mean": vae_16.decoder(vae_16(x_test).mean).clamp(0, 1),
        "VAE, z drawn": vae_16(x_test).reconstruction.clamp(0, 1),
    }
two = {"A": rebuilt["AE"][:12], "B": rebuilt["VAE, z drawn"][:12]}
plots.show(
    plots.image_rows({"x": x_test[:12]} | two, title="One row is the autoencoder's"),
    alt="Three rows of the same twelve test digits: the originals, and two rows of softer "
    "reconstructions, A and B, which can hardly be told apart.",
)

# %% [markdown]
# Which row did the VAE draw, A or B? (It is B.) The eye needs a number to help it. **Edge energy** is the sum of the squared differences between neighbouring
# pixels, here as a share of that of the original test images. Blur and faint strokes lower it, noise raises it.
#
# The VAE is measured twice: decoded from the mean of $q(z \mid x)$, and from a draw, which is what the decoder sees in training.


# %%
def edge_energy(images: Tensor) -> float:
    """Squared differences between neighbouring pixels, summed; mean over the images."""
    down, right = images.diff(dim=2).square(), images.diff(dim=3).square()
    return (down.sum() + right.sum()).item() / len(images)


def sharpness(images: Tensor) -> float:
    """Edge energy relative to that of the original test images."""
    return edge_energy(images) / edge_energy(x_test)


print(f"{'reconstructions':<18} distortion  edge energy")
for name, images in rebuilt.items():
    d_test = distortion(mse(images, x_test).item(), variance)
    print(f"{name:<18} {d_test:>10.3f}  {sharpness(images):>11.2f}")

# %% tags=["hide-input"]
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

# %% [markdown]
# One pair of trainings proves little. An experiment trained five pairs, each with the same first weights and batches. The interval is that of the paired
# differences (95 %); if it lay wholly below zero, the VAE would be blurrier.

# %% tags=["hide-input"]
sweep = results("vae_beta")
edges = {
    name: torch.tensor(sweep.values("sharpness", images="grey", decoder=decoder, beta=beta))
    for name, decoder, beta in (
        ("autoencoder", "autoencoder", 0.0),
        ("VAE, σ_x = 0.1", "convolutional", 1.0),
        ("VAE, σ_x learnt", "convolutional, scale learnt", 1.0),
    )
}
for name, values in edges.items():
    line = f"{name:<15} edge energy {values.mean():.3f}"
    if name != "autoencoder":
        difference = values - edges["autoencoder"]
        margin = 2.776 * difference.std() / len(difference) ** 0.5  # Student's t, 95 %
        line += f", VAE minus autoencoder {difference.mean():+.3f} ± {margin:.3f}"
    print(line)

# %% [markdown]
# Compare with your first guess. In all three rows about 40 % of the edge energy is lost, and both intervals contain zero. Whether $z$ is drawn or not makes no
# difference you could see.
#
# One often reads that a VAE's reconstructions are blurry *because* its latents are drawn. Not with $\sigma_x$ near 0.1: the autoencoder, which draws nothing,
# blurs as much, within those intervals. What does matter is how long you train. [Study 02b](02b_likelihoods_and_collapse.ipynb) trains both three times as
# long, and the edges go on getting sharper. (A much larger $\sigma_x$ does blur.)
#
# ## New images, and what is wrong with them
# Draw $z$ from $\mathcal N(0, I)$ and decode it. (This shows the mean of $p(x \mid z)$, as papers do; an honest sample adds the Gaussian's noise, as in the
# last row.)

# %% tags=["hide-input"]
n = min(1000, len(test))
generator = torch.Generator().manual_seed(session.seed)
z_16, z_2 = (torch.randn(n, d, generator=generator).to(device) for d in (16, 2))
with torch.no_grad():
    generated = {
        "AE, d = 16": autoencoder.decoder(z_16).clamp(0, 1),
        "VAE, d = 16": vae_16.decoder(z_16).clamp(0, 1),
        "VAE, d = 2": vae_2.decoder(z_2).clamp(0, 1),
    }
    rows = {name: images[:12] for name, images in generated.items()}
    params = vae_16.decoder(z_16[:12])
    rows["d = 16, x drawn"] = vae_16.likelihood.sample(params).clamp(0, 1)
plots.show(
    plots.image_rows(rows, title="Sixteen numbers drawn from N(0, I) seldom make a digit"),
    alt="Four rows of twelve new images from N(0, I): the autoencoder's are tangles; those "
    "of the VAE with 16 numbers are blurred shapes with a digit here and there; those "
    "of the VAE with 2 numbers are soft but mostly readable digits; the last row is the"
    " second one with the grain of the likelihood's noise.",
)

# %% [markdown]
# With two numbers and $\sigma_x = 0.5$ you get digits, with sixteen and the learnt $\sigma_x$, about 0.1, mostly blurred shapes. Why, when the KL term is there
# to prevent it? A decoder can only be good where it was trained: at draws from the $q(z \mid x)$ of the training images. All of them together make up the
# **aggregate posterior**, $q(z) = \frac1N \sum_i q(z \mid x_i)$. Perhaps $q(z)$ is not the prior after all.
#
# We can find out as in chapter 01. Take draws from $q(z)$, fit a density to them, and draw from that: one Gaussian with their mean and covariance, or a mixture
# of 30 Gaussians. Beside edge energy stands the distance to the *nearest training image*, in units of distortion.


# %%
def nearest_training(images: Tensor) -> float:
    """Mean squared distance per pixel to the nearest training image, over the variance."""
    distances = torch.cdist(images.flatten(1), x_train.flatten(1)).amin(1)
    return distances.square().mean().item() / pixels / variance


with torch.no_grad():
    of_q = torch.cat([vae_16(x).z for x in x_train.split(1000)]).cpu()  # draws from q(z)
    z_test = vae_16(x_test[:n]).z.cpu()
spread = torch.linalg.cholesky(torch.cov(of_q.T))
mixture = GaussianMixture(30, tol=1e-2, reg_covar=1e-4, random_state=session.seed)
mixture.fit(of_q[:5000].double().numpy())
drawn_from = {
    "N(0, I)": z_16.cpu(),
    "one Gaussian": of_q.mean(0) + torch.randn(n, 16, generator=generator) @ spread.T,
    "30 Gaussians": torch.from_numpy(mixture.sample(n)[0]).float(),
    "q(z|x), test images": z_test,
}
with torch.no_grad():
    decoded_from = {
        name: vae_16.decoder(z.to(device)).clamp(0, 1) for name, z in drawn_from.items()
    }
print("VAE, d = 16, z from   edge energy   distance to the nearest training image")
for name, images in decoded_from.items():
    print(f"{name:<21} {sharpness(images):>11.2f} {nearest_training(images):>14.3f}")
print(
    f"{'(all black)':<21} {'':>11} {nearest_training(torch.zeros_like(x_test[:1])):>14.3f}"
)

# %% tags=["hide-input"]
plots.show(
    plots.image_rows(
        {name: images[:: n // 12][:12] for name, images in decoded_from.items()},
        title="Where z is drawn decides what the same decoder makes",
    ),
    alt="Four rows of twelve images by the same decoder. From N(0, I): blurred shapes. From "
    "one Gaussian with the latents' mean and covariance: sharper, many of them broken. "
    "From a mixture of 30 Gaussians: mostly readable digits. The last row: reconstructions.",
)

# %% tags=["hide-input"]
session.expect("sharpness_generated", sharpness(generated["VAE, d = 16"]))
session.expect("distance_vae_16", nearest_training(generated["VAE, d = 16"]))
session.expect("distance_vae_2", nearest_training(generated["VAE, d = 2"]))
session.expect("distance_rebuilt", nearest_training(rebuilt["VAE, z the mean"][:n]))
with torch.no_grad():
    for d, model in ((2, vae_2), (16, vae_16)):
        outs = [model(x) for x in x_train.split(1000)]
        session.expect(
            f"kl_{d}", sum(out.kl.item() * len(out.mean) for out in outs) / len(x_train)
        )
print(f"σ_x of the VAE with d = 16: {vae_16.likelihood.scale.item():.3f}")

# %% [markdown]
# Read the table from the top, and compare with your second guess.
#
# * From $\mathcal N(0, I)$ the images are much blurrier than reconstructions, or fainter. One Gaussian with the right mean and covariance brings the edges
#   back. So this *blur* was a misfit of mean and covariance.
# * The images from that Gaussian are still as far from training images as a black one. The mixture, which can leave the gaps between clumps of latents empty,
#   mends that too. So the rest of the fault was *broken shapes*, most likely from draws that fall into gaps.
#
# The decoder was the same in all four rows: what was wrong was where we drew. There are two cures. Make the KL more expensive, by a larger $\sigma_x$, and
# pay with details ([study 02b](02b_likelihoods_and_collapse.ipynb) does this until the latents collapse). Or learn the prior afterwards, as the mixture did,
# and as a transformer does from [chapter 07](07_transformer_prior.ipynb) on.
#
# ## Proof: what you built is what the companion has
# The same weights, images and noise go through both. Terms, latents and every gradient must agree.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = companion.VAE(companion.Encoder(6), companion.Decoder(3), Gaussian(0.2))
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
for part, built_in in (
    ("z", "exercise 2.1"),
    ("terms", "exercises 2.2 and 2.3"),
    ("gradients", "exercises 2.1 to 2.3"),
):
    a, b = (torch.tensor(numbers[name][part]) for name in ("notebook", "companion"))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), f"{part} differ: see {built_in}"
    print(f"{part:<10} agree:", True)
glue("proof.vae", numbers["notebook"], display=False)

# %% [markdown]
# ## Play: a window on the plane
# Move over the latent plane, and zoom in and out with the width: 4 spans most of the prior, 0.3 a single neighbourhood. (The map above shows the same for
# readers of the printed page.)

# %%
explorers.latent_grid(vae_2.decoder)

# %% [markdown]
# ## What breaks, and why
# Three mistakes that train without complaint. Each model gets the same few steps as a right one.
#
# **A mean over pixels beside a sum over latents.** It is easily written: `F.mse_loss`, which averages, beside a KL with `.sum()`.


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


right_model = short_training(new_vae(16, Gaussian(0.1)))
mean_reduced = short_training(new_vae(16, Gaussian(0.1), MeanReduced))
for name, model in (("sum over pixels", right_model), ("mean over pixels", mean_reduced)):
    with torch.no_grad():
        out = model(x_test)
        d_test = distortion(mse(out.reconstruction, x_test).item(), variance)
    print(f"{name:<17} KL {out.kl.item():7.3f} nats, distortion {d_test:.2f},", end=" ")
    print(f"{active_units(out.mean)} of 16 latents used")

# %% tags=["hide-input"]
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
# The reconstruction is divided by 784, so a nat of KL is 784 times as expensive. The encoder then buys nothing, and $z$ says nothing. If a VAE gives the same
# picture for every input, look first at where you sum and where you average.
#
# **The log-variance read as a standard deviation** in the draw, while the KL goes on reading it as $\log\sigma^2$:


# %%
class WrongDraw(VAE):
    """z = mean + log_variance · noise; the KL still means exp(log_variance)."""

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        z = mean + log_variance * noise
        params = self.decoder(z)
        log_likelihood = self.likelihood.log_prob(params, x)
        kl = companion.vae.kl_divergence(mean, log_variance)
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


wrong_draw = short_training(new_vae(16, Gaussian(0.1), WrongDraw))
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
# Training found a loophole. With a log-variance near 0 the draw is nearly exact, and the KL assumes a standard deviation near 1, which costs next to nothing.
# What the model reports is no bound at all, and yet it looks like a right model's.
#
# **One noise for the whole batch**, `torch.randn(d)` in place of `torch.randn(B, d)`: broadcasting hides it. Each image still sees the right distribution, so
# the gradient is right on average. But the images of a batch err together. If they erred equally, the variance would grow by a factor of the batch size (128
# in `quick`). Over 40 draws:

# %%
x = x_train[: settings.batch_size]
scatter = {}
for name, rows in (("own noise for each image", len(x)), ("one noise for all", 1)):
    generator = torch.Generator().manual_seed(session.seed)
    gradients = []
    for _ in range(40):
        noise = torch.randn(rows, 16, generator=generator).to(device).expand(len(x), 16)
        right_model.zero_grad()
        right_model(x, noise=noise).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in right_model.parameters()]))
    scatter[name] = torch.stack(gradients).var(0).sum().item()
    print(f"{name:<25} total variance of the gradient {scatter[name]:12.1f}")
ratio = scatter["one noise for all"] / scatter["own noise for each image"]
print(f"one noise for all is {ratio:.0f} times as noisy")

# %% [markdown]
# ## Pen and paper
# 1. The gap of the ELBO is $\mathrm{KL}(q \,\|\, p(z \mid x))$. For a decoder that ignores $z$, $p(x \mid z) = p(x)$: what is the posterior, what is the best
#    $q$, and what is the gap? Why is that not good news?
# 2. Weight the KL term, as β-VAE does: $-\log p(x \mid z) + \beta_{\mathrm{KL}} \cdot \mathrm{KL}$. A Gaussian likelihood has the fixed scale
#    $\sigma_x$. With which other fixed scale does $\beta_{\mathrm{KL}} = 1$ have the same minimum?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. p(z|x) = p(x|z)p(z)/p(x) = p(z): the posterior is the prior. q = N(0, I) has KL 0 and gap 0: the bound is exact, and says nothing about the use
#    of z. A tight bound is no sign of a good code.
# 2. The loss ‖x − x̂‖²/(2σ_x²) + β_KL·KL is β_KL times ‖x − x̂‖²/(2β_KLσ_x²) + KL, so the other scale is σ_x√β_KL.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * $p(x)$ adds up over all $z$, and hardly any $z$ explains an image. An encoder says where to look.
# * A KL divergence is never negative. The ELBO is reconstruction minus KL, and it lacks exactly the KL from $q(z \mid x)$ to the posterior.
# * The noise is an input (reparameterisation), the KL has a closed form, and both terms are nats per image: sums within an image, a mean over the batch.
# * $\sigma_x$ is the exchange rate between squared error and nats.
# * With $\sigma_x$ near 0.1, reconstructions are about as blurry as an autoencoder's. New images from sixteen numbers are blurrier: $\mathcal N(0, I)$ is not
#   where the latents lie, and a density fitted to them mends much of it.
#
# **Further experiments.** Train the plane with $\sigma_x = 0.1$, then with 1: do the points still fill the circles? Fit the mixture with 5 and with 100
# Gaussians: which of the two numbers moves?
#
# **References.** D. Kingma, M. Welling: *Auto-Encoding Variational Bayes*, ICLR 2014 (equations 3 and 10, appendix B). D. Rezende, S. Mohamed, D. Wierstra:
# *Stochastic Backpropagation*, ICML 2014. R. Williams: *Simple statistical gradient-following algorithms*, 1992. I. Higgins et al.: *β-VAE*, ICLR 2017. O.
# Rybkin, K. Daniilidis, S. Levine: *Simple and Effective VAE Training with Calibrated Decoders*, ICML 2021.

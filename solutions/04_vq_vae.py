# %% [markdown]
# # 04 · VQ-VAE
#
# **The question.** [Chapter 03](03_vector_quantisation.ipynb) replaced vectors by codes; chapter 01 squeezed images through a bottleneck. What comes out when
# the bottleneck *is* codes: an image of 784 pixels as a table of 49 whole numbers? You build the VQ-VAE, and you end with this: digits, their code tables,
# what the decoder makes of them, and what it makes of tables that no encoder wrote.
#
# ![Five rows of eight pictures: test digits; their code maps, seven by seven coloured squares; the digits rebuilt from those codes; images decoded from
# random codes, which are tangles; and images from codes drawn position by position, which are broken digits at best.](../chapters/pictures/04_vq_vae.png)
#
# **Afterwards you can** say where the KL of chapter 02 has gone; assemble a VQ-VAE from encoder, quantizer and decoder; measure how many codes it uses and what
# they cost in bits; and compare it fairly with an autoencoder and a VAE.
#
# **Needed:** [chapter 02](02_vae.ipynb) (the ELBO) and [chapter 03](03_vector_quantisation.ipynb) (straight-through, the two losses). How many codes, of how
# many dimensions, with which $\alpha$ and $\beta$: that is for [study 04b](04b_how_many_codes.ipynb). Terms stand in the [glossary](../chapters/glossary.md).
#
# **Time** (estimates): an hour and a half of yours, and three quarters of an hour more with the exercises; the computer's is in the table below.

# %%
import math
import tempfile

import torch
from myst_nb import glue
from torch import Tensor, nn

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.likelihoods import Gaussian
from companion.metrics import CodeUsage, distortion, mse
from companion.quantizers import VectorQuantizer
from companion.vqvae import VQVAEOutput

session = begin("04_vq_vae")
settings, device = session.settings, session.device
train, test = session.data()

# %%
x_train, y_train = train.batch(torch.arange(len(train)))
x_test, y_test = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels, size, _ = train.shape

# %% [markdown]
# ## Predict
# An autoencoder (AE), a VAE and a VQ-VAE with 64 codes, all with the same encoder and decoder, rebuild test digits.
#
# 1. Which loses least, and which most? Whose pictures are the sharpest?
# 2. How many of the 64 codes will be in use?
# 3. What does the decoder draw from a table of *random* codes?
#
# Write your guesses down.
#
# ## The whole model in one picture
# Follow one image from left to right. (The codes are made up.)

# %% tags=["hide-input"]
g = torch.Generator().manual_seed(3)
names = torch.randint(0, 6, (7, 7), generator=g)  # made up: which of six codes is where
palette = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
                        for c in plots.CLASS_COLOURS[:6]])  # fmt: skip
palette = 1 - 0.6 * (1 - palette)  # (6, 3), paler
blurred = (palette[names] + 0.07 * torch.randn(7, 7, 3, generator=g)).clamp(0, 1)

fig, ax = plots.figure(9.6, 4.3)
ax.set(xlim=(0, 25), ylim=(0, 11.2))
ax.set_axis_off()


def tile(left: float, image: Tensor, above: str, below: str, **style: object):
    """A square picture of 3.4 units, with what stands above it and below it: its axes."""
    inset = ax.inset_axes((left, 4.6, 3.4, 3.4), transform=ax.transData)
    inset.imshow(image, interpolation="nearest", **style)
    inset.set(xticks=[], yticks=[])
    inset.grid(False)
    ax.text(left + 1.7, 8.2, above, ha="center", va="bottom")
    ax.text(left + 1.7, 4.4, below, ha="center", va="top", fontsize=8)
    return inset


tile(0.1, x_test[0, 0].cpu(), "image $x$", "28 × 28", cmap="gray")
tile(6.2, blurred, "latents $z_e$", "7 × 7 positions,\nD numbers at each")
table = tile(
    10.8, torch.ones(7, 7, 3), "indices $k$", "7 × 7 whole numbers:\nall that passes"
)
for at, k in enumerate(names.flatten().tolist()):
    table.text(at % 7, at // 7, k, ha="center", va="center", fontsize=8)
below = "codebook and commitment\nloss: compare with $z_e$"
tile(15.4, palette[names], "codes $z_q = e_k$", below)
below = "reconstruction loss:\ncompare with $x$"
last = tile(
    21.5, torch.full((28, 28), 0.88), "image $\\hat x$", below, cmap="gray", vmin=0, vmax=1
)
last.text(13.5, 13.5, "?", ha="center", va="center", fontsize=20)
for left, colour, name, sides in (
    (3.8, "train", "encoder", (1.5, 0.7)),
    (19.1, "validation", "decoder", (0.7, 1.5)),
):
    a, b = sides
    ax.fill([left, left + 2.1, left + 2.1, left], [6.3 - a, 6.3 - b, 6.3 + b, 6.3 + a],
            color=plots.COLOURS[colour])  # fmt: skip
    ax.text(left + 1.05, 6.3, name, ha="center", va="center", color="white", fontsize=9)
arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.2}
ax.annotate("", (10.7, 6.3), (9.7, 6.3), arrowprops=arrow)
ax.annotate("", (15.3, 6.3), (14.3, 6.3), arrowprops=arrow)
for i, colour in enumerate(palette.tolist()):
    ax.add_patch(
        plots.rectangle(
            (10.7 + 0.62 * i, 1.2), 0.56, 0.9, facecolor=colour, edgecolor="none"
        )
    )
    ax.text(10.98 + 0.62 * i, 1.65, i, ha="center", va="center", fontsize=8)
ax.text(12.55, 0.9, "codebook $e$: K codes of D numbers", ha="center", va="top", fontsize=9)
ax.annotate("", (12.3, 3.0), (12.3, 2.2), arrowprops=arrow)
ax.text(12.0, 2.6, "nearest code", ha="right", va="center", fontsize=8)
ax.annotate("", (16.9, 3.0), (14.7, 2.0), arrowprops=arrow)
ax.text(16.2, 2.2, "look up", ha="left", va="center", fontsize=8)
back = {
    "arrowstyle": "-|>",
    "color": plots.COLOURS["third"],
    "linewidth": 2,
    "linestyle": "--",
}
back["connectionstyle"] = "arc3,rad=0.28"
ax.annotate("", (7.9, 9.2), (17.1, 9.2), arrowprops=back)
ax.text(12.5, 10.75, "straight-through: the gradient at $z_q$ is used at $z_e$", ha="center",
        color=plots.COLOURS["third"], fontsize=9)  # fmt: skip
plots.show(
    fig,
    alt="The VQ-VAE from left to right: an image of 28 by 28 pixels; the encoder; a 7 by 7 grid of "
    "latent vectors; a 7 by 7 table of indices of the nearest codes, the only thing that passes; the "
    "same grid filled with the codes looked up in the codebook; the decoder; the rebuilt image. A "
    "dashed arrow above leads from the codes back to the latents: the straight-through gradient.",
)

# %% [markdown]
# The encoder turns the image into a grid of 7 × 7 **positions**, with a vector $z_e$ of D numbers at each. At each position the quantizer looks for the nearest
# code, notes its index $k$, and hands on the code itself: $z_q = e_k$. The decoder gets nothing else. So all that passes from the left half to the right half
# is a table of $T = 49$ whole numbers.
#
# You know every part but two. How do encoder and decoder become deep? And a VAE's loss has a KL in it: where is it here?
#
# ## The bridge from chapter 02: what became of the KL?
# In a VAE the KL is the price of what the encoder says about an image: much for one, little for another. Here the encoder always says the same *amount*: one
# table of 49 numbers. So we expect the same price for all images.
#
# A VAE maximises $\mathbb{E}_q[\log p(x|z)] - \mathrm{KL}(q(z|x) \,\|\, p(z))$. Take the same two distributions here, for a table $k = (k_1, \dots, k_T)$:
#
# * $q(k|x)$ puts all its mass on one table, that of the nearest codes.
# * $p(k)$ is not learnt yet. Let it be uniform: each of the $K^T$ tables has probability $K^{-T}$.
#
# The KL is then a sum with a single term:
#
# $$\mathrm{KL}(q \,\|\, p) = \sum_k q(k|x)\,\log\frac{q(k|x)}{p(k)} = 1 \cdot \log\frac{1}{K^{-T}} = T \log K .$$
#
# It depends neither on the image nor on any weight. Its gradient is zero, so training drops it. Let torch's own distributions check the sum:

# %% tags=["nbval-check-output"]
K, T = 64, 49
one_hot = torch.zeros(T, K)
one_hot[torch.arange(T), torch.arange(T) % K] = 1.0  # any table of codes will do
q = torch.distributions.Categorical(probs=one_hot)
p = torch.distributions.Categorical(probs=torch.full((T, K), 1 / K))
kl = torch.distributions.kl_divergence(q, p).sum().item()
print(f"KL = {kl:.1f} nats,  T log K = {T * math.log(K):.1f} nats", end="  ")
print(f"= {T * math.log2(K):.0f} bits")

# %% [markdown]
# In bits this number is a **rate**: what it takes to tell the decoder which table it is, if nothing is known about tables. What remains of the ELBO is
# $\log p(x|z_q)$, and for a Gaussian of fixed width that is minus the squared error, up to a factor and a constant (chapter 02). This is the
# reconstruction term.
#
# The codebook and commitment terms come from no bound. They are there since argmin passes no gradient (chapter 03): the first moves the codes to the latents,
# the second holds the latents near their codes.
#
# When training is over, chapter 07 *learns* a prior $p(k)$ on the tables that the encoder writes, and the KL comes back as $-\log p(k)$:
#
# $$\log p(x) \;\ge\; \log p(x|z_q) + \log p(k) .$$
#
# (Why? $p(x) = \sum_{k'} p(x|k')\,p(k')$, no term is negative, and the right-hand side is the logarithm of one of them.) The uniform prior pays $T \log K$
# nats for the second term. A better one pays less on average. So training has two stages: first codes that rebuild well, then a prior that makes them cheap.
#
# <details><summary>A sign that is often wrong</summary>Equation 3 of the paper, and three of this course's source reports, write the loss with
# $+\log p(x|z_q)$ and minimise it. That would minimise the likelihood. The first term needs a minus; the squared error has it built in.</details>
#
# ## Build: a residual block
# Now the depth. A stack of convolutions replaces its input, layer after layer. A **residual block** only *corrects* it: it computes something and adds it to
# its input,
#
# $$\text{block}(x) = x + \text{conv}_{1\times1}\bigl(\text{relu}(\text{conv}_{3\times3}(\text{relu}(x)))\bigr) .$$
#
# The first term of the sum, $x$, is the **residual connection**. If the correction is zero, the block hands its input on untouched, and the gradient too.
# Twenty blocks with their last convolution set to zero show it:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(1, 4, 5, 5, requires_grad=True)
deep = x
for _ in range(20):
    inner, last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    deep = deep + last(inner(deep.relu()).relu())
wish = torch.randn_like(deep)  # a gradient that arrives from above
(arrived,) = torch.autograd.grad(deep, x, wish)
print("after 20 blocks the output is the input:", torch.equal(deep, x))
print("and the gradient arrives as it was sent:", torch.equal(arrived, wish))

# %% [markdown]
# So a deep stack can start as no stack at all, and add what it needs. (Ours start with random weights; this was to show the path of the gradient.)
#
# ### Exercise 4.1 · the residual block  (easy, 5 minutes)
# `__init__` builds the branch, the four operations inside the outer brackets. Write `forward`, the sum above: one line, and `x` itself must stay as it came.
#
# <details><summary>Hint</summary>The input is used twice. The branch's ReLUs make new tensors (they are not <code>inplace</code>), so <code>x</code> is
# still there for the sum.</details>


# %%
class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))): (B, channels, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        return x + self.branch(x)  # the branch's ReLUs are not in place: x is as it came
        ### END SOLUTION


ResidualBlock = check(ResidualBlock)

# %% [markdown]
# `companion.ResNetEncoder` and `ResNetDecoder` add strided convolutions to such blocks (here one each). Watch the grid appear: $f = 4$ times smaller than the
# image along each side.

# %% tags=["nbval-check-output"]
encoder = companion.ResNetEncoder(1, 8, hidden=32, factor=4, num_blocks=1)
decoder = companion.ResNetDecoder(1, 8, hidden=32, factor=4, num_blocks=1)
h = torch.zeros(2, 1, 28, 28)
for layer in encoder.layers:
    h = layer(h)
    kind = type(layer).__name__
    if kind != "ReLU":
        print(f"{kind:<15} {tuple(h.shape)}")
print("decoder        ", tuple(decoder(h).shape))

# %% [markdown]
# ## Build: the VQ-VAE
# All parts are there. In a row:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
quantizer = VectorQuantizer(16, 8)
x = (torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2  # in [0, 1]
z_e = encoder(x)
quantized = quantizer(z_e)
x_hat = decoder(quantized.z_q)
print("z_e", tuple(z_e.shape), "  indices", tuple(quantized.indices.shape), end="  ")
print("x_hat", tuple(x_hat.shape))
print("terms of the quantizer:", list(quantized.losses))

# %% [markdown]
# `quantized.loss` is codebook loss + $\beta$ · commitment loss (chapter 03). A second weight, $\alpha$, stands before the whole of it:
#
# $$L = \underbrace{\text{MSE}(\hat x, x)}_{\text{mean over pixels}} + \alpha\,\bigl(\underbrace{\|\mathrm{sg}[z_e]-z_q\|^2}_{\text{codebook}} + \beta\,
# \underbrace{\|z_e-\mathrm{sg}[z_q]\|^2}_{\text{commitment}}\bigr).$$
#
# Who learns from what? The reconstruction term moves the decoder and, through the straight-through gradient, the encoder; the codebook term moves the codes;
# the commitment term moves the encoder. (That was the routing table of chapter 03.)
#
# The last two terms are means over positions and dimensions. (Others sum over the D dimensions, or divide the first term by the variance of the data. The same
# $\alpha$ and $\beta$ then mean something else.)
#
# ### Exercise 4.2 · the forward pass of a VQ-VAE  (medium, 15 minutes)
# Encode, quantize, decode, and return a `VQVAEOutput` with these fields, in this order: the reconstruction; `z_e`; `z_q`; the indices; `code_counts` (K,),
# int64: how often each code was chosen in this batch; the loss $L$, with `mse(reconstruction, x)` for its first term and `self.quantizer_weight` for $\alpha$;
# and a dict of the terms before their weights, "reconstruction" first, then those of `quantized.losses`.
#
# <details><summary>Hint 1</summary>The decoder gets <code>z_q</code>, through which the gradient finds its way to the encoder.</details>
# <details><summary>Hint 2</summary><code>torch.bincount(indices.flatten(), minlength=K)</code> counts; K is <code>self.quantizer.num_codes</code>.</details>
# <details><summary>Hint 3</summary><code>{"reconstruction": error, **quantized.losses}</code> puts one dict into another.</details>


# %%
class VQVAE(nn.Module):
    """x: (B, C, H, W) -> VQVAEOutput."""

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: nn.Module,
        decoder: nn.Module,
        quantizer_weight: float = 1.0,
    ):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.quantizer_weight = quantizer_weight  # alpha

    def forward(self, x: Tensor) -> VQVAEOutput:
        ### BEGIN SOLUTION
        z_e = self.encoder(x)  # (B, D, h, w)
        quantized = self.quantizer(z_e)
        reconstruction = self.decoder(quantized.z_q)
        error = mse(reconstruction, x)
        indices = quantized.indices  # (B, h, w)
        counts = torch.bincount(indices.flatten(), minlength=self.quantizer.num_codes)
        loss = error + self.quantizer_weight * quantized.loss
        losses = {"reconstruction": error, **quantized.losses}
        return VQVAEOutput(
            reconstruction, z_e, quantized.z_q, indices, counts, loss, losses
        )
        ### END SOLUTION

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images -> code indices (B, h, w)."""
        return self.quantizer.encode(self.encoder(x))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Code indices (B, h, w) -> images, cut to [0, 1]."""
        return self.decoder(self.quantizer.decode(indices)).clamp(0, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


VQVAE = check(VQVAE)

# %% [markdown]
# Nothing in it knows *which* quantizer it has. Chapters 05 and 06 put others in the same place.
#
# ## Train and look
# K = 64 codes of D = 8 numbers, with $\alpha = 1$ and $\beta = 0.25$. Training stops after some epochs for a look at the reconstructions, and goes on: if
# `fit` is given a folder as `run`, it continues where it stopped. Beside the loss it reports the *perplexity*, an effective number of codes in use (next
# section).

# %%
K, D = settings.num_codes, settings.dim
shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}


def new_pair(outputs: int = D) -> tuple[nn.Module, nn.Module]:
    """An untrained encoder with the given number of outputs per position, and a decoder."""
    torch.manual_seed(session.seed)
    return (
        companion.ResNetEncoder(channels, outputs, **shape),
        companion.ResNetDecoder(channels, D, **shape),
    )


options = {
    "validation": test,
    "batch_size": settings.batch_size,
    "lr": settings.lr,
    "seed": session.seed,
    "device": device,
}
encoder, decoder = new_pair()
vqvae = VQVAE(encoder, VectorQuantizer(K, D), decoder).to(device)

stages = {0: vqvae.reconstruct(x_test[:12])}
with tempfile.TemporaryDirectory() as folder:
    for epochs in settings.stages:
        history = companion.fit(vqvae, train, epochs=epochs, run=folder, **options)
        stages[epochs] = vqvae.reconstruct(x_test[:12])
        if history.interrupted:
            break
history

# %% tags=["hide-input"]
after = {n: f"after {n} epoch{'s' * (n > 1)}" if n else "before training" for n in stages}
plots.show(
    plots.image_rows(
        {"x": x_test[:12]} | {after[n]: images for n, images in stages.items()},
        title="First where the ink is, then the strokes, then their edges",
    ),
    alt="Twelve test digits above their reconstructions before training and after "
    "growing numbers of epochs: at first grey fog, then blurred digits, at the end "
    "digits with clean strokes.",
)

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(9, 3, columns=2)
epoch = [row["epoch"] for row in history.rows]
for term, style in (("reconstruction", "o-"), ("codebook", "s--")):
    colour = plots.COLOURS["train" if term == "reconstruction" else "third"]
    values = [row[f"validation_{term}"] for row in history.rows]
    left.plot(epoch, values, style, color=colour, label=term)
left.set(
    xlabel="epoch",
    ylabel="held-out term",
    title="Reconstruction and codebook term",
    ylim=(0, None),
)
left.legend()
perplexities = [row["validation_perplexity"] for row in history.rows]
right.plot(epoch, perplexities, "o-", color=plots.COLOURS["train"])
right.axhline(K, color=plots.COLOURS["reference"], linestyle="--")
right.text(epoch[0], K * 0.97, f"K = {K}", va="top")
right.set(
    xlabel="epoch",
    ylabel="perplexity",
    title="Few codes carry the load",
    ylim=(0, K * 1.05),
)
plots.show(
    fig,
    alt="Left: held-out reconstruction error and codebook loss over the epochs. "
    "Right: the perplexity of the codes on held-out images, which stays far "
    "below the number of codes there are.",
)

# %%
session.expect(
    "distortion", distortion(history.last["validation_reconstruction"], variance)
)
session.expect("perplexity", history.last["validation_perplexity"])
print(
    f"usage = {history.last['validation_usage']:.2f}: the share of codes chosen at least once"
)

# %% [markdown]
# The commitment term has the same value as the codebook term (chapter 03: one value, two gradients), so it is not drawn. And do not trust a falling total loss:
# both quantizer terms would shrink to nothing if the encoder put all latents into one point. Look at the reconstruction term, at pictures, and at the codes.
#
# ## How many codes are in use?
# **Usage** is the share of codes chosen at least once. It counts a code that was chosen once in a thousand images like any other. The **perplexity** is finer.
# Take the share $p_k$ of each code among all that were chosen, and the **entropy** $H = -\sum_k p_k \log p_k$ of these shares. The perplexity is $e^H$. If n
# codes are used equally often, it is n:

# %% tags=["nbval-check-output"]
shares = {
    "four codes evenly": torch.tensor([25, 25, 25, 25, 0, 0, 0, 0]),
    "one code": torch.tensor([100, 0, 0, 0, 0, 0, 0, 0]),
    "one often, seven rarely": torch.tensor([93, 1, 1, 1, 1, 1, 1, 1]),
}
for name, counts in shares.items():
    value = companion.metrics.perplexity(counts)
    used = (counts > 0).float().mean()
    print(f"{name:<24} usage {used:.3f}   perplexity {value:.3f}")

# %% [markdown]
# ### Exercise 4.3 · perplexity  (easy, 10 minutes)
# From counts (K,) to a Python float: $e^H$ of their shares. A code that was never chosen has $p = 0$, and $0 \log 0$ counts as 0: your code must not give NaN
# there. Compute in float64 (float32 keeps seven digits).
#
# <details><summary>Hint 1</summary><code>torch.xlogy(p, p)</code> is p·log p, and 0 where p is 0.</details>
# <details><summary>Hint 2</summary>Divide in float64 (<code>counts.double()</code>); the logarithm is the natural one if the exponential
# is.</details>


# %%
def perplexity(counts: Tensor) -> float:
    """counts: (K,) whole numbers, at least one of them positive -> exp of the entropy."""
    ### BEGIN SOLUTION
    p = counts.double() / counts.sum()
    entropy = -torch.xlogy(p, p).sum()  # nats
    return entropy.exp().item()
    ### END SOLUTION


perplexity = check(perplexity)

# %% tags=["hide-input"]
usage = CodeUsage(K).update(vqvae.encode(x_test))
counts = usage.counts.sort(descending=True).values.cpu()
fig, ax = plots.figure(7, 2.7)
ax.bar(range(K), counts.numpy(), color=plots.COLOURS["train"])
ax.set(
    xlabel="code, from the most to the least used",
    ylabel="times chosen",
    title=f"{int((counts > 0).sum())} of {K} codes are used; perplexity "
    f"{perplexity(counts):.1f}",
)
plots.show(
    fig,
    alt="Histogram of the codes by how often the test images use them: one code, that of "
    "the empty background, is chosen by far the most, some more are chosen often, and the "
    "rest never.",
)

# %% [markdown]
# Look back at your second guess. Most codes are **dead**: no latent has them as its nearest, so the codebook loss does not move them. A latent that strays near
# one could bring it back. Chapter 05 revives them on purpose.
#
# What does a single code draw? Fill a whole table with it, and decode:

# %% tags=["hide-input"]
order = usage.counts.argsort(descending=True)[:16]
solo = vqvae.decode(order[:, None, None].expand(-1, 7, 7))
plots.show(
    plots.image_rows(
        {"codes 1–8": solo[:8], "codes 9–16": solo[8:]},
        title="Sixteen codes, most used first, each filling a table of its own",
    ),
    alt="Sixteen decoded images, each from a table filled with one code: the most used "
    "ones are black or nearly so, others grey or white gratings.",
)

# %% [markdown]
# The most used codes come out black: the background, which several codes share. The others give gratings, not strokes. No image has such a table, and what a
# code draws depends on its neighbours.
#
# ## The image as a table of numbers
# Here is what the decoder gets. The more a code is used, the lighter its colour. Does the number of a dark square come back elsewhere, on the same piece of
# a stroke?

# %% tags=["hide-input"]
rank = torch.empty(K, dtype=torch.int64)
rank[usage.counts.argsort(descending=True).cpu()] = torch.arange(K)
rank = rank.clamp(max=int((usage.counts > 0).sum()))  # what is never used counts as one
maps = vqvae.encode(x_test[:4]).cpu()
fig, axes = plots.figure(9.6, 4.9, rows=2, columns=4)
for i in range(4):
    plots.draw_image(axes[0, i], x_test[i])
    plots.draw_codes(axes[1, i], maps[i], order=rank)
axes[0, 0].set_title("x")
axes[1, 0].set_title("k")
plots.show(
    fig,
    alt="Four test digits above their code maps, seven by seven tables of numbers. Where "
    "the image is black a few codes repeat; along the strokes other codes stand, and equal "
    "strokes have equal codes.",
)

# %% [markdown]
# ### Exercise 4.4 · bits per image  (medium, 15 minutes)
# What does such a table cost to write down? If a code has the share $p$, the best name for it has $-\log_2 p$ bits: frequent codes get short names, and the
# mean length is the entropy $H$ in bits. Give three numbers, in bits per image, for indices (N, h, w) of N images:
#
# * **nominal**: every code takes $\log_2 K$ bits, so $T \log_2 K$ in all;
# * **entropy**: $T H$, with the codes' shares over *all* positions together;
# * **per_position**: $\sum_t H_t$, with the entropy $H_t$ of the shares at position $t$ alone.
#
# <details><summary>Hint 1</summary>Flatten to (N, T). <code>math.log2</code> of your <code>perplexity</code> is the entropy in bits, which saves
# you from writing it a second time.</details>
# <details><summary>Hint 2</summary>A loop over the T columns is fine.</details>


# %%
def bits_per_image(indices: Tensor, num_codes: int) -> dict[str, float]:
    """indices: (N, h, w) -> {"nominal": ..., "entropy": ..., "per_position": ...}."""
    ### BEGIN SOLUTION
    table = indices.flatten(1)  # (N, T)

    def entropy(some: Tensor) -> float:
        return math.log2(perplexity(torch.bincount(some.flatten(), minlength=num_codes)))

    positions = table.shape[1]
    return {
        "nominal": positions * math.log2(num_codes),
        "entropy": positions * entropy(table),
        "per_position": sum(entropy(table[:, t]) for t in range(positions)),
    }
    ### END SOLUTION


bits_per_image = check(bits_per_image)

# %%
bits = bits_per_image(vqvae.encode(x_test), K)
for name, value in bits.items():
    print(f"{name:<13} {value:6.1f} bits per image, {value / 784:.3f} per pixel")
session.expect("entropy_bits", bits["entropy"])
session.expect("per_position_bits", bits["per_position"])

# %% [markdown]
# Each is smaller than the one before: it saves bits to know how often codes occur, and more to know where. (The shares are those of the very images that are
# written down. That makes both numbers a little too small; chapter 07 takes them from training images.) What none of the three knows is the *neighbours*: that
# a stroke which enters a square leaves it on another side. A prior that knows will be cheaper still.
#
# ## Beside an autoencoder and a VAE of the same size
# Now the first guess. The same encoder and decoder with nothing between them make an AE, with a grid of 7 · 7 · 8 = 392 real numbers. With the Gaussian latents
# of chapter 02 they make a VAE (its likelihood is a Gaussian with $\sigma_x = 0.1$).

# %%
encoder, decoder = new_pair()
ae = companion.Autoencoder(encoder, decoder)
print("autoencoder")
ae_history = companion.fit(ae, train, epochs=settings.stages[-1], **options)

encoder, decoder = new_pair(2 * D)
vae = companion.VAE(encoder, decoder, Gaussian(0.1))
print("variational autoencoder")
vae_history = companion.fit(vae, train, epochs=settings.stages[-1], **options)

# %% [markdown]
# A comparison needs two numbers of each model: what it loses, and what it *sends*. What each one sends is a different kind of thing:
#
# * **VQ-VAE**: a table, and you have just counted its bits.
# * **AE**: real numbers, and a real number takes no finite number of bits. We have to round it. With 8 bits, each latent gets one of 256 levels between the
#   smallest and the largest value of its channel.
# * **VAE**: its rate is the KL, in bits. That is the price of a *draw* from $q(z|x)$, so a draw is what we have to decode. (The mean of $q$ is a
#   real number again.)
#
# <details><summary>Can one really send a draw for the price of the KL?</summary>Nearly. <em>Relative entropy coding</em> (also called channel simulation)
# sends a draw from q with about KL bits and a little more; it is slow, and hardly anybody uses it. <em>Bits back</em> is something else: a lossless code for
# x, at the price of −ELBO. A VAE's rate is thus a rate on paper, and a table of codes is a file.</details>
#
# Beside the distortion stands the **edge energy** of chapter 02: squared differences of neighbouring pixels, summed, relative to the originals. Blur lowers it.
# (Images are cut to [0, 1] here; in the training's table they are not.)


# %%
def edge_energy(images: Tensor) -> float:
    """Squared differences between neighbouring pixels, summed; mean over the images."""
    down, across = images.diff(dim=2).square(), images.diff(dim=3).square()
    return (down.sum() + across.sum()).item() / len(images)


@torch.no_grad()
def rounded(z: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """Each number of z as the nearest of 2 ** bits levels from low to high."""
    steps = 2**bits - 1
    level = ((z - low) / (high - low) * steps).round().clamp(0, steps)
    return low + level / steps * (high - low)


with torch.no_grad():
    z = ae.encoder(x_train[:1000])  # (1000, D, 7, 7)
    low, high = z.amin((0, 2, 3), keepdim=True), z.amax((0, 2, 3), keepdim=True)
    z = ae.encoder(x_test)
    coarse = {b: ae.decoder(rounded(z, b, low, high)).clamp(0, 1) for b in range(1, 9)}
    torch.manual_seed(session.seed)
    drawn_vae = vae(x_test).reconstruction.clamp(0, 1)
rebuilt = {
    "AE": ae.reconstruct(x_test),
    "AE, 8 bits": coarse[8],
    "AE, 1 bit": coarse[1],
    "VAE, mean": vae.reconstruct(x_test),
    "VAE, a draw": drawn_vae,
    "VQ-VAE": vqvae.reconstruct(x_test),
}
lost = {name: mse(images, x_test).item() / variance for name, images in rebuilt.items()}

# %% tags=["hide-input"]
kl_bits = vae_history.last["validation_kl"] / math.log(2)
numbers_sent = z[0].numel()
rates = {
    "AE": "not finite",
    "AE, 8 bits": f"{8 * numbers_sent} nominal",
    "AE, 1 bit": f"{numbers_sent} nominal",
    "VAE, mean": "not finite",
    "VAE, a draw": f"{kl_bits:.0f} (KL)",
    "VQ-VAE": f"{bits['nominal']:.0f} nominal, {bits['entropy']:.0f} entropy, {bits['per_position']:.0f} by position",
}
print(f"{'':<12} distortion  edge energy  rate in bits per image")
for name, images in rebuilt.items():
    edges = edge_energy(images) / edge_energy(x_test)
    print(f"{name:<12} {lost[name]:>10.4f}  {edges:>11.2f}  {rates[name]}")
session.expect("distortion_ae", lost["AE"])
session.expect("distortion_vae", lost["VAE, mean"])
session.expect("kl_bits_vae", kl_bits)

# %% tags=["hide-input"]
fig, ax = plots.figure(7, 3.6)
curve = [(b * numbers_sent, mse(coarse[b], x_test).item() / variance) for b in coarse]
ax.plot(*zip(*curve, strict=True), "o-", color=plots.COLOURS["third"],
        label="AE, rounded to 1 … 8 bits a number")  # fmt: skip
ax.plot(kl_bits, lost["VAE, a draw"], "D", color=plots.COLOURS["validation"], markersize=8,
        label="VAE, a draw, at its KL")  # fmt: skip
for name, marker, fill in (
    ("nominal", "s", "full"),
    ("entropy", "^", "none"),
    ("per_position", "v", "none"),
):
    ax.plot(bits[name], lost["VQ-VAE"], marker, color=plots.COLOURS["train"], fillstyle=fill,
            markersize=8, label=f"VQ-VAE, {name.replace('per_', 'by ')}")  # fmt: skip
ax.set(xscale="log", yscale="log", xlabel="rate, bits per image", ylabel="distortion")
ticks = {100: "100", 200: "200", 400: "400", 1000: "1000", 3000: "3000"}
ax.set_xticks(list(ticks), list(ticks.values()), minor=False)
ax.set_ylim(0.02, 0.4)
ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], ["0.02", "0.05", "0.1", "0.2", "0.4"])
ax.minorticks_off()
ax.legend(fontsize=8)
ax.set_title("What each model loses at what rate: lower left is better")
plots.show(
    fig,
    alt="Distortion against rate in bits per image, both on logarithmic scales. The autoencoder's "
    "curve falls from 1 bit a number to 8 bits a number, far to the right. The VAE's point and the "
    "three points of the VQ-VAE stand to its lower left.",
)

# %% tags=["hide-input"]
rows = {"x": x_test[:12]} | {
    name: rebuilt[name][:12] for name in ("AE", "AE, 1 bit", "VAE, a draw", "VQ-VAE")
}
plots.show(
    plots.image_rows(rows, title="The same twelve digits, rebuilt by each model"),
    alt="Twelve test digits and their reconstructions. The autoencoder's are nearly the originals; with "
    "one bit a number they are noisy and torn; the VAE's, from a draw, and the VQ-VAE's are a little "
    "soft and much alike.",
)

# %% [markdown]
# Read it row by row. The AE loses least and is the sharpest. Rounding to 8 bits changes nothing. Rounding to **one** bit ruins it, although its 392 bits are
# still more than the VQ-VAE's table takes. (Its edge energy is above one: noise has edges, too. Sharpness alone means little.) Nobody told the AE
# that its numbers would be rounded. The VQ-VAE learnt its codes *with* the rounding.
#
# The VAE loses less than the VQ-VAE, and its KL is smaller than the table's nominal bits. Both keep about the same edge energy. So "a
# VQ-VAE is sharper than a VAE" is *not* what this comparison shows. (It is one training of each, at one $\sigma_x$ of the VAE.
# [Study 04b](04b_how_many_codes.ipynb) puts more models into the plane.)
#
# Now look at the three blue marks. They are one table, written down in three ways. Counting codes brings its rate below the VAE's here, but its distortion
# is higher; counting them at each position saves more than half of the nominal bits. That is what codes offer: not a better picture, but a row of *symbols*,
# whose distribution can be learnt by counting, or by a model that predicts the next one. (A VAE's prior can be learnt, too; ours is fixed.)
#
# ## Random codes decode to tangles
# A VAE can be asked for new images: draw $z$ from N(0, I), decode. What does the VQ-VAE give if we draw the codes? We try it in two ways. First, every code is
# equally likely. Second, each position is drawn from its own shares among the training images, so that corners are mostly background, but independently of its
# neighbours.

# %%
generator = torch.Generator().manual_seed(session.seed)
n = min(500, len(test))
codes = vqvae.encode(x_train)  # (N, 7, 7)
uniform = torch.randint(0, K, (n, 7, 7), generator=generator).to(device)
who = torch.randint(0, len(codes), (n, 49), generator=generator).to(device)
by_position = codes.flatten(1).gather(0, who).unflatten(1, (7, 7))  # from 49 images each
drawn = {
    "random codes": vqvae.decode(uniform),
    "by position": vqvae.decode(by_position),
}

# %% tags=["hide-input", "cover"]
maps = vqvae.encode(x_test[:8]).cpu()
fig, axes = plots.figure(9, 5.9, rows=5, columns=8)
for i in range(8):
    plots.draw_image(axes[0, i], x_test[i])
    plots.draw_codes(axes[1, i], maps[i], order=rank, numbers=False)
    plots.draw_image(axes[2, i], vqvae.decode(maps[i : i + 1].to(device))[0])
    for ax, images in zip(axes[3:, i], drawn.values(), strict=True):
        plots.draw_image(ax, images[i])
for line, name in zip(axes, ("x", "codes k", "decoded", *drawn), strict=True):
    line[0].text(-0.2, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
plots.show(
    fig,
    alt="Five rows of eight pictures: test digits; their code maps as coloured squares; the "
    "digits rebuilt from them; images decoded from random codes, which are tangles; and "
    "images from codes drawn position by position, which are broken digits at best.",
)


# %%
def nearest_training(images: Tensor) -> float:
    """Mean squared distance per pixel to the nearest training image, over the variance."""
    distances = torch.cdist(images.flatten(1), x_train.flatten(1)).amin(1)
    return distances.square().mean().item() / images[0].numel() / variance


print("mean squared distance to the nearest training image, over the variance")
for name, images in drawn.items():
    session.expect(f"distance_{name.replace(' ', '_')}", nearest_training(images))
session.expect("distance_rebuilt", nearest_training(vqvae.reconstruct(x_test[:n])))
session.expect("distance_black", nearest_training(torch.zeros_like(x_test[:n])))

# %% [markdown]
# Your third guess. Random codes give tangles. (Most codes that are drawn so were never used, and nobody taught the decoder anything about them.) Drawing by
# position uses codes only where they are in use. The ink is now in the right region, and at best a broken digit can be made out.
#
# Rebuilt test images lie nearer to a training image than a black picture does, and images drawn by position lie farther: misplaced ink costs more than no
# ink. (For random codes the number differs much between trainings.) What makes a digit is which codes stand *next to each other*, and here nothing knows that.
#
# So a VQ-VAE is only half of a generative model. The other half is a **prior**: a model of $p(k)$ that has learnt which codes go together. **How can one learn
# a distribution over tables of 49 whole numbers, and draw from it?** That is the question of [chapter 07](07_transformer_prior.ipynb). (Chapters 05 and 06 make
# the codes better first.)
#
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = companion.VQVAE(
    companion.ResNetEncoder(1, 4, hidden=8, num_blocks=1),
    VectorQuantizer(16, 4),
    companion.ResNetDecoder(1, 4, hidden=8, num_blocks=1),
    quantizer_weight=2.0,
)
torch.manual_seed(0)
ours = VQVAE(
    companion.ResNetEncoder(1, 4, hidden=8, num_blocks=1),
    VectorQuantizer(16, 4),
    companion.ResNetDecoder(1, 4, hidden=8, num_blocks=1),
    quantizer_weight=2.0,
)
ours.load_state_dict(theirs.state_dict())
x = (torch.linspace(0, 12, 3 * 12 * 12).sin().reshape(3, 1, 12, 12) + 1) / 2  # in [0, 1]

numbers = {}
for name, model in (("notebook", ours), ("companion", theirs)):
    out = model(x)
    out.loss.backward()
    numbers[name] = {
        "losses": [value.item() for value in (out.loss, *out.losses.values())],
        "indices": out.indices.flatten().tolist(),
        "gradients": [p.grad.norm().item() for p in model.parameters()],
    }
for part, values in numbers["notebook"].items():
    a, b = torch.tensor(values), torch.tensor(numbers["companion"][part])
    torch.testing.assert_close(
        a, b, rtol=1e-5, atol=1e-7, msg=lambda m, part=part: f"exercise 4.2, {part}: {m}"
    )
    print(f"{part:<10} agree:", True)
glue("proof.vqvae", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
their_block = companion.backbones.ResidualBlock(3)
our_block = ResidualBlock(3)
our_block.load_state_dict(their_block.state_dict())
x = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
torch.testing.assert_close(
    our_block(x), their_block(x), rtol=1e-5, atol=1e-7, msg=lambda m: f"exercise 4.1: {m}"
)
glue("proof.residual_block", our_block(x).flatten().tolist(), display=False)
print("residual blocks agree:", True)

counts = torch.tensor([5, 0, 3, 1, 1])
theirs_p = companion.metrics.perplexity(counts)
assert abs(perplexity(counts) - theirs_p) < 1e-9, f"exercise 4.3: want {theirs_p}"
glue("proof.perplexity", perplexity(counts), display=False)
print("perplexities agree:", True)

some = torch.arange(60).reshape(5, 3, 4) ** 2 % 7
a, b = bits_per_image(some, 8), companion.metrics.bits_per_image(some, 8)
assert all(abs(a[name] - b[name]) < 1e-9 for name in b), f"exercise 4.4: want {b}"
glue("proof.bits_per_image", a, display=False)
print("bits agree:", True)

# %% [markdown]
# ## Play: edit the code map
# Click a position of the table, choose another code with the slider, and watch the image. How far does one code reach? Can you turn a digit into another?

# %%
explorers.code_map(vqvae, x_test[:20])

# %% [markdown]
# The same without a mouse: one position, first with its own code, then with the eight codes that change the image most. Below each stands what it changes. The
# frame is the position, one pixel wider all round. The change goes beyond it, since the decoder's convolutions look at neighbours.

# %% tags=["hide-input"]
row, column = 3, 3
variants = vqvae.encode(x_test[:1]).repeat(K, 1, 1)
variants[:, row, column] = torch.arange(K, device=device)
own = int(vqvae.encode(x_test[:1])[0, row, column])
images = vqvae.decode(variants)
changes = (images - images[own]).abs()  # what each code would change
used = (usage.counts > 0).to(device)
strength = changes.square().flatten(1).mean(1) * used
strongest = strength.argsort(descending=True)[:8].tolist()
fig, axes = plots.figure(9.6, 2.3, rows=2, columns=9)
frame = {"fill": False, "edgecolor": plots.COLOURS["validation"], "linewidth": 1}
corner = (4 * column - 1.5, 4 * row - 1.5)  # of a square that is one pixel wider all round
for (above, below), k in zip(axes.T, [own, *strongest], strict=True):
    plots.draw_image(above, images[k])
    above.set_title(f"{k}" if k != own else f"{k}, its own", fontsize=9)
    plots.draw_image(below, changes[k])
    below.add_patch(plots.rectangle(corner, 6, 6, **frame))
axes[1, 0].text(
    -0.1, 0.5, "change", transform=axes[1, 0].transAxes, ha="right", va="center"
)
plots.show(
    fig,
    alt="A digit decoded nine times, with another code each time at the middle of its table; "
    "below, where and how much each differs from the first: most in and around the framed "
    "position, little elsewhere.",
)

# %% [markdown]
# ## What breaks, and why
# **A ReLU in place.** `nn.ReLU(inplace=True)` saves memory by writing into its input. In a residual block that input is also one half of the sum, which then
# adds relu(x) instead of x. Nothing crashes, and the network still trains. It is just not the one you wrote down.


# %% tags=["nbval-check-output"]
class InPlaceBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


torch.manual_seed(0)
x = torch.randn(1, 3, 4, 4)
for block in (ResidualBlock(3), InPlaceBlock(3)):
    given = x.clone()
    with torch.no_grad():
        block(given)
    kept = torch.equal(given, x)
    print(f"{type(block).__name__:<14} leaves its input as it was: {kept}", end="  ")
    print(f"negative numbers left in it: {bool((given < 0).any())}")

# %% [markdown]
# **A perplexity averaged over batches.** One image uses only some of the codes, so its perplexity is low (and never above 49, the number of its
# positions). The average over batches depends on their size. The perplexity of the summed counts does not:

# %%
indices = vqvae.encode(x_test)
for batch_size in (1, 16, 128):
    batches = indices.split(batch_size)
    mean = sum(CodeUsage(K).update(b).perplexity for b in batches) / len(batches)
    whole = CodeUsage(K)
    for batch in batches:
        whole.update(batch)
    print(
        f"batches of {batch_size:>3}: averaged {mean:5.2f}   of the sum {whole.perplexity:5.2f}"
    )

# %% [markdown]
# **No commitment.** With $\beta = 0$ nothing holds the latents near their codes. The gradient that was taken at $z_q$ pushes $z_e$ on and on, in the
# direction in which $z_q$ *should* move, and does not notice where $z_e$ already is. A few steps with and without:

# %%
distances, sizes = {}, {}
for beta in (0.25, 0.0):
    encoder, decoder = new_pair()
    torch.manual_seed(session.seed)
    model = VQVAE(encoder, VectorQuantizer(K, D, commitment_weight=beta), decoder).to(
        device
    )
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    line = []
    for step in range(settings.runaway_steps):
        rows = torch.arange(64) + 64 * step
        x, _ = train.batch(rows % len(train))
        out = model(x)
        adam.zero_grad()
        out.loss.backward()
        adam.step()
        line.append(out.losses["codebook"].item())
    distances[beta] = line
    sizes[beta] = (
        out.z_e.square().mean().sqrt(),
        model.quantizer.codebook.square().mean().sqrt(),
    )

for beta, (latents, codes_size) in sizes.items():
    print(
        f"β = {beta:<5} root mean square of latents {latents:.2g}, of codes {codes_size:.2g}"
    )

# %% tags=["hide-input"]
fig, ax = plots.figure(6, 2.7)
ax.plot(distances[0.25], color=plots.COLOURS["train"], label="β = 0.25")
ax.plot(distances[0.0], "--", color=plots.COLOURS["validation"], label="β = 0")
ax.set(
    xlabel="step", ylabel="‖z_e − z_q‖², mean", yscale="log",
    title="Without commitment the latents leave their codes",
)  # fmt: skip
ax.legend()
plots.show(
    fig,
    alt="The mean squared distance between latents and their codes over the first steps of "
    "training, on a logarithmic scale: with beta 0.25 it stays below a tenth, without "
    "commitment it grows by many orders of magnitude.",
)
ratio = sum(distances[0.0][-20:]) / sum(distances[0.25][-20:])
session.expect("runaway_log10", math.log10(ratio))

# %% [markdown]
# The last number is how many powers of ten larger the distance is at the end. And the two lines above the figure say who ran away: the latents. The codes kept
# their size. We did not test why. Only the codes that are chosen are pulled at all, and Adam takes steps of about the learning rate, however strong the
# pull; but the encoder takes such steps, too, and its output grows.
#
# ## Pen and paper
# 1. A VQ-VAE on 256 × 256 colour images with f = 8 and K = 8,192. How many bits does an image take nominally, how many per pixel, and how many times more does
#    the image take at 8 bits per channel?
# 2. The encoder could choose another table than that of the nearest codes. Would $\log p(x) \ge \log p(x|z_q) + \log p(k)$ still hold?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. T = 32 · 32 = 1,024 positions of log₂ 8,192 = 13 bits: 13,312 bits. Per pixel 13,312 / 65,536 = 0.203 bits. The image has 65,536 · 24 bits, 118 times
#    as many.
# 2. Yes: the right-hand side is one term of a sum without negative terms, whichever it is. The nearest codes need not be the best table for the decoder. They
#    are the one that is cheap to find.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A VQ-VAE is an encoder, a quantizer and a decoder in a row. Its loss is the reconstruction error plus $\alpha$ times what the quantizer adds.
# * With a one-hot $q$ and a uniform $p$ the KL is the constant $T \log K$. Training drops it; a learnt prior puts it back, smaller.
# * An image is a table of codes. Its rate has names: nominal bits, entropy bits, bits by position, and soon those of a prior.
# * Perplexity is counted over the whole set. Here a codebook that learns by gradient left most of its codes dead; chapter 05 revives them.
# * Beside an unrounded AE and a VAE of the same size the VQ-VAE loses most here. But its rate is that of a file, and its latent is a table of symbols, which
#   a prior can learn.
# * Random codes decode to tangles. Chapters 07 and 08 learn to write tables that decode to digits.
#
# **Further experiments.** [Study 04b](04b_how_many_codes.ipynb) varies K, D, $\alpha$, $\beta$, the quantizer, the depth and the length of training. By
# yourself: put `companion.FiniteScalarQuantizer([4, 4, 4])` into the VQ-VAE (D = 3). Train with f = 2: 196 codes an image; is the distortion worth the bits?
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (equation 3 is the loss). K. He and others:
# *Identity Mappings in Deep Residual Networks*, 2016. M. Havasi, R. Peharz, J. M. Hernández-Lobato: *Minimal Random Code Learning*, 2019 (relative entropy
# coding). J. Townsend, T. Bird, D. Barber: *Practical Lossless Compression with Latent Variables using Bits Back Coding*, 2019.

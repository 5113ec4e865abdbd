# %% [markdown]
# # 04 · VQ-VAE
#
# **The question.** Chapter 03 replaced vectors by codes; chapter 01 squeezed images through a bottleneck. What comes out when the bottleneck
# *is* codes: an image of 784 pixels as a table of 49 whole numbers? You build the VQ-VAE, and you end with this: digits, their code
# tables, what the decoder makes of them, and what it makes of tables nobody's encoder wrote:
#
# ![Five rows of eight pictures: test digits; their code maps, seven by seven coloured squares; the digits rebuilt from those codes; images decoded from
# random codes, which are tangles; and images from codes drawn position by position, which are broken digits at best.](../chapters/pictures/04_vq_vae.png)
#
# **Afterwards you can** derive the reconstruction term of the VQ-VAE's loss from the ELBO of chapter 02, assemble the model from encoder, quantizer and
# decoder, measure how it uses its codes and what they cost in bits, and say what α, β, K and D do.
#
# **Needed:** [chapter 02](02_vae.ipynb) (the ELBO) and [chapter 03](03_vector_quantisation.ipynb) (straight-through, the two losses).
# **Time:** about an hour and a half of yours; the computer's is in the table below.

# %%
import math
import tempfile

import torch
from myst_nb import glue
from torch import Tensor, nn

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import measured_claims, results
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
# The loss will be L = reconstruction + α · (codebook + β · commitment). Two knobs, α and β. Suppose you **double α and halve β**, so that
# αβ stays what it was. What changes in training, if the optimizer is SGD? And what changes if it is Adam? Write your guess down;
# the answer is measured below.
#
# ## The bridge from chapter 02: what became of the KL?
# A VAE maximises log p(x|z) − KL(q(z|x) ‖ p(z)). The VQ-VAE's training loss has no KL in it. Where did it go?
#
# The latent is now a table of T = h·w code indices k = (k₁, …, k_T), each one of K. Take the two distributions in turn.
#
# * **q(k|x)** puts all its mass on one table, that of the nearest codes: q(k|x) = 1 for it and 0 for every other.
# * **p(k)** is not learnt yet. While encoder and decoder are trained, take the uniform one: every table has probability (1/K)^T.
#
# Then the KL is a sum with one term:
#
# $$\mathrm{KL}(q \,\|\, p) = \sum_k q(k|x)\,\log\frac{q(k|x)}{p(k)} = 1 \cdot \log\frac{1}{(1/K)^T} = T \log K .$$
#
# Neither the image nor a single weight is in it. Its gradient is zero, so training may drop it, and does. In numbers, with torch's own
# distributions:

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
# That number is the **rate**: to tell the decoder which table it is, if nothing is known about tables, takes T·log₂K bits: here 49 · 6 = 294.
# What remains of the ELBO is log p(x|z_q), and with a Gaussian of fixed width σ that is the squared error up to constants (chapter 02):
#
# $$-\log p(x|z_q) = \frac{1}{2\sigma^2}\,\|x - \hat x\|^2 + \text{const} .$$
#
# That is the reconstruction term. The codebook and commitment terms come from no bound: they are there because argmin passes no gradient (chapter 03). The
# first moves the codes, the second holds the encoder to them. And since the course takes the squared error as a mean over pixels, with no 1/(2σ²) before it,
# σ is hidden in α: a larger α is a larger σ.
#
# Later a prior p(k) is *learnt* on the tables that the trained encoder writes (chapter 07). It puts the KL back, now smaller: for the one table
# that the encoder chooses,
#
# $$\log p(x) \;\ge\; \log p(x|z_q) + \log p(k),$$
#
# because log p(x) = log Σ_k′ p(x|k′) p(k′), all terms of the sum are positive, and the right-hand side is the logarithm of one of them. The second
# term costs T·log K nats under the uniform prior and less under every better one. So training falls into two stages: first a code that rebuilds well,
# then a prior that makes it cheap.
#
# **Often written, not so.** Three of this course's source reports write the loss as L = log p(x|z_q) + ‖sg[z_e] − e‖² + β‖z_e − sg[e]‖²
# and minimise it. That would minimise the likelihood: the first term needs a minus sign. (Equation 3 of the paper itself has the same slip.)
#
# ## Build: a residual block
# The encoder is a stack of convolutions, as in chapter 01, and at its smallest size come **residual blocks**. Such a block computes a correction and adds it
# to its input:
#
# $$\text{block}(x) = x + \text{conv}_{1\times1}\bigl(\text{relu}(\text{conv}_{3\times3}(\text{relu}(x)))\bigr) .$$
#
# With a correction of zero the block does nothing at all: a deep stack can learn to be a shallow one. And the gradient has a way around every block, which
# is visible in numbers (the 0.1 keeps the sum of twenty corrections small):

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(1, 4, 5, 5, requires_grad=True)
deep, plain = x, x
for _ in range(20):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    deep = deep + 0.1 * conv(deep.relu())  # with a way around
    plain = conv(plain.relu())  # without
for name, out in (("with a skip", deep), ("without", plain)):
    (gradient,) = torch.autograd.grad(out.sum(), x)
    small = gradient.norm() < 1e-3
    print(f"20 layers, {name:<12} does the gradient vanish at the input? {bool(small)}")

# %% [markdown]
# ### Exercise 4.1 · the residual block  (easy, 2 minutes)
# `__init__` builds the branch, the four operations inside the brackets. Write `forward`: one line; the input must be left as it came.
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
# `companion.ResNetEncoder` and `ResNetDecoder` put such blocks between strided convolutions. The latent is no longer one vector but a **grid** of
# vectors, f times smaller than the image along each side:

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
# An image of 28 × 28 becomes 7 × 7 places with a vector of D = 8 numbers each. At each place the quantizer puts one of K codes. What the
# decoder receives is then 49 indices, no more.
#
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
# `quantized.loss` is codebook + β · commitment (chapter 03), and α weighs the whole of it:
#
# $$L = \underbrace{\text{MSE}(\hat x, x)}_{\text{mean over pixels}} + \alpha\,\bigl(\underbrace{\|\mathrm{sg}[z_e]-e\|^2}_{\text{codebook}} + \beta\,
# \underbrace{\|z_e-\mathrm{sg}[e]\|^2}_{\text{commitment}}\bigr),$$
#
# the last two as means over positions and dimensions. (Reports differ here: some sum over the D dimensions, some divide the first term by the variance of the
# data. Then the same α and β mean something else, and losses cannot be compared.)
#
# ### Exercise 4.2 · the forward pass of a VQ-VAE  (medium, 10 minutes)
# Give a `VQVAEOutput` with these fields, in this order: the reconstruction; z_e; z_q; the indices; `code_counts`, how often each of the K codes was chosen in
# this batch (K,); the loss; and a dict of the terms before their weights, "reconstruction" first, then the quantizer's own.
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
# Nothing in it knows *which* quantizer it has. That is on purpose: chapters 05 and 06 put others in the same place.
#
# ## Train and look
# K = 64 codes of D = 8 numbers. To see the reconstructions change, training stops after some epochs and goes on: with `run`, a folder, `fit` continues
# where it stopped, to the bit.

# %%
K, D = settings.num_codes, settings.dim
shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}


def new_pair(outputs: int = D) -> tuple[nn.Module, nn.Module]:
    """An untrained encoder with the given number of outputs per place, and a decoder."""
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

# %%
plots.show(
    plots.image_rows(
        {"x": x_test[:12]}
        | {f"after {n} epoch{'s' * (n != 1)}": images for n, images in stages.items()},
        title="First the place of the ink, then the strokes, then their edges",
    ),
    alt="Twelve test digits above their reconstructions before training and after "
    "growing numbers of epochs: at first grey fog, then blurred digits, at the end "
    "digits with clean strokes.",
)

# %%
fig, (left, right) = plots.figure(9, 3, columns=2)
epoch = [row["epoch"] for row in history.rows]
for term, style in (("reconstruction", "o-"), ("codebook", "s--")):
    colour = plots.COLOURS["train" if term == "reconstruction" else "third"]
    values = [row[f"validation_{term}"] for row in history.rows]
    left.plot(epoch, values, style, color=colour, label=term)
left.set(xlabel="epoch", ylabel="held-out term", title="Both terms fall", ylim=(0, None))
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
    alt="Left: held-out reconstruction error and codebook loss over the epochs, both "
    "falling. Right: the perplexity of the codes on held-out images, which stays far "
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
# The commitment term is not drawn: on the same batch it has the *same value* as the codebook term (chapter 03: one value, two gradients). And a
# falling total loss is no proof of learning: codebook and commitment terms shrink to nothing if the encoder puts all vectors into one point. Look
# at the reconstruction term, at perplexity, and at pictures.
#
# The same model with the settings of one of the source reports, on real images. Each comparison and the size from which it matters were written down
# before the run; the 95 % interval over the seeds decides. [experiments/README.md](../experiments/README.md#the-vq-vae-as-reported) has pictures, and
# the command of each row.

# %% tags=["nbval-check-output"]
measured_claims("The VQ-VAE as reported")

# %% [markdown]
# ## How many codes are in use?
# **Usage** is the share of codes chosen at least once. It counts a code that was chosen once in a thousand images like any other. The **perplexity**
# is finer: from the shares p_k = count_k / Σ counts take the entropy H = −Σ p_k log p_k and its exponential. If n codes are used equally often, the
# perplexity is n:

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
# From counts (K,) to a Python float. A code that was never chosen has p = 0, and 0 · log 0 counts as 0: your code must not give NaN there. Compute in
# float64 (float32 keeps seven digits).
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

# %%
usage = CodeUsage(K).update(vqvae.encode(x_test))
counts = usage.counts.sort(descending=True).values.cpu()
fig, ax = plots.figure(7, 2.6)
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
# Most codes are dead: no vector has them as its nearest, so the codebook loss does not move them. Only a latent that strays near one could bring it back,
# and few do. Chapter 05 is about that. Which one is the most used? The picture of a code: fill a whole table with it, and decode.

# %%
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
# The most used codes come out black: they are the background, and several codes share it. The rest give gratings, not strokes: no image has such a table,
# and what a code draws depends on its neighbours.
#
# ## The image as a table of numbers
# Here is what the decoder gets. The colour is a code's place in the order of use, so that the background is light:

# %%
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
# What does such a table cost to write down? Give three numbers, in bits per image, for indices (N, h, w) of N images:
#
# * **nominal**: every code takes log₂K bits, T·log₂K in all;
# * **entropy**: frequent codes get short names. With H the entropy (in bits) of the codes' shares over *all* positions together, T·H;
# * **per_position**: every position has its own shares, Σₜ Hₜ.
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
# Each is smaller than the one before: knowing how often codes occur saves bits, and knowing where saves more. What none of them knows is the *neighbours*:
# that a stroke which enters a square leaves it on the other side. A prior that knows will be cheaper still, and it will be able to draw. That is chapter 07.
# (It counts again, on the codes of a tokenizer of its own and with shares from training images: bits can be compared on the same codes only. Here the shares
# are those of the very images that are written down, which makes the numbers a little too small.)
#
# ## Beside an autoencoder and a VAE of the same size
# The same encoder and decoder with nothing between them (an AE with a grid of 7 · 7 · 8 = 392 real numbers), and with the Gaussian latents of chapter 02
# (its likelihood a Gaussian of width 0.1; the encoder gives a mean and a log-variance for each of the 392). For the comparison all three are cut to [0, 1],
# as pictures are; that takes a little off the VQ-VAE's distortion above:

# %%
encoder, decoder = new_pair()
ae = companion.Autoencoder(encoder, decoder)
print("autoencoder")
ae_history = companion.fit(ae, train, epochs=settings.stages[-1], **options)

encoder, decoder = new_pair(2 * D)
vae = companion.VAE(encoder, decoder, Gaussian(0.1))
print("variational autoencoder")
vae_history = companion.fit(vae, train, epochs=settings.stages[-1], **options)

# %%
models = {"AE": ae, "VAE": vae, "VQ-VAE": vqvae}
rebuilt = {name: model.reconstruct(x_test) for name, model in models.items()}
lost = {name: mse(images, x_test).item() / variance for name, images in rebuilt.items()}
kl_bits = vae_history.last["validation_kl"] / math.log(2)
rates = {
    "AE": f"{7 * 7 * D} numbers, {7 * 7 * D * 32} bits as float32",
    "VAE": f"KL {kl_bits:.0f} bits",
    "VQ-VAE": f"{bits['nominal']:.0f} bits, {bits['per_position']:.0f} by position",
}
for name in models:
    print(f"{name:<8} distortion {lost[name]:.4f}   {rates[name]}")
for name in ("AE", "VAE"):
    session.expect(f"distortion_{name.lower()}", lost[name])
session.expect("kl_bits_vae", kl_bits)

# %%
plots.show(
    plots.image_rows(
        {"x": x_test[:12]} | {name: images[:12] for name, images in rebuilt.items()},
        title="What 49 codes lose beside 392 real numbers",
    ),
    alt="Twelve test digits and their reconstructions by the autoencoder, the VAE and the "
    "VQ-VAE. The autoencoder's are nearly perfect, the VAE's a little softer, the "
    "VQ-VAE's have clean strokes with small errors where strokes meet or end.",
)

# %% [markdown]
# The autoencoder passes most bits and loses least. Between the other two the bits do not decide: the VAE's KL is smaller than the table's 294 bits, and it
# loses less. So "the VQ-VAE is sharper than the VAE" is *not* what these numbers say. But read the rates with care. The VAE was decoded from the mean of
# q(z|x), and the KL is the price of a *sample* from it, whose distortion is not measured here. And the table of codes is a file, with that many bits in it;
# a KL is a rate on paper: to send it takes a scheme (bits back) that hardly anybody runs. What the codes offer is something else: *a prior over whole
# numbers is easy to learn well*.
#
# ## K and D
# How many codes, of how many dimensions? The sweep below trained each setting with five seeds (it takes minutes to hours, so it is a command of its own,
# printed below; the numbers stand in the repository). Behind each ± and in each error bar is the standard deviation over the seeds.

# %%
sweep = results("codes_and_dims")
print(sweep.command)
table = {
    (k, d): sweep.mean("distortion", num_codes=k, dim=d)
    for k in sweep.settings("num_codes")
    for d in sweep.settings("dim")
}
fig, (left, right) = plots.figure(9, 3.1, columns=2)
styles = {2: ("o-", "train"), 8: ("s--", "validation"), 32: ("^:", "third")}
for d, (style, colour) in styles.items():
    for ax, name in ((left, "distortion"), (right, "perplexity")):
        k_values = sweep.settings("num_codes")
        middle = [sweep.mean(name, num_codes=k, dim=d) for k in k_values]
        reach = [sweep.spread(name, num_codes=k, dim=d) for k in k_values]
        ax.errorbar(
            k_values, middle, reach, fmt=style, capsize=3,
            color=plots.COLOURS[colour], label=f"D = {d}",
        )  # fmt: skip
right.plot(k_values, k_values, color=plots.COLOURS["reference"], linewidth=0.8)
right.text(
    k_values[-1], k_values[-1], "all used evenly ", ha="right", va="bottom", fontsize=8
)
for ax in (left, right):
    ax.set_xscale("log", base=2)
    ax.set_xticks(k_values, [str(k) for k in k_values])
    ax.set(xlabel="number of codes, K")
left.set(ylabel="held-out distortion", ylim=(0, None), title="More codes lose less")
right.set(ylabel="perplexity", yscale="log", title="Only with D = 2 are the new codes used")
left.legend()
plots.show(
    fig,
    alt="Left: held-out distortion against the number of codes for three code dimensions, "
    "with error bars over five seeds. Right: the perplexity of the codes, which for 8 and 32 "
    "dimensions grows much more slowly than their number, and for 2 nearly as fast.",
)

# %%
rows = [["K", *(f"D = {d}" for d in sweep.settings("dim"))]]
for k in sweep.settings("num_codes"):
    cells = [f"{table[k, d]:.3f} ± {sweep.spread('distortion', num_codes=k, dim=d):.3f}"
             for d in sweep.settings("dim")]  # fmt: skip
    rows.append([str(k), *cells])
for row in rows:
    print("".join(f"{cell:>16}" for cell in row))

# %% [markdown]
# Three things stand in the figure and the table. **More codes lose less**, at every D; from 16 to 256 they take off a fifth (D = 32) to two fifths (D = 2
# and 8). **Codes of two dimensions are used far more**, above all where there are many: of 256 codes, perplexity 128 with D = 2, 25 with D = 8, 16 with
# D = 32. **And D = 2 loses least**, at every K.
#
# Two claims of the source reports are about this. "Bigger dimensions like 16 tends to make the model use less diverse codes": from 64 codes on it holds
# here. "Smaller dimensions like 4 tends to produce blurry reconstructions, which is caused by the loss of information": here it does not. A place passes on
# log₂K bits whatever D is, and two numbers are enough to tell 256 codes apart. What D changes is how hard it is to *learn* where the codes should be: in
# many dimensions a code that starts far from all latents is nobody's nearest, and stays so. (That is a statement about a gradient codebook on these images;
# chapter 05 asks again with codes that are revived.)
#
# On real images, with the numbers of codes and dimensions that the reports compare ([K and D](../experiments/README.md#k-and-d), [K × D on colour
# images](../experiments/README.md#k--d-on-colour-images)):

# %% tags=["nbval-check-output"]
measured_claims("K and D")
measured_claims("K × D on colour images")

# %% [markdown]
# ## α and β
# Your prediction. Under fixed αβ the loss is reconstruction + α · codebook + (αβ) · commitment. Who gets gradient from the codebook term? Only the codebook
# (the routing table of chapter 03), and from no other term. So α at fixed αβ multiplies the codebook's gradient, and nothing else.
#
# * **SGD** multiplies its steps with it: α is the codebook's learning rate.
# * **Adam** divides each gradient by a running average of its size. Twice the gradient, twice the average: the steps are the same, but for the tiny ε.

# %%
weights = results("quantizer_weights")
print(weights.command)
for name in ("adam", "sgd"):
    rows = [row for row in weights.rows if row["optimizer"] == name]
    for alpha, product in dict.fromkeys((row["alpha"], row["alpha_beta"]) for row in rows):
        where = {"optimizer": name, "alpha": alpha, "alpha_beta": product}
        print(
            f"{name:<5} α {alpha:g}  αβ {product:<5g} "
            f"distortion {weights.mean('distortion', **where):.4f} "
            f"± {weights.spread('distortion', **where):.4f}   "
            f"perplexity {weights.mean('perplexity', **where):5.1f} "
            f"± {weights.spread('perplexity', **where):.1f}"
        )

# %%
for name in ("adam", "sgd"):
    before, after = (
        weights.values("commitment", optimizer=name, alpha=a, alpha_beta=0.25)
        for a in (1.0, 2.0)
    )
    ratios = [f"{b / a:.2f}" for a, b in zip(before, after, strict=True)]
    print(f"{name:<5} α 1 → 2 at αβ = 0.25 multiplies ‖z_e − z_q‖² by", ", ".join(ratios))

# %% [markdown]
# The distance between latents and codes says most directly how well the codes follow. **SGD** (with momentum 0.9): with twice the α it falls for every seed,
# by 17 to 57 %; the codes take twice the steps. **Adam**: it stays what it was, within 8 %. (Doubling is exact in floating point: were it not for ε, the two
# runs would agree to the bit; 468 steps make its tiny difference visible.) So whoever tunes α under Adam tunes next to nothing; what counts there is the
# product **αβ**, which weighs the encoder's pull against the reconstruction. And that counts for much: with αβ from 0.05 to 1 the perplexity falls from 31
# to 5. A strong commitment ties the latents to the few codes that they happen to have; a weak one lets them roam, and find others.
#
# ## Other quantizers, deeper networks, more training
# Three more sweeps, all with 64 codes. **Quantizers**: the gradient codebook of this chapter with 8 and with 3 dimensions, with the rotation
# trick, Gumbel-softmax (chapter 03), and **finite scalar quantisation**, which has no codebook at all: three numbers per place, each squashed by tanh and
# rounded to one of four levels, 4 · 4 · 4 = 64 codes that lie still (Mentzer et al. 2024).

# %%
kinds = results("quantizers")
print(kinds.command)
for kind in kinds.settings("quantizer"):
    where = {"quantizer": kind}
    print(
        f"{kind:<21} distortion {kinds.mean('distortion', **where):.3f} "
        f"± {kinds.spread('distortion', **where):.3f}   "
        f"perplexity {kinds.mean('perplexity', **where):4.1f} "
        f"± {kinds.spread('perplexity', **where):.1f}   "
        f"usage {kinds.mean('usage', **where):.2f}   "
        f"{kinds.mean('entropy_bits_per_position', **where):.0f} bits by position"
    )

# %% [markdown]
# Finite scalar quantisation uses nearly every code, having none that could die, and loses no more than the best learnt codebook here, the one with the same
# D = 3, whose perplexity is about half as large: it spends more bits by position for that. **The rotation trick**, which its paper reports to help much, is
# far behind in this setting. A possible reason, not tested here: the gradient that it passes on is scaled by λ = ‖z_q‖/‖z_e‖, and at the start the codes are
# two to three times as long as the latents (chapter 05 measures it); the paper uses codebooks that start on the data and follow it by moving averages
# (chapter 05, too). Gumbel-softmax decodes mixtures of codes while it trains and single codes when it is tested, and pays for the difference.
#
# **Depth.** "How do encoder and decoder affect performance?" asks one of the source reports, and leaves it open:

# %%
depth = results("depth")
print(depth.command)
for e, d in dict.fromkeys((r["encoder_blocks"], r["decoder_blocks"]) for r in depth.rows):
    where = {"encoder_blocks": e, "decoder_blocks": d}
    print(
        f"residual blocks: encoder {e}, decoder {d}   distortion "
        f"{depth.mean('distortion', **where):.4f} ± {depth.spread('distortion', **where):.4f}"
    )

# %% [markdown]
# The means say that three blocks on either side take off about a tenth, and on both sides a little more; but three seeds, spread as they are, do not decide
# whether encoder or decoder is the better place for them. Fewer dimensions took off twice as much (D = 2, above).
#
# **Longer training with few codes.** The same report asks what happens "if training is done further with small number of latent codes". Four times as long,
# with 16 and with 256:

# %%
longer = results("longer_training")
print(longer.command)
fig, ax = plots.figure(6.5, 2.9)
for k, style, colour in ((16, "s--", "validation"), (256, "o-", "train")):
    curves = torch.tensor(longer.values("by_epoch", num_codes=k))  # (seeds, epochs)
    epochs = range(1, curves.shape[1] + 1)
    low, high = curves.amin(0), curves.amax(0)
    ax.fill_between(epochs, low, high, color=plots.COLOURS[colour], alpha=0.2)
    ax.plot(
        epochs, curves.mean(0), style, markersize=3, color=plots.COLOURS[colour],
        label=f"K = {k}",
    )  # fmt: skip
    print(f"K = {k:<4} after {len(epochs)} epochs: {curves[:, -1].mean():.4f}", end="  ")
    print(f"(seeds: {curves[:, -1].min():.4f} to {curves[:, -1].max():.4f})")
ax.set(xlabel="epoch", ylabel="held-out distortion", yscale="log")
ax.set_title("Few codes do not catch up by longer training")
ax.legend()
plots.show(
    fig,
    alt="Held-out distortion over the epochs for 16 and for 256 codes, five seeds each: "
    "both fall quickly and then slowly, and the curve of 16 codes stays above.",
)

# %% [markdown]
# Both go on falling, and their ratio grows, from 1.6 after six epochs to 2.0 after 24. With four times the training 16 codes (0.057) do not quite reach what
# 256 codes had after a quarter of it (0.052). Longer training does not stand in for codes.
#
# The three questions beside MNIST ([experiments/README.md](../experiments/README.md#longer-training)); the last table asks for the width, narrow being a
# quarter:

# %% tags=["nbval-check-output"]
measured_claims("Longer training")
measured_claims("Encoder and decoder")
measured_claims("Encoder and decoder, width")

# %% [markdown]
# Longer training does stand in for codes where the codes are not there in truth. On the colour images above, five to ten codes are in effect in use (the
# perplexity) whatever K is, and 64 codes trained four times as long lose a third less than 256. Beside 256 trained as long they are not told apart.
#
# ## Random codes decode to noise
# A VAE could be asked for new images: draw z from N(0, I), decode. What does the VQ-VAE give, if the codes are drawn at random? Two ways: every code equally
# likely; and each position drawn from its own shares among the training images (so that the corners are mostly background), but independently of its
# neighbours.

# %% tags=["cover"]
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


for name, images in drawn.items():
    session.expect(f"distance_{name.replace(' ', '_')}", nearest_training(images))
session.expect("distance_rebuilt", nearest_training(vqvae.reconstruct(x_test[:n])))
session.expect("distance_black", nearest_training(torch.zeros_like(x_test[:n])))

# %% [markdown]
# What comes of evenly drawn codes depends on the training: most of the codes that are drawn were never used, and nobody taught the decoder anything about
# them. Drawn position by position, from codes that are in use and in places where they are used, the images are on average farther from their nearest
# training image than a black picture is from its own (compare the bands): the ink is in the right region, and at best a broken digit can be made out. What
# makes a digit is which codes stand *next to each other*. The decoder never saw such tables in training, and owes us nothing for them. **So a prior is
# needed**, a model of p(k) that knows neighbours, and that is what chapters 07 and 08 build.
#
# (For comparison, chapter 01's autoencoder had the same trouble with points from N(0, I), and a mixture of Gaussians fitted to its latents cured most of it.
# A table of 49 codes is a larger thing to fit than a vector of 16 numbers; a transformer is up to it.)
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
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    print(f"{part:<10} agree:", True)
glue("proof.vqvae", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
their_block = companion.backbones.ResidualBlock(3)
our_block = ResidualBlock(3)
our_block.load_state_dict(their_block.state_dict())
x = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
torch.testing.assert_close(our_block(x), their_block(x), rtol=1e-5, atol=1e-7)
glue("proof.residual_block", our_block(x).flatten().tolist(), display=False)
print("residual blocks agree:", True)

counts = torch.tensor([5, 0, 3, 1, 1])
assert abs(perplexity(counts) - companion.metrics.perplexity(counts)) < 1e-9
glue("proof.perplexity", perplexity(counts), display=False)
print("perplexities agree:", True)

some = torch.arange(60).reshape(5, 3, 4) ** 2 % 7
a, b = bits_per_image(some, 8), companion.metrics.bits_per_image(some, 8)
assert all(abs(a[name] - b[name]) < 1e-9 for name in b)
glue("proof.bits_per_image", a, display=False)
print("bits agree:", True)

# %% [markdown]
# ## Play: edit the code map
# Click a position of the table, choose another code with the slider, and watch the image. How far does one code reach? (Beyond its own 4 × 4 pixels: the
# decoder's convolutions look at neighbours.) Can you turn a digit into another?

# %%
explorers.code_map(vqvae, x_test[:20])

# %% [markdown]
# For readers of the printed page: one position of one table, first with its own code, then with the eight codes that change the image most. Below each is
# what it changes, with a frame around the position.

# %%
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
# **A ReLU in place.** `nn.ReLU(inplace=True)` saves memory by writing into its input. In a residual block that input is also the skip path: the sum at the
# end then adds relu(x), not x. Nothing crashes, and the network still trains; it is just not the one you wrote down.


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
# **A perplexity averaged over batches.** A batch of one image has 49 codes, so its perplexity cannot pass 49, whatever the codebook does. The average over
# batches depends on their size; the perplexity of the summed counts does not:

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
# **No commitment.** With β = 0 nothing holds the encoder near its codes: the reconstruction's gradient, which was taken at z_q, pushes z_e on and on in the
# direction in which z_q *should* move, and the codes run after it. A few steps of the same model with and without:

# %%
distances = {}
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
# The number is how many powers of ten larger the distance is by the end. Nothing holds it: the two chase each other away from the origin, the gradient at z_q
# staying as blind to where z_e went as on the first step. (This is an untrained model with Adam; the reconstruction of such a model is worthless, too.)
#
# ## Pen and paper
# 1. A VQ-VAE on 256 × 256 colour images with f = 8 and K = 8,192. How many bits does an image take nominally, how many per pixel, and what is the ratio to
#    8 bits per channel?
# 2. Under which prior p(k) does the bound log p(x) ≥ log p(x|z_q) + log p(k) become an equality, for one given x?
# 3. The encoder could choose another table than that of the nearest codes. Would the bound still hold?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. T = 32 · 32 = 1,024 positions of log₂ 8,192 = 13 bits: 13,312 bits. Per pixel 13,312 / 65,536 = 0.203 bits. The image has 65,536 · 24 bits, 118 times
#    as many.
# 2. If p(k′)·p(x|k′) = 0 for every table k′ but the chosen one, for example when p puts all its mass on k. For that one x; other images would then
#    have to do with the same table.
# 3. Yes: the right-hand side is one term of a sum of positive terms, whichever it is. The nearest codes need not be the best table for the decoder; they are
# the one that
#    is cheap to find.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A VQ-VAE is an encoder, a quantizer and a decoder in a row; its loss is the reconstruction error plus α times what the quantizer adds.
# * With a one-hot q and a uniform p the KL is the constant T·log K; training drops it, a learnt prior will put it back, smaller.
# * An image is a table of codes. What it costs has names: nominal bits, entropy bits, and soon prior bits.
# * Perplexity is counted over the whole set. A gradient codebook leaves most of its codes dead; chapter 05 revives them.
# * Random codes decode to tangles: the decoder knows tables of digits only. Chapters 07 and 08 learn to write such tables.
#
# **Further experiments.** Put `companion.FiniteScalarQuantizer([4, 4, 4])` into the VQ-VAE (D = 3). Train with f = 2: 196 codes an image; is the distortion
# worth the bits? Encode the fonts of the test set and those of the training set: do they use the same codes?
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (equation 3 is the loss; section 3.3 and
# appendix A.1 are for chapters 05 and 07). K. He and others: *Identity Mappings in Deep Residual Networks*, 2016. F. Mentzer and others: *Finite Scalar
# Quantization: VQ-VAE Made Simple*, 2024. S. Zhao: *VQ-VAE and Transformer*, 2023, sections 2 and 4. *Description of VQ-VAE* (the report on gradient flow and
# on K × D). J. Townsend, T. Bird, D. Barber: *Practical Lossless Compression with Latent Variables using Bits Back Coding*, 2019.

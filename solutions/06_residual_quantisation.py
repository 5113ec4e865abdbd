# %% [markdown]
# # 06 · Residual quantisation
#
# **The question.** A finer code needs more code words, and a codebook of 16,384 vectors is slow to search and hard to fill. Can a few *small* codebooks
# do the same if each quantises what the ones before it left? You build it, train it, and end with pictures that come into focus code by code:
#
# ![Five rows of ten digits: the originals, and what the decoder makes of the first one, two, three and four codes at each position. The first row of
# reconstructions has the right strokes with soft and broken edges, each further one is closer to the
# original.](../chapters/pictures/06_residual_quantisation.png)
#
# **Afterwards you can** write a residual quantizer whose losses go where they belong, decode it to any depth, and say what it saves: codebook, search, bits,
# or none of them. You also test six claims, three of them a report's; some hold, some do not.
#
# **Needed:** [chapter 03](03_vector_quantisation.ipynb) (straight-through, the two losses), [chapter 04](04_vq_vae.ipynb) (the VQ-VAE, perplexity, bits)
# and [chapter 05](05_ema_codebooks.ipynb) (EMA codebooks).
# **Time:** about an hour and a half of yours; the computer's is in the table below.

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
from companion.metrics import CodeUsage, mse, perplexity
from companion.quantizers import (
    EMAVectorQuantizer,
    Quantized,
    VectorQuantizer,
    k_means,
    nearest_code,
    straight_through,
    vq_losses,
)

session = begin("06_residual_quantisation")
settings, device = session.settings, session.device
train, test = session.data()

# %%
x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels, size, _ = train.shape

# %% [markdown]
# ## Predict
# Two tokenizers are trained in the same way. One has a single codebook of 256 codes. The other has two codebooks of 128 codes each and gives each position
# two codes, one from each. They store the *same number of vectors*. Which one loses less? And how many bits does each of them spend on a position?
#
# Then let the second have two codebooks of 16 codes instead, so that both spend the *same number of bits*. Which one loses less now? Write down both
# guesses; both are measured below.
#
# ## A second codebook for what is left
# Points in the plane first, 4 codes found by k-means (chapter 05):

# %% tags=["nbval-check-output"]
draws = torch.Generator().manual_seed(0)
turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
points = torch.randn(2000, 2, generator=draws) * torch.tensor([1.6, 0.7]) @ turn  # (N, 2)
first, _ = k_means(points, 4, iterations=200)  # (4, 2)
k_1 = nearest_code(points, first)  # (N,)
after_one = points - first[k_1]  # what the first code left
print(f"mean squared length of the points    {points.square().sum(1).mean():.2f}")
print(f"of what 4 codes leave                {after_one.square().sum(1).mean():.2f}")

# %% [markdown]
# The residuals are vectors like any others, only shorter. So quantise *them*, with a codebook of their own, and take away its code as well:

# %% tags=["nbval-check-output"]
second, _ = k_means(after_one, 4, iterations=200)
k_2 = nearest_code(after_one, second)
after_two = after_one - second[k_2]
z_q = first[k_1] + second[k_2]
print(f"of what is left after 4 codes more   {after_two.square().sum(1).mean():.2f}")
print("z − z_q is the last residual:", torch.allclose(points - z_q, after_two, atol=1e-6))
print("codes stored:", 4 + 4, "  sums they can make:", 4 * 4)

# %% [markdown]
# That is all of **residual quantisation**. With r₀ = z, for depth r = 1 … R:
#
# $$k_r = \arg\min_k \|r_{r-1} - e^{(r)}_k\|, \qquad r_r = r_{r-1} - e^{(r)}_{k_r}, \qquad z_q = \sum_{r=1}^{R} e^{(r)}_{k_r} .$$
#
# Adding up the middle equation gives z − z_q = r_R: the error is the last residual. R codebooks of K codes make K^R sums out of R·K stored
# vectors, and a lookup costs R·K distances instead of K^R. (Juang and Gray 1982 did this to speech and called it multiple-stage vector quantisation;
# Zeghidour et al. 2021 and Lee et al. 2022 put it into autoencoders.)
#
# It is **greedy**: the first code is the nearest to z, whatever the second one could have done with another. Some other pair may have a nearer sum
# (pen and paper below). Nobody looks for it, because looking would cost K^R distances again.
#
# ### Exercise 6.1 · the residual loop  (easy, 10 minutes)
# From latents and a list of quantizers to the indices, depth last. A quantizer of chapters 03 to 05 has `encode(z)`, which gives the indices of the
# nearest codes, and `decode(indices)`, which gives the codes.
#
# <details><summary>Hint 1</summary>Keep one variable for the residual. At the start it is z.</details>
# <details><summary>Hint 2</summary><code>residual = residual - codes</code> makes a new tensor; <code>residual -= codes</code> writes into the
# caller's z. <code>torch.stack(…, dim=-1)</code> makes a last axis.</details>


# %%
def residual_encode(z: Tensor, quantizers: list[nn.Module]) -> Tensor:
    """z: (B, D, *spatial), R quantizers -> indices (B, *spatial, R)."""
    ### BEGIN SOLUTION
    residual, indices = z, []
    for quantizer in quantizers:
        indices.append(quantizer.encode(residual))  # (B, *spatial)
        residual = residual - quantizer.decode(indices[-1])
    return torch.stack(indices, dim=-1)
    ### END SOLUTION


residual_encode = check(residual_encode)


# %%
def fixed(codebook: Tensor) -> VectorQuantizer:
    """A quantizer with these codes."""
    quantizer = VectorQuantizer(*codebook.shape)
    quantizer.load_state_dict({"codebook": codebook})
    return quantizer.requires_grad_(False)


def draw_stacks(ax, quantizers: list, reach: float = 4.0) -> None:
    """The cells of the plane whose points get the same indices, and the codes' sums."""
    line = torch.linspace(-reach, reach, 500)
    plane = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).reshape(-1, 2)
    stack = residual_encode(plane, quantizers)  # (500 · 500, R)
    sums = sum(q.decode(stack[:, r]) for r, q in enumerate(quantizers)).unique(dim=0)
    base = quantizers[0].num_codes
    cell = (stack * base ** torch.arange(stack.shape[1])).sum(1).reshape(500, 500)
    border = torch.zeros(500, 500, dtype=torch.bool)
    for shift in (1, 2):  # two pixels wide
        border[shift:] |= cell[shift:] != cell[:-shift]
        border[:, shift:] |= cell[:, shift:] != cell[:, :-shift]
    shades = torch.tensor(
        [[222, 235, 247], [254, 230, 206], [226, 240, 217], [240, 228, 240]]
    )
    image = (shades / 255)[stack[:, 0] % 4].reshape(
        500, 500, 3
    )  # the colour: the first code
    image[border] = 0.4
    ax.imshow(
        image.numpy(), origin="lower", extent=(-reach, reach, -reach, reach),
        interpolation="nearest",
    )  # fmt: skip
    ax.scatter(*sums.T.numpy(), s=16, color=plots.COLOURS["train"], zorder=3)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="z₁")
    ax.grid(False)


one, two = fixed(first), fixed(second)
fig, axes = plots.figure(9.6, 3.5, columns=3)
draw_stacks(axes[0], [one])
draw_stacks(axes[1], [fixed(k_means(points, 16)[0])])
draw_stacks(axes[2], [one, two])
axes[0].set_ylabel("z₂")
axes[0].set_title("VQ, 4 codes: 4 cells")
axes[1].set_title("VQ, 16 codes: 16 cells")
axes[2].set_title("RQ 2×4, 8 codes: 16 cells")
arrow = {"width": 0.03, "head_width": 0.2, "length_includes_head": True, "zorder": 4}
for k in first.norm(dim=1).argsort(descending=True)[:3].tolist():  # of three cells
    members = points[k_1 == k]
    z = members[(members - first[k]).norm(dim=1).argsort()[-len(members) // 4]]
    codes = residual_encode(z[None], [one, two])
    e_1, e_2 = (q.decode(codes[:, r])[0] for r, q in enumerate((one, two)))
    axes[2].arrow(0, 0, *e_1.tolist(), color=plots.COLOURS["validation"], **arrow)
    axes[2].arrow(*e_1.tolist(), *e_2.tolist(), color=plots.COLOURS["third"], **arrow)
    axes[2].scatter(*z.tolist(), s=30, marker="x", color="black", zorder=5)
plots.show(
    fig,
    alt="Three pictures of the plane cut into cells. Left: 4 Voronoi cells with a code in "
    "each. Middle: 16 Voronoi cells, small where the points are. Right: 4 cells, each cut "
    "again into 4 by the same second codebook; for three points an arrow leads from the "
    "origin to the first code, and another from there to the sum of both.",
)

# %% [markdown]
# On the right the colour is the first code, and three points (crosses) are reached in two steps: the first arrow leads to the first code, the second from
# there to the sum. Look at the cells: the *same* pattern of four is laid into each of the four large cells. Plain vector quantisation with 16 codes puts its
# cells where the points are. That is the price, and here is what it comes to:

# %% tags=["nbval-check-output"]
for name, quantizers in {
    "VQ,  8 codes": [fixed(k_means(points, 8)[0])],
    "RQ, 2×4 codes": [one, two],
    "VQ, 16 codes": [fixed(k_means(points, 16)[0])],
}.items():
    stack = residual_encode(points, quantizers)
    total = sum(q.decode(stack[:, r]) for r, q in enumerate(quantizers))
    bits = len(quantizers) * math.log2(quantizers[0].num_codes)
    error = (points - total).square().sum(1).mean()
    print(f"{name:<14} {bits:.0f} bits a point   squared error {error:.2f}")

# %% [markdown]
# At the same number of codes (8) RQ loses less; but it also spends 4 bits on a point where VQ spends 3. At the same number of bits VQ loses less, because it
# is free to put its 16 codes anywhere, and RQ is bound to sums. Keep this table in mind: every claim about RQ has to say *what is held equal*.
#
# ## Does each depth shorten the residual?
# "We can see how the quantizer is reducing the quantization error in each step", says the report of this chapter. Is that a law? Take the mean over the
# vectors that chose a code e, and suppose that e is *their mean*, as k-means makes it. Then E[r] = e among them, and
#
# $$\mathrm{E}\|r - e\|^2 = \mathrm{E}\|r\|^2 - 2\,e\cdot\mathrm{E}[r] + \|e\|^2 = \mathrm{E}\|r\|^2 - \|e\|^2 .$$
#
# So **on average** each depth takes away exactly the mean squared length of its codes. In the numbers from above:

# %% tags=["nbval-check-output"]
before, after = after_one.square().sum(1).mean(), after_two.square().sum(1).mean()
codes_length = second[k_2].square().sum(1).mean()
print(
    f"{before:.3f} − {codes_length:.3f} = {before - codes_length:.3f}, measured {after:.3f}"
)
longer = (after_two.norm(dim=1) > after_one.norm(dim=1)).float().mean()
print("the residual of more than one point in ten got longer:", bool(longer > 0.1))

# %% [markdown]
# On average, and for codes that are means. For a *single* vector it need not hold: a residual that is nearly zero already gets the nearest code, and if no
# code is that short, the sum moves away from it. And codes that are *not* the means of what they attract promise nothing at all; a codebook
# that lags behind its encoder is of that kind. (A code fixed at zero would make it a law: then ‖r − e‖ ≤ ‖r − 0‖ for the nearest e.)
#
# ### Exercise 6.2 · decoding to a depth  (easy, 5 minutes)
# The decoder gets the sum of a stack's codes. Give the sum of the first `depth` of them only.
#
# <details><summary>Hint</summary><code>indices[..., r]</code> are the indices of depth r + 1, whatever the grid is.
# <code>sum(…)</code> adds tensors, too.</details>


# %%
def decode_to_depth(indices: Tensor, quantizers: list[nn.Module], depth: int) -> Tensor:
    """indices: (B, *spatial, R), depth: 1 to R -> the sum of codes (B, D, *spatial)."""
    ### BEGIN SOLUTION
    codes = [q.decode(indices[..., r]) for r, q in enumerate(quantizers[:depth])]
    return torch.stack(codes).sum(0)
    ### END SOLUTION


decode_to_depth = check(decode_to_depth)

# %% [markdown]
# ## Losses by depth, and what is held fixed
# Each depth is a vector quantizer whose latents are the residuals it is given. So each has the two losses of chapter 03:
#
# $$\text{codebook}_r = \|\mathrm{sg}[r_{r-1}] - e_r\|^2, \qquad \text{commitment}_r = \|r_{r-1} - \mathrm{sg}[e_r]\|^2, \qquad
# r_{r-1} = z - \mathrm{sg}[e_1] - \dots - \mathrm{sg}[e_{r-1}] .$$
#
# Look at the stop-gradients in the last equation. The residual contains z, so the commitment of *every* depth moves the encoder: that is wanted. It also
# contains the earlier codes. If those are not held fixed, the commitment of depth 2 moves codebook 1.
#
# **Often written, not so.** The source report's loop ends with `residual -= quantized`, and `quantized` there still has its graph to the codebook. Below
# is that loop for two depths; the number is the gradient of depth 2's *commitment* loss in *codebook 1*, where it has no business:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
books = [torch.randn(8, 3, requires_grad=True) for _ in range(2)]
z = torch.randn(50, 3)
for name in ("as in the report", "code detached"):
    residual = z
    for book in books:
        quantized = book[nearest_code(residual.detach(), book)]
        commitment = (residual - quantized.detach()).square().mean()
        step = quantized if name == "as in the report" else quantized.detach()
        residual = residual - step
    found = None
    if commitment.requires_grad:
        found = torch.autograd.grad(commitment, books[0], allow_unused=True)[0]
    print(
        f"{name:<17} codebook 1 gets:", "none" if found is None else f"{found.norm():.3f}"
    )

# %% [markdown]
# Does it matter? The stray gradient asks codebook 1 to leave residuals that lie near the codes which codebook 2 has *now*. That is not what its own loss asks
# for, and the weight β, meant for the encoder alone, now also steers a codebook. With EMA codebooks nothing happens, since they take no gradients.
#
# ### Exercise 6.3 · losses by depth  (medium, 15 minutes)
# Given z and the chosen codes of each depth (with their graphs), return the codebook losses and the commitment losses, each as a tensor (R,).
# `vq_losses(z, z_q)` of chapter 03 gives (codebook loss, commitment loss), as means over positions and dimensions.
#
# <details><summary>Hint 1</summary>The loop of exercise 6.1, with the codes given. Which of the two tensors in
# <code>residual - code</code> is to be held fixed?</details>
# <details><summary>Hint 2</summary>Detaching the whole residual would cut off the encoder as well.</details>


# %%
def residual_losses(z: Tensor, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """z: any shape, codes: R of that shape -> codebook (R,) and commitment losses (R,)."""
    ### BEGIN SOLUTION
    residual, codebook, commitment = z, [], []
    for code in codes:
        one, two = vq_losses(residual, code)
        codebook.append(one)
        commitment.append(two)
        residual = residual - code.detach()  # no gradient from here to an earlier codebook
    return torch.stack(codebook), torch.stack(commitment)
    ### END SOLUTION


residual_losses = check(residual_losses)

# %% [markdown]
# (Lee et al. 2022 write the commitment as Σ_r ‖z − sg[ẑ⁽ʳ⁾]‖², with ẑ⁽ʳ⁾ the sum of the first r codes. It is the same number with the same gradient at z:
# z − ẑ⁽ʳ⁾ is the residual after depth r, however it is bracketed. Their codebooks are EMA codebooks and need no codebook loss.)
#
# ## Summed, not averaged
# What does the quantizer add to the training loss: the sum of the depths' losses, or their mean? Published code does either, often without a word (one
# well-known implementation averages, another sums), and then the same β means different things. **This course sums.** Each codebook then gets the gradient
# it would get alone, whatever R is; averaged, four depths would make each codebook learn at a quarter of its rate. The encoder gets a sum of R pulls, but
# each is a pull towards a residual's code, and the residuals get shorter with the depth: the first depths dominate.
#
# ## One straight-through for the whole sum
# The decoder's gradient arrives at z_q, and the encoder needs one at z. The estimator of chapter 03, applied **once to the sum**, hands it over unchanged:
# the Jacobian is the identity. The two ways to get it wrong are opposite:
#
# * *Each depth with an estimator of its own, then added*: each of the R terms hands over the full gradient, and z gets it R times.
# * *The residual takes away codes that carry a straight-through gradient*: the residual is then z minus something with the gradient of z, and 1 − 1 = 0. From
#   depth 2 on no commitment reaches the encoder.
#
# Both leave every *value* as it is. Only gradients tell, so that is what the check below looks at.
#
# ### Exercise 6.4 · the residual quantizer  (medium, 20 minutes)
# Write `forward`. Call each quantizer with the residual (`part = quantizer(residual)`; in training mode an EMA codebook learns in that call), and collect
# `part.z_q`, `part.indices`, `part.loss` and `part.losses` (its terms by name). Return `Quantized(z_q, indices, loss, losses)`: the sum of the codes with one
# straight-through gradient (`straight_through(z, z_q)`, once), the indices (B, *spatial, R), and the losses summed over the depths.
#
# <details><summary>Hint 1</summary><code>part.z_q</code> has a gradient already, which you do not want:
# <code>part.z_q.detach()</code>.</details>
# <details><summary>Hint 2</summary><code>{name: sum(part.losses[name] for part in parts) for name in parts[0].losses}</code> adds up the terms,
# whatever they are called.</details>


# %%
class ResidualQuantizer(nn.Module):
    """z: (B, D, *spatial) -> Quantized, with indices (B, *spatial, R)."""

    def __init__(self, quantizers: list[nn.Module]):
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)
        self.num_codes, self.dim = quantizers[0].num_codes, quantizers[0].dim
        self.depth = len(quantizers)  # R

    def forward(self, z: Tensor) -> Quantized:
        ### BEGIN SOLUTION
        residual, z_q, parts = z, torch.zeros_like(z), []
        for quantizer in self.quantizers:
            part = quantizer(residual)
            codes = part.z_q.detach()
            z_q = z_q + codes
            residual = residual - codes
            parts.append(part)
        indices = torch.stack([part.indices for part in parts], dim=-1)
        loss = sum(part.loss for part in parts)
        losses = {
            name: sum(part.losses[name] for part in parts) for name in parts[0].losses
        }
        return Quantized(straight_through(z, z_q), indices, loss, losses)
        ### END SOLUTION

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        return residual_encode(z, list(self.quantizers))

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        return decode_to_depth(indices, list(self.quantizers), depth or self.depth)


ResidualQuantizer = check(ResidualQuantizer)

# %% [markdown]
# ## Train and look
# An **RQ-VAE** is the VQ-VAE of chapter 04 with this quantizer in the quantizer's place; nothing else changes. In the quick profile it
# has four codebooks of 8 codes, with moving averages (chapter 05): 32 stored vectors, which can make 8⁴ = 4,096 sums.

# %%
R, K, D = settings.depth, settings.num_codes, settings.dim
shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}
options = {
    "validation": test,
    "epochs": settings.epochs,
    "batch_size": settings.batch_size,
    "lr": settings.lr,
    "seed": session.seed,
    "device": device,
}


def rq_vae(quantizer: nn.Module) -> companion.VQVAE:
    """An untrained VQ-VAE of chapter 04 around a quantizer."""
    return companion.VQVAE(
        companion.ResNetEncoder(channels, D, **shape),
        quantizer,
        companion.ResNetDecoder(channels, D, **shape),
    )


torch.manual_seed(session.seed)
model = rq_vae(
    ResidualQuantizer([EMAVectorQuantizer(K, D, decay=0.99, seed=r) for r in range(R)])
)
history = companion.fit(model, train, **options)
for row in history.rows:
    ours, held_out = row["reconstruction"], row["validation_reconstruction"]
    print(f"epoch {row['epoch']}: distortion {ours / variance:.4f}", end=", ")
    print(f"held-out {held_out / variance:.4f}")

# %%
session.expect("distortion", history.last["validation_reconstruction"] / variance)
with torch.no_grad():
    z = model.eval().encoder(x_test)
codes = model.encode(x_test)  # (N, 7, 7, R)
unit = (z - z.mean((0, 2, 3), keepdim=True)).square().sum(1).mean()  # variance of z
lengths = [(z.square().sum(1).mean() / unit).item()]
grew = []
residual = z
for depth in range(1, R + 1):
    after = z - model.quantizer.decode(codes, depth=depth)
    grew.append((after.norm(dim=1) > residual.norm(dim=1)).float().mean().item())
    lengths.append((after.square().sum(1).mean() / unit).item())
    residual = after
perplexities = [CodeUsage(K).update(codes[..., r]).perplexity for r in range(R)]

fig, (left, right) = plots.figure(9, 3, columns=2)
left.plot(range(R + 1), lengths, "o-", color=plots.COLOURS["train"])
left.set(
    xlabel="depths taken away", ylabel="‖residual‖², over the variance of z",
    yscale="log", title="Each depth leaves less", xticks=range(R + 1),
)  # fmt: skip
right.bar(range(1, R + 1), perplexities, color=plots.COLOURS["third"])
right.axhline(K, color=plots.COLOURS["reference"], linestyle="--")
right.text(0.6, K, f"K = {K}", va="bottom")
right.set(
    xlabel="depth", ylabel="perplexity", xticks=range(1, R + 1), ylim=(0, 1.15 * K),
    title="Every depth uses its codebook",
)  # fmt: skip
plots.show(
    fig,
    alt="Left: the mean squared length of the residual, on a logarithmic scale, falling "
    "from depth to depth. Right: the perplexity of the codes of each of the four depths, "
    "below the number of codes in each.",
)
for depth in range(1, R + 1):
    print(f"mean squared length after {depth} depths: {lengths[depth]:.4f} of the variance")
for depth in range(1, R + 1):
    print(
        f"depth {depth}: residual got longer at {grew[depth - 1]:.1%} of positions",
        end="; ",
    )
    print(f"perplexity {perplexities[depth - 1]:.1f} of {K}")

# %% [markdown]
# On average the residual falls from depth to depth, and the first depth takes away by far the most. At some positions it *grows*, as the section above said
# it can: they had almost nothing left, and no code is as short as that. (The value at 0 is not 1 because z has a mean: the unit is the variance of z, so that
# encoders of different scale can be compared.)
#
# ## Coarse to fine
# Every stack can be cut short. Does the decoder make sense of a sum that is not finished? It never saw one in training: nothing says that the first code
# alone has to be a *picture*. **Quantiser dropout** says so. In training, some of the images use only their first r depths, with r drawn anew for each
# (Zeghidour et al. 2021, who wanted one codec for many bit rates; drawn for each example, as in Kumar et al. 2023). `companion.ResidualQuantizer`
# has it as `depth_dropout`: with probability 1/2 an image gets r uniform in 1 … R.

# %%
torch.manual_seed(session.seed)
members = [EMAVectorQuantizer(K, D, decay=0.99, seed=r) for r in range(R)]
dropped = rq_vae(companion.ResidualQuantizer(members, depth_dropout=0.5))
companion.fit(dropped, train, **options)
print("trained")


# %%
@torch.no_grad()
def by_depth(model: companion.VQVAE, x: Tensor) -> list[Tensor]:
    """Images -> their reconstructions from the first 1, 2, …, R codes."""
    codes = model.eval().encode(x)
    depths = range(1, R + 1)
    return [model.decoder(model.quantizer.decode(codes, depth=d)) for d in depths]


lost = {}
for name, one in (("plain", model), ("dropout", dropped)):
    lost[name] = [mse(images, x_test).item() / variance for images in by_depth(one, x_test)]
    for depth in (1, R):
        session.expect(f"distortion_{name}_{depth}", lost[name][depth - 1])

# %% tags=["cover"]
fine = {f"depth {d}": i for d, i in enumerate(by_depth(dropped, x_test[:10]), start=1)}
plots.show(
    plots.image_rows(
        {"x": x_test[:10]} | fine, title="Code by code the strokes find their place"
    ),
    alt="Five rows of ten test digits: the originals, and the reconstructions from the "
    "first one, two, three and four codes at each position. With one code the strokes are there "
    "with soft and broken edges; each further code brings them closer to the original.",
)

# %%
coarse = {f"depth {d}": i for d, i in enumerate(by_depth(model, x_test[:10]), start=1)}
plots.show(
    plots.image_rows(
        {"x": x_test[:10]} | coarse,
        title="Without dropout the first code alone says less",
    ),
    alt="The same five rows from the model that was trained without dropout: the first "
    "depth alone decodes to digits that are more broken than with dropout, some hardly readable.",
)

# %%
fig, ax = plots.figure(6.2, 2.9)
for name, style, colour in (("plain", "s--", "validation"), ("dropout", "o-", "train")):
    ax.plot(range(1, R + 1), lost[name], style, color=plots.COLOURS[colour], label=name)
ax.set(
    xlabel="depths decoded", ylabel="held-out distortion", xticks=range(1, R + 1),
    ylim=(0, None), title="Dropout makes the first depths useful",
)  # fmt: skip
ax.legend()
plots.show(
    fig,
    alt="Held-out distortion against the number of depths decoded, for the model trained "
    "without and with quantiser dropout: with dropout it is lower at the first depths, and "
    "about the same at the last.",
)

# %% [markdown]
# With dropout the first code is trained to be decoded alone, and it shows; what it costs at full depth is measured over five seeds below.
#
# ## What a stack costs
# Here the two meanings of "the same size" part. R codebooks of K codes are R·K stored vectors. But a *position* is described by R indices, each one of K: K^R
# possible stacks, **R·log₂K bits**. RQ 2×128 stores as many vectors as VQ 256 and sends 2 · 7 = 14 bits where VQ sends 8. In bits its equal is
# VQ with 128² = 16,384 codes.
#
# ### Exercise 6.5 · the rate of a stack  (medium, 10 minutes)
# For indices `(N, *spatial, R)` give the bits of one *position*, in three ways: **nominal**, R·log₂K; **entropy**, the sum over the depths of H(k_r), each depth
# with the shares that its own codes have; **joint**, H(k₁, …, k_R), from the shares of whole stacks. (`perplexity` of chapter 04 takes
# counts and gives exp of the entropy. For plain vector quantisation R = 1.)
#
# <details><summary>Hint 1</summary>Reshape to (n, R), one stack a row. <code>math.log2(perplexity(counts))</code> is an entropy in bits.</details>
# <details><summary>Hint 2</summary><code>torch.unique(rows, dim=0, return_counts=True)</code> counts equal rows.</details>


# %%
def rate_bits(indices: Tensor, num_codes: int) -> dict[str, float]:
    """indices: (N, *spatial, R) -> {"nominal": ..., "entropy": ..., "joint": ...}."""
    ### BEGIN SOLUTION
    stacks = indices.reshape(-1, indices.shape[-1])  # (n, R)

    def entropy(rows: Tensor) -> float:
        counts = torch.unique(rows, dim=0, return_counts=True)[1]
        return math.log2(perplexity(counts))

    depths = range(stacks.shape[1])
    return {
        "nominal": stacks.shape[1] * math.log2(num_codes),
        "entropy": sum(entropy(stacks[:, r]) for r in depths),
        "joint": entropy(stacks),
    }
    ### END SOLUTION


rate_bits = check(rate_bits)

# %%
for depth in range(1, R + 1):
    rates = rate_bits(codes[..., :depth], K)
    shown = ", ".join(f"{name} {value:5.2f}" for name, value in rates.items())
    print(f"depths 1 to {depth}: {shown} bits a position")
session.expect("entropy_bits", rate_bits(codes, K)["entropy"])

# %% [markdown]
# The *joint* entropy is smaller than the sum: the codes of a stack know something of each other. A prior that predicts each code of a stack from those before
# it gets the difference for free: chapter 08. But read such numbers with care. The shares of whole stacks are counted on a finite number of positions, here
# 2,000 images of 49; where there could be more stacks than positions, the entropy of the counts comes out too small.
#
# ## Six claims, tested
# The source report ends with "RQ-VAE performs much better than VQ-VAE while keeping the complexity the same". Here are three claims of
# its text and three that go with them, each trained with five seeds on the same images in the same order. What counts was written down before the first run:
# differences are taken seed by seed, in percent of the distortion; "much" is 20 % or more, less than 5 % is "little", and a claim is decided
# when the 95 % interval of the mean difference lies on one side.

# %%
runs = results("residual")
print(runs.command)
# Student's t for 97.5 %, by the number of seeds n (n − 1 degrees of freedom)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def kind(depth: int, num_codes: int, codebook: str = "EMA", variant: str = "") -> dict:
    names = ("depth", "num_codes", "codebook", "variant")
    return dict(zip(names, (depth, num_codes, codebook, variant), strict=True))


def compare(what: str, a: dict, b: dict, part: int = -1) -> tuple[float, float, float]:
    """Distortion of a against b, seed by seed: mean relative difference, its interval."""
    pairs = zip(
        runs.values("distortion_by_depth", **a),
        runs.values("distortion_by_depth", **b),
        strict=False,  # where one has fewer seeds
    )
    change = torch.tensor([one[part] / other[part] - 1 for one, other in pairs])
    half = T_95[len(change)] * change.std().item() / len(change) ** 0.5
    mean = change.mean().item()
    print(f"{what:<38} {mean:+6.1%}   ({mean - half:+.1%} to {mean + half:+.1%})")
    return mean, mean - half, mean + half


def table(*rows: dict) -> None:
    for where in rows:
        name = f"{'RQ' if where['depth'] > 1 else 'VQ'} "
        name += f"{where['depth']}×" * (where["depth"] > 1) + f"{where['num_codes']}"
        name += f", {where['codebook']} {where['variant']}"
        bits = [runs.mean(f"{rate}_bits", **where) for rate in ("nominal", "entropy")]
        print(
            f"{name:<24} distortion {runs.mean('distortion', **where):.4f} "
            f"± {runs.spread('distortion', **where):.4f}   bits a position: "
            f"{bits[0]:4.1f} nominal, {bits[1]:4.1f} entropy"
        )


# %% [markdown]
# **1. "RQ performed much better than VQ for the same number of total codebooks" (2 × 128 against 256).**

# %%
for codebook in ("EMA", "learned"):
    table(kind(1, 256, codebook), kind(2, 128, codebook))
for codebook in ("EMA", "learned"):
    compare(
        f"RQ 2×128 against VQ 256, {codebook}",
        kind(2, 128, codebook),
        kind(1, 256, codebook),
    )

# %% [markdown]
# Your first prediction. With moving averages RQ loses 15 % less, and the interval excludes 0: RQ *is* better at the same number of codes. "Much", at the bar
# of 20 %, is not shown: the interval reaches from 8 % to 23 %. With learned codebooks, which is what the report has, the mean is 9 % less, and the interval
# includes 0: with five seeds it is not even decided. One seed in five has RQ worse than VQ; one run would have told you whatever it happened to be.
#
# (The report compares *total* losses. They add up different numbers of terms, and a total can fall because latents shrink. What is compared here is the
# held-out reconstruction error alone.) And look at the last columns: 14 bits against 8. What becomes of
# "much" on MNIST, with latents of 7 × 7 × 4 as the report has them, says the table at the end of this section.
#
# **2. At the same number of bits: RQ 2×16 loses no more than VQ 256.**

# %%
for codebook in ("EMA", "learned"):
    table(kind(1, 256, codebook), kind(2, 16, codebook))
for codebook in ("EMA", "learned"):
    compare(
        f"RQ 2×16 against VQ 256, {codebook}", kind(2, 16, codebook), kind(1, 256, codebook)
    )

# %% [markdown]
# Your second prediction. At 8 bits each RQ loses 19 % more than VQ with moving averages and 33 % more with learned codebooks, and both intervals exclude 0.
# So the claim does not hold: *at the same rate the plain codebook is better*. For given latents it cannot be otherwise with the best codebooks: any 2×16
# residual quantizer is a VQ with 256 codes, namely its sums, used without even looking for the nearest one; a VQ is free to choose its 256 codes, and
# looks at all of them. What RQ buys is not a better code for the bits. It is a code for *many* bits from few stored vectors and few comparisons:
# 32 of each here against 256, and for the 14 bits of claim 1, 256 against 16,384.
#
# And the other way round: plain VQ with as many code words as RQ 2×128 can make, 128² = 16,384. (Two seeds only, because it is slow: every position
# is compared with 16,384 codes instead of 256. k-means cannot start it, since a batch has fewer vectors than that; its codes start at random, and restarts
# bring in the unused ones.)

# %%
for codebook in ("EMA", "learned"):
    table(kind(2, 128, codebook), kind(1, 128**2, codebook))
    shares = runs.values("usage_by_depth", **kind(1, 128**2, codebook))
    share = sum(one[0] for one in shares) / len(shares)
    print(f"   of 16,384 codes in use on the test images: {share:.1%}")

# %% [markdown]
# At 14 bits the two are close. In the two seeds that both have, RQ 2×128 loses 3 % and 6 % more than VQ 16,384 (0.0376 and 0.0374 against 0.0364 and 0.0352),
# where at 8 bits it was 19 %; with 256 stored vectors against 16,384, with 256 comparisons a position against 16,384, and with a training that took a seventh
# and a third of the time. *That* is the case for residual quantisation: a rate at which a plain codebook is hardly to be had, for a small loss. A learned
# codebook of that size is no way out: 2 to 4 % of its codes are chosen by the test images.
#
# **3. "Each quantizer reduces the quantization error."** Three quantizers of 64 codes; squared residual over the variance of z, as above:

# %%
fig, ax = plots.figure(6.5, 3)
for codebook, style, colour in (("EMA", "o-", "train"), ("learned", "s--", "validation")):
    seeds = torch.tensor(
        runs.values("residual_by_depth", **kind(3, 64, codebook))
    )  # (S, 4)
    ax.plot(range(4), seeds.mean(0), style, color=plots.COLOURS[colour], label=codebook)
    ax.fill_between(
        range(4), seeds.amin(0), seeds.amax(0), color=plots.COLOURS[colour], alpha=0.2
    )
    grew = torch.tensor(runs.values("grew_by_depth", **kind(3, 64, codebook))).mean(0)
    used = torch.tensor(runs.values("perplexity_by_depth", **kind(3, 64, codebook))).mean(0)
    for d in range(3):
        print(
            f"{codebook:<8} depth {d + 1}: leaves {seeds[:, d + 1].mean():.3f} "
            f"({seeds[:, d + 1].min():.3f} to {seeds[:, d + 1].max():.3f}), longer at "
            f"{grew[d]:5.1%} of positions, perplexity {used[d]:4.1f}"
        )
ax.set(
    xlabel="quantizers applied", ylabel="‖residual‖² / variance of z", yscale="log",
    xticks=range(4), title="What each of three quantizers leaves, five seeds",
)  # fmt: skip
ax.legend()
plots.show(
    fig,
    alt="The mean squared residual after none, one, two and three quantizers, on a "
    "logarithmic scale, for EMA and learned codebooks, with the range over five seeds.",
)

# %% [markdown]
# On average it holds: with moving averages, in each of the five seeds, every depth leaves less than half of what it was given. With learned codebooks the
# first two depths do so as well; the third leaves 52 to 67 % in four seeds, and in one it does *nothing* (0.0349 before it, 0.0348 after): all its vectors
# choose one code, perplexity 1.04. Nothing in the training loss complained. And position by position it does not hold: with learned codebooks the residual
# gets *longer* at a fifth to a third of the positions from depth 2 on (at 63 % where the third had collapsed), with moving averages at 1 to 5 %. What the
# derivation above promised, it promised for codes that are means.
#
# **4. "EMA performed better for the VQ case … for RQ there was not a huge difference."**

# %%
for depth, num_codes in ((1, 256), (2, 128), (2, 16), (3, 64)):
    name = f"RQ {depth}×{num_codes}" if depth > 1 else f"VQ {num_codes}"
    compare(
        f"{name}: learned against EMA",
        kind(depth, num_codes, "learned"),
        kind(depth, num_codes),
    )
    for codebook in ("EMA", "learned"):
        used = runs.values("perplexity_by_depth", **kind(depth, num_codes, codebook))
        mean = [f"{value:.1f}" for value in torch.tensor(used).mean(0).tolist()]
        print(f"   {codebook:<8} perplexity by depth: {', '.join(mean)} of {num_codes}")

# %%
fig, axes = plots.figure(9, 3, columns=2, sharey=True)
for ax, (depth, num_codes) in zip(axes, ((1, 256), (2, 128)), strict=True):
    for codebook, style, colour in (
        ("EMA", "o-", "train"),
        ("learned", "s--", "validation"),
    ):
        seeds = torch.tensor(runs.values("by_epoch", **kind(depth, num_codes, codebook)))
        epochs = range(1, seeds.shape[1] + 1)
        ax.plot(epochs, seeds.mean(0), style, color=plots.COLOURS[colour], label=codebook)
        low, high = seeds.amin(0), seeds.amax(0)
        ax.fill_between(epochs, low, high, color=plots.COLOURS[colour], alpha=0.2)
    ax.set(
        xlabel="epoch", yscale="log", title=f"RQ 2×{num_codes}" if depth > 1 else "VQ 256"
    )
axes[0].set_yticks([0.04, 0.06, 0.1, 0.2], ["0.04", "0.06", "0.1", "0.2"])
axes[0].minorticks_off()
axes[0].set_ylabel("held-out distortion")
axes[0].legend()
plots.show(
    fig,
    alt="Held-out distortion over the epochs, with the range over five seeds, for EMA and "
    "learned codebooks; left for VQ with 256 codes, right for RQ with 2 times 128.",
)

# %% [markdown]
# The first half holds: for VQ 256 a learned codebook loses 12 % more, and the interval (6 % to 18 %) is clear of the 5 % that would be "little". (Chapter 05
# could not decide this at K = 256. Its codes have 4 dimensions there, these have 8, and chapter 04 found that a gradient codebook does better with fewer.)
#
# The second half does not hold for RQ 2×16, where a learned codebook loses 25 % more (10 % to 41 %). For 3×64 and 2×128 the means are about as large, 26 %
# and 21 %, but the seeds differ so much (at 2×128 from 2 % to 55 % more) that the intervals reach below 5 %, and at 2×128 below 0: not decided. The codes
# in use go with the loss and do not explain it: by depth, learned codebooks have perplexities of 3 to 9; moving averages with restarts have 10 to 12 of 16,
# 38 to 54 of 64, 87 to 114 of 128. But VQ 256 has 25 against 194, which is no better a share. The curves add a caution: for VQ the learned codebook is
# *ahead* during the first four epochs, and falls behind in the last two. What is decided here is decided for six epochs.
#
# **5. One codebook shared by all depths does as well as one for each.** Lee et al. 2022 (section 3.1) share one: fewer vectors, and every depth may use every
# code. But the residuals of depth 3 are many times shorter than the latents of depth 1, and a code of that length is of no use to
# the others.

# %%
table(kind(3, 64), kind(3, 64, "EMA", "shared"))
compare("RQ 3×64, shared against separate", kind(3, 64, "EMA", "shared"), kind(3, 64))
for variant in ("", "shared"):
    used = torch.tensor(
        runs.values("perplexity_by_depth", **kind(3, 64, "EMA", variant))
    ).mean(0)
    print(
        f"{variant or 'separate':<9} perplexity by depth:",
        [round(v, 1) for v in used.tolist()],
    )

# %% [markdown]
# In the mean the shared codebook loses 8 % more, but the interval, −4 % to 19 %, holds 0 as well as "little": not decided. At depth 3 it uses fewer codes
# (a perplexity of 14 against 45). Mind what is held equal: the shared quantizer has 64 vectors, the other 192. Lee et al. share a codebook of 16,384
# codes, where there is room for all lengths.
#
# Where the first codes come from matters here. These start from k-means on the latents *and* the residuals of all depths. An earlier run, the same but for
# k-means on the latents alone, lost 21 % more than separate codebooks (0.5 % to 41 %); it is not among the results above.
#
# **6. Quantiser dropout makes the first depths better and costs little at the last.**

# %%
for depth in (1, 2, 3):
    name = f"RQ 3×64 to depth {depth}, dropout"
    compare(name, kind(3, 64, "EMA", "dropout"), kind(3, 64), part=depth - 1)

# %% [markdown]
# The first half holds: decoded from the first code alone, the model with dropout loses 20 % less (17 % to 24 %). At depth 2 no difference is to be
# seen (−2 %, from −6 % to +3 %). The price at full depth is 5 % in the mean (1 % to 8 %): that there is one is decided, whether it is "little" is not.
#
# The report's claims on MNIST, with its latents of 7 × 7 × 4 ([experiments/README.md](../experiments/README.md#residual-against-plain-quantisation)):

# %% tags=["nbval-check-output"]
measured_claims("Residual against plain quantisation")

# %% [markdown]
# ## The rate–distortion curve
# All of it in one picture. The rate has a name: on the left it is the *nominal* one, on the right the *entropy* of the codes' shares, summed over the depths.

# %%
points_vq = [(1, 16), (1, 64), (1, 256), (1, 128**2)]
points_rq = [(2, 16), (3, 16), (4, 16)]
others = [(2, 128), (3, 64)]
fig, axes = plots.figure(9.6, 3.5, columns=2, sharey=True)
for ax, rate in zip(axes, ("nominal", "entropy"), strict=True):
    for group, style, colour, label in (
        (points_vq, "o-", "train", "VQ (bars: standard deviation)"),
        ([(1, 16), *points_rq], "s--", "validation", "RQ R×16"),
        (others, "^", "third", "other RQ"),
    ):
        x = [runs.mean(f"{rate}_bits", **kind(*one)) for one in group]
        y = [runs.mean("distortion", **kind(*one)) for one in group]
        reach = [runs.spread("distortion", **kind(*one)) for one in group]
        ax.errorbar(
            x, y, reach, fmt=style, capsize=3, color=plots.COLOURS[colour], label=label
        )
        place = {"train": (-5, -11), "validation": (4, 5), "third": (6, -12)}[colour]
        side = "right" if colour == "train" else "left"
        for (r, k), bits, value in zip(group, x, y, strict=True):
            if label != "RQ R×16" or r > 1:
                name = f"{r}×{k}" if r > 1 else f"{k:,}"
                ax.annotate(
                    name, (bits, value), place, textcoords="offset points", fontsize=8,
                    ha=side,
                )  # fmt: skip
    ax.margins(x=0.1)
    ax.set(xlabel=f"{rate} bits a position", ylim=(0, None))
axes[0].set(ylabel="held-out distortion", title="At equal nominal bits: VQ lies lower")
axes[1].set_title("By the entropy of the shares: closer")
axes[0].legend(fontsize=8)
plots.show(
    fig,
    alt="Held-out distortion against bits per position, nominal on the left and entropy on "
    "the right, for VQ with 16, 64, 256 and 16,384 codes and for RQ with 2, 3 and 4 times "
    "16, 2 times 128 and 3 times 64 codes, all with EMA codebooks. The line of VQ lies "
    "below that of RQ with codebooks of 16; on the right the two lines are closer.",
)
for group in (points_vq, points_rq, others):
    table(*(kind(*one) for one in group))

# %% [markdown]
# Read along a vertical line, at equal bits. At 8 bits the plain codebook is the lower one, as claim 2 decided. At 14 it is in both of its seeds (by 3 % and
# 6 %; the points lie farther apart because RQ 2×128 has three seeds more). Beyond 14 no plain codebook was trained. And VQ with 256 codes and 8 bits loses as
# little as RQ 4×16 with 16. By the entropies on the right the gap is narrower: at 2×16 it is within the bars, at 3×16 and 4×16 it is not, as far as a line
# between two points of VQ can tell. Codebooks of 16 are small; RQ of larger ones (triangles) lies nearer to VQ.
#
# Now count stored vectors instead: RQ 4×16 has 64 of them and loses 0.046, VQ with 64 loses 0.065. Both readings are right. They answer different questions,
# and the one that a prior will ask (chapters 07 and 08) is about bits and about how many codes there are to choose from at a time.
#
# (The curves flatten because the codes are not all that is lost. Encoder and decoder are small and trained for 6 epochs; the autoencoder of chapter 04 has no
# quantizer at all and is not perfect either. The points of VQ 16 and 64, RQ 3×16 and 4×16 have three seeds each, those of 16,384 codes two.)
#
# ## Proof: what you built is what the companion has


# %% tags=["nbval-check-output"]
def some_members() -> list[VectorQuantizer]:
    torch.manual_seed(0)
    return [VectorQuantizer(6, 3, commitment_weight=0.5) for _ in range(3)]


z = torch.linspace(0, 20, 2 * 3 * 4 * 5).sin().reshape(2, 3, 4, 5)
numbers = {}
for name, cls in (
    ("notebook", ResidualQuantizer),
    ("companion", companion.ResidualQuantizer),
):
    members = some_members()
    quantizer = cls(members)
    latents = z.clone().requires_grad_()
    out = quantizer(latents)
    total = (out.z_q * z.cos()).sum() + out.loss
    gradients = torch.autograd.grad(total, (latents, *(m.codebook for m in members)))
    numbers[name] = {
        "z_q": out.z_q.flatten().tolist(),
        "indices": out.indices.flatten().tolist(),
        "losses": [out.loss.item(), *(value.item() for value in out.losses.values())],
        "gradients": [number for grad in gradients for number in grad.flatten().tolist()],
        "depth 2": quantizer.decode(out.indices, depth=2).flatten().tolist(),
    }
for part, values in numbers["notebook"].items():
    a, b = torch.tensor(values), torch.tensor(numbers["companion"][part])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    print(f"{part:<10} agree:", True)
glue("proof.residual_quantizer", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
members = some_members()
codes_of_z = residual_encode(z, members)
theirs = companion.ResidualQuantizer(members)
assert torch.equal(codes_of_z, theirs.encode(z))
glue("proof.residual_encode", codes_of_z.flatten().tolist(), display=False)
to_two = decode_to_depth(codes_of_z, members, 2)
torch.testing.assert_close(to_two, theirs.decode(codes_of_z, depth=2))
glue("proof.decode_to_depth", to_two.flatten().tolist(), display=False)
print("indices and sums agree:", True)

chosen = [m.decode(codes_of_z[..., r]) for r, m in enumerate(members)]
by_term = residual_losses(z, chosen)
for mine, term in zip(by_term, ("codebook", "commitment"), strict=True):
    depths = torch.stack([part.losses[term] for part in theirs(z).depths])
    torch.testing.assert_close(mine, depths)
glue("proof.residual_losses", [v for t in by_term for v in t.tolist()], display=False)
print("losses by depth agree:", True)

rates = rate_bits(codes_of_z, 6)
expected = companion.quantizers.rate_bits(codes_of_z, 6)
assert all(abs(rates[name] - expected[name]) < 1e-9 for name in expected)
glue("proof.rate_bits", rates, display=False)
print("rates agree:", True)

# %% [markdown]
# ## Play: how deep?
# Choose an image, and how many codes of each stack are decoded. Where in the image does the second code change something, and where the fourth? The table
# shows the indices of the depth that was added last: compare the background with the strokes, at the first depth and at the last.

# %%
explorers.depth_slider(dropped, x_test[:20])

# %% [markdown]
# For readers of the printed page: one digit at depths 1 to 4, and where each depth changed the picture.

# %%
steps = by_depth(dropped, x_test[1:2])
fig, axes = plots.figure(9, 3.8, rows=2, columns=R + 1)
plots.draw_image(axes[0, 0], x_test[1])
axes[0, 0].set_title("x")
axes[1, 0].set_axis_off()
before = torch.zeros_like(steps[0])
for d, image in enumerate(steps, start=1):
    plots.draw_image(axes[0, d], image[0])
    axes[0, d].set_title(f"depth {d}")
    change = (image - before).abs()[0, :1].cpu()
    axes[1, d].imshow(change[0].numpy(), cmap="magma", vmin=0, vmax=0.6)
    axes[1, d].set_axis_off()
    axes[1, d].set_title(f"|change|, mean {change.mean():.3f}", fontsize=9)
    before = image
plots.show(
    fig,
    alt="A digit and its reconstructions from one to four codes a position; below each the "
    "absolute change that this depth brought. The first brings the digit, the others ever "
    "smaller corrections along the strokes.",
)

# %% [markdown]
# ## What breaks, and why
# **The residual is not detached, or detached too much.** Four versions of one line; for each the gradient of the *second* depth's commitment loss at z and
# in the first codebook. Only the first is right, and all four have the same values:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = torch.randn(40, 3, requires_grad=True)
books = [torch.randn(8, 3, requires_grad=True) for _ in range(2)]
e_1 = books[0][nearest_code(z.detach(), books[0])]
versions = {
    "residual - codes.detach()": z - e_1.detach(),
    "residual - codes": z - e_1,
    "(residual - codes).detach()": (z - e_1).detach(),
    "residual - straight_through(…)": z - straight_through(z, e_1),
}
for line, residual in versions.items():
    e_2 = books[1][nearest_code(residual.detach(), books[1])].detach()
    commitment = (residual - e_2).square().mean()
    found = [None, None]
    if commitment.requires_grad:
        found = torch.autograd.grad(commitment, (z, books[0]), allow_unused=True)
    at_z, at_book = (g is not None and bool(g.abs().max() > 1e-6) for g in found)
    print(f"{line:<31} moves z: {at_z!s:<6} moves codebook 1: {at_book}")

# %% [markdown]
# **Each depth has a straight-through of its own, and they are added up.** The value is right, and the encoder gets R times the gradient:

# %% tags=["nbval-check-output"]
z = torch.randn(5, 3, requires_grad=True)
parts = [0.5**r * torch.randn(5, 3) for r in range(4)]  # codes of four depths
once = straight_through(z, sum(parts))
added = sum(straight_through(z, part) for part in parts)
for name, z_q in (("once, on the sum", once), ("one each, added", added)):
    (gradient,) = torch.autograd.grad(z_q.sum(), z)
    print(f"{name:<17} dz_q/dz = {gradient.mean():.0f}")
assert torch.allclose(once, added)

# %% [markdown]
# Adam hides this: it divides by the size of the gradient, so that the encoder still learns, only with a reconstruction term that weighs R times as much
# against the commitment.
#
# **−1 for a code that was dropped.** Some implementations of quantiser dropout mark the dropped depths with the index −1. Sooner or later such an index
# reaches a codebook, and what happens then depends on how it is looked up:

# %% tags=["nbval-check-output"]
codebook = torch.arange(12.0).reshape(4, 3)
index = torch.tensor([2, -1])
print("codebook[index]:", codebook[index].tolist(), "<- the LAST code, without a word")
attempts = {
    "functional.embedding": lambda: functional.embedding(index, codebook),
    "companion decode": lambda: fixed(codebook).decode(index),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except (IndexError, ValueError) as error:
        print(f"{name}: {type(error).__name__}: {str(error)[:46]}")

# %% [markdown]
# The companion has no −1: every index is a code, also of a depth that was dropped, and `mask` says which depths each image used:

# %% tags=["nbval-check-output"]
torch.manual_seed(1)
quantizer = companion.ResidualQuantizer(
    [VectorQuantizer(4, 3) for _ in range(3)], depth_dropout=1.0
)
out = quantizer(torch.randn(4, 3, 2, 2))
print("smallest index:", int(out.indices.min()))
print("depths used:", out.mask.sum(1).tolist())

# %% [markdown]
# **A shared codebook that changes between the depths.** One codebook for all depths, with moving averages, in a plain loop: depth 1 looks up *and
# learns*, then depth 2 looks up in a codebook that is no longer the same. The indices and the sum do not belong to any one codebook:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = torch.randn(64, 3, 4, 4)
for name in ("a loop that learns at each depth", "all depths, then one update"):
    shared = EMAVectorQuantizer(8, 3, decay=0.5)
    shared(z)  # k-means
    before = fixed(shared.codebook.clone())
    if name.startswith("a loop"):
        total, residual, stack = torch.zeros_like(z), z, []
        for _ in range(3):
            part = shared(residual)
            total, residual = total + part.z_q, residual - part.z_q
            stack.append(part.indices)
        stack = torch.stack(stack, -1)
    else:
        out = companion.ResidualQuantizer(shared, depth=3)(z)
        total, stack = out.z_q, out.indices
    same = torch.allclose(decode_to_depth(stack, [before] * 3, 3), total, atol=1e-5)
    print(f"{name:<34} z_q is the sum of the codes it names: {same}", end=";  ")
    print("updates:", int(shared.step) - 1)

# %% [markdown]
# **The loss averaged over the depths, silently.** Nothing looks wrong; each codebook merely learns R times more slowly, or with Adam, the commitment weighs R
# times less against the reconstruction:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = torch.randn(6, 4, 3, 3)
for depth in (1, 2, 4):
    members = [VectorQuantizer(8, 4) for _ in range(depth)]
    loss = companion.ResidualQuantizer(members)(z).loss
    (summed,) = torch.autograd.grad(loss, members[0].codebook, retain_graph=True)
    (averaged,) = torch.autograd.grad(loss / depth, members[0].codebook)
    share = averaged.norm() / summed.norm()
    print(f"R = {depth}: gradient of codebook 1, averaged over summed: {share:.2f}")

# %% [markdown]
# ## Pen and paper
# 1. Lee et al. 2022 code a 256 × 256 image as 8 × 8 stacks of R = 4 codes out of K = 16,384. How many bits are that, how many codes would a plain
#    VQ need for the same rate, and how many distances does each need for one position?
# 2. Codebooks {0, 2} and {0.2, −1} on the line. Quantise z = 0.9 greedily. Which pair is the best?
# 3. Suppose that codebook 2 contains the code 0. Show that no residual gets longer at depth 2.
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. 64 · 4 · 14 = 3,584 bits. Per position 56 bits: a plain VQ would need 2⁵⁶ ≈ 7 · 10¹⁶ codes, and as many distances; RQ needs 4 · 16,384 = 65,536 (and
#    with one shared codebook stores 16,384 vectors).
# 2. Greedy: 0.9 is nearer to 0 than to 2 (0.9 against 1.1); the residual 0.9 is nearest to 0.2; the sum is 0.2, the error 0.7. The best pair is 2 − 1 = 1,
#    with error 0.1.
# 3. The nearest code e is at least as near to r as the code 0 is: ‖r − e‖ ≤ ‖r − 0‖ = ‖r‖.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * Residual quantisation: each depth quantises what the ones before it left; z_q is the sum, the error is the last residual. K^R sums from R·K codes.
# * Losses by depth on residuals whose earlier codes are held fixed; summed over the depths; one straight-through for the whole sum.
# * On average each depth shortens the residual by the mean squared length of its codes, if these are means; at single positions it may grow.
# * "The same number of codes" is not "the same number of bits". At equal codes RQ lost less here (15 %, EMA); at equal bits VQ did (RQ 19 % more). What RQ
#   buys is a high rate from small codebooks.
# * Stacks can be cut: coarse to fine. Quantiser dropout makes the first depths worth decoding alone.
#
# **Further experiments.** Give each codebook a code fixed at zero: does the share of residuals that grow fall to 0, and does the distortion care? Search the
# best stack among the ten nearest first codes (a beam) instead of the nearest: how much of the gap to VQ at equal rate does that close? Train RQ 8×4 and
# put it into the rate–distortion picture.
#
# **References.** B.-H. Juang, A. H. Gray: *Multiple Stage Vector Quantization for Speech Coding*, 1982 (the idea). R. M. Gray, D. L. Neuhoff:
# *Quantization*, 1998 (a survey; multistage codes among the structured ones, with what structure costs). N. Zeghidour and others: *SoundStream: An End-to-End
# Neural Audio Codec*, 2021 (section III-C: residual VQ and quantiser dropout). D. Lee and others: *Autoregressive Image Generation using Residual
# Quantization*, 2022 (section 3.1: equations 3 to 5 are the quantiser). R. Kumar and others: *High-Fidelity Audio Compression with Improved RVQGAN*, 2023
# (dropout drawn for each example with a probability). M. Ibrahim: *Residual Vector Quantization based VAE* (the report whose claims were tested).

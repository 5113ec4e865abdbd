# %% [markdown]
# # 06 · Residual quantisation
#
# **The question.** A finer picture needs more codes, and a codebook of 16,384 vectors needs 16,384 comparisons a position. Can a few *small* codebooks do the
# same, if each quantises what the ones before it left over? You build it, train it, and end with pictures that come into focus code by code:
#
# ![Five rows of ten digits: the originals, and what the decoder makes of the first one, two, three and four codes at each position. The first row of
# reconstructions has the right strokes with soft and broken edges, each further one is closer to the
# original.](../chapters/pictures/06_residual_quantisation.png)
#
# **Afterwards you can** write a residual quantizer whose losses go where they belong, decode it to any depth, and say what it saves: stored vectors and
# comparisons, not bits.
#
# **Needed:** [chapter 03](03_vector_quantisation.ipynb) (straight-through, the two losses), [chapter 04](04_vq_vae.ipynb) (the VQ-VAE, perplexity) and
# [chapter 05](05_ema_codebooks.ipynb) (EMA codebooks).
# **Time:** we estimate an hour without the exercises and two with them; the computer's time is in the table below.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import results
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
# Two models are trained alike. One has a single codebook of 256 codes. The other has two codebooks of 128 codes and gives each position two codes, one
# from each. So both store 256 vectors.
#
# 1. Which one loses less (lower held-out distortion)?
# 2. How many bits does each of them spend on a position?
# 3. Now let the second have two codebooks of 16 codes, so that both spend the *same number of bits*. Which one loses less now?
#
# Write down your guesses. *At equal bits*, below, has the answers.
#
# ## Digit by digit
# You have done residual quantisation all your life: it is how you write a number, if you round to the nearest. Take 2.374. The nearest whole number is 2, and
# 0.374 is left over. The nearest tenth to that is 0.4, and −0.026 is left. The nearest hundredth is −0.03. Add up what you chose: 2 + 0.4 − 0.03 = 2.37.
#
# At each step you chose among about ten numbers, and three steps reach a thousand. Here is the loop as a picture: grey boxes are codebooks, blue ones hold δ,
# what is left over.


# %% tags=["hide-input"]
def draw_loop(start: float, steps: int = 3) -> None:
    """The residual loop on one number; a codebook has the multiples of 1, 0.1 and 0.01."""
    fig, ax = plots.figure(8, 3.7)
    ax.set(xlim=(-1.1, 10.7), ylim=(-0.8, 4.2))
    ax.set_axis_off()
    blue, orange, green = (plots.COLOURS[c] for c in ("train", "validation", "third"))
    line = {"arrowstyle": "->", "color": plots.COLOURS["reference"], "lw": 1.4}
    middle = {"ha": "center", "va": "center"}
    lists = ("0, 1, 2, 3, …", "0, ±.1, ±.2, …", "0, ±.01, ±.02, …")
    left, total = start, 0.0
    for depth in range(steps + 1):
        x = 3.3 * depth
        name = "z = δ$_0$" if depth == 0 else f"δ$_{depth}$"
        number = f"{left:.3f}".replace("-", "−")
        box = {"boxstyle": "round", "fc": "white", "ec": blue}
        ax.text(x, 3.5, f"{name}\n{number}", fontsize=13, color=blue, bbox=box, **middle)
        if depth == steps:
            ax.text(x, 2.5, "the error\nz − z$_q$", fontsize=12, color=blue, **middle)
            break
        code = round(left * 10**depth) / 10**depth
        box = {"boxstyle": "square,pad=0.35", "fc": "#F2F2F2", "ec": "black"}
        text = f"codebook {depth + 1}\n{lists[depth]}"
        ax.text(x, 1.1, text, fontsize=11, bbox=box, **middle)
        ax.annotate("", (x, 1.75), (x, 2.9), arrowprops=line)
        ax.text(x - 0.1, 2.55, "nearest?", ha="right", va="center", fontsize=10.5)
        ax.plot([x + 0.68, x + 1.5], [3.5, 3.5], color=line["color"], lw=1.4)
        ax.text(x + 1.7, 3.5, "−", fontsize=17, color=orange, **middle)
        ax.annotate("", (x + 2.6, 3.5), (x + 1.9, 3.5), arrowprops=line)
        ax.annotate("", (x + 1.65, 3.2), (x + 0.85, 1.75), arrowprops=line)
        text = f"c$_{depth + 1}$ = {code:g}".replace("-", "−")
        ax.text(x + 1.3, 1.85, text, ha="left", va="center", fontsize=12, color=orange)
        ax.annotate("", (x, -0.15), (x, 0.5), arrowprops=line)
        text = f"{code:g}" if depth == 0 else f"{'+' if code > 0 else '−'} {abs(code):g}"
        ax.text(x, -0.5, text, fontsize=13, color=orange, **middle)
        left, total = left - code, total + code
    ax.text(
        3.3 * steps - 0.3,
        -0.5,
        f"= z$_q$ = {total:.2f}",
        fontsize=13,
        color=green,
        **middle,
    )
    ax.set_title("Each codebook quantises what the ones before it left")
    plots.show(
        fig,
        alt="A chain of four boxes, from z = 2.374 on the left to the last residual 0.004 on "
        "the right. Below each of the first three stands a codebook: whole numbers, tenths, "
        "hundredths. Each gives the nearest of its codes, 2, 0.4 and −0.03, which is subtracted "
        "to make the next residual, 0.374, −0.026 and 0.004. The sum of the codes is 2.37.",
    )


draw_loop(2.374)

# %% [markdown]
# In code it is one loop with one variable for what is left:

# %% tags=["nbval-check-output"]
remaining = 2.374
for unit in (1, 0.1, 0.01):
    digit = round(remaining / unit) * unit  # the nearest code
    remaining = remaining - digit
    print(f"code {digit:5.2f}   left over {remaining:6.3f}")

# %% [markdown]
# Now replace numbers by vectors, and whole numbers, tenths and hundredths by codebooks that are learned.
#
# ## A second codebook for what is left
# We start with points in the plane, and 4 codes found by k-means (chapter 05):

# %% tags=["nbval-check-output"]
draws = torch.Generator().manual_seed(0)
turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
points = torch.randn(2000, 2, generator=draws) * torch.tensor([1.6, 0.7]) @ turn  # (N, 2)
first, _ = k_means(points, 4, iterations=200)  # (4, 2)
k_1 = nearest_code(points, first)  # (N,)
after_one = points - first[k_1]  # what the first code left, (N, 2)
print(f"mean squared length of the points    {points.square().sum(1).mean():.2f}")
print(f"of what 4 codes leave                {after_one.square().sum(1).mean():.2f}")

# %% [markdown]
# What is left of a vector is its **residual**. Residuals are vectors like any others, on average shorter. So we quantise *them*, with a codebook of their own,
# and subtract its code as well:

# %% tags=["nbval-check-output"]
second, _ = k_means(after_one, 4, iterations=200)
k_2 = nearest_code(after_one, second)
after_two = after_one - second[k_2]
z_q = first[k_1] + second[k_2]
print(f"of what is left after 4 codes more   {after_two.square().sum(1).mean():.2f}")
print("z − z_q is the last residual:", torch.allclose(points - z_q, after_two, atol=1e-6))
print("codes stored:", 4 + 4, "  sums they can make:", 4 * 4)

# %% [markdown]
# That is all of **residual quantisation** (RQ). Start with $\delta_0 = z$. At **depth** $r = 1, \dots, R$ choose a code and subtract it:
#
# $$k_r = \arg\min_k \|\delta_{r-1} - e^{(r)}_k\|, \qquad c_r = e^{(r)}_{k_r}, \qquad \delta_r = \delta_{r-1} - c_r .$$
#
# Here $e^{(r)}$ is the codebook of depth $r$, $c_r$ is the code chosen from it, and $R$ is the number of depths. (RQ 2×4 has $R = 2$ and $K = 4$.) The
# result is the sum $z_q = c_1 + \dots + c_R$, and the error is the last residual: $z - z_q = \delta_R$. The R indices of a position are its **stack**
# ([glossary](../chapters/glossary.md)).
#
# The method is **greedy**. The first code is the nearest to $z$, even if another first code and its second would together come nearer. To find the best stack
# of all we would have to compare $K^R$ sums; the loop compares only $R \cdot K$ codes.
#
# ### Exercise 6.1 · the residual loop  (easy, 10 minutes)
# Go from latents and a list of quantizers to the indices, depth last. Each quantizer has `encode(z)`, which gives the indices of the nearest codes, and
# `decode(indices)`, which gives the codes.
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

# %% [markdown]
# Which points get the same indices? We draw these *cells* for one codebook of 4, one codebook of 16, and our stack of 4 and 4:


# %% tags=["hide-input"]
def fixed(codebook: Tensor) -> VectorQuantizer:
    """A quantizer with these codes."""
    quantizer = VectorQuantizer(*codebook.shape)
    quantizer.load_state_dict({"codebook": codebook})
    return quantizer.requires_grad_(False)


def draw_cells(ax, quantizers: list, *, shaded: bool, reach: float = 4.0) -> None:
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
        [[200, 221, 240], [253, 216, 180], [205, 230, 190], [228, 208, 228]]
    )
    image = torch.ones(500, 500, 3)
    if shaded:
        image = (shades / 255)[stack[:, 0]].reshape(500, 500, 3)
    image[border] = 0.4
    ax.imshow(
        image.numpy(), origin="lower", extent=(-reach, reach, -reach, reach),
        interpolation="nearest",
    )  # fmt: skip
    ax.scatter(*sums.T.numpy(), s=16, color=plots.COLOURS["train"], zorder=3)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_xlabel("first dimension")
    ax.grid(False)


one, two = fixed(first), fixed(second)
fig, axes = plots.figure(9, 3.3, columns=3)
draw_cells(axes[0], [one], shaded=True)
draw_cells(axes[1], [fixed(k_means(points, 16)[0])], shaded=False)
draw_cells(axes[2], [one, two], shaded=True)
axes[0].set_ylabel("second dimension")
axes[0].set_title("VQ, 4 codes: 4 cells")
axes[1].set_title("VQ, 16 codes: 16 cells")
axes[2].set_title("RQ 2×4, 8 codes: 16 cells")
arrow = {"width": 0.03, "head_width": 0.22, "length_includes_head": True, "zorder": 4}
for k in first.norm(dim=1).argsort(descending=True)[:3].tolist():  # of three cells
    members = points[k_1 == k]
    z = members[(members - first[k]).norm(dim=1).argsort()[-len(members) // 4]]
    codes = residual_encode(z[None], [one, two])
    c_1, c_2 = (q.decode(codes[:, r])[0] for r, q in enumerate((one, two)))
    axes[2].arrow(0, 0, *c_1.tolist(), color=plots.COLOURS["validation"], **arrow)
    axes[2].arrow(*c_1.tolist(), *c_2.tolist(), color=plots.COLOURS["third"], **arrow)
    axes[2].scatter(*z.tolist(), s=30, marker="x", color="black", zorder=5)
blank = {"marker": "", "linewidth": 3}
axes[2].plot([], [], color=plots.COLOURS["validation"], label="first code", **blank)
axes[2].plot([], [], color=plots.COLOURS["third"], label="second code", **blank)
axes[2].legend(loc="lower right", fontsize=8, framealpha=0.9)
plots.show(
    fig,
    alt="Three pictures of the plane cut into cells. Left: 4 Voronoi cells with a code in "
    "each. Middle: 16 Voronoi cells, small where the points are. Right: the 4 cells, each cut "
    "again into 4 by the same second codebook; for three points an arrow leads from the "
    "origin to the first code, and another from there to the sum of both.",
)

# %% [markdown]
# Dots are codes, or sums of codes; shades show the first code. On the right two arrows lead towards each of three points (crosses). The *same* pattern of four
# dots lies around each of the four first codes. Plain vector quantisation, in the middle, puts its 16 cells where the points are. What is that freedom worth?

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
# With as many codes, 8, the stack loses less than VQ, but it spends 4 bits on a point and VQ 3. With as many bits VQ loses less. So a sentence such as "RQ is
# better" has to say *what is held equal*.
#
# ## Does each depth shorten the residual?
# On average it does, if each code is the mean of the residuals that chose it, as in k-means. Look at the residuals $\delta$ that chose one code $c$. Their mean
# is $\mathrm{E}[\delta] = c$, so
#
# $$\mathrm{E}\|\delta - c\|^2 = \mathrm{E}\|\delta\|^2 - 2\,c\cdot\mathrm{E}[\delta] + \|c\|^2 = \mathrm{E}\|\delta\|^2 - \|c\|^2 .$$
#
# So each depth takes away exactly the mean squared length of the codes that it chose. Does it also shorten every *single* residual? We count:

# %% tags=["nbval-check-output"]
before, after = after_one.square().sum(1).mean(), after_two.square().sum(1).mean()
codes_length = second[k_2].square().sum(1).mean()
print(
    f"{before:.3f} − {codes_length:.3f} = {before - codes_length:.3f}, measured {after:.3f}"
)
longer = (after_two.norm(dim=1) > after_one.norm(dim=1)).float().mean()
print(f"of 20 residuals, about {20 * longer:.0f} get longer")

# %% [markdown]
# It does not. A residual of nearly zero has to choose a code too. If every code is more than twice as long, subtracting one makes it longer. With more codes
# this happens less often; [study 06b](06b_stacks_against_codebooks.ipynb) counts.
#
# ### Exercise 6.2 · decoding to a depth  (easy, 5 minutes)
# The decoder gets the sum of a stack's codes. Give the sum of the first `depth` of them only; `depth` counts from 1.
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
# ## Losses by depth
# Each depth is a vector quantizer whose latents are the residuals it is given. So each has the two losses of chapter 03, as means over positions and
# dimensions:
#
# $$\text{codebook}_r = \|\mathrm{sg}[\delta_{r-1}] - c_r\|^2, \qquad \text{commitment}_r = \|\delta_{r-1} - \mathrm{sg}[c_r]\|^2 .$$
#
# Which gradients may the residual hand on? It contains $z$, so the commitment of *every* depth moves the encoder. That is wanted. But it also contains the
# codes of earlier depths, and commitment is not meant to move codes. So they are held fixed:
#
# $$\delta_{r-1} = z - \mathrm{sg}[c_1] - \dots - \mathrm{sg}[c_{r-1}] .$$
#
# What if they are not? The loop that one often reads ends with `residual -= quantized`, where `quantized` still has its graph. The number below is the
# gradient of depth 2's *commitment* loss in *codebook 1*:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
books = [torch.randn(8, 3, requires_grad=True) for _ in range(2)]
z = torch.randn(50, 3)
for name in ("as often written", "code detached"):
    residual = z
    for book in books:
        quantized = book[nearest_code(residual.detach(), book)]
        commitment = (residual - quantized.detach()).square().mean()
        step = quantized if name == "as often written" else quantized.detach()
        residual = residual - step
    found = None
    if commitment.requires_grad:
        found = torch.autograd.grad(commitment, books[0], allow_unused=True)[0]
    print(
        f"{name:<17} codebook 1 gets:", "none" if found is None else f"{found.norm():.3f}"
    )

# %% [markdown]
# Nothing crashes, and every value is the same. But codebook 1 is now pulled to leave residuals near the codes of codebook 2. (EMA codebooks take no gradients,
# so the slip does nothing to them.)
#
# ### Exercise 6.3 · losses by depth  (medium, 15 minutes)
# Given z and the chosen codes of each depth (with their graphs), return the codebook losses and the commitment losses, each as a tensor (R,).
# `vq_losses(z, z_q)` gives (codebook loss, commitment loss) of one quantizer, as in chapter 03.
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
# **Summed, not averaged.** The training loss gets the *sum* of these losses over the depths. Published code does either, and then the same $\beta$ means
# different things. With the sum, each codebook gets the gradient that it would get alone, whatever $R$ is. What the mean would change
# depends on the optimiser: see *What breaks*.
#
# <details><summary>The commitment loss as Lee et al. write it</summary>
#
# Lee et al. 2022 write it as $\sum_r \|z - \mathrm{sg}[\hat z^{(r)}]\|^2$, with $\hat z^{(r)} = c_1 + \dots + c_r$. It is the same number with the same
# gradient at z, since $z - \hat z^{(r)}$ is $\delta_r = \delta_{r-1} - c_r$. Their codebooks are EMA codebooks and need no codebook loss.
# </details>
#
# ## One straight-through for the sum
# The decoder's gradient arrives at $z_q$, and the encoder needs one at $z$. The straight-through estimator of chapter 03 hands it over unchanged. Apply it
# **once, to the sum**. If each depth had an estimator of its own, each would hand over the whole gradient:

# %% tags=["nbval-check-output"]
z = torch.randn(5, 3, requires_grad=True)
parts = [0.5**r * torch.randn(5, 3) for r in range(4)]  # codes of four depths
once = straight_through(z, sum(parts))
added = sum(straight_through(z, part) for part in parts)
for name, estimated in (("once, on the sum", once), ("one each, added", added)):
    (gradient,) = torch.autograd.grad(estimated.sum(), z)
    print(f"{name:<17} dz_q/dz = {gradient.mean():.0f}")
print("the same values:", torch.allclose(once, added))

# %% [markdown]
# The values agree. Only the gradient tells, so the check below looks at gradients.
#
# ### Exercise 6.4 · the residual quantizer  (medium, 20 minutes)
# Write `forward`. Call each quantizer with the residual, `part = quantizer(residual)`; in training mode an EMA codebook learns in that call. Return
# `Quantized(z_q, indices, loss, losses)`: the sum of the codes with one straight-through gradient (`straight_through(z, z_q)` has the value of its second
# argument and the gradient of its first), the indices (B, *spatial, R), and `part.loss` and `part.losses` (terms by name) summed over the depths. The parts
# bring their own losses, so you need no `residual_losses` here.
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
# An **RQ-VAE** is the VQ-VAE of chapter 04 with this quantizer; nothing else changes. In the quick profile it has four EMA codebooks of 8 codes: 32 stored
# vectors, which can make $8^4 = 4{,}096$ sums.

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
session.expect("distortion", history.last["validation_reconstruction"] / variance)

# %% [markdown]
# Does each depth leave less than it was given? We encode the test images and look at the residuals, with the variance of $z$ as the unit:

# %%
with torch.no_grad():
    z = model.eval().encoder(x_test)  # (N, D, 7, 7)
codes = model.encode(x_test)  # (N, 7, 7, R)
unit = (z - z.mean((0, 2, 3), keepdim=True)).square().sum(1).mean()  # variance of z
lengths = [(z.square().sum(1).mean() / unit).item()]
perplexities = [CodeUsage(K).update(codes[..., r]).perplexity for r in range(R)]
residual = z
for depth in range(1, R + 1):
    after = z - model.quantizer.decode(codes, depth=depth)
    grew = (after.norm(dim=1) > residual.norm(dim=1)).float().mean()
    lengths.append((after.square().sum(1).mean() / unit).item())
    print(f"depth {depth} leaves {lengths[-1]:.3f}", end="; ")
    print(f"longer at {grew:5.1%} of positions", end="; ")
    print(f"perplexity {perplexities[depth - 1]:.1f} of {K}")
    residual = after

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(8, 3, columns=2)
left.plot(range(R + 1), lengths, "o-", color=plots.COLOURS["train"])
left.set(
    xlabel="depths subtracted", ylabel="‖residual‖² / variance of z",
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

# %% [markdown]
# On average the residual gets shorter from depth to depth, and depth 1 takes away most. From depth 2 on it gets longer at some positions, as in the
# plane. (The curve starts above 1: ‖z‖² counts the mean of $z$ too, and the unit does not.)
#
# ## Coarse to fine
# Every stack can be cut short: take only the first code of each position, and decode that. Will it be a picture? In training the decoder never saw an
# unfinished sum.
#
# **Quantiser dropout** shows it such sums. In training an image uses only its first $r$ depths, with $r$ drawn anew for each image from $1, \dots, R$.
# (Zeghidour et al. 2021, for one audio codec at many bit rates. Kumar et al. 2023 draw $r$ with probability $\tfrac12$ and otherwise use all depths, as we do
# with `depth_dropout=0.5`.) Compare "depth 1" in the next two pictures, with dropout and without.

# %%
torch.manual_seed(session.seed)
members = [EMAVectorQuantizer(K, D, decay=0.99, seed=r) for r in range(R)]
dropped = rq_vae(companion.ResidualQuantizer(members, depth_dropout=0.5))
companion.fit(dropped, train, **options)


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

# %% tags=["hide-input", "cover"]
fine = {f"depth {d}": i for d, i in enumerate(by_depth(dropped, x_test[:10]), start=1)}
plots.show(
    plots.image_rows(
        {"x": x_test[:10]} | fine, title="Code by code the strokes find their place"
    ),
    alt="Five rows of ten test digits: the originals, and the reconstructions from the "
    "first one, two, three and four codes at each position. With one code the strokes are there "
    "with soft and broken edges; each further code brings them closer to the original.",
)

# %% tags=["hide-input"]
coarse = {f"depth {d}": i for d, i in enumerate(by_depth(model, x_test[:10]), start=1)}
plots.show(
    plots.image_rows(
        {"x": x_test[:10]} | coarse,
        title="Without dropout the first code alone says less",
    ),
    alt="The same five rows from the model that was trained without dropout: the first "
    "depth alone decodes to digits that are more broken than with dropout, some hardly readable.",
)

# %% tags=["hide-input"]
fig, ax = plots.figure(6, 2.9)
for name, style, colour in (("plain", "s--", "validation"), ("dropout", "o-", "train")):
    label = {"plain": "without dropout", "dropout": "with dropout"}[name]
    ax.plot(range(1, R + 1), lost[name], style, color=plots.COLOURS[colour], label=label)
ax.set(
    xlabel="depths decoded", ylabel="held-out distortion", xticks=range(1, R + 1),
    ylim=(0, None), title="Dropout makes the first depth useful alone",
)  # fmt: skip
ax.legend()
plots.show(
    fig,
    alt="Held-out distortion against the number of depths decoded, for the model trained "
    "without and with quantiser dropout: with dropout it is lower at the first depth, and "
    "about the same at the last.",
)

# %% [markdown]
# Without dropout the first code alone gives a picture too, with broken strokes. With dropout it loses less, and at full depth there is hardly a difference in
# this run. Over five seeds there is a price ([study 06b](06b_stacks_against_codebooks.ipynb)).
#
# ## What a stack costs
# "The same size" can mean three things. $R$ codebooks of $K$ codes are $R \cdot K$ **stored vectors**, and $R \cdot K$ **comparisons** a position. But a
# position is described by $R$ indices, each one of $K$. That is one of $K^R$ stacks, or $R \log_2 K$ **bits**.
#
# RQ 2×128 stores as many vectors as VQ 256, and spends $2 \cdot 7 = 14$ bits where VQ spends 8. Its equal *in bits* is a VQ with $128^2 = 16{,}384$ codes.
#
# The bits of a position are its **rate**. If some codes are more frequent than others, a position can be written with fewer than $R \log_2 K$ bits on
# average: as many as the entropy of the codes (chapter 04).
#
# ### Exercise 6.5 · the rate of a stack  (medium, 10 minutes)
# For indices `(N, *spatial, R)` give the bits of one *position* in three ways, as Python numbers. **nominal**: $R \log_2 K$. **entropy**: the sum over the
# depths of $H(k_r)$, each depth with the shares that its own codes have. **joint**: $H(k_1, \dots, k_R)$, from the shares of whole stacks. (`perplexity` of
# chapter 04 takes counts and gives exp of the entropy.)
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
# The joint entropy is smaller than the sum: the codes of a stack depend on each other. A prior that guesses each code from those before it in its
# stack can use that, and [chapter 08](08_rq_transformer.ipynb) builds one. (Joint entropies come out too small if there are few positions for the many possible
# stacks. In the quick profile there are over twenty positions for each.)
#
# ## At equal bits
# Now your predictions. One training run each would not decide them, so here are stored runs with two to five seeds: the model above at
# various $R$ and $K$. A **rate–distortion curve** shows what a bit buys:

# %% tags=["hide-input"]
runs = results("residual")


def kind(depth: int, num_codes: int) -> dict:
    """Which runs: EMA codebooks without anything else."""
    return {"depth": depth, "num_codes": num_codes, "codebook": "EMA", "variant": ""}


fig, ax = plots.figure(6.6, 3.7)
for group, style, colour, label in (
    ([(1, 16), (1, 64), (1, 256), (1, 128**2)], "o-", "train", "VQ: one codebook"),
    ([(1, 16), (2, 16), (3, 16), (4, 16)], "s--", "validation", "RQ: R codebooks of 16"),
    ([(2, 128), (3, 64)], "^", "third", "RQ with larger codebooks"),
):
    x = [runs.mean("nominal_bits", **kind(*each)) for each in group]
    y = [runs.mean("distortion", **kind(*each)) for each in group]
    reach = [runs.spread("distortion", **kind(*each)) for each in group]
    ax.errorbar(x, y, reach, fmt=style, capsize=3, color=plots.COLOURS[colour], label=label)
    place = {"train": (-5, -12), "validation": (4, 6), "third": (6, -13)}[colour]
    for (depth, num_codes), bits, value in zip(group, x, y, strict=True):
        if colour != "validation" or depth > 1:
            ax.annotate(
                f"{depth}×{num_codes}" if depth > 1 else f"{num_codes:,}", (bits, value),
                place, textcoords="offset points", fontsize=9,
                ha="right" if colour == "train" else "left",
            )  # fmt: skip
ax.margins(x=0.1)
ax.set(xlabel="nominal bits a position", ylabel="held-out distortion", ylim=(0, None))
ax.set_title("At equal bits, one codebook loses less")
ax.legend(fontsize=9)
plots.show(
    fig,
    alt="Held-out distortion against nominal bits per position, for VQ with 16, 64, 256 and "
    "16,384 codes, for RQ with 2, 3 and 4 codebooks of 16, and for RQ 2 times 128 and 3 times "
    "64. The line of VQ lies below that of RQ with codebooks of 16; RQ 2 times 128 lies "
    "little above VQ with 16,384 codes. Bars are standard deviations over the seeds.",
)

# %% tags=["hide-input"]
print("                vectors   bits   distortion   against")
for ours, other in (
    ((1, 256), None),
    ((2, 128), (1, 256)),
    ((2, 16), (1, 256)),
    ((1, 128**2), None),
    ((2, 128), (1, 128**2)),
):
    depth, num_codes = ours
    name = f"RQ {depth}×{num_codes}" if depth > 1 else f"VQ {num_codes:,}"
    values = runs.values("distortion", **kind(*ours))
    mean, bits = sum(values) / len(values), depth * math.log2(num_codes)
    print(f"{name:<14} {depth * num_codes:>8,} {bits:>6.0f} {mean:>12.4f}", end="")
    if other:
        theirs = runs.values("distortion", **kind(*other))
        change = torch.tensor([a / b - 1 for a, b in zip(values, theirs, strict=False)])
        half = 2.776 * change.std() / 5**0.5  # Student's t for the 95 % interval, 5 seeds
        interval = (
            f"95 % interval {change.mean() - half:+.0%} to {change.mean() + half:+.0%}"
        )
        if len(change) < 5:
            interval = "two seeds: " + " and ".join(f"{one:+.0%}" for one in change)
        print(f"   VQ {other[1]:,}: {change.mean():+.0%} ({interval})", end="")
    print()

# %% [markdown]
# Differences are taken seed by seed; a minus means less distortion, which is better.
#
# 1. **As many vectors** (2×128 against 256): the stack loses less.
# 2. But it spends 14 bits on a position, and VQ spends 8.
# 3. **As many bits** (2×16 against 256): the stack loses *more*.
#
# For given latents and the best codebooks the third answer cannot come out the other way. Any 2×16 stack *is* a VQ with 256 codes, namely its sums. VQ may
# choose its codes freely, and it finds the nearest one. (Here each model trained its own latents.)
#
# What does a stack buy, then? Look at 14 bits: 2×128 loses a few percent more than VQ with 16,384 codes, with 256 stored vectors and 256 comparisons a
# position. (The percentages compare the two seeds that both have; the mean of 2×128 is over five.) *That* is the case for residual quantisation: many bits from
# small codebooks. And a prior has to choose among 128 codes at a time, not among
# 16,384. ([Study 06b](06b_stacks_against_codebooks.ipynb) has the rest: entropies, learned codebooks, one codebook shared by all depths, MNIST.)
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
print("exercise 6.4, ResidualQuantizer:")
for part, values in numbers["notebook"].items():
    a, b = torch.tensor(values), torch.tensor(numbers["companion"][part])
    torch.testing.assert_close(
        a, b, rtol=1e-5, atol=1e-7, msg=f"exercise 6.4: {part} differs from the companion's"
    )
    print(f"  {part:<10} agree:", True)
glue("proof.residual_quantizer", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
members = some_members()
codes_of_z = residual_encode(z, members)
theirs = companion.ResidualQuantizer(members)
assert torch.equal(codes_of_z, theirs.encode(z)), "exercise 6.1: other indices"
glue("proof.residual_encode", codes_of_z.flatten().tolist(), display=False)
to_two = decode_to_depth(codes_of_z, members, 2)
torch.testing.assert_close(
    to_two, theirs.decode(codes_of_z, depth=2), msg="exercise 6.2: other sums"
)
glue("proof.decode_to_depth", to_two.flatten().tolist(), display=False)
print("exercises 6.1 and 6.2, indices and sums agree:", True)

chosen = [m.decode(codes_of_z[..., r]) for r, m in enumerate(members)]
by_term = residual_losses(z, chosen)
for mine, term in zip(by_term, ("codebook", "commitment"), strict=True):
    depths = torch.stack([part.losses[term] for part in theirs(z).depths])
    torch.testing.assert_close(mine, depths, msg=f"exercise 6.3: other {term} losses")
glue("proof.residual_losses", [v for t in by_term for v in t.tolist()], display=False)
print("exercise 6.3, losses by depth agree:", True)

rates = rate_bits(codes_of_z, 6)
expected = companion.quantizers.rate_bits(codes_of_z, 6)
same = all(abs(rates[name] - expected[name]) < 1e-9 for name in expected)
assert same, "exercise 6.5: other rates"
glue("proof.rate_bits", rates, display=False)
print("exercise 6.5, rates agree:", True)

# %% [markdown]
# ## Play: how deep?
# Choose an image, and how many codes of each stack are decoded. Where in the image does the second code change something, and where the fourth? The table
# shows the indices of the depth that was added last: compare the background with the strokes.

# %%
explorers.depth_slider(dropped, x_test[:20])

# %% [markdown]
# For readers of the printed page: one digit at each depth, and where that depth changed the picture (bright is much).

# %% tags=["hide-input"]
steps = by_depth(dropped, x_test[1:2])
fig, axes = plots.figure(8.4, 3.7, rows=2, columns=R + 1)
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
    axes[1, d].set_title(f"changed by {change.mean():.3f}", fontsize=10)
    before = image
plots.show(
    fig,
    alt="A digit and its reconstructions from one to four codes a position; below each the "
    "absolute change that this depth brought. The first brings the digit, the others ever "
    "smaller corrections along the strokes.",
)

# %% [markdown]
# ## What breaks, and why
# **The residual is not detached, or detached too much.** Below are four versions of one line. All have the same values, and only the first is right. For each
# you see where the gradient of the *second* depth's commitment loss arrives:

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
# Why does the last one not move $z$? `straight_through` gives the code the gradient of $z$, so the gradient of the residual is $1 - 1 = 0$.
#
# **The losses are averaged over the depths, silently.** Does each codebook then learn at a quarter of its rate, if $R = 4$? We take one step with the sum and
# one with the mean, and compare how far codebook 1 moves:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = torch.randn(64, 4, 3, 3)
for optimiser in (torch.optim.SGD, torch.optim.Adam):
    moved = []
    for share in (1, 1 / 4):  # the sum, and the mean over four depths
        torch.manual_seed(1)
        members = [VectorQuantizer(8, 4) for _ in range(4)]
        codebook = members[0].codebook
        start = codebook.detach().clone()
        stepper = optimiser([codebook], lr=0.01)
        (share * companion.ResidualQuantizer(members)(z).loss).backward()
        stepper.step()
        moved.append((codebook.detach() - start).norm())
    ratio = moved[1] / moved[0]
    print(
        f"{optimiser.__name__:<4}: with the mean codebook 1 moves {ratio:.2f} times as far"
    )

# %% [markdown]
# With SGD it does. Adam divides by the gradient's size, so the codebook does not notice. But the encoder gets the *sum* of the reconstruction gradient and the
# commitment gradient, and in that sum the commitment now weighs a quarter. So with Adam, averaging is the same as a smaller $\beta$.
#
# **−1 for a code that was dropped.** Some implementations of quantiser dropout mark the dropped depths with the index −1. Sooner or later it reaches a
# codebook:

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
# The companion has no −1: a dropped depth has an index too, and `mask` in the output says which depths each image used.
#
# ## Pen and paper
# 1. Lee et al. 2022 code a 256 × 256 image as 8 × 8 stacks of $R = 4$ codes out of $K = 16{,}384$. How many bits are that? How many codes would a plain
#    VQ need for the same rate, and how many distances does each compute for one position?
# 2. Codebooks {0, 2} and {0.2, −1} on the line. Quantise $z = 0.9$ greedily. Which pair is the best?
# 3. Suppose that codebook 2 contains the code 0. Show that no residual gets longer at depth 2.
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. 64 · 4 · 14 = 3,584 bits. Per position 56 bits: a plain VQ would need $2^{56} \approx 7 \cdot 10^{16}$ codes, and as many distances; RQ needs
#    4 · 16,384 = 65,536 (and with one shared codebook stores 16,384 vectors).
# 2. Greedy: 0.9 is nearer to 0 than to 2 (0.9 against 1.1); the residual 0.9 is nearest to 0.2; the sum is 0.2, the error 0.7. The best pair is 2 − 1 = 1,
#    with error 0.1.
# 3. The nearest code $c$ is at least as near to $\delta$ as the code 0 is: $\|\delta - c\| \le \|\delta - 0\| = \|\delta\|$.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * Residual quantisation: each depth quantises what the ones before it left. $z_q$ is the sum, and the error is the last residual.
# * $R$ codebooks of $K$ codes make $K^R$ sums, from $R \cdot K$ stored vectors, at $R \log_2 K$ bits a position.
# * The losses of each depth are taken on a residual whose earlier codes are held fixed. They are summed; the sum of codes gets one straight-through.
# * On average each depth shortens the residual, if its codes are means. At single positions it may get longer.
# * A stack can be cut short: coarse to fine. With quantiser dropout the first depth alone loses less.
# * With as many vectors the stack lost less here, with as many bits it lost more. It buys a high rate from small codebooks.
#
# **Further experiments.** Give each codebook a code fixed at zero: what does the distortion say? Search the best stack among the ten nearest first codes (a
# *beam*): how much of the gap at equal bits does that close? Train RQ 8×4 and add it to the curve.
#
# **References.** B.-H. Juang, A. H. Gray: *Multiple Stage Vector Quantization for Speech Coding*, 1982 (the idea). N. Zeghidour and others: *SoundStream: An
# End-to-End Neural Audio Codec*, 2021 (section III-C: residual VQ, quantiser dropout for each example). D. Lee and others: *Autoregressive Image Generation
# using Residual Quantization*, 2022 (section 3.1, equations 3 to 5). R. Kumar and others: *High-Fidelity Audio Compression with Improved RVQGAN*, 2023 (dropout
# with probability ½).

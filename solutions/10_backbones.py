# %% [markdown]
# # 10 · Backbones: convolution, attention, Mamba
#
# **The question.** The quantizer sits between two networks, and so far both were made of convolutions. Would a transformer make better codes, or Mamba? And
# what does a network see before it has learnt anything? You build the parts of each kind, and end with three tokenizers of the same size, before training and
# after it.
#
# ![Seven rows of eight emoji: the originals, then what each of three tokenizers draws before and after training. Before training the convolutions draw coloured
# noise and the two patch models the same square everywhere; after it all three draw the pictures.](../chapters/pictures/10_backbones.png)
#
# **Afterwards you can** draw what a network sees; write a ConvNeXt block; cut a picture into patches and put it together again; compute a state-space layer
# step by step and in chunks; and tell a grid artefact from detail, with a number.
#
# **Needed:** [chapter 05](05_ema_codebooks.ipynb) (the tokenizer) and the attention of [chapter 07](07_transformer_prior.ipynb).
# **Time** (an estimate): about an hour and a half of yours, and an hour more for the exercises; the computer's is in the table below.

# %%
import torch
from myst_nb import glue
from torch import Tensor, nn

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import results

session = begin("10_backbones")
settings, device = session.settings, session.device
train, test = session.data()
x_test, _ = test.batch(torch.arange(len(test)))
some = torch.linspace(0, len(test) - 1, 8).long()

# %% [markdown]
# ## Three ways to make 64 tokens
# A picture has 3 × 32 × 32 numbers, its latent 8 × 8 positions: 64 **tokens**. Any network that gets from the one to the other can be an encoder. Here are
# three from the companion, with about the same number of weights, and none of them trained. *ConvNeXt* is made of convolutions. *ViT*, the vision transformer,
# cuts the picture into squares of 4 × 4 pixels, *patches*, and lets them attend to each other. *Mamba2* reads the same patches one after the other, with a
# memory.


# %%
def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """An untrained encoder and decoder of one kind."""
    sizes = getattr(settings, kind.lower())
    return (
        getattr(companion.backbones, f"{kind}Encoder")(3, settings.dim, **sizes),
        getattr(companion.backbones, f"{kind}Decoder")(3, settings.dim, **sizes),
    )


def tokenizer(kind: str) -> nn.Module:
    torch.manual_seed(session.seed)
    encoder, decoder = pair(kind)
    quantizer = companion.EMAVectorQuantizer(settings.num_codes, settings.dim)
    return companion.VQVAE(encoder, quantizer, decoder).to(device)


kinds = ("ConvNeXt", "ViT", "Mamba2")
models = {kind: tokenizer(kind) for kind in kinds}
for kind, model in models.items():
    print(f"{kind:<9} {sum(p.numel() for p in model.parameters()):,} weights")

# %% [markdown]
# ## Predict
# 1. Which pixels can change the token in the middle, in each of the three?
# 2. Feed a picture through an *untrained* encoder and decoder, with random weights. What will come out of each of the three: a blurred picture, noise, a
#    pattern?
#
# ## What may a token see?
# The first question is one for autograd. Take one token, and ask for the gradient at every pixel. Where it is not zero, the pixel can change the token: these
# pixels are the **receptive field** (Luo et al. 2016). The size of the gradient says how much each counts.
#
# A token has D channels. We weight them at random, so that none is preferred, and average over 16 pictures. Each map is divided by its own maximum, and we draw
# its square root, so that faint pixels show.


# %%
def receptive_field(encoder: nn.Module, x: Tensor, row: int = 4, column: int = 4) -> Tensor:
    """x: (B, 3, H, W) -> how much each pixel moves the latent at (row, column), (H, W)."""
    x = x.clone().requires_grad_(True)
    z = encoder(x)[:, :, row, column]  # (B, D)
    signs = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    (gradient,) = torch.autograd.grad((z * signs).sum(), x)
    return gradient.square().sum(1).mean(0).sqrt()  # (B, 3, H, W) -> (H, W)


def draw_fields(encoders: dict[str, nn.Module], title: str, alt: str) -> None:
    fig, axes = plots.figure(8.5, 2.5, columns=len(encoders))
    for ax, (kind, encoder) in zip(axes, encoders.items(), strict=True):
        seen = receptive_field(encoder, x_test[:16]).cpu()
        ax.imshow((seen / seen.max()).sqrt(), cmap="Purples", vmin=0, vmax=1)
        ax.add_patch(plots.rectangle((15.5, 15.5), 4, 4, fill=False, edgecolor="#D55E00"))
        ax.set_title(f"{kind}: {(seen > 0).float().mean():.0%} of the pixels", fontsize=9)
        ax.set_axis_off()
    fig.suptitle(title, fontsize=10)
    plots.show(fig, alt=alt)


draw_fields(
    {kind: model.encoder for kind, model in models.items()},
    "What the token in the orange square sees, before training",
    alt="Three maps of a picture's pixels. The convolutions see a wide blot around the token; "
    "attention its own patch strongly and all other pixels faintly; Mamba its own patch, the "
    "four before it in its line and the last two of the line above, and nothing after.",
)

# %% [markdown]
# The convolutions look at a neighbourhood, most of all at its middle. (Here it spans the whole picture; near a corner it does not, as *Play* shows.) Attention
# can look everywhere, and at first looks mostly at its own patch. Mamba reads: nothing after its own patch can change it. Six patches before it stand out,
# three for each of its two blocks, whose short convolutions look at four tokens each (more below). Its memory reaches all earlier ones, but before training far
# more weakly.
#
# Now build them.
#
# ## Convolution, the modern way
# The residual block of [chapter 04](04_vq_vae.ipynb) mixes neighbours and channels in one 3 × 3 convolution, which has $9 C^2$ weights. **ConvNeXt** (Liu et
# al. 2022) separates the two:
#
# * a **depthwise** convolution mixes positions. Each channel has a kernel of its own and sees no other channel, so even 7 × 7 costs only $49\,C$ weights;
# * then a small network at each position mixes channels.
#
# Here are the weights for 128 channels:

# %% tags=["nbval-check-output"]
for name, layer in {
    "3 × 3, all channels": nn.Conv2d(128, 128, 3, padding=1, bias=False),
    "7 × 7, all channels": nn.Conv2d(128, 128, 7, padding=3, bias=False),
    "7 × 7, depthwise": nn.Conv2d(128, 128, 7, padding=3, groups=128, bias=False),
}.items():
    print(f"{name:<20} {layer.weight.numel():>8,}")

# %% [markdown]
# Two parts are new. **RMSNorm** (Zhang and Sennrich 2019) divides the C numbers of a position by their root mean square, and multiplies each channel by a
# learned scale: a layer norm that does not subtract the mean. **SwiGLU** (Shazeer 2020) is the network at each position. It computes two things, lets one
# open and close the other like a gate, and projects back:
#
# $$\mathrm{SwiGLU}(x) = W_3\,\bigl(\mathrm{silu}(W_1 x) \odot W_2 x\bigr), \qquad \mathrm{silu}(u) = u\,\sigma(u).$$
#
# Here σ is the sigmoid, and $W_1 x$ and $W_2 x$ have $\tfrac83 C$ numbers, rounded.

# %% tags=["nbval-check-output"]
x = torch.tensor([[3.0, -4.0, 0.0, 0.0]])
size = x.square().mean(-1, keepdim=True).sqrt()
print(
    f"root mean square {size.item():.2f}, divided by it:",
    [round(v, 2) for v in (x / size)[0].tolist()],
)

# %% [markdown]
# Our block has a norm before each of the two steps, and a residual connection around it:
#
# $$x \leftarrow x + \mathrm{depthwise}(\mathrm{norm}_1(x)), \qquad x \leftarrow x + \mathrm{SwiGLU}(\mathrm{norm}_2(x)).$$
#
# ### Exercise 10.1 · ConvNeXt block  (easy, 10 minutes)
# Write the forward pass. The parts are made for you. `RMSNorm` and `SwiGLU` work on the *last* axis, and a picture has its channels in axis 1: move the axis
# there and back.
#
# <details><summary>Hint 1</summary><code>x.movedim(1, -1)</code> gives (B, H, W, C), and <code>.movedim(-1, 1)</code> undoes it.</details>
# <details><summary>Hint 2</summary>The second norm gets the result of the first line, not the block's input.</details>


# %%
class ConvNeXtBlock(nn.Module):
    """(B, channels, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(channels), nn.RMSNorm(channels)
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mlp = companion.backbones.SwiGLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        x = x + self.depthwise(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
        return x + self.mlp(self.norm2(x.movedim(1, -1))).movedim(-1, 1)
        ### END SOLUTION


ConvNeXtBlock = check(ConvNeXtBlock)

# %% [markdown]
# The encoder takes turns, as in chapter 04: a strided convolution, one such block (two in profile full), and again, until 8 × 8 positions are left.
#
# ## Patches
# A transformer wants a *row* of vectors. The plainest way to get one: cut the picture into squares of 4 × 4 pixels, and write the 3 · 4 · 4 = 48 numbers of
# each square in a row. That is **patchify**, and nothing is lost by it.
#
# ### Exercise 10.2 · patchify and its inverse  (medium, 15 minutes)
# From pictures (B, C, H, W) to tokens (B, h·w, C·p²) and back, where $h = H/p$ and $w = W/p$ are whole. Patches stand in reading order; within a patch the
# channel changes slowest, then the row, then the column.
#
# <details><summary>Hint 1</summary>Split both axes of pixels: <code>x.reshape(B, C, h, p, w, p)</code>.</details>
# <details><summary>Hint 2</summary>Then <code>permute</code> so that h and w come right after B, and C, p, p after them. The inverse is the same, backwards.</details>


# %%
def patchify(x: Tensor, patch: int) -> Tensor:
    """x: (B, C, H, W) -> (B, h·w, C·patch²), with h = H / patch and w = W / patch."""
    ### BEGIN SOLUTION
    b, c, height, width = x.shape
    h, w = height // patch, width // patch
    x = x.reshape(b, c, h, patch, w, patch).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, p, p)
    return x.reshape(b, h * w, c * patch**2)
    ### END SOLUTION


patchify = check(patchify)


# %%
def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """tokens: (B, h·w, C·patch²) -> (B, C, h·patch, w·patch); ``grid`` is (h, w)."""
    ### BEGIN SOLUTION
    (b, _, n), (h, w) = tokens.shape, grid
    x = tokens.reshape(b, h, w, n // patch**2, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, n // patch**2, h * patch, w * patch)  # from (B, C, h, p, w, p)
    ### END SOLUTION


unpatchify = check(unpatchify)

# %% [markdown]
# What does one do with the 48 numbers? Multiply them by a matrix, to get a vector of the wanted width. You know that operation by another name: it is a
# convolution whose kernel is as large as its stride.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.rand(2, 3, 32, 32)
convolution = nn.Conv2d(3, 128, kernel_size=4, stride=4)
matrix = convolution.weight.flatten(1)  # (128, 3, 4, 4) -> (128, 48)
by_hand = patchify(x, 4) @ matrix.T + convolution.bias
print(tuple(patchify(x, 4).shape), "->", tuple(by_hand.shape))
print(
    "the convolution gives the same:",
    torch.allclose(by_hand, convolution(x).flatten(2).mT, atol=1e-5),
)
print("there and back:", torch.equal(unpatchify(patchify(x, 4), 4, (8, 8)), x))

# %% [markdown]
# The decoder ends with the inverse: each token is multiplied by a matrix, and *draws its own square*. Nothing after that smooths the edge between two squares.
#
# ## Attention over patches
# The rest of the **vision transformer** (ViT; Dosovitskiy et al. 2021) you have built in chapter 07: blocks of attention and a small network, each with a norm
# before it and a residual connection around it. One thing differs: a picture has no future, so *the mask goes*. As there, a learned vector is added at each
# position. It is needed: attention without a mask does not know an order. Shuffle the tokens, and the results are shuffled the same way:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
block = companion.backbones.TransformerBlock(32, heads=4)
tokens, shuffle = torch.randn(1, 64, 32), torch.randperm(64)
with torch.no_grad():
    print(torch.allclose(block(tokens[:, shuffle]), block(tokens)[:, shuffle], atol=1e-5))

# %% [markdown]
# Attention compares each token with each. For 64 tokens that is a table of 64 × 64; for a picture of 256 × 256 in such patches, 4,096 × 4,096. The cost grows
# with the *square* of the number of tokens. Can one look at everything before, and pay only for each token once?
#
# ## A memory that fades
# Read the tokens one after the other, and keep a memory $h$. At each step some of it fades, and something new is added:
#
# $$h_t = a_t\, h_{t-1} + x_t, \qquad 0 < a_t \le 1 .$$
#
# This is a **linear recurrence**. With a single number as input:

# %% tags=["nbval-check-output"]
h = 0.0
for x_t in (1.0, 0.0, 0.0, 4.0, 0.0):
    h = 0.5 * h + x_t
    print(h)

# %% [markdown]
# The 1 has almost faded when the 4 arrives. A memory of one number is small, so Mamba-2 (Dao and Gu 2024) keeps N of them for each number of the input. Two
# vectors of length N say how the memory is used: $b_t$, *where to write* $x_t$, and $c_t$, *what to read*:
#
# $$h_t = a_t\, h_{t-1} + x_t\, b_t^\top, \qquad y_t = h_t\, c_t .$$
#
# With $x_t$ of length P, $h_t$ is a table of P × N, the **state**, and what computes $y$ from $x$ is a **state-space layer**. The state stays this size however long the sequence becomes.
#
# ### Exercise 10.3 · the recurrence  (easy, 10 minutes)
# Compute it with a loop over t, for a batch. The memory starts at zero.
#
# <details><summary>Hint</summary><code>x[:, t, :, None] * b[:, t, None, :]</code> is (B, P, N): what is written. Reading is a sum over N:
# <code>torch.einsum("bpn,bn->bp", h, c[:, t])</code>.</details>


# %%
def recurrence(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """x: (B, T, P), a: (B, T) in [0, 1], b and c: (B, T, N) -> y: (B, T, P)."""
    ### BEGIN SOLUTION
    h = x.new_zeros(len(x), x.shape[2], b.shape[2])  # (B, P, N)
    y = []
    for t in range(x.shape[1]):
        h = a[:, t, None, None] * h + x[:, t, :, None] * b[:, t, None, :]
        y.append(torch.einsum("bpn,bn->bp", h, c[:, t]))
    return torch.stack(y, 1)
    ### END SOLUTION


recurrence = check(recurrence)

# %% [markdown]
# ### What makes it selective
# If $a_t$ were the same at every step, all things would fade alike. In Mamba (Gu and Dao 2023) $a_t$, $b_t$ and $c_t$ are computed *from the token at t*, so
# a token can decide whether it is kept. Here 24 numbers arrive, of which only two matter. On the left the memory fades at a fixed rate. On the right it
# ignores what does not matter ($b_t = 0$, $a_t = 1$), and clears itself ($a_t = 0$, as near as it likes) when something does:

# %%
numbers = torch.randn(24, generator=torch.Generator().manual_seed(1))
matters = torch.zeros(24, dtype=torch.bool)
matters[[5, 15]] = True
numbers[matters] = torch.tensor([3.0, -3.0])
ways = {
    "the same at every step": (torch.full((24,), 0.8), torch.ones(24)),
    "selective": (1 - matters.float(), matters.float()),
}
fig, axes = plots.figure(9, 2.3, columns=2)
for ax, (name, (a, b)) in zip(axes, ways.items(), strict=True):
    one = torch.ones(1, 24, 1)
    memory = recurrence(numbers[None, :, None], a[None], b[None, :, None], one)
    ax.bar(range(24), numbers, color=["#D55E00" if m else "#BBBBBB" for m in matters])
    ax.plot(memory[0, :, 0], color="#0072B2", marker=".")
    ax.set(title=name, xlabel="step t")
axes[0].set_ylabel("input (bars), memory (line)")
plots.show(
    fig,
    alt="Two plots of the same 24 bars, two of them orange and large. On the left the memory "
    "jumps and fades with every bar; on the right it is flat at 3 after the first orange bar "
    "and at −3 after the second.",
)

# %% [markdown]
# (Here we chose $a$ and $b$ by hand. In the layer they are learned: $a_t = e^{-\Delta_t A}$, with a step length $\Delta_t > 0$ computed from the token and a
# rate $A > 0$ for each head; $b_t$ is multiplied by $\Delta_t$. A long step writes much and forgets much; a step of nearly zero leaves the memory alone.)
#
# ## The same thing as a matrix
# A loop over t is slow: each step waits for the one before. Unroll it. What input $j$ wrote has faded, when it is read at $i \ge j$, by all the factors in
# between:
#
# $$y_i = \sum_{j \le i} M_{ij}\, x_j, \qquad M_{ij} = (c_i^\top b_j)\; a_{j+1} a_{j+2} \cdots a_i .$$
#
# So the whole layer is *one lower-triangular matrix*. Compare it with causal attention: $c_i^\top b_j$ is a query times a key, $x_j$ is the value, and a fading
# stands where the softmax was. Dao and Gu call this **state-space duality**.

# %%
g = torch.Generator().manual_seed(0)
T, P, N = 24, 4, 8
x = torch.randn(1, T, P, generator=g)
b, c = (torch.randn(1, T, N, generator=g) / N**0.5 for _ in range(2))
a = torch.rand(1, T, generator=g) * 0.3 + 0.7
a[0, 12] = 0.02  # here almost everything is forgotten

log_sum = a.log().cumsum(1)  # log(a_1 … a_i)
apart = log_sum[:, :, None] - log_sum[:, None, :]  # (1, T, T)
future = torch.ones(T, T, dtype=torch.bool).triu(1)
fading = apart.masked_fill(future, -torch.inf).exp()  # e^−∞ is 0
M = fading * (c @ b.mT)
print("matrix and loop agree:", torch.allclose(M @ x, recurrence(x, a, b, c), atol=1e-5))

# %% tags=["hide-input"]
fig, axes = plots.figure(8, 2.9, columns=2)
for ax, table, title in zip(axes, (fading, M), ("fading", "M"), strict=True):
    shown = ax.imshow(table[0], cmap="PuOr", vmin=-1, vmax=1)
    ax.set(title=title, xlabel="input j", ylabel="output i")
fig.colorbar(shown, ax=axes)
plots.show(
    fig,
    alt="Two lower-triangular matrices of 24 × 24. In the fading matrix the diagonal is 1 and "
    "the entries fall off to the left; from row 12 on, columns before 12 are almost 0. "
    "The other one has both signs in the same shape.",
)

# %% [markdown]
# See the gap: from row 12 on nothing from before is left, since $a_{12}$ was nearly zero.
#
# ## In chunks
# The matrix has T² entries; the loop has T steps. Take the best of both. Cut the sequence into **chunks** of Q steps:
#
# 1. *Inside* a chunk use the matrix, which is small: Q × Q.
# 2. *Between* chunks hand on the memory. At the end of a chunk it is what it was at the start, faded by all factors of the chunk, plus what each step wrote,
#    faded from there to the end.
# 3. Each step also reads from the memory that its chunk was given, faded from the start to this step.
#
# The work grows with T · Q instead of T², and there are only T / Q steps that wait for each other.
#
# ### Exercise 10.4 · the chunked form  (hard, 25 minutes)
# Compute the same as `recurrence`, with a loop over chunks and none inside. The last chunk may be shorter.
#
# <details><summary>Hint 1</summary>For a chunk, <code>s = a.log().cumsum(1)</code> gives all three fadings: from j to i
# <code>(s_i − s_j).exp()</code>, from the start to i <code>s_i.exp()</code>, from j to the end <code>(s_Q − s_j).exp()</code>. Take differences of logarithms, not quotients: a
# product of many small factors is rounded to 0. Set the future to −∞ <em>before</em> exp, as above.</details>
# <details><summary>Hint 2</summary>y of the chunk is <code>M @ x</code> plus <code>s.exp()[..., None] * (c @ h.mT)</code>, with the memory
# h (B, P, N) as it was at the chunk's start: compute y before you renew h.</details>
# <details><summary>Hint 3</summary>The new memory is <code>s[:, -1, None, None].exp() * h</code> plus <code>x.mT @ (b * (s[:, -1:] - s).exp()[..., None])</code>.</details>


# %%
def chunked(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """As ``recurrence``, with 0 < a <= 1. x: (B, T, P), a: (B, T), b and c: (B, T, N) -> y: (B, T, P)."""
    ### BEGIN SOLUTION
    h = x.new_zeros(len(x), x.shape[2], b.shape[2])  # (B, P, N)
    y = []
    for start in range(0, x.shape[1], chunk):
        x_, a_, b_, c_ = (v[:, start : start + chunk] for v in (x, a, b, c))
        s = a_.log().cumsum(1)  # (B, Q)
        apart = s[:, :, None] - s[:, None, :]  # (B, Q, Q)
        future = torch.ones_like(apart, dtype=torch.bool).triu(1)
        inside = apart.masked_fill(future, -torch.inf).exp() * (c_ @ b_.mT)
        y.append(inside @ x_ + s.exp()[..., None] * (c_ @ h.mT))
        to_end = (s[:, -1:] - s).exp()[..., None]  # (B, Q, 1)
        h = s[:, -1, None, None].exp() * h + x_.mT @ (b_ * to_end)
    return torch.cat(y, 1)
    ### END SOLUTION


chunked = check(chunked)

# %% tags=["nbval-check-output"]
for chunk in (1, 5, 8, 24, 100):
    print(
        chunk, torch.allclose(chunked(x, a, b, c, chunk), recurrence(x, a, b, c), atol=1e-5)
    )

# %% [markdown]
# The chunked form trains, the loop samples: a new token costs it one step, however many came before. ([The benchmarks](../benchmarks/README.md) have both
# beside attention.)
#
# The whole **Mamba-2 mixer**, in `companion/backbones/mamba.py`, has four more things: several heads with their own $a_t$; a short convolution over the last
# four tokens before x, b and c; a gate on the result, silu of a further projection, and a norm after it; and a skip $D\,x_t$ past the memory.
#
# ## Both ways
# A picture has no first token, and yet Mamba's first token sees nothing but itself. So read once forwards and once backwards, with two mixers, and add. To read
# backwards, flip the sequence, and *afterwards flip the result back*, or it stands at the wrong positions.
#
# ### Exercise 10.5 · both ways  (easy, 5 minutes)
# Add what a forward mixer and a backward mixer say of each token.
#
# <details><summary>Hint</summary><code>tokens.flip(1)</code> reverses the sequence, and does so again.</details>


# %%
def both_ways(tokens: Tensor, forwards: nn.Module, backwards: nn.Module) -> Tensor:
    """tokens: (B, T, C); each mixer: (B, T, C) -> (B, T, C) -> (B, T, C)."""
    ### BEGIN SOLUTION
    return forwards(tokens) + backwards(tokens.flip(1)).flip(1)
    ### END SOLUTION


both_ways = check(both_ways)

# %% [markdown]
# Which of eight tokens can change which result? The third table is what happens without flipping back:

# %%
torch.manual_seed(0)
mixers = [companion.backbones.Mamba2Mixer(16) for _ in range(2)]
three = {
    "forwards": mixers[0],
    "both ways": lambda tokens: both_ways(tokens, *mixers),
    "not flipped back": lambda tokens: mixers[0](tokens) + mixers[1](tokens.flip(1)),
}
tokens = torch.randn(1, 8, 16)


def sees(mix) -> Tensor:
    """Which inputs can change which results, (T, T)."""
    jacobian = torch.autograd.functional.jacobian(lambda v: mix(v).sum((0, 2)), tokens)
    return jacobian[:, 0].square().sum(2) > 0  # (T, 1, T, 16) -> (T, T)


fig, axes = plots.figure(8, 2.6, columns=3)
for ax, (name, mix) in zip(axes, three.items(), strict=True):
    ax.imshow(sees(mix), cmap="Purples", vmin=0, vmax=1.5)
    ax.set(title=name, xlabel="input j", ylabel="result i")
plots.show(
    fig,
    alt="Three tables of 8 × 8. Forwards: the lower triangle. Both ways: all. Not flipped back: "
    "the lower triangle and, in each row i, the inputs from the last one down to number "
    "7 − i, so that rows in the first half see the end of the sequence and not what is "
    "next to them.",
)

# %% [markdown]
# Without the second flip nothing crashes, but result 0 sees the *last* token and none of its neighbours. A row of the table below has the cost.
#
# ## Train and look
# Three tokenizers, as many weights, as many tokens, the same steps with the same pictures. First the answer to the second question of Predict: what they draw
# before any training.


# %%
@torch.no_grad()
def drawn(model: nn.Module, pictures: Tensor) -> Tensor:
    """Through encoder and decoder, without quantizing: untrained codes would hide the rest."""
    return model.decoder(model.encoder(pictures))


def stretched(pictures: Tensor) -> Tensor:
    """Each picture from its darkest to its brightest number, to be looked at."""
    low, high = (f(pictures, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return (pictures - low) / (high - low)


before = {kind: drawn(model, x_test) for kind, model in models.items()}
histories = {}
for kind, model in models.items():
    histories[kind] = companion.fit(
        model,
        train,
        validation=test,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=session.seed,
        device=device,
    )
    session.expect(f"mse_{kind.lower()}", histories[kind].last["validation_reconstruction"])

# %% tags=["hide-input", "cover"]
rows = {"originals": x_test[some]}
for kind, model in models.items():
    rows[f"{kind}, before"] = stretched(before[kind][some])
    rows[f"{kind}, after"] = model.reconstruct(x_test[some])
plots.show(
    plots.image_rows(
        rows, size=0.95, title="Before training (stretched to full contrast) and after"
    ),
    alt="Seven rows of eight emoji: the originals, then what each of three tokenizers draws "
    "before and after training. Before training the convolutions draw coloured noise and the two "
    "patch models the same square everywhere; after it all three draw the pictures.",
)

# %% [markdown]
# None of the rows "before" resembles the picture. The two patch models draw one square of texture, over and over, nearly the same for every picture. The
# convolutions draw noise, in which one can find a grid as well.
#
# After training all three draw the pictures, roughly: the teal shirts come out blue. The numbers by epoch, on pictures that they have not seen:

# %% tags=["hide-input"]
fig, axes = plots.figure(9, 2.8, columns=2)
for ax, term, title in zip(
    axes,
    ("validation_reconstruction", "validation_commitment"),
    ("squared error", "codes to latents (commitment loss)"),
    strict=True,
):
    for (kind, history), colour in zip(
        histories.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True
    ):
        ax.plot(
            range(1, len(history.rows) + 1),
            [row[term] for row in history.rows],
            label=kind,
            color=colour,
        )
    ax.set(title=title, xlabel="epoch", yscale="log")
axes[0].legend()
plots.show(
    fig,
    alt="Two plots over six epochs, for three tokenizers. The squared errors fall, that of the "
    "vision transformer more slowly. The commitment losses rise and fall unevenly.",
)

# %% [markdown]
# The errors fall. The commitment loss rises, for the convolutions the least; we did not test why.
#
# And what does a token see now?

# %%
draw_fields(
    {kind: model.encoder for kind, model in models.items()},
    "What the token in the orange square sees, after training",
    alt="The three maps after training: the convolutions' blot has shrunk to a dark core about "
    "a dozen pixels wide in a faint square; attention looks almost only at the token's own "
    "patch, as before; Mamba at its own and faintly at three patches to the left.",
)

# %% [markdown]
# What matters for a square stands in and around it. The convolutions' map has shrunk most, and is still the widest; the ViT's looks nearly as before.
#
# ## The grid, and what helps
# Look again at what the patch models drew before training, and at flat areas after it: there are fine lines, four pixels apart, at the edges of the squares.
# This is a **grid artefact**. Can we put a number to it? A Fourier transform splits a row or column of pixels into waves and gives the *power* of each. A
# pattern that repeats every 4 pixels has its power at 32 / 4 = 8 periods a picture and, since it is no pure wave, at 16. So compare these two frequencies with
# the ones beside them:


# %%
def spectrum(pictures: Tensor) -> Tensor:
    """(B, C, n, n) -> mean power of 0, 1, …, n / 2 periods a picture, along rows and columns."""
    both = [
        torch.fft.rfft(v, dim=-1).abs().square().mean((0, 1, 2))
        for v in (pictures, pictures.mT)
    ]
    return (both[0] + both[1]) / 2


def grid_energy(pictures: Tensor, patch: int) -> float:
    """Power at the frequency of the patches and its harmonics, over that at the frequencies beside them."""
    power = spectrum(pictures)
    first = pictures.shape[-1] // patch  # 8 patches a picture
    ratios = [
        power[k] / torch.stack([power[n] for n in (k - 1, k + 1) if n < len(power)]).mean()
        for k in range(first, len(power), first)
    ]
    return torch.stack(ratios).mean().item()


after = {kind: model.reconstruct(x_test) for kind, model in models.items()}
fig, axes = plots.figure(9, 3, columns=2)
for ax, pictures, title in zip(
    axes, (before, after), ("before training", "after training"), strict=True
):
    for (kind, v), colour in zip(
        {"originals": x_test, **pictures}.items(),
        ("#999999", "#0072B2", "#D55E00", "#009E73"),
        strict=True,
    ):
        power = spectrum(v).cpu()
        label = f"{kind}: {grid_energy(v, 4):,.1f}"
        ax.plot(range(1, 17), power[1:] / power[1:].sum(), color=colour, label=label)
    ax.set(title=title, xlabel="periods a picture", yscale="log")
    ax.legend(
        title="grid energy", fontsize=8, loc="center left" if pictures is before else None
    )
axes[0].set_ylabel("share of the power")
plots.show(
    fig,
    alt="Two plots of the power at 1 to 16 periods a picture. Before training all three have "
    "peaks at 8 and 16; between these the patch models have almost nothing and the "
    "convolutions some. After it all curves fall like that of the originals, nearly without peaks.",
)
for kind in kinds:
    session.expect(f"grid_{kind.lower()}", grid_energy(after[kind], 4))

# %% [markdown]
# Before training the patch models have nearly all of their power in the peaks. After it little is left there, and by this number the convolutions are the
# worst. And yet one sees squares in what the ViT and Mamba drew! What does our number overlook? It asks for a pattern that *repeats*. Squares of different
# colours repeat nothing; only their edges stand at the same places. So look there: how large is the step from pixel to pixel across the edges, and inside the
# squares?


# %%
def seams(pictures: Tensor, patch: int) -> float:
    """Squared steps across the edges of patches, over those inside."""
    across, inside = [], []
    for v in (pictures, pictures.mT):
        steps = v.diff(dim=-1).square().mean((0, 1, 2))  # (n − 1,): from pixel i to i + 1
        at_edge = torch.arange(1, len(steps) + 1, device=steps.device) % patch == 0
        across.append(steps[at_edge])
        inside.append(steps[~at_edge])
    return (torch.cat(across).mean() / torch.cat(inside).mean()).item()


for kind, pictures in {"originals": x_test, **after}.items():
    print(f"{kind:<10} seams {seams(pictures, 4):.2f}")
for kind in kinds:
    session.expect(f"seams_{kind.lower()}", seams(after[kind], 4))

# %% [markdown]
# There they are: compare with the 0.8 of the originals, not with 1. A measure that says "no grid" has looked for *one kind* of grid.
#
# The report tries two cures. Let the squares **overlap**: a kernel of 8 pixels at a stride of 4, so that every pixel is drawn by four tokens. Or let a **last
# 3 × 3 convolution** look at the finished picture and smooth the seams. Both are arguments in the companion, `kernel=8` and `last_conv=True`. The experiment
# trains them beside all backbones of this chapter, at equal numbers of weights (within a tenth), tokens and steps; and beside a tokenizer whose tokens have no
# place in the picture, *latent tokens* (further experiments, 2). Its `seams` are those of the reconstructions over those of the originals:

# %% tags=["hide-input"]
table = results("backbones", data="emoji")
measures = {"mse": ".4f", "frechet": ".1f", "grid_energy": ".2f", "seams": ".1f"}
print(table.command)
print(
    f"{'':<33}"
    + "".join(f"{m:>16}" for m in measures)
    + "   weights   10⁹ operations a picture"
)
for variant in table.settings("variant"):
    line = "".join(
        f"{table.mean(m, variant=variant):>9{f}} ±{table.spread(m, variant=variant):>5{f}}"
        for m, f in measures.items()
    )
    weights, operations = (
        table.mean(m, variant=variant) for m in ("parameters", "gigaflops")
    )
    print(f"{variant:<33}{line}{weights:>10,.0f}{operations:>10.3f}")

# %% [markdown]
# Read it in pairs, and mind the ± (the standard deviation over three seeds).
#
# * **Convolution and Mamba** are level in the squared error. The ViT is behind after so few steps, and varies more from seed to seed. Equal weights are not
#   equal work: a ConvNeXt takes more than one and a half times the operations of the ResNet, the ViT or the Mambas.
# * **One way or both ways** (half as many blocks, each with two mixers) makes a small difference. Without the second flip the error is a tenth larger on
#   average; three seeds do not decide it.
# * **The cures**: overlap takes the seams away, the last convolution most of them. The grid energy rises. Three seeds do not decide about the squared error.
# * **A transformer block beside the quantizer** did not help the ConvNeXt here.
# * **Latent tokens**, which have no place in the picture (further experiments, 2), have learned little in these few steps.
#
# So no backbone is a clear winner at this size and after so few steps. The intervals stand on the [experiments' page](../experiments/README.md#backbones).

# %% [markdown]
# ## Proof: what you built is what the companion has
# Your functions on fixed numbers against the companion's, and the loop against the chunks.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
wave = torch.linspace(0, 40, 2 * 6 * 8 * 8).sin().reshape(2, 6, 8, 8)
theirs = companion.backbones.ConvNeXtBlock(6)
with torch.no_grad():
    for i, p in enumerate(theirs.parameters()):
        p.copy_((torch.arange(p.numel()) * (i + 1.0)).cos().reshape(p.shape) / 4)
ours = ConvNeXtBlock(6)
ours.load_state_dict(theirs.state_dict())
torch.testing.assert_close(ours(wave), theirs(wave), rtol=1e-4, atol=1e-5)
glue("proof.convnext_block", ours(wave).flatten()[::37].tolist(), display=False)
print("blocks agree:", True)

back = unpatchify(patchify(wave, 2), 2, (4, 4))
glue("proof.patchify", patchify(wave, 2).flatten()[::17].tolist(), display=False)
print("patches there and back:", torch.equal(back, wave))

inputs = torch.linspace(0, 9, 1 * 11 * 3).cos().reshape(1, 11, 3).double()
decays = torch.linspace(0.1, 0.99, 11)[None].double()
written, read = (
    torch.linspace(0, end, 11 * 4).sin().reshape(1, 11, 4).double() for end in (5, 7)
)
y = recurrence(inputs, decays, written, read)
torch.testing.assert_close(
    chunked(inputs, decays, written, read, 4), y, rtol=1e-9, atol=1e-9
)
glue("proof.recurrence", y.flatten().tolist(), display=False)
print("loop and chunks agree to 1e-9 in float64:", True)
x_wave = wave[:, :3]
glue("proof.grid_energy", grid_energy(x_wave, 4), display=False)
print(
    "grid energies agree:",
    abs(grid_energy(x_wave, 4) - companion.metrics.grid_energy(x_wave, 4)) < 1e-4,
)

# %% [markdown]
# ## Play: what a token sees, and three backbones learning
# Choose a backbone and a token, before and after training (made beforehand):

# %%
explorers.receptive_fields()

# %% [markdown]
# And go through the training of three tokenizers, from the first step to the last. Look at the early ones: the patch models have the shapes while ConvNeXt still
# draws the same blot for every picture.

# %%
explorers.backbones_over_training()

# %% [markdown]
# For readers of the printed page:

# %% tags=["hide-input"]
plots.show(
    explorers.draw_receptive_fields((1, 6)),
    alt="Two rows of four maps for a token near the upper right corner. Before training: a wide "
    "blot for ConvNeXt, the own patch for the ViT, the line before it for Mamba, patches on both "
    "sides for Mamba both ways. After training ConvNeXt and Mamba are narrower; both ways looks "
    "more at its neighbours.",
)

# %% tags=["hide-input"]
plots.show(
    explorers.draw_backbones_over_training([0, 3, 7]),
    alt="Six pictures, and what three backbones make of them: textures before training; after 50 "
    "steps grey blots by the convolutions and mosaics of grey squares by the others; at the end "
    "coloured pictures, with squares in the last two.",
)

# %% [markdown]
# ## What breaks, and why
# **Quotients instead of differences.** The product $a_{j+1} \cdots a_i$ is also a quotient of two running products. In float32 a running product of many small
# factors is soon 0, and 0 / 0 is no number:

# %% tags=["nbval-check-output"]
decays = torch.full((1, 256), 0.6)
running = decays.cumprod(1)
print("last running product:", running[0, -1].item())
print("quotient:", (running[0, -1] / running[0, -2]).item())
print(
    "difference of logarithms:",
    round((decays.log().cumsum(1)[0, -1] - decays.log().cumsum(1)[0, -2]).exp().item(), 3),
)

# %% [markdown]
# **Patches that do not fit.** 30 pixels are not a whole number of patches. The companion refuses, and names the nearest sizes:

# %% tags=["nbval-check-output"]
try:
    companion.backbones.patchify(torch.rand(1, 3, 30, 32), 4)
except ValueError as error:
    print(error)

# %% [markdown]
# **A missing permute.** `reshape` never moves numbers. If you reshape (B, C, h, p, w, p) to rows without `permute`, the tokens have the right shape, but each
# is one and a half pixel rows of one channel and not a square:

# %% tags=["hide-input"]
wrong = x_test[:1].reshape(1, 64, 48)
fig, axes = plots.figure(4.5, 2.3, columns=2)
for ax, rows, title in zip(
    axes, (patchify(x_test[:1], 4), wrong), ("permuted", "only reshaped"), strict=True
):
    ax.imshow(rows[0].cpu(), cmap="gray", vmin=0, vmax=1, aspect="auto")
    ax.set(title=title, xlabel="number in the token", ylabel="token")
plots.show(
    fig,
    alt="Two tables of 64 tokens with 48 numbers each. Permuted, each token has three even "
    "stretches, one for each channel; only reshaped, the face appears three times, squeezed, "
    "and cut into strips of one and a half pixel rows.",
)

# %% [markdown]
# ## Pen and paper
# 1. How many weights has a block of 64 channels, with a depthwise 7 × 7 convolution and a SwiGLU of 171 hidden channels (no biases, no norms)? And the residual
#    block of chapter 04, with a 3 × 3 and a 1 × 1 convolution of 64 channels each?
# 2. Let all $a_t = 1$ and $N$ be as large as T. For which b and c is M the matrix of a plain running sum? And can M be the identity?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. 49·64 + 3·64·171 = 35,968; the residual block 9·64² + 64² = 40,960.
# 2. If $c_i^\top b_j = 1$ for all i and j, for example b and c both the first unit vector, M is the lower triangle of ones. With $b_t = c_t$ the t-th unit
#    vector, $c_i^\top b_j$ is 1 for i = j and else 0: M is the identity, and every token keeps to itself.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A gradient at the pixels shows what a token sees: convolutions mostly a neighbourhood, attention anything, Mamba what came before.
# * ConvNeXt mixes positions with a wide depthwise convolution and channels with a small network.
# * Patchify is a rearrangement; a convolution with kernel = stride is patchify and a matrix. A decoder of patches draws each square by itself: seams.
#   Overlapping patches take them away.
# * A state-space layer is a fading memory. The loop samples, the chunks train, and the lower-triangular matrix is attention with a fading for a softmax.
# * Reading both ways needs two flips. Without the second nothing crashes.
#
# ## Further experiments
# 1. Give the ViT axial rotary positions (`positions="axial-rotary"`; Heo et al. 2024). Do its maps before training change?
# 2. `companion.backbones.LatentTokenEncoder` makes latents without a grid (Yu et al. 2024). What do 16 of them draw?
# 3. Fit `companion.priors.MambaPrior` to the codes of chapter 07, beside the transformer: bits, and seconds a sample.
#
# ## References
# * Liu et al. 2022, *A ConvNet for the 2020s*: ConvNeXt. Zhang and Sennrich 2019: RMSNorm. Shazeer 2020, *GLU variants improve transformer*: SwiGLU.
# * Heo et al. 2024, *Rotary position embedding for vision transformer*: axial rotary positions.
# * Dosovitskiy et al. 2021, *An image is worth 16x16 words*: ViT. Yu et al. 2022, *Vector-quantized image modeling with improved VQGAN*: ViT-VQGAN, whose frame the
#   companion's patch models have.
# * Gu and Dao 2023, *Mamba*; Dao and Gu 2024, *Transformers are SSMs*, sections 5 and 6: Mamba-2 and state-space duality.
# * Zhu et al. 2024, *Vision Mamba*: both ways. Luo et al. 2016, *Understanding the effective receptive field*.
# * Yu et al. 2024, *An image is worth 32 tokens for reconstruction and generation*: TiTok.

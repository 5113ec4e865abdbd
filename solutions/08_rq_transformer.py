# %% [markdown]
# # 08 · RQ-Transformer
#
# **The question.** Chapter 07 learned a prior over tables with one code at each position. The residual quantizer of chapter 06 writes a *stack* of R codes
# there. Can we learn a prior over stacks without a sequence that is R times as long? You will build one from two transformers, and end with new digits, drawn
# stack by stack and decoded from coarse to fine:
#
# ![Rows of ten new digits, one of each class, drawn by an RQ-Transformer: decoded from the first code of each stack alone, and from both codes, which look much the
# same; a last row shows, three times as strong, where the second code changed the picture: along the strokes.](../chapters/pictures/08_rq_transformer.png)
#
# **Afterwards you can** say what each of the two transformers reads and predicts, count what they cost, build and train an RQ-Transformer, draw from it with
# few passes, and find an off-by-one that raises no error and lets the loss fall.
#
# **Needed:** [chapter 06](06_residual_quantisation.ipynb) (stacks of codes) and [chapter 07](07_transformer_prior.ipynb) (`<sos>`, teacher forcing, causal
# masks, sampling). **Time**, an estimate: an hour to read and run, and an hour and a quarter for the exercises. The [glossary](../chapters/glossary.md) has
# every term, and [study 08b](08b_costs_and_comparisons.ipynb) has further comparisons.

# %%
import math
from collections import Counter

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.classifier import load_classifier
from companion.course import begin, check, explorers
from companion.pretrained import scores
from companion.priors import PriorOutput, prior_bits
from companion.priors.sampling import draw
from companion.priors.transformer import Transformer

session = begin("08_rq_transformer")
settings, device = session.settings, session.device
train, test = session.data()

# %% [markdown]
# The tokenizer is the RQ-VAE of chapter 06, trained longer; it comes with the package. A prior never sees an image, only codes:

# %%
tokenizer = companion.pretrained(f"{settings.data}-rqvae").to(device)
codes = companion.tokenize(tokenizer, train).to(device)
held_out = companion.tokenize(tokenizer, test).to(device)
K, (height, width, R) = codes.num_codes, codes.grid
T = height * width  # positions
print(f"{len(codes):,} images, each {T} positions of {R} codes out of {K}")
print("the stacks of the first image's middle row:", codes.codes[0, height // 2].tolist())

# %% [markdown]
# ## Predict
# We will compare two priors over these codes. One is the transformer of chapter 07, which reads all T·R codes in a row: position by position, and within a
# position depth by depth. The other is this chapter's RQ-Transformer, with as many layers of the same width. Both take the same steps of training. Write down
# two guesses:
#
# 1. R doubles, from 4 codes a position to 8, at 49 positions. By what factor do the multiplications of each of the two grow?
# 2. Which of them predicts held-out codes better, and by how much: 20 %, 5 %, hardly at all?
#
# ## Why not one long row?
# Nothing forbids it. The chain rule holds for any order, so T·R codes are a sequence like any other:
#
# $$p(k) = \prod_{t=1}^{T} \prod_{r=1}^{R} p(k_{t,r} \mid k_{1}, \dots, k_{t-1},\; k_{t,1}, \dots, k_{t,r-1}), \qquad k_t = (k_{t,1}, \dots, k_{t,R}) .$$
#
# `TransformerPrior` does just that when its grid is (h, w, R). We call it the **flattened** transformer. Its price is the length of the row. Take one layer of
# width $d$ that reads $n$ vectors:
#
# * **Matrices.** Each vector is multiplied by $3d^2$ numbers for queries, keys and values, $d^2$ for the output, and $4d^2 + 4d^2$ in the MLP. Together
#   $12\,n\,d^2$ multiplications.
# * **Pairs.** Each query is compared with all $n$ keys, and then all $n$ values are added up with the weights: $2\,n^2 d$.
#
# The RQ-Transformer (Lee et al. 2022) replaces the long sequence by short ones. A **spatial transformer** reads one vector for each position. For position
# $t$ it gives a vector $h_t$ that knows all earlier stacks. Then a small **depth transformer** starts from $h_t$ and goes down the stack, code by code. It
# does so at every position, and never looks at another. (In the picture $u_t$ is one vector for stack $t$, and $E_k$ one for code $k$; you will make both.)


# %% tags=["hide-input"]
def draw_two_transformers():
    """T = 4 positions of R = 3 codes; the depth transformer is drawn at position 2."""
    fig, ax = plots.figure(7, 5.6)
    ax.set(xlim=(0, 10), ylim=(-0.2, 9.6))
    ax.set_axis_off()
    blue, orange, grey = (plots.COLOURS[c] for c in ("train", "validation", "reference"))

    def box(x, y, text, *, wide=1.7, high=0.85, colour="white", edge=grey, ink="black"):
        corner = (x - wide / 2, y - high / 2)
        style = {"facecolor": colour, "edgecolor": edge, "linewidth": 1.3}
        ax.add_patch(plots.rectangle(corner, wide, high, **style))
        ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=11)

    def arrow(x, start, end):
        style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.2}
        ax.annotate("", (x, end), (x, start), arrowprops=style)

    columns = (1.35, 3.75, 6.15, 8.55)
    ax.add_patch(
        plots.rectangle((2.55, 4.35), 7.3, 5.05, facecolor="#f6efe9", edgecolor="none")
    )
    for t, x in enumerate(columns, start=1):
        read = "<sos>" if t == 1 else f"$u_{t - 1}$: sum of\nstack {t - 1}"
        box(x, 0.4, read, wide=2.0, high=1.0, edge=blue)
        arrow(x, 0.9, 1.6)
        box(x, 3.5, f"$h_{t}$", wide=1.1, high=0.7, edge=blue)
        arrow(x, 2.5, 3.15)
    box(4.95, 2.05, "spatial transformer: reads T vectors, runs once", wide=9.5, high=0.9,
        colour=blue, edge=blue, ink="white")  # fmt: skip
    arrow(columns[1], 3.85, 4.7)
    sums = ("$h_2$", "$E_{k_{2,1}}$", "$E_{k_{2,1}}+E_{k_{2,2}}$")
    for r, (x, read) in enumerate(zip(columns[1:], sums, strict=True), start=1):
        box(x, 5.1, read, wide=2.2, high=0.8, edge=orange)
        arrow(x, 5.5, 6.2)
        arrow(x, 7.1, 7.75)
        box(x, 8.15, f"predicts $k_{{2,{r}}}$", wide=2.0, high=0.8, edge=orange)
    box(6.15, 6.65, "depth transformer: reads R vectors", wide=6.9, high=0.9,
        colour=orange, edge=orange, ink="white")  # fmt: skip
    ax.text(6.15, 9.05, "the stack of position 2", ha="center", va="center")
    others = "the same\ndepth\ntransformer\nruns at\npositions\n1, 3 and 4,\neach alone"
    ax.text(1.2, 6.6, others, ha="center", va="center", color=grey)
    ax.set_title("One transformer over positions, a small one down each stack")
    return fig


plots.show(
    draw_two_transformers(),
    alt="A diagram for four positions of three codes. At the bottom the spatial "
    "transformer, a wide box, reads the start token and the sums of stacks 1, 2 and 3, "
    "and gives h1 to h4. Above it, at position 2, the depth transformer reads h2, the "
    "embedding of the first code, and the sum of the embeddings of the first two, and "
    "predicts the three codes of stack 2.",
)

# %% [markdown]
# ### Exercise 8.1 · count  (easy, 10 minutes)
# How many multiplications does one forward pass over one image take? Count them for the RQ-Transformer with `layers` spatial and `depth_layers` depth layers,
# and for a flattened transformer with `layers + depth_layers` layers. A layer costs $12\,n\,d^2 + 2\,n^2 d$.
#
# Our convention: we count the matrix products only, with all $n^2$ pairs, since plain code computes the half that the causal mask hides as well. A
# multiplication and the addition that follows it count as *one*. Leave out the last map to logits, which both models share.
#
# <details><summary>Hint</summary>Write a function for one layer on a sequence of n. The depth transformer runs on T sequences.</details>


# %%
def multiplications(
    positions: int, depth: int, dim: int, layers: int, depth_layers: int
) -> tuple[int, int]:
    """T, R, width and layers -> (RQ-Transformer, flattened transformer)."""

    ### BEGIN SOLUTION
    def layer(n: int) -> int:
        return 12 * n * dim**2 + 2 * n**2 * dim

    rq = layers * layer(positions) + positions * depth_layers * layer(depth)
    return rq, (layers + depth_layers) * layer(positions * depth)
    ### END SOLUTION


multiplications = check(multiplications)

# %% [markdown]
# Is the formula right? torch can count while the companion's models run. Its `FlopCounterMode` also counts the whole attention matrix, but takes a
# multiplication and its addition as *two* operations:

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

for t, r in ((49, 2), (16, 8)):
    grid = (1, t, r)
    pair = (
        companion.RQTransformer(16, grid, dim=64, layers=3, depth_layers=2, heads=4),
        companion.TransformerPrior(16, grid, dim=64, layers=5, heads=4),
    )
    by_hand = multiplications(t, r, 64, 3, 2)
    for model, mine in zip(pair, by_hand, strict=True):
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *grid, dtype=torch.int64))
        logits = t * r * 64 * 16  # the last map, which the count leaves out
        name = type(model).__name__
        agree = counter.get_total_flops() == 2 * (mine + logits)
        print(f"T = {t}, R = {r}: {name:<16} {mine:>11,}  torch agrees: {agree}")

# %% tags=["nbval-check-output"]
print("million multiplications an image, T = 49, width 64, 3 + 2 layers")
for r in (1, 2, 4, 8, 16):
    rq_cost, flat_cost = multiplications(49, r, 64, 3, 2)
    print(f"R = {r:>2}   RQ-Transformer {rq_cost / 1e6:6.1f}", end="   ")
    print(f"flattened {flat_cost / 1e6:6.1f}   ratio {flat_cost / rq_cost:.2f}")
rq_4, flat_4 = multiplications(49, 4, 64, 3, 2)
rq_8, flat_8 = multiplications(49, 8, 64, 3, 2)
print(f"from R = 4 to 8: RQ × {rq_8 / rq_4:.2f}, flattened × {flat_8 / flat_4:.2f}")

# %% [markdown]
# There is your first prediction. From R = 4 to 8 the flattened transformer gets 2.7 times as expensive and the RQ-Transformer 1.7 times.
#
# Two things add up. Every layer of the flattened transformer runs over T·R vectors, while the spatial layers run over T, whatever R is. And the pairs grow with
# the square of the length. They cost as much as the matrices when $2\,n^2 d = 12\,n\,d^2$, so at $n = 6d$: 384 vectors at width 64, but 3,072 at width 512.
# ([Study 08b](08b_costs_and_comparisons.ipynb) draws both parts, and measures seconds.)
#
# ## A stack as one vector
# The spatial transformer reads one vector for each position. How do we turn a stack of R codes into one vector? Chapter 06 has shown how: the decoder reads
# $z_q$, which is the *sum* of the stack's codes. The prior does the same with [embeddings](../chapters/glossary.md) that it learns. Depth $r$ has a table
# $E^{(r)}$ with a vector for each of its K codes, and a stack becomes
#
# $$u_t = \sum_{r=1}^{R} E^{(r)}_{k_{t,r}} .$$
#
# Why one table for each depth? With a single table, stacks with the same codes in another order become the same vector, and no later layer could tell them
# apart:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
tables = torch.randn(2, 4, 3)  # (R, K, dim)
for name, one in (("one table a depth", tables), ("one table for all", tables[[0, 0]])):
    sums = [one[[0, 1], list(stack)].sum(0) for stack in ((1, 2), (2, 1))]
    print(f"{name}: do (1, 2) and (2, 1) differ? {not torch.allclose(*sums)}")

# %% [markdown]
# Lee et al. learn no tables. They take the **codebook's own vectors** as embeddings, through one linear layer that brings them to the transformer's width. Then
# $u_t$ is $z_q$, which the decoder sees, through this layer, and codes that are near each other look alike to the prior from its first step. Their depths share
# one codebook, so (1, 2) and (2, 1) have the same $z_q$ there. In our tokenizer each depth has its own codebook, and they differ.
#
# To predict position $t$, the transformer must not read $k_t$. As in chapter 07 we shift the sequence by one position and put a `<sos>` in front. It has a
# vector for each class and one for "no class":
#
# $$v_1 = \texttt{<sos>} + \mathrm{pos}_1, \qquad v_t = u_{t-1} + \mathrm{pos}_t \quad (t > 1),$$
#
# where $\mathrm{pos}_t$ is the learned embedding of the position that is to be predicted.
#
# ### Exercise 8.2 · what the spatial transformer reads  (medium, 10 minutes)
# From stacks (B, T, R) make the inputs $v$, (B, T, dim), of the formula above. Stay in the tables' dtype.
#
# <details><summary>Hint 1</summary><code>tables[torch.arange(R), stacks]</code> looks up every depth in its own table: (B, T, R, dim).</details>
# <details><summary>Hint 2</summary>T inputs for T positions: with the <code>&lt;sos&gt;</code> in front, the last stack has to go.</details>


# %%
def spatial_inputs(
    stacks: Tensor, tables: Tensor, start: Tensor, positions: Tensor
) -> Tensor:
    """(B, T, R) codes, (R, K, dim), <sos> (B, dim), (T, dim) -> (B, T, dim)."""
    ### BEGIN SOLUTION
    depth = torch.arange(stacks.shape[-1], device=stacks.device)
    u = tables[depth, stacks].sum(2)  # (B, T, dim): one vector a stack
    return torch.cat([start[:, None], u[:, :-1]], dim=1) + positions
    ### END SOLUTION


spatial_inputs = check(spatial_inputs)

# %% [markdown]
# ## Down the stack
# The spatial transformer turns $v$ into $h_1, \dots, h_T$, where $h_t$ has seen the `<sos>` and the stacks before $t$. Now the depth transformer predicts the
# stack of position $t$ code by code. It reads R inputs:
#
# $$\text{input } 1 = h_t, \qquad \text{input } r = \sum_{s=1}^{r-1} E^{(s)}_{k_{t,s}} \quad (r = 2, \dots, R),$$
#
# each plus a learned embedding of its depth. The partial sums mean something: in chapter 06 the sum of the first $r - 1$ codes is what has been decoded so far,
# and the next code corrects it. Here is one position with R = 4, without the superscripts:
#
# | input | holds | its output predicts |
# | --- | --- | --- |
# | 1 | $h_t$ | $k_{t,1}$ |
# | 2 | $E_{k_{t,1}}$ | $k_{t,2}$ |
# | 3 | $E_{k_{t,1}} + E_{k_{t,2}}$ | $k_{t,3}$ |
# | 4 | $E_{k_{t,1}} + E_{k_{t,2}} + E_{k_{t,3}}$ | $k_{t,4}$ |
#
# *No* input holds the last code: nothing at this position is left to be predicted from it. The next positions read it in $u_t$. So there are **R
# inputs, R outputs and R labels**. *What breaks* comes back to this sentence. Teacher forcing feeds the true codes, so one pass trains all positions
# and depths.
#
# ### Exercise 8.3 · what the depth transformer reads  (medium, 15 minutes)
# From $h$ (B, T, dim) and stacks (B, T, R) make the R inputs of every position, (B, T, R, dim): $h_t$, then the partial sums, all plus the embeddings of
# depths.
#
# <details><summary>Hint 1</summary><code>cumsum(2)</code> along the depth gives running sums: the first is the first code alone.</details>
# <details><summary>Hint 2</summary>How many running sums are needed, and which one would be too many?</details>


# %%
def depth_inputs(h: Tensor, stacks: Tensor, tables: Tensor, depths: Tensor) -> Tensor:
    """h (B, T, dim), (B, T, R) codes, (R, K, dim), (R, dim) -> (B, T, R, dim)."""
    ### BEGIN SOLUTION
    depth = torch.arange(stacks.shape[-1], device=stacks.device)
    embedded = tables[depth, stacks]  # (B, T, R, dim)
    partial = embedded[:, :, :-1].cumsum(2)  # (B, T, R - 1, dim)
    return torch.cat([h[:, :, None], partial], dim=2) + depths
    ### END SOLUTION


depth_inputs = check(depth_inputs)

# %% [markdown]
# ### Exercise 8.4 · the RQ-Transformer  (medium, 15 minutes)
# Put it together: `spatial_inputs`, `self.spatial`, `depth_inputs`, `self.depthwise`, then `self.to_logits`. The two transformers are the companion's
# `Transformer`: blocks like those you built in chapter 07 with a layer norm after the last, (B, n, dim) → (B, n, dim), causal. The loss is the cross-entropy in
# nats, the mean over images, positions and depths. Every code counts, code 0 as well.
#
# <details><summary>Hint 1</summary><code>self.codes</code> are the tables, the argument <code>codes</code> the indices.
# Without labels the start is <code>self.sos</code> of index <code>self.num_classes</code>.</details>
# <details><summary>Hint 2</summary>To the depth transformer each position is a sequence of its own:
# <code>x.reshape(B * T, R, dim)</code>.</details>


# %%
class RQTransformer(nn.Module):
    """(B, h, w, R), labels (B,) or None -> PriorOutput(logits (B, h, w, R, K), loss)."""

    def __init__(
        self,
        num_codes: int,
        grid: tuple[int, int, int],
        *,
        dim: int = 128,
        layers: int = 4,
        depth_layers: int = 2,
        heads: int = 4,
        num_classes: int = 0,
    ):
        super().__init__()
        height, width, depth = grid
        self.num_codes, self.grid, self.num_classes = num_codes, grid, num_classes
        self.codes = nn.Parameter(0.02 * torch.randn(depth, num_codes, dim))  # the tables
        self.sos = nn.Embedding(num_classes + 1, dim)  # one a class, and "no class"
        nn.init.normal_(self.sos.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(height * width, dim))
        self.depths = nn.Parameter(0.02 * torch.randn(depth, dim))
        self.spatial = Transformer(dim, layers, heads)
        self.depthwise = Transformer(dim, depth_layers, heads)
        self.to_logits = nn.Linear(dim, num_codes)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> PriorOutput:
        ### BEGIN SOLUTION
        stacks = codes.flatten(1, 2)  # (B, T, R)
        b, t, r = stacks.shape
        if labels is None:
            labels = torch.full((b,), self.num_classes, device=codes.device)
        v = spatial_inputs(stacks, self.codes, self.sos(labels), self.positions)
        h = self.spatial(v)  # (B, T, dim)
        x = depth_inputs(h, stacks, self.codes, self.depths)  # (B, T, R, dim)
        out = self.depthwise(x.reshape(b * t, r, -1))  # each position on its own
        logits = self.to_logits(out).reshape(*codes.shape, self.num_codes)
        loss = functional.cross_entropy(logits.flatten(0, -2), codes.flatten())
        return PriorOutput(logits, loss)
        ### END SOLUTION


RQTransformer = check(RQTransformer)

# %% [markdown]
# ## Train and look
# We train two models with nearly the same number of weights, on the same codes, for the same number of steps: yours, and the flattened transformer. Both are
# told the class.

# %%
classes = len(train.classes)
shape = {"dim": settings.dim, "heads": settings.heads, "num_classes": classes}
layers = {"layers": settings.layers, "depth_layers": settings.depth_layers}
torch.manual_seed(session.seed)
yours = RQTransformer(K, codes.grid, **layers, **shape)
flattened = companion.TransformerPrior(
    K, codes.grid, layers=settings.layers + settings.depth_layers, **shape
)


def fit(prior: nn.Module) -> list[float]:
    """Train for the steps of this profile; gives the training loss of each epoch."""
    history = companion.fit(
        prior,
        codes,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        objective=lambda prior, codes, labels: prior(codes, labels),
        seed=session.seed,
        device=device,
    )
    return [row["loss"] for row in history.rows]


losses = {"RQ-Transformer": fit(yours), "flattened": fit(flattened)}
steps = settings.epochs * (len(codes) // settings.batch_size)
cost = multiplications(T, R, settings.dim, settings.layers, settings.depth_layers)
for name, model, count in zip(losses, (yours, flattened), cost, strict=True):
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{name:<15} {size:,} weights, {steps} steps", end=", ")
    print(f"{count / 1e6:.1f} million multiplications an image")

# %% [markdown]
# How good are they? The bar is set by *counting*, as in chapter 07: how often does each code occur, given some context? We count on the training codes and
# measure on held-out ones, in bits an image, for each depth. (*Above*: one depth earlier.)


# %%
def bits_by_depth(log_p: Tensor) -> Tensor:
    """Log-probabilities (N, h, w, R, K) of the held-out codes -> bits per image, (R,)."""
    nats = -log_p.gather(-1, held_out.codes.to(log_p.device)[..., None])[..., 0]
    return nats.double().sum((0, 1, 2)).cpu() / len(held_out) / math.log(2)


def predicted(prior: nn.Module) -> Tensor:
    with torch.no_grad():
        parts = [
            prior(*held_out.batch(i)).logits for i in torch.arange(len(held_out)).split(250)
        ]
    return torch.cat(parts).log_softmax(-1)


def counted(context) -> Tensor:
    """As ``predicted``, from counts; ``context`` gives a number for each code of a set."""
    here, there = context(codes), context(held_out)  # (N, h, w, R)
    n = int(max(here.max(), there.max())) + 1
    counts = torch.ones(n * K, dtype=torch.float64, device=device)  # Laplace's rule
    counts += torch.bincount((here * K + codes.codes).flatten(), minlength=n * K)
    counts = counts.reshape(n, K)
    return (counts / counts.sum(1, keepdim=True)).log()[there]


def depth(some):
    return torch.arange(R, device=device).expand(some.codes.shape)


def position_and_depth(some):
    return torch.arange(T * R, device=device).reshape(codes.grid).expand(some.codes.shape)


def and_class(some):
    return position_and_depth(some) * classes + some.labels[:, None, None, None]


def and_code_above(some):
    above = functional.pad(some.codes[..., :-1], (1, 0), value=K)  # none above depth 1: K
    return and_class(some) * (K + 1) + above


uniform_log_p = torch.full((len(held_out), *codes.grid, K), -math.log(K))
yours.eval(), flattened.eval()
bits = {
    "uniform": bits_by_depth(uniform_log_p),
    "by depth": bits_by_depth(counted(depth)),
    "by depth and position": bits_by_depth(counted(position_and_depth)),
    "… and class": bits_by_depth(counted(and_class)),
    "… and the code above": bits_by_depth(counted(and_code_above)),
    "flattened transformer": bits_by_depth(predicted(flattened)),
    "RQ-Transformer": bits_by_depth(predicted(yours)),
}

# %% tags=["hide-input"]
fig, ax = plots.figure(7.5, 3.2)
left = torch.zeros(len(bits), dtype=torch.float64)
for r, colour in zip(range(R), ("train", "validation", "third", "fourth"), strict=False):
    part = torch.stack(list(bits.values()))[:, r]
    look = {"color": plots.COLOURS[colour], "hatch": "/" * r, "edgecolor": "white"}
    ax.barh(list(bits), part, left=left, label=f"depth {r + 1}", **look)
    left = left + part
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
ax.set(
    xlabel="held-out bits an image", xlim=(0, 1.25 * T * R * math.log2(K)),
    title="What the codes of an image cost, by depth",
)  # fmt: skip
ax.legend(loc="lower right")
plots.show(
    fig,
    alt="Held-out bits per image as bars, divided into depths: uniform; counts by depth, "
    "by depth and position, with the class, with the code above it in the stack; the two "
    "transformers. " + "; ".join(f"{n} {b.sum():.0f}" for n, b in bits.items()),
)
for name, parts in bits.items():
    shown = " + ".join(f"{part:5.1f}" for part in parts.tolist())
    print(f"{name:<22} {parts.sum():6.1f} bits an image = {shown}")
session.expect("bits_flattened", bits["flattened transformer"].sum())
session.expect("bits_rq", bits["RQ-Transformer"].sum())
ratio = (bits["RQ-Transformer"].sum() / bits["flattened transformer"].sum()).item()
session.expect("bits_rq_over_flattened", ratio)

# %% [markdown]
# In total both transformers beat the best table of counts; at depth 2 alone the flattened one does not. In both, the second code of a stack costs more than the
# first: the correction is harder to predict than the coarse code.
#
# And your second prediction: the RQ-Transformer needs about 7 % *fewer* bits, with fewer multiplications. You might expect the opposite, since the
# flattened transformer can look at every single earlier code. [Study 08b](08b_costs_and_comparisons.ipynb) repeats the comparison over seeds and on MNIST, and
# tests one suspect.
#
# ## Drawing stack by stack
# To draw, we replace the true codes by those drawn so far. How many passes does that take? The input of the spatial transformer changes only when a stack is
# complete, that of the depth transformer with every code. So the large transformer runs T times, and the small one T·R times on at most R vectors. The
# flattened transformer runs T·R times.
#
# ### Exercise 8.5 · depth-wise sampling  (hard, 20 minutes)
# Draw stacks (n, T, R). `start` holds the vectors of the `<sos>`, `uniform` the random numbers; `draw(p, u)` takes probabilities (n, K) and uniform numbers
# (n,), and gives codes (n,). Run the spatial transformer once a position, the depth transformer once a code. Use no cache: give each its whole sequence so far,
# and take the last output. `model` has the parts of 8.4: `codes`, `positions`, `depths`, `spatial`, `depthwise`, `to_logits`.
#
# <details><summary>Hint 1</summary>Two loops: over t, and in it over r. Begin with stacks of zeros and fill them in.</details>
# <details><summary>Hint 2</summary><code>spatial_inputs(stacks[:, : t + 1], …)</code> gives the <code>&lt;sos&gt;</code> and the stacks before t, whatever
# stands at t, if the learned positions are cut to t + 1 as well. In the same way <code>depth_inputs(h, stacks[:, t : t + 1], …)</code>, with h of shape
# (n, 1, dim), can be cut to its first r + 1 inputs.</details>


# %%
@torch.no_grad()
def sample_stacks(model: nn.Module, start: Tensor, uniform: Tensor) -> Tensor:
    """<sos> (n, dim), uniform (n, T, R) -> codes (n, T, R)."""
    ### BEGIN SOLUTION
    n, length, depth = uniform.shape
    stacks = torch.zeros(n, length, depth, dtype=torch.int64, device=start.device)
    for t in range(length):
        positions = model.positions[: t + 1]
        v = spatial_inputs(stacks[:, : t + 1], model.codes, start, positions)
        h = model.spatial(v)[:, -1:]  # (n, 1, dim), once a position
        for r in range(depth):
            x = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)
            out = model.depthwise(x[:, 0, : r + 1])[:, -1]  # once a code
            p = model.to_logits(out).softmax(-1)
            stacks[:, t, r] = draw(p, uniform[:, t, r])
    return stacks
    ### END SOLUTION


sample_stacks = check(sample_stacks)

# %%
calls = Counter()
hooks = [
    part.register_forward_hook(lambda *_, name=name: calls.update([name]))
    for name, part in (("spatial", yours.spatial), ("depth", yours.depthwise))
]
labels = torch.arange(10, device=device) % classes
uniform = torch.rand(10, T, R, generator=torch.Generator().manual_seed(session.seed))
ten = sample_stacks(yours, yours.sos(labels), uniform.to(device))
for hook in hooks:
    hook.remove()
print("passes:", dict(calls), f"for {T} positions of {R} codes")
plots.show(
    plots.image_rows(
        {"drawn": tokenizer.decode(ten.reshape(10, *codes.grid))},
        title="Ten digits, one of each class, after short training",
    ),
    alt="Ten images drawn from the RQ-Transformer that was trained above for a short time, "
    "one of each class.",
)

# %% [markdown]
# How many such digits can be read? The course's classifier tells us. A perfect prior would draw codes like those of real images, so we take reconstructions as
# the **ceiling**, as in chapter 07. For drawing many we put your weights into the companion's class, whose `sample` does the same with key/value caches.

# %%
classifier = load_classifier(settings.data).to(device)
x_test, y_test = test.batch(torch.arange(len(test)))
rq = companion.RQTransformer(K, codes.grid, **layers, **shape).to(device)
rq.load_state_dict(yours.state_dict())
rq.eval()


def decoded(table: Tensor, depth: int | None = None) -> Tensor:
    """Codes (n, h, w, R) -> images, decoded to a depth, some at a time."""
    with torch.no_grad():
        parts = [
            tokenizer.decoder(tokenizer.quantizer.decode(part, depth=depth)).clamp(0, 1)
            for part in table.split(500)
        ]
    return torch.cat(parts)


def recognised(images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        seen = torch.cat([classifier(part).logits.argmax(1) for part in images.split(500)])
    return (seen == labels).double().mean().item()


asked = torch.arange(settings.samples, device=device) % classes


def drawn_by(prior: companion.priors.Prior) -> Tensor:
    generator = torch.Generator().manual_seed(session.seed)
    return prior.sample(settings.samples, asked, generator=generator)


ceiling = recognised(decoded(held_out.codes), y_test)
short = {"RQ-Transformer": drawn_by(rq), "flattened": drawn_by(flattened)}
print(f"reconstructions recognised {ceiling:.3f}  <- the ceiling")
for name, table in short.items():
    print(f"{name:<14} samples     {recognised(decoded(table), asked):.3f}")
session.expect("recognised_rq", recognised(decoded(short["RQ-Transformer"]), asked))

# %% [markdown]
# ### What training never showed it
# In training the prior reads codes of real images. When it draws, it reads its own. An unlikely code, once drawn, stays in all that it reads afterwards, and no
# training image has shown how to go on from there. This is called **exposure bias** (Ranzato et al. 2016). In a stack it can act twice: along the positions,
# and down the depths. We did not test how much it matters.
#
# Lee et al. (section 3.3) answer with the tokenizer. Several codes may fit a residual nearly as well as the nearest. So at each depth they give every code a
# probability that falls with its distance to the residual:
#
# $$Q_\tau(k) \propto \exp\left(-\lVert \text{residual} - e_k \rVert^2 / \tau\right) .$$
#
# **Soft labels**: the cross-entropy is taken against $Q_\tau$ instead of one right code. **Stochastic sampling**: the stacks that the prior reads in training
# are drawn from $Q_\tau$, new ones each time, so that it also meets codes which are not the nearest. At $\tau \to 0$ both become what you have built. Study
# 08b shows $Q_\tau$ for our tokenizer.
#
# ## Longer training
# The package comes with an RQ-Transformer that was trained for longer, on 60,000 images:

# %%
prior = companion.pretrained(f"{settings.data}-rqtransformer").to(device)
companion.check_identity(tokenizer, prior)  # it learned from this tokenizer's codes
print(scores(f"{settings.data}-rqtransformer")["command"])
drawn = drawn_by(prior)  # (n, h, w, R)
sheet = decoded(drawn[: 10 * classes])
accuracy = recognised(decoded(drawn), asked)
plots.show(
    plots.image_grid(sheet, columns=classes, title="Each column was asked to be one class"),
    alt="A grid of generated digits; each of the ten columns was asked for one class.",
)
print(f"recognised {accuracy:.3f}, of {ceiling:.3f} that are possible")
session.expect("recognised_shipped", accuracy)

# %% [markdown]
# On the glyphs of profile quick this reaches the ceiling: by this measure the samples are as good as reconstructions. It is not the whole story:
# [study 08b](08b_costs_and_comparisons.ipynb) shows samples without a class, a harder data set, and how near the samples are to training images.
#
# ## Coarse to fine
# A stack can be cut short, also one that no encoder wrote. We decode the new images from their first code alone, then from both. (The tokenizer was trained
# with quantiser dropout, chapter 06, so that the first code makes a picture by itself.) The last row shows the change, three times as strong.

# %% tags=["hide-input", "cover"]
stages = [decoded(drawn[:classes], depth=d) for d in range(1, R + 1)]
rows = {f"depth {d}": images for d, images in enumerate(stages, start=1)}
rows |= {"change": (3 * (stages[-1] - stages[0]).abs()).clamp(0, 1)}
plots.show(
    plots.image_rows(rows, title="New digits, decoded from coarse to fine"),
    alt="Ten generated digits, one of each class, decoded from the first code of each "
    "stack alone and from all of them; the last row shows three times the absolute "
    "change, which lies along the strokes.",
)

# %%
distortions = scores(f"{settings.data}-rqvae")["scores"]["distortion_by_depth"]
for d in range(1, R + 1):
    share = recognised(decoded(drawn, depth=d), asked)
    print(f"decoded to depth {d}: samples recognised {share:.3f}", end=", ")
    print(f"distortion of real images {distortions[d - 1]:.4f}")

# %% [markdown]
# The classifier hardly needs the second code, but with it the distortion falls by nearly half. Look back at the bars: more than half of the bits go into the
# code that changes the picture less.
#
# ## Proof: what you built is what the companion has
# The same weights and codes in float64: your class and the companion's give the same logits, loss and gradients, and `sample_stacks` draws the same
# codes as the cached sampler from the same random numbers.


# %% tags=["nbval-check-output"]
def with_these_weights(cls) -> nn.Module:
    """A small model whose weights are sines: none is zero, and no generator is needed."""
    options = {"dim": 8, "layers": 2, "depth_layers": 1, "heads": 2, "num_classes": 3}
    model = cls(5, (2, 3, 3), **options).double().eval()
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(model.named_parameters())):
            line = torch.arange(weight.numel(), dtype=torch.float64)
            weight.copy_((line + 7 * i).sin().mul(0.6).reshape(weight.shape))
    return model


some = torch.arange(4 * 18).mul(7).remainder(11).remainder(5).reshape(4, 2, 3, 3)
which = torch.tensor([0, 2, 1, 2])
numbers = {}
for name, cls in (("notebook", RQTransformer), ("companion", companion.RQTransformer)):
    model = with_these_weights(cls)
    out = model(some, which)
    grads = torch.autograd.grad(out.loss, [w for _, w in sorted(model.named_parameters())])
    numbers[name] = {
        "logits": out.logits.flatten().tolist(),
        "loss": out.loss.item(),
        "gradient norms": [grad.norm().item() for grad in grads],
    }
for part in numbers["notebook"]:
    a, b = (torch.tensor(numbers[who][part]) for who in ("notebook", "companion"))
    torch.testing.assert_close(
        a,
        b,
        rtol=1e-5,
        atol=1e-7,
        msg=lambda m, part=part: f"RQTransformer (8.4), {part}: {m}",
    )
    print(f"{part:<15} agree:", True)
glue("proof.rq_transformer", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
model = with_these_weights(companion.RQTransformer)
stacks = some.flatten(1, 2)
v = spatial_inputs(stacks, model.codes, model.sos(which), model.positions)
x = depth_inputs(model.spatial(v), stacks, model.codes, model.depths)
inputs = [number for part in (v, x) for number in part.flatten().tolist()]
glue("proof.rq_inputs", inputs, display=False)

generator = torch.Generator().manual_seed(3)
theirs = model.sample(4, which, generator=generator)
generator = torch.Generator().manual_seed(3)
numbers_drawn = torch.rand(4, 18, generator=generator, dtype=torch.float64)
mine = sample_stacks(model, model.sos(which), numbers_drawn.reshape(4, 6, 3))
assert torch.equal(mine.reshape(theirs.shape), theirs), (
    "sample_stacks (8.5) draws other codes"
)
glue("proof.sample_stacks", mine.flatten().tolist(), display=False)
print("the same codes are drawn, with caches and without:", True)

# %% [markdown]
# ## Play: class, seed, temperature, depth
# Choose a class (the last is "no class"), a seed, a temperature, and how many codes of each stack are decoded. When you change the seed, what changes in the
# picture from the first code already? What does a high temperature do to the first code, and what to the second?

# %%
explorers.stack_sampler(tokenizer, prior, train.classes)

# %% [markdown]
# For readers of the printed page: one class at three temperatures, with the same random numbers.

# %% tags=["hide-input"]
hot = {}
for temperature in (0.5, 1.0, 1.5):
    generator = torch.Generator().manual_seed(1)
    table = prior.sample(10, 3, temperature=temperature, generator=generator)
    hot[f"{temperature}"] = decoded(table)
plots.show(
    plots.image_rows(hot, title="Class 3 at temperatures 0.5, 1 and 1.5"),
    alt="Three rows of ten samples of the class 3, at temperatures 0.5, 1 and 1.5.",
)

# %% [markdown]
# ## What breaks, and why
# **The logits slip by one.** A published package for this model (version 0.1.9; references) lets its depth transformer read $h_t$ and *all* R codes. That gives
# R + 1 outputs at each position, one of which predicts nothing. The package puts all outputs in one row, cuts the row to the T·R labels, and compares output
# $i$ with label $i$. All shapes fit, and no logit sees its own label. But look where they belong:

# %% tags=["nbval-check-output"]
r = 2  # codes a position, and three outputs
for i in range(9):
    output, label = divmod(i, r + 1), divmod(i, r)
    print(f"output {i}: position {output[0] + 1}, number {output[1] + 1}", end="   ")
    print(f"label {i}: position {label[0] + 1}, depth {label[1] + 1}")
last = 49 * 2 - 1
print(f"the last of 49 · 2: output of position {last // 3 + 1}, label of {last // 2 + 1}")

# %% [markdown]
# In the first stack all is well. Then each position's extra output puts the labels one more code ahead. At the end of a 7 × 7 grid of pairs the model has to
# predict a code **16 positions ahead**, more than two rows below what it can see. In the course's own classes the mistake takes a few lines:


# %%
class ShiftedLabels(companion.RQTransformer):
    """R + 1 outputs a position, laid out in a row and cut to the labels. Do not copy."""

    def __init__(self, num_codes: int, grid: tuple, **options):
        super().__init__(num_codes, grid, **options)
        one_more = torch.randn(self.depth + 1, self.depths.shape[1])
        self.depths = nn.Parameter(0.02 * one_more)

    def all_logits(self, codes: Tensor, starts: Tensor) -> Tensor:
        stacks = codes.reshape(len(codes), -1, self.depth)
        v = spatial_inputs(stacks, self.codes, self.sos(starts), self.positions)
        embedded = self.codes[torch.arange(self.depth, device=codes.device), stacks]
        x = torch.cat([self.spatial(v)[:, :, None], embedded.cumsum(2)], dim=2)
        out = self.depthwise((x + self.depths).flatten(0, 1))  # (B·T, R + 1, dim)
        row = self.to_logits(out).reshape(len(codes), -1, self.num_codes)
        return row[:, : self.length].reshape(*codes.shape, -1)


torch.manual_seed(session.seed)
shifted = ShiftedLabels(K, codes.grid, **layers, **shape)
losses["shifted labels"] = fit(shifted)
shifted_bits = prior_bits(shifted, held_out.codes, held_out.labels)
for name in ("shifted labels", "RQ-Transformer"):
    shown = ", ".join(f"{loss:.2f}" for loss in losses[name])
    print(f"{name:<15} training loss, epoch by epoch: {shown} nats a code")
print(f"held-out bits an image: shifted {shifted_bits:.0f}", end=", ")
print(f"right {bits['RQ-Transformer'].sum():.0f}")
session.expect("bits_shifted", shifted_bits)

# %% [markdown]
# The loss falls, as it should. Alone, its curve looks healthy; beside the right model it is too high, and the best table of counts does about as well. And the
# samples? They are drawn the way it was trained, code $i$ from output $i$.


# %%
@torch.no_grad()
def draw_shifted(prior: ShiftedLabels, labels: Tensor, uniform: Tensor) -> Tensor:
    """Code i from output i, as it was trained."""
    table = torch.zeros(len(labels), *prior.grid, dtype=torch.int64, device=labels.device)
    flat = table.reshape(len(labels), -1)
    for i in range(prior.length):
        logits = prior.all_logits(table, labels).flatten(1, 3)[:, i]
        flat[:, i] = draw(logits.softmax(-1), uniform[:, i])
    return table


random = torch.rand(20, T * R, generator=torch.Generator().manual_seed(session.seed))
twenty = torch.arange(20, device=device) % classes
wrong = decoded(draw_shifted(shifted, twenty, random.to(device)))
right = decoded(short["RQ-Transformer"][:20])
sheets = {"right": right[:10], "": right[10:], "shifted": wrong[:10], " ": wrong[10:]}
plots.show(
    plots.image_rows(
        sheets, title="The same training; below, with logits that slip at each position"
    ),
    alt="Two rows of samples of the RQ-Transformer trained above and two rows of the one "
    "with shifted labels, which had the same steps of training.",
)

# %% [markdown]
# They are rougher, and yet most can be read. Nothing raises an error, nothing looks broken. So how would you find such a mistake? With random weights,
# ask what each logit depends on: change one code after the other, and see which logits move.


# %%
def what_each_sees(prior: companion.RQTransformer) -> Tensor:
    """(T·R, T·R): does logit i change when code j does? By changing each code in turn."""
    prior = prior.double().eval()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(std=0.3)
        table = torch.zeros(1, *prior.grid, dtype=torch.int64)
        start = torch.tensor([prior.num_classes])
        before = prior.all_logits(table, start).reshape(prior.length, -1)
        seen = torch.zeros(prior.length, prior.length, dtype=torch.bool)
        for j in range(prior.length):
            other = table.flatten().clone()
            other[j] = 1
            after = prior.all_logits(other.reshape(table.shape), start)
            changed = (after.reshape(prior.length, -1) - before).abs().amax(1)
            seen[:, j] = changed > 1e-12
    return seen


torch.manual_seed(0)
small = {"dim": 16, "layers": 1, "depth_layers": 1, "heads": 2}
seen = {
    "R logits a position": what_each_sees(companion.RQTransformer(4, (1, 12, 2), **small)),
    "R + 1, cut to the labels": what_each_sees(ShiftedLabels(4, (1, 12, 2), **small)),
}
for title, table in seen.items():
    missing = table.shape[0] - 1 - int(table[-1].sum())
    print(f"{title}: the last label is predicted without the {missing} codes before it")

# %% tags=["hide-input"]
fig, axes = plots.figure(7.6, 3.9, columns=2)
for ax, (title, table) in zip(axes, seen.items(), strict=True):
    ax.imshow(table.float().numpy(), cmap="Greys", vmin=0, vmax=1.4)
    ax.plot([-0.5, 23.5], [-0.5, 23.5], color=plots.COLOURS["validation"], linewidth=1.5,
            label="its own code")  # fmt: skip
    ax.grid(False)
    ax.set(title=title, xlabel="code j", ylabel="logit that meets label i")
    ax.legend(loc="upper right", fontsize=8)
fig.suptitle("Which codes (grey) each logit depends on")
plots.show(
    fig,
    alt="Two square tables for 12 positions of two codes: which codes each logit depends "
    "on. Left, of the right model, everything below the diagonal. Right, of the shifted "
    "one, a region that falls ever further behind the diagonal.",
)

# %% [markdown]
# On the left each logit sees every code before its own. On the right it falls behind, more with every position. The companion's tests ask this of all its
# priors.
#
# **Code 0 is left out.** The same package takes 0 for padding and hands it to the loss as `ignore_index`. Codes have no padding: code 0 is a code like the
# others. Where it is the right answer, it does not count; everywhere else it is still a *wrong* answer, so training only pushes its probability down. And the
# mean over four codes 0 is 0/0:

# %% tags=["nbval-check-output"]
logits = torch.zeros(4, 3)
zeros = torch.zeros(4, dtype=torch.int64)
print("loss of four codes 0:", round(functional.cross_entropy(logits, zeros).item(), 4))
ignored = functional.cross_entropy(logits, zeros, ignore_index=0)
print("with ignore_index=0: ", ignored.item())

# %% [markdown]
# **The depths in another order.** Any order is right for the chain rule; the *decoder* knows only one. Here the two codes of each drawn stack change places.
# All indices are valid, so nothing complains:

# %% tags=["hide-input"]
exchanged = decoded(drawn.flip(-1))
plots.show(
    plots.image_rows(
        {"drawn": decoded(drawn[:10]), "depths reversed": exchanged[:10]},
        title="The same codes, with the depths in the wrong order",
    ),
    alt="Ten generated digits, and below them the same codes decoded with the depths in "
    "reversed order: no digit can be recognised.",
)
print(f"recognised: {accuracy:.3f}, reversed {recognised(exchanged, asked):.3f}")

# %% [markdown]
# Nor is there an error when (R, h, w) is read as (h, w, R). ([Study 08b](08b_costs_and_comparisons.ipynb) asks which of these mistakes, or
# what else, spoilt the samples of a report that used the package.)
#
# ## Where the field went
# * **The same pair, elsewhere.** MegaByte (Yu et al. 2023) reads bytes with it; Moshi (Défossez et al. 2024) speaks with it, since codes of sound are stacks,
#   too.
# * **Delay patterns.** MusicGen (Copet et al. 2023) has no depth transformer. It shifts depth $r$ by $r - 1$ positions, so that one pass predicts R codes of
#   *different* positions: T + R − 1 passes. Codes of one pass cannot see each other.
# * **No order.** MaskGIT (Chang et al. 2022) learns to fill in hidden codes. To draw, it predicts all, keeps the surest, and repeats, for about ten passes.
# * **Coarse to fine over the whole image.** VAR (Tian et al. 2024) draws a tiny table of codes in one pass, and then larger ones, each of which corrects the
#   sum so far: the stack's idea, with scales in place of depths.
#
# ## Pen and paper
# 1. Lee et al. draw images as 8 × 8 stacks of 4 codes. How many pairs does attention compare in a layer of the flattened transformer, and how many in one layer
#    of each of the two transformers?
# 2. A prior is trained with shifted labels on T positions of R codes. How many positions ahead must it predict at the last label? For which R is that worst?
# 3. Could the depth transformer predict all R codes at once, from $h_t$ alone? What would the model assume? In chapter 06 the joint entropy of a stack was
#    smaller than the sum of its codes' entropies. Does that settle whether the assumption holds?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. $(64 \cdot 4)^2 = 65{,}536$ against $64^2 = 4{,}096$ and $64 \cdot 4^2 = 1{,}024$: with both together, 12.8 times fewer.
# 2. The last label belongs to position $T$. Its output is number $TR - 1$, counted from 0, and each position has $R + 1$ outputs. So the output belongs to
#    position $\lfloor (TR - 1)/(R + 1) \rfloor + 1$, about $T/(R + 1)$ positions behind. Worst for R = 1: half of the image. (With R = 2 a third, with R = 4 a
#    fifth.)
# 3. It could. It would assume that the codes of a stack are independent *given the earlier stacks*. Chapter 06 does not settle that: its entropies know nothing
#    of earlier stacks. Take two codes that both repeat what the stack to the left said. Looked at alone, they depend on each other; given that stack, they do
#    not. One has to measure: [study 08b](08b_costs_and_comparisons.ipynb) trains this model, and its second codes cost more bits.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A prior over stacks, $p(k) = \prod_t \prod_r p(k_{t,r} \mid \text{earlier stacks, earlier codes of this one})$, takes two transformers: one reads T sums of
#   embeddings, the other goes down each stack, from $h_t$ through partial sums.
# * It compares $T^2 + T R^2$ pairs where the flattened transformer compares $T^2 R^2$, and its large part runs T times when drawing, not T·R times.
# * R inputs, R outputs, R labels at each position. With one output more the labels slip: nothing fails, the loss falls, and the codes cost more bits.
# * Test what each logit depends on. Code 0 is a code. The order of the depths belongs to the tokenizer.
#
# **Further experiments.** In your `sample_stacks`, draw the first code at temperature 0.8, the second at 1: is the second noise? Replace the sum $u_t$ by the
# concatenation of the R embeddings and a linear layer: what does it cost, what does it gain? Train with soft labels.
#
# **References.** D. Lee et al.: *Autoregressive Image Generation using Residual Quantization*, 2022 (sections 3.2, 3.3). M. Ranzato et al.: *Sequence Level
# Training with Recurrent Neural Networks*, 2016. L. Yu et al.: *MegaByte*, 2023. J. Copet et al.: *Simple and Controllable Music Generation*, 2023. H. Chang et
# al.: *MaskGIT*, 2022. K. Tian et al.: *Visual Autoregressive Modeling*, 2024. A. Défossez et al.: *Moshi*, 2024. P. Wang: *RQ-Transformer* (package, 0.1.9).

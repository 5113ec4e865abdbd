# %% [markdown]
# # 07 · A transformer prior
#
# **The question.** A VQ-VAE turns an image into a table of whole numbers, and a table back into an image. But a table drawn at random decodes to a tangle. Can
# a model, a **prior**, learn which tables are images, and write new ones? You build one, a transformer, from a row of numbers up. At the end it draws digits:
#
# ![A sheet of generated digits, ten columns for the classes 0 to 9 and seven rows; nearly all of them are clean
# and readable.](../chapters/pictures/07_transformer_prior.png)
#
# **Afterwards you can** write a causal transformer, test that it cannot see ahead, train it, say what its loss has to beat, and draw from it: with temperature,
# top-k and top-p, for a class that you choose, and fast, with a cache.
#
# **Needed:** [chapter 04](04_vq_vae.ipynb) (codes, bits per image) and [chapter 05](05_ema_codebooks.ipynb) (the codebook used here). Terms are in the
# [glossary](../chapters/glossary.md). **Time** (an estimate): about an hour of yours to read and run, and an hour and a half more for the exercises.

# %%
import math
import time

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import companion
from companion import plots
from companion.classifier import evaluate_samples, load_classifier
from companion.course import begin, check, explorers
from companion.pretrained import scores
from companion.priors import PriorOutput
from companion.priors.sampling import draw

session = begin("07_transformer_prior")
settings, device = session.settings, session.device
train, test = session.data()
x_test, y_test = test.batch(torch.arange(len(test)))
C = len(train.classes)

# %% [markdown]
# ## Predict
# 1. An image is 49 codes of 6 bits each, 294 bits. How many bits will be left once a model has learned which codes follow which?
# 2. A *causal mask* hides from each position the codes that it has yet to guess. Suppose it shows one too many. What happens to the training loss? To the
#    samples?
# 3. Keeping what has been computed once saves work when we draw 49 codes one after the other. How many times fewer multiplications?
#
# ## An image as a row of numbers
# The tokenizer is a VQ-VAE with an EMA codebook, as you built it in chapters 04 and 05. It has K = 64 codes and turns an image into a table of 7 × 7. It comes
# with the package, trained on more images than a chapter has time for, and its weights are **fixed** from here on.

# %%
tokenizer = companion.pretrained(f"{settings.data}-vqvae").to(device)
codes, held_out = (companion.tokenize(tokenizer, images) for images in (train, test))
codes, held_out = codes.to(device), held_out.to(device)
K, grid = codes.num_codes, codes.grid
T = math.prod(grid)
print(f"{len(codes):,} tables of {grid[0]} × {grid[1]} codes, K = {K}")
print("made by", scores(f"{settings.data}-vqvae")["command"])

# %% [markdown]
# A table becomes a row once we agree on an order. The usual one is **raster order**: row by row, left to right, as you read. Here are three digits, their
# tables (darker codes are rarer), and what the decoder makes of the first 7, 21, … codes alone. (The rest is filled with the code of the empty corner.)

# %% tags=["hide-input"]
some_tables = held_out.codes[:3]
corner = some_tables[:, :1, :1]  # what the encoder writes where nothing is
rank = torch.empty(K, dtype=torch.int64)
rank[torch.bincount(codes.codes.flatten().cpu(), minlength=K).argsort(descending=True)] = (
    torch.arange(K)
)
known = (7, 21, 28, 35, 49) if T == 49 else (T // 4, T // 2, T)
fig, axes = plots.figure(9.6, 4.4, rows=3, columns=2 + len(known))
for line, image, table, empty in zip(axes, x_test, some_tables, corner, strict=False):
    plots.draw_image(line[0], image)
    plots.draw_codes(line[1], table.cpu(), order=rank)
    for ax, number in zip(line[2:], known, strict=True):
        part = torch.where(
            torch.arange(T, device=device).reshape(grid) < number, table, empty
        )
        plots.draw_image(ax, tokenizer.decode(part[None])[0])
titles = ("image", "codes", *(f"first {number}" for number in known))
for ax, title in zip(axes[0], titles, strict=True):
    ax.set_title(title)
plots.show(
    fig,
    alt="Three test digits with their tables of codes, and what the decoder makes of the "
    "first 7, 21, 28, 35 and all 49 codes of each: the digit appears row by row.",
)

# %% [markdown]
# ## The chain rule
# There are $K^T = 64^{49}$ tables, a number with 89 digits. Nobody can keep a probability for each. But the probability of a row splits into one factor for
# each code. This is the **chain rule**, and it assumes nothing:
#
# $$p(k_1, \dots, k_T) = p(k_1)\; p(k_2 \mid k_1) \cdots p(k_T \mid k_1, \dots, k_{T-1}) = \prod_{t=1}^{T} p(k_t \mid k_{<t}) .$$
#
# Each factor is a distribution over only K codes. So we need **one** network: it reads the beginning of a row and guesses the next code. Multiply its guesses:
# the probability of a whole table. Guess, draw a code, append it, guess again: a new table. Such a model is called *autoregressive*.
#
# How good is a guess? Take the probability that the model gave to the code that really came. Its negative logarithm is the **cross-entropy**, and the mean over
# held-out codes is our loss. With the natural logarithm it is in nats; divide by $\log 2$ for bits, multiply by T for an image. Bits have a meaning
# (chapter 04): an ideal coder that uses this model needs that many.
#
# ## What has to be beaten
# A loss says nothing by itself. Before we train a network, let us see how far *counting* gets: how often did each code occur, given some **context**? We count
# on training codes and measure on held-out ones. A context and code that never came together must not get probability 0, so every count starts at 1.

# %%
rows, test_rows = codes.codes.flatten(1), held_out.codes.flatten(1)  # (N, T)
labels, test_labels = codes.labels, held_out.labels  # (N,)


def contexts(some_rows: Tensor, classes: Tensor) -> dict[str, tuple[Tensor, int]]:
    """For each baseline the number of the context of every code, (N, T), and how many there are."""
    position = torch.arange(T, device=device).expand_as(some_rows)
    none = torch.full_like(some_rows, K)  # at the edge there is no neighbour: number K
    left = torch.cat([none[:, :1], some_rows[:, :-1]], 1)  # the code before it in the row
    above = torch.cat([none[:, : grid[1]], some_rows[:, : -grid[1]]], 1)
    return {
        "nothing (unigram)": (0 * position, 1),
        "the code to the left (bigram)": (left, K + 1),
        "position": (position, T),
        "position, code to the left": (position * (K + 1) + left, T * (K + 1)),
        "position, class": (position * C + classes[:, None], T * C),
        "position, class, left": (
            (position * C + classes[:, None]) * (K + 1) + left, T * C * (K + 1),
        ),
        "position, left, above": (
            (position * (K + 1) + left) * (K + 1) + above, T * (K + 1) ** 2,
        ),
    }  # fmt: skip


bits = {"uniform: 1 / K": T * math.log2(K)}
of_training, of_test = contexts(rows, labels), contexts(test_rows, test_labels)
for name, (context, number) in of_training.items():
    counts = torch.ones(number * K, dtype=torch.float64, device=device)
    counts += torch.bincount((context * K + rows).flatten(), minlength=number * K)
    log_p = (counts.reshape(number, K) / counts.reshape(number, K).sum(1, True)).log2()
    bits[name] = -log_p[of_test[name][0], test_rows].sum().item() / len(test_rows)
for name, value in bits.items():
    nats = value * math.log(2) / T
    print(f"{name:<30} {value:6.1f} bits an image   {nats:.3f} nats a code")
bar = min(bits, key=bits.get)
print("the best of them:", bar)

# %% [markdown]
# The best table of counts is the bar for everything below.
#
# The last two lines each know *more* than a line above them, and do worse. "Position, left, above" makes over 200,000 contexts, and 10,000 images have only
# 490,000 codes to fill them. To use more context we need something that shares what it learns between contexts: a network.
#
# ## Build: inputs and targets
# To guess $k_1$ the network reads nothing; to guess $k_2$ it reads $k_1$; and so on. *One* pass over the row makes all of these guesses, if position t reads
# $k_{t-1}$ and predicts $k_t$:
#
# $$\begin{array}{lcccc} \text{inputs} & \langle\text{sos}\rangle & k_1 & \dots & k_{T-1} \\ \text{targets} & k_1 & k_2 & \dots & k_T \end{array}$$
#
# The inputs are the targets, shifted by one. The first position reads a **start token**, `<sos>` ("start of sequence"). It must be **no code**: codes are 0 to
# K − 1, so the first free number is K. And $k_T$ is never read, because nothing follows it.
#
# The network always reads the *true* codes, never its own guesses. This is called **teacher forcing**, and it lets one pass train all T guesses.
#
# ### Exercise 7.1 · inputs and targets  (easy, 5 minutes)
# Write `shift`: from tables of codes (B, h, w) make the inputs and the targets, each (B, T), with T = h·w in raster order. `<sos>` is number K.
#
# <details><summary>Hint</summary><code>codes.flatten(1)</code> puts each table into raster order. <code>torch.full_like(row[:, :1], K)</code> is a column of
# K. Do not write into <code>codes</code>.</details>


# %%
def shift(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """codes: (B, h, w) -> inputs (B, T), which begin with number K, and targets (B, T)."""
    ### BEGIN SOLUTION
    targets = codes.flatten(1)  # raster order
    sos = torch.full_like(targets[:, :1], num_codes)
    inputs = torch.cat([sos, targets[:, :-1]], 1)
    return inputs, targets
    ### END SOLUTION


shift = check(shift)

# %% tags=["nbval-check-output"]
for name, row in zip(
    ("inputs ", "targets"), shift(torch.tensor([[[5, 0], [2, 0]]]), 64), strict=True
):
    print(name, row.tolist())

# %% [markdown]
# ## Build: how a position looks at the others
# Position 20 is to guess its code. Which of the codes before it matter? The one just above, probably: strokes run downwards. The one to the left. Perhaps one far
# away that says "this is a 7". We cannot write such a list by hand, since it changes from image to image. So we let every position *ask* for what it needs.

# %% tags=["hide-input"]
fig, ax = plots.figure(8, 2.2)
for i in range(7):
    asks, heard = i == 4, i < 4
    colour = plots.COLOURS["validation" if asks else "train"]
    ax.add_patch(
        plots.rectangle(
            (i - 0.35, 0), 0.7, 0.6, facecolor="white", linewidth=2,
            edgecolor=colour if asks or heard else "#BBBBBB",
        )
    )  # fmt: skip
    ax.text(i, 0.3, str(i + 1), ha="center", va="center")
for i, width in enumerate((0.8, 5, 1.2, 3.5)):
    arrow = {
        "arrowstyle": "-", "linewidth": width, "color": plots.COLOURS["train"],
        "connectionstyle": "arc3,rad=0.35",
    }  # fmt: skip
    ax.annotate("", (i, 0.62), (4, 0.62), arrowprops=arrow)
ax.text(4, -0.3, "asks", ha="center", color=plots.COLOURS["validation"])
ax.text(5.5, -0.3, "the future: hidden", ha="center", color="#777777")
ax.text(1.5, -0.3, "answer, some more than others", ha="center")
ax.set(xlim=(-0.6, 6.6), ylim=(-0.5, 1.75), title="Position 5 asks the positions before it")
ax.set_axis_off()
plots.show(
    fig,
    alt="A row of seven boxes. Lines run from the fifth to the first four; those to the second "
    "and the fourth are thick. The sixth and seventh are grey.",
)

# %% [markdown]
# Each position starts with an **embedding**, a learned vector for its code. Three linear layers make three vectors of it:
#
# * a **query**: what am I looking for?
# * a **key**: what do I have to offer?
# * a **value**: what do I hand over if I am chosen?
#
# How well does the key of position s answer the query of position t? We take their dot product. Large means "yes, that is what I asked for".

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
embedded = torch.randn(7, 8)  # seven positions, an embedding of 8 numbers each
to_query, to_key, to_value = torch.randn(3, 8, 4) / 2  # three matrices: d = 4
asked = (embedded @ to_query) @ (embedded @ to_key).T  # (7, 4) @ (4, 7) -> (7, 7)
print([round(number, 1) for number in asked[4].tolist()])  # how position 5 rates all seven

# %% [markdown]
# Two things are wrong with these **scores**. Position 5 rates positions 6 and 7, which it must not know about. And scores are not weights yet: weights are
# positive and add up to one.
#
# One line mends both. We set every score of a later position to $-\infty$ and take the softmax of each row. Since $e^{-\infty} = 0$, the future gets a weight of
# exactly zero, and the rest adds up to one. This is the **causal mask**.

# %% tags=["nbval-check-output"]
future = torch.ones(7, 7, dtype=torch.bool).triu(1)  # True above the diagonal


def attend(x: Tensor) -> tuple[Tensor, Tensor]:
    """(T, 8) -> (T, 4), what each position gathers; and the weights (T, T)."""
    queries, keys, values = x @ to_query, x @ to_key, x @ to_value
    scores = queries @ keys.T / math.sqrt(4)  # why the root? see below
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return weights @ values, weights  # (T, T) @ (T, d) -> (T, d)


gathered, weights = attend(embedded)
for line in weights.tolist():
    print("  ".join(f"{weight:.2f}" for weight in line))

# %% [markdown]
# Row t says how position t divides one unit of attention among itself (it reads $k_{t-1}$, not $k_t$) and the positions before it. Does it really not see the
# future? We change the last position and look at who notices:

# %% tags=["nbval-check-output"]
changed = embedded.clone()
changed[-1] += 1
print((attend(changed)[0] != gathered).any(-1).tolist())

# %% [markdown]
# Nobody before it does. (Why not set *weights* to zero, after the softmax? The rows would no longer add up to one, and their sums would depend on the scores of
# the future.)
#
# Vaswani et al. (2017) write all this in one line, $\mathrm{softmax}(QK^\top / \sqrt{d} + \text{mask})\,V$, with queries, keys and values as the rows of
# $Q$, $K$ and $V$. Why $\sqrt d$? The scores of random vectors spread like $\sqrt d$, and a softmax of scores far apart is nearly all on one key:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
for d in (4, 64, 1024):
    some_queries, some_keys = torch.randn(2, 2000, d)
    products = (some_queries * some_keys).sum(1)
    print(f"d = {d:<5} standard deviation of the scores {products.std():5.1f}", end="   ")
    print(f"over √d: {(products / math.sqrt(d)).std():.1f}")

# %% [markdown]
# **Heads.** One softmax gives a position one set of weights. To have several, cut the `dim` numbers of a position into `heads` pieces of d = dim / heads. Each
# **head** attends by itself, and a last linear layer mixes their results. Shapes: (B, T, dim) → (B, T, heads, d) → (B, heads, T, d).
#
# ### Exercise 7.2 · causal self-attention  (medium, 20 minutes)
# Write `forward`. `to_qkv` gives 3·dim numbers for each position: the queries of all heads, then all keys, then all values. Split them, attend within each head
# with the causal mask and $\sqrt d$, put the heads beside each other again, apply `to_out`. Do it by hand or with
# `functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)`, which computes the same.
#
# <details><summary>Hint 1</summary><code>self.to_qkv(x).chunk(3, -1)</code> gives queries, keys and values, each (B, T, dim).</details>
# <details><summary>Hint 2</summary><code>y.unflatten(-1, (heads, -1)).transpose(1, 2)</code> is (B, heads, T, d). On the way back: <code>y.transpose(1,
# 2).flatten(2)</code>.</details>


# %%
class CausalSelfAttention(nn.Module):
    """(B, T, dim) -> (B, T, dim); each position gathers from itself and those before it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d)
            for part in self.to_qkv(x).chunk(3, -1)
        )
        t, d = queries.shape[-2:]
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(d)  # (B, heads, T, T)
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.to_out((weights @ values).transpose(1, 2).flatten(2))
        ### END SOLUTION


CausalSelfAttention = check(CausalSelfAttention)

# %% [markdown]
# **Positions.** Attention asks *what* stands at a position, not *where* it is. Exchange two earlier inputs: the last position gathers the same sum in another
# order. Can it tell?

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
first, second = CausalSelfAttention(8, 2), CausalSelfAttention(8, 2)
x, where = torch.randn(1, 6, 8), torch.randn(6, 8)
swapped = x[:, [0, 2, 1, 3, 4, 5]]  # positions 2 and 3 exchanged
trials = {
    "one layer": lambda x: first(x),
    "two layers": lambda x: second(first(x)),
    "one layer, with positions": lambda x: first(x + where),
}
for name, layers in trials.items():
    with torch.no_grad():
        same = torch.allclose(layers(x)[:, -1], layers(swapped)[:, -1], atol=1e-6)
    print(f"{name:<26} the last position sees the exchange: {not same}")

# %% [markdown]
# One layer is blind to order. Two are not quite: after the exchange, positions 2 and 3 gather from other predecessors, and the second layer reads their
# results. To make order plain, every position gets a learned vector, added to the embedding of its **token** (the code or start that it reads). *Rotary*
# positions turn queries and keys by an angle instead, which grows with the position (Su et al. 2021).
#
# ## Build: the block
# Attention lets positions talk. A small network, the **MLP**, then works on what each has gathered: two linear layers with a GELU, a smooth ReLU, between
# them. Around both runs a **residual connection** (chapter 04): their output is *added* to x. And each reads a normalised copy of x (`LayerNorm`: at each
# position mean 0 and variance 1, then a learned scale and shift):
#
# $$x \leftarrow x + \text{attention}(\text{norm}_1(x)), \qquad x \leftarrow x + \text{MLP}(\text{norm}_2(x)) .$$
#
# ### Exercise 7.3 · the transformer block  (easy, 5 minutes)
# `__init__` is given. Write `forward`: the two assignments above, and return x.


# %%
class Block(nn.Module):
    """(B, T, dim) -> (B, T, dim)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


Block = check(Block)

# %% [markdown]
# ## Build: a start for each class
# With one `<sos>` the model learns $p(k_1, \dots, k_T)$ over all classes. To ask for a *three*, give each class a start token of its own: the numbers K, K + 1,
# …, K + C − 1. All later positions can look at it, so each factor becomes $p(k_t \mid k_{<t}, y)$.
#
# One more number, K + C, means "no class". If some labels are replaced by it in training, one network answers with and without a class. All of these are inputs
# only: the network has K logits, so no start can ever be drawn.
#
# ### Exercise 7.4 · inputs with a class  (easy, 10 minutes)
# Write the inputs of exercise 7.1 again, with the start of each image's class. `labels` is None for "no class" everywhere. `dropped`, where given (also when
# `labels` is None), says for each image whether its label is replaced by "no class".
#
# <details><summary>Hint</summary>Make a row <code>start</code> of B numbers first; <code>torch.where(dropped, a, b)</code> chooses. Then it is exercise
# 7.1.</details>


# %%
def conditional_inputs(
    codes: Tensor,
    labels: Tensor | None,
    num_codes: int,
    num_classes: int,
    dropped: Tensor | None = None,
) -> Tensor:
    """codes: (B, h, w), labels: (B,) or None, dropped: (B,) bool or None -> (B, T)."""
    ### BEGIN SOLUTION
    row = codes.flatten(1)
    nothing = torch.full_like(row[:, 0], num_codes + num_classes)  # "no class"
    start = nothing if labels is None else num_codes + labels
    if dropped is not None:
        start = torch.where(dropped, nothing, start)
    return torch.cat([start[:, None], row[:, :-1]], 1)
    ### END SOLUTION


conditional_inputs = check(conditional_inputs)

# %% [markdown]
# ## Build: the prior
# The rest is assembly: an **embedding** for each token, a vector for each position, blocks, a last norm, and a linear layer to K logits.


# %%
class Prior(nn.Module):
    """A decoder-only transformer over tables of codes."""

    def __init__(
        self,
        num_codes: int,
        grid: tuple[int, int],
        *,
        dim: int,
        layers: int,
        heads: int,
        num_classes: int = 0,
        label_dropout: float = 0.0,
    ):
        super().__init__()
        self.num_codes, self.grid, self.num_classes = num_codes, grid, num_classes
        self.label_dropout = label_dropout
        self.tokens = nn.Embedding(num_codes + num_classes + 1, dim)  # codes, then starts
        self.positions = nn.Parameter(0.02 * torch.randn(math.prod(grid), dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_codes)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def read(self, inputs: Tensor) -> Tensor:
        """(B, t), the first t of the T inputs -> logits (B, t, K)."""
        x = self.tokens(inputs) + self.positions[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.to_logits(self.norm(x))

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> PriorOutput:
        dropped = None
        if self.training and self.label_dropout:
            dropped = torch.rand(len(codes), device=codes.device) < self.label_dropout
        inputs = conditional_inputs(
            codes, labels, self.num_codes, self.num_classes, dropped
        )
        logits = self.read(inputs)
        loss = functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
        return PriorOutput(logits.unflatten(1, self.grid), loss)


# %% [markdown]
# Is the whole of it causal? Take an untrained one, change one code of a table, and see which logits move:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
small = Prior(7, (3, 3), dim=16, layers=2, heads=2, num_classes=2).eval()
nine = torch.randint(0, 7, (1, 3, 3))
before = small(nine, torch.tensor([1])).logits.flatten(1, 2)
for s in range(0, 9, 2):
    other = nine.flatten(1).clone()
    other[0, s] = (other[0, s] + 1) % 7
    after = small(other.unflatten(1, (3, 3)), torch.tensor([1])).logits.flatten(1, 2)
    moved = (before != after).any(-1)[0]
    print(f"k_{s + 1} moves logits", [t + 1 for t in range(9) if moved[t]])

# %% [markdown]
# ## Train and look
# `companion.fit` is the loop of chapter 01; its examples are now pairs of codes and labels. A tenth of the labels is dropped.

# %%
torch.manual_seed(session.seed)
prior = Prior(
    K, grid, dim=settings.dim, layers=settings.layers, heads=settings.heads,
    num_classes=C, label_dropout=0.1,
)  # fmt: skip
print(f"{sum(weight.numel() for weight in prior.parameters()):,} weights")
history = companion.fit(
    prior, codes, validation=held_out, objective=lambda model, k, y: model(k, y),
    epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr,
    seed=session.seed, device=device,
)  # fmt: skip

# %% tags=["hide-input"]
fig, ax = plots.figure(7.5, 3)
epochs = [row["epoch"] for row in history.rows]
for part, term, style in (
    ("training", "loss", "o:"),
    ("held out", "validation_loss", "o-"),
):
    ax.plot(
        epochs, [row[term] for row in history.rows], style, label=f"transformer, {part}",
        color=plots.COLOURS["train" if part == "training" else "validation"],
    )  # fmt: skip
for name in ("nothing (unigram)", "the code to the left (bigram)", "position", bar):
    level = bits[name] * math.log(2) / T
    ax.axhline(level, color=plots.COLOURS["reference"], linestyle="--", linewidth=0.8)
    ax.text(1.01, level, name, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
ax.set(
    xlabel="epoch", ylabel="nats per code", xticks=epochs,
    title="The transformer is below the best table of counts (dashed: counts)",
)  # fmt: skip
ax.legend(fontsize=9)
plots.show(
    fig,
    alt="Training and held-out loss of the transformer over the epochs in nats per code, both "
    "falling; dashed lines mark four tables of counts, all of them higher at the end.",
)

# %%
bits["transformer"] = history.last["validation_loss"] * T / math.log(2)
for name in (bar, "transformer"):
    print(f"{name:<20} {bits[name]:6.1f} bits an image")
session.expect("bits_transformer", bits["transformer"])

# %% [markdown]
# That answers the first prediction: about two fifths of the 294 bits are left, well below the bar. (In profile quick the held-out glyphs are of fonts that no
# training glyph has. So the gap at the end need not be overfitting.)
#
# Larger transformers are trained with a *warm-up*, a learning rate that grows from zero over the first steps, and with *gradient clipping*: a gradient longer
# than a limit is scaled down to it. At this size it trained without. ([Study 07b](07b_judging_samples.ipynb) puts a PixelCNN beside it.)
#
# ## Where does it look?
# The package ships a prior with twice the layers, trained for longer. Its weights fit into *your* class:


# %%
def in_our_class(theirs: companion.TransformerPrior) -> Prior:
    """The companion keeps codes and starts in two tables; ours has one, codes first."""
    stack = theirs.transformer
    ours = Prior(
        theirs.num_codes, theirs.grid, dim=theirs.positions.shape[1],
        layers=len(stack.blocks), heads=stack.heads, num_classes=theirs.num_classes,
    )  # fmt: skip
    state = {
        name.removeprefix("transformer."): w for name, w in theirs.state_dict().items()
    }
    state["tokens.weight"] = torch.cat([state.pop("codes.weight"), state.pop("sos.weight")])
    ours.load_state_dict(state)
    return ours.to(theirs.positions.device).eval()


shipped = companion.pretrained(f"{settings.data}-prior").to(device)
companion.check_identity(tokenizer, shipped)  # the codebook that it learnt with
longer = in_our_class(shipped)
print("made by", scores(f"{settings.data}-prior")["command"])
with torch.no_grad():
    shipped_loss = longer(held_out.codes, held_out.labels).loss.item()
print(f"{shipped_loss * T / math.log(2):.1f} bits an image", end=" ")
print(f"beside {bits['transformer']:.1f} of yours")

# %% [markdown]
# Let us draw the attention of its first layer. Left, for one digit: where the heads look from the framed position (dark: a large weight). Right, the mean over
# 100 digits, by steps back in the row.

# %% tags=["hide-input"]
block = longer.blocks[0]
read = conditional_inputs(held_out.codes[:100], held_out.labels[:100], K, C)
with torch.no_grad():
    x = block.norm1(longer.tokens(read) + longer.positions)
    queries, keys, _ = (
        part.unflatten(-1, (block.attention.heads, -1)).transpose(1, 2)
        for part in block.attention.to_qkv(x).chunk(3, -1)
    )
    looks = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    hidden = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)
    looks = looks.masked_fill(hidden, -torch.inf).softmax(-1).cpu()  # (100, heads, T, T)
here = 4 * grid[1] + 3 if T == 49 else T // 2
reach = 2 * grid[1]  # asked at the positions from which all of these steps can be made
evenly = (1 / torch.arange(reach + 1, T + 1)).mean().item()
fig, axes = plots.figure(9.6, 3.4, rows=2, columns=4, width_ratios=(1, 1, 1, 4.2))
plots.draw_image(axes[0, 0], x_test[0])
plots.draw_codes(axes[1, 0], held_out.codes[0].cpu(), order=rank, numbers=False)
curve = axes[0, 3]
axes[1, 3].remove()
curve.set_subplotspec(axes[0, 3].get_gridspec()[:, 3])
styles = (("o-", "train"), ("s--", "validation"), ("^:", "third"), ("D-.", "fourth"))
for head, (style, colour) in enumerate(styles):
    ax = axes[head // 2, 1 + head % 2]
    ax.imshow(looks[0, head, here].reshape(grid).numpy(), cmap="Blues", vmin=0, vmax=0.25)
    corner_of = (here % grid[1] - 0.5, here // grid[1] - 0.5)
    ax.add_patch(
        plots.rectangle(
            corner_of, 1, 1, fill=False, linewidth=1.5,
            edgecolor=plots.COLOURS["validation"],
        )
    )  # fmt: skip
    ax.set_axis_off()
    ax.set_title(f"head {head + 1}", fontsize=9)
    mean_of_all = looks[:, head].mean(0)
    share = [
        mean_of_all.diagonal(-step)[reach - step :].mean().item()
        for step in range(reach + 1)
    ]
    curve.plot(
        share, style, color=plots.COLOURS[colour], markersize=4, label=f"head {head + 1}"
    )
    most = max(range(reach + 1), key=share.__getitem__)
    print(f"head {head + 1}: most at {most} steps back, {share[most]:.2f}", end="; ")
    print(f"evenly it would be {evenly:.2f}")
curve.axhline(evenly, color=plots.COLOURS["reference"], linestyle="--", linewidth=0.8)
curve.set(
    xlabel="steps back in the row of inputs", ylabel="share of the attention",
    xticks=range(0, reach + 1, 2), ylim=(0, None), title="Layer 1 looks one row up",
)  # fmt: skip
curve.legend(fontsize=9)
plots.show(
    fig,
    alt="A digit, its codes, and four maps of seven by seven squares: where each head of the "
    "first layer looks from a framed position, all before it. Right: the mean share of "
    "attention by steps back, with a peak at 5 to 7 steps in each head.",
)

# %% [markdown]
# The inputs are shifted by one, so the code above the one to be predicted stands 6 steps back: on the maps, one up and one to the right. There is the peak of
# every head, or right beside it. (Head 4's dark corner is the start: the class.) Nobody told the network that a row of 49 is a square.
#
# ## Build: temperature, top-k, top-p
# To draw a table: read the start, get K probabilities, draw a code, append it, read again, T times. Three knobs change what is drawn from, in this order.
#
# **Temperature** $\tau$ divides the logits before the softmax. Below 1 likely codes become likelier, until at 0 only the likeliest is left. Above 1 all become
# more alike.
#
# **Top-k** keeps the k likeliest codes, sets the others to 0 and divides by the sum of what is left. **Top-p** keeps the fewest likeliest codes
# whose probabilities sum to at least p: few where the model is sure, many where it is not. On five codes:

# %% tags=["nbval-check-output"]
five = torch.tensor([0.40, 0.30, 0.15, 0.10, 0.05])
for temperature in (0.5, 1.0, 2.0):
    heated = (five.log() / temperature).softmax(-1)
    print(f"temperature {temperature}:", [round(p, 2) for p in heated.tolist()])
kept = five.where(five >= five.topk(2).values[-1], 0)
print("top-k, k = 2:   ", [round(p, 2) for p in (kept / kept.sum()).tolist()])
likelier = five.cumsum(0) - five  # the sum of the likelier ones (five is sorted)
kept = five.where(likelier < 0.8, 0)
print("top-p, p = 0.8: ", [round(p, 2) for p in (kept / kept.sum()).tolist()])

# %% [markdown]
# If the k-th and the next code are equally likely, which one goes? Neither: all codes as likely as the last one kept are kept too, also in top-p.
#
# ### Exercise 7.5 · what is drawn from  (hard, 25 minutes)
# Give the probabilities after temperature, then top-k, then top-p *on what top-k left*; None means "no cut". Temperature 0 puts everything on the likeliest
# code, or the first of several. Ties as above; k is between 1 and K, and $0 < p \le 1$.
#
# <details><summary>Hint 1</summary><code>p.topk(k, dim=-1).values[..., -1:]</code> is the k-th largest; keep what is at least as large, and divide by the
# sum.</details>
# <details><summary>Hint 2</summary>For top-p: sort downwards, and let <code>before = ranked.cumsum(-1) - ranked</code> be the sum of all that are likelier.
# A code stays if that is below p. The smallest value that stays is a threshold again, as in hint 1, and treats ties right.</details>
# <details><summary>Hint 3</summary><code>torch.zeros_like(logits).scatter_(-1, index, 1.0)</code> puts ones at indices.</details>


# %%
def filtered_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """logits: (..., K) -> probabilities (..., K)."""
    ### BEGIN SOLUTION
    if temperature == 0:
        likeliest = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, likeliest, 1.0)

    def at_least(p: Tensor, threshold: Tensor) -> Tensor:
        p = p.where(p >= threshold, 0)
        return p / p.sum(-1, keepdim=True)

    p = (logits / temperature).softmax(-1)
    if top_k is not None:
        p = at_least(p, p.topk(top_k, dim=-1).values[..., -1:])
    if top_p is not None:
        ranked = p.sort(dim=-1, descending=True).values
        before = ranked.cumsum(-1) - ranked
        stays = ranked.masked_fill(before >= top_p, torch.inf)
        p = at_least(p, stays.amin(-1, keepdim=True))
    return p
    ### END SOLUTION


filtered_probabilities = check(filtered_probabilities)

# %% [markdown]
# The random numbers come from outside: one uniform number u for each code. Lay the probabilities end to end on [0, 1); the code on whose piece u falls is drawn
# (`draw`). So equal random numbers give equal tables. The loop:


# %%
@torch.no_grad()
def sample(
    model: Prior,
    n: int,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    **filters,
) -> Tensor:
    """n tables, (n, h, w)."""
    length, place = math.prod(model.grid), model.positions.device
    uniform = torch.rand(n, length, generator=generator, dtype=torch.float64).to(place)
    drawn = torch.zeros(n, length, dtype=torch.int64, device=place)
    for t in range(length):
        inputs = conditional_inputs(
            drawn.unflatten(1, model.grid), labels, model.num_codes, model.num_classes
        )
        logits = model.read(inputs[:, : t + 1])[:, -1]  # from what is drawn so far
        drawn[:, t] = draw(filtered_probabilities(logits, **filters), uniform[:, t])
    return drawn.unflatten(1, model.grid)


def seeded(extra: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * session.seed + extra)


# %% tags=["hide-input"]
ten = torch.arange(C, device=device)
plots.show(
    plots.image_rows(
        {
            f"draw {line + 1}": tokenizer.decode(
                sample(prior, C, ten, generator=seeded(11 + line))
            )
            for line in range(2)
        },
        title=f"Your prior after {settings.epochs} epochs, temperature 1",
    ),
    alt="Two rows of ten digits drawn from the prior, the classes 0 to 9 from left to right. "
    "Most can be read, some are broken.",
)

# %% [markdown]
# ## Build: the key/value cache
# Look at the loop once more. At step 49 it computes queries, keys and values at 49 positions, and uses the logits of one. An earlier position never looks at a
# later one, so the keys and values of the other 48 are what they were at step 48, computed once more.
#
# So keep them. A **key/value cache** holds, for each layer, the keys and values of all positions so far. A step then works on the newest position only: make its
# query, key and value; append key and value to those kept; let the one query look at all of them. Which mask does it need? None: everything in the cache is the
# past.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 4)  # of the newest position, d = 4
old_keys, old_values = torch.randn(2, 3, 4)  # of the three before it: the cache
all_keys, all_values = torch.cat([old_keys, key]), torch.cat([old_values, value])
weight = (query @ all_keys.T / math.sqrt(4)).softmax(-1)  # (1, 4) @ (4, 4) -> (1, 4)
print("one row of weights:", [round(w, 2) for w in weight[0].tolist()])
print("gathered:", tuple((weight @ all_values).shape), " cache:", tuple(all_keys.shape))

# %% [markdown]
# ### Exercise 7.6 · one step with a cache  (medium, 20 minutes)
# `layer` is a `CausalSelfAttention` with `to_qkv`, `to_out` and `heads`. `x`, (B, 1, dim), is the newest position; `keys` and `values` are those of the t positions
# before it, (B, heads, t, d), and t may be 0. Return the layer's output for x, (B, 1, dim), and all keys and values, (B, heads, t + 1, d), the newest last.
# Change nothing in place, and leave gradients on.
#
# <details><summary>Hint</summary>Cut <code>layer.to_qkv(x)</code> as in exercise 7.2, <code>torch.cat([keys, key], 2)</code>, and attend with one query and t + 1
# keys. Beware of <code>is_causal=True</code>: with one query it hides all keys but the first.</details>


# %%
def cached_attention(
    x: Tensor, layer: CausalSelfAttention, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x: (B, 1, dim), keys and values: (B, heads, t, d) -> output, keys and values of t + 1."""
    ### BEGIN SOLUTION
    query, key, value = (
        part.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
        for part in layer.to_qkv(x).chunk(3, -1)
    )
    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
    out = scores.softmax(-1) @ values  # (B, heads, 1, t + 1) @ (B, heads, t + 1, d)
    return layer.to_out(out.transpose(1, 2).flatten(2)), keys, values
    ### END SOLUTION


cached_attention = check(cached_attention)

# %% [markdown]
# With it, the loop reads one token a step. `cache` has a pair (keys, values) for each block, empty at first:


# %%
def newest_logits(model: Prior, token: Tensor, t: int, cache: list) -> Tensor:
    """token: (n,), what position t reads -> logits (n, K). The cache grows by one position."""
    x = (model.tokens(token) + model.positions[t])[:, None]  # (n, 1, dim)
    for i, block in enumerate(model.blocks):
        y, *cache[i] = cached_attention(block.norm1(x), block.attention, *cache[i])
        x = x + y
        x = x + block.mlp(block.norm2(x))
    return model.to_logits(model.norm(x))[:, 0]


@torch.no_grad()
def sample_cached(
    model: Prior,
    n: int,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    **filters,
) -> Tensor:
    """As ``sample``, with a cache."""
    length, like = math.prod(model.grid), model.positions
    uniform = torch.rand(n, length, generator=generator, dtype=torch.float64).to(
        like.device
    )
    drawn = torch.zeros(n, length, dtype=torch.int64, device=like.device)
    heads = model.blocks[0].attention.heads
    empty = like.new_zeros(n, heads, 0, like.shape[1] // heads)  # nothing kept yet
    cache = [(empty, empty) for _ in model.blocks]
    token = conditional_inputs(
        drawn.unflatten(1, model.grid), labels, model.num_codes, model.num_classes
    )[:, 0]  # the start
    for t in range(length):
        logits = newest_logits(model, token, t, cache)
        token = draw(filtered_probabilities(logits, **filters), uniform[:, t])
        drawn[:, t] = token
    return drawn.unflatten(1, model.grid)


# %% [markdown]
# Does it draw the same? And what does it save? PyTorch's `FlopCounterMode` counts the operations of all matrix products. It counts two for a multiply-add, one
# multiplication and one addition, so we halve its number.

# %% tags=["nbval-check-output"]
twin = in_our_class(shipped).double()  # in float64, so that rounding decides no draw
pairs = [
    draw_with(twin, 20, ten.repeat(2), generator=seeded(8))
    for draw_with in (sample, sample_cached)
]
print("the same codes with and without a cache:", torch.equal(*pairs))

# %%
print("to draw one table      multiply-adds   seconds (this machine, now)")
work = {}
for name, draw_with in {"without a cache": sample, "with a cache": sample_cached}.items():
    with FlopCounterMode(display=False) as counter:
        draw_with(longer, 1, generator=seeded())
    work[name] = counter.get_total_flops() / 2
    begun = time.perf_counter()
    draw_with(longer, 1, generator=seeded())
    seconds = time.perf_counter() - begun
    print(f"{name:<20} {work[name] / 1e6:9.1f} million   {seconds:.3f}")
print(f"without / with: {work['without a cache'] / work['with a cache']:.1f} times")

# %% [markdown]
# The third prediction: without a cache a position is computed at its own step and at every later one, $(T + 1)/2 = 25$ times on average. (The seconds hardly
# fall in so small a model. [Study 07b](07b_judging_samples.ipynb) lets T grow.)
#
# ## How good are they?
# Your code drew every digit on this sheet from the shipped weights, at temperature 1, with nothing cut off and nothing selected. The class is what the first
# token said.

# %% tags=["cover"]
sheet_lines = 7
sheet = sample_cached(longer, sheet_lines * C, ten.repeat(sheet_lines), generator=seeded(1))
fig = plots.image_grid(tokenizer.decode(sheet), columns=C, size=0.86)
for c, name in enumerate(train.classes):
    fig.axes[0].text(
        (c + 0.5) * x_test.shape[3], -2, name, ha="center", va="bottom", fontweight="bold"
    )
plots.show(
    fig,
    alt="A sheet of generated digits: ten columns for the classes 0 to 9, named above them, "
    "and seven rows. Nearly all of them are clean and readable, in many styles.",
)

# %% [markdown]
# To *measure*, the course ships a small **classifier**, trained on real images. Two numbers:
#
# * **accuracy**: the share of samples recognised as the class that was asked for. Reconstructions, which only the tokenizer has touched, set the **ceiling**.
# * **Fréchet distance**: how far the classifier's features of the samples are from those of held-out images, each set described by a Gaussian. Low is
#   good. The same number of *training* images sets the **floor**.
#
# <details><summary>The formula</summary>With means $\mu_1, \mu_2$ and covariances $\Sigma_1, \Sigma_2$ of the features of two sets of images:
# $\|\mu_1 - \mu_2\|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$ (Heusel et al. 2017, equation 6). Equal Gaussians are at distance
# 0.</details>

# %%
classifier = load_classifier(settings.data).to(device)
n = settings.samples
always = torch.Generator().manual_seed(0)  # the same images whatever the seed
who = torch.randperm(len(test), generator=always)[:n].to(device)
wanted = torch.arange(n, device=device) % C
sets = {
    "reconstructions (ceiling)": (tokenizer.reconstruct(x_test[who]), y_test[who]),
    "shipped weights": (
        tokenizer.decode(sample_cached(longer, n, wanted, generator=seeded(3))), wanted,
    ),
    "your prior": (
        tokenizer.decode(sample_cached(prior, n, wanted, generator=seeded(5))), wanted,
    ),
}  # fmt: skip
qualities = {
    name: evaluate_samples(classifier, images, asked_for, train=train, held_out=test)
    for name, (images, asked_for) in sets.items()
}
print(f"{'':<28} accuracy   Fréchet distance")
for name, quality in qualities.items():
    print(f"{name:<28} {quality.accuracy:8.3f} {quality.frechet:12.2f}")
print(f"{'training images (floor)':<28} {quality.frechet_floor:21.2f}")
session.expect("accuracy", qualities["shipped weights"].accuracy)
session.expect("accuracy_quick", qualities["your prior"].accuracy)

# %% [markdown]
# The shipped weights are at the ceiling, and at the floor or below it. (The floor is no bound: in profile quick it is the distance between two sets of fonts.
# Reconstructions are below it because they are held-out images themselves.)
# Yours were trained for a minute or less and are behind in both. Are the samples copies? Which knobs cost variety? Does a single start lose classes?
# [Study 07b, judging samples](07b_judging_samples.ipynb), asks.
#
# ## Proof: what you built is what the companion has


# %% tags=["nbval-check-output"]
def agree(name: str, mine: Tensor, theirs: Tensor) -> None:
    """Stop with the name of what disagrees."""
    torch.testing.assert_close(
        mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda text: f"{name} disagrees: {text}"
    )
    print(f"{name:<38} agrees: True")


parts = companion.priors.transformer
torch.manual_seed(0)
their_attention, their_block = parts.CausalSelfAttention(8, 2), parts.Block(8, 2)
our_attention, our_block = CausalSelfAttention(8, 2), Block(8, 2)
our_attention.load_state_dict(their_attention.state_dict())
our_block.load_state_dict(their_block.state_dict())
wave = torch.linspace(0, 9, 2 * 5 * 8).sin().reshape(2, 5, 8)
kept_keys = kept_values = wave.new_zeros(2, 2, 0, 4)
steps = []
with torch.no_grad():
    agree("exercise 7.2, CausalSelfAttention", our_attention(wave), their_attention(wave))
    agree("exercise 7.3, Block", our_block(wave), their_block(wave))
    for t in range(5):
        out, kept_keys, kept_values = cached_attention(
            wave[:, t : t + 1], our_attention, kept_keys, kept_values
        )
        steps.append(out)
    agree("exercise 7.6, cached_attention", torch.cat(steps, 1), their_attention(wave))
    glue("proof.attention", our_attention(wave).flatten().tolist(), display=False)
    glue("proof.block", our_block(wave).flatten().tolist(), display=False)
glue(
    "proof.cached_attention",
    {"output": steps[-1].flatten().tolist(), "keys": kept_keys.flatten().tolist()},
    display=False,
)

their_logits = torch.linspace(0, 9, 3 * 8).cos().reshape(3, 8)
how = {"temperature": 1.5, "top_k": 5, "top_p": 0.8}
mine = filtered_probabilities(their_logits, **how)
agree(
    "exercise 7.5, filtered_probabilities", mine,
    companion.priors.filtered_probabilities(their_logits, **how),
)  # fmt: skip
glue("proof.filtered_probabilities", mine.flatten().tolist(), display=False)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = companion.TransformerPrior(7, (3, 4), dim=16, layers=2, heads=2, num_classes=3)
ours = in_our_class(theirs)
two_tables = torch.arange(24).reshape(2, 3, 4).to(theirs.positions.device) ** 2 % 7
two_labels = torch.tensor([2, 0])
numbers = {}
for name, model in (("ours", ours), ("theirs", theirs)):
    result = model(two_tables, two_labels)
    result.loss.backward()
    shared = (model.positions, *model.to_logits.parameters())
    blocks = model.blocks if name == "ours" else model.transformer.blocks
    numbers[name] = {
        "loss": [result.loss.item()],
        "logits": result.logits.flatten().tolist(),
        "gradients": [p.grad.norm().item() for p in (*shared, *blocks.parameters())],
    }
for part, values in numbers["ours"].items():
    agree(f"Prior, {part}", *map(torch.tensor, (values, numbers["theirs"][part])))
glue("proof.prior", numbers["ours"], display=False)

four_labels = torch.tensor([0, 1, 2, 0])
ours, theirs = (model.double().eval() for model in (ours, theirs))
for name, draw_with in (("sample", sample), ("sample_cached", sample_cached)):
    mine = draw_with(ours, 4, four_labels, generator=seeded(), **how)
    same = theirs.sample(4, four_labels, generator=seeded(), **how)
    print(f"{name} and the companion draw the same: {torch.equal(mine, same)}")
fixed = torch.Generator().manual_seed(0)
mine = sample(ours, 4, four_labels, generator=fixed)
glue("proof.sample", mine.flatten().tolist(), display=False)

conditional = conditional_inputs(two_tables, two_labels, 7, 3)
glue("proof.inputs", conditional.flatten().tolist(), display=False)
shifted, unchanged = shift(two_tables, 7)
print("exercise 7.1, targets are the codes:", torch.equal(unchanged, two_tables.flatten(1)))
print(
    "exercises 7.1 and 7.4 agree but for the start:",
    torch.equal(shifted[:, 1:], conditional[:, 1:]),
)

# %% [markdown]
# ## Play: ask for a digit
# Choose a class, a temperature, how many of the likeliest codes may be drawn, and a seed. At which temperature does a class fall apart? Does k = 1 at
# temperature 2 differ from temperature 0?

# %%
explorers.prior_samples(shipped, tokenizer, train.classes)

# %% [markdown]
# For readers of the printed page: the same random numbers in every row.

# %% tags=["hide-input"]
heats = (0.0, 0.5, 1.0, 1.3, 1.6, 2.0)
fig = plots.image_rows(
    {
        f"temperature {heat:g}": tokenizer.decode(
            shipped.sample(C, ten.cpu(), temperature=heat, generator=seeded(9))
        )
        for heat in heats
    },
    title="The same random numbers at six temperatures, one column a class",
)
plots.show(
    fig,
    alt="Six rows of ten digits, one column a class, at temperatures 0 to 2: at low "
    "temperatures plain and clean, at 1 varied, above it increasingly broken.",
)

# %% [markdown]
# ## What breaks, and why
# **The mask off by one.** `triu(2)` in place of `triu(1)`: each position sees one step ahead, and there stands the very code that it is to predict.


# %%
class Peeking(nn.Module):
    """Causal self-attention with the mask off by one."""

    def __init__(self, right: nn.Module):
        super().__init__()
        self.to_qkv, self.to_out, self.heads = right.to_qkv, right.to_out, right.heads

    def forward(self, x: Tensor, *_) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(x).chunk(3, -1)
        )
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        future = torch.ones_like(scores, dtype=torch.bool).triu(2)  # wrong: triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.to_out((weights @ values).transpose(1, 2).flatten(2))


def short_run(peek: bool) -> tuple[Prior, list[float]]:
    torch.manual_seed(session.seed)
    model = Prior(K, grid, dim=settings.dim, layers=1, heads=settings.heads, num_classes=C)
    if peek:
        for block in model.blocks:
            block.attention = Peeking(block.attention)
    model.to(device)
    adam, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(settings.peek_steps):
        chosen = torch.arange(64, device=device) + 64 * step
        out = model(*codes.batch(chosen % len(codes)))
        adam.zero_grad()
        out.loss.backward()
        adam.step()
        losses.append(out.loss.item())
    return model.eval(), losses


honest, honest_losses = short_run(False)
peeking, peeking_losses = short_run(True)
session.expect("loss_honest", sum(honest_losses[-10:]) / len(honest_losses[-10:]))
session.expect("loss_peeking", sum(peeking_losses[-10:]) / len(peeking_losses[-10:]))

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(9.6, 3, columns=2, width_ratios=(1, 1.2))
left.plot(honest_losses, color=plots.COLOURS["train"], label="mask right")
left.plot(peeking_losses, "--", color=plots.COLOURS["validation"], label="mask off by one")
left.set(
    xlabel="step", ylabel="training loss, nats a code", ylim=(0, None),
    title="One step ahead: a loss near zero",
)  # fmt: skip
left.legend()
both = [
    tokenizer.decode(sample(model, 10, ten[:10], generator=seeded(10)))
    for model in (honest, peeking)
]
plots.draw_image(right, torch.cat([torch.cat(list(images), -1) for images in both], -2))
right.set_title("Draws: above the right mask, below the wrong one", fontsize=10)
plots.show(
    fig,
    alt="Left: the training loss of a prior with the right mask levels off, that with the "
    "mask off by one falls close to zero. Right: ten draws of each after these few steps: "
    "above rough digits, below black squares and blobs.",
)

# %% [markdown]
# That was the second prediction. Training teaches copying, and when we draw there is nothing ahead to copy. A loss can be too good: if it is close to
# zero, test as above which logits move.
#
# **Code 0 is not a padding.** In texts, number 0 is often padding, and the loss leaves it out with `ignore_index=0`. In a prior this drops a code from the
# loss, which hardly shows it. (What would such a model draw in place of code 0?)

# %%
with torch.no_grad():
    their_codes = held_out.codes.flatten()
    every = longer(held_out.codes, held_out.labels).logits.flatten(0, 2)
right_loss = functional.cross_entropy(every, their_codes).item()
dropped_loss = functional.cross_entropy(every, their_codes, ignore_index=0).item()
zeros = torch.zeros(4, dtype=torch.int64)
alone = functional.cross_entropy(torch.randn(4, K), zeros, ignore_index=0).item()
print(f"code 0 is {(their_codes == 0).float().mean():.1%} of the held-out codes")
print(f"loss {right_loss:.4f}, with ignore_index=0: {dropped_loss:.4f} nats a code")
print(f"a table of zeros only: {alone} (the mean of nothing)")

# %% [markdown]
# **A start that is a code.** If class 3 starts with number 3, then "class 3" and "code 3" share one vector:

# %% tags=["nbval-check-output"]
table, label = torch.tensor([[[3, 1], [4, 1]]]), torch.tensor([3])
print("K + class first:", conditional_inputs(table, label, 64, 10).tolist())
wrong = torch.cat([label[:, None], table.flatten(1)[:, :-1]], 1)
embedding = nn.Embedding(64, 4)
embedding(wrong)[0, 0].sum().backward()  # what the start is to mean ...
touched = embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
print("class first:    ", wrong.tolist(), "  training it moves the vector of code", touched)

# %% [markdown]
# **Another tokenizer's decoder.** Two runs of one tokenizer number their codes differently, and a mix-up raises no error. So the companion keeps the identity
# of the tokenizer, a hash of its weights, with codes and priors, and refuses:

# %%
torch.manual_seed(1)
renamed = companion.pretrained(f"{settings.data}-vqvae").to(device)
with torch.no_grad():  # the same tokenizer, but for the numbers of its codes
    renamed.quantizer.codebook.copy_(tokenizer.quantizer.codebook[torch.randperm(K)])
try:
    companion.check_identity(renamed, shipped)
except ValueError as error:
    print(f"ValueError: {error}")
plots.show(
    plots.image_rows(
        {"its own": tokenizer.decode(sheet[:C]), "renamed": renamed.decode(sheet[:C])},
        title="The same codes, decoded with the right and with a renamed codebook",
    ),
    alt="Ten generated digits decoded with the codebook that their prior learnt with, and "
    "below the same codes decoded with a codebook in another order: noise.",
)

# %% [markdown]
# ## Pen and paper
# 1. A prior has 1.5 nats per code on tables of 7 × 7. How many bits an image is that? How probable is the typical table, beside one under the uniform prior
#    with K = 64?
# 2. Is temperature after top-p the same as before it? Find three probabilities and a p for which the two orders keep different codes.
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. 49 · 1.5 / log 2 = 106 bits. Typical tables have probability about 2⁻¹⁰⁶, uniform ones 2⁻²⁹⁴: a typical table is about 2¹⁸⁸ times as probable.
# 2. With (0.6, 0.3, 0.1) and p = 0.85 two codes are kept: 0.6 + 0.3 reaches it. At temperature 2 the probabilities are (0.47, 0.33, 0.19): two of them sum
#    to 0.81, so that three are kept.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * A table of codes is a row. The chain rule makes a classification of each position; teacher forcing trains all in one pass.
# * Inputs are targets shifted by one, behind a start that is no code. The causal mask keeps the model from reading the answers.
# * A loss means something beside the best table of counts.
# * Temperature, then top-k, then top-p. A cache keeps keys and values: the same codes, a fraction of the work.
#
# **Further experiments.** Train the prior on rows from right to left: does the loss change? Replace the learned positions by a row vector plus a column vector.
# Let the prior finish the first half of a test digit.
#
# **References.** van den Oord, Vinyals, Kavukcuoglu 2017, *Neural discrete representation learning* (section 3.3). Vaswani et al. 2017, *Attention is all you need*
# (equation 1). Xiong et al. 2020, *On layer normalization in the transformer architecture*. Su et al. 2021, *RoFormer*. Holtzman et
# al. 2020, *The curious case of neural text degeneration* (top-p). Heusel et al. 2017, *GANs trained by a two time-scale update rule* (equation 6).

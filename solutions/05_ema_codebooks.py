# %% [markdown]
# # 05 · EMA codebooks
#
# **The question.** In chapter 04 most of the 64 codes were dead: no latent ever chose them. Is there a better way to move a codebook than by gradients?
# You build one whose codes follow running means of their latents, bring the dead ones back to life, and end with this picture of 64 codes on their way through
# training:
#
# ![Three maps of latents as grey dots, with the paths of the codes over training. Moved by gradients, many codes end as rings that nothing uses; by averages with
# a long memory all are used, but crowd in the middle; with a short memory they spread over all the dots.](../chapters/pictures/05_ema_codebooks.png)
#
# **Afterwards you can** derive the EMA update, and say which gradient step it equals; choose how long a code remembers; smooth its counts without
# doing harm; and revive dead codes.
#
# **Needed:** [chapter 03](03_vector_quantisation.ipynb) (nearest code, the two losses, k-means) and [chapter 04](04_vq_vae.ipynb) (the VQ-VAE, perplexity).
# **Time:** an hour and a half of yours, and half an hour more with the exercises (an estimate); the computer's is in the table below. Every term is in the
# [glossary](../chapters/glossary.md).

# %%
import copy
import math

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.results import results
from companion.metrics import CodeUsage, distortion, mse
from companion.quantizers import (
    Quantized,
    Quantizer,
    VectorQuantizer,
    k_means,
    nearest_code,
    straight_through,
)

session = begin("05_ema_codebooks")
settings, device = session.settings, session.device
train, test = session.data()

# %%
x_test, _ = test.batch(torch.arange(len(test)))
x_train, _ = train.batch(torch.arange(len(train)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels = train.shape[0]
K, D = settings.num_codes, settings.dim

# %% [markdown]
# ## Predict
# Three things usually go together under the name "EMA". The codes follow **moving averages** instead of gradients. They start from **k-means** on the first
# batch. And codes that hardly anything chooses are **restarted** elsewhere. With gradients, 64 codes reach a perplexity of 11 on average. Guess it for
#
# 1. moving averages alone;
# 2. averages and k-means;
# 3. averages and restarts;
# 4. all three.
#
# ## Why not a gradient?
# Take the latents of one batch, and hold fixed which code each of them chose. Look at one code, $e_k$: it was chosen by $n_k$ latents, and $s_k$ is their sum.
# The gradient of its codebook loss (chapter 03), summed over these latents, is
#
# $$\frac{\partial}{\partial e_k} \sum_{z \to k} \|z - e_k\|^2 = \sum_{z \to k} 2\,(e_k - z) = 2\,(n_k e_k - s_k).$$
#
# It is zero at $e_k = s_k/n_k$, **the mean of the latents that chose the code**. So we know where the code should go. How well does gradient descent take it
# there?
#
# A step with learning rate $\eta$ goes the part $2\eta\,n_k$ of the way to the mean. So a popular code takes long steps, a rare one takes short steps, and one
# learning rate has to serve both. (With Adam both steps are about equal, however far the way.) Try it with two codes, one with 100
# latents and one with 5. Or give each code a rate of its own, $0.3/n_k$:

# %%
torch.manual_seed(session.seed)
popular = 0.4 * torch.randn(100, 2)
rare = 0.4 * torch.randn(5, 2) + torch.tensor([3.0, 0.0])
n_two = torch.tensor([[100.0], [5.0]])
s_two = torch.stack([popular.sum(0), rare.sum(0)])
first = s_two / n_two + torch.tensor([0.0, 2.0])  # both start 2 above their mean
tracks = {}
for name, rate in {"one rate": torch.tensor(0.003), "two rates": 0.3 / n_two}.items():
    track = [first]
    for _ in range(5):
        track.append(track[-1] - rate * 2 * (n_two * track[-1] - s_two))
    tracks[name] = torch.stack(track)  # (6 moments, 2 codes, D = 2)
    gone = 1 - (track[-1] - s_two / n_two).norm(dim=1) / 2
    print(f"{name:<9} popular code {gone[0]:4.0%} of its way, rare code {gone[1]:4.0%}")

# %% tags=["hide-input"]
fig, axes = plots.figure(8.6, 3.1, columns=2, sharex=True, sharey=True)
for ax, (name, way) in zip(axes, tracks.items(), strict=True):
    ax.scatter(*torch.cat([popular, rare]).T.numpy(), s=8, color="#AAAAAA", label="latents")
    for k, (who, marker) in enumerate({"popular": "o", "rare": "s"}.items()):
        colour = plots.COLOURS["train" if k == 0 else "validation"]
        ax.plot(*way[:, k].T.numpy(), marker + "-", color=colour, label=f"{who} code")
    ax.set(aspect="equal", xlabel="first dimension")
    ax.set_title(
        "One rate for both: the rare code is left behind"
        if name == "one rate"
        else "A rate for each: both arrive",
        fontsize=10,
    )
axes[0].set_ylabel("second")
axes[0].legend(fontsize=8, loc="center")
plots.show(
    fig,
    alt="Two pictures of a large and a small cloud of points and the code of each, which "
    "starts above its cloud. With one rate for both, the code of the large cloud is there "
    "after five steps and the other one has hardly moved. With a rate for each, both arrive.",
)

# %% [markdown]
# Which rate is right for a code? Look at the curvature. Differentiate once more, and you get the **Hessian**, the matrix of second derivatives. For code $k$
# it is $2 n_k I$, and between two codes it is zero:


# %% tags=["nbval-check-output"]
def summed_loss(two: Tensor) -> Tensor:
    """two: (2, 2), a row a code."""
    return (popular - two[0]).square().sum() + (rare - two[1]).square().sum()


hessian = torch.autograd.functional.hessian(summed_loss, first)  # (2, 2, 2, 2)
for line in hessian.reshape(4, 4).round().int().tolist():
    print(line)

# %% [markdown]
# **Newton's method** divides the gradient by the curvature: $2\,(n_k e_k - s_k) / (2 n_k) = e_k - s_k/n_k$. From wherever a code is, one such step takes it to
# its mean. That is the second half of k-means, assign and then take means: k-means is Newton's method (Bottou and Bengio 1995).
#
# So why not set each code to the mean of its batch? Because a batch is not the data. A rare code gets two or three latents of a batch, and the mean of three is
# mostly noise:

# %%
torch.manual_seed(session.seed)
cloud = torch.randn(100_000, 2) + torch.tensor([2.0, 1.0])  # what one code attracts
for size in (3, 30, 300):
    drawn_means = torch.stack(
        [cloud[torch.randint(len(cloud), (size,))].mean(0) for _ in range(200)]
    )
    error = (drawn_means - cloud.mean(0)).square().sum(1).mean().sqrt()
    print(f"mean of {size:>3} latents: off by {error:.3f}")

# %% [markdown]
# Nor can we take the mean over all the data, since the encoder learns, and all latents move at every step. What we want is a mean over *many batches*, in which
# those of long ago count less: an **exponential moving average** (EMA).
#
# ## Build: counts and sums
# An average of what? Of the batches' means $s_k/n_k$, as one might think? Let a code get 99 latents at 0 from one batch, one at 1 from the next, and so on. The
# mean of all of them is 0.01.

# %% tags=["nbval-check-output"]
average_of_means = average_count = average_sum = 0.0
for step in range(2000):
    count, total = (99, 0.0) if step % 2 else (1, 1.0)
    average_of_means = 0.99 * average_of_means + 0.01 * total / count
    average_count = 0.99 * average_count + 0.01 * count
    average_sum = 0.99 * average_sum + 0.01 * total
print(f"average of means           {average_of_means:.2f}")
print(f"average sum / average count {average_sum / average_count:.2f}")

# %% [markdown]
# An average of means gives the batch with one latent as much weight as the batch with 99. So average counts and sums, and divide last.
#
# Most published code gathers the two with a one-hot matrix: N × K numbers for N latents, with a 1 where latent $i$ chose code $k$. Look at its size:

# %% tags=["nbval-check-output"]
N_big, K_big, D_big = 16_384, 8_192, 64
one_hot = 4 * N_big * K_big / 2**20
needed = 4 * K_big * (D_big + 1) / 2**20
print(f"one-hot matrix: {one_hot:.0f} MiB, of which {1 - 1 / K_big:.2%} are zeros")
print(f"counts and sums: {needed:.1f} MiB")

# %% [markdown]
# ### Exercise 5.1 · counts and sums  (easy, 10 minutes)
# From vectors (N, D) and the index of each one's code (N,): the counts (K,) and sums (K, D), both in the vectors' dtype, **without** a matrix of N × K
# numbers (the check watches for one). A code that nothing chose has count 0 and sum 0.
#
# <details><summary>Hint 1</summary><code>torch.bincount(…, minlength=…)</code> counts how often each whole number occurs.</details>
# <details><summary>Hint 2</summary><code>sums[indices] += vectors</code> looks right, and is wrong: where an index repeats, only one vector is kept. What adds
# them all up is
# <code>sums.index_add_(0, indices, vectors)</code>.</details>


# %%
def code_statistics(
    vectors: Tensor, indices: Tensor, num_codes: int
) -> tuple[Tensor, Tensor]:
    """vectors: (N, D), indices: (N,) -> counts (K,), sums (K, D)."""
    ### BEGIN SOLUTION
    counts = torch.bincount(indices, minlength=num_codes).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1])
    sums.index_add_(0, indices, vectors)  # vector i is added to row indices[i]
    return counts, sums
    ### END SOLUTION


code_statistics = check(code_statistics)

# %% tags=["nbval-check-output"]
z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [5.0, 1.0]])
k = torch.tensor([0, 0, 2, 0])
n, s = code_statistics(z, k, 4)
wrong = torch.zeros(4, 2)
wrong[k] += z  # three vectors for row 0: one of them stays
print("counts", n.tolist(), "  sums", s.tolist())
print("row 0 of sums[k] += z holds one vector only:", wrong[0].tolist() in z.tolist())

# %% [markdown]
# ## Build: from averages to a step
# Keep two moving averages for each code: $N_k$ of its count and $m_k$ of its sum. (N alone stays the number of latents.) The code is their ratio (van den
# Oord et al. 2017, appendix A.1, equations 6 to 8):
#
# $$N_k' = \gamma N_k + (1-\gamma)\, n_k, \qquad m_k' = \gamma m_k + (1-\gamma)\, s_k, \qquad e_k' = \frac{m_k'}{N_k'} .$$
#
# A prime marks the value after the batch. The **decay** $\gamma$ is the weight of the past: at each step, everything seen before counts $\gamma$ times as much.
# So the code is the mean of *all* latents that ever chose it, each weighted by $\gamma$ to the power of its age.
#
# Now write this as a step from the old code. Put $N_k e_k$ for $m_k$, and $N_k' - (1-\gamma)\,n_k$ for $\gamma N_k$, which is the first equation read
# backwards:
#
# $$\begin{aligned}
# e_k' &= \frac{\gamma N_k e_k + (1-\gamma)\, s_k}{N_k'}
#       = \frac{\bigl(N_k' - (1-\gamma)\, n_k\bigr)\, e_k + (1-\gamma)\, s_k}{N_k'} \\[4pt]
#      &= e_k + \frac{1-\gamma}{N_k'}\,\bigl(s_k - n_k e_k\bigr)
#       = e_k + \underbrace{\frac{(1-\gamma)\, n_k}{N_k'}}_{\rho_k}\,\Bigl(\frac{s_k}{n_k} - e_k\Bigr).
# \end{aligned}$$
#
# Each code goes a part $\rho_k$ of the way to the mean of its new latents. Read three things off it:
#
# * **A code that nothing chose stays where it is.** Its $n_k$ and $s_k$ are zero, so the bracket is zero.
# * **A code chosen equally often all along** has $n_k = N_k$, so $\rho_k = 1 - \gamma$: with $\gamma = 0.99$ it goes a hundredth of the way.
# * **The first time**, $N_k = 0$ and $N_k' = (1-\gamma)\,n_k$, so $\rho_k = 1$: the code jumps onto the mean of its first latents.
#
# The sum $m_k$ has gone from the formula. The code and its count are the whole state.
#
# ### k-means on a stream
# Suppose that nothing fades: $N_k' = N_k + n_k$. Then a code goes the part $n_k/N_k'$ of the way, and it is always the plain mean of all the latents it ever got,
# though none of them is stored. This is **online k-means** (Bottou and Bengio 1995; by batches, for data too large for memory: Sculley 2010). Here is one code,
# and one latent at a time:

# %% tags=["nbval-check-output"]
stream = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
online = torch.zeros(2)
for seen, latent in enumerate(stream, start=1):
    online = online + (latent - online) / seen  # n = 1, N' = seen
print("the mean of all 300:", torch.allclose(online, stream.mean(0), atol=1e-5))

# %% [markdown]
# EMA is online k-means that forgets.
#
# ### It is gradient descent after all
# One step of plain SGD with learning rate $\eta$ on the *summed* codebook loss gives $e_k + 2\eta\,(s_k - n_k e_k)$. Compare this with the EMA step. They are
# the same if each code has its own rate
#
# $$\eta_k = \frac{1-\gamma}{2 N_k'} .$$
#
# You know the $2N_k'$: it is the curvature $2 n_k$, averaged over batches like everything else. EMA divides the batch's gradient by this average curvature, and
# goes $1-\gamma$ of that way: a **stochastic Newton step**.
#
# Is it really the same? Take fifty batches, five codes, and torch's own SGD with a parameter group for each code. The last code is chosen in the first ten
# batches only.


# %% tags=["nbval-check-output"]
def ema_by_hand(e: Tensor, N: Tensor, n: Tensor, s: Tensor, decay: float):
    """The last line of the derivation, with N' > 0: nothing else."""
    N = decay * N + (1 - decay) * n
    return e + ((1 - decay) / N)[:, None] * (s - n[:, None] * e), N


def largest_difference(
    decay: float = 0.9,
    reduce: str = "sum",
    momentum: float = 0.0,
    one_rate: bool = False,
) -> float:
    """Between 50 EMA steps and 50 SGD steps on the same batches, in float64."""
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    N = torch.zeros(5, dtype=torch.float64)
    codes = [nn.Parameter(row.clone()) for row in e]
    sgd = torch.optim.SGD([{"params": [c]} for c in codes], lr=1.0, momentum=momentum)
    worst = 0.0
    for step in range(50):
        z = torch.randn(40, 2, generator=generator, dtype=torch.float64)
        k = torch.arange(40) % (5 if step < 10 else 4)  # fixed: who chose which code
        n, s = code_statistics(z, k, 5)
        e, N = ema_by_hand(e, N, n, s, decay)
        for group, count in zip(sgd.param_groups, N.tolist(), strict=True):
            group["lr"] = (1 - decay) / (2 * (N.mean().item() if one_rate else count))
        loss = (z - torch.stack(codes)[k]).square().sum()
        sgd.zero_grad()
        (loss if reduce == "sum" else loss / z.numel()).backward()
        sgd.step()
        worst = max(worst, (torch.stack(codes) - e).abs().max().item())
    return worst


for name, options in {
    "SGD as derived": {},
    "  the same with decay 0.99": {"decay": 0.99},
    "  the loss a mean": {"reduce": "mean"},
    "  one rate for all codes": {"one_rate": True},
    "  with momentum 0.9": {"momentum": 0.9},
}.items():
    print(f"{name:<28} EMA to twelve digits: {largest_difference(**options) < 1e-12}")

# %% [markdown]
# Equal to twelve digits, and each condition counts: the loss must be the **sum**, each code needs its own rate, and SGD no momentum. So "EMA
# instead of gradient descent" moves no code in another direction. It is another *step size*.
#
# ### How long does a code remember?
# A latent has lost half of its weight after log ½ / log γ steps:

# %% tags=["nbval-check-output"]
for gamma in (0.5, 0.9, 0.95, 0.99, 0.999):
    steps = math.log(0.5) / math.log(gamma)
    print(f"γ = {gamma:<6} half of the past is forgotten in {steps:6.1f} steps")

# %% [markdown]
# A long memory averages more noise away. But when the latents move, the mean of where they were lags behind where they are. So the faster they move, the
# shorter the best memory ([the study](05b_what_does_the_work.ipynb) computes it). Most published code takes $\gamma = 0.99$. Whether that is right here, you
# will see below.
#
# ### Smoothing, and how not to
# In the paper's form, $m_k/N_k$, a code that was never chosen is 0/0. The customary cure is **Laplace smoothing**: add $\varepsilon$ to each count, and scale
# the counts so that their sum stays what it was.
#
# $$\tilde N_k = \frac{N_k' + \varepsilon}{\sum_j N_j' + K\varepsilon} \sum_j N_j' .$$
#
# Then every code is set to $m_k'/\tilde N_k$, **also those that nothing chose**. Watch one of them. It sits at 3.0, with a count of 50 from its better days; by
# now all latents are elsewhere:


# %% tags=["nbval-check-output"]
def smooth(N: Tensor, eps: float) -> Tensor:
    return (N + eps) / (N.sum() + len(N) * eps) * N.sum()


N, m = torch.tensor([50.0, 50.0]), torch.tensor([0.0, 150.0])  # codes at 0 and at 3
for step in range(1, 2001):
    n, s = (
        torch.tensor([100.0, 0.0]),
        torch.tensor([0.0, 0.0]),
    )  # all 100 latents choose code 0
    N, m = 0.99 * N + 0.01 * n, 0.99 * m + 0.01 * s
    if step in (1, 500, 1000, 1500, 2000):
        e, ratio = m / smooth(N, 1e-5), m / N
        print(f"after {step:>4} steps: N = {N[1]:.1e}", end="   ")
        print(f"m/Ñ = {e[1]:.2f}   m/N = {ratio[1]:.2f}")

# %% [markdown]
# From 3.00 to 0.03, with no latent near it and no gradient. Sum and count shrink together, by $\gamma$ a step, and their ratio stays 3. But once $N_k$ is
# below $\varepsilon$, the smoothed $\tilde N_k$ stops at about $\varepsilon$ while $m_k$ goes on shrinking. The code drifts to the origin.
#
# The step form has a cure. Leave alone what was not chosen, and put $\tilde N_k$ in the place of $N_k'$ in $\rho_k$ only. (What is then left for smoothing to
# do? Little: see [the study](05b_what_does_the_work.ipynb).)
#
# ### Exercise 5.2 · the EMA step  (medium, 15 minutes)
# From codebook (K, D), counts $N_k$ (K,), the batch's $n_k$ (K,) and $s_k$ (K, D), and γ and ε: the codebook and counts after the step.
#
# 1. $N_k' = \gamma N_k + (1-\gamma)\,n_k$. These are the new counts, unsmoothed.
# 2. $\tilde N_k$ as above, from $N_k'$. The part of the way is $\rho_k = (1-\gamma)\,n_k/\tilde N_k$, but never more than 1.
# 3. A chosen code goes $\rho_k$ of the way to $s_k/n_k$; a code with $n_k = 0$ stays **to the bit**. Write into none of the arguments.
#
# <details><summary>Hint 1</summary>s/n is 0/0 where n is 0: divide by <code>n.clamp(min=1)</code>, and let <code>torch.where(n[:, None] &gt; 0, …,
# codebook)</code> choose. (ρ of such a code may be 0/0, too.)</details>
# <details><summary>Hint 2</summary><code>rho[:, None]</code> has shape (K, 1) and goes with (K, D).</details>
# <details><summary>Hint 3</summary>Why "never more than 1"? Ñ is smaller than N′ for codes with more than an even share; at the first step, or with a small γ,
# such a code would then shoot past the mean: <code>.clamp(max=1)</code>.</details>


# %%
def ema_step(
    codebook: Tensor,
    counts: Tensor,
    n: Tensor,
    s: Tensor,
    decay: float,
    smoothing: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """codebook (K, D), counts (K,), n (K,), s (K, D) -> codebook (K, D), counts (K,)."""
    ### BEGIN SOLUTION
    counts = decay * counts + (1 - decay) * n
    total = counts.sum()
    smoothed = (counts + smoothing) / (total + len(counts) * smoothing) * total
    rate = ((1 - decay) * n / smoothed).clamp(max=1)[:, None]  # (K, 1)
    mean = s / n.clamp(min=1)[:, None]  # (K, D)
    moved = codebook + rate * (mean - codebook)
    return torch.where(n[:, None] > 0, moved, codebook), counts
    ### END SOLUTION


ema_step = check(ema_step)

# %% tags=["nbval-check-output"]
codes, counts = torch.tensor([[0.0], [3.0]]), torch.tensor([50.0, 50.0])
for _ in range(2000):
    codes, counts = ema_step(
        codes, counts, torch.tensor([100.0, 0.0]), torch.zeros(2, 1), 0.99
    )
print(f"after 2000 steps that nothing chose it: {codes[1].item()}, count {counts[1]:.1e}")

# %% [markdown]
# ## Build: dead codes, and how to raise them
# The code at 3.0 keeps its place now, and is useless there: nothing chooses it. An average of nothing stays where it is, just as a gradient of nothing does.
# **EMA by itself revives no code.** Here are four clouds and four codes, which all start near the same cloud:


# %% tags=["nbval-check-output"]
def four_clouds(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    corners = torch.tensor([[4.0, 4], [-4, 4], [4, -4], [-4, -4]])
    return corners.repeat_interleave(25, 0) + 0.3 * torch.randn(100, 2, generator=generator)


start = torch.tensor([[5.0, 5], [6.0, 6], [6.5, 7], [7.0, 6.5]])
codes, counts = start, torch.zeros(4)
for step in range(200):
    z = four_clouds(step)
    n, s = code_statistics(z, nearest_code(z, codes), 4)
    codes, counts = ema_step(codes, counts, n, s, 0.9)
print("counts", [round(count) for count in counts.tolist()])
moved = (codes != start).any(1).tolist()
print("code 0 at", [round(number) for number in codes[0].tolist()], "  moved:", moved)

# %% [markdown]
# One code sits between three clouds and takes them all. Two are dead, exactly where they started.
#
# The cure is blunt, and works: **put a dead code onto a latent of the present batch** (Dhariwal et al. 2020, section 3). It is then the nearest code for that
# latent, and in the next batch for its like. Two questions:
#
# * *What is dead?* A code whose count is below a small share of an even one: $N_k$ < `restart_below` · $\sum_j N_j / K$.
# * *With which count does it start again?* With that threshold: just not dead. If the next batch brings it fewer latents than that, its average falls below,
#   and it is moved again.
#
# ### Exercise 5.3 · restart  (medium, 10 minutes)
# The latents to be used are passed in: `candidates`, at least as many as codes are dead. The first dead code goes onto the first candidate, the second onto
# the second. Dead is a code with $N_k$ < `restart_below` · $\sum_j N_j / K$; a restarted code gets that threshold as its count. Give the new codebook and the
# new counts; write into none of the arguments.
#
# <details><summary>Hint 1</summary><code>dead = counts &lt; threshold</code> is a mask (K,), and <code>codebook[dead]</code> are its rows, in
# order.</details>
# <details><summary>Hint 2</summary>Work on <code>codebook.clone()</code> and <code>counts.clone()</code>.</details>


# %%
def restart(
    codebook: Tensor, counts: Tensor, candidates: Tensor, restart_below: float
) -> tuple[Tensor, Tensor]:
    """codebook (K, D), counts (K,), candidates (C, D) -> codebook (K, D), counts (K,)."""
    ### BEGIN SOLUTION
    threshold = restart_below * counts.sum() / len(counts)
    dead = counts < threshold
    codebook, counts = codebook.clone(), counts.clone()
    codebook[dead] = candidates[: int(dead.sum())]
    counts[dead] = threshold
    return codebook, counts
    ### END SOLUTION


restart = check(restart)

# %% tags=["nbval-check-output"]
codes, counts = start, torch.zeros(4)
for step in range(200):
    z = four_clouds(step)
    n, s = code_statistics(z, nearest_code(z, codes), 4)
    codes, counts = ema_step(codes, counts, n, s, 0.9)
    candidates = z[torch.randperm(100, generator=torch.Generator().manual_seed(step))[:4]]
    codes, counts = restart(codes, counts, candidates, 0.1)
print("counts", [round(count) for count in counts.tolist()])
print("codes", sorted([round(a), round(b)] for a, b in codes.tolist()))

# %% [markdown]
# A code in each cloud.
#
# ### A better start: k-means
# Why do codes die in the first place? Look at where they start: the latents of an untrained encoder, and codes drawn as in chapter 03.


# %%
def new_pair() -> tuple[nn.Module, nn.Module]:
    """An untrained encoder and decoder, always the same."""
    torch.manual_seed(session.seed)
    shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}
    return (
        companion.ResNetEncoder(channels, D, **shape),
        companion.ResNetDecoder(channels, D, **shape),
    )


encoder, _ = new_pair()
with torch.no_grad():
    latents = encoder(x_train[: settings.batch_size].cpu()).movedim(1, -1).flatten(0, 2)
drawn = VectorQuantizer(K, D).codebook.detach()
centres, sizes = k_means(latents, K, seed=session.seed)
for name, codes in (("drawn", drawn), ("k-means", centres)):
    chosen = nearest_code(latents, codes).unique()
    print(
        f"codes {name:<8} at {codes.norm(dim=1).mean():.2f} from the origin "
        f"(latents: {latents.norm(dim=1).mean():.2f}), {len(chosen)} of {K} are chosen"
    )

# %% [markdown]
# The latents huddle together, and the codes are strewn around them. The one that happens to be nearest gets everything. k-means on the first batch puts every
# code where latents are. Its counts come with it: $N_k$ is the number of latents that each centre got.
#
# <details><summary>What if the counts are forgotten?</summary>Set the codes from k-means and leave the counts at zero, and the first batches count far too much.
# In the second batch a code goes half of the way to its mean, in the third a third of the way, where 1 − γ was meant.</details>
#
# ## Build: the quantizer
# Now put the parts into one class. `Quantizer`, from the companion, calls `initialise`, `quantize` and `update` in this order, the first and the last in
# *training mode only*. So a lookup sees the codebook as it was before the batch. The state is in **buffers**: tensors that are saved with the model and move
# to its device, and that no optimizer touches.


# %%
class EMAVectorQuantizer(Quantizer):
    """z: (B, D, *spatial) -> Quantized; the codes follow what chose them."""

    def __init__(
        self,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        restart_below: float = 0.02,
        start_from_data: bool = True,
    ):
        super().__init__()
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.restart_below = decay, restart_below
        self.start_from_data = start_from_data
        bound = (3 / dim) ** 0.5
        codes = torch.empty(num_codes, dim).uniform_(-bound, bound)
        self.register_buffer("codebook", codes)
        self.register_buffer("counts", torch.zeros(num_codes))

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        if self.start_from_data and not self.counts.any():  # the very first batch
            codes, counts = k_means(rows(z), self.num_codes)
            self.codebook.copy_(codes)
            self.counts.copy_(counts)

    def quantize(self, z: Tensor) -> Quantized:
        indices = self.encode(z)
        z_q = self.decode(indices)
        commitment = (z - z_q).square().mean()  # the codes are no parameters: no sg needed
        losses = {"commitment": commitment}
        return Quantized(straight_through(z, z_q), indices, 0.25 * commitment, losses)

    @torch.no_grad()
    def update(self, z: Tensor, quantized: Quantized) -> None:
        vectors = rows(z)
        n, s = code_statistics(vectors, quantized.indices.flatten(), self.num_codes)
        codebook, counts = ema_step(self.codebook, self.counts, n, s, self.decay)
        order = torch.randint(len(vectors), (self.num_codes,), device=vectors.device)
        codebook, counts = restart(codebook, counts, vectors[order], self.restart_below)
        self.codebook.copy_(codebook)
        self.counts.copy_(counts)

    def encode(self, z: Tensor) -> Tensor:
        return nearest_code(rows(z), self.codebook).reshape(len(z), *z.shape[2:])

    def decode(self, indices: Tensor) -> Tensor:
        return functional.embedding(indices, self.codebook).movedim(-1, 1)


def rows(z: Tensor) -> Tensor:
    """(B, D, *spatial) -> (B·T, D)."""
    return z.movedim(1, -1).flatten(0, -2)


# %% [markdown]
# ## Train and look
# Train the VQ-VAE of chapter 04 three times, from the same weights and with the same batches: with its gradient codebook, and twice with yours, with the
# customary decay of 0.99 and with 0.9. Every few steps the codebook is written down, so that its way can be drawn.


# %%
def train_with(quantizer: nn.Module):
    """A VQ-VAE trained around the quantizer; the codebooks it had on the way, and where."""
    encoder, decoder = new_pair()
    model = companion.VQVAE(encoder, quantizer, decoder)
    path, steps = [], 0

    def note(module: nn.Module, inputs: tuple, output: Quantized) -> None:
        nonlocal steps
        if module.training:
            if steps % 5 == 0:
                path.append(module.codebook.detach().cpu().clone())
            steps += 1

    hook = quantizer.register_forward_hook(note)
    history = companion.fit(
        model,
        train,
        validation=test,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=session.seed,
        device=device,
    )
    hook.remove()
    return model, history, torch.stack(path)  # (moments, K, D)


makers = {
    "gradients": lambda: VectorQuantizer(K, D),
    "averages, γ = 0.99": lambda: EMAVectorQuantizer(K, D, decay=0.99),
    "averages, γ = 0.9": lambda: EMAVectorQuantizer(K, D, decay=0.9),
}
looks = {
    "gradients": ("o-", plots.COLOURS["train"]),
    "averages, γ = 0.99": ("^:", plots.COLOURS["third"]),
    "averages, γ = 0.9": ("s--", plots.COLOURS["validation"]),
}
models, histories, paths = {}, {}, {}
for name, make in makers.items():
    print(f"codes moved by {name}")
    torch.manual_seed(session.seed)
    models[name], histories[name], paths[name] = train_with(make())

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(9, 3.2, columns=2)
for name, (style, colour) in looks.items():
    logged = histories[name].rows
    epoch = [row["epoch"] for row in logged]
    lost = [row["validation_reconstruction"] / variance for row in logged]
    perplexities = [row["validation_perplexity"] for row in logged]
    left.plot(epoch, lost, style, color=colour, label=name)
    left.plot(
        epoch, [row["reconstruction"] / variance for row in logged],
        color=colour, linewidth=0.7, alpha=0.6,
    )  # fmt: skip
    right.plot(epoch, perplexities, style, color=colour, label=name)
left.set(
    xlabel="epoch", ylabel="distortion", yscale="log",
    title="What is lost (thin lines: while training)",
)  # fmt: skip
ticks = (0.05, 0.1, 0.2, 0.4)
left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
left.minorticks_off()
right.axhline(K, color=plots.COLOURS["reference"], linestyle=":")
right.set(
    xlabel="epoch", ylabel="held-out perplexity", ylim=(0, K * 1.05),
    title=f"How many codes carry the load (dotted: all {K})",
)  # fmt: skip
left.legend(fontsize=8)
plots.show(
    fig,
    alt="Left: distortion over the epochs, held out and in training, for codes moved by "
    "gradients and by averages with two decays; all fall. Right: held-out "
    "perplexities. That of the short memory is far above the others from the first "
    "epochs on; that of the long memory stays near that of the gradients until it "
    "rises at the end.",
)

# %%
short = {
    "gradients": "gradient",
    "averages, γ = 0.99": "ema_99",
    "averages, γ = 0.9": "ema_90",
}
usage = {name: CodeUsage(K).update(model.encode(x_test)) for name, model in models.items()}
for name, history in histories.items():
    lost = distortion(history.last["validation_reconstruction"], variance)
    session.expect(f"distortion_{short[name]}", lost)
    session.expect(f"perplexity_{short[name]}", usage[name].perplexity)
    print(f"usage_{short[name]} = {usage[name].usage:.2f}")

# %% [markdown]
# Where did the codes go? The latents have D = 8 dimensions. The picture shows the two in which they vary most.

# %% tags=["hide-input", "cover"]
fig, axes = plots.figure(10, 4.3, columns=3, sharex=True, sharey=True)
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    with torch.no_grad():
        z = rows(models[name].encoder(x_test)).cpu()
    centre = z.mean(0)
    _, _, directions = torch.linalg.svd(z - centre, full_matrices=False)
    dots, ways = (z - centre) @ directions[:2].T, (path - centre) @ directions[:2].T
    some = torch.randperm(len(dots), generator=torch.Generator().manual_seed(0))[:3000]
    ax.scatter(
        *dots[some].T.numpy(),
        s=2,
        color="#AAAAAA",
        linewidths=0,
        label="latents at the end",
    )
    colour, used = looks[name][1], (usage[name].counts > 0).cpu()
    for number, way in enumerate(ways.movedim(1, 0)):  # (moments, 2), one a code
        jumps = (way[1:] - way[:-1]).norm(dim=1) > 0.4 * dots.std()
        way = way[1:].where(~jumps[:, None], torch.nan)
        ax.plot(
            *way.T.numpy(), color=colour, linewidth=0.8, alpha=0.6,
            label="" if number else "way of a code (a gap: restarted)",
        )  # fmt: skip
    end = ways[-1]
    crosses = {"s": 40, "marker": "X", "edgecolors": "white", "linewidths": 0.6}
    rings = {"s": 24, "facecolors": "none", "edgecolors": colour}
    ax.scatter(*end[used].T.numpy(), color=colour, zorder=3, label="code in use", **crosses)
    ax.scatter(*end[~used].T.numpy(), zorder=3, label="dead code", **rings)
    ax.set_title(f"{name}:\n{int(used.sum())} of {K} codes in use", fontsize=10)
    ax.set_xlabel("first principal direction")
axes[0].set_ylabel("second")
handles, labels = axes[0].get_legend_handles_labels()
legend = fig.legend(
    handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False
)
legend.legend_handles[0].set_sizes([20])  # the dots of the latents are too small to be seen
plots.show(
    fig,
    alt="Three maps of the latents of a trained model as grey dots, with the paths of the"
    " codes over training. Moved by gradients, many codes end as rings that nothing "
    "uses. Moved by averages with a long memory, all are used but stay crowded in the"
    " middle. With a short memory they spread over all the dots.",
)

# %% [markdown]
# * **Gradients.** Codes that are chosen travel far. The rings are dead codes: nearly always left out, they hardly have a line.
# * **γ = 0.99** forgets half in 69 steps, and in profile `quick` the training has 468. k-means gave every code a count, and one with an even share needs
#   390 steps without a latent until it counts as dead. So most restarts come at the end, where the perplexity rises.
# * **γ = 0.9** forgets half in seven steps, and revives a code after 38. The codes keep up with the latents.
#
# [The study](05b_what_does_the_work.ipynb) follows the restarts and the lag step by step.
#
# ## Which part does the work?
# One training proves little: the one with gradients above reached 17, not 11. Here are five seeds of each way; the command makes them again. (γ = 0.9 is not
# among them.) Distortion is lower for better pictures; behind each ± is the standard deviation over the seeds.

# %% tags=["hide-input"]
table = results("ema_codebooks")
print(table.command)
kinds = {
    "gradient": "gradients",
    "EMA, neither": "1 averages alone",
    "EMA, no restarts": "2 averages, k-means",
    "EMA, no k-means": "3 averages, restarts",
    "EMA": "4 all three, γ = 0.99",
    "EMA, γ = 0.95": "  all three, γ = 0.95",
    "EMA, no decay": "  all three, γ = 0",
}
print(f"\n{'':<25}perplexity      distortion")
for kind, words in kinds.items():
    where = {"kind": kind, "num_codes": 64, "dim": 8}
    cells = [
        f"{table.mean(number, **where):{form}} ± {table.spread(number, **where):{form}}"
        for number, form in (("perplexity", ".0f"), ("distortion", ".3f"))
    ]
    print(f"{words:<25}{cells[0]:<16}{cells[1]}")

# %% [markdown]
# How were your four guesses? Averages alone use no more codes than gradients do. It is the helpers that fill the codebook, and of the two, with γ = 0.99, it
# is mostly the restarts. (k-means lowers the distortion neither alone nor beside the restarts, which its counts delay.)
#
# Then look at the last row. With γ = 0 there is *no* moving average: each code is set to the mean of what the last batch sent to it. By the distortion,
# the memory that gave the method its name is best left out here! (Not by the perplexity: more even use need not mean better pictures.)
#
# How can that be? A batch has 128 · 49 = 6,272 latents, 98 for each code, so there is little noise that a memory could average away. And a long memory lags.
# [The study](05b_what_does_the_work.ipynb) measures by how much: with γ = 0.99, a third of the squared error in the first epoch comes from codes off their
# means, later a few per cent. Whether that is the whole reason, we did not test.
#
# This is no law. With more codes than latents in a batch, the mean of a batch is mostly noise, and γ = 0 presumably a poor choice. What carries over is the
# question: how many latents a step does a code get, and how fast do they move?
#
# ## Proof: what you built is what the companion has
# The same first codes, the same twenty batches, no restarts (they are random): two quantizers, step by step. Then your three functions on their own.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = companion.EMAVectorQuantizer(7, 3, decay=0.8, init="uniform", restart_below=0.0)
ours = EMAVectorQuantizer(7, 3, decay=0.8, restart_below=0.0, start_from_data=False)
ours.codebook.copy_(theirs.codebook)

numbers = {}
for name, quantizer in (("notebook", ours), ("companion", theirs)):
    for step in range(20):
        z = (torch.linspace(0, 30, 2 * 3 * 4 * 5) + step).sin().reshape(2, 3, 4, 5)
        out = quantizer(z.requires_grad_())
    ((out.z_q * z.detach().cos()).sum() + out.loss).backward()
    numbers[name] = {
        "codebook": quantizer.codebook.flatten().tolist(),
        "counts": quantizer.counts.tolist(),
        "indices": out.indices.flatten().tolist(),
        "z_q": out.z_q.flatten().tolist(),
        "loss": out.loss.item(),
        "gradient": z.grad.flatten().tolist(),
    }
for part, values in numbers["notebook"].items():
    a, b = torch.tensor(values), torch.tensor(numbers["companion"][part])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    print(f"{part:<9} agree:", True)
glue("proof.ema_quantizer", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
z, e = (
    torch.linspace(0, 9, 24).sin().reshape(12, 2),
    torch.linspace(0, 5, 10).cos().reshape(5, 2),
)
N = torch.tensor([3.0, 0.0, 8.0, 0.1, 2.0])
k = nearest_code(z, e)


def three_parts(statistics, step, revive) -> dict[str, list[float]]:
    n, s = statistics(z, k, 5)
    codes, counts = step(e, N, n, s, 0.9, 0.5)
    revived, restarted = revive(codes, counts, 10 + z, 0.25)
    return {
        "code_statistics": [*n.tolist(), *s.flatten().tolist()],
        "ema_step": [*codes.flatten().tolist(), *counts.tolist()],
        "restart": [*revived.flatten().tolist(), *restarted.tolist()],
    }


q = companion.quantizers
here = three_parts(code_statistics, ema_step, restart)
there = three_parts(q.code_statistics, q.ema_step, q.restart)
for part, values in here.items():
    a, b = torch.tensor(values), torch.tensor(there[part])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"{part} disagrees")
    print(f"{part:<15} agrees: True")
glue("proof.ema_parts", here, display=False)

# %% [markdown]
# ## Play: codes that chase clouds
# Six clouds turn anticlockwise about the origin; eight codes start in a corner. First without restarts: how many clouds find a code? Then turn "restart
# below" up to 0.1. Then choose a γ that is too large: the codes lag behind, and are taken over by the next cloud.

# %%
explorers.moving_clouds()

# %% [markdown]
# For readers of the printed page: three settings after sixty steps (distance: from point to code, on average).

# %% tags=["hide-input"]
fig, axes = plots.figure(10, 3.7, columns=3)
for ax, (gamma, share) in zip(axes, ((0.9, 0.0), (0.9, 0.25), (0.98, 0.25)), strict=True):
    distance, used = explorers.draw_chase(ax, steps=60, decay=gamma, restart_below=share)
    ax.set_title(
        f"γ = {gamma}, restart below {share}:\n{used} in use, distance {distance:.2f}",
        fontsize=10,
    )
    ax.set_xlabel("first dimension")
axes[0].set_ylabel("second")
axes[2].legend(loc="center", fontsize=8)
plots.show(
    fig,
    alt="Three pictures of six clouds of points on a circle and eight codes with their "
    "tracks. Without restarts three codes stay dead in the corner where they started "
    "and some clouds share a code. With restarts all eight are in use, most of them "
    "inside a cloud. With a larger decay they trail behind the clouds, which turn "
    "anticlockwise.",
)

# %% [markdown]
# ## What breaks, and why
# **Looking in training mode.** The codebook moves in `forward`, not in an optimizer's step. So it can learn while you only mean to *look*, and
# `torch.no_grad()` does not stop it. Look at eight test images two hundred times, with the quantizer in eval mode and in training mode:

# %%
trained = models["averages, γ = 0.9"]
few = x_test[:8]
looked = {}
for mode in ("eval", "train"):
    model = copy.deepcopy(trained).eval()
    model.quantizer.train(mode == "train")
    before = model.quantizer.codebook.clone()
    with torch.no_grad():
        for _ in range(200):
            model(few)
        model.eval()
        looked[mode] = mse(model(x_test).reconstruction, x_test).item() / variance
    moved = int((model.quantizer.codebook != before).any(1).sum())
    print(f"quantizer in {mode} mode: {moved} codes moved")
    session.expect(f"looked_at_in_{mode}_mode", looked[mode])
print(f"distortion: {looked['train'] / looked['eval'] - 1:+.0%} by looking")

# %% [markdown]
# The codes went to where these eight images have their latents. Encoder and decoder were not told.
#
# **Forgetting the buffers.** A plain tensor as an attribute is not in the state dict, so it is neither saved nor moved to the GPU. If the codes are saved and
# the counts are not, training goes on from counts of zero, and the first step jumps all the way ($\rho_k = 1$) to the mean of one batch. (Your class
# would even rerun k-means.)


# %% tags=["nbval-check-output"]
class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.codebook = torch.zeros(4, 2)


print("in the checkpoint of Forgetful:", list(Forgetful().state_dict()))
print("in yours:", list(EMAVectorQuantizer(4, 2).state_dict()))

codes, counts = torch.tensor([[0.0, 0.0]]), torch.tensor([10.0])  # after long training
batch = torch.tensor([[1.0, 1.0]]).expand(10, 2)  # one unusual batch of ten
n, s = code_statistics(batch, torch.zeros(10).long(), 1)
for name, N in (("saved", counts), ("forgotten", torch.zeros(1))):
    after, _ = ema_step(codes, N, n, s, 0.99)
    print(
        f"counts {name:<10} the code after one step:",
        [round(v, 2) for v in after[0].tolist()],
    )

# %% [markdown]
# **Statistics not summed over processes.** Train on two GPUs, and each process sees half of every batch. Torch averages the gradients for you, but not what you
# count into buffers. What has to travel are counts and **sums**: they add up to those of the whole batch; means, and codes, do not.

# %% tags=["nbval-check-output"]
z = torch.arange(24.0).reshape(12, 2)
k = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1])  # six in each process
e, N = torch.tensor([[5.0, 5.0], [15.0, 15.0]]), torch.tensor([6.0, 6.0])
whole = code_statistics(z, k, 2)
halves = [code_statistics(z[part], k[part], 2) for part in (slice(0, 6), slice(6, 12))]
summed = [a + b for a, b in zip(*halves, strict=True)]
print(
    "summed, the halves are the whole:",
    all(torch.equal(a, b) for a, b in zip(summed, whole, strict=True)),
)

alone = [ema_step(e, N, *half, 0.5, 0.0)[0] for half in halves]
together = ema_step(e, N, *whole, 0.5, 0.0)[0]
print("code 0: process A", [round(v, 2) for v in alone[0][0].tolist()], end="  ")
print("process B", [round(v, 2) for v in alone[1][0].tolist()], end="  ")
print("both together", [round(v, 2) for v in together[0].tolist()])
mean = (alone[0] + alone[1]) / 2
print("averaging the two codebooks gives the same:", torch.allclose(mean, together))

# %% [markdown]
# <details><summary>What torch does with buffers, and what the companion does</summary>By default <code>DistributedDataParallel</code> overwrites all buffers with
# those of process 0 before each forward: the codebook learns from one half of every batch, and the other half is lost without a word. With that broadcast off,
# each process ends with a codebook of its own, and the averaged gradients refer to two different codebooks. The companion sums counts and sums with
# <code>all_reduce</code> before the step, and draws candidates and k-means centres from the latents of all processes with one seed; its tests run two real
# processes and compare every bit.</details>
#
# **A restart that is undone.** Restart a code in the paper's form, where the state is $m$ and $N$, and leave these two as they are. The next division brings the
# old place back. In the step form there is no $m$; restart after the step.

# %% tags=["nbval-check-output"]
N, m = torch.tensor([50.0, 0.01]), torch.tensor([[0.0], [0.2]])  # code 1 at 20, dead
e = m / N[:, None]
e[1] = 1.0  # restarted, onto a latent
n, s = torch.tensor([100.0, 0.0]), torch.zeros(2, 1)  # of the lookup before the restart
N, m = 0.99 * N + 0.01 * n, 0.99 * m + 0.01 * s
print(f"m/N after the restart: {(m / N[:, None])[1].item():.1f}")
codes, counts = torch.tensor([[0.0], [20.0]]), torch.tensor([50.0, 0.01])
codes, counts = ema_step(codes, counts, n, s, 0.99)  # first the step
codes, counts = restart(codes, counts, torch.ones(1, 1), 0.02)  # then the restart
print(f"your step, then your restart: {codes[1].item():.1f}, count {counts[1]:.2f}")

# %% [markdown]
# ## Pen and paper
# 1. A code had an even share ($N_k = \sum_j N_j/K$), and from now on nothing chooses it. With `restart_below` = 0.02 and γ = 0.99 it is restarted after 390
#    steps, as said above. Why? How many are they for γ = 0.95? Such a code is left behind in the first epoch of a run of 468 steps: when is it back?
# 2. Memory allows only half of a batch at a time, so every optimizer step is made of two forwards, and each of them is an EMA update. Which decay γ′ forgets
#    as fast, per optimizer step, as γ did before? What is still different?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. Its count falls by γ a step while the sum stays, so it is dead when γ^t &lt; 0.02: t &gt; log 0.02 / log 0.99 = 389.2, thus after 390 steps; for γ =
#    0.95 after 77. With γ = 0.99 a code that k-means gave an even share and that the encoder leaves behind in the first epoch comes back in the last one at
#    the earliest, too late to learn much: γ and `restart_below` have to fit the length of training.
# 2. γ′² = γ, so γ′ = √γ (0.995 for 0.99). Different is that the second half is looked up with codes that have moved already.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * For fixed choices the best code is the mean of its latents. An EMA of counts and sums is that mean over a stream, with a memory that fades.
# * As a step: $e_k' = e_k + \frac{1-\gamma}{N_k'}(s_k - n_k e_k)$. It is plain SGD with a rate for each code: $1-\gamma$ of a Newton step.
# * A code that nothing chose must not move. Smoothing belongs in the rate of those that were chosen.
# * An average alone revives no code. k-means puts codes where latents are, restarts bring back those that are left behind.
# * How long to remember depends on how many latents a code gets and how fast they move.
# * Codebook and counts are state: in buffers, in the checkpoint, summed over processes, changed in training mode only.
#
# **Further.** The study beside this chapter, [what does the work?](05b_what_does_the_work.ipynb), has the ablation, codes of length 1 and of few dimensions
# (with an exercise), and tests what a report claims of EMA. Or set `restart_below=0.1`: which codes are restarted, and how often?
#
# **References.** L. Bottou, Y. Bengio: *Convergence Properties of the K-Means Algorithms*, 1995. D. Sculley: *Web-Scale K-Means Clustering*, 2010 (algorithm
# 1). A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (appendix A.1, equations 6 to 8). P. Dhariwal and
# others: *Jukebox*, 2020 (section 3, random restarts).

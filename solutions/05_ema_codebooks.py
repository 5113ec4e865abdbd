# %% [markdown]
# # 05 · EMA codebooks
#
# **The question.** In chapter 04 most of the 64 codes were dead: no latent ever chose them. Can a codebook be moved in a better way than by gradients?
# You build one that follows running means of the latents, revive the codes that it leaves behind, and end with this picture of 64 codes on their way
# through training, moved by gradients and by averages of a long and of a short memory:
#
# ![Three maps of the latents of a trained model as grey dots, with the paths of the codes over training drawn on them. Moved by gradients, many codes end
# as rings that nothing uses. Moved by averages with a long memory, all are used but stay crowded in the middle. With a short memory they spread over all
# the dots.](../chapters/pictures/05_ema_codebooks.png)
#
# **Afterwards you can** derive the EMA update and say of which gradient step it is the same; choose its decay; smooth its counts without doing harm; revive
# dead codes; and tell which of these ingredients does the work, from measurements over seeds.
#
# **Needed:** [chapter 03](03_vector_quantisation.ipynb) (nearest code, the two losses, k-means) and [chapter 04](04_vq_vae.ipynb) (the VQ-VAE, perplexity).
# **Time:** about an hour and a half of yours; the computer's is in the table below.

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
from companion.course.results import measured_claims, results
from companion.metrics import CodeUsage, distortion, mse
from companion.quantizers import (
    ProjectedQuantizer,
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
x_test, y_test = test.batch(torch.arange(len(test)))
x_train, _ = train.batch(torch.arange(len(train)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels = train.shape[0]
K, D = settings.num_codes, settings.dim

# %% [markdown]
# ## Predict
# Three things are usually done together and called "EMA": the codes follow **moving averages** instead of gradients; they start from **k-means** on the
# first batch; and codes that hardly anything chooses are **restarted**. With gradients, 64 codes reach a perplexity of 11 (the mean of five seeds). Guess
# the perplexity with
#
# 1. moving averages alone;
# 2. averages and k-means;
# 3. averages and restarts;
# 4. all three.
#
# The answers are measured over five seeds, below.
#
# ## Why not a gradient?
# The codebook loss of chapter 03 is ‖sg[z] − e‖². Take the latents of one batch, keep fixed which code each of them chose, and look at one code e_k: n_k
# latents chose it, and s_k is their sum. Then
#
# $$\frac{\partial}{\partial e_k} \sum_{z \to k} \|z - e_k\|^2 = \sum_{z \to k} 2\,(e_k - z) = 2\,(n_k e_k - s_k),$$
#
# which is zero at e_k = s_k/n_k, **the mean of the latents that chose the code**. Nobody needs an optimizer to find a mean. A chain of small steps with a
# learning rate, which Adam moreover scales by a history of its own, is a long way round to a place that is known. This is the second half of k-means
# (chapter 03): assign, then take means.
#
# So why not simply set e_k to the mean? Because a batch is not the data. A rare code gets two or three latents of a batch, and the mean of three is mostly
# noise:

# %%
torch.manual_seed(session.seed)
cloud = torch.randn(100_000, 2) + torch.tensor([2.0, 1.0])  # what one code attracts
for n in (3, 30, 300):
    means = torch.stack(
        [cloud[torch.randint(len(cloud), (n,))].mean(0) for _ in range(200)]
    )
    error = (means - cloud.mean(0)).square().sum(1).mean().sqrt()
    print(
        f"mean of {n:>3} latents: off by {error:.3f}   (sqrt(2/n) = {(2 / n) ** 0.5:.3f})"
    )

# %% [markdown]
# And k-means over all the data is no way out either, for the data do not hold still: the encoder learns, and its latents move with every step. What is
# wanted is a mean over *many batches*, in which those of long ago count less. That is an exponential moving average (EMA).
#
# ## Build: counts and sums
# All that a batch has to say about the codebook are two things: how many latents chose each code, and their sums. As matrices, with a one-hot matrix H (N, K)
# that has a 1 where latent i chose code k, they are n = Hᵀ1 and s = HᵀZ. Most published code computes them so. Look at the size of H:

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
# <details><summary>Hint 2</summary><code>sums[indices] += vectors</code> looks right, and is wrong: where an index repeats, the last one wins. What adds
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
# Van den Oord et al. (2017, appendix A.1) keep two running averages for each code, of its count and of its sum, and take the code as their ratio (their
# equations 6 to 8):
#
# $$N_k' = \gamma N_k + (1-\gamma)\, n_k, \qquad m_k' = \gamma m_k + (1-\gamma)\, s_k, \qquad e_k' = \frac{m_k'}{N_k'} .$$
#
# Unroll it. With a start from nothing, m_k after t batches is (1−γ) Σ_j γ^{t−j} s_j, N_k likewise, and the factor 1 − γ cancels:
#
# $$e_k = \frac{\sum_j \gamma^{\,t-j}\, s_k^{(j)}}{\sum_j \gamma^{\,t-j}\, n_k^{(j)}},$$
#
# the mean of *all latents that ever chose the code*, each weighted by γ to the power of its age. This is k-means on a stream, with a memory that fades.
#
# Now write the same as a step from the old code. As e_k = m_k/N_k, replace m_k by N_k e_k; then replace γN_k by N_k′ − (1−γ)n_k, which is the first
# equation read backwards:
#
# $$\begin{aligned}
# e_k' &= \frac{\gamma N_k e_k + (1-\gamma)\, s_k}{N_k'}
#       = \frac{\bigl(N_k' - (1-\gamma)\, n_k\bigr)\, e_k + (1-\gamma)\, s_k}{N_k'} \\[4pt]
#      &= e_k + \frac{1-\gamma}{N_k'}\,\bigl(s_k - n_k e_k\bigr)
#       = e_k + \underbrace{\frac{(1-\gamma)\, n_k}{N_k'}}_{r_k}\,\Bigl(\frac{s_k}{n_k} - e_k\Bigr).
# \end{aligned}$$
#
# Each code goes a part r_k of the way to the mean of the latents that chose it. Read three things off it:
#
# * **A code that nothing chose does not move.** n_k = 0 and s_k = 0, so the bracket is zero. Nor is there any m_k to keep: the code and its count are the
#   whole state.
# * **In a steady state** n_k = N_k, so r_k = 1 − γ: one hundredth of the way with γ = 0.99.
# * **The first time**, N_k = 0 and N_k′ = (1−γ)n_k, so r_k = 1: the code jumps onto the mean of its first latents. No bias correction is needed (as Adam
#   needs it), for the ratio corrects itself.
#
# ### It is gradient descent after all
# Compare with the gradient above. One step of plain SGD with learning rate η on the *summed* codebook loss gives
#
# $$e_k - \eta \cdot 2\,(n_k e_k - s_k) = e_k + 2\eta\,(s_k - n_k e_k),$$
#
# and that is the EMA step if the rate is chosen for each code and step as
#
# $$\eta_k = \frac{1-\gamma}{2 N_k'}, \qquad N_k' = \gamma N_k + (1-\gamma)\, n_k .$$
#
# So what EMA brings is no other direction but a **rate that fits**: large for codes that are chosen rarely, small for those with many latents, and right
# from the first step. Here is that claim as a test: fifty batches, five codes, torch's own SGD with a parameter group for each code. The last code is
# chosen in the first ten batches only.


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
    print(f"{name:<28} equal to EMA: {largest_difference(**options) < 1e-12}")

# %% [markdown]
# Equal to twelve digits, and each condition counts: the loss must be the **sum** (with a mean, η would have to be N·D times larger), the rate that of the
# code, the SGD plain. "Fixed assignments" means what both do anyway: look up first, then move. (Nothing in this needs the latents to hold still; if both
# codebooks see the same latents, they stay equal.)
#
# **Often written, not so.** "The codebook is not trained by gradient descent but by EMA" sounds like another principle. It is another *step size*. And one
# of our source reports gives the update as e ← γe + (1−γ)ê, with ê "the current embedding vector". Taken as written that averages the batches' **means**,
# so that a batch in which one latent chose the code weighs as much as one in which a hundred did. Here a code gets, in turn, 99 latents at 0 and one at 1;
# the mean of all of them is 0.01:

# %% tags=["nbval-check-output"]
of_means, e, N = torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1)
for step in range(2000):
    n, s = (
        (torch.tensor([99.0]), torch.zeros(1, 1))
        if step % 2
        else (torch.ones(1), torch.ones(1, 1))
    )
    of_means = 0.99 * of_means + 0.01 * s / n[:, None]
    e, N = ema_by_hand(e, N, n, s, 0.99)
print(f"average of means {of_means.item():.2f}   EMA of sums and counts {e.item():.2f}")

# %% [markdown]
# ### How long does a code remember?
# A latent's weight falls by γ a step, and to one half after log ½ / log γ steps:

# %% tags=["nbval-check-output"]
for gamma in (0.5, 0.9, 0.95, 0.99, 0.999):
    steps = math.log(0.5) / math.log(gamma)
    print(f"γ = {gamma:<6} half of the past is forgotten in {steps:6.1f} steps")

# %% [markdown]
# Long is good against noise and bad against movement. Let one code attract n = 10 latents a batch, of variance 1 in each of two dimensions, from a cloud
# that drifts by v a step. In the steady state the code lags behind by vγ/(1−γ), and its noise has the variance (2/n)·(1−γ)/(1+γ). Both are in the figure,
# as a formula and as a simulation:

# %%
gammas = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995])
fig, ax = plots.figure(7, 3.1)
for v, style, colour in ((0.02, "o", "train"), (0.1, "s", "validation")):
    generator = torch.Generator().manual_seed(session.seed)
    errors = []
    for gamma in gammas.tolist():
        e, centre, line = torch.zeros(2), torch.zeros(2), []
        for step in range(3000):
            centre = centre + torch.tensor([v, 0.0])
            mean = centre + torch.randn(2, generator=generator) / 10**0.5  # of 10 latents
            e = gamma * e + (1 - gamma) * mean
            if step >= 1500:
                line.append((e - centre).square().sum())
        errors.append(torch.stack(line).mean().sqrt().item())
    fine = torch.linspace(0, 0.995, 400)
    exact = (v * fine / (1 - fine)).square() + 0.2 * (1 - fine) / (1 + fine)
    line_x, dots_x = (math.log(0.5) / grid.log() for grid in (fine, gammas))
    ax.plot(line_x, exact.sqrt(), color=plots.COLOURS[colour], label=f"drift {v} a step")
    ax.plot(dots_x, errors, style, color=plots.COLOURS[colour])
ax.set(
    xscale="symlog", xlabel="half-life (steps)", ylabel="distance of code and centre",
    yscale="log", title="A long memory averages more, and lags more",
)  # fmt: skip
ax.legend()
plots.show(
    fig,
    alt="Distance between a code and the centre of its drifting cloud against the "
    "half-life of its memory, for a slow and a fast drift: each curve falls and rises "
    "again, and the faster drift has its lowest point at a shorter half-life. "
    "Simulated dots lie on the curves of the formula.",
)

# %% [markdown]
# The faster the latents move, the shorter the best memory. Early in training they move fast, later hardly at all; 0.99 is a compromise that most published
# code makes, and the ablation below asks whether it is the right one here.
#
# ### Smoothing, and how not to
# In the paper's form a code that was never chosen has N_k = 0 and m_k = 0, and the ratio is 0/0. The customary cure is Laplace smoothing (pretend that each
# code was chosen ε more often, then scale so that the sum is what it was):
#
# $$\tilde N_k = \frac{N_k' + \varepsilon}{\sum_j N_j' + K\varepsilon} \sum_j N_j' .$$
#
# In the paper's form every code is then set to m_k/Ñ_k, **also those that nothing chose**. Watch one of them. It sits at 3.0 with a count of 50 from its
# better days; all latents are elsewhere now:


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
# From 3.00 to 0.03, with no latent near it and no gradient. m_k and N_k shrink together, γ a step, and their ratio would stay 3; but once N_k has shrunk
# below ε, Ñ_k stops at about ε while m_k goes on. The code drifts to the origin, where nobody asked it to be.
#
# In the form of a step there is nothing to drag: let Ñ_k take the place of N_k′ under the rate, and leave alone what was not chosen. What is then left for
# smoothing to do? It slows the jump of a code that is chosen for the first time by a latent or two: with N_k = 0, the rate is (1−γ)n_k/Ñ_k instead of 1.
#
# ### Exercise 5.2 · the EMA step  (medium, 15 minutes)
# From codebook (K, D), counts N (K,), the batch's n (K,) and s (K, D), and γ and ε: the codebook and counts after the step.
#
# 1. N′ = γN + (1−γ)n. These are the new counts, unsmoothed.
# 2. Ñ as above, from N′. The rate is r = (1−γ)n/Ñ, but never more than 1.
# 3. A chosen code goes r of the way to the mean s/n; a code with n = 0 stays **to the bit**. Write into none of the arguments.
#
# <details><summary>Hint 1</summary>s/n is 0/0 where n is 0: divide by <code>n.clamp(min=1)</code>, and let <code>torch.where(n[:, None] &gt; 0, …,
# codebook)</code> choose. (The rate of such a code may be 0/0, too.)</details>
# <details><summary>Hint 2</summary><code>rate[:, None]</code> has shape (K, 1) and goes with (K, D).</details>
# <details><summary>Hint 3</summary>Why "never more than 1"? Ñ is smaller than N′ for codes with more than an even share; with a small γ the step would then
# shoot past the mean:
# <code>.clamp(max=1)</code>.</details>


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
# The code at 3.0 keeps its place, and it is as useless there as it would be at 0: nothing chooses it. An average of nothing stays where it is, exactly as a
# gradient of nothing does. **EMA by itself revives no code.** Four clouds, four codes, all of which start near one of the clouds:


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
# One code sits between three clouds and takes them all; two are dead, to the bit where they started.
#
# The cure is blunt, and works: **put a dead code onto a latent of the present batch**, where it is the nearest code for at least that one (Dhariwal et al.
# 2020, section 3). Two things have to be said to make it definite:
#
# * *What is dead?* Here: a count below a stated share (`restart_below`) of an even one, N_k < restart_below · ΣN/K. As a share it means the same for every
#   batch size and every K. A code that starts at an even share and is chosen no more is dead after log(restart_below)/log γ steps.
# * *With which count does it start again?* With the threshold: just not dead. So it has one step to attract its share (`restart_below` of an even one), or
#   else it is moved again. From zero it would need restart_below/(1 − γ) of an even share in that step, with the customary 0.02 and 0.99 twice an even one;
#   and with an even share as its count it would hardly move.
#
# ### Exercise 5.3 · restart  (medium, 10 minutes)
# The latents to be used are passed in: `candidates`, at least as many as codes are dead. The first dead code goes onto the first candidate, the second onto
# the second. Dead is a code with N_k < restart_below · ΣN/K; a restarted code gets that threshold as its count. Give the new codebook and the new counts;
# write into none of the arguments.
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
# A code in each cloud. (A restart happens *after* the step and before the next lookup; why the order matters is under "What breaks".)
#
# ### A better start: k-means
# Why do codes die in the first place? Look at where they start. The latents of an untrained encoder, and codes drawn as in chapter 03:


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
# The latents lie together in a corner of the space over which the codes were strewn; a few codes that happen to be nearest get everything. k-means on the
# first batch puts every code where latents are. `companion.quantizers.k_means` is Lloyd's algorithm from chapter 03, run until nothing changes. Its counts
# go with its codes: N_k is set to the number of latents that each centre got, as if this batch had always been seen. (Set the codes and forget the counts,
# and the batches after it count too much: a code goes half of the way to its mean in the second, a third of the way in the next, where 1 − γ was meant.)
#
# The start helps with the first step. Later the encoder moves on, and codes can still be left behind; that is what restarts are for.
#
# ## Build: the quantizer
# Now the parts in one class. `Quantizer`, from the companion, calls `initialise`, `quantize` and `update` in this order, the first and the last **in training
# mode only**; so a lookup always sees the codebook as it was before the batch. The state is in *buffers*: tensors that are saved with the model and move to
# its device, and that no optimizer touches.


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
# The VQ-VAE of chapter 04 three times, from the same weights, with the same batches: with its gradient codebook, and twice with yours, with the customary
# decay of 0.99 and with 0.9. (Against chapter 04 only the first codes are drawn anew. In profile `quick` that alone moves the gradient codebook's perplexity
# from 11 to 17: a reason to ask for five seeds below.) Every few steps the codebook is written down, so that its way can be drawn.


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

# %%
fig, (left, right) = plots.figure(9, 3, columns=2)
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
    title="What is lost (thin: while training)",
)  # fmt: skip
right.axhline(K, color=plots.COLOURS["reference"], linestyle=":")
right.set(
    xlabel="epoch", ylabel="held-out perplexity", ylim=(0, K * 1.05),
    title=f"How many of {K} codes carry the load",
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

# %%
fig, axes = plots.figure(9.6, 2.6, columns=3, sharey=True)
for ax, (name, counted) in zip(axes, usage.items(), strict=True):
    ordered = counted.counts.sort(descending=True).values.cpu()
    ax.bar(range(K), ordered.numpy(), color=looks[name][1])
    ax.set(xlabel="code, most used first", yscale="log")
    used = int((ordered > 0).sum())
    ax.set_title(f"{name}:\n{used} used, perplexity {counted.perplexity:.0f}", fontsize=10)
axes[0].set_ylabel("times chosen")
plots.show(
    fig,
    alt="Three histograms of the codes by how often the test images use them, on a "
    "logarithmic scale. Moved by gradients, a part of the codes is used; moved by "
    "averages with restarts, all of them are, most evenly with the short memory.",
)

# %% [markdown]
# ### Codes on their way
# Where did they go? The latents have D = 8 dimensions; the picture shows them in the two directions in which the latents of the *trained* encoder vary
# most. Grey dots are latents of test images at the end of training. A line is the way of a code (with a gap where it was restarted), a cross where it
# ended, and a ring marks a code that the test images never use.

# %% tags=["cover"]
fig, axes = plots.figure(10, 3.9, columns=3, sharex=True, sharey=True)
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    with torch.no_grad():
        z = rows(models[name].encoder(x_test)).cpu()
    centre = z.mean(0)
    _, _, directions = torch.linalg.svd(z - centre, full_matrices=False)
    dots, tracks = (z - centre) @ directions[:2].T, (path - centre) @ directions[:2].T
    some = torch.randperm(len(dots), generator=torch.Generator().manual_seed(0))[:3000]
    ax.scatter(*dots[some].T.numpy(), s=2, color="#AAAAAA", linewidths=0)
    colour, used = looks[name][1], (usage[name].counts > 0).cpu()
    for track in tracks.movedim(1, 0):  # (moments, 2), one a code
        jumps = (track[1:] - track[:-1]).norm(dim=1) > 0.4 * dots.std()
        track = track[1:].where(~jumps[:, None], torch.nan)
        ax.plot(*track.T.numpy(), color=colour, linewidth=0.8, alpha=0.6)
    end = tracks[-1]
    crosses = {"s": 40, "marker": "X", "edgecolors": "white", "linewidths": 0.6}
    ax.scatter(*end[used].T.numpy(), color=colour, zorder=3, **crosses)
    ax.scatter(*end[~used].T.numpy(), s=24, facecolors="none", edgecolors=colour, zorder=3)
    ax.set_title(f"{name}:\n{int(used.sum())} of {K} codes in use", fontsize=10)
    ax.set(xlabel="first principal direction")
axes[0].set_ylabel("second")
plots.show(
    fig,
    alt="Three maps of the latents of a trained model as grey dots, with the paths of the"
    " codes over training. Moved by gradients, many codes end as rings that nothing "
    "uses. Moved by averages with a long memory, all are used but stay crowded in the"
    " middle. With a short memory they spread over all the dots.",
)

# %% [markdown]
# How far are the latents spread out, and which part of that do the codes miss?

# %%
for name, model in models.items():
    with torch.no_grad():
        z = model.encoder(x_test)
        missed = (z - model.quantizer.decode(model.quantizer.encode(z))).square().mean()
    deviation = rows(z) - rows(z).mean(0)
    deviates = deviation.square().mean().sqrt()
    share = missed / deviation.square().mean()
    print(f"{name:<20} standard deviation of the latents {deviates:.3f},", end=" ")
    print(f"of their variance the codes miss {share:.1%}")

# %% [markdown]
# Read the picture from left to right, with these numbers beside it. What is said of steps is said of profile `quick`, 468 steps.
#
# * **Gradients.** Codes that are chosen travel far. The rings hardly have a line: nothing ever chose them.
# * **γ = 0.99** remembers 69 steps. While the encoder spreads its latents out, the codes are always where the latents were; and as the commitment term holds
#   the latents near their codes, the whole cloud stays smaller than the other two (the scale is the same). Then look at the perplexity above: it rises late,
#   in the last epochs. k-means gave each code a count as if that batch had always been seen, so a code that is left behind counts as dead only
#   log 0.02/log 0.99 = 389 steps later. The restarts are on from the first step, and come at the end.
# * **γ = 0.9** remembers seven steps. The codes keep up, and one that is left behind is back after 38 steps.
#
# That a customary number does not fit a short training is worth knowing: published runs have 10⁵ to 10⁶ steps, and there 69 is nothing.
#
#
# ## The claims, over five seeds
# One pair of trainings proves little. The source report compares the two codebooks with 256 codes of 4 dimensions and says two things: "EMA performed
# better for the VQ case", and that without it the model "sometimes became unstable". We state them so that they can fail:
#
# 1. **Better:** the held-out distortion with EMA is smaller, the 95 % interval of the difference seed by seed (same first weights, same batches) excludes
#    0, *and* the difference is at least 5 % of the gradient codebook's.
# 2. **Steadier:** the standard deviation over the seeds is smaller, by a factor that five seeds can tell from chance (the F-test asks for 3.1); and within
#    a run the held-out curve rises less.
#
# And we ask for *which* EMA. "EMA, neither" has the averages alone, with codes drawn at random and no restarts, so it differs from the gradient codebook in
# nothing but the way codes move; "EMA" has k-means and restarts around it; and "gradient, k-means" is a gradient codebook that starts from the same k-means.
# Behind each ± is the standard deviation over the seeds.

# %%
table = results("ema_codebooks")
print(table.command)
print(f"{'':<36}{'distortion':<18}{'perplexity':<14}{'usage':<7}largest rise")
for kind, k, d in dict.fromkeys((r["kind"], r["num_codes"], r["dim"]) for r in table.rows):
    where = {"kind": kind, "num_codes": k, "dim": d}
    (lost, lost_by), (perplexity, by) = (
        (table.mean(name, **where), table.spread(name, **where))
        for name in ("distortion", "perplexity")
    )
    print(
        f"{kind:<29}K={k:<5}{lost:.4f} ± {lost_by:.4f}   {perplexity:5.1f} ± {by:<5.1f}",
        end="",
    )
    rise = max(0.0, *table.values("largest_rise", **where))
    print(f" {table.mean('usage', **where):.2f}   {rise:.0%}")


# %%
def compare(a: str, b: str, k: int = 64, d: int = 8) -> None:
    """b against a, seed by seed, in units of a's mean distortion; t for five seeds."""
    values = [
        torch.tensor(table.values("distortion", kind=kind, num_codes=k, dim=d))
        for kind in (a, b)
    ]
    change = (values[1] - values[0]) / values[0].mean()
    margin = 2.776 * change.std() / len(change) ** 0.5
    low, high = change.mean() - margin, change.mean() + margin
    better = "better" if high < -0.05 else "worse" if low > 0.05 else "undecided"
    if better == "undecided" and (high < 0 or low > 0):
        better = f"{'less' if high < 0 else 'more'} is lost; 5 % not certain"
    before, after = (float(v.std()) for v in values)
    print(
        f"K={k:<4}{b} against {a}: {change.mean():+.0%} ({low:+.0%} to {high:+.0%})", end=""
    )
    print(f", {better}; spread {before:.4f} → {after:.4f}, ratio {before / after:.1f}")


for k, d in ((64, 8), (256, 4)):
    for kind in ("EMA, neither", "EMA", "EMA, γ = 0.95"):
        compare("gradient", kind, k, d)
compare("gradient", "gradient, k-means")

# %%
fig, axes = plots.figure(9.6, 3.1, columns=3)
kinds = {
    "gradient": ("o-", "train"),
    "EMA, neither": ("v-.", "fourth"),
    "EMA": ("^:", "third"),
    "EMA, γ = 0.95": ("s--", "validation"),
}
for ax, (k, d) in zip(axes, ((64, 8), (256, 4)), strict=False):
    for i, (kind, (style, colour)) in enumerate(kinds.items()):
        where = {"kind": kind, "num_codes": k, "dim": d}
        curves = torch.tensor(table.values("by_epoch", **where))  # (seeds, epochs)
        epochs, middle = range(1, curves.shape[1] + 1), curves.mean(0)
        ax.plot(
            epochs, middle, style, markersize=4, color=plots.COLOURS[colour], label=kind
        )
        last = curves[:, -1]
        reach = [[float(middle[-1] - last.min())], [float(last.max() - middle[-1])]]
        beside = len(epochs) + 0.25 * (i + 1)  # the last epoch, so that none hides another
        ax.errorbar(
            beside, float(middle[-1]), reach, color=plots.COLOURS[colour], capsize=2
        )
    ax.set(xlabel="epoch (bars: five seeds)", ylabel="held-out distortion", yscale="log")
axes[0].set_title("K = 64, D = 8:\nthe short memory loses least", fontsize=10)
axes[1].set_title("K = 256, D = 4:\nno clear difference at the end", fontsize=10)
axes[0].legend(fontsize=8)
for kind, (style, colour) in kinds.items():
    where = {"kind": kind, "num_codes": 256, "dim": 4}
    curves = torch.tensor(table.values("loss_by_epoch", **where))
    axes[2].plot(epochs, curves.mean(0), style, markersize=4, color=plots.COLOURS[colour])
axes[2].set(xlabel="epoch", ylabel="held-out total loss", yscale="log")
axes[2].set_title("K = 256, D = 4:\nthe total loss misleads", fontsize=10)
plots.show(
    fig,
    alt="Held-out distortion over the epochs for a gradient codebook, averages alone and "
    "the whole of EMA with two decays, the mean of five seeds, for 64 codes of 8 and for "
    "256 codes of 4 dimensions, and beside the last epoch the range of the seeds; and "
    "the total losses of the latter, in which EMA has one term fewer.",
)

# %% [markdown]
# **Your four guesses** (K = 64): averages alone 11, with k-means 17, with restarts 38, with both 41. Averages alone use no more codes than gradients do.
#
# **"EMA performed better": it depends on what is meant, and at the report's own setting it is not decided.** Averages alone, the fair comparison of two
# ways to move a code: +2 % at K = 64, +7 % at K = 256, both intervals on both sides of 0. The whole of EMA with the customary decay: −8 % and +7 %,
# undecided as well. Of these three only the one with the shorter memory, γ = 0.95, is better at K = 64, by 21 % (10 to 31 %); at K = 256 with D = 4 there
# is no difference to be seen even then (−2 %, from −12 to +8 %). Chapter 04 found a reason: with fewer dimensions a gradient codebook does better by
# itself.
#
# **"Without it, sometimes unstable": we could not provoke it.** No held-out curve of any run rises from one epoch to the next, but for one of EMA without
# decay, by less than 1 %. The spread over seeds is 1.6 times smaller with EMA at K = 64, 1.3 times larger at K = 256, and for averages alone at K = 64 it
# is 1.5 times larger: nowhere near a factor of 3.1. (The report does not say how its codebook started, nor at which learning rate; and five seeds without
# trouble are no proof that there is none.)
#
# **What the whole of EMA surely does** is to use the codebook: perplexity 188 of 256 against 45, 41 of 64 against 11. It is the helpers that do it, not the
# averages. Whether that is worth anything is another question. Look at "gradient, k-means": three times the perplexity of "gradient", and no gain in
# distortion that five seeds could show (0 %, from −22 to +23 %). A code in use is not yet a code in the right place. (And k-means is no insurance: on MNIST,
# with learning rate 0.003, α = 2 and β = 0.1, three of five gradient codebooks that began there collapsed, to perplexities of 1.5 to 2.3. Which of this
# section's answers carry over to MNIST, and which stay open there, is [measured](../experiments/README.md#ema-against-a-learned-codebook).)
#
# **Often written, not so.** The source report shows the *total* losses of both (its figure 11). They cannot be compared: with gradients the total holds
# reconstruction + codebook + β·commitment, with EMA there is no codebook term in it. On the same latents and codes the first is larger by the quantisation
# error, whoever learns better. (The report's figure 12, the reconstruction loss, is the fair one.) The right-hand picture shows how far it misleads: at
# K = 256 the gradient codebook's total is 1.5 times that of EMA, 0.0081 against 0.0055, and its reconstructions are the better ones, if any.
#
# The report's claims on MNIST, with its latents of 7 × 7 × 4 ([experiments/README.md](../experiments/README.md#ema-against-a-learned-codebook)):

# %% tags=["nbval-check-output"]
measured_claims("EMA against a learned codebook")

# %% [markdown]
# ## What does the work? One ingredient out at a time
# The rows above "K=256" are the ablation. In order of the held-out distortion, against the whole of EMA:

# %%
base = torch.tensor(table.values("distortion", kind="EMA", num_codes=64))
rows_of = []
for kind in table.settings("kind"):
    values = torch.tensor(table.values("distortion", kind=kind, num_codes=64))
    change = (values - base) / base.mean()
    margin = 2.776 * change.std() / len(change) ** 0.5
    rows_of.append((change.mean().item(), margin.item(), kind))
rows_of.sort()
fig, (left, right) = plots.figure(9.6, 3.6, columns=2, sharey=True)
for i, (change, margin, kind) in enumerate(rows_of):
    colour = plots.COLOURS["train" if kind.startswith("gradient") else "validation"]
    left.errorbar(100 * change, i, xerr=100 * margin, fmt="o", color=colour, capsize=3)
    values = table.values("perplexity", kind=kind, num_codes=64)
    right.plot(values, [i] * len(values), "|", color=colour, markersize=12)
left.axvline(0, color=plots.COLOURS["reference"], linestyle=":")
left.set_yticks(range(len(rows_of)), [kind for _, _, kind in rows_of])
left.set(xlabel="distortion against EMA (%), 95 % interval", title="What is lost")
right.set(xlabel="perplexity, a tick a seed", title="What is used", xlim=(0, 64))
plots.show(
    fig,
    alt="For each variant of the codebook the change of held-out distortion against the "
    "whole of EMA in per cent, with 95 % intervals over five seeds, and beside it the"
    " perplexities of the five seeds.",
)

# %% [markdown]
# Some of this is as the literature says, and some is not:
#
# * **The decay matters most, and the customary 0.99 is the worst one tried.** γ = 0.95 loses 14 % less; *no* decay, where a code is set to the mean of what
#   the last batch sent to it, loses 27 % less, with an interval that is far from 0. A batch here has 128 · 49 = 6,272 latents, 98 a code: the mean of 98 is
#   off by a tenth of a standard deviation, which is little beside the lag of the long memory. (The figure on noise and lag said so: the faster the latents
#   move, the shorter the best memory.)
# * **Restarts do the work, if the memory is long:** without them γ = 0.99 loses 19 % more, and perplexity is 17 instead of 41. With no memory they are not
#   needed: the two lowest rows are equal.
# * **k-means at the start does not help here.** Leaving it out loses 9 % *less* (4 to 14 %). A likely reason: it fills the counts, so that no code counts as
#   dead for 389 steps; codes drawn at random start with counts of zero, are dead at the first step, and are put onto latents at once.
# * **Smoothing** with ε = 10⁻⁵ changes nothing that five seeds can tell. In the form of a step there is little left for it to do.
#
# None of it is a law. The training is short, the batch large beside K. With many more steps the latents should come to rest, and a long memory cost little;
# with more codes than latents in a batch the mean of a batch is noise, and no decay would be a poor choice. What carries over is the question to ask: how
# many latents a step does a code get, and how far do they move meanwhile?
#
# ## Codes of length 1, codes of few dimensions
# Two more ways to keep codes alive change the space instead of the rule.
#
# **Length 1.** Scale latents and codes to length 1 (l2-normalisation; Yu et al. 2022, section 3.2). On the unit sphere
#
# $$\|z - e\|^2 = \|z\|^2 + \|e\|^2 - 2\,z\!\cdot\!e = 2 - 2\cos(z, e),$$
#
# so the nearest code is the one at the smallest *angle*. No code can be far from all latents because it is long, or hidden because the encoder pushed its
# outputs outwards. The price: the length of a latent is thrown away.
#
# **Few dimensions.** Look codes up in d < D dimensions: a linear map down, the quantizer, a linear map up. Chapter 04 measured why: with 256 codes the
# gradient codebook reached perplexity 128 in two dimensions and 16 in thirty-two.
#
# ### Exercise 5.4 · lookup by angle  (easy, 5 minutes)
# z (N, D) and codebook (K, D) of any lengths: the index of the code with the largest cosine, (N,).
#
# <details><summary>Hint</summary><code>functional.normalize(v, dim=1)</code> scales rows to length 1; for such rows a matrix product holds the
# cosines.</details>


# %%
def cosine_lookup(z: Tensor, codebook: Tensor) -> Tensor:
    """z: (N, D), codebook: (K, D) -> index of the code at the smallest angle, (N,)."""
    ### BEGIN SOLUTION
    z, codebook = functional.normalize(z, dim=1), functional.normalize(codebook, dim=1)
    return nearest_code(z, codebook)  # or (z @ codebook.T).argmax(1)
    ### END SOLUTION


cosine_lookup = check(cosine_lookup)

# %% tags=["nbval-check-output"]
z, codes = torch.tensor([[1.0, 0.2]]), torch.tensor([[0.1, 0.0], [3.0, 3.0], [0.5, 0.6]])
print("largest product: code", (z @ codes.T).argmax(1).item())
print("smallest distance: code", nearest_code(z, codes).item())
print("smallest angle: code", cosine_lookup(z, codes).item())

# %% [markdown]
# Three questions, three answers. And under EMA one thing more: the mean of vectors of length 1 is *shorter* than 1, so after each step the codes have to be
# scaled to length 1 again (`companion.EMAVectorQuantizer(…, cosine=True)` does):

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = functional.normalize(torch.randn(400, 3) + torch.tensor([1.0, 0, 0]), dim=1)
code, counts = functional.normalize(torch.ones(1, 3), dim=1), torch.zeros(1)
code, counts = ema_step(code, counts, *code_statistics(z, torch.zeros(400).long(), 1), 0.99)
print(
    "length 1 after one step:",
    bool(abs(code.norm() - 1) < 1e-3),
    f" it is {code.norm():.1f}",
)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
inside = companion.EMAVectorQuantizer(16, 2, cosine=True)
low_dimensional = ProjectedQuantizer(inside, 8)  # 8 → 2, the lookup, 2 → 8
out = low_dimensional(torch.randn(4, 8, 7, 7))
print("z_q", tuple(out.z_q.shape), "  codebook", tuple(inside.codebook.shape), end="   ")
print("lengths 1:", bool((inside.codebook.norm(dim=1) - 1).abs().max() < 1e-5))

# %% [markdown]
# The table above has both, alone ("EMA, cosine", "EMA, low-dimensional") and together, with 4 of 8 dimensions. With γ = 0.99, as they were run, none of
# them helps: 13, 15 and 19 % more is lost than by the whole of EMA (only the middle one's interval holds 0), and perplexity is lower, 26 to 32 against 41.
# The length of a latent seems to carry something here, and the map down moves with training, one more thing for a long memory to lag behind. The papers
# that need such codes have thousands of them, in tens or hundreds of dimensions.
#
# ## Proof: what you built is what the companion has
# The same first codes, the same twenty batches, no restarts (they are random): two quantizers, step by step.

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


def all_four(statistics, step, revive, lookup) -> list[float]:
    k = lookup(z, e)
    n, s = statistics(z, k, 5)
    codes, counts = step(e, N, n, s, 0.9, 0.5)
    revived, restarted = revive(codes, counts, 10 + z, 0.25)
    parts = (k.float(), n, s, codes, counts, revived, restarted)
    return [number for part in parts for number in part.flatten().tolist()]


here = all_four(code_statistics, ema_step, restart, cosine_lookup)
q = companion.quantizers
there = all_four(q.code_statistics, q.ema_step, q.restart, q.cosine_lookup)
torch.testing.assert_close(torch.tensor(here), torch.tensor(there), rtol=1e-5, atol=1e-6)
glue("proof.ema_parts", here, display=False)
print("statistics, step, restart and lookup agree:", True)

# %% [markdown]
# ## Play: codes that chase clouds
# Six clouds turn anticlockwise about the origin; eight codes start in a corner. First without restarts: how many clouds find a code? Then turn "restart
# below" up to 0.1. Then choose a γ that is too large: the codes lag behind, and are taken over by the next cloud.

# %%
explorers.moving_clouds()

# %% [markdown]
# For readers of the printed page: three settings after sixty steps.

# %%
fig, axes = plots.figure(10, 3.7, columns=3)
for ax, (gamma, share) in zip(axes, ((0.9, 0.0), (0.9, 0.25), (0.98, 0.25)), strict=True):
    distance, used = explorers.draw_chase(ax, steps=60, decay=gamma, restart_below=share)
    ax.set_title(
        f"γ = {gamma}, restart below {share}:\n{used} in use, distance {distance:.2f}",
        fontsize=10,
    )
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
# **Updating in eval mode.** The codebook moves in `forward`, not in an optimizer's step, so nothing stops it from learning while you only meant to *look*:
# `torch.no_grad()` does not. Say you look at how eight test images come out, two hundred times, with the quantizer in eval mode as it should be, and with
# it left in training mode:

# %%
trained = models["averages, γ = 0.9"]
few = x_test[:8]
for mode in ("eval", "train"):
    model = copy.deepcopy(trained).eval()
    model.quantizer.train(mode == "train")
    before = model.quantizer.codebook.clone()
    with torch.no_grad():
        for _ in range(200):
            model(few)
        model.eval()
        lost = mse(model(x_test).reconstruction, x_test).item() / variance
    moved = int((model.quantizer.codebook != before).any(1).sum())
    print(
        f"quantizer in {mode + ' mode:':<12} {moved:>3} codes moved, distortion {lost:.4f}"
    )
    session.expect(f"looked_at_in_{mode}_mode", lost)

# %% [markdown]
# The codes went to where these eight images have their latents; neither decoder nor encoder was told. What the eight did not use was even restarted onto
# them. In profile `quick` the price is a tenth of the distortion (0.050 → 0.055), and it depends on how often you looked.
#
# **Forgetting the buffers.** An attribute that is a plain tensor is not in the state dict: it is neither saved nor moved to the GPU. And if the codes are
# saved but the counts are not, training goes on from counts of zero, and the first step after loading jumps all the way (r_k = 1) to the mean of one batch:


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
# **Statistics not summed over processes.** Train on two GPUs and each process sees half of every batch. Gradients are averaged for you; what is counted into
# buffers is not. By default torch's `DistributedDataParallel` overwrites all buffers with those of process 0 before each forward: the codebook then learns
# from one half of every batch, and the other half is lost without a word. With that broadcast off, each process ends with a codebook of its own, and the
# averaged gradients refer to two different codebooks. What has to travel are counts and **sums**: they add up to those of the whole batch, means do not. No
# processes are needed to see it:

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
# The companion sums counts and sums with `all_reduce` before the step, and draws candidates and k-means centres from the latents of all processes with one
# seed; its tests run two real processes and compare every bit.
#
# **A restarted code overwritten in the same step.** In the paper's form the state is m and N, and the code is what comes out when they are divided. Put a
# code onto a latent, and leave m and N as they are: the next division brings the old place back.

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
# **Counts that start at zero, and smoothing that drags**, you saw above: m/Ñ took a code from 3.00 to 0.03 though nothing had chosen it.
#
# ## Pen and paper
# 1. A code was chosen evenly (N_k = ΣN/K) and from now on never again. After how many steps is it restarted with `restart_below` = 0.02, for γ = 0.99 and
#    for γ = 0.95? A run of six epochs of 78 steps has 468 of them. What follows?
# 2. Memory allows only half of the batch at a time, so every optimizer step is made of A = 2 forwards, and each of them is an EMA update. Which decay γ′
#    forgets as fast, per optimizer step, as γ did before? What is still different?
# 3. Show that for the lookup by angle it is enough to scale the *codes* to length 1, whether you look for the largest product z·e or for the smallest
#    distance.
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. Its count falls by γ a step while the sum stays, so it is dead when γ^t &lt; 0.02: t &gt; log 0.02 / log 0.99 = 389.2, thus after 390 steps; for γ =
#    0.95 after 77. With γ = 0.99 a code that k-means gave an even share and that the encoder leaves behind in the first epoch comes back in the last one at
#    the earliest, too late to learn much: γ and `restart_below` have to fit the length of training.
# 2. γ′² = γ, so γ′ = √γ (0.995 for 0.99). Different is that the second half is looked up with codes that have moved already.
# 3. Let ê = e/‖e‖. Then z·ê = ‖z‖ cos(z, e), and ‖z‖ &gt; 0 is the same for all codes: the largest product is at the largest cosine. And ‖z − ê‖² = ‖z‖² +
#    1 − 2‖z‖ cos(z, e) is smallest there, too. (The *commitment loss* does need z of length 1.)
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * For fixed choices the best code is the mean of its latents. An EMA of counts and sums is that mean over a stream, with a memory of log ½ / log γ steps.
# * As a step: e_k ← e_k + (1−γ)/N_k′ · (s_k − n_k e_k). It is plain SGD on the summed codebook loss with the rate (1−γ)/(2N_k′) for each code.
# * A code that nothing chose must not move; smoothing belongs under the rate of those that were chosen.
# * An average alone revives no code. k-means puts codes where latents are, restarts bring back those that are left behind.
# * Codebook, counts and draws are state: in buffers, in the checkpoint, summed over processes, touched in training mode only.
#
# **Further experiments.** Train with γ = 0.9 and with 0.999 and draw the ways again. Set `restart_below=0.1` (perplexity?). Which codes are restarted, and
# how often? Put `ProjectedQuantizer(companion.EMAVectorQuantizer(1024, 4, cosine=True), 32)` into the VQ-VAE: does a codebook of 1,024 stay alive? Run the
# committed experiment on MNIST: `python -m experiments.ema_codebooks --data mnist`.
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (appendix A.1, equations 6 to 8). A. Razavi,
# A. van den Oord, O. Vinyals: *Generating Diverse High-Fidelity Images with VQ-VAE-2*, 2019 (section 2.1, equation 3). P. Dhariwal and others: *Jukebox: A
# Generative Model for Music*, 2020 (section 3, random restarts). A. Łańcucki and others: *Robust Training of Vector Quantized Bottleneck Models*, 2020
# (codebooks re-estimated by k-means). J. Yu and others: *Vector-quantized Image Modeling with Improved VQGAN*, 2022 (section 3.2, factorized and
# l2-normalised codes). S. Lloyd: *Least squares quantization in PCM*, 1982 (k-means). M. Ibrahim: *Residual Vector Quantization based VAE* (the report on
# EMA and residual quantisation; its figures 11 and 12).

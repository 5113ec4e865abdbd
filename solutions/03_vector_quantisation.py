# %% [markdown]
# # 03 · Vector quantisation and the stop-gradient
#
# **The question.** How can a vector of real numbers be replaced by one of K codes, and how can a network learn through a choice that
# has no gradient? You end with this picture: on the left the codes and the cells they own, on the right who learns from which loss.
#
# ![Left: latents and codes in the plane, with their cells. Right: which parts learn from which loss.](../chapters/pictures/03_vector_quantisation.png)
#
# **Afterwards you can** find the nearest code without losing digits, say exactly what a stop-gradient does and does not do, write the
# straight-through estimator and the two losses of VQ-VAE, and check for any model which loss moves which weights.
#
# **Needed:** [chapter 01](01_autoencoder.ipynb); from [chapter 02](02_vae.ipynb) the KL divergence. **Time:** about two hours of yours; the
# computer's is in the table below.

# %%
import math
import time
from dataclasses import dataclass

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from companion import plots, quantizers
from companion.course import begin, check, explorers
from companion.course.results import measured_claims
from companion.metrics import distortion, mse
from companion.quantizers import GumbelQuantizer, Quantized, rotation_trick

session = begin("03_vector_quantisation")
settings, device = session.settings, session.device
train, test = session.data()

# %% [markdown]
# ## Predict
# A model has three parts: an encoder, a codebook and a decoder. Its loss has three terms: the **reconstruction** loss compares the
# image with what the decoder makes of the codes; the **codebook** loss pulls each code towards the latents that chose it; the
# **commitment** loss pulls each latent towards its code. Draw a table with a row for each loss and a column for each part.
# In which of the nine fields does the loss move the part? (You measure all nine below. Two of this course's source reports
# disagree about one of them.)
#
# ## Build: the nearest code
# Six latents in the plane, and a codebook of four codes. Which code is nearest to each latent?

# %% tags=["nbval-check-output"]
z = torch.tensor([[0.0, 0.2], [1.9, 0.1], [1.0, 1.6], [0.4, 0.1], [2.2, 0.4], [0.9, 1.2]])
codebook = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.5], [3.0, 3.0]])
distances = (z[:, None, :] - codebook[None, :, :]).square().sum(2)  # (6, 1, 2) - (1, 4, 2)
k = distances.argmin(1)
print("squared distances:", tuple(distances.shape), " nearest codes:", k.tolist())
print("each latent replaced by its code:", codebook[k].tolist())

# %% [markdown]
# That is all of **vector quantisation**: z_q = e_k with k = argminₖ ‖z − e_k‖². Six pairs of real numbers became six whole
# numbers between 0 and 3, and the codebook turns them back into vectors. Code 3 was chosen by nobody.
#
# The points that choose one code are its **Voronoi cell**. The border between two cells is where both codes are equally far away: a straight
# line, halfway between them and at a right angle to the line that joins them.

# %%
generator = torch.Generator().manual_seed(session.seed)
centres = torch.tensor([[-2.0, -1.0], [2.0, -1.5], [0.0, 2.0]])
cloud = centres.repeat_interleave(100, 0)
cloud = cloud + 0.7 * torch.randn(300, 2, generator=generator)  # (300, 2), three clumps
codes = 2 * torch.randn(8, 2, generator=generator)  # (8, 2), anywhere

fig, ax = plots.figure(5, 4)
plots.draw_cells(ax, codes, cloud)
ax.set(
    title="Each code owns the cell of points nearest to it", xlabel="$z_1$", ylabel="$z_2$"
)
plots.show(
    fig,
    alt="Three clumps of points in the plane, eight codes marked by crosses with their "
    "numbers, and straight lines between the cells of the codes. The codes lie "
    "anywhere, some far from all points.",
)

# %% [markdown]
# ### Without the big table
# `z[:, None] - codebook[None]` holds N × K × D differences. The 49 latents of each of 64 images against 8,192 codes of 64 dimensions:
# 1.6 billion numbers, 6.6 GB. But
#
# $$\|z - e\|^2 = \|z\|^2 - 2\, z\cdot e + \|e\|^2,$$
#
# and the middle term for all pairs is *one matrix product* of (N, D) with (D, K), which leaves an N × K table only. The
# first term is the same for every code, so it cannot change which one wins, and may be left out.

# %% tags=["nbval-check-output"]
expanded = z.square().sum(1)[:, None] - 2 * z @ codebook.T + codebook.square().sum(1)
torch.testing.assert_close(expanded, distances)
print("the same distances:", True)
print(
    "the same codes without ‖z‖²:",
    torch.equal(k, (expanded - z.square().sum(1)[:, None]).argmin(1)),
)

# %% [markdown]
# On paper the two are equal. In a computer a float32 keeps 24 binary digits. Move latents *and* codes by the same offset in every
# dimension: no distance changes, but ‖e‖² and z·e grow with the square of the offset, nearly cancel in the sum, and what is left of the distance
# are the digits that rounding had taken away. The share of latents for which the expansion then picks another code than float64 does:


# %%
def expansion(z: Tensor, codebook: Tensor) -> Tensor:
    return (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


def expansion_bf16(z: Tensor, codebook: Tensor) -> Tensor:
    """The product in bfloat16 (8 binary digits), as mixed precision takes it."""
    product = (z.bfloat16() @ codebook.bfloat16().T).float()
    return (codebook.square().sum(1) - 2 * product).argmin(1)


def centred(search):
    """First move both, so that the mean of the codes is at the origin."""
    return lambda z, codebook: search(z - codebook.mean(0), codebook - codebook.mean(0))


searches = {
    "expansion": expansion,
    "torch.cdist": lambda z, codebook: torch.cdist(z, codebook).argmin(1),
    "centred": centred(expansion),
    "bfloat16": expansion_bf16,
    "bfloat16, centred": centred(expansion_bf16),
}
draws = torch.Generator().manual_seed(0)
latents, some_codes = (
    torch.randn(4096, 64, generator=draws),
    torch.randn(512, 64, generator=draws),
)
wrong = {name: [] for name in searches}
offsets = [0, 10, 100, 1000]
for offset in offsets:
    far, far_codes = latents + offset, some_codes + offset
    exact = torch.cdist(
        far.double(), far_codes.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    for name, search in searches.items():
        wrong[name].append(
            (search(far, far_codes) != exact.argmin(1)).float().mean().item()
        )

print(f"{'wrong codes at offset':<22}" + "".join(f"{offset:>9}" for offset in offsets))
for name, shares in wrong.items():
    print(f"{name:<22}" + "".join(f"{share:>9.2%}" for share in shares))
assert max(wrong["centred"]) < 0.001 < wrong["expansion"][2] < wrong["expansion"][3]

# %% [markdown]
# In float32 one latent in fifty gets a wrong code at offset 100, and most do at 1,000. `torch.cdist` uses the same expansion (for
# more than 25 rows), so it errs the same. Subtracting the mean of the codes first cures it: distances do not change, and the numbers are
# small again. In bfloat16 four codes in five are wrong at offset 10, and nearly all at 100. Centring brings that back to what it is around the
# origin, one in a hundred: the search belongs in float32, whatever precision the rest of the model is in. Real latents do have means; nothing
# in the loss keeps them at the origin.
#
# ### Exercise 3.1 · nearest code  (easy, 10 minutes)
# Give the index of the nearest code for each row of `z`, without an (N, K, D) array, right also far from the origin. The
# inputs must be left as they are.
#
# <details><summary>Hint 1</summary>Subtract <code>codebook.mean(0)</code> from <em>both</em>; then the expansion.</details>
# <details><summary>Hint 2</summary><code>z = z - centre</code> makes a new tensor; <code>z -= centre</code> writes into the caller's.</details>


# %%
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """z: (N, D), codebook: (K, D) -> index of the nearest code, (N,) int64."""
    ### BEGIN SOLUTION
    centre = codebook.mean(0)
    z, codebook = z - centre, codebook - centre
    scores = codebook.square().sum(1) - 2 * z @ codebook.T  # (N, K): ‖z − e‖² − ‖z‖²
    return scores.argmin(1)
    ### END SOLUTION


nearest_code = check(nearest_code)

# %% [markdown]
# ### What the search costs
# Each of N latents meets each of K codes, and each meeting costs D multiplications and additions: N·K·D, where N = h·w for one image. One of the
# source reports states O(H·W·K), which leaves D out: with codes of eight times the length the search does take longer. Measured
# on this machine (each time is the median of several runs, taken in turn, so that a busy moment hits all sizes alike):


# %%
def seconds(search, cases: dict, repeats: int) -> dict:
    """Median seconds of search(z, codebook) for each case; the cases take turns."""
    taken = {name: [] for name in cases}
    for _ in tqdm(range(repeats + 1), unit="round"):
        for name, (z, codebook) in cases.items():
            start = time.perf_counter()
            int(search(z, codebook).sum())  # reading a number waits for the device
            taken[name].append(time.perf_counter() - start)
    return {
        name: sorted(times[1:])[repeats // 2] for name, times in taken.items()
    }  # 1st: warm-up


numbers_of_codes, lengths = [512, 1024, 2048, 4096], [32, 256]
# The 7 × 7 latents of 16 images: a much larger table is new memory at each call. A GPU gets more.
n = 49 * (16 if device.type == "cpu" else 1024)
cases = {
    (K, D): (torch.randn(n, D).to(device), torch.randn(K, D).to(device))
    for K in numbers_of_codes
    for D in lengths
}
measured = seconds(nearest_code, cases, settings.timing_repeats)
for D in lengths:
    row = "   ".join(f"K = {K}: {1000 * measured[K, D]:.1f} ms" for K in numbers_of_codes)
    print(f"D = {D:<4} {row}")

# %%
fig, ax = plots.figure(5, 3)
for D, style, colour in ((32, "o-", "train"), (256, "s--", "validation")):
    times = [1000 * measured[K, D] for K in numbers_of_codes]
    ax.plot(numbers_of_codes, times, style, color=plots.COLOURS[colour], label=f"D = {D}")
ax.set_xscale("log", base=2)
ax.set_yscale("log", base=2)
ax.yaxis.set_major_formatter("{x:g}")
ax.set_xticks(numbers_of_codes, [str(K) for K in numbers_of_codes])
ax.set(
    xlabel="number of codes K",
    ylabel="milliseconds",
    title="Twice the codes, twice the work",
)
ax.legend()
plots.show(
    fig,
    alt="Milliseconds of the search against the number of codes, both axes doubling: the "
    "lines for codes of 32 and 256 dimensions rise together, the longer codes above "
    "the shorter.",
)

# %% [markdown]
# Multiplications and additions are proportional to D, the time is not: writing down and comparing the K scores of each latent takes the same
# time whatever D is. On a machine that does other work at the same time the lines are less straight.
#
# Measured with more care, as exponents (twice the size, 2 to the exponent times the time), processor time instead of the clock's, and beside the
# report's sentence ([experiments/README.md](../experiments/README.md#cost-of-the-search) has the command of each row):

# %% tags=["nbval-check-output"]
measured_claims("Cost of the search")

# %% [markdown]
# ## k-means, and what the gradient has to do with it
# Where should the codes be? Where they make the squared error J = Σᵢ ‖zᵢ − e_k(i)‖² small. **k-means** (Lloyd 1957) takes turns:
#
# 1. codes fixed, the best choice for each latent is its nearest code;
# 2. choices fixed, the best place for each code is the **mean** of the latents that chose it.
#
# Neither step can raise J. The second follows from the gradient: with nₖ latents in cell k, of mean mₖ,
#
# $$\frac{\partial J}{\partial e_k} = \sum_{i:\,k(i)=k} 2\,(e_k - z_i) = 2\, n_k\,(e_k - m_k),$$
#
# which is 0 exactly at e_k = mₖ. And it says more: *one step of gradient descent* with the rate 1/(2nₖ) lands on the mean.

# %% tags=["nbval-check-output"]
e = codes.clone().requires_grad_()
choice = nearest_code(cloud, e.detach())
J = (cloud - e[choice]).square().sum()
(gradient,) = torch.autograd.grad(J, e)
counts = torch.bincount(choice, minlength=8)  # (8,): n_k
used = counts > 0
means = torch.zeros(8, 2).index_add(0, choice, cloud)[used] / counts[used, None]

stepped = e.detach()[used] - gradient[used] / (2 * counts[used, None])
print(
    "a step with rate 1/(2 n_k) is the mean step:",
    torch.allclose(stepped, means, atol=1e-5),
)
print(
    "codes that nothing chose have gradient 0:",
    torch.equal(gradient[~used], 0 * codes[~used]),
)

# %% [markdown]
# One learning rate η for all codes does not land on the mean, it goes there geometrically: each step multiplies the distance to the mean by
# 1 − 2ηnₖ, small for a code with many latents, near 1 for one with few, and exactly 1 for one with none. (With the loss averaged over N
# latents and D dimensions, as in the rest of this course, by 1 − 2ηnₖ/(N·D).) With the choices fixed, the distance of some codes to their means:

# %%
few = 6
with torch.no_grad():
    towards = torch.zeros(8, 2)
    towards[used] = means
    slow = codes.clone()
    print("step   " + "  ".join(f"code with n = {c}" for c in counts[used].tolist()[:few]))
    for step in range(5):
        away = (slow - towards)[used].norm(dim=1)
        print(f"{step:<6} " + "  ".join(f"{d:>14.3f}" for d in away.tolist()[:few]))
        slow -= 0.004 * 2 * counts[:, None] * (slow - towards)

# %% [markdown]
# Now with both steps in turn: k-means, and gradient descent on the same error with choices made anew at each step.


# %%
def error(codes: Tensor) -> float:
    return mse(codes[nearest_code(cloud, codes)], cloud).item()


lloyd, descent = codes.clone(), codes.clone()
curves = {"k-means": [error(lloyd)], "gradient descent": [error(descent)]}
for _ in range(25):
    choice = nearest_code(cloud, lloyd)
    counts = torch.bincount(choice, minlength=8)[:, None]
    sums = torch.zeros(8, 2).index_add(0, choice, cloud)
    lloyd = torch.where(counts > 0, sums / counts.clamp(min=1), lloyd)
    choice = nearest_code(cloud, descent)
    counts = torch.bincount(choice, minlength=8)[:, None]
    sums = torch.zeros(8, 2).index_add(0, choice, cloud)
    descent = descent - 0.004 * 2 * (counts * descent - sums)  # the gradient from above
    curves["k-means"].append(error(lloyd))
    curves["gradient descent"].append(error(descent))
assert all(
    b <= a + 1e-6 for a, b in zip(curves["k-means"], curves["k-means"][1:], strict=False)
)

fig, (left, right) = plots.figure(9, 3.6, columns=2)
plots.draw_cells(left, lloyd, cloud)
left.set(
    title="After k-means: each code in the middle of its points",
    xlabel="$z_1$",
    ylabel="$z_2$",
)
for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
    right.plot(curve, style, label=name)
right.set(
    xlabel="step",
    ylabel="mean squared error",
    title="k-means takes the larger steps",
    ylim=(0, None),
)
right.legend()
plots.show(
    fig,
    alt="Left: the three clumps after k-means, with most of the codes in the middle of "
    "their points. Right: the mean squared error over 25 steps falls at once for "
    "k-means, and more slowly for gradient descent.",
)

# %% [markdown]
# Gradient descent lags behind because of the codes with few points, as in the table. Both only ever find a *local* minimum: which one
# depends on the first codes.
#
# So *quantising the latents of a fixed encoder* is k-means, and the codebook loss, further down, is its second step done by gradient descent.
# ([Chapter 05](05_ema_codebooks.ipynb) does the mean step itself, as a running mean.) A code without any latent stays where it is in both.
#
# ## `argmin` has no gradient
# What is new is that the latents are not fixed. The encoder has to learn which latents are good for the decoder, and for that a gradient
# has to come back from the decoder through z_q = e_k(z) to z. There is none:

# %% tags=["nbval-check-output"]
z = torch.tensor([[0.7, 0.4], [1.6, 0.9]], requires_grad=True)
e = codebook.clone().requires_grad_()
k = nearest_code(z, e)
z_q = e[k]
print("indices:", k.tolist(), k.dtype, "  on the graph:", k.requires_grad)
gradients = torch.autograd.grad(z_q.sum(), (z, e), allow_unused=True)
print("gradient of z_q at z:", gradients[0], "  at the codebook:", gradients[1].tolist())

# %% [markdown]
# Autograd is right. Move a latent a little, and nearly always *nothing* happens to its code, so the derivative is 0; at a border z_q jumps,
# and there is none. Here a latent walks along a line. The *smallest distance* is continuous, it has only kinks; the *argument* of the
# minimum is what jumps. (It is often written that `max` or `min` is discontinuous. It is not: its arg is.)

# %%
walk = torch.linspace(-3, 3, 1201)
line = torch.stack([walk, torch.full_like(walk, -0.8)], 1)  # (1201, 2)
nearest = nearest_code(line, lloyd)
smallest = (line - lloyd[nearest]).norm(dim=1)
jumps = (nearest[1:] != nearest[:-1]).sum().item()
largest = (smallest[1:] - smallest[:-1]).abs().max().item()
print(f"{jumps} jumps of the code on 1,200 steps of 0.005;", end=" ")
print(f"the smallest distance never changes by more than {largest:.4f} in a step")
assert largest <= 0.00501

changed = (nearest_code(cloud + 1e-4, lloyd) != nearest_code(cloud, lloyd)).sum()
print(f"of 300 latents moved by 0.0001, {changed} changed their code")

fig, (left, right) = plots.figure(8, 2.6, columns=2)
left.plot(walk, smallest, color=plots.COLOURS["train"])
left.set(xlabel="position of z", ylabel="distance to its code", title="min is continuous")
right.plot(
    walk, lloyd[nearest, 0], color=plots.COLOURS["validation"], drawstyle="steps-post"
)
right.set(
    xlabel="position of z",
    ylabel="first coordinate of $z_q$",
    title="argmin is a staircase",
)
plots.show(
    fig,
    alt="A latent moves along a line. Left: the distance to its nearest code, a "
    "continuous curve with kinks. Right: a coordinate of its code, a staircase with "
    "flat steps and sudden jumps.",
)

# %% [markdown]
# ## `sg`: the stop-gradient
# `sg[u]` has the value of u, and for the gradient it is a constant. In PyTorch it is `u.detach()`. One of the source reports gives as example
# that ‖y − θx + sg[θ²x]‖ "is just a linear function of θ". By hand: let r = y − θx + sg[θ²x]. Inside the brackets θ² counts as a number c = θ²:
#
# $$r = (y + c\,x) - \theta x, \qquad \frac{d r}{d\theta} = -x, \qquad
# \frac{d\|r\|}{d\theta} = -\frac{x\cdot r}{\|r\|}, \qquad \frac{d\|r\|^2}{d\theta} = -2\, x\cdot r .$$

# %% tags=["nbval-check-output"]
x, y = (
    torch.tensor([1.0, 2.0], dtype=torch.float64),
    torch.tensor([2.0, 1.0], dtype=torch.float64),
)


def residual(theta: Tensor, inside: Tensor) -> Tensor:
    return y - theta * x + inside**2 * x


theta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
r = residual(theta, theta.detach())  # sg[θ²x]
print("r =", r.tolist(), "  x·r =", (x @ r).item())
(of_norm,) = torch.autograd.grad(r.norm(), theta, retain_graph=True)
(of_square,) = torch.autograd.grad(r @ r, theta)
print(f"gradient of the norm:   {of_norm:.4f} = −34/√233: {-34 / 233**0.5:.4f}")
print(f"gradient of the square: {of_square:.4f} = −2·34")
r = residual(theta, theta)
(full,) = torch.autograd.grad(r @ r, theta)
print(f"without sg:             {full:.4f} = 2·34·(2θ − 1)")

# %% [markdown]
# **Often written, not so.** Is it linear in θ? A function is linear (affine) where its *second differences* are 0. Four candidates, with the
# bracket held at its value for θ = 3, and one in which it is taken anew at each θ, as training does:

# %% tags=["nbval-check-output"]
grid = torch.linspace(0, 4, 9, dtype=torch.float64)


def gradient_at(value: float, inside: float) -> float:
    t = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    r = residual(t, torch.tensor(inside, dtype=torch.float64))
    return torch.autograd.grad(r @ r, t)[0].item()


candidates = {
    "r (its first number), bracket held": [residual(t, grid[6])[0] for t in grid],
    "‖r‖, bracket held": [residual(t, grid[6]).norm() for t in grid],
    "‖r‖², bracket held": [residual(t, grid[6]).square().sum() for t in grid],
    "gradient of ‖r‖², bracket held": [gradient_at(t, 3.0) for t in grid.tolist()],
    "gradient of ‖r‖², bracket anew": [gradient_at(t, t) for t in grid.tolist()],
}
for name, values in candidates.items():
    second = torch.tensor([float(v) for v in values]).diff(n=2)
    print(f"{name:<36} linear in θ: {bool(second.abs().max() < 1e-4)}")

# %% [markdown]
# What is linear in θ is r, and the gradient of its *square*, both with the bracket held fixed; the norm is not. And the gradient that training
# follows, with the bracket taken anew, is quadratic in θ. It is also **not the gradient of the number that is printed as the
# loss**. With y = x, r = (1 − θ + θ²) x: the loss is smallest at θ = ½, but the gradient −2 x·r never is 0:

# %%
theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
for step in range(9):
    r = x - theta * x + (theta**2).detach() * x
    loss = r @ r
    (gradient,) = torch.autograd.grad(loss, theta)
    print(f"step {step}: θ = {theta.item():.3f}   ‖r‖² = {loss.item():6.3f}")
    theta = (theta - 0.02 * gradient).detach().requires_grad_()

# %% [markdown]
# The loss falls, passes its minimum and *rises*, while gradient descent does exactly what it was told. A stop-gradient changes what is minimised,
# and the value of the loss does not show it. That is why this chapter looks at gradients, tensor by tensor.
#
# ### Exercise 3.2 · a stop-gradient puzzle  (medium, 10 minutes)
# Two players share one number: a wants the product a·b small, b wants it large. Write one expression whose **value** is a·b
# (elementwise), whose gradient for a is that of a·b, and whose gradient for b is **minus** that of a·b. One loss, minimised by one optimizer, and
# the two play against each other. (Adversarial training has this form: Ganin and Lempitsky 2015.)
#
# <details><summary>Hint 1</summary>Collect terms with the right gradients first, and look at the value afterwards: something like
# a·sg[b] teaches a only.</details>
# <details><summary>Hint 2</summary>a·sg[b] − sg[a]·b has both gradients right. Which value does it have, and how do you repair a value without touching a
# gradient?</details>


# %%
def stop_gradient_puzzle(a: Tensor, b: Tensor) -> Tensor:
    """a, b: the same shape -> a·b, with gradient b at a and gradient −a at b."""
    ### BEGIN SOLUTION
    for_a = a * b.detach()  # gradient b at a
    for_b = -a.detach() * b  # gradient −a at b
    return for_a + for_b + (a * b).detach()  # the first two add up to 0
    ### END SOLUTION


stop_gradient_puzzle = check(stop_gradient_puzzle)

# %% [markdown]
# ## Straight-through
# The decoder gets z_q and sends back dL/dz_q: the direction in which *it* would like its input to move. The **straight-through
# estimator** (Bengio et al. 2013; van den Oord et al. 2017, section 3.2) hands that gradient to z as if quantising had been the identity:
#
# $$\text{value: } z_q, \qquad \frac{\partial L}{\partial z} := \frac{\partial L}{\partial z_q}.$$
#
# It is not the derivative of what was computed, which is 0. It is the exact derivative of something else: of L(z + c), where the offset
# c = z_q − z is held fixed, so that the code seems to move along with z. A guess, then, which is good if L falls when the code does move, or
# when z gets to a neighbouring code in that direction.
#
# It is usually written z + sg[z_q − z]: the value is z + (z_q − z) = z_q, and the bracket is a constant. On paper.

# %%
draws = torch.Generator().manual_seed(0)
some = torch.randn(10_000, generator=draws)
theirs = torch.randn(10_000, generator=draws)
usual = some + (theirs - some)
same, off = (usual == theirs).float().mean(), (usual - theirs).abs().max()
print(f"z + (z_q − z) equals z_q to the bit for {same:.0%} of 10,000 numbers;", end=" ")
print(f"it is off by up to {off:.1e}")
large = 1e4 * some
off = (large + (theirs - large) - theirs).abs().max()
print(f"with z 10,000 times as large it is off by up to {off:.1e}")

# %% [markdown]
# Small, but it means that what the decoder saw in training is not *exactly* what it gets later from the stored codes; and with
# large latents (or in half precision) it is no longer small.
#
# ### Exercise 3.3 · straight-through  (easy, 10 minutes)
# Return the value of `z_q` **to the bit**, with the gradient of `z`. Nothing may flow into `z_q`: its gradient would end in
# the codebook, and the decoder's wishes are not what the codebook is to learn from.
#
# <details><summary>Hint 1</summary>You need something whose value is exactly 0 and whose gradient at z is 1.</details>
# <details><summary>Hint 2</summary>u − sg[u] is exactly 0: a number minus itself has no rounding error.</details>


# %%
def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z, z_q: the same shape -> the value of z_q, with the gradient of z."""
    ### BEGIN SOLUTION
    zero = z - z.detach()  # exactly 0, and its gradient at z is 1
    return z_q.detach() + zero
    ### END SOLUTION


straight_through = check(straight_through)

# %% [markdown]
# The gradient that arrives at z_e is the one that arrived at z_q, number by number. Behind both stands a small decoder that is not linear:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5))
z_e = torch.randn(6, 2, requires_grad=True)
e = torch.randn(4, 2, requires_grad=True)
target = torch.randn(6, 5)

z_q = straight_through(z_e, e[nearest_code(z_e, e)])
z_q.retain_grad()
mse(decoder(z_q), target).backward()
print("gradient at z_e equals gradient at z_q:", torch.equal(z_e.grad, z_q.grad))
print("gradient at the codebook:", e.grad)

# %% [markdown]
# **Often written, not so.** In the backward pass the loss would be ‖x − dec(z_e)‖², writes one of the source reports (its section 2.3). That has
# the gradient of the decoder *at z_e*, where it was never run. What is copied is the gradient **at z_q**. How far apart the two are depends
# on how far z_e is from its code:

# %%
code = e[nearest_code(z_e, e)].detach()


def gradient_of_reconstruction(at: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    return torch.autograd.grad(mse(decoder(at), target), at)[0]


copied = gradient_of_reconstruction(code)
for share in (1.0, 0.3, 0.1, 0.01):
    nearer = code + share * (z_e - code)  # the same code, from a shorter distance
    claimed = gradient_of_reconstruction(nearer)
    apart = (claimed - copied).norm() / copied.norm()
    print(
        f"z_e at {share:>4} of its distance to z_q: the two gradients differ by {apart:.1%}"
    )

# %% [markdown]
# They agree only in the limit z_e = z_q. So the copied gradient is a good one as long as latents lie near their codes: a first
# reason for a loss that keeps them there.
#
# ## Codebook and commitment loss
# Straight-through trains the encoder and the decoder. Two things are missing:
#
# * **nothing moves the codes** (their gradient above is `None`), so let each code go to the latents that chose it, as in k-means;
# * **nothing keeps the latents near the codes**: the gradient at z does not see where z is, so z can drift as long as its code stays.
#
# One squared distance serves both, with the stop-gradient on the one side or the other (van den Oord et al. 2017, equation 3):
#
# $$L = \underbrace{\text{reconstruction}}_{\text{decoder, encoder}}
# + \underbrace{\|\mathrm{sg}[z_e] - z_q\|^2}_{\text{codebook loss: codes}}
# + \beta\,\underbrace{\|z_e - \mathrm{sg}[z_q]\|^2}_{\text{commitment loss: encoder}} .$$
#
# The two have the same value and different gradients. In this course both are means over positions *and* dimensions; the paper writes
# squared lengths, which are sums over the D dimensions, so that beside the same reconstruction loss its β would weigh D times as much. In
# the paper β = 0.25, and results hardly varied between 0.1 and 2. (Its first term is log p(x|z_q), which is to be *maximised*, while the
# other two are to be minimised; three of the source reports copy that sum and minimise it whole. With the MSE, or with −log p, the sign is
# right.)
#
# ### Exercise 3.4 · the two losses  (easy, 10 minutes)
# Return both, unweighted, in this order. The check looks at where each one's gradient goes.
#
# <details><summary>Hint</summary>The loss moves what is <em>not</em> detached.</details>


# %%
def vq_losses(z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    """z: latents, z_q: their codes, the same shape -> (codebook loss, commitment loss)."""
    ### BEGIN SOLUTION
    codebook_loss = (z.detach() - z_q).square().mean()  # moves the codes only
    commitment_loss = (z - z_q.detach()).square().mean()  # moves the latents only
    return codebook_loss, commitment_loss
    ### END SOLUTION


vq_losses = check(vq_losses)

# %% [markdown]
# ## The vector quantizer
# The encoder of an image gives a *grid* of latents: (B, D, h, w), each of the h·w positions a vector of D numbers, spread over the channels. The
# search wants rows. `reshape(-1, D)` on the grid as it is would cut across positions; the channels have to come last first:

# %% tags=["nbval-check-output"]
grid = torch.arange(12.0).reshape(1, 2, 2, 3)  # one image, D = 2, h = 2, w = 3
print("the vector at the first position:", grid[0, :, 0, 0].tolist())
print("reshape alone, first row:        ", grid.reshape(-1, 2)[0].tolist())
print("channels last, first row:        ", grid.movedim(1, -1).reshape(-1, 2)[0].tolist())

# %% [markdown]
# ### Exercise 3.5 · `VectorQuantizer`  (medium, 20 minutes)
# Put the pieces together. `__init__` is given; write `forward`, for latents with any number of spatial axes (none, too). Give back the
# companion's `Quantized`, whose fields are
#
# * `z_q`, of the shape of z: the codes, through `straight_through`;
# * `indices`, (B, *spatial);
# * `loss`: codebook loss + β · commitment loss;
# * `losses`: a dict with "codebook" and "commitment", before any weight.
#
# <details><summary>Hint 1</summary>Five steps: rows, search, look up, losses, straight-through. The look-up <code>self.codebook[indices]</code> is where the
# gradient of the codebook loss enters the codebook, so the losses need its result <em>before</em> straight-through detaches it.</details>
# <details><summary>Hint 2</summary>The way back from rows (N, D) to the grid: <code>.reshape(*shape, D).movedim(-1, 1)</code>, where <code>shape</code> is
# (B, *spatial).</details>


# %%
class VectorQuantizer(nn.Module):
    """z: (B, D, *spatial) -> Quantized: z_q (B, D, *spatial), indices (B, *spatial)."""

    def __init__(self, num_codes: int, dim: int, *, commitment_weight: float = 0.25):
        super().__init__()
        self.num_codes, self.dim, self.commitment_weight = num_codes, dim, commitment_weight
        bound = (3 / dim) ** 0.5  # variance 1/D in each dimension: ‖e‖² is 1 on average
        self.codebook = nn.Parameter(torch.empty(num_codes, dim).uniform_(-bound, bound))

    def forward(self, z: Tensor) -> Quantized:
        ### BEGIN SOLUTION
        rows = z.movedim(1, -1)  # (B, *spatial, D)
        shape = rows.shape[:-1]  # (B, *spatial)
        rows = rows.reshape(-1, self.dim)  # (N, D)
        indices = nearest_code(rows, self.codebook.detach())  # (N,)
        codes = self.codebook[indices]  # (N, D), still on the codebook's graph
        codebook_loss, commitment_loss = vq_losses(rows, codes)
        z_q = straight_through(rows, codes).reshape(*shape, self.dim).movedim(-1, 1)
        loss = codebook_loss + self.commitment_weight * commitment_loss
        losses = {"codebook": codebook_loss, "commitment": commitment_loss}
        return Quantized(z_q, indices.reshape(shape), loss, losses)
        ### END SOLUTION


VectorQuantizer = check(VectorQuantizer)

# %% [markdown]
# ## The routing table
# Now the nine fields of the prediction. A small model: the encoder turns each patch of 4 × 4 pixels into a latent of two numbers, the decoder turns
# each code back into a patch. (Two numbers, so that everything can be drawn. [Chapter 04](04_vq_vae.ipynb) has the real encoder.)


# %%
@dataclass(frozen=True)
class PatchOutput:
    """What the patch model returns; each loss has its name."""

    reconstruction: Tensor
    z_e: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]


class PatchModel(nn.Module):
    """Each 4 × 4 patch -> a latent of D numbers -> a code -> a patch."""

    def __init__(self, quantizer: nn.Module, channels: int = 1):
        super().__init__()
        D = quantizer.dim
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=4), nn.ReLU(), nn.Conv2d(32, D, 1)
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Conv2d(D, 32, 1), nn.ReLU(), nn.ConvTranspose2d(32, channels, 4, stride=4)
        )

    def forward(self, x: Tensor) -> PatchOutput:
        z_e = self.encoder(x)  # (B, D, H/4, W/4)
        quantized = self.quantizer(z_e)
        reconstruction = self.decoder(quantized.z_q)  # (B, C, H, W)
        losses = {"reconstruction": mse(reconstruction, x)} | quantized.losses
        loss = losses["reconstruction"] + quantized.loss
        return PatchOutput(reconstruction, z_e, quantized.indices, loss, losses)


x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()
channels = train.shape[0]


def new_model(
    quantizer_class=VectorQuantizer, seed: int | None = None, dim: int = 2, **options
) -> PatchModel:
    """An untrained patch model; the same seed gives the same encoder and decoder."""
    seed = session.seed if seed is None else seed
    torch.manual_seed(seed)
    quantizer = quantizer_class(settings.num_codes, dim, **options)
    torch.manual_seed(seed + 1000)  # quantizers draw different amounts of random numbers
    return PatchModel(quantizer, channels).to(device)


def routing_table(model: PatchModel, x: Tensor) -> dict[str, dict[str, float]]:
    """For each loss, the norm of its gradient in each part of the model."""
    parts = {
        "encoder": list(model.encoder.parameters()),
        "codebook": [model.quantizer.codebook],
        "decoder": list(model.decoder.parameters()),
    }
    table = {}
    for name, loss in model(x).losses.items():
        table[name] = {}
        for part, weights in parts.items():
            gradients = torch.autograd.grad(
                loss, weights, retain_graph=True, allow_unused=True
            )
            total = sum(float(g.square().sum()) for g in gradients if g is not None)
            table[name][part] = total**0.5
    return table


table = routing_table(new_model(), x_train[:64])
print(f"{'gradient norm at':<18}" + "".join(f"{part:>12}" for part in table["codebook"]))
for name, row in table.items():
    print(f"{name:<18}" + "".join(f"{norm:>12.5f}" for norm in row.values()))

# %% tags=["nbval-check-output"]
for name, row in table.items():
    marks = {part: "moves" if norm > 0 else "zero" for part, norm in row.items()}
    print(f"{name:<16}", marks)
print(
    "fields that are not zero:",
    sum(norm > 0 for row in table.values() for norm in row.values()),
)

# %% [markdown]
# Four fields of nine. Compare with your prediction. The zeros are exact: they are not small numbers but ways that do not exist in the graph.
#
# **Often written, not so.**
#
# * One report says of the dictionary loss (the codebook loss) that its gradient flows *"only to the decoder"*. The decoder's field in that
#   row is zero: that loss does not know the decoder. It flows to the **codebook**, which is no part of the decoder. (The decoder learns
#   from the reconstruction alone.) The other two reports have it right.
# * *The stop-gradients the other way round*, ‖z_e − sg[z_q]‖² + β‖sg[z_e] − z_q‖²: both squares have the same value, so the printed loss is the same
#   to the last digit. But now β weighs the *codebook's* pull. Measured on the same model, β = 0.25:

# %%
model = new_model()
output = model.quantizer(model.encoder(x_train[:64]))
codebook_loss, commitment_loss = output.losses["codebook"], output.losses["commitment"]
right = codebook_loss + 0.25 * commitment_loss
swapped = commitment_loss + 0.25 * codebook_loss
print(f"value: {right.item():.6f} and, swapped, {swapped.item():.6f}")
for part, weights in (
    ("encoder", model.encoder[0].weight),
    ("codebook", model.quantizer.codebook),
):
    norms = [
        torch.autograd.grad(loss, weights, retain_graph=True)[0].norm()
        for loss in (right, swapped)
    ]
    print(f"gradient norm at the {part}: swapped / right = {norms[1] / norms[0]:.3f}")

# %% [markdown]
# ### What β does, and what it does not
# **Often written, not so.** The dictionary loss "is higher (β=0.25) to make the encoder representation follows the dictionary
# representation", says the same report. Look at the table: that loss moves the *codes*, so a higher weight on it makes the **dictionary
# follow the encoder**. And β scales the encoder's pull only; it does not enter the codes' gradient at all. One latent and one code on a
# line, plain gradient descent on codebook + β commitment loss:

# %% tags=["nbval-check-output"]
for beta in (0.25, 1.0, 4.0):
    z, e = torch.tensor([0.0]), torch.tensor([1.0])
    for step in range(2000):
        z.requires_grad_(), e.requires_grad_()
        codebook_loss, commitment_loss = vq_losses(z, e)
        gradients = torch.autograd.grad(codebook_loss + beta * commitment_loss, (z, e))
        if step == 0:
            first = [round(-g.item(), 3) for g in gradients]
        z, e = ((v - 0.02 * g).detach() for v, g in zip((z, e), gradients, strict=True))
    print(f"β = {beta:<5} first pull on (z, e): {first}   they meet at {z.item():.3f}")

# %% [markdown]
# With β = 0.25 the code goes 4/5 of the way and the latent 1/5: they meet at β/(1 + β) from where the latent was. So the code is faster;
# the report is right about that; and it is the code that follows. A code with many latents is pulled by all of them, and is faster still.
# The paper's reason for the commitment loss is another one: without it the latents can grow without bound, if the codes do not keep up (its
# section 3.2; you can see it in *Play*, below). All this holds for plain gradient descent. Adam divides each gradient by its own size, so
# that under Adam a weight on the codebook loss changes next to nothing, because the codes hear no other loss; for the encoder β decides how
# much the commitment counts *beside* the reconstruction.
#
# ## Train and look
# Gradient descent on all three at once. The codes are noted on the way.


# %%
def train_model(model: PatchModel, seed: int, notes: tuple[int, ...] = (), label: str = ""):
    """Train with Adam; gives the losses and the codes before the steps in `notes`."""
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    order = torch.Generator().manual_seed(seed)
    losses, noted = [], {}
    try:
        for step in tqdm(range(settings.steps), unit="step", desc=label):
            if step in notes:
                noted[step] = model.quantizer.codebook.detach().cpu().clone()
            rows = torch.randint(len(x_train), (settings.batch_size,), generator=order)
            output = model(x_train[rows.to(device)])
            adam.zero_grad()
            output.loss.backward()
            adam.step()
            losses.append({name: loss.detach() for name, loss in output.losses.items()})
    except KeyboardInterrupt:
        print(f"Stopped after step {len(losses)}: going on with what was trained so far.")
    noted[len(losses)] = model.quantizer.codebook.detach().cpu().clone()
    model.eval()
    return losses, noted


@torch.no_grad()
def evaluate(model: PatchModel) -> tuple[float, Tensor]:
    """Distortion of the test images, and how often each code was chosen on them."""
    output = model(x_test)
    counts = torch.bincount(output.indices.flatten(), minlength=settings.num_codes)
    return distortion(mse(output.reconstruction, x_test).item(), variance), counts.cpu()


model = new_model()
notes = (0, settings.steps // 20, settings.steps // 4)
losses, noted = train_model(model, session.seed, notes)
test_distortion, usage = evaluate(model)
print(f"{(usage > 0).sum()} of {settings.num_codes} codes are used on the test images")
session.expect("distortion", test_distortion)

# %%
fig, axes = plots.figure(9, 3, columns=2)
for name, style in (("reconstruction", "-"), ("codebook", "--")):
    curve = torch.stack([row[name] for row in losses]).cpu()
    axes[0].plot(
        curve,
        style,
        linewidth=1,
        label=name if name == "reconstruction" else "codebook = commitment",
    )
axes[0].set(
    xlabel="step",
    ylabel="mean squared error",
    title="The reconstruction improves, and the codes keep up",
    ylim=(0, None),
)
axes[0].legend()
axes[1].bar(
    range(settings.num_codes),
    usage.sort(descending=True).values / usage.sum(),
    color=plots.COLOURS["train"],
)
axes[1].set(
    xlabel="codes, most used first",
    ylabel="share of the test patches",
    title="One code is used far more than all others",
)
plots.show(
    fig,
    alt="Left: the reconstruction loss falls over the training steps; the codebook loss "
    "swings at first, then stays small. Right: how often each code is used, "
    "sorted: one code for the empty patches stands far above the rest, some are near "
    "zero.",
)

# %%
with torch.no_grad():
    z_test = model.encoder(x_test).movedim(1, -1).reshape(-1, 2).cpu()
shown = z_test[torch.randperm(len(z_test), generator=generator)[:2000]]
alive = usage > 0
fig, axes = plots.figure(9.5, 2.9, columns=len(noted))
for ax, (step, codes_then) in zip(axes, noted.items(), strict=True):
    ax.scatter(*shown.T, s=2, color="#BBBBBB", linewidths=0)
    ax.scatter(*codes_then[alive].T, s=25, marker="x", color=plots.COLOURS["validation"])
    ax.scatter(
        *codes_then[~alive].T, s=25, marker="o", facecolors="none", edgecolors="black"
    )
    ax.set(title=f"after step {step}", xlabel="$z_1$")
axes[0].set_ylabel("$z_2$")
fig.suptitle(
    "Codes (×) travel to where the latents end (grey); codes that nobody uses (○) stay"
)
plots.show(
    fig,
    alt="Four pictures of the latent plane at four times of the training. The codes start "
    "spread over a square, and most end spread over the latents; those that are not "
    "used at the end have hardly moved from where they began.",
)

# %%
rebuilt = model(x_test[:12]).reconstruction.detach()
plots.show(
    plots.image_rows(
        {"x": x_test[:12], "rebuilt": rebuilt},
        title=f"49 codes of {math.log2(settings.num_codes):.0f} bits each",
    ),
    alt="Twelve test digits above their reconstructions from 49 codes: readable, with the "
    "edges of the patches visible.",
)

# %% [markdown]
# The number of bits is that of chapter 00, whose 64 codes were random training patches, and its distortion was lower. What could K codes
# do at best? Whatever encoder and decoder do, each code stands for one patch in the end, and no set of K patches has a smaller error than
# the one that k-means looks for. So: k-means on the patches themselves, no network in between, with some training patches as first codes.
# And beside it the same networks with latents of 8 numbers instead of 2:


# %%
def to_patches(x: Tensor) -> Tensor:  # (B, 1, H, W) -> (B·h·w, 16)
    return x.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0].flatten(3).flatten(0, 2)


patches, test_patches = to_patches(x_train[:10_000, :1]), to_patches(x_test[:, :1])
inked = patches[patches.sum(1) > 2]  # patches with something on them
pick = torch.randperm(len(inked), generator=generator)[: settings.num_codes]
atoms = inked[pick.to(device)]
for _ in tqdm(range(25), unit="step"):
    choice = nearest_code(patches, atoms)
    counts = torch.bincount(choice, minlength=len(atoms))[:, None]
    sums = torch.zeros_like(atoms).index_add(0, choice, patches)
    atoms = torch.where(counts > 0, sums / counts.clamp(min=1), atoms)
by_k_means = mse(atoms[nearest_code(test_patches, atoms)], test_patches).item() / variance
roomy = new_model(dim=8)
train_model(roomy, session.seed, label="D = 8")
with_eight, _ = evaluate(roomy)
print(f"k-means {by_k_means:.3f}   D = 2: {test_distortion:.3f}   D = 8: {with_eight:.3f}")
session.expect("distortion_k_means", by_k_means)
session.expect("distortion_8", with_eight)

# %% [markdown]
# It is the plane that costs so much: encoder and decoder have to lay out all patches on a sheet. With 8 numbers most of the gap is gone. But
# on single patches networks have nothing to win over k-means; [chapter 04](04_vq_vae.ipynb) gives them what k-means has not, an encoder and a
# decoder that see *beyond* the patch. The plane stays here because it can be drawn. The cells and the routing table, as promised at the top
# (the cells after training; the norms are those measured above, before it):

# %% tags=["cover"]
fig, (left, right) = plots.figure(10.5, 4.2, columns=2, width_ratios=(1, 1.25))
plots.draw_cells(left, model.quantizer.codebook.detach().cpu(), shown, numbers=False)
left.set(title="The codes and their cells", xlabel="$z_1$", ylabel="$z_2$")
plots.draw_gradient_flow(right, table)
right.set_title("Who learns from which loss: four ways of nine")
plots.show(
    fig,
    alt="Left: latents of image patches in the plane, the codes among them, and the cell "
    "of each code. Right: for each of the three losses the parts of the model that "
    "its gradient reaches: the reconstruction loss reaches decoder and encoder, the "
    "codebook loss the codebook, the commitment loss the encoder.",
)

# %% [markdown]
# ## Other ways past the argmin
# Straight-through is a guess that works, not a derivative. Three others.
#
# ### Draw the code: Gumbel-max
# Let the latent give K *logits* ℓ, and draw the code k with probability pₖ = softmax(ℓ)ₖ. There is a way to draw in which the random numbers are an input:
# add to each logit its own Gumbel noise gₖ = −log(−log uₖ), u uniform, and take the largest (**Gumbel-max**): P(argmaxₖ(ℓₖ + gₖ) = k) = pₖ exactly.


# %%
def gumbel(*shape: int) -> Tensor:
    """Gumbel noise: minus the logarithm of exponential noise, which is −log u."""
    return -torch.empty(shape).exponential_(generator=draws).log()


draws = torch.Generator().manual_seed(0)
logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
drawn = (logits + gumbel(200_000, 4)).argmax(1)
frequencies = torch.bincount(drawn, minlength=4) / 200_000
p = logits.softmax(0)
print("softmax:          ", [f"{v:.4f}" for v in p.tolist()])
print("drawn frequencies:", [f"{v:.4f}" for v in frequencies.tolist()])
in_errors = ((frequencies - p) / (p * (1 - p) / 200_000).sqrt()).abs().max()
print(f"largest difference: {in_errors:.1f} standard errors")
assert in_errors < 5

# %% [markdown]
# ### Soften it: Gumbel-softmax
# The argmax still has no gradient. Replace it by a softmax with a *temperature* τ (Jang et al. 2017, equation 2; Maddison et al. 2017): y =
# softmax((ℓ + g)/τ), and z_q = Σₖ yₖ eₖ, a mixture of codes. As τ → 0, y becomes one code and z_q is what Gumbel-max draws. Gradients flow
# to the logits *and* to the codes, so there is no codebook loss. What does it cost? Here is a problem small enough for the exact gradient
# of E[‖e_k − t‖²] with respect to the logits, pₖ(fₖ − Σⱼ pⱼfⱼ), beside 200,000 Gumbel-softmax gradients:

# %%
draws = torch.Generator().manual_seed(0)
eight, t = torch.randn(8, 2, generator=draws), torch.tensor([1.0, 0.5])
logits = -(torch.tensor([0.3, 0.2]) - eight).square().sum(1)  # (8,)
p, f = logits.softmax(0), (eight - t).square().sum(1)
exact = p * (f - (p * f).sum())

temperatures = [4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
bias, noise = [], []
for tau in tqdm(temperatures, unit="temperature"):
    many = logits.repeat(settings.gumbel_draws, 1).requires_grad_()  # one row a draw
    soft = ((many + gumbel(settings.gumbel_draws, 8)) / tau).softmax(1)
    (gradients,) = torch.autograd.grad((soft @ eight - t).square().sum(), many)
    bias.append(((gradients.mean(0) - exact).norm() / exact.norm()).item())
    noise.append((gradients.var(0).sum().sqrt() / exact.norm()).item())
    error_of_mean = noise[-1] / settings.gumbel_draws**0.5
    print(f"τ = {tau:<7} bias {bias[-1]:.3f} ± {error_of_mean:.3f}   noise {noise[-1]:.2f}")

# %%
fig, ax = plots.figure(5.5, 3)
ax.loglog(temperatures, bias, "o-", color=plots.COLOURS["train"], label="bias")
ax.loglog(
    temperatures, noise, "s--", color=plots.COLOURS["validation"], label="noise of one draw"
)
ax.set(
    xlabel="temperature τ",
    ylabel="relative to the exact gradient",
    title="Cold: less biased, more noisy",
)
ax.legend()
plots.show(
    fig,
    alt="Bias and noise of the Gumbel-softmax gradient against the temperature, both axes "
    "logarithmic: as the temperature falls, the bias falls and the noise rises.",
)

# %% [markdown]
# So τ starts high and is lowered during training (*annealed*); the companion's `GumbelQuantizer` goes from 1 to 1/16 in equal factors.
# Because the code is drawn, there is a KL term as in chapter 02, with a uniform prior over the K codes:
#
# $$\mathrm{KL}(q \,\|\, \text{uniform}) = \sum_k q_k \log\frac{q_k}{1/K} = \log K - H(q).$$

# %% tags=["nbval-check-output"]
K = 8
for name, q in (
    ("uniform", torch.full((K,), 1 / K)),
    ("half and half", torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])),
    ("one code", functional.one_hot(torch.tensor(3), K).float()),
):
    kl = math.log(K) - torch.special.entr(q).sum().item()
    kl = max(0.0, kl)  # rounding can leave a little less
    print(f"{name:<14} KL = {kl:.4f} nats")
print(f"log 8 = {math.log(8):.4f}")

# %% [markdown]
# The line *one code* is the case of this chapter: a latent that chooses one code has KL = log K whatever it chooses, a constant. So VQ-VAE's loss
# has no KL, and [chapter 04](04_vq_vae.ipynb) starts from here.
#
# ### Two choices and their difference: implicit MLE
# Niepert et al. (2021) keep the code whole also in training. Draw a code with the noisy logits ℓ + g. When the gradient d of the loss at
# the *one-hot choice* comes back, draw a second time with the same noise, from the logits ℓ − λd, that is, from those the loss would rather
# have had. The gradient for the logits is the first one-hot choice minus the second, over λ. Where both are the same code it is exactly 0; a
# small λ gives mostly zeros, a large one is more biased. It needs nothing but the argmax itself, and so it works as well where the "code"
# is a path or a matching.
#
# ### Turn the gradient: the rotation trick
# Straight-through hands each latent the gradient of its z_q as it is, wherever in the cell the latent lies. Fifty et al. (2024) write z_q =
# λRz, with the rotation R that turns z's direction onto z_q's and λ = ‖z_q‖/‖z‖, and count λ and R as constants. Then dL/dz = λRᵀ dL/dz_q:
# the gradient keeps its angle to the vector. (`companion.quantizers.rotation_trick`; its docstring has the formula.)

# %% tags=["nbval-check-output"]
z = torch.tensor([[0.5, 1.5], [2.0, 0.25], [-1.0, 1.0], [0.0, 0.0]], requires_grad=True)
z_q = torch.tensor([1.2, 0.6]).expand(4, 2)
wish = torch.tensor([0.0, 1.0])  # dL/dz_q, the same for all four
moved = rotation_trick(z, z_q)
(turned,) = torch.autograd.grad((moved * wish).sum(), z)


def angle(a: Tensor, b: Tensor) -> float:
    """From a to b, in degrees."""
    return math.degrees(
        math.remainder(math.atan2(b[1], b[0]) - math.atan2(a[1], a[0]), math.tau)
    )


print("value equals z_q:", torch.equal(moved.detach(), z_q))
for start, gradient in zip(z[:3].tolist(), turned[:3], strict=True):
    here, there = angle(torch.tensor(start), gradient), angle(z_q[0], wish)
    print(f"z = {start}: angle of its gradient to it {here:.1f}°, at z_q {there:.1f}°")
print(
    "z = 0 has no direction to turn; its gradient is the straight-through one:",
    turned[3].tolist(),
)

# %%
ring = torch.cartesian_prod(torch.linspace(-0.75, 2.25, 7), torch.linspace(-0.75, 2.25, 7))
fig, axes = plots.figure(9, 4, columns=2)
for ax, (name, estimate) in zip(
    axes,
    {
        "Straight-through: one arrow for all": straight_through,
        "Rotation trick: arrows turn around the origin": rotation_trick,
    }.items(),
    strict=True,
):
    z = ring.clone().requires_grad_()
    moved = estimate(z, torch.tensor([1.2, 0.6]).expand_as(z))
    (arrows,) = torch.autograd.grad((moved * wish).sum(), z)
    ax.quiver(
        *ring.T,
        *-arrows.T,
        color=plots.COLOURS["train"],
        angles="xy",
        scale_units="xy",
        scale=6,
        width=0.005,
    )
    ax.plot(
        1.2, 0.6, "X", color=plots.COLOURS["validation"], markersize=11, label="code $z_q$"
    )
    ax.plot(0, 0, "o", color="black", markersize=5, label="origin")
    ax.set(title=name, aspect="equal", xlim=(-1.3, 2.8), ylim=(-1.3, 2.7))
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plots.show(
    fig,
    alt="Descent directions at a grid of latents that all chose one code. "
    "Straight-through: all arrows are equal. Rotation trick: the arrows turn with the "
    "direction of the latent around the origin, and are longer near the origin.",
)

# %% [markdown]
# ### Side by side
# The same encoder, decoder, number of codes, steps and learning rate, and several seeds each; the test images always go through whole codes.

# %%
ways = {
    "straight-through": (VectorQuantizer, {}),
    "rotation trick": (quantizers.VectorQuantizer, {"estimator": "rotation"}),
    "Gumbel-softmax": (GumbelQuantizer, {"anneal_steps": settings.steps}),
}
outcome = {name: [] for name in ways}
with torch.no_grad():
    untrained = new_model()
    z_e = untrained.encoder(x_test)
    lengths = z_e.norm(dim=1), untrained.quantizer(z_e).z_q.norm(dim=1)
print(f"before training ‖z_q‖/‖z‖ is {(lengths[1] / lengths[0]).median():.1f} (median)")
for name, (quantizer_class, options) in ways.items():
    for seed in range(session.seed + 1, session.seed + 1 + settings.seeds):
        trained = new_model(quantizer_class, seed, **options)
        train_model(trained, seed, label=f"{name}, seed {seed}")
        outcome[name].append(evaluate(trained))

# %%
for name, runs in outcome.items():
    values, used = [value for value, _ in runs], [int((c > 0).sum()) for _, c in runs]
    print(
        f"{name:<17} distortion {', '.join(f'{v:.3f}' for v in values)}   codes used {used}"
    )
for name, key in (
    ("straight-through", "straight_through"),
    ("rotation trick", "rotation"),
    ("Gumbel-softmax", "gumbel"),
):
    session.expect(
        f"distortion_{key}", sum(value for value, _ in outcome[name]) / len(outcome[name])
    )

# %%
fig, ax = plots.figure(5.5, 2.8)
for place, runs in enumerate(outcome.values()):
    ax.plot(
        [place] * len(runs), [value for value, _ in runs], "o", color=plots.COLOURS["train"]
    )
ax.set_xticks(range(len(outcome)), list(outcome))
ax.set(
    ylabel="test distortion",
    title="The first two lie close together, Gumbel-softmax is behind",
    ylim=(0, 1.1 * max(value for runs in outcome.values() for value, _ in runs)),
    xlim=(-0.5, 2.5),
)
plots.show(
    fig,
    alt="Test distortion of several seeds each for straight-through, the rotation trick "
    "and Gumbel-softmax: the first two lie near each other, Gumbel-softmax clearly higher.",
)

# %% [markdown]
# Straight-through and the rotation trick lie close together, nearer than some of the seeds do; Gumbel-softmax, which uses far fewer codes, is
# behind. That is *one* small task, with latents of two numbers, few steps and one learning rate for all. The rotation trick was published for
# large models whose codebooks follow running means ([chapter 05](05_ema_codebooks.ipynb)), and its authors measured gains there. One thing to
# keep an eye on: the rotation trick multiplies each gradient by ‖z_q‖/‖z‖, which is far from 1 before training (the line printed before the
# runs).
#
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
z = torch.linspace(0, 9, 24).sin().reshape(12, 2)
e = torch.linspace(0, 5, 10).cos().reshape(5, 2)
for offset in (0, 1000):
    assert torch.equal(
        nearest_code(z + offset, e + offset),
        quantizers.nearest_code(z + offset, e + offset),
    )
glue("proof.nearest_code", nearest_code(z, e).tolist(), display=False)
print("nearest code agrees:", True)


def with_gradients(result: Tensor, *inputs: Tensor) -> list[float]:
    """The value, then the gradient at each input, as one list."""
    weights = torch.linspace(1, 2, result.numel()).reshape(result.shape)
    gradients = torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True)
    parts = [
        result,
        *(
            torch.zeros_like(t) if g is None else g
            for g, t in zip(gradients, inputs, strict=True)
        ),
    ]
    return [number for part in parts for number in part.flatten().tolist()]


z, chosen = z.requires_grad_(), e[nearest_code(z, e)].detach().requires_grad_()
for name, mine, theirs in (
    ("straight_through", straight_through, quantizers.straight_through),
    (
        "codebook_loss",
        lambda z, c: vq_losses(z, c)[0],
        lambda z, c: quantizers.vq_losses(z, c)[0],
    ),
    (
        "commitment_loss",
        lambda z, c: vq_losses(z, c)[1],
        lambda z, c: quantizers.vq_losses(z, c)[1],
    ),
):
    numbers = with_gradients(mine(z, chosen), z, chosen)
    torch.testing.assert_close(
        torch.tensor(numbers), torch.tensor(with_gradients(theirs(z, chosen), z, chosen))
    )
    glue(f"proof.{name}", numbers, display=False)
    print(f"{name} agrees, value and gradients:", True)

a, b = torch.linspace(-1, 1, 5).requires_grad_(), torch.linspace(2, 3, 5).requires_grad_()
glue(
    "proof.stop_gradient_puzzle",
    with_gradients(stop_gradient_puzzle(a, b), a, b),
    display=False,
)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = quantizers.VectorQuantizer(7, 3)
mine = VectorQuantizer(7, 3)
mine.load_state_dict(theirs.state_dict())
numbers = {}
for name, quantizer in (("notebook", mine), ("companion", theirs)):
    z = torch.linspace(0, 20, 2 * 3 * 4 * 5).sin().reshape(2, 3, 4, 5).requires_grad_()
    output = quantizer(z)
    total = (output.z_q * z.detach().cos()).sum() + output.loss
    gradients = torch.autograd.grad(total, (z, quantizer.codebook))
    numbers[name] = {
        "z_q": output.z_q.flatten().tolist(),
        "indices": output.indices.flatten().tolist(),
        "losses": [
            output.loss.item(),
            output.losses["codebook"].item(),
            output.losses["commitment"].item(),
        ],
        "gradients": [
            number for gradient in gradients for number in gradient.flatten().tolist()
        ],
    }
for part in numbers["notebook"]:
    a, b = (torch.tensor(numbers[name][part]) for name in ("notebook", "companion"))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    print(f"{part:<10} agree:", True)
glue("proof.vector_quantizer", numbers["notebook"], display=False)

# %% [markdown]
# ## Play: one step a click
# Each latent (dot) has a place where the decoder would like to have its *code* (the small ring it hangs on; a grey line leads to it, a dotted
# one to its code): with the identity as decoder, the reconstruction loss is ‖z_q − ring‖². Straight-through gives the latent the gradient
# 2(z_q − ring), commitment adds 2β(z − z_q), and the codes (crosses) go to their latents. Click into the slider *steps* and press → for one
# step. Try β = 0 and watch where the dots go; then a learning rate of 0.08, which is too large for a code with many latents (the factor 1 −
# 2ηnₖ from above).

# %%
homes = cloud[::5]  # 60 latents
first_codes = torch.tensor([[-1.0, -0.5], [0.5, -0.5], [0.0, 1.0], [1.0, 0.5], [3.5, 3.0]])
explorers.codes_in_the_plane(homes, first_codes)

# %%
fig, axes = plots.figure(9.5, 3.6, columns=3)
for ax, beta in zip(axes, (0.0, 0.25, 1.0), strict=True):
    explorers.draw_steps(ax, homes, first_codes, steps=40, beta=beta, lr=0.02)
    ax.set(title=f"β = {beta:g}, 40 steps", xlabel="$z_1$")
axes[0].set_ylabel("$z_2$")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plots.show(
    fig,
    alt="Latents and codes after 40 steps for three values of β. With β = 0 and 0.25 the "
    "latents have moved away from their homes and codes, and all codes are in use. "
    "With β = 1 the latents are at home, and one code, which began far out, is "
    "where it was.",
)

# %% [markdown]
# As long as its code is not where the decoder wants it, the copied gradient goes on pushing the latent, in the same direction at every
# step, because it does not see where the latent is. With β = 0 nothing stops it but the border of the cell. With β > 0 it comes to rest
# where the two gradients cancel, 1/β times as far from the code as its home is (pen and paper, question 2); with β = 1 that is its home.
# Roaming has its use: with a small β some latents come across the code that began far out, and it is put to work; with β = 1 it stays dead.
#
# ## What breaks, and why
# **Losses taken after straight-through.** The most common mistake of all: z_q is overwritten by the straight-through version, and only then
# compared with z. That version has no way to the codebook:

# %% tags=["nbval-check-output"]


class LossesTooLate(quantizers.VectorQuantizer):
    def forward(self, z: Tensor) -> Quantized:
        right = super().forward(z)
        codebook_loss, commitment_loss = vq_losses(
            z, right.z_q
        )  # z_q is past straight-through
        losses = {"codebook": codebook_loss, "commitment": commitment_loss}
        return Quantized(
            right.z_q, right.indices, codebook_loss + 0.25 * commitment_loss, losses
        )


late = new_model(LossesTooLate)
for name, row in routing_table(late, x_train[:64]).items():
    print(
        f"{name:<16}", {part: "moves" if norm > 0 else "zero" for part, norm in row.items()}
    )

# %%
start = late.quantizer.codebook.detach().clone()
late_losses, _ = train_model(late, session.seed, label="losses too late")
first, last = (late_losses[i]["reconstruction"].item() / variance for i in (0, -1))
print(f"reconstruction loss over the variance: first {first:.2f}, last {last:.2f}")
print(
    "codes that moved:",
    int((late.quantizer.codebook.detach() != start).any(1).sum()),
    "of",
    len(start),
)
late_distortion, late_usage = evaluate(late)
one_grey = distortion(mse(x_train.mean().expand_as(x_test), x_test).item(), variance)
print(f"test distortion {late_distortion:.2f}, of one grey value {one_grey:.2f};", end=" ")
print(f"codes used on the test images: {int((late_usage > 0).sum())}")
session.expect("distortion_losses_too_late", late_distortion)

# %% [markdown]
# The loss falls all the same, from 1.63 to 1.02, and nothing crashes. But 1 is what a single grey value scores on the training images, by the
# definition of the unit, and on the test images the model is hardly better than that grey either: the decoder has learnt the mean, and the
# codes tell it next to nothing. A falling loss does not show the mistake, a routing table does. Look at its second row: that loss no longer
# moves the codebook, but the *encoder*, because z_q is on the encoder's graph now. In which direction?

# %% tags=["nbval-check-output"]
z, e = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
late_codebook_loss, late_commitment_loss = vq_losses(z, straight_through(z, e))
for name, loss in (("codebook", late_codebook_loss), ("commitment", late_commitment_loss)):
    (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
    print(
        f"code at (1, 0), latent at 0; the {name:<10} loss moves the latent towards",
        (0 - gradient).tolist(),
    )

# %% [markdown]
# *Away* from its code, four times as strongly as the commitment loss with β = 0.25 pulls it back. (The opposite slip, z_q not detached in
# straight-through, shows in the table as "reconstruction moves codebook".)
#
# **The wrong scale of the first codes.** U(−√3, √3) instead of U(−√(3/D), √(3/D)) has variance 1 in each dimension instead of 1/D. In two
# dimensions that is hardly seen; with 64 the codes are eight times too long, and those that happen to be short win everything:

# %%
draws = torch.Generator().manual_seed(0)
for D in (2, 8, 64):
    vectors = torch.randn(20_000, D, generator=draws) / D**0.5
    for name, bound in (("√(3/D)", (3 / D) ** 0.5), ("√3", 3**0.5)):
        first_codes = (2 * torch.rand(512, D, generator=draws) - 1) * bound
        counts = torch.bincount(nearest_code(vectors, first_codes), minlength=512)
        used, share = (counts > 0).sum(), counts.max().item() / len(vectors)
        start = f"D = {D:<3} U(±{name:<6})"
        print(f"{start}: {used:>3} of 512 codes used, the most used by {share:.0%}")

# %% [markdown]
# **Dead codes.** A code that nobody chooses has gradient exactly 0, so it never moves, so nobody chooses it: the circles in the picture of the
# travelling codes. Where the codes start decides how many of them there are. The same model, with codes that start ten times as far out:

# %%
spread = new_model()
with torch.no_grad():
    spread.quantizer.codebook.mul_(10)
train_model(spread, session.seed, label="codes too far out")
far_distortion, far_usage = evaluate(spread)
for name, value, counts in (
    ("as above", test_distortion, usage),
    ("ten times too far out", far_distortion, far_usage),
):
    used = (counts > 0).sum()
    print(
        f"{name:<22} {used:>2} of {settings.num_codes} codes used, distortion {value:.3f}"
    )

# %% [markdown]
# [Chapter 05](05_ema_codebooks.ipynb) gives dead codes a new place.
#
# **One NaN.** A latent that is not a number has no nearest code, and `argmin` gives an index all the same. What follows takes two steps:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
e = torch.randn(6, 2, requires_grad=True)
z = torch.randn(40, 2)
z[0] = torch.nan  # one bad latent of forty
for step in range(3):
    k = (z[:, None] - e[None]).square().sum(2).argmin(1)
    bad = int(e.isnan().any(1).sum())
    print(f"step {step}: codes in use {k.unique().numel()}, codes that are NaN {bad}")
    (gradient,) = torch.autograd.grad((z - e[k]).square().mean(), e)
    e = (e - 0.1 * gradient).detach().requires_grad_()
try:
    quantizers.nearest_code(z, torch.randn(6, 2))
except ValueError as refused:
    print("the companion:", refused)

# %% [markdown]
# The bad latent chose a code and made it NaN; every distance to that code is NaN from then on, `argmin` takes NaN for the smallest, and
# *all* latents choose it. The companion says so at the first step, and leaves the codebook as it was.
#
# **A lookup in half precision** was measured at the start of this chapter: around the origin about one wrong code in a hundred, at
# offset 10 four in five.
#
# ## Pen and paper
# 1. Two codes, one chosen by 90 latents and one by 10; the codebook loss is a mean over N = 100 latents and D dimensions, and plain
#    gradient descent has one learning rate η. Which η takes the first code to the mean of its latents in one step? Where does it take the
#    second? For which η do both converge?
# 2. The decoder is the identity, one code e stands still, and the latent z feels straight-through plus commitment: its gradient is 2(e − x)
#    + 2β(z − e). Where does it come to rest? What happens if that point lies in another code's cell?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. The gradient is 2nₖ(e_k − mₖ)/(N·D), so η = N·D/(2nₖ) lands on the mean: η = 100·D/180 ≈ 0.56 D for the first. The second then goes
#    10/90 = 1/9 of its way. A step multiplies the distance by 1 − 2ηnₖ/(N·D), which converges if it lies between −1 and 1: η < N·D/nₖ for
#    the largest nₖ, so η < 1.11 D. The rate that would be perfect for the second, 5 D, makes the first diverge.
# 2. At z = e + (x − e)/β: with β = 0.25, four times as far from the code as x is, on the same side. If that point is in another cell, z
#    never gets there: at the border it changes its code, and from then on feels another. That is how straight-through finds better codes,
#    and why a small β lets it look further.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * Quantising is a search for the nearest code, N·K·D operations; the expanded square makes it a matrix product and needs centring and
#   float32 to be right.
# * For fixed latents, learning the codes is k-means; the codebook loss does its mean step by gradient descent.
# * `argmin` has no gradient. Straight-through copies the gradient from z_q to z_e; sg[z_q] + (z − sg[z]) has z_q's value to the bit.
# * Reconstruction moves decoder and encoder, the codebook loss moves the codebook, the commitment loss moves the encoder: four fields of
#   nine. β scales the last one only.
# * The value of a loss with stop-gradients does not show what is learnt. Measure the gradients.
#
# **Further experiments.** Repeat the side-by-side comparison at other learning rates: does the order stay? Give the model latents of 4 or 16 numbers
# (`dim` in `new_model`): how many codes are used, and what is the distortion? Set β to 0 and to 4 in `new_model`:
# where do latents and codes end?
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (section 3.2, equation 3). Y.
# Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013. S. Lloyd: *Least squares
# quantization in PCM*, 1957, printed 1982. E. Jang, S. Gu, B. Poole: *Categorical Reparameterization with Gumbel-Softmax*, 2017 (equation
# 2). C. Maddison, A. Mnih, Y. W. Teh: *The Concrete Distribution*, 2017. M. Niepert, P. Minervini, L. Franceschi: *Implicit MLE*, 2021. C.
# Fifty et al.: *Restructuring Vector Quantization with the Rotation Trick*, 2024. Y. Ganin, V. Lempitsky: *Unsupervised Domain Adaptation
# by Backpropagation*, 2015. The claims tested above are from the source reports *Description of VQVAE*, S. Zhao: *VQ-VAE and Transformer*,
# 2023 (sections 2.2 to 2.4) and H. Yesiltepe: *VQ-VAE*, 2022.

# %% [markdown]
# # 03 · Vector quantisation and the stop-gradient
#
# **The question.** How can a vector of real numbers be replaced by one of K codes? And how can a network learn through a choice that has no gradient? You end
# with this picture: on the left the codes and the cells they own, on the right who learns from which loss.
#
# ![Left: latents and codes in the plane, with their cells. Right: which parts learn from which loss.](../chapters/pictures/03_vector_quantisation.png)
#
# **Afterwards you can** find the nearest code, say what a stop-gradient does and does not do, write the straight-through estimator and the two losses of VQ-VAE,
# and check for any model which loss moves which weights.
#
# **Needed:** [chapter 01](01_autoencoder.ipynb). **Time**, an estimate: an hour and a quarter of yours, and another hour for the exercises; the computer's is in
# the table below. [Study 03b](03b_past_the_argmin.ipynb) goes on with other gradients for a choice.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor, nn
from tqdm.auto import tqdm

from companion import plots, quantizers
from companion.course import begin, check, explorers
from companion.course.results import results
from companion.metrics import distortion, mse
from companion.quantizers import Quantized

session = begin("03_vector_quantisation")
settings, device = session.settings, session.device
train, test = session.data()

# %% [markdown]
# ## Predict
# Here is the model. An **encoder** turns an image $x$ into vectors $z_e$, the **latents**. Each latent is replaced by the nearest vector of a table, the
# **codebook** $e$, and the result is called $z_q$. A **decoder** makes an image $\hat x$ of it. What for? An image is then a row of whole numbers, and those
# can be predicted one by one, as a language model predicts words ([chapter 07](07_transformer_prior.ipynb)).


# %% tags=["hide-input"]
def draw_model(ax, *, gradients: bool) -> None:
    """Black: the forward pass. Dotted: what each loss compares. Or its gradient, in colour."""
    blue, orange, green = (plots.COLOURS[c] for c in ("train", "validation", "third"))
    ax.set(xlim=(0, 16), ylim=(0.3, 8.2))
    ax.set_axis_off()

    def box(x, y, text, face="white", edge="black", ink="black"):
        style = {"boxstyle": "round,pad=0.4", "facecolor": face, "edgecolor": edge}
        ax.text(x, y, text, ha="center", va="center", color=ink, bbox=style, zorder=3)

    def arrow(start, end, colour="black", bend=0.0, **style):
        style = {"arrowstyle": "-|>", "linewidth": 1.3} | style
        curve = f"arc3,rad={bend}"
        ends = {"shrinkA": 0, "shrinkB": 0, "connectionstyle": curve, "color": colour}
        ax.annotate("", end, start, arrowprops=style | ends)

    for x, text in ((0.5, "$x$"), (5, "$z_e$"), (10, "$z_q$"), (15.4, "$\\hat x$")):
        ax.text(x, 5, text, ha="center", va="center", fontsize=14)
    for x, text in ((2.6, "encoder"), (7.5, "nearest\ncode"), (12.7, "decoder")):
        box(x, 5, text)
    box(7.5, 2.7, "codebook $e$")
    arrow((7.5, 3.2), (7.5, 4.2))
    for start, end in ((0.9, 1.5), (3.7, 4.5), (5.5, 6.5), (8.5, 9.5), (10.5, 11.6)):
        arrow((start, 5), (end, 5))
    arrow((13.8, 5), (15, 5))
    for x, y, text, colour in (
        (8, 7.6, "reconstruction loss", blue),
        (3.6, 1, "commitment loss", green),
        (11.5, 1, "codebook loss", orange),
    ):
        box(x, y, text, colour, "none", "white")
    if gradients:
        thick = {"linewidth": 2.5}
        arrow((10.1, 7.6), (15.3, 5.6), blue, -0.35, **thick)
        arrow((15.1, 5.75), (10.3, 5.75), blue, **thick)
        arrow((9.8, 5.75), (5.2, 5.75), blue, 0.2, linestyle="--", **thick)
        ax.text(7.5, 6.5, "copied (straight-through)", ha="center", color=blue)
        arrow((4.7, 5.75), (1.4, 5.75), blue, **thick)
        arrow((3.8, 1.6), (4.9, 4.4), green, **thick)
        arrow((4.7, 4.25), (1.4, 4.25), green, **thick)
        arrow((10.4, 1.5), (8.2, 2.25), orange, **thick)
        return
    dotted = {"arrowstyle": "-", "linestyle": ":", "linewidth": 1.8}
    arrow((0.5, 5.5), (6.1, 7.6), blue, -0.3, **dotted)
    arrow((15.4, 5.5), (9.9, 7.6), blue, 0.3, **dotted)
    ax.text(7.6, 1, "$\\|z_e - z_q\\|^2$", ha="center", va="center")
    arrow((5, 4.5), (4.1, 1.6), green, **dotted)
    arrow((6.3, 1), (5.5, 1), green, **dotted)
    arrow((10, 4.5), (11, 1.6), orange, **dotted)
    arrow((8.9, 1), (9.7, 1), orange, **dotted)


fig, ax = plots.figure(7, 3.6)
draw_model(ax, gradients=False)
ax.set_title("The model, and what its three losses compare")
plots.show(
    fig,
    alt="A row from left to right: image x, encoder, latents z_e, nearest code, z_q, decoder, "
    "image x-hat; the codebook feeds the nearest code from below. Above, the reconstruction "
    "loss compares x and x-hat. Below, the commitment loss and the codebook loss both "
    "compare z_e and z_q.",
)

# %% [markdown]
# The **reconstruction loss** compares $\hat x$ with $x$. The **codebook loss** pulls each code towards the latents that chose it, and the **commitment loss**
# pulls each latent towards its code. Draw a table: a row for each loss, a column for each part (encoder, codebook, decoder). In which of the nine fields does
# the loss move the part? You measure all nine below.
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
# That is all of **vector quantisation** ([glossary](glossary.md)): $z_q = e_k$, where $k = \arg\min_j \|z_e - e_j\|^2$ is the **index** of the nearest code. Six
# pairs of real numbers became six whole numbers. Code 3 was chosen by nobody.
#
# All points that would choose a code are its **Voronoi cell**. On the border between two cells both codes are equally far away, so the border is a straight
# line, halfway between them. Here eight codes among 300 latents:

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(session.seed)
centres = torch.tensor([[-2.0, -1.0], [2.0, -1.5], [0.0, 2.0]])
cloud = centres.repeat_interleave(100, 0)
cloud = cloud + 0.7 * torch.randn(300, 2, generator=generator)  # (300, 2), three clumps
codes = 2 * torch.randn(8, 2, generator=generator)  # (8, 2), anywhere

fig, ax = plots.figure(5, 4)
plots.draw_cells(ax, codes, cloud)
ax.set(
    title="Each code (cross) owns the points of its cell",
    xlabel="$z_1$",
    ylabel="$z_2$",
)
plots.show(
    fig,
    alt="Three clumps of points in the plane, eight codes marked by crosses with their "
    "numbers, and straight lines between the cells of the codes. The codes lie "
    "anywhere, some far from all points.",
)

# %% [markdown]
# ### Without the big table
# `z[:, None] - codebook[None]` holds N × K × D differences. Take 64 images with 49 latents each, and 8,192 codes of 64 dimensions: that is 6.6 GB. But
#
# $$\|z - e\|^2 = \|z\|^2 - 2\, z\cdot e + \|e\|^2,$$
#
# and the middle term for all pairs is *one matrix product* of (N, D) with (D, K), which leaves an N × K table only. The first term is the same for every code.
# It cannot change which one wins, so we leave it out.

# %% tags=["nbval-check-output"]
expanded = codebook.square().sum(1) - 2 * z @ codebook.T  # (6, 4): ‖z − e‖² − ‖z‖²
print("the same codes:", torch.equal(expanded.argmin(1), k))

# %% [markdown]
# There is a catch. Move latents *and* codes by the same offset: no distance changes, but $\|e\|^2$ and $z\cdot e$ become huge. A float32 keeps about seven
# digits, and the small differences lie in those that it rounds away. (You would not weigh a letter by weighing a lorry with and without it.)
# How many of 4,096 latents get another code than in float64?


# %%
def expansion(z: Tensor, codebook: Tensor) -> Tensor:
    return (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


def centred(z: Tensor, codebook: Tensor) -> Tensor:
    """First move both, so that the mean of the codes is at the origin."""
    return expansion(z - codebook.mean(0), codebook - codebook.mean(0))


draws = torch.Generator().manual_seed(0)
latents = torch.randn(4096, 64, generator=draws)
some_codes = torch.randn(512, 64, generator=draws)
print(f"{'wrong codes':<14}{'expansion':>12}{'torch.cdist':>12}{'centred':>12}")
for offset in (0, 10, 100, 1000):
    far, far_codes = latents + offset, some_codes + offset
    exact = torch.cdist(
        far.double(), far_codes.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    found = expansion(far, far_codes), torch.cdist(far, far_codes).argmin(1)
    found += (centred(far, far_codes),)
    wrong = [(k_found != exact).float().mean().item() for k_found in found]
    print(f"offset {offset:<7}" + "".join(f"{share:>12.2%}" for share in wrong))

# %% [markdown]
# At offset 100 one in fifty is wrong, at 1,000 most are. `torch.cdist` expands too (for more than 25 rows), and errs the same. Subtracting the mean of the codes
# from both cures it. Real latents do have means: nothing in the loss keeps them at the origin.
#
# ### Exercise 3.1 · nearest code  (easy, 10 minutes)
# Give the index of the nearest code for each row of `z`, without an (N, K, D) array, and correctly even far from the origin. Leave the inputs as they are.
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
# The search costs about N·K·D multiplications. ([Study 03b](03b_past_the_argmin.ipynb) times it, and tries it in half precision.)
#
# ## Where should the codes be?
# Where they make the squared error $J = \sum_i \|z_i - e_{k(i)}\|^2$ small; $k(i)$ is the code that latent $i$ chose. If the latents are fixed, this is an old
# problem with an old answer, **k-means** (Lloyd 1957). Take turns:
#
# 1. codes fixed: each latent chooses its nearest code;
# 2. choices fixed: each code moves to the **mean** of the latents that chose it.
#
# Neither step can raise $J$: nothing has a smaller sum of squared distances than the mean (chapter 00, pen and paper). The gradient says so, too.
# If $n_k$ latents with the mean $m_k$ chose code $k$, then
#
# $$\frac{\partial J}{\partial e_k} = \sum_{i:\,k(i)=k} 2\,(e_k - z_i) = 2\, n_k\,(e_k - m_k),$$
#
# which is 0 exactly at $e_k = m_k$, and points away from the mean elsewhere. So gradient descent takes a code there as well, only slowly. A code without latents
# has $n_k = 0$, and stays.

# %%
moved = codes.clone()
errors = []
for _ in range(25):
    choice = nearest_code(cloud, moved)  # (300,)
    errors.append(mse(moved[choice], cloud).item())
    counts = torch.bincount(choice, minlength=8)[:, None]  # (8, 1): n_k
    sums = torch.zeros(8, 2).index_add(0, choice, cloud)
    moved = torch.where(counts > 0, sums / counts.clamp(min=1), moved)
print("mean squared error at the first steps:", [f"{error:.2f}" for error in errors[:5]])
never_rose = bool((torch.tensor(errors).diff() < 1e-6).all())
print(f"and at the end: {errors[-1]:.2f}; it never rose: {never_rose}")

# %% tags=["hide-input"]
fig, ax = plots.figure(5, 4)
plots.draw_cells(ax, moved, cloud)
ax.set(
    title="After k-means: codes in the middle of their points",
    xlabel="$z_1$",
    ylabel="$z_2$",
)
plots.show(
    fig,
    alt="The three clumps after k-means: the eight codes have moved into the clumps, each "
    "into the middle of its points.",
)

# %% [markdown]
# ## `argmin` has no gradient
# So far the latents were given. An encoder has to *learn* them, and for that a gradient has to come back from the decoder through $z_q = e_k$ to $z_e$. Does it?

# %% tags=["nbval-check-output"]
z_e = torch.tensor([[0.7, 0.4], [1.6, 0.9]], requires_grad=True)
e = codebook.clone().requires_grad_()
k = nearest_code(z_e, e)
z_q = e[k]
gradients = torch.autograd.grad(z_q.sum(), (z_e, e), allow_unused=True)
print("indices:", k.tolist(), "  gradient of z_q at z_e:", gradients[0])
print("gradient of z_q at the codebook:", gradients[1].tolist())

# %% [markdown]
# `None`: there is a path from $z_q$ to the chosen codes, but none to $z_e$. And autograd is right. Move a latent a little, and nearly always
# *nothing* happens to its code, so the derivative is 0. At a border $z_q$ jumps, and there is no derivative. Here a latent walks across the last picture, at
# $z_2 = -0.8$:

# %% tags=["hide-input"]
walk = torch.linspace(-3, 3, 1201)
line = torch.stack([walk, torch.full_like(walk, -0.8)], 1)  # (1201, 2)
nearest = nearest_code(line, moved)
smallest = (line - moved[nearest]).norm(dim=1)

fig, (left, right) = plots.figure(8, 2.8, columns=2)
left.plot(walk, smallest, color=plots.COLOURS["train"])
left.set(xlabel="position of $z_e$", ylabel="distance to its code", title="min has kinks")
right.plot(
    walk, moved[nearest, 0], color=plots.COLOURS["validation"], drawstyle="steps-post"
)
right.set(
    xlabel="position of $z_e$",
    ylabel="first number of $z_q$",
    title="argmin is a staircase",
)
plots.show(
    fig,
    alt="A latent moves along a line. Left: the distance to its nearest code, a "
    "continuous curve with kinks. Right: the first coordinate of its code, a staircase with "
    "flat steps and sudden jumps.",
)

# %% [markdown]
# The *smallest distance* is continuous. The *index* of the nearest code jumps. The encoder has to learn to climb this staircase, whose slope is 0: we have to
# put something else in the place of its gradient. The tool for that comes first.
#
# ## The stop-gradient
# $\mathrm{sg}[u]$, the **stop-gradient**, has the value of $u$, and for the gradient it is a constant. In PyTorch it is `u.detach()`.
#
# It looks harmless. What does it do to a loss? An example without codes: take vectors $x$, $y$, a number $\theta$,
# $r = y - \theta x + \mathrm{sg}[\theta^2 x]$ and the loss $L = \|r\|^2$. The bracket counts as a constant, so $\partial r/\partial\theta = -x$, and
#
# $$\frac{\partial L}{\partial\theta} = -2\, x\cdot r .$$
#
# Here with $y = x$, where the value is $L = (1 - \theta + \theta^2)^2\,\|x\|^2$:

# %% tags=["nbval-check-output"]
x = torch.tensor([1.0, 2.0], dtype=torch.float64)


def loss_of(theta: Tensor, inside: Tensor) -> Tensor:
    r = x - theta * x + inside**2 * x
    return r @ r


for value in (0.0, 0.5, 1.0):
    theta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    with_sg = loss_of(theta, theta.detach())
    (g_sg,) = torch.autograd.grad(with_sg, theta)
    (g_full,) = torch.autograd.grad(loss_of(theta, theta), theta)
    print(
        f"θ = {value:<5} loss {with_sg:.2f}   gradient with sg {g_sg:.2f}, without {g_full:.2f}"
    )

# %% [markdown]
# At θ = 1 the two gradients have opposite signs. The true minimum of $L$ is at θ = ½. But $-2\,x\cdot r$ is negative for every θ, so a descent with the
# stop-gradient never stops:

# %%
theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
for step in range(9):
    loss = loss_of(theta, theta.detach())
    (gradient,) = torch.autograd.grad(loss, theta)
    print(f"step {step}: θ = {theta.item():.3f}   loss {loss.item():6.3f}")
    theta = (theta - 0.02 * gradient).detach().requires_grad_()

# %% [markdown]
# The loss falls, passes its minimum and *rises*, while gradient descent does exactly what it was told. Remember this: **a stop-gradient changes what is
# learnt, and leaves the value of the loss as it was.** So from here on we look at gradients, tensor by tensor.
#
# ### Exercise 3.2 · a stop-gradient puzzle  (medium, 10 minutes)
# Two players: a wants the product a·b small, b wants it large. Write one expression whose **value** is a·b (elementwise), whose gradient for a
# is that of a·b, and whose gradient for b is **minus** that of a·b. One loss, one optimizer, and the two play against each other. (Adversarial training has
# this form: Ganin and Lempitsky 2015.)
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
# The decoder gets $z_q$ and sends back $\partial L/\partial z_q$: the direction in which its input would make the loss **rise** fastest. Gradient descent steps
# *against* it. But the one that has to step is the encoder, and the path to it is cut. The **straight-through estimator** (Bengio et al. 2013; van den Oord et al.
# 2017, section 3.2) hands the gradient on to $z_e$, as if quantising had changed nothing:
#
# $$\text{value: } z_q, \qquad \frac{\partial L}{\partial z_e} := \frac{\partial L}{\partial z_q}.$$
#
# This is not the derivative of what was computed; that is 0. It treats the gap $z_q - z_e$ as a constant, so that the code would move along with the latent. On a
# line, with codes at 0, 1 and 2:

# %% tags=["hide-input"]
levels = torch.tensor([[0.0], [1.0], [2.0]])
across = torch.linspace(-0.5, 2.5, 601)[:, None]  # (601, 1)
fig, ax = plots.figure(5, 3.2)
ax.plot(
    across,
    levels[nearest_code(across, levels)],
    color=plots.COLOURS["validation"],
    label="$z_q$",
)
for place, label in (
    (0.2, "what straight-through pretends"),
    (0.8, ""),
    (1.4, ""),
    (1.9, ""),
):
    level = round(place)
    ends = torch.tensor([-0.3, 0.3])
    ax.plot(
        place + ends, level + ends, ":", color=plots.COLOURS["train"], label=label or None
    )
    ax.plot(place, level, "o", color=plots.COLOURS["train"])
ax.set(xlabel="$z_e$", ylabel="$z_q$", title="Around each latent (dot) a ramp of slope 1")
ax.legend()
plots.show(
    fig,
    alt="A staircase of z_q against z_e with steps at 0, 1 and 2. Through each of four dots on "
    "it goes a dotted line that rises at 45 degrees.",
)

# %% [markdown]
# So straight-through is a guess. It is good if the next code in that direction makes the loss smaller.
#
# It is usually written $z_e + \mathrm{sg}[z_q - z_e]$: the bracket is a constant, and the value is $z_q$, on paper. In float32:

# %%
draws = torch.Generator().manual_seed(0)
z_some = torch.randn(10_000, generator=draws)
code_some = torch.randn(10_000, generator=draws)
usual = z_some + (code_some - z_some)
print(
    f"equal to z_q to the bit: {(usual == code_some).float().mean():.0%} of 10,000 numbers"
)
off = (1e4 * z_some + (code_some - 1e4 * z_some) - code_some).abs().max()
print(f"with z_e 10,000 times as large it is off by up to {off:.1e}")

# %% [markdown]
# Written so, the decoder would get slightly other numbers in training than later, from the stored codes.
#
# ### Exercise 3.3 · straight-through  (easy, 10 minutes)
# Return the value of `z_q` **to the bit**, with the gradient of `z`. Nothing may flow into `z_q`, as it would go on to the codebook; in VQ-VAE that has a loss
# of its own.
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
# Does it climb the staircase? Three codes on a line, at 0, 1 and 2. The decoder is the identity, and the image is the number 2. The latent starts at 0.1:

# %% tags=["nbval-check-output"]
three_codes = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
latent = torch.tensor([[0.1]])
for step in range(9):
    latent.requires_grad_()
    chosen = three_codes[nearest_code(latent, three_codes)]
    z_q = straight_through(latent, chosen)
    loss = (z_q - 2).square().sum()
    at_z_q, at_z_e, at_codes = torch.autograd.grad(
        loss, (z_q, latent, three_codes), allow_unused=True
    )
    print(
        f"step {step}: z_e = {latent.item():.2f}, z_q = {z_q.item():.0f}, loss {loss.item():.0f}"
        f"   gradient at z_q {at_z_q.item():.0f}, at z_e {at_z_e.item():.0f}"
    )
    latent = (latent - 0.08 * at_z_e).detach()
print("gradient at the codebook:", at_codes)

# %% [markdown]
# It does. The loss stands still while the latent walks through a cell, and drops when it crosses a border. Now look at the end: two things are missing.
#
# * The latent stops as soon as it has the right code, far from it. **Nothing keeps latents near their codes.** The gradient does not even see where in the cell
#   the latent is.
# * The gradient at the codebook is `None`, as `straight_through` lets nothing pass. **Nothing moves the codes.**
#
# ## Codebook and commitment loss
# One squared distance serves both, with the stop-gradient on the one side or the other (van den Oord et al. 2017, equation 3):
#
# $$L = \underbrace{\|x - \hat x\|^2}_{\text{reconstruction}}
# + \underbrace{\|\mathrm{sg}[z_e] - z_q\|^2}_{\text{codebook loss}}
# + \beta\,\underbrace{\|z_e - \mathrm{sg}[z_q]\|^2}_{\text{commitment loss}} .$$
#
# The **codebook loss** moves codes to their latents: it is the mean step of k-means, by gradient descent. The **commitment loss** moves latents to their codes.
# The two have the same value and different gradients. The weight $\beta$ is 0.25 in the paper. In this course all three are means, over pixels, or over
# positions and dimensions.
#
# <details><summary>What differs in the paper</summary>
#
# It writes squared lengths, which are sums over the D dimensions; beside the same reconstruction loss its β would weigh D times as much. Results, it says,
# hardly varied for β between 0.1 and 2. Its first term is $\log p(x|z_q)$, which is to be *maximised*, while the others are to be minimised. Whoever copies the
# sum and minimises it whole has the wrong sign; with the MSE, or with $-\log p$, the sign is right.
# </details>
#
# ### Exercise 3.4 · the two losses  (easy, 10 minutes)
# Return both, unweighted, in this order, as means over all numbers. The check looks at where each one's gradient goes.
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
# ### What β does
# It scales the pull on the latent; the pull on the code has no β. Latent at 0, code at 1 (printed in this order), gradient descent on codebook loss +
# β · commitment loss:

# %% tags=["nbval-check-output"]
for beta in (0.25, 1.0, 4.0):
    latent, code = torch.tensor([0.0]), torch.tensor([1.0])
    for step in range(2000):
        latent.requires_grad_(), code.requires_grad_()
        codebook_loss, commitment_loss = vq_losses(latent, code)
        pulls = torch.autograd.grad(codebook_loss + beta * commitment_loss, (latent, code))
        if step == 0:
            first = [round(-pull.item(), 3) for pull in pulls]
        latent, code = (
            (v - 0.02 * g).detach() for v, g in zip((latent, code), pulls, strict=True)
        )
    print(f"β = {beta:<5} first step along {first}   they meet at {latent.item():.3f}")

# %% [markdown]
# They meet at $\beta/(1+\beta)$, with β = 0.25 a fifth of the way: mostly the code goes to the latent. (That is plain gradient descent. Adam divides each
# gradient by its own size; [chapter 04](04_vq_vae.ipynb) looks at what is left of such weights then.)
#
# ## The vector quantizer
# The encoder of an image gives a *grid* of latents, (B, D, h, w): at each of h·w **positions** a vector of D numbers, spread over the channels. The search wants
# rows. `reshape(-1, D)` alone would cut across positions; the channels have to come last first:

# %% tags=["nbval-check-output"]
grid = torch.arange(12.0).reshape(1, 2, 2, 3)  # one image, D = 2, h = 2, w = 3
print("the vector at the first position:", grid[0, :, 0, 0].tolist())
print("reshape alone, first row:        ", grid.reshape(-1, 2)[0].tolist())
print("channels last, first row:        ", grid.movedim(1, -1).reshape(-1, 2)[0].tolist())

# %% [markdown]
# ### Exercise 3.5 · `VectorQuantizer`  (medium, 20 minutes)
# Put `nearest_code`, `vq_losses` and `straight_through` together. `__init__` is given; write `forward`, for latents with any number of spatial axes (none, too).
# Give back the companion's `Quantized`, whose fields are
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
# Now the nine fields of your prediction. A small model for the measurement: the encoder turns each patch of 4 × 4 pixels into a latent of two numbers, so that
# we can draw it, and the decoder turns each code back into a patch.


# %%
class PatchModel(nn.Module):
    """Each 4 × 4 patch -> a latent of D numbers -> a code -> a patch."""

    def __init__(self, quantizer: nn.Module, channels: int = 1, width: int = 32):
        super().__init__()
        D = quantizer.dim
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=4), nn.ReLU(), nn.Conv2d(width, D, 1)
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            nn.Conv2d(D, width, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=4),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized, dict[str, Tensor]]:
        """The reconstruction, what the quantizer gave, and the three losses by name."""
        quantized = self.quantizer(self.encoder(x))  # of (B, D, H/4, W/4)
        x_hat = self.decoder(quantized.z_q)  # (B, C, H, W)
        return x_hat, quantized, {"reconstruction": mse(x_hat, x)} | quantized.losses


x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00


def new_model(
    quantizer_class=VectorQuantizer, dim: int = 2, width: int = 32, **options
) -> PatchModel:
    """An untrained patch model; the options are the quantizer's."""
    torch.manual_seed(session.seed)
    quantizer = quantizer_class(settings.num_codes, dim, **options)
    torch.manual_seed(session.seed + 1000)
    return PatchModel(quantizer, train.shape[0], width).to(device)


def routing_table(model: PatchModel, x: Tensor) -> dict[str, dict[str, float]]:
    """For each loss, the norm of its gradient in each part of the model."""
    parts = {
        "encoder": list(model.encoder.parameters()),
        "codebook": [model.quantizer.codebook],
        "decoder": list(model.decoder.parameters()),
    }
    table = {}
    _, _, losses = model(x)
    for name, loss in losses.items():
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
moving = {name: [part for part in row if row[part] > 0] for name, row in table.items()}
for name, parts in moving.items():
    print(f"the {name} loss moves: {', '.join(parts)}")
print("fields that are not zero:", sum(len(parts) for parts in moving.values()))

# %% [markdown]
# Four fields of nine. Compare with your prediction. The zeros are exact: they are not small numbers but paths that do not exist in the graph. Drawn
# into the first picture:

# %% tags=["hide-input"]
fig, ax = plots.figure(7, 3.6)
draw_model(ax, gradients=True)
ax.set_title("The path of each gradient, from its loss to the parts it moves")
plots.show(
    fig,
    alt="The same row of encoder, nearest code and decoder. A blue arrow leads from the "
    "reconstruction loss back through the decoder to z_q, jumps as a dashed arrow, copied, "
    "to z_e and goes on through the encoder. A green one leads from the commitment loss to "
    "z_e and through the encoder, an orange one from the codebook loss to the codebook.",
)

# %% [markdown]
# **Often written, not so:** of the codebook loss one report says that its gradient flows "only to the decoder". The decoder's field in that row is zero. The loss
# flows to the **codebook**, which is no part of the decoder. A table of nine numbers settles such a question in a minute, for any model.
#
# ## Train and look
# Gradient descent on all three losses at once. The codes are noted on the way.


# %%
def train_model(model: PatchModel, notes: tuple[int, ...] = (), label: str = ""):
    """Train with Adam; gives the losses, and the codes before the steps in `notes`."""
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    order = torch.Generator().manual_seed(session.seed)
    history, noted = [], {}
    try:
        for step in tqdm(range(settings.steps), unit="step", desc=label):
            if step in notes:
                noted[step] = model.quantizer.codebook.detach().cpu().clone()
            rows = torch.randint(len(x_train), (settings.batch_size,), generator=order)
            _, quantized, losses = model(x_train[rows.to(device)])
            adam.zero_grad()
            (losses["reconstruction"] + quantized.loss).backward()
            adam.step()
            history.append({name: loss.detach() for name, loss in losses.items()})
    except KeyboardInterrupt:
        print(f"Stopped after step {len(history)}: going on with what was trained so far.")
    noted[len(history)] = model.quantizer.codebook.detach().cpu().clone()
    return history, noted


@torch.no_grad()
def evaluate(model: PatchModel) -> tuple[float, Tensor]:
    """Distortion of the test images, and how often each code was chosen on them."""
    x_hat, quantized, _ = model.eval()(x_test)
    counts = torch.bincount(quantized.indices.flatten(), minlength=settings.num_codes)
    return distortion(mse(x_hat, x_test).item(), variance), counts.cpu()


model = new_model()
history, noted = train_model(model, (0, settings.steps // 4))
test_distortion, usage = evaluate(model)
print(f"{(usage > 0).sum()} of {settings.num_codes} codes are used on the test images")
with torch.no_grad():
    favourite = model.quantizer.codebook[usage.argmax()].reshape(1, 2, 1, 1)
    patch = model.decoder(favourite)  # (1, C, 4, 4)
print(f"the code used most is decoded to a patch of mean brightness {patch.mean():.2f}")
session.expect("distortion", test_distortion)

# %% tags=["hide-input"]
fig, axes = plots.figure(9, 3, columns=2)
for name, label, style in (
    ("reconstruction", "reconstruction", "-"),
    ("codebook", "codebook = commitment", "--"),
):
    curve = torch.stack([row[name] for row in history]).cpu()
    axes[0].plot(curve, style, linewidth=1, label=label)
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
    "sorted: one code stands far above the rest, some are at zero.",
)

# %% tags=["hide-input"]
with torch.no_grad():
    z_test = model.encoder(x_test).movedim(1, -1).reshape(-1, 2).cpu()
shown = z_test[torch.randperm(len(z_test), generator=generator)[:2000]]
alive = usage > 0
fig, axes = plots.figure(8.5, 3.3, columns=len(noted))
for ax, (step, codes_then) in zip(axes, noted.items(), strict=True):
    ax.scatter(*shown.T, s=2, color="#BBBBBB", linewidths=0, label="latents at the end")
    ax.scatter(
        *codes_then[alive].T,
        s=25,
        marker="x",
        color=plots.COLOURS["validation"],
        label="codes in use at the end",
    )
    ax.scatter(
        *codes_then[~alive].T,
        s=25,
        facecolors="none",
        edgecolors="black",
        label="codes that nobody uses",
    )
    ax.set(title=f"after step {step}" if step else "before training", xlabel="$z_1$")
axes[0].set_ylabel("$z_2$")
fig.suptitle("The codes spread over the latents; those that nobody uses stay behind")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plots.show(
    fig,
    alt="Three pictures of the latent plane: before, early in, and after the training. The codes "
    "in use spread over the latents; those that are not used at the end lie together at one "
    "side, hardly moved from where they began.",
)

# %% tags=["hide-input"]
with torch.no_grad():
    rebuilt, _, _ = model(x_test[:12])
plots.show(
    plots.image_rows(
        {"x": x_test[:12], "x̂": rebuilt},
        title=f"49 codes of {math.log2(settings.num_codes):.0f} bits each",
    ),
    alt="Twelve test digits above their reconstructions from 49 codes: readable, with the "
    "edges of the patches visible.",
)

# %% [markdown]
# About two thirds of the patches share one code, that of black. (The 49 in the last title are 7 × 7 positions.)
#
# ### Is that good?
# What could K codes do at best? Here each code stands for one patch in the end, whatever encoder and decoder do. So k-means on the training patches
# themselves, with no network in between, is a fair measure. Beside it: the same model with latents of 8 numbers, and with wider networks.


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
found = {"k-means on the patches": by_k_means, "D = 2 (above)": test_distortion}
for name, options in {
    "D = 8": {"dim": 8},
    "D = 2, four times as wide": {"dim": 2, "width": 128},
    "D = 8, four times as wide": {"dim": 8, "width": 128},
}.items():
    other = new_model(**options)
    train_model(other, label=name)
    found[name], _ = evaluate(other)
for name, value in found.items():
    print(f"{name:<28} distortion {value:.3f}")
session.expect("distortion_k_means", by_k_means)
session.expect("distortion_8", found["D = 8"])

# %%
sweep = results("codes_and_dims")
for D in sweep.settings("dim"):
    value = sweep.mean("distortion", num_codes=64, dim=D)
    print(f"the networks of chapter 04, 64 codes, D = {D:<3} distortion {value:.3f}")

# %% [markdown]
# The plane costs a lot: with 8 numbers the small networks lose far less. Four times as wide, they lose less in the plane, but with 8 numbers
# too. (Over three seeds, in [study 03b](03b_past_the_argmin.ipynb), the price of the plane falls with the width.) And the networks of
# [chapter 04](04_vq_vae.ipynb), which are deeper and see beyond the patch, lose *least* with D = 2, and less than k-means on patches. (They saw 10,000 training
# images, more than here.) So D alone does not decide. We stay in the plane because it can be drawn, and here is the picture promised
# at the top:

# %% tags=["hide-input", "cover"]
fig, (left, right) = plots.figure(9.5, 4, columns=2, width_ratios=(1, 1.35))
plots.draw_cells(left, model.quantizer.codebook.detach().cpu(), shown, numbers=False)
left.set(title="After training: codes and cells", xlabel="$z_1$", ylabel="$z_2$")
plots.draw_gradient_flow(right, table)
right.set_title("Who learns from which loss: four fields of nine")
plots.show(
    fig,
    alt="Left: latents of image patches in the plane, the codes among them, and the cell "
    "of each code. Right: for each of the three losses the parts of the model that "
    "its gradient reaches: the reconstruction loss reaches decoder and encoder, the "
    "codebook loss the codebook, the commitment loss the encoder.",
)

# %% [markdown]
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
z = torch.linspace(0, 9, 24).sin().reshape(12, 2)
e = torch.linspace(0, 5, 10).cos().reshape(5, 2)
for offset in (0, 1000):
    theirs = quantizers.nearest_code(z + offset, e + offset)
    assert torch.equal(nearest_code(z + offset, e + offset), theirs), "exercise 3.1"
glue("proof.nearest_code", nearest_code(z, e).tolist(), display=False)
print("nearest code agrees:", True)


def with_gradients(result: Tensor, *inputs: Tensor) -> list[float]:
    """The value, then the gradient at each input, as one list."""
    weights = torch.linspace(1, 2, result.numel()).reshape(result.shape)
    gradients = torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True)
    parts = [result]
    for tensor, gradient in zip(inputs, gradients, strict=True):
        parts.append(torch.zeros_like(tensor) if gradient is None else gradient)
    return [number for part in parts for number in part.flatten().tolist()]


def agree(mine: list[float], theirs: list[float], exercise: str) -> None:
    torch.testing.assert_close(
        torch.tensor(mine),
        torch.tensor(theirs),
        rtol=1e-5,
        atol=1e-7,
        msg=lambda found: f"exercise {exercise} differs from the companion: {found}",
    )


z, chosen = z.requires_grad_(), e[nearest_code(z, e)].detach().requires_grad_()
for name, exercise, mine, theirs in (
    ("straight_through", "3.3", straight_through, quantizers.straight_through),
    (
        "codebook_loss",
        "3.4",
        lambda z, c: vq_losses(z, c)[0],
        lambda z, c: quantizers.vq_losses(z, c)[0],
    ),
    (
        "commitment_loss",
        "3.4",
        lambda z, c: vq_losses(z, c)[1],
        lambda z, c: quantizers.vq_losses(z, c)[1],
    ),
):
    numbers = with_gradients(mine(z, chosen), z, chosen)
    agree(numbers, with_gradients(theirs(z, chosen), z, chosen), exercise)
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
    agree(numbers["notebook"][part], numbers["companion"][part], "3.5")
    print(f"{part:<10} agree:", True)
glue("proof.vector_quantizer", numbers["notebook"], display=False)

# %% [markdown]
# ## Play: one step a click
# Each latent (dot) has a **home** (ring, at the other end of a grey line), where the decoder (the identity) would like to have its *code*. A green
# dotted line joins it to its code. Orange: the codes' paths. Three forces act: straight-through, commitment, and the codes' pull to their latents. Click
# into the slider *steps* and press → for one step. Try β = 0 and watch where the dots go; then a learning rate of 0.08, too large for a code with many latents.

# %%
homes = cloud[::5]  # 60 latents
first_codes = torch.tensor([[-1.0, -0.5], [0.5, -0.5], [0.0, 1.0], [1.0, 0.5], [3.5, 3.0]])
explorers.codes_in_the_plane(homes, first_codes)

# %% tags=["hide-input"]
fig, axes = plots.figure(8.5, 3.6, columns=3)
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
# As long as the code is not where the decoder wants it, the copied gradient goes on pushing the latent, the same way at every step. With β = 0 nothing stops it
# within the cell, and beyond the border another code takes over. With β > 0 it comes to rest (pen and paper, question 2), with β = 1 exactly at home.
# Roaming has its use: with a small β some latents came across the code that began far out, and put it to work. With β = 1 that code stays.
#
# ## What breaks, and why
# **Losses taken after straight-through.** An easy mistake to make: `z_q` is overwritten by the straight-through version, and only then compared with z.
# That version has no path to the codebook:

# %% tags=["nbval-check-output"]


class LossesTooLate(quantizers.VectorQuantizer):
    def forward(self, z: Tensor) -> Quantized:
        right = super().forward(z)  # its z_q is past straight-through
        codebook_loss, commitment_loss = vq_losses(z, right.z_q)
        losses = {"codebook": codebook_loss, "commitment": commitment_loss}
        loss = codebook_loss + 0.25 * commitment_loss
        return Quantized(right.z_q, right.indices, loss, losses)


late = new_model(LossesTooLate)
for name, row in routing_table(late, x_train[:64]).items():
    print(f"the {name} loss moves:", [part for part, norm in row.items() if norm > 0])

# %%
late_history, late_noted = train_model(late, (0,), label="losses too late")
first, last = (late_history[i]["reconstruction"].item() / variance for i in (0, -1))
print(f"reconstruction loss over the variance: first {first:.2f}, last {last:.2f}")
start, end = late_noted.values()
print("codes that moved:", int((start != end).any(1).sum()), "of", len(start))
late_distortion, late_usage = evaluate(late)
one_grey = distortion(mse(x_train.mean().expand_as(x_test), x_test).item(), variance)
print(f"test distortion {late_distortion:.2f}, of one grey value {one_grey:.2f};", end=" ")
print(f"codes used on the test images: {int((late_usage > 0).sum())}")
session.expect("distortion_losses_too_late", late_distortion)

# %% [markdown]
# The loss falls all the same, and nothing crashes. But the model is no better than one grey value for all pixels. The routing table shows the mistake before any
# training: the codebook loss moves the *encoder*. In which direction?

# %% tags=["nbval-check-output"]
z, code = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
codebook_loss, commitment_loss = vq_losses(z, straight_through(z, code))
for name, loss in (("codebook", codebook_loss), ("commitment", commitment_loss)):
    (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
    print(f"latent at 0, code at (1, 0); {name} loss, step along", (0 - gradient).tolist())

# %% [markdown]
# *Away* from its code, four times as strongly as the commitment loss with β = 0.25 pulls it back. (The opposite slip, `z_q` not detached in straight-through,
# shows in the table as "reconstruction moves codebook".)
#
# **The stop-gradients the other way round**, $\|z_e - \mathrm{sg}[z_q]\|^2 + \beta\,\|\mathrm{sg}[z_e] - z_q\|^2$. The printed loss is the same to the last
# digit. But now β weighs the codebook's pull:

# %%
fresh = new_model()
quantized = fresh.quantizer(fresh.encoder(x_train[:64]))
codebook_loss, commitment_loss = quantized.losses.values()
pair = codebook_loss + 0.25 * commitment_loss, commitment_loss + 0.25 * codebook_loss
print(f"value: right {pair[0].item():.6f}, swapped {pair[1].item():.6f}")
for part, weights in (
    ("encoder", fresh.encoder[0].weight),
    ("codebook", fresh.quantizer.codebook),
):
    right_norm, swapped_norm = (
        torch.autograd.grad(loss, weights, retain_graph=True)[0].norm() for loss in pair
    )
    print(f"gradient norm at the {part}: swapped / right = {swapped_norm / right_norm:.3f}")

# %% [markdown]
# **Dead codes.** A code that nobody chooses has gradient exactly 0: it stays, and has to wait for a latent to come by. How many wait depends on where the codes
# start. The same model, with codes that start ten times as far out:

# %%
spread = new_model()
with torch.no_grad():
    spread.quantizer.codebook.mul_(10)
train_model(spread, label="codes too far out")
far_distortion, far_usage = evaluate(spread)
for name, value, chosen in (
    ("as above", test_distortion, usage),
    ("ten times too far out", far_distortion, far_usage),
):
    number = f"{(chosen > 0).sum():>2} of {settings.num_codes}"
    print(f"{name:<22} {number} codes used, distortion {value:.3f}")

# %% [markdown]
# [Chapter 05](05_ema_codebooks.ipynb) gives dead codes a new place. (More that breaks, in [study 03b](03b_past_the_argmin.ipynb): the wrong scale of the first
# codes, and one NaN that takes the whole codebook.)
#
# ## Pen and paper
# 1. Two codes, one chosen by 90 latents and one by 10. The codebook loss is a mean over N = 100 latents and D dimensions, so its gradient at code $k$ is
#    $2 n_k (e_k - m_k)/(N D)$. Which learning rate η takes the first code to the mean of its latents in one step? Where does it take the second? For which η
#    do both converge?
# 2. The decoder is the identity, and one code $e$ stands still. The latent $z$ of an image $x$ feels straight-through and commitment: its gradient is
#    $2(e - x) + 2\beta(z - e)$. Where does it come to rest? What if that point lies in another code's cell?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. η = N·D/(2nₖ) lands on the mean: η = 100·D/180 ≈ 0.56 D for the first. The second then goes 10/90 = 1/9 of its way. A step multiplies the distance by
#    1 − 2ηnₖ/(N·D), which converges if it lies between −1 and 1: η < N·D/nₖ for the largest nₖ, so η < 1.11 D. The rate that would be perfect for the second,
#    5 D, makes the first diverge.
# 2. At z = e + (x − e)/β: with β = 0.25, four times as far from the code as x is, on the same side. If that point is in another cell, z never gets there: at the
#    border it changes its code, and from then on feels another. So a small β lets it look further.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * Quantising is a search for the nearest code. The expanded square makes it a matrix product, and needs centring to be right.
# * For fixed latents, learning the codes is k-means; the codebook loss does its mean step by gradient descent.
# * `argmin` has no gradient. Straight-through copies the gradient from $z_q$ to $z_e$; $\mathrm{sg}[z_q] + (z_e - \mathrm{sg}[z_e])$ has the value of $z_q$ to
#   the bit.
# * Reconstruction moves decoder and encoder, the codebook loss the codebook, the commitment loss the encoder: four fields of nine.
# * The value of a loss with stop-gradients does not show what is learnt. Measure the gradients.
#
# ## Further experiments
# 1. Give the model latents of 4 or 16 numbers (`dim` in `new_model`): how many codes are used?
# 2. Set β to 0 and to 4 (`commitment_weight`): where do latents and codes end?
# 3. [Study 03b](03b_past_the_argmin.ipynb): drawing codes instead of choosing them, and a gradient that is turned instead of copied.
#
# ## References
# * A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (section 3.2, equation 3).
# * Y. Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013.
# * S. Lloyd: *Least squares quantization in PCM*, 1957, printed 1982. Y. Ganin, V. Lempitsky: *Unsupervised Domain Adaptation by Backpropagation*, 2015.
# * The sentence tested above is from the source report *Description of VQVAE*.

# %% [markdown]
# # 03b · Past the argmin
#
# **A study** beside [chapter 03](03_vector_quantisation.ipynb), for readers who want to know what else can stand in the place of straight-through, and what the
# search costs. No later chapter needs it. **Needed:** chapter 03, and the KL divergence of [chapter 02](02_vae.ipynb). **Time**, an estimate: three quarters of an
# hour of yours. There are no exercises.
#
# You end with this picture: the same gradient at the code, and the step that each latent in its cell takes.
#
# ![Two planes with the same code and the same latents. Left, straight-through: all arrows are equal. Right, the rotation trick: the arrows turn around the
# origin.](../chapters/pictures/03b_past_the_argmin.png)

# %%
import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from companion import plots
from companion.course import begin
from companion.course.results import measured_claims
from companion.metrics import distortion, mse
from companion.quantizers import (
    GumbelQuantizer,
    VectorQuantizer,
    nearest_code,
    rotation_trick,
    straight_through,
)

session = begin("03b_past_the_argmin")
settings, device = session.settings, session.device
train, test = session.data()

# %% [markdown]
# ## Draw the code: Gumbel-max
# Straight-through is a guess that works, not a derivative. Here is another idea: do not choose the code, *draw* it. Let the latent give K numbers $\ell_k$, the
# **logits**, and draw code $k$ with probability $p_k = \mathrm{softmax}(\ell)_k$. An expected loss is smooth in the probabilities, so there is something to
# differentiate.
#
# How does one draw so that the random numbers are an *input*? Add noise to each logit, and take the largest. With **Gumbel noise** $g_k = -\log(-\log u_k)$, $u_k$
# uniform, this is exact (**Gumbel-max**): $P(\arg\max_k(\ell_k + g_k) = k) = p_k$.


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
# ## A problem with a known gradient
# To judge the estimators below, we take a case in which the exact gradient can be computed. Eight codes $e_k$ in the plane, and a target $a$ that the decoder
# (the identity) should give. If code $k$ is drawn, the loss is $L_k = \|e_k - a\|^2$. What counts is the expected loss $\sum_k p_k L_k$, and we want its gradient
# at the logits. The derivative of a softmax is $\partial p_j/\partial \ell_k = p_j\,(1[j = k] - p_k)$, where $1[j = k]$ is 1 for $j = k$ and else 0. So
#
# $$\frac{\partial}{\partial \ell_k} \sum_j p_j L_j = \sum_j p_j\,(1[j=k] - p_k)\,L_j = p_k\,\Bigl(L_k - \sum_j p_j L_j\Bigr).$$
#
# In words: descent makes a code likelier if its loss is below the mean loss.

# %%
draws = torch.Generator().manual_seed(0)
eight, target = torch.randn(8, 2, generator=draws), torch.tensor([1.0, 0.5])
logits = (
    -(torch.tensor([0.3, 0.2]) - eight).square().sum(1)
)  # (8,), of a latent at (0.3, 0.2)
p, losses = logits.softmax(0), (eight - target).square().sum(1)  # (8,), (8,)
exact = p * (losses - (p * losses).sum())

at_logits = logits.clone().requires_grad_()
(by_autograd,) = torch.autograd.grad((at_logits.softmax(0) * losses).sum(), at_logits)
print("autograd gives the same:", torch.allclose(by_autograd, exact, atol=1e-6))


def judge(gradients: Tensor) -> tuple[float, float, float]:
    """(draws, 8) -> bias, its standard error, and the noise of one draw, over the exact norm."""
    bias = (gradients.mean(0) - exact).norm() / exact.norm()
    noise = gradients.var(0).sum().sqrt() / exact.norm()
    return bias.item(), (noise / len(gradients) ** 0.5).item(), noise.item()


# %% [markdown]
# With thousands of codes and a whole network behind them this sum is out of reach: each $L_k$ would be a run of the decoder. An estimator has to get by with one
# draw.
#
# ## Soften it: Gumbel-softmax
# The argmax of Gumbel-max has no gradient either. Replace it by a softmax with a **temperature** τ (Jang et al. 2017, equation 2; Maddison et al. 2017):
# $y = \mathrm{softmax}((\ell + g)/\tau)$, and $z_q = \sum_k y_k e_k$, a mixture of codes. As τ → 0, $y$ becomes one code, the one that Gumbel-max draws.
# Gradients flow to the logits *and* to the codes, so there is no codebook loss. What does it cost? The mean of many Gumbel-softmax gradients beside the exact
# one (**bias**), and how far a single one is from their mean (**noise**):

# %%
temperatures = [4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
bias, noise = [], []
for tau in tqdm(temperatures, unit="temperature"):
    many = logits.repeat(settings.gumbel_draws, 1).requires_grad_()  # one row a draw
    soft = ((many + gumbel(settings.gumbel_draws, 8)) / tau).softmax(1)
    (gradients,) = torch.autograd.grad((soft @ eight - target).square().sum(), many)
    b, error, n = judge(gradients)
    bias.append(b)
    noise.append(n)
    print(f"τ = {tau:<7} bias {b:.3f} ± {error:.3f}   noise {n:.2f}")

# %% tags=["hide-input"]
fig, ax = plots.figure(5.5, 3)
ax.loglog(temperatures, bias, "o-", color=plots.COLOURS["train"], label="bias")
ax.loglog(
    temperatures, noise, "s--", color=plots.COLOURS["validation"], label="noise of one draw"
)
ticks = ("1/16", "1/8", "1/4", "1/2", "1", "2", "4")
ax.set_xticks(temperatures[::-1], ticks)
ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
ax.minorticks_off()
ax.set(
    xlabel="temperature τ",
    ylabel="relative to the exact gradient",
    title="Gumbel-softmax, cold: less biased, more noisy",
)
ax.legend()
plots.show(
    fig,
    alt="Bias and noise of the Gumbel-softmax gradient against the temperature, both axes "
    "logarithmic: as the temperature falls, the bias falls and the noise rises.",
)

# %% [markdown]
# So τ starts high and is lowered during training (*annealed*); the companion's `GumbelQuantizer` goes from 1 to 1/16 in equal factors.
#
# ### Its KL
# The probabilities of the draw are a posterior $q_k$, which can be compared with a prior, as in chapter 02. With a uniform prior over the K codes,
#
# $$\mathrm{KL}(q \,\|\, \text{uniform}) = \sum_k q_k \log\frac{q_k}{1/K} = \log K - H(q),$$
#
# where $H(q) = -\sum_k q_k \log q_k$ is the entropy.

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
# The line *one code* is the case of chapter 03: a latent that chooses one code has KL = log K whatever it chooses, a constant. So VQ-VAE's loss has no KL, and
# [chapter 04](04_vq_vae.ipynb) starts from here.
#
# ## Two choices and their difference: implicit MLE
# Niepert et al. (2021) keep the code whole also in training. Draw a code with the noisy logits $\ell + g$; as a one-hot vector it is $y$. The loss sends back $d
# = \partial L/\partial y$ at this choice. Now draw a second time *with the same noise*, from the logits $\ell - \lambda d$: those that the loss would rather
# have had. The gradient for the logits is the first choice minus the second, over λ. It needs nothing but the argmax, so it works as well where the "code" is a
# path or a matching. On the problem from above:

# %%
noisy = logits + gumbel(settings.gumbel_draws, 8)  # one row a draw
first = noisy.argmax(1)
at_choice = 2 * (eight[first] - target) @ eight.T  # dL/dy at the choice, (draws, 8)
judged = {}
for kind, d in (("d", at_choice), ("L", losses)):
    for lam in (0.03, 0.1, 0.3, 1.0, 3.0):
        second = (noisy - lam * d).argmax(1)
        change = functional.one_hot(first, 8) - functional.one_hot(second, 8)
        judged[kind, lam] = (*judge(change / lam), (first == second).float().mean())
print("λ     zero gradients   bias              noise   bias with L in place of d")
for lam in (0.03, 0.1, 0.3, 1.0, 3.0):
    (b, error, n, zero), (b_linear, error_linear, *_) = judged["d", lam], judged["L", lam]
    print(
        f"{lam:<6}{zero:>8.0%}         {b:.3f} ± {error:.3f} {n:>10.2f}"
        f"   {b_linear:.3f} ± {error_linear:.3f}"
    )

# %% [markdown]
# Where both choices are the same code the gradient is exactly 0. A small λ gives mostly zeros, and a few large gradients: noise. And no λ makes the bias small
# here. Is that because $d$ takes the loss as linear in $y$, which $\|\sum_k y_k e_k - a\|^2$ is not? The last column tests it. With the true losses $L_k$ of all
# codes in the place of $d$, which a network could not know, the bias falls towards 0 with λ.
#
# ## Turn the gradient: the rotation trick
# Back to the nearest code. Straight-through hands each latent the gradient of its $z_q$ as it is, wherever in the cell the latent lies. Fifty et al. (2024)
# write
#
# $$z_q = \frac{\|z_q\|}{\|z_e\|}\, R\, z_e ,$$
#
# with the rotation $R$ that turns the direction of $z_e$ onto that of $z_q$, and count $R$ and the ratio of lengths as constants. Then the gradient at $z_e$ is
# $\frac{\|z_q\|}{\|z_e\|} R^\top \partial L/\partial z_q$: it keeps its angle to the vector. (`companion.quantizers.rotation_trick`; its docstring has the
# formula.)

# %% tags=["nbval-check-output"]
z = torch.tensor([[0.5, 1.5], [2.0, 0.25], [-1.0, 1.0], [0.0, 0.0]], requires_grad=True)
z_q = torch.tensor([1.2, 0.6]).expand(4, 2)
sent_back = torch.tensor([0.0, -1.0])  # dL/dz_q, the same for all four: L falls upwards
rotated = rotation_trick(z, z_q)
(turned,) = torch.autograd.grad((rotated * sent_back).sum(), z)


def angle(a: Tensor, b: Tensor) -> float:
    """From a to b, in degrees."""
    return math.degrees(
        math.remainder(math.atan2(b[1], b[0]) - math.atan2(a[1], a[0]), math.tau)
    )


print("value equals z_q:", torch.equal(rotated.detach(), z_q))
for start, gradient in zip(z[:3].tolist(), turned[:3], strict=True):
    here, there = angle(torch.tensor(start), gradient), angle(z_q[0], sent_back)
    print(f"z = {start}: from it to its gradient {here:.1f}°; from z_q to its {there:.1f}°")
print("z = 0 has no direction to turn; it gets straight-through's:", turned[3].tolist())

# %% [markdown]
# The gradient that is sent back says where the loss *rises*; a step goes against it. Here are the steps of latents all over the plane, which have all chosen the
# same code:

# %% tags=["hide-input", "cover"]
ring = torch.cartesian_prod(torch.linspace(-0.75, 2.25, 7), torch.linspace(-0.75, 2.25, 7))
fig, axes = plots.figure(8.5, 4.3, columns=2)
for ax, (name, estimate) in zip(
    axes,
    {
        "Straight-through: one step for all": straight_through,
        "Rotation trick: turned with the latent": rotation_trick,
    }.items(),
    strict=True,
):
    latents = ring.clone().requires_grad_()
    value = estimate(latents, torch.tensor([1.2, 0.6]).expand_as(latents))
    (gradients,) = torch.autograd.grad((value * sent_back).sum(), latents)
    ax.quiver(
        *ring.T,
        *-gradients.T,
        color=plots.COLOURS["train"],
        angles="xy",
        scale_units="xy",
        scale=6,
        width=0.005,
        label="step of a latent: minus its gradient",
    )
    ax.plot(
        1.2, 0.6, "X", color=plots.COLOURS["validation"], markersize=11, label="code $z_q$"
    )
    ax.plot(0, 0, "o", color="black", markersize=5, label="origin")
    ax.set(title=name, aspect="equal", xlim=(-1.3, 2.8), ylim=(-1.3, 2.8))
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plots.show(
    fig,
    alt="Steps at a grid of latents that all chose one code, when the loss falls upwards. "
    "Straight-through: all arrows point up and are equal. Rotation trick: the arrows turn "
    "with the direction of the latent around the origin, and are longer near the origin.",
)

# %% [markdown]
# ## Side by side
# The patch model of chapter 03 with three of them: the same encoder, decoder, number of codes, steps and learning rate, and several seeds each. The test images
# always go through whole codes.


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction, the indices, and the whole loss."""
        quantized = self.quantizer(self.encoder(x))
        x_hat = self.decoder(quantized.z_q)
        return x_hat, quantized.indices, mse(x_hat, x) + quantized.loss


x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()


def new_model(seed: int, quantizer_class=VectorQuantizer, dim=2, width=32, **options):
    """An untrained patch model; the same seed gives the same encoder and decoder."""
    torch.manual_seed(seed)
    quantizer = quantizer_class(settings.num_codes, dim, **options)
    torch.manual_seed(seed + 1000)  # quantizers draw different amounts of random numbers
    return PatchModel(quantizer, train.shape[0], width).to(device)


def trained(model: PatchModel, seed: int, label: str) -> PatchModel:
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    order = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(settings.steps), unit="step", desc=label):
        rows = torch.randint(len(x_train), (settings.batch_size,), generator=order)
        _, _, loss = model(x_train[rows.to(device)])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


@torch.no_grad()
def evaluate(model: PatchModel) -> tuple[float, int]:
    """Distortion of the test images, and how many codes are used on them."""
    x_hat, indices, _ = model(x_test)
    return distortion(mse(x_hat, x_test).item(), variance), indices.unique().numel()


@torch.no_grad()
def ratio_of_lengths(model: PatchModel) -> float:
    """Median of ‖z_q‖/‖z_e‖, the factor in the rotation trick."""
    z_e = model.encoder(x_test)
    return (model.quantizer(z_e).z_q.norm(dim=1) / z_e.norm(dim=1)).median().item()


ways = {
    "straight-through": (VectorQuantizer, {}),
    "rotation trick": (VectorQuantizer, {"estimator": "rotation"}),
    "Gumbel-softmax": (GumbelQuantizer, {"anneal_steps": settings.steps}),
}
seeds = range(session.seed + 1, session.seed + 1 + settings.seeds)
outcome = {name: [] for name in ways}
ratios = {"before": [], "after": []}
for name, (quantizer_class, options) in ways.items():
    for seed in seeds:
        model = new_model(seed, quantizer_class, **options)
        if name == "rotation trick":
            ratios["before"].append(ratio_of_lengths(model))
        trained(model, seed, f"{name}, seed {seed}")
        if name == "rotation trick":
            ratios["after"].append(ratio_of_lengths(model))
        outcome[name].append(evaluate(model))

# %%
for name, runs in outcome.items():
    values, used = zip(*runs, strict=True)
    print(
        f"{name:<17} distortion {', '.join(f'{v:.3f}' for v in values)}   codes used {used}"
    )
for when, values in ratios.items():
    shown = ", ".join(f"{value:.2f}" for value in values)
    print(f"‖z_q‖/‖z_e‖ {when} training with the rotation trick: {shown}")
for name, key in (
    ("straight-through", "straight_through"),
    ("rotation trick", "rotation"),
    ("Gumbel-softmax", "gumbel"),
):
    session.expect(
        f"distortion_{key}", sum(value for value, _ in outcome[name]) / len(outcome[name])
    )

# %% tags=["hide-input"]
fig, ax = plots.figure(5.5, 2.8)
for place, runs in enumerate(outcome.values()):
    ax.plot(
        [place] * len(runs), [value for value, _ in runs], "o", color=plots.COLOURS["train"]
    )
ax.set_xticks(range(len(outcome)), list(outcome))
ax.set(
    ylabel="test distortion",
    title="Each dot a seed: the first two lie close together",
    ylim=(0, 1.1 * max(value for runs in outcome.values() for value, _ in runs)),
    xlim=(-0.5, 2.5),
)
plots.show(
    fig,
    alt="Test distortion of several seeds each for straight-through, the rotation trick "
    "and Gumbel-softmax: the first two lie near each other, Gumbel-softmax clearly higher.",
)

# %% [markdown]
# Straight-through and the rotation trick lie close together, nearer than some of the seeds do. Gumbel-softmax is behind, and uses far fewer codes. That is *one*
# small task, with latents of two numbers, few steps and one learning rate for all.
#
# The rotation trick was published for large models whose codebooks follow running means ([chapter 05](05_ema_codebooks.ipynb)), and its authors measured gains
# there. It multiplies each gradient by $\|z_q\|/\|z_e\|$. For two of the three seeds that ratio is far above 1 before training, and these two do as well as with
# straight-through.
#
# ## What the plane costs
# Chapter 03 trains each of these once. Here are the seeds: latents of 2 and of 8 numbers, networks of width 32 and 128.

# %%
price = {}
for width in (32, 128):
    for dim in (2, 8):
        runs = outcome["straight-through"] if (width, dim) == (32, 2) else []
        for seed in seeds if not runs else ():
            model = new_model(seed, dim=dim, width=width)
            runs = [*runs, evaluate(trained(model, seed, f"D = {dim}, width {width}"))]
        price[width, dim] = [value for value, _ in runs]
        values = ", ".join(f"{value:.3f}" for value in price[width, dim])
        print(f"width {width:<4} D = {dim}   distortion {values}")
for width in (32, 128):
    two, eight_numbers = (sum(price[width, dim]) / len(price[width, dim]) for dim in (2, 8))
    print(f"width {width:<4} the plane costs {two - eight_numbers:+.3f} on average")

# %% [markdown]
# Wider networks pay less for the plane. They do not pay nothing, and chapter 04's networks win with D = 2. Those differ from ours in depth, in what they see, and
# in how long they are trained; we did not test which of these it is.
#
# ## What the search costs
# Each of N latents meets each of K codes, and each meeting costs D multiplications and additions: N·K·D, where N = h·w for one image. Measured on this machine
# (each time is the median of several runs, taken in turn, so that a busy moment hits all sizes alike):


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

# %% tags=["hide-input"]
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
    title="The time of the search grows with the codes",
)
ax.legend()
plots.show(
    fig,
    alt="Milliseconds of the search against the number of codes, both axes doubling: the "
    "lines for codes of 32 and 256 dimensions rise together, the longer codes above "
    "the shorter.",
)

# %% [markdown]
# Multiplications and additions are proportional to D; the time is not. For short codes other work counts as well: each latent's K scores have to be written
# down and compared, whatever D is. One report says "O(HWK)" and leaves D out. As exponents, 1 for "twice the size, twice the time", in processor time
# ([experiments/README.md](../experiments/README.md#cost-of-the-search) has the command of each row; positive differences mean that the exponent is larger than
# the one compared with):

# %% tags=["nbval-check-output"]
measured_claims("Cost of the search")

# %% [markdown]
# ### In half precision
# Chapter 03 measured how the expanded square loses digits far from the origin, in float32. Mixed precision takes the matrix product in bfloat16, which keeps 8
# binary digits where float32 keeps 24. The share of latents that get another code than in float64:


# %%
def expansion_bf16(z: Tensor, codebook: Tensor) -> Tensor:
    product = (z.bfloat16() @ codebook.bfloat16().T).float()
    return (codebook.square().sum(1) - 2 * product).argmin(1)


draws = torch.Generator().manual_seed(0)
latents = torch.randn(4096, 64, generator=draws)
some_codes = torch.randn(512, 64, generator=draws)
print(f"{'wrong codes':<14}{'bfloat16':>12}{'and centred':>12}")
for offset in (0, 10, 100, 1000):
    far, far_codes = latents + offset, some_codes + offset
    true_codes = torch.cdist(
        far.double(), far_codes.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    centre = far_codes.mean(0)
    found = expansion_bf16(far, far_codes), expansion_bf16(far - centre, far_codes - centre)
    wrong = [(k != true_codes).float().mean().item() for k in found]
    print(f"offset {offset:<7}" + "".join(f"{share:>12.2%}" for share in wrong))

# %% [markdown]
# Centring brings it back to what it is around the origin, one in a hundred, and no further. The search belongs in float32, whatever precision the rest of the
# model is in; the companion's quantizers do it there.
#
# ## k-means and gradient descent
# Chapter 03 found the gradient $2 n_k (e_k - m_k)$ of the squared error $J$ at code $k$, which $n_k$ latents with mean $m_k$ have chosen. It says how the two
# methods are related: *one step of gradient descent* with the rate $1/(2n_k)$ lands on the mean.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(session.seed)
centres = torch.tensor([[-2.0, -1.0], [2.0, -1.5], [0.0, 2.0]])
cloud = centres.repeat_interleave(100, 0)
cloud = cloud + 0.7 * torch.randn(300, 2, generator=generator)  # (300, 2), three clumps
codes = 2 * torch.randn(8, 2, generator=generator)  # (8, 2), anywhere
codes = torch.cat(
    [codes, torch.tensor([[9.0, 9.0]])]
)  # (9, 2), and one far from all points

e = codes.clone().requires_grad_()
choice = nearest_code(cloud, codes)
J = (cloud - e[choice]).square().sum()
(gradient,) = torch.autograd.grad(J, e)
counts = torch.bincount(choice, minlength=9)  # (9,): n_k
used = counts > 0
means = torch.zeros(9, 2).index_add(0, choice, cloud)[used] / counts[used, None]
stepped = codes[used] - gradient[used] / (2 * counts[used, None])
print("a step with rate 1/(2 n_k) is the mean:", torch.allclose(stepped, means, atol=1e-5))
print(
    "codes without points:",
    (~used).sum().item(),
    "  its gradient:",
    gradient[~used].tolist(),
)

# %% [markdown]
# One learning rate η for all codes goes there geometrically: each step multiplies the distance to the mean by $1 - 2\eta n_k$, small for a code with many
# latents, near 1 for one with few. With the choices fixed, and η = 0.004, the distance of each used code to its mean:

# %%
goal = torch.zeros(9, 2)
goal[used] = means
slow = codes.clone()
print("step   " + "  ".join(f"n = {c:<6}" for c in counts[used].tolist()))
for step in range(5):
    away = (slow - goal)[used].norm(dim=1)
    print(f"{step:<6} " + "  ".join(f"{d:<10.3f}" for d in away.tolist()))
    slow -= 0.004 * 2 * counts[:, None] * (slow - goal)

# %% [markdown]
# Now with both steps in turn: k-means, and gradient descent on the same error, with choices made anew at each step.


# %%
def counts_and_sums(codes: Tensor) -> tuple[Tensor, Tensor]:
    """How many latents chose each code, (9, 1), and their sum, (9, 2)."""
    choice = nearest_code(cloud, codes)
    counts = torch.bincount(choice, minlength=9)[:, None]
    return counts, torch.zeros(9, 2).index_add(0, choice, cloud)


def error_of(codes: Tensor) -> float:
    return mse(codes[nearest_code(cloud, codes)], cloud).item()


lloyd, descent = codes.clone(), codes.clone()
curves = {"k-means": [error_of(lloyd)], "gradient descent": [error_of(descent)]}
for _ in range(25):
    n_k, sums = counts_and_sums(lloyd)
    lloyd = torch.where(n_k > 0, sums / n_k.clamp(min=1), lloyd)
    n_k, sums = counts_and_sums(descent)
    descent = descent - 0.004 * 2 * (n_k * descent - sums)  # the gradient from above
    curves["k-means"].append(error_of(lloyd))
    curves["gradient descent"].append(error_of(descent))

# %% tags=["hide-input"]
fig, ax = plots.figure(5.5, 3)
for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
    ax.plot(curve, style, label=name)
ax.set(
    xlabel="step",
    ylabel="mean squared error",
    title="k-means takes the larger steps",
    ylim=(0, None),
)
ax.legend()
plots.show(
    fig,
    alt="The mean squared error over 25 steps falls at once for k-means, and more slowly for "
    "gradient descent.",
)

# %% [markdown]
# Both only ever find a *local* minimum: which one depends on the first codes. The codebook loss of VQ-VAE is the dashed line, on latents that move meanwhile;
# [chapter 05](05_ema_codebooks.ipynb) does the mean step itself, as a running mean.
#
# ## More that breaks
# **The wrong scale of the first codes.** U(−√3, √3) instead of U(−√(3/D), √(3/D)) has variance 1 in each dimension instead of 1/D. In two dimensions that is
# hardly seen. With 64 the codes are eight times too long, and those that happen to be short win:

# %%
draws = torch.Generator().manual_seed(0)
for D in (2, 8, 64):
    vectors = torch.randn(20_000, D, generator=draws) / D**0.5
    for name, bound in (("√(3/D)", (3 / D) ** 0.5), ("√3", 3**0.5)):
        first_codes = (2 * torch.rand(512, D, generator=draws) - 1) * bound
        chosen = torch.bincount(nearest_code(vectors, first_codes), minlength=512)
        number, share = (chosen > 0).sum(), chosen.max().item() / len(vectors)
        in_use = chosen > 0
        length = first_codes.norm(dim=1)
        print(
            f"D = {D:<3} U(±{name:<6}): {number:>3} of 512 codes used, the most used by {share:.0%};"
            f" mean length of used codes {length[in_use].mean():.1f}, of all {length.mean():.1f}"
        )

# %% [markdown]
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
    nearest_code(z, torch.randn(6, 2))
except ValueError as refused:
    print("the companion:", refused)

# %% [markdown]
# The bad latent chose a code and made it NaN. Every distance to that code is NaN from then on, `argmin` takes NaN for the smallest, and *all* latents choose it.
# The companion says so at the first step, and leaves the codebook as it was.
#
# ## Two sentences from reports
# <details><summary>"‖y − θx + sg[θ²x]‖ is just a linear function of θ", and "the backward loss is ‖x − dec(z_e)‖²": both tested below</summary>
#
# A function is linear (affine) where its *second differences* are 0. What is linear in θ is $r = y - \theta x + \mathrm{sg}[\theta^2 x]$, and the gradient of
# its *square*, both with the bracket held at its value for θ = 3. The norm is not, and neither is the gradient that training follows, with the bracket taken
# anew at each θ.
#
# In the backward pass the loss would be ‖x − dec(z_e)‖², says the other report. That has the gradient of the decoder *at z_e*, where it was never run.
# Straight-through copies the gradient **at z_q**. The two agree only in the limit $z_e = z_q$.
# </details>

# %% tags=["nbval-check-output"]
x, y = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
thetas = torch.linspace(0, 4, 9, dtype=torch.float64)


def gradient_at(value: float, inside: float) -> float:
    theta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    r = y - theta * x + inside**2 * x
    return torch.autograd.grad(r @ r, theta)[0].item()


residuals = [y - theta * x + 9 * x for theta in thetas]
candidates = {
    "r (its first number), bracket held": [r[0] for r in residuals],
    "‖r‖, bracket held": [r.norm() for r in residuals],
    "‖r‖², bracket held": [r @ r for r in residuals],
    "gradient of ‖r‖², bracket held": [gradient_at(v, 3.0) for v in thetas.tolist()],
    "gradient of ‖r‖², bracket anew": [gradient_at(v, v) for v in thetas.tolist()],
}
for name, values in candidates.items():
    second = torch.tensor([float(v) for v in values]).diff(n=2)
    print(f"{name:<36} linear in θ: {bool(second.abs().max() < 1e-4)}")

# %%
torch.manual_seed(0)
decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5))
z_e, e, wanted = torch.randn(6, 2), torch.randn(4, 2), torch.randn(6, 5)
code = e[nearest_code(z_e, e)]


def gradient_of_reconstruction(at: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    return torch.autograd.grad(mse(decoder(at), wanted), at)[0]


copied = gradient_of_reconstruction(code)
for share in (1.0, 0.3, 0.1, 0.01):
    nearer = code + share * (z_e - code)  # the same code, from a shorter distance
    apart = (gradient_of_reconstruction(nearer) - copied).norm() / copied.norm()
    print(f"z_e at {share:>4} of its distance to z_q: the gradients differ by {apart:.1%}")

# %% [markdown]
# ## Summary
# * Gumbel-max draws a code with the noise as an input. Gumbel-softmax softens the draw: less bias when cold, more noise.
# * Implicit MLE keeps the codes whole: the difference of two choices, most of the time 0 for a small λ.
# * The rotation trick turns the copied gradient with the latent. On this small task it is level with straight-through.
# * The search takes N·K·D multiplications, and belongs in float32, centred.
# * The price of a plane of latents depends on the networks around it.
#
# ## References
# * E. Jang, S. Gu, B. Poole: *Categorical Reparameterization with Gumbel-Softmax*, 2017 (equation 2). C. Maddison, A. Mnih, Y. W. Teh: *The Concrete
#   Distribution*, 2017.
# * M. Niepert, P. Minervini, L. Franceschi: *Implicit MLE*, 2021. C. Fifty et al.: *Restructuring Vector Quantization with the Rotation Trick*, 2024.
# * The sentences tested are from the source reports *Description of VQVAE* and S. Zhao: *VQ-VAE and Transformer*, 2023 (section 2.3).

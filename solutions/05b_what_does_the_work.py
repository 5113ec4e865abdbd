# %% [markdown]
# # 05b · What does the work?
#
# **This is a study** beside [chapter 05](05_ema_codebooks.ipynb), for readers who want to know which part of an EMA codebook does what, or who want to use one of
# its variants. You take the parts out one at a time, watch codes lag behind the latents that they follow, learn what smoothing is good for, and look codes up by
# angle. Here is what each part is worth:
#
# ![For variants of the codebook, a dot with its interval: the change of distortion against the whole of EMA. Codes without memory lose a quarter less, codes
# without restarts a fifth more. Beside it their perplexities.](../chapters/pictures/05b_what_does_the_work.png)
#
# **Needed:** chapter 05. **Time:** three quarters of an hour of yours (an estimate), with one exercise; the computer's is in the table below.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.course import begin, check
from companion.course.results import measured_claims, results
from companion.quantizers import (
    ProjectedQuantizer,
    Quantized,
    code_statistics,
    ema_step,
    nearest_code,
)

session = begin("05b_what_does_the_work")
settings, device = session.settings, session.device
train, test = session.data()
x_train, _ = train.batch(torch.arange(len(train)))
channels = train.shape[0]
K, D = settings.num_codes, settings.dim

# %% [markdown]
# ## One part out at a time
# "EMA" below is the whole: moving averages with γ = 0.99, codes that start from k-means, restarts of dead codes, smoothing with $\varepsilon = 10^{-5}$. Each
# other row changes one thing, and its name says which. "EMA, neither" has averages alone. "Gradient, k-means" is a gradient codebook that starts from
# the same k-means. "Cosine" codes have length 1, and "low-dimensional" ones are looked up in 4 of the 8 dimensions; both are explained further down.
#
# Each row was trained with five seeds. Distortion (mean squared error over the variance of the pixels) is lower for better pictures, and ± is the standard
# deviation over the seeds. "Largest rise" is the most that the held-out distortion of any of the five runs rose from one epoch to the next.

# %% tags=["hide-input"]
table = results("ema_codebooks")
print(table.command)
print(f"\n{'':<36}{'distortion':<18}{'perplexity':<14}{'usage':<7}largest rise")
for kind, k, d in dict.fromkeys((r["kind"], r["num_codes"], r["dim"]) for r in table.rows):
    where = {"kind": kind, "num_codes": k, "dim": d}
    (lost, lost_by), (perplexity, by) = (
        (table.mean(name, **where), table.spread(name, **where))
        for name in ("distortion", "perplexity")
    )
    rise = max(0.0, *table.values("largest_rise", **where))
    print(
        f"{kind:<29}K={k:<5}{lost:.4f} ± {lost_by:.4f}   {perplexity:5.1f} ± {by:<5.1f}"
        f" {table.mean('usage', **where):.2f}   {rise:.1%}"
    )

# %% [markdown]
# Same first weights, same batches: compare two rows seed by seed, take the five differences, and give their mean with a 95 % interval. Negative means a lower
# distortion, which is better. All in per cent of the distortion of "EMA", for the rows with K = 64:


# %%
def change(kind: str, base: str, k: int = 64) -> tuple[float, float]:
    """Distortion of ``kind`` minus that of ``base``, over the mean of ``base``; half the interval."""
    ours, theirs = (
        torch.tensor(table.values("distortion", kind=name, num_codes=k))
        for name in (kind, base)
    )
    relative = (ours - theirs) / theirs.mean()
    return relative.mean().item(), 2.776 * relative.std().item() / len(relative) ** 0.5


changes = sorted((*change(kind, "EMA"), kind) for kind in table.settings("kind"))
for middle, margin, kind in changes:
    print(f"{kind:<29}{middle:+5.0%}   ({middle - margin:+.0%} to {middle + margin:+.0%})")

# %% tags=["hide-input", "cover"]
fig, (left, right) = plots.figure(9.6, 4, columns=2, sharey=True)
for i, (middle, margin, kind) in enumerate(changes):
    learned = kind.startswith("gradient")
    colour = plots.COLOURS["train" if learned else "validation"]
    style = {"fmt": "s" if learned else "o", "color": colour, "capsize": 3}
    left.errorbar(100 * middle, i, xerr=100 * margin, **style)
    values = table.values("perplexity", kind=kind, num_codes=64)
    right.plot(values, [i] * len(values), "|", color=colour, markersize=12)
left.axvline(0, color=plots.COLOURS["reference"], linestyle=":")
for marker, name, label in (
    ("s", "train", "moved by gradients"),
    ("o", "validation", "by averages"),
):
    left.plot([], [], marker, color=plots.COLOURS[name], label=label)
left.legend(fontsize=8, loc="lower right")
left.set_yticks(range(len(changes)), [kind for _, _, kind in changes])
left.set(xlabel="distortion against EMA (%; left is better)", title="No memory loses least")
right.set(
    xlabel="perplexity (a tick a seed)",
    title="With a long memory, restarts fill it",
    xlim=(0, 64),
)
plots.show(
    fig,
    alt="For each variant of the codebook the change of held-out distortion against the "
    "whole of EMA in per cent, with 95 % intervals over five seeds, and beside it the"
    " perplexities of the five seeds.",
)

# %% [markdown]
# Some of this is as the literature says, and some is not.
#
# * **The decay matters most.** The customary 0.99 is the worst one tried. γ = 0.95 loses less, and *no* decay, where a code is set to the mean of what the last
#   batch sent to it, loses about a quarter less.
# * **Restarts do the work, if the memory is long.** Without them γ = 0.99 loses about a fifth more, and uses far fewer codes. Without memory they are not needed:
#   the two rows without decay are equal.
# * **k-means at the start does not help here.** Leaving it out loses about a tenth *less*. (Nor is it an insurance: on MNIST some gradient codebooks that start
#   from it [get stuck](../experiments/README.md#ema-against-a-learned-codebook).)
# * **Smoothing** changes nothing that five seeds can tell.
# * **A code in use is not yet a code in the right place.** "Gradient, k-means" has three times the perplexity of "gradient", and no lower distortion that five
#   seeds could show. "No decay" has a lower perplexity than γ = 0.95 and loses less.
#
# None of it is a law: the training is short (468 steps in profile quick), and the batch is large beside K.
#
# ## Does a long memory lag?
# Why might no memory win? With a long one, the codes are where the latents *were*. You can measure that. Take the latents that chose code $k$, with their mean
# $\bar z_k = s_k / n_k$, and split their squared error in two:
#
# $$\sum_{z \to k} \|z - e_k\|^2 = \sum_{z \to k} \|z - \bar z_k\|^2 + n_k\, \|\bar z_k - e_k\|^2 .$$
#
# (The mixed term is zero, since deviations from a mean add up to zero.) The first part stays even for a code in the middle of its latents. The second is what a
# code pays for being **off centre**. Which share of the whole is it?
#
# Train three codebooks, and write both down at every step. After the training, stop the encoder, and let the codes go on averaging for 600 steps: what is left
# then cannot be lag, since nothing moves.


# %%
def rows(z: Tensor) -> Tensor:
    """(B, D, *spatial) -> (B·T, D)."""
    return z.movedim(1, -1).flatten(0, -2)


def parts(z: Tensor, codes: Tensor, k: Tensor) -> tuple[float, float]:
    """Squared error of latents z (N, D), and the part that codes pay for being off centre."""
    n, s = code_statistics(z, k, len(codes))
    off = (s / n.clamp(min=1)[:, None] - codes).square().sum(1)  # (K,)
    error = (z - codes[k]).square().sum(1).mean()
    return error.item(), ((n * off).sum() / len(z)).item()


def watched(quantizer: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A VQ-VAE trained around the quantizer, and for every step: error, off centre, restarts."""
    torch.manual_seed(session.seed)
    shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}
    model = companion.VQVAE(
        companion.ResNetEncoder(channels, D, **shape),
        quantizer,
        companion.ResNetDecoder(channels, D, **shape),
    )
    log, state = [], {}

    def before(module: nn.Module, inputs: tuple) -> None:
        state.update(codes=module.codebook.clone(), counts=module.counts.clone())
        state["known"] = module.initialised  # else k-means is about to choose the codes

    def after(module: nn.Module, inputs: tuple, output: Quantized) -> None:
        if not module.training:
            return
        if not state["known"]:  # the very first step: k-means has just put the codes
            log.append((0.0, 0.0, 0.0))
            return
        z, k = rows(inputs[0].detach()), output.indices.flatten()
        n_s = code_statistics(z, k, K)
        stepped, _ = ema_step(state["codes"], state["counts"], *n_s, module.decay)
        restarted = ((module.codebook - stepped).abs().amax(1) > 1e-3).sum().item()
        log.append((*parts(z, state["codes"], k), restarted))

    hooks = (
        quantizer.register_forward_pre_hook(before),
        quantizer.register_forward_hook(after),
    )
    companion.fit(
        model,
        train,
        validation=test,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=session.seed,
        device=device,
    )
    for hook in hooks:
        hook.remove()
    return model, dict(zip(("error", "off", "restarts"), torch.tensor(log).T, strict=True))


ema = companion.EMAVectorQuantizer
makers = {
    "γ = 0.99": lambda: ema(K, D, decay=0.99),
    "γ = 0": lambda: ema(K, D, decay=0.0),
    "γ = 0.99, no k-means": lambda: ema(K, D, decay=0.99, init="uniform"),
}
colours = dict(zip(makers, ("third", "fourth", "reference"), strict=True))
models, logs = {}, {}
for name, make in makers.items():
    print(name)
    torch.manual_seed(session.seed)
    models[name], logs[name] = watched(make())


# %%
@torch.no_grad()
def at_rest(model: nn.Module, steps: int = 600) -> float:
    """The share off centre when the encoder stands still and the codes go on averaging."""
    latents = torch.cat([model.encoder(part) for part in x_train.split(500)])
    quantizer = model.quantizer
    kept = {name: value.clone() for name, value in quantizer.state_dict().items()}
    generator = torch.Generator().manual_seed(session.seed)
    quantizer.train()
    seen = []
    for _ in range(steps):
        some = torch.randint(len(latents), (settings.batch_size,), generator=generator)
        codes, z = quantizer.codebook.clone(), latents[some]
        seen.append(parts(rows(z), codes, quantizer(z).indices.flatten()))
    quantizer.eval().load_state_dict(kept)
    error, off = torch.tensor(seen[-100:]).mean(0)
    return (off / error).item()


shares = {}
print(f"{'share of the error, epoch':<27}", end="")
print("".join(f"{epoch:>6}" for epoch in range(1, settings.epochs + 1)), " encoder stopped")
for name, log in logs.items():
    error, off = (log[part].tensor_split(settings.epochs) for part in ("error", "off"))
    shares[name] = [(o.mean() / e.mean()).item() for o, e in zip(off, error, strict=True)]
    print(f"{name:<27}" + "".join(f"{share:6.0%}" for share in shares[name]), end="")
    print(f"{at_rest(models[name]):12.0%}")

# %% [markdown]
# With γ = 0.99, about a third of the error in the first epoch is the price of being off centre; without memory it is far less. So a long memory does lag while
# the encoder moves fast. It lags less and less as the training goes on, and when the encoder stands still only a few per cent are left: noise.
#
# Is that why no memory wins? From the third epoch on, the shares differ by a few per cent only. The lag of the first epochs may have its consequences later, or
# something else may be at work: we did not test which. What is different at the end is how far the latents of test images are spread, and which part of their
# variance the codes miss:

# %%
x_test, _ = test.batch(torch.arange(len(test)))
for name, model in models.items():
    with torch.no_grad():
        z = rows(model.encoder(x_test))
    error = (
        z - model.quantizer.codebook[nearest_code(z, model.quantizer.codebook)]
    ).square()
    around = (z - z.mean(0)).square()
    print(f"{name:<21} standard deviation {around.mean().sqrt():.3f},", end=" ")
    print(f"of the variance missed {error.mean() / around.mean():.1%}")

# %% [markdown]
# Without memory the latents spread about twice as far, and the codes miss a much smaller part of their variance. (We did not test why.)
#
# ## When do the restarts come?
# With γ = 0.99 a count needs log 0.02 / log 0.99 = 389 steps to fall from an even share to the 2 % at which a code counts as dead. k-means gives every code a
# count at once, as if its batch had always been seen. Codes that are drawn at random start with counts of zero: those that the first batch does not choose are
# dead at the first step.

# %% tags=["hide-input"]
fig, ax = plots.figure(7.2, 3.3)
for (name, log), style in zip(logs.items(), ("-", "--", "-."), strict=True):
    total = log["restarts"].cumsum(0)
    colour = plots.COLOURS[colours[name]]
    ax.plot(range(1, len(total) + 1), total, style, color=colour, label=name)
    first = (log["restarts"] > 0).nonzero()
    print(f"{name:<21} {int(total[-1]):>5} restarts, the first at step", end=" ")
    print(int(first[0]) + 1 if len(first) else "none")
ax.set(
    xlabel="step",
    ylabel="restarts so far",
    yscale="symlog",
    title="k-means delays the restarts",
)
ax.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
ax.minorticks_off()
ax.legend(fontsize=8)
plots.show(
    fig,
    alt="Restarts so far over the steps, for three codebooks. With a long memory and k-means "
    "there is none for most of the training; without k-means they begin at the first step, "
    "and so they do without memory.",
)

# %% [markdown]
# With k-means and γ = 0.99 no code is restarted for most of the training; without k-means many are, from the first step on. That would fit with k-means not
# helping here. (This is one seed, and we did not test whether it is the reason.) The lesson for practice: γ and `restart_below` have to fit the length of the training.
#
# ## How long should a code remember?
# Here is a code whose latents drift, in two dimensions, by $v$ a step. At each step it gets $n$ latents of variance 1, and moves by
# $e \leftarrow \gamma e + (1-\gamma)\,\bar z$, with their mean $\bar z$. Two things put it off the centre:
#
# * **Lag.** Let it be $\ell$ behind. A step later the centre is $\ell + v$ ahead, and the code closes all but $\gamma$ of that: $\ell = \gamma(\ell + v)$, so
#   $\ell = v\,\gamma/(1-\gamma)$.
# * **Noise.** Its variance obeys $V = \gamma^2 V + (1-\gamma)^2\,\tfrac{2}{n}$, so $V = \tfrac2n\,(1-\gamma)/(1+\gamma)$.
#
# One grows with the memory, the other shrinks. Here is the sum for $n = 10$, as a formula (lines) and simulated (dots):

# %% tags=["hide-input"]
gammas = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995])
fig, ax = plots.figure(7, 3.3)
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
    best = fine[exact.argmin()].item()
    print(
        f"drift {v:<4} a step: best γ = {best:.2f}, "
        f"half-life {math.log(0.5) / math.log(best):.1f} steps"
    )
    line_x, dots_x = (math.log(0.5) / grid.log() for grid in (fine, gammas))
    ax.plot(line_x, exact.sqrt(), color=plots.COLOURS[colour], label=f"drift {v} a step")
    ax.plot(dots_x, errors, style, color=plots.COLOURS[colour])
ax.set(
    xscale="symlog", xlabel="half-life (steps)", ylabel="distance of code and centre",
    yscale="log", title="A long memory averages more, and lags more",
)  # fmt: skip
ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
ax.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
ax.minorticks_off()
ax.legend()
plots.show(
    fig,
    alt="Distance between a code and the centre of its drifting cloud against the "
    "half-life of its memory, for a slow and a fast drift: each curve falls and rises "
    "again, and the faster drift has its lowest point at a shorter half-life. "
    "Simulated dots lie on the curves of the formula.",
)

# %% [markdown]
# The faster the latents move, the shorter the best memory. In a training the latents move fast at first and slowly later, so no single γ is the best one
# throughout. Published runs have $10^5$ to $10^6$ steps; whether 0.99 suits them better, this study does not test.
#
# ## Smoothing, in full
# The chapter showed a code that smoothing drags to the origin: $m_k/\tilde N_k$ fell from 3.00 to 0.03 though nothing chose the code. When does it set in? Once
# $N_k$ has shrunk to $\varepsilon$. Start from a count of 50 and $\varepsilon = 10^{-5}$:


# %% tags=["nbval-check-output"]
def smooth(N: Tensor, eps: float) -> Tensor:
    return (N + eps) / (N.sum() + len(N) * eps) * N.sum()


for gamma in (0.9, 0.99, 0.999):
    print(f"γ = {gamma:<6} after {math.log(1e-5 / 50) / math.log(gamma):6.0f} steps")

# %% [markdown]
# There is a worse start, and published code has had it: the sums $m_k$ begin as the codes themselves, and the counts at zero. Two codes at 0.5; all latents, at
# 0, choose the first. After one step:

# %% tags=["nbval-check-output"]
N_start, m_start = torch.zeros(2), torch.full((2,), 0.5)
N_start = 0.99 * N_start + 0.01 * torch.tensor([100.0, 0.0])
m_start = 0.99 * m_start
print("m/Ñ:", [f"{code:.1e}" for code in (m_start / smooth(N_start, 1e-5)).tolist()])

# %% [markdown]
# The code that nothing chose is thrown out of the picture. In the form of a step, neither can happen: a code with $n_k = 0$ is left alone.
#
# What is left for smoothing to do? It slows the step of a code with a small count. A code that was never chosen before gets one latent of a batch of 6,272;
# how far does it go?

# %% tags=["nbval-check-output"]
n_once = torch.tensor([1.0] + [6271 / 63] * 63)
N_once = torch.tensor([0.0] + [6271 / 63] * 63)
for eps in (1e-5, 1e-3, 0.1, 1.0):
    codes, _ = ema_step(torch.zeros(64, 1), N_once, n_once, n_once[:, None], 0.99, eps)
    print(f"ε = {eps:<6g} goes {codes[0, 0]:.0%} of the way")

# %% [markdown]
# With $\varepsilon = 10^{-5}$ it jumps onto its latent all the same. The part of the way is about $(1-\gamma)\,n_k/(N_k' + \varepsilon)$, as if
# $\varepsilon$ latents stood where the code is now and never faded. In the table above, leaving smoothing out changes nothing that five seeds can tell.
#
# ## What a report claims, over five seeds
# One of the course's source reports compares the two codebooks, with 256 codes of 4 dimensions, and says: "EMA performed better for the VQ case", and without
# it the model "sometimes became unstable". Put so that they can fail:
#
# 1. **Better:** the held-out distortion with EMA is lower by at least 5 % of the gradient codebook's, and the whole 95 % interval says so.
# 2. **Steadier:** the standard deviation over the seeds is smaller by a factor that five seeds can tell from chance (3.1, by the F-test), and within a run the
#    held-out curve rises less.
#
# Which EMA? "EMA, neither" differs from the gradient codebook in nothing but the way codes move. "EMA" has k-means and restarts around it. Against the
# gradient codebook (negative is a lower distortion, which is better):

# %%
for k, others in (
    (64, ("gradient, k-means", "EMA, neither", "EMA", "EMA, γ = 0.95")),
    (256, ("EMA, neither", "EMA", "EMA, γ = 0.95")),
):
    for kind in others:
        middle, margin = change(kind, "gradient", k)
        low, high = middle - margin, middle + margin
        verdict = (
            "lower by 5 %"
            if high < -0.05
            else "higher by 5 %"
            if low > 0.05
            else "undecided"
        )
        spreads = [
            table.spread("distortion", kind=name, num_codes=k)
            for name in ("gradient", kind)
        ]
        print(
            f"K = {k:<4} {kind:<18}{middle:+4.0%} ({low:+.0%} to {high:+.0%}): "
            f"{verdict:<14}"
            f" spread of gradient / this: {spreads[0] / spreads[1]:.1f}"
        )

# %% tags=["hide-input"]
fig, axes = plots.figure(9.6, 3.3, columns=3)
kinds = {
    "gradient": ("o-", "train"),
    "EMA, neither": ("v-.", "fourth"),
    "EMA": ("^:", "third"),
    "EMA, γ = 0.95": ("s--", "validation"),
}
panels = (
    (64, "by_epoch", "K = 64, D = 8", (0.05, 0.1, 0.2, 0.3)),
    (256, "by_epoch", "K = 256, D = 4", (0.05, 0.1, 0.2)),
    (256, "loss_by_epoch", "K = 256: the total loss misleads", (0.005, 0.01, 0.02)),
)
for ax, (k, number, title, ticks) in zip(axes, panels, strict=True):
    for i, (kind, (style, colour)) in enumerate(kinds.items()):
        curves = torch.tensor(
            table.values(number, kind=kind, num_codes=k)
        )  # (seeds, epochs)
        middle, last = curves.mean(0), curves[:, -1]
        epochs = range(1, len(middle) + 1)
        look = {"color": plots.COLOURS[colour], "markersize": 4, "label": kind}
        ax.plot(epochs, middle, style, **look)
        reach = [[float(middle[-1] - last.min())], [float(last.max() - middle[-1])]]
        beside = len(epochs) + 0.25 * (i + 1)  # the last epoch, so that none hides another
        ax.errorbar(
            beside, float(middle[-1]), reach, color=plots.COLOURS[colour], capsize=2
        )
    ax.set(xlabel="epoch (bars: range of five seeds)", yscale="log")
    ax.set_title(title, fontsize=10)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
axes[0].set_ylabel("held-out distortion")
axes[2].set_ylabel("held-out total loss")
axes[0].legend(fontsize=8)
plots.show(
    fig,
    alt="Held-out distortion over the epochs for a gradient codebook, averages alone and "
    "the whole of EMA with two decays, the mean of five seeds, for 64 codes of 8 and for "
    "256 codes of 4 dimensions, and beside the last epoch the range of the seeds; and "
    "the total losses of the latter, in which EMA has one term fewer.",
)

# %% [markdown]
# **Better?** Averages alone: undecided at both sizes. The whole of EMA with the customary decay: undecided at both sizes. Only the shorter memory,
# γ = 0.95, is better, and only at K = 64. At the report's own setting nothing is decided.
#
# **Unstable without it?** We could not provoke it. Look at the column "largest rise" in the first table: only one variant ever rises, EMA without decay, and by
# less than 1 %. The spreads differ by less than a factor of 2, in both directions. (The report does not say how its codebook started, nor at which learning
# rate; and five seeds without trouble do not prove that there is none.)
#
# **Often written, not so.** The report compares the *total* losses (its figure 11). They cannot be compared. With gradients the total is reconstruction +
# codebook + β · commitment, and with EMA there is no codebook term in it. On the same latents and codes the first is larger by the quantization error, whoever
# learns better. The right-hand picture shows how far that misleads: at K = 256 the gradient codebook's total is far above that of "EMA", and its
# distortion is not.
#
# The report also writes the update as $e \leftarrow \gamma e + (1-\gamma)\,\hat e$, with ê "the current embedding vector". That is the average of means
# that came to 0.50 in the chapter, where 0.01 was right.
#
# On MNIST, with latents of 7 × 7 × 4 ([all claims](../experiments/README.md#ema-against-a-learned-codebook)):

# %% tags=["nbval-check-output"]
measured_claims("EMA against a learned codebook")

# %% [markdown]
# ## Codes of length 1, codes of few dimensions
# Two more ways to keep codes alive change the space instead of the rule.
#
# **Length 1.** Scale latents and codes to length 1 (Yu et al. 2022, section 3.2). On the unit sphere
#
# $$\|z - e\|^2 = \|z\|^2 + \|e\|^2 - 2\,z\!\cdot\!e = 2 - 2\cos(z, e),$$
#
# so the nearest code is the one at the smallest *angle*. No code can be far from all latents because it is long, or hidden because the encoder pushed its
# outputs outwards. The price: the length of a latent is thrown away.
#
# **Few dimensions.** Look codes up in $d < D$ dimensions: a linear map down, the quantizer, a linear map up. Why try it? In a sweep over K and D (five seeds,
# as above) the codes of fewer dimensions are used far more:

# %% tags=["hide-input"]
sweep = results("codes_and_dims")
for d in (2, 8, 32):
    mean, by = (
        sweep.mean("perplexity", num_codes=256, dim=d),
        sweep.spread("perplexity", num_codes=256, dim=d),
    )
    print(f"gradient codebook, K = 256, D = {d:<3} perplexity {mean:4.0f} ± {by:.0f}")

# %% [markdown]
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
# Three questions, three answers. Under EMA there is one thing more. The mean of vectors of length 1 is *shorter* than 1, so the codes have to be scaled to
# length 1 again after each step; `companion.EMAVectorQuantizer(…, cosine=True)` does it.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
z = functional.normalize(torch.randn(400, 3) + torch.tensor([1.0, 0, 0]), dim=1)
code = functional.normalize(torch.ones(1, 3), dim=1)
statistics = code_statistics(z, torch.zeros(400, dtype=torch.int64), 1)
code, _ = ema_step(code, torch.zeros(1), *statistics, 0.99)
print(f"length after one step: {code.norm():.1f}")

inside = companion.EMAVectorQuantizer(16, 2, cosine=True)
low_dimensional = ProjectedQuantizer(inside, 8)  # 8 → 2, the lookup, 2 → 8
out = low_dimensional(torch.randn(4, 8, 7, 7))
print("z_q", tuple(out.z_q.shape), "  codebook", tuple(inside.codebook.shape), end="   ")
print("lengths 1:", bool((inside.codebook.norm(dim=1) - 1).abs().max() < 1e-5))

# %% [markdown]
# The first table has both, alone ("EMA, cosine", "EMA, low-dimensional") and together. With γ = 0.99, as they were run, none of them helps: distortion is
# higher (of the low-dimensional ones alone that is not certain) and perplexity lower. We did not test why. Yu et al. use such codes with thousands of codes and
# much wider latents.
#
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
z, codes = (
    torch.linspace(0, 9, 24).sin().reshape(12, 2),
    torch.linspace(0, 5, 10).cos().reshape(5, 2),
)
here = cosine_lookup(z, codes)
there = companion.quantizers.cosine_lookup(z, codes)
print("cosine_lookup agrees:", torch.equal(here, there))
glue("proof.cosine_lookup", here.tolist(), display=False)

# %% [markdown]
# ## Pen and paper
# Show that for the lookup by angle it is enough to scale the *codes* to length 1, whether you look for the largest product z·e or for the smallest distance.
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answer</summary>
#
# Let ê = e/‖e‖. Then z·ê = ‖z‖ cos(z, e), and ‖z‖ &gt; 0 is the same for all codes: the largest product is at the largest cosine. And ‖z − ê‖² = ‖z‖² + 1 −
# 2‖z‖ cos(z, e) is smallest there, too. (The *commitment loss* does need z of length 1.)
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * One part out at a time, over five seeds: here the decay matters most, then the restarts. k-means at the start and smoothing do not help here.
# * With a long memory the codes stand off centre while the encoder moves.
# * In the form of a step, smoothing is ε latents that stand where the code is and never fade.
# * What a report claims for EMA is not decided at its own setting. Total losses with and without a codebook term cannot be compared.
# * With codes of length 1 the nearest code is the one at the smallest angle.
#
# **Further.** Put `ProjectedQuantizer(companion.EMAVectorQuantizer(1024, 4, cosine=True), 32)` into the VQ-VAE: does a codebook of 1,024 stay alive? Run the
# committed experiment on MNIST: `python -m experiments.ema_codebooks --data mnist`.
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (appendix A.1). A. Razavi, A. van den Oord, O.
# Vinyals: *Generating Diverse High-Fidelity Images with VQ-VAE-2*, 2019 (section 2.1, equation 3). A. Łańcucki and others: *Robust Training of Vector Quantized
# Bottleneck Models*, 2020 (codebooks estimated anew by k-means). J. Yu and others: *Vector-quantized Image Modeling with Improved VQGAN*, 2022 (section 3.2,
# factorized and l2-normalised codes). M. Ibrahim: *Residual Vector Quantization based VAE* (figures 11 and 12).

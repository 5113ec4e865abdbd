# %% [markdown]
# # 04b · How many codes?
#
# **A study beside [chapter 04](04_vq_vae.ipynb)**, for readers who want to choose a VQ-VAE's settings themselves: how many codes, of how many dimensions, with
# which weights, which quantizer, how deep a network, how long a training? Most of it reads results that were measured once and stand in the repository, five
# trainings for each setting. At its end all models of the course so far stand in one plane:
#
# ![Distortion against rate in bits per image on logarithmic scales: the curve of a rounded autoencoder far to the right; left of it, points of VAEs, of VQ-VAEs
# with 16, 64 and 256 codes, and of residual quantizers.](../chapters/pictures/04b_how_many_codes.png)
#
# **Needed:** chapter 04. Nothing later needs this study. **Time** (estimates): three quarters of an hour of yours; five small models are trained, in about a
# minute and a half.

# %%
import math

import torch

import companion
from companion import plots
from companion.course import begin
from companion.course.results import Results, measured_claims, results
from companion.likelihoods import Gaussian
from companion.metrics import mse
from companion.quantizers import GumbelQuantizer, VectorQuantizer

session = begin("04b_how_many_codes")
settings, device = session.settings, session.device
train, test = session.data()
x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()
channels = train.shape[0]

# %% [markdown]
# ## Predict
# 1. At the same number of codes, will codes of 2 dimensions lose more than codes of 32, or less?
# 2. The loss is reconstruction + $\alpha$ · (codebook + $\beta$ · commitment). You double $\alpha$ and halve $\beta$, so that $\alpha\beta$ stays what it
#    was. What changes in training if the optimizer is SGD? And if it is Adam?
#
# ## How to read the numbers
# Every setting was trained with several seeds. Two settings are compared seed by seed: we take the difference for each seed, then its mean and its 95 %
# interval (Student's t). If the interval contains zero, the two are not told apart. A minus means *lower*, and for distortion lower is better.
#
# Some trainings **collapse**: all positions take the same few codes, and the reconstruction is hardly better than a grey image. So a VQ-VAE's codes *can* be
# ignored, although their KL is a constant. One collapsed seed makes a mean and an interval meaningless. We count such seeds apart: a run has collapsed if it
# loses more than half of the variance. (We chose that limit after seeing the results; the last line of the table shows how wide the gap is.)


# %%
def collapsed(row: dict) -> bool:
    return row["distortion"] > 0.5


def kept_mean(source: Results, name: str = "distortion", **where: object) -> str:
    """Mean ± standard deviation over the seeds that did not collapse, and how many did."""
    rows = [row for row in source.rows if where.items() <= row.items()]
    good = torch.tensor(
        [row[name] for row in rows if not collapsed(row)], dtype=torch.float64
    )
    digits = 1 if name == "perplexity" else 3
    text = f"{good.mean():.{digits}f} ± {good.std():.{digits}f}"
    return text + (
        f" ({len(rows) - len(good)} of {len(rows)} collapsed)"
        if len(good) < len(rows)
        else ""
    )


def difference(a: list[float], b: list[float]) -> str:
    """Of a minus b, in per cent of b's mean: mean and 95 % interval, for five or three seeds."""
    pairs = (torch.tensor(a) - torch.tensor(b)) / torch.tensor(b).mean() * 100
    t = {3: 4.303, 5: 2.776}[len(pairs)]
    reach = t * pairs.std() / len(pairs) ** 0.5
    verdict = "told apart" if pairs.mean().abs() > reach else "not told apart"
    return f"{pairs.mean():+.0f} % [{pairs.mean() - reach:+.0f}, {pairs.mean() + reach:+.0f}]: {verdict}"


# %% tags=["hide-input"]
found, kept = [], []
for name, data, keys in (
    ("codes_and_dims", "glyphs", ("num_codes", "dim")),
    ("quantizer_weights", "glyphs", ("optimizer", "alpha", "alpha_beta")),
    ("quantizers", "glyphs", ("quantizer",)),
    ("depth", "glyphs", ("encoder_blocks", "decoder_blocks")),
    ("depth", "mnist", ("encoder_blocks", "decoder_blocks")),
    ("width", "mnist", ("encoder", "decoder")),
    ("longer_training", "glyphs", ("num_codes",)),
    ("longer_training", "mnist", ("num_codes",)),
    ("zhao_vqvae", "mnist", ("start", "lr")),
    ("zhao_vqvae", "fashion-mnist", ("start", "lr")),
    ("zhao_vqvae", "CIFAR10-jpeg", ("start", "lr")),
    ("zhao_codes_and_dims", "mnist", ("num_codes", "dim")),
    ("gradient_flow_grid", "CIFAR10-jpeg", ("factor", "num_codes", "dim", "longer")),
):
    some = results(name, data=data)
    lost = [row for row in some.rows if collapsed(row)]
    found += [row["distortion"] for row in lost]
    kept += [row["distortion"] for row in some.rows if not collapsed(row)]
    print(
        f"{name:<20} {data:<14} {len(lost):>2} of {len(some.rows):>3} collapsed", end="  "
    )
    print(
        "; ".join(dict.fromkeys(", ".join(f"{k} {row[k]}" for k in keys) for row in lost))
    )
print(
    f"{len(found)} in all; they lose at least {min(found):.2f}, all others at most {max(kept):.2f}"
)

# %% [markdown]
# Collapse is rare, and it is not spread evenly: four of the seven runs start their codes from k-means at the higher of two learning rates, and two have 512
# codes of at least 256 dimensions. We did not test what makes a single seed collapse there.
#
# ## K and D
# Three numbers of codes, three dimensions, on the glyphs. The error bars are standard deviations over five seeds.

# %% tags=["hide-input"]
sweep = results("codes_and_dims")
print(sweep.command)
K_VALUES, D_VALUES = sweep.settings("num_codes"), sweep.settings("dim")
fig, (left, right) = plots.figure(9, 3.1, columns=2)
styles = {2: ("o-", "train"), 8: ("s--", "validation"), 32: ("^:", "third")}
for d, (style, colour) in styles.items():
    for ax, name in ((left, "distortion"), (right, "perplexity")):
        ax.errorbar(
            K_VALUES, [sweep.mean(name, num_codes=k, dim=d) for k in K_VALUES],
            [sweep.spread(name, num_codes=k, dim=d) for k in K_VALUES], fmt=style, capsize=3,
            color=plots.COLOURS[colour], label=f"D = {d}",
        )  # fmt: skip
right.plot(K_VALUES, K_VALUES, color=plots.COLOURS["reference"], linewidth=0.8)
right.text(
    K_VALUES[-1], K_VALUES[-1], "all used evenly ", ha="right", va="bottom", fontsize=8
)
for ax in (left, right):
    ax.set_xscale("log", base=2)
    ax.set_xticks(K_VALUES, [str(k) for k in K_VALUES])
    ax.set(xlabel="number of codes, K")
left.set(ylabel="held-out distortion", ylim=(0, None), title="More codes lose less")
right.set(ylabel="perplexity", yscale="log", title="Only with D = 2 are the new codes used")
left.legend()
plots.show(
    fig,
    alt="Left: held-out distortion against the number of codes for three code dimensions, "
    "with error bars over five seeds. Right: the perplexity of the codes, which for 8 and 32 "
    "dimensions grows much more slowly than their number, and for 2 nearly as fast.",
)

# %% tags=["hide-input"]
print("distortion" + "".join(f"{f'D = {d}':>18}" for d in D_VALUES))
for k in K_VALUES:
    print(
        f"K = {k:<6}"
        + "".join(f"{kept_mean(sweep, num_codes=k, dim=d):>18}" for d in D_VALUES)
    )
print("\ndifference in distortion")
for k in K_VALUES:
    for a, b in ((2, 8), (32, 8)):
        values = (sweep.values("distortion", num_codes=k, dim=d) for d in (a, b))
        print(f"K = {k:<4} D = {a} beside D = {b}:  {difference(*values)}")

# %% [markdown]
# **More codes lose less**, at every D. **With two dimensions far more of them are in use**: of 256 codes about half (by the perplexity), against a tenth or
# less with 8 and 32 dimensions. **And D = 2 loses least**, at every K; beside D = 8 all three intervals say so. More than 8 dimensions cost something only at
# K = 256.
#
# Why do two numbers suffice? A position passes on $\log_2 K$ bits whatever D is, and 256 points can lie apart in a plane. What D changes is how the codes and
# the latents find each other in training. One thing can be looked at before the first step. How many of 64 codes are anybody's nearest when training starts?

# %%
for d in (2, 8, 32):
    torch.manual_seed(session.seed)
    encoder = companion.ResNetEncoder(
        channels, d, hidden=settings.hidden, factor=4, num_blocks=1
    )
    quantizer = VectorQuantizer(64, d)
    with torch.no_grad():
        z = encoder(x_train[:512].cpu())  # (512, d, 7, 7)
        chosen = quantizer.encode(z)
    spread, length = z.std((0, 2, 3)).mean(), quantizer.codebook.square().mean().sqrt()
    print(
        f"D = {d:<3} {len(chosen.unique())} of 64 codes are somebody's nearest before training;  "
        f"latents spread by {spread:.3f}, codes by {length:.2f}"
    )

# %% [markdown]
# One or two, *whatever D is*: an untrained encoder puts all latents near one point, as their spread shows. So the dimensions do not differ at the start, and
# a tempting explanation fails: that in many dimensions more codes begin far from all latents. The difference arises during training. We did not test how.
#
# (Chapter 03 found the plane expensive. There, small networks encoded one patch at a time; here the encoder sees the neighbourhood. The two experiments
# differ in more than one thing, and we did not test which of them counts. All this is about codebooks that learn by gradient; [chapter
# 05](05_ema_codebooks.ipynb) revives codes.)
#
# ## α and β
# Your second guess. At a fixed $\alpha\beta$ the loss is reconstruction + $\alpha$ · codebook + $(\alpha\beta)$ · commitment. Who gets a gradient from the
# codebook term? Only the codebook (the routing table of chapter 03), and it gets none from any other term. So at fixed $\alpha\beta$ doubling $\alpha$
# doubles the codebook's gradient, and changes nothing else.
#
# What does an optimizer make of twice the gradient? Three steps with one weight say it:

# %% tags=["nbval-check-output"]
for kind in (torch.optim.SGD, torch.optim.Adam):
    moved = []
    for scale in (1.0, 2.0):
        weight = torch.nn.Parameter(torch.zeros(()))
        optimizer = kind([weight], lr=0.1)
        for slope in (1.0, 0.5, 2.0):
            weight.grad = torch.tensor(scale * slope)
            optimizer.step()
        moved.append(weight.item())
    print(
        f"{kind.__name__:<5} twice the gradient moves the weight {moved[1] / moved[0]:.3f} times as far"
    )

# %% [markdown]
# SGD takes twice the step: $\alpha$ is the codebook's learning rate. Adam divides each gradient by a running average of its size, so the factor cancels, but
# for its tiny ε. Now whole trainings:

# %% tags=["hide-input"]
weights = results("quantizer_weights")
print(weights.command)
for name in ("adam", "sgd"):
    rows = [row for row in weights.rows if row["optimizer"] == name]
    for alpha, product in dict.fromkeys((row["alpha"], row["alpha_beta"]) for row in rows):
        where = {"optimizer": name, "alpha": alpha, "alpha_beta": product}
        print(
            f"{name:<5} α {alpha:g}  αβ {product:<5g} distortion {kept_mean(weights, **where)}   "
            f"perplexity {kept_mean(weights, 'perplexity', **where)}"
        )
print("\ndistance ‖z_e − z_q‖² with α = 2 beside α = 1, at αβ = 0.25")
for name in ("adam", "sgd"):
    two, one = (
        weights.values("commitment", optimizer=name, alpha=a, alpha_beta=0.25)
        for a in (2.0, 1.0)
    )
    print(f"{name:<5} {difference(two, one)}")

# %% [markdown]
# The distance between latents and codes says most directly how well the codes follow. Under SGD (with momentum 0.9) it falls; under Adam doubling $\alpha$
# changes nothing that five seeds could tell. So whoever tunes $\alpha$ under Adam tunes next to nothing.
#
# What does count is the product $\alpha\beta$, which weighs the commitment against the reconstruction. From 0.05 to 1 the perplexity falls by a factor of six,
# and the distortion rises. One reading: a strong commitment ties the latents to the few codes that they happen to have. We did not test it.
#
# ## Other quantizers
# All with 64 codes: the gradient codebook of chapter 04 with 8 and with 3 dimensions; the rotation trick and Gumbel-softmax (study 03b); and **finite scalar
# quantisation**, which has no codebook at all. It squashes three numbers per position by tanh and rounds each to one of four levels: 4 · 4 · 4 = 64 codes
# that lie still (Mentzer et al. 2024).

# %% tags=["hide-input"]
kinds = results("quantizers")
print(kinds.command)
for kind in kinds.settings("quantizer"):
    where = {"quantizer": kind}
    print(
        f"{kind:<21} distortion {kept_mean(kinds, **where)}   "
        f"perplexity {kept_mean(kinds, 'perplexity', **where):>11}   "
        f"usage {kinds.mean('usage', **where):.2f}   "
        f"{kinds.mean('entropy_bits_per_position', **where):.0f} bits by position"
    )
print("\ndifference in distortion, beside vector, D = 3")
for kind in ("vector, D = 8", "finite scalar, D = 3", "gumbel, D = 8", "rotation, D = 8"):
    values = (
        kinds.values("distortion", quantizer=some) for some in (kind, "vector, D = 3")
    )
    print(f"{kind:<21} {difference(*values)}")

# %% [markdown]
# **Finite scalar quantisation** and the learned codebook of the same three dimensions are not told apart in what they lose. It uses nearly every code, having
# none that could die, and its table costs more bits by position.
#
# **The rotation trick**, which its paper reports to help, loses clearly more here. In study 03b it was no worse than straight-through. The paper's codebooks
# follow the data by moving averages, and ours learns by gradient; we did not test whether that makes the difference. **Gumbel-softmax** loses more, too,
# although it uses more codes than the 8-dimensional codebook.
#
# It is often said that Gumbel-softmax pays for a mismatch: it trains with *mixtures* of codes and is tested with single ones. Is that its trouble here? We
# train one, and decode the same test images both ways:

# %%
shape = {"hidden": settings.hidden, "factor": 4, "num_blocks": 1}
options = {
    "epochs": settings.epochs,
    "validation": test,
    "batch_size": settings.batch_size,
    "lr": settings.lr,
    "seed": session.seed,
    "device": device,
    "progress": False,
}


def pair(outputs: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """An untrained encoder with the given number of outputs per position, and a decoder."""
    torch.manual_seed(session.seed)
    return (
        companion.ResNetEncoder(channels, outputs, **shape),
        companion.ResNetDecoder(channels, settings.dim, **shape),
    )


def loses(images: torch.Tensor) -> float:
    return mse(images, x_test).item() / variance


encoder, decoder = pair(settings.dim)
steps = settings.epochs * (settings.train_images // settings.batch_size)
gumbel = companion.VQVAE(
    encoder, GumbelQuantizer(settings.num_codes, settings.dim, anneal_steps=steps), decoder
)
companion.fit(gumbel, train, **options)
with torch.no_grad():
    gumbel.train()  # mixtures, with noise, as in training
    torch.manual_seed(session.seed)
    mixtures = loses(gumbel.decoder(gumbel.quantizer.quantize(gumbel.encoder(x_test)).z_q))
    gumbel.eval()  # single codes
    single = loses(gumbel(x_test).reconstruction)
print(f"distortion with mixtures {mixtures:.4f}, with single codes {single:.4f}")

# %% [markdown]
# Single codes lose no more than the mixtures. So here it pays nothing for the mismatch: what it was trained with is not good to begin with. We did not test
# why.
#
# ## Deeper and wider networks
# A report asks how encoder and decoder affect performance. Here is depth, in residual blocks, on two sets of images, and width on one of them (narrow is a
# quarter):

# %% tags=["hide-input"]
depth = {data: results("depth", data=data) for data in ("glyphs", "mnist")}
for some in depth.values():
    print(some.command)
    for e, d in dict.fromkeys(
        (r["encoder_blocks"], r["decoder_blocks"]) for r in some.rows
    ):
        print(
            f"  blocks: encoder {e}, decoder {d}   distortion {kept_mean(some, encoder_blocks=e, decoder_blocks=d)}"
        )
    three, none = (
        some.values("distortion", encoder_blocks=n, decoder_blocks=n) for n in (3, 0)
    )
    print(f"  three on both sides beside none: {difference(three, none)}")
width = results("width", data="mnist")
print(width.command)
for e, d in dict.fromkeys((r["encoder"], r["decoder"]) for r in width.rows):
    print(
        f"  encoder {e:<7} decoder {d:<7} distortion {kept_mean(width, encoder=e, decoder=d)}"
    )
wide, narrow = (
    width.values("distortion", encoder=w, decoder=w) for w in ("wide", "narrow")
)
print(f"  both wide beside both narrow: {difference(wide, narrow)}")

# %% [markdown]
# Three blocks on both sides lose about a tenth less than none, on both sets of images. Which side deserves them, these seeds do not say. One deep encoder
# collapsed on MNIST. Width makes a larger difference: with both networks wide the loss is about half of what it is with both narrow.
#
# ## Longer training
# Another report asks what happens if one trains longer with few codes. Four times as long, with 16 codes and with 256:

# %% tags=["hide-input"]
longer = results("longer_training")
print(longer.command)
fig, ax = plots.figure(6.5, 2.9)
curves = {
    k: torch.tensor(longer.values("by_epoch", num_codes=k)) for k in (16, 256)
}  # (seeds, epochs)
for k, style, colour in ((16, "s--", "validation"), (256, "o-", "train")):
    epochs = range(1, curves[k].shape[1] + 1)
    ax.fill_between(
        epochs, curves[k].amin(0), curves[k].amax(0), color=plots.COLOURS[colour], alpha=0.2
    )
    ax.plot(
        epochs,
        curves[k].mean(0),
        style,
        markersize=3,
        color=plots.COLOURS[colour],
        label=f"K = {k}",
    )
ax.set(
    xlabel="epoch", ylabel="held-out distortion", yscale="log", title="Both go on falling"
)
ax.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
ax.minorticks_off()
ax.legend()
plots.show(
    fig,
    alt="Held-out distortion over the epochs for 16 and for 256 codes, five seeds each: "
    "both fall quickly and then slowly, and the curve of 16 codes stays above.",
)
last, quarter = curves[16].shape[1] - 1, curves[16].shape[1] // 4 - 1
for text, a, b in (
    (
        f"K = 16 beside K = 256, both after {quarter + 1} epochs",
        curves[16][:, quarter],
        curves[256][:, quarter],
    ),
    (
        f"K = 16 beside K = 256, both after {last + 1} epochs",
        curves[16][:, last],
        curves[256][:, last],
    ),
    (
        f"K = 16 after {last + 1} beside K = 256 after {quarter + 1}",
        curves[16][:, last],
        curves[256][:, quarter],
    ),
):
    print(f"{text}:  {difference(a.tolist(), b.tolist())}")

# %% [markdown]
# Both go on falling, and at equal length 256 codes are ahead, early and late. After four times the training 16 codes are not told apart from 256 codes after
# a quarter of it. So here longer training may make up for a small codebook, or may not: five seeds leave it open.
#
# On colour images we can also ask how many codes are really in use:

# %% tags=["hide-input"]
grid = results("gradient_flow_grid", data="CIFAR10-jpeg")
for k, d, longer_by in (
    *((k, None, 1) for k in (64, 128, 256, 512)),
    *((k, 256, times) for times in (1, 4) for k in (64, 256)),
):
    rows = [
        r
        for r in grid.rows
        if (r["factor"], r["num_codes"], r["longer"]) == (4, k, longer_by)
        and d in (None, r["dim"])
    ]
    good = [row for row in rows if not collapsed(row)]
    low, high = (limit(row["perplexity"] for row in good) for limit in (min, max))
    print(
        f"CIFAR-10, f = 4, K = {k:<4} D {d or 'any':<4} epochs × {longer_by}:  "
        f"perplexity {low:4.1f} … {high:4.1f}, {len(rows) - len(good)} of {len(rows)} collapsed"
    )

# %% [markdown]
# The ranges overlap whatever K is: a codebook of 512 has no more codes in use than one of 64. With four times the epochs the perplexity has, on average, at
# least doubled, for 64 codes and for 256, and the two are not told apart in what they lose (last row of the third table below).
#
# ## One plane for all
# Chapter 04 ended its comparison with one VAE and one VQ-VAE. Now we put families into the same plane. All have the same encoder and decoder, the same images
# and the same number of epochs. What each one sends has its own name:
#
# * **VQ** and **RQ** (residual quantisation, [chapter 06](06_residual_quantisation.ipynb): R × K is R codes of K each at a position): nominal bits, and
#   hollow, bits by position. The RQ codebooks are moving averages ([chapter 05](05_ema_codebooks.ipynb)), the VQ ones are shown both ways.
# * **VAE**: the KL in bits, with the distortion of a *draw* from $q(z|x)$. Its likelihood has the width σ, and a larger σ asks for less.
# * **AE**: its latents rounded to 1 … 8 bits a number *after* training. Nobody told it that its numbers would be rounded.
#
# Reconstructions are not cut to [0, 1] here, as in the committed results. (Chapter 04 cuts them, so its numbers are a little smaller.)
#
# The nominal bits of a table are its KL under a uniform prior (chapter 04). So nominal bits and a VAE's KL are the same kind of rate: that of a prior which was
# fixed beforehand.

# %%
encoder, decoder = pair(settings.dim)
ae = companion.Autoencoder(encoder, decoder)
companion.fit(ae, train, **options)


@torch.no_grad()
def rounded(
    z: torch.Tensor, bits: int, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Each number of z as the nearest of 2 ** bits levels from low to high."""
    steps = 2**bits - 1
    return low + ((z - low) / (high - low) * steps).round().clamp(0, steps) / steps * (
        high - low
    )


with torch.no_grad():
    z = ae.encoder(x_train[:1000])
    low, high = z.amin((0, 2, 3), keepdim=True), z.amax((0, 2, 3), keepdim=True)
    z = ae.encoder(x_test)
    curve = [
        (b * z[0].numel(), loses(ae.decoder(rounded(z, b, low, high)))) for b in range(1, 9)
    ]

points = {}
for sigma in settings.sigmas:
    encoder, decoder = pair(2 * settings.dim)
    vae = companion.VAE(encoder, decoder, Gaussian(sigma))
    history = companion.fit(vae, train, **options)
    with torch.no_grad():
        torch.manual_seed(session.seed)
        drawn = loses(vae(x_test).reconstruction)
    points[sigma] = (history.last["validation_kl"] / math.log(2), drawn)
    print(
        f"VAE, σ = {sigma}: KL {points[sigma][0]:.0f} bits, distortion of a draw {drawn:.4f}"
    )

# %% tags=["hide-input", "cover"]
residual = results("residual")
fig, ax = plots.figure(8.4, 5)
ax.plot(*zip(*curve, strict=True), "o-", color=plots.COLOURS["reference"], markersize=4,
        label="AE, rounded to 1 … 8 bits a number")  # fmt: skip
ax.plot(
    *zip(*points.values(), strict=True),
    "D-",
    color=plots.COLOURS["validation"],
    label="VAE, a draw at its KL",
)
for sigma, point in points.items():
    ax.annotate(f"σ {sigma}", point, (-10, -14), textcoords="offset points", fontsize=8)


def family(label: str, marker: str, colour: str, members: list[tuple]) -> None:
    """Means over seeds: a filled mark at nominal bits, a hollow one at bits by position."""
    style = {"color": plots.COLOURS[colour], "markersize": 7}
    for i, (name, rows, positions, offset) in enumerate(members):
        by_position = (
            "per_position_bits"
            if "per_position_bits" in rows[0]
            else "entropy_bits_per_position"
        )
        nominal, counted, lost = (
            sum(row[key] for row in rows) / len(rows)
            for key in ("nominal_bits", by_position, "distortion")
        )
        nominal, counted = nominal * positions, counted * positions
        ax.plot((counted, nominal), (lost, lost), color=style["color"], linewidth=0.7)
        names = [f"{label}, nominal", f"{label}, by position"] if i == 0 else [None, None]
        ax.plot(nominal, lost, marker, label=names[0], **style)
        ax.plot(counted, lost, marker, fillstyle="none", label=names[1], **style)
        if offset:
            ax.annotate(
                name, (nominal, lost), offset, textcoords="offset points", fontsize=8
            )
        print(
            f"{label:<16} {name:<8} nominal {nominal:4.0f}, by position {counted:4.0f}, "
            f"distortion {lost:.4f}"
        )


def of_residual(depth: int, num_codes: int) -> list[dict]:
    keys = ("depth", "num_codes", "codebook", "variant")
    wanted = (depth, num_codes, "EMA", "")
    return [r for r in residual.rows if tuple(r[n] for n in keys) == wanted]


def of_sweep(num_codes: int) -> list[dict]:
    return [
        r for r in sweep.rows if (r["num_codes"], r["dim"]) == (num_codes, settings.dim)
    ]


T = 7 * 7  # the results of RQ and EMA give bits a position
family(
    "VQ, by gradient",
    "s",
    "train",
    [(f"K {k}", of_sweep(k), 1, (7, 1)) for k in (16, 64, 256)],
)
family(
    "VQ, EMA", "^", "third", [(f"K {k}", of_residual(1, k), T, None) for k in (16, 64, 256)]
)
residuals = ((2, 16, (7, 6)), (2, 128, (-14, 8)), (3, 64, (6, -4)))
family(
    "RQ, EMA",
    "v",
    "fourth",
    [(f"{r} × {k}", of_residual(r, k), T, at) for r, k, at in residuals],
)
ax.set(
    xscale="log", yscale="log", xlabel="rate, bits per image", ylabel="held-out distortion"
)
ax.set_xticks([100, 200, 400, 1000, 3000], ["100", "200", "400", "1000", "3000"])
ax.set_yticks([0.03, 0.05, 0.1, 0.2, 0.5], ["0.03", "0.05", "0.1", "0.2", "0.5"])
ax.minorticks_off()
ax.set(xlim=(70, 4000), ylim=(0.025, 0.8))
ax.legend(fontsize=8, loc="upper right")
ax.set_title("Lower left is better: rate and distortion of every model so far")
plots.show(
    fig,
    alt="Distortion against rate in bits per image, both logarithmic. The rounded autoencoder's curve "
    "lies far to the right. VAEs of three widths, VQ-VAEs of 16, 64 and 256 codes and residual "
    "quantizers lie to its left; filled marks are nominal bits, hollow ones bits by position.",
)

# %% [markdown]
# Compare the filled marks and the two curves first: rates with a prior that was fixed beforehand.
#
# * **The rounded AE lies far to the right.** It needs about three times the bits of a VQ-VAE with 256 EMA codes to lose as little. Rounding afterwards is
#   expensive; a quantizer that is there during training is not. (Finite scalar quantisation, above, *is* an AE that is rounded while it trains.)
# * **The VAEs lie lower left of the tables.** At the same loss, a draw has a smaller KL than a table has nominal bits. On paper, that is: a table is a file,
#   a KL is not.
# * **RQ goes on where VQ stops.** At 392 nominal bits a single codebook of 256 loses less than two of 16. But twice the bits would take 65,536 codes, and
#   two codebooks of 128 or three of 64 get further without that.
#
# Then the hollow marks. Counting at each position moves every table to the left, the gradient codebooks most: they leave most codes dead. Those land on the
# VAEs' curve, the others on it or above it. And this is the weakest of learned priors: chapter 07 learns a better one. (A VAE could have one, too.) AE and
# VAEs are one training each, the others means of three or five, so small distances mean nothing.
#
# ## What the reports say
# The course's source reports make claims about all this, on real images. Each comparison, and the size from which it matters, was written down before the
# runs; the page of [experiments](../experiments/README.md) has each seed and each command. In these tables minus is
# lower, and collapsed seeds are counted apart, as in the first table of this study.

# %% tags=["nbval-check-output"]
measured_claims("The VQ-VAE as reported")
measured_claims("K and D")
measured_claims("K × D on colour images")

# %% tags=["nbval-check-output"]
measured_claims("Longer training")
measured_claims("Encoder and decoder")
measured_claims("Encoder and decoder, width")

# %% [markdown]
# Most are undecided: three to five seeds tell only large differences apart. Two sentences of a report can be set beside the glyphs above. "Bigger
# dimensions like 16 tends to make the model use less diverse codes": with 64 and 256 codes the perplexity falls from D = 2 to D = 8, and on. "Smaller
# dimensions like 4 tends to produce blurry reconstructions, which is caused by the loss of information": here codes of two dimensions lose least.
#
# ## Pen and paper
# 1. Under which prior $p(k)$ does the bound $\log p(x) \ge \log p(x|z_q) + \log p(k)$ become an equality, for one given x?
# 2. The course takes the squared error as a mean over N pixels, with no factor $1/(2\sigma^2)$ before it. Which σ belongs to $\alpha = 1$ if the codebook and
#    commitment terms are taken as they stand? What does a larger $\alpha$ say about σ?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. If p(k′)·p(x|k′) = 0 for every table k′ but the chosen one, for example when p puts all its mass on k. Other images would then have to do with the same
#    table.
# 2. −log p(x|z_q) is N · MSE / (2σ²) up to a constant. Divide the whole loss by N / (2σ²): the reconstruction term becomes the MSE, and the quantizer's
#    terms, which had weight 1 beside −log p, get the weight α = 2σ²/N. With α = 1 that is σ² = N/2. A larger α is a larger σ: less is asked of the
#    reconstruction. (No bound says that the quantizer's terms should have weight 1 beside −log p, so this σ is a way of speaking.)
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * More codes lose less. With a codebook that learns by gradient, few dimensions use more codes and lose less.
# * Under Adam, $\alpha$ at fixed $\alpha\beta$ changes next to nothing; under SGD it is the codebook's learning rate. What counts is $\alpha\beta$.
# * Finite scalar quantisation does as well as a learned codebook of the same dimensions, without having one. The rotation trick and Gumbel-softmax lose more
#   here.
# * Wider networks help much, deeper ones a little, and longer training goes on helping.
# * A few seeds collapse. They belong into a count of their own, not into a mean.
# * Rates can be compared if each has its name: nominal bits and a KL under a fixed prior; bits by position under a counted one.
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017. F. Mentzer and others: *Finite Scalar
# Quantization: VQ-VAE Made Simple*, 2024. E. Jang, S. Gu, B. Poole: *Categorical Reparameterization with Gumbel-Softmax*, 2017. C. Fifty and others:
# *Restructuring Vector Quantization with the Rotation Trick*, 2025. M. Havasi, R. Peharz, J. M. Hernández-Lobato: *Minimal Random Code Learning*, 2019. S.
# Zhao: *VQ-VAE and Transformer*, 2023, sections 2 and 4. *Description of VQ-VAE* (the report on gradient flow and on K × D).

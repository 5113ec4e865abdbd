# %% [markdown]
# # 11 · Your own images
#
# **The question.** So far we chose the pictures. What does it take to go from a folder of *your* pictures to new ones, and what do you do when it looks bad? At
# the end of this chapter stands a sheet of pictures that nobody has drawn:
#
# ![A sheet of new small colour pictures drawn by the prior and decoded by the tokenizer of this chapter, a class in each row: discs like faces, shapes like
# figures, dishes and signs.](../chapters/pictures/11_your_own_images.png)
#
# **Afterwards you can** turn a folder into a tokenizer, codes, a prior and samples; say what a picture costs beside JPEG and PNG; write a checkpoint that a
# power cut cannot spoil; and read from a few numbers what is wrong with a run.
#
# **Needed:** [chapter 06](06_residual_quantisation.ipynb) and [chapter 08](08_rq_transformer.ipynb). Words are explained in the
# [glossary](../chapters/glossary.md). **Time:** about an hour and a half of yours, and an hour more for all four exercises (estimates); the computer's is in
# the table below.

# %%
import dataclasses
import hashlib
import io
import math
import os
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from myst_nb import glue
from PIL import Image
from torch import Tensor

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.chapter_11 import PowerCutError, quantizer_of_run, write, write_half
from companion.metrics import mse
from companion.priors import prior_bits
from companion.quantizers import Quantizer

session = begin("11_your_own_images")
settings, device = session.settings, session.device

# %% [markdown]
# ## A folder
#
# Put the path of a folder of colour pictures here, one sub-folder for each class, or all of them in one folder; a tenth is held out, if it has no `train` and
# `test` inside. With None we write the emoji of [chapter 09](09_sharper_pictures.ipynb) into a folder as 32 × 32
# PNG files, so that everything below starts from files, as it would with yours.

# %%
FOLDER = None  # for example Path.home() / "Pictures" / "birds"

if FOLDER is None:
    FOLDER = Path(tempfile.mkdtemp()) / "emoji"
    for split, images in zip(("train", "test"), session.data(), strict=True):
        for i, (picture, label) in enumerate(
            zip(images.images, images.labels, strict=True)
        ):
            place = FOLDER / split / images.classes[label].replace(" ", "-")
            place.mkdir(parents=True, exist_ok=True)
            pixels = picture.permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(place / f"{i:04}.png")

train, test = (
    companion.data.load(FOLDER, split, image_size=32, test_share=0.1).to(device)
    for split in ("train", "test")
)
print(f"{len(train):,} pictures to learn from, {len(test)} held out")
print("an image:", tuple(train.images.shape[1:]), "· classes:", ", ".join(train.classes))

# %% [markdown]
# `load` crops each picture to its middle square and resizes it. It reads PNG, JPEG, WebP and others, turns photographs upright, and stops with the name of a
# file that it cannot read. **Look at what came out before you train on it.** More runs fail here than at the learning rate: faces cut off by the crop, a class
# of thumbnails, a folder of screenshots that slipped in.

# %% tags=["hide-input"]
x_test, _ = test.batch(torch.arange(len(test)))
some = torch.linspace(0, len(test) - 1, 12).long()
plots.show(
    plots.image_grid(
        x_test[some], columns=12, title="What a model will be given: look at it first"
    ),
    alt="Twelve small colour pictures of the held-out set in a row.",
)

# %% [markdown]
# ## Predict
#
# 1. A pixel has 3 × 8 = 24 bits. How many does PNG need for these pictures, which it stores exactly?
# 2. Our tokenizer will write 4 × 4 positions of 3 codes of 6 bits, or 0.28 bits a pixel. JPEG at its lowest quality needs about as many. Which
#    of the two will be closer to the picture?
# 3. A prior learns from labels in random order. What will a wrong class cost it, compared with the right one?
#
# ## A tokenizer
#
# Everything that follows you have built: encoder and decoder of chapter 04, EMA codebooks of chapter 05, the stack of chapter 06. For a first run take small
# ones. A run of two minutes that fails teaches as much as one of two days.


# %%
def new_tokenizer() -> companion.VQVAE:
    """Three EMA codebooks of 64 codes between small residual networks; 32 × 32 become 4 × 4."""
    torch.manual_seed(session.seed)
    codebooks = [
        companion.EMAVectorQuantizer(64, 32, decay=0.9, restart_below=0.2) for _ in range(3)
    ]
    return companion.VQVAE(
        companion.ResNetEncoder(3, 32, hidden=settings.width, factor=8),
        companion.ResidualQuantizer(codebooks),
        companion.ResNetDecoder(3, 32, hidden=settings.width, factor=8),
    ).to(device)


tokenizer = new_tokenizer()
history = companion.fit(
    tokenizer,
    train,
    validation=test,
    epochs=settings.epochs,
    batch_size=settings.batch_size,
    lr=settings.lr,
    seed=session.seed,
)
tokenizer.eval()
with torch.no_grad():
    rebuilt = tokenizer(x_test).reconstruction.clamp(0, 1)
session.expect("mse", mse(rebuilt, x_test).item())

# %% tags=["hide-input"]
last = history.rows[-1]
for depth in (1, 2, 3):
    print(
        f"depth {depth}: {last[f'perplexity_{depth}']:.0f} of 64 codes effectively in use"
    )
plots.show(
    plots.image_rows(
        {"held out": x_test[some], "rebuilt": rebuilt[some]},
        size=0.7,
        title="Shapes are there; fine lines and some colours are not",
    ),
    alt="Twelve held-out pictures and their reconstructions: the same shapes, softer, and "
    "some in other colours.",
)

# %% [markdown]
# Is that good? Look at the codes before you look at the loss. What does each of the 64 codes of depth 1 mean? Write it at every position and let the decoder
# draw:


# %%
def drawn(stacks: Tensor, depth: int) -> Tensor:
    """(N, h, w, R) -> the pictures of the first ``depth`` codes of each stack."""
    with torch.no_grad():
        return tokenizer.decoder(tokenizer.quantizer.decode(stacks, depth=depth)).clamp(
            0, 1
        )


everywhere = torch.arange(64, device=device)[:, None, None, None].expand(64, 4, 4, 3)
meaning = drawn(everywhere, depth=1)
order = meaning.mean((1, 2, 3)).argsort()

# %% tags=["hide-input"]
plots.show(
    plots.image_grid(
        meaning[order],
        columns=16,
        title="Each code of depth 1 at all positions, dark to light",
    ),
    alt="Sixty-four small squares, each with the colour or pattern that one code draws when it "
    "stands at every position.",
)

# %% [markdown]
# The codes of depth 1 are a palette of colours, some with stripes or a weave. Green is missing: the leaves above came back brown. If many of these
# squares were alike, the codebook would be wasted; if one code were chosen everywhere, it would draw the mean picture. Both faults come back below.
#
# ## What does a picture cost?
#
# Somebody who has the tokenizer needs only the codes. How many bits are they? With the same length for every code, $\log_2 64 = 6$ bits each. But some codes
# are frequent and some rare, and a good code gives the frequent ones short words: $-\log_2 p(k)$ bits for a code of probability $p(k)$ (Shannon 1948).
#
# Where does $p$ come from? Sender and receiver must have it *before* the picture, so it cannot be counted on the picture itself. We count on the training
# pictures, and code new ones. A code that the training pictures never used would have probability 0 and cost infinitely many bits. So 1 is added to every count
# (**Laplace's rule**):
#
# $$p(k) = \frac{n_k + 1}{n + K}, \qquad \text{bits of a picture} = -\sum_{t} \log_2 p(k_t).$$
#
# ### Exercise 11.1 · a rate from a histogram  (easy, 10 minutes)
# From the codes of the training pictures, `(N, h, w)`, and those of new ones, `(M, h, w)`, compute the bits of each new picture, `(M,)`.
#
# <details><summary>Hint 1</summary><code>torch.bincount(codes.flatten(), minlength=num_codes)</code> counts; add 1, divide by the sum.</details>
# <details><summary>Hint 2</summary>Make a table of K costs first. <code>table[new_codes]</code> looks all codes up at once; then sum over the positions of
# each picture.</details>


# %%
def code_length(codes: Tensor, new_codes: Tensor, num_codes: int) -> Tensor:
    """(N, h, w), (M, h, w) -> bits of each of the M images, (M,)."""
    ### BEGIN SOLUTION
    counts = torch.bincount(codes.flatten(), minlength=num_codes) + 1
    bits = -(counts / counts.sum()).log2()  # (K,)
    return bits[new_codes].flatten(1).sum(1)
    ### END SOLUTION


code_length = check(code_length)

# %%
codes, held_out = (companion.tokenize(tokenizer, images) for images in (train, test))
pixels = 32 * 32
by_depth = [code_length(codes.codes[..., r], held_out.codes[..., r], 64) for r in range(3)]
bits = sum(by_depth)
nominal = 4 * 4 * 3 * math.log2(64)
print(f"nominal:   {nominal / pixels:.3f} bits a pixel")
print(f"histogram: {bits.mean() / pixels:.3f} bits a pixel; the cheapest picture")
print(f"           {bits.min() / pixels:.3f}, the dearest {bits.max() / pixels:.3f}")
session.expect("histogram_bits", bits.mean().item() / pixels)

# %% [markdown]
# The pictures differ: some are made of frequent codes. But the mean is near the nominal rate. The tokenizer uses its codes nearly evenly (60 of 64 effectively,
# see above), and of an even histogram there is nothing to save. A *prior* also sees which codes stand beside each other, and saves more.
#
# ## A checkpoint that can be trusted
#
# Training takes hours on real pictures, and machines go off. What is on the disk then? If you write over the only good file, a power cut in the middle leaves
# half a file and no old one. This line does that:
#
#     torch.save(model.state_dict(), "model.pt")        # the old one is gone, the new one is not yet there
#
# The cure has two halves. **Write beside it, then rename.** `os.replace(temporary, path)` happens at once: at every moment the name stands for the whole old
# file or for the whole new one. (Only within one disk: so the temporary file is put into the same folder.) And a **checksum**: a number computed from all
# bytes, so that a file that was damaged later is not taken for a good one. SHA-256 is 64 hexadecimal digits, and changes when any bit does:

# %% tags=["nbval-check-output"]
for content in (b"the weights", b"the weighta"):
    print(hashlib.sha256(content).hexdigest())

# %% [markdown]
# ### Exercise 11.2 · the checkpoint  (medium, 15 minutes)
# `save_checkpoint(content, path, write)` puts the checksum (64 digits, as bytes) and after it `content` into the file `path`. `write(path, bytes)` is the disk:
# it writes a file, and the power may fail in the middle of it. After a failure the old file must still be there, whole, and the caller gets the error.
# `load_checkpoint(path)` gives the content back, and raises `ValueError` if the checksum is not that of the rest.
#
# <details><summary>Hint 1</summary><code>path.with_name(path.name + ".tmp")</code> is a name in the same folder.</details>
# <details><summary>Hint 2</summary><code>hashlib.sha256(content).hexdigest().encode()</code> gives the 64 digits as bytes. When reading, split the bytes at
# 64, and compare bytes with bytes.</details>


# %%
def save_checkpoint(content: bytes, path: Path, write) -> None:
    """Checksum and content into the file ``path``, which is whole at every moment."""
    ### BEGIN SOLUTION
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, hashlib.sha256(content).hexdigest().encode() + content)
    os.replace(temporary, path)
    ### END SOLUTION


save_checkpoint = check(save_checkpoint)


# %%
def load_checkpoint(path: Path) -> bytes:
    """The content, or a ValueError if the file is damaged."""
    ### BEGIN SOLUTION
    whole = path.read_bytes()
    checksum, content = whole[:64], whole[64:]
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise ValueError(f"{path} is damaged")
    return content
    ### END SOLUTION


load_checkpoint = check(load_checkpoint)

# %% [markdown]
# Now pull the plug, and turn one bit:

# %% tags=["nbval-check-output"]
path = Path(tempfile.mkdtemp()) / "model.ckpt"
save_checkpoint(b"weights after an hour", path, write)
try:
    save_checkpoint(b"weights after two hours", path, write_half)  # the power fails
except PowerCutError as error:
    print(error, "- and the file holds:", load_checkpoint(path).decode())
damaged = bytearray(path.read_bytes())
damaged[70] ^= 1
path.write_bytes(damaged)
try:
    load_checkpoint(path)
except ValueError:
    print("one bit turned over: refused")

# %% [markdown]
# `companion.save` and every state that `fit(run=…)` writes work like this. A run that is killed goes on where it was, and a model file that was damaged is
# refused:

# %%
folder = Path(tempfile.mkdtemp())
companion.save(tokenizer, folder / "tokenizer.safetensors")
elsewhere = companion.load(folder / "tokenizer.safetensors")  # rebuilt from the file alone
print("the same tokenizer:", companion.codes.identity(elsewhere) == held_out.tokenizer)

# %% [markdown]
# The file says how to rebuild the model, and runs no code when it is read. To **share** it, `companion.save_pretrained(tokenizer, folder)` writes the two files
# of the Hub's convention, `config.json` and `model.safetensors`, and `companion.from_pretrained` reads them, from a folder or from the Hub.
#
# ## A prior, and a schedule
#
# The prior is the RQ-Transformer of chapter 08, with a class for each sub-folder. Transformers are usually trained with one thing more: a learning rate
# that changes. It begins small (**warm-up**, Goyal et al. 2017), while Adam
# has seen few gradients. Towards the end it goes down again, along half a cosine (a **cosine schedule**, Loshchilov and Hutter 2017), so that the noise of
# single batches moves the weights less and less. (These are the usual reasons; below we test the effect, not the reasons.) As a factor of the learning rate in
# step $s = 0, 1, …, S - 1$:
#
# $$f(s) = \begin{cases}(s + 1) / W & s < W\\ f_0 + (1 - f_0)\,\tfrac12\left(1 + \cos \pi \dfrac{s - W}{S - W}\right) & s \ge W\end{cases}$$
#
# with $W$ steps of warm-up and the floor $f_0$. Write it as a function *of the step alone*. Then a run that goes on after a kill has the right rate without
# anything to be saved. (A scheduler object has a counter of its own, and a resumed run that forgets it starts the warm-up again.)
#
# ### Exercise 11.3 · a schedule  (easy, 10 minutes)
# The factor in `step`, with `total` steps in all, `warmup` steps of warm-up and the `floor`. Without warm-up, `warmup` is 0.
#
# <details><summary>Hint</summary>Two branches: <code>if step < warmup: return …</code>. In the second, u = (step − warmup) / (total − warmup) goes from 0
# to nearly 1.</details>


# %%
def learning_rate_factor(step: int, total: int, warmup: int, floor: float) -> float:
    """What the learning rate is multiplied with in step 0, 1, …, total − 1."""
    ### BEGIN SOLUTION
    if step < warmup:
        return (step + 1) / warmup
    u = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * u)) / 2
    ### END SOLUTION


learning_rate_factor = check(learning_rate_factor)

# %% [markdown]
# Does it help? Three priors from the same weights: a constant rate, three times that rate, and three times that rate with your schedule.


# %%
def new_prior() -> companion.RQTransformer:
    """The same one each time."""
    torch.manual_seed(session.seed)
    return companion.RQTransformer(
        64, codes.grid, dim=settings.dim, layers=settings.layers, depth_layers=settings.depth_layers, heads=4,
        dropout=0.2, num_classes=len(train.classes), label_dropout=0.1, tokenizer=codes.tokenizer,
    ).to(device)  # fmt: skip


def with_warmup(step: int, total: int) -> float:
    return learning_rate_factor(step, total, warmup=total // 20, floor=0.05)


low, high = settings.prior_lr, 3 * settings.prior_lr
SCHEDULED = f"{high:g} with the schedule"
priors, curves, bits_of = {}, {}, {}
for name, lr, schedule in (
    (f"{low:g}, constant", low, None),
    (f"{high:g}, constant", high, None),
    (SCHEDULED, high, with_warmup),
):
    priors[name] = new_prior()
    curves[name] = companion.fit(
        priors[name], codes, validation=held_out, epochs=settings.prior_epochs,
        batch_size=settings.batch_size, lr=lr, schedule=schedule, clip=1.0, seed=session.seed,
    )  # fmt: skip
    bits_of[name] = prior_bits(priors[name].eval(), held_out.codes, held_out.labels)
prior = priors[SCHEDULED]
session.expect("prior_bits", bits_of[SCHEDULED] / pixels)

# %% tags=["hide-input"]
fig, (left, right) = plots.figure(9, 3, columns=2)
total = settings.prior_epochs * (len(codes) // settings.batch_size)
left.plot(
    [learning_rate_factor(s, total, total // 20, 0.05) for s in range(total)],
    color=plots.COLOURS["third"],
)
left.set(
    xlabel="step", ylabel="factor of the learning rate", ylim=(0, None),
    title="Up in a line, down along a cosine",
)  # fmt: skip
for (name, curve), style, colour in zip(
    curves.items(), ("s--", "^:", "o-"), ("validation", "third", "train"), strict=True
):
    right.plot(
        [row["epoch"] for row in curve.rows],
        [row["validation_loss"] for row in curve.rows],
        style,
        color=plots.COLOURS[colour],
        markersize=3,
        label=name,
    )
right.set(
    xlabel="epoch",
    ylabel="held-out nats a code",
    title="With the schedule a high rate does no harm",
)
right.legend()
plots.show(
    fig,
    alt="Left: the factor of the learning rate rises in a line and falls along half a cosine. "
    "Right: held-out loss of three priors over the epochs: with a constant rate, with three times "
    "that rate, and with that and the schedule.",
)

# %% [markdown]
# Three times the rate costs the constant run a good deal: it is behind from the first epoch to the last. With your schedule the same rate ends a little above
# the small one. So in these few hundred steps the schedule does not reach lower; it forgives a rate that was chosen too high. (One seed. Which of its two
# halves does it, we did not test.)
#
# `clip=1.0` is the third habit of people who train transformers: if the gradient is longer than 1, it is shortened to 1. One odd batch can then do no great
# harm. `companion.fit` has both, and what else long runs want: `accumulate` (a large batch in parts), `average` (of the weights over time) and `after_epoch`
# (for early stopping, or anything of yours).
#
# And now the pictures: a class in each row, at temperature 1.

# %% tags=["hide-input", "cover"]
rows, columns = min(9, len(train.classes)), 12
labels = torch.arange(rows, device=device).repeat_interleave(columns)
with torch.no_grad():
    sampled = prior.sample(
        len(labels), label=labels, temperature=1.0,
        generator=torch.Generator(device).manual_seed(session.seed),
    )  # fmt: skip
    sheet = tokenizer.decode(sampled).clamp(0, 1)
plots.show(
    plots.image_grid(
        sheet,
        columns=columns,
        size=0.7,
        title="Pictures that nobody has drawn, a class in each row",
    ),
    alt=f"{rows} rows of twelve new pictures: " + ", ".join(train.classes[:rows]) + ".",
)

# %% [markdown]
# They are blurred, and two minutes of training do not draw a face. But three classes can be told from the rest: most flags are cloth from edge to edge,
# most smileys are discs, many people have hair and shoulders. The prior put the codes together anew. (That no picture is a copy can be checked as in [study
# 07b](07b_judging_samples.ipynb).)
#
# ## Beside JPEG, WebP and PNG
#
# Your friends will ask why you do not simply take JPEG. Let us see. The same held-out pictures through each codec, at several qualities, and bits and error on
# one plane: the **rate–distortion plane**. Further left is smaller, further down is closer to the picture.
#
# One thing has to be said first. A JPEG file begins with tables and a header of several hundred bytes, the same in every file. For a photograph that is
# nothing. For 32 × 32 pixels it is most of the file, and it would be cheap to beat. So each codec gets all pictures *tiled into one large image*, where the
# header counts once.


# %%
def coded(images: Tensor, format: str, **options) -> tuple[float, Tensor]:
    """Bits a pixel of the images as one file of this format, and what comes back from it."""
    n, channels, side, _ = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(
        n * side, side, channels
    )  # one below the other
    pixels = (255 * rows).round().byte().cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    back = torch.from_numpy(numpy.array(Image.open(file))).to(images)
    back = back.reshape(n, side, side, channels).permute(0, 3, 1, 2) / 255
    return 8 * len(file.getvalue()) / (n * side * side), back


codecs = {
    "JPEG": [{"quality": q} for q in (1, 5, 10, 20, 40, 70, 95)],
    "WebP": [{"quality": q} for q in (0, 5, 20, 50, 80, 95)],
    "PNG": [{"optimize": True}],
}
points = {
    name: [
        (rate, mse(back, x_test).item())
        for rate, back in (coded(x_test, name, **o) for o in options)
    ]
    for name, options in codecs.items()
}
coarse = drawn(held_out.codes, depth=1)
error_of_ours = mse(rebuilt, x_test).item()
shipped = companion.pretrained("emoji-vqvae").to(
    device
)  # one code a position, trained for longer
shipped_codes = [companion.tokenize(shipped, images).codes for images in (train, test)]
points["ours"] = [
    (by_depth[0].mean().item() / pixels, mse(coarse, x_test).item()),  # depth 1, histogram
    (bits_of[SCHEDULED] / pixels, error_of_ours),  # prior
    (bits.mean().item() / pixels, error_of_ours),  # histogram
    (nominal / pixels, error_of_ours),
]
points["shipped"] = [
    (
        code_length(*shipped_codes, shipped.quantizer.num_codes).mean().item() / pixels,
        mse(shipped.reconstruct(x_test), x_test).item(),
    )
]

# %% tags=["hide-input"]
fig, ax = plots.figure(7.5, 3.8)
looks = {
    "JPEG": ("o-", "validation"), "WebP": ("s--", "third"), "PNG": ("D", "reference"),
    "ours": ("^", "train"), "shipped": ("*", "train"),
}  # fmt: skip
names = {
    "ours": "ours: depth 1; all depths by prior, histogram, nominal",
    "shipped": "shipped: 64 codes, trained longer, histogram",
}
for name, (style, colour) in looks.items():
    rate, error = zip(*points[name], strict=True)
    ax.plot(
        rate, [max(e, 1e-4) for e in error], style, color=plots.COLOURS[colour],
        markersize=9 if style == "*" else 5, label=names.get(name, name),
    )  # fmt: skip
ax.set(
    xscale="log", yscale="log", xlabel="bits a pixel", ylabel="mean squared error",
    title="Further left is smaller, further down is closer (PNG: no error)",
)  # fmt: skip
ax.legend(fontsize=8)
plots.show(
    fig,
    alt="Rate and distortion on logarithmic axes. JPEG and WebP fall from left to right, PNG "
    "stands far to the right. The points of our tokenizer lie at the left, near the ends of "
    "both curves; the shipped tokenizer lies below them.",
)
for name, some_points in points.items():
    print(f"{name:<8}", "  ".join(f"{r:.2f}: {e:.4f}" for r, e in some_points))

# %% [markdown]
# Read the plane at the left. JPEG ends there: even at quality 1 it needs about a third of a bit a pixel. Our tokenizer, with the prior to count its bits, needs
# two thirds of that and is a little closer to the picture. Depth 1 alone, at 0.09 bits, is as close as JPEG there. WebP, a newer codec, does much better
# than both where it begins. The star is the shipped tokenizer of chapter 09: one of 64 codes at each of 8 × 8 positions, trained for longer. It needs fewer
# bits than WebP can go down to, and is closer.
#
# Towards the right the codecs win without a contest. They can spend as many bits as one likes, down to no error at all (PNG, 8.4 of 24). A codebook has to
# grow exponentially for that, or stacks have to get deep (chapter 06). **Learnt codes are for rates at which a picture is described, not copied**, and that
# is what a prior can learn.
#
# Note how three tables move one and the same tokenizer along its line: nominal, histogram, prior. The histogram saves almost nothing, because these codebooks
# use their codes evenly. The prior saves a fifth.
#
# Two things are not on this plane. The decoder itself has to be sent once, and it is larger than all of these pictures together. And the squared error is not
# what you see (chapter 09).
#
# ## When it looks bad: reading three broken runs
#
# Your first sheet will look worse than this one. Do not change the learning rate at random: five numbers tell most faults apart.
#
# | look at | healthy | if not |
# | --- | --- | --- |
# | codes that are chosen at all | nearly all K | *dead codes*: start from k-means, restart |
# | length of the latents over the epochs | settles | *latents running away*: commitment weight |
# | gap: distance from a latent to its code, over the length of latents | a fraction | *a codebook far from its latents*: k-means start, learning rate |
# | the prior's bits with the right class and with a wrong one | right is cheaper | *a prior that ignores its class*: labels, label dropout |
# | the prior's bits beside the histogram's | fewer | not trained, or other codes |
#
# Here are three runs that were broken on purpose, A and B on the emoji (whatever your folder holds), each trained for a few seconds:


# %%
emoji, held_out_emoji = session.data()
x_emoji, _ = held_out_emoji.batch(torch.arange(len(held_out_emoji)))


def measured(model: companion.VQVAE) -> dict[str, float]:
    """What the table asks of a tokenizer, on pictures that are held out."""
    with torch.no_grad():
        out = model.eval()(x_emoji)
    z = out.z_e.movedim(1, -1).flatten(0, -2)
    gap = (out.z_q - out.z_e).movedim(1, -1).flatten(0, -2).norm(dim=1).mean()
    return {
        "codes chosen": int((out.code_counts > 0).sum()),
        "length of latents": z.norm(dim=1).mean().item(),
        "gap": (gap / z.norm(dim=1).mean()).item(),
    }


def trained_with(quantizer: Quantizer) -> tuple[companion.VQVAE, list[dict[str, float]]]:
    """A small tokenizer trained with this quantizer, and its measurements before and after each epoch."""
    torch.manual_seed(session.seed)
    model = companion.VQVAE(
        companion.ResNetEncoder(3, 32, hidden=16),
        quantizer,
        companion.ResNetDecoder(3, 32, hidden=16),
    ).to(device)
    rows = [measured(model)]
    for epoch in range(settings.broken_epochs):
        companion.fit(
            model, emoji, epochs=1, batch_size=settings.batch_size, lr=settings.lr,
            seed=epoch, progress=False,
        )  # fmt: skip
        rows.append(measured(model))
    return model, rows


runs = {name: trained_with(quantizer_of_run(name)) for name in "AB"}

deaf = new_prior()
mixed_up = torch.randperm(len(codes), generator=torch.Generator().manual_seed(1))
companion.fit(
    deaf,
    dataclasses.replace(codes, labels=codes.labels[mixed_up.to(codes.labels.device)]),
    epochs=settings.deaf_epochs,
    batch_size=settings.batch_size,
    lr=settings.prior_lr,
    seed=session.seed,
)
wrong = (held_out.labels + 1) % len(train.classes)
with_class = {
    name: [
        prior_bits(model.eval(), held_out.codes, labels) / pixels
        for labels in (held_out.labels, wrong)
    ]
    for name, model in (("the prior above", prior), ("C", deaf))
}

# %% tags=["hide-input"]
print("the tokenizer above, of three depths:")
print("   " + ", ".join(f"{key} {value:.3g}" for key, value in measured(tokenizer).items()))
for name, (_, rows) in runs.items():
    print(f"run {name}: a tokenizer, before training and after each epoch")
    for key in rows[0]:
        values = "".join(f"{row[key]:>12,.4g}" for row in rows)
        print(f"   {key:<28}{values}")
for name, (right, other) in with_class.items():
    print(f"{'run C: a prior' if name == 'C' else name}, held-out bits a pixel")
    print(f"   with the right class        {right:>12.4f}")
    print(f"   with another class          {other:>12.4f}")

# %% [markdown]
# ### Exercise 11.4 · reading three broken runs  (medium, 10 minutes)
# Return `{"A": …, "B": …, "C": …}`, each one of `"dead codes"`, `"latents running away"`, `"a codebook far from its latents"`,
# `"a prior that ignores its class"` or `"nothing"`. Where one fault causes another, name the cause. A and B begin alike: judge by what training makes of them.
#
# <details><summary>Hint</summary>Go through the table of numbers to look at, row by row, and find for each run the row in which it is unlike the healthy one.
# Then ask what causes what.</details>


# %%
def faults() -> dict[str, str]:
    """The fault of each run."""
    ### BEGIN SOLUTION
    return {
        "A": "latents running away",
        "B": "dead codes",
        "C": "a prior that ignores its class",
    }
    ### END SOLUTION


faults = check(faults)

# %% [markdown]
# In run A the commitment weight was 0. Nothing keeps the latents near the codes (chapter 03): they grow by orders of magnitude, and the only code that is left is
# far behind. In run B the codes began at random and were never restarted: three of 64 do all the work. Run C learnt from labels in random order. A wrong class
# costs it nothing, and the prior above 0.004 bits a pixel, 4 bits a picture.
#
# `companion.diagnose` does this reading for any model and data. It measures, names what is wrong, and says what to change:


# %%
def told(diagnosis) -> None:
    """What was found, each with its numbers and the repair. (`print(diagnosis)` also shows all that was looked at.)"""
    print(f"  {len(diagnosis.looks)} things looked at, {len(diagnosis.findings)} found")
    for finding in diagnosis.findings:
        numbers = ", ".join(
            f"{name} {value:.4g}" for name, value in finding.measured.items()
        )
        print(f"  {finding.name} ({finding.where}): {numbers}")
        print(
            textwrap.fill(
                finding.repair, 100, initial_indent="    ", subsequent_indent="    "
            )
        )


print("the tokenizer and the prior above")
told(companion.diagnose(tokenizer, test, prior=prior))

# %%
for name, (model, _) in runs.items():
    print("run", name)
    told(companion.diagnose(model, held_out_emoji))
print("run C")
told(companion.diagnose(tokenizer, test, prior=deaf))

# %% [markdown]
# And if nothing is wrong, and it still looks bad? Then in this order, one change at a time, looking at the sheet after each: more steps; more positions or
# depths (the plane above says what they buy); a wider network; a perceptual loss (chapter 09); for the prior more dropout if the held-out loss rises again,
# more width if it does not; at last the temperature. And more pictures: with a few hundred, a prior soon knows them by heart.
#
# ## What it costs
#
# Your pictures may be larger. What grows with what? One step of each network, for sides of 32, 64 and 128 pixels; the tokenizer always shrinks each side to an
# eighth:


# %%
def seconds_of(step: Callable[[], object]) -> float:
    """The shortest of three times."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


costs = []
for side in settings.sides:
    x = torch.rand(8, 3, side, side, device=device)
    stacks = torch.randint(0, 64, (8, side // 8, side // 8, 3), device=device)
    larger = new_tokenizer()
    longer = companion.RQTransformer(64, stacks.shape[1:], dim=settings.dim).to(device)
    costs.append(
        (
            seconds_of(lambda larger=larger, x=x: larger(x).loss.backward()),
            seconds_of(lambda longer=longer, stacks=stacks: longer.loss(stacks).backward()),
        )
    )

# %% tags=["hide-input"]
first = costs[0]
print(" side  positions   tokenizer's step   prior's step   entries of one attention table")
for side, (of_tokenizer, of_prior) in zip(settings.sides, costs, strict=True):
    positions = (side // 8) ** 2
    print(
        f"{side:>5}{positions:>11,}{of_tokenizer / first[0]:>17.1f} ×{of_prior / first[1]:>13.1f} ×"
        f"{positions**2:>24,}"
    )

# %% [markdown]
# With four times as many pixels the tokenizer's step takes two to four times as long: its work grows with the pixels. The prior's takes three to four times
# as long, so it too still grows with the positions; but the attention table grows sixteenfold, and in the end it rules. That is why large pictures are given
# *more pixels a code* (a factor of 16 at 256 × 256 is usual), not more positions. (Times are those of one machine.)
#
# On paper, what would ImageNet take? It has 1.28 million pictures. At 256 × 256 with a factor of 16 there are 256 positions. A transformer needs about 6
# floating-point operations a weight and token (forward and backward; Kaplan et al. 2020). A prior of 100 million weights that sees each picture a hundred
# times:

# %% tags=["nbval-check-output"]
tokens = 1_281_167 * 256 * 100
operations = 6 * 100e6 * tokens
print(f"{tokens:.1e} tokens, {operations:.1e} operations")
print(f"at 10^14 a second (a GPU, well used): {operations / 1e14 / 3600:.0f} hours")
print(f"at 10^11 a second (two cores): {operations / 1e11 / 3600 / 24 / 365:.0f} years")

# %% [markdown]
# So begin small: 32 × 32, a few hundred pictures, minutes. What you learn about *your* pictures there, mostly holds when you rent the GPU.
#
# ## One command each
#
# All of this is also on the command line, for when the notebook has done its work:
#
# ```
# python -m companion train-tokenizer my-pictures
# python -m companion tokenize my-pictures
# python -m companion train-prior
# python -m companion sample
# ```
#
# Each writes a folder under `runs/`, with sheets of pictures and the settings from which it can be run again, and goes on where it was killed. `reconstruct`,
# `evaluate` and `diagnose` are there, too, and each says with `--help` what it can do.
#
# ## Proof: what you built is what the companion has

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
old, new = (torch.rand(n, 4, 4).square().mul(16).long() for n in (30, 5))
lengths = code_length(old, new, 16)
counts = torch.bincount(old.flatten(), minlength=16).double() + 1
table = torch.distributions.Categorical(probs=counts)
torch.testing.assert_close(
    lengths, -(table.log_prob(new) / math.log(2)).sum((1, 2)).float()
)
glue("proof.code_length", lengths.tolist(), display=False)
print("code lengths are those of torch.distributions:", True)

theirs = companion.training.WarmupCosine(warmup=10, floor=0.05)
factors = [learning_rate_factor(s, 100, 10, 0.05) for s in range(100)]
torch.testing.assert_close(factors, [theirs(s, 100) for s in range(100)])
glue("proof.learning_rate_factor", factors[::9], display=False)
print("the schedule is the companion's WarmupCosine:", True)

path = Path(tempfile.mkdtemp()) / "model.safetensors"
companion.save(torch.nn.Linear(2, 2), path)
damaged = bytearray(path.read_bytes())
damaged[-1] ^= 1
path.write_bytes(damaged)
try:
    companion.load(path, model=torch.nn.Linear(2, 2))
except ValueError:
    print("the companion refuses a file with one bit turned over, too:", True)

# %% [markdown]
# ## Play: the same picture at the same price
#
# Choose a picture, a quality of JPEG, and how many depths of ours. Below each stands what it costs and how far it is off. At which quality does JPEG look as
# good to you as ours? What does it cost there?

# %%
explorers.codec_beside_codes(tokenizer, x_test[some])

# %% [markdown]
# For readers of the printed page: one setting.

# %% tags=["hide-input"]
plots.show(
    explorers.draw_codec_beside_codes(tokenizer, x_test[some], quality=5),
    alt="Six pictures, what JPEG makes of them at quality 5, and our tokenizer at one to three "
    "depths: JPEG in blocks and false colours, ours soft.",
)

# %% [markdown]
# ## What breaks, and why
#
# **A tokenizer knows only what it was trained on.** Give ours something else, and it draws with the palette it has:

# %%
digits = companion.data.load("glyphs", "test", size=12).batch(torch.arange(12), device)[0]
strange = torch.nn.functional.pad(digits, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
with torch.no_grad():
    redrawn = tokenizer(strange).reconstruction.clamp(0, 1)
strange_codes = tokenizer.encode(strange)
there = sum(
    code_length(codes.codes[..., r], strange_codes[..., r], 64).mean() for r in range(3)
)
print(f"MSE {mse(redrawn, strange):.4f}, on its own kind {mse(rebuilt, x_test):.4f}")
print(f"bits a pixel {there / pixels:.3f}, on its own kind {bits.mean() / pixels:.3f}")

# %% tags=["hide-input"]
plots.show(
    plots.image_rows(
        {"digits": strange, "rebuilt": redrawn},
        size=0.7,
        title="White digits on black, through a tokenizer of emoji",
    ),
    alt="Twelve white digits on black, and what the tokenizer of emoji makes of them.",
)

# %% [markdown]
# The error is several times that of its own kind, and the digits come back in blotches. They cost more bits, too: their codes are rare among the emoji. Both
# are signs to look for: `diagnose` compares how often codes are used here and in training, and calls such pictures "unlike the training images".
#
# **A rate that was counted on the picture itself.** It looks better than it is, and the fewer pictures, the more:

# %%
for n in (1, 10, 100):
    few = held_out.codes[:n, ..., 0]
    own = companion.metrics.bits_per_image(few, 64)["entropy"] / pixels
    honest = code_length(codes.codes[..., 0], few, 64).mean() / pixels
    print(
        f"{n:>3} pictures: counted on themselves {own:.3f}, on others {honest:.3f} bits a pixel"
    )

# %% [markdown]
# **A schedule that begins again.** If it keeps a counter that is not saved, a resumed run warms up again and then runs at the full rate, late in training.
# Yours is a function of the step, and cannot. (`fit` refuses a scheduler that is hung on the optimizer, and says why.)
#
# ## Pen and paper
#
# 1. A table of probabilities $q$ is used for codes that come with probabilities $p$. Show that a code costs $H(p) + \mathrm{KL}(p \,\|\, q)$ bits on
#    average. What does that say about the digits above?
# 2. Decoder and codebooks have about 142,000 numbers of 32 bits, which the receiver needs too. From how many pictures on does our tokenizer (0.28 bits a pixel)
#    take fewer bits than PNG (8.4), all in all?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. $-\sum_k p_k \log_2 q_k = -\sum_k p_k \log_2 p_k + \sum_k p_k \log_2 (p_k / q_k)$. The digits use other codes than the emoji: the second term is
#    their price.
# 2. Each picture saves $1024 \cdot 8.1 \approx 8{,}300$ bits, and the numbers take $4.5 \cdot 10^6$: from about 550 pictures on. (And PNG is exact, ours is
#    not.)
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
#
# * From a folder to new pictures: tokenizer, codes, prior, samples, each saved and checked before the next.
# * A rate needs a table that was made without the picture. The histogram gives one, the prior a better one.
# * At very low rates, on its own kind of pictures, a learnt tokenizer is closer to the picture than JPEG. It pays for that with its weights, and with
#   knowing nothing else.
# * A checkpoint is written beside the old one and renamed, and carries a checksum.
# * A schedule that depends on the step alone survives a kill.
# * Read five numbers before you change anything: codes in use, length of latents, distance to the codes, bits by class, bits beside the histogram.
#
# ## Further experiments
#
# 1. Put your own folder in, and read `companion.diagnose` before the sheet.
# 2. `companion.EMAVectorQuantizer(…, decay=0.99, restart_below=0.02)`: how many epochs until depth 1 uses its codes?
# 3. One depth, or latents of 8 × 8: where do they lie on the plane, and what becomes of the sheet?
# 4. The perceptual loss of chapter 09 in this tokenizer. What happens to the error, and to the sheet?
#
# ## References
#
# * Shannon 1948, *A mathematical theory of communication*: code lengths and entropy.
# * Wallace 1991, *The JPEG still picture compression standard*.
# * Goyal et al. 2017, *Accurate, large minibatch SGD*, section 2.2: warm-up.
# * Loshchilov and Hutter 2017, *SGDR: stochastic gradient descent with warm restarts*, equation 5: the cosine.
# * Kaplan et al. 2020, *Scaling laws for neural language models*, section 2.1: six operations a weight and token.
# * Lee et al. 2022, *Autoregressive image generation using residual quantization*.

# %% [markdown]
# # 09 · Sharper pictures
#
# **The question.** Every VQ-VAE so far draws soft pictures. Its squared error is small, and yet you see at once which picture is the copy. What does the
# error miss, and how do we train on what we see? You build two losses that look at more than single pixels, and end with this comparison:
#
# ![Four rows of nine emoji: the originals, and what three tokenizers make of them. With the squared error alone they are soft; with a perceptual loss edges
# come back; with a discriminator besides they are crisper in places.](../chapters/pictures/09_sharper_pictures.png)
#
# **Afterwards you can** say why the squared error prefers blur; measure distance in the features of a network; train a discriminator and a tokenizer against
# each other; and tell which numbers get worse when pictures look better.
#
# **Needed:** [chapter 03](03_vector_quantisation.ipynb) (the routing table) and [chapter 05](05_ema_codebooks.ipynb) (EMA codebooks). A trained VQ-VAE is
# called a **tokenizer** ([glossary](../chapters/glossary.md)).
# **Time:** about two hours of yours, and an hour and a quarter more for all five exercises (estimates); the computer's is in the table below.

# %%
import copy
from collections.abc import Callable

import torch
from myst_nb import glue
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion import plots
from companion.classifier import load_classifier, recognise
from companion.course import begin, check, explorers
from companion.course.results import measured_claims, results
from companion.data import emoji
from companion.metrics import frechet_distance, mse, sharpness, ssim

session = begin("09_sharper_pictures")
settings, device = session.settings, session.device
train, test = session.data()

# %% [markdown]
# ## In colour
#
# The course leaves digits. Its new pictures are **emoji**: 2,752 of them, 32 × 32 pixels in three channels, drawn by one hand ([Noto Color
# Emoji](https://github.com/googlefonts/noto-emoji)). They have what digits lack: colour, and flat areas beside fine lines. An image is now a tensor
# `(3, 32, 32)`. Nothing else in our code has to change.

# %% tags=["hide-input"]
x_test, _ = test.batch(torch.arange(len(test)))
some = torch.linspace(0, len(test) - 1, 24).long()
plots.show(
    plots.image_grid(
        x_test[some], columns=12, title="Pictures that no model here has seen"
    ),
    alt="Two lines of twelve small colour pictures on white: faces, hands, animals, food, "
    "buildings, objects, symbols and flags.",
)

# %% [markdown]
# ## Predict
#
# Below you see one fox spoilt in eight ways: blurred, noisy, darker, paler, moved by less than a pixel, striped, tinted, and in blocks. Each is spoilt just
# so far that its **mean squared error is the same**. Before you look:
#
# 1. Which of the eight will look worst to you?
# 2. Which one would a loss that compares *edges and textures* call worst, and which one best?
#
# ## Equal error, unequal pictures
#
# A function for each way to spoil a picture, with a strength between 0 and 1:


# %%
def blurred(x: Tensor, strength: float) -> Tensor:
    """Each pixel a weighted mean of its surroundings, the weights a bell of up to four pixels' width."""
    offsets = torch.arange(-9.0, 10.0)
    bell = torch.exp(-offsets.square() / (2 * (4 * strength + 1e-3) ** 2))
    bell = (bell / bell.sum()).to(x).expand(x.shape[1], 1, 1, -1)  # (3, 1, 1, 19)
    for pad, kernel in (((9, 9, 0, 0), bell), ((0, 0, 9, 9), bell.transpose(2, 3))):
        x = functional.conv2d(
            functional.pad(x, pad, mode="replicate"), kernel, groups=x.shape[1]
        )
    return x


def moved(x: Tensor, strength: float) -> Tensor:
    """To the right, by a part of a pixel."""
    beside = functional.pad(x, (1, 0, 0, 0), mode="replicate")[..., :-1]
    return (1 - strength) * x + strength * beside


def blocks(x: Tensor, strength: float) -> Tensor:
    """Mixed with its mean in blocks of 8 × 8."""
    coarse = functional.interpolate(functional.avg_pool2d(x, 8), scale_factor=8)
    return (1 - strength) * x + strength * coarse


noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
stripes = (torch.arange(32, device=device) % 2) * 2.0 - 1  # one column up, the next down
reddish = torch.tensor([1.0, -0.5, -0.5], device=device)[:, None, None]
spoil = {
    "blurred": blurred,
    "noisy": lambda x, s: x + s * noise,
    "darker": lambda x, s: (1 - s) * x,
    "paler": lambda x, s: x + s * (1 - x),
    "moved": moved,
    "striped": lambda x, s: x + s * stripes,
    "tinted": lambda x, s: x + s * reddish,
    "blocks": blocks,
}

# %% [markdown]
# The error grows with the strength. So we find the strength for an error of 0.01 by halving an interval. (Values outside [0, 1] are cut off in the drawing,
# not in the error.)


# %%
def spoilt_to(x: Tensor, how: Callable[[Tensor, float], Tensor], error: float) -> Tensor:
    """x spoilt so far that its mean squared error is ``error``."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if mse(how(x, middle), x) < error:
            low = middle
        else:
            high = middle
    return how(x, low)


split, i = emoji.find("fox")
fox = companion.data.load("emoji", split).batch(torch.tensor([i]), device)[0]
foxes = {name: spoilt_to(fox, how, 0.01) for name, how in spoil.items()}

# %% tags=["hide-input"]
fig, axes = plots.figure(8, 4.1, rows=2, columns=5)
for ax in axes.flat:
    ax.set_axis_off()
for ax, (name, picture) in zip(axes.flat, {"original": fox, **foxes}.items(), strict=False):
    plots.draw_image(ax, picture[0].clamp(0, 1))
    ax.set_title(f"{name}\nMSE {mse(picture, fox):.3f}")
fig.suptitle("Eight spoilt copies, all with the same squared error")
plots.show(
    fig,
    alt="A fox and eight spoilt copies, all with a mean squared error of 0.010. The blurred "
    "one has lost the lines of the face and the blocky one is patchy; in the darker, paler "
    "and moved ones nothing is missing.",
)

# %% [markdown]
# To the squared error these eight are the same. To you they are not. In the darker one nothing is lost. In the blurred one every line is gone.
#
# The squared error compares each pixel with the pixel at the same position, and no pixel with its neighbour. Edges, lines and textures are relations
# *between* pixels. They do not appear in it.
#
# ## The average of all pictures
#
# That would not matter if our model could be exact. It cannot: 64 positions with 64 codes are 384 bits, and a picture has 24,576. Much of each picture is
# *not in the codes*. What should a decoder draw where it does not know?
#
# Say it knows that there are stripes, but not where they begin. We draw a thousand such pictures, and try three answers to all of them: some striped
# picture, white, and their average.

# %%
column = torch.arange(32.0)
phase = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
texture = 0.5 + 0.5 * torch.sin(2 * torch.pi * (column / 8 + phase))  # (1000, 32)
texture = texture[:, None, None].expand(-1, 1, 32, -1)  # (1000, 1, 32, 32)
answers = {
    "one of them": texture[:1],
    "white": torch.ones(1, 1, 32, 32),
    "their average": texture.mean(0, keepdim=True),
}
errors = {name: mse(answer.expand_as(texture), texture) for name, answer in answers.items()}
for name, error in errors.items():
    print(f"{name:<14} MSE {error:.3f}")

# %% tags=["hide-input"]
fig, axes = plots.figure(6, 4.6, rows=2, columns=3)
for ax, picture in zip(axes[0], texture[1:4], strict=True):
    plots.draw_image(ax, picture)
    ax.set_title("a picture")
for ax, (name, answer) in zip(axes[1], answers.items(), strict=True):
    plots.draw_image(ax, answer[0])
    ax.add_patch(plots.rectangle((-0.5, -0.5), 32, 32, fill=False, edgecolor="#AAAAAA"))
    ax.set_title(f"{name}:\nMSE {errors[name]:.3f}")
fig.suptitle("The answer with the smallest error has no stripes")
plots.show(
    fig,
    alt="Three pictures of vertical stripes at different positions; below them three answers: one "
    "striped picture, white, and plain grey, which is the average and has the smallest "
    "error.",
)

# %% [markdown]
# The average wins, and it is plain grey: a picture without stripes. The striped answer has twice its error. This is no accident. For any answer $c$,
#
# $$\mathbb{E}\,\|x - c\|^2 = \underbrace{\mathbb{E}\,\|x - \bar x\|^2}_{\text{the same for every answer}} + \|c - \bar x\|^2, \qquad \bar x = \mathbb{E}[x],$$
#
# so the best answer is $\bar x$, **the average of everything that the picture could be, given the codes**. And averaging is what blur is.
#
# Does our tokenizer blur? Here is one with 64 codes, trained on the squared error alone. We measure fine detail by the **sharpness**: the variance of the
# Laplacian (each pixel against its four neighbours), as a share of the originals'.

# %%
started_from = copy.deepcopy(companion.pretrained("emoji-vqvae")).to(device).eval()
with torch.no_grad():
    soft = started_from(x_test).reconstruction.clamp(0, 1)
print(f"MSE {mse(soft, x_test):.4f}")
print(f"sharpness {sharpness(soft) / sharpness(x_test):.2f} of the originals'")

# %% tags=["hide-input"]
plots.show(
    plots.image_rows(
        {"originals": x_test[some[::3]], "MSE alone": soft[some[::3]]},
        size=1,
        title="Shapes and colours come back, fine lines do not",
    ),
    alt="Eight emoji, and below them what the tokenizer makes of them: the same shapes and "
    "colours, without fine lines.",
)

# %% [markdown]
# By this measure, about a fifth of the detail is left.
#
# ## Distance in features
#
# So let us compare something else than pixels. Each layer of a convolutional network answers questions about a neighbourhood: is there an edge? A corner?
# Fine lines? Its answers at one position are a vector of **features**. Pictures that look alike get similar answers, even where their pixels differ a
# little.
#
# We need a network that has learnt to look at pictures. Published work takes VGG16, trained on a million photographs. We take a small classifier that tells
# the nine groups of emoji apart. It has five blocks, and we read what comes out of each: five **taps**.

# %%
eyes = load_classifier("emoji").to(device).eval().requires_grad_(False)


def features(x: Tensor) -> list[Tensor]:
    """x: (B, 3, 32, 32) -> what each block gives, five tensors (B, C_l, h_l, w_l)."""
    taps = []
    for block in eyes.layers:
        x = block(x)
        taps.append(x)
    return taps


for f in features(fox):
    print(tuple(f.shape))

# %% tags=["hide-input"]
second = features(fox)[1][0]  # of the second block: (48, 16, 16)
strongest = second.amax((1, 2)).topk(2).indices
fig, axes = plots.figure(6, 4.4, rows=2, columns=3)
for three, name, picture in zip(
    axes, ("sharp", "blurred"), (fox, foxes["blurred"]), strict=True
):
    plots.draw_image(three[0], picture[0].clamp(0, 1))
    three[0].set_title(name)
    for ax, channel in zip(three[1:], strongest.tolist(), strict=True):
        ax.imshow(
            features(picture)[1][0, channel].cpu(),
            cmap="gray",
            vmin=0,
            vmax=float(second[channel].max()),
        )
        ax.set_title(f"channel {channel}")
        ax.set_axis_off()
fig.suptitle("Two maps of block 2 (white: strong): blur dims them")
plots.show(
    fig,
    alt="The fox with two feature maps of the second block, in which parts of its outline and "
    "its eyes stand out, and the blurred fox with the same two maps, in which they are faint.",
)

# %% [markdown]
# These maps light up at some of the fox's edges, and less where it is blurred. (The column at the right is the edge of the picture itself.) So a distance
# between such maps sees blur. Used in training it is called a **perceptual loss**.
#
# Three choices make it a good distance (Zhang et al. 2018, equation 1, who call it LPIPS):
#
# * **Normalise.** Some layers have large numbers and some small ones. At each position we divide the feature vector by its length over the channels. Then
#   only its direction counts, and every layer has a say.
# * **Square and sum over channels**, as for any distance of two vectors.
# * **Average over positions, then sum over the taps.**
#
# $$d(\hat x, x) = \sum_l \frac{1}{h_l w_l} \sum_{i,j} \bigl\| \hat f^{\,l}_{ij} - f^{\,l}_{ij} \bigr\|^2, \qquad f^{\,l}_{ij} \text{ of length } 1 .$$
#
# One trap hides in the length: $\sqrt{u}$ has an infinite slope at 0. Where all features are 0, as a ReLU can make them, the gradient would be NaN, and one
# NaN ruins a training. So we take as the length $\sqrt{\|f\|^2 + \varepsilon^2}$.
#
# ### Exercise 9.1 · feature distance  (medium, 15 minutes)
# From two lists of features, one tensor `(B, C_l, h_l, w_l)` for each tap, compute the distance $d$ of each image, `(B,)`.
#
# <details><summary>Hint 1</summary>The length over channels, with the axis kept: <code>f.square().sum(1, keepdim=True)</code>, then the root.</details>
# <details><summary>Hint 2</summary>After squaring the differences, sum over axis 1, and average over the two axes of positions. The axis of images
# stays.</details>


# %%
def feature_distance(
    features_hat: list[Tensor], features: list[Tensor], epsilon: float = 1e-4
) -> Tensor:
    """Two lists of (B, C_l, h_l, w_l), one tensor for each tap -> (B,)."""
    ### BEGIN SOLUTION
    total = torch.zeros(len(features[0])).to(features[0])
    for f_hat, f in zip(features_hat, features, strict=True):
        f_hat, f = (
            v / (v.square().sum(1, keepdim=True) + epsilon**2).sqrt() for v in (f_hat, f)
        )
        total = total + (f_hat - f).square().sum(1).mean((1, 2))  # (B, h, w) -> (B,)
    return total
    ### END SOLUTION


feature_distance = check(feature_distance)

# %% [markdown]
# Now ask it about the eight foxes.

# %%
told = {
    name: feature_distance(features(picture), features(fox)).item()
    for name, picture in foxes.items()
}
for name in sorted(told, key=lambda name: told[name]):
    print(f"{name:<9} MSE {mse(foxes[name], fox):.3f}   feature distance {told[name]:.2f}")

# %% [markdown]
# Compare with your guess. A shift that you can hardly see is among the smallest; blur and blocks are among the largest. Here the network agrees with us.
#
# Elsewhere it does not. The stripes cost *less* than noise, and much less than blur, though they are among the ugliest. And a light tint costs most. A
# feature distance is the taste of one network. (We did not test why this one has this taste.)
#
# ## What a discriminator sees
#
# Somebody has to choose the features. Why not train a network to find them? Its only task is to tell our reconstructions from originals, so it learns
# whatever gives us away. That is a **discriminator**. The tokenizer then gets a loss for being found out, an **adversarial** loss. The two networks together
# are a **GAN**, a generative adversarial network (Goodfellow et al. 2014).
#
# Whether a picture is sharp shows in every part of it. So the discriminator gives one number, a logit, for each **patch** (Isola et al. 2017, "PatchGAN").
# That makes it a plain stack of convolutions:


# %%
def new_discriminator(width: int = settings.width) -> nn.Sequential:
    """(B, 3, 32, 32) -> a logit for each patch, (B, 1, 14, 14): large for "real"."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=2, padding=1),  # (B, width, 16, 16)
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, padding=1),  # (B, 2·width, 15, 15)
        nn.GroupNorm(8, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4, padding=1),  # (B, 1, 14, 14)
    )


torch.manual_seed(session.seed)
discriminator = new_discriminator().to(device)
print(tuple(discriminator(x_test[:5]).shape))

# %% [markdown]
# Each logit judges 16 × 16 pixels, and its neighbour looks 2 pixels further.
#
# <details><summary>Why 16?</summary>Count back from the last layer. One output of a convolution with kernel 4 and stride 1 sees 4 inputs. One layer earlier
# these see 7. Through the stride of 2, those see (7 − 1) · 2 + 4 = 16 pixels. (Through the means of <code>GroupNorm</code> a logit knows a little of the
# rest of the picture, too.)</details>
#
# What should it minimise? Originals are to get large logits, reconstructions small ones. The **hinge loss** asks for more than 1 and less than −1, and then
# is content:
#
# $$L_D = \mathbb{E}\bigl[\max(0,\, 1 - D(x))\bigr] + \mathbb{E}\bigl[\max(0,\, 1 + D(\hat x))\bigr].$$
#
# A patch that is right by this margin has gradient 0. The discriminator learns from the others only. The tokenizer, in the role of the **generator**, wants
# its reconstructions to be taken for originals:
#
# $$L_G = -\,\mathbb{E}\bigl[D(\hat x)\bigr].$$
#
# ### Exercise 9.2 · hinge losses  (easy, 10 minutes)
# From the logits of originals and of reconstructions, of any shapes, compute $L_D$ and $L_G$.
#
# <details><summary>Hint</summary><code>(1 - real).relu()</code> is the maximum of 0 and 1 − D(x).</details>


# %%
def hinge_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of originals and of reconstructions -> (for the discriminator, for the generator), 0-dim."""
    ### BEGIN SOLUTION
    return (1 - real).relu().mean() + (1 + fake).relu().mean(), -fake.mean()
    ### END SOLUTION


hinge_losses = check(hinge_losses)

# %% [markdown]
# Train the discriminator alone for a moment, against the soft pictures of the tokenizer, which holds still:

# %%
with torch.no_grad():
    x_train, _ = train.batch(torch.arange(min(1000, len(train))))
    soft_train = torch.cat(
        [started_from(part).reconstruction for part in x_train.split(250)]
    )
optimizer = torch.optim.Adam(
    discriminator.parameters(), lr=settings.judge_lr, betas=(0.5, 0.9)
)
for _ in range(settings.look_steps):
    rows = torch.randint(len(x_train), (settings.batch_size,))
    loss, _ = hinge_losses(discriminator(x_train[rows]), discriminator(soft_train[rows]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    real, fake = discriminator(x_test), discriminator(soft)
told_apart = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
print(f"after {settings.look_steps} steps: loss {loss:.2f} (2 at the start), ", end="")
print(f"{told_apart:.0%} of the patches of unseen pictures judged right (chance: 50%)")

# %% [markdown]
# It soon does better than chance. But *what* does it see? Its logits are a coarse map, 14 × 14. To lay it over the picture, we give each pixel the mean
# logit of all patches that it is in. Logit $(i, j)$ sees the rows $2i - 5$ to $2i + 10$ and such columns. (The −5 is that of the three paddings, 1 + 2 + 2
# pixels.) What lies outside is cut off.
#
# ### Exercise 9.3 · patch map  (hard, 20 minutes)
# From logits `(B, 1, h, w)`, compute the mean for each pixel, `(B, 1, H, W)`. Logit $(i, j)$ sees the rows `i·stride + offset` to
# `i·stride + offset + patch − 1`, and such columns. A pixel that no patch sees gets 0. No loop over pixels.
#
# <details><summary>Hint 1</summary><code>functional.conv_transpose2d(logits, ones, stride=stride)</code> with <code>ones</code> of shape (1, 1, patch,
# patch) lays each logit onto its patch and adds up where patches overlap.</details>
# <details><summary>Hint 2</summary>The same of logits that are all 1 counts the patches at each pixel.</details>
# <details><summary>Hint 3</summary>Row 0 of the result is row <code>offset</code> of the picture: with offset −5 the picture begins at row 5. Where the
# result ends too early, <code>functional.pad</code> adds zeros.</details>


# %%
def patch_map(
    logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int
) -> Tensor:
    """logits: (B, 1, h, w) -> the mean logit of the patches that see each pixel, (B, 1, *size)."""
    ### BEGIN SOLUTION
    ones = torch.ones(1, 1, patch, patch).to(logits)
    total, count = (
        functional.conv_transpose2d(values, ones, stride=stride)
        for values in (logits, torch.ones_like(logits))
    )
    height, width = size
    bottom, right = (
        max(0, length - offset - reached)
        for length, reached in zip(size, total.shape[2:], strict=True)
    )
    total, count = (
        functional.pad(v, (0, right, 0, bottom))[
            ..., -offset : height - offset, -offset : width - offset
        ]
        for v in (total, count)
    )
    return total / count.clamp(min=1)
    ### END SOLUTION


patch_map = check(patch_map)

# %% tags=["hide-input"]
looked_at = some[[0, 4, 9, 13, 16, 23]]
with torch.no_grad():
    maps = {
        name: patch_map(discriminator(pictures[looked_at]), (32, 32), 16, 2, -5)
        for name, pictures in (("original", x_test), ("copy", soft))
    }
fig, axes = plots.figure(9, 3.5, rows=2, columns=6)
for line, (name, pictures) in zip(
    axes, (("original", x_test), ("copy", soft)), strict=True
):
    for ax, picture, seen in zip(line, pictures[looked_at], maps[name], strict=True):
        plots.draw_image(ax, picture.mean(0, keepdim=True))
        ax.imshow(seen[0].cpu(), cmap="PuOr", vmin=-1.5, vmax=1.5, alpha=0.6)
    line[0].text(
        -0.1, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=12
    )
fig.suptitle("What the discriminator takes for an original (violet) or a copy (orange)")
plots.show(
    fig,
    alt="Six pictures in grey with the discriminator's map over them, originals above copies: "
    "most originals are more violet than their copies, which are orange or pale; a flag "
    "is violet in both.",
)

# %% [markdown]
# Compare each copy with the original above it: copies are more orange. The discriminator also errs. The original in the third column is taken for a copy,
# and the flag's copy still passes. (We did not test what it goes by.)
#
# ## Two networks, one step
#
# Now both learn at once. Each must learn from its *own* loss only. If $L_G$ moved the discriminator, it would learn to please the tokenizer. If $L_D$ moved
# the tokenizer, it would learn to be found out.

# %% tags=["hide-input"]
learning, constant = plots.COLOURS["third"], "#777777"
fig, axes = plots.figure(7.5, 3.8, rows=2)
for ax, loss, learner, judged_by in (
    (axes[0], "$L_G$", "tokenizer", r"$\hat x$"),
    (axes[1], "$L_D$", "discriminator", r"$\hat x$ and $x$"),
):
    names = ["$x$", "tokenizer", judged_by, "discriminator", loss]
    half = [0.15, 0.35, 0.3, 0.45, 0.15]  # of the width of each box, with a little air
    for place, name in enumerate(names):
        learns = name == learner
        style = {"ec": learning if learns else constant, "fc": "white", "lw": 2}
        if place in (1, 3):
            ax.text(place, 0.42, "learns" if learns else "constant", ha="center")
            style["ls"] = "-" if learns else ":"
        box = {"boxstyle": "round,pad=0.4", **style}
        ax.text(place, 0, name, ha="center", va="center", fontsize=11, bbox=box)
        if place < 4:
            ends = (place + 1 - half[place + 1], 0), (place + half[place], 0)
            ax.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": constant})
    back = {"arrowstyle": "-|>", "color": learning, "lw": 2.5}
    back["connectionstyle"] = "arc3,rad=-0.25"
    ax.annotate("", (names.index(learner), -0.35), (4, -0.35), arrowprops=back)
    ax.set(xlim=(-0.5, 4.5), ylim=(-1.1, 0.8))
    ax.set_axis_off()
    ax.set_title(f"The gradient of {loss} (green) moves the {learner} alone")
plots.show(
    fig,
    alt="The same row twice: x, tokenizer, reconstruction, discriminator, loss. Above, the "
    "gradient of L_G runs back through the discriminator, which is constant, to the tokenizer; "
    "below, that of L_D ends at the discriminator, and the tokenizer is constant.",
)

# %% [markdown]
# Who gets gradient from what? That is the question of chapter 03's routing table, and the tools are the same:
#
# * In $L_D$, $\hat x$ is a constant: `x_hat.detach()`.
# * In $L_G$, the *discriminator's weights* are constants, but gradients must still pass through it to $\hat x$. Detaching its output would cut both.
#
# For the second, torch can run a module with other weights than its own: `torch.func.functional_call(module, weights, (x,))`, with `weights` a dict by name.
# Give it the module's own, detached.
#
# ### Exercise 9.4 · who learns from what  (medium, 15 minutes)
# From a batch and its reconstructions, compute $L_G$ and $L_D$, in this order (your `hinge_losses` gives them in the other). Route them so that
# `(a + b).backward()` gives each network the gradient of its own loss. The discriminator is afterwards as it was.
#
# <details><summary>Hint 1</summary><code>{name: p.detach() for name, p in discriminator.named_parameters()}</code></details>
# <details><summary>Hint 2</summary>The discriminator runs three times: on x, on the detached x̂, and with constant weights on x̂.</details>


# %%
def routed_losses(
    x: Tensor, x_hat: Tensor, discriminator: nn.Module
) -> tuple[Tensor, Tensor]:
    """Originals and reconstructions (B, C, H, W) -> (L_G, with a gradient to x_hat; L_D, to the weights)."""
    ### BEGIN SOLUTION
    constants = {name: p.detach() for name, p in discriminator.named_parameters()}
    logits = torch.func.functional_call(discriminator, constants, (x_hat,))
    of_generator = hinge_losses(logits, logits)[1]
    real, fake = discriminator(x.detach()), discriminator(x_hat.detach())
    return of_generator, hinge_losses(real, fake)[0]
    ### END SOLUTION


routed_losses = check(routed_losses)

# %% [markdown]
# Here is the routing table, with a fourth column. We take a codebook that learns by gradient (chapter 03), so that there is a codebook loss to show. The
# numbers are gradient norms.

# %%
torch.manual_seed(session.seed)
small = companion.VQVAE(
    companion.ResNetEncoder(3, 4, hidden=16),
    companion.VectorQuantizer(16, 4),
    companion.ResNetDecoder(3, 4, hidden=16),
).to(device)
x = x_test[:16]
out = small(x)
of_generator, of_discriminator = routed_losses(x, out.reconstruction, discriminator)
perceptual = feature_distance(features(out.reconstruction), features(x)).mean()
losses = {
    "reconstruction": out.losses["reconstruction"],
    "perceptual": perceptual,
    "codebook": out.losses["codebook"],
    "commitment": out.losses["commitment"],
    "generator L_G": of_generator,
    "discriminator L_D": of_discriminator,
}
parts = {
    "encoder": small.encoder,
    "codebook": small.quantizer,
    "decoder": small.decoder,
    "discriminator": discriminator,
}
routes = {}
print(f"{'':<20}" + "".join(f"{part:>15}" for part in parts))
for name, loss in losses.items():
    line = []
    for part in parts.values():
        found = torch.autograd.grad(
            loss, list(part.parameters()), retain_graph=True, allow_unused=True
        )
        line.append(sum(float(g.square().sum()) for g in found if g is not None) ** 0.5)
    routes[name] = [norm > 0 for norm in line]
    print(f"{name:<20}" + "".join(f"{norm:>15.2g}" for norm in line))

# %% tags=["hide-input", "nbval-check-output"]
for name, reached in routes.items():
    print(
        f"{name:<18} moves", ", ".join(p for p, r in zip(parts, reached, strict=True) if r)
    )

# %% [markdown]
# No loss of the tokenizer moves the discriminator, and $L_D$ moves nothing else. So *one* backward of the sum is enough.
#
# <details><summary>Published code often makes two steps by turns. Is that another training?</summary>The tokenizer steps first, then the discriminator, on
# the same reconstructions. Both gradients are then taken at the same weights, and the result is the same. The proof below shows it.</details>
#
# ## How loud may the discriminator be?
#
# The total is $L_{\text{rec}} + \lambda\, L_G$, where $L_{\text{rec}}$ is all that the tokenizer had before. Which λ? Logits have no unit. A discriminator
# can double all its logits and judge as before, and $L_G$ would pull twice as hard. So Esser et al. (2021, equation 7) let λ adapt. Both losses are to pull
# equally hard at $W$, the weight of the decoder's *last layer*:
#
# $$\lambda = \frac{\|\nabla_{\!W} L_{\text{rec}}\|}{\|\nabla_{\!W} L_G\| + \varepsilon} .$$
#
# λ is a number: no gradient flows through it. It is cut off at a largest value, as the denominator can be tiny at the start. (In training we multiply by a
# fixed `adversarial_weight` = 0.4: the discriminator then pulls 0.4 times as hard as the rest.)
#
# ### Exercise 9.5 · adaptive weight  (medium, 15 minutes)
# From the two losses and $W$, compute λ, detached, at most `most`. The graph of the losses must stay, as their backward is still to come, and no `.grad` may
# change.
#
# <details><summary>Hint</summary><code>torch.autograd.grad(loss, W, retain_graph=True)</code> gives a tuple with one gradient, and leaves <code>.grad</code>
# alone.</details>


# %%
def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    most: float = 1e4,
    epsilon: float = 1e-4,
) -> Tensor:
    """Two 0-dim losses and the weight that both depend on -> λ, 0-dim."""
    ### BEGIN SOLUTION
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (norms[0] / (norms[1] + epsilon)).clamp(max=most).detach()
    ### END SOLUTION


adaptive_weight = check(adaptive_weight)

# %% tags=["nbval-check-output"]
out = small(x)
last_layer = small.decoder.layers[-1].weight
logits = discriminator(out.reconstruction)
usual, doubled = (
    adaptive_weight(
        out.losses["reconstruction"], -factor * logits.mean(), last_layer, epsilon=1e-12
    )  # with an ε so small that it does not blur the factor
    for factor in (1, 2)
)
print(
    "logits twice as large, λ half as large:", torch.allclose(usual, 2 * doubled, rtol=1e-3)
)

# %% [markdown]
# ## Train and look
#
# From the same soft tokenizer we go on in three ways: with the squared error as before, with the feature distance added, and with the discriminator besides.
# Steps, batches, networks and number of codes are the same. The discriminator is the one from above, with a larger learning rate than the tokenizer's, so
# that it can keep up. Here is the whole training, from your functions:


# %%
def go_on(perceptual_weight: float, adversarial_weight: float) -> tuple[nn.Module, dict]:
    """The tokenizer after more training, and what was noted in each step."""
    torch.manual_seed(session.seed)
    model = copy.deepcopy(started_from).train()
    judge = copy.deepcopy(discriminator)  # it has learnt a little already
    rates = [
        {"params": list(model.parameters()), "lr": settings.lr},
        {"params": list(judge.parameters()), "lr": settings.judge_lr},
    ]
    optimizer = torch.optim.Adam(rates, betas=(0.5, 0.9))
    last_layer = model.decoder.layers[-1].weight
    noted = {"λ": [], "L_D": []}
    order = torch.Generator().manual_seed(session.seed)
    for _ in range(settings.steps):
        rows = torch.randint(len(train), (settings.batch_size,), generator=order)
        x, _ = train.batch(rows)
        out = model(x)
        loss = out.loss  # squared error and commitment
        if perceptual_weight:
            apart = feature_distance(features(out.reconstruction), features(x)).mean()
            loss = loss + perceptual_weight * apart
        if adversarial_weight:
            of_generator, of_judge = routed_losses(x, out.reconstruction, judge)
            weight = adaptive_weight(loss, of_generator, last_layer)
            loss = loss + adversarial_weight * weight * of_generator + of_judge
            noted["λ"].append(weight.item())
            noted["L_D"].append(of_judge.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), noted


weights = {
    "MSE alone": (0.0, 0.0),
    "+ perceptual": (settings.perceptual_weight, 0.0),
    "+ adversarial": (settings.perceptual_weight, settings.adversarial_weight),
}
models, notes = {}, {}
for name, pair in weights.items():
    models[name], notes[name] = go_on(*pair)
    print(f"{name}: {settings.steps} steps")

# %% [markdown]
# One number would not do. Beside MSE we take four:
#
# * **SSIM** (Wang et al. 2004) compares mean, contrast and structure in small windows. Larger is better.
# * The **feature distance**.
# * The **Fréchet distance** of chapter 07: how far apart the features of two sets of pictures are, taken as two Gaussians.
# * The share of **sharpness**.
#
# Feature distance and Fréchet distance look through the network of the perceptual loss, so they favour the rows that were trained with it.


# %%
def judged(rebuilt: Tensor) -> dict[str, float]:
    """Reconstructions of the test pictures -> what five measures say of them."""
    with torch.no_grad():
        apart = feature_distance(features(rebuilt), features(x_test)).mean().item()
    pooled = [recognise(eyes, pictures).features for pictures in (rebuilt, x_test)]
    return {
        "MSE": mse(rebuilt, x_test).item(),
        "SSIM": ssim(rebuilt, x_test).item(),
        "feature distance": apart,
        "Fréchet distance": frechet_distance(*pooled),
        "sharpness": (sharpness(rebuilt) / sharpness(x_test)).item(),
    }


def table_of(tokenizers: dict[str, nn.Module]) -> tuple[dict, dict]:
    """Print the measures of each; give them and the reconstructions."""
    rebuilt, numbers = {}, {}
    for name, model in tokenizers.items():
        with torch.no_grad():
            rebuilt[name] = model(x_test).reconstruction.clamp(0, 1)
        numbers[name] = judged(rebuilt[name])
    print(f"{'':<16}" + "".join(f"{measure:>18}" for measure in numbers[name]))
    for name, line in numbers.items():
        print(f"{name:<16}" + "".join(f"{value:>18.4f}" for value in line.values()))
    return rebuilt, numbers


rebuilt, numbers = table_of(models)
short = {"MSE alone": "mse", "+ perceptual": "perceptual", "+ adversarial": "adversarial"}
for name, key in short.items():
    session.expect(f"mse_{key}", numbers[name]["MSE"])
    session.expect(f"sharpness_{key}", numbers[name]["sharpness"])

# %% [markdown]
# With the added losses the Fréchet distance is smaller, and the pictures are sharper. After so few steps the squared errors hardly differ yet. (Compare the
# rows with each other: going on changed the soft tokenizer, too.)
#
# How large was λ, and how well could the discriminator tell the two apart? ($L_D$ is 2 for one that cannot.)

# %% tags=["hide-input"]
for name, values in notes["+ adversarial"].items():
    few = max(1, len(values) // 10)
    first, last = (sum(part) / few for part in (values[:few], values[-few:]))
    print(f"{name:<4} in the first tenth of the steps {first:.3f}, in the last {last:.3f}")
print("L_D step by step:", ", ".join(f"{v:.2f}" for v in notes["+ adversarial"]["L_D"][:6]))

# %% [markdown]
# The discriminator's head start is soon used up: the tokenizer answers, and it has to learn anew.
#
# These were few steps. The companion has three tokenizers from one first stage of squared error. Its "MSE alone" is the soft tokenizer that we started from.
# The other two went on five times as long as ours:

# %%
shipped = {
    "MSE alone": companion.pretrained("emoji-vqvae"),
    "+ perceptual": companion.pretrained("emoji-perceptualvqvae"),
    "+ adversarial": companion.pretrained("emoji-adversarialvqvae"),
}
longer, longer_numbers = table_of({name: m.to(device) for name, m in shipped.items()})

# %% tags=["hide-input", "cover"]
chosen = some[[0, 3, 7, 10, 13, 17, 19, 21, 23]]
plots.show(
    plots.image_rows(
        {"originals": x_test[chosen], **{name: r[chosen] for name, r in longer.items()}},
        size=1.05,
        title="Equally many codes: each added loss sharpens",
    ),
    alt="Four rows of nine emoji: the originals, and what three tokenizers make of them. With "
    "the squared error alone they are soft; with a perceptual loss edges come back; with a "
    "discriminator besides they are crisper in places.",
)

# %% [markdown]
# Which row is the sharpest? And which has the smallest squared error? They are not the same, and that is the lesson of this chapter. MSE and SSIM get
# *worse* with each loss that is added, while the pictures get sharper. (Part of that sharpness is grain, not lines: look at the flags.) By the classifier's
# features, the discriminator gains nothing on the perceptual loss alone. What it adds is sharpness.
#
# It is also a warning. What the codes do not say, the sharper rows *invent*: compare the fine lines with the originals. For a picture to look at, that may
# be what we want; for a measurement it is not. And no row is as sharp as the originals.
#
# ## When to switch it on, and how loud
#
# Both losses began after a first stage of squared error. That is the custom: the first reconstructions are blots, which are easy to tell from originals.
# Does the order matter? And the adaptive weight? An [experiment](../experiments/README.md#perceptual-and-adversarial-losses) trains six variants with
# equally many steps. In all but one the losses differ in the second half only. (± is the standard deviation over the seeds.)

# %% tags=["hide-input"]
table = results("sharper_pictures", data="emoji")
measures = ("mse", "feature_distance", "frechet", "sharpness", "perplexity")
print(table.command)
print(f"{'':<30}" + "".join(f"{measure:>18}" for measure in measures))
for variant in table.settings("variant"):
    line = "".join(
        f"{table.mean(m, variant=variant):>10.3f} ± {table.spread(m, variant=variant):<5.3f}"
        for m in measures
    )
    print(f"{variant:<30}{line}")

# %% [markdown]
# Two rows stand out.
#
# * **The perceptual loss** more than doubles sharpness and about halves the Fréchet distance. The squared error rises by about a sixth.
# * **A fixed weight of 0.8 ruins everything.** The squared error is several times as large, and the codes collapse. The large "sharpness" is no detail but a
#   pattern. Above, λ was far below 1, so this weight is many times as loud. (We did not try a small fixed weight.)
#
# <details><summary>The other rows: a discriminator besides, from the first step, ten times as fast</summary>
#
# * **A discriminator besides** makes no difference here that these seeds could show. In the shipped tokenizers, which are larger and trained longer, it
#   added some sharpness; that is one run each.
# * **From the first step on** it does no harm: its Fréchet distance is even smaller. But this variant has had the two losses for twice as many steps, and we
#   did not take the two effects apart.
# * **A discriminator that learns ten times as fast**: sharpness is lower on average; the other measures show no difference.
#
# </details>
#
# What a report says of these losses, measured. (Minus is lower; each row says which side is better.)

# %% tags=["hide-input", "nbval-check-output"]
measured_claims("Perceptual and adversarial losses")

# %% [markdown]
# ## Proof: what you built is what the companion has
#
# Your functions on fixed numbers against the companion's.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
a = torch.linspace(0, 30, 3 * 3 * 32 * 32).sin().reshape(3, 3, 32, 32) / 2 + 0.5
b = (a * 3).sin() / 2 + 0.5
theirs = companion.losses.FeatureDistance(
    load_classifier("emoji").layers, [name for name, _ in eyes.layers.named_children()]
)
eyes.cpu()
apart = feature_distance(features(b), features(a))
torch.testing.assert_close(apart, theirs.per_image(b, a), rtol=1e-4, atol=1e-5)
eyes.to(device)
glue("proof.feature_distance", apart.tolist(), display=False)
print("feature distances agree:", True)

logits = torch.linspace(-3, 3, 28).reshape(2, 1, 2, 7)
ours = [
    *(loss.item() for loss in hinge_losses(logits, logits.flip(3) - 1)),
    *patch_map(logits, (9, 18), 5, 2, -1).flatten().tolist(),
]
theirs = companion.losses
there = [
    theirs.hinge_discriminator_loss(logits, logits.flip(3) - 1).item(),
    theirs.hinge_generator_loss(logits.flip(3) - 1).item(),
    *theirs.patch_map(logits, (9, 18), patch=5, stride=2, offset=-1).flatten().tolist(),
]
torch.testing.assert_close(torch.tensor(ours), torch.tensor(there))
glue("proof.adversarial_parts", ours, display=False)
print("hinge losses and patch maps agree:", True)

# %% [markdown]
# And the whole step, from the same weights and batch: two optimizers by turns, as published code has it, your one backward, and
# `companion.losses.AdversarialTraining`.


# %% tags=["nbval-check-output"]
def one_step(way: str) -> list[Tensor]:
    """The weights of tokenizer and discriminator after one step."""
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(3, 4, hidden=8),
        companion.VectorQuantizer(8, 4),
        companion.ResNetDecoder(3, 4, hidden=8),
    )
    judge = companion.losses.PatchDiscriminator(3, width=8)
    x = a
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    second = torch.optim.SGD(judge.parameters(), lr=0.1)
    if way == "companion":
        both = companion.losses.AdversarialTraining(
            model, judge, adversarial_weight=0.5
        ).train()
        both(x).loss.backward()
    elif way == "one backward":
        out = model(x)
        of_generator, of_judge = routed_losses(x, out.reconstruction, judge)
        weight = adaptive_weight(out.loss, of_generator, model.decoder.layers[-1].weight)
        (out.loss + 0.5 * weight * of_generator + of_judge).backward()
    else:  # by turns
        out = model(x)
        of_generator = -judge(out.reconstruction).mean()
        weight = adaptive_weight(out.loss, of_generator, model.decoder.layers[-1].weight)
        (out.loss + 0.5 * weight * of_generator).backward()
        first.step()
        second.zero_grad()  # what the generator's loss left there
        hinge_losses(judge(x), judge(out.reconstruction.detach()))[0].backward()
        second.step()
        return [p.detach() for p in [*model.parameters(), *judge.parameters()]]
    first.step()
    second.step()
    return [p.detach() for p in [*model.parameters(), *judge.parameters()]]


by_turns = one_step("by turns")
for way in ("one backward", "companion"):
    for p, q in zip(by_turns, one_step(way), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    print(f"by turns and {way}: the same weights", True)

# %% [markdown]
# ## Play: how much of each?
#
# Eight unseen pictures, rebuilt by tokenizers that were trained with more or less of each loss (made beforehand; the sliders only choose). Start with both
# at 0. Then find the point from which more is not better.

# %%
explorers.loss_weights()

# %% [markdown]
# For readers of the printed page: three of the settings.

# %% tags=["hide-input"]
plots.show(
    explorers.draw_loss_weights([(0, 0), (2, 0), (2, 2)]),
    alt="Eight pictures and three rows of reconstructions: with the squared error alone, with "
    "a perceptual loss, and with a strong discriminator besides; the second row has more "
    "edges, the last one a pattern of dots all over.",
)

# %% [markdown]
# ## What breaks, and why
#
# **A pattern that the network does not see.** What does a layer overlook? Let the *pixels* learn: start from the blurred fox, and minimise nothing but the
# distance to the sharp one in a single block.


# %%
def checkerboard(x: Tensor) -> float:
    """Power of the finest stripes, along rows and columns: what changes sign from pixel to pixel."""
    sign = (torch.arange(x.shape[-1], device=x.device) % 2) * 2.0 - 1
    along_rows, along_columns = (x * sign).mean(3), (x * sign[:, None]).mean(2)
    return (along_rows.square() + along_columns.square()).mean().item()


learnt = {"original": fox, "start: blurred": foxes["blurred"]}
for block in (0, 2, 4):
    pixels = foxes["blurred"].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], lr=0.02)
    wanted = features(fox)[block]
    for _ in range(settings.pixel_steps):
        apart = feature_distance([features(pixels)[block]], [wanted]).mean()
        optimizer.zero_grad()
        apart.backward()
        optimizer.step()
    learnt[f"block {block + 1} alone"] = pixels.detach()

# %% tags=["hide-input"]
print(f"{'':<16}   MSE     finest stripes   distance in block 1, 3 and 5")
for name, picture in learnt.items():
    by_block = [
        feature_distance([features(picture)[b]], [features(fox)[b]]).item()
        for b in (0, 2, 4)
    ]
    print(f"{name:<16}{mse(picture, fox):.4f}   {checkerboard(picture):.1e}       ", end="")
    print("   ".join(f"{value:.4f}" for value in by_block))

# %% tags=["hide-input"]
fig, axes = plots.figure(8.5, 2.4, columns=5)
for ax, (name, picture) in zip(axes, learnt.items(), strict=True):
    plots.draw_image(ax, picture[0].clamp(0, 1))
    ax.set_title(name)
fig.suptitle("The blurred fox, after its pixels learnt from one block")
plots.show(
    fig,
    alt="The fox, its blurred copy, and what became of the copy when its pixels learnt from "
    "the features of one block alone: from the first the fox comes back, from the third "
    "with a faint pattern, from the fifth with sharp edges under coloured speckles.",
)

# %% [markdown]
# From the first block the fox comes back. From the fifth come sharp edges under a pattern of speckles. That block hardly tells them from the sharp fox,
# though their squared error is larger than the blurred one's. A deep layer answers for a whole neighbourhood, and many neighbourhoods have the same
# answer. So we sum over early and late blocks, and keep the squared error in the loss.
#
# **Too loud a discriminator** brings three faults at once: a checkerboard, a shift of the mean colour, and codes that collapse. Here is the experiment's
# fixed weight beside other variants (stripes as a multiple of the originals'):

# %% tags=["hide-input"]
for variant in ("mse", "perceptual", "adversarial", "adversarial, fixed weight"):
    stripes_of, shift_of, codes_of = (
        table.mean(m, variant=variant)
        for m in ("checkerboard", "colour_shift", "perplexity")
    )
    print(
        f"{variant:<27} finest stripes × {stripes_of:<8.2f} colour shift {shift_of:.3f}   ",
        end="",
    )
    print(f"perplexity {codes_of:.0f} of 64")

# %% [markdown]
# The perceptual loss alone also draws more of the finest stripes than the originals have. You can see them above: they are the grid in the flags.
#
# **Training the wrong network.** Leave out one `detach`, and a network also learns the other's task. Your routing table shows it; a loss curve may not. With
# the constants left out of $L_G$:

# %% tags=["nbval-check-output"]
wrong = -discriminator(small(x_test[:16]).reconstruction).mean()
found = torch.autograd.grad(wrong, list(discriminator.parameters()), allow_unused=True)
print("L_G moves the discriminator:", any(bool(g.any()) for g in found if g is not None))

# %% [markdown]
# ## Pen and paper
#
# 1. Stripes of random phase have variance $\sigma^2$ at each pixel. Show that the error of a striped answer is $2\sigma^2$, and that of the average
#    $\sigma^2$.
# 2. A discriminator multiplies all its logits by 3. What happens to $L_G$, to its gradient at the last layer, to λ, and to $\lambda L_G$? What happens to
#    $L_D$?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. Two independent draws $x$, $c$ have the same mean $\mu$, so $\mathbb{E}(x - c)^2 = \mathbb{E}(x - \mu)^2 + \mathbb{E}(c - \mu)^2 = 2\sigma^2$; with
#    $c = \mu$ the second term is 0.
# 2. $L_G$ and its gradient are three times as large, λ a third (but for ε), and $\lambda L_G$ pulls as before. $L_D$ changes: more patches are judged right
#    by more than 1 and drop out of it, and those that are wrong cost more, their logits being three times as far off.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
#
# * The squared error is least for the average of all pictures that the codes allow. Averages are blurred.
# * A feature distance compares directions of feature vectors. It sees edges and textures, and has the blind spots of its network.
# * A discriminator learns whatever gives the reconstructions away, patch by patch.
# * Each network learns from its own loss: $\hat x$ is a constant in one, the discriminator's weights in the other.
# * λ makes both losses pull equally hard at the decoder's last layer; a fixed weight then says how hard.
# * Sharper pictures have a larger squared error. Say which measure you report, and show the pictures.
#
# ## Further experiments
#
# 1. Take only the first two taps, or only the last two. What do you see?
# 2. Replace the hinge losses by `companion.losses.non_saturating_generator_loss` and its partner.
# 3. Add `penalty="r1"` (Mescheder et al. 2018) to `companion.losses.AdversarialTraining`. What happens to the logits?
# 4. If you have the weights of VGG16 on your disk: `companion.losses.lpips_vgg()` in place of the small classifier.
# 5. The report's recipe:
#    `companion.fit(…, augment=companion.augment.Augment(), optimizer=functools.partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.05))`.
#
# ## References
#
# * Goodfellow et al. 2014, *Generative adversarial nets*, equation 1.
# * Isola et al. 2017, *Image-to-image translation with conditional adversarial networks*, section 3.2.2: PatchGAN.
# * Lim and Ye 2017, *Geometric GAN*; Zhang et al. 2019, *Self-attention generative adversarial networks*, equation 4: hinge losses.
# * Zhang et al. 2018, *The unreasonable effectiveness of deep features as a perceptual metric*, equation 1: LPIPS.
# * Esser et al. 2021, *Taming transformers for high-resolution image synthesis*, equations 5 to 7: VQGAN and its adaptive weight.
# * Wang et al. 2004, *Image quality assessment: from error visibility to structural similarity*: SSIM.

# %% [markdown]
# # 00 · Start here
#
# **The question.** How does this course work, and what will you have built by its end? You meet the data, the one
# number that nearly every chapter minimises, and the map of the whole road, which you draw yourself from real images:
#
# ![The map of the course: an image becomes a small grid of codes and is rebuilt from them; a prior learns the codes and makes new ones.](../chapters/pictures/00_start_here.png)
#
# **Afterwards you can** run a chapter, fill in an exercise and read its check; say what a mean squared error is a mean
# *of*; and give a reconstruction error in a unit that means something.
#
# **Needed:** Python, and that you have seen PyTorch tensors. **Time:** about half an hour of yours (an estimate),
# seconds of the computer's.

# %%
import math

import torch
from myst_nb import glue
from torch import Tensor

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.course.chapter_00.explorer import blurred

session = begin("00_start_here")

# %% [markdown]
# The table above opens every chapter. A **profile** sets the sizes: `quick` (small data, for a laptop without a GPU),
# `full` (the real data sets, for a GPU) and `smoke` (a few images and steps: it shows that everything runs, and its
# numbers mean nothing). The environment variable `COMPANION_PROFILE` overrides the choice. The
# [glossary](../chapters/glossary.md) has every term of the course, with its symbol and its shape. The code of a cell that only draws a picture or
# prints a table is folded; click on its three dots to open it.
#
# ## The data
# `quick` needs no download. Its images, the *glyphs*, are digits from free fonts, turned, sheared, scaled and shifted at
# random, made on your machine in a second or two. The same seed gives the same images everywhere.

# %%
train, test = session.data()
images, labels = train.batch(torch.arange(10))  # the first ten images, as floats in [0, 1]

# %% tags=["nbval-check-output"]
print("one batch:", tuple(images.shape), images.dtype, "  stored as", train.images.dtype)
print("smallest and largest value:", images.min().item(), images.max().item())

# %% tags=["hide-input"]
rows = {}
for name, image_set in (("train", train), ("test", test)):
    first = [
        int((image_set.labels == k).nonzero()[0]) for k in range(10)
    ]  # the first image of each class
    rows[name] = image_set.batch(torch.tensor(first))[0]
plots.show(
    plots.image_rows(
        rows,
        title="The ten classes; test images come from sources that training never sees",
    ),
    alt="Two rows of ten small grey images, the digits 0 to 9: one row from the "
    "training set, one from the test set.",
)

# %% [markdown]
# The glyphs of the test set use **fonts that no training image uses**. A model that has only learnt its training
# images by heart shows it there.
#
# ## Predict
# Suppose you had to describe *every* image by one and the same image, chosen once. Which one would you choose so that
# the squared error is smallest, and how much of the error would be left compared with an all-black image: nearly all, a bit
# over half, a quarter? Write your guess down; the answer is measured below.
#
# ## Build: how far apart are two images?
# Take two tiny images of 2 × 2 pixels.

# %% tags=["nbval-check-output"]
x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
x_hat = torch.tensor([[0.1, 0.8], [1.0, 0.4]])

difference = x_hat - x
print("difference:")
print(difference)
print("squared:")
print(difference.square())

# %% [markdown]
# Adding up the squares gives a number that grows with the size of the image; averaging them gives one that does not,
# so that errors of small and large images can be compared:
#
# $$\text{MSE}(\hat x, x) = \frac{1}{N} \sum_{i=1}^{N} (\hat x_i - x_i)^2$$
#
# where $N$ counts **every pixel of every image** in the batch.

# %% tags=["nbval-check-output"]
print("sum  ", round(difference.square().sum().item(), 4))
print("mean ", round(difference.square().mean().item(), 4))

# %% [markdown]
# ### Exercise 0.1 · mean squared error  (easy, 3 minutes)
# Turn this into a function of two batches of images. It returns one number, as a tensor through which gradients flow to both.
#
# This is the first of the course's exercises, and they all work alike. Write your lines in place of
# `raise NotImplementedError`, run the cell, and read what the check says:
#
# * **⬜ not attempted yet**: as it is now. The notebook goes on with the companion's finished version.
# * **✅ matches**: yours agrees with the companion's in values, and in *gradients* where there are any, on several inputs. From here
#   on the notebook uses **your** code.
# * **❌ differs**: you are told on which input, what was expected and what came, and often why. The notebook goes on with
#   the companion's.
#
# In all three cases everything below runs, so you may skip an exercise and come back. Try all three: run it
# as it is, then with a mistake (leave the square out), then right. Opened by `make lab`, this notebook is your own copy, in the folder
# `my/`: an update of the course does not overwrite what you write.
#
# <details><summary>Hint</summary>Three tensor operations in one line: subtract, <code>.square()</code>,
# <code>.mean()</code>.</details>


# %%
def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """x_hat, x: the same shape -> their mean squared error, a scalar tensor."""
    ### BEGIN SOLUTION
    return (x_hat - x).square().mean()
    ### END SOLUTION


mse = check(mse)

# %% [markdown]
# ## Train and look
# Nothing is trained in this chapter, but one "model" can be fitted without training: the single image that describes
# all images best. For each pixel separately, the number with the smallest mean squared distance to a set of numbers is their
# mean. So the best constant image is the mean image, and now your guess can be answered.

# %%
x_train, _ = train.batch(torch.arange(len(train)))
x_test, _ = test.batch(torch.arange(len(test)))
mean_image = x_train.mean(0, keepdim=True)  # (1, C, H, W)
mean_grey = x_train.mean()  # one number

candidates = {
    "black": torch.zeros_like(mean_image),
    "one grey": mean_grey.expand_as(mean_image),
    "mean image": mean_image,
}
errors = {name: mse(c.expand_as(x_test), x_test).item() for name, c in candidates.items()}
for name, error in errors.items():
    print(f"{name:<11} MSE {error:.4f}   {error / errors['black']:.0%} of black's")

# %% tags=["hide-input"]
fig, axes = plots.figure(6.5, 2.9, columns=3)
for ax, (name, candidate) in zip(axes, candidates.items(), strict=True):
    plots.draw_image(ax, candidate[0])
    ax.set_title(f"{name}\nMSE {errors[name]:.4f}")
fig.suptitle("Of these answers to every image, the mean image errs least")
plots.show(
    fig,
    alt="Three constant images with their mean squared error on the test set: black, "
    "one grey, and the mean image, a blurred 8, which has the smallest "
    "error.",
)

# %% [markdown]
# Compare with your guess: a bit over half of black's error is left. The mean image looks like a blurred 8, and yet no constant image has
# a smaller error on the training set. Remember this when a model later
# in the course answers with a blur: **where it cannot know, the mean squared error rewards the average.**
#
# ### A unit for errors
# Is an MSE of 0.01 good? That depends on how different the pixels are from each other to begin with. The course
# therefore divides by the variance of all training pixels, *one* number for the whole set, and calls the result
# **distortion**: 0 is perfect, and 1 is what the best single grey value reaches on the training set.

# %%
variance = x_train.var(correction=0).item()
for name in candidates:
    print(
        f"{name:<11} distortion {companion.metrics.distortion(errors[name], variance):.3f}"
    )

# %% [markdown]
# Why does the grey image not score 1 here? Because these are *test* images, and the unit comes from the training images. The glyphs' test
# set has less ink, and its pixels vary less:

# %%
print(
    f"variance of the test pixels: {x_test.var(correction=0).item() / variance:.2f} of that of the training pixels"
)

# %% [markdown]
# ## Proof: yours and the companion's are the same
# Every chapter ends its building part so: the version built here and the one in `companion` get the same input, and
# values and gradients must agree. The numbers are stored in this notebook, and the project's tests compare the
# companion with them.

# %% tags=["nbval-check-output"]
x = torch.linspace(0, 1, 24).reshape(2, 1, 3, 4)
x_hat = (x.flip(0) ** 2).requires_grad_()

results = {}
for name, function in (("notebook", mse), ("companion", companion.metrics.mse)):
    value = function(x_hat, x)
    (gradient,) = torch.autograd.grad(value, x_hat)
    results[name] = {"value": value.item(), "gradient_norm": gradient.norm().item()}
    print(name, {part: round(number, 3) for part, number in results[name].items()})
glue("proof.mse", results["notebook"], display=False)
for part, number in results["notebook"].items():  # the last digits are the processor's
    assert math.isclose(number, results["companion"][part], rel_tol=1e-5)

# %% [markdown]
# ## The map
# Here is where the course goes, with the simplest parts that do the job. They are poor on purpose: each
# is replaced by a learnt one in the chapter named below.
#
# 1. **Encoder** (learnt in chapter 01): cut the image into 7 × 7 patches of 4 × 4 pixels, each a vector $z_e$ of 16 numbers.
# 2. **Quantizer** (03): keep a *codebook* $e$ of $K = 64$ patches, here drawn at random from the training images, and replace each vector by the
#    index $k$ of the nearest one. The image is now a 7 × 7 grid of whole numbers, its **codes**.
# 3. **Decoder** (01, 04): look the codes up in the codebook and paste the patches back together.
# 4. **Prior** (07): learn which codes occur, and sample new ones; the decoder turns them into a new image.
#
# How much is a code? One of 64 takes $\log_2 64 = 6$ bits, and $T = 49$ codes take $T \log_2 K = 294$. This is their *nominal* rate, `nominal_bits`;
# later chapters measure how many bits are really needed.

# %%
K = 64


def to_patches(x: Tensor) -> Tensor:  # (B, 1, H, W) -> (B, h, w, 16)
    return x.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0].flatten(3)


def from_patches(z: Tensor) -> Tensor:  # (B, h, w, 16) -> (B, 1, H, W)
    b, h, w, _ = z.shape
    return z.unflatten(3, (4, 4)).transpose(2, 3).reshape(b, 1, 4 * h, 4 * w)


grey = x_train[:, :1]  # one channel is enough for a map
z_e = to_patches(grey)
generator = torch.Generator().manual_seed(session.seed)
bright = z_e.flatten(0, 2)
bright = bright[bright.sum(1) > 2].cpu()  # patches with something on them
chosen = torch.randperm(len(bright), generator=generator)[: K - 1]
blank = torch.zeros(1, 16)  # code 0 is the empty patch
codebook = torch.cat([blank, bright[chosen]]).to(session.device)

distances = torch.cdist(z_e.flatten(0, 2), codebook)  # (N, K)
codes = distances.argmin(1).reshape(z_e.shape[:3])  # (B, h, w)
rebuilt = from_patches(codebook[codes])

# %% tags=["nbval-check-output"]
print("an image of", 28 * 28, "pixels became", codes[0].numel(), "codes, each one of", K)
nominal_bits = codes[0].numel() * math.log2(K)
print(
    "bits of the stored pixels:",
    28 * 28 * 8,
    "  nominal bits of the codes:",
    round(nominal_bits),
)

# %% [markdown]
# The simplest prior there is: at each of the 49 positions, draw a code with the frequency that it has *there* in the training images, without
# looking at the other positions.

# %%
drawn = torch.randint(len(codes), (8, *codes.shape[1:]), generator=generator)
# At each position, the code that some random training image has there:
sampled_codes = codes.gather(0, drawn.to(session.device))
sampled = from_patches(codebook[sampled_codes])

# %% tags=["hide-input", "cover"]
plots.show(
    plots.pipeline_map(grey[0], codes[0], rebuilt[0], sampled[0]),
    alt="The map of the course: an image becomes a 7 by 7 grid of codes and is "
    "rebuilt from them with visible patches; a prior learns from the codes and "
    "makes new ones, whose decoded image is a jumble of strokes.",
)

# %% tags=["hide-input"]
plots.show(
    plots.image_rows(
        {"x": grey[:8], "rebuilt": rebuilt[:8], "sampled": sampled},
        title="Rebuilding works, sampling does not yet",
    ),
    alt="Three rows of eight images: original digits, their rebuilt versions made of "
    "coarse patches but readable, and samples of the simplest prior, which are "
    "strokes that seldom form a digit.",
)

# %%
session.expect("patches_distortion", mse(rebuilt, grey).item() / variance)

# %% [markdown]
# **About bands.** A number that depends on chance (a random codebook here, a training later) comes out a little differently for each seed. The line
# above puts it beside its *band*. We ran the chapter several times with other seeds, and computed from the mean and the spread of these runs where the
# next one falls 99 times out of 100, if such numbers follow a normal distribution. From so few runs that is a rough guide, and a chapter prints a dozen
# of these lines. So do not worry when a number lies outside once. If it does so again with another seed (`COMPANION_SEED=1`), look for a mistake.
#
# Most of the rebuilt digits can be read, although each is described by 294 bits instead of 6,272. Few of the samples can be read: the strokes are right,
# one by one, but each position ignores its neighbours. Chapters 01 to 06 make the upper road better, and chapters 07 and 08 the lower one. [Chapter
# 09](09_sharper_pictures.ipynb) makes the pictures sharper, [chapter 10](10_backbones.ipynb) tries other networks as encoder and decoder, and [chapter
# 11](11_your_own_images.ipynb) goes the whole way with a folder of your own pictures.
#
# ## Play: what the squared error calls far
# Move a digit by a pixel or two, or blur it, and watch its distance from where it was. Which hurts the MSE more, and
# which hurts your eye more?

# %%
explorers.shift_and_blur(x_test[:20], variance)

# %% tags=["hide-input"]
one = x_test[:1]
moved = [torch.roll(one, shift, dims=3) for shift in range(7)]
fig, axes = plots.figure(8, 1.9, columns=len(moved))
for shift, (ax, picture) in enumerate(zip(axes, moved, strict=True)):
    plots.draw_image(ax, picture[0])
    ax.set_title(f"{shift} px\n{mse(picture, one).item() / variance:.2f}")
fig.suptitle("The same digit moved to the right, and its distortion")
plots.show(
    fig,
    alt="One digit moved to the right by 0 to 6 pixels; the distortion printed above "
    "each picture grows quickly with the first pixels although the digit stays "
    "perfectly readable.",
)

# %% [markdown]
# That is one digit. Over all test images, beside the mean image and the explorer's blur (a Gaussian of 2 pixels standard deviation):

# %%
answers = {
    "1 pixel to the right": torch.roll(x_test, 1, dims=3),
    "2 pixels to the right": torch.roll(x_test, 2, dims=3),
    "blur of width 2": blurred(x_test, 2.0),
    "mean image": mean_image.expand_as(x_test),
}
for name, answer in answers.items():
    print(f"{name:<22} distortion {mse(answer, x_test).item() / variance:.2f}")

# %% [markdown]
# On average, two pixels to the right cost more than answering with the mean image. A blur of width 2, which you notice at once, costs less than one
# pixel does. The squared error compares pixels at the same position and knows nothing of shapes.
#
# ## What breaks, and why
# **Bytes wrap around.** The images are stored as bytes. Subtract two bytes and the result is a byte again: −1 becomes 255.

# %% tags=["nbval-check-output"]
a = torch.tensor([10], dtype=torch.uint8)
b = torch.tensor([11], dtype=torch.uint8)
print("as bytes: ", (a - b).item(), "  as floats:", (a.float() - b.float()).item())

# %% [markdown]
# **Shapes that do not match are stretched until they do.** Forget one axis, and broadcasting compares every image with
# every other one, without a word. The companion's `mse` refuses shapes that differ, and says which came.

# %% tags=["nbval-check-output"]
x = torch.zeros(5, 1, 4, 4)
x_hat = torch.ones(5, 4, 4)  # the channel axis is missing
print("the difference has shape", tuple((x_hat - x).shape))
try:
    companion.metrics.mse(x_hat, x)
except ValueError as error:
    print("companion:", error)

# %% [markdown]
# ## Where the course comes from, and what it tests
# The course grew out of five student reports and blog posts, on the VQ-VAE, its gradients, residual quantisation, the prior and the networks around the
# codes. The chapters call them the **source reports**. They explain the models well. Like most reports, they also say what makes the models work, often
# without a test: larger codebooks help only a little, a discriminator (a second
# network that judges the pictures) makes them sharp. Such sentences are passed on from text to text, and some of
# them are wrong.
#
# So the course tests them. For each sentence we wrote down what to compare, and how large a difference would matter, before the experiments on real
# images ran (the page says where it was later). We trained with several seeds and looked at the 95 % interval of the difference. The sentence **holds**
# if the whole interval lies beyond that size. The difference is **smaller than claimed** if the interval lies wholly below it. If the interval even
# lies wholly on the other side of zero, **the opposite** is true. Otherwise the sentence is **undecided**, which is common with few seeds. Networks and
# trainings are smaller than in the reports, so a verdict says what holds *here*.
#
# A chapter shows such a test where you learn something from it, sometimes in a box "Often written, not so". More stands in its **study**, where it has
# one: a notebook with a b in its name (02b beside 02), with sweeps and derivations that the next chapter does not need. All tests, with
# the commands to run them again, stand on the page of the [experiments](../experiments/README.md), which begins with ten findings.
#
# ## Pen and paper
# Show that for numbers $x_1, \dots, x_n$ the constant $c$ with the smallest $\sum_i (x_i - c)^2$ is their mean. What would it
# be for $\sum_i |x_i - c|$?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answer</summary>The derivative with respect to $c$ is $-2 \sum_i (x_i - c)$. It is zero where
# $c = \tfrac1n \sum_i x_i$, and the second derivative, $2n$, is positive. For absolute values the derivative counts how many $x_i$ lie below $c$ minus
# how many lie above; it is zero at the median. The median image is black in more places
# than the mean image and has harder edges, so an L1 loss gives other pictures than an L2 loss.</details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * Every chapter: a question, a prediction, building, an exercise with a check, training, a proof, something to play
#   with, and what breaks.
# * MSE is a mean over every pixel of every image. Where a model cannot know, it rewards the average.
# * Distortion is MSE divided by the variance of all training pixels; a trained number stands beside its band.
# * The road: image → codes → image, and a prior that makes new codes.
#
# **If something goes wrong.** *Kernel → Restart Kernel and Run All Cells* puts everything back in order; your answers
# stay. The stop button interrupts a training, and the notebook goes on with what was trained so far. `solutions/` has every answer.
#
# **Further experiments.** Double K in the map: how much does the distortion fall, and how many bits does it cost? Choose
# the codebook by k-means instead of at random (`sklearn.cluster.KMeans`).
#
# **References.** A. van den Oord, O. Vinyals, K. Kavukcuoglu: *Neural Discrete Representation Learning*, 2017 (the
# map's upper road). D. Lee et al.: *Autoregressive Image Generation using Residual Quantization*, 2022 (where the course ends up).
#
# **Next:** [01 · Autoencoders](01_autoencoder.ipynb), in which the encoder and the decoder learn.

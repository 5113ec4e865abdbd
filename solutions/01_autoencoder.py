# %% [markdown]
# # 01 · Autoencoders
#
# **The question.** Can a picture be described by a handful of numbers, and can pictures be made from numbers nobody
# drew? You build a network that squeezes every image through a bottleneck and has to give it back, and you end with
# this map of its two-dimensional bottleneck, and what lies between the images:
#
# ![Left: the latent plane with every training image as a point, coloured by class. Right: what the decoder makes of a regular grid of points in that plane.](../chapters/pictures/01_autoencoder.png)
#
# **Afterwards you can** compute the sizes through a stack of convolutions, write an encoder and a training step,
# compare a learnt bottleneck with PCA, and say in what sense an autoencoder does and does not generate.
#
# **Needed:** [chapter 00](00_start_here.ipynb); what a convolution and a gradient are. **Time:** about an hour and a
# quarter of yours, and three quarters of an hour more for the exercises (estimates); the computer's is in the table below.

# %%
import torch
from myst_nb import glue
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from tqdm.auto import tqdm

import companion
from companion import plots
from companion.course import begin, check, explorers
from companion.metrics import distortion, mse

session = begin("01_autoencoder")
settings, device = session.settings, session.device
train, test = session.data()

# %%
x_train, y_train = train.batch(torch.arange(len(train)))
x_test, y_test = test.batch(torch.arange(len(test)))
variance = x_train.var(correction=0).item()  # the unit of distortion, see chapter 00
channels, size, _ = train.shape

# %% [markdown]
# ## Predict
# An image has 28 × 28 = 784 pixels. You may keep only $d$ numbers of each image, chosen by a network that was trained for it,
# and the picture is rebuilt from those. What is the *smallest* $d$ that brings the distortion (MSE over the variance of all pixels) down
# to about 0.1: 2, 16 or 64?
# And would the best *linear* method, PCA, need more numbers, or fewer?
#
# ## An hourglass for images
# An **autoencoder** has two halves. The **encoder** takes an image $x$ and gives a few numbers, the **latent** $z$. The **decoder** takes $z$ and gives
# an image $\hat x$, the **reconstruction**. Where they meet is the **bottleneck**: all that the decoder learns about the image has to pass through the
# $d$ numbers of $z$. Both halves are trained together, so that $\hat x$ comes near to $x$. (The [glossary](../chapters/glossary.md) has these words
# with their symbols and shapes.)
#
# Here are the shapes that you will build, as channels × height × width, with the names of the layers:

# %% tags=["hide-input"]
stages = [  # name, shape, height, width, colour
    ("image $x$", "1 × 28 × 28", 28, 2, "reference"),
    ("", "32 × 14 × 14", 14, 5, "train"),
    ("", "64 × 7 × 7", 7, 8, "train"),
    ("latent $z$", "$d$ numbers", 3, 2, "third"),
    ("", "64 × 7 × 7", 7, 8, "validation"),
    ("", "32 × 14 × 14", 14, 5, "validation"),
    ("reconstruction $\\hat x$", "1 × 28 × 28", 28, 2, "reference"),
]
layers = ["conv1", "conv2", "to_latent", "from_latent", "conv1", "conv2"]
fig, ax = plots.figure(9, 3.2)
ax.set(xlim=(-9, 129), ylim=(-21, 21))
ax.set_axis_off()
for i, (name, shape, height, width, colour) in enumerate(stages):
    corner = (20 * i - width / 2, -height / 2)
    ax.add_patch(plots.rectangle(corner, width, height, color=plots.COLOURS[colour]))
    ax.text(20 * i, -18, shape, ha="center")
    ax.text(20 * i, 16, name, ha="center")
for i, layer in enumerate(layers):
    ends = (20 * (i + 1) - stages[i + 1][3] / 2 - 1, 0), (20 * i + stages[i][3] / 2 + 1, 0)
    ax.annotate("", *ends, arrowprops={"arrowstyle": "-|>", "color": "black"})
    ax.text(20 * i + 10, 1.5 if i not in (2, 3) else 4.5, layer, ha="center", fontsize=9)
for centre, half, colour in ((35, "encoder", "train"), (85, "decoder", "validation")):
    style = {"color": plots.COLOURS[colour], "fontweight": "bold"}
    ax.text(centre, 16, half, ha="center", **style)
plots.show(
    fig,
    alt="An hourglass of boxes: the image, two ever smaller and deeper grids of the encoder, the "
    "latent in the middle, two ever larger grids of the decoder, and the reconstruction. "
    "Arrows between them carry the names of the layers.",
)

# %% [markdown]
# ## Build: a convolution that takes strides
# A convolution slides a window over the image and takes a weighted sum at each position. On one row of 8 pixels, with a
# window (a *kernel*) of 3 and nothing added at the edges:

# %% tags=["nbval-check-output"]
row = torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0])
kernel = torch.tensor([-1.0, 0, 1])  # right neighbour minus left neighbour: an edge

windows = row.unfold(0, 3, 1)  # (6, 3): every window of 3, one step apart
print("windows with stride 1:", windows.shape[0], "  answers:", (windows @ kernel).tolist())

# %% [markdown]
# With a **stride** of 2 the window moves two pixels at a time, and only every other answer remains. That is how an encoder
# shrinks an image: no separate pooling, the convolution itself skips.

# %% tags=["nbval-check-output"]
windows = row.unfold(0, 3, 2)
print("windows with stride 2:", windows.shape[0], "  answers:", (windows @ kernel).tolist())

# %% [markdown]
# The last pixel was in no window. **Padding** adds zeros at both ends, so that the border gets windows of its own:

# %% tags=["nbval-check-output"]
padded = torch.nn.functional.pad(row, (1, 1))  # one zero at each end: 10 numbers
windows = padded.unfold(0, 3, 2)
print("with padding 1:", windows.shape[0], "  answers:", (windows @ kernel).tolist())

# %% [markdown]
# ### Exercise 1.1 · how many windows?  (easy, 5 minutes)
# For an axis of `size` pixels, a kernel, a stride and a padding on each side: how many windows are there? Draw the
# case of 7 pixels, kernel 3, stride 2, padding 1 on paper first.
#
# <details><summary>Hint 1</summary>The first window needs no step. How many pixels are left to step over after it?</details>
# <details><summary>Hint 2</summary>A window that sticks out is left out: <code>//</code> rounds down.</details>


# %%
def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """The length of one axis after a convolution."""
    ### BEGIN SOLUTION
    left = size + 2 * padding - kernel  # what the first window does not cover
    return left // stride + 1
    ### END SOLUTION


conv_output_size = check(conv_output_size)

# %% tags=["nbval-check-output"]
s = 28
for layer in range(3):
    print(f"before layer {layer + 1}: {s} × {s}")
    s = conv_output_size(s, kernel=3, stride=2, padding=1)
print(f"after layer 3: {s} × {s}")

# %% [markdown]
# Two layers halve 28 twice, to 7. A third would give 4. On the way back a layer that doubles makes 8 of that, not 7: it would need other settings
# than the rest (the last question of this chapter). We therefore take two strided layers.
#
# ## Build: the encoder
# Step by step, with the shapes:

# %% tags=["nbval-check-output"]
x = x_train[:5, :1, :28, :28].cpu()  # five images
conv1 = nn.Conv2d(1, 32, kernel_size=3, stride=2, padding=1)
conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)

h = conv1(x).relu()
print("after conv1: ", tuple(h.shape))
h = conv2(h).relu()
print("after conv2: ", tuple(h.shape))
h = h.flatten(1)  # all axes but the first into one
print("flattened:   ", tuple(h.shape))
z = nn.Linear(64 * 7 * 7, 2)(h)
print("latent z:    ", tuple(z.shape))

# %% [markdown]
# 784 pixels became 14 × 14 positions with 32 numbers each, then 7 × 7 with 64, then 2 numbers. Only the last layer squeezes: the others give more
# numbers than the image has. The nonlinearity (ReLU)
# stands after each convolution, and none after the linear layer: a latent may be any real number.
#
# ### Exercise 1.2 · the encoder  (easy, 10 minutes)
# `__init__` is given, because the names of the layers decide which weights fit; write `forward`. It has to work for any number
# of channels, any hidden width and any image size that 4 divides.
#
# <details><summary>Hint</summary>Two lines that end in <code>.relu()</code> and one with <code>flatten(1)</code>; use
# <code>self.conv1</code>, <code>self.conv2</code>, <code>self.to_latent</code>.</details>


# %%
class Encoder(nn.Module):
    """x: (B, in_channels, S, S) -> z: (B, latent_dim)."""

    def __init__(
        self, latent_dim: int, in_channels: int = 1, hidden: int = 32, image_size: int = 28
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1)
        self.to_latent = nn.Linear(2 * hidden * (image_size // 4) ** 2, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        h = self.conv1(x).relu()  # (B, hidden, S/2, S/2)
        h = self.conv2(h).relu()  # (B, 2 hidden, S/4, S/4)
        return self.to_latent(h.flatten(1))  # (B, latent_dim)
        ### END SOLUTION


Encoder = check(Encoder)

# %% [markdown]
# ## Build: the decoder
# The way back needs a convolution that makes images *larger*. A strided convolution reads a window and writes one number; a
# **transposed convolution** reads one number and writes a window: a copy of the kernel, multiplied by that number.
# Where windows overlap, they add up. Here every window overlaps the next by two positions:

# %% tags=["nbval-check-output"]
small = torch.tensor([1.0, 1, 2])
kernel = torch.tensor([1.0, 2, 2, 1])
large = torch.zeros(8)
for i, value in enumerate(small.tolist()):
    large[2 * i : 2 * i + 4] += value * kernel  # each window starts two positions further
print("by hand:  ", large.tolist())
by_torch = torch.nn.functional.conv_transpose1d(
    small.reshape(1, 1, -1), kernel.reshape(1, 1, -1), stride=2
)
print("by torch: ", by_torch.flatten().tolist())

# %% [markdown]
# A kernel of 4 with stride 2 and one position cut off at each end (padding 1) doubles the length exactly. The
# decoder is the encoder's mirror, with two of those.


# %%
class Decoder(nn.Module):
    """z: (B, latent_dim) -> (B, out_channels, S, S)."""

    def __init__(
        self, latent_dim: int, out_channels: int = 1, hidden: int = 32, image_size: int = 28
    ):
        super().__init__()
        self.grid = (2 * hidden, image_size // 4, image_size // 4)
        self.from_latent = nn.Linear(latent_dim, 2 * hidden * (image_size // 4) ** 2)
        self.conv1 = nn.ConvTranspose2d(2 * hidden, hidden, 4, stride=2, padding=1)
        self.conv2 = nn.ConvTranspose2d(hidden, out_channels, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.from_latent(z).relu().unflatten(1, self.grid)  # (B, 2 hidden, S/4, S/4)
        h = self.conv1(h).relu()  # (B, hidden, S/2, S/2)
        return self.conv2(h)  # (B, out_channels, S, S)


class Autoencoder(nn.Module):
    """Encoder and decoder in a row. The result has names: reconstruction, z, loss."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> companion.autoencoder.AutoencoderOutput:
        z = self.encoder(x)
        reconstruction = self.decoder(z)
        return companion.autoencoder.AutoencoderOutput(
            reconstruction, z, mse(reconstruction, x)
        )


def new_autoencoder(d: int) -> Autoencoder:
    """An untrained autoencoder with a bottleneck of d numbers; same seed, same one."""
    torch.manual_seed(session.seed)
    encoder = Encoder(d, in_channels=channels, image_size=size)
    decoder = Decoder(d, out_channels=channels, image_size=size)
    return Autoencoder(encoder, decoder).to(device)


# %% [markdown]
# ## Train and look
# The loss is the mean squared error between what comes out and what went in; no labels are needed. One **training
# step** is four lines, always the same:
#
# 1. run the model and get the loss,
# 2. clear the gradients of the step before,
# 3. `backward()`: compute the gradient of the loss at every weight,
# 4. let the optimizer move the weights a little against the gradient.
#
# ### Exercise 1.3 · one training step  (easy, 5 minutes)
# `model(x)` gives a result whose `.loss` is to be minimised. Return the loss **detached**, so that nobody who keeps
# it keeps the graph of the whole step in memory.
#
# <details><summary>Hint</summary><code>optimizer.zero_grad()</code>, <code>loss.backward()</code>,
# <code>optimizer.step()</code>, in this order.</details>


# %%
def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step on the batch x; returns its loss, detached."""
    ### BEGIN SOLUTION
    loss = model(x).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
    ### END SOLUTION


train_step = check(train_step)

# %% [markdown]
# Around it goes a loop: shuffle, cut into batches, step. It is written out here once; afterwards `companion.fit` does the same
# with a history, resuming and several devices. The bottleneck has $d = 2$ numbers, so that the whole latent space can be drawn.
# You may press the stop button (■): the notebook goes on with what was trained so far.

# %%
model_2 = new_autoencoder(2)
optimizer = torch.optim.Adam(model_2.parameters(), lr=settings.lr)
shuffle = torch.Generator().manual_seed(session.seed)

losses, held_out = [], []
try:
    for _epoch in tqdm(range(settings.epochs_plane), unit="epoch"):
        order = torch.randperm(len(train), generator=shuffle)
        for start in range(0, len(train) - settings.batch_size + 1, settings.batch_size):
            x, _ = train.batch(order[start : start + settings.batch_size])
            losses.append(train_step(model_2, optimizer, x))
        with torch.no_grad():
            held_out.append((len(losses), model_2(x_test).loss.item() / variance))
except KeyboardInterrupt:
    print(f"Stopped after step {len(losses)}: going on with what was trained so far.")
_ = model_2.eval()

# %% tags=["hide-input"]
curve = torch.tensor([loss.item() for loss in losses]) / variance
fig, ax = plots.figure(6, 2.8)
ax.plot(
    curve.numpy(), color=plots.COLOURS["train"], linewidth=0.8, label="each training batch"
)
if held_out:
    ax.plot(
        *zip(*held_out, strict=True),
        "s--",
        color=plots.COLOURS["validation"],
        label="test images",
    )
ax.set(
    xlabel="step",
    ylabel="distortion",
    title="The loss falls fast, then slowly",
    ylim=(0, None),
)
ax.legend()
plots.show(
    fig,
    alt="The loss of the autoencoder with two latent numbers over its training steps: it "
    "falls steeply at first and slowly afterwards. The distortion of the test images, "
    "a point after each epoch, falls with it.",
)


# %%
@torch.no_grad()
def test_distortion(model: nn.Module) -> float:
    """Distortion on the test images, which training never saw."""
    return distortion(model(x_test).loss.item(), variance)


@torch.no_grad()
def reconstruct(model: nn.Module, x: Tensor) -> Tensor:
    """The rebuilt images; nothing keeps the decoder's numbers in [0, 1], so cut them to be shown."""
    return model(x).reconstruction.clamp(0, 1)


session.expect("distortion_2", test_distortion(model_2))
plots.show(
    plots.image_rows(
        {"x": x_test[:12], "d = 2": reconstruct(model_2, x_test[:12])},
        title="Two numbers often say which digit, and little more",
    ),
    alt="Twelve test digits above their reconstructions from two numbers: mostly a "
    "recognisable but blurred digit, the average of the digits that share those "
    "two numbers, sometimes another digit.",
)

# %% [markdown]
# Two numbers are few. What $z$ does not tell, the squared error makes the decoder average: chapter 00's mean image again, now the mean of images that
# land near the same point.
#
# ## More numbers, and PCA beside them
# `companion.fit` is the loop from above, made whole. Two more models, with $d = 16$ and $d = 64$:

# %%
models = {2: model_2}
histories = {}
for d in (16, 64):
    print(f"d = {d}")
    models[d] = new_autoencoder(d)
    histories[d] = companion.fit(
        models[d],
        train,
        validation=test,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=session.seed,
        device=device,
    )
histories[16]

# %% tags=["hide-input"]
plots.show(
    histories[16].plot(),
    alt="Training and held-out loss of the autoencoder with 16 latent numbers over "
    "the epochs: both fall, the held-out loss stays above the training loss by "
    "the end.",
)

# %% [markdown]
# At first the validation loss (that of the test images) lies *below* the training loss. The two are not measured alike: the training loss is an average
# over the whole epoch, from its worst step to its best, and the validation loss is taken at the end of the epoch.
#
# **PCA** is the best *linear* autoencoder: project each image onto the $d$ directions in which the training images vary most, and project back. No
# training loop is needed. With the pixels of an image as a row of $F$ numbers:
#
# 1. subtract the mean $\bar x$ of the training images;
# 2. let $X$ be the $(N, F)$ matrix of those differences, and $C = X^\top X / N$ their covariance, an $F \times F$ matrix. Its eigenvectors are the
#    directions, and its eigenvalues say how much the images vary along each;
# 3. keep the $d$ directions with the largest eigenvalues as the columns of a matrix $B$. Then $z = (x - \bar x) B$ is the bottleneck, and
#    $z B^\top + \bar x$ is the rebuilt image.
#
# ### Exercise 1.4 · PCA  (medium, 15 minutes)
# Rebuild the images `x` from `d` principal components that were fitted to `x_train`.
#
# <details><summary>Hint 1</summary><code>torch.linalg.eigh(C)</code> gives the eigenvalues from small to large and the eigenvectors as the
# <em>columns</em> of a matrix.</details>
# <details><summary>Hint 2</summary>Seven short lines: mean, centred, covariance, eigenvectors, basis, z, rebuilt.</details>


# %%
def pca_reconstruct(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    """x_train: (N, *image), x: (B, *image) -> x rebuilt from d numbers each, (B, *image)."""
    ### BEGIN SOLUTION
    mean = x_train.flatten(1).mean(0)
    centred = x_train.flatten(1) - mean  # (N, F)
    covariance = centred.T @ centred / len(centred)  # (F, F)
    _, directions = torch.linalg.eigh(covariance)  # columns, least variance first
    basis = directions[:, -d:]  # (F, d)
    z = (x.flatten(1) - mean) @ basis  # (B, d)
    return (z @ basis.T + mean).reshape(x.shape)
    ### END SOLUTION


pca_reconstruct = check(pca_reconstruct)

# %%
dimensions = [2, 4, 8, 16, 32, 64]
pca_images = {d: pca_reconstruct(x_train, x_test, d) for d in dimensions}
pca_curve = [
    distortion(mse(images, x_test).item(), variance) for images in pca_images.values()
]
learnt = {d: test_distortion(model) for d, model in models.items()}
for d, value in learnt.items():
    print(f"d = {d:>2}: autoencoder {value:.3f}   PCA {pca_curve[dimensions.index(d)]:.3f}")

# %%
session.expect("distortion_16", learnt[16])
session.expect("distortion_64", learnt[64])
for d in models:
    session.expect(f"pca_over_autoencoder_{d}", pca_curve[dimensions.index(d)] / learnt[d])

# %% tags=["hide-input"]
fig, ax = plots.figure(6, 3)
ax.plot(dimensions, pca_curve, "o--", color=plots.COLOURS["reference"], label="PCA")
ax.plot(
    list(learnt),
    list(learnt.values()),
    "s-",
    color=plots.COLOURS["train"],
    label="autoencoder",
)
ax.axhline(0.1, color="black", linewidth=0.7, label="asked for in Predict")
ax.set_xscale("log", base=2)
ax.set_xticks(dimensions, [str(d) for d in dimensions])
ax.set(
    xlabel="numbers per image, d",
    ylabel="test distortion",
    title="With few numbers, the learnt bottleneck loses less",
    ylim=(0, None),
)
ax.legend()
plots.show(
    fig,
    alt="Test distortion against the number of latent dimensions, for PCA and for the"
    " autoencoder: both fall; the autoencoder lies below PCA, most clearly at 2 "
    "and 16 dimensions.",
)

# %% tags=["hide-input"]
rows = {"x": x_test[:12]} | {
    f"d = {d}": reconstruct(model, x_test[:12]) for d, model in models.items()
}
rows["PCA 16"] = pca_images[16][:12]
plots.show(
    plots.image_rows(rows, title="What is kept in 2, 16 and 64 numbers"),
    alt="Five rows of the same twelve test digits: originals; reconstructions from 2,"
    " 16 and 64 numbers, ever sharper; and PCA with 16, with grey ghosts around "
    "the strokes.",
)

# %% [markdown]
# Compare with your prediction. Sixteen learnt numbers come out near 0.1 or below (the band above says how near), and PCA needs about twice as many to
# get there. PCA adds and subtracts fixed pictures, and its rebuilt digits have ghosts around them; the network can bend. With 64 numbers the two are
# close, and the band of their ratio includes 1. That is after these few epochs: we did not test here how much further the network gets with more (the
# first of the further experiments).
#
# ## The latent plane
# With $d = 2$ every image is a point that can be drawn. (The black frame is the part over which the decoder draws its grid on the right.) The model was
# never told a class, and yet:

# %% tags=["hide-input", "cover"]
with torch.no_grad():
    z_train, z_test = model_2.encoder(x_train), model_2.encoder(x_test)
low, high = z_train.quantile(0.02, dim=0), z_train.quantile(0.98, dim=0)
steps = torch.linspace(0, 1, 14, device=device)
# The top row has the largest second coordinate, as in the plot on the left.
across, down = torch.meshgrid(steps, steps.flip(0), indexing="xy")
grid = low + torch.stack([across.flatten(), down.flatten()], 1) * (high - low)  # (196, 2)
with torch.no_grad():
    decoded = model_2.decoder(grid)

fig, (left, right) = plots.figure(9.5, 4.3, columns=2, width_ratios=(1.15, 1))
plots.class_scatter(left, z_train, y_train, train.classes)
corners = torch.stack([low, high]).cpu().T  # where the grid on the right lies
left.plot(
    corners[0, [0, 1, 1, 0, 0]], corners[1, [0, 0, 1, 1, 0]], color="black", linewidth=1
)
left.set(xlabel="$z_1$", ylabel="$z_2$", title="Classes gather although no label was used")
sheet = (
    decoded.clamp(0, 1)
    .unflatten(0, (14, 14))
    .permute(2, 0, 3, 1, 4)
    .flatten(3)
    .flatten(1, 2)
)
plots.draw_image(right, sheet)
right.set_title("The decoder on a grid over that plane")
plots.show(
    fig,
    alt="Left: the latent plane with every training image as a point; points of one "
    "class lie together. Right: a 14 by 14 grid of decoded points, in which one "
    "digit changes gradually into the next.",
)

# %%
neighbours = torch.cdist(z_test, z_train).topk(10, largest=False).indices  # (N_test, 10)
guess = y_train[neighbours].mode(1).values
session.expect("class_from_two_numbers", (guess == y_test).float().mean())

# %% [markdown]
# The number printed last is how often the class of a test image is the commonest among its ten nearest training points in the plane (guessing would be
# right one time in ten). So two numbers hold much of the class. How much depends on the seed: the band is wide, and each training lays the plane out in
# its own way. (A band is computed as if such numbers were normally distributed, so this one even reaches beyond 1.)
#
# ## Walking from one image to another
# A point halfway between two images: halfway in *pixels* it is a double exposure. And halfway in the latent space?
#
# ### Exercise 1.5 · interpolation  (medium, 10 minutes)
# Give `steps` points on the straight line from `start` to `end`, both ends included. It has to work for latents of any
# shape: vectors now, grids of vectors from chapter 03 on.
#
# <details><summary>Hint 1</summary><code>torch.linspace(0, 1, steps, device=start.device)</code> gives the weights of
# <code>end</code>, on the device where the latents are.</details>
# <details><summary>Hint 2</summary>To multiply a weight of shape (steps,) with a latent of any shape, give it one axis of length
# 1 for each axis of the latent: <code>t.reshape(-1, *[1] * start.ndim)</code>.</details>


# %%
def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """start, end: the same shape (*latent) -> (steps, *latent)."""
    ### BEGIN SOLUTION
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    t = t.reshape(-1, *[1] * start.ndim)  # (steps, 1, ..., 1)
    return (1 - t) * start + t * end
    ### END SOLUTION


interpolate = check(interpolate)

# %%
first, last = (x_test[int((y_test == k).nonzero()[0])] for k in (4, 0))
with torch.no_grad():
    ends = models[16].encoder(torch.stack([first, last]))
    between = models[16].decoder(interpolate(ends[0], ends[1], 11))
plots.show(
    plots.image_rows(
        {"pixels": interpolate(first, last, 11), "latents, d = 16": between},
        title="Halfway in pixels is two digits; halfway in latents is one",
    ),
    alt="A 4 turning into a 0 in eleven steps. Mixing pixels shows both digits at "
    "once in the middle; mixing latents shows one shape whose strokes bend, by "
    "way of something like a 9.",
)

# %% [markdown]
# ## Does an autoencoder generate?
# To generate is to draw latents from some distribution and decode them. An autoencoder never said which distribution its latents have, so let us try
# three on the model with $d = 16$:
#
# * the standard normal $\mathcal{N}(0, I)$, as if the latents had it;
# * one Gaussian with the latents' own mean and covariance;
# * a **mixture** of 30 Gaussians fitted to the latents (by the EM algorithm, from scikit-learn).
#
# (To draw from a mixture is to choose one of the 30 by its weight, and then to draw from that one. To draw from a Gaussian with covariance $\Sigma$,
# multiply standard normal numbers by a matrix $L$ with $L L^\top = \Sigma$, which the Cholesky decomposition gives.)
#
# And a yardstick: how far is each new image from the *nearest training image*, in units of distortion? The decoder itself brings
# images nearer: below, held-out images come nearer by being rebuilt. So the fair comparison is with held-out images *after* they went through the same
# autoencoder.

# %%
n = min(1000, len(test))
generator = torch.Generator().manual_seed(session.seed)
with torch.no_grad():
    latents = models[16].encoder(x_train).cpu()
centre, covariance = latents.mean(0), torch.cov(latents.T)
mixture = GaussianMixture(30, tol=1e-2, reg_covar=1e-4, random_state=session.seed)
mixture.fit(latents[:5000].double().numpy())

drawn = {
    "N(0, I)": torch.randn(n, 16, generator=generator),
    "one Gaussian": centre
    + torch.randn(n, 16, generator=generator) @ torch.linalg.cholesky(covariance).T,
    "mixture of 30": torch.from_numpy(mixture.sample(n)[0]).float(),
}


def nearest_training(images: Tensor) -> float:
    """Mean squared distance per pixel to the nearest training image, over the variance."""
    distances = torch.cdist(images.flatten(1), x_train.flatten(1)).amin(1)
    return distances.square().mean().item() / images[0].numel() / variance


with torch.no_grad():
    generated = {
        name: models[16].decoder(z.to(device)).clamp(0, 1) for name, z in drawn.items()
    }
distance = {name: nearest_training(images) for name, images in generated.items()}
distance["all black"] = nearest_training(torch.zeros_like(x_test[:n]))
distance["held-out images"] = nearest_training(x_test[:n])
distance["held-out, rebuilt"] = nearest_training(reconstruct(models[16], x_test[:n]))
for name, value in distance.items():
    print(f"{name:<18} {value:.3f} from the nearest training image")

# %%
spread = latents.std(0)
print(f"latents: standard deviations {spread.min():.2f} to {spread.max():.2f},", end=" ")
print(f"the mean is {centre.norm():.2f} away from 0, correlations reach", end=" ")
print(f"{(torch.corrcoef(latents.T) - torch.eye(16)).abs().max():.2f}")
session.expect("distance_one_gaussian", distance["one Gaussian"])
session.expect("distance_mixture", distance["mixture of 30"])
session.expect("distance_rebuilt", distance["held-out, rebuilt"])

# %% tags=["hide-input"]
plots.show(
    plots.image_rows(
        {name: images[:: n // 12][:12] for name, images in generated.items()},
        title="The decoder is good where it was trained: the question is how to get there",
    ),
    alt="Three rows of twelve generated images. Points from N(0, I) decode to "
    "fragments and tangles; from one Gaussian to part digits, part fragments; "
    "from the mixture of 30 Gaussians mostly to readable digits.",
)

# %% [markdown]
# $\mathcal{N}(0, I)$ misses the latents, which have another mean, other spreads and correlations. What it decodes to is on average farther from any
# training image than a black picture is. One Gaussian has the right mean and covariance, and still many of its pictures are broken: it is one cloud,
# while the latents lie in clumps (as you saw them in the plane of $d = 2$). A mixture can follow the clumps, and its pictures are as near to training images as
# rebuilt real ones are.
#
# **Often written, not so.** "Autoencoders cannot generate new samples because their latent space is unstructured", says one of the [source
# reports](00_start_here.ipynb). The rows above say something more exact. The decoder makes digits of points that lie where the training latents lie,
# and $\mathcal{N}(0, I)$ does not lie there. A density *fitted to the latents afterwards* does, and here the more flexible one gave the better samples.
# Two roads lead on from here:
#
# * make the latents follow a distribution that we can sample from, in training: the variational autoencoder, [chapter 02](02_vae.ipynb);
# * leave them be, make them *discrete*, and fit a strong density afterwards: VQ-VAE and its transformer prior, chapters 03 to 08.
#
# The distance has a catch: a black image is nearer than a broken digit, and a copied training image is at distance zero. Look at
# pictures and numbers together.
#
# ## Proof: what you built is what the companion has
# The same weights and the same input go through both. Outputs, loss and every gradient must agree.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
theirs = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
ours = Autoencoder(Encoder(3), Decoder(3))
ours.load_state_dict(theirs.state_dict())
x = (torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2  # in [0, 1]

numbers = {}
for name, model in (("notebook", ours), ("companion", theirs)):
    output = model(x)
    output.loss.backward()
    gradient = torch.stack([p.grad.norm() for p in model.parameters()])
    numbers[name] = {
        "z": output.z.flatten().tolist(),
        "loss": output.loss.item(),
        "gradients": gradient.tolist(),
    }
for part in ("z", "loss", "gradients"):
    a, b = (torch.tensor(numbers[name][part]) for name in ("notebook", "companion"))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    print(f"{part:<10} agree:", True)
glue("proof.autoencoder", numbers["notebook"], display=False)

# %% tags=["nbval-check-output"]
outcomes = {}
for name, step in (("notebook", train_step), ("companion", companion.training.train_step)):
    torch.manual_seed(0)
    model = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    outcomes[name] = [step(model, sgd, x).item() for _ in range(3)]
torch.testing.assert_close(
    torch.tensor(outcomes["notebook"]),
    torch.tensor(outcomes["companion"]),
    rtol=1e-5,
    atol=1e-7,
)
print("three training steps agree:", True)
glue("proof.train_step", outcomes["notebook"], display=False)

some, other = (
    torch.arange(40.0).cos().reshape(10, 1, 2, 2),
    torch.arange(8.0).sin().reshape(2, 1, 2, 2),
)
rebuilt = pca_reconstruct(some, other, 2)
torch.testing.assert_close(
    rebuilt, companion.autoencoder.pca_reconstruct(some, other, 2), rtol=1e-4, atol=1e-5
)
glue("proof.pca", rebuilt.flatten().tolist(), display=False)
print("PCA agrees:", True)

a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])
assert torch.equal(interpolate(a, b, 5), companion.autoencoder.interpolate(a, b, 5))
glue("proof.interpolate", interpolate(a, b, 5).tolist(), display=False)
print("interpolation agrees:", True)

# %% [markdown]
# ## Play: move over the latent plane
# Drag the sliders and watch the cross and what the decoder makes of it. Look for a point where one digit turns into another, and for one far from all points.

# %%
explorers.latent_plane(model_2.decoder, z_train, y_train, train.classes)

# %% [markdown]
# (The picture of the grid further up shows the same for readers of the printed page.)
#
# ## What breaks, and why
# **Forgetting `zero_grad`.** Gradients add up over the steps, so each step goes where *all* batches so far pointed. The same model, the
# same batches, with and without:


# %%
def without_zero_grad(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor
) -> Tensor:
    loss = model(x).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


curves = {}
for name, step in (
    ("right", companion.training.train_step),
    ("without zero_grad", without_zero_grad),
):
    model = new_autoencoder(16)
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    batches = torch.arange(60 * 64).remainder(len(train)).reshape(60, 64)
    curves[name] = (
        torch.stack([step(model, adam, train.batch(rows)[0]) for rows in batches]).cpu()
        / variance
    )

# %% tags=["hide-input"]
fig, ax = plots.figure(6, 2.6)
ax.plot(curves["right"].numpy(), color=plots.COLOURS["train"], label="with zero_grad")
ax.plot(
    curves["without zero_grad"].numpy(),
    "--",
    color=plots.COLOURS["validation"],
    label="without",
)
ax.set(
    xlabel="step",
    ylabel="distortion",
    title="Gradients that pile up stall the training",
    ylim=(0, 1.6),
)
ax.legend()
plots.show(
    fig,
    alt="Two loss curves over 60 steps. With zero_grad the loss falls steadily; "
    "without it the loss falls at first, then swings and stays clearly higher.",
)

# %% [markdown]
# **A kernel that the stride does not divide.** With kernel 3 and stride 2, a transposed convolution covers some pixels by
# one window and others by two or four. With kernel 4 every pixel is covered equally often:

# %% tags=["nbval-check-output"]
cover = {}
for kernel_size, padding, extra in ((3, 1, 1), (4, 1, 0)):
    layer = nn.ConvTranspose2d(
        1, 1, kernel_size, 2, padding, output_padding=extra, bias=False
    )
    nn.init.ones_(layer.weight)  # every window writes ones: the output counts the windows
    with torch.no_grad():
        cover[kernel_size] = layer(torch.ones(1, 1, 7, 7))
    inside = cover[kernel_size][0, 0, 2:-2, 2:-2]
    print(
        f"kernel {kernel_size}: windows per pixel, away from the border:",
        sorted(set(inside.flatten().tolist())),
    )

# %% tags=["hide-input"]
fig, axes = plots.figure(5.5, 3.1, columns=2)
for ax, (kernel_size, count) in zip(axes, cover.items(), strict=True):
    plots.draw_image(ax, count[0] / 4)
    ax.set_title(f"kernel {kernel_size}, stride 2")
fig.suptitle("Windows over each pixel (white: four)")
plots.show(
    fig,
    alt="How many windows cover each pixel: with kernel 3 a checkerboard of one, two "
    "and four; with kernel 4 an even white inside a darker border.",
)

# %% [markdown]
# A network has to learn weights that cancel this pattern, and often some of it is left in the pictures: the *checkerboard artefact* (Odena et al. 2016).
#
# **Judging by the training images.** What was trained on comes back better than what was not. To compare the two sets fairly, each error is
# divided by the variance of its *own* set (chapter 00: the test digits have less ink):

# %%
test_variance = x_test.var(correction=0).item()
for d, model in models.items():
    with torch.no_grad():
        seen = model(x_train[: len(test)]).loss.item() / variance
        unseen = model(x_test).loss.item() / test_variance
    print(f"d = {d:>2}: training images {seen:.3f}   test images {unseen:.3f}")
    session.expect(f"unseen_over_seen_{d}", unseen / seen)

# %% [markdown]
# Every model rebuilds the fonts that it was trained on better than those of the test set. In this run the *ratio* of the two errors is largest with 16
# numbers; the bands of 16 and of 64 overlap widely, so their order may be chance. The *difference* of the errors is largest with 2. Say which of the
# two you mean.
#
# ## Pen and paper
# 1. Show that an autoencoder whose encoder and decoder are linear, trained to the minimum of the MSE, can do no better than PCA with the same $d$. Does
#    its latent space have to be the same as PCA's?
# 2. Three strided layers (kernel 3, stride 2, padding 1) take 28 to 14, 7 and 4. Which kernels and paddings of a transposed convolution with stride 2
#    take 4 back to 7? And with PyTorch's `output_padding=1`, which makes the result longer by one at one end? Which of them cover all pixels away from
#    the border equally often?
#
# <!-- ### BEGIN SOLUTION -->
# <details><summary>Answers</summary>
#
# 1. The rebuilt images lie in a space of at most $d$ dimensions (plus the mean). Among all such spaces the one spanned by the $d$ largest principal
#    directions has the least squared error (Eckart and Young 1936), which is PCA. The latents need not be PCA's: any invertible $d \times d$ matrix may
#    be put after the encoder and its inverse before the decoder.
# 2. With kernel $m$, padding $p$ and output padding $o$ the result has $(4 - 1) \cdot 2 - 2p + m + o = 6 + m + o - 2p$ pixels. For 7 without output
#    padding: kernel 3 with padding 1, kernel 5 with padding 2, and so on. These kernels are odd and so have the uneven cover shown above. With $o = 1$:
#    kernel 2 with padding 1, kernel 4 with padding 2, and so on, and their cover is even, as the stride divides the kernel.
# </details>
# <!-- ### END SOLUTION -->
#
# ## Summary
# * An encoder of strided convolutions squeezes an image into d numbers, a decoder of transposed convolutions rebuilds it, and the MSE trains both.
# * With few numbers the learnt bottleneck loses less than PCA with as many; with 64, after these few epochs, the two are close.
# * What the bottleneck does not hold, the squared error makes the decoder average.
# * The decoder makes good images of points where the training latents lie. Drawing from $\mathcal{N}(0, I)$ misses them; drawing
#   from a mixture fitted to them mostly does not. Chapter 02 makes the latents follow a known density from the start.
#
# **Further experiments.** Train the model with $d = 64$ four times as long: how far does it get from PCA? Train the one with $d = 2$
# three times as long: does the plane keep its layout? Start
# JupyterLab with `COMPANION_SEED=1`: does the plane look the same? Put
# `companion.ResNetEncoder` and `ResNetDecoder` into `companion.Autoencoder`, with a latent *grid*: what does interpolation do now?
#
# **References.** G. Hinton, R. Salakhutdinov: *Reducing the Dimensionality of Data with Neural Networks*, Science 2006.
# C. Eckart, G. Young: *The approximation of one matrix by another of lower rank*, 1936. A. Odena, V. Dumoulin, C. Olah:
# *Deconvolution and Checkerboard Artifacts*, Distill 2016. V. Dumoulin, F. Visin: *A guide to convolution arithmetic for deep
# learning*, 2016 (relationship 6 is exercise 1.1). S. Zhao: *VQ-VAE and Transformer*, 2023, section 1.1 (the sentence tested above).

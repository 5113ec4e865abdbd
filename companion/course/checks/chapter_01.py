"""Exercises of chapter 01: output sizes, the encoder, one training step, interpolation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.autoencoder import Autoencoder, AutoencoderOutput, Decoder, Encoder, interpolate, pca_reconstruct
from companion.backbones import conv_output_size
from companion.course.checks.core import (
    DIAGNOSTIC,
    Case,
    Exercise,
    Mistake,
    Observed,
    call,
    module_call,
    register,
)
from companion.training import train_step

CHAPTER = "01_autoencoder"


# Exercise 1.1 -------------------------------------------------------------------------------------------------------


def _sizes() -> Sequence[Case]:
    rows = [
        (28, 3, 2, 1),
        (7, 3, 2, 1),
        (28, 4, 2, 1),
        (9, 2, 3, 0),
        (32, 5, 4, 2),
        (5, 5, 1, 0),
        (11, 3, 1, 1),
        (11, 3, 3, 0),
    ]
    cases = [Case(f"size {s}, kernel {k}, stride {t}, padding {p}", (s, k, t, p)) for s, k, t, p in rows]
    return [*cases, Case("size 28, kernel 3, stride 2, no padding given", (28, 3, 2)), Case("size 9, kernel 4", (9, 4))]


_SIZE_MISTAKES = (
    Mistake(
        "no + 1",
        lambda s, k, t=1, p=0: (s + 2 * p - k) // t,
        "you count the steps between windows. There is one window more than there are steps: add 1.",
    ),
    Mistake(
        "padding on one side",
        lambda s, k, t=1, p=0: (s + p - k) // t + 1,
        "padding is added on both sides of the axis, so it counts twice.",
    ),
    Mistake(
        "rounded up",
        lambda s, k, t=1, p=0: -(-(s + 2 * p - k) // t) + 1,
        "you round up. A last window that does not fit whole is left out, so the division rounds down.",
    ),
    Mistake(
        "true division",
        lambda s, k, t=1, p=0: (s + 2 * p - k) / t + 1,
        "/ gives a float, and half windows. Use // to round down to a whole number.",
    ),
    Mistake(
        "kernel forgotten",
        lambda s, k, t=1, p=0: (s + 2 * p) // t + 1,
        "the first window already covers `kernel` positions; only the rest of the axis is left to step over.",
    ),
    Mistake(
        "+ 1 inside",
        lambda s, k, t=1, p=0: (s + 2 * p - k + 1) // t,
        "the + 1 stands outside the division: it counts the first window, which needs no step.",
    ),
    Mistake(
        "size over stride",
        lambda s, k, t=1, p=0: s // t,
        "size // stride is right only where kernel and padding happen to fit. Count where the window can stand.",
    ),
    Mistake(
        "padding forgotten",
        lambda s, k, t=1, p=0: (s - k) // t + 1,
        "padding is not used: the axis is `size + 2 * padding` long when the window slides over it.",
    ),
    Mistake(
        "stride forgotten",
        lambda s, k, t=1, p=0: s + 2 * p - k + 1,
        "the stride is not used: this is the number of windows one step apart.",
    ),
    Mistake(
        "brackets forgotten",
        lambda s, k, t=1, p=0: s + 2 * p - k // t + 1,
        "// binds tighter than + and −, so only the kernel is divided: put brackets around what is left to step over.",
    ),
    Mistake(
        "rounded to the nearest",
        lambda s, k, t=1, p=0: round((s + 2 * p - k) / t) + 1,
        "round() goes to the nearest whole number, sometimes up. Half a window is none: use //.",
    ),
    Mistake(
        "a whole number as a float",
        lambda s, k, t=1, p=0: float((s + 2 * p - k) // t + 1),
        "the number is right, but it is a float. A size is a Python int: use // on ints, or int(…).",
    ),
    Mistake(
        "padding taken away",
        lambda s, k, t=1, p=0: (s - 2 * p - k) // t + 1,
        "padding makes the axis longer, not shorter.",
    ),
    Mistake(
        "kernel written in",
        lambda s, k, t=1, p=0: (s + 2 * p - 3) // t + 1,
        "you take 3 for the kernel, whatever it is: use `kernel`.",
    ),
    Mistake(
        "the parts rounded",
        lambda s, k, t=1, p=0: (s + 2 * p) // t - k // t + 1,
        "you round each part by itself. Take the kernel from the length first, then divide once.",
    ),
    Mistake(
        "other defaults",
        lambda s, k, t=2, p=1: (s + 2 * p - k) // t + 1,
        "right where all four are given, but the defaults were changed: without them stride is 1 and padding 0.",
    ),
)


# Exercise 1.2 -------------------------------------------------------------------------------------------------------


def _encoder_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(1)
    image = {0: "x"}
    turned = torch.randn(3, 1, 8, 8, generator=g).transpose(2, 3)
    return [
        Case("a batch of five, 28×28", (torch.randn(5, 1, 28, 28, generator=g),), {"latent_dim": 2}, image),
        Case(
            "a batch of one, three channels, 12×12",
            (torch.randn(1, 3, 12, 12, generator=g),),
            {"latent_dim": 7, "in_channels": 3, "hidden": 5, "image_size": 12},
            image,
            seed=1,
        ),
        Case(
            "images that are not contiguous in memory",
            (turned,),
            {"latent_dim": 1, "hidden": 4, "image_size": 8},
            image,
            seed=2,
        ),
    ]


class _NoFirstRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x)).relu().flatten(1))
        return z


class _NoSecondRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x).relu()).flatten(1))
        return z


class _NoRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x)).flatten(1))
        return z


class _ReluOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class _SigmoidOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class _FlattenAll(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x).relu()).relu().flatten())
        return z


class _NoFlatten(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x).relu()).relu())
        return z


class _TanhOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class _Squeezed(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class _FixedSize(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x).relu()).relu().reshape(-1, 64 * 7 * 7))
        return z


class _ReluFirst(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.to_latent(self.conv2(self.conv1(x.relu()).relu()).flatten(1))
        return z


class _TrainingOnly(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if self.training else z.detach() * 0


class _Gelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(x))))
        z: Tensor = self.to_latent(h.flatten(1))
        return z


class _ChannelsLast(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu()
        z: Tensor = self.to_latent(h.permute(0, 2, 3, 1).flatten(1))
        return z


class _Detached(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu().detach()
        z: Tensor = self.to_latent(h.flatten(1))
        return z


class _FeaturesReturned(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(self.conv1(x).relu()).relu()
        return h.flatten(1)


_ENCODER_MISTAKES = (
    Mistake("no first ReLU", _NoFirstRelu, "there is no ReLU after the first convolution."),
    Mistake("no second ReLU", _NoSecondRelu, "there is no ReLU after the second convolution."),
    Mistake(
        "no ReLU at all",
        _NoRelu,
        "without a ReLU in between, two convolutions and a linear layer are one linear map: put one after each "
        "convolution.",
    ),
    Mistake(
        "ReLU on the latent",
        _ReluOnLatent,
        "the last layer's output is cut at 0, so half of the latent space could never be used. No ReLU after the "
        "linear layer.",
    ),
    Mistake(
        "sigmoid on the latent",
        _SigmoidOnLatent,
        "the latent is squashed into (0, 1). It may be any real number: nothing comes after the linear layer.",
    ),
    Mistake(
        "tanh on the latent",
        _TanhOnLatent,
        "the latent is squashed into (−1, 1). It may be any real number: nothing comes after the linear layer.",
    ),
    Mistake(
        "squeezed",
        _Squeezed,
        "squeeze() drops the batch axis when there is only one image: (1, d) becomes (d,). Leave it out.",
    ),
    Mistake(
        "sizes written in",
        _FixedSize,
        "64 * 7 * 7 is right for 28×28 images and 32 hidden channels only: flatten(1) is right for all.",
    ),
    Mistake("GELU", _Gelu, "another activation than asked for: a ReLU after each convolution."),
    Mistake(
        "the batch is flattened too",
        _FlattenAll,
        "flatten() without a start melts the batch into the features. Keep the first axis: flatten(1).",
    ),
    Mistake(
        "no flatten",
        _NoFlatten,
        "the linear layer wants (B, features), the convolution gives (B, channels, height, width): flatten(1) between.",
    ),
    Mistake(
        "channels last",
        _ChannelsLast,
        "the features arrive in another order: channels come first in PyTorch, so flatten without moving axes.",
    ),
    Mistake(
        "detached",
        _Detached,
        "the values are right, but nothing before the linear layer gets a gradient: remove the detach (or no_grad).",
    ),
    Mistake(
        "linear layer left out",
        _FeaturesReturned,
        "these are the flattened features. self.to_latent, the linear layer, still has to turn them into the latent.",
    ),
    Mistake(
        "ReLU before the convolution",
        _ReluFirst,
        "each ReLU stands before its convolution. It comes after: conv1, ReLU, conv2, ReLU.",
    ),
    Mistake(
        "in training only",
        _TrainingOnly,
        "in eval() it does something else than in training. An encoder is the same in both.",
    ),
)


# Exercise 1.3 -------------------------------------------------------------------------------------------------------


def _step_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(2)

    def batches(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.rand(shape, generator=g), torch.rand(shape, generator=g)

    return [
        Case("two steps on batches of three", batches(3, 1, 8, 8), seed=3),
        Case("two steps on batches of one", batches(1, 1, 8, 8), seed=4),
        Case("a model whose loss is another one", batches(2, 1, 8, 8), {"model": _Weighted}, seed=5),
    ]


class _Weighted(Autoencoder):
    """As a model with more than one term has it: the loss is not the mean squared error."""

    def forward(self, x: Tensor) -> AutoencoderOutput:
        out = super().forward(x)
        return AutoencoderOutput(out.reconstruction, out.z, 2 * out.loss + 0.1 * out.z.square().mean())


class _WatchedSGD(torch.optim.SGD):
    """SGD that notes in which order it is used; two mistakes that leave the same weights differ in it."""

    calls: list[str]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls.append("zero_grad")
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        self.calls.append("step")
        return super().step(closure)


def _two_steps(implementation: Any, case: Case) -> Observed:
    """Two steps from the same weights; what is left from the first would show in the second."""
    decoder = Decoder(2, hidden=3, image_size=8)
    model = case.build.get("model", Autoencoder)(Encoder(2, hidden=3, image_size=8), decoder)
    optimizer = _WatchedSGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer.calls = calls = []
    decoder.conv2.weight.register_hook(lambda _: calls.append("backward"))
    seen: Observed = {}
    for number, x in enumerate(case.arguments, 1):
        loss = implementation(model, optimizer, x.clone())
        seen[f"the loss returned by step {number}"] = loss
        seen[f"the loss of step {number} still hangs on the graph"] = isinstance(loss, Tensor) and loss.requires_grad
        seen |= {f"{name} after step {number}": p.detach().clone() for name, p in model.named_parameters()}
        seen[f"the model is in training mode after step {number}"] = model.training
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        seen[f"weights that want no gradient after step {number}"] = frozen
        if frozen:
            break
    seen[f"{DIAGNOSTIC}the order of the calls"] = calls
    return seen


def _no_zero_grad(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def _zero_after_backward(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


def _no_backward(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


def _step_first(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _no_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _loss_after(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    train_step(model, optimizer, x)
    with torch.no_grad():
        loss: Tensor = model(x).loss
    return loss


def _attached(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def _uphill(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    (-loss).backward()
    optimizer.step()
    return loss.detach()


def _no_grad(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _no_zero_grad(model, optimizer, x)


def _item(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    return train_step(model, optimizer, x).item()


def _backward_of_the_result(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    result = model(x)
    optimizer.zero_grad()
    result.backward()
    optimizer.step()
    return result.loss.detach()  # type: ignore[no-any-return]


def _step_between(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()
    return loss.detach()


def _own_error(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = (model(x).reconstruction - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _left_in_eval(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    model.eval()
    return train_step(model, optimizer, x)


def _frozen(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss = train_step(model, optimizer, x)
    model.requires_grad_(False)
    return loss


def _twice(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss = train_step(model, optimizer, x)
    optimizer.step()
    return loss


_STEP_MISTAKES = (
    Mistake(
        "no zero_grad",
        _no_zero_grad,
        "gradients add up from step to step: backward() adds to what is there. Call optimizer.zero_grad() before it.",
    ),
    Mistake(
        "zero_grad between backward and step",
        _zero_after_backward,
        "the gradients are thrown away between backward() and step(), so nothing moves. zero_grad() comes first.",
    ),
    Mistake(
        "no backward",
        _no_backward,
        "backward() is missing, so there are no gradients for optimizer.step() to use.",
    ),
    Mistake(
        "step before backward",
        _step_first,
        "the step comes before backward(), so without this batch's gradients. The order is zero_grad, backward, step.",
    ),
    Mistake(
        "no step",
        _no_step,
        "the gradients are computed, but the weights never move: optimizer.step() is missing, or its brackets.",
    ),
    Mistake(
        "a Python number",
        _item,
        ".item() waits for the device at every step, which is slow on a GPU. Return the tensor: loss.detach().",
    ),
    Mistake(
        "backward of the result",
        _backward_of_the_result,
        "model(x) gives a result with several fields. What has a backward() is its loss: model(x).loss.",
    ),
    Mistake(
        "loss measured after the step",
        _loss_after,
        "this is the loss after the update. Return the one that the step was made from; it comes for free.",
    ),
    Mistake(
        "loss still on the graph",
        _attached,
        "the loss returned still holds the whole graph of the step in memory: return loss.detach().",
    ),
    Mistake("uphill", _uphill, "the weights move up the loss: minimise the loss itself, not its negative."),
    Mistake(
        "under no_grad",
        _no_grad,
        "the loss is cut from the graph before backward(), by no_grad or by a detach() that comes too early: there is "
        "nothing to go back through.",
    ),
    Mistake("two steps for one gradient", _twice, "optimizer.step() is called twice for one backward()."),
    Mistake(
        "step between zero_grad and backward",
        _step_between,
        "optimizer.step() comes right after zero_grad(), when there is no gradient: nothing ever moves. backward() "
        "belongs between the two.",
    ),
    Mistake(
        "the error taken again",
        _own_error,
        "you compute the mean squared error yourself. A model knows what is to be minimised (later ones have more "
        "terms): model(x).loss.",
    ),
    Mistake(
        "left in eval()",
        _left_in_eval,
        "the model is left in eval(), so layers that behave otherwise in training (dropout, later codebooks) stand "
        "still. A training step leaves the mode alone.",
    ),
    Mistake(
        "frozen afterwards",
        _frozen,
        "after the step the weights no longer want a gradient (requires_grad), so that the next step cannot train "
        "them. Only what is returned is to be detached: loss.detach().",
    ),
)


# Exercise 1.4 -------------------------------------------------------------------------------------------------------


def _image_sets() -> Sequence[Case]:
    g = torch.Generator().manual_seed(4)

    def images(n: int, *shape: int) -> Tensor:
        spread = torch.linspace(0.2, 2, shape[-1])  # unequal variances, so that the order of the directions matters
        return 1 + torch.randn(n, *shape, generator=g) * spread

    turned = images(30, 2, 3, 4).transpose(2, 3)
    return [
        Case("images of 1×3×5, three directions", (images(40, 1, 3, 5), images(6, 1, 3, 5) + 0.5, 3)),
        Case("one image, one direction", (images(40, 1, 3, 5), images(1, 1, 3, 5), 1)),
        Case("images that are not contiguous in memory", (turned, turned[:4] - 0.5, 5)),
    ]


def _pca(
    x_train: Tensor,
    x: Tensor,
    d: int,
    *,
    mean_of: Tensor | None = None,
    centre_training: bool = True,
    subtract: bool = True,
    add: bool = True,
    pick: Callable[[Tensor, int], Tensor] = lambda directions, d: directions[:, -d:],
    moved_by: Callable[[Tensor, Tensor], Tensor] = lambda x, mean: mean,
) -> Tensor:
    """PCA with a place for each slip that the mistakes below make."""
    mean = (x_train if mean_of is None else mean_of).flatten(1).mean(0)
    centred = x_train.flatten(1) - mean * centre_training
    _, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = pick(directions, d)
    z = (x.flatten(1) - moved_by(x, mean) * subtract) @ basis
    return (z @ basis.T + mean * add).reshape(x.shape)


def _by_chance(x_train: Tensor, x: Tensor, d: int) -> Tensor:
    mean = x_train.flatten(1).mean(0)
    basis = torch.pca_lowrank(x_train.flatten(1), q=d)[2]
    return ((x.flatten(1) - mean) @ basis @ basis.T + mean).reshape(x.shape)


def _directions(x_train: Tensor) -> Tensor:
    centred = x_train.flatten(1) - x_train.flatten(1).mean(0)
    directions: Tensor = torch.linalg.eigh(centred.T @ centred / len(centred))[1]
    return directions


_PCA_MISTAKES = (
    Mistake(
        "least variance",
        lambda t, x, d: _pca(t, x, d, pick=lambda v, d: v[:, :d]),
        "these are the directions of *least* variance: eigh sorts from small to large, so take the last d.",
    ),
    Mistake(
        "rows for columns",
        lambda t, x, d: _pca(t, x, d, pick=lambda v, d: v[-d:].T),
        "eigh gives the directions as columns; you took rows: directions[:, -d:].",
    ),
    Mistake(
        "mean not subtracted",
        lambda t, x, d: _pca(t, x, d, subtract=False),
        "the directions were found around the mean, so subtract the mean from x before you project.",
    ),
    Mistake(
        "mean not added",
        lambda t, x, d: _pca(t, x, d, add=False),
        "what comes back is the difference from the mean: add the mean at the end.",
    ),
    Mistake(
        "mean of x",
        lambda t, x, d: _pca(t, x, d, mean_of=x),
        "the mean is that of x. Everything is fitted on x_train; x is only rebuilt.",
    ),
    Mistake(
        "covariance around zero",
        lambda t, x, d: _pca(t, x, d, centre_training=False),
        "the covariance is taken around zero, so its first direction is the mean itself. Centre x_train first.",
    ),
    Mistake(
        "no mean anywhere",
        lambda t, x, d: _pca(t, x, d, centre_training=False, subtract=False, add=False),
        "nothing is centred: take the mean of x_train away first, and add it back at the end.",
    ),
    Mistake(
        "mean neither subtracted nor added",
        lambda t, x, d: _pca(t, x, d, subtract=False, add=False),
        "the directions are those around the mean, but x is projected without it: subtract the mean, and add it after.",
    ),
    Mistake(
        "first rows",
        lambda t, x, d: _pca(t, x, d, pick=lambda v, d: v[:d].T),
        "V[:d] is right for the rows that svd gives. eigh gives columns, least variance first: directions[:, -d:].",
    ),
    Mistake(
        "fitted on x",
        lambda t, x, d: _pca(x, x, d),
        "everything is fitted on x, the images to rebuild. Mean and directions come from x_train.",
    ),
    Mistake(
        "one mean for all pixels",
        lambda t, x, d: _pca(t, x, d, mean_of=t.mean().expand(1, *t.shape[1:])),
        "x_train.mean() is one number. The mean image has one for each pixel: .mean(0).",
    ),
    Mistake(
        "the bottleneck itself",
        lambda t, x, d: (x.flatten(1) - t.flatten(1).mean(0)) @ _directions(t)[:, -d:],
        "these are the d numbers of the bottleneck. Go back to pixels: z @ basis.T, plus the mean.",
    ),
    Mistake(
        "eigh not unpacked",
        lambda t, x, d: torch.linalg.eigh(torch.cov(t.flatten(1).T))[:, -d:],
        "eigh gives two things, the eigenvalues and the eigenvectors: _, directions = torch.linalg.eigh(…).",
    ),
    Mistake(
        "one direction too many",
        lambda t, x, d: _pca(t, x, d + 1),
        "you keep d + 1 directions.",
    ),
    Mistake(
        "flattened result",
        lambda t, x, d: _pca(t, x, d).flatten(1),
        "the images come back as rows of numbers: reshape them to the shape of x.",
    ),
    Mistake(
        "x centred by its own mean",
        lambda t, x, d: _pca(t, x, d, moved_by=lambda x, mean: x.flatten(1).mean(0)),
        "x is centred by its own mean, and then gets that of x_train back. Subtract the mean of x_train in both.",
    ),
    Mistake(
        "pca_lowrank",
        _by_chance,
        "torch.pca_lowrank finds the directions only nearly, from random vectors: with another seed you get others. "
        "torch.linalg.eigh of the covariance finds them exactly.",
    ),
)


# Exercise 1.5 -------------------------------------------------------------------------------------------------------


def _lines() -> Sequence[Case]:
    g = torch.Generator().manual_seed(3)
    ends = {0: "start", 1: "end"}

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    a, b = pair(2, 3, 5)
    return [
        Case("two vectors of three numbers, five steps", (*pair(3), 5), gradient_of=ends),
        Case("two steps", (*pair(4), 2), gradient_of=ends),
        Case("latent grids with an axis of length 1", (*pair(1, 4, 1), 3), gradient_of=ends),
        Case("latent grids, not contiguous in memory", (a.transpose(0, 2), b.transpose(0, 2), 4), gradient_of=ends),
        Case(
            "latents on another device than the CPU", (torch.empty(3, device="meta"), torch.empty(3, device="meta"), 3)
        ),
    ]


def _t(start: Tensor, steps: int) -> Tensor:
    return torch.linspace(0, 1, steps, device=start.device)


def _weights(start: Tensor, t: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * start.ndim)


def _line(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    t = _weights(start, t)
    return (1 - t) * start + t * end


def _vectors_only(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _t(start, steps)[:, None]
    return (1 - t) * start + t * end


def _scaled_sum(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _weights(start, _t(start, steps))
    return start + t * end


def _on_the_sphere(start: Tensor, end: Tensor, steps: int) -> Tensor:
    t = _weights(start, _t(start, steps))
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = cosine.clamp(-1, 1).arccos()
    out: Tensor = (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()
    return out


_LINE_MISTAKES = (
    Mistake(
        "the end is left out",
        lambda a, b, n: _line(a, b, torch.arange(n, device=a.device) / n),
        "the last point stops short of `end`. With n points there are n − 1 gaps: torch.linspace(0, 1, n).",
    ),
    Mistake(
        "backwards",
        lambda a, b, n: interpolate(b, a, n),
        "the line runs from `end` to `start`: swap the two weights.",
    ),
    Mistake(
        "one point too many",
        lambda a, b, n: interpolate(a, b, n + 1),
        "there is one point too many: `steps` counts the points, both ends included.",
    ),
    Mistake(
        "inner points only",
        lambda a, b, n: interpolate(a, b, n + 2)[1:-1],
        "the two ends are missing: t starts at 0 and ends at 1.",
    ),
    Mistake(
        "vectors only",
        _vectors_only,
        "this works for vectors but not for grids: give t as many axes of length 1 as a latent has, "
        "t.reshape(-1, *[1] * start.ndim).",
    ),
    Mistake(
        "weights on the CPU",
        lambda a, b, n: _line(a, b, torch.linspace(0, 1, n)),
        "t is on the CPU, the latents are not: torch.linspace(0, 1, steps, device=start.device).",
    ),
    Mistake(
        "t not reshaped",
        lambda a, b, n: (1 - _t(a, n)) * a + _t(a, n) * b,
        "t has one axis, of length `steps`, and meets the latent's last axis. Give it an axis of its own in front: "
        "t.reshape(-1, *[1] * start.ndim).",
    ),
    Mistake(
        "a list",
        lambda a, b, n: [(1 - t) * a + t * b for t in torch.linspace(0, 1, n).tolist()],
        "this is a list of points. Put them into one tensor: torch.stack(points).",
    ),
    Mistake(
        "end to end",
        lambda a, b, n: torch.cat([(1 - t) * a + t * b for t in torch.linspace(0, 1, n).tolist()]),
        "torch.cat joins along an axis that is there already. A new axis for the steps: torch.stack.",
    ),
    Mistake(
        "steps on the last axis",
        lambda a, b, n: interpolate(a, b, n).movedim(0, -1),
        "the steps are on the last axis; they belong on the first: (steps, *latent).",
    ),
    Mistake(
        "end added to start",
        _scaled_sum,
        "start keeps its full weight all the way: at t = 1 you stand at start + end. Its weight is 1 − t.",
    ),
    Mistake(
        "along the sphere",
        _on_the_sphere,
        "this is spherical interpolation, along an arc. Asked for is the straight line, (1 − t)·start + t·end.",
    ),
    Mistake(
        "detached",
        lambda a, b, n: interpolate(a.detach(), b.detach(), n),
        "the values are right, but no gradient reaches the ends: remove the detach (or no_grad).",
    ),
    Mistake(
        "squeezed",
        lambda a, b, n: interpolate(a, b, n).squeeze(),
        "squeeze() also drops the latent's own axes of length 1: leave it out.",
    ),
)


def register_all() -> None:
    register(Exercise("conv_output_size", CHAPTER, conv_output_size, _sizes, _SIZE_MISTAKES, call))
    register(Exercise("Encoder", CHAPTER, Encoder, _encoder_cases, _ENCODER_MISTAKES, module_call(Encoder)))
    register(Exercise("train_step", CHAPTER, train_step, _step_cases, _STEP_MISTAKES, _two_steps))
    register(Exercise("pca_reconstruct", CHAPTER, pca_reconstruct, _image_sets, _PCA_MISTAKES, call))
    register(Exercise("interpolate", CHAPTER, interpolate, _lines, _LINE_MISTAKES, call))

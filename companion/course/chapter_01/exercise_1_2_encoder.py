"""Exercise 1.2, the encoder: two convolutions with ReLU and a linear layer, from images to latents."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.autoencoder import Encoder
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import module_call


def cases() -> Sequence[Case]:
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
        Case(
            "bright images", (50 * torch.randn(2, 1, 8, 8, generator=g),), {"latent_dim": 3, "image_size": 8}, image, 3
        ),
    ]


class _NoFirstRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x)).relu().flatten(1))


class _NoSecondRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x).relu()).flatten(1))


class _NoRelu(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x)).flatten(1))


class _ReluOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class _SigmoidOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class _FlattenAll(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x).relu()).relu().flatten())


class _NoFlatten(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x).relu()).relu())


class _TanhOnLatent(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class _Squeezed(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class _FixedSize(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x).relu()).relu().reshape(-1, 64 * 7 * 7))


class _ReluFirst(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.to_latent(self.conv2(self.conv1(x.relu()).relu()).flatten(1))


class _TrainingOnly(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if self.training else z.detach() * 0


def _with(
    activation: Callable[[Tensor], Tensor] = torch.relu,
    flatten: Callable[[Tensor], Tensor] = lambda h: h.flatten(1),
    image: Callable[[Tensor], Tensor] = lambda x: x,
) -> type[Encoder]:
    """The encoder with another activation, another way to flatten, or something done to the image first."""

    class Variant(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            h = activation(self.conv2(activation(self.conv1(image(x)))))
            return self.to_latent(flatten(h))

    return Variant


class _NewLayer(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        z: Tensor = nn.Linear(h.shape[1], self.to_latent.out_features)(h)
        return z


_OTHERS = (
    functional.leaky_relu,
    functional.elu,
    torch.sigmoid,
    torch.tanh,
    functional.silu,
    functional.relu6,
    torch.abs,
)


class _ChannelsLast(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu()
        return self.to_latent(h.permute(0, 2, 3, 1).flatten(1))


class _Detached(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu()).relu().detach()
        return self.to_latent(h.flatten(1))


class _FeaturesReturned(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(self.conv1(x).relu()).relu()
        return h.flatten(1)


MISTAKES = (
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
    Mistake(
        "GELU",
        _with(functional.gelu),
        "another activation than asked for: a ReLU after each convolution.",
        also=tuple(_with(other) for other in _OTHERS),
    ),
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
    Mistake(
        "ReLU on the image",
        _with(image=torch.relu),
        "the image itself goes through a ReLU first. ReLUs come after the convolutions only.",
    ),
    Mistake(
        "flattened from axis 2",
        _with(flatten=lambda h: h.flatten(2)),
        "flatten(2) keeps the channels apart. The linear layer wants (B, features): flatten(1).",
    ),
    Mistake(
        "height and width exchanged",
        _with(flatten=lambda h: h.transpose(2, 3).flatten(1)),
        "height and width are exchanged before flattening: flatten without moving axes.",
    ),
    Mistake(
        "the image shifted",
        _with(image=lambda x: x - 0.5),
        "the image is changed before the first convolution (shifted or scaled). It goes in as it is.",
    ),
    Mistake(
        "a layer made in forward",
        _NewLayer,
        "a layer that is made in forward has new random weights at every call, and nobody trains them: self.to_latent "
        "is there already.",
    ),
)

EXERCISE = Exercise(
    name="Encoder",
    chapter="01_autoencoder",
    reference=Encoder,
    cases=cases,
    mistakes=MISTAKES,
    run=module_call(Encoder),
)

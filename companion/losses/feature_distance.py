"""How far apart two images are in the features of a network, instead of in their pixels (chapter 09).

MSE forgives blur: pixel by pixel, a blurred image is nearer to the original than a sharp one that is off by one pixel.
Features of a network respond to edges and texture, so blur costs more there. A model that is trained on this distance
beside MSE has a reason to draw edges.

Followed through the shapes, for 16 grey images and one tap with 96 channels: images [16, 1, 28, 28] → features
[16, 96, 14, 14], normalised over the 96 → squared differences, summed over channels, [16, 14, 14] → averaged over
positions, [16] → averaged over images. :func:`feature_distance` goes from features to [16]; :class:`FeatureDistance`
has the network that makes them.
"""

import copy
import difflib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    brief_kind,
    check_about_unit,
    check_between,
    check_fits,
    check_flag,
    check_instance,
    check_module,
    check_number,
    check_same_device,
    check_same_shape,
    check_tensor,
    is_about_shapes,
)
from companion._devices import at_least_float32
from companion.classifier import load_classifier


def feature_distance(
    features_hat: Sequence[Tensor],
    features: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    epsilon: float = 1e-4,
) -> Tensor:
    """The distance of each image to its reconstruction, of the features of both (Zhang et al. 2018, eq. 1).

    d = Σ_l 1/(h_l w_l) Σ_hw Σ_c w_lc (f̂_lhwc − f_lhwc)², each f divided by its length over the channels, which is
    √(‖f‖² + ε²). With √‖f‖² the gradient would be NaN where all features at a position are 0, as those of black pixels
    can be. (A ReLU just before the tap would hide that; another layer would not.) Features much shorter than ε count as
    none.

    Args:
        features_hat: f̂_l for each tap l.
        features: f_l for each tap l.
        weights: w_l for each tap; None: 1 everywhere.
        epsilon: ε.

    Shapes:
        features_hat, features: (B, C_l, *positions) each; weights: (C_l,) each → (B,), in float32 at least.

    Raises:
        ValueError: they are not as many, or the shapes or types are others.
    """
    check_number("epsilon", epsilon, above=0)
    _check_features(features_hat, features, weights)
    distances = []
    for i, (f_hat, f) in enumerate(zip(features_hat, features, strict=True)):
        differences = (_of_length_1(f_hat, epsilon) - _of_length_1(f, epsilon)).square()  # (B, C_l, *positions)
        if weights is not None:
            differences = differences * weights[i].to(differences.dtype).reshape(-1, *[1] * (f.ndim - 2))
        distances.append(differences.sum(1).reshape(len(f), -1).mean(1))  # (B, *positions) → (B,)
    return torch.stack(distances).sum(0)  # over taps: (L, B) → (B,)


class FeatureDistance(nn.Module):
    """The distance of two batches of images in the features of a fixed network (Zhang et al. 2018, eq. 1).

    d(x̂, x) = Σ_l 1/(h_l w_l) Σ_hw Σ_c w_lc (f̂_lhwc − f_lhwc)², where f_l are the features at tap l, divided by their
    length over the channels at each position. Squared differences are summed over channels, averaged over positions and
    summed over taps (:func:`feature_distance`); the result is averaged over images. The weights w_l are 1, or the
    "heads" of LPIPS, which were fitted to human judgements. (The paper multiplies the features by weights and squares
    the product, so w_lc is the square of its weight, as in its published heads.)

    The network is copied and frozen: the copy stays in eval mode, also after ``train()``, and its parameters get no
    gradient. The gradient passes through it to ``x_hat``.

    Args:
        network: takes images and has the layers in ``taps``. What it returns is not used.
        taps: names of layers, as in ``network.named_modules()``, whose outputs are the features. Each runs once in a
            pass and gives a tensor (B, C, *positions).
        weights: w_l ≥ 0 for each tap, (C_l,); None: 1 everywhere.
        mean: subtracted from each channel of the images, if the network wants it so.
        std: what each channel is divided by then.
        repeat_grey: give a network for colour images with one channel, three times the same.
        epsilon: ε, in the length √(‖f‖² + ε²).

    Shapes:
        x_hat, x: (B, C, H, W), the same shape → 0-dim. Never computed in half precision, under autocast neither.

    Raises:
        ValueError: an argument is out of range; the network has no such layer (with the names that are nearest); the
            images have different shapes, other channels or another type than the network; or x is far outside [0, 1]
            beside a ``mean`` or ``std`` of images in [0, 1].
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str],
        weights: Sequence[Tensor] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        repeat_grey: bool = False,
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        check_module("network", network)
        _check_taps(taps, network)
        check_flag("repeat_grey", repeat_grey)
        check_number("epsilon", epsilon, above=0)
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.taps = tuple(taps)
        self.repeat_grey = repeat_grey
        self.epsilon = epsilon
        for i, weight in enumerate(_checked_weights(weights, len(self.taps))):
            self.register_buffer(f"weight_{i}", weight)  # (C_l,) or None
        self.register_buffer("mean", _per_channel("mean", mean))  # (C, 1, 1) or None
        self.register_buffer("std", _per_channel("std", std, above=0))
        self._of_unit_range = any(given and max(given) <= 1 for given in (mean, std))  # statistics of images in [0, 1]

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.per_image(x_hat, x).mean()

    def per_image(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The distance of each image to its own reconstruction.

        Shapes:
            x_hat, x: (B, C, H, W) → (B,).

        Raises:
            ValueError: the shapes or types are others.
        """
        check_tensor("x", x, shape=("B", "C", "H", "W"))
        check_tensor("x_hat", x_hat, shape=tuple(x.shape))
        check_same_device("x_hat", x_hat, "x", x)
        if self._of_unit_range:
            check_about_unit("x", x)
        with torch.autocast(x.device.type, enabled=False):
            features_hat, features = self._features("x_hat", x_hat), self._features("x", x)
            return feature_distance(features_hat, features, self._weights(), epsilon=self.epsilon)

    def pooled(self, x: Tensor) -> Tensor:
        """The features at the last tap, averaged over positions: for a Fréchet distance.

        Shapes:
            x: (B, C, H, W) → (B, C_l).

        Raises:
            ValueError: the shape or type is another, or a number is NaN or infinite.
        """
        check_tensor("x", x, shape=("B", "C", "H", "W"), finite=True)
        if self._of_unit_range:
            check_about_unit("x", x)
        with torch.autocast(x.device.type, enabled=False):
            return self._features("x", x)[-1].flatten(2).mean(2)

    def train(self, mode: bool = True) -> Self:
        """As any module; the network in it stays in eval mode."""
        check_flag("mode", mode)
        super().train(mode)
        self.network.eval()
        return self

    def _features(self, name: str, images: Tensor) -> list[Tensor]:
        """The features at each tap, (B, C_l, *positions)."""
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        if images.dtype in (torch.float16, torch.bfloat16) and like is not None:
            images = images.to(like.dtype)  # a reconstruction that was made under autocast
        check_fits(name, images, like, of="the network")
        images = self._prepared(name, images if like is None else images.to(like.dtype))
        try:
            return _outputs(self.network, self.taps, images)
        except RuntimeError as error:
            if is_about_shapes(error):
                raise ValueError(self._other_shape(name, images, str(error))) from error
            raise

    def _other_shape(self, name: str, images: Tensor, said: str) -> str:
        """What to say where the network does not take the images."""
        convolutions = (part.in_channels for part in self.network.modules() if isinstance(part, nn.Conv2d))
        got, want = images.shape[1], next(convolutions, images.shape[1])  # the first one sees the images, as a rule
        if got == want:
            return f"{name}: got shape {tuple(images.shape)}, want images that the network takes ({said})"
        way = ": repeat_grey=True" if (got, want) == (1, 3) else ""
        return f"{name}: got {_channels(got)}, want {want} as the network takes{way}"

    def _prepared(self, name: str, images: Tensor) -> Tensor:
        if self.repeat_grey and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        for statistics in (self.mean, self.std):
            if statistics is not None and len(statistics) not in (1, images.shape[1]):
                way = ": repeat_grey=True" if images.shape[1] == 1 and len(statistics) == 3 else ""
                raise ValueError(
                    f"{name}: got {_channels(images.shape[1])}, want {len(statistics)} as mean and std have{way}"
                )
        if self.mean is not None:
            images = images - self.mean
        return images if self.std is None else images / self.std

    def _weights(self) -> list[Tensor] | None:
        weights = [getattr(self, f"weight_{i}") for i in range(len(self.taps))]
        return None if weights[0] is None else weights


def classifier_distance(data: str) -> FeatureDistance:
    """The distance in the features of a classifier that comes with the package: "glyphs", "emoji", "mnist" or
    "fashion-mnist".

    The taps are its five blocks. The network is small, knows only such images, and needs no file from elsewhere. It
    refuses an x far outside [0, 1].

    Raises:
        ValueError: there is no classifier for ``data``.
    """
    layers = load_classifier(data).layers  # without the classifier's check of its images: x_hat may leave [0, 1]
    distance = FeatureDistance(layers, [name for name, _ in layers.named_children()])
    distance._of_unit_range = True  # as the images that the classifier was trained on
    return distance


def _channels(n: int) -> str:
    return "1 channel" if n == 1 else f"{n} channels"


def _of_length_1(f: Tensor, epsilon: float) -> Tensor:
    f = at_least_float32(f)
    return f / (f.square().sum(1, keepdim=True) + epsilon**2).sqrt()  # the length: (B, 1, *positions)


def _check_features(features_hat: Any, features: Any, weights: Any) -> None:
    _check_one_a_tap("features", features)
    for i, f in enumerate(features):
        check_tensor(f"features[{i}]", f, shape=("B" if i == 0 else len(features[0]), "C", "*positions"))
        check_same_device(f"features[{i}]", f, "features[0]", features[0])
    _check_one_a_tap("features_hat", features_hat, len(features))
    for i, (f_hat, f) in enumerate(zip(features_hat, features, strict=True)):
        check_same_shape(f"features_hat[{i}]", f_hat, f"features[{i}]", f)
    if weights is not None:
        _check_one_a_tap("weights", weights, len(features))
        for i, (weight, f) in enumerate(zip(weights, features, strict=True)):
            check_tensor(f"weights[{i}]", weight, shape=(f.shape[1],))
            check_same_device(f"weights[{i}]", weight, f"features[{i}]", f)


def _check_one_a_tap(name: str, values: Any, taps: int | None = None) -> None:
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_sequence or not values or (taps is not None and len(values) != taps):
        count = f"{len(values)} of them" if is_sequence else brief(values)
        many = "at least one tensor" if taps is None else f"{taps}" if taps > 1 else "one"
        raise ValueError(f"{name}: got {count}, want a sequence of tensors, {many}, one for each tap")


def _check_taps(taps: Any, network: nn.Module) -> None:
    if isinstance(taps, str) or not isinstance(taps, Sequence) or not taps:
        raise ValueError(f"taps: got {brief(taps)}, want a sequence of names of layers")
    names = [name for name, _ in network.named_modules() if name]
    for tap in taps:
        if not isinstance(tap, str) or tap not in names:
            near = difflib.get_close_matches(str(tap), names, n=4, cutoff=0.4) or names[:4]
            raise ValueError(
                f"taps: got {brief(tap)}, want names of layers of the network, such as {', '.join(map(repr, near))}"
            )
    if len({*taps}) < len(taps):
        raise ValueError(f"taps: got {brief(tuple(taps))}, want each name once")


def _checked_weights(weights: Any, taps: int) -> Sequence[Tensor | None]:
    if weights is None:
        return [None] * taps
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != taps:
        raise ValueError(f"weights: got {brief(weights)}, want None or {taps} tensors (C,), one for each tap")
    for weight in weights:
        check_tensor("weights", weight, shape=("C",), finite=True)
        check_between("weights", weight, 0, torch.inf)
    return [weight.detach().clone() for weight in weights]


def _per_channel(name: str, values: Sequence[float] | None, *, above: float | None = None) -> Tensor | None:
    if values is None:
        return None
    check_instance(name, values, (list, tuple), "a number for each channel, or None")
    if not values:
        raise ValueError(f"{name}: got {brief(values)}, want a number for each channel")
    for value in values:
        check_number(name, value, above=above)
    return torch.tensor(values, dtype=torch.get_default_dtype()).reshape(-1, 1, 1)


def _outputs(network: nn.Module, taps: Sequence[str], images: Tensor) -> list[Tensor]:
    """What the layers called ``taps`` give in one pass of ``network``.

    A copy of each: the next layer may change its input in place, as ``nn.ReLU(inplace=True)`` does.
    """
    seen: dict[str, list[Any]] = {tap: [] for tap in taps}
    with _watched(network, seen):
        network(images)
    for tap, outputs in seen.items():
        if len(outputs) != 1:
            raise ValueError(f"taps: got {tap!r}, which ran {len(outputs)} times in a pass, want layers that run once")
        if not isinstance(outputs[0], Tensor) or outputs[0].ndim < 2:
            raise ValueError(f"taps: got {tap!r}, which gave {brief_kind(outputs[0])}, want layers with (B, C, …)")
    return [seen[tap][0] for tap in taps]


@contextmanager
def _watched(network: nn.Module, seen: dict[str, list[Any]]) -> Iterator[None]:
    """In this block, what the layers named in ``seen`` give is noted there; afterwards they are as before."""

    def note(tap: str) -> Any:
        return lambda _module, _inputs, output: seen[tap].append(
            output.clone() if isinstance(output, Tensor) else output
        )

    handles = [network.get_submodule(tap).register_forward_hook(note(tap)) for tap in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

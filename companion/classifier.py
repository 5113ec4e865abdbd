"""A small classifier, and what it says about generated images (chapters 07 and 08)."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion._arguments import (
    check_choice,
    check_codes,
    check_finite,
    check_fits,
    check_images,
    check_instance,
    check_number,
    check_place,
    check_size,
    check_tensor,
    unchecked_values,
)
from companion._devices import as_float64
from companion._modes import evaluating
from companion._pytrees import pytree
from companion.configured import Configured
from companion.data import ImageSet
from companion.data.images import chosen, pixel_variance, share_of_images
from companion.metrics import frechet_distance
from companion.pretrained import names, pretrained
from companion.quantizers import nearest_code

_SIDES = (14, 64)  # in pixels, of images that are about 28×28
_ENOUGH = 50  # images, to tell a classifier from chance
_MOST_SHARED = 0.05  # of the images of two sets; a few equal ones are found in real sets too


@pytree
@dataclass(frozen=True)
class ClassifierOutput:
    """What a classifier returns: ``logits`` (B, num_classes), and the ``features`` (B, F) that they are linear in."""

    logits: Tensor
    features: Tensor


class Classifier(Configured, nn.Module):
    """A small convolutional network for images of about 28×28 pixels.

    Five 3×3 convolutions, the mean over all positions, and a linear layer.

    Args:
        in_channels: C, 1 for grey images and 3 for colour.
        num_classes: how many classes it tells apart.
        width: channels of the first convolution; the later ones have 2, 3, 4 and 4 times as many. F is 4·width.
        dropout: the probability that a feature is set to 0 in training.

    Shapes:
        x: (B, C, H, W) in [0, 1] → ``ClassifierOutput``.

    Raises:
        ValueError: an argument is out of range; x has another shape or type, or lies outside [0, 1].
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, width: int = 24, dropout: float = 0.3) -> None:
        super().__init__()
        check_size("in_channels", in_channels)
        check_size("num_classes", num_classes, least=2)
        check_size("width", width)
        check_number("dropout", dropout, least=0, below=1)
        self.in_channels = in_channels
        self.layers = nn.Sequential(
            _block(in_channels, width),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 3 * width),
            _block(3 * width, 4 * width, stride=2),
            _block(4 * width, 4 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> ClassifierOutput:
        check_images("x", x, shape=("B", self.in_channels, "H", "W"))
        check_fits("x", x, self.head.weight)
        features = self.layers(x).mean((2, 3))  # (B, 4·width, H/4, W/4) → (B, F)
        return ClassifierOutput(self.head(self.dropout(features)), features)


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),  # the batch norm has a bias
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def load_classifier(data: str) -> Classifier:
    """The trained classifier of "glyphs", "emoji", "mnist" or "fashion-mnist" that comes with the package.

    Its accuracy on test images is what ``scores("glyphs-classifier")["scores"]["accuracy_test"]`` gives, with
    ``from companion.pretrained import scores``.

    Raises:
        ValueError: there is no classifier for ``data``.
    """
    kind = "-classifier"
    known = [name.removesuffix(kind) for name in names() if name.endswith(kind)]
    check_choice("data", data, known)
    model = pretrained(data + kind)
    assert isinstance(model, Classifier)
    return model


@torch.no_grad()
def recognise(classifier: Classifier, images: Tensor, *, batch_size: int = 500) -> ClassifierOutput:
    """Logits and features of any number of images, in eval mode, batch by batch.

    Images far from 28×28 pixels are recognised with a warning.

    Shapes:
        images: (n, C, H, W) in [0, 1] → logits (n, num_classes), features (n, F).

    Raises:
        ValueError: an argument has the wrong type, the images have a shape that the classifier does not take, or it
            makes NaN of them.
    """
    check_instance("classifier", classifier, Classifier, "a Classifier")
    check_images("images", images, shape=("B", classifier.in_channels, "H", "W"))
    check_size("batch_size", batch_size)
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in images.shape[2:]):
        warnings.warn(
            f"images: got {images.shape[2]}×{images.shape[3]} pixels, want about 28×28: a classifier of such images "
            "sees other features in these",
            stacklevel=3,
        )
    like = classifier.head.weight  # on its device, and in its precision
    batches = [images[start : start + batch_size].to(like) for start in range(0, len(images), batch_size)]
    with evaluating(classifier), unchecked_values():  # the images were checked above, all of them
        outputs = [classifier(batch) for batch in batches]
    logits, features = torch.cat([out.logits for out in outputs]), torch.cat([out.features for out in outputs])
    for made in (features, logits):
        check_finite("classifier", made)
    return ClassifierOutput(logits, features)


@dataclass(frozen=True)
class SampleQuality:
    """What :func:`evaluate_samples` measured on n images.

    Attributes:
        accuracy: the share recognised as the class of their label; NaN without labels.
        shares: (num_classes,), the share of the images recognised as each class.
        frechet: Fréchet distance between the features of the images and of held-out images.
        frechet_floor: the same for as many training images in place of the images: what real images reach.
        nearest: squared distance to the nearest training image, averaged over the images and divided by the variance of
            the training images; 0 for copies.
        nearest_floor: the same for held-out images. A value of ``nearest`` far below it means that images are copied.
    """

    accuracy: float
    shares: Tensor
    frechet: float
    frechet_floor: float
    nearest: float
    nearest_floor: float

    @property
    def entropy(self) -> float:
        """The entropy of the shares, in nats."""
        return float(-torch.xlogy(self.shares, self.shares).sum())

    @property
    def classes(self) -> float:
        """exp(entropy), the effective number of classes: that many equally frequent classes have the same entropy."""
        return float(torch.tensor(self.entropy).exp())


@torch.no_grad()
def evaluate_samples(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    train: ImageSet,
    held_out: ImageSet,
    batch_size: int = 500,
) -> SampleQuality:
    """How good generated images are: recognised by a classifier, and compared with training and held-out images.

    A Fréchet distance depends on the number of images. Both distances are therefore taken from equally many images of
    each set: n, or as many as the smallest set has. Those are drawn with a fixed seed.

    Args:
        labels: the class that each image was generated for.
        train: the images that the generative model was trained on.
        held_out: images that neither the generative model nor the classifier was trained on.

    Shapes:
        images: (n, C, H, W) in [0, 1], n ≥ 2; labels: (n,) int64 → ``SampleQuality``.

    Raises:
        ValueError: images or labels have the wrong type, or do not fit the image sets; the two sets share
            images, or differ in their classes; or the classifier has another number of classes.
    """
    check_instance("train", train, ImageSet, "an ImageSet")
    check_instance("held_out", held_out, ImageSet, "an ImageSet")
    check_images("images", images)
    if tuple(images.shape[1:]) != train.shape or train.shape != held_out.shape or len(images) < 2:
        raise ValueError(
            f"images: got shape {tuple(images.shape)}, want (n, {', '.join(map(str, train.shape))}) as in train and "
            f"held_out ({', '.join(map(str, held_out.shape))}), n ≥ 2"
        )
    if held_out is train:
        raise ValueError("held_out: got the set that is train, want images that the generator has not seen")
    shared = max(share_of_images(held_out, train), share_of_images(train, held_out))
    if shared > _MOST_SHARED:
        raise ValueError(
            f"held_out: got a set that shares {shared:.0%} of its images, or of train's, with train, want images that "
            "the generator has not seen"
        )
    if train.split == "test" and held_out.split == "train":
        warnings.warn("train: got the split 'test', held_out the split 'train': are they swapped?", stacklevel=2)
    if held_out.classes != train.classes:
        raise ValueError("held_out: got other classes than train has, or in another order, want the same")
    check_instance("classifier", classifier, Classifier, "a Classifier")
    if classifier.head.out_features != len(train.classes):
        raise ValueError(
            f"classifier: got one of {classifier.head.out_features} classes, want the {len(train.classes)} of train"
        )
    if labels is not None:
        check_tensor("labels", labels, shape=(len(images),), dtype=torch.int64)
        check_codes("labels", labels, classifier.head.out_features)
    out = recognise(classifier, images, batch_size=batch_size)
    predicted = out.logits.argmax(1)  # (n,)
    n = min(len(images), len(train), len(held_out))
    seen, unseen = (part.batch(_some(n, len(part)))[0] for part in (train, held_out))  # (n, C, H, W) each
    of_seen, of_unseen = (recognise(classifier, x, batch_size=batch_size) for x in (seen, unseen))
    _warn_of_a_stranger(of_unseen.logits.argmax(1).cpu(), held_out.labels.cpu()[_some(n, len(held_out))])
    variance = pixel_variance(train.images)
    if variance == 0:
        raise ValueError("train: got images that are all of one grey value, want some to measure distances by")
    return SampleQuality(
        accuracy=float("nan") if labels is None else as_float64(predicted == labels.to(predicted.device)).mean().item(),
        shares=torch.bincount(predicted, minlength=out.logits.shape[1]).cpu().double() / len(images),
        frechet=frechet_distance(out.features[_some(n, len(images))], of_unseen.features),
        frechet_floor=frechet_distance(of_seen.features, of_unseen.features),
        nearest=nearest_distances(images, train.images).mean().item() / variance,
        nearest_floor=nearest_distances(unseen, train.images).mean().item() / variance,
    )


def _warn_of_a_stranger(predicted: Tensor, labels: Tensor) -> None:
    """A classifier that hardly knows the classes of real images says nothing about generated ones."""
    chance = labels.bincount().max().item() / len(labels)  # of one that always says the most frequent class
    right = (predicted == labels).double().mean().item()
    if len(labels) >= _ENOUGH and right < chance + 0.1 * (1 - chance):
        warnings.warn(
            f"classifier: got one that recognises {right:.0%} of held_out, hardly more than chance ({chance:.0%}), "
            "want one that was trained on such images, with the classes in this order",
            stacklevel=4,
        )


@torch.no_grad()
def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """For each image, the mean squared difference per pixel to the training image nearest to it: 0 for a copy.

    Divided by the variance of the training pixels, it is in the units of ``distortion``. The training images are
    compared 5,000 at a time, and never all N × M distances are held at once.

    Shapes:
        images: (N, C, H, W), training: (M, C, H, W), floating point in [0, 1] or uint8 as in an ``ImageSet`` → (N,).

    Raises:
        ValueError: the images differ in size, have another type, lie outside [0, 1], or there are none.
    """
    for name, value in (("images", images), ("training", training)):
        if isinstance(value, Tensor) and value.dtype == torch.uint8:  # not check_images, which wants floats
            check_tensor(name, value, shape=("N", "C", "H", "W"), dtype=torch.uint8)
        else:
            check_images(name, value)
        check_place(name, value, movable=True)
    if images.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"training: got images of {tuple(training.shape[1:])}, want {tuple(images.shape[1:])} as in images"
        )
    x = _pixels(images)  # (N, C·H·W)
    least = x.new_full((len(x),), math.inf)
    for start in range(0, len(training), 5_000):
        candidates = _pixels(training[start : start + 5_000]).to(x)
        nearest = candidates[nearest_code(x, candidates)]
        least = torch.minimum(least, (x - nearest).square().mean(1))
    return least


def _some(n: int, length: int) -> Tensor:
    """``n`` of ``length`` indices, drawn with a fixed seed.

    Neither the first n nor every k-th image would do, since a set can be ordered: of every fifth MNIST test image 12.1%
    are threes and 7.9% sixes; of all, 10.1% and 9.6%.
    """
    return torch.tensor(chosen(length, n, 0, "images"), device="cpu")  # where any tensor can be indexed by it


def _pixels(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C·H·W), floating point."""
    return images.flatten(1).float().div_(255) if images.dtype == torch.uint8 else images.flatten(1)

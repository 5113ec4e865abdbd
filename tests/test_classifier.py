"""The classifier, and the evaluation of generated images with it."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import companion
from companion.classifier import (
    Classifier,
    SampleQuality,
    evaluate_samples,
    load_classifier,
    nearest_distances,
    recognise,
)
from companion.data import ImageSet, load
from companion.metrics import frechet_distance
from companion.pretrained import names, scores

TRAIN, HELD_OUT = load("glyphs", "train", size=600), load("glyphs", "test", size=300)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load_classifier("glyphs")


def small(**options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(width=6, **options).eval()


def everything(images: ImageSet) -> torch.Tensor:
    return images.batch(range(len(images)))[0]


# The network


def test_logits_are_linear_in_the_features():
    model = small(num_classes=7)
    out = model(torch.rand(5, 1, 28, 28))
    assert out.features.shape == (5, 24)
    assert out.logits.shape == (5, 7)
    assert torch.allclose(out.logits, out.features @ model.head.weight.T + model.head.bias, atol=1e-6)


@pytest.mark.parametrize(("in_channels", "size"), [(1, 28), (3, 32), (3, 17)])
def test_grey_and_colour_of_any_size(in_channels, size):
    model = small(in_channels=in_channels)
    assert model(torch.rand(1, in_channels, size, size)).logits.shape == (1, 10)
    assert model(torch.rand(3, in_channels, size, size + 4)).logits.shape == (3, 10)


def test_an_image_gets_the_same_logits_in_any_batch():
    """In eval mode a batch norm uses the statistics of training, so that an image does not depend on its batch."""
    model = small()
    x = torch.rand(8, 1, 28, 28)
    together = model(x).logits
    assert torch.allclose(torch.cat([model(one[None]).logits for one in x]), together, atol=1e-5)
    model.train()  # the wrong version
    assert not torch.allclose(model(x[:2]).logits, together[:2], atol=1e-2)


def test_dropout_leaves_the_features_alone_and_is_off_in_eval_mode():
    model = Classifier(width=4, dropout=0.9)
    x = torch.rand(4, 1, 28, 28)
    model.train()
    first, second = model(x), model(x)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


@pytest.mark.parametrize("options", [{"width": 0}, {"num_classes": 0}, {"in_channels": 0}])
def test_sizes_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: got 0"):
        Classifier(**options)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(2, 3, 28, 28), r"float32 of shape \(2, 3, 28, 28\)"),
        (torch.zeros(1, 28, 28), r"float32 of shape \(1, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_batch_of_grey_images_is_refused(x, got):
    with pytest.raises(ValueError, match=rf"x: got {got}.*want floating point"):
        small()(x)


def test_a_saved_classifier_is_the_same_again(tmp_path, device):
    model = small(in_channels=3, num_classes=4, dropout=0.1)
    model.train()(torch.rand(4, 3, 28, 28))  # so that the norms have gathered something
    companion.save(model.eval(), tmp_path / "c.safetensors")
    again = companion.load(tmp_path / "c.safetensors").to(device)
    x = torch.rand(2, 3, 28, 28)
    assert torch.equal(again(x).logits, model(x).logits)


def test_many_images_are_recognised_batch_by_batch_as_all_at_once(device):
    model, x = small().train(), everything(HELD_OUT)[:10].to(device)
    parts = recognise(model, x, batch_size=3)
    assert model.training
    whole = model.eval()(x)
    assert torch.allclose(parts.logits, whole.logits, atol=1e-5)
    assert torch.allclose(parts.features, whole.features, atol=1e-5)
    assert not parts.logits.requires_grad


# Samples, evaluated


def test_held_out_images_are_recognised_and_at_no_distance_from_themselves(classifier):
    quality = evaluate_samples(classifier, everything(HELD_OUT), HELD_OUT.labels, train=TRAIN, held_out=HELD_OUT)
    assert quality.accuracy > 0.98
    assert quality.shares.tolist() == pytest.approx(torch.bincount(HELD_OUT.labels).div(300).tolist(), abs=0.02)
    assert quality.frechet == pytest.approx(0, abs=1e-6)
    assert quality.frechet_floor > 0.01
    assert quality.nearest == quality.nearest_floor > 0.05
    assert 9 < quality.classes < 10


def test_training_images_are_seen_to_be_copies(classifier):
    part = TRAIN.subset(300)
    quality = evaluate_samples(classifier, everything(part), part.labels, train=part, held_out=HELD_OUT)
    assert quality.nearest == 0
    assert quality.frechet == pytest.approx(quality.frechet_floor)
    assert quality.accuracy > 0.98


def test_noise_is_far_from_everything(classifier):
    noise = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    quality = evaluate_samples(classifier, noise, torch.arange(300) % 10, train=TRAIN, held_out=HELD_OUT)
    assert quality.accuracy < 0.2
    assert quality.frechet > 10 * quality.frechet_floor
    assert quality.nearest > 2 * quality.nearest_floor
    assert quality.classes < 5


def test_one_digit_over_and_over_is_one_class(classifier):
    """Every sample is recognised as what was asked for, and none is real: it is the shares that tell."""
    one = TRAIN.subset(1)
    quality = evaluate_samples(classifier, everything(one).expand(50, -1, -1, -1), train=TRAIN, held_out=HELD_OUT)
    assert math.isnan(quality.accuracy)
    assert quality.shares[one.labels[0]] == 1
    assert (quality.entropy, quality.classes) == (0, 1)
    assert quality.frechet > 3 * quality.frechet_floor


def test_effective_number_of_classes_by_hand():
    shares = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    quality = SampleQuality(float("nan"), shares, 0, 0, 0, 0)
    assert quality.entropy == pytest.approx(math.log(2))
    assert quality.classes == pytest.approx(2)


@pytest.mark.parametrize("order", ["sorted", "periodic"])
def test_real_images_are_drawn_from_the_whole_of_each_set(classifier, order):
    """Held-out images in an order: the first are of one class, or every third is of one of three classes."""
    rank = HELD_OUT.labels.argsort()
    if order == "periodic":
        rank = rank.reshape(3, 100).T.flatten()
    ordered = ImageSet(order, "test", HELD_OUT.images[rank], HELD_OUT.labels[rank], HELD_OUT.classes)
    images = everything(TRAIN)[:100]
    quality = evaluate_samples(classifier, images, train=TRAIN, held_out=ordered)
    ours, whole = (recognise(classifier, x).features for x in (images, everything(ordered)))
    draw = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}  # where the features are
    drawn = [frechet_distance(ours, whole[torch.randperm(300, **draw)[:100]]) for _ in range(20)]
    assert quality.frechet < max(drawn)
    wrong = whole[:100] if order == "sorted" else whole[::3]
    assert frechet_distance(ours, wrong) > 1.5 * max(drawn)


def test_distances_are_taken_from_equally_many_images(classifier):
    """More images than held-out ones: a Fréchet distance of 600 beside 300 would be another quantity."""
    images = everything(TRAIN)
    quality = evaluate_samples(classifier, images, train=TRAIN, held_out=HELD_OUT)
    half = evaluate_samples(classifier, images[:300], train=TRAIN, held_out=HELD_OUT)
    assert quality.frechet_floor == half.frechet_floor
    unequal = frechet_distance(
        recognise(classifier, images).features, recognise(classifier, everything(HELD_OUT)).features
    )
    assert quality.frechet > 1.02 * unequal  # the wrong version


def test_distance_is_in_units_of_the_variance_of_training_pixels(classifier):
    images = everything(HELD_OUT)
    quality = evaluate_samples(classifier, images, train=TRAIN, held_out=HELD_OUT)
    wanted = nearest_distances(images, everything(TRAIN)).mean() / everything(TRAIN).double().var(correction=0)
    assert quality.nearest == pytest.approx(wanted.item())


def test_judging_leaves_the_classifier_as_it_was():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = everything(HELD_OUT)[:40]
    first = evaluate_samples(model, images, train=TRAIN, held_out=HELD_OUT, batch_size=7)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    second = evaluate_samples(model.eval(), images, train=TRAIN, held_out=HELD_OUT)
    assert first.frechet == pytest.approx(second.frechet, rel=1e-3)
    assert torch.equal(first.shares, second.shares)


def test_images_and_labels_that_do_not_fit_are_refused():
    images = everything(HELD_OUT)[:10]
    for bad in (images[:, :, :27], images[0], images[:1]):
        with pytest.raises(ValueError, match=r"images: got .*shape"):
            evaluate_samples(small(), bad, train=TRAIN, held_out=HELD_OUT)
    for labels in (torch.zeros(9, dtype=torch.int64), torch.zeros(10)):
        with pytest.raises(ValueError, match=r"labels: got .* want int64 of shape \(10,\)"):
            evaluate_samples(small(), images, labels, train=TRAIN, held_out=HELD_OUT)
    with pytest.raises(ValueError, match="images: got uint8"):
        evaluate_samples(small(), HELD_OUT.images[:10], train=TRAIN, held_out=HELD_OUT)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"held_out": TRAIN}, "held_out: got the set that is train"),
        ({"held_out": replace(HELD_OUT, classes=HELD_OUT.classes[::-1])}, "held_out: got other classes"),
        ({"classifier": small(num_classes=7)}, "classifier: got one of 7 classes, want the 10 of train"),
    ],
)
def test_sets_and_a_classifier_that_do_not_fit_each_other_are_refused(given, says):
    arguments = {"classifier": small(), "images": everything(HELD_OUT)[:10], "train": TRAIN, "held_out": HELD_OUT}
    with pytest.raises(ValueError, match=says):
        evaluate_samples(**arguments | given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_samples_are_evaluated_in_half_precision_as_well(dtype):
    images = everything(HELD_OUT)[:20]
    quality = evaluate_samples(small().to(dtype), images, train=TRAIN, held_out=HELD_OUT)
    assert quality.shares.sum() == pytest.approx(1)
    assert quality.frechet >= 0
    assert recognise(small().to(dtype), images).logits.dtype == dtype


# The shipped ones by name


def test_a_classifier_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"data: got 'cifar10', want one of .*glyphs"):
        load_classifier("cifar10")


def test_weights_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"name: got 'mnist-oracle', want one of .*glyphs-classifier") as error:
        companion.pretrained("mnist-oracle")
    assert all(name in str(error.value) for name in names())


# Distances to the nearest training image


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_distances_are_those_to_every_training_image_at_the_least():
    images, training = uniform(7, 2, 4, 3), uniform(40, 2, 4, 3, seed=1)
    wanted = (images[:, None] - training).double().square().mean((2, 3, 4)).amin(1)
    assert nearest_distances(images, training).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_a_copy_is_at_no_distance_at_all():
    """‖x‖² − 2 x·y + ‖y‖² leaves a remainder, which a mean over copies would report as a distance."""
    training = uniform(3000, 1, 28, 28)
    copies = training[::100]
    assert nearest_distances(copies, training).tolist() == [0] * 30
    wrong = torch.cdist(copies.flatten(1), training.flatten(1)).amin(1)
    assert wrong.max() > 0


def test_the_nearest_is_found_in_every_part_of_a_large_set():
    training = uniform(11_003, 1, 2, 2)
    where = [0, 4_999, 5_000, 9_999, 10_000, 11_002]
    assert nearest_distances(training[where] + 1e-4, training).max() < 1.1e-8


def test_bytes_are_read_as_numbers_from_0_to_1():
    held = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.rand(5, 1, 4, 4)
    assert torch.equal(nearest_distances(images, held), nearest_distances(images, held.float() / 255))
    assert torch.equal(nearest_distances(held[:5], held), torch.zeros(5))


@pytest.mark.cpu_only("tells tensors apart by their addresses")
def test_nearest_distances_take_bounded_memory():
    """No table of all distances, and no second copy of the training images as floats."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != training_at:
                self.numbers = max(self.numbers, out.numel())
            return out

    images, training = torch.rand(900, 1, 16, 16), torch.zeros(30_000, 1, 16, 16, dtype=torch.uint8)
    training_at = training.untyped_storage().data_ptr()
    with Largest() as largest:
        nearest_distances(images, training)
    assert 900 * 256 < largest.numbers <= 5_000 * 256 < 900 * 30_000


def test_nearest_distances_refuse_images_that_do_not_fit():
    images = torch.zeros(3, 1, 4, 4)
    for training in (torch.zeros(3, 1, 4, 5), torch.zeros(0, 1, 4, 4), torch.zeros(3, 16)):
        with pytest.raises(ValueError, match="training: got"):
            nearest_distances(images, training)
    with pytest.raises(ValueError, match="training: got int64"):
        nearest_distances(images, images.long())


def test_images_far_from_the_size_of_the_classifiers_are_recognised_with_a_warning():
    model, x = small(), torch.rand(2, 1, 100, 28)
    with pytest.warns(UserWarning, match="images: got 100×28 pixels, want about 28×28"):
        assert torch.equal(recognise(model, x).logits, model(x).logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recognise(model, torch.rand(2, 1, 32, 32)).logits.shape == (2, 10)


def test_a_held_out_set_that_shares_images_with_train_is_refused(classifier):
    def joined(*parts: ImageSet) -> ImageSet:
        pixels, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        return replace(HELD_OUT, images=pixels, labels=labels)

    images = everything(HELD_OUT)[:50]
    some = TRAIN.subset(100)
    for train, held_out, share in (
        (TRAIN, joined(HELD_OUT, TRAIN.subset(60)), "17%"),  # 60 of 360
        (some, joined(HELD_OUT, some), "100%"),  # of the images of train
    ):
        with pytest.raises(ValueError, match=f"held_out: got a set that shares {share} of its images, or of train's"):
            evaluate_samples(classifier, images, train=train, held_out=held_out)
    few = joined(HELD_OUT, TRAIN.subset(10))  # 3% of one, 2% of the other
    assert evaluate_samples(classifier, everything(TRAIN.subset(50)), train=TRAIN, held_out=few).nearest == 0


def test_a_classifier_of_other_images_is_said(classifier):
    train, held_out = load("glyphs", "train", size=80), load("glyphs", "test", size=80)
    images = train.batch(range(60))[0]
    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match=r"classifier: got one that recognises \d+% of held_out, hardly more than chance"
    ):
        evaluate_samples(Classifier(1, 10), images, train=train, held_out=held_out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality = evaluate_samples(classifier, images, train=train, held_out=held_out)
        few = evaluate_samples(Classifier(1, 10), images[:4], train=train, held_out=held_out)  # too few to tell
    assert quality.nearest == 0
    assert few.nearest == 0


def test_the_accuracy_of_a_classifier_is_where_its_docstring_says():
    assert "from companion.pretrained import scores" in (companion.classifier.load_classifier.__doc__ or "")
    assert scores("glyphs-classifier")["scores"]["accuracy_test"] > 0.9

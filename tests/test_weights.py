"""The weights that the package ships: small, made by a command, and as good as the file beside them says."""

import json
import math
import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import companion
from companion.classifier import Classifier, evaluate_samples, load_classifier
from companion.data import ImageSet, load
from companion.data.real import data_folder
from companion.pretrained import WEIGHTS, names, pretrained, scores
from companion.priors import Prior
from experiments import weights

NAMES = names()
PRIORS = [name for name in NAMES if isinstance(pretrained(name), Prior)]
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
REAL = Path(os.environ.get("COMPANION_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "datasets"))
N = 1_000  # images of each kind in the measurements made here; those in the files are of more


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """``images(data)``: N training and N test images; skips where they are not there."""

    @cache
    def some(data: str) -> tuple[ImageSet, ImageSet]:
        where = None if data in ("glyphs", "emoji") else root(data)
        held_out = weights.SETTINGS[f"{data}-classifier"].get("test_images", N)  # of emoji there are fewer
        return load(data, "train", size=N, root=where), load(data, "test", size=min(N, held_out), root=where)

    @cache
    def root(data: str) -> Path:
        folder = FOLDERS[data]
        if any((data_folder() / folder / "raw").glob("*ubyte*")):  # a download that failed leaves the folder empty
            return data_folder()
        if not (REAL / folder / "raw").is_dir():
            pytest.skip(f"{data}: no {folder}/raw in COMPANION_DATA, nor in {REAL} (COMPANION_TEST_DATA)")
        copy = tmp_path_factory.mktemp("data")  # torchvision extracts beside the archives
        shutil.copytree(REAL / folder, copy / folder, copy_function=shutil.copyfile)
        return copy

    return some


def parts(name: str) -> tuple[str, str]:
    data, _, kind = name.rpartition("-")
    return data, kind


# The files


def test_all_that_has_a_recipe_is_shipped_and_nothing_else():
    assert sorted(weights.SETTINGS) == NAMES
    stems = {path.stem for path in WEIGHTS.iterdir()}
    assert sorted(stems) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_and_says_how_it_was_made(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 1_000_000
    document = scores(name)
    assert document["command"] == f"python -m experiments.weights {name}"
    assert document["settings"] == json.loads(json.dumps(weights.SETTINGS[name]))
    assert {"scores", "seconds", "machine", "torch"} <= document.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_ready_to_use(name):
    model = pretrained(name)
    assert not model.training
    state = model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}
    assert all(torch.equal(value, state[key]) for key, value in pretrained(name).state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_carries_a_checksum(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # load says where there is none
        assert pretrained(name).state_dict()


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_goes_with_its_tokenizer_and_no_other(name):
    data, _ = parts(name)
    prior = pretrained(name)
    companion.check_identity(pretrained(f"{data}-{weights.SETTINGS[name]['tokenizer']}"), prior)
    other = {"glyphs": "mnist", "mnist": "glyphs"}[data]
    with pytest.raises(ValueError, match="tokenizer: got the one with identity"):
        companion.check_identity(pretrained(f"{other}-{weights.SETTINGS[name]['tokenizer']}"), prior)


def test_load_classifier_gives_a_classifier_of_the_data():
    for data in ("glyphs", "emoji", "mnist", "fashion-mnist"):
        assert isinstance(load_classifier(data), Classifier)


# The scores


def test_the_real_mnist_test_set_is_recognised():
    assert scores("mnist-classifier")["scores"]["accuracy_test"] >= 0.985
    assert scores("glyphs-classifier")["scores"]["accuracy_test"] >= 0.985


SHARPER = ("emoji-vqvae", "emoji-perceptualvqvae", "emoji-adversarialvqvae")


def test_the_tokenizers_of_emoji_differ_in_their_loss_alone():
    first, *others = (weights.SETTINGS[name] for name in SHARPER)
    lost = ("perceptual_weight", "adversarial_weight")
    assert [tuple(weights.SETTINGS[name][key] > 0 for key in lost) for name in SHARPER] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    for other in others:
        assert {**other, **{key: first[key] for key in lost}} == first
    assert len({json.dumps(pretrained(name).config, sort_keys=True, default=str) for name in SHARPER}) == 1


def test_a_perceptual_loss_and_a_discriminator_make_sharper_pictures_of_larger_error():
    mse, perceptual, adversarial = (scores(name)["scores"] for name in SHARPER)
    assert mse["sharpness"] < perceptual["sharpness"] < adversarial["sharpness"]
    assert mse["mse"] < min(perceptual["mse"], adversarial["mse"])
    assert max(perceptual["feature_distance"], adversarial["feature_distance"]) < mse["feature_distance"]
    assert max(perceptual["frechet"], adversarial["frechet"]) < mse["frechet"]


def test_the_file_of_a_tokenizer_says_how_its_discriminator_ended():
    assert {"discriminator", "logits_real", "logits_fake"} <= scores("emoji-adversarialvqvae")["ended"].keys()
    assert "discriminator" not in scores("emoji-perceptualvqvae")["ended"]


@pytest.mark.parametrize("name", PRIORS)
def test_samples_are_recognised_nearly_as_well_as_what_the_tokenizer_rebuilds(name):
    """At temperature 1, from the whole distribution; the ceiling is the accuracy on reconstructed test images."""
    here = scores(name)["scores"]
    assert here["samples"] >= 1_000
    assert here["ratio"] >= 0.85
    assert here["ratio"] == pytest.approx(here["accuracy_samples"] / here["accuracy_reconstructions"], abs=1e-4)
    assert min(here["shares"]) > 0.05
    assert here["nearest"] > 0.5 * here["nearest_floor"]  # they are not copies
    assert here["bits"] < here["bits_without_class"] < pretrained(name).length * math.log2(pretrained(name).num_codes)


# How far a score measured on N images may lie from the one in the file: about four standard deviations. For a
# distortion those of a mean over N images (1.4% each for MNIST) and of the variance of N training images together.
RELATIVE = {"distortion": 0.08, "perplexity": 0.05, "usage": 0.05, "bits": 0.05, "entropy": 0.05}
# Of these the test images are the same, all that there are.
RELATIVE |= dict.fromkeys(("mse", "feature", "ssim", "sharpness", "checkerboard", "colour"), 0.01)


def check_score(key: str, here: Any, there: Any) -> None:
    kind = key.partition("_")[0]
    if kind == "accuracy":  # four standard deviations of a share of N, and two images
        assert here == pytest.approx(there, abs=4 * math.sqrt(there * (1 - there) / N) + 2 / N), key
    elif kind == "shares":
        assert here == pytest.approx(there, abs=4 * math.sqrt(0.1 * 0.9 / N)), key
    elif kind == "ratio":
        assert here == pytest.approx(there, abs=0.03), key
    elif kind == "classes":
        assert here == pytest.approx(there, abs=0.3), key
    elif kind == "frechet":  # real images, N of each kind: 0.33 ± 0.08 (MNIST), 1.88 ± 0.29 (glyphs); less of more
        assert here == pytest.approx(there, abs=0.4 + 0.3 * there), key
    elif kind == "nearest":  # among fewer training images the nearest is farther
        assert here > there, key
    elif kind == "samples":
        assert N == here <= there
    else:
        assert here == pytest.approx(there, rel=RELATIVE[kind]), key


@pytest.mark.parametrize("name", NAMES)
def test_what_the_file_says_is_measured_again(name, images):
    data, kind = parts(name)
    train, test = images(data)
    options = {"samples": N} if name in PRIORS else {}
    measured = weights.KINDS[kind][1](pretrained(name), train, test, weights.SETTINGS[name], **options)
    there = scores(name)["scores"]
    assert measured.keys() == there.keys()
    for key, value in measured.items():
        check_score(key, value, there[key])


@pytest.mark.parametrize("name", PRIORS)
def test_no_class_and_guidance_work(name, images):
    """Without a class, samples are of every class; guided, they are recognised no worse."""
    data, _ = parts(name)
    train, test = images(data)
    prior, eyes = pretrained(name), load_classifier(data)
    tokenizer = pretrained(f"{data}-{weights.SETTINGS[name]['tokenizer']}")
    generator = torch.Generator().manual_seed(0)
    beside = {"train": train.subset(200), "held_out": test.subset(200)}
    free = evaluate_samples(eyes, tokenizer.decode(prior.sample(200, generator=generator)), **beside)
    assert free.classes > 8
    labels = torch.arange(200) % 10
    codes = prior.sample(200, labels, guidance=2.0, generator=generator)
    guided = evaluate_samples(eyes, tokenizer.decode(codes), labels, **beside)
    assert guided.accuracy > scores(name)["scores"]["accuracy_samples"] - 0.05


# The command

TINY = {"train_images": 300, "batch_size": 100, "stages": [(1, 1e-3), (1, 1e-4)]}


@pytest.mark.parametrize("kind", sorted({parts(name)[1] for name in NAMES}))
def test_a_recipe_gives_the_same_weights_again(kind, tmp_path):
    name = next(f"{data}-{kind}" for data in ("glyphs", "emoji") if f"{data}-{kind}" in NAMES)
    settings = {**weights.SETTINGS[name], **TINY}
    for folder in ("first", "second"):
        torch.rand(3)  # what was drawn before does not matter
        weights.make(name, settings, tmp_path / folder)
    first, second = (tmp_path / folder / f"{name}.safetensors" for folder in ("first", "second"))
    again = companion.load(second).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in companion.load(first).state_dict().items())
    assert companion.load(first).config == pretrained(name).config
    document = json.loads(first.with_suffix(".json").read_text(encoding="utf-8"))
    assert document["settings"] == json.loads(json.dumps(settings))

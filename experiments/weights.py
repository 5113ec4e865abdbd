"""Train the weights that the package ships, and measure them: ``python -m experiments.weights NAME``.

Each is made from its seed and the settings below alone, and is written to ``companion/weights``: ``NAME.safetensors``,
and ``NAME.json`` with its scores, how it was made, and where. A prior learns the codes of the tokenizer that is there,
and all are judged by the classifier that is there: classifier first, then tokenizer, then prior. ``--measure`` only
measures again what is there.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion.checkpoint import written_whole
from companion.classifier import Classifier, evaluate_samples, load_classifier, recognise
from companion.course.session import default_device, machine
from companion.data import ImageSet, load
from companion.data.images import chosen
from companion.metrics import CodeUsage, distortion, frechet_distance, mse
from companion.pretrained import WEIGHTS, pretrained
from companion.priors import Prior, prior_bits
from companion.training import Examples
from experiments.common import plain
from experiments.reconstructions import Training, measures

Settings = Mapping[str, Any]

# stages: (epochs, learning rate), one after the other
_CLASSIFIER = {"train_images": 60_000, "batch_size": 128, "stages": [(4, 2e-3), (2, 2e-4)], "seed": 0}
_VQVAE = {
    **{"train_images": 60_000, "num_codes": 64, "dim": 8, "hidden": 32, "decay": 0.95},
    **{"batch_size": 128, "stages": [(4, 2e-3), (1, 3e-4)], "seed": 0},
}
_PRIOR = {
    **{"train_images": 60_000, "tokenizer": "vqvae", "dim": 64, "layers": 4, "heads": 4, "label_dropout": 0.1},
    **{"batch_size": 128, "stages": [(2, 2e-3), (5, 1e-3), (2, 3e-4), (1, 1e-4)], "seed": 0},
}
_RQVAE = {
    **{"train_images": 60_000, "depth": 2, "num_codes": 16, "dim": 8, "hidden": 32, "decay": 0.95},
    **{"depth_dropout": 0.5, "batch_size": 128, "stages": [(4, 2e-3), (1, 3e-4)], "seed": 0},
}
_RQTRANSFORMER = {
    **{"train_images": 60_000, "tokenizer": "rqvae", "dim": 60, "layers": 3, "depth_layers": 2, "heads": 4},
    **{"label_dropout": 0.1, "batch_size": 128, "stages": [(1, 2e-3), (1, 1e-3), (1, 3e-4)], "seed": 0},
}
# One first stage, on the tokenizer's own loss; only the weights of the losses in the stage after it differ. There the
# tokenizer learns slowly, so that the discriminator can keep up with it.
_EMOJI_VQVAE = {
    **{"train_images": 2_413, "test_images": 339, "num_codes": 64, "dim": 8, "hidden": 48, "decay": 0.95},
    **{"batch_size": 64, "stages": [(40, 2e-3)], "seed": 0, "perceptual_weight": 0.0, "adversarial_weight": 0.0},
    "last_stage": {"epochs": 10, "lr": 2e-4, "batch_size": 32, "discriminator_lr": 1e-3, "head_start": 2},
}
SETTINGS: dict[str, Settings] = {
    "glyphs-classifier": {**_CLASSIFIER, "stages": [(2, 2e-3), (1, 2e-4)]},
    "mnist-classifier": _CLASSIFIER,
    "fashion-mnist-classifier": _CLASSIFIER,
    # Images moved by up to two pixels and mirrored, in 46 epochs: 0.752 of the test images, no better than this.
    "emoji-classifier": {
        **{"train_images": 2_413, "test_images": 339, "batch_size": 64, "stages": [(8, 2e-3), (3, 2e-4)], "seed": 0},
    },
    "emoji-vqvae": _EMOJI_VQVAE,
    "emoji-perceptualvqvae": {**_EMOJI_VQVAE, "perceptual_weight": 0.1},
    "emoji-adversarialvqvae": {**_EMOJI_VQVAE, "perceptual_weight": 0.1, "adversarial_weight": 0.4},
    "glyphs-vqvae": _VQVAE,
    "mnist-vqvae": _VQVAE,
    "glyphs-prior": {**_PRIOR, "stages": [(3, 2e-3), (2, 3e-4), (1, 1e-4)]},
    "mnist-prior": _PRIOR,
    "glyphs-rqvae": _RQVAE,
    "mnist-rqvae": _RQVAE,
    "glyphs-rqtransformer": _RQTRANSFORMER,
    "mnist-rqtransformer": {**_RQTRANSFORMER, "stages": [(2, 2e-3), (2, 1e-3), (1, 3e-4)]},
}
TEST_IMAGES = 10_000
SAMPLES = 2_000  # that a prior is judged by, equally many of each class


class Trained(NamedTuple):
    """A model, and the terms of its loss as means over the last epoch of its training."""

    model: nn.Module
    ended: Mapping[str, float]


def trained(model: nn.Module, examples: Examples, settings: Settings, objective: Any = None) -> Trained:
    """The stages of training, in order; each begins with a fresh optimizer."""
    history = companion.History()
    for stage, (epochs, lr) in enumerate(settings["stages"]):
        print(f"stage {stage + 1} of {len(settings['stages'])}: {epochs} epochs at learning rate {lr}", flush=True)
        seed, size = settings["seed"] + stage, settings["batch_size"]
        history = companion.fit(model, examples, epochs=epochs, batch_size=size, lr=lr, objective=objective, seed=seed)
    return Trained(model.cpu(), history.last)


# Classifiers


@dataclass(frozen=True)
class Recognised:
    loss: Tensor
    accuracy: Tensor


def recognised(model: Classifier, x: Tensor, y: Tensor) -> Recognised:
    logits = model(x).logits
    return Recognised(functional.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean())


def classifier(train: ImageSet, settings: Settings) -> Trained:
    return trained(Classifier(train.shape[0], len(train.classes)), train, settings, recognised)


def accuracy(model: Classifier, images: ImageSet, *, through: companion.VQVAE | None = None) -> float:
    """The share of the images that are recognised, as they are or rebuilt by a tokenizer."""
    right = 0
    for rows in torch.arange(len(images)).split(500):
        x, y = images.batch(rows)
        seen = recognise(model, x if through is None else through.reconstruct(x)).logits.argmax(1)
        right += int((seen == y).sum())
    return right / len(images)


def classifier_scores(model: Classifier, train: ImageSet, test: ImageSet, settings: Settings) -> dict[str, Any]:
    return {"accuracy_test": accuracy(model, test)}


# Tokenizers


def vqvae(train: ImageSet, settings: Settings) -> Trained:
    if "perceptual_weight" in settings:
        return sharper_vqvae(train, settings)
    return trained(untrained_vqvae(train, settings), train, settings)


def untrained_vqvae(train: ImageSet, settings: Settings) -> companion.VQVAE:
    channels, dim, hidden = train.shape[0], settings["dim"], settings["hidden"]
    return companion.VQVAE(
        companion.ResNetEncoder(channels, dim, hidden=hidden, factor=4, num_blocks=1),
        companion.EMAVectorQuantizer(settings["num_codes"], dim, decay=settings["decay"]),
        companion.ResNetDecoder(channels, dim, hidden=hidden, factor=4, num_blocks=1),
    )


def first_stage(train: ImageSet, settings: Settings) -> companion.VQVAE:
    """A VQ-VAE trained on its own loss."""
    torch.manual_seed(settings["seed"])
    model = untrained_vqvae(train, settings)
    trained(model, train, settings)
    return model


def sharper_vqvae(train: ImageSet, settings: Settings) -> Trained:
    """A VQ-VAE that in a last stage is trained by the losses that the settings give a weight."""
    model, last, seed = first_stage(train, settings), settings["last_stage"], settings["seed"]
    print(f"last stage: {last['epochs']} epochs at learning rate {last['lr']}", flush=True)
    training = Training(
        model,
        train,
        perceptual_weight=settings["perceptual_weight"],
        adversarial_weight=settings["adversarial_weight"],
        discriminator_lr=last["discriminator_lr"],
        head_start=last["head_start"],
        seed=seed,
    )
    history = training.stage(epochs=last["epochs"], lr=last["lr"], batch_size=last["batch_size"], seed=seed + 1)
    return Trained(model.cpu(), history.last)


def vqvae_scores(model: companion.VQVAE, train: ImageSet, test: ImageSet, settings: Settings) -> dict[str, Any]:
    """Distortion, use of the codes, and how well the classifier recognises what is rebuilt: no sample can be expected
    to be recognised better. Where other losses take part, all measures of sharper pictures."""
    variance = train.images.double().div(255).var(correction=0).item()
    if "perceptual_weight" in settings:
        return measures(model, test, variance)
    usage, error = CodeUsage(model.quantizer.num_codes), 0.0
    for rows in torch.arange(len(test)).split(500):
        with torch.no_grad():
            out = model(test.batch(rows)[0])
        usage.update(out.indices)
        error += out.losses["reconstruction"].item() * len(rows) / len(test)
    return {
        "distortion": distortion(error, variance),
        "perplexity": usage.perplexity,
        "usage": usage.usage,
        "accuracy_test": accuracy(load_classifier(test.name), test),
        "accuracy_reconstructions": accuracy(load_classifier(test.name), test, through=model),
    }


def rqvae(train: ImageSet, settings: Settings) -> Trained:
    channels, dim, hidden = train.shape[0], settings["dim"], settings["hidden"]
    members = [
        companion.EMAVectorQuantizer(settings["num_codes"], dim, decay=settings["decay"])
        for _ in range(settings["depth"])
    ]
    model = companion.VQVAE(
        companion.ResNetEncoder(channels, dim, hidden=hidden, factor=4, num_blocks=1),
        companion.ResidualQuantizer(members, depth_dropout=settings["depth_dropout"]),
        companion.ResNetDecoder(channels, dim, hidden=hidden, factor=4, num_blocks=1),
    )
    return trained(model, train, settings)


def rqvae_scores(model: companion.VQVAE, train: ImageSet, test: ImageSet, settings: Settings) -> dict[str, Any]:
    """As of a VQ-VAE, the distortion and the use of the codes by depth."""
    quantizer = model.quantizer
    assert isinstance(quantizer, companion.ResidualQuantizer)
    usages = [CodeUsage(quantizer.num_codes) for _ in range(quantizer.depth)]
    errors = [0.0] * quantizer.depth
    for rows in torch.arange(len(test)).split(500):
        x, _ = test.batch(rows)
        codes = model.encode(x)
        for r, usage in enumerate(usages):
            usage.update(codes[..., r])
            with torch.no_grad():
                x_hat = model.decoder(quantizer.decode(codes, depth=r + 1))
            errors[r] += mse(x_hat, x).item() * len(rows) / len(test)
    variance = train.images.double().div(255).var(correction=0).item()
    by_depth = [distortion(error, variance) for error in errors]
    return {
        "distortion": by_depth[-1],
        "distortion_by_depth": by_depth,
        "perplexity_by_depth": [usage.perplexity for usage in usages],
        "accuracy_test": accuracy(load_classifier(test.name), test),
        "accuracy_reconstructions": accuracy(load_classifier(test.name), test, through=model),
    }


# Priors


def shipped_tokenizer(images: ImageSet, settings: Settings) -> companion.VQVAE:
    tokenizer = pretrained(f"{images.name}-{settings['tokenizer']}")
    assert isinstance(tokenizer, companion.VQVAE)
    return tokenizer


def prior(kind: type[Prior], train: ImageSet, settings: Settings) -> Trained:
    codes = companion.tokenize(shipped_tokenizer(train, settings), train)
    sizes = ("dim", "layers", "depth_layers", "heads", "label_dropout")
    model = kind(
        codes.num_codes,
        codes.grid,
        num_classes=len(train.classes),
        tokenizer=codes.tokenizer,
        **{name: settings[name] for name in sizes if name in settings},
    )
    return trained(model, codes, settings, lambda model, codes, labels: model(codes, labels))


def prior_scores(
    model: Prior, train: ImageSet, test: ImageSet, settings: Settings, *, samples: int = SAMPLES
) -> dict[str, Any]:
    """What the classifier makes of samples of every class at temperature 1, nothing cut off; and held-out bits."""
    tokenizer, eyes = shipped_tokenizer(test, settings), load_classifier(test.name)
    companion.check_identity(tokenizer, model)
    held_out = companion.tokenize(tokenizer, test)
    labels = torch.arange(samples) % model.num_classes
    codes = model.sample(samples, labels, generator=torch.Generator().manual_seed(0))
    images = torch.cat([tokenizer.decode(part) for part in codes.split(500)])
    judgement = evaluate_samples(eyes, images, labels, train=train, held_out=test)
    ceiling = accuracy(eyes, test, through=tokenizer)
    some, _ = test.batch(chosen(len(test), samples, 0, test.name))
    rebuilt = frechet_distance(*(recognise(eyes, x).features for x in (tokenizer.reconstruct(some), some)))
    return {
        "samples": samples,
        "accuracy_test": accuracy(eyes, test),
        "accuracy_reconstructions": ceiling,
        "accuracy_samples": judgement.accuracy,
        "ratio": judgement.accuracy / ceiling,
        "shares": judgement.shares.tolist(),
        "classes": judgement.classes,
        "frechet": judgement.frechet,
        "frechet_reconstructions": rebuilt,
        "frechet_floor": judgement.frechet_floor,
        "nearest": judgement.nearest,
        "nearest_floor": judgement.nearest_floor,
        "bits": prior_bits(model, held_out.codes, held_out.labels),
        "bits_without_class": prior_bits(model, held_out.codes),
    }


KINDS: dict[str, tuple[Callable[[ImageSet, Settings], Trained], Callable[..., dict[str, Any]]]] = {
    "classifier": (classifier, classifier_scores),
    "vqvae": (vqvae, vqvae_scores),
    "perceptualvqvae": (vqvae, vqvae_scores),
    "adversarialvqvae": (vqvae, vqvae_scores),
    "prior": (partial(prior, companion.TransformerPrior), prior_scores),
    "rqvae": (rqvae, rqvae_scores),
    "rqtransformer": (partial(prior, companion.RQTransformer), prior_scores),
}


def make(name: str, settings: Settings, folder: Path = WEIGHTS) -> None:
    """Train ``name`` as ``settings`` say and write it into ``folder``; its scores are measured from there."""
    data, _, kind = name.rpartition("-")
    started = time.perf_counter()
    train = load(data, "train", size=settings["train_images"])
    torch.manual_seed(settings["seed"])
    made = KINDS[kind][0](train, settings)
    companion.save(made.model, folder / f"{name}.safetensors")
    ran = {
        "command": f"python -m experiments.weights {name}",
        "settings": dict(settings),
        "seconds": round(time.perf_counter() - started),
        "machine": machine(default_device()),
        "torch": torch.__version__,
        "ended": {term: plain(value) for term, value in made.ended.items()},
    }
    _write(folder / f"{name}.json", ran)


def measure(name: str, folder: Path = WEIGHTS, **options: Any) -> dict[str, Any]:
    """The scores of the weights in ``folder``, beside the training images and ``TEST_IMAGES`` others."""
    data, _, kind = name.rpartition("-")
    train = load(data, "train", size=SETTINGS[name]["train_images"])
    test = load(data, "test", size=SETTINGS[name].get("test_images", TEST_IMAGES))
    return KINDS[kind][1](companion.load(folder / f"{name}.safetensors"), train, test, SETTINGS[name], **options)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """A line for each entry, so that a diff shows what changed."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    with written_whole(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.weights", description=__doc__)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    options = parser.parse_args()
    try:
        load(options.name.rpartition("-")[0], "train", size=1)
    except (ValueError, OSError, ImportError) as error:
        parser.error(f"{options.name}: its images cannot be loaded: {error}")
    if not options.measure:
        make(options.name, SETTINGS[options.name])
    path = WEIGHTS / f"{options.name}.json"
    scores = {key: plain(value) for key, value in measure(options.name).items()}
    _write(path, {**json.loads(path.read_text(encoding="utf-8")), "scores": scores})
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()

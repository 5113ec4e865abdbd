"""Reconstructions of a few emoji by tokenizers trained with other weights of the losses, for chapter 09's explorer.

From the shipped tokenizer that was trained on its own loss alone, each pair of weights, of the perceptual loss and of
the discriminator, takes the same further steps. The file has, losslessly, what each makes of a few test images, and its
measures on all of them.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import companion
from companion.course.manifest import read_book
from companion.data import ImageSet, emoji, load
from companion.pretrained import pretrained
from experiments.reconstructions import Training, measures
from experiments.weights import SETTINGS, Settings

PICTURES = (
    *("winking face with tongue", "woman with headscarf", "butterfly", "broccoli"),
    *("Japanese post office", "party popper", "no one under eighteen", "flag: Brazil"),
)
PERCEPTUAL_WEIGHTS = (0.0, 0.1, 0.3)
ADVERSARIAL_WEIGHTS = (0.0, 0.4, 0.8)
EPOCHS = 4  # of every pair: 300 steps
MEASURES = ("mse", "feature_distance", "sharpness")


def reconstructed(
    first: companion.VQVAE,
    last_stage: Settings,
    train: ImageSet,
    test: ImageSet,
    shown: torch.Tensor,
    weights: tuple[float, float],
) -> tuple[Any, list[float]]:
    """What one pair of weights makes of the images ``shown``, uint8 (N, C, H, W), and its ``MEASURES``."""
    perceptual, adversarial = weights
    training = Training(
        copy.deepcopy(first),
        train,
        perceptual_weight=perceptual,
        adversarial_weight=adversarial,
        discriminator_lr=last_stage["discriminator_lr"],
        head_start=last_stage["head_start"],
    )
    training.stage(epochs=EPOCHS, lr=last_stage["lr"], batch_size=last_stage["batch_size"], seed=1, progress=False)
    tokenizer = training.tokenizer.cpu()
    numbers = measures(tokenizer, test, train.images.double().div(255).var(correction=0).item())
    x_hat = tokenizer.reconstruct(test.batch(shown)[0]).mul(255).round().to(torch.uint8)
    return x_hat.numpy(), [numbers[name] for name in MEASURES]


def make(file: Path, settings: Settings) -> None:
    """Train all pairs and write the file."""
    train = load("emoji", "train", size=settings["train_images"])
    test = load("emoji", "test", size=settings["test_images"])
    names = emoji.names("test", size=settings["test_images"])
    shown = torch.tensor([names.index(name) for name in PICTURES])
    first = pretrained("emoji-vqvae")
    assert isinstance(first, companion.VQVAE)
    pairs = [(p, a) for p in PERCEPTUAL_WEIGHTS for a in ADVERSARIAL_WEIGHTS]
    last = settings["last_stage"]
    made = [reconstructed(first, last, train, test, shown, pair) for pair in tqdm(pairs, unit="pair")]
    table = (len(PERCEPTUAL_WEIGHTS), len(ADVERSARIAL_WEIGHTS))
    images = np.stack([pictures for pictures, _ in made])
    numbers = np.array([row for _, row in made], dtype=np.float32).reshape(*table, len(MEASURES))
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        file,
        names=np.array(PICTURES),
        originals=test.images[shown].numpy(),  # (N, C, H, W) uint8
        perceptual_weights=np.array(PERCEPTUAL_WEIGHTS),
        adversarial_weights=np.array(ADVERSARIAL_WEIGHTS),
        reconstructions=images.reshape(*table, *images.shape[1:]),  # (perceptual, adversarial, N, C, H, W) uint8
        mse=numbers[..., 0],  # (perceptual, adversarial), on all test images, and so the others
        feature_distance=numbers[..., 1],
        sharpness=numbers[..., 2],
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.sharper_pictures_grid", description=__doc__)
    default = read_book().root / "companion" / "course" / "chapter_09" / "reconstructions.npz"
    parser.add_argument("--out", type=Path, default=default, help="the file (default: the one that the chapter reads)")
    options = parser.parse_args()
    make(options.out, SETTINGS["emoji-vqvae"])
    print(f"{options.out.name}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

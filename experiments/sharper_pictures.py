"""Sharper reconstructions at equal codes and steps: squared error alone, a perceptual loss, and a discriminator.

All variants take the same number of steps. In the first half each trains on the tokenizer's own loss (squared error
and the terms of the codebook), in the second half the losses differ. "adversarial" is a discriminator beside the
perceptual loss; three more variants each change one thing of it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import companion
from experiments.common import Cell, Setup, run
from experiments.reconstructions import Training, measures
from experiments.tokenizer import tokenizer

# The weights of the losses are the same in all profiles; epochs are those of both halves. In the second half the
# tokenizer learns slowly, so that the discriminator can keep up with it, and before that the discriminator alone
# learns for some epochs, its head start.
_WEIGHTS = {"perceptual_weight": 0.1, "adversarial_weight": 0.4, "discriminator_lr": 1e-3}
_CODES = {"num_codes": 64, "dim": 8, "decay": 0.95, "factor": 4}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        **{"train_images": 2_413, "test_images": 339, "epochs": 10, "batch_size": 32, "hidden": 32, "width": 32},
        **{"lr": 2e-3, "second_lr": 2e-4, "head_start": 2, **_CODES, **_WEIGHTS},
    },
    "full": {
        **{"train_images": 50_000, "test_images": 10_000, "epochs": 100, "batch_size": 64, "hidden": 128, "width": 64},
        **{"lr": 1e-3, "second_lr": 2e-4, "head_start": 1, **_CODES, **_WEIGHTS},
    },
    "smoke": {
        **{"train_images": 64, "test_images": 32, "epochs": 2, "batch_size": 32, "hidden": 8, "width": 4},
        **{"lr": 2e-3, "second_lr": 2e-4, "head_start": 1, **_CODES, **_WEIGHTS},
    },
}
# variant → what it changes of `Training`
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "mse": {"perceptual_weight": 0.0, "adversarial_weight": 0.0},
    "perceptual": {"adversarial_weight": 0.0},
    "adversarial": {},
    "adversarial from the start": {"head_start": 0},
    "adversarial, fixed weight": {"adaptive": False, "adversarial_weight": 0.8},
    "fast discriminator": {"discriminator_lr": 1e-2},
}


def cells(seeds: int) -> Sequence[Cell]:
    """Seed by seed, since the variants of a seed share a first half."""
    return [{"variant": variant, "seed": seed} for seed in range(seeds) for variant in VARIANTS]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    seed, variant = cell["seed"], cell["variant"]
    if variant == "adversarial from the start":
        training = losses_of(variant, untrained(seed, setup), setup, seed)
        half(training, setup, seed, first=True)
    else:
        training = losses_of(variant, after_first_half(seed, setup), setup, seed)
    history = half(training, setup, seed, first=False)
    ended = {name: value for name, value in history.last.items() if name in ("logits_real", "logits_fake")}
    return {**measures(training.tokenizer, setup.test, setup.variance), **ended}


def losses_of(variant: str, model: companion.VQVAE, setup: Setup, seed: int) -> Training:
    """Training of ``model`` by the losses of a variant."""
    names = ("perceptual_weight", "adversarial_weight", "width", "discriminator_lr", "head_start")
    shared = {name: setup.sizes[name] for name in names}
    return Training(model, setup.train, **{**shared, **VARIANTS[variant]}, seed=seed)


def half(training: Training, setup: Setup, seed: int, *, first: bool) -> companion.History:
    """The first or the second half of the steps."""
    sizes = setup.sizes
    return training.stage(
        epochs=sizes["epochs"] // 2,
        lr=sizes["lr"] if first else sizes["second_lr"],
        batch_size=sizes["batch_size"],
        seed=2 * seed + (not first),  # another order of the images in the second half
        device=setup.device,
        progress=False,
    )


def untrained(seed: int, setup: Setup) -> companion.VQVAE:
    torch.manual_seed(seed)
    sizes = setup.sizes
    quantizer = companion.EMAVectorQuantizer(sizes["num_codes"], sizes["dim"], decay=sizes["decay"])
    return tokenizer(setup, quantizer, factor=sizes["factor"])


_kept: dict[tuple[str, str, int], companion.VQVAE] = {}  # the newest first half alone


def after_first_half(seed: int, setup: Setup) -> companion.VQVAE:
    """A tokenizer after the steps on its own loss; made once for the variants of a seed that follow each other."""
    key = (setup.profile, setup.train.name, seed)
    if key not in _kept:
        model = untrained(seed, setup)
        half(losses_of("mse", model, setup, seed), setup, seed, first=True)
        _kept.clear()
        _kept[key] = model
    return copy.deepcopy(_kept[key])


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

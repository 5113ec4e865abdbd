"""Train one VQ-VAE and measure it: what most experiments do with each of their cells."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import companion
from companion.metrics import CodeUsage, bits_per_image
from companion.quantizers import Quantizer, VectorQuantizer, k_means
from experiments.common import Setup

# What the chapters' tokenizers have; an experiment adds what it varies. Full: the settings of Zhao's report.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "quick": {"train_images": 10_000, "test_images": 2_000, "epochs": 6, "batch_size": 128, "lr": 2e-3, "hidden": 32},
    "full": {"train_images": 60_000, "test_images": 10_000, "epochs": 12, "batch_size": 128, "lr": 3e-3, "hidden": 128},
    "smoke": {"train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32, "lr": 2e-3, "hidden": 8},
}


def tokenizer(
    setup: Setup,
    quantizer: Quantizer,
    *,
    factor: int | tuple[int, int] = 4,
    encoder_blocks: int = 1,
    decoder_blocks: int = 1,
    quantizer_weight: float = 1.0,
) -> companion.VQVAE:
    """An untrained VQ-VAE for the images of ``setup``, around ``quantizer``."""
    channels, hidden, dim = setup.train.shape[0], setup.sizes["hidden"], quantizer.dim
    return companion.VQVAE(
        companion.ResNetEncoder(channels, dim, hidden=hidden, factor=factor, num_blocks=encoder_blocks),
        quantizer,
        companion.ResNetDecoder(channels, dim, hidden=hidden, factor=factor, num_blocks=decoder_blocks),
        quantizer_weight=quantizer_weight,
    )


def trained(
    model: companion.VQVAE,
    setup: Setup,
    *,
    seed: int,
    epochs: int | None = None,
    lr: float | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
) -> companion.History:
    """Train ``model`` as the profile says; held-out terms are measured after every epoch."""
    return companion.fit(
        model,
        setup.train,
        validation=setup.test,
        epochs=epochs or setup.sizes["epochs"],
        batch_size=setup.sizes["batch_size"],
        lr=None if optimizer else lr or setup.sizes["lr"],
        optimizer=optimizer,
        seed=seed,
        device=setup.device,
        progress=False,
    )


@torch.no_grad()
def measured(model: companion.VQVAE, history: companion.History, setup: Setup) -> dict[str, float]:
    """Held-out distortion, and how the test images use the codes."""
    usage = CodeUsage(model.quantizer.num_codes)
    codes = [model.encode(setup.test.batch(rows)[0]) for rows in torch.arange(len(setup.test)).split(500)]
    indices = torch.cat(codes)
    usage.update(indices)
    bits = bits_per_image(indices, usage.num_codes)
    return {
        "distortion": history.last["validation_reconstruction"] / setup.variance,
        "perplexity": usage.perplexity,
        "usage": usage.usage,
        "nominal_bits": bits["nominal"],
        "entropy_bits": bits["entropy"],
        "entropy_bits_per_position": bits["per_position"],
    }


@torch.no_grad()
def start_from_k_means(model: companion.VQVAE, setup: Setup, seed: int) -> None:
    """What EMA's codes start from, for a codebook that learns by gradients: it tells the start from the averages."""
    images, _ = setup.train.batch(torch.arange(setup.sizes["batch_size"]))
    latents = model.to(setup.device).encoder(images)
    assert isinstance(model.quantizer, VectorQuantizer)
    centres, _ = k_means(latents.movedim(1, -1).flatten(0, -2), model.quantizer.num_codes, seed=seed)
    model.quantizer.codebook.copy_(centres)


def by_epoch(history: companion.History, setup: Setup, term: str = "reconstruction") -> list[float]:
    """A held-out term after every epoch, in units of the training images' variance."""
    return [row[f"validation_{term}"] / setup.variance for row in history.rows]


@torch.no_grad()
def pictures(model: companion.VQVAE, setup: Setup, count: int = 8) -> dict[str, str]:
    """The first test images and what comes back: one hexadecimal digit a pixel and channel, 0 black to f full."""
    x, _ = setup.test.batch(torch.arange(min(count, len(setup.test))), setup.device)
    return {"images": digits(x), "reconstructions": digits(model.reconstruct(x))}


def digits(images: torch.Tensor) -> str:
    return "".join(f"{level:x}" for level in images.mul(15).round().long().flatten().tolist())


def edge_energy(images: torch.Tensor) -> float:
    """Mean over the images of the summed squared differences between neighbouring pixels: little where blurred."""
    down, right = images.diff(dim=2).square(), images.diff(dim=3).square()
    return float(down.sum() + right.sum()) / len(images)


@torch.no_grad()
def sharpness(model: companion.VQVAE, setup: Setup) -> float:
    """Edge energy of the reconstructed test images over that of the images."""
    parts = [setup.test.batch(rows)[0] for rows in torch.arange(len(setup.test)).split(500)]
    return sum(edge_energy(model.reconstruct(x)) * len(x) for x in parts) / sum(edge_energy(x) * len(x) for x in parts)

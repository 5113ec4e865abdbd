"""Posterior collapse: what β_KL and an autoregressive decoder do to the latents of a VAE (chapter 02).

Sixteen latent numbers. Grey images: Gaussian likelihood with a scale of 0.1, β_KL 0.1 to 1024. Two-valued images:
Bernoulli likelihood, a decoder that is told the pixels above and to the left beside one that is not. For comparison,
an autoencoder of the same size, and a VAE that learns the scale.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import companion
from companion import VAE, Autoencoder, AutoregressiveDecoder, Decoder, Encoder
from companion.data import ImageSet
from companion.likelihoods import Bernoulli, Gaussian
from companion.vae import active_units, kl_divergence
from experiments.common import Cell, Setup, run
from experiments.tokenizer import edge_energy

SIZES = {
    "quick": {"train_images": 10000, "test_images": 2000, "epochs": 6, "batch_size": 128, "lr": 2e-3, "hidden": 16},
    "full": {"train_images": 60000, "test_images": 10000, "epochs": 10, "batch_size": 128, "lr": 1e-3, "hidden": 32},
    "smoke": {"train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32, "lr": 2e-3, "hidden": 4},
}
D = 16
BETAS = (0.1, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)


def cells(seeds: int) -> list[Cell]:
    grey = [{"images": "grey", "decoder": "convolutional", "beta": beta} for beta in BETAS]
    grey += [{"images": "grey", "decoder": "convolutional, scale learnt", "beta": 1.0}]
    grey += [{"images": "grey", "decoder": "autoencoder", "beta": 0.0}]
    binary = [{"images": "binary", "decoder": "convolutional", "beta": 1.0}]
    binary += [{"images": "binary", "decoder": "autoregressive", "beta": beta} for beta in (1.0, 0.25, 4.0)]
    return [{**cell, "seed": seed} for seed in range(seeds) for cell in (*grey, *binary)]


def run_cell(cell: Cell, setup: Setup) -> Mapping[str, float | str | list[float]]:
    sizes, binary = setup.sizes, cell["images"] == "binary"
    train, test = (binarised(s) if binary else s for s in (setup.train, setup.test))
    channels, size, _ = train.shape
    torch.manual_seed(cell["seed"])
    model: nn.Module
    if cell["decoder"] == "autoencoder":
        model = Autoencoder(Encoder(D, in_channels=channels, image_size=size), new_decoder(channels, size))
    else:
        model = new_vae(cell, channels, size, sizes["hidden"])
    companion.fit(
        model,
        train,
        epochs=sizes["epochs"],
        batch_size=sizes["batch_size"],
        lr=sizes["lr"],
        seed=cell["seed"],
        device=setup.device,
        progress=False,
    )
    x, _ = test.batch(torch.arange(len(test)), setup.device)
    if isinstance(model, Autoencoder):
        return distortion_and_sharpness(model, x, setup)
    assert isinstance(model, VAE)
    if binary:
        return measured(model, x)
    return measured(model, x) | distortion_and_sharpness(model, x, setup) | pictures(model, x, cell)


def binarised(images: ImageSet) -> ImageSet:
    """Every pixel black or white, with the threshold in the middle."""
    return dataclasses.replace(images, images=(images.images > 127).to(torch.uint8) * 255)


def new_vae(cell: Cell, channels: int, size: int, hidden: int) -> VAE:
    encoder = Encoder(2 * D, in_channels=channels, image_size=size)
    if cell["decoder"] == "autoregressive":
        context = Decoder(D, out_channels=hidden, image_size=size)
        decoder = AutoregressiveDecoder(context, channels, in_channels=channels, hidden=hidden)
        return VAE(encoder, decoder, Bernoulli(), beta=cell["beta"])
    learnt = cell["decoder"] == "convolutional, scale learnt"
    grey = Gaussian(0.2, learn_scale=True) if learnt else Gaussian(0.1)
    likelihood = Bernoulli() if cell["images"] == "binary" else grey
    return VAE(encoder, new_decoder(channels, size), likelihood, beta=cell["beta"])


def new_decoder(channels: int, size: int) -> Decoder:
    return Decoder(D, out_channels=channels, image_size=size)


@torch.no_grad()
def measured(model: VAE, x: Tensor) -> dict[str, float | list[float]]:
    """The ELBO's two terms and the latents in use, on the test images."""
    g = torch.Generator(x.device).manual_seed(0)
    outputs = [model(some, generator=g) for some in x.split(500)]
    log_likelihood = float(sum(float(out.log_likelihood) * len(out.mean) for out in outputs)) / len(x)
    mean = torch.cat([out.mean for out in outputs])
    log_variance = torch.cat([out.log_variance for out in outputs])
    kl = kl_divergence(mean, log_variance).mean(0)
    return {
        "log_likelihood": log_likelihood,
        "kl": float(kl.sum()),
        "elbo": log_likelihood - float(kl.sum()),
        "kl_per_dimension": kl.sort(descending=True).values.tolist(),
        "active_units": active_units(mean),
    }


@torch.no_grad()
def distortion_and_sharpness(model: VAE | Autoencoder, x: Tensor, setup: Setup) -> dict[str, float]:
    """Distortion and sharpness of reconstructions; sharpness of samples, and how far they are from training images."""
    rebuilt = model.reconstruct(x)
    z = torch.randn(min(1000, len(x)), D, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
    sampled = model.decoder(z).clamp(0, 1)  # for a Gaussian the mean of p(x|z)
    seen, _ = setup.train.batch(torch.arange(len(setup.train)), setup.device)
    distance = torch.cdist(sampled.flatten(1), seen.flatten(1)).amin(1).square().mean() / x[0].numel()
    return {
        "distortion": float((rebuilt - x).square().mean()) / setup.variance,
        "sharpness": edge_energy(rebuilt) / edge_energy(x),
        "sharpness_samples": edge_energy(sampled) / edge_energy(x),
        "sample_distance": float(distance) / setup.variance,
    }


def pictures(model: VAE, x: Tensor, cell: Cell) -> dict[str, str]:
    """For the first seed eight samples, the same z for every β_KL: one hexadecimal digit a pixel, 0 black to f
    white."""
    if cell["seed"] or cell["decoder"] != "convolutional":
        return {}
    sampled = model.sample(8, mean=True, generator=torch.Generator(x.device).manual_seed(1))
    return {"samples": "".join(f"{round(float(v) * 15):x}" for v in sampled.clamp(0, 1).flatten())}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""Bits per pixel of VAEs that differ in their likelihood alone (chapter 02).

Sixteen latent numbers, the ELBO as loss. The Gaussian density is judged by the mass it gives the bins of the 256 grey
values; the others are distributions over these values in training already. The categorical one, with 256 decoder
channels by far the slowest, is run for one seed.
"""

import math
from collections.abc import Mapping

import torch

import companion
from companion import VAE, Decoder, Encoder
from companion.likelihoods import Categorical, DiscretizedLogisticMixture, Gaussian, Likelihood
from companion.vae import importance_weighted_bound
from experiments.common import Cell, Setup, run

SIZES = {
    "quick": {"train_images": 10000, "test_images": 1000, "epochs": 6, "batch_size": 128, "lr": 2e-3},
    "full": {"train_images": 60000, "test_images": 10000, "epochs": 10, "batch_size": 128, "lr": 1e-3},
    "smoke": {"train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32, "lr": 2e-3},
}
D = 16


def cells(seeds: int) -> list[Cell]:
    names = ("Gaussian density", "Gaussian in bins", "logistic mixture, K = 3")
    every_seed = [{"likelihood": name, "seed": seed} for seed in range(seeds) for name in names]
    return [*every_seed, {"likelihood": "categorical", "seed": 0}]


def run_cell(cell: Cell, setup: Setup) -> Mapping[str, float | list[float]]:
    sizes = setup.sizes
    channels, size, _ = setup.train.shape
    torch.manual_seed(cell["seed"])
    likelihood = new_likelihood(cell["likelihood"])
    encoder = Encoder(2 * D, in_channels=channels, image_size=size)
    decoder = Decoder(D, out_channels=channels * likelihood.num_params, image_size=size)
    companion.fit(
        VAE(encoder, decoder, likelihood),
        setup.train,
        epochs=sizes["epochs"],
        batch_size=sizes["batch_size"],
        lr=sizes["lr"],
        seed=cell["seed"],
        device=setup.device,
        progress=False,
    )
    if isinstance(likelihood, Gaussian):
        likelihood = Gaussian(likelihood.scale.item(), binned=True)
    model = VAE(encoder, decoder, likelihood).to(setup.device)
    x, _ = setup.test.batch(torch.arange(len(setup.test)), setup.device)
    g = torch.Generator(setup.device).manual_seed(0)
    parts = [model.log_weights(some, 10, generator=g, batch_size=200) for some in x.tensor_split(10)]
    log_weights = torch.cat(parts, 1)  # (10, images)
    per_pixel = 1 / (x[0].numel() * math.log(2))
    return {
        "bits": -float(log_weights.mean()) * per_pixel,
        "bits_10_samples": -float(importance_weighted_bound(log_weights).mean()) * per_pixel,
    }


def new_likelihood(name: str) -> Likelihood:
    return {
        "Gaussian density": Gaussian(0.2, learn_scale=True),
        "Gaussian in bins": Gaussian(0.2, binned=True, learn_scale=True),
        "logistic mixture, K = 3": DiscretizedLogisticMixture(3),
        "categorical": Categorical(),
    }[name]


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

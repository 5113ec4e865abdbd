"""Which likelihood for which images? Grey MNIST and black-and-white MNIST, each through four likelihoods.

Yesiltepe's report calls a Bernoulli natural for "a gray scale image such as MNIST", and a categorical distribution or a
logistic mixture for values 0 to 255. Bits per pixel compare distributions over the same values. A Bernoulli gives no
mass to a grey in between, so that its bits on grey images are infinite: there only the distortion of its mean is
compared. On black-and-white images the other three spread over 256 values, of which two occur. The categorical decoder,
with 256 channels by far the slowest, is run for three seeds.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import companion
from companion import VAE, Decoder, Encoder
from companion.likelihoods import Bernoulli, Likelihood
from experiments import vae_likelihood
from experiments.common import Cell, Setup, run
from experiments.vae_beta import binarised

SIZES = {
    "quick": {"train_images": 4_000, "test_images": 1_000, "epochs": 6, "batch_size": 128, "lr": 2e-3},
    "full": {"train_images": 60_000, "test_images": 10_000, "epochs": 10, "batch_size": 128, "lr": 1e-3},
    "smoke": {"train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32, "lr": 2e-3},
}
D = 16
NAMES = ("Bernoulli", "Gaussian in bins", "logistic mixture, K = 3", "categorical")


def cells(seeds: int) -> Sequence[Cell]:
    return [
        {"images": images, "likelihood": name, "seed": seed}
        for seed in range(seeds)
        for images in ("grey", "binary")
        for name in NAMES
        if name != "categorical" or seed < 3
    ]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    train, test = setup.train, setup.test
    if cell["images"] == "binary":
        train, test = binarised(train), binarised(test)
    torch.manual_seed(cell["seed"])
    likelihood = new_likelihood(cell["likelihood"], cell["images"])
    channels, size, _ = train.shape
    encoder = Encoder(2 * D, in_channels=channels, image_size=size)
    decoder = Decoder(D, out_channels=channels * likelihood.num_params, image_size=size)
    model = VAE(encoder, decoder, likelihood)
    companion.fit(
        model,
        train,
        epochs=setup.sizes["epochs"],
        batch_size=setup.sizes["batch_size"],
        lr=setup.sizes["lr"],
        seed=cell["seed"],
        device=setup.device,
        progress=False,
    )
    return measured(model.eval(), test.batch(torch.arange(len(test)), setup.device)[0], setup, cell)


@torch.no_grad()
def measured(model: VAE, x: Tensor, setup: Setup, cell: Cell) -> dict[str, float]:
    """Bits per pixel (the bound), and the distortion of the mean image of each reconstruction."""
    g = torch.Generator(x.device).manual_seed(0)
    squared = elbo = 0.0
    for some in x.split(250):
        out = model(some, generator=g)
        elbo += float(out.elbo) * len(some)
        squared += float((out.reconstruction - some).square().sum())
    numbers = {"distortion": squared / x.numel() / float(x.double().var(correction=0))}
    if cell["images"] == "grey" and cell["likelihood"] == "Bernoulli":
        return numbers  # its bits are infinite
    return numbers | {"bits": -elbo / x.numel() / math.log(2)}


def new_likelihood(name: str, images: str) -> Likelihood:
    return Bernoulli(relaxed=images == "grey") if name == "Bernoulli" else vae_likelihood.new_likelihood(name)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

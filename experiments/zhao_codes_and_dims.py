"""The codebooks that Zhao's report compares, K 128 or 256 and D 4, 8 or 16, and a prior over their codes at D = 8.

What the report says of a prior ("harder to train", "less authentic") is measured on class-conditional samples at
temperature 1: the share that a classifier of real images recognises as the class asked for. The prior is that of the
report (dim 64, 3 layers, dropout 0.1, a rate of 0.0015), with 4 heads: 5 do not divide 64.
"""

from collections.abc import Sequence

import torch

import companion
from companion.classifier import evaluate_samples, load_classifier
from companion.priors import prior_bits
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES as TOKENIZER
from experiments.tokenizer import measured, sharpness, tokenizer, trained

PRIOR_EPOCHS = {"quick": 3, "full": 10, "smoke": 1}
SAMPLES = {"quick": 1000, "full": 5000, "smoke": 20}
SIZES = {
    profile: {**sizes, "prior_epochs": PRIOR_EPOCHS[profile], "samples": SAMPLES[profile]}
    for profile, sizes in TOKENIZER.items()
}


def cells(seeds: int) -> Sequence[Cell]:
    return [{"num_codes": k, "dim": d, "seed": seed} for seed in range(seeds) for d in (8, 4, 16) for k in (128, 256)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, companion.VectorQuantizer(cell["num_codes"], cell["dim"]))
    history = trained(model, setup, seed=cell["seed"])
    numbers = measured(model, history, setup) | {"sharpness": sharpness(model, setup)}
    return numbers | (with_prior(model.eval(), setup, cell["seed"]) if cell["dim"] == 8 else {})


def with_prior(model: companion.VQVAE, setup: Setup, seed: int) -> dict[str, float]:
    """Bits that a class-conditional prior needs for a test image's codes, and what its samples are taken for."""
    sizes = setup.sizes
    codes, held_out = companion.tokenize(model, setup.train), companion.tokenize(model, setup.test)
    prior = companion.TransformerPrior(
        codes.num_codes, codes.grid, dim=64, layers=3, heads=4, dropout=0.1, num_classes=10
    )
    companion.fit(
        prior,
        codes,
        objective=lambda prior, codes, labels: prior(codes, labels),
        epochs=sizes["prior_epochs"],
        batch_size=sizes["batch_size"],
        lr=1.5e-3,
        seed=seed,
        device=setup.device,
        progress=False,
    )
    prior.eval()
    labels = torch.arange(10, device=setup.device).repeat(sizes["samples"] // 10)
    g = torch.Generator(setup.device).manual_seed(seed)
    samples = model.decode(prior.sample(len(labels), labels, generator=g))
    judgement = evaluate_samples(
        load_classifier(setup.train.name).to(setup.device), samples, labels, train=setup.train, held_out=setup.test
    )
    bits = prior_bits(prior, held_out.codes, held_out.labels)
    return {"prior_bits": float(bits), "recognised": judgement.accuracy, "frechet": judgement.frechet}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

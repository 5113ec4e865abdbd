"""Priors over the codes of one tokenizer: what they predict, and which classes their samples have (chapter 07).

The prior of Zhao's report (2023, section 3.5: width 64, 3 layers, dropout 0.1, learning rate 0.0015, 10 epochs; its 5
heads do not divide 64, here they are 4), once with a ``<sos>`` for each class and once with a single one, and a
PixelCNN of as many weights on the same codes. The tokenizer is the shipped one (``companion.pretrained``), so that all
cells have the same codes. Claims tested, with what decides them written down before the first run (on paired
differences over the seeds, with their 95 % interval):
a single ``<sos>`` loses classes (the effective number of classes among its samples at temperature 1 falls by more than
1 beside that of a class ``<sos>``); temperature 2 with k = 8 loses classes (the same fall from temperature 1, single
``<sos>``); the transformer predicts better than the PixelCNN (by more than 2 % of its bits).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import companion
from companion.classifier import evaluate_samples, load_classifier
from companion.priors import Prior, prior_bits
from experiments.common import Cell, Setup, run

# quick trains for 6 epochs, without dropout: on a CPU that of the attention more than doubles the time of a step.
SIZES = {
    "quick": {
        "train_images": 10_000, "test_images": 2_000, "epochs": 6, "batch_size": 64, "lr": 1.5e-3, "dropout": 0.0,
        "dim": 64, "layers": 3, "heads": 4, "pixelcnn_dim": 30, "pixelcnn_layers": 4, "samples": 1_000,
    },
    "full": {
        "train_images": 60_000, "test_images": 10_000, "epochs": 10, "batch_size": 128, "lr": 1.5e-3, "dropout": 0.1,
        "dim": 64, "layers": 3, "heads": 4, "pixelcnn_dim": 30, "pixelcnn_layers": 4, "samples": 1_000,
    },
    "smoke": {
        "train_images": 64, "test_images": 32, "epochs": 1, "batch_size": 32, "lr": 1.5e-3, "dropout": 0.1,
        "dim": 16, "layers": 1, "heads": 2, "pixelcnn_dim": 8, "pixelcnn_layers": 1, "samples": 20,
    },
}  # fmt: skip
SAMPLING: Mapping[str, Mapping[str, Any]] = {"t1": {"temperature": 1.0}, "t2_k8": {"temperature": 2.0, "top_k": 8}}


def cells(seeds: int) -> list[Cell]:
    kinds = (("transformer", "class"), ("transformer", "one"), ("PixelCNN", "class"))
    return [{"prior": kind, "sos": sos, "seed": seed} for seed in range(seeds) for kind, sos in kinds]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    sizes, classes = setup.sizes, len(setup.train.classes)
    tokenizer = companion.pretrained(f"{setup.train.name}-vqvae").to(setup.device)
    assert isinstance(tokenizer, companion.VQVAE)
    train = companion.tokenize(tokenizer, setup.train).to(setup.device)
    test = companion.tokenize(tokenizer, setup.test).to(setup.device)
    conditional = cell["sos"] == "class"
    torch.manual_seed(cell["seed"])
    options: dict[str, Any] = {"num_classes": classes if conditional else 0, "tokenizer": train.tokenizer}
    prior: Prior
    if cell["prior"] == "transformer":
        prior = companion.TransformerPrior(
            train.num_codes,
            train.grid,
            dim=sizes["dim"],
            layers=sizes["layers"],
            heads=sizes["heads"],
            dropout=sizes["dropout"],
            **options,
        )
    else:
        dim, layers = sizes["pixelcnn_dim"], sizes["pixelcnn_layers"]
        prior = companion.PixelCNN(train.num_codes, train.grid, dim=dim, layers=layers, **options)
    companion.fit(
        prior,
        train,
        epochs=sizes["epochs"],
        batch_size=sizes["batch_size"],
        lr=sizes["lr"],
        objective=lambda model, codes, labels: model(codes, labels if conditional else None),
        seed=cell["seed"],
        device=setup.device,
        progress=False,
    )
    numbers: dict[str, float | list[float]] = {
        "parameters": sum(weight.numel() for weight in prior.parameters()),
        "bits": prior_bits(prior, test.codes, test.labels if conditional else None),
        "training_bits": prior_bits(
            prior, train.codes[: len(test)], train.labels[: len(test)] if conditional else None
        ),
        **{f"{name}_bits": bits for name, bits in baselines(train, test).items()},
    }
    classifier = load_classifier(setup.train.name).to(setup.device)
    labels = torch.arange(sizes["samples"]) % classes
    for name, how in SAMPLING.items():
        generator = torch.Generator().manual_seed(cell["seed"])
        codes = prior.sample(len(labels), labels if conditional else None, generator=generator, **how)
        images = torch.cat([tokenizer.decode(some) for some in codes.split(500)])
        wanted = labels.to(setup.device) if conditional else None
        judgement = evaluate_samples(classifier, images, wanted, train=setup.train, held_out=setup.test)
        numbers |= {f"{name}_shares": judgement.shares.tolist(), f"{name}_classes": judgement.classes}
        numbers |= {f"{name}_frechet": judgement.frechet, f"{name}_frechet_floor": judgement.frechet_floor}
        if conditional:
            numbers[f"{name}_accuracy"] = judgement.accuracy
    return numbers


def baselines(train: companion.CodeSet, test: companion.CodeSet, added: float = 1.0) -> dict[str, float]:
    """Held-out cross-entropy, in bits an image, of four tables of frequencies of the training codes.

    Every count has ``added`` added to it (Laplace's rule), so that what was not seen has a probability.
    """
    k, train_codes, test_codes = train.num_codes, train.codes.flatten(1), test.codes.flatten(1)
    length = test_codes.shape[1]

    def bits(counts: Tensor, contexts: Tensor, codes: Tensor) -> float:
        smooth = counts.double() + added
        log_p = (smooth / smooth.sum(-1, keepdim=True)).log2()  # (contexts, K)
        return -float(log_p[contexts, codes].sum()) / len(codes)

    def count(contexts: Tensor, codes: Tensor, size: int) -> Tensor:
        return torch.bincount((contexts * k + codes).flatten(), minlength=size * k).reshape(size, k)

    def before(codes: Tensor) -> Tensor:
        return torch.cat([torch.full_like(codes[:, :1], k), codes[:, :-1]], 1)  # number K stands for <sos>

    def position(codes: Tensor) -> Tensor:
        return torch.arange(length, device=codes.device).expand_as(codes)

    def held_out(context: Callable[[Tensor], Tensor], size: int) -> float:
        return bits(count(context(train_codes), train_codes, size), context(test_codes), test_codes)

    return {
        "uniform": length * math.log2(k),
        "unigram": held_out(torch.zeros_like, 1),
        "per_position": held_out(position, length),
        "bigram": held_out(before, k + 1),
    }


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""Wrong calls of everything public: each is refused by a ValueError that begins with the argument's name.

The generic part needs one good call for each public function, class and method; it then puts wrong values into every
argument, one at a time. A new public callable without a good call, or a new argument that the good call leaves out,
fails. The part written by hand has what no rule finds: arguments that are good alone and do not fit each other.
"""

import copy
import functools
import importlib
import inspect
import math
import pkgutil
import random
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

import companion
from companion import (
    VAE,
    VQVAE,
    Autoencoder,
    AutoregressiveDecoder,
    Classifier,
    CodeSet,
    Decoder,
    EMAVectorQuantizer,
    Encoder,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    MambaPrior,
    PixelCNN,
    ProjectedQuantizer,
    ResidualQuantizer,
    ResNetDecoder,
    ResNetEncoder,
    RQTransformer,
    TransformerPrior,
    VectorQuantizer,
    autoencoder,
    backbones,
    classifier,
    codes,
    data,
    evaluation,
    likelihoods,
    losses,
    metrics,
    plots,
    priors,
    quantizers,
    training,
    vae,
)
from companion.augment import Augment
from companion.configured import CLASSES, Configured
from companion.priors.sampling import draw
from companion.priors.transformer import Block, CausalSelfAttention, Transformer, causal_attention

# callable.argument whose checks are still to be written: a strict xfail, so that none stays here once it is done.
NOT_YET: set[str] = set()

SECONDS = 10  # after which a call hangs
SCRATCH = tempfile.TemporaryDirectory()  # goes when the process ends
Good = tuple[Callable[..., Any], dict[str, Any]]


# One good call of everything ------------------------------------------------------------------------------------------


def images(n: int = 2, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size)


def grey(n: int = 2) -> Tensor:
    """Images of the 256 values that a byte has."""
    return (images(n) * 255).round() / 255


def latents(n: int = 40) -> Tensor:
    return torch.randn(n, 4, 2, 2)


def vectors(n: int = 40) -> Tensor:
    return torch.randn(n, 4)


def drawing() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def encoder() -> Encoder:
    return Encoder(3, hidden=2, image_size=8)


def decoder() -> Decoder:
    return Decoder(3, hidden=2, image_size=8)


def auto() -> Autoencoder:
    return Autoencoder(encoder(), decoder())


def variational(autoregressive: bool = False) -> VAE:
    likelihood = likelihoods.Gaussian(binned=True)
    if autoregressive:
        context = Decoder(3, out_channels=4, hidden=2, image_size=8)
        return VAE(Encoder(6, hidden=2, image_size=8), AutoregressiveDecoder(context, hidden=4, kernel=3), likelihood)
    return VAE(Encoder(6, hidden=2, image_size=8), decoder(), likelihood)


def tokenizer(quantizer: nn.Module | None = None) -> VQVAE:
    parts = {"hidden": 4, "factor": 4, "num_blocks": 1}
    return VQVAE(ResNetEncoder(1, 4, **parts), quantizer or VectorQuantizer(5, 4), ResNetDecoder(1, 4, **parts)).eval()


def ema() -> EMAVectorQuantizer:
    return EMAVectorQuantizer(5, 4)


def distance() -> losses.FeatureDistance:
    return losses.FeatureDistance(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), ["1"])


def vgg_file() -> Path:
    """VGG16 as torchvision saves it, of zeros, which are one number on disk."""
    with torch.device("meta"):
        state = torchvision.models.vgg16().state_dict()
    path = Path(SCRATCH.name, "vgg16.pth")
    torch.save({name: torch.zeros((), device="cpu").expand(value.shape) for name, value in state.items()}, path)
    return path


def adversarial() -> losses.AdversarialTraining:
    return losses.AdversarialTraining(tokenizer(), losses.PatchDiscriminator(1, width=2), distance())


def two_losses() -> dict[str, Any]:
    layer = torch.rand(3).requires_grad_()
    return {"reconstruction_loss": layer.sum(), "adversarial_loss": layer.square().sum(), "last_layer": layer}


def residual() -> ResidualQuantizer:
    return ResidualQuantizer([VectorQuantizer(5, 4), VectorQuantizer(5, 4)])


class OwnPart(Configured, nn.Module):
    """A class of a reader."""


QUANTIZERS: dict[str, tuple[Callable[..., nn.Module], Callable[[], dict[str, Any]]]] = {
    "VectorQuantizer": (
        VectorQuantizer,
        lambda: {"num_codes": 5, "dim": 4, "commitment_weight": 0.25, "estimator": "rotation"},
    ),
    "EMAVectorQuantizer": (
        EMAVectorQuantizer,
        lambda: {
            "num_codes": 5, "dim": 4, "decay": 0.9, "commitment_weight": 0.25, "smoothing": 1e-5, "init": "uniform",
            "restart_below": 0.02, "cosine": False, "estimator": "rotation", "seed": 1, "frozen": False,
        },
    ),
    "FiniteScalarQuantizer": (FiniteScalarQuantizer, lambda: {"levels": [5, 3, 2, 2]}),
    "GumbelQuantizer": (
        GumbelQuantizer,
        lambda: {
            "num_codes": 5, "dim": 4, "kl_weight": 0.1, "temperature": 1.0, "final_temperature": 0.5, "anneal_steps": 9,
        },
    ),
    "ProjectedQuantizer": (ProjectedQuantizer, lambda: {"quantizer": VectorQuantizer(5, 2), "dim": 4}),
    "ResidualQuantizer": (
        ResidualQuantizer,
        lambda: {"quantizers": VectorQuantizer(5, 4), "depth": 2, "depth_dropout": 0.5},
    ),
}  # fmt: skip

PRIOR_OPTIONS: dict[str, Any] = {"num_classes": 3, "label_dropout": 0.1, "tokenizer": "abc"}
PRIORS: dict[str, tuple[Callable[..., priors.Prior], dict[str, Any]]] = {
    "TransformerPrior": (
        TransformerPrior,
        {"num_codes": 5, "grid": (2, 2), "dim": 4, "layers": 1, "heads": 2, "dropout": 0.1, **PRIOR_OPTIONS},
    ),
    "MambaPrior": (
        MambaPrior,
        {"num_codes": 5, "grid": (2, 2), "dim": 4, "layers": 1, "state": 2, "head_dim": 2, **PRIOR_OPTIONS},
    ),
    "PixelCNN": (
        PixelCNN,
        {"num_codes": 5, "grid": (2, 2), "dim": 4, "layers": 1, "kernel": 3, **PRIOR_OPTIONS},
    ),
    "RQTransformer": (
        RQTransformer,
        {
            "num_codes": 5, "grid": (2, 2, 2), "dim": 4, "layers": 1, "depth_layers": 1, "heads": 2, "dropout": 0.1,
            **PRIOR_OPTIONS,
        },
    ),
}  # fmt: skip


def prior(kind: str = "TransformerPrior") -> priors.Prior:
    make, options = PRIORS[kind]
    return make(**options)


def tables(n: int = 3, grid: tuple[int, ...] = (2, 2)) -> Tensor:
    return torch.arange(n * math.prod(grid)).reshape(n, *grid) % 5


def labels(n: int = 3) -> Tensor:
    return torch.arange(n) % 3


@functools.cache
def glyphs() -> data.ImageSet:
    return data.load("glyphs", "train", size=20)


def small_set() -> data.ImageSet:
    raw = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    return data.ImageSet("some", "train", raw, torch.arange(12) % 3, ("a", "b", "c"))


def code_set() -> CodeSet:
    return CodeSet(tables(), labels(), 5, "abc")


def written(what: str) -> Path:
    path = Path(SCRATCH.name, f"{what}.safetensors")
    if not path.exists():
        if what == "codes":
            code_set().save(path)
        else:
            companion.save(encoder(), path)
    return path


def pretrained_folder() -> Path:
    path = Path(SCRATCH.name, "encoder")
    companion.save_pretrained(encoder(), path)
    return path


def history() -> training.History:
    return training.History([{"epoch": 1, "step": 1, "loss": 0.5}])


def loss_of(model: nn.Module, *batch: Tensor) -> Any:
    return model(batch[0])


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters)


def mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


def looked_at(epoch: training.Epoch) -> None:
    """A caller's function that does nothing."""


def learning_once(model: nn.Module) -> None:
    with quantizers.one_update(model):
        model(latents())


def training_call() -> Good:
    arguments = {
        "model": auto(), "train": small_set(), "epochs": 1, "batch_size": 4, "lr": 1e-3, "validation": small_set(),
        "objective": loss_of, "augment": mirrored, "optimizer": adam, "seed": 0, "precision": "no",
        "schedule": training.WarmupCosine(), "clip": 1.0, "accumulate": 2, "average": 0.9, "after_epoch": looked_at,
        "run": Path(tempfile.mkdtemp(dir=SCRATCH.name)), "save_every": 1, "device": "cpu", "progress": False,
    }  # fmt: skip
    return companion.fit, arguments


def train_step_call() -> Good:
    model = auto()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return training.train_step, {"model": model, "optimizer": optimizer, "x": images()}


def evaluation_call() -> Good:
    return classifier.evaluate_samples, {
        "classifier": Classifier(1, 3, width=2), "images": images(4), "labels": labels(4), "train": small_set(),
        "held_out": small_set(), "batch_size": 2,
    }  # fmt: skip


def params(per_channel: int) -> Tensor:
    return torch.randn(2, per_channel, 8, 8)


def axes() -> Any:
    return plots.figure()[1]


def step_statistics() -> dict[str, Any]:
    z, k = vectors(), torch.arange(40) % 5
    n, s = quantizers.code_statistics(z, k, 5)
    return {"codebook": vectors(5), "counts": torch.ones(5), "n": n, "s": s, "decay": 0.9, "smoothing": 1e-5}


SMALL_MAMBA = {"hidden": 4, "state": 2, "head_dim": 2}
MAMBA_PARTS = (backbones.Mamba2Mixer, backbones.Mamba2Block, backbones.BidirectionalMamba2Block)


def mamba_frame(channels: str) -> dict[str, Any]:
    return {
        channels: 1, "dim": 4, "hidden": 2, "factor": (2, 4), "num_blocks": 1, "size": (8, 8), "kernel": (4, 6),
        "state": 2, "head_dim": 2,
    }  # fmt: skip


def row_with_state() -> dict[str, Tensor]:
    """Two rows of three positions, 2 heads of 4 numbers, and a state of 5 columns."""
    return {
        "x": torch.randn(2, 3, 2, 4), "log_decay": -torch.rand(2, 3, 2), "b": torch.randn(2, 3, 5),
        "c": torch.randn(2, 3, 5), "state": torch.randn(2, 2, 4, 5),
    }  # fmt: skip


GOOD: dict[str, Callable[[], Good]] = {
    "Augment": lambda: (Augment, {"crop": (0.8, 1.0), "flip": 0.3, "sharpness": 0.3, "autocontrast": 0.3}),
    "Encoder": lambda: (Encoder, {"latent_dim": 3, "in_channels": 1, "hidden": 2, "image_size": 8}),
    "Encoder.forward": lambda: (encoder(), {"x": images()}),
    "Decoder": lambda: (Decoder, {"latent_dim": 3, "out_channels": 1, "hidden": 2, "image_size": 8}),
    "Decoder.forward": lambda: (decoder(), {"z": torch.randn(2, 3)}),
    "Autoencoder": lambda: (Autoencoder, {"encoder": encoder(), "decoder": decoder()}),
    "Autoencoder.forward": lambda: (auto(), {"x": images()}),
    "Autoencoder.reconstruct": lambda: (auto().reconstruct, {"x": images()}),
    "autoencoder.pca_reconstruct": lambda: (
        autoencoder.pca_reconstruct,
        {"x_train": images(5), "x": images(), "d": 2},
    ),
    "autoencoder.interpolate": lambda: (
        autoencoder.interpolate,
        {"start": torch.randn(3), "end": torch.randn(3), "steps": 4},
    ),
    "backbones.conv_output_size": lambda: (
        backbones.conv_output_size,
        {"size": 9, "kernel": 3, "stride": 2, "padding": 1},
    ),
    "ResidualBlock": lambda: (backbones.ResidualBlock, {"channels": 2, "dims": 2}),
    "ResidualBlock.forward": lambda: (backbones.ResidualBlock(2), {"x": torch.randn(2, 2, 4, 4)}),
    "ResNetEncoder": lambda: (
        ResNetEncoder,
        {"in_channels": 1, "dim": 4, "hidden": 2, "factor": (2, 4), "num_blocks": 1, "dims": 2},
    ),
    "ResNetEncoder.forward": lambda: (ResNetEncoder(1, 4, hidden=2), {"x": images()}),
    "ResNetDecoder": lambda: (
        ResNetDecoder,
        {"out_channels": 1, "dim": 4, "hidden": 2, "factor": 4, "num_blocks": 1, "dims": 2},
    ),
    "ResNetDecoder.forward": lambda: (ResNetDecoder(1, 4, hidden=2), {"z": latents(2)}),
    "backbones.patchify": lambda: (backbones.patchify, {"x": images(), "patch": 4}),
    "backbones.unpatchify": lambda: (
        backbones.unpatchify,
        {"tokens": torch.rand(2, 2, 16), "patch": (2, 4), "grid": (2, 1)},
    ),
    "RMSNorm": lambda: (backbones.RMSNorm, {"channels": 4, "axis": 1}),
    "RMSNorm.forward": lambda: (backbones.RMSNorm(4, axis=1), {"x": torch.randn(2, 4, 3)}),
    "ConvNeXtBlock": lambda: (backbones.ConvNeXtBlock, {"channels": 2}),
    "ConvNeXtBlock.forward": lambda: (backbones.ConvNeXtBlock(2), {"x": torch.randn(2, 2, 4, 4)}),
    "backbones.attention": lambda: (
        backbones.attention,
        {"queries": torch.randn(2, 2, 3, 4), "keys": torch.randn(2, 2, 5, 4), "values": torch.randn(2, 2, 5, 4)},
    ),
    "backbones.axial_rotary": lambda: (backbones.axial_rotary, {"x": torch.randn(2, 2, 6, 4), "grid": (2, 3)}),
    "SelfAttention": lambda: (backbones.SelfAttention, {"hidden": 8, "heads": 2, "grid": (2, 3)}),
    "SelfAttention.forward": lambda: (backbones.SelfAttention(8, 2, (2, 3)), {"tokens": torch.randn(2, 6, 8)}),
    "TransformerBlock": lambda: (backbones.TransformerBlock, {"hidden": 8, "heads": 2, "grid": (2, 3)}),
    "TransformerBlock.forward": lambda: (backbones.TransformerBlock(8, 2), {"tokens": torch.randn(2, 6, 8)}),
    "SwiGLU": lambda: (backbones.SwiGLU, {"hidden": 4, "expansion": 1.5}),
    "SwiGLU.forward": lambda: (backbones.SwiGLU(4), {"x": torch.randn(2, 3, 4)}),
    "Mamba2Encoder": lambda: (backbones.Mamba2Encoder, mamba_frame("in_channels")),
    "BidirectionalMamba2Encoder": lambda: (backbones.BidirectionalMamba2Encoder, mamba_frame("in_channels")),
    "Mamba2Decoder": lambda: (backbones.Mamba2Decoder, mamba_frame("out_channels") | {"last_conv": True}),
    "BidirectionalMamba2Decoder": lambda: (
        backbones.BidirectionalMamba2Decoder,
        mamba_frame("out_channels") | {"last_conv": True},
    ),
    "Mamba2Encoder.forward": lambda: (backbones.Mamba2Encoder(1, 4, **SMALL_MAMBA, size=8), {"x": images()}),
    "BidirectionalMamba2Encoder.forward": lambda: (
        backbones.BidirectionalMamba2Encoder(1, 4, **SMALL_MAMBA, size=8),
        {"x": images()},
    ),
    "Mamba2Decoder.forward": lambda: (backbones.Mamba2Decoder(1, 4, **SMALL_MAMBA, size=8), {"z": latents(2)}),
    "BidirectionalMamba2Decoder.forward": lambda: (
        backbones.BidirectionalMamba2Decoder(1, 4, **SMALL_MAMBA, size=8),
        {"z": latents(2)},
    ),
    **{
        make.__name__: lambda make=make: (make, {**SMALL_MAMBA, "expand": 1, "conv": 3})
        for make in MAMBA_PARTS
    },
    **{
        f"{make.__name__}.forward": lambda make=make: (make(**SMALL_MAMBA), {"x": torch.randn(2, 3, 4)})
        for make in MAMBA_PARTS
    },
    "Mamba2Mixer.new_state": lambda: (backbones.Mamba2Mixer(**SMALL_MAMBA).new_state, {"n": 2}),
    **{
        f"{make.__name__}.step": lambda make=make: (
            make(**SMALL_MAMBA).step,
            {"x": torch.randn(2, 4), "state": backbones.Mamba2Mixer(**SMALL_MAMBA).new_state(2)},
        )
        for make in MAMBA_PARTS[:2]
    },
    "backbones.ssd_recurrence": lambda: (backbones.ssd_recurrence, row_with_state()),
    "backbones.ssd_chunked": lambda: (backbones.ssd_chunked, row_with_state() | {"chunk": 2}),
    "backbones.ssd_matrix": lambda: (
        backbones.ssd_matrix,
        {name: one for name, one in row_with_state().items() if name in ("log_decay", "b", "c")},
    ),
    "backbones.ssd_step": lambda: (
        backbones.ssd_step,
        {name: one if name == "state" else one[:, 0] for name, one in row_with_state().items()},
    ),
    "backbones.raster_mask": lambda: (backbones.raster_mask, {"kernel": (3, 5), "centre": True}),
    "MaskedConv2d": lambda: (
        backbones.MaskedConv2d,
        {"in_channels": 1, "out_channels": 2, "kernel": 3, "centre": False, "bias": True},
    ),
    "MaskedConv2d.forward": lambda: (backbones.MaskedConv2d(1, 2, 3, centre=False), {"x": images()}),
    "AutoregressiveDecoder": lambda: (
        AutoregressiveDecoder,
        {"context": decoder(), "out_channels": 1, "in_channels": 1, "hidden": 2, "kernel": 3, "layers": 1},
    ),
    "AutoregressiveDecoder.forward": lambda: (variational(True).decoder, {"z": torch.randn(2, 3), "x": images()}),
    "checkpoint.save": lambda: (companion.save, {"model": encoder(), "path": Path(SCRATCH.name, "new.safetensors")}),
    "checkpoint.load": lambda: (
        companion.load,
        {"path": written("encoder"), "model": None, "device": "cpu", "dtype": torch.float64},
    ),
    "hub.save_pretrained": lambda: (
        companion.save_pretrained,
        {"model": encoder(), "folder": Path(SCRATCH.name, "pretrained")},
    ),
    "hub.from_pretrained": lambda: (
        companion.from_pretrained,
        {"source": pretrained_folder(), "revision": None, "device": "cpu", "dtype": torch.float64},
    ),
    "configured.register": lambda: (companion.register, {"kind": OwnPart}),
    "Classifier": lambda: (Classifier, {"in_channels": 1, "num_classes": 3, "width": 2, "dropout": 0.1}),
    "Classifier.forward": lambda: (Classifier(width=2), {"x": images()}),
    "classifier.load_classifier": lambda: (classifier.load_classifier, {"data": "glyphs"}),
    "classifier.recognise": lambda: (
        classifier.recognise,
        {"classifier": Classifier(width=2), "images": images(), "batch_size": 1},
    ),
    "classifier.evaluate_samples": evaluation_call,
    "codes.identity": lambda: (codes.identity, {"tokenizer": tokenizer()}),
    "codes.check_identity": lambda: (codes.check_identity, {"tokenizer": named(), "codes_or_prior": named_codes()}),
    "codes.tokenize": lambda: (
        codes.tokenize,
        {"tokenizer": tokenizer(), "images": small_set(), "batch_size": 5, "progress": False},
    ),
    "diagnosis.diagnose": lambda: (
        companion.diagnose,
        {
            "model": tokenizer(), "data": small_set(), "prior": prior(), "most": 5, "batch_size": 3, "samples": 2,
            "seed": 1,
        },
    ),
    "evaluation.evaluate_tokenizer": lambda: (
        companion.evaluate_tokenizer,
        {
            "model": tokenizer(), "data": small_set(), "prior": prior(), "features": "glyphs", "variance": 0.5,
            "most": 5, "batch_size": 3,
        },
    ),
    "evaluation.classical_codecs": lambda: (
        companion.classical_codecs,
        {
            "data": small_set(), "codecs": ["JPEG", "PNG"], "qualities": [50, 90], "variance": 0.5, "most": 5,
            "tiles": 4,
        },
    ),
    "evaluation.psnr": lambda: (evaluation.psnr, {"mse": 0.01}),
    "CodeSet": lambda: (CodeSet, {"codes": tables(), "labels": labels(), "num_codes": 5, "tokenizer": "abc"}),
    "CodeSet.batch": lambda: (code_set().batch, {"indices": torch.tensor([0, 2]), "device": "cpu"}),
    "CodeSet.to": lambda: (code_set().to, {"device": "cpu"}),
    "CodeSet.save": lambda: (code_set().save, {"path": Path(SCRATCH.name, "new.safetensors")}),
    "CodeSet.load": lambda: (CodeSet.load, {"path": written("codes")}),
    "data.load": lambda: (
        data.load,
        {
            "name": "glyphs", "split": "train", "size": 3, "seed": 0, "image_size": 28, "test_share": None,
            "fit": "crop", "background": "white", "unreadable": "raise", "cache": None, "root": SCRATCH.name,
        },
    ),
    "ImageSet": lambda: (
        data.ImageSet,
        {
            "name": "some", "split": "train", "images": small_set().images, "labels": small_set().labels,
            "classes": ("a", "b", "c"),
        },
    ),
    "ImageSet.to": lambda: (small_set().to, {"device": "cpu"}),
    "ImageSet.digests": lambda: (small_set().digests, {}),
    "ImageSet.subset": lambda: (small_set().subset, {"n": 2}),
    "ImageSet.batch": lambda: (small_set().batch, {"indices": torch.tensor([0, 2]), "device": "cpu"}),
    "Gaussian": lambda: (likelihoods.Gaussian, {"scale": 0.1, "binned": True, "learn_scale": False}),
    "Bernoulli": lambda: (likelihoods.Bernoulli, {"relaxed": True}),
    "Categorical": lambda: (likelihoods.Categorical, {"levels": 4}),
    "DiscretizedLogisticMixture": lambda: (likelihoods.DiscretizedLogisticMixture, {"components": 2}),
    "likelihoods.discretized_logistic": lambda: (
        likelihoods.discretized_logistic,
        {"x": grey(), "mean": images(), "log_scale": torch.randn(2, 1, 8, 8)},
    ),
    "likelihoods.discretized_gaussian": lambda: (
        likelihoods.discretized_gaussian,
        {"x": grey(), "mean": images(), "log_scale": torch.randn(2, 1, 8, 8)},
    ),
    "metrics.mse": lambda: (metrics.mse, {"x_hat": images(), "x": images()}),
    "metrics.distortion": lambda: (metrics.distortion, {"error": 0.1, "variance": 0.2}),
    "metrics.nominal_bits": lambda: (metrics.nominal_bits, {"num_codes": 5, "grid": (2, 2)}),
    "CodeUsage": lambda: (metrics.CodeUsage, {"num_codes": 5, "per_position": True}),
    "CodeUsage.update": lambda: (metrics.CodeUsage(5).update, {"indices": tables()}),
    "metrics.bits_per_image": lambda: (metrics.bits_per_image, {"indices": tables(), "num_codes": 5}),
    "metrics.perplexity": lambda: (metrics.perplexity, {"counts": torch.tensor([1.0, 0.0, 2.0])}),
    "metrics.ssim": lambda: (metrics.ssim, {"x_hat": images(size=12), "x": images(size=12)}),
    "metrics.sharpness": lambda: (metrics.sharpness, {"images": images()}),
    "metrics.grid_energy": lambda: (metrics.grid_energy, {"images": images(), "patch": 4}),
    "FeatureDistance": lambda: (
        losses.FeatureDistance,
        {
            "network": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "taps": ["0", "1"],
            "weights": [torch.rand(2), torch.rand(2)], "mean": (0.5,), "std": (0.5,), "repeat_grey": False,
            "epsilon": 1e-3,
        },
    ),
    "FeatureDistance.forward": lambda: (distance(), {"x_hat": images(), "x": images()}),
    "FeatureDistance.per_image": lambda: (distance().per_image, {"x_hat": images(), "x": images()}),
    "FeatureDistance.pooled": lambda: (distance().pooled, {"x": images()}),
    "FeatureDistance.train": lambda: (distance().train, {"mode": True}),
    "losses.feature_distance": lambda: (
        losses.feature_distance,
        {
            "features_hat": [images(channels=3), images()], "features": [images(channels=3), images()],
            "weights": [torch.rand(3), torch.rand(1)], "epsilon": 1e-3,
        },
    ),
    "losses.lpips_vgg": lambda: (losses.lpips_vgg, {"weights": vgg_file(), "download": False}),
    "losses.classifier_distance": lambda: (losses.classifier_distance, {"data": "glyphs"}),
    "losses.hinge_discriminator_loss": lambda: (
        losses.hinge_discriminator_loss,
        {"real": torch.randn(4), "fake": torch.randn(5)},
    ),
    "losses.hinge_generator_loss": lambda: (losses.hinge_generator_loss, {"fake": torch.randn(5)}),
    "losses.non_saturating_discriminator_loss": lambda: (
        losses.non_saturating_discriminator_loss,
        {"real": torch.randn(4), "fake": torch.randn(5)},
    ),
    "losses.non_saturating_generator_loss": lambda: (
        losses.non_saturating_generator_loss,
        {"fake": torch.randn(5)},
    ),
    "losses.logits_with_constants": lambda: (
        losses.logits_with_constants,
        {"discriminator": losses.PatchDiscriminator(1, width=2), "x_hat": images()},
    ),
    "losses.adaptive_weight": lambda: (losses.adaptive_weight, two_losses() | {"most": 1e4, "epsilon": 1e-4}),
    "losses.r1_penalty": lambda: (
        losses.r1_penalty,
        {"discriminator": losses.PatchDiscriminator(1, width=2), "real": images()},
    ),
    "losses.lecam_penalty": lambda: (
        losses.lecam_penalty,
        {
            "real": torch.randn(4), "fake": torch.randn(5), "real_mean": torch.tensor(0.5),
            "fake_mean": torch.tensor(-0.5),
        },
    ),
    "LeCamPenalty": lambda: (losses.LeCamPenalty, {"decay": 0.9}),
    "LeCamPenalty.forward": lambda: (losses.LeCamPenalty(), {"real": torch.randn(4), "fake": torch.randn(5)}),
    "PatchDiscriminator": lambda: (
        losses.PatchDiscriminator,
        {"in_channels": 1, "width": 2, "layers": 1, "norm": "group"},
    ),
    "PatchDiscriminator.forward": lambda: (losses.PatchDiscriminator(1, width=2), {"x": images()}),
    "PatchDiscriminator.map": lambda: (losses.PatchDiscriminator(1, width=2).map, {"x": images()}),
    "losses.patch_map": lambda: (
        losses.patch_map,
        {"logits": torch.randn(2, 1, 3, 2), "size": (9, 8), "patch": 4, "stride": 3, "offset": -1},
    ),
    "AdversarialTraining": lambda: (
        losses.AdversarialTraining,
        {
            "tokenizer": tokenizer(), "discriminator": losses.PatchDiscriminator(1, width=2),
            "feature_distance": None, "adversarial_loss": "hinge", "perceptual_weight": 1.0,
            "adversarial_weight": 0.5, "adaptive": True, "last_layer": "decoder.layers.0.weight", "start": 0,
            "penalty": "r1", "penalty_weight": 1.0,
        },
    ),
    "AdversarialTraining.forward": lambda: (adversarial(), {"x": images()}),
    "metrics.frechet_distance": lambda: (metrics.frechet_distance, {"a": vectors(6), "b": vectors(5)}),
    "classifier.nearest_distances": lambda: (classifier.nearest_distances, {"images": images(), "training": images(5)}),
    "Picture": lambda: (plots.Picture, {"png": b"", "alt": "a line", "width": 9}),
    "plots.show": lambda: (plots.show, {"fig": plots.figure()[0], "alt": "nothing yet"}),
    "plots.to_png": lambda: (plots.to_png, {"fig": plots.figure(1, 1)[0], "dpi": 20}),
    "plots.figure": lambda: (plots.figure, {"width": 2.0, "height": 1.5, "rows": 1, "columns": 2}),
    "plots.image_rows": lambda: (
        plots.image_rows,
        {"rows": {"x": images(), "x̂": images()}, "title": "two", "columns": 2, "size": 0.5},
    ),
    "plots.image_grid": lambda: (plots.image_grid, {"images": images(3), "columns": 2, "title": "some", "size": 0.5}),
    "plots.draw_image": lambda: (plots.draw_image, {"ax": axes(), "image": images()[0]}),
    "plots.class_scatter": lambda: (
        plots.class_scatter,
        {"ax": axes(), "points": torch.rand(6, 2), "labels": labels(6), "classes": ("a", "b", "c")},
    ),
    "plots.pipeline_map": lambda: (
        plots.pipeline_map,
        {"image": images()[0], "codes": tables(1)[0], "rebuilt": images()[0], "sampled": images()[0]},
    ),
    "plots.draw_codes": lambda: (
        plots.draw_codes,
        {"ax": axes(), "codes": tables(1)[0], "order": torch.arange(5), "numbers": True},
    ),
    "plots.rectangle": lambda: (plots.rectangle, {"corner": (0.5, 1.0), "width": 2.0, "height": 3.0}),
    "plots.draw_cells": lambda: (
        plots.draw_cells,
        {"ax": axes(), "codebook": torch.rand(3, 2), "points": torch.rand(4, 2), "numbers": False, "border": 0.1},
    ),
    "plots.rate_distortion": lambda: (
        plots.rate_distortion,
        {"curves": {"JPEG": [(1.0, 0.1), (2.0, 0.05)]}, "title": "some", "loss": "distortion"},
    ),
    "plots.draw_gradient_flow": lambda: (
        plots.draw_gradient_flow,
        {"ax": axes(), "table": {"reconstruction": {"encoder": 1.0, "decoder": 0.5}}},
    ),
    "pretrained.pretrained": lambda: (companion.pretrained, {"name": "glyphs-classifier"}),
    "pretrained.scores": lambda: (scores, {"name": "glyphs-classifier"}),
    "priors.filtered_probabilities": lambda: (
        priors.filtered_probabilities,
        {"logits": torch.randn(2, 5), "temperature": 0.7, "top_k": 2, "top_p": 0.9},
    ),
    "priors.prior_bits": lambda: (
        priors.prior_bits,
        {"prior": prior(), "codes": tables(), "labels": labels(), "batch_size": 2},
    ),
    "quantizers.straight_through": lambda: (quantizers.straight_through, {"z": vectors(), "z_q": vectors()}),
    "quantizers.rotation_trick": lambda: (quantizers.rotation_trick, {"z": vectors(), "z_q": vectors()}),
    "quantizers.code_statistics": lambda: (
        quantizers.code_statistics,
        {"vectors": vectors(), "indices": torch.arange(40) % 5, "num_codes": 5},
    ),
    "quantizers.ema_step": lambda: (quantizers.ema_step, step_statistics()),
    "quantizers.restart": lambda: (
        quantizers.restart,
        {"codebook": vectors(5), "counts": torch.ones(5), "candidates": vectors(5), "restart_below": 0.5},
    ),
    "quantizers.cosine_lookup": lambda: (quantizers.cosine_lookup, {"z": vectors(), "codebook": vectors(5)}),
    "quantizers.k_means": lambda: (
        quantizers.k_means,
        {"vectors": vectors(), "num_codes": 5, "seed": 0, "stream": 1, "iterations": 2, "cosine": False},
    ),
    "EMAVectorQuantizer.freeze": lambda: (ema().freeze, {"frozen": True}),
    "EMAVectorQuantizer.requires_grad_": lambda: (ema().requires_grad_, {"requires_grad": True}),
    "EMAVectorQuantizer.from_codebook": lambda: (
        functools.partial(EMAVectorQuantizer.from_codebook, decay=0.9),
        {"codebook": vectors(5), "counts": torch.ones(5)},
    ),
    "quantizers.nearest_code": lambda: (quantizers.nearest_code, {"z": vectors(), "codebook": vectors(5)}),
    "quantizers.one_update": lambda: (learning_once, {"model": ema()}),
    "quantizers.vq_losses": lambda: (quantizers.vq_losses, {"z": vectors(), "z_q": vectors()}),
    "quantizers.rate_bits": lambda: (
        quantizers.rate_bits,
        {"indices": tables(3, (2, 2, 2)), "num_codes": 5, "depth": 2},
    ),
    "quantizers.residual_encode": lambda: (
        quantizers.residual_encode,
        {"z": latents(), "quantizers": [VectorQuantizer(5, 4)]},
    ),
    "quantizers.decode_to_depth": lambda: (
        quantizers.decode_to_depth,
        {"indices": tables(3, (2, 2, 1)), "quantizers": [VectorQuantizer(5, 4)], "depth": 1},
    ),
    "training.train_step": train_step_call,
    "training.fit": training_call,
    "WarmupCosine": lambda: (training.WarmupCosine, {"warmup": 2, "floor": 0.1}),
    "EarlyStopping": lambda: (
        training.EarlyStopping,
        {"column": "validation_loss", "patience": 2, "smallest_change": 0.1, "maximize": False},
    ),
    "History.plot": lambda: (history().plot, {"term": "loss", "width": 2.0, "height": 1.0}),
    "vae.reparameterize": lambda: (
        vae.reparameterize,
        {"mean": vectors(), "log_variance": vectors(), "noise": vectors()},
    ),
    "vae.kl_divergence": lambda: (vae.kl_divergence, {"mean": vectors(), "log_variance": vectors()}),
    "vae.elbo": lambda: (vae.elbo, {"log_likelihood": torch.randn(3), "kl": torch.rand(3, 2)}),
    "vae.importance_weighted_bound": lambda: (vae.importance_weighted_bound, {"log_weights": torch.randn(3, 2)}),
    "vae.active_units": lambda: (vae.active_units, {"mean": vectors(), "threshold": 0.01}),
    "vae.bits_per_dimension": lambda: (vae.bits_per_dimension, {"log_prob": torch.randn(3), "dimensions": 9}),
    "VAE": lambda: (
        VAE,
        {"encoder": encoder(), "decoder": decoder(), "likelihood": likelihoods.Gaussian(), "beta": 1.0},
    ),
    "VAE.encode": lambda: (variational().encode, {"x": images()}),
    "VAE.decode": lambda: (variational(True).decode, {"z": torch.randn(2, 3), "x": images()}),
    "VAE.forward": lambda: (variational(), {"x": grey(), "noise": torch.randn(2, 3), "generator": drawing()}),
    "VAE.reconstruct": lambda: (variational().reconstruct, {"x": images()}),
    "VAE.sample": lambda: (
        variational().sample,
        {"n": 2, "latent_shape": (3,), "mean": True, "generator": drawing()},
    ),
    "VAE.log_weights": lambda: (
        variational().log_weights,
        {"x": grey(), "samples": 3, "generator": drawing(), "batch_size": 4},
    ),
    "VQVAE": lambda: (
        VQVAE,
        {
            "encoder": ResNetEncoder(1, 4, hidden=2), "quantizer": VectorQuantizer(5, 4),
            "decoder": ResNetDecoder(1, 4, hidden=2), "quantizer_weight": 1.0,
        },
    ),
    "VQVAE.forward": lambda: (tokenizer(), {"x": images()}),
    "VQVAE.encode": lambda: (tokenizer().encode, {"x": images()}),
    "VQVAE.decode": lambda: (tokenizer().decode, {"indices": tables(), "depth": 1}),
    "VQVAE.reconstruct": lambda: (tokenizer().reconstruct, {"x": images()}),
}  # fmt: skip


def named() -> VQVAE:
    torch.manual_seed(0)
    return tokenizer()


def named_codes() -> CodeSet:
    return CodeSet(tables(), labels(), 5, codes.identity(named()))


scores = importlib.import_module("companion.pretrained").scores  # the name `pretrained` is the function

for _kind, (_make, _options) in QUANTIZERS.items():
    GOOD[_kind] = lambda make=_make, options=_options: (make, options())
    for _method, _given in (
        ("forward", lambda: {"z": latents(), "mask": torch.ones(40, 2, 2, dtype=torch.bool)}),
        ("encode", lambda: {"z": latents()}),
        ("decode", lambda: {"indices": tables(3, (2, 2)), "depth": 1}),
    ):
        if _kind == "ResidualQuantizer" and _method == "decode":
            GOOD[f"{_kind}.decode"] = lambda: (residual().decode, {"indices": tables(3, (2, 2, 2)), "depth": 1})
            continue
        if _kind == "ResidualQuantizer" and _method == "forward":  # its dropout takes no mask
            GOOD[f"{_kind}.forward"] = lambda given=_given: (residual(), given())
            continue
        GOOD[f"{_kind}.{_method}"] = lambda make=_make, options=_options, method=_method, given=_given: (
            getattr(make(**options()), method) if method != "forward" else make(**options()),
            given(),
        )
for _kind, (_prior, _prior_options) in PRIORS.items():
    _grid = _prior_options["grid"]
    GOOD[_kind] = lambda make=_prior, options=_prior_options: (make, dict(options))
    for _method in ("forward", "loss"):
        GOOD[f"{_kind}.{_method}"] = lambda kind=_kind, grid=_grid, method=_method: (
            getattr(prior(kind), method) if method != "forward" else prior(kind),
            {"codes": tables(3, grid), "labels": labels(), "mask": torch.ones(3, *grid, dtype=torch.bool)},
        )
    GOOD[f"{_kind}.sample"] = lambda kind=_kind: (
        prior(kind).sample,
        {
            "n": 2, "label": torch.tensor([0, 2]), "prefix": tables(2, PRIORS[kind][1]["grid"])[:, :1],
            "temperature": 0.7, "top_k": 2, "top_p": 0.9, "guidance": 1.5,
            "generator": drawing(), "cache": True, "batch_size": 2,
        },
    )  # fmt: skip
for _name, _per_channel in (("Gaussian", 1), ("Bernoulli", 1), ("Categorical", 4), ("DiscretizedLogisticMixture", 6)):

    def _likelihood(name: str = _name) -> likelihoods.Likelihood:
        make, arguments = GOOD[name]()
        return make(**arguments)

    GOOD[f"{_name}.log_prob"] = lambda make=_likelihood, n=_per_channel, name=_name: (
        make().log_prob,
        {"params": params(n), "x": (images() * 3).round() / 3 if name == "Categorical" else grey()},
    )
    GOOD[f"{_name}.sample"] = lambda make=_likelihood, n=_per_channel: (
        make().sample,
        {"params": params(n), "generator": drawing()},
    )
    GOOD[f"{_name}.mean"] = lambda make=_likelihood, n=_per_channel: (make().mean, {"params": params(n)})

for _kind, _more, _decoder_only in (
    ("ConvNeXt", {"attention": True, "heads": 2}, {}),
    ("ViT", {"size": (8, 16), "kernel": 8, "heads": 1, "positions": "axial-rotary"}, {"last_conv": True}),
    ("LatentToken", {"size": (8, 16), "heads": 2, "tokens": 3}, {}),
):
    _sizes = {"dim": 4, "hidden": 4, "factor": (4, 2), "num_blocks": 1} | _more
    for _half, _given in (
        (f"{_kind}Encoder", {"in_channels": 1} | _sizes),
        (f"{_kind}Decoder", {"out_channels": 1} | _sizes | _decoder_only),
    ):
        GOOD[_half] = lambda half=_half, given=_given: (getattr(companion, half), dict(given))
for _kind, _latents in (("ConvNeXt", (4, 2, 2)), ("ViT", (4, 2, 2)), ("LatentToken", (4, 3))):
    _sizes = {"hidden": 4} | ({} if _kind == "ConvNeXt" else {"size": 8})
    _sizes |= {"tokens": 3} if _kind == "LatentToken" else {}
    GOOD[f"{_kind}Encoder.forward"] = lambda kind=_kind, sizes=_sizes: (
        getattr(companion, f"{kind}Encoder")(1, 4, **sizes),
        {"x": images()},
    )
    GOOD[f"{_kind}Decoder.forward"] = lambda kind=_kind, sizes=_sizes, shape=_latents: (
        getattr(companion, f"{kind}Decoder")(1, 4, **sizes),
        {"z": torch.randn(2, *shape)},
    )

# What is public by its name and is not called by users.
NOT_CALLED = {
    "a result, made by the library": (
        "AdversarialOutput", "AutoencoderOutput", "ClassifierOutput", "Diagnosis", "Epoch", "Finding", "History",
        "Look", "MambaState", "PriorOutput", "ProjectedQuantized", "Quantized", "ResidualQuantized",
        "RatePoint", "SampleQuality", "Scores", "VAEOutput", "VQVAEOutput",
    ),
    "a base class, a protocol, or a part of saving": (
        "Configured", "Examples", "Likelihood", "Prior", "Quantizer", "VectorwiseQuantizer",
        "checkpoint.written_whole", "checkpoint.write_tensors", "checkpoint.read_tensors", "checkpoint.add_to_digest",
        "checkpoint.state_of", "checkpoint.as_path", "checkpoint.parsed", "checkpoint.differences",
        "configured.unwrapped",
        "configured.changes_since_built", "configured.check_as_built", "configured.describe", "configured.parts_of",
        "configured.plain_attributes", "configured.is_described", "configured.is_ours", "configured.is_registered",
        "configured.kind_of", "configured.plain_name", "configured.shapes_of", "configured.without_memory",
    ),
    "without arguments": ("History.table", "pretrained.names", "AdversarialTraining.decoders_last_layer"),
}  # fmt: skip
# Methods that a base class calls, with what it has checked.
INSIDE = (
    "all_logits", "steps", "initialise", "quantize", "update", "contribution", "encode_vectors", "lookup",
)  # fmt: skip


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Everything public by name: ``module.function``, ``Class`` and ``Class.method``."""
    for found in pkgutil.walk_packages(companion.__path__, "companion."):
        parts = found.name.split(".")[1:]
        if parts[0] == "course" or any(part.startswith("_") for part in parts):
            continue
        module = importlib.import_module(found.name)
        package = importlib.import_module(f"companion.{parts[0]}")
        listed = getattr(package, "__all__", None)  # a package's list says what of its modules is public
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if listed is not None and name not in listed:
                continue
            if inspect.isclass(value):
                yield name, value
                for method in _methods(value):
                    yield f"{name}.{method}", getattr(value, method)
            elif inspect.isfunction(value):
                yield f"{parts[0]}.{name}", value


def _methods(kind: type) -> list[str]:
    """Its own and its base classes' in this package."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("companion.")]
    return sorted(
        {
            name
            for base in bases
            for name, value in vars(base).items()
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
        }
    )


def test_every_public_callable_has_a_good_call_here() -> None:
    left_out = {name for names in NOT_CALLED.values() for name in names}
    names = {
        name
        for name, _ in public()
        if name in GOOD
        or (name not in left_out and name.split(".")[0] not in left_out and name.split(".")[-1] not in INSIDE)
    }
    assert sorted(names - GOOD.keys()) == [], "add a call that succeeds to GOOD"
    assert sorted(GOOD.keys() - names) == [], "there is no such public callable"


def test_a_public_callable_without_a_good_call_would_be_seen() -> None:
    names = {name for name, _ in public()}
    assert {"metrics.mse", "VAE", "VAE.sample", "RQTransformer.sample", "CodeSet.load", "ResidualBlock"} <= names
    assert "metrics._moments" not in names


@pytest.mark.parametrize("name", GOOD)
def test_the_good_call_is_good_and_gives_every_argument(name, monkeypatch) -> None:
    monkeypatch.setattr("IPython.display.display", lambda _: None)
    function, arguments = GOOD[name]()
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    wanted = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert sorted(arguments) == sorted(wanted)
    function(**arguments)


# Wrong values, by the kind of the right one --------------------------------------------------------------------------


def wrong(value: Any) -> dict[str, Any]:
    """Wrong values for an argument that may be ``value``, by a name for each."""
    other: dict[str, Any] = {"text": "text", "none": None, "object": object(), "list": [object()]}
    if isinstance(value, Tensor) and value.is_floating_point():
        broken = value.clone()
        broken.flatten()[-1:] = math.nan
        infinite = value.clone()
        infinite.flatten()[-1:] = math.inf
        return other | {
            "numbers": value.tolist(), "int64": value.long(), "uint8": value.byte(), "complex": value.cfloat(),
            "bool": value > 0, "nan": broken, "infinite": infinite, "empty": value.expand(value.shape or 1)[:0],
            "scalar": torch.tensor(0.5), "number": 0.5, "sparse": value.to_sparse(),
        }  # fmt: skip
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return other | {
            "numbers": value.tolist(), "float": value.float(), "int64": value.long(), "empty": value[:0], "number": 3,
            "nothing": torch.zeros_like(value), "flat": value.flatten(),
        }  # fmt: skip
    if isinstance(value, Tensor):
        return other | {
            "numbers": value.tolist(), "float": value.float(), "bool": value > 0, "negative": value - 1,
            "huge": value + 2**40, "empty": value[:0], "number": 3, "uint8": value.byte(),
        }  # fmt: skip
    if isinstance(value, bool):
        return other | {"number": 1, "word": "False", "tensor": torch.tensor(True)}
    if isinstance(value, int):
        return other | {
            "digit": "3", "half": 1.5, "nan": math.nan, "bool": True, "zero": 0, "negative": -1, "huge": 10**12,
            "vast": 10**30, "tensor": torch.tensor([3.5, 1.0]), "infinite": math.inf,
        }  # fmt: skip
    if isinstance(value, float):
        return other | {
            "digit": "0.5", "nan": math.nan, "infinite": math.inf, "minus infinite": -math.inf, "bool": True,
            "negative": -1.0, "tensor": torch.tensor([0.5, 1.0]), "vast": 10**400, "complex": 1j,
        }  # fmt: skip
    if isinstance(value, str):
        return {"number": 3, "none": None, "object": object(), "list": ["a"], "other": "no such thing", "bytes": b"a"}
    if isinstance(value, Path):
        return {
            "number": 3.5,
            "none": None,
            "object": object(),
            "list": ["a"],
            "missing": str(Path(SCRATCH.name, "no", "such", "file.bin")),
        }
    if isinstance(value, nn.Module):
        return other | {"class": type(value), "number": 3}
    if isinstance(value, torch.Generator):
        return {"number": 3, "text": "text", "object": object(), "python's": random.Random(0)}
    if isinstance(value, tuple | list) and value and isinstance(value[0], int):
        return {
            "text": "text", "object": object(), "none": None, "no sequence": {3}, "nothing": (),
            "zero": (0, *value[1:]), "negative": (-1, *value[1:]), "halves": (1.5, *value[1:]),
            "nan": (math.nan, *value[1:]), "huge": (10**12, *value[1:]), "bools": (True, *value[1:]),
            "nested": (value,),
        }  # fmt: skip
    if isinstance(value, Mapping):
        return other | {"nothing": {}, "numbers": dict.fromkeys(value, 3.5), "tensor": torch.zeros(2)}
    return other | {"number": 3.5}


# callable.argument: wrong values, by name, that are right there; * stands for every callable.
RIGHT_THERE: dict[str, set[str]] = {
    "*.seed": {"zero"},
    "*.padding": {"zero"},
    "*.num_blocks": {"zero"},
    "*.num_classes": {"zero"},
    "AutoregressiveDecoder.layers": {"zero"},
    # its error names the other of the two, which has another shape then
    "autoencoder.interpolate.start": {"scalar"},
    "metrics.mse.x": {"scalar"},
    "vae.reparameterize.mean": {"scalar"},
    "vae.kl_divergence.mean": {"scalar"},
    # it broadcasts
    "likelihoods.discretized_logistic.mean": {"scalar"},
    "likelihoods.discretized_logistic.log_scale": {"scalar"},
    "likelihoods.discretized_gaussian.mean": {"scalar"},
    "likelihoods.discretized_gaussian.log_scale": {"scalar"},
    # nothing is computed but a number
    "backbones.conv_output_size.size": {"huge", "vast"},
    "backbones.conv_output_size.stride": {"huge", "vast"},
    "backbones.conv_output_size.padding": {"huge", "vast"},
    # pixels, put in another order
    "backbones.patchify.x": {"nan", "infinite"},
    "backbones.unpatchify.tokens": {"nan", "infinite"},
    # sums of products; only a decay must be one
    **{
        f"backbones.{name}.{argument}": {"nan", "infinite"}
        for name in ("ssd_recurrence", "ssd_chunked", "ssd_matrix", "ssd_step")
        for argument in ("x", "b", "c", "state")
    },
    "Mamba2Mixer.step.x": {"nan", "infinite"},
    "Mamba2Block.step.x": {"nan", "infinite"},
    "backbones.axial_rotary.x": {"nan", "infinite"},
    **{f"backbones.attention.{argument}": {"nan", "infinite"} for argument in ("queries", "keys", "values")},
    # any axis may hold the channels
    "RMSNorm.axis": {"zero", "negative"},
    # one code an image, no batch, no points, codes of any number, a rectangle drawn from its other corner
    "metrics.nominal_bits.grid": {"nothing"},
    "CodeUsage.update.indices": {"empty"},
    "plots.draw_cells.points": {"empty"},
    "plots.pipeline_map.codes": {"huge"},
    "plots.rectangle.width": {"negative"},
    "plots.rectangle.height": {"negative"},
    "plots.class_scatter.classes": {"text"},
    "metrics.nominal_bits.num_codes": {"huge", "vast"},
    # bytes are images as an ImageSet holds them
    "classifier.nearest_distances.images": {"uint8"},
    "classifier.nearest_distances.training": {"uint8"},
    # counts are often whole
    "metrics.perplexity.counts": {"int64"},
    # an impossible image has infinite bits, and a sample may weigh nothing
    "vae.bits_per_dimension.log_prob": {"infinite", "scalar"},
    "vae.importance_weighted_bound.log_weights": {"infinite"},
    # no crop
    "Augment.crop": {"none"},
    # a folder that is to be made
    "training.fit.run": {"missing"},
    "CodeSet.save.path": {"missing"},
    "hub.save_pretrained.folder": {"missing"},
    # rows may be given as plain numbers
    "ImageSet.batch.indices": {"numbers"},
    "CodeSet.batch.indices": {"numbers"},
    # Python's own FileNotFoundError, with the path
    "checkpoint.load.path": {"missing"},
    "CodeSet.load.path": {"missing"},
    # labels are names of classes; bytes are bytes
    "quantizers.restart.candidates": {"empty"},
    "CodeSet.labels": {"huge"},
    "CodeSet.num_codes": {"huge"},
    "ImageSet.images": {"negative", "huge", "uint8"},
    # any whole number is a seed
    "training.fit.seed": {"huge", "vast"},
    # training may be longer than that, and have as much patience
    "WarmupCosine.warmup": {"zero", "huge", "vast"},
    "EarlyStopping.patience": {"huge", "vast"},
    "EarlyStopping.column": {"other"},
    "diagnosis.diagnose.seed": {"huge"},
    "EMAVectorQuantizer.seed": {"huge", "vast"},
    "quantizers.k_means.seed": {"huge", "vast"},
    "quantizers.k_means.stream": {"huge", "vast", "zero"},
    # and for glyphs
    "data.load.seed": {"huge", "vast"},
    # nothing has no codes
    "VectorQuantizer.decode.indices": {"empty"},
    "EMAVectorQuantizer.decode.indices": {"empty"},
    "FiniteScalarQuantizer.decode.indices": {"empty"},
    "GumbelQuantizer.decode.indices": {"empty"},
    "ProjectedQuantizer.decode.indices": {"empty"},
    "ResidualQuantizer.decode.indices": {"empty"},
    "quantizers.decode_to_depth.indices": {"empty"},
    "quantizers.nearest_code.z": {"empty"},
    "quantizers.cosine_lookup.z": {"empty"},
    "quantizers.code_statistics.vectors": {"empty"},
    # called in every step of training, on numbers that were looked at; where shapes differ, the other one is named
    "quantizers.straight_through.z": {"nan", "infinite", "scalar", "empty"},
    "quantizers.straight_through.z_q": {"nan", "infinite"},
    "quantizers.rotation_trick.z": {"nan", "infinite", "scalar", "empty"},
    "quantizers.rotation_trick.z_q": {"nan", "infinite"},
    "quantizers.vq_losses.z": {"nan", "infinite", "scalar", "empty"},
    "quantizers.vq_losses.z_q": {"nan", "infinite"},
    **{
        f"{name}.{argument}": {"nan", "infinite"}
        for name, arguments in {
            "FeatureDistance.forward": ("x_hat", "x"),
            "FeatureDistance.per_image": ("x_hat", "x"),
            "PatchDiscriminator.forward": ("x",),
            "PatchDiscriminator.map": ("x",),
            "losses.patch_map": ("logits",),
            "losses.logits_with_constants": ("x_hat",),
            "losses.adaptive_weight": ("reconstruction_loss", "adversarial_loss"),
            "losses.r1_penalty": ("real",),
        }.items()
        for argument in arguments
    },
    **{
        f"{name}.{argument}": {"nan", "infinite", "scalar"}
        for name, arguments in {
            "losses.hinge_discriminator_loss": ("real", "fake"),
            "losses.hinge_generator_loss": ("fake",),
            "losses.non_saturating_discriminator_loss": ("real", "fake"),
            "losses.non_saturating_generator_loss": ("fake",),
            "losses.lecam_penalty": ("real", "fake", "real_mean", "fake_mean"),
            "LeCamPenalty.forward": ("real", "fake"),
        }.items()
        for argument in arguments
    },
    "losses.lpips_vgg.weights": {"missing"},
    "losses.patch_map.offset": {"zero", "negative"},
    "AdversarialTraining.start": {"zero", "huge", "vast"},
    # any text
    "Picture.alt": {"other"},
    "plots.show.alt": {"other"},
    "*.title": {"other"},
    "plots.rate_distortion.loss": {"other"},
    "*.tokenizer": {"other"},
    "ImageSet.name": {"other"},
    "ImageSet.split": {"other"},
    "data.load.root": {"other"},
    # NaN in, NaN out: a network alone does not look at its numbers, and `fit` reports the step at which NaN came
    **{
        f"{name}.forward.{argument}": {"nan", "infinite"}
        for name, argument in (
            ("Encoder", "x"),
            ("Decoder", "z"),
            ("ResidualBlock", "x"),
            ("RMSNorm", "x"),
            ("SwiGLU", "x"),
            ("Mamba2Mixer", "x"),
            ("Mamba2Block", "x"),
            ("BidirectionalMamba2Block", "x"),
            ("Mamba2Encoder", "x"),
            ("BidirectionalMamba2Encoder", "x"),
            ("Mamba2Decoder", "z"),
            ("BidirectionalMamba2Decoder", "z"),
            ("ConvNeXtBlock", "x"),
            ("ConvNeXtEncoder", "x"),
            ("ConvNeXtDecoder", "z"),
            ("SelfAttention", "tokens"),
            ("TransformerBlock", "tokens"),
            ("ViTEncoder", "x"),
            ("ViTDecoder", "z"),
            ("LatentTokenEncoder", "x"),
            ("LatentTokenDecoder", "z"),
            ("ResNetEncoder", "x"),
            ("ResNetDecoder", "z"),
            ("MaskedConv2d", "x"),
            ("AutoregressiveDecoder", "x"),
            ("AutoregressiveDecoder", "z"),
        )
    },
    **{
        f"{name}.log_prob.params": {"nan", "infinite"}
        for name in ("Gaussian", "Bernoulli", "Categorical", "DiscretizedLogisticMixture")
    },
}


def right_there(name: str, argument: str) -> set[str]:
    return RIGHT_THERE.get(f"{name}.{argument}", set()) | RIGHT_THERE.get(f"*.{argument}", set())


@contextmanager
def limited() -> Iterator[None]:
    """A call that hangs ends in TimeoutError, where the system has the clock for it."""

    def ring(*_: object) -> None:
        raise TimeoutError

    gradients = torch.is_grad_enabled()  # a call that is cut short may leave them off
    before = signal.signal(signal.SIGALRM, ring) if hasattr(signal, "SIGALRM") else None
    try:
        if before is not None:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        torch.set_grad_enabled(gradients)
        if before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def complaint(call: Callable[[], Any], argument: str) -> str:
    """What is wrong with how a wrong call went; nothing if it was refused as it should be."""
    try:
        with limited():
            call()
    except ValueError as error:
        message = str(error)
        if not re.match(rf"{argument}\b.*: ", message):
            return f"obscure: {message.splitlines()[0][:150]}"
        if "\n" in message or len(message) > 500:
            return f"a dump: {message.splitlines()[0][:150]}"
        return ""
    except TimeoutError:
        return "hangs"
    except Exception as error:
        return f"obscure: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
    return "silent"


def _cases() -> Iterator[Any]:
    for name, good in GOOD.items():
        for argument in good()[1]:
            reason = "its check is still to be written"
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if f"{name}.{argument}" in NOT_YET else []
            yield pytest.param(name, argument, marks=marks, id=f"{name}.{argument}")


@pytest.mark.parametrize(("name", "argument"), list(_cases()))
def test_a_wrong_value_is_refused_by_the_name_of_its_argument(name, argument, monkeypatch) -> None:
    monkeypatch.setattr("IPython.display.display", lambda _: None)
    function, good = GOOD[name]()
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    fine = right_there(name, argument)
    if signature.parameters[argument].default is None:
        fine = fine | {"none"}
    complaints = {}
    for label, value in wrong(good[argument]).items():
        if label in fine:
            continue
        function, arguments = GOOD[name]()
        if said := complaint(functools.partial(function, **(arguments | {argument: value})), argument):
            complaints[label] = said
    assert complaints == {}


# Settings, set after the object was made: as the constructor's arguments, and what it made of them -------------------


def configured() -> dict[str, type[Configured]]:
    """Every class of the library that keeps its arguments and can be made, as it is there under its own name."""
    return {
        name: kind
        for name, kind in CLASSES.items()
        if getattr(sys.modules.get(kind.__module__), name, None) is kind and not inspect.isabstract(kind)
    }


def made(name: str) -> tuple[Any, dict[str, Any]]:
    make, arguments = GOOD[name]()
    return make(**arguments), arguments


def test_every_class_that_keeps_its_arguments_has_a_good_call_here() -> None:
    assert sorted(configured().keys() - GOOD.keys()) == []
    assert len(configured()) >= 20


# class.argument: other values that may be set later
OTHERS: dict[str, Any] = {
    "VectorQuantizer.estimator": "straight-through", "EMAVectorQuantizer.estimator": "straight-through",
    "Gaussian.binned": False, "Bernoulli.relaxed": False,
}  # fmt: skip
SETTABLE = {
    "AdversarialTraining.adaptive", "AdversarialTraining.adversarial_weight", "AdversarialTraining.discriminator",
    "AdversarialTraining.feature_distance", "AdversarialTraining.penalty_weight",
    "AdversarialTraining.perceptual_weight", "AdversarialTraining.start", "AdversarialTraining.tokenizer",
    "Autoencoder.encoder", "Autoencoder.decoder", "AutoregressiveDecoder.context", "Bernoulli.relaxed",
    "EMAVectorQuantizer.commitment_weight", "EMAVectorQuantizer.decay", "EMAVectorQuantizer.estimator",
    "EMAVectorQuantizer.frozen", "EMAVectorQuantizer.restart_below", "EMAVectorQuantizer.seed",
    "EMAVectorQuantizer.smoothing", "Gaussian.binned", "GumbelQuantizer.anneal_steps", "GumbelQuantizer.kl_weight",
    "MambaPrior.label_dropout", "MambaPrior.tokenizer",
    "PixelCNN.label_dropout", "PixelCNN.tokenizer", "ProjectedQuantizer.quantizer", "RQTransformer.label_dropout",
    "RQTransformer.tokenizer", "ResidualQuantizer.depth", "ResidualQuantizer.depth_dropout",
    "TransformerPrior.label_dropout",
    "TransformerPrior.tokenizer", "VAE.beta", "VAE.decoder", "VAE.encoder", "VAE.likelihood", "VQVAE.decoder",
    "VQVAE.encoder", "VQVAE.quantizer", "VQVAE.quantizer_weight", "VectorQuantizer.commitment_weight",
    "VectorQuantizer.estimator",
}  # fmt: skip


def another(value: Any) -> Any:
    """A value of the same kind, which the constructor takes as well."""
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, nn.Module):
        return copy.deepcopy(value)
    if isinstance(value, tuple | list):
        return type(value)((value[0] + 1, *value[1:]))
    return value + "d" if isinstance(value, str) else value + 2 if isinstance(value, int) else value / 2


SETTINGS = [(name, argument) for name in configured() for argument in GOOD[name]()[1]]


@pytest.mark.parametrize(("name", "argument"), SETTINGS, ids=lambda part: part)
def test_a_wrong_value_that_is_set_later_is_refused_by_the_name_of_its_argument(name, argument) -> None:
    owner, good = made(name)
    before = owner.config
    complaints = {
        label: said
        for label, value in wrong(good[argument]).items()
        if label not in right_there(name, argument)
        and not (label == "none" and inspect.signature(type(owner)).parameters[argument].default is None)
        and (said := complaint(functools.partial(setattr, owner, argument, value), argument))
    }
    assert complaints == {}
    assert owner.config == before


@pytest.mark.parametrize(("name", "argument"), SETTINGS, ids=lambda part: part)
def test_another_good_value_is_kept_and_saved_or_refused_by_name(name, argument) -> None:
    owner, good = made(name)
    value = OTHERS.get(f"{name}.{argument}", another(good[argument]))
    before, state = owner.config, torch.get_rng_state()
    said = complaint(lambda: setattr(owner, argument, value), argument)
    assert torch.equal(torch.get_rng_state(), state)
    if f"{name}.{argument}" in SETTABLE:
        assert said == "silent"
        assert owner.config == type(owner)(**good | {argument: value}).config
    else:
        assert (said, owner.config) == ("", before)
    path = Path(SCRATCH.name, "set.safetensors")
    companion.save(owner, path)
    assert companion.load(path).config == owner.config


@pytest.mark.parametrize("name", configured())
def test_what_a_constructor_made_of_its_arguments_stays(name) -> None:
    owner, good = made(name)
    complaints = {}
    for attribute in owner._settings - good.keys():
        now = getattr(owner, attribute)
        setattr(owner, attribute, now)  # the same again
        wrongs = {"none": None, "object": object()} if isinstance(now, nn.Module) else {"other": object(), "text": "no"}
        for label, value in wrongs.items():
            if now is not value and (said := complaint(functools.partial(setattr, owner, attribute, value), attribute)):
                complaints[f"{attribute}: {label}"] = said
    assert complaints == {}


@pytest.mark.parametrize("name", configured())
def test_a_layer_of_another_size_is_refused(name) -> None:
    owner, good = made(name)
    linears = {key: part for key, part in owner.named_children() if isinstance(part, nn.Linear) and key not in good}
    for key, part in linears.items():
        other = nn.Linear(part.in_features + 1, part.out_features)
        assert complaint(functools.partial(setattr, owner, key, other), key) == ""
        setattr(owner, key, nn.Linear(part.in_features, part.out_features))


def test_a_part_may_be_replaced_by_its_like_and_by_one_around_it() -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    owner = prior()
    owner.to_logits = Around(owner.to_logits)
    assert owner(tables()).logits.shape == (3, 2, 2, 5)
    conv = backbones.MaskedConv2d(1, 2, 3, centre=False)
    conv.bias = nn.Parameter(torch.ones(2))
    conv.weight = nn.Parameter(torch.zeros(2, 1, 3, 3))
    assert torch.equal(conv(images()), torch.ones(2, 2, 8, 8))
    model = Classifier(width=2)
    model.dropout = nn.Dropout(0.5)
    parametrized = nn.utils.parametrizations.weight_norm(backbones.MaskedConv2d(1, 2, 3, centre=False))
    parametrized.weight = torch.ones(2, 1, 3, 3)
    assert torch.equal(parametrized.weight, torch.ones(2, 1, 3, 3))


def test_what_a_readers_class_gives_to_ours_may_change() -> None:
    """Its constructor does not name the argument, so that no twin can be made with another value."""

    class Small(TransformerPrior):
        def __init__(self) -> None:
            super().__init__(5, (2, 2), dim=8, layers=1, heads=2)

    prior = Small()
    prior.tokenizer = "of another"
    codes = CodeSet(tables(4, (2, 2)), torch.zeros(4, dtype=torch.int64), 5, tokenizer="of another")
    training.fit(prior, codes, epochs=1, batch_size=2, progress=False)
    assert prior.tokenizer == "of another"


def test_the_readers_own_attributes_may_change() -> None:
    class Counts(VectorQuantizer):
        def __init__(self, num_codes: int, dim: int) -> None:
            super().__init__(num_codes, dim)
            self.calls = 0

    owner = Counts(5, 4)
    owner.calls += 1
    owner.note = "mine"
    owner.codebook = nn.Parameter(torch.zeros(5, 4))
    assert (owner.calls, owner.note) == (1, "mine")
    assert complaint(lambda: setattr(owner, "num_codes", 6), "num_codes") == ""


def test_a_list_of_members_that_was_changed_in_place_is_refused_everywhere() -> None:
    for change in (
        lambda members: members.append(VectorQuantizer(5, 4)),
        lambda members: members.pop(1),
        lambda members: members.__setitem__(1, VectorQuantizer(6, 4)),
        lambda members: members.__setitem__(1, VectorQuantizer(5, 3)),
        lambda members: members.__setitem__(1, nn.Identity()),
        lambda members: setattr(members[1], "estimator", "rotation"),
    ):
        owner = residual()
        change(owner.quantizers)
        path = Path(SCRATCH.name, "changed.safetensors")
        for call in (
            lambda owner=owner: owner(latents()),
            lambda owner=owner: owner.encode(latents()),
            lambda owner=owner: owner.decode(tables(1, (2, 2, 2))),
        ):
            assert complaint(call, "quantizers") == ""
        assert complaint(functools.partial(companion.save, owner, path), "model") == ""
        assert not path.exists()


@pytest.mark.parametrize("name", [*QUANTIZERS, *PRIORS])
def test_sizes_that_are_fine_one_by_one_do_not_ask_for_all_memory(name) -> None:
    make, arguments = GOOD[name]()
    sizes = {key for key, value in arguments.items() if key in ("num_codes", "dim", "grid") and value != 0}
    big = {key: (10**6,) * len(arguments[key]) if key == "grid" else 2**14 for key in sizes}
    big |= {"num_codes": 2**22} if "num_codes" in sizes else {"dim": 2**24, "quantizer": VectorQuantizer(4, 512)}
    if sizes and name != "ResidualQuantizer":
        assert complaint(functools.partial(make, **arguments | big), "(num_codes|grid|dim)") == ""


# Weights of NaN: an image, a code or a number that leaves the library is finite, or nothing leaves --------------------


def of_nan(model: nn.Module, part: str = "") -> Any:
    for name, weight in model.named_parameters():
        if name.startswith(part):
            weight.data.fill_(math.nan)
    return model


def ema_of(**buffers: float) -> EMAVectorQuantizer:
    made = EMAVectorQuantizer.from_codebook(vectors(5))
    made(latents())
    for name, value in buffers.items():
        getattr(made, name).fill_(value)
    return made


def projected_of_nan(part: str) -> ProjectedQuantizer:
    return of_nan(ProjectedQuantizer(VectorQuantizer(5, 2), 4), part)


NAN: dict[str, Callable[[], Any]] = {
    "Autoencoder.reconstruct, encoder": lambda: of_nan(auto(), "encoder").reconstruct(images()),
    "Autoencoder.reconstruct, decoder": lambda: of_nan(auto(), "decoder").reconstruct(images()),
    "VAE.reconstruct, encoder": lambda: of_nan(variational(), "encoder").reconstruct(images()),
    "VAE.reconstruct, decoder": lambda: of_nan(variational(), "decoder").reconstruct(images()),
    "VAE.sample": lambda: of_nan(variational(), "decoder").sample(2),
    "VAE.sample, by pixels": lambda: of_nan(variational(True), "decoder").sample(2),
    "VAE.log_weights": lambda: of_nan(variational(), "decoder").log_weights(grey(), 2),
    "VAE.log_weights, encoder": lambda: of_nan(variational(), "encoder").log_weights(grey(), 2),
    "VQVAE.encode": lambda: of_nan(tokenizer(), "encoder").encode(images()),
    "VQVAE.encode, codebook": lambda: of_nan(tokenizer(), "quantizer").encode(images()),
    "VQVAE.decode": lambda: of_nan(tokenizer(), "decoder").decode(tables()),
    "VQVAE.decode, codebook": lambda: of_nan(tokenizer(), "quantizer").decode(tables()),
    "VQVAE.reconstruct": lambda: of_nan(tokenizer(), "decoder").reconstruct(images()),
    "tokenize": lambda: codes.tokenize(of_nan(tokenizer(GumbelQuantizer(5, 4)), "quantizer.to_logits"), small_set()),
    "VectorQuantizer.lookup": lambda: of_nan(VectorQuantizer(5, 4)).lookup(tables()),
    "GumbelQuantizer.encode": lambda: of_nan(GumbelQuantizer(5, 4)).encode(latents()),
    "GumbelQuantizer.forward, eval": lambda: of_nan(GumbelQuantizer(5, 4)).eval()(latents()),
    "GumbelQuantizer.decode": lambda: of_nan(GumbelQuantizer(5, 4)).decode(tables()),
    "ResidualQuantizer.decode": lambda: of_nan(residual()).decode(tables(1, (2, 2, 2))),
    "ResidualQuantizer.encode": lambda: of_nan(residual()).encode(latents()),
    "ProjectedQuantizer.encode": lambda: projected_of_nan("down").encode(latents()),
    "ProjectedQuantizer.decode": lambda: projected_of_nan("up").decode(tables()),
    "EMAVectorQuantizer.forward, counts": lambda: ema_of(counts=math.nan)(latents()),
    "EMAVectorQuantizer.forward, infinite counts": lambda: ema_of(counts=math.inf)(latents()),
    "EMAVectorQuantizer.decode": lambda: ema_of(codebook=math.nan).decode(tables()),
    "EMAVectorQuantizer.initialise": lambda: ema().initialise(latents() * math.nan),
    "EMAVectorQuantizer.initialise, given": lambda: EMAVectorQuantizer.from_codebook(vectors(5)).initialise(
        latents() * math.nan
    ),
    "prior_bits": lambda: priors.prior_bits(of_nan(prior(), "positions"), tables(), labels()),
    "Prior.sample": lambda: of_nan(prior(), "to_logits").sample(1, 0),
    "recognise": lambda: classifier.recognise(of_nan(Classifier(width=2), "head"), images()),
    "recognise, features": lambda: classifier.recognise(of_nan(Classifier(width=2), "layers"), images()),
}  # fmt: skip


@pytest.mark.parametrize("what", NAN)
def test_nothing_leaves_that_was_made_from_weights_of_nan(what) -> None:
    assert complaint(NAN[what], r"[a-z_.\d]+") == ""


def test_a_codebook_is_unchanged_where_its_counts_are_not_finite() -> None:
    quantizer = ema_of(counts=math.nan)
    before = quantizer.codebook.clone()
    assert complaint(lambda: quantizer(latents()), "counts") == ""
    assert torch.equal(quantizer.codebook, before)


# By hand: what is wrong about several arguments together, or about a value that no rule above thinks of ---------------


def half(module: nn.Module) -> Any:
    return module.bfloat16()


class Gives(nn.Module):
    """A module that gives the same, whatever it is given."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, *_: Tensor) -> Any:
        return self.what


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def nan_vae() -> VAE:
    model = variational()
    nn.init.constant_(model.decoder.conv2.weight, math.nan)
    return model


def tokenizer_of(part: nn.Module) -> VQVAE:
    return VQVAE(ResNetEncoder(1, 4, hidden=2), VectorQuantizer(5, 4), part)


def normal() -> likelihoods.Gaussian:
    return likelihoods.Gaussian()


@dataclass
class Counted:
    loss: Tensor
    code_counts: Tensor = field(default_factory=lambda: torch.tensor(3))


class Batches:
    """Twelve examples; ``batch`` gives what ``gives`` makes of the indices."""

    def __init__(self, gives: Callable[[Tensor], Any]) -> None:
        self.gives = gives

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor, device: torch.device) -> Any:
        return self.gives(indices)


def brief_fit(gives: Callable[[Tensor], Any] = lambda rows: (images(len(rows)),), **options: Any) -> Any:
    options = {"epochs": 1, "batch_size": 4, "device": "cpu", "progress": False} | options
    return companion.fit(auto(), Batches(gives), **options)


def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    return images(len(rows)), rows


def one_step(model: nn.Module, lr: Any = 0.1) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    return training.train_step(model, optimizer, images())


class NoDevice:
    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor) -> tuple[Tensor]:
        return (images(len(indices)),)


def colours() -> VQVAE:
    model = tokenizer()
    model.decoder = ResNetDecoder(3, 4, hidden=4, factor=4, num_blocks=1)
    return model


def nan_scale() -> likelihoods.Gaussian:
    likelihood = likelihoods.Gaussian(binned=True)
    likelihood.log_scale.fill_(math.nan)
    return likelihood


def folder() -> Path:
    path = Path(SCRATCH.name, "folder.safetensors")
    path.mkdir(exist_ok=True)
    return path


def held_out_twice() -> Any:
    function, arguments = evaluation_call()
    train = arguments["train"]
    again = data.ImageSet("some", "test", train.images.clone(), train.labels, train.classes)
    return function(**arguments | {"held_out": again})


BY_HAND: dict[str, tuple[str, Callable[[], Any]]] = {
    # sizes
    "an encoder of no numbers": ("latent_dim", lambda: Encoder(0)),
    "an image size that four does not divide": ("image_size", lambda: Encoder(2, image_size=30)),
    "an image of a million pixels a side": ("image_size", lambda: Decoder(2, image_size=2**20)),
    "a list for a size": ("hidden", lambda: Encoder(2, hidden=[32])),
    "numpy's float for a size": ("latent_dim", lambda: Encoder(torch.tensor(3.0, device="cpu").numpy()[()])),
    "a factor that is no pair": ("factor", lambda: ResNetEncoder(factor=(2, 2, 2))),
    "a factor that is prime and huge": ("factor", lambda: ResNetDecoder(factor=2**31 - 1)),
    "half a factor": ("factor", lambda: ResNetEncoder(factor=2.5)),
    "a million blocks": ("num_blocks", lambda: ResNetEncoder(num_blocks=10**6)),
    "fewer blocks than none": ("num_blocks", lambda: ResNetDecoder(num_blocks=-1)),
    "a kernel of less than nothing": ("kernel", lambda: backbones.conv_output_size(9, -3)),
    "a kernel longer than the axis": ("kernel", lambda: backbones.conv_output_size(3, 4)),
    "a stride of zero": ("stride", lambda: backbones.conv_output_size(9, 3, 0)),
    "an even window": ("kernel", lambda: backbones.raster_mask(4, centre=True)),
    "an even side of a window": ("kernel", lambda: backbones.MaskedConv2d(1, 1, (3, 4), centre=True)),
    "features that are not the context's": (
        "context",
        lambda: AutoregressiveDecoder(decoder(), hidden=4)(torch.rand(2, 3), images()),
    ),
    "heads that do not divide the width": ("heads", lambda: TransformerPrior(5, (2, 2), dim=8, heads=3)),
    "more heads than numbers": ("heads", lambda: RQTransformer(5, (2, 2, 2), dim=4, heads=8)),
    "a layer less than none": ("layers", lambda: TransformerPrior(5, (2, 2), layers=-1)),
    "no layer in the depth": ("depth_layers", lambda: RQTransformer(5, (2, 2, 2), depth_layers=0)),
    "all features left out": ("dropout", lambda: TransformerPrior(5, (2, 2), dropout=1.0)),
    "a share in percent": ("dropout", lambda: Classifier(dropout=30)),
    "all labels dropped": ("label_dropout", lambda: TransformerPrior(5, (2, 2), num_classes=2, label_dropout=1.0)),
    "a grid of one number": ("grid", lambda: TransformerPrior(5, 4)),
    "a grid without depth": ("grid", lambda: RQTransformer(5, (2,))),
    "a grid with depth": ("grid", lambda: PixelCNN(5, (2, 2, 2))),
    "an even PixelCNN": ("kernel", lambda: PixelCNN(5, (2, 2), kernel=4)),
    "no place in a grid": ("grid", lambda: PixelCNN(5, (0, 2))),
    "a tokenizer in place of its identity": ("tokenizer", lambda: TransformerPrior(5, (2, 2), tokenizer=tokenizer())),
    "one level": ("levels", lambda: likelihoods.Categorical(1)),
    "no component": ("components", lambda: likelihoods.DiscretizedLogisticMixture(0)),
    "a scale of zero": ("scale", lambda: likelihoods.Gaussian(0)),
    "a scale that is a tensor": ("scale", lambda: likelihoods.Gaussian(torch.tensor(0.1))),
    "a negative weight of the KL term": ("beta", lambda: VAE(encoder(), decoder(), likelihoods.Gaussian(), beta=-1)),
    "no likelihood": ("likelihood", lambda: VAE(encoder(), decoder(), nn.MSELoss())),
    "the likelihood's class": ("likelihood", lambda: VAE(encoder(), decoder(), likelihoods.Gaussian)),
    # images
    "bytes for an autoencoder": ("x", lambda: auto()((images() * 255).byte())),
    "0 … 255 for an autoencoder": ("x", lambda: auto()(images() * 255)),
    "−1 … 1 for an autoencoder": ("x", lambda: auto()(images() * 2 - 1)),
    "0 … 255 rebuilt": ("x", lambda: auto().reconstruct(images() * 255)),
    "0 … 255 for a VAE": ("x", lambda: variational()(images() * 255)),
    "0 … 255 for its encoder": ("x", lambda: variational().encode(images() * 255)),
    "−1 … 1 for a classifier": ("x", lambda: Classifier(width=2)(images() * 2 - 1)),
    "bytes recognised": ("images", lambda: classifier.recognise(Classifier(width=2), small_set().images)),
    "0 … 255 recognised": ("images", lambda: classifier.recognise(Classifier(width=2), images() * 255)),
    "0 … 255 for a tokenizer": ("x", lambda: tokenizer()(images() * 255)),
    "bytes for a tokenizer": ("x", lambda: tokenizer().encode((images() * 255).byte())),
    "−1 … 1 rebuilt from codes": ("x", lambda: tokenizer().reconstruct(images() * 2 - 1)),
    "0 … 255 drawn": ("image", lambda: plots.draw_image(axes(), images()[0] * 255)),
    "−1 … 1 in a grid": ("images", lambda: plots.image_grid(torch.tensor([-1.0, 1.0]).expand(3, 1, 2, 2), columns=2)),
    "bytes in rows": ("rows", lambda: plots.image_rows({"x": small_set().images})),
    "two channels drawn": ("image", lambda: plots.draw_image(axes(), torch.rand(2, 4, 4))),
    "a batch drawn as one": ("image", lambda: plots.draw_image(axes(), images())),
    "one image in rows": ("rows", lambda: plots.image_rows({"x": images()[0]})),
    "a thousand images in a row": ("columns", lambda: plots.image_rows({"x": images(1000, size=1)}, columns=1000)),
    "0 … 255 among the nearest": ("images", lambda: classifier.nearest_distances(images() * 255, images())),
    "no training image": ("training", lambda: classifier.nearest_distances(images(), images()[:0])),
    "training images of another size": ("training", lambda: classifier.nearest_distances(images(), images(size=4))),
    "one image evaluated": (
        "images",
        lambda: classifier.evaluate_samples(
            Classifier(1, 3, width=2), images(1), train=small_set(), held_out=small_set()
        ),
    ),
    "a label that is no class": (
        "labels",
        lambda: classifier.evaluate_samples(
            Classifier(1, 3, width=2), images(4), torch.full((4,), 3), train=small_set(), held_out=small_set()
        ),
    ),
    "three channels for one": ("x", lambda: Classifier(width=2)(images(channels=3))),
    "images without a batch": ("x", lambda: encoder()(images()[0])),
    "an empty batch": ("x", lambda: auto()(images()[:0])),
    "an image that the factor does not divide": ("x", lambda: ResNetEncoder(1, 4, hidden=2)(images(size=6))),
    "an image flattened": ("x", lambda: auto()(images().flatten(1))),
    "float64 for a model in float32": ("x", lambda: encoder()(images().double())),
    "float32 for a model in half precision": ("x", lambda: half(encoder())(images())),
    "half precision for a model in float32": ("x", lambda: ResNetEncoder(1, 4, hidden=2)(images().half())),
    "latents of another type": ("z", lambda: decoder()(torch.randn(2, 3).double())),
    # parts that do not fit
    "a decoder that gives a smaller image": (
        "decoder",
        lambda: Autoencoder(ResNetEncoder(1, 4, hidden=2), ResNetDecoder(1, 4, hidden=2, factor=2))(images()),
    ),
    "factors of a tokenizer's encoder and decoder that differ": (
        "decoder",
        lambda: VQVAE(
            ResNetEncoder(1, 4, hidden=2), VectorQuantizer(5, 4), ResNetDecoder(1, 4, hidden=2, factor=2)
        )(images()),
    ),
    "latents of an odd length": ("encoder", lambda: VAE(encoder(), decoder(), likelihoods.Gaussian())(images())),
    "a decoder with too few channels": (
        "decoder",
        lambda: VAE(Encoder(6, hidden=2, image_size=8), decoder(), likelihoods.Categorical())(images()),
    ),
    "a mean of an autoregressive decoder": ("mean", lambda: variational(True).sample(1, mean=True)),
    "an autoregressive decoder without images": ("x", lambda: variational(True).decode(torch.rand(1, 3))),
    "no latent shape for a grid": (
        "latent_shape",
        lambda: VAE(ResNetEncoder(1, 4), ResNetDecoder(1, 2), likelihoods.Gaussian()).sample(1),
    ),
    "a latent shape of another decoder": ("latent_shape", lambda: variational().sample(1, latent_shape=(4,))),
    "a latent shape of two axes": ("latent_shape", lambda: variational(True).sample(1, latent_shape=(4, 4))),
    "latents that the decoder does not take": (
        "decoder",
        lambda: Autoencoder(Encoder(2, image_size=8), decoder())(images()),
    ),
    "latents that the decoder does not rebuild from": (
        "decoder",
        lambda: Autoencoder(Encoder(2, image_size=8), decoder()).reconstruct(images()),
    ),
    **{
        f"a VAE's latents that its decoder does not take, in {method}": (
            "decoder",
            lambda method=method, more=more: getattr(
                VAE(Encoder(4, image_size=8), decoder(), likelihoods.Gaussian()), method
            )(images(), *more),
        )
        for method, more in (("forward", ()), ("reconstruct", ()), ("log_weights", (2,)))
    },
    # a tensor without numbers
    "codes on another device": ("codes", lambda: prior()(tables().to("meta"))),
    "labels on another device": ("labels", lambda: prior()(tables(), labels().to("meta"))),
    "classes on another device": ("label", lambda: prior().sample(3, labels().to("meta"))),
    "held-out codes without numbers": ("codes", lambda: priors.prior_bits(prior(), tables().to("meta"), labels())),
    "held-out labels without numbers": ("labels", lambda: priors.prior_bits(prior(), tables(), labels().to("meta"))),
    "usage of codes without numbers": ("indices", lambda: metrics.CodeUsage(5).update(tables().to("meta"))),
    "bits of codes without numbers": ("indices", lambda: metrics.bits_per_image(tables().to("meta"), 5)),
    "counts without numbers": ("counts", lambda: metrics.perplexity(torch.ones(3, device="meta"))),
    "a distance to nothing": ("b", lambda: metrics.frechet_distance(vectors(5), vectors(5).to("meta"))),
    "nearest to nothing": ("training", lambda: classifier.nearest_distances(images(), images().to("meta"))),
    "images on another device than parameters": (
        "x",
        lambda: likelihoods.Gaussian().log_prob(params(1), images().to("meta")),
    ),
    "a latent shape that is one number": ("latent_shape", lambda: variational().sample(1, latent_shape=3)),
    "samples in a float": ("n", lambda: variational().sample(2.0)),
    "a seed in place of a generator": ("generator", lambda: variational().sample(2, generator=3)),
    "noise for one image only": ("noise", lambda: variational()(grey(), noise=torch.randn(1, 3))),
    "0 … 255 for a density": ("x", lambda: likelihoods.Gaussian().log_prob(params(1), images() * 255)),
    "a log-likelihood for a KL": ("kl", lambda: vae.elbo(torch.rand(2, 3), torch.tensor([-300.0, -200.0]))),
    "samples of a decoder of NaN": ("decoder", lambda: nan_vae().sample(2)),
    "grey values between those of a byte": ("x", lambda: variational()(torch.full((1, 1, 8, 8), 0.1234))),
    "grey images for a Bernoulli": ("x", lambda: likelihoods.Bernoulli().log_prob(params(1), grey())),
    "parameters of another number of channels": (
        "params",
        lambda: likelihoods.DiscretizedLogisticMixture(2).mean(params(5)),
    ),
    "more images than parameters": ("x", lambda: likelihoods.Gaussian().log_prob(params(1), images(3))),
    # parts that do not fit, and what a module gives
    "a model for an encoder": ("encoder", lambda: VQVAE(auto(), VectorQuantizer(5, 4), decoder())(images())),
    "a decoder for an encoder": ("encoder", lambda: Autoencoder(decoder(), encoder())(images())),
    **{
        f"layers that do not take the latents, in {kind} {method}": (
            "decoder",
            lambda make=make, method=method, more=more: getattr(make(nn.Conv2d(7, 1, 1)), method)(grey(), *more),
        )
        for kind, make, calls in (
            ("an autoencoder", lambda part: Autoencoder(ResNetEncoder(1, 4), part), ("forward", "reconstruct")),
            ("a tokenizer", lambda part: tokenizer_of(part), ("forward",)),
            ("a VAE", lambda part: VAE(ResNetEncoder(1, 4, hidden=2), part, normal()), ("forward", "reconstruct")),
            ("a VAE's", lambda part: VAE(ResNetEncoder(1, 4, hidden=2), part, normal()), ("log_weights",)),
        )
        for method, more in ((call, (2,) if call == "log_weights" else ()) for call in calls)
    },
    "layers that do not take the images": ("encoder", lambda: Autoencoder(nn.Linear(3, 2), decoder())(images())),
    "layers that do not take the images of a tokenizer": (
        "encoder",
        lambda: VQVAE(nn.Conv2d(3, 4, 1), VectorQuantizer(5, 4), decoder()).encode(images()),
    ),
    "a decoder for the encoder of a tokenizer": (
        "encoder",
        lambda: VQVAE(ResNetDecoder(1, 4, hidden=2), VectorQuantizer(5, 4), ResNetEncoder(1, 4, hidden=2))(images()),
    ),
    "an encoder that gives a sum": ("encoder", lambda: Autoencoder(Sums(), decoder())(images())),
    "a model for a decoder": ("decoder", lambda: Autoencoder(nn.Flatten(), Gives(3))(images())),
    "a model for the decoder of codes": (
        "decoder",
        lambda: VQVAE(ResNetEncoder(1, 4, hidden=2), VectorQuantizer(5, 4), Gives(3)).decode(tables()),
    ),
    "a decoder of colours in a VAE": (
        "decoder",
        lambda: VAE(Encoder(6, hidden=2, image_size=8), Decoder(3, out_channels=3, hidden=2, image_size=8), normal())(
            grey()
        ),
    ),
    "noise in another precision": ("noise", lambda: variational()(grey(), noise=torch.randn(2, 3).double())),
    "images as a text": ("x", lambda: variational().decode(torch.randn(2, 3), "no images")),
    "latents in float64 for a projection": (
        "z",
        lambda: ProjectedQuantizer(VectorQuantizer(5, 2), 4).encode(latents().double()),
    ),
    "an index of a code as a number": ("indices", lambda: VectorQuantizer(5, 4).decode(torch.tensor(3))),
    "a code that is none, looked up": ("indices", lambda: VectorQuantizer(5, 4).lookup(torch.tensor([99]))),
    "a point outside the grid": ("indices", lambda: FiniteScalarQuantizer([3, 3]).lookup(torch.tensor([-7]))),
    "classes for a prior without any": (
        "classes",
        lambda: TransformerPrior(5, (2, 2)).eval().all_logits(tables(), labels()),
    ),
    "codes beyond a prior's": ("codes", lambda: prior("PixelCNN").eval().all_logits(tables() + 5, labels())),
    "classes as numbers": ("classes", lambda: prior("RQTransformer").steps(torch.ones(2), cache=True)),
    "steps of a class that is none": ("classes", lambda: prior().eval().steps(labels() + 99, cache=False)),
    "a draw with one": ("uniform", lambda: draw(torch.rand(4, 16), torch.ones(4))),
    "more queries than keys": (
        "queries",
        lambda: causal_attention(torch.randn(2, 2, 9, 4), torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)),
    ),
    "attention of one head": ("queries", lambda: causal_attention(*torch.randn(3, 2, 4, 7))),
    "keys of another width": (
        "keys",
        lambda: causal_attention(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 5)),
    ),
    "fewer values than keys": (
        "values",
        lambda: causal_attention(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 2, 4)),
    ),
    "vectors of another width": ("x", lambda: CausalSelfAttention(16, 2)(torch.randn(2, 7, 8))),
    "vectors of another width in a block": ("x", lambda: Block(16, 2)(torch.randn(2, 7, 8))),
    "vectors of another width in a transformer": ("x", lambda: Transformer(16, 1, 2)(torch.randn(2, 7, 8))),
    "a grid of a million million codes": ("grid", lambda: TransformerPrior(16, (10**6, 10**6))),
    "a codebook of 2**34 numbers": ("num_codes", lambda: VectorQuantizer(2**20, 2**14)),
    "few vectors for many centres": ("vectors", lambda: quantizers.k_means(vectors(3), 5)),
    # what was built, replaced
    "no layer in place of a layer": ("to_logits", lambda: setattr(prior(), "to_logits", nn.Identity())),
    "another model in place of a layer": ("transformer", lambda: setattr(prior(), "transformer", auto())),
    "a tensor in place of a parameter": ("codebook", lambda: setattr(VectorQuantizer(5, 4), "codebook", vectors(5))),
    "a codebook of other codes": ("codebook", lambda: setattr(ema(), "codebook", vectors(6))),
    "no tensor": ("step", lambda: setattr(ema(), "step", None)),
    "negative counts of an average": ("counts", lambda: ema_of(counts=-100.0)(latents())),
    "a decoder of colours for a grey tokenizer": ("decoder", lambda: colours().reconstruct(images())),
    "more codes than can be counted": (
        "num_codes",
        lambda: FiniteScalarQuantizer([2] * 62)(torch.randn(1, 62, 1)),
    ),
    "caches of another transformer": (
        "caches",
        lambda: Transformer(4, 2, 2)(torch.randn(1, 1, 4), Transformer(4, 1, 2).new_caches(1, 3, torch.zeros(1))),
    ),
    "a batch() that takes no device": ("train", lambda: companion.fit(auto(), NoDevice(), epochs=1, batch_size=4)),
    "a rate that is a word": ("optimizer", lambda: one_step(auto(), lr="fast")),
    "a scale of NaN": ("log_scale", lambda: nan_scale().sample(params(1))),
    "a scale of NaN in a mean": ("log_scale", lambda: nan_scale().mean(params(1))),
    "words in a row": ("rows", lambda: training.History([{"loss": "low"}]).table()),
    "rows that are none": ("rows", lambda: training.History(None).table()),
    # settings of what keeps no config
    "another number of codes to count": ("num_codes", lambda: setattr(metrics.CodeUsage(5), "num_codes", 6)),
    "positions to count, later": ("per_position", lambda: setattr(metrics.CodeUsage(5), "per_position", True)),
    # training
    "a model that gives a tensor": ("model", lambda: one_step(encoder())),
    "a rate of NaN in the optimizer": ("optimizer", lambda: one_step(auto(), lr=math.nan)),
    "two rows whatever was asked for": ("train", lambda: brief_fit(lambda rows: (images(2),))),
    "batches of nothing": ("train", lambda: brief_fit(lambda rows: ())),
    "one count of codes": ("objective", lambda: brief_fit(objective=lambda model, x: Counted(model(x).loss))),
    "a loss function for an objective": ("objective", lambda: brief_fit(pairs, objective=nn.MSELoss())),
    "an augment that crops": ("augment", lambda: brief_fit(augment=lambda x: x[..., 1:])),
    "an augment that makes bytes": ("augment", lambda: brief_fit(augment=lambda x: (255 * x).byte())),
    "an augment that divides by zero": ("augment", lambda: brief_fit(augment=lambda x: x / 0)),
    "bytes to augment": ("images", lambda: Augment()(images().byte())),
    "images in −1 … 1 to augment": ("images", lambda: Augment()(2 * images() - 1)),
    "one image to augment": ("images", lambda: Augment()(images()[0])),
    "two channels to augment": ("images", lambda: Augment()(images(channels=2))),
    "a crop of nothing": ("crop", lambda: Augment(crop=(0, 1))),
    "a crop from large to small": ("crop", lambda: Augment(crop=(1.0, 0.8))),
    "a crop of three numbers": ("crop", lambda: Augment(crop=(0.5, 0.8, 1.0))),
    "a model without numbers to train": ("model", lambda: companion.fit(auto().to("meta"), small_set(), epochs=1)),
    "a model without numbers to save": (
        "model",
        lambda: companion.save(auto().to("meta"), Path(SCRATCH.name, "meta.safetensors")),
    ),
    "a folder to save into": ("path", lambda: companion.save(auto(), folder())),
    "rows of different terms": ("rows", lambda: training.History([{"loss": 2.0}, {"mse": 1.0}]).table()),
    "rows that are numbers": ("rows", lambda: training.History([1.0]).table()),
    "held-out images that are those of train": ("held_out", held_out_twice),
    # metrics
    "a mean squared error that would broadcast": ("x_hat", lambda: metrics.mse(images()[:1], images())),
    "the error of nothing": ("x", lambda: metrics.mse(images()[:0], images()[:0])),
    "the error of NaN": ("x_hat", lambda: metrics.mse(images() * math.nan, images())),
    "a distortion of NaN": ("error", lambda: metrics.distortion(math.nan, 1.0)),
    "a negative error": ("error", lambda: metrics.distortion(-0.1, 1.0)),
    "a variance of nothing": ("variance", lambda: metrics.distortion(0.1, 0.0)),
    "negative counts": ("counts", lambda: metrics.perplexity(torch.tensor([3, -1]))),
    "counts of zero": ("counts", lambda: metrics.perplexity(torch.zeros(4))),
    "counts of NaN": ("counts", lambda: metrics.perplexity(torch.tensor([1.0, math.nan]))),
    "counts in a table": ("counts", lambda: metrics.perplexity(torch.ones(2, 2))),
    "no counts": ("counts", lambda: metrics.perplexity(torch.ones(0))),
    "bits of no codes": ("num_codes", lambda: metrics.nominal_bits(0, (2, 2))),
    "bits of a grid of floats": ("grid", lambda: metrics.nominal_bits(5, (2.0, 2))),
    "bits of a code that is none": ("indices", lambda: metrics.bits_per_image(tables(), 4)),
    "usage of a code that is none": ("indices", lambda: metrics.CodeUsage(4).update(tables())),
    "usage of two grids": (
        "indices",
        lambda: metrics.CodeUsage(5, per_position=True).update(tables()).update(tables(3, (3, 3))),
    ),
    "usage of a million million codes": ("num_codes", lambda: metrics.CodeUsage(10**12)),
    "a distance of one example": ("a", lambda: metrics.frechet_distance(vectors(1), vectors(5))),
    "a distance of other features": ("b", lambda: metrics.frechet_distance(vectors(5), torch.randn(5, 3))),
    "a distance beyond float64": ("a", lambda: metrics.frechet_distance(vectors(5).double() * 1e200, vectors(5))),
    "nats over no pixels": ("dimensions", lambda: vae.bits_per_dimension(torch.randn(3), 0)),
    "active numbers of one image": ("mean", lambda: vae.active_units(torch.randn(1, 3))),
    "a bound of two batches": ("kl", lambda: vae.elbo(torch.randn(3), torch.rand(2))),
    "importance weights of NaN": (
        "log_weights",
        lambda: vae.importance_weighted_bound(torch.full((2, 2), math.nan)),
    ),
    "a KL term that would broadcast": ("log_variance", lambda: vae.kl_divergence(vectors(), vectors(1))),
    "more components than numbers": ("d", lambda: autoencoder.pca_reconstruct(images(5), images(), 65)),
    "more components than images span": ("d", lambda: autoencoder.pca_reconstruct(images(5), images(), 5)),
    "a line of one point": ("steps", lambda: autoencoder.interpolate(torch.randn(3), torch.randn(3), 1)),
    # priors and sampling
    "a temperature of NaN": ("temperature", lambda: prior().sample(1, temperature=math.nan)),
    "a guidance of NaN": ("guidance", lambda: prior().sample(1, 1, guidance=math.nan)),
    "guidance without a label": ("guidance", lambda: prior().sample(1, guidance=2.0)),
    "one and a half likeliest codes": ("top_k", lambda: prior().sample(1, top_k=1.5)),
    "more likeliest codes than codes": ("top_k", lambda: prior().sample(1, top_k=6)),
    "a share above one": ("top_p", lambda: prior().sample(1, top_p=1.01)),
    "True samples": ("n", lambda: prior().sample(True)),
    "a class in a list": ("label", lambda: prior().sample(1, [2])),
    "a class by its name": ("label", lambda: prior().sample(1, "two")),
    "a class that is none": ("label", lambda: prior().sample(1, 3)),
    "a class for each of another number": ("label", lambda: prior().sample(3, labels(2))),
    "a class where there are none": ("label", lambda: TransformerPrior(5, (2, 2)).sample(1, 0)),
    "a class of 65 bits": ("label", lambda: prior().sample(1, 2**65)),
    "codes of another grid": ("codes", lambda: prior()(tables(2, (3, 3)))),
    "a code that is none": ("codes", lambda: prior().loss(tables() + 1)),
    "labels of another number": ("labels", lambda: prior()(tables(3), labels(2))),
    "labels where there are none": ("labels", lambda: TransformerPrior(5, (2, 2))(tables(), labels())),
    "held-out codes that are none": ("codes", lambda: priors.prior_bits(prior(), tables() - 1)),
    "no held-out codes": ("codes", lambda: priors.prior_bits(prior(), tables()[:0])),
    "logits of NaN": ("logits", lambda: priors.filtered_probabilities(torch.tensor([0.0, math.nan]))),
    "a table of no logits": ("logits", lambda: priors.filtered_probabilities(torch.zeros(2, 0))),
    # figures
    "a figure without alt text": ("alt", lambda: plots.show(plots.figure()[0], alt=" ")),
    "axes in place of a figure": ("fig", lambda: plots.to_png(axes())),
    "a figure in place of axes": ("ax", lambda: plots.draw_image(plots.figure()[0], images()[0])),
    "a figure of a kilometre": ("width", lambda: plots.figure(40_000)),
    "a code without a rank": ("codes", lambda: plots.draw_codes(axes(), tables(1)[0], order=torch.arange(3))),
    "a table of negative codes": ("codes", lambda: plots.draw_codes(axes(), tables(1)[0] - 5)),
    "one rank for all codes": (
        "order",
        lambda: plots.draw_codes(axes(), tables(1)[0], order=torch.zeros(5, dtype=torch.int64)),
    ),
    "a million numbers to be written": (
        "numbers",
        lambda: plots.draw_codes(axes(), torch.zeros(1000, 1000, dtype=torch.int64)),
    ),
    "a million columns": ("columns", lambda: plots.image_grid(images(), columns=10**6)),
    "a column of images of a kilometre": (
        "images",
        lambda: plots.image_grid(torch.rand(1, 1, 2, 1).expand(900, 1, 2, 1), columns=1),
    ),
    "images of a kilometre": ("size", lambda: plots.image_grid(images(), columns=1, size=4e4)),
    "matplotlib's own name for columns": ("ncols", lambda: plots.figure(ncols=2)),
    "an option that is none": ("colour", lambda: plots.figure(colour="red")),
    "a point in space": ("points", lambda: plots.class_scatter(axes(), torch.rand(3, 3), labels(), "abc")),
    "a label without a class": ("labels", lambda: plots.class_scatter(axes(), torch.rand(3, 2), labels(), "ab")),
    "codes in space": ("codebook", lambda: plots.draw_cells(axes(), torch.rand(3, 3))),
    "a negative norm": ("table", lambda: plots.draw_gradient_flow(axes(), {"loss": {"encoder": -1.0}})),
    "rows of different parts": ("table", lambda: plots.draw_gradient_flow(axes(), {"a": {"x": 1.0}, "b": {"y": 1.0}})),
    "a corner of three numbers": ("corner", lambda: plots.rectangle((1, 2, 3), 4, 5)),
    # quantizers
    "a codebook of a million million codes": ("num_codes", lambda: VectorQuantizer(10**12, 4)),
    "an estimator that is none": ("estimator", lambda: VectorQuantizer(5, 4, estimator="reinforce")),
    "an init that is none": ("init", lambda: EMAVectorQuantizer(5, 4, init="k-mean")),
    "a weight of NaN": ("commitment_weight", lambda: VectorQuantizer(5, 4, commitment_weight=math.nan)),
    "levels that are no whole numbers": ("levels", lambda: FiniteScalarQuantizer([3.5, 3])),
    "one level of a quantizer": ("levels", lambda: FiniteScalarQuantizer([3, 1])),
    "a last temperature above the first": ("final_temperature", lambda: GumbelQuantizer(5, 4, final_temperature=2.0)),
    "latents of another length": ("z", lambda: VectorQuantizer(5, 4)(torch.randn(2, 3))),
    "a latent of NaN": ("z", lambda: ema()(latents() * math.nan)),
    "fewer latents than codes": ("z", lambda: EMAVectorQuantizer(500, 4)(latents())),
    "an index that is no code": ("indices", lambda: VectorQuantizer(5, 4).decode(torch.tensor([[5]]))),
    "indices as numbers": ("indices", lambda: ema().decode(torch.tensor([[1.0]]))),
    "more depths than there are": ("depth", lambda: residual().decode(tables(1, (2, 2, 2)), depth=3)),
    "stacks of another depth": ("indices", lambda: residual().decode(tables(1, (2, 2, 3)))),
    "a list and a depth": ("depth", lambda: ResidualQuantizer([VectorQuantizer(5, 4)], depth=2)),
    "no quantizer": ("quantizers", lambda: quantizers.residual_encode(latents(), [])),
    "one quantizer and no depth": ("depth", lambda: ResidualQuantizer(VectorQuantizer(5, 4))),
    "members that do not fit": (
        "quantizers",
        lambda: ResidualQuantizer([VectorQuantizer(5, 4), VectorQuantizer(6, 4)]),
    ),
    "a decay of two": ("decay", lambda: quantizers.ema_step(**step_statistics() | {"decay": 2})),
    "fewer iterations than none": ("iterations", lambda: quantizers.k_means(vectors(), 5, iterations=-1)),
    "too few candidates": (
        "candidates",
        lambda: quantizers.restart(vectors(5), torch.tensor([1.0, 0, 0, 0, 9]), vectors(1), 0.5),
    ),
    "a codebook of other vectors": ("codebook", lambda: quantizers.nearest_code(vectors(), torch.randn(5, 3))),
    "a negative weight of a tokenizer": (
        "quantizer_weight",
        lambda: VQVAE(encoder(), VectorQuantizer(5, 4), decoder(), quantizer_weight=-1),
    ),
    # training, files, data
    "one and a half epochs": ("epochs", lambda: companion.fit(auto(), small_set(), epochs=1.5, batch_size=4)),
    "no examples in a batch": ("batch_size", lambda: companion.fit(auto(), small_set(), epochs=1, batch_size=0)),
    "a batch larger than the set": ("batch_size", lambda: companion.fit(auto(), small_set(), epochs=1, batch_size=13)),
    "a rate of NaN": ("lr", lambda: companion.fit(auto(), small_set(), epochs=1, batch_size=4, lr=math.nan)),
    "a precision that is none": (
        "precision",
        lambda: companion.fit(auto(), small_set(), epochs=1, batch_size=4, precision="half"),
    ),
    "a term that was not logged": ("term", lambda: history().plot("accuracy")),
    "a code beyond K": ("codes", lambda: CodeSet(tables() + 70_000, labels(), 16, "abc")),
    "labels of another length than codes": ("labels", lambda: CodeSet(tables(), labels(2), 5, "abc")),
    "codes as floats": ("codes", lambda: CodeSet(tables().float(), labels(), 5, "abc")),
    "a row from the end": ("indices", lambda: code_set().batch(torch.tensor([-1]))),
    "a row of a set that is not there": ("indices", lambda: small_set().batch([12])),
    "more images than there are": ("n", lambda: small_set().subset(13)),
    "another tokenizer's codes": ("tokenizer", lambda: codes.check_identity(tokenizer(), code_set())),
    "a model in a file of another name": ("path", lambda: companion.save(encoder(), Path(SCRATCH.name, "model.pt"))),
    "a folder for a file": ("path", lambda: companion.load(SCRATCH.name)),
    "a device beside a model": ("device", lambda: companion.load(written("encoder"), encoder(), device="cpu")),
    "a device without numbers": ("device", lambda: companion.load(written("encoder"), device="meta")),
    "a folder that is a file": ("folder", lambda: companion.save_pretrained(encoder(), written("encoder"))),
    "a model of another library in a folder": (
        "model",
        lambda: companion.save_pretrained(nn.Linear(2, 2), Path(SCRATCH.name, "linear")),
    ),
    "a file in place of a folder": ("source", lambda: companion.from_pretrained(written("encoder"))),
    "a folder without a model": ("source", lambda: companion.from_pretrained(folder())),
    "a revision of a folder": ("revision", lambda: companion.from_pretrained(pretrained_folder(), revision="main")),
    "a class that keeps no arguments": ("kind", lambda: companion.register(nn.Linear)),
    "another model's file": ("path", lambda: companion.load(written("encoder"), decoder())),
    "codes for a model": ("path", lambda: companion.load(written("codes"))),
    "a model for codes": ("path", lambda: CodeSet.load(written("encoder"))),
    "a data set that is not there": ("name", lambda: data.load("emnist")),
    "a split that is not there": ("split", lambda: data.load("glyphs", "validation")),
    "half an image": ("size", lambda: data.load("glyphs", size=0.5)),
    "a set of bytes in floats": (
        "images",
        lambda: data.ImageSet("some", "train", images(), labels(2), ("a", "b", "c")),
    ),
    "weights that are not there": ("name", lambda: companion.pretrained("mnist-oracle")),
    "a classifier that is not there": ("data", lambda: classifier.load_classifier("cifar10")),
}  # fmt: skip


def _by_hand() -> Iterator[Any]:
    for what, (argument, call) in BY_HAND.items():
        reason = "its check is still to be written"
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if what in NOT_YET else []
        yield pytest.param(argument, call, marks=marks, id=what)


@pytest.mark.parametrize(("argument", "call"), list(_by_hand()))
def test_a_wrong_call_is_refused_by_the_name_of_the_argument(argument, call) -> None:
    assert complaint(call, argument) == ""


def test_not_yet_names_what_there_is() -> None:
    assert {f"{name}.{argument}" for name, good in GOOD.items() for argument in good()[1]} | BY_HAND.keys() >= NOT_YET


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: None, "silent"),
        (lambda: [].shape, "obscure: AttributeError"),
        (lambda: int("three"), "obscure: invalid literal"),
        (lambda: backbones.conv_output_size(9, 0), "obscure: kernel: got 0"),  # it names another argument
    ],
)
def test_a_call_that_is_not_refused_by_name_would_be_seen(call, said) -> None:
    assert complaint(call, "size").startswith(said)


def test_a_call_that_hangs_would_be_seen(monkeypatch) -> None:
    def forever() -> None:
        while True:
            pass

    if not hasattr(signal, "SIGALRM"):
        pytest.skip("no clock that could stop it")
    monkeypatch.setattr("test_bad_calls.SECONDS", 0.2)
    assert complaint(forever, "size") == "hangs"


def test_there_are_enough_of_them() -> None:
    generic = sum(
        len(wrong(value).keys() - right_there(name, argument))
        for name, good in GOOD.items()
        for argument, value in good()[1].items()
    )
    assert len(BY_HAND) >= 150
    assert generic >= 2500

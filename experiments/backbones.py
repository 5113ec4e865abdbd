"""Which networks around the codebook? Convolutions, attention and Mamba at equal weights, tokens and steps.

Every tokenizer has the same quantizer, 8×8 codes for pictures of 32×32 pixels, about the same number of weights (within
10 %), and takes the same steps on the same batches at the same learning rate. Two backbones are variants of another:
the ConvNeXt with a transformer block beside the quantizer, as in the report, and the bidirectional Mamba that forgets
to turn its second result round. The cures for the grid of patches are tried on the vision transformer.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import companion
from companion import backbones
from companion.classifier import load_classifier, recognise
from companion.metrics import CodeUsage, distortion, frechet_distance, grid_energy, mse, sharpness, ssim
from experiments.common import Cell, Setup, run
from experiments.reconstructions import eyes_for

PATCH = 4  # pixels: of patches, and how many times smaller the latents are
WINDOWS = 30  # parts into which the steps are cut to see how smoothly a loss falls
_CODES = {"num_codes": 64, "dim": 8, "decay": 0.95}
# NAME_hidden and NAME_blocks: sizes of a family, which `VARIANTS` names; blocks of convolutions are those at each
# resolution (ConvNeXt has two of these, ResNet one), of Mamba in both directions those of both together.
# The rate of quick, of seed 0 and six epochs: ViT's validation error at 1e-3, 2e-3, 3e-3 and 4e-3 was 0.0220, 0.0188,
# 0.0182 and 0.0229; ConvNeXt's at 2e-3, 3e-3 and 4e-3 0.0178, 0.0167 and 0.0167; Mamba's 0.0183, 0.0171 and 0.0171. Of
# another seed and five epochs ViT's was 0.0213 at 2e-3, and at 3e-3, where its loss rose for an epoch, 0.0307.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        **{"train_images": 2_413, "test_images": 339, "epochs": 5, "batch_size": 32, "lr": 2e-3, **_CODES},
        **{"resnet_hidden": 48, "resnet_blocks": 1, "convnext_hidden": 48, "convnext_blocks": 1},
        **{"convnext_attention_hidden": 40, "vit_hidden": 48, "vit_blocks": 2},
        **{"mamba_hidden": 44, "mamba_blocks": 2, "mamba_state": 16, "mamba_head_dim": 22},
    },
    "full": {
        **{"train_images": 50_000, "test_images": 10_000, "epochs": 20, "batch_size": 64, "lr": 1e-3, **_CODES},
        **{"resnet_hidden": 128, "resnet_blocks": 3, "convnext_hidden": 128, "convnext_blocks": 2},
        **{"convnext_attention_hidden": 116, "vit_hidden": 128, "vit_blocks": 4},
        **{"mamba_hidden": 116, "mamba_blocks": 4, "mamba_state": 16, "mamba_head_dim": 29},
    },
    "smoke": {
        **{"train_images": 64, "test_images": 32, "epochs": 2, "batch_size": 32, "lr": 2e-3, **_CODES},
        **{"resnet_hidden": 8, "resnet_blocks": 1, "convnext_hidden": 8, "convnext_blocks": 1},
        **{"convnext_attention_hidden": 8, "vit_hidden": 8, "vit_blocks": 2},
        **{"mamba_hidden": 8, "mamba_blocks": 2, "mamba_state": 4, "mamba_head_dim": 4},
    },
}


@dataclass(frozen=True)
class Variant:
    """An encoder and a decoder of one kind.

    Args:
        kind: KINDEncoder and KINDDecoder, of ``companion.backbones`` or of this file.
        family: what its sizes are called in a profile; ``hidden`` where that differs.
        options: further arguments of both.
        decoder_options: of the decoder alone.
    """

    kind: str
    family: str
    hidden: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    decoder_options: Mapping[str, Any] = field(default_factory=dict)


_OVERLAP, _LAST_CONV = {"kernel": 2 * PATCH}, {"last_conv": True}
VARIANTS: Mapping[str, Variant] = {
    "resnet": Variant("ResNet", "resnet"),
    "convnext": Variant("ConvNeXt", "convnext"),
    "convnext, attention": Variant("ConvNeXt", "convnext", "convnext_attention", {"attention": True}),
    "vit": Variant("ViT", "vit"),
    "mamba2": Variant("Mamba2", "mamba"),
    "bidirectional mamba2": Variant("BidirectionalMamba2", "mamba"),
    "bidirectional, not flipped back": Variant("NotFlippedBack", "mamba"),
    "vit, overlapping patches": Variant("ViT", "vit", options=_OVERLAP),
    "vit, last convolution": Variant("ViT", "vit", decoder_options=_LAST_CONV),
    "vit, both": Variant("ViT", "vit", options=_OVERLAP, decoder_options=_LAST_CONV),
    "latent tokens": Variant("LatentToken", "vit"),
}


class NotFlippedBackBlock(backbones.BidirectionalMamba2Block):
    """The wrong version: what was read backwards is added as it comes, position 0 to the last one's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forwards(x) + self.backwards(x.flip(1))


class NotFlippedBackEncoder(backbones.BidirectionalMamba2Encoder):
    _block = NotFlippedBackBlock


class NotFlippedBackDecoder(backbones.BidirectionalMamba2Decoder):
    _block = NotFlippedBackBlock


def cells(seeds: int) -> Sequence[Cell]:
    return [{"variant": variant, "seed": seed} for variant in VARIANTS for seed in range(seeds)]


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(VARIANTS[cell["variant"]], setup.sizes, setup.train.shape).to(setup.device)
    x = setup.test.batch(torch.arange(len(setup.test)))[0]
    before = untrained(model, x)
    by_step: list[Tensor] = []  # commitment

    def objective(model: nn.Module, x: Tensor, *_: Tensor) -> companion.VQVAEOutput:
        out = model(x)
        assert isinstance(out, companion.VQVAEOutput)
        if model.training:
            by_step.append(out.losses["commitment"].detach())
        return out

    history = companion.fit(
        model,
        setup.train,
        validation=setup.test,
        objective=objective,
        epochs=setup.sizes["epochs"],
        batch_size=setup.sizes["batch_size"],
        lr=setup.sizes["lr"],
        seed=cell["seed"],
        device=setup.device,
        progress=False,
    )
    by_epoch = {term: [row[f"validation_{term}"] for row in history.rows] for term in ("reconstruction", "commitment")}
    return {
        **measures(model, x, setup),
        **before,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gigaflops": gigaflops(model, x[:1]),
        "commitment_roughness": roughness(torch.stack(by_step)),
        "commitment_rises": rises(by_epoch["commitment"]),
        **{f"{term}_by_epoch": values for term, values in by_epoch.items()},
    }


def tokenizer(variant: Variant, sizes: Mapping[str, Any], shape: Sequence[int]) -> companion.VQVAE:
    """An untrained one, for images of ``shape`` (C, H, W)."""
    channels, height, width = shape
    blocks = sizes[f"{variant.family}_blocks"]
    options = {"hidden": sizes[f"{variant.hidden or variant.family}_hidden"], "factor": PATCH, **variant.options}
    if variant.family == "mamba":
        options |= {"state": sizes["mamba_state"], "head_dim": sizes["mamba_head_dim"]}
        blocks = blocks if variant.kind == "Mamba2" else blocks // 2  # each has a block for either direction
    if variant.family in ("mamba", "vit"):
        options["size"] = (height, width)
    if variant.kind == "LatentToken":
        options["tokens"] = height // PATCH * (width // PATCH)
    encoder, decoder = (kind_of(variant.kind, part) for part in ("Encoder", "Decoder"))
    return companion.VQVAE(
        encoder(channels, sizes["dim"], num_blocks=blocks, **options),
        companion.EMAVectorQuantizer(sizes["num_codes"], sizes["dim"], decay=sizes["decay"]),
        decoder(channels, sizes["dim"], num_blocks=blocks, **options, **variant.decoder_options),
    )


def kind_of(kind: str, part: str) -> type[nn.Module]:
    ours = {"NotFlippedBackEncoder": NotFlippedBackEncoder, "NotFlippedBackDecoder": NotFlippedBackDecoder}
    return ours.get(kind + part) or getattr(backbones, kind + part)


# What is measured ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def measures(model: companion.VQVAE, x: Tensor, setup: Setup) -> dict[str, float]:
    """How near the reconstructions of the test images are to them, whether a grid shows, and how the codes are used.

    The Fréchet distance is that of features of the classifier that ``eyes_for`` names. ``seams`` and
    ``grid_energy_originals`` have the images beside them: the first is a ratio.
    """
    usage = CodeUsage(model.quantizer.num_codes)
    parts = x.split(500)
    for part in parts:
        usage.update(model.encode(part))
    x_hat = torch.cat([model.reconstruct(part) for part in parts])
    eyes = load_classifier(eyes_for(setup.test)).to(x.device)
    error = mse(x_hat, x).item()
    return {
        "mse": error,
        "distortion": distortion(error, setup.variance),
        "ssim": ssim(x_hat, x).item(),
        "frechet": frechet_distance(recognise(eyes, x_hat).features, recognise(eyes, x).features),
        "sharpness": (sharpness(x_hat) / sharpness(x)).item(),
        "grid_energy": grid_energy(x_hat, PATCH),
        "grid_energy_originals": grid_energy(x, PATCH),
        "seams": seams(x_hat, PATCH) / seams(x, PATCH),
        "perplexity": usage.perplexity,
        "usage": usage.usage,
    }


@torch.no_grad()
def untrained(model: companion.VQVAE, x: Tensor) -> dict[str, float]:
    """What the decoder makes of the encoder's latents, not quantized, before any training: how much it resembles the
    images, and how much of a grid it has.

    ``initial_correlation_of_patches`` looks below the pattern that an untrained decoder draws over everything: of the
    mean colours of patches, and of these only what differs from image to image.
    """
    model.eval()
    drawn = torch.cat([model.decoder(model.encoder(part)) for part in x.split(500)])
    model.train()
    patches, of_images = (functional.avg_pool2d(v - v.mean(0), PATCH) for v in (drawn, x))
    return {
        "initial_correlation": resemblance(drawn, x),
        "initial_correlation_of_patches": resemblance(patches, of_images),
        "initial_grid_energy": grid_energy(drawn, PATCH),
    }


def resemblance(drawn: Tensor, x: Tensor) -> float:
    """How much of the images can be seen in other pictures of the same size, whatever their colours: 0 … 1.

    For each image, the affine map of the drawn colours that comes nearest to the image's (C² + C numbers, the same at
    all pixels, by least squares), and the correlation of what it gives with the image, over all pixels and channels,
    each channel without its mean. So a picture of one colour has 0. Averaged over the images; those of one colour are
    left out. (Noise has about 0.05 by chance with 32×32 pixels, and 0.2 with 8×8.)
    """
    a, b = (v.flatten(2).double().cpu() for v in (drawn, x))  # (B, C, H·W)
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    total = b.square().sum((1, 2))
    inside = a @ a.mT  # (B, C, C)
    across = a @ b.mT
    fitted = torch.linalg.pinv(inside, hermitian=True, rtol=1e-10) @ across
    explained = (across * fitted).sum((1, 2))
    seen = total > 0
    return float((explained[seen] / total[seen]).clamp(0, 1).sqrt().mean())


def seams(images: Tensor, patch: int) -> float:
    """Squared differences of neighbouring pixels across the edges of patches, over those inside patches.

    A mosaic, whose squares have one colour each, is at its plainest here; ``grid_energy`` does not see it.
    """
    across, inside = [], []
    for lines in (images.double(), images.double().mT):
        steps = lines.diff(dim=-1).square().mean((0, 1, 2))  # (n − 1,): from pixel i to i + 1
        at_edge = torch.arange(1, len(steps) + 1, device=steps.device) % patch == 0
        across.append(steps[at_edge])
        inside.append(steps[~at_edge])
    return float(torch.cat(across).mean() / torch.cat(inside).mean())


def gigaflops(model: companion.VQVAE, x: Tensor) -> float:
    """10⁹ floating-point operations of a forward and a backward pass for one image, the latter taken as two forwards.

    Counted are convolutions and products of matrices, a multiplication and an addition as two: attention and the
    chunks of Mamba among them. Not counted are norms, activations, the softmax, the fading of Mamba and the choice
    among codes after their distances. (Torch's own count of the backward pass takes a depthwise convolution for one of
    all channels, and so is not used.)
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.decoder(model.encoder(x))  # the fused attention of CPUs would not be counted
    return 3 * counter.get_total_flops() / 1e9


def roughness(by_step: Tensor) -> float:
    """How far a loss is from falling smoothly: the mean absolute bend of its logarithm.

    The steps are cut into ``WINDOWS`` parts, and the loss is averaged over each, so that what differs from batch to
    batch is small (and the same for all variants, whose batches are the same). The bend is the second difference of the
    logarithms of these means: 0 where the loss falls, or rises, by the same factor from part to part, at whatever
    scale; 0.1 where the factor changes by a tenth. The first tenth is left out: the codes have only just been put among
    the latents.
    """
    parts = by_step.double().tensor_split(min(WINDOWS, len(by_step)))
    logarithms = torch.stack([part.mean() for part in parts]).log()
    return float(logarithms[len(logarithms) // 10 :].diff(n=2).abs().mean())


def rises(values: Sequence[float]) -> float:
    """The share of epochs after the first in which a loss is higher than in the one before."""
    return sum(b > a for a, b in itertools.pairwise(values)) / (len(values) - 1)


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)

"""Runs every public function and class on the CPU and on a pretended GPU, in a process of its own.

``python device_worker.py OUT``: for each case what went wrong, "" if nothing, as JSON. Torch counts its devices at the
first backward of a process, so that a process that has made one takes no new device.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretended import PretendedDevice, register

import companion
from companion import (
    VAE,
    VQVAE,
    Autoencoder,
    AutoregressiveDecoder,
    Classifier,
    CodeSet,
    ConvNeXtDecoder,
    ConvNeXtEncoder,
    Decoder,
    EMAVectorQuantizer,
    Encoder,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    LatentTokenDecoder,
    LatentTokenEncoder,
    MambaPrior,
    PixelCNN,
    ProjectedQuantizer,
    ResidualQuantizer,
    ResNetDecoder,
    ResNetEncoder,
    RQTransformer,
    TransformerPrior,
    VectorQuantizer,
    ViTDecoder,
    ViTEncoder,
    _devices,
    autoencoder,
    backbones,
    classifier,
    codes,
    data,
    likelihoods,
    losses,
    metrics,
    plots,
    priors,
    quantizers,
    vae,
)
from companion.augment import Augment
from companion.course import explorers

CPU = torch.device("cpu")
CASES: dict[str, Callable[[torch.device], Any]] = {}
COVERED: set[Any] = set()


def case(name: str, run: Callable[[torch.device], Any], *covers: Any) -> None:
    CASES[name] = run
    COVERED.update(covers)


# --- quantizers: a step in training mode, and another one with what was learnt; then eval mode

QUANTIZERS = {
    "learnt": lambda: VectorQuantizer(6, 4),
    "rotation": lambda: VectorQuantizer(6, 4, estimator="rotation"),
    "moving": lambda: EMAVectorQuantizer(6, 4, restart_below=0.9),
    "moving, on the sphere": lambda: EMAVectorQuantizer(6, 4, init="uniform", cosine=True),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(6, 4) for _ in range(3)], depth_dropout=0.7),
    "residual, moving": lambda: ResidualQuantizer([EMAVectorQuantizer(6, 4) for _ in range(2)]),
    "residual, shared": lambda: ResidualQuantizer(EMAVectorQuantizer(6, 4), depth=3),
    "projected": lambda: ProjectedQuantizer(EMAVectorQuantizer(6, 2, cosine=True), 4),
    "gumbel": lambda: GumbelQuantizer(6, 4, anneal_steps=2),
    "finite": lambda: FiniteScalarQuantizer([3, 2, 4, 2]),
}


def quantize(make: Callable[[], quantizers.Quantizer], device: torch.device) -> Any:
    quantizer, z = make().to(device), torch.randn(5, 4, 3, 2).to(device).requires_grad_()
    out = quantizer(z)
    (out.z_q.square().mean() + out.loss).backward()
    again = quantizer(z).z_q
    quantizer.eval()
    indices = quantizer.encode(z)
    learnt = list(quantizer.state_dict().values())
    masked = fields(quantizer(z, mask=(torch.arange(2) < torch.tensor([[1], [2], [0]])).expand(5, 3, 2).to(device)))
    return [*fields(out), z.grad, again, *fields(quantizer(z)), indices, quantizer.decode(indices), learnt, masked]


for name, make in QUANTIZERS.items():
    case(f"quantizer, {name}", lambda device, make=make: quantize(make, device), type(make()))


def in_parts(device: torch.device) -> Any:
    """A batch in two parts, for a stack whose results hold others."""
    quantizer = ResidualQuantizer([EMAVectorQuantizer(6, 4) for _ in range(2)]).to(device)
    z = torch.randn(8, 4, 3, 2).to(device)
    quantizer(z)
    with quantizers.one_update(quantizer):
        outs = [quantizer(part).z_q for part in z.split(4)]
    return [*outs, *quantizer.state_dict().values()]


case("quantizers, a batch in parts", in_parts, quantizers.one_update)


def around_quantizers(device: torch.device) -> Any:
    z, codebook = torch.randn(20, 3).to(device), torch.randn(5, 3).to(device)
    k = quantizers.nearest_code(z, codebook)
    n, s = quantizers.code_statistics(z, k, 5)
    moved, counts = quantizers.ema_step(codebook, n, n, s, 0.9)
    members = [EMAVectorQuantizer(5, 3, init="uniform").to(device) for _ in range(2)]
    stacks = quantizers.residual_encode(z, members)
    return [
        k, n, s, moved, counts, stacks,
        quantizers.cosine_lookup(z, codebook),
        quantizers.decode_to_depth(stacks, members, 1),
        quantizers.k_means(z, 4),
        quantizers.restart(codebook, counts, z, 0.9),
        quantizers.rotation_trick(z, codebook[k]),
        quantizers.straight_through(z, codebook[k]),
        quantizers.vq_losses(z, codebook[k]),
        list(quantizers.rate_bits(stacks, 5).values()),
    ]  # fmt: skip


case(
    "around quantizers",
    around_quantizers,
    *(quantizers.code_statistics, quantizers.cosine_lookup, quantizers.decode_to_depth, quantizers.ema_step),
    *(quantizers.k_means, quantizers.nearest_code, quantizers.rate_bits, quantizers.residual_encode),
    *(quantizers.restart, quantizers.rotation_trick, quantizers.straight_through, quantizers.vq_losses),
)

# --- priors: a step in training mode, samples in every way, bits; codes, labels and chance come from the CPU

PRIORS = {
    "transformer": lambda **options: TransformerPrior(7, (2, 3), dim=8, heads=2, layers=2, dropout=0.2, **options),
    "over stacks": lambda **options: RQTransformer(7, (2, 2, 3), dim=8, heads=2, layers=1, **options),
    "mamba": lambda **options: MambaPrior(7, (2, 3), dim=8, state=3, head_dim=4, layers=2, **options),
    "convolutions": lambda **options: PixelCNN(7, (3, 2), dim=8, layers=2, **options),
}


def draw(make: Callable[..., priors.Prior], device: torch.device) -> Any:
    prior = make(num_classes=3, label_dropout=0.5).to(device)
    table, labels = torch.randint(0, 7, (9, *prior.grid)), torch.randint(0, 3, (9,))
    out = prior(table.to(device), labels)
    out.loss.backward()
    generator = torch.Generator().manual_seed(3)
    return [
        *fields(out),
        [parameter.grad for parameter in prior.parameters()],
        prior.loss(table.to(device)),
        prior.sample(5, 1, guidance=2.0, top_k=4, top_p=0.9, batch_size=2),
        prior.sample(9, labels, temperature=0.5, cache=False, generator=generator),
        prior.sample(4, temperature=0),
        prior.sample(9, labels, prefix=table[:, :1], temperature=0),
        prior.loss(table.to(device), mask=(table < 5).to(device)),
        priors.prior_bits(prior, table, labels, batch_size=4),
        priors.prior_bits(prior, table.to(device)),
    ]


for name, make in PRIORS.items():
    case(
        f"prior, {name}",
        lambda device, make=make: draw(make, device),
        type(make()),
        priors.prior_bits,
        priors.filtered_probabilities,
    )

# --- models

LIKELIHOODS = {
    "gaussian": lambda: likelihoods.Gaussian(learn_scale=True),
    "binned": lambda: likelihoods.Gaussian(binned=True),
    "bernoulli": lambda: likelihoods.Bernoulli(relaxed=True),
    "categorical": lambda: likelihoods.Categorical(),
    "mixture": lambda: likelihoods.DiscretizedLogisticMixture(3),
}


def images(device: torch.device, n: int = 4) -> Tensor:
    return (torch.randint(0, 256, (n, 1, 8, 8)) / 255).to(device)


def generate(make: Callable[[], likelihoods.Likelihood], device: torch.device, *, by_pixel: bool = False) -> Any:
    likelihood = make()
    decoder: nn.Module = Decoder(2, image_size=8, out_channels=8 if by_pixel else likelihood.num_params)
    if by_pixel:
        decoder = AutoregressiveDecoder(decoder, likelihood.num_params, hidden=8, layers=1)
    model, x = VAE(Encoder(4, image_size=8), decoder, likelihood).to(device), images(device)
    out = model(x)
    out.loss.backward()
    drawn = [model.sample(2), model.sample(2, generator=torch.Generator().manual_seed(3))]  # of another device too
    return [
        *fields(out),
        [parameter.grad for parameter in model.parameters()],
        drawn if by_pixel else [*drawn, model.sample(2, mean=True)],
        model.reconstruct(x),
        vae.importance_weighted_bound(model.log_weights(x, 3, generator=torch.Generator().manual_seed(3))),
        vae.bits_per_dimension(out.log_likelihood, 64),
        vae.active_units(out.mean),
    ]


for name, make_likelihood in LIKELIHOODS.items():
    case(
        f"VAE, {name}",
        lambda device, make=make_likelihood: generate(make, device),
        *(VAE, Encoder, Decoder, type(make_likelihood())),
        *(vae.reparameterize, vae.kl_divergence, vae.elbo, vae.importance_weighted_bound, vae.active_units),
        *(vae.bits_per_dimension, likelihoods.discretized_gaussian, likelihoods.discretized_logistic),
    )
case(
    "VAE, pixel by pixel",
    lambda device: generate(LIKELIHOODS["mixture"], device, by_pixel=True),
    *(AutoregressiveDecoder, backbones.MaskedConv2d, backbones.raster_mask),
)


def rebuild(device: torch.device) -> Any:
    model, x = Autoencoder(Encoder(3, image_size=8), Decoder(3, image_size=8)).to(device), images(device)
    out = model(x)
    out.loss.backward()
    line = autoencoder.interpolate(out.z[0], out.z[1], 5)
    return [*fields(out), model.reconstruct(x), line, autoencoder.pca_reconstruct(x, x[:2], 2)]


case("autoencoder", rebuild, Autoencoder, autoencoder.interpolate, autoencoder.pca_reconstruct)


def small_vqvae(quantizer: quantizers.Quantizer) -> VQVAE:
    return VQVAE(ResNetEncoder(1, 4, hidden=8), quantizer, ResNetDecoder(1, 4, hidden=8))


def tokens(make: Callable[[], quantizers.Quantizer], device: torch.device) -> Any:
    model, x = small_vqvae(make()).to(device), images(device, 12)
    out = model(x)
    out.loss.backward()
    held = data.ImageSet("noise", "train", (x * 255).byte().cpu(), torch.arange(12) % 2, ("a", "b"))
    written = companion.tokenize(model, held, batch_size=5)
    companion.check_identity(model, written)
    rows = torch.tensor([3, 1])
    return [
        [value for value in fields(out) if not isinstance(value, dict)],
        model.reconstruct(x),
        held.to(device).batch(rows)[0],
        written.batch(rows, device),
        written.to(device).batch(rows),
        CodeSet(written.codes.to(device), written.labels.to(device), 6, "").batch(rows),
    ]


case("VQ-VAE", lambda device: tokens(QUANTIZERS["moving"], device), VQVAE, ResNetEncoder, ResNetDecoder)
case(
    "RQ-VAE",
    lambda device: tokens(QUANTIZERS["residual, shared"], device),
    *(backbones.ResidualBlock, CodeSet, codes.tokenize, codes.identity, codes.check_identity),
)


BACKBONES = {
    "ConvNeXt": lambda: (ConvNeXtEncoder(1, 4, **SMALL), ConvNeXtDecoder(1, 4, **SMALL)),
    "ConvNeXt, attention": lambda: (
        ConvNeXtEncoder(1, 4, attention=True, **SMALL),
        ConvNeXtDecoder(1, 4, attention=True, **SMALL),
    ),
    "ViT": lambda: (
        ViTEncoder(1, 4, size=8, kernel=8, **SMALL),
        ViTDecoder(1, 4, size=8, kernel=8, last_conv=True, **SMALL),
    ),
    "ViT, rotary": lambda: (
        ViTEncoder(1, 4, size=8, heads=2, positions="axial-rotary", **SMALL),
        ViTDecoder(1, 4, size=8, heads=2, positions="axial-rotary", **SMALL),
    ),
    "latent tokens": lambda: (
        LatentTokenEncoder(1, 4, size=8, tokens=3, **SMALL),
        LatentTokenDecoder(1, 4, size=8, tokens=3, **SMALL),
    ),
}
SMALL = {"hidden": 8, "num_blocks": 1}


def encode_and_decode(make: Callable[[], tuple[nn.Module, nn.Module]], device: torch.device) -> Any:
    encoder, decoder = make()
    model, x = VQVAE(encoder, VectorQuantizer(6, 4), decoder).to(device), images(device, 3)
    out = model(x)
    out.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [[value for value in fields(out) if not isinstance(value, dict)], gradients, model.reconstruct(x)]


for name, make_backbone in BACKBONES.items():
    case(
        f"backbone, {name}",
        lambda device, make=make_backbone: encode_and_decode(make, device),
        *map(type, make_backbone()),
        *(backbones.ConvNeXtBlock, backbones.SelfAttention, backbones.TransformerBlock, backbones.RMSNorm),
    )


def parts_of_backbones(device: torch.device) -> Any:
    queries, keys, values = torch.randn(3, 2, 2, 6, 8).to(device)
    return [backbones.attention(queries, keys, values), backbones.axial_rotary(queries, (2, 3))]


case("parts of backbones", parts_of_backbones, backbones.attention, backbones.axial_rotary)


def patches(device: torch.device) -> Any:
    x = images(device)
    tokens = backbones.patchify(x, (4, 2))
    return [tokens, backbones.unpatchify(tokens, (4, 2), (2, 4)), backbones.SwiGLU(8).to(device)(tokens)]


def rows(device: torch.device) -> Any:
    """State-space duality in its four forms, and the blocks, one position at a time too."""
    x, log_decay = torch.randn(2, 7, 3, 4).to(device).requires_grad_(), -torch.rand(2, 7, 3).to(device)
    b, c = torch.randn(2, 2, 7, 5).to(device)
    y, state = backbones.ssd_chunked(x, log_decay, b, c, chunk=3)
    y.square().sum().backward()
    small = {"state": 3, "head_dim": 4}
    mixer, block = (make(8, **small).to(device) for make in (backbones.Mamba2Mixer, backbones.Mamba2Block))
    tokens = torch.randn(2, 5, 8).to(device)
    mixed, after = mixer.step(tokens[:, 0], mixer.new_state(2))
    both = backbones.BidirectionalMamba2Block(8, **small).to(device)
    pairs = (
        (backbones.Mamba2Encoder, backbones.Mamba2Decoder),
        (backbones.BidirectionalMamba2Encoder, backbones.BidirectionalMamba2Decoder),
    )
    frame = {"hidden": 8, "size": 8, "num_blocks": 1, **small}
    images_again = [
        decoder(1, 4, **frame).to(device)(encoder(1, 4, **frame).to(device)(images(device)))
        for encoder, decoder in pairs
    ]
    return [
        y, state, x.grad, *backbones.ssd_recurrence(x, log_decay, b, c, state), backbones.ssd_matrix(log_decay, b, c),
        *backbones.ssd_step(x[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], state), mixer(tokens), mixed, *fields(after),
        block(tokens), block.step(tokens[:, 1], after)[0], both(tokens), *images_again,
    ]  # fmt: skip


case(
    "rows of tokens",
    rows,
    *(backbones.ssd_chunked, backbones.ssd_matrix, backbones.ssd_recurrence, backbones.ssd_step),
    *(backbones.Mamba2Mixer, backbones.Mamba2Block, backbones.BidirectionalMamba2Block, backbones.MambaState),
    *(backbones.Mamba2Encoder, backbones.Mamba2Decoder),
    *(backbones.BidirectionalMamba2Encoder, backbones.BidirectionalMamba2Decoder),
)
case("patches", patches, backbones.patchify, backbones.unpatchify, backbones.SwiGLU)


def recognise(device: torch.device) -> Any:
    glyphs = [data.load("glyphs", split, size=30) for split in ("train", "test")]
    shipped = classifier.load_classifier("glyphs").to(device)
    x, labels = glyphs[1].batch(range(20))
    with device:  # as torch.set_default_device: what is drawn must not stand in the way of images on the CPU
        quality = classifier.evaluate_samples(
            shipped, x.to(device), labels, train=glyphs[0], held_out=glyphs[1].to(device)
        )
    training = (255 * torch.rand(9, 1, 28, 28)).byte()
    out = Classifier(width=4).to(device)(x.to(device))
    out.logits.sum().backward()
    return [
        *fields(out), *fields(classifier.recognise(shipped, x)),
        classifier.nearest_distances(x.to(device), training),
        classifier.nearest_distances(x.to(device), training.to(device)),
        quality.accuracy, quality.frechet, quality.frechet_floor, quality.nearest, quality.nearest_floor,
        quality.shares.tolist(), quality.entropy, quality.classes,
    ]  # fmt: skip


case(
    "classifier",
    recognise,
    *(
        Classifier,
        classifier.load_classifier,
        classifier.evaluate_samples,
        classifier.recognise,
        classifier.nearest_distances,
    ),
)


def diagnosed(device: torch.device) -> Any:
    """What is measured of tokenizers that were trained for a step, of their priors, a VAE, and a quantizer alone."""
    looks: list[Any] = []
    numbers: list[float] = []
    x = images(device, 12)
    held = data.ImageSet("noise", "train", (x * 255).byte().cpu(), torch.arange(12) % 2, ("a", "b"))
    for kind, grid in (("moving", (2, 2)), ("residual, moving", (2, 2, 2))):
        model = small_vqvae(QUANTIZERS[kind]()).to(device)
        model(x)
        prior = TransformerPrior(6, grid, dim=8, layers=1, heads=2, num_classes=2).to(device)
        looks += companion.diagnose(model, held, prior, batch_size=5, samples=3).looks
        scores = companion.evaluate_tokenizer(model, held, prior, features="glyphs", batch_size=5)
        numbers += [value for value in scores.as_row().values() if isinstance(value, float)]
    likelihood = likelihoods.Gaussian()
    variational = VAE(Encoder(6, hidden=4, image_size=8), Decoder(3, hidden=4, image_size=8), likelihood).to(device)
    looks += companion.diagnose(variational, x).looks
    looks += companion.diagnose(QUANTIZERS["learnt"]().to(device), torch.randn(5, 4, 3, 2).to(device)).looks
    return torch.tensor(numbers + [value for look in looks for value in look.measured.values()]).to(device)


case("a diagnosis, and scores", diagnosed, companion.diagnose, companion.evaluate_tokenizer)


case("augmented images", lambda device: Augment(sharpness=1, autocontrast=1)(images(device)), Augment)


# --- metrics


def measure(device: torch.device) -> Any:
    a, b = torch.randn(30, 4), torch.randn(20, 4)
    pictures = torch.rand(2, 3, 12, 12)
    indices = torch.randint(0, 5, (6, 2, 3))
    usage = metrics.CodeUsage(5, per_position=True).update(indices.to(device)).update(indices)
    return [
        metrics.mse(a.to(device), 2 * a.to(device)),
        *(usage.perplexity, usage.usage, usage.entropy_bits, usage.entropy_bits_per_position, usage.counts),
        list(metrics.bits_per_image(indices.to(device), 5).values()),
        metrics.perplexity(torch.rand(9).to(device)),
        metrics.frechet_distance(a.to(device), b.to(device)),
        metrics.frechet_distance(a.to(device), b),
        metrics.ssim(pictures.to(device), pictures.flip(0).to(device)),
        metrics.sharpness(pictures.to(device)),
        metrics.grid_energy(pictures.to(device), 4),
    ]


case(
    "metrics",
    measure,
    *(metrics.mse, metrics.CodeUsage, metrics.bits_per_image, metrics.perplexity),
    *(metrics.frechet_distance, metrics.ssim, metrics.sharpness, metrics.grid_energy),
)

# --- losses


def see(device: torch.device) -> Any:
    """VGG16 from a file with small random weights, and the shipped classifier, on colour and on grey images."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    layers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    state: dict[str, Tensor] = {}
    for layer, ins, outs in zip(layers, widths[:-1], widths[1:], strict=True):
        state[f"features.{layer}.weight"] = torch.randn(outs, ins, 1, 1).expand(-1, -1, 3, 3) / (9 * ins) ** 0.5
        state[f"features.{layer}.bias"] = 0.1 * torch.randn(outs)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "vgg16.pth")
        vgg = losses.lpips_vgg(Path(folder) / "vgg16.pth").to(device)
    small, results = losses.classifier_distance("glyphs").to(device), []
    for distance, channels in ((vgg, 3), (vgg, 1), (small, 1)):
        x = torch.rand(2, channels, 16, 16).to(device)
        x_hat = torch.rand(2, channels, 16, 16).to(device).requires_grad_()
        distance(x_hat, x).backward()
        results += [distance.per_image(x_hat, x), x_hat.grad]
    return results


def compare_features(device: torch.device) -> Any:
    taps = [(torch.randn(2, 3, 4, 5).to(device), torch.randn(2, 3, 4, 5).to(device)) for _ in range(2)]
    features_hat, features = ([tap[i] for tap in taps] for i in (0, 1))
    heads = [torch.rand(3).to(device) for _ in taps]
    return [losses.feature_distance(features_hat, features), losses.feature_distance(features_hat, features, heads)]


case("the distance of given features", compare_features, losses.feature_distance)


def look_patch_by_patch(device: torch.device) -> Any:
    critic = losses.PatchDiscriminator(1, width=4).to(device)
    x_hat = torch.rand(2, 1, 13, 16).to(device).requires_grad_()
    logits = losses.logits_with_constants(critic, x_hat)
    logits.mean().backward()
    return [logits, x_hat.grad, losses.patch_map(logits, (13, 16), 16, 2, -5), critic.map(x_hat)]


case("logits and their map", look_patch_by_patch, losses.logits_with_constants, losses.patch_map)
case("feature distances", see, losses.FeatureDistance, losses.classifier_distance, losses.lpips_vgg)


def oppose(penalty: str, adversarial_loss: str, device: torch.device) -> Any:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    distance = losses.FeatureDistance(network, ["1"], [torch.rand(3)], mean=(0.5,), std=(0.2,))
    critic = losses.PatchDiscriminator(1, width=4)
    options: dict[str, Any] = {"penalty": penalty, "adversarial_loss": adversarial_loss}
    model = losses.AdversarialTraining(small_vqvae(VectorQuantizer(6, 4)), critic, distance, start=1, **options)
    model.to(device)
    first, out = model(images(device)), model(images(device))
    out.loss.backward()
    results = [list(first.losses.values()), list(out.losses.values()), list(model.state_dict().values())]
    results += [parameter.grad for parameter in model.parameters()]
    return [*results, list(model.eval()(images(device)).losses.values())]


for penalty, adversarial_loss in (("r1", "hinge"), ("lecam", "non-saturating")):
    case(
        f"adversarial training, {penalty}",
        lambda device, penalty=penalty, loss=adversarial_loss: oppose(penalty, loss, device),
        *(losses.AdversarialTraining, losses.PatchDiscriminator, losses.LeCamPenalty, losses.r1_penalty),
        *(losses.lecam_penalty, losses.adaptive_weight),
        *(losses.hinge_discriminator_loss, losses.hinge_generator_loss),
        *(losses.non_saturating_discriminator_loss, losses.non_saturating_generator_loss),
    )

# --- what is drawn; it ends on the CPU


def figures(device: torch.device) -> Any:
    pictures, points = torch.rand(7, 1, 6, 6).to(device), torch.randn(40, 2).to(device)
    labels, table = (torch.arange(40) % 3).to(device), torch.randint(0, 5, (3, 4)).to(device)
    plots.image_rows({"a": pictures, "b": pictures[:2]}, title="rows")
    plots.image_grid(pictures, columns=3)
    plots.pipeline_map(pictures[0], table, pictures[1], pictures[2])
    _, axes = plots.figure(columns=4)
    plots.class_scatter(axes[0], points, labels, ("a", "b", "c"))
    plots.draw_codes(axes[1], table, order=torch.arange(5).to(device))
    plots.draw_cells(axes[2], points[:5], points)
    plots.draw_image(axes[3], pictures[0])


case(
    "figures",
    figures,
    *(plots.image_rows, plots.image_grid, plots.pipeline_map, plots.class_scatter),
    *(plots.draw_codes, plots.draw_cells, plots.draw_image),
)


def play(device: torch.device) -> Any:
    x, points, names = images(device), torch.randn(40, 2).to(device), ("a", "b", "c")
    plane = Decoder(2, image_size=8).to(device)
    explorers.shift_and_blur(x, 0.1)
    explorers.latent_plane(plane, points, (torch.arange(40) % 3).to(device), names)
    explorers.latent_grid(plane)
    explorers.codes_in_the_plane(points, points[:3])
    plain = small_vqvae(VectorQuantizer(6, 4)).to(device).eval()
    deep = small_vqvae(ResidualQuantizer([VectorQuantizer(6, 4) for _ in range(2)])).to(device).eval()
    explorers.code_map(plain, x)
    explorers.depth_slider(deep, x)
    small = {"dim": 8, "heads": 2, "layers": 1, "num_classes": 3}
    prior = TransformerPrior(6, (2, 2), tokenizer=companion.identity(plain), **small).to(device)
    explorers.prior_samples(prior, plain, names)
    over_stacks = RQTransformer(6, (2, 2, 2), tokenizer=companion.identity(deep), **small).to(device)
    explorers.stack_sampler(deep, over_stacks, names)


case(
    "explorers",
    play,
    *(explorers.shift_and_blur, explorers.latent_plane, explorers.latent_grid, explorers.codes_in_the_plane),
    *(explorers.draw_steps, explorers.code_map, explorers.depth_slider, explorers.prior_samples),
    *(explorers.stack_sampler, explorers.explorer),
)

# --- on disk


def saved(device: torch.device) -> Any:
    model = small_vqvae(VectorQuantizer(6, 4)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        companion.save(model, path)
        assert companion.load(path).state_dict()["quantizer.codebook"].device == CPU
        there = companion.load(path, device=device, dtype=torch.float16)
        companion.save_pretrained(model, folder)
        again = companion.from_pretrained(folder, device=device)
        return [list(one.state_dict().values()) for one in (companion.load(path, model), there, again)]


case("saving", saved, companion.save, companion.load, companion.save_pretrained, companion.from_pretrained)

# --- code that is wrong on a GPU, or on one without float64: the proof that these are found


class Misplaced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-1])  # it is on the CPU


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double().mean(-1).float()


WRONG: dict[str, Callable[[torch.device], Any]] = {
    "arange without a device": lambda device: Misplaced()(torch.ones(2, 3, device=device)),
    "a layer on the CPU": lambda device: nn.Linear(3, 3)(torch.ones(2, 3, device=device)),
    "a table on the CPU": lambda device: torch.zeros(2, 3)[torch.zeros(1, dtype=torch.int64, device=device)],
    "cat": lambda device: torch.stack([torch.ones((), device=device), torch.ones(())]),
    "a generator of the CPU": lambda device: torch.rand(3, generator=torch.Generator(), device=device),
    "numpy": lambda device: torch.ones(3, device=device).numpy(),
    "other numbers": lambda device: torch.ones(3, device=device) * (1 if device == CPU else 2),
    "a result on the CPU": lambda device: torch.ones(3),
}
WRONG_WITHOUT_FLOAT64: dict[str, Callable[[torch.device], Any]] = {
    "double": lambda device: Doubled()(torch.ones(2, 3, device=device)),
    "drawn and moved": lambda device: torch.rand(3, dtype=torch.float64).to(device),
}


def right(device: torch.device) -> Any:
    """What a GPU takes."""
    x = torch.arange(6.0).to(device).reshape(2, 3)
    y = x + torch.tensor(1.0)
    y[:, torch.tensor([0])] = 9
    y[0].add_(1)  # a view
    return [x, y, x[torch.tensor([1])], torch.zeros(2, 3).copy_(x).to(device), float(f"{y.sum():.1f}"), y.tolist()]


case("what a GPU takes", right)


def problem(run: Callable[[torch.device], Any], *, float64: bool) -> str:
    """What goes wrong on the pretended device, "" if nothing."""
    torch.manual_seed(0)
    want = run(CPU)
    try:
        with PretendedDevice(float64=float64) as pretended:
            without = set() if float64 else {pretended.device.type}
            with mock.patch.object(_devices, "WITHOUT_FLOAT64", without):
                torch.manual_seed(0)
                got = run(pretended.device)
            for one in flat(got):
                if isinstance(one, Tensor) and (float64 or one.dtype != torch.float64):
                    assert one.device == pretended.device, f"a result of shape {tuple(one.shape)} is on {one.device}"
            values = [one.detach().cpu() if isinstance(one, Tensor) else one for one in flat(got)]
        torch.testing.assert_close(values, flat(want), check_device=False)
    except Exception:
        return traceback.format_exc()
    return ""


def fields(result: Any) -> list[Any]:
    """Of a result, without those that hold other results."""
    return [value for name, value in vars(result).items() if name != "depths"]


def flat(result: Any) -> list[Any]:
    """What is in it, through lists, dicts and results of results."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return [
        part
        for one in leaves
        if one is not None
        for part in (flat(list(vars(one).values())) if is_dataclass(one) and not isinstance(one, type) else [one])
    ]


def main(out: str) -> None:
    register()  # before the first backward
    both = CASES | WRONG
    found = {
        "float64": {name: problem(run, float64=True) for name, run in both.items()},
        "no float64": {name: problem(run, float64=False) for name, run in (CASES | WRONG_WITHOUT_FLOAT64).items()},
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

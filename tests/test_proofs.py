"""The companion gives the numbers that the notebooks glued when they were executed."""

import math
from pathlib import Path

import nbformat
import pytest
import torch

import companion
from companion.autoencoder import interpolate, pca_reconstruct
from companion.course.execution import glued
from companion.course.session import EXPECTED
from companion.metrics import mse
from companion.priors import filtered_probabilities, transformer
from companion.quantizers import (
    VectorQuantizer,
    code_statistics,
    cosine_lookup,
    ema_step,
    nearest_code,
    rate_bits,
    restart,
    straight_through,
    vq_losses,
)
from companion.quantizers.residual import decode_to_depth, residual_encode
from companion.training import train_step
from companion.vae import importance_weighted_bound

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [
    folder / f"{p.stem}.ipynb"
    for p in sorted((ROOT / "solutions").glob("*.py"))
    for folder in (ROOT / "solutions", ROOT / "chapters")
]


def proof_mse() -> object:
    x = torch.linspace(0, 1, 24).reshape(2, 1, 3, 4)
    x_hat = (x.flip(0) ** 2).requires_grad_()
    value = mse(x_hat, x)
    (gradient,) = torch.autograd.grad(value, x_hat)
    return {"value": value.item(), "gradient_norm": gradient.norm().item()}


def proof_autoencoder() -> object:
    torch.manual_seed(0)
    model = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
    output = model((torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2)
    output.loss.backward()
    gradients = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {"z": output.z.flatten().tolist(), "loss": output.loss.item(), "gradients": gradients}


def proof_train_step() -> object:
    torch.manual_seed(0)
    model = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    x = (torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2
    return [train_step(model, sgd, x).item() for _ in range(3)]


def proof_interpolate() -> object:
    return interpolate(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]]), 5).tolist()


def proof_pca() -> object:
    some, other = torch.arange(40.0).cos().reshape(10, 1, 2, 2), torch.arange(8.0).sin().reshape(2, 1, 2, 2)
    return pca_reconstruct(some, other, 2).flatten().tolist()


def with_gradients(result: torch.Tensor, *inputs: torch.Tensor) -> list[float]:
    weights = torch.linspace(1, 2, result.numel()).reshape(result.shape)
    gradients = torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True)
    parts = [result, *(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, inputs, strict=True))]
    return [number for part in parts for number in part.flatten().tolist()]


def latents_and_codes() -> tuple[torch.Tensor, torch.Tensor]:
    z, e = torch.linspace(0, 9, 24).sin().reshape(12, 2), torch.linspace(0, 5, 10).cos().reshape(5, 2)
    return z.requires_grad_(), e[nearest_code(z, e)].requires_grad_()


def proof_nearest_code() -> object:
    z, e = torch.linspace(0, 9, 24).sin().reshape(12, 2), torch.linspace(0, 5, 10).cos().reshape(5, 2)
    return nearest_code(z, e).tolist()


def proof_stop_gradient_puzzle() -> object:
    a, b, weights = torch.linspace(-1, 1, 5), torch.linspace(2, 3, 5), torch.linspace(1, 2, 5)
    return torch.cat([a * b, weights * b, -weights * a]).tolist()  # the value, and the gradients that were asked for


def proof_straight_through() -> object:
    z, codes = latents_and_codes()
    return with_gradients(straight_through(z, codes), z, codes)


def proof_codebook_loss() -> object:
    z, codes = latents_and_codes()
    return with_gradients(vq_losses(z, codes)[0], z, codes)


def proof_commitment_loss() -> object:
    z, codes = latents_and_codes()
    return with_gradients(vq_losses(z, codes)[1], z, codes)


def proof_vector_quantizer() -> object:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(7, 3)
    z = torch.linspace(0, 20, 2 * 3 * 4 * 5).sin().reshape(2, 3, 4, 5).requires_grad_()
    output = quantizer(z)
    total = (output.z_q * z.detach().cos()).sum() + output.loss
    gradients = torch.autograd.grad(total, (z, quantizer.codebook))
    return {
        "z_q": output.z_q.flatten().tolist(),
        "indices": output.indices.flatten().tolist(),
        "losses": [output.loss.item(), output.losses["codebook"].item(), output.losses["commitment"].item()],
        "gradients": [number for gradient in gradients for number in gradient.flatten().tolist()],
    }


def proof_vqvae() -> object:
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8, num_blocks=1),
        companion.VectorQuantizer(16, 4),
        companion.ResNetDecoder(1, 4, hidden=8, num_blocks=1),
        quantizer_weight=2.0,
    )
    out = model((torch.linspace(0, 12, 3 * 12 * 12).sin().reshape(3, 1, 12, 12) + 1) / 2)
    out.loss.backward()
    return {
        "losses": [value.item() for value in (out.loss, *out.losses.values())],
        "indices": out.indices.flatten().tolist(),
        "gradients": [p.grad.norm().item() for p in model.parameters() if p.grad is not None],
    }


def proof_residual_block() -> object:
    torch.manual_seed(0)
    block = companion.backbones.ResidualBlock(3)
    return block(torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)).flatten().tolist()


def proof_perplexity() -> object:
    return companion.metrics.perplexity(torch.tensor([5, 0, 3, 1, 1]))


def proof_bits_per_image() -> object:
    return companion.metrics.bits_per_image(torch.arange(60).reshape(5, 3, 4) ** 2 % 7, 8)


def proof_ema_quantizer() -> object:
    torch.manual_seed(0)
    quantizer = companion.EMAVectorQuantizer(7, 3, decay=0.8, init="uniform", restart_below=0.0)
    for step in range(20):
        z = (torch.linspace(0, 30, 2 * 3 * 4 * 5) + step).sin().reshape(2, 3, 4, 5).requires_grad_()
        out = quantizer(z)
    (gradient,) = torch.autograd.grad((out.z_q * z.detach().cos()).sum() + out.loss, z)
    return {
        "codebook": quantizer.codebook.flatten().tolist(),
        "counts": quantizer.counts.tolist(),
        "indices": out.indices.flatten().tolist(),
        "z_q": out.z_q.flatten().tolist(),
        "loss": out.loss.item(),
        "gradient": gradient.flatten().tolist(),
    }


def proof_ema_parts() -> object:
    z, e = torch.linspace(0, 9, 24).sin().reshape(12, 2), torch.linspace(0, 5, 10).cos().reshape(5, 2)
    n, s = code_statistics(z, nearest_code(z, e), 5)
    codes, counts = ema_step(e, torch.tensor([3.0, 0.0, 8.0, 0.1, 2.0]), n, s, 0.9, 0.5)
    revived, restarted = restart(codes, counts, 10 + z, 0.25)
    return {
        "code_statistics": [*n.tolist(), *s.flatten().tolist()],
        "ema_step": [*codes.flatten().tolist(), *counts.tolist()],
        "restart": [*revived.flatten().tolist(), *restarted.tolist()],
    }


def proof_cosine_lookup() -> object:
    z, e = torch.linspace(0, 9, 24).sin().reshape(12, 2), torch.linspace(0, 5, 10).cos().reshape(5, 2)
    return cosine_lookup(z, e).tolist()


def proof_vae() -> object:
    torch.manual_seed(0)
    model = companion.VAE(companion.Encoder(6), companion.Decoder(3), companion.likelihoods.Gaussian(0.2))
    x = (torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28) + 1) / 2
    output = model(x, noise=torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.7]]))
    output.loss.backward()
    return {
        "z": output.z.flatten().tolist(),
        "terms": [output.loss.item(), output.log_likelihood.item(), output.kl.item()],
        "gradients": [p.grad.norm().item() for p in model.parameters() if p.grad is not None],
    }


def proof_discretized_logistic() -> object:
    x = torch.tensor([[0.0], [100.0], [255.0]]) / 255
    mean, log_scale = torch.tensor([0.2, 0.9, -3.0]), torch.tensor([-2.0, -4.0, -1.0])
    return companion.likelihoods.discretized_logistic(x, mean, log_scale).flatten().tolist()


def proof_importance_weighted_bound() -> object:
    return importance_weighted_bound(torch.tensor([[-2000.0, 3.0], [-2001.0, 1.0], [-1999.5, 2.0]])).tolist()


def residual_stack() -> tuple[torch.Tensor, list[VectorQuantizer]]:
    torch.manual_seed(0)
    members = [VectorQuantizer(6, 3, commitment_weight=0.5) for _ in range(3)]
    return torch.linspace(0, 20, 2 * 3 * 4 * 5).sin().reshape(2, 3, 4, 5), members


def proof_residual_quantizer() -> object:
    z, members = residual_stack()
    z.requires_grad_()
    quantizer = companion.ResidualQuantizer(members)
    out = quantizer(z)
    total = (out.z_q * z.detach().cos()).sum() + out.loss
    gradients = torch.autograd.grad(total, (z, *(member.codebook for member in members)))
    return {
        "z_q": out.z_q.flatten().tolist(),
        "indices": out.indices.flatten().tolist(),
        "losses": [out.loss.item(), out.losses["codebook"].item(), out.losses["commitment"].item()],
        "gradients": [number for gradient in gradients for number in gradient.flatten().tolist()],
        "depth 2": quantizer.decode(out.indices, depth=2).flatten().tolist(),
    }


def proof_residual_encode() -> object:
    return residual_encode(*residual_stack()).flatten().tolist()


def proof_decode_to_depth() -> object:
    z, members = residual_stack()
    return decode_to_depth(residual_encode(z, members), members, 2).flatten().tolist()


def proof_residual_losses() -> object:
    z, members = residual_stack()
    depths = companion.ResidualQuantizer(members)(z).depths
    return [part.losses[name].item() for name in ("codebook", "commitment") for part in depths]


def proof_rate_bits() -> object:
    return rate_bits(residual_encode(*residual_stack()), 6)


def proof_feature_distance() -> object:
    a = torch.linspace(0, 30, 3 * 3 * 32 * 32).sin().reshape(3, 3, 32, 32) / 2 + 0.5
    b = (a * 3).sin() / 2 + 0.5
    return companion.losses.classifier_distance("emoji").per_image(b, a).tolist()


def proof_adversarial_parts() -> object:
    losses, logits = companion.losses, torch.linspace(-3, 3, 28).reshape(2, 1, 2, 7)
    fake = logits.flip(3) - 1
    return [
        losses.hinge_discriminator_loss(logits, fake).item(),
        losses.hinge_generator_loss(fake).item(),
        *losses.patch_map(logits, (9, 18), patch=5, stride=2, offset=-1).flatten().tolist(),
    ]


def wave() -> torch.Tensor:
    return torch.linspace(0, 40, 2 * 6 * 8 * 8).sin().reshape(2, 6, 8, 8)


def proof_convnext_block() -> object:
    block = companion.backbones.ConvNeXtBlock(6)
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_((torch.arange(p.numel()) * (i + 1.0)).cos().reshape(p.shape) / 4)
        return block(wave()).flatten()[::37].tolist()


def proof_patchify() -> object:
    return companion.backbones.patchify(wave(), 2).flatten()[::17].tolist()


def proof_recurrence() -> object:
    x = torch.linspace(0, 9, 11 * 3).cos().reshape(1, 11, 1, 3).double()
    a = torch.linspace(0.1, 0.99, 11)[None, :, None].double()
    b, c = (torch.linspace(0, end, 11 * 4).sin().reshape(1, 11, 4).double() for end in (5, 7))
    y, _ = companion.backbones.ssd_chunked(x, a.log(), b, c, chunk=4)
    return y.flatten().tolist()


def proof_grid_energy() -> object:
    return companion.metrics.grid_energy(wave()[:, :3], 4)


def proof_prior() -> object:
    torch.manual_seed(0)
    prior = companion.TransformerPrior(7, (3, 4), dim=16, layers=2, heads=2, num_classes=3)
    out = prior(torch.arange(24).reshape(2, 3, 4) ** 2 % 7, torch.tensor([2, 0]))
    out.loss.backward()
    weights = (prior.positions, *prior.to_logits.parameters(), *prior.transformer.blocks.parameters())
    return {
        "loss": [out.loss.item()],
        "logits": out.logits.flatten().tolist(),
        "gradients": [weight.grad.norm().item() for weight in weights if weight.grad is not None],
    }


def transformer_parts() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    attention, block = transformer.CausalSelfAttention(8, 2), transformer.Block(8, 2)
    return attention, block, torch.linspace(0, 9, 2 * 5 * 8).sin().reshape(2, 5, 8)


def proof_attention() -> object:
    attention, _, x = transformer_parts()
    return attention(x).flatten().tolist()


def proof_block() -> object:
    _, block, x = transformer_parts()
    return block(x).flatten().tolist()


def proof_cached_attention() -> object:
    """The last of five steps with the companion's cache, and the keys that it holds then."""
    attention, _, x = transformer_parts()
    cache = transformer.Cache(2, 2, 5, 4, x)
    with torch.no_grad():
        steps = [attention(x[:, t : t + 1], cache) for t in range(5)]
    return {"output": steps[-1].flatten().tolist(), "keys": cache.keys.flatten().tolist()}


def proof_filtered_probabilities() -> object:
    logits = torch.linspace(0, 9, 3 * 8).cos().reshape(3, 8)
    return filtered_probabilities(logits, temperature=1.5, top_k=5, top_p=0.8).flatten().tolist()


def proof_sample() -> object:
    torch.manual_seed(0)
    prior = companion.TransformerPrior(7, (3, 4), dim=16, layers=2, heads=2, num_classes=3).double()
    return prior.sample(4, torch.tensor([0, 1, 2, 0]), generator=torch.Generator().manual_seed(0)).flatten().tolist()


def proof_inputs() -> object:
    """What the companion's prior reads, by the vectors that it looks up: codes first, then the starts."""
    prior = companion.TransformerPrior(7, (3, 4), dim=16, layers=1, heads=2, num_classes=3)
    with torch.no_grad():
        prior.codes.weight.copy_(torch.arange(7.0)[:, None].expand(7, 16))
        prior.sos.weight.copy_(torch.arange(7.0, 11.0)[:, None].expand(4, 16))
        prior.positions.zero_()
    read = prior._inputs((torch.arange(24).reshape(2, 3, 4) ** 2 % 7).flatten(1), torch.tensor([2, 0]))
    return read[..., 0].int().flatten().tolist()


def prior_of_stacks() -> tuple[companion.RQTransformer, torch.Tensor, torch.Tensor]:
    """A small one whose weights are sines, and some codes and classes."""
    model = companion.RQTransformer(5, (2, 3, 3), dim=8, layers=2, depth_layers=1, heads=2, num_classes=3)
    model = model.double().eval()
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(model.named_parameters())):
            line = torch.arange(weight.numel(), dtype=torch.float64)
            weight.copy_((line + 7 * i).sin().mul(0.6).reshape(weight.shape))
    codes = torch.arange(4 * 18).mul(7).remainder(11).remainder(5).reshape(4, 2, 3, 3)
    return model, codes, torch.tensor([0, 2, 1, 2])


def proof_rq_transformer() -> object:
    model, codes, labels = prior_of_stacks()
    out = model(codes, labels)
    gradients = torch.autograd.grad(out.loss, [weight for _, weight in sorted(model.named_parameters())])
    return {
        "logits": out.logits.flatten().tolist(),
        "loss": out.loss.item(),
        "gradient norms": [gradient.norm().item() for gradient in gradients],
    }


def proof_rq_inputs() -> object:
    """What the companion's model gives to its two transformers."""
    model, codes, labels = prior_of_stacks()
    read: list[torch.Tensor] = []
    for part in (model.spatial, model.depthwise):
        part.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(codes, labels)
    return [number for inputs in read for number in inputs.flatten().tolist()]


def proof_sample_stacks() -> object:
    model, _, labels = prior_of_stacks()
    return model.sample(4, labels, generator=torch.Generator().manual_seed(3)).flatten().tolist()


def proof_code_length() -> object:
    """By the logarithms of torch.distributions."""
    torch.manual_seed(0)
    old, new = (torch.rand(n, 4, 4).square().mul(16).long() for n in (30, 5))
    table = torch.distributions.Categorical(probs=torch.bincount(old.flatten(), minlength=16).double() + 1)
    return (-table.log_prob(new).sum((1, 2)) / math.log(2)).tolist()


def proof_learning_rate_factor() -> object:
    schedule = companion.training.WarmupCosine(warmup=10, floor=0.05)
    return [schedule(step, 100) for step in range(0, 100, 9)]


PROOFS = {
    "00_start_here": {"proof.mse": proof_mse},
    "01_autoencoder": {
        "proof.autoencoder": proof_autoencoder,
        "proof.train_step": proof_train_step,
        "proof.pca": proof_pca,
        "proof.interpolate": proof_interpolate,
    },
    "02_vae": {
        "proof.vae": proof_vae,
    },
    "02b_likelihoods_and_collapse": {
        "proof.discretized_logistic": proof_discretized_logistic,
        "proof.importance_weighted_bound": proof_importance_weighted_bound,
    },
    "03_vector_quantisation": {
        "proof.nearest_code": proof_nearest_code,
        "proof.straight_through": proof_straight_through,
        "proof.codebook_loss": proof_codebook_loss,
        "proof.commitment_loss": proof_commitment_loss,
        "proof.stop_gradient_puzzle": proof_stop_gradient_puzzle,
        "proof.vector_quantizer": proof_vector_quantizer,
    },
    "03b_past_the_argmin": {},
    "04_vq_vae": {
        "proof.vqvae": proof_vqvae,
        "proof.residual_block": proof_residual_block,
        "proof.perplexity": proof_perplexity,
        "proof.bits_per_image": proof_bits_per_image,
    },
    "04b_how_many_codes": {},
    "05_ema_codebooks": {
        "proof.ema_quantizer": proof_ema_quantizer,
        "proof.ema_parts": proof_ema_parts,
    },
    "05b_what_does_the_work": {
        "proof.cosine_lookup": proof_cosine_lookup,
    },
    "06_residual_quantisation": {
        "proof.residual_quantizer": proof_residual_quantizer,
        "proof.residual_encode": proof_residual_encode,
        "proof.decode_to_depth": proof_decode_to_depth,
        "proof.residual_losses": proof_residual_losses,
        "proof.rate_bits": proof_rate_bits,
    },
    "06b_stacks_against_codebooks": {},
    "07_transformer_prior": {
        "proof.prior": proof_prior,
        "proof.attention": proof_attention,
        "proof.block": proof_block,
        "proof.filtered_probabilities": proof_filtered_probabilities,
        "proof.sample": proof_sample,
        "proof.inputs": proof_inputs,
        "proof.cached_attention": proof_cached_attention,
    },
    "07b_judging_samples": {},
    "08_rq_transformer": {
        "proof.rq_transformer": proof_rq_transformer,
        "proof.rq_inputs": proof_rq_inputs,
        "proof.sample_stacks": proof_sample_stacks,
    },
    "08b_costs_and_comparisons": {},
    "09_sharper_pictures": {
        "proof.feature_distance": proof_feature_distance,
        "proof.adversarial_parts": proof_adversarial_parts,
    },
    "10_backbones": {
        "proof.convnext_block": proof_convnext_block,
        "proof.patchify": proof_patchify,
        "proof.recurrence": proof_recurrence,
        "proof.grid_energy": proof_grid_energy,
    },
    "11_your_own_images": {
        "proof.code_length": proof_code_length,
        "proof.learning_rate_factor": proof_learning_rate_factor,
    },
}


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in flat(item)]
    assert isinstance(value, float | int)
    return [float(value)]


def assert_proved(values, proofs):
    """Each glued number has a proof and is what that gives; those with a band are compared by ``session.expect``."""
    stored = {name: value for name, value in values.items() if not name.startswith(EXPECTED)}
    assert stored.keys() == proofs.keys()
    for name, proof in proofs.items():
        assert flat(stored[name]) == pytest.approx(flat(proof()), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_companion_reproduces_what_the_notebook_stored(notebook):
    assert_proved(glued(nbformat.read(notebook, as_version=4)), PROOFS[notebook.stem])


def test_no_glued_number_escapes_the_proofs():
    proofs = {"proof.mse": lambda: {"value": 0.2642868459}}
    right = {"proof.mse": {"value": 0.2642868757}, "expect.accuracy": 0.9}  # the last digits are another processor's
    assert_proved(right, proofs)
    for wrong in ({"proof.new": 1.0}, {"poof.mse": 1.0}, {"proof.mse": {"value": 0.2653}}):
        with pytest.raises(AssertionError):
            assert_proved(right | wrong, proofs)
    with pytest.raises(AssertionError):
        assert_proved({}, proofs)


def test_a_wrong_number_would_be_noticed():
    assert flat({"a": [1.5]}) == pytest.approx(flat({"a": [1.5]}), rel=1e-4, abs=1e-6)
    assert flat({"a": [1.5]}) != pytest.approx(flat({"a": [1.501]}), rel=1e-4, abs=1e-6)

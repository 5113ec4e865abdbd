"""ProjectedQuantizer: a quantizer of few dimensions between two linear maps."""

import math

import pytest
import torch
from torch import Tensor

import companion
from companion.quantizers import EMAVectorQuantizer, GumbelQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer

INSIDE = {
    "gradient": lambda: VectorQuantizer(9, 2),
    "EMA": lambda: EMAVectorQuantizer(9, 2),
    "EMA, cosine": lambda: EMAVectorQuantizer(9, 2, cosine=True),
    "Gumbel": lambda: GumbelQuantizer(9, 2),
    "residual": lambda: ResidualQuantizer([EMAVectorQuantizer(9, 2), EMAVectorQuantizer(9, 2)]),
}


def projected(inside: Quantizer, dim: int = 5) -> companion.ProjectedQuantizer:
    torch.manual_seed(0)
    return companion.ProjectedQuantizer(inside, dim)


def latents(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 5, 4, 4)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", INSIDE)
def test_it_is_a_linear_map_the_quantizer_and_a_linear_map(kind):
    quantizer = projected(INSIDE[kind]()).eval()
    z = latents()
    out = quantizer(z)
    down, up = quantizer.down, quantizer.up
    low = torch.einsum("bchw,dc->bdhw", z, down.weight) + down.bias[:, None, None]
    inside = quantizer.quantizer(low)
    high = torch.einsum("bchw,dc->bdhw", inside.z_q, up.weight) + up.bias[:, None, None]
    torch.testing.assert_close(out.z_q, high)
    assert torch.equal(out.indices, inside.indices)
    torch.testing.assert_close(out.loss, inside.loss)
    assert out.losses.keys() == inside.losses.keys()
    assert torch.equal(quantizer.encode(z), out.indices)
    if kind != "Gumbel":  # whose z_q is the code up to rounding
        torch.testing.assert_close(quantizer.decode(out.indices), out.z_q)
    assert (quantizer.num_codes, quantizer.dim, quantizer.depth) == (9, 5, inside.indices.ndim - 2)


def test_the_codebook_inside_learns_from_the_projected_latents_in_training_only():
    alone, quantizer = EMAVectorQuantizer(9, 2), projected(EMAVectorQuantizer(9, 2))
    z = latents()
    quantizer.eval()(z)
    quantizer.encode(z)
    assert int(quantizer.quantizer.step) == 0
    quantizer.train()(z)
    with torch.no_grad():
        alone(quantizer.down(z.movedim(1, -1)).movedim(-1, 1))
    assert torch.equal(quantizer.quantizer.codebook, alone.codebook)
    assert torch.equal(quantizer.quantizer.counts, alone.counts)
    assert int(quantizer.quantizer.step) == 1


def test_both_maps_and_the_latents_get_gradients():
    quantizer = projected(EMAVectorQuantizer(9, 2))
    z = latents().requires_grad_()
    quantizer(z)  # k-means
    out = quantizer(z)
    gradients = torch.autograd.grad(out.z_q.square().sum(), [z, *quantizer.parameters()], retain_graph=True)
    assert all(bool(gradient.any()) for gradient in gradients)
    maps = [quantizer.down.weight, quantizer.up.weight]
    down, up = torch.autograd.grad(out.loss, maps, allow_unused=True)
    assert bool(down.any())
    assert up is None  # commitment is a matter of the few dimensions


@pytest.mark.parametrize("kind", INSIDE)
def test_saved_and_loaded_it_is_the_same(kind, tmp_path, device):
    quantizer = projected(INSIDE[kind]())
    quantizer(latents())
    companion.save(quantizer.eval(), tmp_path / "q.safetensors")
    again = companion.load(tmp_path / "q.safetensors").to(device)
    assert torch.equal(again.encode(latents()), quantizer.encode(latents()))
    torch.testing.assert_close(again(latents()).z_q, quantizer(latents()).z_q)


def test_it_stands_in_a_vqvae():
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 6, hidden=8),
        projected(EMAVectorQuantizer(8, 2, cosine=True), 6),
        companion.ResNetDecoder(1, 6, hidden=8),
    )
    x = latents(2, 1, 12, 12).sigmoid()
    out = model(x)
    out.loss.backward()
    assert out.z_q.shape == (2, 6, 3, 3)
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(model.eval().decode(model.encode(x)), model.reconstruct(x))


@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 6), (2, 5, 2, 3, 2)])
def test_any_number_of_positions(shape):
    out = projected(VectorQuantizer(4, 2))(latents(*shape))
    assert out.z_q.shape == shape
    assert out.indices.shape == shape[:1] + shape[2:]


def test_wrong_input_is_refused_and_nothing_learnt():
    quantizer = projected(EMAVectorQuantizer(4, 2))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(3, 2, 4\), want .*\(B, 5"):
        quantizer(latents(3, 2, 4))
    z = latents()
    z[0, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="infinite"):
        quantizer(z)
    assert int(quantizer.quantizer.step) == 0
    with pytest.raises(ValueError, match="dim: got 0"):
        companion.ProjectedQuantizer(VectorQuantizer(4, 2), 0)


def test_under_autocast_the_latents_keep_their_dtype(autocast):
    quantizer = projected(EMAVectorQuantizer(9, 2))
    with autocast():
        out = quantizer(latents().bfloat16())
    assert out.z_q.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32

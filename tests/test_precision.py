"""Models whose weights are in half precision: which types go in and out, and what stays in float32."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import companion
from companion.priors import MambaPrior, PixelCNN, Prior, RQTransformer, TransformerPrior
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)

K, D = 6, 8
QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "vector": lambda: VectorQuantizer(K, D),
    "rotation": lambda: VectorQuantizer(K, D, estimator="rotation"),
    "ema": lambda: EMAVectorQuantizer(K, D),
    "finite scalar": lambda: FiniteScalarQuantizer([3, 2, 5, 2, 2, 2, 4, 2]),
    "gumbel": lambda: GumbelQuantizer(K, D),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(K, D), EMAVectorQuantizer(K, D)]),
    "projected": lambda: ProjectedQuantizer(EMAVectorQuantizer(K, 3, cosine=True), D),
    "projected finite scalar": lambda: ProjectedQuantizer(FiniteScalarQuantizer([3, 4]), D),
}
PRIORS: dict[str, Callable[[], Prior]] = {
    "transformer": lambda: TransformerPrior(5, (3, 4), dim=16, layers=2, heads=2),
    "rq-transformer": lambda: RQTransformer(5, (2, 3, 2), dim=16, layers=2, heads=2),
    "mamba": lambda: MambaPrior(5, (3, 4), dim=16, layers=2, state=4, head_dim=8),
    "pixelcnn": lambda: PixelCNN(5, (3, 4), dim=16, layers=2, kernel=3),
}
every_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def latents() -> Tensor:
    return torch.randn(3, D, 4, 4, generator=torch.Generator().manual_seed(1))


def quantizer(kind: str) -> Quantizer:
    torch.manual_seed(0)
    made = QUANTIZERS[kind]()
    made(latents())  # k-means
    return made.eval()


@every_half
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantizer_in_half_precision_gives_it_back_and_measures_in_float32(kind, dtype):
    """What comes out is what a quantizer in float32 makes of the same codes and the same latents, rounded."""
    made = quantizer(kind).to(dtype)
    z = latents().to(dtype)
    out = made(z)
    assert out.z_q.dtype == made.decode(out.indices).dtype == dtype
    assert out.loss.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in out.losses.values())
    assert torch.equal(made.encode(z), out.indices)
    torch.testing.assert_close(made.decode(out.indices), out.z_q, rtol=0.02, atol=0.02)
    if "projected" in kind:  # its linear maps round, and rounded vectors may have other codes
        return
    exact = made.float()(z.float())
    assert torch.equal(exact.indices, out.indices)
    torch.testing.assert_close(out.z_q.float(), exact.z_q, rtol=0.02, atol=0.02)


@every_half
@pytest.mark.parametrize("kind", ["vector", "rotation", "finite scalar", "gumbel"])
def test_a_quantizer_in_half_precision_that_learns_by_gradients_trains(kind, dtype):
    made = quantizer(kind).to(dtype).train()
    z = latents().to(dtype).requires_grad_()
    out = made(z)
    (out.z_q.float().square().mean() + out.loss).backward()
    assert z.grad is not None
    assert z.grad.dtype == dtype
    assert all(bool(one.grad.isfinite().all()) and bool(one.grad.any()) for one in (z, *made.parameters()))


@every_half
def test_a_tokenizer_of_finite_scalars_in_half_precision_decodes(dtype):
    """The wrong version decodes to float32, which a decoder in half precision refuses."""
    torch.manual_seed(0)
    grid = FiniteScalarQuantizer([3, 4, 5])
    made = companion.VQVAE(
        companion.ResNetEncoder(1, 3, hidden=4), grid, companion.ResNetDecoder(1, 3, hidden=4)
    ).eval()
    x = torch.rand(2, 1, 16, 16)
    want = made.decode(indices := made.encode(x))
    made.to(dtype)
    got = made.decode(indices)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    assert made.encode(x.to(dtype)).shape == indices.shape
    with pytest.raises(ValueError, match="want"):
        made.decoder(grid.float().decode(indices))
    assert grid.double().decode(indices).dtype == torch.float64


def test_a_finite_scalar_quantizer_from_the_device_meta_is_whole_and_has_nothing_to_save():
    with torch.device("meta"):
        made = FiniteScalarQuantizer([3, 4, 5])
    made.to_empty(device="cpu")
    want = FiniteScalarQuantizer([3, 4, 5])
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.encode(z), want.encode(z))
    assert torch.equal(made.decode(made.encode(z)), want.decode(want.encode(z)))
    assert made.state_dict() == {}


@every_half
@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_in_half_precision_has_a_loss_in_float32_trains_and_samples(kind, dtype):
    torch.manual_seed(0)
    made = PRIORS[kind]()
    codes = torch.randint(0, 5, (3, *made.grid))
    want = made.loss(codes).item()
    made.to(dtype)
    out = made(codes)
    assert out.logits.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(want, abs=0.02)
    out.loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in made.parameters() if weight.grad is not None)
    drawn = made.sample(4, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4, *made.grid)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 5

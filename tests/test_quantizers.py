"""Quantizers: the contract, the search, who gets which gradient, and the mistakes that others made."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import companion
from companion._arguments import check_finite
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    Quantizer,
    VectorQuantizer,
    nearest_code,
    rotation_trick,
    straight_through,
    vq_losses,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LAYOUTS = {
    "contiguous": lambda z: z.contiguous(),
    "channels last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other": lambda z: z.repeat_interleave(2, 0)[::2],
    "expanded": lambda z: z[:1].expand(z.shape),
}


def family(dim: int) -> dict[str, Quantizer]:
    """One of each kind, in eval mode for those that draw."""
    torch.manual_seed(0)
    return {
        "vector": VectorQuantizer(11, dim),
        "rotation": VectorQuantizer(11, dim, estimator="rotation"),
        "gumbel": GumbelQuantizer(11, dim).eval(),
        "finite scalar": FiniteScalarQuantizer([3, 4, 5, 2][:dim] + [2] * (dim - 4)),
    }


KINDS = list(family(1))


# The contract -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 4),
    dim=st.integers(1, 6),
    spatial=st.lists(st.integers(1, 5), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(list(LAYOUTS)),
    device=st.sampled_from(DEVICES),
    seed=st.integers(0, 99),
)
def test_contract(kind, batch, dim, spatial, dtype, layout, device, seed):
    """Shapes, dtypes, encode, decode, finite gradients: for every quantizer, and however a tensor lies in memory."""
    quantizer = family(dim)[kind].to(device)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, dim, *spatial, generator=generator)
    z = LAYOUTS[layout](values.to(device, dtype)).detach().requires_grad_()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    out = quantizer(z)
    assert out.z_q.shape == z.shape
    assert out.z_q.dtype == dtype
    assert out.indices.shape == (batch, *spatial)
    assert out.indices.dtype == torch.int64
    assert out.loss.ndim == 0
    assert all(term.ndim == 0 and term.isfinite() for term in out.losses.values())
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.z_q)
    assert 0 <= int(out.indices.min()) <= int(out.indices.max()) < quantizer.num_codes
    (out.z_q.float().sum() + out.loss).backward()
    assert z.grad is None or bool(z.grad.isfinite().all())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite_are_refused_and_leave_everything_as_it_was(kind, bad):
    for quantizer in (family(4)[kind], family(4)[kind].train()):
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        z = torch.randn(2, 4, 3)
        z[1, 2, 0] = bad
        for use in (quantizer, quantizer.encode):
            with pytest.raises(ValueError, match=r"z: got \d NaN and \d infinite of 24 numbers"):
                use(z)
        assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_other_latents_are_refused_by_name(kind):
    quantizer = family(4)[kind]
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(2, 5, 3\), want .* \(B, 4, \*spatial\)"):
        quantizer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"z: got float32 of shape \(0, 4, 3\)"):
        quantizer(torch.zeros(0, 4, 3))
    with pytest.raises(ValueError, match="z: got int64"):
        quantizer(torch.zeros(2, 4, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_indices_that_are_no_codes_are_refused(kind):
    """In `functional.embedding` a negative index is an error without a name, and on a GPU one without a line."""
    quantizer = family(4)[kind]
    top = quantizer.num_codes
    with pytest.raises(ValueError, match=rf"indices: got 0 to {top}, want 0 to {top - 1}"):
        quantizer.decode(torch.tensor([[0, top]]))
    with pytest.raises(ValueError, match="indices: got -1 to 0"):
        quantizer.decode(torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match="indices: got int32"):
        quantizer.decode(torch.tensor([[0]], dtype=torch.int32))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: VectorQuantizer(0, 4), "num_codes"),
        (lambda: VectorQuantizer(4, 0), "dim"),
        (lambda: VectorQuantizer(4, 4, commitment_weight=-1), "commitment_weight"),
        (lambda: VectorQuantizer(4, 4, estimator="reinforce"), "estimator"),
        (lambda: GumbelQuantizer(4, 4, temperature=0.01), "final_temperature"),
        (lambda: GumbelQuantizer(4, 4, anneal_steps=0), "anneal_steps"),
        (lambda: FiniteScalarQuantizer([]), "levels"),
        (lambda: FiniteScalarQuantizer([4, 1]), "levels"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(build, says):
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_gives_the_same_codes(kind, tmp_path, device):
    quantizer = family(4)[kind]
    companion.save(quantizer, tmp_path / "q.safetensors")
    again = companion.load(tmp_path / "q.safetensors").to(device).eval()
    z = torch.randn(2, 4, 5)
    assert torch.equal(again.encode(z), quantizer.encode(z))
    assert torch.equal(again(z).z_q, quantizer(z).z_q)


# The search --------------------------------------------------------------------------------------------------------


def uncentred(z: Tensor, codebook: Tensor) -> Tensor:
    """The wrong version: the expansion as it is mostly written."""
    return torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2).argmin(1)


def wrong_codes(search, offset: float, *, dtype: torch.dtype = torch.float32) -> float:
    """Share of codes whose exact distance is larger than that of the nearest one by more than float32 can tell.

    Points and codes are clouds of spread 1 around ``offset``. Two codes count as a tie when their exact distances to z
    differ by less than 8 units of float32's rounding (2⁻²⁴) of the larger squared length, measured from the codes'
    centre.
    """
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(4000, 16, generator=generator) + offset).to(dtype)
    codebook = (torch.randn(512, 16, generator=generator) + offset).to(dtype)
    exact = torch.cdist(z.double(), codebook.double()).square()
    chosen = exact.gather(1, search(z, codebook).to(z.device)[:, None])[:, 0]
    centre = codebook.double().mean(0)
    size = torch.maximum((z.double() - centre).square().sum(1), (codebook.double() - centre).square().sum(1).max())
    return ((chosen - exact.amin(1)) > 8 * 2**-24 * size).double().mean().item()


@pytest.mark.parametrize("far", [1e5, 1e6, 1e9])
def test_a_code_that_ran_away_does_not_spoil_the_search_among_the_others(far):
    """Moved so that the *mean* of the codes is at the origin, all others are far from it."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(500, 16, generator=generator), torch.randn(64, 16, generator=generator)
    codebook[0] = far
    exact = torch.cdist(z.double(), codebook.double()).argmin(1)
    assert (nearest_code(z, codebook) == exact).all()
    mean = codebook.mean(0)
    assert (uncentred(z - mean, codebook - mean) != exact).float().mean() > 0.005


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_search_picks_the_float64_codes_far_from_the_origin(offset):
    """Far from the origin, ‖z‖² − 2 z·e + ‖e‖² in float32 picks wrong codes, unless both are centred first."""
    assert wrong_codes(nearest_code, offset) == 0
    assert (wrong_codes(uncentred, offset) > 0.001) == (offset > 0)


@pytest.mark.parametrize("offset", [0, 100, 1000])
@pytest.mark.parametrize("device", DEVICES)
def test_search_under_autocast_is_that_without(offset, device):
    """bfloat16 keeps three digits, and picks another code for points that lie between two."""

    def cast(search):
        def run(z, codebook):
            with torch.autocast(device, torch.bfloat16):
                return search(z.to(device), codebook.to(device)).cpu()

        return run

    assert wrong_codes(cast(nearest_code), offset) == 0
    assert wrong_codes(cast(uncentred), offset) > 0.004


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_search_has_all_digits_where_the_program_allows_fewer(allowed, monkeypatch):
    """A program may allow TF32 on a GPU and bfloat16 on some CPUs. What it allowed is allowed again afterwards, also
    on an error."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    seen, addmm = [], torch.addmm

    def product(*arguments, out):
        seen.extend(backend.fp32_precision for backend in backends)
        return addmm(*arguments, out=out)

    monkeypatch.setattr(torch, "addmm", product)
    torch.set_float32_matmul_precision(allowed)
    try:
        before = [backend.fp32_precision for backend in backends]
        assert ({"tf32"} <= {*before}) == (allowed != "highest")
        nearest_code(torch.randn(5, 3), torch.randn(4, 3))
        assert len(seen) == 2
        assert {*seen} <= {"ieee", "none"}
        assert [backend.fp32_precision for backend in backends] == before
        monkeypatch.setattr(torch, "addmm", None)
        with pytest.raises(TypeError):
            nearest_code(torch.randn(5, 3), torch.randn(4, 3))
        assert [backend.fp32_precision for backend in backends] == before
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with TF32")
def test_tf32_changes_no_code():
    torch.set_float32_matmul_precision("high")
    try:
        assert wrong_codes(lambda z, codebook: nearest_code(z.cuda(), codebook.cuda()).cpu(), 0) == 0
        assert wrong_codes(lambda z, codebook: uncentred(z.cuda(), codebook.cuda()).cpu(), 0) > 0
    finally:
        torch.set_float32_matmul_precision("highest")


def test_quantizer_under_autocast_searches_and_measures_in_float32(autocast):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 8)
    z = torch.randn(2, 8, 50)
    plain = quantizer(z)
    with autocast():
        cast = quantizer(z)
    assert torch.equal(cast.indices, plain.indices)
    assert cast.loss.dtype == torch.float32
    assert torch.equal(cast.loss, plain.loss)
    half = quantizer(z.bfloat16())
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.indices, quantizer.encode(z.bfloat16().float()))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 70),
    k=st.integers(1, 40),
    d=st.integers(1, 9),
    table=st.integers(1, 4000),
    width=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_search_is_the_brute_force_one_for_any_size_of_the_pieces(n, k, d, table, width, seed):
    from companion.quantizers import search

    generator = torch.Generator().manual_seed(seed)
    z, codebook = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(search._TABLE, "cpu", table)
        patch.setattr(search, "_CODES", width)
        found = nearest_code(z, codebook)
    assert torch.equal(found, torch.cdist(z, codebook).argmin(1) if n else torch.empty(0, dtype=torch.int64))


def test_search_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"codebook: got float32 of shape \(5, 2\), want .* \(K, 4\)"):
        nearest_code(torch.zeros(3, 4), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="codebook: got 1 NaN and 0 infinite of 10"):
        nearest_code(torch.zeros(3, 2), torch.tensor([[math.nan, 0.0]] + [[0.0, 0.0]] * 4))
    with pytest.raises(ValueError, match="z: got 0 NaN and 2 infinite of 6"):
        nearest_code(torch.tensor([[math.inf, 0.0], [0, -math.inf], [0, 0]]), torch.zeros(5, 2))


def test_large_finite_numbers_are_not_taken_for_infinite():
    """Their sum, or their squares, would be."""
    z = torch.tensor([[3e38, 3e38], [-3e38, 3e38]])
    check_finite("z", z)
    z[1, 0] = -math.inf
    with pytest.raises(ValueError, match="z: got 0 NaN and 1 infinite of 4"):
        check_finite("z", z)


# Who gets which gradient -------------------------------------------------------------------------------------------


def small_model(quantizer: VectorQuantizer) -> companion.VQVAE:
    torch.manual_seed(1)
    encoder = companion.ResNetEncoder(1, quantizer.dim, hidden=8, num_blocks=1)
    return companion.VQVAE(encoder, quantizer, companion.ResNetDecoder(1, quantizer.dim, hidden=8, num_blocks=1))


def reaches(model: companion.VQVAE, loss: Tensor) -> dict[str, float]:
    """The norm of a loss's gradient at encoder, codebook and decoder; exactly 0 where nothing arrives."""
    parts = {
        "encoder": list(model.encoder.parameters()),
        "codebook": [model.quantizer.codebook],
        "decoder": list(model.decoder.parameters()),
    }
    flat = [p for part in parts.values() for p in part]
    grads = dict(zip(map(id, flat), torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True), strict=True))
    return {
        name: math.sqrt(sum(g.square().sum().item() for p in part if (g := grads[id(p)]) is not None))
        for name, part in parts.items()
    }


@pytest.mark.parametrize("estimator", ["straight-through", "rotation"])
def test_routing_table(estimator):
    """Which loss moves which part: the reconstruction moves no code, the codebook loss the codes only, and the
    commitment loss the encoder only."""
    model = small_model(VectorQuantizer(16, 4, estimator=estimator))
    out = model(torch.rand(3, 1, 12, 12))
    table = {name: reaches(model, loss) for name, loss in out.losses.items()}
    moved = {name: {part for part, norm in row.items() if norm > 0} for name, row in table.items()}
    assert moved == {"reconstruction": {"encoder", "decoder"}, "codebook": {"codebook"}, "commitment": {"encoder"}}


class LossesAfterThePatch(VectorQuantizer):
    """The losses are taken from z_q after the straight-through estimator, which cut it from the codebook."""

    def forward(self, z):
        out = super().forward(z)
        codebook, commitment = vq_losses(z, out.z_q)
        return companion.quantizers.Quantized(
            out.z_q, out.indices, codebook + 0.25 * commitment, {"codebook": codebook, "commitment": commitment}
        )


class LeakingReconstruction(VectorQuantizer):
    """z_q goes to the decoder with its graph, so that the reconstruction moves the codes."""

    def forward(self, z):
        out = super().forward(z)
        codes = functional.embedding(out.indices, self.codebook).movedim(-1, 1)
        return companion.quantizers.Quantized(z + codes - z.detach(), out.indices, out.loss, out.losses)


@pytest.mark.parametrize(
    ("wrong", "loss", "moved"),
    [
        (LossesAfterThePatch, "codebook", {"encoder"}),
        (LeakingReconstruction, "reconstruction", {"encoder", "codebook", "decoder"}),
    ],
)
def test_the_routing_table_shows_the_known_mistakes(wrong, loss, moved):
    model = small_model(wrong(16, 4))
    row = reaches(model, model(torch.rand(3, 1, 12, 12)).losses[loss])
    assert {part for part, norm in row.items() if norm > 0} != {
        "codebook": {"codebook"},
        "reconstruction": {"encoder", "decoder"},
    }[loss]
    assert {part for part, norm in row.items() if norm > 0} <= moved


def gradients(quantizer: VectorQuantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    grads: tuple[Tensor, Tensor] = torch.autograd.grad(quantizer(z).loss, (z, quantizer.codebook))
    return grads


class BetaOnTheCodebook(VectorQuantizer):
    """β weighs the codebook term instead of the commitment term (taming-transformers, `legacy=True`)."""

    def forward(self, z):
        out = super().forward(z)
        terms = out.losses
        loss = self.commitment_weight * terms["codebook"] + terms["commitment"]
        return companion.quantizers.Quantized(out.z_q, out.indices, loss, terms)


class BetaOnBoth(VectorQuantizer):
    """β weighs both terms (vector-quantize-pytorch with a learnable codebook)."""

    def forward(self, z):
        out = super().forward(z)
        return companion.quantizers.Quantized(
            out.z_q,
            out.indices,
            self.commitment_weight * (out.losses["codebook"] + out.losses["commitment"]),
            out.losses,
        )


def by_hand(quantizer: VectorQuantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """∂loss/∂z = 2β(z − z_q)/n, ∂loss/∂eₖ = 2 Σ_{i: kᵢ = k} (eₖ − zᵢ)/n, with n numbers in z: each of its own term."""
    flat = z.movedim(1, -1).reshape(-1, quantizer.dim)
    codes = quantizer.codebook.detach()
    k = torch.cdist(flat, codes).argmin(1)
    pull = 2 * (codes[k] - flat) / z.numel()  # (N, D)
    at_codes = torch.zeros_like(codes).index_add(0, k, pull)
    shape = (z.shape[0], *z.shape[2:], z.shape[1])
    return -quantizer.commitment_weight * pull.reshape(shape).movedim(-1, 1), at_codes


def test_beta_weighs_the_commitment_term_only():
    """Each tensor's gradient is that of its own term, worked out by hand."""
    torch.manual_seed(0)
    z = torch.randn(3, 4, 5, 2)
    right = VectorQuantizer(7, 4, commitment_weight=0.3)
    for got, want in zip(gradients(right, z), by_hand(right, z), strict=True):
        torch.testing.assert_close(got, want)
    for wrong in (BetaOnTheCodebook, BetaOnBoth):
        mistaken = wrong(7, 4, commitment_weight=0.3)
        mistaken.load_state_dict(right.state_dict())
        assert any(
            not torch.allclose(got, want) for got, want in zip(gradients(mistaken, z), by_hand(right, z), strict=True)
        )


def test_loss_is_the_weighted_sum_of_its_terms():
    quantizer = VectorQuantizer(7, 4, commitment_weight=0.3)
    out = quantizer(torch.randn(3, 4, 5))
    torch.testing.assert_close(out.loss, out.losses["codebook"] + 0.3 * out.losses["commitment"])
    torch.testing.assert_close(out.losses["codebook"], out.losses["commitment"])


# Straight-through and rotation -------------------------------------------------------------------------------------


def test_straight_through_has_the_value_to_the_bit_and_the_gradient_unchanged():
    torch.manual_seed(0)
    z, z_q = torch.randn(500, 3, requires_grad=True), torch.randn(500, 3, requires_grad=True)
    out = straight_through(z, z_q)
    assert torch.equal(out, z_q)
    assert not torch.equal(z + (z_q - z).detach(), z_q)  # as it is mostly written: up to rounding
    arriving = torch.randn(500, 3)
    at_z, at_z_q = torch.autograd.grad(out, (z, z_q), arriving, allow_unused=True)
    assert torch.equal(at_z, arriving)
    assert at_z_q is None


@pytest.mark.parametrize("estimate", [straight_through, rotation_trick, vq_losses])
def test_shapes_that_would_be_stretched_are_refused(estimate):
    with pytest.raises(ValueError, match=r"z_q: got shape \(1, 3\), want that of z, \(5, 3\)"):
        estimate(torch.zeros(5, 3), torch.zeros(1, 3))


def rotation_matrix(u: Tensor, v: Tensor) -> Tensor:
    """The rotation in the plane of the unit vectors u and v that takes u to v, as a matrix."""
    cosine = u @ v
    w = (v - cosine * u) / (v - cosine * u).norm()
    sine = v @ w
    eye = torch.eye(len(u), dtype=u.dtype)
    return eye + (cosine - 1) * (torch.outer(u, u) + torch.outer(w, w)) + sine * (torch.outer(w, u) - torch.outer(u, w))


def test_rotation_turns_and_scales_the_gradient_as_z_is_turned_and_scaled():
    generator = torch.Generator().manual_seed(0)
    z, z_q, arriving = (torch.randn(40, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    moving = z.clone().requires_grad_()
    out = rotation_trick(moving, z_q)
    assert torch.equal(out, z_q)
    (got,) = torch.autograd.grad(out, moving, arriving)
    for i in range(len(z)):
        scale = z_q[i].norm() / z[i].norm()
        matrix = rotation_matrix(z[i] / z[i].norm(), z_q[i] / z_q[i].norm())
        torch.testing.assert_close(scale * matrix @ z[i], z_q[i])
        torch.testing.assert_close(got[i], scale * matrix.T @ arriving[i])


def rotation_without_care(z: Tensor, z_q: Tensor) -> Tensor:
    """The wrong version: λ = ‖z_q‖/‖z‖ is clamped, and the value is λRz instead of the code."""
    u, v = functional.normalize(z, dim=1), functional.normalize(z_q, dim=1)
    r = functional.normalize(u + v, dim=1).detach()
    turned = z - 2 * (z * r).sum(1, keepdim=True) * r + 2 * (z * u.detach()).sum(1, keepdim=True) * v.detach()
    return turned * (z_q.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-6)).detach()


@pytest.mark.parametrize(
    ("z", "z_q"),
    [
        ([0.0, 0.0], [1.0, 2.0]),  # nothing to turn
        ([1.0, 2.0], [0.0, 0.0]),  # nowhere to turn to
        ([1.0, 2.0], [-2.0, -4.0]),  # opposite: no one plane
        ([1e-30, 0.0], [0.0, 3.0]),  # a scale of 3·10³⁰
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_rotation_where_there_is_none_is_straight_through(z, z_q):
    """At z = 0 and for opposite vectors there is no rotation: value and gradient are finite and right all the same."""
    z, z_q = torch.tensor([z], requires_grad=True), torch.tensor([z_q])
    out = rotation_trick(z, z_q)
    assert torch.equal(out, z_q)
    (got,) = torch.autograd.grad(out, z, torch.tensor([[3.0, -4.0]]))
    assert torch.equal(got, torch.tensor([[3.0, -4.0]]))


def test_rotation_without_care_loses_the_code_at_zero():
    """It gives 0 for z = 0, whatever the code."""
    assert torch.equal(rotation_without_care(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])), torch.zeros(1, 2))
    z, z_q = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(rotation_without_care(z, z_q), z_q)  # elsewhere it looks right


def test_rotation_of_z_onto_itself_changes_nothing():
    z = torch.randn(6, 3, requires_grad=True)
    (got,) = torch.autograd.grad(rotation_trick(z, z.detach()).sum(), z)
    torch.testing.assert_close(got, torch.ones(6, 3))


# The codebook ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 4, 64])
def test_initial_scale_is_the_stated_one(dim):
    """U(−√3, √3) in place of U(−√(3/D), √(3/D)) makes ‖e‖² = D."""
    torch.manual_seed(0)
    lengths = VectorQuantizer(20_000, dim).codebook.detach().square().sum(1)
    assert lengths.mean().item() == pytest.approx(1, rel=0.02)
    wrong = torch.empty(20_000, dim).uniform_(-(3**0.5), 3**0.5).square().sum(1).mean().item()
    assert wrong == pytest.approx(dim, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_its_tensors_stay_the_same_objects(kind):
    """What is made anew behind the optimizer's back is no longer trained by it."""
    quantizer = family(4)[kind].train()
    before = {name: id(value) for name, value in [*quantizer.named_parameters(), *quantizer.named_buffers()]}
    storage = {name: value.data_ptr() for name, value in quantizer.named_parameters()}
    parameters = list(quantizer.parameters())
    adam = torch.optim.Adam(parameters, lr=0.1) if parameters else None
    for _ in range(3):
        out = quantizer(torch.randn(8, 4, 3, requires_grad=True))
        if adam:
            adam.zero_grad()
            (out.loss + out.z_q.square().sum()).backward()
            adam.step()
    assert {n: id(v) for n, v in [*quantizer.named_parameters(), *quantizer.named_buffers()]} == before
    assert {n: v.data_ptr() for n, v in quantizer.named_parameters()} == storage


class MadeAnew(VectorQuantizer):
    """The wrong version: the codebook is another parameter after each training forward."""

    def update(self, z, indices):
        self.codebook = torch.nn.Parameter(self.codebook.detach().clone())


def test_a_codebook_that_is_made_anew_is_not_trained():
    """The proof that the identities above matter: the optimizer steps what nobody reads any more."""
    torch.manual_seed(0)
    for kind, moves in ((VectorQuantizer, True), (MadeAnew, False)):
        quantizer = kind(6, 4)
        before, identity = quantizer.codebook.detach().clone(), id(quantizer.codebook)
        sgd = torch.optim.SGD(quantizer.parameters(), lr=10.0)
        for _ in range(3):
            sgd.zero_grad()
            quantizer(torch.randn(8, 4, 3)).loss.backward()
            sgd.step()
        assert (id(quantizer.codebook) == identity) == moves
        assert torch.equal(quantizer.codebook, before) != moves


def test_codes_that_nothing_chose_keep_their_value():
    quantizer = VectorQuantizer(50, 2)
    before = quantizer.codebook.detach().clone()
    sgd = torch.optim.SGD(quantizer.parameters(), lr=10.0)
    out = quantizer(torch.zeros(1, 2, 4) + 0.3)
    out.loss.backward()
    sgd.step()
    chosen = out.indices.unique()
    assert len(chosen) == 1
    others = torch.ones(50, dtype=torch.bool).index_fill(0, chosen, False)
    assert torch.equal(quantizer.codebook[others], before[others])
    assert not torch.equal(quantizer.codebook[chosen], before[chosen])


def test_a_codebook_trains_to_the_centres_of_four_clouds():
    """Not shapes but learning: four clouds, four codes placed badly, and each code ends in the middle of one."""
    torch.manual_seed(0)
    centres = torch.tensor([[2.0, 2], [-2, 2], [2, -2], [-2, -2]])
    points = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 2)
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(centres * 0.2)
    adam = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(200):
        adam.zero_grad()
        quantizer(points).loss.backward()
        adam.step()
    means = points.reshape(4, 50, 2).mean(1)
    torch.testing.assert_close(quantizer.codebook.detach(), means, atol=0.02, rtol=0)


# Gumbel ------------------------------------------------------------------------------------------------------------


def test_gumbel_draws_with_the_probabilities_of_its_logits():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(4, 3)
    z = torch.randn(1, 3).expand(40_000, 3)
    drawn = quantizer(z).indices
    want = quantizer.to_logits(z[:1]).softmax(1)[0]
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    deviation = (want * (1 - want) / len(drawn)).sqrt()
    assert bool(((share - want).abs() < 4 * deviation).all())


def test_gumbel_kl_is_that_of_torch_distributions():
    quantizer = GumbelQuantizer(6, 3).eval()
    z = torch.randn(5, 3, 2)
    logits = quantizer.to_logits(z.movedim(1, -1).reshape(-1, 3))
    q = torch.distributions.Categorical(logits=logits)
    uniform = torch.distributions.Categorical(logits=torch.zeros(6))
    out = quantizer(z)
    torch.testing.assert_close(out.losses["kl"], torch.distributions.kl_divergence(q, uniform).mean())
    torch.testing.assert_close(out.loss, 5e-4 * out.losses["kl"])


def test_gumbel_temperature_falls_by_equal_factors_and_is_kept_in_the_state():
    quantizer = GumbelQuantizer(4, 3, temperature=2.0, final_temperature=0.5, anneal_steps=4)
    seen = []
    for _ in range(6):
        seen.append(quantizer.temperature)
        quantizer(torch.randn(2, 3))
    assert seen == pytest.approx([2.0, 2 / 2**0.5, 1.0, 1 / 2**0.5, 0.5, 0.5])
    again = GumbelQuantizer(4, 3, temperature=2.0, final_temperature=0.5, anneal_steps=4)
    again.load_state_dict(quantizer.state_dict())
    assert again.temperature == 0.5
    quantizer.eval()(torch.randn(2, 3))
    assert int(quantizer.step) == 6  # counted in training mode only


def test_gumbel_at_low_temperature_is_nearly_one_code():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(8, 3, temperature=0.01, final_temperature=0.01)
    out = quantizer(torch.randn(200, 3))
    codes = quantizer.decode(out.indices)
    assert ((out.z_q - codes).norm(dim=1) < 0.05).float().mean() > 0.9


def test_gumbel_gives_gradient_to_the_latents_and_to_its_own_parameters():
    quantizer = GumbelQuantizer(8, 3)
    z = torch.randn(4, 3, 5, requires_grad=True)
    quantizer(z).z_q.square().sum().backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in quantizer.parameters())


# Finite scalar -----------------------------------------------------------------------------------------------------


def test_every_point_of_the_grid_is_a_code_and_comes_back():
    quantizer = FiniteScalarQuantizer([3, 4, 2])
    codes = quantizer.decode(torch.arange(24)[None])[0].T  # (24, 3)
    assert len(codes.unique(dim=0)) == 24
    assert torch.equal(quantizer.encode((codes * 0.999).atanh()), torch.arange(24))
    assert quantizer.num_codes == 24
    assert [sorted(set(codes[:, i].tolist())) for i in (0, 2)] == [[-1.0, 0.0, 1.0], [-1.0, 1.0]]


def test_finite_scalar_gradient_is_that_of_tanh():
    quantizer = FiniteScalarQuantizer([5, 8])
    z = torch.randn(30, 2, requires_grad=True)
    quantizer(z).z_q.sum().backward()
    torch.testing.assert_close(z.grad, 1 - z.detach().tanh().square())
    assert quantizer(z).losses == {}


def test_gumbel_kl_weight_is_that_of_its_loss():
    out = GumbelQuantizer(6, 3, kl_weight=0.3).eval()(torch.randn(5, 3))
    torch.testing.assert_close(out.loss, 0.3 * out.losses["kl"])


@pytest.mark.parametrize("kind", [VectorQuantizer, EMAVectorQuantizer])
def test_the_next_layer_may_work_in_place(kind):
    torch.manual_seed(0)
    z = torch.randn(12, 2, 3, requires_grad=True)
    out = kind(4, 2)(z)
    functional.relu_(out.z_q).sum().backward()
    assert torch.equal(z.grad != 0, out.z_q > 0)

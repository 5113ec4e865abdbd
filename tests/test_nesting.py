"""Quantizers in quantizers: whatever may hold whatever, everything learns, counts and decodes as it would alone."""

import warnings
from collections.abc import Callable
from inspect import isabstract

import pytest
import torch
from torch import Tensor, nn

import companion
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    VectorwiseQuantizer,
    straight_through,
)

D, K = 6, 8


def vector(dim: int = D) -> VectorQuantizer:
    return VectorQuantizer(K, dim)


def ema(dim: int = D, **options) -> EMAVectorQuantizer:
    return EMAVectorQuantizer(K, dim, decay=0.5, restart_below=0.1, **options)


def projected(inside: Quantizer) -> ProjectedQuantizer:
    return ProjectedQuantizer(inside, D)


ALLOWED: dict[str, Callable[[], Quantizer]] = {
    "vector": vector,
    "EMA": ema,
    "Gumbel": lambda: GumbelQuantizer(K, D),
    "finite scalar": lambda: FiniteScalarQuantizer([2] * D),
    "residual of vector": lambda: ResidualQuantizer([vector() for _ in range(3)]),
    "residual of EMA": lambda: ResidualQuantizer([ema() for _ in range(3)]),
    "residual of EMA with dropout": lambda: ResidualQuantizer([ema() for _ in range(3)], depth_dropout=0.9),
    "residual of one": lambda: ResidualQuantizer([ema()]),
    "residual, shared vector": lambda: ResidualQuantizer(vector(), depth=3),
    "residual, shared EMA": lambda: ResidualQuantizer(ema(), depth=3),
    "residual, shared EMA with dropout": lambda: ResidualQuantizer(ema(), depth=3, depth_dropout=0.9),
    "residual of projected vector": lambda: ResidualQuantizer([projected(vector(2)) for _ in range(3)]),
    "residual of projected EMA": lambda: ResidualQuantizer([projected(ema(2)) for _ in range(3)]),
    "residual of projected cosine": lambda: ResidualQuantizer([projected(ema(2, cosine=True)) for _ in range(3)]),
    "residual, shared projected EMA": lambda: ResidualQuantizer(projected(ema(2)), depth=3, depth_dropout=0.5),
    "projected vector": lambda: projected(vector(2)),
    "projected EMA": lambda: projected(ema(2)),
    "projected cosine": lambda: projected(ema(2, cosine=True)),
    "projected Gumbel": lambda: projected(GumbelQuantizer(K, 2)),
    "projected finite scalar": lambda: projected(FiniteScalarQuantizer([4, 2])),
    "projected residual of EMA": lambda: projected(ResidualQuantizer([ema(2) for _ in range(3)], depth_dropout=0.5)),
    "projected residual, shared": lambda: projected(ResidualQuantizer(ema(2), depth=3)),
    "projected projected EMA": lambda: projected(ProjectedQuantizer(ema(2), D)),
}
SPATIAL = [(), (5,), (3, 2), (2, 3, 2)]
everything = pytest.mark.parametrize("kind", ALLOWED)


def made(kind: str) -> Quantizer:
    torch.manual_seed(0)
    return ALLOWED[kind]()


def latents(spatial: tuple[int, ...] = (3, 2), seed: int = 1, images: int = 48) -> Tensor:
    return torch.randn(images, D, *spatial, generator=torch.Generator().manual_seed(seed))


def codebooks(quantizer: Quantizer) -> list[Tensor]:
    found = [m.codebook for m in quantizer.modules() if isinstance(m, VectorQuantizer | EMAVectorQuantizer)]
    return found + [m.codebook for m in quantizer.modules() if isinstance(m, GumbelQuantizer)]


def mask_of(out: Quantized) -> Tensor | None:
    """(B, R): which depths each image uses, of a residual quantizer's result or of one with such a one inside."""
    return getattr(getattr(out, "inner", out), "mask", None)


def trained(quantizer: Quantizer, z: Tensor, steps: int = 3) -> Quantizer:
    """By gradient descent towards the latents, as a model's reconstruction would."""
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    for _ in range(steps):
        out = quantizer(z)
        if optimizer:
            optimizer.zero_grad()
            ((out.z_q - z).square().mean() + out.loss).backward()
            optimizer.step()
    return quantizer


@everything
@pytest.mark.parametrize("spatial", SPATIAL)
def test_every_codebook_moves_in_training_and_only_there(kind, spatial):
    quantizer, z = made(kind), latents(spatial)
    before = [book.detach().clone() for book in codebooks(quantizer)]
    quantizer.eval()(z)
    quantizer.encode(z)
    assert all(map(torch.equal, before, codebooks(quantizer)))
    trained(quantizer.train(), z)
    moved = [not torch.equal(a, b) for a, b in zip(before, codebooks(quantizer), strict=True)]
    assert all(moved), moved
    for member in quantizer.modules():
        if isinstance(member, EMAVectorQuantizer):
            assert int(member.step) == 3


@everything
@pytest.mark.parametrize("spatial", SPATIAL)
def test_shapes_counts_encode_and_decode_agree(kind, spatial):
    quantizer, z = made(kind), latents(spatial)
    trained(quantizer, z)
    for mode in (True, False):
        out = quantizer.train(mode)(z)
        stack = () if out.indices.ndim == z.ndim - 1 else (quantizer.depth,)
        assert out.z_q.shape == z.shape
        assert out.indices.shape == (len(z), *spatial, *stack)
        assert out.code_counts.shape == (*stack, quantizer.num_codes)
        by_depth = out.indices.reshape(-1, *stack)
        mask = mask_of(out)
        for r in range(stack[0] if stack else 1):
            one, counts = (by_depth[:, r], out.code_counts[r]) if stack else (by_depth, out.code_counts)
            if mask is not None:  # codes of the images that use this depth
                one = out.indices[mask[:, r], ..., r].flatten()
            assert torch.equal(counts, torch.bincount(one, minlength=quantizer.num_codes))
    assert torch.equal(quantizer.encode(z), out.indices)
    torch.testing.assert_close(quantizer.decode(out.indices), out.z_q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantizer.decode(out.indices, depth=quantizer.depth), out.z_q, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="depth: got"):
        quantizer.decode(out.indices, depth=quantizer.depth + 1)


@everything
@pytest.mark.parametrize("spatial", [(), (5,), (3, 2)])
def test_padding_is_left_out_of_losses_counts_averages_and_the_first_codes(kind, spatial):
    """Whatever stands there: as if only the other positions had been given."""
    if any(getattr(part, "depth_dropout", 0) for part in made(kind).modules()):
        pytest.skip("depth dropout draws for whole images")
    z = latents(spatial)
    mask = torch.rand(len(z), *spatial, generator=torch.Generator().manual_seed(2)) < 0.7
    results = []
    for padding in (0.0, 7.0, 1e4):
        quantizer = made(kind)
        given = z.where(mask[:, None], padding).requires_grad_()
        torch.manual_seed(3)  # for what is drawn
        out = [quantizer(given, mask=mask) for _ in range(2)][1]
        (out.z_q.square().sum() + out.loss).backward()
        assert not bool(given.grad.movedim(1, -1)[~mask].any())
        assert bool(given.grad.movedim(1, -1)[mask].any())
        assert not bool(out.z_q.movedim(1, -1)[~mask].any())
        assert not bool(out.indices[~mask].any())
        assert out.z_q.shape == z.shape
        results.append([out.z_q, out.loss, out.indices, out.code_counts, *quantizer.state_dict().values()])
    quantizer = made(kind)
    torch.manual_seed(3)
    alone = [quantizer(z.movedim(1, -1)[mask]) for _ in range(2)][1]
    expected = [alone.loss, alone.indices, alone.code_counts, *quantizer.state_dict().values()]
    for result in results:
        z_q, loss, indices, *others = result
        torch.testing.assert_close(z_q.movedim(1, -1)[mask], alone.z_q)
        torch.testing.assert_close([loss, indices[mask], *others], expected)
    counted = alone.code_counts.sum().item()
    assert counted == int(mask.sum()) * (quantizer.depth if alone.indices.ndim == 2 else 1)
    if kind in ("vector", "EMA"):  # the wrong version: padding is learnt, and takes a code of the first ones
        wrong = made(kind)
        wrong(z.where(mask[:, None], 1e4))
        out = wrong(z.where(mask[:, None], 1e4))
        assert out.loss > 10 * alone.loss if kind == "vector" else wrong.codebook.max() > 1e3


def test_a_mask_that_is_none_and_one_beside_depth_dropout_are_refused():
    z = latents((3, 2))
    whole = torch.ones(len(z), 3, 2, dtype=torch.bool)
    for mask, says in (
        (whole[:, :2], r"mask: got bool of shape \(48, 2, 2\), want bool of shape \(48, 3, 2\)"),
        (whole[:, None], r"mask: got bool of shape \(48, 1, 3, 2\)"),
        (whole.float(), "mask: got float32"),
        (~whole, "mask: got False everywhere, want True for at least one position"),
    ):
        quantizer = made("EMA")
        with pytest.raises(ValueError, match=says):
            quantizer(z, mask=mask)
        assert int(quantizer.step) == 0
    for kind in ("residual of EMA with dropout", "projected residual of EMA"):
        quantizer = made(kind)
        with pytest.raises(ValueError, match="mask: got one in training with depth_dropout"):
            quantizer(z, mask=whole)
        quantizer(z)
        out = quantizer.eval()(z, mask=whole)
        assert torch.equal(out.indices, quantizer(z).indices)


class Flat(nn.Module):
    """Images to latents with any number of positions, and back: for the counts only."""

    def __init__(self, spatial: tuple[int, ...]) -> None:
        super().__init__()
        self.spatial, self.size = spatial, D * torch.Size(spatial).numel()
        self.linear = nn.Linear(12 * 12, self.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).reshape(len(x), D, *self.spatial)


class Unflat(nn.Module):
    def __init__(self, spatial: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(D * torch.Size(spatial).numel(), 12 * 12)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z.flatten(1)).sigmoid().reshape(len(z), 1, 12, 12)


@everything
@pytest.mark.parametrize("spatial", SPATIAL)
def test_a_vqvae_counts_right_with_any_of_them(kind, spatial):
    torch.manual_seed(0)
    model = companion.VQVAE(Flat(spatial), made(kind), Unflat(spatial))
    x = torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    of_quantizer: list[Quantized] = []
    model.quantizer.register_forward_hook(lambda module, given, out: of_quantizer.append(out))
    out = model(x)
    mask = mask_of(of_quantizer[0])
    images = torch.tensor(32) if mask is None else mask.sum(0)
    assert torch.equal(out.code_counts.sum(-1), images * torch.Size(spatial).numel())
    assert out.code_counts.ndim == 1 + (out.indices.ndim == out.z_e.ndim)


def test_by_the_number_of_axes_alone_the_counts_would_be_wrong():
    """The wrong version: four axes meant a stack, whatever the latents were."""
    out = made("vector")(latents((2, 3, 2)))
    assert out.indices.ndim == 4
    assert out.code_counts.shape == (K,)
    stack = made("residual of EMA")(latents((5,)))
    assert stack.indices.ndim == 3
    assert stack.code_counts.shape == (3, K)


@everything
def test_the_straight_through_gradient_is_the_identity_without_maps(kind):
    """And with maps around the whole, theirs."""
    quantizer = trained(made(kind), latents())
    z = latents(seed=3).requires_grad_()
    arriving = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    (got,) = torch.autograd.grad(quantizer(z).z_q, z, arriving)
    if isinstance(quantizer, VectorQuantizer | EMAVectorQuantizer | ResidualQuantizer):
        assert torch.equal(got, arriving)
    assert bool(got.isfinite().all())


@pytest.mark.parametrize("kind", [kind for kind in ALLOWED if "residual of projected" in kind])
def test_in_a_residual_of_projected_quantizers_both_maps_learn_from_the_reconstruction(kind):
    """As in the Descript audio codec; with constants in the sum, as for plain members, no map would."""
    quantizer = trained(made(kind), latents())
    z = latents(seed=3)
    out = quantizer(z)
    maps = [weight for member in quantizer.quantizers for weight in (member.down.weight, member.up.weight)]
    gradients = torch.autograd.grad((out.z_q - z).square().mean(), maps)
    assert all(bool(gradient.any()) for gradient in gradients)
    constants = straight_through(z.requires_grad_(), sum(one.z_q.detach() for one in out.depths))
    wrong = torch.autograd.grad((constants - z.detach()).square().mean(), [*maps, z], allow_unused=True)
    assert all(gradient is None for gradient in wrong[:-1])


@pytest.mark.parametrize("kind", [kind for kind in ALLOWED if "residual of projected" in kind])
def test_a_residual_of_projected_quantizers_gets_nearer_by_training(kind):
    quantizer, z = made(kind), latents(images=200)
    first = (trained(quantizer, z, 1)(z).z_q - z).square().mean()
    last = (trained(quantizer, z, 150)(z).z_q - z).square().mean()
    assert last < 0.8 * first


def test_a_projected_residual_gives_mask_depths_and_decodes_to_a_depth():
    quantizer = trained(made("projected residual of EMA"), latents())
    out = quantizer(latents())
    assert out.inner.mask.shape == (48, 3)
    assert not bool(out.inner.mask.all())
    assert len(out.inner.depths) == 3
    quantizer.eval()
    z = latents()
    codes = quantizer.encode(z)
    errors = [(quantizer.decode(codes, depth=r) - z).square().mean() for r in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


class LearnsNothingInside(ProjectedQuantizer):
    """The wrong version: the quantizer inside is looked up only."""

    def update(self, z: Tensor, quantized: Quantized) -> None:
        pass


def test_a_quantizer_inside_that_learns_nothing_would_be_seen():
    quantizer = LearnsNothingInside(ResidualQuantizer([ema(2), ema(2)]), D)
    quantizer(latents())
    before = [book.clone() for book in codebooks(quantizer)]
    trained(quantizer, latents(seed=5))
    assert all(map(torch.equal, before, codebooks(quantizer)))


@everything
def test_saved_and_loaded_it_goes_on_as_it_would_have(kind, tmp_path):
    quantizer = trained(made(kind), latents())
    companion.save(quantizer, tmp_path / "q.safetensors")
    again = companion.load(tmp_path / "q.safetensors").train()
    for one in (quantizer, again):
        torch.manual_seed(7)
        trained(one, latents(seed=8))
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())


def library_quantizers() -> list[type]:
    """``Quantizer`` and all its subclasses in the library."""

    def below(kind: type) -> list[type]:
        return [kind, *(deeper for sub in kind.__subclasses__() for deeper in below(sub))]

    return [kind for kind in below(Quantizer) if kind.__module__.startswith("companion.quantizers")]


def test_every_quantizer_of_the_library_is_nested_here() -> None:
    """A new one is added to ``ALLOWED``: alone, and in whatever may contain it."""
    nested = {type(module) for make in ALLOWED.values() for module in make().modules()}
    assert [kind.__name__ for kind in library_quantizers() if kind not in nested and not isabstract(kind)] == []


def test_no_quantizer_overrides_forward() -> None:
    """One order of initialise, quantize and update for all; mode and counts are decided in one place."""
    assert [kind for kind in library_quantizers() if "forward" in vars(kind)] == [Quantizer]


@pytest.mark.parametrize("kind", [Quantizer, VectorwiseQuantizer])
def test_abstract_quantizers_cannot_be_made(kind):
    with pytest.raises(TypeError, match="abstract"):
        kind()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ResidualQuantizer([projected(GumbelQuantizer(K, 2))]), r"quantizers\[0\]: got ProjectedQuantizer"),
        (lambda: ResidualQuantizer([projected(ResidualQuantizer([ema(2)]))]), "got ProjectedQuantizer"),
        (lambda: ResidualQuantizer([ema(cosine=True)]), r"quantizers\[0\]: got codes of length 1"),
        (lambda: ResidualQuantizer([nn.Linear(2, 2)]), r"quantizers\[0\]: got Linear"),
        (lambda: ProjectedQuantizer(nn.Linear(2, 2), 3), "quantizer: got a Linear"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, says):
    with pytest.raises(ValueError, match=says):
        build()


# Modes and graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["residual of EMA", "residual, shared EMA", "residual of projected EMA", "projected EMA"]
)
@pytest.mark.parametrize("began", [False, True], ids=["before its first batch", "later"])
def test_a_member_in_eval_mode_learns_nothing_inside_a_quantizer_that_trains(kind, began):
    quantizer = made(kind)
    if began:
        quantizer(latents())
    first = next(module for module in quantizer.modules() if isinstance(module, EMAVectorQuantizer)).eval()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    others = [book.clone() for book in codebooks(quantizer)[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of codes that are still random
        for seed in range(3):
            quantizer(latents(seed=seed))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert not any(map(torch.equal, others, codebooks(quantizer)[1:]))
    first.train()
    quantizer(latents())
    assert int(first.step) == int(before["step"]) + 1


def test_a_gumbel_member_in_eval_mode_takes_the_likeliest_code_and_does_not_anneal():
    quantizer = made("projected Gumbel")
    quantizer.quantizer.eval()
    first, second = quantizer(latents()), quantizer(latents())
    assert torch.equal(first.z_q, second.z_q)
    assert int(quantizer.quantizer.step) == 0


# Draws --------------------------------------------------------------------------------------------------------------


def test_members_with_equal_seeds_draw_differently():
    """With one draw for all, k-means starts every depth from the vectors of the same places of the batch."""
    stack = ResidualQuantizer([ema() for _ in range(3)])
    assert [member.seed for member in stack.quantizers] == [0, 0, 0]
    assert [member.stream for member in stack.quantizers] == [0, 1, 2]
    assert [m.stream for m in ResidualQuantizer([ema(seed=1), ema(seed=2), ema(seed=1)]).quantizers] == [0, 0, 1]
    z = latents().movedim(1, -1).reshape(-1, D)
    centres = [companion.quantizers.k_means(z, K, stream=stream, iterations=1)[0] for stream in (0, 1)]
    assert not torch.equal(*centres)
    same = [companion.quantizers.k_means(z, K, stream=0, iterations=1)[0] for _ in range(2)]
    assert torch.equal(*same)


def test_k_means_under_depth_dropout_sees_every_image_at_every_depth():
    """A deep level that only few images use would otherwise raise after the others were initialised."""
    z = latents((), images=K)
    quantizer = ResidualQuantizer([ema() for _ in range(3)], depth_dropout=1.0)
    out = quantizer(z)
    assert int(out.mask[:, 2].sum()) < K
    assert all(bool(member.counts.any()) for member in quantizer.quantizers)


# Warm starts and frozen codebooks -------------------------------------------------------------------------------------


def test_a_codebook_that_was_given_is_moved_from_where_it_is():
    z = latents((), images=400)
    codes = z[:K] + 0.01
    quantizer = EMAVectorQuantizer.from_codebook(codes, decay=0.9)
    n = torch.bincount(quantizer.encode(z), minlength=K)
    quantizer(z)
    assert (quantizer.num_codes, quantizer.dim, quantizer.decay) == (K, D, 0.9)
    means = torch.stack([z[quantizer.encode(z) == k].mean(0) for k in range(K)])
    assert bool(n.all())
    far, moved = (means - codes).norm(dim=1), (quantizer.codebook - codes).norm(dim=1)
    assert bool((moved > 0).all())
    assert moved.mean() < 0.5 * far.mean()  # (1 − γ) n_k / (N/K) of the way, and no jump
    torch.testing.assert_close(quantizer.counts, 0.9 * torch.full((K,), 400 / K) + 0.1 * n)


def test_counts_that_were_given_are_the_inertia():
    z, codes = latents((), images=100), latents((), images=K)
    heavy = EMAVectorQuantizer.from_codebook(codes, counts=torch.full((K,), 1e6), decay=0.99)
    heavy(z)
    assert (heavy.codebook - codes).abs().max() < 1e-3
    assert (heavy.counts - 0.99e6).abs().max() < 10


def test_k_means_would_erase_it_and_counts_of_zero_would_let_it_jump():
    """The two wrong versions: writing into the codebook of one made with k-means, or with init="uniform"."""
    z = latents((), images=400)
    codes = z[:K] + 0.01
    for init in ("k-means", "uniform"):
        quantizer = EMAVectorQuantizer(K, D, init=init)
        quantizer.codebook.copy_(codes)
        quantizer(z)
        assert (quantizer.codebook - codes).norm(dim=1).mean() > 0.5


def test_a_frozen_codebook_stays_so_whatever_the_mode(tmp_path):
    codes = latents((), images=K)
    quantizer = EMAVectorQuantizer.from_codebook(codes).freeze()
    for _ in range(3):
        quantizer.eval().train()(latents())
    assert torch.equal(quantizer.codebook, codes)
    assert int(quantizer.step) == 0
    quantizer.freeze(False)(latents())
    assert not torch.equal(quantizer.codebook, codes)
    made = EMAVectorQuantizer.from_codebook(codes, frozen=True)
    companion.save(made, tmp_path / "q.safetensors")
    again = companion.load(tmp_path / "q.safetensors").train()
    again(latents())
    assert torch.equal(again.codebook, codes)


def test_a_member_that_is_frozen_lets_the_others_learn():
    stack = ResidualQuantizer([EMAVectorQuantizer.from_codebook(latents((), images=K), frozen=True), ema()])
    before = [book.clone() for book in codebooks(stack)]
    trained(stack, latents())
    assert torch.equal(before[0], stack.quantizers[0].codebook)
    assert not torch.equal(before[1], stack.quantizers[1].codebook)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: EMAVectorQuantizer.from_codebook(torch.zeros(3)), "codebook: got float32 of shape"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.full((2, 2), torch.nan)), "codebook: got 4 NaN"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.rand(2, 2), counts=torch.zeros(2)), "counts: got a negative"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.rand(2, 2), counts=torch.ones(3)), "counts: got float32"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.rand(2, 2), init="uniform"), "options: got init"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.zeros(2, 2)), "codebook: got zeros only"),
        (lambda: EMAVectorQuantizer.from_codebook(torch.eye(2) * torch.tensor([0, 1]), cosine=True), "of length 0"),
        (lambda: EMAVectorQuantizer(K, D, init="given")(latents()), "init: got 'given' and no codes"),
        (lambda: EMAVectorQuantizer(K, D, init="given").encode(latents()), "init: got 'given' and no codes"),
        (lambda: companion.quantizers.k_means(torch.zeros(9, 2), 2, cosine=True), "vectors: got one of length 0"),
        (lambda: companion.quantizers.cosine_lookup(torch.ones(2, 2), torch.zeros(2, 2)), "codebook: got one of leng"),
        (lambda: vector()(latents().to("meta")), f"z: got a tensor on meta, want one on {torch.zeros(1).device}"),
    ],
)
def test_a_codebook_that_cannot_be_given_is_refused_by_name(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_encoding_with_codes_that_never_saw_data_is_said_once():
    quantizer = EMAVectorQuantizer(K, D)
    with pytest.warns(UserWarning, match="still random"):
        quantizer.encode(latents())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(quantizer.encode(latents()), quantizer.encode(latents()))
        assert ema(init="uniform").encode(latents()).shape == (48, 3, 2)
    with pytest.warns(UserWarning, match="still random; it is frozen"):
        EMAVectorQuantizer(K, D, frozen=True)(latents())

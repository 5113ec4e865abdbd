"""ResidualQuantizer: a plain loop over quantizers, with each loss going where it belongs."""

import pytest
import torch

import companion
from companion import VQVAE, ResNetDecoder, ResNetEncoder
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    k_means,
    rate_bits,
    straight_through,
)
from companion.quantizers.residual import decode_to_depth, residual_encode


def stack(depth: int = 3, *, shared: bool = False, ema: bool = False, **options) -> ResidualQuantizer:
    torch.manual_seed(0)

    def one() -> VectorQuantizer | EMAVectorQuantizer:
        return EMAVectorQuantizer(8, 4, restart_below=0.1) if ema else VectorQuantizer(8, 4)

    if shared:
        return ResidualQuantizer(one(), depth=depth, **options)
    return ResidualQuantizer([one() for _ in range(depth)], **options)


def latents(images: int = 6, seed: int = 1, spatial: tuple[int, ...] = (3, 2)) -> torch.Tensor:
    return torch.randn(images, 4, *spatial, generator=torch.Generator().manual_seed(seed))


KINDS = [{}, {"shared": True}, {"ema": True}, {"shared": True, "ema": True}]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("spatial", [(), (5,), (3, 2)])
def test_contract(options, spatial):
    quantizer = stack(**options)
    z = latents(12, spatial=spatial).requires_grad_()
    quantizer(z)
    quantizer.eval()
    out = quantizer(z)
    assert out.indices.shape == (12, *spatial, 3)
    assert torch.equal(quantizer.encode(z), out.indices)
    torch.testing.assert_close(quantizer.decode(out.indices), out.z_q)
    assert bool(out.mask.all())
    assert (quantizer.num_codes, quantizer.dim, quantizer.depth) == (8, 4, 3)
    assert torch.equal(quantizer.quantize(z).indices, out.indices)


def test_each_depth_quantises_what_the_ones_before_left():
    quantizer = stack().eval()
    z = latents()
    residual, indices = z, quantizer(z).indices
    for r, member in enumerate(quantizer.quantizers):
        assert torch.equal(member.encode(residual), indices[..., r])
        residual = residual - member.decode(indices[..., r])
        torch.testing.assert_close(quantizer.decode(indices, depth=r + 1), z - residual)


def test_the_straight_through_jacobian_is_the_identity_at_any_depth():
    """Adding the depths' own estimators would give R times the gradient."""
    for depth in (1, 2, 5):
        quantizer = stack(depth)
        z = latents().requires_grad_()
        out = quantizer(z)
        arriving = torch.randn_like(z)
        (got,) = torch.autograd.grad(out.z_q, z, arriving, retain_graph=True)
        assert torch.equal(got, arriving)
    naive = sum(straight_through(z, one.z_q.detach()) for one in out.depths)
    (wrong,) = torch.autograd.grad(naive, z, arriving)
    torch.testing.assert_close(wrong, 5 * arriving)


def test_every_depths_loss_reaches_the_latents_and_its_own_codebook_only():
    """`residual -= z_q` without a detach would let a deeper commitment term move an earlier codebook."""
    quantizer = stack()
    z = latents().requires_grad_()
    out = quantizer(z)
    codebooks = [member.codebook for member in quantizer.quantizers]
    for r, one in enumerate(out.depths):
        at = torch.autograd.grad(one.losses["commitment"], [z, *codebooks], retain_graph=True, allow_unused=True)
        assert at[0] is not None
        assert at[0].abs().sum() > 0
        assert at[1:] == (None, None, None)
        at = torch.autograd.grad(one.losses["codebook"], [z, *codebooks], retain_graph=True, allow_unused=True)
        assert at[0] is None
        assert [grad is not None and bool(grad.abs().sum() > 0) for grad in at[1:]] == [i == r for i in range(3)]


def test_the_residual_that_is_not_detached_moves_an_earlier_codebook():
    """The wrong version, as the proof that the test above would see it."""
    first, second = VectorQuantizer(8, 4), VectorQuantizer(8, 4)
    z = latents().requires_grad_()
    codes = torch.nn.functional.embedding(first.encode(z), first.codebook).movedim(-1, 1)
    leaking = second.quantize(z - codes).losses["commitment"]
    (at_first,) = torch.autograd.grad(leaking, first.codebook)
    assert at_first.abs().sum() > 0


def test_losses_are_summed_over_the_depths():
    """Not averaged: a codebook's gradient is what it would be alone, whatever R."""
    quantizer = stack()
    z = latents()
    out = quantizer(z)
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(out.losses[name], sum(one.losses[name] for one in out.depths))
    torch.testing.assert_close(out.loss, sum(one.loss for one in out.depths))
    (stacked,) = torch.autograd.grad(out.loss, quantizer.quantizers[0].codebook)
    (alone,) = torch.autograd.grad(quantizer.quantizers[0](z).loss, quantizer.quantizers[0].codebook)
    torch.testing.assert_close(stacked, alone)


def test_a_shared_codebook_changes_once_after_all_depths():
    """Every depth of one forward looks up in the same codebook."""
    quantizer = stack(shared=True, ema=True)
    quantizer(latents(20))
    before = quantizer.quantizers[0].codebook.clone()
    steps = int(quantizer.quantizers[0].step)
    out = quantizer(latents(20, seed=2))
    total = torch.nn.functional.embedding(out.indices, before).sum(-2).movedim(-1, 1)
    torch.testing.assert_close(out.z_q, total)
    assert int(quantizer.quantizers[0].step) == steps + 1
    assert not torch.equal(quantizer.quantizers[0].codebook, before)


def test_a_shared_codebook_begins_with_codes_for_every_depth():
    """Codes of z alone are too long for residuals: the first sum of codes would be far from z."""
    z = torch.randn(64, 8, 7, 7, generator=torch.Generator().manual_seed(3))
    quantizer = ResidualQuantizer(EMAVectorQuantizer(64, 8), depth=3)
    quantizer.initialise(z)
    of_z, _ = k_means(z.movedim(1, -1).reshape(-1, 8), 64)
    alone = ResidualQuantizer(EMAVectorQuantizer.from_codebook(of_z), depth=3)  # the wrong version

    def error(stack: ResidualQuantizer) -> float:
        return (stack.decode(stack.encode(z)) - z).square().mean().item()

    assert error(quantizer) < 0.7 * error(alone)
    first = quantizer.quantizers[0].codebook.clone()
    quantizer(z)
    assert (quantizer.quantizers[0].codebook - first).abs().max() < 0.1  # moved by one EMA step, not by a new k-means


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_too_small_for_k_means_initialises_no_depth(shared):
    quantizer = stack(ema=True, shared=shared, depth_dropout=1.0)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with pytest.raises(ValueError, match="z: got 6 vectors for k-means with 8 codes"):
        quantizer(latents(1))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer(latents(2))  # of 12 positions, whatever depths its images use
    assert quantizer.initialised


def test_a_model_with_shared_codebook_is_saved_and_loaded(tmp_path):
    for options in KINDS:
        quantizer = stack(**options)
        quantizer(latents(12))
        companion.save(quantizer, tmp_path / "q.safetensors")
        again = companion.load(tmp_path / "q.safetensors").eval()
        assert torch.equal(again.encode(latents()), quantizer.encode(latents()))


# Depth dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_dropped_depths_add_nothing_and_every_index_is_still_a_code(options):
    """−1 for a dropped depth reaches an embedding sooner or later; the mask says what was used."""
    quantizer = stack(depth_dropout=1.0, **options)
    quantizer(latents(16, seed=5))  # initialises
    before = [m.codebook.clone() for m in quantizer.quantizers]
    z = latents(32)
    out = quantizer(z)
    assert out.mask.shape == (32, 3)
    assert bool(out.mask[:, 0].all())
    assert not bool(out.mask.all())
    assert bool((out.mask.int().diff(dim=1) <= 0).all())  # the first r depths
    assert 0 <= int(out.indices.min()) <= int(out.indices.max()) < 8
    for i in range(32):
        used = int(out.mask[i].sum())
        books = before * 3 if len(before) == 1 else before
        expected = sum(books[r][out.indices[i, ..., r]] for r in range(used)).movedim(-1, 0)
        torch.testing.assert_close(out.z_q[i], expected)


def test_without_training_nothing_is_dropped():
    quantizer = stack(depth_dropout=1.0).eval()
    assert bool(quantizer(latents()).mask.all())


def test_a_dropped_depth_is_not_in_the_losses():
    quantizer = stack(depth_dropout=1.0)
    z = latents(32).requires_grad_()
    out = quantizer(z)
    (at,) = torch.autograd.grad(out.depths[2].losses["commitment"], z)
    reached = at.flatten(1).abs().sum(1) > 0
    assert torch.equal(reached, out.mask[:, 2])


def test_a_batch_of_one_drops_depths_too():
    """The wrong version exempts the first image of every batch."""
    torch.manual_seed(0)
    quantizer = stack(depth_dropout=1.0)
    used = [int(quantizer(latents(1)).mask.sum()) for _ in range(30)]
    assert set(used) == {1, 2, 3}


@pytest.mark.parametrize("inside", [False, True], ids=["plain", "projected"])
@pytest.mark.parametrize("options", KINDS)
def test_a_depth_that_no_image_uses_learns_nothing_and_spoils_nothing(options, inside):
    quantizer = stack(depth_dropout=1.0, **options)
    if inside:
        members = [ProjectedQuantizer(member, 6) for member in quantizer.quantizers]
        depth = 3 if options.get("shared") else None
        quantizer = ResidualQuantizer(members[0] if depth else members, depth=depth, depth_dropout=1.0)
    quantizer(torch.randn(12, quantizer.dim, 3, 2))  # initialises
    torch.manual_seed(0)
    while True:
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        z = torch.randn(1, quantizer.dim, 3, 2, requires_grad=True)
        out = quantizer(z)
        if int(out.mask.sum()) == 1:
            break
    (out.loss + out.z_q.square().sum()).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert out.depths[1].loss.item() == out.depths[2].losses["commitment"].item() == 0
    assert out.indices.shape == (1, 3, 2, 3)
    assert torch.equal(out.code_counts.sum(1), torch.tensor([6, 0, 0]))
    # Every parameter is in the graph: DistributedDataParallel waits for the gradient of each.
    assert all(p.grad is not None for p in quantizer.parameters())
    if not options.get("shared"):
        for r in (1, 2):
            assert not any(bool(p.grad.any()) for p in quantizer.quantizers[r].parameters())
            own = {k: v for k, v in quantizer.state_dict().items() if k.startswith(f"quantizers.{r}.")}
            assert all(torch.equal(value, before[name]) for name, value in own.items())


@pytest.mark.parametrize("options", KINDS)
def test_dropped_depths_get_the_indices_that_encode_gives(options):
    """The wrong version leaves the residual of an image as it is at the depths that the image does not use."""
    quantizer = stack(depth_dropout=1.0, **options)
    quantizer(latents(16, seed=5))  # initialises
    z = latents(32)
    expected = quantizer.encode(z)  # before the step
    out = quantizer(z)
    assert torch.equal(out.indices, expected)
    assert int((~out.mask).sum(1).max()) == 2  # some image uses one depth of three
    assert torch.equal(out.code_counts.sum(1), 6 * out.mask.sum(0))  # the codes that were used, of 6 positions each
    everywhere = torch.stack([torch.bincount(out.indices[..., r].flatten(), minlength=8) for r in range(3)])
    assert not torch.equal(out.code_counts, everywhere)  # the wrong version counts what dropout left out
    third = residual_encode(z - quantizer.decode(expected, depth=1), list(quantizer._in_order())[2:])[..., 0]
    assert not torch.equal(expected[..., 2], third)  # what is left after one code has other third codes


def test_codes_of_length_one_inside_projections_stand_a_depth_that_no_image_uses():
    """As in the Descript audio codec, with quantiser dropout: a batch of one leaves depths without an image."""
    torch.manual_seed(0)
    members = [ProjectedQuantizer(EMAVectorQuantizer(4, 3, cosine=True, seed=r), 6) for r in range(3)]
    quantizer = ResidualQuantizer(members, depth_dropout=1.0)
    quantizer(torch.randn(12, 6, 3))
    used = {int(quantizer(torch.randn(1, 6, 3)).mask.sum()) for _ in range(20)}
    assert used == {1, 2, 3}


@pytest.mark.parametrize("order", [1, -1])
def test_members_with_and_without_a_codebook_loss_go_together(order):
    """The wrong version takes the names of the terms from the first member."""
    members = [VectorQuantizer(8, 4), EMAVectorQuantizer(8, 4, init="uniform")][::order]
    out = ResidualQuantizer(members)(latents())
    assert out.losses.keys() == {"codebook", "commitment"}
    weighted = out.losses["codebook"] + 0.25 * out.losses["commitment"]
    torch.testing.assert_close(out.loss, weighted)


def test_projected_members_work_in_half_precision():
    quantizer = ResidualQuantizer([ProjectedQuantizer(VectorQuantizer(5, 2), 4) for _ in range(2)]).bfloat16()
    z = latents().bfloat16().requires_grad_()
    out = quantizer(z)
    out.z_q.float().square().sum().backward()
    assert out.z_q.dtype == z.grad.dtype == torch.bfloat16
    assert torch.equal(quantizer.eval().encode(z), out.indices)


def test_an_epoch_that_leaves_a_depth_unused_says_that_none_of_its_codes_were_used():
    """One image, one step: a share of zero counts would be NaN, and the perplexity an error."""
    data = companion.data.load("glyphs", "train", size=1)
    encoder, decoder = companion.ResNetEncoder(1, 4, hidden=4), companion.ResNetDecoder(1, 4, hidden=4)
    rows = []
    for seed in range(20):
        model = companion.VQVAE(encoder, stack(depth_dropout=1.0), decoder)
        rows.append(companion.fit(model, data, epochs=1, batch_size=1, seed=seed, progress=False).last)
        if rows[-1]["perplexity_3"] == 0:
            break
    assert rows[-1]["perplexity_3"] == rows[-1]["usage_3"] == 0
    assert rows[-1]["perplexity_1"] >= 1


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ResidualQuantizer([]), "depth: got None with a list of 0"),
        (lambda: ResidualQuantizer(VectorQuantizer(4, 2)), "depth: got None with one quantizer"),
        (lambda: ResidualQuantizer([VectorQuantizer(4, 2)], depth=2), "depth: got 2 with a list of 1"),
        (lambda: ResidualQuantizer([VectorQuantizer(4, 2), VectorQuantizer(5, 2)]), r"quantizers\[1\]: got 5 codes"),
        (lambda: ResidualQuantizer([GumbelQuantizer(4, 2)]), r"quantizers\[0\]: got GumbelQuantizer"),
        (lambda: ResidualQuantizer([FiniteScalarQuantizer([4, 4])]), "FiniteScalarQuantizer"),
        (lambda: ResidualQuantizer([VectorQuantizer(4, 2, estimator="rotation")]), "estimator='straight-through'"),
        (lambda: ResidualQuantizer([VectorQuantizer(4, 2)] * 2), "the same one twice"),
        (lambda: ResidualQuantizer(VectorQuantizer(4, 2), depth=2, depth_dropout=1.5), "depth_dropout"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_decode_refuses_other_indices():
    quantizer = stack()
    codes = quantizer.encode(latents())
    with pytest.raises(ValueError, match="depth: got 4, want a whole number from 1 to 3"):
        quantizer.decode(codes, depth=4)
    with pytest.raises(ValueError, match=r"indices: got shape \(6, 3, 2\), want \(B, \*spatial, 3\)"):
        quantizer.decode(codes[..., 0])
    with pytest.raises(ValueError, match="indices: got 8 to 8"):
        quantizer.decode(codes * 0 + torch.arange(9)[:3].clamp(max=8) * 4)


def test_stacks_that_were_cut_are_decoded_where_their_depth_is_said(tmp_path):
    """Also through what is put around the quantizer; unsaid, a table without stacks could pass for one."""
    for quantizer in (stack(), ProjectedQuantizer(stack(), 5)):
        codes = torch.randint(0, 8, (6, 3, 2, 3), generator=torch.Generator().manual_seed(0))
        for depth in (1, 2, 3):
            whole = quantizer.decode(codes, depth=depth)
            assert torch.equal(quantizer.decode(codes[..., :depth], depth=depth), whole)
            assert depth == 3 or not torch.allclose(whole, quantizer.decode(codes))
        for cut, depth in ((codes[..., :2], None), (codes[..., :1], 2), (codes[..., :2], 1), (codes[..., 0], 1)):
            with pytest.raises(ValueError, match=r"indices: got shape \(.*\), want \(B, \*spatial, 3\)"):
                quantizer.decode(cut, depth=depth)
    quantizer = ResidualQuantizer([VectorQuantizer(8, 4) for _ in range(3)])
    model = VQVAE(ResNetEncoder(1, 4, hidden=8), quantizer, ResNetDecoder(1, 4, hidden=8))
    coarse = model.decode(codes, depth=2)
    assert torch.equal(model.decode(codes[..., :2], depth=2), coarse)
    assert torch.equal(coarse, model.decoder(quantizer.decode(codes, depth=2)).clamp(0, 1))
    assert not torch.allclose(coarse, model.decode(codes))


# The loop, the sum and the rate, as functions ------------------------------------------------------------------------


def test_residual_encode_is_greedy():
    """Each depth takes the code nearest to its residual, also where another stack has a nearer sum."""
    first, second = VectorQuantizer(2, 1), VectorQuantizer(2, 1)
    with torch.no_grad():
        first.codebook.copy_(torch.tensor([[0.0], [2.0]]))
        second.codebook.copy_(torch.tensor([[0.2], [-1.0]]))
    z = torch.tensor([[0.9]])
    codes = residual_encode(z, [first, second])
    assert codes.tolist() == [[0, 0]]  # 0 + 0.2, although 2 − 1 is nearer
    assert decode_to_depth(codes, [first, second], 2).item() == pytest.approx(0.2)
    assert decode_to_depth(torch.tensor([[1, 1]]), [first, second], 2).item() == pytest.approx(1.0)


def test_depths_with_other_numbers_of_codes_are_decoded_each_by_its_own():
    members = [VectorQuantizer(2, 3), VectorQuantizer(4, 3)]
    with pytest.raises(ValueError, match="indices: got 2 to 2, want 0 to 1"):
        decode_to_depth(torch.tensor([[2, 3]]), members, 2)
    expected = members[0].codebook[1] + members[1].codebook[3]
    assert torch.allclose(decode_to_depth(torch.tensor([[1, 3]]), members, 2)[0], expected)


def test_residual_encode_leaves_its_input_alone_and_wants_a_quantizer():
    z = latents()
    given = z.clone()
    residual_encode(given, list(stack().quantizers))
    assert torch.equal(given, z)
    with pytest.raises(ValueError, match=r"quantizers: got \[\], want a sequence"):
        residual_encode(z, [])


def test_a_decoded_depth_has_a_gradient_to_its_own_codebooks_only():
    members = list(stack().quantizers)
    codes = residual_encode(latents(), members)
    decode_to_depth(codes, members, 2).sum().backward()
    assert [m.codebook.grad is not None for m in members] == [True, True, False]


def test_rates_of_stacks_whose_shares_are_known():
    """Four stacks, equally often: the second code is the first plus 1 or 2, so that knowing the first saves 1 bit."""
    stacks = torch.tensor([[0, 1], [0, 2], [1, 2], [1, 3]]).repeat(3, 1).reshape(3, 4, 2)
    rates = rate_bits(stacks, 8)
    assert rates["nominal"] == 6
    assert rates["entropy"] == pytest.approx(1 + 1.5)  # 1 bit; shares 1/4, 1/2, 1/4
    assert rates["joint"] == pytest.approx(2)
    swapped = torch.tensor([[0, 1], [1, 0]])
    assert rate_bits(swapped, 2)["joint"] == pytest.approx(1)
    assert len(swapped.sum(-1).unique()) == 1  # the wrong version: different stacks with the same sum count as one


def test_rates_of_one_depth_are_those_of_a_plain_quantizer():
    indices = torch.randint(0, 5, (20, 3, 2), generator=torch.Generator().manual_seed(0))
    rates = rate_bits(indices[..., None], 5)
    bits = companion.metrics.bits_per_image(indices, 5)
    assert 6 * rates["nominal"] == pytest.approx(bits["nominal"])
    assert 6 * rates["entropy"] == pytest.approx(bits["entropy"])
    assert rates["joint"] == pytest.approx(rates["entropy"])


def test_the_indices_of_a_plain_quantizer_are_not_taken_for_stacks_where_the_depth_is_given():
    indices = torch.randint(0, 5, (20, 3, 2), generator=torch.Generator().manual_seed(0))
    assert rate_bits(indices, 5)["nominal"] == rate_bits(indices, 5, depth=2)["nominal"]  # it cannot know
    with pytest.raises(ValueError, match=r"depth: got 1 with indices of shape \(20, 3, 2\)"):
        rate_bits(indices, 5, depth=1)


# RQ-VAE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_an_rq_vae_is_a_vqvae_with_a_residual_quantizer(options):
    data = companion.data.load("glyphs", "train", size=128)
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8, num_blocks=1), stack(**options),
        companion.ResNetDecoder(1, 4, hidden=8, num_blocks=1),
    )  # fmt: skip
    history = companion.fit(model, data, epochs=8, batch_size=32, lr=5e-3, progress=False)
    assert history.last["reconstruction"] < 0.8 * history.rows[0]["reconstruction"]
    assert {"perplexity_1", "perplexity_2", "perplexity_3", "usage_3"} <= history.last.keys()
    x, _ = data.batch([0, 1])
    codes = model.encode(x)
    assert codes.shape == (2, 7, 7, 3)
    assert model(x).code_counts.shape == (3, 8)
    assert torch.equal(model.decode(codes), model.reconstruct(x))


# The mistakes, as the proof that the tests above would see them ------------------------------------------------------


def test_a_mean_over_the_depths_would_be_seen():
    """Averaged silently, each codebook's gradient is R times smaller."""
    quantizer, z = stack(), latents()
    (mean,) = torch.autograd.grad(
        torch.stack([one.loss for one in quantizer(z).depths]).mean(), quantizer.quantizers[0].codebook
    )
    (alone,) = torch.autograd.grad(quantizer.quantizers[0](z).loss, quantizer.quantizers[0].codebook)
    torch.testing.assert_close(3 * mean, alone)


def test_a_shared_codebook_that_learns_between_depths_would_be_seen():
    """In a plain loop the sum belongs to no one codebook."""
    member = stack(shared=True, ema=True).quantizers[0]
    member(latents(20))
    residual, total, indices = latents(20, seed=2), 0, []
    before = member.codebook.clone()
    for _ in range(3):
        out = member(residual)
        indices.append(out.indices)
        total = total + out.z_q
        residual = residual - out.z_q
    for codebook in (before, member.codebook):
        decoded = torch.nn.functional.embedding(torch.stack(indices, -1), codebook).sum(-2).movedim(-1, 1)
        assert not torch.allclose(decoded, total, atol=1e-3)


def test_minus_one_for_a_dropped_depth_would_be_the_last_code():
    """Plain indexing takes −1 for the last code, in silence; `decode` refuses it."""
    quantizer = stack()
    codes = quantizer.encode(latents())
    codes[..., 2] = -1
    assert torch.equal(quantizer.quantizers[2].codebook[codes[0, 0, 0, 2]], quantizer.quantizers[2].codebook[7])
    with pytest.raises(ValueError, match="indices: got -1"):
        quantizer.decode(codes)

"""EMAVectorQuantizer: its step, its statistics, restarts and k-means, and the mistakes that others made."""

import copy
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from workers import codebook_worker

import companion
from companion.quantizers import (
    EMAVectorQuantizer,
    code_statistics,
    cosine_lookup,
    ema_step,
    k_means,
    nearest_code,
    restart,
)

ROOT = Path(__file__).resolve().parents[1]


def plain(num_codes: int = 6, dim: int = 3, **options) -> EMAVectorQuantizer:
    """Without k-means and restarts: the moving average alone."""
    torch.manual_seed(0)
    return EMAVectorQuantizer(
        num_codes, dim, **{"decay": 0.99, "init": "uniform", "restart_below": 0.0, "smoothing": 0.0} | options
    )


def points(n: int, dim: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


# The step ----------------------------------------------------------------------------------------------------------


def test_one_step_is_sgd_on_the_summed_codebook_loss_with_a_rate_for_each_code():
    """η_k = (1 − γ)/(2N′_k), N′_k = γN_k + (1 − γ)n_k; fixed assignments, summed loss, no smoothing."""
    quantizer = plain(decay=0.9).double()
    for seed in range(3):  # counts that are not all alike
        quantizer(points(40, seed=seed).double())
    z = points(50, seed=9).double()
    e = quantizer.codebook.clone().requires_grad_()
    k = nearest_code(z, e)
    n = torch.bincount(k, minlength=6)
    new_counts = 0.9 * quantizer.counts + 0.1 * n
    (gradient,) = torch.autograd.grad((z - e[k]).square().sum(), e)
    expected = e.detach() - (0.1 / (2 * new_counts))[:, None] * gradient
    quantizer(z)
    torch.testing.assert_close(quantizer.codebook, expected)
    torch.testing.assert_close(quantizer.counts, new_counts)


def test_over_many_steps_it_is_the_papers_average_of_sums_over_average_of_counts():
    """Appendix A.1 keeps N_k and m_k apart; with all codes chosen at first, the two forms are the same."""
    quantizer = plain(4, 2, decay=0.8).double()
    data = torch.tensor([[2.0, 2], [-2, 2], [2, -2], [-2, -2]]).double()
    quantizer.codebook.copy_(data * 0.7)
    counts, sums = torch.zeros(4).double(), torch.zeros(4, 2).double()
    for step in range(30):
        z = data[torch.arange(40) % (4 if step < 5 else 3)] + 0.3 * points(40, 2, seed=step).double()
        k = nearest_code(z, quantizer.codebook)
        n, s = code_statistics(z, k, 4)
        counts, sums = 0.8 * counts + 0.2 * n, 0.8 * sums + 0.2 * s
        quantizer(z)
        torch.testing.assert_close(quantizer.codebook, sums / counts[:, None])


class SmoothedPaper(EMAVectorQuantizer):
    """The paper's step with Laplace smoothing: e = m/Ñ for every code, whether it was chosen or not."""

    def __init__(self, num_codes, dim, **options):
        super().__init__(num_codes, dim, **options)
        self.sums = self.codebook.clone()
        self.counts.fill_(1.0)

    def update(self, z, quantized):
        n, s = code_statistics(z, quantized.indices.flatten(), self.num_codes)
        self.counts.mul_(self.decay).add_(n, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(s, alpha=1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + self.num_codes * 1e-5) * total
        self.codebook.copy_(self.sums / smoothed[:, None])


def test_a_code_that_nothing_chose_keeps_its_value_to_the_bit():
    """With the paper's step and Laplace smoothing, a code that no vector chooses is dragged to 0."""
    z = torch.zeros(20, 3)  # everything chooses one code
    for kind, stays in ((EMAVectorQuantizer, True), (SmoothedPaper, False)):
        torch.manual_seed(0)
        quantizer = kind(2, 3, init="uniform", restart_below=0.0)
        quantizer.codebook.copy_(torch.tensor([[0.0, 0, 0], [3.0, 3, 3]]))
        for _ in range(5000):
            quantizer(z)
        assert torch.equal(quantizer.codebook[1], torch.full((3,), 3.0)) is stays
        assert bool(quantizer.codebook.isfinite().all())
        if not stays:
            assert quantizer.codebook[1].abs().max() < 0.1


def test_smoothing_slows_the_first_choice_of_a_code_and_is_not_fed_back():
    """The counts that are kept are the plain average; only the step divides by the smoothed ones."""
    smoothed, bare = plain(smoothing=0.5), plain()
    z = points(30)
    for quantizer in (smoothed, bare):
        quantizer(z)
    assert torch.equal(smoothed.counts, bare.counts)
    n = torch.bincount(nearest_code(z, plain().codebook), minlength=6)
    assert torch.equal(bare.counts, 0.01 * n.float())


def test_statistics_are_those_of_a_one_hot_matrix():
    z, k = points(200, 4), torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))
    counts, sums = code_statistics(z, k, 11)
    one_hot = functional.one_hot(k, 11).float()
    torch.testing.assert_close(counts, one_hot.sum(0))
    torch.testing.assert_close(sums, one_hot.T @ z)


def test_the_step_as_a_function_is_the_step_of_the_quantizer():
    quantizer = plain(decay=0.8, smoothing=0.1)
    quantizer.counts.copy_(torch.tensor([0.0, 1, 2, 30, 4, 5]))
    z = points(9)
    n, s = code_statistics(z, quantizer.encode(z), 6)
    before = quantizer.codebook.clone(), quantizer.counts.clone()
    codebook, counts = ema_step(*before, n, s, 0.8, 0.1)
    quantizer(z)
    assert torch.equal(quantizer.codebook, codebook)
    assert torch.equal(quantizer.counts, counts)
    assert torch.equal(codebook[n == 0], before[0][n == 0])
    assert bool((n == 0).any())
    assert torch.equal(before[0], plain().codebook)  # nothing in place


def test_no_step_goes_beyond_the_mean():
    """Smoothing makes a count above the even share smaller: with γ = 0 the bare formula would overshoot."""
    codebook, n, s = torch.zeros(2, 1), torch.tensor([9.0, 1]), torch.tensor([[9.0], [1.0]])
    moved, counts = ema_step(codebook, torch.zeros(2), n, s, 0.0, 1.0)
    smoothed = (counts + 1) / (counts.sum() + 2) * counts.sum()
    assert float(n[0] / smoothed[0]) > 1
    assert float(moved[0]) == 1.0
    assert 0 < float(moved[1]) < 1


# Lookup, training mode, state -----------------------------------------------------------------------------------------


def test_the_lookup_comes_before_the_update():
    """If the average moved first, a batch would be quantised by codes that it has already moved."""
    quantizer = plain(decay=0.0)
    z = points(30)
    before = quantizer.codebook.clone()
    out = quantizer(z)
    assert torch.equal(out.z_q, before[out.indices])
    assert not torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("options", [{}, {"init": "k-means", "restart_below": 0.5}, {"cosine": True}])
def test_encoding_evaluating_and_decoding_move_nothing(options):
    """``encode`` never moves the codebook, in whatever mode, nor does a forward in eval mode."""
    quantizer = plain(**options)
    z = points(40)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.encode(z)
    with torch.no_grad():
        quantizer.encode(z)
    quantizer.decode(torch.tensor([0, 1]))
    quantizer.eval()(z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(z)
    assert int(quantizer.step) == 1


def test_each_micro_batch_of_an_accumulation_is_one_update():
    """As documented: two halves forget by γ², one whole batch by γ."""
    halves, whole = plain(decay=0.9), plain(decay=0.9)
    z = points(40)
    for part in z.split(20):
        halves(part)
    whole(z)
    assert int(halves.step) == 2
    assert float(halves.counts.sum()) == pytest.approx(0.1 * 20 * (1 + 0.9))
    assert float(whole.counts.sum()) == pytest.approx(0.1 * 40)


def test_saved_loaded_and_stepped_is_stepped(tmp_path, device):
    """Every counter is in the state dict, that of the draws for restarts too."""
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(16, 3, decay=0.5, restart_below=0.3)
    for seed in range(4):
        quantizer(points(30, seed=seed))
    companion.save(quantizer, tmp_path / "q.safetensors")
    again = companion.load(tmp_path / "q.safetensors").to(device).train()
    for seed in range(4, 8):
        for one in (quantizer, again):
            one(points(30, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(quantizer.buffers(), again.buffers(), strict=True))


def test_its_tensors_are_buffers_and_stay_the_same_objects():
    """A tensor made anew in each step would no longer be the one that an optimizer or a state dict holds."""
    quantizer = EMAVectorQuantizer(8, 3)
    before = {name: (id(value), value.data_ptr()) for name, value in quantizer.named_buffers()}
    for seed in range(3):
        quantizer(points(30, seed=seed))
    assert {name: (id(value), value.data_ptr()) for name, value in quantizer.named_buffers()} == before
    assert before.keys() == {"codebook", "counts", "step"}
    assert not list(quantizer.parameters())


def test_only_the_commitment_has_a_gradient():
    quantizer = plain(commitment_weight=0.4)
    z = points(10).requires_grad_()
    out = quantizer(z)
    codes = quantizer.decode(out.indices)
    assert out.losses.keys() == {"commitment"}
    torch.testing.assert_close(out.loss, 0.4 * out.losses["commitment"])
    before = out.z_q.detach()
    (gradient,) = torch.autograd.grad(out.loss, z)
    torch.testing.assert_close(gradient, 0.4 * 2 * (z.detach() - before) / z.numel())
    assert codes.shape == (10, 3)


def test_latents_that_are_not_finite_leave_it_as_it_was():
    quantizer = EMAVectorQuantizer(4, 3)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = points(30)
    z[3, 1] = math.nan
    with pytest.raises(ValueError, match="z: got 1 NaN"):
        quantizer(z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_under_autocast_it_learns_in_float32(autocast):
    """In bfloat16 the lookup picks wrong codes, and small steps of the average are rounded away."""
    plain_one, cast = plain(), plain()
    z = points(50)
    plain_one(z)
    with autocast():
        out = cast(z)
    assert out.loss.dtype == torch.float32
    assert torch.equal(cast.codebook, plain_one.codebook)


# k-means -----------------------------------------------------------------------------------------------------------


def clouds(per_cloud: int = 30) -> Tensor:
    centres = torch.tensor([[4.0, 4], [-4, 4], [4, -4], [-4, -4]])
    return centres.repeat_interleave(per_cloud, 0) + 0.2 * points(4 * per_cloud, 2)


def test_k_means_ends_at_the_means_of_what_chose_each_centre():
    z = clouds()
    centres, counts = k_means(z, 7)
    k = nearest_code(z, centres)
    assert torch.equal(counts, torch.bincount(k, minlength=7).float())
    for i in range(7):
        torch.testing.assert_close(centres[i], z[k == i].mean(0))


def test_one_step_on_the_initialising_batch_leaves_the_centroids():
    """Sums as if each count were 1, beside the counts of the whole batch, would shrink every code 40-fold."""
    z = clouds()
    quantizer = EMAVectorQuantizer(7, 2, restart_below=0.0)
    centres, counts = k_means(z, 7)
    quantizer(z)
    torch.testing.assert_close(quantizer.codebook, centres)
    torch.testing.assert_close(quantizer.counts, counts)
    inconsistent = plain(7, 2)  # as in the mistake: codes are set, and the sums kept as if each count were 1
    sums, ones = centres.clone(), torch.ones(7)
    n, s = code_statistics(z, nearest_code(z, centres), 7)
    shrunk = (0.99 * sums + 0.01 * s) / (0.99 * ones * n + 0.01 * n)[:, None]
    assert shrunk.norm() < 0.2 * centres.norm()
    assert inconsistent.codebook.shape == centres.shape


def test_k_means_wants_a_vector_for_each_code():
    with pytest.raises(ValueError, match="z: got 5 vectors for k-means with 6 codes"):
        EMAVectorQuantizer(6, 3)(points(5))


def test_k_means_runs_once():
    quantizer = EMAVectorQuantizer(4, 2, restart_below=0.0)
    quantizer(clouds())
    first = quantizer.codebook.clone()
    quantizer(clouds() + 1)
    assert (quantizer.codebook - first).abs().max() < 0.1  # moved by one EMA step, not by a new k-means


# Restarts ----------------------------------------------------------------------------------------------------------


def test_a_dead_code_is_put_onto_a_vector_of_the_batch_and_survives_that_forward():
    """The average of the same step does not overwrite a code that was just restarted."""
    quantizer = plain(8, 3, restart_below=0.1)
    quantizer.codebook.copy_(100 + points(8))  # far from everything: one code takes all
    z = points(60)
    quantizer(z)
    onto = (quantizer.codebook[:, None] == z[None]).all(-1).any(1)
    assert int(onto.sum()) == 7
    threshold = quantizer.counts.max() + 0  # of the one that was chosen
    assert bool((quantizer.counts[onto] < threshold).all())
    used = quantizer.encode(z).unique()
    assert len(used) > 4


def test_a_code_in_use_is_not_restarted():
    z = clouds()
    quantizer = EMAVectorQuantizer(4, 2, restart_below=0.5)
    quantizer.codebook.copy_(torch.tensor([[4.0, 4], [-4, 4], [4, -4], [-4, -4]]))
    quantizer.counts.fill_(30.0)
    for _ in range(5):
        quantizer(z)
    assert (quantizer.codebook.abs() - 4).abs().max() < 0.2


def test_restarts_draw_from_their_own_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (EMAVectorQuantizer(8, 3, seed=seed) for seed in (1, 1, 2))
    torch.set_rng_state(state)
    for quantizer in (a, b, c):
        quantizer(points(30))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.codebook, b.codebook)
    assert not torch.equal(a.codebook, c.codebook)


def test_a_restarted_code_is_restarted_again_where_the_next_batch_does_not_choose_it():
    """Its count stands at the threshold: one batch decides. A batch that chooses it keeps it where it is."""
    quantizer = plain(2, 1, restart_below=0.5, decay=0.9)
    quantizer.codebook.copy_(torch.tensor([[0.0], [50.0]]))
    quantizer.counts.copy_(torch.tensor([20.0, 0.0]))
    near = torch.linspace(-1, 1, 20)[:, None]
    quantizer(near)  # nothing chooses the second code
    restarted = quantizer.codebook[1].clone()
    assert bool((near == restarted).all(1).any())
    chosen = torch.cat([near, restarted.repeat(20, 1)])
    kept = copy.deepcopy(quantizer)
    kept(chosen)
    assert (kept.codebook[1] - restarted).abs() < 0.5
    far = (quantizer.codebook[0] - 5 * restarted.sign()).expand(20, 1)  # on the other side of the first code
    quantizer(far)  # nothing chooses it: it is put onto a vector of this batch
    assert torch.equal(quantizer.codebook[1], far[0])


def test_a_code_whose_vectors_cancel_keeps_its_direction():
    """Cosine: the mean of opposite vectors has length 0, which can be scaled to no length."""
    z = torch.tensor([[1.0], [-1.0]]).repeat(4, 1)
    quantizer = EMAVectorQuantizer(1, 1, cosine=True, decay=0.0)
    for _ in range(3):
        quantizer(z)
    assert float(quantizer.codebook.abs()) == 1


def test_uniform_codes_with_restarts_are_put_onto_the_first_batch_where_it_does_not_choose_them():
    """Their counts begin at 0. Without restarts they stay where they were drawn."""
    z = 10 + points(40)
    for restart_below, moved in ((0.02, True), (0.0, False)):
        torch.manual_seed(0)
        quantizer = EMAVectorQuantizer(8, 3, init="uniform", restart_below=restart_below)
        before = quantizer.codebook.clone()
        unchosen = torch.ones(8, dtype=torch.bool).index_fill(0, quantizer(z).indices.unique(), False)
        assert int(unchosen.sum()) >= 4
        onto = (quantizer.codebook[:, None] == z[None]).all(-1).any(1)
        assert bool((onto == (unchosen & moved)).all())
        assert torch.equal(quantizer.codebook[unchosen], before[unchosen]) != moved


def test_a_restart_takes_the_candidates_in_turn_and_spares_a_code_at_the_threshold():
    codebook, counts = torch.arange(8.0).reshape(4, 2), torch.tensor([0.0, 13, 1, 2])
    candidates = 100 + torch.arange(6.0).reshape(3, 2)
    after, new_counts = restart(codebook, counts, candidates, 0.5)  # below 2
    assert torch.equal(after, torch.stack([candidates[0], codebook[1], candidates[1], codebook[3]]))
    assert torch.equal(new_counts, torch.tensor([2.0, 13, 2, 2]))
    assert torch.equal(codebook, torch.arange(8.0).reshape(4, 2))
    same, _ = restart(codebook, counts, candidates[:0], 0.0)
    assert torch.equal(same, codebook)
    with pytest.raises(ValueError, match="counts: got -1 to 13, want 0 to inf"):
        restart(codebook, torch.tensor([-1.0, 13, 1, 2]), candidates, 0.5)
    with pytest.raises(ValueError, match="n: got -3 to"):
        ema_step(codebook, counts, torch.tensor([-3.0, 1, 1, 1]), codebook, 0.9)
    with pytest.raises(ValueError, match="candidates: got 1, want one for each of 2"):
        restart(codebook, counts, candidates[:1], 0.5)


def colours(n: int) -> Tensor:
    """(n, 3, 16, 16): smooth patches of colour, all different."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=(16, 16), mode="bicubic").clamp(0, 1)


def perplexity_of_the_first_depth(**options) -> float:
    """Of an RQ-VAE with 4 × 32 codes after 120 steps."""
    torch.manual_seed(0)
    members = [EMAVectorQuantizer(32, 8, seed=r, **options) for r in range(4)]
    model = companion.VQVAE(
        companion.ResNetEncoder(3, 8, hidden=16, num_blocks=1),
        companion.ResidualQuantizer(members),
        companion.ResNetDecoder(3, 8, hidden=16, num_blocks=1),
    )
    x, optimizer = colours(256), torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(120):
        optimizer.zero_grad()
        model(x[torch.arange(32) + 32 * (step % 8)]).loss.backward()
        optimizer.step()
    return companion.metrics.perplexity(model.eval()(x).code_counts[0])


def test_by_default_the_first_depth_of_a_residual_quantizer_does_not_collapse():
    """k-means finds all latents of an untrained encoder side by side. The encoder then spreads them out, and what
    brings the codes back into use are restarts: a smaller decay alone does not, the customary one puts them off."""
    by_default = perplexity_of_the_first_depth()
    late = perplexity_of_the_first_depth(decay=0.99)
    never = perplexity_of_the_first_depth(restart_below=0.0)
    assert by_default > 2 * max(late, never), (by_default, late, never)


# Cosine ------------------------------------------------------------------------------------------------------------


def test_cosine_codes_keep_length_one_over_many_steps():
    """Without normalising after the update their length drifts."""
    quantizer = EMAVectorQuantizer(8, 3, decay=0.5, cosine=True)
    for seed in range(50):
        out = quantizer(5 * points(40, seed=seed))
        torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(out.z_q.norm(dim=1), torch.ones(40))


def test_cosine_looks_at_the_direction_only():
    quantizer = EMAVectorQuantizer(8, 3, cosine=True)
    z = points(40)
    quantizer(z)
    assert torch.equal(quantizer.encode(z), quantizer.encode(7 * z))
    similarity = functional.normalize(z, dim=1) @ quantizer.codebook.T
    assert torch.equal(quantizer.encode(z), similarity.argmax(1))


def test_the_smallest_angle_is_found_whatever_the_lengths():
    z, codebook = points(200, 4), points(9, 4, seed=2) * torch.logspace(-2, 2, 9)[:, None]
    exact = functional.cosine_similarity(z.double()[:, None], codebook.double()[None], dim=2)
    assert torch.equal(cosine_lookup(z, codebook), exact.argmax(1))
    assert not torch.equal(nearest_code(z, codebook), exact.argmax(1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decay": 1.0}, "decay"),
        ({"restart_below": -0.1}, "restart_below"),
        ({"smoothing": -1e-5}, "smoothing"),
        ({"commitment_weight": -1.0}, "commitment_weight"),
        ({"init": "zeros"}, "init"),
        ({"estimator": "none"}, "estimator"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options, says):
    with pytest.raises(ValueError, match=says):
        EMAVectorQuantizer(4, 3, **options)


@settings(deadline=None, max_examples=30)
@given(
    num_codes=st.integers(1, 12),
    dim=st.integers(1, 5),
    n=st.integers(12, 40),
    spatial=st.lists(st.integers(1, 3), max_size=2),
    cosine=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_contract(num_codes, dim, n, spatial, cosine, dtype):
    quantizer = EMAVectorQuantizer(num_codes, dim, cosine=cosine)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, dim, *spatial, generator=generator).to(dtype).requires_grad_()
        before = quantizer.codebook.clone()
        out = quantizer(z)
        assert out.z_q.shape == z.shape
        assert out.z_q.dtype == dtype
        assert out.indices.shape == (n, *spatial)
        (out.z_q.float().sum() + out.loss).backward()
        assert bool(z.grad.isfinite().all())
        assert bool(quantizer.codebook.isfinite().all())
        if seed:
            assert torch.equal(out.z_q, functional.embedding(out.indices, before).movedim(-1, 1).to(dtype))


# Several processes -------------------------------------------------------------------------------------------------


def together(kind: str, folder: Path, world: int = 2) -> list[dict[str, Tensor]]:
    """The state dicts of real processes that trained together."""
    out = folder / kind
    worker = Path(codebook_worker.__file__)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, worker, out, str(rank), str(world), kind], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=180) for process in processes] == [0] * world
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]


@pytest.mark.cpu_only("several processes, joined by gloo")
@pytest.mark.parametrize("kind", ["single", "residual", "shared"])
def test_two_processes_end_equal_to_each_other_and_to_one_on_the_joined_batch(kind, tmp_path):
    """K-means, statistics and restarts over 50 steps, to the bit.

    Sums of whole numbers are exact in any order. What the first depth leaves is not whole, so later depths (and a
    codebook that they share) are equal between the processes, and to one process up to rounding, which restarts
    amplify.
    """
    first, second = together(kind, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone, restarts = codebook_worker.train(kind, 0, 1)
    assert kind != "single" or restarts > 20  # there was something to disagree about
    exact = {"single": "", "residual": "quantizers.0.", "shared": "nothing"}[kind]
    for name, value in alone.state_dict().items():
        if name.startswith(exact):
            assert torch.equal(first[name], value), name


def test_processes_that_do_not_share_their_statistics_differ():
    """The wrong version: each process updates its codebook from its own half of the batch."""
    halves = []
    for rank in range(2):
        model = codebook_worker.quantizer("single")
        for step in range(codebook_worker.STEPS):
            model(codebook_worker.batch(step).chunk(2)[rank])
        halves.append(model.codebook)
    assert not torch.equal(*halves)


# The mistakes, as the proof that the tests above would see them ------------------------------------------------------


class UpdateFirst(EMAVectorQuantizer):
    """The codebook moves before the lookup."""

    def forward(self, z):
        self.update(z.detach(), self.quantize(z))
        return self.quantize(z)


class PlainCounter(EMAVectorQuantizer):
    """The counter that seeds the restarts is a plain number, which no state dict holds."""

    def __init__(self, num_codes: int, dim: int, **options) -> None:
        super().__init__(num_codes, dim, **options)
        del self._buffers["step"]
        self.step = torch.zeros((), dtype=torch.int64)


class UnscaledCosine(EMAVectorQuantizer):
    """The mean of vectors of length 1 is shorter, and is not scaled back."""

    def update(self, z, quantized):
        n, s = code_statistics(z, quantized.indices.flatten(), self.num_codes)
        codebook, counts = ema_step(self.codebook, self.counts, n, s, self.decay, self.smoothing)
        self.codebook.copy_(codebook)
        self.counts.copy_(counts)


class SmoothedFedBack(EMAVectorQuantizer):
    """The smoothed counts take the place of the average."""

    def update(self, z, quantized):
        super().update(z, quantized)
        total = self.counts.sum()
        self.counts.copy_((self.counts + self.smoothing) / (total + self.num_codes * self.smoothing) * total)


class RestartThenDivide(SmoothedPaper):
    """A code is put onto a vector, and the division of the same step overwrites it."""

    def update(self, z, quantized):
        dead = self.counts < 0.999
        self.codebook[dead] = z[: int(dead.sum())]
        super().update(z, quantized)


def test_an_update_before_the_lookup_would_be_seen():
    quantizer = UpdateFirst(6, 3, init="uniform", restart_below=0.0, decay=0.0)
    before = quantizer.codebook.clone()
    out = quantizer(points(30))
    assert not torch.equal(out.z_q, before[out.indices])


def test_a_counter_outside_the_state_would_be_seen():
    torch.manual_seed(0)
    one, again = (PlainCounter(16, 3, decay=0.5, restart_below=0.3, init="uniform") for _ in range(2))
    for seed in range(4):
        one(points(30, seed=seed))
    again.load_state_dict(one.state_dict())
    for quantizer in (one, again):
        quantizer(points(30, seed=4))
    assert not torch.equal(one.codebook, again.codebook)


def test_cosine_codes_that_are_not_scaled_back_would_be_seen():
    quantizer = UnscaledCosine(8, 3, decay=0.5, cosine=True, init="uniform")
    for seed in range(50):
        quantizer(5 * points(40, seed=seed))
    assert (quantizer.codebook.norm(dim=1) - 1).abs().max() > 0.05


def test_counts_that_are_smoothed_again_and_again_would_be_seen():
    fed, right = (kind(6, 3, init="uniform", restart_below=0.0, smoothing=0.5) for kind in (SmoothedFedBack, plain))
    for quantizer in (fed, right):
        quantizer(points(30))
    assert not torch.equal(fed.counts, right.counts)


def test_a_restart_that_the_same_step_takes_back_would_be_seen():
    torch.manual_seed(0)
    quantizer = RestartThenDivide(8, 3, init="uniform", restart_below=0.0)
    quantizer.codebook.copy_(100 + points(8))
    quantizer.sums.copy_(quantizer.codebook)
    z = points(60)
    for _ in range(3):
        quantizer(z)
    onto = (quantizer.codebook[:, None] == z[None]).all(-1).any(1)
    assert int(onto.sum()) == 0


def test_a_restart_never_takes_a_vector_without_a_direction():
    """Latents of exactly 0 (after a ReLU, say) as codes of length 1 would refuse every later lookup."""
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(4, 2, cosine=True, decay=0.0, restart_below=0.5)
    quantizer(torch.randn(12, 2))
    mostly_zero = torch.zeros(40, 2)
    mostly_zero[:2] = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    for _ in range(5):
        quantizer(mostly_zero)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(4))
    before = quantizer.codebook.clone()
    quantizer(torch.zeros(6, 2))  # nothing in it has a direction: dead codes stay
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(4))
    assert torch.equal(quantizer.codebook, before)


def test_k_means_of_directions_starts_from_vectors_that_have_one():
    vectors = torch.zeros(30, 2)
    vectors[:3] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    centres, _ = k_means(vectors, 3, cosine=True)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(3))


def test_codes_that_are_still_random_are_not_decoded_without_a_word():
    quantizer = EMAVectorQuantizer(4, 2)
    with pytest.warns(UserWarning, match="codes are still random"):
        codes = quantizer.decode(torch.zeros(1, 3, dtype=torch.int64))
    assert torch.equal(codes, quantizer.codebook[0].expand(1, 3, 2).movedim(-1, 1))


def test_who_stops_the_gradients_of_a_codebook_without_any_is_told_of_freeze():
    quantizer = EMAVectorQuantizer(4, 2)
    with pytest.warns(UserWarning, match=r"move by averages; freeze\(\) keeps them"):
        quantizer.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantizer.freeze().requires_grad_(False) is quantizer


def test_stopping_the_gradients_of_a_whole_model_does_not_stop_the_averages_and_freezing_does():
    """As documented: ``requires_grad`` is a matter of parameters, and the codes are a buffer."""
    for freeze in (False, True):
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), plain(decay=0.5)).requires_grad_(False)
        before = model[1].freeze(freeze).codebook.clone()
        model(points(40))
        assert torch.equal(model[1].codebook, before) is freeze


def test_cosine_codes_turn_more_slowly_than_the_scaled_sums_of_the_paper():
    """As documented: a code of length 1 stands for N_k vectors of its own direction. The paper's sum m_k of vectors in
    several directions is shorter, and new vectors turn it further."""
    ours, sums, counts = torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1)
    for seed in range(33):
        towards = torch.tensor([1.0, 0, 0]) if seed < 30 else torch.tensor([0, 1.0, 0])
        z = functional.normalize(towards + points(40, seed=seed), dim=1)
        n, s = code_statistics(z, torch.zeros(40, dtype=torch.int64), 1)
        sums = 0.9 * sums + 0.1 * s
        ours, counts = ema_step(ours, counts, n, s, 0.9, 0.0)
        ours = functional.normalize(ours, dim=1)
        if seed == 0:
            torch.testing.assert_close(ours, functional.normalize(sums, dim=1))
    ours_turned, sums_turned = float(ours[0, 1]), float(functional.normalize(sums, dim=1)[0, 1])
    assert 0.1 < ours_turned < 0.8 * sums_turned


def test_codes_that_were_given_with_a_count_of_zero_are_not_replaced_at_once():
    """The wrong version: the first batch restarts them."""
    codes, z = 3 * points(4), points(60)
    codes[3] = 50.0  # nothing chooses it
    given = torch.tensor([20.0, 20, 20, 0])
    kept = EMAVectorQuantizer.from_codebook(codes, counts=given)
    kept(z)
    assert torch.equal(kept.codebook[3], codes[3])
    assert torch.equal(EMAVectorQuantizer.from_codebook(codes, counts=given, restart_below=0.0).counts, given)
    wrong = EMAVectorQuantizer.from_codebook(codes)
    wrong.counts.copy_(given)
    wrong(z)
    assert not torch.equal(wrong.codebook[3], codes[3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_encodes_and_refuses_to_learn(dtype):
    """Counts above 65,504 are infinite in float16, and bfloat16 rounds small steps away."""
    quantizer = EMAVectorQuantizer(4, 3)
    quantizer(points(40))
    z = points(40)
    expected = functional.embedding(quantizer.encode(z), quantizer.codebook.to(dtype))
    quantizer.to(dtype)
    assert torch.equal(quantizer.eval()(z.to(dtype)).z_q, expected)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for one in (quantizer, EMAVectorQuantizer(4, 3).to(dtype)):  # trained, and before its first batch
        with pytest.raises(ValueError, match=rf"codebook: got {dtype}, want torch\.float32 or torch\.float64 to learn"):
            one.train()(z.to(dtype))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.freeze()(z.to(dtype))  # nothing to learn
    assert bool(torch.full((1,), 70_000.0).to(torch.float16).isinf())
    assert float(torch.tensor(1.0, dtype=torch.bfloat16) + 0.003) == 1

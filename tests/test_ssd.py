"""State-space duality: recurrence, matrix, chunks and single steps are one function."""

import pytest
import torch
from torch import Tensor

from companion.backbones import ssd_chunked, ssd_matrix, ssd_recurrence, ssd_step

B, H, P, N = 2, 3, 4, 5
DECAYS = {"weak": 1e-3, "middling": 0.5, "strong": 20.0, "none at all": 0.0}


def inputs(length: int, decay: float = 0.5, *, seed: int = 0) -> list[Tensor]:
    """x, log_decay, b, c and a state, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    log_decay = -decay * 2 * torch.rand(B, length, H, dtype=torch.float64, generator=generator)
    return [normal(B, length, H, P), log_decay, normal(B, length, N), normal(B, length, N), normal(B, H, P, N)]


def by_matrix(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (ssd_matrix(log_decay, b, c) @ x.transpose(1, 2)).transpose(1, 2)


def by_steps(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], log_decay[:, t], b[:, t], c[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def test_the_recurrence_is_the_equation_number_by_number():
    x, log_decay, b, c, state = inputs(6)
    y, last = ssd_recurrence(x, log_decay, b, c, state)
    for i in range(B):
        for head in range(H):
            for p in range(P):
                h = state[i, head, p].tolist()
                for t in range(6):
                    a = log_decay[i, t, head].exp().item()
                    h = [a * h[n] + x[i, t, head, p].item() * b[i, t, n].item() for n in range(N)]
                    expected = sum(h[n] * c[i, t, n].item() for n in range(N))
                    assert y[i, t, head, p].item() == pytest.approx(expected, abs=1e-12)
                assert last[i, head, p].tolist() == pytest.approx(h, abs=1e-12)


def test_by_hand_with_one_number_of_everything():
    x, decay, b, c = torch.tensor(
        [[1.0, 2.0, 3.0], [0.7, 0.5, 0.25], [1.0, 1.0, 2.0], [1.0, 10.0, 1.0]], dtype=torch.float64
    ).reshape(4, 1, 3, 1)
    y, state = ssd_chunked(x[..., None], decay.log(), b, c, chunk=2)
    assert y.flatten().tolist() == pytest.approx([1.0, 25.0, 0.25 * 2.5 + 6])
    assert state.item() == pytest.approx(6.625)
    assert ssd_matrix(decay.log(), b, c)[0, 0].tolist() == [
        pytest.approx(row) for row in ([1.0, 0.0, 0.0], [5.0, 10.0, 0.0], [0.125, 0.25, 2.0])
    ]


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (7, 64), (64, 64), (100, 64), (13, 4), (12, 4), (5, 1)])
def test_recurrence_matrix_chunks_and_steps_agree(length, chunk, decay):
    *sequence, state = inputs(length, decay)
    y, last = ssd_recurrence(*sequence, state)
    for other in (ssd_chunked(*sequence, state, chunk=chunk), by_steps(*sequence, state)):
        torch.testing.assert_close(other, (y, last), atol=1e-9, rtol=0)
    empty, last = ssd_recurrence(*sequence)
    torch.testing.assert_close(ssd_chunked(*sequence, chunk=chunk), (empty, last), atol=1e-9, rtol=0)
    torch.testing.assert_close(by_matrix(*sequence), empty, atol=1e-9, rtol=0)
    if decay < 1:
        assert (y - empty).abs().max() > 0.1  # the state before the first position is read


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (7, 64), (13, 4)])
def test_gradients_agree_of_all_inputs_and_both_outputs(length, chunk, decay):
    leaves = [one.requires_grad_() for one in inputs(length, decay)]

    def gradients(function, **options) -> tuple[Tensor, ...]:
        y, last = function(*leaves, **options)
        weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
        return torch.autograd.grad((weight * y).sum() + (last * last).sum(), leaves)

    expected = gradients(ssd_recurrence)
    assert all(one.abs().max() > 0 for one in expected[:3])
    torch.testing.assert_close(gradients(ssd_chunked, chunk=chunk), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradients(by_steps), expected, atol=1e-9, rtol=1e-9)
    *sequence, _ = leaves
    pair = [
        torch.autograd.grad(y.square().sum(), sequence) for y in (by_matrix(*sequence), ssd_recurrence(*sequence)[0])
    ]
    torch.testing.assert_close(*pair, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("function", [ssd_recurrence, lambda *given: ssd_chunked(*given, chunk=2)])
def test_gradients_are_those_of_finite_differences(function):
    leaves = [one[:1].clone().requires_grad_() for one in inputs(5)]
    with torch.no_grad():
        leaves[1] -= 0.1  # away from 0, where a difference would step to a positive logarithm
    assert torch.autograd.gradcheck(function, leaves)


def test_a_row_may_be_cut_anywhere_and_go_on_from_the_state():
    *sequence, state = inputs(20)
    whole, last = ssd_chunked(*sequence, state, chunk=8)
    first, middle = ssd_chunked(*(one[:, :11] for one in sequence), state, chunk=8)
    second, end = ssd_chunked(*(one[:, 11:] for one in sequence), middle, chunk=8)
    torch.testing.assert_close((torch.cat([first, second], 1), end), (whole, last))


def chunks_without_states(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """The wrong version: each chunk begins with an empty state."""
    starts = range(0, x.shape[1], chunk)
    cut = ([one[:, start : start + chunk] for one in (x, log_decay, b, c)] for start in starts)
    return torch.cat([by_matrix(*part) for part in cut], 1)


def test_chunks_that_forget_the_state_are_right_in_the_first_chunk_only():
    *sequence, _ = inputs(12)
    right, wrong = ssd_recurrence(*sequence)[0], chunks_without_states(*sequence, chunk=4)
    torch.testing.assert_close(wrong[:, :4], right[:, :4])
    assert bool(((wrong - right)[:, 4:].abs().amax((0, 2, 3)) > 1e-3).all())


def difference_of_sums(log_decay: Tensor) -> Tensor:
    """The wrong version of the products of decays: two sums from the start are subtracted, and what lies above the
    diagonal goes after the exponential."""
    sums = log_decay.cumsum(-1)
    return (sums[..., :, None] - sums[..., None, :]).exp().tril()


def test_strong_decays_leave_gradients_finite_where_differences_of_sums_give_nan():
    log_decay = torch.full((1, 64, 1), -20.0, requires_grad=True)
    ones = torch.ones(1, 64, 1)
    for y in (ssd_matrix(log_decay, ones, ones), ssd_chunked(ones[..., None], log_decay, ones, ones)[0]):
        assert y.isfinite().all()
        (grad,) = torch.autograd.grad(y.sum(), log_decay)
        assert grad.isfinite().all()
    wrong = difference_of_sums(log_decay[..., 0])
    assert wrong.isfinite().all()  # forward shows nothing
    (grad,) = torch.autograd.grad(wrong.sum(), log_decay)
    assert grad.isnan().any()


def test_a_weak_decay_after_strong_ones_keeps_its_digits():
    """float32: sums along the segment keep 6 digits, the difference of two long sums loses two of them."""
    log_decay = torch.full((1, 64, 1), -30.0)
    log_decay[:, 32:] = -0.1
    ones = torch.ones(1, 64, 1)
    exact = ssd_matrix(log_decay.double(), ones.double(), ones.double())[0, 0, 32:, 32:]
    error = (ssd_matrix(log_decay, ones, ones)[0, 0, 32:, 32:] - exact).abs().max()
    wrong = (difference_of_sums(log_decay[..., 0])[0, 32:, 32:] - exact).abs().max()
    assert error < 1e-6
    assert wrong > 1e-5


def test_without_decay_it_is_linear_attention():
    """a = 1: M is the lower triangle of C Bᵀ (Katharopoulos et al. 2020, without their feature map)."""
    x, log_decay, b, c, _ = inputs(9, 0.0)
    y, state = ssd_chunked(x, log_decay, b, c, chunk=4)
    torch.testing.assert_close(y, torch.einsum("bts,bshp->bthp", (c @ b.mT).tril(), x))
    torch.testing.assert_close(state, torch.einsum("bshp,bsn->bhpn", x, b))


def test_an_output_depends_on_its_own_and_earlier_positions():
    *sequence, state = inputs(11)
    leaf = sequence[0].requires_grad_()
    y, _ = ssd_chunked(*sequence, state, chunk=4)
    for t in range(11):
        (grad,) = torch.autograd.grad(y[:, t].sum(), leaf, retain_graph=True)
        assert (grad.abs().sum((0, 2, 3)) > 0).tolist() == [s <= t for s in range(11)]


def test_memory_of_the_chunked_form_has_no_table_of_all_positions():
    """The largest tensor that autograd keeps: T · chunk numbers a head, and not T²."""
    sizes: list[int] = []
    *sequence, _ = (one.requires_grad_() for one in inputs(256))

    def pack(kept: Tensor) -> Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        ssd_chunked(*sequence, chunk=16)
    assert max(sizes) == B * H * 256 * 16
    sizes.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        by_matrix(*sequence)
    assert max(sizes) == B * H * 256 * 256


def graph(y: Tensor) -> list[str]:
    """The names of all steps of the backward pass."""
    todo, found, names = [y.grad_fn], set(), []
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            names.append(node.name())
            todo += [following for following, _ in node.next_functions]
    return names


def test_no_step_of_the_backward_pass_is_as_long_as_the_row_for_each_position():
    def selections(function, length: int) -> int:
        leaves = [one.requires_grad_() for one in inputs(length)]
        return graph(function(*leaves)[0]).count("SelectBackward0")

    for function in (ssd_recurrence, lambda *given: ssd_chunked(*given, chunk=2)):
        assert selections(function, 4) == selections(function, 16) <= 2
    # The wrong version, which is by_steps: the gradient of each x[:, t] is as long as x, T² numbers in all.
    assert selections(by_steps, 16) == 4 * selections(by_steps, 4) == 64


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (0, lambda x: x[0], r"x: got float64 of shape \(7, 3, 4\), want .* \(B, T, H, P\)"),
        (1, lambda a: -a, r"log_decay: got .* want .* to 0"),
        (1, lambda a: a - torch.inf, "log_decay: got -inf to -inf"),
        (1, lambda a: a[:, :, :2], r"log_decay: got float64 of shape \(2, 7, 2\), want .* \(2, 7, 3\)"),
        (2, lambda b: b[:, :6], r"b: got float64 of shape \(2, 6, 5\), want .* \(2, 7, N\)"),
        (3, lambda c: c[..., :4], r"c: got float64 of shape \(2, 7, 4\), want .* \(2, 7, 5\)"),
        (3, lambda c: c.float(), r"c: got float32, want float64 as x is"),
        (4, lambda state: state[:1], r"state: got float64 of shape \(1, 3, 4, 5\), want .* \(2, 3, 4, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, change, says):
    given = inputs(7)
    given[name] = change(given[name])
    for function in (ssd_recurrence, ssd_chunked):
        with pytest.raises(ValueError, match=f"^{says}"):
            function(*given)

"""The experiment on the RQ-Transformer: its shifted labels are those of the published package, and honest ones."""

import pytest
import torch
from torch import Tensor, nn

from companion.priors import RQTransformer
from experiments.rq_transformer import Published, ShiftedLabels

SHAPE = {"dim": 16, "layers": 1, "depth_layers": 1, "heads": 2}
GRID = (2, 4, 3)


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model.double().eval()


def seen(logits_of, num_codes: int = 5) -> Tensor:
    """(N, N): does logit i change when code j does?"""
    codes = torch.ones(1, *GRID, dtype=torch.int64)
    n = codes.numel()
    table = torch.zeros(n, n, dtype=torch.bool)
    with torch.no_grad():
        before = logits_of(codes).reshape(n, -1)
        for j in range(n):
            other = codes.flatten().clone()
            other[j] = 2
            table[:, j] = (logits_of(other.reshape(codes.shape)).reshape(n, -1) - before).abs().amax(1) > 1e-12
    return table


def of_the_prior(model: RQTransformer):
    return lambda codes: model.all_logits(codes, torch.tensor([model.num_classes]))


def test_shifted_logits_fall_ever_further_behind_and_never_see_their_own_code():
    table = seen(of_the_prior(randomised(ShiftedLabels(5, GRID, **SHAPE))))
    depth = GRID[-1]
    for i, line in enumerate(table):
        position, place = divmod(i, depth + 1)
        known = depth * position + place
        assert line.tolist() == [j < known for j in range(len(line))]
        assert known <= i
    right = seen(of_the_prior(randomised(RQTransformer(5, GRID, **SHAPE))))
    assert torch.equal(right, torch.ones_like(right).tril(-1))


def test_the_published_package_is_shifted_in_the_same_way():
    pytest.importorskip("rq_transformer", reason="the extra bench is not installed")
    published = randomised(Published(5, GRID, SHAPE, keep_code_0=False))

    def logits(codes: Tensor) -> Tensor:
        """Those that its loss compares with the labels: it returns the ones from the second on."""
        rest = published.net(codes.flatten(1, 2))
        return torch.cat([torch.zeros_like(rest[:, :1]), rest[:, :-1]], dim=1)

    ours = seen(of_the_prior(randomised(ShiftedLabels(5, GRID, **SHAPE))))
    assert torch.equal(seen(logits), ours)


def test_the_published_package_leaves_code_0_out_of_its_loss():
    pytest.importorskip("rq_transformer", reason="the extra bench is not installed")
    zeros = torch.zeros(2, *GRID, dtype=torch.int64)
    assert randomised(Published(5, GRID, SHAPE, keep_code_0=False))(zeros).loss.isnan()
    kept = randomised(Published(5, GRID, SHAPE, keep_code_0=True))
    assert kept(zeros).loss.isfinite()
    torch.testing.assert_close(kept.bits(zeros), kept(zeros).loss.item() * zeros[0].numel() / 0.6931471805599453)


def test_cached_steps_of_shifted_labels_are_those_of_training():
    model = randomised(ShiftedLabels(5, GRID, num_classes=2, **SHAPE))
    codes = torch.randint(0, 5, (3, *GRID), generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = model.all_logits(codes, starts).flatten(1, -2)
        steps = model.steps(starts, cache=True)
        got = torch.stack([steps.logits(codes.flatten(1), i) for i in range(model.length)], 1)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)

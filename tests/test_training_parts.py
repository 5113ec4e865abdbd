"""The parts that ``fit`` is composed of: schedule, clip, accumulate, average, after_epoch."""

import copy
import math
import warnings
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import QUIET, interrupting, noisy, press, train
from workers.fit_worker import Digits, Output, bits, model_of, objective

import companion
import companion.training.step
from companion.quantizers import Quantizer, one_update
from companion.quantizers.accumulation import initialise_from
from companion.training import EarlyStopping, Epoch, History, WarmupCosine, fit
from companion.training.averages import AveragedWeights
from companion.training.randomness import epoch_order

pytestmark = pytest.mark.cpu_only("compares to the bit with training on the CPU")

CPU = torch.device("cpu")


def batches_of(data: Digits, epochs: int = 3, batch_size: int = 8) -> list[tuple[Tensor, ...]]:
    orders = [epoch_order(len(data), 0, epoch) for epoch in range(epochs)]
    whole = len(data) // batch_size * batch_size
    return [data.batch(indices, CPU) for order in orders for indices in order[:whole].split(batch_size)]


# Schedule -------------------------------------------------------------------------------------------------------------


def test_warmup_cosine_rises_in_a_line_and_falls_as_half_a_cosine() -> None:
    factors = [WarmupCosine(warmup=4, floor=0.2)(step, 12) for step in range(12)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.6)  # half of the way from 1 to 0.2
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert [WarmupCosine()(step, 2) for step in range(2)] == [1.0, pytest.approx(0.5)]
    with pytest.raises(ValueError, match="warmup: got 12, want less than the 12 steps of this training"):
        WarmupCosine(warmup=12)(0, 12)
    with pytest.raises(ValueError, match=r"floor: got 1\.5"):
        WarmupCosine(floor=1.5)


def test_a_schedule_multiplies_the_rate_of_each_group_in_each_step() -> None:
    seen: list[list[float]] = []

    def two_groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.02}]
        optimizer = torch.optim.SGD(groups)
        optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    def halved(step: int, total_steps: int) -> float:
        assert total_steps == 18
        return 0.5**step

    history = train(noisy(), optimizer=two_groups, schedule=halved)
    assert seen == [[pytest.approx(0.1 * 0.5**i), pytest.approx(0.02 * 0.5**i)] for i in range(18)]
    assert [row["lr"] for row in history.rows] == [pytest.approx(0.1 * 0.5**i) for i in (5, 11, 17)]
    assert "lr" not in train(noisy(), epochs=1).last


def test_a_rate_in_a_tensor_is_scheduled_too() -> None:
    seen: list[float] = []

    def in_a_tensor(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=torch.tensor(0.1), foreach=False)
        optimizer.register_step_pre_hook(lambda *_: seen.append(float(optimizer.param_groups[0]["lr"])))
        return optimizer

    train(noisy(), optimizer=in_a_tensor, schedule=lambda step, total: 0.5**step, epochs=1)
    assert seen == [pytest.approx(0.1 * 0.5**i) for i in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": 0.5}, "schedule: got a float, want a function"),
        ({"schedule": lambda step: 1.0}, "schedule: got one that cannot be called with what it is given, step and"),
        ({"schedule": lambda step, total: None}, "schedule: its factor for step 0 of 18: got None, want a finite num"),
        ({"schedule": lambda step, total: -1}, "schedule: its factor for step 0 of 18: got -1"),
        ({"schedule": lambda step, total: math.inf if step == 7 else 1}, "schedule: its factor for step 7 of 18: got"),
        ({"schedule": WarmupCosine(warmup=18)}, "warmup: got 18, want less than the 18 steps"),
        ({"clip": 0}, "clip: got 0, want a finite number, more than 0"),
        ({"clip": "norm"}, "clip: got 'norm'"),
        ({"accumulate": 0}, "accumulate: got 0, want a whole number from 1"),
        ({"accumulate": 9}, "accumulate: got 9, want at most the 8 examples of a batch"),
        ({"average": 1.0}, "average: got 1.0, want a finite number"),
        ({"average": True}, "average: got True"),
        ({"after_epoch": "stop"}, "after_epoch: got a str, want a function"),
        ({"after_epoch": lambda: None}, "after_epoch: got one that cannot be called with .* an Epoch"),
        ({"after_epoch": lambda epoch: "stop"}, "after_epoch: gave 'stop', want False to end training, or True or"),
        ({"after_epoch": EarlyStopping()}, "after_epoch: got EarlyStopping by 'validation_loss' without validation"),
        ({"after_epoch": EarlyStopping("los")}, "column: got 'los', want one that was logged: epoch, step, loss, mean"),
    ],
)
def test_wrong_parts_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(noisy(), **options)


def test_a_schedule_of_the_optimizer_beside_another_is_refused() -> None:
    def scheduled(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return optimizer

    with pytest.raises(ValueError, match="optimizer: got one with a learning-rate schedule of its own beside schedule"):
        train(noisy(), optimizer=scheduled, schedule=WarmupCosine())


# Clip -----------------------------------------------------------------------------------------------------------------


def test_the_gradient_is_clipped_as_torch_does_and_its_norm_before_is_logged() -> None:
    model = noisy(0.0)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    norms = []
    for x, y in batches_of(Digits(53, 1)):
        optimizer.zero_grad()
        objective(by_hand, x, y).loss.backward()
        norms.append(nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3).item())
        optimizer.step()
    history = train(model, clip=0.3)
    assert bits(model) == bits(by_hand)
    means = [sum(norms[i : i + 6]) / 6 for i in (0, 6, 12)]
    assert [row["gradient_norm"] for row in history.rows] == pytest.approx(means)
    assert min(norms) < 0.3 < max(norms)
    unclipped = noisy(0.0)
    train(unclipped)
    assert bits(unclipped) != bits(model)


def test_a_gradient_that_is_not_finite_is_named_with_its_step() -> None:
    def steep(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        out = objective(model, x, y)
        zero = out.loss - out.loss.detach()
        return Output(out.reconstruction, out.mean_abs, out.loss + (zero.sqrt() if model.count == 3 else 0))

    with pytest.raises(FloatingPointError, match=r"gradient_norm is (nan|inf) at step 3 \(epoch 1\)"):
        train(noisy(), objective=steep, clip=1.0)


# Accumulation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_makes_the_step_of_the_whole(parts: int) -> None:
    """Also in three parts of 3, 3 and 2 examples, where the mean of the parts' means is another."""
    whole, cut = noisy(0.0), noisy(0.0)
    options: dict[str, Any] = {"objective": lambda model, x, y: model(x), "optimizer": partial(torch.optim.SGD, lr=0.1)}
    want, got = train(whole, **options), train(cut, accumulate=parts, **options)
    assert cut.count == parts * whole.count
    for name in ("layers.0.weight", "layers.3.bias"):
        torch.testing.assert_close(cut.get_parameter(name), whole.get_parameter(name), rtol=1e-5, atol=1e-6)
    for row, other in zip(got.rows, want.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_parts_of_unequal_sizes_do_not_count_alike() -> None:
    x, _ = Digits(8, 1).batch(torch.arange(8), CPU)
    model = noisy(0.0)
    losses = torch.stack([model(part).loss for part in x.tensor_split(3)])
    right = (losses * torch.tensor([3, 3, 2]) / 8).sum()
    assert right.item() == pytest.approx(model(x).loss.item(), rel=1e-6)
    assert losses.mean().item() != pytest.approx(right.item(), rel=1e-4)  # the wrong version


def tokenizer(kind: str) -> companion.VQVAE:
    torch.manual_seed(0)
    moving: dict[str, Any] = {"decay": 0.5, "restart_below": 0.5}
    quantizers: dict[str, Quantizer] = {
        "learnt": companion.VectorQuantizer(4, 2),
        "moving": companion.EMAVectorQuantizer(4, 2, **moving),
        "uniform": companion.EMAVectorQuantizer(4, 2, init="uniform", **moving),
        "residual": companion.ResidualQuantizer([companion.EMAVectorQuantizer(4, 2, **moving) for _ in range(2)]),
        "shared": companion.ResidualQuantizer(companion.EMAVectorQuantizer(4, 2, **moving), depth=2),
        "projected": companion.ProjectedQuantizer(companion.EMAVectorQuantizer(4, 2, cosine=True, **moving), 2),
    }
    sizes: dict[str, Any] = {"hidden": 4, "factor": 2, "num_blocks": 1}
    return companion.VQVAE(
        companion.ResNetEncoder(1, 2, **sizes), quantizers[kind], companion.ResNetDecoder(1, 2, **sizes)
    )


KINDS = ["learnt", "moving", "uniform", "residual", "shared", "projected"]


@pytest.mark.parametrize("kind", KINDS)
def test_codebooks_learn_once_a_step_from_the_whole_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through k-means, averages and restarts; where each part is an update, they end elsewhere."""
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "optimizer": partial(torch.optim.SGD, lr=0.01), **QUIET}
    whole, cut, wrong = tokenizer(kind), tokenizer(kind), tokenizer(kind)
    want, got = fit(whole, Digits(53, 1), **options), fit(cut, Digits(53, 1), accumulate=4, **options)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    for row, other in zip(got.rows, want.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    monkeypatch.setattr(companion.training.step, "one_update", lambda model: nullcontext())
    fit(wrong, Digits(53, 1), accumulate=4, **options)
    steps = {name: int(value) for name, value in wrong.state_dict().items() if name.endswith("step")}
    assert set(steps.values()) <= {4 * 12}
    assert bool(steps) == (kind != "learnt")
    if steps:
        codebook = next(name for name in whole.state_dict() if name.endswith("codebook"))
        distance = (wrong.state_dict()[codebook] - whole.state_dict()[codebook]).abs().max()
        assert distance > 1e-3


def test_all_forwards_in_a_block_are_one_update_which_an_error_takes_back() -> None:
    z = torch.randn(12, 2, 3, 3)
    quantizer = companion.EMAVectorQuantizer(4, 2)
    quantizer(z)
    together, apart, failed = (copy.deepcopy(quantizer) for _ in range(3))
    with one_update(together):
        for part in z.split(5):
            before = together.codebook.clone()
            together(part)
            assert torch.equal(together.codebook, before)
    quantizer(z)
    torch.testing.assert_close(together.state_dict(), quantizer.state_dict())
    assert together.step == 2
    for part in z.split(5):
        apart(part)
    assert apart.step == 4
    assert not torch.allclose(apart.counts, quantizer.counts)
    with suppress(KeyError), one_update(failed):
        failed(z)
        raise KeyError
    assert failed.step == 1
    failed(z)
    torch.testing.assert_close(failed.state_dict(), quantizer.state_dict())
    with one_update(failed), pytest.raises(ValueError, match="model: got one that is in a block of one_update already"):
        one_update(failed).__enter__()
    with one_update(failed.eval()):
        failed(z)
    assert failed.step == 2
    assert vars(failed).keys() == vars(quantizer).keys()  # the block leaves no trace


def test_k_means_takes_its_codes_from_all_parts_and_leaves_other_buffers_alone() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.BatchNorm2d(2))
    decoder = nn.ConvTranspose2d(2, 1, 2, stride=2)
    model = companion.VQVAE(encoder, companion.EMAVectorQuantizer(8, 2), decoder)
    x = torch.rand(8, 1, 4, 4)
    initialise_from(model, [partial(model, part) for part in x.split(2)])
    assert model.quantizer.counts.sum() == 32  # of 8 images 2 × 2; one part has 8
    assert model.quantizer.step == 0
    assert encoder[1].num_batches_tracked == 0
    assert torch.equal(encoder[1].running_mean, torch.zeros(2))
    encoder[1] = nn.Identity()
    encoder.train()
    quantizer = companion.EMAVectorQuantizer(8, 2)
    quantizer.initialise(encoder(x))
    model.quantizer = companion.EMAVectorQuantizer(8, 2)
    initialise_from(model, [partial(model, part) for part in x.split(2)])
    torch.testing.assert_close(model.quantizer.state_dict(), quantizer.state_dict())


class TwoLevels(nn.Module):
    """Two quantizers, one after the other, and a third that nothing calls; as fields of a model of the reader's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = (companion.EMAVectorQuantizer(4, 2, seed=i) for i in range(3))

    def forward(self, z: Tensor) -> Tensor:
        return self.second(z=z - self.first(z).z_q).z_q


def test_k_means_in_parts_reaches_each_quantizer_that_is_called_and_ends() -> None:
    class Always(companion.EMAVectorQuantizer):
        calls = 0
        initialised = False  # type: ignore[assignment]

        def initialise(self, z: Tensor) -> None:
            self.calls += 1

    model, z = TwoLevels(), torch.randn(8, 2, 3, 3)
    initialise_from(model, [partial(model, part) for part in z.split(2)])
    assert [one.counts.sum().item() for one in (model.first, model.second, model.idle)] == [72, 72, 0]
    model.second, model.idle = (always := Always(4, 2, init="uniform")), None
    initialise_from(model, [partial(model, part) for part in z.split(2)])
    assert always.calls == 1


# Averaged weights -----------------------------------------------------------------------------------------------------


def test_averaged_weights_are_those_that_validation_sees_and_the_model_ends_with() -> None:
    model, plain = noisy(), noisy()
    averages = {name: p.detach().clone() for name, p in plain.named_parameters()}
    steps = 0

    def averaging(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        def average(*_: object) -> None:
            nonlocal steps
            decay = min(0.9, (1 + steps) / (10 + steps))
            for name, p in plain.named_parameters():
                averages[name] = decay * averages[name] + (1 - decay) * p.detach()
            steps += 1

        optimizer = torch.optim.Adam(parameters, lr=0.01)
        optimizer.register_step_post_hook(average)
        return optimizer

    want = train(plain, lr=None, optimizer=averaging)
    got = train(model, average=0.9, validation=Digits(11, 2))
    assert steps == 18
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), averages[name])
    assert torch.equal(model.centre, plain.centre)  # buffers are those of the last step
    assert [row["loss"] for row in got.rows] == [row["loss"] for row in want.rows]  # training is as without
    assert plain.layers[0].weight.sub(model.layers[0].weight).abs().max() > 1e-3


def test_validation_is_of_the_averaged_weights() -> None:
    model, plain, validation = noisy(0.0), noisy(0.0), Digits(11, 2)
    history = train(model, average=0.9, validation=validation)
    train(plain)
    with torch.no_grad():
        losses = [objective(one, validation.x, validation.y).loss.item() for one in (model, plain)]
    assert history.last["validation_loss"] == pytest.approx(losses[0], rel=1e-6)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)  # what the last weights give


def test_frozen_parameters_have_no_average_and_half_precision_is_averaged_in_float32() -> None:
    model = noisy().to(torch.bfloat16)
    model.layers[0].requires_grad_(False)
    averages = AveragedWeights(model, 0.999)
    assert "layers.0.weight" not in averages.averages
    assert {value.dtype for value in averages.averages.values()} == {torch.float32}
    with torch.no_grad():
        model.never.fill_(2.0)
        for step in range(20_000, 20_010):
            averages.update(step)
        with averages.in_the_model():
            inside = model.never.clone()
    assert averages.averages["never"].tolist() == pytest.approx([2 - 0.999**10] * 2, rel=1e-5)
    assert torch.equal(inside, averages.averages["never"].to(torch.bfloat16))
    assert model.never.tolist() == [2.0, 2.0]


# After each epoch -----------------------------------------------------------------------------------------------------


def test_after_each_epoch_the_caller_sees_the_row_and_the_model_and_changes_nothing_by_drawing() -> None:
    seen: list[Epoch] = []
    draws: list[float] = []

    def look(epoch: Epoch) -> None:
        assert not epoch.model.training
        assert not torch.is_grad_enabled()
        seen.append(epoch)
        draws.append(torch.rand(()).item())
        epoch.row["loss"] = epoch.history.rows[0]["loss"] = 7.0  # copies

    model, plain = noisy(), noisy()
    history = train(model, after_epoch=look, validation=Digits(11, 2))
    assert history == train(plain, validation=Digits(11, 2))
    assert bits(model) == bits(plain)
    assert [(one.epoch, one.step, len(one.history.rows)) for one in seen] == [(1, 6, 1), (2, 12, 2), (3, 18, 3)]
    assert [one.row["validation_loss"] for one in seen] == [row["validation_loss"] for row in history.rows]
    assert seen[0].model is model
    assert draws == [draws[0]] * 3


def test_the_averaged_weights_are_what_is_seen_after_an_epoch() -> None:
    seen: list[Tensor] = []
    model = noisy()
    train(model, average=0.9, after_epoch=lambda epoch: seen.append(epoch.model.layers[0].weight.clone()))
    assert torch.equal(seen[-1], model.layers[0].weight)
    assert not torch.equal(seen[0], seen[-1])


def test_false_ends_training_cleanly(capsys: pytest.CaptureFixture[str]) -> None:
    def second(epoch: Epoch) -> bool:
        return epoch.epoch < 2

    model, two = noisy(), noisy()
    history = train(model, epochs=5, after_epoch=second)
    assert "Ended after epoch 2 of 5 by " in capsys.readouterr().out
    assert not history.interrupted
    assert history == train(two, epochs=2)
    assert bits(model) == bits(two)


def rows_of(values: list[float]) -> Epoch:
    rows = [{"epoch": i, "step": i, "validation_loss": value} for i, value in enumerate(values, 1)]
    return Epoch(len(rows), len(rows), rows[-1], History(rows), nn.Identity())


def test_early_stopping_waits_for_a_better_value_than_the_best() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping(rows_of(values)) for values in ([3.0], [3.0, 3.0], [3.0, 3.5, 2.9], [3.0, 2.0, 2.5])] == [True] * 4
    assert not stopping(rows_of([3.0, 2.0, 2.5, 2.2]))  # better than the one before it, and not than the best
    assert not stopping(rows_of([3.0, 3.0, 3.0]))
    assert not EarlyStopping(patience=1, smallest_change=0.5)(rows_of([3.0, 2.6]))
    assert EarlyStopping(patience=1, smallest_change=0.5)(rows_of([3.0, 2.4]))
    slow = [3.0, 2.8, 2.6, 2.4]  # together they are better by more than 0.5
    assert EarlyStopping(patience=3, smallest_change=0.5)(rows_of(slow))
    assert not EarlyStopping(patience=2, smallest_change=0.5)(rows_of(slow[:3]))
    assert not EarlyStopping(patience=2, maximize=True)(rows_of([1.0, 0.9, 0.8]))
    assert EarlyStopping(patience=2, maximize=True)(rows_of([1.0, 0.9, 1.1]))


# Going on -------------------------------------------------------------------------------------------------------------

ALL: dict[str, Any] = {"schedule": WarmupCosine(warmup=3), "clip": 0.3, "accumulate": 3, "average": 0.9}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_run_with_all_parts_goes_on_to_the_same_history(tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {**ALL, "validation": Digits(11, 2), "precision": precision}
    whole, stopped = noisy(), noisy()
    history = train(whole, **options)
    assert {"lr", "gradient_norm", "validation_loss"} <= history.last.keys()
    for step in (2, 6, 11, 18):
        forwards = 3 * (step - 1) + 1
        train(stopped, objective=interrupting(forwards, press), run=tmp_path / "run", **options)
        stopped = noisy(seed=9)
    assert train(stopped, run=tmp_path / "run", **options) == history
    assert bits(stopped) == bits(whole)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"clip": 0.4}, r"clip: 0\.3 there, 0\.4 here"),
        ({"clip": None}, r"clip: 0\.3 there, absent here"),
        ({"accumulate": 1}, "accumulate: 3 there, absent here"),
        ({"average": 0.99}, r"average: 0\.9 there, 0\.99 here"),
        (
            {"schedule": WarmupCosine(warmup=2)},
            r"schedule: WarmupCosine\(warmup=3, floor=0\.0\) there, WarmupCosine\(warmup=2, floor=0\.0\) here",
        ),
        ({"schedule": None}, r"schedule: WarmupCosine\(warmup=3, floor=0\.0\) there, absent here"),
    ],
)
def test_a_run_with_other_parts_is_refused_by_name(tmp_path: Path, other: dict[str, Any], named: str) -> None:
    train(noisy(), run=tmp_path, epochs=1, **ALL)
    with pytest.raises(ValueError, match=rf"other settings:\n  {named}\nUse"):
        train(noisy(), run=tmp_path, epochs=1, **(ALL | other))


def fading(rate: float) -> Any:
    def schedule(step: int, total_steps: int) -> float:
        return rate**step

    return schedule


def test_the_settings_of_a_function_for_a_schedule_are_compared(tmp_path: Path) -> None:
    train(noisy(), run=tmp_path, epochs=1, schedule=fading(0.5))
    with pytest.raises(ValueError, match=r"other settings:\n  schedule: rate around it: 0\.5 there, 0\.9 here\nUse"):
        train(noisy(), run=tmp_path, epochs=1, schedule=fading(0.9))


def test_a_longer_training_has_the_rates_that_the_run_had_or_is_refused(tmp_path: Path) -> None:
    longer, whole = noisy(seed=9), noisy()
    train(noisy(), run=tmp_path / "fading", epochs=1, schedule=fading(0.9))
    assert train(longer, run=tmp_path / "fading", schedule=fading(0.9)) == train(whole, schedule=fading(0.9))
    assert bits(longer) == bits(whole)
    train(noisy(), run=tmp_path / "cosine", epochs=2, schedule=WarmupCosine())
    model = noisy(seed=9)
    with pytest.raises(ValueError, match="epochs: got 3, want 2 as the run has: with this schedule the steps that are"):
        train(model, run=tmp_path / "cosine", epochs=3, schedule=WarmupCosine())
    assert bits(model) == bits(noisy(seed=9))


def test_a_run_that_ended_early_stays_ended_and_goes_on_with_another_judge(tmp_path: Path) -> None:
    strict: dict[str, Any] = {"validation": Digits(11, 2), "epochs": 9}
    never_better = EarlyStopping(patience=2, smallest_change=100.0)
    whole, model, again = noisy(), noisy(), noisy(seed=9)
    history = train(whole, after_epoch=never_better, **strict)
    assert len(history.rows) == 3
    train(model, after_epoch=never_better, run=tmp_path, objective=interrupting(14, press), **strict)
    for _ in range(2):
        again = noisy(seed=9)
        assert train(again, after_epoch=never_better, run=tmp_path, **strict) == history
        assert bits(again) == bits(whole)
    patient = train(again, after_epoch=EarlyStopping(patience=4, smallest_change=100.0), run=tmp_path, **strict)
    assert len(patient.rows) == 5
    assert patient.rows[:3] == history.rows
    assert len(train(again, run=tmp_path, **strict).rows) == 9


def test_a_hook_that_fails_costs_no_epoch_and_is_called_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(epoch: Epoch) -> None:
        calls.append(epoch.epoch)
        if len(calls) == 2:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        train(noisy(), run=tmp_path, after_epoch=failing)
    model, whole = noisy(seed=9), noisy()
    assert train(model, run=tmp_path, after_epoch=failing) == train(whole)
    assert bits(model) == bits(whole)
    assert calls == [1, 2, 2, 3]


def test_training_against_a_discriminator_takes_a_schedule_and_a_clip(tmp_path: Path) -> None:
    def run(model: nn.Module, **options: Any) -> History:
        settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "objective": objective, **QUIET}
        return fit(model, Digits(53, 1), **(settings | ALL | {"accumulate": 1} | options))

    def adversarial(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return model_of("adversarial", 0)

    whole, stopped = adversarial(), adversarial()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = run(whole)
        assert math.isfinite(history.last["adaptive_weight"])
        assert history.last["gradient_norm"] > 0

        def once(epoch: Epoch) -> bool:
            return epoch.epoch < 2

        run(stopped, run=tmp_path, after_epoch=once)
        stopped = adversarial(9)
        assert run(stopped, run=tmp_path) == history
    assert bits(stopped) == bits(whole)

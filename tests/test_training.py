import contextlib
import copy
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import tqdm.auto
from torch import Tensor, nn
from workers.fit_worker import SIGKILL, Digits, Noisy, Output, bits, main, main_of, objective

import companion
import companion._runs
import companion.training
from companion.course.session import default_device
from companion.training import History, fit

pytestmark = pytest.mark.cpu_only("the same to the bit after a stop, with several processes joined by gloo")

WORKER = Path(__file__).parent / "workers" / "fit_worker.py"
QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


class Wide(Digits):
    """Images of another shape than those of Digits."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self.x = torch.rand(n, 1, 4, 6)


def noisy(noise: float = 0.1, seed: int = 0) -> Noisy:
    torch.manual_seed(seed)
    return Noisy(noise)


def train(model: nn.Module, **options: Any) -> History:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "objective": objective}
    return fit(model, Digits(53, 1), **(QUIET | settings | options))


# --- the loop


def test_fit_is_the_loop_of_chapter_1() -> None:
    model, data = noisy(0.0), Digits(53, 1)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    losses: list[list[float]] = []
    for epoch in range(3):
        order = companion.training._permutation(53, 0, epoch)
        losses.append([])
        for indices in order[:48].split(8):  # 53 // 8 batches; 5 examples are left out
            loss = objective(by_hand, *data.batch(indices, torch.device("cpu"))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    history = train(model)
    assert bits(model) == bits(by_hand)
    assert [row["loss"] for row in history.rows] == pytest.approx([sum(e) / 6 for e in losses], rel=1e-12)
    assert [(row["epoch"], row["step"]) for row in history.rows] == [(1, 6), (2, 12), (3, 18)]


def test_every_epoch_has_its_own_order_and_every_seed_its_own_epochs() -> None:
    orders = {tuple(companion.training._permutation(9, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_validation_is_the_mean_over_all_examples_and_not_over_batches() -> None:
    validation = Digits(11, 2)  # batches of 8 and 3
    model = noisy(0.0)
    row = train(model, epochs=1, validation=validation).rows[0]
    with torch.no_grad():
        everything = [objective(model, x[None], y[None]) for x, y in zip(validation.x, validation.y, strict=True)]
        wrong = [objective(model, validation.x[s], validation.y[s]) for s in (slice(8), slice(8, 11))]
    for name in ("loss", "mean_abs"):
        right = sum(getattr(e, name).item() for e in everything) / 11
        assert row[f"validation_{name}"] == pytest.approx(right, rel=1e-6)
        assert sum(getattr(e, name).item() for e in wrong) / 2 != pytest.approx(right, rel=1e-4)


def test_validation_changes_nothing_in_training() -> None:
    with_, without = noisy(), noisy()
    rows = train(with_, validation=Digits(11, 2)).rows
    train(without)
    assert bits(with_) == bits(without)
    assert with_.count == 18
    assert list(rows[0]) == ["epoch", "step", "loss", "mean_abs", "validation_loss", "validation_mean_abs"]


def test_validation_is_in_eval_mode_without_gradients_and_fit_ends_in_eval_mode() -> None:
    seen: set[tuple[bool, bool]] = set()

    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        seen.add((model.training, torch.is_grad_enabled()))
        return objective(model, x, y)

    model = noisy()
    train(model, objective=watched, validation=Digits(11, 2))
    assert seen == {(True, True), (False, False)}
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_callers_generator_is_untouched_and_only_the_seed_counts() -> None:
    runs = []
    for caller in (1, 2):
        model = noisy()
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        runs.append((train(model, validation=Digits(11, 2)), bits(model)))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1]
    model = noisy()
    assert train(model, seed=1).rows != runs[0][0].rows


def test_any_optimizer_and_the_default_objective() -> None:
    model, by_name = noisy(0.0), noisy(0.0)
    fit(model, Digits(53, 1), epochs=1, batch_size=8, optimizer=partial(torch.optim.SGD, lr=0.5), **QUIET)
    train(by_name, epochs=1, objective=lambda m, x, y: m(x), optimizer=lambda p: torch.optim.SGD(p, 0.5))
    assert bits(model) == bits(by_name) != bits(noisy(0.0))


def test_frozen_parameters_stay() -> None:
    model = noisy()
    model.layers[0].requires_grad_(False)
    before = model.layers[0].weight.clone()
    train(model, epochs=1)
    assert torch.equal(model.layers[0].weight, before)
    assert not torch.equal(model.layers[3].weight, noisy().layers[3].weight)


# --- the model and the process afterwards


def test_two_precisions_in_one_process_and_the_model_is_unpatched() -> None:
    model = noisy()
    keys, attributes = list(model.state_dict()), set(vars(model))
    seen: list[torch.dtype] = []

    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        out = objective(model, x, y)
        seen.append(out.reconstruction.dtype)
        return out

    for precision in ("bf16", "no", "bf16"):
        train(model, epochs=1, precision=precision, objective=watched, validation=Digits(11, 2))
        assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
        seen.clear()
        assert type(model) is Noisy
        assert set(vars(model)) == attributes
        assert list(model.state_dict()) == keys
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        hooks = [n for m in model.modules() for n, v in vars(m).items() if "hooks" in n and v]
        assert not hooks
        assert bits(pickle.loads(pickle.dumps(model))) == bits(copy.deepcopy(model)) == bits(model)


def test_prepare_on_the_model_itself_would_patch_it() -> None:
    model = noisy()
    with companion._runs.own_accelerator("bf16", "cpu") as accelerator:
        wrong = accelerator.prepare(model)
    assert wrong is model
    assert {"forward", "_original_forward"} <= set(vars(model))
    assert model(torch.rand(2, 16)).reconstruction.dtype == torch.bfloat16  # long after training


def test_an_accelerator_of_the_caller_goes_on_working() -> None:
    with companion._runs.own_accelerator("no", "cpu"):  # cleans up what this test does to the process
        mine = accelerate.Accelerator(cpu=True, mixed_precision="no")
        with pytest.raises(ValueError, match="already been initialized"):
            accelerate.Accelerator(cpu=True, mixed_precision="bf16")  # which is why fit puts it aside
        train(noisy(), epochs=1, precision="bf16")
        assert (mine.device.type, mine.mixed_precision) == ("cpu", "no")


def test_settings_of_accelerate_launch_do_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = noisy(), noisy()
    train(model)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(other)
    assert bits(other) == bits(model)


def test_fit_chooses_the_device_that_begin_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac torch offers "mps", where data and models of a chapter are not."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    with companion._runs.own_accelerator("no", None) as accelerator:
        assert accelerator.device.type == default_device().type


def test_fit_without_a_device_leaves_the_model_where_a_chapter_has_its_data() -> None:
    model = noisy()
    train(model, epochs=1, device=None)
    assert next(model.parameters()).device.type == default_device().type


# --- stopping


def interrupting(step: int, how: Any) -> Any:
    @wraps(objective)  # a run goes on with an objective of the same name only
    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        if model.training and model.count == step - 1:
            how()
        return objective(model, x, y)

    return watched


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_stop_button_finishes_the_step_and_keeps_what_was_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = noisy()
    handler = signal.getsignal(signal.SIGINT)
    history = train(model, objective=interrupting(8, press), validation=Digits(11, 2))
    assert capsys.readouterr().out == "Stopped after step 8 of 18: going on with what was trained so far.\n"
    assert history.interrupted
    assert [(row["epoch"], row["step"]) for row in history.rows] == [(1, 6), (2, 8)]
    assert list(history.rows[0]) == list(history.rows[1])
    assert model.count == 8
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(model, epochs=1).interrupted is False  # and it can be trained again


def test_a_stopped_run_goes_on_to_the_same_history(tmp_path: Path) -> None:
    whole, stopped = noisy(), noisy()
    history = train(whole, validation=Digits(11, 2))
    options: dict[str, Any] = {"validation": Digits(11, 2), "run": tmp_path / "run"}
    for step in (2, 6, 11, 18):  # in an epoch, and at the end of one
        train(stopped, objective=interrupting(step, press), **options)
        assert stopped.count == step
        stopped = noisy(seed=9)  # another start: everything must come from the folder
    assert train(stopped, **options) == history
    assert bits(stopped) == bits(whole)


def test_a_second_press_stops_at_once() -> None:
    def twice() -> None:
        press()
        press()

    with pytest.raises(KeyboardInterrupt):
        train(noisy(), objective=interrupting(8, twice))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_an_interrupt_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    result: list[History] = []
    model = noisy()
    thread = threading.Thread(
        target=lambda: result.append(train(model, objective=interrupting(8, interrupt), validation=Digits(11, 2)))
    )
    thread.start()
    thread.join()
    assert result[0].interrupted
    assert result[0].last["step"] == 7
    assert "after step 7 of 18" in capsys.readouterr().out
    first: list[History] = []
    thread = threading.Thread(target=lambda: first.append(train(noisy(), objective=interrupting(1, interrupt))))
    thread.start()
    thread.join()
    assert first[0].rows == []
    with pytest.raises(ValueError, match="before its first step"):
        first[0].last  # noqa: B018


def test_what_is_not_finite_is_named_with_its_step(tmp_path: Path) -> None:
    @dataclass
    class WithKL:
        loss: Tensor
        kl: Tensor

    def bad(model: nn.Module, x: Tensor, y: Tensor) -> WithKL:
        loss = objective(model, x, y).loss
        poison = model.training and int(model.count) == 9
        return WithKL(loss, torch.tensor(torch.inf if poison else 1.0))

    with pytest.raises(FloatingPointError, match=re.escape("kl is inf at step 9 (epoch 2)")):
        train(noisy(), objective=bad, run=tmp_path / "run", save_every=2)
    assert sorted(p.name for p in (tmp_path / "run").glob("state*")) == [
        "state-0000000006-000001.pt",
        "state-0000000008-000001.pt",
    ]

    def bad_validation(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        out = objective(model, x, y)
        return out if model.training else Output(out.reconstruction, out.mean_abs, out.loss * torch.nan)

    with pytest.raises(FloatingPointError, match="loss is nan at validation after step 6"):
        train(noisy(), objective=bad_validation, validation=Digits(11, 2))


# --- resuming


def test_a_finished_run_returns_its_history_and_weights_at_once(tmp_path: Path) -> None:
    model, again, longer, whole = noisy(), noisy(seed=9), noisy(seed=9), noisy()
    history = train(model, run=tmp_path / "run")

    @wraps(objective)
    def never(*_: object) -> Output:
        raise AssertionError("a finished run trains no more")

    assert train(again, run=tmp_path / "run", objective=never) == history
    assert bits(again) == bits(model)
    assert train(longer, run=tmp_path / "run", epochs=5) == train(whole, epochs=5)
    assert bits(longer) == bits(whole)
    with pytest.raises(ValueError, match=r"epochs: got 4.*has trained for more"):
        train(noisy(), run=tmp_path / "run", epochs=4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 here"),
        ({"precision": "bf16"}, "precision: no there, bf16 here"),
        (
            {"validation": Digits(11, 2)},
            r"len\(validation\): None there, 11 here\n  validation: None there, ",
        ),
        ({"lr": 0.02}, r"optimizer.0.lr: 0\.01 there, 0\.02 here"),
        ({"optimizer": partial(torch.optim.Adam, lr=0.01, eps=1e-3)}, r"optimizer.0.eps: 1e-08 there, 0.001 here"),
        ({"objective": lambda model, x, y: model(x)}, r"objective: objective there, <lambda> here"),
        ({"objective": None}, r"objective: objective there, _the_models_own here"),
        ({"optimizer": torch.optim.SGD}, r"optimizer: Adam there, SGD here\n.*optimizer.0.lr: 0.01 there, 0.001 here"),
    ],
)
def test_a_run_with_other_settings_is_refused_by_name(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    train(noisy(), run=tmp_path, epochs=1)
    model = noisy(seed=9)
    with pytest.raises(ValueError, match=rf"(?s)other settings:\n  {named}.*\nUse those, or another folder"):
        train(model, run=tmp_path, **options)
    assert bits(model) == bits(noisy(seed=9))


def test_another_model_or_other_data_is_refused_by_name(tmp_path: Path) -> None:
    train(noisy(), run=tmp_path, epochs=1)
    wider = noisy()
    wider.layers[0] = nn.Linear(16, 9)
    wider.more = nn.Parameter(torch.zeros(3))
    shapes = r"tensor layers.0.weight: torch.float32 \(8, 16\) there, torch.float32 \(9, 16\) here"
    with pytest.raises(ValueError, match=rf"(?s)tensor more: absent there.*\n  {shapes}\n"):
        train(wider, run=tmp_path)
    with pytest.raises(ValueError, match=r"len\(train\): 53 there, 54 here"):
        fit(noisy(), Digits(54, 1), epochs=1, batch_size=8, lr=0.01, run=tmp_path, **QUIET)


def test_a_damaged_newest_state_falls_back_to_the_older_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    newest.write_bytes(newest.read_bytes()[:-500])
    (tmp_path / ".state-9999999999-999999.pt.1.tmp").write_bytes(b"half a sta")
    again = noisy(seed=9)
    assert train(again, run=tmp_path) == history
    assert bits(again) == bits(model)
    said = capsys.readouterr().out
    assert f"cannot read {newest.name}" in said
    assert f"going on from {older.name}" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", older.name, newest.name]


def test_only_damaged_states_are_refused_and_not_started_over(tmp_path: Path) -> None:
    model = noisy()
    train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    older.write_bytes(b"")
    content = bytearray(newest.read_bytes())
    content[content.index(model.layers[0].weight.detach().numpy().tobytes()) + 7] ^= 1  # one bit of one weight
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)  # does not notice
    with pytest.raises(ValueError, match=f"cannot read any state.*{newest.name}.*{older.name}"):
        train(noisy(), run=tmp_path)


def test_a_state_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Trap(), tmp_path / "state-0000000001-000000.pt")
    with pytest.raises(ValueError, match="cannot read any state"):
        train(noisy(), run=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    @wraps(objective)
    def second(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        with pytest.raises(ValueError, match="is in use"):
            train(noisy(), run=tmp_path)
        return objective(model, x, y)

    train(noisy(), epochs=1, run=tmp_path, objective=second)
    train(noisy(), epochs=1, run=tmp_path)


def stack(**options: Any) -> companion.VQVAE:
    torch.manual_seed(0)
    quantizer = companion.VectorQuantizer(4, 2, **options)
    parts = [
        kind(1, 2, hidden=4, factor=2, num_blocks=1) for kind in (companion.ResNetEncoder, companion.ResNetDecoder)
    ]
    return companion.VQVAE(parts[0], quantizer, parts[1])


def test_another_configuration_is_refused_with_a_line_for_each_difference(tmp_path: Path) -> None:
    def run(model: nn.Module) -> History:
        return fit(model, Digits(53, 1), epochs=1, batch_size=8, run=tmp_path, **QUIET)

    run(stack())
    other = stack(commitment_weight=0.5, estimator="rotation")
    other.quantizer_weight = 2.0
    with pytest.raises(ValueError, match="other settings") as caught:
        run(other)
    assert str(caught.value).splitlines()[1:-1] == [
        "  model.quantizer_weight: 1.0 there, 2.0 here",
        "  model.quantizer.commitment_weight: 0.25 there, 0.5 here",
        "  model.quantizer.estimator: straight-through there, rotation here",
    ]
    other = stack()
    other.quantizer.commitment_weight = 0.5  # after it was made
    with pytest.raises(ValueError, match=r"model.quantizer.commitment_weight: 0.25 there, 0.5 here"):
        run(other)
    assert run(stack()) == run(stack())


def test_other_data_of_the_same_length_are_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "run": tmp_path, **QUIET}
    fit(noisy(), Digits(53, 1), validation=Digits(11, 2), **options)
    for train_seed, validation_seed, named in ((3, 2, "train"), (1, 3, "validation")):
        with pytest.raises(ValueError, match=rf"\n  {named}: [0-9a-f]{{12}} there, [0-9a-f]{{12}} here\n"):
            fit(noisy(), Digits(53, train_seed), validation=Digits(11, validation_seed), **options)
    other = Digits(53, 1)
    other.y[7] += 1  # one label of one example
    with pytest.raises(ValueError, match=r"\n  train: "):
        fit(noisy(), other, validation=Digits(11, 2), **options)
    fit(noisy(), Digits(53, 1), validation=Digits(11, 2), **options)


def test_examples_that_are_drawn_anew_each_time_can_be_gone_on_with(tmp_path: Path) -> None:
    class Augmented(Digits):
        def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
            x, y = super().batch(indices, device)
            return x + (torch.rand(()) if self.torch else float(np.random.rand())), y  # noqa: NPY002

    for draws_from_torch in (True, False):
        Augmented.torch = draws_from_torch  # type: ignore[attr-defined]
        options: dict[str, Any] = {"batch_size": 8, "run": tmp_path / str(draws_from_torch), **QUIET}
        first = fit(noisy(), Augmented(53, 1), epochs=1, **options)
        assert fit(noisy(), Augmented(53, 1), epochs=2, **options).rows[0] == first.rows[0]
        with pytest.raises(ValueError, match="train: "):
            fit(noisy(), Augmented(54, 1), epochs=2, **options)


def test_a_fingerprint_draws_nothing_from_the_caller_and_sees_the_order() -> None:
    before = torch.get_rng_state()
    data, other = Digits(2000, 1), Digits(2000, 1)
    other.x = other.x.flip(0)
    prints = {companion._runs.fingerprint(one) for one in (data, other, Digits(2001, 1), Digits(2000, 2))}
    assert len(prints) == 4
    assert companion._runs.fingerprint(Digits(2000, 1)) == companion._runs.fingerprint(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_the_first_version_goes_on_and_says_what_was_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path, epochs=2)
    for path in tmp_path.glob("state*"):
        state = torch.load(path)
        state.pop("origin", None)  # as they used to be
        torch.save(state, path)
    longer, whole = noisy(seed=9), noisy()
    capsys.readouterr()
    assert train(longer, run=tmp_path) == train(whole)
    assert "an earlier version began it and noted no configuration" in capsys.readouterr().out
    assert bits(longer) == bits(whole)
    assert history.rows == train(noisy()).rows[:2]
    for path in tmp_path.glob("state*"):
        state = torch.load(path)
        state.pop("origin", None)  # as they used to be
        torch.save(state, path)
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 here\n  optimizer: Adam .* there, Adam .* here\nUse"):
        train(noisy(), run=tmp_path, seed=1, lr=0.5)


def test_foreign_files_in_the_folder_of_a_run_are_left_alone(tmp_path: Path) -> None:
    names = ["state-zzz.pt", "state-1-1.pt", "best.pt", ".state-zzz.tmp", "state-0000000006-000001.pt.bak", "notes.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    half = tmp_path / ".state-0000000003-000000.pt.17.tmp"
    half.write_text("what a killed run leaves")
    train(noisy(), run=tmp_path, save_every=1)
    assert {name: (tmp_path / name).read_text() for name in names} == {name: name for name in names}
    assert not half.exists()
    assert len(list(tmp_path.glob("state-0*.pt"))) == 2


@pytest.mark.parametrize("content", [{"model": {}}, [1], torch.zeros(2), {"step": 1, "rows": [], "model": {}}])
def test_what_has_the_name_of_a_state_and_is_none_is_told_and_kept(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "state-0000000001-000000.pt"
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run: .*state-0000000001-000000.pt is no state that fit wrote; move it away"):
        train(noisy(), run=tmp_path)
    assert path.read_bytes() == before


def test_every_flipped_bit_and_every_cut_of_a_state_is_noticed_or_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    older.unlink()
    content, generator, noticed = newest.read_bytes(), np.random.default_rng(0), 0
    damages = [("bit", int(bit)) for bit in generator.integers(0, 8 * len(content), 60)]
    damages += [("cut", int(length)) for length in generator.integers(0, len(content), 10)]
    for kind, where in damages:
        damaged = bytearray(content if kind == "bit" else content[:where])
        if kind == "bit":
            damaged[where // 8] ^= 1 << where % 8
        newest.write_bytes(damaged)
        again = noisy(seed=9)
        try:
            rows = train(again, run=tmp_path)
        except ValueError:
            noticed += 1
        else:
            assert (rows, bits(again)) == (history, bits(model))
    assert noticed > 30


def test_a_schedule_that_would_begin_anew_is_refused_together_with_a_run(tmp_path: Path) -> None:
    rates: list[float] = []

    def scheduled(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        optimizer.register_step_post_hook(lambda *_: (rates.append(optimizer.param_groups[0]["lr"]), schedule.step()))
        return optimizer

    train(noisy(), optimizer=scheduled, epochs=1)
    assert rates == pytest.approx([0.1 * 0.9**i for i in range(6)])
    with pytest.raises(ValueError, match=r"optimizer: got one with a learning-rate schedule.* Leave out run"):
        train(noisy(), optimizer=scheduled, run=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_told_with_the_path_and_what_was_saved_stays(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from workers.fit_worker import Digits, Noisy
from companion import fit
options = dict(batch_size=8, run=sys.argv[1], progress=False, device="cpu")
fit(Noisy(), Digits(53, 1), epochs=1, **options)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    fit(Noisy(), Digits(53, 1), epochs=2, **options)
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, tmp_path, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(tmp_path / "state-0000000012-000002.pt") in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state-0000000006-000001.pt"]


# --- killed, in one process and in two


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts workers: on Linux forked from a process that has imported everything, so that each is cheap."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "torch._dynamo", "companion.training"])
    return context


def finish(workers: list[Any]) -> list[int]:
    """Waits for the workers, ends by its id whatever is left, and gives the exit codes."""
    for worker in workers:
        worker.join(timeout=60)
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, SIGKILL)
            worker.join()
    return [worker.exitcode for worker in workers]


def run_one(context: Any, out: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    worker = context.Process(target=main, args=(str(out),), kwargs=options)
    worker.start()
    (code,) = finish([worker])
    result = Path(f"{out}.0.json")
    return code, json.loads(result.read_text()) if result.exists() else {}


def run_two(context: Any, out: Path, **options: Any) -> tuple[list[int], list[dict[str, Any]]]:
    store = out.with_suffix(f".store{len(list(out.parent.iterdir()))}")
    workers = [context.Process(target=main_of, args=(rank, 2, str(store), str(out)), kwargs=options) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    codes = finish(workers)
    files = [Path(f"{out}.{rank}.json") for rank in (0, 1)]
    return codes, [json.loads(file.read_text()) for file in files if file.exists()]


@pytest.fixture(scope="session")
def one(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of one process gives."""
    code, result = run_one(processes, tmp_path_factory.mktemp("one") / "whole")
    assert (code, result["world"]) == (0, 1)
    return result


@pytest.fixture(scope="session")
def two(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of two processes gives."""
    codes, (first, second) = run_two(processes, tmp_path_factory.mktemp("two") / "whole")
    assert codes == [0, 0]
    assert first == second  # history, weights and buffers, to the bit
    assert first["world"] == 2
    return first


@pytest.mark.parametrize(
    "point",
    ["step:1", "step:6", "step:7", "step:18"] + [f"{k}:{n}" for k in ("write", "rename") for n in (1, 4, 12)],
)
def test_killed_at_that_point_it_ends_as_if_it_had_never_stopped(
    processes: Any, one: dict[str, Any], tmp_path: Path, point: str
) -> None:
    run = str(tmp_path / "run")
    assert run_one(processes, tmp_path / "out", run=run, kill=point) == (-SIGKILL, {})
    assert run_one(processes, tmp_path / "out", run=run) == (0, one)


def test_killed_again_and_again_it_ends_as_if_it_had_never_stopped(
    processes: Any, one: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for point in ["step:1", "step:5", "write:1", "write:3", "rename:1", "rename:4"]:
        assert run_one(processes, tmp_path / "out", run=str(run), kill=point) == (-SIGKILL, {})
    assert run_one(processes, tmp_path / "out", run=str(run)) == (0, one)
    names = sorted(path.name for path in run.iterdir())
    assert names == ["lock", "state-0000000018-000002.pt", "state-0000000018-000003.pt"]


def test_killed_from_outside_at_any_moment(processes: Any, one: dict[str, Any], tmp_path: Path) -> None:
    steps_seen = []
    while len(steps_seen) < 20:
        here, there = processes.Pipe(duplex=False)
        options = {"run": str(tmp_path / "run"), "tell": there}
        worker = processes.Process(target=main, args=(str(tmp_path / "out"),), kwargs=options)
        worker.start()
        there.close()
        steps = 0
        with contextlib.suppress(EOFError):
            while steps < 5:
                steps = here.recv()
            os.kill(worker.pid, SIGKILL)  # while it goes on computing or saving
        steps_seen.append(steps)
        if finish([worker]) == [0]:
            break
    assert json.loads((tmp_path / "out.0.json").read_text()) == one
    assert len(steps_seen) >= 3


def test_two_processes_train_as_one_on_the_joined_batch(processes: Any, tmp_path: Path) -> None:
    codes, (first, second) = run_two(processes, tmp_path / "two", noise="0", validation="9")
    _, alone = run_one(processes, tmp_path / "one", noise="0", validation="9")
    assert codes == [0, 0]
    assert first == second
    assert (first["world"], alone["world"]) == (2, 1)
    for row, other in zip(first["rows"], alone["rows"], strict=True):  # the last validation batch: one example
        assert row == pytest.approx(other, rel=1e-5)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-4, atol=1e-6)
    assert first["state"]["never"] == [
        1,
        1,
    ]  # no gradient anywhere: Adam leaves it alone, as with one process
    assert first["state"]["sometimes"] != 1


@pytest.mark.parametrize("kind", ["ema", "residual"])
def test_two_processes_learn_the_codebooks_of_one(processes: Any, tmp_path: Path, kind: str) -> None:
    """Through k-means, restarts and the averages, although each process began with other weights and saw half."""
    codes, (first, second) = run_two(processes, tmp_path / "two", kind_of_model=kind, validation="9")
    code, alone = run_one(processes, tmp_path / "one", kind_of_model=kind, validation="9")
    assert (codes, code) == ([0, 0], 0)
    assert first == second
    assert (first["world"], alone["world"]) == (2, 1)
    for row, other in zip(first["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_two_processes_killed_go_on_to_the_bit(processes: Any, two: dict[str, Any], tmp_path: Path, rank: str) -> None:
    run = str(tmp_path / "run")
    for point in ["step:5", "write:2", "rename:2"] if rank == "0" else ["step:8"]:
        codes, _ = run_two(processes, tmp_path / "out", run=run, kill=point, rank_to_kill=rank)
        assert codes[int(rank)] == -SIGKILL
        assert codes[1 - int(rank)] != 0  # the other cannot go on, and does not hang
    codes, results = run_two(processes, tmp_path / "out", run=run)
    assert codes == [0, 0]
    assert results == [two, two]
    code, _ = run_one(processes, tmp_path / "one", run=run)
    assert code == 1  # refused: one process is not two


@contextlib.contextmanager
def torchrun(out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Two workers under torchrun, each ended by its id in any case."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(WORKER),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [*command, str(out), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.communicate()
        pids = [int(line) for line in Path(f"{out}.pids").read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        assert len(pids) == 2
        Path(f"{out}.pids").unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's rendezvous wants libuv, which torch lacks there")
def test_torchrun_killed_and_started_again_goes_on_to_the_bit(two: dict[str, Any], tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    with torchrun(tmp_path / "out", run, "kill=step:9") as launcher:
        said, _ = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
        assert "Signal 9 (SIGKILL)" in said
    assert (tmp_path / "run" / "state-0000000008-000001.pt").exists()
    with torchrun(tmp_path / "out", run) as launcher:
        said, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, said
    results = [json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in (0, 1)]
    assert [result["world"] for result in results] == [2, 2]
    assert results == [two, two]


# --- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, want a whole number from 1"),
        ({"epochs": 1.5}, "epochs: got 1.5, want a whole number"),
        ({"epochs": None}, "epochs: got None, want a whole number"),
        ({"epochs": True}, "epochs: got True, want a whole number"),
        ({"batch_size": 0}, "batch_size: got 0, want a whole number from 1"),
        ({"batch_size": 8.0}, "batch_size: got 8.0, want a whole number"),
        ({"batch_size": 54}, "batch_size: got 54, want at most the 53 examples of train"),
        ({"lr": 0}, "lr: got 0, want a finite number, more than 0"),
        ({"lr": torch.nan}, "lr: got nan, want a finite number"),
        ({"lr": torch.inf}, "lr: got inf, want a finite number"),
        ({"lr": "fast"}, "lr: got 'fast', want a finite number"),
        ({"seed": -1}, "seed: got -1, want a whole number of at least 0"),
        ({"seed": 0.5}, "seed: got 0.5, want a whole number"),
        ({"seed": None}, "seed: got None, want a whole number"),
        ({"precision": "fp8"}, "precision: got 'fp8', want one of 'no', 'bf16', 'fp16'"),
        ({"precision": torch.bfloat16}, "precision: got torch.bfloat16, want one of 'no'"),
        ({"precision": "fp16"}, "precision: got fp16 on the CPU"),
        ({"device": "xpu"}, "device: got xpu, want one that this machine has"),
        ({"save_every": 2}, "save_every: got it without run"),
        ({"save_every": 0, "run": "unused"}, "save_every: got 0, want a whole number from 1"),
        ({"run": __file__}, r"run: got .*, which is a file, want a folder"),
        ({"run": 3}, "run: got a int, want the path of a folder"),
        ({"run": ""}, "run: got '', want the path of a folder"),
        ({"run": "a\0b"}, "run: got .*, want the path of a folder"),
        ({"device": "banana"}, "device: got 'banana', want a device"),
        ({"device": 3.5}, "device: got 3.5, want a device"),
        ({"objective": "mse"}, "objective: got a str, want a function, or None"),
        ({"optimizer": torch.optim.Adam([torch.zeros(1)])}, "optimizer: got a Adam, want a function, or None"),
        ({"optimizer": lambda parameters: parameters}, "optimizer: it made a list, want a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer: got LBFGS, which needs a closure"),
        (
            {"optimizer": lambda _: torch.optim.Adam(noisy().parameters())},
            "optimizer: got one without any of the model",
        ),
        (
            {"optimizer": partial(torch.optim.Adam, rate=1)},
            "optimizer: called with the list of .* parameters: .*'rate'",
        ),
        (
            {"optimizer": partial(torch.optim.Adam, lr=-1)},
            "optimizer: called with .* parameters: Invalid learning rate",
        ),
        ({"optimizer": lambda: None}, "optimizer: called with the list of the model's parameters"),
        (
            {"objective": lambda model, x: model(x)},
            "objective: got one that cannot be called .* the 2 tensors .* of train",
        ),
        ({"validation": [1, 2]}, "validation: got a list, want examples with len"),
        ({"validation": 3}, "validation: got a int, want examples with len"),
        ({"validation": Digits(0, 1)}, "validation: got no examples"),
        ({"objective": lambda model, x, y: model(x).loss}, "objective: got a Tensor, want a dataclass"),
        (
            {"objective": lambda model, x, y: Output(x, x, x)},
            r"objective: got a Output whose loss is a float32 tensor of shape \(8, 1, 4, 4\), want .* a 0-dim tensor",
        ),
        ({"objective": lambda model, x, y: Output(x, x, 0.5)}, "objective: got a Output whose loss is 0.5, want"),
        (
            {"objective": lambda model, x, y: Output(x, x, objective(model, x, y).loss.detach())},
            r"objective: got a loss without a gradient, .* detached, made under torch.no_grad\(\)",
        ),
        (
            {"objective": lambda model, x, y: objective(noisy(), x, y)},
            "objective: got a loss of another model, want one of the model that it is called with",
        ),
        ({"validation": Wide(11, 2)}, r"validation: got examples of shape \(1, 4, 6\), want \(1, 4, 4\) as .* train"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(noisy(), **options)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: torch.optim.SGD(noisy().parameters(), 0.1), "optimizer: got one without any of the model's"),
        (lambda model: torch.optim.LBFGS(model.parameters()), "optimizer: got LBFGS, which needs a closure"),
    ],
)
def test_a_step_needs_an_optimizer_of_the_model(optimizer: Any, message: str) -> None:
    model = noisy()
    with pytest.raises(ValueError, match=message):
        companion.training.train_step(model, optimizer(model), torch.rand(8, 16))


def test_where_gradients_are_off_fit_turns_them_on_and_a_step_says_so() -> None:
    model, same = noisy(), noisy()
    with torch.no_grad():
        history = train(model)
        with pytest.raises(ValueError, match="model: got a loss without a gradient, want one"):
            companion.training.train_step(model, torch.optim.SGD(model.parameters(), 0.1), torch.rand(8, 16))
        assert not torch.is_grad_enabled()
    assert history == train(same)
    assert bits(model) == bits(same)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"fit: got a call under torch.inference_mode\(\)"):
        train(noisy())
    with torch.inference_mode():
        made_there = noisy()
    with pytest.raises(ValueError, match=r"model: got one made under torch.inference_mode\(\)"):
        train(made_there)


def test_validation_is_looked_at_before_the_first_step() -> None:
    def never(*_: object) -> Output:
        raise AssertionError("no step is made")

    images = companion.data.load("glyphs", size=20)
    others = companion.data.ImageSet("x", "test", images.images, images.labels, images.classes[::-1])
    with pytest.raises(ValueError, match=r"validation: got the classes 9, 8, .*, want those of train, 0, 1, "):
        fit(noisy(), images, epochs=1, batch_size=8, validation=others, objective=never, **QUIET)


def a_tokenizer() -> nn.Module:
    torch.manual_seed(0)
    encoder, decoder = companion.ResNetEncoder(1, 4, hidden=8), companion.ResNetDecoder(1, 4, hidden=8)
    return companion.VQVAE(encoder, companion.EMAVectorQuantizer(8, 4, init="uniform"), decoder)


@pytest.mark.parametrize(("step", "named"), [(1, "step 1 (epoch 1)"), (3, "step 3 (epoch 2)")])
def test_weights_that_are_not_finite_are_named_with_the_step_also_where_the_quantizer_sees_them(
    step: int, named: str
) -> None:
    """Its own error, which is right where a tensor was given to it, says nothing of training."""
    model, images = a_tokenizer(), companion.data.load("glyphs", size=16)
    if step == 1:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        with pytest.raises(ValueError, match=r"^z: got \d+ NaN"):
            model(images.batch(range(2))[0])

    class Breaking(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            if self.steps == step - 1:
                self.param_groups[0]["params"][0].data.fill_(torch.nan)

    message = re.escape(f"the model's weights or latents are no longer finite at {named}: ")
    with pytest.raises(FloatingPointError, match=message):
        fit(model, images, epochs=3, batch_size=8, optimizer=partial(Breaking, lr=0.1), **QUIET)


def test_a_refusal_that_is_not_about_finite_numbers_stays_as_it_is() -> None:
    def refusing(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        raise ValueError("x: got this, want that")

    with pytest.raises(ValueError, match=r"^x: got this, want that$"):
        train(noisy(), objective=refusing)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_another_type_than_the_images_are_told_with_the_way_out(dtype: torch.dtype) -> None:
    images = companion.data.load("glyphs", size=8)
    message = rf"^model: got weights of {dtype}, want torch.float32 as the examples of train are: model.float\(\)"
    with pytest.raises(ValueError, match=message):
        fit(a_tokenizer().to(dtype), images, epochs=1, batch_size=8, **QUIET)
    fit(a_tokenizer().to(dtype).float(), images, epochs=1, batch_size=8, **QUIET)


def test_what_is_no_model_or_no_examples_is_told_with_what_is_wanted() -> None:
    tensors = torch.utils.data.TensorDataset(torch.rand(8, 16))
    wrong: list[Any] = [tensors, torch.utils.data.DataLoader(tensors), torch.rand(8, 16), [1, 2], None]
    for examples in wrong:
        named = rf"train: got a {type(examples).__name__}, want examples with len\(\) and batch\(indices, device\)"
        with pytest.raises(ValueError, match=named):
            fit(noisy(), examples, epochs=1, **QUIET)
    model: Any
    for model, named in (
        (3, "model: got 3, want a module"),
        (nn.ReLU(), "got a ReLU without a parameter to train"),
    ):
        with pytest.raises(ValueError, match=named):
            fit(model, Digits(53, 1), epochs=1, **QUIET)

    class Loose(Digits):
        def batch(self, indices: Tensor, device: torch.device) -> Any:
            return self.x[indices]

    with pytest.raises(ValueError, match=r"train: its batch\(\) gave a Tensor, want a tuple of tensors"):
        fit(noisy(), Loose(53, 1), epochs=1, batch_size=8, **QUIET)


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path: Path) -> None:
    model, plain = noisy(), noisy()
    numbers = {"epochs": np.int64(3), "batch_size": np.int32(8), "seed": np.uint8(0)}
    assert train(model, run=tmp_path, **numbers) == train(plain, run=tmp_path) == train(noisy())
    assert bits(model) == bits(plain)


def test_processes_that_accelerate_cannot_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)  # made by hand, without a launcher
    with pytest.raises(ValueError, match=r"2 processes, but Accelerate uses cpu and joins 1; start .* torchrun"):
        train(noisy())


# --- history


def history() -> History:
    rows = [
        {"epoch": 1, "step": 6, "loss": 0.25, "mse": 1e-7, "validation_loss": 0.5, "validation_mse": 2.0},
        {"epoch": 2, "step": 12, "loss": 0.125, "mse": 1e-8, "validation_loss": 0.25, "validation_mse": 1.0},
    ]
    return History(rows)


def test_history_as_a_table() -> None:
    assert history().table().splitlines() == [
        "epoch  step   loss    mse  validation_loss  validation_mse",
        "    1     6   0.25  1e-07              0.5               2",
        "    2    12  0.125  1e-08             0.25               1",
    ]
    assert repr(history()) == str(history()) == history().table()
    assert history()._repr_html_().startswith("<table><tr><th>epoch</th><th>step</th>")
    assert history()._repr_html_().count("<tr>") == 3
    first, ruler, second, _ = history()._repr_markdown_().splitlines()
    assert first.count("|") == ruler.count("|") == second.count("|") == 7
    assert History().table() == "epoch  step"
    assert history() == history() != History(history().rows[:1])
    assert history().last["step"] == 12


def test_history_rows_are_plain_numbers_and_last_what_json_can_hold() -> None:
    rows = train(noisy(), epochs=2, validation=Digits(11, 2)).rows
    assert json.loads(json.dumps(rows)) == rows
    assert {type(value) for row in rows for value in row.values()} == {int, float}
    assert all(a["step"] < b["step"] for a, b in pairwise(rows))


def test_history_plots_training_and_validation() -> None:
    figure = history().plot("mse")
    (axes,) = figure.axes
    training, validation = axes.lines
    assert axes.get_title() == "mse by epoch: training 1e-07 → 1e-08, validation 2 → 1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "mse")
    assert validation.get_ydata().tolist() == [2.0, 1.0]
    assert training.get_linestyle() != validation.get_linestyle()  # told apart in grey too
    assert training.get_marker() != validation.get_marker()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    with pytest.raises(ValueError, match="term: got 'kl', want one of loss, mse"):
        history().plot("kl")
    lacking = History([*history().rows, {"epoch": 3, "step": 18, "loss": 0.1}])
    assert [len(line.get_xdata()) for line in lacking.plot().axes[0].lines] == [3]
    with pytest.raises(ValueError, match=r"term: got 'mse', want one of loss$"):
        lacking.plot("mse")
    with pytest.raises(ValueError, match="term: got 'loss', want one of none, as the rows have no term"):
        History([{"epoch": 1, "step": 6}]).plot()
    assert History().plot().axes[0].get_title() == "Stopped before the first step was done"


def test_the_bar_moves_when_tqdm_lets_it_and_not_with_every_new_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []

    class Rare(tqdm.auto.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, mininterval=1e9)

        def display(self, *_: Any, **__: Any) -> None:
            moves.append(self.postfix or "")

    class Eager(Rare):  # the wrong version
        def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
            super().set_postfix_str(s)

    monkeypatch.setattr(companion.training._Means, "due", True)
    counts = []
    for bar in (Rare, Eager):
        monkeypatch.setattr(tqdm.auto, "tqdm", bar)
        train(noisy(), epochs=2, progress=True)  # 12 steps
        counts.append(len(moves))
        assert moves[-1].startswith("epoch 2, loss ")
        moves.clear()
    assert counts == [4, 4 + 12]  # at both ends, and after each epoch


def test_progress_shows_every_step_and_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    train(noisy(), epochs=1, progress=True)
    assert "6/6" in capsys.readouterr().err
    train(noisy(), epochs=1)
    assert capsys.readouterr() == ("", "")

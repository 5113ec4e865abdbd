"""The steps of ``fit``, what it logs, and what it says where training cannot go on."""

import copy
import json
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm.auto
from torch import Tensor, nn
from training_runs import QUIET, noisy, tokenizer, train
from workers.fit_worker import Digits, Output, bits, objective

import companion
import companion.training
from companion.training import fit
from companion.training.randomness import epoch_order

pytestmark = pytest.mark.cpu_only("compares to the bit with training on the CPU")


def test_fit_is_the_loop_of_chapter_1() -> None:
    model, data = noisy(0.0), Digits(53, 1)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    losses: list[list[float]] = []
    for epoch in range(3):
        order = epoch_order(53, 0, epoch)
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
    orders = {tuple(epoch_order(9, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16
    assert all(sorted(order) == list(range(9)) for order in orders)


def test_validation_is_the_mean_over_all_examples_and_not_over_batches() -> None:
    validation = Digits(11, 2)  # batches of 8 and 3
    model = noisy(0.0)
    row = train(model, epochs=1, validation=validation).rows[0]
    with torch.no_grad():
        by_example = [objective(model, x[None], y[None]) for x, y in zip(validation.x, validation.y, strict=True)]
        wrong = [objective(model, validation.x[s], validation.y[s]) for s in (slice(8), slice(8, 11))]
    for name in ("loss", "mean_abs"):
        right = sum(getattr(e, name).item() for e in by_example) / 11
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


def test_history_rows_are_plain_numbers_and_last_what_json_can_hold() -> None:
    rows = train(noisy(), epochs=2, validation=Digits(11, 2)).rows
    assert json.loads(json.dumps(rows)) == rows
    assert {type(value) for row in rows for value in row.values()} == {int, float}
    assert all(a["step"] < b["step"] for a, b in pairwise(rows))


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

    monkeypatch.setattr(companion.training.means.Means, "due", True)
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


@pytest.mark.parametrize(("step", "named"), [(1, "step 1 (epoch 1)"), (3, "step 3 (epoch 2)")])
def test_weights_that_are_not_finite_are_named_with_the_step_also_where_the_quantizer_sees_them(
    step: int, named: str
) -> None:
    """Its own error, which is right where a tensor was given to it, says nothing of training."""
    model, images = tokenizer(), companion.data.load("glyphs", size=16)
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
def test_weights_of_another_type_than_the_images_are_refused_with_the_remedy(dtype: torch.dtype) -> None:
    images = companion.data.load("glyphs", size=8)
    message = rf"^model: got weights of {dtype}, want torch.float32 as the examples of train are: model.float\(\)"
    with pytest.raises(ValueError, match=message):
        fit(tokenizer().to(dtype), images, epochs=1, batch_size=8, **QUIET)
    fit(tokenizer().to(dtype).float(), images, epochs=1, batch_size=8, **QUIET)

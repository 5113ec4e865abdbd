"""A run that goes on: to the same history, and only with the same settings."""

import importlib.util
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import QUIET, interrupting, noisy, press, train
from workers.fit_worker import Digits, Output, bits, objective

import companion
import companion.training
from companion.training import History, fit
from companion.training.details import details, differing_details
from companion.training.resume import fingerprint

pytestmark = pytest.mark.cpu_only("the same to the bit after a stop")


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
    prints = {fingerprint(one) for one in (data, other, Digits(2001, 1), Digits(2000, 2))}
    assert len(prints) == 4
    assert fingerprint(Digits(2000, 1)) == fingerprint(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_the_first_version_goes_on_and_says_what_was_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path, epochs=2)
    for path in tmp_path.glob("state*"):
        state = torch.load(path)
        for later in ("origin", "details"):  # as they used to be
            state.pop(later, None)
        torch.save(state, path)
    longer, whole = noisy(seed=9), noisy()
    capsys.readouterr()
    assert train(longer, run=tmp_path) == train(whole)
    assert "an earlier version began it and noted no configuration" in capsys.readouterr().out
    assert bits(longer) == bits(whole)
    assert history.rows == train(noisy()).rows[:2]
    for path in tmp_path.glob("state*"):
        state = torch.load(path)
        for later in ("origin", "details"):  # as they used to be
            state.pop(later, None)
        torch.save(state, path)
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 here\n  optimizer: Adam .* there, Adam .* here\nUse"):
        train(noisy(), run=tmp_path, seed=1, lr=0.5)


def test_a_state_has_the_names_that_runs_begun_before_have(tmp_path: Path) -> None:
    fit(noisy(), Digits(53, 1), epochs=1, batch_size=8, run=tmp_path, **QUIET)
    state = torch.load(max(tmp_path.glob("state*")))
    parts = {"step", "rows", "model", "optimizer", "scaler", "processes", "settings", "origin", "details"}
    assert state.keys() == parts
    assert list(state["details"]) == ["parts", "attributes", "parameters", "objective", "augment", "own modes"]
    assert [process.keys() for process in state["processes"]] == [{"means", "random"}]
    assert state["processes"][0]["means"].keys() == {"sums", "weight", "code_counts"}
    numbers = ["seed", "batch_size", "precision", "processes", "device", "len(train)", "len(validation)", "optimizer"]
    assert [name for name in state["settings"] if not name.startswith("tensor ")] == numbers
    names = [name for name in state["origin"] if not name.startswith("optimizer.")]
    assert names == ["model", "objective", "optimizer", "train", "validation"]
    assert state["origin"]["objective"] == "_the_models_own"  # the function's name when the first states were written


def test_a_run_is_not_gone_on_with_where_other_parameters_are_frozen(tmp_path: Path) -> None:
    def run(frozen: str, *, drop_details: bool = False) -> History:
        model = stack()
        model.get_submodule(frozen).requires_grad_(False)
        before = bits(model)
        if drop_details:  # as states of the second version are
            for path in tmp_path.glob("state*"):
                state = torch.load(path)
                state.pop("details")
                torch.save(state, path)
        try:
            return fit(model, Digits(53, 1), epochs=1, batch_size=8, run=tmp_path, **QUIET)
        except ValueError:
            assert bits(model) == before  # nothing was restored into it
            raise

    history = run("decoder")
    with pytest.raises(ValueError, match="other settings") as caught:
        run("encoder")
    assert "  parameter encoder.layers.0.weight: trained there, frozen here" in str(caught.value).splitlines()
    assert run("decoder") == history
    with pytest.raises(ValueError, match=r"run: the state is of an optimizer that does not fit: were other parameters"):
        run("quantizer", drop_details=True)
    assert run("decoder") == history  # a state of the second version goes on


def weighted(model: nn.Module, x: Tensor, y: Tensor, *, beta: float = 0.0) -> Output:
    out: Output = model(x, y)
    return Output(out.reconstruction, out.mean_abs, out.loss + beta * out.mean_abs)


def test_a_run_is_not_gone_on_with_where_the_objective_or_a_layer_does_something_else(tmp_path: Path) -> None:
    history = train(noisy(), run=tmp_path, epochs=1, objective=partial(weighted, beta=1.0))
    assert train(noisy(), run=tmp_path, epochs=1, objective=partial(weighted, beta=1.0)) == history
    with pytest.raises(ValueError, match=r"\n  objective\.beta: 1\.0 there, 100\.0 here\nUse"):
        train(noisy(), run=tmp_path, epochs=1, objective=partial(weighted, beta=100.0))
    other = noisy()
    other.layers[2].p = 0.9
    with pytest.raises(ValueError, match=r"\n  model\.layers\.2\.p: 0\.1 there, 0\.9 here\nUse"):
        train(other, run=tmp_path, epochs=1, objective=partial(weighted, beta=1.0))
    other = noisy()
    other.layers[1] = nn.ReLU()
    with pytest.raises(ValueError, match=r"\n  model\.layers\.1: Tanh there, ReLU here\nUse"):
        train(other, run=tmp_path, epochs=1, objective=partial(weighted, beta=1.0))


def test_the_code_of_an_objective_is_compared_and_not_its_text() -> None:
    def defined(text: str) -> Any:
        names: dict[str, Any] = {}
        exec(text, names)  # two functions of one name, as a notebook makes them
        return details(nn.Linear(1, 1), names["objective"])["objective"]

    one = defined("def objective(model, x):\n    return model(x)")
    assert one == defined("\n\ndef objective(model, x):\n    'A text.'\n\n    # why\n    return model(x)")
    assert one != defined("def objective(model, x):\n    return model(2 * x)")
    assert one != defined("def objective(model, x):\n    return model.half(x)")
    assert one.keys() == defined("def objective(model, x):\n    return model(2 * x)").keys()
    ((name, value),) = one.items()
    there = {"objective": {name.replace(importlib.util.MAGIC_NUMBER.hex(), "another"): "of another Python"}}
    assert differing_details(there, {"objective": one}) == []
    assert differing_details({"objective": {name: "other"}}, {"objective": one}) == [(name, "other", value)]


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


class Scaled:
    """An objective with a setting, and with a counter that is none."""

    def __init__(self, beta: float) -> None:
        self.beta, self.calls = beta, 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Output:
        self.calls += 1
        return weighted(model, x, y, beta=self.beta)

    def method(self, model: nn.Module, x: Tensor, y: Tensor) -> Output:
        return self(model, x, y)


def closed_over(beta: float) -> Any:
    calls = 0

    def inside(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        nonlocal calls
        calls += 1
        return weighted(model, x, y, beta=beta)

    return inside


def by_default(beta: float) -> Any:
    def inside(model: nn.Module, x: Tensor, y: Tensor, beta: float = beta) -> Output:
        return weighted(model, x, y, beta=beta)

    return inside


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (closed_over, "objective: beta around it"),
        (by_default, "objective: default of beta"),
        (Scaled, r"objective\.beta"),
        (lambda beta: Scaled(beta).method, r"objective\.beta"),
    ],
)
def test_settings_of_an_objective_are_compared_wherever_it_keeps_them(tmp_path: Path, make: Any, named: str) -> None:
    one = make(1.0)
    history = train(noisy(), run=tmp_path, epochs=1, objective=one)
    assert train(noisy(), run=tmp_path, epochs=1, objective=make(1.0)) == history
    assert train(noisy(), run=tmp_path, epochs=1, objective=one) == history  # what it counted is no setting
    with pytest.raises(ValueError, match=rf"other settings:\n  {named}: 1\.0 there, 100\.0 here\nUse"):
        train(noisy(), run=tmp_path, epochs=1, objective=make(100.0))
    for path in tmp_path.glob("state*"):  # as an earlier version wrote it
        state = torch.load(path)
        state["details"] = {group: state["details"][group] for group in ("parts", "attributes", "parameters")}
        torch.save(state, path)
    assert train(noisy(), run=tmp_path, epochs=1, objective=make(100.0)) == history


def fading(strength: float) -> Any:
    return lambda x: x * strength


@pytest.mark.parametrize(
    ("first", "other", "named"),
    [
        (fading(0.5), fading(0.25), "augment: strength around it: 0.5 there, 0.25 here"),
        (partial(torch.mul, other=0.5), partial(torch.mul, other=0.25), r"augment\.other: 0.5 there, 0.25 here"),
        (lambda x: x * 0.5, lambda x: x * 0.25, "augment: the code of .*"),
    ],
)
def test_settings_and_code_of_an_augment_are_compared(tmp_path: Path, first: Any, other: Any, named: str) -> None:
    history = train(noisy(), run=tmp_path, epochs=1, augment=first)
    assert train(noisy(), run=tmp_path, epochs=1, augment=first) == history
    with pytest.raises(ValueError, match=rf"other settings:\n  {named}\nUse"):
        train(noisy(), run=tmp_path, epochs=1, augment=other)

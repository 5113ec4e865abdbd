"""Wrong arguments of ``fit`` and ``train_step``."""

import math
import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import QUIET, noisy, tokenizer, train
from workers.fit_worker import Digits, Output, bits, objective

import companion
import companion.training
from companion.training import fit
from companion.training.details import differing_details, parts_kept_in_eval

pytestmark = pytest.mark.cpu_only("names the CPU as its device")


class Wide(Digits):
    """Images of another shape than those of Digits."""

    def __init__(self, n: int, seed: int) -> None:
        super().__init__(n, seed)
        self.x = torch.rand(n, 1, 4, 6)


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
        ({"device": "xla"}, "device: got 'xla', want a device, such as"),
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
        (
            {"optimizer": partial(torch.optim.Adam, lr="3e-4")},
            r"optimizer: called with .* parameters: .*\(got lr='3e-4', a string\)",
        ),
        ({"optimizer": lambda: None}, "optimizer: called with the list of the model's parameters"),
        (
            {"objective": lambda model, x: model(x)},
            "objective: got one that cannot be called .* the 2 tensors .* of train",
        ),
        ({"validation": [1, 2]}, "validation: got a list, want an ImageSet, a CodeSet, a data set"),
        ({"validation": 3}, "validation: got a int, want an ImageSet, a CodeSet, a data set"),
        ({"validation": Digits(0, 1)}, "validation: got no examples"),
        ({"objective": lambda model, x, y: model(x).loss}, "objective: it gave a Tensor, want a dataclass"),
        (
            {"objective": lambda model, x, y: Output(x, x, x)},
            r"objective: it gave a Output whose loss is a float32 tensor of shape \(8, 1, 4, 4\), want .* 0-dim",
        ),
        ({"objective": lambda model, x, y: Output(x, x, 0.5)}, "objective: it gave a Output whose loss is 0.5, want"),
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
        with pytest.raises(ValueError, match="model: got it in eval mode"):  # as fit leaves it
            companion.training.train_step(model, torch.optim.SGD(model.parameters(), 0.1), torch.rand(8, 16))
        fresh = noisy()
        with pytest.raises(ValueError, match="model: got a loss without a gradient, want one"):
            companion.training.train_step(fresh, torch.optim.SGD(fresh.parameters(), 0.1), torch.rand(8, 16))
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


def test_what_is_no_model_or_no_examples_is_refused_with_what_is_wanted() -> None:
    wrong: list[Any] = [torch.rand(8, 16), [1, 2], {"x": torch.rand(8, 16)}, None]
    for examples in wrong:
        named = rf"train: got a {type(examples).__name__}, want .*TensorDataset .* len\(\) and batch\(indices, device\)"
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "meta"}, "device: got meta"),
        ({"device": ""}, "device: got ''"),
        ({"optimizer": lambda p: torch.optim.Adam(p.parameters())}, "optimizer: called with the list"),
        ({"optimizer": lambda p: torch.optim.Adam(p, maximize=True)}, "optimizer: got maximize=True"),
        (
            {"optimizer": lambda p: torch.optim.Adam([*p, torch.nn.Parameter(torch.ones(1))])},
            "optimizer: got 1 parameters that are not the model's",
        ),
    ],
)
def test_an_optimizer_or_a_device_that_cannot_train_this_model_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        train(noisy(), **options)


def test_a_rate_beside_an_optimizer_and_swapped_splits_are_said() -> None:
    images = companion.data.load("glyphs", size=20)
    swapped = {"train": replace(images, split="test"), "validation": images}
    model = companion.Autoencoder(companion.Encoder(2), companion.Decoder(2))
    with pytest.warns(UserWarning, match="are they swapped"):
        fit(model, swapped["train"], validation=swapped["validation"], epochs=1, batch_size=10, progress=False)
    with pytest.warns(UserWarning, match="lr: got 0.5 beside an optimizer"):
        history = fit(model, images, epochs=1, batch_size=10, lr=0.5, optimizer=torch.optim.Adam, progress=False)
    assert math.isfinite(history.last["loss"])


def test_what_learns_nothing_is_said() -> None:
    images = companion.data.load("glyphs", size=20)

    class Detached(companion.Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model = companion.Autoencoder(Detached(2), companion.Decoder(2))
    encoders = sum(1 for _ in model.encoder.parameters())
    with pytest.warns(UserWarning, match=f"model: no gradient reached {encoders} of its parameters"):
        fit(model, images, epochs=2, batch_size=10, progress=False)
    still = companion.Autoencoder(companion.Encoder(2), companion.Decoder(2))
    with pytest.warns(UserWarning, match="optimizer: its lr is 0 in every group") as told:
        fit(still, images, epochs=1, batch_size=10, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), progress=False)
    assert len(told) == 1


class Longer(Digits):
    def __len__(self) -> int:
        return 1000


def test_examples_that_say_they_are_more_than_they_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train: its len\(\) is 1000, but its batch\(\) has no example"):
        fit(noisy(), Longer(53, 1), epochs=1, batch_size=500, **QUIET)


def batch_norm() -> nn.Module:
    encoder = nn.Sequential(nn.Conv2d(1, 2, 4), nn.BatchNorm2d(2), nn.Flatten())
    return companion.Autoencoder(encoder, nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4))))


def test_a_part_in_eval_mode_is_kept_so_and_named_and_a_model_in_eval_mode_is_trained_as_a_whole() -> None:
    model = batch_norm()
    model.encoder.eval()
    with pytest.warns(UserWarning, match=r"model: got encoder in eval mode inside a model in training mode: kept so"):
        fit(model, Digits(53, 1), epochs=2, batch_size=8, validation=Digits(11, 2), **QUIET)
    assert model.encoder[1].num_batches_tracked == 0
    assert not any(module.training for module in model.modules())  # as after each call
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, Digits(53, 1), epochs=2, batch_size=8, **QUIET)
    assert model.encoder[1].num_batches_tracked == 12
    tokens = tokenizer()
    tokens.quantizer.eval()
    before = tokens.quantizer.codebook.clone()
    with pytest.warns(UserWarning, match=r"model: got quantizer in eval mode"):
        fit(tokens, Squares(16), epochs=1, batch_size=8, **QUIET)
    assert torch.equal(tokens.quantizer.codebook, before)


class Squares(Digits):
    def __init__(self, n: int, seed: int = 1) -> None:
        super().__init__(n, seed)
        self.x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def images(split: str, n: int = 20, seed: int = 0) -> companion.data.ImageSet:
    bytes_ = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return companion.data.ImageSet("some", split, bytes_, torch.arange(n) % 2, ("a", "b"))


def test_validation_on_the_training_examples_is_said() -> None:
    train_set, options = images("train"), {"epochs": 1, "batch_size": 4, **QUIET}
    for validation, share in ((train_set, "100%"), (images("train"), "100%"), (train_set.subset(5), "100%")):
        with pytest.warns(UserWarning, match=f"validation: got examples of which {share} are in train"):
            fit(small_auto(), train_set, validation=validation, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (images("train", seed=1), images("test", seed=2)):
            assert "validation_loss" in fit(small_auto(), train_set, validation=other, **options).last


def small_auto() -> companion.Autoencoder:
    return companion.Autoencoder(
        companion.Encoder(2, hidden=2, image_size=4), companion.Decoder(2, hidden=2, image_size=4)
    )


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train(noisy(), run="~/run", epochs=1)
    assert list((tmp_path / "run").glob("state*"))
    companion.save(small_auto(), "~/model.safetensors")
    assert isinstance(companion.load("~/model.safetensors"), companion.Autoencoder)
    assert (tmp_path / "model.safetensors").is_file()
    codes = companion.CodeSet(torch.zeros(2, 1, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 2, "abc")
    codes.save("~/new/codes.safetensors")  # the folder is made, as companion.save makes it
    assert companion.CodeSet.load(tmp_path / "new" / "codes.safetensors").tokenizer == "abc"
    if os.name == "posix":  # elsewhere the folders of users lie side by side, whether there is such a user or not
        with pytest.raises(ValueError, match=r"path: got '~nobody-of-that-name/m', want a path that there is"):
            companion.load("~nobody-of-that-name/m")


def test_a_prior_is_not_fitted_to_images() -> None:
    images = companion.data.load("glyphs", "train", size=8)
    prior = companion.TransformerPrior(4, (2, 2), dim=8, layers=1, heads=2)
    with pytest.raises(ValueError, match="train: got an ImageSet, want a CodeSet"):
        companion.fit(prior, images, epochs=1, batch_size=4, lr=1e-3, progress=False)


def test_a_prior_keeps_its_tokenizer_where_nothing_was_learnt() -> None:
    codes = companion.CodeSet(torch.arange(32).reshape(8, 2, 2) % 4, torch.zeros(8, dtype=torch.int64), 4, "abc")
    prior = companion.TransformerPrior(4, (2, 2), dim=4, layers=1, heads=2)

    def bad(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        raise ValueError("no optimizer today")

    with pytest.raises(ValueError, match="no optimizer today"):
        fit(prior, codes, epochs=1, batch_size=4, optimizer=bad, **QUIET)
    assert prior.tokenizer == ""

    def stops(model: nn.Module, codes: Tensor, labels: Tensor) -> Any:
        raise ValueError("no step today")

    with pytest.raises(ValueError, match="no step today"):
        fit(prior, codes, epochs=1, batch_size=4, objective=stops, **QUIET)
    assert prior.tokenizer == ""
    fit(prior, codes, epochs=1, batch_size=4, **QUIET)
    assert prior.tokenizer == "abc"


def test_a_module_that_does_not_take_the_examples_is_named() -> None:
    says = r"model: does not take a batch of train of shape \(8, 1, 4, 4\) \(.*mat1 and mat2 shapes"
    with pytest.raises(ValueError, match=says):
        fit(nn.Linear(2, 2), Digits(53, 1), epochs=1, batch_size=8, **QUIET)


def test_a_term_that_was_not_logged_is_answered_with_those_that_were() -> None:
    history = train(noisy(), epochs=1)
    assert history.last == history.rows[-1]
    with pytest.raises(KeyError, match=r"'validation_loss' was not logged: fit had no validation=…; there are epoch"):
        history.last["validation_loss"]
    with pytest.raises(KeyError, match=r"'los' was not logged; there are epoch, step, loss, mean_abs"):
        history.last["los"]


class Frozen(nn.Module):
    """Holds a part in eval mode by itself, as a ``FeatureDistance`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.part.eval()
        return self


def test_a_part_that_a_model_itself_keeps_in_eval_mode_is_not_warned_of(tmp_path: Path) -> None:
    model = batch_norm()
    model.fixed = Frozen().train()
    assert not model.fixed.part.training
    options: dict[str, Any] = {"batch_size": 8, "run": tmp_path, **QUIET}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = fit(model, Digits(53, 1), epochs=1, **options)
        longer = fit(model, Digits(53, 1), epochs=2, **options)  # now in eval mode itself, which is no difference
    assert longer.rows[0] == first.rows[0]
    assert list(parts_kept_in_eval(model.train())) == []
    model.encoder.eval()
    assert next(iter(parts_kept_in_eval(model))) == "encoder"
    there = {"parts": {"mode of model.fixed.part": "eval"}}  # as earlier versions noted it
    now = {"parts": {}, "own modes": {"mode of model.fixed.part": "eval"}}
    assert differing_details(there, now) == []
    assert len(differing_details(there, {"parts": {}})) == 1


def test_parameters_that_the_optimizer_leaves_out_are_said() -> None:
    def decoders(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.decoder.parameters())

    model = batch_norm()
    says = r"optimizer: got none of 4 parameters that learn \(encoder.0.weight, encoder.0.bias, encoder.1.weight, …\)"
    with pytest.warns(UserWarning, match=says):
        fit(model, Digits(53, 1), epochs=2, batch_size=8, optimizer=decoders, **QUIET)
    model.encoder.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(model, Digits(53, 1), epochs=1, batch_size=8, optimizer=decoders, **QUIET)
    assert math.isfinite(history.last["loss"])


def test_validation_examples_that_are_in_train_are_found_whatever_the_sets_are_called() -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4, **QUIET}
    renamed = replace(images("train"), name="other", split="test")
    with pytest.warns(UserWarning, match="validation: got examples of which 100% are in train"):
        fit(small_auto(), images("train"), validation=renamed, **options)

    def codes(n: int, num_codes: int, seed: int = 0) -> companion.CodeSet:
        drawn = torch.randint(0, num_codes, (n, 2, 2), generator=torch.Generator().manual_seed(seed))
        return companion.CodeSet(drawn, torch.zeros(n, dtype=torch.int64), num_codes, "abc")

    def prior(num_codes: int) -> companion.TransformerPrior:
        return companion.TransformerPrior(num_codes, (2, 2), dim=4, layers=1, heads=2)

    same = codes(100, 64)
    with pytest.warns(UserWarning, match="validation: got examples of which 100% are in train"):
        fit(prior(64), codes(100, 64), validation=replace(same, codes=same.codes.flip(0)), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(prior(64), codes(100, 64), validation=codes(50, 64, seed=1), **options)
        few = fit(prior(2), codes(100, 2), validation=codes(50, 2, seed=1), **options)  # there are 16 tables in all
    assert "validation_loss" in few.last


def evaluating_objective(model: nn.Module, x: Tensor, y: Tensor) -> Output:
    model.eval()
    return objective(model, x, y)


def test_an_objective_that_changes_the_mode_is_said() -> None:
    with pytest.warns(
        UserWarning, match="objective: changed the mode of the model, layers, .* on a batch of train"
    ) as told:
        train(noisy(), objective=evaluating_objective)
    assert sum("changed the mode" in str(one.message) for one in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="objective")
        assert math.isfinite(train(noisy()).last["loss"])


@pytest.mark.parametrize("how", ["backward", "backward and zero_grad", "step", "step and zero_grad"])
def test_an_objective_that_makes_the_gradients_itself_is_refused(how: str) -> None:
    made = noisy()
    optimizer = torch.optim.SGD(made.parameters(), 0.1)

    def all_of_it(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        out = objective(model, x, y)
        out.loss.backward()
        if "step" in how:
            optimizer.step()
        if "zero_grad" in how:
            optimizer.zero_grad()
        return out

    with pytest.raises(ValueError, match=r"objective: called backward\(\) itself, or made a step of an optimizer"):
        train(made, objective=all_of_it)


def test_a_loss_that_goes_on_from_an_earlier_batch_is_refused() -> None:
    running: Any = 0

    def summed(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        nonlocal running
        out = objective(model, x, y)
        running = running + out.loss
        return Output(out.reconstruction, out.mean_abs, running)

    with pytest.raises(ValueError, match="objective: got a loss that depends on an earlier batch, want one of this"):
        train(noisy(), objective=summed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda model, x, y: model(x, y, 3), "TypeError .*positional arguments"),
        (lambda model, x, y: x[:, 7], "IndexError .*out of bounds"),
    ],
)
def test_an_error_inside_an_objective_names_it_and_the_batch(wrong: Any, says: str) -> None:
    batch = r"objective: a batch of train of shape \(8, 1, 4, 4\), \(8,\) led to an? "
    with pytest.raises(ValueError, match=batch + says):
        train(noisy(), objective=wrong)

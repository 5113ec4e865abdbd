"""``fit`` on data sets and loaders of torch: the same batches, and exact where a run goes on."""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from training_runs import QUIET, interrupting, noisy, press
from workers.fit_worker import Digits, bits, objective

from companion import CodeSet, TransformerPrior
from companion.training import History, WarmupCosine, fit
from companion.training.datasets import FromDataset

pytestmark = pytest.mark.cpu_only("compares to the bit with training on the CPU")

OPTIONS: dict[str, Any] = {"epochs": 2, "lr": 0.01, "objective": objective, **QUIET}


def digits(n: int = 53, seed: int = 1) -> TensorDataset:
    data = Digits(n, seed)
    return TensorDataset(data.x, data.y)


class Drawing(Dataset[Any]):
    """Items that draw by chance from each of the three global generators."""

    def __len__(self) -> int:
        return 53

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        by_numpy = float(np.random.rand())  # noqa: NPY002
        drawn = torch.rand(1, 4, 4) + by_numpy + random.random()
        return drawn / 3 + index / 53, index % 10


def test_a_data_set_and_a_loader_give_the_batches_of_the_examples_in_memory() -> None:
    want, data, loaded = noisy(), noisy(), noisy()
    history = fit(want, Digits(53, 1), batch_size=8, validation=Digits(11, 2), **OPTIONS)
    assert fit(data, digits(), batch_size=8, validation=digits(11, 2), **OPTIONS) == history
    loader, validation = DataLoader(digits(), batch_size=8, shuffle=True), DataLoader(digits(11, 2), batch_size=3)
    assert fit(loaded, loader, validation=validation, **OPTIONS) == history
    assert bits(want) == bits(data) == bits(loaded)


def test_worker_processes_read_what_one_process_reads() -> None:
    models = [noisy() for _ in range(3)]
    loaders = [DataLoader(Drawing(), batch_size=8, num_workers=workers) for workers in (0, 1, 2)]
    histories = [fit(model, one, accumulate=2, **OPTIONS) for model, one in zip(models, loaders, strict=True)]
    assert histories[0] == histories[1] == histories[2]
    assert len({bits(model) for model in models}) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_items_drawn_by_chance_goes_on_to_the_bit(tmp_path: Path, workers: int) -> None:
    def run(model: nn.Module, **options: Any) -> History:
        loader = DataLoader(Drawing(), batch_size=8, num_workers=workers)
        settings = {"validation": digits(11, 2), "schedule": WarmupCosine(), "accumulate": 2} | OPTIONS | options
        return fit(model, loader, **settings)

    whole, stopped = noisy(), noisy()
    history = run(whole)
    for step in (3, 6, 11):
        run(stopped, run=tmp_path, objective=interrupting(2 * step - 1, press))
        stopped = noisy(seed=9)
    assert run(stopped, run=tmp_path) == history
    assert bits(stopped) == bits(whole)


def test_reading_leaves_the_callers_generators_and_those_of_training_alone() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    data = FromDataset("train", Drawing())
    batches = torch.arange(8).split(4)
    data.expect(batches, 3, 4)
    one, two = (data.batch(indices, torch.device("cpu"))[0] for indices in batches)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before
    data.expect(batches[1:], 3, 4, first=1)
    assert torch.equal(data.batch(batches[1], torch.device("cpu"))[0], two)
    data.expect(batches, 3, 5)
    assert not torch.equal(data.batch(batches[0], torch.device("cpu"))[0], one)
    unasked = data.batch(batches[0], torch.device("cpu"))[0]  # another than the expected one: read at once
    assert unasked.shape == (4, 1, 4, 4)


def test_a_batch_that_comes_out_of_order_is_the_right_one() -> None:
    data = FromDataset("train", digits())
    batches = torch.arange(16).split(4)
    data.expect(batches, 0)
    for number in (0, 2, 1, 3):
        x, y = data.batch(batches[number], torch.device("cpu"))
        assert torch.equal(x, Digits(53, 1).x[batches[number]])
        assert y.tolist() == [i % 10 for i in batches[number].tolist()]


def test_items_may_be_single_tensors_and_codes_with_labels() -> None:
    class Images(Dataset[Tensor]):
        def __len__(self) -> int:
            return 53

        def __getitem__(self, index: int) -> Tensor:
            return Digits(53, 1).x[index]

    whole, single = noisy(0.0), noisy(0.0)
    options = {"epochs": 1, "batch_size": 8, **QUIET}
    assert fit(single, Images(), **options) == fit(whole, Digits(53, 1), **options)
    codes, labels = torch.randint(0, 5, (12, 2, 2)), torch.arange(12) % 3
    histories = []
    for examples in (CodeSet(codes, labels, 5, "a" * 12), TensorDataset(codes, labels)):
        torch.manual_seed(0)
        prior = TransformerPrior(5, (2, 2), dim=4, layers=1, heads=2, num_classes=3)
        histories.append(fit(prior, examples, epochs=2, batch_size=4, **QUIET))
    assert histories[0] == histories[1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(digits())


class Pictures(Dataset[Any]):
    """As a folder of pictures without a transform; or of what else is given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return 53

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)], 3


class Rows(Dataset[Any]):
    """As a data set of Hugging Face: its items are dicts, and its ``batch`` is another."""

    __module__ = "datasets.arrow_dataset"

    def __len__(self) -> int:
        return 53

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Digits(53, 1).x[index], "label": index % 10}

    def batch(self, batch_size: int, drop_last_batch: bool = False) -> "Rows":
        return self


def as_pairs(items: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return torch.stack([item["image"] for item in items]), torch.tensor([item["label"] for item in items])


def test_items_that_are_dicts_need_a_collate_fn() -> None:
    with pytest.raises(
        ValueError, match="train: its batches are 'dict', want a tensor or a tuple of them: a DataLoader"
    ):
        fit(noisy(), Rows(), batch_size=8, **OPTIONS)
    history = fit(noisy(), DataLoader(Rows(), batch_size=8, collate_fn=as_pairs), **OPTIONS)
    assert history == fit(noisy(), Digits(53, 1), batch_size=8, **OPTIONS)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (Stream(), {}, "train: got a Stream, which has an order of its own, want a data set with len"),
        (DataLoader(Stream(), batch_size=8), {}, "train: got a Stream, which has an order of its own"),
        (
            DataLoader(digits(), batch_size=8, sampler=WeightedRandomSampler([1.0] * 53, 53)),
            {},
            r"train: got a DataLoader with an order of its own \(WeightedRandomSampler, BatchSampler\), want one with",
        ),
        (
            DataLoader(digits(), batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 53, 53), 8, False)),
            {},
            "train: got a DataLoader with an order of its own",
        ),
        (DataLoader(digits(), batch_size=None), {}, "train: got a DataLoader with an order of its own"),
        (
            DataLoader(digits(), batch_size=8, sampler=RandomSampler(digits(), replacement=True)),
            {},
            r"train: got a DataLoader with an order of its own \(RandomSampler",
        ),
        (
            DataLoader(digits(), batch_size=8, sampler=RandomSampler(digits(), num_samples=20)),
            {},
            "train: got a DataLoader with an order of its own",
        ),
        (DataLoader(digits(), batch_size=8), {"batch_size": 16}, "batch_size: got 16, want the 8 of the DataLoader"),
        (digits(), {"batch_size": 0}, "batch_size: got 0, want a whole number from 1"),
        (digits(), {}, "batch_size: got 128, want at most the 53 examples of train"),
        (DataLoader(digits(3)), {"batch_size": 32}, "batch_size: got 32, want the 1 of the DataLoader"),
        (digits(), {"batch_size": 8, "validation": Stream()}, "validation: got a Stream, which has an order"),
        (Pictures(object()), {"batch_size": 8}, r"train: its items cannot be put into one batch \(default_collate: .*"),
        (
            Pictures(torch.rand(2), torch.rand(3)),
            {"batch_size": 8},
            "train: its items cannot be put into one batch .*, want tensors of equal shapes, which torchvision",
        ),
        (
            DataLoader(digits(), batch_size=8, collate_fn=lambda items: {"x": items}),
            {},
            "train: its batches are 'dict', want a tensor or a tuple of them",
        ),
    ],
)
def test_what_cannot_be_read_in_any_order_is_refused_with_a_way_out(
    examples: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(noisy(), examples, **(OPTIONS | options))


def test_another_data_set_of_the_same_length_is_not_gone_on_with(tmp_path: Path) -> None:
    fit(noisy(), digits(), batch_size=8, run=tmp_path, **(OPTIONS | {"epochs": 1}))
    with pytest.raises(ValueError, match=r"other settings:\n  train: [0-9a-f]{12} there, [0-9a-f]{12} here\nUse"):
        fit(noisy(), digits(53, 2), batch_size=8, run=tmp_path, **OPTIONS)
    history = fit(noisy(), Subset(digits(), range(53)), batch_size=8, run=tmp_path, **OPTIONS)
    assert len(history.rows) == 2


def test_validation_on_the_training_data_set_is_said() -> None:
    data = digits()
    with pytest.warns(UserWarning, match="validation: got examples of which 100% are in train"):
        fit(noisy(), DataLoader(data, batch_size=8, shuffle=True), validation=DataLoader(data), **OPTIONS)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="validation")
        assert "validation_loss" in fit(noisy(), data, batch_size=8, validation=digits(11, 2), **OPTIONS).last

"""Batches from any map-style data set of torch, and from a ``DataLoader`` around one."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from companion._arguments import brief, check_size
from companion.training.randomness import fresh_random_state, random_state_kept, seed_from, set_random_state

BATCH_SIZE = 128  # by default
CPU = torch.device("cpu")


def as_examples(name: str, given: Any) -> Any:
    """What ``fit`` got as ``name``: itself if it gives batches, and else batches of the items of a data set.

    Of a ``DataLoader`` its data set and how that is read: collate_fn, num_workers, pin_memory, prefetch_factor,
    worker_init_fn, timeout and multiprocessing_context. The order is ``fit``'s own.

    Raises:
        ValueError: it can only be read in its own order, which a run that goes on could not begin in the middle of.
    """
    of_hugging_face = type(given).__module__.partition(".")[0] == "datasets"  # whose batch() is something else
    if given is None or (callable(getattr(given, "batch", None)) and not of_hugging_face):
        return given
    dataset = given.dataset if isinstance(given, DataLoader) else given
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{name}: got a {type(dataset).__name__}, which has an order of its own, want a data set with len() and "
            "items by their index: fit shuffles, and goes on in the middle of an epoch"
        )
    if isinstance(given, DataLoader):
        _check_sampler(name, given)
        read = ("num_workers", "pin_memory", "prefetch_factor", "worker_init_fn", "timeout", "multiprocessing_context")
        return FromDataset(name, dataset, given.collate_fn, **{option: getattr(given, option) for option in read})
    items = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    if items and not isinstance(given, Tensor | np.ndarray | list | tuple | str | bytes | dict):
        return FromDataset(name, dataset)
    return given


def batch_size_of(train: Any, given: int | None) -> int:
    """The size of a batch: ``given``, or that of a ``DataLoader``, or the default.

    Raises:
        ValueError: it is no size, or another than that of the ``DataLoader``.
    """
    if given is not None:
        check_size("batch_size", given)
    own = train.batch_size if isinstance(train, DataLoader) else None
    if own is not None and given not in (None, own):
        raise ValueError(f"batch_size: got {given}, want the {own} of the DataLoader, or none given")
    return int(given or own or BATCH_SIZE)


class FromDataset:
    """A map-style data set as ``Examples``.

    What an item draws by chance, from torch, numpy's global generator or ``random``, depends on the seed of its batch
    alone: not on the worker process that reads it, nor on what was read before.

    Args:
        name: for errors, "train" or "validation".
        collate: from a list of items to a batch.
        options: of the ``DataLoader`` that reads what is expected.
    """

    def __init__(
        self, name: str, dataset: Any, collate: Callable[[list[Any]], Any] = default_collate, **options: Any
    ) -> None:
        self.name, self.dataset = name, dataset
        self._read = _SeededBatches(name, dataset, collate)
        self._keys: list[Key] = []
        self._waiting: deque[Tensor] = deque()  # the indices of what `_coming` will give
        self._coming: Iterator[Any] = iter(())
        self._loader = DataLoader(
            self._read,
            sampler=self._keys,  # which changes from epoch to epoch
            batch_size=None,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or else each epoch would take a draw from the global one
            persistent_workers=options.get("num_workers", 0) > 0,
            **options,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def expect(self, batches: Iterable[Tensor], *seeds: int, first: int = 0) -> None:
        """Worker processes, if there are any, begin to read these batches, which :meth:`batch` will be asked for.

        Args:
            seeds: whole numbers from which the seeds of the batches are made, each with the number of its batch.
            first: the number of the first one.
        """
        self._waiting = deque(batches)
        self._keys[:] = [(seed_from(*seeds, i), indices.tolist()) for i, indices in enumerate(self._waiting, first)]
        self._coming = iter(self._loader)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Any, ...]:
        """The items at ``indices``, collated; as it was expected, or else with a seed from torch's global generator."""
        if self._waiting and torch.equal(self._waiting[0], indices):
            self._waiting.popleft()
            batch = next(self._coming)
        else:
            batch = self._read[int(torch.randint(2**62, ())), indices.tolist()]
        return tuple(_on(device, value) for value in batch)


Key = tuple[int, list[int]]  # the seed of a batch, and the indices of its items


class _SeededBatches(Dataset[Any]):
    """A data set whose items are the batches of another; this is what worker processes hold."""

    def __init__(self, name: str, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.name, self.dataset, self.collate = name, dataset, collate

    def __getitem__(self, key: Key) -> Sequence[Any]:
        seed, indices = key
        with _generators_seeded(seed):
            several = getattr(self.dataset, "__getitems__", None)
            items = several(indices) if several else [self.dataset[i] for i in indices]
            try:
                batch = self.collate(items)
            except (TypeError, RuntimeError) as error:
                raise ValueError(
                    f"{self.name}: its items cannot be put into one batch ({error}), want tensors of equal shapes, "
                    "which torchvision.transforms.ToTensor() makes of pictures, or a DataLoader with a collate_fn"
                ) from error
        if isinstance(batch, Tensor):
            return (batch,)
        if not isinstance(batch, list | tuple):
            raise ValueError(
                f"{self.name}: its batches are {brief(type(batch).__name__)}, want a tensor or a tuple of them: a "
                "DataLoader with a collate_fn makes these"
            )
        return batch


def _check_sampler(name: str, loader: DataLoader[Any]) -> None:
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    plain = loader.batch_size is not None and type(batch_sampler) is BatchSampler
    each_once = type(sampler) in (RandomSampler, SequentialSampler) and not getattr(sampler, "replacement", False)
    if not plain or not each_once or len(loader.sampler) != len(loader.dataset):  # type: ignore[arg-type]
        raise ValueError(
            f"{name}: got a DataLoader with an order of its own ({type(sampler).__name__}, "
            f"{type(batch_sampler).__name__}), want one with batch_size and shuffle alone, or its data set: fit draws "
            "the order of an epoch from seed, so that a run goes on exactly, and shares batches out among processes"
        )


@contextmanager
def _generators_seeded(seed: int) -> Iterator[None]:
    """The global generators on the CPU begin with ``seed`` in this block, and afterwards are as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with random_state_kept(CPU):
        set_random_state(CPU, fresh_random_state(CPU, seed))
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _as_it_is(batch: Any) -> Any:
    return batch


def _on(device: torch.device, value: Any) -> Any:
    """A part of a batch on ``device``: a tensor, or tensors in lists, tuples or dicts."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _on(device, one) for name, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_on(device, one) for one in value)
    return value

"""Gradient accumulation: a batch that goes through a model in parts teaches a codebook once, as the whole would."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from companion._arguments import check_module
from companion.quantizers.base import Quantized, Quantizer


@contextmanager
def one_update(model: nn.Module) -> Iterator[None]:
    """All forwards of a model in this block are one update of each of its quantizers, which comes at the block's end.

    A step of training on a batch that is cut into parts, for memory::

        optimizer.zero_grad()
        with one_update(model):
            for x in parts:  # of equal sizes
                (model(x).loss / len(parts)).backward()
        optimizer.step()

    Without the block an EMA codebook would move after each part, and the next part would be looked up in another
    codebook. With it, all parts see the same codes, and the update is that of the whole batch: same counts, same sums,
    same draws for restarts. The latents and indices of all parts are kept until then.

    What a quantizer takes from its first batch, such as codes by k-means, it takes from the first part. ``fit`` gives
    it all of them, by a pass before the first step.

    Raises:
        ValueError: ``model`` is no module, or already in such a block.
    """
    check_module("model", model)
    quantizers = [part for part in model.modules() if isinstance(part, Quantizer)]
    if any(quantizer._hold is not None for quantizer in quantizers):
        raise ValueError("model: got one that is in a block of one_update already, want one block around all parts")
    held: list[list[tuple[Tensor, Quantized]]] = [[] for _ in quantizers]
    with _instead_of_updates([_note_in(calls) for calls in held], quantizers):
        yield
    for quantizer, calls in zip(quantizers, held, strict=True):  # not after an error: then nothing is learnt
        if calls:
            z, results = zip(*calls, strict=True)
            quantizer.update(torch.cat(z), joined(results))


def initialise_from(model: nn.Module, forwards: Sequence[Callable[[], Any]]) -> None:
    """Let the quantizers of a model take what they take from their first batch, such as codes by k-means, from all of
    its parts together.

    Each forward is run until it comes to a quantizer that still needs data. Quantizers that it passes on the way do not
    update themselves. Buffers outside the quantizers, such as those of a batch norm, are as before afterwards.

    Args:
        forwards: each passes one part of the batch through ``model``.
    """
    quantizers = [part for part in model.modules() if isinstance(part, Quantizer)]
    theirs = {id(buffer) for quantizer in quantizers for buffer in quantizer.buffers()}
    others = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in theirs]
    waiting = [quantizer for quantizer in quantizers if quantizer.training]
    with torch.no_grad(), _instead_of_updates([lambda z, quantized: None for _ in quantizers], quantizers):
        while waiting := [quantizer for quantizer in waiting if not quantizer.initialised]:
            taken = [found for forward in forwards if (found := _latents_at(waiting, forward))]
            if not taken:  # those that are left are called by others, or not at all
                break
            first = taken[0][0]
            first.initialise(torch.cat([z for quantizer, z in taken if quantizer is first]))
            waiting.remove(first)
        for buffer, before in others:
            buffer.copy_(before)


def joined(results: tuple[Any, ...]) -> Any:
    """The results of several parts of a batch as that of the whole, without gradients.

    Tensors (B, …) are joined along the batch, losses averaged, and counts of codes added up; the results in a result,
    such as those of all depths, in the same way.
    """
    first = results[0]
    if isinstance(first, Tensor):
        detached = [value.detach() for value in results]
        return torch.cat(detached) if first.ndim else torch.stack(detached).mean()
    if isinstance(first, dict):
        return {name: joined(tuple(value[name] for value in results)) for name in first}
    if isinstance(first, tuple):
        return tuple(joined(values) for values in zip(*results, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        values = {field.name: tuple(getattr(one, field.name) for one in results) for field in fields(first)}
        counts = values.pop("code_counts", (None,))
        whole: Any = {name: joined(of_parts) for name, of_parts in values.items()}
        if counts[0] is not None:
            whole["code_counts"] = torch.stack(counts).sum(0)
        return replace(first, **whole)
    return first


@contextmanager
def _instead_of_updates(
    holds: Sequence[Callable[[Tensor, Quantized], None]], quantizers: Sequence[Quantizer]
) -> Iterator[None]:
    """In this block each quantizer calls its own of ``holds`` where it would update itself."""
    for quantizer, hold in zip(quantizers, holds, strict=True):
        quantizer._hold = hold
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer._hold


def _note_in(calls: list[tuple[Tensor, Quantized]]) -> Callable[[Tensor, Quantized], None]:
    def note(z: Tensor, quantized: Quantized) -> None:
        calls.append((z, joined((quantized,))))  # without its graph

    return note


class _Reached(Exception):
    """A forward has come to a quantizer, and need not go on."""


def _latents_at(quantizers: list[Quantizer], forward: Callable[[], Any]) -> tuple[Quantizer, Tensor] | None:
    """The first of the quantizers that ``forward`` comes to, and the latents there; None if it comes to none."""
    reached: list[tuple[Quantizer, Tensor]] = []

    def stop(quantizer: nn.Module, arguments: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        z, mask = arguments[0] if arguments else by_name["z"], by_name.get("mask")
        z = z if mask is None else z.movedim(1, -1)[mask]  # (n, D): the positions that count
        reached.append((cast(Quantizer, quantizer), z.detach()))
        raise _Reached

    handles = [quantizer.register_forward_pre_hook(stop, with_kwargs=True) for quantizer in quantizers]
    try:
        forward()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return reached[0] if reached else None

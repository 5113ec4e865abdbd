"""Checks of the arguments of ``fit`` and ``train_step``, made before the first step."""

import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    brief_kind,
    check_between,
    check_choice,
    check_finite,
    check_flag,
    check_instance,
    check_module,
    check_number,
    check_same_device,
    check_size,
    check_tensor,
    check_unit_range,
    check_whole,
    expanded,
)
from companion.codes import CodeSet
from companion.configured import unwrapped
from companion.data.images import ImageSet, share_of_images, share_within
from companion.priors.base import Prior
from companion.training.datasets import FromDataset
from companion.training.details import parts_kept_in_eval
from companion.training.epochs import EarlyStopping
from companion.training.plan import Examples, Plan
from companion.training.randomness import epoch_order, random_state_kept
from companion.training.schedules import factor_of

CPU = torch.device("cpu")


def checked(plan: Plan) -> Plan:
    """The plan, with Python's whole numbers in place of numpy's.

    Raises:
        ValueError: an argument is out of range or does not fit the others.
    """
    _check_model(plan.model)
    _check_kinds(plan)
    check_size("epochs", plan.epochs)
    check_size("batch_size", plan.batch_size)
    check_whole("seed", plan.seed, least=0)
    if plan.lr is not None:
        check_number("lr", plan.lr, above=0)
        if plan.optimizer is not None:
            warnings.warn(
                f"lr: got {plan.lr} beside an optimizer, which has a rate of its own: it goes unused (want it in "
                f"there, as in functools.partial(torch.optim.AdamW, lr={plan.lr}))",
                stacklevel=3,
            )
    if plan.clip is not None:
        check_number("clip", plan.clip, above=0)
    check_size("accumulate", plan.accumulate)
    if plan.average is not None:
        check_number("average", plan.average, least=0, below=1)
    check_flag("progress", plan.progress)
    check_choice("precision", plan.precision, ("no", "bf16", "fp16"))
    if plan.save_every is not None:
        check_size("save_every", plan.save_every)
        if plan.run is None:
            raise ValueError("save_every: got it without run, the folder to save into")
    if plan.batch_size > len(plan.train):
        raise ValueError(f"batch_size: got {plan.batch_size}, want at most the {len(plan.train)} examples of train")
    _check_examples(plan)
    if plan.schedule is not None:
        _check_call(plan.schedule, "schedule", "step and total_steps", 0, plan.total_steps)
        for step in (0, plan.total_steps // 2, plan.total_steps - 1):
            factor_of(plan.schedule, step, plan.total_steps)
    if plan.after_epoch is not None:
        _check_call(plan.after_epoch, "after_epoch", "an Epoch", None)
    column = plan.after_epoch.column if isinstance(plan.after_epoch, EarlyStopping) else ""
    if column.startswith("validation_") and plan.validation is None:
        raise ValueError(f"after_epoch: got EarlyStopping by {column!r} without validation, want examples for that")
    run = None if plan.run is None else expanded("run", plan.run)
    whole: Any = {name: int(getattr(plan, name)) for name in ("epochs", "batch_size", "accumulate", "seed")}
    return replace(plan, **whole, run=run)


def settle_tokenizer(plan: Plan) -> Callable[[], None]:
    """A code means something in its own tokenizer only. A prior that names none takes the name from ``train``.

    Returns:
        What takes the name back, for where nothing was learnt.

    Raises:
        ValueError: the codes are of another tokenizer than the prior's.
    """
    prior = unwrapped(plan.model, "model")
    if not isinstance(prior, Prior):
        return lambda: None
    tokenizer = prior.tokenizer or (plan.train.tokenizer if isinstance(plan.train, CodeSet) else "")
    for name, codes in plan.examples.items():
        if isinstance(codes, CodeSet) and codes.tokenizer != tokenizer:
            raise ValueError(
                f"{name}: got codes of the tokenizer {codes.tokenizer!r}, want those of {tokenizer!r}, which "
                f"{'the prior' if prior.tokenizer else 'train'} names: tokenize the images with that one, or make a "
                "prior with tokenizer=codes.tokenizer"
            )
    before, prior.tokenizer = prior.tokenizer, tokenizer
    return lambda: setattr(prior, "tokenizer", before)


def check_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """That ``optimizer`` can make a step of ``model``.

    Raises:
        ValueError: one of the two is something else, or they do not fit each other.
    """
    check_module("model", model)
    check_instance("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: got LBFGS, which needs a closure, want one whose step() needs none, such as Adam")
    for group in optimizer.param_groups:
        if "lr" in group and not isinstance(group["lr"], Tensor):
            check_number("optimizer: its lr", group["lr"], least=0)
    if all(float(group.get("lr", 1)) == 0 for group in optimizer.param_groups):
        warnings.warn("optimizer: its lr is 0 in every group: nothing will be learnt", stacklevel=4)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("optimizer: got maximize=True, want one that makes the loss smaller")
    parameters = {id(p) for p in model.parameters()}
    belong = [id(p) in parameters for group in optimizer.param_groups for p in group["params"]]
    if not any(belong):
        raise ValueError("optimizer: got one without any of the model's parameters, want one made from them")
    if not all(belong):
        raise ValueError(
            f"optimizer: got {belong.count(False)} parameters that are not the model's, want one made from those: was "
            "a part of the model replaced after it was made?"
        )


def warn_of_left_out(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A parameter that is not frozen, and not the optimizer's either, was most likely forgotten."""
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in taken]
    if left_out:
        warnings.warn(
            f"optimizer: got none of {len(left_out)} parameters that learn ({', '.join(left_out[:3])}"
            f"{', …' * (len(left_out) > 3)}), want all of those that it is called with: these stay as they are "
            "(requires_grad_(False) freezes them without this warning)",
            stacklevel=3,
        )


def check_gradient(argument: str, loss: Tensor) -> None:
    """That ``loss`` can be learnt from; ``argument`` is what made it.

    Raises:
        ValueError: it has no gradient.
    """
    if not loss.requires_grad:
        raise ValueError(
            f"{argument}: got a loss without a gradient, want one that depends on the model's parameters: it was "
            "detached, made under torch.no_grad() or torch.inference_mode(), or comes from elsewhere"
        )


def loss_of(result: Any) -> Tensor:
    """The field ``loss`` of what a model gave.

    Raises:
        ValueError: it has none, or it is no 0-dim tensor.
    """
    loss = getattr(result, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"{brief_kind(result)} whose loss is {brief(loss)}" if hasattr(result, "loss") else brief_kind(result)
        raise ValueError(f"model: gave {got}, want a result with a field loss, a 0-dim tensor")
    return loss


def check_optimizers_schedule(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    """That a run can be continued as if it had not stopped, and that learning rates come from one side only.

    Raises:
        ValueError: the optimizer has a learning-rate schedule, and there is a folder ``run`` or another schedule.
    """
    scheduled = any("initial_lr" in group for group in optimizer.param_groups)  # torch's schedulers leave that
    if scheduled and plan.schedule is not None:
        raise ValueError("optimizer: got one with a learning-rate schedule of its own beside schedule, want one of two")
    if scheduled and plan.run is not None:
        raise ValueError(
            "optimizer: got one with a learning-rate schedule, want one without, as the folder run cannot keep the "
            "schedule's state: continued, it would begin anew. fit(…, schedule=WarmupCosine(…)) goes on exactly. Leave "
            "out run, or the schedule"
        )
    if plan.schedule is not None and any("lr" not in group for group in optimizer.param_groups):
        raise ValueError("schedule: got one beside an optimizer without a learning rate, want none")


def check_parts(plan: Plan, processes: int) -> None:
    """That each process can cut its share of a batch into the parts that are wanted.

    Raises:
        ValueError: it has fewer examples than parts.
    """
    share = plan.batch_size // processes
    if plan.accumulate > share:
        of = "batch" if processes == 1 else f"batch in each of {processes} processes"
        raise ValueError(f"accumulate: got {plan.accumulate}, want at most the {share} examples of a {of}")


def batch_of(name: str, examples: Examples, indices: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """A batch of the examples called ``name``.

    Raises:
        ValueError: their ``batch`` gives something else than a tuple, or another number of rows.
    """
    try:
        batch = examples.batch(indices, device)
    except IndexError as error:
        raise ValueError(
            f"{name}: its len() is {len(examples)}, but its batch() has no example for one of the indices up to "
            f"{int(indices.max())} ({error})"
        ) from error
    if not isinstance(batch, tuple | list):
        raise ValueError(f"{name}: its batch() gave a {type(batch).__name__}, want a tuple of tensors")
    if not batch:
        raise ValueError(f"{name}: its batch() gave nothing, want a tuple of at least one tensor")
    for i, tensor in enumerate(batch):
        rows = len(tensor) if isinstance(tensor, Tensor) and tensor.ndim else len(indices)
        if rows != len(indices):
            raise ValueError(
                f"{name}: its batch() gave {rows} rows for {len(indices)} indices, want one for each (tensor {i})"
            )
    return tuple(batch)


def check_augmented(augmented: Any, given: Tensor, *, images: bool) -> None:
    """That what ``augment`` made of ``given`` can stand in its place.

    Type and shape are looked at first; then the numbers are, which reads the smallest and the largest of them.

    Args:
        images: the numbers have to be in [0, 1] too, and not only finite.

    Raises:
        ValueError: it is no tensor, or one of another shape, type, device or range.
    """
    check_tensor("augment", augmented, shape=tuple(given.shape), dtype=given.dtype)
    check_same_device("augment", augmented, "the batch", given)
    if augmented.is_inference():
        raise ValueError("augment: got a tensor made under torch.inference_mode(), want one that can be learnt from")
    check_finite("augment", augmented)
    if images:
        check_unit_range("augment", augmented)


def _check_model(model: nn.Module) -> None:
    if not any(p.requires_grad for p in unwrapped(model, "model").parameters()):
        raise ValueError(f"model: got a {type(model).__name__} without a parameter to train")
    if hollow := [name for name, p in unwrapped(model, "model").named_parameters() if p.is_meta]:
        raise ValueError(
            f"model: got tensors on the device meta ({hollow[0]}, …), which holds no numbers, want others: "
            "model.to_empty(device='cpu')"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("model: got one made under torch.inference_mode(), want one made outside, as it cannot learn")
    kept = list(parts_kept_in_eval(model))
    tops = [path for path in kept if path.rpartition(".")[0] not in kept]
    if tops:
        warnings.warn(
            f"model: got {', '.join(tops[:3])}{', …' * (len(tops) > 3)} in eval mode inside a model in training mode: "
            "kept so, without dropout there and with fixed batch statistics and codebooks; model.train() first trains "
            "all of it",
            stacklevel=4,
        )


def _check_kinds(plan: Plan) -> None:
    """What kinds of things the arguments are that are neither numbers nor the model."""
    for name, examples in (("train", plan.train), ("validation", plan.validation)):
        fits = hasattr(examples, "__len__") and callable(getattr(examples, "batch", None))
        if not fits and not (name == "validation" and examples is None):
            raise ValueError(
                f"{name}: got a {type(examples).__name__}, want an ImageSet, a CodeSet, a data set or DataLoader "
                "of torch (TensorDataset makes one of tensors), or examples with len() and batch(indices, device)"
            )
        if examples is not None:
            _check_call(examples.batch, f"{name}.batch", "indices and device", torch.zeros(1), CPU)
    if plan.validation is not None and len(plan.validation) == 0:
        raise ValueError("validation: got no examples, want at least one, or None")
    for name, function in (
        ("objective", plan.objective),
        ("augment", plan.augment),
        ("optimizer", plan.optimizer),
        ("schedule", plan.schedule),
        ("after_epoch", plan.after_epoch),
    ):
        if function is not None and not callable(function):
            raise ValueError(f"{name}: got a {type(function).__name__}, want a function, or None")
    if plan.run is not None:
        _check_folder(plan.run)
    try:
        kind = torch.device("cpu" if plan.device is None else plan.device).type
        if kind != "meta":
            torch.get_device_module(kind)  # torch knows the names of devices that only a package of their own serves
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: got {plan.device!r}, want a device, such as 'cpu' or 'cuda'") from error
    if kind == "meta":
        raise ValueError("device: got meta, want one that holds numbers, such as 'cpu' or 'cuda'")


def _check_folder(run: str | os.PathLike[str]) -> None:
    if not isinstance(run, str | os.PathLike):
        raise ValueError(f"run: got a {type(run).__name__}, want the path of a folder")
    if run == "" or "\0" in str(run):  # Path("") is the working directory
        raise ValueError(f"run: got {str(run)!r}, want the path of a folder")
    path = expanded("run", run)
    if path.exists() and not path.is_dir():
        raise ValueError(f"run: got {run}, which is a file, want a folder")


def _check_examples(plan: Plan) -> None:
    """That examples fit model, objective and each other: a few of each are looked at."""
    batches = {}
    for name, examples in plan.examples.items():
        _check_codes(plan, name, examples)
        with random_state_kept(CPU):
            indices = torch.arange(min(2, len(examples)), device="cpu")
            batches[name] = batch_of(name, examples, indices, CPU)
        if plan.objective is not None:
            batch = batches[name]
            tensors = "1 tensor" if len(batch) == 1 else f"{len(batch)} tensors"
            given = f"the model and the {tensors} of a batch of {name}"
            _check_call(plan.objective, "objective", given, plan.model, *batch)
    if plan.augment is not None:
        first = batches["train"][0]
        check_instance("train", first, Tensor, "batches that begin with a tensor, which augment changes")
        _check_call(plan.augment, "augment", "the first tensor of a batch of train", first)
    if plan.validation is not None:
        _check_alike(plan, batches["train"], batches["validation"])
        _warn_of_shared(plan.train, plan.validation)


def _warn_of_shared(train: Examples, validation: Examples) -> None:
    """Validation on what was trained on says nothing about other images."""
    shared = 0.0
    if validation is train or _same_dataset(train, validation):
        shared = 1.0
    elif isinstance(train, ImageSet) and isinstance(validation, ImageSet):
        shared = share_of_images(validation, train)
    elif isinstance(train, CodeSet) and isinstance(validation, CodeSet):
        shared = share_within(validation.codes, train.codes)
        half = len(train) // 2
        if half and shared > 0.05:  # of few codes in a small grid many are equal by chance, also inside train
            mixed = train.codes[epoch_order(len(train), 0, 0).to(train.codes.device)]
            shared = shared if share_within(mixed[:half], mixed[half:]) < shared / 2 else 0.0
    if shared > 0.05:  # a few equal images are found in real sets too
        warnings.warn(
            f"validation: got examples of which {shared:.0%} are in train, want others: the loss on these cannot show "
            "overfitting",
            stacklevel=5,
        )


def _same_dataset(one: Examples, other: Examples) -> bool:
    return isinstance(one, FromDataset) and isinstance(other, FromDataset) and one.dataset is other.dataset


def _check_codes(plan: Plan, name: str, examples: Examples) -> None:
    """That a prior gets codes and labels that it knows; an objective of the caller's may make others of them."""
    prior = unwrapped(plan.model, "model")
    if plan.objective is None and isinstance(prior, Prior) and isinstance(examples, ImageSet):
        raise ValueError(
            f"{name}: got an ImageSet, want a CodeSet, which companion.tokenize makes of it: a prior learns codes"
        )
    if plan.objective is None and isinstance(prior, Prior) and isinstance(examples, CodeSet):
        if examples.num_codes != prior.num_codes:
            raise ValueError(
                f"{name}: got codes with num_codes={examples.num_codes}, want the {prior.num_codes} of the prior"
            )
        if prior.num_classes:
            check_between(f"{name}.labels", examples.labels, 0, prior.num_classes - 1)


def _check_call(function: Callable[..., Any], what: str, given: str, *arguments: Any) -> None:
    """That ``function`` takes so many arguments; the message begins with ``what``, and says what is ``given``."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # of a function in C it is not known
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what}: got one that cannot be called with what it is given, {given}: {error}") from error


def _check_alike(plan: Plan, train_batch: tuple[Tensor, ...], validation_batch: tuple[Tensor, ...]) -> None:
    """That training and validation examples are of the same codes, classes and shapes."""
    train, validation = plan.train, plan.validation
    if isinstance(train, CodeSet) and isinstance(validation, CodeSet) and train.num_codes != validation.num_codes:
        raise ValueError(
            f"validation: got codes with num_codes={validation.num_codes}, want {train.num_codes} as train has"
        )
    if isinstance(train, ImageSet) and isinstance(validation, ImageSet):
        if train.split == "test" and validation.split == "train":
            warnings.warn("train: got the split 'test', validation the split 'train': are they swapped?", stacklevel=4)
        want, got = list(train.classes), list(validation.classes)
        if want != got:
            raise ValueError(f"validation: got the classes {', '.join(got)}, want those of train, {', '.join(want)}")
    prior = unwrapped(plan.model, "model")
    conditional = isinstance(prior, Prior) and prior.num_classes > 0
    used = 1 if plan.objective is None and not conditional else None  # how many tensors of a batch the model gets
    for i, (like, value) in enumerate(zip(train_batch[:used], validation_batch[:used], strict=False)):
        if isinstance(like, Tensor) and isinstance(value, Tensor) and like.shape[1:] != value.shape[1:]:
            raise ValueError(
                f"validation: got examples of shape {tuple(value.shape[1:])}, want {tuple(like.shape[1:])} as those of "
                f"train have (tensor {i} of a batch)"
            )

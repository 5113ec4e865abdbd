"""``fit``: the training loop of chapter 01, with what a long run needs around it.

* ``step``: ``train_step``, and the step of ``fit``; ``batches`` gives it the terms of a batch; ``loop`` repeats it.
* ``plan``: what ``fit`` was asked for, in one object; ``checks`` looks at it before the first step.
* ``objective``: from a batch to the terms of its loss; ``means`` averages them, ``history`` shows them.
* ``states``: a run on disk; ``resume`` compares its settings with those of the call that goes on with it, also the
  ``details``.
* ``datasets``: batches from a data set or a ``DataLoader`` of torch.
* ``schedules``: learning rates. ``averages``: averaged weights. ``epochs``: what comes after each epoch.
* ``accelerator``: device, precision and processes. ``randomness``: seeds. ``stop_button``: Ctrl-C.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from companion._extras import require
from companion.training.accelerator import own_accelerator
from companion.training.checks import (
    check_optimizers_schedule,
    check_parts,
    check_step,
    checked,
    settle_tokenizer,
    warn_of_left_out,
)
from companion.training.datasets import as_examples, batch_size_of
from companion.training.epochs import AfterEpoch, EarlyStopping, Epoch
from companion.training.history import History
from companion.training.loop import Loop
from companion.training.plan import Examples, Plan
from companion.training.randomness import random_state_kept
from companion.training.resume import run_settings
from companion.training.schedules import Schedule, WarmupCosine
from companion.training.states import States
from companion.training.step import train_step
from companion.training.stop_button import StopButton

__all__ = ["EarlyStopping", "Epoch", "Examples", "History", "WarmupCosine", "fit", "train_step"]


def fit(
    model: nn.Module,
    train: Examples | Dataset[Any] | DataLoader[Any],
    *,
    epochs: int,
    batch_size: int | None = None,
    lr: float | None = None,
    validation: Examples | Dataset[Any] | DataLoader[Any] | None = None,
    objective: Callable[..., Any] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
    after_epoch: AfterEpoch | None = None,
    seed: int = 0,
    precision: str = "no",
    run: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place; it ends on the device, in eval mode, and otherwise as it came.

    A model in training mode keeps the parts in eval mode that the caller put into it, with a warning; one in eval mode,
    as after an earlier call, is trained as a whole.

    An epoch is ``len(train) // batch_size`` steps over a fresh permutation; what does not fill a batch
    is left out of that epoch. After it, each term is averaged over the whole of ``validation``, in eval
    mode.

    Examples: an ``ImageSet``, a ``CodeSet``, or anything with ``len()`` and ``batch(indices, device)``, which gives a
    tuple of tensors; any map-style data set of torch, whose items are put together by ``default_collate``; or a
    ``DataLoader``, of which are taken: the data set, batch_size, collate_fn, num_workers and how these read. The order
    is always that of ``seed``, also without shuffle. What an item draws by chance depends on ``seed``, the step and
    the process, and not on how many workers there are, so that a run goes on exactly.

    The stop button (Ctrl-C) ends training after the step in hand, and what was trained so far is returned; a
    second press stops at once. With several processes a signal ends the run, which ``run`` can then continue.

    What is logged: each 0-dim tensor among the fields of the model's result (also those in a field that is a dict, by
    their keys) as its mean over the examples; and from a field ``code_counts`` (K,), how often each code was chosen,
    added up over the epoch, ``perplexity`` and ``usage`` of all its codes together (for (R, K) those of each depth,
    ``perplexity_1`` and so on).

    Randomness: ``seed`` decides the order of the examples and starts torch's generators, which models draw
    from (each process its own stream, validation always the same one). Afterwards the caller's generators are
    as they were. Initial weights are the caller's. Gradients are on, also where the caller has them off.

    Steps: ``schedule(step, total_steps)`` gives the factor of the learning rates in the step of this number, counted
    from 0; :class:`WarmupCosine` is one. ``clip`` is the largest norm of the gradient of all parameters together; the
    norm before that is logged as ``gradient_norm``, the rate as ``lr``. ``accumulate`` cuts a batch (of each process)
    into so many parts, which need less memory one after the other; the gradient is that of the whole batch where the
    loss is a mean over examples. Quantizers learn once a step, from all parts, and k-means sees all of the first
    batch; what else counts forwards or takes statistics of a batch, such as a batch norm, the ``start`` of an
    ``AdversarialTraining`` or its adaptive weight, does so in each part.

    Averaged weights: with ``average`` = γ, such as 0.999, the weights that validation and ``after_epoch`` see, and that
    the model has in the end, are the running mean of those of the steps (:mod:`companion.training.averages`), with the
    buffers of the last step. The steps go on from the weights themselves, which only the folder ``run`` keeps.

    After each epoch, once its state is saved, ``after_epoch`` is called in the main process with an :class:`Epoch`:
    its row, the history and the model in eval mode, without gradients. False ends training. :class:`EarlyStopping` is
    one. What it draws from torch's generators changes nothing in training. Where a run goes on from the end of an
    epoch, it is called for that epoch again, unless it ended the run: that stays ended, until another one is given.

    Augmentation: ``augment(x)`` is called on the first tensor of each training batch, the images (B, C, H, W), once it
    is on the device, and the model learns from what it gives; validation sees the examples as they are. It draws from
    torch's global generators, as a model does, so that a run goes on with the same images; several processes augment
    their shares each by its own stream. It gives a tensor of the same shape, type and device, whose numbers are
    checked at each step: they are finite, and those of an ``ImageSet`` in [0, 1]. ``companion.augment`` has one.

    Resume: with ``run``, the same call goes on from where the run ended, whatever ended it. History and
    weights are then those of a run that never stopped, to the bit on a CPU with the same number of
    threads and with one or two processes. A model must hold what it changes in training in parameters
    and buffers, and the optimizer in its state: what changes its settings between steps, as one of torch's
    learning-rate schedulers does, would begin anew, and is refused; ``schedule`` goes on. The call counts as the same
    if the settings of model and optimizer, what is frozen, how steps are made, code and settings of objective, augment
    and schedule, the shapes of all tensors and a sample of the examples are the same (``companion/training/resume.py``
    compares them).

    Priors: a conditional one learns from codes and labels, an unconditional one from the codes alone. The codes must
    come from the tokenizer that the prior names; one that names none takes the name from ``train``.

    Several processes (``torchrun`` or ``accelerate launch``): each takes an equal share of every batch,
    and the gradient is that of one process on the whole batch. Buffers follow the main process's: a
    layer that gathers statistics has to share them itself. Every process must see the folder ``run``.
    The process group stays open for the next call.

    Args:
        batch_size: 128 by default, or that of the ``DataLoader``.
        lr: Adam's learning rate, 1e-3 by default; an ``optimizer`` has its own.
        objective: ``objective(model, *batch)`` gives a dataclass whose ``loss`` is minimised and whose other
            0-dim tensors are logged by name, each a mean over the batch. Default: ``model(batch[0])``, and for a
            conditional prior ``model(codes, labels)``.
        augment: changes the first tensor of each training batch, without autocast or gradient. When a run goes on, a
            function counts by its name, its code and its plain settings, as an objective does, a partial by those of
            what it calls, another object by its repr.
        optimizer: makes one from the parameters, as ``functools.partial(torch.optim.AdamW, lr=3e-4)`` does.
        schedule: how the learning rates change over the steps.
        clip: the largest norm of the gradient.
        accumulate: into how many parts each batch is cut.
        average: the decay γ of averaged weights.
        after_epoch: called after each epoch; False ends training.
        precision: "no", "bf16" or "fp16" (autocast; the weights keep their dtype). "fp16" needs a GPU.
        run: the folder of this run alone, made if absent. It keeps the two newest states; other files are left alone.
        save_every: steps between states, besides the one after each epoch.
        device: default: CUDA where there is a GPU, else the CPU, as the course's ``begin`` chooses. Another
            accelerator is used where it is named: "mps".

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``run`` is in use, damaged, or
            holds a run with other settings (``epochs`` may grow); ``objective`` or ``augment`` gives something
            else, or the first makes gradients itself or adds up losses of several batches; the codes are of another
            tokenizer than the prior's; it is called under ``torch.inference_mode()``.
        FloatingPointError: a term, or what the model makes on the way to it, is no longer finite; the message says
            which, and at which step.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("fit: got a call under torch.inference_mode(), want one outside, as nothing is learnt there")
    examples = as_examples("train", train)
    plan = checked(
        Plan(
            model=model,
            train=examples,
            validation=examples if validation is train else as_examples("validation", validation),
            objective=objective,
            augment=augment,
            optimizer=optimizer,
            lr=lr,
            schedule=schedule,
            clip=clip,
            accumulate=accumulate,
            average=average,
            after_epoch=after_epoch,
            epochs=epochs,
            batch_size=batch_size_of(train, batch_size),
            seed=seed,
            precision=precision,
            run=run,
            save_every=save_every,
            device=device,
            progress=progress,
        )
    )
    unsettle = settle_tokenizer(plan)
    loop: Loop | None = None

    def learnt_nothing(error: type[BaseException] | None, *_: object) -> None:
        if error is not None and (loop is None or loop.step == 0):
            unsettle()

    tqdm = require("tqdm.auto", extra="train", what="fit").tqdm
    with ExitStack() as stack:
        stack.push(learnt_nothing)
        stack.enter_context(torch.enable_grad())
        accelerator = stack.enter_context(own_accelerator(plan.precision, plan.device))
        stack.enter_context(random_state_kept(accelerator.device))
        world = accelerator.num_processes
        if plan.batch_size % world:
            raise ValueError(f"batch_size: got {plan.batch_size}, want a multiple of the {world} processes")
        check_parts(plan, world)
        stop = stack.enter_context(StopButton(enabled=world == 1))

        model.to(accelerator.device)
        chosen = plan.make_optimizer()
        check_step(model, chosen)
        warn_of_left_out(model, chosen)
        check_optimizers_schedule(chosen, plan)
        stack.callback(model.eval)  # however it ends
        stack.callback(chosen.zero_grad)
        states = None
        if plan.run is not None:
            settings = run_settings(plan, chosen, accelerator)
            states = stack.enter_context(States(Path(plan.run), accelerator, settings))
        loop = Loop(plan, chosen, accelerator, states)
        if loop.step > plan.total_steps:
            raise ValueError(f"epochs: got {plan.epochs}, but the run in {plan.run} has trained for more")

        quiet = not (plan.progress and accelerator.is_main_process)
        bar = stack.enter_context(tqdm(total=plan.total_steps, initial=loop.step, unit="step", disable=quiet))
        try:
            loop.run(stop, bar)
        except KeyboardInterrupt:  # where no handler could be set; what is under way is not saved
            if stop.pressed or world > 1:
                raise
        if loop.averages is not None:
            loop.averages.put_into_the_model()
        history = loop.history()
    if loop.ended_by and len(loop.rows) < plan.epochs and accelerator.is_main_process:
        print(f"Ended after epoch {len(loop.rows)} of {plan.epochs} by {loop.ended_by}.")
    if history.interrupted:
        print(f"Stopped after step {loop.step} of {plan.total_steps}: going on with what was trained so far.")
    return history

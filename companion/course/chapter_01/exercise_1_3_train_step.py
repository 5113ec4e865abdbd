"""Exercise 1.3, one training step: gradients, a step of the optimizer, and the loss without its graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.autoencoder import Autoencoder, AutoencoderOutput, Decoder, Encoder
from companion.course.checks.comparison import DIAGNOSTIC, Observed, kind
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.metrics import mse
from companion.training import train_step


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(2)

    def batches(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.rand(shape, generator=g), torch.rand(shape, generator=g)

    return [
        Case("two steps on batches of three", batches(3, 1, 8, 8), seed=3),
        Case("two steps on batches of one", batches(1, 1, 8, 8), seed=4),
        Case("a model whose loss is another one", batches(2, 1, 8, 8), {"model": _Weighted}, seed=5),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """Two steps from the same weights; what is left from the first would show in the second."""
    decoder = Decoder(2, hidden=3, image_size=8)
    model = case.build.get("model", Autoencoder)(Encoder(2, hidden=3, image_size=8), decoder)
    optimizer = _WatchedSGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer.calls = calls = []
    decoder.conv2.weight.register_hook(lambda _: calls.append("backward"))
    seen: Observed = {}
    for number, x in enumerate(case.arguments, 1):
        loss = implementation(model, optimizer, x.clone())
        seen[f"the loss returned by step {number}"] = kind(loss) if isinstance(loss, AutoencoderOutput) else loss
        seen[f"the loss of step {number} still hangs on the graph"] = isinstance(loss, Tensor) and loss.requires_grad
        seen |= {f"{name} after step {number}": p.detach().clone() for name, p in model.named_parameters()}
        seen[f"the model is in training mode after step {number}"] = model.training
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        seen[f"weights that want no gradient after step {number}"] = frozen
        if frozen:
            break
    seen[f"{DIAGNOSTIC}the order of the calls"] = calls
    return seen


class _Weighted(Autoencoder):
    """As a model with more than one term has it: the loss is not the mean squared error."""

    def forward(self, x: Tensor) -> AutoencoderOutput:
        out = super().forward(x)
        return AutoencoderOutput(out.reconstruction, out.z, 2 * out.loss + 0.1 * out.z.square().mean())


class _WatchedSGD(torch.optim.SGD):
    """SGD that notes in which order it is used; two mistakes that leave the same weights differ in it."""

    calls: list[str]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls.append("zero_grad")
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        self.calls.append("step")
        return super().step(closure)


def _no_zero_grad(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def _zero_after_backward(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


def _no_backward(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


def _step_first(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _no_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _loss_after(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    train_step(model, optimizer, x)
    with torch.no_grad():
        loss: Tensor = model(x).loss
    return loss


def _attached(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def _uphill(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    (-loss).backward()
    optimizer.step()
    return loss.detach()


def _no_grad(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _no_zero_grad(model, optimizer, x)


def _item(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    return train_step(model, optimizer, x).item()


def _backward_of_the_result(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    result = model(x)
    optimizer.zero_grad()
    result.backward()
    optimizer.step()
    return result.loss.detach()


def _step_between(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = model(x).loss
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()
    return loss.detach()


def _own_error(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss: Tensor = (model(x).reconstruction - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _left_in_eval(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    model.eval()
    return train_step(model, optimizer, x)


def _frozen(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss = train_step(model, optimizer, x)
    model.requires_grad_(False)
    return loss


def _twice(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss = train_step(model, optimizer, x)
    optimizer.step()
    return loss


def _variant(
    loss_of: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x).loss,
    backward: Callable[[Tensor, int], Any] = lambda loss, n: loss.backward(),
    step: Callable[[torch.optim.Optimizer], Any] = lambda optimizer: optimizer.step(),
    give: Callable[[Tensor, int], Tensor] = lambda loss, n: loss.detach(),
) -> Callable[[nn.Module, torch.optim.Optimizer, Tensor], Any]:
    """The right step with one of its parts replaced; n is the number of images."""

    def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
        loss = loss_of(model, x)
        optimizer.zero_grad()
        backward(loss, len(x))
        step(optimizer)
        return give(loss, len(x))

    return one_step


def _backward_twice(loss: Tensor, n: int) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def _by_hand(optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * (0 if weight.grad is None else weight.grad)


def _output(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Any:
    output = model(x)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    return output


def _two_steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    train_step(model, optimizer, x)
    return train_step(model, optimizer, x)


def _own_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    return train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), x)


MISTAKES = (
    Mistake(
        "no zero_grad",
        _no_zero_grad,
        "gradients add up from step to step: backward() adds to what is there. Call optimizer.zero_grad() before it.",
    ),
    Mistake(
        "zero_grad between backward and step",
        _zero_after_backward,
        "the gradients are thrown away between backward() and step(), so nothing moves. zero_grad() comes first.",
    ),
    Mistake(
        "no backward",
        _no_backward,
        "no gradient reaches the weights, so optimizer.step() has nothing to use: backward() is missing, or the loss "
        "was cut "
        "from the graph before it (detach).",
    ),
    Mistake(
        "step before backward",
        _step_first,
        "the step comes before backward(), so without this batch's gradients. The order is zero_grad, backward, step.",
    ),
    Mistake(
        "no step",
        _no_step,
        "the gradients are computed, but the weights never move: optimizer.step() is missing, or its brackets.",
    ),
    Mistake(
        "a Python number",
        _item,
        ".item() waits for the device at every step, which is slow on a GPU. Return the tensor: loss.detach().",
    ),
    Mistake(
        "backward of the result",
        _backward_of_the_result,
        "model(x) gives a result with several fields. What has a backward() is its loss: model(x).loss.",
    ),
    Mistake(
        "loss measured after the step",
        _loss_after,
        "this is the loss after the update. Return the one that the step was made from; it comes for free.",
    ),
    Mistake(
        "loss still on the graph",
        _attached,
        "the loss returned still holds the whole graph of the step in memory: return loss.detach().",
    ),
    Mistake("uphill", _uphill, "the weights move up the loss: minimise the loss itself, not its negative."),
    Mistake(
        "under no_grad",
        _no_grad,
        "the loss is cut from the graph before backward(), by no_grad or by a detach() that comes too early: there is "
        "nothing to go back through.",
    ),
    Mistake("two steps for one gradient", _twice, "optimizer.step() is called twice for one backward()."),
    Mistake(
        "step between zero_grad and backward",
        _step_between,
        "optimizer.step() comes right after zero_grad(), when there is no gradient: nothing ever moves. backward() "
        "belongs between the two.",
    ),
    Mistake(
        "the error taken again",
        _own_error,
        "you compute the mean squared error yourself. A model knows what is to be minimised (later ones have more "
        "terms): model(x).loss.",
    ),
    Mistake(
        "left in eval()",
        _left_in_eval,
        "the model is left in eval(), so layers that behave otherwise in training (dropout, later codebooks) stand "
        "still. A training step leaves the mode alone.",
    ),
    Mistake(
        "frozen afterwards",
        _frozen,
        "after the step the weights no longer want a gradient (requires_grad), so that the next step cannot train "
        "them. Only what is returned is to be detached: loss.detach().",
    ),
    Mistake(
        "neither backward nor step",
        lambda model, optimizer, x: model(x).loss.detach(),
        "the loss is computed, and nothing follows from it: backward() and optimizer.step() are missing.",
        also=(_variant(backward=lambda loss, n: None, step=lambda optimizer: None),),
    ),
    Mistake("the output returned", _output, "this is the whole output of the model. Return its loss, detached."),
    Mistake("the step done twice", _two_steps, "the whole step is done twice on the same batch."),
    Mistake(
        "backward twice",
        _variant(backward=_backward_twice),
        "backward() runs twice, and gradients add up: the step is twice as large as it should be.",
    ),
    Mistake(
        "loss scaled",
        _variant(backward=lambda loss, n: (n * loss).backward()),
        "the loss is multiplied before backward(). It is a mean over the batch already: minimise it as it comes.",
    ),
    Mistake(
        "returned loss scaled",
        _variant(give=lambda loss, n: loss.detach() / n),
        "the weights are right, the loss returned is not: it is a mean over the batch already, so return it as it is.",
        also=(_variant(give=lambda loss, n: loss.detach() * n),),
    ),
    Mistake(
        "loss of the whole output",
        _variant(lambda model, x: mse(model(x), x)),
        "model(x) is a result with several fields, not an image. Its loss is there already: model(x).loss.",
    ),
    Mistake(
        "weights moved by hand",
        _variant(step=_by_hand),
        "you move the weights yourself. The optimizer knows how (momentum, Adam): optimizer.step().",
    ),
    Mistake(
        "an optimizer of its own",
        _own_optimizer,
        "a new optimizer in every step forgets what the last one remembered, and has another learning rate: use the "
        "one that is handed in.",
    ),
)

EXERCISE = Exercise(
    name="train_step",
    chapter="01_autoencoder",
    reference=train_step,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

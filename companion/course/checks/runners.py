"""How an exercise's code is run on a case, and what is looked at: the runners and the helpers that chapters share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Runner


def call(implementation: Any, case: Case) -> Observed:
    """Runner for functions: the result, the gradients it sends back, and whether an input was overwritten."""
    arguments = _arguments(case)
    result = implementation(*arguments)
    seen: Observed = {"the result": result}
    seen |= gradients_of(result, {name: arguments[p] for p, name in case.gradient_of.items()})
    for position, (before, after) in enumerate(zip(case.arguments, arguments, strict=True)):
        if isinstance(before, Tensor):
            seen[f"argument {position + 1} after the call"] = after.detach()
    return seen


def call_for(*names: str) -> Runner:
    """As ``call`` for a function that gives several results back: each is compared under its own name."""
    expected = f"a tuple: {', '.join(names)}"

    def run(implementation: Any, case: Case) -> Observed:
        seen = call(implementation, case)
        result = seen.pop("the result")
        if not isinstance(result, tuple) or len(result) != len(names):
            return {"the result": _in_place_of_a_tuple(result)} | seen
        return {"the result": expected} | {f"the {n}": part for n, part in zip(names, result, strict=True)} | seen

    return run


def _in_place_of_a_tuple(result: Any) -> Any:
    """What came, in words; None and single tensors are described by the comparison itself."""
    return f"a {type(result).__name__} of {len(result)}" if isinstance(result, tuple | list | dict) else result


def module_call(reference: type[nn.Module]) -> Runner:
    """Runner for classes: built as the case says, given the reference's weights, then called like a function."""

    def run(implementation: Any, case: Case) -> Observed:
        module, seen = built_alike(implementation, reference, case, _without_zeros)
        arguments = _arguments(case)
        result = module(*arguments)
        seen["the result"] = result
        wanted = {name: arguments[p] for p, name in case.gradient_of.items()}
        if case.gradient_of:
            wanted |= dict(module.named_parameters())
        seen |= gradients_of(result, wanted)
        seen["the weights after the call"] = {name: weight.detach() for name, weight in module.named_parameters()}
        with torch.no_grad():
            seen["the result in eval()"] = module.eval()(*[_copy(argument) for argument in case.arguments])
        return seen

    return run


def built_alike(
    implementation: Any,
    reference: type[nn.Module],
    case: Case,
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda weights: weights,
) -> tuple[Any, Observed]:
    """A module built as the case says, and the names of its weights.

    It gets the weights that the reference has, as ``change`` leaves them, if its own have the same names.
    """
    torch.manual_seed(case.seed)
    weights = reference(**case.build).state_dict()
    module = implementation(**case.build)
    own = module.state_dict()
    if set(own) == set(weights):
        module.load_state_dict(change(weights))
    return module, {"the names of the weights (given by __init__)": sorted(own)}


def _without_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of either sign, away from zero and each other, so that forgetting or exchanging one shows."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: weight + torch.randn(weight.shape, generator=generator) if weight.ndim == 1 else weight
        for name, weight in sorted(weights.items())
    }


def _arguments(case: Case) -> list[Any]:
    arguments = [_copy(argument) for argument in case.arguments]
    for position in case.gradient_of:
        arguments[position].requires_grad_(True)
    return arguments


def _copy(argument: Any) -> Any:
    """A tensor of its own with the same layout in memory (a clone of a transposed view stays transposed)."""
    return argument.detach().clone() if isinstance(argument, Tensor) else argument


def gradients_of(result: Any, wanted: Mapping[str, Tensor]) -> Observed:
    """Gradient at each wanted tensor of a fixed weighted sum of the result; None where none arrives."""
    total = None
    if isinstance(result, Tensor) and result.requires_grad:
        generator = torch.Generator().manual_seed(7)
        total = (result * torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)).sum()
    return {f"the gradient of {name}": gradient for name, gradient in gradients_at(total, wanted).items()}


def gradients_at(number: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradient of a number at each tensor, None where none arrives; the graph is kept for the next one."""
    if not tensors or not isinstance(number, Tensor) or not number.requires_grad:
        return dict.fromkeys(tensors)
    found = torch.autograd.grad(number, list(tensors.values()), retain_graph=True, allow_unused=True)
    return dict(zip(tensors, found, strict=True))


def zeros_for_none(gradients: Mapping[str, Tensor | None], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of which those that did not arrive count as zero."""
    return {
        name: torch.zeros_like(tensors[name]) if gradient is None else gradient for name, gradient in gradients.items()
    }


def leaf_arguments(case: Case) -> list[Tensor]:
    """The arguments as tensors of their own that want a gradient."""
    return [argument.detach().clone().requires_grad_() for argument in case.arguments]


def arguments_after(leaves: Sequence[Tensor]) -> Observed:
    """The arguments as the call left them."""
    return {f"argument {number} after the call": leaf.detach() for number, leaf in enumerate(leaves, 1)}


def routes(what: str, value: Any, tensors: Mapping[str, Tensor]) -> Observed:
    """Whom a result sends a gradient to, its value, and the gradients (0 where none arrives).

    The names come first: so a wrong route is named even where no listed mistake explains it.
    """
    total = None
    if isinstance(value, Tensor) and value.requires_grad:
        total = (value * torch.linspace(1, 2, value.numel()).reshape(value.shape)).sum()
    gradients = zeros_for_none(gradients_at(total, tensors), tensors)
    names = [name for name, gradient in gradients.items() if bool((gradient != 0).any())]
    return (
        {f"{what} sends a gradient to": " and ".join(names) or "nothing"}
        | {what: value}
        | {f"the gradient that {what} sends to {name}": gradient for name, gradient in gradients.items()}
    )


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on: how many numbers the largest tensor has that any operation makes (a view makes none)."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.layout == torch.strided:
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return made


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on: how many operations torch does, views included."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))

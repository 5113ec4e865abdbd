"""Exercise 9.5, the adaptive weight: how strongly the generator listens to the discriminator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.losses import adaptive_weight

Norm = Callable[[Tensor], Tensor]


def cases() -> Sequence[Case]:
    """Each makes two losses of a last layer: its shape, and a factor before each loss."""
    linear, conv = (3, 4), (2, 3, 3, 3)
    return [
        Case("a linear layer", (linear, 1.0, 1.0), seed=1),
        Case("a convolution, whose gradient has four axes, in float64", (conv, 3.0, 0.5, torch.float64), seed=2),
        Case("an adversarial gradient of 0: ε alone is below the line", (linear, 0.01, 0.0), seed=3),
        Case("an adversarial gradient as small as ε", (linear, 1.0, 2e-4), seed=4),
        Case("ε = 0.3", (linear, 1.0, 1.0), {"epsilon": 0.3}, seed=5),
        Case("a weight that would be above 10,000, the most by default", (linear, 50.0, 1e-9), seed=6),
        Case("at most 0.25", (linear, 2.0, 1.0), {"most": 0.25}, seed=7),
        Case("a reconstruction loss whose gradient is 0", (linear, 0.0, 1.0), seed=8),
        Case("gradients that are in .grad already", (linear, 1.0, 2.0), {"filled": True}, seed=9),
    ]


def run(implementation: Any, case: Case) -> Observed:
    """The weight; what is in .grad afterwards; and whether one can still go back through both losses."""
    options = dict(case.build)
    encoder, last_layer, losses = _two_losses(*case.arguments)
    if options.pop("filled", False):
        for weight in (encoder, last_layer):
            weight.grad = torch.full_like(weight, 0.5)
    before = [_gradient(weight) for weight in (last_layer, encoder)]
    result = implementation(*losses, last_layer, **options)
    seen: Observed = {"the weight": result}
    seen["the weight hangs on the graph"] = isinstance(result, Tensor) and result.requires_grad
    after = [_gradient(weight) for weight in (last_layer, encoder)]
    for name, one, other in zip(("last_layer", "a layer before it"), before, after, strict=True):
        seen[f".grad of {name} is as it was"] = one == other
    seen["last_layer still wants a gradient"] = last_layer.requires_grad
    seen["last_layer after the call"] = last_layer.detach()
    seen["loss.backward() after the call"] = _goes_back(sum(losses))
    return seen


def _two_losses(
    shape: tuple[int, ...], of_reconstruction: float, of_adversarial: float, dtype: torch.dtype = torch.float32
) -> tuple[nn.Parameter, nn.Parameter, tuple[Tensor, Tensor]]:
    """A layer, the decoder's last layer, and two losses on what both make."""
    encoder, last_layer = (nn.Parameter(torch.randn(one, dtype=dtype)) for one in ((5, shape[1]), shape))
    if len(shape) == 2:
        x_hat = torch.randn(6, 5, dtype=dtype).mm(encoder).tanh() @ last_layer.T
    else:
        h = torch.randn(2, 4, 4, 5, dtype=dtype).matmul(encoder).tanh().movedim(3, 1)
        x_hat = nn.functional.conv2d(h, last_layer)
    target = torch.randn(x_hat.shape, dtype=dtype)
    return (
        encoder,
        last_layer,
        (of_reconstruction * (x_hat - target).square().mean(), of_adversarial * x_hat.sin().mean()),
    )


def _gradient(weight: Tensor) -> Any:
    return None if weight.grad is None else weight.grad.tolist()


def _goes_back(loss: Any) -> str:
    try:
        loss.backward()
    except RuntimeError:
        return "fails: the graph is gone"
    return "works"


def _norms(losses: Sequence[Tensor], last_layer: Tensor, norm: Norm = Tensor.norm, **options: Any) -> list[Tensor]:
    return [norm(torch.autograd.grad(loss, last_layer, **({"retain_graph": True} | options))[0]) for loss in losses]


def _variant(
    *,
    norm: Norm = Tensor.norm,
    ratio: Callable[[Tensor, Tensor, float], Any] = lambda n_rec, n_adv, epsilon: n_rec / (n_adv + epsilon),
    limit: Callable[[Tensor, float], Any] = lambda weight, most: weight.clamp(0, most),
    finish: Callable[[Tensor], Any] = lambda weight: weight.detach(),
) -> Callable[..., Any]:
    """The right answer with one of its parts replaced."""

    def weight(
        reconstruction_loss: Tensor,
        adversarial_loss: Tensor,
        last_layer: Tensor,
        most: float = 1e4,
        epsilon: float = 1e-4,
    ) -> Any:
        n_rec, n_adv = _norms((reconstruction_loss, adversarial_loss), last_layer, norm)
        return finish(limit(ratio(n_rec, n_adv, epsilon), most))

    return weight


def _with_graph(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    n_rec, n_adv = _norms((reconstruction_loss, adversarial_loss), last_layer, create_graph=True)
    return (n_rec / (n_adv + epsilon)).clamp(0, most)


def _graph_freed(first: bool) -> Callable[..., Tensor]:
    def weight(
        reconstruction_loss: Tensor,
        adversarial_loss: Tensor,
        last_layer: Tensor,
        most: float = 1e4,
        epsilon: float = 1e-4,
    ) -> Tensor:
        (n_rec,) = _norms([reconstruction_loss], last_layer, retain_graph=not first)
        (n_adv,) = _norms([adversarial_loss], last_layer, retain_graph=False)
        return (n_rec / (n_adv + epsilon)).clamp(0, most).detach()

    return weight


def _by_backward(*, cleared: bool, zeroed: bool = False) -> Callable[..., Tensor]:
    """By loss.backward() and .grad, with the first gradient cleared before the second, and .grad zeroed at the end."""

    def weight(
        reconstruction_loss: Tensor,
        adversarial_loss: Tensor,
        last_layer: Tensor,
        most: float = 1e4,
        epsilon: float = 1e-4,
    ) -> Tensor:
        norms = []
        for loss in (reconstruction_loss, adversarial_loss):
            if cleared:
                last_layer.grad = None
            loss.backward(retain_graph=True)
            norms.append(_filled(last_layer).norm())
        if zeroed:
            last_layer.grad = None
        return (norms[0] / (norms[1] + epsilon)).clamp(0, most).detach()

    return weight


def _on_the_layer_alone(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        last_layer.grad = None
        loss.backward(retain_graph=True, inputs=[last_layer])
        norms.append(_filled(last_layer).norm())
    last_layer.grad = None
    return (norms[0] / (norms[1] + epsilon)).clamp(0, most).detach()


def _filled(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise ValueError("weight: got one without .grad, want one after a backward")
    return weight.grad


def _of_losses(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    return (reconstruction_loss / (adversarial_loss.abs() + epsilon)).clamp(0, most).detach()


def _element_by_element(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    a, b = _norms((reconstruction_loss, adversarial_loss), last_layer, norm=lambda gradient: gradient)
    return (a.abs() / (b.abs() + epsilon)).mean().clamp(0, most).detach()


def _weighted(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    weight = adaptive_weight(reconstruction_loss, adversarial_loss, last_layer, most=most, epsilon=epsilon)
    return weight * adversarial_loss


def _frozen(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, most: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    weight = adaptive_weight(reconstruction_loss, adversarial_loss, last_layer, most=most, epsilon=epsilon)
    last_layer.requires_grad_(False)
    return weight


MISTAKES = (
    Mistake(
        "upside down",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_adv / (n_rec + epsilon)),
        "the ratio is upside down: the norm of the reconstruction loss's gradient belongs above the line. λ is small "
        "where the discriminator pulls harder than the reconstruction.",
    ),
    Mistake(
        "hangs on the graph",
        _with_graph,
        "λ hangs on the graph (create_graph=True), so that training would change λ itself. It is a constant: leave "
        "create_graph out, or detach the result.",
    ),
    Mistake(
        "no limit",
        _variant(limit=lambda weight, most: weight),
        "λ is not limited: where the adversarial gradient is nearly 0 it explodes. It is at most `most`.",
    ),
    Mistake(
        "limit fixed",
        _variant(limit=lambda weight, most: weight.clamp(0, 1e4)),
        "the limit is fixed at 10,000; use the argument most.",
    ),
    Mistake(
        "limited from below",
        _variant(limit=lambda weight, most: weight.clamp(min=most)),
        "λ is kept *above* most (min and max are mixed up); it is to stay below.",
    ),
    Mistake(
        "limited to 1",
        _variant(limit=lambda weight, most: weight.clamp(0, min(1.0, most))),
        "λ is limited to 1. The limit is `most`.",
    ),
    Mistake(
        "squared norms",
        _variant(norm=lambda gradient: gradient.square().sum()),
        "these are the squares of the norms: the root is missing.",
    ),
    Mistake(
        "mean of the squares",
        _variant(norm=lambda gradient: gradient.square().mean()),
        "these are means of squares. Wanted is the root of the sum of the squares.",
    ),
    Mistake(
        "maximum norm",
        _variant(norm=lambda gradient: gradient.abs().amax()),
        "only the largest entry of a gradient counts. Wanted is the root of the sum of all squares.",
    ),
    Mistake(
        "sum of the sizes",
        _variant(norm=lambda gradient: gradient.abs().sum()),
        "these are sums of sizes, the 1-norm. Wanted is the root of the sum of the squares.",
    ),
    Mistake(
        "mean of the sizes",
        _variant(norm=lambda gradient: gradient.abs().mean()),
        "these are means of sizes. Wanted is the root of the sum of the squares, over all entries.",
    ),
    Mistake(
        "root of the mean",
        _variant(norm=lambda gradient: gradient.square().mean().sqrt()),
        "this is the root of the *mean* of the squares: ε would count for more in a large layer. Wanted is the sum.",
    ),
    Mistake(
        "norm of the ratio",
        _variant(norm=Tensor.clone, ratio=lambda g_rec, g_adv, epsilon: (g_rec / (g_adv + epsilon)).norm()),
        "this is the norm of a ratio of gradients. Wanted is the ratio of their norms.",
    ),
    Mistake(
        "spectral norm",
        _variant(norm=lambda gradient: torch.linalg.matrix_norm(gradient.flatten(1), 2)),
        "this is the largest singular value. Wanted is the root of the sum of the squares of all entries.",
    ),
    Mistake(
        "sum of the gradient",
        _variant(norm=lambda gradient: gradient.sum()),
        "the entries of a gradient are summed with their signs, and cancel. Wanted is the root of the sum of squares.",
    ),
    Mistake(
        "element by element",
        _element_by_element,
        "you divide entry by entry and average then. Wanted is one norm for each gradient, and the ratio of the two.",
    ),
    Mistake(
        "of the losses",
        _of_losses,
        "this is the ratio of the losses. Wanted is that of the norms of their gradients at last_layer.",
    ),
    Mistake(
        "graph freed by the first",
        _graph_freed(first=True),
        "the first of the two gradients frees the graph that the second needs: torch.autograd.grad has an argument "
        "that keeps it.",
    ),
    Mistake(
        "graph freed by the second",
        _graph_freed(first=False),
        "λ is right, but the graph is freed afterwards, and the loss that λ goes into cannot be differentiated. Both "
        "calls have to keep it.",
    ),
    Mistake(
        "by backward()",
        _by_backward(cleared=False),
        "loss.backward() adds its gradient to .grad, of every layer: the second norm contains the first gradient, and "
        "the training step would contain both. torch.autograd.grad gives a gradient and touches no .grad.",
    ),
    Mistake(
        "by backward(), cleared before each",
        _by_backward(cleared=True),
        "λ is right, but loss.backward() leaves gradients in .grad, of the layers before as well, and the training "
        "step would contain them. torch.autograd.grad touches no .grad.",
    ),
    Mistake(
        "by backward(), cleared at the end",
        _by_backward(cleared=True, zeroed=True),
        "λ is right and .grad of last_layer is cleared, but loss.backward() has left gradients in the layers before "
        "it. torch.autograd.grad touches no .grad.",
    ),
    Mistake(
        "by backward() of the layer alone",
        _on_the_layer_alone,
        "what was in .grad of last_layer before the call is lost. torch.autograd.grad gives a gradient and touches no "
        ".grad.",
    ),
    Mistake(
        "last layer frozen",
        _frozen,
        "λ is right, but last_layer no longer wants a gradient (requires_grad): the next step could not train it.",
    ),
    Mistake(
        "ε forgotten",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / n_adv),
        "ε is missing, or far smaller than asked for: where the adversarial gradient is 0, you divide by 0.",
    ),
    Mistake(
        "ε fixed",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / (n_adv + 1e-4)),
        "ε is a fixed number; use the argument epsilon.",
    ),
    Mistake(
        "ε after the division",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / n_adv + epsilon),
        "ε is added to the ratio (a pair of brackets is missing). It belongs below the line.",
    ),
    Mistake(
        "ε above and below",
        _variant(ratio=lambda n_rec, n_adv, epsilon: (n_rec + epsilon) / (n_adv + epsilon)),
        "ε is added above the line as well. It is only there to keep what is below from being 0.",
    ),
    Mistake(
        "ε as the least",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / n_adv.clamp(min=epsilon)),
        "the norm below the line is cut off at ε; add ε to it instead.",
    ),
    Mistake(
        "ε under the root",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / (n_adv.square() + epsilon**2).sqrt()),
        "ε is inside the root, as in the length of features. Here it is added to the norm.",
    ),
    Mistake(
        "with another weight",
        _variant(finish=lambda weight: 0.8 * weight.detach()),
        "a factor of 0.8 is in it already, as in some codes. Wanted is λ alone.",
    ),
    Mistake(
        "a share",
        _variant(ratio=lambda n_rec, n_adv, epsilon: n_rec / (n_rec + n_adv + epsilon)),
        "the norm of the reconstruction loss's gradient is below the line too. Only the adversarial one is, and ε.",
    ),
    Mistake(
        "times the loss",
        _weighted,
        "this is λ times the adversarial loss. Return λ alone.",
    ),
    Mistake(
        "a Python number",
        _variant(finish=lambda weight: weight.item()),
        ".item() waits for the device at every step, which is slow on a GPU. Return the tensor.",
    ),
    Mistake(
        "an axis too many",
        _variant(finish=lambda weight: weight.reshape(1)),
        "λ is one number, without an axis.",
    ),
    Mistake(
        "always float32",
        _variant(finish=lambda weight: weight.float().detach()),
        "float64 comes in and float32 goes out (.float(), or torch.tensor(…)): keep the dtype of the losses.",
    ),
)

EXERCISE = Exercise(
    name="adaptive_weight",
    chapter="09_sharper_pictures",
    reference=adaptive_weight,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)

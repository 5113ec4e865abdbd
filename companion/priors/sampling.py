"""From logits to a code: temperature, top-k, top-p, and guidance (chapter 07)."""

import torch
from torch import Tensor

from companion._arguments import (
    check_between,
    check_finite,
    check_number,
    check_same_shape,
    check_tensor,
    check_whole,
    checks_values,
)
from companion._devices import at_least_float32

_COLDEST = 1e-6  # the lowest temperature above 0: logits divided by a smaller number can overflow


def filtered_probabilities(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The probabilities that sampling uses: softmax(logits / temperature), without unlikely codes, renormalised.

    The filters, in this order:

    1. ``temperature`` divides the logits. 0 gives all probability to the likeliest code, the first of several equals.
    2. ``top_k`` keeps the k likeliest codes.
    3. ``top_p`` keeps the smallest number of likeliest codes whose probabilities add up to at least p (Holtzman et al.
       2020). They are the probabilities after top-k.

    Codes as likely as the last one that a filter keeps are kept too, so that the order of codes does not matter.

    Shapes:
        logits: (..., K) → probabilities (..., K), in float32 at least.

    Raises:
        ValueError: temperature, top_k or top_p is out of range; a logit is NaN or +∞, or all of a row are −∞.
    """
    check_tensor("logits", logits, shape=("*batch", "K"))
    check_between("logits", logits, -torch.inf, torch.finfo(logits.dtype).max)  # −inf: a code that cannot be drawn
    if checks_values(logits) and not bool((logits.amax(-1) > -torch.inf).all()):
        raise ValueError("logits: got a row of -inf only, want a code that can be drawn in each")
    check_sampling(logits.shape[-1], temperature, top_k, top_p)
    logits = at_least_float32(logits)  # in half precision, small probabilities are lost in their running sum
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    p = (logits / temperature).softmax(-1)
    if top_k is not None:
        least = p.topk(top_k, dim=-1).values[..., -1:]  # the k-th largest probability
        p = _renormalised(p, keep=p >= least)
    if top_p is not None and top_p < 1:
        ranked = p.sort(dim=-1, descending=True).values
        kept = ranked.cumsum(-1) - ranked < top_p  # where the likelier codes add up to less than p
        least = ranked.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)  # the smallest probability that is kept
        p = _renormalised(p, keep=p >= least)
    return p


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw one code per row: the first k with p_0 + … + p_k > u, where u is the row's uniform random number
    times the sum of the row.

    The random numbers are an argument, so that the same numbers give the same codes. Rows need not add up to 1.

    Shapes:
        probabilities: (n, K), uniform: (n,) in [0, 1) → (n,) int64.

    Raises:
        ValueError: other shapes; a probability is negative or not finite, or those of a row are all 0; ``uniform`` is
            outside [0, 1).
    """
    check_tensor("probabilities", probabilities, shape=("n", "K"))
    check_tensor("uniform", uniform, shape=(len(probabilities),))
    check_between("probabilities", probabilities, 0, torch.finfo(probabilities.dtype).max)
    check_between("uniform", uniform, 0, 1 - torch.finfo(uniform.dtype).eps / 2)  # the largest number below 1
    if checks_values(probabilities) and not bool((probabilities.amax(1) > 0).all()):
        raise ValueError("probabilities: got a row of zeros, want a code that can be drawn in each")
    reached = at_least_float32(probabilities).cumsum(-1)
    threshold = uniform.to(reached)[:, None] * reached[:, -1:]  # u times the sum of the row
    codes = (reached <= threshold).sum(-1)
    numbers = torch.arange(probabilities.shape[-1], device=uniform.device)
    last = numbers.where(probabilities > 0, 0).amax(-1)  # the last code that can be drawn;
    return torch.minimum(codes, last)  # rounding can give a later one


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2021): u + g·(c − u), log-probabilities c with and u without the class.

    With g = 0 the class has no effect, with g = 1 the result is c, and with g > 1 the effect of the class is increased.

    Shapes:
        conditional, unconditional: logits (..., K) → logits (..., K).

    Raises:
        ValueError: the shapes differ, a number is NaN or infinite, or ``guidance`` is negative.
    """
    check_tensor("conditional", conditional, shape=("*batch", "K"), finite=True)
    check_same_shape("unconditional", unconditional, "conditional", conditional)
    check_finite("unconditional", unconditional)
    check_number("guidance", guidance, least=0)
    c, u = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return u + guidance * (c - u)


def _renormalised(p: Tensor, keep: Tensor) -> Tensor:
    p = p.where(keep, 0)
    return p / p.sum(-1, keepdim=True)


def check_sampling(num_codes: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Checks the filters of :func:`filtered_probabilities`.

    Raises:
        ValueError: one of them is out of range.
    """
    check_number("temperature", temperature, least=0)
    if 0 < temperature < _COLDEST:
        raise ValueError(f"temperature: got {temperature}, want 0 (the likeliest code) or at least {_COLDEST}")
    if top_k is not None:
        check_whole("top_k", top_k, most=num_codes)
    if top_p is not None:
        check_number("top_p", top_p, above=0, most=1)

"""Dead codes, which too few vectors choose, and how they are raised (chapter 05)."""

import math

import torch
from torch import Tensor

from companion._arguments import NotFiniteError, check_between, check_number, check_tensor, unchecked_values
from companion.quantizers import _processes


def restart(codebook: Tensor, counts: Tensor, candidates: Tensor, restart_below: float) -> tuple[Tensor, Tensor]:
    """Each dead code becomes a candidate vector, in order, and its count becomes the threshold: one that the next batch
    does not choose is dead again.

    A code is dead if its N_k is less than ``restart_below`` of an even share, ΣN/K (Dhariwal et al. 2020, section 3,
    with a share in place of a number of vectors).

    Shapes:
        codebook (K, D), counts (K,), candidates (at least as many as codes are dead, D) → codebook (K, D), counts (K,).

    Raises:
        ValueError: the shapes do not fit, or there are fewer candidates than dead codes.
    """
    check_number("restart_below", restart_below, least=0, below=1)
    check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
    check_tensor("counts", counts, shape=(len(codebook),), finite=True)
    check_between("counts", counts, 0, math.inf)
    check_tensor("candidates", candidates, finite=True)
    if candidates.ndim != 2 or candidates.shape[1] != codebook.shape[1]:
        raise ValueError(f"candidates: got shape {tuple(candidates.shape)}, want (n, {codebook.shape[1]})")
    dead = is_dead(counts, restart_below)
    if len(candidates) < int(dead.sum()):
        raise ValueError(f"candidates: got {len(candidates)}, want one for each of {int(dead.sum())} dead codes")
    codebook, counts, threshold = codebook.clone(), counts.clone(), restart_below * counts.sum() / len(counts)
    codebook[dead] = candidates[: int(dead.sum())].to(codebook.dtype)
    counts[dead] = threshold
    return codebook, counts


def is_dead(counts: Tensor, restart_below: float) -> Tensor:
    """Which codes are chosen too rarely: N_k is below ``restart_below`` of an even share, ΣN/K. (K,) → (K,) bool."""
    return counts < restart_below * counts.sum() / len(counts)


def number_of_dead(counts: Tensor, restart_below: float) -> int:
    """How many codes are dead.

    Reading a number from a GPU waits for it. So one number is read: how many codes are dead, or −1 for counts that are
    wrong.

    Raises:
        ValueError: a count is negative, NaN or infinite.
    """
    right = (counts >= 0).all() & counts.sum().isfinite()
    number = int(is_dead(counts, restart_below).sum().where(right, -1))
    if number < 0:
        raise NotFiniteError("counts: got negative, NaN or infinite ones, want finite ones; the codebook is unchanged")
    return number


def restart_dead(
    codebook: Tensor,
    counts: Tensor,
    vectors: Tensor,
    restart_below: float,
    directions: bool,
    seed: int,
    stream: int,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`restart` onto random vectors of the batch, of all processes, if there are dead codes and vectors.

    Args:
        directions: leave out vectors of length 0, which have no direction.
        seed, stream, step: they decide the draw. ``step`` is the number of updates before this one.

    Shapes:
        codebook (K, D), counts (K,), vectors (N, D), step () → codebook (K, D), counts (K,).

    Raises:
        ValueError: a count is negative, NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return _as_one_operation(codebook, counts, vectors, restart_below, directions, seed % 2**63, stream, step)
    number = number_of_dead(counts, restart_below)
    if number == 0:
        return codebook, counts
    if directions:
        vectors = vectors[vectors.any(1)]
        if _processes.total_number(len(vectors), vectors.device) == 0:
            return codebook, counts
    candidates = _processes.draw(vectors, number, seed=seed, stream=stream, step=1 + int(step))
    return restart(codebook, counts, candidates, restart_below)


# How many codes are dead is in the data. So torch's compiler takes all of it as one operation, without looking inside.
@torch.library.custom_op("companion::restart_dead", mutates_args=())
def _as_one_operation(
    codebook: Tensor,
    counts: Tensor,
    vectors: Tensor,
    restart_below: float,
    directions: bool,
    seed: int,
    stream: int,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    with unchecked_values():  # as where it is called
        after = restart_dead(codebook, counts, vectors, restart_below, directions, seed, stream, step)
    return after[0].clone(), after[1].clone()  # an operation gives new tensors


@_as_one_operation.register_fake
def _(codebook: Tensor, counts: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codebook), torch.empty_like(counts)

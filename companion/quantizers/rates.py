"""What codes cost, in bits, by three ways of writing them down (chapter 06)."""

import math

import torch
from torch import Tensor

from companion._arguments import check_codes, check_size, check_whole
from companion.metrics import CodeUsage, nominal_bits, perplexity


def rate_bits(indices: Tensor, num_codes: int, *, depth: int | None = None) -> dict[str, float]:
    """What one position's stack of codes costs, in bits, by three ways of writing it down.

    "nominal": R·log₂K. "entropy": Σ_r H(k_r), each depth with the shares that its own codes have. "joint":
    H(k_1, …, k_R), the shares of whole stacks. Each is at most the one before. The shares are those of the indices
    given: with fewer positions than stacks there could be, "joint" comes out too small.

    Args:
        depth: R, if the last axis is to be compared with it. The indices of a plain quantizer, (N, h, w), have no axis
            of depths: without ``depth`` their last axis is taken for it. Give ``indices[..., None]``.

    Shapes:
        indices: (N, *spatial, R) int64.

    Raises:
        ValueError: not int64, no indices, an index outside 0…K − 1, or a last axis that is not ``depth`` long.
    """
    check_size("num_codes", num_codes)
    check_codes("indices", indices, num_codes)
    if indices.ndim < 2 or indices.numel() == 0:
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, want (N, *spatial, R) with at least one code")
    if depth is not None:
        check_whole("depth", depth)
        if indices.shape[-1] != depth:
            raise ValueError(
                f"depth: got {depth} with indices of shape {tuple(indices.shape)}, want the length of their last axis "
                "(the indices of a plain quantizer have no axis of depths: give indices[..., None])"
            )
    stacks = indices.reshape(-1, indices.shape[-1])  # (N·T, R)
    counts = torch.unique(stacks, dim=0, return_counts=True)[1]
    return {
        "nominal": nominal_bits(num_codes, (stacks.shape[1],)),
        "entropy": sum(CodeUsage(num_codes).update(one).entropy_bits for one in stacks.unbind(1)),
        "joint": math.log2(perplexity(counts)),
    }

"""k-means (Lloyd's algorithm), from which an EMA codebook takes its first codes (chapters 03 and 05)."""

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import check_codes, check_flag, check_size, check_tensor, check_whole
from companion._warnings import warn
from companion.quantizers import _processes
from companion.quantizers.base import count_codes
from companion.quantizers.search import check_directions, nearest_code


@torch.no_grad()
def k_means(
    vectors: Tensor, num_codes: int, *, seed: int = 0, stream: int = 0, iterations: int = 20, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (1957/1982) from ``num_codes`` vectors drawn at random, over all processes together.

    A centre that no vector chose stays where it was; with ``cosine`` so does one whose vectors cancel to 0. It ends
    early when no vector changes its centre: the centres are then the means of the vectors that chose them.

    Args:
        seed: of the first centres; ``stream`` tells several draws with one seed apart.

    Shapes:
        vectors: (N, D) → centres (K, D) and how many vectors chose each, (K,).

    Raises:
        ValueError: fewer vectors than centres, or an argument is out of range.
    """
    check_tensor("vectors", vectors, shape=("N", "D"), finite=True)
    check_size("num_codes", num_codes)
    check_size("iterations", iterations)
    check_whole("seed", seed, least=0)
    check_whole("stream", stream, least=0)
    check_flag("cosine", cosine)
    drawable = vectors
    if cosine:  # a centre has to have a direction
        check_directions("vectors", vectors[vectors.norm(dim=1).argmax(keepdim=True)])
        drawable = vectors[vectors.any(1)]
    available = _processes.total_number(len(vectors), vectors.device)
    if available < num_codes:
        raise ValueError(f"vectors: got {available} for k-means with {num_codes} codes, want at least as many")
    centres = _processes.draw(drawable, num_codes, seed=seed, stream=stream, step=0)
    if num_codes > 1 and bool((centres == centres[0]).all()):
        warn(f"vectors: got {num_codes} draws of one and the same vector: all centres are equal")
    indices = nearest_code(vectors, centres)
    for _ in range(iterations):
        counts, sums = code_statistics(vectors, indices, num_codes)
        means = sums / counts.clamp(min=1)[:, None]
        moves = counts > 0
        if cosine:
            moves &= means.any(1)  # vectors that cancel have a mean without a direction
            means = functional.normalize(means, dim=1)
        centres = torch.where(moves[:, None], means, centres)
        before, indices = indices, nearest_code(vectors, centres)
        if int(_processes.total((indices != before).sum())) == 0:
            break
    return centres, code_statistics(vectors, indices, num_codes)[0]


def code_statistics(vectors: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sum, over all processes; without an (N, K) matrix of zeros and ones.

    Shapes:
        vectors: (N, D), indices: (N,) int64 → counts (K,) and sums (K, D), in the vectors' dtype. N may be 0.

    Raises:
        ValueError: the shapes do not fit, or an index lies outside 0…K − 1.
    """
    check_size("num_codes", num_codes)
    check_tensor("vectors", vectors, finite=True)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"vectors: got shape {tuple(vectors.shape)}, want (N, D)")
    check_tensor("indices", indices, shape=(len(vectors),), dtype=torch.int64)
    check_codes("indices", indices, num_codes)
    counts = count_codes(indices, num_codes, stacked=False).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, indices, vectors)
    return _processes.total(counts), _processes.total(sums)

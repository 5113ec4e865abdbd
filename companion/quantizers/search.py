"""Which code is nearest? In bounded memory, and right also far from the origin."""

import torch
from torch import Tensor

from companion.quantizers.base import check_finite, working

# Bytes of the table of distances that exist at one time: what a CPU's cache holds, what keeps a GPU busy.
_TABLE = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code at the least Euclidean distance, of equally near ones any.

    ‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖², of which ‖z‖² is the same for all codes; so the nearest code is the one with the
    largest z·e − ‖e‖²/2. Both are moved first so that the mean of the codes is at the origin: far from it the two terms
    are large, nearly cancel, and leave no digits of the distance. Computed in float32 (float64 where either input is),
    also under autocast, a few megabytes of the N × K table at a time.

    Shapes:
        z: (N, D), codebook: (K, D), floating point → (N,) int64.

    Raises:
        ValueError: the shapes do not fit, or a number is NaN or infinite.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or len(codebook) == 0:
        raise ValueError(
            f"z, codebook: got shapes {tuple(z.shape)} and {tuple(codebook.shape)}, want (N, D) and (K, D)"
        )
    check_finite("codebook", codebook)
    if len(z):
        check_finite("z", z)
    with torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(working(z[:0]).dtype, working(codebook[:0]).dtype)
        centre = codebook.to(dtype).mean(0)
        codes = codebook.to(dtype) - centre  # (K, D)
        bias = codes.square().sum(1).div_(-2)  # (K,)
        size = _TABLE.get(z.device.type, _TABLE["cpu"]) // (codes.element_size() * len(codes))
        size = max(1, min(size, len(z)))
        table = codes.new_empty(size, len(codes))
        nearest = torch.empty(len(z), dtype=torch.int64, device=z.device)
        for start in range(0, len(z), size):
            part = z[start : start + size].to(dtype) - centre  # (size, D)
            scores = torch.addmm(bias, part, codes.T, out=table[: len(part)])  # (size, K)
            torch.argmax(scores, dim=1, out=nearest[start : start + size])
    return nearest

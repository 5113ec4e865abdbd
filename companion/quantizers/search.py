"""Which code is nearest? In bounded memory, and right also far from the origin."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import check_finite, check_place, check_tensor, checks_values
from companion._devices import at_least_float32

# Bytes of the table of scores that exist at one time: what a CPU's cache holds, what keeps a GPU busy.
_TABLE = {"cpu": 4 * 2**20, "cuda": 32 * 2**20}
_SOME = 64  # codes of which the middle is taken
_CODES = 4096  # most columns of that table: with more, so few rows fit that the product gets slower on a CPU


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code at the smallest Euclidean distance; where several are equally near, one of them.

    The same as ``torch.cdist(z, codebook).argmin(1)``, without its (N, K) table, and right also far from the origin.
    Of ‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖² the first term is the same for all codes, so the nearest code has the largest
    score z·e − ‖e‖²/2. Latents and codes are first moved so that the middle of the codes is at the origin: far from it
    the two terms of the score are large and nearly cancel, and rounding leaves no digits of the distance. (So it does
    where the codes themselves are in two clouds, far apart and each narrow.) The middle is the median in each dimension
    of some of the codes, which a few codes that ran away do not move. Computed in float32 (float64 where either input
    is), also under autocast and where TF32 is allowed, in a few megabytes (32 on a GPU). So it is under
    ``torch.compile`` too. What ``torch.export`` makes has the whole (N, K) table, and multiplies as the program that
    runs it allows.

    Shapes:
        z: (N, D), codebook: (K, D), floating point → (N,) int64.

    Raises:
        ValueError: the shapes do not fit, or a number is NaN or infinite.
    """
    check_tensor("z", z)
    if z.ndim != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (N, D)")
    check_tensor("codebook", codebook, shape=("K", z.shape[1]))
    check_place("z", z, codebook.device)
    check_finite("codebook", codebook)
    check_finite("z", z)
    if torch.compiler.is_exporting():
        return _search_in_one_table(z, codebook)
    return _search_as_one_operation(z, codebook) if torch.compiler.is_compiling() else _search(z, codebook)


def _search(z: Tensor, codebook: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False), _exact_products():
        return _largest_score(z, *_centred(z, codebook))


def _centred(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The middle of the codes (D,), the codes relative to it (K, D), and −‖e‖²/2 of each (K,)."""
    dtype = torch.promote_types(*(at_least_float32(part[:0]).dtype for part in (z, codebook)))  # [:0]: no copy
    some = codebook[:: -(-len(codebook) // _SOME)].to(dtype)
    centre = some.sort(0).values[len(some) // 2]  # (D,)
    codes = codebook.to(dtype) - centre  # (K, D)
    return centre, codes, codes.square().sum(1).div_(-2)


def _largest_score(z: Tensor, centre: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
    """``((z - centre) @ codes.T + bias).argmax(1)``, of which a block of ``rows`` × ``columns`` exists at a time.

    Up to 4,096 codes are one block of columns; then only the loop over rows matters.
    """
    columns = min(_CODES, len(codes))
    rows = max(1, min(_TABLE.get(z.device.type, _TABLE["cpu"]) // (codes.element_size() * columns), len(z)))
    table = codes.new_empty(rows * columns)  # memory for every block; a smaller last one takes a part of it
    nearest = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for row in range(0, len(z), rows):
        part = z[row : row + rows].to(codes.dtype) - centre  # (rows, D)
        best = part.new_full((len(part),), -torch.inf)
        for column in range(0, len(codes), columns):
            block = codes[column : column + columns]  # (columns, D)
            scores = table[: len(part) * len(block)].view(len(part), len(block))  # (rows, columns)
            torch.addmm(bias[column : column + columns], part, block.T, out=scores)
            index = scores.argmax(1)
            if columns < len(codes):  # is this block's best the best so far?
                score = scores.gather(1, index[:, None])[:, 0]
                index = torch.where(score > best, index + column, nearest[row : row + rows])
                best = torch.maximum(score, best)
            nearest[row : row + rows] = index
    return nearest


# What torch traces. Its compiler takes the search as one operation of our own, into which it does not look: it stays
# exact there, and in bounded memory. An exported graph must run without this library, so it holds operations of torch.


@torch.library.custom_op("companion::nearest_code", mutates_args=())
def _search_as_one_operation(z: Tensor, codebook: Tensor) -> Tensor:
    return _search(z, codebook)


@_search_as_one_operation.register_fake
def _(z: Tensor, codebook: Tensor) -> Tensor:
    """The shape and type of the result, which is all that the compiler has to know."""
    return torch.empty(z.shape[0], dtype=torch.int64, device=z.device)


def _search_in_one_table(z: Tensor, codebook: Tensor) -> Tensor:
    """Without loops, writing in place, and the precision switch, none of which can be exported."""
    with torch.autocast(z.device.type, enabled=False):
        centre, codes, bias = _centred(z, codebook)
        return ((z.to(codes.dtype) - centre) @ codes.T + bias).argmax(1)  # (N, K) → (N,)


def cosine_lookup(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code at the smallest angle, whatever the lengths (Yu et al. 2022, section 3.2).

    Of vectors of length 1, ‖z − e‖² = 2 − 2 cos: the nearest code is the one at the smallest angle. A z of length 0 has
    no angle; it gets any one of the codes.

    Shapes:
        z: (N, D), codebook: (K, D), floating point → (N,) int64. N may be 0.

    Raises:
        ValueError: the shapes do not fit, or a number is NaN or infinite.
    """
    check_tensor("codebook", codebook, shape=("K", "D"))
    check_tensor("z", z)
    if z.ndim != 2:
        raise ValueError(f"z: got shape {tuple(z.shape)}, want (N, D)")
    check_directions("codebook", codebook)
    return nearest_code(functional.normalize(z, dim=1), functional.normalize(codebook, dim=1))


def check_directions(name: str, vectors: Tensor) -> None:
    """
    Raises:
        ValueError: a vector of ``vectors`` (N, D) has length 0, and so no direction.
    """
    if checks_values(vectors) and not bool((vectors.norm(dim=1) > 0).all()):
        raise ValueError(f"{name}: got one of length 0, want vectors with a direction (cosine compares angles)")


@contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products with all digits of float32, also where ``torch.set_float32_matmul_precision`` allows fewer."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    allowed = [(one, one.fp32_precision) for one in backends if one.fp32_precision not in ("none", "ieee")]
    for backend, _ in allowed:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in allowed:
            backend.fp32_precision = precision

"""Numbers that say how good a reconstruction is, and what its codes cost."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from companion._devices import as_float64


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over every pixel of every image.

    Shapes:
        x_hat, x: the same shape, floating point → a scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or the numbers are integers (uint8 wraps around).
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat: got shape {tuple(x_hat.shape)}, want that of x, {tuple(x.shape)}")
    for name, value in (("x_hat", x_hat), ("x", x)):
        if not value.is_floating_point():
            raise ValueError(f"{name}: got dtype {value.dtype}, want floating point")
    return (x_hat - x).square().mean()


def distortion(error: float, variance: float) -> float:
    """Test MSE in units of the variance of all training pixels (one global number): 0 is perfect; 1 is what the
    best single grey value would reach.

    Raises:
        ValueError: the variance is not positive.
    """
    if not variance > 0:
        raise ValueError(f"variance: got {variance}, want a positive number")
    return error / variance


def nominal_bits(num_codes: int, grid: Sequence[int]) -> float:
    """What the codes of one image cost without a model of them: T·R·log₂K, ``grid`` being (h, w) or (h, w, R).

    Raises:
        ValueError: an argument is not positive.
    """
    if num_codes < 1 or min(grid, default=1) < 1:
        raise ValueError(f"num_codes, grid: got {num_codes} and {tuple(grid)}, want positive numbers")
    return math.prod(grid) * math.log2(num_codes)


class CodeUsage:
    """How often each code was chosen, added up over as many batches as there are.

    The perplexity of a data set is that of the *summed* counts. The mean over batches of each batch's perplexity is
    smaller and depends on the batch size: a batch of N indices cannot use more than N codes.

    Args:
        num_codes: K.
        per_position: keep the counts of each position apart, (*grid, K) of them, for ``entropy_bits_per_position``.
    """

    def __init__(self, num_codes: int, *, per_position: bool = False) -> None:
        if num_codes < 1:
            raise ValueError(f"num_codes: got {num_codes}, want at least 1")
        self.num_codes = num_codes
        self.per_position = per_position
        self._table: Tensor | None = None  # (T, K), or (1, K)

    def update(self, indices: Tensor) -> "CodeUsage":
        """Count a batch: (B, *grid) int64. With ``per_position``, the grid of every batch must be the same.

        Raises:
            ValueError: not int64, an index outside 0…K − 1, or another grid than before.
        """
        if indices.dtype != torch.int64:
            raise ValueError(f"indices: got dtype {indices.dtype}, want int64")
        columns = indices.reshape(-1, math.prod(indices.shape[1:]) if self.per_position else 1)  # (n, T or 1)
        positions = columns.shape[1]
        if self._table is not None and len(self._table) != positions:
            raise ValueError(f"indices: got {positions} positions an image, want {len(self._table)} as before")
        if indices.numel():
            low, high = (int(value) for value in indices.aminmax())
            if low < 0 or high >= self.num_codes:
                raise ValueError(f"indices: got {low} to {high}, want 0 to {self.num_codes - 1}")
        cells = columns + self.num_codes * torch.arange(positions, device=indices.device)  # which of the T·K counters
        counts = torch.bincount(cells.flatten(), minlength=positions * self.num_codes).reshape(positions, -1)
        self._table = counts if self._table is None else self._table + counts.to(self._table.device)
        return self

    @property
    def counts(self) -> Tensor:
        """(K,) int64: how often each code was chosen, over all positions.

        Raises:
            ValueError: nothing was counted yet.
        """
        return self._counted().sum(0)

    @property
    def perplexity(self) -> float:
        """exp H of the codes' shares: as many codes, equally often used, would be as hard to guess. 1 to K."""
        return perplexity(self.counts)

    @property
    def usage(self) -> float:
        """The share of the K codes that were chosen at least once."""
        return as_float64(self.counts > 0).mean().item()

    @property
    def entropy_bits(self) -> float:
        """H of the codes' shares over all positions together, bits a position: at most log₂K."""
        return math.log2(self.perplexity)

    @property
    def entropy_bits_per_position(self) -> Tensor:
        """H of the codes' shares at each position, bits: (T,). Their sum is what a code without context would cost.

        Raises:
            ValueError: made without ``per_position``.
        """
        if not self.per_position:
            raise ValueError("per_position: got False, want CodeUsage(…, per_position=True)")
        share = as_float64(self._counted())
        share = share / share.sum(1, keepdim=True)
        return -torch.xlogy(share, share).sum(1) / math.log(2)

    def _counted(self) -> Tensor:
        if self._table is None or not bool(self._table.any()):
            raise ValueError("CodeUsage: nothing was counted yet, want at least one update")
        return self._table


def bits_per_image(indices: Tensor, num_codes: int) -> dict[str, float]:
    """What the codes of an image cost by three ways of writing them down, in bits.

    "nominal": T·log₂K, every code the same length. "entropy": T·H, H the entropy of the codes' shares over all
    positions. "per_position": Σₜ Hₜ, each position with its own shares. Each is at most the one before, if the shares
    are those of the images written; no context between positions is used, which is what a prior adds (chapter 07).

    Shapes:
        indices: (N, *grid) int64, the codes of N images.

    Raises:
        ValueError: not int64, no images, or an index outside 0…K − 1.
    """
    usage = CodeUsage(num_codes, per_position=True).update(indices)
    positions = usage.entropy_bits_per_position
    return {
        "nominal": nominal_bits(num_codes, indices.shape[1:]),
        "entropy": len(positions) * usage.entropy_bits,
        "per_position": positions.sum().item(),
    }


def perplexity(counts: Tensor) -> float:
    """exp H of the shares that ``counts`` (K,) give.

    Raises:
        ValueError: the counts are not one row of numbers with a positive sum.
    """
    if counts.ndim != 1 or not int(counts.sum()) > 0:
        raise ValueError(f"counts: got shape {tuple(counts.shape)}, want (K,) with a positive sum")
    share = as_float64(counts) / as_float64(counts.sum())
    return float((-torch.xlogy(share, share).sum()).exp())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the two Gaussians that have the means and covariances of two sets of features.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Dowson & Landau 1982; of images' features: Heusel et al. 2017, eq. 6),
    in float64. With (n − 1) Σ = RᵀR from a QR decomposition, the eigenvalues of Σ_a Σ_b are the squared singular values
    of R_a R_bᵀ, so that no matrix root is needed, and fewer examples than features do no harm.

    Two finite sets from one distribution differ already: compare distances of sets of equal size only.

    Shapes:
        a: (N, F), b: (M, F), N and M at least 2 → a number of at least 0.

    Raises:
        ValueError: other shapes, or a number is NaN or infinite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}, want (N, F) and (M, F), N, M ≥ 2")
    for name, features in (("a", a), ("b", b)):
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name}: got NaN or infinity, want finite numbers")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b.to(a.device))
    between = torch.linalg.svdvals(root_a @ root_b.T).sum()  # tr (Σ_a Σ_b)^½
    squares = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum()
    return max(0.0, float(squares - 2 * between))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (F,), and R with RᵀR = Σ."""
    x = as_float64(features.detach())
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1)).R


@torch.no_grad()
def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """For each image, the mean squared difference per pixel to the training image nearest to it: 0 for a copy.

    Divided by the variance of the training pixels it is in the units of ``distortion``. Training images are taken a
    few thousand at a time, and only a bounded piece of the table of distances exists at once.

    Shapes:
        images: (N, C, H, W), training: (M, C, H, W); floating point, or bytes as an ``ImageSet`` holds them, which are
        divided by 255 → (N,).

    Raises:
        ValueError: images of another size or type, or no training images.
    """
    from companion.quantizers.search import nearest_code  # here: the quantizers import this module

    if images.ndim != 4 or images.shape[1:] != training.shape[1:] or len(training) == 0:
        raise ValueError(
            f"images, training: got shapes {tuple(images.shape)} and {tuple(training.shape)}, want (N, C, H, W) and "
            "(M, C, H, W), M ≥ 1"
        )
    x = _pixels("images", images)  # (N, C·H·W)
    least = x.new_full((len(x),), math.inf)
    for start in range(0, len(training), 5_000):
        candidates = _pixels("training", training[start : start + 5_000]).to(x)
        nearest = candidates[nearest_code(x, candidates)]
        least = torch.minimum(least, (x - nearest).square().mean(1))
    return least


def _pixels(name: str, images: Tensor) -> Tensor:
    if images.is_floating_point():
        return images.flatten(1)
    if images.dtype == torch.uint8:
        return images.flatten(1).float().div_(255)
    raise ValueError(f"{name}: got dtype {images.dtype}, want floating point or uint8")

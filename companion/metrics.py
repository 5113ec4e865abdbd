"""How good a reconstruction is, what its codes cost, and how far two sets of images are apart."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import (
    brief,
    check_about_unit,
    check_between,
    check_channels_first,
    check_codes,
    check_finite,
    check_flag,
    check_images,
    check_number,
    check_place,
    check_same_shape,
    check_size,
    check_sizes,
    check_tensor,
    check_whole,
    checks_values,
)
from companion._devices import as_float64


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over every pixel of every image.

    Shapes:
        x_hat, x: the same shape, floating point → 0-dim.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), the tensors hold integers (uint8 wraps around) or
            nothing, or a number is NaN or infinite.
    """
    check_tensor("x", x, shape=("*axes",))
    check_same_shape("x_hat", x_hat, "x", x)
    error = (x_hat - x).square().mean()
    if checks_values(error) and not bool(error.isfinite()):  # one number is read, not every pixel
        check_finite("x_hat", x_hat)
        check_finite("x", x)
    return error


WINDOW = 11  # pixels on each side of the Gaussian window of SSIM
WINDOW_SIGMA = 1.5  # its standard deviation, in pixels


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity: are brightness, contrast and structure alike in each small window? (Wang et al. 2004)

    SSIM = (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)) (eq. 13), with means, variances and
    covariance under a Gaussian window of 11×11 pixels (σ = 1.5), C₁ = 0.01² and C₂ = 0.03² for images in [0, 1]. It is
    averaged over all windows that lie inside the image, over channels and over images: 1 for equal images, about 0
    where nothing is alike. Colours are compared channel by channel.

    Blur costs more here than it does in MSE, since it takes contrast away. Differentiable. Some libraries mirror the
    image at its edges and count the windows there too, so their numbers differ a little.

    Shapes:
        x_hat, x: (B, C, H, W), with H and W at least 11 → 0-dim. x in [0, 1]; x_hat, as a decoder gives it, may leave
        that range by up to 1.

    Raises:
        ValueError: shapes or types are others, the images are smaller than the window, x lies outside [0, 1], x_hat
            outside −1 … 2, or a number is NaN or infinite.
    """
    _check_pairs(x_hat, x)
    check_about_unit("x_hat", x_hat)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"x: got {x.shape[2]}×{x.shape[3]} images, want at least {WINDOW} pixels on each side")
    result = x.dtype
    if result not in (torch.float32, torch.float64):
        x_hat, x = x_hat.float(), x.float()
    with torch.autocast(x.device.type, enabled=False):  # squares of nearly equal numbers are subtracted
        a, b = x_hat.to(x.dtype).flatten(0, 1)[:, None], x.flatten(0, 1)[:, None]  # (B·C, 1, H, W): each plane alone
        mean_a, mean_b = _blurred(a), _blurred(b)  # (B·C, 1, H − 10, W − 10): μ of each window
        variance_a = _blurred(a * a) - mean_a.square()
        variance_b = _blurred(b * b) - mean_b.square()
        covariance = _blurred(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        brightness = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
        return (brightness * structure).mean().to(result)


def _blurred(planes: Tensor) -> Tensor:
    """(N, 1, H, W) → the mean under the Gaussian window at each position inside, (N, 1, H − 10, W − 10)."""
    offsets = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2  # −5 … 5
    weights = (-offsets.square() / (2 * WINDOW_SIGMA**2)).exp()
    weights = weights / weights.sum()
    rows = functional.conv2d(planes, weights.reshape(1, 1, -1, 1))  # a Gaussian in the plane is one along each axis
    return functional.conv2d(rows, weights.reshape(1, 1, 1, -1))


def sharpness(images: Tensor) -> Tensor:
    """How much fine detail images have: the variance of the Laplacian (Pech-Pacheco et al. 2000, "LAPV").

    The Laplacian is the difference of four times a pixel and the sum of its four neighbours. Where an image is smooth
    it is near 0; at edges and in texture it swings to both sides. Its variance over the pixels inside each channel is
    averaged over channels and images.

    The number depends on what is shown, so compare it with that of the originals: ``sharpness(x_hat) / sharpness(x)``
    is 1 for the same amount of detail and below 1 for blur. It does not say whether the detail is right: noise and
    checkerboard patterns count as sharp, and can bring the ratio above 1. Read it beside :func:`ssim` or MSE.

    Shapes:
        images: (B, C, H, W), with H and W at least 3, in about [0, 1] → 0-dim.

    Raises:
        ValueError: the shape or type is another, the channels come last, the images are smaller, or a number is NaN,
            infinite or outside −1 … 2.
    """
    check_tensor("images", images, shape=("B", "C", "H", "W"))
    if min(images.shape[2:]) < 3:
        raise ValueError(
            f"images: got {images.shape[2]}×{images.shape[3]} pixels, want at least 3 on each side: four neighbours"
        )
    check_channels_first("images", images)
    check_finite("images", images)
    check_about_unit("images", images)
    wide = images if images.dtype in (torch.float32, torch.float64) else images.float()
    middle = wide[..., 1:-1, 1:-1]  # (B, C, H − 2, W − 2)
    sides = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]
    laplacian = 4 * middle - sides
    return laplacian.var((2, 3), correction=0).mean().to(images.dtype)


def grid_energy(images: Tensor, patch: int) -> float:
    """How much a grid of patches shows: power at its frequencies over the mean power at the frequencies beside them.

    A model that draws squares of ``patch`` pixels, each by itself, leaves a pattern that repeats every ``patch`` pixels
    along both axes: seams, or a texture that is the same in all squares. An axis of n pixels has n / patch squares, so
    the pattern has its power at n / patch, 2n / patch, … periods an axis, up to half a period a pixel. Each of these is
    divided by the mean of the frequencies just below and above it (at the highest, by the one below alone); power is
    averaged over images, channels, lines and both axes before, and the ratios after that.

    1 where there is no grid, or somewhat less, since images have less power the higher the frequency; compare with the
    number of the originals. It does not depend on brightness or contrast, or on where the grid begins. A pattern of the
    images that repeats every ``patch`` pixels counts as well. What differs from square to square does not: a mosaic of
    squares, each of one colour, has no power at these frequencies, and a number near 0. To power and to what it is
    divided by a trillionth of all power is added, so flat images have 1.

    Shapes:
        images: (B, C, H, W), with H and W multiples of ``patch``, at least two of them.

    Raises:
        ValueError: the shape or type is another, the channels come last, ``patch`` is no whole number of at least 2, a
            side is no multiple of it or a single patch, or a number is NaN or infinite.
    """
    check_tensor("images", images, shape=("B", "C", "H", "W"))
    check_place("images", images, movable=True)
    check_channels_first("images", images)
    check_whole("patch", patch, least=2)
    for axis, side in zip(("height", "width"), images.shape[2:], strict=True):
        if side % patch or side < 2 * patch:
            raise ValueError(f"patch: got {patch} with images of {axis} {side}, want at least two whole patches a side")
    check_finite("images", images)
    x = as_float64(images.detach())
    at_grid, beside = torch.zeros(2, patch // 2, dtype=torch.float64, device=x.device)  # one for each harmonic
    for lines in (x, x.mT):
        power = torch.fft.rfft(lines, dim=-1, norm="ortho").abs().square().mean((0, 1, 2))  # (n // 2 + 1,)
        first = lines.shape[-1] // patch  # as many patches as a line has
        for i in range(patch // 2):
            k = (i + 1) * first
            at_grid[i] += power[k]
            beside[i] += torch.stack([power[n] for n in (k - 1, k + 1) if n < len(power)]).mean()
    little = 1e-12 * x.square().mean() + torch.finfo(torch.float64).tiny
    return float(((at_grid + little) / (beside + little)).mean())


def _check_pairs(x_hat: Tensor, x: Tensor) -> None:
    """Images, and reconstructions of them that may leave [0, 1]."""
    check_tensor("x_hat", x_hat, shape=("B", "C", "H", "W"))
    check_images("x", x)
    check_same_shape("x_hat", x_hat, "x", x)
    check_finite("x_hat", x_hat)


def distortion(error: float, variance: float) -> float:
    """Test MSE divided by the variance of all training pixels, one number for the data set.

    0 is perfect; 1 is the error of the best single grey value.

    Raises:
        ValueError: the error is negative, the variance is not positive, or one is not finite.
    """
    check_number("error", error, least=0)
    check_number("variance", variance, above=0)
    return error / variance


def nominal_bits(num_codes: int, grid: Sequence[int]) -> float:
    """Bits of the codes of one image if every code has the same length: T·R·log₂K.

    Args:
        num_codes: K.
        grid: the shape of the codes of one image: (h, w) or (h, w, R); (R,) for one position, () for a single code.

    Raises:
        ValueError: an argument is not positive.
    """
    check_whole("num_codes", num_codes)
    check_sizes("grid", grid, empty=True)
    return math.prod(grid) * math.log2(num_codes)


class CodeUsage:
    """How often each code was chosen, summed over any number of batches.

    The perplexity of a data set is that of the *summed* counts. The mean of the perplexities of its batches is smaller
    and depends on the batch size: a batch of N indices cannot use more than N codes.

    Args:
        num_codes: K.
        per_position: count each position separately, for ``entropy_bits_per_position``.
    """

    def __init__(self, num_codes: int, *, per_position: bool = False) -> None:
        check_size("num_codes", num_codes)
        check_flag("per_position", per_position)
        self.num_codes = num_codes
        self.per_position = per_position
        self._table: Tensor | None = None  # counts, (T, K), or (1, K) for all positions together

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("num_codes", "per_position") and name in vars(self):  # what is counted already has that shape
            raise ValueError(f"{name}: got {brief(value)}, want {vars(self)[name]} as it was; make a new CodeUsage")
        super().__setattr__(name, value)

    def update(self, indices: Tensor) -> "CodeUsage":
        """Count the indices of a batch. With ``per_position``, every batch must have the same number of positions.

        Shapes:
            indices: (B, *grid) int64.

        Raises:
            ValueError: not int64, an index outside 0…K − 1, or another number of positions than before.
        """
        check_codes("indices", indices, self.num_codes)
        check_place("indices", indices, movable=True)
        if indices.numel() == 0:
            return self
        columns = indices.reshape(-1, math.prod(indices.shape[1:]) if self.per_position else 1)  # (n, T or 1)
        positions = columns.shape[1]
        if self._table is not None and len(self._table) != positions:
            raise ValueError(f"indices: got {positions} positions an image, want {len(self._table)} as before")
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
        """exp H of the shares of the codes, the effective number of codes: 1 … K.

        That many codes, equally often used, have the same entropy.
        """
        return perplexity(self.counts)

    @property
    def usage(self) -> float:
        """The share of the K codes that were chosen at least once, 0 … 1."""
        return as_float64(self.counts > 0).mean().item()

    @property
    def entropy_bits(self) -> float:
        """H of the shares of the codes over all positions together, in bits per code: at most log₂K."""
        return math.log2(self.perplexity)

    @property
    def entropy_bits_per_position(self) -> Tensor:
        """H of the shares of the codes at each position, in bits, (T,).

        Their sum is the cost of an image whose positions are coded independently of each other.

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
    """Bits of the codes of one image, by three ways of coding them.

    * "nominal": T·log₂K, with the same length for every code;
    * "entropy": T·H, where H is the entropy of the shares of the codes over all positions;
    * "per_position": Σₜ Hₜ, where each position has shares of its own.

    Each is at most the one before, if the shares are those of the images that are coded. None uses what positions say
    about each other; a prior does (chapter 07).

    Shapes:
        indices: (N, *grid) int64, the codes of N images: of one image (1, *grid), as (h, w) would count as h images.

    Raises:
        ValueError: not int64, no images, or an index outside 0…K − 1.
    """
    check_tensor("indices", indices, shape=("N", "*grid"), dtype=torch.int64)
    check_size("num_codes", num_codes)
    check_place("indices", indices, movable=True)
    check_codes("indices", indices, num_codes)
    columns = indices.flatten(1).T  # (T, N)
    return {
        "nominal": nominal_bits(num_codes, indices.shape[1:]),
        "entropy": len(columns) * _entropy_bits(columns),
        "per_position": math.fsum(map(_entropy_bits, columns)),
    }


def _entropy_bits(codes: Tensor) -> float:
    """H of the shares of the codes that occur, in bits: the others add nothing, and may be many."""
    return math.log2(perplexity(codes.unique(return_counts=True)[1]))


def perplexity(counts: Tensor) -> float:
    """exp H of the shares of the codes: the effective number of codes, 1 … K.

    Shapes:
        counts: (K,), how often each code was chosen: ``torch.bincount(codes.flatten(), minlength=K)``, and not the
        codes themselves, which are numbers of the same kind.

    Raises:
        ValueError: the counts are not one row of finite numbers of at least 0, or they are all 0.
    """
    whole = isinstance(counts, Tensor) and counts.dtype in (torch.int32, torch.int64)
    check_tensor("counts", counts, shape=("K",), dtype=counts.dtype if whole else None, finite=True)
    check_place("counts", counts, movable=True)
    check_between("counts", counts, 0, math.inf)
    if not float(counts.sum()) > 0:
        raise ValueError("counts: got zeros only, want at least one code that was chosen")
    share = as_float64(counts) / as_float64(counts.sum())
    return float((-torch.xlogy(share, share).sum()).exp())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between two Gaussians that have the means and covariances of two sets of features.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Dowson & Landau 1982; for features of images: Heusel et al. 2017,
    eq. 6), in float64. With Σ = RᵀR from a QR decomposition of the centred features, the eigenvalues of Σ_a Σ_b are the
    squared singular values of R_a R_bᵀ. So no matrix root is needed, and there may be fewer examples than features.

    Two finite sets from one distribution have a distance too, so compare only distances of sets of equal size.

    Shapes:
        a: (N, F), b: (M, F), with N and M at least 2.

    Raises:
        ValueError: the shapes are others, or a number is NaN, infinite or too large to be squared.
    """
    check_tensor("a", a, shape=("N", "F"), finite=True)
    check_tensor("b", b, shape=("M", a.shape[1]), finite=True)
    for name, features in (("a", a), ("b", b)):
        check_place(name, features, movable=True)
        if len(features) < 2:
            raise ValueError(f"{name}: got one row, want at least 2: one has no covariance")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b.to(a.device))
    between = torch.linalg.svdvals(root_a @ root_b.T).sum()  # tr (Σ_a Σ_b)^½
    squares = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum()
    distance = float(squares - 2 * between)
    if not math.isfinite(distance):
        raise ValueError("a, b: got numbers whose squares are no finite float64, want smaller ones")
    return max(0.0, distance)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(n, F) → the mean (F,), and R with RᵀR = Σ."""
    x = as_float64(features.detach())
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1)).R

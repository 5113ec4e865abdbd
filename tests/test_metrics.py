"""Metrics."""

import math
import statistics

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from companion.metrics import (
    CodeUsage,
    bits_per_image,
    distortion,
    frechet_distance,
    grid_energy,
    mse,
    nominal_bits,
    perplexity,
    sharpness,
    ssim,
)


def test_mse_is_the_mean_over_every_number():
    x, x_hat = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    x_hat[0, 0, 0, 0] = 4.0
    assert mse(x_hat, x).item() == 2.0


def test_mse_refuses_shapes_that_would_be_stretched():
    with pytest.raises(ValueError, match=r"x_hat: got shape \(5, 4, 4\), want that of x, \(5, 1, 4, 4\)"):
        mse(torch.ones(5, 4, 4), torch.zeros(5, 1, 4, 4))


def test_mse_refuses_bytes():
    """10 − 11 is 255 in bytes."""
    byte = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="x_hat: got uint8"):
        mse(byte, byte.float())


def test_distortion_of_the_mean_grey_is_one():
    x = torch.rand(50, 1, 4, 4)
    error = mse(x.mean().expand_as(x), x).item()
    assert distortion(error, x.var(correction=0).item()) == pytest.approx(1)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_distortion_refuses_a_variance_that_is_none(variance):
    with pytest.raises(ValueError, match="variance"):
        distortion(0.1, variance)


def test_nominal_bits_are_positions_times_log_codes():
    assert nominal_bits(512, (8, 8)) == 64 * 9
    assert nominal_bits(256, (7, 7, 2)) == 98 * 8
    assert nominal_bits(100, (3,)) == pytest.approx(3 * math.log2(100))
    with pytest.raises(ValueError, match="num_codes: got 0"):
        nominal_bits(0, (2, 2))


def test_perplexity_of_even_use_is_the_number_of_codes_used():
    usage = CodeUsage(8).update(torch.tensor([[0, 1], [2, 3]]))
    assert usage.perplexity == pytest.approx(4)
    assert usage.entropy_bits == pytest.approx(2)
    assert usage.usage == 0.5
    assert usage.counts.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_perplexity_is_that_of_the_summed_counts_whatever_the_batches():
    """The mean of batch perplexities is smaller, and depends on the batch size."""
    indices = torch.randint(0, 64, (240, 3), generator=torch.Generator().manual_seed(0))
    wanted = CodeUsage(64).update(indices).perplexity
    for size in (7, 40, 240):
        usage = CodeUsage(64)
        for batch in indices.split(size):
            usage.update(batch)
        assert usage.perplexity == pytest.approx(wanted)
    means = [
        statistics.fmean(CodeUsage(64).update(batch).perplexity for batch in indices.split(size)) for size in (6, 24)
    ]
    assert means[0] < means[1] < 0.95 * wanted


def test_entropy_per_position_sees_what_the_one_over_all_positions_cannot():
    """Each position always has its own code: nothing is left to say, although all codes are used evenly."""
    indices = torch.arange(4).reshape(1, 2, 2).expand(10, 2, 2)
    usage = CodeUsage(4, per_position=True).update(indices)
    assert usage.entropy_bits == pytest.approx(2)
    assert usage.entropy_bits_per_position.tolist() == pytest.approx([0, 0, 0, 0])
    with pytest.raises(ValueError, match="per_position"):
        _ = CodeUsage(4).update(indices).entropy_bits_per_position
    with pytest.raises(ValueError, match="got 2 positions an image, want 4"):
        usage.update(torch.zeros(1, 2, dtype=torch.int64))


@given(
    num_codes=st.integers(1, 30),
    batches=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    grid=st.lists(st.integers(1, 4), max_size=2),
    seed=st.integers(0, 50),
)
def test_usage_and_perplexity_stay_in_their_range(num_codes, batches, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    usage = CodeUsage(num_codes, per_position=True)
    drawn = [torch.randint(0, num_codes, (n, *grid), generator=generator) for n in batches]
    for indices in drawn:
        usage.update(indices)
    assert 1 - 1e-9 <= usage.perplexity <= usage.usage * num_codes + 1e-9
    assert usage.entropy_bits <= math.log2(num_codes) + 1e-9
    assert usage.counts.sum() == sum(indices.numel() for indices in drawn)
    assert float(usage.entropy_bits_per_position.mean()) <= usage.entropy_bits + 1e-9  # H is concave


@pytest.mark.parametrize("bad", [torch.tensor([0, 4]), torch.tensor([-1]), torch.tensor([0.0])])
def test_usage_refuses_what_is_no_code(bad):
    with pytest.raises(ValueError, match="indices"):
        CodeUsage(4).update(bad)


def test_usage_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing was counted"):
        _ = CodeUsage(4).perplexity
    with pytest.raises(ValueError, match="num_codes"):
        CodeUsage(0)
    with pytest.raises(ValueError, match="counts"):
        perplexity(torch.zeros(3))


def test_bits_per_image_by_hand():
    """Two positions; the first is always code 0, the second 1, 2, 3 or 0."""
    indices = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]])
    bits = bits_per_image(indices, 8)
    share = torch.tensor([5, 1, 1, 1]) / 8
    assert bits["nominal"] == 6
    assert bits["entropy"] == pytest.approx(2 * -float((share * share.log2()).sum()))
    assert bits["per_position"] == pytest.approx(2)
    assert bits["nominal"] >= bits["entropy"] >= bits["per_position"]
    with pytest.raises(ValueError, match=r"indices: got int64 of shape \(0, 2\)"):
        bits_per_image(indices[:0], 8)


def drawn(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: torch.Tensor, root: torch.Tensor, n: int = 50, seed: int = 0) -> torch.Tensor:
    """(n, F) examples whose mean is ``mean`` and whose covariance is ``root``ᵀ ``root``, both exactly."""
    x = drawn(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.qr(x).R) * math.sqrt(n - 1)
    return white @ root + mean


def test_frechet_distance_of_exact_gaussians():
    """Of N(μ, a²I) and N(ν, b²I): ‖μ − ν‖² + F (a − b)²; with covariances that commute, Σᵢ (aᵢ − bᵢ)² in their axes."""
    mean, eye = drawn(6), torch.eye(6, dtype=torch.float64)
    same = frechet_distance(gaussian(mean, 2 * eye), gaussian(mean, 2 * eye, n=90, seed=1))
    assert same == pytest.approx(0, abs=1e-9)
    assert frechet_distance(gaussian(mean, eye), gaussian(mean + 3, eye, seed=1)) == pytest.approx(6 * 9)
    assert frechet_distance(gaussian(mean, 2 * eye), gaussian(mean, 5 * eye, seed=1)) == pytest.approx(6 * 9)
    a, b = torch.arange(1.0, 7).double(), torch.tensor([3.0, 0, 1, 1, 8, 2]).double()
    turn = torch.linalg.qr(drawn(6, 6)).Q
    far = frechet_distance(gaussian(mean, a.diag() @ turn), gaussian(mean, b.diag() @ turn, seed=1))
    assert far == pytest.approx(float((a - b).square().sum()))


def by_matrix_root(a: torch.Tensor, b: torch.Tensor) -> float:
    """As it is usually written (Heusel et al. 2017), with scipy's root of a matrix."""
    sigma_a, sigma_b = a.T.cov(), b.T.cov()
    root = scipy.linalg.sqrtm((sigma_a @ sigma_b).cpu().numpy())
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + sigma_a.trace() + sigma_b.trace() - 2 * root.trace().real)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (60, 300), (21, 40)])
def test_frechet_distance_is_that_by_the_root_of_a_matrix(n, m):
    a, b = drawn(n, 20) @ drawn(20, 20, seed=1), drawn(m, 20, seed=2) + 0.3
    assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_of_a_set_to_itself_is_nothing():
    for n in (2, 5, 40):  # also with fewer examples than features, when the covariance has no inverse
        x = drawn(n, 12)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
        assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    constant = torch.ones(4, 3)
    assert frechet_distance(constant, constant + 2) == pytest.approx(12)


def test_frechet_distance_keeps_its_digits_far_from_the_origin():
    a, b = drawn(200, 8), 1.1 * drawn(200, 8, seed=1)
    near = frechet_distance(a, b)
    assert frechet_distance(a + 1000, b + 1000) == pytest.approx(near, rel=1e-6)
    squares = [(x + 1000).float().T @ (x + 1000).float() / 200 for x in (a, b)]  # the wrong version: E[xxᵀ] − μμᵀ
    means = [(x + 1000).float().mean(0) for x in (a, b)]
    wrong = [s - m[:, None] * m for s, m in zip(squares, means, strict=True)]
    assert max(float((w - x.T.cov()).abs().max()) for w, x in zip(wrong, (a, b), strict=True)) > 0.05


def test_frechet_distance_falls_with_the_number_of_examples():
    """Two sets from one distribution: the distance is of the sets, and only sets of equal size can be compared."""
    few, many = (frechet_distance(drawn(n, 30), drawn(n, 30, seed=1)) for n in (50, 1000))
    assert few > 5 * many > 0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), r"b: got float32 of shape \(5, 4\), want .* \(M, 3\)"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "a: got one row, want at least 2"),
        (torch.zeros(5), torch.zeros(5), r"a: got float32 of shape \(5,\)"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.nan), "b: got 15 NaN"),
    ],
)
def test_frechet_distance_refuses_what_has_no_covariance(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_bits_of_an_image_take_no_table_of_all_codes_at_all_positions():
    indices = torch.zeros(2, 32, 32, dtype=torch.int64)
    indices[1, :, 16:] = 2**18 - 1
    bits = bits_per_image(indices, 2**24)  # a table of 1,024 positions × 2²⁴ codes would take 128 GB
    assert bits["nominal"] == 1024 * 24
    bits = bits_per_image(indices, 2**18)
    assert bits["nominal"] == 1024 * 18
    assert bits["entropy"] == pytest.approx(1024 * -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert bits["per_position"] == pytest.approx(512)
    many = torch.randint(0, 7, (40, 3, 2), generator=torch.Generator().manual_seed(0))
    usage = CodeUsage(7, per_position=True).update(many)
    assert bits_per_image(many, 7)["per_position"] == pytest.approx(float(usage.entropy_bits_per_position.sum()))
    assert bits_per_image(many, 7)["entropy"] == pytest.approx(6 * usage.entropy_bits)


# Images


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise with large and small patterns, in [0, 1]."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return (noise + functional.avg_pool2d(noise, 5, stride=1, padding=2)) / 2


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 20), (1, 1, 11, 11)])
def test_ssim_is_that_of_torchmetrics_over_the_windows_inside_the_image(shape):
    x = pictures(*shape)
    for x_hat in (x.clone(), pictures(*shape, seed=1), 0.5 * x, 1 - x, 1.3 * x - 0.2):
        _, windows = structural_similarity_index_measure(x_hat, x, data_range=1.0, return_full_image=True)
        torch.testing.assert_close(ssim(x_hat, x), windows[..., 5:-5, 5:-5].mean(), rtol=1e-4, atol=1e-5)
    # torchmetrics' own mean also counts windows that reach over the edge, where it mirrors the image
    with_edges = structural_similarity_index_measure(pictures(*shape, seed=1), x, data_range=1.0)
    assert abs(ssim(pictures(*shape, seed=1), x) - with_edges) > 1e-3


def test_ssim_of_two_flat_images_is_what_equation_13_says():
    """Without variance, only the term of brightness is left."""
    x_hat, x = torch.full((2, 3, 16, 16), 0.25).double(), torch.full((2, 3, 16, 16), 0.75).double()
    wanted = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(x_hat, x).item() == pytest.approx(wanted, abs=1e-12)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-12)


def test_ssim_sees_blur_that_mse_finds_as_small_as_a_shift_in_brightness():
    x = pictures(4, 1, 28, 28)
    blurred = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    brighter = x + mse(blurred, x).sqrt()
    assert mse(brighter, x).item() == pytest.approx(mse(blurred, x).item())
    assert ssim(blurred, x) < ssim(brighter, x) - 0.1


def test_ssim_treats_every_colour_of_every_image_alone():
    x, x_hat = pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=1)
    single = [ssim(x_hat[i : i + 1, c : c + 1], x[i : i + 1, c : c + 1]).item() for i in range(2) for c in range(3)]
    assert ssim(x_hat, x).item() == pytest.approx(statistics.fmean(single), abs=1e-6)
    assert max(single) - min(single) > 0.01


def test_ssim_has_a_finite_gradient_also_at_equal_and_at_flat_images():
    for x in (pictures(1, 1, 12, 12).double(), torch.zeros(1, 1, 12, 12).double()):
        x_hat = x.clone().requires_grad_()
        ssim(x_hat, x).backward()
        torch.testing.assert_close(x_hat.grad, torch.zeros_like(x), atol=1e-9, rtol=0)  # 1 is the most there is
    other = pictures(1, 1, 12, 12, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x_hat: ssim(x_hat, x), other)


def test_ssim_in_half_precision_is_computed_in_float32(autocast):
    x, x_hat = pictures(2, 1, 16, 16), pictures(2, 1, 16, 16, seed=1)
    wanted = ssim(x_hat, x)
    with autocast():
        assert ssim(x_hat, x).item() == wanted.item()
    half = ssim(x_hat.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.float().item() == pytest.approx(wanted.item(), abs=0.02)


def test_ssim_refuses_what_has_no_window_and_other_ranges():
    with pytest.raises(ValueError, match="x: got 10×12 images, want at least 11 pixels"):
        ssim(torch.rand(1, 1, 10, 12), torch.rand(1, 1, 10, 12))
    with pytest.raises(ValueError, match="x: got numbers from 0 to 255, want images in"):
        ssim(torch.rand(1, 1, 16, 16), torch.linspace(0, 255, 256).reshape(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"x_hat: got shape \(1, 1, 16, 16\), want that of x"):
        ssim(torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16))


def test_sharpness_is_the_variance_of_the_laplacian():
    x = torch.zeros(1, 1, 4, 5, dtype=torch.float64)
    x[0, 0, 1, 1] = 1.0  # the Laplacian inside: 4 there, −1 to its right and below it, and 0 three times
    values = [4.0, -1.0, 0.0, -1.0, 0.0, 0.0]
    assert sharpness(x).item() == pytest.approx(statistics.pvariance(values))
    slope = torch.linspace(0, 1, 20).expand(2, 3, 20, 20)
    assert sharpness(slope).item() == pytest.approx(0, abs=1e-10)  # an even slope has no edge


def test_sharpness_is_the_mean_over_colours_and_images():
    x = pictures(2, 3, 8, 8)
    single = [sharpness(x[i : i + 1, c : c + 1]).item() for i in range(2) for c in range(3)]
    assert sharpness(x).item() == pytest.approx(statistics.fmean(single))


def test_sharpness_falls_with_blur_and_rises_with_noise_which_is_its_caveat():
    x = pictures(3, 3, 32, 32)
    blurred = functional.avg_pool2d(x, 3, stride=1)
    assert sharpness(blurred) < 0.2 * sharpness(x)
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert sharpness(noisy) > 1.5 * sharpness(x)
    assert ssim(noisy, x) < 0.9


def test_sharpness_of_fewer_than_three_pixels_is_refused():
    with pytest.raises(ValueError, match="images: got 2×8 pixels, want at least 3"):
        sharpness(torch.rand(1, 1, 2, 8))
    with pytest.raises(ValueError, match="images: got 1 NaN"):
        sharpness(torch.where(torch.arange(16).reshape(1, 1, 4, 4) == 5, math.nan, 0.5))


def test_sharpness_and_ssim_refuse_bytes_and_channels_that_come_last():
    x = pictures(2, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"images: got numbers from .* to 20\d.*, want images in about \[0, 1\]: images / 255"
    ):
        sharpness(x * 255)
    with pytest.raises(
        ValueError, match=r"images: got shape \(2, 16, 16, 3\), want \(B, C, H, W\), the channels first"
    ):
        sharpness(x.permute(0, 2, 3, 1))
    with pytest.raises(
        ValueError, match=r"x_hat: got numbers from .* to 20\d.*, want images in about \[0, 1\]: x_hat / 255"
    ):
        ssim(x * 255, x)
    with pytest.raises(ValueError, match=r"x_hat: got numbers from -1\.\d+ to .*, want images in about \[0, 1\]$"):
        ssim(x - 2, x)
    wide = pictures(1, 5, 16, 3)
    assert sharpness(wide.permute(0, 2, 3, 1)[:, :3].contiguous()) > 0  # three channels: their width may be 3
    assert 0 < ssim(x * 1.5 - 0.25, x) < 1


# The grid of patches


def smooth_fields(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random fields that go on across their edges, with less power the higher the frequency; none stands out."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    down, right = (torch.fft.fftfreq(side).double() for side in shape[-2:])  # periods a pixel
    frequency = (down[:, None].square() + right.square()).sqrt()
    return torch.fft.ifft2(torch.fft.fft2(noise) / (1 + 4 * frequency)).real.float()


def tiled(height: int, width: int, patch: int) -> torch.Tensor:
    """One texture, the same in every patch, (1, 3, height, width)."""
    texture = torch.randn(1, 3, patch, patch, generator=torch.Generator().manual_seed(1))
    return texture.repeat(1, 1, height // patch, width // patch)


SIZES = ((32, 32), (24, 40), (40, 24))


@pytest.mark.parametrize("size", SIZES)
def test_grid_energy_is_about_one_without_a_grid_and_far_above_one_with_a_texture_of_patches(size):
    """Of 40 sets of fields: their mean is near 1, and no set is far from it."""
    numbers = [grid_energy(smooth_fields(8, 3, *size, seed=seed), 4) for seed in range(40)]
    assert statistics.fmean(numbers) == pytest.approx(1, abs=0.08)  # a little below: less power at higher frequencies
    assert max(abs(number - 1) for number in numbers) < 0.3
    assert grid_energy(smooth_fields(8, 3, *size) + 0.3 * tiled(*size, 4), 4) > 3
    assert grid_energy(tiled(*size, 4), 4) > 1e6


def test_grid_energy_of_a_wave_along_one_axis_by_hand():
    """Power of the wave: n/4 along it, nothing across; of the noise its variance, at all frequencies."""
    noise = 0.1 * torch.randn(400, 1, 24, 24, generator=torch.Generator().manual_seed(0)).double()
    for axis in (2, 3):
        place = torch.arange(24.0).reshape([1, 1, *((-1, 1) if axis == 2 else (1, -1))])
        wave = (2 * math.pi * place / 4 + 0.3).cos() + noise  # 6 periods: the first of two harmonics
        first = (24 / 4 + 2 * 0.01) / (2 * 0.01)
        assert grid_energy(wave, 4) == pytest.approx((first + 1) / 2, rel=0.03)


@pytest.mark.parametrize("patch", [2, 3, 5, 6])
def test_grid_energy_finds_the_patches_of_their_own_size(patch):
    field = smooth_fields(16, 3, 30, 30)
    numbers = {other: grid_energy(field + 0.3 * tiled(30, 30, patch), other) for other in (2, 3, 5, 6)}
    for other, number in numbers.items():
        if other % patch == 0:  # a pattern of period 2 has period 6 as well
            assert number > 2, other
        elif patch % other:
            assert number < 1.4, other


def test_grid_energy_does_not_depend_on_where_the_grid_begins_or_on_brightness_and_contrast():
    x = smooth_fields(8, 3, 32, 24) + 0.3 * tiled(32, 24, 4)
    wanted = grid_energy(x, 4)
    assert grid_energy(x.roll((1, 3), (2, 3)), 4) == pytest.approx(wanted, rel=1e-6)
    assert grid_energy(0.2 * x + 5, 4) == pytest.approx(wanted, rel=1e-4)
    assert grid_energy(x.mT, 4) == pytest.approx(wanted, rel=1e-9)
    single = smooth_fields(8, 3, 32, 32) + 0.3 * tiled(32, 32, 4)
    by_patch = grid_energy(single + 2.0 * torch.arange(8.0).reshape(-1, 1, 1, 1), 4)  # another brightness each
    assert by_patch == pytest.approx(grid_energy(single, 4), rel=1e-4)


def test_grid_energy_of_a_mosaic_is_near_zero_and_of_its_seams_far_above_one():
    """The mean over a square of 4 pixels is blind to waves of period 4 and 2, and so is what it is repeated from."""
    small = smooth_fields(8, 3, 8, 8)
    mosaic = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert grid_energy(mosaic, 4) < 1e-3
    seams = smooth_fields(8, 3, 32, 32)
    seams[..., ::4] += 0.5
    seams[..., ::4, :] += 0.5
    assert grid_energy(seams, 4) > 3


def test_grid_energy_of_nothing_but_one_colour_is_one():
    for colour in (0.0, 0.7, 1.0):
        assert grid_energy(torch.full((2, 3, 12, 8), colour), 4) == pytest.approx(1)
    rounded = 0.7 + 1e-7 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    assert grid_energy(rounded, 4) == pytest.approx(1, abs=0.05)


def test_grid_energy_of_a_square_image_is_that_of_the_averaged_spectrum():
    """As chapter 10 writes it: one spectrum of rows and columns, and the mean of the ratios at 8 and 16."""
    x = smooth_fields(4, 3, 32, 32) + 0.2 * tiled(32, 32, 4)
    rows, columns = (torch.fft.rfft(v.double(), dim=-1).abs().square().mean((0, 1, 2)) for v in (x, x.mT))
    power = (rows + columns) / 2
    wanted = (power[8] / power[[7, 9]].mean() + power[16] / power[15]) / 2
    assert grid_energy(x, 4) == pytest.approx(wanted.item(), rel=1e-6)


def test_grid_energy_refuses_patches_that_do_not_fit():
    x = torch.rand(1, 3, 30, 32)
    with pytest.raises(ValueError, match="patch: got 4 with images of height 30, want at least two whole patches"):
        grid_energy(x, 4)
    with pytest.raises(ValueError, match="patch: got 4 with images of width 30"):
        grid_energy(x.mT, 4)
    with pytest.raises(ValueError, match="patch: got 32 with images of height 32"):
        grid_energy(torch.rand(1, 3, 32, 32), 32)
    with pytest.raises(ValueError, match="patch: got 1, want a whole number of at least 2"):
        grid_energy(x, 1)
    with pytest.raises(ValueError, match=r"images: got shape \(2, 16, 16, 3\), want \(B, C, H, W\)"):
        grid_energy(torch.rand(2, 16, 16, 3), 2)
    with pytest.raises(ValueError, match="images: got 1 NaN"):
        grid_energy(torch.where(torch.arange(64).reshape(1, 1, 8, 8) == 5, math.nan, 0.5), 2)

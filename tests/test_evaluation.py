"""Scores of a tokenizer, and what codecs make of the same images."""

import io
import math

import pytest
import torch
from PIL import Image
from torch import Tensor

import companion
from companion import VQVAE, classical_codecs, evaluate_tokenizer, plots
from companion.classifier import load_classifier, recognise
from companion.evaluation import _payload, psnr
from companion.metrics import bits_per_image, frechet_distance, mse, ssim
from companion.priors import prior_bits
from companion.quantizers import rate_bits

TEST = companion.data.load("glyphs", "test", size=150)
X, LABELS = TEST.batch(range(150))


def shipped(name: str) -> VQVAE:
    model = companion.pretrained(name)
    assert isinstance(model, VQVAE)
    return model


def test_the_scores_are_those_of_a_computation_by_hand() -> None:
    model, prior = shipped("glyphs-vqvae"), companion.pretrained("glyphs-prior")
    scores = evaluate_tokenizer(model, TEST, prior, features="glyphs", batch_size=64)
    codes, rebuilt = model.encode(X), model.reconstruct(X)
    error = mse(rebuilt, X).item()
    assert scores.mse == pytest.approx(error, rel=1e-5)
    assert scores.psnr == pytest.approx(-10 * math.log10(error), rel=1e-5)
    assert scores.distortion == pytest.approx(error / X.var(correction=0).item(), rel=1e-4)
    assert scores.ssim == pytest.approx(ssim(rebuilt, X).item(), rel=1e-4)
    bits = bits_per_image(codes, 64)
    assert scores.nominal_bits == bits["nominal"] == 294
    assert scores.entropy_bits == pytest.approx(bits["entropy"])
    assert scores.per_position_bits == pytest.approx(bits["per_position"])
    assert scores.prior_bits == pytest.approx(prior_bits(prior, codes, LABELS), rel=1e-4)
    classifier = load_classifier("glyphs")
    features = recognise(classifier, X).features, recognise(classifier, rebuilt).features
    assert scores.frechet == pytest.approx(frechet_distance(*features), rel=1e-2)
    assert scores.features == "classifier of glyphs"
    nominal, entropy, of_prior = scores.points()
    assert (nominal.rate, entropy.rate, of_prior.rate) == ("nominal", "entropy", "prior")
    assert nominal.bits_per_pixel == 294 / 784
    assert of_prior.bits_per_pixel < entropy.bits_per_pixel < nominal.bits_per_pixel
    row = scores.as_row()
    assert row["prior_bits_per_pixel"] == of_prior.bits_per_pixel
    assert row["usage"] == scores.usage[0]
    assert "features" in str(scores)


def test_a_residual_quantizer_has_the_entropy_of_each_depth() -> None:
    model = shipped("glyphs-rqvae")
    scores, codes = evaluate_tokenizer(model, X), model.encode(X)
    assert scores.entropy_bits == pytest.approx(49 * rate_bits(codes, 16, depth=2)["entropy"])
    assert scores.entropy_bits < bits_per_image(codes, 16)["entropy"]  # one table of shares for both depths: dearer
    assert len(scores.usage) == 2
    assert "perplexity_2" in scores.as_row()
    assert scores.prior_bits is None


def test_the_unit_of_distortion_can_be_that_of_the_training_images() -> None:
    scores = evaluate_tokenizer(shipped("glyphs-vqvae"), TEST, variance=0.5, most=20)
    assert scores.distortion == scores.mse / 0.5
    assert scores.images == 20


def named(points: list[companion.RatePoint], name: str, rate: str) -> list[companion.RatePoint]:
    return [point for point in points if (point.name, point.rate) == (name, rate)]


def test_more_quality_costs_more_bits_and_loses_less() -> None:
    points = classical_codecs(TEST, codecs=["JPEG", "WebP"], qualities=[20, 95], most=40)
    assert len(points) == 2 * 2 * 3
    for name in ("JPEG", "WebP"):
        for rate in ("file", "file without header", "tiled"):
            low, high = named(points, name, rate)
            assert low.bits_per_pixel < high.bits_per_pixel
            assert low.mse > high.mse
            assert low.psnr < high.psnr


def test_png_loses_nothing_and_has_one_setting() -> None:
    points = classical_codecs(TEST, codecs=["PNG"], most=30)
    assert [(point.rate, point.mse, point.psnr) for point in points] == [
        ("file", 0.0, math.inf), ("file without header", 0.0, math.inf), ("tiled", 0.0, math.inf),
    ]  # fmt: skip


def test_small_files_are_mostly_header() -> None:
    """So that bits of whole files would make any model look good."""
    points = classical_codecs(TEST, codecs=["JPEG"], qualities=[50], most=40)
    whole, bare, tiled = (point.bits_per_pixel for point in points)
    assert whole > 2 * bare
    assert whole > 2 * tiled


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WebP"])
def test_the_header_is_what_files_of_one_size_share(codec: str) -> None:
    noise = torch.randint(0, 256, (28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def header(pixels: Tensor) -> int:
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, format=codec, **({} if codec == "PNG" else {"quality": 50}))
        assert 0 < _payload(codec, buffer.getvalue()) < len(buffer.getvalue())
        return len(buffer.getvalue()) - _payload(codec, buffer.getvalue())

    assert abs(header(noise) - header(torch.zeros_like(noise))) <= 1  # WebP fills up to an even length
    assert header(noise) >= 20


def test_codecs_take_colour_and_name_wrong_arguments() -> None:
    colour = companion.data.load("emoji", "test", size=12)
    assert len(classical_codecs(colour, qualities=[50])) == 2 * 3 + 3
    for wrong in ({"codecs": "JPEG"}, {"qualities": [0]}, {"tiles": 0}, {"variance": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            classical_codecs(colour, **wrong)


def test_psnr_is_infinite_where_nothing_is_lost() -> None:
    assert psnr(0.0) == math.inf
    assert psnr(0.01) == pytest.approx(20)


def test_a_figure_has_a_line_for_each_codec_and_a_mark_for_a_single_point() -> None:
    fig = plots.rate_distortion({"JPEG": [(2.0, 0.1), (1.0, 0.2)], "VQ-VAE": [(0.4, 0.03)]})
    ax = fig.axes[0]
    assert [line.get_label() for line in ax.lines] == ["JPEG", "VQ-VAE"]
    assert ax.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="curves"):
        plots.rate_distortion({"PNG": [(2.0, 0.0)]})

"""How good a tokenizer is, in one row of numbers, and beside it what JPEG, WebP and PNG make of the same images."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import (
    brief,
    brief_kind,
    check_images,
    check_instance,
    check_number,
    check_size,
    check_unit_range,
    check_whole,
)
from companion._devices import as_float64
from companion._extras import require
from companion._modes import evaluating
from companion.configured import unwrapped
from companion.data.batches import Batches
from companion.losses import FeatureDistance, classifier_distance
from companion.metrics import WINDOW, CodeUsage, bits_per_image, distortion, frechet_distance, ssim
from companion.priors import Prior, prior_bits
from companion.quantizers import Quantizer
from companion.quantizers.rates import rate_bits

__all__ = ["RatePoint", "Scores", "classical_codecs", "evaluate_tokenizer", "psnr"]


@dataclass(frozen=True)
class RatePoint:
    """What one way to write images down costs, and what it loses.

    Attributes:
        name: of the way, such as "JPEG" or "VQVAE".
        setting: its quality, or the code of the indices.
        rate: what is counted: "nominal", "entropy" or "prior" (bits of the codes), "file" (all bytes of a file for each
            image), "file without header", or "tiled" (many images in one file).
        bits_per_pixel: bits of an image over H·W, whatever the number of channels.
        mse: mean squared error over pixels and channels, of images in [0, 1].
        psnr: :func:`psnr` of it.
        distortion: ``mse`` over the variance of all pixels.
        ssim: None for images smaller than its window.
    """

    name: str
    setting: str
    rate: str
    bits_per_pixel: float
    mse: float
    psnr: float
    distortion: float
    ssim: float | None


@dataclass(frozen=True)
class Scores:
    """What :func:`evaluate_tokenizer` measured.

    Attributes:
        name: the class of the model.
        images: how many.
        pixels: H·W.
        mse: mean squared error over pixels, channels and images; reconstructions are clamped to [0, 1].
        psnr: of that MSE (not the mean of the images' own), in dB.
        distortion: MSE over ``variance``.
        variance: of all pixels, the unit of distortion.
        ssim: None for images smaller than its window of 11 pixels.
        features: which network's features the next two are of; "" if none was given.
        feature_distance: of each image to its reconstruction, mean; None without features.
        frechet: Fréchet distance between the features of images and of reconstructions; None without features.
        usage: for each depth, the share of codes that were chosen.
        perplexity: for each depth, the effective number of codes.
        nominal_bits: of an image, T·R·log₂K.
        entropy_bits: T·Σ_r H(k_r), with the shares of these very codes at each depth.
        per_position_bits: the same with shares for each position and depth.
        prior_bits: cross-entropy of the prior, labels given if it takes some (they would cost log₂ of the number of
            classes at most); None without a prior.
    """

    name: str
    images: int
    pixels: int
    mse: float
    psnr: float
    distortion: float
    variance: float
    ssim: float | None
    features: str
    feature_distance: float | None
    frechet: float | None
    usage: tuple[float, ...]
    perplexity: tuple[float, ...]
    nominal_bits: float
    entropy_bits: float
    per_position_bits: float
    prior_bits: float | None

    def points(self) -> tuple[RatePoint, ...]:
        """The model beside codecs: one point for each rate, at the same loss."""
        rates = {"nominal": self.nominal_bits, "entropy": self.entropy_bits, "prior": self.prior_bits}
        return tuple(
            RatePoint(self.name, "", rate, bits / self.pixels, self.mse, self.psnr, self.distortion, self.ssim)
            for rate, bits in rates.items()
            if bits is not None
        )

    def as_row(self) -> dict[str, str | int | float | None]:
        """One row of a table: with R depths, "usage_1" … "usage_R"; and each rate in bits per pixel too."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, tuple):
                row |= {name if len(value) == 1 else f"{name}_{r}": one for r, one in enumerate(value, start=1)}
            else:
                row[name] = value
            if name.endswith("_bits"):
                row[f"{name}_per_pixel"] = None if value is None else value / self.pixels
        return row

    def __str__(self) -> str:
        shown = {name: value for name, value in self.as_row().items() if value not in (None, "")}
        width = max(map(len, shown))
        return "\n".join(
            f"{name:<{width}}  {value:.5g}" if isinstance(value, float) else f"{name:<{width}}  {value}"
            for name, value in shown.items()
        )


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]: −10 log₁₀ MSE, in dB; infinite for an MSE of 0.

    Raises:
        ValueError: ``mse`` is no finite number of at least 0.
    """
    check_number("mse", mse, least=0)
    return -10 * math.log10(mse) if mse > 0 else math.inf


@torch.no_grad()
def evaluate_tokenizer(
    model: nn.Module,
    data: Any,
    prior: Prior | None = None,
    *,
    features: str | FeatureDistance | None = None,
    variance: float | None = None,
    most: int | None = None,
    batch_size: int = 100,
) -> Scores:
    """Distortion, SSIM, distances of features, usage of codes, and three rates, of a tokenizer on images.

    In eval mode, on the model's device, in batches; codes and features of all images are kept, images are not. The
    entropy is of the codes that are coded, so the table of shares comes free, and with few images it is too small.

    Args:
        model: a ``VQVAE`` or one built like it.
        data: images, as :func:`companion.diagnose` takes them; held-out ones.
        prior: learnt on the codes of ``model``, for its rate.
        features: "glyphs", "emoji", "mnist" or "fashion-mnist" for the classifier of such images that comes with the
            package, or a ``FeatureDistance``. Its distance is summed over all taps (Zhang et al. 2018); the Fréchet
            distance (Heusel et al. 2017) is of the last tap, averaged over positions. Numbers of other features cannot
            be compared with these, and of another number of images neither.
        variance: of all training pixels, the unit of distortion; default: that of ``data``.
        most: use at most so many images, drawn with a fixed seed.
        batch_size: how many at once.

    Raises:
        ValueError: an argument has the wrong type or is out of range, or model, data, prior and features do not fit.
    """
    tokenizer: Any = unwrapped(model, "model")
    parts = ("encoder", "decoder", "quantizer")
    if not all(isinstance(getattr(tokenizer, part, None), nn.Module) for part in parts):
        raise ValueError(f"model: got {brief_kind(tokenizer)}, want a VQVAE")
    if prior is not None:
        check_instance("prior", prior, Prior, "one of companion.priors, or None")
    if variance is not None:
        check_number("variance", variance, above=0)
    if most is not None:
        check_size("most", most)
    check_size("batch_size", batch_size)
    tensor = next(chain(tokenizer.parameters(), tokenizer.buffers()))
    if tensor.device.type == "meta":
        raise ValueError("model: got tensors on the device meta, which holds no numbers, want a trained one")
    name, distance = _features(features, tensor.device)
    sums, codes, labels = _Sums(), [], []
    pooled: tuple[list[Tensor], list[Tensor]] = ([], [])
    with evaluating(tokenizer):
        for x, y in Batches("data", data, most=most, batch_size=batch_size, device=tensor.device):
            check_images("data", x)
            indices = tokenizer.encode(x.to(tensor.dtype))
            rebuilt = tokenizer.decode(indices).to(x.dtype)
            sums.add(x, rebuilt, distance)
            codes.append(indices.cpu())
            if y is not None:
                labels.append(y.cpu())
            if distance is not None:
                for kept, images in zip(pooled, (x, rebuilt), strict=True):
                    kept.append(distance.pooled(images).cpu())
    return _scores(
        tokenizer, sums, torch.cat(codes), torch.cat(labels) if labels else None, prior, variance, name, pooled
    )


def _scores(
    model: Any,
    sums: "_Sums",
    codes: Tensor,
    labels: Tensor | None,
    prior: Prior | None,
    variance: float | None,
    features: str,
    pooled: tuple[list[Tensor], list[Tensor]],
) -> Scores:
    quantizer: Quantizer = model.quantizer
    stacked = codes.ndim == 4 or getattr(quantizer, "depth", 1) > 1
    stacks = codes if stacked else codes[..., None]  # (N, h, w, R)
    usages = [CodeUsage(quantizer.num_codes).update(one) for one in stacks.unbind(-1)]
    rates, positions = rate_bits(stacks, quantizer.num_codes), math.prod(stacks.shape[1:-1])
    unit = sums.variance if variance is None else variance
    if prior is not None and (prior.num_codes, prior.grid) != (quantizer.num_codes, tuple(codes.shape[1:])):
        raise ValueError(
            f"prior: got one of {prior.num_codes} codes and tables {prior.grid}, want {quantizer.num_codes} and "
            f"{tuple(codes.shape[1:])} as the model makes them"
        )
    given = labels if prior is not None and prior.num_classes else None
    return Scores(
        name=type(model).__name__,
        images=sums.images,
        pixels=sums.pixels,
        mse=sums.mse,
        psnr=psnr(sums.mse),
        distortion=distortion(sums.mse, unit),
        variance=unit,
        ssim=sums.mean_ssim,
        features=features,
        feature_distance=sums.mean_feature_distance,
        frechet=frechet_distance(*(torch.cat(one) for one in pooled)) if pooled[0] and sums.images > 1 else None,
        usage=tuple(one.usage for one in usages),
        perplexity=tuple(one.perplexity for one in usages),
        nominal_bits=positions * rates["nominal"],
        entropy_bits=positions * rates["entropy"],
        per_position_bits=bits_per_image(codes, quantizer.num_codes)["per_position"],
        prior_bits=None if prior is None else prior_bits(prior, codes, given),
    )


def _features(features: Any, device: torch.device) -> tuple[str, FeatureDistance | None]:
    """The name of the features, and the network that makes them."""
    if features is None:
        return "", None
    if isinstance(features, str):
        try:
            return f"classifier of {features}", classifier_distance(features).to(device)
        except ValueError as error:
            raise ValueError(f"features: {error}") from error
    check_instance("features", features, FeatureDistance, "a name of shipped features, a FeatureDistance, or None")
    return f"{type(features.network).__name__}, taps {', '.join(features.taps)}", features


class _Sums:
    """Sums over images and their reconstructions."""

    def __init__(self) -> None:
        self.images = self.numbers = self.pixels = 0
        self.x = self.xx = self.lost = self.ssims = self.distances = 0.0
        self.with_ssim = self.with_features = False

    def add(self, x: Tensor, rebuilt: Tensor, distance: FeatureDistance | None = None) -> None:
        wide, height, width = as_float64(x), *x.shape[2:]
        self.images, self.numbers, self.pixels = self.images + len(x), self.numbers + x.numel(), height * width
        self.x, self.xx = self.x + float(wide.sum()), self.xx + float(wide.square().sum())
        self.lost += float((as_float64(rebuilt) - wide).square().sum())
        if min(height, width) >= WINDOW:
            self.with_ssim, self.ssims = True, self.ssims + len(x) * float(ssim(rebuilt, x.clamp(0, 1)))
        if distance is not None:
            self.with_features, self.distances = True, self.distances + len(x) * float(distance(rebuilt, x))

    @property
    def mse(self) -> float:
        return self.lost / self.numbers

    @property
    def variance(self) -> float:
        return max(self.xx / self.numbers - (self.x / self.numbers) ** 2, 1e-12)

    @property
    def mean_ssim(self) -> float | None:
        return self.ssims / self.images if self.with_ssim else None

    @property
    def mean_feature_distance(self) -> float | None:
        return self.distances / self.images if self.with_features else None


# Codecs --------------------------------------------------------------------------------------------------------------

_CODECS = ("JPEG", "WebP", "PNG")


def classical_codecs(
    data: Any,
    *,
    codecs: Sequence[str] = _CODECS,
    qualities: Sequence[int] = (10, 25, 50, 75, 90),
    variance: float | None = None,
    most: int = 256,
    tiles: int = 64,
) -> list[RatePoint]:
    """What JPEG, WebP and PNG cost for the same images, and lose: points to set beside those of :class:`Scores`.

    A picture of 28×28 pixels is smaller than the header of its file: a JPEG of it has some hundred bytes before its
    first pixel. So each setting gives three points. "file" counts all bytes of a file for each image. "file without
    header" counts the compressed pixels alone: JPEG from the start of its scan, the chunks IDAT of PNG, the payload of
    WebP's chunk; a decoder that knows size and tables needs no more. "tiled" puts ``tiles`` images into one sheet,
    whose header they share; a codec sees edges between neighbours there that no image has, and its loss is measured on
    the sheet.

    Pillow's encoders with their defaults (JPEG and WebP halve the resolution of colour), and ``optimize`` for PNG.
    Pixels are rounded to bytes first: these are the originals. PNG loses nothing; it has one setting.

    Args:
        data: images of 1 or 3 channels, as :func:`companion.diagnose` takes them.
        codecs: which of "JPEG", "WebP" and "PNG".
        qualities: 1 … 95, for JPEG and WebP.
        variance: of all training pixels, the unit of distortion; default: that of these images.
        most: use at most so many images.
        tiles: images on a sheet, as many as there are if fewer.

    Raises:
        ValueError: an argument has the wrong type or is out of range.
        ImportError: pillow is missing.
    """
    if isinstance(codecs, str) or not isinstance(codecs, Sequence) or not codecs or not {*codecs} <= {*_CODECS}:
        raise ValueError(f"codecs: got {brief(codecs)}, want some of {', '.join(_CODECS)}")
    if isinstance(qualities, str) or not isinstance(qualities, Sequence) or not qualities:
        raise ValueError(f"qualities: got {brief(qualities)}, want whole numbers from 1 to 95")
    for number in qualities:
        check_whole("qualities", number, least=1, most=95)
    if variance is not None:
        check_number("variance", variance, above=0)
    check_size("most", most)
    check_size("tiles", tiles)
    batches = Batches("data", data, most=most, batch_size=most, device=torch.device("cpu"))
    images = torch.cat([x.float() for x, _ in batches])
    check_images("data", images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"data: got {images.shape[1]} channels, want 1 or 3")
    check_unit_range("data", images)
    raw = (images.clamp(0, 1) * 255).round().byte()  # (N, C, H, W): the originals
    sheets = [_sheet(part) for part in raw.split(tiles)]
    points: list[RatePoint] = []
    for codec in codecs:
        settings: Sequence[int | None] = (None,) if codec == "PNG" else qualities
        for quality in settings:
            points += _points(codec, quality, raw, sheets, variance)
    return points


def _points(
    codec: str, quality: int | None, raw: Tensor, sheets: list[Tensor], variance: float | None
) -> Iterator[RatePoint]:
    pixels = raw.shape[2] * raw.shape[3]
    single, whole, bare = _Sums(), 0, 0
    for image in raw:
        file, decoded = through_codec(codec, quality, image)
        whole, bare = whole + len(file), bare + _payload(codec, file)
        single.add(image[None].float() / 255, decoded[None].float() / 255)
    tiled, together = _Sums(), 0
    for sheet in sheets:
        file, decoded = through_codec(codec, quality, sheet)
        together += len(file)
        tiled.add(sheet[None].float() / 255, decoded[None].float() / 255)
    for rate, size, sums in (
        ("file", whole, single),
        ("file without header", bare, single),
        ("tiled", together, tiled),
    ):
        bits = 8 * size / (len(raw) * pixels)
        unit = single.variance if variance is None else variance
        setting = "lossless" if quality is None else f"quality {quality}"
        lost = sums.lost / single.numbers  # sheets may have empty places, which lose next to nothing
        yield RatePoint(
            codec, setting, rate, bits, lost, psnr(lost), lost / unit, single.mean_ssim if sums is single else None
        )


def _sheet(images: Tensor) -> Tensor:
    """(n, C, H, W) → (C, rows·H, columns·W), about square; places that are left over are black."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    places = images.new_zeros(rows * columns, channels, height, width)
    places[:n] = images
    return (
        places.reshape(rows, columns, channels, height, width)
        .permute(2, 0, 3, 1, 4)
        .reshape(channels, rows * height, columns * width)
    )


def through_codec(codec: str, quality: int | None, image: Tensor) -> tuple[bytes, Tensor]:
    """The file of an image (C, H, W) of bytes, and what comes out of it again."""
    pillow = require("PIL.Image", extra="data", what="classical_codecs")
    pixels = image.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    buffer = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if quality is None else {"quality": int(quality)}
    pillow.fromarray(pixels).save(buffer, format=codec, **options)
    file = buffer.getvalue()
    shown = pillow.open(io.BytesIO(file)).convert("L" if image.shape[0] == 1 else "RGB")
    values = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8)
    return file, values.reshape(image.shape[1], image.shape[2], -1).permute(2, 0, 1)


def _payload(codec: str, file: bytes) -> int:
    """How many bytes of a file are compressed pixels."""
    if codec == "JPEG":
        start = 2  # after the marker of the start
        while file[start + 1] != 0xDA:  # start of scan
            start += 2 + int.from_bytes(file[start + 2 : start + 4], "big")
        return len(file) - start - 2 - int.from_bytes(file[start + 2 : start + 4], "big") - 2  # without the last marker
    if codec == "PNG":
        start, total = 8, 0
        while start < len(file):
            length = int.from_bytes(file[start : start + 4], "big")
            total += length if file[start + 4 : start + 8] == b"IDAT" else 0
            start += 12 + length
        return total
    start, total = 12, 0  # after RIFF, size and WEBP
    while start < len(file):
        length = int.from_bytes(file[start + 4 : start + 8], "little")
        total += length if file[start : start + 4] in (b"VP8 ", b"VP8L") else 0
        start += 8 + length + length % 2
    return total

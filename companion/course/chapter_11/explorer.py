"""Explorer of chapter 11: pictures through JPEG and through the tokenizer, with what each costs."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor

from companion import plots
from companion._arguments import check_images, check_whole
from companion.course.explorer_widgets import explorer
from companion.evaluation import through_codec
from companion.metrics import mse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from companion.vqvae import VQVAE


def jpeg(image: Tensor, quality: int) -> tuple[int, Tensor]:
    """The bytes of a JPEG file of this image, without what a file of a plain image has at that quality, and the image.

    The plain image's file is tables and header, which are the same for all images of this size.

    Shapes:
        image: (3, H, W) in [0, 1] → a number, (3, H, W)
    """
    pixels = (255 * image).round().byte().cpu()
    file, back = through_codec("JPEG", quality, pixels)
    plain, _ = through_codec("JPEG", quality, torch.full_like(pixels, 128))
    return max(1, len(file) - len(plain)), back.to(image) / 255


def draw_codec_beside_codes(model: "VQVAE", images: Tensor, *, quality: int) -> "Figure":
    """Rows of pictures: the originals, JPEG at ``quality``, and the tokenizer at each depth.

    Shapes:
        images: (n, 3, H, W) in [0, 1], on the model's device; at most the first six are drawn.
    """
    check_images("images", images)
    check_whole("quality", quality, least=1, most=95)
    images = images[:6]
    coded = [jpeg(image, quality) for image in images]
    pixels = images[0, 0].numel()
    back = torch.stack([picture for _, picture in coded])
    rate = 8 * sum(size for size, _ in coded) / len(coded) / pixels
    rows = {"original": images, _label(f"JPEG {quality}", rate, mse(back, images)): back}
    model.eval()
    with torch.no_grad():
        indices = model.encode(images)
        for depth in range(1, indices.shape[-1] + 1):
            rebuilt = model.decoder(model.quantizer.decode(indices, depth=depth)).clamp(0, 1)
            rate = indices[0, ..., :depth].numel() * float(torch.tensor(model.quantizer.num_codes).log2()) / pixels
            rows[_label(f"depth {depth}", rate, mse(rebuilt, images))] = rebuilt
    return plots.image_rows(rows, size=1.0)


def _label(name: str, rate: float, error: Tensor) -> str:
    return f"{name}\n{rate:.2f} bits a pixel\nMSE {float(error):.4f}"


def codec_beside_codes(model: "VQVAE", images: Tensor) -> widgets.VBox:
    """Chapter 11: choose a quality of JPEG, and see it beside the tokenizer.

    Shapes:
        images: (n, 3, H, W) in [0, 1], on the model's device.
    """
    check_images("images", images)
    first = widgets.IntSlider(0, 0, max(0, len(images) - 6), description="from image")
    quality = widgets.IntSlider(5, 1, 95, description="quality")

    def draw(first: int, quality: int) -> tuple["Figure", str]:
        fig = draw_codec_beside_codes(model, images[first:], quality=quality)
        return fig, f"Pictures, their JPEG copies at quality {quality}, and the tokenizer at each depth."

    return explorer(draw, first=first, quality=quality)

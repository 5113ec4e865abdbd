"""Explorer of chapter 06: stacks decoded to a depth."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor

from companion import plots
from companion._arguments import check_images
from companion.course.explorer_widgets import explorer
from companion.metrics import mse
from companion.quantizers import ResidualQuantizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from companion.vqvae import VQVAE


def depth_slider(model: "VQVAE", images: Tensor) -> widgets.VBox:
    """Chapter 06: decode only the first codes of every stack, from coarse to fine.

    images: (n, C, H, W) in [0, 1], on the model's device; the model's quantizer is a ``ResidualQuantizer``.

    Raises:
        ValueError: its quantizer gives one code a position.
    """
    quantizer = model.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise ValueError(f"model: got one with a {type(quantizer).__name__}, want one with a ResidualQuantizer")
    check_images("images", images)
    model.eval()
    codes = model.encode(images)  # (n, h, w, R)
    with torch.no_grad():
        steps = [
            model.decoder(quantizer.decode(codes, depth=d)).clamp(0, 1).cpu() for d in range(1, quantizer.depth + 1)
        ]
    originals, tables = images.cpu(), codes.cpu()

    def draw(image: int, depth: int) -> tuple["Figure", str]:
        decoded = steps[depth - 1][image]
        error = float(mse(decoded, originals[image]))
        fig, axes = plots.figure(9, 2.6, columns=4)
        panels = (originals[image], decoded, (decoded - originals[image]).square())
        for ax, name, panel in zip(axes, ("image", f"depths 1 to {depth}", "squared difference"), panels, strict=False):
            plots.draw_image(ax, panel)
            ax.set_title(name if depth > 1 or name[0] != "d" else "depth 1 alone")
        plots.draw_codes(axes[3], tables[image, ..., depth - 1])
        axes[3].set_title(f"codes of depth {depth}")
        return fig, (
            f"Image {image}, what the decoder makes of its first {depth} of {quantizer.depth} codes a position, their "
            f"squared difference (mean {error:.4f}), and the table of the codes of depth {depth}"
        )

    return explorer(
        draw,
        image=widgets.IntSlider(0, 0, len(images) - 1, description="image"),
        depth=widgets.IntSlider(1, 1, quantizer.depth, description="depth"),
    )

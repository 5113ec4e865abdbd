"""Explorer of chapter 00: an image moved and blurred, and its distortion."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor
from torch.nn import functional

from companion import plots
from companion._arguments import check_images, check_number
from companion.course.explorer_widgets import explorer
from companion.metrics import mse

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def shift_and_blur(images: Tensor, variance: float) -> widgets.VBox:
    """Chapter 00: move or blur an image and see its distortion: its squared error to the original over ``variance``.

    images: (n, C, H, W) in [0, 1].
    """
    check_images("images", images)
    check_number("variance", variance, above=0)
    images = images.detach().float().cpu()

    def draw(image: int, right: int, down: int, blur: float) -> tuple["Figure", str]:
        original = images[image : image + 1]
        changed = blurred(torch.roll(original, (down, right), dims=(2, 3)), blur)
        distance = float(mse(changed, original)) / variance
        fig, axes = plots.figure(6.5, 2.5, columns=3)
        panels = {"original": original, "changed": changed, "squared difference": (changed - original).square()}
        for ax, (name, panel) in zip(axes, panels.items(), strict=True):
            plots.draw_image(ax, panel[0])
            ax.set_title(name)
        fig.suptitle(f"distortion {distance:.2f}")
        return (
            fig,
            f"An image, the image moved by {right}, {down} pixels and blurred by {blur}: distortion {distance:.2f}",
        )

    return explorer(
        draw,
        image=widgets.IntSlider(0, 0, len(images) - 1, description="image"),
        right=widgets.IntSlider(0, -6, 6, description="right"),
        down=widgets.IntSlider(0, -6, 6, description="down"),
        blur=widgets.FloatSlider(0.0, min=0.0, max=3.0, step=0.1, description="blur"),
    )


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) with the given width in pixels; 0 leaves the images as they are.

    Beyond the border an image goes on in the colour that it has there: black would darken what is on white.
    """
    if sigma <= 0:
        return images
    reach = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    line = kernel.expand(channels, 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, line, groups=channels), line.transpose(2, 3), groups=channels)

"""Things to play with: sliders beside a picture that follows them.

The picture is an ``<img>`` with alt text inside an HTML widget: ipywidgets' own Image has no alt text. Sliders are
observed directly, without ``interact`` or an Output widget: a notebook with an explorer runs unattended as well.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor, nn
from torch.nn import functional

from companion import plots
from companion.metrics import mse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[..., tuple["Figure", str]]


def explorer(draw: Draw, **sliders: widgets.Widget) -> widgets.VBox:
    """Sliders above a picture. ``draw`` gets the sliders' values by name and gives a figure and its alt text."""

    def picture() -> str:
        fig, alt = draw(**{name: slider.value for name, slider in sliders.items()})
        return plots.Picture(plots.to_png(fig), alt, round(fig.get_figwidth() * 96))._repr_html_()

    image = widgets.HTML(picture())

    def update(_: object) -> None:
        image.value = picture()

    for slider in sliders.values():
        slider.observe(update, names="value")
    return widgets.VBox([*sliders.values(), image])


def shift_and_blur(images: Tensor, variance: float) -> widgets.VBox:
    """Chapter 00: move or blur an image and see its distortion: its squared error to the original over ``variance``.

    images: (n, C, H, W).
    """
    images = images.detach().float().cpu()

    def draw(image: int, right: int, down: int, blur: float) -> tuple["Figure", str]:
        original = images[image : image + 1]
        changed = _blur(torch.roll(original, (down, right), dims=(2, 3)), blur)
        distance = float(mse(changed, original)) / variance
        fig, axes = plots.figure(6.5, 2.5, columns=3)
        panels = {"original": original, "changed": changed, "squared difference": (changed - original).square()}
        for ax, (name, panel) in zip(axes, panels.items(), strict=True):
            plots.draw_image(ax, panel[0])
            ax.set_title(name)
        fig.suptitle(f"distortion {distance:.2f}")
        return (
            fig,
            f"A digit, the digit moved by {right}, {down} pixels and blurred by {blur}: distortion {distance:.2f}",
        )

    return explorer(
        draw,
        image=widgets.IntSlider(0, 0, len(images) - 1, description="image"),
        right=widgets.IntSlider(0, -6, 6, description="right"),
        down=widgets.IntSlider(0, -6, 6, description="down"),
        blur=widgets.FloatSlider(0.0, min=0.0, max=3.0, step=0.1, description="blur"),
    )


def latent_plane(decoder: nn.Module, points: Tensor, labels: Tensor, classes: tuple[str, ...]) -> widgets.VBox:
    """Chapter 01: move a point over the latent plane and see what the decoder makes of it. points: (N, 2)."""
    points, labels = points.detach().cpu(), labels.cpu()
    low, high = points.quantile(0.005, dim=0).tolist(), points.quantile(0.995, dim=0).tolist()
    centre = points.median(dim=0).values.tolist()
    device = next(decoder.parameters()).device

    def draw(z_1: float, z_2: float) -> tuple["Figure", str]:
        z = torch.tensor([[z_1, z_2]])
        with torch.no_grad():
            image = decoder(z.to(device))[0]
        nearest = float((points - z).norm(dim=1).min())
        fig, (plane, picture) = plots.figure(7.5, 3.8, columns=2, width_ratios=(1.5, 1))
        plots.class_scatter(plane, points, labels, classes)
        plane.plot(z_1, z_2, marker="X", markersize=13, color="black", markeredgecolor="white", clip_on=False)
        plane.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        plots.draw_image(picture, image)
        picture.set_title(f"decoded\nnearest latent at distance {nearest:.2f}")
        return (
            fig,
            f"The latent plane with a cross at ({z_1:.3g}, {z_2:.3g}) and the image that the decoder makes of it",
        )

    step = max(high[0] - low[0], high[1] - low[1]) / 60
    return explorer(
        draw,
        z_1=widgets.FloatSlider(centre[0], min=low[0], max=high[0], step=step, description="z₁"),
        z_2=widgets.FloatSlider(centre[1], min=low[1], max=high[1], step=step, description="z₂"),
    )


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) with the given width in pixels; 0 leaves the images as they are."""
    if sigma <= 0:
        return images
    reach = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    line = kernel.expand(channels, 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach))
    return functional.conv2d(functional.conv2d(padded, line, groups=channels), line.transpose(2, 3), groups=channels)

"""Explorer of chapter 01: a point on the latent plane, decoded."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from companion import plots
from companion._arguments import check_tensor
from companion.course.explorer_widgets import explorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latent_plane(decoder: nn.Module, points: Tensor, labels: Tensor, classes: tuple[str, ...]) -> widgets.VBox:
    """Chapter 01: move a point over the latent plane and see what the decoder makes of it. points: (N, 2)."""
    check_tensor("points", points, shape=("N", 2), finite=True)
    points, labels = points.detach().cpu(), labels.cpu()
    low, high = points.quantile(0.005, dim=0).tolist(), points.quantile(0.995, dim=0).tolist()
    centre = points.median(dim=0).values.tolist()
    device = next(decoder.parameters()).device

    def draw(z_1: float, z_2: float) -> tuple["Figure", str]:
        z = points.new_tensor([[z_1, z_2]])
        with torch.no_grad():
            image = decoder(z.to(device))[0].clamp(0, 1)
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

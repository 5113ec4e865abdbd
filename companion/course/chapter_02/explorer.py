"""Explorers of chapter 02: a window on the latent plane, and the sweep of β_KL."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import nn

from companion import plots
from companion.course.explorer_widgets import explorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latent_grid(decoder: nn.Module) -> widgets.VBox:
    """Chapter 02: a window on the latent plane, decoded on a grid; two sliders move it, one zooms."""
    device = next(decoder.parameters()).device
    columns = 9

    def draw(z_1: float, z_2: float, width: float) -> tuple["Figure", str]:
        steps = torch.linspace(-width / 2, width / 2, columns)
        across, down = torch.meshgrid(z_1 + steps, z_2 + steps.flip(0), indexing="xy")
        with torch.no_grad():
            images = decoder(torch.stack([across.flatten(), down.flatten()], 1).to(device))
        ends = [f"{z - width / 2:.2f} … {z + width / 2:.2f}" for z in (z_1, z_2)]
        fig = plots.image_grid(images.clamp(0, 1), columns=columns, title=f"$z_1$: {ends[0]}    $z_2$: {ends[1]}")
        return fig, f"A grid of images decoded from the latent plane, z₁ from {ends[0]} across and z₂ {ends[1]} upwards"

    return explorer(
        draw,
        z_1=widgets.FloatSlider(0.0, min=-3.0, max=3.0, step=0.1, description="z₁, middle"),
        z_2=widgets.FloatSlider(0.0, min=-3.0, max=3.0, step=0.1, description="z₂, middle"),
        width=widgets.FloatSlider(4.0, min=0.2, max=6.0, step=0.1, description="width"),
    )


def kl_sweep(rows: Sequence[Mapping[str, Any]]) -> widgets.VBox:
    """Chapter 02: the sweep of β_KL: new images of the same eight z, and what each latent number gets.

    rows: the cells of ``experiments.vae_beta``; those of the first seed that hold ``samples`` are shown.
    """
    cells = sorted((row for row in rows if "samples" in row), key=lambda row: float(row["beta"]))
    tallest = max(max(row["kl_per_dimension"]) for row in cells)

    def draw(step: int) -> tuple["Figure", str]:
        row = cells[step]
        grey = torch.tensor([int(digit, 16) / 15 for digit in row["samples"]])
        size = math.isqrt(len(grey) // 8)
        sheet = grey.reshape(2, 4, size, size).permute(0, 2, 1, 3).reshape(1, 2 * size, 4 * size)
        fig, (images, bars) = plots.figure(8.5, 2.9, columns=2, width_ratios=(1.4, 1))
        plots.draw_image(images, sheet)
        images.set_title(f"β_KL = {row['beta']:g}: new images")
        numbers = range(1, len(row["kl_per_dimension"]) + 1)
        bars.bar(numbers, row["kl_per_dimension"], color=plots.COLOURS["train"])
        bars.set(xlabel="latent number, the most used first", ylabel="KL (nats)", ylim=(0, 1.05 * tallest))
        bars.set_xticks(numbers[:: max(1, len(numbers) // 4)])
        bars.set_title(f"{row['kl']:.1f} nats, {row['active_units']} active, distortion {row['distortion']:.2f}")
        return (
            fig,
            f"Eight new images of the VAE trained with a KL weight of {row['beta']:g}, and bars of the KL of each "
            f"latent number, together {row['kl']:.1f} nats; distortion of reconstructions {row['distortion']:.2f}",
        )

    slider = widgets.IntSlider(0, min=0, max=len(cells) - 1, description="larger β_KL →", readout=False)
    return explorer(draw, step=slider)

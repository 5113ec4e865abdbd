"""Explorers of chapter 10: what a token sees, and what three backbones draw while they learn.

What they show was made beforehand by ``python -m experiments.backbones_over_training``: training takes minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from companion import plots
from companion._arguments import check_sizes, check_whole
from companion.course.explorer_widgets import explorer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = Path(__file__).with_name("backbones.npz")
WHEN = ("before training", "after training")
_TITLES = {"Mamba2": "Mamba-2", "BidirectionalMamba2": "Mamba-2, both ways"}  # of other names, the name


@dataclass(frozen=True)
class Fields:
    """How much each pixel moves each latent of each backbone, before and after training: 0 (not at all) … 1.

    Shapes:
        maps: (backbones, 2, h, w, H, W).
    """

    backbones: tuple[str, ...]
    maps: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        return self.maps.shape[2], self.maps.shape[3]

    def seen(self, backbone: int, when: int, row: int, column: int) -> tuple[Tensor, str]:
        """The map of one latent, (H, W), and the share of pixels that can change it."""
        one = self.maps[backbone, when, row, column]
        return one, f"{(one > 0).float().mean():.0%} of the pixels"


@dataclass(frozen=True)
class Moments:
    """Pictures, and what the tokenizers make of them after some steps of training.

    Shapes:
        originals: (n, C, H, W) in [0, 1]; drawn: (backbones, M, n, C, H, W).
    """

    backbones: tuple[str, ...]
    steps: tuple[int, ...]
    originals: Tensor
    drawn: Tensor

    def when(self, moment: int) -> str:
        step = self.steps[moment]
        return f"step {step}" if step else "before training, stretched"


@cache
def fields() -> Fields:
    """What the package brings.

    Raises:
        FileNotFoundError: the file is missing.
    """
    with np.load(FILE, allow_pickle=False) as file:
        return Fields(_titles(file["backbones"]), torch.from_numpy(file["fields"]).float() / 255)


@cache
def moments() -> Moments:
    """What the package brings.

    Raises:
        FileNotFoundError: the file is missing.
    """
    with np.load(FILE, allow_pickle=False) as file:
        originals, drawn = (torch.from_numpy(file[name]).float() / 255 for name in ("originals", "drawn"))
        return Moments(_titles(file["drawn_backbones"]), tuple(file["moments"].tolist()), originals, drawn)


def receptive_fields() -> widgets.VBox:
    """Chapter 10: choose a backbone and a latent, and see which pixels can change it, before and after training."""
    made = fields()
    rows, columns = made.grid

    def draw(backbone: int, when: int, row: int, column: int) -> tuple["Figure", str]:
        fig, ax = plots.figure(3.4, 3.5)
        share = _draw_field(ax, made, backbone, when, row, column)
        ax.set_title(f"{made.backbones[backbone]}, {WHEN[when]}:\n{share}", fontsize=10)
        return fig, (
            f"A picture's pixels, darker the more they move the token at row {row}, column {column} of "
            f"{made.backbones[backbone]} {WHEN[when]}: {share}"
        )

    return explorer(
        draw,
        backbone=widgets.Dropdown(options=[(name, i) for i, name in enumerate(made.backbones)], description="backbone"),
        when=widgets.Dropdown(options=[(name, i) for i, name in enumerate(WHEN)], description="when"),
        row=widgets.IntSlider(rows // 2, 0, rows - 1, description="row"),
        column=widgets.IntSlider(columns // 2, 0, columns - 1, description="column"),
    )


def draw_receptive_fields(position: tuple[int, int]) -> "Figure":
    """The maps of all backbones for the latent at (row, column): before training above, after it below.

    Raises:
        ValueError: there is no such position.
    """
    made = fields()
    check_sizes("position", position, length=2, least=0)
    for at, most in zip(position, made.grid, strict=True):
        check_whole("position", at, least=0, most=most - 1)
    fig, axes = plots.figure(8.5, 5, rows=len(WHEN), columns=len(made.backbones))
    for when, line in enumerate(axes):
        for backbone, ax in enumerate(line):
            share = _draw_field(ax, made, backbone, when, *position)
            ax.set_title(f"{made.backbones[backbone]}\n{share}" if when == 0 else share, fontsize=9)
        line[0].set_ylabel(WHEN[when], fontsize=9)
    return fig


def backbones_over_training() -> widgets.VBox:
    """Chapter 10: go through the training of three tokenizers, and see what they make of six pictures."""
    made = moments()

    def draw(moment: int) -> tuple["Figure", str]:
        names = ", ".join(made.backbones)
        return draw_backbones_over_training([moment]), (
            f"Six pictures, and below them what tokenizers with {names} make of them, {made.when(moment)}."
        )

    choices = [(str(step), i) for i, step in enumerate(made.steps)]
    return explorer(draw, moment=widgets.SelectionSlider(options=choices, description="step"))


def draw_backbones_over_training(moments_shown: Sequence[int]) -> "Figure":
    """The pictures, and a row of each backbone for each position of the slider.

    Raises:
        ValueError: the slider has no such position.
    """
    made = moments()
    rows = {"originals": made.originals}
    for moment in moments_shown:
        check_whole("moments_shown", moment, least=0, most=len(made.steps) - 1)
        for backbone, name in enumerate(made.backbones):
            rows[f"{name}\n{made.when(moment)}"] = made.drawn[backbone, moment]
    return plots.image_rows(rows, size=0.95)


def _draw_field(ax: "Axes", made: Fields, backbone: int, when: int, row: int, column: int) -> str:
    """Draw one map, with the patch of its latent in orange, and give the share of pixels that it sees."""
    seen, share = made.seen(backbone, when, row, column)
    height, width = (side // n for side, n in zip(seen.shape, made.grid, strict=True))
    ax.imshow(seen.numpy(), cmap="Purples", vmin=0, vmax=1, interpolation="nearest")
    corner = (column * width - 0.5, row * height - 0.5)
    ax.add_patch(plots.rectangle(corner, width, height, fill=False, edgecolor="#D55E00", linewidth=1.5))
    ax.set_xticks([])
    ax.set_yticks([])
    return share


def _titles(names: Any) -> tuple[str, ...]:
    return tuple(_TITLES.get(name, name) for name in names.tolist())

"""Explorer of chapter 09: reconstructions by tokenizers that were trained with more or less of each loss.

What it shows was made beforehand by ``python -m experiments.sharper_pictures_grid``: training takes minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from companion import plots
from companion._arguments import check_whole
from companion.course.explorer_widgets import explorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = Path(__file__).with_name("reconstructions.npz")


@dataclass(frozen=True)
class Grid:
    """P perceptual weights × A adversarial weights, and what a tokenizer trained with each pair makes of n pictures.

    Shapes:
        originals: (n, C, H, W) in [0, 1]; rebuilt: (P, A, n, C, H, W); each of ``measures``: (P, A).
    """

    perceptual_weights: tuple[float, ...]
    adversarial_weights: tuple[float, ...]
    originals: Tensor
    rebuilt: Tensor
    measures: dict[str, Tensor]

    def title(self, p: int, a: int) -> str:
        return f"perceptual {self.perceptual_weights[p]:g}, adversarial {self.adversarial_weights[a]:g}"

    def numbers(self, p: int, a: int) -> str:
        return ", ".join(f"{name} {values[p, a]:.3g}" for name, values in self.measures.items())


@cache
def grid() -> Grid:
    """What the package brings.

    Raises:
        FileNotFoundError: the file is missing.
    """
    with np.load(FILE, allow_pickle=False) as file:
        measures = {"MSE": "mse", "feature distance": "feature_distance", "sharpness": "sharpness"}
        return Grid(
            tuple(file["perceptual_weights"].tolist()),
            tuple(file["adversarial_weights"].tolist()),
            torch.from_numpy(file["originals"]).float() / 255,
            torch.from_numpy(file["reconstructions"]).float() / 255,
            {shown: torch.from_numpy(file[name]) for shown, name in measures.items()},
        )


def loss_weights() -> widgets.VBox:
    """Chapter 09: choose the weights of the two losses, and see what became of eight pictures."""
    made = grid()

    def draw(perceptual: int, adversarial: int) -> tuple["Figure", str]:
        fig = draw_loss_weights([(perceptual, adversarial)])
        return fig, (
            f"Eight pictures and what a tokenizer makes of them that was trained with weights "
            f"{made.title(perceptual, adversarial)}: {made.numbers(perceptual, adversarial)}"
        )

    def choice(name: str, values: Sequence[float]) -> widgets.SelectionSlider:
        return widgets.SelectionSlider(options=[(f"{v:g}", i) for i, v in enumerate(values)], description=name)

    return explorer(
        draw,
        perceptual=choice("perceptual", made.perceptual_weights),
        adversarial=choice("adversarial", made.adversarial_weights),
    )


def draw_loss_weights(pairs: Sequence[tuple[int, int]]) -> "Figure":
    """The pictures, and a row of reconstructions for each pair of positions of the two sliders.

    Raises:
        ValueError: a slider has no such position.
    """
    made = grid()
    rows = {"originals": made.originals}
    for p, a in pairs:
        check_whole("pairs", p, least=0, most=len(made.perceptual_weights) - 1)
        check_whole("pairs", a, least=0, most=len(made.adversarial_weights) - 1)
        rows[f"{made.title(p, a)}\n{made.numbers(p, a)}".replace(", sharp", "\nsharp")] = made.rebuilt[p, a]
    return plots.image_rows(rows, size=0.95)

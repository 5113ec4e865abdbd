"""What the explorers of several chapters share: sliders beside a picture that follows them.

The picture is an ``<img>`` with alt text inside an HTML widget: ipywidgets' own Image has no alt text. Sliders are
observed directly, without ``interact`` or an Output widget: a notebook with an explorer runs unattended as well.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from companion import plots

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


def class_choice(classes: Sequence[str]) -> widgets.Dropdown:
    """One of the classes by its number, or -1, "no class"."""
    names = [("no class", -1), *((name, k) for k, name in enumerate(classes))]
    return widgets.Dropdown(options=names, value=min(3, len(classes) - 1), description="class")

"""Explorer of chapter 04: codes of an image, changed one by one."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor

from companion import plots
from companion._arguments import check_images

if TYPE_CHECKING:
    from companion.vqvae import VQVAE


def code_map(model: "VQVAE", images: Tensor) -> widgets.VBox:
    """Chapter 04: click a position of an image's code map, put another code there, and see the image change.

    images: (n, C, H, W) in [0, 1], on the model's device.
    """
    check_images("images", images)
    model.eval()
    maps = model.encode(images).cpu()  # (n, h, w)
    device = images.device
    height, width = maps.shape[1:]
    codes = maps[0].clone()
    chosen = [height // 2, width // 2]

    which = widgets.IntSlider(0, 0, len(images) - 1, description="image")
    code = widgets.IntSlider(int(codes[chosen[0], chosen[1]]), 0, model.quantizer.num_codes - 1, description="code")
    back = widgets.Button(description="the encoder's codes")
    buttons = [
        widgets.Button(
            tooltip=f"row {i // width + 1}, column {i % width + 1}", layout=widgets.Layout(width="34px", height="28px")
        )
        for i in range(height * width)
    ]
    table = widgets.GridBox(buttons, layout=widgets.Layout(grid_template_columns=f"repeat({width}, 36px)"))
    image = widgets.HTML()

    def show() -> None:
        original = maps[which.value]
        for i, button in enumerate(buttons):
            row, column = divmod(i, width)
            button.description = str(int(codes[row, column]))
            changed = bool(codes[row, column] != original[row, column])
            button.button_style = "info" if [row, column] == chosen else "warning" if changed else ""
        decoded = model.decode(torch.stack([original, codes]).to(device)).cpu()
        changes = int((codes != original).sum())
        fig, axes = plots.figure(7, 2.6, columns=3)
        for ax, name, panel in zip(
            axes,
            ("image", "decoded", f"decoded, {changes} codes changed"),
            (images[which.value], *decoded),
            strict=True,
        ):
            plots.draw_image(ax, panel)
            ax.set_title(name)
        alt = (
            f"Image {which.value}, its reconstruction, and what the decoder makes of its codes with {changes} changed; "
            f"chosen is row {chosen[0] + 1}, column {chosen[1] + 1}, code {int(codes[chosen[0], chosen[1]])}"
        )
        image.value = plots.Picture(plots.to_png(fig), alt, 672)._repr_html_()

    def choose(row: int, column: int) -> None:
        chosen[:] = row, column
        if code.value == int(codes[row, column]):
            show()
        else:
            code.value = int(codes[row, column])  # and this shows it

    def put(_: object) -> None:
        codes[chosen[0], chosen[1]] = code.value
        show()

    def restore(_: object) -> None:
        codes[:] = maps[which.value]
        choose(*chosen)
        show()

    for i, button in enumerate(buttons):
        button.on_click(lambda _, i=i: choose(*divmod(i, width)))
    which.observe(restore, names="value")
    code.observe(put, names="value")
    back.on_click(restore)
    show()
    return widgets.VBox([which, table, code, back, image])

"""Explorer of chapter 03: vector quantisation in the plane, step by step."""

from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from torch import Tensor

from companion import plots
from companion.course.explorer_widgets import explorer
from companion.quantizers import nearest_code

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def codes_in_the_plane(homes: Tensor, codebook: Tensor) -> widgets.VBox:
    """Chapter 03: vector quantisation step by step. homes: (N, 2), codebook: (K, 2), see :func:`draw_steps`."""

    def draw(steps: int, beta: float, lr: float) -> tuple["Figure", str]:
        fig, ax = plots.figure(6, 4.6)
        distance = draw_steps(ax, homes, codebook, steps=steps, beta=beta, lr=lr)
        ax.set_title(f"step {steps}: mean distance of a latent to its code {distance:.3g}")
        ax.legend(loc="upper right")
        return (
            fig,
            f"Latents and codes in the plane after {steps} steps with β = {beta:g} and learning rate {lr:g}: a "
            f"latent is {distance:.3g} from its code on average",
        )

    return explorer(
        draw,
        steps=widgets.IntSlider(0, 0, 60, description="steps"),
        beta=widgets.FloatSlider(0.25, min=0.0, max=2.0, step=0.05, description="β"),
        lr=widgets.FloatSlider(
            0.02, min=0.005, max=0.08, step=0.005, description="learning rate", readout_format=".3f"
        ),
    )


def draw_steps(ax: "Axes", homes: Tensor, codebook: Tensor, *, steps: int, beta: float, lr: float) -> float:
    """Draw latents and codes after some steps of gradient descent, and give the mean distance of a latent to its code.

    Each latent starts at its home, where the decoder (here the identity) wants its code to be. Straight-through gives
    it the gradient 2(z_q − home), commitment adds 2β(z − z_q); a code gets Σ 2(e − z) of the latents that chose it.

    Shapes:
        homes: (N, 2), codebook: (K, 2).
    """
    homes, codes = homes.detach().float().cpu(), codebook.detach().float().cpu()
    z, path = homes.clone(), [codes]
    for _ in range(steps):
        k = nearest_code(z, codes)
        z_q = codes[k]
        counts = torch.bincount(k, minlength=len(codes))[:, None]
        pull = 2 * (counts * codes - torch.zeros_like(codes).index_add(0, k, z))  # of the codebook loss
        z = z - lr * (2 * (z_q - homes) + 2 * beta * (z - z_q))
        codes = codes - lr * pull
        path.append(codes)
        if float(torch.cat([z, codes]).abs().max()) > 1e6:  # the learning rate is too large: far outside the picture
            break
    k = nearest_code(z, codes)
    low, high = homes.amin(0) - 1.5, homes.amax(0) + 1.5
    for (x, y), (home_x, home_y) in zip(z.tolist(), homes.tolist(), strict=True):
        ax.plot([home_x, x], [home_y, y], color="#BBBBBB", linewidth=0.7, zorder=1)
    for (x, y), (code_x, code_y) in zip(z.tolist(), codes[k].tolist(), strict=True):
        ax.plot([code_x, x], [code_y, y], ":", color=plots.COLOURS["third"], linewidth=0.7, zorder=1)
    rings = ax.scatter(
        homes[:, 0].numpy(), homes[:, 1].numpy(), s=16, linewidths=0.8, label="home: what the decoder wants"
    )
    rings.set(facecolor="none", edgecolor=plots.COLOURS["reference"])
    ax.scatter(z[:, 0].numpy(), z[:, 1].numpy(), s=9, color=plots.COLOURS["train"], zorder=2, label="latent z")
    for track in torch.stack(path, 1):  # (steps + 1, 2), one a code
        ax.plot(*track.T.numpy(), color=plots.COLOURS["validation"], linewidth=1, alpha=0.6)
    crosses = ax.scatter(
        codes[:, 0].numpy(),
        codes[:, 1].numpy(),
        s=80,
        marker="X",
        color=plots.COLOURS["validation"],
        zorder=3,
        label="code e",
    )
    crosses.set_edgecolor("white")
    ax.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
    return float((z - codes[k]).norm(dim=1).mean())

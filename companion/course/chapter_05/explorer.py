"""Explorer of chapter 05: codes that follow moving clouds of points."""

import math
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch

from companion import plots
from companion.course.explorer_widgets import explorer
from companion.quantizers import code_statistics, ema_step, nearest_code, restart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CHASERS = 8  # codes of :func:`draw_chase`


def moving_clouds() -> widgets.VBox:
    """Chapter 05: codes in the plane follow clouds of points that turn about the origin, see :func:`draw_chase`."""

    def draw(steps: int, decay: float, restart_below: float) -> tuple["Figure", str]:
        fig, ax = plots.figure(6, 4.9)
        distance, used = draw_chase(ax, steps=steps, decay=decay, restart_below=restart_below)
        ax.set_title(f"step {steps}: {used} of {CHASERS} codes in use, mean distance {distance:.2f}")
        ax.legend(loc="lower right", fontsize=8)
        return (
            fig,
            f"Six clouds of points and {CHASERS} codes with their tracks after {steps} steps, γ = {decay:g}, "
            f"restarts below {restart_below:g}: {used} codes are in use, a point is {distance:.2f} from its code",
        )

    return explorer(
        draw,
        steps=widgets.IntSlider(40, 1, 150, description="steps"),
        decay=widgets.FloatSlider(0.9, min=0.0, max=0.99, step=0.01, description="γ"),
        restart_below=widgets.FloatSlider(0.0, min=0.0, max=0.5, step=0.05, description="restart below"),
    )


def draw_chase(ax: "Axes", *, steps: int, decay: float, restart_below: float) -> tuple[float, int]:
    """Draw eight EMA codes after some batches of points from six clouds, which turn by a fiftieth of a radian a batch.

    Returns:
        The mean distance of the last batch's points to their codes, and how many codes they use.
    """
    generator = torch.Generator().manual_seed(0)
    codes = 2.2 + 0.25 * torch.randn(CHASERS, 2, generator=generator, device="cpu")  # all of them in one corner
    counts, path = torch.zeros(CHASERS, device="cpu"), [codes]
    cloud = torch.arange(6, device="cpu").repeat_interleave(20)
    for step in range(steps):
        angle = cloud * (math.pi / 3) + 0.02 * step
        noise = torch.randn(len(cloud), 2, generator=generator, device="cpu")
        points = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.18 * noise
        candidates = points[torch.randperm(len(points), generator=generator, device="cpu")[:CHASERS]]
        k = nearest_code(points, codes)
        statistics = code_statistics(points, k, CHASERS)
        looked_up = codes
        moved, counts = ema_step(codes, counts, *statistics, decay)
        codes, counts = restart(moved, counts, candidates, restart_below)
        jumped = (codes != moved).any(1, keepdim=True)
        path += [moved, torch.where(jumped, torch.nan, codes)]  # a restart is a gap in the track
    ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=7, color=plots.COLOURS["train"], label="points")
    for number, track in enumerate(torch.stack(path, 1)):  # one a code
        label = "" if number else "way of a code"
        ax.plot(*track.T.numpy(), color=plots.COLOURS["validation"], linewidth=1, alpha=0.5, label=label)
    used = torch.bincount(k, minlength=CHASERS) > 0
    for wanted, marker, label in ((used, "X", "code in use"), (~used, "o", "dead code")):
        ax.scatter(
            codes[wanted, 0].numpy(),
            codes[wanted, 1].numpy(),
            s=80,
            marker=marker,
            facecolor=plots.COLOURS["validation"] if marker == "X" else "white",
            edgecolor="white" if marker == "X" else plots.COLOURS["validation"],
            zorder=3,
            label=label,
        )
    ax.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal")
    return float((points - looked_up[k]).norm(dim=1).mean()), int(used.sum())

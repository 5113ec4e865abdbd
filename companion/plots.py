"""The figures of the course.

A function returns a matplotlib figure, or draws into given axes (``draw_…``); ``show`` displays a figure with alt text.
"""

import base64
import html
import inspect
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from companion._arguments import (
    LARGEST,
    brief,
    check_between,
    check_codes,
    check_flag,
    check_images,
    check_instance,
    check_number,
    check_size,
    check_tensor,
    checks_values,
)
from companion._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

# The palette of Okabe and Ito, which colour-blind readers can distinguish. The same thing always has the same colour.
COLOURS = {
    "train": "#0072B2",
    "validation": "#D55E00",
    "reference": "#555555",
    "third": "#009E73",
    "fourth": "#CC79A7",
}
CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
    "#D55E00", "#B8A800", "#000000", "#8C564B", "#7F7F7F",
)  # fmt: skip
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.3,
    "svg.hashsalt": "companion",
}


_LARGEST_FIGURE = 500  # inches: a larger PNG cannot be written
_MOST_AXES = 200  # in a row: more take minutes
_MOST_IMAGES = 150  # in rows, each with axes of its own: more take long
_MOST_NUMBERS = 10_000  # written into a table: more take long
_OUTSIDE = 0.9  # how far outside [0, 1] images of a decoder may be; images in −1 … 1 are further outside, and refused


class Picture:
    """A PNG with its alt text, which Jupyter displays as ``<img alt=…>``."""

    def __init__(self, png: bytes, alt: str, width: int) -> None:
        check_instance("png", png, bytes, "bytes")
        check_instance("alt", alt, str, "a text")
        check_size("width", width)
        self.png, self.alt, self.width = png, alt, width

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode("ascii")
        alt = html.escape(self.alt, quote=True)
        return f'<img alt="{alt}" width="{self.width}" style="max-width:100%" src="data:image/png;base64,{data}">'


def show(fig: "Figure", *, alt: str) -> None:
    """Display a figure as an ``<img>`` with alt text. (JupyterLab gives a plain PNG output an empty one.)

    Args:
        alt: what a reader who cannot see the figure needs to know, in a sentence or two.

    Raises:
        ValueError: the alt text is empty, or ``fig`` is no figure.
    """
    _check_drawn("fig", fig, "matplotlib.figure", "Figure")
    check_instance("alt", alt, str, "a sentence that says what the figure shows")
    if not alt.strip():
        raise ValueError("alt: got an empty text, want a sentence that says what the figure shows")
    picture = Picture(to_png(fig, dpi=110), " ".join(alt.split()), round(fig.get_figwidth() * 96))
    require("IPython.display", extra="course", what="plots.show").display(picture)


def to_png(fig: "Figure", *, dpi: int = 100) -> bytes:
    """The figure as PNG bytes, without a date or version inside: the same figure gives the same bytes.

    Raises:
        ValueError: ``fig`` is no figure, or ``dpi`` is out of range.
    """
    _check_drawn("fig", fig, "matplotlib.figure", "Figure")
    check_number("dpi", dpi, least=10, most=1000)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def figure(width: float = 7, height: float = 3, *, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """An empty figure in the style of the course, and its axes. pyplot does not know it, so it is not displayed twice.

    Args:
        width, height: inches.
        rows, columns: of axes.
        options: for matplotlib's ``Figure.subplots``.

    Raises:
        ValueError: a size is out of range, or there is no such option.
    """
    check_number("width", width, above=0, most=_LARGEST_FIGURE)
    check_number("height", height, above=0, most=_LARGEST_FIGURE)
    check_size("rows", rows, most=_MOST_AXES)
    check_size("columns", columns, most=_MOST_AXES)
    matplotlib = require("matplotlib", extra="plots", what="companion.plots")
    figure_class = require("matplotlib.figure", extra="plots", what="companion.plots").Figure
    known = list(inspect.signature(figure_class.subplots).parameters)[3:]  # after self, nrows and ncols
    for name, value in options.items():
        if name not in known:
            way = {"nrows": ": rows", "ncols": ": columns"}.get(name, "")
            raise ValueError(f"{name}: got {brief(value)}, want rows, columns or one of {', '.join(known)}{way}")
    with matplotlib.rc_context(_STYLE):
        fig = figure_class(figsize=(width, height))
        axes = fig.subplots(rows, columns, **options)
    return fig, axes


def image_rows(
    rows: Mapping[str, Tensor], *, title: str = "", columns: int | None = None, size: float = 0.75
) -> "Figure":
    """Named rows of images, such as originals above reconstructions.

    Args:
        rows: the images of each row, by its name.
        columns: how many images a row has; default: as many as the longest.
        size: of an image, in inches.

    Shapes:
        each value of rows: (n, C, H, W) with C = 1 or 3, in [0, 1]. Those of a decoder may be a little outside and are
        clamped.

    Raises:
        ValueError: a row is no batch of grey or colour images, there are too many, or another argument is out of range.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise ValueError(f"rows: got {brief(rows)}, want at least one row of images by name: {{'x': images}}")
    for name, images in rows.items():
        check_instance("rows", name, str, "a name for each row")
        _check_images(f"rows[{name!r}]", images)
    check_instance("title", title, str, "a text")
    check_number("size", size, above=0)
    if columns is not None:
        check_size("columns", columns, most=_MOST_AXES)
    n = columns or max(len(images) for images in rows.values())
    if n * len(rows) > _MOST_IMAGES:
        got = f"{len(rows)} rows of {n}" if len(rows) > 1 else f"a row of {n}"
        raise ValueError(f"rows: got {got} images, want at most {_MOST_IMAGES} in all: image_grid draws more")
    fig, axes = figure(
        size * n + 1.2, size * len(rows) + (0.4 if title else 0.1), rows=len(rows), columns=n, squeeze=False
    )
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, image in zip(line, images, strict=False):
            draw_image(ax, image)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    if title:
        fig.suptitle(title)
    return fig


def image_grid(images: Tensor, *, columns: int, title: str = "", size: float = 0.6) -> "Figure":
    """Many images as one picture, row by row, without gaps; where the last line has none, it is white.

    Args:
        size: of an image, in inches.

    Shapes:
        images: (n, C, H, W), as in :func:`image_rows`.

    Raises:
        ValueError: ``images`` is no batch of grey or colour images, or another argument is out of range.
    """
    _check_images("images", images)
    check_instance("title", title, str, "a text")
    check_number("size", size, above=0, most=_LARGEST_FIGURE)
    check_size("columns", columns, most=min(LARGEST, int(_LARGEST_FIGURE / size)))
    n, channels, height, width = images.shape
    lines = -(-n // columns)
    if size * lines * height / width + 1 > _LARGEST_FIGURE:
        raise ValueError(f"images: got {n}, {lines} lines of {columns}, want fewer, or more columns")
    padded = torch.ones(lines * columns, channels, height, width, device="cpu")
    padded[:n] = images.detach().float().cpu()
    sheet = padded.reshape(lines, columns, channels, height, width).permute(2, 0, 3, 1, 4)  # (C, lines, H, columns, W)
    fig, ax = figure(size * columns, size * lines * height / width + (0.35 if title else 0))
    draw_image(ax, sheet.reshape(channels, lines * height, columns * width))
    if title:
        ax.set_title(title)
    return fig


def draw_image(ax: "Axes", image: Tensor) -> None:
    """Draw one image into ``ax``: grey with one channel, colour with three.

    Shapes:
        image: (C, H, W), as in :func:`image_rows`.

    Raises:
        ValueError: ``image`` has another shape, type or range, or ``ax`` is no axes.
    """
    _check_drawn("ax", ax, "matplotlib.axes", "Axes")
    _check_images("image", image, batch=False)
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def class_scatter(ax: "Axes", points: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """Draw points of the plane, coloured by class, with the name of each class at its median.

    The names make the figure readable in grey. Names that would overlap are moved apart, to at least 6 % of the height
    that the points take up, or of the width 6 %, and 2 % for each letter of the longest name, as far as so many fit.

    Args:
        classes: the names.

    Shapes:
        points: (N, 2), labels: (N,) int64.

    Raises:
        ValueError: points or labels have another shape or type, or a label is no index into ``classes``.
    """
    _check_drawn("ax", ax, "matplotlib.axes", "Axes")
    check_tensor("points", points, shape=("N", 2), finite=True)
    check_instance("classes", classes, Sequence, "a sequence of names")
    for name in classes:
        check_instance("classes", name, str, "names")
    check_tensor("labels", labels, shape=(len(points),), dtype=torch.int64)
    check_codes("labels", labels, len(classes))
    points, labels = points.detach().float().cpu(), labels.cpu()
    present = [k for k in range(len(classes)) if bool((labels == k).any())]
    extent = (points.amax(0) - points.amin(0)).clamp_min(1e-9)
    medians = torch.stack([points[labels == k].median(dim=0).values for k in present])
    longest = max(len(classes[k]) for k in present)
    unit = extent * extent.new_tensor([max(1.0, longest / 3), 1.0])  # a name is wider than high
    centres = unit * _moved_apart(medians / unit, 0.06)
    for k, (x, y) in zip(present, centres.tolist(), strict=True):
        chosen, colour = points[labels == k], CLASS_COLOURS[k % len(CLASS_COLOURS)]
        ax.scatter(chosen[:, 0].numpy(), chosen[:, 1].numpy(), s=4, alpha=0.5, color=colour, linewidths=0)
        style = "circle,pad=0.15" if longest < 3 else "round,pad=0.15"  # a circle around a long name hides much
        box = {"boxstyle": style, "facecolor": "white", "edgecolor": colour, "alpha": 0.9}
        ax.text(x, y, classes[k], ha="center", va="center", fontweight="bold", bbox=box)


def _moved_apart(points: Tensor, distance: float) -> Tensor:
    """Points of the plane (n, 2), moved until no two are nearer than ``distance`` to each other."""
    turn = torch.arange(len(points), device=points.device)
    points = points + 1e-3 * distance * torch.stack([turn.cos(), turn.sin()], 1)  # so that equal points differ
    for _ in range(min(1000, 10**7 // len(points) ** 2)):  # of so many that they do not fit, some stay near each other
        differences = points[:, None] - points  # (n, n, 2)
        gaps = differences.norm(dim=2).fill_diagonal_(torch.inf)
        if bool((gaps >= distance).all()):
            break
        push = (1.1 * distance - gaps).clamp_min(0) / gaps
        points = points + 0.5 * (push[:, :, None] * differences).sum(1)
    return points


def pipeline_map(image: Tensor, codes: Tensor, rebuilt: Tensor, sampled: Tensor) -> "Figure":
    """The overview of the course: image → encoder → codes → decoder → image, and a prior that generates new codes.

    Shapes:
        image, rebuilt, sampled: (C, H, W) in [0, 1]; codes: (h, w) integers.

    Raises:
        ValueError: an argument has another shape or type.
    """
    for argument, value in (("image", image), ("rebuilt", rebuilt), ("sampled", sampled)):
        _check_images(argument, value, batch=False)
    _check_table(codes)
    fig, ax = figure(9, 3.7)
    ax.set(xlim=(0, 18), ylim=(0, 7.4))
    ax.set_axis_off()
    for name, left, pixels in (("image x", 0.2, image), ("x̂, rebuilt", 14.9, rebuilt)):
        draw_image(ax.inset_axes((left, 4.0, 2.6, 2.6), transform=ax.transData), pixels)
        ax.text(left + 1.3, 6.75, name, ha="center")
    table = ax.inset_axes((7.3, 4.0, 3.2, 2.6), transform=ax.transData)
    draw_codes(table, codes)
    ax.text(8.9, 6.75, f"codes k, {codes.shape[0]} × {codes.shape[1]}", ha="center")
    draw_image(ax.inset_axes((14.9, 0.5, 2.6, 2.6), transform=ax.transData), sampled)
    ax.text(16.2, 0.05, "a new image", ha="center")
    _box(ax, 3.5, 4.6, "encoder +\nquantizer", COLOURS["train"], "chapters 01–06", 1.6)
    _box(ax, 11.2, 4.6, "decoder", COLOURS["validation"], "chapters 01–06", 1.6)
    _box(ax, 7.5, 1.1, "prior: guesses\nthe next code", COLOURS["third"], "chapters 07–08", -0.8)
    for start, end in (
        ((2.9, 5.3), (3.4, 5.3)),
        ((6.5, 5.3), (7.2, 5.3)),
        ((10.6, 5.3), (11.1, 5.3)),
        ((14.2, 5.3), (14.8, 5.3)),
    ):
        _arrow(ax, start, end)
    _arrow(ax, (8.9, 3.9), (8.9, 2.6), "learns from")
    _arrow(ax, (10.6, 1.9), (12.3, 4.5), "makes new codes")
    _arrow(ax, (13.2, 4.5), (14.8, 3.0))
    return fig


def draw_codes(ax: "Axes", codes: Tensor, *, order: Tensor | None = None, numbers: bool = True) -> None:
    """Draw the code indices of an image as a coloured table.

    Args:
        order: a rank for each code; the colour of code k follows order[k], with 0 the lightest. Codes may share a rank,
            but not all of them. By default, neighbouring numbers get different pastel colours.
        numbers: write the indices into the table.

    Shapes:
        codes: (h, w) integers; order: (K,) int64.

    Raises:
        ValueError: ``codes`` is no table of whole numbers of at least 0, or too large to write ``numbers`` into; or
            ``order`` has not a rank for each code.
    """
    _check_drawn("ax", ax, "matplotlib.axes", "Axes")
    _check_table(codes)
    check_flag("numbers", numbers)
    if order is not None:
        check_tensor("order", order, shape=("K",), dtype=torch.int64)
        check_between("order", order, 0, len(order) - 1)
        check_between("codes", codes, 0, len(order) - 1)
        if checks_values(order) and len(order) > 1 and bool((order == order[0]).all()):
            raise ValueError(f"order: got {int(order[0])} for each of the {len(order)} codes, want different ranks")
    if numbers and codes.numel() > _MOST_NUMBERS:
        raise ValueError(
            f"numbers: got True for {codes.numel():,} codes, want at most {_MOST_NUMBERS:,} to write them in, or False"
        )
    codes = codes.cpu()
    if order is None:
        ax.imshow(codes.numpy(), cmap="Pastel1", aspect="auto")
    else:
        ax.imshow(
            order.cpu()[codes].numpy(), cmap="YlGnBu", vmin=0, vmax=1.3 * int(order.max()), interpolation="nearest"
        )
    if numbers:
        for (row, column), k in zip(
            torch.cartesian_prod(*map(torch.arange, codes.shape)).tolist(), codes.flatten().tolist(), strict=True
        ):
            ax.text(column, row, str(k), ha="center", va="center", fontsize=7)
    ax.set_axis_off()


def rectangle(corner: tuple[float, float], width: float, height: float, **style: Any) -> "Rectangle":
    """A rectangle that marks a part of an image: ``ax.add_patch(rectangle((left, top), …))``.

    Args:
        style: options of matplotlib's ``Rectangle``.

    Raises:
        ValueError: the corner is no pair of numbers, width or height is no number, or there is no such option.
    """
    if not isinstance(corner, Sequence) or len(corner) != 2:
        raise ValueError(f"corner: got {brief(corner)}, want (left, top)")
    for name, value in (("corner", corner[0]), ("corner", corner[1]), ("width", width), ("height", height)):
        check_number(name, value)
    patches = require("matplotlib.patches", extra="plots", what="plots.rectangle")
    try:
        return patches.Rectangle(corner, width, height, **style)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"style: got {brief(style)}, want options of matplotlib's Rectangle ({error})") from error


def draw_cells(
    ax: "Axes", codebook: Tensor, points: Tensor | None = None, *, numbers: bool = True, border: float = 0.1
) -> None:
    """Draw codes of the plane as crosses, each in its Voronoi cell, and points as dots.

    Args:
        numbers: write the index of each code beside it.
        border: how much wider and higher than the points and codes the picture is, on each side, as a share.

    Shapes:
        codebook: (K, 2), points: (N, 2).

    Raises:
        ValueError: codes or points have another shape, or are not finite.
    """
    _check_drawn("ax", ax, "matplotlib.axes", "Axes")
    check_tensor("codebook", codebook, shape=("K", 2), finite=True)
    if points is not None:
        check_tensor("points", points, finite=True)
    check_flag("numbers", numbers)
    check_number("border", border, least=0)
    codebook = codebook.detach().float().cpu()
    points = codebook[:0] if points is None else points.detach().float().cpu()
    if points.ndim != 2 or points.shape[1] != 2:  # there may be none
        raise ValueError(f"points: got shape {tuple(points.shape)}, want (n, 2)")
    both = torch.cat([codebook, points])
    low, high = both.amin(0), both.amax(0)
    low, high = low - border * (high - low), high + border * (high - low)
    flat = high == low  # a single code, or all on a line along an axis
    low, high = torch.where(flat, low - 1, low), torch.where(flat, high + 1, high)
    left, bottom, right, top = *low.tolist(), *high.tolist()
    size = 400
    across, up = (torch.linspace(float(a), float(b), size, device="cpu") for a, b in zip(low, high, strict=True))
    pixels = torch.stack(torch.meshgrid(across, up, indexing="xy"), 2).reshape(-1, 2)  # (size², 2)
    owner = torch.cdist(pixels, codebook).argmin(1).reshape(size, size)  # [row: second axis, column: first]
    shades = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in CLASS_COLOURS], device="cpu")
    image = 1 - 0.22 * (1 - shades[owner % len(shades)])  # (size, size, 3), pale
    edge = torch.zeros(size, size, dtype=torch.bool, device="cpu")
    edge[:-1] |= owner[:-1] != owner[1:]
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    image[edge] = 0.35
    ax.imshow(image.numpy(), origin="lower", extent=(left, right, bottom, top), aspect="auto", interpolation="nearest")
    ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=5, color=COLOURS["reference"], linewidths=0)
    ax.scatter(
        codebook[:, 0].numpy(),
        codebook[:, 1].numpy(),
        s=60,
        marker="X",
        color=COLOURS["validation"],
        edgecolors="white",
    )
    if numbers:
        for k, (x, y) in enumerate(codebook.tolist()):
            ax.annotate(str(k), (x, y), (5, 5), textcoords="offset points", fontsize=9, fontweight="bold")
    ax.grid(False)
    ax.set(xlim=(left, right), ylim=(bottom, top))


def rate_distortion(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str = "", loss: str = "distortion"
) -> "Figure":
    """Loss against rate, both on logarithmic scales: a line for each codec, a mark for a single point.

    Args:
        curves: for each name, pairs of bits per pixel and loss, both positive. What loses nothing has no place here.
        loss: the name of what is lost, on the axis.

    Raises:
        ValueError: there is no curve, a pair is none, or a number is not positive.
    """
    if not isinstance(curves, Mapping) or not curves:
        raise ValueError(f"curves: got {brief(curves)}, want pairs of bits per pixel and loss, by name")
    check_instance("title", title, str, "a text")
    check_instance("loss", loss, str, "a text")
    for name, pairs in curves.items():
        check_instance("curves", name, str, "names")
        if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
            raise ValueError(f"curves[{name!r}]: got {brief(pairs)}, want pairs of bits per pixel and loss")
        for pair in pairs:
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"curves[{name!r}]: got {brief(pair)}, want a pair of bits per pixel and loss")
            for number in pair:
                check_number(f"curves[{name!r}]", number, above=0)
    fig, ax = figure(6.5, 4)
    for i, (name, pairs) in enumerate(curves.items()):
        bits, lost = zip(*sorted(pairs), strict=True)
        style = "o-sD^vP*X<>"  # a mark of its own, so that the figure can be read in grey
        mark = style.replace("-", "")[i % 10]
        ax.plot(bits, lost, f"{mark}-" if len(bits) > 1 else mark, label=name, color=CLASS_COLOURS[i % 10])
    ax.set(xscale="log", yscale="log", xlabel="rate, bits per pixel", ylabel=loss, title=title)
    ax.legend(fontsize=8)
    return fig


def draw_gradient_flow(ax: "Axes", table: Mapping[str, Mapping[str, float]]) -> None:
    """Draw which loss has a gradient in which part of a model: a row for each loss, an arrow to each part it reaches.

    Args:
        table: for each loss, the norm of its gradient in each part, by the name of the part; 0 if there is none.

    Raises:
        ValueError: the table is empty, its rows have different parts, or a norm is negative or not finite.
    """
    _check_drawn("ax", ax, "matplotlib.axes", "Axes")
    if not isinstance(table, Mapping) or not all(isinstance(row, Mapping) for row in table.values()):
        raise ValueError(f"table: got {brief(table)}, want the norms by part, for each loss by name")
    parts = list(next(iter(table.values()), {}))
    if not parts:
        raise ValueError(f"table: got {brief(table)}, want at least one loss with at least one part")
    if any(list(row) != parts for row in table.values()):
        raise ValueError(f"table: got rows with {[list(row) for row in table.values()]}, want the same parts in each")
    for loss, row in table.items():
        for part, norm in row.items():
            check_number(f"table[{loss!r}][{part!r}]", norm, least=0)
    ax.set(xlim=(-0.7, len(parts) + 0.75), ylim=(len(table) - 0.35, -0.85))
    ax.set_axis_off()
    for column, part in enumerate(parts):
        ax.text(column, -0.65, part, ha="center", va="center", fontweight="bold")
    for line, (loss, row) in enumerate(table.items()):
        colour = list(COLOURS.values())[(0, 1, 3)[line % 3]]
        label = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"}
        ax.text(
            len(parts) + 0.15, line, f"{loss}\nloss", ha="center", va="center", color="white", bbox=label, fontsize=9
        )
        for column, part in enumerate(parts):
            reached = row[part] > 0
            ax.text(
                column,
                line,
                f"moves\n{row[part]:.2g}" if reached else "zero\n0",
                ha="center",
                va="center",
                fontsize=9,
                color="black" if reached else "#777777",
                bbox={
                    "boxstyle": "round,pad=0.35",
                    "facecolor": "white",
                    "edgecolor": colour if reached else "#BBBBBB",
                    "linewidth": 2.2 if reached else 1,
                    "linestyle": "-" if reached else ":",
                },
            )
            if reached:
                distance = len(parts) - column
                ax.annotate(
                    "",
                    (column + 0.12, line - 0.27) if distance > 1 else (column + 0.27, line),
                    (len(parts) - 0.1, line - 0.27) if distance > 1 else (len(parts) - 0.3, line),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": colour,
                        "linewidth": 2,
                        "connectionstyle": f"arc3,rad={0.12 if distance > 1 else 0}",
                    },
                )


def _check_drawn(name: str, value: Any, module: str, kind: str) -> None:
    """
    Raises:
        ValueError: ``value`` is no ``kind`` of matplotlib.
    """
    drawn = getattr(require(module, extra="plots", what="companion.plots"), kind)
    check_instance(name, value, drawn, f"matplotlib's {kind}")


def _check_images(name: str, images: Any, *, batch: bool = True) -> None:
    """
    Raises:
        ValueError: no grey or colour images; bytes, NaN, or numbers of images in 0 … 255 or −1 … 1. Those of a
            decoder may be a little outside [0, 1].
    """
    shape = ("n", "1 or 3", "H", "W")[0 if batch else 1 :]
    check_images(name, images, shape=shape, slack=_OUTSIDE)
    if images.shape[-3] not in (1, 3):
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, want ({', '.join(shape)})")


def _check_table(codes: Any) -> None:
    """
    Raises:
        ValueError: ``codes`` is no table (h, w) of whole numbers of at least 0.
    """
    whole = isinstance(codes, Tensor) and codes.dtype in (torch.int16, torch.int32, torch.int64)
    check_tensor("codes", codes, shape=("h", "w"), dtype=codes.dtype if whole else torch.int64)
    check_between("codes", codes, 0, 2**63 - 1)


def _box(ax: "Axes", left: float, bottom: float, text: str, colour: str, note: str, above: float) -> None:
    style = {"boxstyle": "round,pad=0.3", "facecolor": colour, "edgecolor": "none"}
    ax.text(left + 1.45, bottom + 0.7, text, ha="center", va="center", color="white", fontweight="bold", bbox=style)
    ax.text(
        left + 1.45, bottom + 0.7 + above * 0.8, note, ha="center", va="center", fontsize=8, color=COLOURS["reference"]
    )


def _arrow(ax: "Axes", start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.2})
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        ax.text(x + 0.2, y, text, fontsize=8, va="center")

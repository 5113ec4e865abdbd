"""Things to play with: sliders beside a picture that follows them.

The picture is an ``<img>`` with alt text inside an HTML widget: ipywidgets' own Image has no alt text. Sliders are
observed directly, without ``interact`` or an Output widget: a notebook with an explorer runs unattended as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn
from torch.nn import functional

from companion import plots
from companion._arguments import check_images, check_number, check_tensor
from companion.codes import check_identity
from companion.metrics import mse
from companion.quantizers import ResidualQuantizer, code_statistics, ema_step, nearest_code, restart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from companion.priors import Prior, RQTransformer
    from companion.vqvae import VQVAE

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

    images: (n, C, H, W) in [0, 1].
    """
    check_images("images", images)
    check_number("variance", variance, above=0)
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

    slider = widgets.IntSlider(0, min=0, max=len(cells) - 1, description="dearer KL →", readout=False)
    return explorer(draw, step=slider)


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


CHASERS = 8  # codes of :func:`draw_chase`


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
    for track in torch.stack(path, 1):  # one a code
        ax.plot(*track.T.numpy(), color=plots.COLOURS["validation"], linewidth=1, alpha=0.5)
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


def depth_slider(model: "VQVAE", images: Tensor) -> widgets.VBox:
    """Chapter 06: decode only the first codes of every stack, from coarse to fine.

    images: (n, C, H, W) in [0, 1], on the model's device; the model's quantizer is a ``ResidualQuantizer``.

    Raises:
        ValueError: its quantizer gives one code a position.
    """
    quantizer = model.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise ValueError(f"model: got one with a {type(quantizer).__name__}, want one with a ResidualQuantizer")
    check_images("images", images)
    model.eval()
    codes = model.encode(images)  # (n, h, w, R)
    with torch.no_grad():
        steps = [
            model.decoder(quantizer.decode(codes, depth=d)).clamp(0, 1).cpu() for d in range(1, quantizer.depth + 1)
        ]
    originals, tables = images.cpu(), codes.cpu()

    def draw(image: int, depth: int) -> tuple["Figure", str]:
        decoded = steps[depth - 1][image]
        error = float(mse(decoded, originals[image]))
        fig, axes = plots.figure(9, 2.6, columns=4)
        panels = (originals[image], decoded, (decoded - originals[image]).square())
        for ax, name, panel in zip(axes, ("image", f"depths 1 to {depth}", "squared difference"), panels, strict=False):
            plots.draw_image(ax, panel)
            ax.set_title(name if depth > 1 or name[0] != "d" else "depth 1 alone")
        plots.draw_codes(axes[3], tables[image, ..., depth - 1])
        axes[3].set_title(f"codes of depth {depth}")
        return fig, (
            f"Image {image}, what the decoder makes of its first {depth} of {quantizer.depth} codes a position, their "
            f"squared difference (mean {error:.4f}), and the table of the codes of depth {depth}"
        )

    return explorer(
        draw,
        image=widgets.IntSlider(0, 0, len(images) - 1, description="image"),
        depth=widgets.IntSlider(1, 1, quantizer.depth, description="depth"),
    )


def prior_samples(prior: "Prior", tokenizer: "VQVAE", classes: Sequence[str]) -> widgets.VBox:
    """Chapter 07: draw images of one class at a temperature, of the k likeliest codes; a seed gives the chance.

    prior and tokenizer: on one device; the tokenizer is the one whose codes the prior learnt. classes: their names.

    Raises:
        ValueError: the prior learnt from another tokenizer's codes, or has no classes.
    """
    check_identity(tokenizer, prior)
    if prior.num_classes != len(classes):
        raise ValueError(f"classes: got {len(classes)}, want the {prior.num_classes} that the prior has")
    n = 16

    def draw(label: int, temperature: float, top_k: int, seed: int) -> tuple["Figure", str]:
        codes = prior.sample(
            n,
            None if label < 0 else label,
            temperature=temperature,
            top_k=top_k,
            generator=torch.Generator().manual_seed(seed),
        )
        what = "no class" if label < 0 else f"class {classes[label]}"
        how = f"temperature {temperature:g}, k = {top_k}, seed {seed}"
        fig = plots.image_grid(tokenizer.decode(codes), columns=8, title=f"{what}, {how}", size=0.85)
        return fig, f"{n} images from codes that the prior drew: {what}, {how}"

    return explorer(
        draw,
        label=_class_choice(classes),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="temperature"),
        top_k=widgets.IntSlider(prior.num_codes, 1, prior.num_codes, description="top-k"),
        seed=widgets.IntSlider(0, 0, 99, description="seed"),
    )


def stack_sampler(tokenizer: "VQVAE", prior: "RQTransformer", classes: Sequence[str]) -> widgets.VBox:
    """Chapter 08: draw stacks of codes, and decode them from coarse to fine.

    tokenizer and prior: on one device; the tokenizer has a ``ResidualQuantizer`` and is the one whose codes the prior
    learnt. classes: their names.

    Raises:
        ValueError: the prior learnt from another tokenizer's codes or has other classes, or the tokenizer's quantizer
            gives one code a position.
    """
    check_identity(tokenizer, prior)
    if prior.num_classes != len(classes):
        raise ValueError(f"classes: got {len(classes)}, want the {prior.num_classes} that the prior has")
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise ValueError(f"tokenizer: got one with a {type(quantizer).__name__}, want one with a ResidualQuantizer")
    tokenizer.eval()
    n = 8

    def draw(label: int, temperature: float, seed: int, depth: int) -> tuple["Figure", str]:
        codes = prior.sample(
            n,
            None if label < 0 else label,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )
        with torch.no_grad():
            steps = [tokenizer.decoder(quantizer.decode(codes, depth=d)).clamp(0, 1) for d in range(1, depth + 1)]
        rows = {f"depth {d}": images for d, images in enumerate(steps, start=1)}
        if depth > 1:
            rows["change"] = (3 * (steps[-1] - steps[-2]).abs()).clamp(0, 1)
        what = "no class" if label < 0 else f"class {classes[label]}"
        how = f"temperature {temperature:g}, seed {seed}"
        fig = plots.image_rows(rows, title=f"{what}, {how}", size=0.85)
        return fig, f"{n} images from stacks that the prior drew: {what}, {how}; decoded to depth {depth}"

    return explorer(
        draw,
        label=_class_choice(classes),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="temperature"),
        seed=widgets.IntSlider(0, 0, 99, description="seed"),
        depth=widgets.IntSlider(prior.grid[-1], 1, prior.grid[-1], description="depth"),
    )


def _class_choice(classes: Sequence[str]) -> widgets.Dropdown:
    """One of the classes by its number, or -1, "no class"."""
    names = [("no class", -1), *((name, k) for k, name in enumerate(classes))]
    return widgets.Dropdown(options=names, value=min(3, len(classes) - 1), description="class")


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) with the given width in pixels; 0 leaves the images as they are."""
    if sigma <= 0:
        return images
    reach = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel /= kernel.sum()
    channels = images.shape[1]
    line = kernel.expand(channels, 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach))
    return functional.conv2d(functional.conv2d(padded, line, groups=channels), line.transpose(2, 3), groups=channels)

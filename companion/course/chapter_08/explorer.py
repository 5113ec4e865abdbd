"""Explorer of chapter 08: stacks drawn from an RQ-Transformer, decoded from coarse to fine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch

from companion import plots
from companion.codes import check_identity
from companion.course.explorer_widgets import class_choice, explorer
from companion.quantizers import ResidualQuantizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from companion.priors import RQTransformer
    from companion.vqvae import VQVAE


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
        label=class_choice(classes),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="temperature"),
        seed=widgets.IntSlider(0, 0, 99, description="seed"),
        depth=widgets.IntSlider(prior.grid[-1], 1, prior.grid[-1], description="depth"),
    )

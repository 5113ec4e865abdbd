"""Explorer of chapter 07: images drawn from a prior."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch

from companion import plots
from companion.codes import check_identity
from companion.course.explorer_widgets import class_choice, explorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from companion.priors import Prior
    from companion.vqvae import VQVAE


def prior_samples(prior: "Prior", tokenizer: "VQVAE", classes: Sequence[str]) -> widgets.VBox:
    """Chapter 07: draw images of one class at a temperature, of the k likeliest codes; a seed gives the random numbers.

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
        label=class_choice(classes),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="temperature"),
        top_k=widgets.IntSlider(prior.num_codes, 1, prior.num_codes, description="top-k"),
        seed=widgets.IntSlider(0, 0, 99, description="seed"),
    )

"""What tokens of four backbones see, and what three of them draw as they learn, for the explorers of chapter 10.

Tokenizers of emoji with about the same number of weights take the same steps. The file has, losslessly, for every token
how much each pixel moves it, before and after training; and what a few test images become at eight moments.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import companion
from companion.course.manifest import read_book
from companion.data import ImageSet, emoji, load
from experiments.backbones import SIZES, VARIANTS, tokenizer

PICTURES = (
    *("winking face with tongue", "woman with headscarf", "butterfly"),
    *("broccoli", "Japanese post office", "flag: Brazil"),
)
BACKBONES = {"ConvNeXt": "convnext", "ViT": "vit", "Mamba2": "mamba2", "BidirectionalMamba2": "bidirectional mamba2"}
DRAWN = ("ConvNeXt", "ViT", "Mamba2")
EPOCHS = 6
MOMENTS = (0, 10, 25, 50, 100, 180, 300)  # steps; the last moment is the end
FIELD_IMAGES = 16


def receptive_fields(encoder: nn.Module, x: Tensor) -> Tensor:
    """How much each pixel moves each latent: the gradient of its channels, weighed at random, over all images.

    Shapes:
        x: (B, 3, H, W) → (h, w, H, W) uint8: the square root of the share of the latent's largest gradient, 0 … 255,
        and 0 where the gradient is exactly 0 and nowhere else.
    """
    x = x.clone().requires_grad_(True)
    z = encoder(x)  # (B, D, h, w)
    weighed = z * torch.randn(z.shape[:2], generator=torch.Generator().manual_seed(0)).to(z)[:, :, None, None]
    fields = []
    for of_position in weighed.sum((0, 1)).flatten():
        (gradient,) = torch.autograd.grad(of_position, x, retain_graph=True)
        seen = gradient.square().sum(1).mean(0).sqrt()  # (B, 3, H, W) → (H, W)
        levels = (seen / seen.max()).sqrt().mul(255).round()
        fields.append(torch.where(seen > 0, levels.clamp_min(1), 0).to(torch.uint8))
    return torch.stack(fields).unflatten(0, z.shape[2:])


@torch.no_grad()
def unquantized(model: companion.VQVAE, x: Tensor) -> Tensor:
    """What an untrained tokenizer draws, from the darkest to the brightest number of each picture: its codes would hide
    the rest."""
    drawn = model.decoder(model.encoder(x))
    low, high = (extreme(drawn, (1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    return (drawn - low) / (high - low)


@dataclass
class Watched:
    """The loss of a tokenizer as an objective of ``fit``, which draws ``x`` before the steps in ``MOMENTS``."""

    x: Tensor
    step: int = 0
    drawn: list[Tensor] = field(default_factory=list)

    def __call__(self, model: companion.VQVAE, x: Tensor, *_: Tensor) -> companion.VQVAEOutput:
        if self.step in MOMENTS:
            self.draw(model)
        self.step += 1
        return model(x)

    def draw(self, model: companion.VQVAE) -> None:
        modes = {part: part.training for part in model.modules()}
        model.eval()
        self.drawn.append(model.reconstruct(self.x) if self.step else unquantized(model, self.x))
        for part, mode in modes.items():
            part.training = mode


def watched(name: str, train: ImageSet, shown: Tensor, seen: Tensor, epochs: int) -> tuple[Any, Any]:
    """One backbone: maps before and after training, (2, h, w, H, W), and pictures at each moment, (M, n, C, H, W)."""
    sizes = SIZES["quick"]
    torch.manual_seed(0)
    model = tokenizer(VARIANTS[BACKBONES[name]], sizes, train.shape)
    fields = [receptive_fields(model.encoder, seen)]
    watching = Watched(shown)
    companion.fit(
        model,
        train,
        objective=watching,
        epochs=epochs,
        batch_size=sizes["batch_size"],
        lr=sizes["lr"],
        seed=0,
        device="cpu",
        progress=False,
    )
    watching.draw(model)
    fields.append(receptive_fields(model.encoder, seen))
    drawn = torch.stack(watching.drawn).mul(255).round().to(torch.uint8)
    return torch.stack(fields).numpy(), drawn.numpy()


def make(file: Path, *, epochs: int = EPOCHS, train_images: int = SIZES["quick"]["train_images"]) -> None:
    """Train all backbones and write the file."""
    train, test = load("emoji", "train", size=train_images), load("emoji", "test")
    names = emoji.names("test")
    chosen = torch.tensor([names.index(name) for name in PICTURES])
    shown, seen = test.batch(chosen)[0], test.batch(torch.arange(FIELD_IMAGES))[0]
    made = {name: watched(name, train, shown, seen, epochs) for name in tqdm(BACKBONES, unit="backbone")}
    steps = epochs * -(-len(train) // SIZES["quick"]["batch_size"])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        file,
        backbones=np.array(list(BACKBONES)),
        fields=np.stack([fields for fields, _ in made.values()]),  # (4, 2, h, w, H, W) uint8
        drawn_backbones=np.array(DRAWN),
        pictures=np.array(PICTURES),
        originals=test.images[chosen].numpy(),  # (n, C, H, W) uint8
        moments=np.array([*(step for step in MOMENTS if step < steps), steps]),
        drawn=np.stack([made[name][1] for name in DRAWN]),  # (3, M, n, C, H, W) uint8
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.backbones_over_training", description=__doc__)
    default = read_book().root / "companion" / "course" / "chapter_10" / "backbones.npz"
    parser.add_argument("--out", type=Path, default=default, help="the file (default: the one that the chapter reads)")
    options = parser.parse_args()
    make(options.out)
    print(f"{options.out.name}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

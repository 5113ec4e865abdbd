"""A small discriminator for exercise 9.4."""

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """Two convolutions, with logits on both sides of ±1, twice as large in training mode, which tells the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return 2 * logits if self.training else logits


def critic(seed: int) -> Critic:
    """One whose weights, and biases, are drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Critic()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return made

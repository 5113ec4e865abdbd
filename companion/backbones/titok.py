"""Encoders and decoders whose codes are a row and no grid: the latent tokens of TiTok (Yu et al. 2024; chapter 10).

In a grid each code belongs to a place of the image. Here the model decides what each of its few codes says. With
B = 64 pictures of 3×32×32, factor 4, hidden 128 and 16 latent tokens:

    x (64, 3, 32, 32) → 64 patch tokens and 16 queries (64, 80, 128) → blocks → the last 16 → z (64, 64, 16)
    z (64, 64, 16) → 64 mask tokens and those 16 (64, 80, 128) → blocks → the first 64 → x̂ (64, 3, 32, 32)
"""

import torch
from torch import Tensor, nn

from companion._arguments import DEEPEST, check_fits, check_size, check_tensor
from companion.backbones._factors import check_channels, pair
from companion.backbones.patches import check_image_size, new_head, new_positions, token_grid
from companion.backbones.vit import TransformerBlock
from companion.configured import Configured


class LatentTokenEncoder(Configured, nn.Module):
    """Images → a row of ``tokens`` latents (Yu et al. 2024, section 3.2).

    Learned query tokens stand beside the patch tokens in a transformer and collect what is to be kept; only their
    outputs go on. Positions and queries start as normal numbers with standard deviation 0.02, all other weights as
    torch makes them.

    Args:
        in_channels: channels of the image.
        dim: D, channels of a latent.
        hidden: channels of a token.
        factor: f, or (f_height, f_width): the size of a patch. It does not decide how many latents there are.
        num_blocks: transformer blocks, at least one.
        size: height and width of the images, or one number for both.
        heads: of attention; they divide ``hidden``.
        tokens: latents an image.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, tokens).

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``x`` is not as the arguments say.
    """

    def __init__(
        self,
        in_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        size: int | tuple[int, int] = 32,
        heads: int = 4,
        tokens: int = 16,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, in_channels=in_channels, dim=dim, hidden=hidden)
        check_size("tokens", tokens)
        self.in_channels, self.tokens = in_channels, tokens
        self.factor, self.grid = pair(factor), token_grid(size, factor)
        self.to_tokens = nn.Conv2d(in_channels, hidden, self.factor, self.factor)
        self.positions = new_positions(self.grid, hidden)
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, hidden))
        self.blocks = _blocks(num_blocks, hidden, heads)
        self.head = new_head(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        check_image_size(x, self.grid, self.factor)
        check_fits("x", x, self.to_tokens.weight)
        patches = self.to_tokens(x).flatten(2).transpose(1, 2) + self.positions  # (64, 64, 128)
        queries = self.queries.expand(len(x), -1, -1)  # (64, 16, 128): the same for every image
        row = self.blocks(torch.cat([patches, queries], dim=1))  # (64, 80, 128)
        return self.head(row[:, -self.tokens :]).transpose(1, 2)  # (64, 16, 128) → (64, 16, 64) → (64, 64, 16)


class LatentTokenDecoder(Configured, nn.Module):
    """A row of latents → images (Yu et al. 2024, section 3.2): the encoder's mirror.

    The patches start as one learned mask token, with a position each; what they show they get from the latents, by
    attention.

    Args:
        out_channels: channels of the image.
        dim, hidden, factor, num_blocks, size, heads, tokens: see :class:`LatentTokenEncoder`.

    Shapes:
        z: (B, dim, tokens) → (B, out_channels, H, W). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range or does not fit the others; ``z`` is not as the arguments say.
    """

    def __init__(
        self,
        out_channels: int = 1,
        dim: int = 64,
        *,
        hidden: int = 128,
        factor: int | tuple[int, int] = 4,
        num_blocks: int = 2,
        size: int | tuple[int, int] = 32,
        heads: int = 4,
        tokens: int = 16,
    ) -> None:
        super().__init__()
        check_channels(num_blocks, out_channels=out_channels, dim=dim, hidden=hidden)
        check_size("tokens", tokens)
        self.dim, self.tokens = dim, tokens
        self.grid = token_grid(size, factor)
        self.from_latents = nn.Linear(dim, hidden)
        self.latent_positions = nn.Parameter(0.02 * torch.randn(tokens, hidden))
        self.mask_token = nn.Parameter(0.02 * torch.randn(hidden))
        self.positions = new_positions(self.grid, hidden)
        self.blocks = _blocks(num_blocks, hidden, heads)
        self.head = new_head(hidden, hidden)
        self.to_image = nn.ConvTranspose2d(hidden, out_channels, pair(factor), pair(factor))

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.dim, self.tokens))
        check_fits("z", z, self.from_latents.weight)
        latents = self.from_latents(z.transpose(1, 2)) + self.latent_positions  # (64, 64, 16) → (64, 16, 128)
        patches = (self.mask_token + self.positions).expand(len(z), -1, -1)  # (64, 64, 128)
        row = self.blocks(torch.cat([patches, latents], dim=1))  # (64, 80, 128)
        painted = self.head(row[:, : -self.tokens])  # (64, 64, 128)
        return self.to_image(painted.transpose(1, 2).unflatten(2, self.grid))  # (64, 128, 8, 8) → (64, 3, 32, 32)


def _blocks(num_blocks: int, hidden: int, heads: int) -> nn.Sequential:
    check_size("num_blocks", num_blocks, most=DEEPEST)
    return nn.Sequential(*(TransformerBlock(hidden, heads) for _ in range(num_blocks)))

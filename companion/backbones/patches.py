"""Patches as tokens, and the frame of all encoders and decoders that work on a row of them (chapter 10).

An encoder cuts an image into patches and makes a token of each; blocks, which the subclass gives, work on the row of
tokens; a small head makes a latent of each. With B = 64 pictures of 3×32×32, factor 4 and hidden 128:

    x (64, 3, 32, 32) → grid (64, 128, 8, 8) → tokens (64, 64, 128) → blocks → tokens (64, 64, 128) → z (64, 64, 8, 8)

The decoder is the mirror. Frame and head are those of ViT-VQGAN (Yu et al. 2022, section 3.1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion._arguments import check_fits, check_flag, check_instance, check_size, check_tensor
from companion.backbones._factors import check_divides, pair
from companion.backbones.blocks import RMSNorm

_LARGEST_IMAGE = 2**14  # pixels along an axis
_LARGEST_KERNEL = 2**10


def patchify(x: Tensor, patch: int | tuple[int, int]) -> Tensor:
    """Cut images into patches that do not overlap: a row of h·w tokens, row by row, each with the pixels of a patch.

    Args:
        patch: p, or (p_height, p_width).

    Shapes:
        x: (B, C, H, W) → (B, h·w, C·p²) with h = H / p, w = W / p. In a token: channels, then rows, then columns.

    Raises:
        ValueError: ``x`` has another shape, or a size that ``patch`` does not divide (with the nearest that work).
    """
    rows, columns = pair(patch, argument="patch", most=_LARGEST_IMAGE)
    check_tensor("x", x, shape=("B", "C", "H", "W"))
    check_divides("x", x.shape[2:], "patch", (rows, columns))
    b, c, height, width = x.shape  # for example (64, 3, 32, 32), with patches of 4
    h, w = height // rows, width // columns
    x = x.reshape(b, c, h, rows, w, columns)  # (64, 3, 8, 4, 8, 4)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (64, 8, 8, 3, 4, 4): where the patch is, then what is in it
    return x.reshape(b, h * w, c * rows * columns)  # (64, 64, 48)


def unpatchify(tokens: Tensor, patch: int | tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Put patches together again: the inverse of :func:`patchify`.

    Args:
        patch: p, or (p_height, p_width).
        grid: (h, w), patches along each axis.

    Shapes:
        tokens: (B, h·w, C·p²) → (B, C, h·p, w·p).

    Raises:
        ValueError: ``tokens`` are not h·w, or their length is no multiple of p².
    """
    rows, columns = pair(patch, argument="patch", most=_LARGEST_IMAGE)
    h, w = pair(grid, argument="grid", most=_LARGEST_IMAGE)
    check_tensor("tokens", tokens, shape=("B", h * w, "C·p²"))
    b, _, numbers = tokens.shape  # for example (64, 64, 48), patches of 4 in a grid of (8, 8)
    if numbers % (rows * columns):
        raise ValueError(f"tokens: got {numbers} numbers each, want a multiple of {rows}·{columns}, the patch")
    c = numbers // (rows * columns)
    x = tokens.reshape(b, h, w, c, rows, columns)  # (64, 8, 8, 3, 4, 4)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (64, 3, 8, 4, 8, 4)
    return x.reshape(b, c, h * rows, w * columns)  # (64, 3, 32, 32)


def token_grid(size: int | tuple[int, int], factor: int | tuple[int, int]) -> tuple[int, int]:
    """(h, w), tokens along each axis of an image.

    Raises:
        ValueError: an argument is out of range, or ``factor`` does not divide ``size`` (with the nearest that work).
    """
    (height, width), (rows, columns) = pair(size, argument="size", most=_LARGEST_IMAGE), pair(factor)
    check_divides("size", (height, width), "factor", (rows, columns))
    return height // rows, width // columns


class PatchEncoder(nn.Module):
    """Images → a token for each patch → blocks → a latent for each patch. Subclasses give the blocks.

    The first layer is a strided convolution. With a kernel as large as the stride it is a linear map of each patch
    (of ``patchify``'s tokens); with a larger one the patches overlap, and the image is padded with zeros so that there
    are as many. Positions start as normal numbers with standard deviation 0.02, all other weights as torch makes them.

    Args:
        in_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden: length of a token.
        factor: f, or (f_height, f_width): the stride.
        size: height and width of the images, or one number for both. Each position has its own learned vector, so a
            model is of one size.
        kernel: pixels that a token sees along each axis, f or more, by an even number; None: f.
        blocks: modules (B, T, hidden) → (B, T, hidden), T = h·w.
        learned_positions: whether a learned vector is added to the token at each position.

    Shapes:
        x: (B, in_channels, H, W) → (B, dim, H / f, W / f).

    Raises:
        ValueError: an argument is out of range, or ``factor`` does not divide ``size`` (with the nearest that work);
            ``x`` has another type, number of channels or size.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        hidden: int,
        factor: int | tuple[int, int],
        size: int | tuple[int, int],
        kernel: int | tuple[int, int] | None,
        blocks: Sequence[nn.Module],
        learned_positions: bool = True,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("dim", dim), ("hidden", hidden)):
            check_size(name, channels)
        check_flag("learned_positions", learned_positions)
        self.in_channels = in_channels
        self.factor, self.grid = pair(factor), token_grid(size, factor)
        window, padding = kernel_and_padding(kernel, self.factor)
        self.to_tokens = nn.Conv2d(in_channels, hidden, window, self.factor, padding)
        self.embedded_positions = new_positions(self.grid, hidden) if learned_positions else None
        self.blocks = checked_blocks(blocks)
        self.head = new_head(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x, shape=("B", self.in_channels, "H", "W"))
        check_image_size(x, self.grid, self.factor)
        check_fits("x", x, self.to_tokens.weight)
        tokens = self.to_tokens(x).flatten(2).transpose(1, 2)  # (64, 128, 8, 8) → (64, 128, 64) → (64, 64, 128)
        if self.embedded_positions is not None:
            tokens = tokens + self.embedded_positions
        latents = self.head(self.blocks(tokens))  # (64, 64, 128) → (64, 64, 64)
        return latents.transpose(1, 2).unflatten(2, self.grid)  # (64, 64, 8, 8)


class PatchDecoder(nn.Module):
    """A latent for each patch → blocks → images: the mirror of :class:`PatchEncoder`, with weights of its own.

    The last layer is a transposed convolution: each token paints its patch. With a kernel larger than the stride the
    patches overlap and are added; a kernel that is a multiple of the stride covers every pixel inside equally often.

    Args:
        out_channels: channels of the image.
        dim: D, channels of the latent grid.
        hidden, factor, size, kernel, blocks, learned_positions: see :class:`PatchEncoder`.
        last_conv: whether a 3×3 convolution follows, which sees across the edges of patches.

    Shapes:
        z: (B, dim, h, w) → (B, out_channels, f·h, f·w). The output is not squashed into [0, 1].

    Raises:
        ValueError: an argument is out of range; ``z`` is not (B, dim, h, w) with the h and w of ``size``, or of another
            type than the model.
    """

    def __init__(
        self,
        out_channels: int,
        dim: int,
        *,
        hidden: int,
        factor: int | tuple[int, int],
        size: int | tuple[int, int],
        kernel: int | tuple[int, int] | None,
        last_conv: bool,
        blocks: Sequence[nn.Module],
        learned_positions: bool = True,
    ) -> None:
        super().__init__()
        for name, channels in (("out_channels", out_channels), ("dim", dim), ("hidden", hidden)):
            check_size(name, channels)
        check_flag("last_conv", last_conv)
        check_flag("learned_positions", learned_positions)
        self.dim, self.factor, self.grid = dim, pair(factor), token_grid(size, factor)
        window, padding = kernel_and_padding(kernel, self.factor)
        self.to_tokens = nn.Linear(dim, hidden)
        self.embedded_positions = new_positions(self.grid, hidden) if learned_positions else None
        self.blocks = checked_blocks(blocks)
        self.head = new_head(hidden, hidden)
        self.to_image = nn.ConvTranspose2d(hidden, out_channels, window, self.factor, padding)
        self.last_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1) if last_conv else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        check_tensor("z", z, shape=("B", self.dim, *self.grid))
        check_fits("z", z, self.to_tokens.weight)
        tokens = self.to_tokens(z.flatten(2).transpose(1, 2))  # (64, 64, 8, 8) → (64, 64, 64) → (64, 64, 128)
        if self.embedded_positions is not None:
            tokens = tokens + self.embedded_positions
        tokens = self.head(self.blocks(tokens))  # (64, 64, 128)
        grid = tokens.transpose(1, 2).unflatten(2, self.grid)  # (64, 128, 8, 8)
        return self.last_conv(self.to_image(grid))  # (64, 3, 32, 32)


# Parts of both ------------------------------------------------------------------------------------------------------


def new_head(hidden: int, out: int) -> nn.Sequential:
    """Norm, and an MLP with tanh that gets the last word on each token (Yu et al. 2022, section 3.1)."""
    return nn.Sequential(RMSNorm(hidden), nn.Linear(hidden, 4 * hidden), nn.Tanh(), nn.Linear(4 * hidden, out))


def new_positions(grid: tuple[int, int], hidden: int) -> nn.Parameter:
    """A vector for each position, (h·w, hidden)."""
    return nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], hidden))


def checked_blocks(blocks: Sequence[nn.Module]) -> nn.Sequential:
    """
    Raises:
        ValueError: it is no sequence of modules.
    """
    check_instance("blocks", blocks, (list, tuple), "a list of modules (B, T, hidden) → (B, T, hidden)")
    for i, block in enumerate(blocks):
        check_instance(f"blocks[{i}]", block, nn.Module, "a module (B, T, hidden) → (B, T, hidden)")
    return nn.Sequential(*blocks)


def kernel_and_padding(
    kernel: int | tuple[int, int] | None, factor: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Those of a convolution with stride ``factor`` whose output is exactly ``factor`` times smaller.

    Raises:
        ValueError: the kernel is smaller than the factor, or larger by an odd number.
    """
    sizes = factor if kernel is None else pair(kernel, argument="kernel", most=_LARGEST_KERNEL)
    for size, f in zip(sizes, factor, strict=True):
        if size < f or (size - f) % 2:
            near = f if size < f else f"{size - 1} or {size + 1}"
            raise ValueError(f"kernel: got {size}, want the factor {f} or an even number more; the nearest: {near}")
    return sizes, ((sizes[0] - factor[0]) // 2, (sizes[1] - factor[1]) // 2)


def check_image_size(x: Tensor, grid: tuple[int, int], factor: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: the images have another height or width than the model was made for.
    """
    height, width = grid[0] * factor[0], grid[1] * factor[1]
    if x.shape[2:] != (height, width):
        raise ValueError(
            f"x: got images of {x.shape[2]}×{x.shape[3]}, want {height}×{width}, the size that this model was made for"
        )

"""Sheets of images as PNG: each pixel of an image is a square of whole pixels of the sheet."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion._extras import require

_LEAST = 64  # pixels, the side of an image on a sheet
_GAP = 2  # pixels


def sheet(images: Tensor, columns: int) -> bytes:
    """Images row by row, as the bytes of a PNG.

    Shapes:
        images: (n, C, H, W) in [0, 1], with C = 1 or 3.

    Raises:
        ValueError: a row would have no images.
    """
    _check_columns(columns)
    n, channels, height, width = images.shape
    scale = max(1, -(-_LEAST // max(height, width)))
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    lines, columns = -(-n // columns), min(n, columns)
    high, wide = height * scale + _GAP, width * scale + _GAP
    canvas = torch.full((channels, lines * high + _GAP, columns * wide + _GAP), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = _GAP + i // columns * high, _GAP + i % columns * wide
        canvas[:, top : top + height * scale, left : left + width * scale] = image
    return png(canvas)


def rows_sheet(rows: Sequence[Tensor], columns: int) -> bytes:
    """Rows of n images, one below the other and, where n is more than ``columns``, so again below them.

    Shapes:
        each of rows: (n, C, H, W) in [0, 1].

    Raises:
        ValueError: a row would have no images.
    """
    _check_columns(columns)
    together = torch.stack([row.detach().float().cpu() for row in rows])  # (rows, n, C, H, W)
    columns = min(columns, together.shape[1])
    missing = -together.shape[1] % columns  # of the last rows
    white = together.new_ones(len(rows), missing, *together.shape[2:])
    blocks = torch.cat([together, white], dim=1).split(columns, dim=1)
    return sheet(torch.cat([block.flatten(0, 1) for block in blocks]), columns)


def _check_columns(columns: int) -> None:
    if columns < 1:
        raise ValueError(f"columns: got {columns}, want at least 1")


def png(image: Tensor) -> bytes:
    """(C, H, W) uint8, or floating point in [0, 1] → the bytes of a PNG."""
    pil: Any = require("PIL.Image", extra="cli", what="writing pictures")
    if image.is_floating_point():
        image = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

"""Images changed at random while a model learns from them: what ``companion.fit(…, augment=…)`` calls on each batch.

A batch x (64, 3, 32, 32) of images comes in. Each of the 64 is cropped, and some are mirrored, sharpened or stretched
in contrast: x' (64, 3, 32, 32), again in [0, 1]. This is the recipe of the report on backbones for a VQ-VAE (its
author is not named); it trains with the optimizer on the second line:

    from companion.augment import Augment
    adam = functools.partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.05)
    companion.fit(model, train, epochs=5, augment=Augment(), optimizer=adam)

The report gives the three numbers without a name for their optimizer, and writes ``RandomCrop`` with a scale, which in
torchvision is ``RandomResizedCrop``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from companion._arguments import brief, check_images, check_number
from companion._extras import require

SHARPNESS = 2  # 0 blurs, 1 changes nothing


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augments each image of a batch by a draw of its own, with the transforms of ``torchvision.transforms.v2``.

    These draw once for each call, so a batch given to them would be cropped in one place, and mirrored whole or not at
    all; hence they are called for one image at a time. All numbers come from torch's global generator of the CPU.

    On one CPU thread 64 images of 3×32×32 take 0.04 of the time of a training step of a VQ-VAE with the default
    networks (``hidden=128``), and 0.3 of that of one with ``hidden=32``.

    All parts but ``flip`` make numbers between the 256 grey values, which discrete likelihoods of a ``VAE`` refuse.

    Args:
        crop: the smallest and the largest share of an image's area that is kept; it is resized to the old size. The
            sides of what is kept are as 3:4 to 4:3. None: no crop.
        flip: how likely an image is mirrored, left to right; 0: never.
        sharpness: how likely an image is sharpened (torchvision's factor 2).
        autocontrast: how likely an image is stretched, so that each of its channels goes from 0 to 1.

    Shapes:
        images: (B, C, H, W) floating point in [0, 1] → the same. Sharpness and autocontrast want C = 1 or 3.

    Raises:
        ValueError: a number is out of range, or ``images`` are of another shape, type or range.
        ImportError: torchvision is missing.
    """

    crop: tuple[float, float] | None = (0.8, 1.0)
    flip: float = 0.3
    sharpness: float = 0.3
    autocontrast: float = 0.3

    def __post_init__(self) -> None:
        if self.crop is not None:
            object.__setattr__(self, "crop", _checked_crop(self.crop))
        for name in ("flip", "sharpness", "autocontrast"):
            check_number(name, getattr(self, name), least=0, most=1)
            object.__setattr__(self, name, float(getattr(self, name)))  # one repr for 0, 0.0 and numpy's
        require("torchvision.transforms.v2", extra="data", what="Augment")  # now, not in the first step

    def __call__(self, images: Tensor) -> Tensor:
        check_images("images", images)
        channels, height, width = images.shape[1:]
        if (self.sharpness or self.autocontrast) and channels not in (1, 3):
            raise ValueError(f"images: got {channels} channels, want 1 or 3, or sharpness=0 and autocontrast=0")
        transforms = self._transforms(height, width)
        changed = images.clone()
        for row, image in zip(changed, images, strict=True):  # (C, H, W) each
            for transform in transforms:
                image = transform(image)
            row.copy_(image)
        return changed.clamp_(0, 1)  # images may come a rounding outside

    def _transforms(self, height: int, width: int) -> list[Any]:
        v2 = require("torchvision.transforms.v2", extra="data", what="Augment")
        made = [] if self.crop is None else [v2.RandomResizedCrop((height, width), scale=self.crop)]
        if self.flip:
            made.append(v2.RandomHorizontalFlip(self.flip))
        if self.sharpness:
            made.append(v2.RandomAdjustSharpness(SHARPNESS, self.sharpness))
        if self.autocontrast:
            made.append(v2.RandomAutocontrast(self.autocontrast))
        return made


def _checked_crop(crop: Any) -> tuple[float, float]:
    """Two shares of an area.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(crop, Sequence) or isinstance(crop, str) or len(crop) != 2:
        raise ValueError(f"crop: got {brief(crop)}, want two shares of an area, as (0.8, 1.0), or None")
    low, high = crop
    check_number("crop", low, above=0, most=1)
    check_number("crop", high, above=0, most=1)
    if low > high:
        raise ValueError(f"crop: got {brief(crop)}, want the smaller share first")
    return float(low), float(high)

"""The recipe of augmentation: each image by its own draw, in [0, 1], part by part as torchvision has it."""

import functools
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import companion
from companion._extras import install
from companion.augment import Augment

OFF: dict[str, Any] = {"crop": None, "flip": 0, "sharpness": 0, "autocontrast": 0}


def one_image_often(n: int) -> Tensor:
    """n times the same image (3, 8, 8), that no part leaves as it is."""
    torch.manual_seed(7)
    return (0.2 + 0.6 * torch.rand(1, 3, 8, 8)).repeat(n, 1, 1, 1)


def different(images: Tensor) -> int:
    return len({tuple(image.flatten().tolist()) for image in images})


class OnceForTheBatch(Augment):
    """The wrong version: torchvision's transforms draw once in a call."""

    def __call__(self, images: Tensor) -> Tensor:
        for transform in self._transforms(*images.shape[-2:]):
            images = transform(images)
        return images


def test_each_image_of_a_batch_is_augmented_by_a_draw_of_its_own() -> None:
    same = one_image_often(32)
    assert different(Augment()(same)) > 16
    assert different(OnceForTheBatch()(same)) == 1  # in the same place, and mirrored all or none
    for part in ("flip", "sharpness", "autocontrast"):
        assert different(Augment(**(OFF | {part: 0.5}))(same)) == 2
        assert different(OnceForTheBatch(**(OFF | {part: 0.5}))(same)) == 1


@pytest.mark.parametrize(
    ("part", "by_hand"),
    [
        ({"flip": 1}, lambda x: x.flip(-1)),
        ({"sharpness": 1}, lambda x: v2.functional.adjust_sharpness(x, 2)),
        ({"autocontrast": 1}, v2.functional.autocontrast),
        ({}, lambda x: x),
    ],
    ids=["flip", "sharpness", "autocontrast", "nothing"],
)
def test_a_part_alone_is_what_torchvision_makes_of_it(part: dict[str, Any], by_hand: Any) -> None:
    x = torch.rand(5, 3, 6, 9)
    before = x.clone()
    made = Augment(**(OFF | part))(x)
    torch.testing.assert_close(made, by_hand(before), rtol=0, atol=1e-6)
    assert torch.equal(made, before) == (not part)
    made.zero_()
    assert torch.equal(x, before)


def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for_and_the_size() -> None:
    size = 64
    ramp = torch.linspace(0, 1, size)
    x = torch.stack([ramp.expand(size, size), ramp.expand(size, size).T])[None].repeat(200, 1, 1, 1)
    for low, high in ((0.8, 1.0), (0.3, 0.5)):
        made = Augment(**(OFF | {"crop": (low, high)}))(x)
        assert made.shape == x.shape
        width, height = (made[:, i].flatten(1) for i in (0, 1))  # a pixel's number is its position
        sides = [1 + (size - 1) * (one.amax(1) - one.amin(1)) for one in (width, height)]
        areas = sides[0] * sides[1] / size**2
        assert low - 0.03 < areas.min() < areas.max() < high + 0.03
        assert areas.max() - areas.min() > 0.6 * (high - low)
    everything = Augment(**(OFF | {"crop": (1, 1)}))(x)
    torch.testing.assert_close(everything[:, 0].amax((1, 2)), torch.ones(200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 3, 8, 8), (1, 1, 5, 9), (3, 1, 1, 1)])
def test_images_in_0_to_1_stay_that_and_keep_shape_and_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (1.001 * torch.rand(shape).round() - 0.0005).to(dtype)  # black and white, and a rounding more
    assert x.max() > 1 or x.min() < 0
    made = Augment(flip=0.5, sharpness=0.8, autocontrast=0.8)(x)
    assert (made.shape, made.dtype) == (x.shape, dtype)
    assert made.min() >= 0
    assert made.max() <= 1


def test_a_probability_is_how_often_an_image_is_changed() -> None:
    torch.manual_seed(0)
    x = one_image_often(2000)
    for part in ("flip", "sharpness", "autocontrast"):
        changed = (Augment(**(OFF | {part: 0.3}))(x) != x).flatten(1).any(1).double().mean().item()
        assert changed == pytest.approx(0.3, abs=0.05)  # 0.05 is five standard deviations


def test_it_draws_from_the_global_generator_of_torch_and_from_nothing_else() -> None:
    x, augment = torch.rand(9, 3, 8, 8), Augment()
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(augment(x))
        after = torch.get_rng_state()
    assert torch.equal(made[0], made[1])
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(augment(x), made[0])


def test_its_repr_says_the_settings_in_one_way_and_it_cannot_be_changed() -> None:
    plain = Augment()
    assert repr(plain) == "Augment(crop=(0.8, 1.0), flip=0.3, sharpness=0.3, autocontrast=0.3)"
    numpys = Augment(crop=[np.float64(0.8), 1], flip=np.float32(0.5), sharpness=0, autocontrast=True + 0)  # type: ignore[arg-type]
    assert repr(numpys) == "Augment(crop=(0.8, 1.0), flip=0.5, sharpness=0.0, autocontrast=1.0)"
    assert numpys == Augment(flip=0.5, sharpness=0.0, autocontrast=1.0) != plain
    assert repr(Augment(**OFF)) == "Augment(crop=None, flip=0.0, sharpness=0.0, autocontrast=0.0)"
    assert pickle.loads(pickle.dumps(numpys)) == numpys
    with pytest.raises(FrozenInstanceError):
        plain.flip = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0.8}, "crop: got 0.8, want two shares of an area, as (0.8, 1.0), or None"),
        ({"crop": (0.8,)}, "crop: got (0.8,), want two shares"),
        ({"crop": "ab"}, "crop: got 'ab', want two shares"),
        ({"crop": (0, 1)}, "crop: got 0, want a finite number, more than 0 and at most 1"),
        ({"crop": (0.8, 1.1)}, "crop: got 1.1, want a finite number, more than 0 and at most 1"),
        ({"crop": (1.0, 0.8)}, "crop: got (1.0, 0.8), want the smaller share first"),
        ({"flip": 1.5}, "flip: got 1.5, want a finite number, at least 0 and at most 1"),
        ({"flip": None}, "flip: got None, want a finite number"),
        ({"sharpness": -0.1}, "sharpness: got -0.1, want a finite number, at least 0"),
        ({"autocontrast": True}, "autocontrast: got True, want a finite number"),
    ],
)
def test_wrong_numbers_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Augment(**options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "images: got uint8, want floating point in [0, 1]"),
        (torch.rand(3, 8, 8), "images: got float32 of shape (3, 8, 8), want floating point of shape (B, C, H, W)"),
        (torch.rand(2, 3, 8, 8) * 255, "images: got numbers from "),
        (torch.full((2, 3, 8, 8), torch.nan), "images: got numbers from nan to nan, want images in [0, 1]"),
        (torch.rand(2, 4, 8, 8), "images: got 4 channels, want 1 or 3, or sharpness=0 and autocontrast=0"),
    ],
)
def test_what_are_no_images_is_named(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Augment()(images)


def test_any_number_of_channels_can_be_cropped_and_mirrored() -> None:
    x = torch.rand(6, 5, 8, 8)
    made = Augment(flip=1, sharpness=0, autocontrast=0, crop=None)(x)
    assert torch.equal(made, x.flip(-1))
    assert different(Augment(sharpness=0, autocontrast=0)(x[:1].repeat(6, 1, 1, 1))) > 1


def test_without_torchvision_it_is_imported_and_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torchvision"] = None
import companion
try:
    companion.augment.Augment()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"Augment needs torchvision: {install('data')}\n"


def test_the_optimizer_of_the_docstring_is_that_of_the_report() -> None:
    assert companion.augment.__doc__ is not None
    (line,) = re.findall(r"adam = (.*)", companion.augment.__doc__)
    optimizer = eval(line, {"functools": functools, "torch": torch})([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.95), 0.05)

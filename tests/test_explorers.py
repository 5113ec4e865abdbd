"""The explorers answer to their sliders, and their picture has alt text."""

import re

import pytest
import torch

from companion import Decoder
from companion.course import explorers


def boxes():
    points = torch.randn(40, 2)
    return {
        "shift_and_blur": explorers.shift_and_blur(torch.rand(3, 1, 28, 28), 0.1),
        "latent_plane": explorers.latent_plane(Decoder(2), points, torch.arange(40) % 4, ("a", "b", "c", "d")),
    }


@pytest.mark.parametrize("name", ["shift_and_blur", "latent_plane"])
def test_every_slider_changes_the_picture_and_its_alt_text(name):
    box = boxes()[name]
    *sliders, image = box.children
    for slider in sliders:
        before = image.value
        slider.value = slider.max if slider.value != slider.max else slider.min
        assert image.value != before, slider.description
        assert re.search(r'<img alt="[^"]{20,}"', image.value)


def test_blur_keeps_the_brightness_inside_and_zero_changes_nothing():
    x = torch.zeros(1, 2, 21, 21)
    x[:, :, 10, 10] = 1
    assert torch.equal(explorers._blur(x, 0), x)
    torch.testing.assert_close(explorers._blur(x, 1.5).sum(dim=(2, 3)), torch.ones(1, 2), rtol=1e-3, atol=1e-3)

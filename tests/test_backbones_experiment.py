"""What the experiment on backbones trains and measures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import companion
import companion.course
from companion import backbones as library
from companion.data import emoji as emoji_data
from companion.data import load
from experiments import backbones, backbones_over_training, common

SHAPE = (3, 32, 32)


def test_all_variants_have_the_same_number_of_weights_within_a_tenth():
    for profile in ("quick", "full"):
        counts = {
            name: sum(p.numel() for p in backbones.tokenizer(variant, backbones.SIZES[profile], SHAPE).parameters())
            for name, variant in backbones.VARIANTS.items()
        }
        middle = (max(counts.values()) + min(counts.values())) / 2
        for name, count in counts.items():
            assert count == pytest.approx(middle, rel=0.1), (profile, name)


def test_all_variants_have_as_many_codes_and_learn_from_all_their_weights():
    x = load("emoji", "train", size=4).batch([0, 1, 2, 3])[0]
    for name, variant in backbones.VARIANTS.items():
        torch.manual_seed(0)
        model = backbones.tokenizer(variant, backbones.SIZES["smoke"], SHAPE)
        out = model(x)
        assert out.reconstruction.shape == x.shape, name
        assert out.indices[0].numel() == 64, name
        out.loss.backward()
        assert [p for p, weight in model.named_parameters() if weight.grad is None] == [], name


@pytest.mark.parametrize("variant", backbones.VARIANTS)
def test_every_variant_gives_all_numbers(variant):
    sizes = backbones.SIZES["smoke"]
    train, test = (load("emoji", split, size=sizes[f"{split}_images"]) for split in ("train", "test"))
    setup = common.Setup("smoke", torch.device("cpu"), sizes, train, test, 0.1)
    numbers = backbones.run_cell({"variant": variant, "seed": 0}, setup)
    assert len(numbers["reconstruction_by_epoch"]) == len(numbers["commitment_by_epoch"]) == sizes["epochs"]
    assert 0 < numbers["mse"] <= numbers["reconstruction_by_epoch"][-1]  # the latter of images that are not clamped
    assert numbers["distortion"] == pytest.approx(numbers["mse"] / 0.1)
    assert all(math.isfinite(value) for value in numbers.values() if not isinstance(value, list))
    assert numbers["grid_energy_originals"] == pytest.approx(1, abs=0.4)


def test_the_wrong_version_has_the_weights_of_the_right_one_and_sees_the_wrong_end():
    sizes = backbones.SIZES["smoke"]
    models = []
    for name in ("bidirectional mamba2", "bidirectional, not flipped back"):
        torch.manual_seed(0)
        models.append(backbones.tokenizer(backbones.VARIANTS[name], sizes, SHAPE))
    right, wrong = (dict(model.named_parameters()) for model in models)
    assert right.keys() == wrong.keys()
    assert all(torch.equal(right[name], wrong[name]) for name in right)

    block = backbones.NotFlippedBackBlock(8, state=4, head_dim=4)
    tokens = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    seen = torch.stack([torch.autograd.grad(block(tokens)[0, t].sum(), tokens)[0][0].abs().sum(1) > 0 for t in (0, 5)])
    assert seen.tolist() == [[True, False, False, False, False, True], [True] * 6]
    correct = library.BidirectionalMamba2Block(8, state=4, head_dim=4)
    correct.load_state_dict(block.state_dict())
    (gradient,) = torch.autograd.grad(correct(tokens)[0, 0].sum(), tokens)
    assert bool((gradient[0].abs().sum(1) > 0).all())


# What is measured


def emoji(n: int = 8) -> torch.Tensor:
    return load("emoji", "test", size=n).batch(torch.arange(n))[0]


def test_pictures_resemble_themselves_in_any_colours():
    x = emoji()
    assert backbones.resemblance(x, x) == pytest.approx(1)
    mixed = torch.einsum("dc,bchw->bdhw", torch.tensor([[-2.0, 0.3, 0.1], [0.5, 1.0, 0.0], [0.0, 0.2, -0.4]]), x)
    assert backbones.resemblance(mixed + 0.7, x) == pytest.approx(1, abs=1e-6)
    blurred = functional.avg_pool2d(x, 5, stride=1, padding=2)
    noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert 0.7 < backbones.resemblance(blurred, x) < 0.99
    assert 0.2 < backbones.resemblance(noisy, x) < backbones.resemblance(blurred, x)


def test_what_does_not_depend_on_the_image_does_not_resemble_it():
    x = emoji()
    assert backbones.resemblance(torch.full_like(x, 0.3), x) == pytest.approx(0, abs=1e-6)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert backbones.resemblance(noise, x) == pytest.approx(0.05, abs=0.04)  # 9 numbers fitted to 3,072
    flat = torch.ones(1, *x.shape[1:])
    assert backbones.resemblance(torch.cat([noise, flat]), torch.cat([x, flat])) == pytest.approx(
        backbones.resemblance(noise, x)
    )


def test_one_channel_by_hand():
    """A correlation, whatever its sign: of (0, 1, 2, 3) with (0, 1, 2, 1) it is 2 / √(5 · 2)."""
    a, b = torch.arange(4.0).reshape(1, 1, 2, 2), torch.tensor([0.0, 1.0, 2.0, 1.0]).reshape(1, 1, 2, 2)
    assert backbones.resemblance(a, b) == pytest.approx(2 / math.sqrt(10))
    assert backbones.resemblance(-a, b) == pytest.approx(2 / math.sqrt(10))


class UnderAPattern(nn.Module):
    """Latents that are images, drawn faintly under a texture that is the same in all patches of all images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        texture = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 8, 8)
        return texture + 0.02 * x


def test_an_image_under_a_pattern_resembles_little_and_shows_in_the_mean_colours_of_patches():
    model = companion.VQVAE(nn.Identity(), companion.EMAVectorQuantizer(4, 3), UnderAPattern())
    numbers = backbones.untrained(model, emoji(32))
    assert numbers["initial_correlation"] < 0.2
    assert numbers["initial_correlation_of_patches"] == pytest.approx(1, abs=1e-3)
    assert numbers["initial_grid_energy"] > 100
    assert model.training


def test_seams_are_steps_at_the_edges_of_patches():
    noise = torch.rand(4, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    assert backbones.seams(noise, 4) == pytest.approx(1, abs=0.05)
    mosaic = noise[..., :8, :6].repeat_interleave(4, 2).repeat_interleave(4, 3)
    mixed = mosaic + 0.1 * noise  # steps of uniform numbers have 1/6, and 0.01 of that inside
    assert backbones.seams(mixed, 4) == pytest.approx(101, rel=0.1)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert backbones.seams(ramp + 2 * (ramp >= 4), 4) == pytest.approx(9)  # 3² at the edge, 1² inside, nothing down


def test_a_loss_that_falls_by_the_same_factor_is_smooth_at_any_scale():
    steps = torch.arange(300.0)
    smooth, bumpy = (-steps / 50).exp(), (-steps / 50 + 0.3 * (steps / 12).sin()).exp()
    assert backbones.roughness(smooth) == pytest.approx(0, abs=1e-6)
    assert backbones.roughness(1000 * bumpy) == pytest.approx(backbones.roughness(bumpy), rel=1e-6)
    assert backbones.roughness(bumpy) > 0.05
    late = smooth.clone()
    late[:30] += 5  # the first tenth does not count
    assert backbones.roughness(late) == pytest.approx(0, abs=1e-6)
    alternating = torch.tensor([1.0, math.e] * 4)  # every part is a step; bends of ±2
    assert backbones.roughness(alternating) == pytest.approx(2)


def test_the_share_of_epochs_in_which_a_loss_rises():
    assert backbones.rises([5.0, 4.0, 4.5, 3.0, 3.0]) == 0.25
    assert backbones.rises([1.0, 2.0]) == 1


def test_operations_of_convolutions_attention_and_depthwise_convolutions_by_hand():
    quantizer = companion.EMAVectorQuantizer(4, 8)
    x = torch.rand(1, 3, 32, 32)
    strided = companion.VQVAE(nn.Conv2d(3, 8, 4, 4), quantizer, nn.ConvTranspose2d(8, 3, 4, 4))
    assert backbones.gigaflops(strided, x) == pytest.approx(3 * 2 * (2 * 64 * 8 * 48) / 1e9)
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 7, padding=3, groups=8))
    more = companion.VQVAE(depthwise, quantizer, nn.ConvTranspose2d(8, 3, 4, 4))
    difference = backbones.gigaflops(more, x) - backbones.gigaflops(strided, x)
    assert difference == pytest.approx(3 * 2 * 64 * 8 * 49 / 1e9)
    none, one = (
        companion.VQVAE(
            library.ViTEncoder(3, 8, hidden=16, num_blocks=blocks), quantizer, nn.ConvTranspose2d(8, 3, 4, 4)
        )
        for blocks in (0, 1)
    )
    weights = 4 * 16**2 + 3 * 16 * round(16 * 8 / 3)  # each used once a token
    attended = 2 * 64 * 16  # scores and means, for each token
    difference = backbones.gigaflops(one, x) - backbones.gigaflops(none, x)
    assert difference == pytest.approx(3 * 2 * 64 * (weights + attended) / 1e9)


# The file of the explorers


def small(name: str = "mamba2") -> companion.VQVAE:
    torch.manual_seed(0)
    return backbones.tokenizer(backbones.VARIANTS[name], backbones.SIZES["smoke"], SHAPE)


def test_a_field_is_the_gradient_of_one_latent_weighed_at_random():
    encoder, x = small().encoder, emoji()
    maps = backbones_over_training.receptive_fields(encoder, x)
    assert maps.shape == (8, 8, 32, 32)
    y = x.clone().requires_grad_(True)
    z = encoder(y)[:, :, 2, 5]
    signs = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((z * signs).sum(), y)
    wanted = gradient.square().sum(1).mean(0).sqrt()
    assert bool(((maps[2, 5] > 0) == (wanted > 0)).all())
    torch.testing.assert_close(maps[2, 5] / 255, (wanted / wanted.max()).sqrt(), atol=0.005, rtol=0)
    assert not maps[2, 5, 12:].any(), "rows of patches that are read later"
    assert bool(maps[2, 5, :8].any())


def test_watching_draws_at_every_moment_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(backbones_over_training, "MOMENTS", (0, 1, 3))
    train, x = load("emoji", "train", size=32), emoji(2)
    states = []
    for objective in (backbones_over_training.Watched(x), lambda model, x, *_: model(x)):
        model = small("vit")
        companion.fit(model, train, objective=objective, epochs=2, batch_size=8, lr=1e-3, seed=0, progress=False)
        states.append(model.state_dict())
        if isinstance(objective, backbones_over_training.Watched):
            assert objective.step == 8
            assert len(objective.drawn) == 3
            torch.testing.assert_close(objective.drawn[0].amin((1, 2, 3)), torch.zeros(2))
            torch.testing.assert_close(objective.drawn[0].amax((1, 2, 3)), torch.ones(2))
            assert not torch.equal(objective.drawn[1], objective.drawn[2])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_file_has_what_the_explorers_need():
    file = Path(companion.course.__path__[0]) / "chapter_10" / "backbones.npz"
    assert file.stat().st_size < 700_000
    with np.load(file, allow_pickle=False) as opened:
        made = {name: opened[name] for name in opened.files}
    shown = [emoji_data.find(str(name)) for name in made["pictures"]]
    assert {split for split, _ in shown} == {"test"}
    assert np.array_equal(made["originals"], load("emoji", "test").images[[i for _, i in shown]].numpy())
    assert made["backbones"].tolist() == list(backbones_over_training.BACKBONES)
    assert made["drawn_backbones"].tolist() == list(backbones_over_training.DRAWN)
    steps = backbones_over_training.EPOCHS * -(-2_413 // backbones.SIZES["quick"]["batch_size"])
    assert made["moments"].tolist() == [*backbones_over_training.MOMENTS, steps]
    assert made["fields"].shape == (4, 2, 8, 8, 32, 32)
    assert made["drawn"].shape == (3, len(made["moments"]), *made["originals"].shape)
    assert made["fields"].dtype == made["drawn"].dtype == np.uint8

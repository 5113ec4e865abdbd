"""The explorers answer to their sliders, and their picture has alt text."""

import re

import pytest
import torch

import companion
from companion import Decoder, plots, quantizers
from companion.course import explorers
from companion.course.chapter_00.explorer import blurred
from companion.course.chapter_09.explorer import grid
from companion.course.chapter_10.explorer import fields, moments
from companion.course.chapter_11.explorer import jpeg


def boxes():
    points = torch.randn(40, 2)
    return {
        "shift_and_blur": explorers.shift_and_blur(torch.rand(3, 1, 28, 28), 0.1),
        "latent_grid": explorers.latent_grid(Decoder(2)),
        "kl_sweep": explorers.kl_sweep(
            [
                {
                    "beta": beta,
                    "samples": f"{step:x}" * (8 * 9),
                    "kl_per_dimension": [1.0 / beta, 0.5],
                    "kl": 1.5,
                    "active_units": 2,
                    "distortion": 0.1,
                }
                for step, beta in ((3, 1.0), (9, 4.0))
            ]
            + [{"beta": 1.0, "kl_per_dimension": [1.0]}]  # a cell without samples is left out
        ),
        "latent_plane": explorers.latent_plane(Decoder(2), points, torch.arange(40) % 4, ("a", "b", "c", "d")),
        "codes_in_the_plane": explorers.codes_in_the_plane(points, torch.randn(3, 2)),
        "moving_clouds": explorers.moving_clouds(),
    }


@pytest.mark.parametrize(
    "name", ["shift_and_blur", "latent_plane", "latent_grid", "kl_sweep", "codes_in_the_plane", "moving_clouds"]
)
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
    assert torch.equal(blurred(x, 0), x)
    torch.testing.assert_close(blurred(x, 1.5).sum(dim=(2, 3)), torch.ones(1, 2), rtol=1e-3, atol=1e-3)


def test_blur_leaves_a_white_border_white():
    """Of an image that goes on in black, the border darkens."""
    white = torch.ones(1, 3, 12, 12)
    torch.testing.assert_close(blurred(white, 2.0), white)
    black_around = blurred(torch.nn.functional.pad(white, (6, 6, 6, 6)), 2.0)[:, :, 6:-6, 6:-6]
    assert black_around[0, 0, 0, 0] < 0.5


def test_a_step_in_the_plane_is_a_step_of_gradient_descent_on_the_three_losses():
    generator = torch.Generator().manual_seed(0)
    homes, codes = torch.randn(20, 2, generator=generator), torch.randn(4, 2, generator=generator)
    z, e = homes.clone().requires_grad_(), codes.clone().requires_grad_()
    optimizer = torch.optim.SGD([z, e], lr=0.03)
    for _ in range(5):
        code = e[quantizers.nearest_code(z, e)]
        codebook_loss, commitment_loss = quantizers.vq_losses(z, code)
        reconstruction = (quantizers.straight_through(z, code) - homes).square().sum()
        optimizer.zero_grad()
        (reconstruction + homes.numel() * (codebook_loss + 0.5 * commitment_loss)).backward()
        optimizer.step()
    _, ax = plots.figure()
    distance = explorers.draw_steps(ax, homes, codes, steps=5, beta=0.5, lr=0.03)
    with torch.no_grad():
        expected = (z - e[quantizers.nearest_code(z, e)]).norm(dim=1).mean().item()
    assert distance == pytest.approx(expected, rel=1e-5)
    drawn = torch.as_tensor(ax.collections[-1].get_offsets().data).float()
    torch.testing.assert_close(drawn, e.detach(), rtol=1e-5, atol=1e-6)


def test_a_learning_rate_that_is_far_too_large_still_draws():
    homes = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    assert explorers.draw_steps(plots.figure()[1], homes, homes[:1], steps=60, beta=2.0, lr=5.0) > 100


def test_images_that_are_none_in_0_to_1_are_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match=r"images: got numbers from .* want images in \[0, 1\]"):
        explorers.shift_and_blur(torch.full((2, 1, 8, 8), 255.0), 0.1)
    with pytest.raises(ValueError, match="variance: got 0"):
        explorers.shift_and_blur(torch.rand(2, 1, 8, 8), 0.0)


def test_code_map_puts_a_code_where_it_was_clicked_and_takes_it_back():
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.VectorQuantizer(6, 4),
        companion.ResNetDecoder(1, 4, hidden=8),
    )
    images = torch.rand(3, 1, 12, 12)
    maps = model.encode(images)
    which, table, code, back, picture = explorers.code_map(model, images).children
    assert [int(b.description) for b in table.children] == maps[0].flatten().tolist()
    table.children[5].click()  # row 2, column 3
    assert code.value == maps[0, 1, 2]
    before = picture.value
    code.value = (int(maps[0, 1, 2]) + 1) % 6
    assert picture.value != before
    assert "with 1 changed" in picture.value
    assert int(table.children[5].description) == code.value
    table.children[0].click()  # another position: nothing changes there
    assert "with 1 changed" in picture.value
    back.click()
    assert [int(b.description) for b in table.children] == maps[0].flatten().tolist()
    which.value = 2
    assert [int(b.description) for b in table.children] == maps[2].flatten().tolist()
    assert "with 0 changed" in picture.value


def test_restarts_bring_all_codes_to_the_clouds_and_a_long_memory_lags_behind():
    ax = plots.figure()[1]
    alone, used_alone = explorers.draw_chase(ax, steps=60, decay=0.9, restart_below=0.0)
    revived, used = explorers.draw_chase(ax, steps=60, decay=0.9, restart_below=0.25)
    assert used_alone < 6 <= used
    assert revived < alone
    short, _ = explorers.draw_chase(ax, steps=100, decay=0.8, restart_below=0.25)
    long, _ = explorers.draw_chase(ax, steps=100, decay=0.99, restart_below=0.25)
    assert short < long


def test_depth_slider_decodes_the_first_codes_of_every_stack(monkeypatch, device):
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.ResidualQuantizer([companion.VectorQuantizer(6, 4) for _ in range(3)]),
        companion.ResNetDecoder(1, 4, hidden=8),
    )
    images = torch.rand(2, 1, 12, 12)
    codes = model.encode(images).cpu()
    drawn = []
    monkeypatch.setattr(plots, "draw_image", lambda ax, image: drawn.append(image))
    monkeypatch.setattr(plots, "draw_codes", lambda ax, table: drawn.append(table))
    which, depth, picture = explorers.depth_slider(model, images).children
    for image, d in ((0, 2), (1, 2), (1, 3)):
        drawn.clear()
        which.value, depth.value = image, d
        *_, decoded, _, table = drawn
        expected = model.decoder(model.quantizer.decode(codes[image : image + 1].to(device), depth=d))[0].clamp(0, 1)
        torch.testing.assert_close(decoded, expected.detach().cpu())
        assert torch.equal(table, codes[image, ..., d - 1])
        assert f"Image {image}, what the decoder makes of its first {d} of 3 codes" in picture.value


def test_depth_slider_wants_a_residual_quantizer():
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.VectorQuantizer(6, 4),
        companion.ResNetDecoder(1, 4, hidden=8),
    )
    with pytest.raises(ValueError, match="model: got one with a VectorQuantizer, want one with a ResidualQuantizer"):
        explorers.depth_slider(model, torch.rand(2, 1, 12, 12))


def test_prior_samples_draws_what_the_sliders_say():
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.VectorQuantizer(6, 4),
        companion.ResNetDecoder(1, 4, hidden=8),
    ).eval()
    options = {"dim": 8, "layers": 1, "heads": 2, "num_classes": 3}
    prior = companion.TransformerPrior(6, (3, 3), tokenizer=companion.identity(model), **options)
    label, temperature, top_k, seed, picture = explorers.prior_samples(prior, model, ("a", "b", "c")).children
    for slider, value, said in (
        (label, -1, "no class"),
        (label, 1, "class b"),
        (temperature, 2.0, "temperature 2"),
        (top_k, 2, "k = 2"),
        (seed, 7, "seed 7"),
    ):
        before = picture.value
        slider.value = value
        assert picture.value != before
        assert said in picture.value
    codes = prior.sample(16, 1, temperature=2.0, top_k=2, generator=torch.Generator().manual_seed(7))
    fig = plots.image_grid(model.decode(codes), columns=8, title="class b, temperature 2, k = 2, seed 7", size=0.85)
    assert plots.Picture(plots.to_png(fig), "", 1)._repr_html_().partition("src=")[2] in picture.value


def test_prior_samples_refuses_a_prior_of_other_codes_or_classes():
    parts = companion.ResNetEncoder(1, 4, hidden=8), companion.VectorQuantizer(6, 4), companion.ResNetDecoder(1, 4)
    model = companion.VQVAE(*parts)
    options = {"dim": 8, "layers": 1, "heads": 2}
    with pytest.raises(ValueError, match="tokenizer: got the one with identity"):
        explorers.prior_samples(companion.TransformerPrior(6, (3, 3), **options), model, ())
    prior = companion.TransformerPrior(6, (3, 3), tokenizer=companion.identity(model), **options)
    with pytest.raises(ValueError, match="classes: got 2, want the 0"):
        explorers.prior_samples(prior, model, ("a", "b"))


def stacks_and_prior(**options):
    torch.manual_seed(0)
    model = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.ResidualQuantizer([companion.VectorQuantizer(6, 4) for _ in range(2)]),
        companion.ResNetDecoder(1, 4, hidden=8),
    ).eval()
    shape = {"dim": 8, "layers": 1, "depth_layers": 1, "heads": 2, "num_classes": 3}
    return model, companion.RQTransformer(6, (3, 3, 2), **{"tokenizer": companion.identity(model)} | shape | options)


def test_stack_sampler_draws_what_the_sliders_say_and_decodes_to_a_depth(monkeypatch):
    model, prior = stacks_and_prior()
    drawn = []
    rows = plots.image_rows
    monkeypatch.setattr(plots, "image_rows", lambda images, **how: drawn.append(images) or rows(images, **how))
    label, temperature, seed, depth, picture = explorers.stack_sampler(model, prior, ("a", "b", "c")).children
    for slider, value, said in (
        (label, -1, "no class"),
        (label, 1, "class b"),
        (temperature, 2.0, "temperature 2"),
        (seed, 7, "seed 7"),
        (depth, 1, "decoded to depth 1"),
    ):
        before = picture.value
        slider.value = value
        assert picture.value != before
        assert said in picture.value
    codes = prior.sample(8, 1, temperature=2.0, generator=torch.Generator().manual_seed(7))
    *_, both, first = drawn
    assert list(first) == ["depth 1"]
    assert list(both) == ["depth 1", "depth 2", "change"]
    for d in (1, 2):
        expected = model.decoder(model.quantizer.decode(codes, depth=d)).clamp(0, 1)
        torch.testing.assert_close(both[f"depth {d}"], expected.detach())
    torch.testing.assert_close(first["depth 1"], both["depth 1"])


def test_stack_sampler_refuses_what_does_not_go_together():
    model, prior = stacks_and_prior()
    with pytest.raises(ValueError, match="classes: got 2, want the 3"):
        explorers.stack_sampler(model, prior, ("a", "b"))
    with pytest.raises(ValueError, match="tokenizer: got the one with identity"):
        explorers.stack_sampler(model, stacks_and_prior(tokenizer="another")[1], ("a", "b", "c"))
    plain = companion.VQVAE(
        companion.ResNetEncoder(1, 4, hidden=8),
        companion.VectorQuantizer(6, 4),
        companion.ResNetDecoder(1, 4, hidden=8),
    )
    with pytest.raises(ValueError, match="tokenizer: got one with a VectorQuantizer"):
        explorers.stack_sampler(plain, stacks_and_prior(tokenizer=companion.identity(plain))[1], ("a", "b", "c"))


def test_loss_weights_shows_what_the_two_sliders_choose():
    perceptual, adversarial, image = explorers.loss_weights().children
    seen = {image.value}
    for slider in (perceptual, adversarial):
        for _, position in slider.options[1:]:
            slider.value = position
            seen.add(image.value)
    assert len(seen) == len(perceptual.options) + len(adversarial.options) - 1  # a picture for each position
    assert all(re.search(r'<img alt="Eight pictures[^"]*MSE 0\.\d+', value) for value in seen)
    with pytest.raises(ValueError, match="pairs: got 9, want a whole number from 0 to"):
        explorers.draw_loss_weights([(9, 0)])


def test_the_reconstructions_of_loss_weights_are_of_the_pictures_beside_them():
    """More weight, more sharpness; and each row is nearer to its own originals than to others."""
    made = grid()
    p, a = len(made.perceptual_weights), len(made.adversarial_weights)
    assert made.rebuilt.shape == (p, a, *made.originals.shape)
    assert all(values.shape == (p, a) for values in made.measures.values())
    assert made.measures["sharpness"][-1, 0] > made.measures["sharpness"][0, 0]
    own = (made.rebuilt - made.originals).square().mean((2, 3, 4, 5))
    others = (made.rebuilt - made.originals.roll(1, 0)).square().mean((2, 3, 4, 5))
    assert bool((own < 0.5 * others).all())


def test_receptive_fields_shows_what_is_chosen_and_how_many_pixels_it_is():
    made = fields()
    backbone, when, row, column, image = explorers.receptive_fields().children
    for control, value in ((backbone, 2), (when, 1), (row, 1), (column, 6)):
        before = image.value
        control.value = value
        assert image.value != before, control.description
    share = (made.maps[2, 1, 1, 6] > 0).float().mean().item()
    alt = f"row 1, column 6 of Mamba-2 after training: {share:.0%} of the pixels"
    assert alt in image.value
    fig = explorers.draw_receptive_fields((1, 6))
    titles = [ax.get_title() for ax in fig.axes]
    assert len(titles) == 2 * len(made.backbones)
    assert titles[0].startswith("ConvNeXt\n")
    assert titles[6] == f"{share:.0%} of the pixels"
    (patch,) = fig.axes[0].patches
    assert (patch.get_xy(), patch.get_width(), patch.get_height()) == ((23.5, 3.5), 4, 4)  # columns 24 … 27 of row 4 …
    for position in ((8, 0), (0, -1), (0,)):
        with pytest.raises(ValueError, match="position: got"):
            explorers.draw_receptive_fields(position)


def test_the_fields_are_those_of_their_backbones():
    """Convolutions a neighbourhood; attention all; Mamba its patch and what was read before it, both ways all again."""
    made = fields()
    assert made.backbones == ("ConvNeXt", "ViT", "Mamba-2", "Mamba-2, both ways")
    assert made.maps.shape == (4, 2, 8, 8, 32, 32)
    seen = (made.maps > 0).unflatten(4, (8, 4)).unflatten(6, (8, 4)).any(7).any(5)  # which patches see which
    seen = seen.flatten(2, 3).flatten(3, 4)  # (4, 2, 64, 64): token i, patch j
    assert bool((seen[2] == torch.ones(64, 64, dtype=torch.bool, device="cpu").tril()).all())
    assert bool(seen[1].all())
    assert bool(seen[3].all())
    corner = made.maps[0, :, 0, 0]  # convolutions see a neighbourhood, and training makes it smaller
    assert not corner[:, -4:].any()
    assert not corner[:, :, -4:].any()
    middle = made.maps[0, :, 4, 4]
    near = middle[:, 12:24, 12:24].mean((1, 2)) / middle.mean((1, 2))
    assert near[0] > 1.3
    assert near[1] > 2
    assert bool((made.maps.amax((4, 5)) == 1).all())


def test_backbones_over_training_goes_from_the_first_step_to_the_last():
    made = moments()
    slider, image = explorers.backbones_over_training().children
    seen = {image.value}
    for _, moment in slider.options[1:]:
        slider.value = moment
        seen.add(image.value)
        assert f"step {made.steps[moment]}." in image.value
    assert len(seen) == len(made.steps) == 8
    fig = explorers.draw_backbones_over_training([0, 3, 7])
    assert len(fig.axes) == (1 + 3 * 3) * 6
    with pytest.raises(ValueError, match="moments_shown: got 8, want a whole number from 0 to 7"):
        explorers.draw_backbones_over_training([8])


def test_the_pictures_of_the_last_moment_are_nearer_to_the_originals_than_those_before():
    made = moments()
    assert made.drawn.shape == (3, 8, 6, 3, 32, 32)
    errors = (made.drawn - made.originals).square().mean((2, 3, 4, 5))  # (3, 8)
    assert bool((errors[:, -1] < 0.7 * errors[:, 1]).all())
    assert bool((errors[:, -1] == errors.amin(1)).all())
    others = (made.drawn[:, -1] - made.originals.roll(1, 0)).square().mean((1, 2, 3, 4))
    assert bool((errors[:, -1] < 0.5 * others).all())


def small_stack_of(channels):
    torch.manual_seed(0)
    return companion.VQVAE(
        companion.ResNetEncoder(channels, 4, hidden=8),
        companion.ResidualQuantizer([companion.VectorQuantizer(8, 4) for _ in range(2)]),
        companion.ResNetDecoder(channels, 4, hidden=8),
    )


def test_jpeg_costs_more_at_a_higher_quality_and_is_closer_to_the_picture():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0), device="cpu")
    coarse, fine = jpeg(image, 5), jpeg(image, 90)
    assert 0 < coarse[0] < fine[0]
    assert (coarse[1] - image).square().mean() > (fine[1] - image).square().mean()
    assert jpeg(torch.full((3, 32, 32), 0.5), 50)[0] == 1  # nothing beside the header and its tables


def test_codec_beside_codes_follows_its_sliders_and_says_what_each_costs(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "image_rows", lambda rows, **options: drawn.append(rows) or plots.figure()[0])
    model, images = small_stack_of(3), torch.rand(9, 3, 16, 16)
    first, quality, picture = explorers.codec_beside_codes(model, images).children
    first.value = 3
    quality.value = 40
    assert "quality 40" in picture.value
    rows = drawn[-1]
    original, coded, *depths = rows
    assert torch.equal(rows[original], images[3:])
    assert coded.startswith("JPEG 40\n")
    assert [name.split("\n")[:2] for name in depths] == [  # 16 positions of 3 bits on 256 pixels, and twice that
        ["depth 1", "0.19 bits a pixel"],
        ["depth 2", "0.38 bits a pixel"],
    ]
    torch.testing.assert_close(rows[depths[1]], model.eval().reconstruct(images[3:]))

"""What the experiment on sharper pictures trains by and measures."""

import copy
import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import companion
import companion.course
from companion.data import emoji, load
from companion.losses import classifier_distance
from experiments import common, reconstructions, sharper_pictures, sharper_pictures_grid
from experiments.reconstructions import Training, colour_shift, nyquist_power


def tokenizer() -> companion.VQVAE:
    torch.manual_seed(0)
    return companion.VQVAE(
        companion.ResNetEncoder(3, 4, hidden=8, factor=4, num_blocks=1),
        companion.EMAVectorQuantizer(8, 4),
        companion.ResNetDecoder(3, 4, hidden=8, factor=4, num_blocks=1),
    )


def stripes(height: int, width: int, period: int) -> torch.Tensor:
    return (torch.arange(width) % period < period // 2).float().expand(1, 1, height, width)


def test_a_checkerboard_is_at_the_nyquist_frequency_and_wider_patterns_are_not():
    fine, wide = stripes(8, 8, 2), stripes(8, 8, 4)
    checkerboard = (fine + fine.mT).remainder(2)
    # ±1/2 around the mean, orthonormal: all of 64/4 stands in one of the 16 entries that are averaged (the checkerboard
    # at the corner, which is in both rows and columns)
    assert nyquist_power(fine) == pytest.approx(16 / 16)
    assert nyquist_power(fine.mT) == pytest.approx(16 / 16)
    assert nyquist_power(checkerboard) == pytest.approx(2 * 16 / 16)
    assert nyquist_power(wide) == pytest.approx(0, abs=1e-12)
    assert nyquist_power(torch.full((2, 3, 8, 8), 0.7)) == pytest.approx(0, abs=1e-12)
    assert nyquist_power(stripes(9, 9, 2)) == pytest.approx(1), "without the last row and column"


def test_the_shift_of_the_mean_colour_is_that_of_each_image():
    x = torch.zeros(2, 3, 4, 4)
    x_hat = x.clone()
    x_hat[0, 0], x_hat[1, 0] = 0.3, -0.3  # on average over the images there is no shift
    assert colour_shift(x_hat, x) == pytest.approx(0.1)
    noise = torch.tensor([0.5, -0.5]).repeat(8).reshape(4, 4)
    assert colour_shift(x + noise, x) == pytest.approx(0)


def test_images_without_a_classifier_are_looked_at_by_one_with_as_many_channels(tmp_path):
    """Pictures in folders: their features are the emoji classifier's, which is not asked what they are."""
    g = torch.Generator().manual_seed(0)
    for split, kind, i in itertools.product(("train", "test"), ("a", "b"), range(8)):
        folder = tmp_path / "pictures" / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=g, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = common.images(str(tmp_path / "pictures"), "test", 16)
    assert reconstructions.eyes_for(data) == "emoji"
    assert reconstructions.eyes_for(load("glyphs", "test", size=4)) == "glyphs"
    numbers = reconstructions.measures(tokenizer().eval(), data, variance=0.05)
    x, _ = data.batch(torch.arange(16))
    apart = classifier_distance("emoji")(tokenizer().eval().reconstruct(x), x).item()
    assert numbers["feature_distance"] == pytest.approx(apart, rel=1e-4)
    assert not any(name.startswith("accuracy") for name in numbers)
    known = reconstructions.measures(tokenizer().eval(), load("emoji", "test", size=16), variance=0.05)
    assert {"accuracy_test", "accuracy_reconstructions"} <= known.keys()


def test_the_perceptual_objective_adds_the_weighted_distance():
    model, x = tokenizer().eval(), load("emoji", "train", size=4).batch([0, 1, 2, 3])[0]
    distance = classifier_distance("emoji")
    out, plain = reconstructions.perceptual(distance, 0.25)(model, x), model(x)
    expected = plain.loss + 0.25 * distance(plain.reconstruction, x)
    assert torch.allclose(out.loss, expected)
    assert out.losses["perceptual"].item() == pytest.approx(distance(plain.reconstruction, x).item())


def test_what_has_no_weight_takes_no_part_and_networks_learn_at_their_own_rate():
    train = load("emoji", "train", size=8)
    model = tokenizer()
    alone = Training(model, train)
    assert alone.distance is None
    assert alone.adversarial is None
    both = Training(model, train, perceptual_weight=0.1, adversarial_weight=0.5, width=4, discriminator_lr=1e-2)
    assert both.adversarial is not None
    parameters = [p for p in both.adversarial.parameters() if p.requires_grad]
    groups = both._optimizer(1e-3)(parameters).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-2])
    assert [{id(p) for p in group["params"]} for group in groups] == [
        {id(p) for p in part.parameters()} for part in (model, both.adversarial.discriminator)
    ]


def test_the_second_stage_of_the_adversarial_training_goes_on_with_the_same_discriminator():
    train = load("emoji", "train", size=8)
    training = Training(tokenizer(), train, adversarial_weight=0.5, width=4, head_start=1)
    assert training.adversarial is not None
    states = [copy.deepcopy(training.adversarial.discriminator.state_dict())]
    for _ in range(2):
        training.stage(epochs=1, lr=1e-3, batch_size=4, seed=0, device="cpu", progress=False)
        states.append(copy.deepcopy(training.adversarial.discriminator.state_dict()))
    assert int(training.adversarial.steps) == 4
    assert not any(
        torch.equal(states[i]["blocks.0.weight"], states[i + 1]["blocks.0.weight"]) for i in range(len(states) - 1)
    )


def test_variants_of_a_seed_share_the_first_half_and_give_the_same_numbers_alone(tmp_path):
    """A cell is the same whether the first half was kept from the one before or made for it."""
    module = importlib.import_module("experiments.sharper_pictures")
    wanted = [
        cell for cell in module.cells(1) if cell["variant"] in ("mse", "adversarial", "adversarial, fixed weight")
    ]
    results = []
    for folder, together in (("together", True), ("alone", False)):
        for cells in [wanted] if together else [[cell] for cell in wanted]:
            sharper_pictures._kept.clear()
            path = common.run(
                module.__file__,
                module.SIZES,
                lambda seeds, cells=cells: cells,
                module.run_cell,
                ["--profile", "smoke", "--data", "emoji"],
                tmp_path / folder,
            )
        ran = ("seconds",)
        rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
        results.append([{key: value for key, value in row.items() if key not in ran} for row in rows])
    assert results[0] == results[1]
    assert len(results[0]) == 3
    assert results[0][0]["mse"] != results[0][1]["mse"]
    assert "logits_real" not in results[0][0]
    assert "logits_real" in results[0][1]


def test_the_grid_of_the_explorer_has_every_pair_of_weights_and_what_it_shows():
    file = companion.course.__path__[0] + "/chapter_09/reconstructions.npz"
    assert Path(file).stat().st_size < 300_000
    with np.load(file, allow_pickle=False) as opened:
        grid = {name: opened[name] for name in opened.files}
    test = load("emoji", "test")
    shown = [emoji.find(str(name)) for name in grid["names"]]
    assert {split for split, _ in shown} == {"test"}
    assert np.array_equal(grid["originals"], test.images[[i for _, i in shown]].numpy())
    assert grid["perceptual_weights"].tolist() == list(sharper_pictures_grid.PERCEPTUAL_WEIGHTS)
    assert grid["adversarial_weights"].tolist() == list(sharper_pictures_grid.ADVERSARIAL_WEIGHTS)
    table = (len(grid["perceptual_weights"]), len(grid["adversarial_weights"]))
    assert grid["reconstructions"].shape == (*table, *grid["originals"].shape)
    assert grid["reconstructions"].dtype == np.uint8
    flat = grid["reconstructions"].reshape(table[0] * table[1], -1)
    assert len(np.unique(flat, axis=0)) == len(flat), "no two pairs gave the same"
    for name in sharper_pictures_grid.MEASURES:
        assert grid[name].shape == table
        assert (grid[name] > 0).all()
    assert grid["mse"].argmin() == 0, "MSE alone has the smallest"
    assert grid["sharpness"].argmin() == 0

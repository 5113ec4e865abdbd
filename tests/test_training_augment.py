"""``fit(augment=…)``: on training batches only, with the run's random numbers, and checked."""

import copy
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Compose, ToTensor, v2
from training_runs import QUIET, interrupting, noisy, press, tokenizer, train
from workers.fit_worker import Digits, Output, bits, darkened, objective

import companion
from companion.augment import Augment
from companion.training import fit
from companion.training.randomness import epoch_order, fresh_random_state, random_state_kept, set_random_state

pytestmark = pytest.mark.cpu_only("compares to the bit with training on the CPU")

CPU = torch.device("cpu")


def glyphs(n: int, side: int) -> companion.data.ImageSet:
    """The middle of glyphs."""
    whole, cut = companion.data.load("glyphs", size=n), slice(14 - side // 2, 14 + side // 2)
    return replace(whole, images=whole.images[..., cut, cut])


def black(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def test_each_training_batch_is_augmented_once_before_the_objective_and_only_its_images() -> None:
    model, data = noisy(), Digits(53, 1)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    with random_state_kept(CPU):
        set_random_state(CPU, fresh_random_state(CPU, 0, 0))
        for epoch in range(3):
            for indices in epoch_order(53, 0, epoch)[:48].split(8):
                x, y = data.batch(indices, CPU)
                loss = objective(by_hand, darkened(x), y).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    train(model, augment=darkened)
    assert bits(model) == bits(by_hand)
    plain = noisy()
    train(plain)
    assert bits(plain) != bits(model)


def test_validation_is_not_augmented() -> None:
    validation, model = Digits(11, 2), noisy(0.0)
    row = train(model, epochs=1, validation=validation, augment=black).rows[0]
    with torch.no_grad():
        right = objective(model, validation.x, validation.y).loss.item()
        wrong = objective(model, black(validation.x), validation.y).loss.item()
    assert row["validation_loss"] == pytest.approx(right, rel=1e-5)
    assert wrong != pytest.approx(right, rel=0.1)
    without = noisy(0.0)
    assert train(without, epochs=1, augment=black).rows[0]["loss"] == row["loss"]
    assert bits(without) == bits(model)


def test_one_seed_gives_one_run_and_the_callers_generator_is_untouched() -> None:
    runs = []
    for caller in (1, 2):
        model = noisy()
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        runs.append((train(model, validation=Digits(11, 2), augment=Augment()), bits(model)))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1]
    assert train(noisy(), seed=1, augment=Augment()).rows != runs[0][0].rows
    assert train(noisy(), validation=Digits(11, 2)).rows != runs[0][0].rows


def test_it_is_called_without_gradient_and_without_autocast_on_the_batch_in_training() -> None:
    model = noisy()
    seen: set[Any] = set()

    def watched(x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        seen.add((torch.is_grad_enabled(), autocast, model.training, x.device, x.dtype, tuple(x.shape)))
        return x

    train(model, epochs=1, precision="bf16", augment=watched, validation=Digits(11, 2))
    assert seen == {(False, False, True, CPU, torch.float32, (8, 1, 4, 4))}


class OwnGenerator:
    """The wrong version: what it draws from does not belong to the run."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1, 1, 1, generator=self.generator)


@pytest.mark.parametrize(("make", "same"), [(Augment, True), (lambda: darkened, True), (OwnGenerator, False)])
def test_a_stopped_run_goes_on_with_the_images_of_one_that_never_stopped(tmp_path: Path, make: Any, same: bool) -> None:
    whole, stopped = noisy(), noisy()
    options: dict[str, Any] = {"validation": Digits(11, 2)}
    history = train(whole, **options, augment=make())
    options["run"] = tmp_path / "run"
    for step in (2, 6, 11):  # in an epoch, and at the end of one
        train(stopped, objective=interrupting(step, press), augment=make(), **options)
        assert stopped.count == step
        stopped = noisy(seed=9)  # another start: everything must come from the folder
    assert (train(stopped, augment=make(), **options) == history) == same
    assert (bits(stopped) == bits(whole)) == same


def settings(strength: float, x: Tensor) -> Tensor:
    return x * strength


RECIPE = r"Augment\(crop=\(0.8, 1.0\), flip=0.3, sharpness=0.3, autocontrast=0.3\)"
FLIPS = v2.Compose([v2.RandomHorizontalFlip(0.3), v2.RandomVerticalFlip(0.2)])


@pytest.mark.parametrize(
    ("first", "other", "named"),
    [
        (None, darkened, "absent there, darkened here"),
        (darkened, None, "darkened there, absent here"),
        (darkened, black, "darkened there, black here"),
        (Augment(), Augment(flip=0), rf"{RECIPE} there, Augment\(crop=\(0.8, 1.0\), flip=0.0, sharp.* here"),
        (partial(settings, 0.5), black, "settings there, black here"),
        (OwnGenerator(), black, "OwnGenerator there, black here"),
        (FLIPS, v2.RandomHorizontalFlip(0.3), r"Compose\( RandomHorizontalFlip\(p=0.3\) .* there, RandomHor.*0.3\) h"),
    ],
)
def test_a_run_with_another_augment_is_refused_by_name(tmp_path: Path, first: Any, other: Any, named: str) -> None:
    train(noisy(), run=tmp_path, epochs=1, augment=first)
    model = noisy(seed=9)
    with pytest.raises(ValueError, match=rf"other settings:\n  augment: {named}.*\nUse those, or another folder"):
        train(model, run=tmp_path, augment=other)
    assert bits(model) == bits(noisy(seed=9))


@pytest.mark.parametrize(
    ("first", "same"),
    [
        (Augment(), Augment(crop=(0.8, 1.0))),
        (partial(settings, 0.5), partial(partial(settings), 0.5)),
        (FLIPS, copy.deepcopy(FLIPS)),
        (OwnGenerator(), OwnGenerator()),  # its repr is an address, so that its class counts
    ],
)
def test_a_run_goes_on_with_an_augment_of_the_same_name_and_settings(tmp_path: Path, first: Any, same: Any) -> None:
    rows = train(noisy(), run=tmp_path, epochs=1, augment=first).rows
    longer = train(noisy(seed=9), run=tmp_path, epochs=2, augment=same).rows
    assert longer[:1] == rows
    assert len(longer) == 2


@pytest.mark.parametrize("version", ["without augment", "without origin"])
def test_a_run_of_an_earlier_version_goes_on_without_augment_and_is_refused_with_one(
    tmp_path: Path, version: str
) -> None:
    train(noisy(), run=tmp_path, epochs=2)
    for path in tmp_path.glob("state*"):
        state = torch.load(path)
        assert "augment" not in state["origin"]  # without one a state is as it used to be
        if version == "without origin":
            state.pop("origin")
            torch.save(state, path)
    with pytest.raises(ValueError, match=r"other settings:\n  augment: absent there, darkened here\nUse those"):
        train(noisy(), run=tmp_path, augment=darkened)
    longer, whole = noisy(seed=9), noisy()
    assert train(longer, run=tmp_path) == train(whole)
    assert bits(longer) == bits(whole)


def test_the_entry_of_a_state_stands_among_those_of_origin(tmp_path: Path) -> None:
    train(noisy(), epochs=1, run=tmp_path / "with", augment=darkened)
    train(noisy(), epochs=1, run=tmp_path / "without")
    origins = [torch.load(max((tmp_path / name).glob("state*")))["origin"] for name in ("with", "without")]
    assert origins[0] == origins[1] | {"augment": "darkened"}  # the sample of the data is of the examples as they are


def with_nan(x: Tensor) -> Tensor:
    x[0, 0, 0, :3] = torch.nan
    return x


@torch.inference_mode()
def inferred(x: Tensor) -> Tensor:
    return x * 1


WRONG: list[tuple[Any, str]] = [
    ("flip", "augment: got a str, want a function, or None"),
    (lambda x, y: x, "augment: got one that cannot be called with what it is given, the first tensor of a batch of tr"),
    (lambda x: None, "augment: got None, want a tensor, float32 of shape (8, 1, 8, 8)"),
    (lambda x: (x, x), "augment: got a tuple, want a tensor, float32 of shape (8, 1, 8, 8)"),
    (lambda x: x[:4], "augment: got float32 of shape (4, 1, 8, 8), want float32 of shape (8, 1, 8, 8)"),
    (lambda x: x.flatten(1), "augment: got float32 of shape (8, 64), want float32 of shape (8, 1, 8, 8)"),
    (lambda x: x.double(), "augment: got float64 of shape (8, 1, 8, 8), want float32 of shape (8, 1, 8, 8)"),
    (lambda x: (x * 255).byte(), "augment: got uint8 of shape (8, 1, 8, 8), want float32 of shape (8, 1, 8, 8)"),
    (lambda x: x.to("meta"), "augment: got a tensor on meta, want it where the batch is, on cpu"),
    (inferred, "augment: got a tensor made under torch.inference_mode(), want one that can be learnt from"),
    (with_nan, "augment: got 3 NaN and 0 infinite of 512 numbers, want finite ones"),
    (lambda x: 2 * torch.ones_like(x) - 1.5, ""),
    (lambda x: 2 * x - 1, "augment: got numbers from -1 to 1, want images in [0, 1]"),
    (lambda x: x + 1, "augment: got numbers from 1 to 2, want images in [0, 1]"),
]


@pytest.mark.parametrize(("augment", "message"), WRONG)
def test_what_augment_must_not_be_or_give_is_named(augment: Any, message: str) -> None:
    images = glyphs(16, 8)
    if not message:  # inside [0, 1]
        history = fit(tokenizer(), images, epochs=1, batch_size=8, augment=augment, **QUIET)
        assert history.last["step"] == 2
        return
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        fit(tokenizer(), images, epochs=1, batch_size=8, augment=augment, **QUIET)


def test_only_the_images_of_an_image_set_have_to_be_in_0_to_1_and_everything_finite() -> None:
    assert train(noisy(), epochs=1, augment=lambda x: 3 * x - 1).last["step"] == 6
    with pytest.raises(ValueError, match=r"^augment: got 3 NaN and 0 infinite of 128 numbers"):
        train(noisy(), epochs=1, augment=with_nan)


def test_a_number_that_is_wrong_in_a_later_step_is_found_there() -> None:
    images = glyphs(16, 8)
    calls: list[int] = []

    def later(x: Tensor) -> Tensor:
        calls.append(1)
        return x * len(calls)

    with pytest.raises(ValueError, match=r"^augment: got numbers from 0 to 2, want images in \[0, 1\]"):
        fit(tokenizer(), images, epochs=1, batch_size=8, augment=later, **QUIET)
    assert len(calls) == 2


def test_an_error_of_augments_own_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^images: got 2 channels, want 1 or 3"):
        Augment()(torch.rand(2, 2, 8, 8))

    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("in augment")

    with pytest.raises(RuntimeError, match=r"^in augment$"):
        train(noisy(), augment=failing)


def test_codes_can_be_augmented_too_and_labels_come_through() -> None:
    codes = companion.CodeSet(torch.arange(48).reshape(12, 2, 2) % 5, torch.arange(12) % 3, 5, "abc")
    seen: list[Tensor] = []

    def watched(model: nn.Module, codes: Tensor, labels: Tensor) -> Any:
        seen.extend((codes, labels))
        return model(codes, labels)

    def prior() -> companion.TransformerPrior:
        torch.manual_seed(0)
        return companion.TransformerPrior(5, (2, 2), num_classes=3, dim=4, heads=2, layers=1, tokenizer="abc")

    options: dict[str, Any] = {"epochs": 1, "batch_size": 12, **QUIET}
    fit(prior(), codes, objective=watched, augment=lambda k: k.flip(-1), **options)
    order = epoch_order(12, 0, 0)
    assert torch.equal(seen[0], codes.codes[order].flip(-1).to(seen[0].dtype))
    assert torch.equal(seen[1], codes.labels[order])
    with pytest.raises(ValueError, match=r"^augment: got float32 of shape \(12, 2, 2\), want int64"):
        fit(prior(), codes, augment=lambda k: k.float(), **options)


def test_a_likelihood_of_grey_values_learns_from_mirrored_images_and_refuses_cropped_ones() -> None:
    def model() -> companion.VAE:
        likelihood = companion.likelihoods.Gaussian(binned=True)
        parts = companion.Encoder(4, hidden=2, image_size=8), companion.Decoder(2, hidden=2, image_size=8)
        return companion.VAE(*parts, likelihood)

    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, **QUIET}
    mirrored = Augment(crop=None, sharpness=0, autocontrast=0)
    assert fit(model(), glyphs(16, 8), augment=mirrored, **options).last["step"] == 2
    with pytest.raises(ValueError, match=r"^augment: .* \(x: got values that are no multiples of 1/255"):
        fit(model(), glyphs(16, 8), augment=Augment(), **options)


def test_batches_that_begin_with_no_tensor_cannot_be_augmented() -> None:
    class Named(Digits):
        def batch(self, indices: Tensor, device: torch.device) -> Any:
            return ("digits", *super().batch(indices, device))

    def named(model: nn.Module, name: str, x: Tensor, y: Tensor) -> Output:
        return objective(model, x, y)

    data = Named(53, 1)
    assert fit(noisy(), data, epochs=1, batch_size=8, objective=named, **QUIET).last["step"] == 6
    with pytest.raises(ValueError, match=r"^train: got 'digits', want batches that begin with a tensor, which augment"):
        fit(noisy(), data, epochs=1, batch_size=8, objective=named, augment=darkened, **QUIET)


def test_the_recipe_trains_a_tokenizer_of_colour_images() -> None:
    torch.manual_seed(0)
    grey = glyphs(64, 16)
    images = replace(grey, images=grey.images.repeat(1, 3, 1, 1))
    encoder, decoder = companion.ResNetEncoder(3, 4, hidden=8), companion.ResNetDecoder(3, 4, hidden=8)
    model = companion.VQVAE(encoder, companion.EMAVectorQuantizer(8, 4), decoder)
    adam = partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    options: dict[str, Any] = {"validation": images, "optimizer": adam, "epochs": 4, "batch_size": 16, **QUIET}
    history = fit(model, images, augment=Augment(), **options)
    assert history.last["validation_reconstruction"] < history.rows[0]["validation_reconstruction"]


def test_an_augment_that_takes_no_batch_is_told_what_it_gets() -> None:
    says = (
        r"augment: called with a batch, here float32 of shape \(8, 1, 4, 4\), it fails; .*TypeError: pic should be PIL"
    )
    with pytest.raises(ValueError, match=says):
        train(noisy(), augment=Compose([ToTensor()]))


def test_numbers_between_grey_values_are_said_to_come_after_augment() -> None:
    images, sizes = glyphs(16, 8), {"hidden": 2, "image_size": 8}
    decoder = companion.Decoder(2, **sizes)
    model = companion.VAE(companion.Encoder(4, **sizes), decoder, companion.likelihoods.Gaussian(binned=True))
    with pytest.raises(
        ValueError, match=r"augment: the model does not take the images after it .*no multiples of 1/255"
    ):
        fit(model, images, epochs=1, batch_size=8, augment=lambda x: x * 0.7, **QUIET)
    assert "loss" in fit(model, images, epochs=1, batch_size=8, augment=lambda x: x.flip(-1), **QUIET).last

"""A tokenizer and a discriminator, trained together by ``fit``."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import QUIET, press
from workers.fit_worker import bits

import companion
from companion import VAE, VQVAE, Autoencoder, EMAVectorQuantizer, ResNetDecoder, ResNetEncoder, VectorQuantizer, fit
from companion.losses import (
    AdversarialTraining,
    FeatureDistance,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from companion.training.randomness import epoch_order

STEPS = 6  # in an epoch of 53 images


class Images:
    """Blots: x (n, 1, 8, 8), y (n,)."""

    def __init__(self, n: int = 53, seed: int = 1) -> None:
        noise = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.x = nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor]:
        return (self.x[indices.to(self.x.device)].to(device),)


def features() -> FeatureDistance:
    torch.manual_seed(7)
    return FeatureDistance(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), ["1"])


def tokenizer(kind: str = "vqvae") -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": 8, "factor": 4, "num_blocks": 1}
    if kind == "vae":
        return VAE(ResNetEncoder(1, 4, **sizes), ResNetDecoder(1, 2, **sizes), companion.likelihoods.Gaussian())
    encoder, decoder = ResNetEncoder(1, 2, **sizes), ResNetDecoder(1, 2, **sizes)
    return Autoencoder(encoder, decoder) if kind == "autoencoder" else VQVAE(encoder, VectorQuantizer(8, 2), decoder)


def critic() -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(1, width=4, layers=1)


def both(kind: str = "vqvae", base: type[AdversarialTraining] = AdversarialTraining, **options: Any) -> Any:
    return base(tokenizer(kind), critic(), features(), **options)


def train(model: nn.Module, **options: Any) -> companion.History:
    return fit(model, Images(), **({"epochs": 2, "batch_size": 8, "lr": 0.01} | QUIET | options))


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two parameters."""
    return max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters(), strict=True))


# One backward is as good as two


def by_turns(epochs: int, **weights: float) -> tuple[nn.Module, nn.Module]:
    """As it is usually written: two optimizers, two backwards, one reconstruction."""
    generator, discriminator, distance = tokenizer(), critic(), features()
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01) for network in (generator, discriminator)]
    for epoch in range(epochs):
        for indices in epoch_order(len(Images()), 0, epoch)[: STEPS * 8].split(8):
            (x,) = Images().batch(indices, torch.device("cpu"))
            out = generator(x)
            loss = out.loss + weights["perceptual_weight"] * distance(out.reconstruction, x)
            adversarial = hinge_generator_loss(discriminator(out.reconstruction))
            pull = adaptive_weight(loss, adversarial, generator.decoder.layers[-1].weight)
            optimizers[0].zero_grad()
            (loss + weights["adversarial_weight"] * pull * adversarial).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()  # of what the generator's backward left there
            x_hat = out.reconstruction.detach()
            hinge_discriminator_loss(discriminator(x), discriminator(x_hat)).backward()
            optimizers[1].step()
    return generator, discriminator


class WithoutDetach(AdversarialTraining):
    """Wrong: the tokenizer also gets the gradient of the discriminator's loss."""

    def _discriminator_terms(self, x: Tensor, x_hat: Tensor) -> Any:
        return super()._discriminator_terms(x, self.attached)

    def _generator_terms(self, loss: Tensor, x_hat: Tensor) -> Any:
        self.__dict__["attached"] = x_hat
        return super()._generator_terms(loss, x_hat)


class WithoutConstants(AdversarialTraining):
    """Wrong: the discriminator also gets the gradient of the generator's loss."""

    def _generator_terms(self, loss: Tensor, x_hat: Tensor) -> Any:
        adversarial = hinge_generator_loss(self.discriminator(x_hat))
        weight = adaptive_weight(loss, adversarial, self.decoders_last_layer())
        return {"generator": adversarial, "adaptive_weight": weight}, self.adversarial_weight * weight * adversarial


@pytest.mark.cpu_only("compares the last digits")
def test_one_backward_is_two_steps_by_turns() -> None:
    weights = {"perceptual_weight": 0.5, "adversarial_weight": 0.3}
    generator, discriminator = by_turns(2, **weights)
    model = both(**weights)
    train(model)
    assert apart(model.tokenizer, generator) < 1e-5
    assert apart(model.discriminator, discriminator) < 1e-5
    assert apart(generator, tokenizer()) > 0.02  # it learnt
    for wrong, network in ((WithoutDetach, "tokenizer"), (WithoutConstants, "discriminator")):
        other = both(base=wrong, **weights)
        train(other)
        wanted = {"tokenizer": generator, "discriminator": discriminator}[network]
        assert apart(getattr(other, network), wanted) > 1e-3


@pytest.mark.parametrize("adversarial_loss", ["hinge", "non-saturating"])
@pytest.mark.parametrize("penalty", ["none", "r1", "lecam"])
def test_each_network_gets_the_gradient_of_its_own_loss_alone(adversarial_loss: str, penalty: str) -> None:
    x = Images().x[:8]
    options: dict[str, Any] = {"adversarial_loss": adversarial_loss, "penalty": penalty, "penalty_weight": 3.0}

    def made() -> tuple[Any, Any]:
        model = both(perceptual_weight=0.5, adversarial_weight=0.3, **options)
        return model, model(x)

    model, out = made()
    out.loss.backward()
    same, again = made()
    terms = again.losses
    pull = 0.3 * terms["adaptive_weight"] * terms["generator"]
    own = {
        "tokenizer": terms["tokenizer"] + 0.5 * terms["perceptual"] + pull,
        "discriminator": terms["discriminator"] + 3.0 * terms.get("penalty", 0.0),
    }
    assert terms["adaptive_weight"] > 0
    assert out.loss.item() == pytest.approx(sum(own.values()).item(), rel=1e-5)
    for network, other in (("tokenizer", "discriminator"), ("discriminator", "tokenizer")):
        parameters = list(getattr(same, network).parameters())
        wanted = torch.autograd.grad(own[network], parameters, retain_graph=True)
        got = [p.grad for p in getattr(model, network).parameters()]
        torch.testing.assert_close(got, list(wanted), rtol=1e-4, atol=1e-7)
        parameters = list(getattr(same, other).parameters())
        crossed = torch.autograd.grad(own[network], parameters, retain_graph=True, allow_unused=True)
        assert crossed == (None,) * len(parameters)


# The start


def test_before_the_start_neither_network_gets_anything_from_the_other() -> None:
    class Never(PatchDiscriminator):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the discriminator was evaluated")

    plain = VQVAE(*(getattr(tokenizer(), part) for part in ("encoder", "quantizer", "decoder")))
    train(plain)
    model = AdversarialTraining(tokenizer(), Never(1, width=4), start=2 * STEPS)
    untouched = copy.deepcopy(model.discriminator.state_dict())
    with pytest.warns(UserWarning, match="no gradient reached .* of its parameters in the first epoch"):
        history = train(model)
    assert bits(model.tokenizer) == bits(plain)
    assert all(
        torch.equal(value.cpu(), untouched[name].cpu()) for name, value in model.discriminator.state_dict().items()
    )
    assert history.last["generator"] == history.last["discriminator"] == history.last["adaptive_weight"] == 0
    with pytest.raises(AssertionError, match="was evaluated"):
        model.train()(Images().x.to(model.steps.device)[:4])


def test_the_discriminator_begins_at_the_start_as_with_new_averages_of_adam() -> None:
    """With gradients of 0 until then, the proof, its first real step can be three times as long."""
    model = both(start=3)
    before, lengths = copy.deepcopy(model.discriminator.state_dict()), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for i in range(4):
        optimizer.zero_grad()
        model.train()(Images().x[8 * i : 8 * i + 8]).loss.backward()
        optimizer.step()
        moved = [(p - before[name]).abs().max().item() for name, p in model.discriminator.named_parameters()]
        lengths.append(max(moved))
    assert lengths == pytest.approx([0, 0, 0, 0.01], rel=1e-2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=0.01)
    for gradient in [0.0] * 3000 + [1.0]:
        weight.grad = torch.full((1,), gradient)
        optimizer.step()
    assert 1 - weight.item() > 0.03


def test_steps_are_counted_in_training_mode_with_gradients_alone() -> None:
    model, x = both(start=2), Images().x[:4]
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
        model.eval()(x)
    assert model.steps == 0
    model.train()(x)
    assert model.steps == 1
    assert model.state_dict()["steps"] == 1


def test_the_names_of_the_terms_are_the_same_before_and_after_the_start() -> None:
    for penalty in ("none", "r1"):
        early, late = (both(start=start, penalty=penalty)(Images().x[:4]).losses for start in (9, 0))
        assert list(early) == list(late)
        assert early["generator"] == 0 != late["generator"]


# Eval mode


@pytest.mark.parametrize("penalty", ["none", "r1", "lecam"])
def test_validation_works_without_gradients_and_changes_nothing(penalty: str, device: torch.device) -> None:
    model, x = both(penalty=penalty), Images().x[:8]
    model.train()(x)
    model.eval()
    before = bits(model)
    for off in (torch.no_grad, torch.inference_mode)[: 1 if device.type == "pretended" else 2]:
        with off():
            out = model(x)
        assert not out.loss.requires_grad
        assert bits(model) == before
        terms = dict(out.losses)
        assert "adaptive_weight" not in terms
        wanted = terms["tokenizer"] + terms["perceptual"] + 0.8 * terms["generator"] + terms["discriminator"]
        wanted = wanted + terms.get("penalty", 0)
        assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    with torch.no_grad():
        assert "adaptive_weight" not in model.train()(x).losses


# With fit


@pytest.mark.parametrize("kind", ["autoencoder", "vae", "vqvae"])
def test_fit_trains_every_kind_of_tokenizer_and_logs_every_term(kind: str) -> None:
    model = both(kind, start=STEPS, penalty="lecam")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = train(model, epochs=4, validation=Images(11, 2))
    first, last = history.rows[0], history.last
    assert last["tokenizer"] < first["tokenizer"]
    assert last["perceptual"] < first["perceptual"]
    assert first["discriminator"] == 0 < last["discriminator"]
    terms = {"generator", "logits_real", "logits_fake", "penalty"}
    assert terms | {"adaptive_weight"} <= last.keys()
    assert {f"validation_{name}" for name in terms | {"loss", "perceptual"}} <= last.keys()
    assert {"autoencoder": "tokenizer", "vae": "log_likelihood", "vqvae": "commitment"}[kind] in last
    assert ("perplexity" in last) == (kind == "vqvae")
    assert not model.feature_distance.network[0].weight.requires_grad
    assert torch.equal(model.feature_distance.network[0].weight.cpu(), features().network[0].weight.cpu())


def test_the_example_of_the_docstring_gives_each_network_its_own_rate() -> None:
    model = both()
    code = AdversarialTraining.__doc__.partition("own::\n")[2].partition("companion.fit(model")[0]
    names: dict[str, Any] = {"model": model, "torch": torch}
    exec("\n".join(line.removeprefix("        ") for line in code.splitlines()), names)
    optimizer = names["two_rates"]([p for p in model.parameters() if p.requires_grad])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 4e-4]
    theirs = {id(p) for p in model.discriminator.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == theirs
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.tokenizer.parameters()))
    assert train(model, lr=None, epochs=1, optimizer=names["two_rates"]).last["loss"] > 0


def interrupting(step: int) -> Callable[..., Any]:
    at = [step]  # a list: a number would be a setting, which has to be the same when a run goes on

    def objective(model: Any, x: Tensor) -> Any:
        if model.training and model.steps == at[0] - 1:
            press()
        return model(x)

    return objective


@pytest.mark.cpu_only("the same to the bit after a stop")
@pytest.mark.parametrize("penalty", ["r1", "lecam"])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, penalty: str) -> None:
    """Stopped before the start, at it, and after it."""

    whole = both(start=4, penalty=penalty)
    options: dict[str, Any] = {"validation": Images(11, 2), "epochs": 3}
    history = train(whole, objective=interrupting(99), **options)
    for step in (2, 4, 5, 11):
        stopped = both(start=4, penalty=penalty)
        if step > 2:  # everything must come from the folder
            nn.utils.vector_to_parameters(torch.zeros(10_000), stopped.parameters())
        train(stopped, objective=interrupting(step), run=tmp_path, **options)
        assert stopped.steps == step
    last = both(start=4, penalty=penalty)
    assert train(last, objective=interrupting(99), run=tmp_path, **options) == history
    assert bits(last) == bits(whole)


@pytest.mark.cpu_only("reads a run again")
def test_a_run_with_another_weight_is_refused_by_name(tmp_path: Path) -> None:
    train(both(), run=tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"model.adversarial_weight: 0.8 there, 0.5 here\n  model.start: 0 there, 2"):
        train(both(adversarial_weight=0.5, start=2), run=tmp_path, epochs=1)


@pytest.mark.parametrize("penalty", ["r1", "lecam"])
def test_bf16_trains_with_finite_terms(penalty: str) -> None:
    history = train(both(penalty=penalty), precision="bf16", validation=Images(11, 2))
    assert history.last["tokenizer"] < history.rows[0]["tokenizer"]
    assert 0 < history.last["adaptive_weight"] < 1e4


def test_a_codebook_of_moving_averages_is_updated_once_a_step() -> None:
    model = both()
    model = AdversarialTraining(
        VQVAE(model.tokenizer.encoder, EMAVectorQuantizer(8, 2, init="uniform"), model.tokenizer.decoder), critic()
    )
    alone = copy.deepcopy(model.tokenizer)
    x = Images().x[:8]
    model.train()(x)
    alone.train()(x)
    assert bits(model.tokenizer) == bits(alone)


# Its arguments


def test_the_decoders_last_weight_is_found_or_named() -> None:
    model = both()
    assert model.decoders_last_layer() is model.tokenizer.decoder.layers[-1].weight
    first = both(last_layer="decoder.layers.0.weight")
    assert first.decoders_last_layer() is first.tokenizer.decoder.layers[0].weight
    with pytest.raises(
        ValueError, match=r"last_layer: got 'decoder\.last', want the name of a parameter .*such as 'decoder\."
    ):
        both(last_layer="decoder.last")
    with pytest.raises(ValueError, match="last_layer: got None for a Tiny without weights in a part named decoder"):
        AdversarialTraining(Tiny(), critic())


class Tiny(nn.Module):
    """A model of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_without_the_adaptive_weight_the_generator_term_has_its_own_weight() -> None:
    model = both(adaptive=False, adversarial_weight=0.25, perceptual_weight=0.0)
    out = model(Images().x[:4])
    terms = out.losses
    assert "adaptive_weight" not in terms
    wanted = terms["tokenizer"] + 0.25 * terms["generator"] + terms["discriminator"]
    assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_tokenizer_that_returns_something_else_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer: gave a .*Tensor whose reconstruction is None, want a result with"
    ):
        AdversarialTraining(Tiny(), critic(), adaptive=False)(Images().x[:4])
    with pytest.raises(ValueError, match="feature_distance: got a Linear, want a FeatureDistance or None"):
        AdversarialTraining(tokenizer(), critic(), nn.Linear(1, 1))


def test_the_tokenizer_is_saved_alone_and_a_weight_can_be_changed_later(tmp_path: Path) -> None:
    model = both(start=1)
    model.adversarial_weight = 0.1
    assert model.config["adversarial_weight"] == 0.1
    with pytest.raises(ValueError, match="adversarial_weight: got -1"):
        model.adversarial_weight = -1
    companion.save(model.tokenizer, tmp_path / "tokenizer.safetensors")
    assert bits(companion.load(tmp_path / "tokenizer.safetensors")) == bits(model.tokenizer)


# What does not belong there


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AdversarialTraining(critic(), tokenizer()), "tokenizer: got a PatchDiscriminator, .*swapped"),
        (lambda: AdversarialTraining(prior(), critic()), r"tokenizer: got a TransformerPrior, .* such as a VQVAE$"),
        (lambda: AdversarialTraining(companion.Classifier(), critic()), "tokenizer: got a Classifier, want"),
        (lambda: AdversarialTraining(tokenizer(), tokenizer("vae")), "discriminator: got a VAE, .*swapped"),
        (lambda: AdversarialTraining(tokenizer(), prior()), "discriminator: got a TransformerPrior, want images → lo"),
        (lambda: AdversarialTraining(tokenizer(), companion.Classifier()), "discriminator: got a Classifier, want"),
        (lambda: both(last_layer="encoder.layers.0.weight"), "last_layer: got 'enc.*of the decoder, such as 'decoder"),
        (lambda: both(last_layer="decoder.last", adaptive=False), "last_layer: got 'decoder.last', want the name"),
    ],
)
def test_models_of_another_kind_and_weights_of_another_part_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def prior() -> nn.Module:
    return companion.TransformerPrior(5, (2, 2), dim=4, layers=1, heads=2)


def judge(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 4, 2), *layers)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: both(penalty_weight=10.0), "penalty_weight: got 10.0 without a penalty: it goes unused"),
        (
            lambda: AdversarialTraining(tokenizer(), critic(), perceptual_weight=0.5),
            "perceptual_weight: got 0.5 without feature_distance: it goes unused",
        ),
        (
            lambda: both(last_layer="decoder.layers.0.weight", adaptive=False),
            "last_layer: got 'decoder.layers.0.weight' without adaptive=True",
        ),
        (
            lambda: AdversarialTraining(tokenizer(), judge(nn.Sigmoid())),
            "discriminator: got one that ends in a Sigmoid",
        ),
        (lambda: AdversarialTraining(tokenizer(), judge(nn.BatchNorm2d(4))), "discriminator: got one with BatchNorm"),
    ],
)
def test_what_goes_unused_or_makes_no_good_logits_is_said(make: Callable[[], Any], says: str) -> None:
    with pytest.warns(UserWarning, match=says) as told:
        make()
    assert sum(":" in str(one.message) for one in told) == 1


def test_defaults_and_the_documented_use_with_a_classifiers_features_are_silent() -> None:
    images = companion.data.load("glyphs", size=16)
    sizes: dict[str, Any] = {"hidden": 4, "factor": 4, "num_blocks": 1}
    vq = VQVAE(ResNetEncoder(1, 2, **sizes), VectorQuantizer(8, 2), ResNetDecoder(1, 2, **sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"penalty": "r1"}, {"penalty": "lecam", "penalty_weight": 3.0}, {"adaptive": False}):
            both(**options)
        AdversarialTraining(tokenizer(), judge(nn.GroupNorm(2, 4), nn.Sigmoid(), nn.Conv2d(4, 1, 1)))
        model = AdversarialTraining(vq, critic(), companion.losses.classifier_distance("glyphs"))
        history = fit(model, images, epochs=1, batch_size=8, **QUIET)
    assert history.last["perceptual"] > 0
    with pytest.raises(
        ValueError, match=r"tokenizer: got an AdversarialTraining, want the tokenizer in it: its .token"
    ):
        companion.identity(model)


def test_a_tokenizer_that_was_trained_before_goes_on_learning():
    """``fit`` leaves it in eval mode, and keeps parts that come so: its codebook would stand still."""
    tokenizer = companion.pretrained("glyphs-vqvae")
    assert not tokenizer.training
    model = AdversarialTraining(tokenizer, PatchDiscriminator(1, width=8))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("learning", [True, False])
def test_a_discriminator_of_other_images_or_without_logits_is_named(learning: bool) -> None:
    x = torch.rand(2, 1, 8, 8)
    tokenizer = Autoencoder(nn.Flatten(), nn.Sequential(nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))))
    for wrong, message in (
        (PatchDiscriminator(3, width=2), r"discriminator: does not take images of shape \(2, 1, 8, 8\) \(x: got"),
        (nn.Flatten(0), r"discriminator: gave shape \(128,\), want logits"),
    ):
        model = AdversarialTraining(tokenizer, wrong, adaptive=False).train(learning)
        with pytest.raises(ValueError, match=message):
            model(x)

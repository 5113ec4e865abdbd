"""The doctor of collapsed models: each breakage made on purpose is found by its name, and the healthy are let be."""

import copy
import importlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import companion
from companion import VQVAE, EMAVectorQuantizer, VectorQuantizer, diagnose
from companion.diagnosis import Look
from companion.diagnosis.remedies import MEANING_AND_REPAIR

TEST = companion.data.load("glyphs", "test", size=300)


def vqvae() -> VQVAE:
    model = companion.pretrained("glyphs-vqvae")
    assert isinstance(model, VQVAE)
    return model


def rqvae() -> VQVAE:
    model = companion.pretrained("glyphs-rqvae")
    assert isinstance(model, VQVAE)
    return model


class Then(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, layer: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))


def with_encoder(change: Callable[[Tensor], Tensor]) -> VQVAE:
    model = vqvae()
    model.encoder = Then(model.encoder, change)
    return model


def with_decoder(change: Callable[[Tensor], Tensor]) -> VQVAE:
    model = vqvae()
    model.decoder = Then(model.decoder, change)
    return model


def one_code() -> VQVAE:
    model = vqvae()
    model.quantizer.codebook[0] = model.encoder(TEST.batch([0, 1, 2])[0]).mean((0, 2, 3)).detach()
    model.quantizer.codebook[1:] += 100
    return model


def dead_codes() -> VQVAE:
    model = vqvae()
    model.quantizer.codebook[:16] += 100
    model.quantizer.counts[:16] = 0
    return model


def nan() -> VQVAE:
    model = vqvae()
    model.decoder.get_parameter(next(name for name, _ in model.decoder.named_parameters())).data.fill_(torch.nan)
    return model


def untrained() -> VQVAE:
    model = vqvae()
    model.quantizer = EMAVectorQuantizer(64, 8)
    return model


def same_draw() -> VQVAE:
    model = rqvae()
    model.quantizer.quantizers[1] = copy.deepcopy(model.quantizer.quantizers[0])
    return model


def idle_depth() -> VQVAE:
    model = rqvae()
    model.quantizer.quantizers[1].codebook *= 1e-3
    return model


def of_one_image() -> VQVAE:
    model = vqvae()
    latents = model.encoder(TEST.batch([3])[0]).detach()
    model.encoder = Then(model.encoder, lambda z: latents.expand_as(z))
    return model


BROKEN: dict[str, Callable[[], nn.Module]] = {
    "weights that are not finite": nan,
    "a codebook that was never trained": untrained,
    "one code for all": one_code,
    "codes that ignore the image": of_one_image,
    "latents running away": lambda: with_encoder(lambda z: 10 * z),
    "a codebook far from its latents": lambda: with_encoder(lambda z: z + 10),
    "dead codes": dead_codes,
    "the same draw at every depth": same_draw,
    "depths that add nothing": idle_depth,
    "a decoder that ignores its codes": lambda: with_decoder(lambda x: x.mean(0, keepdim=True).expand_as(x)),
    "reconstructions no better than the mean picture": lambda: with_decoder(lambda x: 1 - x),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_broken_on_purpose_is_found_by_the_name_of_what_is_wrong(name: str) -> None:
    found = {finding.name: finding for finding in diagnose(BROKEN[name](), TEST).findings}
    assert name in found
    assert found[name].measured
    assert (found[name].meaning, found[name].repair) == MEANING_AND_REPAIR[name]


@pytest.mark.parametrize("make", [vqvae, rqvae])
def test_the_healthy_twin_of_the_broken_models_has_no_finding(make: Callable[[], VQVAE]) -> None:
    diagnosis = diagnose(make(), TEST)
    assert diagnosis.healthy
    assert diagnosis.names == ()
    assert len({look.name for look in diagnosis.looks}) >= 9


def arguments_named_in_repairs() -> list[tuple[str, str, str]]:
    """(finding, callable, argument) for each ``Name(argument=`` in a repair."""
    found = []
    for name, (meaning, repair) in MEANING_AND_REPAIR.items():
        for text in (meaning, repair):
            found += [(name, *match) for match in re.findall(r"([A-Za-z_][\w.]*)\((\w+)=", text)]
    return found


def named(path: str) -> Any:
    """What ``Name``, ``Name.method`` or ``module.Name`` stands for in the package."""
    places = [companion, *(importlib.import_module(f"companion.{room}") for room in ("data", "quantizers", "codes"))]
    first, *rest = path.split(".")
    value = next(getattr(place, first) for place in places if hasattr(place, first))
    for part in rest:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("name", "path", "argument"), arguments_named_in_repairs())
def test_a_repair_names_arguments_that_there_are(name: str, path: str, argument: str) -> None:
    assert argument in inspect.signature(named(path)).parameters


def test_no_argument_is_named_in_a_repair_without_what_has_it() -> None:
    """Then the test above would not see it."""
    for name, (_, repair) in MEANING_AND_REPAIR.items():
        loose = re.sub(r"[A-Za-z_][\w.]*\(\w+=", "", repair)
        assert "=" not in loose, (name, loose)


def test_modes_weights_and_random_state_are_left_as_they_were() -> None:
    model = vqvae().train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    diagnose(model, TEST, most=50)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_report_says_what_was_found_and_what_was_looked_at() -> None:
    text = str(diagnose(dead_codes(), TEST))
    assert "VQVAE on 300 images: 1 finding" in text
    assert "1. dead codes (quantizer)" in text
    assert "used 48" in text
    assert "restart_below" in text
    assert " ! dead codes (quantizer)" in text
    healthy = str(diagnose(vqvae(), TEST))
    assert "nothing wrong" in healthy
    assert "   dead codes (quantizer): codes 64, used 64" in healthy


def test_a_report_is_printed_where_a_number_is_none() -> None:
    """Of latents that ran away by orders of magnitude, a share of 0 / 0."""
    assert "spread nan" in str(
        replace(diagnose(vqvae(), TEST), looks=(Look("a", "b", {"spread": math.nan}, "c", False),))
    )


def test_a_quantizer_alone_is_looked_at_with_latents() -> None:
    z = torch.randn(200, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = EMAVectorQuantizer.from_codebook(
        companion.quantizers.k_means(z[:100].movedim(1, -1).reshape(-1, 4), 8)[0]
    )
    assert diagnose(quantizer, z).names == ()
    torch.manual_seed(0)
    assert "a codebook far from its latents" in diagnose(VectorQuantizer(8, 4), z + 20).names


# Images


def test_images_in_another_range_are_a_finding_and_no_error() -> None:
    x = TEST.batch(range(100))[0]
    for wrong in (255 * x, 2 * x - 1, x / 255, x.masked_fill(x > 0.9, torch.nan), torch.full_like(x, 0.5)):
        assert "images out of range" in diagnose(vqvae(), wrong).names
    assert diagnose(vqvae(), x).names == ()


def test_inverted_images_are_unlike_those_of_training() -> None:
    names = diagnose(vqvae(), 1 - TEST.batch(range(300))[0]).names
    assert "images unlike the training images" in names
    assert "images out of range" not in names


def test_all_kinds_of_data_give_the_same_numbers() -> None:
    class Lazy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return TEST[index]

    model, want = vqvae(), diagnose(vqvae(), TEST.subset(60)).as_dict()["looks"]
    for data in (Lazy(), TEST.batch(range(60))[0]):
        assert diagnose(model, data).as_dict()["looks"] == want
    for wrong in ([1, 2], torch.utils.data.DataLoader(Lazy()), "glyphs", 3):
        with pytest.raises(ValueError, match=r"^data: "):
            diagnose(model, wrong)


def test_few_images_raise_no_alarm() -> None:
    for n in (1, 2, 8):
        assert diagnose(vqvae(), TEST.subset(n)).names == ()


# Healthy models that come with the package


@pytest.mark.parametrize(
    ("tokenizer", "prior"),
    [
        ("glyphs-vqvae", "glyphs-prior"), ("glyphs-rqvae", "glyphs-rqtransformer"), ("emoji-vqvae", None),
        ("emoji-perceptualvqvae", None), ("emoji-adversarialvqvae", None),
    ],
)  # fmt: skip
def test_a_healthy_model_raises_no_alarm(tokenizer: str, prior: str | None) -> None:
    images = TEST if tokenizer.startswith("glyphs") else companion.data.load("emoji", "test")
    model = companion.pretrained(tokenizer)
    diagnosis = diagnose(model, images, None if prior is None else companion.pretrained(prior))  # type: ignore[arg-type]
    assert diagnosis.names == ()
    numbers = {look.name: look.measured for look in diagnosis.looks}
    assert 0.9 < numbers["latents running away"]["latents over codes"] < 1.1  # far from the thresholds
    assert numbers["a decoder that ignores its codes"]["reconstructions moved, over images"] > 0.5
    if prior is not None:
        assert numbers["a prior that ignores its class"]["more"] > 0.1


# Priors


class Shares(companion.priors.Prior):
    """A table of logits for each position; it reads neither code nor class."""

    def __init__(self, num_codes: int, grid: tuple[int, ...], tokenizer: str) -> None:
        super().__init__(num_codes, grid, num_classes=10, label_dropout=0.1, tokenizer=tokenizer)
        self.table = nn.Parameter(torch.zeros(*grid, num_codes))

    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        return self.table.expand(len(codes), *self.table.shape)

    def steps(self, classes: Tensor, *, cache: bool) -> companion.priors.base.Steps:
        table = self.table.flatten(0, 1)

        class Read(companion.priors.base.Steps):
            def logits(self, codes: Tensor, step: int) -> Tensor:
                return table[step].expand(len(codes), -1)

        return Read()


def counting(codes: companion.CodeSet, *, by_position: bool, sharpness: float = 1.0) -> Shares:
    """How often each code occurs, at each position or in all."""
    shares = nn.functional.one_hot(codes.codes, codes.num_codes).double().mean(0)  # (h, w, K)
    shares = shares if by_position else shares.mean((0, 1), keepdim=True).expand_as(shares)
    prior = Shares(codes.num_codes, codes.grid, codes.tokenizer)
    prior.table.data = (shares + 1e-6).log().float() * sharpness
    return prior


@pytest.fixture(scope="module")
def codes() -> companion.CodeSet:
    return companion.tokenize(vqvae(), TEST)


def test_a_prior_that_counts_codes_is_found(codes: companion.CodeSet) -> None:
    names = diagnose(vqvae(), TEST, counting(codes, by_position=False)).names
    assert "a prior no better than counting codes" in names
    assert "a prior that ignores its class" in names
    assert "a prior that ignores the codes before" not in names


def test_a_prior_that_counts_codes_at_each_position_is_found(codes: companion.CodeSet) -> None:
    names = diagnose(vqvae(), TEST, counting(codes, by_position=True)).names
    assert "a prior that ignores the codes before" in names
    assert "a prior no better than counting codes" not in names


def test_a_prior_whose_samples_repeat_is_found(codes: companion.CodeSet) -> None:
    names = diagnose(vqvae(), TEST, counting(codes, by_position=True, sharpness=1e4)).names
    assert "samples that repeat few codes" in names


def test_a_prior_without_classes_in_its_start_is_found() -> None:
    prior = companion.pretrained("glyphs-prior")
    starts = [one for name, one in prior.named_parameters() if one.ndim == 2 and len(one) == 11]
    assert len(starts) == 1
    starts[0].data[:] = starts[0].data[-1].clone()
    assert "a prior that ignores its class" in diagnose(vqvae(), TEST, prior).names


def test_a_prior_of_another_tokenizer_is_found_and_one_of_other_tables_refused() -> None:
    prior = companion.pretrained("glyphs-prior")
    prior.tokenizer = "another"
    assert "a prior for another tokenizer" in diagnose(vqvae(), TEST, prior).names
    with pytest.raises(ValueError, match=r"^prior: "):
        diagnose(rqvae(), TEST, prior)


# Models without codes


def test_an_autoencoder_has_no_codes_to_collapse() -> None:
    model = companion.Autoencoder(companion.Encoder(4), companion.Decoder(4))
    with pytest.raises(ValueError, match=r"^model: got an Autoencoder, which has no codes"):
        diagnose(model, TEST)


def test_a_vae_whose_posterior_is_the_prior_is_found() -> None:
    class Halves(nn.Module):
        """Means of some variety, and log-variances; or zeros for both, as the prior has them."""

        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            means = x.flatten(1)[:, 300:500:25]
            return self.scale * torch.cat([means - means.mean(), torch.full_like(means, -3)], 1)

    def made(scale: float) -> companion.VAE:
        torch.manual_seed(0)
        return companion.VAE(Halves(scale), companion.Decoder(8), companion.likelihoods.Gaussian())

    assert "posterior collapse" in diagnose(made(0.0), TEST).names
    assert "posterior collapse" not in diagnose(made(1.0), TEST).names


def test_latents_that_ran_away_from_the_only_code_left_are_named_before_what_follows_from_them() -> None:
    """Without a commitment loss they grow by orders of magnitude, and one code is chosen everywhere."""
    model = one_code()
    model.quantizer.codebook[1:] += 1e6
    model.encoder = Then(model.encoder, lambda z: 1000 * z)
    names = diagnose(model, TEST).names
    assert names[0] == "latents running away"
    assert "one code for all" in names
    assert "latents running away" not in diagnose(one_code(), TEST).names

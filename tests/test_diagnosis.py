"""The doctor of collapsed models: each breakage made on purpose is found by its name, and the healthy are let be."""

import copy
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import companion
from companion import VQVAE, EMAVectorQuantizer, VectorQuantizer, diagnose
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


def test_a_quantizer_alone_is_looked_at_with_latents() -> None:
    z = torch.randn(200, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = EMAVectorQuantizer.from_codebook(
        companion.quantizers.k_means(z[:100].movedim(1, -1).reshape(-1, 4), 8)[0]
    )
    assert diagnose(quantizer, z).names == ()
    torch.manual_seed(0)
    assert "a codebook far from its latents" in diagnose(VectorQuantizer(8, 4), z + 20).names

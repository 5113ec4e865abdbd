"""A file says how to make a model again: one whose parts are other than its config would make them is not saved."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import companion
from companion.codes import identity
from companion.configured import changes_since_built, parts_of


def tokenizer() -> companion.VQVAE:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"hidden": 4, "factor": 2, "num_blocks": 1}
    return companion.VQVAE(
        companion.ResNetEncoder(1, 4, **parts),
        companion.EMAVectorQuantizer(8, 4, init="uniform"),
        companion.ResNetDecoder(1, 4, **parts),
    )


def auto() -> companion.Autoencoder:
    return companion.Autoencoder(companion.Encoder(3, hidden=2), companion.Decoder(3, hidden=2))


def exchanged(model: nn.Module, path: str, number: int, layer: nn.Module) -> nn.Module:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.Sequential)
    layers[number] = layer
    return model


def appended(model: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.Sequential)
    layers.append(layer)
    return model


def changed(model: nn.Module, path: str, name: str, value: Any) -> nn.Module:
    setattr(model.get_submodule(path), name, value)
    return model


CHANGES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer at the end": (
        lambda: appended(tokenizer(), "decoder.layers", nn.Sigmoid()),
        r"decoder\.layers\.\d = a Sigmoid, want nothing",
    ),
    "another layer": (
        lambda: exchanged(tokenizer(), "encoder.layers", 1, nn.GELU()),
        r"encoder\.layers\.1 = a GELU, want a ReLU",
    ),
    "another rate of dropout": (
        lambda: changed(companion.Classifier(width=2), "dropout", "p", 0.9),
        r"dropout\.p = 0\.9, want 0\.3",
    ),
    "another stride": (
        lambda: changed(auto(), "decoder.conv1", "stride", (1, 1)),
        r"decoder\.conv1\.stride = \(1, 1\), want \(2, 2\)",
    ),
    "another rate of dropout in attention": (
        lambda: changed(
            companion.TransformerPrior(8, (2, 2), dim=8, layers=1, heads=2),
            "transformer.blocks.0.attention",
            "dropout",
            0.5,
        ),
        r"transformer\.blocks\.0\.attention\.dropout = 0\.5, want 0\.\d+",
    ),
    "a layer fewer": (
        lambda: without_last_layer(companion.Classifier(width=2)),
        r"layers\.4\.2 = nothing, want a ReLU",
    ),
}


def without_last_layer(model: nn.Module) -> nn.Module:
    block = model.get_submodule("layers.4")
    assert isinstance(block, nn.Sequential)
    del block[2]
    return model


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_model_whose_parts_were_changed_is_not_saved_as_another(what: str, tmp_path: Path) -> None:
    make, says = CHANGES[what]
    with pytest.raises(ValueError, match=f"model: got {says} as it is built"):
        companion.save(make(), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_identity_sees_a_layer_that_has_no_weights_and_is_otherwise_as_it_was() -> None:
    plain = identity(tokenizer())
    assert plain == identity(tokenizer().eval()) == identity(copy.deepcopy(tokenizer()))
    assert identity(exchanged(tokenizer(), "encoder.layers", 1, nn.GELU())) != plain
    assert identity(appended(tokenizer(), "decoder.layers", nn.Sigmoid())) != plain
    assert changes_since_built(tokenizer()) == []
    assert changes_since_built(exchanged(tokenizer(), "encoder.layers", 1, nn.GELU())) == ["encoder.layers.1 = a GELU"]


def test_parts_of_the_readers_own_and_added_tensors_are_saved_for_a_model_that_has_them_too(tmp_path: Path) -> None:
    def with_probe() -> nn.Module:
        model = auto()
        model.encoder.register_module("probe", nn.Linear(2, 2))
        model.register_module("watch", nn.Identity())
        return model

    def with_own() -> nn.Module:
        return companion.Autoencoder(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), companion.Decoder(3, hidden=2))

    for make in (with_probe, with_own):
        model, path = make(), tmp_path / "model.safetensors"
        companion.save(model, path)
        again = companion.load(path, make())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_path_of_a_part_does_not_tell_whether_it_is_compiled() -> None:
    model = tokenizer()
    paths = [path for path, _ in parts_of(model)]
    model.encoder = torch.compile(model.encoder)
    assert [path for path, _ in parts_of(torch.nn.DataParallel(model))] == paths
    assert paths[:3] == ["", "encoder", "encoder.layers"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_rebuilt_in_it(tmp_path: Path, dtype: torch.dtype) -> None:
    model, path = tokenizer().to(dtype), tmp_path / "model.safetensors"
    companion.save(model, path)
    again = companion.load(path)
    there, here = model.cpu().state_dict(), again.state_dict()
    assert {value.dtype for value in here.values() if value.is_floating_point()} == {dtype}
    assert here["quantizer.step"].dtype == torch.int64
    assert all(torch.equal(there[name], here[name]) for name in here)
    with pytest.raises(ValueError, match=rf"is {dtype} in the file and torch.float32 in the model"):
        companion.load(path, tokenizer())

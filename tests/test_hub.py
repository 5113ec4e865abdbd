"""Folders as the Hub keeps them: what is in them, that they come back, and that nothing else is fetched."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import companion
from companion import hub
from companion.checkpoint import save


def tokenizer() -> companion.VQVAE:
    torch.manual_seed(0)
    encoder, decoder = companion.ResNetEncoder(1, 4, hidden=8), companion.ResNetDecoder(1, 4, hidden=8)
    return companion.VQVAE(encoder, companion.VectorQuantizer(6, 4), decoder)


def same(one: nn.Module, other: nn.Module) -> bool:
    there, here = one.state_dict(), other.state_dict()
    return list(there) == list(here) and all(torch.equal(there[name].cpu(), here[name].cpu()) for name in there)


def test_a_folder_has_the_two_files_of_the_convention_and_comes_back(tmp_path: Path) -> None:
    model = tokenizer()
    companion.save_pretrained(model, tmp_path / "deep" / "model")
    folder = tmp_path / "deep" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class"] == "VQVAE"
    assert config["config"] == json.loads(json.dumps(model.config))
    assert config["library_name"] == "discrete-codes"
    again = companion.from_pretrained(folder)
    assert type(again) is companion.VQVAE
    assert not again.training
    assert again.config == model.config
    assert same(again, model)
    assert same(companion.load(folder / "model.safetensors"), model)  # each file of `save` is one of `load`
    model.quantizer_weight = 2.0  # saved into the same folder again, it is the new one
    companion.save_pretrained(model, str(folder))
    assert companion.from_pretrained(str(folder)).quantizer_weight == 2.0


def test_the_model_is_on_the_device_and_in_the_precision_asked_for(tmp_path: Path, device: torch.device) -> None:
    companion.save_pretrained(tokenizer(), tmp_path)
    again = companion.from_pretrained(tmp_path, device=device, dtype=torch.bfloat16)
    assert {(value.device.type, value.dtype) for value in again.state_dict().values()} == {
        (device.type, torch.bfloat16)
    }


def test_damage_and_hostile_files_are_refused_as_by_load(tmp_path: Path) -> None:
    companion.save_pretrained(tokenizer(), tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its contents do not have the checksum"):
        companion.from_pretrained(tmp_path)
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="is a pickle"):
        companion.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"source: got .*, want a folder with model.safetensors in it"):
        companion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a config as save_pretrained writes it"),
        ("[" * 100_000, "is not a config as save_pretrained writes it"),
        ("3", "is not a config as save_pretrained writes it"),
        ('{"class": "VQVAE"}', "is not a config as save_pretrained writes it"),
        ('{"class": "VAE", "config": {}}', r"it is a VAE in config.json and a VQVAE in model.safetensors"),
        (
            '{"class": "VQVAE", "config": {"quantizer": {"class": "VectorQuantizer", "config": {"num_codes": 9}}}}',
            r"quantizer.num_codes is 9 in config.json and 6 in model.safetensors",
        ),
    ],
)
def test_a_config_that_says_other_than_the_weights_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Whoever reads it by hand would take the model for another."""
    companion.save_pretrained(tokenizer(), tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        companion.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"want a folder with config.json in it too"):
        companion.from_pretrained(tmp_path)


class OwnEncoder(companion.Configured, nn.Module):
    """A class of a reader."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, dim, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_what_could_not_be_rebuilt_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion.configured.REGISTERED", {})
    monkeypatch.setattr("companion.checkpoint.REGISTERED", registered := {})
    model = tokenizer()
    own = companion.VQVAE(OwnEncoder(4), model.quantizer, model.decoder)
    stack = companion.VQVAE(nn.Sequential(model.encoder), model.quantizer, model.decoder)
    for wrong, name in ((own, "OwnEncoder"), (stack, "Sequential"), (nn.Linear(2, 2), "Linear")):
        with pytest.raises(ValueError, match=f"model: got a {name}, which is neither of this library nor registered"):
            companion.save_pretrained(wrong, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    monkeypatch.setattr("companion.configured.REGISTERED", registered)
    companion.register(OwnEncoder)
    companion.save_pretrained(own, tmp_path / "folder")
    assert same(companion.from_pretrained(tmp_path / "folder"), own)


# --- repositories


class Hub:
    """What is asked of ``huggingface_hub``; the snapshot has more files than were asked for, as a cache may."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def snapshot_download(self, *arguments: Any, **options: Any) -> str:
        self.calls.append((arguments, options))
        return str(self.folder)


def test_of_a_repository_the_two_files_are_fetched_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, there = tokenizer(), Hub(tmp_path / "snapshot")
    companion.save_pretrained(model, there.folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", there)
    monkeypatch.chdir(tmp_path)
    assert same(companion.from_pretrained("owner/name"), model)
    assert same(companion.from_pretrained("owner/name.v2", revision="0123abc", dtype=torch.float32), model)
    files = ["config.json", "model.safetensors"]
    assert there.calls == [
        (("owner/name",), {"revision": None, "allow_patterns": files}),
        (("owner/name.v2",), {"revision": "0123abc", "allow_patterns": files}),
    ]
    save(model.encoder, there.folder / "model.safetensors")  # somebody else's repository may hold anything
    with pytest.raises(ValueError, match=r"it is a VQVAE in config.json and a ResNetEncoder in model.safetensors"):
        companion.from_pretrained("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)  # a folder of that name comes first
    with pytest.raises(ValueError, match=r"source: got owner.name, want a folder with model.safetensors in it"):
        companion.from_pretrained("owner/name")
    assert len(there.calls) == 3


def test_the_real_package_takes_the_call_and_keeps_to_the_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the package itself makes of it, without a network: its function takes these arguments, and its filter
    leaves these files."""
    package = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    import inspect

    from huggingface_hub.utils import filter_repo_objects

    seen: dict[str, Any] = {}
    signature = inspect.signature(package.snapshot_download)

    def download(*arguments: Any, **options: Any) -> str:
        seen.update(signature.bind(*arguments, **options).arguments)
        return str(tmp_path)

    companion.save_pretrained(tokenizer(), tmp_path)
    monkeypatch.setattr(package, "snapshot_download", download)
    companion.from_pretrained("owner/name", revision="main")
    assert seen["repo_id"] == "owner/name"
    assert seen["revision"] == "main"
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "run.py", "more/model.safetensors"]
    kept = list(filter_repo_objects(files, allow_patterns=seen["allow_patterns"]))
    assert kept == ["config.json", "model.safetensors"]


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"from_pretrained\('owner/name'\), .* needs huggingface_hub: .*\[hub\]"):
        companion.from_pretrained("owner/name")
    companion.save_pretrained(tokenizer(), tmp_path / "model")  # a folder needs nothing
    assert same(companion.from_pretrained("model"), tokenizer())


@pytest.mark.parametrize(
    "source", ["name", "a/b/c", "/owner/name", "../name", "owner/", "owner/na me", "", "~x/y", "a/.b"]
)
def test_what_is_neither_a_folder_nor_an_id_is_refused_without_asking_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    there = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", there)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^source: got "):
        companion.from_pretrained(source)
    assert there.calls == []


def test_the_names_of_the_files_are_those_of_the_convention() -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hub is not installed")
    assert {hub.CONFIG, hub.WEIGHTS} == {constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE}
    assert re.fullmatch(r"[\w.]+", hub.WEIGHTS)

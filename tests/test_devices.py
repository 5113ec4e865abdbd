"""Everything computes on the device of its input: found without a GPU, on a pretended one.

Each case runs on the CPU and on the pretended device, which refuses tensors of two devices, and must give the same
numbers there. A second time that device has no float64, as Apple's GPUs have none.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from workers import device_worker
from workers.device_worker import CASES, COVERED, WRONG, WRONG_WITHOUT_FLOAT64

import companion
from companion import (
    VQVAE,
    EMAVectorQuantizer,
    ResNetDecoder,
    ResNetEncoder,
    augment,
    autoencoder,
    backbones,
    classifier,
    codes,
    data,
    likelihoods,
    losses,
    metrics,
    plots,
    priors,
    quantizers,
    vae,
    vqvae,
)
from companion.course import explorers
from companion.quantizers._codes_from_data import CodesFromData

# Names of the public lists that compute nothing with tensors that a caller gives, or are run inside others' cases.
LEFT_OUT = {
    quantizers.Quantizer: "abstract",
    quantizers.VectorwiseQuantizer: "abstract",
    CodesFromData: "abstract",
    priors.Prior: "abstract",
    likelihoods.Likelihood: "abstract",
    metrics.distortion: "of numbers",
    metrics.nominal_bits: "of numbers",
    backbones.conv_output_size: "of numbers",
    companion.fit: "Accelerate knows real devices only: see below, with --device cuda",
    companion.pretrained: "reads a file, to the CPU",
    companion.Configured: "a base class",
    companion.register: "of a class",
    companion.History: "of numbers",
    classifier.SampleQuality: "what `evaluate_samples` returns",
    companion.Diagnosis: "what `diagnose` returns",
    companion.Finding: "a part of it",
    companion.Scores: "what `evaluate_tokenizer` returns",
    companion.RatePoint: "a part of it",
    companion.classical_codecs: "pillow encodes on the CPU",
    plots.rate_distortion: "of numbers",
    plots.Picture: "of bytes",
    plots.show: "of a figure",
    plots.to_png: "of a figure",
    plots.figure: "of numbers",
    plots.rectangle: "of numbers",
    plots.draw_gradient_flow: "of numbers",
    explorers.kl_sweep: "of numbers",
    explorers.moving_clouds: "of numbers",
    explorers.draw_chase: "of numbers",
    explorers.loss_weights: "of pictures that were made beforehand",
    explorers.draw_loss_weights: "of pictures that were made beforehand",
    explorers.receptive_fields: "of maps that were made beforehand",
    explorers.draw_receptive_fields: "of maps that were made beforehand",
    explorers.codec_beside_codes: "pillow encodes on the CPU",
    explorers.draw_codec_beside_codes: "pillow encodes on the CPU",
    explorers.backbones_over_training: "of pictures that were made beforehand",
    explorers.draw_backbones_over_training: "of pictures that were made beforehand",
}


def without_case() -> set[Any]:
    """Functions and classes of the public lists; of modules without one, what is defined there under a public name; and
    every class of a family."""
    with_list = (companion, backbones, quantizers, priors, losses, explorers)
    listed = {getattr(module, name) for module in with_list for name in module.__all__}
    modules = (augment, autoencoder, classifier, codes, likelihoods, metrics, plots, vae, vqvae)
    defined = {
        one
        for module in modules
        for name, one in vars(module).items()
        if not name.startswith("_") and getattr(one, "__module__", None) == module.__name__ and callable(one)
    }
    everything = listed.union(defined, *map(classes_of, (quantizers.Quantizer, priors.Prior, likelihoods.Likelihood)))
    computing = {one for one in everything if callable(one)}
    results = {one for one in computing if one.__name__.endswith(("Output", "Quantized"))}  # only hold tensors
    return computing - results - COVERED - LEFT_OUT.keys()


def classes_of(base: type) -> set[type]:
    """Its subclasses in the library, and theirs."""
    below = [one for one in base.__subclasses__() if re.match(r"companion\.(?!course)", one.__module__)]
    return {*below, *(deeper for one in below for deeper in classes_of(one))}


def test_whatever_is_public_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = sorted(one.__name__ for one in without_case())
    assert not missing, f"no case in tests/workers/device_worker.py for {missing}"
    assert not LEFT_OUT.keys() & COVERED

    class Forgotten(nn.Module):
        pass

    monkeypatch.setattr(quantizers, "Forgotten", Forgotten, raising=False)
    monkeypatch.setattr(quantizers, "__all__", [*quantizers.__all__, "Forgotten"])
    assert without_case() == {Forgotten}


Problems = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Problems:
    """For each case what went wrong on the pretended device."""
    out = tmp_path_factory.mktemp("devices") / "problems.json"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, device_worker.__file__, str(out)], check=True, env=environment)
    found: Problems = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["float64", "no float64"])
def test_tensors_are_made_where_the_input_is(kind: str, name: str, problems: Problems) -> None:
    assert not problems[kind][name], problems[kind][name]


FOUND = {
    "arange without a device": "at least two devices, pretended and cpu",
    "a layer on the CPU": "at least two devices",
    "a table on the CPU": "at least two devices",
    "cat": "at least two devices",
    "a generator of the CPU": "device type for generator",
    "numpy": "numpy",
    "other numbers": "not close",
    "a result on the CPU": r"shape \(3,\) is on cpu",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_a_gpu_is_found(name: str, problems: Problems) -> None:
    assert re.search(FOUND[name], problems["float64"][name])


@pytest.mark.parametrize("name", WRONG_WITHOUT_FLOAT64)
def test_what_needs_float64_is_found(name: str, problems: Problems) -> None:
    assert "has no float64" in problems["no float64"][name]


# --- pytest --device


def test_tensors_and_layers_of_a_test_are_on_the_device_of_the_option(device: torch.device) -> None:
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(0))
    made = (torch.zeros(2), torch.tensor([1]), torch.as_tensor([2.0]), nn.Linear(1, 1).weight, drawn)
    assert {one.device.type for one in made} == {device.type}
    assert drawn.tolist() == torch.rand(3, generator=torch.Generator().manual_seed(0), device="cpu").tolist()
    assert torch.ones(2, requires_grad=True).is_leaf
    assert torch.zeros(1, device="cpu").device.type == "cpu"


def test_fit_trains_on_the_device_of_the_option_and_goes_on_there(device: torch.device, tmp_path: Path) -> None:
    images = data.load("glyphs", size=64)
    model = VQVAE(ResNetEncoder(1, 4, hidden=8), EMAVectorQuantizer(8, 4), ResNetDecoder(1, 4, hidden=8))
    options = {"batch_size": 16, "validation": images, "precision": "bf16", "run": tmp_path, "progress": False}
    companion.fit(model, images, epochs=1, **options)
    history = companion.fit(model, images, epochs=3, **options)
    assert {value.device.type for value in model.state_dict().values()} == {device.type}
    assert history.last["loss"] < history.rows[0]["loss"]
    x = images.to(device).batch(range(4))[0]
    assert torch.equal(model.decode(model.encode(x)), model.reconstruct(x))


def pytest_with(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_a_device_that_the_machine_lacks_is_an_error_of_usage() -> None:
    result = pytest_with("--device", "cuda", "tests/test_masked.py")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --device cuda: torch finds no GPU on this machine" in result.stderr


def test_all_tests_run_on_a_pretended_device_but_those_about_the_cpu() -> None:
    this = "tests/test_devices.py::test_tensors_and_layers_of_a_test_are_on_the_device_of_the_option"
    bounded = "tests/test_classifier.py::test_nearest_distances_take_bounded_memory"
    result = pytest_with("--device", "pretended", this, bounded, "tests/test_masked.py")
    assert result.returncode == 0, result.stdout
    assert "CPU only: tells tensors apart by their addresses" in result.stdout
    assert re.search(r"\d\d passed, 1 skipped", result.stdout)

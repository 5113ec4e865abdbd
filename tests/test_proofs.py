"""The companion gives the numbers that the notebooks glued when they were executed."""

from pathlib import Path

import nbformat
import pytest
import torch

import companion
from companion.autoencoder import interpolate, pca_reconstruct
from companion.course.execution import glued
from companion.metrics import mse
from companion.training import train_step

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [
    folder / f"{p.stem}.ipynb"
    for p in sorted((ROOT / "solutions").glob("*.py"))
    for folder in (ROOT / "solutions", ROOT / "chapters")
]


def proof_mse() -> object:
    x = torch.linspace(0, 1, 24).reshape(2, 1, 3, 4)
    x_hat = (x.flip(0) ** 2).requires_grad_()
    value = mse(x_hat, x)
    (gradient,) = torch.autograd.grad(value, x_hat)
    return {"value": value.item(), "gradient_norm": gradient.norm().item()}


def proof_autoencoder() -> object:
    torch.manual_seed(0)
    model = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
    output = model(torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28))
    output.loss.backward()
    gradients = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {"z": output.z.flatten().tolist(), "loss": output.loss.item(), "gradients": gradients}


def proof_train_step() -> object:
    torch.manual_seed(0)
    model = companion.Autoencoder(companion.Encoder(3), companion.Decoder(3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.linspace(0, 12, 2 * 28 * 28).sin().reshape(2, 1, 28, 28)
    return [train_step(model, sgd, x).item() for _ in range(3)]


def proof_interpolate() -> object:
    return interpolate(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]]), 5).tolist()


def proof_pca() -> object:
    some, other = torch.arange(40.0).cos().reshape(10, 1, 2, 2), torch.arange(8.0).sin().reshape(2, 1, 2, 2)
    return pca_reconstruct(some, other, 2).flatten().tolist()


PROOFS = {
    "00_start_here": {"proof.mse": proof_mse},
    "01_autoencoder": {
        "proof.autoencoder": proof_autoencoder,
        "proof.train_step": proof_train_step,
        "proof.pca": proof_pca,
        "proof.interpolate": proof_interpolate,
    },
}


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in flat(item)]
    assert isinstance(value, float | int)
    return [float(value)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_companion_reproduces_what_the_notebook_stored(notebook):
    stored = {
        name: value for name, value in glued(nbformat.read(notebook, as_version=4)).items() if name.startswith("proof.")
    }
    proofs = PROOFS[notebook.stem]
    assert stored.keys() == proofs.keys()
    for name, proof in proofs.items():
        assert flat(stored[name]) == pytest.approx(flat(proof()), rel=1e-4, abs=1e-6), name


def test_a_wrong_number_would_be_noticed():
    assert flat({"a": [1.5]}) == pytest.approx(flat({"a": [1.5]}), rel=1e-4, abs=1e-6)
    assert flat({"a": [1.5]}) != pytest.approx(flat({"a": [1.501]}), rel=1e-4, abs=1e-6)

"""Small trainings on the CPU, for the tests of ``companion.training``."""

import signal
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from workers.fit_worker import Digits, Noisy, Output, objective

import companion
import companion.training
from companion.training import History, fit

QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}


def noisy(noise: float = 0.1, seed: int = 0) -> Noisy:
    torch.manual_seed(seed)
    return Noisy(noise)


def train(model: nn.Module, **options: Any) -> History:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "objective": objective}
    return fit(model, Digits(53, 1), **(QUIET | settings | options))


def interrupting(step: int, how: Any) -> Any:
    @wraps(objective)  # a run goes on with an objective of the same name only
    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        if model.training and model.count == step - 1:
            how()
        return objective(model, x, y)

    return watched


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def tokenizer() -> nn.Module:
    torch.manual_seed(0)
    encoder, decoder = companion.ResNetEncoder(1, 4, hidden=8), companion.ResNetDecoder(1, 4, hidden=8)
    return companion.VQVAE(encoder, companion.EMAVectorQuantizer(8, 4, init="uniform"), decoder)

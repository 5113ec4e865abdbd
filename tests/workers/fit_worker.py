"""A small training run that can kill itself at a chosen point.

test_killed_runs.py starts it as a process or two, and with ``torchrun`` as a script:
fit_worker.py OUT [key=value …]

Every process appends its id to OUT.pids, and at the end writes what it has got to OUT.<rank>.json.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import companion.checkpoint
from companion import VQVAE, Autoencoder, EMAVectorQuantizer, ResidualQuantizer, ResNetDecoder, ResNetEncoder
from companion.losses import AdversarialTraining, FeatureDistance
from companion.training import EarlyStopping, WarmupCosine, fit

SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows SIGTERM ends a process as bluntly


class Digits:
    """Fixed noise: x (n, 1, 4, 4), y (n,)."""

    def __init__(self, n: int, seed: int) -> None:
        self.x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        self.y = torch.arange(n) % 10

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.x[indices].to(device), self.y[indices].to(device)


@dataclass
class Output:
    reconstruction: Tensor
    mean_abs: Tensor
    loss: Tensor


class Noisy(nn.Module):
    """What makes resuming hard: noise from the global generator, dropout, and buffers that training moves.

    With ``noise`` 0 it has none of these. ``sometimes`` is used only where a batch has a label under 3, and
    ``never`` never.
    """

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise
        self.layers = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Dropout(noise), nn.Linear(8, 16))
        self.sometimes = nn.Parameter(torch.ones(()))
        self.never = nn.Parameter(torch.ones(2))
        self.register_buffer("centre", torch.zeros(16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Output:
        x = x.flatten(1)
        if self.training:
            self.centre.lerp_(x.detach().mean(0), self.noise)
            self.count += 1
        out = self.layers(x - self.centre + self.noise * torch.randn_like(x))
        loss = (out - x).square().mean()
        if y is not None and (y < 3).any():
            loss = loss + (self.sometimes.square() * (y < 3)).mean()
        return Output(out, out.abs().mean(), loss)


PARTS: dict[str, Any] = {
    "schedule": WarmupCosine(warmup=3),
    "clip": 0.3,
    "accumulate": 2,
    "average": 0.9,
    "after_epoch": EarlyStopping("loss", patience=1, smallest_change=100.0),
}


def objective(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return model(x, y) if isinstance(model, Noisy) else model(x)


def darkened(x: Tensor) -> Tensor:
    """Each image of x (B, …) darker by a draw of its own."""
    return x * torch.rand(len(x), 1, 1, 1)


def model_of(kind: str, noise: float) -> nn.Module:
    """ "noisy", or a tokenizer with k-means, moving averages and restarts: "ema" (one codebook), "residual" (two).

    Or "adversarial", an autoencoder with a discriminator that begins in the fourth step.
    """
    if kind == "noisy":
        return Noisy(noise)
    if kind == "adversarial":
        return adversarial()
    depths = [EMAVectorQuantizer(4, 2, decay=0.5, restart_below=0.5) for _ in range(2)]
    return VQVAE(
        ResNetEncoder(1, 2, hidden=4, factor=2, num_blocks=1),
        depths[0] if kind == "ema" else ResidualQuantizer(depths),
        ResNetDecoder(1, 2, hidden=4, factor=2, num_blocks=1),
    )


def adversarial() -> AdversarialTraining:
    sizes: dict[str, Any] = {"hidden": 4, "factor": 2, "num_blocks": 1}
    autoencoder = Autoencoder(ResNetEncoder(1, 2, **sizes), ResNetDecoder(1, 2, **sizes))
    critic = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
    features = FeatureDistance(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), ["1"])
    return AdversarialTraining(autoencoder, critic, features, start=3, penalty="lecam")


def bits(model: nn.Module) -> str:
    """A digest of every bit of the state."""
    values = b"".join(value.detach().cpu().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(values).hexdigest()


def main(
    out: str,
    *,
    run: str | None = None,
    kill: str = "",
    rank_to_kill: str = "0",
    noise: str = "0.1",
    epochs: str = "3",
    kind_of_model: str = "noisy",
    validation: str = "11",
    augmented: str = "",
    parts: str = "",
    tell: Connection | None = None,
) -> None:
    """kill: "step:7" (in its 7th step), "write:2" (2nd state half written), "rename:2" (not yet renamed).

    With ``parts``, each batch goes through the model in two, which count as steps here, and training ends after the
    second epoch of three.
    """
    torch.set_num_threads(1)
    with Path(f"{out}.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    rank = int(os.environ.get("RANK", 0))
    kind, _, number = kill.partition(":")
    reached: dict[str, int] = {"step": 0, "write": 0, "rename": 0}

    def reach(point: str) -> None:
        reached[point] += 1
        if (point, str(reached[point]), str(rank)) == (kind, number, rank_to_kill):
            os.kill(os.getpid(), SIGKILL)

    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        if model.training:
            reach("step")
            if tell is not None:
                tell.send(reached["step"])
        return objective(model, x, y)

    shares: list[float] = []  # of the first image of each batch, that is left by augment

    def seen(x: Tensor) -> Tensor:
        made = darkened(x)
        shares.append((made[0].sum() / x[0].sum()).item())
        return made

    torch.save = _half_then(torch.save, lambda: reach("write"))
    companion.checkpoint.os.replace = _after(os.replace, lambda: reach("rename"))
    torch.manual_seed(rank)  # every rank makes other weights: those of rank 0 must win
    model = model_of(kind_of_model, float(noise))
    history = fit(
        model,
        Digits(53, 1),
        epochs=int(epochs),
        batch_size=8,
        lr=0.01,
        validation=Digits(int(validation), 2),
        objective=watched,
        augment=seen if augmented else None,
        **(PARTS if parts else {}),
        run=run,
        save_every=2 if run else None,
        device="cpu",
        progress=False,
    )
    again = fit(  # with the process group that the first call left open
        Noisy(), Digits(9, 1), epochs=1, batch_size=8, precision="bf16", device="cpu", progress=False
    )
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    result = {"world": world, "rows": history.rows, "bits": bits(model), "state": state, "again": again.rows}
    if augmented:
        result["shares"] = shares
    Path(f"{out}.{rank}.json").write_text(json.dumps(result))


def main_of(rank: int, world: int, store: str, *args: Any, **options: Any) -> None:
    """``main`` as one of several processes, in a process group that the caller makes (and so owns)."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    torch.distributed.init_process_group(
        "gloo", init_method=Path(store).as_uri(), rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    main(*args, **options)
    assert torch.distributed.is_initialized()  # fit left the caller's group alone


def _half_then(torch_save: Callable[..., None], event: Callable[[], None]) -> Callable[..., None]:
    def save(state: object, file: Any, **options: Any) -> None:
        torch_save(state, file, **options)
        if options:  # a tensor on its way to another process
            return
        size = file.tell()
        file.truncate(size // 2)
        file.flush()
        event()
        file.seek(0)
        torch_save(state, file)

    return save


def _after(replace: Callable[..., None], event: Callable[[], None]) -> Callable[..., None]:
    def late(*args: Any) -> None:
        event()
        replace(*args)

    return late


if __name__ == "__main__":
    main(sys.argv[1], **dict(argument.split("=", 1) for argument in sys.argv[2:]))

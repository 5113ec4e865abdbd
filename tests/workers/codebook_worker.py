"""One of several processes that train a codebook together: codebook_worker.py OUT RANK WORLD KIND.

The latents are whole numbers, so that their sums are exact in float32 in any order. OUT.RANK gets the state dict.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from companion.quantizers import EMAVectorQuantizer, Quantizer, ResidualQuantizer

STEPS, VECTORS, DIM, CODES = 50, 96, 4, 12


def quantizer(kind: str) -> Quantizer:
    """γ = ½ keeps the counts exact in binary; a high threshold makes restarts happen at most steps."""
    torch.manual_seed(0)

    def one(seed: int) -> EMAVectorQuantizer:
        return EMAVectorQuantizer(CODES, DIM, decay=0.5, restart_below=0.8, seed=seed)

    if kind == "shared":
        return ResidualQuantizer(one(0), depth=2)
    return ResidualQuantizer([one(0), one(1)]) if kind == "residual" else one(0)


def batch(step: int) -> Tensor:
    """(VECTORS, DIM) whole numbers; they drift, so that codes die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(-8, 9, (VECTORS, DIM), generator=generator).float() + step // 5


def train(kind: str, rank: int, world: int) -> tuple[Quantizer, int]:
    """Each process sees its own consecutive part of every batch. Also gives how often a code was restarted."""
    model, restarts = quantizer(kind), 0
    for step in range(STEPS):
        part = batch(step).chunk(world)[rank]
        out = model(part)
        if kind == "single":
            restarts += int((model.codebook[:, None] == batch(step)[None]).all(-1).any(1).sum())
        assert out.z_q.shape == part.shape
    return model, restarts


if __name__ == "__main__":
    out, rank, world, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    trained, _ = train(kind, rank, world)
    torch.save(trained.state_dict(), f"{out}.{rank}")
    distributed.destroy_process_group()

"""One of several processes that train a sharded tokenizer for a step: shard_worker.py OUT RANK WORLD.

Each sees its part of the batch and writes the whole model to OUT.RANK.safetensors.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import device_mesh, fsdp

import companion
from companion.quantizers import EMAVectorQuantizer, ResidualQuantizer, VectorQuantizer

IMAGES, CODES, DIM = 4, 6, 8


def tokenizer() -> companion.VQVAE:
    """One codebook is a parameter, and so in shards; the other is a buffer, which every process has."""
    torch.manual_seed(0)
    moved = EMAVectorQuantizer(CODES, DIM, init="uniform", restart_below=0.0)
    return companion.VQVAE(
        companion.ResNetEncoder(1, DIM, hidden=4),
        ResidualQuantizer([VectorQuantizer(CODES, DIM), moved]),
        companion.ResNetDecoder(1, DIM, hidden=4),
    )


def train(model: torch.nn.Module, rank: int, world: int) -> None:
    """A step of plain gradient descent, since Adam makes large steps of the rounding of small gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.rand(IMAGES, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    model(images.chunk(world)[rank]).loss.backward()
    optimizer.step()


if __name__ == "__main__":
    out, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    sharded, mesh = tokenizer(), device_mesh.init_device_mesh("cpu", (world,))
    for part in (sharded.encoder, sharded.decoder, sharded):
        fsdp.fully_shard(part, mesh=mesh)
    train(sharded, rank, world)
    companion.save(sharded, f"{out}.{rank}.safetensors")
    distributed.destroy_process_group()

"""What exercises 8.2 to 8.4 share: the embeddings of stacks, and tensors for the inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

Embed = Callable[[Tensor, Tensor], Tensor]  # stacks (B, T, R), tables (R, K, dim) → embeddings


def embed_stacks(stacks: Tensor, tables: Tensor) -> Tensor:
    """(B, T, R) → (B, T, R, dim), each depth by its own table."""
    return tables[torch.arange(stacks.shape[-1]), stacks]


def random_tensors(seed: int, *shape: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """All arguments of exercises 8.2 and 8.3 by name; shape: B, T, R, K, dim."""
    b, t, r, k, dim = shape
    g = torch.Generator().manual_seed(seed)
    made = {
        "stacks": torch.randint(0, k, (b, t, r), generator=g),
        "tables": torch.randn(r, k, dim, generator=g),
        "start": torch.randn(b, dim, generator=g),
        "positions": torch.randn(t, dim, generator=g),
        "h": torch.randn(b, t, dim, generator=g),
        "depths": torch.randn(r, dim, generator=g),
    }
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}

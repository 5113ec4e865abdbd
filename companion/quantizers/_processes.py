"""What several processes (``torch.distributed``) do together; with one process, or none started, nothing of it is
needed."""

import torch
from torch import Tensor, distributed


def several() -> bool:
    """Whether a process group with more than one process is running."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def total(value: Tensor) -> Tensor:
    """The sum over all processes, the same in each; in place."""
    if several():
        distributed.all_reduce(value)
    return value


def total_number(number: int, device: torch.device) -> int:
    """A whole number summed over all processes; ``device`` is where this process keeps its tensors."""
    return int(total(torch.tensor(number, device=device))) if several() else number


def draw(vectors: Tensor, n: int, *, seed: int, stream: int, step: int) -> Tensor:
    """``n`` random rows of all processes' ``vectors`` joined in the order of ranks; the same rows in every process.

    Without replacement as far as there are rows, and the same draw as one process makes that holds the joined rows.
    Nothing is taken from torch's global generator: ``seed``, ``stream`` (who draws) and ``step`` (when) decide.

    Shapes:
        vectors: (N, D), N of its own in each process → (n, D).
    """
    rank, sizes = 0, torch.tensor([len(vectors)], device=vectors.device)
    if several():
        rank = distributed.get_rank()
        sizes = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=vectors.device)
        sizes[rank] = len(vectors)
        sizes = total(sizes)
    available, start = int(sizes.sum()), int(sizes[:rank].sum())
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step + stream * 15_485_863_001) % 2**63)
    whole, rest = divmod(n, available)
    order = [torch.randperm(available, generator=generator, device="cpu") for _ in range(whole + (rest > 0))]
    mine = torch.cat(order)[:n].to(vectors.device) - start
    here = (mine >= 0) & (mine < len(vectors))
    chosen = vectors.new_zeros(n, vectors.shape[1])
    chosen[here] = vectors[mine[here]]
    return total(chosen)

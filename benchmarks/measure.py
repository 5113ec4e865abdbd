"""How time and memory are measured."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.cases import COMPARISONS
from benchmarks.comparison import Work

MIB = 2**20


def interleaved(works: Sequence[Work], device: torch.device, rounds: int, seconds: float) -> list[list[float]]:
    """Seconds of each work in each round, or of one of its parts.

    In every round each is done once, and each round begins with another. A first round, not counted, warms up.
    ``rounds`` of them follow, fewer where they would take more than ``seconds`` altogether, and never fewer than three.
    """
    for work in works:
        timed(work, device)
    times: list[list[float]] = [[] for _ in works]
    began = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and (time.perf_counter() - began) * (done + 1) / done > seconds:
            break
        for i in range(len(works)):
            turn = (done + i) % len(works)
            times[turn].append(timed(works[turn], device) / works[turn].parts)
    return times


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run; on a GPU between two events in its stream."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def available_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)


def extra_peak(work: Work, device: torch.device) -> int:
    """Bytes that one run takes at its peak, beyond what is there before it and the gradients that it leaves.

    On a GPU torch's allocator counts them. On a CPU it is the peak of resident memory less the level before. Where the
    system can do it (Linux with glibc), memory that was freed is first given back (``malloc_trim``), or it would hide
    what is taken now, and the peak is set to the level (``clear_refs``). Elsewhere the peak is the one since the
    process began, so that the answer is an upper bound in a process of its own.
    """
    for parameter in work.parameters:
        parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        if sys.platform == "linux":
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = psutil.Process().memory_info().rss
        work()
        peak = resident_peak()
    gradients = sum(p.grad.nbytes for p in work.parameters if p.grad is not None)
    return peak - before - gradients


def resident_peak() -> int:
    """The most bytes of memory that this process has had (on Linux: since ``clear_refs``)."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def extra_peak_alone(comparison: int, contestant: int, value: int, device: torch.device, dtype: torch.dtype) -> int:
    """:func:`extra_peak` of one case, in a process of its own."""
    case = json.dumps([comparison, contestant, value, device.type, str(dtype).removeprefix("torch.")])
    command = [sys.executable, "-m", "benchmarks.measure", case]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return int(result.stdout)


def main(case: str) -> None:
    comparison, contestant, value, device_type, dtype_name = json.loads(case)
    device, dtype = torch.device(device_type), getattr(torch, dtype_name)
    setup = COMPARISONS[comparison].contestants[contestant].setup
    setup(min(COMPARISONS[comparison].values), device, dtype).step()  # libraries are loaded at their first use
    work = setup(value, device, dtype)
    print(extra_peak(work, device))


if __name__ == "__main__":
    main(sys.argv[1])

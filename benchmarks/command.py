"""The command: codes and logits first, then time, then memory.

What was measured is written at the end, whole or not at all.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from benchmarks.cases import COMPARISONS
from benchmarks.codes import OFFSETS, check_codes, check_same_work, demand_right, encoded_by
from benchmarks.comparison import Comparison, Wrong
from benchmarks.measure import MIB, available_memory, extra_peak_alone, interleaved
from benchmarks.priors import cached_against_uncached, demand_agreement, gated
from benchmarks.quantizers import companion_quantizer, peer_quantizer
from benchmarks.report import PEERS, tables, with_tables
from companion.checkpoint import written_whole
from companion.course.session import default_device, machine

HERE = Path(__file__).parent
THREADS = 2
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, and nothing is written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device().type)
    parser.add_argument("--keep", type=Path, help="a folder: what is measured is kept there, and not measured again")
    parser.add_argument("--part", help="measure this part alone, into --keep, and write no tables")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, and PyTorch finds no such GPU here")
    device = torch.device(options.device)
    torch.set_num_threads(THREADS)
    every = parts(device, options.quick)
    if options.part and (options.keep is None or options.part not in every):
        parser.error(f"--part: got {options.part!r}, want --keep, and one of {', '.join(every)}")
    try:
        if options.part:
            kept(options.keep, device, options.part, every[options.part])
            return
        results = measured(device, options.quick, options.keep)
    except ImportError as error:
        sys.exit(f"{error}. `make bench` installs the peers.")
    except Wrong as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped; the tables are as they were.")
    print(tables(results))
    if not options.quick:
        write(results, device.type)


def measured(device: torch.device, quick: bool, keep: Path | None = None) -> Row:
    """Everything that a run finds out, as JSON can hold it."""
    found = {part: kept(keep, device, part, measure) for part, measure in parts(device, quick).items()}
    gates = {name: found.pop(name) for name in ("codes", "logits")}
    return {"machine": about(device), **gates, "rows": [row for part in found.values() for row in part]}


def parts(device: torch.device, quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """What is measured one after the other, by name: the gates, then each comparison in each type of number."""
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    found: dict[str, Callable[[], list[Row]]] = {
        "codes": lambda: codes(device, quick),
        "logits": lambda: logits(device),
    }
    for number, comparison in enumerate(COMPARISONS):
        if comparison.quick or not quick:
            for dtype in dtypes:
                found[f"{number + 1}-{name(dtype)}"] = partial(rows, number, comparison, device, dtype, quick)
    return found


def kept(folder: Path | None, device: torch.device, part: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """What ``measure`` finds, or found before on such a machine, if it was kept in ``folder``."""
    if folder is None:
        return measure()
    path = folder / f"{part}.json"
    here = {key: value for key, value in about(device).items() if key != "date"}
    there: Row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if there.get("machine") != here:
        there = {"machine": here, "rows": measure()}
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps(there).encode())
    found: list[Row] = there["rows"]
    return found


def about(device: torch.device, peers: Sequence[str] = PEERS) -> Row:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "device": machine(device) if device.type == "cuda" else f"{model}, {machine(device)}",
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{peer: metadata.version(peer) for peer in peers},
        "date": date.today().isoformat(),
    }


def codes(device: torch.device, quick: bool) -> list[Row]:
    """The gate: the companion's codes are the nearest, or the run ends here. The peer's are counted beside them."""
    check_same_work(device)
    found: list[Row] = []
    cases = list(product((1024,) if quick else (1024, 8192), (torch.float32, torch.bfloat16), OFFSETS))
    for num_codes, dtype, offset in tqdm(cases, "codes", unit="case"):
        where = {"K": num_codes, "dtype": name(dtype), "offset": offset}
        ours = check_codes(encoded_by(companion_quantizer), num_codes, offset, device, dtype)
        demand_right(ours, ", ".join(f"{key} {value}" for key, value in where.items()))
        peers = check_codes(encoded_by(peer_quantizer), num_codes, offset, device, dtype)
        found.append(where | {"companion": vars(ours), "peer": vars(peers)})
    return found


def logits(device: torch.device) -> list[Row]:
    """The gate of the priors: a cache changes no logit by more than 1e-5, or the run ends here."""
    found: list[Row] = []
    for which, prior in tqdm(gated(device).items(), "logits", unit="prior"):
        largest, difference = cached_against_uncached(prior)
        demand_agreement(difference, which)
        found.append({"prior": which, "largest": round(largest, 2), "difference": float(f"{difference:.2g}")})
    return found


def rows(number: int, comparison: Comparison, device: torch.device, dtype: torch.dtype, quick: bool) -> list[Row]:
    """Time and memory of one comparison: for each value of its axis one row per contestant."""
    found: list[Row] = []
    values = [value for value in comparison.values if value in comparison.at_most] if quick else comparison.values
    for value in (bar := tqdm(values, f"{comparison.title}, {name(dtype)}", unit="size")):
        free = available_memory(device)
        fits = [i for i, one in enumerate(comparison.contestants) if one.needs(value) < free]
        bar.set_postfix_str(f"{comparison.axis} = {value}: time")
        works = [comparison.contestants[i].setup(value, device, dtype) for i in fits]
        times = interleaved(works, device, *((5, 10) if quick else (30, comparison.seconds)))
        learnt = [sum(parameter.numel() for parameter in work.parameters) for work in works]
        works.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the processes that measure memory
        for i, one in enumerate(comparison.contestants):
            row = {"comparison": comparison.title, comparison.axis: value, "dtype": name(dtype), "who": one.name}
            if i in fits:
                row["seconds"] = [float(f"{seconds:.4g}") for seconds in times[fits.index(i)]]
                if comparison.parameters:
                    row["parameters"] = learnt[fits.index(i)]
                if comparison.memory:
                    bar.set_postfix_str(f"{comparison.axis} = {value}: memory of {one.name}")
                    row["extra_mib"] = round(extra_peak_alone(number, i, value, device, dtype) / MIB, 1)
            else:
                row["left_out"] = f"needs about {one.needs(value) / 2**30:.0f} GiB; {free / 2**30:.0f} were free"
            found.append(row)
    return found


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write(results: Row, device: str, folder: Path = HERE) -> None:
    """The raw numbers to ``cpu.json`` or ``cuda.json``, and their tables into ``README.md``."""
    lines = [json.dumps(results["machine"])]
    for part in ("codes", "logits", "rows"):
        lines.append("[\n" + ",\n".join(json.dumps(row) for row in results[part]) + "\n]")
    text = "{\n" + ",\n".join(f'"{key}": {line}' for key, line in zip(results, lines, strict=True)) + "\n}\n"
    readme = folder / "README.md"
    new = with_tables(readme.read_text(encoding="utf-8"), device, tables(results))
    for path, content in ((folder / f"{device}.json", text), (readme, new)):
        with written_whole(path) as file:
            file.write(content.encode())
    print(f"Written to {os.path.relpath(readme)} and {device}.json beside it.")

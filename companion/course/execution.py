"""Run a notebook in a fresh kernel, and read the values that it glued."""

import ast
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_output
from tqdm import tqdm

MOST_OUTPUT = 4_000_000  # characters that a cell may leave in its notebook: ten times what any of the course leaves
MOST_WORDS = 2_000  # characters of an error's message
GLUED = "application/papermill.record/text/plain"  # where myst_nb.glue(..., display=False) puts a value's repr

# Instruction sets and thread counts that one machine can run under. The last digits of results differ between them, and
# no check may depend on those. The variables have to be set before torch is imported. Waiting threads sleep
# (PASSIVE): threads that spin are very slow on a busy machine.
AS_IT_IS = "as it is"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
    PROCESSORS: dict[str, dict[str, str]] = {
        AS_IT_IS: {},
        "SSE4.1, one thread": ONE_THREAD
        | {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
        "AVX2, two threads": TWO_THREADS
        | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    }
else:  # another architecture, or nothing above SSE
    PROCESSORS = {AS_IT_IS: {}, "one thread": ONE_THREAD, "two threads": TWO_THREADS}


class CellError(Exception):
    """A cell that failed, or whose output must not be kept; the message names the notebook and the cell."""


@dataclass
class Cost:
    """Time and memory of a run, filled in when it ends, also when it ends by an error."""

    minutes: float = 0.0
    memory_mb: int = 0


def execute(
    notebook: NotebookNode,
    *,
    name: str,
    folder: Path,
    env: Mapping[str, str],
    cost: Cost | None = None,
    timeout: int | None = None,
) -> None:
    """Run ``notebook`` in place, with a progress bar.

    Args:
        name: of the notebook, for messages.
        folder: the working folder of the kernel.
        env: added to the environment. ``COMPANION_SEED`` and ``COMPANION_STRICT`` of the caller are taken out of it.
        cost: filled in with time and memory.
        timeout: seconds that a cell may take. A kernel that is still busy then is killed, since an endless loop may
            ignore an interrupt.

    Raises:
        CellError: a cell raised or took too long, or its kernel died.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("COMPANION_S")}
    client = _Client(
        notebook,
        kernel_name="python3",
        extra_arguments=["--log-level=50"],  # without warnings on the transport, which does not leave this machine
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.widget_registry = {}  # its Output widget stalls now and then (nbclient#312)
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    # Not client.execute(), which turns Ctrl-C into a dead kernel: callers would go on with the next notebook.
    with measured(cost or Cost()), client.setup_kernel(env=inherited | dict(env)):
        for index in tqdm(code, desc=name, unit="cell"):
            try:
                client.execute_cell(notebook.cells[index], index)
            except CellExecutionError as error:
                where = cell_in_words(name, notebook, index)
                raise CellError(f"{where}: {error.ename}: {error.evalue[:MOST_WORDS]}") from error
            except CellTimeoutError as error:
                client.shutdown_kernel = "immediate"
                where = cell_in_words(name, notebook, index)
                raise CellError(f"{where}: stopped after {timeout} seconds, the most that a cell may take") from error
            except DeadKernelError as error:
                where = cell_in_words(name, notebook, index)
                raise CellError(f"{where}: its kernel died (out of memory?)") from error


class _Client(NotebookClient):
    """Keeps the first ``MOST_OUTPUT`` characters of a cell's output, and says in the notebook where it cut."""

    kept: tuple[int, int] = (-1, 0)  # the cell that is running, and how many characters it has left

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        content = msg["content"]
        if msg["msg_type"] == "error":  # always kept, but not at any length
            content |= {
                "evalue": content["evalue"][:MOST_WORDS],
                "traceback": [line[:MOST_WORDS] for line in content["traceback"]],
            }
            return super().output(outs, msg, display_id, cell_index)
        before = self.kept[1] if self.kept[0] == cell_index else 0
        is_text = msg["msg_type"] == "stream"
        size = len(content["text"]) if is_text else len(json.dumps(content, default=str))
        self.kept = (cell_index, before + size)
        if before + size <= MOST_OUTPUT:
            return super().output(outs, msg, display_id, cell_index)
        if before <= MOST_OUTPUT:  # the first that is too much
            if is_text:
                content["text"] = content["text"][: MOST_OUTPUT - before]
                super().output(outs, msg, display_id, cell_index)
            text = f"\n[the rest is left out: a cell may leave {MOST_OUTPUT:,} characters of output]\n"
            outs.append(new_output("stream", name="stderr", text=text))
        return None


def cell_in_words(name: str, notebook: NotebookNode, index: int) -> str:
    """A cell as messages name it: the notebook, the number of the cell, from 1, and its first line."""
    first = next(iter(notebook.cells[index].source.strip().splitlines()), "")
    return f"{name}, cell {index + 1} ({first[:60]})"


def glued(notebook: NotebookNode) -> dict[str, Any]:
    """The values that ``myst_nb.glue`` stored in a notebook, by name.

    Raises:
        CellError: one is not a plain Python number, string, list or dict (a tensor is stored as its repr,
            and a very long list without its middle).
    """
    values: dict[str, Any] = {}
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if GLUED not in output.get("data", {}):
                continue
            key, text = output.metadata["scrapbook"]["name"], output.data[GLUED]
            try:
                if re.search(r"\.\.\.", text):
                    raise ValueError
                values[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                where = cell_in_words("glued values", notebook, index)
                raise CellError(f"{where}: {key} = {text[:60]} is not a plain float, list or dict") from None
    return values


@contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Measure the time of the block and, five times a second, the resident memory of all that it starts."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            cost.memory_mb = max(cost.memory_mb, _children_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.monotonic()
    try:
        yield
    finally:
        cost.minutes = (time.monotonic() - start) / 60
        done.set()
        watcher.join()


def _children_mb() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it ended in the meantime
    return total // 2**20

"""Runs of one process and of two that are killed and started again."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from workers.fit_worker import SIGKILL, main, main_of

pytestmark = pytest.mark.cpu_only("the same to the bit after a stop, with several processes joined by gloo")

WORKER = Path(__file__).parent / "workers" / "fit_worker.py"


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts workers: on Linux forked from a process that has imported everything, so that each is cheap."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "torch._dynamo", "companion.training"])
    return context


def finish(workers: list[Any]) -> list[int]:
    """Waits for the workers, ends by its id whatever is left, and gives the exit codes."""
    for worker in workers:
        worker.join(timeout=60)
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, SIGKILL)
            worker.join()
    return [worker.exitcode for worker in workers]


def run_one(context: Any, out: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    worker = context.Process(target=main, args=(str(out),), kwargs=options)
    worker.start()
    (code,) = finish([worker])
    result = Path(f"{out}.0.json")
    return code, json.loads(result.read_text()) if result.exists() else {}


def run_two(context: Any, out: Path, **options: Any) -> tuple[list[int], list[dict[str, Any]]]:
    store = out.with_suffix(f".store{len(list(out.parent.iterdir()))}")
    workers = [context.Process(target=main_of, args=(rank, 2, str(store), str(out)), kwargs=options) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    codes = finish(workers)
    files = [Path(f"{out}.{rank}.json") for rank in (0, 1)]
    return codes, [json.loads(file.read_text()) for file in files if file.exists()]


@pytest.fixture(scope="session")
def one_process(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of one process gives."""
    code, result = run_one(processes, tmp_path_factory.mktemp("one") / "whole")
    assert (code, result["world"]) == (0, 1)
    return result


@pytest.fixture(scope="session")
def two_processes(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of two processes gives."""
    codes, (first, second) = run_two(processes, tmp_path_factory.mktemp("two") / "whole")
    assert codes == [0, 0]
    assert first == second  # history, weights and buffers, to the bit
    assert first["world"] == 2
    return first


@pytest.mark.parametrize(
    "point",
    ["step:1", "step:6", "step:7", "step:18"] + [f"{k}:{n}" for k in ("write", "rename") for n in (1, 4, 12)],
)
def test_killed_at_that_point_it_ends_as_if_it_had_never_stopped(
    processes: Any, one_process: dict[str, Any], tmp_path: Path, point: str
) -> None:
    run = str(tmp_path / "run")
    assert run_one(processes, tmp_path / "out", run=run, kill=point) == (-SIGKILL, {})
    assert run_one(processes, tmp_path / "out", run=run) == (0, one_process)


def test_killed_again_and_again_it_ends_as_if_it_had_never_stopped(
    processes: Any, one_process: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for point in ["step:1", "step:5", "write:1", "write:3", "rename:1", "rename:4"]:
        assert run_one(processes, tmp_path / "out", run=str(run), kill=point) == (-SIGKILL, {})
    assert run_one(processes, tmp_path / "out", run=str(run)) == (0, one_process)
    names = sorted(path.name for path in run.iterdir())
    assert names == ["lock", "state-0000000018-000002.pt", "state-0000000018-000003.pt"]


def test_killed_from_outside_at_any_moment(processes: Any, one_process: dict[str, Any], tmp_path: Path) -> None:
    steps_seen = []
    while len(steps_seen) < 20:
        receiver, sender = processes.Pipe(duplex=False)
        options = {"run": str(tmp_path / "run"), "tell": sender}
        worker = processes.Process(target=main, args=(str(tmp_path / "out"),), kwargs=options)
        worker.start()
        sender.close()
        steps = 0
        with contextlib.suppress(EOFError):
            while steps < 5:
                steps = receiver.recv()
            os.kill(worker.pid, SIGKILL)  # while it goes on computing or saving
        steps_seen.append(steps)
        if finish([worker]) == [0]:
            break
    assert json.loads((tmp_path / "out.0.json").read_text()) == one_process
    assert len(steps_seen) >= 3


def test_two_processes_train_as_one_on_the_joined_batch(processes: Any, tmp_path: Path) -> None:
    codes, (first, second) = run_two(processes, tmp_path / "two", noise="0", validation="9")
    _, alone = run_one(processes, tmp_path / "one", noise="0", validation="9")
    assert codes == [0, 0]
    assert first == second
    assert (first["world"], alone["world"]) == (2, 1)
    for row, other in zip(first["rows"], alone["rows"], strict=True):  # the last validation batch: one example
        assert row == pytest.approx(other, rel=1e-5)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-4, atol=1e-6)
    assert first["state"]["never"] == [
        1,
        1,
    ]  # no gradient anywhere: Adam leaves it alone, as with one process
    assert first["state"]["sometimes"] != 1


@pytest.mark.parametrize("kind", ["ema", "residual"])
def test_two_processes_learn_the_codebooks_of_one(processes: Any, tmp_path: Path, kind: str) -> None:
    """Through k-means, restarts and the averages, although each process began with other weights and saw half."""
    codes, (first, second) = run_two(processes, tmp_path / "two", kind_of_model=kind, validation="9")
    code, alone = run_one(processes, tmp_path / "one", kind_of_model=kind, validation="9")
    assert (codes, code) == ([0, 0], 0)
    assert first == second
    assert (first["world"], alone["world"]) == (2, 1)
    for row, other in zip(first["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)


def test_two_processes_train_against_a_discriminator_as_one_does(processes: Any, tmp_path: Path) -> None:
    """Its adaptive weight and running means are those of the whole batch, and it begins in the same step."""
    codes, (first, second) = run_two(processes, tmp_path / "two", kind_of_model="adversarial", validation="9")
    code, alone = run_one(processes, tmp_path / "one", kind_of_model="adversarial", validation="9")
    assert (codes, code) == ([0, 0], 0)
    assert first == second
    assert (first["world"], alone["world"]) == (2, 1)
    assert first["state"]["steps"] == alone["state"]["steps"] == first["state"]["lecam.updates"] + 3 == 18
    for row, other in zip(first["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_two_processes_killed_go_on_to_the_bit(
    processes: Any, two_processes: dict[str, Any], tmp_path: Path, rank: str
) -> None:
    run = str(tmp_path / "run")
    for point in ["step:5", "write:2", "rename:2"] if rank == "0" else ["step:8"]:
        codes, _ = run_two(processes, tmp_path / "out", run=run, kill=point, rank_to_kill=rank)
        assert codes[int(rank)] == -SIGKILL
        assert codes[1 - int(rank)] != 0  # the other cannot go on, and does not hang
    codes, results = run_two(processes, tmp_path / "out", run=run)
    assert codes == [0, 0]
    assert results == [two_processes, two_processes]
    code, _ = run_one(processes, tmp_path / "one", run=run)
    assert code == 1  # refused: one process is not two


def test_killed_with_augmented_images_it_ends_as_if_it_had_never_stopped(
    processes: Any, one_process: dict[str, Any], tmp_path: Path
) -> None:
    code, whole = run_one(processes, tmp_path / "whole", augmented="yes")
    shares = whole.pop("shares")
    assert (code, len(shares), len(set(shares))) == (0, 18, 18)  # a new draw in each step, and none in validation
    assert whole["bits"] != one_process["bits"]
    options: dict[str, Any] = {"run": str(tmp_path / "run"), "augmented": "yes"}
    for point in ("step:5", "write:3", "rename:1"):
        assert run_one(processes, tmp_path / "out", **options, kill=point) == (-SIGKILL, {})
    code, result = run_one(processes, tmp_path / "out", **options)
    left = result.pop("shares")
    assert 0 < len(left) < 18
    assert left == shares[-len(left) :]
    assert (code, result) == (0, whole)
    assert run_one(processes, tmp_path / "out2", run=options["run"]) == (1, {})  # refused without augment


def test_two_processes_augment_their_shares_by_streams_of_their_own_and_go_on_to_the_bit(
    processes: Any, two_processes: dict[str, Any], tmp_path: Path
) -> None:
    codes, whole = run_two(processes, tmp_path / "whole", augmented="yes")
    assert codes == [0, 0]
    shares = [result.pop("shares") for result in whole]
    assert [len(drawn) for drawn in shares] == [18, 18]
    assert len({*shares[0], *shares[1]}) == 36  # with one stream the second process would draw what the first does
    assert whole[0] == whole[1]
    assert whole[0]["bits"] != two_processes["bits"]
    options = {"run": str(tmp_path / "run"), "augmented": "yes"}
    codes, _ = run_two(processes, tmp_path / "out", **options, kill="step:8", rank_to_kill="1")
    assert codes[1] == -SIGKILL
    codes, results = run_two(processes, tmp_path / "out", **options)
    left = [result.pop("shares") for result in results]
    assert codes == [0, 0]
    assert left == [drawn[-len(left[0]) :] for drawn in shares]
    assert results == whole


def test_killed_with_schedule_clip_accumulation_and_averages_it_ends_as_if_it_had_never_stopped(
    processes: Any, one_process: dict[str, Any], tmp_path: Path
) -> None:
    code, whole = run_one(processes, tmp_path / "whole", parts="yes")
    assert (code, len(whole["rows"]), whole["rows"][-1]["step"]) == (0, 2, 12)  # it ended early
    assert {"lr", "gradient_norm"} <= whole["rows"][0].keys()
    assert whole["bits"] != one_process["bits"]
    options: dict[str, Any] = {"run": str(tmp_path / "run"), "parts": "yes"}
    for point in ("step:9", "write:2", "rename:3", "step:8"):
        assert run_one(processes, tmp_path / "out", **options, kill=point) == (-SIGKILL, {})
    assert run_one(processes, tmp_path / "out", **options) == (0, whole)
    assert run_one(processes, tmp_path / "out", **options, kill="step:1") == (0, whole)  # it trains no more


@pytest.mark.parametrize("kind", ["noisy", "residual"])
def test_two_processes_accumulate_clip_and_average_as_one(processes: Any, tmp_path: Path, kind: str) -> None:
    options = {"kind_of_model": kind, "noise": "0", "validation": "9", "parts": "yes"}
    codes, (first, second) = run_two(processes, tmp_path / "two", **options)
    code, alone = run_one(processes, tmp_path / "one", **options)
    assert (codes, code) == ([0, 0], 0)
    assert first == second
    assert (first["world"], len(first["rows"]), len(alone["rows"])) == (2, 2, 2)  # both ended early, as the first said
    for row, other in zip(first["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    for name, values in alone["state"].items():
        torch.testing.assert_close(torch.tensor(first["state"][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)


def test_two_processes_with_all_parts_killed_go_on_to_the_bit(processes: Any, tmp_path: Path) -> None:
    codes, whole = run_two(processes, tmp_path / "whole", parts="yes", kind_of_model="ema")
    assert codes == [0, 0]
    assert whole[0] == whole[1]
    options = {"run": str(tmp_path / "run"), "parts": "yes", "kind_of_model": "ema"}
    for point in ("step:11", "write:2"):
        codes, _ = run_two(processes, tmp_path / "out", **options, kill=point)
        assert codes[0] == -SIGKILL
    codes, results = run_two(processes, tmp_path / "out", **options)
    assert codes == [0, 0]
    assert results == whole


@contextlib.contextmanager
def torchrun(out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Two workers under torchrun, each ended by its id in any case."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(WORKER),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [*command, str(out), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.communicate()
        pids = [int(line) for line in Path(f"{out}.pids").read_text().split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        assert len(pids) == 2
        Path(f"{out}.pids").unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's rendezvous wants libuv, which torch lacks there")
def test_torchrun_killed_and_started_again_goes_on_to_the_bit(two_processes: dict[str, Any], tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    with torchrun(tmp_path / "out", run, "kill=step:9") as launcher:
        output, _ = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
        assert "Signal 9 (SIGKILL)" in output
    assert (tmp_path / "run" / "state-0000000008-000001.pt").exists()
    with torchrun(tmp_path / "out", run) as launcher:
        output, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, output
    results = [json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in (0, 1)]
    assert [result["world"] for result in results] == [2, 2]
    assert results == [two_processes, two_processes]

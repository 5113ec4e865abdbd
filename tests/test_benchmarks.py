"""The benchmark's gate, its measure of memory, and its tables. Times are not tested: a busy machine changes them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import command, report
from benchmarks.cases import COMPARISONS, Work, companion_quantizer
from benchmarks.codes import OFFSETS, Verdict, Wrong, check_codes, demand_right, encoded_by, inputs, judge
from benchmarks.measure import MIB, extra_peak_alone, interleaved

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak counter cannot be set back")


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets the number of threads for its process; here it would stay for the tests that follow."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


# The codes


def uncentred(z: Tensor, codebook: Tensor) -> Tensor:
    """The wrong version: far from the origin its terms are large, nearly cancel, and leave no digits."""
    return torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2).argmin(1)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_lets_the_companion_pass(offset: int, dtype: torch.dtype) -> None:
    verdict = check_codes(encoded_by(companion_quantizer), 256, offset, CPU, dtype)
    assert verdict.wrong == 0
    assert verdict.ties < 3
    demand_right(verdict, "here")


@pytest.mark.parametrize(("offset", "dtype"), [(100, torch.float32), (1000, torch.float32), (0, torch.bfloat16)])
def test_the_gate_stops_a_search_that_is_not_centred(offset: int, dtype: torch.dtype) -> None:
    verdict = check_codes(uncentred, 256, offset, CPU, dtype)
    assert verdict.wrong > 50
    with pytest.raises(Wrong, match=rf"picks {verdict.wrong:,} of 16,384 codes that are not the nearest \(K 256;"):
        demand_right(verdict, "K 256")


def test_a_tie_is_what_one_rounding_leaves_open_and_nothing_more() -> None:
    """One latent between two codes: the mean of the codes is 0, and the two lengths add up to 1.5."""
    codebook = torch.zeros(4, 64)
    codebook[:, 0] = torch.tensor([1.0, -1.0, 5.0, -5.0])
    allowed = 2.0**-23 * 1.0**2  # ‖z‖ is nearly 0, ‖e‖ is 1
    for excess, expected in ((0.9 * allowed, Verdict(1, 0, 1)), (1.1 * allowed, Verdict(1, 1, 0))):
        z = torch.zeros(1, 64)
        z[0, 0] = -excess / 4  # ‖z − e₀‖² − ‖z − e₁‖² = −4 z·e₀
        assert judge(torch.tensor([0]), z, codebook) == expected
        assert judge(torch.tensor([1]), z, codebook) == Verdict(1, 0, 0)


def test_every_code_of_every_part_is_judged() -> None:
    z, codebook = inputs(16, 0, CPU, vectors=1025)  # two parts of 512 and one vector
    right = torch.cdist(z.double(), codebook.double()).argmin(1)
    assert judge(right, z, codebook) == Verdict(1025, 0, 0)
    assert judge((right + 1) % 16, z, codebook) == Verdict(1025, 1025, 0)


def test_a_wrong_code_ends_the_command_and_leaves_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "benchmarks/README.md").read_bytes()
    monkeypatch.setattr(command, "encoded_by", lambda quantizer: uncentred)
    monkeypatch.setattr(command, "check_same_work", lambda device: None)  # it needs the peer, and so does the next
    monkeypatch.setattr(command, "about", lambda device: {})
    with pytest.raises(SystemExit, match=r"The companion picks .* not the nearest .*offset 100.* Nothing was written"):
        command.main(["--quick", "--device", "cpu"])
    assert (ROOT / "benchmarks/README.md").read_bytes() == readme


# Memory

MEASURED = """
import sys, torch
from benchmarks.cases import Work
from benchmarks.measure import extra_peak
torch.set_num_threads(1)
z, codes = torch.randn(16384, 64), torch.randn(8192, 64)
freed = torch.ones(60 * 2**20)  # what was freed before must not hide what is taken now
del freed
print(extra_peak(Work(lambda: torch.cdist(z, codes).argmin(1)), torch.device("cpu")))
"""


@linux
@pytest.mark.parametrize("comparison", [0, 1], ids=["gradient", "moving average"])
def test_forward_and_backward_take_less_than_100_mib_at_65536_codes(comparison: int) -> None:
    taken = extra_peak_alone(comparison, 0, 65536, CPU, torch.float32)
    assert 12 * MIB < taken < 100 * MIB  # z_q, and the gradient of z with what autograd keeps, are 4 MiB each


@linux
def test_the_measure_of_memory_notices_the_whole_table() -> None:
    """The naive search, 512 MiB at K = 8192: it would fail the test above."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURED], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert 500 * MIB < int(result.stdout) < 1200 * MIB


# Time


def test_each_round_runs_each_once_and_begins_with_another() -> None:
    ran: list[str] = []
    works = [Work(lambda who=who: ran.append(who)) for who in "abc"]
    times = interleaved(works, CPU, rounds=4, seconds=60)
    assert "".join(ran) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert [len(each) for each in times] == [4, 4, 4]


def test_rounds_end_with_their_time_but_there_are_three() -> None:
    ran: list[int] = []
    assert len(interleaved([Work(lambda: ran.append(1))], CPU, rounds=50, seconds=0.0)[0]) == 3
    assert len(ran) == 4


# The tables

PEER, BARE = (contestant.name for contestant in COMPARISONS[0].contestants[1:])
SAME = {"comparison": COMPARISONS[0].title, "dtype": "float32"}
RESULTS = {
    "machine": {
        "device": "Chip X, 2 CPU cores",
        "threads": 2,
        "memory_gib": 24,
        "system": "Linux x86_64",
        "python": "3.12.1",
        "torch": "2.15.0",
        "vector-quantize-pytorch": "1.32.0",
        "date": "2026-01-02",
    },
    "codes": [
        {
            "K": 1024,
            "dtype": "bfloat16",
            "offset": 100,
            "companion": {"vectors": 1000, "wrong": 0, "ties": 2},
            "peer": {"vectors": 1000, "wrong": 123, "ties": 0},
        }
    ],
    "rows": [
        SAME | {"K": 1024, "who": "companion", "seconds": [0.02, 0.03, 0.022], "extra_mib": 51.2},
        SAME | {"K": 1024, "who": PEER, "seconds": [0.2, 0.25, 0.21], "extra_mib": 397.0},
        SAME | {"K": 1024, "who": BARE, "seconds": [0.016, 0.02, 0.016], "extra_mib": 0.0},
        SAME | {"K": 65536, "who": "companion", "seconds": [1.5, 1.6, 1.7], "extra_mib": 120.4},
        SAME | {"K": 65536, "who": PEER, "left_out": "needs about 28 GiB; 20 were free"},
        SAME | {"K": 65536, "who": BARE, "seconds": [1.0, 1.0, 1.25], "extra_mib": 0.0},
    ],
}


def test_the_tables_show_what_was_measured() -> None:
    text = report.tables(RESULTS)
    assert "Chip X, 2 CPU cores, 2 threads, 24 GiB of memory" in text
    assert "torch 2.15.0, vector-quantize-pytorch 1.32.0, 2026-01-02." in text
    assert "| 1024 | bfloat16 autocast | 100 | 0 | 2 | 12.3% |" in text
    assert "| 1,024 | 20.0 (22.0) | 200 (210) | 16.0 (16.0) | 0.10 (0.10–0.12) | 1.25 (1.25–1.50) | 51 | 397 |" in text
    assert "| 65,536 | 1,500 (1,600) | – | 1,000 (1,000) | – | 1.50 (1.36–1.60) | 120 | – |" in text
    assert f"Left out at K = 65,536: {PEER} (needs about 28 GiB; 20 were free)." in text
    assert f"at most 0.2 of {PEER}; it is 0.10, met." in text
    assert f"aimed at 2 of {BARE}; it is 1.25, met." in text
    assert "under 100 MiB; it is at most 120 (K = 65,536), **missed**." in text


def test_tables_and_numbers_are_written_and_the_rest_of_the_readme_stays(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "above\n<!-- cpu: written by make bench -->\nold\n<!-- /cpu -->\nbetween\n"
        "<!-- cuda: written by make bench -->\nkept\n<!-- /cuda -->\nbelow\n",
        encoding="utf-8",
    )
    command.write(RESULTS, "cpu", tmp_path)
    text = readme.read_text(encoding="utf-8")
    before, table, after = re.split(r"<!-- cpu.*-->\n|<!-- /cpu -->", text)
    assert before == "above\n"
    assert table == report.tables(RESULTS) + "\n"
    assert after == "\nbetween\n<!-- cuda: written by make bench -->\nkept\n<!-- /cuda -->\nbelow\n"
    assert json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8")) == RESULTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "cpu.json"]


def test_a_readme_without_the_place_for_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="readme: want the comments <!-- cpu"):
        report.with_tables("text", "cpu", "new")


def test_a_stop_leaves_the_tables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    readme = (ROOT / "benchmarks/README.md").read_bytes()
    monkeypatch.setattr(command, "measured", stopped)
    with pytest.raises(SystemExit, match="the tables are as they were"):
        command.main(["--device", "cpu"])
    assert (ROOT / "benchmarks/README.md").read_bytes() == readme


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_committed_tables_are_those_of_the_committed_numbers(device: str) -> None:
    readme = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    numbers = ROOT / f"benchmarks/{device}.json"
    new = report.tables(json.loads(numbers.read_text(encoding="utf-8"))) if numbers.is_file() else None
    assert new is None or report.with_tables(readme, device, new) == readme

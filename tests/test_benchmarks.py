"""The benchmark's gates, its measure of memory, and its tables. Times are not tested: a busy machine changes them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import command, folders, measure, report
from benchmarks.cases import COMPARISONS
from benchmarks.codes import OFFSETS, Verdict, check_codes, compare, demand_right, encoded_by, inputs
from benchmarks.comparison import Setup, Work, Wrong
from benchmarks.measure import MIB, extra_peak_alone, interleaved
from benchmarks.priors import (
    GRID,
    K,
    cached_against_uncached,
    companion_rq,
    demand_agreement,
    sampling,
    sampling_cached,
    sampling_mamba,
    sampling_uncached,
    spread,
    training,
)
from benchmarks.quantizers import companion_quantizer
from benchmarks.state_spaces import by_recurrence, chunked, fused_attention, plain_attention
from companion.backbones import Mamba2Mixer, MambaState
from companion.priors import MambaPrior, Prior, RQTransformer, TransformerPrior
from companion.priors.transformer import Cache

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
        assert compare(torch.tensor([0]), z, codebook) == expected
        assert compare(torch.tensor([1]), z, codebook) == Verdict(1, 0, 0)


def test_every_code_of_every_part_is_compared() -> None:
    z, codebook = inputs(16, 0, CPU, vectors=1025)  # two parts of 512 and one vector
    right = torch.cdist(z.double(), codebook.double()).argmin(1)
    assert compare(right, z, codebook) == Verdict(1025, 0, 0)
    assert compare((right + 1) % 16, z, codebook) == Verdict(1025, 1025, 0)


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


# The logits


def small_priors() -> list[Prior]:
    torch.manual_seed(0)
    return [
        TransformerPrior(16, (3, 4), dim=32, layers=2, heads=4).eval(),
        RQTransformer(16, (2, 3, 3), dim=32, layers=2, depth_layers=1, heads=4).eval(),
    ]


def small_mamba_prior() -> Prior:
    torch.manual_seed(0)
    return MambaPrior(16, (3, 4), dim=32, layers=2, head_dim=16).eval()


def test_the_gate_lets_logits_pass_that_a_cache_does_not_change() -> None:
    for prior in (*small_priors(), small_mamba_prior()):
        largest, difference = cached_against_uncached(prior)
        assert largest > 0.5
        assert difference < 1e-5  # another order of the sums
        demand_agreement(difference, "here")


def forgets_the_first(self: Cache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The wrong version: <sos> is no longer seen once there are two positions."""
    keys, values = append(self, keys, values)
    return (keys[:, :, 1:], values[:, :, 1:]) if keys.shape[2] > 1 else (keys, values)


def writes_behind(self: Cache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The wrong version: each position takes the place of the one before it, which is lost."""
    self.filled = max(self.filled - 1, 0)
    return append(self, keys, values)


append = Cache.append


@pytest.mark.parametrize("wrong", [forgets_the_first, writes_behind])
def test_the_gate_stops_a_cache_that_loses_a_position(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "append", wrong)
    for prior in small_priors():
        _, difference = cached_against_uncached(prior)
        assert difference > 1e-3
        with pytest.raises(Wrong, match=r"The logits of prior X with a cache differ .* Nothing was written"):
            demand_agreement(difference, "prior X")
    with pytest.raises(Wrong):
        demand_agreement(float("nan"), "prior X")


def test_the_gate_stops_a_state_that_loses_the_window_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Mamba2Mixer.step

    def forgets(self: Mamba2Mixer, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """The wrong version: the convolution sees the newest position alone."""
        return step(self, x, MambaState(torch.zeros_like(state.window), state.state))

    monkeypatch.setattr(Mamba2Mixer, "step", forgets)
    _, difference = cached_against_uncached(small_mamba_prior())
    assert difference > 1e-3
    with pytest.raises(Wrong):
        demand_agreement(difference, "MambaPrior")


def test_wrong_logits_end_the_command_and_leave_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "benchmarks/README.md").read_bytes()
    monkeypatch.setattr(Cache, "append", forgets_the_first)
    monkeypatch.setattr(command, "codes", lambda device, quick: [])
    monkeypatch.setattr(command, "about", lambda device: {})
    with pytest.raises(SystemExit, match=r"The logits of RQTransformer, 7 × 7 × 2 with a cache differ"):
        command.main(["--quick", "--device", "cpu"])
    assert (ROOT / "benchmarks/README.md").read_bytes() == readme


# The priors


def test_training_leaves_a_gradient_in_every_parameter_and_starts_from_none() -> None:
    work = training(companion_rq)(2, CPU, torch.float32)
    assert sum(parameter.numel() for parameter in work.parameters) == 4_949_760
    work()
    first = [parameter.grad.clone() for parameter in work.parameters]
    work()
    for gradient, parameter in zip(first, work.parameters, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_of_sampling_run_and_say_of_how_many_codes_their_time_is(dtype: torch.dtype) -> None:
    for work, parts in (
        (sampling(companion_rq)(2, CPU, dtype), 1),
        (sampling_cached(4, CPU, dtype), 4),
        (sampling_mamba(4, CPU, dtype), 4),
        (sampling_uncached(4, CPU, dtype), 4),
        (sampling_uncached(64, CPU, dtype), 16),
    ):
        work()
        assert work.parts == parts


def test_the_companion_draws_whole_tables() -> None:
    codes = companion_rq(CPU).sample(2)
    assert codes.shape == (2, *GRID)
    assert 0 <= int(codes.min()) < int(codes.max()) < K


def test_a_few_steps_stand_for_all_where_the_cost_grows_with_the_square() -> None:
    assert spread(49) == list(range(49))
    for length in (196, 784):
        chosen = spread(length)
        assert len(set(chosen)) == 16
        for power in (1, 2):
            mean = sum((i + 1) ** power for i in range(length)) / length
            assert sum((i + 1) ** power for i in chosen) / 16 == pytest.approx(mean, rel=0.01)


def test_the_peers_last_logit_sees_two_thirds_of_the_codes_before_it_and_code_0_costs_nothing() -> None:
    """What the README says of the peer, where it is installed."""
    package = pytest.importorskip("rq_transformer")
    torch.manual_seed(0)
    sizes = {"num_tokens": 8, "dim": 16, "spatial_layers": 1, "depth_layers": 1, "heads": 2, "dim_head": 8}
    peer = package.RQTransformer(max_spatial_seq_len=49, depth_seq_len=2, **sizes)
    vectors: list[Tensor] = []

    def embed(ids: Tensor) -> Tensor:
        vectors.append(torch.nn.functional.embedding(ids, peer.token_emb.weight).detach().requires_grad_())
        return vectors[-1]

    peer.token_emb.forward = embed
    codes = torch.zeros(1, 49, 2, dtype=torch.int64)
    codes[0, -1, -1] = 5  # the only one that counts: all others are 0
    peer(codes, return_loss=True).backward()
    assert int((vectors[0].grad.abs().sum(-1) > 0).sum()) == 65  # of 97
    assert peer(torch.zeros_like(codes), return_loss=True).isnan()


# State spaces


@pytest.mark.parametrize("pair", [(chunked, by_recurrence), (fused_attention, plain_attention)])
def test_what_is_timed_of_a_state_space_and_of_attention_gives_the_same_gradients(pair: tuple[Setup, Setup]) -> None:
    gradients = []
    for setup in pair:
        torch.manual_seed(0)
        work = setup(70, CPU, torch.float32)
        work()
        gradients.append([parameter.grad for parameter in work.parameters])
        assert all(gradient.abs().max() > 0 for gradient in gradients[-1])
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


# Memory

MEASURED = """
import sys, torch
from benchmarks.comparison import Work
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


def test_the_time_of_a_step_in_parts_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "timed", lambda work, device: 6.0)
    assert interleaved([Work(lambda: None, parts=3)], CPU, rounds=3, seconds=60) == [[2.0, 2.0, 2.0]]


def test_quick_leaves_out_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "about", lambda device: {})
    monkeypatch.setattr(command, "codes", lambda device, quick: [])
    monkeypatch.setattr(command, "logits", lambda device: [])
    monkeypatch.setattr(command, "rows", lambda number, comparison, *_: [comparison.title])
    everything = [comparison.title for comparison in COMPARISONS]
    slow = [title for title in everything if title.startswith("Sampling")]
    assert command.measured(CPU, quick=False)["rows"] == everything
    assert command.measured(CPU, quick=True)["rows"] == [title for title in everything if title not in slow]


# The tables

PEER, BARE = (contestant.name for contestant in COMPARISONS[0].contestants[1:])
SAME = {"comparison": COMPARISONS[0].title, "dtype": "float32"}
RQ = {"comparison": COMPARISONS[4].title, "dtype": "float32", "batch": 64}
CACHED = {"comparison": COMPARISONS[5].title, "dtype": "float32"}
ROWS = {"comparison": COMPARISONS[6].title, "dtype": "float32"}
RESULTS = {
    "machine": {
        "device": "Chip X, 2 CPU cores",
        "threads": 2,
        "memory_gib": 24,
        "system": "Linux x86_64",
        "python": "3.12.1",
        "torch": "2.15.0",
        "vector-quantize-pytorch": "1.32.0",
        "rq-transformer": "0.1.9",
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
    "logits": [{"prior": "RQTransformer, 7 × 7 × 2", "largest": 2.3, "difference": 1.7e-06}],
    "rows": [
        SAME | {"K": 1024, "who": "companion", "seconds": [0.02, 0.03, 0.022], "extra_mib": 51.2},
        SAME | {"K": 1024, "who": PEER, "seconds": [0.2, 0.25, 0.21], "extra_mib": 397.0},
        SAME | {"K": 1024, "who": BARE, "seconds": [0.016, 0.02, 0.016], "extra_mib": 0.0},
        SAME | {"K": 65536, "who": "companion", "seconds": [1.5, 1.6, 1.7], "extra_mib": 120.4},
        SAME | {"K": 65536, "who": PEER, "left_out": "needs about 28 GiB; 20 were free"},
        SAME | {"K": 65536, "who": BARE, "seconds": [1.0, 1.0, 1.25], "extra_mib": 0.0},
        RQ | {"who": "companion", "seconds": [0.4, 0.5, 0.44], "parameters": 4949760},
        RQ | {"who": "rq-transformer", "seconds": [20.0, 20.0, 22.0], "parameters": 4878336},
        CACHED | {"T": 49, "who": "cached", "seconds": [0.002, 0.002, 0.003]},
        CACHED | {"T": 49, "who": "uncached", "seconds": [0.02, 0.021, 0.02]},
        CACHED | {"T": 784, "who": "cached", "seconds": [0.05, 0.06, 0.05]},
        CACHED | {"T": 784, "who": "uncached", "seconds": [0.4, 0.4, 0.4]},
        *(
            ROWS | {"T": t, "who": who, "seconds": [start * (t / 1024) ** power] * 3, "extra_mib": t / 64}
            for t in (64, 1024, 2048, 4096)
            for who, start, power in (
                ("chunks", 0.1, 1),
                ("recurrence", 2.0, 1),
                ("fused attention", 0.05, 2),
                ("plain attention", 0.08, 2),
            )
            if (who, t) != ("plain attention", 4096)
        ),
        ROWS | {"T": 4096, "who": "plain attention", "left_out": "needs about 2 GiB; 1 were free"},
    ],
}


def test_the_tables_show_what_was_measured() -> None:
    text = report.tables(RESULTS)
    assert "Chip X, 2 CPU cores, 2 threads, 24 GiB of memory" in text
    assert "torch 2.15.0, vector-quantize-pytorch 1.32.0, rq-transformer 0.1.9, 2026-01-02." in text
    assert "| 1024 | bfloat16 autocast | 100 | 0 | 2 | 12.3% |" in text
    assert "| 1,024 | 20.0 (22.0) | 200 (210) | 16.0 (16.0) | 0.10 (0.10–0.12) | 1.25 (1.25–1.50) | 51 | 397 |" in text
    assert "| 65,536 | 1,500 (1,600) | – | 1,000 (1,000) | – | 1.50 (1.36–1.60) | 120 | – |" in text
    assert f"Left out at K = 65,536: {PEER} (needs about 28 GiB; 20 were free)." in text
    assert f"at most 0.2 of {PEER}; it is 0.10, met." in text
    assert f"aimed at 2 of {BARE}; it is 1.25, met." in text
    assert "under 100 MiB; it is at most 120 (K = 65,536), **missed**." in text
    assert "| RQTransformer, 7 × 7 × 2 | 2.30 | 1.7e-06 |" in text


def test_the_tables_of_the_priors_show_parameters_times_per_code_and_what_stands_for_all() -> None:
    text = report.tables(RESULTS)
    assert text.count(f"**{COMPARISONS[4].title}, float32**") == 1
    assert "| companion, parameters | rq-transformer, parameters |\n" in text
    assert "| 64 | 400 (440) | 20,000 (20,000) | 0.020 (0.020–0.025) | 4,949,760 | 4,878,336 |" in text
    assert "- Time at batch = 64: at most 0.04 of rq-transformer; it is 0.020, met." in text
    assert "| T | cached, ms per code | uncached, ms per code | cached / uncached |\n" in text
    assert "| 49 | 2.00 (2.00) | 20.0 (20.0) | 0.10 (0.10–0.15) |" in text
    assert "Uncached beyond T = 49: 16 of the T steps, spread evenly, stand for all." in text
    assert "- Time at T = 49: at most 0.33 of uncached; it is 0.10, met." in text
    assert "- Time at T = 784: at most 0.1 of uncached; it is 0.12, **missed**." in text


def test_the_table_of_rows_shows_all_four_and_with_which_power_their_time_grows() -> None:
    text = report.tables(RESULTS)
    line = next(line for line in text.splitlines() if line.startswith("| 1,024 | 100"))
    assert line.endswith("| 0.050 (0.050–0.050) | 2.00 (2.00–2.00) | 1.25 (1.25–1.25) | 16 | 16 | 16 | 16 |")
    assert (
        "Time grows as this power of T: chunks 1.00 (1,024 to 4,096), recurrence 1.00 (1,024 to 4,096), "
        "fused attention 2.00 (1,024 to 4,096), plain attention 2.00 (64 to 2,048)."
    ) in text
    assert "- Time at T = 1,024: at most 0.2 of recurrence; it is 0.050, met." in text


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


def test_parts_that_are_kept_are_measured_once_on_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    here = {"device": "a GPU", "date": "today"}
    monkeypatch.setattr(command, "about", lambda device: dict(here))
    monkeypatch.setattr(command, "codes", lambda device, quick: ran.append("codes") or [{"K": 1}])
    monkeypatch.setattr(command, "logits", lambda device: ran.append("logits") or [{"prior": "a"}])
    monkeypatch.setattr(command, "rows", lambda number, *_: ran.append(f"{number + 1}") or [{"row": number}])
    every = [str(number + 1) for number in range(len(COMPARISONS))]
    for part in ("codes", "2-float32"):
        command.main(["--device", "cpu", "--keep", str(tmp_path), "--part", part])
    assert ran == ["codes", "2"]
    here["date"] = "tomorrow"
    results = command.measured(CPU, quick=False, keep=tmp_path)
    assert sorted(ran) == sorted(["codes", "logits", *every])
    assert (results["codes"], results["logits"]) == ([{"K": 1}], [{"prior": "a"}])
    assert results["rows"] == [{"row": number} for number in range(len(COMPARISONS))]
    here["device"] = "another GPU"
    command.measured(CPU, quick=False, keep=tmp_path)
    assert len(ran) == 2 * (2 + len(COMPARISONS))


def test_a_part_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--keep", str(tmp_path), "--part", "9-float64"])
    assert "--part: got '9-float64', want --keep, and one of codes, logits, 1-float32" in capsys.readouterr().err


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


def test_the_contestants_of_folders_give_the_same_images(tmp_path: Path) -> None:
    folders.make(tmp_path / "made", images=12, side=16)
    ours = [x for x, _ in folders.from_cache(tmp_path / "made", tmp_path / "caches", side=8)]
    theirs = [x for x, _ in folders.from_folder(tmp_path / "made", side=8, workers=0)]
    assert torch.cat(ours).flatten(1).sum(1).sort().values.tolist() == pytest.approx(
        torch.cat(theirs).flatten(1).sum(1).sort().values.tolist(), rel=1e-4
    )


def test_the_table_of_folders_shows_the_quickest_round_and_the_spread_of_the_ratios() -> None:
    def rounds(*rates: float) -> list[dict[str, float]]:
        return [{"rate": rate, "start": 2.0, "own": 3 * MIB, "mapped": 4 * MIB} for rate in rates]

    found = {"images": 1000, "side": 64, "build": {"seconds": 5.0, "peak": 7 * MIB}}
    found |= {"cache": rounds(900, 1000), "folder": rounds(300, 250), "folder-2": rounds(500, 400)}
    text = folders.table(found, "The machine was busy.")
    assert "The cache has 12 MiB (0.2 GiB at 256×256). Making it took 5 s, 200 images a second, and at the peak" in text
    assert "| ImageFolder, no worker | 300 | 3.3 (3.0–4.0) | 2.0 | 3 | 4 |" in text
    assert "The machine was busy." in text
    report.with_tables((ROOT / "benchmarks/README.md").read_text(encoding="utf-8"), "folders", text)

"""The states of a run on disk: damaged, foreign, locked, and on a full disk."""

import os
import subprocess
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import noisy, train
from workers.fit_worker import Output, bits, objective

pytestmark = pytest.mark.cpu_only("the same to the bit after a stop")


def test_a_damaged_newest_state_falls_back_to_the_older_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    newest.write_bytes(newest.read_bytes()[:-500])
    (tmp_path / ".state-9999999999-999999.pt.1.tmp").write_bytes(b"half a sta")
    again = noisy(seed=9)
    assert train(again, run=tmp_path) == history
    assert bits(again) == bits(model)
    output = capsys.readouterr().out
    assert f"cannot read {newest.name}" in output
    assert f"going on from {older.name}" in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", older.name, newest.name]


def test_only_damaged_states_are_refused_and_not_started_over(tmp_path: Path) -> None:
    model = noisy()
    train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    older.write_bytes(b"")
    content = bytearray(newest.read_bytes())
    content[content.index(model.layers[0].weight.detach().numpy().tobytes()) + 7] ^= 1  # one bit of one weight
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)  # does not notice
    with pytest.raises(ValueError, match=f"cannot read any state.*{newest.name}.*{older.name}"):
        train(noisy(), run=tmp_path)


def test_every_flipped_bit_and_every_cut_of_a_state_is_noticed_or_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy()
    history = train(model, run=tmp_path)
    older, newest = sorted(tmp_path.glob("state*"))
    older.unlink()
    content, generator, noticed = newest.read_bytes(), np.random.default_rng(0), 0
    damages = [("bit", int(bit)) for bit in generator.integers(0, 8 * len(content), 60)]
    damages += [("cut", int(length)) for length in generator.integers(0, len(content), 10)]
    for kind, position in damages:
        damaged = bytearray(content if kind == "bit" else content[:position])
        if kind == "bit":
            damaged[position // 8] ^= 1 << position % 8
        newest.write_bytes(damaged)
        again = noisy(seed=9)
        try:
            rows = train(again, run=tmp_path)
        except ValueError:
            noticed += 1
        else:
            assert (rows, bits(again)) == (history, bits(model))
    assert noticed > 30


def test_a_state_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Trap(), tmp_path / "state-0000000001-000000.pt")
    with pytest.raises(ValueError, match="cannot read any state"):
        train(noisy(), run=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1], torch.zeros(2), {"step": 1, "rows": [], "model": {}}])
def test_what_has_the_name_of_a_state_and_is_none_is_refused_and_kept(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "state-0000000001-000000.pt"
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run: .*state-0000000001-000000.pt is no state that fit wrote; move it away"):
        train(noisy(), run=tmp_path)
    assert path.read_bytes() == before


def test_foreign_files_in_the_folder_of_a_run_are_left_alone(tmp_path: Path) -> None:
    names = ["state-zzz.pt", "state-1-1.pt", "best.pt", ".state-zzz.tmp", "state-0000000006-000001.pt.bak", "notes.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    half = tmp_path / ".state-0000000003-000000.pt.17.tmp"
    half.write_text("what a killed run leaves")
    train(noisy(), run=tmp_path, save_every=1)
    assert {name: (tmp_path / name).read_text() for name in names} == {name: name for name in names}
    assert not half.exists()
    assert len(list(tmp_path.glob("state-0*.pt"))) == 2


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    @wraps(objective)
    def second(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        with pytest.raises(ValueError, match="is in use"):
            train(noisy(), run=tmp_path)
        return objective(model, x, y)

    train(noisy(), epochs=1, run=tmp_path, objective=second)
    train(noisy(), epochs=1, run=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_reported_with_the_path_and_what_was_saved_stays(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from workers.fit_worker import Digits, Noisy
from companion import fit
options = dict(batch_size=8, run=sys.argv[1], progress=False, device="cpu")
fit(Noisy(), Digits(53, 1), epochs=1, **options)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    fit(Noisy(), Digits(53, 1), epochs=2, **options)
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, tmp_path, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(tmp_path / "state-0000000012-000002.pt") in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state-0000000006-000001.pt"]

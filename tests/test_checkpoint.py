import copy
import inspect
import json
import multiprocessing
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from workers import shard_worker
from workers.save_worker import encoder, save_for_ever

import companion
import companion.checkpoint as checkpoint
from companion.checkpoint import load, save, write_tensors
from companion.configured import CLASSES, REGISTERED, Configured


class Part(Configured, nn.Module):
    __module__ = "companion.of_this_test"  # as if it belonged to the library

    def __init__(self, width: int, *, bias: bool = True, scale: float = 0.5, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.sizes, self.scale = sizes, scale
        self.linear = nn.Linear(3, width, bias=bias)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Wide(Part):
    __module__ = "companion.of_this_test"

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(7, **options)
        self.name = name


class Whole(Configured, nn.Module):
    __module__ = "companion.of_this_test"

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second


class Readers(Configured, nn.Module):
    """A class of a notebook's reader: load cannot find it, and must not try."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)


def whole() -> Whole:
    model = Whole(Part(5, sizes=(1, 2)), Wide(scale=1e-3))
    model.first.count += 3
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = ({name: value.cpu() for name, value in one.state_dict().items()} for one in (a, b))  # load: on the CPU
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["companion"])


def rewrite(path: Path, **changes: Any) -> None:
    """The same file with another header."""
    about = header(path) | changes
    del about["sha256"]
    write_tensors(path, load_file(path), about)


# --- there and back


def test_load_rebuilds_what_was_saved(tmp_path: Path) -> None:
    model = whole()
    save(model, tmp_path / "deep" / "model.safetensors")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load(tmp_path / "deep" / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is Whole
    assert same(loaded, model)
    assert loaded.first.sizes == (1, 2)
    assert loaded.second.scale == 1e-3
    assert loaded.config == model.config
    assert not loaded.training


def test_the_file_is_one_safetensors_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    assert list(tmp_path.iterdir()) == [path]
    about = header(path)
    assert re.fullmatch("[0-9a-f]{64}", about.pop("sha256"))
    assert about == {
        "format": "companion",
        "version": 1,
        "companion": "0.1.0",
        "class": "Part",
        "config": {"width": 5, "bias": True, "scale": 0.5, "sizes": []},
    }
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_load_into_a_model_keeps_its_tensors_and_its_mode(tmp_path: Path) -> None:
    model, other = whole(), whole()
    save(model, tmp_path / "model.safetensors")
    weight = other.first.linear.weight
    assert load(tmp_path / "model.safetensors", other) is other
    assert same(other, model)
    assert other.first.linear.weight is weight
    assert other.training


def test_a_class_of_the_readers_own_needs_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for model, part in (
        (Readers(), "the file: Readers"),
        (nn.Linear(2, 2), "the file: Linear"),
        (Whole(Part(2), Readers()), "second of Whole: Readers"),
    ):
        save(model, path)
        with pytest.raises(ValueError, match=rf"cannot rebuild {part} is not a class of companion; give the model"):
            load(path)
        other = copy.deepcopy(model)
        nn.init.zeros_(next(other.parameters()))
        assert same(load(path, other), model)


def test_a_readers_class_is_never_taken_for_the_librarys_of_that_name(tmp_path: Path) -> None:
    readers = type("Part", (Readers,), {"__module__": "__main__"})
    save(readers(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Part is not a class of companion"):
        load(tmp_path / "model.safetensors")


@pytest.fixture
def own() -> Iterator[type[Configured]]:
    """A class that its reader registered, for this test."""
    before = dict(REGISTERED)
    yield companion.register(Readers)
    REGISTERED.clear()
    REGISTERED.update(before)


def test_a_registered_class_is_rebuilt_alone_and_as_a_part(tmp_path: Path, own: type[Configured]) -> None:
    path = tmp_path / "model.safetensors"
    for model in (own(width=3), Whole(Part(2), own(width=3)), Whole(Whole(own(3), own(1)), Wide())):
        save(model, path)
        again = load(path)
        assert same(again, model)
        assert again.config == model.config
    assert type(again.first.second) is own
    assert header(path)["config"]["first"]["config"]["second"] == {"class": "Readers", "config": {"width": 1}}


def test_a_file_of_a_registered_class_says_what_to_do_where_it_is_not(tmp_path: Path, own: type[Configured]) -> None:
    path, model = tmp_path / "model.safetensors", own(width=3)
    save(model, path)
    REGISTERED.clear()
    with pytest.raises(ValueError, match=r"names the class Readers for the file, .* import the module that registers"):
        load(path)
    other = Readers(width=3)  # weights go into a model whether its class is registered or not
    assert same(load(path, other), model)
    save(model, path)
    with pytest.raises(
        ValueError, match=r"Readers is not a class of companion; .* companion.register when it is saved"
    ):
        load(path)


def test_only_a_class_that_keeps_its_arguments_under_a_free_name_is_registered(own: type[Configured]) -> None:
    namesake = type("VQVAE", (Configured, nn.Module), {"__module__": "mine"})
    with pytest.raises(ValueError, match="kind: got a VQVAE, want another name: this library has a class"):
        companion.register(namesake)
    for wrong in (nn.Linear, Configured, Readers(), "Readers"):
        with pytest.raises(ValueError, match=r"kind: got .*, want a class that keeps its arguments: class Pooled"):
            companion.register(wrong)  # type: ignore[type-var]
    other = type("Readers", (Configured, nn.Module), {"__module__": "mine"})
    with pytest.raises(ValueError, match=r"kind: got a Readers, want another name: .*Readers is registered with that"):
        companion.register(other)
    again = type("Readers", (Readers,), {"__module__": Readers.__module__, "__qualname__": Readers.__qualname__})
    assert companion.register(again) is again  # a cell that is run again makes the class anew
    assert REGISTERED["Readers"] is again
    assert own is Readers


def test_a_registered_class_that_needs_numbers_to_be_made_is_saved_all_the_same(
    tmp_path: Path, own: type[Configured]
) -> None:
    class Scaled(Configured, nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.largest = float(self.linear.weight.detach().abs().max())  # a tensor without numbers has no largest
            self.steps = 0

    companion.register(Scaled)
    model = Scaled(3)
    model.steps = 7  # its own affair
    save(Whole(Part(2), model), tmp_path / "model.safetensors")
    assert same(load(tmp_path / "model.safetensors").second, model)
    save(model, tmp_path / "model.safetensors")
    assert same(load(tmp_path / "model.safetensors"), model)
    exchanged = own(3)
    exchanged.linear = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"model: got linear.weight of shape \(5, 3\), want shape \(3, 3\)"):
        save(exchanged, tmp_path / "model.safetensors")


def test_a_hostile_file_of_a_registered_class_costs_no_memory(tmp_path: Path, own: type[Configured]) -> None:
    path = tmp_path / "model.safetensors"
    save(own(width=3), path)
    rewrite(path, config={"width": 2**33})
    with pytest.raises(ValueError, match="width = 8589934592 for Readers, more than it has tensors for"):
        load(path)
    rewrite(path, config={"width": 2**24})
    with pytest.raises(ValueError, match="they ask for larger tensors than the file has"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_rebuilt_model_is_in_the_precision_and_on_the_device_that_was_asked_for(
    tmp_path: Path, dtype: torch.dtype, device: torch.device
) -> None:
    path, model = tmp_path / "model.safetensors", whole()
    save(model, path)
    again = load(path, device=device, dtype=dtype)
    assert {value.device.type for value in again.state_dict().values()} == {device.type}
    assert again.first.linear.weight.dtype == dtype
    assert again.first.count.dtype == torch.int64
    assert torch.equal(again.first.linear.weight, model.first.linear.weight.to(dtype))
    assert again.config == model.config
    half = whole().to(dtype)
    with pytest.raises(ValueError, match=r"does not fit Whole: first.linear.weight is torch.float32 in the file"):
        load(path, half)
    assert torch.equal(load(path, half, dtype=dtype).first.linear.weight, again.first.linear.weight)


def test_what_is_too_large_for_the_precision_asked_for_is_named(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", Part(5)
    with torch.no_grad():
        model.linear.bias[0] = 1e5
    save(model, path)
    with pytest.raises(ValueError, match=r"dtype: got torch.float16, in which linear.bias of .* would be infinite"):
        load(path, dtype=torch.float16)
    assert load(path, dtype=torch.bfloat16).linear.bias[0] == torch.tensor(1e5).bfloat16()
    with pytest.raises(ValueError, match=r"dtype: got torch.int64, want one of torch.float16, torch.bfloat16"):
        load(path, dtype=torch.int64)


@pytest.mark.cpu_only("about files: a state dict comes to the CPU before it is written")
def test_tied_tensors_and_views_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tied, other = whole(), whole()
    for model in (tied, other):
        model.second = Part(5)
        model.second.linear.weight = model.first.linear.weight
    tied.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)  # not contiguous
    other.register_buffer("view", torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(tied.state_dict(), path)  # the plain way refuses
    save(tied, path)
    assert same(load(path, other), tied)
    assert other.second.linear.weight is other.first.linear.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(3, 3).to(dtype)
    save(model, tmp_path / "model.safetensors")
    assert same(load(tmp_path / "model.safetensors", nn.Linear(3, 3).to(dtype)), model)


# --- whole or absent


def test_an_interrupted_save_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    before = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, step, broken)
            with pytest.raises(OSError, match="no space"):
                save(Part(6), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync folder" if is_folder else f"sync {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", recorded)
    monkeypatch.setattr(checkpoint.os, "replace", renamed)
    save(Part(5), path)
    assert events == [f"sync {path.stat().st_size} bytes", "rename", "sync folder"][: 3 if os.name == "posix" else 2]


def test_killed_while_it_saves_it_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn" if sys.platform != "linux" else "forkserver")
    context.set_forkserver_preload(["companion"])
    seen = set()
    for _ in range(8):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=save_for_ever, args=(str(tmp_path), there))
        worker.start()
        there.close()
        while here.recv() < 1:
            pass
        worker.kill()
        worker.join()
        here.close()
        value = load(tmp_path / "model.safetensors").to_latent.bias[0].item()
        assert same(load(tmp_path / "model.safetensors"), encoder(value))
        kept = companion.CodeSet.load(tmp_path / "codes.safetensors").codes
        assert torch.equal(kept, torch.full_like(kept, int(kept[0, 0, 0])))
        seen.add(value)
    assert seen <= {1.0, 2.0}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_the_error_of_a_full_disk_names_the_path_and_the_older_file_stays(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, torch
import companion
model, path = companion.Encoder(4, hidden=4), sys.argv[1]
companion.save(model, path)
before = open(path, "rb").read()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    companion.save(model, path)
except OSError as error:
    print(error)
assert open(path, "rb").read() == before
"""
    path = tmp_path / "m.safetensors"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout
    assert list(tmp_path.iterdir()) == [path]


# --- refused


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 20, 9):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"path: .*model.safetensors is truncated or damaged"):
            load(path)
    for length in (8, 3, 0):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"path: .*model.safetensors is no safetensors file"):
            load(path)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for module in (torch, pickle):
        with path.open("wb") as file:
            getattr(module, "save", pickle.dump)(Trap(tmp_path / "ran"), file)
        with pytest.raises(ValueError, match=r"path: .* is a pickle"):
            load(path)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"hello, world", b"\x00" * 100, b"\xff" * 100, b"\x89PNG\r\n\x1a\n" + b"x" * 99])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"path: .* is no safetensors file"):
        load(tmp_path / "model.safetensors")


@pytest.mark.cpu_only("about files: a state dict comes to the CPU before it is written")
@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"companion": "{"}, {"companion": "3"}, {"companion": '{"format": "other"}'}],
)
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Without a model it cannot say what to make; with one, what claims to be ours has to be it."""
    path = tmp_path / "model.safetensors"
    save_file(nn.Linear(2, 2).cpu().state_dict(), path, metadata=metadata)
    claims = "companion" in (metadata or {})
    way = "" if claims else r"; load\(path, model\) reads the weights of another program"
    with pytest.raises(ValueError, match=rf"is a safetensors file that companion.save did not write{way}$"):
        load(path)
    if claims:
        with pytest.raises(ValueError, match=r"is a safetensors file that companion.save did not write"):
            load(path, nn.Linear(2, 2))


def test_a_file_of_another_program_is_read_into_a_model_that_it_fits_and_said_to_be_one(tmp_path: Path) -> None:
    path, there, here = tmp_path / "model.safetensors", Part(5), Part(5)
    there.count += 3
    save_file(there.cpu().state_dict(), path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"of another program: it has no checksum and no config") as caught:
        assert load(path, here) is here
    assert same(here, there)
    assert caught[0].filename == __file__
    with (
        pytest.warns(UserWarning, match="of another program"),
        pytest.raises(ValueError, match=r"linear.weight is \(5, 3\) in the file and \(6, 3\)"),
    ):
        load(path, Part(6))
    save_file({"linear.weight": torch.full((5, 3), torch.nan, device="cpu")}, path)
    with (
        pytest.warns(UserWarning, match="of another program"),
        pytest.raises(ValueError, match=r"missing from the file: count, linear.bias"),
    ):
        load(path, here)
    broken = there.cpu().state_dict() | {"linear.bias": torch.full((5,), torch.nan, device="cpu")}
    save_file(broken, path)
    with (
        pytest.warns(UserWarning, match="of another program"),
        pytest.raises(ValueError, match=r"NaN or infinity in linear.bias"),
    ):
        load(path, here)
    assert same(here, there)
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in there.state_dict().items()}, path
    )
    with pytest.warns(UserWarning, match="of another program"):
        load(path, here, dtype=torch.float32)
    assert torch.equal(here.linear.weight.cpu(), there.linear.weight.half().float())


def test_a_newer_format_an_unknown_class_and_foreign_arguments_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    rewrite(path, version=2, companion="9.1")
    with pytest.raises(ValueError, match=r"format version 2 \(written by companion 9.1\).*up to 1: install a newer"):
        load(path, Part(5))
    rewrite(path, version=1, **{"class": "Unheard"})
    with pytest.raises(ValueError, match=r"names the class Unheard for the file, which is none of .*Part.*Whole"):
        load(path)
    rewrite(path, **{"class": "os.system", "config": {"command": "true"}})
    with pytest.raises(ValueError, match=r"names the class os\.system"):
        load(path)
    rewrite(path, **{"class": "Part", "config": {"width": 5, "depth": 2}})
    with pytest.raises(ValueError, match=r"gives Part arguments that it does not take: .*depth"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.safetensors")


def test_a_state_that_does_not_fit_names_its_tensors_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    other = Part(6)
    other.linear.bias = None
    other.count = other.count.to(torch.int32)
    other.first = nn.Parameter(torch.zeros(2))
    other.second = nn.Parameter(torch.zeros(2))
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="does not fit Part") as error:
        load(path, other)
    assert same(other, before)
    for part in (
        "linear.weight is (5, 3) in the file and (6, 3) in the model",
        "count is torch.int64 in the file and torch.int32 in the model",
        "missing from the file: first, second",
        "not in the model: linear.bias",
    ):
        assert part in str(error.value)


def test_load_state_dict_alone_would_leave_half_of_it_loaded() -> None:
    model, state = Part(5), Part(5).state_dict()
    before = copy.deepcopy(model)
    state["linear.bias"] = torch.zeros(4)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state)
    assert not same(model, before)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: got .*model.pt, want a name that ends in .safetensors"):
        save(Part(5), tmp_path / "model.pt")

    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

    with pytest.raises(ValueError, match=r"model: 0._extra_state in its state is no tensor"):
        save(nn.Sequential(Extra(2, 2)), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="path: got 3, want a string or a path"):
        save(Part(5), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: got an OrderedDict, want a module"):
        save(Part(5).state_dict(), tmp_path / "model.safetensors")  # type: ignore[arg-type]
    part = Part(5)
    nn.init.constant_(part.linear.weight, torch.nan)
    with pytest.raises(ValueError, match=r"model: got NaN in linear\.weight, want numbers"):
        save(part, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_what_is_compiled_or_wrapped_is_saved_under_its_own_name(tmp_path: Path) -> None:
    model, path = Part(5), tmp_path / "model.safetensors"
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        save(wrapped, path)  # type: ignore[arg-type]
        assert same(load(path), model)
        other = Part(5)
        wrapper = torch.compile(other)
        assert load(path, wrapper) is wrapper  # type: ignore[call-overload]
        assert same(other, model)


def test_parts_that_are_compiled_change_neither_the_file_nor_the_identity(tmp_path: Path) -> None:
    def tokenizer() -> companion.VQVAE:
        torch.manual_seed(0)
        return companion.VQVAE(companion.Encoder(8), companion.VectorQuantizer(4, 2), companion.Decoder(8))

    plain, compiled, path = tokenizer(), tokenizer(), tmp_path / "m.safetensors"
    compiled.encoder = torch.compile(compiled.encoder)  # type: ignore[assignment]
    assert not same(compiled, plain)  # their names differ
    save(compiled, path)
    assert same(load(path), plain)
    assert load(path).config == plain.config == compiled.config
    assert companion.identity(compiled) == companion.identity(plain)
    nn.init.zeros_(next(compiled.encoder.parameters()))
    load(path, compiled)
    assert companion.identity(compiled) == companion.identity(plain)


def test_a_model_in_shards_is_saved_in_one_piece(tmp_path: Path) -> None:
    code = """
import sys, torch, companion
from torch.distributed import device_mesh, fsdp
store, path = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
model = companion.Autoencoder(companion.Encoder(4, hidden=4), companion.Decoder(4, hidden=4))
before = {name: value.clone() for name, value in model.state_dict().items()}
mesh = device_mesh.init_device_mesh("cpu", (1,))
fsdp.fully_shard(model.encoder, mesh=mesh)
fsdp.fully_shard(model, mesh=mesh)
assert type(model) is not companion.Autoencoder
companion.save(model, path)
again = companion.load(path)
assert type(again) is companion.Autoencoder
assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
torch.distributed.destroy_process_group()
print("saved")
"""
    arguments = [(tmp_path / "store").as_uri(), tmp_path / "m.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout == "saved\n", done.stderr


@pytest.mark.cpu_only("several processes, joined by gloo")
def test_a_model_that_two_processes_train_in_shards_is_saved_as_one_process_trains_it(tmp_path: Path) -> None:
    """One process has the whole batch, each of the two a half. Both codebooks and all weights moved."""
    world, out, worker = 2, tmp_path / "model", Path(shard_worker.__file__)
    environment = os.environ | {"PYTHONPATH": str(worker.parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, worker, out, str(rank), str(world)], env=environment) for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world
    first, second = (load(f"{out}.{rank}.safetensors") for rank in range(world))
    alone = shard_worker.tokenizer()
    shard_worker.train(alone, 0, 1)
    assert type(first) is type(alone)
    assert same(first, second)
    untrained = shard_worker.tokenizer().state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value)
        assert not torch.equal(value, untrained[name]), name


def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: .* is a folder, want a file"):
        load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ValueError, match=r"path: .*pipe.safetensors is no regular file, want a file"):
            load(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match=r"path: got \[1\], want a string or a path"):
        load([1])  # type: ignore[call-overload]


# --- damaged, or not what it says


def test_every_flipped_bit_and_every_cut_of_a_model_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    model, path = whole(), tmp_path / "model.safetensors"
    save(model, path)
    content, generator, noticed = path.read_bytes(), np.random.default_rng(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a bit in the word "sha256" leaves a file that carries no checksum, and says so
        for bit in generator.integers(0, 8 * len(content), 300):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                again = load(path)
            except ValueError:
                noticed += 1
            else:
                assert same(again, model)
                assert again.config == model.config
    assert noticed > 290
    for length in {*generator.integers(0, len(content), 50).tolist(), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"path: .* is (truncated or damaged|no safetensors file)"):
            load(path)


def test_without_the_checksum_a_flipped_bit_would_load(tmp_path: Path) -> None:
    model, path = Part(5), tmp_path / "model.safetensors"
    about = {"format": "companion", "version": 1, "class": "Part", "config": model.config}
    save_file(model.cpu().state_dict(), path, metadata={"companion": json.dumps(about)})  # as files used to be
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="model.safetensors carries no checksum.*loaded and saved again it will"):
        again = load(path)
    assert not same(again, model)
    save(again, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load(path), again)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    path = tmp_path / "model.safetensors"
    save(whole(), path)
    tensors = load_file(path)
    tensors["second.linear.weight"][1, 2] = value
    about = header(path)
    del about["sha256"]
    write_tensors(path, tensors, about)
    before = whole()
    other = copy.deepcopy(before)
    for load_it in (lambda: load(path), lambda: load(path, other)):
        with pytest.raises(ValueError, match=r"has NaN or infinity in second\.linear\.weight, want finite"):
            load_it()
    assert same(other, before)


def test_an_infinity_that_is_the_models_own_is_none_of_the_files(tmp_path: Path) -> None:
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.tensor([0, -torch.inf]))
    save(masked, tmp_path / "m.safetensors")
    other = nn.Linear(2, 2)
    other.register_buffer("mask", torch.tensor([0, -torch.inf]))
    assert same(load(tmp_path / "m.safetensors", other), masked)


def test_a_model_made_otherwise_is_not_loaded_into_although_its_tensors_fit(tmp_path: Path) -> None:
    def stack(levels: list[int], weight: float = 1.0) -> companion.VQVAE:
        return companion.VQVAE(
            companion.Encoder(8, hidden=4),
            companion.FiniteScalarQuantizer(levels),
            companion.Decoder(8, hidden=4),
            quantizer_weight=weight,
        )

    path = tmp_path / "m.safetensors"
    model, crossed = stack([2, 8]), stack([8, 2], 0.5)
    save(model, path)
    crossed.load_state_dict(load_file(path))  # the plain way crosses them: nothing in the tensors tells
    before = copy.deepcopy(crossed)
    differ = r"quantizer\.levels is \[2, 8\] in the file and \[8, 2\] in the model; quantizer_weight is 1.0 .* 0.5"
    with pytest.raises(ValueError, match=differ):
        load(path, crossed)
    assert same(crossed, before)
    load(path, stack([2, 8]))
    rewrite(path, config={key: value for key, value in header(path)["config"].items() if key != "quantizer_weight"})
    load(path, stack([2, 8], 0.5))  # of an older version, without that argument
    with pytest.raises(ValueError, match=r"quantizer is a FiniteScalarQuantizer in the file and a VectorQuantizer"):
        checkpoint_differences(path, companion.VectorQuantizer(4, 2))


def checkpoint_differences(path: Path, quantizer: nn.Module) -> None:
    """A model of other classes whose tensors happen to fit: made by giving the file's tensors to it by hand."""
    model = companion.VQVAE(companion.Encoder(8, hidden=4), quantizer, companion.Decoder(8, hidden=4))
    about = header(path)
    del about["sha256"]
    write_tensors(path, {name: value.cpu() for name, value in model.state_dict().items()}, about)
    load(path, model)


def nested(depth: int) -> dict[str, Any]:
    about: dict[str, Any] = {"class": "Part", "config": {"width": 5}}
    for _ in range(depth):
        about = {"class": "Whole", "config": {"first": about, "second": 1}}
    return about


def part(**config: Any) -> dict[str, Any]:
    return {"class": "Part", "config": {"width": 5} | config}


def library(name: str, **config: Any) -> dict[str, Any]:
    return {"class": name, "config": config}


HOSTILE: dict[str, Any] = {
    "many codes": library("VectorQuantizer", num_codes=300_000_000, dim=64),
    "ten to the twelve codes": library("VectorQuantizer", num_codes=10**12, dim=64),
    "a number without end": library("VectorQuantizer", num_codes=10**400, dim=64),
    "a buffer outside the file": library("MaskedConv2d", in_channels=0, out_channels=1, kernel=3999, centre=True),
    "many layers": library("TransformerPrior", num_codes=4, grid=[2, 2], dim=2, heads=1, layers=20_000),
    "many blocks": library("ResNetEncoder", num_blocks=10_000_000),
    "a large prime": library("ResNetEncoder", factor=2**31 - 1),
    "a wide grid": library("TransformerPrior", num_codes=4, grid=[10**6, 10**6], dim=2, heads=1, layers=1),
    "a long grid": library("TransformerPrior", num_codes=4, grid=[1] * 100_000, dim=2, heads=1, layers=1),
    "long levels": library("FiniteScalarQuantizer", levels=[2] * 100_000),
    "levels past 64 bits": library("FiniteScalarQuantizer", levels=[2] * 900),
    "modules in modules": nested(300),
    "lists in lists": part(sizes=json.loads("[" * 500 + "]" * 500)),
    "no class": {"class": None, "config": {}},
    "a class that is a list": {"class": ["Part"], "config": {}},
    "a class that is a number": {"class": 3, "config": {"width": 5}},
    "a config that is a list": {"class": "Part", "config": [1]},
    "a config that is a number": {"class": "Part", "config": 3},
    "a width that is a string": part(width="5"),
    "a width that is a list": part(width=[5]),
    "a width that is a module": part(width=part()),
    "a width that is nothing": part(width=None),
    "a negative width": part(width=-5),
    "a fractional width": part(width=5.5),
    "an argument without a name": part(**{"": 3}),
    "no argument": {"class": "Part", "config": {}},
    "a module within that has no class": library("Autoencoder", encoder={}, decoder={"config": {}}),
    "a version that is a string": part() | {"version": "1"},
    "a version below the first": part() | {"version": 0},
    "a version that is a list": part() | {"version": [1]},
}


def hostile(path: Path, about: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    write_tensors(path, tensors or {}, {"format": "companion", "version": 1} | about)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_with_one_kind_of_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.safetensors"
    for tensors in ({}, Part(5).cpu().state_dict()):
        hostile(path, HOSTILE[name], tensors)
        before, place = torch.get_rng_state(), torch.zeros(1).device
        with pytest.raises(ValueError, match=r"^path: .*m\.safetensors "):
            load(path)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.is_grad_enabled()
        assert torch.zeros(1).device == place


@pytest.mark.parametrize("header", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '"' + "x" * 2**21 + '"', "\x00"])
def test_a_header_that_is_no_sensible_json_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({}, path, metadata={"companion": header})
    with pytest.raises(ValueError, match=r"^path: .* that companion.save did not write"):
        load(path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs a limit on memory, and to know what is used")
def test_hostile_headers_cost_no_memory(tmp_path: Path) -> None:
    """In a process that may take 256 MB more than it has; 3e8 codes of 64 numbers would need 77 GB."""
    files = [tmp_path / f"{i}.safetensors" for i in range(len(HOSTILE))]
    for path, about in zip(files, HOSTILE.values(), strict=True):
        hostile(path, about)  # 208 bytes and a little more
    code = """
import resource, sys
import companion
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        companion.load(path)
    except ValueError as error:
        print("refused")
try:
    bytearray(2**29)
except MemoryError:
    print("limited")
"""
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["refused"] * len(files) + ["limited"], done.stderr


def test_the_librarys_models_are_rebuilt_within_the_bounds(tmp_path: Path) -> None:
    path, likelihoods = tmp_path / "m.safetensors", companion.likelihoods
    for model in (
        companion.VQVAE(companion.Encoder(8), companion.GumbelQuantizer(4, 2), companion.Decoder(8)),
        companion.ProjectedQuantizer(companion.EMAVectorQuantizer(4, 2, cosine=True, seed=2**63), 8),
        companion.ResidualQuantizer([companion.VectorQuantizer(4, 2) for _ in range(8)], depth_dropout=0.5),
        companion.FiniteScalarQuantizer([8, 5, 5]),
        companion.TransformerPrior(4, (2, 3), layers=12, dim=4, heads=2, num_classes=3, tokenizer="a"),
        companion.RQTransformer(4, (2, 3, 2), dim=4, heads=2),
        companion.PixelCNN(4, (2, 3)),
        companion.MambaPrior(4, (2, 3), layers=12, dim=4, head_dim=2),
        companion.VQVAE(
            companion.Mamba2Encoder(1, 4, hidden=8, head_dim=4, kernel=6),
            companion.VectorQuantizer(4, 4),
            companion.BidirectionalMamba2Decoder(1, 4, hidden=8, head_dim=4, last_conv=True),
        ),
        companion.Classifier(),
        companion.VAE(companion.Encoder(8), companion.Decoder(4), likelihoods.Bernoulli()),
        companion.AutoregressiveDecoder(companion.ResNetDecoder(32, 2)),
        companion.Autoencoder(companion.ResNetEncoder(factor=(2, 8)), companion.ResNetDecoder(factor=(2, 8))),
    ):
        save(model, path)
        again = load(path)
        assert same(again, model)
        assert again.config == model.config
        for name, buffer in model.named_buffers():  # those too that are not in the file
            assert torch.equal(again.get_buffer(name), buffer.cpu())


# --- Configured


def test_config_holds_every_argument_as_the_outermost_class_got_it() -> None:
    assert Part(np.int64(5), scale=np.float32(0.5)).config == {"width": 5, "bias": True, "scale": 0.5, "sizes": []}
    assert Wide("w", bias=False).config == {"name": "w", "bias": False}
    assert Whole(Part(2), nn.Identity()).config == {
        "first": {"class": "Part", "config": Part(2).config},
        "second": {"class": "Identity", "config": None},
    }
    assert list(inspect.signature(Part).parameters) == ["width", "bias", "scale", "sizes"]


def test_config_survives_copies_and_pickles() -> None:
    model = Readers(width=9)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == {"width": 9}
        assert other.config is not model.config


def test_a_later_change_of_the_callers_list_does_not_reach_the_config() -> None:
    class Copies(Configured, nn.Module):
        def __init__(self, sizes: list[int], others: list[int]) -> None:
            super().__init__()
            self.sizes = tuple(sizes)  # keeps it, and of the others nothing

    sizes = [1, 2]
    model = Copies(sizes, sizes)
    sizes.append(3)
    assert model.config == {"sizes": [1, 2], "others": [1, 2]}


def test_the_config_is_that_of_the_model_as_it_is_now(tmp_path: Path) -> None:
    model = whole()
    model.first.scale, model.second.name = 9.0, "new"
    model.first.sizes = (3,)
    model.second = Part(4, bias=False)
    assert model.config["first"]["config"] == {"width": 5, "bias": True, "scale": 9.0, "sizes": [3]}
    assert model.config["second"] == {"class": "Part", "config": model.second.config}
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.first.scale == 9
    assert again.config == model.config
    assert same(again, model)
    moved = copy.deepcopy(model)
    moved.first.scale = 1.0
    assert (moved.config["first"]["config"]["scale"], model.first.config["scale"]) == (1, 9)
    with pytest.raises(ValueError, match=r"scale: got a float32 tensor of shape .*, want a number"):
        model.first.scale = torch.ones(())  # type: ignore[assignment]
    assert model.first.scale == 9


def test_an_attribute_that_is_no_argument_although_it_has_its_name_stays_out_of_the_config() -> None:
    class Anneals(Configured, nn.Module):
        levels: torch.Tensor

        def __init__(self, temperature: float, levels: tuple[int, ...], depth: int | None = None) -> None:
            super().__init__()
            self.start, self.age, self.depth = temperature, 0, depth or 3
            self.register_buffer("levels", torch.tensor(levels))

        @property
        def temperature(self) -> float:
            return self.start * 0.5**self.age

    model = Anneals(2.0, (3, 4))
    model.age += 1
    assert model.temperature == 1
    assert model.config == {"temperature": 2.0, "levels": [3, 4], "depth": None}


def test_the_librarys_models_are_saved_as_they_are_and_not_as_they_were_built(tmp_path: Path) -> None:
    def tokenizer() -> companion.VQVAE:
        depths = [companion.EMAVectorQuantizer(4, 2) for _ in range(2)]
        quantizer = companion.ResidualQuantizer(depths)
        return companion.VQVAE(companion.Encoder(8, hidden=4), quantizer, companion.Decoder(8, hidden=4))

    model, before = tokenizer(), tokenizer().config
    model.quantizer_weight = 9
    model.quantizer.quantizers[1].decay = 0.5
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert (again.quantizer_weight, again.quantizer.quantizers[1].decay) == (9, 0.5)
    model.quantizer = companion.FiniteScalarQuantizer([3, 5])
    save(model, tmp_path / "m.safetensors")
    assert isinstance(load(tmp_path / "m.safetensors").quantizer, companion.FiniteScalarQuantizer)
    shared = companion.ResidualQuantizer(companion.VectorQuantizer(4, 2), depth=3)
    shared.quantizers[0].commitment_weight = 0.5
    save(shared, tmp_path / "q.safetensors")
    assert load(tmp_path / "q.safetensors").quantizers[0].commitment_weight == 0.5
    assert tokenizer().config == before != model.config


@pytest.mark.parametrize("value", [torch.zeros(2), lambda: 0, {"a": 1}, [1, {2}], object()])
def test_an_argument_that_json_cannot_hold_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"^scale: got .+, want a number, string"):
        Part(2, scale=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: companion.EMAVectorQuantizer(4, 2, init=torch.zeros(4, 2)), "init: got a float32 tensor .* 'uniform'"),
        (lambda: companion.VectorQuantizer(4, 2, estimator=len), "estimator: got .* want one of 'straight-through'"),
        (lambda: companion.likelihoods.Gaussian(torch.tensor(0.1)), "scale: got .* want a finite number"),
        (lambda: companion.Autoencoder(companion.Encoder, companion.Decoder(2)), "encoder: got .* want a torch.nn.Mod"),
        (lambda: companion.Encoder({"latent_dim": 2}), "latent_dim: got .* want a whole number"),
        (lambda: companion.ResidualQuantizer([object()], depth=2), "quantizers: got an? object, want a number, string"),
        # torch says: empty() received …
        (lambda: Part({"width": 2}), "width: got {'width': 2}, want a number, string"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_the_check_of_its_argument_where_there_is_one(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: companion.Encoder(2, 1), r"Encoder\.__init__\(\) takes 2 positional arguments but 3 were given"),
        (lambda: companion.Encoder(), r"Encoder\.__init__\(\) missing 1 required positional argument: 'latent_dim'"),
        (lambda: Part(2, depth=3), r"Part\.__init__\(\) got an unexpected keyword argument 'depth'"),
    ],
)
def test_a_wrong_call_raises_pythons_own_message(make, says) -> None:
    with pytest.raises(TypeError, match=says) as caught:
        make()
    assert caught.value.__context__ is None


def test_arguments_without_a_name_are_refused() -> None:
    class Many(Configured, nn.Module):
        def __init__(self, *parts: int) -> None:
            super().__init__()

    class Plain(Configured, nn.Linear):
        pass

    assert Plain(2, 2).config == {}  # nothing of its own to remember
    with pytest.raises(ValueError, match=r"\*parts: got \(1, 2\), want every argument to have a name"):
        Many(1, 2)
    assert Many().config == {}


def test_two_classes_of_one_name_in_the_library_are_refused_and_a_reload_is_not() -> None:
    reloaded = type("Part", (Configured,), {"__module__": "companion.of_this_test"})
    try:
        with pytest.raises(TypeError, match=r"Part is the name of a class in companion.of_this_test already"):
            type("Part", (Configured,), {"__module__": "companion.elsewhere"})
        type("Part", (Configured,), {"__module__": "companion.course.checks"})  # not of the library
        assert CLASSES["Part"] is reloaded
    finally:
        CLASSES["Part"] = Part


def test_header_length_says_nothing_about_pickles(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(Part(5), path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    padded = content[8 : 8 + length] + b" " * (-(length + 128) % 256)  # a length whose first byte is 0x80, a pickle's
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + content[8 + length :])
    assert path.read_bytes()[0] == 0x80
    assert type(load(path)) is Part
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is truncated"):
        load(path)


def test_a_model_without_numbers_is_refused_to_load_into(tmp_path: Path) -> None:
    """torch copies nothing into a tensor on the device meta, and says so in a warning at best."""
    companion.save(companion.VectorQuantizer(4, 2), tmp_path / "q.safetensors")
    with torch.device("meta"):
        hollow = companion.VectorQuantizer(4, 2)
    with pytest.raises(ValueError, match=r"model: got tensors on the device meta \(codebook, …\)"):
        companion.load(tmp_path / "q.safetensors", hollow)


def test_code_that_was_put_onto_a_part_is_not_saved_and_said(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def auto() -> companion.Autoencoder:
        return companion.Autoencoder(
            companion.Encoder(2, hidden=2, image_size=8), companion.Decoder(2, hidden=2, image_size=8)
        )

    replaced, hooked, early = auto(), auto(), auto()
    replaced.decoder.forward = lambda z: torch.zeros(len(z), 1, 8, 8)  # type: ignore[method-assign]
    hooked.encoder.register_forward_hook(lambda module, given, made: made * 0)
    early.register_forward_pre_hook(lambda module, given: None)
    for model, says in (
        (replaced, "decoder.forward"),
        (hooked, "a forward hook of encoder"),
        (early, "a forward hook of the model"),
    ):
        with pytest.warns(UserWarning, match=f"model: got {says} put there by hand, which a file cannot hold"):
            save(model, path)
    normed = nn.utils.weight_norm(nn.Linear(2, 2))  # torch keeps this one as a hook
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save(auto(), path)
        save(normed, tmp_path / "normed.safetensors")
    assert isinstance(load(path), companion.Autoencoder)

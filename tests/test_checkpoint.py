import copy
import inspect
import json
import os
import pickle
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import companion.checkpoint as checkpoint
from companion.checkpoint import Configured, load, save


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
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["companion"])


def rewrite(path: Path, **changes: Any) -> None:
    """The same file with another header."""
    about = header(path) | changes
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"companion": json.dumps(about)})


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
    assert header(path) == {
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


@pytest.mark.cpu_only("about files: a state dict comes to the CPU before it is written")
def test_tied_tensors_and_views_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tied, other = whole(), whole()
    for model in (tied, other):
        model.second.linear = nn.Linear(3, 5)
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
    path = tmp_path / "model.safetensors"
    save_file(nn.Linear(2, 2).state_dict(), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"is a safetensors file that companion.save did not write"):
        load(path, nn.Linear(2, 2))


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
    assert list(tmp_path.iterdir()) == []


# --- Configured


def test_config_holds_every_argument_as_the_outermost_class_got_it() -> None:
    assert Part(np.int64(5)).config == {"width": 5, "bias": True, "scale": 0.5, "sizes": []}
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


def test_a_later_change_of_an_argument_does_not_reach_the_config() -> None:
    sizes = [1, 2]
    model = Part(2, sizes=sizes)  # type: ignore[arg-type]
    sizes.append(3)
    assert model.config["sizes"] == [1, 2]


@pytest.mark.parametrize("value", [torch.zeros(2), lambda: 0, {"a": 1}, [1, {2}], object()])
def test_an_argument_that_json_cannot_hold_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"^scale: got a \w+, want a number, string"):
        Part(2, scale=value)  # type: ignore[arg-type]


def test_arguments_without_a_name_are_refused() -> None:
    class Many(Configured, nn.Module):
        def __init__(self, *parts: int) -> None:
            super().__init__()

    with pytest.raises(ValueError, match=r"\*parts: got \(1, 2\), want every argument to have a name"):
        Many(1, 2)
    assert Many().config == {}


def test_two_classes_of_one_name_in_the_library_are_refused_and_a_reload_is_not() -> None:
    reloaded = type("Part", (Configured,), {"__module__": "companion.of_this_test"})
    try:
        with pytest.raises(TypeError, match=r"Part is the name of a class in companion.of_this_test already"):
            type("Part", (Configured,), {"__module__": "companion.elsewhere"})
        type("Part", (Configured,), {"__module__": "companion.course.checks"})  # not of the library
        assert checkpoint._classes["Part"] is reloaded
    finally:
        checkpoint._classes["Part"] = Part


def test_a_wrong_call_is_told_as_python_tells_it() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'width'"):
        Part()  # type: ignore[call-arg]


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

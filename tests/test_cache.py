"""Sets of images in a file that is mapped into memory: the same as in memory, built once, taken up after a kill."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import companion
from companion.data import ImageSet, load
from companion.data import cache as cache_module
from companion.data.cache import CachedImageSet, _mapped, _npy_header
from companion.data.images import pixel_variance, share_of_images

N = 40


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "folders"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Noise in two classes, 20 images each, of 9 × 7 pixels."""
    rng = np.random.default_rng(0)
    for i in range(N):
        file = tmp_path / "pets" / ("cat" if i < N // 2 else "dog") / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(file)
    return tmp_path / "pets"


def built(folder: Path) -> list[str]:
    """The caches in ``folder``, without their locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("options", [{}, {"image_size": 4}, {"image_size": 8, "fit": "pad"}, {"size": 11, "seed": 3}])
def test_a_cache_is_to_the_byte_what_is_held_in_memory(pets: Path, options: dict[str, Any]) -> None:
    held = load(pets, cache=False, **options)
    for _ in range(2):  # made, and found
        found = load(pets, cache=True, **options)
        assert isinstance(found, CachedImageSet)
        assert torch.equal(found.images, held.images)
        assert torch.equal(found.labels, held.labels)
        assert (found.name, found.split, found.classes, found.shape) == ("pets", "train", ("cat", "dog"), held.shape)
        rows = torch.tensor([9, 0, 9, 3])
        for got, want in zip(found.batch(rows), held.batch(rows), strict=True):
            assert torch.equal(got, want)
        assert torch.equal(found[5][0], held[5][0])
        assert torch.equal(found.subset(4).images, held.images[:4])
        assert found.digests().tolist() == held.digests().tolist()


def test_a_grey_set_is_held_grey(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / "grey").mkdir(exist_ok=True)
        Image.new("L", (4, 4), 20 * i).save(tmp_path / "grey" / f"{i}.png")
    assert load(tmp_path / "grey", cache=True).shape == (1, 4, 4)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "grey" / "9.png")
    images = load(tmp_path / "grey", cache=True)
    assert images.images[8:, :, 0, 0].tolist() == [[160, 160, 160], [1, 2, 3]]


def test_large_sets_are_held_in_a_file_and_small_ones_in_memory(
    pets: Path, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(load(pets)) is ImageSet
    assert not caches.exists()
    monkeypatch.setattr("companion.data.folder.IN_MEMORY", N * 3 * 7 * 9 - 1)
    assert isinstance(load(pets), CachedImageSet)
    assert type(load(pets, image_size=4)) is ImageSet
    assert len(built(caches)) == 1
    place = tmp_path / "elsewhere"
    assert str(place) in repr(load(pets, cache=place))
    assert len(built(place)) == 1
    with pytest.raises(ValueError, match=r"^cache: got .*, inside the folder of images .*, want one elsewhere"):
        load(pets, cache=pets / "cat")


def test_numpy_opens_the_file_too(pets: Path) -> None:
    images = load(pets, cache=True)
    assert isinstance(images, CachedImageSet)
    mapped = np.load(images.cache.folder / "images.npy", mmap_mode="r")
    assert np.array_equal(mapped, images.images.numpy())


def test_a_changed_folder_makes_another_cache(pets: Path, caches: Path) -> None:
    first = load(pets, cache=True)
    Image.new("RGB", (9, 7), (1, 2, 3)).save(pets / "cat" / "new.png")
    assert len(load(pets, cache=True)) == N + 1
    (pets / "cat" / "new.png").unlink()
    assert torch.equal(load(pets, cache=True).images, first.images)
    assert len(built(caches)) == 2  # the first was found again
    file = pets / "dog" / "39.png"
    about = file.stat()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(file)
    os.utime(file, ns=(about.st_mtime_ns, about.st_mtime_ns))  # another size at the same time
    assert load(pets, cache=True).images[-1, :, 0, 0].tolist() == [1, 2, 3]
    os.utime(file, ns=(5, 5))
    load(pets, cache=True)
    load(pets, cache=True, image_size=4)
    load(pets, cache=True, image_size=4, background="black")
    assert len(built(caches)) == 6


def interrupted(pets: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A cache in the making that is given up after so many images, with a line in the journal every 8."""
    calls = []

    def digest(pixels: Any) -> int:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(pixels)

    real = cache_module.digest
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "PIECE", 8 * 3 * 7 * 9)
        patch.setattr(cache_module, "digest", digest)
        with pytest.raises(KeyboardInterrupt):
            load(pets, cache=True)


@pytest.mark.parametrize("torn", ["", "images", "journal", "lost"])
def test_a_cache_that_was_begun_is_taken_up(
    pets: Path, caches: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    interrupted(pets, monkeypatch, after=21)
    (begun,) = built(caches)
    assert begun.endswith(".building")
    if torn == "images":  # half a row that no line of the journal speaks of
        with (caches / begun / "images.npy").open("ab") as file:
            file.write(b"\xff" * 77)
    elif torn == "journal":
        with (caches / begun / "journal.jsonl").open("ab") as file:
            file.write(b'{"files": 24, "rows": [16, 17')
    elif torn == "lost":  # a row that the journal speaks of, as after a power failure
        os.truncate(caches / begun / "images.npy", (caches / begun / "images.npy").stat().st_size // 3)
    decoded: list[Path] = []
    real = cache_module.pictures
    monkeypatch.setattr(
        cache_module, "pictures", lambda files, *rest, **more: decoded.extend(files) or real(files, *rest, **more)
    )
    images = load(pets, cache=True)
    assert torch.equal(images.images, load(pets, cache=False).images)
    assert torch.equal(images.labels, load(pets, cache=False).labels)
    left = {"lost": N - 0}.get(torn, N - 16)
    assert len(decoded) <= left
    assert torn == "lost" or len(decoded) == N - 16  # two whole pieces of 8 were kept
    assert built(caches) == [begun.removesuffix(".building")]
    assert isinstance(images, CachedImageSet)
    assert sorted(path.name for path in images.cache.folder.iterdir()) == [
        *("images.npy", "index.json", "rows.npz", "shape.json")
    ]


def test_what_is_said_of_files_outlasts_a_kill(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "cat" / "00.png").write_bytes(b"no image")
    Image.new("RGBA", (9, 7), (1, 2, 3, 0)).save(pets / "cat" / "01.png")
    Image.new("RGBA", (9, 7), (1, 2, 3, 0)).save(pets / "dog" / "39.png")
    real = load

    def skipping(*args: Any, **options: Any) -> ImageSet:
        return real(*args, unreadable="skip", **options)

    monkeypatch.setattr(sys.modules[__name__], "load", skipping)
    interrupted(pets, monkeypatch, after=21)
    with pytest.warns(UserWarning, match=r"of 40 images 2 transparent .*, 1 left out, .* \(cat/00.png\)$"):
        images = load(pets, cache=True)
    assert images.labels.tolist() == [0] * 19 + [1] * 20


def test_two_processes_make_one_cache(pets: Path, caches: Path) -> None:
    code = """
import sys, companion.data, companion.data.cache as cache
real = cache.pictures
def told(*args, **more):
    print("builds", flush=True)
    return real(*args, **more)
cache.pictures = told
print(companion.data.load(sys.argv[1], cache=True).images.long().sum().item())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(pets)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[0].splitlines() for process in processes]
    want = str(load(pets, cache=False).images.long().sum().item())
    assert [lines[-1] for lines in said] == [want, want]
    assert sum(lines.count("builds") for lines in said) == 1
    assert len(built(caches)) == 1


def test_a_damaged_cache_is_named(pets: Path) -> None:
    found = load(pets, cache=True)
    assert isinstance(found, CachedImageSet)
    folder = found.cache.folder
    whole = shutil.copytree(folder, folder.with_name("whole"))
    for damage in ("cut", "changed", "no index", "other rows"):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        if damage == "cut":  # reading beyond the end would end the process
            os.truncate(folder / "images.npy", 300)
        elif damage == "changed":
            content = bytearray((folder / "images.npy").read_bytes())
            content[-1] ^= 1
            (folder / "images.npy").write_bytes(content)
        elif damage == "no index":
            (folder / "index.json").unlink()
        else:
            np.savez(folder / "rows.npz", files=np.arange(3), digests=np.arange(3, dtype=np.uint64))
        with pytest.raises(ValueError, match=rf"{folder.name} is damaged .*: delete it, and load again"):
            load(pets, cache=True)


def test_a_cache_that_cannot_be_written_says_what_to_do(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"^cache: .* cannot be written .*: name another folder with cache=…"):
        load(pets, cache=tmp_path / "file")
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"^cache: .* cannot be written \(it takes 0.0 GiB, and 0.0 are free there\)"):
        load(pets, cache=True)


def test_a_copy_for_another_process_is_a_path(pets: Path) -> None:
    images = load(pets, cache=True)
    sent = pickle.dumps(images.subset(30))
    assert len(sent) < 2000 + 8 * 30 < images.images.nbytes
    again = pickle.loads(sent)
    assert isinstance(again, CachedImageSet)
    assert torch.equal(again.images, images.images[:30])
    assert again.digests().tolist() == images.digests()[:30].tolist()
    loader: Any = torch.utils.data.DataLoader(images, 7, num_workers=1, multiprocessing_context="spawn")  # type: ignore[arg-type]
    assert torch.equal(torch.cat([x for x, _ in loader]), images.batch(range(N))[0])


def test_other_images_in_the_place_of_the_cached_ones_are_kept(pets: Path) -> None:
    """As ``dataclasses.replace`` puts them there; the path of the cache would give the old ones."""
    import dataclasses

    images = load(pets, cache=True)
    turned = dataclasses.replace(images, images=255 - images.images)
    assert torch.equal(pickle.loads(pickle.dumps(turned)).images, 255 - images.images)
    assert set(turned.digests().tolist()).isdisjoint(images.digests().tolist())


def test_writing_into_the_images_does_not_change_the_file(pets: Path) -> None:
    images = load(pets, cache=True)
    before = images.images.clone()
    images.images[3] = 7
    assert (images.images[3] == 7).all()
    assert torch.equal(load(pets, cache=True).images, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the memory is read as Linux tells it")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shape = (2 * memory // (3 * 256 * 256), 3, 256, 256)
    path = tmp_path / "images.npy"
    with path.open("wb") as file:
        file.write(_npy_header(shape))
        try:
            file.truncate(len(_npy_header(shape)) + int(np.prod(shape)))  # a hole, which takes no room
        except OSError:
            pytest.skip("no files of this size here")
    images = _mapped(path, shape)
    images[-1] = 9
    rows = torch.tensor([0, shape[0] // 2, shape[0] - 1])
    assert images.index_select(0, rows).float().mean((1, 2, 3)).tolist() == [0, 0, 9]


def test_a_run_that_began_in_memory_goes_on_in_a_cache_to_the_bit(pets: Path, tmp_path: Path) -> None:
    held, found = load(pets, image_size=8, cache=False), load(pets, image_size=8, cache=True)

    def model() -> companion.VQVAE:
        torch.manual_seed(0)
        encoder, decoder = companion.ResNetEncoder(3, 4, hidden=8), companion.ResNetDecoder(3, 4, hidden=8)
        return companion.VQVAE(encoder, companion.EMAVectorQuantizer(8, 4), decoder)

    def fitted(first: ImageSet, second: ImageSet, run: str) -> dict[str, torch.Tensor]:
        settings: dict[str, Any] = {"batch_size": 8, "progress": False, "run": tmp_path / run, "device": "cpu"}
        companion.fit(model(), first, epochs=1, **settings)
        trained = model()
        companion.fit(trained, second, epochs=2, **settings)
        return trained.state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a collapsed codebook
        want, got = fitted(held, held, "memory"), fitted(held, found, "cache")
    assert [name for name in want if not torch.equal(want[name], got[name])] == []
    codes = companion.tokenize(model(), found)
    assert torch.equal(codes.codes, companion.tokenize(model(), held).codes)


def test_a_validation_set_inside_the_training_set_is_seen_by_their_hashes(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held = load(pets, cache=True), load(pets, cache=False)
    monkeypatch.setattr(ImageSet, "digests", lambda self: pytest.fail("a cache has them"))
    assert share_of_images(train.subset(10), train) == 1
    assert share_of_images(train, train.subset(10)) == 0.25
    monkeypatch.undo()
    assert share_of_images(held.subset(10), train) == 1
    assert share_of_images(load(pets, cache=True, image_size=4), train) == 0


def test_the_variance_of_pixels_is_that_of_all_of_them_at_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load(pets).images
    want = images.double().div(255).var(correction=0).item()
    assert pixel_variance(images) == pytest.approx(want, rel=1e-12)
    assert pixel_variance(images[:, :, :1, :1]) == pytest.approx(
        images[:, :, :1, :1].double().div(255).var(correction=0).item(), rel=1e-12
    )
    assert pixel_variance(torch.full((3, 1, 2, 2), 77, dtype=torch.uint8)) == 0


def test_the_index_says_how_the_files_were_read(pets: Path) -> None:
    images = load(pets, cache=True, image_size=4, fit="resize")
    assert isinstance(images, CachedImageSet)
    index = json.loads((images.cache.folder / "index.json").read_text())
    assert index["shape"] == [N, 3, 4, 4]
    assert index["reading"] == {"image_size": 4, "fit": "resize", "background": "white", "unreadable": "raise"}

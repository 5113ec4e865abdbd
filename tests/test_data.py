import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import companion
import companion.data.real
from companion._extras import install
from companion.data import ImageSet, load
from companion.data.glyphs import TEST_FONTS, TRAIN_FONTS
from companion.data.real import data_folder

REAL = Path(os.environ.get("COMPANION_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "datasets"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No test reaches the network; what it asked for is in the list."""
    asked: list[str] = []

    def refuse(request: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(getattr(request, "full_url", request))
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    return asked


def real_files(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real {name} files are not in {REAL} (set COMPANION_TEST_DATA)")
    return REAL / name


def copy_raw(name: str, root: Path) -> Path:
    """The archives of a set, copied to where torchvision looks for them."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file in sorted((real_files(name) / "raw").iterdir()):
        shutil.copyfile(file, raw / file.name)
    return raw


def digest(images: ImageSet) -> str:
    labels = images.labels.numpy().astype("<i8").tobytes()
    return hashlib.sha256(images.images.numpy().tobytes() + labels).hexdigest()


def tiny(n: int = 6) -> ImageSet:
    images = torch.arange(n * 2 * 3 * 5, dtype=torch.uint8).reshape(n, 2, 3, 5)
    return ImageSet("tiny", "train", images, torch.arange(n) % 3, ("a", "b", "c"))


# ImageSet


def test_batch_gives_the_images_asked_for_as_floats_from_0_to_1() -> None:
    images = tiny(8)
    images.images[3, 0, 0, 0], images.images[3, 0, 0, 1] = 0, 255
    x, y = images.batch(torch.tensor([3, 0, 3]))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, images.images[[3, 0, 3]].double().div(255).float())
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert y.tolist() == [0, 0, 0]
    assert torch.equal(images.batch([3, 0, 3])[0], x)
    assert torch.equal(images.batch(range(2))[1], torch.tensor([0, 1]))


def test_batch_does_not_touch_the_set() -> None:
    images = tiny()
    before = images.images.clone()
    images.batch([0, 1])[0].zero_()
    images.batch([0, 1])[1].zero_()
    assert torch.equal(images.images, before)
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([-1, 2], r"indices: got -1 to 2, want 0 to 5"),
        ([6], r"indices: got 6 to 6, want 0 to 5"),
        (torch.tensor([[0]]), r"indices: got int64 of shape \(1, 1\), want int64 of shape \(B,\)"),
        (torch.tensor([0.0]), r"indices: got float32 of shape \(1,\)"),
        (torch.ones(6, dtype=torch.bool), r"indices: got bool of shape \(6,\)"),
        ([], r"indices: got float32 of shape \(0,\), want .* at least 1"),
        ("ab", r"indices: got 'ab', want a row of whole numbers"),
        (None, r"indices: got None, want a row of whole numbers"),
    ],
)
def test_batch_refuses_indices_that_are_not_rows(indices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().batch(indices)


@pytest.mark.cpu_only("says where a set on the CPU lies")
def test_batch_goes_to_the_device_asked_for_and_the_set_stays() -> None:
    images = tiny()
    x, y = images.batch([1], "meta")
    assert (x.device.type, y.device.type, images.device.type) == ("meta", "meta", "cpu")
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (1, 2, 3, 5))


def test_subset_is_the_first_n() -> None:
    images = tiny()
    first = images.subset(2)
    assert len(first) == 2
    assert torch.equal(first.images, images.images[:2])
    assert first.labels.tolist() == [0, 1]
    assert (first.name, first.split, first.classes) == ("tiny", "train", ("a", "b", "c"))
    for n in (0, 7, -1, True, 2.0):
        with pytest.raises(ValueError, match=rf"^n: got {n}, want a whole number from 1 to 6"):
            images.subset(n)  # type: ignore[arg-type]


@pytest.mark.cpu_only("says where a set on the CPU lies")
def test_an_image_set_says_what_it_is() -> None:
    images = tiny()
    assert (len(images), images.shape, images.device) == (6, (2, 3, 5), torch.device("cpu"))
    assert repr(images) == "<tiny/train: 6 images 2×3×5, 3 classes, cpu>"


@pytest.mark.cpu_only("says where a set on the CPU lies")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 1, 2, 2)}, r"images: got float32 of shape \(6, 1, 2, 2\), want uint8"),
        (
            {"images": torch.zeros(6, 2, 2, dtype=torch.uint8)},
            r"images: got uint8 .*\(6, 2, 2\), want .*\(N, C, H, W\)",
        ),
        ({"images": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, r"images: got uint8 of shape \(0, 1, 2, 2\)"),
        (
            {"images": torch.zeros(6, 9, 8, 3, dtype=torch.uint8)},
            r"images: got shape \(6, 9, 8, 3\), want \(B, C, H, W\), the channels first",
        ),
        (
            {"labels": torch.zeros(5, dtype=torch.int64)},
            r"labels: got int64 .*\(5,\), want int64 .*\(6,\)",
        ),
        ({"labels": torch.zeros(6)}, r"labels: got float32 of shape \(6,\), want int64"),
        (
            {"labels": torch.zeros(6, dtype=torch.int64, device="meta")},
            "labels: .* on meta, want it where images is, on",
        ),
        ({"labels": torch.full((6,), 3)}, r"labels: got 3 to 3, want 0 to 2"),
        ({"labels": torch.full((6,), -1)}, r"labels: got -1 to -1, want 0 to 2"),
        ({"images": [1]}, r"images: got \[1\], want a tensor, uint8"),
        ({"labels": [0] * 6}, r"labels: got .*, want a tensor, int64"),
        ({"classes": "abc"}, r"classes: got 'abc', want a tuple of names"),
        ({"classes": (1, 2, 3)}, r"classes: got \(1, 2, 3\), want a tuple of names"),
        ({"classes": ("a", "b", "a")}, r"classes: got 'a' more than once, want another name for each"),
        ({"name": None}, r"name: got None, want a string"),
    ],
)
def test_an_image_set_refuses_tensors_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    images = tiny()
    fields = {"name": "x", "split": "train", "images": images.images, "labels": images.labels}
    with pytest.raises(ValueError, match=message):
        ImageSet(**{**fields, "classes": images.classes, **change})


@pytest.mark.cpu_only("says where a set on the CPU lies")
def test_a_set_too_large_for_the_gpu_stays_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny()
    free = 2 * images.images.nbytes - 1
    for name, answer in (("is_available", True), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    with pytest.warns(UserWarning, match="tiny/train stays on cpu"):
        assert images.to("cuda") is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_are_the_same_wherever_the_indices_lie() -> None:
    images = load("glyphs", size=300)
    there = images.to("cuda")
    assert (there.device.type, there.labels.device.type) == ("cuda", "cuda")
    rows = torch.randperm(300)[:64]
    expected, labels = images.batch(rows)
    for indices in (rows, rows.cuda()):
        x, y = there.batch(indices)
        assert x.device.type == y.device.type == "cuda"
        torch.testing.assert_close(x.cpu(), expected, rtol=0, atol=1e-7)
        assert torch.equal(y.cpu(), labels)
    assert images.batch(rows.cuda(), "cuda")[0].device.type == "cuda"
    assert there.batch(rows, "cpu")[0].device.type == "cpu"
    assert torch.equal(there.to("cpu").images, images.images)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_named_for_images_and_codes() -> None:
    images = tiny()
    codes = companion.CodeSet(torch.zeros(6, 2, 2, dtype=torch.int64), images.labels, 5, "a")
    for given in (images, codes):
        for call in (lambda given=given: given.to("cuda"), lambda given=given: given.batch(torch.tensor([0]), "cuda")):
            with pytest.raises(ValueError, match="device: got 'cuda', want one that this machine has"):
                call()


# Glyphs


def test_glyphs_are_the_same_bytes_everywhere() -> None:
    train = "870a921b1c2c47037c5d77cdc3514ae7681afa943e91d7e984e42bac15a637e1"
    test = "8bd8c44df0fe14b6d51fc53329bd74f4d8fcff08ef37ef7a1a0ce81968d00c03"
    assert digest(load("glyphs", size=100, seed=3)) == train
    assert digest(load("glyphs", "test", size=100, seed=3)) == test


def test_glyphs_are_ten_balanced_classes_bright_on_black() -> None:
    images = load("glyphs", size=3000)
    assert (len(images), images.shape, images.classes) == (3000, (1, 28, 28), tuple("0123456789"))
    assert images.labels.bincount(minlength=10).min() > 240
    assert (images.images.amax((1, 2, 3)) == 255).all()
    assert (images.images == 0).float().mean() > 0.7
    assert len(torch.unique(images.images.flatten(1), dim=0)) == 3000


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_glyph_touches_the_border(split: str) -> None:
    images = load("glyphs", split, size=3000).images.clone()
    images[:, :, 1:-1, 1:-1] = 0
    assert images.max() == 0


def test_a_larger_set_of_glyphs_begins_with_the_smaller() -> None:
    small, large = load("glyphs", size=100, seed=5), load("glyphs", size=1000, seed=5)
    assert digest(small) == digest(large.subset(100))


def test_seed_and_split_change_the_glyphs() -> None:
    # With (seed, split) as entropy these two would be one stream: numpy pads entropy with zeros.
    wrong = [np.random.PCG64(np.random.SeedSequence(pair)).random_raw(4).tolist() for pair in ((2**32, 0), (0, 1))]
    assert wrong[0] == wrong[1][: len(wrong[0])]
    labels = [
        load("glyphs", split, size=64, seed=seed).labels.tolist()
        for split, seed in (("train", 0), ("train", 1), ("test", 0), ("test", 1), ("train", 2**32))
    ]
    assert len({tuple(row) for row in labels}) == 5


def test_test_fonts_are_families_that_training_never_shows() -> None:
    with np.load(Path(sys.modules["companion.data"].__path__[0], "glyphs.npz")) as atlas:
        train, test = atlas["train"], atlas["test"]
        assert atlas["train_fonts"].tolist() == list(TRAIN_FONTS)
        assert atlas["test_fonts"].tolist() == list(TEST_FONTS)
    assert (train.shape, test.shape) == ((16, 10, 64, 64), (5, 10, 64, 64))
    assert not {font[:4] for font in TRAIN_FONTS} & {font[:4] for font in TEST_FONTS}
    flat = np.concatenate([train, test]).reshape(210, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike = (flat @ flat.T).reshape(21, 10, 21, 10)[16:, :, :16].diagonal(axis1=1, axis2=3)
    assert alike.max() < 0.99, "a digit of a test font is all but one of a training font"


def test_masters_are_whole_digits_of_one_height() -> None:
    with np.load(Path(sys.modules["companion.data"].__path__[0], "glyphs.npz")) as atlas:
        ink = np.concatenate([atlas["train"], atlas["test"]]).reshape(210, 64, 64) > 0
    rows, columns = ink.any(2), ink.any(1)
    assert (rows.sum(1) == 48).all()
    assert not (columns[:, 0] | columns[:, -1]).any()


def test_ten_thousand_glyphs_by_default() -> None:
    assert len(load("glyphs", "test")) == 10_000


def test_glyphs_need_only_torch_and_numpy() -> None:
    code = """
import sys
for name in ("torchvision", "PIL", "tqdm", "matplotlib", "filelock"):
    sys.modules[name] = None
import companion.data
assert len(companion.data.load("glyphs", size=3)) == 3
for name in ("mnist", "cifar10", sys.argv[1]):
    try:
        companion.data.load(name)
    except ImportError as error:
        print(error)
"""
    with_image = Path(os.environ["COMPANION_DATA"])
    with_image.mkdir()
    Image.new("L", (4, 4)).save(with_image / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", "import torch" + code, str(with_image)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"load('mnist') needs torchvision: {install('data')}",
        f"load('cifar10') needs torchvision: {install('data')}",
        f"reading image files needs PIL: {install('data')}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mnits"},
            "name: got 'mnits', want one of glyphs, emoji, mnist, fashion-mnist, cifar10, celeba, or",
        ),
        ({"split": "valid"}, "split: got 'valid', want 'train' or 'test', which glyphs has"),
        ({"name": "mnist", "split": "valid"}, "split: got 'valid', want 'train' or 'test', which mnist has"),
        ({"size": 0}, "size: got 0, want a whole number from 1"),
        ({"size": 10.0}, "size: got 10.0, want a whole number"),
        ({"seed": -1}, "seed: got -1, want a whole number of at least 0"),
        ({"name": 3}, "name: got 3, want a string or a path"),
        ({"split": None}, "split: got None, want a string"),
        ({"root": 3}, "root: got 3, want a string or a path"),
        ({"image_size": 32}, "image_size: got 32, want 28"),
        ({"image_size": 0}, "image_size: got 0, want a whole number from 1 to 8192"),
        ({"name": "mnist", "image_size": 10**6}, "image_size: got 1000000, want a whole number from 1 to 8192"),
        ({"name": ""}, "name: got '', want one of glyphs, .* or the path of a folder"),
    ],
)
def test_load_refuses_wrong_arguments_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        load(**{"name": "glyphs", **arguments})


# Published sets


@pytest.mark.parametrize(
    ("name", "folder", "labels", "classes", "mean"),
    [
        ("mnist", "MNIST", [5, 0, 4, 1, 9], ("0", "1"), 0.1307),
        ("fashion-mnist", "FashionMNIST", [9, 0, 0, 3, 0], ("T-shirt/top", "Trouser"), 0.2860),
    ],
)
def test_real_archives_load_with_no_network(
    name: str, folder: str, labels: list[int], classes: tuple[str, str], mean: float, offline: list[str]
) -> None:
    copy_raw(folder, data_folder())
    train, test = load(name), load(name, "test")
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    assert train.labels[:5].tolist() == labels
    assert train.classes[:2] == classes
    assert len(train.classes) == 10
    assert train.images.double().mean().item() / 255 == pytest.approx(mean, abs=1e-4)
    part = load(name, size=500, seed=1)
    again, other = load(name, size=500, seed=1), load(name, size=500, seed=2)
    assert digest(part) == digest(again) != digest(other)
    rows = [int(torch.nonzero((train.images == image).all((1, 2, 3)))[0]) for image in part.images[:20]]
    assert rows == sorted(rows)
    assert torch.equal(train.labels[rows], part.labels[:20])
    small = load(name, size=10, image_size=14)
    assert small.shape == (1, 14, 14)
    brightness = [images.images.double().mean().item() for images in (small, load(name, size=10))]
    assert brightness[0] == pytest.approx(brightness[1], rel=0.05)
    with pytest.raises(ValueError, match="size: got 60,001, want 1 to 60,000"):
        load(name, size=60_001)
    assert offline == []


@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
def test_a_damaged_archive_is_named_and_neither_replaced_nor_fetched(
    damage: str, offline: list[str], tmp_path: Path
) -> None:
    raw = tmp_path / "elsewhere" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    file = raw / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(bytes(5000))
    file.write_bytes(whole[:20] if damage == "truncated" else whole)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is damaged .* replace it .* or delete it"):
        load("mnist", root=tmp_path / "elsewhere")
    assert file.read_bytes() == before
    assert offline == []


def test_a_damaged_extracted_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(bytes.fromhex("00000803") + idx((2, 28, 28)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801") + idx((2,)))
    monkeypatch.setitem(companion.data.real._EXTRACTED, "MNIST", {file.name: md5(file) for file in raw.iterdir()})
    assert len(load("mnist", root=tmp_path)) == 2
    file = raw / "t10k-images-idx3-ubyte"
    whole = file.read_bytes()
    for damaged in (whole[:3], whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is damaged or cut short"):
            load("mnist", "test", root=tmp_path)
    assert len(load("mnist", root=tmp_path)) == 2  # of which no file is damaged


def idx(shape: tuple[int, ...]) -> bytes:
    """The rest of a file of zeros in MNIST's format."""
    return b"".join(n.to_bytes(4, "big") for n in shape) + bytes(int(np.prod(shape)))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "celeba"])
def test_an_absent_set_names_both_ways_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: {tmp_path / 'data'}")
    for part in ("COMPANION_DATA", "network", "glyphs", "emoji"):
        assert part in message


def test_a_download_is_tried_once_and_does_not_wait_for_ever(offline: list[str]) -> None:
    import socket

    with pytest.raises(FileNotFoundError):
        load("mnist")
    assert len(offline) == len(torchvision.datasets.MNIST.mirrors)
    assert socket.getdefaulttimeout() is None


def test_archives_that_cannot_be_extracted_where_they_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read_only(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(30, "Read-only file system", "here")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", read_only)
    with pytest.raises(PermissionError, match=r"mnist: .*here cannot be written: copy the folder to a writable"):
        load("mnist", root=tmp_path)


def test_where_sets_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", "/named")
    assert data_folder() == Path("/named")
    assert data_folder("/given") == Path("/given")
    monkeypatch.delenv("COMPANION_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder() == Path("/cache/companion")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "companion"


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def test_cifar10_as_its_authors_pack_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: list[str]) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
    contents: dict[str, dict[str, Any]] = {
        "data_batch_1": {"data": pixels, "labels": [1, 0, 1, 0]},
        "test_batch": {"data": pixels[:2], "labels": [0, 1]},
        "batches.meta": {"label_names": ["cat", "dog"]},
    }
    for file, content in contents.items():
        (base / file).write_bytes(pickle.dumps(content))
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", md5(base / "data_batch_1")]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5(base / "test_batch")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(base / "batches.meta")})

    images = load("cifar10", root=tmp_path)
    assert (images.shape, images.classes, images.labels.tolist()) == (
        (3, 32, 32),
        ("cat", "dog"),
        [1, 0, 1, 0],
    )
    assert torch.equal(images.images, torch.from_numpy(pixels).reshape(4, 3, 32, 32))
    assert len(load("cifar10", "test", root=tmp_path)) == 2
    assert load("cifar10", root=tmp_path, image_size=16, size=3).images.shape == (3, 3, 16, 16)

    archive = tmp_path / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, base.name)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    shutil.rmtree(base)
    assert digest(load("cifar10", root=tmp_path)) == digest(images)  # extracted, from what is there

    (base / "test_batch").write_bytes(b"cut")
    with pytest.raises(ValueError, match="test_batch is damaged"):
        load("cifar10", root=tmp_path)
    shutil.rmtree(base)
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged"):
        load("cifar10", root=tmp_path)
    assert offline == []


def test_celeba_in_torchvisions_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: list[str]) -> None:
    base = tmp_path / "celeba"
    pictures = base / "img_align_celeba"
    pictures.mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in (1, 2, 3, 4)]
    for i, name in enumerate(names):
        Image.new("RGB", (178, 218), (80 * (i % 3), 10, 200)).save(pictures / name)
    texts = {
        "list_attr_celeba.txt": "4\nMale Smiling\n"
        + "".join(f"{n} -1 {s}\n" for n, s in zip(names, "1010", strict=True)),
        "identity_CelebA.txt": "".join(f"{n} 7\n" for n in names),
        "list_bbox_celeba.txt": "4\nid x y w h\n" + "".join(f"{n} 0 0 9 9\n" for n in names),
        "list_landmarks_align_celeba.txt": "4\nx y\n" + "".join(f"{n} 1 2\n" for n in names),
        "list_eval_partition.txt": "".join(f"{n} {s}\n" for n, s in zip(names, "0022", strict=True)),
    }
    texts["list_attr_celeba.txt"] = texts["list_attr_celeba.txt"].replace(" 0\n", " -1\n")
    for file, text in texts.items():
        (base / file).write_text(text)
    archive = base / "img_align_celeba.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in names:
            packed.write(pictures / name, f"img_align_celeba/{name}")
    file_list = [("", md5(base / file), file) for file in (archive.name, *texts)]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", file_list)

    images = load("celeba", root=tmp_path)
    assert (images.images.shape, images.labels.tolist()) == ((2, 3, 64, 64), [1, 0])
    assert images.classes == ("not smiling", "smiling")
    assert images.images[1].float().mean((1, 2)).round().tolist() == pytest.approx([80, 10, 200], abs=2)
    assert load("celeba", "test", root=tmp_path, image_size=32).images.shape == (2, 3, 32, 32)

    shutil.rmtree(pictures)
    assert digest(load("celeba", root=tmp_path)) == digest(images)  # from the archive
    assert not (base / "partial").exists()
    (pictures / names[0]).unlink()
    with pytest.raises(ValueError, match=r"000001.jpg is missing"):
        load("celeba", root=tmp_path)
    (base / "list_attr_celeba.txt").write_text("3\n")
    with pytest.raises(ValueError, match=r"list_attr_celeba.txt is damaged"):
        load("celeba", root=tmp_path)
    assert offline == []


# Folders


def paint(path: Path, value: int | tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(value, int) else "RGB", size, value).save(path)


def test_a_folder_with_a_sub_folder_a_class(tmp_path: Path) -> None:
    paint(tmp_path / "dog" / "b.png", 20)
    paint(tmp_path / "dog" / "deeper" / "c.PNG", 30)
    paint(tmp_path / "cat" / "z.png", 10)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._z.png").write_text("left by another system")
    (tmp_path / ".hidden").mkdir()
    images = load(tmp_path)
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1, 1])
    assert (images.name, images.split, images.shape) == (tmp_path.name, "train", (1, 4, 6))
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert digest(load(str(tmp_path))) == digest(images)


def test_a_folder_without_sub_folders_is_one_class(tmp_path: Path) -> None:
    for i in range(12):
        paint(tmp_path / "flat" / f"{i:02}.png", i)
    images = load(tmp_path / "flat")
    assert (images.classes, images.labels.tolist()) == (("flat",), [0] * 12)
    part = load(tmp_path / "flat", size=5, seed=4)
    kept = part.images[:, 0, 0, 0].tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == 5
    assert kept != load(tmp_path / "flat", size=5, seed=5).images[:, 0, 0, 0].tolist()
    assert digest(load(tmp_path / "flat", size=12)) == digest(images)
    with pytest.raises(ValueError, match=r"size: got 13, want 1 to 12"):
        load(tmp_path / "flat", size=13)


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png", 1)
    paint(tmp_path / "train" / "b" / "1.png", 2)
    paint(tmp_path / "test" / "a" / "1.png", 3)
    assert load(tmp_path).images[:, 0, 0, 0].tolist() == [1, 2]
    assert load(tmp_path, "test").images[:, 0, 0, 0].tolist() == [3]
    with pytest.raises(ValueError, match=r"split: got 'val', want one of \['test', 'train'\]"):
        load(tmp_path, "val")
    with pytest.raises(ValueError, match=r"split: got 'test', want .*no folders train and test"):
        load(tmp_path / "train", "test")


def test_an_undivided_folder_is_divided_by_names(tmp_path: Path) -> None:
    def parts(share: float) -> list[list[int]]:
        return [
            load(tmp_path / "a", split, test_share=share).images[:, 0, 0, 0].tolist() for split in ("train", "test")
        ]

    for i in range(40):
        paint(tmp_path / "a" / ("cat" if i < 20 else "dog") / f"{i}.png", i)
    train, test = parts(0.2)
    assert sorted(train + test) == list(range(40))
    assert (sum(i < 20 for i in test), len(test)) == (4, 8)  # a fifth of each class
    assert load(tmp_path / "a", "test", test_share=0.2).labels.tolist() == [0] * 4 + [1] * 4
    paint(tmp_path / "a" / "cat" / "40.png", 40)
    assert set(parts(0.2)[0]) - {40} <= {*train, *test}
    assert len({*parts(0.2)[1]} & {*test}) >= 7  # one more file moves one at most
    with pytest.raises(ValueError, match=r"^test_share: got 0.01, want a share that leaves images .* to 'test'"):
        parts(0.01)
    with pytest.raises(ValueError, match=r"^test_share: got 1, want a finite number"):
        load(tmp_path / "a", test_share=1)
    (tmp_path / "a").rename(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    assert len(load(tmp_path, "test", test_share=0.2)) == 41  # a folder that is divided stays as it is


def test_a_class_has_the_same_label_in_train_and_test(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "test/b", "test/c"):
        paint(tmp_path / name / "1.png", ord(name[-1]))
    train, test = load(tmp_path), load(tmp_path, "test")
    assert test.classes == train.classes == ("a", "b", "c")
    assert test.labels.tolist() == [1, 2]  # numbered by its own sub-folders: [0, 1]
    paint(tmp_path / "test" / "d" / "1.png", 1)
    with pytest.raises(ValueError, match=r"^split: got 'test' with the class 'd', want those of train: a, b, c"):
        load(tmp_path, "test")


def test_splits_without_classes_have_the_one_class(tmp_path: Path) -> None:
    paint(tmp_path / "pets" / "train" / "1.png", 1)
    paint(tmp_path / "pets" / "test" / "1.png", 2)
    assert load(tmp_path / "pets").classes == load(tmp_path / "pets", "test").classes == ("pets",)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("train", "Test"),
        ("TRAIN", "TEST", "x"),
        ("train_images", "test_images"),
        ("my-train", "my-val"),
    ],
)
def test_splits_of_another_spelling_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        paint(tmp_path / name / "a" / "1.png", 1)
    with pytest.raises(ValueError, match=r"^name: got .*, which look like splits .* want splits .* train and test"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    paint(tmp_path / "car" / "1.png", 1)
    paint(tmp_path / "train" / "1.png", 2)
    with pytest.warns(UserWarning, match=r"name: got .* with train, named like splits, beside car, .*: each is taken"):
        assert load(tmp_path).classes == ("car", "train")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("train/a", "extra/a"), "with train, named like splits, beside extra, want .*: each is taken for a class"),
        (("train", "labels"), "with train, named like splits, beside labels, want .*: each is taken for a class"),
        (
            ("train/a", "test/a", "labels"),
            "with test, train, named .* beside labels, want .*: labels is left out",
        ),
        (("train_images", "more"), "with train_images, named like splits, beside more"),
    ],
)
def test_a_split_beside_what_is_none_is_said(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    for name in names:
        paint(tmp_path / name / "1.png", 1)
    with pytest.warns(UserWarning, match=f"name: got .* {says}"):
        classes = load(tmp_path).classes
    assert classes == (("a",) if "test/a" in names else tuple(sorted(name.partition("/")[0] for name in names)))


def test_a_folder_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    paint(tmp_path / "pictures" / "trains" / "1.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("~/pictures").classes == ("trains",)


def test_a_single_class_that_has_folders_of_images_itself_is_said(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        paint(tmp_path / "images" / name / "1.png", 1)
    says = r"name: got .* with the single class images, which has the sub-folders cats, dogs: want .*images if those"
    with pytest.warns(UserWarning, match=says):
        assert load(tmp_path).classes == ("images",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "images").classes == ("cats", "dogs")
        paint(tmp_path / "images" / "2.png", 1)  # images of its own: it is a class
        assert len(load(tmp_path)) == 3


def test_one_colour_image_makes_the_set_rgb(tmp_path: Path) -> None:
    paint(tmp_path / "1.png", 7)
    paint(tmp_path / "2.png", (1, 2, 3))
    images = load(tmp_path)
    assert images.shape == (3, 4, 6)
    assert images.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_images_keep_their_rows_and_columns(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    assert np.array_equal(load(tmp_path).images[0].numpy(), pixels.transpose(2, 0, 1))


def test_images_of_several_sizes_need_image_size(tmp_path: Path) -> None:
    paint(tmp_path / "1.png", 10, (6, 4))
    paint(tmp_path / "2.png", 20, (8, 8))
    with pytest.raises(ValueError, match=r"2.png is 8×8, .* 6×4: .*image_size=4"):
        load(tmp_path)
    assert load(tmp_path, image_size=4).shape == (1, 4, 4)


def test_image_size_takes_the_middle_square(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "1.png")
    assert (load(tmp_path, image_size=4).images == 200).all()


def test_a_palette_is_resized_as_colours(tmp_path: Path) -> None:
    stripes = Image.new("P", (8, 8), 0)
    stripes.putpalette([0, 0, 0, 255, 255, 255, 200, 0, 0])
    stripes.paste(2, (0, 0, 8, 8))
    stripes.save(tmp_path / "1.png")
    assert load(tmp_path, image_size=4).images[0, :, 0, 0].tolist() == [200, 0, 0]


def test_eight_bits_of_every_kind_are_read(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "1", "P", "LA", "RGBA"):
        for suffix in ("png", "tif", "gif", "bmp", "webp", "jfif", "jpe", "ppm"):
            folder = tmp_path / f"{mode}-{suffix}"
            folder.mkdir()
            picture = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
            if suffix in ("jfif", "jpe"):
                picture = picture.convert("L" if mode in ("1", "L", "LA") else "RGB")
            try:
                picture.save(folder / f"a.{suffix}", "JPEG" if suffix.startswith("j") else None)
            except OSError:  # no such files
                continue
            images = load(folder)
            assert (len(images), int(images.images.min())) == (1, 255), folder


def test_pictures_of_a_kind_that_is_not_read_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png", 1)
    (tmp_path / "a" / "labels.csv").write_text("no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
    for name in ("2.HEIC", "3.avif"):
        (tmp_path / "a" / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"2 pictures are left out, as their kind is not read \(the first: 2.HEIC\)"):
        assert len(load(tmp_path)) == 1


def test_what_only_has_the_name_of_an_image_does_not_hang(tmp_path: Path) -> None:
    paint(tmp_path / "1.png", 1)
    paint(tmp_path / "class" / "folder.png" / "1.png", 1)
    assert len(load(tmp_path / "class")) == 1
    shutil.rmtree(tmp_path / "class")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"gone.png is no file that can be read"):
        load(tmp_path)
    (tmp_path / "gone.png").unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ValueError, match=r"pipe.png is no file that can be read"):
            load(tmp_path)


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty has no images .*png"):
        load(empty)
    paint(tmp_path / "full" / "1.png", 1)
    with pytest.raises(ValueError, match="empty has no images"):
        load(tmp_path)
    paint(tmp_path / "loose.png", 1)
    with pytest.raises(ValueError, match=r"images \(loose.png\) beside sub-folders"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"name: got .*missing', want one of"):
        load(tmp_path / "missing")


def test_a_part_of_the_real_cifar10_jpegs(tmp_path: Path) -> None:
    (archive,) = real_files("CIFAR10-jpeg").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).stem < "0020":
                tar.extract(member, tmp_path, filter="data")
    (top,) = {folder.parent for folder in tmp_path.rglob("train")}
    train, test = load(top), load(top, "test")
    assert (len(train), len(test), train.shape) == (200, 200, (3, 32, 32))
    assert train.classes == test.classes
    assert (train.classes[0], train.classes[9]) == ("airplane", "truck")
    assert train.labels.bincount().tolist() == [20] * 10
    assert 0.3 < train.batch(range(200))[0].mean() < 0.6


def test_images_that_were_cut_to_zero_or_one_are_said() -> None:
    def made(images: torch.Tensor) -> ImageSet:
        return ImageSet("a", "train", images.to(torch.uint8), torch.zeros(len(images), dtype=torch.int64), ("a",))

    x = torch.rand(8, 1, 2, 2)
    x[0] = 0.9
    for images, says in (
        (x * 0.999, "bytes that are all 0, want 0 … 255"),
        (x.round(), "bytes of 0 and 1 only, want"),
        (torch.full_like(x, 15), "bytes of at most 15, want"),
    ):
        with pytest.warns(UserWarning, match=f"images: got {says}"):
            made(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(made(255 * x)) == 8


def test_an_image_set_is_a_data_set_of_images_and_whole_numbers() -> None:
    images = load("glyphs", size=10)
    x, y = images[3]
    assert torch.equal(x, images.batch([3])[0][0])
    assert (x.shape, x.dtype) == ((1, 28, 28), torch.float32)
    assert y == int(images.labels[3])
    assert isinstance(y, int)
    assert torch.equal(images[-1][0], images[9][0])
    assert [label for _, label in images] == images.labels.tolist()
    batches = list(torch.utils.data.DataLoader(images, 4))  # type: ignore[arg-type,var-annotated]
    assert torch.equal(torch.cat([x for x, _ in batches]), images.batch(range(10))[0])
    assert torch.equal(torch.cat([y for _, y in batches]).cpu(), images.labels)
    with pytest.raises(IndexError, match="index: got 10, want -10 to 9"):
        images[10]
    for wrong in (slice(2), 1.0, True, torch.arange(2)):
        with pytest.raises(TypeError, match=r"index: got .*, want a whole number; several at once: batch"):
            images[wrong]
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[3][0], x)

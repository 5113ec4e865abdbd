"""The emoji: the same bytes everywhere, no variant on both sides, made again from the font, clear errors."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from companion._extras import install
from companion.data import ImageSet, _emoji_atlas, emoji, load
from companion.data._emoji_atlas import base, drawn, smaller

ATLAS = Path(emoji.__file__).with_name("emoji-32.npz")
FONT = Path(os.environ.get("COMPANION_EMOJI_FONT", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
EMOJI_TEST = Path(os.environ.get("COMPANION_EMOJI_TEST", "/usr/share/unicode/emoji/emoji-test.txt"))
TONES = {chr(point) for point in range(0x1F3FB, 0x1F400)}


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return load("emoji")


@pytest.fixture(scope="module", name="test")
def held_out_pictures() -> ImageSet:
    return load("emoji", "test")


def digest(images: ImageSet) -> str:
    labels = images.labels.numpy().astype("<i8").tobytes()
    return hashlib.sha256(images.images.numpy().tobytes() + labels).hexdigest()


def flat(images: ImageSet) -> torch.Tensor:
    return images.images.flatten(1).double()


def distances(some: ImageSet, others: ImageSet) -> torch.Tensor:
    """Root mean squared differences of the pixels, in [0, 1]; of bytes, so that no product is rounded."""
    a, b = flat(some), flat(others)
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squares.div(255**2 * a.shape[1]).sqrt()


# What is there


def test_emoji_are_the_same_bytes_everywhere(train: ImageSet, test: ImageSet) -> None:
    assert digest(train) == "ba600f1b4bc8ecb65b0a10ed620148737b62432e59caddb7815e53e748f19fba"
    assert digest(test) == "0d5c6f0a1065ddd712d50f27c720cfeb5799d78730d6ab8ec169d2436c38060a"


def test_emoji_are_colour_pictures_in_the_groups_of_unicode(train: ImageSet, test: ImageSet) -> None:
    assert (len(train), len(test), train.shape, test.shape) == (2413, 339, (3, 32, 32), (3, 32, 32))
    assert train.classes == test.classes == emoji.CLASSES
    assert train.classes[:2] == ("Smileys & Emotion", "People & Body")
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert train.labels.bincount().tolist() == [146, 1100, 132, 117, 190, 74, 229, 196, 229]
    assert test.labels.bincount().tolist() == [20, 153, 20, 16, 28, 11, 32, 27, 32]
    assert train.images.is_contiguous()


def test_the_background_is_white_and_the_shapes_are_not(train: ImageSet) -> None:
    corners = train.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all(1).float().mean() > 0.99
    colourful = (train.images.amax(1).int() - train.images.amin(1).int()).flatten(1).amax(1) > 40
    assert colourful.float().mean() > 0.9
    fox = train.images[emoji.names("train").index("fox")]
    red, green, blue = fox[:, 8:24, 8:24].float().mean((1, 2)).tolist()
    assert red > green > blue
    assert red - blue > 60


def test_the_file_is_small_and_brings_its_licence() -> None:
    assert ATLAS.stat().st_size < 2_500_000
    licence = ATLAS.with_name("emoji-LICENSE.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "Copyright 2013-2017 Google Inc., Arjen Nienhuis" in licence
    with np.load(ATLAS) as atlas:
        assert atlas["licence"].item() == licence
    assert emoji.made_from().startswith("Noto Color Emoji Version 2.042;")


def test_an_installed_package_has_the_file_and_its_licence() -> None:
    root = Path(emoji.__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["companion"]
    packed = {file for pattern in patterns for file in (root / "companion").glob(pattern)}
    assert {ATLAS, ATLAS.with_name("emoji-LICENSE.txt")} <= packed
    assert "companion/data/emoji-LICENSE.txt" in project["project"]["license-files"]
    assert "OFL-1.1" in project["project"]["license"]


def test_no_picture_is_there_twice(train: ImageSet, test: ImageSet) -> None:
    both = torch.cat([flat(train), flat(test)])
    assert len(torch.unique(both, dim=0)) == len(both) == 2752


# The split


def test_no_test_picture_is_nearer_to_a_training_picture_than_the_stated_distance(
    train: ImageSet, test: ImageSet
) -> None:
    nearest = distances(test, train).amin(1)
    assert nearest.min() > _emoji_atlas.NEAR
    inside = distances(train, train).fill_diagonal_(torch.inf).amin(1)
    assert (inside < _emoji_atlas.NEAR).sum() > 200, "pictures drawn one by one would be split from their twins"
    assert nearest.median() > 1.4 * inside.median()


def test_variants_of_one_emoji_stand_on_one_side() -> None:
    sides = {split: {base(tuple(map(ord, text))) for text in emoji.characters(split)} for split in ("train", "test")}
    assert len(sides["train"]) > 1000
    assert sides["train"] & sides["test"] == set()
    names = {split: set(emoji.names(split)) for split in ("train", "test")}
    for toned in names["test"]:
        if ": " in toned and toned.endswith("skin tone"):
            assert toned.partition(":")[0] not in names["train"]


@pytest.mark.parametrize(
    ("some", "other"),
    [
        ("waving hand", "waving hand: dark skin tone"),
        ("person running", "woman running: light skin tone"),
        ("health worker", "man health worker: medium skin tone"),
        ("cat", "black cat"),
        ("woman", "man"),
        ("child", "girl"),
        ("white flag", "rainbow flag"),
        ("couple with heart", "couple with heart: man, man"),
        ("men holding hands", "people holding hands"),
        ("one o’clock", "two o’clock"),
    ],
)
def test_these_two_stand_on_one_side(some: str, other: str) -> None:
    assert emoji.find(some)[0] == emoji.find(other)[0]


def test_the_base_is_what_genders_and_tones_have_in_common() -> None:
    def of(text: str) -> str:
        return "".join(map(chr, base(tuple(map(ord, text)))))

    tone, joiner, woman = "\N{EMOJI MODIFIER FITZPATRICK TYPE-6}", "\N{ZERO WIDTH JOINER}", "\N{WOMAN}"
    female, health = "\N{FEMALE SIGN}\ufe0f", "\N{STAFF OF AESCULAPIUS}"
    assert of("\N{RUNNER}" + tone + joiner + female) == of("\N{RUNNER}") == "\N{RUNNER}"
    assert of(woman + tone + joiner + health + "\ufe0f") == of("\N{MAN}" + joiner + health) == health
    assert of(woman) == of("\N{MAN}") == "\N{ADULT}"
    assert of(female) == "\N{FEMALE SIGN}"
    assert of("1\ufe0f\u20e3") == "1\u20e3"
    flag = "\N{REGIONAL INDICATOR SYMBOL LETTER F}\N{REGIONAL INDICATOR SYMBOL LETTER R}"
    assert of(flag) == flag


def test_an_eighth_of_each_class_is_held_out(train: ImageSet, test: ImageSet) -> None:
    """Or nearly: some families have pictures of two classes."""
    held_out = test.labels.bincount()
    eighth = (train.labels.bincount() + held_out) / 8
    assert (held_out - eighth).abs().max() < 4


# Names


def test_names_and_characters_go_with_the_images(train: ImageSet) -> None:
    names, characters = emoji.names("train"), emoji.characters("train")
    assert len(names) == len(set(names)) == len(characters) == len(set(characters)) == len(train)
    fox = names.index("fox")
    assert characters[fox] == "\N{FOX FACE}"
    assert train.classes[int(train.labels[fox])] == "Animals & Nature"
    some = load("emoji", size=40, seed=3)
    rows = [names.index(name) for name in emoji.names("train", size=40, seed=3)]
    assert rows == sorted(rows)
    assert torch.equal(some.images, train.images[rows])
    assert torch.equal(some.labels, train.labels[rows])
    assert emoji.characters("train", size=40, seed=3) == [characters[row] for row in rows]
    assert emoji.names("train", size=40, seed=4) != emoji.names("train", size=40, seed=3)


def test_names_are_those_of_unicode() -> None:
    """Of single code points the names differ in wording, so only those that agree can be compared; most do."""
    pairs = zip(emoji.characters("train"), emoji.names("train"), strict=True)
    single = [(text, name) for text, name in pairs if len(text) == 1]
    agreeing = [text for text, name in single if unicodedata.name(text, "unknown").lower().split()[0] in name.lower()]
    assert len(single) > 1000
    assert len(agreeing) > 0.7 * len(single)


def test_an_emoji_is_found_by_its_name_and_by_itself() -> None:
    split, i = emoji.find("fox")
    assert emoji.find("\N{FOX FACE}") == (split, i)
    assert emoji.names(split)[i] == "fox"
    heart = emoji.find("red heart")
    assert emoji.find("\N{HEAVY BLACK HEART}") == emoji.find("\N{HEAVY BLACK HEART}\ufe0f") == heart
    for split in ("train", "test"):
        assert [emoji.find(text) for text in emoji.characters(split)[:30]] == [(split, i) for i in range(30)]
    with pytest.raises(ValueError, match=r"^what: got 'Fox', want an emoji or its name, such as fox$"):
        emoji.find("Fox")
    with pytest.raises(ValueError, match=r"^what: got 'unicorns', want an emoji or its name$"):
        emoji.find("unicorns")
    with pytest.raises(ValueError, match=r"^what: got 3, want an emoji or its name"):
        emoji.find(3)  # type: ignore[arg-type]


def test_of_skin_tones_there_are_none_and_three_and_no_two_in_one_picture() -> None:
    texts = emoji.characters("train") + emoji.characters("test")
    tones = [[character for character in text if character in TONES] for text in texts]
    assert {len(some) for some in tones} == {0, 1}
    assert sorted({some[0] for some in tones if some}) == ["\U0001f3fb", "\U0001f3fd", "\U0001f3ff"]
    names = emoji.names("train") + emoji.names("test")
    for there, absent in (("flag: Norway", "flag: Bouvet Island"), ("flag: France", "flag: Clipperton Island")):
        assert there in names
        assert absent not in names


# The contract of load


def test_some_emoji_are_drawn_with_the_seed_and_kept_in_order(test: ImageSet) -> None:
    part = load("emoji", "test", size=50, seed=1)
    again, other = load("emoji", "test", size=50, seed=1), load("emoji", "test", size=50, seed=2)
    assert digest(part) == digest(again) != digest(other)
    assert digest(load("emoji", "test", size=339)) == digest(test)
    assert len(part.labels.unique()) > 5
    with pytest.raises(ValueError, match=r"^size: got 340, want 1 to 339, the images of emoji/test"):
        load("emoji", "test", size=340)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split: got 'valid', want 'train' or 'test', which emoji has"),
        (
            {"image_size": 28},
            "image_size: got 28, want 32, or one of 16, 64, 128 from a file made by "
            "python -m companion.data.emoji --font PATH --emoji-test PATH --size …",
        ),
    ],
)
def test_load_refuses_what_emoji_have_not(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        load("emoji", **arguments)


@pytest.mark.parametrize("function", [emoji.names, emoji.characters])
def test_names_refuse_wrong_arguments_by_name(function: Any) -> None:
    for arguments, message in (
        ({"split": "valid"}, "split: got 'valid', want"),
        ({"size": 0}, "size: got 0, want a whole number from 1"),
        ({"size": 10_000}, "size: got 10,000, want 1 to 2,413"),
        ({"seed": -1}, "seed: got -1, want a whole number"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(**arguments)


def test_another_size_that_was_not_made_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load("emoji", image_size=64, root=tmp_path)
    file = tmp_path / "emoji-64.npz"
    assert str(caught.value) == (
        f"emoji: {file} is missing: make it with python -m companion.data.emoji --font PATH --emoji-test PATH "
        f"--size 64 --out {file}, or take image_size=32, which is shipped"
    )


def test_a_file_of_another_size_is_read_from_root(tmp_path: Path, test: ImageSet) -> None:
    pictures, entries = emoji.read(ATLAS, 32)
    large = pictures[:200].repeat(2, 1).repeat(2, 2)
    emoji.write(tmp_path / "emoji-64.npz", large, entries[:200], "this test")
    images = load("emoji", "test", image_size=64, root=tmp_path)
    n = len(images)
    assert 10 < n < 40
    assert images.shape == (3, 64, 64)
    assert torch.equal(images.images[:, :, ::2, ::2], test.images[:n])
    assert torch.equal(images.images[:, :, 1::2, 1::2], test.images[:n])
    assert torch.equal(images.labels, test.labels[:n])
    assert emoji.made_from(tmp_path / "emoji-64.npz") == "this test"


@pytest.mark.parametrize("damage", ["cut", "empty", "no file of numpy", "one bit", "other pictures"])
def test_a_damaged_file_is_named_and_what_to_do(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, file = ATLAS.read_bytes(), tmp_path / "emoji-32.npz"
    if damage == "other pictures":
        pictures, entries = emoji.read(ATLAS, 32)
        with monkeypatch.context() as patch:
            patch.setattr(emoji, "checksum", lambda pictures, table: "of others")
            emoji.write(file, pictures[:50], entries[:50], "")
    else:
        flipped = whole[:1_000_000] + bytes([whole[1_000_000] ^ 1]) + whole[1_000_001:]
        damaged = {"cut": whole[:-2000], "empty": b"", "no file of numpy": b"<html>", "one bit": flipped}
        file.write_bytes(damaged[damage])
    monkeypatch.setattr(emoji, "_ATLAS", file)
    with pytest.raises(ValueError, match=r"emoji-32.npz is damaged or cut short \(.*\): it comes with the package, so"):
        load("emoji")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"^emoji: .*emoji-32.npz is missing: it comes with the package"):
        load("emoji")
    with pytest.raises(FileNotFoundError, match=r"^emoji: .*emoji-32.npz is missing: it comes with the package"):
        emoji.names()


def test_emoji_need_pillow_only_and_say_so() -> None:
    code = """
import sys, torch
for name in ("torchvision", "tqdm", "matplotlib", "filelock", "fontTools", *sys.argv[1:]):
    sys.modules[name] = None
import companion.data
from companion.data import emoji
print(len(emoji.names()))
try:
    print(len(companion.data.load("emoji", size=3)))
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2413", "3"]
    done = subprocess.run([*command, "PIL"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2413", f"load('emoji') needs PIL: {install('data')}"]


# How they are made


def test_pixels_are_averaged_by_their_opacity_and_laid_on_white() -> None:
    """Transparent pixels of the font are black: an average that counts them has a dark fringe."""
    full = np.zeros((1, 128, 128, 4), np.uint8)
    full[0, :2, :4] = (255, 0, 0, 255)  # half of the first square of 4×4 pixels is red
    full[0, :4, 4:8] = (0, 0, 200, 128)
    made = smaller(full, 32)
    assert made.shape == (1, 32, 32, 3)
    assert made[0, 0, 0].tolist() == [255, 128, 128]
    assert made[0, 0, 1].tolist() == [127, 127, 227]  # 255 + (c - 255) · 128/255, rounded
    assert (made[0, 1:] == 255).all()
    wrong = full[0, :4, :4, :3].mean((0, 1)) * 0.5 + 255 * 0.5
    assert wrong.round().tolist() == [191, 128, 128]
    assert smaller(full, 64)[0, 0, :4].tolist() == [[255, 0, 0]] * 2 + [[127, 127, 227]] * 2


def test_the_shipped_file_is_made_again_from_the_font() -> None:
    for file in (FONT, EMOJI_TEST):
        if not file.is_file():
            pytest.skip(
                f"{file} is absent (packages fonts-noto-color-emoji, unicode-data; COMPANION_EMOJI_FONT, _TEST)"
            )
    pictures, entries, versions = drawn(FONT, EMOJI_TEST, 32)
    if versions != emoji.made_from():
        pytest.skip(f"the pictures were made from {emoji.made_from()}, and here is {versions}")
    shipped, known = emoji.read(ATLAS, 32)
    assert np.array_equal(pictures, shipped)
    assert entries == known
    large, same, _ = drawn(FONT, EMOJI_TEST, 64)
    assert same == known
    halves = large.reshape(-1, 32, 2, 32, 2, 3).astype(float).mean((2, 4))
    assert np.abs(halves - shipped).max() <= 1


def test_the_command_makes_other_sizes_from_the_version_of_the_shipped_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are looked up in the shipped file, so another version's pictures would get wrong ones."""
    pictures, entries = emoji.read(ATLAS, 32)
    made = {"pictures": pictures[:40], "entries": entries[:40], "versions": "of another day"}
    monkeypatch.setattr(_emoji_atlas, "drawn", lambda font, emoji_test, side: tuple(made.values()))
    out = tmp_path / "new" / "atlas.npz"
    arguments = ["--font", "f", "--emoji-test", "e", "--out", str(out)]
    with pytest.raises(SystemExit):
        emoji.main([*arguments, "--size", "64"])
    says = f"font, emoji_test: got of another day, want {emoji.made_from()}, of which the pictures of 32×32 are"
    assert says in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    emoji.main(arguments)
    assert np.array_equal(emoji.read(out, 32)[0], pictures[:40])
    assert capsys.readouterr().out.startswith(f"{out}: 40 pictures of 32×32, 0.")
    made["versions"] = emoji.made_from()
    emoji.main([*arguments, "--size", "64"])
    assert emoji.made_from(out) == emoji.made_from()


def test_the_command_says_what_is_wrong_with_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "emoji-test.txt"
    names.write_text(
        "# Version: 15.0\n# group: Animals & Nature\n1F98A ; fully-qualified     # \N{FOX FACE} E3.0 fox\n",
        encoding="utf-8",
    )
    font = tmp_path / "font.ttf"
    font.write_bytes(b"no font")
    for arguments, says in (
        (["--font", str(font), "--emoji-test", str(tmp_path / "absent")], "emoji_test: got .*absent"),
        (["--font", str(font), "--emoji-test", str(font)], "emoji_test: got .*font.ttf without emoji in groups"),
        (["--font", str(font), "--emoji-test", str(names)], "font: got .*font.ttf .*want the file NotoColorEmoji.ttf"),
        (["--font", str(font), "--emoji-test", str(names), "--size", "30"], "invalid choice: 30"),
    ):
        with pytest.raises(SystemExit):
            emoji.main(arguments)
        assert re.search(says, " ".join(capsys.readouterr().err.split()))

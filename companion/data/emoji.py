"""Emoji in colour: 2,752 pictures of Noto Color Emoji, 32×32 on white, in the nine groups of Unicode.

The pictures come with the package, in ``emoji-32.npz``, a lossless WebP with a table of what is on it. Where each is
found::

    from companion.data import emoji, load

    split, i = emoji.find("fox")  # or emoji.find("\\N{FOX FACE}")
    fox = load("emoji", split).images[i]  # (3, 32, 32) uint8

**What is in.** Every emoji of Unicode 15.0 (file ``emoji-test.txt``) without a skin tone: single code points, flags,
keycaps, professions, families. Of those with one skin tone: the light, the medium and the dark one.

**What is not.** Medium-light and medium-dark skin, and couples with a tone for each person: with them the file has
2.7 MB instead of 2.2, and three pictures in five would be of people. And of pictures that are the same in each byte
(the flags of Norway and of Bouvet Island) the one with the shortest name stays.

**The background** is white. Of the emoji without a skin tone, 26 hardly differ from it along more than half of their
border (a ghost, a cloud, a tooth); on middle grey it would be 72, and on light grey 156.

**The split.** About one picture in eight is in "test". Pictures of one emoji stand on one side: its skin tones, its
genders, and what is joined to it. So do pictures that hardly differ, such as clock faces an hour apart; see
``companion.data._emoji_atlas``.

**Another size**, of 16, 64 or 128 pixels, is drawn from the font, which Debian has in the packages
``fonts-noto-color-emoji`` and ``unicode-data``. Needed are its version 2.042 and fonttools::

    python -m companion.data.emoji --font NotoColorEmoji.ttf --emoji-test emoji-test.txt --size 64

The pictures are under the SIL Open Font License, in ``emoji-LICENSE.txt``.
"""

import argparse
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion._arguments import check_choice, check_instance, check_size, check_whole
from companion._extras import install, require
from companion.data.images import ImageSet, chosen
from companion.data.real import data_folder

SIZE = 32  # pixels along the side of a picture that is shipped
SIZES = (16, 32, 64, 128)  # a picture of the font has 128
CLASSES = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)

_ATLAS = Path(__file__).with_name(f"emoji-{SIZE}.npz")
_COLUMNS = 32  # pictures in a line of the atlas
_COMMAND = "python -m companion.data.emoji --font PATH --emoji-test PATH"


@dataclass(frozen=True)
class Entry:
    """What is known of one picture: its characters, Unicode's name, the class, and the split that it is in."""

    characters: str
    name: str
    label: int
    split: str


def emoji(split: str, *, size: int | None, seed: int, image_size: int | None, root: str | Path | None) -> ImageSet:
    """The pictures of a split, in Unicode's order; the arguments are those of ``companion.data.load``.

    Raises:
        ValueError: the atlas is damaged, ``size`` is more than there are, or there is no such ``image_size``.
        FileNotFoundError: the atlas is missing, or that of another size has not been made.
        ImportError: pillow is missing.
    """
    side = SIZE if image_size is None else image_size
    if side not in SIZES:
        others = ", ".join(str(other) for other in SIZES if other != SIZE)
        raise ValueError(
            f"image_size: got {side}, want {SIZE}, or one of {others} from a file made by {_COMMAND} --size …"
        )
    pictures, entries = read(_ATLAS if side == SIZE else data_folder(root) / f"emoji-{side}.npz", side)
    rows = _rows(entries, split, size, seed)
    labels = torch.tensor([entries[i].label for i in rows], device="cpu")
    images = np.ascontiguousarray(pictures[rows].transpose(0, 3, 1, 2))
    return ImageSet("emoji", split, torch.from_numpy(images), labels, CLASSES)


def names(split: str = "train", *, size: int | None = None, seed: int = 0) -> list[str]:
    """Unicode's names, such as "fox", of the images of ``load("emoji", split, size=size, seed=seed)``, in their order.

    Raises:
        ValueError: an argument is wrong, or the atlas is damaged.
    """
    entries = _shipped()
    return [entries[i].name for i in _rows(entries, split, size, seed)]


def characters(split: str = "train", *, size: int | None = None, seed: int = 0) -> list[str]:
    """The emoji themselves, as text, of the images of ``load("emoji", split, size=size, seed=seed)``, in their order.

    Raises:
        ValueError: an argument is wrong, or the atlas is damaged.
    """
    entries = _shipped()
    return [entries[i].characters for i in _rows(entries, split, size, seed)]


def find(what: str) -> tuple[str, int]:
    """Where the picture of an emoji is: its split, and its index in ``load("emoji", split)``.

    Args:
        what: the emoji as text, or its name.

    Raises:
        ValueError: there is no such picture; the message has names that are similar.
    """
    check_instance("what", what, str, "an emoji or its name, such as 'fox'")
    bare = what.replace(_VARIANT, "")
    for split in ("train", "test"):
        known = [(entry.characters.replace(_VARIANT, ""), entry.name) for entry in _shipped() if entry.split == split]
        for i, (text, name) in enumerate(known):
            if bare in (text, name):
                return split, i
    similar = [entry.name for entry in _shipped() if what and what.lower() in entry.name.lower()]
    like = f", such as {', '.join(similar[:8])}" if similar else ""
    raise ValueError(f"what: got {what!r}, want an emoji or its name{like}")


_VARIANT = "\N{VARIATION SELECTOR-16}"  # asks for the picture where a character is text as well


def _rows(entries: list[Entry], split: str, size: int | None, seed: int) -> list[int]:
    """Which pictures of the atlas are asked for."""
    check_choice("split", split, ("train", "test"))
    check_whole("seed", seed, least=0)
    if size is not None:
        check_size("size", size)
    those = [i for i, entry in enumerate(entries) if entry.split == split]
    return [those[i] for i in chosen(len(those), size, seed, f"emoji/{split}")]


# The file


def read(file: Path, side: int) -> tuple[Any, list[Entry]]:
    """Pictures (N, side, side, 3) uint8 of an atlas, and what each of them is.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: there is no such file.
        ImportError: pillow is missing, or reads no WebP.
    """
    pil = require("PIL.Image", extra="data", what="load('emoji')")
    if not require("PIL.features", extra="data", what="load('emoji')").check("webp"):
        raise ImportError(f"load('emoji') needs a pillow that reads WebP: {install('data')}")
    atlas = _parts(file, side)
    try:
        with pil.open(io.BytesIO(atlas["webp"].tobytes())) as opened:
            sheet = np.asarray(opened.convert("RGB"))
        entries = _entries(atlas["table"].tobytes())
        lines = -(-len(entries) // _COLUMNS)
        tiles = sheet.reshape(lines, side, _COLUMNS, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    except Exception as error:  # whatever the bytes made it stumble over
        raise _damaged(file, side, error) from error
    pictures = tiles[: len(entries)]
    if checksum(pictures, atlas["table"].tobytes()) != atlas["sha256"].item():
        raise _damaged(file, side, "its pictures have another checksum than the one stated in it")
    return pictures, entries


def write(file: Path, pictures: Any, entries: list[Entry], made_from: str) -> None:
    """Write an atlas.

    Args:
        made_from: the versions of the font and of the table of names.

    Shapes:
        pictures: (N, side, side, 3) uint8.
    """
    pil = require("PIL.Image", extra="data", what="making an atlas")
    side = pictures.shape[1]
    lines = -(-len(pictures) // _COLUMNS)
    tiles = np.full((lines * _COLUMNS, side, side, 3), 255, np.uint8)
    tiles[: len(pictures)] = pictures
    sheet = tiles.reshape(lines, _COLUMNS, side, side, 3).swapaxes(1, 2).reshape(lines * side, _COLUMNS * side, 3)
    webp = io.BytesIO()
    pil.fromarray(sheet).save(webp, "WEBP", lossless=True, quality=100, method=6)
    table = "\n".join(f"{e.characters}\t{e.name}\t{e.label}\t{e.split}" for e in entries).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as opened:  # numpy would add .npz to another suffix
        np.savez_compressed(
            opened,
            webp=np.frombuffer(webp.getvalue(), np.uint8),
            table=np.frombuffer(table, np.uint8),
            sha256=np.array(checksum(pictures, table)),
            made_from=np.array(made_from),
            licence=np.array(_ATLAS.with_name("emoji-LICENSE.txt").read_text(encoding="utf-8")),
        )


def made_from(file: Path = _ATLAS) -> str:
    """The versions of the font and of the table of names that an atlas was made from."""
    return str(_parts(file, SIZE)["made_from"].item())


def checksum(pictures: Any, table: bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(pictures).tobytes() + table).hexdigest()


def _shipped() -> list[Entry]:
    return _entries(_parts(_ATLAS, SIZE)["table"].tobytes())


def _parts(file: Path, side: int) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file is damaged: zip has a checksum of each part.
        FileNotFoundError: there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"emoji: {file} is missing: {_way(file, side)}")
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in ("webp", "table", "sha256", "made_from")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, side, error) from error


def _entries(table: bytes) -> list[Entry]:
    lines = [line.split("\t") for line in table.decode().split("\n")]
    return [Entry(text, name, int(label), split) for text, name, label, split in lines]


def _damaged(file: Path, side: int, reason: object) -> ValueError:
    return ValueError(f"{file} is damaged or cut short ({reason}): {_way(file, side)}")


def _way(file: Path, side: int) -> str:
    if file == _ATLAS:
        return "it comes with the package, so install that again"
    return f"make it with {_COMMAND} --size {side} --out {file}, or take image_size={SIZE}, which is shipped"


def main(arguments: list[str] | None = None) -> None:
    from companion.data._emoji_atlas import drawn

    parser = argparse.ArgumentParser("python -m companion.data.emoji", description="Draw the pictures from the font.")
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf, with pictures of 136×128 pixels")
    parser.add_argument("--emoji-test", type=Path, required=True, help="Unicode's emoji-test.txt")
    parser.add_argument("--size", type=int, default=SIZE, choices=SIZES, help="pixels along the side (default: 32)")
    parser.add_argument("--out", type=Path, help="the file; default: where load looks for it")
    options = parser.parse_args(arguments)
    out = options.out or (_ATLAS if options.size == SIZE else data_folder() / f"emoji-{options.size}.npz")
    try:
        pictures, entries, versions = drawn(options.font, options.emoji_test, options.size)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if options.size != SIZE and versions != made_from():  # names and splits of all sizes are those of the shipped file
        parser.error(
            f"font, emoji_test: got {versions}, want {made_from()}, of which the pictures of {SIZE}×{SIZE} are"
        )
    write(out, pictures, entries, versions)
    print(f"{out}: {len(pictures):,} pictures of {options.size}×{options.size}, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

"""How the pictures of ``companion.data.emoji`` are made: read from the font, made smaller, and divided.

The font has each picture as a PNG of 136×128 pixels, whose outer four columns are empty. The middle, 128×128, is
averaged over squares of 4×4 pixels (for 32×32), each pixel weighted by its opacity, and laid on white. All in whole
numbers, and no font library draws anything, so that the same font gives the same bytes on every machine.
"""

import hashlib
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from companion._extras import require
from companion.data.emoji import CLASSES, SIZE, Entry

WHITE = 255  # the background
FULL = 128  # pixels along the side of a picture in the font
NEAR = 0.075  # pictures nearer than this stand on one side: root mean squared difference of the pixels, in [0, 1]
TEST_SHARE = 8  # one in so many is held out

_TONES = range(0x1F3FB, 0x1F400)
_KEPT_TONES = (0x1F3FB, 0x1F3FD, 0x1F3FF)  # light, medium, dark
_VARIANT, _JOINER = 0xFE0F, 0x200D
_GENDER_SIGNS = (0x2640, 0x2642)
_PERSON = 0x1F9D1
_ONE_BASE = {  # emoji that differ in gender or number only, and have code points of their own
    _PERSON: (0x1F468, 0x1F469, 0x1F46A),  # person: man, woman, family
    0x1F9D2: (0x1F466, 0x1F467),  # child: boy, girl
    0x1F9D3: (0x1F474, 0x1F475),  # older person: old man, old woman
    0x1FAC5: (0x1F934, 0x1F478),  # person with crown: prince, princess
    0x1F384: (0x1F385, 0x1F936),  # mx claus, who is a person and a Christmas tree: Santa Claus, Mrs. Claus
    0x1FAC4: (0x1F930, 0x1FAC3),  # pregnant person, woman, man
    0x1F483: (0x1F57A,),  # woman dancing, man dancing
    0x1F91D: (0x1F46B, 0x1F46C, 0x1F46D),  # people and a handshake: couples holding hands
    0x2764: (0x1F48F, 0x1F491),  # people and a heart: kiss, couple with heart
}
_BASE = {other: base for base, others in _ONE_BASE.items() for other in others}


@dataclass(frozen=True)
class Line:
    """An emoji of ``emoji-test.txt``."""

    points: tuple[int, ...]
    name: str
    label: int


def drawn(font_file: Path, emoji_test: Path, side: int) -> tuple[Any, list[Entry], str]:
    """The pictures of a font, (N, side, side, 3) uint8, what each is, and the versions of font and names.

    Which pictures are kept, and which are held out, is decided by those of 32×32 at every size.

    Raises:
        ValueError: the font has no bitmaps, or lacks an emoji; or a file is of another kind.
        ImportError: fonttools or pillow is missing.
    """
    lines, version = _read_names(emoji_test)
    lines = [line for line in lines if _is_wanted(line)]
    full, font_version = _read_font(font_file, lines)
    small = smaller(full, SIZE)  # (N, 32, 32, 3)
    kept = _without_twins(small, [line.name for line in lines])
    lines, small = [lines[i] for i in kept], small[kept]
    held_out = split(small, [base(line.points) for line in lines], [line.label for line in lines])
    entries = [
        Entry("".join(map(chr, line.points)), line.name, line.label, "test" if out else "train")
        for line, out in zip(lines, held_out, strict=True)
    ]
    return smaller(full[kept], side), entries, f"Noto Color Emoji {font_version}; emoji-test.txt {version}"


def smaller(full: Any, side: int) -> Any:
    """Averages over squares, on white. A pixel counts as much as it is opaque, or dark fringes would surround a shape:
    the colour of what is transparent is black in the font.

    Shapes:
        full: (N, 128, 128, 4) uint8, red, green, blue and opacity → (N, side, side, 3) uint8.
    """
    k = FULL // side
    made = np.empty((len(full), side, side, 3), np.uint8)
    for i, picture in enumerate(full):
        colour, opacity = picture[..., :3].astype(np.int64), picture[..., 3:].astype(np.int64)
        laid = colour * opacity + WHITE * (255 - opacity)  # (128, 128, 3), each 255 times the colour
        total = laid.reshape(side, k, side, k, 3).sum((1, 3))
        made[i] = (2 * total + 255 * k * k) // (2 * 255 * k * k)  # rounded, halves upwards
    return made


# Which emoji


def _read_names(file: Path) -> tuple[list[Line], str]:
    """The fully qualified emoji of ``emoji-test.txt``, in its order, and its version."""
    lines, label = [], -1
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"emoji_test: got {file} ({error}), want Unicode's emoji-test.txt") from error
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
            label = CLASSES.index(group) if group in CLASSES else -1  # "Component" is none
        elif found := re.match(r"([0-9A-F ]+); fully-qualified +# \S+ E[\d.]+ (.+)", line):
            points = tuple(int(point, 16) for point in found[1].split())
            lines.append(Line(points, found[2], label))
    version = re.search(r"^# Version: ([\d.]+)$", text, re.MULTILINE)
    if version is None or not lines or min(line.label for line in lines) < 0:
        raise ValueError(f"emoji_test: got {file} without emoji in groups, want Unicode's emoji-test.txt")
    return lines, version[1]


def _is_wanted(line: Line) -> bool:
    """No skin tone, or one of the three that are kept."""
    tones = [point for point in line.points if point in _TONES]
    return len(tones) == 0 or (len(tones) == 1 and tones[0] in _KEPT_TONES)


def _without_twins(pictures: Any, names: list[str]) -> list[int]:
    """The indices of the pictures that stay, in order: of those that are the same, the one with the shortest name."""
    twins = defaultdict(list)
    for i, picture in enumerate(pictures):
        twins[picture.tobytes()].append(i)
    return sorted(min(same, key=lambda i: (len(names[i]), i)) for same in twins.values())


# The font


def _read_font(file: Path, lines: list[Line]) -> tuple[Any, str]:
    """The pictures of ``lines``, (N, 128, 128, 4) uint8, and the version of the font."""
    tt_lib = require("fontTools.ttLib", extra="data", what="reading the font")
    pil = require("PIL.Image", extra="data", what="reading the font")
    try:
        font = tt_lib.TTFont(file)
    except (OSError, tt_lib.TTLibError) as error:
        raise ValueError(f"font: got {file} ({error}), want the file NotoColorEmoji.ttf") from error
    if "CBDT" not in font or "GSUB" not in font:
        raise ValueError(f"font: got {file} without bitmaps (table CBDT), want a NotoColorEmoji.ttf that has them")
    bitmaps, glyphs, ligatures = font["CBDT"].strikeData[0], font.getBestCmap(), _ligatures(font)
    pictures = np.empty((len(lines), FULL, FULL, 4), np.uint8)
    for i, line in enumerate(lines):
        glyph = tuple(glyphs.get(point) for point in line.points if point != _VARIANT)
        name = glyph[0] if len(glyph) == 1 else ligatures.get(glyph)
        if name not in bitmaps:
            raise ValueError(f"font: got {file} without {line.name!r}, want a version that has it, such as 2.042")
        with pil.open(io.BytesIO(bitmaps[name].imageData)) as opened:
            whole = np.asarray(opened.convert("RGBA"))
        if whole.shape != (FULL, FULL + 8, 4):
            raise ValueError(f"font: got a picture of {whole.shape[1]}×{whole.shape[0]} pixels, want 136×128")
        pictures[i] = whole[:, 4:-4]
    return pictures, font["name"].getDebugName(5)


def _ligatures(font: Any) -> dict[tuple[str, ...], str]:
    """Sequences of glyphs → the one glyph that is shown for them."""
    found: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    found.setdefault((first, *ligature.Component), ligature.LigGlyph)
    return found


# The split


def base(points: tuple[int, ...]) -> tuple[int, ...]:
    """What the variants of an emoji have in common: its first part, without skin tone and gender.

    The parts of a sequence are joined by ZERO WIDTH JOINER. Where the first is a person, the second tells more: a
    health worker is a person and a medical symbol.
    """
    parts: list[list[int]] = [[]]
    for point in points:
        if point == _JOINER:
            parts.append([])
        elif point not in _TONES and point != _VARIANT:
            parts[-1].append(_BASE.get(point, point))
    telling = [tuple(part) for part in parts if part and (len(parts) == 1 or part[0] not in _GENDER_SIGNS)]
    return telling[1] if len(telling) > 1 and telling[0] == (_PERSON,) else telling[0]


def split(pictures: Any, bases: list[tuple[int, ...]], labels: list[int]) -> list[bool]:
    """Which pictures are held out: an eighth of each class, in whole families.

    A family is all the pictures of one base, and of other bases with a picture that hardly differs from one of them.
    The families of a class are taken in the order of a hash of the code points of their first base, each that still
    fits, so that no random numbers are needed.

    Shapes:
        pictures: (N, side, side, 3) uint8.
    """
    families = defaultdict(list)
    for i, first in enumerate(_families(pictures, bases)):
        families[first].append(i)
    held_out = [False] * len(bases)
    room = [labels.count(label) // TEST_SHARE for label in range(len(CLASSES))]
    for first in sorted(families, key=_hash):
        members = families[first]
        if len(members) <= room[labels[members[0]]]:
            room[labels[members[0]]] -= len(members)
            for i in members:
                held_out[i] = True
    return held_out


def _families(pictures: Any, bases: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each picture the first base of its family."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    squares = np.square(flat).sum(1)
    distances = squares[:, None] + squares - 2 * flat @ flat.T  # (N, N), of whole numbers below 2**53: exact
    near = np.argwhere(distances <= (255 * NEAR) ** 2 * flat.shape[1])
    parent = {one: one for one in bases}
    place = {one: i for i, one in enumerate(parent)}  # in the order of Unicode

    def first(one: tuple[int, ...]) -> tuple[int, ...]:
        while parent[one] != one:
            one = parent[one]
        return one

    for i, j in near.tolist():
        a, b = sorted((first(bases[i]), first(bases[j])), key=place.__getitem__)
        parent[b] = a
    return [first(one) for one in bases]


def _hash(points: tuple[int, ...]) -> bytes:
    return hashlib.sha256(" ".join(f"{point:04X}" for point in points).encode()).digest()

"""Image files of every kind in a folder: what each gives, and what is said of it. All are made here."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from companion.data import ImageSet, load
from companion.data.pictures import Reading, fitted


def only(top: Path, **options: Any) -> Any:
    """The pixels (C, H, W) of a folder's only image."""
    images = load(top, **options).images
    assert len(images) == 1
    return images[0].numpy()


def png_16_bits(colour_type: int, pixel: list[int]) -> bytes:
    """4×4 pixels, all alike."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + np.array(pixel * 4, ">u2").tobytes()) * 4
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("grey.png", png_16_bits(0, [40_000]), [156]),
        ("colour.png", png_16_bits(2, [40_000, 255, 65_535]), [156, 0, 255]),
        ("grey-and-alpha.png", png_16_bits(4, [40_000, 65_535]), [156]),
        ("colour-and-alpha.png", png_16_bits(6, [40_000, 256, 0, 65_535]), [156, 1, 0]),
        ("colour.ppm", b"P6 2 2 65535\n" + np.full(12, 40_000, ">u2").tobytes(), [156, 156, 156]),
        ("grey.pgm", b"P5 2 2 1023\n" + np.full(4, 625, ">u2").tobytes(), [156]),
    ],
    ids=["grey", "colour", "grey-and-alpha", "colour-and-alpha", "ppm", "pgm"],
)
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path, name: str, content: bytes, want: list[int]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=r"of 1 images 1 with 16 bits a channel \(the upper 8 are taken\)$"):
        pixels = only(tmp_path)
    assert pixels[:, 0, 0].tolist() == want


def test_sixteen_bits_in_a_tiff_and_pillows_own_way_with_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    assert np.asarray(Image.open(tmp_path / "deep.tif").convert("L")).max() == 255  # it clips
    with pytest.warns(UserWarning, match="1 with 16 bits"):
        assert only(tmp_path).tolist() == [[[156] * 4] * 4]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_whose_range_no_file_says_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.full((4, 4), 3, kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif has numbers of 32 bits, whose range it does not say"):
        load(tmp_path)


def transparent_files(top: Path) -> dict[str, list[int]]:
    """Left half opaque, right half transparent over another colour; and what the left pixel is."""
    rgba = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    rgba.paste((200, 0, 0, 0), (2, 0, 4, 4))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.paste(1, (2, 0, 4, 4))
    grey = Image.new("LA", (4, 4), (50, 255))
    grey.paste((0, 0), (2, 0, 4, 4))
    rgb = Image.new("RGB", (4, 4), (10, 20, 30))
    rgb.paste((200, 0, 0), (2, 0, 4, 4))
    rgba.save(top / "rgba.png")
    rgba.save(top / "rgba.webp", lossless=True, exact=True)
    palette.save(top / "palette.png", transparency=1)
    palette.save(top / "palette.gif", transparency=1)
    grey.save(top / "grey.png")
    rgb.save(top / "one-colour.png", transparency=(200, 0, 0))
    return {file.name: [50] * (1 if file.name == "grey.png" else 3) for file in top.iterdir()}


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("#404040", 0x40)])
def test_what_is_transparent_is_laid_on_the_background(tmp_path: Path, background: str, value: int) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for number, name in enumerate(transparent_files(made)):
        alone = tmp_path / str(number)
        alone.mkdir()
        (made / name).rename(alone / name)
        with pytest.warns(UserWarning, match=rf"of 1 images 1 transparent \(laid on {background}\)$"):
            pixels = only(alone, background=background)
        left, right = pixels[:, 0, 0].tolist(), pixels[:, 0, 3].tolist()
        assert left == ([50] if name == "grey.png" else [10, 20, 30]), name
        assert right == [value] * len(left), name  # dropping the transparency would give 0 or (200, 0, 0)


def test_half_transparent_is_mixed_and_fully_opaque_is_no_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (100, 0, 0, 128)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="1 transparent"):
        red, green, _ = only(tmp_path)[:, 0, 0].tolist()
    assert (abs(red - 177), abs(green - 127)) <= (1, 1)
    Image.new("RGBA", (2, 2), (100, 0, 0, 255)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert only(tmp_path)[:, 0, 0].tolist() == [100, 0, 0]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path: Path, name: str) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 255)]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match=r"of 1 images 1 with several frames or pages \(the first is taken\)$"):
        assert (only(tmp_path) == 10).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    with pytest.warns(UserWarning, match=r"of 1 images 1 in CMYK or another space of colours \(converted to RGB\)$"):
        red, green, blue = only(tmp_path)[:, 0, 0].tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("name", ["1.png", "1.jpg", "1.tif", "raw.tif", "1.webp"])
def test_a_photograph_is_turned_upright(tmp_path: Path, name: str) -> None:
    """Of the uncompressed TIFF, pillow 13.0 mixes up the rows if it is opened by its name."""
    lying = Image.fromarray(np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 8, 0), 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    lying.save(tmp_path / name, exif=exif, **({"compression": "tiff_lzw"} if name == "1.tif" else {}))
    with pytest.warns(UserWarning, match="of 1 images 1 turned upright by their EXIF orientation$"):
        pixels = only(tmp_path)[0, 4::8, 4::8].astype(int)
    assert np.abs(pixels - [[120, 0], [160, 40], [200, 80]]).max() <= 4


@pytest.mark.parametrize(
    ("fit", "want"),
    [
        ("crop", [[200, 200], [200, 200]]),
        ("resize", [[100, 200], [100, 200]]),
        ("pad", [[255, 255], [100, 200], [100, 200], [255, 255]]),
    ],
)
def test_images_come_to_their_side_by_crop_resize_or_pad(tmp_path: Path, fit: str, want: list[list[int]]) -> None:
    """40×20: a black or grey left part and a bright right one, here looked at far from where they meet."""
    pixels = np.full((20, 40), 200, np.uint8)
    pixels[:, : 10 if fit == "crop" else 20] = 100
    Image.fromarray(pixels).save(tmp_path / "1.png")
    got = only(tmp_path, image_size=16, fit=fit)[0]
    assert got.shape == (16, 16)
    assert got[2 :: 16 // len(want), [2, 13]].tolist() == want


def test_a_padded_image_stands_in_the_middle_on_its_background(tmp_path: Path) -> None:
    Image.new("RGB", (2, 100), (10, 20, 30)).save(tmp_path / "1.png")
    pixels = only(tmp_path, image_size=9, fit="pad", background="#010203")
    assert (pixels[:, :, 4] == np.array([[10], [20], [30]])).all()
    assert pixels[:, 0, 0].tolist() == pixels[:, 8, 8].tolist() == [1, 2, 3]
    assert fitted(Image.new("L", (1, 5000)), 8, "pad").size == (8, 8)  # its width rounds to 0


def test_small_images_are_enlarged_and_that_is_said(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "1.png")
    with pytest.warns(UserWarning, match=r"of 1 images 1 smaller than 8×8 \(enlarged\)$"):
        assert (only(tmp_path, image_size=8) == 7).all()


def test_black_and_white_is_resized_in_greys(tmp_path: Path) -> None:
    chequered = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    assert set(np.asarray(chequered.resize((8, 8))).ravel().tolist()) <= {False, True}  # pillow takes the nearest
    chequered.save(tmp_path / "1.png")
    middle = only(tmp_path, image_size=8)[0, 2:6, 2:6].astype(int)
    assert np.abs(middle - 128).max() < 40


UNREADABLE = ("text.png", "empty.jpg", "cut.jpg", "cut.png", "pipe.png", "gone.gif")


def write_unreadable(top: Path) -> list[str]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix, format in (("jpg", "JPEG"), ("png", "PNG")):
        whole = io.BytesIO()
        Image.fromarray(noise).save(whole, format)
        (top / f"cut.{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (top / "text.png").write_bytes(b"this is no image")
    (top / "empty.jpg").write_bytes(b"")
    (top / "gone.gif").symlink_to(top / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(top / "pipe.png")
    return sorted(file.name for file in top.iterdir())


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("cache", [False, True])
def test_a_file_that_cannot_be_read_is_named(
    name: str, cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "caches"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # another library may have set it
    top = tmp_path / "a"
    top.mkdir()
    for file in write_unreadable(top):
        if file != name:
            (top / file).unlink()
    with pytest.raises(ValueError, match=rf"a.{name} (does not decode .*: replace it|is no file that can be read)"):
        load(top, image_size=8, cache=cache)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("cache", [False, True])
def test_unreadable_files_are_skipped_and_named_if_that_is_asked_for(
    tmp_path: Path, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "caches"))
    top = tmp_path / "pets"
    for name, value in (("cat/b.png", 10), ("cat/z.png", 20), ("dog/a.png", 30)):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(top / name)
    bad = set(write_unreadable(top / "cat")) - {"b.png", "z.png"}
    counts = f"of {len(bad) + 3} images {len(bad)} left out"
    says = rf"pets: {counts}, as they cannot be read \(cat/cut.jpg; cat/cut.png; .*{'; …' * (len(bad) > 5)}\)$"
    for _ in range(2):  # a cache says it each time
        with pytest.warns(UserWarning, match=says):
            images = load(top, image_size=8, unreadable="skip", cache=cache)
        assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
        assert images.labels.tolist() == [0, 0, 1]  # of the images that are left
    (top / "cat/b.png").unlink()
    (top / "cat/z.png").unlink()
    (top / "dog/a.png").unlink()
    (top / "dog/b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="unreadable: got 'skip', but none of the images can be read"):
        load(top, unreadable="skip", cache=cache)


def test_all_that_was_done_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png_16_bits(2, [1, 2, 3]))
    (tmp_path / "2.png").write_bytes(png_16_bits(2, [1, 2, 3]))
    frames = [Image.new("RGBA", (4, 4), (value, 0, 0, 0)) for value in (10, 255)]
    frames[0].save(tmp_path / "3.png", save_all=True, append_images=frames[1:])
    Image.new("L", (4, 4)).save(tmp_path / "4.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(tmp_path)
    assert [str(one.message) for one in said] == [
        f"{tmp_path}: of 4 images 2 with 16 bits a channel (the upper 8 are taken), 1 with several frames or pages "
        "(the first is taken), 1 transparent (laid on white)"
    ]


def test_many_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Several threads read them, and the first ones take longest."""
    for i in range(150):
        side = 600 if i < 5 else 8
        Image.new("L", (side, side), i).save(tmp_path / f"{i:03}.png")
    assert load(tmp_path, image_size=8).images[:, 0, 3, 3].tolist() == list(range(150))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fit": "stretch"}, "fit: got 'stretch', want one of 'crop', 'resize', 'pad'"),
        ({"fit": "pad"}, "image_size: got None, want the side to which images come by fit='pad'"),
        ({"background": "whit"}, "background: got 'whit', want a colour without transparency"),
        ({"background": "#ffffff80"}, "background: got '#ffffff80', want a colour without transparency"),
        ({"background": 3}, "background: got 3, want a colour"),
        ({"unreadable": "ignore"}, "unreadable: got 'ignore', want one of 'raise', 'skip'"),
        ({"cache": 3}, "cache: got 3, want True, False, a path or None"),
    ],
)
def test_how_a_folder_is_read_is_checked(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=f"^{says}"):
        load(tmp_path, **options)


def test_options_of_folders_are_refused_for_other_sets() -> None:
    with pytest.raises(ValueError, match=r"^fit: got 'pad', want 'crop' for emoji: it is for folders of your own"):
        load("emoji", fit="pad", image_size=32)
    with pytest.raises(ValueError, match=r"^cache: got True, want None for glyphs"):
        load("glyphs", cache=True)
    assert Reading().fit == "crop"
    assert isinstance(load("glyphs", size=8, fit="crop", cache=None), ImageSet)

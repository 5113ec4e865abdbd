"""The manifest, what a chapter's first output says, and what it says of a number outside its band."""

import re
from pathlib import Path

import myst_nb
import pytest
import torch

from companion.course import session
from companion.course.manifest import Book, find_root, read_book
from companion.course.session import Session, begin


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPANION_PROFILE", "COMPANION_SEED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session, "_STRICT", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def glued(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    values: dict[str, object] = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: values.update({name: value}))
    return values


def test_begin_says_profile_device_data_and_time(
    book: Book, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "machine", lambda device: "2 CPU cores")
    begin("00_tiny", book=book)
    assert capsys.readouterr().out == (
        "00_tiny: Tiny\n"
        "  profile        quick: small data, small models\n"
        "  device         2 CPU cores\n"
        "  data           glyphs: 60 training, 40 test images\n"
        "  expected time  about 2 minutes (measured on 2 CPU cores)\n"
    )


def test_settings_follow_the_profile(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin("00_tiny", book=book).settings.epochs == 2
    monkeypatch.setenv("COMPANION_PROFILE", "full")
    assert begin("00_tiny", book=book).settings.epochs == 3
    monkeypatch.setenv("COMPANION_SEED", "3")
    assert begin("00_tiny", book=book).seed == 3


def test_a_gpu_makes_full_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.current_profile() == "quick"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert session.current_profile() == "full"


def test_smoke_says_that_its_numbers_mean_nothing(
    book: Book, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_PROFILE", "smoke")
    begin("00_tiny", book=book)
    printed = capsys.readouterr().out
    assert "its numbers mean nothing" in printed
    assert "not measured on this device yet" in printed


@pytest.mark.parametrize(("profile", "threads"), [("smoke", 1), ("quick", 2), ("full", 2)])
def test_only_smoke_keeps_to_one_thread(
    book: Book, monkeypatch: pytest.MonkeyPatch, profile: str, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("COMPANION_PROFILE", profile)
    try:
        torch.set_num_threads(2)
        begin("00_tiny", book=book)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_unknown_profile_and_chapter_name_those_there_are(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^name: got '01_none', want one of 00_tiny"):
        begin("01_none", book=book)
    monkeypatch.setenv("COMPANION_PROFILE", "quik")
    with pytest.raises(ValueError, match=r"COMPANION_PROFILE: got 'quik', want one of quick, full, smoke"):
        begin("00_tiny", book=book)


def test_data_has_the_sizes_of_the_profile(book: Book) -> None:
    train, test = begin("00_tiny", book=book).data()
    assert (len(train), len(test)) == (60, 40)
    assert train.images.device.type == "cpu"


@pytest.mark.parametrize(
    ("profile", "value", "said"),
    [
        ("quick", 1.05, "test_mse = 1.05, inside the band 0.9 to 1.1"),
        ("quick", 1.5, "Warning: test_mse = 1.5, outside the band 0.9 to 1.1"),
        ("quick", float("nan"), "Warning: test_mse = nan, outside"),
        ("full", 1.5, "no band measured for this profile"),
        ("smoke", 1.5, "this number means nothing"),
    ],
)
def test_expect_says_where_a_number_lies(
    book: Book,
    glued: dict[str, object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    value: float,
    said: str,
) -> None:
    monkeypatch.setenv("COMPANION_PROFILE", profile)
    begin("00_tiny", book=book).expect("test_mse", torch.tensor(value, dtype=torch.float64))
    assert said in capsys.readouterr().out
    assert repr(glued["expect.test_mse"]) == repr(value)  # a Python float, not a tensor


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("a", torch.zeros(2), "value: got a float32 tensor"),
        ("a", "0.5", "value: got '0.5'"),
        ("a", None, "value: got None"),
        (3, 0.5, "name: got 3"),
    ],
)
def test_expect_wants_one_number_and_its_name(book: Book, name: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        begin("00_tiny", book=book).expect(name, value)


def test_only_strict_stops_on_a_number_outside_its_band(
    book: Book, glued: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny: Session = begin("00_tiny", book=book)
    monkeypatch.setattr(session, "_STRICT", True)
    tiny.expect("test_mse", 1.0)
    with pytest.raises(AssertionError, match="outside the band"):
        tiny.expect("test_mse", 1.2)
    assert glued["expect.test_mse"] == 1.2  # kept all the same


@pytest.mark.parametrize(
    ("minutes", "words"), [(0.02, "5 seconds"), (0.4, "25 seconds"), (1.2, "1 minute"), (3.6, "4 minutes")]
)
def test_durations_in_words(minutes: float, words: str) -> None:
    assert session._duration(minutes) == f"about {words}"


def test_a_notebook_finds_the_course_it_lies_in(book: Book) -> None:
    (book.root / "chapters").mkdir()
    assert find_root(book.root / "chapters") == book.root.resolve()


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("book", 'title = "Tiny"\n', "", r"book\.toml: chapters\.00_tiny\.title is missing"),
        ("book", 'authors = ["someone"]', 'authors = "someone"', r"book\.authors is 'someone'; it is to be a list"),
        ("measured", "minutes = 2.2", "minutes = []", r"measured\.toml: 00_tiny\.quick\.cpu\.minutes is \[\]"),
        ("book", "[book]", "[book", r"book\.toml: "),
        ("measured", "[00_tiny", "[[00_tiny", r"measured\.toml: "),
    ],
)
def test_a_wrong_manifest_is_named(book: Book, name: str, old: str, new: str, said: str) -> None:
    path = book.root / f"{name}.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_book(book.root)


def test_the_manifest_of_this_course_reads() -> None:
    book = read_book(Path(__file__).parents[1])
    assert next(iter(book.chapters)) == "00_start_here"
    assert all(re.fullmatch(r"\d\d[a-z]?_[a-z_0-9]+", name) for name in book.chapters)  # 07, and 07b, a study beside it
    assert list(book.chapters) == sorted(book.chapters)

"""``begin``: a chapter's profile, device, data and time; ``expect``: is a number where it should be."""

import os
from dataclasses import dataclass
from numbers import Real
from types import SimpleNamespace
from typing import Any

import torch

from companion._arguments import check_instance
from companion._devices import default_device as default_device  # others take it from here
from companion.course.manifest import PROFILES, Book, Chapter, read_book
from companion.data import ImageSet, load

EXPECTED = "expect."  # the glued names of values that have a band begin with this
_STRICT = os.environ.get("COMPANION_STRICT") == "1"  # read once: no cell of a notebook that is graded turns it off


@dataclass(frozen=True)
class Session:
    """The settings of a chapter's notebook, from :func:`begin`.

    Attributes:
        name: the chapter.
        profile: ``quick``, ``full`` or ``smoke``.
        device: of models and data, the same that ``fit`` uses by default: CUDA if there is a GPU, or else the CPU.
        seed: of all randomness in the chapter; 0, except when bands are measured.
        settings: the chapter's entries of ``book.toml`` for this profile, e.g. ``settings.epochs``.
        bands: for each expected value the interval measured for this profile.
    """

    name: str
    profile: str
    device: torch.device
    seed: int
    settings: Any
    bands: dict[str, tuple[float, float]]

    def data(self) -> tuple[ImageSet, ImageSet]:
        """The training and the test images of this chapter, on the device."""
        train = load(self.settings.data, "train", size=self.settings.train_images)
        test = load(self.settings.data, "test", size=self.settings.test_images)
        return train.to(self.device), test.to(self.device)

    def expect(self, name: str, value: float | torch.Tensor) -> None:
        """Keep ``value`` in the notebook and say whether it lies in the band measured for this profile.

        Raises:
            AssertionError: it lies outside and ``COMPANION_STRICT=1``.
            ValueError: ``name`` is no text, or ``value`` no number.
        """
        check_instance("name", name, str, "a text")
        single = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        check_instance("value", single, Real, "one number")
        from myst_nb import glue

        number = float(single)
        glue(EXPECTED + name, number, display=False)
        shown = f"{name} = {number:.4g}"
        if self.profile == "smoke":
            print(f"{shown} (profile smoke: this number means nothing)")
        elif name not in self.bands:
            print(f"{shown} (no band measured for this profile)")
        else:
            low, high = self.bands[name]
            band = f"the band {low:.4g} to {high:.4g}"
            if low <= number <= high:
                print(f"{shown}, inside {band} (99 of 100 honest runs are)")
            else:
                message = f"{shown}, outside {band} (1 of 100 honest runs is)"
                print(f"Warning: {message}")
                if strict():
                    raise AssertionError(message)


def begin(name: str, *, book: Book | None = None) -> Session:
    """Start the chapter called ``name``: say what it will run on, and give the notebook its settings.

    Raises:
        ValueError: ``COMPANION_PROFILE`` or ``name`` is none of those there are.
    """
    book = book or read_book()
    chapter = book.chapter(name)
    profile = current_profile()
    device = default_device()
    if profile == "smoke":  # too little work to share: on a busy machine threads that wait for each other take minutes
        torch.set_num_threads(1)
    settings = SimpleNamespace(**chapter.settings[profile])
    rows = {
        "profile": {
            "quick": "quick: small data, small models",
            "full": "full: the real data, the sizes of the papers",
            "smoke": "smoke: shows that everything runs; its numbers mean nothing",
        }[profile],
        "device": machine(device),
        "data": f"{settings.data}: {settings.train_images:,} training, {settings.test_images:,} test images",
        "expected time": _expected_time(chapter, profile, device),
    }
    print(f"{chapter.name}: {chapter.title}")
    for label, text in rows.items():
        print(f"  {label:<13}  {text}")
    seed = int(os.environ.get("COMPANION_SEED", "0"))
    return Session(name, profile, device, seed, settings, dict(chapter.bands.get(profile, {})))


def current_profile() -> str:
    """``COMPANION_PROFILE``; without it ``full`` with a CUDA device, ``quick`` without."""
    profile = os.environ.get("COMPANION_PROFILE") or ("full" if torch.cuda.is_available() else "quick")
    if profile not in PROFILES:
        raise ValueError(f"COMPANION_PROFILE: got {profile!r}, want one of {', '.join(PROFILES)}")
    return profile


def strict() -> bool:
    """Whether a check that is not ✅ or a value outside its band is to stop the notebook.

    ``COMPANION_STRICT=1`` says so, in the environment that the kernel starts with.
    """
    return _STRICT


def machine(device: torch.device) -> str:
    """The device in words: the name of a GPU, or the number of CPU cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


def _expected_time(chapter: Chapter, profile: str, device: torch.device) -> str:
    measured = chapter.measured.get(profile, {})
    if device.type in measured:
        here = measured[device.type]
        return f"{_duration(here.minutes)} (measured on {here.machine})"
    elsewhere = "; ".join(f"{_duration(other.minutes)} on {other.machine}" for other in measured.values())
    return "not measured on this device yet" + (f" ({elsewhere})" if elsewhere else "")


def _duration(minutes: float) -> str:
    if minutes < 0.9:
        return f"about {max(5, 5 * round(minutes * 12))} seconds"
    return f"about {round(minutes)} minute{'s' if round(minutes) > 1 else ''}"

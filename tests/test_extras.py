"""What an absent extra says: the command for this installation, in quotes that every shell takes."""

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import companion
from companion import _extras

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Installed:
    """A distribution as pip leaves it: with a note on where it came from, or with none (from an index)."""

    def __init__(self, note: dict[str, object] | None) -> None:
        self.note = note

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.note is None else json.dumps(self.note)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    here = Installed(None)

    def distribution(name: str) -> Installed:
        if name != PROJECT["name"]:
            raise metadata.PackageNotFoundError(name)
        return here

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(sys, "executable", "/opt/python")
    return here


def test_from_an_index_the_name_there_is_said(installed: Installed) -> None:
    assert _extras.install("train") == '/opt/python -m pip install "discrete-codes[train]"'


@pytest.mark.parametrize(("about", "flag"), [({"editable": True}, "-e "), ({}, "")])
def test_from_a_checkout_the_folder_and_its_tested_versions_are_said(
    installed: Installed, tmp_path: Path, about: dict[str, bool], flag: str
) -> None:
    folder = tmp_path / "my course"
    installed.note = {"url": folder.as_uri(), "dir_info": about}
    assert _extras.install("data") == '/opt/python -m pip install "discrete-codes[data]"'  # the folder is gone
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    assert _extras.install("data") == f'/opt/python -m pip install {flag}".[data]" (in {folder})'
    (folder / "requirements.txt").touch()
    assert _extras.install("data") == f'/opt/python -m pip install -c requirements.txt {flag}".[data]" (in {folder})'


def test_a_python_in_a_folder_with_a_space_is_quoted(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\Python\python.exe")
    assert _extras.install("plots").startswith('"C:\\Program Files\\Python\\python.exe" -m pip install "')


def test_without_an_installation_there_is_advice_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert _extras.install("train").endswith('-m pip install "discrete-codes[train]"')


def test_no_command_has_quotes_that_a_windows_shell_passes_on(installed: Installed) -> None:
    assert "'" not in _extras.install("train")


def test_pip_and_the_messages_know_this_package_by_one_name() -> None:
    assert PROJECT["name"] == _extras.DISTRIBUTION != "companion"


def test_the_version_is_the_one_that_pip_reads() -> None:
    dynamic = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert PROJECT["dynamic"] == ["version"]
    assert dynamic["setuptools"]["dynamic"]["version"] == {"attr": "companion._version.__version__"}
    assert companion.__version__.count(".") == 2

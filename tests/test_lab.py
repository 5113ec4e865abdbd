"""The launcher: what it gives JupyterLab, what it says, and a server started by it over a user's own configuration."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from companion.course import __main__ as command
from companion.course import lab
from companion.course.manifest import Book, read_book

NOTICE = "@jupyterlab/apputils-extension:notification"
SCREEN = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")


@pytest.fixture
def started(book: Book, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the launcher would become, in a tiny course that is the working folder."""
    commands: list[list[str]] = []
    book.notebook(book.chapter("00_tiny")).parent.mkdir()
    book.notebook(book.chapter("00_tiny")).write_text('{"cells": []}', encoding="utf-8")
    monkeypatch.chdir(book.root)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "theirs")
    monkeypatch.setattr(lab, "run", lambda words: commands.append(words) or 7)
    return commands


def test_it_opens_the_copy_of_the_first_chapter(started: list[list[str]], book: Book) -> None:
    assert command.main(["lab", "--port=9000"]) == 7  # what JupyterLab exits with
    (words,) = started
    assert words[0] == sys.executable
    assert f"--ServerApp.root_dir={book.root}" in words
    assert "--LabApp.default_url=/lab/tree/my/00_tiny.ipynb" in words
    assert words[-1] == "--port=9000"  # last: what the user says wins
    assert (book.root / "my" / "00_tiny.ipynb").is_file()


def test_the_courses_configuration_stands_before_the_users(started: list[list[str]]) -> None:
    command.main(["lab"])
    ours, theirs = os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert Path(ours, "labconfig", "page_config.json").is_file()
    assert theirs == "theirs"


@pytest.mark.parametrize("root", [True, False])
def test_root_is_allowed_and_one_line_says_so(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000, raising=False)
    command.main(["lab"])
    assert ("--allow-root" in started[0]) == root
    assert capsys.readouterr().out == "You are root: JupyterLab is started with --allow-root.\n" * root


@pytest.mark.parametrize("flag", ["--version", "--help", "--generate-config"])
def test_a_flag_that_starts_no_server_is_passed_on_and_nothing_is_laid(
    started: list[list[str]], book: Book, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    command.main(["lab", flag])
    assert started[0][3:] == [flag]
    assert not (book.root / "my").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("platform", "environment", "opens"),
    [
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {}, False),
        ("linux", {"DISPLAY": "localhost:10", "SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, False),
        ("linux", {"BROWSER": "firefox"}, True),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, False),
        ("win32", {}, True),
    ],
)
def test_a_browser_is_opened_only_where_it_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], opens: bool
) -> None:
    for name in SCREEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(webbrowser, "get", lambda: object())
    assert lab.has_browser() == opens

    def none() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert not lab.has_browser()


def test_on_windows_the_launcher_waits_and_leaves_ctrl_c_to_jupyterlab(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        """A process during which Ctrl-C is pressed, and which ends by itself."""

        waited = 0

        def __init__(self, words: list[str]) -> None:
            assert words == ["python", "x"]

        def __enter__(self) -> "Interrupted":
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait(self) -> int:
            Interrupted.waited += 1
            if Interrupted.waited == 1:
                raise KeyboardInterrupt
            return 3

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert lab.run(["python", "x"]) == 3


def test_without_jupyterlab_the_command_that_installs_it_is_said(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    assert command.main(["lab"]) == 1
    assert re.match(r'error: lab needs jupyterlab: .+ -m pip install .*\[course\]"', capsys.readouterr().err)
    assert started == []


def test_outside_the_course_or_where_nothing_can_be_laid_one_line_says_so(
    started: list[list[str]], book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    (book.root / "my").write_text("a file", encoding="utf-8")
    assert command.main(["lab"]) == 1
    assert re.fullmatch(r"error: .*my, the folder for your copies of the chapters: .+\n", capsys.readouterr().err)
    (book.root / "book.toml").write_text("[book", encoding="utf-8")
    assert command.main(["lab"]) == 1
    assert re.fullmatch(r"error: .*book\.toml: .+\n", capsys.readouterr().err)


# A server


@dataclass(frozen=True)
class Running:
    """What the launcher printed until it said where it is, and where that was."""

    said: list[str]
    base: str
    token: str

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.base}{path}?token={self.token}") as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The launcher without a screen, with a base URL, over a configuration of the user's that wants all else."""
    folder, own = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("jupyter")
    root = Path(__file__).parents[1]
    (folder / "chapters").mkdir()
    (folder / "book.toml").write_bytes((root / "book.toml").read_bytes())
    for chapter in read_book(root).chapters:
        (folder / "chapters" / f"{chapter}.ipynb").write_text('{"cells": []}', encoding="utf-8")
    theirs: dict[str, Any] = {
        "jupyter_server_config.json": {
            "ServerApp": {
                "root_dir": str(own),
                "preferred_dir": str(own),
                "default_url": "/tree",
                "open_browser": True,
                "port": 0,  # any that is free
                "terminals_enabled": False,
                "jpserver_extensions": {"jupyter_lsp": False},
            }
        },
        "labconfig/page_config.json": {"disabledExtensions": {"@jupyter/nbgrader": False, "of-theirs": True}},
        "labconfig/default_setting_overrides.json": {NOTICE: {"fetchNews": "none", "doNotDisturbMode": True}},
    }
    for name, content in theirs.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text(json.dumps(content), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in SCREEN and "TOKEN" not in name}
    environment |= {"JUPYTER_CONFIG_DIR": str(own), "JUPYTER_DATA_DIR": str(own / "data"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "companion.course", "lab", "--ServerApp.base_url=/base/", "--no-browser"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    said: list[str] = []
    for line in process.stdout or ():
        said.append(line.rstrip())
        if "token=" in line:
            break
    else:
        pytest.fail("JupyterLab did not start:\n" + "\n".join(said))
    address = urlsplit(said[-1].strip())
    running = Running(said, f"{address.scheme}://{address.netloc}/base", address.query.removeprefix("token="))
    yield running
    stop = urllib.request.Request(f"{running.base}/api/shutdown?token={running.token}", method="POST")
    urllib.request.urlopen(stop).close()
    rest = process.communicate(timeout=60)[0]
    assert "/lab/tree/" not in rest  # the address was said once


def test_the_address_of_the_first_chapter_is_the_last_thing_on_the_screen(server: Running) -> None:
    shown = r" *http://127\.0\.0\.1:\d+/base/lab/tree/my/00_start_here\.ipynb\?token=\w+"
    assert re.fullmatch(shown, server.said[-1])
    there = next(line for line in server.said if line.startswith("From another machine: "))
    port = urlsplit(server.base).port
    assert f"ssh -L {port}:127.0.0.1:{port} " in there


def test_the_address_answers_when_it_is_said(server: Running) -> None:
    assert "jupyter-config-data" in server.get("/lab/tree/my/00_start_here.ipynb")
    laid = json.loads(server.get("/api/contents/my"))["content"]
    assert "00_start_here.ipynb" in {entry["name"] for entry in laid}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.base}/api/contents/my")
    assert refused.value.code == 403


def test_there_is_no_news_and_the_settings_are_ones_that_this_jupyterlab_knows(server: Running) -> None:
    schema = json.loads(server.get(f"/lab/api/settings/{NOTICE}"))["schema"]["properties"]
    ours = json.loads((lab.HERE / "jupyter" / "labconfig" / "default_setting_overrides.json").read_text())[NOTICE]
    assert {name: schema[name]["default"] for name in ours} == ours
    assert ours["fetchNews"] in [option["const"] for option in schema["fetchNews"]["oneOf"]]
    assert schema["checkForUpdates"]["type"] == "boolean"
    assert schema["doNotDisturbMode"]["default"] is True  # what they wish besides is kept


def test_pages_in_markdown_open_rendered(server: Running) -> None:
    schema = json.loads(server.get("/lab/api/settings/@jupyterlab/docmanager-extension:plugin"))["schema"]
    assert schema["properties"]["defaultViewers"]["default"] == {"markdown": "Markdown Preview"}


def test_there_are_no_grading_menus_and_no_grading_server(server: Running) -> None:
    page = server.get("/lab")
    found = re.search(r'<script id="jupyter-config-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    assert {"@jupyter/nbgrader", "of-theirs"} <= set(json.loads(found[1])["disabledExtensions"])
    with pytest.raises(urllib.error.HTTPError) as absent:
        server.get("/formgrader")
    assert absent.value.code == 404


def test_each_grading_extension_that_is_installed_is_switched_off() -> None:
    shipped = Path(sys.prefix) / "etc/jupyter/jupyter_server_config.d/nbgrader.json"
    ours = json.loads((lab.HERE / "jupyter" / "jupyter_server_config.d" / "nbgrader.json").read_text())
    enabled = json.loads(shipped.read_text(encoding="utf-8"))["ServerApp"]["jpserver_extensions"]
    assert ours["ServerApp"]["jpserver_extensions"] == dict.fromkeys(enabled, False)

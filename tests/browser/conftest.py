"""A JupyterLab server on a copy of the course, and a Chromium that opens it as a new user would."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_driver import ROOT, Lab
from playwright.sync_api import Browser, sync_playwright

FLAGS = (  # no GPU, and nothing that a browser asks of the network by itself
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab as ``make lab`` starts it, but in a clone, with settings of its own, and in profile smoke."""
    folder, own = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("jupyter")
    shutil.copytree(ROOT / "chapters", folder / "chapters")
    shutil.copytree(ROOT / "experiments" / "results", folder / "experiments" / "results")
    for name in ("book.toml", "measured.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for words in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    # The whole notebook in the page, so that every picture can be looked at; nothing else differs from the default.
    settings = own / "lab" / "user-settings" / "@jupyterlab"
    (settings / "notebook-extension").mkdir(parents=True)
    (settings / "notebook-extension" / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    server = subprocess.Popen(
        [sys.executable, "-m", "companion.course", "lab", "--no-browser"],
        cwd=folder,
        env=os.environ
        | {"COMPANION_PROFILE": "smoke", "JUPYTER_CONFIG_DIR": str(own), "JUPYTER_DATA_DIR": str(own / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        said = []
        for line in server.stdout or ():
            said.append(line)
            if found := re.search(r"((http://127\.0\.0\.1:\d+)/\S*\btoken=(\w+))", line):
                break
        else:
            pytest.fail(f"JupyterLab did not start:\n{''.join(said)}")
        threading.Thread(target=lambda: [*server.stdout], daemon=True).start()  # a full pipe would stop the server
        yield Lab(found[1], found[2], found[3], folder, settings)
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium: COMPANION_CHROMIUM, else one on the PATH, else Playwright's own."""
    found = os.environ.get("COMPANION_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        if not Path(found or playwright.chromium.executable_path).is_file():
            pytest.fail(
                f"no Chromium at {found or playwright.chromium.executable_path}. Install one (Debian: apt install "
                f"chromium; anywhere: {sys.executable} -m playwright install chromium), or say in COMPANION_CHROMIUM "
                "where it is"
            )
        browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=False, args=FLAGS)
        yield browser
        browser.close()

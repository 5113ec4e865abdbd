"""JupyterLab on the course: the one launcher, whichever way the course was installed."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path

from companion._extras import require
from companion.course.copies import lay
from companion.course.manifest import Book

HERE = Path(__file__).parent
NO_SERVER = {"--version", "--help", "--help-all", "-h", "--generate-config", "--show-config", "--show-config-json"}


def open_lab(book: Book, flags: list[str]) -> int:
    """Lay the learner's copies, and run JupyterLab at the first chapter; ``flags`` go to JupyterLab.

    Its configuration (no news, no grading menus) is the folder ``jupyter`` beside this file, put in front of the
    user's own and of what extensions bring.

    Raises:
        ImportError: JupyterLab is not installed.
        ValueError: the copies cannot be written.
    """
    require("jupyterlab", extra="course", what="lab")
    path = [str(HERE / "jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(path)
    command = [sys.executable, "-P", str(HERE / "lab_server.py"), *flags]
    if not NO_SERVER.intersection(flags):
        folder = lay(book)
        first = next(iter(book.chapters))
        command[3:3] = [
            f"--ServerApp.root_dir={book.root}",
            f"--FileContentsManager.preferred_dir={book.root}",  # else one of the user's, elsewhere, stops the server
            f"--LabApp.default_url=/lab/tree/{folder.name}/{first}.ipynb",
            *("--log-level=WARN", "--LabApp.log_level=WARN"),  # the address stays the last thing on the screen
            *([] if has_browser() else ["--no-browser"]),
            *(["--allow-root"] if is_root() else []),
        ]
        if is_root():
            print("You are root: JupyterLab is started with --allow-root.", flush=True)
    return run(command)


def is_root() -> bool:
    """JupyterLab refuses to run as root unless it is told to. A container's user is root, so it is told to."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def has_browser() -> bool:
    """Whether a browser that is opened here would be seen by whoever typed the command."""
    if "BROWSER" not in os.environ:
        screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if "SSH_CONNECTION" in os.environ or not screen:
            return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def run(command: list[str]) -> int:
    """Become ``command``, so that torch, which this process has loaded, takes no memory beside it.

    Windows cannot: there ``execv`` starts a second process and ends this one at once, and the console goes back to its
    prompt while JupyterLab still writes to it. So this process waits, and leaves Ctrl-C to JupyterLab, which asks back.
    """
    if sys.platform != "win32":
        os.execv(command[0], command)
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue

"""JupyterLab on the course: the one launcher, whichever way the course was installed."""

import os
import sys
from typing import NoReturn

from companion.course.manifest import Book


def open_lab(book: Book, flags: list[str]) -> NoReturn:
    """Replace this process by JupyterLab, opened at the first chapter; ``flags`` go to JupyterLab.

    JupyterLab refuses to run as root unless it is told to. A container's user is root, so it is told to.
    """
    first = next(iter(book.chapters.values()))
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir=.", f"{book.src}/{first.name}.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in flags:
        print("You are root: JupyterLab is started with --allow-root.", flush=True)
        command.append("--allow-root")
    os.chdir(book.root)
    os.execv(command[0], command + flags)

"""Packages of optional parts of the library, imported when they are used."""

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "discrete-codes"  # the name of this package for pip; "companion" on the public index is another package


def require(module: str, *, extra: str, what: str) -> Any:
    """Import ``module``, or say which extra installs it.

    Raises:
        ImportError: the module is not installed; the message says ``what`` needs it, and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the module is there; something it needs is not
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: {install(extra)}") from error


def install(extra: str) -> str:
    """The command that adds an extra to this installation, quoted for any shell."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    source = _source()
    if "dir_info" in source:  # installed from a folder; if that is gone, from the index
        folder = Path(url2pathname(urlsplit(source["url"]).path))
        if (folder / "pyproject.toml").is_file():
            tested = "-c requirements.txt " * (folder / "requirements.txt").is_file()
            editable = "-e " * bool(source["dir_info"].get("editable"))
            return f'{python} -m pip install {tested}{editable}".[{extra}]" (in {folder})'
    return f'{python} -m pip install "{DISTRIBUTION}[{extra}]"'


def _source() -> dict[str, Any]:
    """Where this installation came from, as pip noted it; empty if it did not."""
    try:
        note = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    return dict(json.loads(note or "{}"))

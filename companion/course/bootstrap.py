"""Make ``.venv`` and install the course into it; a repeat does nothing, and an interrupted run is finished.

``python3 companion/course/bootstrap.py course`` (or ``instructor``, ``test``, ``browser``, ``bench``; each
contains the ones before it). Run by whatever Python the machine has, so it needs the standard library alone, and
Python 3.6 can read it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

EXTRAS = ("course", "instructor", "test", "browser", "bench")
ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.json"

if sys.version_info < (3, 11):  # noqa: UP036
    # An earlier call may have been told of a better one: `make lab PYTHON=python3.12`, and now `make lab`.
    if PYTHON.exists() and Path(sys.prefix) != VENV and "PYTHON" not in os.environ:
        os.execv(str(PYTHON), [str(PYTHON), *sys.argv])
    found = [name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)]
    here = f"`{os.path.basename(sys.executable)}` is {'.'.join(map(str, sys.version_info[:3]))}"
    first = "" if found else "Install one (https://www.python.org/downloads), then: "
    sys.exit(f"Python 3.11 or newer is needed; {here}. {first}Try: make lab PYTHON={(found or ['python3.12'])[0]}")


def main(extra: str) -> None:
    """See to it that ``.venv`` has ``extra``, in the tested versions."""
    stamp = json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.is_file() else {}
    had = stamp.get("extra", EXTRAS[0])
    extra = max(extra, had, key=EXTRAS.index)  # what was asked for once is kept up to date
    here = os.path.realpath(sys.executable)
    # make hands PYTHON down only where somebody gave it; without that, a .venv keeps the interpreter it has.
    other = "PYTHON" in os.environ and stamp.get("python", here) != here
    wanted = {"extra": extra, "python": here if other else stamp.get("python", here), "sources": sources()}
    if stamp == wanted and PYTHON.exists():
        return
    STAMP.unlink(missing_ok=True)
    if other or not has_pip():
        print("Making .venv with Python {}.{}.{}".format(*sys.version_info[:3]), flush=True)
        run(sys.executable, "-m", "venv", "--clear", str(VENV))
    forget_half_installed()
    print(f"Installing the course ({extra}); the first time takes some minutes and up to 6 GB", flush=True)
    pip = (str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check")
    run(*pip, "-c", "requirements.txt", "-e", f".[{extra}]")
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")


def sources() -> str:
    """A hash of what decides the installation, the folder included: an editable install points to it."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements.txt")]
    return hashlib.sha256(b"\0".join([*parts, str(ROOT).encode()])).hexdigest()


def has_pip() -> bool:
    command = (str(PYTHON), "-m", "pip", "--version")
    return PYTHON.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def forget_half_installed() -> None:
    """Let pip install again what it was interrupted in: it looks for METADATA, and writes INSTALLER last."""
    for info in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "INSTALLER").is_file():
            shutil.rmtree(info)


def run(*command: str) -> None:
    """Run ``command`` with its output shown, without pip's line for each of 200 packages that are there."""
    code = 130
    try:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
            for line in process.stdout or ():
                if not line.startswith("Requirement already satisfied"):
                    print(line, end="", flush=True)
        code = process.returncode
    except KeyboardInterrupt:
        pass
    if code:
        sys.exit("The set-up did not finish; the same command again goes on where it stopped.")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(EXTRAS)}")
    main(sys.argv[1])

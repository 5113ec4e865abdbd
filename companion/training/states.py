"""The states of a run on disk: written while it trains, and read where it goes on."""

import re
import zipfile
from pathlib import Path
from typing import Any, Self

import torch

from companion._extras import require
from companion.checkpoint import written_whole
from companion.training.resume import Settings, check_same_run

_STATE = re.compile(r"state-\d{10,}-\d{6,}\.pt")
_HALF_WRITTEN = re.compile(rf"\.{_STATE.pattern}\.\d+\.tmp")
_PARTS = {"step": int, "rows": list, "model": dict, "optimizer": dict, "processes": list, "settings": dict}


class States:
    """The two newest states of one run, each whole or absent, in a folder that this call holds alone.

    Args:
        settings: of :func:`companion.training.resume.run_settings`; they have to be the same when the run goes on.
    """

    def __init__(self, folder: Path, accelerator: Any, settings: dict[str, Settings]) -> None:
        self.folder, self.accelerator, self.settings = folder, accelerator, settings

    def __enter__(self) -> Self:
        if self.accelerator.is_main_process:
            filelock = require("filelock", extra="train", what="fit")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / "lock")  # the system frees it when the process dies
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise ValueError(f"run: {self.folder} is in use; every run has a folder of its own") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self.accelerator.is_main_process:
            self._lock.release()

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read, if there is any.

        Raises:
            ValueError: none of several can be read, it is no state of ``fit``, or it comes from other settings.
        """
        damaged: list[str] = []
        for path in reversed(self._matching(_STATE)):
            try:
                if part := zipfile.ZipFile(path).testzip():  # torch.load does not compare the checksums
                    raise OSError(f"{part} in it is damaged")
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # zip, pickle and system errors alike: it cannot be read
                damaged.append(f"{path.name} ({str(error).partition('. ')[0]})")
                continue
            if not _is_state(state):
                raise ValueError(f"run: {path} is no state that fit wrote; move it away, or use another folder")
            if damaged and self.accelerator.is_main_process:
                print(f"run: cannot read {', '.join(damaged)}; going on from {path.name}")
            check_same_run(self.folder, state, self.settings, announce=self.accelerator.is_main_process)
            return state
        if damaged:
            raise ValueError(f"run: cannot read any state in {self.folder}: {', '.join(damaged)}")
        return None

    def save(self, common: dict[str, Any], of_process: dict[str, Any]) -> None:
        """Write what the processes have in ``common``, and what each has of its own; then drop all states but two."""
        processes = require("accelerate.utils", extra="train", what="fit").gather_object([of_process])
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        path = self.folder / f"state-{common['step']:010}-{len(common['rows']):06}.pt"
        with written_whole(path) as file:
            torch.save(common | {"processes": processes} | self.settings, file)
            self.accelerator.wait_for_everyone()
        kept = [other for other in self._matching(_STATE) if other <= path][-2:]
        for other in {*self._matching(_STATE), *self._matching(_HALF_WRITTEN)} - {*kept}:
            other.unlink()

    def _matching(self, pattern: re.Pattern[str]) -> list[Path]:
        """Only what has exactly such a name is a state: other files are not ours to read or to delete."""
        return sorted(path for path in self.folder.glob("*") if pattern.fullmatch(path.name))


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in _PARTS.items())

"""``diagnose``: what is wrong with a tokenizer, and with a prior on its codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import companion
from companion.commands.inputs import OfModels
from companion.commands.results import Numbers, Result, say


@dataclass(frozen=True)
class Diagnose(OfModels):
    """Say what is wrong with a tokenizer, and with --prior with a prior on its codes, and what mends it.

    The result is a folder with the report (report.txt), and the same as numbers (result.json).

    For example:

        python -m companion diagnose pictures --tokenizer runs/tokenizer --prior runs/prior --out runs/diagnosis
    """

    out: Path = Path("runs/diagnosis")
    """The folder of the result."""
    again: bool = False
    """Begin anew, in place of what is in the folder."""

    makes: ClassVar[tuple[str, ...]] = ("report.txt",)

    def run(self, result: Result) -> Numbers:
        model, prior, pictures = self.opened()
        found = companion.diagnose(model, pictures, prior)
        say(f"{found}")
        result.write("report.txt", f"{found}\n".encode())
        return {"wrong": ", ".join(found.names) or "nothing"} | found.as_dict()

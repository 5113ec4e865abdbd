"""``python -m experiments``: what there is to run, one line each."""

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

HOW = """
To run one:      python -m experiments.NAME             (--help says with what)
On other images: python -m experiments.NAME --data mnist
To try one:      python -m experiments.NAME --profile smoke --results runs/again
"""


def commands() -> Iterator[tuple[str, str]]:
    """Each command of this folder with the first sentence on it, read without running it (torch takes seconds)."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "__main__.py" and 'if __name__ == "__main__":' in text:
            about = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
            sentence = re.match(r".*?[.?](?=\s|$)", about)
            yield path.stem, sentence[0] if sentence else about


def main() -> None:
    argparse.ArgumentParser("python -m experiments", description=__doc__).parse_args()
    listed = dict(commands())
    width = max(map(len, listed)) + 2
    for name, about in listed.items():
        print(f"{name:<{width}}{textwrap.shorten(about, 118 - width, placeholder=' …')}")
    print(HOW, end="")


if __name__ == "__main__":
    main()

"""``python -m companion.course``: open the course, make its notebooks, run them, measure them."""

import argparse
import sys
from pathlib import Path

from companion._extras import require
from companion.course.lab import open_lab
from companion.course.manifest import PROFILES, Book, read_book


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m companion.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lab", help="open the course in JupyterLab; what follows goes to JupyterLab", add_help=False)
    notebooks = commands.add_parser("notebooks", help="make solutions/*.ipynb and the learner's notebooks")
    solutions = commands.add_parser("solutions", help="run every solution on this machine and report")
    measure = commands.add_parser("measure", help="measure time, memory and bands into measured.toml")
    for command in (notebooks, solutions, measure):
        command.add_argument("--chapter", help="one chapter, e.g. 01_autoencoder or 01 (default: all)")
    for command in (solutions, measure):
        command.add_argument("--profile", choices=PROFILES, help="default: full with a GPU, quick without")
    solutions.add_argument(
        "--timeout", type=int, help="seconds a cell may take (default: 10 times its chapter's, at least 600)"
    )
    measure.add_argument("--seeds", type=int, default=5, help="how many runs (default: %(default)s)")
    measure.add_argument("--keep", type=Path, help="a folder: finished runs are kept there, and not made again")
    gpu = commands.add_parser("gpu", help="with a GPU: tests, benchmarks and profile full, in pieces that go on")
    gpu.add_argument("--list", action="store_true", help="name the pieces and what came of them, and run none")
    gpu.add_argument("--only", default="", help="the pieces with this in their name, e.g. chapter or bench")
    gpu.add_argument("--limit-minutes", type=float, default=float("inf"), help="begin no piece after so many minutes")
    gpu.add_argument("--again", action="store_true", help="forget what earlier calls found")
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        book = read_book()
        if options.command == "lab":
            return open_lab(book, rest)
        if options.command == "gpu":
            from companion.course.gpu import run_on_gpu

            return run_on_gpu(
                book, only=options.only, limit_minutes=options.limit_minutes, again=options.again, show=options.list
            )
        require("jupytext", extra="instructor", what=options.command)  # which learners have not
        return _author(book, options)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _author(book: Book, options: argparse.Namespace) -> int:
    from companion.course.execution import CellError

    chapters = book.select(options.chapter)
    try:
        if options.command == "notebooks":
            from companion.course.authoring import make_notebooks

            for chapter in chapters:
                make_notebooks(book, chapter)
        elif options.command == "solutions":
            from companion.course.runner import run_solutions

            return run_solutions(book, chapters, options.profile, timeout=options.timeout)
        else:
            from companion.course.measure import measure as run_measure

            run_measure(book, chapters, options.profile, seeds=options.seeds, keep=options.keep)
    except CellError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

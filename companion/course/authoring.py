"""From ``solutions/NN_name.py`` to the notebook with answers and the learner's notebook without."""

import base64
import hashlib
import json
import re
import sys
from collections import Counter
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions

from companion.checkpoint import written_whole
from companion.course.execution import CellError, cell_in_words, execute
from companion.course.manifest import Book, Chapter

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}
# The same hash order and data wherever the outputs are made, and one thread, as under nbval: they repeat on one
# machine, and two chapters can be made side by side (two threads each would wait for one another).
ENVIRONMENT = {"COMPANION_PROFILE": "quick", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
HIDDEN = "hide-input"  # the tag of a cell that only plots or prints: its code is folded in JupyterLab and in MyST-NB
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(it|cell|batch)? ?\[\d\d:\d\d")


def make_notebooks(book: Book, chapter: Chapter) -> None:
    """Execute the solution of ``chapter``, then the learner's notebook without the answers; write both.

    Raises:
        CellError: a cell raises, or its output holds what does not belong into a repository.
        ValueError: the source is missing, or an exercise in it is folded.
    """
    solution = solution_notebook(book, chapter)
    for path, notebook, env in (
        (book.solution(chapter), solution, {"COMPANION_STRICT": "1"}),
        (book.notebook(chapter), learner_notebook(solution), {}),
    ):
        name = path.relative_to(book.root).as_posix()
        executed = deepcopy(notebook)
        path.parent.mkdir(exist_ok=True)
        execute(executed, name=name, folder=path.parent, env=ENVIRONMENT | env)
        keep_outputs(notebook, executed, name=name, root=book.root)
        write(notebook, path)
    write_cover(notebook, book.cover(chapter))


def solution_notebook(book: Book, chapter: Chapter) -> NotebookNode:
    """The source of ``chapter`` as a notebook that was not run: stable cell ids, one metadata for all.

    The code of a cell with the tag ``hide-input`` is folded.
    """
    path = book.solution(chapter, ".py")
    if not path.is_file():
        raise ValueError(f"{path.relative_to(book.root)} is missing; book.toml has a chapter {chapter.name}")
    notebook: NotebookNode = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if HIDDEN in cell.metadata.get("tags", []):
            if "### BEGIN SOLUTION" in cell.source:
                raise ValueError(
                    f"{path.relative_to(book.root)}: an exercise has the tag {HIDDEN}; nobody would see it"
                )
            cell.metadata["jupyter"] = {"source_hidden": True}
        key = f"{cell.cell_type}\n{cell.source}"
        cell.id = hashlib.sha256(f"{key}\n{seen[key]}".encode()).hexdigest()[:8]
        seen[key] += 1
    return notebook


def learner_notebook(solution: NotebookNode) -> NotebookNode:
    """``solution``, not run, with what stands between BEGIN SOLUTION and END SOLUTION taken out."""
    clear = ClearSolutions(
        enforce_metadata=False,
        code_stub={"python": "raise NotImplementedError"},
        text_stub="*Your answer here.*",
    )
    notebook: NotebookNode = clear.preprocess(deepcopy(solution), ResourcesDict())[0]
    return notebook


def keep_outputs(notebook: NotebookNode, executed: NotebookNode, *, name: str, root: Path) -> None:
    """Copy the outputs of ``executed`` into ``notebook``, without what differs between runs.

    Raises:
        CellError: an output holds a path of this machine, a memory address, or a picture without alt text.
    """
    for index, (cell, ran) in enumerate(zip(notebook.cells, executed.cells, strict=True)):
        if cell.cell_type != "code":
            continue
        cell.execution_count = ran.execution_count
        cell.outputs = _without_noise(ran.outputs)
        for fault in (picture_fault(cell.outputs), machine_fault(cell.outputs, root)):
            if fault:
                raise CellError(f"{cell_in_words(name, notebook, index)}: its output holds {fault}")


def machine_fault(outputs: list[NotebookNode], root: Path) -> str | None:
    """What in ``outputs`` depends on this machine or this run, and must not be committed; None if nothing does."""
    texts = [text for output in outputs for text in _texts(output)]
    for folder in {root.resolve(), Path.home(), Path(sys.prefix)} - {Path("/")}:
        if any(str(folder) in text for text in texts):
            return f"a path of this machine ({folder})"
    for pattern in (r"ipykernel_\d+", r"\bat 0x[0-9a-f]{6,}"):
        for text in texts:
            if found := re.search(pattern, text):
                return f"what differs in each run ({found[0]})"
    return None


def picture_fault(outputs: list[NotebookNode]) -> str | None:
    """What is wrong with the pictures in ``outputs``, each of which has to be an ``<img>`` with alt text."""
    for output in outputs:
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            return "a picture that did not go through plots.show(figure, alt=...)"
        if any(not (alt or "").strip() for alt in image_alts(data.get("text/html", ""))):
            return "an <img> without alt text"
    return None


def image_alts(html: str) -> list[str | None]:
    """The alt text of each ``<img>`` in ``html``, or None if it has no alt text."""
    alts: list[str | None] = []

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                alts.append(dict(attrs).get("alt"))

    Images().feed(html)
    return alts


def cover(notebook: NotebookNode) -> bytes:
    """The picture of the cell tagged ``cover``, as PNG: what the chapter shows at its top, and the README.

    Raises:
        ValueError: not exactly one cell has the tag, or it shows no picture.
    """
    tagged = [cell for cell in notebook.cells if "cover" in cell.metadata.get("tags", [])]
    pictures = [
        base64.b64decode(encoded)
        for cell in tagged
        for output in cell.outputs
        for encoded in re.findall(r"data:image/png;base64,([^\"]+)", output.get("data", {}).get("text/html", ""))
    ]
    if len(tagged) != 1 or len(pictures) != 1:
        raise ValueError(f"cover: got {len(tagged)} cells with that tag and {len(pictures)} pictures, want one of each")
    return pictures[0]


def write_cover(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as file:
        file.write(cover(notebook))


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook; ``path`` is complete at all times, the old one or the new one."""
    nbformat.validate(notebook)
    with written_whole(path) as file:
        file.write((nbformat.writes(notebook) + "\n").encode())


def _without_noise(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """``outputs`` without widgets and progress bars.

    Neighbouring streams are joined to one stdout and one stderr, since their pieces and order differ between runs.
    """
    kept: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if output.output_type != "stream":
            kept += [streams[name] for name in sorted(streams, reverse=True)] + [output]
            streams = {}
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
    kept += [streams[name] for name in sorted(streams, reverse=True)]
    for output in kept:
        if output.get("name") == "stderr":
            lines = re.split(r"(?<=[\r\n])", output.text)
            output.text = "".join(line for line in lines if line.strip() and not PROGRESS_BAR.search(line))
    return [output for output in kept if output.get("text") != ""]


def _texts(output: NotebookNode) -> list[str]:
    data: dict[str, Any] = output.get("data", {})
    parts = [*data.values(), output.get("text", ""), *output.get("traceback", [])]
    return [part if isinstance(part, str) else json.dumps(part) for part in parts]

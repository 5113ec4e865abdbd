"""How nbval runs notebooks here: a glued number's last digits are not its business, and no slow cell is lost."""

import os
import re
import subprocess
import sys
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from companion.course.authoring import write
from companion.course.execution import AS_IT_IS, GLUED, PROCESSORS

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")


def verdicts(folder: Path, conftest: str = CONFTEST, processor: str = AS_IT_IS) -> dict[str, str]:
    """What nbval says of each cell of the notebooks in ``folder``, with this project's conftest.py."""
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-rA", "--color=no", "-p", "no:cacheprovider", "."]
    env = os.environ | PROCESSORS[processor]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    found = re.findall(r"^(PASSED|FAILED|XFAIL) (\S+\.ipynb::Cell \d+)", run.stdout, re.MULTILINE)
    assert found, run.stdout + run.stderr
    return {cell: verdict for verdict, cell in found}


def without(line: str) -> str:
    """conftest.py, but this line does nothing."""
    assert CONFTEST.count(line) == 1
    return CONFTEST.replace(line, "pass")


def compared(printed: str, number: str) -> NotebookNode:
    """A checked cell that prints and glues, and what it printed and glued on another machine."""
    source = 'from myst_nb import glue\n\nprint("agree:", True)\nglue("proof.mse", 0.2642868459, display=False)'
    outputs = [
        new_output("stream", name="stdout", text=printed),
        new_output("display_data", {GLUED: number}, metadata={"scrapbook": {"name": "proof.mse", "mime_prefix": ""}}),
    ]
    cell = new_code_cell(source, execution_count=1, outputs=outputs, metadata={"tags": ["nbval-check-output"]})
    return new_notebook(cells=[cell])


def test_last_digits_of_a_glued_number_pass_and_another_text_does_not(tmp_path: Path) -> None:
    write(compared("agree: True\n", "0.2642868757"), tmp_path / "digits.ipynb")
    write(compared("agree: False\n", "0.2642868459"), tmp_path / "text.ipynb")
    assert verdicts(tmp_path) == {"digits.ipynb::Cell 0": "PASSED", "text.ipynb::Cell 0": "FAILED"}


def test_a_glued_number_compared_exactly_would_fail_on_another_processor(tmp_path: Path) -> None:
    write(compared("agree: True\n", "0.2642868757"), tmp_path / "digits.ipynb")
    wrong = without("item.parent.skip_compare += (GLUED,)")
    assert verdicts(tmp_path, wrong) == {"digits.ipynb::Cell 0": "FAILED"}


# nbval reads what a cell has sent when the cell has ended. The queue holds 1,000 messages, a bar in a notebook sends
# three each time it moves, and what does not fit is lost: in the end "idle", for which nbval then waits.
SLOW = """\
import itertools

from tqdm import std
from tqdm.auto import tqdm

looks = itertools.count()
std.time = lambda: 0.11 * next(looks)  # a clock that runs ahead: the bar lives for half an hour
for _ in tqdm(range(15_000)):
    pass
"""


def slow_cell() -> NotebookNode:
    return new_notebook(cells=[new_code_cell(SLOW), new_code_cell("print(1)")])


def test_a_bar_that_lives_long_does_not_overflow_the_queue(tmp_path: Path) -> None:
    write(slow_cell(), tmp_path / "slow.ipynb")
    assert verdicts(tmp_path) == {"slow.ipynb::Cell 0": "PASSED", "slow.ipynb::Cell 1": "PASSED"}


def test_a_bar_that_speaks_as_often_as_it_likes_would_overflow_the_queue(tmp_path: Path) -> None:
    write(slow_cell(), tmp_path / "slow.ipynb")
    wrong = without('patch.setenv("TQDM_MININTERVAL", "30")').replace(
        "item.output_timeout = 120", "item.output_timeout = 5"
    )
    assert verdicts(tmp_path, wrong) == {"slow.ipynb::Cell 0": "FAILED", "slow.ipynb::Cell 1": "XFAIL"}


def test_chapters_run_in_quick_and_studies_and_learners_notebooks_in_smoke(tmp_path: Path) -> None:
    wanted = {
        "solutions/02_a": "quick",
        "solutions/02b_a": "smoke",
        "chapters/02_a": "smoke",
        "chapters/02b_a": "smoke",
    }
    for name, profile in wanted.items():
        source = f"import os\n\nassert os.environ['COMPANION_PROFILE'] == {profile!r}"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(new_notebook(cells=[new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    assert verdicts(tmp_path) == {f"{name}.ipynb::Cell 0": "PASSED" for name in wanted}
    for name in wanted:
        (tmp_path / f"{name}.ipynb").unlink()
    (tmp_path / "solutions").mkdir(exist_ok=True)
    wrong = new_code_cell("import os\n\nassert os.environ['COMPANION_PROFILE'] == 'full'")
    write(new_notebook(cells=[wrong]), tmp_path / "solutions" / "02_a.ipynb")
    assert verdicts(tmp_path) == {"solutions/02_a.ipynb::Cell 0": "FAILED"}

"""How pytest runs the notebooks: with which profile, never past a cell's time-out, and how long each took."""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# The browser tests have a command of their own, make test-browser, which installs what they import.
collect_ignore = [] if find_spec("playwright") else ["tests/browser"]

# Before anything imports torch: two spinning OpenMP threads on a busy machine are 20 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A command in the background of a script ignores Ctrl-C, and so would all that it starts; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GLUED = "application/papermill.record/text/plain"  # where myst_nb.glue puts a number


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here, because an option must be known before the tests are; what it does stands in tests/conftest.py."""
    choices = ("cpu", "cuda", "pretended")
    parser.addoption("--device", choices=choices, default="cpu", help="where tests and notebooks compute")
    parser.addoption("--profile", choices=("quick", "full", "smoke"), help="of the notebooks that nbval runs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Run solutions strictly and in profile quick, studies and learners' notebooks in profile smoke.

    ``--profile`` overrides; ``make test-full`` runs the studies in quick.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.path.suffix == ".ipynb":
            answers = item.path.parent.name == "solutions"
            study = item.path.name[2:3].isalpha()  # 02b beside 02
            profile = item.config.getoption("profile") or ("quick" if answers and not study else "smoke")
            patch.setenv("COMPANION_PROFILE", profile)
            patch.setenv("COMPANION_STRICT", "1" if answers else "0")
            # nbval gives a kernel five seconds to send what a finished cell has printed; a busy machine may need more.
            item.output_timeout = 120
            # It reads only when the cell has ended: a bar that moves ten times a second overflows the queue in half
            # a minute, the cell's last word is lost, and nbval waits for it in vain.
            patch.setenv("TQDM_MININTERVAL", "30")
            # Their last digits are the processor's. tests/test_proofs.py compares them, with a tolerance.
            item.parent.skip_compare += (GLUED,)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a cell that timed out: nbval interrupts it, and a training loop that survives that would pass."""
    result = yield
    if getattr(item.parent, "timed_out", False):
        pytest.fail("the cell timed out")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and ".ipynb::" in report.nodeid:
                notebook = report.nodeid.partition("::")[0]
                seconds[notebook] = seconds.get(notebook, 0) + report.duration
    if seconds:
        terminalreporter.section("slowest notebooks")
        for notebook, total in sorted(seconds.items(), key=lambda item: -item[1])[:10]:
            terminalreporter.write_line(f"{total:7.1f} s  {notebook}")

"""Ctrl-C in ``fit``: once, twice, and outside the main thread."""

import signal
import threading

import pytest
from training_runs import interrupting, noisy, press, train
from workers.fit_worker import Digits

from companion.training import History

pytestmark = pytest.mark.cpu_only("trains on the CPU")


def test_the_stop_button_finishes_the_step_and_keeps_what_was_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = noisy()
    handler = signal.getsignal(signal.SIGINT)
    history = train(model, objective=interrupting(8, press), validation=Digits(11, 2))
    assert capsys.readouterr().out == "Stopped after step 8 of 18: going on with what was trained so far.\n"
    assert history.interrupted
    assert [(row["epoch"], row["step"]) for row in history.rows] == [(1, 6), (2, 8)]
    assert list(history.rows[0]) == list(history.rows[1])
    assert model.count == 8
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(model, epochs=1).interrupted is False  # and it can be trained again


def test_a_second_press_stops_at_once() -> None:
    def twice() -> None:
        press()
        press()

    with pytest.raises(KeyboardInterrupt):
        train(noisy(), objective=interrupting(8, twice))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_an_interrupt_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    result: list[History] = []
    model = noisy()
    thread = threading.Thread(
        target=lambda: result.append(train(model, objective=interrupting(8, interrupt), validation=Digits(11, 2)))
    )
    thread.start()
    thread.join()
    assert result[0].interrupted
    assert result[0].last["step"] == 7
    assert "after step 7 of 18" in capsys.readouterr().out
    first: list[History] = []
    thread = threading.Thread(target=lambda: first.append(train(noisy(), objective=interrupting(1, interrupt))))
    thread.start()
    thread.join()
    assert first[0].rows == []
    with pytest.raises(ValueError, match="before its first step"):
        first[0].last  # noqa: B018

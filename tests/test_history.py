"""History as a table, as HTML and as curves."""

import pytest

from companion.training import History


def history() -> History:
    rows = [
        {"epoch": 1, "step": 6, "loss": 0.25, "mse": 1e-7, "validation_loss": 0.5, "validation_mse": 2.0},
        {"epoch": 2, "step": 12, "loss": 0.125, "mse": 1e-8, "validation_loss": 0.25, "validation_mse": 1.0},
    ]
    return History(rows)


def test_history_as_a_table() -> None:
    assert history().table().splitlines() == [
        "epoch  step   loss    mse  validation_loss  validation_mse",
        "    1     6   0.25  1e-07              0.5               2",
        "    2    12  0.125  1e-08             0.25               1",
    ]
    assert repr(history()) == str(history()) == history().table()
    assert history()._repr_html_().startswith("<table><tr><th>epoch</th><th>step</th>")
    assert history()._repr_html_().count("<tr>") == 3
    first, ruler, second, _ = history()._repr_markdown_().splitlines()
    assert first.count("|") == ruler.count("|") == second.count("|") == 7
    assert History().table() == "epoch  step"
    assert history() == history() != History(history().rows[:1])
    assert history().last["step"] == 12


def test_history_plots_training_and_validation() -> None:
    figure = history().plot("mse")
    (axes,) = figure.axes
    training, validation = axes.lines
    assert axes.get_title() == "mse by epoch: training 1e-07 → 1e-08, validation 2 → 1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "mse")
    assert validation.get_ydata().tolist() == [2.0, 1.0]
    assert training.get_linestyle() != validation.get_linestyle()  # told apart in grey too
    assert training.get_marker() != validation.get_marker()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    with pytest.raises(ValueError, match="term: got 'kl', want one of loss, mse"):
        history().plot("kl")
    lacking = History([*history().rows, {"epoch": 3, "step": 18, "loss": 0.1}])
    assert [len(line.get_xdata()) for line in lacking.plot().axes[0].lines] == [3]
    with pytest.raises(ValueError, match=r"term: got 'mse', want one of loss$"):
        lacking.plot("mse")
    with pytest.raises(ValueError, match="term: got 'loss', want one of none, as the rows have no term"):
        History([{"epoch": 1, "step": 6}]).plot()
    assert History().plot().axes[0].get_title() == "Stopped before the first step was done"

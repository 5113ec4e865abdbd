"""Figures: alt text, the same bytes each time, clear errors."""

import pytest
import torch

from companion import plots


def figure():
    fig, ax = plots.figure(3, 2)
    ax.plot([0, 1], [1, 0])
    return fig


def test_show_emits_an_img_with_escaped_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(figure(), alt='A line that says "down" & ends <here>')
    (picture,) = shown
    html = picture._repr_html_()
    assert html.startswith('<img alt="A line that says &quot;down&quot; &amp; ends &lt;here&gt;"')
    assert "data:image/png;base64," in html
    assert repr(picture) == '[figure: A line that says "down" & ends <here>]'


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_a_figure_without_alt_text(alt):
    with pytest.raises(ValueError, match="alt"):
        plots.show(figure(), alt=alt)


def test_the_same_figure_gives_the_same_bytes():
    assert plots.to_png(figure()) == plots.to_png(figure())


def test_figures_belong_to_no_pyplot_state():
    from matplotlib import pyplot

    figure()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 2, 8, 8), (0, 1, 8, 8)])
def test_image_rows_names_the_row_that_is_no_batch_of_images(shape):
    with pytest.raises(ValueError, match="rows\\['bad'\\]"):
        plots.image_rows({"good": torch.rand(2, 1, 4, 4), "bad": torch.rand(shape)})


def test_image_rows_draws_rows_of_different_length():
    fig = plots.image_rows({"a": torch.rand(3, 1, 4, 4), "b": torch.rand(2, 3, 4, 4)}, title="t")
    assert sum(len(ax.images) for ax in fig.axes) == 5


def test_image_grid_puts_each_image_in_its_place():
    images = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    fig = plots.image_grid(images, columns=3)
    sheet = fig.axes[0].images[0].get_array()
    assert sheet.shape == (4, 6)
    assert sheet[0, 0] == 0
    assert sheet[0, 5] == pytest.approx(0.2)
    assert sheet[3, 3] == pytest.approx(0.4)
    assert sheet[3, 5] == 0  # filled up


def test_class_scatter_names_only_the_classes_there_are():
    _, ax = plots.figure()
    plots.class_scatter(ax, torch.rand(10, 2), torch.tensor([0, 2] * 5), ("a", "b", "c"))
    assert [t.get_text() for t in ax.texts] == ["a", "c"]


def test_pipeline_map_draws():
    image = torch.rand(1, 28, 28)
    fig = plots.pipeline_map(image, torch.arange(49).reshape(7, 7), image, image)
    assert len(plots.to_png(fig)) > 1000

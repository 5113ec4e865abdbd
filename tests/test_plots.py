"""Figures: alt text, the same bytes each time, clear errors."""

import warnings

import pytest
import torch

from companion import plots
from companion.data import load


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
    assert sheet[3, 5] == 1  # filled up in white, as the page is


def test_colours_are_drawn_as_they_are():
    """Red, green and blue in their order, of three channels and of a grid; grey beside them stays grey."""
    images = load("emoji", size=5).batch(range(5))[0]
    expected = images.permute(0, 2, 3, 1).numpy()  # (5, 32, 32, 3)
    sheet = plots.image_grid(images, columns=3).axes[0].images[0].get_array()
    assert sheet.shape == (64, 96, 3)
    assert (sheet[:32, 32:64] == expected[1]).all()
    assert (sheet[32:, 32:64] == expected[4]).all()
    assert (sheet[32:, 64:] == 1).all()
    rows = plots.image_rows({"x": images, "grey": images.mean(1, keepdim=True)})
    drawn = [ax.images[0].get_array() for ax in rows.axes]
    assert [image.shape for image in drawn] == [(32, 32, 3)] * 5 + [(32, 32)] * 5
    assert all((one == other).all() for one, other in zip(drawn[:5], expected, strict=True))
    course = plots.pipeline_map(images[0], torch.arange(16).reshape(4, 4), images[1], images[2])
    shown = [ax.images[0].get_array() for ax in course.axes[0].child_axes]
    assert all((image == expected[i]).all() for i, image in ((0, shown[0]), (1, shown[1]), (2, shown[3])))


@pytest.mark.cpu_only("looks at where matplotlib puts the names")
def test_long_names_of_a_class_scatter_do_not_hide_each_other():
    """In circles, those of the emoji did, and most of the points too."""
    test = load("emoji", "test")
    points = torch.randn(len(test), 2, generator=torch.Generator().manual_seed(0)) + test.labels[:, None] / 9
    fig, ax = plots.figure(6, 5)
    plots.class_scatter(ax, points, test.labels, test.classes)
    plots.to_png(fig)  # lays it out
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    assert len(boxes) == 9
    assert [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)] == []
    assert sum(box.width * box.height for box in boxes) < 0.2 * ax.bbox.width * ax.bbox.height


def test_class_scatter_names_only_the_classes_there_are():
    _, ax = plots.figure()
    plots.class_scatter(ax, torch.rand(10, 2), torch.tensor([0, 2] * 5), ("a", "b", "c"))
    assert [t.get_text() for t in ax.texts] == ["a", "c"]


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.02, 0.05])
def test_no_two_names_of_a_class_scatter_lie_nearer_than_six_per_cent(spread):
    g = torch.Generator().manual_seed(1)
    clumps = torch.cat([spread * torch.rand(9, 2, generator=g), torch.tensor([[0.9, 0.9]])])
    points = torch.cat([clumps.repeat(3, 1), torch.tensor([[0.0, 0.0], [1.0, 1.0]])]) * torch.tensor([40.0, 2.0]) - 7
    _, ax = plots.figure()
    plots.class_scatter(ax, points, torch.tensor([*list(range(10)) * 3, 9, 9]), "abcdefghij")
    assert [t.get_text() for t in ax.texts] == list("abcdefghij")
    places = torch.tensor([t.get_position() for t in ax.texts]) / torch.tensor([40.0, 2.0])
    assert torch.pdist(places).min() >= 0.0599
    alone = (torch.tensor([36.0, 1.8]) - 7) / torch.tensor([40.0, 2.0])
    torch.testing.assert_close(places[9], alone, atol=1e-3, rtol=0)  # this one stays where it was


def test_pipeline_map_draws():
    image = torch.rand(1, 28, 28)
    fig = plots.pipeline_map(image, torch.arange(49).reshape(7, 7), image, image)
    assert len(plots.to_png(fig)) > 1000


def test_cells_belong_to_the_nearest_code_and_are_bordered():
    _, ax = plots.figure()
    plots.draw_cells(ax, torch.tensor([[-1.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, -2.0], [0.0, 4.0]]))
    sheet = ax.images[0].get_array()
    colours, counts = sheet.reshape(-1, 3).round(3).tolist(), {}
    for colour in map(tuple, colours):
        counts[colour] = counts.get(colour, 0) + 1
    cells = sorted((n, colour) for colour, n in counts.items())
    assert len(cells) == 3  # two cells and the border between them
    border, *owners = cells
    assert border[0] < 1500
    assert owners[0][0] == pytest.approx(owners[1][0], rel=0.02)  # the picture is cut in halves by symmetry
    assert [t.get_text() for t in ax.texts] == ["0", "1"]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < -1 < 1 < right
    assert bottom < -2 < 4 < top


@pytest.mark.parametrize("name", ["codebook", "points"])
def test_cells_are_drawn_in_the_plane_only(name):
    plane = {"codebook": torch.rand(3, 2), "points": torch.rand(4, 2)} | {name: torch.rand(3, 4)}
    with pytest.raises(ValueError, match=name):
        plots.draw_cells(plots.figure()[1], **plane)


def test_gradient_flow_has_an_arrow_for_each_field_that_is_not_zero():
    table = {
        "reconstruction": {"encoder": 0.5, "codebook": 0.0, "decoder": 2.0},
        "codebook": {"encoder": 0.0, "codebook": 0.25, "decoder": 0.0},
    }
    _, ax = plots.figure(6, 3)
    plots.draw_gradient_flow(ax, table)
    texts = [t.get_text() for t in ax.texts]
    assert [t.replace("\n", " ") for t in texts if t.startswith(("moves", "zero"))] == [
        "moves 0.5", "zero 0", "moves 2", "zero 0", "moves 0.25", "zero 0",
    ]  # fmt: skip
    assert sum(getattr(t, "arrow_patch", None) is not None for t in ax.texts) == 3
    assert {"encoder", "codebook", "decoder", "reconstruction\nloss", "codebook\nloss"} <= set(texts)


@pytest.mark.parametrize("table", [{}, {"a": {}}, {"a": {"x": 1.0}, "b": {"y": 1.0}}])
def test_gradient_flow_wants_the_same_parts_in_every_row(table):
    with pytest.raises(ValueError, match="table"):
        plots.draw_gradient_flow(plots.figure()[1], table)


def test_codes_are_coloured_by_number_or_by_a_given_order():
    codes = torch.tensor([[0, 3], [1, 1]])
    _, (plain, ranked) = plots.figure(4, 2, columns=2)
    plots.draw_codes(plain, codes)
    plots.draw_codes(ranked, codes, order=torch.tensor([3, 0, 1, 2]), numbers=False)
    assert plain.images[0].get_array().tolist() == codes.tolist()
    assert [text.get_text() for text in plain.texts] == ["0", "3", "1", "1"]
    assert ranked.images[0].get_array().tolist() == [[3, 2], [0, 0]]
    assert not ranked.texts


def test_a_rectangle_lies_where_it_was_put():
    frame = plots.rectangle((1.5, 2.5), 4, 3, fill=False)
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (1.5, 2.5, 4, 3)


def test_an_option_that_a_rectangle_has_not_is_refused():
    with pytest.raises(
        ValueError, match=r"style: got {'colour': 'red'}, want options of matplotlib's Rectangle .*colour"
    ):
        plots.rectangle((1, 2), 3, 4, colour="red")


@pytest.mark.parametrize("codes", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 3.0]]])
def test_cells_have_room_where_the_codes_take_none(codes):
    _, ax = plots.figure()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.draw_cells(ax, torch.tensor(codes))
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert (left, right) == (0, 2)
    assert bottom < 2 < top


def test_a_table_without_a_row_is_refused_in_these_words():
    for table in ({}, {"a": {}}):
        with pytest.raises(ValueError, match="want at least one loss with at least one part"):
            plots.draw_gradient_flow(plots.figure()[1], table)


@pytest.mark.cpu_only("counts calls, which the placing mode repeats")
def test_a_thousand_classes_are_named_although_the_names_cannot_be_moved_apart(monkeypatch):
    tables = []

    def watched(self, *args, norm=torch.Tensor.norm, **options):
        tables.append(tuple(self.shape))
        return norm(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "norm", watched)
    moved = plots._moved_apart(torch.rand(1000, 2), 0.06)
    assert moved.isfinite().all()
    assert tables == [(1000, 1000, 2)] * 10  # and not a thousand


def test_more_images_than_axes_can_be_made_for_are_refused():
    with pytest.raises(ValueError, match=r"rows: got 2 rows of 200 images, want at most 150 in all: image_grid"):
        plots.image_rows({"x": torch.rand(200, 1, 2, 2), "y": torch.rand(3, 1, 2, 2)})

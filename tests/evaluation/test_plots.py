"""Formats, labels and axes of figures."""

import numpy as np
import pytest

from aa_flax.evaluation import plots
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.row import Point, Row, points, time_label

NAME = r"net$\frac$"  # not a formula
MODELS = [
    Point(NAME, None, 70, 60, 0.5, 1.0),
    Point(NAME, 2, 71, 83),
    Point(NAME, 4, 71.01, 83.1),
]
MAPS = EquivarianceMaps(("stem", "logits"), (2, 4), np.full((2, 4, 4), 1.25), np.ones(2))


@pytest.fixture
def kept(monkeypatch):
    """Keeps figures open after they are saved, and returns them."""
    pyplot, figures = plots.pyplot(), []
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    monkeypatch.undo()
    pyplot.close("all")


def test_a_figure_is_written_in_each_format_and_twice_the_same(tmp_path):
    for folder in ("a", "b"):
        plots.plot_models(tmp_path / folder / "models.png", MODELS, "x (%)", "y (%)")
    for suffix in (".png", ".pdf", ".svg"):
        one, other = ((tmp_path / f / f"models{suffix}").read_bytes() for f in "ab")
        assert one == other
        assert one


def test_labels_cover_neither_each_other_nor_points_and_are_complete(tmp_path, kept):
    plots.plot_models(tmp_path / "models.png", MODELS, "x", "y", [".png"])
    (figure,) = kept
    (panel,) = figure.axes
    boxes = [text.get_window_extent() for text in panel.texts if text.get_text()]
    assert len(boxes) == len(MODELS)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert figure.bbox.contains(*box.min)
        assert figure.bbox.contains(*box.max)
        for model in MODELS:
            assert not box.contains(*panel.transData.transform((model.x, model.y)))


def test_only_points_of_several_seeds_have_bars(tmp_path, kept):
    plots.plot_models(tmp_path / "models.png", MODELS, "x", "y", [".png"])
    (panel,) = kept[0].axes
    bars = [bar for container in panel.containers for bar in container[2]]
    ends = [bar.get_segments()[0].tolist() for bar in bars]
    assert ends == [[[69.5, 60], [70.5, 60]], [[70, 59], [70, 61]]]
    assert "standard deviation over seeds" in panel.get_title()


def test_run_times_of_several_seeds_have_bars(tmp_path, kept):
    families = {"resnet18": {None: [4.0, 6.0], 4: [6.0, 6.2]}, "alexnet": {None: [1.0]}}
    plots.plot_run_times(tmp_path / "times.png", families, "ms", [".png"])
    (panel,) = kept[0].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["resnet18", "alexnet"]
    ends = [bar.get_segments() for container in panel.containers for bar in container[2]]
    spread = np.std([4, 6], ddof=1)
    np.testing.assert_allclose(ends[0][0], [[5 - spread, 0], [5 + spread, 0]])
    assert np.ptp(ends[0][1][:, 0]) == 0  # one run


def test_maps_have_their_means_in_the_unit_of_the_colour_bar(tmp_path, kept):
    plots.plot_equivariance(tmp_path / "maps.png", {"net": MAPS})
    panel, *_, bar = kept[0].axes
    assert panel.get_xlabel() == "mean 125.0 %"
    assert panel.images[0].get_clim() == (0, 50)
    assert "%" in bar.get_ylabel()
    assert "50 % and more" in kept[0].get_supxlabel()


def test_an_axis_of_time_has_the_batch_size_and_the_device():
    rows = [
        Row("a", ({"top1": 1, "time": {"milliseconds": 2, "batch_size": 48, "device": "cpu"}},)),
        Row("b", ({"top1": 1, "time": {"milliseconds": 2, "batch_size": 48, "device": "H100"}},)),
    ]
    assert time_label(rows[:1]) == "forward pass of 48 images on cpu (ms)"
    assert time_label(rows) == "forward pass of 48 images on H100 or cpu (ms)"


def test_points_have_the_deviation_over_seeds():
    row = Row("resnet18_lpf4", ({"top1": 70, "x": 1}, {"top1": 72, "x": 1}))
    (point,) = points([row], ("x",), ("top1",))
    assert point == Point("resnet18", 4, 1, 71, 0, pytest.approx(2**0.5), "resnet18_lpf4")

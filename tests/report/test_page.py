"""The content of the HTML page; `test_browser.py` opens it in a browser."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax.evaluation.row import Point
from aa_flax.report import html as page
from aa_flax.report.__main__ import main
from aa_flax.report.html.charts import COLOURS, colours_of, models_chart
from aa_flax.report.rows import gather
from tests.report.some_results import CROP, MODELS, OFFSETS, SIZE, write_results

LEFT_OUT = "cut.json is <cut>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def text(folders, tmp_path_factory):
    """Returns a page without the five megabytes of plotly.js."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "plotly_js", lambda: "/* plotly.js */")
        path = tmp_path_factory.mktemp("page") / "report.html"
        return page.write_page(path, gather(folders).rows, [LEFT_OUT]).read_text()


@pytest.fixture(scope="module")
def data(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


class Tags(HTMLParser):
    """Collects the open tags, the addresses and the identifiers."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "input", "wbr", "br", "link"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(address.startswith("data:") for address in tags.addresses)
    assert len(tags.ids) == len(set(tags.ids))
    assert "default-src 'none'" in text


def test_names_are_escaped(text, data):
    assert "seven </script>" not in text
    assert "cut.json is &lt;cut&gt;" in text
    assert data["walks"][1]["images"][0]["title"] == "image 0: seven </script>"


def test_names_in_a_chart_are_escaped_for_plotly():
    odd = "<a href='x'>%{x}</a>"
    chart = models_chart(
        [Point(odd, None, 1, 2, name=odd), Point(odd, 2, 3, 4, name=odd)], "x", "y"
    )
    texts = [trace.get("name", "") for trace in chart["data"]] + chart["data"][-1]["customdata"][0]
    assert not any("<a" in text or "{" in text for text in texts)


def test_the_table_has_every_number_and_explains_each_column(text, folders):
    for row in gather(folders).rows:
        (consistency,) = (np.mean(row.values(("shift", "consistency"))),)
        assert f'data-value="{consistency:.9g}"' in text
    for title in ("accuracy", "consistency", "ms"):
        assert re.search(f"<dt>{title}</dt><dd>.+?</dd>", text)


def test_a_walk_has_the_stored_images_and_each_model_at_each_offset(data, folders):
    walk = next(walk for walk in data["walks"] if walk["title"] == "resnet18")
    assert (walk["crop"], walk["size"], walk["offsets"]) == (CROP, SIZE, OFFSETS)
    stored = np.load(folders[0] / "d.npz")
    picture = walk["images"][1]
    encoded = picture["source"].partition("base64,")[2]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    np.testing.assert_array_equal(pixels, stored["image_pixels"][1])
    assert [model["name"] for model in picture["models"]] == [
        n for n in MODELS if n.startswith("resnet18")
    ]
    curve = picture["models"][0]["probability"]
    np.testing.assert_allclose(curve, stored["diag_probs"][2], atol=1e-5)


def test_results_without_images_keep_their_curves(folders, tmp_path):
    (tmp_path / "results.json").write_text((folders[0] / "results.json").read_text())
    np.savez(tmp_path / "d.npz", diag_probs=np.full((3, OFFSETS), 0.5))
    (tmp_path / "e.npz").write_bytes((folders[0] / "e.npz").read_bytes())
    (walk,) = page.sections(gather([tmp_path]).rows, {})[2].data["walks"]
    assert walk["images"][0]["source"] is None
    assert walk["images"][0]["models"][0]["right"] is None
    assert walk["images"][0]["models"][0]["probability"] == [0.5] * OFFSETS


def test_arrows_lead_from_each_baseline_to_its_antialiased_models():
    models = [Point("a", None, 1, 2), Point("a", 4, 3, 4), Point("b", 4, 5, 6)]
    arrows = [t for t in models_chart(models, "x", "y")["data"] if t["mode"] == "lines+markers"]
    assert [(arrow["x"], arrow["y"]) for arrow in arrows] == [([1, 3, None], [2, 4, None])]


def test_several_seeds_have_error_bars_and_one_has_none():
    models = [Point("a", None, 1, 2, 0.5, 0.0, "a")]
    (trace,) = models_chart(models, "x (%)", "y (ms)")["data"]
    assert trace["error_x"]["array"] == [0.5]
    assert "error_y" not in trace
    assert trace["customdata"] == [["a", "1.00 ± 0.50", "2.000"]]


def test_plotly_accepts_the_charts(data):
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="the extra html is missing")
    charts = [chart for name, chart in data.items() if name != "walks"]
    charts += [{"layout": walk["layout"]} for walk in data["walks"]]
    for chart in charts:
        graph_objects.Figure(chart)  # raises for unknown entities


def test_colours_end_in_blue_and_red():
    colours = colours_of(np.array([[0, 0.25, 0.5, 1.25]]))[0]
    np.testing.assert_array_equal(colours, [COLOURS[i] for i in (0, 5, 10, 10)])


def test_a_custom_measure_shows_its_figure(folders, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.png")
    figures = {"circular": [tmp_path / "mine.png"]}
    assert "data:image/png" in page.sections(gather(folders).rows, figures)[-1].html


def test_without_plotly_the_error_names_the_extra_to_install(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"pip install 'aa_flax\[html\]'"):
        page.write_page(tmp_path / "report.html", gather(folders).rows)
    with pytest.raises(SystemExit, match=r"error: a page needs plotly"):
        main([str(folders[0]), "--output", str(tmp_path), "--html"])

"""The page's sections below the table: one a measure, of those that have something to look at."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.markup import plotly
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.page.charts import nets_chart, profile_chart
from aa_flax.evaluation.page.maps import maps_grid
from aa_flax.evaluation.page.walks import walks
from aa_flax.evaluation.points import points, time_label
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import by_conditions


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        html: a `<section>`. data: what `page.js` draws in it, by name.
    """

    html: str
    data: dict[str, Any]


def sections(rows: Sequence[Row], figures: Mapping[str, Sequence[Path]]) -> list[Section]:
    """What there is to look at; of measures that the page cannot draw, their pictures."""
    drawn = [draw(rows) for draw in _DRAWN.values()]
    pictures = [_pictures(name, figures.get(name, ())) for name in MEASURES if name not in _DRAWN]
    return [section for section in (*drawn, *pictures) if section is not None]


def _section(name: str, title: str, about: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2><p>{about}</p>{body}</section>'


def _chart(name: str, about: str) -> str:
    label = escape(about, quote=True)
    return f'<div class="chart" data-chart="{name}" role="img" aria-label="{label}"></div>'


def _shift(rows: Sequence[Row]) -> Section | None:
    nets = points(rows, ("top1",), ("shift", "consistency"))
    if not nets:
        return None
    about = (
        "Accuracy is the share of images that get their true class; consistency the share of pairs "
        "of shifted crops that get the same class. Up and to the right is better. Circles are "
        "baselines, squares antialiased nets with their filter size; arrows lead from each "
        "baseline to its antialiased nets, bars are standard deviations over seeds."
    )
    chart = nets_chart(nets, "accuracy (%)", "consistency (%)")
    body = _chart("consistency", "accuracy against consistency, a point a net")
    title = "Accuracy and consistency"
    return Section(_section("consistency", title, about, body), {"consistency": chart})


def _time(rows: Sequence[Row]) -> Section | None:
    nets = points(rows, ("time", "milliseconds"), ("top1",))
    if not nets:
        return None
    about = (
        "The median time of a compiled forward pass, in milliseconds, against accuracy. Up and to "
        "the left is better."
    )
    chart = nets_chart(nets, plotly(time_label(rows)).replace(" on ", "<br>on "), "accuracy (%)")
    body = _chart("time", "run time against accuracy, a point a net")
    return Section(_section("time", "Run time", about, body), {"time": chart})


def _diagonal(rows: Sequence[Row]) -> Section | None:
    found = walks([row for row in rows if row.first("diagonal")])
    if not found:
        return None
    about = (
        "The probability that each net gives to the true class as the crop moves over the image, "
        "one pixel down and right a step (the first seed of each net). A net that did not mind "
        "shifts would draw a level line. The slider moves the crop and the mark in the chart."
    )
    body = (files("aa_flax.evaluation.page") / "walk.html").read_text(encoding="utf-8")
    return Section(_section("walk", "Along a shift", about, body), {"walks": found})


def _equivariance(rows: Sequence[Row]) -> Section | None:
    groups = by_conditions([row for row in rows if row.first("equivariance")])
    if not groups:
        return None
    about = (
        "How far each block is from moving its features as the image moves, at every shift down "
        "and right of one period of the net's stride (the first seed of each net). All numbers are "
        "in percent of the distance between the features of two different images at that block: "
        "0 % is equivariant, at 100 % a shift changes the features as much as another image would, "
        "and more is possible. The last map is that of the logits: their invariance."
    )
    body, data = [], {}
    for i, (title, nets) in enumerate(groups.items()):
        maps = {row.title: EquivarianceMaps.load(row.file("equivariance")) for row in nets}
        data[f"profile-{i}"] = profile_chart(maps)
        chart = _chart(f"profile-{i}", f"mean deviation of each block, {title}")
        body.append(f"<h3>{escape(title)}</h3>{chart}{maps_grid(maps)}")
    title = "Equivariance, block by block"
    return Section(_section("equivariance", title, about, "".join(body)), data)


def _pictures(name: str, paths: Sequence[Path]) -> Section | None:
    """The figures of a measure of somebody's own."""
    shown = [path for path in paths if path.suffix.lower() == ".png"]
    if not shown:
        return None
    images = [
        f'<img class="figure" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}" alt="{escape(path.stem, quote=True)}">'
        for path in shown
    ]
    about = escape(MEASURES[name].options[0].help)
    return Section(_section(escape(name), escape(name), about, "".join(images)), {})


_DRAWN: dict[str, Callable[[Sequence[Row]], Section | None]] = {
    "shift": _shift,
    "time": _time,
    "diagonal": _diagonal,
    "equivariance": _equivariance,
}

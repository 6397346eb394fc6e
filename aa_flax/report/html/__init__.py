"""A report as one HTML file, with everything in it, that opens from disk without a network.

The page is `page.html` with its parts filled in: `page.css`, `page.js`, plotly.js (the extra
`html`), sections (those of measures begin with a file, such as `walk.html`), tables and images as
HTML, and the charts that the browser draws as JSON. Its content policy forbids the browser to load
anything from elsewhere.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from aa_flax.errors import InputError
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.row import Row, points, time_label
from aa_flax.files import replacing
from aa_flax.report import comparisons
from aa_flax.report.html import charts
from aa_flax.report.rows import (
    by_conditions,
    circumstances,
    conditions,
    explained_columns,
    shown_columns,
    weights_of,
)


def write_page(
    path: Path,
    rows: Sequence[Row],
    left_out: Sequence[str] = (),
    *,
    figures: Mapping[str, Sequence[Path]] | None = None,
) -> Path:
    """Writes a report as one HTML file, and returns its path; see `aa_flax.report.write_report`.

    Args:
        figures: image files by measure, for measures that the page does not draw itself.
    """
    about = [f"All models: {common}."] if (common := conditions(rows)) else []
    about += [f"Measured {measured}."] if (measured := circumstances(rows)) else []
    parts = sections(rows, figures or {})
    data = {name: chart for part in parts for name, chart in part.data.items()}
    page = {
        "conditions": escape(" ".join(about)),
        "table": _results_table(rows),
        "judged": escape(comparisons.judged_by()),
        "columns": _definitions((escape(k), v) for k, v in explained_columns(rows).items()),
        "sections": "\n".join(part.html for part in (*parts, *_lists(rows, left_out))),
        # JSON without `<` cannot end the script element that contains it.
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "plotly": plotly_js(),
        "style": _file("page.css"),
        "script": _file("page.js"),
    }
    with replacing(path) as temporary:
        temporary.write_text(Template(_file("page.html")).substitute(page), encoding="utf-8")
    return path


def plotly_js() -> str:
    """Returns the JavaScript library that draws in the browser, of the extra `html`.

    Raises:
        InputError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("a page needs plotly: pip install 'aa_flax[html]'") from error
    return get_plotlyjs()


def _file(name: str) -> str:
    return (files("aa_flax.report.html") / name).read_text(encoding="utf-8")


def _results_table(rows: Sequence[Row]) -> str:
    """Returns the table of all numbers, sorted by a click on a head."""
    columns, notes = shown_columns(rows), explained_columns(rows)
    front, beaten = comparisons.pareto_front(rows), comparisons.dominated_variants(rows)
    heads = ['<th scope="col"><button type="button">model</button></th>']
    for column, _ in columns:
        title = escape(column.title + (" (%)" if column.unit == "%" else ""))
        note = escape(notes[column.title], quote=True)
        heads.append(f'<th scope="col"><button type="button" title="{note}">{title}</button></th>')
    lines = []
    for row in rows:
        mark = "front" if row.title in front else "beaten" if row.title in beaten else ""
        cells = [f'<th scope="row" class="{mark}">{charts.breakable(row.title)}</th>']
        for column, path in columns:
            text, values = row.text(path, column.unit, column.interval), row.values(path)
            value = f' data-value="{np.mean(values):.9g}"' if values else ""
            cells.append(f"<td{value}>{text}</td>")
        lines.append(cells)
    return _table("table of all models", heads, lines, ' id="results"')


def _table(
    label: str, heads: Iterable[str], lines: Iterable[Iterable[str]], attributes: str = ""
) -> str:
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
        f"<table{attributes}><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _definitions(terms: Iterable[tuple[str, str]]) -> str:
    """Returns a list of terms, which are HTML already, and their definitions."""
    items = (f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in terms)
    return f"<dl>{''.join(items)}</dl>"


class Section(NamedTuple):
    """A part of the page, and what `page.js` draws in it, by name."""

    html: str
    data: dict[str, Any]


def _section(name: str, title: str, body: str, **data: Any) -> Section:
    return Section(f'<section id="{name}"><h2>{title}</h2>{body}</section>', data)


def _lists(rows: Sequence[Row], left_out: Sequence[str]) -> Iterator[Section]:
    """Yields the sections at the end: published numbers, weights, what was left out."""
    lines = [
        [
            f'<th scope="row">{charts.breakable(name)}</th>',
            *(f"<td>{escape(c)}</td>" for c in cells),
        ]
        for name, *cells in comparisons.compared_cells(rows)
    ]
    if lines:
        heads = [f'<th scope="col">{head}</th>' for head in comparisons.HEAD]
        about = escape(comparisons.EXPLAINED.replace("`", ""))
        body = f"<p>{about}</p>{_table('measured and published', heads, lines)}"
        yield _section("published", "Compared with published numbers", body)
    if terms := [(charts.breakable(row.title), text) for row in rows if (text := weights_of(row))]:
        yield _section("weights", "Weights", _definitions(terms))
    if left_out:
        items = "".join(f"<li>{escape(line)}</li>" for line in left_out)
        yield _section("left-out", "Left out", f"<ul>{items}</ul>")


def sections(rows: Sequence[Row], figures: Mapping[str, Sequence[Path]]) -> list[Section]:
    """Returns the sections of the measures: drawn by the page, or their image files."""
    images = (_images(name, figures.get(name, ())) for name in MEASURES if name not in _DRAWN)
    return [*_drawn(rows), *filter(None, images)]


_DRAWN = ("shift", "time", "diagonal", "equivariance")


def _drawn(rows: Sequence[Row]) -> Iterator[Section]:
    if models := points(rows, ("top1",), ("shift", "consistency")):
        chart = charts.models_chart(models, "accuracy (%)", "consistency (%)")
        body = _file("consistency.html")
        yield _section("consistency", "Accuracy and consistency", body, consistency=chart)
    if models := points(rows, ("time", "milliseconds"), ("top1",)):
        x_label = charts.plotly(time_label(rows)).replace(" on ", "<br>on ")
        chart = charts.models_chart(models, x_label, "accuracy (%)")
        yield _section("time", "Run time", _file("time.html"), time=chart)
    if walks := charts.walks([row for row in rows if row.first("diagonal")]):
        yield _section("walk", "Along a shift", _file("walk.html"), walks=walks)
    body, data = _file("equivariance.html"), {}
    groups = by_conditions([row for row in rows if row.first("equivariance")])
    for i, (title, members) in enumerate(groups.items()):
        maps = {row.title: EquivarianceMaps.load(row.file("equivariance")) for row in members}
        data[f"profile-{i}"] = charts.profile_chart(maps)
        label = escape(f"mean deviation of each block, {title}", quote=True)
        chart = (
            f'<div class="chart" data-chart="profile-{i}" role="img" aria-label="{label}"></div>'
        )
        body += f"<h3>{escape(title)}</h3>{chart}{charts.maps_grid(maps)}"
    if groups:
        yield _section("equivariance", "Equivariance, block by block", body, **data)


def _images(name: str, paths: Sequence[Path]) -> Section | None:
    """Returns a section with the figures of a measure that the page does not draw itself."""
    images = [
        f'<img class="figure" src="{charts.png_uri(path.read_bytes())}" '
        f'alt="{escape(path.stem, quote=True)}">'
        for path in paths
        if path.suffix.lower() == ".png"
    ]
    if not images:
        return None
    about = f"<p>{escape(MEASURES[name].options[0].help)}</p>"
    return _section(escape(name), escape(name), about + "".join(images))

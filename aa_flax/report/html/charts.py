"""Contents that the page draws: charts, maps of equivariance, walks along shifts.

A chart is a dict of `data` and `layout`, as plotly.js accepts it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.plots import colour_of
from aa_flax.evaluation.row import Point, Row
from aa_flax.evaluation.text import mean_with_spread
from aa_flax.report.rows import by_conditions

Chart = dict[str, Any]

_AXIS = {"zeroline": False, "automargin": True}
_LINES = {"type": "scatter", "mode": "lines+markers"}
# The eleven colours of ColorBrewer's RdYlBu, from blue to red.
COLOURS = (
    *((49, 54, 149), (69, 117, 180), (116, 173, 209), (171, 217, 233), (224, 243, 248)),
    *((255, 255, 191), (254, 224, 144), (253, 174, 97), (244, 109, 67), (215, 48, 39)),
    (165, 0, 38),
)
MOST = 0.5  # of the distance between two images: red, as in Zhang (2019), fig. 5


def plotly(text: str) -> str:
    """Escapes a text so that plotly shows it unchanged, in lines that fit a phone.

    Unescaped, plotly interprets markup such as `<a href=...>`, and templates such as `%{x}`.

    Examples:
        >>> plotly("<b>model</b>")
        '&lt;b&gt;model&lt;/b&gt;'
    """
    lines = (escape(line, quote=False) for line in wrap(text, 40))
    return "<br>".join(lines).replace("{", "&#123;")


def breakable(name: str) -> str:
    """Escapes a name for HTML, with a possible line break in front of each underscore."""
    return escape(name).replace("_", "<wbr>_")


def png_uri(png: bytes) -> str:
    """Returns an image as an address that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _pixels_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return png_uri(file.getvalue())


def _layout(x: str, y: str, **more: Any) -> Chart:
    """Returns the layout of every chart; `page.js` adds colours for the light or the dark mode."""
    return {
        "xaxis": {**_AXIS, "title": {"text": x}},
        "yaxis": {**_AXIS, "title": {"text": y}},
        "margin": {"l": 8, "r": 16, "t": 16, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "height": 440,
        **more,
    }


def models_chart(models: Sequence[Point], x_label: str, y_label: str) -> Chart:
    """Returns a chart with a point per model, a colour per family, and arrows from baselines."""
    data = []
    for i, family in enumerate(dict.fromkeys(model.family for model in models)):
        members = [model for model in models if model.family == family]
        data += _arrows(plotly(family), members, colour_of(i))
        data.append(_markers(plotly(family), members, colour_of(i), x_label, y_label))
    return {"data": data, "layout": _layout(x_label, y_label)}


def _markers(
    family: str, members: Sequence[Point], colour: str, x_label: str, y_label: str
) -> Chart:
    trace: Chart = {
        "type": "scatter",
        "mode": "markers+text",
        "name": family,
        "legendgroup": family,
        "x": [model.x for model in members],
        "y": [model.y for model in members],
        "text": ["" if m.filter_size is None else str(m.filter_size) for m in members],
        "textposition": "top right",
        "textfont": {"color": colour, "size": 11},
        "cliponaxis": False,
        "customdata": [
            [plotly(m.name), _number(m.x, m.x_error, x_label), _number(m.y, m.y_error, y_label)]
            for m in members
        ],
        "hovertemplate": (
            f"<b>%{{customdata[0]}}</b><br>{x_label}: %{{customdata[1]}}"
            f"<br>{y_label}: %{{customdata[2]}}<extra></extra>"
        ),
        "marker": {
            "color": colour,
            "size": 9,
            "symbol": ["circle" if m.filter_size is None else "square" for m in members],
        },
    }
    bars = {"type": "data", "color": colour, "thickness": 1, "width": 3}
    for axis in "xy":
        errors = [getattr(model, f"{axis}_error") for model in members]
        if any(errors):
            trace[f"error_{axis}"] = {**bars, "array": errors}
    return trace


def _number(value: float, error: float, label: str) -> str:
    """Formats a number as the table does; the label ends in the unit, `accuracy (%)`."""
    return mean_with_spread(value, error or None, label.rpartition("(")[2].rstrip(")"))


def _arrows(family: str, members: Sequence[Point], colour: str) -> list[Chart]:
    """Returns arrows from the baseline to each other model, if there are any."""
    baselines = [model for model in members if model.filter_size is None]
    others = [model for model in members if model.filter_size is not None]
    if not baselines or not others:
        return []
    baseline = baselines[0]
    return [
        {
            **_LINES,
            "legendgroup": family,  # hides and shows them
            "showlegend": False,
            "hoverinfo": "skip",
            "opacity": 0.6,
            "x": [x for model in others for x in (baseline.x, model.x, None)],
            "y": [y for model in others for y in (baseline.y, model.y, None)],
            "line": {"color": colour, "width": 1.5},
            "marker": {
                "symbol": "arrow",
                "angleref": "previous",
                "color": colour,
                "size": [0, 11, 0] * len(others),
                "standoff": 4,
            },
        }
    ]


def profile_chart(models: Mapping[str, EquivarianceMaps]) -> Chart:
    """Returns a chart of each block's mean deviation from equivariance, a line per model."""
    data = [
        {
            **_LINES,
            "name": plotly(name),
            "x": list(map(plotly, maps.blocks)),
            "y": [round(float(100 * fraction.mean()), 3) for fraction in maps.relative],
            "line": {"color": colour_of(i)},
            "marker": {"symbol": i % 5, "size": 8},
            "hovertemplate": "%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
        }
        for i, (name, maps) in enumerate(models.items())
    ]
    layout = _layout("block", "mean deviation (%)", height=320)
    layout["xaxis"] |= {"type": "category"}
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": data, "layout": layout}


def maps_grid(models: Mapping[str, EquivarianceMaps]) -> str:
    """Returns the maps as HTML, a row per model and a column per block, and their colour bar."""
    lines = "".join(_maps_row(name, maps) for name, maps in models.items())
    ramp = ", ".join(f"rgb{colour}" for colour in COLOURS)
    return (
        '<div class="wide maps" tabindex="0" role="region" aria-label="maps of equivariance">'
        f"<table>{lines}</table></div>"
        f'<p class="bar"><span>0 %</span><span class="ramp" style="background:'
        f'linear-gradient(to right, {ramp})"></span><span>50 % and more</span></p>'
    )


def _maps_row(name: str, maps: EquivarianceMaps) -> str:
    cells = []
    for block, stride, fractions in zip(maps.blocks, maps.strides, maps.relative, strict=True):
        mean, most = 100 * fractions.mean(), 100 * fractions.max()
        at = "logits" if block == "logits" else f"{block}, stride {stride}"
        about = escape(f"{name}, {at}: mean {mean:.1f} %, at most {most:.1f} %", quote=True)
        image = f'<img src="{_pixels_uri(colours_of(fractions))}" alt="{about}" title="{about}">'
        cells.append(f"<td><span>{escape(block)}</span>{image}<span>{mean:.1f} %</span></td>")
    return f'<tr><th scope="row">{breakable(name)}</th>{"".join(cells)}</tr>'


def colours_of(fractions: Float[np.ndarray, "P P"]) -> UInt8[np.ndarray, "P P 3"]:
    """Returns the colours of fractions of the distance between two images; red from `MOST`."""
    position = np.clip(fractions / MOST, 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(position, np.arange(len(COLOURS)), c) for c in np.array(COLOURS, float).T]
    return np.stack(channels, -1).round().astype(np.uint8)


def walks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns what the walk of `page.js` shows: probabilities along diagonal shifts, with images.

    There is an entry for each baseline with its antialiased models, measured alike. `crop` and
    `size` are pixels, of the model's input and of the image that it is cut from. An image has the
    `source` of its pixels (None: not stored), and of each of the `models`, at each offset, the
    `probability` of the true class and whether it is predicted (`right`).
    """
    return [_walk(title, members) for title, members in by_conditions(rows).items()]


def _walk(title: str, rows: Sequence[Row]) -> dict[str, Any]:
    arrays = {row.title: row.arrays("diagonal") for row in rows}
    count = min(len(found["diag_probs"]) for found in arrays.values())
    first = rows[0].first("diagonal") or {}
    chosen = [i for i in first.get("images", [0]) if i < count] or [0]
    offsets = min(found["diag_probs"].shape[1] for found in arrays.values())
    size = next((f["image_pixels"].shape[1] for f in arrays.values() if "image_pixels" in f), 0)
    layout = _layout("shift down and right (pixels)", "probability of the true class", height=340)
    layout["yaxis"] |= {"range": [-0.03, 1.03]}
    layout["xaxis"] |= {"range": [-0.4, offsets - 0.6]}
    return {
        "title": title,
        "offsets": offsets,
        "size": size,
        "crop": size - offsets + 1,
        "images": [_walk_image(i, arrays, offsets) for i in chosen],
        "layout": layout,
    }


def _walk_image(i: int, arrays: Mapping[str, dict[str, np.ndarray]], offsets: int) -> dict:
    title, source = f"image {i}", None
    if stored := next((f for f in arrays.values() if i in f.get("image_index", ())), None):
        at = stored["image_index"].tolist().index(i)
        title = f"image {i}: {stored['image_class'][at]}"
        source = _pixels_uri(stored["image_pixels"][at])
    models = []
    for n, (name, found) in enumerate(arrays.items()):
        right = found.get("diag_corrs")  # not in files with curves alone
        probability = found["diag_probs"][i, :offsets].astype(float).round(5).tolist()
        right = None if right is None else right[i, :offsets].astype(bool).tolist()
        shown = {"name": name, "label": plotly(name), "colour": colour_of(n)}
        models.append({**shown, "probability": probability, "right": right})
    return {"title": title, "source": source, "models": models}

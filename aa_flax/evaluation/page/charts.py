"""Charts as plotly.js takes them: plain dicts of `data` and `layout`."""

from collections.abc import Mapping, Sequence
from typing import Any

from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.markup import plotly
from aa_flax.evaluation.points import PALETTE, Point
from aa_flax.evaluation.rounding import mean_with_spread

Chart = dict[str, Any]

_GRID = {"zeroline": False, "automargin": True}


def layout(x: str, y: str, **more: Any) -> Chart:
    """What all charts have in common: axes with titles, the legend above.

    `page.js` adds the colours of the page, which are the reader's, light or dark.
    """
    return {
        "xaxis": {**_GRID, "title": {"text": x}},
        "yaxis": {**_GRID, "title": {"text": y}},
        "margin": {"l": 8, "r": 16, "t": 16, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "height": 440,
        **more,
    }


def nets_chart(nets: Sequence[Point], x_label: str, y_label: str) -> Chart:
    """A point a net, a colour a family, arrows from each baseline; names where the mouse is."""
    families = list(dict.fromkeys(net.family for net in nets))
    data = []
    for i, family in enumerate(families):
        members = [net for net in nets if net.family == family]
        colour = PALETTE[i % len(PALETTE)]
        name = plotly(family)
        data += _arrows(name, members, colour)
        data.append(_markers(name, members, colour, (x_label, y_label)))
    return {"data": data, "layout": layout(x_label, y_label)}


def _markers(family: str, members: Sequence[Point], colour: str, labels: tuple[str, str]) -> Chart:
    plain = [net.filter_size is None for net in members]
    trace: Chart = {
        "type": "scatter",
        "mode": "markers+text",
        "name": family,
        "legendgroup": family,
        "x": [net.x for net in members],
        "y": [net.y for net in members],
        "text": ["" if net.filter_size is None else str(net.filter_size) for net in members],
        "textposition": "top right",
        "textfont": {"color": colour, "size": 11},
        "cliponaxis": False,
        "customdata": [
            [
                plotly(net.name),
                _told(net.x, net.x_error, labels[0]),
                _told(net.y, net.y_error, labels[1]),
            ]
            for net in members
        ],
        "hovertemplate": (
            f"<b>%{{customdata[0]}}</b><br>{labels[0]}: %{{customdata[1]}}"
            f"<br>{labels[1]}: %{{customdata[2]}}<extra></extra>"
        ),
        "marker": {
            "color": colour,
            "size": 9,
            "symbol": ["circle" if is_plain else "square" for is_plain in plain],
        },
    }
    for axis in "xy":
        errors = [getattr(net, f"{axis}_error") for net in members]
        if any(errors):
            bars = {"type": "data", "array": errors, "color": colour, "thickness": 1, "width": 3}
            trace[f"error_{axis}"] = bars
    return trace


def _told(value: float, error: float, label: str) -> str:
    """With as many digits as the table has; the label ends in the unit, `accuracy (%)`."""
    return mean_with_spread(value, error or None, label.rpartition("(")[2].rstrip(")"))


def _arrows(family: str, members: Sequence[Point], colour: str) -> list[Chart]:
    """From the baseline to each other net; they come and go with the family's legend."""
    baseline = next((net for net in members if net.filter_size is None), None)
    others = [net for net in members if net.filter_size is not None]
    if baseline is None or not others:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "legendgroup": family,
            "showlegend": False,
            "hoverinfo": "skip",
            "opacity": 0.6,
            "x": [x for net in others for x in (baseline.x, net.x, None)],
            "y": [y for net in others for y in (baseline.y, net.y, None)],
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


def profile_chart(nets: Mapping[str, EquivarianceMaps]) -> Chart:
    """Each block's mean deviation, a line a net."""
    data = []
    for i, (name, maps) in enumerate(nets.items()):
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly(name),
                "x": list(map(plotly, maps.blocks)),
                "y": [round(float(100 * share.mean()), 3) for share in maps.relative],
                "line": {"color": PALETTE[i % len(PALETTE)]},
                "marker": {"symbol": i % 5, "size": 8},
                "hovertemplate": "%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
            }
        )
    shown = layout("block", "mean deviation (%)", height=320)
    shown["xaxis"] |= {"type": "category"}
    shown["yaxis"] |= {"rangemode": "tozero"}
    return {"data": data, "layout": shown}

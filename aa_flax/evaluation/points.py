"""Nets as points of a figure of two numbers."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from aa_flax.evaluation.row import Row

# Colours that are told apart on white and read as text on it.
PALETTE = (
    "#1f5fa8",
    "#c2500c",
    "#1b7837",
    "#7b3294",
    "#b2182b",
    "#01665e",
    "#8c510a",
    "#c51b7d",
    "#4d4d4d",
    "#5e7200",
    "#4b3fb5",
    "#00708f",
)


TimesByFilter = Mapping[int | None, Sequence[float]]  # milliseconds of every seed; None: baseline


class Point(NamedTuple):
    """A net in a figure of two numbers; nets of one family share a colour.

    Attributes:
        filter_size: None: the family's baseline.
        x_error, y_error: standard deviations over seeds; 0 with a single result.
        name: of the net, with what tells it from others.
    """

    family: str
    filter_size: int | None
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0
    name: str = ""


def points(rows: Sequence[Row], x: tuple[str, ...], y: tuple[str, ...]) -> list[Point]:
    """The means of two numbers of each row that has both, with their deviations."""
    found = []
    for row in rows:
        point = row.point(x, y)
        if point is not None:
            family = f"{row.base} {row.label}".strip()
            errors = (deviation(row.values(path)) for path in (x, y))
            found.append(Point(family, row.filter_size, *point, *errors, name=row.title))
    return found


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 of a single result."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def fastest(times: TimesByFilter) -> float:
    """The least mean time of a net, over its filter sizes."""
    return min(fmean(seeds) for seeds in times.values())


def time_label(rows: Sequence[Row]) -> str:
    """An axis of run times: of how many images, on what; both, where rows differ."""
    times = [time for row in rows for result in row.results if (time := result.get("time"))]
    images = sorted({f"{time['batch_size']}" for time in times if "batch_size" in time})
    devices = sorted({str(time["device"]) for time in times if "device" in time})
    of = f" of {' or '.join(images)} images" if images else ""
    on = f" on {' or '.join(devices)}" if devices else ""
    return f"forward pass{of}{on} (ms)"

"""Rows of the report, one for each model measured in one way, and the points of its figures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from aa_flax.evaluation.text import with_interval, with_spread

_FILTER = re.compile(r"_lpf(\d+)$")  # the end of an antialiased model's name


@dataclass(frozen=True)
class Row:
    """All results of one model with one kind of weights, measured alike, such as several seeds."""

    model: str
    results: tuple[dict[str, Any], ...]  # of each seed, as an evaluation writes them
    facts: Mapping[str, Any] = field(default_factory=dict)  # facts of the run by name, like `crop`
    label: str = ""  # the facts that distinguish this row from others of the report

    @property
    def title(self) -> str:
        return f"{self.model} ({self.label})" if self.label else self.model

    @property
    def base(self) -> str:
        """The name of the model without antialiasing."""
        return _FILTER.sub("", self.model)

    @property
    def filter_size(self) -> int | None:
        """Taps of the model's BlurPools; None for a baseline or a model from elsewhere."""
        found = _FILTER.search(self.model)
        return int(found[1]) if found else None

    def values(self, path: tuple[str, ...]) -> list[float]:
        """Returns the number at a path of keys, from each of the results that has it."""
        found = (_at(results, path) for results in self.results)
        return [float(value) for value in found if isinstance(value, int | float)]

    def text(self, path: tuple[str, ...], unit: str, interval: str = "") -> str:
        """Formats the number at a path: a single one with its interval, several with their spread.

        The key `interval`, next to the number, has the ends of the interval.
        """
        values = self.values(path)
        ends = [_at(results, (*path[:-1], interval)) for results in self.results]
        if len(values) == len(ends) == 1 and isinstance(ends[0], list):
            return with_interval(values[0], ends[0], unit="")
        return with_spread(values, unit)

    def point(self, *paths: tuple[str, ...]) -> tuple[float, ...] | None:
        """Returns the means of several numbers; None if one of them was not measured."""
        found = [self.values(path) for path in paths]
        return tuple(float(np.mean(values)) for values in found) if all(found) else None

    def first(self, measure: str) -> dict[str, Any] | None:
        """Returns the first result of a measure; its `file` is a path that can be opened."""
        return next((r[measure] for r in self.results if isinstance(r.get(measure), dict)), None)

    def file(self, measure: str) -> Path:
        """Returns the path of that result's arrays."""
        found = self.first(measure)
        assert found is not None
        return Path(found["file"])

    def arrays(self, measure: str) -> dict[str, np.ndarray]:
        """Loads that result's arrays, by name."""
        with np.load(self.file(measure)) as arrays:
            return dict(arrays)


def _at(results: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = results
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


TimesByFilter = Mapping[int | None, Sequence[float]]  # milliseconds of every seed; None: baseline


class Point(NamedTuple):
    """A model in a figure of two numbers; models of one family have the same colour."""

    family: str
    filter_size: int | None  # None for the family's baseline
    x: float
    y: float
    x_error: float = 0.0  # standard deviation over seeds; 0 for a single result
    y_error: float = 0.0
    name: str = ""  # title of the model's row


def points(rows: Iterable[Row], x: tuple[str, ...], y: tuple[str, ...]) -> list[Point]:
    """Returns the means of two numbers, with their deviations, for each row that has both."""
    found = []
    for row in rows:
        if point := row.point(x, y):
            family = f"{row.base} {row.label}".strip()
            errors = (deviation(row.values(path)) for path in (x, y))
            found.append(Point(family, row.filter_size, *point, *errors, name=row.title))
    return found


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation over seeds; 0 for a single result."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def fastest(times: TimesByFilter) -> float:
    """Returns the smallest mean time of a model over its filter sizes."""
    return min(fmean(seeds) for seeds in times.values())


def time_label(rows: Iterable[Row]) -> str:
    """Returns the title of an axis of run times, with the batch sizes and devices of the rows."""
    times = [time for row in rows for result in row.results if (time := result.get("time"))]
    images = sorted({f"{time['batch_size']}" for time in times if "batch_size" in time})
    devices = sorted({str(time["device"]) for time in times if "device" in time})
    of = f" of {' or '.join(images)} images" if images else ""
    on = f" on {' or '.join(devices)}" if devices else ""
    return f"forward pass{of}{on} (ms)"

"""A row of the report: the results of one net, measured in one way."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.evaluation.rounding import with_interval, with_spread


@dataclass(frozen=True)
class Row:
    """All results of one net with one kind of weights, measured alike, e.g. of several seeds.

    Attributes:
        model: the net's name. results: one mapping a seed, as an evaluation writes them.
        facts: what was run, by name, e.g. `crop`; equal for all of the results.
        label: the facts in which this row differs from others of the report.
    """

    model: str
    results: tuple[dict[str, Any], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        return f"{self.model} ({self.label})" if self.label else self.model

    @property
    def base(self) -> str:
        """The net without antialiasing."""
        return re.sub(r"_lpf\d+$", "", self.model)

    @property
    def filter_size(self) -> int | None:
        """Taps of its BlurPools; None: a baseline, or a net that is not of this package."""
        found = re.search(r"_lpf(\d+)$", self.model)
        return int(found[1]) if found else None

    def values(self, path: tuple[str, ...]) -> list[float]:
        """The number at a place in the results, of each that has it."""
        found = (_at(results, path) for results in self.results)
        return [float(value) for value in found if isinstance(value, int | float)]

    def text(self, path: tuple[str, ...], unit: str, interval: str = "") -> str:
        """The number at a place: of one result with its interval, of several their spread.

        Args:
            interval: key of the interval's two ends, beside the number's; empty: it has none.
        """
        values = self.values(path)
        ends = [_at(results, (*path[:-1], interval)) for results in self.results]
        if len(values) == len(ends) == 1 and isinstance(ends[0], list):
            return with_interval(values[0], ends[0], unit="")
        return with_spread(values, unit)

    def point(self, *paths: tuple[str, ...]) -> tuple[float, ...] | None:
        """The means of several numbers, if all were measured."""
        found = [self.values(path) for path in paths]
        return tuple(float(np.mean(values)) for values in found) if all(found) else None

    def first(self, measure: str) -> dict[str, Any] | None:
        """The first result of a measure; its `file` is a path that can be opened."""
        return next((r[measure] for r in self.results if isinstance(r.get(measure), dict)), None)

    def file(self, measure: str) -> Path:
        """The arrays of that result."""
        found = self.first(measure)
        assert found is not None
        return Path(found["file"])


def _at(results: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = results
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def by_base(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by the net without antialiasing, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.base, []).append(row)
    return found

"""Comparisons of the results: models with one another, and with the published numbers."""

from collections.abc import Sequence
from math import erfc, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.evaluation.measure import columns
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.text import p_value
from aa_flax.models.registry import PublishedResult, published_results, released_weights
from aa_flax.report.rows import CONDITIONS


def judged_by() -> str:
    """Returns the titles of the columns by which models are judged, in words."""
    return " or ".join(column.title for column, _ in columns() if column.judged)


def pareto_front(rows: Sequence[Row]) -> set[str]:
    """Returns the titles of rows that no comparable row beats.

    Comparable rows have the same images, crops and shifts. One beats another if it is at least as
    good in all judged columns, and better in one.
    """
    return {row.title for row, _ in _judged(rows)} - {row.title for row, _ in _beaten(rows)}


def dominated_variants(rows: Sequence[Row]) -> set[str]:
    """Returns the titles of rows beaten by another version of the model: other filter, or none."""
    return {row.title for row, other in _beaten(rows) if row.base == other.base}


def _judged(rows: Sequence[Row]) -> list[tuple[Row, tuple[float, ...]]]:
    paths = [path for column, path in columns() if column.judged]
    return [(row, point) for row in rows if (point := row.point(*paths))]


def _beaten(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Returns each row that is beaten, with each row that beats it."""
    judged = _judged(rows)
    return [
        (row, other)
        for row, point in judged
        for other, better in judged
        if point != better
        and all(a <= b for a, b in zip(point, better, strict=True))
        and _are_comparable(row, other)
    ]


def _are_comparable(row: Row, other: Row) -> bool:
    return all(row.facts.get(name) == other.facts.get(name) for name in CONDITIONS)


def gains(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence per antialiased model with a comparable baseline: consistency of both."""
    path = ("shift", "consistency")
    return [
        f"consistency {before[0]:.1f} % → {after[0]:.1f} % ({plain.title} → {row.title}): how "
        "often two shifted views of one image get the same class"
        for row in rows
        for plain in rows
        if plain is not row and plain.model == row.base and _are_comparable(plain, row)
        if (before := plain.point(path)) and (after := row.point(path))
    ]


HEAD = ("model", "metric", "measured", "published", "difference", "p")
EXPLAINED = (
    "`p`: the probability of so large a difference between two independent samples of images. "
    "(Both numbers are of the same images, so differences of a faithful port are smaller.)"
)


class Comparison(NamedTuple):
    """A measured and a published percentage."""

    measured: float
    published: float
    standard_error: float  # of the measured percentage

    @property
    def difference(self) -> float:
        return self.measured - self.published

    @property
    def p_value(self) -> float:
        """The probability of such a difference, or a larger one, between two samples of images."""
        if not self.standard_error:
            return float(self.difference == 0)
        spread = sqrt(2) * self.standard_error  # of the difference of two samples
        return erfc(abs(self.difference) / spread / sqrt(2))

    @property
    def cells(self) -> tuple[str, ...]:
        """Both, their difference and its p-value, below the last columns of `HEAD`."""
        numbers = (f"{self.measured:.2f}", f"{self.published:.2f}", f"{self.difference:+.2f}")
        return (*numbers, p_value(self.p_value))


def published_for(results: dict[str, Any]) -> PublishedResult | None:
    """Returns the published numbers, of 224 pixels, of the released weights that were evaluated."""
    if results.get("data", {}).get("crop_size", 224) != 224:
        return None
    stem = Path((results.get("weights") or {}).get("file", "")).stem
    released = [(r.model, r.training) for r in released_weights() if Path(r.filename).stem == stem]
    found = (p for p in published_results() if (p.model, p.training) in released[:1])
    return next(found, None)


def compared(results: dict[str, Any]) -> dict[str, Comparison]:
    """Returns comparisons of top-1 accuracy and, if measured, consistency with published values."""
    published = published_for(results)
    if published is None:
        return {}
    fraction = results["top1"] / 100
    error = 100 * sqrt(fraction * (1 - fraction) / results["num_images"])
    found = {"accuracy": Comparison(results["top1"], published.accuracy, error)}
    shift = results.get("shift", {})
    if "consistency" in shift:
        low, high = shift["consistency_interval"]
        error = (high - low) / 2 / 1.96
        found["consistency"] = Comparison(shift["consistency"], published.consistency, error)
    return found


def compared_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the cells below `HEAD`, a row per number, for results of released weights."""
    return [
        (row.title, name, *comparison.cells)
        for row in rows
        for results in row.results
        for name, comparison in compared(results).items()
    ]

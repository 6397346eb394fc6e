"""Which nets of a report are better than which."""

from collections.abc import Sequence

from aa_flax.evaluation.measure import Column, columns
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import CONDITIONS


def shown_columns(rows: Sequence[Row]) -> list[tuple[Column, tuple[str, ...]]]:
    """The columns that have a number, and where it stands in the results."""
    return [(column, path) for column, path in columns() if any(row.values(path) for row in rows)]


def explained_columns(rows: Sequence[Row]) -> dict[str, str]:
    """What each shown column is, a line each, by its title."""
    shown = [column for column, _ in shown_columns(rows)]
    return {
        column.title: column.note or measure.options[0].help
        for measure in MEASURES.values()
        for column in measure.columns
        if column in shown
    }


def judged_by() -> str:
    """The titles of the columns that nets are judged by, in words."""
    return " or ".join(column.title for column, _ in columns() if column.judged)


def pareto_front(rows: Sequence[Row]) -> set[str]:
    """Titles of rows that none is better than in one of the judged columns without being worse in
    another: of those with the same images, crops and shifts.
    """
    points = _points(rows)
    return {
        row.title
        for row in rows
        if row.title in points
        and not any(
            _beats(points[other.title], points[row.title])
            for other in rows
            if other.title in points and _are_comparable(row, other)
        )
    }


def dominated_variants(rows: Sequence[Row]) -> set[str]:
    """Titles of rows that another version of the same net (another filter, or none) beats so."""
    points = _points(rows)
    return {
        row.title
        for row in rows
        for other in rows
        if row.title in points
        and other.title in points
        and row.base == other.base
        and _are_comparable(row, other)
        and _beats(points[other.title], points[row.title])
    }


def gains(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence per antialiased model whose baseline was measured alike: consistency of
    both.
    """
    path = ("shift", "consistency")
    pairs = [
        (plain, row)
        for row in rows
        for plain in rows
        if plain is not row and plain.model == row.base and _are_comparable(plain, row)
    ]
    return [
        f"consistency {before[0]:.1f} % → {after[0]:.1f} % ({plain.title} → {row.title}): how "
        "often two shifted views of one image get the same class"
        for plain, row in pairs
        if (before := plain.point(path)) and (after := row.point(path))
    ]


def _points(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    judged = [path for column, path in columns() if column.judged]
    return {row.title: point for row in rows if (point := row.point(*judged))}


def _are_comparable(row: Row, other: Row) -> bool:
    return all(row.facts.get(name) == other.facts.get(name) for name in CONDITIONS)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))

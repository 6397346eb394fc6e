"""Results of nets as a Markdown table and figures.

    python -m aa_flax.evaluation.report RESULTS... --output DIR

RESULTS are results files of evaluations, or folders of them. Several results of one net that differ
in their seed alone become one row: their mean ± standard deviation. Whatever else differs, such as
the crop or the number of epochs, makes a row of its own. DIR gets `report.md` and its figures:
accuracy against consistency, with an arrow from each baseline to its antialiased nets; and what
else was measured: accuracy against the time of a forward pass, and diagonals and equivariance maps
of each baseline beside those of its antialiased nets.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from aa_flax.disk import local_path
from aa_flax.errors import InputError
from aa_flax.evaluation.measure import Column, columns
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.published import comparisons
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import CONDITIONS, conditions, gather
from aa_flax.plugins import load_plugins


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of the results in files and folders, see `gather`."""
    return gather(paths).rows


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


def _points(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    judged = [path for column, path in columns() if column.judged]
    return {row.title: point for row in rows if (point := row.point(*judged))}


def _are_comparable(row: Row, other: Row) -> bool:
    return all(row.facts.get(name) == other.facts.get(name) for name in CONDITIONS)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def table(rows: Sequence[Row]) -> str:
    """Markdown; bold: on the Pareto front; italic: beaten by another version of the same net."""
    shown = _shown(rows)
    front, dominated = pareto_front(rows), dominated_variants(rows)
    titles = [column.title for column, _ in shown]
    lines = [f"| net | {' | '.join(titles)} |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        mark = "**" if row.title in front else "*" if row.title in dominated else ""
        name = f"{mark}{row.model}{mark}" + (f" ({row.label})" if row.label else "")
        cells = [_cell(row.values(path)) for _, path in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(rows: Sequence[Row]) -> list[tuple[Column, tuple[str, ...]]]:
    """The columns that have a number."""
    return [(column, path) for column, path in columns() if any(row.values(path) for row in rows)]


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def published_table(rows: Sequence[Row]) -> str:
    """Measured beside published, for the results of released weights; empty, if there are none."""
    lines = []
    for row in rows:
        for results in row.results:
            for name, c in comparisons(results).items():
                lines.append(
                    f"| {row.title} | {name} | {c.measured:.2f} | {c.published:.2f} "
                    f"| {c.difference:+.2f} | {c.p_value:.2f} |"
                )
    if not lines:
        return ""
    head = ["| net | number | measured | published | difference | p |", "|---" * 6 + "|"]
    return "\n".join(head + lines)


def write_report(rows: Sequence[Row], output: Path, left_out: Sequence[str] = ()) -> Path:
    """Writes `report.md` and its figures into a folder.

    Args:
        left_out: what was found and is not in the rows, a line each.

    Returns:
        The path of `report.md`.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        figures = [path for m in MEASURES.values() for path in m.figures(output, rows)]
        report = output / "report.md"
        report.write_text("\n\n".join(_parts(rows, figures, left_out)) + "\n")
    except OSError as error:
        raise InputError(f"the report cannot be written to {output}: {error.strerror}") from error
    return report


def _parts(rows: Sequence[Row], figures: Sequence[Path], left_out: Sequence[str]) -> list[str]:
    judged = " or ".join(column.title for column, _ in columns() if column.judged)
    notes = [f"`{column.title}`: {column.note}." for column, _ in _shown(rows) if column.note]
    parts = [
        "# Report",
        "Percentages; results that differ in their seed alone are given as mean ± standard "
        f"deviation. **Bold**: no net of the table is better in {judged} without being worse in "
        f"the other; *italic*: another version of the same net is. {' '.join(notes)}".strip(),
        table(rows),
    ]
    if common := conditions(rows):
        parts.insert(2, f"Of all rows: {common}.")
    if published := published_table(rows):
        parts += [
            "## Beside what was published",
            "`p`: the probability of so large a difference between two samples of images. (Both "
            "numbers are of the same images, so differences of a faithful port are smaller.)",
            published,
        ]
    parts += [section for m in MEASURES.values() if (section := m.section(rows))]
    parts += [f"![{path.stem}]({path.name})" for path in figures]
    if left_out:
        parts += ["## Left out", "\n".join(f"- {line}" for line in left_out)]
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m aa_flax.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("--output", required=True, help="folder of the report")
    parser.add_argument("--plugin", help="files or modules with measures of your own")
    args = parser.parse_args(arguments)
    try:
        load_plugins(["", *(sys.argv[1:] if arguments is None else arguments)])
        rows, left_out = gather(args.results)
        print(table(rows))
        if common := conditions(rows):
            print(f"all rows: {common}")
        for line in left_out:
            print(f"left out: {line}")
        written = write_report(rows, local_path(args.output, "--output"), left_out)
        print(f"written to {written}")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

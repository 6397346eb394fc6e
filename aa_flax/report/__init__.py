"""Reports of results: a Markdown table with figures, and an HTML page.

`gather` reads results into rows, `table` and `write_report` show them. The command is
`python -m aa_flax.report`.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from aa_flax.errors import InputError
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.plots import pyplot
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.text import markdown, markdown_table
from aa_flax.report import comparisons
from aa_flax.report import html as page
from aa_flax.report.rows import (
    circumstances,
    conditions,
    explained_columns,
    gather,
    shown_columns,
    weights_of,
)
from aa_flax.runtime import log_line

__all__ = ["gather", "legend", "table", "write_report"]


def table(rows: Sequence[Row]) -> str:
    """Returns all numbers as a Markdown table.

    Bold: on the Pareto front; italic: beaten by another version of the same model.
    """
    columns = shown_columns(rows)
    front, dominated = comparisons.pareto_front(rows), comparisons.dominated_variants(rows)
    lines = []
    for row in rows:
        mark = "**" if row.title in front else "*" if row.title in dominated else ""
        label = f" ({markdown(row.label)})" if row.label else ""
        cells = [row.text(path, column.unit, column.interval) for column, path in columns]
        lines.append([f"{mark}{markdown(row.model)}{mark}{label}", *cells])
    return markdown_table(["model", *(column.title for column, _ in columns)], lines)


def legend(rows: Sequence[Row]) -> str:
    """Returns a line about each column of the table."""
    return "\n".join(f"- `{title}`: {note}." for title, note in explained_columns(rows).items())


def write_report(
    rows: Sequence[Row], output: Path, left_out: Sequence[str] = (), *, html: bool = False
) -> Path:
    """Writes `report.md` and its figures into a folder, and returns the path.

    Without matplotlib there are no figures, which is logged.

    Args:
        left_out: a line for everything that was found but is not in the rows.
        html: whether to write `report.html`, too: one file with everything in it, then returned.

    Raises:
        InputError: the folder cannot be made or written to, or plotly is missing.
    """
    figures: dict[str, list[Path]] = {}  # by measure
    try:
        output.mkdir(parents=True, exist_ok=True)
        if html:
            page.plotly_js()  # raises before anything is drawn
        try:
            pyplot()
        except InputError as error:
            log_line(f"left out: {error}")
            left_out = [*left_out, str(error)]
        else:
            figures = {m.name: m.figures(output, rows) for m in MEASURES.values()}
        report = output / "report.md"
        paths = [path for drawn in figures.values() for path in drawn]
        report.write_text("\n\n".join(_parts(rows, paths, left_out)) + "\n")
        if html:
            report = page.write_page(output / "report.html", rows, left_out, figures=figures)
    except OSError as error:
        raise InputError(f"the report cannot be written to {output}: {error.strerror}") from error
    return report


def _parts(rows: Sequence[Row], figures: Sequence[Path], left_out: Sequence[str]) -> list[str]:
    parts = [
        "# Report",
        "Percentages; results that differ only in their seed are given as mean ± standard "
        "deviation, a single one with its 95 % confidence interval (times: with the quartiles of "
        "its passes). **Bold**: no model of the table is better in "
        f"{comparisons.judged_by()} without being worse in the other; *italic*: another version of "
        "the same model is.",
    ]
    if common := conditions(rows):
        parts.append(f"All rows: {markdown(common)}.")
    if measured := circumstances(rows):
        parts.append(f"Measured {markdown(measured)}.")
    parts += [table(rows), legend(rows)]
    if cells := comparisons.compared_cells(rows):
        published = markdown_table(comparisons.HEAD, [list(map(markdown, row)) for row in cells])
        parts += ["## Compared with published numbers", comparisons.EXPLAINED, published]
    parts += [section for m in MEASURES.values() if (section := m.section(rows))]
    for path in figures:
        parts.append(f"![{markdown(path.stem)}]({quote(path.name)})")
        vectors = [o for suffix in (".pdf", ".svg") if (o := path.with_suffix(suffix)).is_file()]
        if vectors:
            parts.append(", ".join(f"[{o.suffix[1:].upper()}]({quote(o.name)})" for o in vectors))
    if lines := [f"- {markdown(r.title)}: {markdown(w)}" for r in rows if (w := weights_of(r))]:
        parts += ["## Weights", "\n".join(lines)]
    if left_out:
        parts += ["## Left out", "\n".join(f"- {markdown(line)}" for line in left_out)]
    return parts

# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Results of nets as a Markdown table and figures, and as a page to look at.

    python -m aa_flax.evaluation.report RESULTS... [--output DIR] [--html]

RESULTS are results files of evaluations, or folders of them. Several results of one net that differ
in their seed alone become one row: their mean ± standard deviation. Whatever else differs, such as
the crop or the number of epochs, makes a row of its own. The table is printed, and the consistency
of each antialiased model next to its baseline's. DIR gets `report.md` and its figures: accuracy
against consistency, with an arrow from each baseline to its antialiased nets; and what else was
measured: accuracy against the time of a forward pass, and diagonals and equivariance maps of each
baseline beside those of its antialiased nets. Each figure is there as PNG, PDF and SVG. `--html`
adds `report.html`: the same in one file that opens in a browser, without a network (needs the
extra `html`).
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from aa_flax.cli import load_plugins
from aa_flax.errors import InputError
from aa_flax.evaluation.judging import (
    dominated_variants,
    explained_columns,
    gains,
    judged_by,
    pareto_front,
    shown_columns,
)
from aa_flax.evaluation.markup import markdown
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.page import plotly_js, write_page
from aa_flax.evaluation.plots import pyplot
from aa_flax.evaluation.published import EXPLAINED, HEAD, compared_cells
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import circumstances, conditions, gather, weights_of
from aa_flax.files import local_path
from aa_flax.runtime import log_line


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of the results in files and folders, see `gather`."""
    return gather(paths).rows


def table(rows: Sequence[Row]) -> str:
    """Markdown; bold: on the Pareto front; italic: beaten by another version of the same net."""
    shown = shown_columns(rows)
    front, dominated = pareto_front(rows), dominated_variants(rows)
    titles = [column.title for column, _ in shown]
    lines = [f"| net | {' | '.join(titles)} |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        mark = "**" if row.title in front else "*" if row.title in dominated else ""
        label = f" ({markdown(row.label)})" if row.label else ""
        name = f"{mark}{markdown(row.model)}{mark}{label}"
        cells = [row.text(path, column.unit, column.interval) for column, path in shown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def published_table(rows: Sequence[Row]) -> str:
    """Measured beside published, for the results of released weights; empty, if there are none."""
    cells = compared_cells(rows)
    if not cells:
        return ""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(markdown, row))} |" for row in cells)])


def write_report(
    rows: Sequence[Row], output: Path, left_out: Sequence[str] = (), *, html: bool = False
) -> Path:
    """Writes `report.md` and its figures into a folder.

    Args:
        left_out: what was found and is not in the rows, a line each.
        html: `report.html`, too: one file with everything in it.

    Returns:
        The path of what was written last: `report.md`, or `report.html`.

    Raises:
        InputError: the folder cannot be made or written to, or plotly is missing. (Without
            matplotlib there are no figures, which is printed.)
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if html:
            plotly_js()  # if it is missing, that is told before anything is drawn
        drawn, missing = _figures(output, rows)
        left_out = [*left_out, *missing]
        figures = [path for paths in drawn.values() for path in paths]
        report = output / "report.md"
        report.write_text("\n\n".join(_parts(rows, figures, left_out)) + "\n")
        if html:
            report = write_page(output / "report.html", rows, left_out, figures=drawn)
    except OSError as error:
        raise InputError(f"the report cannot be written to {output}: {error.strerror}") from error
    return report


def _figures(output: Path, rows: Sequence[Row]) -> tuple[dict[str, list[Path]], list[str]]:
    """The figures of each measure, or why there are none."""
    try:
        pyplot()
    except InputError as error:
        log_line(f"left out: {error}")
        return {}, [str(error)]
    return {m.name: m.figures(output, rows) for m in MEASURES.values()}, []


def _parts(rows: Sequence[Row], figures: Sequence[Path], left_out: Sequence[str]) -> list[str]:
    parts = [
        "# Report",
        "Percentages; results that differ in their seed alone are given as mean ± standard "
        "deviation, a single one with its 95 % confidence interval (times: with the quartiles of "
        f"its passes). **Bold**: no net of the table is better in {judged_by()} without being "
        "worse in the other; *italic*: another version of the same net is.",
        table(rows),
        _legend(rows),
    ]
    if measured := circumstances(rows):
        parts.insert(2, f"Measured {markdown(measured)}.")
    if common := conditions(rows):
        parts.insert(2, f"Of all rows: {markdown(common)}.")
    if published := published_table(rows):
        parts += [
            "## Beside what was published",
            EXPLAINED,
            published,
        ]
    parts += [section for m in MEASURES.values() if (section := m.section(rows))]
    parts += [_figure(path) for path in figures]
    if told := [f"- {markdown(r.title)}: {markdown(w)}" for r in rows if (w := weights_of(r))]:
        parts += ["## Weights", "\n".join(told)]
    if left_out:
        parts += ["## Left out", "\n".join(f"- {markdown(line)}" for line in left_out)]
    return parts


def _legend(rows: Sequence[Row]) -> str:
    return "\n".join(f"- `{title}`: {told}." for title, told in explained_columns(rows).items())


def _figure(path: Path) -> str:
    """The picture, and links to the same drawn as lines, for a paper."""
    others = [path.with_suffix(suffix) for suffix in (".pdf", ".svg")]
    shown = f"![{markdown(path.stem)}]({quote(path.name)})"
    links = [f"[{o.suffix[1:].upper()}]({quote(o.name)})" for o in others if o.is_file()]
    return "\n\n".join([shown, *([", ".join(links)] if links else [])])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m aa_flax.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("--output", help="folder of the report; without it, the table is printed")
    parser.add_argument("--html", action="store_true", help="report.html, too: a page to look at")
    parser.add_argument("--plugin", help="files or modules with measures of your own")
    args = parser.parse_args(arguments)
    if args.html and not args.output:
        parser.error("--html needs --output DIR")
    try:
        load_plugins(["", *(sys.argv[1:] if arguments is None else arguments)])
        rows, left_out = gather(args.results)
        print(table(rows))
        if common := conditions(rows):
            print(f"all rows: {common}")
        print(_legend(rows))
        for line in left_out:
            print(f"left out: {line}")
        if args.output:
            output = local_path(args.output, "--output")
            print(f"written to {write_report(rows, output, left_out, html=args.html)}")
        for line in gains(rows):
            print(line)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

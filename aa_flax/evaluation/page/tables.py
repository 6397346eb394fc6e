"""The tables of the page, as HTML."""

from collections.abc import Sequence
from html import escape

import numpy as np

from aa_flax.evaluation.judging import (
    dominated_variants,
    explained_columns,
    judged_by,
    pareto_front,
    shown_columns,
)
from aa_flax.evaluation.measure import Column
from aa_flax.evaluation.published import EXPLAINED, HEAD, compared_cells
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import weights_of


def results_table(rows: Sequence[Row]) -> str:
    """Every number of every net; a click on a column's head sorts by it."""
    columns = shown_columns(rows)
    told = explained_columns(rows)
    front, beaten = pareto_front(rows), dominated_variants(rows)
    units = {"%": " (%)"}
    heads = ['<th scope="col"><button type="button">net</button></th>']
    for column, _ in columns:
        title = escape(column.title + units.get(column.unit, ""))
        about = escape(told[column.title], quote=True)
        heads.append(f'<th scope="col"><button type="button" title="{about}">{title}</button></th>')
    lines = []
    for row in rows:
        mark = "front" if row.title in front else "beaten" if row.title in beaten else ""
        name = f'<th scope="row" class="{mark}">{breakable(row.title)}</th>'
        cells = [_cell(row, column, path) for column, path in columns]
        lines.append(f"<tr>{name}{''.join(cells)}</tr>")
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table of all nets">'
        f'<table id="results"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n{_legend(told)}"
    )


def breakable(name: str) -> str:
    """A name that may go on in a second line before each underscore: `resnet18` `_lpf4`."""
    return escape(name).replace("_", "<wbr>_")


def _cell(row: Row, column: Column, path: tuple[str, ...]) -> str:
    values = row.values(path)
    if not values:
        return "<td></td>"
    text = row.text(path, column.unit, column.interval)
    return f'<td data-value="{np.mean(values):.9g}">{text}</td>'


def _legend(told: dict[str, str]) -> str:
    terms = [f"<dt>{escape(title)}</dt><dd>{escape(what)}</dd>" for title, what in told.items()]
    return (
        f'<p><span class="front">Bold</span>: no net is better in {escape(judged_by())} without '
        'being worse in the other. <span class="beaten">Italic</span>: another version of the same '
        "net is better. ±: standard deviation over training seeds; in brackets: of one result the "
        "95 % confidence interval, of times the quartiles of the passes.</p>\n"
        f"<dl>{''.join(terms)}</dl>"
    )


def published_section(rows: Sequence[Row]) -> str:
    """Measured beside published; empty without released weights."""
    cells = compared_cells(rows)
    if not cells:
        return ""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in HEAD)
    lines = [
        f'<tr><th scope="row">{breakable(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for name, *rest in cells
    ]
    return (
        '<section id="published"><h2>Beside what was published</h2>'
        f"<p>{escape(EXPLAINED.replace('`', ''))}</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="measured and published">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        "</section>"
    )


def weights_list(rows: Sequence[Row]) -> str:
    """Where the weights of each net come from."""
    told = [(row.title, found) for row in rows if (found := weights_of(row))]
    items = [f"<dt>{breakable(title)}</dt><dd>{escape(found)}</dd>" for title, found in told]
    if not items:
        return ""
    return f'<section id="weights"><h2>Weights</h2><dl>{"".join(items)}</dl></section>'


def left_out_list(left_out: Sequence[str]) -> str:
    """What was found and is not in the report."""
    if not left_out:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in left_out)
    return f'<section id="left-out"><h2>Left out</h2><ul>{items}</ul></section>'

"""A report as one page: everything in one HTML file that opens from disk, without a network.

The page is `page.html` with its parts put in: `page.css`, `page.js`, plotly.js (the extra `html`),
tables and pictures as HTML, and what is drawn in the browser as JSON. Its content policy forbids
the browser to load anything from elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from aa_flax.errors import InputError
from aa_flax.evaluation.page.sections import Section, sections
from aa_flax.evaluation.page.tables import (
    left_out_list,
    published_section,
    results_table,
    weights_list,
)
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import circumstances, conditions
from aa_flax.files import replacing


def write_page(
    path: Path,
    rows: Sequence[Row],
    left_out: Sequence[str] = (),
    *,
    figures: Mapping[str, Sequence[Path]] | None = None,
) -> Path:
    """Writes a report as one HTML file.

    Args:
        left_out: what was found and is not in the rows, a line each.
        figures: pictures by the measure that drew them, for measures that the page does not draw
            itself.

    Returns:
        The path.

    Raises:
        InputError: plotly is not installed. OSError: the file cannot be written.
    """
    parts = _parts(rows, left_out, sections(rows, figures or {}))
    parts |= {"plotly": plotly_js(), "style": _file("page.css"), "script": _file("page.js")}
    with replacing(path) as temporary:
        temporary.write_text(Template(_file("page.html")).substitute(parts), encoding="utf-8")
    return path


def plotly_js() -> str:
    """The library that draws in the browser.

    Raises:
        InputError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("a page needs plotly: pip install 'aa_flax[html]'") from error
    return get_plotlyjs()


def _parts(
    rows: Sequence[Row], left_out: Sequence[str], shown: Sequence[Section]
) -> dict[str, str]:
    common, measured = conditions(rows), circumstances(rows)
    told = [f"Of all nets: {common}."] if common else []
    told += [f"Measured {measured}."] if measured else []
    return {
        "conditions": escape(" ".join(told)),
        "table": results_table(rows),
        "sections": "\n".join(section.html for section in shown),
        "published": published_section(rows),
        "weights": weights_list(rows),
        "left_out": left_out_list(left_out),
        "data": _as_script({name: chart for s in shown for name, chart in s.data.items()}),
    }


def _as_script(data: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (files("aa_flax.evaluation.page") / name).read_text(encoding="utf-8")

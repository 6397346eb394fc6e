"""Results as text: numbers with the digits that are known, names as Markdown and as file names."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

import numpy as np

# Characters with a meaning inside a line of Markdown: `_` only at the ends of a word, `:` only in
# front of an address.
_MARKDOWN = re.compile(r"[\\`*\[\]~$#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@")


def with_spread(values: Sequence[float], unit: str = "%") -> str:
    """Returns a number, or the mean of several ± their standard deviation; "" for no values.

    The deviation has two significant digits, and the mean as many decimals. A single number has
    two decimals, as published percentages do, or four significant digits in any other unit.
    """
    if not values:
        return ""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return mean_with_spread(float(np.mean(values)), deviation, unit)


def mean_with_spread(mean: float, deviation: float | None, unit: str = "%") -> str:
    """Returns a mean ± its standard deviation, formatted as in `with_spread`."""
    alone = 2 if unit == "%" else _decimals(mean, 4)
    decimals = _decimals(deviation, 2) if deviation else alone
    spread = "" if deviation is None else f" ± {deviation:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"


def with_interval(value: float, interval: Sequence[float], unit: str = "%") -> str:
    """Returns a number with its interval: `88.2 % (86.4 to 89.7)`."""
    low, high = interval
    decimals = _decimals((high - low) / 2, 2)  # as of a deviation
    mark = f" {unit}" if unit else ""
    return f"{value:.{decimals}f}{mark} ({low:.{decimals}f} to {high:.{decimals}f})"


def _decimals(value: float, significant: int) -> int:
    """Returns the decimals that show so many significant digits of a value: four at most."""
    if not value:
        return 0
    return min(max(significant - 1 - math.floor(math.log10(abs(value))), 0), 4)


def p_value(p: float) -> str:
    """Returns a probability with two decimals; `< 0.01` for smaller ones, never 0.00."""
    return "< 0.01" if p < 0.01 else f"{p:.2f}"


def markdown(text: str) -> str:
    """Escapes a text so that Markdown shows it unchanged in one line, also in a table.

    Examples:
        >>> markdown("a|b <i> [c](d) resnet18_lpf4")
        'a&#124;b &lt;i&gt; \\\\[c\\\\](d) resnet18_lpf4'
    """
    line = escape(" ".join(text.split()), quote=False).replace("|", "\0")
    return _MARKDOWN.sub(r"\\\g<0>", line).replace("\0", "&#124;")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, "|---" * len(heads) + "|", *lines])


def file_name(text: str) -> str:
    """Escapes a text for use in a file name; different texts give different names.

    Examples:
        >>> file_name("a/b (crop 64)")
        'a%2Fb (crop 64)'
    """
    return quote(text, safe=" (),=+")

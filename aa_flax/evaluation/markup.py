"""Names from results, as text where something else has a meaning: in Markdown, plotly and files."""

import re
from html import escape
from textwrap import wrap
from urllib.parse import quote

# What Markdown reads within a line; `_` only at the ends of a word, and `:` before an address.
_MARKDOWN = re.compile(r"[\\`*\[\]~$#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@")


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line, also in a table.

    >>> markdown("a|b <i> [c](d) resnet18_lpf4")
    'a&#124;b &lt;i&gt; \\\\[c\\\\](d) resnet18_lpf4'
    """
    line = escape(" ".join(text.split()), quote=False).replace("|", "\0")
    return _MARKDOWN.sub(r"\\\g<0>", line).replace("\0", "&#124;")


def plotly(text: str) -> str:
    """A text that plotly shows as it is, in lines that fit a phone.

    Of its own it takes `<a href=...>` for a link.

    >>> plotly("<b>net</b>")
    '&lt;b&gt;net&lt;/b&gt;'
    """
    lines = (escape(line, quote=False) for line in wrap(text, 40))
    return "<br>".join(lines).replace("{", "&#123;")  # `%{...}` is of its templates


def file_name(text: str) -> str:
    """A text as a part of a file's name, another one for each text.

    >>> file_name("a/b (crop 64)")
    'a%2Fb (crop 64)'
    """
    return quote(text, safe=" (),=+")

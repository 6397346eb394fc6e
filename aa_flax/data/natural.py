"""The order in which people number things: 1, 2, ..., 10."""

import re


def natural_key(text: str) -> tuple[list[str | int], str]:
    """A key for `sorted`: runs of digits count as numbers, so that `frame2` is before `frame10`.

    Names that differ in leading zeros alone are in the order of their characters.
    """
    parts = re.split("([0-9]+)", text)  # text and digits alternate, beginning with text
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text

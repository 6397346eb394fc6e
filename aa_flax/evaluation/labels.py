"""Where the names of points stand in a figure, so that they cover neither each other nor points."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Place = tuple[float, float]

# In points of 1/72 inch, around the mark, and how the text lies to that place.
_PLACES = (
    (5, 5, "left", "bottom"),
    (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"),
    (-5, -5, "right", "top"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
)


def place_labels(
    figure: Any,
    panel: Any,
    texts: Mapping[Place, tuple[str, str]],
    lines: Sequence[tuple[Place, Place]] = (),
) -> None:
    """Writes a text and its colour beside each point, where least is covered.

    Args:
        figure, panel: matplotlib's figure and axes, whose limits are set.
        lines: from a point to another, that texts should not cover either.
    """
    figure.canvas.draw()
    inside = panel.get_window_extent()
    marks = np.array([panel.transData.transform(point) for point in texts])
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for line in lines:
        start, end = panel.transData.transform(line)
        steps = np.linspace(0, 1, 40)[:, None]
        taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in start + steps * (end - start)]
    for point, (text, colour) in texts.items():
        tried = [_write(panel, point, text, colour, place) for place in _PLACES]
        boxes = [one.get_window_extent().extents for one in tried]
        costs = [_covered(box, taken) + _outside(box, inside.extents) for box in boxes]
        best = int(np.argmin(costs))
        for one in tried[:best] + tried[best + 1 :]:
            one.remove()
        taken.append(tuple(boxes[best]))


def _write(panel: Any, point: tuple[float, float], text: str, colour: str, place: tuple) -> Any:
    x, y, horizontal, vertical = place
    return panel.annotate(
        text,
        point,
        xytext=(x, y),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        color=colour,
        fontsize=8,
        parse_math=False,  # of names with a $
    )


def _covered(box: Any, taken: list[tuple]) -> float:
    """The area that a box shares with others."""
    left, bottom, right, top = np.array(taken).T
    width = np.minimum(box[2], right) - np.maximum(box[0], left)
    height = np.minimum(box[3], top) - np.maximum(box[1], bottom)
    return float((width.clip(0) * height.clip(0)).sum())


def _outside(box: Any, frame: Any) -> float:
    """The area of a box that is not in the frame."""
    width = min(box[2], frame[2]) - max(box[0], frame[0])
    height = min(box[3], frame[3]) - max(box[1], frame[1])
    return (box[2] - box[0]) * (box[3] - box[1]) - max(width, 0) * max(height, 0)

"""Probabilities along diagonal shifts, with the images that were shifted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aa_flax.evaluation.markup import plotly
from aa_flax.evaluation.page.charts import layout
from aa_flax.evaluation.page.maps import data_uri
from aa_flax.evaluation.points import PALETTE
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.rows import by_conditions


def walks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each net and its antialiased ones, measured alike: curves and images, for `page.js`.

    Each has `title`; `images`, each with `title`, the `source` of its picture (None: it was not
    stored) and a list of `nets`: `name`, `label` for plotly, `colour`, and at each offset the
    probability of the true class and whether it is the likeliest; `crop` and `size`, pixels of
    what the net sees and of what it is cut from; and `layout` of the chart.
    """
    return [_walk(title, nets) for title, nets in by_conditions(rows).items()]


def _walk(title: str, nets: Sequence[Row]) -> dict[str, Any]:
    arrays = {row.title: _arrays(row) for row in nets}
    count = min(len(found["diag_probs"]) for found in arrays.values())
    first = nets[0].first("diagonal") or {}
    chosen = [i for i in first.get("images", [0]) if i < count] or [0]
    offsets = min(found["diag_probs"].shape[1] for found in arrays.values())
    size = next((f["image_pixels"].shape[1] for f in arrays.values() if "image_pixels" in f), 0)
    shown = layout("shift down and right (pixels)", "probability of the true class", height=340)
    shown["yaxis"] |= {"range": [-0.03, 1.03]}
    shown["xaxis"] |= {"range": [-0.4, offsets - 0.6]}
    return {
        "title": title,
        "offsets": offsets,
        "size": size,
        "crop": size - offsets + 1,
        "images": [_image(i, arrays, offsets) for i in chosen],
        "layout": shown,
    }


def _arrays(row: Row) -> dict[str, np.ndarray]:
    with np.load(row.file("diagonal")) as file:
        return {name: file[name] for name in file.files}


def _image(index: int, arrays: dict[str, dict[str, np.ndarray]], offsets: int) -> dict[str, Any]:
    stored = next((f for f in arrays.values() if index in f.get("image_index", ())), None)
    title, source = f"image {index}", None
    if stored is not None:
        place = stored["image_index"].tolist().index(index)
        title = f"image {index}: {stored['image_class'][place]}"
        source = data_uri(stored["image_pixels"][place])
    nets = [
        {
            "name": name,
            "label": plotly(name),
            "colour": PALETTE[i % len(PALETTE)],
            "probability": found["diag_probs"][index, :offsets].astype(float).round(5).tolist(),
            "right": _right(found, index, offsets),
        }
        for i, (name, found) in enumerate(arrays.items())
    ]
    return {"title": title, "source": source, "nets": nets}


def _right(found: dict[str, np.ndarray], index: int, offsets: int) -> list[bool] | None:
    """Whether the true class is the likeliest; None: of files that do not say."""
    if "diag_corrs" not in found:
        return None
    return found["diag_corrs"][index, :offsets].astype(bool).tolist()

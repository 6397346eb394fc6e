"""Accuracy of a net on images as they are: top-1, top-5 and loss, in all and for each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from aa_flax.data.sources import Source
from aa_flax.evaluation.files import save_arrays
from aa_flax.evaluation.observe import Observations


class Accuracy(TypedDict):
    """`top1` and `top5` in percent (top-5 of fewer than 5 classes counts them all); mean `loss`."""

    num_images: int
    top1: float
    top5: float
    loss: float


def accuracy(seen: Observations) -> Accuracy:
    """The accuracy over all images and views."""
    return {
        "num_images": len(seen.index),
        "top1": 100 * float(seen.correct.mean()),
        "top5": 100 * float((seen.rank < 5).mean()),
        "loss": -float(seen.log_probability.mean(dtype=np.float64)),
    }


def accuracy_per_class(seen: Observations, class_names: Sequence[str]) -> dict[str, Any]:
    """For each class that has images: their number, top-1 and top-5 in percent."""
    result = {}
    for label in np.unique(seen.label):
        rank = seen.rank[seen.label == label]
        result[class_names[label]] = {
            "num_images": len(rank),
            "top1": 100 * float((rank == 0).mean()),
            "top5": 100 * float((rank < 5).mean()),
        }
    return result


def save_predictions(path: Path, seen: Observations, source: Source) -> None:
    """Writes one row an image to an .npz file.

    Its arrays: `index` place in the data; `label`; `top5`, the likeliest classes, likeliest first;
    `probability` of the true class; `name`, the image's file or place in the source.
    """
    save_arrays(
        path,
        {
            "index": seen.index,
            "label": seen.label,
            "top5": seen.top[:, 0],
            "probability": seen.probability[:, 0],
            "name": np.array([source.name(int(i)) for i in seen.index]),
        },
    )

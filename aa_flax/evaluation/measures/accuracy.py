"""Accuracy on centre crops: overall, per class, and the prediction for each image."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.data.sources import Source
from aa_flax.evaluation.intervals import wilson_interval
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.results import save_arrays
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import Center
from aa_flax.files import check_writable
from aa_flax.runtime import is_main_process


def accuracy(seen: Observations) -> Result:
    """Computes top-1 and top-5 in percent, and the mean loss, over all images and views."""
    loss = -float(seen.log_probability.mean(dtype=np.float64))
    return {**_of_ranks(seen.rank), "loss": loss}


def _of_ranks(rank: np.ndarray) -> Result:
    top1, top5 = (100 * float((rank < k).mean()) for k in (1, 5))
    return {"num_images": len(rank), "top1": top1, "top5": top5}


def accuracy_per_class(seen: Observations, class_names: Sequence[str]) -> Result:
    """Computes number of images, top-1 and top-5 in percent of each class that has images."""
    labels = map(int, np.unique(seen.label))
    return {class_names[i]: _of_ranks(seen.rank[seen.label == i]) for i in labels}


def save_predictions(path: Path, seen: Observations, source: Source) -> None:
    """Writes one row per image to an .npz file."""
    arrays = {
        "index": seen.index,  # in the data
        "label": seen.label,
        "top5": seen.top[:, 0],  # likeliest first
        "probability": seen.probability[:, 0],  # of the true class
        "name": np.array([source.name(int(i)) for i in seen.index]),
    }
    save_arrays(path, arrays)


class CenterMeasure(Measure):
    """A measure of centre crops; it has no settings, since the crop belongs to the experiment."""

    def settings(self, subject: Subject) -> Result:
        return {}

    def views(self, subject: Subject) -> Center:
        return Center(subject.settings.crop_size)


class Accuracy(CenterMeasure):
    """Top-1, top-5 and loss on centre crops, at the top level of the results."""

    options = (Option("accuracy", "top-1, top-5 and loss on centre crops"),)
    columns = (
        Column(
            "accuracy",
            ("top1",),
            judged=True,
            interval="top1_interval",
            note="fraction of centre crops whose likeliest class is the true one",
        ),
    )
    always = True

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        found = accuracy(seen)
        return {**found, "top1_interval": wilson_interval(found["top1"] / 100, found["num_images"])}

    def line(self, result: Result) -> str:
        top1 = with_interval(result["top1"], result["top1_interval"])
        return (
            f"{'accuracy':12} top-1 {top1}   top-5 {result['top5']:6.2f} %   "
            f"loss {result['loss']:.4f}"
        )

    def path(self, column: Column) -> tuple[str, ...]:
        return column.key

    def found_in(self, results: Mapping[str, Any]) -> Result | None:
        return dict(results) if "top1" in results else None

    def stored(self, result: Result) -> Result:
        return result


class PerClass(CenterMeasure):
    """Number of images, top-1 and top-5 of each class."""

    options = (Option("per_class", "accuracy of each class"),)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        return accuracy_per_class(seen, subject.source.class_names)

    def line(self, result: Result) -> str:
        top1 = {name: found["top1"] for name, found in result.items() if isinstance(found, dict)}
        worst, best = min(top1, key=top1.__getitem__), max(top1, key=top1.__getitem__)
        return (
            f"{'each class':12} top-1 from {top1[worst]:.2f} % ({worst}) "
            f"to {top1[best]:.2f} % ({best})"
        )


class Predictions(CenterMeasure):
    """One row per image in a file: label, top-5, probability of the true class, name."""

    options = (
        Option("predictions", "save all predictions to this .npz file", None, Path, written=True),
    )

    def settings(self, subject: Subject) -> Result:
        return {"file": os.path.abspath(_path(subject))}

    def check(self, subject: Subject) -> None:
        if is_main_process():
            check_writable(_path(subject), room=True)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        if is_main_process():
            save_predictions(_path(subject), seen, subject.source)
        return {"num_images": len(seen.index)}

    def line(self, result: Result) -> str:
        return f"{'predictions':12} {result['file']}"


def _path(subject: Subject) -> Path:
    """Returns the path with `.npz`, which numpy would append itself."""
    path: Path = subject.options["predictions"]
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")

"""Consistency of the predictions for pairs of views, and accuracy at the worst of many shifts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from aa_flax.evaluation import plots
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.row import Row, points
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import (
    Crops,
    JitteredPairs,
    RolledPairs,
    ShiftedPairs,
    SubpixelPairs,
    Views,
    grid,
)

POINTS = 5  # offsets per axis of the worst case


def agreement(seen: Observations) -> Float[np.ndarray, " n"]:
    """Returns the fraction of each image's pairs (views 0 and 1, 2 and 3, ...) that agree."""
    return (seen.predicted[:, ::2] == seen.predicted[:, 1::2]).mean(1)


def consistency(seen: Observations) -> Result:
    """Computes how often the two views of a pair get the same class, in percent.

    The images are the sample of the confidence interval; see `clustered_interval`. Outputs that are
    not finite are an InputError: such a model would count as perfectly consistent.
    """
    seen.check_finite()
    agreed, probability = agreement(seen), seen.probability
    change = np.abs(probability[:, ::2] - probability[:, 1::2])
    both = seen.correct[:, ::2] & seen.correct[:, 1::2]
    return {
        "num_images": len(agreed),
        "consistency": 100 * float(agreed.mean()),  # Zhang 2019, Sec. 4.1
        "consistency_interval": clustered_interval(agreed, probability.shape[1] // 2),
        "consistent_and_correct": 100 * float(both.mean()),  # the same class, the true one
        "probability_change": 100 * float(change.mean(dtype=np.float64)),  # of the true class
        "top1_shifted": 100 * float(seen.correct.mean()),
    }


class PairMeasure(Measure):
    """Consistency of random pairs of views of an image."""

    title: ClassVar[str]  # how the images were changed
    kind: ClassVar[Callable[..., Views]]
    note: ClassVar[str] = ""  # of the report's column

    def __init_subclass__(cls):
        if not cls.columns:
            cls.columns = (
                Column(cls.title, ("consistency",), note=cls.note, interval="consistency_interval"),
            )

    def views(self, subject: Subject) -> Views | None:
        return subject.settings.to(self.kind)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        return consistency(seen)

    def line(self, result: Result) -> str:
        how = [f"{result['passes']} passes"] if "passes" in result else []
        how += [f"seed {result['seed']}"] if "seed" in result else []
        return (
            f"{self.title:12} top-1 {result['top1_shifted']:6.2f} %   consistency "
            f"{with_interval(result['consistency'], result['consistency_interval'])}   "
            f"consistent and correct {result['consistent_and_correct']:6.2f} %   "
            f"change of P {result['probability_change']:.2f} %   ({', '.join(how)})"
        )


class Shift(PairMeasure):
    """Agreement of two crops at random offsets (Zhang 2019, Sec. 4.1)."""

    title, kind = "shifted", ShiftedPairs
    options = (
        Option("shift", "shift consistency: pairs of crops at random offsets"),
        Option("per_batch", "--shift with one pair of offsets a batch"),
    )
    columns = (
        Column(
            "consistency",
            ("consistency",),
            judged=True,
            interval="consistency_interval",
            note="fraction of pairs of crops at two random offsets that get the same class",
        ),
        Column(
            "consistent and correct",
            ("consistent_and_correct",),
            note="fraction of those pairs that get the true class both times",
        ),
        Column("shifted", ("top1_shifted",), note="accuracy on the crops at random offsets"),
    )

    def views(self, subject: Subject) -> ShiftedPairs:
        settings = subject.settings
        per_draw = (settings.batch_size or 256) if subject.options["per_batch"] else 1
        return settings.to(ShiftedPairs, images_per_draw=per_draw)

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        models = points(rows, ("top1",), ("shift", "consistency"))
        if not models:
            return []
        path = folder / "accuracy_consistency.png"
        plots.plot_models(path, models, "accuracy (%)", "consistency (%)")
        return [path]


class Circular(PairMeasure):
    """Content that leaves the crop on one side re-enters on the other, so none is new."""

    title, kind = "rolled", RolledPairs
    options = (Option("circular", "consistency of rolled images"),)
    columns = (
        Column(
            "rolled",
            ("consistency",),
            interval="consistency_interval",
            note="consistency of crops rolled by two random shifts: no new content enters",
        ),
        Column(
            "rolled and correct",
            ("consistent_and_correct",),
            note="fraction of those pairs that get the true class both times",
        ),
    )


class Subpixel(PairMeasure):
    """Images moved by fractions of a pixel, band-limited."""

    title, kind = "sub-pixel", SubpixelPairs
    note = "consistency of images moved by two random fractions of a pixel"
    options = (Option("subpixel", "consistency under shifts of less than a pixel"),)


class Jitter(PairMeasure):
    """Squares of 0.9 to 1.1 crop sizes from anywhere in the image, resized to the crop."""

    title, kind = "jittered", JitteredPairs
    note = "consistency of two random squares, 0.9 to 1.1 crops wide, resized to the crop"
    options = (Option("jitter", "consistency of random crops, resized"),)


class WorstCase(Measure):
    """Images that are classified correctly at every offset of a grid."""

    options = (Option("worst_case", "images that are right at each of a grid of offsets"),)
    columns = (
        Column(
            "worst case",
            ("top1_worst",),
            note=f"fraction of images that are right at all of {POINTS} by {POINTS} offsets",
        ),
    )

    def views(self, subject: Subject) -> Crops:
        return grid(subject.settings.crop_size, subject.settings.shift_range, POINTS)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        worst, mean = seen.correct.all(1).mean(), seen.correct.mean()
        return {
            "num_images": len(seen.index),
            "top1_worst": 100 * float(worst),
            "top1_mean": 100 * float(mean),
        }

    def line(self, result: Result) -> str:
        return (
            f"{'worst case':12} top-1 {result['top1_worst']:6.2f} % at all of "
            f"{len(result['offsets'])} offsets, {result['top1_mean']:.2f} % on average"
        )

"""The time of a forward pass."""

from collections.abc import Sequence
from pathlib import Path

import jax

from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.points import points, time_label
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.timing import time_forward

BATCH_SIZE = 48  # as the original's run times


class Time(Measure):
    """Median of twenty compiled forward passes of 48 images on one device."""

    options = (Option("time", "the time of a forward pass of 48 images"),)
    columns = (
        Column(
            "ms",
            ("milliseconds",),
            unit="ms",
            note=f"milliseconds of a forward pass of {BATCH_SIZE} images",
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return {"batch_size": BATCH_SIZE, "device": jax.devices()[0].device_kind}

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        crop = subject.settings.crop_size
        return {**time_forward(subject.predictor, crop, batch_size=BATCH_SIZE)}

    def line(self, result: Result) -> str:
        return (
            f"{'forward':12} {result['milliseconds']:.1f} ms for {result['batch_size']} images "
            f"({result['device']})"
        )

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        nets = points(rows, ("time", "milliseconds"), ("top1",))
        if not nets:
            return []
        path = folder / "time_accuracy.png"
        plots.plot_nets(path, nets, time_label(rows), "accuracy (%)")
        return [path]

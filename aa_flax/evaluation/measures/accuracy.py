"""Accuracy on images as they are."""

from collections.abc import Mapping
from typing import Any

from aa_flax.evaluation.accuracy import accuracy
from aa_flax.evaluation.intervals import wilson_interval
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import Center


class Accuracy(Measure):
    """Top-1, top-5 and loss on centre crops; they stand at the top of the results."""

    options = (Option("accuracy", "top-1, top-5 and loss on centre crops"),)
    columns = (
        Column(
            "accuracy",
            ("top1",),
            judged=True,
            interval="top1_interval",
            note="share of centre crops whose likeliest class is the true one",
        ),
    )
    always = True

    def settings(self, subject: Subject) -> Result:
        return {}  # the crop is part of the experiment

    def views(self, subject: Subject) -> Center:
        return Center(subject.settings.crop_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        found = accuracy(seen)
        interval = wilson_interval(found["top1"] / 100, found["num_images"])
        return {**found, "top1_interval": interval}

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

"""Accuracy under the worst of many shifts."""

from aa_flax.evaluation.consistency import worst_case
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Crops, grid

POINTS = 5  # of the grid, on each axis


class WorstCase(Measure):
    """Images that are right at every offset of a grid."""

    options = (Option("worst_case", "images that are right at each of a grid of offsets"),)
    columns = (
        Column(
            "worst case",
            ("top1_worst",),
            note=f"share of images that are right at all of {POINTS} by {POINTS} offsets",
        ),
    )

    def views(self, subject: Subject) -> Crops:
        return grid(subject.settings.crop_size, subject.settings.shift_range, POINTS)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        return {**worst_case(seen)}

    def line(self, result: Result) -> str:
        return (
            f"{'worst case':12} top-1 {result['top1_worst']:6.2f} % at all of "
            f"{len(result['offsets'])} offsets, {result['top1_mean']:.2f} % on average"
        )

"""Consistency of shifted crops: the paper's measure."""

from collections.abc import Sequence
from pathlib import Path

from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Column, Option, Subject
from aa_flax.evaluation.measures.pairs import PairMeasure, random_pairs
from aa_flax.evaluation.row import Row, points
from aa_flax.evaluation.views import ShiftedPairs


class Shift(PairMeasure):
    """Agreement of two crops at random offsets (Zhang 2019, Sec. 4.1)."""

    title = "shifted"
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
            note="share of pairs of crops at two random offsets that get the same class",
        ),
        Column(
            "consistent and correct",
            ("consistent_and_correct",),
            note="share of those pairs that get the true class both times",
        ),
        Column("shifted", ("top1_shifted",), note="accuracy on the crops at random offsets"),
    )

    def views(self, subject: Subject) -> ShiftedPairs:
        settings = subject.settings
        shared = (settings.batch_size or 256) if subject.options["per_batch"] else 1
        pairs = random_pairs(settings)
        return ShiftedPairs(
            settings.crop_size, settings.shift_range, images_per_draw=shared, **pairs
        )

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        nets = points(rows, ("top1",), ("shift", "consistency"))
        if not nets:
            return []
        path = folder / "accuracy_consistency.png"
        plots.plot_models(path, nets, "accuracy (%)", "consistency (%)")
        return [path]

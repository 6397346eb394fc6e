"""Probabilities along diagonal shifts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.stored import StoredMeasure
from aa_flax.evaluation.views import Crops, diagonal


def diagonal_arrays(seen: Observations) -> dict[str, np.ndarray]:
    """Returns the four arrays of the PyTorch original, each images by offsets."""
    return {
        "diag_probs": seen.probability,  # of the true class
        "diag_probs2": np.exp(seen.log_other),  # of the likeliest other class
        "diag_corrs": seen.correct,
        "diag_preds": seen.predicted,
    }


class Diagonal(StoredMeasure):
    """The arrays of `diagonal_arrays`, with some of the images, and a plot of them."""

    options = (
        Option("diagonal", "probabilities along diagonal shifts: .npz and figure"),
        Option("image_indices", "which images the figure of --diagonal shows", (0,), tuple),
    )

    def settings(self, subject: Subject) -> Result:
        return {**super().settings(subject), "images": list(subject.options["image_indices"])}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        count = len(subject.source)
        if outside := [i for i in subject.options["image_indices"] if i >= count]:
            raise InputError(f"no image {outside[0]}: the data has images 0..{count - 1}")

    def views(self, subject: Subject) -> Crops:
        return diagonal(subject.settings.crop_size, subject.settings.image_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        source, chosen = subject.source, subject.options["image_indices"]
        labels = [int(source[i]["label"]) for i in chosen]
        shown = {  # in the figure, before cropping
            "image_index": np.array(chosen),
            "image_pixels": np.stack([subject.settings.image(source, i) for i in chosen]),
            "image_class": np.array([str(source.class_names[label]) for label in labels]),
        }
        arrays, curves = diagonal_arrays(seen) | shown, {subject.name: seen.probability}
        return self.store(subject, arrays, lambda path: plots.plot_diagonal(path, curves, chosen))

    def draw(self, path: Path, rows: Sequence[Row]) -> None:
        curves = {row.title: row.arrays("diagonal")["diag_probs"] for row in rows}
        first, count = rows[0].first("diagonal") or {}, min(map(len, curves.values()))
        images = [i for i in first.get("images", [0]) if i < count]
        plots.plot_diagonal(path, curves, images or [0], plots.ALL_FORMATS)

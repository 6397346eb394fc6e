"""Probabilities along diagonal shifts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.results import next_to, save_arrays
from aa_flax.evaluation.row import Row, by_base
from aa_flax.evaluation.text import file_name
from aa_flax.evaluation.views import Crops, diagonal
from aa_flax.runtime import is_main_process


def diagonal_arrays(seen: Observations) -> dict[str, np.ndarray]:
    """Returns the four arrays of the PyTorch original, each images by offsets.

    `diag_probs`: probability of the true class; `diag_probs2`: of the likeliest other class;
    `diag_corrs`: whether the true class is the likeliest; `diag_preds`: the likeliest class.
    """
    return {
        "diag_probs": seen.probability,
        "diag_probs2": np.exp(seen.log_other),
        "diag_corrs": seen.correct,
        "diag_preds": seen.predicted,
    }


class Diagonal(Measure):
    """The arrays of `diagonal_arrays`, with some of the images, and a plot of them."""

    options = (
        Option("diagonal", "probabilities along diagonal shifts: .npz and figure"),
        Option("image_indices", "which images the figure of --diagonal shows", (0,), tuple),
    )

    def settings(self, subject: Subject) -> Result:
        return {**super().settings(subject), "images": list(subject.options["image_indices"])}

    def check(self, subject: Subject) -> None:
        if subject.output is None:
            raise InputError("the measure diagonal writes files: give output, a results file")
        plots.pyplot()
        count = len(subject.source)
        if outside := [i for i in subject.options["image_indices"] if i >= count]:
            raise InputError(f"no image {outside[0]}: the data has images 0..{count - 1}")

    def views(self, subject: Subject) -> Crops:
        return diagonal(subject.settings.crop_size, subject.settings.image_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        assert subject.output is not None
        seen.check_finite()
        arrays, figure = (next_to(subject.output, f"diagonal.{end}") for end in ("npz", "png"))
        if is_main_process():
            save_arrays(arrays, diagonal_arrays(seen) | _chosen_images(subject))
            chosen = subject.options["image_indices"]
            plots.plot_diagonal(figure, {subject.name: seen.probability}, chosen)
        return {"file": arrays.name, "figure": figure.name}

    def line(self, result: Result) -> str:
        return f"{'diagonal':12} {result['file']}, {result['figure']}"

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        drawn = []
        for base, models in by_base([row for row in rows if row.first("diagonal")]).items():
            curves = {}
            for row in models:
                with np.load(row.file("diagonal")) as arrays:
                    curves[row.title] = arrays["diag_probs"]
            first = models[0].first("diagonal") or {}
            count = min(map(len, curves.values()))
            images = [i for i in first.get("images", [0]) if i < count]
            drawn.append(folder / f"diagonal_{file_name(base)}.png")
            plots.plot_diagonal(drawn[-1], curves, images or [0], plots.ALL_FORMATS)
        return drawn


def _chosen_images(subject: Subject) -> dict[str, np.ndarray]:
    """Returns the images that the plot shows, `(k, S, S, 3)` before cropping, and their classes."""
    source, chosen = subject.source, subject.options["image_indices"]
    labels = [int(source[i]["label"]) for i in chosen]
    return {
        "image_index": np.array(chosen),
        "image_pixels": np.stack([subject.settings.image(source, i) for i in chosen]),
        "image_class": np.array([str(source.class_names[label]) for label in labels]),
    }

"""Every image's prediction, in a file."""

import os
from pathlib import Path

from aa_flax.evaluation.accuracy import save_predictions
from aa_flax.evaluation.files import check_writable
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Center
from aa_flax.runtime import is_main_process


class Predictions(Measure):
    """One row an image: label, top-5, probability of the true class, name."""

    options = (
        Option(
            "predictions",
            "save every image's predictions to this .npz file",
            None,
            Path,
            written=True,
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return {"file": os.path.abspath(_path(subject))}

    def check(self, subject: Subject) -> None:
        if is_main_process():
            check_writable(_path(subject))

    def views(self, subject: Subject) -> Center:
        return Center(subject.settings.crop_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        if is_main_process():
            save_predictions(_path(subject), seen, subject.source)
        return {"num_images": len(seen.index)}

    def line(self, result: Result) -> str:
        return f"{'predictions':12} {result['file']}"


def _path(subject: Subject) -> Path:
    """numpy would append the suffix itself."""
    path: Path = subject.options["predictions"]
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")

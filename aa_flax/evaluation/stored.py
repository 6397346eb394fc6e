"""The base of measures that write arrays, and a figure of them, next to the results."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Measure, Result, Subject
from aa_flax.evaluation.results import next_to, save_arrays
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.text import file_name
from aa_flax.runtime import is_main_process


class StoredMeasure(Measure):
    """A measure of arrays: an .npz file and a figure; in the report, figures of several models."""

    def check(self, subject: Subject) -> None:
        if subject.output is None:
            raise InputError(f"the measure {self.name} writes files: give output, a results file")
        plots.pyplot()

    def store(
        self, subject: Subject, arrays: dict[str, np.ndarray], draw: Callable[[Path], None]
    ) -> Result:
        """Writes the arrays and a figure next to the results, if these are written."""
        if subject.output is None:
            return {}
        file, figure = (next_to(subject.output, f"{self.name}.{end}") for end in ("npz", "png"))
        if is_main_process():
            save_arrays(file, arrays)
            draw(figure)
        return {"file": file.name, "figure": figure.name}

    def line(self, result: Result) -> str:
        return f"{self.name:12} {result['file']}, {result['figure']}"

    def groups(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """Returns the rows with stored arrays by the name of their figure: a base model's."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.first(self.name):
                groups.setdefault(f"{self.name}_{file_name(row.base)}", []).append(row)
        return groups

    def draw(self, path: Path, rows: Sequence[Row]) -> None:
        """Draws what the models of one group have stored, in all formats."""
        raise NotImplementedError

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        drawn = {folder / f"{name}.png": members for name, members in self.groups(rows).items()}
        for path, members in drawn.items():
            self.draw(path, members)
        return [*drawn]

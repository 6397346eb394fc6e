"""The base of measures at every shift up to a radius: curves by the radius, tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from aa_flax.errors import InputError, integer
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Measure, Option, Subject
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.text import markdown, markdown_table
from aa_flax.evaluation.views import Around, RolledAround

Curve = dict[str, float]  # by the radius in pixels, as text: a key of JSON

STEPS = Option(  # one option, which the measures have in common
    "worst_steps", "--worst_within, --worst_circular: shifts per pixel; 2: half pixels, too", 1, int
)


def within(hits: Bool[np.ndarray, "n V"], radius: Int[np.ndarray, " V"]) -> Bool[np.ndarray, "n R"]:
    """Returns which images have hits in all views up to each radius, 0 to the largest.

    Args:
        hits: of each image and view. radius: of each view's shift, max(|down|, |right|).

    Examples:
        >>> within(np.array([[True, True, False, True]]), np.array([0, 1, 2, 2]))
        array([[ True,  True, False]])
    """
    return np.stack([hits[:, radius <= r].all(1) for r in range(radius.max() + 1)], 1)


def curve(hits: Bool[np.ndarray, "n R"], steps: int = 1) -> Curve:
    """Returns the percentage of images with a hit, by the radius in pixels.

    Examples:
        >>> curve(np.array([[True, False], [True, True]]))
        {'0': 100.0, '1': 50.0}
    """
    return {f"{r / steps:g}": 100 * float(mean) for r, mean in enumerate(hits.mean(0))}


def radii(views: Around) -> Int[np.ndarray, " V"]:
    """Returns the radius of each view's shift, in steps."""
    return np.abs(views.shifts).max(1)


def crops_around(subject: Subject, option: str, steps: int = 1) -> Around:
    """Returns crops at all offsets within the pixels of an option.

    Raises:
        InputError: no integer of at least 1, or more than the images have room for.
    """
    settings = subject.settings
    reach = integer(f"--{option}", subject.options[option], least=1)
    if 0 < settings.resize_size < settings.image_size:
        raise InputError(
            f"image_size {settings.image_size} exceeds resize_size {settings.resize_size}, so "
            f"that crops of --{option} would have black borders; give image_size of at most "
            f"{settings.resize_size}, or a larger resize_size"
        )
    most = (settings.image_size - settings.crop_size - 1) // 2
    if reach > most:
        advice = f"at most {most}, or " if most else ""
        raise InputError(
            f"--{option} {reach}: crops of {settings.crop_size} pixels move by at most {most} in "
            f"the central {settings.image_size}; give {advice}an image_size of "
            f"{settings.crop_size + 2 * reach + 1}"
        )
    return Around(settings.crop_size, reach, steps)


def rolls_around(subject: Subject, option: str, steps: int = 1) -> RolledAround:
    """Returns the centre crop, rolled by all shifts within the pixels of an option.

    Raises:
        InputError: no integer of at least 1, or more than half of the crop, where rolls repeat.
    """
    crop = subject.settings.crop_size
    reach = integer(f"--{option}", subject.options[option], least=1)
    if reach > crop // 2:
        raise InputError(
            f"--{option} {reach}: rolls of more than half of the crop's {crop} pixels repeat "
            f"others; give at most {crop // 2}"
        )
    return RolledAround(crop, reach, steps)


def last(found: Mapping[str, Any]) -> Any:
    """Returns the value at the largest radius."""
    return found[max(found, key=float)]


class CurveMeasure(Measure):
    """A measure of curves; the report has a table of them, and a figure of the first one."""

    # Titles of the curves, by their keys in the results.
    curves: ClassVar[Mapping[str, str]]
    unit: ClassVar[str] = "pixels"  # of the radius

    def section(self, rows: Sequence[Row]) -> str:
        lines, names = [], self._radii(rows)
        for row in rows:
            for key, title in self.curves.items():
                cells = [row.text((self.name, key, radius), "%") for radius in names]
                if any(cells):
                    lines.append([markdown(row.title), title, *cells])
        if not lines:
            return ""
        heads = ["model", f"% of images, by the largest shift in {self.unit}", *names]
        return f"## {self.options[0].help.capitalize()}\n\n{markdown_table(heads, lines)}"

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        key, title = next(iter(self.curves.items()))
        drawn = {}
        for row in rows:
            found = {r: row.values((self.name, key, r)) for r in self._radii([row])}
            points = {float(r): float(np.mean(values)) for r, values in found.items() if values}
            if points:
                drawn[row.title] = points
        if not drawn:
            return []
        path = folder / f"{self.name}.png"
        plots.plot_curves(path, drawn, f"largest shift on each axis ({self.unit})", f"{title} (%)")
        return [path]

    def _radii(self, rows: Sequence[Row]) -> list[str]:
        """Returns the radii that any of the rows has, ascending."""
        found = [row.first(self.name) or {} for row in rows]
        key = next(iter(self.curves))
        return sorted({radius for result in found for radius in result.get(key, {})}, key=float)

"""Stable images, which get one class at every shift up to a radius, and whether they are right.

With f the class that a model gives and x(d) the image's crop moved by d = (down, right) pixels, an
image is stable within m pixels if

    f(x(d)) = f(x(0)) for all d with max(|d_1|, |d_2|) <= m.

Stability needs no label. It predicts correctness: `accuracy_stable` and `accuracy_unstable` are the
accuracy of the centre crop among images that are stable and that are not ("Questioning the
Stability of Visual Question Answering", arXiv 2511.11206, 2025, where a sample is stable if no
small change of image or question changes the answer).
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Int

from aa_flax.evaluation.curves import CurveMeasure, crops_around, curve, last, radii, within
from aa_flax.evaluation.intervals import wilson_interval
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import Around


def stable_images(seen: Observations, radius: Int[np.ndarray, " V"]) -> Result:
    """Computes percentages of stable images and of right ones among them, by the radius in pixels.

    Args:
        seen: view 0 is unshifted. radius: of each view's shift.

    Returns:
        Curves; None where no image is stable, or none unstable. `same_class` is the percentage of
        all shifted views that keep the class: the expected agreement with a random shift.

    Raises:
        InputError: outputs that are not finite.
    """
    seen.check_finite()
    same = seen.predicted == seen.predicted[:, :1]
    stable, correct = within(same, radius), seen.correct[:, 0]

    def accuracy(among: np.ndarray) -> dict[str, float | None]:
        chosen = [correct[images] for images in among.T]
        return {str(r): 100 * float(x.mean()) if len(x) else None for r, x in enumerate(chosen)}

    return {
        "num_images": len(same),
        "stable": curve(stable),
        "interval": wilson_interval(float(stable[:, -1].mean()), len(stable)),  # at the largest
        "same_class": 100 * float(same[:, 1:].mean()),
        "accuracy_stable": accuracy(stable),
        "accuracy_unstable": accuracy(~stable),
    }


STABLE: dict[str, str] = {
    "stable": "same class at every shift",
    "accuracy_stable": "of these, right at the centre",
    "accuracy_unstable": "of the others, right at the centre",
}


def of_stable(result: Result) -> str:
    """Returns the end of a line of the summary: accuracy of stable and of unstable images."""
    parts = []
    for name in ("stable", "unstable"):
        found = last(result[f"accuracy_{name}"])
        parts.append(f"{'none' if found is None else f'{found:.2f} %'} of the {name}")
    return f"right: {', '.join(parts)}"


class Stability(CurveMeasure):
    """Images that get the class of their centre crop at every shift within m pixels, m = 0..M."""

    options = (
        Option("stability", "images that get one class at every shift within M pixels", None, int),
    )
    columns = (
        Column(
            "same class",
            ("same_class",),
            note="fraction of shifts within a few pixels that keep the class of the centre crop",
        ),
    )
    curves: ClassVar = STABLE

    def views(self, subject: Subject) -> Around:
        return crops_around(subject, self.name)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        return stable_images(seen, radii(self.views(subject)))

    def line(self, result: Result) -> str:
        return (
            f"{'stability':12} {with_interval(last(result['stable']), result['interval'])} of "
            f"images keep their class within {result['within']} pixels   {of_stable(result)}"
        )

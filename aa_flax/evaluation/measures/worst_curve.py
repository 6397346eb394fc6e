"""Images that are right at the centre and at every shift up to a radius: the worst case's curve.

With y the label, f the class that a model gives and x(d) the image's crop moved by d = (down,
right), the curve is, for each radius m from 0 to M,

    100 mean over images of [ f(x(d)) = y for all d with max(|d_1|, |d_2|) <= m ],

the accuracy against an adversary who chooses the shift. Shifts are the integers, or the multiples
of 1 / k pixels. Crops move within the resized image (Michaeli et al., "Alias-Free Convnets", CVPR
2023; by the radius in Michaeli and Soudry, "Alias-Free ViT", NeurIPS 2025), or the centre crop is
rolled, so that nothing enters (there "cyclic"; with k > 1 their invariance to fractions of a
pixel). Fractions of a pixel are band-limited here, see `aa_flax.evaluation.shifts`; the second
paper interpolates crops bilinearly, which blurs them as well.
"""

from typing import ClassVar

from aa_flax.errors import integer
from aa_flax.evaluation.curves import (
    STEPS,
    CurveMeasure,
    crops_around,
    curve,
    last,
    radii,
    rolls_around,
    within,
)
from aa_flax.evaluation.intervals import wilson_interval
from aa_flax.evaluation.measure import Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import Around


def worst_case(seen: Observations, views: Around) -> Result:
    """Computes the curve in percent, by the radius in pixels; and the mean over all shifts.

    Raises:
        InputError: outputs that are not finite.
    """
    seen.check_finite()
    hits = within(seen.correct, radii(views))
    return {
        "num_images": len(hits),
        "top1_worst": curve(hits, views.steps),
        "interval": wilson_interval(float(hits[:, -1].mean()), len(hits)),  # at the largest radius
        "top1_mean": 100 * float(seen.correct.mean()),
    }


class WorstWithin(CurveMeasure):
    """Accuracy at the worst crop within m pixels of the centre, m = 0..M."""

    title: ClassVar[str] = "worst within"
    options = (
        Option("worst_within", "images that are right at every shift within M pixels", None, int),
        STEPS,
    )
    curves: ClassVar = {"top1_worst": "right at every shift"}

    def views(self, subject: Subject) -> Around:
        return crops_around(subject, self.name, _steps(subject))

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        return worst_case(seen, self.views(subject))

    def line(self, result: Result) -> str:
        fractions = f" (multiples of 1/{result['steps']})" if result["steps"] > 1 else ""
        return (
            f"{self.title:12} top-1 {result['top1_worst']['0']:6.2f} % at the centre, "
            f"{with_interval(last(result['top1_worst']), result['interval'])} at every shift "
            f"within {result['within']} pixels{fractions}, {result['top1_mean']:.2f} % on average"
        )


class WorstCircular(WorstWithin):
    """Accuracy at the worst roll of the centre crop by up to m pixels, m = 0..M."""

    title = "worst rolled"
    options = (
        Option("worst_circular", "images that are right at every roll within M pixels", None, int),
        STEPS,
    )
    curves: ClassVar = {"top1_worst": "right at every roll"}

    def views(self, subject: Subject) -> Around:
        return rolls_around(subject, self.name, _steps(subject))


def _steps(subject: Subject) -> int:
    return integer("--worst_steps", subject.options["worst_steps"], least=1)

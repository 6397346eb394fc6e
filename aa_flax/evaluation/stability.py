"""How steady a net's answers are where no labels are: its own unshifted answer stands for them."""

from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int

from aa_flax.errors import InputError
from aa_flax.evaluation.consistency import consistency
from aa_flax.evaluation.observe import Observations

_TIE = 1e-3  # of a log-probability: two classes closer than that may change places by rounding


class Stability(TypedDict):
    """Percentages; the *own class* of an image is the likeliest of its unshifted centre crop.

    Attributes:
        consistency: of pairs of crops at random offsets, those with the same top-1 class (Zhang
            2019, Sec. 4.1); `consistency_interval` is the 95 % confidence interval, the images
            being the sample.
        same_class: over images and shifts, how often the top-1 class is the own class; the
            unshifted crop does not count.
        worst_case: images whose top-1 class is the own class at every shift.
        probability_change: over images and shifts, the mean absolute difference of the own class's
            probability from that of the unshifted crop, in percentage points.
        probability_change_worst: the largest of these differences.
    """

    num_images: int
    consistency: float
    consistency_interval: list[float]
    same_class: float
    worst_case: float
    probability_change: float
    probability_change_worst: float


def stability(pairs: Observations, around: Observations) -> Stability:
    """The numbers of a net, of images labelled with their own class.

    Args:
        pairs: views 0 and 1, 2 and 3, ... are pairs of crops.
        around: view 0 is unshifted, the others are shifted.

    Raises:
        InputError: outputs that are not finite, or that are others for the same image.
    """
    around.check_finite()
    _check_repeatable(around)
    paired = consistency(pairs)
    change = np.abs(around.probability[:, 1:] - around.probability[:, :1])
    same = around.correct[:, 1:]
    return {
        "num_images": len(around.index),
        "consistency": paired["consistency"],
        "consistency_interval": paired["consistency_interval"],
        "same_class": 100 * float(same.mean()),
        "worst_case": 100 * float(same.all(1).mean()),
        "probability_change": 100 * float(change.mean(dtype=np.float64)),
        "probability_change_worst": 100 * float(change.max()),
    }


def _check_repeatable(around: Observations) -> None:
    """That the unshifted crop's class is its label, which the net gave when it first saw it."""
    changed = around.log_other[:, 0] - around.log_probability[:, 0] > _TIE
    if changed.any():
        raise InputError(
            f"the net gave {changed.sum()} of {len(changed)} images another class when it saw them "
            "again; is it in training mode (dropout, batch statistics)?"
        )


def least_stable_first(
    probability: Float[np.ndarray, "n S"], kept: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The order of images by stability: few shifts that keep the class first, then a deep fall.

    Args:
        probability: of the own class; view 0 is unshifted.
        kept: the share of shifts with the own class.
    """
    fall = probability[:, 0] - probability.min(1)
    return np.lexsort((-fall, kept))


def worst_shift(probability: Float[np.ndarray, " S"], correct: np.ndarray) -> int:
    """The view where the own class is least likely: of those that change the class, if any do."""
    among = np.flatnonzero(~correct) if not correct.all() else np.arange(len(correct))
    return int(among[probability[among].argmin()])

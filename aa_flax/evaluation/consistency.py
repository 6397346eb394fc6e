"""Numbers of pairs of views, and of views that must all be right."""

from typing import TypedDict

import numpy as np
from jaxtyping import Float

from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.observe import Observations


class Consistency(TypedDict):
    """Percentages over all images and pairs; `..._interval`: ends of the 95 % confidence interval.

    Attributes:
        consistency: pairs with the same top-1 class (Zhang 2019, Sec. 4.1).
        consistent_and_correct: pairs with the same class, the true one.
        probability_change: mean absolute difference of the true class's probability in a pair.
        top1_shifted: views classified correctly.
    """

    num_images: int
    consistency: float
    consistency_interval: list[float]
    consistent_and_correct: float
    probability_change: float
    top1_shifted: float


def agreement(seen: Observations) -> Float[np.ndarray, " n"]:
    """The share of each image's pairs (views 0 and 1, 2 and 3, ...) with the same top-1 class."""
    return (seen.predicted[:, ::2] == seen.predicted[:, 1::2]).mean(1)


def consistency(seen: Observations) -> Consistency:
    """How often the two views of a pair get the same class.

    The images are the sample of the confidence interval, see `clustered_interval`.

    Raises:
        InputError: outputs that are not finite; such a net would count as perfectly consistent.
    """
    seen.check_finite()
    agreed = agreement(seen)
    probability = seen.probability
    change = np.abs(probability[:, ::2] - probability[:, 1::2])
    both = seen.correct[:, ::2] & seen.correct[:, 1::2]
    return {
        "num_images": len(agreed),
        "consistency": 100 * float(agreed.mean()),
        "consistency_interval": clustered_interval(agreed, probability.shape[1] // 2),
        "consistent_and_correct": 100 * float(both.mean()),
        "probability_change": 100 * float(change.mean(dtype=np.float64)),
        "top1_shifted": 100 * float(seen.correct.mean()),
    }


class WorstCase(TypedDict):
    """Percentages over all images.

    Attributes:
        top1_worst: images classified correctly at every offset.
        top1_mean: over images and offsets.
    """

    num_images: int
    top1_worst: float
    top1_mean: float


def worst_case(seen: Observations) -> WorstCase:
    """An image counts only if it is right in every view."""
    return {
        "num_images": len(seen.index),
        "top1_worst": 100 * float(seen.correct.all(1).mean()),
        "top1_mean": 100 * float(seen.correct.mean()),
    }


def diagonal_arrays(seen: Observations) -> dict[str, np.ndarray]:
    """The original's four arrays, each images by offsets.

    `diag_probs`: probability of the true class; `diag_probs2`: of the likeliest other class;
    `diag_corrs`: whether the true class is the likeliest; `diag_preds`: the likeliest class.
    """
    return {
        "diag_probs": seen.probability,
        "diag_probs2": np.exp(seen.log_other),
        "diag_corrs": seen.correct,
        "diag_preds": seen.predicted,
    }

"""Confidence intervals of fractions of images, which also hold at 0 and 100 %."""

import numpy as np
from jaxtyping import Float

_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution


def wilson_interval(fraction: float, count: float) -> list[float]:
    """Returns the 95 % interval of a fraction of `count` independent images, in percent.

    Its ends (Wilson 1927) are (f + z² / 2n ± z √(f (1 - f) / n + z² / 4n²)) / (1 + z² / n).

    Examples:
        >>> [round(end, 1) for end in wilson_interval(1.0, 100)]
        [96.3, 100.0]
    """
    middle = fraction + _Z**2 / (2 * count)
    half = _Z * np.sqrt(fraction * (1 - fraction) / count + _Z**2 / (4 * count**2))
    low, high = (100 * (middle + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    return [max(float(low), 0.0), min(float(high), 100.0)]


def clustered_interval(fractions: Float[np.ndarray, " n"], pairs: int) -> list[float]:
    """Returns the 95 % interval of a fraction of pairs, several of each image, in percent.

    Pairs of one image are correlated, so the images are the sample: n images count as
    n f (1 - f) / s² independent pairs, where s² is the variance of the images' fractions (Korn and
    Graubard 1998). That is n if each image has the fraction 0 or 1, and `pairs` n if pairs are
    independent. If all images have the same fraction, s² is uninformative and they count as n.
    """
    count, fraction, variance = len(fractions), float(fractions.mean()), float(fractions.var())
    effective = count * fraction * (1 - fraction) / variance if variance else count
    return wilson_interval(fraction, min(max(effective, count), count * pairs))

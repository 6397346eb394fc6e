"""Confidence intervals of fractions of images, in percent, that hold at 0 and 100 %, too."""

import numpy as np
from jaxtyping import Float

_Z = 1.959963984540054  # 97.5 % of a normal distribution are below


def wilson(fraction: float, count: float) -> list[float]:
    """The 95 % interval of a fraction of `count` independent images (Wilson 1927), in percent.

    Returns:
        Its ends: (f + z² / 2n ± z √(f (1 - f) / n + z² / 4n²)) / (1 + z² / n).

    >>> [round(end, 1) for end in wilson(1.0, 100)]
    [96.3, 100.0]
    """
    middle = fraction + _Z**2 / (2 * count)
    half = _Z * np.sqrt(fraction * (1 - fraction) / count + _Z**2 / (4 * count**2))
    low, high = (100 * (middle + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    return [max(float(low), 0.0), min(float(high), 100.0)]


def of_images(fractions: Float[np.ndarray, " n"], pairs: int) -> list[float]:
    """The 95 % interval of a fraction of pairs, several of each image, in percent.

    Pairs of one image are alike, so that the images are the sample: n images count as
    n f (1 - f) / s² independent pairs, with s² the variance of the images' fractions (Korn and
    Graubard 1998), which is n where each image has 0 or 1 and `pairs` n where pairs are
    independent. Where all images have the same fraction, s² says nothing and they count as n.

    Args:
        fractions: of each image's pairs. pairs: of each image.
    """
    count, fraction, variance = len(fractions), float(fractions.mean()), float(fractions.var())
    effective = count * fraction * (1 - fraction) / variance if variance else count
    return wilson(fraction, min(max(effective, count), count * pairs))

"""Measured numbers as texts, with as many digits as are known."""

import math
from collections.abc import Sequence

import numpy as np


def with_spread(values: Sequence[float], unit: str = "%") -> str:
    """A number, or the mean of several and their standard deviation; "" of none.

    The deviation has two significant digits, the mean as many decimals as it. One number alone has
    two decimals, as published percentages do, or four significant digits of another unit.
    """
    if not values:
        return ""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return mean_with_spread(float(np.mean(values)), deviation, unit)


def mean_with_spread(mean: float, deviation: float | None, unit: str = "%") -> str:
    """A mean ± its standard deviation, with two of its digits; None: one number alone."""
    decimals = _decimals(deviation, 2) if deviation else _decimals_of_one(mean, unit)
    spread = "" if deviation is None else f" ± {deviation:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"


def with_interval(value: float, interval: Sequence[float], unit: str = "%") -> str:
    """A number with the ends of its interval: `88.2 % (86.4 to 89.7)`.

    Half the interval has two significant digits, as a deviation has.
    """
    low, high = interval
    decimals = _decimals((high - low) / 2, 2)
    mark = f" {unit}" if unit else ""
    return f"{value:.{decimals}f}{mark} ({low:.{decimals}f} to {high:.{decimals}f})"


def _decimals_of_one(value: float, unit: str) -> int:
    return 2 if unit == "%" else _decimals(value, 4)


def _decimals(value: float, significant: int) -> int:
    """Decimals that show so many significant digits of a value: four at most."""
    if not value:
        return 0
    return min(max(significant - 1 - math.floor(math.log10(abs(value))), 0), 4)


def p_value(p: float) -> str:
    """A probability with two decimals; below them `< 0.01`, never 0.00."""
    return "< 0.01" if p < 0.01 else f"{p:.2f}"

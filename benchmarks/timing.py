"""Timing of calls."""

import time
from collections.abc import Callable

import numpy as np


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Returns the median time of a call in milliseconds, without a first one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))

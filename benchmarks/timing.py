"""How long something takes."""

import time
from collections.abc import Callable

import numpy as np


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call in milliseconds; a first one is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))

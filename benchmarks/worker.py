"""The measuring process of `models.py`: one variant of a model.

It reads lines of JSON from stdin and writes answers to stdout. The first line is the task, answered
once the model is compiled and warm; each further line is a duration, answered by the milliseconds
of a pass. Between answers the process is idle.
"""

import json
import math
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEEPS_MEMORY = "AA_FLAX_KEEP_MEMORY"  # an environment variable


@dataclass(frozen=True)
class Work:
    """A pass to be timed.

    Attributes:
        run: starts a pass; `wait`, called with its result, returns when the pass has finished.
        device_memory: peak memory of the device in bytes; None on CPU, where it is the process's.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], object]
    device_memory: Callable[[], int] | None = None

    def seconds(self, passes: int = 1) -> float:
        """Returns the mean time of a pass, of several started at once."""
        began = time.perf_counter()
        self.wait([self.run() for _ in range(passes)][-1])
        return (time.perf_counter() - began) / passes

    def turn(self, seconds: float) -> float:
        """Returns the seconds of a pass, measured for about the given time.

        On CPU, the median of at least five passes, one after another. On other devices, passes are
        queued, as in training and evaluation, where the host runs ahead of the device.
        """
        if self.device_memory is not None:
            return self.seconds(max(1, math.ceil(seconds / self.seconds())))
        times: list[float] = []
        while sum(times) < seconds or len(times) < 5:
            times.append(self.seconds())
        return statistics.median(times)

    def peak_mib(self) -> float:
        if self.device_memory is not None:
            return self.device_memory() / 2**20
        return _peak_resident_kib() / 1024


def device_in_words(device: str) -> str:
    """Returns the device's name, or for a CPU the number of cores this process may use."""
    return f"{len(os.sched_getaffinity(0))} CPU cores" if device == "cpu" else device


def versions(*modules: Any) -> str:
    """Returns the versions of the interpreter and of libraries, and whether memory is kept."""
    names = [f"{module.__name__} {module.__version__}" for module in modules]
    kept = ["memory kept"] if KEEPS_MEMORY in os.environ else []
    return ", ".join([*names, f"Python {platform.python_version()}", *kept])


def serve(
    prepare: Callable[[dict[str, Any]], Work], identity: Callable[[], dict[str, str]]
) -> None:
    """Answers the lines of stdin until it ends.

    Args:
        prepare: builds the work of a task.
        identity: `versions` and `device`, for a task without a model.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that the output of libraries does not mix with answers
    work: Work | None = None
    for line in sys.stdin:
        task = json.loads(line)
        try:
            if "model" in task:
                work = prepare(task)
                first, second = work.seconds(), work.seconds()
                answer: dict[str, Any] = {"compile_s": max(0.0, first - second)}
            elif work is None:
                answer = identity()
            else:
                answer = {"milliseconds": 1e3 * work.turn(task["seconds"])}
            if work is not None:
                answer["peak_mib"] = work.peak_mib()
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)


def _peak_resident_kib() -> int:
    """Returns this program's peak; that of `getrusage` includes its parent before the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

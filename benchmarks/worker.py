"""The computing half of `models.py`: one variant of a model, in a separate process.

Lines of JSON over stdin and stdout: first the task, answered once the model is compiled and warm;
then how long to run, answered by the milliseconds of a pass, again and again. Between answers the
process waits for its next line and computes nothing.
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

KEEPS_MEMORY = "NETS_KEEP_MEMORY"  # a variable of the environment


@dataclass(frozen=True)
class Work:
    """A pass to be timed.

    Attributes:
        run: begins a pass; `wait`, given what it returned, comes back when the pass has ended.
        device_memory: the most bytes the device has held; None: on CPU, where the process counts.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], object]
    device_memory: Callable[[], int] | None = None

    def seconds(self, passes: int = 1) -> float:
        """Of a pass, of several begun at once."""
        began = time.perf_counter()
        self.wait([self.run() for _ in range(passes)][-1])
        return (time.perf_counter() - began) / passes

    def turn(self, seconds: float) -> float:
        """Returns the seconds of a pass: of the passes that fit into that time.

        On CPU each is waited for, and the median of five or more counts. Elsewhere they are queued,
        as in training and evaluation, where the host runs ahead of the device.
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
    """The device's name; of a CPU the number of cores this process may use."""
    return f"{len(os.sched_getaffinity(0))} CPU cores" if device == "cpu" else device


def versions(*modules: Any) -> str:
    """Of the interpreter and of libraries, in one line, and whether memory is kept."""
    names = [f"{module.__name__} {module.__version__}" for module in modules]
    kept = ["memory kept"] if KEEPS_MEMORY in os.environ else []
    return ", ".join([*names, f"Python {platform.python_version()}", *kept])


def serve(
    prepare: Callable[[dict[str, Any]], Work], identity: Callable[[], dict[str, str]]
) -> None:
    """Answers the lines of stdin until it ends.

    Args:
        prepare: makes the task's work.
        identity: `versions` and `device`, for a task without a model.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not end up among the answers
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
    """Of this program alone: what `getrusage` tells begins with the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

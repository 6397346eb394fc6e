"""Runs of the tiny model in separate processes, and their final states."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from aa_flax.training.start import model_from_workdir
from aa_flax.weights.checkpoints import Checkpoints, Record

ROOT = Path(__file__).parents[2]


def start(
    workdir: Path, *arguments: str, devices: int = 1, group: bool = False
) -> subprocess.Popen:
    """Starts `tiny.py`; compiled programs are cached for later starts.

    Args:
        group: whether it leads a separate process group, as a command on a terminal does.
    """
    return subprocess.Popen(
        [sys.executable, "tests/training/tiny.py", str(workdir), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parents[1] / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def finish(process: subprocess.Popen, exit_code: int = 0, seconds: float = 120) -> str:
    """Waits for the expected end of a process, and returns its output."""
    output, errors = process.communicate(timeout=seconds)
    assert process.returncode == exit_code, errors[-3000:]
    return output + errors


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: int = 60) -> None:
    """Returns when the condition holds or the process has ended."""
    for _ in range(seconds * 100):
        if process.poll() is not None or condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def final_state(workdir: Path) -> tuple[Record, list[np.ndarray]]:
    """Returns the last checkpoint, its parameters and batch statistics."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.latest
    assert latest is not None
    model, _ = model_from_workdir(workdir, latest.step)
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return latest, [np.asarray(x) for x in jax.tree.leaves(state)]

"""Runs that are killed, stopped, damaged or out of room, as commands of their own."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax.training.checkpoints import Checkpoints
from aa_flax.training.initialise import model_of
from aa_flax.training.reporting import read_json_lines
from tests.training.tiny import register, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Compiled programs outlive a process, so that restarts are quick; one CPU device each."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    register()


def start(workdir: Path, *changes: str, **options) -> subprocess.Popen:
    command = [sys.executable, "tests/training/tiny.py", str(workdir), *changes]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen, exit_code: int = 0) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == exit_code, errors[-3000:]
    return output + errors


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    for _ in range(int(seconds * 100)):
        if process.poll() is not None or condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def final_state(workdir: Path):
    """Every variable of the model at the end, and the checksums of all that was saved."""
    model = model_of(tiny_config(), 10)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.latest
        checkpoints.restore_model(latest.step, model)
    keep = (nnx.Param, nnx.BatchStat)
    return latest, [np.asarray(x) for x in jax.tree.leaves(nnx.state(model, keep))]


def assert_same_end(workdir: Path, expected: Path) -> None:
    (found_record, found), (record, arrays) = final_state(workdir), final_state(expected)
    assert found_record == record
    for a, b in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
    figures = ("step", "train_loss", "val_loss", "val_top1")
    rows, expected_rows = (
        [
            [row[figure] for figure in figures]
            for row in read_json_lines(folder / "metrics.jsonl")
            if "val_loss" in row
        ]
        for folder in (workdir, expected)
    )
    assert [row[0] for row in rows] == [row[0] for row in expected_rows]
    assert rows[-1][2:] == expected_rows[-1][2:]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_at_arbitrary_moments_ends_bit_for_bit_as_one_that_was_not(kills, tmp_path):
    epochs = f"num_epochs={2 + kills}"
    finish(start(tmp_path / "whole", epochs))
    moments = random.Random(kills)
    killed = 0
    for _ in range(kills):
        process = start(tmp_path / "cut", epochs)
        lock = tmp_path / "cut" / "lock"
        lock.unlink(missing_ok=True)
        wait_for(lock.exists, process)
        time.sleep(moments.uniform(0, 4))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
    assert killed >= kills - 1
    finish(start(tmp_path / "cut", epochs))
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_sigterm_saves_within_the_epoch_and_has_an_exit_code_of_its_own(tmp_path):
    long_epoch = ["max_steps_per_epoch=20", "num_epochs=2"]
    finish(start(tmp_path / "whole", *long_epoch))
    process = start(tmp_path / "cut", *long_epoch)
    line = process.stdout.readline()
    assert "compiled the training step" in line
    process.send_signal(signal.SIGTERM)
    told = finish(process, exit_code=75)
    assert "all is saved; the same command continues" in told
    output = finish(start(tmp_path / "cut", *long_epoch))
    assert "continuing after" in output
    assert_same_end(tmp_path / "cut", tmp_path / "whole")

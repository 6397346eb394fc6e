"""Runs that are killed, stopped, damaged or out of room, as commands of their own."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from aa_flax.training.reporting import read_json_lines
from tests.training.processes import final_state, finish, start, wait_for


def assert_same_end(workdir: Path, expected: Path) -> None:
    (found_record, found), (record, arrays) = final_state(workdir), final_state(expected)
    assert found_record == record
    for a, b in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
    for run in (workdir, expected):
        steps = [row["step"] for row in read_json_lines(run / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert steps[-1] == record.step


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
        time.sleep(moments.uniform(0, 2.5))
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

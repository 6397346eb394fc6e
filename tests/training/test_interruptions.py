"""Runs that are killed, stopped, damaged or out of disk space, in separate processes."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import aa_flax
from aa_flax.training.log import read_json_lines
from tests.training.processes import ROOT, final_state, finish, start, wait_for
from tests.training.test_command import write_digits


def assert_same_end(workdir: Path, expected: Path) -> None:
    (found_record, found), (record, arrays) = final_state(workdir), final_state(expected)
    assert found_record == record
    for a, b in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
    for run in (workdir, expected):
        steps = [row["step"] for row in read_json_lines(run / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert steps[-1] == record.step


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_at_arbitrary_moments_ends_bit_for_bit_as_one_that_was_not(kills, tmp_path):
    epochs = f"num_epochs={20 + kills}"
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


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_asked_to_stop_it_saves_within_the_epoch_and_has_a_special_exit_code(number, tmp_path):
    long_epoch = ["max_steps_per_epoch=20", "num_epochs=2"]
    finish(start(tmp_path / "whole", *long_epoch))
    process = start(tmp_path / "cut", *long_epoch)
    assert any("compiled the training step" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(number)
    output = finish(process, exit_code=75)
    assert f"asked to stop ({number.name}): saving first" in output
    assert "all is saved; the same command continues" in output
    output = finish(start(tmp_path / "cut", *long_epoch))
    assert "continuing after" in output
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("processes", [0, 3])  # 3: those of an evaluation start as well
def test_ctrl_c_on_a_terminal_leaves_the_processes_that_read_alone(processes, tmp_path):
    options = ["max_steps_per_epoch=20", "num_epochs=2", 'data.worker_type="process"']
    process = start(tmp_path / "run", *options, group=True)
    assert any("compiled the training step" in line for line in iter(process.stdout.readline, ""))
    wait_for(lambda: len(readers(process.pid)) >= processes, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals all processes of the command
    output = finish(process, exit_code=75)
    assert "all is saved" in output
    assert "Traceback" not in output
    assert "leaked" not in output
    finish(start(tmp_path / "run", *options[:2]))  # threads, which start faster


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Writes a weights file for eval.py."""
    path = tmp_path_factory.mktemp("saved") / "w.safetensors"
    aa_flax.save_weights(aa_flax.create_model("resnet18", num_classes=10), path)
    return path


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("worker_type", "tries"),
    [
        ("thread", 1),
        pytest.param("thread", 5, marks=pytest.mark.slow),
        pytest.param("process", 3, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_amid_an_evaluation_ends_it_with_one_line(worker_type, tries, saved, tmp_path):
    command = [sys.executable, "-u", "eval.py", "--config=digits_resnet18", f"--weights={saved}"]
    command += ["--config.eval.passes=1000", "--config.eval.batch_size=32", "--shift"]
    command += [f"--output={tmp_path / 'r.json'}", f"--config.data.worker_type={worker_type}"]
    for wait in range(tries):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert any("450 images of 10 classes" in line for line in process.stdout)
        time.sleep(0.5 + wait)
        os.killpg(process.pid, signal.SIGINT)
        output = finish(process, exit_code=130)
        assert output.strip().splitlines()[-1] == "stopped; nothing was measured yet"
        assert "Traceback" not in output
        assert "leaked" not in output


def readers(pid: int) -> list[str]:
    """Returns the processes that a command has started to read images."""
    command = ["pgrep", "-P", str(pid), "-f", "spawn_main"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "epochs"), [(20, 200)])
def test_a_run_of_many_epochs_survives_kills_and_whatever_happens_between(kills, epochs, tmp_path):
    chance = random.Random(epochs)
    write_digits(tmp_path / "digits", count=40, side=48)
    options = [
        f"num_epochs={epochs}",
        "max_steps_per_epoch=2",
        "batch_size=16",
        'data.name="folder"',
        f'data.path="{tmp_path / "digits"}"',
    ]
    finish(start(tmp_path / "runs" / "whole", *options), seconds=1200)
    cut, killed = tmp_path / "runs" / "cut", 0
    for i in range(kills):
        process = start(cut, *options)
        (cut / "lock").unlink(missing_ok=True)
        wait_for((cut / "lock").exists, process)
        time.sleep(chance.uniform(0, 4))
        if i % 4 == 3:  # the disk is full: no file grows beyond a page
            hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, hard))
            time.sleep(2)
        process.kill()
        killed += process.wait() != 0
        process.communicate()
        disturb(tmp_path / "digits", cut, chance)
    assert killed > kills // 2
    finish(start(cut, *options), seconds=1200)
    assert_same_end(cut, tmp_path / "runs" / "whole")


def disturb(data: Path, workdir: Path, chance: random.Random) -> None:
    """Changes dates of files, and adds an incomplete line to the log."""
    files = [*data.rglob("*"), *(path for path in workdir.rglob("*") if path.is_file())]
    for path in chance.sample(files, len(files) // 4):
        date = time.time() + chance.choice((0, -86_400, 86_400))
        os.utime(path, (date, date))
    log = workdir / "metrics.jsonl"
    if log.exists() and chance.random() < 0.5:
        log.write_text(log.read_text() + '{"step": 1, "trai')

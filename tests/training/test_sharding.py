"""Many devices and several processes compute the same as one device."""

import signal
import socket

import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.runtime import start_distributed
from tests.training.processes import final_state, finish, start
from tests.training.tiny import register

TEN_STEPS = ('model="tiny_plain"', "num_epochs=1", "max_steps_per_epoch=10")


def start_two(workdir, *arguments):
    """Runs two processes of two devices each; the first one leads."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(workdir, *arguments, "--coordinator", address, "2", str(i), devices=2) for i in (0, 1)
    ]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Returns the state of a run on one device after ten steps."""
    register()
    workdir = tmp_path_factory.mktemp("runs") / "one"
    finish(start(workdir, *TEN_STEPS))
    return final_state(workdir)[1]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()))


def test_eight_devices_compute_what_one_does(one_device, tmp_path):
    finish(start(tmp_path / "eight", *TEN_STEPS, devices=8))
    assert_close(final_state(tmp_path / "eight")[1], one_device)


def test_two_processes_compute_what_one_device_does_and_one_of_them_reports(one_device, tmp_path):
    first, second = (finish(p) for p in start_two(tmp_path / "two", *TEN_STEPS))
    assert_close(final_state(tmp_path / "two")[1], one_device)
    assert "epoch   1/1" in first
    assert "epoch" not in second


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(number, tmp_path):
    arguments = ("num_epochs=1", "max_steps_per_epoch=20", "batch_size=16")
    processes = start_two(tmp_path / "two", *arguments)
    assert any("compiled" in line for line in iter(processes[0].stdout.readline, ""))
    processes[1].send_signal(number)
    outputs = [finish(process, exit_code=75) for process in processes]
    assert "all is saved" in outputs[0]
    assert outputs[1].count("all is saved") == 1
    record, _ = final_state(tmp_path / "two")
    assert record.top1 is None
    finish(start(tmp_path / "two", *arguments, devices=4))  # on another number of devices


def test_the_error_of_processes_that_do_not_connect_names_the_flags():
    with pytest.raises(InputError, match="give each process --coordinator=HOST:PORT"):
        start_distributed("localhost:1", None, None)

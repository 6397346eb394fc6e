"""The commands as a user runs them, and the mistakes users make."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train.py", "--config.bach_size=3"], "bach_size"),
        (["train.py", "--config.batch_size=many"], "batch_size"),
        (["train.py", "--config", "configs/no_such.py"], "no_such.py"),
        (["train.py", "--config.model=resnet81"], "error: unknown model 'resnet81'; did you mean"),
        (["train.py", "shift"], "error: unknown argument 'shift'"),
        (["eval.py", "--weights", "nowhere"], "error: no run in nowhere"),
        (["eval.py", "--weights", "nowhere.pth"], "error: no file nowhere.pth"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_run(command, message, tmp_path):
    workdir = [] if command[-1] == "shift" else [f"--workdir={tmp_path / 'run'}"]
    done = run(*command, *workdir)
    assert done.returncode != 0
    assert message in done.stderr
    assert "error:" not in message or len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_importing_the_package_loads_no_torch_tensorflow_or_matplotlib():
    code = "import sys, aa_flax; print({'torch', 'tensorflow', 'matplotlib'} & sys.modules.keys())"
    assert run("-c", code).stdout.strip() == "set()"

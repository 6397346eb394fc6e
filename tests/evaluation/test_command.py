"""eval.py over several nets: what is done is kept, what fails keeps no other net from its turn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aa_flax import create_model, save_weights
from configs import digits_resnet18_lpf4

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "eval.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def write_done(folder: Path, name: str, weights: str, **figures: float) -> Path:
    config = digits_resnet18_lpf4.get_config()
    config.model = name
    config = json.loads(config.to_json())
    done = {"model": name, "weights": weights, "config": config, "top1": 1.0, **figures}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(done))
    return path


def test_a_net_that_is_done_is_kept_and_one_without_weights_is_left_out(tmp_path):
    weights = tmp_path / "alexnet.safetensors"
    save_weights(create_model("resnet18", num_classes=10), tmp_path / "resnet18.safetensors")
    done = write_done(tmp_path, "resnet18", str(tmp_path / "resnet18.safetensors"), consistency=2.0)
    before = done.read_text()
    ran = run(
        "--models=alexnet,resnet18",
        f"--weights={tmp_path / '{model}.safetensors'}",
        f"--output={tmp_path}",
        "--shift",
    )
    assert f"alexnet is left out: no file {weights}" in ran.stdout
    assert f"{done} is there already" in ran.stdout
    assert done.read_text() == before
    assert ran.returncode == 1
    assert ran.stderr.strip() == "error: 1 nets could not be evaluated: alexnet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models=resnet*_lpf9"], "no net is called 'resnet*_lpf9'"),
        (["--models=resnet18", "--images=0,x"], "--images are numbers such as 0,5,9; got 0,x"),
        (["--models=resnet18", "--weights=nowhere/{model}"], "could not be evaluated: resnet18"),
    ],
)
def test_a_mistake_is_named_in_one_line(flags, message):
    ran = run(*flags)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1

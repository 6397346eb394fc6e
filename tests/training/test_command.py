"""The command train.py on a tree of JPEG files like ImageNet, shortened by overrides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax.data.sources import Digits
from aa_flax.weights.read import read_weights

ROOT = Path(__file__).parents[2]


def write_digits(folder: Path, count: int, side: int) -> None:
    """Writes a tree like ImageNet's: `train/<digit>/<number>.jpg`, `val/...`, `count` images."""
    for split in ("train", "val"):
        digits = Digits(split, image_size=32)
        for i in range(count):
            example = digits[i]
            path = folder / split / f"digit{example['label']}" / f"{i:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.asarray(example["image"]))
            image.resize((side, side + i % 9), Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.mark.slow
def test_a_tree_of_jpegs_trains_on_an_imagenet_recipe(tmp_path):
    write_digits(tmp_path / "digits", count=40, side=56)
    flags = {
        "num_epochs": 1,
        "batch_size": 16,
        "data.path": tmp_path / "digits",
        "data.resize_size": 48,
        "data.image_size": 48,
        "data.crop_size": 40,
        "eval.batch_size": 16,
        "eval.shift_range": 9,
        "eval.passes": 1,
    }
    command = [sys.executable, "train.py", "--config=configs/resnet18_lpf4.py"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch   1/1  train loss" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_images"] == 40
    weights = read_weights(tmp_path / "run" / "weights.safetensors")
    assert weights.metadata["model"] == "resnet18_lpf4"
    assert weights.arrays["fc.bias"].shape == (10,)

"""The table of docs/distill.md: a plain ResNet-18 on the digits, antialiased in each way.

    python benchmarks/distill.py [--seeds 3] [--runs 2]

The plain model is trained by `train.py` on centred digits. The antialiased one gets its weights:
copied, with statistics re-estimated, with statistics matched, distilled. In italics, for
comparison: the plain model distilled likewise, and antialiased models trained on labels. Runs and
results that are there are read, not made again. Prints a Markdown table in percent: means, and
standard deviations of several seeds.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import aa_flax
from aa_flax.config import check_config
from aa_flax.data.batches import training_batches
from aa_flax.data.digits import Digits
from aa_flax.data.pixels import preprocess_batch
from configs.digits_resnet18_lpf4 import get_config

ROOT = Path(__file__).parents[1]
MATCHED = 64  # images on which statistics are matched
SHIFTED = ("--config.data.augmentation=random_shift",)
START = (
    "--config.init_from={plain}",
    f"--config.match_images={MATCHED}",
    "--config.optimizer.learning_rate=0.02",
)
TEACHER = (*START, "--config.distill.teacher={plain}")
AVERAGED = (*TEACHER, *SHIFTED, "--config.distill.shifts=8")
RUNS: Mapping[str, tuple[str, ...]] = {
    "distilled, centred crops": TEACHER,
    "distilled, shifted crops, mean of 8 answers": AVERAGED,
    "*the plain model, distilled likewise*": (*AVERAGED, "--config.model=resnet18"),
    "*matched, then labels, shifted crops*": (*START, *SHIFTED),
    "*from scratch, labels, centred crops*": (),
}
COPIES = ("copied", "re-estimated", "matched")
COLUMNS = ("centred", "shifted", "consistency")


def trained(recipe: str, workdir: Path, *flags: str) -> dict[str, Any]:
    """Trains a model, unless that was done, and returns its results."""
    if not (workdir / "results.json").exists():
        command = [sys.executable, "train.py", f"--config=configs/{recipe}.py", *flags]
        subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True, stdout=sys.stderr)
    return json.loads((workdir / "results.json").read_text())


def copied(way: str, plain: Path, seed: int) -> dict[str, Any]:
    """Evaluates the antialiased model with the weights of the plain one, as `COPIES` says."""
    config, source = check_config(get_config()), aa_flax.create_model("resnet18", pretrained=plain)
    model = aa_flax.create_model("resnet18_lpf4", num_classes=source.num_classes)
    nnx.update(model, nnx.state(source))
    batches = training_batches(
        Digits("train", config.data.image_size), config.batch_size, config.data, seed=seed
    )
    images = (preprocess_batch(batch, config.data) for batch in islice(batches, 20))
    if way == "re-estimated":
        aa_flax.recalibrate_batch_norm(model, images)
    elif way == "matched":
        aa_flax.match_statistics(model, source, next(images)[:MATCHED])
    sizes: dict[str, Any] = {**config.eval.to_dict(), "resize_size": config.data.resize_size}
    sizes |= {name: config.data[name] for name in ("image_size", "crop_size")}
    return aa_flax.evaluate(
        model, Digits("val", config.data.image_size), ("accuracy", "shift"), **sizes
    )


def rows(seed: int, folder: Path, runs: int) -> dict[str, dict[str, Any]]:
    """Returns the results of each row for a seed."""
    workdir = folder / f"seed{seed}"
    plain = workdir / "plain"
    with_seed = f"--config.seed={seed}"
    found = {"plain model": trained("digits_resnet18", plain, with_seed)}
    for way in COPIES:
        file = workdir / f"{way}.json"
        if not file.exists():
            file.write_text(json.dumps(copied(way, plain, seed)))
        found[way] = json.loads(file.read_text())
    for i, (name, flags) in enumerate(islice(RUNS.items(), runs)):
        given = [flag.format(plain=plain) for flag in flags]
        found[name] = trained("digits_resnet18_lpf4", workdir / f"run{i}", with_seed, *given)
    return found


def cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=len(RUNS), help="leave out rows after these")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/distill")
    args = parser.parse_args()
    seeds = [rows(seed, args.folder, args.runs) for seed in range(args.seeds)]
    print(f"| `resnet18_lpf4` | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 1)}|")
    for name in seeds[0]:
        runs = [found[name] for found in seeds]
        values = [
            (run["top1"], run["shift"]["top1_shifted"], run["shift"]["consistency"]) for run in runs
        ]
        cells = [cell(list(column)) for column in zip(*values, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

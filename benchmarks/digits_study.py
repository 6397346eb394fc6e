"""The study of docs/digits_study.md: every filter size of ResNet-18, and MobileNetV2, on digits.

    python benchmarks/digits_study.py [--seeds 3] [--folder runs/digits_study] [--output FOLDER]

Each run is `train.py` with the flags below (52 pixels: `_lpf7` needs 51); finished runs are read,
not repeated. Then `aa_flax.report` writes the table and the figure of all seeds, and for the first
seed `eval.py` computes the diagonals and the equivariance maps of ResNet-18 and its `_lpf4`, on
crops of 64 pixels. Takes about an hour on two cores.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from aa_flax import report

ROOT = Path(__file__).parents[1]
MODELS = [
    "resnet18",
    *(f"resnet18_lpf{k}" for k in range(1, 8)),
    "mobilenet_v2",
    "mobilenet_v2_lpf4",
]
PAIR = ("resnet18", "resnet18_lpf4")  # with equivariance maps and diagonals
RECIPE = ["--config=configs/digits_resnet18.py", "--config.num_epochs=5", "--config.eval.passes=5"]
SIZE = ["--config.data.image_size=60", "--config.data.crop_size=52"]
LARGER = ["--config.data.image_size=72", "--config.data.crop_size=64"]


def command(script: str, model: str, *flags: str) -> None:
    arguments = [sys.executable, script, *RECIPE, f"--config.model={model}", *flags]
    subprocess.run(arguments, cwd=ROOT, check=True)


def train(model: str, seed: int, workdir: Path) -> Path:
    results = workdir / "results.json"
    if not results.exists():
        command("train.py", model, *SIZE, f"--config.seed={seed}", f"--workdir={workdir}")
    return results


def evaluate(model: str, workdir: Path, measure: str, *flags: str) -> Path:
    output = workdir / f"{measure}.json"
    if not output.exists():
        weights = f"--weights={workdir / 'weights.safetensors'}"
        command("eval.py", model, weights, f"--{measure}", *flags, f"--output={output}")
    return output


def write(results: list[Path], output: Path) -> None:
    """Writes the report of results; omitted ones are listed in it and printed."""
    rows, left_out = report.gather(results)
    for line in left_out:
        print(f"left out: {line}")
    report.write_report(rows, output, left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/digits_study")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/digits_study/report")
    args = parser.parse_args()
    folders = {(n, s): args.folder / f"{n}_seed{s}" for s in range(args.seeds) for n in MODELS}
    results = [train(*run, folder) for run, folder in folders.items()]
    write(results, args.output)
    for measure, flags in {
        "diagonal": [*SIZE, "--image_indices=0,3,9,13"],
        "equivariance": LARGER,
    }.items():
        found = [evaluate(model, folders[model, 0], measure, *flags) for model in PAIR]
        write(found, args.output / measure)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()

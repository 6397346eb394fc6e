"""Images per second of `train.py` with its real loader, from JPEG files, and the bottleneck.

    python benchmarks/train_rate.py [--model resnet50] [--batch 256] [--dtype bfloat16]
        [--steps 60] [--workers 16] [--output RESULTS.csv]

Writes JPEG files of ImageNet's usual size (500 x 375 pixels, about 90 kB: smooth noise) into a
temporary folder and trains one short epoch on them. `data_wait` is the fraction of time that
the step waits for its batch: near 0 the device is the bottleneck, well above it the loader, whose
rate is then printed.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
FIELDS: tuple[str, ...] = ("device", "model", "batch", "dtype", "workers", "steps")
FIELDS += ("images_per_second", "data_wait", "limit")
FILES = 512  # distinct photographs, each under several names
WAITS = 5  # percent of the time; above it, the loader is the limit


def write_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Writes `count` files of noise in two classes, which repeat `FILES` distinct ones."""
    contents = []
    for _ in range(min(count, FILES)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 18, smooth.shape[:2])[..., None]
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=88)
        contents.append(file.getvalue())
    for i in range(count):
        path = folder / f"class{i % 2}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[i % len(contents)])


def train(folder: Path, args: argparse.Namespace) -> dict:
    """Trains a run and returns the last values of its epoch."""
    command = [sys.executable, "train.py", "--config", "configs/imagenet.py"]
    values = {
        "model": args.model,
        "batch_size": args.batch,
        "dtype": args.dtype,
        "num_epochs": 1,
        "max_steps_per_epoch": args.steps,
        "eval.passes": 1,
        "data.path": str(folder),
        "data.num_workers": args.workers,
    }
    command += [f"--config.{name}={value}" for name, value in values.items()]
    if args.size != 224:
        for name, value in (("crop_size", args.size), ("image_size", 2 * args.size)):
            command.append(f"--config.data.{name}={value}")
    command += ["--workdir", str(folder / "run")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, lines) if "epoch" in row)


def device() -> str:
    """Returns the device's kind, by a separate process: the memory of a GPU is for the run."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="side of the crops in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--output", type=Path, help="CSV file, appended to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        write_images(folder / "train", args.batch * args.steps, rng)
        write_images(folder / "val", args.batch, rng)
        numbers = train(folder, args)
    row = {name: getattr(args, name) for name in ("model", "batch", "dtype", "workers", "steps")}
    row["device"] = device()
    row["images_per_second"] = round(numbers["images_per_second"], 1)
    row["data_wait"] = round(numbers["data_wait"], 1)
    row["limit"] = "loader" if row["data_wait"] > WAITS else "device"
    print(", ".join(f"{field} {row[field]}" for field in FIELDS))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()

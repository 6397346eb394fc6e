"""README's tables: baseline against antialiased ResNet-18 on the digits, several seeds.

    python benchmarks/digits.py [--seeds 10] [--first_seed 0] [--random_shift]
        [--dtype bfloat16] [--output FILE.csv]

Each run is `train.py` with `--config.seed=S`, in the same Python; finished runs are read, not
repeated. The CSV file has a row per run; a row of the same setting, model and seed is replaced.
Prints the table of this setting; `python docs/tables.py` writes it into the pages.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
MODELS = ("resnet18", "resnet18_lpf4")
COLUMNS = {"top1": "centred", "top1_shifted": "shifted", "consistency": "consistency"}
RUN = ("augmentation", "dtype", "jax", "model", "seed")
Row = dict[str, str]


def run(model: str, seed: int, augmentation: str, dtype: str, folder: Path) -> Row:
    """Trains one model, unless it is trained already, and returns its row."""
    workdir = folder / f"{model}_{augmentation}_{dtype}_seed{seed}"
    if not (workdir / "results.json").exists():
        command = [sys.executable, "train.py", f"--config=configs/digits_{model}.py"]
        command += [f"--config.seed={seed}", f"--config.data.augmentation={augmentation}"]
        command.append(f"--config.dtype={dtype}")
        subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True)
    results = json.loads((workdir / "results.json").read_text())
    versions = json.loads((workdir / "versions.json").read_text())
    numbers = {**results, **results["shift"]}
    facts = dict(zip(RUN, (augmentation, dtype, versions["jax"], model, str(seed)), strict=True))
    return {**facts, **{k: f"{numbers[k]:.2f}" for k in COLUMNS}}


def read(path: Path) -> list[Row]:
    """Returns the rows of a results file, or no rows without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows, keeping those of other runs."""
    runs = {tuple(row[key] for key in RUN): row for row in [*read(path), *rows]}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            runs[key] for key in sorted(runs, key=lambda run: (*run[:-1], int(run[-1])))
        )


def table(rows: Sequence[Row], augmentation: str, version: str, dtype: str = "float32") -> str:
    """Returns means ± standard deviations over the seeds and the range, of one setting."""
    lines = [
        f"| model | seeds | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for model in MODELS:
        wanted = (augmentation, dtype, version, model)
        runs = [row for row in rows if tuple(row[key] for key in RUN[:-1]) == wanted]
        cells = [_cell([float(run[key]) for run in runs]) for key in COLUMNS]
        lines.append(f"| `{model}` | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    spread = np.std(values, ddof=1)
    return f"{np.mean(values):.1f} ± {spread:.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first_seed", type=int, default=0, help="skip earlier seeds")
    parser.add_argument("--random_shift", action="store_true", help="train on shifted crops")
    parser.add_argument("--dtype", default="float32", help="config.dtype")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/digits_table")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/measured/digits.csv")
    args = parser.parse_args()
    augmentation = "random_shift" if args.random_shift else "center_crop"
    seeds = range(args.first_seed, args.seeds)
    write(
        args.output,
        [run(m, s, augmentation, args.dtype, args.folder) for m in MODELS for s in seeds],
    )
    print(table(read(args.output), augmentation, jax.__version__, args.dtype))


if __name__ == "__main__":
    main()

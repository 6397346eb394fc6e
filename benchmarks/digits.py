"""The table of the README: baseline against antialiased ResNet-18 on the digits, several seeds.

    python benchmarks/digits.py [--seeds 3] [--random_shift] [--folder runs/digits_table]

Each run is `train.py` with `--config.seed=S`; runs that are already done are read, not repeated.
Prints a Markdown table of means ± standard deviations over the seeds, in percent.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NETS = ("resnet18", "resnet18_lpf4")
COLUMNS = {"top1": "centred", "top1_shifted": "shifted", "consistency": "consistency"}


def run(net: str, seed: int, random_shift: bool, folder: Path) -> dict:
    workdir = folder / f"{net}_{'random_shift_' if random_shift else ''}seed{seed}"
    if not (workdir / "results.json").exists():
        command = [sys.executable, "train.py", f"--config=configs/digits_{net}.py"]
        augmentation = "random_shift" if random_shift else "center_crop"
        command += [f"--config.seed={seed}", f"--config.data.augmentation={augmentation}"]
        subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True)
    results = json.loads((workdir / "results.json").read_text())
    return {**results, **results.get("shift", {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random_shift", action="store_true", help="train on shifted crops, too")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/digits_table")
    args = parser.parse_args()
    rows = []
    for net in NETS:
        runs = [run(net, seed, args.random_shift, args.folder) for seed in range(args.seeds)]
        values = [[r[key] for r in runs] for key in COLUMNS]
        cells = [f"{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}" for v in values]
        rows.append(f"| `{net}` | " + " | ".join(cells) + " |")
    print(f"| net | {' | '.join(COLUMNS.values())} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

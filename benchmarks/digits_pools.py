"""The table of docs/pools.md: ResNet-18 with each pool, on the digits.

    python benchmarks/digits_pools.py [--pools aps_l2,lps] [--seeds 1] [--epochs 5]

Each run is `train.py --config configs/digits_pools.py:POOL` with `--config.seed=S`; then the
trained model is measured on rolled images, unchanged and with periodic padding in every layer.
Existing runs and results are read, not repeated. Prints a Markdown table in percent: means, and
standard deviations of several seeds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import aa_flax
from aa_flax.data.digits import Digits
from aa_flax.ops import circular_padding
from configs.digits_pools import get_config

ROOT = Path(__file__).parents[1]
POOLS = (
    "none", "binomial4", "average", "gaussian5", "kaiser7", "ideal", "learned3",
    "aps_l2", "aps_lpf3", "lps",
)  # fmt: skip
COLUMNS = ("accuracy", "shifted", "consistency", "rolled", "rolled, periodic padding")


def trained(pool: str, seed: int, flags: list[str], folder: Path) -> Path:
    workdir = folder / f"{pool}_seed{seed}"
    if not (workdir / "results.json").exists():
        command = [sys.executable, "train.py", f"--config=configs/digits_pools.py:{pool}"]
        command += [f"--config.seed={seed}", *flags, f"--workdir={workdir}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return workdir


def measured(workdir: Path, pool: str) -> dict[str, float]:
    """Returns percentages by column."""
    file = workdir / "rolled.json"
    if not file.exists():
        file.write_text(json.dumps(rolled(workdir, pool)))
    results = json.loads((workdir / "results.json").read_text())
    shift = results["shift"]
    return {
        "accuracy": results["top1"],
        "shifted": shift["top1_shifted"],
        "consistency": shift["consistency"],
        **json.loads(file.read_text()),
    }


def rolled(workdir: Path, pool: str) -> dict[str, float]:
    """Returns the consistency of rolled images, without and with periodic padding."""
    config = get_config(pool)
    data, options = config.data, dict(config.model_options)
    model = aa_flax.create_model(
        config.model, pool=config.pool or None, pretrained=workdir, **options
    )
    sizes: dict[str, Any] = {"crop_size": data.crop_size, "image_size": data.image_size}
    sizes |= {"resize_size": 0, "shift_range": 32, "batch_size": config.eval.batch_size}

    def consistency() -> float:
        source = Digits("val", data.image_size)
        results = aa_flax.evaluate(model, source, ("circular",), **sizes)
        return results["circular"]["consistency"]

    plain = consistency()
    with circular_padding():
        periodic = consistency()
    return {"rolled": plain, "rolled, periodic padding": periodic}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", default=",".join(POOLS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/digits_pools")
    args = parser.parse_args()
    flags = [f"--config.num_epochs={args.epochs}"]
    print(f"| pool | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 1)}|", flush=True)
    for pool in args.pools.split(","):
        folders = [trained(pool, seed, flags, args.folder) for seed in range(args.seeds)]
        runs = [measured(folder, pool) for folder in folders]
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        print(f"| `{pool}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

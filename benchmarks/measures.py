"""The time of each measure, compared with a pass over centre crops: docs/benchmarks/measures.md.

    python benchmarks/measures.py [--images 64 192] [--rounds 3] [--output FILE]

Evaluates ResNet-18 with 4-tap filters and random weights on some digits, crops of 64 pixels, with
each measure. The time per image is the difference of the times for the two numbers of images over
that of these numbers; *at the start* is the remainder, mostly compilation. All measures run one
after another in each round. The table has medians, and the range of the time per image.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import jax
import numpy as np
from flax import nnx

import aa_flax
from aa_flax.data.digits import Digits

CROP, REACH = 64, 8
MEASURES: dict[str, Any] = {  # with their options
    **dict.fromkeys(("accuracy", "shift", "circular", "subpixel", "jitter", "worst_case"), True),
    **dict.fromkeys(("worst_within", "worst_circular", "stability"), 2),
    "realistic": 0.125,
    "worst_realistic": 1,
    **dict.fromkeys(("diagonal", "equivariance", "lee", "aliasing"), True),
}


class First(Digits):
    """The first digits of a split."""

    def __init__(self, count: int):
        super().__init__("val", 108)
        self.count = count

    def __len__(self) -> int:
        return self.count


def seconds(model: nnx.Module, measure: str, count: int) -> float:
    """Returns the time of an evaluation, compilation included."""
    jax.clear_caches()
    sizes: dict[str, Any] = {"crop_size": CROP, "shift_range": REACH, "resize_size": CROP + REACH}
    options = {} if MEASURES[measure] is True else {measure: MEASURES[measure]}
    began = perf_counter()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        aa_flax.evaluate(model, First(count), [measure], output=output, **sizes, **options)
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=(64, 192))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    aa_flax.tune_cpu()
    model: Any = aa_flax.create_model("resnet18_lpf4", num_classes=10)
    times = {name: np.empty((args.rounds, 2)) for name in args.measures}
    for i in range(args.rounds):
        for name in args.measures:
            times[name][i] = [seconds(model, name, count) for count in args.images]
    lines = ["| measure | ms per image | range | s at the start |", "|---" * 4 + "|"]
    few, many = args.images
    for name, rounds in times.items():
        each = (rounds[:, 1] - rounds[:, 0]) / (many - few)
        title = name if MEASURES[name] is True else f"{name}={MEASURES[name]}"
        span = f"{1000 * each.min():.1f} to {1000 * each.max():.1f}"
        start = np.median(rounds[:, 0] - few * each)
        lines.append(f"| `{title}` | {1000 * np.median(each):.1f} | {span} | {start:.1f} |")
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

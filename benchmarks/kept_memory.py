"""The effect of keeping the memory of a pass for the next one (`aa_flax.tune_cpu`).

    python benchmarks/kept_memory.py [--models resnet18_lpf4 ...] [--modes forward ...]
        [--batch 8 48] [--torch_python PATH] [--rounds 5]

Our models and torch's, eager and compiled, run by default and with memory kept, in separate
processes that alternate. The ratio is the default time over that with memory kept: the median over
the rounds, and in brackets the minimum and the maximum.
"""

import argparse
import itertools
import statistics
import sys

from models import Worker, alternate
from models_table import OURS, THEIRS, Setting, ratio

# Without oneDNN, which `tune_cpu` would enable as well.
SIDES = (
    (OURS, "without_onednn"),
    (THEIRS, "eager_channels_last"),
    (THEIRS, "compile_channels_last"),
)


def measure(setting: Setting, side: tuple[str, str], args: argparse.Namespace) -> str:
    """Returns a row of the table."""
    python = sys.executable if side[0] == OURS else args.torch_python
    workers = [Worker(*side, python, keeps_memory) for keeps_memory in (False, True)]
    for worker in workers:
        worker.prepare(setting)
    alternate(workers, args.rounds, args.turn)
    for worker in workers:
        worker.close()
    name = f"| {setting.model} | {setting.mode} | {setting.batch} | {' '.join(side)} |"
    if error := next((worker.error for worker in workers if worker.error), ""):
        return f"{name} failed: {error} | | | |"
    times = " | ".join(f"{statistics.median(worker.times):.0f}" for worker in workers)
    peaks = ", ".join(f"{worker.facts['peak_mib']:.0f}" for worker in workers)
    return f"{name} {times} | {ratio(*(worker.times for worker in workers))} | {peaks} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18_lpf4"])
    modes = ("forward", "training", "consistency")
    parser.add_argument("--modes", nargs="+", choices=modes, default=["forward"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 48])
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--torch_python", default=sys.executable, help="interpreter with torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.5, help="minimum seconds of each turn")
    args = parser.parse_args()
    print("| model | pass | batch | side | as it is, ms | kept, ms | ratio | peak, MiB |")
    print("|---" * 8 + "|")
    for mode, batch, model in itertools.product(args.modes, args.batch, args.models):
        setting = Setting(model, mode, batch, args.size, "float32")
        for side in SIDES:
            print(measure(setting, side, args), flush=True)


if __name__ == "__main__":
    main()

"""Models compared with the PyTorch original: time, compilation and memory of each kind of pass.

    python benchmarks/models.py --output RESULTS.csv [--models 'resnet*_lpf4' ...] [--modes forward]
        [--batch 8 ...] [--precision float32 ...] [--torch_python PATH] [--figure FILE.png]

The passes: `forward`; `training`, a whole update; `consistency`, the evaluation's pairs of crops,
of two batches of images. Names with `_lpf<k>` are compared with the package antialiased-cnns 0.3,
others with torchvision's models. In each round, our model and every variant of torch run one after
another, each alone in a new process, compiled and warm; every other round in reverse. Variants of
torch that are 1.3 times slower than its best after two rounds are omitted from the other rounds.

A setting's rows are added to the CSV file as soon as it is measured. Run again, the command
measures the missing settings (for these versions, on this device), and prints the tables of
`models_table.py`. No setting starts after `--seconds`; the number of those left is printed. With
`--keep_memory`, both sides keep the memory of a pass for the next, ours by `aa_flax.tune_cpu`,
which also gives convolutions to oneDNN, except in the variant `without_onednn`. With `--keep_memory
ours`, only our side does, as this package's commands and torch's programs run.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from models_table import OURS, THEIRS, Setting, append, figure, groups, read, report
from worker import KEEPS_MEMORY

HERE = Path(__file__).parent
SCRIPTS = {OURS: HERE / "jax_worker.py", THEIRS: HERE / "torch_worker.py"}
VARIANTS = ("eager", "eager_channels_last", "compile", "compile_channels_last")
OUR_VARIANTS = ("default", "remat", "definitions", "cpu_kernels", "without_onednn")
TOO_SLOW = 1.3  # times the best time of torch
UNFINISHED = 75  # the exit code if settings are left
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else the peak is all of the memory
# `aa_flax.tune_cpu` as environment variables of glibc; the last one has `jax_worker.py` call it.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", KEEPS_MEMORY: "1"}


class Worker:
    """A process that measures on request; see `worker.py`."""

    def __init__(self, framework: str, variant: str, python: str, keeps_memory: bool = False):
        self.framework, self.variant = framework, variant
        self.error = ""
        self.times: list[float] = []
        self.facts: dict[str, Any] = {}
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment |= ENVIRONMENT | (KEPT if keeps_memory else {})
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            [python, str(SCRIPTS[framework]), variant],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer; it has `error` if the task failed or the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_message()}
        self.error = answer.get("error", "")
        self.facts |= answer
        return answer

    def prepare(self, setting: Setting) -> None:
        self.ask({**setting._asdict(), "variant": self.variant})

    def turn(self, seconds: float) -> None:
        answer = self.ask({"seconds": seconds})
        if not self.error:
            self.times.append(answer["milliseconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.stderr.close()

    def _last_message(self) -> str:
        code = self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().strip().splitlines()
        return f"ended with code {code}: {lines[-1][:150] if lines else 'no message'}"


def alternate(workers: Sequence[Worker], rounds: int, turn: float) -> None:
    """Runs each worker once a round, every other round in reverse; ends at the first error."""
    for number in range(rounds):
        for worker in workers if number % 2 == 0 else workers[::-1]:
            worker.turn(turn)
            if worker.error:
                return


@dataclass
class Side:
    """A variant and its measurements, each round alone in a new process."""

    framework: str
    variant: str
    times: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def measure(self, setting: Setting, python: str, keeps_memory: bool, seconds: float) -> None:
        worker = Worker(self.framework, self.variant, python, keeps_memory)
        worker.prepare(setting)
        if not worker.error:
            worker.turn(seconds)
        worker.close()
        self.times += worker.times
        self.facts = worker.facts | self.facts  # the compilation time is that of the first round
        self.error = worker.error

    def is_too_slow(self, others: Iterable["Side"]) -> bool:
        """Checks whether a variant of torch is too slow to be the best."""
        if self.framework == OURS:
            return False
        best = min(min(other.times) for other in others if other.framework == THEIRS)
        return min(self.times) > TOO_SLOW * best


def measure(setting: Setting, args: argparse.Namespace, pythons: dict[str, str]) -> list[dict]:
    """Returns the rows of a setting, one for each variant."""
    sides = [Side(OURS, v) for v in our_variants(args, setting)]
    sides += [Side(THEIRS, v) for v in their_variants(args, setting)]
    started, kept = time.strftime("%Y-%m-%dT%H:%M:%S"), kept_by(args)
    for number in range(args.rounds):
        alive = [side for side in sides if not side.error]
        if number >= 2:
            alive = [side for side in alive if not side.is_too_slow(alive)]
        for side in alive if number % 2 == 0 else alive[::-1]:
            side.measure(setting, pythons[side.framework], side.framework in kept, args.turn)
    return [
        {
            "started": started,
            **setting._asdict(),
            "framework": side.framework,
            "variant": side.variant,
            "rounds_ms": ";".join(f"{ms:.4g}" for ms in side.times),
            "compile_s": f"{side.facts.get('compile_s', 0):.2f}",
            "peak_mib": f"{side.facts.get('peak_mib', 0):.0f}",
            "alternating": "no",
            "error": side.error,
        }
        for side in sides
    ]


def our_variants(args: argparse.Namespace, setting: Setting) -> list[str]:
    return [v for v in args.our_variants if v != "remat" or setting.mode == "training"]


def their_variants(args: argparse.Namespace, setting: Setting) -> list[str]:
    """Returns the variants of torch; those that compile only for `--compile_models`."""
    compiles = any(fnmatchcase(setting.model, pattern) for pattern in args.compile_models)
    return [v for v in args.variants if compiles or not v.startswith("compile")]


def settings(args: argparse.Namespace) -> list[Setting]:
    """Returns every combination, model by model."""
    from aa_flax import list_models

    models = list(dict.fromkeys(model for pattern in args.models for model in list_models(pattern)))
    rest = itertools.product(args.modes, args.batch, args.size, args.precision)
    return [Setting(model, *others) for others in rest for model in models]


def kept_by(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the sides that keep their memory."""
    return {None: (), "ours": (OURS,), "both": (OURS, THEIRS)}[args.keep_memory]


def identities(pythons: dict[str, str], kept: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns versions and device of both sides."""
    found = {}
    for framework, python in pythons.items():
        worker = Worker(framework, "", python, framework in kept)
        found[framework] = worker.ask({"identity": True})
        if worker.error:
            sys.exit(f"error: {python} cannot run {SCRIPTS[framework].name}: {worker.error}")
        worker.close()
    return found


def is_measured(setting: Setting, args: argparse.Namespace, identity: dict) -> bool:
    wanted = {(OURS, v) for v in our_variants(args, setting)}
    wanted |= {(THEIRS, v) for v in their_variants(args, setting)}
    versions = {(framework, facts["versions"]) for framework, facts in identity.items()}
    return any(
        group.setting == setting
        and wanted <= group.has_run
        and {(row["framework"], row["versions"]) for row in group.rows} == versions
        and group.rows[0]["device"] == identity[OURS]["device"]
        for group in groups(read(args.output))
    )


def run(args: argparse.Namespace) -> int:
    """Measures the settings that the file lacks; returns the number of those left."""
    began = time.monotonic()
    pythons = {OURS: sys.executable, THEIRS: args.torch_python}
    identity = identities(pythons, kept_by(args))
    todo = [s for s in settings(args) if not is_measured(s, args, identity)]
    for number, setting in enumerate(todo):
        if args.seconds and time.monotonic() - began > args.seconds:
            return len(todo) - number
        rows = measure(setting, args, pythons)
        for row in rows:
            row |= identity[row["framework"]]
        append(args.output, rows)
        (group,) = groups({k: str(v) for k, v in row.items()} for row in rows)
        errors = "".join(f"; {w['variant']}: {w['error']}" for w in rows if w["error"])
        progress = f"{number + 1} of {len(todo)}, {time.monotonic() - began:.0f} s"
        print(
            f"{setting}: torch / ours {group.ratio() or 'not known'} [{progress}]{errors}",
            flush=True,
        )
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="CSV file, appended to")
    parser.add_argument("--models", nargs="+", default=["resnet18_lpf4"], help="names or patterns")
    modes = ("forward", "training", "consistency")
    parser.add_argument("--modes", nargs="+", choices=modes, default=["forward"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8])
    parser.add_argument("--size", nargs="+", type=int, default=[224], help="side in pixels")
    precisions = ("float32", "bfloat16")
    parser.add_argument("--precision", nargs="+", choices=precisions, default=["float32"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="torch's")
    parser.add_argument(
        "--compile_models", nargs="*", default=["*"], help="models that torch compiles as well"
    )
    parser.add_argument("--our_variants", nargs="+", choices=OUR_VARIANTS, default=["default"])
    parser.add_argument("--torch_python", default=sys.executable, help="interpreter with torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=2, help="minimum seconds of each round")
    parser.add_argument(
        "--keep_memory", nargs="?", const="both", choices=("both", "ours"), help="between passes"
    )
    parser.add_argument("--seconds", type=float, help="start no setting after this time")
    parser.add_argument("--figure", type=Path, help="plot of the ratios, e.g. models.png")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    left = run(args)
    rows = read(args.output)
    print(f"\n{report(rows)}")
    if args.figure:
        figure(rows, args.figure)
    if left:
        print(f"\nleft: {left} settings; the same command resumes")
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    main()

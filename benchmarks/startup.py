"""Startup times: imports, a random model, first logits, compiling a training step.

python benchmarks/startup.py [--models NAME ...] [--torch_python PYTHON] [--training_step]
    [--repeats 5]

Each time is that of a fresh process: the median, the smallest and the largest. `--torch_python` is
an interpreter with torch and the original package, to measure these as well; `--training_step`
compiles the step of densenet121_lpf4, which takes long. First logits are those of the first model.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from aa_flax import list_models

MODELS = ("resnet50_lpf4", "densenet201_lpf4")
OURS = "import time, jax, aa_flax; from flax import nnx; "
CREATE = "model = aa_flax.create_model({model!r}); jax.block_until_ready(nnx.state(model))"
LOGITS = (
    "forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)); "
    "forward(state, jax.numpy.zeros((1, 224, 224, 3))).block_until_ready()"
)
STEP = """
import optax
from aa_flax.runtime import data_mesh
from aa_flax.training.step import init_state, make_train_step
model, mesh = aa_flax.create_model("densenet121_lpf4"), data_mesh()
optimizer, schedule = optax.sgd(0.1, momentum=0.9), optax.constant_schedule(0.1)
step = make_train_step(model, optimizer, lambda b: b["image"], schedule=schedule, mesh=mesh)
state = init_state(model, optimizer, mesh)
image = jax.ShapeDtypeStruct((8, 224, 224, 3), "float32")
lowered = step.lower(state, {"image": image, "label": jax.ShapeDtypeStruct((8,), "int32")})
"""
TORCH_MODEL = "antialiased_cnns.{model}(filter_size=4)"


def seconds(python: str, setup: str, timed: str, cache: Path | None = None) -> float:
    """Returns the time of `timed` in a fresh process, after `setup`."""
    code = f"import time\n{setup}\nstart = time.perf_counter()\n{timed}\n"
    code += "print(time.perf_counter() - start)"
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name, None)
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # as the commands do
    done = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def ours(
    models: Sequence[str], training_step: bool, cache: Path
) -> dict[str, tuple[str, str, Path | None]]:
    """Returns our timings by name: setup, timed code, compilation cache."""
    create, first = (
        OURS + CREATE.format(model=models[0]),
        "graphdef, state = nnx.split(model)\n" + LOGITS,
    )
    tasks: dict[str, tuple[str, str, Path | None]] = {
        "import jax, flax.nnx": ("", "import jax, flax.nnx", None),
        "import aa_flax": ("", "import aa_flax", None),
    }
    for model in models:
        tasks[f"create_model {model}"] = (OURS, CREATE.format(model=model), None)
    tasks[f"first logits of {models[0]}"] = (create, first, None)
    tasks[f"first logits of {models[0]}, compiled before"] = (create, first, cache)
    if training_step:
        tasks["compile densenet121_lpf4's training step"] = (OURS + STEP, "lowered.compile()", None)
    return tasks


def theirs(models: Sequence[str]) -> dict[str, tuple[str, str, None]]:
    imports = "import torch, benchmarks.reference; import antialiased_cnns"
    tasks = {"torch: import torch": ("", "import torch", None)}
    for model in models:
        tasks[f"torch: {model}"] = (imports, TORCH_MODEL.format(model=model[:-5]), None)
    model = f"{imports}; model = {TORCH_MODEL.format(model=models[0][:-5])}.eval()"
    logits = "with torch.no_grad(): model(torch.zeros(1, 3, 224, 224))"
    return tasks | {f"torch: first logits of {models[0]}": (model, logits, None)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="names that end in _lpf4")
    parser.add_argument("--torch_python", help="an interpreter with torch and antialiased-cnns")
    parser.add_argument("--training_step", action="store_true", help="compile a training step")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    known = list_models("*_lpf4")
    if unknown := [model for model in options.models if model not in known]:
        parser.error(f"no such models: {', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as cache:
        tasks = [
            (name, partial(seconds, sys.executable, *task))
            for name, task in ours(options.models, options.training_step, Path(cache)).items()
        ]
        if options.torch_python:
            tasks += [
                (name, partial(seconds, options.torch_python, *task))
                for name, task in theirs(options.models).items()
            ]
        print("| | median, s | smallest | largest |\n|---|---|---|---|")
        for name, run in tasks:
            if "before" in name:
                run()  # writes the compilation cache
            times = [run() for _ in range(options.repeats)]
            print(
                f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |"
            )


if __name__ == "__main__":
    main()

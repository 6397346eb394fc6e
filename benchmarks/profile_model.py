"""The time of a forward pass or a training step, by compiled operation.

    python benchmarks/profile_model.py resnet50_lpf4 training [--batch 8] [--size 224] [--rows 20]
        [--precision bfloat16]

Traces three steps and prints two Markdown tables: time by kind of operation, and the slowest
operations with the bytes that each must move (its operands and its result, once each) and their
time at the bandwidth of a copy, measured first. An operation far above it is compute-bound or
inefficient; an elementwise one should be near it. Times are sums over the devices' streams.
`backward` marks operations that JAX transposed. Memory is kept between steps, as in the commands;
otherwise page faults count as time of the operation that writes a large result.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from timing import median_ms

from aa_flax import create_model, tune_cpu
from aa_flax.data.pixels import normalise
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training.step import init_state, make_train_step

STEPS = 3
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8}  # other types have it at the end of their names


class Operation(NamedTuple):
    """An instruction of a compiled program."""

    kind: str
    shape: str
    origin: str
    mebibytes: float


def forward_pass(
    model: Classifier, batch: dict[str, np.ndarray]
) -> tuple[str, Callable[[], object]]:
    """Returns the compiled program as text, and a function that runs it to completion."""
    graph, state = nnx.split(model)
    images = normalise(jnp.asarray(batch["image"]))
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, images).compile()
    return compiled.as_text() or "", lambda: jax.block_until_ready(compiled(state, images))


def training_step(
    model: Classifier, batch: dict[str, np.ndarray]
) -> tuple[str, Callable[[], object]]:
    """Returns the same as `forward_pass` for an update by SGD with momentum and weight decay."""
    mesh = data_mesh(jax.devices()[:1])
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-3, 0.9))
    step = make_train_step(
        model,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(1e-3),
        mesh=mesh,
    )
    state, on_device = [init_state(model, optimizer, mesh)], put_batch(batch, mesh)
    compiled = step.lower(state[0], on_device).compile()  # pyright: ignore

    def run() -> None:
        state[0], metrics = compiled(state[0], on_device)
        jax.block_until_ready(metrics)

    return compiled.as_text() or "", run


def mebibytes(shape: str) -> float:
    """Returns the size of an array or a tuple of a program, such as `f32[8,56,56,64]{3,2,1,0}`."""
    bits = 0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        width = BITS.get(kind) or int((re.search(r"\d+$", kind) or ["0"])[0])
        bits += width * prod(int(n) for n in sizes.split(",") if n)
    return bits / 8 / 2**20


def operations(program: str) -> dict[str, Operation]:
    """Returns all instructions of a compiled program by name."""
    pattern = r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)"
    lines = [(line, re.match(pattern, line)) for line in program.splitlines()]
    found = [(line, *match.groups()) for line, match in lines if match]
    sizes = {name: mebibytes(shape) for _, name, shape, _, _ in found}
    result = {}
    for line, name, shape, opcode, operands in found:
        origin = re.search(r'op_name="([^"]*)"', line)
        kind = opcode if opcode != "fusion" else re.sub(r"[.\d]+$", "", name)
        moved = sizes[name] + sum(sizes.get(o, 0.0) for o in re.findall(r"[\w.\-]+", operands))
        result[name] = Operation(kind, shape, origin[1] if origin else "", moved)
    return result


def traced_ms(run: Callable[[], object], names: dict[str, Operation]) -> Counter[str]:
    """Returns the milliseconds per step of each named operation."""
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
    times: Counter[str] = Counter()
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in names:
                    times[event.name] += event.duration_ns / 1e6 / STEPS
    return times


def copy_bandwidth() -> float:
    """Returns the MiB that a copy larger than the caches reads and writes per millisecond."""
    x = jnp.zeros((64, 2**20), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / 2**20 / median_ms(lambda: jax.block_until_ready(copy(x)), 5)


def kinds_table(times: Counter[str], found: dict[str, Operation]) -> list[str]:
    kinds: Counter[str] = Counter()
    for name, ms in times.items():
        side = " backward" if "transpose(" in found[name].origin else ""
        kinds[found[name].kind + side] += ms
    total = sum(kinds.values())
    rows = [f"| {ms:.1f} | {ms / total:.0%} | {kind} |" for kind, ms in kinds.most_common(15)]
    return ["| ms | fraction | kind |", "|---|---|---|", *rows]


def dearest_table(times: Counter[str], found: dict[str, Operation], rows: int) -> list[str]:
    bandwidth = copy_bandwidth()
    table = [f"| ms | MiB | ms at {bandwidth / 1.024:.1f} GiB/s | operation | result | origin |"]
    table.append("|---" * 6 + "|")
    for name, ms in times.most_common(rows):
        op = found[name]
        shape, origin = re.sub(r"\{[^}]*\}", "", op.shape)[:40], op.origin[-70:].replace("|", "/")
        cells = [f"{ms:.1f}", f"{op.mebibytes:.1f}", f"{op.mebibytes / bandwidth:.1f}", name]
        table.append(f"| {' | '.join([*cells, shape, origin])} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("what", choices=("forward", "training"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    precisions = ("float32", "bfloat16")
    parser.add_argument("--precision", choices=precisions, default="float32")
    parser.add_argument("--rows", type=int, default=20, help="number of slowest operations")
    args = parser.parse_args()
    tune_cpu()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8)
    batch = {"image": images, "label": rng.integers(0, 1000, args.batch).astype(np.int32)}
    model = create_model(args.model, dtype=args.precision)
    program, run = (forward_pass if args.what == "forward" else training_step)(model, batch)
    found = operations(program)
    times = traced_ms(run, found)
    where = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    size = f"batch {args.batch}, {args.size} pixels, {args.precision}"
    print(f"{args.model}, {args.what}, {size}: {sum(times.values()):.0f} ms; {where}\n")
    print("\n".join([*kinds_table(times, found), "", *dearest_table(times, found, args.rows)]))


if __name__ == "__main__":
    main()

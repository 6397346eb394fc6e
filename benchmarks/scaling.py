"""Communication of a training step between devices, and the resulting speed of 8 and 64 GPUs.

    python benchmarks/scaling.py [--model resnet50_lpf4] [--batch 4] [--size 64]
        [--devices 1 2 4 8] [--gpu_rate 4013] [--loader_rate 382] ...

First, the step is compiled for each number of virtual CPU devices in a separate process, with the
same batch on each device (weak scaling). The bytes of every collective operation are counted in the
compiled program, and compared with those of a ring for the gradients alone. The time is that of all
devices on the cores of this machine: per image, it is the cost of partitioning, not the speed of
devices. Second, the throughput of clusters is computed from those bytes and from the values of the
flags, which are printed. Both are Markdown tables for docs/scaling.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from communication import Collective, collectives, sent

JPEG_BYTES = 110_000  # mean of ImageNet's photographs: 1.28 million are 138 GB
CLUSTERS = (1, 8, 64)
GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Step:
    """A compiled training step on a number of devices."""

    devices: int
    parameter_bytes: int
    operations: tuple[Collective, ...]
    seconds: float

    @property
    def payload(self) -> int:
        """Returns the bytes that are reduced, gathered or moved."""
        return sum(operation.num_bytes for operation in self.operations)


def measure(args: argparse.Namespace) -> dict:
    """Compiles and times the step in this process, which has the step's number of devices."""
    import jax
    import numpy as np
    import optax

    from aa_flax import create_model
    from aa_flax.data.pixels import normalise
    from aa_flax.runtime import data_mesh, put_batch
    from aa_flax.training.step import init_state, make_train_step

    count, mesh = args.batch * args.count, data_mesh()
    assert mesh.size == args.count
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
    model = create_model(args.model)
    train_step: Any = make_train_step(
        model,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(0.1),
        mesh=mesh,
        batch_stat_groups=args.count if args.own_statistics else 1,
    )
    state = init_state(model, optimizer, mesh)
    images = np.random.default_rng(0).integers(0, 256, (count, args.size, args.size, 3), np.uint8)
    batch = put_batch({"image": images, "label": np.arange(count, dtype=np.int32)}, mesh)
    program = train_step.lower(state, batch).compile()
    times = []
    for _ in range(args.steps + 1):
        began = time.perf_counter()
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return {
        "devices": args.count,
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "operations": [(c.kind, c.num_bytes) for c in collectives(program.as_text())],
        "seconds": statistics.median(times[1:]),
        "where": f"jax {jax.__version__}, {len(os.sched_getaffinity(0))} CPU cores",
    }


def compiled_for(devices: int, where: dict[str, None]) -> Step:
    """Runs `measure` in a separate process, and adds its versions to `where`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--count", str(devices)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    where[found.pop("where")] = None
    print(f"{devices} devices: {found['seconds']:.2f} s a step", file=sys.stderr, flush=True)
    operations = tuple(Collective(*pair) for pair in found.pop("operations"))
    return Step(operations=operations, **found)


def measured_table(steps: list[Step], batch: int) -> str:
    lines = [
        "| devices | operations | reduced, MB | of the parameters | sent by each, MB "
        "| a ring, for gradients alone, MB | ms an image |",
        "|---" * 7 + "|",
    ]
    for step in steps:
        n = step.devices
        ring = Collective("all-reduce", step.parameter_bytes).sent(n)
        lines.append(
            f"| {n} | {len(step.operations)} | {step.payload / 1e6:.2f} "
            f"| {step.payload / step.parameter_bytes:.3f} "
            f"| {sent(step.operations, n) / 1e6:.1f} | {ring / 1e6:.1f} "
            f"| {1e3 * step.seconds / n / batch:.1f} |"
        )
    return "\n".join(lines)


def throughput(devices: int, payload: int, in_order: int, args: argparse.Namespace) -> dict:
    """Returns images per second of a number of GPUs, with all or no communication hidden.

    Args:
        payload: bytes that each step reduces. in_order: number of operations that depend on one
            another, each of which adds its latency.
    """
    compute = args.gpu_batch / args.gpu_rate
    link = args.host_link if devices > GPUS_PER_HOST else args.gpu_link
    transfer = Collective("all-reduce", payload).sent(devices) / (1e9 * link)
    latency = in_order * 1e-6 * args.latency if devices > 1 else 0
    images = devices * args.gpu_batch
    return {
        "best": images / (max(compute, transfer) + latency),
        "worst": images / (compute + transfer + latency),
        "transfer": transfer,
        "latency": latency,
    }


def projected_table(step: Step, args: argparse.Namespace) -> str:
    lines = [
        "| GPUs | sending, ms | waiting, ms | images/s | of linear | read, MB/s "
        "| to the GPUs, MB/s | cores that decode, a host |",
        "|---" * 8 + "|",
    ]
    for devices in CLUSTERS:
        found = throughput(devices, step.payload, len(_in_order(step)), args)
        best, worst, linear = found["best"], found["worst"], devices * args.gpu_rate
        hosts = -(-devices // GPUS_PER_HOST)
        to_gpus = best * args.gpu_size**2 * 3 / 1e6
        lines.append(
            f"| {devices} | {1e3 * found['transfer']:.1f} | {1e3 * found['latency']:.1f} "
            f"| {worst:,.0f} to {best:,.0f} | {100 * worst / linear:.0f} to "
            f"{100 * best / linear:.0f} % | {best * JPEG_BYTES / 1e6:,.0f} | {to_gpus:,.0f} "
            f"| {best / hosts / args.loader_rate:.0f} |"
        )
    return "\n".join(lines)


def _in_order(step: Step) -> list[Collective]:
    """Returns the operations of batch statistics, for which the next layer waits.

    GPUs send gradients together; the statistics of a layer have one value per channel.
    """
    return [operation for operation in step.operations if operation.num_bytes <= 4 * 2048 * 2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50_lpf4")
    parser.add_argument("--batch", type=int, default=4, help="images per virtual device")
    parser.add_argument("--size", type=int, default=64, help="side in pixels")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--own_statistics", action="store_true", help="batch_stat_groups: one per device"
    )
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    cluster = parser.add_argument_group("a cluster of hosts with eight GPUs")
    cluster.add_argument("--gpu_rate", type=float, default=4013, help="images/s of a single GPU")
    cluster.add_argument("--gpu_batch", type=int, default=264, help="images per GPU and step")
    cluster.add_argument("--gpu_size", type=int, default=224, help="side in pixels")
    cluster.add_argument(
        "--gpu_link", type=float, default=450, help="GB/s that a GPU sends within a host"
    )
    cluster.add_argument(
        "--host_link", type=float, default=12.5, help="GB/s that a GPU sends between hosts"
    )
    cluster.add_argument("--latency", type=float, default=20, help="µs per operation")
    cluster.add_argument("--loader_rate", type=float, default=382, help="images/s of a core")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.count:
        print(json.dumps(measure(args)))
        return
    where: dict[str, None] = {}
    steps = [compiled_for(devices, where) for devices in args.devices]
    print(f"{args.model}, {args.batch} images a device, {args.size} pixels; {'; '.join(where)}\n")
    print(measured_table(steps, args.batch))
    print(
        f"\nA GPU alone: {args.gpu_rate:.0f} images/s at batch {args.gpu_batch}; it sends "
        f"{args.gpu_link:g} GB/s within a host of {GPUS_PER_HOST} and {args.host_link:g} GB/s "
        f"between hosts; {args.latency:g} µs an operation that others wait for "
        f"({len(_in_order(steps[-1]))} of them); {args.loader_rate:.0f} images/s a core decodes\n"
    )
    print(projected_table(steps[-1], args))


if __name__ == "__main__":
    main()

"""Compiles blurs and models for an absent GPU or TPU, and counts the bytes that programs move.

    python benchmarks/aot.py --device v5e:2x2                        # needs libtpu
    python benchmarks/aot.py --device "NVIDIA H100 80GB HBM3"        # needs jax[cuda13]

Nothing is run, so no number is a time. *Bytes* are the operands and results of every operation of
the compiled program on one device, except those in a TPU's fast memory: the memory traffic without
caches. *Over the least* divides them by one read of the input and one write of the result. Prints
Markdown: blurs by implementation, max pools, and the traffic of antialiased models compared with
their baselines, with the reductions between devices by type.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TF_CPP_MIN_LOG_LEVEL": "3"}
# Autotuning would run kernels on the device.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from aa_flax import blur_pool, create_model, ops
from aa_flax.config import OptimizerConfig
from aa_flax.data.pixels import normalise
from aa_flax.runtime import data_mesh, replicated
from aa_flax.training.step import make_optimizer, make_train_step
from aa_flax.weights.train_state import TrainState, split_model

MAPS = ((112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024))  # of ResNets at 224 pixels
MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "vgg16_bn")
BITS = re.compile(r"(?:pred|[a-z]+(\d+))\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter)(?:-start)?\(")
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}


class Program(NamedTuple):
    """Statistics of a compiled program."""

    gigabytes: float
    temporary: float  # gigabytes
    collectives: Counter[str]


def read(compiled: Any) -> Program:
    sizes: dict[str, int] = {}
    moved, in_entry, collectives = 0, False, Counter[str]()
    for line in compiled.as_text().splitlines():
        if line and not line[0].isspace():  # the start or the end of a computation
            in_entry = line.startswith("ENTRY")
        if sent := COLLECTIVE.search(line):  # also in computations that run concurrently
            types = Counter(re.findall(r"([a-z]+\d+)\[", sent[1]))
            collectives += Counter({f"{sent[2]} {kind}": 1 for kind in types})
        if in_entry and (found := INSTRUCTION.match(line)):
            name, shape, code, rest = found.groups()
            sizes[name] = num_bytes(shape)
            if code not in FREE and not code.endswith("-done"):
                operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
                moved += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Program(moved / 1e9, temporary / 1e9, collectives)


def num_bytes(shape: str) -> int:
    """Returns the bytes of the arrays of a type, without those in a TPU's fast memory, `S(1)`."""
    return sum(
        prod(int(n) for n in sizes.split(",") if n) * int(bits or 8) // 8
        for bits, sizes, layout in BITS.findall(shape)
        if "S(1)" not in layout
    )


def devices_of(name: str, count: int | None) -> list[Any]:
    """Returns devices that exist for the compiler only: a TPU topology, or a GPU by its name."""
    if re.match(r"v\d", name):
        return topologies.get_topology_desc(name, "tpu").devices[:count]
    topology = topologies.get_topology_desc(
        "", "cuda", target_config=gpu_description(name), topology=f"1x1x{count or 1}"
    )
    return topology.devices


def gpu_description(name: str) -> str:
    """Returns XLA's description of a GPU from JAX's CUDA plugin."""
    import jax_plugins  # pyright: ignore[reportMissingImports]

    pattern = rb'gpu_device_info \{[^\x00]{300,9000}?device_description_str: "([^"]+)"'
    found = {
        match[1].decode(): match[0].decode()
        for folder in jax_plugins.__path__
        for library in Path(folder).glob("xla_cuda*/xla_cuda_plugin.so")
        for match in re.finditer(pattern, library.read_bytes())
    }
    if name not in found:
        sys.exit(f"no description of {name!r}; there are: {', '.join(sorted(found)) or 'none'}")
    return found[name]


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Traces operations in their implementations for the platform."""
    before, jax.default_backend = jax.default_backend, lambda: platform
    try:
        yield
    finally:
        jax.default_backend = before


def layer(function: Callable, shape: tuple[int, ...], dtype: str, device: Any) -> list[float]:
    """Returns the bytes over the least, for a layer and for its gradient."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    y = jax.eval_shape(function, x)
    y = jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=sharding)
    least = (x.size + y.size) * x.dtype.itemsize / 1e9

    def gradient(x, y):
        return jax.vjp(function, x)[1](y)[0]

    forward = jax.jit(function).lower(x).compile()
    backward = jax.jit(gradient).lower(x, y).compile()
    return [read(forward).gigabytes / least, read(backward).gigabytes / least]


def inference(name: str, batch: int, size: int, dtype: str, devices: list[Any]) -> Any:
    graph, state = nnx.split(nnx.eval_shape(lambda: create_model(name, dtype=dtype)))
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32, sharding=sharding)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return forward.lower(on(state, sharding), images).compile()


def training(name: str, batch: int, size: int, dtype: str, devices: list[Any]) -> Any:
    """Compiles the data-parallel training step of `train.py` for uint8 images."""
    mesh = data_mesh(devices)
    model = nnx.eval_shape(lambda: create_model(name, dtype=dtype))
    optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.1)
    step: Any = make_train_step(
        model, optimizer, lambda b: normalise(b["image"]), schedule=lambda step: 0.1, mesh=mesh
    )
    _, params, batch_stats, random_state = split_model(model)
    opt_state = jax.eval_shape(optimizer.init, params)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(count, params, batch_stats, random_state, opt_state)
    split = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    return step.lower(on(state, replicated(mesh)), {"image": images, "label": labels}).compile()


def on(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="v5e:2x2", help="a topology of TPUs, or a GPU's name")
    parser.add_argument("--count", type=int, help="devices (default: all of a TPU, one GPU)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--models", nargs="*", default=MODELS, help="baselines")
    parser.add_argument(
        "--batch", type=int, default=256, help="over all devices, of a training step"
    )
    parser.add_argument("--inference_batch", type=int, default=48, help="on one device")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--definitions", action="store_true", help="without kernels, to compare")
    args = parser.parse_args()
    devices = devices_of(args.device, args.count)
    platform = "tpu" if re.match(r"v\d", args.device) else "gpu"
    kind = f"{len(devices)} x {devices[0].device_kind}, {args.dtype}, jax {jax.__version__}"
    print(f"{kind}; compiled, not run.\n\n| layer | map | forward | gradient |\n|---|---|---|---|")
    layers = {
        f"blur of 4 taps, {name}": partial(blur_pool, implementation=name)
        for name in ("conv", "gather", "matmul")
    }
    layers["max pool 3/2"] = partial(ops.max_pool, window=3, stride=2, padding=1)
    with traced_for(platform), ops.definitions() if args.definitions else nullcontext():
        for (name, function), shape in ((n, s) for n in layers.items() for s in MAPS):
            cells = layer(function, (64, *shape), args.dtype, devices[0])
            values = " | ".join(f"{value:.2f}" for value in cells)
            print(f"| {name} | 64x{'x'.join(map(str, shape))} | {values} |", flush=True)
        print("\n| model | pass | batch | baseline, GB | lpf4, GB | more | temporary, GB ", end="")
        print("| between devices, lpf4 |\n|---|---|---|---|---|---|---|---|")
        passes = (
            ("inference", inference, args.inference_batch),
            ("training", training, args.batch),
        )
        for name, (title, compiled, batch) in ((n, p) for n in args.models for p in passes):
            base, lpf4 = (
                read(compiled(model, batch, args.size, args.dtype, devices))
                for model in (name, f"{name}_lpf4")
            )
            more = f"{100 * (lpf4.gigabytes / base.gigabytes - 1):+.0f} %"
            cells = [name, title, batch, f"{base.gigabytes:.2f}", f"{lpf4.gigabytes:.2f}", more]
            cells += [f"{base.temporary:.2f}, {lpf4.temporary:.2f}"]
            cells += [", ".join(f"{n} {kind}" for kind, n in lpf4.collectives.items())]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()

"""BlurPool's time, forward and backward, by implementation, and its fraction of copy bandwidth.

    python benchmarks/blurpool.py [--filter_sizes 3 4 5] [--batch 8] [--dtype float32]
        [--seconds 0.3] [--output RESULTS.csv]

`conv` is the grouped convolution that defines the layer, `gather` the look-ups that `blur_pool`
uses on CPU; `slices`, for comparison, pads and adds strided slices, axis by axis. `torch` is the
original's layer in its fastest memory format (channels last), if both are installed. A pass reads
its input once and writes its result once. The percentage next to the milliseconds is these bytes
over its time, divided by the bandwidth of a copy of as many bytes; it can exceed 100 % if data stay
in caches.
"""

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial, reduce
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax import blur_pool
from aa_flax.ops.blur import binomial_taps, padding_widths

MAPS = [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024)]  # of ResNets at 224 pixels
FIELDS = ("device", "versions", "shape", "filter_size", "dtype", "kernel", "pass", "ms")
FIELDS += ("copy_gb_s", "of_copy")
Kernel = Callable[[jax.Array], jax.Array]


def slices(x: jax.Array, filter_size: int) -> jax.Array:
    """BlurPool with stride 2 and reflect padding: on each axis a weighted sum of strided slices."""
    before, after = padding_widths(filter_size)
    y = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode="reflect")
    y = y.astype(jnp.float32)
    for axis in (1, 2):
        last = y.shape[axis] - filter_size + 1
        terms = [
            tap * lax.slice_in_dim(y, i, i + last, 2, axis)
            for i, tap in enumerate(binomial_taps(filter_size).tolist())
        ]
        y = reduce(jnp.add, terms)
    return y.astype(x.dtype)


def kernels(filter_size: int) -> dict[str, Kernel]:
    return {
        "conv": partial(blur_pool, filter_size=filter_size, implementation="conv"),
        "gather": partial(blur_pool, filter_size=filter_size, implementation="gather"),
        "slices": partial(slices, filter_size=filter_size),
    }


def median_seconds(run: Callable[[], object], wait: Callable, seconds: float) -> float:
    """Returns the time of a pass; on a GPU ten passes are queued, which hides the host's time."""
    count = 1 if jax.default_backend() == "cpu" else 10
    wait(run())
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        wait([run() for _ in range(count)][-1])
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / count


def copy_bandwidth(num_bytes: int, seconds: float) -> float:
    """Returns the bytes per second, read and written, of a copy; half of the bytes are read."""
    x = jnp.ones(num_bytes // 8, jnp.float32)
    copy = jax.jit(lambda x: -x)
    return 2 * x.nbytes / median_seconds(lambda: copy(x), jax.block_until_ready, seconds)


def time_jax(kernel: Kernel, x: jax.Array, seconds: float) -> tuple[float, float]:
    y = jax.eval_shape(kernel, x)
    g = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
    forward = jax.jit(kernel)
    backward = jax.jit(lambda x, g: jax.vjp(kernel, x)[1](g))
    wait = jax.block_until_ready
    return (
        median_seconds(lambda: forward(x), wait, seconds),
        median_seconds(lambda: backward(x, g), wait, seconds),
    )


def time_torch(x: jax.Array, filter_size: int, seconds: float) -> tuple[float, float]:
    import antialiased_cnns
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    layer = antialiased_cnns.BlurPool(x.shape[-1], filt_size=filter_size).to(device, dtype)
    tensor = torch.tensor(np.asarray(x, np.float32).transpose(0, 3, 1, 2), device=device)
    tensor = tensor.to(dtype).contiguous(memory_format=torch.channels_last)

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        forward = median_seconds(lambda: layer(tensor), wait, seconds)
    tensor.requires_grad_()
    y = layer(tensor)
    g = torch.randn_like(y)
    gradient = partial(torch.autograd.grad, y, tensor, g, retain_graph=True)
    return forward, median_seconds(gradient, wait, seconds)


def measure(shape: tuple[int, ...], filter_size: int, args: argparse.Namespace) -> list[dict]:
    """Returns a row for each implementation and pass."""
    x = jax.random.normal(jax.random.key(1), shape, args.dtype)
    y = jax.eval_shape(kernels(filter_size)["conv"], x)
    needed = x.nbytes + y.size * y.dtype.itemsize
    copied = copy_bandwidth(needed, args.seconds)
    times = {
        name: time_jax(kernel, x, args.seconds) for name, kernel in kernels(filter_size).items()
    }
    if find_spec("torch") and find_spec("antialiased_cnns"):
        times["torch"] = time_torch(x, filter_size, args.seconds)
    return [
        {
            "shape": "x".join(map(str, shape)),
            "filter_size": filter_size,
            "kernel": kernel,
            "pass": direction,
            "ms": f"{1e3 * seconds:.4g}",
            "copy_gb_s": f"{copied / 1e9:.1f}",
            "of_copy": f"{needed / seconds / copied:.3f}",
        }
        for kernel, both in times.items()
        for direction, seconds in zip(("forward", "backward"), both, strict=True)
    ]


def line(rows: list[dict]) -> str:
    first = rows[0]
    cells = [first["shape"], str(first["filter_size"]), first["copy_gb_s"]]
    cells += [f"{row['ms']} ({100 * float(row['of_copy']):.0f} %)" for row in rows]
    return f"| {' | '.join(cells)} |"


def where() -> dict[str, str]:
    parts = [f"jax {jax.__version__}"]
    if find_spec("torch"):
        import torch

        parts.append(f"torch {torch.__version__}")
    return {"device": jax.devices()[0].device_kind, "versions": ", ".join(parts)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter_sizes", nargs="+", type=int, default=[3, 4, 5])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=0.3, help="minimum for each measurement")
    parser.add_argument("--output", type=Path, help="CSV file, overwritten")
    args = parser.parse_args()
    here, found = where(), []
    print(f"{here['device']}; {here['versions']}; {args.dtype}\n")
    for shape in [(args.batch, *size) for size in MAPS]:
        for filter_size in args.filter_sizes:
            rows = measure(shape, filter_size, args)
            if not found:
                heads = [f"{row['kernel']} {row['pass']}" for row in rows]
                print(f"| map | k | copy, GB/s | {' | '.join(heads)} |")
                print("|---" * (len(heads) + 3) + "|")
            print(line(rows), flush=True)
            found += [{**here, "dtype": args.dtype, **row} for row in rows]
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()

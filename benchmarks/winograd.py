"""3x3 convolutions of models: XLA's and Winograd's algorithm alternating, forward and gradients.

    python benchmarks/winograd.py [--repeats 9] [--shapes 8,56,64,64 ...]

A shape is images, side in pixels, channels in and out. Each cell is XLA's time over Winograd's (the
median and the quartiles of the repeats' ratios) and the largest difference of the results over the
largest value. Float32, padding 1; memory is kept, since page faults would cost as much. If
`tune_cpu` gives convolutions to oneDNN, XLA's are oneDNN's.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax import tune_cpu
from aa_flax.ops.cpu.convolution import with_unfused_transposes
from aa_flax.ops.cpu.depthwise import Window
from aa_flax.ops.cpu.winograd import winograd_conv
from aa_flax.ops.dispatch import Multilinear, Static, apply

SHAPES = (
    "8,224,64,64", "8,112,128,128", "8,56,64,64", "8,56,128,128", "8,56,256,256", "8,28,128,128",
    "8,28,256,256", "8,28,512,512", "8,14,256,256", "8,14,512,512", "8,7,512,512", "48,56,64,64",
    "48,14,256,256",
)  # fmt: skip
WINDOW = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
DEFINITION = Static(
    lax.conv_general_dilated,
    window_strides=WINDOW.strides,
    padding=WINDOW.padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def passes(form: Multilinear) -> list:
    """Returns the functions of the forward pass and both gradients."""

    def conv(x, kernel):
        return apply(Multilinear(DEFINITION), {"cpu": form}, x, kernel)

    return [
        lambda x, kernel, g: conv(x, kernel),
        lambda x, kernel, g: jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0],
        lambda x, kernel, g: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)[0],
    ]


def seconds(run, arrays) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arrays))
    return time.perf_counter() - start


def compared(own, winograd, arrays, repeats: int) -> str:
    own, winograd = (jax.jit(run).lower(*arrays).compile() for run in (own, winograd))
    expected, result = (np.asarray(run(*arrays)) for run in (own, winograd))
    difference = np.abs(expected - result).max() / np.abs(expected).max()
    ratios = [seconds(own, arrays) / seconds(winograd, arrays) for _ in range(repeats)]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{median:.2f} ({low:.2f} to {high:.2f}), {difference:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    args = parser.parse_args()
    tune_cpu()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    print("| images, pixels, channels | forward | image's gradient | kernel's gradient |")
    print("|---|---|---|---|")
    draw = np.random.default_rng(0)
    for shape in args.shapes:
        images, pixels, channels, outputs = map(int, shape.split(","))
        sizes = (images, pixels, pixels, channels), (3, 3, channels, outputs)
        sizes += ((images, pixels, pixels, outputs),)
        arrays = [jnp.asarray(draw.standard_normal(size), jnp.float32) for size in sizes]
        x, kernel = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes[:2])
        own = passes(with_unfused_transposes(DEFINITION, x, kernel))
        pairs = zip(own, passes(winograd_conv(WINDOW)), strict=True)
        cells = [compared(*pair, arrays, args.repeats) for pair in pairs]
        print(f"| {shape} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

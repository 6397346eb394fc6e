"""Depthwise 3x3 convolution, forward and gradient: XLA's grouped one, our CPU kernel, and torch.

    python benchmarks/depthwise.py [--repeats 15]

The shapes are MobileNetV2's at 224 pixels. Milliseconds, medians; the last columns divide our time
by torch's, which runs in its fastest memory format (channels last).
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from timing import median_ms

from aa_flax.ops import conv_general_dilated

SHAPES = [(8, 112, 112, 32), (8, 56, 56, 144), (8, 28, 28, 192), (8, 14, 14, 576), (8, 7, 7, 960)]
PADDING = ((1, 1), (1, 1))


def depthwise(x, kernel, conv):
    dimensions = ("NHWC", "HWIO", "NHWC")
    groups = x.shape[-1]
    return conv(
        x, kernel, (1, 1), PADDING, dimension_numbers=dimensions, feature_group_count=groups
    )


grouped = partial(depthwise, conv=lax.conv_general_dilated)
ours = partial(depthwise, conv=conv_general_dilated)


def time_jax(conv, x: np.ndarray, kernel: np.ndarray, repeats: int) -> tuple[float, float]:
    forward = jax.jit(conv)
    backward = jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g))
    arrays = jnp.asarray(x), jnp.asarray(kernel)
    return (
        median_ms(lambda: jax.block_until_ready(forward(*arrays)), repeats),
        median_ms(lambda: jax.block_until_ready(backward(*arrays, arrays[0])), repeats),
    )


def time_torch(x: np.ndarray, kernel: np.ndarray, repeats: int) -> tuple[float, float]:
    image = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    conv = partial(torch.nn.functional.conv2d, padding=1, groups=x.shape[-1])
    with torch.no_grad():
        forward = median_ms(lambda: conv(image, weight), repeats)
    both = (image.requires_grad_(), weight.requires_grad_())
    y = conv(*both)
    return forward, median_ms(
        lambda: torch.autograd.grad(y, both, image.detach(), retain_graph=True), repeats
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}\n")
    print(
        "| shape | grouped fwd | ours fwd | torch fwd | grouped bwd | ours bwd | torch bwd ", end=""
    )
    print("| ours/torch fwd | bwd |")
    print("|---" * 9 + "|")
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        x = rng.standard_normal(shape, np.float32)
        kernel = rng.standard_normal((3, 3, 1, shape[-1]), np.float32)
        slow = time_jax(grouped, x, kernel, 3)
        fast = time_jax(ours, x, kernel, repeats)
        reference = time_torch(x, kernel, repeats)
        cells = [f"{t:.2f}" for pair in zip(slow, fast, reference, strict=True) for t in pair]
        ratios = [f"{f / t:.1f}" for f, t in zip(fast, reference, strict=True)]
        print(f"| {'x'.join(map(str, shape))} | " + " | ".join(cells + ratios) + " |", flush=True)


if __name__ == "__main__":
    main()

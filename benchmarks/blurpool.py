"""BlurPool, forward and gradient, side by side: the definition, our CPU form, and torch.

    python benchmarks/blurpool.py [--repeats 15]

`conv` is the grouped convolution that defines the layer, `gather` the form that stands behind
`blur_pool` on CPU, `torch` the original's layer in its fastest memory format (channels last).
Milliseconds, medians; the last columns divide torch's time by that of `gather`.
"""

import argparse

import antialiased_cnns
import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import median_ms

from aa_flax import blur_pool

SHAPES = [(8, 112, 112, 64), (8, 56, 56, 256), (8, 28, 28, 512), (8, 14, 14, 1024)]


def time_jax(x: np.ndarray, k: int, implementation, repeats: int) -> tuple[float, float]:
    def blur(x):
        return blur_pool(x, k, implementation=implementation)

    g = jax.random.normal(jax.random.key(0), jax.eval_shape(blur, x).shape)
    forward = jax.jit(blur)
    backward = jax.jit(lambda x, g: jax.vjp(blur, x)[1](g))
    images = jnp.asarray(x)
    return (
        median_ms(lambda: jax.block_until_ready(forward(images)), repeats),
        median_ms(lambda: jax.block_until_ready(backward(images, g)), repeats),
    )


def time_torch(x: np.ndarray, k: int, repeats: int) -> tuple[float, float]:
    layer = antialiased_cnns.BlurPool(x.shape[-1], filt_size=k)
    tensor = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        forward = median_ms(lambda: layer(tensor), repeats)
    tensor.requires_grad_()
    y = layer(tensor)
    g = torch.randn_like(y)
    return forward, median_ms(lambda: torch.autograd.grad(y, tensor, g, retain_graph=True), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}\n")
    print(
        "| shape | k | conv fwd | gather fwd | torch fwd | conv bwd | gather bwd | torch bwd "
        "| torch/gather fwd | bwd |"
    )
    print("|---" * 10 + "|")
    for shape in SHAPES:
        for k in (3, 4, 5):
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            conv = time_jax(x, k, "conv", 3)
            gather = time_jax(x, k, "gather", repeats)
            reference = time_torch(x, k, repeats)
            cells = [f"{t:.2f}" for pair in zip(conv, gather, reference, strict=True) for t in pair]
            ratios = [f"{t / g:.1f}" for t, g in zip(reference, gather, strict=True)]
            print(f"| {'x'.join(map(str, shape))} | {k} | " + " | ".join(cells + ratios) + " |")


if __name__ == "__main__":
    main()

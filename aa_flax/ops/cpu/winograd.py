"""Winograd's algorithm for 3x3 convolutions on CPU: 16 products instead of 36.

Two outputs of three taps, `y[i] = sum_j k[j] x[i + j]`, take four products instead of six: with
`X = (x0 - x2, x1 + x2, x2 - x1, x1 - x3)` and `K = (k0, (k0 + k1 + k2)/2, (k0 - k1 + k2)/2, k2)`,
`y0 = XK[0] + XK[1] + XK[2]` and `y1 = XK[1] - XK[2] - XK[3]`. On both axes and over all channels
that is 16 matrix products, each over a quarter of the pixels (Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2016: F(2x2, 3x3)). Sums are ordered differently: float32 results
differ from the definition's by about 1e-6 of the largest value. bfloat16 is computed in float32 and
rounded at the end, as by XLA.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.ops.cpu.depthwise import Window
from aa_flax.ops.dispatch import Multilinear, Static, Unfused, on_one_device

Padding = tuple[tuple[int, int], ...]
_VALUES = 2**19  # of the images of one step: their parts, four times as many, stay in cache


def gains_by_winograd(window: Window, x: Any, kernel: Any) -> bool:
    """Checks whether fewer products pay for more memory traffic (measured on ResNet and VGG)."""
    batch, height, width, _ = x.shape
    if not all(isinstance(n, int) for n in (batch, height, width)):  # export may leave them open
        return False
    fits = window.taps == (3, 3) and {*window.strides, *window.dilation} == {1}
    fits = fits and max(map(max, window.padding)) <= 2 and on_one_device()
    fits = fits and x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.bfloat16)
    fewest, most = sorted(kernel.shape[2:])
    # Transforming the kernel pays only over enough pixels, and compiling the program takes a sixth
    # of a second, which pays only for a convolution of some milliseconds.
    pixels = batch * height * width
    enough = pixels >= 384 and pixels * fewest * most >= 2**26 and fewest >= 32
    return fits and enough and _strips(x, window.padding, most) is not None


def winograd_conv(window: Window) -> Multilinear:
    """Returns the kernels of a convolution of `(N, H, W, C)` by `(3, 3, C, O)`."""
    full = tuple((2 - before, 2 - after) for before, after in window.padding)
    image = Unfused(Static(_image_gradient, padding=full))
    kernel = Unfused(Static(_kernel_gradient, padding=window.padding))
    return Multilinear(Unfused(Static(_conv, padding=window.padding)), (image, kernel))


def _conv(x: Array, kernel: Array, padding: Padding, product: str = "nhwi,io->nhwo") -> Array:
    kernels = _grid(_kernel_parts, kernel.astype(jnp.float32), (0, 0))
    most = max(kernel.shape[2:])
    strips, steps = _strips(x, padding, most) or 1, _in_steps(x, most)
    height, width = _output_size(x, padding)
    rows = height // strips

    def of_some(step: Array) -> Array:
        some, pads = steps[step // strips], padding
        if strips > 1:
            some = _rows_with_zeros(some, step % strips * rows - pads[0][0], rows + 2)
            pads = (0, 0), pads[1]
        images = _grid(_image_parts, _tiled(some.astype(jnp.float32), pads), (1, 2))
        products = [jnp.einsum(product, x, k) for x, k in zip(images, kernels, strict=True)]
        y = _ungrid(_outputs, _interleaved, lax.optimization_barrier(products), (1, 2))
        return y[:, :rows, :width].astype(x.dtype)

    y = lax.map(of_some, jnp.arange(len(steps) * strips))
    return y.reshape(-1, height, *y.shape[3:])[: x.shape[0]]


def _image_gradient(kernel: Array, g: Array, padding: Padding) -> Array:
    """Convolves the cotangent, padded for a full convolution, with the flipped kernel."""
    return _conv(g, kernel[::-1, ::-1], padding, product="nhwo,io->nhwi")


def _kernel_gradient(x: Array, g: Array, padding: Padding) -> Array:
    """Applies the transpose of each step of `_conv`, in reverse order."""

    def add(total: list[Array], some: tuple[Array, Array]) -> tuple[list[Array], None]:
        x, g = (part.astype(jnp.float32) for part in some)
        images = _grid(_image_parts, _tiled(x, padding), (1, 2))
        g = jnp.pad(g, ((0, 0), *((0, n % 2) for n in g.shape[1:3]), (0, 0)))
        cotangents = _grid(_product_cotangents, g, (1, 2))
        pairs = zip(total, images, cotangents, strict=True)
        return [t + jnp.einsum("nhwi,nhwo->io", x, c) for t, x, c in pairs], None

    channels = x.shape[-1], g.shape[-1]
    zeros, most = [jnp.zeros(channels, jnp.float32)] * 16, max(channels)
    products, _ = lax.scan(add, zeros, (_in_steps(x, most), _in_steps(g, most)))
    return _ungrid(_kernel_cotangents, jnp.stack, products, (0, 0)).astype(g.dtype)


def _strips(x: Any, padding: Padding, channels: int) -> int | None:
    """Returns the smallest number of equal strips of a result that fit in cache, eight at most."""
    height, width = _output_size(x, padding)
    most = 4 * _VALUES // (width * channels)  # rows of a strip, which reads two more
    equal = [n for n in range(1, 9) if height % n == 0 and height // n <= most]
    return next((n for n in equal if n == 1 or height // n + 2 <= x.shape[1]), None)


def _rows_with_zeros(x: Array, first: Array, count: int) -> Array:
    """Returns `count` rows from `first` on, up to two of which may be outside of the image."""
    inside = jnp.clip(first, 0, x.shape[1] - count)
    rows = jnp.pad(lax.dynamic_slice_in_dim(x, inside, count, 1), ((0, 0), (2, 2), *[(0, 0)] * 2))
    return lax.dynamic_slice_in_dim(rows, 2 + first - inside, count, 1)


def _in_steps(x: Array, channels: int) -> Array:
    """Splits a batch into `(steps, images, H, W, C)`, filling up with images of zeros."""
    batch, height, width, _ = x.shape
    steps = ceil(batch / max(1, _VALUES // (height * width * channels)))
    images = ceil(batch / steps)
    x = jnp.pad(x, ((0, steps * images - batch), *[(0, 0)] * 3))
    return x.reshape(steps, images, *x.shape[1:])


def _output_size(x: Array, padding: Padding) -> tuple[int, ...]:
    return tuple(n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], padding, strict=True))


def _tiled(x: Array, padding: Padding) -> Array:
    """Pads an image, and by one more at the end where the number of outputs would be odd."""
    odd = [n % 2 for n in _output_size(x, padding)]
    pads = [(before, after + more) for (before, after), more in zip(padding, odd, strict=True)]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _grid(parts: Callable[..., Sequence[Array]], x: Array, axes: tuple[int, int]) -> list[Array]:
    """Returns the 4x4 parts on two axes, row by row; the barriers halve the time to compile."""
    rows = lax.optimization_barrier(parts(x, axes[0]))
    return lax.optimization_barrier([part for row in rows for part in parts(row, axes[1])])


def _ungrid(parts, join, grid: Sequence[Array], axes: tuple[int, int]) -> Array:
    columns = [parts(*grid[column::4]) for column in range(4)]
    return join([join(parts(*row), axes[1]) for row in zip(*columns, strict=True)], axes[0])


def _image_parts(x: Array, axis: int) -> tuple[Array, ...]:
    last = x.shape[axis] - 3
    x0, x1, x2, x3 = (lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4))
    return x0 - x2, x1 + x2, x2 - x1, x1 - x3


def _kernel_parts(kernel: Array, axis: int) -> tuple[Array, ...]:
    k0, k1, k2 = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    ends, middle = (k0 + k2) / 2, k1 / 2
    return k0, ends + middle, ends - middle, k2


def _kernel_cotangents(p0: Array, p1: Array, p2: Array, p3: Array) -> tuple[Array, ...]:
    ends, middle = (p1 + p2) / 2, (p1 - p2) / 2
    return p0 + ends, middle, p3 + ends


def _outputs(p0: Array, p1: Array, p2: Array, p3: Array) -> tuple[Array, Array]:
    return p0 + p1 + p2, p1 - p2 - p3


def _product_cotangents(g: Array, axis: int) -> tuple[Array, ...]:
    g0, g1 = (lax.slice_in_dim(g, i, None, 2, axis) for i in range(2))
    return g0, g0 + g1, g0 - g1, -g1


def _interleaved(pair: Sequence[Array], axis: int) -> Array:
    """Interleaves two arrays on an axis: `(..., n, ...)` to `(..., 2n, ...)`."""
    shape = pair[0].shape
    return jnp.stack(pair, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])

"""Depthwise convolution on CPU: a sum of shifted products.

XLA:CPU runs grouped convolutions, and above all their gradients, one to three orders of magnitude
slower than dense ones. The gradients are sums of shifted products, too, written out here: autodiff
of the sum takes ten times as long for the kernel's. Sums are float32 or wider.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.dispatch import Multilinear, Static, Unfused


class Window(NamedTuple):
    """The window of a convolution; each field has one entry for each spatial axis."""

    taps: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def views(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N h w C"]]:
        """Returns, for each tap, what it reads of an image padded with zeros: a strided slice."""
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        axes = zip(x.shape[1:3], self.taps, self.dilation, self.strides, strict=True)
        rows, columns = (
            [slice(i * step, size - (taps - 1 - i) * step, stride) for i in range(taps)]
            for size, taps, step, stride in axes
        )
        return [x[:, row, column] for row in rows for column in columns]


def depthwise_conv(window: Window, size: tuple[int, int]) -> Multilinear:
    """Returns the kernels of a depthwise convolution of `(N, *size, C)` by `(kh, kw, 1, C)`."""
    image = Unfused(Static(_input_gradient, window=window, size=size))
    kernel = Unfused(Static(_kernel_gradient, window=window))
    return Multilinear(Static(_depthwise_conv, window=window), transposes=(image, kernel))


def _depthwise_conv(x: Array, kernel: Array, window: Window) -> Array:
    wide = np.promote_types(x.dtype, jnp.float32)
    return _sum_of_products(window.views(x.astype(wide)), kernel.astype(wide)).astype(x.dtype)


def _input_gradient(kernel: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """Convolves `g`, with zeros between its values for a stride, with the flipped kernel."""
    wide = np.promote_types(g.dtype, jnp.float32)
    spread = [(0, 0, 0)]
    axes = zip(size, g.shape[1:3], *window, strict=True)
    for n, outputs, taps, stride, (before, _), dilation in axes:
        high = n + before - (outputs - 1) * stride - 1
        spread.append(((taps - 1) * dilation - before, high, stride - 1))
    g_padded = lax.pad(g.astype(wide), jnp.zeros((), wide), (*spread, (0, 0, 0)))
    views = window._replace(strides=(1, 1), padding=((0, 0), (0, 0))).views(g_padded)
    return _sum_of_products(views, kernel[::-1, ::-1].astype(wide)).astype(g.dtype)


def _kernel_gradient(x: Array, g: Array, window: Window) -> Array:
    """Returns for each tap the sum, over batch and image, of what it reads times `g`."""
    wide = np.promote_types(g.dtype, jnp.float32)
    products = [view * g.astype(wide) for view in window.views(x.astype(wide))]
    taps = [batch_sum.sum((0, 1)) for batch_sum in sums_over_batch(products)]
    return jnp.stack(taps).reshape(*window.taps, 1, x.shape[-1]).astype(g.dtype)


def sums_over_batch(arrays: Sequence[Array]) -> Sequence[Array]:
    """Returns the sum of each array over axis 0.

    It is one reduction of all arrays, so what they are computed from is read once; and its results
    are as large as an image, so it runs on every core, which a sum over all axes would not.
    """
    zeros = [jnp.zeros((), a.dtype) for a in arrays]
    return lax.reduce(list(arrays), zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (0,))


def _sum_of_products(views: list[Array], kernel: Array) -> Array:
    taps = [tap.reshape(1, 1, 1, -1) for tap in kernel.reshape(len(views), kernel.shape[-1])]
    return reduce(jnp.add, map(jnp.multiply, views, taps))

"""Depthwise convolution as a sum of shifted products: the form that is fast on CPU.

XLA's CPU backend runs grouped convolutions, and above all their gradients, one to three orders
slower than dense ones. The gradients are sums of shifted products, too: what autodiff makes of the
kernel's takes ten times as long. Sums are float32 or wider.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.forms import Multilinear, static, unfused


class Window(NamedTuple):
    """A kernel of `taps` and how it moves over an image: one entry for each axis."""

    taps: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def views(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N h w C"]]:
        """What each tap reads of an image, padded with zeros: a strided slice each."""
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        rows, columns = (
            [slice(i * step, size - (taps - 1 - i) * step, stride) for i in range(taps)]
            for size, taps, step, stride in zip(
                x.shape[1:3], self.taps, self.dilation, self.strides, strict=True
            )
        )
        return [x[:, row, column] for row in rows for column in columns]


def depthwise_conv(window: Window, size: tuple[int, int]) -> Multilinear:
    """Each channel convolved by itself, as a function of an image `(N, *size, C)` and a kernel.

    Args:
        window: its `taps` `(kh, kw)` are those of the kernel, `(kh, kw, 1, C)`.
        size: the image's.
    """
    image = unfused(static(_input_gradient, window=window, size=size))
    kernel = unfused(static(_kernel_gradient, window=window))
    return Multilinear(static(_depthwise_conv, window=window), transposes=(image, kernel))


def _depthwise_conv(x: Array, kernel: Array, window: Window) -> Array:
    wide = np.promote_types(x.dtype, jnp.float32)
    return _sum_of_products(window.views(x.astype(wide)), kernel.astype(wide)).astype(x.dtype)


def _input_gradient(kernel: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """The flipped kernel over `g`, which a stride of the convolution has spread out."""
    wide = np.promote_types(g.dtype, jnp.float32)
    spread = [(0, 0, 0)]
    for n, outputs, taps, stride, (before, _), dilation in zip(
        size, g.shape[1:3], *window, strict=True
    ):
        low = (taps - 1) * dilation - before
        high = n + before - (outputs - 1) * stride - 1
        spread.append((low, high, stride - 1))
    g_padded = lax.pad(g.astype(wide), jnp.zeros((), wide), (*spread, (0, 0, 0)))
    views = window._replace(strides=(1, 1), padding=((0, 0), (0, 0))).views(g_padded)
    return _sum_of_products(views, kernel[::-1, ::-1].astype(wide)).astype(g.dtype)


def _kernel_gradient(x: Array, g: Array, window: Window) -> Array:
    """For each tap, the sum over the batch and the image of what it reads times `g`.

    One reduction sums all taps over the batch first: `x` and `g` are read once, and the sums, as
    large as an image, still run on every core.
    """
    wide = np.promote_types(g.dtype, jnp.float32)
    products = [view * g.astype(wide) for view in window.views(x.astype(wide))]
    zeros = [jnp.zeros((), wide) for _ in products]
    batch_sums = lax.reduce(products, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (0,))
    taps = [batch_sum.sum((0, 1)) for batch_sum in batch_sums]
    return jnp.stack(taps).reshape(*window.taps, 1, x.shape[-1]).astype(g.dtype)


def _sum_of_products(views: list[Array], kernel: Array) -> Array:
    taps = [tap.reshape(1, 1, 1, -1) for tap in kernel.reshape(len(views), kernel.shape[-1])]
    total = views[0] * taps[0]
    for view, tap in zip(views[1:], taps[1:], strict=True):
        total = total + view * tap
    return total

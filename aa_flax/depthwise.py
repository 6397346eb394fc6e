"""Depthwise convolution as a sum of shifted products: the form that is fast on CPU.

XLA's CPU backend runs grouped convolutions, and above all their gradients, one to three orders
slower than dense ones.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def depthwise_conv(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "kh kw 1 C"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Array, "N h w C"]:
    """Each channel convolved by itself: one shifted product for each tap of its kernel.

    Sums are float32 or wider. The gradients are sums of shifted products too (there is no
    forward-mode derivative): what autodiff makes of the kernel's takes ten times as long.
    """
    pads = tuple((before, after) for before, after in padding)
    return _depthwise_conv(x, kernel, _Window(tuple(strides), pads, tuple(dilation)))


class _Window(NamedTuple):
    """How a kernel moves over an image: one entry for each axis."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_conv(x: Array, kernel: Array, window: _Window) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x_padded = jnp.pad(x.astype(wide), ((0, 0), *window.padding, (0, 0)))
    views = _views(x_padded, kernel, window.strides, window.dilation)
    return _sum_of_products(views, kernel.astype(wide)).astype(x.dtype)


def _depthwise_forward(x, kernel, window):
    return _depthwise_conv(x, kernel, window), (x, kernel)


def _depthwise_backward(window, saved, g):
    x, kernel = saved
    return _input_gradient(x, kernel, g, window), _kernel_gradient(x, kernel, g, window)


_depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def _input_gradient(x: Array, kernel: Array, g: Array, window: _Window) -> Array:
    """The flipped kernel over `g`, which a stride of the convolution has spread out."""
    wide = jnp.promote_types(g.dtype, jnp.float32)
    spread = [(0, 0, 0)]
    for i, (stride, (before, _), dilation) in enumerate(zip(*window, strict=True)):
        reach = (kernel.shape[i] - 1) * dilation
        low = reach - before
        high = x.shape[1 + i] + before - (g.shape[1 + i] - 1) * stride - 1
        spread.append((low, high, stride - 1))
    g_padded = lax.pad(g.astype(wide), jnp.zeros((), wide), (*spread, (0, 0, 0)))
    views = _views(g_padded, kernel, (1, 1), window.dilation)
    return _sum_of_products(views, kernel[::-1, ::-1].astype(wide)).astype(x.dtype)


def _kernel_gradient(x: Array, kernel: Array, g: Array, window: _Window) -> Array:
    """For each tap, the sum over the batch and the image of what it reads times `g`.

    One reduction sums all taps over the batch first: `x` and `g` are read once, and the sums, as
    large as an image, still run on every core.
    """
    wide = jnp.promote_types(g.dtype, jnp.float32)
    x_padded = jnp.pad(x.astype(wide), ((0, 0), *window.padding, (0, 0)))
    views = _views(x_padded, kernel, window.strides, window.dilation)
    products = [view * g.astype(wide) for view in views]
    zeros = [jnp.zeros((), wide) for _ in products]
    batch_sums = lax.reduce(products, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (0,))
    taps = [batch_sum.sum((0, 1)) for batch_sum in batch_sums]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def _views(x: Array, kernel: Array, strides: Sequence[int], dilation: Sequence[int]) -> list[Array]:
    """What each tap of the kernel reads of a padded input: a strided slice each."""
    rows, columns = (
        [slice(i * step, size - (taps - 1 - i) * step, stride) for i in range(taps)]
        for size, taps, step, stride in zip(
            x.shape[1:3], kernel.shape[:2], dilation, strides, strict=True
        )
    )
    return [x[:, row, column] for row in rows for column in columns]


def _sum_of_products(views: list[Array], kernel: Array) -> Array:
    taps = kernel.reshape(len(views), kernel.shape[-1])
    total = views[0] * taps[0]
    for view, tap in zip(views[1:], taps[1:], strict=True):
        total = total + view * tap
    return total

"""Dense convolutions on CPU: kernels of one pixel as products, and gradients by themselves.

A gradient reads the cotangent, and a kernel's also the image, many times over and in an order of
its own. XLA's CPU backend computes what it can inside whatever reads it, so the batch norm behind a
convolution was differentiated once for each tap. Here both are written to memory first.
"""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.depthwise import Window
from aa_flax.ops.forms import Multilinear, Static, Transpose, static, unfused
from aa_flax.ops.winograd import gains_by_winograd, winograd_conv

_CACHE = 2**19  # numbers that a product may read from memory once and again from a cache


def dense_conv(
    definition: Static, window: Window, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct
) -> Multilinear:
    """`definition`, a convolution without groups, as a function of an image and a kernel.

    Args:
        window: how the definition's kernel moves.
        x: shape and type of the image, `(N, H, W, C)`.
        kernel: of the kernel, `(kh, kw, C, O)`.
    """
    if gains_by_winograd(window, x, kernel):
        return winograd_conv(window)
    is_product = window.taps == (1, 1) and window.padding == ((0, 0), (0, 0))
    function = static(_product, strides=window.strides) if is_product else definition
    form = with_unfused_transposes(function, x, kernel)
    if _gains_by_rows(window, x, kernel):
        by_rows = unfused(static(_kernel_gradient_by_rows, window=window))
    elif is_product:
        by_rows = unfused(static(_kernel_gradient_of_product, strides=window.strides))
    else:
        return form
    return Multilinear(function, (form.transposes[0], by_rows))


def _gains_by_rows(window: Window, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct) -> bool:
    """Whether the gradient of the kernel is faster row by row (measured on ResNet's and VGG's)."""
    sizes_are_known = all(isinstance(n, int) for n in x.shape[1:3])  # export may leave them open
    steps = {*window.strides, *window.dilation}
    least = 50 if window.taps == (1, 1) else 100
    return sizes_are_known and steps == {1} and x.shape[1] >= least and x.shape[3] >= 16


def with_unfused_transposes(
    function: Static, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct
) -> Multilinear:
    """A convolution with JAX's own transposes, which wait until what they read is in memory."""
    transposes = (Transpose(function, i, shape) for i, shape in enumerate((x, kernel)))
    return Multilinear(function, tuple(map(unfused, transposes)))


def _product(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """`(N h w, C) @ (C, O)`."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _kernel_gradient_of_product(x: Array, g: Array, strides: tuple[int, int]) -> Array:
    """JAX's own computes its transpose: three times slower where O is larger than C."""
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.einsum("nhwi,nhwo->io", x, g)[None, None]


def _kernel_gradient_by_rows(
    x: Float[Array, "N H W C"], g: Float[Array, "N h w O"], window: Window
) -> Float[Array, "kh kw C O"]:
    """All windows of a few rows, of the whole batch, as a matrix: one product for each.

    The matrix stays in the cache, where XLA's own form reads the image anew for each tap.
    """
    wide = np.promote_types(g.dtype, jnp.float32)
    height, features = g.shape[1], prod(window.taps) * x.shape[-1]
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    valid = window._replace(padding=((0, 0), (0, 0)))
    wanted = max(1, _CACHE // (prod(g.shape) // height * (features + g.shape[-1]) // g.shape[-1]))
    rows = max(n for n in range(1, min(wanted, height) + 1) if height % n == 0)

    def add(total: Array, i: Array) -> tuple[Array, None]:
        read = lax.dynamic_slice_in_dim(x, i * rows, rows + window.taps[0] - 1, axis=1)
        columns = jnp.concatenate(valid.views(read), -1).astype(wide)
        g_rows = lax.dynamic_slice_in_dim(g, i * rows, rows, axis=1).astype(wide)
        return total + jnp.einsum("nhwi,nhwo->io", columns, g_rows), None

    total, _ = lax.scan(add, jnp.zeros((features, g.shape[-1]), wide), jnp.arange(height // rows))
    return total.reshape(*window.taps, x.shape[-1], g.shape[-1]).astype(g.dtype)

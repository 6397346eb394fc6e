"""Dense convolutions on CPU: kernels of one pixel as products, and gradients by themselves.

A gradient reads the cotangent, and a kernel's also the image, many times over and in an order of
its own. XLA's CPU backend computes what it can inside whatever reads it, so the batch norm behind a
convolution was differentiated once for each tap. Here both are written to memory first.
"""

from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.depthwise import Window
from aa_flax.ops.forms import Multilinear, Static, Transpose, static

_LARGE = 100  # rows from which the gradient of a kernel is faster row by row
_SHALLOW = 16  # channels from which it is


def dense_conv(
    definition: Static, window: Window, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct
) -> Multilinear:
    """`definition`, a convolution without groups, as a function of an image and a kernel.

    Args:
        window: how the definition's kernel moves.
        x: shape and type of the image, `(N, H, W, C)`.
        kernel: of the kernel, `(kh, kw, C, O)`.
    """
    if window.taps == (1, 1) and window.padding == ((0, 0), (0, 0)):
        return unfused(static(_product, strides=window.strides), x, kernel)
    form = unfused(definition, x, kernel)
    steps = {*window.strides, *window.dilation}
    known = isinstance(x.shape[1], int)  # export may leave sizes open
    if known and steps == {1} and x.shape[1] >= _LARGE and x.shape[3] >= _SHALLOW:
        by_rows = unfused_transpose(static(_kernel_gradient_by_rows, window=window))
        return Multilinear(form.function, (form.transposes[0], by_rows))
    return form


def unfused(
    function: Static, x: jax.ShapeDtypeStruct, kernel: jax.ShapeDtypeStruct
) -> Multilinear:
    """A convolution whose transposes, JAX's own, wait until what they read has been written."""
    transposes = (Transpose(function, i, shape) for i, shape in enumerate((x, kernel)))
    return Multilinear(function, tuple(map(unfused_transpose, transposes)))


def unfused_transpose(transpose: Static | Transpose) -> Static:
    return static(_after_its_arrays, transpose=transpose)


def _after_its_arrays(*arrays: Array, transpose: Static | Transpose) -> Array:
    return transpose(*lax.optimization_barrier(arrays))


def _product(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """`(N h w, C) @ (C, O)`."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _kernel_gradient_by_rows(
    x: Float[Array, "N H W C"], g: Float[Array, "N h w O"], window: Window
) -> Float[Array, "kh kw C O"]:
    """All windows of one row, of the whole batch, as a matrix: one product for each row.

    The matrix stays in the cache, where XLA's own form reads the image anew for each tap.
    """
    wide = jnp.promote_types(g.dtype, jnp.float32)
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    row = window._replace(padding=((0, 0), (0, 0)))

    def add(total: Array, i: Array) -> tuple[Array, None]:
        windows = row.views(lax.dynamic_slice_in_dim(x, i, window.taps[0], axis=1))
        g_row = lax.dynamic_slice_in_dim(g, i, 1, axis=1)
        columns = jnp.concatenate(windows, -1).astype(wide)
        return total + jnp.einsum("nhwi,nhwo->io", columns, g_row.astype(wide)), None

    zeros = jnp.zeros((prod(window.taps) * x.shape[-1], g.shape[-1]), wide)
    total, _ = lax.scan(add, zeros, jnp.arange(g.shape[1]))
    return total.reshape(*window.taps, x.shape[-1], g.shape[-1]).astype(g.dtype)

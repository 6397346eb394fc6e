"""Convolutions: `lax.conv_general_dilated`, and on CPU other forms where XLA's are slow."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.ops.dense import dense_conv, with_unfused_transposes
from aa_flax.ops.depthwise import Window, depthwise_conv
from aa_flax.ops.forms import Multilinear, Static, apply, static
from aa_flax.ops.padding import is_circular, wrapped


def conv_general_dilated(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated`, NHWC by HWIO, without XLA's slow paths on CPU.

    Grouped convolutions, and above all their gradients, run one to three orders slower there than
    dense ones: groups are taken a few at a time as dense convolutions with a block-diagonal
    kernel, and groups of one channel as a sum of shifted products. Convolutions whose output is
    narrower than their kernel (3x3 on 2x2 maps, so the last stage of a net on small images) fall
    into a scalar loop: they become a matrix product. The gradients of all are kept apart from what
    stands before and behind them (`dense.py`).

    Args:
        x: `(N, H, W, C)`.
        kernel: `(kh, kw, C / feature_group_count, O)`.
        padding: pixels before and after each spatial axis, as numbers.
        options: the others of `lax.conv_general_dilated`.

    Raises:
        InputError: the image, padding included, is smaller than the kernel.
    """
    padding = tuple((before, after) for before, after in padding)
    if is_circular():
        extents = [(k - 1) * d + 1 for k, d in zip(kernel.shape, rhs_dilation, strict=False)]
        x, padding = wrapped(x, extents, strides, padding), ((0, 0), (0, 0))
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    window = Window(kernel.shape[:2], tuple(strides), padding, tuple(rhs_dilation))
    definition = static(
        lax.conv_general_dilated,
        window_strides=window.strides,
        padding=padding,
        lhs_dilation=tuple(lhs_dilation),
        rhs_dilation=window.dilation,
        feature_group_count=feature_group_count,
        **options,
    )
    output = jax.eval_shape(definition, x, kernel).shape
    if 0 in output[1:3]:
        raise InputError(
            f"convolution with a {kernel.shape[0]}x{kernel.shape[1]} kernel needs at least as many "
            f"pixels, got spatial size {x.shape[1:3]} and padding {padding}; use a larger image"
        )
    plain = set(lhs_dilation) == {1} and options.get("preferred_element_type") is None
    if not plain:
        return definition(x, kernel)
    shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
    cpu = _cpu_form(*shapes, output, window, definition)
    return apply(Multilinear(definition), cpu, x, kernel)


def _cpu_form(
    x: jax.ShapeDtypeStruct,
    kernel: jax.ShapeDtypeStruct,
    output: tuple[int, ...],
    window: Window,
    definition: Static,
) -> Multilinear:
    """What takes the place of the definition on CPU."""
    groups = x.shape[-1] // kernel.shape[2]
    if kernel.shape[2] == 1 and 1 < kernel.shape[3] == groups:
        return depthwise_conv(window, (x.shape[1], x.shape[2]))
    if groups > 1:
        form = static(_block_diagonal_conv, definition=definition, groups=groups)
        return with_unfused_transposes(form, x, kernel)
    if any(n < k for n, k in zip(output[1:3], window.taps, strict=True)):
        return with_unfused_transposes(static(_matmul_conv, window=window), x, kernel)
    return dense_conv(definition, window, x, kernel)


def _matmul_conv(x: Array, kernel: Array, window: Window) -> Array:
    """Every window as one row, times the kernel as a matrix: `(N h w, kh kw I) @ (kh kw I, O)`."""
    windows = jnp.concatenate(window.views(x), -1)
    return windows @ kernel.reshape(prod(kernel.shape[:-1]), kernel.shape[-1])


_BLOCK_CHANNELS = 16  # the fastest of 4 to 256 on ResNeXt's shapes, forward and backward


def _block_diagonal_conv(x: Array, kernel: Array, definition: Static, groups: int) -> Array:
    dense = static(definition.function, **{**dict(definition.options), "feature_group_count": 1})
    height, width, group_in, out = kernel.shape
    group_out = out // groups
    chunk = max(1, _BLOCK_CHANNELS // group_in)
    outputs = []
    for first in range(0, groups, chunk):
        size = min(chunk, groups - first)
        part = kernel[..., first * group_out : (first + size) * group_out]
        part = part.reshape(height, width, group_in, size, group_out)
        block = jnp.einsum("hwigo,gf->hwfigo", part, jnp.eye(size, dtype=kernel.dtype))
        block = block.reshape(height, width, size * group_in, size * group_out)
        outputs.append(dense(x[..., first * group_in : (first + size) * group_in], block))
    return jnp.concatenate(outputs, axis=-1)

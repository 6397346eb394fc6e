"""Convolutions: `lax.conv_general_dilated`, with faster kernels on CPU."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.ops import dispatch
from aa_flax.ops.cpu.convolution import convolution
from aa_flax.ops.cpu.depthwise import Window
from aa_flax.ops.dispatch import Multilinear, Static
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
    """Computes `lax.conv_general_dilated`, NHWC by HWIO with padding in pixels, faster on CPU.

    XLA:CPU runs grouped convolutions, and above all their gradients, one to three orders of
    magnitude slower than dense ones, and convolutions whose output is narrower than their kernel in
    a scalar loop. `ops/cpu/convolution.py` replaces these, and the gradients of all.

    Raises:
        InputError: the image, padding included, is smaller than the kernel.
    """
    padding = tuple((before, after) for before, after in padding)
    if is_circular():
        extents = [(k - 1) * d + 1 for k, d in zip(kernel.shape, rhs_dilation, strict=False)]
        x, padding = wrapped(x, extents, strides, padding), ((0, 0), (0, 0))
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    window = Window(kernel.shape[:2], tuple(strides), padding, tuple(rhs_dilation))
    definition = Static(
        lax.conv_general_dilated,
        window_strides=window.strides,
        padding=padding,
        lhs_dilation=tuple(lhs_dilation),
        rhs_dilation=window.dilation,
        feature_group_count=feature_group_count,
        **options,
    )
    output_size = jax.eval_shape(definition, x, kernel).shape[1:3]
    if 0 in output_size:
        raise InputError(
            f"convolution with a {kernel.shape[0]}x{kernel.shape[1]} kernel needs at least as many "
            f"pixels, got spatial size {x.shape[1:3]} and padding {padding}; use a larger image"
        )
    if set(lhs_dilation) != {1} or options.get("preferred_element_type") is not None:
        return definition(x, kernel)
    image, taps = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
    cpu = convolution(definition, window, image, taps, output_size)
    return dispatch.apply(Multilinear(definition), {"cpu": cpu}, x, kernel)

"""Blurred upsampling: the adjoint of `blur_pool`, with a gain.

`blur_pool` is linear: along an axis it is a matrix B. `blur_upsample` is the gain times B', which
puts zeros between the values and blurs (and adds what the blur puts on the padding to the pixels
that the padding copies).
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aa_flax.errors import InputError, real
from aa_flax.ops.blur import FilterSize, check_map, check_options, geometry_of, one_for_each_axis
from aa_flax.ops.lowpass import Geometry, Implementation, Padding, matrix, spread

Gain = Literal["stride", "constant"] | float


def blur_upsample(
    x: Float[Array, "N *spatial C"],
    filter_size: FilterSize = 4,
    stride: int | Sequence[int] = 2,
    padding: Padding = "reflect",
    pad_offset: int = 0,
    *,
    size: int | Sequence[int] | None = None,
    gain: Gain = "stride",
    implementation: Implementation | None = None,
) -> Float[Array, "N *out C"]:
    """Upsamples every channel: zeros between the values, then a low-pass filter.

    With gain 1 it is the adjoint of `blur_pool` with the same options on maps of that size: the
    inner products `<blur_pool(a), x>` and `<a, blur_upsample(x)>` are equal.

    Args:
        x, filter_size, stride, padding, pad_offset, implementation: as in `blur_pool`.
        size: pixels of the result, one number, or one for each axis: any size that `blur_pool`
            reduces to that of `x`. Default: the largest, `stride` times that of `x` (less twice
            `pad_offset`).
        gain: `stride` multiplies the adjoint by the stride of each axis, which preserves constants
            away from the border (for stride 2 and 2 taps or more; for larger strides on average).
            `constant` divides by the sum of the weights of each pixel, which preserves constants
            everywhere, whatever the stride and padding. A number multiplies the adjoint.

    Raises:
        InputError: an invalid option or size, or `constant` where some pixel has no weight (fewer
            taps than the stride).

    Source: the transpose of Zhang, ICML 2019, Sec. 3.1; zeros, a low-pass filter and a gain of the
    stride as in Oppenheim and Schafer, Discrete-Time Signal Processing, Sec. 4.6.2.

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> aa_flax.blur_upsample(jnp.ones((2, 28, 28, 64))).shape
        (2, 56, 56, 64)
        >>> aa_flax.blur_upsample(jnp.ones((1, 2, 1)), gain="constant").ravel()
        Array([1., 1., 1., 1.], dtype=float32)
    """
    options = check_options(filter_size, stride, padding, pad_offset)
    check_map(x)
    check_gain(gain)
    sizes = upsampled_size(x.shape[1:-1], size, options.stride, options.pad_offset)
    geometry = geometry_of(sizes, options)
    y = spread(x, geometry, implementation)
    if gain == "constant":
        return _even(y, geometry)
    factor = prod(axis.stride for axis in geometry) if gain == "stride" else gain
    return y if factor == 1 else y * jnp.asarray(factor, y.dtype)


def check_gain(gain: Gain) -> Gain:
    """Raises an InputError for a gain that `blur_upsample` does not accept, or returns it."""
    if not isinstance(gain, str):
        return real("gain", gain)
    if gain not in ("stride", "constant"):
        raise InputError(f"gain must be stride, constant or a number, got {gain!r}")
    return gain


def upsampled_size(given: Sequence[int], wanted, stride, pad_offset: int = 0) -> tuple[int, ...]:
    """Returns the size of a result, the largest by default, that a pool reduces to a given size."""
    strides = one_for_each_axis("stride", stride, len(given))
    largest = tuple(n * s - 2 * pad_offset for n, s in zip(given, strides, strict=True))
    sizes = largest if wanted is None else one_for_each_axis("size", wanted, len(given))
    for n, most, s, size in zip(given, largest, strides, sizes, strict=True):
        if not most - s < size <= most:
            raise InputError(
                f"size {sizes} is not possible for {tuple(given)}: with stride {s} and pad_offset "
                f"{pad_offset}, {n} values become {max(most - s + 1, 1)} to {most} pixels"
            )
    return sizes


def _even(y: Array, geometry: Geometry) -> Array:
    """Divides each pixel by the sum of its weights."""
    result = y.astype(np.promote_types(y.dtype, jnp.float32))
    for i, axis in enumerate(geometry):
        weights = np.asarray(matrix(axis).sum(0)).ravel()
        if not (np.abs(weights) > 1e-6).all():
            raise InputError(
                f"gain='constant' needs a weight for every pixel; with {len(axis.taps)} taps and "
                f"stride {axis.stride} some have none; give a filter_size of at least the stride"
            )
        shape = [-1 if j == 1 + i else 1 for j in range(y.ndim)]
        result = result * jnp.asarray(1 / weights, result.dtype).reshape(shape)
    return result.astype(y.dtype)

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
from aa_flax.ops.blur import Options, check_map, check_options, geometry_of, one_for_each_axis
from aa_flax.ops.lowpass import Geometry, Implementation, Padding, gathered_weights, spread

Gain = Literal["stride", "constant"] | float


def blur_upsample(
    x: Float[Array, "N *spatial C"],
    filter_size: int | Sequence[int] = 4,
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
        x: `(N, L, C)`, `(N, H, W, C)` or `(N, D, H, W, C)`, channels last, floating point.
        filter_size, stride, padding, pad_offset, implementation: as in `blur_pool`.
        size: pixels of the result, one number, or one for each axis: any size that `blur_pool`
            reduces to that of `x`. Default: the largest, `stride` times that of `x` (less twice
            `pad_offset`).
        gain: `stride` multiplies the adjoint by the stride of each axis, which preserves constants
            away from the border (for stride 2 and 2 taps or more; for larger strides on average).
            `constant` divides by the sum of the weights of each pixel, which preserves constants
            everywhere, whatever the stride and padding. A number multiplies the adjoint.

    Returns:
        The same type as `x`, of spatial size `size`.

    Raises:
        InputError: a wrong rank, type or option, a size that `blur_pool` does not reduce to that of
            `x` or that is too short for its padding, or `constant` where some pixel has no weight
            (fewer taps than the stride).

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
    geometry = geometry_of(_sizes(x.shape[1:-1], size, options), options)
    y = spread(x, geometry, implementation)
    if gain == "constant":
        return _even(y, geometry)
    factor = prod(axis.stride for axis in geometry) if gain == "stride" else gain
    return y if factor == 1 else y * jnp.asarray(factor, y.dtype)


def check_gain(gain: Gain) -> None:
    """Raises an InputError for a gain that `blur_upsample` does not accept."""
    if isinstance(gain, str):
        if gain not in ("stride", "constant"):
            raise InputError(f"gain must be stride, constant or a number, got {gain!r}")
    else:
        real("gain", gain)


def _sizes(given: Sequence[int], wanted, options: Options) -> tuple[int, ...]:
    """Returns the size of the result for the given size of the input."""
    strides = one_for_each_axis("stride", options.stride, len(given))
    offset = 2 * options.pad_offset
    largest = tuple(n * s - offset for n, s in zip(given, strides, strict=True))
    if wanted is None:
        return largest
    sizes = one_for_each_axis("size", wanted, len(given))
    for n, most, s, size in zip(given, largest, strides, sizes, strict=True):
        if not most - s < size <= most:
            raise InputError(
                f"size {sizes} is not possible for {tuple(given)}: with stride {s} and pad_offset "
                f"{options.pad_offset}, {n} values become {max(most - s + 1, 1)} to {most} pixels"
            )
    return sizes


def _even(y: Array, geometry: Geometry) -> Array:
    """Divides each pixel by the sum of its weights."""
    result = y.astype(np.promote_types(y.dtype, jnp.float32))
    for i, axis in enumerate(geometry):
        weights = gathered_weights(axis)
        if not (np.abs(weights) > 1e-6).all():
            raise InputError(
                f"gain='constant' needs a weight for every pixel; with {len(axis.taps)} taps and "
                f"stride {axis.stride} some have none; give a filter_size of at least the stride"
            )
        shape = [-1 if j == 1 + i else 1 for j in range(y.ndim)]
        result = result * jnp.asarray(1 / weights, result.dtype).reshape(shape)
    return result.astype(y.dtype)

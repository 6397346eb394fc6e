"""BlurPool: a fixed low-pass filter before every subsampling (Zhang, ICML 2019, Sec. 3.1).

A strided layer keeps every `stride`-th value of a signal without limiting its frequencies first, so
its output changes when the input moves by one pixel. BlurPool convolves with a binomial filter (a
normalised row of Pascal's triangle) and subsamples in one step.

The binomial filter of k taps has the gain cos(pi / 2s)^(k - 1) at the Nyquist frequency of a signal
subsampled by s: 0.35 for 4 taps at stride 2, but 0.79 at stride 4 and 0.99 at stride 16. The filter
`auto` grows with the stride: three means of s pixels one after the other, which is [1, 3, 3, 1] / 8
at stride 2. Its 3s - 2 taps have the gain (s sin(pi / 2s))^-3, from 0.35 down to (2 / pi)^3 = 0.26,
and no gain at the multiples of the new sampling rate, which would alias to constants.
"""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from math import comb
from operator import index
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aa_flax.errors import InputError, choice, integer
from aa_flax.ops.lowpass import (
    Axis,
    Geometry,
    Implementation,
    Padding,
    check_sizes,
    nyquist_gain,
    subsampled,
)
from aa_flax.ops.padding import is_circular

Taps = tuple[float, ...]
FilterSize = int | Sequence[int] | Literal["auto"]

_WEAK = 0.5  # a gain above, at the new Nyquist frequency


def binomial_taps(filter_size: int) -> np.ndarray:
    """Returns the binomial filter, a row of Pascal's triangle over its sum: `[1, 3, 3, 1] / 8`."""
    return np.array([comb(filter_size - 1, i) / 2 ** (filter_size - 1) for i in range(filter_size)])


@lru_cache(maxsize=256)
def filter_taps(filter_size: int | Literal["auto"], stride: int) -> Taps:
    """Returns the filter of a blur along one axis: the binomial one, or the one that fits a stride.

    That is three means of `stride` pixels one after the other: 3 * stride - 2 taps.
    """
    if filter_size != "auto":
        return tuple(binomial_taps(filter_size).tolist())
    mean = np.full(stride, 1 / stride)
    return tuple(np.convolve(np.convolve(mean, mean), mean).tolist())


def weakness(taps: Taps, stride: int) -> str:
    """Returns what is left to alias, if a filter passes more than half of it; else nothing."""
    gain = float(nyquist_gain(np.array(taps), stride))
    if stride == 1 or gain <= _WEAK:
        return ""
    return (
        f"filter_size={len(taps)} passes {gain:.0%} of the Nyquist frequency of stride {stride}; "
        "'auto' fits the stride"
    )


def padding_widths(filter_size: int, pad_offset: int = 0) -> tuple[int, int]:
    """Returns the padding before and after an axis, so that `ceil(N / stride)` values result."""
    return (filter_size - 1) // 2 + pad_offset, filter_size // 2 + pad_offset


def blur_pool(
    x: Float[Array, "N *spatial C"],
    filter_size: FilterSize = 4,
    stride: int | Sequence[int] = 2,
    padding: Padding = "reflect",
    pad_offset: int = 0,
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "N *out C"]:
    """Low-pass filters every channel and keeps every `stride`-th value.

    Odd filters sample the input at `stride * i`, even ones at `stride * i + 0.5` pixels;
    `pad_offset` moves all samples that many pixels to the left.

    Args:
        x: `(N, L, C)`, `(N, H, W, C)` or `(N, D, H, W, C)`, channels last, floating point.
        filter_size: taps of the binomial filter, 1 or more; one number, or one for each axis. Or
            `auto`, a filter of 3 * stride - 2 taps along each axis: 4 at stride 2, the same as the
            binomial one, 10 at stride 4; none along an axis of stride 1.
        stride: subsampling factor, 1 or more; one number, or one for each axis.
        padding: `reflect` (the edge not repeated), `replicate` (the edge repeated), `zero` or
            `circular`.
        pad_offset: pixels of padding added on every side beyond those the filter needs.
        implementation: `conv` is the definition, a grouped convolution with a fixed filter. The
            same sum is computed along each axis by static look-ups (`gather`) or by a product with
            a banded matrix (`matmul`). Default: `gather` on CPU and GPU, `matmul` on TPU. Within
            `ops.definitions()` it is always `conv`.

    Returns:
        The same type as `x`; each spatial axis has `ceil((N + 2 * pad_offset) / stride)` values.

    Warns of a filter that passes more than half of the Nyquist frequency of a stride above 2.

    Source: Zhang, ICML 2019, Sec. 3.1.

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> x = jnp.array([0.0, 0, 0, 8, 0, 0, 0, 0]).reshape(1, 8, 1)
        >>> aa_flax.blur_pool(x, filter_size=4).ravel()  # taps 1, 3, 3, 1 over 8
        Array([0., 3., 1., 0.], dtype=float32)
        >>> aa_flax.blur_pool(jnp.ones((2, 56, 56, 64))).shape
        (2, 28, 28, 64)
    """
    options = check_options(filter_size, stride, padding, pad_offset)
    check_map(x)
    geometry = geometry_of(x.shape[1:-1], options)
    for axis in geometry:
        if axis.stride > 2 and (weak := weakness(axis.taps, axis.stride)):
            warnings.warn(f"blur_pool hardly filters: {weak}", stacklevel=2)
            break
    return subsampled(x, geometry, implementation)


class Options(NamedTuple):
    """Checked options of `blur_pool`; numbers are Python's, one or one for each axis."""

    filter_size: int | tuple[int, ...] | Literal["auto"]
    stride: int | tuple[int, ...]
    padding: Padding
    pad_offset: int


def check_options(filter_size, stride, padding, pad_offset) -> Options:
    """Checks the options of `blur_pool` and converts integers of any kind to Python's."""
    choice("padding", padding, Padding)
    is_auto = isinstance(filter_size, str) and filter_size == "auto"
    return Options(
        "auto" if is_auto else one_or_several("filter_size", filter_size),
        one_or_several("stride", stride),
        padding,
        _integer("pad_offset", pad_offset, least=0),
    )


def one_or_several(name: str, value, *, least: int = 1) -> int | tuple[int, ...]:
    """Returns one integer, or one for each axis, from those of any kind."""
    several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    if several and getattr(value, "ndim", 1):
        return tuple(_integer(name, number, least=least) for number in value)
    return _integer(name, value, least=least)


def _integer(name: str, value, *, least: int) -> int:
    if not isinstance(value, bool):  # index() would make it 0 or 1
        with suppress(TypeError):
            value = index(value)
    return integer(name, value, least=least)


def one_for_each_axis(name: str, value, dims: int) -> tuple[int, ...]:
    """Returns one integer of at least 1 for each of `dims` axes, from one or as many."""
    values = one_or_several(name, value)
    values = (values,) * dims if isinstance(values, int) else values
    if len(values) != dims:
        raise InputError(f"{name} {values} has {len(values)} entries for {dims} spatial axes")
    return values


def geometry_of(sizes: Sequence[int], options: Options) -> Geometry:
    """Returns the filter of each axis for `blur_pool` on maps of those sizes."""
    size, dims = options.filter_size, len(sizes)
    strides = one_for_each_axis("stride", options.stride, dims)
    each = (size,) * dims if size == "auto" else one_for_each_axis("filter_size", size, dims)
    taps = [filter_taps(k, s) for k, s in zip(each, strides, strict=True)]
    widths = [padding_widths(len(filter), options.pad_offset) for filter in taps]
    return filter_geometry(sizes, taps, strides, options.padding, widths)


def filter_geometry(
    sizes: Sequence[int], taps: Iterable[Taps], stride, padding: Padding, widths
) -> Geometry:
    """Returns the given filter of each axis for maps of those sizes."""
    strides = one_for_each_axis("stride", stride, len(sizes))
    padding = "circular" if is_circular() else padding
    geometry = tuple(
        Axis(n, filter, step, padding, width)
        for n, filter, step, width in zip(sizes, taps, strides, widths, strict=True)
    )
    check_sizes(geometry)
    return geometry


def check_map(x) -> None:
    """Raises an InputError unless `x` is a floating-point array with 1 to 3 spatial axes."""
    if not hasattr(x, "ndim"):
        raise InputError(f"x must be an array, got a {type(x).__name__}")
    if x.ndim - 2 not in (1, 2, 3):
        raise InputError(f"x must be (N, 1 to 3 spatial axes, C), got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x must be floating point, got {x.dtype}; convert it first")

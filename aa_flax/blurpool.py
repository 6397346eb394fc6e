"""BlurPool: a fixed low-pass filter before every subsampling (Zhang, ICML 2019, Sec. 3.1).

A strided layer keeps every `stride`-th value of a signal whose frequencies it never limited, so
what it keeps changes when the input moves by one pixel. BlurPool convolves with a binomial filter
(a row of Pascal's triangle, normalised) and subsamples in one step.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import comb
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float
from scipy import sparse

from aa_flax.layers import is_circular, max_pool

Padding = Literal["reflect", "replicate", "zero", "circular"]
Implementation = Literal["conv", "gather"]

_PadMode = Literal["reflect", "edge", "wrap", "constant"]
_PAD_MODE: dict[Padding, _PadMode] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "zero": "constant",
}


def binomial_taps(filter_size: int) -> np.ndarray:
    """The normalised binomial filter: row `filter_size - 1` of Pascal's triangle over its sum.

    Returns:
        float64 array of shape `(filter_size,)`; for 4: `[1, 3, 3, 1] / 8`.
    """
    if filter_size < 1:
        raise ValueError(f"filter_size must be at least 1, got {filter_size}")
    row = [comb(filter_size - 1, i) for i in range(filter_size)]
    return np.array(row, np.float64) / 2.0 ** (filter_size - 1)


def padding_widths(filter_size: int, pad_offset: int = 0) -> tuple[int, int]:
    """Pixels added before and after an axis, so that its output has `ceil(N / stride)` values."""
    return (filter_size - 1) // 2 + pad_offset, filter_size // 2 + pad_offset


def blur_pool(
    x: Float[Array, "N *spatial C"],
    filter_size: int | Sequence[int] = 4,
    stride: int | Sequence[int] = 2,
    padding: Padding = "reflect",
    pad_offset: int = 0,
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "N *out C"]:
    """Low-pass filters every channel and keeps every `stride`-th value.

    Odd filters sample the input at `stride * i`, even ones at `stride * i + 0.5` (in pixels, before
    `pad_offset`, which moves the first sample that much to the left).

    Args:
        x: `(N, L, C)`, `(N, H, W, C)` or `(N, D, H, W, C)`, channels last, floating point.
        filter_size: taps of the binomial filter, 1 or more; one number, or one for each axis.
        stride: subsampling factor, 1 or more; one number, or one for each axis.
        padding: how the border continues: `reflect` (the edge not repeated), `replicate` (the
            edge repeated), `zero` or `circular`.
        pad_offset: pixels of padding added on every side beyond those the filter needs.
        implementation: `conv` is a grouped convolution with a fixed filter, the definition;
            `gather` is the same sum as static, separable look-ups with a backward of its own (no
            forward-mode derivative). Default: `gather` on CPU, where XLA's grouped convolutions
            are slow, and `conv` elsewhere.

    Returns:
        The same type as `x`; each spatial axis has `ceil((N + 2 * pad_offset) / stride)` values.

    Raises:
        ValueError: a wrong rank, type or option, or an axis too short for its padding.
    """
    if is_circular():
        padding = "circular"
    geometry = _check(x, filter_size, stride, padding, pad_offset)
    if implementation is None:
        return lax.platform_dependent(
            x,
            cpu=partial(_blur_by_gather, geometry=geometry),
            default=partial(_blur_by_conv, geometry=geometry),
        )
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be conv, gather or None, got {implementation!r}")
    blur = _blur_by_conv if implementation == "conv" else _blur_by_gather
    return blur(x, geometry=geometry)


class BlurPool(nnx.Module):
    """`blur_pool` as a layer. It holds no variable: the filter is fixed and never trained.

    Args are those of `blur_pool`. Source: Zhang, ICML 2019, Sec. 3.1, "BlurPool".
    """

    def __init__(
        self,
        filter_size: int | Sequence[int] = 4,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        pad_offset: int = 0,
    ):
        self.filter_size = filter_size if isinstance(filter_size, int) else tuple(filter_size)
        self.stride = stride if isinstance(stride, int) else tuple(stride)
        self.padding: Padding = padding
        self.pad_offset = pad_offset
        _check_options(self.filter_size, self.stride, padding, pad_offset)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return blur_pool(x, self.filter_size, self.stride, self.padding, self.pad_offset)


class MaxBlurPool(nnx.Module):
    """An antialiased max pool: a dense maximum (stride 1), then `BlurPool`.

    Args:
        window: side of the window the maximum is taken over.
        window_padding: pixels around the input for the maximum (never the maximum themselves).
        filter_size, stride, padding: those of `blur_pool`.

    Source: Zhang, ICML 2019, Sec. 3.2, "MaxPool -> MaxBlurPool".
    """

    def __init__(
        self,
        window: int = 2,
        filter_size: int = 4,
        stride: int = 2,
        padding: Padding = "reflect",
        window_padding: int = 0,
    ):
        self.window = window
        self.window_padding = window_padding
        self.blur = BlurPool(filter_size, stride, padding)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return self.blur(max_pool(x, self.window, stride=1, padding=self.window_padding))


class _Axis(NamedTuple):
    """What is done to one spatial axis."""

    size: int
    taps: int
    stride: int
    padding: Padding
    pad_offset: int

    @property
    def pad_widths(self) -> tuple[int, int]:
        return padding_widths(self.taps, self.pad_offset)


_Geometry = tuple[_Axis, ...]


def _check_options(filter_size, stride, padding, pad_offset) -> None:
    for name, value, least in (
        ("filter_size", filter_size, 1),
        ("stride", stride, 1),
        ("pad_offset", pad_offset, 0),
    ):
        for number in (value,) if isinstance(value, int) else value:
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}; got {padding!r}")


def _per_axis(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise ValueError(f"{name} {value} has {len(values)} entries for {dims} spatial axes")
    return values


def _check(x, filter_size, stride, padding: Padding, pad_offset: int) -> _Geometry:
    _check_options(filter_size, stride, padding, pad_offset)
    dims = x.ndim - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"x must be (N, 1 to 3 spatial axes, C), got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}; convert it first")
    taps = _per_axis("filter_size", filter_size, dims)
    strides = _per_axis("stride", stride, dims)
    sizes = x.shape[1:-1]
    for size, k in zip(sizes, taps, strict=True):
        widest = max(padding_widths(k, pad_offset))
        least = max(1, {"reflect": widest + 1, "circular": widest}.get(padding, 1))
        if size < least:
            raise ValueError(
                f"input of spatial size {sizes} is too small: {padding} padding for filter_size "
                f"{k} (pad_offset {pad_offset}) needs at least {least} pixels on each axis"
            )
    return tuple(
        _Axis(n, k, s, padding, pad_offset) for n, k, s in zip(sizes, taps, strides, strict=True)
    )


def _blur_by_conv(x: Array, geometry: _Geometry) -> Array:
    """The definition: pad, then convolve each channel with the outer product of the taps."""
    taps = [axis.taps for axis in geometry]
    widths = [(0, 0), *(axis.pad_widths for axis in geometry), (0, 0)]
    kernel = np.ones(())
    for k in taps:
        kernel = np.multiply.outer(kernel, binomial_taps(k))
    channels = x.shape[-1]
    spatial = "DHW"[-len(taps) :]
    return lax.conv_general_dilated(
        jnp.pad(x, widths, mode=_PAD_MODE[geometry[0].padding]),
        jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[..., None, None], (*taps, 1, channels)),
        window_strides=[axis.stride for axis in geometry],
        padding="VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=channels,
    )


@partial(jax.custom_vjp, nondiff_argnames=("geometry",))
def _blur_by_gather(x: Array, geometry: _Geometry) -> Array:
    """The same sum, one axis after the other, as look-ups with static indices.

    On an axis, blurring with padding and subsampling is a sparse matrix B: `y = B x`. Row i holds
    the few inputs that output i reads, the border already folded in, so the padded signal is
    never built. The gradient is `B' g`, again a sparse matrix with few entries in a row, and so
    again look-ups instead of the scatter that differentiating a look-up would give.
    """
    dtype = x.dtype
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    for i, axis in enumerate(geometry):
        y = _sparse_rows_dot(y, _forward_rows(axis), axis=1 + i)
    return y.astype(dtype)


def _gather_forward(x, geometry):
    return _blur_by_gather(x, geometry), None


def _gather_backward(geometry, _, g):
    dtype = g.dtype
    g = g.astype(jnp.promote_types(dtype, jnp.float32))
    for i, axis in reversed(list(enumerate(geometry))):
        g = _sparse_rows_dot(g, _backward_rows(axis), axis=1 + i)
    return (g.astype(dtype),)


_blur_by_gather.defvjp(_gather_forward, _gather_backward)

# A sparse matrix by rows: column indices and weights, both (entries in the fullest row, rows);
# shorter rows are filled up with weight 0.
_Rows = tuple[np.ndarray, np.ndarray]


def _sparse_rows_dot(x: Array, rows: _Rows, axis: int) -> Array:
    """Multiplies `x` along `axis` by a sparse matrix: one look-up and one product an entry."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    total = None
    for indices, weights in zip(*rows, strict=True):
        same = np.all(weights == weights[0])
        weight = float(weights[0]) if same else jnp.asarray(weights, x.dtype).reshape(shape)
        term = jnp.take(x, indices, axis=axis, mode="clip") * weight
        total = term if total is None else total + term
    assert total is not None
    return total


def _blur_matrix(axis: _Axis) -> sparse.csr_array:
    """B of `_blur_by_gather`: `(output size, input size)`."""
    size, k, stride, padding, _ = axis
    before, after = axis.pad_widths
    if padding == "zero":
        source = np.arange(-before, size + after)
    else:
        source = np.pad(np.arange(size), (before, after), mode=_PAD_MODE[padding])
    length = (len(source) - k) // stride + 1
    rows = np.repeat(np.arange(length), k)
    columns = source[(stride * np.arange(length)[:, None] + np.arange(k)).ravel()]
    weights = np.tile(binomial_taps(k), length)
    inside = (columns >= 0) & (columns < size)
    entries = (weights[inside], (rows[inside], columns[inside]))
    return sparse.coo_array(entries, shape=(length, size)).tocsr()


def _to_rows(matrix: sparse.csr_array) -> _Rows:
    assert matrix.shape is not None
    counts = np.diff(matrix.indptr)
    shape = (max(int(counts.max(initial=0)), 1), matrix.shape[0])
    indices, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float64)
    row = np.repeat(np.arange(matrix.shape[0]), counts)
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
    indices[place, row], weights[place, row] = matrix.indices, matrix.data
    return indices, weights


@lru_cache(maxsize=1024)
def _forward_rows(axis: _Axis) -> _Rows:
    return _to_rows(_blur_matrix(axis))


@lru_cache(maxsize=1024)
def _backward_rows(axis: _Axis) -> _Rows:
    return _to_rows(_blur_matrix(axis).T.tocsr())

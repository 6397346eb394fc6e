"""BlurPool: a fixed low-pass filter before every subsampling (Zhang, ICML 2019, Sec. 3.1).

A strided layer keeps every `stride`-th value of a signal whose frequencies it never limited, so
what it keeps changes when the input moves by one pixel. BlurPool convolves with a binomial filter
(a row of Pascal's triangle, normalised) and subsamples in one step.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from operator import index
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax, named_scope
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops import forms
from aa_flax.ops.forms import Multilinear, static
from aa_flax.ops.padding import is_circular

if TYPE_CHECKING:
    from scipy import sparse

Padding = Literal["reflect", "replicate", "zero", "circular"]
Implementation = Literal["conv", "gather"]
BLUR_SCOPE = "aa_flax.blur_pool"  # by which programs tell a blur from a strided convolution

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
        raise InputError(f"filter_size must be at least 1, got {filter_size}")
    return np.array([comb(filter_size - 1, i) / 2 ** (filter_size - 1) for i in range(filter_size)])


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
            `gather` is the same sum as static, separable look-ups, unless `ops.definitions()` is in
            force. Default: `gather` on CPU, where XLA's grouped convolutions are slow, and `conv`
            elsewhere.

    Returns:
        The same type as `x`; each spatial axis has `ceil((N + 2 * pad_offset) / stride)` values.

    Raises:
        InputError: a wrong rank, type or option, or an axis too short for its padding.
    """
    if is_circular():
        padding = "circular"
    geometry = _check(x, filter_size, stride, padding, pad_offset)
    conv = Multilinear(static(_blur_by_conv, geometry=geometry))
    gather = Multilinear(
        static(_blur_by_gather, geometry=geometry),
        transposes=(static(_gather_gradient, geometry=geometry),),
    )
    if implementation is None:
        return forms.apply(conv, gather, x)
    if implementation not in get_args(Implementation):
        raise InputError(f"implementation must be conv, gather or None, got {implementation!r}")
    if implementation == "conv" or forms.are_forced():
        return conv.function(jnp.asarray(x))
    return forms.apply(gather, gather, x)


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


class Options(NamedTuple):
    """The options of `blur_pool`, checked: numbers are Python's, one or one for each axis."""

    filter_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: Padding
    pad_offset: int


def check_options(filter_size, stride, padding, pad_offset) -> Options:
    """The options as `blur_pool` uses them, whatever kind of integers they were given as.

    Raises:
        InputError: one of them is none that `blur_pool` takes.
    """
    if padding not in get_args(Padding):
        raise InputError(f"padding must be one of {', '.join(get_args(Padding))}; got {padding!r}")
    return Options(
        _integers("filter_size", filter_size, least=1),
        _integers("stride", stride, least=1),
        padding,
        _integer("pad_offset", pad_offset, least=0),
    )


def _integers(name: str, value, *, least: int) -> int | tuple[int, ...]:
    several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    if several and getattr(value, "ndim", 1):
        return tuple(_integer(name, number, least=least) for number in value)
    return _integer(name, value, least=least)


def _integer(name: str, value, *, least: int) -> int:
    try:
        if isinstance(value, bool):  # index() would make it 0 or 1
            raise TypeError
        number = index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    return number


def _per_axis(name: str, value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else value
    if len(values) != dims:
        raise InputError(f"{name} {value} has {len(values)} entries for {dims} spatial axes")
    return values


def _check(x, filter_size, stride, padding, pad_offset) -> _Geometry:
    options = check_options(filter_size, stride, padding, pad_offset)
    filter_size, stride, padding, pad_offset = options
    if not hasattr(x, "ndim"):
        raise InputError(f"x must be an array, got a {type(x).__name__}")
    dims = x.ndim - 2
    if dims not in (1, 2, 3):
        raise InputError(f"x must be (N, 1 to 3 spatial axes, C), got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x must be floating point, got {x.dtype}; convert it first")
    taps = _per_axis("filter_size", filter_size, dims)
    strides = _per_axis("stride", stride, dims)
    sizes = x.shape[1:-1]
    for size, k in zip(sizes, taps, strict=True):
        widest = max(padding_widths(k, pad_offset))
        least = max(1, {"reflect": widest + 1, "circular": widest}.get(padding, 1))
        if size < least:
            raise InputError(
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
    with named_scope(BLUR_SCOPE):
        return lax.conv_general_dilated(
            jnp.pad(x, widths, mode=_PAD_MODE[geometry[0].padding]),
            jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[..., None, None], (*taps, 1, channels)),
            window_strides=[axis.stride for axis in geometry],
            padding="VALID",
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=channels,
        )


def _blur_by_gather(x: Array, geometry: _Geometry) -> Array:
    """The sum that defines it, one axis after the other, as look-ups with static indices.

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


def _gather_gradient(g: Array, geometry: _Geometry) -> Array:
    dtype = g.dtype
    g = g.astype(jnp.promote_types(dtype, jnp.float32))
    for i, axis in reversed(list(enumerate(geometry))):
        g = _sparse_rows_dot(g, _backward_rows(axis), axis=1 + i)
    return g.astype(dtype)


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


def _blur_matrix(axis: _Axis) -> "sparse.csr_array":
    """B of `_blur_by_gather`: `(output size, input size)`."""
    from scipy import sparse  # here, since it takes a fifth of the time to import this package

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


def _to_rows(matrix: "sparse.csr_array") -> _Rows:
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

"""A fixed separable filter with a stride, and its adjoint, each with three implementations.

`subsampled` pads, filters every channel by the outer product of the axes' taps and keeps every
`stride`-th value; `spread` is its transpose. The definition is a grouped convolution. XLA runs
those slowly on CPU and reads memory several times on GPU and TPU, so the same sum is computed along
each axis: by static look-ups on CPU and GPU, by a product with a banded matrix on TPU.
"""

from collections.abc import Mapping
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.errors import InputError, choice
from aa_flax.ops import dispatch
from aa_flax.ops.dispatch import Multilinear, Static

if TYPE_CHECKING:
    from scipy import sparse

Padding = Literal["reflect", "replicate", "zero", "circular"]
Implementation = Literal["conv", "gather", "matmul"]

BLUR_SCOPE = "aa_flax.blur_pool"  # distinguishes a blur from a strided convolution in programs
PAD_MODE: dict[Padding, Literal["reflect", "edge", "wrap", "constant"]] = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "zero": "constant",
}


class Axis(NamedTuple):
    """The filter of one spatial axis of `size` pixels."""

    size: int
    taps: tuple[float, ...]
    stride: int
    padding: Padding
    pad_widths: tuple[int, int]  # pixels added before and after

    @property
    def length(self) -> int:
        """Number of values that are kept."""
        return (self.size + sum(self.pad_widths) - len(self.taps)) // self.stride + 1

    @property
    def is_identity(self) -> bool:
        return (self.taps, self.stride, self.pad_widths) == ((1.0,), 1, (0, 0))


Geometry = tuple[Axis, ...]


def nyquist_gain(taps: np.ndarray, stride: float) -> np.ndarray:
    """Returns the gain of filters (columns) at the lowest frequency that a stride aliases.

    That is pi / stride radians per pixel, the Nyquist frequency of the subsampled signal.
    """
    wave = np.exp(1j * np.pi / stride * np.arange(len(taps)))
    return np.abs(wave @ taps) / np.maximum(np.abs(np.sum(taps, 0)), 1e-12)


def check_sizes(geometry: Geometry) -> None:
    """Raises an InputError if an axis is too short for its padding."""
    for axis in geometry:
        widest = max(axis.pad_widths)
        least = max(1, {"reflect": widest + 1, "circular": widest}.get(axis.padding, 1))
        if axis.size < least:
            before, after = axis.pad_widths
            sizes = tuple(axis.size for axis in geometry)
            raise InputError(
                f"input of spatial size {sizes} is too small: {axis.padding} padding for "
                f"{len(axis.taps)} taps, {before} pixels before and {after} after, needs at least "
                f"{least} pixels on each axis"
            )


def subsampled(
    x: Float[Array, "N *spatial C"],
    geometry: Geometry,
    implementation: Implementation | None = None,
) -> Float[Array, "N *out C"]:
    """Filters and subsamples; by default the platform decides on the implementation."""
    conv = Multilinear(Static(_conv, geometry=geometry))
    return _apply(conv, _kernels(geometry), x, implementation)


def spread(
    y: Float[Array, "N *out C"], geometry: Geometry, implementation: Implementation | None = None
) -> Float[Array, "N *spatial C"]:
    """Applies the transpose of `subsampled` with the same geometry."""
    conv = Static(_conv, geometry=geometry)
    transposed_conv = Multilinear(Static(_conv_gradient, geometry=geometry), (conv,))
    kernels = {
        name: Multilinear(kernel.transposes[0], (kernel.function,))
        for name, kernel in _kernels(geometry).items()
    }
    return _apply(transposed_conv, kernels, y, implementation)


def _kernels(geometry: Geometry) -> dict[str, Multilinear]:
    return {
        name: Multilinear(
            Static(function, geometry=geometry),
            (Static(function, geometry=geometry, transposed=True),),
        )
        for name, function in (("gather", _gather), ("matmul", _matmul))
    }


def _apply(
    conv: Multilinear, kernels: Mapping[str, Multilinear], x: Array, implementation: object
) -> Array:
    if implementation is None:
        gather, matmul = kernels["gather"], kernels["matmul"]
        return dispatch.apply(conv, {"cpu": gather, "gpu": gather, "tpu": matmul}, x)
    choice("implementation", implementation, Implementation)
    if implementation == "conv" or dispatch.definitions_are_forced():
        return conv.function(jnp.asarray(x))
    return dispatch.apply(kernels[str(implementation)], {}, x)


def _conv(x: Array, geometry: Geometry) -> Array:
    """Pads, then convolves each channel with the outer product of the taps: the definition."""
    widths = [(0, 0), *(axis.pad_widths for axis in geometry), (0, 0)]
    kernel = np.ones(())
    for axis in geometry:
        kernel = np.multiply.outer(kernel, np.array(axis.taps))
    kernel = jnp.asarray(kernel, x.dtype)[..., None, None]
    spatial = "DHW"[-len(geometry) :]
    with jax.named_scope(BLUR_SCOPE):
        return lax.conv_general_dilated(
            jnp.pad(x, widths, mode=PAD_MODE[geometry[0].padding]),
            jnp.broadcast_to(kernel, (*kernel.shape[:-1], x.shape[-1])),
            window_strides=[axis.stride for axis in geometry],
            padding="VALID",
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=x.shape[-1],
        )


def _conv_gradient(y: Array, geometry: Geometry) -> Array:
    """Applies JAX's transpose of the definition.

    It puts zeros between the values, convolves, and adds what fell on the padding to the pixels
    that the padding copies.
    """
    x = jax.ShapeDtypeStruct((y.shape[0], *(axis.size for axis in geometry), y.shape[-1]), y.dtype)
    return jax.linear_transpose(Static(_conv, geometry=geometry), x)(y)[0]


def _gather(x: Array, geometry: Geometry, transposed: bool = False) -> Array:
    """Computes the same sum, or its transpose, axis by axis by look-ups with static indices.

    On an axis, padding, filtering and subsampling is a sparse matrix B: `y = B x`. Row i has the
    weights of the few inputs that output i reads, those of the padding added to the pixels it
    copies, so the padded signal is never built. The gradient is `B' g`, again a sparse matrix with
    few entries in a row: look-ups, instead of the scatter that autodiff of a look-up gives.
    """
    axes = [(i, axis) for i, axis in enumerate(geometry, 1) if not axis.is_identity]
    y = x
    for i, axis in reversed(axes) if transposed else axes:
        y = _sparse_rows_dot(y, _rows(axis, transposed), i)
    # Without a barrier at a narrower type XLA repeats the look-ups in every consumer. (JAX 0.10
    # drops it before it fuses.)
    return y if y.dtype == x.dtype else lax.optimization_barrier(y.astype(x.dtype))


def _matmul(x: Array, geometry: Geometry, transposed: bool = False) -> Array:
    """Computes the same sum, or its transpose, by B of `_gather` as a dense matrix.

    Nearly all of B is zeros, which costs matrix units nothing for axes of some hundred pixels; in
    return nothing is padded, spread out or flipped. Narrow types are rounded after each axis.
    """
    letters = f"n{'dhw'[-len(geometry) :]}c"
    for axis, i in zip(geometry, letters[1:-1], strict=True):
        if axis.is_identity:
            continue
        weights = matrix(axis).toarray()
        product = f"o{i},{letters}->{letters.replace(i, 'o')}"
        with jax.named_scope(BLUR_SCOPE):
            x = jnp.einsum(
                product,
                jnp.asarray(weights.T if transposed else weights, x.dtype),
                x,
                precision=lax.Precision.HIGHEST,
            )
    return x


def _sparse_rows_dot(x: Array, rows: tuple[np.ndarray, np.ndarray], axis: int) -> Array:
    """Multiplies `x` along `axis` by a sparse matrix: one look-up and one product per entry.

    Half precision is converted after the look-up: XLA:CPU would store the converted map.
    """
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    wide = np.promote_types(x.dtype, jnp.float32)

    def term(indices: np.ndarray, weights: np.ndarray) -> Array:
        same = np.all(weights == weights[0])
        weight = float(weights[0]) if same else jnp.asarray(weights, wide).reshape(shape)
        return jnp.take(x, indices, axis=axis, mode="clip").astype(wide) * weight

    return reduce(jnp.add, map(term, *rows))


def matrix(axis: Axis) -> "sparse.csr_array":
    """Returns B of `_gather`, `(length, size)`: the weights by which outputs read pixels."""
    from scipy import sparse  # here: it would be a fifth of the time to import aa_flax

    size, taps, stride, padding, (before, after) = axis
    k, length = len(taps), axis.length
    if padding == "zero":
        source = np.arange(-before, size + after)
    else:
        source = np.pad(np.arange(size), (before, after), mode=PAD_MODE[padding])
    rows = np.repeat(np.arange(length), k)
    columns = source[(stride * np.arange(length)[:, None] + np.arange(k)).ravel()]
    weights = np.tile(taps, length)
    inside = (columns >= 0) & (columns < size)
    entries = (weights[inside], (rows[inside], columns[inside]))
    return sparse.coo_array(entries, shape=(length, size)).tocsr()


@lru_cache(maxsize=2048)
def _rows(axis: Axis, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns column indices and weights of B or B', both (entries in the fullest row, rows).

    Shorter rows are filled up with weight 0.
    """
    rows = matrix(axis).T.tocsr() if transposed else matrix(axis)
    assert rows.shape is not None
    counts = np.diff(rows.indptr)
    shape = (max(int(counts.max(initial=0)), 1), rows.shape[0])
    indices, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float64)
    row = np.repeat(np.arange(rows.shape[0]), counts)
    entry = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], counts)
    indices[entry, row], weights[entry, row] = rows.indices, rows.data
    return indices, weights
